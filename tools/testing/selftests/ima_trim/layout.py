#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""A kernel whose BTF has another IMA: the module is not loaded, and names what it misses.

The tests' own module gives access to the BTF in the kernel's memory, where it is changed for the time of a load.
"""

import os
import re
import struct

import ima_trim_lib as lib
from ima_trim_lib import check, equal, test

DEVICE = "/dev/ima_trim_btf"
SOURCE = lib.source("rust/layout.rs")
MEMBERS = {
    "tpm_digest": ["alg_id", "digest"],
    "ima_field_data": ["data", "len"],
    "ima_template_field": ["field_id"],
    "ima_template_desc": ["name", "num_fields", "fields"],
    "ima_template_entry": ["pcr", "digests", "template_desc", "template_data_len", "template_data"],
    "ima_queue_entry": ["hnext", "later", "entry"],
}
ENUMERATION = "binary_lists"
ENUMERATORS = ["BINARY", "BINARY_STAGED", "BINARY_FULL", "BINARY__LAST"]
KINDS = {"struct": 4, "enum": 6}


class Btf:
    """The kernel's type information: where in it the entries of structs and enums are. Of this byte order only."""

    # What follows struct btf_type, by kind: bytes in all, and bytes for each element.
    REST = {1: (4, 0), 3: (12, 0), 4: (0, 12), 5: (0, 12), 6: (0, 8), 13: (0, 8), 14: (4, 0), 15: (0, 12), 17: (4, 0),
            19: (0, 12)}

    def __init__(self, blob):
        self.blob = blob
        magic, version, _, header, types, types_size, strings, strings_size = struct.unpack_from("=HBBIIIII", blob)
        equal((magic, version), (0xeb9f, 1), "magic and version of the BTF")
        self.strings = header + strings
        self.entries = {}
        self.ids = {}
        at, end, number = header + types, header + types + types_size, 0
        while at < end:
            number += 1
            name, info, _ = struct.unpack_from("=III", blob, at)
            kind, elements = info >> 24 & 0x1f, info & 0xffff
            rest, each = self.REST.get(kind, (0, 0))
            if kind in KINDS.values():
                self.entries.setdefault((kind, self.name(name)), []).extend(
                    at + 12 + each * element for element in range(elements))
                self.ids[kind, self.name(name)] = number
            at += 12 + rest + each * elements

    def name(self, offset):
        """The name at this offset."""
        return self.blob[self.strings + offset:self.blob.index(b"\0", self.strings + offset)].decode()

    def offset(self, name):
        """Where a name is among the names."""
        return self.blob.index(b"\0" + name.encode() + b"\0", self.strings) + 1 - self.strings

    def places(self, kind, owner, name):
        """Where the entries of this name are, in all types of the owner's name."""
        return [at for at in self.entries[KINDS[kind], owner]
                if self.name(struct.unpack_from("=I", self.blob, at)[0]) == name]


def put(changes):
    """Writes words to the kernel's BTF."""
    fd = os.open(DEVICE, os.O_RDWR)
    try:
        for at, word in changes:
            for offset, byte in enumerate(struct.pack("=I", word)):
                equal(os.pwrite(fd, bytes([byte]), at + offset), 1, "bytes written")
    finally:
        os.close(fd)


def refused(btf, changes, pattern):
    """Checks that the module is not loaded with these words of the BTF changed, says why, and leaves nothing behind."""
    put(changes)
    try:
        with lib.KernelLog() as log:
            error = lib.outcome_of(lib.load)
            text = log.text()
    finally:
        put([(at, *struct.unpack_from("=I", btf.blob, at)) for at, _ in changes])
    equal(error, "EOPNOTSUPP", f"error of loading ({text!r})")
    check(re.search(pattern, text), f"the kernel logged nothing like {pattern!r} but {text!r}")
    check(not lib.loaded() and not os.path.exists(lib.DIRECTORY), "something of the module is there")


# Those of the kernel, once prepare() has read them.
BTF = OTHER = TASK = None


def prepare():
    """Loads the tests' own module, and reads the BTF."""
    global BTF, OTHER, TASK
    lib.load(lib.TEST_MODULE)
    BTF = Btf(lib.read(DEVICE))
    # A name that no member of these has, and types that none of them is of.
    OTHER = BTF.offset("bootloader_type") if b"\0bootloader_type\0" in BTF.blob else BTF.offset("task_struct")
    TASK = BTF.ids[KINDS["struct"], "task_struct"]


@test("these are all the members that the module uses, and the kernel has each of them")
def _():
    source = lib.read(SOURCE).decode()
    constants = dict(re.findall(r'^const (\w+): &str = "(\w+)";', source, re.M))
    used = {}
    for owner, members in re.findall(r'(?:members|indexes)\(\s*index,\s*("?\w+"?),\s*\[(.*?)\],?\s*\)\?', source, re.S):
        names = re.findall(r'(?<!\w)\(("?\w+"?), ', members) or re.findall(r'"\w+"', members)
        used[constants.get(owner) or owner.strip('"')] = [constants.get(name) or name.strip('"') for name in names]
    equal(used, MEMBERS | {ENUMERATION: ENUMERATORS}, "members that the source has")
    for owner, names in MEMBERS.items():
        for name in names:
            check(BTF.places("struct", owner, name), f"no {owner}.{name}")
    for name in ENUMERATORS:
        check(BTF.places("enum", ENUMERATION, name), f"no {name}")


@test("with the BTF that the kernel has the module is loaded")
def _():
    lib.load()
    lib.invariant()
    lib.unload()


for owner, names in MEMBERS.items():
    for name in names:
        says = rf"ima_trim: struct {owner}\b.*'{name}'"

        @test(f"without struct {owner}, member {name}: renamed, without a name, of another type, or in another struct")
        def _(owner=owner, name=name, says=says):
            places = BTF.places("struct", owner, name)
            missing = rf"struct {owner} has no member '{name}'"
            refused(BTF, [(at, OTHER) for at in places], missing)
            refused(BTF, [(at, 0) for at in places], missing)
            refused(BTF, [(at + 4, TASK) for at in places], says)
            elsewhere = BTF.entries[KINDS["struct"], "task_struct"][0]
            refused(BTF, [(at, OTHER) for at in places] + [(elsewhere, BTF.offset(name))], missing)


for name in ENUMERATORS:
    @test(f"without {name} of enum {ENUMERATION}: renamed, or of a value that is no index")
    def _(name=name):
        places = BTF.places("enum", ENUMERATION, name)
        refused(BTF, [(at, OTHER) for at in places], rf"enum {ENUMERATION} has no enumerator '{name}'")
        refused(BTF, [(at + 4, 0xffffffff) for at in places], rf"enum {ENUMERATION}: enumerator '{name}'")


@test("BTF that is none: refused, and loaded again when all is as it was")
def _():
    refused(BTF, [(0, 0)], "ima_trim: BTF of the kernel")
    equal(lib.read(DEVICE), BTF.blob, "the BTF")
    lib.load()
    lib.invariant()
    lib.unload()
    lib.unload("ima_trim_test")


lib.main(module=False, prepare=prepare)
