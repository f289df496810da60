#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""After a kexec the list is locked again as soon as the module is loaded, what was signed before is of no use any more, and
starting values have to be signed. The records before it are those of signed_before.py.
"""

import os

import ima_trim_lib as lib
import signed_lib as signed
from ima_trim_lib import check, equal, test


def carried(name):
    """What was carried over the kexec."""
    return lib.read(os.path.join(lib.CARRIED, name))


@test("the new kernel has no lock on its list, and loading the module takes it")
def _():
    equal(signed.can_be_written(), {None}, "errors of opening the list for writing before")
    lib.load(signed.MODULE)
    equal(signed.can_be_written(), {"EBUSY"}, "errors of opening the list for writing")
    check(lib.status()["instance"] != carried("instance").decode(), "the instance is the same")


@test("what was signed before the kexec is for another instance: EKEYREJECTED")
def _():
    signed.refused(carried("trim"), ("EKEYREJECTED",), "ima_trim: trim refused: .*not that of this load")


@test("nothing is trimmed before the values are stated, whoever has signed it: EUCLEAN")
def _():
    value = lib.tpm_value("sha256", lib.MEASURE_PCR).hex()
    equal(lib.status()["base"], "unverified", "base")
    signed.refused(signed.sign(signed.own(f"sha256:10={value}")), ("EUCLEAN",))


@test("they have to be signed, and right")
def _():
    text = signed.own(carried("starting_pcrs").decode())
    signed.not_restored(text, ("ENOKEY",))
    signed.not_restored(signed.sign(text, "stranger"), ("ENOKEY",))
    signed.not_restored(signed.sign(carried("starting_pcrs")), ("EKEYREJECTED",))
    value = lib.re.search(r"^sha256:10=(\w+)$", text, lib.re.M)[1]
    signed.not_restored(signed.sign(text.replace(value, value[::-1])), ("EKEYREJECTED",))
    equal(lib.restore(signed.sign(text))[0], None, "error of stating them")
    equal(lib.status()["base"], "verified", "base")


@test("and then it trims what is signed for it")
def _():
    with open(lib.History.PATH, "wb") as file:
        file.write(carried("history"))
    log, text = signed.matching()
    lib.refuse(text, "ENOKEY")
    signed.trim(text, point=log.total - 1)
    equal(signed.can_be_written(), {"EBUSY"}, "errors of opening the list for writing")


signed.main(load=False)
