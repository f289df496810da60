#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Unloading while processes are held up in an open of the module's files, by a fanotify listener.

They got as far as the module's operations and have no reference on the module: it goes without waiting for them, and
they must not run into what was freed.
"""

import ctypes
import fcntl
import os
import struct
import termios
import time

import ima_trim_lib as lib
from ima_trim_lib import cases, check, equal, test

FAN_CLOEXEC = 0x1
FAN_CLASS_CONTENT = 0x4
FAN_MARK_ADD = 0x1
FAN_MARK_MOUNT = 0x10
FAN_OPEN_PERM = 0x10000
AT_FDCWD = -100
# The length of an event, of which the listener tells how many bytes there are to be read.
EVENT = 24
NAMES = ["trim", "starting_pcrs", "verify", "violations", "status"]
MODES = {"O_RDONLY": os.O_RDONLY, "O_WRONLY": os.O_WRONLY, "O_RDWR": os.O_RDWR, "access mode 3": os.O_ACCMODE}
# How long unloading may take at most, in seconds, unless it waits for somebody.
PATIENCE = 6

libc = ctypes.CDLL(None, use_errno=True)


def called(result, what):
    """The result of a function of the C library, unless it failed."""
    if result < 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")
    return result


class Listener:
    """Holds up all that open a file of securityfs, until it goes: then the kernel lets them on.

    It never reads its events, as that would open the files and so keep the module. It watches the mount, as a mark
    on a file would be a reference on its inode.
    """

    def __init__(self):
        self.openers = []
        self.fd = called(libc.fanotify_init(FAN_CLASS_CONTENT | FAN_CLOEXEC, os.O_RDONLY), "fanotify_init")
        called(libc.fanotify_mark(
            self.fd, FAN_MARK_ADD | FAN_MARK_MOUNT, ctypes.c_uint64(FAN_OPEN_PERM), AT_FDCWD,
            os.fsencode(os.path.dirname(lib.DIRECTORY))), "fanotify_mark")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.let_go()

    def let_go(self):
        """Lets all of them on."""
        if self.fd is not None:
            os.close(self.fd)
            self.fd = None

    def child(self, function, *arguments):
        """A process that does not keep the listener."""
        def without_listener():
            os.close(self.fd)
            return function(*arguments)
        return lib.Child(without_listener)

    def hold(self, path, mode):
        """Has a process open a file, and waits until it is held up."""
        self.openers.append(self.child(open_file, path, mode))
        deadline = time.monotonic() + 20
        while self.held() < len(self.openers):
            check(time.monotonic() < deadline, f"the open of {path} is not held up")
            time.sleep(0.002)

    def held(self):
        """The number of processes that are held up."""
        size = fcntl.ioctl(self.fd, termios.FIONREAD, struct.pack("i", 0))
        return struct.unpack("i", size)[0] // EVENT

    def outcomes(self):
        """What became of each open, when they were let on."""
        return [child.result() for child in self.openers]


def open_file(path, mode):
    """Opens a file. Gives the error, or what can be done with the descriptor."""
    try:
        fd = os.open(path, mode)
    except OSError as failure:
        return lib.error_name(failure.errno)
    outcome = [lib.outcome_of(os.read, fd, 1), lib.outcome_of(os.write, fd, b"")]
    # With the file open the module stays.
    outcome.append(lib.outcome_of(lib.unload))
    os.close(fd)
    return outcome


def ended(child, seconds=0):
    """Whether a process ends within a time."""
    return bool(lib.select.select([child.reader], [], [], seconds)[0])


def unload_meanwhile(files):
    """Unloads the module while processes are held up in opening files, and lets them on when it is gone.

    Checks that unloading does not wait for them, and that they all find the module gone.
    """
    with lib.KernelLog() as log, Listener() as listener:
        for name, mode in files:
            listener.hold(os.path.join(lib.DIRECTORY, name), mode)
        unloading = listener.child(lib.unload)
        check(ended(unloading, PATIENCE), "unloading waits")
        unloading.result()
        equal(listener.held(), len(files), "opens that are held up")
        listener.let_go()
        equal(listener.outcomes(), ["EIO"] * len(files), "outcomes of the opens")
        check(not lib.loaded() and not os.path.exists(lib.DIRECTORY), "something is left")
        text = log.text()
    check(not lib.re.search(lib.ALARMS, text), f"the kernel's log: {text[-2000:]}")


@cases("held up, and let on while the module stays", [(name, mode) for name, mode in MODES.items()])
def _(mode):
    lib.load()
    try:
        with Listener() as listener:
            listener.hold(lib.TRIM, mode)
            listener.let_go()
            (outcome,) = listener.outcomes()
        reads, writes = mode in (os.O_RDONLY, os.O_RDWR), mode in (os.O_WRONLY, os.O_RDWR)
        # The write is of a request that is empty.
        equal(outcome, [None if reads else "EBADF", "EINVAL" if writes else "EBADF", "EAGAIN"], "outcome")
    finally:
        lib.unload()


@cases("held up while the module is unloaded", [
    (f"{name}, {mode}", name, flags) for name in ("trim", "status") for mode, flags in MODES.items()])
def _(name, mode):
    lib.load()
    unload_meanwhile([(name, mode)])


@test("several for each file, in all modes")
def _():
    lib.load()
    unload_meanwhile([(name, mode) for name in NAMES for mode in MODES.values()])


@test("a path to a file is not waited for either")
def _():
    lib.load()
    path = os.open(lib.STATUS, os.O_PATH)
    try:
        began = time.monotonic()
        lib.unload()
        seconds = time.monotonic() - began
    finally:
        os.close(path)
    check(seconds < PATIENCE, f"unloading took {seconds:.1f} s")


@test("after all that the module can be loaded")
def _():
    lib.load()
    equal(lib.status()["base"], "verified", "base")
    lib.invariant()
    lib.unload()


lib.main(module=False)
