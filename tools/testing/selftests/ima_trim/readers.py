#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""The kernel's own exclusion: nobody trims while the list is open, and who has it open is said."""

import os
import time

import ima_trim_lib as lib
from ima_trim_lib import cases, check, equal, test


def matching():
    """A request that would trim."""
    lib.measure(3)
    history = lib.history()
    violations = len(history.violations(history.trimmed, history.total - 1))
    return history, history.tokens(history.total - 1) + f" violations={violations}"


def busy(text, path, flags, message):
    """Checks that a request is refused with EBUSY while a file is open, and that the log says why."""
    before = lib.snapshot()
    with lib.held_open(path, flags), lib.KernelLog() as log:
        outcome = lib.request(text)
        log.expect(message)
    equal((outcome.error, outcome.result, outcome.fields.get("errno")), ("EBUSY", "refused", "EBUSY"), "outcome")
    lib.unchanged(before, "a refused request")


LISTS = [(os.path.basename(path), path) for path in lib.list_files()]


@cases("EBUSY while it is open for reading", LISTS)
def _(path):
    history, text = matching()
    busy(text, path, os.O_RDONLY, "open for reading")
    busy(text + " dry-run", path, os.O_RDONLY, "open for reading")
    lib.trim(text, history.total - 1)


@test("EBUSY while a process that is not the trimmer has it open, until it dies")
def _():
    history, text = matching()
    ready, tell = os.pipe()

    def hold():
        fd = os.open(lib.ASCII, os.O_RDONLY)
        os.read(fd, 10)
        os.write(tell, b"x")
        time.sleep(60)

    child = lib.Child(hold)
    os.read(ready, 1)
    before = lib.read(lib.STARTING_PCRS)
    equal(lib.request(text).error, "EBUSY", "error")
    equal(lib.read(lib.STARTING_PCRS), before, "starting_pcrs")
    child.kill()
    os.close(ready)
    os.close(tell)
    lib.trim(text, history.total - 1)


@test("counters, policy and the module's own files may stay open")
def _():
    history, text = matching()
    paths = [f"{lib.IMA}/runtime_measurements_count", f"{lib.IMA}/violations", lib.STATUS, lib.STARTING_PCRS,
             lib.VERIFY, lib.VIOLATIONS, lib.TRIM]
    fds = [os.open(path, os.O_RDONLY) for path in paths]
    try:
        lib.trim(text, history.total - 1)
    finally:
        for fd in fds:
            os.close(fd)


@test("all files can be read while the list is open")
def _():
    fd = os.open(lib.BINARY, os.O_RDONLY)
    try:
        os.read(fd, 100)
        for path in lib.list_files() + [lib.STATUS, lib.STARTING_PCRS, lib.VERIFY, lib.VIOLATIONS, lib.TRIM]:
            lib.read(path)
    finally:
        os.close(fd)


@test("list and starting values read while the list is open belong together, while others trim")
def _():
    asked, ask = os.pipe()

    def trimmer():
        done = {"trimmed": 0, "EBUSY": 0}
        while not lib.select.select([asked], [], [], 0.01)[0]:
            lib.measure(2)
            log = lib.history()
            violations = f" violations={len(log.violations(log.trimmed, log.total))}"
            for _ in range(5):
                outcome = lib.request(log.tokens(log.total) + violations)
                done[outcome.error or outcome.result] += 1
                if not outcome.error:
                    break
        return done

    child = lib.Child(trimmer)
    looks = []
    deadline = time.monotonic() + 60
    try:
        # Until there were some trims between them.
        while len(looks) < 40 or len({starting.records for starting, _ in looks}) < 3:
            check(time.monotonic() < deadline, f"{len(looks)} looks, and hardly anything was trimmed meanwhile")
            looks.append(lib.look())
            time.sleep(0.02)
    finally:
        os.write(ask, b"x")
        done = child.result()
        os.close(asked)
        os.close(ask)
    check(done["trimmed"] > 1, f"nothing was trimmed meanwhile: {done}")

    # The trimmer's archive has every record; what was read must be what it says.
    log = lib.history(again=True)
    for starting, records in looks:
        lib.account(log, starting)
        expected = log.records[starting.records:starting.records + len(records)]
        equal([record.raw for record in records], [record.raw for record in expected], "list after the starting values")
    lib.invariant()


@cases("with the guard nobody can open it for writing", LISTS)
def _(path):
    for flags in (os.O_WRONLY, os.O_RDWR):
        equal(lib.outcome_of(os.open, path, flags), "EBUSY", f"opening with flags {flags}")


@test("without the guard, from here on")
def _():
    lib.reload("guard=0")
    equal(lib.status()["guard"], "off", "guard")


@cases("EBUSY while it is open for writing", LISTS)
def _(path):
    history, text = matching()
    busy(text, path, os.O_WRONLY, "open for writing")
    busy(text, path, os.O_RDWR, "open for writing")
    lib.trim(text, history.total - 1)


@test("a refused request leaves no reader counted: a native writer can open the list")
def _():
    history, text = matching()
    lib.refuse("sha256:10=" + "5a" * 32, "ENOENT")
    busy(text, lib.BINARY, os.O_RDONLY, "open for reading")
    lib.trim(text, history.total - 1)
    os.close(os.open(lib.BINARY, os.O_RDWR))


@test("with the guard again")
def _():
    lib.reload()
    equal(lib.outcome_of(os.open, lib.BINARY, os.O_RDWR), "EBUSY", "opening for writing")
    lib.invariant()


lib.main()
