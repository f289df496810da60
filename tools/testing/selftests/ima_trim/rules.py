#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Rules of the policy that make no evidence of what the module has measured: it says so, and goes on.

A stock kernel takes a policy once per boot, so each rule has a guest of its own: ima_trim_rule=<one of RULES> on the
kernel's command line says which.
"""

import re

import ima_trim_lib as lib
from ima_trim_lib import check, equal, test

RULE = "measure func=CRITICAL_DATA label=ima_trim"
# The rule, what the log says of it, and the PCR and template of the records that it makes, if it makes some.
RULES = {
    "none": ("", "no rule of the IMA policy", None),
    "other": (f"{RULE}_test", "no rule of the IMA policy", None),
    "user": (f"{RULE} uid=1000", "no rule of the IMA policy", None),
    "pcr11": (f"{RULE} pcr=11", "PCR 11", (11, b"ima-buf")),
    "pcr40": (f"{RULE} pcr=40", "PCR 40", (40, b"ima-buf")),
    "template": (f"{RULE} template=ima-ng", "template", (10, b"ima-ng")),
}
(NAME,) = re.findall(r"\bima_trim_rule=(\w+)", lib.read("/proc/cmdline").decode()) or ["none"]
rule, why, made = RULES[NAME]
lib.POLICY += f"{rule}\n" if rule else ""


def evidence():
    """What status says of it."""
    status = lib.status()
    return status["evidence"], status["measured"], status["evidence_failed"]


def trimmed():
    """Trims all but one record, and gives those that are new."""
    lib.measure(3)
    log = lib.history()
    violations = len(log.violations(log.trimmed, log.total - 1))
    pcrs = [10]
    before = log.total
    outcome = lib.trim(f"{log.tokens(log.total - 1, pcrs=pcrs)} violations={violations}", log.total - 1)
    equal(outcome.result, "trimmed", "result")
    log.sync()
    return log.records[before:]


@test(f"{NAME}: loaded with the policy in place, and the log says why there is no evidence")
def _():
    if lib.loaded():
        lib.unload()
    with lib.KernelLog() as kernel:
        lib.load()
        kernel.expect(f"ima_trim: .*{why}")
    equal(evidence(), ("none", "0", "0"), "evidence=, measured= and evidence_failed=")


@test(f"{NAME}: trims go through, are audited, and do not count as measured; the log does not repeat itself")
def _():
    with lib.AuditLog() as audit, lib.KernelLog() as kernel:
        records = trimmed()
        said = kernel.text()
        equal(len(audit.records("ima_trim")), 1, "audit records")
    equal(evidence(), ("none", "0", "0"), "evidence=, measured= and evidence_failed=")
    check(not re.search(f"ima_trim: .*{why}.*label=ima_trim", said), f"the log says it again: {said!r}")
    # What was not measured of the load is offered again, and may be known.
    trims = [record for record in records if record.hint == b"trim"]
    equal([(record.pcr, record.template) for record in trims], [made] if made else [], "records of the trim")


@test(f"{NAME}: and again, after the module was loaded anew")
def _():
    lib.reload()
    equal(evidence(), ("none", "0", "0"), "evidence=, measured= and evidence_failed=")
    trimmed()
    equal(evidence(), ("none", "0", "0"), "evidence=, measured= and evidence_failed=")
    lib.lists_agree()
    lib.invariant()


@test("evmctl: the records trimmed and those left match the TPM")
def _():
    lib.measure()
    equal(lib.evmctl(lib.history().records), 0, "exit status")


lib.main()
