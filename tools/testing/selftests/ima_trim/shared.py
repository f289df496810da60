#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Several processes with one descriptor: each call waits for the one before it, and waiting for it can be interrupted."""

import ctypes
import os
import signal
import statistics
import time

import ima_trim_lib as lib
from ima_trim_lib import cases, check, equal, test

# How long a slow TPM takes for a command, in ms; a call takes several.
SLOW = 400
NOWHERE = "sha256:10=" + "5a" * 32

libc = ctypes.CDLL(None, use_errno=True)


def pread(fd):
    """The error of one pread(2). What Python has for it reads again after EINTR."""
    buffer = ctypes.create_string_buffer(4096)
    found = libc.pread(fd, buffer, ctypes.c_size_t(4096), ctypes.c_long(0))
    return lib.error_name(ctypes.get_errno()) if found < 0 else None


def pwrite(fd, text=NOWHERE):
    """The error of one pwrite(2)."""
    data = text.encode()
    written = libc.pwrite(fd, data, ctypes.c_size_t(len(data)), ctypes.c_long(0))
    return lib.error_name(ctypes.get_errno()) if written < 0 else None


class Occupied:
    """A descriptor of verify, or of starting_pcrs, on which another process has begun a call that takes some time."""

    def __init__(self, path, flags, function):
        self.fd = os.open(path, flags)
        self.function = function

    def __enter__(self):
        lib.ask_test_module("slow", SLOW)
        ready, tell = os.pipe()

        def occupy():
            os.write(tell, b"x")
            began = time.monotonic()
            return self.function(self.fd), time.monotonic() - began

        self.child = lib.Child(occupy)
        os.read(ready, 1)
        os.close(ready)
        os.close(tell)
        time.sleep(0.05)
        return self.fd

    def busy(self):
        """Whether the call is still under way."""
        return not lib.select.select([self.child.reader], [], [], 0)[0]

    def __exit__(self, *_):
        self.error, self.took = self.child.result()
        lib.ask_test_module("slow", 0)
        os.close(self.fd)


def reading():
    """verify is read."""
    return Occupied(lib.VERIFY, os.O_RDONLY, pread)


def writing():
    """Starting values are written: those that there are."""
    text = lib.read(lib.STARTING_PCRS).decode()
    return Occupied(lib.STARTING_PCRS, os.O_RDWR, lambda fd: pwrite(fd, text))


CALLS = [("a read, beside a read", reading, pread), ("a read, beside a write", writing, pread),
         ("a write, beside a write", writing, lambda fd: pwrite(fd, "junk"))]


@test("with records")
def _():
    lib.measure(20)
    lib.invariant()


@cases("killed at once", CALLS)
def _(occupied, call):
    took, idle = [], []
    with (held := occupied()) as fd:
        for times, function in ((took, lambda: call(fd)), (idle, signal.pause)):
            for _ in range(3):
                child = lib.Child(function)
                time.sleep(0.05)
                began = time.monotonic()
                os.kill(child.pid, signal.SIGKILL)
                equal(child.reap(), signal.SIGKILL, "status")
                times.append(time.monotonic() - began)
            if times is took:
                check(held.busy(), "the other call ended before this could be seen")
    limit = statistics.median(idle) + (0.3 if lib.DEBUG else 0.1)
    check(statistics.median(took) < limit, f"until they were gone: {took} s, an idle process: {idle} s")
    equal(held.error, None, "error of the other call")


def interrupted(call, fd):
    """The error of a call that a signal arrives during, which is handled, and how long it took."""
    signal.signal(signal.SIGALRM, lambda *_: None)
    signal.siginterrupt(signal.SIGALRM, True)
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    began = time.monotonic()
    error = call(fd)
    return error, time.monotonic() - began


@cases("EINTR by a signal that is handled", CALLS)
def _(occupied, call):
    with (held := occupied()) as fd:
        error, took = lib.in_child(interrupted, call, fd)
        check(held.busy(), "the other call ended before this could be seen")
    equal((error, held.error), ("EINTR", None), "errors")
    check(took < 1, f"it took {took:.3f} s")


@cases("made again after a stop", CALLS)
def _(occupied, call):
    with (held := occupied()) as fd:
        child = lib.Child(lambda: call(fd))
        for _ in range(3):
            time.sleep(0.02)
            os.kill(child.pid, signal.SIGSTOP)
            time.sleep(0.01)
            os.kill(child.pid, signal.SIGCONT)
        error = child.result()
    # Junk is refused for what it is when its turn comes.
    check(error in (None, "EINVAL"), f"error {error}")
    equal(held.error, None, "error of the other call")


@test("other descriptors do not wait for this one")
def _():
    with (held := reading()):
        for path in (lib.STATUS, lib.STARTING_PCRS, lib.VIOLATIONS, lib.TRIM):
            lib.read(path)
        check(held.busy(), "verify had been read before them")


@test("with the TPM as it was")
def _():
    lib.unload("ima_trim_test")
    lib.invariant()


lib.main()
