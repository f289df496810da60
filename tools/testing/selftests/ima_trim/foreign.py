#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Somebody trims through the kernel's own interface, which tells nobody: from then on nothing is certain."""

import re
import time

import ima_trim_lib as lib
from ima_trim_lib import check, equal, test

# Records enough for a sweep that takes some time, and how often it is tried to come in between.
MANY = 1000
ATTEMPTS = 60


@test("without the guard")
def _():
    lib.reload("guard=0")


@test("echo 2 > ascii_runtime_measurements: base=unknown, starting_pcrs unknown, two records named")
def _():
    lib.measure(6)
    before = lib.count()
    check(lib.status()["base"] != "unknown", "base=unknown before the kernel's own trim")
    equal(lib.status()["foreign_records"], "0", "foreign_records before")
    lib.history()
    lib.write(lib.ASCII, "2\n")
    equal(lib.count(), before - 2, "records left")
    status = lib.status()
    equal((status["base"], status["foreign_records"]), ("unknown", "2"), "base and foreign_records")
    equal(int(status["records"]), before - 2, "records in status")
    equal(lib.read(lib.STARTING_PCRS), b"unknown records=2\n", "starting_pcrs")


@test("EUCLEAN for any trim, and the log names the number of records")
def _():
    for text in (
        f"sha256:10={lib.tpm_value('sha256', 10).hex()}", "sha256:10=" + "00" * 32,
        f"sha256:10={lib.tpm_value('sha256', 10).hex()} dry-run",
    ):
        lib.refuse(text, "EUCLEAN", r"\b2 records")


@test("what is malformed is EINVAL, what is not there EOPNOTSUPP, as ever")
def _():
    lib.refuse("sha256:24=" + "00" * 32, "EINVAL")
    lib.refuse("sm3:10=" + "00" * 32, "EOPNOTSUPP")


@test("records that are removed one by one are counted")
def _():
    lib.write(lib.BINARY, "1\n")
    equal(lib.status()["foreign_records"], "3", "foreign_records")
    equal(lib.read(lib.STARTING_PCRS), b"unknown records=3\n", "starting_pcrs")


@test("another load finds these and what the module itself trimmed before")
def _():
    missing = 3 + int(lib.status()["records_trimmed"])
    lib.unload()
    with lib.KernelLog() as log:
        lib.load(parameters="guard=0")
        log.expect(rf"removed {missing} records")
    equal(lib.status()["base"], "unknown", "base")
    equal(lib.read(lib.STARTING_PCRS), f"unknown records={missing}\n".encode(), "starting_pcrs")


@test("the log says it once, and again if more is removed")
def _():
    with lib.KernelLog() as log:
        for path in (lib.STATUS, lib.STARTING_PCRS, lib.VIOLATIONS, lib.TRIM):
            lib.read(path)
        equal(lib.outcome_of(lib.read, lib.VERIFY), "EUCLEAN", "error of reading verify")
        check("ima_trim: somebody else" not in log.text(), "said again")
        lib.write(lib.ASCII, "1\n")
        lib.read(lib.STATUS)
        log.expect("somebody else removed")


@test("the lists are whole")
def _():
    lib.measure(2)
    lib.lists_agree()


@test("the values at what is now the head of the list are taken over, and all is well")
def _():
    # The archive has all that was removed; what came after that is in the list.
    archive = lib.History()
    removed = int(lib.status()["foreign_records"])
    lib.write(lib.STARTING_PCRS, archive.statement(removed))
    equal(lib.read(lib.STARTING_PCRS).decode(), archive.statement(removed), "starting_pcrs")
    status = lib.status()
    equal((status["base"], status["foreign_records"]), ("verified", "0"), "base and foreign_records")
    log = lib.history()
    lib.trim(log.tokens(log.total) + f" violations={len(log.violations(log.trimmed, log.total))}", log.total)


@test("records that go while flush takes others out of the hash table: what is left is told, and the next flush frees it")
def _():
    if not lib.has_htable():
        return
    found = {}
    for attempt in range(ATTEMPTS):
        lib.measure(MANY)
        log = lib.history()
        point = log.total - 5
        violations = len(log.violations(log.trimmed, point))
        with lib.KernelLog() as kernel:
            lib.write(lib.TRIM, f"{log.tokens(point)} violations={violations} flush")
            # The worker begins some time after the request.
            time.sleep(attempt % 8 * 0.0002)
            lib.write(lib.ASCII, "1\n")
            equal(lib.status()["foreign_records"], "1", "foreign_records")
            kept = re.search(r"somebody else removed records meanwhile: (\d+) trimmed records are kept", kernel.text())
        equal(lib.restore(log.statement(point + 1))[0], None, "error of the restore")
        freed = int(lib.status()["bytes_freed"])
        log.sync()
        equal(lib.request(f"{log.tokens(log.trimmed)} flush").result, "nothing", "result of the next flush")
        freed = int(lib.status()["bytes_freed"]) - freed
        found[bool(kept)] = found.get(bool(kept), 0) + 1
        lib.invariant()
        if kept:
            check(freed >= 128 * int(kept[1]), f"the next flush freed {freed} bytes of {kept[1]} records")
            break
    lib.ksft.print_msg(f"whether flush was interrupted: {found}")
    check(found.get(True), f"it never happened during the sweep: {found}")


@test("the guard keeps the kernel's own trim away")
def _():
    lib.measure(3)
    before = lib.snapshot()
    lib.reload()
    equal(lib.outcome_of(lib.write, lib.ASCII, "1\n"), "EBUSY", "error of the kernel's own trim")
    equal(lib.read(lib.BINARY), before[lib.BINARY], "list")
    equal(lib.status()["foreign_records"], "0", "foreign_records")
    lib.invariant()


lib.main()
