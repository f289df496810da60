// SPDX-License-Identifier: GPL-2.0

//! The files: where requests come in, and what they say.

#![forbid(unsafe_code)]

use crate::{
    errno::Errno,
    machine::error,
    refusal::Refusal,
    report::{
        self,
        TrimResult, //
    },
    rust::securityfs::Files,
    signature::MAX_MESSAGE,
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
    // The longest of what may be written; which text is a request that long is seen later.
    const MAX_REQUEST: usize = MAX_MESSAGE;
    type File = File;

    fn show(self: &Arc<Self>, file: File, text: &mut Text) -> Result {
        let shown = match file {
            File::Verify => self
                .show_verify(text)
                .inspect_err(|refusal| refusal.log_limited("verify")),
            File::Status => self
                .turn
                .await_work()
                .map_err(Refusal::from)
                .and_then(|()| self.show_ledger(file, text)),
            File::Trim => self.show_outcome(text),
            File::StartingPcrs | File::Violations => self.show_ledger(file, text),
        };

        shown.map_err(|refusal| error(refusal.errno()))
    }

    fn store(self: &Arc<Self>, file: File, request: Result<&[u8]>, reply: &mut Text) -> Result {
        match file {
            File::Trim => {
                let outcome = self.request(request);

                // The outcome stands whether or not there is memory to tell it.
                let _ = report::outcome(reply, &outcome);
                match outcome.result {
                    TrimResult::Refused(errno) => Err(error(errno)),
                    _ => Ok(()),
                }
            }
            File::StartingPcrs => {
                let restored = self.restore(request);

                let _ = self.show_ledger(file, reply);
                restored.map_err(error)
            }
            File::Verify | File::Violations | File::Status => Err(error(Errno::Inval)),
        }
    }
}

impl Trimmer {
    /// Writes what a file says that is of one moment: the ledger does not change meanwhile.
    fn show_ledger(self: &Arc<Self>, file: File, text: &mut Text) -> Result<(), Refusal<'static>> {
        let (shown, news) = {
            let mut ledger = self.ledger.lock();
            let counters = self.machine.ima.counters();
            let machine = &self.machine;

            let shown = match file {
                File::StartingPcrs => ledger.show_starting(text, machine, &counters),
                File::Violations => ledger.violations.show(text),
                File::Status => {
                    let tally = self.evidence.tally();

                    let signatures = self.authority.is_signers();

                    ledger.show_status(text, machine, &counters, self.instance, tally, signatures)
                }
                File::Trim | File::Verify => Ok(()),
            };
            (shown, ledger.notice(&counters))
        };

        if let Some(foreign) = news {
            self.tell_foreign(foreign);
        }
        Ok(shown?)
    }

    /// Writes the last outcome, if there was any request.
    fn show_outcome(self: &Arc<Self>, text: &mut Text) -> Result<(), Refusal<'static>> {
        let outcome = *self.outcome.lock();

        self.notice(&self.machine.ima.counters());
        match outcome {
            Some(outcome) => Ok(report::outcome(text, &outcome)?),
            None => Ok(()),
        }
    }

    /// Writes the text of `verify`.
    fn show_verify(self: &Arc<Self>, text: &mut Text) -> Result<(), Refusal<'static>> {
        let _turn = self.turn.take()?;
        let hold = self.machine.ima.hold()?;

        self.refuse_foreign(&hold.counters())?;
        let concerned = self.ledger.lock().concerned();
        let verdict = self.judge(&hold, concerned)?;

        Ok(report::verify(
            text,
            &self.machine.banks,
            verdict.pcrs,
            |bank, pcr| verdict.is_equal(bank, pcr),
            verdict.records,
            verdict.violations,
        )?)
    }
}
