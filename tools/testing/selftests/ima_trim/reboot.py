#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""ESTALE once IMA has suspended measuring, which it does when the machine reboots. Ends the machine.

The kernel tells IMA of the reboot, then the tests' module, which holds it up, and only then shuts the devices down.
"""

import atexit
import os
import time

import ima_trim_lib as lib
from ima_trim_lib import check, equal, test

# Records enough for a replay that can be held up on its way.
MANY = 2000
HOLD = "/sys/module/ima_trim_test/parameters/reboot"
# For how many seconds the reboot is held up at most, and when the tests have ended: their results leave the guest then.
LONG, REST = 90, 10
SUSPENDED = "refused: IMA has suspended measuring"
# Values that no record has.
NOWHERE = "sha256:10=" + "5a" * 32
# The requests, with the error of each before IMA suspends measuring, and after.
requests = []
# What could be seen when IMA had just suspended measuring.
suspended = {}
# The request that is under way meanwhile, and what keeps it so.
processes = {}


def wait_for(condition, what, seconds=60):
    """Waits until something is the case."""
    deadline = time.monotonic() + seconds
    while not condition():
        check(time.monotonic() < deadline, f"waited {seconds} s for {what}")
        time.sleep(0.002)


def run_time(pid):
    """For how long a process has had a processor, in nanoseconds."""
    return int(lib.read(f"/proc/{pid}/schedstat").split()[0])


def measures():
    """Whether IMA appends what it should measure."""
    before = lib.count()
    lib.measure()
    return lib.count() > before


def compare_requests(column):
    """Checks the error of all requests, and what the reply says of it."""
    for row in requests:
        text, error = row[0], row[column]
        with lib.KernelLog() as log:
            outcome = lib.request(text)
            logged = log.text()
        equal(outcome.error, error, f"error of {text[:200]!r} (reply {outcome.text!r})")
        equal(outcome.fields.get("errno"), error, "errno in the reply")
        equal(outcome.result == "refused", bool(error), "whether it is refused")
        equal(SUSPENDED in logged, error == "ESTALE", f"whether the log has {SUSPENDED!r}")


@test("before the reboot a request trims, and IMA appends")
def _():
    lib.measure(4)
    history = lib.history()
    lib.trim(history.tokens(history.total - 2), history.total - 2)
    check(measures(), "IMA appends nothing")


@test("before the reboot the other requests have the errors that they should have")
def _():
    # No violations: to list them the module would look at the list once more, before the cut.
    lib.measure(MANY)
    history = lib.history()
    equal(history.total - history.trimmed, MANY + 3, "records in the list")
    last = history.tokens(history.total)
    requests.extend([
        (f"{last} dry-run", None, "ESTALE"),
        (f"{last} violations=1", "EBADMSG", "ESTALE"),
        # What would be nothing, as it is the starting values.
        (history.tokens(history.trimmed), None, "ESTALE"),
        (NOWHERE, "ENOENT", "ESTALE"),
        # What cannot be read is refused before the list is looked at.
        ("junk", "EINVAL", "EINVAL"),
    ])
    before = lib.snapshot()
    compare_requests(1)
    lib.unchanged(before, "requests that do not trim")
    lib.invariant()


@test("a request is under way, and is held up, when the reboot begins")
def _():
    history = lib.history()
    # The request and what it has to share its processor with are on the one, all else on the other.
    os.sched_setaffinity(0, {1})
    ready, begun = os.pipe()
    text = history.tokens(history.total)
    # What the replay takes, on this machine.
    took = run_time(os.getpid())
    equal(lib.request(f"{text} dry-run").error, None, "error of a dry run")
    took = run_time(os.getpid()) - took

    def trimmer():
        os.sched_setaffinity(0, {0})
        os.nice(10)
        os.write(begun, b"x")
        outcome = lib.request(text)
        return outcome.error, outcome.text.decode()

    def spinner():
        os.sched_setaffinity(0, {0})
        while True:
            pass

    processes["spinner"] = lib.Child(spinner)
    processes["trimmer"] = lib.Child(trimmer)
    os.read(ready, 1)
    pid = processes["trimmer"].pid
    since = run_time(pid)
    wait_for(lambda: run_time(pid) > since + took // 3, "the replay")
    os.sched_setscheduler(pid, os.SCHED_IDLE, os.sched_param(0))
    # The module is counted as a reader while it replays.
    equal(lib.outcome_of(os.open, lib.ASCII, os.O_WRONLY), "EBUSY", "error of opening the list for writing")

    lib.load(lib.TEST_MODULE)
    lib.write(HOLD, str(LONG))
    atexit.register(lib.write, HOLD, str(REST))
    lib.Child(lib.reboot)
    wait_for(lambda: not measures(), "IMA to suspend measuring")
    equal(lib.outcome_of(os.open, lib.ASCII, os.O_WRONLY), "EBUSY", "error of opening the list for writing")
    suspended.update(lib.snapshot())
    equal(lib.Starting(suspended[lib.STARTING_PCRS]).records, history.trimmed, "records trimmed")


@test("that request is refused at the cut: ESTALE, and nothing changed")
def _():
    with lib.KernelLog() as log:
        processes["spinner"].kill()
        error, text = processes["trimmer"].result()
        log.expect(SUSPENDED)
    fields = lib.pairs(text.encode())
    equal((error, fields.get("result"), fields.get("errno")), ("ESTALE", "refused", "ESTALE"), f"outcome ({text!r})")
    lib.unchanged(suspended, "a refused request")


@test("so are all requests that can be read, the log says why, and nothing changed")
def _():
    compare_requests(2)
    lib.unchanged(suspended, "refused requests")


@test("the kernel's own trim is refused in the same way")
def _():
    equal(lib.outcome_of(lib.write, lib.ASCII, "1\n"), "ESTALE", "error")
    lib.unchanged(suspended, "the kernel's own trim")


@test("the module can be unloaded, and not be loaded again")
def _():
    lib.unload()
    with lib.KernelLog() as log:
        equal(lib.outcome_of(lib.load), "ESTALE", "error of loading")
        log.expect("ima_trim: not loaded: IMA has suspended measuring")
    check(not lib.loaded() and not os.path.exists(lib.DIRECTORY), "something is left")


lib.main(parameters="guard=0")
