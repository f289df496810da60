#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""A module that takes this kernel for newer than any that it was tested on: it keeps, and nothing else unless it is told to.

It is ima_trim_untested.ko beside the module, made from the same sources.
"""

import os

import ima_trim_lib as lib
from ima_trim_lib import cases, check, equal, test

MODULE = os.path.join(os.path.dirname(lib.MODULE), "ima_trim_untested.ko")


def matching():
    """A request that would trim all but one record."""
    lib.measure(4)
    log = lib.history()
    return log, f"{log.tokens(log.total - 1)} violations={len(log.violations(log.trimmed, log.total - 1))}"


def reload(path=MODULE, parameters=""):
    """Unloads the module and loads this one, and gives it back what it knew."""
    text = lib.read(lib.STARTING_PCRS)
    lib.unload()
    lib.load(path, parameters)
    if lib.Starting(text).records:
        equal(lib.restore(text)[0], None, "error of writing starting_pcrs back")


@test("the module itself is tested on this kernel, and needs no parameter")
def _():
    equal(lib.read("/sys/module/ima_trim/parameters/untested"), b"N\n", "parameter untested")
    for mode in ("compact", "flush", "keep"):
        log, text = matching()
        lib.trim(f"{text} {mode}", log.total - 1)


@test("the other one keeps")
def _():
    reload()
    for mode in ("", "keep"):
        log, text = matching()
        lib.trim(f"{text} {mode}", log.total - 1)


@cases("EOPNOTSUPP, and the log names untested=1, for", [
    (words, words) for words in ("compact", "flush", "compact dry-run", "flush dry-run")])
def _(words):
    log, text = matching()
    lib.refuse(f"{text} {words}", "EOPNOTSUPP", "ima_trim: .*untested=1")
    lib.refuse(f"{log.tokens(log.trimmed)} {words}", "EOPNOTSUPP", "ima_trim: .*untested=1")
    lib.trim(text, log.total - 1)


@cases("what it is told to do by default it does not do either", [("compact", "compact"), ("flush", "flush")])
def _(mode):
    reload(parameters=f"reclaim={mode}")
    log, text = matching()
    lib.refuse(text, "EOPNOTSUPP", "ima_trim: .*untested=1")
    lib.trim(f"{text} keep", log.total - 1)


@test("with untested=1 it does everything")
def _():
    reload(parameters="untested=1")
    equal(lib.read("/sys/module/ima_trim/parameters/untested"), b"Y\n", "parameter untested")
    for mode in ("compact", "flush", "keep", ""):
        log, text = matching()
        lib.trim(f"{text} {mode}", log.total - 1)


@test("with the module itself again")
def _():
    reload(lib.MODULE)
    check(lib.loaded(), "it is not loaded")
    lib.invariant()


lib.main()
