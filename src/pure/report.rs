// SPDX-License-Identifier: GPL-2.0

//! What the files of the interface say.

#![forbid(unsafe_code)]

use core::ffi::CStr;
use core::fmt;
use core::fmt::Write;
use core::iter::successors;
use core::ops::Deref;

use crate::bank::Bank;
use crate::bank::Banks;
use crate::bank::Pcr;
use crate::bank::PcrSet;
use crate::bank::Value;
use crate::errno::Errno;
use crate::instance::Instance;
use crate::signature::Fingerprint;
use crate::values::PcrValues;

/// The version of the interface.
const VERSION: u32 = 2;

/// Bytes that came from outside, made printable.
///
/// Whatever could end a word or a line, and the backslash, becomes a backslash and three octal
/// digits, as in `/proc/mounts`.
#[derive(Clone, Copy, Debug)]
pub struct Escaped<'a>(pub &'a [u8]);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for &byte in self.0 {
            if byte.is_ascii_graphic() && byte != b'\\' {
                f.write_char(char::from(byte))?;
            } else {
                write!(f, "\\{byte:03o}")?;
            }
        }
        Ok(())
    }
}

/// What was trimmed since boot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Records.
    pub records: u64,
    /// Violations among them.
    pub violations: u64,
    /// How many trims there were.
    pub trims: u64,
}

/// Writes the text of `starting_pcrs`: the values of these PCRs in all banks, and the totals.
///
/// The lines are sorted by the name of the bank, then by the number of the PCR.
pub fn starting_pcrs<S: Deref<Target = [Value]>>(
    w: &mut dyn fmt::Write,
    banks: &Banks,
    values: &PcrValues<S>,
    pcrs: PcrSet,
    totals: &Totals,
) -> fmt::Result {
    for (bank, info) in by_name(banks) {
        for pcr in pcrs.iter() {
            let value = values.get(bank, pcr).ok_or(fmt::Error)?;
            write!(w, "{}:{pcr}=", info.name)?;
            for byte in value.iter().take(info.size) {
                write!(w, "{byte:02x}")?;
            }
            w.write_char('\n')?;
        }
    }
    writeln!(w, "records={}", totals.records)?;
    writeln!(w, "violations={}", totals.violations)?;
    writeln!(w, "trims={}", totals.trims)
}

/// All banks with their indices, sorted by name.
fn by_name(banks: &Banks) -> impl Iterator<Item = (usize, &Bank)> {
    successors(next_by_name(banks, ""), |(_, bank)| {
        next_by_name(banks, bank.name)
    })
}

/// The bank whose name comes next after this one. Two banks never have the same.
fn next_by_name<'a>(banks: &'a Banks, last: &str) -> Option<(usize, &'a Bank)> {
    banks
        .iter()
        .filter(|(_, bank)| bank.name > last)
        .min_by_key(|(_, bank)| bank.name)
}

/// Writes the text of `starting_pcrs` while the values are not known, because somebody else
/// removed this many records.
pub fn starting_pcrs_unknown(w: &mut dyn fmt::Write, foreign: u64) -> fmt::Result {
    writeln!(w, "unknown records={foreign}")
}

/// Something that the module does and that IMA is to measure: one event of label `ima_trim`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The module was loaded.
    Load {
        /// Whether others are kept from removing records.
        guard: bool,
        /// Whether requests have to be signed.
        signatures: bool,
        /// Records that this kernel has removed.
        kernel_deleted: u64,
        /// Violations that this kernel has counted.
        kernel_violations: u64,
    },
    /// Records are about to be trimmed.
    Trim,
    /// Starting PCR values that were stated are about to be taken over.
    Restore,
    /// Somebody else has removed records.
    Foreign {
        /// Records that this kernel has removed.
        kernel_deleted: u64,
        /// Those of them that the account does not have.
        foreign_records: u64,
    },
}

impl Event {
    /// IMA's name of the event.
    pub const fn name(&self) -> &'static CStr {
        match self {
            Self::Load { .. } => c"load",
            Self::Trim => c"trim",
            Self::Restore => c"restore",
            Self::Foreign { .. } => c"foreign",
        }
    }

    /// The same.
    pub fn as_str(&self) -> &'static str {
        self.name().to_str().unwrap_or_default()
    }
}

/// Writes what is measured of an event, down to the text of `starting_pcrs`, which follows for all
/// but [`Event::Foreign`]; for [`Event::Load`] the [`keys`] come before that.
pub fn event(w: &mut dyn fmt::Write, event: &Event, instance: Instance) -> fmt::Result {
    if let Event::Load { .. } = event {
        writeln!(w, "version={VERSION}")?;
    }
    writeln!(w, "instance={instance}")?;
    match *event {
        Event::Trim | Event::Restore => Ok(()),
        Event::Load {
            guard,
            signatures,
            kernel_deleted,
            kernel_violations,
        } => {
            writeln!(w, "guard={}", on_off(guard))?;
            writeln!(w, "signatures={}", required_off(signatures))?;
            writeln!(w, "kernel_deleted={kernel_deleted}")?;
            writeln!(w, "kernel_violations={kernel_violations}")
        }
        Event::Foreign {
            kernel_deleted,
            foreign_records,
        } => {
            writeln!(w, "kernel_deleted={kernel_deleted}")?;
            writeln!(w, "foreign_records={foreign_records}")
        }
    }
}

/// Writes the certificates whose keys may sign requests, one a line.
pub fn keys(
    w: &mut dyn fmt::Write,
    mut fingerprints: impl Iterator<Item = Fingerprint>,
) -> fmt::Result {
    fingerprints.try_for_each(|fingerprint| writeln!(w, "key={fingerprint}"))
}

/// Writes the text of `verify`: for each bank and these PCRs, whether `equal` says that the replay
/// gave the value of the TPM, and what was replayed.
///
/// The lines are sorted as those of [`starting_pcrs`].
pub fn verify(
    w: &mut dyn fmt::Write,
    banks: &Banks,
    pcrs: PcrSet,
    equal: impl Fn(usize, Pcr) -> bool,
    records: u64,
    violations: u64,
) -> fmt::Result {
    for (bank, info) in by_name(banks) {
        for pcr in pcrs.iter() {
            let verdict = if equal(bank, pcr) { "ok" } else { "mismatch" };
            writeln!(w, "{}:{pcr}={verdict}", info.name)?;
        }
    }
    writeln!(w, "records={records}")?;
    writeln!(w, "violations={violations}")
}

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrimResult {
    /// Records were trimmed.
    Trimmed,
    /// It matched the starting values, so there was nothing to trim.
    Nothing,
    /// It would have been carried out, but was only to be tried.
    DryRun,
    /// It was refused, and nothing was changed.
    Refused(Errno),
}

impl TrimResult {
    /// The name of the result.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Trimmed => "trimmed",
            Self::Nothing => "nothing",
            Self::DryRun => "dry-run",
            Self::Refused(_) => "refused",
        }
    }
}

/// What a request would trim.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Records.
    pub records: u64,
    /// Violations among them.
    pub violations: u64,
    /// The absolute number of the first violation among them.
    pub first_violation: Option<u64>,
}

impl Found {
    /// The outcome of the request. `hold_ns` is as in [`Outcome`].
    pub fn outcome(self, result: TrimResult, hold_ns: Option<u64>) -> Outcome {
        Outcome {
            result,
            found: self,
            hold_ns,
        }
    }
}

/// The outcome of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// What became of it.
    pub result: TrimResult,
    /// What was, or would be, trimmed.
    pub found: Found,
    /// For how many nanoseconds `ima_extend_list_mutex` was held for the cut, if there was one.
    pub hold_ns: Option<u64>,
}

/// Writes the outcome of a request, as read from `trim`.
pub fn outcome(w: &mut dyn fmt::Write, outcome: &Outcome) -> fmt::Result {
    writeln!(w, "result={}", outcome.result.as_str())?;
    if let TrimResult::Refused(errno) = outcome.result {
        writeln!(w, "errno={errno}")?;
    }
    let found = &outcome.found;
    writeln!(w, "records={}", found.records)?;
    writeln!(w, "violations={}", found.violations)?;
    if let Some(number) = found.first_violation {
        writeln!(w, "first_violation={number}")?;
    }
    if let Some(hold_ns) = outcome.hold_ns {
        writeln!(w, "hold_ns={hold_ns}")?;
    }
    Ok(())
}

/// How much is known of the starting PCR values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Base {
    /// The replay from them reached the values of the TPM.
    Verified,
    /// It did not, or the TPM could not be read.
    Unverified,
    /// Somebody else removed records.
    Unknown,
}

impl Base {
    /// The name of the state.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Verified => "verified",
            Self::Unverified => "unverified",
            Self::Unknown => "unknown",
        }
    }
}

/// The state of the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status {
    /// How much is known of the starting PCR values.
    pub base: Base,
    /// Records in the list now.
    pub records: u64,
    /// Records trimmed.
    pub records_trimmed: u64,
    /// Violations among them.
    pub violations_trimmed: u64,
    /// How many trims there were.
    pub trims: u64,
    /// Records that somebody else removed.
    pub foreign_records: u64,
    /// Whether others are kept from removing any.
    pub guard: bool,
    /// For how many nanoseconds the last request that cut or freed anything held the mutex at a
    /// time, at most, for the cut or while memory was given back.
    pub hold_ns_last: u64,
    /// The longest of all requests.
    pub hold_ns_max: u64,
    /// Bytes of memory given back, less those that were allocated instead.
    pub bytes_freed: u64,
    /// Events whose record was found in the list, as it should be.
    pub measured: u64,
    /// Times that evidence could not be left: an audit record or a measurement failed.
    pub evidence_failed: u64,
    /// Which load of the module this is.
    pub instance: Instance,
    /// Whether the record of the last event is in the list, as it should be.
    pub evidence: bool,
    /// Whether requests have to be signed.
    pub signatures: bool,
}

/// A switch, as it is printed.
const fn on_off(on: bool) -> &'static str {
    if on {
        "on"
    } else {
        "off"
    }
}

/// Whether something has to be, as it is printed.
const fn required_off(required: bool) -> &'static str {
    if required {
        "required"
    } else {
        "off"
    }
}

/// Writes the text of `status`.
pub fn status<'a>(
    w: &mut dyn fmt::Write,
    banks: &Banks,
    unreplayable: impl Iterator<Item = &'a str>,
    status: &Status,
) -> fmt::Result {
    writeln!(w, "version={VERSION}")?;
    w.write_str("banks=")?;
    names(w, "", banks.iter().map(|(_, bank)| bank.name))?;
    w.write_char('\n')?;
    if names(w, "banks_unreplayable=", unreplayable)? {
        w.write_char('\n')?;
    }
    writeln!(w, "base={}", status.base.as_str())?;
    writeln!(w, "records={}", status.records)?;
    writeln!(w, "records_trimmed={}", status.records_trimmed)?;
    writeln!(w, "violations_trimmed={}", status.violations_trimmed)?;
    writeln!(w, "trims={}", status.trims)?;
    writeln!(w, "foreign_records={}", status.foreign_records)?;
    writeln!(w, "guard={}", on_off(status.guard))?;
    writeln!(w, "hold_ns_last={}", status.hold_ns_last)?;
    writeln!(w, "hold_ns_max={}", status.hold_ns_max)?;
    writeln!(w, "bytes_freed={}", status.bytes_freed)?;
    writeln!(w, "measured={}", status.measured)?;
    writeln!(w, "evidence_failed={}", status.evidence_failed)?;
    writeln!(w, "instance={}", status.instance)?;
    let evidence = if status.evidence { "measured" } else { "none" };
    writeln!(w, "evidence={evidence}")?;
    writeln!(w, "signatures={}", required_off(status.signatures))
}

/// Writes names with `key` before the first and commas between. Says whether there were any.
fn names<'a>(
    w: &mut dyn fmt::Write,
    key: &str,
    names: impl Iterator<Item = &'a str>,
) -> Result<bool, fmt::Error> {
    let mut before = key;
    let mut any = false;

    for name in names {
        write!(w, "{before}{name}")?;
        before = ",";
        any = true;
    }
    Ok(any)
}

/// Writes one line of `violations`: a violation record that was trimmed.
pub fn violation(
    w: &mut dyn fmt::Write,
    number: u64,
    pcr: i32,
    template: &[u8],
    name: &[u8],
) -> fmt::Result {
    write!(w, "{number} {pcr} ")?;
    word(w, template)?;
    w.write_char(' ')?;
    word(w, name)?;
    w.write_char('\n')
}

/// Writes bytes as one word, which is never empty.
fn word(w: &mut dyn fmt::Write, bytes: &[u8]) -> fmt::Result {
    if bytes.is_empty() {
        w.write_char('-')
    } else {
        write!(w, "{}", Escaped(bytes))
    }
}

/// Writes the last line of `violations`, if records had to be dropped from it.
pub fn violations_dropped(w: &mut dyn fmt::Write, dropped: u64) -> fmt::Result {
    if dropped == 0 {
        return Ok(());
    }
    writeln!(w, "dropped={dropped}")
}
