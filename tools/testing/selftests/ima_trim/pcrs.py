#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Records of several PCRs: where values of more than one of them have their common point."""

import ima_trim_lib as lib
from ima_trim_lib import check, equal, test


def measure(*pcrs):
    """Appends one record for each of these PCRs."""
    for pcr in pcrs:
        lib.measure(pcr=pcr)
    lib.history()


@test("values of one PCR name the earliest record with them, not a later one of another PCR")
def _():
    history, at = lib.clear()
    measure(10, 11, 11, 10)
    lib.trim(history.tokens(at + 3), at + 1)
    lib.trim(history.tokens(at + 4, pcrs=[11]), at + 3)


@test("values of two PCRs name the earliest record after which both hold")
def _():
    history, at = lib.clear()
    measure(10, 11, 10, 10, 11)
    lib.trim(history.tokens(at + 2, pcrs=[10, 11]), at + 2)
    lib.trim(history.tokens(at + 5, pcrs=[11, 10]), at + 5)


@test("two PCRs of which one was extended first")
def _():
    history, at = lib.clear()
    measure(11, 11, 10, 10, 11)
    lib.trim(history.tokens(at + 4, pcrs=[10]) + " " + history.tokens(at + 4, pcrs=[11]), at + 4)


@test("two PCRs with no common point: ENOENT")
def _():
    history, at = lib.clear()
    measure(10, 11, 10)
    # PCR 10 has its second value only after PCR 11 lost the one that it started with.
    text = history.tokens(at + 3, pcrs=[10]) + " " + history.tokens(at, pcrs=[11])
    lib.refuse(text, "ENOENT", "match")
    lib.trim(history.tokens(at + 3, pcrs=[10, 11]), at + 3)


@test("a value equal to the starting value holds until the PCR is extended")
def _():
    history, at = lib.clear()
    measure(10, 10, 11, 10)
    lib.trim(history.tokens(at + 2, pcrs=[10]) + " " + history.tokens(at, pcrs=[11]), at + 2)


@test("starting values of both PCRs: nothing to trim")
def _():
    history, at = lib.clear()
    measure(10, 11)
    equal(lib.trim(history.tokens(at, pcrs=[10, 11]), at).result, "nothing", "result")


@test("starting value of one PCR alone: nothing to trim, whatever others did")
def _():
    history, at = lib.clear()
    measure(10, 10)
    equal(lib.trim(history.tokens(at, pcrs=[11]), at).result, "nothing", "result")


@test("three PCRs in different banks")
def _():
    history, at = lib.clear()
    measure(12, 10, 11, 10, 12)
    text = " ".join([
        history.tokens(at + 4, ["sha1"], [10]), history.tokens(at + 4, ["sha256"], [11]),
        history.tokens(at + 4, ["sha512"], [12]),
    ])
    lib.trim(text, at + 4)


@test("a PCR that nothing ever extended, at its reset value")
def _():
    history, at = lib.clear()
    measure(10)
    zeros = "sha256:16=" + "00" * 32
    ones = "sha1:17=" + "ff" * 20
    lib.refuse(history.tokens(at + 1) + " sha1:17=" + "00" * 20, "ENOENT", "match")
    lib.trim(f"{history.tokens(at + 1)} {zeros} {ones}", at + 1)


def quoted(last):
    """The values that the TPM has of PCRs 0 to that one and of IMA's own, as an agent has them quoted, and of the others those
    that are not at their reset value."""
    values = {pcr: lib.tpm_value("sha256", pcr) for pcr in range(last + 1)}
    moved = [pcr for pcr, value in values.items() if any(value) and pcr < lib.MEASURE_PCR]
    return values, moved


@test("PCRs that no record extends may be named as an agent has them quoted, if they are at their starting value")
def _():
    history, at = lib.clear()
    measure(10, 10)
    values, moved = quoted(lib.MEASURE_PCR)
    lib.ksft.print_msg(f"PCRs that something else has extended: {moved}")
    text = " ".join(f"sha256:{pcr}={value.hex()}" for pcr, value in values.items() if pcr not in moved)
    check(text.count("=") > 1, "all PCRs were extended by something else")
    lib.trim(text, at + 2)


@test("a PCR that no record and something else extends: EUCLEAN, and the log says to leave it out")
def _():
    history, at = lib.clear()
    measure(10, 10)
    for bank in lib.banks():
        lib.tpm_extend(9, bank)
    _, moved = quoted(lib.MEASURE_PCR)
    for pcr in moved:
        lib.refuse(f"{history.tokens(at + 2)} sha256:{pcr}={lib.tpm_value('sha256', pcr).hex()}", "EUCLEAN",
                   rf"no record.* extends PCR {pcr}\b.*leave")
        lib.refuse(f"{history.tokens(at + 2)} sha256:{pcr}={'00' * 32}", "EUCLEAN", rf"PCR {pcr}\b.*leave")
    check(9 in moved, f"PCR 9 is not among {moved}")
    lib.trim(history.tokens(at + 2), at + 2)


@test("starting_pcrs lists the PCRs that trimmed records extended, in order")
def _():
    lib.clear()
    keys = [line.split("=")[0] for line in lib.read(lib.STARTING_PCRS).decode().splitlines()]
    expected = [f"{bank}:{pcr}" for bank in sorted(lib.banks()) for pcr in (10, 11, 12)]
    equal(keys, expected + ["records", "violations", "trims"], "keys")


@test("records of a PCR that no TPM has are trimmed with the others and counted")
def _():
    history, at = lib.clear()
    measure(10, 30, 10)
    equal(lib.trim(history.tokens(at + 1), at + 1).records, 1, "records before it")
    equal(lib.trim(history.tokens(at + 3), at + 3).records, 2, "records with it")
    check(b":30=" not in lib.read(lib.STARTING_PCRS), "starting_pcrs lists PCR 30")


@test("violations extend IMA's own PCR, whatever the rule says")
def _():
    history, at = lib.clear()
    lib.violate_tomtou(pcr=11)
    history.sync()
    equal([record.pcr for record in history.records[at:]], [11, 10], "PCRs of measurement and violation")
    lib.trim(history.tokens(at + 1, pcrs=[11]), at + 1)
    lib.trim(history.tokens(at + 2, pcrs=[10, 11]) + " violations=1", at + 2)


@test("evmctl: the records trimmed and those left match the TPM in all PCRs")
def _():
    equal(lib.evmctl(lib.history().records), 0, "exit status")


lib.main()
