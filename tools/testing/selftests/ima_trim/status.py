#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""status costs nothing: it neither walks the list nor replays, however long that is, and tells what was found last.

Has to be the first of its boot, for the records of the tests' module.
"""

import statistics
import time

import ima_trim_lib as lib
from ima_trim_lib import cases, check, equal, test

lib.POLICY += "measure func=CRITICAL_DATA label=ima_trim_test\n"

MANY = 1250 if lib.DEBUG else 5000


def took():
    """How long reading status takes after a record arrived, in seconds: half of the times it is less."""
    times = []
    for _ in range(15):
        lib.measure()
        began = time.monotonic()
        lib.read(lib.STATUS)
        times.append(time.monotonic() - began)
    return statistics.median(times)


@test("with many records it takes as long as with few")
def _():
    lib.clear()
    few = took()
    lib.ask_test_module("append", MANY)
    many = took()
    lib.ksft.print_msg(f"{few * 1e3:.3f} ms with few records, {many * 1e3:.3f} ms with {lib.count()}")
    check(many < 4 * few + 0.002, "it takes longer with many records")


@test("nor does it read the TPM")
def _():
    lib.ask_test_module("slow", 500)
    try:
        began = time.monotonic()
        for path in (lib.STATUS, lib.STARTING_PCRS, lib.VIOLATIONS, lib.TRIM):
            lib.read(path)
        seconds = time.monotonic() - began
    finally:
        lib.ask_test_module("slow", 0)
    check(seconds < 0.4, f"it took {seconds:.3f} s")


def state_base(pcr):
    """Has the module take over what a PCR had before its first record."""
    lines = "".join(f"{bank}:{pcr}={lib.reset_value(bank, pcr).hex()}\n" for bank in lib.banks())
    equal(lib.restore(lines + lib.read(lib.STARTING_PCRS).decode())[0], None, "error of stating the base")


@cases("base= is of the last look: records of another PCR do not change it, until", [
    ("verify is read", 13, lambda log: lib.pairs(lib.read(lib.VERIFY))["sha256:13"], "mismatch"),
    ("a request is made", 14, lambda log: lib.request(log.tokens(log.total) + " violations=0").error, "EUCLEAN")])
def _(pcr, look, found):
    for bank in lib.banks():
        lib.tpm_extend(pcr, bank)
    lib.set_base(pcr)
    equal(lib.status()["base"], "verified", "base before a record of the PCR")
    lib.measure(2, pcr=pcr)
    lib.measure()
    log = lib.history()
    for _ in range(2):
        equal(lib.status()["base"], "verified", "base with records of the PCR")
    with lib.KernelLog() as kernel:
        equal(look(log), found, "what is found")
        kernel.expect(rf"PCR {pcr}\b")
    equal(lib.status()["base"], "unverified", "base afterwards")
    state_base(pcr)
    equal(lib.status()["base"], "verified", "base when it was stated")
    lib.invariant()


@test("with the TPM as it was")
def _():
    lib.unload("ima_trim_test")
    lib.invariant()


lib.main()
