#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""A list whose links contradict each other is neither cut nor said to be one that can be cut."""

import ima_trim_lib as lib
from ima_trim_lib import cases, equal

LINKS = "/sys/module/ima_trim_test/parameters/links"


def prepare():
    """Loads the tests' own module."""
    lib.load(lib.TEST_MODULE)


@cases("with the link of the first record broken: EUCLEAN, as the log says, and nothing changes; once mended, it is done", [
    ("a dry run", "dry-run"), ("a trim", "keep"), ("a flush", "flush"),
])
def _(word):
    lib.measure(3)
    history = lib.history()
    point = history.total - 1
    request = history.tokens(point) + f" {word}"
    lib.write(LINKS, "N")
    try:
        equal(lib.read(LINKS), b"N\n", "whether the links are right")
        lib.refuse(request, "EUCLEAN", "refused: the links of the measurement list contradict each other")
    finally:
        lib.write(LINKS, "Y")
    if word == "dry-run":
        equal(lib.request(request).result, "dry-run", "result with the links as they were")
    else:
        lib.trim(request, point)


lib.main(prepare=prepare)
