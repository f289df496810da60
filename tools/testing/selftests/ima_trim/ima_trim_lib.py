# SPDX-License-Identifier: GPL-2.0
"""What the tests of ima_trim share.

The replay of the measurement list here is written from the list's format and the TPM's definition of an extend
alone, so that it can disagree with the module. It is itself checked against the TPM and against evmctl.
"""

import contextlib
import ctypes
import errno
import functools
import hashlib
import json
import os
import platform
import re
import select
import signal
import stat
import struct
import subprocess
import sys
import time
import traceback

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "kselftest"))
import ksft  # noqa: E402

IMA = "/sys/kernel/security/ima"
DIRECTORY = "/sys/kernel/security/ima_trim"
TRIM = DIRECTORY + "/trim"
STARTING_PCRS = DIRECTORY + "/starting_pcrs"
VERIFY = DIRECTORY + "/verify"
VIOLATIONS = DIRECTORY + "/violations"
STATUS = DIRECTORY + "/status"
BINARY = IMA + "/binary_runtime_measurements"
ASCII = IMA + "/ascii_runtime_measurements"
# Only with CONFIG_IMA_STAGING.
STAGED = BINARY + "_staged"
TPM = "/sys/class/tpm/tpm0"
MODULE = os.environ.get("MODULE", os.path.join(HERE, "../../../..", "ima_trim.ko"))
# The module of the tests, tools/testing/module.
TEST_MODULE = os.path.join(os.path.dirname(MODULE), "ima_trim_test.ko")

if os.path.dirname(os.path.abspath(sys.argv[0])) == HERE and not os.environ.get("IMA_TRIM_DISPOSABLE"):
    # The program is one of the tests. Some look at the machine before main().
    ksft.print_header()
    print("1..0 # SKIP these tests extend PCRs, trim the list and reboot: set IMA_TRIM_DISPOSABLE=1 where that is wanted")
    sys.exit(ksft.KSFT_SKIP)

# What the tests of one boot leave for those that come after them.
STATE = "/run/ima_trim"
# What they leave for those after a kexec, there.
CARRIED = "/harness/carried"
# Records that are measured before a kexec when others are staged.
MEASURED_LATE = 2
# Where it is, the machine is on its way down, and init leaves it to that.
REBOOTING = "/run/rebooting"
FILES = "/tmp/ima_trim"

MEASURE_PCR = 10
# Whether the kernel was built to find faults: it needs fewer tries for it, and takes long for each.
DEBUG = bool(os.environ.get("TEST_DEBUG"))
MAX_REQUEST = 16384
NOBODY = 65534
PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
RB_AUTOBOOT = 0x01234567

# What the kernel must never log.
ALARMS = r"WARNING:|BUG:|Oops|Call Trace|general protection"

# The policy tells by the owner of a file which PCR its measurement extends. A TPM has no PCR 30: IMA lists such
# a record and the extend fails. It refuses the kernel an extend of PCR 17, and anybody can reset PCRs 16 and 23.
OWNERS = {pcr: 1100 + pcr for pcr in (10, 11, 12, 13, 14, 16, 17, 23, 30)}
POLICY = "dont_measure fsmagic=0x73636673\n" + "".join(
    f"measure func=FILE_CHECK mask=MAY_READ fowner={owner}" + (f" pcr={pcr}\n" if pcr != MEASURE_PCR else "\n")
    for pcr, owner in OWNERS.items()
)


# Named tests -------------------------------------------------------------------------------------------------------

_tests = []


def test(name):
    """Makes a function a test of this name. It fails by raising anything."""
    def register(function):
        _tests.append((name, function))
        return function
    return register


def cases(name, table):
    """Makes a function one test for each row of a table; the row's first column is added to the name."""
    def register(function):
        for row in table:
            _tests.append((f"{name}: {row[0]}", lambda row=row: function(*row[1:])))
        return function
    return register


class Failure(AssertionError):
    """A check that did not hold."""


def tries(number):
    """How often to try what depends on how processes meet, if that is so often on a distribution's kernel."""
    return number // 4 if DEBUG else number


def check(condition, what):
    """Fails the test unless the condition holds."""
    if not condition:
        raise Failure(what)


def equal(found, expected, what):
    """Fails the test unless two things are equal."""
    if found != expected:
        raise Failure(f"{what}: found {found!r}, expected {expected!r}")


def eventually(function, seconds=20):
    """What a function returns that may raise Failure for some time, while what was begun goes on."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return function()
        except Failure:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def wait_for(condition, what, seconds=60):
    """Waits until a condition holds. Fails the test if that takes too long."""
    deadline = time.monotonic() + seconds
    while not condition():
        check(time.monotonic() < deadline, f"not within {seconds} s: {what}")
        time.sleep(0.005)


def main(policy=True, module=True, parameters="", prepare=None):
    """Runs the tests of the file: the plan comes first, so that a test that is lost is noticed.

    `prepare` is what the file itself has to set up before them.
    """
    sys.stdout.reconfigure(line_buffering=True)
    ksft.print_header()
    ksft.set_plan(len(_tests))
    try:
        check(os.geteuid() == 0, "these tests must run as root")
        os.makedirs(STATE, exist_ok=True)
        os.makedirs(FILES, exist_ok=True)
        if policy:
            load_policy()
        if module and not loaded():
            load(parameters=parameters)
        if prepare:
            prepare()
    except Exception as error:
        print(f"Bail out! setting up failed: {error}")
        ksft.exit_fail()
    for name, function in _tests:
        try:
            function()
        except Exception:
            for line in traceback.format_exc().splitlines():
                # What two long lists differ in is of no use whole.
                ksft.print_msg(line[:1000])
            ksft.test_result_fail(name)
        else:
            ksft.test_result_pass(name)
    ksft.finished()


# Files -------------------------------------------------------------------------------------------------------------

def error_name(number):
    """The name of an error number, one of several where it has several."""
    return {errno.EAGAIN: "EAGAIN", errno.EOPNOTSUPP: "EOPNOTSUPP"}.get(number) or errno.errorcode[number]


def outcome_of(function, *arguments):
    """The name of the error that a call ends in, or None."""
    try:
        function(*arguments)
    except OSError as error:
        return error_name(error.errno)
    return None


def read_fd(fd, size=65536):
    """All that is left to be read from a descriptor."""
    parts = []
    while part := os.read(fd, size):
        parts.append(part)
    return b"".join(parts)


def read(path):
    """All of a file."""
    fd = os.open(path, os.O_RDONLY)
    try:
        return read_fd(fd)
    finally:
        os.close(fd)


def write(path, data):
    """Writes to a file in one write(2)."""
    fd = os.open(path, os.O_WRONLY)
    try:
        return os.write(fd, data.encode() if isinstance(data, str) else data)
    finally:
        os.close(fd)


def source(path):
    """A file of the module's sources: beside the module, or where it is in the project's tree."""
    beside = os.path.join(os.path.dirname(MODULE), os.path.basename(path))
    return beside if os.path.exists(beside) else os.path.join(HERE, "../../../..", path)


def pairs(text):
    """The `key=value` lines of a text."""
    return dict(line.split("=", 1) for line in text.decode("ascii").splitlines())


def list_files():
    """The files of IMA that give the measurement list."""
    names = [name for name in os.listdir(IMA) if "_runtime_measurements" in name]
    return sorted(os.path.join(IMA, name) for name in names)


# IMA: what it measures ---------------------------------------------------------------------------------------------

def load_policy():
    """Gives IMA the policy of these tests. A stock kernel takes one once per boot."""
    done = os.path.join(STATE, "policy")
    if os.path.exists(done):
        return
    fd = os.open(os.path.join(IMA, "policy"), os.O_WRONLY)
    try:
        # IMA takes one rule from each write. The policy comes into force when the file is closed.
        for rule in POLICY.splitlines(True):
            equal(os.write(fd, rule.encode()), len(rule), f"bytes written of the rule {rule!r}")
    finally:
        os.close(fd)
    with open(done, "w", encoding="ascii"):
        pass
    before = count()
    measure()
    equal(count(), before + 1, "records after the first measured file: the policy does not work")


def count():
    """The number of records in the list, as IMA counts them."""
    return int(read(os.path.join(IMA, "runtime_measurements_count")))


_serial = 0


def new_file(pcr=MEASURE_PCR, name=None, content=None):
    """Makes a file that no other is like, whose measurement extends a PCR, and gives its path."""
    global _serial
    _serial += 1
    path = os.path.join(FILES, name or f"{os.path.basename(sys.argv[0])}.{os.getpid()}.{_serial}")
    with open(path, "wb") as file:
        file.write(path.encode() if content is None else content)
    os.chown(path, OWNERS[pcr], 0)
    return path


def measure_file(path):
    """Has IMA measure a file."""
    os.close(os.open(path, os.O_RDONLY))


def measure(files=1, pcr=MEASURE_PCR):
    """Has IMA append that many records."""
    for _ in range(files):
        path = new_file(pcr)
        measure_file(path)
        os.unlink(path)


def violate_tomtou(pcr=MEASURE_PCR, name=None):
    """A file opened for writing while it is measured: a measurement, then a violation. Gives its path."""
    path = new_file(pcr, name)
    reader = os.open(path, os.O_RDONLY)
    os.close(os.open(path, os.O_WRONLY))
    os.close(reader)
    os.unlink(path)
    return path


def violate_open_writers(pcr=MEASURE_PCR, name=None):
    """A file measured while it is open for writing: a violation, then a measurement. Gives its path."""
    path = new_file(pcr, name)
    writer = os.open(path, os.O_WRONLY)
    os.close(os.open(path, os.O_RDONLY))
    os.close(writer)
    os.unlink(path)
    return path


# IMA: the list and its replay --------------------------------------------------------------------------------------

@functools.cache
def banks():
    """The banks that the TPM has allocated, by name, and the size of their digests."""
    found = {}
    for name in sorted(os.listdir(TPM)):
        if name.startswith("pcr-"):
            found[name[4:]] = hashlib.new(name[4:]).digest_size
    return found


def tpm_value(bank, pcr):
    """The value of a PCR, from the TPM itself."""
    return bytes.fromhex(read(f"{TPM}/pcr-{bank}/{pcr}").decode().strip())


class Record:
    """A record of the list, in the format of ima_measurements_show()."""

    def __init__(self, raw, pcr, digest, template, data):
        self.raw = raw
        self.pcr = pcr
        self.digest = digest
        self.template = template
        self.data = data

    @property
    def violation(self):
        """Whether the record says that a measurement is not to be trusted."""
        return not any(self.digest)

    @property
    def hint(self):
        """The name in the record: the second field, for all templates that these tests meet."""
        (size,) = struct.unpack_from("=I", self.data)
        (length,) = struct.unpack_from("=I", self.data, 4 + size)
        return self.data[8 + size:8 + size + length].rstrip(b"\0")

    @property
    def fields(self):
        """The fields of the template data."""
        found = []
        at = 0
        while at < len(self.data):
            (size,) = struct.unpack_from("=I", self.data, at)
            found.append(self.data[at + 4:at + 4 + size])
            at += 4 + size
        return found

    def extended(self, bank):
        """What IMA extends a PCR with in a bank. The template data of the list is what it hashes."""
        if self.violation:
            return b"\xff" * hashlib.new(bank).digest_size
        return hashlib.new(bank, self.data).digest()


def parse(data, digest_size=20):
    """The records of a binary list."""
    records = []
    at = 0
    while at < len(data):
        begin = at
        (pcr,) = struct.unpack_from("=I", data, at)
        digest = data[at + 4:at + 4 + digest_size]
        at += 4 + digest_size
        (size,) = struct.unpack_from("=I", data, at)
        template = data[at + 4:at + 4 + size]
        check(template != b"ima", "these tests do not read the old template 'ima'")
        at += 4 + size
        (size,) = struct.unpack_from("=I", data, at)
        at += 4
        body = data[at:at + size]
        at += size
        check(at <= len(data), "the binary list ends within a record")
        records.append(Record(data[begin:at], pcr, digest, template, body))
    return records


# What the module has IMA measure, with a policy that has this rule.
EVIDENCE_RULE = "measure func=CRITICAL_DATA label=ima_trim\n"
EVENTS = ("load", "trim", "restore", "foreign")


def events(records, *names):
    """The events of the module among records, or those of these names, each with its data as a text."""
    found = []
    for record in records:
        if record.template == b"ima-buf" and (name := record.hint.decode()) in (names or EVENTS):
            found.append((name, record.fields[2].decode()))
    return found


_BASES = os.path.join(STATE, "bases")


@functools.cache
def bases():
    """The values that PCRs had before the first record, where something else had extended them: of (bank, pcr)."""
    if not os.path.exists(_BASES):
        return {}
    return {(bank, pcr): bytes.fromhex(value) for bank, pcr, value in json.loads(read(_BASES))}


def set_base(pcr):
    """From now on, in all tests of this boot, a PCR begins with the value that it has now."""
    found = bases() | {(bank, pcr): tpm_value(bank, pcr) for bank in banks()}
    with open(_BASES, "w", encoding="ascii") as file:
        json.dump([(bank, number, value.hex()) for (bank, number), value in found.items()], file)
    bases.cache_clear()


def reset_value(bank, pcr):
    """The value of a PCR before the first record: that after a reset of the TPM, unless another is known."""
    return bases().get((bank, pcr)) or (b"\xff" if 17 <= pcr <= 22 else b"\0") * hashlib.new(bank).digest_size


def replay(values, records):
    """The PCR values after these records, from these values on: a dict of (bank, pcr)."""
    values = dict(values)
    for record in records:
        if record.pcr >= 24:
            continue
        for bank in banks():
            before = values.get((bank, record.pcr)) or reset_value(bank, record.pcr)
            values[bank, record.pcr] = hashlib.new(bank, before + record.extended(bank)).digest()
    return values


def template():
    """The name of the template of this machine's records."""
    return history().records[0].template.decode()


@functools.cache
def has_htable():
    """Whether IMA knows a record that it has and does not append it again: not with CONFIG_IMA_DISABLE_HTABLE.

    Appends two records, or three.
    """
    measure()
    before = count()
    for _ in range(2):
        path = new_file(name="known", content=b"known")
        measure_file(path)
        os.unlink(path)
    return count() == before + 1


def predict(path):
    """The record that measuring a file of new_file() will append, of the template and hash that the first one has."""
    first = history().records[0]
    (size,) = struct.unpack_from("=I", first.data)
    algorithm = first.data[4:4 + size].split(b":")[0]
    digest = algorithm + b":\0" + hashlib.new(algorithm.decode(), path.encode()).digest()
    fields = [digest, path.encode() + b"\0"] + {b"ima-ng": [], b"ima-sig": [b""]}[first.template]
    data = b"".join(struct.pack("=I", len(field)) + field for field in fields)
    return Record(b"", MEASURE_PCR, hashlib.sha1(data).digest(), first.template, data)


class Starting:
    """What `starting_pcrs` says."""

    def __init__(self, text):
        self.text = text
        self.values = {}
        fields = {}
        self.unknown = text.startswith(b"unknown")
        if self.unknown:
            return
        for key, value in pairs(text).items():
            if ":" in key:
                bank, pcr = key.split(":")
                self.values[bank, int(pcr)] = bytes.fromhex(value)
            else:
                fields[key] = int(value)
        self.records = fields["records"]
        self.violations = fields["violations"]
        self.trims = fields["trims"]


def look():
    """The starting values and the list that belongs to them: none can be trimmed while it is open."""
    fd = os.open(BINARY, os.O_RDONLY)
    try:
        return Starting(read(STARTING_PCRS)), parse(read_fd(fd))
    finally:
        os.close(fd)


class History:
    """All records since boot, trimmed or not: the archive that a careful agent keeps.

    It lives in a file, as each test file is a process of its own and the records that an earlier one trimmed are
    nowhere else. Records are numbered from 1, so record n is records[n - 1], and values[n] are the PCR values
    after it.
    """

    PATH = os.path.join(STATE, "history")

    def __init__(self):
        self.records = []
        self.values = [{}]
        self.trimmed = 0
        if os.path.exists(self.PATH):
            self._add(parse(read(self.PATH)))

    def _add(self, records):
        for record in records:
            self.records.append(record)
            self.values.append(replay(self.values[-1], [record]))

    def sync(self):
        """Adds what is new in the list. To be called before each trim."""
        starting, records = look()
        check(not starting.unknown, "starting_pcrs is unknown")
        self.take(starting.records, records)
        return starting, records

    def take(self, gone, records):
        """Adds what is new in a list that so many records are gone from."""
        check(gone <= len(self.records), "records were trimmed that no test had seen")
        for old, now in zip(self.records[gone:], records):
            equal(now.raw, old.raw, "a record seen before")
        new = records[len(self.records) - gone:]
        with open(self.PATH, "ab") as file:
            file.write(b"".join(record.raw for record in new))
        self._add(new)
        self.trimmed = gone
        equal(self.trimmed + len(records), len(self.records), "records ever seen")

    @property
    def total(self):
        """The number of the last record."""
        return len(self.records)

    def value(self, point, bank, pcr):
        """The value of a PCR after a record."""
        return self.values[point].get((bank, pcr)) or reset_value(bank, pcr)

    def tokens(self, point, in_banks=None, pcrs=(MEASURE_PCR,)):
        """The PCR tokens that name the point after a record."""
        return " ".join(
            f"{bank}:{pcr}={self.value(point, bank, pcr).hex()}"
            for bank in in_banks or banks() for pcr in pcrs
        )

    def statement(self, point, trims=None):
        """What starting_pcrs has to say when the records up to this one are gone: the text of it.

        Trims that nobody has counted are none, but for a first one.
        """
        trims = max(int(status()["trims"]), 1) if trims is None else trims
        pcrs = sorted({record.pcr for record in self.records[:point] if record.pcr < 24} | {MEASURE_PCR})
        lines = [f"{bank}:{pcr}={self.value(point, bank, pcr).hex()}" for bank in sorted(banks()) for pcr in pcrs]
        lines += [f"records={point}", f"violations={len(self.violations(0, point))}", f"trims={trims}"]
        return "\n".join(lines) + "\n"

    def point(self, text):
        """The number of the earliest record, not trimmed, after which all values of a request hold, or None."""
        wanted = re.findall(r"(\w[\w-]*):(\d+)=([0-9a-fA-F]+)", text)
        for point in range(self.trimmed, self.total + 1):
            if all(self.value(point, bank, int(pcr)).hex() == value.lower() for bank, pcr, value in wanted):
                return point
        return None

    def violations(self, begin, end):
        """The numbers of the violations after record `begin` up to record `end`."""
        return [number for number in range(begin + 1, end + 1) if self.records[number - 1].violation]


_history = None


def history(again=False):
    """The history, up to date. It is read again when another process has added to it."""
    global _history
    if _history is None or again:
        _history = History()
    _history.sync()
    return _history


def evmctl(records):
    """Has evmctl replay records from the reset values and compare them with the TPM. Gives its exit status.

    It knows no PCR above 23, takes violations for what they are only if told so, and no more than two banks at once.
    """
    path = os.path.join(STATE, "evmctl-list")
    with open(path, "wb") as file:
        file.write(b"".join(record.raw for record in records if record.pcr < 24))
    command = ["evmctl", "ima_measurement"]
    if any(record.violation for record in records):
        command.append("--ignore-violations")
    names = list(banks())
    for some in (names[at:at + 2] for at in range(0, len(names), 2)):
        options = []
        for bank in some:
            pcrs = os.path.join(STATE, f"evmctl-{bank}")
            with open(pcrs, "w", encoding="ascii") as file:
                for pcr in range(24):
                    file.write(f"PCR-{pcr:02d}: {tpm_value(bank, pcr).hex(' ').upper()}\n")
            options += ["--pcrs", f"{bank},{pcrs}"]
        done = subprocess.run(command + options + [path], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
        if done.returncode:
            for line in done.stdout.decode(errors="replace").splitlines()[-10:]:
                ksft.print_msg(f"evmctl: {line}")
            return done.returncode
    return 0


# The module --------------------------------------------------------------------------------------------------------

_libc = ctypes.CDLL(None, use_errno=True)
_FINIT_MODULE, _DELETE_MODULE = {"x86_64": (313, 176), "aarch64": (273, 106)}[platform.machine()]


def loaded():
    """Whether the module is loaded."""
    return os.path.isdir("/sys/module/ima_trim")


def ask_test_module(what, value):
    """Asks something of the module of the tests, which is loaded if it is not. See ima_trim_test.c."""
    if not os.path.isdir("/sys/module/ima_trim_test"):
        load(TEST_MODULE)
    write(f"/sys/module/ima_trim_test/parameters/{what}", str(value))


def load(path=MODULE, parameters=""):
    """Loads the module."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _libc.syscall(_FINIT_MODULE, fd, parameters.encode(), 0):
            number = ctypes.get_errno()
            raise OSError(number, f"loading {path}: {os.strerror(number)}")
    finally:
        os.close(fd)


def unload(name="ima_trim", force=False):
    """Unloads the module, unless it is in use; with `force`, which not every kernel has, as `rmmod -f` does."""
    if _libc.syscall(_DELETE_MODULE, name.encode(), os.O_NONBLOCK | (os.O_TRUNC if force else 0)):
        number = ctypes.get_errno()
        raise OSError(number, f"unloading {name}: {os.strerror(number)}")


def write_and_read(path, text, fd=None):
    """Writes to a file of the module. Gives the error, and what is read on the same descriptor afterwards."""
    data = text if isinstance(text, bytes) else text.encode()
    own = os.open(path, os.O_RDWR | os.O_CLOEXEC) if fd is None else fd
    try:
        error = None
        try:
            equal(os.write(own, data), len(data), "bytes written")
        except OSError as failure:
            error = error_name(failure.errno)
        return error, read_fd(own)
    finally:
        if fd is None:
            os.close(own)


def restore(text, fd=None):
    """Writes to `starting_pcrs`. Gives the error, and what is read on the same descriptor afterwards."""
    return write_and_read(STARTING_PCRS, text, fd)


def reload(parameters=""):
    """Unloads the module and loads it again, and gives it back what it knew."""
    text = read(STARTING_PCRS)
    unload()
    load(parameters=parameters)
    if Starting(text).records:
        equal(restore(text)[0], None, "error of writing starting_pcrs back")


def be_quiet():
    """Keeps from the console that the TPM is suspended, which IMA says of each record."""
    write("/sys/module/printk/parameters/ignore_loglevel", "N")
    write("/proc/sys/kernel/printk", "1")


def slab():
    """The bytes of all objects that kmalloc() has given out, when all caches were shrunk."""
    for name in os.listdir("/sys/kernel/slab"):
        if name.startswith("kmalloc-") or "-kmalloc" in name:
            with contextlib.suppress(OSError):
                write(f"/sys/kernel/slab/{name}/shrink", "1")
    total = 0
    for line in read("/proc/slabinfo").decode().splitlines()[2:]:
        words = line.split()
        if words[0].startswith("kmalloc-"):
            total += int(words[1]) * int(words[3])
    return total


class KernelLog:
    """What the kernel logs from now on."""

    def __init__(self):
        self.fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        os.lseek(self.fd, 0, os.SEEK_END)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        os.close(self.fd)

    def text(self):
        """What was logged since the last call."""
        lines = []
        while True:
            try:
                line = os.read(self.fd, 8192).decode(errors="replace").split(";", 1)[1].split("\n")[0]
                # What is not printable and the backslash are escaped there.
                lines.append(re.sub(r"\\x([0-9a-f]{2})", lambda match: chr(int(match[1], 16)), line))
            except BlockingIOError:
                return "\n".join(lines)
            except BrokenPipeError:
                # Messages were overwritten before they were read; the next read goes on after them.
                continue

    def expect(self, pattern):
        """Fails the test unless something of this form was logged, and gives all that was."""
        text = self.text()
        check(re.search(pattern, text), f"the kernel logged nothing like {pattern!r} but: {text!r}")
        return text


def logged(function, pattern):
    """What a function returns that the log has to say something of this form of.

    How often it tells of a list that is busy is limited: if it says nothing the function is called once more, later.
    """
    for last in (False, True):
        with KernelLog() as kernel:
            value = function()
            text = kernel.text()
        if re.search(pattern, text):
            return value
        check(not last, f"the kernel logged nothing like {pattern!r} but: {text!r}")
        time.sleep(6)
    return None


class AuditLog(KernelLog):
    """What the kernel audits from now on. Without a daemon that takes them, it logs the records."""

    LINE = re.compile(r"^audit: type=(\d+) audit\([\d.:]+\): (.*)$", re.M)

    def records(self, op):
        """The fields of the records of this operation that came since the last call, each with its type."""
        # Records are logged by a thread, in order: one that is sure to come shows that all before it came. IMA writes
        # one when the TPM refuses to extend a PCR.
        path = new_file(30)
        measure_file(path)
        os.unlink(path)
        found = []
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            for number, body in self.LINE.findall(self.text()):
                fields = dict(re.findall(r'(\w+)=("[^"]*"|\S*)', body), type=int(number))
                if fields.get("op") == "add_template_measure" and path in fields.get("name", ""):
                    return [record for record in found if record["op"] == op]
                if "op" in fields:
                    found.append(fields)
            time.sleep(0.01)
        raise Failure("the kernel logged no audit record of a PCR that the TPM does not have")


def status():
    """The fields of `status`."""
    return pairs(read(STATUS))


class Outcome:
    """What became of a request: the error of the write, and the reply."""

    def __init__(self, error, text):
        self.error = error
        self.text = text
        self.fields = pairs(text)
        self.result = self.fields.get("result")
        self.records = int(self.fields.get("records", -1))
        self.violations = int(self.fields.get("violations", -1))
        self.first_violation = int(self.fields.get("first_violation", 0)) or None

    def __repr__(self):
        return f"<{self.error}: {self.text.decode()!r}>"


def request(text, fd=None):
    """Writes a request and reads the reply on the same descriptor. Waits until memory is given back, as `status` does."""
    outcome = Outcome(*write_and_read(TRIM, text, fd))
    if not outcome.error:
        read(STATUS)
    return outcome


def snapshot():
    """All that a request could change and that can be seen."""
    paths = [STATUS, STARTING_PCRS, VIOLATIONS, BINARY, ASCII]
    paths += [f"{IMA}/binary_runtime_measurements_{bank}" for bank in banks()]
    paths += [f"{IMA}/runtime_measurements_count", f"{IMA}/violations"]
    return {path: read(path) for path in paths}


def unchanged(before, what):
    """Fails the test if anything differs from a snapshot."""
    for path, text in snapshot().items():
        check(text == before[path], f"{what} changed {path}: from {before[path][-300:]!r} to {text[-300:]!r}")


def refuse(text, error, log=None):
    """Checks that a request is refused with this error, that the reply says so and that nothing changes."""
    before = snapshot()
    outcome = logged(lambda: request(text), log) if log else request(text)
    equal(outcome.error, error, f"error of the write (reply {outcome.text!r})")
    equal(outcome.result, "refused", "result")
    equal(outcome.fields.get("errno"), error, "errno in the reply")
    unchanged(before, "a refused request")
    return outcome


def trim(text, point=None, signed=None):
    """Checks that a request trims to where it should, and that the account of it is right everywhere.

    The point is found by the test's own search; `point` is what the caller knows of it. `signed` is what to write in
    place of the text, if that has to be signed.
    """
    log = history()
    before = log.trimmed
    expected = log.point(text)
    check(expected is not None, "the test's own replay does not find the point")
    if point is not None:
        equal(expected, point, "the point as the test's own replay finds it")
    violations = log.violations(before, expected)
    earlier = status()

    outcome = request(signed or text)
    equal(outcome.error, None, f"error of the write (reply {outcome.text!r})")
    equal(outcome.result, "trimmed" if expected > before else "nothing", "result")
    equal(outcome.records, expected - before, "records trimmed")
    equal(outcome.violations, len(violations), "violations trimmed")
    equal(outcome.first_violation, violations[0] if violations else None, "first violation")

    now = status()
    trims = int(expected > before)
    equal(int(now["records_trimmed"]), expected, "records_trimmed")
    equal(int(now["trims"]), int(earlier["trims"]) + trims, "trims")
    equal(int(now["violations_trimmed"]), int(earlier["violations_trimmed"]) + len(violations), "violations_trimmed")
    if trims:
        hold = int(outcome.fields["hold_ns"])
        last = int(now["hold_ns_last"])
        # The reply is of the cut alone.
        check(last >= hold > 0, f"hold_ns_last={last}, hold_ns={hold}")
        equal(int(now["hold_ns_max"]), max(last, int(earlier["hold_ns_max"])), "hold_ns_max")
        check(int(now["bytes_freed"]) > int(earlier["bytes_freed"]), "bytes_freed did not grow")
    invariant()
    return outcome


def clear():
    """Trims everything, violations included. Gives the history and the number of the last record."""
    # Records of a PCR that no TPM has could be left: no values name the point after them.
    measure()
    log = history()
    trim(log.tokens(log.total) + f" violations={len(log.violations(log.trimmed, log.total))}", log.total)
    return log, log.total


def invariant():
    """Starting values + remaining records = TPM, in every bank and PCR; and the starting values are those of the
    records that are gone. While records arrive see invariant_moving()."""
    log = history()
    starting, records = look()
    values = replay(starting.values, records)
    for bank in banks():
        check((bank, MEASURE_PCR) in starting.values, f"starting_pcrs has no {bank}:{MEASURE_PCR}")
    for (bank, pcr), value in values.items():
        equal(value.hex(), tpm_value(bank, pcr).hex(), f"replay of {bank}:{pcr} from the starting values (TPM expected)")
    account(log, starting)
    equal(count(), len(records), "runtime_measurements_count")
    equal(int(status()["records"]), len(records), "records in status")


def account(log, starting):
    """The starting values are exactly those after the records that are gone, with their number and violations."""
    for (bank, pcr), value in starting.values.items():
        equal(value.hex(), log.value(starting.records, bank, pcr).hex(), f"starting value of {bank}:{pcr}")
    gone = log.records[:starting.records]
    # A base that is not the reset value had to be written there, and is listed since.
    pcrs = {record.pcr for record in gone if record.pcr < 24} | {MEASURE_PCR} | {pcr for _, pcr in bases()}
    equal(set(starting.values), {(bank, pcr) for bank in banks() for pcr in pcrs}, "PCRs in starting_pcrs")
    equal(starting.violations, len(log.violations(0, starting.records)), "violations in starting_pcrs")


def invariant_moving():
    """The invariant while others append: a record is in the list before it is in the TPM, so each value of the
    TPM must be one that the replay passes between a list read before and one read after."""
    log = history()
    low = log.total
    values = {(bank, pcr): tpm_value(bank, pcr) for bank, pcr in log.values[low]}
    starting, _ = log.sync()
    for (bank, pcr), value in values.items():
        # The last record of the first list may not have been extended yet.
        passed = [log.value(point, bank, pcr) for point in range(max(low - 1, 0), log.total + 1)]
        check(value in passed, f"{bank}:{pcr}: the TPM has a value that no replay gives")
    account(log, starting)


def lists_agree():
    """All forms of the list are the same list, and each digest is that of the template data."""
    records = parse(read(BINARY))
    lines = read(ASCII).decode(errors="surrogateescape").splitlines()
    equal(len(lines), len(records), "lines of the ASCII list")
    for line, record in zip(lines, records):
        words = line.split()
        equal((int(words[0]), words[1]), (record.pcr, record.digest.hex()), "line of the ASCII list")
    for bank, size in banks().items():
        listed = parse(read(f"{IMA}/binary_runtime_measurements_{bank}"), size)
        equal(len(listed), len(records), f"records of the {bank} list")
        for one, other in zip(listed, records):
            equal(one.data, other.data, f"template data in the {bank} list")
            if not other.violation:
                equal(one.digest, hashlib.new(bank, other.data).digest(), f"digest in the {bank} list")
    equal(count(), len(records), "runtime_measurements_count")
    return records


# Processes ---------------------------------------------------------------------------------------------------------

class Child:
    """A function that runs in a process of its own. What it returns is brought back as JSON."""

    def __init__(self, function, *arguments):
        sys.stdout.flush()
        self.reader, writer = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            code = 1
            try:
                os.close(self.reader)
                # What a test that failed has left must not be in the way of others.
                _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
                os.write(writer, json.dumps({"value": function(*arguments)}).encode())
                code = 0
            except BaseException:
                os.write(writer, json.dumps({"error": traceback.format_exc()}).encode())
            finally:
                os._exit(code)
        os.close(writer)

    def result(self, seconds=60):
        """Waits for what the function returns."""
        data = b""
        deadline = time.monotonic() + seconds
        while True:
            ready, _, _ = select.select([self.reader], [], [], max(deadline - time.monotonic(), 0))
            if not ready:
                self.kill()
                raise Failure(f"a process did not end within {seconds} s")
            part = os.read(self.reader, 65536)
            if not part:
                break
            data += part
        self.reap()
        answer = json.loads(data or '{"error": "the process died"}')
        if "error" in answer:
            raise Failure(f"in a process: {answer['error']}")
        return answer["value"]

    def kill(self):
        """Kills the process and waits for its end."""
        os.kill(self.pid, signal.SIGKILL)
        self.reap()

    def reap(self):
        """Waits for the end of the process."""
        os.close(self.reader)
        return os.waitpid(self.pid, 0)[1]


@contextlib.contextmanager
def held_open(path, flags):
    """As long as it lasts, another process has a file open."""
    opened, tell = os.pipe()

    def hold():
        os.open(path, flags)
        os.write(tell, b"x")
        signal.pause()

    child = Child(hold)
    try:
        equal(select.select([opened], [], [], 10)[0], [opened], f"another process opens {path}")
        yield
    finally:
        child.kill()
        os.close(opened)
        os.close(tell)


def in_child(function, *arguments):
    """What a function returns in a process of its own, for what cannot be undone in one."""
    return Child(function, *arguments).result()


def become_nobody():
    """Gives up all privileges, for good."""
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    # A process that changed its user is not dumpable, and the files of it in /proc are root's.
    equal(_libc.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0), 0, "prctl")


def become_root_of_namespace():
    """Makes this process root of a new user namespace, with all capabilities there."""
    uid, gid = os.getuid(), os.getgid()
    os.unshare(os.CLONE_NEWUSER)
    write("/proc/self/setgroups", "deny")
    write("/proc/self/uid_map", f"0 {uid} 1")
    write("/proc/self/gid_map", f"0 {gid} 1")
    equal(os.getuid(), 0, "uid in the new user namespace")


def reboot():
    """Has the kernel reboot the machine. Does not return."""
    with open(REBOOTING, "w", encoding="ascii"):
        pass
    _libc.reboot(RB_AUTOBOOT)
    number = ctypes.get_errno()
    os.unlink(REBOOTING)
    raise OSError(number, f"rebooting: {os.strerror(number)}")


def carries_lists():
    """Whether a kexec carries the measurement list over to the next kernel: with CONFIG_IMA_KEXEC."""
    return b" ima_add_kexec_buffer\n" in read("/proc/kallsyms")


def load_kexec(carried):
    """Loads this kernel for a kexec, with the tests that the harness wants to run there and with some files for them.

    `carried` has the files' contents by name.
    """
    harness = os.path.dirname(CARRIED)
    os.makedirs(CARRIED, exist_ok=True)
    for name, content in carried.items():
        with open(os.path.join(CARRIED, name), "wb") as file:
            file.write(content)
    with open(os.path.join(harness, "job"), "a", encoding="utf-8") as file:
        file.write('export TESTS=$TESTS_AFTER_KEXEC TESTS_AFTER_KEXEC=\n')
    initrd = os.path.join(harness, "kexec", "initrd")
    with open(os.path.join(harness, "kexec", "image"), "rb") as image, open(initrd, "wb") as file:
        while part := image.read(1 << 20):
            file.write(part)
        file.write(b"\0" * (-file.tell() % 4))
        file.flush()
        names = ["/init"]
        for directory, directories, files in os.walk(harness):
            names += [directory] + [os.path.join(directory, name) for name in files]
            if directory == harness:
                directories.remove("kexec")
        subprocess.run(
            ["cpio", "--quiet", "--create", "--format=newc"], cwd="/", stdout=file, check=True,
            input="".join(name.lstrip("/") + "\n" for name in names).encode())
    subprocess.run(
        ["kexec", "--load", "--kexec-file-syscall", "--reuse-cmdline", f"--initrd={initrd}",
         os.path.join(harness, "kexec", "vmlinuz")], stdout=subprocess.DEVNULL, check=True)


def mode(path):
    """The permission bits of a file."""
    return stat.S_IMODE(os.stat(path).st_mode)


def tpm_extend(pcr, bank="sha256"):
    """Extends a PCR behind IMA's back."""
    digest = hashlib.new(bank, b"not a record").hexdigest()
    environment = dict(os.environ, TPM2TOOLS_TCTI="device:/dev/tpmrm0")
    subprocess.run(["tpm2_pcrextend", f"{pcr}:{bank}={digest}"], env=environment, check=True)
