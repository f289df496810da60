// SPDX-License-Identifier: GPL-2.0

//! TPM banks and PCR numbers.

#![forbid(unsafe_code)]

use core::fmt;

/// The most banks that are replayed at once. TPMs have two to four.
pub const MAX_BANKS: usize = 8;

/// PCRs per bank.
pub const PCRS: usize = 24;

/// Bytes of the longest digest.
pub const MAX_DIGEST: usize = 64;

/// Bytes of a record's SHA-1 digest that IMA looks at to tell a violation.
pub const VIOLATION_PROBE: usize = 20;

/// The value of one PCR in one bank.
///
/// Only the first [`Bank::size`] bytes mean anything. The others stay zero, so that whole values
/// can be compared.
pub type Value = [u8; MAX_DIGEST];

/// One bank of the TPM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bank {
    /// IMA's name of the hash algorithm.
    pub name: &'static str,
    /// Bytes of a digest.
    pub size: usize,
    /// Slot of this bank in a record's array of digests.
    pub position: usize,
}

/// Why a bank was not added to [`Banks`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BanksError {
    /// There are [`MAX_BANKS`] already.
    Full,
    /// The digest is empty or longer than [`MAX_DIGEST`].
    Size,
    /// A bank of this name or at this position is there already.
    Duplicate,
}

impl fmt::Display for BanksError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full => write!(f, "more than {MAX_BANKS} banks"),
            Self::Size => write!(
                f,
                "a digest that is empty or longer than {MAX_DIGEST} bytes"
            ),
            Self::Duplicate => f.write_str("a second bank of the same name or position"),
        }
    }
}

/// The banks that are replayed, in the order of the TPM.
///
/// A bank is named by its index in here wherever a number stands for one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Banks {
    /// Filled from the front, never emptied.
    slots: [Option<Bank>; MAX_BANKS],
}

impl Banks {
    /// No banks.
    pub const fn new() -> Self {
        Self {
            slots: [None; MAX_BANKS],
        }
    }

    /// Adds a bank after those that are there.
    pub fn push(&mut self, bank: Bank) -> Result<(), BanksError> {
        if bank.size == 0 || bank.size > MAX_DIGEST {
            return Err(BanksError::Size);
        }
        for slot in &mut self.slots {
            match slot {
                Some(other) if other.name == bank.name || other.position == bank.position => {
                    return Err(BanksError::Duplicate);
                }
                Some(_) => {}
                None => {
                    *slot = Some(bank);
                    return Ok(());
                }
            }
        }
        Err(BanksError::Full)
    }

    /// How many banks there are.
    pub fn len(&self) -> usize {
        self.slots.iter().flatten().count()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bank of this index.
    pub fn get(&self, index: usize) -> Option<&Bank> {
        self.slots.get(index)?.as_ref()
    }

    /// All banks with their indices.
    pub fn iter(&self) -> impl Iterator<Item = (usize, &Bank)> {
        self.slots.iter().flatten().enumerate()
    }

    /// The index of the bank of exactly this name.
    pub fn find(&self, name: &[u8]) -> Option<usize> {
        self.iter()
            .find(|(_, bank)| bank.name.as_bytes() == name)
            .map(|(index, _)| index)
    }
}

/// The number of a PCR that a TPM has: 0 to 23.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Pcr(u8);

impl Pcr {
    /// The PCR of this number, if there is one.
    pub fn new(number: u32) -> Option<Self> {
        let number = u8::try_from(number).ok()?;
        (usize::from(number) < PCRS).then_some(Self(number))
    }

    /// The PCR that a record names.
    ///
    /// IMA's policy accepts numbers up to 63. It lists such records, but no TPM extends them.
    pub fn from_record(number: i32) -> Option<Self> {
        Self::new(u32::try_from(number).ok()?)
    }

    /// The number, as an index.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }

    /// The bit that stands for this PCR in a [`PcrSet`].
    pub fn bit(self) -> u32 {
        1u32.wrapping_shl(u32::from(self.0))
    }

    /// Whether the value of this PCR can prove anything of records: user space can reset 16 and 23,
    /// and the TPM refuses what IMA extends 17 to 22 with, at locality 0 (TCG PC Client Platform
    /// TPM Profile, table of PCR attributes).
    pub fn is_proof(self) -> bool {
        !matches!(self.0, 16..=23)
    }

    /// All PCRs, ascending.
    pub fn all() -> impl Iterator<Item = Self> {
        (0u32..).map_while(Self::new)
    }
}

impl fmt::Display for Pcr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A set of PCRs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PcrSet(u32);

impl PcrSet {
    /// The empty set.
    pub const fn new() -> Self {
        Self(0)
    }

    /// Adds a PCR.
    pub fn insert(&mut self, pcr: Pcr) {
        self.0 |= pcr.bit();
    }

    /// Whether the PCR is in the set.
    pub fn contains(self, pcr: Pcr) -> bool {
        self.0 & pcr.bit() != 0
    }

    /// Whether there is none.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The PCRs of the set, ascending.
    pub fn iter(self) -> impl Iterator<Item = Pcr> {
        Pcr::all().filter(move |&pcr| self.contains(pcr))
    }

    /// The PCRs that are in either set.
    pub fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// The PCRs that are in both sets.
    pub fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// The PCRs of this set that are not in the other.
    pub fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
}

impl FromIterator<Pcr> for PcrSet {
    fn from_iter<I: IntoIterator<Item = Pcr>>(pcrs: I) -> Self {
        let mut set = Self::new();
        for pcr in pcrs {
            set.insert(pcr);
        }
        set
    }
}

/// The byte that fills a PCR when the TPM starts.
///
/// PCRs 17 to 22 are all ones until a dynamic launch resets them to zero, the others are zero.
pub fn reset_byte(pcr: Pcr) -> u8 {
    if matches!(pcr.0, 17..=22) {
        0xff
    } else {
        0
    }
}

/// Whether a SHA-1 digest from the measurement list is that of a violation, tested as IMA does.
pub fn shows_violation(digest: &[u8]) -> bool {
    digest
        .get(..VIOLATION_PROBE)
        .is_some_and(|probe| probe.iter().all(|&byte| byte == 0))
}
