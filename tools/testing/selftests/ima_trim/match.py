#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Requests that match, at every kind of point, and requests that do not."""

import ima_trim_lib as lib
from ima_trim_lib import cases, check, equal, test


def flip(text):
    """A request with the last bit of its first value changed."""
    token, _, rest = text.partition(" ")
    return f"{token[:-1]}{int(token[-1], 16) ^ 1:x} {rest}"


@test("trim to the first record")
def _():
    history = lib.history()
    lib.measure(8)
    history.sync()
    equal(lib.trim(history.tokens(1), 1).records, 1, "records trimmed")


@test("trim to a record in the middle")
def _():
    history = lib.history()
    lib.measure(20)
    history.sync()
    # Violations that earlier tests left are no matter here.
    point = history.total - 6
    lib.trim(history.tokens(point) + f" violations={len(history.violations(history.trimmed, point))}", point)
    check(lib.count() >= 6, "too much was trimmed")


@test("a repeat of that is a success that trims nothing")
def _():
    history = lib.history()
    before = lib.snapshot()
    for _ in range(2):
        outcome = lib.request(history.tokens(history.trimmed))
        equal((outcome.error, outcome.result, outcome.records), (None, "nothing", 0), "outcome")
    lib.unchanged(before, "a repeated request")


@test("trim record by record")
def _():
    history = lib.history()
    for _ in range(4):
        equal(lib.trim(history.tokens(history.trimmed + 1), history.trimmed + 1).records, 1, "records trimmed")


@test("trim to the last record leaves an empty list")
def _():
    history = lib.history()
    lib.measure(3)
    history.sync()
    lib.trim(history.tokens(history.total), history.total)
    equal(lib.count(), 0, "records left")
    for path in lib.list_files():
        equal(lib.read(path), b"", path)
    lib.lists_agree()


@test("a repeat on the empty list is a success that trims nothing")
def _():
    history = lib.history()
    equal(lib.request(history.tokens(history.total)).result, "nothing", "result")
    lib.invariant()


@test("no match on the empty list")
def _():
    lib.refuse(flip(lib.history().tokens(lib.history().total)), "ENOENT")


@test("the list goes on after it was empty")
def _():
    lib.measure(5)
    equal(lib.count(), 5, "records")
    lib.lists_agree()
    lib.invariant()
    history = lib.history()
    lib.trim(history.tokens(history.total - 2), history.total - 2)
    equal(len(lib.lists_agree()), 2, "records left")


@test("values are compared in either case of the hexadecimal digits")
def _():
    history = lib.history()
    text = " ".join(
        f"{token.split('=')[0]}={token.split('=')[1].upper()}" for token in history.tokens(history.trimmed + 1).split())
    lib.trim(text, history.trimmed + 1)


@cases("no match", [
    ("one bit of a value changed", lambda history: flip(history.tokens(history.total - 1))),
    ("values of a record that was trimmed", lambda history: history.tokens(history.trimmed - 1)),
    ("values before the first record", lambda history: history.tokens(0)),
    ("one bank's value of one record with another's of the next", lambda history:
        history.tokens(history.total - 1, ["sha256"]) + " " + history.tokens(history.total, ["sha1"])),
    ("a starting value in one bank with a later one in another", lambda history:
        history.tokens(history.trimmed, ["sha256"]) + " " + history.tokens(history.total, ["sha384"])),
    ("a PCR that no record extends, not at its reset value", lambda history: "sha256:16=" + "11" * 32),
    ("all ones for a PCR that is reset to zeros", lambda history: "sha1:23=" + "ff" * 20),
])
def _(make):
    lib.measure(3)
    history = lib.history()
    text = make(history)
    equal(history.point(text), None, "the point as the test's own replay finds it")
    lib.refuse(text, "ENOENT", "match")
    # The twin: the same list has a point for the right values.
    lib.trim(history.tokens(history.total - 1), history.total - 1)


@test("values of a record to come match once it has come, and not before")
def _():
    lib.measure(2)
    history = lib.history()
    path = lib.new_file()
    values = lib.replay(history.values[-1], [lib.predict(path)])
    text = " ".join(f"{bank}:10={values[bank, 10].hex()}" for bank in lib.banks())
    lib.refuse(text, "ENOENT", "match")
    lib.measure_file(path)
    history.sync()
    lib.trim(text, history.total)


@test("a whole quote: all values of the TPM at once")
def _():
    lib.measure(4)
    history = lib.history()
    lib.trim(" ".join(f"{bank}:10={lib.tpm_value(bank, 10).hex()}" for bank in lib.banks()), history.total)


@test("evmctl: the records trimmed and those left match the TPM")
def _():
    lib.measure(2)
    equal(lib.evmctl(lib.history().records), 0, "exit status")


lib.main()
