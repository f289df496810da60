// SPDX-License-Identifier: GPL-2.0

//! Loading and unloading.

#![forbid(unsafe_code)]

use crate::{
    evidence::log_foreign,
    log::Lines,
    machine::{
        error,
        Machine, //
    },
    refusal::Refusal,
    report::Escaped,
    request::Reclaim,
    rust::{
        claim::Claim,
        ima::Busy,
        keyring::{
            fingerprints,
            Authority, //
        },
        parameters,
        workqueue::Queue, //
    },
    trimmer::Trimmer,
};
use kernel::{
    prelude::*,
    sync::Arc, //
};

/// The longest time that a request may wait for readers.
const MAX_READER_WAIT_MS: u32 = 60_000;

/// Finds out about the machine and the list, and announces the load. The files are made after this.
///
/// `EINVAL` for a parameter that is not known, or that the built-in certificates rule out; what the
/// kernel gives for a certificate that it does not take; `EBUSY` if a process has a list open for
/// writing, records are staged, or an earlier load has locked the list and this one would; `ESTALE` if measuring is suspended, `EINTR`, `ENOMEM`, and what
/// [`Machine::find`] gives. Starting values that turn out wrong, or a TPM that does not answer, are
/// no error here: trims will be refused.
pub(crate) fn load(claim: Claim, queue: Queue) -> Result<Arc<Trimmer>> {
    let reclaim = parameters::reclaim()?;
    let reclaim = Reclaim::parse(&reclaim).ok_or_else(|| {
        log_err!(
            "reclaim={}: not known; use keep, compact or flush",
            Escaped(&reclaim)
        );
        EINVAL
    })?;
    let wait_ms = parameters::reader_wait_ms();
    if wait_ms > MAX_READER_WAIT_MS {
        log_err!(
            "reader_wait_ms={wait_ms}: use a number of milliseconds up to {MAX_READER_WAIT_MS}"
        );
        return Err(EINVAL);
    }
    let authority = Authority::find().map_err(|error| {
        log_err!("not loaded: {error}");
        error.errno()
    })?;
    if authority.is_signers() && !parameters::guard() {
        log_err!("guard=0: this module was built with certificates, and does not go without guard");
        return Err(EINVAL);
    }
    let (mut machine, table) = Machine::find(claim, queue)?;

    let guarded = if authority.is_signers() {
        machine.ima.lock()
    } else if parameters::guard() {
        machine.ima.guard()
    } else {
        Ok(())
    };
    guarded.map_err(|busy| {
        log_err!("not loaded: {busy}");
        error(busy.errno())
    })?;
    if machine.ima.is_locked_by_others() {
        log_warn!("{}", Busy::Locked);
    }
    let trimmer = Arc::pin_init(Trimmer::new(machine, table, authority, reclaim), GFP_KERNEL)?;
    begin(&trimmer).map_err(|refusal| {
        log_err!("not loaded: {refusal}");
        match refusal {
            // Loading is not begun anew.
            Refusal::Interrupted => EINTR,
            refusal => error(refusal.errno()),
        }
    })?;
    Ok(trimmer)
}

/// The first comparison with the TPM, and the announcement.
fn begin(trimmer: &Arc<Trimmer>) -> Result<(), Refusal<'static>> {
    let _turn = trimmer.turn.take()?;
    let hold = trimmer.machine.ima.hold()?;

    let counters = hold.counters();
    counters.check()?;
    // What is gone may have been removed by this module when it was loaded before. That there is
    // any is part of the announcement.
    let gone = trimmer.ledger.lock().notice(&counters);
    if let Some(gone) = gone {
        log_foreign(gone.records);
    } else {
        match trimmer.judge(&hold, trimmer.own_pcr()) {
            Ok(_) => {}
            Err(refusal @ Refusal::Tpm { .. }) => {
                log_warn!("{refusal}; nothing will be trimmed until it does");
            }
            Err(refusal) => return Err(refusal),
        }
    }
    // With the hold, nobody removes records before their number is announced.
    trimmer.announce_load()
}

/// A module that was loaded. Dropping this tells the log what is not kept anywhere else.
pub(crate) struct Loaded(Arc<Trimmer>);

impl Loaded {
    /// Tells the log that the module was loaded.
    pub(crate) fn new(trimmer: Arc<Trimmer>) -> Self {
        let counters = trimmer.machine.ima.counters();
        let base = trimmer.ledger.lock().base(&counters);

        log_info!(
            "loaded: {} records in the list, base={}",
            counters.live,
            base.as_str()
        );
        if trimmer.authority.is_signers() {
            // The load cannot fail any more.
            trimmer.machine.ima.stay_locked();
            for fingerprint in fingerprints() {
                log_info!("requests are taken if they are signed with the key of {fingerprint}");
            }
            log_info!(
                "from now on nothing else can remove records from the list until the machine is \
                 rebooted, nor this module once it was unloaded"
            );
        }
        Self(trimmer)
    }
}

impl Drop for Loaded {
    fn drop(&mut self) {
        let counters = self.0.machine.ima.counters();

        log_info!("unloaded; the starting PCR values were:");
        // Nothing is allocated, so that they are told without any memory.
        let _ = self
            .0
            .ledger
            .lock()
            .show_starting(&mut Lines::new(), &self.0.machine, &counters);
        if self.0.authority.is_signers() {
            log_info!(
                "the list stays locked: nothing can remove records from it until the machine is \
                 rebooted"
            );
        }
    }
}
