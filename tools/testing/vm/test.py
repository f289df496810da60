#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Runs the tests: the host's with cargo, building and installing, what the module calls, Keylime, and the selftests in one
guest for each scenario.

    test.py [--debug kernel]... [--kernel-only] [--seconds n] [--seed text] [name]

All of them, or the scenario of that name, or "host", "install", "protocols", "calls", "compile" or "keylime"; "package" is
run only if it is asked for. With --debug it is the scenarios and "calls", on each of the debug kernels named (see the
directory debug) in place of the stock kernel. With --kernel-only it is these, too, on the stock kernel: what another suite
or flavour makes different. With --seconds the tests that take a set time take this one, and what they counted is shown; with
--seed random choices are those of another run that had it. Runs in the build root (see enter). The last line is "N passed, N
failed", and the exit status says the same.
"""

import argparse
import concurrent.futures
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import vm
from disk import Disk

TOOLS = vm.HERE.parents[1]
SELFTESTS = TOOLS / "testing" / "selftests" / "ima_trim"
# How long cargo may take, with the download and the build of what the tests need.
HOST_LIMIT = 1800
# What scenarios call the kernel of the distribution.
STOCK = "stock"
# How much longer a debug kernel takes, and how much more memory.
DEBUG_SLOWER = 4
DEBUG_MEMORY = 2048
# The tests that need a disk, with what it is like, and the modules of the distribution's kernel for it.
DISKS = {
    "whole_power.py": {"mebibytes": 64},
    "whole_disk.py": {"mebibytes": 64},
    # As slow as one with platters, so that a kill hits what waits for it.
    "whole_kills.py": {"mebibytes": 256, "flush_seconds": 0.02},
    "whole_hibernate.py": {"mebibytes": 1024, "cached": False},
}
DISK_MODULES = ("virtio_blk", "ext4")
# How many lines of what a test that failed has said are shown with its name: the end of a traceback.
REASON = 8


class Tally:
    """Counts of one suite, and of all."""

    lock = threading.Lock()

    def __init__(self, counts):
        self.shows_counts = counts
        self.passed = 0
        self.failed = 0

    def add(self, name, passed, problems, details=""):
        """Takes in what one test program or guest gave, and shows it. Every problem is one failed test."""
        with self.lock:
            self.passed += passed
            self.failed += len(problems)
            counts = f"{passed} passed" + (f", {len(problems)} failed" if problems else "")
            vm.step(f"{name + ' ':.<44} {counts}")
            for problem in problems:
                print(textwrap.indent(problem, " " * 8), file=sys.stderr)
            if self.shows_counts and not problems:
                said = re.findall(r"^# (?!begin |end ).*", details, re.M)
                print(textwrap.indent("\n".join(said), " " * 8), file=sys.stderr, flush=True)
            if problems and details:
                lines = details.splitlines()
                print("--- its output:" if len(lines) <= 60 else "--- the last of its output:", file=sys.stderr)
                print("\n".join(lines[-60:]) + "\n---", file=sys.stderr, flush=True)


def judge_tap(text, status):
    """The number of passed tests in a program's TAP, and a list of what is wrong with it, each with what it said."""
    passed = 0
    problems = []
    seen = 0
    plan = None
    said = []
    for line in text.splitlines():
        if line.startswith("#"):
            said = [*said[1 - REASON:], line]
            continue
        if match := re.match(r"1\.\.(\d+)", line):
            plan = int(match[1])
        elif match := re.match(r"(not )?ok\b", line):
            seen += 1
            # A guest has all that the tests need, so that a skipped test is a defect of the harness.
            if match[1] or re.search(r"#\s*SKIP", line, re.I):
                problems.append("\n".join([line, *said]))
            else:
                passed += 1
            said = []
        elif line.startswith("Bail out!"):
            problems.append(line)
    if plan is None:
        problems.append("no TAP plan")
    elif plan != seen:
        problems.append(f"{plan} tests planned, {seen} reported")
    elif not seen:
        problems.append("no test")
    if status in (124, 137):
        problems.append("stopped at its time limit")
    elif status and not problems:
        problems.append(f"exit status {status}, though no test failed")
    return passed, problems


def read_scenarios(kernel, asked, seconds, seed):
    """The guests to boot with the kernel of that name: see the head of the file.

    `asked` is the scenario that was asked for, if it is one; `seconds` a time that is set, and `seed` a seed, or None.
    """
    path = SELFTESTS / "scenarios"
    scenarios = []
    try:
        lines = path.read_text().splitlines()
    except FileNotFoundError:
        raise vm.Failure(f"{path} is missing") from None
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        fields = [field.strip() for field in line.split("|")]
        if len(fields) != 6 or not fields[4].isdigit() or not fields[5]:
            raise vm.Failure(
                f"{path}:{number}: not 'name | kernels | kernel arguments | tpm | seconds | test files': {line}")
        name, kernels, append, tpm, limit, tests = fields
        tests, _, after_kexec = (part.split() for part in f" {tests} ".partition(" kexec "))
        missing = [test for test in tests + after_kexec if not os.access(SELFTESTS / test, os.X_OK)]
        if missing:
            raise vm.Failure(f"{path}:{number}: not there or not executable: {' '.join(missing)}")
        wanted = {"all", kernel, *([f"({kernel})"] if name == asked else [])}
        if wanted.isdisjoint(kernels.split()):
            continue
        limit = int(limit) * (1 if kernel == STOCK else DEBUG_SLOWER) + (seconds or 0)
        job = vm.Job(
            name, "tests", append=append, tpm=tpm, limit=limit, tests=tests, tests_after_kexec=after_kexec,
            # A test that hangs leaves some time to those after it.
            test_limit=max(20, limit * 4 // 5 + (seconds or 0) // 5), directory="/harness/selftests/ima_trim",
        )
        job.environment["IMA_TRIM_DISPOSABLE"] = "1"
        if seconds:
            job.environment["TEST_SECONDS"] = str(seconds)
        if seed:
            job.environment["TEST_SEED"] = seed
        if kernel != STOCK:
            job.environment["TEST_DEBUG"] = "1"
            job.name = f"{kernel}-{name}"
            job.memory = DEBUG_MEMORY
            # With interrupts in threads the serial port has been served before its handler runs, which then looks as
            # if nobody cared.
            job.append = f"noirqdebug {job.append}"
        scenarios.append(job)
    return scenarios


def needs_untested(job):
    """Whether a scenario also needs the module as it is where the kernel is newer than those that were tested."""
    return "untested.py" in job.tests


def needs_keys(job):
    """Whether a scenario also needs the module with certificates built in, and the keys."""
    return any(test.startswith(("signed", "whole_signed")) for test in job.tests)


def needs_program(job):
    """Whether a scenario also needs the program ima-trim."""
    return any(test.startswith("whole") for test in job.tests)


def build_signed(kernel):
    """The module with certificates of the tests' keys built in."""
    keys = vm.make_keys()
    names = (keys / "built-in").read_text().split()
    return vm.build_module(kernel, "CERT=" + ",".join(str(keys / f"{name}.pem") for name in names))


def needs_disk(job):
    """Whether a scenario needs a disk."""
    return any(test in DISKS for test in job.tests)


def disk_for(job):
    """The disk that a scenario needs, empty, or None."""
    return next((Disk(**DISKS[test]) for test in job.tests if test in DISKS), None)


def disk_modules(kernel):
    """The modules for a disk, in the order in which they are to be loaded."""
    done = subprocess.run(
        [vm.HERE / "modules", kernel, *DISK_MODULES], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise vm.Failure("the modules for a guest's disk cannot be had, see above")
    return [Path(path) for path in done.stdout.split()]


def run_host(tally, kernel):
    """The host tests, which need the kernel's type information beside the sources."""
    vm.step("host: cargo test")
    environment = dict(
        os.environ, CARGO_TARGET_DIR=str(vm.WORK / "target"), CARGO_TERM_COLOR="never",
        IMA_TRIM_BTF=str(kernel / "btf"))
    try:
        done = subprocess.run(
            ["cargo", "test", "--locked", "--no-fail-fast"], cwd=TOOLS, env=environment,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=HOST_LIMIT)
    except subprocess.TimeoutExpired as timeout:
        output = (timeout.output or b"").decode(errors="replace")
        tally.add("host", 0, [f"stopped at its time limit of {HOST_LIMIT} s"], output)
        return
    output = done.stdout.decode(errors="replace")
    passed = sum(map(int, re.findall(r"^test result: .*? (\d+) passed;", output, re.M)))
    problems = re.findall(r"^test .* \.\.\. FAILED$", output, re.M)
    if done.returncode and not problems:
        problems.append(f"cargo test ended with status {done.returncode}")
    if not passed and not problems:
        problems.append("no test")
    tally.add("host", passed, problems, output)


def run_program(tally, name, *command):
    """A program of this directory that writes TAP."""
    done = subprocess.run([vm.HERE / command[0], *command[1:]], stdout=subprocess.PIPE, text=True, check=False)
    passed, problems = judge_tap(done.stdout, done.returncode)
    tally.add(name, passed, problems, done.stdout)


def run_guest(tally, job, kernel, image):
    """One scenario: one guest, or as many as it asks for, one after the other with the same disk: see vm.ORDER."""
    said = vm.WORK / "guests" / f"{job.name}.said"
    left = set(job.tests + job.tests_after_kexec)
    boots = 0
    pending = ""
    resumes = False

    # Called with whole lines as they come, so that each program's result shows when it has ended.
    def on_output(text):
        nonlocal pending
        pending += re.sub(r"^# begin \S+\n", "", text, flags=re.M) if resumes else text
        while match := re.search(r"^# end (\S+) (\d+)\n", pending, re.M):
            section = pending[:match.start()]
            pending = pending[match.end():]
            judge(match[1], section, int(match[2]))

    def judge(test, section, status):
        section = re.sub(r"\A.*^# begin \S+\n", "", section, flags=re.M | re.S)
        passed, problems = judge_tap(section, status)
        left.discard(test)
        boot = f", boot {boots + 1}" if job.disk and boots else ""
        tally.add(f"{job.name}: {test}{boot}", passed, problems, section)

    job.on_output = on_output
    while True:
        vm.step(f"{job.name}: booting a guest" + (" again" if boots else ""))
        try:
            result = vm.boot(job, kernel, image)
        except vm.Failure as failure:
            tally.add(job.name, 0, [str(failure)])
            return
        problems = [f"the kernel's log has: {line}" for line in result.alarms]
        if result.problem:
            problems.append(result.problem)
        if not result.power:
            problems += [f"no result from {test}" for test in sorted(left)]
        if problems:
            console = f"... of its console, {vm.shown(result.directory)}/console.log:\n"
            details = pending + console + result.console_tail(40)
            tally.add(job.name, 0, problems, details)
        if not result.power or result.problem:
            return
        begun = re.findall(r"^# begin (\S+)\n", pending, re.M)
        if result.power == "cut" and begun:
            # Its last test was to be under way when the power was cut, and cannot say that it was.
            judge(begun[-1], f"{pending}\nok the power was cut\n", 0)
            pending = ""
        else:
            # The test that is under way goes on in the next boot, as if nothing had been.
            resumes = True
        with open(said, "a" if boots else "w", encoding="utf-8") as file:
            # What it was just saying it has not said.
            file.write(result.output[:result.output.rfind("\n") + 1])
        boots += 1
        job.environment["BOOT"] = str(boots)
        job.files = [*(file for file in job.files if file[1] != "said"), (said, "said")]
        kept = result.directory.with_name(f"{result.directory.name}.{boots}")
        shutil.rmtree(kept, ignore_errors=True)
        result.directory.rename(kept)


def main():
    parser = argparse.ArgumentParser(description="runs the tests")
    parser.add_argument("--debug", action="append", default=[], metavar="KERNEL", help="run on this debug kernel")
    parser.add_argument("--kernel-only", action="store_true", help="leave out what does not depend on the kernel")
    parser.add_argument("--seconds", type=int, help="how long the tests take that take a set time")
    parser.add_argument("--seed", help="what tests that make random choices make them from: they print it")
    parser.add_argument("name", nargs="?", default="", help="a scenario, host, install, protocols, calls, compile, keylime or package")
    arguments = parser.parse_args()
    kernels = arguments.debug or [STOCK]
    # Of what is not asked for by name.
    left_out = arguments.debug or (arguments.kernel_only and not arguments.name)
    host, install, protocols, keylime = (
        arguments.name in ("", name) and not left_out for name in ("host", "install", "protocols", "keylime"))
    scenarios = {
        kernel: read_scenarios(kernel, arguments.name, arguments.seconds, arguments.seed) for kernel in kernels}
    # It takes long, and another machine.
    package = arguments.name == "package" and not arguments.debug
    calls, wrong = (arguments.name in ("", name) for name in ("calls", "compile"))
    known = sorted({job.name for jobs in scenarios.values() for job in jobs})
    for kernel, jobs in scenarios.items():
        names = ("", arguments.name, f"{kernel}-{arguments.name}")
        scenarios[kernel] = [job for job in jobs if not arguments.name or job.name in names]
    if not any((host, install, protocols, calls, wrong, keylime, package, *scenarios.values())):
        raise vm.Failure(
            f"no tests are called {arguments.name}; there are: host install protocols calls compile keylime package {' '.join(known)}")

    tally = Tally(counts=bool(arguments.seconds))

    # The pool would wait for all its jobs. What still runs ends with this process and its namespace; what has ended
    # counts.
    def give_up(number, _):
        os.write(sys.stdout.fileno(), f"{tally.passed} passed, {tally.failed} failed\n".encode())
        os._exit(128 + number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, give_up)
    image = vm.get_image()
    # Three at a time: a guest waits for its TPM as long as it has its processors busy.
    with concurrent.futures.ThreadPoolExecutor(max_workers=3) as pool:
        running = []
        # No guest runs beside a build, which would take most of the processors from it.
        trees = {name: vm.get_kernel(None if name == STOCK else name) for name in scenarios}
        for name, jobs in scenarios.items():
            kernel = trees[name]
            vm.step(f"testing with Linux {(kernel / 'release').read_text().strip()}")
            if host:
                running.append(pool.submit(run_host, tally, kernel))
            if install:
                running.append(pool.submit(run_program, tally, "install", "install", kernel))
            if protocols:
                running.append(pool.submit(run_program, tally, "protocols", "protocols", "--tap", kernel))
            if package:
                running.append(pool.submit(run_program, tally, "package", "../package/run", kernel))
            if not any((jobs, calls, wrong, keylime)):
                continue
            module = vm.build_module(kernel)
            if calls:
                calls_name = "calls" if name == STOCK else f"{name}-calls"
                running.append(pool.submit(run_program, tally, calls_name, "calls", module, kernel))
            if calls and name == STOCK:
                running.append(pool.submit(run_program, tally, "calls-signed", "calls", build_signed(kernel), kernel))
            if wrong and name == STOCK and not left_out:
                running.append(pool.submit(run_program, tally, "compile", "compile", module, kernel))
            if keylime:
                # It is the longest of all.
                running.append(pool.submit(run_program, tally, "keylime", "../keylime/run", kernel, module, vm.build_program()))
            if not jobs:
                continue
            files = vm.guest_files(kernel, module, vm.build_test_module(kernel))
            untested = []
            if any(map(needs_untested, jobs)):
                untested = [(vm.build_module(kernel, "TESTED=7.1"), "ima_trim_untested.ko")]
            keys = []
            if any(map(needs_keys, jobs)):
                keys = [(build_signed(kernel), "ima_trim_signed.ko"), (vm.make_keys(), "keys")]
            program = []
            if any(map(needs_program, jobs)):
                program = [(vm.build_program(), "ima-trim")]
            modules = []
            if any(map(needs_disk, jobs)):
                modules = disk_modules(kernel)
            # The probe, if one is needed, is not for two guests at once.
            vm.accelerator(kernel)
            # The longest first, so that it does not run alone at the end.
            for job in sorted(jobs, key=lambda job: -job.limit):
                job.files = [
                    *files, *(untested if needs_untested(job) else []), *(keys if needs_keys(job) else []),
                    *(program if needs_program(job) else [])]
                job.disk = disk_for(job)
                if job.disk:
                    job.files += [(module, module.name) for module in modules]
                    job.environment["DISK_MODULES"] = " ".join(module.name for module in modules)
                running.append(pool.submit(run_guest, tally, job, kernel, image))
        for job in concurrent.futures.as_completed(running):
            job.result()
    vm.step("done")
    sys.stderr.flush()
    print(f"{tally.passed} passed, {tally.failed} failed", flush=True)
    return 1 if tally.failed or not tally.passed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except vm.Failure as error:
        sys.exit(f"error: {error}")
