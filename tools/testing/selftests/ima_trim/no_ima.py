#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""A kernel whose IMA was not initialised, as a crash kernel's with ima=off: the module is not loaded."""

import os

import ima_trim_lib as lib
from ima_trim_lib import check, equal, test


@test("there is a TPM, and IMA has no list")
def _():
    check(not os.path.exists(lib.BINARY), "there is a list: was the kernel started with ima=off elfcorehdr=...?")
    check(os.path.exists(lib.TPM), "there is no TPM")


@test("ENODEV, and the log says that IMA is not initialised")
def _():
    for _ in range(2):
        with lib.KernelLog() as log:
            equal(lib.outcome_of(lib.load), "ENODEV", "error")
            log.expect("ima_trim: .*not initialised")
    check(not lib.loaded() and not os.path.exists(lib.DIRECTORY), "something is left")


lib.main(policy=False, module=False)
