#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Without a TPM no PCR values name a point of the list: the module is not loaded."""

import os

import ima_trim_lib as lib
from ima_trim_lib import check, equal, test


@test("IMA has a list, and no TPM")
def _():
    check(os.path.exists(lib.BINARY), "there is no list")
    check(not os.path.exists(lib.TPM), "there is a TPM")


@test("ENODEV, and the log says that there is no TPM")
def _():
    before = lib.read(lib.ASCII)
    for _ in range(2):
        with lib.KernelLog() as log:
            equal(lib.outcome_of(lib.load), "ENODEV", "error")
            log.expect("ima_trim: .*no TPM")
    check(not lib.loaded() and not os.path.exists(lib.DIRECTORY), "something is left")
    equal(lib.read(lib.ASCII), before, "list")


@test("the list goes on")
def _():
    lib.load_policy()
    before = lib.count()
    lib.measure(2)
    equal(lib.count(), before + 2, "records")
    os.close(os.open(lib.ASCII, os.O_RDWR))


lib.main(policy=False, module=False)
