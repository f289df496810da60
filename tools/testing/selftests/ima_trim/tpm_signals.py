#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""A driver of the TPM that waits interruptibly: a command that is given with a signal pending fails.

The tests' module makes one of the driver that there is.
"""

import signal
import time

import ima_trim_lib as lib
from ima_trim_lib import check, equal, test

lib.POLICY += lib.EVIDENCE_RULE

# As many records as take longer to replay than it takes a signal to arrive.
MANY = 300


def disturbed(function):
    """What a call gives while signals arrive all the time, and how many have arrived."""
    heard = []
    signal.signal(signal.SIGALRM, lambda *_: heard.append(1))
    signal.siginterrupt(signal.SIGALRM, False)
    signal.setitimer(signal.ITIMER_REAL, 0.002, 0.002)
    try:
        return function(), len(heard)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def with_signals(function):
    """The same in a process of its own; there have to be some."""
    found, heard = lib.in_child(disturbed, function)
    check(heard, "no signal arrived")
    return found


def first_error():
    """The error that the kernel's own file of a PCR's value ends in, read again and again for some seconds."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if error := lib.outcome_of(lib.tpm_value, "sha256", lib.MEASURE_PCR):
            return error
    return None


@test("with such a driver a command fails if a signal happens to be pending")
def _():
    lib.measure(MANY)
    lib.ask_test_module("signals", "Y")
    lib.invariant()
    equal(with_signals(first_error), "ETIME", "error")


@test("verify reads the TPM with a signal pending")
def _():
    found = with_signals(lambda: lib.read(lib.VERIFY).decode())
    check("ok" in found and "mismatch" not in found, f"verify: {found}")


@test("a request measures its trim with a signal pending, and the TPM is extended")
def _():
    # The load is measured at the first request, if the rule came after it.
    log = lib.history()
    lib.request(log.tokens(log.total) + f" violations={len(log.violations(log.trimmed, log.total))} dry-run")
    measured = int(lib.status()["measured"])
    log = lib.history()
    equal(with_signals(lambda: lib.request(log.tokens(log.total - 5)).result), "trimmed", "result")
    status = lib.status()
    found = int(status["measured"]), status["evidence_failed"], lib.count()
    equal(found, (measured + 1, "0", 6), "measured=, evidence_failed=, and records")
    log.sync()
    lib.invariant()


@test("with the driver as it was")
def _():
    lib.unload("ima_trim_test")
    lib.invariant()


lib.main()
