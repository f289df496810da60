#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Archive-and-trim ended, or failed, at each system call: every record is there once afterwards, and trims go on.

What a process that is killed leaves is what the calls before have changed. So it is killed before and after each call
that changes something, which leaves what killing it at any other call would.
"""

import errno
import os
import shutil

import ima_trim_lib as lib
import tracer
import whole_lib as whole
from ima_trim_lib import check, equal, test

COMMAND = [whole.PROGRAM, "--config", whole.CONFIG, "trim"]
# Where the files are that a message may name.
PLACES = (os.path.dirname(whole.ARCHIVE), lib.DIRECTORY, "/run/ima-trim")
# More than any run has of them.
MOST = 100
history = None


def records():
    """Has IMA append some records, violations among them."""
    lib.measure(2)
    lib.violate_tomtou()
    lib.violate_open_writers(pcr=11)
    history.sync()


def whole_again(what):
    """Archive and list have every record once and in order, the module has the values of its point, the TPM agrees."""
    listed = whole.run("log", "--binary")
    expected = b"".join(record.raw for record in history.records)
    check(listed == expected, f"{what}: the list has {len(listed)} bytes, {len(expected)} expected")
    starting, kept = lib.look()
    equal(starting.records + len(kept), history.total, f"{what}: records trimmed and left")
    equal(starting.text, history.statement(starting.records, starting.trims).encode(), f"{what}: starting_pcrs")
    check(b"verified: " in whole.run("verify"), f"{what}: verify does not verify")
    return starting.records


def trims_again(what):
    """A trim that nothing happens to."""
    whole.run("trim")
    history.sync()
    equal(whole_again(what), history.total, f"{what}: records trimmed by the next trim")


def changes(call):
    """Whether a call counts."""
    return call.changes() and call.name != "exit_group"


def each_end(what, prepare, last=None):
    """Ends the command before and after each call that changes something, up to the first one named `last`."""
    seen = []
    for number in range(1, MOST):
        for when in ("before", "after"):
            prepare()
            outcome = tracer.run(COMMAND, tracer.Nth(number, changes), kill=when)
            if outcome.at is None or last and last in outcome.at:
                if outcome.at is None:
                    equal(outcome.status, 0, f"exit status of the whole command: {outcome.error}")
                lib.ksft.print_msg(f"{what}: {len(seen)} calls: {', '.join(seen)}")
                return seen
            equal(outcome.status, -9, f"how the command ended at {outcome.at}")
            name = f"killed {when} {outcome.at}"
            history.sync()
            whole_again(name)
        seen.append(outcome.at.replace(whole.ARCHIVE, "..."))
    raise lib.Failure(f"more than {MOST} calls")


def fresh():
    """No archive, as nothing was trimmed yet."""
    shutil.rmtree(whole.ARCHIVE, ignore_errors=True)
    records()


def trim_first():
    """As after a trim that went well, with something new to trim."""
    whole.run("trim")
    records()


@test("a first trim is killed before and after each call that changes something, up to the trim itself")
def _():
    global history
    history = lib.history()
    records()
    calls = each_end("first", fresh, last=lib.TRIM)
    for expected in ("mkdir", "fsync", "write", "renameat2", "flock"):
        check(any(call.startswith(expected) for call in calls), f"no {expected} among them: {calls}")
    check(not lib.look()[0].records, "something was trimmed")


def each_failure(number_of, accepts, prepare=None):
    """Has calls fail, each with each error: nothing is trimmed then, nothing lost, and it is said where and why.

    Then a trim goes well; with `prepare`, which is called before each, there is none, up to the trim itself.
    """
    names = []
    for number in range(1, number_of):
        for error in (errno.ENOSPC, errno.EIO, errno.EROFS):
            # What an attempt has archived is not archived again.
            (prepare or records)()
            before = lib.read(lib.STARTING_PCRS)
            outcome = tracer.run(COMMAND, tracer.Nth(number, accepts), fail=error)
            if outcome.at is None:
                return names
            what = f"{outcome.at} gave {errno.errorcode[error]}"
            equal(outcome.status, 3, f"exit status when {what}: {outcome.error}")
            equal(lib.read(lib.STARTING_PCRS), before, f"starting_pcrs when {what}")
            check(os.strerror(error) in outcome.error, f"the message when {what} does not say so: {outcome.error}")
            check(any(path in outcome.error for path in PLACES),
                  f"the message when {what} names no file: {outcome.error}")
            history.sync()
            if error == errno.EIO:
                whole_again(what)
            if prepare and lib.TRIM in outcome.at:
                return names
        names.append(outcome.at.replace(whole.ARCHIVE, "..."))
        if not prepare:
            trims_again(f"after {outcome.at} failed")
    return names


def failing(call):
    """Whether a call counts: a directory that is there need not be made."""
    return changes(call) and not (call.name in ("mkdir", "mkdirat") and call.path().startswith("/run"))


@test("each call of a first trim that changes something fails with ENOSPC, EIO and EROFS: no trim, no loss, said")
def _():
    names = each_failure(MOST, failing, fresh)
    lib.ksft.print_msg(f"{len(names)} calls: {', '.join(names)}")
    check(any(name.startswith("mkdir") for name in names), f"no mkdir among them: {names}")


@test("a trim is killed before and after each call that changes something, to its end")
def _():
    calls = each_end("later", trim_first)
    for expected in ("fsync", "write", "renameat2", f"pwrite64 {lib.TRIM}"):
        check(any(call.startswith(expected) for call in calls), f"no {expected} among them: {calls}")
    trims_again("at the end")


@test("each call of a trim that changes something does")
def _():
    names = each_failure(MOST, failing)
    lib.ksft.print_msg(f"{len(names)} calls: {', '.join(names)}")
    for expected in ("openat", "open /sys", "fsync", "write", "renameat2", "unlinkat", "pwrite64"):
        check(any(name.startswith(expected) for name in names), f"no {expected} among them: {names}")


@test("reads of the archive fail")
def _():
    names = each_failure(7, lambda call: call.name in tracer.READS and whole.ARCHIVE in call.path())
    equal(len(names), 6, f"reads that failed: {names}")


lib.main(prepare=whole.configure)
