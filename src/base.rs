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
            ReaderHold, //
        },
        task::{
            checkpoint,
            FatalSignal, //
        },
    },
};
use kernel::prelude::*;

/// What comparing a replay with the TPM showed.
#[derive(Clone, Copy)]
pub(crate) struct Verdict {
    /// PCRs whose values are those of the TPM in every bank.
    pub(crate) verified: PcrSet,
    /// PCRs of which at least one bank has another value.
    pub(crate) refuted: PcrSet,
    /// PCRs that records extended.
    pub(crate) seen: PcrSet,
}

/// Why the replay could not be compared with the TPM.
pub(crate) enum Undecided {
    /// The list cannot be walked now.
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

impl From<ReplayError<HashError>> for Undecided {
    fn from(error: ReplayError<HashError>) -> Self {
        Self::Replay(error)
    }
}

impl From<SearchError<HashError, FatalSignal>> for Undecided {
    fn from(error: SearchError<HashError, FatalSignal>) -> Self {
        match error {
            SearchError::Replay(error) => Self::Replay(error),
            SearchError::Checkpoint(FatalSignal) => Self::Killed,
        }
    }
}

/// PCRs of each bank, as bits.
#[derive(Clone, Copy)]
struct Cells([PcrSet; MAX_BANKS]);

impl Cells {
    /// Adds a PCR of a bank.
    fn insert(&mut self, bank: usize, pcr: Pcr) {
        if let Some(pcrs) = self.0.get_mut(bank) {
            pcrs.insert(pcr);
        }
    }

    /// Whether a PCR of a bank was added.
    fn contains(&self, bank: usize, pcr: Pcr) -> bool {
        self.0.get(bank).is_some_and(|pcrs| pcrs.contains(pcr))
    }
}

/// Compares the replay of the list from `starting` with the TPM, for the PCRs of `wanted` and all
/// that occur in the records.
///
/// Sleeps; takes `ima_extend_list_mutex` shortly, twice, and the TPM's locks.
pub(crate) fn verify(
    machine: &Machine,
    hold: &ReaderHold<'_>,
    starting: &Values,
    wanted: PcrSet,
) -> Result<Verdict, Undecided> {
    let banks = &machine.banks;
    let values = machine.copy(starting).map_err(|_| Undecided::NoMemory)?;
    let mut read = machine.reset_values().map_err(|_| Undecided::NoMemory)?;
    let mut replay = Replay::new(values);
    let mut walk = hold.walk()?;

    let listed = walk.listed();
    advance(
        banks,
        &machine.hashes,
        &mut replay,
        walk.by_ref(),
        Some(listed),
        checkpoint,
    )?;

    let pcrs = wanted.union(replay.seen());
    for pcr in pcrs.iter() {
        for (bank, info) in banks.iter() {
            let value = machine.read_pcr(bank, pcr).map_err(|_| {
                let name = info.name;

                log_err!("TPM does not give the value of {name}:{pcr}; see its driver's messages");
                Undecided::Tpm
            })?;

            if let Some(cell) = read.get_mut(bank, pcr) {
                *cell = value;
            }
        }
        checkpoint().map_err(|FatalSignal| Undecided::Killed)?;
    }

    let mut equal = Cells([PcrSet::new(); MAX_BANKS]);
    let mut compare = |replay: &Replay<_>, pcr: Pcr| {
        let replay: &Replay<KVec<_>> = replay;

        for (bank, _) in banks.iter() {
            if replay.values().get(bank, pcr) == read.get(bank, pcr) {
                equal.insert(bank, pcr);
            }
        }
    };
    pcrs.iter().for_each(|pcr| compare(&replay, pcr));

    let after = hold.counters();
    after.check()?;
    let arrived = u64::try_from(after.live)
        .unwrap_or(0)
        .saturating_sub(listed);
    for record in walk.take(usize::try_from(arrived).unwrap_or(usize::MAX)) {
        if let Some(pcr) = replay.step(banks, &machine.hashes, &record)? {
            compare(&replay, pcr);
        }
        checkpoint().map_err(|FatalSignal| Undecided::Killed)?;
    }

    let mut verdict = Verdict {
        verified: PcrSet::new(),
        refuted: PcrSet::new(),
        seen: replay.seen(),
    };
    for pcr in pcrs.iter() {
        if banks.iter().all(|(bank, _)| equal.contains(bank, pcr)) {
            verdict.verified.insert(pcr);
        } else {
            verdict.refuted.insert(pcr);
        }
    }
    Ok(verdict)
}
