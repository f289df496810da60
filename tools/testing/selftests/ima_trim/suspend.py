#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""The machine is suspended while the module is at work: nothing has the TPM do anything that it is not awake for.

A TPM that is suspended refuses an extend, and IMA goes on with the record in the list: no quote replays until the next boot.
The kernel goes down as far as it is told to and comes back by itself (/sys/power/pm_test, with CONFIG_PM_DEBUG).
"""

import os
import signal
import time

import ima_trim_lib as lib
from ima_trim_lib import cases, check, equal, test

lib.POLICY += lib.EVIDENCE_RULE + "measure func=CRITICAL_DATA label=ima_trim_test\n"

MANY = 2000
# How long the TPM takes for a command, in ms, and how long a call has been under way when the machine is suspended.
SLOW = 200
LATER = 0.04

POWER = "/sys/power"
DELAY = "/sys/module/suspend/parameters/pm_test_delay"


# How far down the kernel is told to go: its tasks alone, or its devices as well, the TPM among them. All the way down a guest
# of QEMU does not come back by an alarm of its clock.
LEVELS = [("its tasks", "freezer"), ("its tasks and devices", "devices")]


def suspend(level):
    """Suspends the machine, and comes back when it has woken up."""
    lib.write(f"{POWER}/pm_test", level)
    lib.write(f"{POWER}/state", "freeze")


def events():
    """The trims that were measured, in all records since boot."""
    return len(lib.events(lib.history().records, "trim"))


def fill():
    """Appends records if there are few, and gives a request that trims most of them."""
    if lib.count() < MANY:
        lib.ask_test_module("append", MANY)
    log = lib.history()
    return log, log.total - 5, log.tokens(log.total - 5)


def during(level, function, kill=False):
    """Calls a function in a process, suspends the machine meanwhile, having killed the process if it is asked for, and gives
    what it returned."""
    ready, say = os.pipe()

    def body():
        os.write(say, b"x")
        try:
            return function()
        except OSError as error:
            return lib.error_name(error.errno)

    lib.ask_test_module("slow", SLOW)
    child = lib.Child(body)
    os.read(ready, 1)
    time.sleep(LATER)
    if kill:
        os.kill(child.pid, signal.SIGKILL)
    with lib.KernelLog() as kernel:
        suspend(level)
        kernel.expect("PM: suspend exit")
    value = child.reap() if kill else child.result()
    lib.ask_test_module("slow", 0)
    os.close(ready)
    os.close(say)
    return value


def fine():
    """Nothing was lost."""
    lib.eventually(lib.invariant)
    equal(lib.status()["evidence_failed"], "0", "evidence_failed")


@test("the machine can be suspended")
def _():
    for name in ("state", "pm_test"):
        lib.ksft.print_msg(f"{name}: {lib.read(f'{POWER}/{name}').decode().strip()}")
    lib.write(DELAY, "1")
    lib.ask_test_module("signals", "Y")
    for _, level in LEVELS:
        suspend(level)
    fill()
    fine()


@cases("a trim is done, before or after: suspended are", LEVELS)
def _(level):
    _, end, text = fill()
    before = events()
    equal(during(level, lambda: lib.write(lib.TRIM, text)), len(text), "what the write returned")
    fine()
    equal((lib.history().trimmed, events() - before), (end, 1), "records trimmed, and trims measured")


@cases("verify is read: suspended are", LEVELS)
def _(level):
    fill()
    said = during(level, lambda: lib.read(lib.VERIFY).decode())
    check("ok" in said and "mismatch" not in said, f"verify: {said}")
    fine()


@cases("a trim whose process was killed right before: suspended are", LEVELS)
def _(level):
    log, end, text = fill()
    begin, before = log.trimmed, events()
    during(level, lambda: lib.write(lib.TRIM, text), kill=True)
    fine()
    trimmed = lib.history().trimmed
    check(trimmed in (begin, end), f"{trimmed} records trimmed, not {begin} or {end}")
    check((trimmed == end) <= events() - before <= 1, f"{events() - before} trims measured")


@test("what processes that were killed have left to be measured waits until the TPM is awake again")
def _():
    lib.clear()
    lib.measure(10)
    log = lib.history()
    begin, before = log.trimmed, events()
    pause = 1.2 if lib.DEBUG else 0.6
    # The announcement is still to be measured when the machine is suspended: before it a PCR is read, which takes as long.
    lib.ask_test_module("slow", int(4 * pause * 1000))
    text = log.tokens(log.total - 5)
    for call in (lambda: lib.read(lib.VERIFY), lambda: lib.write(lib.TRIM, text)):
        child = lib.Child(call)
        time.sleep(pause)
        child.kill()
    suspend("devices")
    lib.ask_test_module("slow", 0)
    fine()
    equal((lib.history().trimmed, events() - before), (begin, 1), "records trimmed, and trims measured")


@test("evmctl: the records trimmed and those left match the TPM")
def _():
    lib.unload("ima_trim_test")
    equal(lib.evmctl(lib.history().records), 0, "exit status")


lib.main()
