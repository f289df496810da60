#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Starting values that are written are believed only if they and the list give what the TPM has."""

import os
import re
import select

import ima_trim_lib as lib
from ima_trim_lib import cases, check, equal, test


def refused(text, error, log=None):
    """Checks that a text is refused with this error and changes nothing."""
    before = lib.snapshot()
    with lib.KernelLog() as kernel:
        equal(lib.outcome_of(lib.write, lib.STARTING_PCRS, text), error, "error")
        if log:
            kernel.expect(log)
    lib.unchanged(before, "a refused restore")


def lost():
    """Trims, and loads the module anew: it knows nothing then. Gives the history and what it should know."""
    lib.measure(4)
    lib.measure(2, pcr=11)
    lib.violate_tomtou()
    lib.measure(3)
    lib.measure(1, pcr=11)
    lib.measure(2)
    log = lib.history()
    point = log.total - 4
    lib.trim(log.tokens(point, pcrs=(10, 11)) + f" violations={len(log.violations(log.trimmed, point))}")
    text = lib.read(lib.STARTING_PCRS).decode()
    lib.unload()
    lib.load()
    equal(lib.read(lib.STARTING_PCRS), f"unknown records={lib.status()['foreign_records']}\n".encode(), "starting_pcrs")
    return log, text


def change(text, key, by):
    """The text with another count."""
    return re.sub(rf"^{key}=(\d+)$", lambda match: f"{key}={max(int(match[1]) + by, 0)}", text, flags=re.M)


@test("what was saved is taken over by the next load, and trims go on")
def _():
    _, text = lost()
    lib.refuse("sha256:10=" + "00" * 32, "EUCLEAN")
    equal(lib.outcome_of(lib.read, lib.VERIFY), "EUCLEAN", "error of reading verify")
    with lib.KernelLog() as kernel:
        lib.write(lib.STARTING_PCRS, text)
        kernel.expect("taken over")
        kernel.expect("")
    equal(lib.read(lib.STARTING_PCRS).decode(), text, "starting_pcrs")
    status = lib.status()
    equal((status["base"], status["foreign_records"]), ("verified", "0"), "base and foreign_records")
    equal({value for key, value in lib.pairs(lib.read(lib.VERIFY)).items() if ":" in key}, {"ok"}, "verify")
    violations = int(status["violations_trimmed"])
    equal(lib.read(lib.VIOLATIONS), f"dropped={violations}\n".encode() if violations else b"", "violations")
    lib.violate_open_writers()
    lib.clear()


@test("the new values are read on the descriptor of the write")
def _():
    _, text = lost()
    fd = os.open(lib.STARTING_PCRS, os.O_RDWR)
    try:
        os.write(fd, text.encode())
        equal(lib.read_fd(fd).decode(), text, "the reply")
    finally:
        os.close(fd)


@test("in any order and spacing, in capitals")
def _():
    _, text = lost()
    tokens = [re.sub("=.*", lambda match: match[0].upper(), token) for token in reversed(text.split())]
    lib.write(lib.STARTING_PCRS, "\n\t".join(tokens) + "  ")
    equal(lib.read(lib.STARTING_PCRS).decode(), text, "starting_pcrs")


_lost = None


def case(make):
    """The text that a case makes of what was lost; it is lost only once for all cases."""
    global _lost
    if _lost is None:
        _lost = lost()
    return make(*_lost)


def flip(bank, pcr):
    """Changes one bit of a value."""
    def make(_, text):
        pattern = rf"^({bank}:{pcr}=)(..)"
        return re.sub(pattern, lambda match: match[1] + f"{int(match[2], 16) ^ 1:02x}", text, flags=re.M)
    return make


def without(pattern):
    """Leaves lines out."""
    return lambda _, text: re.sub(rf"^{pattern}.*\n", "", text, flags=re.M)


def other_point(by):
    """The values, and only they, of another point of the list."""
    def make(log, text):
        counts = "\n".join(line for line in text.splitlines() if ":" not in line)
        point = int(lib.pairs(text.encode())["records"]) + by
        values = "\n".join(line for line in log.statement(point).splitlines() if ":" in line)
        return values + "\n" + counts
    return make


@cases("EKEYREJECTED", [
    (f"one bit of {bank}:{pcr}", flip(bank, pcr)) for bank in lib.banks() for pcr in (10, 11)
] + [
    (f"no {bank}", without(f"{bank}:")) for bank in lib.banks() if len(lib.banks()) > 1
] + [
    ("no PCR 11", without(r"\w+:11=")),
    ("no PCR 10", without(r"\w+:10=")),
    ("no PCR 10 in one bank", without(r"sha256:10=")),
    ("the values of one record earlier", other_point(-1)),
    ("the values of one record later", other_point(1)),
    ("the reset values", lambda _, text: re.sub("=[0-9a-f]{40,}", lambda match: "=" + "0" * (len(match[0]) - 1), text)),
    ("one violation less", lambda _, text: change(text, "violations", -1)),
    ("no violations", lambda _, text: change(text, "violations", -10 ** 6)),
    ("more violations than records", lambda _, text: change(text, "violations", 10 ** 6)),
    ("one record less", lambda _, text: change(text, "records", -1)),
    ("one record more", lambda _, text: change(text, "records", 1)),
    ("no records", lambda _, text: change(text, "records", -10 ** 6)),
    ("no trims", lambda _, text: change(text, "trims", -10 ** 6)),
    ("more trims than records", lambda _, text: change(text, "trims", 10 ** 6)),
    ("a PCR that has another value", lambda _, text: "".join(
        f"{bank}:3={'5a' * size}\n" for bank, size in lib.banks().items()) + text),
])
def _(make):
    refused(case(make), "EKEYREJECTED", "starting values refused: ")


@cases("EINVAL", [
    ("empty", lambda _, text: " \n"),
    ("16 KiB of garbage", lambda _, text: ("\x01garbage" * 2048)[:16384]),
    ("no records=", without("records=")),
    ("no violations=", without("violations=")),
    ("no trims=", without("trims=")),
    ("no values", without(r"\w+:")),
    ("a line twice", lambda _, text: text + text.splitlines()[0]),
    ("records= twice", lambda _, text: text + "records=1"),
    ("another word", lambda _, text: text + "dry-run"),
    ("what is read when nothing is known", lambda _, text: "unknown records=5"),
    ("a short value", lambda _, text: text.replace("=", "=0", 1)),
    ("a PCR that no TPM has", lambda _, text: text + "sha256:24=" + "00" * 32),
])
def _(make):
    refused(case(make), "EINVAL", "starting values refused: ")


@test("E2BIG: more than 16384 bytes")
def _():
    refused(case(lambda _, text: text + " " * (lib.MAX_REQUEST + 1 - len(text))), "E2BIG")


@test("EOPNOTSUPP: a bank that the TPM has not")
def _():
    refused(case(lambda _, text: text + "sm3:10=" + "00" * 32), "EOPNOTSUPP")


@test("EINVAL: not at the beginning")
def _():
    text = case(lambda _, text: text).encode()
    before = lib.snapshot()
    fd = os.open(lib.STARTING_PCRS, os.O_WRONLY)
    try:
        equal(lib.outcome_of(os.pwrite, fd, text, 1), "EINVAL", "error")
    finally:
        os.close(fd)
    lib.unchanged(before, "a write at an offset")


@test("EPERM: who may not, with a descriptor of who may")
def _():
    text = case(lambda _, text: text)
    before = lib.snapshot()
    fd = os.open(lib.STARTING_PCRS, os.O_WRONLY)

    def try_it():
        lib.become_nobody()
        return [lib.outcome_of(os.write, fd, text.encode()),
                lib.outcome_of(os.open, lib.STARTING_PCRS, os.O_WRONLY)]

    try:
        equal(lib.in_child(try_it), ["EPERM", "EACCES"], "errors")
    finally:
        os.close(fd)
    lib.unchanged(before, "a write without the right to")


@test("after all these the right text is taken over")
def _():
    global _lost
    text = case(lambda _, text: text)
    lib.write(lib.STARTING_PCRS, text)
    equal(lib.read(lib.STARTING_PCRS).decode(), text, "starting_pcrs")
    lib.invariant()
    _lost = None


@cases("EKEYREJECTED while the account is whole", [
    ("one violation more", "violations", 1), ("one record more", "records", 1), ("one trim more", "trims", 1),
])
def _(key, by):
    text = lib.read(lib.STARTING_PCRS).decode()
    refused(change(text, key, by), "EKEYREJECTED", "nothing is missing here")
    lib.write(lib.STARTING_PCRS, text)
    equal(lib.read(lib.STARTING_PCRS).decode(), text, "starting_pcrs")


@test("while records arrive the right values are taken over, and wrong ones are not")
def _():
    _, text = lost()
    asked, ask = os.pipe()

    def appender():
        appended = 0
        while not select.select([asked], [], [], 0)[0]:
            lib.measure(2)
            lib.measure(1, pcr=11)
            appended += 3
        return appended

    child = lib.Child(appender)
    try:
        for _ in range(10):
            for make in (flip("sha256", 10), flip("sha256", 11)):
                equal(lib.outcome_of(lib.write, lib.STARTING_PCRS, make(None, text)), "EKEYREJECTED", "error")
        lib.write(lib.STARTING_PCRS, text)
    finally:
        os.write(ask, b"x")
        appended = child.result()
        os.close(asked)
        os.close(ask)
    check(appended > 10, f"only {appended} records arrived")
    equal(lib.read(lib.STARTING_PCRS).decode(), text, "starting_pcrs")
    lib.history(again=True)
    lib.invariant()


lib.main()
