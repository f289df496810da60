#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""The program ima-trim where all that root reads is measured, as with ima_policy=tcb: what it does is no reason for more.

A stock kernel takes a policy once per boot, so there are two guests. In the one with ima_trim_rule=except on the kernel's
command line the policy is that of tcb with the rule that the program asks for in front.
"""

import os
import subprocess
import time

import ima_trim_lib as lib
import whole_lib as whole
from ima_trim_lib import check, equal, test

EXCEPT = "ima_trim_rule=except" in lib.read("/proc/cmdline").decode().split()
RULE = "dont_measure func=FILE_CHECK fs_subtype=ima-trim"
# That of ima_policy=tcb: dont_measure_rules and default_measurement_rules in security/integrity/ima/ima_policy.c.
TCB = [
    *(f"dont_measure fsmagic={magic}" for magic in (
        "0x9fa0", "0x62656572", "0x64626720", "0x1cd1", "0x42494e4d", "0x73636673", "0xf97cff8c", "0x43415d53",
        "0x27e0eb", "0x63677270", "0x6e736673", "0xde5e81e4", "0x62656570")),
    "dont_measure fsmagic=0x01021994 func=FILE_CHECK",
    "measure func=MMAP_CHECK mask=MAY_EXEC",
    "measure func=BPRM_CHECK mask=MAY_EXEC",
    "measure func=FILE_CHECK mask=^MAY_READ euid=0",
    "measure func=FILE_CHECK mask=^MAY_READ uid=0",
    "measure func=MODULE_CHECK",
    "measure func=FIRMWARE_CHECK",
    "measure func=POLICY_CHECK",
]
# No exception of the policy is for this type of file system.
DISK = "/srv"
# How long nothing must happen when nobody does anything, in seconds: the daemon looks for work once a second.
QUIET = 6
# How many records a trim may bring along: the daemon of this test is root, and reads each segment that it has written.
TRIM_RECORDS = 2

service = whole.Service()
violations = None
serial = 0


def prepare():
    """Everything that matters on file systems whose files are measured, and the policy."""
    for directory in (whole.ARCHIVE, DISK):
        os.makedirs(directory, exist_ok=True)
        subprocess.run(["mount", "-t", "ramfs", "ramfs", directory], check=True)
    whole.configure()
    if EXCEPT:
        fd = os.open(lib.IMA + "/policy", os.O_WRONLY)
        for rule in (RULE, *TCB):
            os.write(fd, f"{rule}\n".encode())
        os.close(fd)


def measure(files=3):
    """Has IMA append so many records: root reads files that it has written."""
    global serial
    for _ in range(files):
        serial += 1
        path = f"{DISK}/{serial}"
        with open(path, "w", encoding="ascii") as file:
            file.write(path)
        lib.read(path)


def count():
    """How many records the kernel has. Reading this is never measured."""
    return int(lib.read((whole.KERNEL if os.path.isdir(whole.KERNEL) else lib.IMA) + "/runtime_measurements_count"))


def settled():
    """How many records there are when nobody does anything. It must stay so."""
    time.sleep(2)
    before = count()
    time.sleep(QUIET)
    equal(count(), before, f"records after {QUIET} s in which nobody did anything")
    return before


def covered():
    """How many of IMA's files are covered."""
    # The usual path is a link to where IMA's directory is.
    directory = os.path.realpath(lib.IMA)
    with open("/proc/self/mountinfo", encoding="ascii") as mounts:
        return sum(f" {directory}/" in line for line in mounts)


@test("the policy measures what root reads")
def _():
    global violations
    before = count()
    measure()
    equal(count(), before + 3, "records")
    violations = lib.read(lib.IMA + "/violations")


@test("the daemon finds out whether its files are measured, and covers IMA's only if they are not")
def _():
    service.start()
    state = whole.status(1)["daemon"]
    equal(state["overlay"], EXCEPT, "overlay in status")
    equal(covered() > 0, EXCEPT, "whether IMA's files are covered")
    if not EXCEPT:
        check(f"'{RULE}'" in state["overlay_refused"], f"the reason does not name the rule: {state['overlay_refused']}")
        check(RULE in lib.read("/run/ima-trim.log").decode(), "the log does not name the rule")


@test("that is so for a daemon that comes later, too")
def _():
    service.kill()
    service.wait()
    equal(whole.status(1)["daemon"]["overlay"], EXCEPT, "overlay in status")
    equal(covered() > 0, EXCEPT, "whether IMA's files are covered")


@test("reading the list makes a record of it only without the rule")
def _():
    settled()
    path = lib.BINARY if EXCEPT else f"{whole.MOUNTPOINT}/binary_runtime_measurements"
    seen = b""
    for number in range(100 if EXCEPT else 3):
        before = count()
        now = lib.read(path)
        check(now.startswith(seen), f"read {number}: it does not go on from what was read before")
        seen = now
        equal(count() - before, 0 if EXCEPT else 1, f"records of read {number}")


@test("a daemon that has nothing to do makes no records")
def _():
    settled()


@test("trims make none that lead to more, and nothing is lost")
def _():
    for number in range(9):
        measure()
        before = whole.run("log", "--binary")
        whole.trim(whole.MODES[number % 3])
        left = count()
        check(left <= TRIM_RECORDS, f"trim {number}: {left} records are in the list after it")
        after = whole.run("log", "--binary")
        check(after.startswith(before), f"trim {number}: the list is not what it was before")
    settled()
    check(b"verified: " in whole.run("verify"), "verify says something else")


@test("a daemon that starts with an archive makes as few, and the module is restored")
def _():
    before = settled()
    service.kill()
    service.wait()
    check(settled() - before <= TRIM_RECORDS, "more records than that")


@test("no violation is of our own making")
def _():
    equal(lib.read(whole.KERNEL + "/violations"), violations, "violations")
    records = lib.parse(whole.run("log", "--binary"))
    equal([record.hint for record in records if record.violation], [], "violations in the list")


lib.main(policy=False, prepare=prepare)
