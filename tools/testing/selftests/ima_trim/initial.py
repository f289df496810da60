#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""What the module says before anything was trimmed; and that the tests' own replay is right."""

import os

import ima_trim_lib as lib
from ima_trim_lib import cases, check, equal, test

KEYS = [
    "version", "banks", "base", "records", "records_trimmed", "violations_trimmed", "trims", "foreign_records",
    "guard", "hold_ns_last", "hold_ns_max", "bytes_freed", "measured", "evidence_failed", "instance", "evidence", "signatures",
]


@test("the lists agree with each other and with their template data")
def _():
    lib.measure(3)
    lib.measure(2, pcr=11)
    lib.measure(1, pcr=30)
    lib.violate_tomtou()
    lib.violate_open_writers()
    lib.measure(1)
    records = lib.lists_agree()
    equal(sum(record.violation for record in records), 2, "violations in the list")
    equal({record.pcr for record in records}, {10, 11, 30}, "PCRs in the list")


@test("the tests' own replay from the reset values gives the values of the TPM")
def _():
    values = lib.replay({}, lib.parse(lib.read(lib.BINARY)))
    equal({pcr for _, pcr in values}, {10, 11}, "PCRs that were extended")
    for (bank, pcr), value in values.items():
        equal(value, lib.tpm_value(bank, pcr), f"{bank}:{pcr}")


@test("the tests' own replay without one record does not")
def _():
    values = lib.replay({}, lib.parse(lib.read(lib.BINARY))[:-1])
    for bank in lib.banks():
        check(values[bank, 10] != lib.tpm_value(bank, 10), f"{bank}:10 matches without the last record")


@test("evmctl finds that the list matches the TPM")
def _():
    equal(lib.evmctl(lib.parse(lib.read(lib.BINARY))), 0, "exit status")


@test("evmctl finds that a list without its first record does not")
def _():
    check(lib.evmctl(lib.parse(lib.read(lib.BINARY))[1:]) != 0, "evmctl accepts a list without its head")


@cases("mode", [
    (name, name, bits)
    for name, bits in (("trim", 0o600), ("starting_pcrs", 0o640), ("verify", 0o440), ("violations", 0o440),
                       ("status", 0o440))
])
def _(name, expected):
    equal(oct(lib.mode(os.path.join(lib.DIRECTORY, name))), oct(expected), f"mode of {name}")
    info = os.stat(os.path.join(lib.DIRECTORY, name))
    equal((info.st_uid, info.st_gid), (0, 0), f"owner of {name}")


@test("the directory has these files and no others")
def _():
    equal(sorted(os.listdir(lib.DIRECTORY)), ["starting_pcrs", "status", "trim", "verify", "violations"], "files")


@test("status has the keys of the contract, in its order")
def _():
    keys = [line.split(b"=")[0].decode() for line in lib.read(lib.STATUS).splitlines()]
    equal(keys, KEYS, "keys")


@test("status gives the state before any trim")
def _():
    status = lib.status()
    equal(status["version"], "2", "version")
    equal(status["base"], "verified", "base")
    equal(set(status["banks"].split(",")), set(lib.banks()), "banks")
    equal(int(status["records"]), lib.count(), "records")
    equal(status["guard"], "on", "guard")
    equal((status["evidence"], status["signatures"]), ("none", "off"), "evidence and signatures, without a rule")
    check(lib.re.fullmatch("[0-9a-f]{32}", status["instance"]), f"instance={status['instance']}")
    for key in KEYS[4:-3]:
        if key != "guard":
            equal(status[key], "0", key)


@test("records in status grow with the list")
def _():
    before = int(lib.status()["records"])
    lib.measure(2)
    equal(int(lib.status()["records"]), before + 2, "records")


@test("starting_pcrs gives the reset values and zeros")
def _():
    expected = [f"{bank}:10={'00' * lib.banks()[bank]}" for bank in sorted(lib.banks())]
    expected += ["records=0", "violations=0", "trims=0"]
    equal(lib.read(lib.STARTING_PCRS).decode().splitlines(), expected, "starting_pcrs")


@test("violations is empty")
def _():
    equal(lib.read(lib.VIOLATIONS), b"", "violations")


@test("trim reads empty before any request")
def _():
    equal(lib.read(lib.TRIM), b"", "trim")


@test("starting values and list give the values of the TPM")
def _():
    lib.invariant()


lib.main()
