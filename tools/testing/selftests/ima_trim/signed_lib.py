# SPDX-License-Identifier: GPL-2.0
"""What the tests of signed requests share: the module with certificates in it, ima_trim_signed.ko beside the module, and the
keys, which the harness makes anew for each of its caches (tools/testing/vm/keys)."""

import collections
import hashlib
import os
import random
import subprocess
import time

import ima_trim_lib as lib
from ima_trim_lib import check, equal

MODULE = os.path.join(os.path.dirname(lib.MODULE), "ima_trim_signed.ko")
KEYS = os.path.join(os.path.dirname(lib.MODULE), "keys")
PARAMETER = "/sys/module/ima_trim/parameters/require_signatures"
# Those that are built in, in this order.
BUILT_IN = ("rsa2048", "rsa4096", "p256", "p384", "expired")
# What the kernel may say of a message that is not what it should be: which of these is its own affair.
WRONG = ("EINVAL", "EKEYREJECTED", "ENOKEY", "ENOPKG")


def path(name, suffix="pem"):
    """A certificate, or with the suffix "key" its key."""
    return os.path.join(KEYS, f"{name}.{suffix}")


def openssl(*arguments, data=b""):
    """What openssl makes of some data."""
    done = subprocess.run(["openssl", *arguments], input=data, stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=False)
    check(not done.returncode, f"openssl {' '.join(arguments)}: {done.stderr.decode(errors='replace')}")
    return done.stdout


def der(name):
    """A certificate in DER."""
    return openssl("x509", "-in", path(name), "-outform", "der")


def fingerprint(name):
    """How the module names a certificate."""
    return f"sha256:{hashlib.sha256(der(name)).hexdigest()}"


def sign(text, *names, options=("-nodetach", "-noattr")):
    """A request, signed with these keys, as the admin guide says it."""
    signers = [word for name in names or ("p256",) for word in ("-signer", path(name), "-inkey", path(name, "key"))]
    data = text.encode() if isinstance(text, str) else text
    return openssl("smime", "-sign", "-binary", *options, "-outform", "der", *signers, data=data)


def own(text, instance=None):
    """A request for this load of the module, or for another one."""
    return f"{text} instance={instance or lib.status()['instance']}"


def trim_text(log, point):
    """A request that trims to a point, whatever violations are before it."""
    return own(f"{log.tokens(point)} violations={len(log.violations(log.trimmed, point))}")


def matching(records=3):
    """The history, and a request that trims all but one record."""
    lib.measure(records)
    log = lib.history()
    return log, trim_text(log, log.total - 1)


def trim(text, *names, point=None, **options):
    """Signs a request, and checks that it trims to where it should."""
    return lib.trim(text, point, sign(text, *names, **options))


def refused(data, errors, pattern="ima_trim: trim refused: "):
    """Checks that something that is written to `trim` ends in one of these errors, and changes nothing."""
    before = lib.snapshot()
    outcome = lib.logged(lambda: lib.request(data), pattern)
    check(outcome.error in errors, f"error {outcome.error}, expected {' or '.join(errors)} (reply {outcome.text!r})")
    equal((outcome.result, outcome.fields.get("errno")), ("refused", outcome.error), "reply")
    lib.unchanged(before, "a refused request")
    return outcome


def not_restored(data, errors, pattern="ima_trim: starting values refused: "):
    """The same of something that is written to `starting_pcrs`."""
    before = lib.snapshot()
    error, _ = lib.logged(lambda: lib.restore(data), pattern)
    check(error in errors, f"error {error}, expected {' or '.join(errors)}")
    lib.unchanged(before, "a refused statement")


def can_be_written():
    """The errors of opening the list's files for writing, each once."""
    found = set()
    for name in lib.list_files():
        for flags in (os.O_WRONLY, os.O_RDWR):
            error = lib.outcome_of(lambda flags=flags, name=name: os.close(os.open(name, flags)))
            found.add(error)
    return found


def mutated(message):
    """A message with something changed at random. It still begins like one."""
    data = bytearray(message)
    for _ in range(random.choice((1, 1, 1, 2, 5))):
        at = random.randrange(1, len(data))
        match random.randrange(4):
            case 0:
                data[at] ^= 1 << random.randrange(8)
            case 1:
                data[at] = random.choice((0x00, 0x01, 0x30, 0x31, 0x7f, 0x80, 0x81, 0x82, 0x84, 0xa0, 0xff))
            case 2:
                del data[at:at + random.choice((1, 2, 9))]
            case _:
                data[at:at] = random.randbytes(random.choice((1, 2, 9)))
    return bytes(data)


def mutate(messages, number, seconds):
    """Writes mutations of messages that are dry runs, which all give the same outcome, until there were so many or the time
    is over. Gives how many ended how.

    What nobody looks at may be changed: then the outcome is that of what was signed.
    """
    results = collections.Counter()
    deadline = time.monotonic() + seconds
    fd = os.open(lib.TRIM, os.O_RDWR | os.O_CLOEXEC)
    try:
        for message in messages:
            expected = lib.request(message).fields
            equal(expected["result"], "dry-run", "result of what was not changed")
        while results.total() < number and time.monotonic() < deadline:
            data = mutated(random.choice(messages))
            error = lib.outcome_of(os.write, fd, data) or "taken"
            os.lseek(fd, 0, os.SEEK_SET)
            results[error] += 1
            check(error in (*WRONG, "taken"), f"{error} for {data.hex()}")
            if error == "taken":
                equal(lib.pairs(lib.read_fd(fd)), expected, f"outcome of {data.hex()}")
                os.lseek(fd, 0, os.SEEK_SET)
    finally:
        os.close(fd)
    lib.ksft.print_msg(f"mutations: {results.total()}: {dict(results.most_common())}")
    return results


def main(load=True, rule=lib.EVIDENCE_RULE):
    """Runs the tests of a file, with the module that has certificates unless they load it themselves."""
    lib.POLICY += rule
    lib.main(module=False, prepare=lambda: load and not lib.loaded() and lib.load(MODULE))
