// SPDX-License-Identifier: GPL-2.0

//! Trimming: replay, match, check, announce, cut, account, report.
//!
//! One request at a time has its turn. It takes the reader hold and plans the trim, see `plan.rs`: the
//! list is replayed without any lock until the values match, and all is checked that may speak against
//! the trim. Then IMA measures what is about to be done. The rest is short and cannot fail half-way:
//! the ledger's lock, `ima_measure_mutex`, `ima_extend_list_mutex`, the cut, the account. Whoever opens
//! the list after the cut finds the account of it, because the ledger's lock is the outermost. The
//! records are freed last, by work that goes on when the request has returned: the turn passes to it.
//!
//! A request that is refused at the cut, after all that, has left its announcement. That is the safe
//! error: a verifier that believes it misses nothing.

#![forbid(unsafe_code)]

use crate::{
    errno::Errno,
    evidence::Announcement,
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
        Reclaim,
        Unread, //
    },
    rust::{
        evidence,
        hash::is_algorithm,
        ima::{
            Cut,
            Hold, //
        },
        parameters,
        workqueue::{
            Item,
            KernelThread, //
        },
    },
    trimmer::{
        Patience,
        Trimmer, //
    },
};
use kernel::{
    prelude::*,
    str::CStr,
    sync::Arc, //
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

impl Done {
    fn without_cut(found: Found, result: TrimResult) -> Self {
        Self {
            outcome: found.outcome(result, None),
            pending: None,
        }
    }
}

impl Trimmer {
    /// Carries out a request, or refuses it, and notes the outcome. The memory of what was trimmed
    /// is given back later.
    ///
    /// `text` is the request, or why that could not be read.
    pub(crate) fn request(this: &Arc<Self>, text: Result<&[u8]>) -> Outcome {
        let mut turn = None;
        let mut item = None;
        let done = this.parse(text).and_then(|request| {
            // Allocated before anything is changed.
            item = Some(Item::new()?);
            turn = Some(this.turn.take()?);
            Self::trim(this, request)
        });
        let Done { outcome, pending } = done.unwrap_or_else(|refusal| {
            refusal.log("trim");
            Done::without_cut(refusal.found(), TrimResult::Refused(refusal.errno()))
        });

        // The turn, if it was taken, is given back or passed on after this: outcomes are in their
        // order.
        this.ledger.lock().conclude(outcome);
        if let (Some(turn), Some(item), Some(pending)) = (turn, item, pending) {
            let trimmer = this.clone();
            let passed = turn.pass();

            this.machine.queue.begin(item, move |_: &KernelThread| {
                let _turn = trimmer.turn.go_on(passed);

                trimmer.give_back(pending);
            });
        }
        outcome
    }

    /// Reads a request.
    fn parse<'t>(&self, text: Result<&'t [u8]>) -> Result<TrimRequest, Refusal<'t>> {
        let request = request::parse(
            text.map_err(unread)?,
            &self.machine.banks,
            is_algorithm,
            self.machine.reset_values()?,
        )
        .map_err(Refusal::Malformed)?;

        self.refuse_others(request.instance)?;
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

    /// Carries out a request. The caller has the turn. If it is refused, nothing was changed, but the
    /// trim may have been announced.
    fn trim(this: &Arc<Self>, request: TrimRequest) -> Result<Done, Refusal<'static>> {
        let mode = this.mode(&request);
        let mut patience = Patience::new(parameters::reader_wait_ms());
        Self::repeat_load(this)?;

        let mut hold = this.machine.ima.hold()?;
        await_readers(&mut hold, &mut patience)?;
        let Some(plan) = Self::plan(this, &hold, &request)? else {
            return Ok(this.nothing(&request, mode));
        };
        check(&mut hold, &plan, &mut patience)?;
        if request.dry_run {
            return Ok(Done::without_cut(plan.found, TrimResult::DryRun));
        }
        let announcement = Announcement::new(this, Event::Trim, |text| {
            plan.account.show(text, &this.machine)
        })?;
        Self::announce(this, Arc::new(announcement, GFP_KERNEL)?)?;

        let (found, totals) = (plan.found, plan.account.totals());
        let unextended = plan.unextended;
        let (cut, hold_ns) = this.cut_and_account(&mut hold, plan, &mut patience)?;
        drop(hold);

        this.audit(c"trim", &found, &totals);
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

    /// There is nothing to trim; but what earlier trims left can still be flushed.
    fn nothing(&self, request: &TrimRequest, mode: Reclaim) -> Done {
        let pending = (!request.dry_run && mode == Reclaim::Flush).then(|| PendingReclaim {
            cut: None,
            mode,
            hold_ns: 0,
        });

        Done {
            pending,
            ..Done::without_cut(Found::default(), TrimResult::Nothing)
        }
    }

    /// Cuts the list, and takes over the account in the same hold of the ledger's lock.
    ///
    /// Gives what was cut off, and for how many nanoseconds the mutex was held.
    fn cut_and_account(
        &self,
        hold: &mut Hold<'_>,
        plan: Plan,
        patience: &mut Patience,
    ) -> Result<(Cut, u64), Refusal<'static>> {
        loop {
            let mut ledger = self.ledger.lock();

            match hold.exclude() {
                Ok(mut exclusive) => {
                    let cut = exclusive.cut(plan.position);

                    drop(exclusive);
                    let (cut, hold_ns) = cut?;
                    let replaced =
                        ledger.commit(plan.account, plan.found.records, plan.violations, hold_ns);
                    drop(ledger);
                    drop(replaced);
                    return Ok((cut, hold_ns));
                }
                Err(busy) => {
                    drop(ledger);
                    patience.wait(busy)?;
                }
            }
        }
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

/// Waits until nobody else reads the list, so that a replay is worth it.
fn await_readers(hold: &mut Hold<'_>, patience: &mut Patience) -> Result<(), Refusal<'static>> {
    loop {
        match hold.exclude() {
            Ok(_) => return Ok(()),
            Err(busy) => patience.wait(busy)?,
        }
    }
}

/// Makes sure that the list could be cut now.
fn check(
    hold: &mut Hold<'_>,
    plan: &Plan,
    patience: &mut Patience,
) -> Result<(), Refusal<'static>> {
    loop {
        match hold.exclude() {
            Ok(mut exclusive) => return Ok(exclusive.check(&plan.position)?),
            Err(busy) => patience.wait(busy)?,
        }
    }
}

/// Why what was written cannot be read.
pub(crate) fn unread(error: Error) -> Refusal<'static> {
    Refusal::Unread(Unread(match error {
        ENOMEM => Errno::NoMem,
        E2BIG => Errno::TooBig,
        EINVAL => Errno::Inval,
        EFAULT => Errno::Fault,
        _ => Errno::Io,
    }))
}
