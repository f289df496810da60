// SPDX-License-Identifier: GPL-2.0

//! Why something is not done. Nothing is logged where a refusal arises: whoever answers the caller
//! logs it, once.

#![forbid(unsafe_code)]

use crate::{
    bank::Pcr,
    errno::Errno,
    replay::{
        ReplayError,
        SearchError, //
    },
    report::Found,
    request::{
        Reclaim,
        RequestError,
        Unread, //
    },
    restore::RestoreError,
    rust::{
        hash::HashError,
        ima::Busy,
        task::Interrupted,
        workqueue::CallError, //
    },
    signature::SignatureError,
};
use core::fmt;
use kernel::{
    alloc::AllocError,
    prelude::*, //
};

/// Why a request, or another use of the list, is refused. Nothing was changed; but what is refused
/// late may have been announced.
pub(crate) enum Refusal<'t> {
    /// What was written cannot be read.
    Unread(Unread),
    /// It is not of the grammar.
    Malformed(RequestError<'t>),
    /// It is signed, and no certificates are built in.
    Signed,
    /// It is not signed, and has to be.
    Unsigned,
    /// Its signature is not accepted.
    Signature(SignatureError),
    /// It is signed, and does not say for which load of the module.
    NoInstance,
    /// It is for another load of the module.
    Instance,
    /// The mode changes what was never tried with a kernel this new.
    Untested(Reclaim),
    /// A signal arrived, or the task was killed.
    Interrupted,
    /// There is no memory.
    NoMemory,
    /// The list cannot be used.
    Busy(Busy),
    /// Somebody else removed this many records.
    Foreign(u64),
    /// The TPM does not give a value.
    Tpm {
        /// The name of the bank.
        bank: &'static str,
        /// The PCR.
        pcr: Pcr,
    },
    /// The TPM does not give a value, so that the starting values are not known to be right.
    Undecided {
        /// The name of the bank.
        bank: &'static str,
        /// The PCR.
        pcr: Pcr,
    },
    /// A record cannot be replayed.
    Replay(ReplayError<HashError>),
    /// The starting values of a PCR do not lead to what the TPM has.
    Unverified(Pcr),
    /// No record extends this PCR, but something else did.
    Unextended(Pcr),
    /// At no record do all values match.
    NoMatch {
        /// The records that were replayed.
        records: u64,
    },
    /// Other violations would go than are stated.
    Violations {
        /// What would go.
        found: Found,
        /// How many violations are stated.
        stated: u64,
    },
    /// Stated starting values are not believed.
    Restore(RestoreError),
    /// This event is not measured, and has to be.
    Unmeasured(&'static str),
    /// The replay of the list does not give the TPM's value of this PCR after the event.
    Unproved(Pcr),
    /// IMA gave an error in place of measuring this event, and this is what the caller gets for it.
    Unannounced(&'static str, Errno),
}

impl Refusal<'_> {
    /// The error that the caller gets.
    pub(crate) fn errno(&self) -> Errno {
        match self {
            Self::Unread(Unread(errno)) | Self::Unannounced(_, errno) => *errno,
            Self::Malformed(error) => error.errno(),
            Self::Signed | Self::Unsigned => Errno::NoKey,
            Self::Signature(error) => error.errno(),
            Self::NoInstance | Self::Instance | Self::Restore(_) => Errno::KeyRejected,
            Self::Unmeasured(_) | Self::Unproved(_) => Errno::Acces,
            Self::Untested(_) => Errno::OpNotSupp,
            Self::Interrupted => Errno::Intr,
            Self::NoMemory => Errno::NoMem,
            Self::Busy(busy) => busy.errno(),
            Self::Tpm { .. } | Self::Replay(_) => Errno::Io,
            Self::Foreign(_)
            | Self::Undecided { .. }
            | Self::Unverified(_)
            | Self::Unextended(_) => Errno::Uclean,
            Self::NoMatch { .. } => Errno::NoEnt,
            Self::Violations { .. } => Errno::BadMsg,
        }
    }

    /// What a request that is refused for this would have trimmed, as far as that is known.
    pub(crate) fn found(&self) -> Found {
        match self {
            Self::Violations { found, .. } => *found,
            _ => Found::default(),
        }
    }

    /// Tells the log what is refused, and why. A signal is not logged, for its sender knows. That
    /// the list is busy is logged at a limited rate, as whoever asks again and again gets it each
    /// time.
    pub(crate) fn log(&self, what: &str) {
        if self.errno() == Errno::Busy {
            self.log_limited(what);
        } else if !matches!(self, Self::Interrupted) {
            log_warn!("{what} refused: {self}");
        }
    }

    /// The same, always at a limited rate: for what anybody who reads a file can cause.
    pub(crate) fn log_limited(&self, what: &str) {
        if !matches!(self, Self::Interrupted) {
            log_limited!(log_warn, "{what} refused: {self}");
        }
    }
}

impl fmt::Display for Refusal<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unread(unread) => unread.fmt(f),
            Self::Malformed(error) => error.fmt(f),
            Self::Signed => f.write_str(
                "it begins like a PKCS#7 message, and this module was built without certificates: \
                 write the request itself",
            ),
            Self::Unsigned => f.write_str(
                "it is not signed, and this module was built with certificates: have it signed, or \
                 add dry-run to a request to trim",
            ),
            Self::Signature(error) => error.fmt(f),
            Self::NoInstance => f.write_str(
                "it is signed without instance=: add that of the status file, so that it is of no \
                 use anywhere else",
            ),
            Self::Instance => f.write_str(
                "instance= is not that of this load of the module: ask for the values anew",
            ),
            Self::Untested(mode) => write!(
                f,
                "{} was not tried with a kernel as new as this one: use keep, or load the module \
                 with untested=1 if you have tried it",
                mode.as_str()
            ),
            Self::Interrupted => f.write_str("a signal arrived"),
            Self::NoMemory => f.write_str("there is no memory for it: try again"),
            Self::Busy(busy) => busy.fmt(f),
            Self::Foreign(records) => write!(
                f,
                "somebody else removed {records} records, so the starting PCR values are unknown \
                 until they are written to starting_pcrs"
            ),
            Self::Tpm { bank, pcr } => write!(
                f,
                "TPM does not give the value of {bank}:{pcr}; see its driver's messages"
            ),
            Self::Undecided { bank, pcr } => write!(
                f,
                "without the TPM's values the starting values are not verified, and the TPM does \
                 not give that of {bank}:{pcr}; see its driver's messages"
            ),
            Self::Replay(error) => error.fmt(f),
            Self::Unverified(pcr) => write!(
                f,
                "the starting values of PCR {pcr} are not verified: the replay of the list from \
                 them does not give what the TPM has"
            ),
            Self::Unextended(pcr) => write!(
                f,
                "no record of the list extends PCR {pcr}, and the TPM has another value than the \
                 starting one: leave the PCR out"
            ),
            Self::NoMatch { records } => write!(
                f,
                "at no record do all given values match those of the replay; {records} records \
                 were replayed"
            ),
            Self::Violations { found, stated } => write!(
                f,
                "{count} violations would be dropped, {stated} are stated; look at them, and state \
                 violations={count} if they are to go",
                count = found.violations
            ),
            Self::Restore(error) => error.fmt(f),
            Self::Unmeasured(event) => write!(
                f,
                "the event {event} is not measured as it should be, and nothing is changed without \
                 that: let the IMA policy have the rule \"measure func=CRITICAL_DATA \
                 label=ima_trim\""
            ),
            Self::Unproved(pcr) => write!(
                f,
                "with the event in the list its replay does not give what the TPM has in PCR {pcr}: \
                 the event did not get there, or something else extended the PCR"
            ),
            Self::Unannounced(event, errno) => write!(
                f,
                "IMA did not measure the event {event} ({errno}): see the kernel's messages, and try \
                 again"
            ),
        }
    }
}

impl From<Busy> for Refusal<'_> {
    fn from(busy: Busy) -> Self {
        Self::Busy(busy)
    }
}

impl From<Interrupted> for Refusal<'_> {
    fn from(_: Interrupted) -> Self {
        Self::Interrupted
    }
}

impl From<CallError> for Refusal<'_> {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Interrupted => Self::Interrupted,
            CallError::NoMemory => Self::NoMemory,
        }
    }
}

/// What the module itself allocates fails only for lack of memory.
impl From<AllocError> for Refusal<'_> {
    fn from(_: AllocError) -> Self {
        Self::NoMemory
    }
}

/// So does a text that is written to.
impl From<fmt::Error> for Refusal<'_> {
    fn from(_: fmt::Error) -> Self {
        Self::NoMemory
    }
}

impl<'t, E: Into<Refusal<'t>>> From<SearchError<E, Interrupted>> for Refusal<'t> {
    fn from(error: SearchError<E, Interrupted>) -> Self {
        match error {
            SearchError::Step(error) => error.into(),
            SearchError::Walk(signal) => signal.into(),
        }
    }
}

impl From<ReplayError<HashError>> for Refusal<'_> {
    fn from(error: ReplayError<HashError>) -> Self {
        Self::Replay(error)
    }
}

/// Why what was written cannot be read.
pub(crate) fn unread(error: Error) -> Refusal<'static> {
    Refusal::Unread(Unread(match error {
        ENOMEM => Errno::NoMem,
        E2BIG => Errno::TooBig,
        EINVAL => Errno::Inval,
        EFAULT => Errno::Fault,
        _ => Errno::Io,
    }))
}
