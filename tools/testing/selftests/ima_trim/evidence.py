#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""What a trim leaves behind: a record in the list that is left, with a policy that measures it, and an audit record.

Has to be the first of its boot: it begins without a policy.
"""

import os
import struct

import ima_trim_lib as lib
from ima_trim_lib import cases, check, equal, test

lib.POLICY += "measure func=CRITICAL_DATA label=ima_trim\n"


def fields(record):
    """The fields of a record, as its template data has them."""
    found = []
    at = 0
    while at < len(record.data):
        (size,) = struct.unpack_from("=I", record.data, at)
        found.append(record.data[at + 4:at + 4 + size])
        at += 4 + size
    return found


def tokens(log, point):
    """A request that trims to a point, whatever violations are before it."""
    return log.tokens(point) + f" violations={len(log.violations(log.trimmed, point))}"


def counts():
    """The counts of evidence in `status`."""
    status = lib.status()
    return int(status["measured"]), int(status["evidence_failed"])


def evident(text, left):
    """Checks that the trim of a request that leaves so many records appends the one record that it should."""
    measured, failed = counts()
    outcome = lib.trim(text)
    equal(outcome.result, "trimmed", "result")
    starting, records = lib.look()
    equal(len(records), left + 1, "records left, that of the trim among them")
    record = records[-1]
    digest, name, data = fields(record)
    algorithm = digest.split(b":")[0]
    equal((record.template, record.pcr, record.violation), (b"ima-buf", 10, False), "template and PCR of the record")
    equal(name, b"trim\0", "name of the event")
    equal(data, starting.text, "data of the event")
    equal(digest, algorithm + b":\0" + lib.hashlib.new(algorithm.decode(), data).digest(), "digest of the data")
    equal(counts(), (measured + 1, failed), "measured= and evidence_failed=")
    lib.lists_agree()
    return outcome


@test("without a rule nothing is appended and nothing has failed; the audit record is written")
def _():
    log = lib.history()
    with lib.AuditLog() as audit:
        equal(lib.trim(log.tokens(log.total)).records, 1, "records trimmed")
        equal((lib.count(), counts()), (0, (0, 0)), "records, and measured= and evidence_failed=")
        lib.load_policy()
        equal(len(audit.records("ima_trim")), 1, "audit records")


@test("a trim appends exactly one record, whose data is starting_pcrs as read")
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


REFUSED = [
    ("one that does not match", lambda log: "sha256:10=" + "5a" * 32, "ENOENT"),
    ("one that does not state the violations", lambda log: log.tokens(log.total), "EBADMSG"),
    ("a malformed one", lambda log: "junk", "EINVAL"),
]


@cases("nothing of a refused request", REFUSED)
def _(make, error):
    lib.violate_open_writers()
    log = lib.history()
    with lib.AuditLog() as audit:
        # This compares the lists and status before and after.
        lib.refuse(make(log), error)
        equal(audit.records("ima_trim"), [], "audit records")


@cases("nothing of a request that changes nothing", [
    ("a dry run", lambda log: tokens(log, log.total) + " dry-run", "dry-run"),
    ("a dry run with flush", lambda log: tokens(log, log.total) + " dry-run flush", "dry-run"),
    ("a repeat", lambda log: tokens(log, log.trimmed), "nothing"),
])
def _(make, result):
    lib.measure(2)
    log = lib.history()
    before = lib.snapshot()
    with lib.AuditLog() as audit:
        equal(lib.request(make(log)).result, result, "result")
        lib.unchanged(before, "a request that changes nothing")
        equal(audit.records("ima_trim"), [], "audit records")


@test("trimmers that race: a record for each trim, none lost and none twice")
def _():
    lib.clear()
    lib.measure(12)
    log = lib.history()
    begin, end, before = log.trimmed, log.total, lib.count()
    measured, _ = counts()
    points = range(begin + 1, end + 1)
    children = [lib.Child(lambda text=log.tokens(point): lib.request(text).result) for point in points]
    trims = [child.result() for child in children].count("trimmed")
    check(trims > 0, "nothing was trimmed")
    equal(counts(), (measured + trims, 0), "measured= and evidence_failed=")
    log.sync()
    equal(lib.count(), before - (log.trimmed - begin) + trims, "records left, those of the trims among them")
    said = [fields(record)[2] for record in log.records[end:]]
    equal(len(set(said)), trims, "different records of trims")
    lib.invariant()


@test("after the module was unloaded, loaded and given back what it knew")
def _():
    lib.reload()
    equal(counts(), (0, 0), "measured= and evidence_failed=")
    log = lib.history()
    lib.measure(2)
    log.sync()
    evident(tokens(log, log.total), 0)


@test("the chain of records tells the whole story: each trim's starting values, in order")
def _():
    log = lib.history()
    told = [lib.Starting(fields(record)[2]) for record in log.records if record.template == b"ima-buf"]
    equal([starting.trims for starting in told][:1], [2], "the number of the first trim that was measured")
    equal(sorted(starting.trims for starting in told), list(range(2, told[-1].trims + 1)), "trims that were measured")
    for starting in told:
        lib.account(log, starting)


@test("evmctl: the records trimmed and those left, with those of the trims, match the TPM")
def _():
    lib.measure()
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
