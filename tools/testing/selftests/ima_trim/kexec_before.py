#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""What a machine trims before a kexec, and saves for the time after it: see kexec_after.py."""

import os

import ima_trim_lib as lib
from ima_trim_lib import equal, test

# Where the list is carried over, so many of its records are.
KEPT = 6


@test("records are trimmed, a violation among them")
def _():
    lib.measure(3)
    lib.violate_tomtou()
    lib.measure(3)
    log = lib.history()
    lib.trim(log.tokens(log.total - 2) + " violations=1", log.total - 2)


@test("the next kernel is loaded, more is trimmed, and the starting values are those that it will be told")
def _():
    # All that is still appended, as the new kernel's list may have no record of this one.
    lib.measure(2)
    lib.violate_open_writers()
    lib.measure(KEPT)
    log = lib.history()
    point = log.total - KEPT if lib.carries_lists() else log.total
    text = log.statement(point, trims=2)
    # What fits into the memory that is set aside now is a list that is longer than the one in the end.
    lib.load_kexec({"history": lib.read(lib.History.PATH), "starting_pcrs": text.encode()})
    lib.trim(f"{log.tokens(point)} violations=1 flush", point)
    equal(lib.Starting(lib.read(lib.STARTING_PCRS)).values, lib.Starting(text.encode()).values, "starting values")
    equal(lib.history().total, log.total, "records")


def test_staged():
    """With CONFIG_IMA_STAGING."""
    live = lib.read(lib.BINARY)
    lib.write(lib.STAGED, "A\n")
    equal((lib.read(lib.STAGED), lib.read(lib.BINARY)), (live, b""), "the records staged, and those left")
    # There are two lists to be carried over now.
    lib.measure(lib.MEASURED_LATE)


if os.path.exists(lib.STAGED):
    test("records are staged when the kexec comes")(test_staged)


lib.main(parameters="guard=0")
