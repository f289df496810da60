// SPDX-License-Identifier: GPL-2.0

//! Trimming: replay, match, check, announce, cut, account, report.
//!
//! One request at a time has its turn. It takes the reader hold and plans the trim, see `plan.rs`:
//! the list is replayed without any lock until the values match, and all is checked that may speak
//! against the trim. Then IMA measures what is about to be done. The rest is short and cannot fail
//! half-way: the ledger's lock, `ima_measure_mutex`, `ima_extend_list_mutex`, the cut, the account.
//! Whoever opens the list after the cut finds the account of it, because the ledger's lock is the
//! outermost. The records are freed last, by work that goes on when the request has returned: the
//! turn passes to it.
//!
//! A request that is refused at the cut, after all that, has left its announcement. That is the
//! safe error: a verifier that believes it misses nothing.

#![forbid(unsafe_code)]

use crate::{
    evidence::Confirmed,
    instance::Instance,
    machine::Machine,
    permission::{
        Permitted,
        Readable, //
    },
    plan::{
        Plan,
        TrimRequest, //
    },
    refusal::Refusal,
    report::{
        Event,
        Found,
        Outcome,
        Totals,
        TrimResult, //
    },
    request::{
        self,
        Reclaim, //
    },
    rust::{
        evidence,
        hash::is_algorithm,
        ima::{
            Busy,
            Cut,
            Hold, //
        },
        keyring::Verified,
        parameters,
        task::{
            checkpoint,
            is_freezing, //
        },
        workqueue::{
            Item,
            KernelThread, //
        },
    },
    trimmer::Trimmer,
};
use kernel::{
    prelude::*,
    str::CStr,
    sync::Arc,
    time::{
        delay::fsleep,
        Delta,
        Instant,
        Monotonic, //
    },
};

/// Memory that is to be given back.
struct PendingReclaim {
    /// The records that were cut off. Without any, `flush` has what earlier trims have left.
    cut: Option<Cut>,
    mode: Reclaim,
    /// For how many nanoseconds the mutex was held for the cut.
    hold_ns: u64,
}

/// What a request did, and what it has left for later.
struct Done {
    outcome: Outcome,
    pending: Option<PendingReclaim>,
}

impl Readable for TrimRequest {
    fn read<'t>(text: &'t [u8], machine: &Machine) -> Result<Self, Refusal<'t>> {
        request::parse(text, &machine.banks, is_algorithm, machine.reset_values()?)
            .map_err(Refusal::Malformed)
    }

    fn instance(&self) -> Option<Instance> {
        self.instance
    }

    fn is_dry_run(&self) -> bool {
        self.dry_run
    }
}

impl Trimmer {
    /// Carries out a request, or refuses it, and notes the outcome. The memory of what was trimmed
    /// is given back later.
    ///
    /// `text` is the request, or why that could not be read.
    pub(crate) fn request(self: &Arc<Self>, text: Result<&[u8]>) -> Outcome {
        let mut signed = None;
        let mut turn = None;
        let mut item = None;
        let done = self.parse(text, &mut signed).and_then(|request| {
            // Allocated before anything is changed.
            item = Some(Item::new()?);
            turn = Some(self.turn.take()?);
            self.trim(request)
        });
        let Done { outcome, pending } = done.unwrap_or_else(|refusal| {
            refusal.log("trim");
            Done {
                outcome: refusal
                    .found()
                    .outcome(TrimResult::Refused(refusal.errno()), None),
                pending: None,
            }
        });

        // The turn, if it was taken, is given back or passed on after this: outcomes are in their
        // order.
        *self.outcome.lock() = Some(outcome);
        if let (Some(turn), Some(item), Some(pending)) = (turn, item, pending) {
            let trimmer = self.clone();
            let turn = turn.for_work();

            self.machine.queue.begin(item, move |_: &KernelThread| {
                trimmer.give_back(pending);
                drop(turn);
            });
        }
        outcome
    }

    /// Reads a request. What was signed is kept in `signed`.
    fn parse<'t>(
        &self,
        text: Result<&'t [u8]>,
        signed: &'t mut Option<Verified>,
    ) -> Result<Permitted<TrimRequest>, Refusal<'t>> {
        let request = self.read::<TrimRequest>(text, signed)?;

        match self.mode(&request) {
            Reclaim::Keep => Ok(request),
            mode if parameters::untested() => Err(Refusal::Untested(mode)),
            _ => Ok(request),
        }
    }

    /// What becomes of the memory.
    fn mode(&self, request: &TrimRequest) -> Reclaim {
        request.reclaim.unwrap_or(self.reclaim)
    }

    /// Carries out a request. The caller has the turn. If it is refused, nothing was changed, but
    /// the trim may have been announced.
    fn trim(self: &Arc<Self>, request: Permitted<TrimRequest>) -> Result<Done, Refusal<'static>> {
        let mode = self.mode(&request);
        let mut patience = Patience::new(parameters::reader_wait_ms());
        self.repeat_load()?;
        if request.licence().is_some() {
            self.require_load()?;
        }

        let mut hold = self.machine.ima.hold()?;
        patience.retry(|| hold.exclude().map(drop))?;
        let Some(plan) = self.plan(&hold, &request)? else {
            // What earlier trims left can still be flushed.
            let flushes = request.licence().is_some() && mode == Reclaim::Flush;
            let pending = flushes.then_some(PendingReclaim {
                cut: None,
                mode,
                hold_ns: 0,
            });

            return Ok(Done {
                outcome: Found::default().outcome(TrimResult::Nothing, None),
                pending,
            });
        };
        patience.retry(|| hold.exclude()?.check(&plan.position))?;
        let found = plan.found;
        let Some(licence) = request.licence() else {
            return Ok(Done {
                outcome: found.outcome(TrimResult::DryRun, None),
                pending: None,
            });
        };
        let announced = self.announce(Event::Trim, &plan.account, licence)?;

        let (totals, unextended) = (plan.account.totals(), plan.unextended);
        let pcrs = self.own_pcr().union(request.target.pcrs());
        let (cut, hold_ns) = self
            .confirm(announced, pcrs, || self.judge(&hold, pcrs))
            .and_then(|confirmed| self.cut_and_account(&mut hold, plan, confirmed, &mut patience))
            .inspect_err(|_| {
                log_warn!(
                    "a trim that was announced is not carried out: if it was measured, its record \
                     stays in the list"
                );
            })?;
        drop(hold);

        self.audit(c"trim", &found, &totals);
        log_info!(
            "trimmed {} records ({} violations, {unextended} for no PCR of the TPM), mutex held for \
             {hold_ns} ns",
            found.records,
            found.violations
        );
        Ok(Done {
            outcome: found.outcome(TrimResult::Trimmed, Some(hold_ns)),
            pending: Some(PendingReclaim {
                cut: Some(cut),
                mode,
                hold_ns,
            }),
        })
    }

    /// Cuts the list, and takes over the account in the same hold of the ledger's lock.
    ///
    /// Gives what was cut off, and for how many nanoseconds the mutex was held.
    fn cut_and_account(
        &self,
        hold: &mut Hold<'_>,
        plan: Plan,
        _confirmed: Confirmed,
        patience: &mut Patience,
    ) -> Result<(Cut, u64), Refusal<'static>> {
        let (mut ledger, (cut, hold_ns)) = patience.retry(|| {
            let ledger = self.ledger.lock();
            let cut = hold.exclude()?.cut(&plan.position)?;

            Ok((ledger, cut))
        })?;
        let replaced = ledger.commit(plan.account, plan.found.records, plan.violations, hold_ns);

        drop(ledger);
        drop(replaced);
        Ok((cut, hold_ns))
    }

    /// Writes an audit record of what was done, in the name of the current task.
    ///
    /// That this fails undoes nothing: the measured record was there before.
    pub(crate) fn audit(&self, cause: &'static CStr, found: &Found, totals: &Totals) {
        if let Err(error) = evidence::audit(cause, found.records, found.violations, totals) {
            self.evidence.audit_failed();
            log_warn!(
                "no audit record of the {}: error {}; is auditing on, and its backlog not full?",
                cause.to_str().unwrap_or_default(),
                error.to_errno()
            );
        }
    }

    /// Gives back the memory that a request has left.
    fn give_back(&self, pending: PendingReclaim) {
        let PendingReclaim { cut, mode, hold_ns } = pending;
        let ima = &self.machine.ima;
        let mut table = self.table.lock();
        let reclaimed = match cut {
            Some(cut) => cut.reclaim(ima, &mut table, mode),
            None => table.flush(ima),
        };
        drop(table);
        let hold_ns = hold_ns.max(reclaimed.hold_ns);

        self.ledger.lock().reclaimed(reclaimed.bytes, hold_ns);
        match (mode, reclaimed.kept) {
            (_, 0) | (Reclaim::Keep, _) => {}
            (Reclaim::Compact, kept) => {
                log_warn!("no memory to compact {kept} trimmed records: they are kept as by keep");
            }
            (Reclaim::Flush, kept) => log_warn!(
                "somebody else removed records meanwhile: {kept} trimmed records are kept as by \
                 keep, until the next flush"
            ),
        }
        log_info!(
            "{}: {} bytes freed, mutex held for {} ns at most",
            mode.as_str(),
            reclaimed.bytes,
            hold_ns
        );
    }
}

/// How long a request waits for those who read the list.
struct Patience {
    left_ns: i64,
}

impl Patience {
    /// How long to sleep until the list is looked at again.
    const PAUSE: Delta = Delta::from_millis(1);

    /// This many milliseconds in all.
    fn new(ms: u32) -> Self {
        Self {
            left_ns: Delta::from_millis(i64::from(ms)).as_nanos(),
        }
    }

    /// Tries something until it succeeds, fails for another reason than readers, or the time is up.
    /// It sleeps between two tries, and gives up if the task is killed, or is to be frozen: readers
    /// that are frozen do not close the list.
    fn retry<T>(
        &mut self,
        mut attempt: impl FnMut() -> Result<T, Busy>,
    ) -> Result<T, Refusal<'static>> {
        loop {
            let busy = match attempt() {
                Ok(done) => return Ok(done),
                Err(busy) => busy,
            };

            if self.left_ns <= 0 || !matches!(busy, Busy::Readers(_)) {
                return Err(busy.into());
            }
            let began = Instant::<Monotonic>::now();

            fsleep(Self::PAUSE);
            checkpoint()?;
            if is_freezing() {
                return Err(Refusal::Interrupted);
            }
            self.left_ns = self.left_ns.saturating_sub(began.elapsed().as_nanos());
        }
    }
}
