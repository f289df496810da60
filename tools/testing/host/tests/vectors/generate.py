#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Print the vectors of the replay test: measurement lists, and what each record does to the PCRs.

Nothing here is derived from the module's sources. What a TPM 2.0 and IMA do is written down once
more, with Python's hashlib. See the README beside this file for the format.
"""

import hashlib

SIZES = {"sha1": 20, "sha256": 32, "sha384": 48, "sha512": 64}
DRTM_PCRS = range(17, 23)


class Tpm:
    """PCRs by (bank, number), as they are after a start without a dynamic launch."""

    def __init__(self, banks):
        self.pcrs = {}
        for bank in banks:
            for number in range(24):
                fill = b"\xff" if number in DRTM_PCRS else b"\x00"
                self.pcrs[bank, number] = fill * SIZES[bank]

    def extend(self, bank, number, digest):
        assert len(digest) == SIZES[bank]
        self.pcrs[bank, number] = hashlib.new(bank, self.pcrs[bank, number] + digest).digest()


class Log:
    """A measurement list that is printed as it grows."""

    def __init__(self, name, slots):
        """slots: what IMA keeps for each record, in order. Only 'bank' slots are replayed."""
        self.name = name
        self.slots = slots
        self.banks = [algorithm for algorithm, kind in slots if kind == "bank"]
        self.tpm = Tpm(self.banks)
        self.records = 0
        self.violations = 0
        self.first = "-"
        self.unextended = 0
        print(f"\nlog {name}")
        for algorithm, kind in slots:
            print(f"slot {algorithm} {kind}")

    def start(self, number, event):
        """What was in a PCR before the first record of the list."""
        for bank in self.banks:
            self.tpm.extend(bank, number, hashlib.new(bank, event.encode()).digest())
            print(f"start {bank}:{number}={self.tpm.pcrs[bank, number].hex()}")

    def digest(self, algorithm, data):
        """A template digest. IMA pads SHA-1 where it cannot compute the bank's own algorithm."""
        if algorithm not in SIZES:
            return hashlib.sha1(data).digest() + bytes(12)
        return hashlib.new(algorithm, data).digest()

    def add(self, pcr, violation=False):
        data = f"{self.name} {self.records}".encode()
        self.records += 1
        digests = [self.digest(algorithm, data) for algorithm, _ in self.slots]
        shown = [bytes(len(digest)) for digest in digests] if violation else digests
        print(f"record {pcr}", *(digest.hex() for digest in shown))
        if violation:
            self.violations += 1
            if self.first == "-":
                self.first = self.records
        if 0 <= pcr <= 23:
            for bank in self.banks:
                digest = digests[[algorithm for algorithm, _ in self.slots].index(bank)]
                self.tpm.extend(bank, pcr, b"\xff" * SIZES[bank] if violation else digest)
                print(f"value {bank}:{pcr}={self.tpm.pcrs[bank, pcr].hex()}")
        else:
            self.unextended += 1
        print(f"after {self.records} {self.violations} {self.first} {self.unextended}")


print("# SPDX-License-Identifier: GPL-2.0")
print("# Made by generate.py. Do not edit.")

# One bank, one PCR, no violation; SHA-1 is there only to tell violations.
log = Log("plain", [("sha256", "bank"), ("sha1", "extra")])
for _ in range(5):
    log.add(10)

# All four banks, every kind of PCR, violations wherever one can be.
log = Log("everything", [(bank, "bank") for bank in SIZES])
for pcr, violation in [
    (10, False), (10, False), (11, False), (10, True), (17, False), (22, True), (10, False),
    (24, False), (24, True), (63, False), (23, False), (0, True), (10, False), (16, False),
    (18, False), (10, True), (10, True), (11, False), (19, False), (20, True), (21, False),
    (17, False), (-1, False), (64, False), (10, False),
]:
    log.add(pcr, violation)

# Banks in another order, with a slot between them that cannot be replayed, on PCRs that were
# extended before: 10 by records that are no longer there, 11 by what booted the kernel.
log = Log("continued", [("sha512", "bank"), ("sm3", "unreplayable"), ("sha1", "bank"),
                        ("sha256", "bank")])
log.start(10, "trimmed records")
log.start(11, "kernel image")
for pcr, violation in [(11, False), (10, False), (17, True), (10, True), (11, True), (10, False)]:
    log.add(pcr, violation)
