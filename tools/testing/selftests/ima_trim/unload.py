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
    for path in (lib.TRIM, lib.STARTING_PCRS, lib.VIOLATIONS, lib.STATUS):
        fd = os.open(path, os.O_RDONLY)
        try:
            equal(lib.outcome_of(lib.unload), "EAGAIN", f"error with {path} open")
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


@test("it can be unloaded again, and says that the values are unknown")
def _():
    with lib.KernelLog() as log:
        lib.unload()
        log.expect("unknown records=")


lib.main()
