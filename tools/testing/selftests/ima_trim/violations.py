#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Violations: never dropped unless the request says how many, and never forgotten."""

import ima_trim_lib as lib
from ima_trim_lib import cases, check, equal, test


def escape(word):
    """A word as the file `violations` prints it."""
    return "".join(chr(byte) if 0x21 <= byte <= 0x7e and byte != 0x5c else f"\\{byte:03o}" for byte in word) or "-"


def lines():
    """The lines of the file `violations`."""
    return lib.read(lib.VIOLATIONS).decode("ascii").splitlines()


# What makes a violation, and which of its two records the violation is.
KINDS = [
    ("file opened for writing while measured (ToMToU)", lib.violate_tomtou, 2),
    ("file measured while open for writing (open-writers)", lib.violate_open_writers, 1),
]


@cases("one violation", KINDS)
def _(violate, which):
    history, at = lib.clear()
    lib.measure()
    path = violate()
    lib.measure()
    history.sync()
    equal(history.violations(at, history.total), [at + 1 + which], "violations in the list")
    text = history.tokens(history.total)
    for stated in ("", " violations=0", " violations=2", " violations=18446744073709551615"):
        outcome = lib.refuse(text + stated, "EBADMSG", "violation")
        equal((outcome.records, outcome.violations, outcome.first_violation), (history.total - at, 1, at + 1 + which),
              "what would have been trimmed")
    before = lines()
    lib.trim(text + " violations=1", history.total)
    equal(lines(), before + [f"{at + 1 + which} 10 {lib.template()} {escape(path.encode())}"], "the file violations")


@cases("before the violation none is stated", KINDS)
def _(violate, which):
    history, at = lib.clear()
    lib.measure(2)
    violate()
    history.sync()
    point = at + 1 + which
    lib.refuse(history.tokens(point) + " violations=1", "EBADMSG", "violation")
    equal(lib.trim(history.tokens(point), point).violations, 0, "violations")
    # The violation is the next record now, or the one after it.
    end = history.violations(point, history.total)[0]
    lib.refuse(history.tokens(end), "EBADMSG", "violation")
    lib.trim(history.tokens(end) + " violations=1", end)


@test("none stated where there is none; one stated where there is none")
def _():
    history, _ = lib.clear()
    lib.measure(2)
    history.sync()
    lib.refuse(history.tokens(history.total) + " violations=1", "EBADMSG", "violation")
    lib.trim(history.tokens(history.total) + " violations=0", history.total)


@test("several violations, counted over both kinds; the first is named")
def _():
    history, at = lib.clear()
    for _ in range(3):
        lib.violate_open_writers()
        lib.violate_tomtou()
    lib.measure()
    history.sync()
    equal(len(history.violations(at, history.total)), 6, "violations in the list")
    for stated in (5, 7):
        lib.refuse(history.tokens(history.total) + f" violations={stated}", "EBADMSG", "violation")
    outcome = lib.trim(history.tokens(history.total) + " violations=6", history.total)
    equal(outcome.first_violation, at + 1, "first violation")


@test("a repeat of a request that stated violations is a success that trims nothing")
def _():
    history, _ = lib.clear()
    lib.violate_tomtou()
    history.sync()
    text = history.tokens(history.total) + " violations=1"
    lib.trim(text, history.total)
    before = lib.snapshot()
    outcome = lib.request(text)
    equal((outcome.error, outcome.result, outcome.violations), (None, "nothing", 0), "outcome")
    lib.unchanged(before, "a repeated request")


@test("a match by zeros for a violation is none: the TPM got all ones")
def _():
    history, at = lib.clear()
    lib.violate_open_writers()
    history.sync()
    number = history.violations(at, history.total)[0]
    washed = []
    for bank, size in lib.banks().items():
        value = lib.hashlib.new(bank, history.value(number - 1, bank, 10) + bytes(size)).hexdigest()
        washed.append(f"{bank}:10={value}")
    lib.refuse(" ".join(washed) + " violations=1", "ENOENT", "match")
    lib.trim(history.tokens(number) + " violations=1", number)


@cases("name in the file violations", [
    ("a blank", "a name"), ("a newline", "two\nlines 1 10"), ("a backslash", "back\\slash"), ("UTF-8", "h\u00e4\u00df"),
])
def _(name):
    history, at = lib.clear()
    lib.violate_open_writers(name=name)
    history.sync()
    # IMA itself writes an underscore for a blank.
    hint = history.records[at].hint
    equal(hint, f"{lib.FILES}/{name}".replace(" ", "_").encode(), "name in the record")
    lib.trim(history.tokens(history.total) + " violations=1", history.total)
    equal(lines()[-1], f"{at + 1} 10 {lib.template()} {escape(hint)}", "last line of the file violations")


@test("the file violations lists all that were trimmed since boot, by their absolute numbers")
def _():
    history = lib.history()
    expected = [
        f"{number} {history.records[number - 1].pcr} {history.records[number - 1].template.decode()}"
        f" {escape(history.records[number - 1].hint)}"
        for number in history.violations(0, history.trimmed)
    ]
    equal(lines(), expected, "the file violations")
    check(len(expected) > 10, "too few violations for this test")


@test("starting_pcrs and status have counted them")
def _():
    history = lib.history()
    number = len(history.violations(0, history.trimmed))
    equal(lib.look()[0].violations, number, "violations in starting_pcrs")
    equal(int(lib.status()["violations_trimmed"]), number, "violations_trimmed in status")


@test("evmctl: the records trimmed and those left match the TPM, if violations are taken for what they are")
def _():
    lib.measure()
    equal(lib.evmctl(lib.history().records), 0, "exit status")


lib.main()
