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
/// `EINVAL` for a parameter that is not known; `EBUSY` if a process has a list open for writing or
/// records are staged, `ESTALE` if measuring is suspended, `EINTR`, `ENOMEM`, and what
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
    let (mut machine, table) = Machine::find(claim, queue)?;

    if parameters::guard() {
        machine.ima.guard().map_err(|busy| {
            log_err!("not loaded: {busy}");
            error(busy.errno())
        })?;
    }
    let trimmer = Arc::pin_init(Trimmer::new(machine, table, reclaim), GFP_KERNEL)?;
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
        let own = [trimmer.machine.measure_pcr].into_iter().collect();

        match trimmer.judge(&hold, own) {
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
    }
}
