#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""With certificates built in, the list stays locked when the module is unloaded: nobody removes a record until the machine
is rebooted. Has to be the last of its boot. With ima_trim_force on the kernel's command line it is unloaded by force.
"""

import os
import signal

import ima_trim_lib as lib
import signed_lib as signed
from ima_trim_lib import check, equal, test

FORCE = b"ima_trim_force" in lib.read("/proc/cmdline")
LOCKED = "ima_trim: .*until the machine is rebooted"

# The list and the starting values as they were when the module was unloaded.
records = []
saved = []


def nothing_is_cut():
    """Checks that the kernel's own trim is refused by each file, that reading is not, and that nothing was removed."""
    equal(signed.can_be_written(), {"EBUSY"}, "errors of opening the list for writing")
    for name in lib.list_files():
        equal(lib.outcome_of(lib.write, name, "1\n"), "EBUSY", f"error of a native trim by {name}")
        check(lib.read(name), f"nothing to read in {name}")
    now = [record.raw for record in lib.lists_agree()]
    equal(now[:len(records)], records, "records")


def refused(text):
    """Checks that a request to a module without certificates is refused, and cuts nothing."""
    before = [record.raw for record in lib.parse(lib.read(lib.BINARY))]
    outcome = lib.logged(lambda: lib.request(text), LOCKED)
    equal((outcome.error, outcome.result), ("EBUSY", "refused"), "outcome")
    equal([record.raw for record in lib.parse(lib.read(lib.BINARY))], before, "records")


def keep_open():
    """Has a process keep a file of the module open for as long as the machine runs: it must never close it again, as what
    that would call is gone."""
    opened, tell = os.pipe()
    if not os.fork():
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        os.open(lib.STATUS, os.O_RDONLY)
        os.write(tell, b"x")
        while True:
            signal.pause()
    equal(os.read(opened, 1), b"x", "what the process says")


@test("it trims, and then it is unloaded" + (" by force" if FORCE else ""))
def _():
    log, text = signed.matching(6)
    signed.trim(signed.trim_text(log, log.total - 4), point=log.total - 4)
    records[:] = [record.raw for record in lib.lists_agree()]
    check(len(records) > 3, "records left")
    saved.append(lib.read(lib.STARTING_PCRS).decode())
    if FORCE:
        keep_open()
        equal(lib.outcome_of(lib.unload), "EAGAIN", "error of unloading it while a file is open")
        check(lib.loaded(), "the module is gone")
    with lib.KernelLog() as kernel:
        lib.unload(force=FORCE)
        said = kernel.text()
    check(lib.re.search(LOCKED, said), f"the log does not say that the list stays locked: {said!r}")
    check(lib.re.search(r"sha256:10=\w{64}", said), f"the log does not have the starting values: {said!r}")
    check(not lib.loaded() and not os.path.exists(lib.DIRECTORY), "something is left")


@test("the keyring is gone")
def _():
    lib.wait_for(lambda: b".ima_trim" not in lib.read("/proc/keys"), "the keyring to go")


@test("the kernel's own trim is refused, for as long as one likes to try")
def _():
    nothing_is_cut()
    with lib.held_open(lib.BINARY, os.O_RDONLY):
        nothing_is_cut()
    nothing_is_cut()


@test("measuring goes on")
def _():
    before = lib.count()
    lib.measure(3)
    equal(lib.count(), before + 3, "records")
    nothing_is_cut()


@test("this build again: it is not loaded, and the log says why")
def _():
    for _ in range(2):
        with lib.KernelLog() as kernel:
            equal(lib.outcome_of(lambda: lib.load(signed.MODULE)), "EBUSY", "error of loading it")
            kernel.expect("ima_trim: not loaded: .*until the machine is rebooted")
        check(not lib.loaded(), "it is loaded")
        nothing_is_cut()


@test("a build without certificates: it is loaded, and says that it can trim nothing")
def _():
    for parameters in ("", "guard=0", "reader_wait_ms=0 reclaim=flush", "untested=1"):
        with lib.KernelLog() as kernel:
            lib.load(parameters=parameters)
            kernel.expect(LOCKED)
        check(lib.status()["signatures"] == "off", "signatures=")
        value = lib.tpm_value("sha256", lib.MEASURE_PCR).hex()
        for text in (f"sha256:10={value}", f"sha256:10={value} flush", f"sha256:10={value} dry-run", "sha256:10=" + "00" * 32):
            refused(text)
        lib.refuse("junk", "EINVAL")
        lib.unload()
        nothing_is_cut()


@test("nor can it with the right starting values, which it takes")
def _():
    lib.load()
    equal(lib.restore(saved[0])[0], None, "error of stating them")
    equal(lib.status()["base"], "verified", "base")
    lib.measure()
    history = lib.history(again=True)
    refused(history.tokens(history.total))
    refused(history.tokens(history.total - 1))
    lib.invariant()
    lib.unload()
    nothing_is_cut()


signed.main()
