#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""With certificates built in, only what was signed with their keys changes anything. Has to be the first of its boot."""

import ctypes
import os
import platform
import random

import ima_trim_lib as lib
import signed_lib as signed
from ima_trim_lib import cases, check, equal, test
from signed_lib import matching, not_restored, own, refused, sign

SEED = os.environ.get("TEST_SEED") or str(random.SystemRandom().randrange(1 << 32))
# Mutations of a message; signed_fuzz.py tries far more.
MUTATIONS = lib.tries(200)
MAX_MESSAGE = 32768


# Loading -----------------------------------------------------------------------------------------------------------

def not_loaded(path, parameters, error, pattern):
    """Checks that loading the module fails for this reason, and leaves nothing behind."""
    with lib.KernelLog() as kernel:
        equal(lib.outcome_of(lambda: lib.load(path, parameters)), error, f"error of loading it with {parameters}")
        kernel.expect(pattern)
    check(not lib.loaded(), "it is loaded")
    equal(signed.can_be_written(), {None}, "errors of opening the list for writing")


@test("modinfo tells the certificates")
def _():
    found = lib.subprocess.run(["modinfo", "-F", "certificate", signed.MODULE], stdout=lib.subprocess.PIPE, check=True)
    # The compiler decides in which order.
    equal(sorted(found.stdout.decode().split()), sorted(map(signed.fingerprint, signed.BUILT_IN)), "certificates")


@test("it is not loaded with guard=0, nor with require_signatures=0; nor without certificates with require_signatures=1")
def _():
    not_loaded(signed.MODULE, "guard=0", "EINVAL", "ima_trim: guard=0: .*certificates")
    not_loaded(signed.MODULE, "require_signatures=0", "EPERM", "ima_trim: require_signatures=0: .*with certificates")
    not_loaded(lib.MODULE, "require_signatures=1", "EPERM", "ima_trim: require_signatures=1: .*without certificates")
    not_loaded(lib.MODULE, "require_signatures=perhaps", "EINVAL", "require_signatures")


@test("a load that fails late does not lock the list")
def _():
    with lib.held_open(lib.ASCII, os.O_WRONLY), lib.KernelLog() as kernel:
        equal(lib.outcome_of(lambda: lib.load(signed.MODULE)), "EBUSY", "error")
        kernel.expect("not loaded: .*open for writing")
    equal(signed.can_be_written(), {None}, "errors of opening the list for writing")


@test("loaded: status, parameter, log and the measured event say which keys are taken")
def _():
    with lib.KernelLog() as kernel:
        lib.load(signed.MODULE, "require_signatures=1 guard=1")
        said = kernel.text()
    for name in signed.BUILT_IN:
        check(signed.fingerprint(name) in said, f"the log does not have the fingerprint of {name}: {said!r}")
    check("until the machine is rebooted" in said, f"the log does not say that the list is locked: {said!r}")
    status = lib.status()
    equal((status["signatures"], status["guard"], status["evidence"]), ("required", "on", "measured"), "status")
    equal(lib.read(signed.PARAMETER), b"Y\n", "parameter")
    keys = "".join(f"key={signed.fingerprint(name)}\n" for name in signed.BUILT_IN)
    (event,) = lib.events(lib.history().records, "load")
    violations = lib.read(f"{lib.IMA}/violations").decode().strip()
    equal(event[1], f"version=2\ninstance={status['instance']}\nguard=on\nsignatures=required\nkernel_deleted=0\n"
          f"kernel_violations={violations}\n{keys}{lib.read(lib.STARTING_PCRS).decode()}", "event")


@test("the parameters cannot be written to, whatever their modes")
def _():
    for name in ("require_signatures", "guard"):
        parameter = os.path.join(os.path.dirname(signed.PARAMETER), name)
        for mode in (0o444, 0o666):
            os.chmod(parameter, mode)
            for value in ("0", "N", "n"):
                check(lib.outcome_of(lib.write, parameter, value), f"{name} can be written to, mode {mode:o}")
        equal(lib.read(parameter), b"Y\n", name)
    equal(lib.status()["signatures"], "required", "signatures=")


# What is taken -----------------------------------------------------------------------------------------------------

@cases("signed with a key that is built in, it trims", [(name, name) for name in signed.BUILT_IN])
def _(name):
    log, text = matching()
    equal(signed.trim(text, name, point=log.total - 1).result, "trimmed", "result")


@cases("so it does in other forms that the kernel takes", [
    ("without the certificate", ("-nodetach", "-noattr", "-nocerts")),
    ("with SHA-512", ("-nodetach", "-noattr", "-md", "sha512")),
    ("with SHA-384", ("-nodetach", "-noattr", "-md", "sha384")),
    ("with attributes", ("-nodetach", "-nosmimecap")),
])
def _(options):
    log, text = matching()
    signed.trim(text, "rsa2048", point=log.total - 1, options=options)


@test("what openssl signs by default is not taken: S/MIME capabilities are no attribute of a request")
def _():
    refused(sign(matching()[1], "rsa2048", options=("-nodetach",)), ("EKEYREJECTED",))


@test("a certificate that has expired signs, as no clock is looked at, but not with a time of today beside it")
def _():
    log, text = matching()
    refused(sign(text, "expired", options=("-nodetach", "-nosmimecap")), ("EKEYREJECTED",))
    signed.trim(text, "expired", point=log.total - 1)


@test("a certificate that a built-in one has issued signs, whatever that says of it")
def _():
    log, text = matching()
    refused(sign(text, "issued", options=("-nodetach", "-noattr", "-nocerts")), ("ENOKEY",))
    signed.trim(text, "issued", point=log.total - 1)


@test("of two signers one has to be known")
def _():
    log, text = matching()
    refused(sign(text, "stranger", "stranger-p256"), ("ENOKEY",))
    signed.trim(text, "stranger", "p384", point=log.total - 1)
    log, text = matching()
    signed.trim(text, "rsa2048", "p256", point=log.total - 1)


@test("each mode, and a repeat, which does nothing; then flush, which frees what is left")
def _():
    for mode in ("keep", "compact", "flush", ""):
        log, text = matching()
        message = sign(f"{text} {mode}")
        lib.trim(text, log.total - 1, message)
        before = lib.read(lib.BINARY)
        for _ in range(2):
            outcome = lib.request(message)
            equal((outcome.error, outcome.result, outcome.records), (None, "nothing", 0), "outcome of a repeat")
        equal(lib.read(lib.BINARY), before, "the list")


@test("the number of violations is part of what is signed")
def _():
    lib.measure(2)
    lib.violate_tomtou()
    log, text = matching()
    count = len(log.violations(log.trimmed, log.total - 1))
    check(count, "no violation")
    for wrong in (0, count - 1, count + 1):
        other = text.replace(f"violations={count}", f"violations={wrong}")
        outcome = refused(sign(other), ("EBADMSG",))
        equal(outcome.violations, count, "violations in the reply")
    signed.trim(text, point=log.total - 1)


@test("16384 bytes are taken, and 16385 are not; a message has 32768 at most")
def _():
    log, text = matching()
    refused(sign(text.ljust(lib.MAX_REQUEST + 1)), ("E2BIG",), "ima_trim: trim refused: .*16385 bytes")
    refused(sign(text.ljust(30000)), ("E2BIG",))
    refused(b"\x30\x83" + bytes(MAX_MESSAGE - 1), ("E2BIG",), "32768")
    refused(b"\x30\x83" + bytes(MAX_MESSAGE - 2), ("EINVAL",))
    refused((text + " dry-run").ljust(lib.MAX_REQUEST + 1), ("E2BIG",))
    lib.trim(text, log.total - 1, sign(text.ljust(lib.MAX_REQUEST)))


# What is not -------------------------------------------------------------------------------------------------------

@test("unsigned: ENOKEY, before the list is looked at")
def _():
    log, text = matching()
    bare = text.rsplit(" instance=")[0]
    for request in (bare, text, f"{text} keep", f"{text} flush", own(log.tokens(log.trimmed)),
                    own(log.tokens(log.trimmed)) + " flush", own("sha256:10=" + "00" * 32)):
        refused(request, ("ENOKEY",), "ima_trim: trim refused: .*not signed")
    with lib.held_open(lib.BINARY, os.O_RDONLY):
        lib.refuse(text, "ENOKEY")
    lib.refuse(text + " please", "EINVAL")
    signed.trim(text, point=log.total - 1)


@test("a dry run needs no signature, and tells what would go; it may be signed, too")
def _():
    log, text = matching()
    for request in (text.rsplit(" instance=")[0], text):
        for data in (f"{request} dry-run", f"{request} flush dry-run"):
            outcome = lib.request(data)
            equal((outcome.error, outcome.result), (None, "dry-run"), "outcome")
            equal(outcome.records, log.total - 1 - log.trimmed, "records")
    equal(lib.request(sign(f"{text} dry-run")).result, "dry-run", "result of a signed one")
    lib.refuse(f"{text} dry-run".replace("violations=", "violations=7"), "EBADMSG")
    equal(lib.history().trimmed, log.trimmed, "records trimmed")
    signed.trim(text, point=log.total - 1)


@test("signed by somebody else, with the certificate or without: ENOKEY")
def _():
    _, text = matching()
    for name in ("stranger", "stranger-p256"):
        refused(sign(text, name), ("ENOKEY",), "ima_trim: trim refused: .*\\.ima_trim")
        refused(sign(text, name, options=("-nodetach", "-noattr", "-nocerts")), ("ENOKEY",))


@test("the name of a certificate that is built in does not help another key")
def _():
    _, text = matching()
    # Of the same subject, issuer and serial number as one of those that are built in.
    refused(sign(text, "imposter"), signed.WRONG)
    refused(sign(text, "imposter", options=("-nodetach", "-noattr", "-nocerts")), signed.WRONG)


@test("for another instance, or for none: EKEYREJECTED")
def _():
    log, text = matching()
    here = lib.status()["instance"]
    bare = text.rsplit(" instance=")[0]
    other = ("0" if here[0] != "0" else "1") + here[1:]
    refused(sign(bare), ("EKEYREJECTED",), "ima_trim: trim refused: .*without instance=")
    refused(sign(f"{bare} dry-run"), ("EKEYREJECTED",), "ima_trim: trim refused: .*without instance=")
    for wrong in (other, "00" * 16):
        refused(sign(own(bare, wrong)), ("EKEYREJECTED",), "ima_trim: trim refused: .*not that of this load")
    signed.trim(text, point=log.total - 1)


@test("an older one, for records that are gone: ENOENT")
def _():
    log, _ = matching(6)
    older = sign(signed.trim_text(log, log.total - 4))
    signed.trim(signed.trim_text(log, log.total - 1), point=log.total - 1)
    lib.measure(2)
    refused(older, ("ENOENT",))


@test("altered in each of its tokens, it is refused")
def _():
    log, text = matching()
    message = sign(text, "rsa2048")
    for token in text.split():
        at = message.index(token.encode())
        for place in (at, at + len(token) // 2, at + len(token) - 1):
            altered = bytearray(message)
            # Another digit, or another letter.
            altered[place] = altered[place] ^ 1
            refused(bytes(altered), signed.WRONG)
    lib.trim(text, log.total - 1, message)


@test("altered anywhere else, it is refused as long as that matters")
def _():
    _, text = matching()
    for name in ("rsa2048", "p384"):
        message = sign(text, name)
        # The signature is at its end.
        for place in (-1, -2, -20, -40):
            altered = bytearray(message)
            altered[place] ^= 0x10
            refused(bytes(altered), signed.WRONG)


@test("a signature without the request, in whatever form: refused")
def _():
    _, text = matching()
    for name in ("rsa2048", "p256"):
        detached = sign(text, name, options=("-noattr",))
        refused(detached, ("EINVAL", "EKEYREJECTED"))
        refused(detached + text.encode(), signed.WRONG)
    # The signature of nothing is right.
    refused(sign("", "p256", options=("-noattr",)), ("EINVAL",))
    refused(sign("", "p256"), ("EINVAL",))


@test("an algorithm that the kernel does not have: ENOPKG")
def _():
    refused(sign(matching()[1], "rsa2048", options=("-nodetach", "-noattr", "-md", "sha3-256")), ("ENOPKG",),
            "ima_trim: trim refused: .*RSA or ECDSA")


@test("a request for one file is of no use for the other")
def _():
    log, text = matching()
    statement = own(lib.read(lib.STARTING_PCRS).decode())
    refused(sign(statement), ("EINVAL",))
    not_restored(sign(text), ("EINVAL",))
    signed.trim(text, point=log.total - 1)


@test("cut short anywhere, it is refused")
def _():
    log, text = matching()
    message = sign(text, "p256")
    for size in sorted({*range(1, 40), *range(40, len(message), 29), len(message) - 1}):
        check(lib.request(message[:size]).error in signed.WRONG, f"the first {size} bytes are taken")
    equal(lib.history().trimmed, log.trimmed, "records trimmed")
    lib.trim(text, log.total - 1, message)


@test("changed at random, it is refused as long as that matters")
def _():
    random.seed(SEED)
    lib.ksft.print_msg(f"TEST_SEED={SEED}")
    log, text = matching()
    before = lib.read(lib.STARTING_PCRS)
    results = signed.mutate([sign(f"{text} dry-run", name) for name in ("rsa2048", "p256")], MUTATIONS, 120)
    check(results.total() == MUTATIONS and results["EINVAL"] and results["EKEYREJECTED"], f"results: {results}")
    equal((lib.history().trimmed, lib.read(lib.STARTING_PCRS)), (log.trimmed, before), "what is trimmed")
    signed.trim(text, point=log.total - 1)


# Restores ----------------------------------------------------------------------------------------------------------

@test("starting values have to be signed, too: ENOKEY")
def _():
    text = lib.read(lib.STARTING_PCRS).decode()
    for statement in (text, own(text)):
        not_restored(statement, ("ENOKEY",), "ima_trim: starting values refused: .*not signed")
    not_restored(sign(own(text), "stranger"), ("ENOKEY",))
    not_restored(sign(text), ("EKEYREJECTED",), "ima_trim: starting values refused: .*without instance=")
    not_restored(sign(own(text, "00" * 16)), ("EKEYREJECTED",))
    not_restored("junk", ("EINVAL",))
    equal(lib.restore(sign(own(text)))[0], None, "error of what is known already")


@test("signed, they are taken, and announced: the base of a PCR that something else had extended")
def _():
    pcr = 12
    lib.tpm_extend(pcr)
    lib.set_base(pcr)
    lib.measure(2, pcr)
    lib.measure()
    log = lib.history()
    lines = [line for line in log.tokens(log.trimmed, pcrs=(10, pcr)).split()]
    counts = [line for line in lib.read(lib.STARTING_PCRS).decode().splitlines() if ":" not in line]
    text = own("\n".join(lines + counts))
    not_restored(text, ("ENOKEY",))
    before = lib.count()
    equal(lib.restore(sign(text))[0], None, "error")
    equal(lib.count(), before + 1, "records, with that of the restore")
    check(lib.events(lib.look()[1])[-1][0] == "restore", "no event")
    lib.invariant()
    log, text = matching()
    signed.trim(text, point=log.total - 1)


# The keyring -------------------------------------------------------------------------------------------------------

_ADD_KEY, _REQUEST_KEY, _KEYCTL = {"x86_64": (248, 249, 250), "aarch64": (217, 218, 219)}[platform.machine()]
JOIN_SESSION, UPDATE, REVOKE, CHOWN, SETPERM, DESCRIBE, CLEAR, LINK, UNLINK, SEARCH, READ = range(1, 12)
SET_TIMEOUT, INVALIDATE, RESTRICT, MOVE = 15, 21, 29, 30
SESSION = -3
ALL = 0x3f3f3f3f


def keyctl(number, *arguments):
    """keyctl(2), or another of these calls. Gives what it returns, or fails as OSError."""
    converted = [word.encode() if isinstance(word, str) else word for word in arguments]
    given = lib._libc.syscall(number, *(ctypes.c_long(word) if isinstance(word, int) else word for word in converted))
    if given < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return given


def add_key(kind, name, data, ring):
    """add_key(2)."""
    return keyctl(_ADD_KEY, kind, name, data, len(data or b""), ring)


def listed(name):
    """The serial numbers of the keys of this name in /proc/keys, and their rights."""
    lines = [line.split(None, 8) for line in lib.read("/proc/keys").decode().splitlines()]
    return [(int(words[0], 16), int(words[4], 16)) for words in lines if words[8].split(":")[0] == name]


def ring_and_keys():
    """The keyring `.ima_trim`, and the keys in it."""
    ((ring, _),) = listed(".ima_trim")
    buffer = ctypes.create_string_buffer(256)
    size = keyctl(_KEYCTL, READ, ring, buffer, len(buffer))
    return ring, sorted(int.from_bytes(buffer.raw[at:at + 4], "little") for at in range(0, size, 4))


@test("the keyring has the certificates that are built in, and nobody has a right to change it")
def _():
    ring, keys = ring_and_keys()
    equal(len(keys), len(signed.BUILT_IN), "keys")
    ((_, rights),) = listed(".ima_trim")
    # Who possesses it may search; root may view and read.
    equal(f"{rights:08x}", "08030000", "rights of the keyring")
    names = lib.read("/proc/keys").decode()
    for name in signed.BUILT_IN:
        check(signed.fingerprint(name) in names, f"no key {name} in /proc/keys")
    for key in keys:
        buffer = ctypes.create_string_buffer(512)
        keyctl(_KEYCTL, DESCRIBE, key, buffer, len(buffer))
        equal(buffer.value.decode().split(";")[3], "08010000", "rights of a key")


def attempts():
    """All that keyctl(2) has to change a keyring, or the keys in it: what it is called, and the call."""
    ring, keys = ring_and_keys()
    mine = add_key("keyring", "ima_trim_test", None, SESSION)
    stranger = add_key("asymmetric", "stranger", signed.der("stranger"), mine)
    yield "a certificate is added", lambda: add_key("asymmetric", "stranger", signed.der("stranger"), ring)
    yield "one is added again", lambda: add_key("asymmetric", signed.fingerprint("p256"), signed.der("p256"), ring)
    yield "a key of another type is added", lambda: add_key("user", "word", b"word", ring)
    yield "a keyring is added", lambda: add_key("keyring", "inner", None, ring)
    yield "a key is linked into it", lambda: keyctl(_KEYCTL, LINK, stranger, ring)
    yield "a keyring is linked into it", lambda: keyctl(_KEYCTL, LINK, mine, ring)
    yield "a key is moved into it", lambda: keyctl(_KEYCTL, MOVE, stranger, mine, ring, 0)
    yield "another restriction is set", lambda: keyctl(_KEYCTL, RESTRICT, ring, None, None)
    yield "it is linked into that of the session", lambda: keyctl(_KEYCTL, LINK, ring, SESSION)
    yield "it is moved out", lambda: keyctl(_KEYCTL, MOVE, keys[0], ring, mine, 0)
    yield "it is searched for a key", lambda: keyctl(_KEYCTL, SEARCH, ring, "asymmetric", signed.fingerprint("p256"), mine)
    yield "one is requested into another", lambda: keyctl(_REQUEST_KEY, "asymmetric", signed.fingerprint("p256"), None, mine)
    yield "it is cleared", lambda: keyctl(_KEYCTL, CLEAR, ring)
    for name, key in (("it", ring), ("a key of it", keys[0])):
        yield f"{name} is updated", lambda key=key: keyctl(_KEYCTL, UPDATE, key, b"x", 1)
        yield f"{name} is revoked", lambda key=key: keyctl(_KEYCTL, REVOKE, key)
        yield f"{name} is invalidated", lambda key=key: keyctl(_KEYCTL, INVALIDATE, key)
        yield f"{name} gets another owner", lambda key=key: keyctl(_KEYCTL, CHOWN, key, 0, 0)
        yield f"{name} gets other rights", lambda key=key: keyctl(_KEYCTL, SETPERM, key, ALL)
        yield f"{name} gets a time limit", lambda key=key: keyctl(_KEYCTL, SET_TIMEOUT, key, 1)
        yield f"{name} is unlinked", lambda key=key: keyctl(_KEYCTL, UNLINK, key, ring)


@test("keyctl cannot change it in any way")
def _():
    equal(lib.outcome_of(keyctl, _KEYCTL, JOIN_SESSION, None), None, "error of a session of its own")
    before = ring_and_keys(), listed(".ima_trim"), lib.read("/proc/keys").decode().count("08010000")
    count = 0
    for name, attempt in attempts():
        count += 1
        error = lib.outcome_of(attempt)
        check(error in ("EACCES", "EPERM", "ENOKEY", "EOPNOTSUPP"), f"{name}: {error}")
    check(count > 20, f"{count} attempts")
    now = ring_and_keys(), listed(".ima_trim"), lib.read("/proc/keys").decode().count("08010000")
    equal(now, before, "the keyring and its keys")


@test("another keyring of that name is none, and one that is called so without the dot is not looked at")
def _():
    for name in (".ima_trim", ".ima_trim2"):
        equal(lib.outcome_of(add_key, "keyring", name, None, SESSION), "EPERM", f"error of making {name}")
        equal(lib.outcome_of(keyctl, _KEYCTL, JOIN_SESSION, name), "EPERM", f"error of joining {name}")
    for ring in ("ima_trim", "_ima_trim"):
        mine = add_key("keyring", ring, None, SESSION)
        add_key("asymmetric", "stranger", signed.der("stranger"), mine)
    keyctl(_KEYCTL, JOIN_SESSION, "ima_trim")
    add_key("asymmetric", "stranger", signed.der("stranger"), SESSION)
    log, text = matching()
    refused(sign(text, "stranger"), ("ENOKEY",))
    signed.trim(text, point=log.total - 1)


# The end -----------------------------------------------------------------------------------------------------------

@test("nobody else removes a record: the list's files cannot be opened for writing")
def _():
    equal(signed.can_be_written(), {"EBUSY"}, "errors of opening the list for writing")
    lib.lists_agree()
    lib.invariant()


@test("the records trimmed and those left replay from the reset values to what the TPM has")
def _():
    lib.measure()
    values = lib.replay({}, lib.history().records)
    for bank in lib.banks():
        found = values[bank, lib.MEASURE_PCR]
        equal(found.hex(), lib.tpm_value(bank, lib.MEASURE_PCR).hex(), f"replay of {bank}:10 from the reset value")


signed.main(load=False)
