#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""The daemon is killed at any moment, and taken over by a successor and by another version: readers notice nothing."""

import os
import random
import shutil
import signal
import threading
import time

import ima_trim_lib as lib
import whole_lib as whole
from ima_trim_lib import Child, check, equal, test

KILLS = lib.tries(20)
SEED = os.environ.get("TEST_SEED") or str(random.SystemRandom().randrange(1 << 32))
STOP_APPENDERS = "/run/kill-stop-appenders"
STOP_READERS = "/run/kill-stop-readers"
# How long it may take from the kill to the first read that is answered, and to READY, in seconds: the 2 s of the design
# are for a machine. An emulated guest is ten times slower, with its TPM and two appenders beside, and so is a debug
# kernel.
EMULATED = b"TCG" in lib.read("/proc/cpuinfo")
LIMIT = 2 * (10 if EMULATED or lib.DEBUG else 1)
# How long a reader may take to end that is killed while the daemon is not there.
END_LIMIT = LIMIT + 5
COPY = "/run/ima-trim-other"

service = whole.Service()
appenders = []
readers = {}
jumpers = {}
answered = []
ready = []


def wait_dead(pid, what):
    """Waits for the end of a child."""
    deadline = time.monotonic() + END_LIMIT
    while os.waitpid(pid, os.WNOHANG)[0] == 0:
        check(time.monotonic() < deadline, f"{what}: process {pid} cannot be killed: {whole.Service.tail()}")
        time.sleep(0.01)


def victim():
    """A reader that is killed: it reads everything over and over."""
    pid = os.fork()
    if pid:
        return pid
    try:
        fd = os.open(lib.ASCII, os.O_RDONLY)
        while True:
            os.lseek(fd, 0, os.SEEK_SET)
            lib.read_fd(fd, 1 << 20)
    finally:
        os._exit(1)


def killed(follower, wait):
    """After `wait` seconds the daemon is killed. It is back in time, and what is read then is right."""
    time.sleep(wait)
    began = time.monotonic()
    service.kill()
    follower.quoted()
    answered.append(time.monotonic() - began)
    service.wait()
    ready.append(service.ready_at - began)


def trim_in_background():
    """Has the daemon trim, whatever becomes of it: it may be killed before it answers."""
    def ask():
        try:
            whole.trim()
        except lib.Failure:
            pass
    thread = threading.Thread(target=ask)
    thread.start()
    return thread


@test("a daemon, readers that keep files open, and records as they come")
def _():
    print(f"# TEST_SEED={SEED}")
    random.seed(SEED)
    lib.measure(20)
    service.start()
    # From the first trim on the files stay covered when a daemon ends.
    whole.trim()
    names = whole.names()
    for number, name in enumerate(names):
        readers[name] = Child(whole.keep_reading, STOP_READERS, f"{lib.IMA}/{name}", (1 << 16, 999)[number % 2])
    for number, name in enumerate(names[:3]):
        jumpers[name] = Child(whole.keep_jumping, STOP_READERS, f"{lib.IMA}/{name}", number)
    for _ in range(2):
        appenders.append(Child(whole.append_records, STOP_APPENDERS, 0.02))


@test("killed at random moments of reads, archiving and trims it is back in time, and no read fails or is wrong")
def _():
    followers = [whole.Follower(form, bank) for bank in lib.banks() for form in whole.FORMATS]
    for number in range(KILLS):
        follower = followers[number % len(followers)]
        reader = victim() if number % 5 == 0 else None
        thread = None
        if number % 4 < 2:
            thread = trim_in_background()
            killed(follower, random.uniform(0, 0.4 if EMULATED else 0.05))
        elif number % 4 == 2:
            killed(follower, random.uniform(0, 0.1))
        else:
            # Its successor is killed, too, before it is ready or just after.
            service.kill()
            lib.wait_for(lambda: service.pid, "a successor")
            killed(follower, random.uniform(0, 0.5 if EMULATED else 0.05))
        if reader:
            os.kill(reader, signal.SIGKILL)
            wait_dead(reader, f"kill {number}")
        if thread:
            thread.join()
    print(f"# {KILLS} kills, {service.starts} starts; from the kill to an answer {sum(answered) / KILLS:.2f} s, at "
          f"most {max(answered):.2f} s, to READY {sum(ready) / KILLS:.2f} s, at most {max(ready):.2f} s; "
          f"{lib.Starting(lib.read(lib.STARTING_PCRS)).trims} trims")
    check(max(answered) < LIMIT, f"a read was answered after {max(answered):.2f} s, the limit is {LIMIT} s")
    check(max(ready) < LIMIT, f"a successor was ready after {max(ready):.2f} s, the limit is {LIMIT} s")
    check(lib.Starting(lib.read(lib.STARTING_PCRS)).trims > KILLS // 20, "hardly any trim was made")
    for follower in followers:
        follower.close()


@test("readers can be killed while there is no daemon, as soon as there is one again")
def _():
    pids = [victim() for _ in range(4)]
    time.sleep(0.3)
    service.kill()
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    for pid in pids:
        wait_dead(pid, "without a daemon")
    service.wait()


@test("another version takes over from one that is stopped, and from one that is killed")
def _():
    shutil.copy2(whole.PROGRAM, COPY)
    follower = whole.Follower("ascii", next(iter(lib.banks())))
    for program, number in ((COPY, signal.SIGTERM), (whole.PROGRAM, signal.SIGKILL), (COPY, signal.SIGKILL),
                            (whole.PROGRAM, signal.SIGTERM)):
        service.program = program
        service.ready.clear()
        starts = service.starts
        os.kill(service.pid, number)
        lib.wait_for(lambda: service.starts > starts, "a successor")
        follower.quoted()
        service.wait()
        equal(os.readlink(f"/proc/{service.pid}/exe"), os.path.realpath(program), "the program that serves")
        whole.trim()
        follower.quoted()
    follower.close()


@test("another version that was installed in its place takes over where it is told to, and keeps its number")
def _():
    follower = whole.Follower("binary", next(iter(lib.banks())))
    service.program = COPY
    service.kill()
    service.wait()
    pid, starts = service.pid, service.starts
    for _ in range(lib.tries(10)):
        shutil.copy2(whole.PROGRAM, f"{COPY}.new")
        os.rename(f"{COPY}.new", COPY)
        service.ready.clear()
        os.kill(pid, signal.SIGHUP)
        follower.quoted()
        service.wait()
        follower.quoted()
        # That of a file that is not there any more would end in "(deleted)".
        equal(os.readlink(f"/proc/{pid}/exe"), COPY, "the program that serves")
    equal((service.pid, service.starts), (pid, starts), "number of the process, and starts")
    follower.close()


@test("those who kept their files open have what there is now")
def _():
    with open(STOP_APPENDERS, "wb"):
        pass
    for appender in appenders:
        check(appender.result() > 0, "an appender appended nothing")
    with open(STOP_READERS, "wb"):
        pass
    results = {name: reader.result() for name, reader in readers.items()}
    for name, (length, digest) in results.items():
        whole.same_as_now(f"{lib.IMA}/{name}", length, digest)
    for name, jumper in jumpers.items():
        whole.same_pieces(f"{lib.IMA}/{name}", jumper.result())


@test("every record is there once, in the archive or in the kernel's list")
def _():
    whole.replays()
    check(b"verified: " in whole.run("verify"), "verify says something else")
    equal(whole.run("log", "--binary"), lib.read(lib.BINARY), "log of the whole list")
    equal(service.stop(), 0, "exit status")
    # Without a daemon the program reads the archive and the kernel's list itself.
    check(b"verified: " in whole.run("verify"), "verify without a daemon says something else")


lib.main(prepare=whole.configure)
