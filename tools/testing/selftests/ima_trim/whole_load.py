#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""The unit's default policy keeps the kernel's list short while many files are measured, for ten minutes."""

import os
import time

import ima_trim_lib as lib
import whole_lib as whole
from ima_trim_lib import check, equal, test

SECONDS = int(os.environ.get("TEST_SECONDS") or 600)
# Files a second, and every which of them is written to while it is read.
RATE = 200
VIOLATION = 50
# The default: a trim when the list has more records than this.
RECORDS = 5000
# How long it may take from there until they are gone: the daemon looks once a second, then archives and trims, and a guest
# is emulated.
LATE = 5

service = whole.Service()
files = None
longest = 0


def in_kernel():
    """How many records the kernel has."""
    return int(lib.read(f"{whole.KERNEL}/runtime_measurements_count"))


@test("the kernel's list stays below its bound")
def _():
    global files, longest
    service.start()
    files = whole.Files()
    began = time.monotonic()
    measured = looked = 0
    while (now := time.monotonic() - began) < SECONDS:
        while measured < now * RATE:
            measured += 1
            if measured % VIOLATION:
                files.measure()
            else:
                files.violate()
        if now - looked >= 0.5:
            looked = now
            longest = max(longest, in_kernel())
            check(longest <= RECORDS + LATE * RATE, f"{longest} records in the kernel after {now:.0f} s: {service.tail()}")
        time.sleep(0.01)
    took = time.monotonic() - began
    print(f"# {measured} files in {took:.0f} s, {measured / took:.0f} a second, {files.violations} violations; "
          f"at most {longest} records in the kernel")
    check(measured >= 0.9 * RATE * took, f"only {measured / took:.0f} files a second: the machine is too slow for this")


@test("because it was trimmed, violations with the rest, as often as it had to be")
def _():
    starting = lib.Starting(lib.read(lib.STARTING_PCRS))
    print(f"# {starting.trims} trims of {starting.records} records, {starting.violations} violations among them")
    check(longest > RECORDS or SECONDS < 60, f"the list never had more than {longest} records")
    # What is left in the list is not due.
    due = files.records // (RECORDS + LATE * RATE) - 1
    check(due <= starting.trims <= files.records // RECORDS, f"{starting.trims} trims of {files.records} records")
    check(starting.violations > 0 or SECONDS < 60, "no violation was trimmed")


@test("nothing is missing, and nothing is wrong")
def _():
    equal(lib.count(), files.records, "records since boot")
    check(b"verified: " in whole.run("verify"), "verify says something else")
    problems = [problem for problem in whole.status(1)["problems"] if "label=ima_trim" not in problem]
    equal(problems, [], "problems")
    equal(service.starts, 1, "starts of the daemon")


# All settings have their defaults, as in the file that is installed.
lib.main(prepare=lambda: whole.configure(trim={}))
