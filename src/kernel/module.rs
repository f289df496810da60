// SPDX-License-Identifier: GPL-2.0

//! The module: loading, its files, unloading.

#![forbid(unsafe_code)]

use crate::{
    machine::{
        error,
        Machine, //
    },
    report::{
        self,
        Escaped,
        TrimResult, //
    },
    request::{
        Reclaim,
        MAX_REQUEST, //
    },
    rust::{
        parameters,
        securityfs::{
            Directory,
            Files, //
        },
    },
    text::Text,
    trim::Trimmer,
};
use kernel::{prelude::*, str::CStr, sync::Arc};

/// The files.
#[derive(Clone, Copy)]
pub(crate) enum File {
    /// Requests, and their outcomes.
    Trim,
    /// The starting PCR values.
    StartingPcrs,
    /// Whether the starting PCR values lead to those of the TPM.
    Verify,
    /// The violations that were trimmed.
    Violations,
    /// The state of the module.
    Status,
}

/// Their names and modes.
const FILES: [(&CStr, u16, File); 5] = [
    (c"trim", 0o600, File::Trim),
    (c"starting_pcrs", 0o640, File::StartingPcrs),
    (c"verify", 0o440, File::Verify),
    (c"violations", 0o440, File::Violations),
    (c"status", 0o440, File::Status),
];

impl Files for Trimmer {
    const MAX_REQUEST: usize = MAX_REQUEST;
    type File = File;

    fn show(&self, file: File, text: &mut Text) -> Result {
        match file {
            File::Status => {
                self.await_worker().map_err(error)?;
                self.catch_up();
            }
            File::Verify => return self.show_verify(text).map_err(error),
            _ => {}
        }
        let mut ledger = self.ledger.lock();
        let counters = self.machine.ima.counters();

        ledger.notice(&counters);
        match file {
            File::Trim => ledger.show_outcome(text),
            File::StartingPcrs => ledger.show_starting(text, &self.machine, &counters),
            File::Violations => ledger.show_violations(text),
            File::Verify => Ok(()),
            File::Status => ledger.show_status(text, &self.machine, &counters),
        }
        // Writing fails only if memory does.
        .map_err(|_| ENOMEM)
    }

    fn store(this: &Arc<Self>, file: File, request: Result<&[u8]>, reply: &mut Text) -> Result {
        match file {
            File::Trim => {
                let outcome = Self::request(this, request);

                // The outcome stands whether or not there is memory to tell it.
                let _ = report::outcome(reply, &outcome);
                match outcome.result {
                    TrimResult::Refused(errno) => Err(error(errno)),
                    _ => Ok(()),
                }
            }
            File::StartingPcrs => {
                let restored = this.restore(request);

                let _ = this.show(file, reply);
                restored.map_err(error)
            }
            File::Verify | File::Violations | File::Status => Err(EINVAL),
        }
    }
}

/// The module. The files are dropped first.
pub(crate) struct ImaTrim {
    directory: Option<Directory<Trimmer>>,
    trimmer: Arc<Trimmer>,
}

impl kernel::Module for ImaTrim {
    fn init(module: &'static ThisModule) -> Result<Self> {
        let reclaim = parameters::reclaim();
        let reclaim = Reclaim::parse(reclaim).ok_or_else(|| {
            log_err!(
                "reclaim={}: not known; use keep, compact or flush",
                Escaped(reclaim)
            );
            EINVAL
        })?;
        let mut machine = Machine::find()?;
        if parameters::guard() {
            machine.ima.guard().map_err(|busy| {
                log_err!("not loaded: {busy}");
                error(busy.errno())
            })?;
        }
        let trimmer = Arc::pin_init(Trimmer::new(machine, reclaim), GFP_KERNEL)?;

        trimmer.begin()?;
        let counters = trimmer.machine.ima.counters();
        let base = trimmer.ledger.lock().base(&counters);
        // Last, and nothing that can fail may follow.
        let directory =
            Directory::new(module, c"ima_trim", &trimmer, &FILES).inspect_err(|_| {
                log_err!(
                    "the files in securityfs cannot be made: is it there, and is ima_trim free?"
                )
            })?;

        log_info!(
            "loaded: {} records in the list, base={}",
            counters.live,
            base.as_str()
        );
        Ok(Self {
            directory: Some(directory),
            trimmer,
        })
    }
}

impl Drop for ImaTrim {
    fn drop(&mut self) {
        drop(self.directory.take());
        self.trimmer.worker.wait();

        // For whoever has to restore them by hand: they are not kept anywhere else.
        let mut text = Text::new();
        if self.trimmer.show(File::StartingPcrs, &mut text).is_ok() {
            log_info!("unloaded; the starting PCR values were:");
            for line in core::str::from_utf8(text.as_bytes())
                .unwrap_or_default()
                .lines()
            {
                log_info!("{line}");
            }
        }
    }
}
