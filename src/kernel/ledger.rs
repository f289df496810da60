// SPDX-License-Identifier: GPL-2.0

//! The ledger: the account of what was trimmed, what is known of it, and what status tells.

#![forbid(unsafe_code)]

use crate::{
    account::Account,
    bank::{
        Pcr,
        PcrSet, //
    },
    evidence::Tally,
    instance::Instance,
    known::Known,
    machine::Machine,
    report::{
        self,
        Base,
        Outcome,
        Status, //
    },
    rust::ima::Counters,
    verify::Verdict,
    violations::{
        KeptViolations,
        NewViolations,
        Violation, //
    },
};
use core::fmt;
use kernel::{
    alloc::AllocError,
    prelude::*, //
};

/// What was trimmed since the module was loaded.
pub(crate) struct Ledger {
    account: Account,
    pub(crate) known: Known,
    pub(crate) violations: KeptViolations,
    /// The records that this kernel removed and that are in the account.
    accounted: u64,
    /// Of those that are not, how many were told of.
    noticed: u64,
    /// PCRs that prove nothing, and of which that was said.
    warned: PcrSet,
    /// Whether it was said of PCRs that no TPM has.
    warned_unextended: bool,
    hold_ns_last: u64,
    hold_ns_max: u64,
    bytes_freed: u64,
    outcome: Option<Outcome>,
}

/// What is to be dropped when no lock is held any more.
pub(crate) struct Replaced {
    _account: Account,
    _violations: [KVVec<Violation>; 2],
}

impl Ledger {
    /// Nothing was trimmed yet: the starting values are the reset values.
    pub(crate) fn new(machine: &Machine) -> Result<Self, AllocError> {
        Ok(Self {
            account: Account::new(machine)?,
            known: Known::new(machine.measure_pcr),
            violations: KeptViolations::new(),
            accounted: 0,
            noticed: 0,
            warned: PcrSet::new(),
            warned_unextended: false,
            hold_ns_last: 0,
            hold_ns_max: 0,
            bytes_freed: 0,
            outcome: None,
        })
    }

    /// What stands for the records that are gone, unless others have removed some.
    pub(crate) fn account(&self) -> &Account {
        &self.account
    }

    /// The records that somebody else removed.
    pub(crate) fn foreign(&self, counters: &Counters) -> u64 {
        removed(counters).saturating_sub(self.accounted)
    }

    /// The same, if there are more than were noticed before. It is noticed with this.
    pub(crate) fn notice(&mut self, counters: &Counters) -> Option<u64> {
        let foreign = self.foreign(counters);

        (foreign > self.noticed).then(|| {
            self.noticed = foreign;
            foreign
        })
    }

    /// Whether the account is whole: nothing was removed by others, and the values of this PCR are
    /// a fact.
    pub(crate) fn is_whole(&self, counters: &Counters, pcr: Pcr) -> bool {
        self.foreign(counters) == 0 && self.known.is_verified(pcr)
    }

    /// The PCRs that have to be stated with starting values: those listed, and those seen.
    pub(crate) fn concerned(&self) -> PcrSet {
        self.account.pcrs().union(self.known.seen())
    }

    /// Of these PCRs, those that prove nothing, and of which that was not said before. It is now.
    pub(crate) fn unsafe_pcrs(&mut self, seen: PcrSet) -> PcrSet {
        let news: PcrSet = seen
            .without(self.warned)
            .iter()
            .filter(|pcr| !pcr.is_proof())
            .collect();

        self.warned = self.warned.union(news);
        news
    }

    /// Whether there are records of PCRs that no TPM has, which was not said before. It is now.
    pub(crate) fn are_unextended(&mut self, unextended: u64) -> bool {
        unextended != 0 && !core::mem::replace(&mut self.warned_unextended, true)
    }

    /// How much is known of the starting values.
    pub(crate) fn base(&self, counters: &Counters) -> Base {
        if self.foreign(counters) != 0 {
            Base::Unknown
        } else if self.known.is_whole() {
            Base::Verified
        } else {
            Base::Unverified
        }
    }

    /// Takes over the account of a restore. Does not allocate.
    pub(crate) fn restore(
        &mut self,
        account: Account,
        verdict: &Verdict,
        counters: &Counters,
    ) -> Replaced {
        self.violations.set_total(account.totals().violations);
        self.known.replace(verdict);
        self.accounted = removed(counters);
        self.noticed = 0;
        self.replace(account, [const { KVVec::new() }; 2])
    }

    /// Takes over the account of a trim of this many records. Does not allocate.
    pub(crate) fn commit(
        &mut self,
        account: Account,
        records: u64,
        violations: NewViolations,
        hold_ns: u64,
    ) -> Replaced {
        self.accounted = self.accounted.saturating_add(records);
        self.held(hold_ns);
        let old = self.violations.add(violations);
        self.replace(account, old)
    }

    fn replace(&mut self, account: Account, violations: [KVVec<Violation>; 2]) -> Replaced {
        Replaced {
            _account: core::mem::replace(&mut self.account, account),
            _violations: violations,
        }
    }

    /// Notes for how long a request held the mutex at a time.
    fn held(&mut self, hold_ns: u64) {
        self.hold_ns_last = hold_ns;
        self.hold_ns_max = self.hold_ns_max.max(hold_ns);
    }

    /// Notes memory that was given back by a request, and for how long it held the mutex at a time.
    pub(crate) fn reclaimed(&mut self, bytes: u64, hold_ns: u64) {
        self.bytes_freed = self.bytes_freed.saturating_add(bytes);
        self.held(hold_ns);
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
            0 => self.account.show(w, machine),
            foreign => report::starting_pcrs_unknown(w, foreign),
        }
    }

    /// Writes the state of the module.
    pub(crate) fn show_status(
        &self,
        w: &mut dyn fmt::Write,
        machine: &Machine,
        counters: &Counters,
        instance: Instance,
        tally: Tally,
    ) -> fmt::Result {
        let totals = self.account.totals();

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
                records_trimmed: totals.records,
                violations_trimmed: totals.violations,
                trims: totals.trims,
                foreign_records: self.foreign(counters),
                guard: machine.ima.is_guarded(),
                hold_ns_last: self.hold_ns_last,
                hold_ns_max: self.hold_ns_max,
                bytes_freed: self.bytes_freed,
                measured: tally.measured,
                evidence_failed: tally.failed,
                instance,
                evidence: tally.last,
            },
        )
    }
}

/// The records that this kernel ever removed.
pub(crate) fn removed(counters: &Counters) -> u64 {
    u64::try_from(counters.deleted()).unwrap_or(0)
}
