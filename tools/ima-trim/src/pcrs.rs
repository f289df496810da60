// SPDX-License-Identifier: GPL-2.0

//! PCR values, and what records replay to.
//!
//! A [`Point`] is a place in the measurement list: the values that the PCRs had there, and how many
//! records led to it. It is written as the module's file `starting_pcrs` is, which says where the
//! kernel's list begins.
//!
//! Judging a list is going from one point to another. Begin at [`Point::reset`] if there are all
//! records since boot, or at the point that `starting_pcrs` gave and that was believed before;
//! [`Point::extend`] it by one record after the other; and compare [`Point::get`] with the values
//! that the TPM signed. The list may have more records than the quote covers, for some are appended
//! all the time: [`Point::replay_to`] stops at the first record after which the values are those.
//!
//! ```
//! use ima_trim::algorithm::Algorithm;
//! use ima_trim::pcrs::Point;
//! use ima_trim::record::Records;
//! use ima_trim_pure::bank::Pcr;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let (list, quoted) = (Vec::<u8>::new(), [0; 32]);
//! let pcr = Pcr::new(10).ok_or("no such PCR")?;
//! let mut point = Point::reset(&[Algorithm::Sha256], pcr);
//! let target = point
//!     .target([(Algorithm::Sha256, pcr, quoted.as_slice())])
//!     .ok_or("not a value of this bank")?;
//!
//! if point.replay_to(&target, &mut Records::new(&list))? {
//!     println!("{} records are proved", point.totals().records);
//! }
//! # Ok(())
//! # }
//! ```
//!
//! What is extended is the hash of the template data, whatever digest the record itself has, so
//! that data that was changed does not replay. The exceptions are violations: for these all ones
//! are extended, and nothing proves their data. They are counted: a verifier must know how many to
//! expect. The replay is the module's own: [`ima_trim_pure::replay`].

use std::convert::Infallible;
use std::fmt;

use serde::de::Error as _;
use serde::Deserialize;
use serde::Deserializer;
use serde::Serialize;
use serde::Serializer;

use ima_trim_pure::bank::Bank;
use ima_trim_pure::bank::Banks;
use ima_trim_pure::bank::Pcr;
use ima_trim_pure::bank::PcrSet;
use ima_trim_pure::bank::Value;
use ima_trim_pure::bank::MAX_DIGEST;
use ima_trim_pure::replay;
use ima_trim_pure::replay::Outcome;
use ima_trim_pure::replay::Piece;
use ima_trim_pure::replay::Replay;
use ima_trim_pure::replay::SearchError;
use ima_trim_pure::replay::Target;
use ima_trim_pure::replay::PIECE;
use ima_trim_pure::report::starting_pcrs;
use ima_trim_pure::report::Escaped;
use ima_trim_pure::report::Totals;
use ima_trim_pure::request;
use ima_trim_pure::request::Request;
use ima_trim_pure::request::RequestError;
use ima_trim_pure::values::PcrValues;

use crate::algorithm::Algorithm;
use crate::record::Record;

/// PCR values to be reached by a replay: see [`Point::target`].
pub type Wanted = Target<Vec<Value>>;

/// The values of PCRs at one point of the list, and how many records led there.
///
/// Two are equal if they have the same banks, PCRs, values and totals. A point takes 1.5 KiB for
/// each bank; its text, as which it is serialised, about 100 bytes for each bank and PCR.
#[derive(Clone)]
pub struct Point {
    /// Sorted by name, each at the position that its algorithm has in [`Algorithm::ALL`].
    banks: Banks,
    /// The PCRs that are listed besides those that were extended since.
    listed: PcrSet,
    /// What led to where the replay began.
    before: Totals,
    replay: Replay<Vec<Value>>,
}

/// Why text is not that of `starting_pcrs`, or of a request.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PointError {
    /// The module does not know: somebody else removed records.
    #[error(
        "the starting values are unknown: {0} records were removed by other means than ima_trim"
    )]
    Unknown(u64),
    /// A bank that cannot be replayed here.
    #[error("the bank {0} cannot be replayed: this program knows sha1, sha256, sha384 and sha512")]
    Bank(String),
    /// Anything else.
    #[error("{0}")]
    Text(String),
}

impl Point {
    /// The values after a reset, with nothing replayed. `pcr` is listed from the beginning:
    /// `CONFIG_IMA_MEASURE_PCR_IDX`, usually 10.
    ///
    /// The order of the banks does not matter, nor whether one is given twice.
    pub fn reset(banks: &[Algorithm], pcr: Pcr) -> Self {
        let banks = sorted(|algorithm| banks.contains(&algorithm));
        let values = reset_values(&banks);
        Self {
            banks,
            listed: [pcr].into_iter().collect(),
            before: Totals::default(),
            replay: Replay::new(values),
        }
    }

    /// A point without banks: what is known of a list of which nothing was read.
    pub(crate) fn blank() -> Self {
        let banks = sorted(|_| false);
        Self {
            banks,
            listed: PcrSet::default(),
            before: Totals::default(),
            replay: Replay::new(reset_values(&banks)),
        }
    }

    /// The values that the same PCRs have in the same banks after a reset, with nothing replayed.
    pub(crate) fn after_reset(&self) -> Self {
        Self {
            banks: self.banks,
            listed: self.pcrs(),
            before: Totals::default(),
            replay: Replay::new(reset_values(&self.banks)),
        }
    }

    /// The text of `starting_pcrs`, as it is read.
    ///
    /// The tokens may have any order, and `instance=` may be among them, which is not kept: what
    /// is written to that file, and the events `trim` and `restore`, are such texts, too.
    ///
    /// # Errors
    ///
    /// If it is not such a text; if a PCR is not given in every bank that occurs; or if the bank
    /// is none that this program can replay.
    pub fn parse(text: &[u8]) -> Result<Self, PointError> {
        if let Some(records) = unknown(text) {
            return Err(PointError::Unknown(records));
        }
        let occurs = |algorithm: Algorithm| {
            text.split(u8::is_ascii_whitespace)
                .filter_map(|token| token.strip_prefix(algorithm.name().as_bytes()))
                .any(|rest| rest.first() == Some(&b':'))
        };
        let banks = sorted(occurs);
        let statement = request::parse_starting_pcrs(text, &banks, |_| true, reset_values(&banks))
            .map_err(|error| point_error(&error))?;

        let listed = statement.values.pcrs();
        for (index, bank) in banks.iter() {
            if let Some(pcr) = listed.without(statement.values.given(index)).iter().next() {
                return Err(PointError::Text(format!(
                    "the value of {}:{pcr} is missing: give every PCR in all banks, as the \
                     starting_pcrs file does",
                    bank.name
                )));
            }
        }
        Ok(Self {
            banks,
            listed,
            before: statement.totals,
            replay: Replay::new(statement.values.into_values()),
        })
    }

    /// The text of `starting_pcrs`, byte for byte as the module gives it.
    pub fn text(&self) -> String {
        let mut text = String::new();
        // A string takes everything, and there is a value of each PCR in each bank.
        let _ = starting_pcrs(
            &mut text,
            &self.banks,
            self.replay.values(),
            self.pcrs(),
            &self.totals(),
        );
        text
    }

    /// The banks, sorted by name.
    pub fn banks(&self) -> impl Iterator<Item = Algorithm> + '_ {
        self.banks
            .iter()
            .filter_map(|(_, bank)| Algorithm::named(bank.name))
    }

    /// The value of a PCR, [`Algorithm::size`] bytes; that after a reset if no record extended it.
    /// `None` if the point does not have that bank.
    pub fn get(&self, bank: Algorithm, pcr: Pcr) -> Option<&[u8]> {
        let index = self.banks.find(bank.name().as_bytes())?;
        self.replay.values().get(index, pcr)?.get(..bank.size())
    }

    /// The PCRs that are listed: those that records extended, and the one given at the start.
    pub fn pcrs(&self) -> PcrSet {
        self.listed.union(self.replay.seen())
    }

    /// Records, violations among them, and trims.
    pub fn totals(&self) -> Totals {
        Totals {
            records: self.before.records.saturating_add(self.replay.records()),
            violations: self
                .before
                .violations
                .saturating_add(self.replay.violations()),
            trims: self.before.trims,
        }
    }

    /// Sets how many trims there were, which no replay tells.
    pub fn set_trims(&mut self, trims: u64) {
        self.before.trims = trims;
    }

    /// Replays one record.
    ///
    /// One that names a PCR that no TPM has is counted, and extends nothing.
    ///
    /// # Panics
    ///
    /// Never: every bank is of an [`Algorithm`], and a record has a digest of each.
    pub fn extend(&mut self, record: &Record<'_>) {
        // Nor can this fail, but for more than 2^64 records.
        let _ = self
            .replay
            .step(&self.banks, &Hashes, &Hashed::new(record, &self.banks));
    }

    /// PCR values for [`Point::replay_to`], each of [`Algorithm::size`] bytes.
    ///
    /// `None` if one is of another size or of a bank that the point does not have, if a PCR of a
    /// bank is given twice, or if there are none: everything would match.
    pub fn target<'v>(
        &self,
        values: impl IntoIterator<Item = (Algorithm, Pcr, &'v [u8])>,
    ) -> Option<Wanted> {
        let mut target = Target::new(reset_values(&self.banks));

        for (bank, pcr, bytes) in values {
            let index = self.banks.find(bank.name().as_bytes())?;
            let mut value = [0; MAX_DIGEST];
            if bytes.len() != bank.size() {
                return None;
            }
            value.get_mut(..bytes.len())?.copy_from_slice(bytes);
            target.set(index, pcr, &value).ok()?;
        }
        (!target.is_empty()).then_some(target)
    }

    /// Reads a request to trim, in the grammar of the module's file `trim`, for the banks of this
    /// point. Its target is one for [`Point::replay_to`].
    ///
    /// # Errors
    ///
    /// As the module refuses it, with the same words.
    pub fn parse_request(&self, text: &[u8]) -> Result<Request<Vec<Value>>, PointError> {
        request::parse(
            text,
            &self.banks,
            |name| {
                Algorithm::ALL
                    .iter()
                    .any(|known| known.name().as_bytes() == name)
            },
            reset_values(&self.banks),
        )
        .map_err(|error| PointError::Text(error.to_string()))
    }

    /// Replays records up to the earliest one after which every value is that of the target, which
    /// may be before the first. Says whether there is one; if not, all records were replayed.
    ///
    /// Not one record more is asked for. `target` must be of this point, or of one that has the
    /// same banks.
    ///
    /// # Errors
    ///
    /// The first error that the records give. The point is that before it.
    pub fn replay_to<'r, I, E>(&mut self, target: &Wanted, records: &mut I) -> Result<bool, E>
    where
        I: Iterator<Item = Result<Record<'r>, E>>,
    {
        let mut records = Walk {
            records,
            banks: self.banks,
        };
        match replay::search(&self.banks, &Hashes, &mut self.replay, target, &mut records) {
            Ok(Outcome::Matched) => Ok(true),
            // A step cannot fail, see extend().
            Ok(Outcome::Exhausted) | Err(SearchError::Step(_)) => Ok(false),
            Err(SearchError::Walk(error)) => Err(error),
        }
    }

    /// Whether banks, PCRs, values, records and violations are the same, whatever `trims` is.
    pub fn same_values(&self, other: &Self) -> bool {
        let (own, others) = (self.totals(), other.totals());

        own.records == others.records
            && own.violations == others.violations
            && self.banks == other.banks
            && self.pcrs() == other.pcrs()
            && self.replay.values() == other.replay.values()
    }

    /// The tokens of a request that trims to here: `sha256:10=... violations=2`, one line without
    /// its end. `violations` is how many violations are in what is to go.
    pub fn request(&self, violations: u64) -> String {
        let text = self.text();
        let mut tokens: Vec<_> = text.lines().filter(|line| line.contains(':')).collect();
        let violations = format!("violations={violations}");

        tokens.push(&violations);
        tokens.join(" ")
    }
}

impl PartialEq for Point {
    fn eq(&self, other: &Self) -> bool {
        self.before.trims == other.before.trims && self.same_values(other)
    }
}

impl Eq for Point {}

/// As its text.
impl fmt::Debug for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Point").field(&self.text()).finish()
    }
}

/// As its text.
impl Serialize for Point {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text())
    }
}

/// From its text.
impl<'de> Deserialize<'de> for Point {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(text.as_bytes()).map_err(D::Error::custom)
    }
}

/// The banks of these algorithms, sorted by name.
fn sorted(contains: impl Fn(Algorithm) -> bool) -> Banks {
    let mut banks = Banks::new();

    // Algorithm::ALL is sorted by name.
    for (position, algorithm) in Algorithm::ALL.into_iter().enumerate() {
        if contains(algorithm) {
            // There are fewer than MAX_BANKS, no two alike, and no digest is too long.
            let _ = banks.push(Bank {
                name: algorithm.name(),
                size: algorithm.size(),
                position,
            });
        }
    }
    banks
}

/// All PCRs after a reset.
fn reset_values(banks: &Banks) -> PcrValues<Vec<Value>> {
    let cells = vec![[0; MAX_DIGEST]; PcrValues::<Vec<Value>>::cells(banks)];
    // There are as many as are asked for, so there always are values.
    let mut values = PcrValues::new(cells, banks).expect("as many cells as the banks need");

    values.reset(banks);
    values
}

/// How many records are missing, if that is all that a text says.
fn unknown(text: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(text).ok()?;
    text.trim_end()
        .strip_prefix("unknown records=")?
        .parse()
        .ok()
}

/// Of a text that gives starting values.
fn point_error(error: &RequestError<'_>) -> PointError {
    match error {
        RequestError::Bank { token } => {
            let name = token.split(|&byte| byte == b':').next();
            PointError::Bank(Escaped(name.unwrap_or_default()).to_string())
        }
        error => PointError::Text(error.to_string()),
    }
}

/// A record with its digests in the banks of a replay.
struct Hashed<'a> {
    record: Record<'a>,
    /// By [`Bank::position`].
    digests: [Value; Algorithm::ALL.len()],
}

impl<'a> Hashed<'a> {
    fn new(record: &Record<'a>, banks: &Banks) -> Self {
        let mut digests = [[0; MAX_DIGEST]; Algorithm::ALL.len()];

        // The digest of one that extends nothing, or is a violation, is not looked at.
        if Pcr::from_record(record.pcr()).is_some() && !record.is_violation() {
            for (_, bank) in banks.iter() {
                let algorithm = Algorithm::ALL.get(bank.position);
                if let (Some(digest), Some(&algorithm)) =
                    (digests.get_mut(bank.position), algorithm)
                {
                    *digest = record.digest(algorithm);
                }
            }
        }
        Self {
            record: *record,
            digests,
        }
    }
}

impl replay::Record for Hashed<'_> {
    fn pcr(&self) -> i32 {
        self.record.pcr()
    }

    fn digest(&self, bank: &Bank) -> Option<&[u8]> {
        self.digests.get(bank.position)?.get(..bank.size)
    }

    fn is_violation(&self) -> bool {
        self.record.is_violation()
    }
}

/// The hash algorithms of [`Algorithm`].
struct Hashes;

impl replay::Extend for Hashes {
    type Error = Infallible;

    fn extend(
        &self,
        _bank: usize,
        info: &Bank,
        value: &mut Value,
        digest: &[u8],
    ) -> Result<(), Infallible> {
        // Every bank of a point is one of these, and a value is longer than any of them.
        if let (Some(algorithm), Some(before)) =
            (Algorithm::ALL.get(info.position), value.get(..info.size))
        {
            *value = algorithm.hash(&[before, digest]);
        }
        Ok(())
    }
}

/// Records that are hashed on the way, until one cannot be had.
struct Walk<'i, I> {
    records: &'i mut I,
    banks: Banks,
}

impl<'r, I, E> replay::Records for Walk<'_, I>
where
    I: Iterator<Item = Result<Record<'r>, E>>,
{
    type Record = Hashed<'r>;
    type Error = E;

    fn piece(&mut self, mut step: impl FnMut(&Hashed<'r>) -> bool) -> Result<Piece, E> {
        for _ in 0..PIECE {
            let Some(record) = self.records.next() else {
                return Ok(Piece::Last);
            };
            if step(&Hashed::new(&record?, &self.banks)) {
                return Ok(Piece::Stopped);
            }
        }
        Ok(Piece::Full)
    }
}
