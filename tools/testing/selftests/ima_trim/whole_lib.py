# SPDX-License-Identifier: GPL-2.0
"""What the tests of the program ima-trim share: a service manager that does what matters of systemd's, and the files."""

import collections
import contextlib
import hashlib
import json
import mmap
import os
import random
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time

import ima_trim_lib as lib
from ima_trim_lib import check, equal

PROGRAM = os.environ.get("PROGRAM", os.path.join(os.path.dirname(lib.MODULE), "ima-trim"))
MOUNTPOINT = "/run/ima-trim/log"
# IMA's own files, where nothing covers them.
KERNEL = "/run/ima-trim/securityfs/ima"
ARCHIVE = "/var/lib/ima-trim"
CONFIG = "/run/ima-trim.toml"
# How long the daemon may take to be ready, in seconds: twenty times what it takes in an emulated guest.
READY_LIMIT = 60
# The daemon's socket.
CONTROL = "/run/ima-trim/control"
# The disk of a guest that has one.
DISK = "/dev/vda"
FORMATS = ("ascii", "binary")
MODES = ("keep", "compact", "flush")


def names():
    """The names of IMA's measurement files that have the list, those that are links left out."""
    return [f"{form}_runtime_measurements_{bank}" for form in FORMATS for bank in {*lib.banks(), "sha1"}]


def configure(**settings):
    """Writes the configuration: sections with settings. Trims are made by hand unless it says otherwise."""
    sections = {"trim": {"automatic": False}, **settings}
    with open(CONFIG, "w", encoding="ascii") as file:
        for section, values in sections.items():
            file.write(f"[{section}]\n")
            for key, value in values.items():
                file.write(f"{key} = {json.dumps(value)}\n")


def tmpfiles():
    """Makes what install/tmpfiles.conf has, as at boot."""
    os.makedirs("/run/ima-trim", mode=0o755)
    os.chown("/run/ima-trim", Unit.USER, Unit.USER)


def run(*arguments, status=0):
    """Runs the program. Gives what it printed; its exit status must be the one given."""
    done = subprocess.run(
        [PROGRAM, "--config", CONFIG, *arguments], stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if done.returncode != status:
        raise lib.Failure(
            f"ima-trim {' '.join(arguments)}: exit status {done.returncode}, expected {status}: "
            f"{done.stderr.decode(errors='replace')}{done.stdout[-1000:].decode(errors='replace')}")
    return done.stdout


def status(exit_status=0):
    """What `ima-trim status` knows; its exit status is 1 if there are problems."""
    return json.loads(run("status", "--json", status=exit_status))


class Service:
    """The daemon, run as systemd would: started anew whenever it ends, with the descriptors that it gave to keep."""

    def __init__(self, restart=True):
        self.restart = restart
        # What is run at the next start, and when it was ready last.
        self.program = PROGRAM
        self.ready_at = None
        self.stopping = False
        self.kept = {}
        self.ready = threading.Event()
        self.pid = None
        self.starts = 0
        self.status = None
        self.log = open("/run/ima-trim.log", "ab", buffering=0)
        self.address = f"/run/ima-trim-notify.{os.getpid()}"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.address)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(self.address)
        self.thread = threading.Thread(target=self._run, daemon=True)

    def start(self):
        """Starts it, and waits until it serves."""
        self.thread.start()
        return self.wait()

    def wait(self):
        """Waits until it serves."""
        deadline = time.monotonic() + READY_LIMIT
        while not self.ready.wait(0.1):
            check(self.thread.is_alive(), f"the daemon ended with status {self.status}: {self.tail()}")
            check(time.monotonic() < deadline, f"the daemon is not ready within {READY_LIMIT} s: {self.tail()}")
        return self

    @staticmethod
    def tail():
        """The last lines of its log."""
        return lib.read("/run/ima-trim.log").decode(errors="replace")[-2000:]

    def command(self):
        """What is executed."""
        return [self.program, "--config", CONFIG, "daemon"]

    def _spawn(self):
        fds = list(self.kept.items())
        pid = os.fork()
        if pid:
            return pid
        try:
            # The log may itself be where the first descriptor goes.
            os.dup2(self.log.fileno(), 1)
            os.dup2(self.log.fileno(), 2)
            # First to where nothing is overwritten that is yet to be copied.
            high = [os.dup2(fd, 200 + number, inheritable=False) for number, (_, fd) in enumerate(fds)]
            for number, fd in enumerate(high):
                os.dup2(fd, 3 + number, inheritable=True)
            environment = dict(os.environ, NOTIFY_SOCKET=self.address)
            if fds:
                environment |= {
                    "LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(len(fds)),
                    "LISTEN_FDNAMES": ":".join(name for name, _ in fds)}
            command = self.command()
            os.execvpe(command[0], command, environment)
        finally:
            os._exit(127)

    def _run(self):
        while True:
            self.starts += 1
            self.before()
            self.pid = self._spawn()
            child = os.pidfd_open(self.pid)
            while True:
                readable, _, _ = select.select([self.socket, child], [], [])
                if self.socket in readable:
                    self._hear()
                if child in readable:
                    break
            # What it said last.
            while select.select([self.socket], [], [], 0)[0]:
                self._hear()
            os.close(child)
            _, status = os.waitpid(self.pid, 0)
            self.status = os.waitstatus_to_exitcode(status)
            self.pid = None
            self.ready.clear()
            self.after()
            if self.stopping or not self.restart:
                return

    def _hear(self):
        text, fds, _, _ = socket.recv_fds(self.socket, 4096, 8)
        said = dict(line.split("=", 1) for line in text.decode().splitlines() if "=" in line)
        name = said.get("FDNAME", "stored")
        for fd in fds:
            if "FDSTORE" in said:
                self.kept[name] = fd
            else:
                # That of a barrier is closed when what was said before has been heard.
                os.close(fd)
        if "FDSTOREREMOVE" in said and name in self.kept:
            os.close(self.kept.pop(name))
        if said.get("READY") == "1":
            self.is_ready()

    def is_ready(self):
        """It says that it serves."""
        self.ready_at = time.monotonic()
        self.ready.set()

    def before(self):
        """What is done before it is started."""

    def after(self):
        """What is done when it has ended."""

    def kill(self):
        """Kills it. It is started again."""
        pid = self.pid
        self.ready.clear()
        if pid:
            os.kill(pid, signal.SIGKILL)

    def stop(self):
        """Stops it, and gives its exit status."""
        self.stopping = True
        if self.pid:
            os.kill(self.pid, signal.SIGTERM)
        self.thread.join(READY_LIMIT)
        check(not self.thread.is_alive(), "the daemon did not stop")
        return self.status

    def drop(self):
        """Closes what was kept."""
        for fd in self.kept.values():
            os.close(fd)
        self.kept.clear()


class Unit(Service):
    """The same as the unit runs it: in a mount namespace and with a user of its own, and mounts are made by steps."""

    USER = 1
    CAPABILITIES = "+sys_admin,+dac_override"
    NAME = "ima-trim.service"

    def __init__(self, **options):
        super().__init__(**options)
        self.covered = False
        self.job = ""
        # The one thing that the program asks systemctl for: what jobs there are.
        os.makedirs("/run/bin", exist_ok=True)
        with open("/run/bin/systemctl", "w", encoding="ascii") as file:
            file.write("#!/bin/bash\n[ $1 = list-jobs ] && cat /run/jobs\n")
        os.chmod("/run/bin/systemctl", 0o755)
        # What RuntimeDirectory= and StateDirectory= do: what belongs to somebody else is handed over with all below.
        for directory in ("/run/ima-trim", ARCHIVE):
            os.makedirs(directory, exist_ok=True)
            if os.stat(directory).st_uid != self.USER:
                for path, _, files in os.walk(directory):
                    for name in ("", *files):
                        os.chown(os.path.join(path, name), self.USER, self.USER, follow_symlinks=False)

    def command(self):
        return [
            "unshare", "--mount", "--propagation", "slave",
            "setpriv", f"--reuid={self.USER}", f"--regid={self.USER}", "--clear-groups", "--no-new-privs",
            f"--inh-caps={self.CAPABILITIES}", f"--ambient-caps={self.CAPABILITIES}",
            f"--bounding-set=-all,{self.CAPABILITIES}", *super().command(), "--by-steps"]

    def step(self, name):
        """Runs a step to its end, and hears what it says."""
        with open("/run/jobs", "w", encoding="ascii") as file:
            file.write(f"77 other.service start waiting\n78 {self.NAME} {self.job} running\n" if self.job else "")
        environment = dict(
            os.environ, NOTIFY_SOCKET=self.address, IMA_TRIM_UNIT=self.NAME, PATH=f"/run/bin:{os.environ['PATH']}")
        # systemd gives it a mount namespace, too, full privileges or not.
        process = subprocess.Popen(
            ["unshare", "--mount", "--propagation", "slave", PROGRAM, "--config", CONFIG, "step", name], env=environment, stdin=subprocess.DEVNULL,
            stdout=self.log, stderr=self.log)
        while process.poll() is None:
            if select.select([self.socket], [], [], 0.05)[0]:
                self._hear()
        while select.select([self.socket], [], [], 0)[0]:
            self._hear()
        if process.returncode:
            self.log.write(f"step {name}: exit status {process.returncode}\n".encode())

    def before(self):
        self.covered = False
        self.step("mount")

    def is_ready(self):
        if not self.covered:
            self.covered = True
            self.step("cover")
        super().is_ready()

    def after(self):
        self.step("uncover")

    def reload(self):
        """Has another program take over in the same process."""
        self.ready.clear()
        os.kill(self.pid, signal.SIGHUP)
        self.wait()

    def restart_job(self):
        """Ends it as `systemctl restart` does, and waits until it is there again."""
        self.job = "restart"
        self.ready.clear()
        os.kill(self.pid, signal.SIGTERM)
        self.wait()
        self.job = ""

    def stop(self):
        self.job = "stop"
        return super().stop()


def trim(mode=None, violations=None):
    """Has the daemon trim everything. Gives how many records."""
    arguments = ["trim"]
    if mode:
        arguments += ["--reclaim", mode]
    if violations is not None:
        arguments += ["--violations", str(violations)]
    words = run(*arguments).decode().split()
    return int(words[1])


class FastTpm:
    """In place of a TPM that takes longer for an extend than the machine for all else, as an emulated one does.

    IMA does not extend it, as if it were suspended. Who reads PCR 10 in sysfs is given what it would have: files with that
    are bound over sysfs'. What the module verifies against the TPM when it is loaded comes before, so that it takes
    requests; it is not to be loaded anew. Whoever has IMA append records says which.
    """

    def __init__(self):
        self.values = {bank: lib.tpm_value(bank, lib.MEASURE_PCR) for bank in lib.banks()}
        self.files = {}
        os.makedirs("/run/pcrs", exist_ok=True)
        for bank in self.values:
            path = f"/run/pcrs/{bank}"
            self.files[bank] = os.open(path, os.O_RDWR | os.O_CREAT, 0o444)
        self.publish()
        for bank in self.values:
            subprocess.run(
                ["mount", "--bind", f"/run/pcrs/{bank}", f"{lib.TPM}/pcr-{bank}/{lib.MEASURE_PCR}"], check=True)
        lib.be_quiet()
        lib.ask_test_module("tpm", "N")

    def extend(self, *datas):
        """Records were appended with this template data, in this order; None is a violation."""
        for bank, value in self.values.items():
            digest, violation = getattr(hashlib, bank), b"\xff" * len(value)
            for data in datas:
                value = digest(value + (violation if data is None else digest(data).digest())).digest()
            self.values[bank] = value
        self.publish()

    def publish(self):
        """Has whoever reads the PCR see its value, in one piece."""
        for bank, value in self.values.items():
            os.pwrite(self.files[bank], value.hex().upper().encode() + b"\n", 0)


class Files:
    """Has IMA measure files, faster than a TPM could be extended."""

    def __init__(self):
        first = lib.parse(lib.read(lib.BINARY))[0]
        self.algorithm = first.fields[0].split(b":")[0].decode()
        # Those of the template behind the name.
        self.rest = [b""] * (len(first.fields) - 2)
        self.tpm = FastTpm()
        # How many records there are since boot, and how many of them are violations.
        self.records = lib.count()
        self.violations = 0

    def data(self, path, content):
        """The template data of the record of a file."""
        digest = self.algorithm.encode() + b":\0" + hashlib.new(self.algorithm, content).digest()
        fields = [digest, os.fsencode(path) + b"\0", *self.rest]
        return b"".join(len(field).to_bytes(4, sys.byteorder) + field for field in fields)

    def appended(self, *datas):
        """Records were appended."""
        self.records += len(datas)
        self.violations += sum(data is None for data in datas)
        self.tpm.extend(*datas)

    def measure(self):
        """A file that no other is like."""
        path = lib.new_file()
        lib.measure_file(path)
        os.unlink(path)
        self.appended(self.data(path, path.encode()))

    def violate(self):
        """A file that is written to while it is read."""
        path = lib.violate_tomtou()
        self.appended(self.data(path, path.encode()), None)

    def measure_again(self, name):
        """A file that was measured before, with another inode. Says whether it was measured again."""
        path = lib.new_file(name=name, content=name.encode())
        lib.measure_file(path)
        os.unlink(path)
        if lib.count() == self.records:
            return False
        self.appended(self.data(path, name.encode()))
        return True


def ask(**question):
    """Asks the daemon something, as the program does. Gives its answer; None if it ends before."""
    with socket.socket(socket.AF_UNIX) as control:
        try:
            control.connect(CONTROL)
            control.sendall(json.dumps(question).encode() + b"\n")
            with control.makefile("rb") as stream:
                return json.loads(stream.readline() or "null")
        except OSError:
            return None


def ask_to_trim():
    """Has the daemon trim everything, without a process for it."""
    return ask(do="trim", to=None, violations=None, reclaim=None, dry_run=False)


def kernel_files():
    """From now on what is asked of IMA's files is asked of the kernel's, whatever covers them."""
    lib.IMA = KERNEL
    lib.BINARY = f"{KERNEL}/binary_runtime_measurements"
    lib.ASCII = f"{KERNEL}/ascii_runtime_measurements"


def attach_disk():
    """Loads what a disk needs: its driver and the file system."""
    for module in os.environ["DISK_MODULES"].split():
        name = module.removesuffix(".ko").replace("-", "_")
        if not os.path.isdir(f"/sys/module/{name}"):
            lib.load(os.path.join(os.path.dirname(lib.MODULE), module))
    lib.wait_for(lambda: os.path.exists(DISK), DISK)


def make_file_system(*options):
    """Makes an empty file system on the disk, but for the end of that, which is no part of it."""
    size = int(lib.read(f"/sys/class/block/{os.path.basename(DISK)}/size")) // 2 - 1024
    subprocess.run(
        ["mke2fs", "-q", "-F", "-t", "ext4", "-E", "lazy_itable_init=0,lazy_journal_init=0", *options, DISK, f"{size}k"],
        stdin=subprocess.DEVNULL, check=True)


def mount_disk(directory, options="defaults"):
    """Mounts it."""
    os.makedirs(directory, exist_ok=True)
    subprocess.run(["mount", "-t", "ext4", "-o", options, DISK, directory], check=True)


def disk_does(word):
    """Has the disk fail, or work again: see tools/testing/vm/disk.py. Its last sector says what it does."""
    print(f"# disk: {word}", flush=True)
    size = int(lib.read(f"/sys/class/block/{os.path.basename(DISK)}/size")) * 512
    fd = os.open(DISK, os.O_RDONLY | os.O_DIRECT)
    try:
        with mmap.mmap(-1, 4096) as page, memoryview(page) as whole_page, whole_page[:512] as sector:
            def says():
                try:
                    os.preadv(fd, [sector], size - 512)
                except OSError:
                    # What the kernel could not write before is told to whoever comes next, once.
                    return False
                return bytes(sector).rstrip(b"\0") == word.encode()
            lib.wait_for(says, f"the disk does not {word}")
    finally:
        os.close(fd)


class Archived:
    """The archive of a boot, read as Documentation/admin-guide/archive.rst has it, segment by segment; and its replay."""

    SUFFIX = ".segment"
    # So many values before the last record are remembered.
    REMEMBERED = 64

    def __init__(self, directory):
        self.directory = directory
        self.records = []
        # After each segment: values and violations.
        self.points = {0: ({}, 0)}
        self.passed = collections.deque([{}], self.REMEMBERED)
        self.header = None

    def names(self):
        """The files that are segments by their names, and the others."""
        names = sorted(os.listdir(self.directory)) if os.path.isdir(self.directory) else []
        segments = [name for name in names if name.endswith(self.SUFFIX)]
        return segments, [name for name in names if name not in segments]

    def read_on(self):
        """Reads the segments that have come since. What is wrong with them, or has no place there, fails the test."""
        segments, others = self.names()
        for name in segments:
            check(re.fullmatch(r"\d{20}\.segment", name), f"a segment is called {name}")
            if int(name.removesuffix(self.SUFFIX)) >= len(self.records):
                self._segment(name)
        strange = [name for name in others if name != "number" and not name.endswith(".tmp")]
        check(not strange, f"in {self.directory} there are {strange}")
        return self

    def _segment(self, name):
        what = os.path.join(self.directory, name)
        first, header, raw = lib.read(what).split(b"\n", 2)
        digest = hashlib.sha256(header + b"\n").hexdigest()
        equal(first.decode(), f"ima-trim segment 1 {digest}", f"{what}: first line")
        said = json.loads(header)
        values, violations = self.points[len(self.records)]
        records = lib.parse(raw)
        equal(said["boot"], os.path.basename(self.directory), f"{what}: boot")
        equal(said["first"], len(self.records), f"{what}: first record")
        equal(name, f"{said['first']:020}{self.SUFFIX}", f"{what}: name")
        equal(said["previous"], self.header, f"{what}: the segment before it")
        equal((said["records"], said["bytes"], said["sha256"]),
              (len(records), len(raw), hashlib.sha256(raw).hexdigest()), f"{what}: records, bytes and their SHA-256")
        equal(said["violations"], sum(record.violation for record in records), f"{what}: violations")
        self._same(said["before"], len(self.records), values, violations, f"{what}: before")
        for record in records:
            values = lib.replay(values, [record])
            self.passed.append(values)
        violations += said["violations"]
        self.records += records
        self.points[len(self.records)] = (values, violations)
        self._same(said["after"], len(self.records), values, violations, f"{what}: after")
        self.header = digest

    @staticmethod
    def _same(text, records, values, violations, what):
        point = lib.Starting(text.encode())
        equal((point.records, point.violations), (records, violations), f"{what}: records and violations")
        same_values(point, values, what)

    def value_at(self, records):
        """Values and violations after so many records."""
        begin = max(point for point in self.points if point <= records)
        values, violations = self.points[begin]
        some = self.records[begin:records]
        return lib.replay(values, some), violations + sum(record.violation for record in some)

    def holds(self, point, what):
        """Checks what a point says of the archived records: see lib.Starting."""
        check(point.records <= len(self.records), f"{what}: record {point.records} is not archived, which ends with "
              f"{len(self.records)} records in {self.directory}")
        values, violations = self.value_at(point.records)
        equal(point.violations, violations, f"{what}: violations")
        same_values(point, values, what)

    def whole_list(self, what):
        """Checks, with nobody trimming, that archive and kernel have every record once: see Follower, too. Gives how many
        are archived, and how many trimmed."""
        self.read_on()
        # The TPM first: what it has is in the list by then.
        quoted = {(bank, pcr): lib.tpm_value(bank, pcr) for bank, pcr in self.passed[-1] or [("sha256", lib.MEASURE_PCR)]}
        starting, kept = lib.look()
        end = len(self.records)
        self.holds(starting, f"{what}: starting_pcrs")
        both = self.records[starting.records:]
        equal([record.raw for record in kept[:len(both)]], [record.raw for record in both],
              f"{what}: records that are archived and not trimmed")
        passed = list(self.passed)
        for record in kept[len(both):]:
            passed.append(lib.replay(passed[-1], [record]))
        for (bank, pcr), value in quoted.items():
            reset = lib.reset_value(bank, pcr)
            check(value in [values.get((bank, pcr), reset) for values in passed],
                  f"{what}: {bank}:{pcr} has a value in the TPM to which archive and list do not replay, with {end} records "
                  f"archived, {starting.records} trimmed and {len(kept)} in the list")
        return end, starting.records


def same_values(point, values, what):
    """Checks the values of a point, all of which must be those of a replay, or of a reset."""
    for (bank, pcr), value in point.values.items():
        expected = values.get((bank, pcr)) or lib.reset_value(bank, pcr)
        equal(value.hex(), expected.hex(), f"{what}: {bank}:{pcr}")
    missing = set(values) - set(point.values)
    check(not missing, f"{what}: no value of {sorted(missing)}")


class Model:
    """What the whole list must be, in each file: what the kernel gave of each record while it had it."""

    def __init__(self):
        self.gone = {name: b"" for name in names()}
        self.records = 0

    def save(self):
        """Keeps what the kernel's files have now, which is about to be trimmed. Nothing is measured meanwhile."""
        return {name: lib.read(f"{KERNEL}/{name}") for name in self.gone}

    def trimmed(self, saved, records):
        """After a trim of everything that was saved but for what was measured for it."""
        self.records += records
        for name, data in saved.items():
            self.gone[name] += data

    def now(self):
        """All files as they must be."""
        return {name: gone + lib.read(f"{KERNEL}/{name}") for name, gone in self.gone.items()}

    def compare(self, directory, what):
        """Compares the files in a directory."""
        for name, expected in self.now().items():
            found = lib.read(f"{directory}/{name}")
            if found != expected:
                at = next((at for at, (one, other) in enumerate(zip(found, expected)) if one != other),
                          min(len(found), len(expected)))
                raise lib.Failure(
                    f"{what}: {name} has {len(found)} bytes and should have {len(expected)}; they differ from {at} on: "
                    f"{found[at:at + 80]!r} and not {expected[at:at + 80]!r}")


class Follower:
    """Reads on in one of the files, as an agent does, and replays what it reads: in PCR 10 of the file's bank."""

    # A record is in the list before it is in the TPM, so that a value may be that of an earlier one.
    REMEMBERED = 256

    def __init__(self, form, bank):
        self.form = form
        self.bank = bank
        self.fd = os.open(f"{lib.IMA}/{form}_runtime_measurements_{bank}", os.O_RDONLY)
        self.value = lib.reset_value(bank, lib.MEASURE_PCR)
        self.passed = collections.deque([self.value], self.REMEMBERED)
        self.records = 0
        self.size = 0

    def read_on(self):
        """Reads up to the end of the file, which must be that of a record. Gives the values that the replay passes."""
        data = lib.read_fd(self.fd, 1 << 20)
        self.size += len(data)
        new = list(self.passed)
        for extended in (self._lines if self.form == "ascii" else self._records)(data):
            self.value = hashlib.new(self.bank, self.value + extended).digest()
            new.append(self.value)
            self.records += 1
        self.passed.extend(new[len(self.passed):])
        return new

    def _records(self, data):
        size = lib.banks()[self.bank]
        for record in lib.parse(data, size):
            if record.pcr == lib.MEASURE_PCR:
                yield record.extended(self.bank)

    def _lines(self, data):
        check(not data or data.endswith(b"\n"), f"what was read ends within a line: {data[-100:]!r}")
        for line in data.splitlines():
            pcr, digest, _ = line.split(b" ", 2)
            if int(pcr) == lib.MEASURE_PCR:
                digest = bytes.fromhex(digest.decode())
                yield digest if any(digest) else b"\xff" * len(digest)

    def quoted(self):
        """Has the TPM say the value of the PCR, and reads then: the replay must reach it."""
        quote = lib.tpm_value(self.bank, lib.MEASURE_PCR)
        check(quote in self.read_on(), f"{self.bank}:{lib.MEASURE_PCR} was quoted, and what is read after that does "
              f"not replay to it, with {self.records} records of the {self.form} file")

    def close(self):
        """Closes the file."""
        os.close(self.fd)


def append_records(stop, pause=0):
    """Has IMA append records, violations among them, until a file is there. For a process of its own."""
    number = 0
    while not os.path.exists(stop):
        number += 1
        if number % 9 == 0:
            lib.violate_tomtou()
        elif number % 23 == 0:
            lib.violate_open_writers()
        else:
            lib.measure()
        time.sleep(pause)
    return number


def keep_reading(stop, path, size, uid=None, pause=0.03):
    """Reads on in a file that stays open, until another one is there. Gives the bytes that it has and their SHA-256."""
    fd = os.open(path, os.O_RDONLY)
    if uid is not None:
        lib.become_nobody()
    whole = hashlib.sha256()
    length = 0
    while True:
        last = os.path.exists(stop)
        part = lib.read_fd(fd, size)
        whole.update(part)
        length += len(part)
        if last:
            os.close(fd)
            return length, whole.hexdigest()
        time.sleep(pause)


def keep_jumping(stop, path, seed, pause=0.02):
    """Reads at random offsets of a file that stays open. Gives for the last ones: offset, bytes and their SHA-256."""
    chance = random.Random(seed)
    fd = os.open(path, os.O_RDONLY)
    found = collections.deque(maxlen=300)
    while not os.path.exists(stop):
        size = os.fstat(fd).st_size
        offset = chance.randrange(size + 1)
        part = os.pread(fd, chance.choice((1, 700, 5000, 70000)), offset)
        found.append((offset, len(part), hashlib.sha256(part).hexdigest()))
        check(part or offset >= size, f"nothing at {offset} of a file of {size} bytes")
        time.sleep(pause)
    os.close(fd)
    return list(found)


def same_as_now(path, length, digest):
    """Checks what a reader had that kept a file open, against one that opens it now."""
    now = lib.read(path)
    equal(length, len(now), f"bytes that a reader of {path} has")
    equal(digest, hashlib.sha256(now).hexdigest(), f"SHA-256 of what a reader of {path} has")


def same_pieces(path, found):
    """Checks what keep_jumping() has found of a file against what is there now."""
    now = lib.read(path)
    check(len(found) > 20, f"only {len(found)} reads of {path}")
    for offset, length, digest in found:
        equal(digest, hashlib.sha256(now[offset:offset + length]).hexdigest(), f"{length} bytes at {offset} of {path}")


def replays():
    """Checks that the list, read anew, has each record once: each file replays to what the TPM has."""
    for form in FORMATS:
        for bank in lib.banks():
            follower = Follower(form, bank)
            follower.read_on()
            follower.close()
            value = lib.tpm_value(bank, lib.MEASURE_PCR)
            equal(follower.value.hex(), value.hex(), f"replay of the {form} file of {bank}")
    starting = lib.Starting(lib.read(lib.STARTING_PCRS))
    gone = lib.parse(lib.read(lib.BINARY))[:starting.records]
    equal(sum(record.violation for record in gone), starting.violations, "violations that were trimmed")
    for (bank, pcr), value in lib.replay({}, gone).items():
        equal(starting.values[bank, pcr].hex(), value.hex(), f"starting value of {bank}:{pcr}")
