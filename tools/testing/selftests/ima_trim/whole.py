#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""The whole list by the program ima-trim: every file as the kernel prints it, however much was trimmed."""

import os

import ima_trim_lib as lib
import whole_lib as whole
from ima_trim_lib import check, equal, test

service = whole.Service()
model = None


def variety(number):
    """Has IMA append records of several kinds."""
    lib.measure(3)
    odd = os.fsdecode(f"new\nline {number} \xe9".encode("latin-1"))
    lib.measure_file(lib.new_file(name=odd, content=f"odd {number}".encode()))
    lib.measure_file(lib.new_file(pcr=11, name=f"blank {number}"))
    lib.violate_tomtou()
    lib.violate_open_writers(pcr=11)
    lib.measure_file(lib.new_file(name="n" * 200 + str(number)))


def trim(mode):
    """Trims everything, and keeps what the kernel had in mind."""
    saved = model.save()
    before = lib.read(whole.KERNEL + "/binary_runtime_measurements_sha1")
    records = whole.trim(mode)
    # The record of the trim itself is in the list when the cut is made, and stays.
    equal(len(lib.parse(before)), records, "records trimmed")
    model.trimmed(saved, records)


@test("a daemon starts, with every file that IMA has, each as the kernel's")
def _():
    global model
    variety(0)
    # An earlier boot that left nothing.
    earlier = f"{whole.ARCHIVE}/11111111-2222-3333-4444-555555555555"
    os.makedirs(earlier)
    with open(f"{earlier}/number", "w", encoding="ascii") as file:
        file.write("1\n")
    service.start()
    check(not os.path.exists(earlier), "what an earlier boot has left is still there")
    model = whole.Model()
    model.compare(whole.MOUNTPOINT, "mounted")
    expected = {name for name in os.listdir(whole.KERNEL) if "measurements" in name or name == "violations"}
    equal(set(os.listdir(whole.MOUNTPOINT)) - {"probe"}, expected, "names")
    for name in ("ascii_runtime_measurements", "binary_runtime_measurements"):
        equal(os.readlink(f"{whole.MOUNTPOINT}/{name}"), f"{name}_sha1", name)


@test("the usual paths lead there, and trims go by unseen in all modes")
def _():
    variety(1)
    for number in range(lib.tries(100)):
        mode = whole.MODES[number % 3]
        trim(mode)
        if number % 10 < 3:
            model.compare(lib.IMA, f"after trim {number}, {mode}")
        variety(number + 2)
    model.compare(lib.IMA, "at the end")
    model.compare(whole.MOUNTPOINT, "at the end")


@test("counts are those since boot, and sizes true")
def _():
    records = len(lib.parse(lib.read(lib.BINARY)))
    equal(int(lib.read(lib.IMA + "/runtime_measurements_count")), records, "count")
    equal(lib.read(lib.IMA + "/violations"), lib.read(whole.KERNEL + "/violations"), "violations")
    for name in whole.names():
        equal(os.stat(f"{lib.IMA}/{name}").st_size, len(lib.read(f"{lib.IMA}/{name}")), f"size of {name}")
        equal(os.stat(f"{lib.IMA}/{name}").st_mode & 0o7777, 0o440, f"mode of {name}")


@test("a reader that keeps the file open reads on over trims, from any offset")
def _():
    name = lib.IMA + "/ascii_runtime_measurements"
    fd = os.open(name, os.O_RDONLY)
    got = lib.read_fd(fd)
    for number in range(6):
        variety(f"r{number}")
        got += lib.read_fd(fd)
        trim(whole.MODES[number % 3])
        got += lib.read_fd(fd, 7 + number)
    os.close(fd)
    now = lib.read(name)
    equal(got, now, "what was read piece by piece")
    fd = os.open(name, os.O_RDONLY)
    for offset in range(0, len(now) + 4000, 997):
        check(os.pread(fd, 501, offset) == now[offset:offset + 501], f"other bytes at {offset}")
    os.close(fd)
    check(now.endswith(b"\n"), "it does not end with a whole line")


@test("nobody but the daemon trims, and the only problem in status is that no rule asks for evidence")
def _():
    equal(lib.outcome_of(lib.write, lib.TRIM, "junk"), "EBUSY", "error of a stray request")
    problems = whole.status(1)["problems"]
    check(len(problems) == 1 and "label=ima_trim" in problems[0], f"problems: {problems}")


@test("verify, and log of what the daemon has")
def _():
    check(b"verified: " in whole.run("verify"), "verify says something else")
    equal(whole.run("log", "--binary"), lib.read(lib.BINARY), "log --binary")
    equal(whole.run("log", "--bank", "sha256"), lib.read(lib.IMA + "/ascii_runtime_measurements_sha256"), "log")


@test("stopped after a trim, reads fail until it is back, and it takes everything over")
def _():
    before = lib.read(lib.BINARY)
    equal(service.stop(), 0, "exit status")
    service.drop()
    check(lib.outcome_of(lib.read, lib.BINARY) in ("ENOTCONN", "EIO", "ECONNABORTED"), "reads do not fail")
    # Without a daemon the program itself has everything.
    equal(whole.run("log", "--binary"), before, "log without a daemon")
    lib.measure(2)
    whole.Service().start()
    check(lib.read(lib.BINARY).startswith(before), "what was there before is not there")
    model.compare(lib.IMA, "with another daemon")


lib.main(prepare=whole.configure)
