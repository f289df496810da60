#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""The power is cut, again and again, at any moment of archiving and trimming: what was trimmed is archived afterwards.

Each boot runs this file. It looks at what is there of the boot before, which said what was trimmed as soon as it was;
goes on with an archive of its own beside it; and asks for its power to be cut at a random moment to come. With the power
goes what the kernel had not written to the disk, and of what the disk had not flushed all, some or nothing: any sector
of it, whatever their order was. What stays is what was flushed.
"""

import os
import random
import re
import threading
import time

import ima_trim_lib as lib
import whole_lib as whole
from ima_trim_lib import Child, check, equal, test

CUTS = lib.tries(20)
BOOT = int(os.environ.get("BOOT", "0"))
SEED = os.environ.get("TEST_SEED") or str(random.SystemRandom().randrange(1 << 32))
# What the boots before have said: see test.py of the harness.
SAID = "/harness/said"
PLACE = "/mnt/disk"
ROOT = f"{PLACE}/ima-trim"
KEPT = 3
BOUND = 20
# Within how many seconds after the first trim, or after the daemon was begun, the power is cut.
LATER = 4
OPENING = 2
# How long to wait for it at most.
LONG = 60
# How much stays of what is not flushed, in hundredths.
FATES = (0, 50, 90, 100)


class Boot:
    """What a boot has said of itself."""

    def __init__(self, identity):
        self.identity = identity
        self.trimmed = []

    @property
    def directory(self):
        """Where its archive is."""
        return os.path.join(ROOT, self.identity)


def boots_before():
    """All boots before this one, with the points that they have said to have trimmed to."""
    found = []
    if BOOT:
        for kind, text in re.findall(r"^# (boot|trimmed) ((?:[0-9a-f-]{36}$|sha1:).*)$", lib.read(SAID).decode(), re.M):
            if kind == "boot":
                found.append(Boot(text))
            else:
                found[-1].trimmed.append(lib.Starting(text.replace(" ", "\n").encode()))
    return found


def say_what_is_trimmed(last):
    """Says what the module has trimmed, if that is more than it was. Gives it."""
    text = lib.read(lib.STARTING_PCRS)
    if text != last and lib.Starting(text).records:
        lib.ksft.print_msg(f"trimmed {' '.join(text.decode().split())}")
    return text


def cut_within(seconds):
    """Asks for the power to be cut."""
    lib.ksft.print_msg(f"power: cut {int(random.uniform(0, seconds) * 1000)} {random.choice(FATES)}")


def number_of(directory):
    """The place of a boot among the others; 0 if it has none yet."""
    path = os.path.join(directory, "number")
    return int(lib.read(path)) if os.path.exists(path) else 0


def archives():
    """The directories of boots, in their order."""
    names = [name for name in os.listdir(ROOT) if re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", name)]
    return sorted(names, key=lambda name: number_of(os.path.join(ROOT, name)))


def prepare():
    lib.ksft.print_msg(f"TEST_SEED={SEED}")
    random.seed(f"{SEED}.{BOOT}")
    whole.attach_disk()
    if not BOOT:
        whole.make_file_system()
    whole.mount_disk(PLACE)
    os.makedirs(ROOT, exist_ok=True)
    os.sync()
    whole.configure(archive={"directory": ROOT, "keep_boots": KEPT},
                    trim={"automatic": True, "records": BOUND, "every": 1})
    lib.measure(3)


@test("everything that the boot before has trimmed is archived, once, and nothing half-written is taken for it")
def _():
    earlier = boots_before()
    equal(len(earlier), BOOT, "boots that have said their id")
    if not earlier:
        equal(os.listdir(ROOT), [], "what is there at first")
        return
    last = earlier[-1]
    archive = whole.Archived(last.directory).read_on()
    for point in last.trimmed:
        archive.holds(point, f"record {point.records}, to which boot {BOOT} has trimmed")
    segments, others = archive.names()
    lib.ksft.print_msg(f"after boot {BOOT}: {len(last.trimmed)} trims said, to record "
                       f"{last.trimmed[-1].records if last.trimmed else 0}; found {len(archive.records)} records in "
                       f"{len(segments)} segments, {sum(name.endswith('.tmp') for name in others)} files half-written")
    if segments:
        for boot in (last.identity, "-1"):
            text = whole.run("verify", "--boot", boot).decode()
            check(f"verified: {len(archive.records)} records of the boot {last.identity} " in text, f"verify: {text}")
        values, violations = archive.points[len(archive.records)]
        point = lib.Starting(text.split("\n", 1)[1].encode())
        whole.same_values(point, values, "verify --boot")
        equal((point.records, point.violations), (len(archive.records), violations), "records and violations")
        listed = whole.run("log", "--binary", "--boot", last.identity)
        equal(listed, b"".join(record.raw for record in archive.records), "log --boot")
    else:
        whole.run("verify", "--boot", last.identity, status=2)
    # Those before it are as they were, in their order.
    order = [boot.identity for boot in earlier]
    there = [name for name in archives() if number_of(os.path.join(ROOT, name))]
    equal(there, sorted(there, key=order.index), "the order of the boots")
    for name in there:
        if whole.Archived(os.path.join(ROOT, name)).names()[0]:
            check(b"verified: " in whole.run("verify", "--boot", name), f"boot {order.index(name) + 1} is damaged")


@test("an archive of this boot begins beside it, and trims go on until the power is cut" if BOOT < CUTS
      else "an archive of this boot begins beside it, and everything is there")
def _():
    earlier = boots_before()
    identity = lib.read("/proc/sys/kernel/random/boot_id").decode().strip()
    own = os.path.join(ROOT, identity)
    highest = max((number_of(os.path.join(ROOT, name)) for name in archives()), default=0)
    lib.ksft.print_msg(f"boot {identity}")
    if BOOT < CUTS and BOOT % 4 == 3:
        cut_within(OPENING)
    service = whole.Service().start()
    whole.kernel_files()
    if BOOT < CUTS:
        load(BOOT % 4 != 3)
    equal(whole.status(1)["daemon"]["archive"], own, "the archive of this boot")
    check(number_of(own) > highest, f"{own} has the number {number_of(own)}, another one {highest}")
    lib.measure(BOUND)
    lib.violate_tomtou()
    whole.trim()
    whole.Archived(own).whole_list("in the end")
    check(b"verified: " in whole.run("verify"), "verify")
    # What was pruned is pruned as a whole.
    equal([name for name in os.listdir(ROOT) if name not in archives()], [], "what else is there")
    check(len(archives()) <= KEPT + 1, f"archives: {archives()}")
    check(archives()[-1] == identity, "this boot is not the last one")
    # The cuts were no matter of course.
    trims = [len(boot.trimmed) for boot in earlier]
    lib.ksft.print_msg(f"{CUTS} cuts; trims that were said before each: {trims}")
    check(sum(map(bool, trims)) >= CUTS * 2 // 3, f"few boots have trimmed anything: {trims}")
    equal(service.stop(), 0, "exit status")


def load(ask_for_cut):
    """Appends, archives and trims until the power is cut."""
    for _ in range(2):
        Child(whole.append_records, "/run/never", 0.01)

    def keep_trimming():
        while True:
            whole.ask_to_trim()
            time.sleep(0.02)

    threading.Thread(target=keep_trimming, daemon=True).start()
    last = b""
    deadline = time.monotonic() + LONG
    while time.monotonic() < deadline:
        last = say_what_is_trimmed(last)
        if ask_for_cut and lib.Starting(last).records:
            ask_for_cut = False
            cut_within(LATER)
        time.sleep(0.01)
    raise lib.Failure("the power was not cut")


lib.main(prepare=prepare)
