#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""What a trim with keep gives back, and what it must leave."""

import os

import ima_trim_lib as lib
from ima_trim_lib import check, equal, test


@test("bytes_freed grows with each trim, with the number of records")
def _():
    lib.clear()
    grown = []
    for records in (1, 10, 50):
        before = int(lib.status()["bytes_freed"])
        lib.measure(records - 1)
        lib.clear()
        grown.append(int(lib.status()["bytes_freed"]) - before)
    # At least the template data: a digest with its algorithm's name, and the path.
    for size, records in zip(grown, (1, 10, 50)):
        check(size >= records * (40 + len(lib.FILES)), f"{records} records gave back {size} bytes only")
    check(grown[0] < grown[1] < grown[2], f"bytes given back by 1, 10 and 50 records: {grown}")


def test_slab():
    """The kernel's own statistics (CONFIG_SLUB_DEBUG)."""
    def template_data():
        # kmalloc-64 has the digest of a record; there may be variants of it for random placement. What is freed stays
        # with the CPUs and counts as used until the caches are shrunk.
        total = 0
        for line in lib.read("/proc/slabinfo").decode().splitlines():
            words = line.split()
            if words[0].startswith("kmalloc-") and words[0].endswith("-64"):
                lib.write(f"/sys/kernel/slab/{words[0]}/shrink", "1")
        for line in lib.read("/proc/slabinfo").decode().splitlines():
            words = line.split()
            if words[0].startswith("kmalloc-") and words[0].endswith("-64"):
                total += int(words[1])
        return total

    lib.clear()
    lib.measure(400)
    before = template_data()
    lib.clear()
    # One object a record. Others allocate and free meanwhile.
    after = template_data()
    check(before - after > 300, f"kmalloc-64 had {before} objects and has {after} after the trim of 400 records")


# The debug kernel of this name goes without them. With any other kernel that has none the test fails.
if not lib.platform.release().endswith("-variant"):
    test("the slab caches show that template data is given back")(test_slab)


@test("a file measured before the trim is not measured again, where IMA knows its records")
def _():
    again = int(not lib.has_htable())
    lib.clear()
    lib.measure()
    path = lib.new_file(name="same", content=b"same")
    before = lib.count()
    lib.measure_file(path)
    equal(lib.count(), before + 1, "records after the first measurement")
    lib.clear()
    # A new inode, so that it is the digest that IMA recognises and not the inode.
    os.unlink(path)
    lib.measure_file(lib.new_file(name="same", content=b"same"))
    equal(lib.count(), again, "records after the trim and a second measurement of the same")
    os.unlink(path)
    lib.measure_file(lib.new_file(name="same", content=b"other"))
    equal(lib.count(), again + 1, "records after the measurement of another content")
    lib.lists_agree()
    lib.invariant()


@test("the list can be emptied and filled many times")
def _():
    for _ in range(10):
        lib.clear()
        equal(lib.read(lib.BINARY), b"", "binary list")
        equal(lib.read(lib.ASCII), b"", "ASCII list")
        lib.measure(3)
        equal(len(lib.lists_agree()), 3, "records")


lib.main()
