#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""The program ima-trim as its unit runs it: a daemon without root and with mounts of its own, beside steps that have both."""

import os
import signal
import stat
import subprocess
import time

import ima_trim_lib as lib
import whole_lib as whole
from ima_trim_lib import check, equal, test

# In a directory that others may write to.
METRICS = "/run/metrics/ima-trim.prom"

service = None
model = None
reader = None
got = b""


def covered():
    """How many of IMA's files are covered."""
    # The usual path is a link to where IMA's directory is.
    directory = os.path.realpath(lib.IMA)
    with open("/proc/self/mountinfo", encoding="ascii") as mounts:
        return sum(f" {directory}/" in line for line in mounts)


def goes_on():
    """A reader that has the list open since the first start reads on, whatever has happened."""
    global got
    lib.measure(2)
    got += lib.read_fd(reader)
    equal(got, lib.read(lib.BINARY), "what a reader has read on and on")


def trim(mode):
    """Trims everything, and keeps what the kernel had in mind."""
    saved = model.save()
    model.trimmed(saved, whole.trim(mode))


@test("the steps cover IMA's files, for everybody")
def _():
    global service, model
    service = whole.Unit().start()
    lib.measure(3)
    model = whole.Model()
    equal(covered(), len(whole.names()) + len(("runtime_measurements_count", "violations")), "covered files")
    model.compare(lib.IMA, "at the usual paths")
    check(whole.status(1)["daemon"]["overlay"], "status does not say so")


@test("the daemon has neither root's user nor its mounts")
def _():
    status = dict(line.split(":\t", 1) for line in open(f"/proc/{service.pid}/status", encoding="ascii") if ":\t" in line)
    equal(status["Uid"].split(), [str(whole.Unit.USER)] * 4, "users")
    equal(int(status["CapEff"], 16), 1 << 1 | 1 << 21, "capabilities")
    check(os.readlink(f"/proc/{service.pid}/ns/mnt") != os.readlink("/proc/self/ns/mnt"), "its mounts are everybody's")


@test("stopped before any trim, IMA's own files are back")
def _():
    global service
    service.stop()
    equal(covered(), 0, "covered files")
    equal(service.kept, {}, "descriptors that are kept")
    check("fuse.ima-trim" not in lib.read("/proc/self/mountinfo").decode(), "something is mounted")
    lib.measure(1)
    service = whole.Unit().start()
    check(covered() > 0, "IMA's files are not covered again")


@test("status names who sees the kernel's own files in mounts of their own")
def _():
    global service
    service.stop()
    # What is mounted later does not show there.
    other = subprocess.Popen(["unshare", "--mount", "--propagation", "private", "sleep", "1000"])
    lib.wait_for(lambda: lib.read(f"/proc/{other.pid}/comm") == b"sleep\n", "a process with mounts of its own")
    service = whole.Unit().start()
    found = whole.status(1)
    equal(found["namespaces"], [{"pid": other.pid, "command": "sleep"}], "who has such mounts")
    check(any(f"process {other.pid} (sleep)" in problem and "Restart it" in problem for problem in found["problems"]),
          f"problems: {found['problems']}")
    other.kill()
    other.wait()
    found = whole.status(1)
    equal(found["namespaces"], [], "who has such mounts after it has ended")
    check(not any("namespace" in problem for problem in found["problems"]), f"problems: {found['problems']}")


@test("status names a file that somebody has uncovered, until a restart covers it again")
def _():
    before = covered()
    equal(whole.status(1)["uncovered"], [], "files that are not covered")
    name = "ascii_runtime_measurements_sha256"
    subprocess.run(["umount", f"{os.path.realpath(lib.IMA)}/{name}"], check=True)
    found = whole.status(1)
    equal(found["uncovered"], [name], "files that are not covered")
    check(any(f"covered {name} in" in problem and "systemctl restart ima-trim" in problem for problem in found["problems"]),
          f"problems: {found['problems']}")
    service.restart_job()
    equal(covered(), before, "covered files")
    found = whole.status(1)
    equal(found["uncovered"], [], "files that are not covered after a restart")
    check(not any("unmounted" in problem for problem in found["problems"]), f"problems: {found['problems']}")


@test("restarted before any trim, they stay covered, and readers go on")
def _():
    global reader
    reader = os.open(lib.BINARY, os.O_RDONLY)
    before = covered()
    pid = service.pid
    service.restart_job()
    check(service.pid != pid, "it is the same process")
    equal(covered(), before, "covered files")
    goes_on()


@test("reloaded, another program is in the same process, with the configuration of now, and readers go on")
def _():
    pid = service.pid
    for number in range(3):
        if number:
            trim(whole.MODES[number])
        whole.configure(list={"mode": "0400" if number != 1 else "0444"})
        service.reload()
        equal(service.pid, pid, "process")
        check(whole.status(1)["daemon"]["overlay"], "status does not say any more that IMA's files are covered")
        equal(stat.S_IMODE(os.stat(lib.BINARY).st_mode), 0o400 if number != 1 else 0o444, "permissions")
        goes_on()
        model.compare(lib.IMA, f"after reload {number}")
    whole.configure()


@test("a configuration that is not understood: it is not reloaded, and goes on")
def _():
    pid = service.pid
    whole.configure(list={"overlay": "yes"})
    service.reload()
    equal(service.pid, pid, "process")
    check("the daemon cannot be replaced" in service.tail(), f"the log does not say so: {service.tail()}")
    goes_on()
    whole.configure(report={"metrics": METRICS})
    service.reload()
    goes_on()


@test("metrics can be read by others, and nothing is written elsewhere")
def _():
    lib.wait_for(lambda: os.path.exists(METRICS), "metrics")
    equal(stat.S_IMODE(os.stat(METRICS).st_mode), 0o644, "permissions")
    before = lib.read("/run/precious")
    os.symlink("/run/precious", METRICS + ".tmp")
    lib.wait_for(lambda: not os.path.lexists(METRICS + ".tmp"), "the next metrics")
    equal(lib.read("/run/precious"), before, "what a link leads to")
    check(b"ima_trim_records_total" in lib.read(METRICS), "metrics")


@test("killed, it comes back, and readers go on")
def _():
    for number in range(3):
        service.kill()
        service.wait()
        goes_on()
    trim("keep")
    goes_on()


@test("a descriptor that is lost is replaced, and so are the files")
def _():
    global reader, got
    service.drop()
    service.kill()
    service.wait()
    equal(lib.outcome_of(lib.read_fd, reader), "ENOTCONN", "error of a reader of the file system that is gone")
    os.close(reader)
    model.compare(lib.IMA, "with another file system")
    reader = os.open(lib.BINARY, os.O_RDONLY)
    got = b""
    goes_on()


@test("the module is reloaded by a command that asks the daemon to let go of it")
def _():
    trim("compact")
    whole.run("reload-module", lib.MODULE)
    equal(lib.status()["base"], "verified", "base=")
    goes_on()
    trim("flush")
    model.compare(lib.IMA, "after a trim")
    check(b"verified: " in whole.run("verify"), "verify says something else")


@test("who waits at a terminal is told how long, and nobody else")
def _():
    ours, terminal = os.openpty()
    command = [whole.PROGRAM, "--config", whole.CONFIG, "trim", "--dry-run"]
    lib.measure()
    os.kill(service.pid, signal.SIGSTOP)
    try:
        seen = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=terminal)
        unseen = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        os.close(terminal)
        time.sleep(3)
    finally:
        os.kill(service.pid, signal.SIGCONT)
    output, error = unseen.communicate()
    equal((unseen.returncode, error), (0, b""), "exit status and errors")
    check(output.startswith(b"dry-run: "), output)
    equal((seen.communicate()[0][:9], seen.returncode), (b"dry-run: ", 0), "output and exit status")
    said = os.read(ours, 65536)
    os.close(ours)
    check(said.startswith(b"\rwaiting for the daemon: ") and said.endswith(b" s\x1b[K\r\x1b[K"), said)


@test("stopped after a trim, they stay covered and reads fail, until it is started again")
def _():
    global service
    before = covered()
    service.stop()
    equal(covered(), before, "covered files")
    equal(lib.outcome_of(lib.read, lib.BINARY), "ENOTCONN", "error of reading the list")
    service = whole.Unit().start()
    model.compare(lib.IMA, "started again")


def prepare():
    os.mkdir("/run/metrics")
    os.chmod("/run/metrics", 0o777)
    with open("/run/precious", "w", encoding="ascii") as file:
        file.write("precious\n")
    whole.configure()


lib.main(prepare=prepare)
