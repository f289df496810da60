#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Reading from an offset gives the rest of the text, whoever begins there; and when a text is made anew."""

import os
import subprocess

import ima_trim_lib as lib
from ima_trim_lib import cases, check, equal, test


def prepare():
    """Something to be read in each file."""
    lib.measure(4)
    lib.violate_open_writers()
    log = lib.history()
    violations = len(log.violations(log.trimmed, log.total))
    lib.request(f"{log.tokens(log.total)} violations={violations}")


NAMES = [(name, os.path.join(lib.DIRECTORY, name)) for name in ("trim", "starting_pcrs", "verify", "violations", "status")]


def run(*command):
    """What a program writes."""
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True).stdout


@cases("the rest of the text, from an offset", NAMES)
def _(path):
    text = lib.read(path)
    check(len(text) > 20, f"too little to read: {text!r}")
    equal(run("dd", f"if={path}", "bs=7", "skip=1"), text[7:], "dd with skip=1")
    equal(run("dd", f"if={path}", "bs=1", "skip=5", "count=9"), text[5:14], "dd with skip=5 count=9")
    equal(run("tail", "-c", "+8", path), text[7:], "tail from the eighth byte on")
    for offset in (1, 7, len(text) - 1, len(text), len(text) + 1, 1 << 40):
        fd = os.open(path, os.O_RDONLY)
        equal(os.pread(fd, 65536, offset), text[offset:], f"pread at {offset}")
        os.close(fd)
        fd = os.open(path, os.O_RDONLY)
        os.lseek(fd, offset, os.SEEK_SET)
        equal(lib.read_fd(fd, 3), text[offset:], f"read after a seek to {offset}")
        os.close(fd)


@test("byte by byte, backwards")
def _():
    text = lib.read(lib.STARTING_PCRS)
    fd = os.open(lib.STARTING_PCRS, os.O_RDONLY)
    found = [os.pread(fd, 1, offset) for offset in reversed(range(len(text)))]
    os.close(fd)
    equal(b"".join(reversed(found)), text, "text")


@test("a text is made at the first read, wherever that is, and anew at the begin only")
def _():
    for first in (0, 3):
        fd = os.open(lib.STATUS, os.O_RDONLY)
        lib.measure()
        text = lib.read(lib.STATUS)
        equal(os.pread(fd, 65536, first), text[first:], f"first read, at {first}: the text of then, not of the open")
        lib.measure(2)
        now = lib.read(lib.STATUS)
        check(now != text, "status did not change")
        for offset in (1, first, 7):
            if offset:
                equal(os.pread(fd, 65536, offset), text[offset:], f"read at {offset}")
        equal(os.pread(fd, 65536, 0), now, "read at 0")
        equal(os.pread(fd, 65536, 5), now[5:], "read at 5 after it")
        os.close(fd)


@test("a reply is read at any offset, and stays until there is another")
def _():
    fd = os.open(lib.TRIM, os.O_RDWR)
    other = os.open(lib.TRIM, os.O_RDWR)
    try:
        equal(lib.outcome_of(os.pwrite, fd, b"junk", 0), "EINVAL", "error")
        reply = os.pread(fd, 4096, 0)
        check(b"errno=EINVAL" in reply, f"reply {reply!r}")
        equal(lib.outcome_of(os.pwrite, other, b"sha256:10=" + b"5a" * 32, 0), "ENOENT", "error")
        for offset in (4, 0, 1, 0):
            equal(os.pread(fd, 4096, offset), reply[offset:], f"reply at {offset}, when others have had theirs")
        check(b"errno=ENOENT" in os.pread(other, 4096, 0), "the reply of the other")
        check(b"errno=ENOENT" in lib.read(lib.TRIM), "the file has the last one")
    finally:
        os.close(fd)
        os.close(other)


@test("where there is no text, at any offset, there is an error and no end of file")
def _():
    # With foreign records gone verify has none.
    lib.reload("guard=0")
    lib.measure(3)
    log = lib.history()
    lib.write(lib.ASCII, "1\n")
    for offset in (0, 7):
        fd = os.open(lib.VERIFY, os.O_RDONLY)
        equal(lib.outcome_of(os.pread, fd, 10, offset), "EUCLEAN", f"error at {offset}")
        os.close(fd)
    log.take(log.trimmed + 1, lib.parse(lib.read(lib.BINARY)))
    equal(lib.restore(log.statement(log.trimmed))[0], None, "error of the restore")
    lib.reload()


lib.main(prepare=prepare)
