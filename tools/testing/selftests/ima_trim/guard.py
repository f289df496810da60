#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""The guard keeps other writers out; without it, who is the writer may trim."""

import os
import resource
import threading
import time

import ima_trim_lib as lib
from ima_trim_lib import cases, check, equal, test

PARAMETERS = "/sys/module/ima_trim/parameters"


def last():
    """A request that trims everything but the last record."""
    lib.measure(3)
    log = lib.history()
    violations = len(log.violations(log.trimmed, log.total - 1))
    return log, log.tokens(log.total - 1) + f" violations={violations}"


def refused(text, pattern):
    """Checks that a request of the writer is refused with EBUSY, for this reason."""
    before = lib.read(lib.STARTING_PCRS)
    with lib.KernelLog() as log:
        outcome = lib.request(text)
        log.expect(pattern)
    equal((outcome.error, outcome.result), ("EBUSY", "refused"), "outcome")
    equal(lib.read(lib.STARTING_PCRS), before, "starting_pcrs")


@test("on by default, and said in status and among the parameters")
def _():
    equal(lib.status()["guard"], "on", "guard")
    equal(lib.read(f"{PARAMETERS}/guard"), b"Y\n", "parameter guard")
    equal(lib.read(f"{PARAMETERS}/reclaim"), b"keep\n", "parameter reclaim")


@test("readers are not hindered, and the kernel's own trim is")
def _():
    log, text = last()
    for path in lib.list_files():
        lib.read(path)
        equal(lib.outcome_of(lib.write, path, "1\n"), "EBUSY", f"error of a write to {path}")
    lib.trim(text, log.total - 1)


@test("a module that is loaded with a reclaim= that is not known: EINVAL, and the log names it")
def _():
    text = lib.read(lib.STARTING_PCRS)
    lib.unload()
    with lib.KernelLog() as log:
        equal(lib.outcome_of(lambda: lib.load(parameters="reclaim=melt")), "EINVAL", "error")
        log.expect("reclaim=melt")
    check(not lib.loaded(), "it is loaded")
    lib.load()
    lib.write(lib.STARTING_PCRS, text)
    lib.invariant()


@test("a writer when the module is loaded: EBUSY, and no reader is left counted")
def _():
    text = lib.read(lib.STARTING_PCRS)
    lib.unload()
    with lib.held_open(lib.ASCII, os.O_WRONLY), lib.KernelLog() as log:
        equal(lib.outcome_of(lib.load), "EBUSY", "error")
        log.expect("not loaded: .*open for writing")
    # Works only if nobody is counted any more.
    os.close(os.open(lib.ASCII, os.O_RDWR))
    lib.load()
    lib.write(lib.STARTING_PCRS, text)
    equal(lib.outcome_of(os.open, lib.ASCII, os.O_RDWR), "EBUSY", "opening for writing")


@test("without the guard others can write")
def _():
    lib.reload("guard=0")
    equal(lib.read(f"{PARAMETERS}/guard"), b"N\n", "parameter guard")
    os.close(os.open(lib.ASCII, os.O_RDWR))


@test("the writer trims while it keeps everybody else out")
def _():
    log, text = last()
    fd = os.open(lib.BINARY, os.O_RDWR)
    try:
        records = lib.parse(lib.read_fd(fd))
        equal(len(records), log.total - log.trimmed, "records that the writer reads")
        before = int(lib.status()["records_trimmed"])
        outcome = lib.request(text)
        equal((outcome.error, outcome.result), (None, "trimmed"), "outcome")
        equal(outcome.records, log.total - 1 - before, "records trimmed")
        equal(lib.in_child(lib.outcome_of, os.open, lib.ASCII, os.O_RDONLY), "EBUSY", "error of another reader")
        os.lseek(fd, 0, os.SEEK_SET)
        equal(len(lib.parse(lib.read_fd(fd))), 1, "records left")
        equal(set(lib.pairs(lib.read(lib.VERIFY)).values()) - {"0", "1"}, {"ok"}, "verify")
    finally:
        os.close(fd)
    lib.invariant()


@test("another process does not trim while there is a writer")
def _():
    _, text = last()
    with lib.held_open(lib.BINARY, os.O_RDWR):
        refused(text, "open for writing")


@test("nor does the writer while its descriptor has a copy")
def _():
    log, text = last()
    fd = os.open(lib.BINARY, os.O_RDWR)
    copy = os.dup(fd)
    try:
        refused(text, "shares the descriptor")
        os.close(copy)
        equal(lib.request(text).error, None, "error without the copy")
    finally:
        os.close(fd)
    equal(lib.history().trimmed, log.total - 1, "records trimmed")


@test("nor while a child has it")
def _():
    log, text = last()
    fd = os.open(lib.BINARY, os.O_RDWR)
    wait, tell = os.pipe()
    child = lib.Child(lambda: len(os.read(wait, 1)))
    try:
        refused(text, "shares the descriptor")
        os.write(tell, b"x")
        child.result()
        equal(lib.request(text).error, None, "error without the child")
    finally:
        os.close(fd)
        os.close(wait)
        os.close(tell)
    equal(lib.history().trimmed, log.total - 1, "records trimmed")


@test("nor while another thread has all descriptors")
def _():
    log, text = last()
    fd = os.open(lib.BINARY, os.O_RDWR)
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    try:
        refused(text, "shares the descriptor")
        done.set()
        thread.join()
        # The kernel may not be done with the thread yet.
        while len(os.listdir("/proc/self/task")) > 1:
            time.sleep(0.01)
        equal(lib.request(text).error, None, "error without the thread")
    finally:
        done.set()
        os.close(fd)
    equal(lib.history().trimmed, log.total - 1, "records trimmed")


@cases("the writer has had a descriptor of the number", [("1000: it trims", 1000, None), ("5000: refused", 5000, "EBUSY")])
def _(number, error):
    log, text = last()

    # What the table of descriptors has room for, it keeps as long as the process lives.
    def writer():
        resource.setrlimit(resource.RLIMIT_NOFILE, (8192, 8192))
        os.dup2(0, number)
        os.close(number)
        fd = os.open(lib.BINARY, os.O_RDWR)
        try:
            with lib.KernelLog() as kernel:
                found = lib.request(text).error
                if error:
                    kernel.expect("more than 4096")
            return found
        finally:
            os.close(fd)

    equal(lib.Child(writer).result(), error, "error")
    equal(lib.history().trimmed, log.trimmed if error else log.total - 1, "records trimmed")


@cases("two descriptors of the writer are as good as one", [
    ("both for writing", os.O_WRONLY), ("one for reading and writing", os.O_RDWR),
])
def _(flags):
    log, text = last()
    first = os.open(lib.BINARY, os.O_RDWR)
    second = os.open(lib.ASCII, flags)
    try:
        equal(lib.request(text).error, None, "error")
    finally:
        os.close(second)
        os.close(first)
    equal(lib.history().trimmed, log.total - 1, "records trimmed")


@test("after all that nobody is left counted, and the guard is taken again")
def _():
    os.close(os.open(lib.ASCII, os.O_RDWR))
    lib.reload()
    equal(lib.outcome_of(os.open, lib.ASCII, os.O_RDWR), "EBUSY", "opening for writing")
    lib.invariant()


lib.main()
