#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""A TPM that is slow, that stops answering while IMA appends, and that answers nothing but errors in the end.

The harness stops or ends the software TPM when it is told so. What an emulated TPM answers after its end is an error
to each command, and it does not come back: this has to be the last test of one.
"""

import contextlib
import os
import threading
import time

import ima_trim_lib as lib
from ima_trim_lib import check, equal, test

# For how long the TPM is stopped, in seconds. The driver waits 0.75 s for an extend and 120 s for a value.
STOPPED = 4
# What a command of a TPM that answers may take here, in seconds.
PROMPT = 2
# How long the driver tries again and waits on its own, with each of the commands that one call sends.
PATIENCE = 20
# Values that no record has.
NOWHERE = "sha256:10=" + "5a" * 32


def order(what):
    """Has the harness do this to the TPM."""
    print(f"# swtpm: {what}", flush=True)


def answers():
    """Whether the TPM gives the value of a PCR; if not the kernel's own file has something else."""
    try:
        return bool(lib.tpm_value("sha256", lib.MEASURE_PCR))
    except (OSError, ValueError):
        return False


@contextlib.contextmanager
def stopped_tpm():
    """From the moment on that the TPM does not answer any more, until it does again."""
    begun = threading.Event()
    answered = []

    def watch():
        # Each value takes a command, and one of them the time that the TPM is stopped.
        while not answered or answered[-1] < STOPPED / 2:
            begun.at = time.monotonic()
            lib.tpm_value("sha256", lib.MEASURE_PCR)
            answered.append(time.monotonic() - begun.at)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    order(f"stop {STOPPED}")
    deadline = time.monotonic() + 30
    while not hasattr(begun, "at") or time.monotonic() < begun.at + 0.5:
        check(time.monotonic() < deadline, "the harness did not stop the TPM")
        time.sleep(0.02)
    try:
        yield
    finally:
        thread.join(60)
        check(not thread.is_alive(), "the TPM does not answer again")


def timed(function, *arguments):
    """The error that a call ends in, and how long it took, in seconds."""
    began = time.monotonic()
    error = lib.outcome_of(function, *arguments)
    return error, time.monotonic() - began


@test("with a TPM that answers verify can be read, the starting values be stated again, and IMA's extends succeed")
def _():
    lib.measure(3)
    # What a busy host takes from a guest may fall on one of them.
    took = [PROMPT]
    while took[-1] >= PROMPT:
        check(len(took) <= 5, f"each time reading verify took long: {took[1:]} s")
        error, seconds = timed(lib.read, lib.VERIFY)
        equal(error, None, "error of reading verify")
        took.append(seconds)
    equal(lib.restore(lib.read(lib.STARTING_PCRS))[0], None, "error of stating what is")
    lib.invariant()


@test("while the TPM does not answer verify waits for it, and nothing else does")
def _():
    history = lib.history()
    values = history.tokens(history.total)
    before = lib.status()
    # On a busy host the guest may be through with the first only when the TPM answers again.
    for _ in range(3):
        with stopped_tpm():
            reader = lib.Child(lambda: lib.pairs(lib.read(lib.VERIFY)))
            for path in (lib.STATUS, lib.STARTING_PCRS, lib.VIOLATIONS):
                equal(lib.outcome_of(lib.read, path), None, f"error of reading {path}")
            # Long enough for a process to begin and to read the file, and less than the TPM is stopped.
            waits = not lib.select.select([reader.reader], [], [], STOPPED / 4)[0]
            lines = reader.result()
        check("ok" in lines.values() and "mismatch" not in lines.values(), f"verify: {lines}")
        if waits:
            break
    check(waits, "verify did not wait for the TPM, or what was read beside it did, three times")
    equal(lib.status(), before, "status")
    lib.trim(values, history.total)


@test("an extend that times out: verify says whether the TPM has it, and what came before is found all the same")
def _():
    lib.measure(2)
    good = lib.history().total
    # It has to be the command that the TPM does not take any more, so nothing else may ask the TPM now.
    order(f"stop {STOPPED}")
    deadline = time.monotonic() + 30
    with lib.KernelLog() as kernel:
        logged = ""
        while "Operation Timed out" not in logged:
            check(time.monotonic() < deadline, f"no extend timed out; the kernel logged {logged!r}")
            error, took = timed(lib.measure)
            equal(error, None, "error of what IMA measures")
            check(took < PATIENCE, f"it took {took:.1f} s")
            logged += kernel.text()
    log = lib.history()
    # Whether the TPM carried the command out late or took it back is its own affair.
    value = {bank: lib.tpm_value(bank, lib.MEASURE_PCR) for bank in lib.banks()}
    lacking = {bank for bank in value if value[bank] != log.value(log.total, bank, lib.MEASURE_PCR)}
    lines = lib.pairs(lib.read(lib.VERIFY))
    for bank in value:
        equal(lines[f"{bank}:{lib.MEASURE_PCR}"], "mismatch" if bank in lacking else "ok", f"verify of {bank}")
    lib.ksft.print_msg(f"the TPM lacks the extend that timed out in: {sorted(lacking) or 'no bank'}")
    if lacking:
        lib.measure()
        lib.refuse(" ".join(f"{bank}:10={lib.tpm_value(bank, lib.MEASURE_PCR).hex()}" for bank in lacking), "ENOENT")
    log = lib.history()
    outcome = lib.request(log.tokens(good))
    equal((outcome.error, outcome.result), (None, "trimmed"), f"outcome ({outcome.text!r})")
    starting, records = lib.look()
    equal((starting.records, len(records)), (good, log.total - good), "records trimmed, and left")


@test("a TPM that answers with errors: EIO for verify and restoring, soon, the log says what it did not give")
def _():
    text = lib.read(lib.STARTING_PCRS)
    before = lib.snapshot()
    order("end")
    deadline = time.monotonic() + 30
    while answers():
        check(time.monotonic() < deadline, "the harness did not end the TPM")
        time.sleep(0.1)
    for function, arguments in ((lib.read, (lib.VERIFY,)), (lib.write, (lib.STARTING_PCRS, text))):
        with lib.KernelLog() as log:
            error, took = timed(function, *arguments)
            equal(error, "EIO", f"error of {function.__name__}")
            log.expect(r"TPM does not give the value of \w+:10")
        check(took < PATIENCE, f"{function.__name__} took {took:.1f} s")
    lib.unchanged(before, "a TPM that answers with errors")


@test("IMA goes on to append, and a request whose base is known needs no TPM")
def _():
    log = lib.history()
    begin = log.total
    error, took = timed(lib.measure, 3)
    equal(error, None, "error of what IMA measures")
    check(took < 3 * PATIENCE, f"it took {took:.1f} s")
    log = lib.history()
    equal(log.total, begin + 3, "records")
    lib.refuse(NOWHERE, "ENOENT")
    outcome = lib.request(log.tokens(log.total))
    equal((outcome.error, outcome.result, outcome.records), (None, "trimmed", log.total - log.trimmed), "outcome")
    equal(lib.read(lib.BINARY), b"", "the list")


@test("the module can be unloaded; loaded again it knows no base, does not take a stated one, and trims nothing")
def _():
    text = lib.read(lib.STARTING_PCRS)
    lib.unload()
    lib.measure(2)
    with lib.KernelLog() as log:
        error, took = timed(lib.load)
        equal(error, None, "error of loading")
        log.expect(r"loaded: \d+ records in the list, base=unknown\b")
    check(took < PATIENCE, f"loading took {took:.1f} s")
    # Records are gone, so that the TPM is not even asked: see tpm_unread.py.
    equal(lib.status()["base"], "unknown", "base")
    equal(lib.restore(text)[0], "EIO", "error of stating the values")
    equal(lib.request(NOWHERE).error, "EUCLEAN", "error of a request")
    check(os.path.exists(lib.TRIM), "the files are gone")


lib.main()
