#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""What cannot be put right before the next boot: said, nothing is trimmed any more, no list is given for another."""

import re
import subprocess

import ima_trim_lib as lib
import whole_lib as whole
from ima_trim_lib import check, equal, test

USUAL = "/sys/kernel/security/ima/binary_runtime_measurements_sha1"

service = whole.Service()
whole_list = b""


def problems():
    """What `status` says is wrong."""
    return "\n".join(whole.status(1)["problems"])


def refused(pattern, *arguments):
    """The program gives a negative verdict, and says this."""
    done = subprocess.run([whole.PROGRAM, "--config", whole.CONFIG, *arguments], capture_output=True, check=False)
    error = done.stderr.decode(errors="replace")
    equal(done.returncode, 1, f"exit status of {arguments}: {error}")
    check(re.search(pattern, error), f"{arguments} says {error!r}")


@test("the TPM is extended behind IMA's back: the list is served, and not trimmed any more")
def _():
    global whole_list
    lib.measure(4)
    service.start()
    whole.run("trim")
    lib.measure(4)
    before = lib.read(USUAL)
    lib.tpm_extend(10)
    refused("the TPM does not confirm the list: sha256:10", "trim")
    refused("do not replay to the values of the TPM", "verify")
    lib.wait_for(lambda: "does not confirm" in problems(), "status says it")
    equal(lib.read(USUAL), before, "the list")
    lib.measure(1)
    whole_list = lib.read(USUAL)
    check(whole_list.startswith(before) and len(whole_list) > len(before), "what is new is not there")


@test("the same after a restart: the module and the archive agree on where the list begins")
def _():
    starts = service.starts
    service.kill()
    lib.wait_for(lambda: service.starts > starts, "the daemon is started again")
    service.wait()
    equal(lib.read(USUAL), whole_list, "the list")
    lib.wait_for(lambda: "does not confirm" in problems(), "status says it")
    refused("does not confirm", "trim")


@test("a stray request while no daemon runs tears a hole: said, and no list is given for the whole one")
def _():
    equal(service.stop(), 0, "exit status")
    lib.measure(3)
    kernel = lib.parse(lib.read(whole.KERNEL + "/binary_runtime_measurements_sha1"))
    starting = lib.Starting(lib.read(lib.STARTING_PCRS))
    values = lib.replay(starting.values, kernel)
    lib.write(lib.TRIM, f"sha256:10={values['sha256', 10].hex()}")
    equal(lib.Starting(lib.read(lib.STARTING_PCRS)).records, starting.records + len(kernel), "records trimmed")
    lib.measure(2)

    another = whole.Service()
    another.kept = service.kept
    another.start()
    check(not whole.status(1)["daemon"]["serving"], "it says that it serves")
    check(re.search(r"not served: \d+ records are gone .* not in the archive: .* next boot", problems()), problems())
    check(lib.outcome_of(lib.read, USUAL) in ("EIO", "ENOTCONN"), "a list can be read")
    refused("not in the archive", "log")
    refused("not in the archive", "trim")
    equal(another.stop(), 0, "exit status of a daemon that does not serve")
    another.drop()
    check(lib.outcome_of(lib.read, USUAL), "a list can be read")


lib.main(prepare=whole.configure)
