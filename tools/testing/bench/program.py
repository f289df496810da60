#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""What the bench measures of the program ima-trim in a guest: see tools/testing/vm/bench, which runs it.

    program.py <few> <whole> <many> <seconds>

A list of <few> records is read, and one of <whole>, through the program's file system and from the kernel's own files; what is
new is read with about <few> records in the archive, and with <many>; as <few> records are archived and trimmed, again and again,
until there are so many. For <seconds> 200 records a second come. Records are those of the module of the tests, and the TPM is
suspended: FastTpm in whole_lib.py has what it would have. Each line that begins with "result" is one measurement, as JSON.
"""

import os
import signal
import sys
import threading
import time

import bench
from bench import check, equal, lib, result, timed

# bench has put it on the path.
import whole_lib as whole  # noqa: E402

# What cat reads at once.
SIZE = 128 << 10
RATE = 200
# How often what takes milliseconds is measured, and how many records are new then.
TIMES = 30
NEW = 100
# Records for a trim on the way to many.
STEP = 20_000
# Readers of all files at once, and the bytes that each reads.
READERS = 8
READ = 16 << 20
FILES = ("ascii_runtime_measurements_sha1", "binary_runtime_measurements_sha1", "ascii_runtime_measurements_sha256")

# A list is read and archived before the daemon serves.
whole.READY_LIMIT = 600
service = whole.Service()


class Appended:
    """Has IMA append records, and the TPM have them."""

    def __init__(self):
        self.tpm = whole.FastTpm()
        self.number = bench.Values.appended()
        # Since boot, those of other origin with them.
        self.records = lib.count()

    def append(self, records):
        """Appends so many."""
        bench.parameter("append", records)
        self.tpm.extend(*map(bench.Values.data, range(self.number + 1, self.number + records + 1)))
        self.number += records
        self.records += records
        equal(bench.Values.appended(), self.number, "records that were appended")


def settled(appended):
    """Waits until the daemon has all records in memory or in its archive, and has nothing to do."""
    lib.wait_for(lambda: whole.status(1)["daemon"]["records"] == appended.records, "the daemon has all records", 600)


def start(**trim):
    """Starts the daemon with other settings, or for the first time. Gives the seconds until it serves."""
    whole.configure(trim=trim, list={"overlay": False})
    began = time.monotonic()
    if service.pid is None:
        service.start()
    else:
        service.kill()
        service.wait()
    return service.ready_at - began


def read_all(path):
    """Reads a file as cat does. Gives how many bytes it has."""
    fd = os.open(path, os.O_RDONLY)
    size = 0
    while part := len(os.read(fd, SIZE)):
        size += part
    os.close(fd)
    return size


def own(field):
    """A field of the daemon's status in /proc, in bytes."""
    for line in lib.read(f"/proc/{service.pid}/status").decode().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) << 10
    raise lib.Failure(f"no {field}")


def processor():
    """The seconds of processor time that the daemon has used."""
    words = lib.read(f"/proc/{service.pid}/stat").decode().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def load(appended, seconds):
    """Records come, RATE a second, and the daemon does what it does by default."""
    before, trims = processor(), starting().trims
    began = time.monotonic()
    done = longest = 0
    while (now := time.monotonic() - began) < seconds:
        if (due := int(now * RATE) - done) > 0:
            appended.append(due)
            done += due
        longest = max(longest, int(lib.read(f"{whole.KERNEL}/runtime_measurements_count")))
        time.sleep(0.05)
    result("load", records=done, seconds=now, cpu=processor() - before, longest=longest, trims=starting().trims - trims)


def starting():
    """What starting_pcrs says."""
    return lib.Starting(lib.read(lib.STARTING_PCRS))


def reading(records, repeats):
    """The list is read, the whole one and the kernel's own. What is in the kernel is the end of the whole one."""
    for name in FILES:
        kernel, program = f"{whole.KERNEL}/{name}", f"{whole.MOUNTPOINT}/{name}"
        check(lib.read(program).endswith(lib.read(kernel)), f"{name} is not what the kernel's ends with")
        for _ in range(repeats):
            theirs, kernel_ns = timed(read_all, kernel)
            ours, program_ns = timed(read_all, program)
            result("read", name=name, records=records, kernel=kernel_ns / theirs, program=program_ns / ours)


def news(appended):
    """A reader that has the list open reads what is new, and then finds nothing new."""
    fd = os.open(f"{whole.MOUNTPOINT}/{FILES[0]}", os.O_RDONLY)
    offset = os.fstat(fd).st_size
    for _ in range(TIMES):
        appended.append(NEW)
        data, new = timed(os.pread, fd, SIZE, offset)
        equal(data.count(b"\n"), NEW, "records that are new")
        offset += len(data)
        _, none = timed(os.pread, fd, SIZE, offset)
        result("news", archived=starting().records, new=new, none=none)
    os.close(fd)


def trim(appended, records, repeats):
    """Records are archived and trimmed of which the daemon has seen none before."""
    for _ in range(repeats):
        os.kill(service.pid, signal.SIGSTOP)
        appended.append(records)
        _, cat = timed(read_all, f"{whole.KERNEL}/{FILES[0]}")
        os.kill(service.pid, signal.SIGCONT)
        trimmed, took = timed(whole.trim, "flush")
        equal(trimmed, records, "records trimmed")
        result("trim", records=records, cat=cat, trim=took)


def fill(appended, records):
    """Archives and trims until so many are archived. Gives the seconds that it took."""
    began = time.monotonic()
    while (left := records - starting().records) > 0:
        appended.append(min(left, STEP))
        whole.trim("flush")
    return time.monotonic() - began


def readers():
    """Several readers at once, each of another file, beginning at another place."""
    names = whole.names()

    def read(number):
        fd = os.open(f"{whole.MOUNTPOINT}/{names[number % len(names)]}", os.O_RDONLY)
        offset = os.fstat(fd).st_size * number // READERS
        end = offset + READ
        while offset < end and (part := os.pread(fd, SIZE, offset)):
            offset += len(part)
        os.close(fd)

    threads = [threading.Thread(target=read, args=(number,)) for number in range(READERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def memory(what, listed=0, took=None):
    """The daemon's memory, now and at most since it was started: with so many records in the kernel then, and after so long."""
    result("memory", when=what, archived=starting().records, listed=listed, took=took, rss=own("VmRSS"), most=own("VmHWM"))


def main():
    few, whole_list, many, seconds = map(int, sys.argv[1:])
    bench.prepare()
    lib.load()
    lib.measure()
    start(automatic=True)
    appended = Appended()
    load(appended, seconds)

    start(automatic=False)
    settled(appended)
    whole.trim("flush")
    fill(appended, few)
    news(appended)
    for records, repeats in ((few, 5), (whole_list, 3)):
        whole.trim("flush")
        # So that it is a successor that has to read all of them.
        os.kill(service.pid, signal.SIGSTOP)
        appended.append(records)
        took = start(automatic=False)
        settled(appended)
        memory("started", records, took)
        reading(records, repeats)
    whole.trim("flush")
    trim(appended, few, 3)

    took = fill(appended, many)
    result("fill", records=many, seconds=took)
    news(appended)
    readers()
    memory("in use")
    # A successor reads the headers of all segments, and then the segments.
    took = start(automatic=False)
    readers()
    memory("started", took=took)
    equal(int(lib.read(f"{whole.MOUNTPOINT}/runtime_measurements_count")), appended.records, "records since boot")
    print("done", flush=True)


main()
