// SPDX-License-Identifier: GPL-2.0

//! The current task: what it owes the rest of the system, and who can have its descriptors.

use super::ffi;
use core::marker::PhantomData;

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

/// Nobody takes a descriptor from the current task: each way to do so, `pidfd_getfd(2)` say, goes
/// through `fget_task()` or `fget_task_next()` (`fs/file.c`), which take `alloc_lock`.
///
/// Tasks that share its table of descriptors need not, but they count as users of the table. Nothing
/// may sleep as long as this lasts.
pub(super) struct Descriptors(PhantomData<*mut ()>);

impl Descriptors {
    /// Takes `alloc_lock`.
    pub(super) fn lock() -> Self {
        ffi::ima_trim_descriptors_lock();
        Self(PhantomData)
    }
}

impl Drop for Descriptors {
    fn drop(&mut self) {
        // SAFETY: The current task took it when this was made, as it is not `Send`.
        unsafe { ffi::ima_trim_descriptors_unlock() };
    }
}

/// Lets others run, in a loop that must come to its end.
pub(crate) fn cond_resched() {
    ffi::ima_trim_cond_resched();
}
