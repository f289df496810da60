#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Random operations on the module's files: any text, size, offset, order and open mode, from several processes at once.

Texts are random bytes, or requests that are right or were, with some of their bytes changed. What is still right after that
may trim, so the records are archived first.

TEST_SECONDS is for how long (120 s), TEST_SEED what the choices are made from.
"""

import collections
import os
import random
import time

import ima_trim_lib as lib
from ima_trim_lib import check, equal, test

SECONDS = int(os.environ.get("TEST_SECONDS") or 120)
SEED = os.environ.get("TEST_SEED") or str(random.SystemRandom().randrange(1 << 32))
PROCESSES = 3
RECORDS = 60
WRITABLE = (lib.TRIM, lib.STARTING_PCRS)
FILES = WRITABLE + (lib.VERIFY, lib.VIOLATIONS, lib.STATUS)
SIZES = (0, 1, 2, 7, 80, 4095, 4096, 4097, lib.MAX_REQUEST - 1, lib.MAX_REQUEST, lib.MAX_REQUEST + 1, 65536)
OFFSETS = (0, 0, 0, 1, 4096, lib.MAX_REQUEST, 1 << 31, (1 << 63) - 1)
# What may become of an operation. Nobody trims but these, and measuring goes on. EUCLEAN is for PCRs that the firmware
# extended.
ERRORS = {
    "read": {"EBADF", "EBUSY", "EINVAL"},
    "write": {"EBADF", "EBUSY", "EINVAL", "E2BIG", "EOPNOTSUPP", "ENOENT", "EBADMSG", "EKEYREJECTED", "ENOKEY", "EUCLEAN",
              "EFBIG"},
    "open": {"EACCES", "EPERM"},
    "other": {"EINVAL", "ENOTTY", "ENODEV", "EBADF", "EPERM", "EACCES", "ESPIPE"},
}
found = collections.Counter()


def change(text):
    """Changes some bytes of a text."""
    text = bytearray(text)
    for _ in range(random.choice((0, 0, 1, 1, 2, 8))):
        at = random.randrange(len(text) + 1)
        match random.randrange(5):
            case 0:
                text[at:at] = random.randbytes(random.choice((1, 3, 50)))
            case 1:
                del text[at:at + random.choice((1, 4, 70))]
            case 2 if at < len(text):
                text[at] = random.choice(b"0123456789abcdefABCDEF:= \t\n\0\xff")
            case 3 if at < len(text):
                text[at] ^= 1 << random.randrange(8)
            case _:
                tokens = bytes(text).split()
                random.shuffle(tokens)
                text = bytearray(random.choice((b" ", b"\n", b"\t ")).join(tokens))
    return bytes(text)


def any_text(texts):
    """What may be written."""
    if random.random() < 0.3:
        return random.randbytes(random.choice(SIZES))
    text = change(random.choice(texts))
    if random.random() < 0.1:
        # As long as the longest request, or longer.
        text += b" " * max(random.choice(SIZES) - len(text), 0)
    return text


def write(fd, data):
    """Writes in one of the ways there are."""
    match random.randrange(5):
        case 0:
            return os.pwrite(fd, data, random.choice(OFFSETS))
        case 1:
            return os.writev(fd, [data[:9], data[9:9], data[9:]])
        case 2:
            os.lseek(fd, random.choice(OFFSETS[:-2]), os.SEEK_SET)
            return os.write(fd, data)
        case _:
            return os.write(fd, data)


def read(fd):
    """Reads in one of the ways there are."""
    size = random.choice((1, 13, 4096, 65536))
    match random.randrange(4):
        case 0:
            return os.pread(fd, size, random.choice(OFFSETS))
        case 1:
            os.lseek(fd, random.choice(OFFSETS[:-2]), os.SEEK_SET)
            return os.read(fd, size)
        case 2:
            return b"".join(iter(lambda: os.read(fd, size), b"")) if size > 1 else os.read(fd, size)
        case _:
            return os.read(fd, size)


def other(fd):
    """Does what is not reading or writing."""
    match random.randrange(4):
        case 0:
            os.ftruncate(fd, random.choice((0, 5)))
        case 1:
            os.fsync(fd)
        case 2:
            os.lseek(fd, random.choice((-1, 5, 1 << 40)), random.choice((os.SEEK_SET, os.SEEK_CUR, os.SEEK_END)))
        case 3:
            os.fstat(fd)


def fuzz(number, texts, deadline):
    """One of the processes. Gives what came of its operations, and how many records its requests trimmed."""
    random.seed(f"{SEED} {number}")
    counts = collections.Counter()
    trimmed = 0
    flags = (os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_RDWR, os.O_RDWR | os.O_APPEND, os.O_RDWR | os.O_TRUNC,
             os.O_RDWR | os.O_NONBLOCK, 3)
    while time.monotonic() < deadline:
        path = random.choice(FILES + WRITABLE)
        name = os.path.basename(path)
        fd = None
        # Twice the same descriptor, or more, as often as not.
        for step in ("open", *random.choices(("read", "write", "write", "other"), k=random.randint(1, 5))):
            try:
                written = 0
                if step == "open":
                    mode = random.choice(flags)
                    blind = path == lib.TRIM and mode == os.O_WRONLY
                    fd = os.open(path, mode | os.O_CLOEXEC)
                elif step == "write":
                    # What cannot be read does not tell how many records it trimmed, so it must not trim any.
                    text = any_text(texts) + (b" dry-run" if blind else b"")
                    written = write(fd, text)
                else:
                    {"read": read, "other": other}[step](fd)
                outcome = "done"
            except OSError as error:
                outcome = lib.error_name(error.errno)
                check(outcome in ERRORS[step], f"{step} of {name}: {outcome}")
            counts[f"{step} of {name}: {outcome}"] += 1
            if fd is None:
                break
            if written and blind:
                counts["request: not read"] += 1
            elif written and path == lib.TRIM:
                reply = lib.pairs(os.pread(fd, 4096, 0))
                counts[f"request: {reply.get('result')}"] += 1
                if reply.get("result") == "trimmed":
                    trimmed += int(reply["records"])
        if fd is not None:
            os.close(fd)
    return counts, trimmed


@test(f"{SECONDS} s of random operations: each ends as it may")
def _():
    lib.ksft.print_msg(f"TEST_SEED={SEED}")
    random.seed(SEED)
    lib.measure(RECORDS // 2)
    lib.violate_tomtou()
    lib.measure(RECORDS // 2)
    log = lib.history()
    deadline = time.monotonic() + SECONDS
    rounds = 0
    # Now and then there is something new to be trimmed.
    while (left := deadline - time.monotonic()) > 0:
        rounds += 1
        log.sync()
        points = [random.randint(log.trimmed, log.total) for _ in range(4)] + [log.total]
        banks = random.sample(list(lib.banks()), random.randint(1, len(lib.banks())))
        texts = [
            f"{log.tokens(point, banks)} violations={len(log.violations(log.trimmed, point))}"
            f"{random.choice(('', ' dry-run', ' keep', ' compact', ' flush'))}".encode() for point in points
        ] + [f"{log.tokens(log.total, banks)} violations=77".encode()] + [lib.read(lib.STARTING_PCRS), log.statement(log.trimmed).encode(), b"sha256:10=" + b"5a" * 32]
        children = [lib.Child(fuzz, f"{number} {rounds}", texts, time.monotonic() + min(left, 5)) for number in range(PROCESSES)]
        for child in children:
            counts, trimmed = child.result(SECONDS + 60)
            found.update(counts)
            found["records trimmed"] += trimmed
        lib.measure(10)
    for what in sorted(found):
        lib.ksft.print_msg(f"{what}: {found[what]}")


@test("all kinds of operations ended in all ways that matter")
def _():
    for what in ("request: trimmed", "request: dry-run", "request: not read", "write of trim: EINVAL",
                 "write of trim: ENOENT", "write of trim: E2BIG", "write of trim: EBADMSG", "write of starting_pcrs: EINVAL",
                 "write of starting_pcrs: EKEYREJECTED", "write of starting_pcrs: done", "read of verify: done", "write of status: EBADF"):
        check(found[what], f"never: {what}")


@test("what was trimmed is what requests said, and the account and the lists are whole")
def _():
    trimmed = int(lib.status()["records_trimmed"])
    equal(found["records trimmed"], trimmed, "records trimmed, by the replies")
    equal(lib.status()["base"], "verified", "base")
    equal(lib.status()["foreign_records"], "0", "foreign_records")
    lib.invariant()
    lib.lists_agree()


@test("a request trims, and evmctl finds all records")
def _():
    lib.clear()
    lib.measure()
    equal(lib.evmctl(lib.history().records), 0, "exit status")


lib.main()
