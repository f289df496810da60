#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Trimmers that race, and trims while others make IMA append as fast as it can."""

import os
import time

import ima_trim_lib as lib
from ima_trim_lib import check, equal, test

ROUNDS = lib.tries(16)


def race(texts):
    """Writes several requests at the same time, each in a process of its own, and gives their outcomes."""
    wait, start = os.pipe()

    def attempt(text):
        fd = os.open(lib.TRIM, os.O_RDWR)
        os.read(wait, 1)
        outcome = lib.request(text, fd)
        return [outcome.error, outcome.result, outcome.records]

    children = [lib.Child(attempt, text) for text in texts]
    os.write(start, b"x" * len(children))
    outcomes = [tuple(child.result()) for child in children]
    os.close(wait)
    os.close(start)
    return outcomes


def begin():
    """Trims everything, then appends ten records. Gives the history and the number of the record before them."""
    history, at = lib.clear()
    lib.measure(10)
    history.sync()
    return history, at


@test("of trimmers with the same request exactly one trims")
def _():
    for _ in range(ROUNDS):
        history, at = begin()
        outcomes = race([history.tokens(at + 5)] * 3)
        equal(sorted(outcomes, key=repr), sorted([(None, "trimmed", 5)] + [(None, "nothing", 0)] * 2, key=repr), "outcomes")
        equal(lib.look()[0].records, at + 5, "records trimmed")
        lib.invariant()


@test("of trimmers with different requests each trims its part or is too late")
def _():
    for _ in range(ROUNDS):
        history, at = begin()
        early, late = race([history.tokens(at + 3), history.tokens(at + 8)])
        if early[0]:
            equal((early, late), (("ENOENT", "refused", 0), (None, "trimmed", 8)), "outcomes")
        else:
            equal((early, late), ((None, "trimmed", 3), (None, "trimmed", 5)), "outcomes")
        equal(lib.look()[0].records, at + 8, "records trimmed")
        lib.invariant()


@test("a trimmer with a wrong request does not disturb one with a right request")
def _():
    for _ in range(ROUNDS):
        history, at = begin()
        outcomes = race(["sha256:10=" + "5a" * 32, history.tokens(at + 5), "junk", history.tokens(at + 5) + " violations=1"])
        equal(outcomes[0], ("ENOENT", "refused", 0), "outcome without a match")
        equal(outcomes[1], (None, "trimmed", 5), "outcome of the right request")
        equal(outcomes[2], ("EINVAL", "refused", 0), "outcome of the malformed request")
        # Before the right one it has its violations wrong, after it there is nothing left to trim.
        check(outcomes[3][:2] in (("EBADMSG", "refused"), (None, "nothing")), f"outcome {outcomes[3]}")
        lib.invariant()


@test("a reader that comes and goes keeps no trim from happening")
def _():
    asked, ask = os.pipe()

    def reader():
        while not lib.select.select([asked], [], [], 0)[0]:
            lib.read(lib.BINARY)

    child = lib.Child(reader)
    outcomes = {}
    try:
        for _ in range(ROUNDS):
            lib.measure(2)
            history = lib.history()
            outcome = lib.request(history.tokens(history.total))
            outcomes[outcome.error] = outcomes.get(outcome.error, 0) + 1
    finally:
        os.write(ask, b"x")
        child.result()
    equal(outcomes, {None: ROUNDS}, "errors")
    lib.invariant()


@test("trims while others append as fast as IMA can, records of two PCRs and violations among them")
def _():
    begin()
    asked, ask = os.pipe()

    def appender(number):
        appended = 0
        while not lib.select.select([asked], [], [], 0)[0]:
            if number == 0:
                lib.measure(3)
                appended += 3
            else:
                lib.measure(2, pcr=11)
                lib.violate_open_writers()
                appended += 4
        return appended

    children = [lib.Child(appender, number) for number in range(2)]
    trimmed = 0
    try:
        for number in range(25):
            lib.wait_for(lambda: lib.count() >= 10, "records that others append")
            history = lib.history()
            # A point in the middle, then the last one: the list must go on across the cut.
            point = history.total if number % 2 else (history.trimmed + history.total + 1) // 2
            pcr = min(history.records[point - 1].pcr, 11)
            text = history.tokens(point, pcrs=[pcr])
            point = history.point(text)
            expected = point - history.trimmed
            outcome = lib.request(text + f" violations={len(history.violations(history.trimmed, point))}")
            equal((outcome.error, outcome.records), (None, expected), f"outcome {outcome}")
            trimmed += outcome.records
            lib.invariant_moving()
    finally:
        os.write(ask, b"xx")
        appended = sum(child.result() for child in children)
    os.close(asked)
    os.close(ask)
    lib.invariant()
    lib.lists_agree()
    check(trimmed > 100, f"{trimmed} records trimmed of {appended} appended")


@test("evmctl: the records trimmed and those left match the TPM")
def _():
    equal(lib.evmctl(lib.history().records), 0, "exit status")


lib.main()
