#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""With certificates built in, nothing is changed that leaves no evidence: EACCES, and nothing is cut.

A stock kernel takes a policy once per boot, so each reason has a guest of its own: ima_trim_rule=<one of RULES> on the
kernel's command line says which. What the lists of the last one replay to is not what the TPM has any more.
"""

import re

import ima_trim_lib as lib
import signed_lib as signed
from ima_trim_lib import check, equal, test

RULE = lib.EVIDENCE_RULE.strip()
# The rule, what the log says of an event, and whether the rule makes a record of it.
RULES = {
    "none": ("", "no rule of the IMA policy", False),
    "user": (f"{RULE} uid=1000", "no rule of the IMA policy", False),
    "pcr11": (f"{RULE} pcr=11", "PCR 11", True),
    "pcr40": (f"{RULE} pcr=40", "PCR 40", True),
    "template": (f"{RULE} template=ima-ng", "template", True),
    "tpm": (RULE, None, True),
    "extended": (RULE, None, True),
}
(NAME,) = re.findall(r"\bima_trim_rule=(\w+)", lib.read("/proc/cmdline").decode()) or ["tpm"]
rule, why, made = RULES[NAME]


def gone():
    """How many records are gone, as the module and as the kernel says it."""
    status = lib.status()
    return int(status["records_trimmed"]), int(status["foreign_records"]), status["trims"]


def not_cut(data, pattern, errors=("EACCES",), write=lib.request):
    """Checks that a request that was signed is refused for this reason, and that no record goes and no value changes."""
    before = gone(), lib.read(lib.STARTING_PCRS), [record.raw for record in lib.parse(lib.read(lib.BINARY))]
    with lib.KernelLog() as kernel:
        outcome = write(data)
        kernel.expect(pattern)
    error = outcome.error if write is lib.request else outcome[0]
    check(error in errors, f"error {error}, expected {' or '.join(errors)}")
    now = [record.raw for record in lib.parse(lib.read(lib.BINARY))][:len(before[2])]
    equal((gone(), lib.read(lib.STARTING_PCRS), now), before, "what is gone, starting values, and records")


if NAME not in ("tpm", "extended"):
    @test(f"{NAME}: it is loaded, and the log says why there is no evidence")
    def _():
        with lib.KernelLog() as kernel:
            lib.load(signed.MODULE)
            kernel.expect(f"ima_trim: .*{why}")
        status = lib.status()
        equal((status["evidence"], status["signatures"]), ("none", "required"), "evidence= and signatures=")

    @test(f"{NAME}: what was signed is refused, as the load is not measured")
    def _():
        log, text = signed.matching()
        message = signed.sign(text)
        for _ in range(2):
            not_cut(message, "ima_trim: trim refused: the event load is not measured")
        not_cut(signed.sign(signed.own(log.tokens(log.trimmed) + " flush")), "the event load is not measured")

    @test(f"{NAME}: so are starting values")
    def _():
        statement = signed.own(lib.read(lib.STARTING_PCRS).decode())
        not_cut(signed.sign(statement), "ima_trim: starting values refused: .*not measured", write=lib.restore)

    @test(f"{NAME}: a dry run is none the worse for it")
    def _():
        _, text = signed.matching()
        for data in (f"{text} dry-run", signed.sign(f"{text} dry-run")):
            outcome = lib.request(data)
            equal((outcome.error, outcome.result), (None, "dry-run"), "outcome")

    @test(f"{NAME}: the list is whole, and replays to what the TPM has")
    def _():
        equal(bool(lib.events(lib.history().records, "load")), NAME in ("pcr11", "pcr40"), "a record of the load")
        lib.lists_agree()
        lib.invariant()
else:
    @test("with evidence it trims")
    def _():
        lib.load(signed.MODULE)
        log, text = signed.matching()
        signed.trim(text, point=log.total - 1)

if NAME == "extended":
    @test("a PCR that something else extends: what was signed before it is not carried out")
    def _():
        log, text = signed.matching()
        message = signed.sign(text)
        lib.tpm_extend(lib.MEASURE_PCR)
        before = lib.count()
        not_cut(message, "ima_trim: trim refused: .*PCR 10")
        equal(lib.count(), before + 1, "records, with that of the trim")
        equal(lib.look()[1][0].raw, log.records[log.trimmed].raw, "the first record")

if NAME == "tpm":
    @test("a TPM that does not take the extend: nothing is cut, whatever it answers afterwards")
    def _():
        lib.ask_test_module("tpm", "N")
        lib.ask_test_module("tpm", "Y")
        log, text = signed.matching()
        message = signed.sign(text)
        before = lib.count()
        lib.ask_test_module("tpm", "N")
        # IMA has the record, and goes on.
        not_cut(message, "ima_trim: trim refused: .*(TPM|PCR)", ("EACCES", "EIO"))
        equal(lib.count(), before + 1, "records, with that of the trim")
        lib.ask_test_module("tpm", "Y")

    @test("and with a TPM that answers again: the event is in the list, and not in the TPM")
    def _():
        log, text = signed.matching()
        equal([name for name, _ in lib.events(log.records, "trim")], ["trim", "trim"], "events")
        for point in (log.total - 1, log.trimmed + 1):
            not_cut(signed.sign(signed.trim_text(log, point)), "ima_trim: trim refused: .*PCR 10")
        check("mismatch" in lib.pairs(lib.read(lib.VERIFY)).values(), "verify says nothing of it")


signed.main(load=False, rule=f"{rule}\n" if rule else "")
