// SPDX-License-Identifier: GPL-2.0

//! The account of what was trimmed: the starting PCR values, what is known of them, and the
//! violations that went with the records.

#![forbid(unsafe_code)]

use crate::{
    bank::{
        Pcr,
        PcrSet, //
    },
    base::Verdict,
    machine::{
        Machine,
        Values, //
    },
    replay::Record,
    report::{
        self,
        Base,
        Outcome,
        Status,
        Totals, //
    },
    rust::ima::{
        Counters,
        ListRecord, //
    },
};
use core::fmt;
use kernel::prelude::*;

/// How many violations are kept.
pub(crate) const MAX_VIOLATIONS: usize = 4096;

/// How many bytes are kept of the name hint of a violation: IMA's own limit for names
/// (`IMA_EVENT_NAME_LEN_MAX`).
const MAX_NAME: usize = 255;

/// A violation that was trimmed.
pub(crate) struct Violation {
    /// The number of the record, counted from 1 since boot.
    number: u64,
    pcr: i32,
    template: KVec<u8>,
    name: KVec<u8>,
}

impl Violation {
    /// Room for any.
    pub(crate) fn blank() -> Result<Self> {
        Ok(Self {
            number: 0,
            pcr: 0,
            template: KVec::with_capacity(MAX_NAME, GFP_KERNEL)?,
            name: KVec::with_capacity(MAX_NAME, GFP_KERNEL)?,
        })
    }

    /// Makes a [`Violation::blank`] the account of a violation record. Nothing is allocated.
    pub(crate) fn note(&mut self, number: u64, record: &ListRecord<'_>) {
        self.number = number;
        self.pcr = record.pcr();
        for (kept, text) in [
            (&mut self.template, record.template_name()),
            (&mut self.name, record.name_hint()),
        ] {
            kept.clear();
            for byte in text.iter().take(MAX_NAME) {
                // There is room.
                let _ = kept.push_within_capacity(*byte);
            }
        }
    }

    /// The same in no more memory than it needs.
    fn copy(&self) -> Result<Self> {
        let copy = |text: &[u8]| {
            let mut copy = KVec::new();

            copy.extend_from_slice(text, GFP_KERNEL)?;
            Ok::<_, Error>(copy)
        };

        Ok(Self {
            number: self.number,
            pcr: self.pcr,
            template: copy(&self.template)?,
            name: copy(&self.name)?,
        })
    }
}

/// The violations of one trim.
pub(crate) struct Violations {
    new: KVVec<Violation>,
    /// Room for them and for those that are kept of earlier trims.
    room: KVVec<Violation>,
    /// How many were not even listed, because more than [`MAX_VIOLATIONS`] came after them.
    omitted: u64,
}

impl Violations {
    /// Room for `count` violations beside the `kept` ones that the ledger has.
    pub(crate) fn with_room(count: u64, kept: usize) -> Result<Self> {
        let new = usize::try_from(count).unwrap_or(MAX_VIOLATIONS);
        let new = new.min(MAX_VIOLATIONS);
        let all = match new {
            // Those that are kept stay where they are.
            0 => 0,
            _ => new.saturating_add(kept).min(MAX_VIOLATIONS),
        };

        Ok(Self {
            new: KVVec::with_capacity(new, GFP_KERNEL)?,
            room: KVVec::with_capacity(all, GFP_KERNEL)?,
            omitted: count.saturating_sub(MAX_VIOLATIONS as u64),
        })
    }

    /// How many of the first violations are not to be listed.
    pub(crate) fn omitted(&self) -> u64 {
        self.omitted
    }

    /// Lists one.
    pub(crate) fn push(&mut self, violation: &Violation) -> Result {
        self.new
            .push_within_capacity(violation.copy()?)
            .map_err(|_| ENOMEM)
    }
}

/// What a trim changes in the account.
pub(crate) struct Trimmed {
    /// The PCR values at the cut.
    pub(crate) values: Values,
    /// PCRs that the records extended.
    pub(crate) pcrs: PcrSet,
    /// Records that were cut off.
    pub(crate) records: u64,
    /// How many of them were violations.
    pub(crate) violations: u64,
    /// These violations.
    pub(crate) list: Violations,
}

/// What was trimmed since the module was loaded.
pub(crate) struct Ledger {
    /// The starting PCR values.
    starting: Values,
    /// PCRs that `starting_pcrs` lists: that of IMA, and those that a trimmed record extended.
    listed: PcrSet,
    /// PCRs whose starting values are a fact, and that records extend.
    verified: PcrSet,
    /// PCRs whose starting values do not lead to what the TPM has.
    refuted: PcrSet,
    /// PCRs that records extended, trimmed or not.
    seen: PcrSet,
    /// IMA's count of all records when the PCRs that they extend were last looked at.
    looked_at: i64,
    totals: Totals,
    violations: KVVec<Violation>,
    /// Violations that were trimmed and are not in the list.
    dropped: u64,
    /// The records that this kernel removed and that are in the account.
    accounted: u64,
    /// Of those that are not, how many were told of.
    noticed: u64,
    hold_ns_last: u64,
    hold_ns_max: u64,
    bytes_freed: u64,
    measured: u64,
    evidence_failed: u64,
    outcome: Option<Outcome>,
}

impl Ledger {
    /// Nothing was trimmed yet: the starting values are the reset values.
    pub(crate) fn new(machine: &Machine) -> Result<Self> {
        let mut own = PcrSet::new();

        own.insert(machine.measure_pcr);
        Ok(Self {
            starting: machine.reset_values()?,
            listed: own,
            verified: PcrSet::new(),
            refuted: PcrSet::new(),
            seen: own,
            looked_at: -1,
            totals: Totals {
                records: 0,
                violations: 0,
                trims: 0,
            },
            violations: KVVec::new(),
            dropped: 0,
            accounted: 0,
            noticed: 0,
            hold_ns_last: 0,
            hold_ns_max: 0,
            bytes_freed: 0,
            measured: 0,
            evidence_failed: 0,
            outcome: None,
        })
    }

    /// The starting PCR values.
    pub(crate) fn starting(&self) -> &Values {
        &self.starting
    }

    /// What was trimmed in all.
    pub(crate) fn totals(&self) -> Totals {
        self.totals
    }

    /// How many violations are listed.
    pub(crate) fn violations_kept(&self) -> usize {
        self.violations.len()
    }

    /// The records that somebody else removed.
    pub(crate) fn foreign(&self, counters: &Counters) -> u64 {
        removed(counters).saturating_sub(self.accounted)
    }

    /// Tells, once, of records that somebody else removed. Gives their number.
    pub(crate) fn notice(&mut self, counters: &Counters) -> u64 {
        let foreign = self.foreign(counters);

        if foreign > self.noticed {
            self.noticed = foreign;
            log_warn!(
                "somebody else removed {foreign} records: the starting PCR values are unknown until \
                 they are written to starting_pcrs, and nothing will be trimmed"
            );
        }
        foreign
    }

    /// Whether the account is whole: nothing was removed by others, and the values of this PCR are
    /// a fact.
    pub(crate) fn is_whole(&self, counters: &Counters, pcr: Pcr) -> bool {
        self.foreign(counters) == 0 && self.verified.contains(pcr)
    }

    /// Whether one of these values is another than the starting value, which is a fact.
    pub(crate) fn contradicts(&self, values: &Values, bank: usize, pcr: Pcr) -> bool {
        self.verified.contains(pcr) && self.starting.get(bank, pcr) != values.get(bank, pcr)
    }

    /// The PCRs that have to be stated with starting values: those listed, and those seen.
    pub(crate) fn known(&self) -> PcrSet {
        self.listed.union(self.seen)
    }

    /// Takes over starting values that were stated and verified. Does not allocate. What is returned
    /// is to be dropped without locks.
    pub(crate) fn restore(
        &mut self,
        values: Values,
        totals: Totals,
        verdict: &Verdict,
        counters: &Counters,
    ) -> Values {
        self.dropped = totals
            .violations
            .saturating_sub(self.violations.len() as u64);
        self.totals = totals;
        self.listed = self.listed.union(verdict.pcrs);
        self.verified = self.proved(verdict);
        self.refuted = PcrSet::new();
        self.seen = self.seen.union(verdict.seen);
        self.accounted = removed(counters);
        self.noticed = 0;
        core::mem::replace(&mut self.starting, values)
    }

    /// Of these PCRs, those of which it is not known whether their starting values are a fact.
    pub(crate) fn undecided(&self, pcrs: PcrSet) -> PcrSet {
        pcrs.without(self.verified).without(self.refuted)
    }

    /// Of these PCRs, one whose starting values are not known to be a fact.
    pub(crate) fn unverified(&self, pcrs: PcrSet) -> Option<Pcr> {
        pcrs.without(self.verified).iter().next()
    }

    /// Whether no records arrived since the PCRs that they extend were last looked at, and it is
    /// known of these whether their starting values are a fact.
    pub(crate) fn is_decided(&self, counters: &Counters) -> bool {
        self.looked_at == counters.full && self.undecided(self.seen).is_empty()
    }

    /// Notes the PCRs that the records up to `counters` extend.
    pub(crate) fn look_at(&mut self, counters: &Counters, seen: PcrSet) {
        self.looked_at = counters.full;
        self.seen = self.seen.union(seen);
    }

    /// Notes a verdict. Once records extend a PCR and it was verified, its starting values stay so:
    /// they only change by a replay from them. Until then something else may extend it.
    ///
    /// Gives the PCRs that were refuted just now.
    pub(crate) fn judge(&mut self, verdict: &Verdict) -> PcrSet {
        let news = self.undecided(verdict.refuted);

        self.verified = self.verified.union(self.proved(verdict));
        self.refuted = self.refuted.union(verdict.refuted).without(self.verified);
        self.seen = self.seen.union(verdict.seen);
        news
    }

    /// The PCRs whose starting values a verdict has shown to be a fact for good.
    fn proved(&self, verdict: &Verdict) -> PcrSet {
        verdict
            .verified
            .intersection(self.seen.union(verdict.extended))
    }

    /// How much is known of the starting values.
    pub(crate) fn base(&self, counters: &Counters) -> Base {
        if self.foreign(counters) != 0 {
            Base::Unknown
        } else if self.unverified(self.seen).is_some() {
            Base::Unverified
        } else {
            Base::Verified
        }
    }

    /// Notes a trim. Does not allocate. What is returned is to be dropped without locks.
    pub(crate) fn commit(&mut self, trimmed: Trimmed, hold_ns: u64) -> Values {
        let Trimmed {
            values,
            pcrs,
            records,
            violations,
            list:
                Violations {
                    mut new,
                    room,
                    omitted,
                },
        } = trimmed;
        let totals = &mut self.totals;

        totals.records = totals.records.saturating_add(records);
        totals.violations = totals.violations.saturating_add(violations);
        totals.trims = totals.trims.saturating_add(1);
        self.accounted = self.accounted.saturating_add(records);
        self.listed = self.listed.union(pcrs);
        self.hold_ns_last = hold_ns;
        self.hold_ns_max = self.hold_ns_max.max(hold_ns);

        if !new.is_empty() {
            let mut old = core::mem::replace(&mut self.violations, room);
            let surplus = old
                .len()
                .saturating_add(new.len())
                .saturating_sub(MAX_VIOLATIONS);

            self.dropped = self
                .dropped
                .saturating_add(omitted)
                .saturating_add(surplus as u64);
            for violation in Iterator::chain(old.drain_all().skip(surplus), new.drain_all()) {
                // There is room: `Violations::with_room()`.
                let _ = self.violations.push_within_capacity(violation);
            }
        }

        core::mem::replace(&mut self.starting, values)
    }

    /// Notes memory that was given back by a request, and for how long it held the mutex at a time.
    pub(crate) fn reclaimed(&mut self, bytes: u64, hold_ns: u64) {
        self.bytes_freed = self.bytes_freed.saturating_add(bytes);
        self.hold_ns_last = hold_ns;
        self.hold_ns_max = self.hold_ns_max.max(hold_ns);
    }

    /// Notes what became of the evidence of a trim.
    pub(crate) fn evidence(&mut self, measured: bool, failed: u64) {
        self.measured = self.measured.saturating_add(u64::from(measured));
        self.evidence_failed = self.evidence_failed.saturating_add(failed);
    }

    /// The account as it would be after a trim, for evidence of it.
    pub(crate) fn show_trimmed(
        &self,
        w: &mut dyn fmt::Write,
        machine: &Machine,
        trimmed: &Trimmed,
    ) -> Result<Totals, fmt::Error> {
        let totals = Totals {
            records: self.totals.records.saturating_add(trimmed.records),
            violations: self.totals.violations.saturating_add(trimmed.violations),
            trims: self.totals.trims.saturating_add(1),
        };

        report::starting_pcrs(
            w,
            &machine.banks,
            &trimmed.values,
            self.listed.union(trimmed.pcrs),
            &totals,
        )?;
        Ok(totals)
    }

    /// Notes the outcome of a request.
    pub(crate) fn conclude(&mut self, outcome: Outcome) {
        self.outcome = Some(outcome);
    }

    /// Writes the last outcome, if there was any request.
    pub(crate) fn show_outcome(&self, w: &mut dyn fmt::Write) -> fmt::Result {
        match &self.outcome {
            Some(outcome) => report::outcome(w, outcome),
            None => Ok(()),
        }
    }

    /// Writes the starting PCR values.
    pub(crate) fn show_starting(
        &self,
        w: &mut dyn fmt::Write,
        machine: &Machine,
        counters: &Counters,
    ) -> fmt::Result {
        match self.foreign(counters) {
            0 => {
                report::starting_pcrs(w, &machine.banks, &self.starting, self.listed, &self.totals)
            }
            foreign => report::starting_pcrs_unknown(w, foreign),
        }
    }

    /// Writes the violations that were trimmed.
    pub(crate) fn show_violations(&self, w: &mut dyn fmt::Write) -> fmt::Result {
        for violation in &self.violations {
            report::violation(
                w,
                violation.number,
                violation.pcr,
                &violation.template,
                &violation.name,
            )?;
        }
        report::violations_dropped(w, self.dropped)
    }

    /// Writes the state of the module.
    pub(crate) fn show_status(
        &self,
        w: &mut dyn fmt::Write,
        machine: &Machine,
        counters: &Counters,
    ) -> fmt::Result {
        report::status(
            w,
            &machine.banks,
            machine
                .unreplayable
                .iter()
                .filter_map(|name| name.to_str().ok()),
            &Status {
                base: self.base(counters),
                records: u64::try_from(counters.live).unwrap_or(0),
                records_trimmed: self.totals.records,
                violations_trimmed: self.totals.violations,
                trims: self.totals.trims,
                foreign_records: self.foreign(counters),
                guard: machine.ima.is_guarded(),
                hold_ns_last: self.hold_ns_last,
                hold_ns_max: self.hold_ns_max,
                bytes_freed: self.bytes_freed,
                measured: self.measured,
                evidence_failed: self.evidence_failed,
            },
        )
    }
}

/// The records that this kernel ever removed.
pub(crate) fn removed(counters: &Counters) -> u64 {
    u64::try_from(counters.deleted()).unwrap_or(0)
}
