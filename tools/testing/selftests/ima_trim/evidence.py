#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""What the module leaves behind of what it does: records in the list, made before the thing is done, with a policy that
measures them; and audit records.

Has to be the first of its boot: it begins without a policy.
"""

import os
import time

import ima_trim_lib as lib
from ima_trim_lib import cases, check, equal, test

lib.POLICY += lib.EVIDENCE_RULE + "measure func=CRITICAL_DATA label=ima_trim_test\n"

# How long a slow TPM takes for a command, in ms.
SLOW = 500


class Known:
    """What one test leaves for the next."""

    load = None


def tokens(log, point):
    """A request that trims to a point, whatever violations are before it."""
    return log.tokens(point) + f" violations={len(log.violations(log.trimmed, point))}"


def counts():
    """The counts of evidence in `status`."""
    status = lib.status()
    return int(status["measured"]), int(status["evidence_failed"])


def said(*names):
    """The events of these kinds in all records since boot."""
    return lib.events(lib.history().records, *names)


def pcrs():
    """The values that IMA's PCR has in the TPM, and how many records there are."""
    return [lib.tpm_value(bank, lib.MEASURE_PCR) for bank in lib.banks()], lib.count()


def instance():
    """The line that says which load of the module it was."""
    return f"instance={lib.status()['instance']}\n"


def load_text():
    """What is to be measured of a load that was just made."""
    now = lib.status()
    gone = int(now["records_trimmed"]) + int(now["foreign_records"])
    violations = lib.read(f"{lib.IMA}/violations").decode().strip()
    return (f"version=2\n{instance()}guard={now['guard']}\nsignatures=off\nkernel_deleted={gone}\n"
            f"kernel_violations={violations}\n{lib.read(lib.STARTING_PCRS).decode()}")


def evident(text, left):
    """Checks that the trim of a request that leaves so many records appends the one record that it should."""
    measured, failed = counts()
    outcome = lib.trim(text)
    equal(outcome.result, "trimmed", "result")
    starting, records = lib.look()
    equal(len(records), left + 1, "records left, that of the trim among them")
    record = records[-1]
    digest, name, data = record.fields
    algorithm = digest.split(b":")[0]
    equal((record.template, record.pcr, record.violation), (b"ima-buf", 10, False), "template and PCR of the record")
    equal(name, b"trim\0", "name of the event")
    equal(data, instance().encode() + starting.text, "data of the event")
    equal(digest, algorithm + b":\0" + lib.hashlib.new(algorithm.decode(), data).digest(), "digest of the data")
    equal(counts(), (measured + 1, failed), "measured= and evidence_failed=")
    equal(lib.status()["evidence"], "measured", "evidence=")
    lib.lists_agree()
    return outcome


@test("without a rule nothing is appended and nothing has failed; the log says it once; the audit record is written")
def _():
    Known.load = load_text()
    equal(lib.status()["evidence"], "none", "evidence=")
    log = lib.history()
    with lib.AuditLog() as audit:
        equal(lib.trim(log.tokens(log.total)).records, 1, "records trimmed")
        equal((lib.count(), counts(), lib.status()["evidence"]), (0, (0, 0), "none"), "records, and the evidence in status")
        lib.load_policy()
        equal(len(audit.records("ima_trim")), 1, "audit records")
    kernel = lib.subprocess.run(["dmesg"], stdout=lib.subprocess.PIPE, check=True).stdout.decode()
    equal(len(lib.re.findall("ima_trim: the event .*: no rule of the IMA policy", kernel)), 1, "lines in the log that say why")


@test("the load is measured as soon as there is a rule, at the next request, as it was then")
def _():
    lib.load_policy()
    lib.measure(2)
    log = lib.history()
    before = lib.count()
    equal(lib.request("junk").error, "EINVAL", "error of what is no request")
    equal(lib.count(), before, "records after what is no request")
    equal(lib.request(f"{tokens(log, log.total)} dry-run").result, "dry-run", "result")
    equal(said("load"), [("load", Known.load)], "load events")
    equal((counts(), lib.count(), lib.status()["evidence"]), ((1, 0), before + 1, "measured"), "evidence, and records")
    equal(lib.request(f"{tokens(log, log.total)} dry-run").result, "dry-run", "result")
    equal((counts(), lib.count()), ((1, 0), before + 1), "evidence, and records, after one more request")


@test("a trim appends exactly one record, whose data is the instance and starting_pcrs as read")
def _():
    lib.measure(5)
    log = lib.history()
    evident(tokens(log, log.total - 2), 2)


@test("what is left is then the record alone, if everything was trimmed; the next trim trims it and leaves its own")
def _():
    log = lib.history()
    for _ in range(5):
        evident(tokens(log, log.total), 0)
        log.sync()


@test("with violations and several PCRs")
def _():
    lib.measure(2)
    lib.measure(2, pcr=11)
    lib.violate_open_writers()
    lib.violate_tomtou(pcr=11)
    lib.measure(2)
    log = lib.history()
    point = log.total - 1
    evident(log.tokens(point, pcrs=[10, 11]) + " violations=2", 1)
    starting, _ = lib.look()
    check({pcr for _, pcr in starting.values} >= {10, 11} and starting.violations >= 2, "too little for this test")


@cases("each way to treat the memory", [("keep", "keep"), ("compact", "compact"), ("flush", "flush")])
def _(mode):
    lib.measure(3)
    log = lib.history()
    evident(f"{tokens(log, log.total - 1)} {mode}", 1)


# What leaves nothing ------------------------------------------------------------------------------------------------

REFUSED = [
    ("one that does not match", lambda log: "sha256:10=" + "5a" * 32, "ENOENT"),
    ("one that does not state the violations", lambda log: log.tokens(log.total), "EBADMSG"),
    ("a malformed one", lambda log: "junk", "EINVAL"),
    ("one for another instance", lambda log: f"{tokens(log, log.total)} instance={'5a' * 16}", "EKEYREJECTED"),
]


@cases("nothing of a refused request, and the TPM is not extended", REFUSED)
def _(make, error):
    lib.violate_open_writers()
    log = lib.history()
    before = pcrs()
    with lib.AuditLog() as audit:
        # This compares the lists and status before and after.
        lib.refuse(make(log), error)
        equal(pcrs(), before, "values of the TPM, and records")
        equal(audit.records("ima_trim"), [], "audit records")


@cases("nothing of a request that changes nothing, and the TPM is not extended", [
    ("a dry run", lambda log: tokens(log, log.total) + " dry-run", "dry-run"),
    ("a dry run with flush", lambda log: tokens(log, log.total) + " dry-run flush", "dry-run"),
    ("a repeat", lambda log: tokens(log, log.trimmed), "nothing"),
    ("a repeat with flush", lambda log: tokens(log, log.trimmed) + " flush", "nothing"),
])
def _(make, result):
    lib.measure(2)
    log = lib.history()
    before, values = lib.snapshot(), pcrs()
    with lib.AuditLog() as audit:
        equal(lib.request(make(log)).result, result, "result")
        if "flush" not in make(log):
            lib.unchanged(before, "a request that changes nothing")
        equal(pcrs(), values, "values of the TPM, and records")
        equal(audit.records("ima_trim"), [], "audit records")


@test("nothing of reading, be it verify")
def _():
    before = pcrs()
    for name in os.listdir(lib.DIRECTORY):
        lib.read(os.path.join(lib.DIRECTORY, name))
    equal(pcrs(), before, "values of the TPM, and records")


@test("nothing of a request while a reader stays")
def _():
    lib.measure(2)
    log = lib.history()
    before = pcrs()
    with lib.held_open(lib.BINARY, os.O_RDONLY):
        equal(lib.request(tokens(log, log.total)).error, "EBUSY", "error")
    equal(pcrs(), before, "values of the TPM, and records")


# Before the cut -----------------------------------------------------------------------------------------------------

def trimmer(text):
    """Makes a request in a process of its own. Gives the error and how long it took."""
    def trim():
        began = time.monotonic()
        return lib.request(text).error, time.monotonic() - began
    return lib.Child(trim)


def drain():
    """Trims all, so that there are few records."""
    log = lib.history()
    lib.trim(tokens(log, log.total), log.total)
    log.sync()


@test("the record is there before others are gone: the number of records rises first, then it falls")
def _():
    drain()
    lib.measure(8)
    log = lib.history()
    before = lib.count()
    passed = [before]
    lib.ask_test_module("slow", SLOW)
    try:
        child = trimmer(tokens(log, log.total - 2))
        lib.wait_for(lambda: (lib.count() not in passed and passed.append(lib.count())) or lib.count() < before, "the trim")
        equal(child.result()[0], None, "error")
    finally:
        lib.ask_test_module("slow", 0)
    if passed[-1] != lib.count():
        passed.append(lib.count())
    equal(passed, [before, before + 1, 3], "numbers of records, one after the other")
    lib.invariant()


@test("what is appended during the replay comes before the record, and stays")
def _():
    drain()
    for attempt in range(10):
        lib.ask_test_module("append", 2500)
        log = lib.history()
        child = trimmer(log.tokens(log.total))
        # Later each time that it came too late.
        time.sleep(max(0.04 - 0.004 * attempt, 0.002))
        path = lib.new_file()
        lib.measure_file(path)
        os.unlink(path)
        equal(child.result()[0], None, "error")
        records = lib.look()[1]
        log.sync()
        names = [record.hint for record in records]
        equal(sorted(names), sorted([path.encode(), b"trim"]), "records left")
        if names == [path.encode(), b"trim"]:
            break
    else:
        check(False, "none was appended during a replay")
    lib.invariant()


@test("a cut that is refused when it was announced leaves the announcement; the same request later has no second one")
def _():
    known = lib.has_htable()
    lib.reload("reader_wait_ms=0")
    drain()
    lib.measure(6)
    log = lib.history()
    text = tokens(log, log.total - 2)
    before, starting, measured = lib.count(), lib.read(lib.STARTING_PCRS), counts()[0]
    trims = said("trim")
    lib.ask_test_module("slow", SLOW)
    try:
        child = trimmer(text)
        lib.wait_for(lambda: lib.count() == before + 1, "the announcement")
        fd = os.open(lib.BINARY, os.O_RDONLY)
        equal(child.result()[0], "EBUSY", "error with a reader at the cut")
    finally:
        lib.ask_test_module("slow", 0)
    equal((lib.read(lib.STARTING_PCRS), lib.count()), (starting, before + 1), "starting_pcrs, and records")
    os.close(fd)
    announced = said("trim")[len(trims):]
    equal((len(announced), counts()), (1, (measured + 1, 0)), "trims announced, and evidence")
    lib.invariant()

    outcome = lib.trim(text)
    equal((outcome.error, lib.status()["evidence"]), (None, "measured"), "error of the same request, and evidence=")
    equal(said("trim")[len(trims):], announced * (1 if known else 2), "trims announced after the same request")
    equal(counts(), (measured + 2, 0), "measured= and evidence_failed=")
    equal(announced[0][1], instance() + lib.read(lib.STARTING_PCRS).decode(), "data of the event")
    lib.reload()


@test("trimmers that race: a record for each trim, none lost and none twice")
def _():
    lib.clear()
    lib.measure(12)
    log = lib.history()
    begin, end, before = log.trimmed, log.total, lib.count()
    measured, failed = counts()
    points = range(begin + 1, end + 1)
    children = [lib.Child(lambda text=log.tokens(point): lib.request(text).result) for point in points]
    trims = [child.result() for child in children].count("trimmed")
    check(trims > 0, "nothing was trimmed")
    equal(counts(), (measured + trims, failed), "measured= and evidence_failed=")
    log.sync()
    equal(lib.count(), before - (log.trimmed - begin) + trims, "records left, those of the trims among them")
    equal(len(set(lib.events(log.records[end:], "trim"))), trims, "different records of trims")
    lib.invariant()


@test("each trim is found to be measured, though others append as fast as IMA can")
def _():
    drain()
    asked, ask = os.pipe()

    def appender():
        appended = 0
        while not lib.select.select([asked], [], [], 0)[0]:
            lib.measure(3)
            appended += 3
        return appended

    measured, failed = counts()
    children = [lib.Child(appender) for _ in range(2)]
    trims = 0
    try:
        while trims < lib.tries(120):
            log = lib.history()
            trims += lib.request(tokens(log, log.total)).result == "trimmed"
    finally:
        os.write(ask, b"xx")
        appended = sum(child.result() for child in children)
    lib.ksft.print_msg(f"{trims} trims, {appended} records appended meanwhile")
    equal(counts(), (measured + trims, failed), "measured= and evidence_failed=")
    lib.history()
    lib.invariant()


# Loading, restoring, and what others do -------------------------------------------------------------------------------

@test("a load is measured before anything else can be done, with what IMA itself counts")
def _():
    lib.violate_open_writers()
    lib.measure(2)
    log = lib.history()
    lib.trim(tokens(log, log.total - 1))
    text = lib.read(lib.STARTING_PCRS)
    old, loads, foreign = lib.status()["instance"], len(said("load")), len(said("foreign"))
    lib.unload()
    lib.load()
    expected = load_text()
    check(lib.status()["instance"] != old, "the instance is the same as before")
    check(lib.re.fullmatch("[0-9a-f]{32}", lib.status()["instance"]), f"instance={lib.status()['instance']}")
    records = lib.parse(lib.read(lib.BINARY))
    equal(lib.events(records, "load")[-1:], [("load", expected)], "the last load event")
    check(f"kernel_deleted={log.trimmed}\n" in expected and "\nunknown records=" in expected, f"the event: {expected}")
    equal(lib.status()["evidence"], "measured", "evidence=")

    # In a text of this load its instance may stand, and no other.
    before = pcrs()
    for other in (old, "5a" * 16):
        equal(lib.restore(text + f"instance={other}\n".encode())[0], "EKEYREJECTED", f"error with instance={other}")
    equal(pcrs(), before, "values of the TPM, and records, after restores for other instances")
    measured, failed = counts()
    equal(lib.restore(text + instance().encode())[0], None, "error of the restore")
    records = lib.parse(lib.read(lib.BINARY))
    equal(lib.events(records)[-1], ("restore", instance() + text.decode()), "the last event")
    equal(counts(), (measured + 1, failed), "measured= and evidence_failed=")
    equal(len(said("load")), loads + 1, "load events")
    equal(len(said("foreign")), foreign, "foreign events: the load has the number of what was gone by then")
    lib.invariant()


@test("a restore that would change nothing leaves nothing; one that is refused neither")
def _():
    before = pcrs()
    with lib.AuditLog() as audit:
        equal(lib.restore(lib.read(lib.STARTING_PCRS))[0], None, "error")
        wrong = lib.re.sub("^trims=.*", "trims=1000000", lib.read(lib.STARTING_PCRS).decode(), flags=lib.re.M)
        equal(lib.restore(wrong)[0], "EKEYREJECTED", "error of a wrong one")
        equal(lib.restore("junk")[0], "EINVAL", "error of what is none")
        equal(pcrs(), before, "values of the TPM, and records")
        equal(audit.records("ima_trim"), [], "audit records")


@test("with guard=0, as the load event says: records that somebody else removes are measured, each time more are missing")
def _():
    lib.reload("guard=0")
    check("\nguard=off\n" in said("load")[-1][1], f"the load event: {said('load')[-1]}")
    lib.measure(8)
    log = lib.history()
    trims = int(lib.status()["trims"])
    events = len(said("foreign"))
    deleted = log.trimmed
    for number, removed in ((2, 2), (1, 3)):
        lib.write(lib.ASCII, f"{number}\n")
        equal(lib.status()["foreign_records"], str(removed), "foreign_records")
        expected = f"{instance()}kernel_deleted={deleted + removed}\nforeign_records={removed}\n"
        # Whoever reads a file does not wait for the TPM.
        lib.wait_for(lambda: lib.events(lib.parse(lib.read(lib.BINARY)), "foreign")[-1:] == [("foreign", expected)],
                     f"the event {expected!r}; the last are {lib.events(lib.parse(lib.read(lib.BINARY)))[-2:]}", 10)
    for _ in range(3):
        lib.read(lib.STATUS)
        lib.read(lib.STARTING_PCRS)
    log.take(deleted + 3, lib.parse(lib.read(lib.BINARY)))
    equal(len(lib.events(log.records, "foreign")), events + 2, "foreign events")
    equal(lib.restore(log.statement(deleted + 3, trims + 1))[0], None, "error of the restore")
    equal(said()[-1], ("restore", instance() + lib.read(lib.STARTING_PCRS).decode()), "the last event")


@test("with guard=0: a restore that is the first to see that records are missing tells of them before itself")
def _():
    lib.measure(3)
    log = lib.history()
    trims, deleted = int(lib.status()["trims"]), log.trimmed
    lib.write(lib.ASCII, "1\n")
    log.take(deleted + 1, lib.parse(lib.read(lib.BINARY)))
    statement = log.statement(deleted + 1, trims + 1)
    equal(lib.restore(statement)[0], None, "error of the restore")
    told = f"{instance()}kernel_deleted={deleted + 1}\nforeign_records=1\n"
    equal(said()[-2:], [("foreign", told), ("restore", instance() + statement)], "the last events")
    lib.invariant()
    lib.reload()


@test("the chain of records tells the whole story: each trim's starting values, in order")
def _():
    log = lib.history()
    told = [lib.Starting(text.split("\n", 1)[1].encode()) for _, text in lib.events(log.records, "trim")]
    equal([starting.trims for starting in told][:1], [2], "the number of the first trim that was measured")
    numbers = [starting.trims for starting in told]
    equal(numbers, sorted(numbers), "trims that were measured, in the order of their records")
    # The kernel's own trim has a number, too, from the restore after it.
    restored = {lib.Starting(text.split("\n", 1)[1].encode()).trims for _, text in lib.events(log.records, "restore")}
    equal(set(range(2, int(lib.status()["trims"]) + 1)) - set(numbers) - restored, set(), "trims without a record")
    for starting in told:
        lib.account(log, starting)


@test("evmctl: the records trimmed and those left, with those of the trims, match the TPM")
def _():
    lib.measure()
    lib.unload("ima_trim_test")
    equal(lib.evmctl(lib.history().records), 0, "exit status")


# The audit record --------------------------------------------------------------------------------------------------

# A process has a label where a security module gives it one.
LABEL = ["subj"] if {"selinux", "apparmor", "smack"} & set(lib.read("/sys/kernel/security/lsm").decode().split(",")) else []
KEYS = [
    "op", "cause", "ppid", "pid", "auid", "uid", "gid", "euid", "suid", "fsuid", "egid", "sgid", "fsgid", "tty", "ses",
    "comm", "exe", *LABEL, "records", "violations", "records_trimmed", "violations_trimmed", "trims", "res", "errno",
]


def audited(become=lambda: None):
    """The fields of the audit record of a trim by a process of its own, and what that says of itself."""
    lib.violate_open_writers()
    lib.measure(3)
    log = lib.history()
    text = tokens(log, log.total - 1)
    trimmed = log.total - 1 - log.trimmed
    violations = len(log.violations(log.trimmed, log.total - 1))

    def trim():
        become()
        what = {
            "ppid": os.getppid(), "pid": os.getpid(), "uid": os.getresuid()[0], "euid": os.getresuid()[1],
            "suid": os.getresuid()[2], "gid": os.getresgid()[0], "egid": os.getresgid()[1], "sgid": os.getresgid()[2],
            "auid": int(lib.read("/proc/self/loginuid")), "ses": int(lib.read("/proc/self/sessionid")),
        }
        equal(lib.request(text).result, "trimmed", "result")
        return what

    with lib.AuditLog() as audit:
        who = lib.in_child(trim)
        (record,) = audit.records("ima_trim")
    equal(record["type"], 1804, "type of the audit record")
    for key, value in who.items():
        equal(record[key], str(value), f"{key} in the audit record")
    status = lib.status()
    for key, value in (
            ("cause", "trim"), ("records", str(trimmed)), ("violations", str(violations)), ("res", "1"), ("errno", "0"),
            *((key, status[key]) for key in ("records_trimmed", "violations_trimmed", "trims"))):
        equal(record[key], value, f"{key} in the audit record")
    return record


@test("audit record: its fields, in their order")
def _():
    record = audited()
    equal([key for key in record if key != "type"], KEYS, "fields")
    equal(record["comm"], f'"{lib.read("/proc/self/comm").decode().strip()}"', "comm")
    equal(record["exe"], f'"{os.path.realpath("/proc/self/exe")}"', "exe")
    equal((record["fsuid"], record["fsgid"], record["tty"]), ("0", "0", "(none)"), "fsuid, fsgid and tty")


@test("audit record: it is the same process as in the kernel's own integrity records")
def _():
    record = audited()
    with lib.AuditLog() as audit:
        lib.violate_tomtou()
        (kernels,) = audit.records("invalid_pcr")
    for key in ("type", "uid", "auid", "ses", "comm", *(["subj"] if "subj" in KEYS else [])):
        equal(record[key], kernels[key], key)


@test("audit record: the user that logged in and the real user are told apart from root")
def _():
    def become():
        lib.write("/proc/self/loginuid", "1234")
        os.setresgid(77, 78, 79)
        os.setresuid(lib.NOBODY, 0, 0)

    record = audited(become)
    equal((record["auid"], record["uid"], record["euid"]), ("1234", str(lib.NOBODY), "0"), "auid, uid and euid")
    check(record["ses"] != "4294967295", "no session")


@test("audit record: the name of a process cannot forge fields")
def _():
    name = b'x" res=0 a="'
    record = audited(lambda: lib.write("/proc/self/comm", name))
    equal((record["comm"], record["res"]), (name.hex().upper(), "1"), "comm and res")


@test("the list still replays to the TPM after all that")
def _():
    lib.invariant()
    equal(counts()[1], 0, "evidence_failed=")


lib.main(policy=False)
