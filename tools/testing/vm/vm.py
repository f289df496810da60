#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Boots guests: a kernel, the initramfs, a software TPM with a fresh state, and the files of one job.

Runs in the build root (see enter). As a program it boots one guest; test.py boots several.
"""

import argparse
import contextlib
import fcntl
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from disk import Disk

HERE = Path(__file__).resolve().parent
CACHE = Path("/cache")
WORK = Path(os.environ.get("IMA_TRIM_WORK", CACHE / "work"))
START = int(os.environ.get("IMA_TRIM_START", time.time()))

# How long a kernel may take to its first process, in seconds: an emulated debug kernel on a busy machine takes 20.
START_LIMIT = 120

# What a guest's kernel must never say, whatever else went well.
ALARM = re.compile(
    r"WARNING:|BUG:|BUG at|Oops|Call Trace|Kernel panic|general protection fault|stack segment:"
    r"|possible recursive locking|possible circular locking|possible irq lock inversion"
    r"|inconsistent lock state|suspicious RCU usage|lock held when returning|bad unlock balance"
    r"|INFO: task .* blocked|hung_task:|INFO: rcu_|soft lockup|hard LOCKUP|self-detected stall"
    r"|UBSAN:|KASAN:|KCSAN:|kmemleak: (\d+ new|.*(disabled|empty|Cannot))"
    r"|refcount_t:|list_(add|del) corruption|slab-use-after-free|segfault at|traps: .* trap "
)

# A line by which a guest has something done to its machine:
#   swtpm: end, swtpm: stop <seconds>                    its TPM is ended, or stopped for so long
#   disk: work, disk: fail, disk: fail-writes            what its disk does from now on
#   power: cut <milliseconds> <percent>, power: again    it loses its power after so long, and of what its disk has not
#                                                        flushed so much stays; or it switches itself off. Either way it is
#                                                        to be booted again, with its disk
ORDER = re.compile(r"^# (swtpm|disk|power): ([a-z-]+)(?: (\d+))?(?: (\d+))?\n", re.M)


def step(text):
    """Prints one progress line with the time elapsed since the command was given."""
    print(f"[{int(time.time()) - START:4d}s] {text}", file=sys.stderr, flush=True)


# What greets a person in an interactive guest.
BASHRC = """\
PS1='guest:\\w# '
poweroff() { exit; }
cd /sys/kernel/security
cat <<'END'

A guest with IMA, a software TPM and, unless --no-load was given, ima_trim.
The files are in ima/ and ima_trim/ here, the PCRs in /sys/class/tpm/tpm0/pcr-*/.
Without a policy IMA has one record only. To have it measure what root runs and reads:
    echo 'measure func=FILE_CHECK uid=0' >ima/policy
Leave with Ctrl-D.

END
"""


class Failure(Exception):
    """Something that the harness needs is missing or did not work; the text says what and what to do."""


@dataclass
class Job:
    """What one guest is to do, and on what machine."""

    name: str
    # "tests", "script", "shell" or "root"; see init.
    action: str
    # Kernel command line beyond what every guest gets.
    append: str = ""
    # "yes", "no", or the banks to be active, comma-separated.
    tpm: str = "yes"
    memory: int = 1024
    limit: int = 120
    # Files to run, relative to `directory`, a path in the guest.
    tests: list = field(default_factory=list)
    # Those that run after a kexec; the others have to load the next kernel, from /harness/kexec.
    tests_after_kexec: list = field(default_factory=list)
    test_limit: int = 120
    directory: str = "/harness"
    # More variables of the tests' environment.
    environment: dict = field(default_factory=dict)
    # Host directories or files to bring into the guest: (host path, path below /harness).
    files: list = field(default_factory=list)
    # Whether init loads the module.
    load: bool = False
    # More of QEMU's options.
    devices: list = field(default_factory=list)
    # More arguments for swtpm_setup, which is only needed where the TPM is not one like any other.
    tpm_setup: list = field(default_factory=list)
    # A disk, /dev/vda once its driver is loaded.
    disk: Disk = None
    # Called with what the guest wrote to its output port, piece by piece.
    on_output: Callable = None


@dataclass
class Result:
    """What came of a job."""

    job: Job
    directory: Path
    output: str
    alarms: list
    # Why the guest is not to be believed; None when it reached its verdict.
    problem: str
    seconds: float
    # "cut" or "again", if that is what it asked for: see ORDER. It has no verdict then.
    power: str = ""

    def console_tail(self, lines=25):
        """The last lines of the guest's console."""
        return "\n".join(read(self.directory / "console.log").splitlines()[-lines:])


def read(path):
    """The text of a guest's file, which may not be there."""
    try:
        return path.read_bytes().decode(errors="replace").replace("\r\n", "\n")
    except FileNotFoundError:
        return ""


def make_overlay(job, kernel, image, directory):
    """Packs the job's own files as a second initramfs, which the kernel unpacks over the first."""
    tree = directory / "overlay"
    harness = tree / "harness"
    harness.mkdir(parents=True)
    shutil.copy(HERE / "init", tree / "init")
    files = list(job.files)
    if job.tests_after_kexec:
        files += [(kernel / "vmlinuz", "kexec/vmlinuz"), (image, "kexec/image")]
    for source, target in files:
        target = harness / target
        target.parent.mkdir(parents=True, exist_ok=True)
        if Path(source).is_dir():
            shutil.copytree(source, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)
    columns, rows = shutil.get_terminal_size()
    settings = {
        "ACTION": job.action,
        "COLUMNS": str(columns),
        "ROWS": str(rows),
        "DIRECTORY": job.directory,
        "LOAD": "1" if job.load else "",
        "MODULE": "/harness/ima_trim.ko",
        "SCRIPT": job.tests[0] if job.action == "script" else "",
        "TESTS": " ".join(job.tests),
        "TESTS_AFTER_KEXEC": " ".join(job.tests_after_kexec),
        "TEST_TIMEOUT": str(job.test_limit),
        **job.environment,
    }
    (harness / "bashrc").write_text(BASHRC)
    (harness / "job").write_text("".join(f"export {key}={shlex.quote(value)}\n" for key, value in settings.items()))
    image = directory / "overlay.cpio"
    with open(image, "wb") as output:
        subprocess.run(
            "find . -print0 | cpio --quiet --null --create --format=newc --owner=0:0",
            shell=True, cwd=tree, stdout=output, check=True,
        )
    shutil.rmtree(tree)
    return image


def start_tpm(job, directory):
    """Starts a software TPM that was never used before; returns its process and QEMU's options for it."""
    if job.tpm == "no":
        return None, []
    state = directory / "tpm"
    state.mkdir()
    log = open(directory / "tpm.log", "wb")
    banks = [] if job.tpm == "yes" else ["--pcr-banks", job.tpm]
    if banks or job.tpm_setup:
        subprocess.run(
            ["swtpm_setup", "--tpm2", "--tpmstate", str(state), *banks, *job.tpm_setup, "--overwrite"],
            stdout=log, stderr=log, stdin=subprocess.DEVNULL, check=True, timeout=30,
        )
    socket = directory / "tpm.sock"
    process = subprocess.Popen(
        ["swtpm", "socket", "--tpm2", "--flags", "startup-clear", "--terminate",
         "--tpmstate", f"dir={state}", "--ctrl", f"type=unixio,path={socket}"],
        stdout=log, stderr=log, stdin=subprocess.DEVNULL,
    )
    deadline = time.time() + 10
    while not socket.exists():
        if process.poll() is not None or time.time() > deadline:
            process.kill()
            raise Failure(f"swtpm did not start: {read(directory / 'tpm.log')}")
        time.sleep(0.02)
    return process, [
        "-chardev", f"socket,id=tpm,path={socket}",
        "-tpmdev", "emulator,id=tpm0,chardev=tpm",
        "-device", "tpm-tis,tpmdev=tpm0",
    ]


class Orders:
    """Does to a guest's machine what the guest asks for."""

    def __init__(self, job, process, tpm):
        self.job = job
        self.process = process
        self.tpm = tpm
        self.power = ""
        # How much stays of what the disk has not flushed, in hundredths.
        self.percent = 100

    def obey(self, text):
        """Does what this piece of its output asks for."""
        for device, what, first, second in ORDER.findall(text):
            if device == "swtpm" and self.tpm:
                if what == "end":
                    self.tpm.kill()
                else:
                    self.tpm.send_signal(signal.SIGSTOP)
                    later(int(first), self.tpm.send_signal, signal.SIGCONT)
            elif device == "disk":
                self.job.disk.set_state(what)
            elif device == "power":
                self.power = what
                if what == "cut":
                    self.percent = int(second)
                    later(int(first) / 1000, self.process.kill)

    def end(self):
        """What the end of the machine does to its disk."""
        if not self.job.disk:
            return
        self.job.disk.set_state("work")
        if self.power == "cut":
            self.job.disk.lose_power(self.percent)
        else:
            self.job.disk.switch_off()


def later(seconds, function, *arguments):
    """Calls a function later, unless this process has ended by then."""
    timer = threading.Timer(seconds, function, arguments)
    timer.daemon = True
    timer.start()


def machine(accelerator, cpus, memory):
    """QEMU's options for a machine with nothing but what a guest needs."""
    # With five levels of page tables a kernel with KASAN takes a wild access for one of its own: while it identifies
    # its first CPU it does not know for a moment how many there are. The emulation does string instructions byte by
    # byte, so it is better not to offer them as the fast way to copy and to clear.
    processor = "host,-la57" if accelerator == "kvm" else "max,-la57,-erms,-fsrm,-fzrm,-fsrs,-fsrc"
    return [
        "qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
        "-accel", accelerator, "-cpu", processor,
        "-smp", str(cpus), "-m", str(memory),
    ]


def accelerator(kernel):
    """KVM where it really boots a guest, else emulation. What the probe found holds until the machine is rebooted.

    With IMA_TRIM_KVM=0 it is emulation everywhere.
    """
    emulated = "tcg,thread=multi"
    if os.environ.get("IMA_TRIM_KVM") == "0" or not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return emulated
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    known = CACHE / f"kvm-{boot}"
    if not known.exists():
        step("trying whether KVM boots a guest here (10 s at most)")
        for old in CACHE.glob("kvm-*"):
            old.unlink()
        with tempfile.TemporaryDirectory() as directory:
            console = Path(directory) / "console"
            # Without a root file system the kernel panics at the end of its own start and leaves.
            try:
                subprocess.run(
                    machine("kvm", 1, 512) + [
                        "-serial", f"file:{console}", "-kernel", str(kernel / "vmlinuz"),
                        "-append", "console=ttyS0 panic=-1"],
                    timeout=10, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL,
                )
                works = "Unable to mount root" in read(console)
            except subprocess.TimeoutExpired:
                works = False
        known.write_text("works" if works else "does not work")
    return "kvm" if known.read_text() == "works" else emulated


def boot(job, kernel, image):
    """Runs one job in a guest of its own.

    An emulated kernel now and then dies, or hangs, while it starts: QEMU has one processor run into an instruction that
    another one is just changing. Nothing of ours has run by then, and it is started once more.
    """
    result = boot_once(job, kernel, image)
    if result.problem and job.action != "shell" and not has_started(result.directory):
        step(f"{job.name}: the kernel ended before its first process began ({result.problem}): once more")
        shutil.rmtree(f"{result.directory}.first", ignore_errors=True)
        result.directory.rename(f"{result.directory}.first")
        result = boot_once(job, kernel, image)
    return result


def has_started(directory):
    """Whether a guest's kernel came as far as its first process."""
    return "Run /init as init process" in read(directory / "console.log")


def boot_once(job, kernel, image):
    """Runs one job, whatever comes of it."""
    directory = WORK / "guests" / job.name
    directory.parent.mkdir(parents=True, exist_ok=True)
    # Two runs of one job would write to the same logs.
    lock = open(f"{directory}.lock", "w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        step(f"waiting for another guest called {job.name}")
        fcntl.flock(lock, fcntl.LOCK_EX)
    began = time.time()
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    # Paths of sockets are limited to about a hundred bytes.
    scratch = Path(tempfile.mkdtemp(prefix="guest-"))
    overlay = make_overlay(job, kernel, image, directory)
    initrd = scratch / "initrd"
    with open(initrd, "wb") as output:
        for part in (image, overlay):
            output.write(part.read_bytes())
            # The kernel looks for the next archive at a multiple of four bytes.
            output.write(b"\0" * (-output.tell() % 4))
    overlay.unlink()

    quiet = job.action == "shell"
    # An oops or a panic ends the guest at once, as QEMU does not reboot it.
    append = (
        f"console=ttyS0 {'quiet' if quiet else 'ignore_loglevel'} panic=-1 oops=panic"
        " sysctl.kernel.hung_task_timeout_secs=30 " + job.append
    )
    tpm, tpm_options = start_tpm(job, scratch)
    attached = contextlib.ExitStack()
    disk = attached.enter_context(job.disk.served(scratch / "disk.sock")) if job.disk else []
    command = machine(accelerator(kernel), 2, job.memory) + tpm_options + disk + job.devices + [
        "-kernel", str(kernel / "vmlinuz"), "-initrd", str(initrd), "-append", append,
    ]
    if quiet:
        # Ctrl-C is the guest's.
        command += ["-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"]
    else:
        command += ["-serial", f"file:{directory / 'console.log'}"]
    command += ["-serial", f"file:{directory / 'output'}", "-serial", f"file:{directory / 'dmesg.log'}"]

    problem = None
    started = False
    process = subprocess.Popen(
        command, stdin=None if quiet else subprocess.DEVNULL, stderr=open(directory / "qemu.log", "wb"))
    orders = Orders(job, process, tpm)
    shown = 0
    try:
        while True:
            try:
                process.wait(0.1)
            except subprocess.TimeoutExpired:
                pass
            text = read(directory / "output")
            # Whole lines only: the rest comes with the next look.
            end = text.rfind("\n") + 1
            if end > shown:
                orders.obey(text[shown:end])
                if job.on_output:
                    job.on_output(text[shown:end])
                shown = end
            if process.returncode is not None:
                break
            if quiet:
                continue
            elapsed = time.time() - began
            if not started and elapsed > START_LIMIT:
                started = has_started(directory)
                if not started:
                    problem = f"its kernel did not start within {START_LIMIT} s and was stopped"
                    break
            if elapsed > job.limit:
                problem = f"the guest did not end within {job.limit} s and was stopped"
                break
    finally:
        for child in (process, tpm):
            if child and child.poll() is None:
                child.kill()
                child.wait()
        attached.close()
        orders.end()
        shutil.rmtree(scratch, ignore_errors=True)

    output = read(directory / "output")
    complete = output.endswith("# verdict complete\n")
    # A machine that was told to lose its power may have ended before, and not by that.
    power = orders.power if process.returncode == {"cut": -signal.SIGKILL, "again": 0}.get(orders.power) else ""
    if not problem and process.returncode and not power:
        problem = f"QEMU failed: {read(directory / 'qemu.log').strip()}"
    if not problem and not complete and not power:
        problem = "the guest ended before it gave its verdict"
    if problem or complete:
        power = ""
    return Result(job, directory, output, find_alarms(directory), problem, time.time() - began, power)


def find_alarms(directory):
    """The lines of a guest's kernel log, each once, that no good run has."""
    alarms = {}
    for log in ("console.log", "dmesg.log"):
        for line in read(directory / log).splitlines():
            # The time on the console, facility and level in the log.
            line = re.sub(r"^(\[ *\d+\.\d+\] |\w+ *:\w+ *: )", "", line)
            if ALARM.search(line):
                alarms[line] = True
    return list(alarms)


def shown(path):
    """A path of the cache as it is on the machine, outside of the build root."""
    path = Path(path)
    if not path.is_relative_to(CACHE):
        return path
    return Path(os.environ.get("IMA_TRIM_CACHE", CACHE)) / path.relative_to(CACHE)


def report_failure(result):
    """Says why a guest failed, with what is needed to find the cause."""
    name = result.job.name
    for line in result.alarms:
        print(f"error: guest {name}: the kernel's log has: {line}", file=sys.stderr)
    if result.problem:
        print(f"error: guest {name}: {result.problem}", file=sys.stderr)
    if result.problem or result.alarms:
        print(f"--- the last lines of its console ({shown(result.directory)}/console.log):", file=sys.stderr)
        print(result.console_tail(), file=sys.stderr)
        print("---", file=sys.stderr, flush=True)


def made_by(*command):
    """The path that a script of the harness prints of what it made."""
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(f"error: {command[0]} failed (status {done.returncode}), see above")
    return Path(done.stdout.strip())


def get_kernel(debug=None):
    """The suite's current kernel, or the debug kernel of that name, made where it is missing."""
    return made_by(HERE / "kernel", *(["--debug", debug] if debug else []))


def get_image(*arguments):
    """The initramfs, made where it is missing."""
    return made_by(HERE / "image", *arguments)


def build_module(kernel, *arguments):
    """The module for that kernel, built where it is not up to date."""
    return made_by(HERE / "module", kernel, *arguments)


def build_test_module(kernel):
    """The module that tests load beside it, built where it is not up to date."""
    return made_by(HERE / "module", "--test", kernel)


def make_keys():
    """The directory with the keys and certificates of the tests, made where it is missing."""
    return made_by(HERE / "keys")


def build_program():
    """The program ima-trim, built where it is not up to date."""
    return made_by(HERE / "program")


def guest_files(kernel, *modules):
    """The selftests and the kernel tree's helpers for them, laid out as there; the demonstration; and modules."""
    return [
        (kernel / "linux/tools/testing/selftests/kselftest", "selftests/kselftest"),
        (HERE.parent / "selftests", "selftests"),
        (HERE.parent / "demo", "demo"),
        # Tests read in these what the module looks up.
        *((HERE.parents[2] / "rust" / name, name) for name in ("layout.rs", "symbols.rs")),
        *((module, module.name) for module in modules),
    ]


def main():
    parser = argparse.ArgumentParser(description="boots one guest")
    parser.add_argument("--name", default="run", help="names the directory of the guest's logs")
    parser.add_argument("--debug", metavar="NAME", help="the debug kernel of that name, see the directory debug")
    parser.add_argument("--append", default="", help="more of the kernel's command line")
    parser.add_argument("--tpm", default="yes", help="yes, no, or the active banks, comma-separated")
    parser.add_argument("--memory", type=int, default=1024, help="MiB")
    parser.add_argument("--limit", type=int, default=120, help="seconds after which the guest is stopped")
    parser.add_argument("--no-load", action="store_true", help="leave the loading of the module to the script")
    parser.add_argument("--program", action="store_true", help="have the program ima-trim in the guest")
    parser.add_argument("--prepare", action="store_true", help="only make what a guest needs")
    parser.add_argument("script", nargs="?", help="what to run in the guest; a shell when absent")
    arguments = parser.parse_args()

    if not arguments.script and not arguments.prepare and not sys.stdin.isatty():
        sys.exit("error: an interactive guest needs a terminal; name a script to run one without")
    kernel, image = get_kernel(arguments.debug), get_image()
    if arguments.prepare:
        step(f"ready for Linux {(kernel / 'release').read_text().strip()}")
        return 0
    job = Job(
        arguments.name, "script" if arguments.script else "shell",
        append=arguments.append, tpm=arguments.tpm, memory=arguments.memory, limit=arguments.limit,
        files=guest_files(kernel, build_module(kernel)), load=not arguments.no_load,
    )
    if arguments.program:
        job.files.append((build_program(), "ima-trim"))
    if arguments.script:
        job.files.append((arguments.script, "script"))
        job.tests = ["/harness/script"]
        job.on_output = lambda text: print(
            "".join(line for line in text.splitlines(True) if not line.startswith(("# end ", "# verdict "))),
            end="", flush=True)
    step(f"booting Linux {(kernel / 'release').read_text().strip()}")
    try:
        result = boot(job, kernel, image)
    except Failure as failure:
        sys.exit(f"error: {failure}")
    if job.action == "shell":
        return 0
    report_failure(result)
    status = re.search(r"^# end /harness/script (\d+)$", result.output, re.M)
    step(f"the guest ended after {result.seconds:.0f} s")
    if result.problem or result.alarms or not status:
        return 1
    return int(status[1])


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
