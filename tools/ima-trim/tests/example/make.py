#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Makes the evidence of the example in Documentation/admin-guide/verifier.rst, with a TPM.

It needs swtpm, swtpm_setup and tpm2-tools, and writes its files beside itself. What IMA and ima_trim
would write is computed here; PCRs, quotes and the key are those of a new swtpm, which is thrown away
afterwards. They are others each time, as keys and clocks are.
"""

import hashlib
import os
import struct
import subprocess
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
BANKS = {"sha1": 20, "sha256": 32, "sha384": 48, "sha512": 64}
PCR = 10
NONCES = {"first": "c0ffee00", "second": "8badf00d"}
INSTANCE = "7b1f0c5ad2e94c31a8f06e52d9047fb3"
POLICY = (
    "dont_measure fsmagic=0x9fa0 \n"
    "measure func=CRITICAL_DATA label=ima_policy \n"
    "measure func=CRITICAL_DATA label=ima_trim \n"
    "measure func=BPRM_CHECK mask=MAY_EXEC \n"
    "measure func=FILE_CHECK mask=^MAY_READ uid=0 \n"
)


def field(data):
    return struct.pack("<I", len(data)) + data


def template_data(digest, name, last):
    return field(b"sha256:\0" + digest) + field(name.encode() + b"\0") + field(last)


def file(name):
    return "ima-sig", template_data(hashlib.sha256(name.encode()).digest(), name, b""), False


def violation(name):
    return "ima-sig", template_data(bytes(32), name, b""), True


def buffer(name, text):
    data = text.encode()
    return "ima-buf", template_data(hashlib.sha256(data).digest(), name, data), False


class Machine:
    """A list, and a TPM that it is extended into."""

    def __init__(self, directory):
        self.directory = directory
        socket = os.path.join(directory, "socket")
        os.environ["TPM2TOOLS_TCTI"] = f"swtpm:path={socket}"
        self.tool("swtpm_setup", "--tpm2", "--tpmstate", directory, "--pcr-banks", ",".join(BANKS))
        self.tpm = subprocess.Popen(
            ["swtpm", "socket", "--tpm2", "--tpmstate", f"dir={directory}", "--flags", "startup-clear",
             "--server", f"type=unixio,path={socket}", "--ctrl", f"type=unixio,path={socket}.ctrl"],
            stderr=subprocess.DEVNULL)
        while not os.path.exists(socket + ".ctrl"):
            time.sleep(0.1)
        self.key = os.path.join(directory, "ak.ctx")
        endorsement = os.path.join(directory, "ek.ctx")
        self.tpm2("createek", "-Q", "-c", endorsement, "-G", "ecc")
        self.tpm2("createak", "-Q", "-C", endorsement, "-c", self.key, "-G", "ecc", "-s", "ecdsa", "-g", "sha256",
                  "-f", "pem", "-u", os.path.join(HERE, "ak.pem"))
        self.boot = []
        for pcr in range(10):
            digest = hashlib.sha256(b"boot %d" % pcr).hexdigest()
            self.tpm2("pcrextend", f"{pcr}:sha256={digest}")
            self.boot.append(hashlib.sha256(bytes(32) + bytes.fromhex(digest)).digest())
        self.records = []
        self.violations = 0
        self.values = {bank: bytes(size) for bank, size in BANKS.items()}

    def tool(self, *command):
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=self.directory)

    def tpm2(self, name, *arguments):
        self.tool("tpm2_" + name, *arguments)
        self.tool("tpm2_flushcontext", "-Q", "-t")

    def measure(self, record):
        template, data, is_violation = record
        digests = {
            bank: b"\xff" * size if is_violation else hashlib.new(bank, data).digest()
            for bank, size in BANKS.items()
        }
        self.tpm2("pcrextend", f"{PCR}:" + ",".join(f"{bank}={digest.hex()}" for bank, digest in digests.items()))
        for bank, digest in digests.items():
            self.values[bank] = hashlib.new(bank, self.values[bank] + digest).digest()
        self.violations += is_violation
        sha1 = bytes(20) if is_violation else digests["sha1"]
        name = template.encode()
        self.records.append(struct.pack("<I", PCR) + sha1 + field(name) + field(data))

    def starting(self, trims):
        text = "".join(f"{bank}:{PCR}={value.hex()}\n" for bank, value in self.values.items())
        return text + f"records={len(self.records)}\nviolations={self.violations}\ntrims={trims}\n"

    def send(self, name, start, starting):
        """Writes what an agent sends."""
        base = os.path.join(HERE, name)
        self.tpm2("quote", "-Q", "-c", self.key, "-l", "sha256:0,1,2,3,4,5,6,7,8,9,10", "-q", NONCES[name],
                  "-g", "sha256", "-m", base + ".msg", "-s", base + ".sig", "-o", base + ".pcrs")
        with open(base + ".list", "wb") as out:
            out.write(b"".join(self.records[start:]))
        with open(base + ".starting", "w", encoding="ascii") as out:
            out.write(starting)
        for ending in (".msg", ".sig", ".pcrs"):
            os.chmod(base + ending, 0o644)


def main():
    with tempfile.TemporaryDirectory() as directory:
        machine = Machine(directory)
        try:
            reset = machine.starting(0)
            aggregate = hashlib.sha256(b"".join(machine.boot)).digest()
            machine.measure(("ima-sig", template_data(aggregate, "boot_aggregate", b""), False))
            machine.measure(buffer("ima_policy_loaded", POLICY))
            machine.measure(buffer(
                "load", f"version=2\ninstance={INSTANCE}\nguard=on\nsignatures=off\nkernel_deleted=0\n"
                f"kernel_violations=0\n{reset}"))
            machine.measure(file("/opt/app/server"))
            machine.measure(file("/opt/app/plugin"))
            machine.measure(violation("/opt/app/plugin"))
            machine.send("first", 0, reset)

            trimmed = machine.starting(1)
            machine.measure(file("/opt/app/server.conf"))
            machine.measure(buffer("trim", f"instance={INSTANCE}\n{trimmed}"))
            machine.measure(file("/opt/app/motd"))
            machine.send("second", 6, trimmed)
        finally:
            machine.tpm.terminate()
            machine.tpm.wait()
    os.chmod(os.path.join(HERE, "ak.pem"), 0o644)


if __name__ == "__main__":
    main()
