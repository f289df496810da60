#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""The disk under the archive is full, or fails: no trim, no loss, it is said, and all goes on when the fault is gone."""

import contextlib
import os
import re
import subprocess

import ima_trim_lib as lib
import whole_lib as whole
from ima_trim_lib import check, equal, test

PLACE = "/mnt/disk"
ROOT = f"{PLACE}/ima-trim"
USUAL = "/sys/kernel/security/ima/binary_runtime_measurements_sha1"
# More records than this are trimmed by the daemon itself.
BOUND = 40
# What a reader may get in place of a list.
FAILURES = ("EIO", "ENOTCONN", "ECONNABORTED")

service = None
history = None


def prepare():
    whole.attach_disk()
    # Few inodes, so that these can run out, too.
    whole.make_file_system("-m", "0", "-N", "128")
    mount()
    whole.configure(archive={"directory": ROOT}, trim={"automatic": True, "records": BOUND, "every": 1})


def mount():
    """Mounts the disk so that the journal is written for nobody but who asks for it.

    Otherwise it is the journal that meets a failure first, and a file system takes nothing any more after that.
    """
    whole.mount_disk(PLACE, "noatime,commit=600")


def start():
    """The daemon, with what an earlier one has kept."""
    global service
    kept = service.kept if service else {}
    service = whole.Service()
    service.kept = kept
    service.start()


def restart():
    """The daemon is killed, and begins anew."""
    starts = service.starts
    service.kill()
    lib.wait_for(lambda: service.starts > starts, "the daemon is started again")
    service.wait()


def sync():
    """Takes note of every record. What the daemon has trimmed meanwhile is in the archive."""
    def look():
        seen = len(history.records)
        if trimmed_records() > seen:
            archived = whole.Archived(boot_directory()).read_on()
            history.take(history.trimmed, archived.records[history.trimmed:])
        history.sync()

    lib.eventually(look)


def expected():
    """Every record since boot."""
    sync()
    return b"".join(record.raw for record in history.records)


def served(what):
    """The usual path has every record since boot."""
    listed = expected()
    found = lib.read(USUAL)
    check(found == listed, f"{what}: the list has {len(found)} bytes, {len(listed)} expected")


def problems():
    """What `status` says is wrong, but for the rule that this test does not have."""
    return [problem for problem in whole.status(1)["problems"] if "label=ima_trim" not in problem]


def says(pattern, seconds=30):
    """Waits until `status` names a problem of this form."""
    found = []

    def look():
        found[:] = problems()
        return any(re.search(pattern, problem) for problem in found)

    try:
        lib.wait_for(look, pattern, seconds)
    except lib.Failure:
        raise lib.Failure(f"status does not say {pattern!r} but {found}; {service.tail()}") from None


def refuses(pattern):
    """A trim by hand fails, and says this. Nothing is trimmed by it."""
    before = lib.read(lib.STARTING_PCRS)
    done = subprocess.run([whole.PROGRAM, "--config", whole.CONFIG, "trim"], stdin=subprocess.DEVNULL,
                          capture_output=True, check=False, timeout=60)
    error = done.stderr.decode(errors="replace")
    equal(done.returncode, 3, f"exit status: {error}")
    check(re.search(pattern, error), f"it does not say {pattern!r} but {error!r}")
    equal(lib.read(lib.STARTING_PCRS), before, "starting_pcrs")


def goes_on(what):
    """Nothing is wrong any more, it has trimmed by itself, and everything is as it should be."""
    found = []

    def look():
        found[:] = problems()
        return not found and whole.status(1)["daemon"]["serving"]

    try:
        lib.wait_for(look, what, 90)
    except lib.Failure:
        raise lib.Failure(f"{what}: still {found}; {service.tail()}") from None
    lib.measure(BOUND + 1)
    sync()
    lib.wait_for(lambda: history.total - trimmed_records() <= BOUND, f"{what}: a trim by itself")
    served(what)
    whole.run("trim")
    archived, trimmed = whole.Archived(boot_directory()).whole_list(what)
    equal((archived, trimmed), (history.total, history.total), f"{what}: records archived and trimmed")
    check(b"verified: " in whole.run("verify"), f"{what}: verify")


def trimmed_records():
    """How many records are trimmed. Nothing is opened for that which keeps others from being trimmed."""
    return lib.Starting(lib.read(lib.STARTING_PCRS)).records


def boot_directory():
    """The archive of this boot."""
    return os.path.join(ROOT, lib.read("/proc/sys/kernel/random/boot_id").decode().strip())


def refused(what):
    """There is no list, which is said."""
    check(not whole.status(1)["daemon"]["serving"], f"{what}: it says that it serves")
    check(lib.outcome_of(lib.read, USUAL) in FAILURES, f"{what}: a list can be read")


def held_back(what, said, whole_list=True):
    """Records come, none is trimmed, none is lost, and it is said. They are served, if the whole list is."""
    before = lib.read(lib.STARTING_PCRS)
    lib.measure(BOUND + 1)
    if whole_list:
        served(what)
    says(said)
    refuses(said)
    equal(lib.read(lib.STARTING_PCRS), before, f"{what}: starting_pcrs")


@contextlib.contextmanager
def disk(word):
    """The disk fails for a while."""
    whole.disk_does(word)
    try:
        yield
    finally:
        whole.disk_does("work")


@test("its archive on a disk, the daemon trims by itself")
def _():
    global history
    start()
    whole.kernel_files()
    history = lib.history()
    goes_on("at first")
    lib.violate_tomtou()
    goes_on("at first")


@test("the disk is full: said, no trim, no loss, also with a restart; trimmed when there is room")
def _():
    ballast = os.path.join(PLACE, "ballast")
    with open(ballast, "wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12):
            with contextlib.suppress(OSError):
                while True:
                    file.write(b"\1" * size)
                    os.fsync(file.fileno())
    said = rf"cannot (create|write|fsync) {ROOT}/\S*: No space left on device.*make room"
    held_back("full", said)
    restart()
    served("full, and restarted")
    says(said)
    os.unlink(ballast)
    goes_on("with room again")


@test("the disk has room and no more inodes: the same")
def _():
    ballast = []
    with contextlib.suppress(OSError):
        for number in range(1000):
            ballast.append(os.path.join(PLACE, f"inode.{number}"))
            os.close(os.open(ballast[-1], os.O_WRONLY | os.O_CREAT | os.O_EXCL))
    check(len(ballast) < 300, "there are inodes left")
    held_back("no inodes", rf"cannot create {ROOT}/\S*: No space left on device.*make room")
    for path in ballast[:-1]:
        os.unlink(path)
    goes_on("with inodes again")


@test("the disk cannot be written: said, no trim, no loss; it goes on by itself when it can be")
def _():
    # What is written now is nobody's but the archive's.
    os.sync()
    with disk("fail-writes"):
        held_back("writes fail", rf"cannot fsync {ROOT}/\S*: Input/output error.*look at the disk")
    goes_on("writable again")


@test("the disk cannot be read, either: what is in memory is served, what is not fails, and nothing is wrong")
def _():
    lib.measure(5)
    sync()
    archived = whole.Archived(boot_directory()).read_on()
    size = sum(len(record.raw) for record in archived.records)
    # The daemon, too, remembers what it has read last.
    restart()
    os.sync()
    lib.write("/proc/sys/vm/drop_caches", "3")
    with disk("fail"):
        fd = os.open(USUAL, os.O_RDONLY)
        equal(lib.outcome_of(os.pread, fd, 1000, 0), "EIO", "reading what is archived")
        equal(os.pread(fd, 1 << 20, size), expected()[size:], "what is not archived")
        os.close(fd)
        said = r"cannot \w+ \S+: Input/output error.*look at the disk"
        held_back("reads fail", said, whole_list=False)
        # Nor can a daemon begin that cannot see what is archived.
        restart()
        says(f"not served: {said}")
        refused("reads fail")
    goes_on("readable again, without a restart")


@test("a failure that the file system's journal meets: the same, until it is mounted anew")
def _():
    said = rf"cannot [\w ]+ {ROOT}\S*: (Input/output error.*look at|Read-only file system.*mount the file system)"
    with disk("fail-writes"):
        with contextlib.suppress(OSError):
            os.fsync(os.open(f"{PLACE}/new", os.O_WRONLY | os.O_CREAT))
        held_back("the journal fails", said)
    # The disk is well again, the file system is not.
    held_back("the disk works again", said)
    # Nobody knows what of the archive is on the disk: whoever begins now cannot make sure.
    restart()
    says(f"not served: {said}")
    refused("restarted")
    equal(service.stop(), 0, "exit status")
    subprocess.run(["umount", PLACE], check=True)
    mount()
    start()
    goes_on("mounted anew")


@test("in the end nothing is missing")
def _():
    served("in the end")
    equal(whole.run("log", "--binary"), expected(), "log of the whole list")
    equal(service.stop(), 0, "exit status")


lib.main(prepare=prepare)
