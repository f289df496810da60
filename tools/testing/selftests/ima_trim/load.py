#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Loading and unloading, again and again, before anything was trimmed."""

import os
import subprocess
import time

import ima_trim_lib as lib
from ima_trim_lib import check, equal, test

CYCLES = lib.tries(20)


def reload():
    """Loads the module and checks that it is all there."""
    lib.load()
    equal(lib.status()["base"], "verified", "base")
    lib.invariant()


@test("load and unload")
def _():
    check(not lib.loaded() and not os.path.exists(lib.DIRECTORY), "the module was loaded before this test")
    with lib.KernelLog() as log:
        reload()
        log.expect(r"ima_trim: loaded: \d+ records in the list, base=verified")
        lib.unload()
        log.expect(r"sha256:10=0{64}\b")
    check(not os.path.exists(lib.DIRECTORY), "the directory is left")


@test("insmod and rmmod")
def _():
    subprocess.run(["insmod", lib.MODULE], check=True)
    check(lib.loaded(), "the module is not loaded")
    subprocess.run(["rmmod", "ima_trim"], check=True)
    check(not lib.loaded(), "the module is not unloaded")


@test("a second load: EEXIST, and the first is not disturbed")
def _():
    reload()
    before = lib.snapshot()
    equal(lib.outcome_of(lib.load), "EEXIST", "error")
    lib.unchanged(before, "a second load")
    lib.unload()


@test(f"{CYCLES} times, with records of all kinds arriving between")
def _():
    for _ in range(CYCLES):
        reload()
        lib.measure()
        lib.invariant()
        lib.unload()
        lib.violate_tomtou()
        lib.measure(pcr=11)
    lib.lists_agree()


@test(f"{CYCLES} times, while records arrive as fast as IMA can append them")
def _():
    asked, ask = os.pipe()

    def appender():
        # Loading would otherwise have to share its processor with this.
        os.nice(19)
        appended = 0
        while not lib.select.select([asked], [], [], 0)[0]:
            lib.measure(2)
            lib.violate_open_writers()
            lib.measure(1, pcr=11)
            appended += 5
        return appended

    child = lib.Child(appender)
    bases = []
    try:
        for _ in range(CYCLES):
            lib.load()
            bases.append(lib.status()["base"])
            lib.unload()
    finally:
        os.write(ask, b"x")
        appended = child.result()
    equal(bases, ["verified"] * CYCLES, "base")
    check(2 * appended > 5 * CYCLES, f"only {appended} records arrived")
    reload()
    lib.unload()


@test("with kptr_restrict=2")
def _():
    path = "/proc/sys/kernel/kptr_restrict"
    before = lib.read(path)
    lib.write(path, "2\n")
    try:
        reload()
        lib.unload()
    finally:
        lib.write(path, before)


@test("while a process has the list open for reading")
def _():
    fd = os.open(lib.BINARY, os.O_RDONLY)
    try:
        reload()
        lib.unload()
    finally:
        os.close(fd)


@test("while a process has the list open for writing: EBUSY, and the log says so")
def _():
    fd = os.open(lib.ASCII, os.O_WRONLY)
    try:
        with lib.KernelLog() as log:
            equal(lib.outcome_of(lib.load), "EBUSY", "error")
            log.expect("ima_trim: .*open for writing")
    finally:
        os.close(fd)
    check(not lib.loaded() and not os.path.exists(lib.DIRECTORY), "something is left")
    reload()
    lib.unload()


@test("rmmod is refused while a file is open, and works after it is closed")
def _():
    reload()
    for name in os.listdir(lib.DIRECTORY):
        fd = os.open(os.path.join(lib.DIRECTORY, name), os.O_RDONLY)
        try:
            equal(lib.outcome_of(lib.unload), "EAGAIN", f"error with {name} open")
            lib.read_fd(fd)
        finally:
            os.close(fd)
    lib.unload()


@test("opening all files in several processes during many cycles: they are there or not, nothing else happens")
def _():
    asked, ask = os.pipe()
    names = ["trim", "starting_pcrs", "verify", "violations", "status", "."]

    def opener(number):
        os.nice(19)
        outcomes = {}
        while not lib.select.select([asked], [], [], 0)[0]:
            for name in names:
                flags = os.O_RDWR if name == "trim" and not number else os.O_RDONLY
                outcome = "opened"
                try:
                    fd = os.open(os.path.join(lib.DIRECTORY, name), flags)
                except OSError as failure:
                    outcome = lib.error_name(failure.errno)
                else:
                    # Reading verify replays the list, which would keep the module for most of the time.
                    if name not in (".", "verify") and number:
                        os.read(fd, 100)
                    os.close(fd)
                outcomes[outcome] = outcomes.get(outcome, 0) + 1
        return outcomes

    with lib.KernelLog() as log:
        children = [lib.Child(opener, number) for number in range(2)]
        try:
            for _ in range(lib.tries(32)):
                lib.load()
                time.sleep(0.005)
                deadline = time.monotonic() + 20
                while (error := lib.outcome_of(lib.unload)) == "EAGAIN" and time.monotonic() < deadline:
                    pass
                equal(error, None, "error of unloading")
        finally:
            os.write(ask, b"xx")
            outcomes = [child.result() for child in children]
        text = log.text()
    for found in outcomes:
        check(set(found) <= {"opened", "ENOENT", "ENODEV", "EIO"}, f"outcomes of opening: {found}")
    check(any(found.get("opened") for found in outcomes), f"nothing was ever opened: {outcomes}")
    check(not lib.re.search(lib.ALARMS, text), f"the kernel's log: {text[-2000:]}")
    reload()
    lib.unload()


@test("after all that the kernel's lists are whole and no reader or writer is left counted")
def _():
    os.close(os.open(lib.ASCII, os.O_RDWR))
    records = lib.lists_agree()
    equal(lib.evmctl(records), 0, "evmctl's exit status")


lib.main(module=False)
