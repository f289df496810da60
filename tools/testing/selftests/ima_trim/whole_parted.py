#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""The program where little tells it what is gone: a point within the first segment, and a list that is cut without the module."""

import os
import re
import signal
import subprocess

import ima_trim_lib as lib
import whole_lib as whole
from ima_trim_lib import check, equal, test

USUAL = "/sys/kernel/security/ima/binary_runtime_measurements_sha1"
KERNEL = whole.KERNEL + "/binary_runtime_measurements_sha1"
# The kernel's files, where they can be written to.
SECURITYFS = "/run/securityfs"

service = whole.Service()


def prepare():
    os.mkdir(SECURITYFS)
    subprocess.run(["mount", "-t", "securityfs", "securityfs", SECURITYFS], check=True)
    whole.configure()


def fails(pattern, *arguments):
    """Runs the program, which must fail and say this."""
    done = subprocess.run(
        [whole.PROGRAM, "--config", whole.CONFIG, *arguments], stdin=subprocess.DEVNULL, capture_output=True, check=False)
    error = done.stderr.decode(errors="replace")
    check(done.returncode in (1, 3), f"exit status of {arguments}: {done.returncode}")
    check(re.search(pattern, error), f"{arguments} does not say {pattern!r} but {error!r}")


def reads():
    """What a reader gets of the usual path before the end or an error, and the error."""
    got = b""
    try:
        with open(USUAL, "rb", buffering=0) as file:
            while part := file.read(1 << 16):
                got += part
    except OSError as error:
        return got, lib.error_name(error.errno)
    return got, None


@test("a module that is loaded anew is given the values of a point within the first segment")
def _():
    lib.measure(8)
    service.start()
    # All is archived, and nothing trimmed.
    fd = os.open(KERNEL, os.O_RDONLY)
    fails("EBUSY|busy", "trim")
    os.close(fd)
    equal(lib.read(lib.STARTING_PCRS).split(b"records=")[1].split()[0], b"0", "records trimmed")
    values = lib.replay({}, lib.parse(lib.read(KERNEL))[:3])
    with open("/run/values", "w", encoding="ascii") as file:
        file.write(f"sha256:10={values['sha256', 10].hex()}\n")
    whole.run("trim", "--to", "/run/values")
    text = lib.read(lib.STARTING_PCRS)
    equal(lib.Starting(text).records, 3, "records trimmed")
    instance = lib.status()["instance"]
    whole.run("reload-module", lib.MODULE)
    check(lib.status()["instance"] != instance, "it is the same instance")
    lib.wait_for(lambda: lib.status()["base"] == "verified", "the values are restored")
    equal(lib.read(lib.STARTING_PCRS), text, "starting_pcrs")
    whole.run("trim")
    check(b"verified: " in whole.run("verify"), "verify says something else")


@test("without the module records are removed that nobody knows: a list that lacks them is given to nobody")
def _():
    fails("insmod", "reload-module", "/harness/job")
    check(not lib.loaded(), "the module is loaded")
    lib.measure(2)
    known, error = reads()
    equal(error, None, "error of reading the list without the module")
    os.kill(service.pid, signal.SIGSTOP)
    lib.measure(3)
    now = lib.parse(lib.read(KERNEL))
    path = f"{SECURITYFS}/ima/ascii_runtime_measurements_sha1"
    lib.wait_for(lambda: lib.outcome_of(lib.write, path, f"{len(now) - 1}\n") is None, "the kernel removes records")
    os.kill(service.pid, signal.SIGCONT)
    # As often as the daemon looks for where the list goes on.
    for _ in range(4):
        got, error = reads()
        check(error in ("EIO", "ENOTCONN"), f"the list can be read to its end, or gives {error}")
        check(known.startswith(got), "other bytes before the error")
    fails("does not (confirm|continue)", "trim")
    problems = "\n".join(whole.status(1)["problems"])
    check(re.search("does not (confirm|continue)", problems), f"status says {problems!r}")


@test("nor after a restart")
def _():
    starts = service.starts
    service.kill()
    lib.wait_for(lambda: service.starts > starts, "the daemon is started again")
    service.wait()
    check(not whole.status(1)["daemon"]["serving"], "it says that it serves")
    check(reads()[1] in ("EIO", "ENOTCONN"), "the list can be read to its end")


lib.main(prepare=prepare)
