// SPDX-License-Identifier: GPL-2.0

//! Replaying a measurement list, and finding the record at which PCR values are reached.
//!
//! A replay does to values in memory what IMA did to the TPM: each record extends its digest into
//! one PCR of every bank. A violation has a digest of zeros in the list and was extended as all
//! ones, which is what is replayed here, but never without being counted.

#![forbid(unsafe_code)]

use core::convert::Infallible;
use core::fmt;
use core::ops::Deref;
use core::ops::DerefMut;

use crate::bank::Bank;
use crate::bank::Banks;
use crate::bank::Pcr;
use crate::bank::PcrSet;
use crate::bank::Value;
use crate::bank::MAX_BANKS;
use crate::bank::MAX_DIGEST;
use crate::values::PcrValues;

/// How many records a [`Records::piece`] has at most: long replays yield the CPU, or end, in
/// between.
pub const PIECE: usize = 64;

/// What is extended for a violation, cut to the size of the bank.
const VIOLATION: [u8; MAX_DIGEST] = [0xff; MAX_DIGEST];

/// A record of the measurement list.
pub trait Record {
    /// The PCR that the record names.
    fn pcr(&self) -> i32;

    /// The digest for this bank: the first [`Bank::size`] bytes of slot [`Bank::position`].
    fn digest(&self, bank: &Bank) -> Option<&[u8]>;

    /// Whether it is a violation.
    fn is_violation(&self) -> bool;
}

/// Records one after the other, to be gone through piece by piece.
pub trait Records {
    /// A record. It may be used only as long as `step` of [`Records::piece`] runs.
    type Record: Record;

    /// Why there may be more records, but no way to them.
    type Error;

    /// Gives the next records to `step`, up to [`PIECE`] of them, until it says that it has what it
    /// wants.
    fn piece(&mut self, step: impl FnMut(&Self::Record) -> bool) -> Result<Piece, Self::Error>;
}

/// How a piece ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece {
    /// `step` has what it wants.
    Stopped,
    /// There may be more records.
    Full,
    /// There are no more records.
    Last,
}

impl<I: Iterator<Item: Record>> Records for I {
    type Record = I::Item;
    type Error = Infallible;

    fn piece(&mut self, mut step: impl FnMut(&I::Item) -> bool) -> Result<Piece, Infallible> {
        for _ in 0..PIECE {
            match self.next() {
                None => return Ok(Piece::Last),
                Some(record) if step(&record) => return Ok(Piece::Stopped),
                Some(_) => {}
            }
        }
        Ok(Piece::Full)
    }
}

/// The hash algorithms of the banks.
pub trait Extend {
    /// Why a hash could not be computed.
    type Error;

    /// Extends a digest: hashes the first [`Bank::size`] bytes of `value` followed by `digest`,
    /// and stores the result in `value`, whose other bytes stay zero.
    fn extend(
        &self,
        bank: usize,
        info: &Bank,
        value: &mut Value,
        digest: &[u8],
    ) -> Result<(), Self::Error>;
}

/// Why a record could not be replayed. The values of the replay are of no use then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplayError<E> {
    /// The record, or the replay, has no digest of the right size for this bank.
    Digest {
        /// The name of the bank.
        bank: &'static str,
    },
    /// The digest could not be hashed.
    Hash(E),
    /// There are more records than can be counted.
    Overflow,
}

impl<E: fmt::Display> fmt::Display for ReplayError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Digest { bank } => write!(f, "a record has no {bank} digest of the right size"),
            Self::Hash(error) => write!(f, "a digest could not be hashed: {error}"),
            Self::Overflow => f.write_str("there are more records than can be counted"),
        }
    }
}

/// The state of a replay: PCR values, and what was met on the way to them.
#[derive(Clone, Debug)]
pub struct Replay<S> {
    values: PcrValues<S>,
    records: u64,
    violations: u64,
    first_violation: Option<u64>,
    unextended: u64,
    seen: PcrSet,
}

impl<S: DerefMut<Target = [Value]>> Replay<S> {
    /// A replay that begins at these starting values.
    pub fn new(values: PcrValues<S>) -> Self {
        Self {
            values,
            records: 0,
            violations: 0,
            first_violation: None,
            unextended: 0,
            seen: PcrSet::new(),
        }
    }

    /// Replays one record. Gives the PCR that was extended, if the TPM has it.
    pub fn step<R: Record, E: Extend>(
        &mut self,
        banks: &Banks,
        hash: &E,
        record: &R,
    ) -> Result<Option<Pcr>, ReplayError<E::Error>> {
        let violation = record.is_violation();

        self.records = count(self.records)?;
        if violation {
            self.violations = count(self.violations)?;
            self.first_violation.get_or_insert(self.records);
        }
        let Some(pcr) = Pcr::from_record(record.pcr()) else {
            self.unextended = count(self.unextended)?;
            return Ok(None);
        };
        self.seen.insert(pcr);

        for (bank, info) in banks.iter() {
            let digest = if violation {
                VIOLATION.get(..info.size)
            } else {
                record.digest(info)
            };
            let digest = digest.filter(|digest| digest.len() == info.size);
            let (Some(digest), Some(value)) = (digest, self.values.get_mut(bank, pcr)) else {
                return Err(ReplayError::Digest { bank: info.name });
            };
            hash.extend(bank, info, value, digest)
                .map_err(ReplayError::Hash)?;
        }
        Ok(Some(pcr))
    }
}

/// The next number, as long as there is one.
fn count<E>(number: u64) -> Result<u64, ReplayError<E>> {
    number.checked_add(1).ok_or(ReplayError::Overflow)
}

impl<S> Replay<S> {
    /// The PCR values after the records replayed so far.
    pub fn values(&self) -> &PcrValues<S> {
        &self.values
    }

    /// The PCR values, when the replay has ended.
    pub fn into_values(self) -> PcrValues<S> {
        self.values
    }

    /// How many records were replayed.
    pub fn records(&self) -> u64 {
        self.records
    }

    /// How many of them are violations.
    pub fn violations(&self) -> u64 {
        self.violations
    }

    /// Which of them is the first violation, counted from one.
    pub fn first_violation(&self) -> Option<u64> {
        self.first_violation
    }

    /// How many of them name a PCR that no TPM has, and so were never extended.
    pub fn unextended(&self) -> u64 {
        self.unextended
    }

    /// The PCRs that they extended.
    pub fn seen(&self) -> PcrSet {
        self.seen
    }
}

/// Why a value was not added to a [`Target`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TargetError {
    /// The bank is not among those that values are kept for.
    Bank,
    /// This PCR of this bank has a value already.
    Duplicate,
}

/// The PCR values that a request gives: those that a replay is to reach.
#[derive(Clone, Debug)]
pub struct Target<T> {
    /// For each bank, the PCRs that have a value.
    given: [PcrSet; MAX_BANKS],
    values: PcrValues<T>,
}

impl<T: DerefMut<Target = [Value]>> Target<T> {
    /// No value is given yet, whatever `values` hold.
    pub fn new(values: PcrValues<T>) -> Self {
        Self {
            given: [PcrSet::new(); MAX_BANKS],
            values,
        }
    }

    /// Adds the value of one PCR of one bank.
    pub fn set(&mut self, bank: usize, pcr: Pcr, value: &Value) -> Result<(), TargetError> {
        let (Some(given), Some(cell)) = (self.given.get_mut(bank), self.values.get_mut(bank, pcr))
        else {
            return Err(TargetError::Bank);
        };
        if given.contains(pcr) {
            return Err(TargetError::Duplicate);
        }
        given.insert(pcr);
        *cell = *value;
        Ok(())
    }
}

impl<T: Deref<Target = [Value]>> Target<T> {
    /// All values given, by bank, then by PCR.
    pub fn iter(&self) -> impl Iterator<Item = (usize, Pcr, &Value)> {
        self.given.iter().enumerate().flat_map(move |(bank, pcrs)| {
            pcrs.iter()
                .filter_map(move |pcr| Some((bank, pcr, self.values.get(bank, pcr)?)))
        })
    }
}

impl<T> Target<T> {
    /// The PCRs that have a value in this bank.
    pub fn given(&self, bank: usize) -> PcrSet {
        self.given.get(bank).copied().unwrap_or_default()
    }

    /// The values; only those given mean anything.
    pub fn values(&self) -> &PcrValues<T> {
        &self.values
    }

    /// The values; only those given mean anything.
    pub fn into_values(self) -> PcrValues<T> {
        self.values
    }

    /// The PCRs that have a value in any bank.
    pub fn pcrs(&self) -> PcrSet {
        self.given
            .iter()
            .fold(PcrSet::new(), |all, &pcrs| all.union(pcrs))
    }

    /// Whether no value was given.
    pub fn is_empty(&self) -> bool {
        self.pcrs().is_empty()
    }
}

/// Follows a replay and knows which values of a [`Target`] it has yet to reach.
///
/// It must be told of every PCR that changes, and then costs one comparison per bank and record.
#[derive(Clone, Debug)]
pub struct Matcher<'a, T> {
    target: &'a Target<T>,
    /// For each bank, the PCRs whose value is not the one given.
    unequal: [PcrSet; MAX_BANKS],
}

impl<'a, T: Deref<Target = [Value]>> Matcher<'a, T> {
    /// Compares all values given with those at which a replay begins.
    pub fn new<S: Deref<Target = [Value]>>(target: &'a Target<T>, values: &PcrValues<S>) -> Self {
        let mut unequal = [PcrSet::new(); MAX_BANKS];

        for (bank, pcrs) in unequal.iter_mut().enumerate() {
            *pcrs = target
                .iter()
                .filter(|&(of, pcr, value)| of == bank && values.get(bank, pcr) != Some(value))
                .map(|(_, pcr, _)| pcr)
                .collect();
        }
        Self { target, unequal }
    }

    /// Takes note that a PCR was extended.
    pub fn update<S: Deref<Target = [Value]>>(&mut self, values: &PcrValues<S>, pcr: Pcr) {
        let pcrs: PcrSet = [pcr].into_iter().collect();

        for (bank, (unequal, given)) in self.unequal.iter_mut().zip(&self.target.given).enumerate()
        {
            if given.contains(pcr) {
                *unequal = if values.get(bank, pcr) == self.target.values.get(bank, pcr) {
                    unequal.without(pcrs)
                } else {
                    unequal.union(pcrs)
                };
            }
        }
    }

    /// Whether every value given is the replayed one.
    pub fn matched(&self) -> bool {
        self.unequal.iter().all(|pcrs| pcrs.is_empty())
    }
}

/// How a search ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The replay stands at the earliest match. Not one record more was asked for.
    Matched,
    /// The records ended without a match.
    Exhausted,
}

/// Why going through many records ended early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SearchError<E, W> {
    /// What is done with each failed with one of them: [`ReplayError`] if they are replayed.
    Step(E),
    /// There may be more records, but no way to them.
    Walk(W),
}

/// Replays records up to the earliest point at which every value of the target is reached.
///
/// That may be before the first record.
pub fn search<S, T, R, E>(
    banks: &Banks,
    hash: &E,
    replay: &mut Replay<S>,
    target: &Target<T>,
    records: &mut R,
) -> Result<Outcome, SearchError<ReplayError<E::Error>, R::Error>>
where
    S: DerefMut<Target = [Value]>,
    T: Deref<Target = [Value]>,
    R: Records,
    E: Extend,
{
    let mut matcher = Matcher::new(target, replay.values());

    if matcher.matched() {
        return Ok(Outcome::Matched);
    }
    each(records, |record| {
        if let Some(pcr) = replay.step(banks, hash, record)? {
            matcher.update(replay.values(), pcr);
        }
        Ok(matcher.matched())
    })
}

/// Replays up to `count` records, or all that there are. Gives the number replayed.
///
/// `extended` is told of every PCR that was extended.
pub fn advance<S, R, E>(
    banks: &Banks,
    hash: &E,
    replay: &mut Replay<S>,
    records: &mut R,
    count: Option<u64>,
    mut extended: impl FnMut(&PcrValues<S>, Pcr),
) -> Result<u64, SearchError<ReplayError<E::Error>, R::Error>>
where
    S: DerefMut<Target = [Value]>,
    R: Records,
    E: Extend,
{
    let before = replay.records();
    let mut left = count;

    if left == Some(0) {
        return Ok(0);
    }
    each(records, |record| {
        if let Some(pcr) = replay.step(banks, hash, record)? {
            extended(replay.values(), pcr);
        }
        left = left.map(|left| left.saturating_sub(1));
        Ok(left == Some(0))
    })?;
    Ok(replay.records().saturating_sub(before))
}

/// Calls `step` for each record until it says that it has what it wants.
pub fn each<R: Records, E>(
    records: &mut R,
    mut step: impl FnMut(&R::Record) -> Result<bool, E>,
) -> Result<Outcome, SearchError<E, R::Error>> {
    loop {
        let mut result = Ok(false);
        let piece = records
            .piece(|record| {
                result = step(record);
                !matches!(result, Ok(false))
            })
            .map_err(SearchError::Walk)?;

        result.map_err(SearchError::Step)?;
        match piece {
            Piece::Stopped => return Ok(Outcome::Matched),
            Piece::Full => {}
            Piece::Last => return Ok(Outcome::Exhausted),
        }
    }
}
