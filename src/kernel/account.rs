// SPDX-License-Identifier: GPL-2.0

//! What stands for the records that are gone.

#![forbid(unsafe_code)]

use crate::{
    bank::PcrSet,
    machine::{
        Machine,
        Values, //
    },
    report::{
        self,
        Totals, //
    },
};
use core::fmt;
use kernel::{
    alloc::AllocError,
    prelude::*, //
};

/// The starting PCR values, and how many records and violations they stand for. What
/// `starting_pcrs` says.
#[derive(PartialEq)]
pub(crate) struct Account {
    /// The starting PCR values.
    values: Values,
    /// PCRs that are listed: that of IMA, those that a trimmed record extended, and those that were
    /// restored.
    pcrs: PcrSet,
    totals: Totals,
}

impl Account {
    /// That of a list that nothing was removed from: the reset values.
    pub(crate) fn new(machine: &Machine) -> Result<Self, AllocError> {
        Ok(Self {
            values: machine.reset_values()?,
            pcrs: [machine.measure_pcr].into_iter().collect(),
            totals: Totals::default(),
        })
    }

    /// An account that is stated: these values, of these PCRs, and counts.
    pub(crate) fn stated(values: Values, pcrs: PcrSet, totals: Totals) -> Self {
        Self {
            values,
            pcrs,
            totals,
        }
    }

    /// The starting PCR values.
    pub(crate) fn values(&self) -> &Values {
        &self.values
    }

    /// The PCRs that are listed.
    pub(crate) fn pcrs(&self) -> PcrSet {
        self.pcrs
    }

    /// What was trimmed in all.
    pub(crate) fn totals(&self) -> Totals {
        self.totals
    }

    /// What it will be when one more trim has removed records that extended `pcrs`, up to these
    /// values.
    pub(crate) fn after_trim(
        &self,
        values: Values,
        pcrs: PcrSet,
        records: u64,
        violations: u64,
    ) -> Self {
        let Totals {
            records: earlier,
            violations: earlier_violations,
            trims,
        } = self.totals;

        Self {
            values,
            pcrs: self.pcrs.union(pcrs),
            totals: Totals {
                records: earlier.saturating_add(records),
                violations: earlier_violations.saturating_add(violations),
                trims: trims.saturating_add(1),
            },
        }
    }

    /// Writes the text of `starting_pcrs`.
    pub(crate) fn show(&self, w: &mut dyn fmt::Write, machine: &Machine) -> fmt::Result {
        report::starting_pcrs(w, &machine.banks, &self.values, self.pcrs, &self.totals)
    }
}
