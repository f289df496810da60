#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Requests that are malformed: the grammar, one row for each way to get it wrong."""

import ima_trim_lib as lib
from ima_trim_lib import cases, equal, test

VALUE = "5a" * 32
TOKEN = f"sha256:10={VALUE}"
INSTANCE = "5a" * 16

MALFORMED = [
    ("nothing but blanks", b" \t\n \n"),
    ("no PCR token", b"violations=1"),
    ("dry-run alone", b"dry-run"),
    ("keep alone", b"keep"),
    ("a word that is not known", f"{TOKEN} please"),
    ("a keyword in capitals", f"{TOKEN} KEEP"),
    ("a key that is not known", f"{TOKEN} records=1"),
    ("a token twice", f"{TOKEN} {TOKEN}"),
    ("a bank and PCR twice, with different values", f"{TOKEN} sha256:10={'11' * 32}"),
    ("violations= twice", f"{TOKEN} violations=1 violations=1"),
    ("dry-run twice", f"{TOKEN} dry-run dry-run"),
    ("keep twice", f"{TOKEN} keep keep"),
    ("two modes", f"{TOKEN} keep flush"),
    ("violations= without a number", f"{TOKEN} violations="),
    ("violations= with a sign", f"{TOKEN} violations=+1"),
    ("violations= negative", f"{TOKEN} violations=-1"),
    ("violations= in hexadecimal", f"{TOKEN} violations=0x1"),
    ("violations= of more than 64 bits", f"{TOKEN} violations=18446744073709551616"),
    ("violations= with a blank before the number", f"{TOKEN} violations= 1"),
    ("instance= twice", f"{TOKEN} instance={INSTANCE} instance={INSTANCE}"),
    ("instance= twice, with different ones", f"{TOKEN} instance={INSTANCE} instance={'11' * 16}"),
    ("instance= without one", f"{TOKEN} instance="),
    ("instance= that is one digit short", f"{TOKEN} instance={INSTANCE[1:]}"),
    ("instance= that is one byte short", f"{TOKEN} instance={INSTANCE[2:]}"),
    ("instance= that is one byte long", f"{TOKEN} instance={INSTANCE}00"),
    ("instance= with a digit that is none", f"{TOKEN} instance={INSTANCE[:-1]}g"),
    ("instance= alone", f"instance={INSTANCE}"),
    ("an algorithm that is not known", f"sha257:10={VALUE}"),
    ("an algorithm in capitals", f"SHA256:10={VALUE}"),
    ("an empty algorithm", f":10={VALUE}"),
    ("the beginning of an algorithm's name", f"sha:10={VALUE}"),
    ("PCR 24", f"sha256:24={VALUE}"),
    ("PCR 4294967306, which is 10 in 32 bits", f"sha256:4294967306={VALUE}"),
    ("PCR 18446744073709551626, which is 10 in 64 bits", f"sha256:18446744073709551626={VALUE}"),
    ("a negative PCR", f"sha256:-1={VALUE}"),
    ("a PCR with a sign", f"sha256:+10={VALUE}"),
    ("a PCR in hexadecimal", f"sha256:0xa={VALUE}"),
    ("no PCR", f"sha256:={VALUE}"),
    ("no colon", f"sha256-10={VALUE}"),
    ("no equals sign", f"sha256:10{VALUE}"),
    ("no value", "sha256:10="),
    ("a value that is one digit short", f"sha256:10={VALUE[1:]}"),
    ("a value that is one byte short", f"sha256:10={VALUE[2:]}"),
    ("a value that is one digit long", f"sha256:10={VALUE}0"),
    ("a value that is one byte long", f"sha256:10={VALUE}00"),
    ("a value of another bank's length", f"sha256:10={'5a' * 20}"),
    ("a digit that is none", f"sha256:10={VALUE[:-1]}g"),
    ("a value with 0x before it", f"sha256:10=0x{VALUE[2:]}"),
    ("blanks around the equals sign", f"sha256:10 = {VALUE}"),
    ("a comma between tokens", f"{TOKEN},dry-run"),
    ("a carriage return before the newline", f"{TOKEN}\r\n"),
    ("a vertical tab between tokens", f"{TOKEN}\vdry-run"),
    ("a byte of zeros at the end", f"{TOKEN}\0"),
    ("a byte of zeros between tokens", f"{TOKEN}\0dry-run"),
    ("a byte of zeros at the beginning", f"\0{TOKEN}"),
    ("bytes that are not ASCII", f"{TOKEN} ".encode() + b"\xff\xfe\x80"),
    ("nothing but bytes of zeros", bytes(100)),
    ("all bytes there are", bytes(range(256))),
    ("a very long token", b"a" * lib.MAX_REQUEST),
    ("very many colons", b":" * 5000),
    ("an escape sequence", b"\x1b[2J " + TOKEN.encode()),
]


@cases("EINVAL", MALFORMED)
def _(text):
    lib.refuse(text, "EINVAL", "trim refused")


@cases("EINVAL although a matching value stands first", [row for row in MALFORMED if TOKEN in str(row[1])])
def _(text):
    # The same with a value that would match: it is the form alone that is refused.
    history = lib.history()
    if history.total - history.trimmed < 2:
        lib.measure(2)
        history.sync()
    value = history.value(history.total - 1, "sha256", 10).hex()
    text = text.encode() if isinstance(text, str) else text
    lib.refuse(text.replace(VALUE.encode(), value.encode()), "EINVAL")


@test("another instance: EKEYREJECTED, before the list is looked at; this one is as none")
def _():
    lib.measure(3)
    history = lib.history()
    own = lib.status()["instance"]
    violations = len(history.violations(history.trimmed, history.total - 1))
    text = f"{history.tokens(history.total - 1)} violations={violations}"
    other = ("0" if own[0] != "0" else "1") + own[1:]
    for request in (text, text + " dry-run", TOKEN, history.tokens(history.trimmed)):
        lib.refuse(f"{request} instance={other}", "EKEYREJECTED", "ima_trim: .*instance=")
    lib.refuse(f"{TOKEN} instance={own}", "ENOENT")
    with lib.held_open(lib.BINARY, lib.os.O_RDONLY):
        lib.refuse(f"{text} instance={other}", "EKEYREJECTED")
    lib.refuse(f"{text} please instance={other}", "EINVAL")
    lib.trim(f"instance={own} {text}", history.total - 1)


@cases("ENOKEY: what begins like a signed message, which this build of the module takes none of", [
    ("a sequence in DER", b"\x30\x82\x01\x00" + bytes(256)), ("a request after the digit 0", b"0" + TOKEN.encode()),
    ("one byte", b"0"), ("32768 bytes", b"0" * 32768),
])
def _(text):
    lib.refuse(text, "ENOKEY", "ima_trim: trim refused: .*without certificates")
    before = lib.snapshot()
    equal(lib.restore(text)[0], "ENOKEY", "error of writing it to starting_pcrs")
    lib.unchanged(before, "a message")
    lib.refuse(b" " + text[:1000], "EINVAL")


@test("no certificates are built into this module: nothing has to be signed, and that cannot be changed")
def _():
    path = "/sys/module/ima_trim/parameters/require_signatures"
    equal((lib.read(path), lib.status()["signatures"]), (b"N\n", "off"), "parameter, and signatures= in status")
    lib.check(lib.outcome_of(lib.write, path, "1"), "the parameter can be written to")


@test("what is refused is named in the log, and what is not printable there is escaped")
def _():
    lib.refuse(f"{TOKEN} pl\x07ease\x1b[1m", "EINVAL", r'pl\\007ease\\033\[1m')


@test("a very long token is not logged at full length")
def _():
    with lib.KernelLog() as log:
        lib.request("x" * 5000)
        text = log.text()
    lib.check("xxxxx" in text and len(text) < 1000, f"{len(text)} characters logged")


@test("the well-formed request trims after all that")
def _():
    lib.measure(2)
    history = lib.history()
    lib.trim(history.tokens(history.total - 1), history.total - 1)


lib.main()
