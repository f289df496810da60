// SPDX-License-Identifier: GPL-2.0

//! What a long loop owes the rest of the system.

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

/// Lets others run, in a loop that must come to its end.
pub(crate) fn cond_resched() {
    ffi::ima_trim_cond_resched();
}
