// SPDX-License-Identifier: GPL-2.0

//! The files: where requests come in, and what they say.

#![forbid(unsafe_code)]

use crate::{
    errno::Errno,
    ledger::removed,
    machine::error,
    refusal::Refusal,
    report::{
        self,
        TrimResult, //
    },
    request::MAX_REQUEST,
    rust::securityfs::Files,
    text::Text,
    trimmer::Trimmer,
};
use kernel::{
    prelude::*,
    str::CStr,
    sync::Arc, //
};

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
pub(crate) const FILES: [(&CStr, u16, File); 5] = [
    (c"trim", 0o600, File::Trim),
    (c"starting_pcrs", 0o640, File::StartingPcrs),
    (c"verify", 0o440, File::Verify),
    (c"violations", 0o440, File::Violations),
    (c"status", 0o440, File::Status),
];

impl Files for Trimmer {
    const MAX_REQUEST: usize = MAX_REQUEST;
    type File = File;

    fn show(this: &Arc<Self>, file: File, text: &mut Text) -> Result {
        let shown = match file {
            File::Verify => {
                Self::show_verify(this, text).inspect_err(|refusal| refusal.log_limited("verify"))
            }
            File::Status => this
                .turn
                .await_work()
                .map_err(Refusal::from)
                .and_then(|()| Self::show_ledger(this, file, text)),
            File::Trim | File::StartingPcrs | File::Violations => {
                Self::show_ledger(this, file, text)
            }
        };

        shown.map_err(|refusal| error(refusal.errno()))
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
                let restored = Self::restore(this, request);

                let _ = Self::show_ledger(this, file, reply);
                restored.map_err(error)
            }
            File::Verify | File::Violations | File::Status => Err(error(Errno::Inval)),
        }
    }
}

impl Trimmer {
    /// Writes what a file says that is of one moment: the ledger does not change meanwhile.
    fn show_ledger(this: &Arc<Self>, file: File, text: &mut Text) -> Result<(), Refusal<'static>> {
        let tally = this.evidence.tally();
        let (shown, counters, foreign) = {
            let mut ledger = this.ledger.lock();
            let counters = this.machine.ima.counters();
            let machine = &this.machine;

            let shown = match file {
                File::Trim => ledger.show_outcome(text),
                File::StartingPcrs => ledger.show_starting(text, machine, &counters),
                File::Violations => ledger.violations.show(text),
                File::Verify => Ok(()),
                File::Status => ledger.show_status(text, machine, &counters, this.instance, tally),
            };
            (shown, counters, ledger.notice(&counters))
        };

        if let Some(foreign) = foreign {
            Self::tell_foreign(this, removed(&counters), foreign);
        }
        Ok(shown?)
    }

    /// Writes the text of `verify`.
    fn show_verify(this: &Arc<Self>, text: &mut Text) -> Result<(), Refusal<'static>> {
        let _turn = this.turn.take()?;
        let hold = this.machine.ima.hold()?;

        Self::refuse_foreign(this, &hold.counters())?;
        let concerned = this.ledger.lock().concerned();
        let verdict = Self::verify(this, &hold, concerned)?;

        Ok(report::verify(
            text,
            &this.machine.banks,
            verdict.pcrs,
            |bank, pcr| verdict.is_equal(bank, pcr),
            verdict.records,
            verdict.violations,
        )?)
    }
}
