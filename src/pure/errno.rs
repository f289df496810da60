// SPDX-License-Identifier: GPL-2.0

//! The error numbers that the interface promises.
//!
//! The pure parts say which error a request earns without knowing the kernel's own error type. The
//! names are printed in the outcome of a request, the numbers become what `write(2)` returns.

#![forbid(unsafe_code)]

use core::fmt;

/// An error number of Linux.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Errno {
    /// `ENOENT`: no record matches.
    NoEnt,
    /// `EINTR`: a signal arrived.
    Intr,
    /// `EIO`: a TPM or a hash did not work.
    Io,
    /// `E2BIG`: a request that is too long.
    TooBig,
    /// `ENOMEM`: no memory.
    NoMem,
    /// `EACCES`: what is about to be done leaves no evidence.
    Acces,
    /// `EFAULT`: a buffer that cannot be read or written.
    Fault,
    /// `EBUSY`: somebody else uses the measurement list.
    Busy,
    /// `EINVAL`: a malformed request.
    Inval,
    /// `ENOPKG`: a signature of a kind that the kernel cannot verify.
    NoPkg,
    /// `EBADMSG`: the number of violations is not the one stated.
    BadMsg,
    /// `EOPNOTSUPP`: a bank or a mode that is not there.
    OpNotSupp,
    /// `ESTALE`: IMA has suspended measuring.
    Stale,
    /// `EUCLEAN`: the starting PCR values are not verified.
    Uclean,
    /// `ENOKEY`: a signature is missing, or is by nobody who is known.
    NoKey,
    /// `EKEYREJECTED`: starting PCR values that are not those of this list and TPM, or a request for
    /// another load of the module, or one with a wrong signature.
    KeyRejected,
}

impl Errno {
    /// The name, as `errno(3)` spells it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NoEnt => "ENOENT",
            Self::Intr => "EINTR",
            Self::Io => "EIO",
            Self::TooBig => "E2BIG",
            Self::NoMem => "ENOMEM",
            Self::Acces => "EACCES",
            Self::Fault => "EFAULT",
            Self::Busy => "EBUSY",
            Self::Inval => "EINVAL",
            Self::NoPkg => "ENOPKG",
            Self::BadMsg => "EBADMSG",
            Self::OpNotSupp => "EOPNOTSUPP",
            Self::Stale => "ESTALE",
            Self::Uclean => "EUCLEAN",
            Self::NoKey => "ENOKEY",
            Self::KeyRejected => "EKEYREJECTED",
        }
    }

    /// The number, positive, as in `asm-generic/errno.h`.
    pub const fn code(self) -> i32 {
        match self {
            Self::NoEnt => 2,
            Self::Intr => 4,
            Self::Io => 5,
            Self::TooBig => 7,
            Self::NoMem => 12,
            Self::Acces => 13,
            Self::Fault => 14,
            Self::Busy => 16,
            Self::Inval => 22,
            Self::NoPkg => 65,
            Self::BadMsg => 74,
            Self::OpNotSupp => 95,
            Self::Stale => 116,
            Self::Uclean => 117,
            Self::NoKey => 126,
            Self::KeyRejected => 129,
        }
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
