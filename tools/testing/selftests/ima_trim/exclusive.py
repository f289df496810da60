#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""One trimmer at a time: whoever opens trim or starting_pcrs for writing with O_EXCL is the only one to write to either."""

import os
import signal

import ima_trim_lib as lib
from ima_trim_lib import cases, check, equal, test

PATHS = {"trim": lib.TRIM, "starting_pcrs": lib.STARTING_PCRS}
WRITING = {"O_WRONLY": os.O_WRONLY, "O_RDWR": os.O_RDWR}
PAIRS = [(f"{one}, then {other}", one, other) for one in PATHS for other in PATHS]


def opened(path, flags):
    """What opening a file ends in."""
    return lib.outcome_of(lambda: os.close(os.open(path, flags)))


def free():
    """Fails the test unless everybody may open the files for writing, and do so alone."""
    for name, path in PATHS.items():
        for flags in WRITING.values():
            equal(opened(path, flags | os.O_EXCL), None, f"error of opening {name} alone")
            equal(opened(path, flags), None, f"error of opening {name}")


@test("without O_EXCL any number may have them open")
def _():
    fds = [os.open(path, flags) for path in PATHS.values() for flags in WRITING.values() for _ in range(2)]
    for fd in fds:
        os.close(fd)
    free()


@cases("while it is open with O_EXCL, EBUSY for others, of this process and of another", PAIRS)
def _(one, other):
    for flags in WRITING.values():
        fd = os.open(PATHS[one], flags | os.O_EXCL)
        try:
            for again in WRITING.values():
                for extra in (0, os.O_EXCL):
                    equal(opened(PATHS[other], again | extra), "EBUSY", "error of this process")
                    equal(lib.in_child(opened, PATHS[other], again | extra), "EBUSY", "error of another process")
        finally:
            os.close(fd)
        free()


@cases("while it is open for writing, EBUSY with O_EXCL, of this process and of another", PAIRS)
def _(one, other):
    for flags in WRITING.values():
        fd = os.open(PATHS[one], flags)
        try:
            for again in WRITING.values():
                equal(opened(PATHS[other], again | os.O_EXCL), "EBUSY", "error of this process")
                equal(lib.in_child(opened, PATHS[other], again | os.O_EXCL), "EBUSY", "error of another process")
                equal(opened(PATHS[other], again), None, "error without O_EXCL")
        finally:
            os.close(fd)
        free()


@test("reading is never affected, and affects nobody, with O_EXCL or without")
def _():
    fd = os.open(lib.TRIM, os.O_RDWR | os.O_EXCL)
    try:
        for name in os.listdir(lib.DIRECTORY):
            path = os.path.join(lib.DIRECTORY, name)
            lib.read(path)
            equal(opened(path, os.O_RDONLY | os.O_EXCL), None, f"error of opening {name} for reading with O_EXCL")
    finally:
        os.close(fd)
    for extra in (0, os.O_EXCL):
        fds = [os.open(path, os.O_RDONLY | extra) for path in PATHS.values()]
        free()
        for fd in fds:
            os.close(fd)


@test("whoever has it trims and restores nothing but by it, and the values stay readable")
def _():
    lib.measure(3)
    log = lib.history()
    violations = len(log.violations(log.trimmed, log.total - 1))
    text = f"{log.tokens(log.total - 1)} violations={violations}"
    fd = os.open(lib.TRIM, os.O_RDWR | os.O_EXCL)
    try:
        equal(lib.outcome_of(lib.write, lib.TRIM, text), "EBUSY", "error of another trim")
        equal(lib.outcome_of(lib.write, lib.STARTING_PCRS, lib.read(lib.STARTING_PCRS)), "EBUSY", "error of a restore")
        equal(lib.outcome_of(lib.write, lib.TRIM, "junk"), "EBUSY", "error of junk")
        outcome = lib.request(text, fd)
        equal((outcome.error, outcome.result), (None, "trimmed"), "outcome")
    finally:
        os.close(fd)
    equal(lib.look()[0].records, log.total - 1, "records trimmed")
    lib.invariant()
    free()


@test("it ends with the last copy of the descriptor")
def _():
    fd = os.open(lib.TRIM, os.O_RDWR | os.O_EXCL)
    copy = os.dup(fd)
    wait, tell = os.pipe()
    child = lib.Child(lambda: len(os.read(wait, 1)))
    os.close(fd)
    equal(opened(lib.TRIM, os.O_WRONLY), "EBUSY", "error with a copy, and a child that has both")
    os.close(copy)
    equal(opened(lib.TRIM, os.O_WRONLY), "EBUSY", "error with a child that has both")
    os.write(tell, b"x")
    child.result()
    os.close(wait)
    os.close(tell)
    free()


@test("it ends with the process, however that ends")
def _():
    for number in (signal.SIGKILL, signal.SIGTERM):
        with lib.held_open(lib.TRIM, os.O_RDWR | os.O_EXCL):
            equal(opened(lib.STARTING_PCRS, os.O_WRONLY), "EBUSY", "error while a process has it")
        free()
        ready, tell = os.pipe()

        def hold():
            os.open(lib.STARTING_PCRS, os.O_WRONLY | os.O_EXCL)
            os.write(tell, b"x")
            signal.pause()

        child = lib.Child(hold)
        os.read(ready, 1)
        os.kill(child.pid, number)
        child.reap()
        free()


@cases("who may not write does not get it", [
    ("an unprivileged user", lib.become_nobody), ("root of a user namespace", lib.become_root_of_namespace)])
def _(become):
    def attempt():
        become()
        return opened(lib.TRIM, os.O_RDWR | os.O_EXCL)

    os.chmod(lib.TRIM, 0o666)
    try:
        equal(lib.in_child(attempt), "EPERM", "error")
        free()
        # Nor is who has it told apart.
        fd = os.open(lib.TRIM, os.O_RDWR | os.O_EXCL)
        equal(lib.in_child(attempt), "EPERM", "error while somebody has it")
        os.close(fd)
    finally:
        os.chmod(lib.TRIM, 0o600)
    free()


@test("processes that race for it: one at a time has it, and each comes to have it")
def _():
    path = os.path.join(lib.FILES, "holder")

    def compete():
        had = 0
        tried = 0
        while had < lib.tries(60):
            tried += 1
            check(tried < 1000000, "it never came to have it")
            try:
                fd = os.open(lib.TRIM, os.O_WRONLY | os.O_EXCL)
            except OSError as error:
                equal(lib.error_name(error.errno), "EBUSY", "error")
                continue
            # Fails if somebody else has it.
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            os.unlink(path)
            os.close(fd)
            had += 1
        return had

    children = [lib.Child(compete) for _ in range(3)]
    equal([child.result() for child in children], [lib.tries(60)] * 3, "times that each had it")
    free()


lib.main()
