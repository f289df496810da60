#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""A module that does not find what it needs is not loaded, says what is missing and changes nothing.

The copies of the module here look for names that no kernel has.
"""

import os
import re

import ima_trim_lib as lib
from ima_trim_lib import cases, check, equal, test

# The module's own list of what it looks up by name, but for one without which it does more than it has to.
with open(lib.source("rust/symbols.rs"), encoding="utf-8") as source:
    SYMBOLS = sorted(set(re.findall(r'\bc"(\w+)"', source.read())) - {"bootloader_type"})
MEMBERS = ["template_data_len", "template_desc", "ima_template_entry", "ima_queue_entry", "BINARY_FULL"]


def refuse(old, new, logged, errors):
    """Checks that a copy of the module with another name, where it comes first, is not loaded."""
    with open(lib.MODULE, "rb") as file:
        image = file.read()
    check(old in image, f"the module has no {old!r} to be replaced")
    path = os.path.join(lib.STATE, "other.ko")
    with open(path, "wb") as file:
        file.write(image.replace(old, new, 1))
    before = [lib.read(name) for name in (lib.BINARY, lib.ASCII)]
    with lib.KernelLog() as log:
        error = lib.outcome_of(lib.load, path)
        if not error:
            lib.unload()
        check(error in errors, f"error {error}, expected one of {errors}")
        log.expect(logged)
    os.unlink(path)
    check(not lib.loaded() and not os.path.exists(lib.DIRECTORY), "something is left")
    equal([lib.read(name) for name in (lib.BINARY, lib.ASCII)], before, "lists")


def other(name):
    """Another name of the same length."""
    return name[:-1] + ("z" if name[-1] != "z" else "y")


@cases("a symbol is missing", [(name, name) for name in SYMBOLS])
def _(name):
    # A byte of zeros ends it; what is before it may be the end of another string, which has none. What the kernel says
    # of a symbol that it does not find itself is in other words.
    refuse(name.encode() + b"\0", other(name).encode() + b"\0", rf"ima_trim: symbol {other(name)} not found", {"ENOENT"})


@cases("a struct, a member or an enumerator is missing", [(name, name) for name in MEMBERS])
def _(name):
    refuse(name.encode(), other(name).encode(), f"ima_trim: .*{other(name)}", {"ENOENT", "EOPNOTSUPP"})


@test("the module itself is loaded after all that")
def _():
    lib.load()
    equal(lib.status()["base"], "verified", "base")
    lib.unload()
    os.close(os.open(lib.BINARY, os.O_RDWR))


lib.main(module=False)
