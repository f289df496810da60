#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""What a machine with certificates built into the module trims before a kexec, and saves for the time after it: see
signed_after.py."""

import ima_trim_lib as lib
import signed_lib as signed
from ima_trim_lib import check, equal, test


@test("all is trimmed, and the next kernel is loaded with what it will be told")
def _():
    check(not lib.carries_lists(), "this kernel carries its list over")
    lib.measure(3)
    lib.violate_tomtou()
    lib.measure(3)
    log = lib.history()
    text = signed.trim_text(log, log.total)
    message = signed.sign(text)
    lib.trim(text, log.total, message)
    # With the record of the trim that was the last one. Nothing is measured from here on.
    log = lib.history()
    equal(log.total, log.trimmed + 1, "records, with that of the trim")
    lib.load_kexec({
        "history": lib.read(lib.History.PATH), "trim": message, "instance": lib.status()["instance"].encode(),
        "starting_pcrs": log.statement(log.total).encode(),
    })
    equal(lib.history().total, log.total, "records")


signed.main()
