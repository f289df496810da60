#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Long replays: they can be killed, and then nothing was changed. Very many violations."""

import os
import signal
import statistics
import time

import ima_trim_lib as lib
from ima_trim_lib import check, equal, test

# As many lines as the file `violations` keeps, and some more.
KEPT = 4096
MANY = KEPT + 20
# Values that no record has, so that all of the list is replayed.
NOWHERE = "sha256:10=" + "5a" * 32


@test("a long list of violations is appended")
def _():
    # One file is enough: each time that it is opened for writing while it is open for reading is a violation.
    path = lib.new_file()
    lib.measure_file(path)
    before = lib.count()
    for _ in range(MANY):
        reader = os.open(path, os.O_RDONLY)
        os.close(os.open(path, os.O_WRONLY))
        os.close(reader)
    equal(lib.count(), before + MANY, "records")


@test("a fatal signal during the replay: EINTR, within 100 ms, and nothing changed")
def _():
    began = time.monotonic()
    equal(lib.request(NOWHERE).error, "ENOENT", "error")
    whole = time.monotonic() - began
    before = lib.snapshot()
    deaths = []
    for attempt in range(80):
        child = lib.Child(lambda: lib.write(lib.TRIM, NOWHERE))
        # Somewhere in the replay, a little later each time.
        time.sleep(whole * (0.2 + (attempt % 8) / 10))
        os.kill(child.pid, signal.SIGKILL)
        began = time.monotonic()
        state = child.reap()
        took = time.monotonic() - began
        # The file has the reply of the last request: of this one, if it had begun and had not ended.
        if os.WIFSIGNALED(state) and b"errno=EINTR" in lib.read(lib.TRIM):
            deaths.append(took)
            if len(deaths) == 7:
                break
            equal(lib.request(NOWHERE).error, "ENOENT", "error")
    lib.ksft.print_msg(f"a replay of {whole:.3f} s; until a killed one had ended: {[round(took, 3) for took in deaths]} s")
    equal(len(deaths), 7, "signals that hit a replay in 80 attempts")
    lib.unchanged(before, "an interrupted replay")
    # What a busy host takes from a guest falls on some of them. A replay that is not long tells less.
    limit = min(0.1, whole / 3)
    check(statistics.median(deaths) < limit, f"half of the replays took longer than {limit:.3f} s to end: {deaths}")


@test("a fatal signal during the replay of a request that would trim")
def _():
    history = lib.history()
    text = history.tokens(history.total) + f" violations={len(history.violations(history.trimmed, history.total))}"
    before = lib.snapshot()
    began = time.monotonic()
    equal(lib.request(text + " dry-run").error, None, "error of a dry run")
    whole = time.monotonic() - began
    child = lib.Child(lambda: lib.write(lib.TRIM, text))
    time.sleep(whole * 0.3)
    os.kill(child.pid, signal.SIGKILL)
    child.reap()
    # It was killed in time or it was not; nothing lies between.
    if lib.look()[0].records == history.trimmed:
        lib.unchanged(before, "an interrupted trim")
    lib.invariant()


def with_alarms(text):
    """The error of a request in a process that handles a signal every few milliseconds."""
    signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, 0.005, 0.005)
    outcome = lib.request(text)
    signal.setitimer(signal.ITIMER_REAL, 0)
    return outcome.error


@test("signals that are not fatal do not interrupt a replay")
def _():
    equal(lib.in_child(with_alarms, NOWHERE), "ENOENT", "error")


@test("signals that are not fatal do not interrupt a request that waits for another's end")
def _():
    children = [lib.Child(with_alarms, NOWHERE) for _ in range(3)]
    equal([child.result() for child in children], ["ENOENT"] * 3, "errors")


@test("the next request waits for nobody and trims")
def _():
    history = lib.history()
    if history.trimmed < history.total:
        violations = len(history.violations(history.trimmed, history.total))
        lib.trim(history.tokens(history.total) + f" violations={violations}", history.total)


@test("the file violations keeps the last 4096 and counts the others")
def _():
    history = lib.history()
    numbers = history.violations(0, history.trimmed)
    lines = lib.read(lib.VIOLATIONS).decode().splitlines()
    equal(lines[-1], f"dropped={len(numbers) - KEPT}", "last line")
    equal([int(line.split()[0]) for line in lines[:-1]], numbers[-KEPT:], "numbers")


@test("evmctl: the records trimmed and those left match the TPM")
def _():
    lib.measure()
    equal(lib.evmctl(lib.history().records), 0, "exit status")


lib.main()
