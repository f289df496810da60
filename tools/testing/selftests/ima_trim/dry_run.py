#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""dry-run: says what the same request would do, and does not do it."""

import os

import ima_trim_lib as lib
from ima_trim_lib import cases, check, equal, test


def both(text, point):
    """Checks that dry-run changes nothing and foretells the trim that follows."""
    before = lib.snapshot()
    foretold = lib.request(f"dry-run {text}")
    equal((foretold.error, foretold.result), (None, "dry-run"), "outcome of the dry run")
    lib.unchanged(before, "a dry run")
    again = lib.request(f"{text} dry-run")
    equal((again.records, again.violations, again.first_violation),
          (foretold.records, foretold.violations, foretold.first_violation), "outcome of a second dry run")
    done = lib.trim(text, point)
    equal((foretold.records, foretold.violations, foretold.first_violation),
          (done.records, done.violations, done.first_violation), "what the dry run foretold")
    return done


@test("without violations")
def _():
    history, _ = lib.clear()
    lib.measure(5)
    history.sync()
    done = both(history.tokens(history.total - 2), history.total - 2)
    equal((done.records, done.violations, done.first_violation), (3, 0, None), "outcome")


@test("with violations that are stated")
def _():
    lib.violate_tomtou()
    lib.violate_open_writers()
    lib.measure()
    history = lib.history()
    done = both(history.tokens(history.total) + " violations=2", history.total)
    check(done.first_violation, "no first violation")


@test("with keep")
def _():
    lib.measure(2)
    history = lib.history()
    both(history.tokens(history.total) + " keep", history.total)


@test("in the middle of records of several PCRs")
def _():
    lib.measure(2)
    lib.measure(pcr=11)
    lib.measure(2)
    history = lib.history()
    both(history.tokens(history.total - 1, pcrs=[10, 11]), history.total - 1)


@cases("refused as the trim would be", [
    ("no match", lambda history: "sha256:10=" + "5a" * 32, "ENOENT"),
    ("violations not stated", lambda history: history.tokens(history.total), "EBADMSG"),
    ("malformed", lambda history: "sha256:10", "EINVAL"),
])
def _(make, error):
    history = lib.history()
    if not history.violations(history.trimmed, history.total):
        lib.violate_open_writers()
        history.sync()
    lib.refuse(make(history) + " dry-run", error)
    lib.refuse(make(history), error)


@test("a dry run of what would trim nothing changes nothing")
def _():
    history = lib.history()
    before = lib.snapshot()
    outcome = lib.request(history.tokens(history.trimmed) + " dry-run")
    equal((outcome.error, outcome.records), (None, 0), "outcome")
    check(outcome.result in ("nothing", "dry-run"), f"result {outcome.result}")
    lib.unchanged(before, "a dry run")


@cases("each way to treat the memory: foretold exactly, violations included", [
    ("keep", "keep"), ("compact", "compact"), ("flush", "flush"),
])
def _(mode):
    lib.measure(2)
    lib.violate_open_writers()
    lib.measure(pcr=11)
    lib.violate_tomtou()
    lib.measure(2)
    history = lib.history()
    point = history.total - 1
    violations = len(history.violations(history.trimmed, point))
    done = both(f"{history.tokens(point, pcrs=[10, 11])} violations={violations} {mode}", point)
    check(done.violations >= 2 and done.first_violation, "no violations foretold")


@cases("a dry run with flush reclaims nothing and forgets no record", [
    ("of what would trim nothing", lambda history: history.tokens(history.trimmed)),
    ("of what would trim records", lambda history: history.tokens(history.total)),
])
def _(make):
    known = lib.has_htable()
    lib.clear()
    path = lib.new_file(name="flushed", content=b"once")
    lib.measure_file(path)
    history, at = lib.clear()
    lib.measure(3)
    history.sync()
    before = lib.snapshot()
    for _ in range(2):
        outcome = lib.request(make(history) + " dry-run flush")
        equal((outcome.error, outcome.records), (None, history.point(make(history)) - at), "outcome of the dry run")
        # bytes_freed is in there.
        lib.unchanged(before, "a dry run with flush")
    os.unlink(path)
    lib.measure_file(lib.new_file(name="flushed", content=b"once"))
    equal(lib.count(), 3 if known else 4, "records after the same content was measured again")
    # The twin: the same request, not as a dry run.
    freed = int(lib.status()["bytes_freed"])
    equal(lib.request(make(history) + " flush").error, None, "error of the request itself")
    # Where no record is kept for the hash table, what was trimmed before has left nothing.
    if known or outcome.records:
        check(int(lib.status()["bytes_freed"]) > freed, "the flush gave nothing back")
    left = lib.count()
    os.unlink(path)
    lib.measure_file(lib.new_file(name="flushed", content=b"once"))
    equal(lib.count(), left + 1, "records after the same content was measured again, after a flush")
    lib.invariant()


lib.main()
