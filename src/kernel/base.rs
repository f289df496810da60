// SPDX-License-Identifier: GPL-2.0

//! Whether the starting PCR values are a fact: whether the replay from them ends in the values that
//! the TPM has.
//!
//! Records may be appended all the time. IMA holds `ima_extend_list_mutex` from adding a record to
//! the list until the TPM is extended, and the TPM is not read at one moment but PCR by PCR and bank
//! by bank. So the records are counted under the mutex before and after the TPM is read: what was
//! read has all of the first count, and nothing beyond the second. Each value must then be one that
//! the replay passes between the two. If nothing is appended, that is a single point.

#![forbid(unsafe_code)]

use crate::{
    bank::{
        Pcr,
        PcrSet,
        MAX_BANKS, //
    },
    machine::{
        Machine,
        Values, //
    },
    replay::{
        advance,
        Replay,
        ReplayError,
        SearchError, //
    },
    rust::{
        hash::HashError,
        ima::{
            Busy,
            Hold, //
        },
        task::{
            checkpoint,
            FatalSignal, //
        },
    },
};
use kernel::prelude::*;

/// What comparing a replay with the TPM showed.
pub(crate) struct Verdict {
    /// PCRs that were compared.
    pub(crate) pcrs: PcrSet,
    /// PCRs whose values are those of the TPM in every bank.
    pub(crate) verified: PcrSet,
    /// PCRs of which at least one bank has another value.
    pub(crate) refuted: PcrSet,
    /// PCRs that records extended before the TPM was read.
    pub(crate) extended: PcrSet,
    /// PCRs that records extended, those that arrived meanwhile included.
    pub(crate) seen: PcrSet,
    /// Records that were replayed.
    pub(crate) records: u64,
    /// Violations among them.
    pub(crate) violations: u64,
    /// For each bank, the PCRs whose values are those of the TPM.
    equal: [PcrSet; MAX_BANKS],
}

impl Verdict {
    /// Whether a PCR of a bank has the value that the TPM has.
    pub(crate) fn is_equal(&self, bank: usize, pcr: Pcr) -> bool {
        self.equal.get(bank).is_some_and(|pcrs| pcrs.contains(pcr))
    }
}

/// Why the replay could not be compared with the TPM.
pub(crate) enum Undecided {
    /// The list cannot be walked now, or not any more.
    Busy(Busy),
    /// The TPM did not answer.
    Tpm,
    /// The task was killed.
    Killed,
    /// No memory.
    NoMemory,
    /// A record could not be replayed.
    Replay(ReplayError<HashError>),
}

impl From<Busy> for Undecided {
    fn from(busy: Busy) -> Self {
        Self::Busy(busy)
    }
}

impl From<FatalSignal> for Undecided {
    fn from(_: FatalSignal) -> Self {
        Self::Killed
    }
}

impl From<SearchError<ReplayError<HashError>, FatalSignal>> for Undecided {
    fn from(error: SearchError<ReplayError<HashError>, FatalSignal>) -> Self {
        match error {
            SearchError::Step(error) => Self::Replay(error),
            SearchError::Walk(killed) => killed.into(),
        }
    }
}

/// Compares the replay of the list from the values `from` with the TPM, for the PCRs of `wanted` and
/// all that occur in the records.
///
/// Sleeps; takes `ima_extend_list_mutex` shortly, and the TPM's locks.
pub(crate) fn verify(
    machine: &Machine,
    hold: &Hold<'_>,
    from: Values,
    wanted: PcrSet,
) -> Result<Verdict, Undecided> {
    let banks = &machine.banks;
    let mut read = machine.reset_values().map_err(|_| Undecided::NoMemory)?;
    let mut replay = Replay::new(from);
    let mut walk = hold.walk()?;

    let listed = walk.listed();
    advance(
        banks,
        &machine.hashes,
        &mut replay,
        &mut walk,
        Some(listed),
        |_, _| {},
    )?;

    let extended = replay.seen();
    let pcrs = wanted.union(extended);
    for pcr in pcrs.iter() {
        for (bank, info) in banks.iter() {
            let value = machine.read_pcr(bank, pcr).map_err(|error| {
                if error == ENOMEM {
                    return Undecided::NoMemory;
                }
                let name = info.name;

                log_limited!(
                    log_err,
                    "TPM does not give the value of {name}:{pcr}; see its driver's messages"
                );
                Undecided::Tpm
            })?;

            if let Some(cell) = read.get_mut(bank, pcr) {
                *cell = value;
            }
        }
        checkpoint()?;
    }

    let mut equal = [PcrSet::new(); MAX_BANKS];
    let mut compare = |values: &Values, pcr: Pcr| {
        for ((bank, _), equal) in banks.iter().zip(&mut equal) {
            if values.get(bank, pcr) == read.get(bank, pcr) {
                equal.insert(pcr);
            }
        }
    };
    pcrs.iter().for_each(|pcr| compare(replay.values(), pcr));

    let after = hold.counters();
    after.check()?;
    let arrived = u64::try_from(after.live)
        .unwrap_or(0)
        .saturating_sub(listed);
    advance(
        banks,
        &machine.hashes,
        &mut replay,
        &mut walk,
        Some(arrived),
        compare,
    )?;

    let verified: PcrSet = pcrs
        .iter()
        .filter(|&pcr| {
            banks
                .iter()
                .zip(&equal)
                .all(|(_, equal)| equal.contains(pcr))
        })
        .collect();
    Ok(Verdict {
        pcrs,
        verified,
        refuted: pcrs.without(verified),
        extended,
        seen: replay.seen(),
        records: replay.records(),
        violations: replay.violations(),
        equal,
    })
}
