// SPDX-License-Identifier: GPL-2.0

//! What a loaded module has, and what requests share: the turn, the look at the list, the
//! comparison with the TPM.

#![forbid(unsafe_code)]

use crate::{
    bank::PcrSet,
    evidence::Evidence,
    instance::Instance,
    ledger::Ledger,
    machine::{
        Machine,
        Values, //
    },
    refusal::Refusal,
    report::Outcome,
    request::Reclaim,
    rust::{
        ima::{
            Counters,
            Hold,
            Table, //
        },
        keyring::Authority,
        random, //
    },
    turn::Turn,
    verify::{
        compare,
        Verdict, //
    },
};
use kernel::{
    alloc::AllocError,
    new_mutex,
    prelude::*,
    sync::{
        Arc,
        Mutex, //
    },
};

/// What trims the list of a machine.
#[pin_data]
pub(crate) struct Trimmer {
    /// The machine.
    pub(crate) machine: KBox<Machine>,
    /// Which load of the module this is.
    pub(crate) instance: Instance,
    /// Who may have something changed.
    pub(crate) authority: Authority,
    /// What becomes of the memory if a request does not say it.
    pub(crate) reclaim: Reclaim,
    /// Only its holder uses the list through the module, and changes the account.
    pub(crate) turn: Arc<Turn>,
    /// IMA's hash table of digests, for work that gives memory back. Only the holder of the turn
    /// locks it.
    #[pin]
    pub(crate) table: Mutex<Table>,
    /// The account. Outside of the mutexes of IMA.
    #[pin]
    pub(crate) ledger: Mutex<Ledger>,
    /// The evidence.
    #[pin]
    pub(crate) evidence: Evidence,
    /// What became of the last request. It has a lock of its own: the holder of the ledger's may
    /// wait for IMA, and IMA for the TPM, and a request that was killed must not wait for that.
    #[pin]
    pub(crate) outcome: Mutex<Option<Outcome>>,
}

impl Trimmer {
    /// A trimmer that trimmed nothing yet.
    pub(crate) fn new(
        machine: KBox<Machine>,
        table: Table,
        authority: Authority,
        reclaim: Reclaim,
    ) -> impl PinInit<Self, Error> {
        let ledger = Ledger::new(&machine);

        try_pin_init!(Self {
            machine,
            instance: Instance(random::bytes()),
            authority,
            reclaim,
            turn: Turn::new()?,
            table <- new_mutex!(table, "ima_trim::table"),
            ledger <- new_mutex!(ledger?, "ima_trim::ledger"),
            evidence <- Evidence::new(),
            outcome <- new_mutex!(None, "ima_trim::outcome"),
        })
    }

    /// Refuses what is for another load of the module.
    pub(crate) fn refuse_others(&self, instance: Option<Instance>) -> Result<(), Refusal<'static>> {
        match instance {
            Some(instance) if instance != self.instance => Err(Refusal::Instance),
            _ => Ok(()),
        }
    }

    /// Tells of records that somebody else removed since the last time, as IMA's counters have
    /// them. Gives the number of all of these.
    pub(crate) fn notice(self: &Arc<Self>, counters: &Counters) -> u64 {
        let (records, news) = {
            let mut ledger = self.ledger.lock();

            (ledger.foreign(counters), ledger.notice(counters))
        };

        if let Some(foreign) = news {
            self.tell_foreign(foreign);
        }
        records
    }

    /// Refuses if somebody else removed records.
    pub(crate) fn refuse_foreign(
        self: &Arc<Self>,
        counters: &Counters,
    ) -> Result<(), Refusal<'static>> {
        match self.notice(counters) {
            0 => Ok(()),
            foreign => Err(Refusal::Foreign(foreign)),
        }
    }

    /// The PCR that IMA extends unless a rule names another.
    pub(crate) fn own_pcr(&self) -> PcrSet {
        [self.machine.measure_pcr].into_iter().collect()
    }

    /// A copy of the starting PCR values.
    pub(crate) fn starting_values(&self) -> Result<Values, AllocError> {
        let mut values = self.machine.reset_values()?;

        // They are of the same banks.
        let _ = values.copy_from(self.ledger.lock().account().values());
        Ok(values)
    }

    /// Compares the replay from the starting values with the TPM, for the PCRs of `wanted` and all
    /// that occur, and notes the verdict. The caller has the turn.
    pub(crate) fn judge(
        self: &Arc<Self>,
        hold: &Hold<'_>,
        wanted: PcrSet,
    ) -> Result<Verdict, Refusal<'static>> {
        let verdict = compare(&self.machine, hold, self.starting_values()?, wanted)?;

        self.refuse_foreign(&hold.counters())?;
        let refuted = self.ledger.lock().known.judge(&verdict);
        for pcr in refuted.iter() {
            log_warn!(
                "starting values of PCR {pcr} are not verified: the replay of the list from them \
                 does not give what the TPM has; something else extended it, or an extend failed"
            );
        }
        self.warn_of(verdict.extended, verdict.unextended);
        Ok(verdict)
    }

    /// Warns, once, of PCRs that records extend and whose values prove nothing.
    pub(crate) fn warn_of(&self, seen: PcrSet, unextended: u64) {
        let (pcrs, unextended) = self.ledger.lock().warn_of(seen, unextended);

        for pcr in pcrs.iter() {
            match pcr.index() {
                16 | 23 => log_warn!(
                    "records extend PCR {pcr}, which anybody can reset: its value proves nothing; \
                     let pcr= of the IMA policy name another"
                ),
                _ => log_warn!(
                    "records extend PCR {pcr}, which the TPM refuses from the kernel: they are in \
                     the list and not in the TPM, and nothing from the first of them on can be \
                     trimmed until a reboot; let pcr= of the IMA policy name another"
                ),
            }
        }
        if unextended {
            log_warn!(
                "records name a PCR above 23, which no TPM has: nothing proves them; let pcr= of the \
                 IMA policy name another"
            );
        }
    }
}
