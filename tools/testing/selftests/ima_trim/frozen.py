#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Whoever calls the module may be frozen, traced, stopped or killed meanwhile: what it has the TPM do is done all the same.

All of these leave a signal pending that blocking signals does not keep away. The tests' module makes a driver of the TPM
that gives a command up then, as those do that wait for interrupts: a record that is in the list but not in the TPM, and no
quote replays until the next boot.

The load is tried before the first trim, as there is nothing to replay at a load after one.
"""

import ctypes
import os
import re
import signal
import statistics
import threading
import time

import ima_trim_lib as lib
from ima_trim_lib import cases, check, equal, test

lib.POLICY += lib.EVIDENCE_RULE + "measure func=CRITICAL_DATA label=ima_trim_test\n"

# So many that their replay takes some time.
MANY = 2500
# How long a call has been under way at most when something happens to its process, and for how long that lasts, in seconds.
LATER = 0.04
HOLD = 1
# How long a slow TPM takes for a command, in ms.
SLOW = 150

CGROUP = "/sys/fs/cgroup/ima_trim"
PTRACE_DETACH, PTRACE_SEIZE, PTRACE_INTERRUPT = 17, 0x4206, 0x4207
WALL = 0x40000000
EXITED = 77

libc = ctypes.CDLL(None, use_errno=True)


def ptrace(what, pid):
    """A request of ptrace(2) that has no other arguments."""
    libc.ptrace.argtypes = [ctypes.c_long] * 4
    if libc.ptrace(what, pid, 0, 0):
        number = ctypes.get_errno()
        raise OSError(number, f"ptrace: {os.strerror(number)}")


# What happens to a process ------------------------------------------------------------------------------------------

class Times:
    """How long a replay takes, when nothing happens."""

    whole = None

    @classmethod
    def later(cls):
        """When something happens: before the replay has ended."""
        return min(LATER, cls.whole / 3)


class Nothing:
    """What happens to the process of a call: before it, while it is under way, and at the end."""

    def __init__(self, pid):
        self.pid = pid

    # In the process itself.
    prepare = None

    def begin(self):
        """Happens while the call is under way."""

    def end(self):
        """Is what lets it go on."""


class Frozen(Nothing):
    """Its cgroup is frozen."""

    def __init__(self, pid):
        super().__init__(pid)
        os.makedirs(CGROUP, exist_ok=True)
        lib.write(f"{CGROUP}/cgroup.procs", str(pid))

    def begin(self):
        lib.write(f"{CGROUP}/cgroup.freeze", "1")

    def end(self):
        lib.write(f"{CGROUP}/cgroup.freeze", "0")


class Traced(Nothing):
    """Somebody attaches to it, and has it stop."""

    def begin(self):
        ptrace(PTRACE_SEIZE, self.pid)
        ptrace(PTRACE_INTERRUPT, self.pid)

    def end(self):
        _, status = os.waitpid(self.pid, WALL)
        check(os.WIFSTOPPED(status), "a traced process ended that should have stopped")
        ptrace(PTRACE_DETACH, self.pid)


class Stopped(Nothing):
    """It is stopped, and has a second thread, which is told first."""

    @staticmethod
    def prepare():
        threading.Thread(target=signal.pause, daemon=True).start()

    def begin(self):
        os.kill(self.pid, signal.SIGSTOP)

    def end(self):
        os.kill(self.pid, signal.SIGCONT)


class Left(Nothing):
    """Another thread of it ends the process."""

    @staticmethod
    def prepare():
        def leave():
            time.sleep(Times.later())
            os._exit(EXITED)
        threading.Thread(target=leave, daemon=True).start()


class Killed(Nothing):
    """It is killed."""

    took = None

    def begin(self):
        began = time.monotonic()
        os.kill(self.pid, signal.SIGKILL)
        os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        self.took = time.monotonic() - began


HELD = [("its cgroup is frozen and thawed", Frozen), ("it is traced and let go", Traced),
        ("it is stopped and continued, and has a second thread", Stopped)]


def call(function, kind, later=None):
    """Calls a function in a process that something happens to. Gives what it returned, or None where its process ended, and
    what happened."""
    def body():
        os.read(wait, 1)
        if kind.prepare:
            kind.prepare()
        os.write(say, b"x")
        began = time.monotonic()
        try:
            value = function()
        except OSError as error:
            value = lib.error_name(error.errno)
        return value, time.monotonic() - began

    wait, tell = os.pipe()
    ready, say = os.pipe()
    child = lib.Child(body)
    happens = kind(child.pid)
    os.write(tell, b"x")
    os.read(ready, 1)
    time.sleep(Times.later() if later is None else later)
    happens.begin()
    if kind in (Left, Killed):
        # It may have returned before: then there is nothing to be seen here.
        value = None
        status = child.reap()
        check(status in (signal.SIGKILL, EXITED << 8, 0), f"status {status:#x}")
    else:
        time.sleep(HOLD)
        happens.end()
        value, took = child.result()
        check(took > HOLD * 0.9, f"it did not happen during the call, which took {took:.3f} s")
    for fd in (wait, tell, ready, say):
        os.close(fd)
    return value, happens


# What is called -----------------------------------------------------------------------------------------------------

def failed():
    """The number of failures to leave evidence."""
    return int(lib.status()["evidence_failed"])


def told(name):
    """The events of a kind in all records since boot."""
    return lib.events(lib.history().records, name)


class Verify:
    """verify is read."""

    def __init__(self):
        self.before = lib.snapshot()

    def call(self):
        """Is made in a process of its own."""
        return lib.read(lib.VERIFY).decode()

    def done(self, value):
        """The call came to its end."""
        check("ok" in value and "mismatch" not in value, f"verify: {value}")
        # base= is of the last verify.
        lib.unchanged(self.before, "verify")

    def gone(self):
        """The process of the call ended."""
        lib.unchanged(self.before, "verify")


class Load:
    """The module is loaded."""

    def __init__(self):
        self.events = len(told("load"))
        lib.unload()

    def call(self):
        lib.load()

    def done(self, value):
        equal(value, None, "error of loading")
        equal(lib.status()["base"], "verified", "base")
        equal(len(told("load")) - self.events, 1, "load events measured")

    def gone(self):
        # The kernel is done with the module some time after the process is.
        def load():
            error = lib.outcome_of(lib.load)
            check(error in (None, "EEXIST"), f"error of loading: {error}")
        lib.eventually(load)
        # Killed when it had been measured, it was for nothing.
        check(len(told("load")) - self.events in (1, 2), "load events measured")


class Restore:
    """Starting values are given back."""

    def __init__(self):
        if not lib.history().trimmed:
            plain_trim()
        self.events = len(told("restore"))
        self.text = lib.read(lib.STARTING_PCRS)
        lib.unload()
        lib.load()

    def call(self):
        lib.write(lib.STARTING_PCRS, self.text)

    def done(self, value):
        if value:
            # The tests after this one can do without this failure.
            lib.restore(self.text)
        equal(value, None, "error of the restore")
        equal((lib.read(lib.STARTING_PCRS), lib.status()["base"]), (self.text, "verified"), "starting_pcrs and base")
        equal(len(told("restore")) - self.events, 1, "restore events measured")

    def gone(self):
        said = lib.read(lib.STARTING_PCRS)
        if said != self.text:
            check(said.startswith(b"unknown"), f"starting_pcrs {said!r}")
            equal(lib.restore(self.text)[0], None, "error of restoring again")
        # Announced, it may not have come to it.
        check(len(told("restore")) - self.events in (1, 2), "restore events measured")


class Trim:
    """Records are trimmed."""

    def __init__(self):
        log = fill()
        self.events = len(told("trim"))
        self.begin, self.end = log.trimmed, log.total - 5
        self.text = log.tokens(self.end)
        self.trims = int(lib.status()["trims"])

    def call(self):
        lib.write(lib.TRIM, self.text)

    def done(self, value):
        equal(value, None, "error of the trim")
        lib.invariant()
        log = lib.history()
        equal((log.trimmed, int(lib.status()["trims"])), (self.end, self.trims + 1), "records trimmed and trims")
        said = told("trim")[self.events:]
        equal(len(said), 1, "trim events measured")
        equal(said[0][1].split("\n", 1)[1].encode(), lib.read(lib.STARTING_PCRS), "starting values in the event")

    def gone(self):
        log = lib.history()
        trims = int(lib.status()["trims"]) - self.trims
        check((log.trimmed, trims) in ((self.begin, 0), (self.end, 1)),
              f"{log.trimmed} records trimmed by {trims} trims, asked for were {self.begin} to {self.end}")
        events = len(told("trim")) - self.events
        check(trims <= events <= 1, f"{events} trim events measured")
        # The same again, if it came to nothing, is announced only once.
        if not trims and lib.request(self.text).error is None:
            equal(len(told("trim")) - self.events, 1 if lib.has_htable() else events + 1, "trim events measured")


def fill():
    """Appends records if there are few."""
    if lib.count() < MANY:
        lib.ask_test_module("append", MANY)
    return lib.history()


def plain_trim():
    """Trims a little."""
    log = fill()
    lib.trim(log.tokens(log.trimmed + 10) + " violations=0")


def disturb(action, kind, slow, later=None):
    """Makes a call while something happens to its process, and checks what came of it. Gives what happened."""
    fill()
    made = action()
    lib.ask_test_module("slow", slow)
    try:
        value, happens = call(made.call, kind, later)
    finally:
        lib.ask_test_module("slow", 0)
    if kind in (Left, Killed):
        # What it began may still be under way.
        lib.eventually(made.gone)
        lib.eventually(lib.invariant)
    else:
        made.done(value)
        lib.invariant()
    equal(failed(), 0, "evidence_failed")
    return happens


@test("with such a driver, and records that take long to replay")
def _():
    lib.ask_test_module("signals", "Y")
    fill()
    lib.invariant()
    began = time.monotonic()
    lib.read(lib.VERIFY)
    Times.whole = time.monotonic() - began
    lib.ksft.print_msg(f"a replay of {lib.count()} records: {Times.whole:.3f} s")


for action in (Verify, Load, Restore, Trim):
    what = re.sub(r"\.$", "", action.__doc__)
    for speed, slow in (("", 0), (", by a slow TPM", SLOW)):
        cases(f"{what}{speed}, while", [(name, action, kind, slow) for name, kind in
                                        [*HELD, ("another thread of it ends the process", Left)]])(disturb)


@cases("SIGKILL is answered at once, while the TPM takes its time", [(re.sub(r"\.$", "", action.__doc__), action) for action in (Verify, Restore, Trim)])
def _(action):
    lib.ask_test_module("signals", "N")
    idle = [call(signal.pause, Killed)[1].took for _ in range(3)]
    # After the replay, when the TPM is at work.
    took = [disturb(action, Killed, slow, Times.whole * 1.5 + 0.1).took for slow in (500, 1000, 1500)]
    lib.ksft.print_msg(f"until it had ended: {[round(each, 3) for each in took]} s; "
                       f"until an idle process had: {[round(each, 3) for each in idle]} s")
    limit = 0.1 + statistics.median(idle) + (0.2 if lib.DEBUG else 0)
    check(statistics.median(took) < limit, f"half of them took longer than {limit:.3f} s")


@test("SIGKILL, while the module is loaded: it is loaded or not")
def _():
    # Only where nothing was trimmed is there anything to do.
    text = lib.read(lib.STARTING_PCRS)
    for later in (0, 0.01, 0.05, 0.2):
        lib.unload()
        lib.ask_test_module("slow", 50)
        call(lib.load, Killed, later)
        lib.ask_test_module("slow", 0)

        def load():
            error = lib.outcome_of(lib.load)
            check(error in (None, "EEXIST"), f"error of loading: {error}")
        lib.eventually(load)
        if lib.Starting(lib.read(lib.STARTING_PCRS)).unknown:
            equal(lib.restore(text)[0], None, "error of the restore")
        lib.eventually(lib.invariant)


@test("evmctl: the records trimmed and those left match the TPM")
def _():
    lib.unload("ima_trim_test")
    equal(lib.evmctl(lib.history().records), 0, "exit status")


lib.main()
