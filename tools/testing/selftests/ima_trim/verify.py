#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""verify: what the starting values and the list say is what the TPM has, at any moment."""

import os
import select

import ima_trim_lib as lib
from ima_trim_lib import check, equal, test

READS = lib.tries(1000)


def verdict():
    """What `verify` says: the lines of PCRs, the number of records, and that of violations."""
    fields = lib.pairs(lib.read(lib.VERIFY))
    return fields, int(fields.pop("records")), int(fields.pop("violations"))


def expected(pcrs):
    """That all of these PCRs are as they should be, in the order of the file."""
    return [(f"{bank}:{pcr}", "ok") for bank in sorted(lib.banks()) for pcr in sorted(pcrs)]


@test("all banks are right, and the records and violations of the list are counted")
def _():
    lib.measure(3)
    lib.violate_tomtou()
    log = lib.history()
    fields, records, violations = verdict()
    pcrs = {record.pcr for record in log.records if record.pcr < 24}
    equal(list(fields.items()), expected(pcrs), "PCRs")
    equal(records, lib.count(), "records")
    equal(violations, len(log.violations(log.trimmed, log.total)), "violations")


@test("it counts what is in the list, not what was trimmed")
def _():
    lib.clear()
    lib.measure(2)
    lib.violate_open_writers()
    fields, records, violations = verdict()
    equal(set(fields.values()), {"ok"}, "PCRs")
    equal((records, violations), (lib.count(), 1), "records and violations")


@test("a PCR is there from its first record on, and stays when that is trimmed")
def _():
    before = verdict()[0]
    check("sha256:12" not in before, "PCR 12 is there before any record extends it")
    lib.measure(pcr=12)
    equal(list(verdict()[0].items()), expected({int(key.split(":")[1]) for key in before} | {12}), "PCRs")
    lib.clear()
    check("sha256:12" in verdict()[0], "PCR 12 is gone")


@test("without records the starting values are the TPM's")
def _():
    lib.clear()
    fields, records, violations = verdict()
    equal(set(fields.values()), {"ok"}, "PCRs")
    equal((records, violations), (lib.count(), 0), "records and violations")


@test("it can be read while others read the list")
def _():
    with lib.held_open(lib.BINARY, os.O_RDONLY):
        equal(set(verdict()[0].values()), {"ok"}, "PCRs")


@test(f"{READS} times while records arrive as fast as IMA can append them: never a mismatch")
def _():
    asked, ask = os.pipe()

    def appender():
        appended = 0
        while not select.select([asked], [], [], 0)[0]:
            lib.measure(2)
            lib.measure(1, pcr=11)
            lib.violate_open_writers()
            appended += 5
        return appended

    child = lib.Child(appender)
    seen = set()
    most = 0
    try:
        for number in range(READS):
            fields, records, _ = verdict()
            wrong = [key for key, value in fields.items() if value != "ok"]
            check(not wrong, f"mismatch of {wrong} at read {number}")
            seen.add(records)
            most = max(most, records)
            if records > 100:
                log = lib.history()
                count = len(log.violations(log.trimmed, log.total))
                equal(lib.request(log.tokens(log.total) + f" violations={count}").error, None, "error of a trim")
    finally:
        os.write(ask, b"x")
        appended = child.result()
        os.close(asked)
        os.close(ask)
    lib.ksft.print_msg(f"{appended} records arrived, at most {most} were in the list")
    check(len(seen) > 20, f"the list hardly moved: {len(seen)} lengths seen")
    lib.invariant()


lib.main()
