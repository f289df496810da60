#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""With reclaim = "auto" what trims leave in the kernel is bounded, and files are seldom measured again.

Time is compressed: the list is trimmed, and what trims leave is flushed, after a hundredth of the records that are the default.
So what is measured here in a minute or two is, flush for flush, what a machine that measures ten files a second does in a day.
"""

import os
import re
import signal

import ima_trim_lib as lib
import whole_lib as whole
from ima_trim_lib import check, equal, test

SCALE = 100
FLUSH_RECORDS = 100_000 // SCALE
SETTINGS = {"automatic": True, "records": 5000 // SCALE, "every": 1, "flush_records": FLUSH_RECORDS}
# Files that no other is like.
MEASURED = 8000
# After so many the daemon is killed. It has to know what its predecessors have left: none lives as long as it takes to a flush.
LIFE = 800
# Files that last, and are opened again after so many others.
LASTING = 20
AGAIN = 400
# What a record takes in the list, in bytes; what it leaves after compact, at least and at most; and the noise of all else.
LISTED = 800
LEFT = (80, 150)
NOISE = 150_000
# How many records a trim may have that are more than it was to be made at: the daemon looks once a second, or is just started.
LATE = 1500

service = whole.Service()
files = None
again = 0


def flushes():
    """How often the daemon has flushed."""
    return len(re.findall(r'reclaim="flush"', lib.read("/run/ima-trim.log").decode()))


def trims():
    """How often the module has trimmed."""
    return lib.Starting(lib.read(lib.STARTING_PCRS)).trims


def left():
    """The bytes of the kernel's memory, without those of the records that are in the list."""
    os.kill(service.pid, signal.SIGSTOP)
    try:
        # Memory is given back by then.
        lib.status()
        records = int(lib.read(f"{whole.KERNEL}/runtime_measurements_count"))
        return lib.slab() - LISTED * records
    finally:
        os.kill(service.pid, signal.SIGCONT)


def measure(records, life=None):
    """Has files measured. Gives the memory that was left after each of some, and how often one that lasts was measured."""
    sizes = []
    found = 0
    for number in range(1, records + 1):
        files.measure()
        if number % AGAIN == 0:
            found += sum(files.measure_again(f"lasting.{one}") for one in range(LASTING))
            sizes.append(left())
        if life and number % life == 0:
            service.kill()
            service.wait()
    return sizes, found


@test("memory in the kernel is bounded, whatever is measured, and however often the daemon is started anew")
def _():
    global files, again
    service.start()
    files = whole.Files()
    before = left()
    sizes, again = measure(MEASURED, LIFE)
    half = len(sizes) // 2
    most = [max(part) - before for part in (sizes[:half], sizes[half:])]
    bound = (FLUSH_RECORDS + LATE) * LEFT[1] + NOISE
    print(f"# {files.records} records, {trims()} trims, {flushes()} of them flush, {service.starts} starts of the daemon: at "
          f"most {most[0]} bytes more than at the beginning, and {most[1]} in the second half")
    check(max(most) <= bound, f"{max(most)} bytes more than at the beginning, {bound} are the bound: {sizes}")
    check(MEASURED * LEFT[0] > bound, "the bound is no less than without flush")


@test("a file is measured again at most once for each flush")
def _():
    flushed = flushes()
    print(f"# {again} measurements of {LASTING} files in {flushed} flushes and {files.records} records")
    check(files.records // (FLUSH_RECORDS + LATE) - 1 <= flushed <= files.records // FLUSH_RECORDS, f"{flushed} flushes")
    check(LASTING <= again <= LASTING * (flushed + 1), f"{again} measurements of {LASTING} files in {flushed} flushes")


@test("nothing is missing")
def _():
    equal(lib.count(), files.records, "records since boot")
    check(b"verified: " in whole.run("verify"), "verify says something else")


@test("without flush it grows, which is seen by the same means")
def _():
    whole.configure(trim=SETTINGS | {"reclaim": "compact"})
    service.kill()
    service.wait()
    before, flushed = left(), flushes()
    sizes, found = measure(2 * FLUSH_RECORDS)
    grown = max(sizes) - before
    print(f"# {grown / (2 * FLUSH_RECORDS):.0f} bytes a record")
    check(grown >= 2 * FLUSH_RECORDS * LEFT[0], f"{grown} bytes more after {2 * FLUSH_RECORDS} records")
    equal(flushes(), flushed, "flushes")
    check(found <= LASTING, f"{found} measurements of {LASTING} files without a flush")


lib.main(prepare=lambda: whole.configure(trim=SETTINGS))
