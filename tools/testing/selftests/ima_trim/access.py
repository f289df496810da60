#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Who may trim and who may read."""

import os

import ima_trim_lib as lib
from ima_trim_lib import cases, check, equal, test

FILES = [lib.TRIM, lib.STARTING_PCRS, lib.VERIFY, lib.VIOLATIONS, lib.STATUS]


class Mode:
    """Gives a file another mode for a while."""

    def __init__(self, path, mode):
        self.path, self.mode, self.before = path, mode, lib.mode(path)

    def __enter__(self):
        os.chmod(self.path, self.mode)

    def __exit__(self, *_):
        os.chmod(self.path, self.before)


def matching():
    """A request that would trim."""
    lib.measure(3)
    history = lib.history()
    violations = len(history.violations(history.trimmed, history.total - 1))
    return history, history.tokens(history.total - 1) + f" violations={violations}"


def opened(path, flags, become=None):
    """What opening a file ends in, after the process gave up what it may."""
    def attempt():
        if become:
            become()
        return lib.outcome_of(lambda: os.close(os.open(path, flags)))
    return lib.in_child(attempt)


def attempt(text, become=None, fd=None):
    """What opening for writing and writing end in, or only writing to a descriptor that was passed on."""
    def write():
        if become:
            become()
        try:
            target = os.open(lib.TRIM, os.O_WRONLY) if fd is None else fd
        except OSError as error:
            return ["open", lib.error_name(error.errno)]
        return ["write", lib.outcome_of(os.write, target, text.encode())]
    return lib.in_child(write)


NOBODY = ("an unprivileged user", lib.become_nobody)
NAMESPACE_ROOT = ("root of a user namespace", lib.become_root_of_namespace)


def nobody_in_namespace():
    """An unprivileged user who makes himself root of a user namespace."""
    lib.become_nobody()
    lib.become_root_of_namespace()


NOBODY_ROOT = ("an unprivileged user who is root of a user namespace", nobody_in_namespace)


def without_capability():
    """Root of the machine without CAP_SYS_ADMIN, and nothing else missing."""
    header = lib.struct.pack("=Ii", 0x20080522, 0)
    data = bytearray(24)
    libc = lib.ctypes.CDLL(None, use_errno=True)
    buffer = (lib.ctypes.c_char * 24).from_buffer(data)
    equal(libc.capget(header, buffer), 0, "capget")
    words = list(lib.struct.unpack("=6I", bytes(data)))
    words[0] &= ~(1 << 21)
    words[1] &= ~(1 << 21)
    lib.struct.pack_into("=6I", data, 0, *words)
    equal(libc.capset(header, buffer), 0, "capset")


NO_CAPABILITY = ("root without CAP_SYS_ADMIN", without_capability)


@cases("opening trim for writing is refused", [
    (*NOBODY, "EACCES"), (*NAMESPACE_ROOT, "EPERM"), (*NOBODY_ROOT, "EACCES"), (*NO_CAPABILITY, "EPERM"),
])
def _(become, error):
    _, text = matching()
    before = lib.snapshot()
    equal(attempt(text, become), ["open", error], "outcome")
    equal(opened(lib.TRIM, os.O_RDWR, become), error, "outcome of opening for reading and writing")
    lib.unchanged(before, "a refused open")


@cases("opening trim for writing is refused even if its mode lets everybody", [
    NOBODY, NAMESPACE_ROOT, NOBODY_ROOT, NO_CAPABILITY,
])
def _(become):
    _, text = matching()
    before = lib.snapshot()
    with Mode(lib.TRIM, 0o666):
        equal(attempt(text, become), ["open", "EPERM"], "outcome")
    lib.unchanged(before, "a refused open")


@cases("a descriptor that root opened gives no rights to", [NOBODY, NAMESPACE_ROOT, NOBODY_ROOT, NO_CAPABILITY])
def _(become):
    history, text = matching()
    before = lib.snapshot()
    fd = os.open(lib.TRIM, os.O_RDWR)
    try:
        equal(attempt(text, become, fd), ["write", "EPERM"], "outcome")
        lib.unchanged(before, "a refused write")
        # The twin: passed on to a process that kept its rights, it works.
        equal(attempt(text, None, fd), ["write", None], "outcome of root's own process")
    finally:
        os.close(fd)
    equal(lib.look()[0].records, history.total - 1, "records trimmed")
    lib.invariant()


@test("root trims")
def _():
    history, text = matching()
    equal(attempt(text), ["write", None], "outcome")
    equal(lib.look()[0].records, history.total - 1, "records trimmed")
    lib.invariant()


@cases("reading follows the file's mode", [(os.path.basename(path), path) for path in FILES])
def _(path):
    equal(opened(path, os.O_RDONLY), None, "outcome for root")
    equal(opened(path, os.O_RDONLY, lib.become_nobody), "EACCES", "outcome for an unprivileged user")
    with Mode(path, 0o644):
        equal(opened(path, os.O_RDONLY, lib.become_nobody), None, "outcome with mode 0644")
        text = lib.in_child(lambda: lib.become_nobody() or lib.read(path).decode())
        equal(text, lib.read(path).decode(), "text for an unprivileged user")
    equal(opened(path, os.O_RDONLY, lib.become_nobody), "EACCES", "outcome with the mode as it was")


@test("a group that owns a file can read it and cannot trim")
def _():
    def in_group():
        os.setgroups([777])
        os.setresgid(lib.NOBODY, lib.NOBODY, lib.NOBODY)
        os.setresuid(lib.NOBODY, lib.NOBODY, lib.NOBODY)
    os.chown(lib.STARTING_PCRS, 0, 777)
    try:
        equal(opened(lib.STARTING_PCRS, os.O_RDONLY, in_group), None, "outcome of reading")
        check(opened(lib.TRIM, os.O_WRONLY, in_group), "the group can open trim for writing")
    finally:
        os.chown(lib.STARTING_PCRS, 0, 0)


lib.main()
