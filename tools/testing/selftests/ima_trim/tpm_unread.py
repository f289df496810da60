#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""A TPM that cannot be read when the module is loaded, before anything was trimmed, and that can be read later.

The TPM is taken from its driver as other software of a machine may do it: another locality is in use. Its registers are
reached by /dev/mem, for which the kernel needs iomem=relaxed.
"""

import contextlib
import mmap
import os
import time

import ima_trim_lib as lib
from ima_trim_lib import check, equal, test

# Where locality 1 of a TPM with the TIS interface is on a PC; and TPM_ACCESS there, with its bits.
LOCALITY = 0xfed41000
REQUEST_USE = 0x02
ACTIVE_LOCALITY = 0x20
# Values that no record has.
NOWHERE = "sha256:10=" + "5a" * 32


@contextlib.contextmanager
def taken_tpm():
    """As long as it lasts the TPM's driver does not get its locality, and each command of the kernel fails soon."""
    # Without O_SYNC it would be mapped as memory that can be cached.
    fd = os.open("/dev/mem", os.O_RDWR | os.O_SYNC)
    with mmap.mmap(fd, mmap.PAGESIZE, offset=LOCALITY) as registers:
        os.close(fd)
        # The driver gives its locality up between commands, and others than these tests use the TPM, too.
        registers[0] = REQUEST_USE
        deadline = time.monotonic() + 10
        while not registers[0] & ACTIVE_LOCALITY:
            check(time.monotonic() < deadline, "the TPM does not go to locality 1")
        try:
            check(not answers(), "the TPM can be read all the same")
            yield
        finally:
            registers[0] = ACTIVE_LOCALITY
    check(answers(), "the TPM cannot be read any more")


def answers():
    """Whether the TPM gives the value of a PCR; if not the kernel's own file has something else."""
    try:
        return bool(lib.tpm_value("sha256", lib.MEASURE_PCR))
    except (OSError, ValueError):
        return False


def load():
    """Loads the module and checks that it says that it could not read the TPM."""
    with lib.KernelLog() as log:
        lib.load()
        text = log.expect(r"TPM does not give the value of \w+:10")
    for line in ("nothing will be trimmed until it", "base=unverified"):
        check(line in text, f"the kernel logged nothing like {line!r} but: {text!r}")


def records():
    """The history of a list of which nothing is gone, without a look at the module."""
    log = lib.History()
    log.take(0, lib.parse(lib.read(lib.BINARY)))
    return log


@test("loaded while the TPM cannot be read: base=unverified, the log says so, and nothing is trimmed")
def _():
    lib.measure(5)
    log = records()
    with taken_tpm():
        load()
        equal(lib.status()["base"], "unverified", "base")
        equal(lib.status()["foreign_records"], "0", "foreign_records")
        # Each of these asks the TPM several times, and waits each time.
        for text in (log.tokens(3), f"{log.tokens(3)} dry-run", NOWHERE):
            lib.refuse(text, "EUCLEAN", "trim refused: without the TPM's values")
        equal(lib.outcome_of(lib.read, lib.VERIFY), "EIO", "error of reading verify")
        equal(lib.restore(lib.read(lib.STARTING_PCRS))[0], "EIO", "error of stating the values")
        equal(lib.status()["base"], "unverified", "base after all that")


@test("when the TPM can be read again the next look at verify verifies, and none at status")
def _():
    equal(lib.status()["base"], "unverified", "base")
    equal(set(lib.pairs(lib.read(lib.VERIFY)).values()) - {str(lib.count()), "0"}, {"ok"}, "verify")
    equal(lib.status()["base"], "verified", "base")
    lib.invariant()
    lib.unload()


@test("or else the next request does, and trims")
def _():
    with taken_tpm():
        load()
    log = records()
    # No look at status before it.
    outcome = lib.request(log.tokens(3))
    equal((outcome.error, outcome.result, outcome.records), (None, "trimmed", 3), f"outcome ({outcome.text!r})")
    equal(lib.status()["base"], "verified", "base")
    lib.invariant()
    lib.clear()


@test("evmctl: the records trimmed and those left match the TPM")
def _():
    lib.measure()
    equal(lib.evmctl(lib.history().records), 0, "exit status")


lib.main(module=False)
