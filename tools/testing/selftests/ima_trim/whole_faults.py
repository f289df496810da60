#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""What goes wrong around the daemon: it says what and what to do, gives no wrong list, and goes on once it can."""

import contextlib
import hashlib
import json
import os
import re
import signal
import subprocess
import time

import ima_trim_lib as lib
import whole_lib as whole
from ima_trim_lib import check, equal, test

# A file system of its own, which can be full.
ROOT = "/run/archive"
# The kernel's files, where they can be written to.
SECURITYFS = "/run/securityfs"
# More records than this are trimmed by the daemon itself.
BOUND = 60
USUAL = "/sys/kernel/security/ima/binary_runtime_measurements_sha1"
# What a reader may get in place of a list.
FAILURES = ("EIO", "ENOTCONN", "ECONNABORTED")

service = None
history = None


def prepare():
    os.mkdir(ROOT)
    os.mkdir(SECURITYFS)
    subprocess.run(["mount", "-t", "securityfs", "securityfs", SECURITYFS], check=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m,mode=700", "tmpfs", ROOT], check=True)
    whole.configure(archive={"directory": ROOT}, trim={"automatic": True, "records": BOUND, "every": 1})


def expected():
    return b"".join(record.raw for record in history.records)


def served(what):
    """The usual path has every record since boot, those that came since included."""
    history.sync()
    found = lib.read(USUAL)
    check(found == expected(), f"{what}: the list has {len(found)} bytes, {len(expected())} expected")


def not_wrong(what):
    """Reading the list fails, and what is read before that is right. Gives how much that is."""
    got = b""
    try:
        with open(USUAL, "rb", buffering=0) as file:
            while part := file.read(997):
                got += part
        raise lib.Failure(f"{what}: the list can be read to its end")
    except OSError as error:
        check(lib.error_name(error.errno) in FAILURES, f"{what}: reading gives {error}")
    check(expected().startswith(got), f"{what}: other bytes before the error")
    return len(got)


def problems():
    """What `status` says is wrong, but for the rule that these tests do not have."""
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
    text = whole.run("status", status=1).decode()
    check(re.search(pattern, text), f"the screen does not say {pattern!r}: {text}")


def well(what, seconds=90):
    """Waits until nothing is wrong any more, and everything is served."""
    found = []

    def look():
        found[:] = problems()
        return not found and whole.status(1)["daemon"]["serving"]

    try:
        lib.wait_for(look, what, seconds)
    except lib.Failure:
        raise lib.Failure(f"{what}: still {found}; {service.tail()}") from None
    served(what)


def fails(status, pattern, *arguments):
    """Runs the program, which must fail so. Nothing is trimmed by it."""
    before = lib.read(lib.STARTING_PCRS) if lib.loaded() else None
    done = subprocess.run(
        [whole.PROGRAM, "--config", whole.CONFIG, *arguments], stdin=subprocess.DEVNULL, capture_output=True,
        check=False, timeout=60)
    error = done.stderr.decode(errors="replace")
    equal(done.returncode, status, f"exit status of {arguments}: {error}")
    check(re.search(pattern, error), f"{arguments} does not say {pattern!r} but {error!r}")
    if before is not None and lib.loaded():
        equal(lib.read(lib.STARTING_PCRS), before, f"starting_pcrs after {arguments}")


def trim(what):
    """Trims everything, by hand."""
    history.sync()
    whole.run("trim")
    history.sync()
    equal(history.trimmed, history.total, f"{what}: records trimmed")
    equal(lib.read(lib.STARTING_PCRS), history.statement(history.total).encode(), f"{what}: starting_pcrs")


def goes_on(what):
    """Everything is as it should be, trims included."""
    lib.measure(3)
    served(what)
    trim(what)
    served(what)
    check(b"verified: " in whole.run("verify"), f"{what}: verify")


def restart():
    """The daemon is killed, and begins anew with what the service manager has kept."""
    starts = service.starts
    service.kill()
    lib.wait_for(lambda: service.starts > starts, "the daemon is started again")
    service.wait()


def start(kept=None):
    """Another service, as after a stop; with what an earlier one has kept, if it is given."""
    global service
    service = whole.Service()
    service.kept = kept or {}
    service.start()


def boot_directory():
    return os.path.join(ROOT, lib.read("/proc/sys/kernel/random/boot_id").decode().strip())


def segments():
    """The files of the archive, in order."""
    directory = boot_directory()
    return [os.path.join(directory, name) for name in sorted(os.listdir(directory)) if re.match(r"[0-9]+\.", name)]


def replace(path, data):
    """Puts other bytes in place of a file's."""
    with open(path + ".new", "wb") as file:
        file.write(data)
    os.rename(path + ".new", path)


@contextlib.contextmanager
def changed(path, change):
    """A file of the archive is another one for a while."""
    data = lib.read(path)
    replace(path, change(data))
    try:
        yield os.path.basename(path)
    finally:
        replace(path, data)


@test("it starts, and trims by itself")
def _():
    global history
    start()
    # What is asked of the kernel is asked of the kernel.
    lib.BINARY = whole.KERNEL + "/binary_runtime_measurements"
    lib.IMA = whole.KERNEL
    history = lib.history()
    lib.measure(BOUND + 1)
    history.sync()
    lib.wait_for(lambda: lib.look()[0].records, "a trim")
    for _ in range(4):
        lib.violate_tomtou()
        goes_on("at first")
    check(len(segments()) >= 5, f"segments: {segments()}")


@test("two daemons: the second says who has the archive, at once")
def _():
    began = time.monotonic()
    fails(3, rf"belongs to process {service.pid}\b", "daemon")
    check(time.monotonic() - began < 5, "it waits")
    goes_on("with a second daemon")


@test("the archive's file system is full: said with the file, no trim, no loss; trimmed when there is room")
def _():
    ballast = os.path.join(ROOT, "ballast")
    with open(ballast, "wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"\0" * 4096)
    lib.measure(BOUND + 1)
    served("full")
    said = rf"cannot (create|write|fsync) {ROOT}/\S*: No space left on device.*make room"
    says(said)
    fails(3, said, "trim")
    restart()
    served("full, and restarted")
    says(said)
    os.unlink(ballast)
    well("with room again")
    lib.wait_for(lambda: lib.look()[0].records == history.total, "a trim by itself")
    goes_on("with room again")


@test("the archive's file system is read-only: the same")
def _():
    subprocess.run(["mount", "-o", "remount,ro", ROOT], check=True)
    try:
        lib.measure(BOUND + 1)
        served("read-only")
        said = rf"cannot (create|remove) {ROOT}/\S*: Read-only file system.*mount the file system writable"
        says(said)
        fails(3, said, "trim")
        restart()
        served("read-only, and restarted")
    finally:
        subprocess.run(["mount", "-o", "remount,rw", ROOT], check=True)
    well("writable again")
    goes_on("writable again")


def flip(at):
    """Changes one bit of a byte, counted from the beginning or the end."""
    def change(data):
        data = bytearray(data)
        data[at] ^= 1
        return bytes(data)
    return change


@test("a record in the archive is changed: its file is named, reads fail there, nothing more is trimmed")
def _():
    with changed(segments()[1], flip(-1)) as name:
        restart()
        said = rf"{name} is damaged: the SHA-256 of its records"
        says(said)
        at = not_wrong("a record changed")
        check(at > 0, "nothing can be read")
        fd = os.open(USUAL, os.O_RDONLY)
        size = os.fstat(fd).st_size
        equal(os.pread(fd, 500, size - 500), expected()[-500:], "what is behind the damaged file")
        os.close(fd)
        lib.measure(BOUND + 1)
        history.sync()
        fails(3, said, "trim")
        fails(1, said, "verify")
    restart()
    well("repaired")
    goes_on("repaired")


@test("a record is changed under a daemon that runs: whoever reads it has it named")
def _():
    restart()
    with changed(segments()[2], flip(-1)) as name:
        not_wrong("a record changed")
        says(rf"{name} is damaged")
        fails(3, rf"{name} is damaged", "trim")
    well("repaired, without a restart")
    goes_on("repaired")


def foreign(data):
    """A segment of another boot, whole in itself."""
    first, header, records = data.split(b"\n", 2)
    fields = json.loads(header)
    fields["boot"] = "00000000-1111-2222-3333-444444444444"
    header = json.dumps(fields, separators=(",", ":")).encode() + b"\n"
    magic = first.rsplit(b" ", 1)[0]
    return magic + b" " + hashlib.sha256(header).hexdigest().encode() + b"\n" + header + records


@lib.cases("a file of the archive is not what it was", [
    ("a bit of its header", flip(120), "is damaged: its header"),
    ("its end is missing", lambda data: data[:-10], "is damaged: it has"),
    ("it is empty", lambda _: b"", "is damaged: its header"),
    ("it is of another boot", foreign, "is damaged: it is of the boot 00000000-1111"),
])
def _(change, said):
    with changed(segments()[1], change) as name:
        pattern = rf"{name} {said}" if "boot" not in said else rf"{name} (is damaged: its header has changed|{said})"
        # While the daemon runs.
        fails(3, pattern, "trim")
        says(pattern)
        # When it begins anew.
        restart()
        says(rf"not served: \S*{name} {said}")
        check(not whole.status(1)["daemon"]["serving"], "it says that it serves")
        not_wrong(said)
        fails(3, rf"{name} {said}", "trim")
        fails(3, rf"{name} {said}", "log")
        fails(3, rf"{name} {said}", "verify")
    well("repaired, without a restart")
    goes_on("repaired")


@test("a file of the archive is missing")
def _():
    path = segments()[1]
    name = os.path.basename(path)
    os.rename(path, ROOT + "/away")
    fails(3, rf"{name}: No such file", "trim")
    says(rf"{name}: No such file")
    restart()
    says(rf"not served: \S*{name} is damaged: it is missing")
    not_wrong("missing")
    with open(ROOT + "/away", "rb") as file:
        replace(path, file.read())
    well("back, without a restart")
    goes_on("back")


@test("the last file of the archive is missing: records are gone, and that is said")
def _():
    path = segments()[-1]
    data = lib.read(path)
    os.unlink(path)
    restart()
    says(r"not served: \d+ records are gone from the kernel's list and not in the archive")
    not_wrong("the last one missing")
    fails(1, "not in the archive", "trim")
    replace(path, data)
    well("back")
    goes_on("back")


@test("somebody else holds trim when the daemon starts: served, said, and taken over when it is free")
def _():
    equal(service.stop(), 0, "exit status")
    fd = os.open(lib.TRIM, os.O_RDWR | os.O_EXCL | os.O_CLOEXEC)
    service.drop()
    start()
    says(rf"another process has {lib.TRIM}")
    lib.measure(3)
    served("with trim held")
    fails(3, "another process has", "trim")
    os.close(fd)
    well("free again")
    goes_on("free again")


@test("the clock jumps forward by years, and back before it began")
def _():
    now = time.time()
    for jump in (10 * 365 * 86400, -int(now) + 1000, 0):
        time.clock_settime(time.CLOCK_REALTIME, now + jump)
        goes_on(f"{jump} s")
        whole.run("status", status=1)
        restart()
        well(f"{jump} s, restarted")


@test("the module cannot be taken away under the daemon, and is exchanged when it is asked to")
def _():
    check(lib.outcome_of(lib.unload) in ("EAGAIN", "EBUSY"), "it can be unloaded")
    instance = lib.status()["instance"]
    lib.measure(3)
    history.sync()
    text = lib.read(lib.STARTING_PCRS)
    whole.run("reload-module", lib.MODULE)
    check(lib.status()["instance"] != instance, "it is the same instance")
    equal(lib.read(lib.STARTING_PCRS), text, "starting_pcrs")
    well("reloaded")
    goes_on("reloaded")


@test("a module that does not load: said, served, and all is well when one is loaded")
def _():
    fails(3, "insmod", "reload-module", "/harness/job")
    check(not lib.loaded(), "it is loaded")
    says("not loaded.*modprobe ima_trim")
    equal(lib.read(USUAL), expected(), "the list without the module")
    lib.load()
    well("loaded late")
    goes_on("loaded late")


@test("no module at the start: served, said; one that is loaded later is given its values")
def _():
    lib.measure(2)
    history.sync()
    equal(service.stop(), 0, "exit status")
    service.drop()
    lib.unload()
    start()
    says("not loaded.*modprobe ima_trim")
    equal(lib.read(USUAL), expected(), "the list without the module")
    fails(3, "not loaded", "trim")
    lib.load()
    well("loaded late")
    goes_on("loaded late")


@test("a module that was loaded anew before the daemon starts is given its values")
def _():
    lib.measure(2)
    history.sync()
    text = lib.read(lib.STARTING_PCRS)
    equal(service.stop(), 0, "exit status")
    service.drop()
    lib.unload()
    lib.load(parameters="guard=0")
    check(lib.read(lib.STARTING_PCRS).startswith(b"unknown"), "it knows its values by itself")
    start()
    lib.wait_for(lambda: lib.read(lib.STARTING_PCRS) == text, "starting_pcrs is restored")
    well("loaded anew")
    goes_on("loaded anew")


def remove(number):
    """The kernel's own way to remove records, which tells nobody."""
    # The daemon may just be reading it.
    path = f"{SECURITYFS}/ima/ascii_runtime_measurements_sha1"
    lib.wait_for(lambda: lib.outcome_of(lib.write, path, f"{number}\n") is None, "the kernel removes records")


def restored(number):
    """Waits until the module has the values of the point after so many records."""
    def look():
        starting = lib.Starting(lib.read(lib.STARTING_PCRS))
        return not starting.unknown and starting.records == number
    lib.wait_for(look, f"the module has the values after record {number}")
    history.trimmed = number
    for (bank, pcr), value in lib.Starting(lib.read(lib.STARTING_PCRS)).values.items():
        equal(value, history.value(number, bank, pcr), f"{bank}:{pcr}")


@test("without the guard somebody removes records that the daemon knows: served, and the module is given their values")
def _():
    lib.measure(6)
    served("before")
    gone = history.trimmed
    remove(2)
    equal(lib.read(USUAL), expected(), "the list")
    restored(gone + 2)
    well("after a foreign trim")
    # Of those that are archived, too.
    lib.measure(3)
    goes_on("after a foreign trim")


@test("with the daemon away: the same when it is back")
def _():
    lib.measure(6)
    served("before")
    equal(lib.count(), 6, "records in the kernel")
    # Archived, and not trimmed: what a daemon leaves that is killed in between.
    fd = os.open(whole.KERNEL + "/binary_runtime_measurements_sha1", os.O_RDONLY)
    fails(3, "EBUSY|busy", "trim")
    os.close(fd)
    gone = history.trimmed
    service.stop()
    remove(3)
    lib.measure(2)
    start(service.kept)
    restored(gone + 3)
    well("after a foreign trim")
    goes_on("after a foreign trim")


@test("and without the module: where the list begins is found by its records")
def _():
    lib.measure(6)
    served("before")
    fd = os.open(whole.KERNEL + "/binary_runtime_measurements_sha1", os.O_RDONLY)
    fails(3, "EBUSY|busy", "trim")
    os.close(fd)
    gone = history.trimmed
    service.stop()
    service.drop()
    lib.unload()
    remove(4)
    start()
    says("not loaded")
    equal(lib.read(USUAL), expected(), "the list without the module")
    lib.load(parameters="guard=0")
    restored(gone + 4)
    well("after a foreign trim")
    goes_on("after a foreign trim")


@test("somebody removes records that the daemon does not know: reads fail, and it is said, also after a restart")
def _():
    served("before")
    os.kill(service.pid, signal.SIGSTOP)
    lib.measure(5)
    history.sync()
    remove(4)
    os.kill(service.pid, signal.SIGCONT)
    not_wrong("a hole")
    says("records .* are missing: they were removed")
    fails(1, "are missing", "trim")
    restart()
    says(r"not served: \d+ records are gone .* next boot")
    not_wrong("a hole, restarted")
    fails(1, "not in the archive", "log")
    fails(1, "not in the archive", "verify")


lib.main(prepare=prepare)
