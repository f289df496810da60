#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""The kernel's account of who has the lists open can be broken by root; a broken one is recognised.

ima_measure_unlock() compares the task that closes with the one that opened: a descriptor for writing that another
task closes leaves ima_measure_users at 0 while the first task can still write. It cannot be mended before the next
boot, so this has to be the last test of one.
"""

import os

import ima_trim_lib as lib
from ima_trim_lib import equal, test


@test("while a process has it open for writing: EBUSY, open for writing; afterwards that is not the reason")
def _():
    lib.unload()
    lib.load(parameters="guard=0")
    with lib.held_open(lib.BINARY, os.O_RDWR), lib.KernelLog() as log:
        equal(lib.request("sha256:10=" + "5a" * 32).error, "EBUSY", "error")
        log.expect("open for writing")
    equal(lib.request("sha256:10=" + "5a" * 32).error, "EUCLEAN", "error afterwards")


@test("with a writer that the kernel does not count: EBUSY, and the log says that the account contradicts itself")
def _():
    before = [lib.read(path) for path in (lib.BINARY, lib.STARTING_PCRS, lib.STATUS)]
    first = os.open(lib.BINARY, os.O_RDWR)
    second = os.open(lib.BINARY, os.O_RDWR)
    go, tell = os.pipe()

    def close_it():
        # Waits until this process has the last reference, and drops it.
        os.read(go, 1)
        os.close(first)

    child = lib.Child(close_it)
    os.close(first)
    os.write(tell, b"x")
    child.result()
    with lib.KernelLog() as log:
        outcome = lib.request("sha256:10=" + "5a" * 32)
        log.expect("contradicts itself")
    equal((outcome.error, outcome.result), ("EBUSY", "refused"), "outcome")
    equal([lib.read(path) for path in (lib.BINARY, lib.STARTING_PCRS, lib.STATUS)], before, "state")
    os.close(second)
    equal(lib.request("sha256:10=" + "5a" * 32).error, "EBUSY", "error after the writer is gone")


@test("the module can be unloaded then, and is not loaded again")
def _():
    lib.unload()
    with lib.KernelLog() as log:
        equal(lib.outcome_of(lib.load), "EBUSY", "error")
        log.expect("ima_trim: .*contradicts itself|ima_trim: .*open for")


lib.main()
