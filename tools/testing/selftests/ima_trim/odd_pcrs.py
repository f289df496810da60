#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Rules that have IMA extend PCRs which prove nothing, or which the TPM refuses it: the log warns of each, once.

Has to be the last of its boot: a record of PCR 17 is in no TPM.
"""

import re

import ima_trim_lib as lib
from ima_trim_lib import cases, check, equal, test


def warnings(text):
    """The PCRs that the log warns of: their numbers, and None for those above 23."""
    found = [int(number) for number in re.findall(r"ima_trim: .*records extend PCR (\d+)", text)]
    return found + [None] * len(re.findall(r"ima_trim: .*a PCR above 23", text))


@cases("the first record is warned of when it is replayed, and none after it", [
    ("PCR 16", 16, 16), ("PCR 23", 23, 23), ("PCR 30", 30, None)])
def _(pcr, warned):
    with lib.KernelLog() as log:
        lib.measure(2, pcr=pcr)
        lib.read(lib.STATUS)
        equal(warnings(log.text()), [], "warned of before there was a replay")
        lib.read(lib.VERIFY)
        equal(warnings(log.text()), [warned], "warned of by a replay")
        lib.measure(2, pcr=pcr)
        lib.read(lib.VERIFY)
        equal(warnings(log.text()), [], "warned of by another replay")


@test("records of PCRs that exist are trimmed, and replay")
def _():
    lib.measure(2)
    log = lib.history()
    text = log.tokens(log.total, pcrs=[10, 16, 23]) + f" violations={len(log.violations(log.trimmed, log.total))}"
    with lib.KernelLog() as kernel:
        lib.trim(text, log.total)
        equal(warnings(kernel.text()), [], "warned of")


@test("and each again after the module was loaded anew, and those by a request")
def _():
    lib.reload()
    lib.measure(1, pcr=16)
    lib.measure(1, pcr=23)
    lib.measure(1, pcr=30)
    lib.measure()
    log = lib.history()
    with lib.KernelLog() as kernel:
        lib.trim(log.tokens(log.total), log.total)
        equal(sorted(warnings(kernel.text()), key=str), [16, 23, None], "warned of")


@test("PCR 17, which the TPM refuses: warned of once, and what comes after the first record of it is not trimmed")
def _():
    lib.measure(3)
    before = lib.history().total
    lib.measure(2, pcr=17)
    lib.measure(2)
    log = lib.history()
    with lib.KernelLog() as kernel:
        fields = lib.pairs(lib.read(lib.VERIFY))
        equal(warnings(kernel.text()), [17], "warned of")
        equal({fields[f"{bank}:17"] for bank in lib.banks()}, {"mismatch"}, "verify of PCR 17")
        equal({fields[f"{bank}:10"] for bank in lib.banks()}, {"ok"}, "verify of PCR 10")
        lib.read(lib.VERIFY)
        equal(warnings(kernel.text()), [], "warned of again")
    lib.refuse(log.tokens(log.total), "EUCLEAN", r"PCR 17\b")
    outcome = lib.request(log.tokens(before))
    equal((outcome.error, outcome.records), (None, before - log.trimmed), f"outcome {outcome}")
    check(b":17=" not in lib.read(lib.STARTING_PCRS), "starting_pcrs lists PCR 17")


lib.main()
