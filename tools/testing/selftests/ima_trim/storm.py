#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""A storm: for a set time all that the module and IMA's list are used for at once, and nothing waits for anything.

Appenders, readers of the lists, trimmers with right, stale, wrong and malformed requests, readers of the module's own
files, somebody who loads the module anew and gives it its values back, and somebody who trims through the kernel's own
interface. Whoever trims archives the records first, as a careful agent does; the archive is all that they share. What is
seen is checked as it comes: each kind of request has the outcomes that it may have. In the end the records that are gone
have to be exactly those that somebody said to have trimmed, and all records together the value of the TPM.

TEST_SECONDS is for how long (180 s), TEST_SEED what the choices are made from. Where a host is so slow that not all of it has
happened by then, there is another storm after the first, and a third; not so if it was long.
"""

import collections
import contextlib
import errno
import fcntl
import os
import random
import time

import ima_trim_lib as lib
from ima_trim_lib import check, equal, test

SECONDS = int(os.environ.get("TEST_SECONDS") or 180)
SEED = os.environ.get("TEST_SEED") or str(random.SystemRandom().randrange(1 << 32))
ARCHIVE = os.path.join(lib.STATE, "storm-archive")
LOCK = os.path.join(lib.STATE, "storm-lock")
# Appenders rest while the list has more records than this, so that a walk of it stays short.
MANY = 1200
# Records that are gone and whose values are remembered, for stale requests.
STALE = 40
# A file of the module that cannot be opened because the module is not loaded now: it is not found, or was found while the
# module goes, before and after the inode was made bad.
UNLOADED = (errno.ENOENT, errno.ENODEV, errno.EIO)
# How often something is tried that others can be in the way of.
TRIES = 2000
MODES = ("", "keep", "compact", "flush")
MALFORMED = {
    "EINVAL": ("", "junk", "sha256:10", "sha256:10=00", "sha256:24=" + "00" * 32, "sha256:10=" + "zz" * 32, "dry-run",
               "violations=-1", "keep flush sha256:10=" + "00" * 32, "sha256:10=" + "00" * 32 + " sha256:10=" + "00" * 32),
    "EOPNOTSUPP": ("sm3:10=" + "00" * 32,),
    "E2BIG": ("x" * (lib.MAX_REQUEST + 1),),
}


class Gone(Exception):
    """The module is not loaded now."""


def bump(counts, *what):
    """Counts one of these."""
    counts[" ".join(str(part) for part in what)] += 1


class Bag:
    """Things in random order, each as often as it weighs before any comes again; at the beginning each comes once.

    So each is had even in a short storm, in which most of what is tried finds somebody in the way.
    """

    def __init__(self, weights):
        self.weights = weights
        self.left = random.sample(list(weights), len(weights))

    @property
    def first(self):
        """The thing that is next."""
        return self.left[-1]

    def take(self):
        """It was had."""
        self.left.pop()
        if not self.left:
            self.left = random.sample(list(self.weights), counts=self.weights.values(), k=sum(self.weights.values()))

    def put_off(self):
        """It cannot be had now."""
        self.left.insert(0, self.left.pop())


class Archive:
    """The records that anybody has seen, in a file, of which each process knows the end: from a little before the head of
    the list.

    Records are numbered from 1, so the record n is window[n - first - 1], and values[n - first] are those after it.
    """

    def __init__(self):
        self.offset = 0
        self.first = 0
        self.window = []
        self.values = [{}]
        # The number of records that were gone when the list was last looked at.
        self.head = 0

    @property
    def total(self):
        """The number of the last record."""
        return self.first + len(self.window)

    def _add(self, records):
        for record in records:
            self.window.append(record)
            self.values.append(lib.replay(self.values[-1], [record]))

    def sync(self, fd):
        """Adds what is new in the list that is open here, in which nothing can be trimmed meanwhile."""
        with open(LOCK, "wb") as lock, open(ARCHIVE, "a+b") as file:
            fcntl.flock(lock, fcntl.LOCK_EX)
            file.seek(self.offset)
            self._add(lib.parse(file.read()))
            self.offset = file.tell()
            with opened_file(lib.STATUS, os.O_RDONLY) as module:
                status = lib.pairs(lib.read_fd(module))
            self.head = int(status["records_trimmed"]) + int(status["foreign_records"])
            os.lseek(fd, 0, os.SEEK_SET)
            records = lib.parse(lib.read_fd(fd))
            check(self.first <= self.head <= self.total, f"records up to {self.head} are gone, {self.total} were archived")
            for old, now in zip(self.window[self.head - self.first:], records):
                equal(now.raw, old.raw, "a record seen before")
            new = records[self.total - self.head:]
            file.write(b"".join(record.raw for record in new))
            file.flush()
            self.offset = file.tell()
            self._add(new)
        equal(self.head + len(records), self.total, "records ever seen")
        old = max(self.head - STALE - self.first, 0)
        del self.window[:old], self.values[:old]
        self.first += old
        return status

    def value(self, point, bank, pcr):
        """The value of a PCR after a record."""
        return self.values[point - self.first].get((bank, pcr)) or lib.reset_value(bank, pcr)

    def tokens(self, point, banks, pcrs):
        """The PCR tokens that name the point after a record."""
        return " ".join(f"{bank}:{pcr}={self.value(point, bank, pcr).hex()}" for bank in banks for pcr in pcrs)

    def earliest(self, point, banks, pcrs):
        """The first point, from the head on, at which these PCRs have the values that they have at this one."""
        wanted = [self.value(point, bank, pcr) for bank in banks for pcr in pcrs]
        return next(at for at in range(self.head, point + 1)
                    if wanted == [self.value(at, bank, pcr) for bank in banks for pcr in pcrs])

    def violations(self, begin, end):
        """The numbers of the violations after record `begin` up to record `end`."""
        return [at for at in range(begin + 1, end + 1) if self.window[at - self.first - 1].violation]


@contextlib.contextmanager
def opened_file(path, flags):
    """A descriptor of a file of the module."""
    try:
        fd = os.open(path, flags | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in UNLOADED:
            raise Gone from None
        raise
    try:
        yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def opened_list(flags=os.O_RDONLY, path=lib.BINARY, tries=TRIES):
    """A descriptor of the list, for which others may have to close theirs; None if they do not."""
    fd = None
    while fd is None and tries:
        try:
            fd = os.open(path, flags | os.O_CLOEXEC)
        except OSError as error:
            equal(error.errno, errno.EBUSY, f"error of opening {path}")
            tries -= 1
            time.sleep(0.002)
    try:
        yield fd
    finally:
        if fd is not None:
            os.close(fd)


def look(archive):
    """Archives what is in the list. Says whether that could be done."""
    # On a machine with other work a writer can be kept from closing it for long.
    with opened_list(tries=10 * TRIES) as fd:
        check(fd is not None, "somebody has the list open for writing, for long")
        archive.sync(fd)


# Those who append ---------------------------------------------------------------------------------------------------

def appender(counts, number):
    """Has IMA append, as fast as it can. Counts the records."""
    while (yield):
        if lib.count() > MANY:
            bump(counts, "rests of appenders")
            time.sleep(0.02)
            continue
        pcr = random.choice((10, 10, 10, 11, 12, 30) if number else (10,))
        kind = random.randrange(12)
        if kind == 0:
            lib.violate_tomtou(pcr)
            counts["violations"] += 1
            counts["records"] += 2
        elif kind == 1:
            lib.violate_open_writers(pcr)
            counts["violations"] += 1
            counts["records"] += 2
        else:
            lib.measure(1, pcr)
            counts["records"] += 1


# Those who read -----------------------------------------------------------------------------------------------------

def reader(counts):
    """Opens the lists, reads them in odd sizes, seeks, and closes them somewhere."""
    files = lib.list_files()
    while (yield):
        path = random.choice(files)
        whole = random.random() < 0.3
        size = random.choice((1, 7, 61, 509, 4093, 65537))
        began = time.monotonic()
        with opened_list(path=path, tries=1) as fd:
            if fd is None:
                bump(counts, "lists not opened:", "EBUSY")
                continue
            # One byte at a time is for the start only.
            left = 1 << 30 if whole and size > 60 else random.randrange(1, 60) * size
            parts = []
            while left > 0 and (part := os.read(fd, min(size, left))):
                parts.append(part)
                left -= len(part)
                if not whole and random.random() < 0.1:
                    os.lseek(fd, random.choice((0, len(part), 1 << 20)), os.SEEK_SET)
            if whole and left > 0 and path == lib.BINARY:
                lib.parse(b"".join(parts))
        bump(counts, "lists read")
        # As long as it has a list open nobody trims: where all is slow, that is long.
        time.sleep(random.random() * 6 * (time.monotonic() - began))


def inspector(counts):
    """Reads the files of the module. verify may be refused, but it never finds that the TPM has another value."""
    while (yield):
        path = random.choice((lib.VERIFY, lib.VERIFY, lib.STATUS, lib.STARTING_PCRS, lib.VIOLATIONS, lib.TRIM))
        name = os.path.basename(path)
        try:
            with opened_file(path, os.O_RDONLY) as fd:
                text = lib.read_fd(fd)
            if path == lib.VERIFY:
                check(b"mismatch" not in text and b":10=ok\n" in text, f"verify: {text!r}")
            bump(counts, name, "read")
        except Gone:
            bump(counts, "the module's files not opened:", "unloaded")
        except OSError as error:
            equal(path, lib.VERIFY, "the file that cannot be read")
            check(lib.error_name(error.errno) in ("EUCLEAN", "EBUSY"), f"error of reading verify: {error}")
            bump(counts, name, lib.error_name(error.errno))
        time.sleep(random.random() * 0.02)


# Those who trim -----------------------------------------------------------------------------------------------------

# What kinds of requests there are, how often they are made, and what their outcome may be: a result or an error.
BUSY = {"EBUSY", "EUCLEAN"}
KINDS = {
    # Somebody else may have trimmed meanwhile: beyond the point, up to it, or a part of what comes before.
    "right": (8, {"trimmed", "nothing", "ENOENT", "EBADMSG"} | BUSY),
    "dry-run": (2, {"dry-run", "nothing", "ENOENT", "EBADMSG"} | BUSY),
    "misstated": (2, {"nothing", "ENOENT", "EBADMSG"} | BUSY),
    "stale": (1, {"ENOENT"} | BUSY),
    "wrong": (1, {"ENOENT"} | BUSY),
    "malformed": (2, set()),
}


def trimmer(counts, intervals):
    """Writes requests of all kinds. Notes what was trimmed: numbers of the record before it and of the last one."""
    archive = Archive()
    kinds = Bag({kind: weight for kind, (weight, _) in KINDS.items()})
    modes = Bag({mode: 1 for mode in MODES})
    while (yield):
        kind, mode = kinds.first, modes.first
        allowed = KINDS[kind][1]
        begin = point = None
        try:
            if kind == "malformed":
                error = random.choice(list(MALFORMED))
                text = random.choice(MALFORMED[error])
                allowed = {error}
            else:
                banks = random.sample(list(lib.banks()), random.randint(1, len(lib.banks())))
                pcrs = random.choice(((10,), (10,), (10, 11), (10, 11, 12), (11,)))
                if kind == "wrong":
                    text = " ".join(f"{bank}:10={random.randbytes(lib.banks()[bank]).hex()}" for bank in banks)
                else:
                    look(archive)
                    begin = archive.head
                    if kind == "stale":
                        if begin == archive.first:
                            kinds.put_off()
                            continue
                        point = random.randrange(archive.first, begin)
                        text = archive.tokens(point, banks, pcrs)
                        if text == archive.tokens(begin, banks, pcrs):
                            kinds.put_off()
                            continue
                    else:
                        if begin == archive.total:
                            kinds.put_off()
                            continue
                        point = random.randint(begin + 1, archive.total)
                        text = archive.tokens(point, banks, pcrs)
                        # What is named is the first point at which the values hold, and may be none that trims.
                        point = archive.earliest(point, banks, pcrs)
                        violations = len(archive.violations(begin, point)) + (1000 if kind == "misstated" else 0)
                        text += f" violations={violations}"
                text += f" {mode} " + ("dry-run" if kind == "dry-run" else "")
            with opened_file(lib.TRIM, os.O_RDWR) as fd:
                outcome = lib.request(text, fd)
        except Gone:
            bump(counts, "requests not made:", "unloaded")
            time.sleep(0.02)
            continue
        equal(outcome.fields.get("errno"), outcome.error, f"errno in the reply {outcome.text!r}")
        result = outcome.error or outcome.result
        check(result in allowed, f"{kind}: {result} is none of {sorted(allowed)}; request {text[:400]!r}, {outcome}")
        bump(counts, kind, result)
        if result not in BUSY:
            kinds.take()
        if kind == "dry-run" and result == "dry-run":
            check(outcome.records <= point - begin, f"dry run of {outcome.records} records, {point - begin} seen")
        if result == "trimmed":
            modes.take()
            # Others may have trimmed some before.
            before = point - outcome.records
            check(begin <= before < point, f"{outcome.records} records trimmed up to {point}, after {begin}")
            violations = archive.violations(before, point)
            equal((outcome.violations, outcome.first_violation), (len(violations), (violations or [None])[0]),
                  "violations, and the first of them")
            intervals.append((before, point))
            counts[f"records trimmed {mode or 'by default'}"] += outcome.records
        time.sleep(random.random() * 0.05)


def state_values(archive, counts):
    """Has the module take over what the archive says of the records that are gone, unless it knows."""
    for _ in range(50):
        try:
            # As long as it is open, nobody trims.
            with opened_list() as fd:
                check(fd is not None, "somebody has the list open for writing, for long")
                status = archive.sync(fd)
                if status["base"] == "verified":
                    return
                gone = archive.head
                pcrs = sorted({pcr for _, pcr in archive.values[-1]} | {lib.MEASURE_PCR})
                lines = archive.tokens(gone, lib.banks(), pcrs).split()
                # Without the records since boot at hand the violations are counted in the file.
                lines += [f"records={gone}", f"violations={violations_gone(gone)}",
                          f"trims={max(int(status['trims']), 1) if gone else 0}"]
                with opened_file(lib.STARTING_PCRS, os.O_RDWR) as file:
                    error, _ = lib.restore("\n".join(lines), file)
        except Gone:
            return
        bump(counts, "values stated:", error or "taken over")
        if not error:
            return
        # A violation that IMA has counted and not yet appended, or another who stated the values.
        equal(error, "EKEYREJECTED", "error of stating the values of the archive")
        time.sleep(0.01)
    raise lib.Failure("the values of the archive are not taken over")


_violations = [0, 0, 0]


def violations_gone(gone):
    """The number of violations among so many records of the archive. They only ever become more."""
    number, violations, offset = _violations
    check(number <= gone, f"{gone} records are gone, {number} were before")
    with open(LOCK, "wb") as lock, open(ARCHIVE, "rb") as file:
        fcntl.flock(lock, fcntl.LOCK_EX)
        file.seek(offset)
        for record in lib.parse(file.read()):
            if number == gone:
                break
            number += 1
            violations += record.violation
            offset += len(record.raw)
    _violations[:] = [number, violations, offset]
    return violations


def foreigner(counts, intervals):
    """Trims through the kernel's own interface, having archived what it trims, and tells the module later."""
    archive = Archive()
    while (yield):
        time.sleep(random.random() * 3)
        with opened_list(os.O_RDWR, tries=50) as fd:
            if fd is None:
                bump(counts, "foreign trims not made:", "EBUSY")
                continue
            try:
                archive.sync(fd)
            except Gone:
                continue
            most = archive.total - archive.head
            if not most:
                continue
            number = random.randint(1, min(most, 20))
            equal(lib.outcome_of(os.write, fd, f"{number}\n".encode()), None, "error of the kernel's own trim")
            intervals.append((archive.head, archive.head + number))
            archive.head += number
            counts["records trimmed by the kernel"] += number
            bump(counts, "foreign trims")
        time.sleep(random.random() * 0.2)
        state_values(archive, counts)


def unload(counts):
    """Unloads the module, as soon as nobody has one of its files open. Says whether it could be done."""
    for _ in range(TRIES):
        try:
            lib.unload()
            return True
        except OSError as error:
            check(error.errno in (errno.EBUSY, errno.EWOULDBLOCK), f"error of unloading: {error}")
            bump(counts, "unloading:", lib.error_name(error.errno))
            time.sleep(0.003)
    return False


def load(counts):
    """Loads the module."""
    for _ in range(TRIES):
        parameters = random.choice(("guard=0", "guard=0 reclaim=flush", "guard=0 reclaim=compact", "guard=1"))
        parameters += random.choice(("", " reader_wait_ms=0", " reader_wait_ms=10"))
        try:
            lib.load(parameters=parameters)
            return
        except OSError as error:
            # Somebody trims through the kernel's own interface.
            equal(error.errno, errno.EBUSY, f"error of loading {parameters}")
            bump(counts, "loading:", "EBUSY")
            time.sleep(0.003)
    raise lib.Failure("the module cannot be loaded")


def cycler(counts):
    """Saves the starting values, unloads the module, loads it and restores them."""
    archive = Archive()
    ways = Bag({"late": 1, "at once": 2})
    took = 0
    while (yield):
        # Others need the module loaded, on a host where loading it takes long as well.
        time.sleep(random.random() * max(4, 3 * took))
        began = time.monotonic()
        # Nobody else unloads it, so the files are there.
        if ways.first == "late":
            # What was saved may not be the truth any more when it is written.
            text = lib.read(lib.STARTING_PCRS)
            if unload(counts):
                load(counts)
                error, _ = lib.restore(text)
                check(error in (None, "EKEYREJECTED", "EBUSY", "EUCLEAN") or text.startswith(b"unknown"),
                      f"error of restoring: {error}")
                bump(counts, "restored late:", error)
                bump(counts, "cycles")
                ways.take()
        else:
            with opened_list() as fd:
                check(fd is not None, "somebody has the list open for writing, for long")
                text = lib.read(lib.STARTING_PCRS)
                if not unload(counts):
                    continue
                load(counts)
                bump(counts, "cycles")
                if not text.startswith(b"unknown"):
                    error, _ = lib.restore(text)
                    # See state_values().
                    check(error in (None, "EKEYREJECTED"), f"error of restoring: {error}")
                    bump(counts, "restored:", error)
                    ways.take()
        state_values(archive, counts)
        took = time.monotonic() - began


# The storm ----------------------------------------------------------------------------------------------------------

ACTORS = {
    "appender 1": (appender, 0), "appender 2": (appender, 1), "reader 1": (reader,), "reader 2": (reader,),
    "inspector": (inspector,), "trimmer 1": (trimmer, []), "trimmer 2": (trimmer, []), "foreigner": (foreigner, []),
    "cycler": (cycler,),
}
# What has to happen, in a storm that is not shorter than SHORT; and how many storms there are at most until it has, in the
# time that the harness gives.
HAPPENS = ("records", "violations", "lists read", "verify read", "right trimmed", "dry-run dry-run", "misstated EBADMSG",
           "stale ENOENT", "wrong ENOENT", "malformed EINVAL", "right EBUSY", "records trimmed keep", "records trimmed compact",
           "records trimmed flush", "foreign trims", "cycles", "restored: None")
SHORT = 120
STORMS = 3 if SECONDS <= 200 else 1
counted = collections.Counter()
trimmed = []
found = {}


def missing():
    """What should have happened and has not."""
    return [what for what in HAPPENS if not counted[what]] if SECONDS >= SHORT else []


def run(name, number, deadline):
    """One of the actors, until the time is over. Gives what it counted and what it trimmed."""
    random.seed(f"{SEED} {name} {number}")
    function, *arguments = ACTORS[name]
    counts = collections.Counter()
    actor = function(counts, *arguments)
    next(actor)
    with contextlib.suppress(StopIteration):
        while True:
            actor.send(time.monotonic() < deadline)
    return counts, next((argument for argument in arguments if isinstance(argument, list)), [])


@test(f"{SECONDS} s of storm: each outcome is one that may be")
def _():
    lib.ksft.print_msg(f"TEST_SEED={SEED}")
    # All that was appended before it began.
    look(Archive())
    found["before"] = (len(lib.parse(lib.read(ARCHIVE))), int(lib.read(f"{lib.IMA}/violations")))
    problems = []
    for number in range(STORMS):
        deadline = time.monotonic() + SECONDS
        children = {name: lib.Child(run, name, number, deadline) for name in ACTORS}
        for name, child in children.items():
            try:
                counts, intervals = child.result(SECONDS + 120)
                counted.update(counts)
                trimmed.extend((begin, end, name) for begin, end in intervals)
            except lib.Failure as failure:
                problems.append(f"{name}: {failure}")
        bump(counted, "storms")
        if problems or not missing():
            break
    for what in sorted(counted):
        lib.ksft.print_msg(f"{what}: {counted[what]}")
    check(not problems, "\n".join(problems))


@test("everybody had something to do")
def _():
    equal(missing(), [], "what never happened")


@test("the records that are gone are those that somebody trimmed, each once")
def _():
    archive = Archive()
    state_values(archive, counted)
    look(archive)
    found["gone"] = archive.head
    at = 0
    for begin, end, name in sorted(trimmed):
        equal(begin, at, f"the first of the records that {name} trimmed up to {end}")
        at = end
    equal(at, archive.head, "records trimmed")


@test("the archive has all records that were appended, the list those that were not trimmed, and the counters agree")
def _():
    records = lib.parse(lib.read(ARCHIVE))
    gone = found["gone"]
    before, violations_before = found["before"]
    equal(len(records) - before, counted["records"], "records in the archive since the storm began")
    left = lib.lists_agree()
    equal([record.raw for record in left], [record.raw for record in records[gone:]], "the list")
    violations = sum(record.violation for record in records)
    equal((violations - violations_before, int(lib.read(f"{lib.IMA}/violations"))), (counted["violations"], violations),
          "violations in the archive since the storm began, and in all those that IMA counted")
    names = collections.Counter(record.hint for record in records if not record.violation)
    check(names.most_common(1)[0][1] == 1, f"measured twice: {names.most_common(3)}")
    status = lib.status()
    expected = {"base": "verified", "records": len(left), "records_trimmed": gone, "foreign_records": 0,
                "violations_trimmed": sum(record.violation for record in records[:gone]), "evidence_failed": 0}
    equal({key: status[key] for key in expected}, {key: str(value) for key, value in expected.items()}, "status")


@test("in every bank the archive, from the reset values on, gives the TPM's values; and the starting values on the way")
def _():
    values = {}
    starting = lib.Starting(lib.read(lib.STARTING_PCRS))
    for number, record in enumerate(lib.parse(lib.read(ARCHIVE)), 1):
        values = lib.replay(values, [record])
        if number == found["gone"]:
            for (bank, pcr), value in starting.values.items():
                expected = values.get((bank, pcr)) or lib.reset_value(bank, pcr)
                equal(value.hex(), expected.hex(), f"starting value of {bank}:{pcr}")
    check({pcr for _, pcr in values} == {10, 11, 12}, "a PCR is missing")
    for (bank, pcr), value in values.items():
        equal(value.hex(), lib.tpm_value(bank, pcr).hex(), f"replay of {bank}:{pcr} (TPM expected)")


@test("evmctl: the archive matches the TPM")
def _():
    equal(lib.evmctl(lib.parse(lib.read(ARCHIVE))), 0, "exit status")


lib.main(parameters="guard=0 reader_wait_ms=0")
