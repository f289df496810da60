// SPDX-License-Identifier: GPL-2.0

//! The hash algorithms of the TPM's banks.
//!
//! SHA-1 and SHA-2 come from `lib/crypto`, whatever else the kernel has from its crypto API.
//!
//! Not supported: hashing of more than a PCR value with a digest, and algorithms that no crypto
//! driver has as `shash`.

use super::ffi;
use crate::{
    bank::{
        Bank,
        Value,
        MAX_BANKS,
        MAX_DIGEST, //
    },
    replay::Extend, //
};
use core::ptr::NonNull;
use kernel::{
    bindings,
    error::{
        from_err_ptr,
        to_result, //
    },
    prelude::*,
    str::CStr, //
};

/// The name and the digest size of an algorithm of `enum hash_algo`, as IMA names it.
pub(crate) fn algorithm(crypto_id: u16) -> Option<(&'static CStr, usize)> {
    let mut size = 0;

    // SAFETY: `size` can be written.
    let name = unsafe { ffi::ima_trim_hash_name(u32::from(crypto_id), &mut size) };
    if name.is_null() {
        return None;
    }
    // SAFETY: `hash_algo_name[]` has constant strings.
    Some((unsafe { CStr::from_char_ptr(name) }, size as usize))
}

/// Whether the kernel knows an algorithm of this name.
pub(crate) fn is_algorithm(name: &[u8]) -> bool {
    (0..=u16::MAX)
        .map_while(algorithm)
        .any(|(known, _)| known.to_bytes() == name)
}

/// A hash of the crypto API.
///
/// # Invariants
///
/// The pointer is one that `crypto_alloc_shash()` returned and that is not freed before the drop.
/// Its digests have no more than [`MAX_DIGEST`] bytes.
struct Shash(NonNull<ffi::CryptoShash>);

impl Shash {
    fn new(name: &CStr, size: usize) -> Result<Self> {
        let mut found = 0;

        // SAFETY: `name` is a string and `found` can be written.
        let tfm = unsafe { ffi::ima_trim_shash_alloc(name.as_char_ptr(), &mut found) };
        // INVARIANT: It was just allocated. If its digests are too long, it is dropped right below.
        let hash = Self(NonNull::new(from_err_ptr(tfm)?).ok_or(ENOENT)?);
        if found as usize == size && size <= MAX_DIGEST {
            Ok(hash)
        } else {
            Err(EINVAL)
        }
    }
}

impl Drop for Shash {
    fn drop(&mut self) {
        // SAFETY: By the type's invariants.
        unsafe { ffi::ima_trim_shash_free(self.0.as_ptr()) };
    }
}

// SAFETY: A transform without a key is not changed by its use.
unsafe impl Send for Shash {}
// SAFETY: As above.
unsafe impl Sync for Shash {}

/// How a bank hashes.
enum Algorithm {
    Sha1,
    Sha256,
    Sha384,
    Sha512,
    Shash(Shash),
}

/// The algorithms of the replayable banks, in the order of [`crate::bank::Banks`].
pub(crate) struct Hashes([Option<Algorithm>; MAX_BANKS]);

impl Hashes {
    /// No algorithm yet.
    pub(crate) const fn new() -> Self {
        Self([const { None }; MAX_BANKS])
    }

    /// Sets the algorithm of a bank, or says why the kernel cannot hash it: `EINVAL` if its digests
    /// are not of this size, or have more than [`MAX_DIGEST`] bytes.
    ///
    /// Allocates and sleeps; may load a module.
    pub(crate) fn set(&mut self, bank: usize, name: &CStr, size: usize) -> Result {
        let algorithm = match (name.to_bytes(), size) {
            (b"sha1", 20) => Algorithm::Sha1,
            (b"sha256", 32) => Algorithm::Sha256,
            (b"sha384", 48) => Algorithm::Sha384,
            (b"sha512", 64) => Algorithm::Sha512,
            _ => Algorithm::Shash(Shash::new(name, size)?),
        };

        *self.0.get_mut(bank).ok_or(EINVAL)? = Some(algorithm);
        Ok(())
    }
}

/// A digest could not be hashed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HashError(Error);

impl From<Error> for HashError {
    fn from(error: Error) -> Self {
        Self(error)
    }
}

impl core::fmt::Display for HashError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "the crypto API gave error {}", self.0.to_errno())
    }
}

impl Extend for Hashes {
    type Error = HashError;

    fn extend(
        &self,
        bank: usize,
        info: &Bank,
        value: &mut Value,
        digest: &[u8],
    ) -> Result<(), HashError> {
        let algorithm = self.0.get(bank).and_then(Option::as_ref).ok_or(EINVAL)?;
        let mut data = [0u8; 2 * MAX_DIGEST];
        let len = info.size.checked_add(digest.len()).ok_or(EINVAL)?;

        data.get_mut(..info.size)
            .zip(value.get(..info.size))
            .map(|(to, from)| to.copy_from_slice(from))
            .ok_or(EINVAL)?;
        data.get_mut(info.size..len)
            .map(|to| to.copy_from_slice(digest))
            .ok_or(EINVAL)?;

        let (from, to) = (data.as_ptr(), value.as_mut_ptr());
        // SAFETY: `len` is at most the length of `data`, as the slice above shows, so it fits.
        // `value` has `MAX_DIGEST` bytes. None writes more: SHA-1 and SHA-2 write 20 to 64 bytes,
        // and a transform what the invariants of `Shash` say.
        unsafe {
            match algorithm {
                Algorithm::Sha1 => ffi::sha1(from, len, to),
                Algorithm::Sha256 => bindings::sha256(from, len, to),
                Algorithm::Sha384 => bindings::sha384(from, len, to),
                Algorithm::Sha512 => bindings::sha512(from, len, to),
                Algorithm::Shash(hash) => {
                    to_result(ffi::ima_trim_shash(hash.0.as_ptr(), from, len as u32, to))?
                }
            }
        }
        Ok(())
    }
}
