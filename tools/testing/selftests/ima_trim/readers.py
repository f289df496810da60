#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""The kernel's own exclusion: nobody trims while the list is open, and who has it open is said. Readers that come and go are
waited for."""

import os
import signal
import statistics
import time

import ima_trim_lib as lib
from ima_trim_lib import cases, check, equal, test


WAIT = "/sys/module/ima_trim/parameters/reader_wait_ms"


def matching():
    """A request that would trim."""
    lib.measure(3)
    history = lib.history()
    violations = len(history.violations(history.trimmed, history.total - 1))
    return history, history.tokens(history.total - 1) + f" violations={violations}"


def busy(text, path, flags, message):
    """Checks that a request is refused with EBUSY while a file is open, and that the log says why."""
    before = lib.snapshot()
    with lib.held_open(path, flags):
        outcome = lib.logged(lambda: lib.request(text), message)
    equal((outcome.error, outcome.result, outcome.fields.get("errno")), ("EBUSY", "refused", "EBUSY"), "outcome")
    lib.unchanged(before, "a refused request")


def timed(text):
    """A request, and how long it took, in seconds."""
    began = time.monotonic()
    return lib.request(text), time.monotonic() - began


@test("how long readers are waited for is a parameter: a second, unless it is said otherwise")
def _():
    lib.reload()
    equal(lib.read(WAIT), b"1000\n", "reader_wait_ms")


@cases("a module that is loaded with a reader_wait_ms= that it does not take: EINVAL", [
    (value, value) for value in ("60001", "-1", "", "soon", "1s")])
def _(value):
    text = lib.read(lib.STARTING_PCRS)
    lib.unload()
    try:
        with lib.KernelLog() as log:
            equal(lib.outcome_of(lambda: lib.load(parameters=f"reader_wait_ms={value}")), "EINVAL", "error")
            log.expect("reader_wait_ms")
        check(not lib.loaded(), "it is loaded")
    finally:
        if not lib.loaded():
            lib.load()
        lib.restore(text)


@test("a process that opens, reads and closes a list all the time keeps no trim from happening")
def _():
    lib.reload()
    asked, ask = os.pipe()

    def reader():
        times = 0
        while not lib.select.select([asked], [], [], 0)[0]:
            lib.read(lib.BINARY)
            times += 1
        return times

    lib.measure(50)
    child = lib.Child(reader)
    found = []
    try:
        for _ in range(lib.tries(40)):
            lib.measure()
            log = lib.history()
            violations = len(log.violations(log.trimmed, log.total - 40))
            outcome, took = timed(f"{log.tokens(log.total - 40)} violations={violations}")
            found.append((outcome.error, round(took, 3)))
    finally:
        os.write(ask, b"x")
        times = child.result()
    lib.ksft.print_msg(f"the list was read {times} times; the slowest request took {max(took for _, took in found)} s")
    equal({error for error, _ in found}, {None}, f"errors of {found}")
    lib.invariant()


@cases("a reader that stays", [(f"EBUSY after {ms} ms", ms) for ms in (0, 300, 1000, 2500)])
def _(ms):
    lib.reload(f"reader_wait_ms={ms}")
    equal(lib.read(WAIT), f"{ms}\n".encode(), "reader_wait_ms")
    history, text = matching()
    with lib.held_open(lib.BINARY, os.O_RDONLY):
        outcome, took = timed(text)
    equal(outcome.error, "EBUSY", "error")
    check(ms / 1000 <= took < ms / 1000 + (2 if lib.DEBUG else 0.4), f"it took {took:.3f} s")
    lib.trim(text, history.total - 1)


@test("a reader that goes while it is waited for: trimmed")
def _():
    lib.reload("reader_wait_ms=60000")
    history, text = matching()

    def leave():
        fd = os.open(lib.BINARY, os.O_RDONLY)
        os.write(tell, b"x")
        time.sleep(0.5)
        os.close(fd)

    ready, tell = os.pipe()
    child = lib.Child(leave)
    os.read(ready, 1)
    outcome, took = timed(text)
    child.result()
    equal((outcome.error, outcome.result), (None, "trimmed"), "outcome")
    check(0.2 < took < 10, f"it took {took:.3f} s")
    equal(lib.history().trimmed, history.total - 1, "records trimmed")


@test("whoever waits for a reader can be killed, and nothing is changed")
def _():
    _, text = matching()
    before = lib.snapshot()
    took = {}
    with lib.held_open(lib.BINARY, os.O_RDONLY):
        for what, function in (("idle", signal.pause), ("waiting", lambda: lib.write(lib.TRIM, text))):
            took[what] = []
            for _ in range(5):
                child = lib.Child(function)
                time.sleep(0.2)
                began = time.monotonic()
                os.kill(child.pid, signal.SIGKILL)
                equal(child.reap(), signal.SIGKILL, "status")
                took[what].append(time.monotonic() - began)
    limit = statistics.median(took["idle"]) + (0.3 if lib.DEBUG else 0.1)
    check(statistics.median(took["waiting"]) < limit, f"until they were gone: {took}")
    lib.unchanged(before, "a request that was killed")


@test("who is refused all the time does not fill the log")
def _():
    lib.reload("reader_wait_ms=0")
    _, text = matching()
    with lib.held_open(lib.BINARY, os.O_RDONLY), lib.KernelLog() as log:
        began = time.monotonic()
        for _ in range(100):
            equal(lib.request(text).error, "EBUSY", "error")
        took = time.monotonic() - began
        lines = lib.re.findall("trim refused: .*open for reading", log.text())
    check(1 <= len(lines) <= 15 * (1 + took / 5), f"{len(lines)} lines in {took:.1f} s")


LISTS = [(os.path.basename(path), path) for path in lib.list_files()]


@cases("EBUSY while it is open for reading", LISTS)
def _(path):
    history, text = matching()
    busy(text, path, os.O_RDONLY, "open for reading")
    busy(text + " dry-run", path, os.O_RDONLY, "open for reading")
    lib.trim(text, history.total - 1)


@test("EBUSY while a process that is not the trimmer has it open, until it dies")
def _():
    history, text = matching()
    ready, tell = os.pipe()

    def hold():
        fd = os.open(lib.ASCII, os.O_RDONLY)
        os.read(fd, 10)
        os.write(tell, b"x")
        time.sleep(60)

    child = lib.Child(hold)
    os.read(ready, 1)
    before = lib.read(lib.STARTING_PCRS)
    equal(lib.request(text).error, "EBUSY", "error")
    equal(lib.read(lib.STARTING_PCRS), before, "starting_pcrs")
    child.kill()
    os.close(ready)
    os.close(tell)
    lib.trim(text, history.total - 1)


@test("counters, policy and the module's own files may stay open")
def _():
    history, text = matching()
    paths = [f"{lib.IMA}/runtime_measurements_count", f"{lib.IMA}/violations", lib.STATUS, lib.STARTING_PCRS,
             lib.VERIFY, lib.VIOLATIONS, lib.TRIM]
    fds = [os.open(path, os.O_RDONLY) for path in paths]
    try:
        lib.trim(text, history.total - 1)
    finally:
        for fd in fds:
            os.close(fd)


@test("all files can be read while the list is open")
def _():
    fd = os.open(lib.BINARY, os.O_RDONLY)
    try:
        os.read(fd, 100)
        for path in lib.list_files() + [lib.STATUS, lib.STARTING_PCRS, lib.VERIFY, lib.VIOLATIONS, lib.TRIM]:
            lib.read(path)
    finally:
        os.close(fd)


@test("list and starting values read while the list is open belong together, while others trim")
def _():
    asked, ask = os.pipe()

    def trimmer():
        done = {"trimmed": 0, "EBUSY": 0}
        while not lib.select.select([asked], [], [], 0.01)[0]:
            lib.measure(2)
            log = lib.history()
            violations = f" violations={len(log.violations(log.trimmed, log.total))}"
            for _ in range(5):
                outcome = lib.request(log.tokens(log.total) + violations)
                done[outcome.error or outcome.result] += 1
                if not outcome.error:
                    break
        return done

    child = lib.Child(trimmer)
    looks = []
    deadline = time.monotonic() + 60
    try:
        # Until there were some trims between them.
        while len(looks) < 40 or len({starting.records for starting, _ in looks}) < 3:
            check(time.monotonic() < deadline, f"{len(looks)} looks, and hardly anything was trimmed meanwhile")
            looks.append(lib.look())
            time.sleep(0.02)
    finally:
        os.write(ask, b"x")
        done = child.result()
        os.close(asked)
        os.close(ask)
    check(done["trimmed"] > 1, f"nothing was trimmed meanwhile: {done}")

    # The trimmer's archive has every record; what was read must be what it says.
    log = lib.history(again=True)
    for starting, records in looks:
        lib.account(log, starting)
        expected = log.records[starting.records:starting.records + len(records)]
        equal([record.raw for record in records], [record.raw for record in expected], "list after the starting values")
    lib.invariant()


@cases("with the guard nobody can open it for writing", LISTS)
def _(path):
    for flags in (os.O_WRONLY, os.O_RDWR):
        equal(lib.outcome_of(os.open, path, flags), "EBUSY", f"opening with flags {flags}")


@test("without the guard, from here on")
def _():
    lib.reload("guard=0 reader_wait_ms=0")
    equal(lib.status()["guard"], "off", "guard")


@cases("EBUSY while it is open for writing", LISTS)
def _(path):
    history, text = matching()
    busy(text, path, os.O_WRONLY, "open for writing")
    busy(text, path, os.O_RDWR, "open for writing")
    lib.trim(text, history.total - 1)


@test("a refused request leaves no reader counted: a native writer can open the list")
def _():
    history, text = matching()
    lib.refuse("sha256:10=" + "5a" * 32, "ENOENT")
    busy(text, lib.BINARY, os.O_RDONLY, "open for reading")
    lib.trim(text, history.total - 1)
    os.close(os.open(lib.BINARY, os.O_RDWR))


@test("with the guard again")
def _():
    lib.reload()
    equal(lib.outcome_of(os.open, lib.BINARY, os.O_RDWR), "EBUSY", "opening for writing")
    lib.invariant()


lib.main()
