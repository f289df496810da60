#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""A request is one write(2) of at most 16384 bytes; and what reading gives after it."""

import os
import subprocess

import ima_trim_lib as lib
from ima_trim_lib import cases, check, equal, test


def matching(records=3):
    """A request that would trim. Gives the history and the text."""
    lib.measure(records)
    history = lib.history()
    violations = len(history.violations(history.trimmed, history.total - 1))
    return history, history.tokens(history.total - 1) + f" violations={violations}"


@test("16384 bytes are a request")
def _():
    history, text = matching()
    lib.trim(text + " " * (lib.MAX_REQUEST - len(text)), history.total - 1)


@cases("E2BIG", [("16385 bytes", lib.MAX_REQUEST + 1), ("64 KiB", 1 << 16), ("1 MiB", 1 << 20)])
def _(size):
    history, text = matching()
    lib.refuse(text + " " * (size - len(text)), "E2BIG", "16384")
    lib.refuse(b"\0" * size, "E2BIG")
    lib.trim(text, history.total - 1)


@test("an empty write changes nothing")
def _():
    before = lib.snapshot()
    fd = os.open(lib.TRIM, os.O_RDWR)
    try:
        check(lib.outcome_of(os.write, fd, b"") in (None, "EINVAL"), "error of an empty write")
    finally:
        os.close(fd)
    lib.unchanged(before, "an empty write")


@cases("a request cut in two writes never trims", [
    ("in the name of the bank", lambda text: 3),
    ("after the equals sign", lambda text: text.index("=") + 1),
    ("in the value", lambda text: text.index("=") + 9),
    ("before the last digit", lambda text: text.index(" violations") - 1),
])
def _(where):
    history, text = matching()
    cut = where(text)
    before = lib.snapshot()
    fd = os.open(lib.TRIM, os.O_RDWR)
    try:
        equal(lib.outcome_of(os.write, fd, text[:cut].encode()), "EINVAL", "error of the first half")
        equal(lib.outcome_of(os.write, fd, text[cut:].encode()), "EINVAL", "error of the second half")
    finally:
        os.close(fd)
    lib.unchanged(before, "half a request")
    lib.trim(text, history.total - 1)


@test("the parts of a writev are one request")
def _():
    history, text = matching()
    middle = len(text) // 2
    parts = [text[:middle].encode(), text[middle:].encode(), b"\n", b"dry-run\n"]
    before = lib.snapshot()
    fd = os.open(lib.TRIM, os.O_RDWR)
    try:
        equal(os.writev(fd, parts), sum(map(len, parts)), "bytes written")
        equal(lib.pairs(lib.read_fd(fd)).get("result"), "dry-run", "result in the reply")
        lib.unchanged(before, "a dry run in parts")
        os.lseek(fd, 0, os.SEEK_SET)
        equal(lib.outcome_of(os.writev, fd, [b" " * lib.MAX_REQUEST, b" "]), "E2BIG", "error of a long writev")
        lib.unchanged(before, "a long writev")
        os.lseek(fd, 0, os.SEEK_SET)
        os.writev(fd, parts[:3])
        equal(lib.pairs(lib.read_fd(fd)).get("result"), "trimmed", "result in the reply")
    finally:
        os.close(fd)
    lib.trim(text, history.total - 1)


@test("a write at an offset is refused")
def _():
    history, text = matching()
    before = lib.snapshot()
    fd = os.open(lib.TRIM, os.O_RDWR)
    try:
        for offset in (1, 4096, 1 << 40):
            equal(lib.outcome_of(os.pwrite, fd, text.encode(), offset), "EINVAL", f"error at offset {offset}")
            equal(lib.pairs(lib.read_fd(fd)).get("errno"), "EINVAL", "errno in the reply")
            os.lseek(fd, 0, os.SEEK_SET)
    finally:
        os.close(fd)
    lib.unchanged(before, "a write at an offset")
    lib.trim(text, history.total - 1)


@test("a pwrite at offset 0 is a request")
def _():
    history, text = matching()
    fd = os.open(lib.TRIM, os.O_RDWR)
    try:
        equal(os.pwrite(fd, text.encode(), 0), len(text), "bytes written")
        equal(lib.pairs(lib.read_fd(fd))["result"], "trimmed", "result")
    finally:
        os.close(fd)
    equal(lib.look()[0].records, history.total - 1, "records trimmed")
    lib.invariant()


@test("the shell: exec 3<>trim; echo ... >&3; cat <&3")
def _():
    history, text = matching()
    script = f"exec 3<>{lib.TRIM} && echo '{text}' >&3 && cat <&3"
    done = subprocess.run(["bash", "-c", script], stdout=subprocess.PIPE, check=True)
    fields = lib.pairs(done.stdout)
    equal((fields["result"], int(fields["records"])), ("trimmed", len(history.records) - 1 - history.trimmed), "reply")
    lib.invariant()


@test("the shell: echo ... > trim")
def _():
    history, text = matching()
    subprocess.run(["bash", "-c", f"echo '{text}' > {lib.TRIM}"], check=True)
    equal(lib.look()[0].records, history.total - 1, "records trimmed")
    done = subprocess.run(["bash", "-c", f"echo '{text} junk' > {lib.TRIM}"], stderr=subprocess.PIPE, check=False)
    check(done.returncode != 0 and b"Invalid argument" in done.stderr, f"the shell's error: {done.stderr!r}")
    lib.invariant()


@test("several requests on one descriptor, each with its own reply")
def _():
    history, text = matching()
    fd = os.open(lib.TRIM, os.O_RDWR)
    try:
        for request, error, result in (
            (text + " dry-run", None, "dry-run"), ("junk", "EINVAL", "refused"), (text, None, "trimmed"),
        ):
            outcome = lib.request(request, fd)
            equal((outcome.error, outcome.result), (error, result), "outcome")
            # lib.request() read to the end, and the next write must begin at offset 0.
            os.lseek(fd, 0, os.SEEK_SET)
    finally:
        os.close(fd)
    equal(lib.look()[0].records, history.total - 1, "records trimmed")
    lib.invariant()


@test("reading byte by byte gives the same reply")
def _():
    fd = os.open(lib.TRIM, os.O_RDWR)
    try:
        outcome = lib.request("junk", fd)
        os.lseek(fd, 0, os.SEEK_SET)
        equal(lib.read_fd(fd, 1), outcome.text, "reply")
        equal(os.pread(fd, 5, 7), outcome.text[7:12], "a piece of the reply")
        equal(os.pread(fd, 5, 1 << 20), b"", "what is beyond the end")
    finally:
        os.close(fd)


@test("a descriptor gives its own request's outcome, a fresh one that of the last request of anybody")
def _():
    history, text = matching()
    first = os.open(lib.TRIM, os.O_RDWR)
    second = os.open(lib.TRIM, os.O_RDWR)
    try:
        os.write(first, (text + " dry-run").encode())
        equal(lib.outcome_of(os.write, second, b"junk"), "EINVAL", "error of the second request")
        equal(lib.pairs(lib.read_fd(first))["result"], "dry-run", "result on the first descriptor")
        reply = lib.read_fd(second)
        equal(lib.pairs(reply)["errno"], "EINVAL", "errno on the second descriptor")
        equal(lib.read(lib.TRIM), reply, "reply on a fresh descriptor")
        lib.in_child(lambda: lib.request(text) and None)
        equal(lib.pairs(lib.read(lib.TRIM))["result"], "trimmed", "result on a fresh descriptor")
    finally:
        os.close(first)
        os.close(second)
    equal(lib.look()[0].records, history.total - 1, "records trimmed")


@test("a text that is being read does not change under its reader")
def _():
    fd = os.open(lib.STATUS, os.O_RDONLY)
    try:
        expected = lib.read(lib.STATUS)
        begin = os.read(fd, 10)
        lib.measure(5)
        equal(begin + lib.read_fd(fd, 7), expected, "status, read in pieces")
        os.lseek(fd, 0, os.SEEK_SET)
        check(lib.read_fd(fd) != expected, "status read again is the old one")
    finally:
        os.close(fd)


@test("the other files cannot be written")
def _():
    history, text = matching()
    before = lib.snapshot()
    for path in (lib.VERIFY, lib.VIOLATIONS, lib.STATUS):
        for data in (text, before[lib.STARTING_PCRS]):
            check(lib.outcome_of(lib.write, path, data) in ("EINVAL", "EACCES", "EPERM"), f"{path} can be written")
    lib.unchanged(before, "a write to another file")
    lib.trim(text, history.total - 1)


lib.main()
