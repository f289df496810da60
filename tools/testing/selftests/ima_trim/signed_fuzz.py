#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Messages that are changed at random, for a set time or until there were 100000: none is taken for what was not signed."""

import os
import random

import ima_trim_lib as lib
import signed_lib as signed
from ima_trim_lib import check, equal, test

SEED = os.environ.get("TEST_SEED") or str(random.SystemRandom().randrange(1 << 32))
SECONDS = int(os.environ.get("TEST_SECONDS") or 600)
MUTATIONS = 100000
# Names of keys, and options of openssl, of the messages that are changed.
FORMS = [(name, ("-nodetach", "-noattr", *certificates)) for name in ("rsa2048", "rsa4096", "p256", "p384")
         for certificates in ((), ("-nocerts",))]
FORMS += [("rsa2048", ("-nodetach", "-nosmimecap")), ("issued", ("-nodetach", "-noattr"))]


def quiet(on):
    """Keeps the kernel's log from the console, which takes longer than all else."""
    lib.write("/sys/module/printk/parameters/ignore_loglevel", "N" if on else "Y")
    lib.subprocess.run(["dmesg", "--console-level", "emerg" if on else "debug"], check=True)


@test("mutations of signed messages")
def _():
    random.seed(SEED)
    lib.ksft.print_msg(f"TEST_SEED={SEED}")
    lib.measure(3)
    log = lib.history()
    # A dry run: what is taken all the same changes nothing, and is one mutation more.
    text = signed.trim_text(log, log.total - 1) + " dry-run"
    messages = [signed.sign(text, name, options=options) for name, options in FORMS]
    messages.append(signed.sign(text, "rsa2048", "p256"))
    before = lib.read(lib.STARTING_PCRS)
    quiet(True)
    try:
        results = signed.mutate(messages, MUTATIONS, SECONDS)
    finally:
        quiet(False)
    check(results.total() > 1000, "too few")
    check(results["EINVAL"] and results["EKEYREJECTED"], f"not each kind: {results}")
    equal(lib.read(lib.STARTING_PCRS), before, "starting values")


@test("after that a request trims as ever")
def _():
    log, text = signed.matching()
    signed.trim(text, point=log.total - 1)


signed.main()
