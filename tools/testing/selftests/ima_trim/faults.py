#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Memory that runs out: every allocation that is made for the module fails once.

Needs a kernel with CONFIG_FAILSLAB, CONFIG_FAULT_INJECTION_DEBUG_FS and CONFIG_FAULT_INJECTION_STACKTRACE_FILTER. Only
allocations that a given function is an ancestor of are counted and fail: those of the module, and those that IMA, the
TPM's driver and the audit make on its behalf.
"""

import itertools
import os
import re

import ima_trim_lib as lib
from ima_trim_lib import cases, check, equal, test

lib.POLICY += lib.EVIDENCE_RULE

FAILSLAB = "/sys/kernel/debug/failslab"
# More allocations than this are not made by any call here. Loading makes the most.
MOST = 400


def function_range(name):
    """Where the code of a function of the kernel begins and ends."""
    symbols = [line.split() for line in lib.read("/proc/kallsyms").decode().splitlines() if "[" not in line]
    begin = next(int(address, 16) for address, _, symbol in symbols if symbol == name)
    return begin, min(int(address, 16) for address, _, _ in symbols if int(address, 16) > begin)


def faults_below(begin, end):
    """Lets only those allocations fail that are made by code in a range of addresses or by what it calls."""
    # IMA goes on when it cannot extend the PCRs, for whatever it measures, and nothing replays to the TPM after that.
    reject = function_range("tpm_pcr_extend")
    # An allocation that may wait for memory can fail as well. What fails is known here, the log need not have it.
    for name, value in (("ignore-gfp-wait", "N"), ("verbose", "0"), ("stacktrace-depth", "32"),
                        ("require-start", f"{begin:#x}"), ("require-end", f"{end:#x}"),
                        ("reject-start", f"{reject[0]:#x}"), ("reject-end", f"{reject[1]:#x}")):
        lib.write(f"{FAILSLAB}/{name}", value)


def faults_of_module():
    """Lets only allocations fail that are made for the module, which is loaded."""
    fields = re.search(r"^ima_trim (\d+) .* (0x[0-9a-f]+)", lib.read("/proc/modules").decode(), re.M)
    begin = int(fields[2], 16)
    faults_below(begin, begin + int(fields[1]))


def faults_of_loading():
    """Lets only allocations fail that are made by a module's own initialisation."""
    faults_below(*function_range("do_one_initcall"))


def with_fault(number, function, *arguments):
    """Calls a function while the allocation of this number fails. Gives its error, its value and whether it got there."""
    fd = os.open("/proc/thread-self/fail-nth", os.O_RDWR | os.O_CLOEXEC)
    error = value = None
    try:
        os.write(fd, b"%d" % number)
        try:
            value = function(*arguments)
        except OSError as failure:
            error = lib.error_name(failure.errno)
        left = int(os.pread(fd, 16, 0))
        os.write(fd, b"0")
    finally:
        os.close(fd)
    return error, value, left == 0


def each_fault(prepare, call, nothing, complete):
    """Makes a call again and again, and has the first allocation fail in the first, the second in the second, until all
    went well. A call that fails must fail with ENOMEM and have changed nothing, which `nothing` checks; one that does
    not must have done everything, which `complete` checks."""
    failed = survived = 0
    arguments = prepare()
    for number in itertools.count(1):
        check(number < MOST, f"more than {MOST} allocations")
        error, value, hit = with_fault(number, call, *arguments)
        if error:
            equal((error, hit), ("ENOMEM", True), f"error when allocation {number} fails, and whether one failed")
            nothing(f"allocation {number} failing")
            failed += 1
            continue
        complete(value, *arguments)
        if not hit:
            break
        survived += 1
        arguments = prepare()
    lib.ksft.print_msg(f"{failed + survived} allocations: {failed} times ENOMEM, {survived} times done all the same")
    check(failed, "no allocation failed")
    return failed, survived


@test("only what is allocated for the module fails")
def _():
    faults_of_module()
    equal(with_fault(1, lib.read, f"{lib.IMA}/violations")[2], False, "whether a read of IMA's had a fault")


def fill():
    """Appends records to be trimmed, of two PCRs and with both kinds of violations. Gives their end and a request."""
    lib.measure(2)
    lib.measure(1, 11)
    lib.violate_tomtou()
    lib.violate_open_writers()
    log = lib.history()
    log.sync()
    return log.total, log.tokens(log.total) + f" violations={len(log.violations(log.trimmed, log.total))}"


@cases("trims", [(options, options) for options in ("keep", "keep dry-run")])
def _(options):
    before = None
    # A dry run leaves what it was for.
    total, text = fill()
    fd = os.open(lib.TRIM, os.O_RDWR | os.O_CLOEXEC)

    def prepare():
        nonlocal before, total, text
        if lib.look()[0].records == total:
            total, text = fill()
        before = lib.snapshot()
        return ()

    def nothing(what):
        lib.unchanged(before, what)
        check(b"errno=ENOMEM" in lib.read(lib.TRIM), "the reply does not say errno=ENOMEM")

    def complete(_):
        reply = lib.pairs(os.pread(fd, 4096, 0))
        if "dry-run" in options:
            equal(reply["result"], "dry-run", "result")
            lib.unchanged(before, "a dry run")
        else:
            equal((reply["result"], lib.look()[0].records), ("trimmed", total), "result and records_trimmed")
        lib.invariant()

    try:
        each_fault(prepare, lambda: os.write(fd, f"{text} {options}".encode()), nothing, complete)
    finally:
        os.close(fd)


def faults_of_worker(times):
    """The first allocations of what gives memory back fail, so many, whichever task it runs in."""
    code = [(int(address, 16), symbol) for address, kind, symbol, *_ in
            (line.split() for line in lib.read("/proc/kallsyms").decode().splitlines() if "[ima_trim]" in line) if kind in "tT"]
    # The work that a request has left, by its mangled name.
    (begin,) = (address for address, symbol in code if "WorkItemPointer" in symbol and "7Trimmer7request" in symbol
                and not symbol.startswith("__pfx"))
    faults_below(begin, min(address for address, _ in code if address > begin))
    for name, value in (("task-filter", "N"), ("interval", "1"), ("times", str(times)), ("probability", "100" if times else "0")):
        lib.write(f"{FAILSLAB}/{name}", value)


@cases("a compact without memory for some of the small entries", [(f"{times} of 9", times) for times in (1, 3, 9, 0)])
def _(times):
    # The evidence of this trim is a record, too.
    lib.clear()
    lib.measure(8)
    log = lib.history()
    try:
        faults_of_worker(times)
        with lib.KernelLog() as kernel:
            outcome = lib.request(log.tokens(log.total) + " compact")
            said = re.findall(r"no memory to compact (\d+) trimmed records", kernel.text())
    finally:
        lib.write(f"{FAILSLAB}/probability", "0")
        lib.write(f"{FAILSLAB}/times", "1")
        faults_of_module()
    equal((outcome.error, outcome.records), (None, 9), "outcome")
    equal(said, [str(times)] * bool(times), "what the log says of records left as by keep")
    lib.invariant()


def fail(times):
    """Lets that many allocations fail, of those that faults_below() has named, whichever task makes them; all with -1."""
    for name, value in (("task-filter", "N"), ("interval", "1"), ("space", "0"), ("times", str(times or 1)),
                        ("probability", "100" if times else "0")):
        lib.write(f"{FAILSLAB}/{name}", value)


class Failing:
    """As long as it lasts allocations fail below a function of the kernel, or of the module."""

    def __init__(self, times, *code):
        self.times, self.code = times, code

    def __enter__(self):
        faults_below(*self.code)
        fail(self.times)

    def __exit__(self, *_):
        fail(0)
        faults_of_module()


def values():
    """What a trim that is refused must not change."""
    return lib.read(lib.STARTING_PCRS), lib.read(lib.VIOLATIONS), lib.read(lib.BINARY), lib.status()["trims"]


@test("a trim that IMA has no memory to measure: ENOMEM, nothing is changed, it is counted, and the log says so")
def _():
    _, text = fill()
    before, status = values(), lib.status()
    # A thread of the kernel has it measured.
    with lib.KernelLog() as kernel:
        with Failing(1, *function_range("process_buffer_measurement")):
            outcome = lib.request(text)
        equal((outcome.error, outcome.fields["errno"]), ("ENOMEM", "ENOMEM"), f"outcome {outcome}")
        kernel.expect("ima_trim: .*measure.*trim.*ENOMEM|ima_trim: .*trim.*measure")
    equal(values(), before, "starting_pcrs, violations, the list, and trims")
    now = lib.status()
    equal((int(now["evidence_failed"]), now["measured"]), (int(status["evidence_failed"]) + 1, status["measured"]), "evidence")
    lib.invariant()
    lib.trim(text)
    equal(lib.status()["evidence"], "measured", "evidence=")


@test("a restore that IMA has no memory to measure: ENOMEM, and nothing is changed")
def _():
    text = lib.read(lib.STARTING_PCRS)
    lib.unload()
    lib.load()
    faults_of_module()
    before = lib.snapshot()
    with Failing(1, *function_range("process_buffer_measurement")):
        equal(lib.restore(text)[0], "ENOMEM", "error")
    after = lib.snapshot()
    for each in (before, after):
        each.pop(lib.STATUS)
    equal(after, before, "what can be seen")
    equal(lib.status()["base"], "unknown", "base")
    equal(lib.restore(text)[0], None, "error of the same again")
    lib.invariant()


@cases("a trim whose thread has no memory, the allocation failing after so many bytes", [
    (f"from {begin} on", begin) for begin in range(0, 4096, 512)])
def _(begin):
    found = {}
    fields = re.search(r"^ima_trim (\d+) .* (0x[0-9a-f]+)", lib.read("/proc/modules").decode(), re.M)
    for space in range(begin, begin + 512, 64):
        _, text = fill()
        gone, before = lib.history().trimmed, lib.read(lib.STARTING_PCRS)
        fd = os.open(lib.TRIM, os.O_WRONLY | os.O_CLOEXEC)
        with Failing(1, int(fields[2], 16), int(fields[2], 16) + int(fields[1])):
            lib.write(f"{FAILSLAB}/space", str(space))
            error = lib.outcome_of(os.write, fd, f"{text} keep".encode())
        os.close(fd)
        lib.read(lib.STATUS)
        found[error] = found.get(error, 0) + 1
        check(error in (None, "ENOMEM"), f"error {error}")
        if error:
            equal((lib.look()[0].records, lib.read(lib.STARTING_PCRS)), (gone, before), "records trimmed, starting_pcrs")
        lib.invariant()
    lib.ksft.print_msg(f"{found}")


@cases("reading", [(name, path) for name, path in (
    ("trim", lib.TRIM), ("starting_pcrs", lib.STARTING_PCRS), ("verify", lib.VERIFY),
    ("violations", lib.VIOLATIONS), ("status", lib.STATUS))])
def _(path):
    before = lib.snapshot()
    expected = lib.read(path)

    def complete(value):
        equal(value, expected, "what was read")

    each_fault(lambda: (), lambda: lib.read(path), lambda what: lib.unchanged(before, what), complete)


@test("restoring the starting values")
def _():
    text = lib.read(lib.STARTING_PCRS)
    before = None

    def prepare():
        nonlocal before
        lib.unload()
        lib.load()
        faults_of_module()
        before = lib.snapshot()
        return (os.open(lib.STARTING_PCRS, os.O_RDWR | os.O_CLOEXEC),)

    def complete(_, fd):
        os.close(fd)
        equal(lib.read(lib.STARTING_PCRS), text, "starting_pcrs")
        equal(lib.status()["base"], "verified", "base")

    each_fault(prepare, lambda fd: os.write(fd, text), lambda what: lib.unchanged(before, what), complete)
    lib.invariant()


@test("loading")
def _():
    text = lib.read(lib.STARTING_PCRS)
    lib.unload()
    before = [record.raw for record in lib.parse(lib.read(lib.BINARY))]
    faults_of_loading()

    def nothing(what):
        check(not lib.loaded() and not os.path.exists(lib.DIRECTORY), f"with {what} something of the module is there")
        records = lib.lists_agree()
        equal([record.raw for record in records[:len(before)]], before, f"records after {what}")
        # A load that is measured can fail all the same.
        equal(len(lib.events(records[len(before):], "load", "foreign")), len(records) - len(before), "events after them")

    def complete(_):
        equal(lib.status()["base"], "unknown", "base")
        lib.unload()

    each_fault(lambda: (), lib.load, nothing, complete)
    lib.load()
    equal(lib.restore(text)[0], None, "error of restoring")
    faults_of_module()


@test("unloading tells every line of the starting values, though every allocation fails")
def _():
    text = lib.read(lib.STARTING_PCRS)
    fields = re.search(r"^ima_trim (\d+) .* (0x[0-9a-f]+)", lib.read("/proc/modules").decode(), re.M)
    faults_below(int(fields[2], 16), int(fields[2], 16) + int(fields[1]))
    with lib.KernelLog() as kernel:
        fail(-1)
        try:
            # It could not have been read now.
            equal(lib.outcome_of(lib.read, lib.STARTING_PCRS), "ENOMEM", "error of reading starting_pcrs")
            lib.unload()
        finally:
            fail(0)
        said = kernel.text()
    for line in text.decode().splitlines():
        check(re.search(re.escape(line) + "$", said, re.M), f"not logged: {line}")
    lib.load()
    equal(lib.restore(text)[0], None, "error of the restore")
    faults_of_module()


@test("after all that a trim without faults, and the records match the TPM")
def _():
    lib.clear()
    lib.measure()
    equal(lib.evmctl(lib.history().records), 0, "exit status")


lib.main()
