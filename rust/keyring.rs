// SPDX-License-Identifier: GPL-2.0

//! Who may have something changed: anybody who may write to the files, or whoever has the key of a
//! certificate that is built into the module. Which of the two is decided when it is built.
//!
//! With certificates there is a keyring, `.ima_trim`, with just these. It is made when the module is
//! loaded and takes no key afterwards (`keyring_restrict()`, `security/keys/keyring.c`); nobody has
//! the right to write to it, to link it, or to change its attributes, so that it cannot get into a
//! keyring of a process either, for whose rights as a possessor the kernel would look. The right
//! to search is the possessor's alone, which the kernel is when it verifies.
//!
//! `verify_pkcs7_signature()` (`certs/system_keyring.c`) takes a null pointer for the keyring of
//! the kernel's builtin keys, and small numbers for others. A [`Keyring`] is none of these.
//!
//! A [`Licence`] is the proof that is asked for before anything is changed. It comes from a
//! [`Verified`], which only a right signature makes, or from an [`Anybody`], which there is only in a
//! module without certificates.
//!
//! Not supported: other keyrings, adding and revoking keys, detached signatures.

use super::ffi;
use crate::{
    request::MAX_REQUEST,
    signature::{
        Fingerprint,
        SignatureError,
        FINGERPRINT, //
    },
};
use core::{
    fmt,
    ptr::{
        null,
        NonNull, //
    },
};
use kernel::{
    bindings,
    error::{
        from_err_ptr,
        to_result, //
    },
    prelude::*,
    str::CString, //
};

/// The right to have something changed.
pub(crate) struct Licence(());

/// Anybody may have something changed who may write to the files: no certificates are built in.
pub(crate) struct Anybody(());

impl Anybody {
    /// What everybody has.
    pub(crate) fn licence(&self) -> Licence {
        Licence(())
    }
}

/// What was enclosed in a message, whose signature is right.
pub(crate) struct Verified(KVVec<u8>);

impl Verified {
    /// The text that was signed.
    pub(crate) fn text(&self) -> &[u8] {
        self.0.as_slice()
    }

    /// What the signature is worth.
    pub(crate) fn licence(&self) -> Licence {
        Licence(())
    }
}

/// Who may have something changed.
pub(crate) enum Authority {
    /// Whoever may write to the files.
    Anybody(Anybody),
    /// Whoever has signed the request with a key of this keyring.
    Signers(Keyring),
}

impl Authority {
    /// That of this build of the module. Allocates and sleeps; may load modules of the crypto API.
    pub(crate) fn find() -> Result<Self, KeyringError> {
        if certificates().next().is_none() {
            Ok(Self::Anybody(Anybody(())))
        } else {
            Keyring::new().map(Self::Signers)
        }
    }

    /// Whether requests have to be signed.
    pub(crate) fn is_signers(&self) -> bool {
        matches!(self, Self::Signers(_))
    }
}

/// Why there is no keyring. The load fails.
pub(crate) struct KeyringError {
    /// The certificate that is not taken, if it is one.
    certificate: Option<Fingerprint>,
    error: Error,
}

impl KeyringError {
    /// The error number for the failed load.
    pub(crate) fn errno(&self) -> Error {
        self.error
    }
}

impl fmt::Display for KeyringError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let errno = self.error.to_errno();

        match self.certificate {
            None => write!(f, "the keyring .ima_trim cannot be made: error {errno}"),
            Some(fingerprint) => write!(
                f,
                "the kernel does not take the built-in certificate {fingerprint}: error {errno}; is \
                 it X.509 with a key of a kind that this kernel knows, and not revoked?"
            ),
        }
    }
}

impl From<Error> for KeyringError {
    fn from(error: Error) -> Self {
        Self {
            certificate: None,
            error,
        }
    }
}

/// The certificates that are built in, in DER.
fn certificates() -> impl Iterator<Item = &'static [u8]> {
    (0..).map_while(|index| {
        let mut data = null();

        // SAFETY: `data` can be written.
        let size = unsafe { ffi::ima_trim_certificate(index, &mut data) };
        // SAFETY: It is a constant of `signatures.c`, of this size, unless there is none. This is
        // only reached as long as the module is there.
        (size != 0).then(|| unsafe { core::slice::from_raw_parts(data, size) })
    })
}

/// How a certificate is known.
fn fingerprint(certificate: &[u8]) -> Fingerprint {
    let mut digest = [0; FINGERPRINT];

    // SAFETY: The certificate can be read, and a SHA-256 be written.
    unsafe { bindings::sha256(certificate.as_ptr(), certificate.len(), digest.as_mut_ptr()) };
    Fingerprint(digest)
}

/// The fingerprints of the certificates that are built in.
pub(crate) fn fingerprints() -> impl Iterator<Item = Fingerprint> {
    certificates().map(fingerprint)
}

/// A reference on a key of the kernel.
///
/// # Invariants
///
/// The pointer is to a keyring that was made here, and the reference on it is ours.
struct Reference(NonNull<ffi::Key>);

impl Drop for Reference {
    fn drop(&mut self) {
        // SAFETY: By the type's invariants.
        unsafe { ffi::ima_trim_keyring_put(self.0.as_ptr()) };
    }
}

/// The keyring `.ima_trim`. Dropping this gives it back, with its keys.
///
/// # Invariants
///
/// It has the certificates that are built in, at least one, and takes no others any more.
pub(crate) struct Keyring(Reference);

// SAFETY: The kernel has a lock and a count of references for each key.
unsafe impl Send for Keyring {}
// SAFETY: As above; verifying does not change the keyring.
unsafe impl Sync for Keyring {}

impl Keyring {
    /// Makes it, with all certificates, and seals it.
    fn new() -> Result<Self, KeyringError> {
        // SAFETY: The function has no requirements.
        let key = from_err_ptr(unsafe { ffi::ima_trim_keyring() })?;
        // INVARIANT: It was just made, with one reference.
        let reference = Reference(NonNull::new(key).ok_or(ENOMEM)?);

        for certificate in certificates() {
            let fingerprint = fingerprint(certificate);
            let refused = |error| KeyringError {
                certificate: Some(fingerprint),
                error,
            };
            let name = CString::try_from_fmt(format_args!("{fingerprint}"))?;

            // SAFETY: By the invariants of `Reference` it is a keyring. `name` is a string, which is
            // copied, and the certificate can be read.
            to_result(unsafe {
                ffi::ima_trim_keyring_add(
                    reference.0.as_ptr(),
                    name.as_char_ptr(),
                    certificate.as_ptr(),
                    certificate.len(),
                )
            })
            .map_err(refused)?;
        }
        // SAFETY: By the invariants of `Reference` it is a keyring.
        to_result(unsafe { ffi::ima_trim_keyring_seal(reference.0.as_ptr()) })?;
        // INVARIANT: It has the certificates and is sealed. There are some: see `Authority`.
        Ok(Self(reference))
    }

    /// Verifies a PKCS#7 message, and gives what it encloses. Nothing of that is looked at before.
    ///
    /// Allocates and sleeps; may load modules of the crypto API.
    pub(crate) fn verify(&self, message: &[u8]) -> Result<Verified, SignatureError> {
        let mut content =
            KVVec::from_elem(0, MAX_REQUEST, GFP_KERNEL).map_err(|_| SignatureError::NoMemory)?;
        let mut taken = usize::MAX;

        // SAFETY: By the invariants it is a keyring. The message can be read, and `content` and
        // `taken` be written; no more is written than there is room for.
        to_result(unsafe {
            ffi::ima_trim_verify(
                self.0 .0.as_ptr(),
                message.as_ptr(),
                message.len(),
                content.as_mut_ptr(),
                content.len(),
                &mut taken,
            )
        })
        .map_err(|error| SignatureError::of_kernel(error.to_errno().saturating_neg()))?;

        match taken {
            // The kernel gives the content as the last thing that it does, if all was right. So this
            // does not rely on what it returns alone.
            usize::MAX => Err(SignatureError::NoContent),
            len if len > content.len() => Err(SignatureError::TooLong { len }),
            len => {
                content.truncate(len);
                Ok(Verified(content))
            }
        }
    }
}
