#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""After a kexec: the PCRs go on, the list does so or begins anew, and the starting values have to be told.

The records before it are those of kexec_before.py.
"""

import os

import ima_trim_lib as lib
from ima_trim_lib import check, equal, test

# What was carried over the kexec, once prepare() has read it: the text that was saved, all records, and how many were gone.
SAVED = BEFORE = GONE = None


def prepare():
    """Reads what kexec_before.py left."""
    global SAVED, BEFORE, GONE
    SAVED = lib.read(os.path.join(lib.CARRIED, "starting_pcrs")).decode("ascii")
    BEFORE = lib.parse(lib.read(os.path.join(lib.CARRIED, "history")))
    GONE = lib.Starting(SAVED.encode()).records


def adopt():
    """Makes the records before the kexec those before the ones of now."""
    if not os.path.exists(lib.History.PATH):
        with open(lib.History.PATH, "wb") as file:
            file.write(b"".join(record.raw for record in BEFORE))


@test("the list is what was left of it, staged or not, or it begins anew")
def _():
    records = lib.parse(lib.read(lib.BINARY))
    left = BEFORE[GONE:] if lib.carries_lists() else []
    equal([record.raw for record in records[:len(left)]], [record.raw for record in left], "records carried over")
    # Those that were measured when the others were staged.
    late = lib.MEASURED_LATE if os.path.exists(lib.STAGED) else 0
    hints = [record.hint for record in records[len(left):]]
    check(all(b"kexec_before.py" in hint for hint in hints[:late]), f"records after those that were staged: {hints}")
    equal(hints[late], b"boot_aggregate", "the first record of this kernel")
    equal(len(hints), late + 2, "records, with the one that the policy of this kernel has")


@test("the module says that the list does not begin with the reset values, and trims nothing")
def _():
    equal(lib.status()["base"], "unverified", "base")
    equal(lib.status()["foreign_records"], "0", "foreign_records")
    adopt()
    log = lib.History()
    log.take(GONE, lib.parse(lib.read(lib.BINARY)))
    lib.refuse(log.tokens(log.total), "EUCLEAN")
    check("mismatch" in lib.pairs(lib.read(lib.VERIFY)).values(), "verify shows nothing of it")


@test("values other than those saved are rejected, and nothing changes")
def _():
    log = lib.History()
    log.take(GONE, lib.parse(lib.read(lib.BINARY)))
    before = lib.snapshot()
    digit = "1" if SAVED.splitlines()[0][-1] == "0" else "0"
    first, rest = SAVED.split("\n", 1)
    wrong = f"{first[:-1]}{digit}\n{rest}"
    for what, text in (("another value", wrong), ("the values after a record before", log.statement(GONE - 1, trims=2))):
        equal(lib.restore(text)[0], "EKEYREJECTED", f"error of writing {what}")
    lib.unchanged(before, "a rejected statement")


@test("the saved values are taken: base=verified, and their counts go on, though this kernel has trimmed nothing")
def _():
    equal(lib.restore(SAVED)[0], None, "error of writing the saved text")
    equal(lib.status()["base"], "verified", "base")
    starting = lib.Starting(lib.read(lib.STARTING_PCRS))
    equal((starting.records, starting.violations, starting.trims), (GONE, 2, 2), "records, violations, trims")
    lib.invariant()


@test("and it trims: the records from before the kexec, and those after it")
def _():
    lib.measure(3)
    log = lib.history()
    # What the other modes leave of records that were carried over is a leak, as it is after IMA's own deletion.
    if lib.carries_lists():
        lib.trim(f"{log.tokens(len(BEFORE) - 1)} flush", len(BEFORE) - 1)
        lib.trim(f"{log.tokens(len(BEFORE))} flush", len(BEFORE))
    lib.trim(f"{log.tokens(log.total - 1)} flush", log.total - 1)


@test("evmctl: the records of both kernels match the TPM")
def _():
    lib.measure()
    equal(lib.evmctl(lib.history().records), 0, "exit status")


lib.main(prepare=prepare)
