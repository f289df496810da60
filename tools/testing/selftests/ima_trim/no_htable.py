#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""What becomes of the memory of trimmed records on a kernel with CONFIG_IMA_DISABLE_HTABLE, where IMA looks none up."""

import os

import ima_trim_lib as lib
from ima_trim_lib import cases, check, equal, test

MODES = [(mode, mode) for mode in ("keep", "compact", "flush")]
# Bytes given back for each record, by mode.
unit = {}


def fill(number):
    """Has IMA append records that all need the same memory."""
    for serial in range(number):
        path = lib.new_file(name=f"same-{serial:06d}")
        lib.measure_file(path)
        os.unlink(path)


@test("the same content is measured again each time")
def _():
    check(not lib.has_htable(), "this kernel knows the records that it has: see reclaim.py")
    before = lib.count()
    for _ in range(3):
        fill(1)
    equal(lib.count(), before + 3, "records")
    lib.lists_agree()


@cases("bytes_freed is exactly so much for each record", MODES)
def _(mode):
    sizes = []
    for number in (50, 100, 1):
        lib.clear()
        fill(number)
        log = lib.history()
        before = int(lib.status()["bytes_freed"])
        lib.trim(f"{log.tokens(log.total)} {mode}", log.total)
        sizes.append(int(lib.status()["bytes_freed"]) - before)
    unit[mode] = sizes[2]
    lib.ksft.print_msg(f"{mode}: {unit[mode]} bytes a record")
    equal(sizes, [50 * unit[mode], 100 * unit[mode], unit[mode]], "bytes given back by 50, 100 and 1 records")


@test("no record is needed for a lookup, so that each mode gives all of it back")
def _():
    equal(len(set(unit.values())), 1, f"different numbers of bytes in {unit}")
    fill(1)
    # At least the record itself with a digest for each bank, and its data.
    record = lib.look()[1][-1]
    least = len(record.data) + sum(lib.hashlib.new(bank).digest_size for bank in lib.banks())
    check(unit["keep"] > least, f"{unit['keep']} bytes for a record that has {least} bytes of digests and data")
    lib.clear()


@test("a flush finds nothing that earlier trims left")
def _():
    fill(20)
    log, _ = lib.clear()
    before = lib.status()
    outcome = lib.request(log.tokens(log.trimmed) + " flush")
    equal((outcome.error, outcome.result), (None, "nothing"), "outcome")
    equal(lib.status()["bytes_freed"], before["bytes_freed"], "bytes_freed")
    lib.invariant()


@test("evmctl: the records trimmed and those left match the TPM")
def _():
    lib.measure()
    equal(lib.evmctl(lib.history().records), 0, "exit status")


lib.main()
