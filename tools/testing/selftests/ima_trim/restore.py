#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Writing starting_pcrs: what it said once is taken back if it leads to what the TPM has, and nothing else is.

Has to be the first of its boot: PCRs 11 and 13 must have no records yet.
"""

import os
import random
import time

import ima_trim_lib as lib
from ima_trim_lib import cases, check, equal, test

# PCRs that the records have, until the tests of other bases. The base of PCR 13 is stated before its first record, that of
# PCR 11 after it.
PCRS = (10, 12)


class Known:
    """What the module said before it forgot it, and all that it is about."""

    log = None
    text = None
    # What it said before the last trim.
    older = None


def stated(point=None, pcrs=PCRS, in_banks=None, log=None, **counts):
    """What starting_pcrs would say after a record, if not told to count otherwise."""
    log = log or Known.log
    point = log.trimmed if point is None else point
    lines = log.tokens(point, in_banks, pcrs).split()
    counts = {"records": point, "violations": len(log.violations(0, point)), "trims": 1} | counts
    return "\n".join(lines + [f"{key}={value}" for key, value in counts.items()]) + "\n"


def without(text, pattern):
    """A text without the lines that match."""
    lines = [line for line in text.splitlines(True) if not lib.re.match(pattern, line)]
    check(len(lines) < len(text.splitlines()), f"nothing in the text is like {pattern}")
    return "".join(lines)


def counted(text, key, count):
    """A text with another count."""
    return lib.re.sub(rf"^{key}=.*", f"{key}={count}", text, flags=lib.re.M)


def more(text, key, by):
    """A text with one of its counts raised or lowered, to nothing at least."""
    return counted(text, key, max(int(lib.re.search(rf"^{key}=(\d+)$", text, lib.re.M)[1]) + by, 0))


def flip(text, token):
    """A text with one bit of a value changed."""
    at = text.index(token + "=") + len(token) + 1
    at += random.Random(token).randrange(0, text.index("\n", at) - at)
    return f"{text[:at]}{int(text[at], 16) ^ 1:x}{text[at + 1:]}"


def verified():
    """Checks that `verify` says ok of all, and gives the PCRs of which it does."""
    fields = lib.pairs(lib.read(lib.VERIFY))
    counts = [int(fields.pop(key)) for key in ("records", "violations")]
    equal(set(fields.values()), {"ok"}, f"what verify says of {fields}")
    records = lib.parse(lib.read(lib.BINARY))
    equal(counts, [len(records), sum(record.violation for record in records)], "records and violations in verify")
    return {int(key.split(":")[1]) for key in fields}


def refuse(text, error, log=None):
    """Checks that a write is refused with this error, and that nothing changes."""
    before = lib.snapshot()
    with lib.KernelLog() as kernel:
        found, said = lib.restore(text)
        if log:
            kernel.expect(log)
    equal(found, error, f"error of writing {text[:2000]!r}")
    equal(said, before[lib.STARTING_PCRS], "what is read on the same descriptor")
    lib.unchanged(before, "a refused write")


def accept(text):
    """Checks that a write is accepted, and that all is certain again."""
    error, said = lib.restore(text)
    equal(error, None, f"error of writing {text!r}")
    equal(said.decode(), text, "what is read on the same descriptor")
    equal(lib.read(lib.STARTING_PCRS).decode(), text, "starting_pcrs")
    status = lib.status()
    equal((status["base"], status["foreign_records"]), ("verified", "0"), "base and foreign_records")
    wanted = lib.Starting(text.encode())
    equal([int(status[key]) for key in ("records_trimmed", "violations_trimmed", "trims")],
          [wanted.records, wanted.violations, wanted.trims], "counts in status")


def settled(log):
    """Checks all that is known after a write that was accepted, and that trims work."""
    equal(verified(), {record.pcr for record in log.records if record.pcr < 24}, "PCRs in verify")
    lib.invariant()
    lib.measure(2)
    lib.history()
    lib.trim(log.tokens(log.total) + f" violations={len(log.violations(log.trimmed, log.total))}", log.total)


def forget(parameters=""):
    """Has the module forget what it knew, after some more trims and records."""
    lib.measure(3)
    lib.measure(2, pcr=12)
    lib.violate_open_writers()
    lib.violate_tomtou()
    lib.measure(2)
    log = lib.history()
    Known.log = log
    Known.older = lib.read(lib.STARTING_PCRS).decode()
    # Among what stays are records of both PCRs and a violation.
    point = log.violations(log.trimmed, log.total)[-1] - 1
    lib.trim(log.tokens(point) + f" violations={len(log.violations(log.trimmed, point))}", point)
    lib.measure(2, pcr=12)
    log.sync()
    Known.text = lib.read(lib.STARTING_PCRS).decode()
    lib.unload()
    with lib.KernelLog() as kernel:
        lib.load(parameters=parameters)
        kernel.expect(rf"somebody else removed {point} records")
    return log


def forgotten():
    """The same, unless it is so already."""
    if lib.status()["base"] != "unknown":
        forget()


# Round trip --------------------------------------------------------------------------------------------------------

@test("starting_pcrs can be written by its owner, verify is there")
def _():
    equal((oct(lib.mode(lib.STARTING_PCRS)), oct(lib.mode(lib.VERIFY))), (oct(0o640), oct(0o440)), "modes")


@test("before any trim: what it says can be written to it, and changes nothing")
def _():
    lib.measure(2)
    before = lib.snapshot()
    accept(lib.read(lib.STARTING_PCRS).decode())
    lib.unchanged(before, "what was there already")


@test("unloaded and loaded again: unknown, and trims are EUCLEAN")
def _():
    log = forget()
    status = lib.status()
    equal((status["base"], int(status["foreign_records"])), ("unknown", log.trimmed), "base and foreign_records")
    equal(lib.read(lib.STARTING_PCRS).decode(), f"unknown records={log.trimmed}\n", "starting_pcrs")
    lib.refuse(log.tokens(log.total), "EUCLEAN", "somebody else removed")
    lib.refuse(log.tokens(log.trimmed) + " dry-run", "EUCLEAN")
    equal(lib.outcome_of(lib.read, lib.VERIFY), "EUCLEAN", "error of reading verify")


@test("what it said is taken back: verified, and the next trim works and counts from where it was")
def _():
    log, trimmed = Known.log, Known.log.trimmed
    accept(Known.text)
    equal(lib.read(lib.VIOLATIONS).decode(), f"dropped={len(log.violations(0, trimmed))}\n", "the file violations")
    equal(verified(), set(PCRS), "PCRs in verify")
    lib.invariant()
    first = log.violations(trimmed, log.total)[0]
    lib.refuse(log.tokens(log.total, pcrs=PCRS), "EBADMSG")
    outcome = lib.trim(log.tokens(log.total, pcrs=PCRS) + " violations=1", log.total)
    equal((outcome.records, outcome.first_violation), (log.total - trimmed, first), "records and first violation")
    lines = lib.read(lib.VIOLATIONS).decode().splitlines()
    equal((len(lines), lines[0].split()[0]), (2, str(first)), "lines of the file violations, and the first number")
    equal(lines[1], f"dropped={len(log.violations(0, trimmed))}", "the last line")
    lib.measure(3)
    settled(log)


@test("once more, through the shell")
def _():
    forget()
    saved = os.path.join(lib.STATE, "saved")
    with open(saved, "w", encoding="ascii") as file:
        file.write(Known.text)
    lib.subprocess.run(["bash", "-c", f"cat {saved} > {lib.STARTING_PCRS}"], check=True)
    equal(lib.read(lib.STARTING_PCRS).decode(), Known.text, "starting_pcrs")
    settled(Known.log)


@test("the order of the tokens and what separates them do not matter, nor the case of digits")
def _():
    forget()
    tokens = Known.text.split()
    tokens = [token.split("=")[0] + "=" + token.split("=")[1].upper() for token in reversed(tokens)]
    error, said = lib.restore(" \t\n " + " \t\n".join(tokens))
    equal((error, said.decode()), (None, Known.text), "outcome")
    settled(Known.log)


@test("16384 bytes are taken")
def _():
    forget()
    equal(lib.restore(Known.text + " " * (lib.MAX_REQUEST - len(Known.text))), (None, Known.text.encode()), "outcome")
    settled(Known.log)


@test("while a process has a list open for reading")
def _():
    forget()
    fd = os.open(lib.BINARY, os.O_RDONLY)
    try:
        accept(Known.text)
    finally:
        os.close(fd)
    settled(Known.log)


# Refusals ----------------------------------------------------------------------------------------------------------

def each_bank(make):
    """The texts that come of a change in each bank and PCR."""
    return [make(f"{bank}:{pcr}") for bank in lib.banks() for pcr in PCRS]


# What the log says after "starting values refused: ".
MISSING = r"\w+:\d+ is missing: give the values"
REPLAY = r"\w+:\d+: the replay of the list from this value does not give what the TPM has"
REMOVED = r"records=\d+, but this kernel removed \d+:"
COUNTED = r"violations=\d+, but.* violations=\d+ is the least that is accepted"
CONTRADICT = "records=, violations= and trims= contradict each other"

# Each gives a text or several.
REJECTED = [
    ("one bit changed, in each bank and PCR", REPLAY, lambda: each_bank(lambda token: flip(Known.text, token))),
    ("a bank missing, each", MISSING, lambda: [without(Known.text, f"{bank}:") for bank in lib.banks()]),
    ("one bank alone, each", MISSING, lambda: [stated(in_banks=[bank]) for bank in lib.banks()]),
    ("a PCR missing, each", MISSING, lambda: [without(Known.text, rf"\w+:{pcr}=") for pcr in PCRS]),
    ("a PCR missing in a bank, each", MISSING, lambda: each_bank(lambda token: without(Known.text, token))),
    ("a PCR more in one bank alone", MISSING, lambda: f"sha256:15={'00' * 32}\n{Known.text}"),
    ("a PCR more with a value that it does not have", REPLAY, lambda: [
        "".join(f"{bank}:15={'5a' * size}\n" for bank, size in lib.banks().items()) + Known.text]),
    ("values of one record earlier", REPLAY, lambda: stated(Known.log.trimmed - 1, records=Known.log.trimmed)),
    ("values and number of one record earlier", REPLAY, lambda: stated(Known.log.trimmed - 1)),
    ("values of one record later", REPLAY, lambda: stated(Known.log.trimmed + 1, records=Known.log.trimmed)),
    ("values and number of one record later", REPLAY, lambda: stated(Known.log.trimmed + 1)),
    ("values of the TPM", REPLAY, lambda: stated(Known.log.total, records=Known.log.trimmed)),
    ("values of the TPM and the number of all records", REPLAY, lambda: stated(Known.log.total)),
    ("reset values and zeros", REPLAY, lambda: stated(0, trims=0)),
    ("reset values, with the right counts", REPLAY, lambda: lib.re.sub(
        r"=[0-9a-f]{32,}", lambda match: "=" + "0" * (len(match[0]) - 1), Known.text)),
    ("what it said before the last trim", REPLAY, lambda: Known.older),
    ("values of PCR 10 in PCR 12 and the other way round", REPLAY, lambda: Known.text.replace(":10=", ":X=").replace(
        ":12=", ":10=").replace(":X=", ":12=")),
    ("one record less", REMOVED, lambda: more(Known.text, "records", -1)),
    ("one record more", REMOVED, lambda: more(Known.text, "records", 1)),
    ("no records", CONTRADICT, lambda: more(more(Known.text, "records", -999), "trims", -999)),
    ("one violation less", COUNTED, lambda: more(Known.text, "violations", -1)),
    ("no violations", COUNTED, lambda: more(Known.text, "violations", -999)),
    ("more violations than records", CONTRADICT, lambda: counted(Known.text, "violations", Known.log.trimmed + 1)),
    ("more violations than anything", CONTRADICT, lambda: counted(Known.text, "violations", (1 << 64) - 1)),
    ("records without a trim", CONTRADICT, lambda: more(Known.text, "trims", -999)),
    ("more trims than records", CONTRADICT, lambda: counted(Known.text, "trims", Known.log.trimmed + 1)),
]


@cases("EKEYREJECTED, and the log says why", REJECTED)
def _(why, make):
    forgotten()
    texts = make()
    for text in [texts] if isinstance(texts, str) else texts:
        refuse(text, "EKEYREJECTED", f"ima_trim: starting values refused: {why}")


@test("more violations than there were are taken: IMA's counter tells the least only, as there may be no memory for a record")
def _():
    forgotten()
    text = more(Known.text, "violations", 1)
    equal(lib.restore(text), (None, text.encode()), "outcome")
    lib.unload()
    lib.load()


def known_pcr(text):
    """A text with one of its tokens replaced by what it is given."""
    return lambda: Known.text.replace("records=", f"{text}\nrecords=", 1)


MALFORMED = [
    ("nothing but a newline", lambda: "\n"),
    ("random bytes, 16 KiB", lambda: random.Random(3).randbytes(lib.MAX_REQUEST)),
    ("one letter, 16 KiB", lambda: "a" * lib.MAX_REQUEST),
    ("bytes of zeros, 16 KiB", lambda: bytes(lib.MAX_REQUEST)),
    ("no records=", lambda: without(Known.text, "records=")),
    ("no violations=", lambda: without(Known.text, "violations=")),
    ("no trims=", lambda: without(Known.text, "trims=")),
    ("no PCR token", lambda: without(Known.text, r"\w+:")),
    ("a PCR token twice", lambda: Known.text + Known.text.splitlines()[0]),
    ("a PCR token twice, with another value", lambda: f"{Known.text}sha256:10={'00' * 32}\n"),
    ("records= twice", lambda: f"{Known.text}records={Known.log.trimmed}\n"),
    ("violations= twice", lambda: f"{Known.text}violations=0\n"),
    ("trims= twice", lambda: f"{Known.text}trims=1\n"),
    ("instance= twice", lambda: f"{Known.text}instance={lib.status()['instance']}\ninstance={lib.status()['instance']}\n"),
    ("instance= that is too short", lambda: f"{Known.text}instance={lib.status()['instance'][2:]}\n"),
    ("a word that is not known", lambda: f"{Known.text}please\n"),
    ("a key that is not known", lambda: f"{Known.text}base=verified\n"),
    ("what only a trim takes: dry-run", lambda: f"{Known.text}dry-run\n"),
    ("what only a trim takes: flush", lambda: f"{Known.text}flush\n"),
    ("what it says when it knows nothing", lambda: "unknown records=5"),
    ("what it says now", lambda: lib.read(lib.STARTING_PCRS)),
    ("what it says when it knows nothing before what it should say", lambda: f"unknown {Known.text}"),
    ("a negative count", lambda: Known.text.replace("violations=", "violations=-")),
    ("a count in hexadecimal", lambda: Known.text.replace("trims=", "trims=0x")),
    ("a count of more than 64 bits", lambda: counted(Known.text, "violations", 1 << 64)),
    ("a count that is the right one in 64 bits", lambda: more(Known.text, "records", 1 << 64)),
    ("no count", lambda: counted(Known.text, "trims", "")),
    ("a value that is a byte short", lambda: lib.re.sub("(sha256:10=..*)..$", r"\1", Known.text, flags=lib.re.M)),
    ("a digit that is none", lambda: lib.re.sub("(sha256:10=.*).$", r"\1g", Known.text, flags=lib.re.M)),
    ("PCR 24", known_pcr("sha256:24=" + "00" * 32)),
    ("an algorithm that is not known", known_pcr("sha257:10=" + "00" * 32)),
    ("a byte of zeros at the end", lambda: Known.text + "\0"),
]


@cases("EINVAL", MALFORMED)
def _(make):
    forgotten()
    refuse(make(), "EINVAL", "ima_trim: .*(refused|rejected)")


@test("EKEYREJECTED for another instance, and the log says so; with this one it is as without")
def _():
    forgotten()
    own = lib.status()["instance"]
    other = ("0" if own[0] != "0" else "1") + own[1:]
    refuse(f"instance={other}\n{Known.text}", "EKEYREJECTED", "ima_trim: .*instance=")
    refuse(f"instance={own}\n{stated(0, trims=0)}", "EKEYREJECTED", REPLAY)
    equal(lib.restore(f"instance={own}\n{Known.text}"), (None, Known.text.encode()), "outcome")


@test("the least number of violations that is accepted is named, and accepted")
def _():
    forgotten()
    least = int(lib.re.search(r"^violations=(\d+)$", Known.text, lib.re.M)[1])
    with lib.KernelLog() as kernel:
        equal(lib.restore(counted(Known.text, "violations", 0))[0], "EKEYREJECTED", "error without violations")
        found = lib.re.search(r"violations=(\d+) is the least that is accepted.*no\s+memory", kernel.text())
    check(found and int(found[1]) == least, f"the log does not say {least}, and why")
    equal(lib.restore(Known.text), (None, Known.text.encode()), "outcome with the least")


@cases("E2BIG", [("16385 bytes", lib.MAX_REQUEST + 1), ("64 KiB", 1 << 16), ("1 MiB", 1 << 20)])
def _(size):
    forgotten()
    refuse(Known.text + " " * (size - len(Known.text)), "E2BIG", "16384")
    refuse("x" * size, "E2BIG")


@cases("EOPNOTSUPP: a bank that the TPM does not have", [
    ("sm3", "sm3:10=" + "00" * 32), ("sha224", "sha224:10=" + "00" * 28),
])
def _(token):
    forgotten()
    refuse(f"{token}\n{Known.text}", "EOPNOTSUPP", token.split(":")[0])


@test("an empty write changes nothing")
def _():
    forgotten()
    before = lib.snapshot()
    check(lib.restore("")[0] in (None, "EINVAL"), "error of an empty write")
    lib.unchanged(before, "an empty write")


@test("a write at an offset is refused")
def _():
    forgotten()
    before = lib.snapshot()
    fd = os.open(lib.STARTING_PCRS, os.O_RDWR)
    try:
        for offset in (1, 4096, 1 << 40):
            equal(lib.outcome_of(os.pwrite, fd, Known.text.encode(), offset), "EINVAL", f"error at offset {offset}")
    finally:
        os.close(fd)
    lib.unchanged(before, "a write at an offset")


@cases("a text cut in two writes is never taken", [
    ("between two lines", lambda text: text.index("\n") + 1),
    ("in a value", lambda text: text.index("=") + 9),
    ("before the last line", lambda text: text.index("trims=")),
    ("in the last key", lambda text: text.index("trims=") + 3),
])
def _(where):
    forgotten()
    cut = where(Known.text)
    before = lib.snapshot()
    fd = os.open(lib.STARTING_PCRS, os.O_RDWR)
    try:
        for half in (Known.text[:cut], Known.text[cut:]):
            check(lib.outcome_of(os.write, fd, half.encode()) in ("EINVAL", "EKEYREJECTED"), "error of half a text")
    finally:
        os.close(fd)
    lib.unchanged(before, "half a text")


@test("line by line, as a shell would write it, it is never taken")
def _():
    forgotten()
    before = lib.snapshot()
    for line in Known.text.splitlines(True):
        equal(lib.restore(line)[0], "EINVAL", f"error of {line!r}")
    lib.unchanged(before, "a line alone")


class Mode:
    """Lets everybody write to starting_pcrs for a while, as far as its mode says."""

    def __enter__(self):
        os.chmod(lib.STARTING_PCRS, 0o666)

    def __exit__(self, *_):
        os.chmod(lib.STARTING_PCRS, 0o640)


WHO = [("an unprivileged user", lib.become_nobody), ("root of a user namespace", lib.become_root_of_namespace)]


def attempt(become, fd=None):
    """Where opening for writing and writing fail for a process that gave up what it may."""
    def write():
        become()
        try:
            target = os.open(lib.STARTING_PCRS, os.O_WRONLY) if fd is None else fd
        except OSError as error:
            return ["open", lib.error_name(error.errno)]
        return ["write", lib.outcome_of(os.write, target, Known.text.encode())]
    return lib.in_child(write)


@cases("EPERM, even if its mode lets everybody", WHO)
def _(become):
    forgotten()
    before = lib.snapshot()
    with Mode():
        equal(attempt(become), ["open", "EPERM"], "outcome")
    lib.unchanged(before, "a refused open")


@test("EACCES for an unprivileged user, by its mode; and with the mode of a group's file a group can read it")
def _():
    forgotten()
    equal(attempt(lib.become_nobody), ["open", "EACCES"], "outcome")

    def in_group():
        os.setgroups([777])
        os.setresgid(lib.NOBODY, lib.NOBODY, lib.NOBODY)
        os.setresuid(lib.NOBODY, lib.NOBODY, lib.NOBODY)
        return [lib.read(lib.STARTING_PCRS).decode(), lib.outcome_of(os.open, lib.STARTING_PCRS, os.O_WRONLY)]

    os.chown(lib.STARTING_PCRS, 0, 777)
    try:
        said = lib.read(lib.STARTING_PCRS).decode()
        equal(lib.in_child(in_group), [said, "EACCES"], "what a member of the group can")
    finally:
        os.chown(lib.STARTING_PCRS, 0, 0)


@cases("EPERM with a descriptor that root opened", WHO)
def _(become):
    forgotten()
    before = lib.snapshot()
    fd = os.open(lib.STARTING_PCRS, os.O_RDWR)
    try:
        equal(attempt(become, fd), ["write", "EPERM"], "outcome")
        lib.unchanged(before, "a refused write")
        # The twin: passed on to a process that kept its rights, it works.
        equal(attempt(lambda: None, fd), ["write", None], "outcome of root's own process")
    finally:
        os.close(fd)
    equal(lib.read(lib.STARTING_PCRS).decode(), Known.text, "starting_pcrs")
    settled(Known.log)


@test("several writes on one descriptor, each followed by what starting_pcrs says then")
def _():
    forget()
    before = lib.read(lib.STARTING_PCRS)
    fd = os.open(lib.STARTING_PCRS, os.O_RDWR)
    try:
        for text, error, said in (
            ("junk", "EINVAL", before), (flip(Known.text, "sha1:12"), "EKEYREJECTED", before),
            (Known.text, None, Known.text.encode()), (Known.text, None, Known.text.encode()),
            (flip(Known.text, "sha1:12"), "EKEYREJECTED", Known.text.encode()),
        ):
            equal(lib.restore(text, fd), (error, said), "outcome")
            os.lseek(fd, 0, os.SEEK_SET)
    finally:
        os.close(fd)
    settled(Known.log)


# While the account is whole ----------------------------------------------------------------------------------------

@test("while nothing is missing: what it says can be written to it, and its counts cannot be changed")
def _():
    lib.measure(3)
    lib.violate_open_writers()
    lib.measure(pcr=12)
    log = Known.log = lib.history()
    lib.trim(log.tokens(log.trimmed + 1), log.trimmed + 1)
    text = Known.text = lib.read(lib.STARTING_PCRS).decode()
    before = lib.status()
    for key in ("records", "violations", "trims"):
        for by in (-1, 1):
            refuse(more(text, key, by), "EKEYREJECTED", "ima_trim: .*(refused|rejected)")
    refuse(stated(0, trims=0), "EKEYREJECTED")
    refuse(stated(log.trimmed + 1), "EKEYREJECTED")
    refuse(stated(log.total), "EKEYREJECTED")
    for bank in lib.banks():
        refuse(flip(text, f"{bank}:10"), "EKEYREJECTED")
    accept(text)
    equal(lib.status(), before, "status after what was there already was written")
    settled(log)


# What somebody else trimmed ----------------------------------------------------------------------------------------

def blind(records):
    """Has the kernel itself trim, which tells the module nothing. Gives the history, which goes on from there."""
    log = Known.log = lib.history()
    lib.write(lib.ASCII, f"{records}\n")
    log.take(log.trimmed + records, lib.parse(lib.read(lib.BINARY)))
    return log


def unguarded():
    """Loads the module so that the kernel's own trim is possible beside it."""
    if lib.status()["guard"] == "on":
        lib.reload("guard=0")


@test("after a trim by the kernel with the module unloaded: the values of the tests' own replay are taken")
def _():
    lib.measure(5)
    lib.measure(pcr=12)
    log = lib.history()
    trims = int(lib.status()["trims"])
    lib.unload()
    # The history cannot look at starting_pcrs meanwhile.
    records = lib.parse(lib.read(lib.BINARY))
    lib.write(lib.ASCII, "3\n")
    log.take(log.trimmed + 3, records[3:])
    Known.log = log
    lib.load()
    equal(lib.read(lib.STARTING_PCRS).decode(), f"unknown records={log.trimmed}\n", "starting_pcrs")
    refuse(stated(log.trimmed - 3), "EKEYREJECTED")
    refuse(stated(log.trimmed - 3, records=log.trimmed), "EKEYREJECTED")
    refuse(stated(log.trimmed + 1, records=log.trimmed), "EKEYREJECTED")
    accept(stated(trims=trims + 1))
    settled(log)


@test("after a trim by the kernel with guard=0: the log names it, and the values of the tests' own replay are taken")
def _():
    unguarded()
    lib.measure(5)
    lib.measure(pcr=12)
    own = lib.read(lib.STARTING_PCRS).decode()
    trims = int(lib.status()["trims"])
    with lib.KernelLog() as kernel:
        log = blind(2)
        equal(lib.read(lib.STARTING_PCRS), b"unknown records=2\n", "starting_pcrs")
        kernel.expect("somebody else removed 2 records")
    # One of the trims of the module itself left out.
    refuse(stated(trims=trims - 1), "EKEYREJECTED", f"trims={trims} are known here")
    # What it said itself before that, and what would be right had nobody trimmed.
    refuse(own, "EKEYREJECTED")
    refuse(more(own, "records", 2), "EKEYREJECTED")
    refuse(stated(records=log.trimmed - 2), "EKEYREJECTED")
    refuse(stated(records=2), "EKEYREJECTED")
    accept(stated(trims=trims + 1))
    settled(log)


@test("a violation that the kernel dropped cannot be left out")
def _():
    unguarded()
    lib.measure(2)
    lib.violate_open_writers()
    lib.measure(pcr=12)
    lib.violate_tomtou()
    log = lib.history()
    trims = int(lib.status()["trims"]) + 1
    before = len(log.violations(0, log.trimmed))
    first = log.violations(log.trimmed, log.total)[0]
    blind(first - log.trimmed)
    equal(len(log.violations(0, log.trimmed)), before + 1, "violations dropped")
    refuse(stated(violations=before, trims=trims), "EKEYREJECTED", "violation")
    accept(stated(trims=trims))
    equal(int(lib.status()["violations_trimmed"]), before + 1, "violations_trimmed")
    settled(log)


@test("EBUSY while a process has a list open for writing")
def _():
    unguarded()
    lib.measure(4)
    trims = int(lib.status()["trims"]) + 1
    log = blind(2)
    ready, tell = os.pipe()

    def hold():
        fd = os.open(lib.ASCII, os.O_WRONLY)
        os.write(tell, b"x")
        time.sleep(60)
        os.close(fd)

    child = lib.Child(hold)
    os.read(ready, 1)
    # The lists cannot be read meanwhile.
    before = [lib.read(path) for path in (lib.STATUS, lib.STARTING_PCRS, lib.VIOLATIONS)]
    with lib.KernelLog() as kernel:
        equal(lib.restore(stated(trims=trims))[0], "EBUSY", "error")
        kernel.expect("open for writing")
    equal([lib.read(path) for path in (lib.STATUS, lib.STARTING_PCRS, lib.VIOLATIONS)], before, "the files")
    child.kill()
    os.close(ready)
    os.close(tell)
    accept(stated(trims=trims))
    settled(log)


@test("all of it again with guard=1, where the kernel's own trim is kept out")
def _():
    lib.reload()
    lib.measure(2)
    equal(lib.outcome_of(lib.write, lib.ASCII, "1\n"), "EBUSY", "error of the kernel's own trim")
    forget()
    accept(Known.text)
    settled(Known.log)


# While records arrive ----------------------------------------------------------------------------------------------

class Appender:
    """Has IMA append as fast as it can, records of two PCRs, until the end of the block."""

    def __enter__(self):
        self.asked, self.ask = os.pipe()

        def append():
            appended = 0
            while not lib.select.select([self.asked], [], [], 0)[0]:
                lib.measure(3)
                lib.measure(1, pcr=12)
                appended += 4
            return appended

        self.child = lib.Child(append)
        return self

    def __exit__(self, *_):
        os.write(self.ask, b"x")
        self.appended = self.child.result()
        os.close(self.asked)
        os.close(self.ask)


@test("while records arrive: what is right is taken, what is wrong is not")
def _():
    log = Known.log = lib.history()
    text = Known.text = lib.read(lib.STARTING_PCRS).decode()
    with Appender() as appender:
        for round_ in range(10):
            if round_ % 5 == 0:
                lib.unload()
                lib.load()
                equal(lib.read(lib.STARTING_PCRS).decode(), f"unknown records={log.trimmed}\n", "starting_pcrs")
            for wrong in (flip(text, f"sha256:{PCRS[round_ % 2]}"), more(text, "records", 1)):
                before = lib.read(lib.STARTING_PCRS)
                equal(lib.restore(wrong), ("EKEYREJECTED", before), "outcome of a wrong text")
            equal(lib.restore(text), (None, text.encode()), "outcome of the right text")
            equal(lib.status()["base"], "verified", "base")
    check(appender.appended > 40, f"{appender.appended} records appended meanwhile: too few for this test")
    lib.history()
    settled(log)


@test("evmctl: the records trimmed and those left match the TPM")
def _():
    lib.measure(2)
    equal(lib.evmctl(lib.history().records), 0, "exit status")


# Evidence ----------------------------------------------------------------------------------------------------------

@test("a write that is accepted is audited, one that is refused is not")
def _():
    forget()
    with lib.AuditLog() as audit:
        equal(lib.restore(flip(Known.text, "sha256:10"))[0], "EKEYREJECTED", "error")
        equal(lib.restore("junk")[0], "EINVAL", "error")
        equal(audit.records("ima_trim"), [], "audit records of refused writes")
        accept(Known.text)
        (record,) = audit.records("ima_trim")
    status = lib.status()
    equal({key: record[key] for key in ("type", "pid", "uid", "cause", "res", "errno")}, {
        "type": 1804, "pid": str(os.getpid()), "uid": "0", "cause": "restore", "res": "1", "errno": "0",
    }, "fields of the audit record")
    equal([record[key] for key in ("records_trimmed", "violations_trimmed", "trims")],
          [status[key] for key in ("records_trimmed", "violations_trimmed", "trims")], "counts in the audit record")
    lib.history()
    settled(Known.log)


# PCRs that something else extended first ---------------------------------------------------------------------------

def extend(pcr):
    """Extends a PCR in all banks, as the firmware or a boot loader would, before its first record."""
    for bank in lib.banks():
        lib.tpm_extend(pcr, bank)
    lib.set_base(pcr)


def with_base(pcr, log):
    """What starting_pcrs says now, and the base of one more PCR."""
    now = lib.Starting(lib.read(lib.STARTING_PCRS))
    pcrs = sorted({number for _, number in now.values} | {pcr})
    return stated(now.records, pcrs, log=log, violations=now.violations, trims=now.trims)


@test("PCR 11, extended by something else before its first record: base=unverified, trims are EUCLEAN")
def _():
    log = Known.log = lib.clear()[0]
    extend(11)
    equal(lib.status()["base"], "verified", "base before a record of PCR 11")
    lib.measure(pcr=11)
    equal(lib.status()["base"], "verified", "base, as of the last verify")
    with lib.KernelLog() as kernel:
        fields = lib.pairs(lib.read(lib.VERIFY))
        kernel.expect(r"PCR 11\b")
    equal(lib.status()["base"], "unverified", "base")
    lib.measure(2)
    for bank in lib.banks():
        equal((fields[f"{bank}:10"], fields[f"{bank}:11"]), ("ok", "mismatch"), "what verify says of PCRs 10 and 11")
    log.sync()
    for text in (log.tokens(log.total, pcrs=[11]), log.tokens(log.total), log.tokens(log.total, pcrs=[10, 11])):
        lib.refuse(text, "EUCLEAN", r"PCR 11\b.*not verified")


@test("PCR 11: a base that is not the right one is refused")
def _():
    log = Known.log
    text = with_base(11, log)
    for bank in lib.banks():
        refuse(flip(text, f"{bank}:11"), "EKEYREJECTED", "ima_trim: .*(refused|rejected)")
        refuse(without(text, f"{bank}:11"), "EKEYREJECTED")
    # The reset values, what the TPM has now, and PCR 11 left out.
    refuse(lib.re.sub(r"(:11)=(.*)", lambda match: f"{match[1]}={'0' * len(match[2])}", text), "EKEYREJECTED")
    refuse(lib.re.sub(
        r"(\w+):11=.*", lambda match: f"{match[1]}:11={lib.tpm_value(match[1], 11).hex()}", text), "EKEYREJECTED")
    refuse(lib.read(lib.STARTING_PCRS), "EKEYREJECTED")
    refuse(more(text, "trims", 1), "EKEYREJECTED")
    equal(lib.status()["base"], "unverified", "base")


@test("PCR 11: once its base is written, it is verified, and trims work")
def _():
    log = Known.log
    accept(with_base(11, log))
    equal(verified(), {10, 11, 12}, "PCRs in verify")
    lib.invariant()
    lib.measure(2, pcr=11)
    log.sync()
    lib.trim(log.tokens(log.total - 1, pcrs=[10, 11]), log.total - 1)
    lib.trim(log.tokens(log.total, pcrs=[11]), log.total)


@test("PCR 13: what is right before its first record proves nothing of it")
def _():
    log = Known.log
    lib.measure()
    log.sync()
    equal(lib.request(log.tokens(log.total, pcrs=[10, 13]) + " dry-run").error, None, "error of a request that names PCR 13")
    extend(13)
    accept(with_base(13, log))
    extend(13)
    lib.measure(pcr=13)
    lib.measure()
    log.sync()
    # Nobody has looked at it since.
    equal(lib.status()["base"], "verified", "base with a record of PCR 13, as of the last look")
    equal(lib.request(log.tokens(log.total, pcrs=[10])).error, "EUCLEAN", "error of the first request")
    equal(lib.status()["base"], "unverified", "base after it")
    lib.refuse(log.tokens(log.total, pcrs=[10]), "EUCLEAN", r"PCR 13\b.*not verified")


@test("PCR 13: its base can be written")
def _():
    log = Known.log
    text = with_base(13, log)
    for bank in lib.banks():
        refuse(flip(text, f"{bank}:13"), "EKEYREJECTED")
    accept(text)
    lib.measure(3, pcr=13)
    lib.measure(2)
    equal(verified(), {10, 11, 12, 13}, "PCRs in verify")
    equal(lib.status()["base"], "verified", "base with records of PCR 13")
    log.sync()
    lib.trim(log.tokens(log.total - 1, pcrs=[10, 13]), log.total - 1)


@test("all that survives another unload and load, if it is written back")
def _():
    lib.measure(2, pcr=13)
    lib.measure()
    log = lib.history()
    text = lib.read(lib.STARTING_PCRS).decode()
    lib.unload()
    lib.load()
    refuse(without(text, r"\w+:13="), "EKEYREJECTED")
    accept(text)
    equal(verified(), {10, 11, 12, 13}, "PCRs in verify")
    lib.invariant()
    lib.trim(log.tokens(log.total, pcrs=[10, 11, 12, 13]), log.total)


@test("PCR 12, extended by something else while the list has no record of it: EKEYREJECTED for another base, as nothing is missing")
def _():
    lib.measure(pcr=12)
    equal(lib.status()["base"], "verified", "base with a record of PCR 12")
    log = lib.clear()[0]
    text = lib.read(lib.STARTING_PCRS).decode()
    for bank in lib.banks():
        lib.tpm_extend(12, bank)
    fields = lib.pairs(lib.read(lib.VERIFY))
    equal({fields[f"{bank}:12"] for bank in lib.banks()}, {"mismatch"}, "what verify says of PCR 12")
    washed = lib.re.sub(r"(\w+):12=.*", lambda match: f"{match[1]}:12={lib.tpm_value(match[1], 12).hex()}", text)
    refuse(washed, "EKEYREJECTED", "nothing is missing here, and its starting value is another")
    equal(lib.pairs(lib.read(lib.VERIFY)), fields, "what verify says afterwards")
    equal(log.trimmed, log.total, "number of the last record trimmed")


lib.main()
