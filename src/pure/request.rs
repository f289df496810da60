// SPDX-License-Identifier: GPL-2.0

//! The grammars of the requests that are written: to trim, and to restore starting PCR values.

#![forbid(unsafe_code)]

use core::fmt;
use core::ops::DerefMut;

use crate::bank::Banks;
use crate::bank::Pcr;
use crate::bank::Value;
use crate::bank::MAX_DIGEST;
use crate::bank::PCRS;
use crate::errno::Errno;
use crate::instance::parse_hex;
use crate::instance::Instance;
use crate::replay::Target;
use crate::replay::TargetError;
use crate::report::Escaped;
use crate::report::Totals;
use crate::signature::MAX_MESSAGE;
use crate::values::PcrValues;

/// Bytes of the longest request.
pub const MAX_REQUEST: usize = 16384;

/// The key of the instance.
const INSTANCE: &str = "instance";

/// The keys of the counts.
const RECORDS: &str = "records";
const VIOLATIONS: &str = "violations";
const TRIMS: &str = "trims";

/// Bytes of a token that a message shows.
const SHOWN: usize = 64;

/// What becomes of the memory of trimmed records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reclaim {
    /// Template data is freed, the rest stays for IMA's lookup of duplicates.
    Keep,
    /// The record is swapped for the smallest one that the lookup of duplicates needs.
    Compact,
    /// Everything is freed, and a file may be measured again.
    Flush,
}

impl Reclaim {
    /// The mode of this name.
    pub fn parse(name: &[u8]) -> Option<Self> {
        [Self::Keep, Self::Compact, Self::Flush]
            .into_iter()
            .find(|mode| mode.as_str().as_bytes() == name)
    }

    /// The name of the mode.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Keep => "keep",
            Self::Compact => "compact",
            Self::Flush => "flush",
        }
    }
}

/// A request to trim.
#[derive(Clone, Debug)]
pub struct Request<T> {
    /// The PCR values to trim to. At least one is given.
    pub target: Target<T>,
    /// How many violations the trimmed records are said to have.
    pub violations: u64,
    /// Whether everything is checked and nothing changed.
    pub dry_run: bool,
    /// What becomes of the memory, if the request says so.
    pub reclaim: Option<Reclaim>,
    /// The load of the module that the request is for, if it says so.
    pub instance: Option<Instance>,
}

/// What is to be taken for the starting PCR values, and said to have been trimmed before them.
#[derive(Clone, Debug)]
pub struct Statement<T> {
    /// The starting PCR values. At least one is given.
    pub values: Target<T>,
    /// What was trimmed.
    pub totals: Totals,
    /// The load of the module that the statement is for, if it says so.
    pub instance: Option<Instance>,
}

/// That what was written could not be read, and for which error: what to do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unread(pub Errno);

impl fmt::Display for Unread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Errno::Inval => write!(
                f,
                "a request is one write of at most {MAX_REQUEST} bytes at offset 0"
            )?,
            Errno::TooBig => write!(
                f,
                "a request is one write of at most {MAX_REQUEST} bytes at offset 0, or of \
                 {MAX_MESSAGE} if it is signed"
            )?,
            Errno::NoMem => f.write_str("there is no memory to read it")?,
            _ => f.write_str("what was written cannot be read")?,
        }
        write!(f, " ({})", self.0)
    }
}

/// What a request is written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grammar {
    /// That of `trim`.
    Trim,
    /// That of `starting_pcrs`.
    StartingPcrs,
}

/// Why a request is refused: the first thing wrong with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestError<'t> {
    /// The text is too long to be looked at.
    TooLong {
        /// Its bytes.
        len: usize,
    },
    /// No PCR value is given.
    Empty {
        /// Where there should be one.
        grammar: Grammar,
    },
    /// A count that must be given is not.
    Missing {
        /// The key of the count.
        key: &'static str,
    },
    /// A token of no known form.
    Unknown {
        /// The token.
        token: &'t [u8],
        /// Where it is not known.
        grammar: Grammar,
    },
    /// A token was given before, or has a PCR and bank that were.
    Duplicate {
        /// The token.
        token: &'t [u8],
    },
    /// A second mode that is not the first.
    SecondMode {
        /// The token.
        token: &'t [u8],
    },
    /// A count is not a plain decimal number of 64 bits.
    Count {
        /// The token.
        token: &'t [u8],
    },
    /// An instance is not of 32 hexadecimal digits.
    Instance {
        /// The token.
        token: &'t [u8],
    },
    /// No hash algorithm has the name that stands where a bank's should.
    Algorithm {
        /// The token.
        token: &'t [u8],
    },
    /// The bank is not one that is replayed.
    Bank {
        /// The token.
        token: &'t [u8],
    },
    /// The PCR is not a plain decimal number from 0 to 23.
    Pcr {
        /// The token.
        token: &'t [u8],
    },
    /// The value is empty, or not hexadecimal throughout.
    Hex {
        /// The token.
        token: &'t [u8],
    },
    /// The value has not as many digits as the bank's digests.
    Length {
        /// The token.
        token: &'t [u8],
        /// The number of digits that there should be.
        expected: usize,
        /// The number of digits that there are.
        given: usize,
    },
}

impl RequestError<'_> {
    /// The error that the writer gets.
    pub fn errno(&self) -> Errno {
        match self {
            Self::TooLong { .. } => Errno::TooBig,
            Self::Bank { .. } => Errno::OpNotSupp,
            Self::Empty { .. }
            | Self::Missing { .. }
            | Self::Unknown { .. }
            | Self::Duplicate { .. }
            | Self::SecondMode { .. }
            | Self::Count { .. }
            | Self::Instance { .. }
            | Self::Algorithm { .. }
            | Self::Pcr { .. }
            | Self::Hex { .. }
            | Self::Length { .. } => Errno::Inval,
        }
    }

    /// The token that is wrong, if it is a token.
    fn token(&self) -> Option<&[u8]> {
        match *self {
            Self::TooLong { .. } | Self::Empty { .. } | Self::Missing { .. } => None,
            Self::Unknown { token, .. }
            | Self::Duplicate { token }
            | Self::SecondMode { token }
            | Self::Count { token }
            | Self::Instance { token }
            | Self::Algorithm { token }
            | Self::Bank { token }
            | Self::Pcr { token }
            | Self::Hex { token }
            | Self::Length { token, .. } => Some(token),
        }
    }
}

impl fmt::Display for RequestError<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(token) = self.token() {
            let (shown, more) = match token.get(..SHOWN) {
                Some(shown) if shown.len() < token.len() => (shown, "..."),
                _ => (token, ""),
            };
            write!(f, "token \"{}{more}\": ", Escaped(shown))?;
        }
        match self {
            Self::TooLong { len } => write!(
                f,
                "request of {len} bytes is longer than {MAX_REQUEST}: give fewer PCR values"
            ),
            Self::Empty { grammar } => {
                f.write_str("request gives no PCR value: ")?;
                f.write_str(match grammar {
                    Grammar::Trim => "give at least one <bank>:<pcr>=<hex>",
                    Grammar::StartingPcrs => {
                        "give a <bank>:<pcr>=<hex> for each bank and PCR, as the starting_pcrs \
                         file does"
                    }
                })
            }
            Self::Missing { key } => write!(
                f,
                "request has no {key}=<n>: give records=, violations= and trims=, as the \
                 starting_pcrs file does"
            ),
            Self::Unknown { grammar, .. } => {
                let others = match grammar {
                    Grammar::Trim => {
                        "violations=<n>, instance=<hex>, dry-run, keep, compact or flush"
                    }
                    Grammar::StartingPcrs => {
                        "records=<n>, violations=<n>, trims=<n> or instance=<hex>"
                    }
                };
                write!(
                    f,
                    "not known: expected <bank>:<pcr>=<hex>, {others}, separated by blanks, tabs \
                     or newlines"
                )
            }
            Self::Duplicate { .. } => f.write_str("given more than once: give it once"),
            Self::SecondMode { .. } => {
                f.write_str("a second mode: give one of keep, compact and flush")
            }
            Self::Count { .. } => f.write_str(
                "not a count: give a decimal number of 64 bits without sign or leading zeros",
            ),
            Self::Instance { .. } => f.write_str(
                "not an instance: give the 32 hexadecimal digits that the status file has",
            ),
            Self::Algorithm { .. } => f.write_str(
                "no hash algorithm has this name: use the banks that the status file lists",
            ),
            Self::Bank { .. } => f.write_str(
                "the TPM has not allocated this bank, or it cannot be replayed: use the banks \
                 that the status file lists",
            ),
            Self::Pcr { .. } => {
                write!(
                    f,
                    "no such PCR: give a decimal number below {PCRS}, as in sha256:10="
                )
            }
            Self::Hex { .. } => f.write_str("value is not hexadecimal: give digits 0-9 and a-f"),
            Self::Length {
                expected, given, ..
            } => write!(
                f,
                "value has {given} hexadecimal digits: digests of this bank have {expected}"
            ),
        }
    }
}

/// Reads a request to trim.
///
/// `known` says whether the kernel knows a hash algorithm of a name at all: a bank of that name is
/// then merely not there. The values of the request are kept in `values`, whatever these hold now.
pub fn parse<'t, T: DerefMut<Target = [Value]>>(
    text: &'t [u8],
    banks: &Banks,
    known: impl Fn(&[u8]) -> bool,
    values: PcrValues<T>,
) -> Result<Request<T>, RequestError<'t>> {
    let grammar = Grammar::Trim;
    let mut target = Target::new(values);
    let mut violations = None;
    let mut dry_run = false;
    let mut reclaim = None;
    let mut instance = None;

    for token in tokens(text)? {
        if token == b"dry-run" {
            if dry_run {
                return Err(RequestError::Duplicate { token });
            }
            dry_run = true;
        } else if let Some(mode) = Reclaim::parse(token) {
            match reclaim.replace(mode) {
                None => {}
                Some(before) if before == mode => return Err(RequestError::Duplicate { token }),
                Some(_) => return Err(RequestError::SecondMode { token }),
            }
        } else if !take_count(token, VIOLATIONS, &mut violations)?
            && !take_instance(token, &mut instance)?
        {
            take_pcr_value(token, banks, &known, grammar, &mut target)?;
        }
    }
    if target.is_empty() {
        return Err(RequestError::Empty { grammar });
    }
    Ok(Request {
        target,
        violations: violations.unwrap_or(0),
        dry_run,
        reclaim,
        instance,
    })
}

/// Reads starting PCR values and totals, as [`crate::report::starting_pcrs`] writes them, in any
/// order.
///
/// `known` and `values` are as for [`parse`].
pub fn parse_starting_pcrs<'t, T: DerefMut<Target = [Value]>>(
    text: &'t [u8],
    banks: &Banks,
    known: impl Fn(&[u8]) -> bool,
    values: PcrValues<T>,
) -> Result<Statement<T>, RequestError<'t>> {
    let grammar = Grammar::StartingPcrs;
    let mut target = Target::new(values);
    let mut records = None;
    let mut violations = None;
    let mut trims = None;
    let mut instance = None;

    for token in tokens(text)? {
        let taken = take_count(token, RECORDS, &mut records)?
            || take_count(token, VIOLATIONS, &mut violations)?
            || take_count(token, TRIMS, &mut trims)?
            || take_instance(token, &mut instance)?;
        if !taken {
            take_pcr_value(token, banks, &known, grammar, &mut target)?;
        }
    }
    if target.is_empty() {
        return Err(RequestError::Empty { grammar });
    }
    Ok(Statement {
        values: target,
        totals: Totals {
            records: records.ok_or(RequestError::Missing { key: RECORDS })?,
            violations: violations.ok_or(RequestError::Missing { key: VIOLATIONS })?,
            trims: trims.ok_or(RequestError::Missing { key: TRIMS })?,
        },
        instance,
    })
}

/// The tokens of a text, if it is not too long.
fn tokens(text: &[u8]) -> Result<impl Iterator<Item = &[u8]>, RequestError<'_>> {
    if text.len() > MAX_REQUEST {
        return Err(RequestError::TooLong { len: text.len() });
    }
    Ok(text
        .split(|byte| matches!(byte, b' ' | b'\t' | b'\n'))
        .filter(|token| !token.is_empty()))
}

/// Reads a count into `count`, if the token is one of this key. Says whether it is.
fn take_count<'t>(
    token: &'t [u8],
    key: &str,
    count: &mut Option<u64>,
) -> Result<bool, RequestError<'t>> {
    let Some(number) = of_key(token, key) else {
        return Ok(false);
    };
    let number = decimal(number).ok_or(RequestError::Count { token })?;
    if count.replace(number).is_some() {
        return Err(RequestError::Duplicate { token });
    }
    Ok(true)
}

/// Reads an instance into `instance`, if the token is one. Says whether it is.
fn take_instance<'t>(
    token: &'t [u8],
    instance: &mut Option<Instance>,
) -> Result<bool, RequestError<'t>> {
    let Some(number) = of_key(token, INSTANCE) else {
        return Ok(false);
    };
    let number = Instance::parse(number).ok_or(RequestError::Instance { token })?;

    if instance.replace(number).is_some() {
        return Err(RequestError::Duplicate { token });
    }
    Ok(true)
}

/// What stands behind `key=`, if that is what the token begins with.
fn of_key<'t>(token: &'t [u8], key: &str) -> Option<&'t [u8]> {
    split_at_byte(token, b'=')
        .filter(|(name, _)| *name == key.as_bytes())
        .map(|(_, value)| value)
}

/// Reads a PCR token into `target`.
fn take_pcr_value<'t, T: DerefMut<Target = [Value]>>(
    token: &'t [u8],
    banks: &Banks,
    known: impl Fn(&[u8]) -> bool,
    grammar: Grammar,
    target: &mut Target<T>,
) -> Result<(), RequestError<'t>> {
    let (bank, pcr, value) = pcr_value(token, banks, known, grammar)?;

    target.set(bank, pcr, &value).map_err(|error| match error {
        TargetError::Bank => RequestError::Bank { token },
        TargetError::Duplicate => RequestError::Duplicate { token },
    })
}

/// Reads a PCR token: `<bank>:<pcr>=<hex>`.
///
/// What is malformed whatever the bank is found first, so that it is never blamed on the TPM.
fn pcr_value<'t>(
    token: &'t [u8],
    banks: &Banks,
    known: impl Fn(&[u8]) -> bool,
    grammar: Grammar,
) -> Result<(usize, Pcr, Value), RequestError<'t>> {
    let unknown = RequestError::Unknown { token, grammar };
    let (name, rest) = split_at_byte(token, b':').ok_or(unknown)?;
    let (pcr, hex) = split_at_byte(rest, b'=').ok_or(unknown)?;

    let bank = banks.find(name);
    if bank.is_none() && !known(name) {
        return Err(RequestError::Algorithm { token });
    }
    let pcr = decimal(pcr)
        .and_then(|number| Pcr::new(u32::try_from(number).ok()?))
        .ok_or(RequestError::Pcr { token })?;
    if hex.is_empty() || !hex.iter().all(u8::is_ascii_hexdigit) {
        return Err(RequestError::Hex { token });
    }
    let bank = bank.ok_or(RequestError::Bank { token })?;
    let size = banks.get(bank).map_or(0, |info| info.size);
    let value = value(hex, size).ok_or(RequestError::Length {
        token,
        expected: size.saturating_mul(2),
        given: hex.len(),
    })?;
    Ok((bank, pcr, value))
}

/// What stands before and after the first such byte.
fn split_at_byte(text: &[u8], separator: u8) -> Option<(&[u8], &[u8])> {
    let mut parts = text.splitn(2, |&byte| byte == separator);
    Some((parts.next()?, parts.next()?))
}

/// Reads a decimal number that has no sign and no leading zeros and fits 64 bits.
fn decimal(text: &[u8]) -> Option<u64> {
    match text {
        [] | [b'0', _, ..] => None,
        digits => digits.iter().try_fold(0u64, |number, &byte| {
            let digit = char::from(byte).to_digit(10)?;
            number.checked_mul(10)?.checked_add(u64::from(digit))
        }),
    }
}

/// Reads a value of `size` bytes from exactly as many hexadecimal digits as it takes.
fn value(hex: &[u8], size: usize) -> Option<Value> {
    let mut value = [0; MAX_DIGEST];

    parse_hex(hex, value.get_mut(..size)?).then_some(value)
}
