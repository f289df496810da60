#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""PCRs that something else extended before IMA did: theirs alone are the records that are not trimmed."""

import hashlib

import ima_trim_lib as lib
from ima_trim_lib import equal, test


@test("before any record of PCR 12: base=verified, whatever PCR 12 has")
def _():
    lib.tpm_extend(12)
    lib.measure(4)
    equal(lib.status()["base"], "verified", "base")
    history = lib.history()
    violations = len(history.violations(history.trimmed, history.total - 2))
    lib.trim(history.tokens(history.total - 2) + f" violations={violations}")


@test("with a record of PCR 12: base=unverified")
def _():
    with lib.KernelLog() as log:
        lib.measure(pcr=12)
        equal(lib.status()["base"], "verified", "base, as of the last look")
        equal(lib.pairs(lib.read(lib.VERIFY))["sha256:12"], "mismatch", "verify")
        equal(lib.status()["base"], "unverified", "base")
        log.expect(r"PCR 12\b")
    lib.measure(2)


@test("values of PCR 12: EUCLEAN, and the log says why")
def _():
    history = lib.history()
    for text in (
        history.tokens(history.total, pcrs=[12]), history.tokens(history.trimmed, pcrs=[12]),
        f"sha256:12={lib.tpm_value('sha256', 12).hex()}",
        history.tokens(history.total, pcrs=[10, 12]),
    ):
        lib.refuse(text, "EUCLEAN", r"PCR 12\b.*not verified")


@test("values of PCR 10 after a record of PCR 12: EUCLEAN")
def _():
    history = lib.history()
    lib.refuse(history.tokens(history.total), "EUCLEAN", r"PCR 12\b.*not verified")


@test("values of PCR 10 before the record of PCR 12: trimmed")
def _():
    history = lib.history()
    at = next(number for number, record in enumerate(history.records, 1) if record.pcr == 12) - 1
    text = history.tokens(at)
    outcome = lib.request(text)
    equal((outcome.error, outcome.records), (None, at - history.trimmed), f"outcome {outcome}")
    equal(lib.request(text).result, "nothing", "result of a repeat")
    starting, records = lib.look()
    lib.account(lib.history(), starting)
    equal(records[0].pcr, 12, "PCR of the first record left")
    values = lib.replay(starting.values, records)
    for bank in lib.banks():
        equal(values[bank, 10], lib.tpm_value(bank, 10), f"{bank}:10")


@test("a PCR without records that something extended: EUCLEAN; one at its reset value matches")
def _():
    lib.tpm_extend(14)
    history = lib.history()
    at = history.tokens(history.trimmed)
    for value in ("00" * 32, lib.tpm_value("sha256", 14).hex()):
        lib.refuse(f"{at} sha256:14={value}", "EUCLEAN", r"no record.* extends PCR 14\b.*leave")
    equal(lib.request(f"{at} sha256:15={'00' * 32}").result, "nothing", "result with PCR 15 at its reset value")


@test("the base of PCR 12 is written: all is verified, and records of PCR 12 are trimmed")
def _():
    bank = "sha256"
    base = lib.reset_value(bank, 12)
    base = hashlib.new(bank, base + hashlib.new(bank, b"not a record").digest()).hexdigest()
    text = lib.read(lib.STARTING_PCRS).decode()
    for wrong in (text, f"{bank}:12={'00' * 32}\n{text}"):
        equal(lib.outcome_of(lib.write, lib.STARTING_PCRS, wrong), "EKEYREJECTED", "error")
        equal(lib.status()["base"], "unverified", "base")
    equal(lib.pairs(lib.read(lib.VERIFY))[f"{bank}:12"], "mismatch", "verify")

    lib.write(lib.STARTING_PCRS, f"{bank}:12={base}\n{text}")
    equal(lib.status()["base"], "verified", "base")
    equal(lib.pairs(lib.read(lib.STARTING_PCRS))[f"{bank}:12"], base, "starting value of PCR 12")
    equal(lib.pairs(lib.read(lib.VERIFY))[f"{bank}:12"], "ok", "verify")
    lib.measure(pcr=12)
    records = lib.count()
    outcome = lib.request(f"{bank}:12={lib.tpm_value(bank, 12).hex()}")
    equal((outcome.error, outcome.records), (None, records), f"outcome {outcome}")
    equal(lib.pairs(lib.read(lib.STARTING_PCRS))[f"{bank}:12"], lib.tpm_value(bank, 12).hex(), "starting value")


lib.main()
