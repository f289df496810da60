#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""The daemon is killed, hundreds of times, while it archives and trims under load, and while it begins.

After each kill, and before it is started again, archive and kernel are looked at without it: they have every record once,
replay to the TPM, and the module has the values of its point. The readers' side of this is whole_kill.py.
"""

import collections
import os
import random
import statistics
import threading
import time
import traceback

import ima_trim_lib as lib
import whole_lib as whole
from ima_trim_lib import Child, check, equal, test

KILLS = lib.tries(200)
SEED = os.environ.get("TEST_SEED") or str(random.SystemRandom().randrange(1 << 32))
STOP = "/run/kills-stop"
# A disk whose flushes take their time, as those of most do.
PLACE = "/mnt/disk"
ROOT = f"{PLACE}/ima-trim"
# So often everything is looked at by the program, too.
WHOLE = 25
# The pause of each appender after a record.
PAUSE = 0.02


class Killed(whole.Service):
    """The daemon, and what is found whenever it has been killed."""

    def __init__(self):
        super().__init__()
        self.archive = None
        self.found = collections.Counter()
        self.failure = None
        self.end = (0, 0)
        self.spawned_at = None

    def before(self):
        if self.archive is None or self.failure:
            return
        try:
            self.look()
        except Exception:
            self.failure = traceback.format_exc()

    def look(self):
        """Archive and kernel, while no daemon runs."""
        halves = sum(name.endswith(".tmp") for name in self.archive.names()[1])
        archived, trimmed = self.archive.whole_list(f"kill {sum(self.found.values()) + 1}")
        before = self.end
        self.end = (archived, trimmed)
        if halves:
            self.found["half-written"] += 1
        elif archived > trimmed and archived > before[0]:
            self.found["archived, not trimmed"] += 1
        elif trimmed > before[1]:
            self.found["trimmed"] += 1
        else:
            self.found["as before"] += 1

    def _spawn(self):
        self.spawned_at = time.monotonic()
        return super()._spawn()

    def kill_now(self):
        """Kills it, and waits until another one has been spawned."""
        starts = self.starts
        self.kill()
        lib.wait_for(lambda: self.starts > starts and self.pid, "a successor")
        check(not self.failure, self.failure)


service = Killed()
appenders = []
# How long a trim takes, and a start.
trims = collections.deque([0.5], 9)
starts = collections.deque([1.0], 9)


def timed_trim():
    """Has the daemon trim, in a thread."""
    def ask():
        began = time.monotonic()
        if whole.ask_to_trim():
            trims.append(time.monotonic() - began)
    thread = threading.Thread(target=ask)
    thread.start()
    return thread


def prepare():
    print(f"# TEST_SEED={SEED}")
    random.seed(SEED)
    whole.attach_disk()
    whole.make_file_system()
    whole.mount_disk(PLACE)
    whole.configure(archive={"directory": ROOT})


def append(stop, pause):
    """Has IMA append records in two PCRs, violations among them, until a file is there."""
    number = 0
    while not os.path.exists(stop):
        number += 1
        pcr = (lib.MEASURE_PCR, 11)[number % 5 == 0]
        if number % 9 == 0:
            lib.violate_tomtou(pcr)
        elif number % 23 == 0:
            lib.violate_open_writers(pcr)
        else:
            lib.measure(pcr=pcr)
        time.sleep(pause)
    return number


@test("a daemon, its archive on a disk, and records as they come")
def _():
    lib.measure(20)
    service.start()
    whole.kernel_files()
    identity = lib.read("/proc/sys/kernel/random/boot_id").decode().strip()
    service.archive = whole.Archived(os.path.join(ROOT, identity))
    for _ in range(2):
        appenders.append(Child(append, STOP, PAUSE))
    for _ in range(3):
        timed_trim().join()
    check(len(trims) > 1, "nothing was trimmed")


@test("killed at random while it archives, trims and begins: archive and kernel have every record once")
def _():
    began = time.monotonic()
    for number in range(KILLS):
        if number % 3 == 2:
            # Its successor is killed before it is ready, or just after.
            moment = service.spawned_at + random.uniform(0, 1.2 * statistics.median(starts))
            time.sleep(max(0.0, moment - time.monotonic()))
            service.kill_now()
            continue
        service.wait()
        starts.append(service.ready_at - service.spawned_at)
        thread = timed_trim()
        time.sleep(random.uniform(0, 1.1 * statistics.median(trims)))
        service.kill_now()
        thread.join()
        if number % WHOLE == 0:
            service.wait()
            check(b"verified: " in whole.run("verify"), f"verify after {number + 1} kills")
    took = time.monotonic() - began
    point = lib.Starting(lib.read(lib.STARTING_PCRS))
    print(f"# {KILLS} kills in {took:.0f} s, of which were found: {dict(service.found)}; a start took "
          f"{statistics.median(starts):.2f} s, a trim {statistics.median(trims):.2f} s; {service.end[0]} records "
          f"archived, {point.records} trimmed by {point.trims} trims")
    equal(sum(service.found.values()), KILLS, "kills after which everything was looked at")
    for what in ("half-written", "archived, not trimmed", "trimmed"):
        check(service.found[what] >= KILLS // 40, f"hardly any kill has left it {what}: {service.found}")


@test("every record is there once, in the archive or in the kernel's list")
def _():
    service.wait()
    with open(STOP, "wb"):
        pass
    for appender in appenders:
        check(appender.result() > 0, "an appender appended nothing")
    whole.trim()
    archived, trimmed = service.archive.whole_list("in the end")
    equal(archived, trimmed, "records archived and trimmed")
    check(b"verified: " in whole.run("verify"), "verify says something else")
    listed = whole.run("log", "--binary")
    starting, kept = lib.look()
    expected = service.archive.records[:starting.records] + kept
    equal(listed, b"".join(record.raw for record in expected), "log of the whole list")
    equal(service.stop(), 0, "exit status")


lib.main(prepare=prepare)
