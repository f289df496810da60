// SPDX-License-Identifier: GPL-2.0

//! Requests that are signed: how they are told from others, and what the kernel's answer to a
//! signature means.
//!
//! The verification itself is the kernel's. Nothing here looks into a message.

#![forbid(unsafe_code)]

use core::fmt;

use crate::errno::Errno;
use crate::request::MAX_REQUEST;

/// Bytes of the longest message: a request, with signatures and certificates around it.
pub const MAX_MESSAGE: usize = 32768;

/// Bytes of a certificate's fingerprint: a SHA-256.
pub const FINGERPRINT: usize = 32;

/// What each message in DER begins with: the tag of a sequence. No request begins with this byte,
/// which is the digit 0.
const SEQUENCE: u8 = 0x30;

/// What the kernel gives for the right signature of nothing, as `asm-generic/errno.h` has it.
const ENODATA: i32 = 61;

/// Whether what was written is to be taken for a PKCS#7 message, and not for the text of a request.
pub fn is_message(written: &[u8]) -> bool {
    written.first() == Some(&SEQUENCE)
}

/// The SHA-256 of a certificate in DER, by which it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fingerprint(pub [u8; FINGERPRINT]);

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("sha256:")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Why a message is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SignatureError {
    /// The signature is right, and what it encloses is too long to be looked at.
    TooLong {
        /// Its bytes.
        len: usize,
    },
    /// There is no memory to verify it.
    NoMemory,
    /// It was not signed with a key that is known here.
    NoKey,
    /// The kernel does not have an algorithm that it needs.
    Unsupported,
    /// The signature of a key that is known is wrong, or a key was revoked.
    Rejected,
    /// The signature is right, and there is nothing in it.
    NoContent,
    /// Whatever else the kernel finds wrong.
    Malformed {
        /// The kernel's error number, positive.
        code: i32,
    },
}

impl SignatureError {
    /// What an error of `verify_pkcs7_signature()` means. `code` is its number, positive.
    ///
    /// Whether a signature that is wrong is `EKEYREJECTED` or an error of another kind is up to the
    /// kernel: the crypto API has errors of its own, for a signature of the wrong length, say.
    pub fn of_kernel(code: i32) -> Self {
        if code == Errno::NoMem.code() {
            Self::NoMemory
        } else if code == Errno::NoKey.code() {
            Self::NoKey
        } else if code == Errno::NoPkg.code() || code == Errno::NoEnt.code() {
            Self::Unsupported
        } else if code == Errno::KeyRejected.code() {
            Self::Rejected
        } else if code == ENODATA {
            Self::NoContent
        } else {
            Self::Malformed { code }
        }
    }

    /// The error that the writer gets.
    pub fn errno(self) -> Errno {
        match self {
            Self::TooLong { .. } => Errno::TooBig,
            Self::NoMemory => Errno::NoMem,
            Self::NoKey => Errno::NoKey,
            Self::Unsupported => Errno::NoPkg,
            Self::Rejected => Errno::KeyRejected,
            Self::NoContent | Self::Malformed { .. } => Errno::Inval,
        }
    }
}

impl fmt::Display for SignatureError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLong { len } => write!(
                f,
                "the signed request has {len} bytes, more than {MAX_REQUEST}: give fewer PCR values"
            ),
            Self::NoMemory => f.write_str("there is no memory to verify the signature: try again"),
            Self::NoKey => f.write_str(
                "no key in the keyring .ima_trim has signed it: sign with that of a certificate \
                 which is built in",
            ),
            Self::Unsupported => f.write_str(
                "this kernel cannot verify a signature of this kind: use RSA or ECDSA, with SHA-2",
            ),
            Self::Rejected => f.write_str(
                "the signature is wrong, or one of its keys is revoked on this machine: sign the \
                 request anew",
            ),
            Self::NoContent => {
                f.write_str("the signature encloses nothing: enclose the request in the message")
            }
            Self::Malformed { code } => write!(
                f,
                "it is not a PKCS#7 message in DER with a right signature and the request enclosed \
                 (the kernel gives error {code})"
            ),
        }
    }
}
