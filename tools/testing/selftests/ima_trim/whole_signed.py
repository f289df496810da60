#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""A machine that trims for nobody but its verifier, and verifiers that come late: the program on all sides.

What is a verifier's is in a directory of its own. It gets nothing of the machine but files.
"""

import hashlib
import os
import secrets
import shutil
import struct
import subprocess
import time

import ima_trim_lib as lib
import signed_lib as signed
import whole_lib as whole
from ima_trim_lib import check, equal, test

# What the machine sends, and what it is sent.
MACHINE = "/run/machine"
TRANSFER = "/run/transfer"
SPOOL = whole.ARCHIVE + "/requests"
KERNEL = whole.KERNEL + "/binary_runtime_measurements_sha1"
# More records than this would be trimmed by the daemon itself, if it could.
BOUND = 20
PCRS = "sha256:0,1,2,3,4,5,6,7,8,9,10"

service = whole.Service()
first = second = third = None
first_request = None


class Verifier:
    """A verifier: a directory with what it knows."""

    def __init__(self, name):
        self.directory = f"/run/{name}"
        os.mkdir(self.directory)
        self.state = self.path("state")

    def path(self, name):
        """A file of it."""
        return os.path.join(self.directory, name)

    def judge(self, sent, *options, status=0):
        """Judges what was sent. Gives what the program says."""
        done = subprocess.run(
            [whole.PROGRAM, "verify", "--key", f"{TRANSFER}/ak.pem", "--policy", "any", "--log", f"{sent}/list",
             "--pcrs", f"{sent}/pcrs", "--quote", f"{sent}/msg", "--signature", f"{sent}/sig",
             "--nonce", lib.read(f"{sent}/nonce").decode(), *options], capture_output=True, check=False)
        text = done.stdout.decode() + done.stderr.decode()
        equal(done.returncode, status, f"exit status of verify in {self.directory}: {text}")
        return text

    def request(self, name="request", key="p256"):
        """Signs the request for what was accepted last. Gives its path."""
        asked = subprocess.run([whole.PROGRAM, "request", "--state", self.state], stdout=subprocess.PIPE, check=True).stdout
        done = subprocess.run(
            [whole.PROGRAM, "sign", "--cert", signed.path(key), "--key", signed.path(key, "key")], input=asked,
            stdout=subprocess.PIPE, check=True)
        path = f"{TRANSFER}/{name}"
        with open(path, "wb") as file:
            file.write(done.stdout)
        return path



def tpm2(name, *arguments):
    """Runs one of the TPM's tools."""
    environment = dict(os.environ, TPM2TOOLS_TCTI="device:/dev/tpmrm0")
    done = subprocess.run([f"tpm2_{name}", *arguments], env=environment, capture_output=True, check=False)
    check(done.returncode == 0, f"tpm2_{name} {' '.join(arguments)}: {done.stderr.decode(errors='replace')}")


def quote(name):
    """Has the TPM quote its PCRs. Gives the directory with that, and a nonce that nobody has used before."""
    sent = f"{TRANSFER}/{name}"
    shutil.rmtree(sent, ignore_errors=True)
    os.mkdir(sent)
    with open(f"{sent}/nonce", "w", encoding="ascii") as file:
        file.write(secrets.token_hex(16))
    tpm2("quote", "-Q", "-c", f"{MACHINE}/ak.ctx", "-l", PCRS, "-q", lib.read(f"{sent}/nonce").decode(), "-g", "sha256",
         "-m", f"{sent}/msg", "-s", f"{sent}/sig", "-o", f"{sent}/pcrs")
    return sent


def send(name, path=lib.BINARY):
    """What an agent sends: a quote, and the list that it reads after that."""
    sent = quote(name)
    with open(f"{sent}/list", "wb") as file:
        file.write(lib.read(path))
    shutil.copy(lib.STARTING_PCRS, f"{sent}/starting")
    return sent


def whole_of(sent):
    """What says that all records since boot were sent, those that are trimmed included."""
    return "--whole", "--starting", f"{sent}/starting"


def drop(path):
    """Puts a request into the daemon's directory, whole from its first moment on."""
    name = os.path.basename(path)
    shutil.copy(path, f"{SPOOL}/.{name}")
    os.rename(f"{SPOOL}/.{name}", f"{SPOOL}/{name}")


def gone():
    """How many records the module has trimmed."""
    return lib.Starting(lib.read(lib.STARTING_PCRS)).records


def is_done():
    """Whether no request waits."""
    return not [name for name in os.listdir(SPOOL) if not name.endswith(".refused")]


def prepare():
    lib.load(signed.MODULE)
    os.mkdir(TRANSFER)
    os.mkdir(MACHINE)
    whole.configure(trim={"automatic": True, "records": BOUND, "every": 1})
    tpm2("createek", "-Q", "-c", f"{MACHINE}/ek.ctx", "-G", "ecc")
    tpm2("createak", "-Q", "-C", f"{MACHINE}/ek.ctx", "-c", f"{MACHINE}/ak.ctx", "-G", "ecc", "-s", "ecdsa", "-g", "sha256",
         "-f", "pem", "-u", f"{TRANSFER}/ak.pem")


@test("nothing is trimmed by itself, or for who asks without a signature")
def _():
    global first
    first = Verifier("first")
    lib.measure(5)
    lib.violate_tomtou()
    service.start()
    lib.measure(BOUND)
    state = whole.status(0)["daemon"]
    equal(state["signers"], [signed.fingerprint(name).removeprefix("sha256:") for name in signed.BUILT_IN], "signers")
    text = whole.run("status").decode()
    check("signed ones only" in text and state["signers"][0] in text, f"the screen does not say so: {text}")
    error = whole.run("trim", status=3)
    check(not error, f"trim says {error}")
    check(b"dry-run: " in whole.run("trim", "--dry-run"), "a dry run")
    time.sleep(3)
    equal(gone(), 0, "records trimmed")


@test("the verifier accepts the whole list, and what it signs is trimmed")
def _():
    global first_request
    sent = send("one")
    first.judge(sent, "--state", first.state, "--keep", first.path("records"), "--violations", "1")
    lib.measure(3)
    first_request = first.request("1")
    drop(first_request)
    lib.wait_for(is_done, "the request is done")
    equal(gone(), len(lib.parse(lib.read(f"{sent}/list"))), "records trimmed")
    equal(lib.Starting(lib.read(lib.STARTING_PCRS)).violations, 1, "violations trimmed")
    equal(os.listdir(SPOOL), [], "what is left of requests")
    check(b"verified: " in whole.run("verify"), "verify says something else")


@test("it goes on: with the kernel's list and starting values, and with the whole list")
def _():
    lib.measure(2)
    sent = send("two", KERNEL)
    first.judge(sent, "--state", first.state, "--keep", first.path("records"), "--starting", f"{sent}/starting")
    sent = send("three")
    first.judge(sent, "--state", first.state, "--keep", first.path("records"), *whole_of(sent))
    done = whole.run("trim", "--to", first.request("2", "rsa2048"))
    check(done.startswith(b"trimmed: "), f"trim --to says {done}")
    equal(gone(), len(lib.parse(lib.read(f"{sent}/list"))), "records trimmed")


@test("a request again, an older one, one of a stranger, one for another load, and what is none: nothing is trimmed")
def _():
    before = gone()
    drop(f"{TRANSFER}/2")
    lib.wait_for(is_done, "the request is done")
    equal(os.listdir(SPOOL), [], "what is left of one that has nothing to do")
    lib.measure(2)
    sent = send("four")
    first.judge(sent, "--state", first.state, "--keep", first.path("records"), *whole_of(sent))
    text = subprocess.run([whole.PROGRAM, "request", "--state", first.state], stdout=subprocess.PIPE, check=True).stdout
    other = text.replace(lib.status()["instance"].encode(), b"0" * 32)
    check(other != text, "the request has no instance")
    requests = {
        "a-older": (lib.read(first_request), "ENOENT|No such file"),
        "a-stranger": (signed.sign(text.strip(), "stranger"), "ENOKEY|Required key"),
        "b-other": (signed.sign(other.strip()), "EKEYREJECTED|Key was rejected"),
        "c-none": (b"hello", "not PKCS#7"),
        "d-unsigned": (text, "not PKCS#7"),
    }
    for name, (data, pattern) in requests.items():
        with open(f"{TRANSFER}/{name}", "wb") as file:
            file.write(data)
        drop(f"{TRANSFER}/{name}")
        lib.wait_for(lambda name=name: os.path.exists(f"{SPOOL}/{name}.refused"), f"{name} is refused")
        problems = "\n".join(whole.status(1)["problems"])
        check(name in problems and lib.re.search(pattern, problems), f"status says {problems!r} of {name}")
    equal(gone(), before, "records trimmed")
    drop(first.request("5"))
    lib.wait_for(is_done, "the request is done")
    check(gone() > before, "the request of the verifier is not done any more")


@test("another verifier goes on from what the first one has signed, and a third from the whole list")
def _():
    global second, third
    second, third = Verifier("second"), Verifier("third")
    export = subprocess.run(
        [whole.PROGRAM, "state", "export", "--state", first.state, "--sign", signed.path("p384", "key")],
        stdout=subprocess.PIPE, check=True).stdout
    with open(f"{TRANSFER}/export", "wb") as file:
        file.write(export)
    for name in ("p384", "p256"):
        with open(f"{TRANSFER}/{name}.pub", "wb") as file:
            file.write(signed.openssl("pkey", "-in", signed.path(name, "key"), "-pubout"))
    arguments = ["state", "import", "--state", second.state, f"{TRANSFER}/export", "--trust-key"]
    whole.run(*arguments, f"{TRANSFER}/p256.pub", status=1)
    check(not os.path.exists(second.state), "a state that nobody has signed")
    whole.run(*arguments, f"{TRANSFER}/p384.pub")
    lib.measure(2)
    sent = send("five", KERNEL)
    second.judge(sent, "--state", second.state, "--starting", f"{sent}/starting")
    sent = send("six")
    third.judge(sent, "--state", third.state, "--violations", "1", *whole_of(sent))
    drop(second.request("6"))
    lib.wait_for(is_done, "the request is done")
    drop(third.request("7"))
    lib.wait_for(is_done, "the request is done")
    equal(gone(), len(lib.parse(lib.read(f"{sent}/list"))), "records trimmed")


def field(data):
    """A field of a template."""
    return struct.pack("<I", len(data)) + data


def made_up(name, text):
    """An event that the module never wrote, as a record, extended into the TPM."""
    data = field(b"sha256:\0" + hashlib.sha256(text).digest()) + field(name + b"\0") + field(text)
    digests = {bank: hashlib.new(bank, data).hexdigest() for bank in lib.banks()}
    tpm2("pcrextend", "10:" + ",".join(f"{bank}={digest}" for bank, digest in digests.items()))
    return struct.pack("<I", 10) + bytes.fromhex(digests["sha1"]) + field(b"ima-buf") + field(data)


@test("root makes up a trim that drops what it does not like, and has the TPM vouch for its record: nobody believes it")
def _():
    lib.measure(1)
    # As if all records were trimmed, with the event that would announce it.
    text = f"instance={lib.status()['instance']}\n"
    values = {bank: lib.tpm_value(bank, 10).hex() for bank in lib.banks()}
    starting = "".join(f"{bank}:10={value}\n" for bank, value in values.items())
    records = len(lib.parse(lib.read(lib.BINARY)))
    starting += f"records={records}\nviolations=1\ntrims=9\n"
    record = made_up(b"trim", (text + starting).encode())
    sent = quote("attack")
    for name, data in (("list", record), ("starting", starting.encode())):
        with open(f"{sent}/{name}", "wb") as file:
            file.write(data)
    for verifier in (first, second, third, Verifier("fourth")):
        said = verifier.judge(sent, "--state", verifier.state, "--starting", f"{sent}/starting", "--violations", "1", status=1)
        check("refused: V" in said, f"{verifier.directory} says {said}")
    # And as the list of a machine that was just booted.
    said = Verifier("fifth").judge(sent, "--violations", "0", status=1)
    check("refused: V" in said, f"it says {said}")


def main():
    lib.POLICY += lib.EVIDENCE_RULE
    lib.main(module=False, prepare=prepare)


main()
