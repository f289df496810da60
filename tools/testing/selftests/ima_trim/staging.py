#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Records that somebody else has staged, and then deletes: needs a kernel with CONFIG_IMA_STAGING."""

import os

import ima_trim_lib as lib
from ima_trim_lib import check, equal, test

FILES = (lib.BINARY, lib.ASCII, lib.STAGED)


def stage():
    """Stages all records, as an agent that does without the module would. Gives their number."""
    live = lib.count()
    lib.write(lib.STAGED, "A\n")
    equal((len(lib.parse(lib.read(lib.STAGED))), lib.read(lib.BINARY)), (live, b""), "records staged, and those left")
    return live


def delete():
    """Deletes the records that are staged."""
    lib.write(lib.STAGED, "D\n")
    equal(lib.read(lib.STAGED), b"", "records staged after they were deleted")


@test("the guard keeps out who would stage; reading what is staged is not hindered")
def _():
    lib.clear()
    before = lib.snapshot()
    equal(lib.outcome_of(stage), "EBUSY", "error of staging with the guard on")
    equal(lib.read(lib.STAGED), b"", "records staged")
    lib.unchanged(before, "an attempt to stage")


@test("without the guard records are staged: EBUSY for every request that matches or could")
def _():
    lib.reload("guard=0")
    lib.measure(4)
    log = lib.history()
    log.sync()
    end, middle = log.tokens(log.total), log.tokens(log.total - 2)
    equal(lib.request(f"{end} dry-run").error, None, "error of a dry run before")
    staged = stage()
    before = lib.snapshot()
    for text in (end, middle, f"{end} dry-run", f"{end} flush"):
        outcome = lib.refuse(text, "EBUSY", rf"{staged} records are staged")
        equal(outcome.fields.get("errno"), "EBUSY", "errno in the reply")
    lib.unchanged(before, "refused requests")


@test("while records are staged the values that starting_pcrs has cannot be written again, and verify is refused")
def _():
    text = lib.read(lib.STARTING_PCRS)
    equal(lib.restore(text)[0], "EBUSY", "error of writing starting_pcrs")
    equal(lib.outcome_of(lib.read, lib.VERIFY), "EBUSY", "error of reading verify")


@test("while records are staged the module is not loaded, and says why")
def _():
    text = lib.read(lib.STARTING_PCRS)
    lib.unload()
    before = {path: lib.read(path) for path in FILES}
    with lib.KernelLog() as log:
        equal(lib.outcome_of(lib.load), "EBUSY", "error of loading")
        log.expect(r"not loaded: \d+ records are staged")
    check(not lib.loaded() and not os.path.exists(lib.DIRECTORY), "something of the module is there")
    equal({path: lib.read(path) for path in FILES}, before, "lists")
    with open(f"{lib.STATE}/saved", "wb") as file:
        file.write(text)


@test("after they were deleted it is loaded, knows that it does not know, and is told")
def _():
    # As it was read before the records were staged: without the module nothing tells where the list begins.
    log = lib.History()
    delete()
    lib.measure(3)
    lib.load(parameters="guard=0")
    equal(lib.status()["base"], "unknown", "base")
    equal(int(lib.status()["foreign_records"]), log.total, "foreign_records")
    equal(lib.request(log.tokens(log.total)).error, "EUCLEAN", "error of a request")
    # What was saved before somebody else deleted is not the base any more.
    equal(lib.restore(lib.read(f"{lib.STATE}/saved"))[0], "EKEYREJECTED", "error of writing what was saved")
    equal(lib.restore(log.statement(log.total))[0], None, "error of stating the values at the end of what is gone")
    equal(lib.status()["base"], "verified", "base")
    lib.clear()


@test("staged and deleted behind the module's back: noticed, and stated again")
def _():
    lib.measure(3)
    log = lib.history()
    log.sync()
    stage()
    lib.measure(2)
    delete()
    equal(lib.status()["base"], "unknown", "base")
    check(lib.read(lib.STARTING_PCRS).startswith(b"unknown "), "starting_pcrs is not unknown")
    equal(lib.request(log.tokens(log.total)).error, "EUCLEAN", "error of a request")
    equal(lib.restore(log.statement(log.total))[0], None, "error of stating the values at the end of what is gone")
    lib.invariant()
    lib.clear()


@test("evmctl: the records deleted and trimmed and those left match the TPM")
def _():
    lib.measure()
    equal(lib.evmctl(lib.history().records), 0, "exit status")


lib.main()
