// SPDX-License-Identifier: GPL-2.0

//! Whether the starting PCR values are right: whether the replay from them ends in the values that
//! the TPM has.
//!
//! Records may be appended all the time. IMA holds `ima_extend_list_mutex` from adding a record to
//! the list until the TPM is extended, and the TPM is not read at one moment but PCR by PCR and
//! bank by bank. So the records are counted under the mutex before and after the TPM is read: what
//! was read has all of the first count, and nothing beyond the second. Each value must then be one
//! that the replay passes between the two. If nothing is appended, that is a single point.

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
    refusal::Refusal,
    replay::{
        advance,
        each,
        Record,
        Replay, //
    },
    rust::ima::Hold,
};

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
    /// Records that were replayed.
    pub(crate) records: u64,
    /// Violations among them.
    pub(crate) violations: u64,
    /// Records among them that name a PCR that no TPM has.
    pub(crate) unextended: u64,
    /// For each bank, the PCRs whose values are those of the TPM.
    equal: [PcrSet; MAX_BANKS],
}

impl Verdict {
    /// Whether a PCR of a bank has the value that the TPM has.
    pub(crate) fn is_equal(&self, bank: usize, pcr: Pcr) -> bool {
        self.equal.get(bank).is_some_and(|pcrs| pcrs.contains(pcr))
    }
}

/// Compares the replay of the list from the values `from` with the TPM, for the PCRs of `wanted`
/// and all that occur in the records.
///
/// Sleeps; takes `ima_extend_list_mutex` shortly, and waits for the TPM.
pub(crate) fn compare(
    machine: &Machine,
    hold: &Hold<'_>,
    from: Values,
    wanted: PcrSet,
) -> Result<Verdict, Refusal<'static>> {
    let banks = &machine.banks;
    let mut read = machine.reset_values()?;
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
        for (bank, _) in banks.iter() {
            let value = machine.read_pcr(bank, pcr)?;

            if let Some(cell) = read.get_mut(bank, pcr) {
                *cell = value;
            }
        }
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
        records: replay.records(),
        violations: replay.violations(),
        unextended: replay.unextended(),
        equal,
    })
}

/// The PCRs that the records of the list extend.
pub(crate) fn extended(hold: &Hold<'_>) -> Result<PcrSet, Refusal<'static>> {
    let mut pcrs = PcrSet::new();

    each(&mut hold.walk()?, |record| {
        if let Some(pcr) = Pcr::from_record(record.pcr()) {
            pcrs.insert(pcr);
        }
        Ok::<_, Refusal<'static>>(false)
    })?;
    Ok(pcrs)
}
