// SPDX-License-Identifier: GPL-2.0

//! The hash algorithms of TPM banks, by IMA's names.

use sha1::Sha1;
use sha2::Digest;
use sha2::Sha256;
use sha2::Sha384;
use sha2::Sha512;

use ima_trim_pure::bank::Value;
use ima_trim_pure::bank::MAX_DIGEST;

/// A hash algorithm that records can be hashed and PCRs be replayed with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Algorithm {
    /// SHA-1, which IMA has a file for whatever banks the TPM has.
    Sha1,
    /// SHA-256.
    Sha256,
    /// SHA-384.
    Sha384,
    /// SHA-512.
    Sha512,
}

impl Algorithm {
    /// All of them, as the kernel's `lib/crypto` has them.
    pub const ALL: [Self; 4] = [Self::Sha1, Self::Sha256, Self::Sha384, Self::Sha512];

    /// The algorithm of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|algorithm| algorithm.name() == name)
    }

    /// IMA's name, as in the names of its files and in `hash_algo_name[]` of `crypto/hash_info.c`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sha1 => "sha1",
            Self::Sha256 => "sha256",
            Self::Sha384 => "sha384",
            Self::Sha512 => "sha512",
        }
    }

    /// Bytes of a digest.
    pub const fn size(self) -> usize {
        match self {
            Self::Sha1 => 20,
            Self::Sha256 => 32,
            Self::Sha384 => 48,
            Self::Sha512 => 64,
        }
    }

    /// The hash of these parts, one after the other. What is left of the value is zeros.
    pub fn hash(self, parts: &[&[u8]]) -> Value {
        match self {
            Self::Sha1 => digest::<Sha1>(parts),
            Self::Sha256 => digest::<Sha256>(parts),
            Self::Sha384 => digest::<Sha384>(parts),
            Self::Sha512 => digest::<Sha512>(parts),
        }
    }
}

fn digest<D: Digest>(parts: &[&[u8]]) -> Value {
    let mut hasher = D::new();
    let mut value = [0; MAX_DIGEST];

    for part in parts {
        hasher.update(part);
    }
    for (to, from) in value.iter_mut().zip(hasher.finalize()) {
        *to = from;
    }
    value
}
