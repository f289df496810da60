#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""PCR 10 was extended by somebody else before the module was loaded: nothing is trimmed."""

import ima_trim_lib as lib
from ima_trim_lib import equal, test


@test("with nothing but records in PCR 10: base=verified")
def _():
    lib.measure(3)
    lib.load()
    equal(lib.status()["base"], "verified", "base")
    lib.history()
    lib.unload()


@test("PCR 10 extended behind IMA's back: base=unverified, and the log names the PCR")
def _():
    lib.tpm_extend(10)
    with lib.KernelLog() as log:
        lib.load()
        log.expect(r"PCR 10\b.*(verified|TPM)")
    equal(lib.status()["base"], "unverified", "base")
    equal(lib.status()["foreign_records"], "0", "foreign_records")


@test("EUCLEAN for any trim, and the log says why")
def _():
    history = lib.history()
    # A point that the list has, one it has not, the TPM's own values, and the starting values.
    for text in (
        history.tokens(history.total - 1), "sha256:10=" + "5a" * 32,
        f"sha256:10={lib.tpm_value('sha256', 10).hex()}", history.tokens(0), history.tokens(history.total - 1) + " dry-run",
    ):
        lib.refuse(text, "EUCLEAN", r"PCR 10\b.*not verified")


@test("what is malformed is EINVAL as ever")
def _():
    lib.refuse("sha256:10=", "EINVAL")


@test("starting_pcrs gives the reset values that are not verified")
def _():
    starting, records = lib.look()
    equal((starting.records, starting.trims), (0, 0), "records and trims")
    equal(len(records), lib.count(), "records in the list")


@test("more records do not make it verified")
def _():
    lib.measure(5)
    equal(lib.status()["base"], "unverified", "base")
    history = lib.history()
    lib.refuse(history.tokens(history.total), "EUCLEAN")
    lib.unload()
    lib.load()
    equal(lib.status()["base"], "unverified", "base after another load")


lib.main(module=False)
