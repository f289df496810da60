#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Unloading after trims, and what is left to the kernel and to the next load. Has to be the last of its boot."""

import os
import re

import ima_trim_lib as lib
from ima_trim_lib import check, equal, test

# The list as it was when the module was unloaded.
records = []


@test("rmmod is refused while a file of the module is open")
def _():
    for path, mode in (
            (lib.TRIM, os.O_RDONLY), (lib.STARTING_PCRS, os.O_RDONLY), (lib.VIOLATIONS, os.O_RDONLY),
            (lib.STATUS, os.O_RDONLY), (lib.TRIM, os.O_WRONLY), (lib.TRIM, os.O_RDWR),
            # For neither reading nor writing.
            (lib.STATUS, os.O_ACCMODE)):
        fd = os.open(path, mode)
        try:
            equal(lib.outcome_of(lib.unload), "EAGAIN", f"error with {path} open, mode {mode}")
            check(lib.loaded() and lib.read(lib.STATUS), "the module is gone")
        finally:
            os.close(fd)


@test("the starting values are logged when the module is unloaded")
def _():
    lib.measure(6)
    history = lib.history()
    point = history.total - 4
    lib.trim(history.tokens(point) + f" violations={len(history.violations(history.trimmed, point))}")
    text = lib.read(lib.STARTING_PCRS).decode()
    records[:] = [record.raw for record in lib.look()[1]]
    with lib.KernelLog() as log:
        lib.unload()
        logged = log.text()
    for line in text.splitlines():
        check(re.search(re.escape(line) + "$", logged, re.M), f"not logged: {line}")
    check(not lib.loaded() and not os.path.exists(lib.DIRECTORY), "something is left")


@test("the list is as it was")
def _():
    equal([record.raw for record in lib.lists_agree()], records, "records")
    lib.measure(2)
    equal(len(lib.lists_agree()), len(records) + 2, "records after two more")


@test("the kernel's own trim works: no reader or writer is left counted")
def _():
    lib.write(lib.ASCII, "1\n")
    now = lib.lists_agree()
    equal([record.raw for record in now[:len(records) - 1]], records[1:], "records")


@test("the next load finds that records are missing: base=unknown")
def _():
    with lib.KernelLog() as log:
        lib.load()
        log.expect("removed")
    status = lib.status()
    equal(status["base"], "unknown", "base")
    check(int(status["foreign_records"]) > 1, "foreign_records")
    equal(lib.read(lib.STARTING_PCRS).decode(), f"unknown records={status['foreign_records']}\n", "starting_pcrs")


@test("EUCLEAN for any trim from then on, and the log says why")
def _():
    lib.refuse(f"sha256:10={lib.tpm_value('sha256', 10).hex()}", "EUCLEAN", "removed")
    lib.refuse("sha256:10=" + "00" * 32, "EUCLEAN", "removed")
    lib.refuse("junk", "EINVAL")


@test("a path to a file does not keep the module, and leads nowhere once it is gone")
def _():
    path = os.open(lib.STATUS, os.O_PATH)
    try:
        again = f"/proc/self/fd/{path}"
        check(lib.read(again), "nothing to read through the path")
        lib.unload()
        equal(lib.outcome_of(os.open, again, os.O_RDONLY), "EIO", "error of an open through the path")
        equal(lib.outcome_of(os.open, again, os.O_ACCMODE), "EIO", "error of an open in mode 3")
    finally:
        os.close(path)
        lib.load()


@test("it can be unloaded again, and says that the values are unknown")
def _():
    with lib.KernelLog() as log:
        lib.unload()
        log.expect("unknown records=")


lib.main()
