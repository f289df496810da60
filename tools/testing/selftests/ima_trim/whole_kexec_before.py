#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""What the program archives and trims before a kexec: see whole_kexec_after.py."""

import os

import ima_trim_lib as lib
import whole_lib as whole
from ima_trim_lib import check, equal, test

# Where the list is carried over, so many of its records are.
KEPT = 6


@test("records are archived and trimmed, and the next kernel is loaded")
def _():
    history = lib.history()
    for _ in range(2):
        lib.measure(3)
        lib.violate_tomtou()
        lib.measure(pcr=11)
        history.sync()
        whole.run("trim")
    lib.measure(KEPT)
    history.sync()
    equal(history.total - history.trimmed, KEPT, "records left")
    check(b"verified: " in whole.run("verify"), "verify")
    boot = lib.read("/proc/sys/kernel/random/boot_id").decode().strip()
    directory = os.path.join(whole.ARCHIVE, boot)
    # A disk would be there in the next kernel, too; these guests have none.
    carried = {f"archive.{boot}.{name}": lib.read(os.path.join(directory, name)) for name in os.listdir(directory)}
    # Where the new kernel's list will begin.
    point = history.trimmed if lib.carries_lists() else history.total
    lib.load_kexec({
        "history": lib.read(lib.History.PATH), "starting_pcrs": lib.read(lib.STARTING_PCRS),
        "statement": history.statement(point, trims=2).encode(), **carried})


lib.main(prepare=whole.configure)
