#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Long replays: they can be killed, and then nothing was changed. Very many violations."""

import ctypes
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

libc = ctypes.CDLL(None, use_errno=True)


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


def death(child):
    """Kills a process. Gives its status, and how long it took to be gone, in seconds."""
    began = time.monotonic()
    os.kill(child.pid, signal.SIGKILL)
    state = child.reap()
    return state, time.monotonic() - began


@test("a fatal signal during the replay: EINTR, within 100 ms, and nothing changed")
def _():
    began = time.monotonic()
    equal(lib.request(NOWHERE).error, "ENOENT", "error")
    whole = time.monotonic() - began
    before = lib.snapshot()
    deaths = []
    idle = []
    for attempt in range(80):
        child = lib.Child(lambda: lib.write(lib.TRIM, NOWHERE))
        # Somewhere in the replay, a little later each time.
        time.sleep(whole * (0.2 + (attempt % 8) / 10))
        state, took = death(child)
        # The file has the reply of the last request: of this one, if it had begun and had not ended.
        if os.WIFSIGNALED(state) and b"errno=EINTR" in lib.read(lib.TRIM):
            deaths.append(took)
            # What the end of such a process takes anyway, at the same time.
            child = lib.Child(signal.pause)
            time.sleep(0.05)
            idle.append(death(child)[1])
            if len(deaths) == 7:
                break
            equal(lib.request(NOWHERE).error, "ENOENT", "error")
    lib.ksft.print_msg(f"a replay of {whole:.3f} s; until a killed one had ended: {[round(took, 3) for took in deaths]} s; "
                       f"until an idle process had: {[round(took, 3) for took in idle]} s")
    equal(len(deaths), 7, "signals that hit a replay in 80 attempts")
    lib.unchanged(before, "an interrupted replay")
    # What a busy host takes from a guest falls on some of them. A replay that is not long tells less.
    limit = min(0.1, whole / 3) + statistics.median(idle)
    check(statistics.median(deaths) < limit, f"half of the replays took longer than {limit:.3f} s to end: {deaths}")


@test("a fatal signal during the replay of a request that would trim")
def _():
    history = lib.history()
    text = history.tokens(history.total) + f" violations={len(history.violations(history.trimmed, history.total))}"
    before = lib.snapshot()
    began = time.monotonic()
    equal(lib.request(text + " dry-run").error, None, "error of a dry run")
    whole = time.monotonic() - began
    for attempt in range(20):
        child = lib.Child(lambda: lib.write(lib.TRIM, text))
        # It may not have begun yet. If it has ended there is nothing left to try it with.
        time.sleep(whole * 0.1 * (1 + attempt % 3))
        os.kill(child.pid, signal.SIGKILL)
        child.reap()
        # The reply is that of this request if it had begun. It has not ended, or what follows had nothing to do.
        if b"errno=EINTR" in lib.read(lib.TRIM):
            break
        equal(lib.look()[0].records, history.trimmed, "records trimmed by a request that was not killed in time")
    else:
        check(False, "no signal hit the replay")
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


def write_once(fd, text):
    """The error of one write(2). What Python has for it writes again after EINTR."""
    data = text.encode()
    written = libc.write(fd, data, len(data))
    return lib.error_name(ctypes.get_errno()) if written < 0 else None


class Others:
    """Two processes that make requests all the time, so that any other has to wait."""

    def __enter__(self):
        asked, self.ask = os.pipe()

        def have_turn():
            while not lib.select.select([asked], [], [], 0)[0]:
                lib.request(NOWHERE)

        self.children = [lib.Child(have_turn) for _ in range(2)]

    def __exit__(self, *_):
        os.write(self.ask, b"xx")
        for child in self.children:
            child.result()


def interrupted(text):
    """Makes a request while others have the turn, with signals that are handled, until three ended early.

    Gives the errors, each with what was read on the descriptor; and those of one that nothing interrupts.
    """
    signal.signal(signal.SIGALRM, lambda *_: None)
    found = []
    fd = os.open(lib.TRIM, os.O_RDWR)
    deadline = time.monotonic() + 40
    while [error for error, _ in found].count("EINTR") < 3 and time.monotonic() < deadline:
        signal.setitimer(signal.ITIMER_REAL, 0.01, 0.005)
        error = write_once(fd, text)
        signal.setitimer(signal.ITIMER_REAL, 0)
        found.append((error, os.pread(fd, 4096, 0).decode()))
    last = write_once(fd, text)
    return found, (last, os.pread(fd, 4096, 0).decode())


@test("EINTR for a request that waits for another's end, by a signal that is handled; it changes nothing and says so")
def _():
    before = lib.snapshot()
    with Others():
        found, last = lib.in_child(interrupted, NOWHERE)
    errors = [error for error, _ in found]
    check(errors.count("EINTR") == 3, f"requests were not interrupted as often as they should: {errors}")
    # Some have their turn before the signal.
    for error, reply in [*found, last]:
        check(error in ("EINTR", "ENOENT"), f"error {error}")
        fields = lib.pairs(reply.encode())
        equal((fields["result"], fields["errno"], fields["records"]), ("refused", error, "0"), f"reply {reply!r}")
    equal(last[0], "ENOENT", "error of the same without signals")
    lib.unchanged(before, "a request that was interrupted")


def restarted(text):
    """The errors of requests while others have the turn, with a signal each whose handler has system calls made again."""
    heard = []
    signal.signal(signal.SIGALRM, lambda *_: heard.append(1))
    signal.siginterrupt(signal.SIGALRM, False)
    found = []
    fd = os.open(lib.TRIM, os.O_RDWR)
    for _ in range(6):
        signal.setitimer(signal.ITIMER_REAL, 0.01)
        found.append(write_once(fd, text))
        signal.setitimer(signal.ITIMER_REAL, 0)
    return found, len(heard)


@test("the same with a handler that has system calls made again: the request is carried out, as after a stop or a freeze")
def _():
    with Others():
        found, heard = lib.in_child(restarted, NOWHERE)
    equal(found, ["ENOENT"] * 6, "errors")
    check(heard >= 4, f"{heard} signals")


@test("a request that is stopped while it waits goes on when it is continued")
def _():
    with Others():
        for _ in range(3):
            child = lib.Child(lambda: write_once(os.open(lib.TRIM, os.O_WRONLY), NOWHERE))
            for _ in range(3):
                time.sleep(0.01)
                os.kill(child.pid, signal.SIGSTOP)
                time.sleep(0.005)
                os.kill(child.pid, signal.SIGCONT)
            equal(child.result(), "ENOENT", "error")


@test("the next request waits for nobody and trims")
def _():
    history = lib.history()
    check(history.trimmed < history.total, "there is nothing to be trimmed")
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
