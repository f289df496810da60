// SPDX-License-Identifier: GPL-2.0

//! Starting PCR values that are stated by the user, as an earlier instance of the module printed
//! them, and that are only believed if the replay of the whole list from them ends in the values
//! that the TPM has.
//!
//! Nobody can make up such values but for a list that has the right records: they are what a hash
//! gives. The counts that are stated with them are not part of any hash. They are held against
//! IMA's own counters.

#![forbid(unsafe_code)]

use crate::{
    account::Account,
    bank::{
        Pcr,
        PcrSet,
        Value, //
    },
    errno::Errno,
    instance::Instance,
    ledger::{
        removed,
        Ledger, //
    },
    machine::Machine,
    permission::{
        Permitted,
        Readable, //
    },
    refusal::Refusal,
    report::{
        Event,
        Found,
        Totals, //
    },
    request::{
        self,
        Statement, //
    },
    rust::{
        hash::is_algorithm,
        ima::{
            Busy,
            Counters,
            Hold, //
        },
    },
    trimmer::Trimmer,
    verify::{
        compare,
        Verdict, //
    },
};
use core::fmt;
use kernel::{
    prelude::*,
    sync::Arc, //
};

/// Why stated values are not believed. Nothing was changed.
pub(crate) enum RestoreError {
    /// A value is missing.
    Missing { bank: &'static str, pcr: Pcr },
    /// The replay does not lead to the value that the TPM has.
    Mismatch { bank: &'static str, pcr: Pcr },
    /// IMA removed another number of records.
    Records { stated: u64, removed: u64 },
    /// There were more violations.
    Violations { stated: u64, least: u64 },
    /// The counts contradict each other.
    Contradiction,
    /// Nothing is missing here, and the value is another one.
    Known { bank: &'static str, pcr: Pcr },
    /// The account here is whole, and another one.
    Whole { own: Totals },
    /// More is known here to be gone.
    Less { own: Totals },
}

impl fmt::Display for RestoreError {
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
                "violations={stated}, but at least {least} of those that IMA counted are not in \
                 the list, and violations={least} is the least that is accepted: IMA also counts \
                 those that it had no memory to list. If there are violations just now, write it \
                 again"
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

impl From<RestoreError> for Refusal<'_> {
    fn from(error: RestoreError) -> Self {
        Self::Restore(error)
    }
}

/// IMA's counters, if nothing was removed from the list since.
fn unchanged(hold: &Hold<'_>, before: &Counters) -> Result<Counters, Busy> {
    let counters = hold.counters();

    counters.check()?;
    if counters.deleted() == before.deleted() {
        Ok(counters)
    } else {
        Err(Busy::Changed)
    }
}

/// Whether the counts can be those of one history.
fn check_totals(totals: &Totals) -> Result<(), RestoreError> {
    if totals.violations <= totals.records
        && totals.trims <= totals.records
        && (totals.trims == 0) == (totals.records == 0)
    {
        Ok(())
    } else {
        Err(RestoreError::Contradiction)
    }
}

/// Starting PCR values that a user states, with the values in memory of the kernel.
type StartingPcrs = Statement<KVec<Value>>;

impl Readable for StartingPcrs {
    fn read<'t>(text: &'t [u8], machine: &Machine) -> Result<Self, Refusal<'t>> {
        let statement = request::parse_starting_pcrs(
            text,
            &machine.banks,
            is_algorithm,
            machine.reset_values()?,
        )
        .map_err(Refusal::Malformed)?;

        check_totals(&statement.totals)?;
        Ok(statement)
    }

    fn instance(&self) -> Option<Instance> {
        self.instance
    }

    fn is_dry_run(&self) -> bool {
        false
    }
}

impl Trimmer {
    /// Takes over starting values that a user states, or refuses them.
    ///
    /// `text` is what was written, or why that could not be read. `EKEYREJECTED` if the values or
    /// the counts are not believed; otherwise what a trim may be refused with.
    pub(crate) fn restore(self: &Arc<Self>, text: Result<&[u8]>) -> Result<(), Errno> {
        let mut signed = None;
        let taken_over = self
            .read(text, &mut signed)
            .and_then(|statement| self.take_over(statement));

        taken_over.map_err(|refusal| {
            refusal.log("starting values");
            refusal.errno()
        })
    }

    fn take_over(
        self: &Arc<Self>,
        statement: Permitted<StartingPcrs>,
    ) -> Result<(), Refusal<'static>> {
        let machine = &self.machine;
        let (statement, licence) = statement.into_parts();
        let licence = licence.ok_or(Refusal::Unsigned)?;

        let _turn = self.turn.take()?;
        self.repeat_load()?;
        self.require_load()?;
        let hold = machine.ima.hold()?;
        let before = hold.counters();
        before.check()?;
        self.notice(&before);

        let verdict = self.check_values(&hold, &statement)?;
        self.warn_of(verdict.extended, verdict.unextended);
        let Statement { values, totals, .. } = statement;
        let account = Account::stated(values.into_values(), verdict.pcrs, totals);
        // Nobody else changes the account, or what is known of it, as this task has the turn.
        let is_news = {
            let ledger = self.ledger.lock();

            self.check_account(&ledger, &unchanged(&hold, &before)?, &account, &verdict)?;
            ledger.foreign(&before) != 0 || *ledger.account() != account
        };
        let abandoned = || {
            log_warn!(
                "a restore that was announced is not carried out: if it was measured, its record \
                 stays in the list"
            );
        };
        if is_news {
            let announced = self.announce(Event::Restore, &account, &licence)?;

            self.confirm(announced, verdict.pcrs, || {
                compare(
                    machine,
                    &hold,
                    machine.copy(account.values())?,
                    verdict.pcrs,
                )
            })
            .inspect_err(|_| abandoned())?;
        }

        let mut ledger = self.ledger.lock();
        let counters = unchanged(&hold, &before).inspect_err(|_| abandoned())?;
        let replaced = ledger.restore(account, &verdict, &counters);
        drop(ledger);
        drop(hold);
        drop(replaced);

        if is_news {
            self.audit(c"restore", &Found::default(), &totals);
            log_info!(
                "starting values taken over: records={} violations={} trims={}",
                totals.records,
                totals.violations,
                totals.trims
            );
        }
        Ok(())
    }

    /// Whether all values are stated, and lead to what the TPM has.
    fn check_values(
        &self,
        hold: &Hold<'_>,
        statement: &StartingPcrs,
    ) -> Result<Verdict, Refusal<'static>> {
        let machine = &self.machine;
        let values = &statement.values;
        let wanted = values.pcrs().union(self.ledger.lock().concerned());
        let missing = |pcrs| {
            machine.banks.iter().find_map(|(bank, info)| {
                let pcr = PcrSet::without(pcrs, values.given(bank)).iter().next()?;

                Some(RestoreError::Missing {
                    bank: info.name,
                    pcr,
                })
            })
        };

        // What is missing is refused before the TPM is asked, unless only the list tells.
        if let Some(error) = missing(wanted) {
            return Err(error.into());
        }
        let from = machine.copy(values.values())?;
        let verdict = compare(machine, hold, from, wanted)?;
        if let Some(error) = missing(verdict.pcrs) {
            return Err(error.into());
        }
        self.check_verdict(&verdict)?;
        Ok(verdict)
    }

    /// Whether the replay ends in what the TPM has, everywhere.
    fn check_verdict(&self, verdict: &Verdict) -> Result<(), RestoreError> {
        for pcr in verdict.refuted.iter() {
            for (bank, info) in self.machine.banks.iter() {
                if !verdict.is_equal(bank, pcr) {
                    return Err(RestoreError::Mismatch {
                        bank: info.name,
                        pcr,
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
        stated: &Account,
        verdict: &Verdict,
    ) -> Result<(), RestoreError> {
        let (own, totals) = (ledger.account().totals(), stated.totals());

        // With no record left that extends this PCR, the TPM's own value would pass the replay. So
        // a verified value cannot be replaced.
        if ledger.foreign(counters) == 0 {
            for pcr in verdict.pcrs.iter() {
                for (bank, info) in self.machine.banks.iter() {
                    if ledger.known.is_verified(pcr)
                        && ledger.account().values().get(bank, pcr)
                            != stated.values().get(bank, pcr)
                    {
                        return Err(RestoreError::Known {
                            bank: info.name,
                            pcr,
                        });
                    }
                }
            }
        }
        if ledger.is_whole(counters, self.machine.measure_pcr) {
            return if own == totals {
                Ok(())
            } else {
                Err(RestoreError::Whole { own })
            };
        }
        if totals.records < own.records
            || totals.violations < own.violations
            || totals.trims < own.trims
        {
            return Err(RestoreError::Less { own });
        }
        self.check_counts(&totals, counters, verdict)
    }

    /// Whether the counts agree with those of IMA.
    fn check_counts(
        &self,
        totals: &Totals,
        counters: &Counters,
        verdict: &Verdict,
    ) -> Result<(), RestoreError> {
        let removed = removed(counters);
        // IMA counts a violation before it becomes a record, and this is read after the list was.
        let least = self
            .machine
            .ima
            .violations()
            .saturating_sub(verdict.violations)
            // No more violations can be gone than records are.
            .min(totals.records);

        // The kernel before this one had counters of its own.
        if totals.records < removed || (totals.records > removed && !self.machine.ima.maybe_kexec())
        {
            return Err(RestoreError::Records {
                stated: totals.records,
                removed,
            });
        }
        if totals.violations < least {
            return Err(RestoreError::Violations {
                stated: totals.violations,
                least,
            });
        }
        Ok(())
    }
}
