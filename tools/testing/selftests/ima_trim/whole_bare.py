#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""The unit with a list that the TPM does not confirm, and of which nothing was trimmed: IMA's own files are uncovered."""

import os

import ima_trim_lib as lib
import whole_lib as whole
from ima_trim_lib import check, equal, test

service = None


def covered():
    """How many of IMA's files are covered."""
    directory = os.path.realpath(lib.IMA)
    with open("/proc/self/mountinfo", encoding="ascii") as mounts:
        return sum(f" {directory}/" in line for line in mounts)


@test("a command that was run before the service is not in its way")
def _():
    global service
    check(b"boot_aggregate" in whole.run("log", "--ascii"), "log without a daemon")
    lib.measure(3)
    service = whole.Unit().start()
    check(covered() > 0, "IMA's files are not covered")


@test("the TPM is extended behind IMA's back: at the next start the kernel's own files are back, for everybody")
def _():
    lib.tpm_extend(10)
    service.restart_job()
    equal(covered(), 0, "covered files")
    equal(lib.read(lib.BINARY), lib.read(f"{whole.KERNEL}/{os.path.basename(os.path.realpath(lib.BINARY))}"), "the list")
    problems = "\n".join(whole.status(1)["problems"])
    check("does not confirm" in problems, f"status says {problems!r}")
    starts = service.starts
    lib.measure(2)
    whole.status(1)
    equal(service.starts, starts, "starts of the daemon")


@test("stopped, nothing is left")
def _():
    service.stop()
    check("fuse.ima-trim" not in lib.read("/proc/self/mountinfo").decode(), "something is mounted")


def prepare():
    whole.tmpfiles()
    whole.configure()


lib.main(prepare=prepare)
