// SPDX-License-Identifier: GPL-2.0

//! The current task: what it owes the rest of the system.

use super::ffi;

/// A fatal signal is pending: the task is to give up what it does and end.
pub(crate) struct FatalSignal;

/// Lets others run, and says whether the current task was killed.
///
/// Sleeps; no lock may be held but mutexes that nothing else waits for long.
pub(crate) fn checkpoint() -> Result<(), FatalSignal> {
    cond_resched();
    if ffi::ima_trim_fatal_signal_pending() {
        Err(FatalSignal)
    } else {
        Ok(())
    }
}

/// Whether a line may be logged that whoever may read a file can cause: not too often.
pub(crate) fn may_log() -> bool {
    ffi::ima_trim_may_log()
}

/// Lets others run, in a loop that must come to its end.
pub(crate) fn cond_resched() {
    ffi::ima_trim_cond_resched();
}
