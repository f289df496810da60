#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""The guard keeps writers out; without it, nobody may trim while there is one."""

import os
import time

import ima_trim_lib as lib
from ima_trim_lib import cases, check, equal, test

PARAMETERS = "/sys/module/ima_trim/parameters"


def last():
    """A request that trims everything but the last record."""
    lib.measure(3)
    log = lib.history()
    violations = len(log.violations(log.trimmed, log.total - 1))
    return log, log.tokens(log.total - 1) + f" violations={violations}"


def refused(text, pattern):
    """Checks that a request of the writer is refused with EBUSY, for this reason."""
    before = lib.read(lib.STARTING_PCRS)
    outcome = lib.logged(lambda: lib.request(text), pattern)
    equal((outcome.error, outcome.result), ("EBUSY", "refused"), "outcome")
    equal(lib.read(lib.STARTING_PCRS), before, "starting_pcrs")


@test("on by default, and said in status and among the parameters")
def _():
    equal(lib.status()["guard"], "on", "guard")
    equal(lib.read(f"{PARAMETERS}/guard"), b"Y\n", "parameter guard")
    equal(lib.read(f"{PARAMETERS}/reclaim"), b"keep\n", "parameter reclaim")


@test("readers are not hindered, and the kernel's own trim is")
def _():
    log, text = last()
    for path in lib.list_files():
        lib.read(path)
        equal(lib.outcome_of(lib.write, path, "1\n"), "EBUSY", f"error of a write to {path}")
    lib.trim(text, log.total - 1)


@test("a module that is loaded with a reclaim= that is not known: EINVAL, and the log names it")
def _():
    text = lib.read(lib.STARTING_PCRS)
    lib.unload()
    with lib.KernelLog() as log:
        equal(lib.outcome_of(lambda: lib.load(parameters="reclaim=melt")), "EINVAL", "error")
        log.expect("reclaim=melt")
    check(not lib.loaded(), "it is loaded")
    lib.load()
    lib.write(lib.STARTING_PCRS, text)
    lib.invariant()


@test("a writer when the module is loaded: EBUSY, and no reader is left counted")
def _():
    text = lib.read(lib.STARTING_PCRS)
    lib.unload()
    with lib.held_open(lib.ASCII, os.O_WRONLY), lib.KernelLog() as log:
        equal(lib.outcome_of(lib.load), "EBUSY", "error")
        log.expect("not loaded: .*open for writing")
    # Works only if nobody is counted any more.
    os.close(os.open(lib.ASCII, os.O_RDWR))
    lib.load()
    lib.write(lib.STARTING_PCRS, text)
    equal(lib.outcome_of(os.open, lib.ASCII, os.O_RDWR), "EBUSY", "opening for writing")


@test("without the guard others can write")
def _():
    lib.reload("guard=0")
    equal(lib.read(f"{PARAMETERS}/guard"), b"N\n", "parameter guard")
    os.close(os.open(lib.ASCII, os.O_RDWR))


@cases("EBUSY while a process has a list open for writing, be it the one that asks", [
    (name, flags) for name, flags in (("for writing", os.O_WRONLY), ("for reading and writing", os.O_RDWR))])
def _(flags):
    log, text = last()
    with lib.held_open(lib.BINARY, flags):
        refused(text, "open for writing")
        refused(text + " dry-run", "open for writing")
    fd = os.open(lib.ASCII, flags)
    try:
        refused(text, "open for writing")
        refused(text + " dry-run", "open for writing")
        equal(lib.restore(lib.read(lib.STARTING_PCRS))[0], "EBUSY", "error of a restore")
        equal(lib.outcome_of(lib.read, lib.VERIFY), "EBUSY", "error of reading verify")
        lib.read(lib.STATUS)
    finally:
        os.close(fd)
    lib.trim(text, log.total - 1)


@test("it is refused at once, as a writer is not waited for")
def _():
    _, text = last()
    fd = os.open(lib.BINARY, os.O_WRONLY)
    began = time.monotonic()
    try:
        equal(lib.request(text).error, "EBUSY", "error")
    finally:
        os.close(fd)
    took = time.monotonic() - began
    check(took < 0.5, f"it took {took:.3f} s")


@test("after all that nobody is left counted, and the guard is taken again")
def _():
    os.close(os.open(lib.ASCII, os.O_RDWR))
    lib.reload()
    equal(lib.outcome_of(os.open, lib.ASCII, os.O_RDWR), "EBUSY", "opening for writing")
    lib.invariant()


lib.main()
