#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""The machine hibernates, and is back: its list goes on, the PCRs have begun anew. It is served, and not trimmed.

This file runs twice. The first run hibernates in its first test, and the machine switches itself off. The second one is
in the machine that boots after that, with a kernel of its own and a TPM that was reset; it has its kernel replaced by
what is on the disk, in which the first run goes on.
"""

import os
import re
import subprocess
import time

import ima_trim_lib as lib
import whole_lib as whole
from ima_trim_lib import check, equal, test

USUAL = "/sys/kernel/security/ima/binary_runtime_measurements_sha1"
BOUND = 20
SAID = r"the TPM does not confirm the list: \w+:10 .*[Aa]fter a hibernation"

service = whole.Service()
history = None
trimmed = b""


def resume():
    """Goes on with what is on the disk. Returns only if there is nothing."""
    whole.attach_disk()
    lib.write("/sys/power/resume", lib.read("/sys/class/block/vda/dev").decode().strip())
    print("Bail out! the kernel does not find what the machine was hibernated to")


if os.environ.get("BOOT"):
    resume()
    raise SystemExit(1)


def prepare():
    whole.attach_disk()
    subprocess.run(["mkswap", whole.DISK], check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["swapon", whole.DISK], check=True)
    whole.configure(trim={"automatic": True, "records": BOUND, "every": 1})


def problems():
    """What `status` says is wrong, but for the rule that this test does not have."""
    return [problem for problem in whole.status(1)["problems"] if "label=ima_trim" not in problem]


def says_it(seconds=30):
    """Waits until `status` says what has happened."""
    lib.wait_for(lambda: any(re.search(SAID, problem) for problem in problems()),
                 f"status says so, and not {problems()}", seconds)


def whole_list(what):
    """The usual path has every record since the machine was booted first."""
    history.sync()
    expected = b"".join(record.raw for record in history.records)
    found = lib.read(USUAL)
    check(found == expected, f"{what}: the list has {len(found)} bytes, {len(expected)} expected")


@test("a daemon that has trimmed, and the machine hibernates and comes back")
def _():
    global history, trimmed
    service.start()
    whole.kernel_files()
    history = lib.history()
    lib.measure(3)
    history.sync()
    whole.trim()
    lib.measure(3)
    whole_list("before")
    equal(problems(), [], "problems before")
    trimmed = lib.read(lib.STARTING_PCRS)
    before = {bank: lib.tpm_value(bank, lib.MEASURE_PCR) for bank in lib.banks()}
    # As little as can be: it is written to the disk and read again.
    lib.write("/sys/power/image_size", "0")
    lib.write("/sys/power/disk", "shutdown")
    began = time.clock_gettime(time.CLOCK_BOOTTIME)
    lib.ksft.print_msg("power: again")
    lib.write("/sys/power/state", "disk")
    lib.ksft.print_msg(f"it is back after {time.clock_gettime(time.CLOCK_BOOTTIME) - began:.0f} s")
    for bank, value in before.items():
        check(lib.tpm_value(bank, lib.MEASURE_PCR) != value, f"the TPM has kept {bank}:{lib.MEASURE_PCR}")


@test("that the TPM has other values now is said by itself, before anything is to be trimmed")
def _():
    says_it()
    equal(lib.read(lib.STARTING_PCRS), trimmed, "starting_pcrs")


@test("every record is served, those that come included, and none is trimmed")
def _():
    whole_list("after")
    lib.measure(BOUND + 5)
    whole_list("with new records")
    # More than the time between two trims.
    time.sleep(5)
    for arguments, pattern in ((["trim"], SAID), (["verify"], "do not replay to the values of the TPM")):
        done = subprocess.run([whole.PROGRAM, "--config", whole.CONFIG, *arguments], capture_output=True, check=False)
        error = done.stderr.decode(errors="replace")
        equal(done.returncode, 1, f"exit status of {arguments}: {error}")
        check(re.search(pattern, error), f"{arguments} says {error!r}")
    equal(lib.read(lib.STARTING_PCRS), trimmed, "starting_pcrs")


@test("the same with another daemon, as the module and the archive agree on what was trimmed")
def _():
    starts = service.starts
    service.kill()
    lib.wait_for(lambda: service.starts > starts, "the daemon is started again")
    service.wait()
    whole_list("restarted")
    says_it()
    equal(lib.read(lib.STARTING_PCRS), trimmed, "starting_pcrs")
    equal(service.stop(), 0, "exit status")


lib.main(prepare=prepare)
