#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""What the bench measures in a guest: see tools/testing/vm/bench, which runs it and makes a table of what it prints.

    bench.py trims|load|many <most records> <repeats>

Records are made by the module of the tests with the TPM suspended meanwhile, as an emulated one takes longer for a record than
all else together. Each line that begins with "result" is one measurement, as JSON.
"""

import contextlib
import gc
import hashlib
import json
import os
import re
import statistics
import struct
import subprocess
import sys
import time

sys.path.insert(0, "/harness/selftests/ima_trim")
import ima_trim_lib as lib  # noqa: E402
from ima_trim_lib import check, equal  # noqa: E402

PARAMETERS = "/sys/module/ima_trim_test/parameters"
TRACING = "/sys/kernel/tracing"
# For how long the threads that watch run before an operation, and for how long nothing is done as a control, in seconds.
WARM = 0.05
CONTROL = 2
FEW = 100
# How many nodes and buckets a hold of flush sees, and how many holds an empty hash table takes: see rust/ima/reclaim.rs.
BATCH = 64
HOLDS = 1024 // BATCH
# A short hold, in nanoseconds.
SHORT_HOLD = 10_000
# The values of PCRs, once the module is loaded.
values = None


def result(what, **values):
    """Prints one measurement."""
    print("result " + json.dumps({"what": what, **values}), flush=True)


def parameter(name, value=None):
    """Reads or writes a parameter of the tests' module."""
    path = f"{PARAMETERS}/{name}"
    if value is not None:
        lib.write(path, str(value))
    return lib.read(path).decode().split()


def append(records):
    """Has IMA append records. Gives the nanoseconds that it took."""
    parameter("tpm", "N")
    parameter("append", records)
    parameter("tpm", "Y")
    return int(parameter("append")[0])


class Values:
    """The value of sha256:10 after each record that the module of the tests had IMA append.

    It is computed from what these records are: the kernel finds the place of every page that is read of a list from the
    head on, which takes minutes where the list is long. If it were wrong, no request would find it.
    """

    SIZE = 64

    BEFORE = struct.pack("=I", len("sha256:") + 1 + 32) + b"sha256:\0"
    BETWEEN = struct.pack("=I7sI", 7, b"record\0", SIZE)

    def __init__(self, value):
        self.value = value
        self.number = self.appended()

    @staticmethod
    def appended():
        """How many buffers were ever measured."""
        return int(parameter("append")[1])

    @classmethod
    def data(cls, number):
        """The template data of the record of this buffer."""
        buffer = str(number).encode().ljust(cls.SIZE, b"\0")
        return cls.BEFORE + hashlib.sha256(buffer).digest() + cls.BETWEEN + buffer

    def last(self):
        """The value after the last record."""
        for number in range(self.number + 1, self.appended() + 1):
            digest = hashlib.sha256(self.data(number)).digest()
            self.value = hashlib.sha256(self.value + digest).digest()
            self.number = number
        return self.value


def timed(function, *arguments):
    """What a function gives, and the nanoseconds that it took."""
    gc.collect()
    since = time.monotonic_ns()
    value = function(*arguments)
    return value, time.monotonic_ns() - since


def request(text):
    """A request, which has to succeed. Memory may still be given back after it."""
    outcome = lib.Outcome(*lib.write_and_read(lib.TRIM, text))
    equal(outcome.error, None, f"error of a request ({outcome.text!r})")
    return outcome


def longest_hold():
    """For how long the last trim held the mutex at a time, at most, in ns. Waits until its memory is given back."""
    return int(lib.status()["hold_ns_last"])


def begin():
    """Loads the module, and trims all that is in the list."""
    global values
    lib.load(parameters="guard=0")
    lib.measure()
    values = Values(lib.tpm_value("sha256", 10))
    fill(0)


def fill(records):
    """Empties the list, and IMA's hash table, and appends so many records. Gives the request for the last one."""
    request(f"sha256:10={values.last().hex()} flush")
    longest_hold()
    append(records)
    return f"sha256:10={values.last().hex()}"


@contextlib.contextmanager
def watched(name):
    """While it lasts a thread of the tests' module watches. Gives a function for what it had to wait, in ns: at most, and at
    most in 9 of 10 waits.
    """
    if name == "appender":
        parameter("tpm", "N")
    parameter(name, "Y")
    time.sleep(WARM)
    parameter(name, "Y")
    try:
        yield lambda: dict(zip(("longest", "most_of_them"), map(int, parameter(name)[1:])))
    finally:
        parameter(name, "N")
        parameter("tpm", "Y")


def delete(records):
    """The kernel's own deletion."""
    lib.write(lib.ASCII, f"{records}\n")


def trace(functions):
    """Traces calls of the kernel's functions, on the clock that Python's monotonic_ns() has."""
    if not os.path.isdir(f"{TRACING}/events"):
        subprocess.run(["mount", "-t", "tracefs", "tracefs", TRACING], check=True)
    lib.write(f"{TRACING}/trace_clock", "mono")
    lib.write(f"{TRACING}/kprobe_events", functions)


def clear_trace():
    """Forgets what was traced."""
    with open(f"{TRACING}/trace", "w", encoding="ascii"):
        pass


def allocated(function):
    """The bytes that a function, in a process of its own, had the kernel allocate, whatever was freed of them."""
    read_end, write_end = os.pipe()

    def child():
        os.read(read_end, 1)
        function()

    process = lib.Child(child)
    events = ("kmem/kmalloc", "kmem/kmem_cache_alloc", "vmalloc/alloc_vmap_area")
    try:
        for event in events:
            lib.write(f"{TRACING}/events/{event}/filter", f"common_pid == {process.pid}")
            lib.write(f"{TRACING}/events/{event}/enable", "1")
        clear_trace()
        os.write(write_end, b"x")
        process.result(600)
    finally:
        for event in events:
            lib.write(f"{TRACING}/events/{event}/enable", "0")
    # Between the marks: what is around them is Python's.
    text = lib.read(f"{TRACING}/trace").decode()
    inside = text[text.index("request begins"):text.index("request ends")]
    return sum(int(number) for number in re.findall(r"(?:bytes_alloc|alloc_vmap_area: .*size)=\s*(\d+)", inside))


def marked_request(text):
    """A request, with marks around its write in the trace."""
    fd = os.open(lib.TRIM, os.O_RDWR)
    marker = os.open(f"{TRACING}/trace_marker", os.O_WRONLY)
    data, begin, end = text.encode(), b"request begins", b"request ends"
    os.write(marker, begin)
    os.write(fd, data)
    os.write(marker, end)


# The parts of the bench --------------------------------------------------------------------------------------------

def often(records, repeats):
    """How many times to watch a trim of so many records: more where it takes little time."""
    return repeats * max(1, min(5, 30_000 // records))


def trims(most, repeats):
    """Trims of 100 records and more, by the module and then by the kernel's own deletion."""
    sizes = []
    while not sizes or sizes[-1] < most:
        sizes.append(min(sizes[-1] * 10 if sizes else FEW, most))
    begin()
    # Code that is run for the first time has yet to be translated by the emulator.
    for mode in ("dry-run", "keep", "flush"):
        with watched("probe"):
            request(f"{fill(FEW)} {mode}")
            longest_hold()

    for _ in range(repeats):
        for watch in ("probe", "appender"):
            with watched(watch) as waits:
                time.sleep(CONTROL)
                result("hold", method="nothing", watch=watch, records=0, **waits())
    # How long a request with keep takes, for each number of records.
    requests = {records: [] for records in sizes}
    for records in sizes:
        for _ in range(often(records, repeats)):
            for mode in ("keep", "flush"):
                for watch in ("probe", "appender"):
                    text = fill(records)
                    if mode == "keep":
                        with watched(watch) as waits:
                            lib.write(lib.TRIM, f"{text} dry-run")
                            result("hold", method="dry-run", watch=watch, records=records, **waits())
                    with watched(watch) as waits:
                        _, took = timed(lib.write, lib.TRIM, f"{text} {mode}")
                        # What is done when the request has returned takes the mutex with flush only. So does reading
                        # how far it is, which is no part of a trim.
                        if mode == "flush":
                            longest_hold()
                        else:
                            requests[records].append(took)
                        waited = waits()
                    result("hold", method=mode, watch=watch, records=records, own=longest_hold(), **waited)
                    equal(lib.Outcome(None, lib.read(lib.TRIM)).records, records, "records trimmed")
            # As many stretches of work as flush has holds, each as long as a short one of these.
            parameter("stretch", f"{HOLDS + records // BATCH} {SHORT_HOLD}")
            result("stretch", records=records, longest=int(parameter("stretch")[0]))

    trace("p:evidence audit_log_start\n")
    banks = " ".join(lib.banks())
    for _ in range(repeats):
        for mode in ("keep", "flush"):
            text = fill(most)
            _, replay = timed(request, f"{text} dry-run")
            parameter("hash", f"{most} {banks}")
            result("replay", records=most, banks=len(lib.banks()), replay=replay, bare=int(parameter("hash")[0]))
            clear_trace()
            lib.write(f"{TRACING}/events/kprobes/enable", "1")
            since = time.monotonic_ns()
            outcome = request(f"{text} {mode}")
            end = time.monotonic_ns()
            longest_hold()
            back = time.monotonic_ns()
            lib.write(f"{TRACING}/events/kprobes/enable", "0")
            # The first thing after the cut is evidence for the audit log.
            evidence = re.findall(r" ([\d.]+): evidence:", lib.read(f"{TRACING}/trace").decode())
            equal(len(evidence), 1, "cuts that the tracer saw")
            cut = int(float(evidence[0]) * 1e9) - int(outcome.fields["hold_ns"])
            result("trim", method=mode, records=most, whole=end - since, aside=end - cut, back=back - cut)

    for mode in ("keep", "flush"):
        fill(0)
        empty = lib.slab()
        text = fill(most)
        full = lib.slab()
        request(f"{text} {mode}")
        longest_hold()
        result("memory", method=mode, records=most, took=full - empty, freed=full - lib.slab())

    for records in (FEW, most):
        text = fill(records)
        for what in (f"{text} dry-run", f"{text} keep"):
            bytes_allocated = allocated(lambda what=what: marked_request(what))
            result("allocated", records=records, request=what.split()[-1], bytes=bytes_allocated)

    # From here on the module would not know any more where the list begins.
    fill(0)
    lib.unload()
    # First, as what it leaves in IMA's hash table makes each append slower than the one before.
    empty = lib.slab()
    append(most)
    full = lib.slab()
    delete(most)
    result("memory", method="delete", records=most, took=full - empty, freed=full - lib.slab())
    for records in sizes:
        for _ in range(often(records, repeats)):
            for watch in ("probe", "appender"):
                append(records)
                with watched(watch) as waits:
                    _, took = timed(delete, records)
                    # There is as much time for a long append as in a request.
                    time.sleep(max(statistics.median(requests[records]) - took, 0) / 1e9)
                    result("hold", method="delete", watch=watch, records=records, **waits())
                if lib.count():
                    delete(lib.count())
    for _ in range(repeats):
        append(most)
        _, whole = timed(delete, most)
        result("trim", method="delete", records=most, whole=whole, aside=whole, back=whole)


def load(most, repeats):
    """Loading with a short list and with a long one."""
    trace("p:symbol register_kprobe\np:value tpm_pcr_read\n")
    for event in ("module/module_load", "kprobes"):
        lib.write(f"{TRACING}/events/{event}/enable", "1")
    for records in (10, most):
        append(records - lib.count())
        for _ in range(repeats):
            clear_trace()
            since = time.monotonic_ns()
            lib.load()
            whole = time.monotonic_ns() - since
            text = lib.read(f"{TRACING}/trace").decode()

            def at(event, which, text=text):
                times = re.findall(rf" ([\d.]+): {event}:", text)
                return int(float(times[which]) * 1e9) - since

            begun, found, replayed = at("module_load", 0), at("symbol", -1), at("value", 0)
            result("load", records=records, whole=whole, linking=begun, symbols=found - begun,
                   layout_and_replay=replayed - found, tpm=whole - replayed)
            lib.unload()


def many(most, repeats):
    """One long list."""
    del repeats
    begin()
    took = append(most)
    text = f"sha256:10={values.last().hex()}"
    _, replay = timed(request, f"{text} dry-run")
    with watched("probe") as waits:
        before = int(lib.status()["bytes_freed"])
        since = time.monotonic_ns()
        outcome, whole = timed(request, f"{text} flush")
        own = longest_hold()
        back = time.monotonic_ns() - since
        waited = waits()
    equal(outcome.records, most, "records trimmed")
    result("many", records=most, append=took, replay=replay, whole=whole, back=back, own=own,
           freed=int(lib.status()["bytes_freed"]) - before, **waited)


def prepare():
    """Has IMA measure what the module of the tests gives it."""
    os.makedirs(lib.STATE, exist_ok=True)
    os.makedirs(lib.FILES, exist_ok=True)
    lib.be_quiet()
    lib.POLICY += "measure func=CRITICAL_DATA label=ima_trim_test\n"
    lib.load_policy()
    lib.load(lib.TEST_MODULE)
    check(parameter("tpm") == ["Y"], "IMA has no TPM")


def main():
    part, most, repeats = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    prepare()
    {"trims": trims, "load": load, "many": many}[part](most, repeats)
    print("done", flush=True)


if __name__ == "__main__":
    main()
