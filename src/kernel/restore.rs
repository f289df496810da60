// SPDX-License-Identifier: GPL-2.0

//! Starting PCR values that are stated by the user, as an earlier instance of the module printed
//! them, and that are only believed if the replay of the whole list from them ends in the values that
//! the TPM has.
//!
//! Nobody can make up such values but for a list that has the right records: they are what a hash
//! gives. The counts that are stated with them are not part of any hash. They are held against IMA's
//! own counters.

#![forbid(unsafe_code)]

use crate::{
    bank::PcrSet,
    base::{
        self,
        Verdict, //
    },
    errno::Errno,
    ledger::{
        removed,
        Ledger, //
    },
    machine::Values,
    report::Totals,
    request::{
        self,
        Statement,
        Unread, //
    },
    rust::{
        evidence,
        hash::is_algorithm,
        ima::Counters, //
    },
    trim::{
        Refusal,
        Trimmer, //
    },
};
use core::fmt;
use kernel::prelude::*;

/// Why stated values are not believed. Nothing was changed.
enum Doubt {
    /// A value is missing.
    Missing { bank: &'static str, pcr: usize },
    /// The replay does not lead to the value that the TPM has.
    Mismatch { bank: &'static str, pcr: usize },
    /// IMA removed another number of records.
    Records { stated: u64, removed: u64 },
    /// There were more violations.
    Violations { stated: u64, least: u64 },
    /// The counts contradict each other.
    Contradiction,
    /// Nothing is missing here, and the value is another one.
    Known { bank: &'static str, pcr: usize },
    /// The account here is whole, and another one.
    Whole { own: Totals },
    /// More is known here to be gone.
    Less { own: Totals },
}

impl fmt::Display for Doubt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing { bank, pcr } => write!(
                f,
                "{bank}:{pcr} is missing: give the values of all PCRs that occur, in all banks"
            ),
            Self::Mismatch { bank, pcr } => write!(
                f,
                "{bank}:{pcr}: the replay of the list from this value does not give what the TPM has"
            ),
            Self::Records { stated, removed } => write!(
                f,
                "records={stated}, but this kernel removed {removed}: these values are of another \
                 time, or of another boot"
            ),
            Self::Violations { stated, least } => write!(
                f,
                "violations={stated}, but of those that IMA counted at least {least} are not in the \
                 list; write it again if there are some just now"
            ),
            Self::Contradiction => f.write_str("records=, violations= and trims= contradict each other"),
            Self::Known { bank, pcr } => write!(
                f,
                "{bank}:{pcr}: nothing is missing here, and its starting value is another"
            ),
            Self::Whole { own } => write!(
                f,
                "nothing is missing here: records={}, violations={} and trims={} stand",
                own.records, own.violations, own.trims
            ),
            Self::Less { own } => write!(
                f,
                "records={}, violations={} and trims={} are known here: state these, or more",
                own.records, own.violations, own.trims
            ),
        }
    }
}

impl From<Doubt> for Refusal {
    fn from(doubt: Doubt) -> Self {
        log_warn!("starting values refused: {doubt}");
        Errno::KeyRejected.into()
    }
}

/// Whether the counts can be those of one history.
fn check_totals(totals: &Totals) -> Result<(), Doubt> {
    if totals.violations <= totals.records
        && totals.trims <= totals.records
        && (totals.trims == 0) == (totals.records == 0)
    {
        Ok(())
    } else {
        Err(Doubt::Contradiction)
    }
}

impl Trimmer {
    /// Takes over starting values that a user states, or refuses them.
    ///
    /// `text` is what was written, or why that could not be read. `EKEYREJECTED` if the values or the
    /// counts are not believed; otherwise what a trim may be refused with.
    pub(crate) fn restore(&self, text: Result<&[u8]>) -> Result<(), Errno> {
        text.map_err(|error| {
            let refusal = Refusal::from(error);

            log_warn!("starting values refused {}", Unread(refusal.errno));
            refusal
        })
        .and_then(|text| self.take_over(text))
        .map_err(|refusal| refusal.errno)
    }

    fn take_over(&self, text: &[u8]) -> Result<(), Refusal> {
        let machine = &self.machine;
        let Statement { values, totals } = request::parse_starting_pcrs(
            text,
            &machine.banks,
            is_algorithm,
            machine.reset_values()?,
        )
        .map_err(|error| {
            log_warn!("starting values refused: {error}");
            Refusal::from(error.errno())
        })?;
        check_totals(&totals)?;

        let _turn = self.turn()?;
        let hold = machine.ima.hold()?;
        let before = hold.counters();
        before.check()?;

        let stated = values.pcrs();
        let verdict = {
            let wanted = stated.union(self.ledger.lock().known());
            let missing = |pcrs| {
                machine.banks.iter().find_map(|(bank, info)| {
                    let pcr = PcrSet::without(pcrs, values.given(bank)).iter().next()?;

                    Some(Doubt::Missing {
                        bank: info.name,
                        pcr: pcr.index(),
                    })
                })
            };

            // What is missing is refused before the TPM is asked, unless only the list tells.
            if let Some(doubt) = missing(wanted) {
                return Err(doubt.into());
            }
            let from = machine.copy(values.values())?;
            let verdict = base::verify(machine, &hold, from, wanted)?;
            if let Some(doubt) = missing(verdict.pcrs) {
                return Err(doubt.into());
            }
            verdict
        };
        self.check_verdict(&verdict)?;

        let from = values.into_values();
        let mut ledger = self.ledger.lock();
        let counters = hold.counters();
        counters.check()?;
        if counters.deleted() != before.deleted() {
            drop(ledger);
            log_warn!("starting values refused: somebody removed records meanwhile");
            return Err(Errno::Uclean.into());
        }
        if let Err(doubt) = self.check_account(&ledger, &counters, &from, &totals, &verdict) {
            drop(ledger);
            return Err(doubt.into());
        }
        let replaced = ledger.restore(from, totals, &verdict, &counters);
        drop(ledger);
        drop(hold);
        drop(replaced);

        if let Err(error) = evidence::audit(c"restore", 0, 0, &totals) {
            log_warn!("no audit record of the restore: error {}", error.to_errno());
            self.ledger.lock().evidence(false, 1);
        }
        log_info!(
            "starting values taken over: records={} violations={} trims={}",
            totals.records,
            totals.violations,
            totals.trims
        );
        Ok(())
    }

    /// Whether the replay ends in what the TPM has, everywhere.
    fn check_verdict(&self, verdict: &Verdict) -> Result<(), Doubt> {
        for pcr in verdict.refuted.iter() {
            for (bank, info) in self.machine.banks.iter() {
                if !verdict.is_equal(bank, pcr) {
                    return Err(Doubt::Mismatch {
                        bank: info.name,
                        pcr: pcr.index(),
                    });
                }
            }
        }
        Ok(())
    }

    /// Whether the values and counts agree with what is known of the records that are gone.
    fn check_account(
        &self,
        ledger: &Ledger,
        counters: &Counters,
        values: &Values,
        totals: &Totals,
        verdict: &Verdict,
    ) -> Result<(), Doubt> {
        let own = ledger.totals();

        // Once its records are gone another value could lead to what the TPM has, too: to what
        // something else made of it.
        if ledger.foreign(counters) == 0 {
            for pcr in verdict.pcrs.iter() {
                for (bank, info) in self.machine.banks.iter() {
                    if ledger.contradicts(values, bank, pcr) {
                        return Err(Doubt::Known {
                            bank: info.name,
                            pcr: pcr.index(),
                        });
                    }
                }
            }
        }
        if ledger.is_whole(counters, self.machine.measure_pcr) {
            return if own == *totals {
                Ok(())
            } else {
                Err(Doubt::Whole { own })
            };
        }
        if totals.records < own.records
            || totals.violations < own.violations
            || totals.trims < own.trims
        {
            return Err(Doubt::Less { own });
        }
        self.check_counts(totals, counters, verdict)
    }

    /// Whether the counts agree with those of IMA.
    fn check_counts(
        &self,
        totals: &Totals,
        counters: &Counters,
        verdict: &Verdict,
    ) -> Result<(), Doubt> {
        let removed = removed(counters);
        // IMA counts a violation before it becomes a record, and this is read after the list was.
        let least = self
            .machine
            .ima
            .violations()
            .saturating_sub(verdict.violations);

        // The kernel before this one had counters of its own.
        if totals.records < removed || (totals.records > removed && !self.machine.ima.maybe_kexec())
        {
            return Err(Doubt::Records {
                stated: totals.records,
                removed,
            });
        }
        if totals.violations < least {
            return Err(Doubt::Violations {
                stated: totals.violations,
                least,
            });
        }
        Ok(())
    }
}
