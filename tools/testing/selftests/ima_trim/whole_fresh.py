#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""The whole list is fresh and stable while records come and are trimmed: what the TPM says is in what is read then."""

import os
import time

import ima_trim_lib as lib
import whole_lib as whole
from ima_trim_lib import Child, check, equal, test

# Quotes, each followed by a read: so many, or for so long, in seconds. One takes a quarter of a second in an emulated guest,
# in which everything else runs, too.
QUOTES = lib.tries(50)
SECONDS = int(os.environ.get("TEST_SECONDS", "0"))
APPENDERS = 2
# How long the other readers wait between two reads, in seconds. There are 16 and more of them, and a processor or two.
PAUSE = 0.5
STOP_APPENDERS = "/run/fresh-stop-appenders"
STOP_READERS = "/run/fresh-stop-readers"

service = whole.Service()
appenders = []
readers = {}
jumpers = {}


def paths():
    """The files, each with how its reader reads: 16 of them or more."""
    found = []
    names = whole.names()
    for number in range(16):
        size = (1 << 16, 4096, 333, 1 << 20)[number // len(names) % 4]
        found.append((f"{lib.IMA}/{names[number % len(names)]}", size))
    return found


@test("a daemon that trims by itself, readers that keep files open, and records as fast as they come")
def _():
    service.start()
    for number, (path, size) in enumerate(paths()):
        # One has given up everything once it had the file open.
        uid = lib.NOBODY if number == 5 else None
        readers[number] = path, Child(whole.keep_reading, STOP_READERS, path, size, uid, PAUSE)
    for number, name in enumerate(whole.names()):
        path = f"{lib.IMA}/{name}"
        jumpers[number] = path, Child(whole.keep_jumping, STOP_READERS, path, number, PAUSE)
    for _ in range(APPENDERS):
        appenders.append(Child(whole.append_records, STOP_APPENDERS))


@test("every quote is reached by what is read after it, whole records only")
def _():
    followers = [whole.Follower(form, bank) for bank in lib.banks() for form in whole.FORMATS]
    began = time.monotonic()
    quotes = 0
    while quotes < QUOTES or time.monotonic() - began < SECONDS:
        followers[quotes % len(followers)].quoted()
        quotes += 1
    seconds = time.monotonic() - began
    starting = lib.Starting(lib.read(lib.STARTING_PCRS))
    print(f"# {quotes} quotes in {seconds:.0f} s, {followers[0].records} records, {starting.records} of them gone by "
          f"{starting.trims} trims, {starting.violations} violations among these")
    # At most one a second.
    check(starting.trims > seconds / 20, f"only {starting.trims} trims in {seconds:.0f} s")
    check(starting.violations > 0, "no violation was trimmed")
    for follower in followers:
        follower.close()


@test("those who kept their files open have what there is now")
def _():
    with open(STOP_APPENDERS, "wb"):
        pass
    appended = [appender.result() for appender in appenders]
    check(all(appended), f"records of each appender: {appended}")
    with open(STOP_READERS, "wb"):
        pass
    results = [(path, reader.result()) for path, reader in readers.values()]
    for path, (length, digest) in results:
        whole.same_as_now(path, length, digest)


@test("what was read at random offsets is there now")
def _():
    for path, jumper in jumpers.values():
        whole.same_pieces(path, jumper.result())


@test("every record is there once")
def _():
    whole.replays()
    equal(service.starts, 1, "starts of the daemon")
    check(b"verified: " in whole.run("verify"), "verify says something else")


lib.main(prepare=lambda: whole.configure(trim={"automatic": True, "records": 20, "every": 1, "flush_records": 500}))
