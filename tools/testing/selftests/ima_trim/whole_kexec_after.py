#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""After a kexec, which resets no PCR: a list without its beginning is neither served for the whole one nor trimmed.

The records before it are those of whole_kexec_before.py. The list of the new kernel goes on behind those that were
trimmed, or begins anew (see kexec_after.py); it does not replay from the reset values to the TPM in either case.
"""

import os
import re
import subprocess

import ima_trim_lib as lib
import whole_lib as whole
from ima_trim_lib import check, equal, test

USUAL = "/sys/kernel/security/ima/binary_runtime_measurements_sha1"
UNCONFIRMED = "the TPM does not confirm the list: .*a kexec only a reboot helps"

SAVED = b""
BEFORE = []
boot = ""


def prepare():
    """Puts the archive of the boot before to where it was."""
    global SAVED, BEFORE, boot
    SAVED = lib.read(os.path.join(lib.CARRIED, "starting_pcrs"))
    BEFORE = lib.parse(lib.read(os.path.join(lib.CARRIED, "history")))
    for name in os.listdir(lib.CARRIED):
        if name.startswith("archive."):
            _, boot, file = name.split(".", 2)
            directory = os.path.join(whole.ARCHIVE, boot)
            os.makedirs(directory, mode=0o700, exist_ok=True)
            with open(os.path.join(directory, file), "wb") as copy:
                copy.write(lib.read(os.path.join(lib.CARRIED, name)))
    whole.configure(trim={"automatic": True, "records": 1, "every": 1})
    lib.measure(3)


def refused(pattern, *arguments):
    """The program gives a negative verdict, and says this. Nothing changes in the kernel."""
    before = lib.snapshot()
    done = subprocess.run([whole.PROGRAM, "--config", whole.CONFIG, *arguments], capture_output=True, check=False)
    error = done.stderr.decode(errors="replace")
    equal(done.returncode, 1, f"exit status of {arguments}: {error}")
    check(re.search(pattern, error), f"{arguments} says {error!r}")
    equal(done.stdout, b"", f"what {arguments} gives")
    lib.unchanged(before, " ".join(arguments))


def each_refused(pattern):
    """What would give a list, or trim it."""
    for arguments in (["log"], ["log", "--binary"], ["verify"], ["trim"]):
        refused(pattern, *arguments)


def not_served(pattern):
    """A daemon gives no list, covers nothing, trims nothing and says why. Where there is no FUSE there is no daemon."""
    if not os.path.exists("/dev/fuse"):
        lib.ksft.print_msg("this kernel has no FUSE")
        return
    before = lib.snapshot()
    service = whole.Service().start()
    found = whole.status(1)
    check(not found["daemon"]["serving"], "it says that it serves")
    said = "\n".join(found["problems"])
    check(re.search(f"not served: .*{pattern}", said), f"status: {said}")
    each_refused(pattern)
    check(b" fuse.ima-trim " not in lib.read("/proc/mounts"), "something is covered")
    equal(service.stop(), 0, "exit status")
    service.drop()
    lib.unchanged(before, "a daemon")


@test("the list is what was left of it, or begins anew")
def _():
    gone = lib.Starting(SAVED).records
    records = lib.parse(lib.read(lib.BINARY))
    left = BEFORE[gone:] if lib.carries_lists() else []
    equal([record.raw for record in records[:len(left)]], [record.raw for record in left], "records carried over")
    equal(records[len(left)].hint, b"boot_aggregate", "the first record of this kernel")
    equal(lib.status()["base"], "unverified", "base")


@test("the program gives no list and trims nothing, and neither does the daemon")
def _():
    each_refused(UNCONFIRMED)
    not_served(UNCONFIRMED)


@test("the same when the module was given the values of before: it trims when it is asked to, and the program does not")
def _():
    statement = lib.read(os.path.join(lib.CARRIED, "statement")).decode()
    equal(lib.restore(statement)[0], None, "error of writing the values")
    equal(lib.status()["base"], "verified", "base")
    pattern = "records are gone from the kernel's list and not in the archive"
    each_refused(pattern)
    not_served(pattern)


@test("the archive of the boot before is as it was")
def _():
    gone = lib.Starting(SAVED).records
    archive = whole.Archived(os.path.join(whole.ARCHIVE, boot)).read_on()
    equal([record.raw for record in archive.records], [record.raw for record in BEFORE[:gone]], "records archived")
    archive.holds(lib.Starting(SAVED), "what was trimmed to")
    check(f"verified: {gone} records of the boot {boot}" in whole.run("verify", "--boot", "-1").decode(), "verify --boot")
    listed = whole.run("log", "--binary", "--boot", boot)
    equal(listed, b"".join(record.raw for record in BEFORE[:gone]), "log --boot")


lib.main(prepare=prepare)
