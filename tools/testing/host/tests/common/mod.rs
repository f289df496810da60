// SPDX-License-Identifier: GPL-2.0

//! Measurement lists and hashes for the tests that replay.

use core::convert::Infallible;
use ima_trim_pure::bank::{shows_violation, Bank, Banks, Value};
use ima_trim_pure::replay::{Extend, Record};
use ima_trim_pure::values::PcrValues;
use sha1::Sha1;
use sha2::{Digest, Sha256, Sha384, Sha512};

/// The values of all PCRs.
pub(crate) type Values = PcrValues<Vec<Value>>;

/// PCRs at their reset values.
pub(crate) fn reset_values(banks: &Banks) -> Values {
    let mut values = PcrValues::new(vec![[0xaa; 64]; Values::cells(banks)], banks).unwrap();
    values.reset(banks);
    values
}

/// A record whose digests are indexed by slot, as IMA's are.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) pcr: i32,
    pub(crate) digests: Vec<Vec<u8>>,
    /// The slot that tells a violation.
    pub(crate) sha1_slot: usize,
}

impl Record for &Entry {
    fn pcr(&self) -> i32 {
        self.pcr
    }

    fn digest(&self, bank: &Bank) -> Option<&[u8]> {
        self.digests.get(bank.position)?.get(..bank.size)
    }

    fn is_violation(&self) -> bool {
        shows_violation(&self.digests[self.sha1_slot])
    }
}

/// The hash algorithms, by the name of the bank.
pub(crate) struct Hashes;

impl Extend for Hashes {
    type Error = Infallible;

    fn extend(
        &self,
        _bank: usize,
        info: &Bank,
        value: &mut Value,
        digest: &[u8],
    ) -> Result<(), Infallible> {
        let data = [&value[..info.size], digest].concat();
        let hash = match info.name {
            "sha1" => Sha1::digest(data).to_vec(),
            "sha256" => Sha256::digest(data).to_vec(),
            "sha384" => Sha384::digest(data).to_vec(),
            "sha512" => Sha512::digest(data).to_vec(),
            name => panic!("no hash for bank {name}"),
        };
        value[..info.size].copy_from_slice(&hash);
        Ok(())
    }
}
