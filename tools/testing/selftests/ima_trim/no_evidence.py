#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""With a policy that has no rule for it, a trim is not measured, which is no failure. It is audited as ever."""

import ima_trim_lib as lib
from ima_trim_lib import equal, test


@test("nothing is appended, and neither measured= nor evidence_failed= counts anything")
def _():
    lib.measure(3)
    log = lib.history()
    text = log.tokens(log.total) + f" violations={len(log.violations(log.trimmed, log.total))}"
    with lib.AuditLog() as audit:
        lib.trim(text, log.total)
        equal(lib.count(), 0, "records")
        (record,) = audit.records("ima_trim")
    equal(record["cause"], "trim", "cause in the audit record")
    status = lib.status()
    equal((status["evidence"], status["measured"], status["evidence_failed"]), ("none", "0", "0"), "evidence in status")


lib.main()
