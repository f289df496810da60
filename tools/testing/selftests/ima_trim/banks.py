#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Requests in one bank, in some and in all that the TPM has."""

import ima_trim_lib as lib
from ima_trim_lib import cases, equal, test

# Algorithms that the kernel has a name for. No software TPM allocates SM3 or SHA3 banks unless told to.
KNOWN = {"sha1": 20, "sha256": 32, "sha384": 48, "sha512": 64, "sm3": 32, "sha3-256": 32, "md5": 16, "sha224": 28}


@test("the list is emptied, with what earlier tests left in it")
def _():
    lib.clear()
    equal(lib.count(), 0, "records left")


@cases("trim by one bank alone", [(bank, bank) for bank in lib.banks()])
def _(bank):
    lib.measure(3)
    history = lib.history()
    text = history.tokens(history.total - 1, [bank])
    broken = text[:-1] + f"{int(text[-1], 16) ^ 1:x}"
    lib.refuse(broken, "ENOENT", "match")
    lib.trim(text, history.total - 1)


@test("trim by all banks at once, in any order and with any blanks")
def _():
    lib.measure(3)
    history = lib.history()
    tokens = history.tokens(history.total - 1).split()
    lib.trim("\n\t " + " \n".join(reversed(tokens)) + "\t\t", history.total - 1)


@cases("a wrong value in one bank while all others match", [(bank, bank) for bank in lib.banks()])
def _(bank):
    lib.measure(2)
    history = lib.history()
    right = history.tokens(history.total).split()
    wrong = [
        f"{token[:-1]}{int(token[-1], 16) ^ 1:x}" if token.startswith(f"{bank}:") else token for token in right
    ]
    lib.refuse(" ".join(wrong), "ENOENT", "match")
    lib.trim(" ".join(right), history.total)


@cases("EOPNOTSUPP for a bank that the TPM has not allocated", [
    (name, name, size) for name, size in KNOWN.items() if name not in lib.banks()
])
def _(name, size):
    lib.measure()
    history = lib.history()
    token = f"{name}:10={'0' * size * 2}"
    lib.refuse(token, "EOPNOTSUPP", name)
    lib.refuse(history.tokens(history.total) + " " + token, "EOPNOTSUPP", name)
    lib.trim(history.tokens(history.total), history.total)


@test("status and starting_pcrs list the banks of the TPM and no others")
def _():
    equal(set(lib.status()["banks"].split(",")), set(lib.banks()), "banks in status")
    equal({bank for bank, _ in lib.look()[0].values}, set(lib.banks()), "banks in starting_pcrs")


@test("evmctl: the records trimmed and those left match the TPM in all banks")
def _():
    lib.measure()
    equal(lib.evmctl(lib.history().records), 0, "exit status")


lib.main()
