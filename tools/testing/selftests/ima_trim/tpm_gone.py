#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""A TPM that does not answer any more: what needs it says so, and the rest goes on.

Its driver is unbound, and IMA keeps the chip that it found at boot: this has to be the last test of one.
"""

import os

import ima_trim_lib as lib
from ima_trim_lib import check, equal, test


@test("with the TPM verify can be read, and the starting values be stated again")
def _():
    lib.measure(3)
    check("ok" in lib.pairs(lib.read(lib.VERIFY)).values(), "verify")
    equal(lib.restore(lib.read(lib.STARTING_PCRS))[0], None, "error of stating what is")


@test("without it: EIO for both, the log says what the TPM did not give, and nothing changes")
def _():
    device = os.path.realpath(f"{lib.TPM}/device")
    text = lib.read(lib.STARTING_PCRS)
    before = lib.snapshot()
    lib.write(f"{device}/driver/unbind", os.path.basename(device))
    for function, arguments in ((lib.read, (lib.VERIFY,)), (lib.write, (lib.STARTING_PCRS, text))):
        with lib.KernelLog() as log:
            equal(lib.outcome_of(function, *arguments), "EIO", f"error of {function.__name__}")
            log.expect(r"TPM does not give the value of \w+:10")
    # The lists by bank are named after the banks that the kernel has now.
    for path in (lib.STATUS, lib.STARTING_PCRS, lib.VIOLATIONS, lib.BINARY):
        equal(lib.read(path), before[path], path)


@test("EUCLEAN for values of a PCR whose base is not known yet, since it cannot be")
def _():
    with lib.KernelLog() as log:
        equal(lib.request("sha256:9=" + "5a" * 32).error, "EUCLEAN", "error")
        log.expect("without the TPM's values")


@test("the module can be unloaded; it is loaded again, knows no base as records are gone, and trims nothing")
def _():
    lib.unload()
    with lib.KernelLog() as log:
        lib.load()
        log.expect(r"base=unknown\b")
    equal(lib.status()["base"], "unknown", "base")
    equal(lib.request("sha256:10=" + "5a" * 32).error, "EUCLEAN", "error")


lib.main()
