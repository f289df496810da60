// SPDX-License-Identifier: GPL-2.0

//! What a loaded module has, and what requests share: the turn, the look at the list, the comparison
//! with the TPM.

#![forbid(unsafe_code)]

use crate::{
    bank::PcrSet,
    evidence::Evidence,
    instance::Instance,
    ledger::{
        removed,
        Ledger, //
    },
    machine::Machine,
    refusal::Refusal,
    request::Reclaim,
    rust::{
        ima::{
            Busy,
            Counters,
            Hold,
            Table, //
        },
        random,
        task::checkpoint, //
    },
    turn::Turn,
    verify::{
        self,
        Verdict, //
    },
};
use kernel::{
    new_mutex,
    prelude::*,
    sync::{
        Arc,
        Mutex, //
    },
    time::{
        delay::fsleep,
        Delta,
        Instant,
        Monotonic, //
    },
};

/// What trims the list of a machine.
#[pin_data]
pub(crate) struct Trimmer {
    /// The machine.
    pub(crate) machine: KBox<Machine>,
    /// Which load of the module this is.
    pub(crate) instance: Instance,
    /// What becomes of the memory if a request does not say it.
    pub(crate) reclaim: Reclaim,
    /// Whoever has it uses the list through the module, and changes the account.
    #[pin]
    pub(crate) turn: Turn,
    /// IMA's hash table of digests, for work that gives memory back. Whoever has the turn is the only
    /// one to lock it.
    #[pin]
    pub(crate) table: Mutex<Table>,
    /// The account. Outside of the mutexes of IMA.
    #[pin]
    pub(crate) ledger: Mutex<Ledger>,
    /// The evidence.
    #[pin]
    pub(crate) evidence: Evidence,
}

impl Trimmer {
    /// A trimmer that trimmed nothing yet.
    pub(crate) fn new(
        machine: KBox<Machine>,
        table: Table,
        reclaim: Reclaim,
    ) -> impl PinInit<Self, Error> {
        let ledger = Ledger::new(&machine);

        try_pin_init!(Self {
            machine,
            instance: Instance(random::bytes()),
            reclaim,
            turn <- Turn::new(),
            table <- new_mutex!(table, "ima_trim::table"),
            ledger <- new_mutex!(ledger?, "ima_trim::ledger"),
            evidence <- Evidence::new(),
        })
    }

    /// Refuses what is for another load of the module.
    pub(crate) fn refuse_others(&self, instance: Option<Instance>) -> Result<(), Refusal<'static>> {
        match instance {
            Some(instance) if instance != self.instance => Err(Refusal::Instance),
            _ => Ok(()),
        }
    }

    /// Tells of records that somebody else removed since the last time, as IMA's counters have them.
    /// Gives the number of all of these.
    pub(crate) fn notice(this: &Arc<Self>, counters: &Counters) -> u64 {
        let (foreign, news) = {
            let mut ledger = this.ledger.lock();

            (ledger.foreign(counters), ledger.notice(counters).is_some())
        };

        if news {
            Self::tell_foreign(this, removed(counters), foreign);
        }
        foreign
    }

    /// Refuses if somebody else removed records.
    pub(crate) fn refuse_foreign(
        this: &Arc<Self>,
        counters: &Counters,
    ) -> Result<(), Refusal<'static>> {
        match Self::notice(this, counters) {
            0 => Ok(()),
            foreign => Err(Refusal::Foreign(foreign)),
        }
    }

    /// Compares the replay from the starting values with the TPM, for the PCRs of `wanted` and all
    /// that occur, and notes the verdict. The caller has the turn.
    pub(crate) fn verify(
        this: &Arc<Self>,
        hold: &Hold<'_>,
        wanted: PcrSet,
    ) -> Result<Verdict, Refusal<'static>> {
        let starting = this.machine.copy(this.ledger.lock().account().values())?;
        let verdict = verify::verify(&this.machine, hold, starting, wanted)?;

        if Self::notice(this, &hold.counters()) != 0 {
            return Err(Busy::Changed.into());
        }
        let refuted = this.ledger.lock().known.judge(&verdict);
        for pcr in refuted.iter() {
            log_warn!(
                "starting values of PCR {pcr} are not verified: the replay of the list from them \
                 does not give what the TPM has; something else extended it, or an extend failed"
            );
        }
        this.warn_of(verdict.seen, verdict.unextended);
        Ok(verdict)
    }

    /// Warns, once, of PCRs that records extend and whose values prove nothing.
    pub(crate) fn warn_of(&self, seen: PcrSet, unextended: u64) {
        let (unsafe_pcrs, are_unextended) = {
            let mut ledger = self.ledger.lock();

            (ledger.unsafe_pcrs(seen), ledger.are_unextended(unextended))
        };

        for pcr in unsafe_pcrs.iter() {
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
        if are_unextended {
            log_warn!(
                "records name a PCR above 23, which no TPM has: nothing proves them; let pcr= of the \
                 IMA policy name another"
            );
        }
    }
}

/// How long a request waits for those who read the list.
pub(crate) struct Patience {
    left_ns: i64,
}

impl Patience {
    /// How long to sleep until the list is looked at again.
    const PAUSE: Delta = Delta::from_millis(1);

    /// This many milliseconds in all.
    pub(crate) fn new(ms: u32) -> Self {
        Self {
            left_ns: Delta::from_millis(i64::from(ms)).as_nanos(),
        }
    }

    /// Waits a little if the list is busy with readers and there is time left for that. Otherwise that
    /// is the refusal.
    pub(crate) fn wait(&mut self, busy: Busy) -> Result<(), Refusal<'static>> {
        if self.left_ns <= 0 || !matches!(busy, Busy::Readers(_)) {
            return Err(busy.into());
        }
        let began = Instant::<Monotonic>::now();

        fsleep(Self::PAUSE);
        checkpoint()?;
        self.left_ns = self.left_ns.saturating_sub(began.elapsed().as_nanos());
        Ok(())
    }
}
