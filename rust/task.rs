// SPDX-License-Identifier: GPL-2.0

//! The current task: what it owes the rest of the system.

use super::ffi;
use kernel::prelude::*;

/// A signal has ended a wait, or the task is to give up what it does, as it was killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Interrupted;

/// What has changed nothing can be called again.
impl From<Interrupted> for Error {
    fn from(_: Interrupted) -> Self {
        ERESTARTSYS
    }
}

/// Lets others run, and says whether the current task was killed.
///
/// Sleeps; no lock may be held but mutexes that nothing else waits for long.
pub(crate) fn checkpoint() -> Result<(), Interrupted> {
    cond_resched();
    if ffi::ima_trim_fatal_signal_pending() {
        Err(Interrupted)
    } else {
        Ok(())
    }
}

/// Whether the current task is to be frozen, for a suspend or by its control group, and was sent
/// the signal for it. Its system call can be made again afterwards.
pub(crate) fn is_freezing() -> bool {
    ffi::ima_trim_freezing()
}

/// Whether a line may be logged that whoever may read a file can cause: not too often.
pub(crate) fn may_log() -> bool {
    ffi::ima_trim_may_log()
}

/// Lets others run, in a loop that must come to its end.
pub(crate) fn cond_resched() {
    ffi::ima_trim_cond_resched();
}
