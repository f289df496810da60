// SPDX-License-Identifier: GPL-2.0

//! Planning a trim: the list is replayed until the values of the request match, and all that may
//! speak against the trim is checked. What it needs is allocated, and nothing is changed.

#![forbid(unsafe_code)]

use crate::{
    account::Account,
    bank::{
        Pcr,
        PcrSet, //
    },
    permission::Permitted,
    refusal::Refusal,
    replay::{
        each,
        search,
        Outcome,
        Record,
        Replay, //
    },
    report::Found,
    request::Request,
    rust::ima::{
        Busy,
        Hold,
        Position, //
    },
    trimmer::Trimmer,
    verify::extended,
    violations::NewViolations,
};
use kernel::{
    prelude::*,
    sync::Arc, //
};

/// A request, with its values in memory of the kernel.
pub(crate) type TrimRequest = Request<KVec<crate::bank::Value>>;

/// A trim that can be carried out.
pub(crate) struct Plan {
    /// Where the list is to be cut.
    pub(crate) position: Position,
    /// What would be trimmed.
    pub(crate) found: Found,
    /// The violations that would be trimmed.
    pub(crate) violations: NewViolations,
    /// How many of the records are in no PCR of the TPM.
    pub(crate) unextended: u64,
    /// The account as it would be after the trim.
    pub(crate) account: Account,
}

impl Trimmer {
    /// Plans what a request asks for: `None` if the starting values match, so that there is nothing
    /// to be trimmed.
    pub(crate) fn plan(
        self: &Arc<Self>,
        hold: &Hold<'_>,
        request: &Permitted<TrimRequest>,
    ) -> Result<Option<Plan>, Refusal<'static>> {
        let machine = &self.machine;

        // The counters are of the moment at which the walk began, so that account and walk are of
        // the same list.
        let mut walk = hold.walk()?;
        self.refuse_foreign(walk.began())?;
        self.require(hold, request.target.pcrs())?;

        // Nobody else changes the account meanwhile, as this task has the turn.
        let mut replay = Replay::new(self.starting_values()?);
        let outcome = search(
            &machine.banks,
            &machine.hashes,
            &mut replay,
            &request.target,
            &mut walk,
        )?;
        if outcome == Outcome::Exhausted {
            return Err(Refusal::NoMatch {
                records: replay.records(),
            });
        }
        let Some(position) = walk.position() else {
            return Ok(None);
        };
        self.require(hold, replay.seen())?;
        self.warn_of(replay.seen(), replay.unextended());

        let (before, kept) = {
            let ledger = self.ledger.lock();

            (ledger.account().totals().records, ledger.violations.len())
        };
        let found = Found {
            records: replay.records(),
            violations: replay.violations(),
            first_violation: replay
                .first_violation()
                .map(|number| number.saturating_add(before)),
        };
        if found.violations != request.violations {
            return Err(Refusal::Violations {
                found,
                stated: request.violations,
            });
        }

        let violations = violations(hold, &found, before, kept)?;
        let (seen, unextended) = (replay.seen(), replay.unextended());
        let account = self.ledger.lock().account().after_trim(
            replay.into_values(),
            seen,
            found.records,
            found.violations,
        );
        Ok(Some(Plan {
            position,
            found,
            violations,
            unextended,
            account,
        }))
    }

    /// Makes sure that the starting values of these PCRs are verified.
    ///
    /// For a PCR that no record extends, this is only true now, which is enough.
    fn require(self: &Arc<Self>, hold: &Hold<'_>, pcrs: PcrSet) -> Result<(), Refusal<'static>> {
        let undecided = self.ledger.lock().known.undecided(pcrs);
        if undecided.is_empty() {
            return self.refuse_unverified(pcrs);
        }

        let verified = self
            .decide(hold, undecided)
            .map_err(|refusal| match refusal {
                Refusal::Tpm { bank, pcr } => Refusal::Undecided { bank, pcr },
                refusal => refusal,
            })?;
        self.refuse_unverified(pcrs.without(verified))
    }

    /// Of these PCRs, those whose starting values the TPM confirms.
    fn decide(
        self: &Arc<Self>,
        hold: &Hold<'_>,
        undecided: PcrSet,
    ) -> Result<PcrSet, Refusal<'static>> {
        let mut rest = undecided.intersection(extended(hold)?);

        for pcr in undecided.without(rest).iter() {
            if !self.has_starting_value(pcr)? {
                // A record that extends it may just have arrived.
                if !extended(hold)?.contains(pcr) {
                    return Err(Refusal::Unextended(pcr));
                }
                rest.insert(pcr);
            }
        }
        let verified = undecided.without(rest);
        if rest.is_empty() {
            return Ok(verified);
        }
        Ok(verified.union(self.judge(hold, rest)?.verified))
    }

    /// Refuses unless the starting values of these PCRs are verified.
    fn refuse_unverified(&self, pcrs: PcrSet) -> Result<(), Refusal<'static>> {
        match self.ledger.lock().known.unverified(pcrs) {
            None => Ok(()),
            Some(pcr) => Err(Refusal::Unverified(pcr)),
        }
    }

    /// Whether the TPM has the starting value of this PCR, in every bank.
    fn has_starting_value(&self, pcr: Pcr) -> Result<bool, Refusal<'static>> {
        for (bank, _) in self.machine.banks.iter() {
            let value = self.machine.read_pcr(bank, pcr)?;

            if self.ledger.lock().account().values().get(bank, pcr) != Some(&value) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// Lists the violations of what was found. `before` records were trimmed earlier, and `kept` of
/// their violations are listed.
fn violations(
    hold: &Hold<'_>,
    found: &Found,
    before: u64,
    kept: usize,
) -> Result<NewViolations, Refusal<'static>> {
    let mut list = NewViolations::with_room(found.violations, kept)?;
    let mut number = before;
    let mut count = 0u64;

    if found.violations == 0 {
        return Ok(list);
    }
    let outcome = each(&mut hold.walk()?, |record| {
        number = number.saturating_add(1);
        if record.is_violation() {
            count = count.saturating_add(1);
            if count > list.omitted() {
                list.push(number, record)?;
            }
        }
        Ok::<_, Refusal<'static>>(count == found.violations)
    })?;

    match outcome {
        Outcome::Matched => Ok(list),
        Outcome::Exhausted => Err(Busy::Changed.into()),
    }
}
