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
    /// How many that others removed were told of.
    noticed: u64,
    /// Whether IMA is still to be told of them.
    untold: bool,
    /// PCRs that prove nothing and were warned of.
    warned: PcrSet,
    /// Whether records of PCRs that no TPM has were warned of.
    warned_unextended: bool,
    hold_ns_last: u64,
    hold_ns_max: u64,
    bytes_freed: u64,
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
            untold: false,
            warned: PcrSet::new(),
            warned_unextended: false,
            hold_ns_last: 0,
            hold_ns_max: 0,
            bytes_freed: 0,
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

    /// What is to be told of records that others removed: something, if their number has grown
    /// since the last call, which remembers it, or if IMA could not be told then.
    pub(crate) fn notice(&mut self, counters: &Counters) -> Option<Foreign> {
        let records = self.foreign(counters);
        let has_grown = records > self.noticed;
        let untold = core::mem::take(&mut self.untold);

        self.noticed = self.noticed.max(records);
        (has_grown || (untold && records != 0)).then(|| Foreign {
            records,
            kernel_deleted: removed(counters),
            has_grown,
        })
    }

    /// Notes that IMA could not be told of records that others removed.
    pub(crate) fn foreign_untold(&mut self) {
        self.untold = true;
    }

    /// Whether the account is whole: nothing was removed by others, and the values of this PCR are
    /// verified.
    pub(crate) fn is_whole(&self, counters: &Counters, pcr: Pcr) -> bool {
        self.foreign(counters) == 0 && self.known.is_verified(pcr)
    }

    /// The PCRs that have to be stated with starting values: those listed, and those seen.
    pub(crate) fn concerned(&self) -> PcrSet {
        self.account.pcrs().union(self.known.seen())
    }

    /// Those of these PCRs that prove nothing and were not warned of yet, and whether to warn of
    /// `unextended` records that name a PCR that no TPM has. Remembers that these are warned of.
    pub(crate) fn warn_of(&mut self, seen: PcrSet, unextended: u64) -> (PcrSet, bool) {
        let news: PcrSet = seen
            .without(self.warned)
            .iter()
            .filter(|pcr| !pcr.is_proof())
            .collect();

        self.warned = self.warned.union(news);
        let unextended = unextended != 0 && !core::mem::replace(&mut self.warned_unextended, true);
        (news, unextended)
    }

    /// How much is known of the starting values.
    pub(crate) fn base(&self, counters: &Counters) -> Base {
        if self.foreign(counters) != 0 {
            Base::Unknown
        } else if self.known.unverified(self.known.seen()).is_none() {
            Base::Verified
        } else {
            Base::Unverified
        }
    }

    /// Takes over the account of a restore. Does not allocate. What is returned is to be dropped
    /// when no lock is held.
    pub(crate) fn restore(
        &mut self,
        account: Account,
        verdict: &Verdict,
        counters: &Counters,
    ) -> Account {
        self.violations.set_total(account.totals().violations);
        self.known.replace(verdict);
        self.accounted = removed(counters);
        self.noticed = 0;
        self.untold = false;
        core::mem::replace(&mut self.account, account)
    }

    /// Takes over the account of a trim of this many records. Does not allocate. What is returned
    /// is to be dropped when no lock is held.
    pub(crate) fn commit(
        &mut self,
        account: Account,
        records: u64,
        violations: NewViolations,
        hold_ns: u64,
    ) -> (Account, [KVVec<Violation>; 2]) {
        self.accounted = self.accounted.saturating_add(records);
        self.held(hold_ns);
        (
            core::mem::replace(&mut self.account, account),
            self.violations.add(violations),
        )
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
        signatures: bool,
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
                signatures,
            },
        )
    }
}

/// Records that somebody else removed.
#[derive(Clone, Copy)]
pub(crate) struct Foreign {
    /// How many the account does not have.
    pub(crate) records: u64,
    /// How many this kernel has removed in all.
    pub(crate) kernel_deleted: u64,
    /// Whether they are more than at the last time.
    pub(crate) has_grown: bool,
}

/// The records that this kernel ever removed.
pub(crate) fn removed(counters: &Counters) -> u64 {
    u64::try_from(counters.deleted()).unwrap_or(0)
}
