// SPDX-License-Identifier: GPL-2.0

//! IMA's two mutexes, as types: what is read and written under which, and the counters.

use super::Ima;
use crate::rust::openers::Busy;
use kernel::{
    sync::lock::{
        mutex::MutexBackend,
        Guard,
        Lock, //
    },
    time::{
        delay::fsleep,
        Delta,
        Instant,
        Monotonic, //
    },
};

/// The guard of a mutex that belongs to the kernel.
type KernelMutexGuard = Guard<'static, (), MutexBackend>;

/// `ima_measure_mutex` is held: nobody opens or closes a measurement list file.
///
/// # Invariants
///
/// `_guard` is that of `ima_measure_mutex`.
pub(super) struct MeasureGuard<'i> {
    pub(super) ima: &'i Ima,
    _guard: KernelMutexGuard,
}

/// `ima_extend_list_mutex` is held: nobody changes the list, the counters, or the digest hash
/// table.
///
/// Every measurement of the system waits for it: nothing may be allocated, no user memory accessed,
/// and nothing waited for.
///
/// # Invariants
///
/// `_guard` is that of `ima_extend_list_mutex`.
pub(super) struct ListGuard<'i> {
    pub(super) ima: &'i Ima,
    _guard: KernelMutexGuard,
}

/// IMA's own counters of records, all read at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Counters {
    /// Records in the list.
    pub(crate) live: i64,
    /// Records staged.
    pub(crate) staged: i64,
    /// Whether the staged list has any record.
    pub(crate) any_staged: bool,
    /// Records that ever were added since boot, restored ones included.
    pub(crate) full: i64,
    /// Whether measuring is suspended.
    pub(crate) suspended: bool,
}

impl Counters {
    /// The records that were ever removed: staging leaves this as it is.
    pub(crate) fn deleted(&self) -> i64 {
        self.full
            .saturating_sub(self.live)
            .saturating_sub(self.staged)
    }

    /// The records that are staged or were removed: a number that appending leaves as it is, and
    /// that any other change of the list makes larger. It never becomes smaller.
    pub(super) fn generation(&self) -> i64 {
        self.full.wrapping_sub(self.live)
    }

    /// Whether the list is whole and may be changed.
    pub(crate) fn check(&self) -> Result<(), Busy> {
        if self.suspended {
            Err(Busy::Suspended)
        } else if self.staged != 0 || self.any_staged {
            Err(Busy::Staged(self.staged))
        } else {
            Ok(())
        }
    }
}

impl Ima {
    /// Takes `ima_measure_mutex`.
    pub(super) fn lock_measure(&self) -> MeasureGuard<'_> {
        // SAFETY: By the invariants of `Symbol` it is the kernel's mutex, which `DEFINE_MUTEX`
        // initialised (`security/integrity/ima/ima_fs.c`) and which is never freed.
        let mutex = unsafe { Lock::from_raw(self.symbols.ima_measure_mutex.as_ptr()) };

        // INVARIANT: As just said.
        MeasureGuard {
            ima: self,
            _guard: mutex.lock(),
        }
    }

    /// Takes `ima_extend_list_mutex`.
    #[inline(always)]
    pub(super) fn lock_list(&self) -> ListGuard<'_> {
        // SAFETY: By the invariants of `Symbol` it is the kernel's mutex, which `DEFINE_MUTEX`
        // initialised (`security/integrity/ima/ima_queue.c`) and which is never freed.
        let mutex = unsafe { Lock::from_raw(self.symbols.ima_extend_list_mutex.as_ptr()) };

        // INVARIANT: As just said.
        ListGuard {
            ima: self,
            _guard: mutex.lock(),
        }
    }

    /// IMA's counters. Takes `ima_extend_list_mutex` shortly.
    //
    // One function for all: code that did not run for a while makes a hold several times as long.
    #[inline(never)]
    pub(crate) fn counters(&self) -> Counters {
        self.lock_list().counters()
    }
}

impl ListGuard<'_> {
    /// IMA's counters.
    pub(super) fn counters(&self) -> Counters {
        let staged = self.ima.symbols.ima_measurements_staged.as_ptr();

        Counters {
            live: self.ima.live.read(),
            staged: self.ima.staged.read(),
            full: self.ima.full.read(),
            // SAFETY: By the invariants of `Symbol` it is a list head, which is changed under
            // `ima_extend_list_mutex` only. That is held.
            any_staged: unsafe { (*staged).next } != staged,
            suspended: self.is_suspended(),
        }
    }

    /// [`Counters::generation`], of the two counters alone.
    #[inline(always)]
    pub(super) fn generation(&self) -> i64 {
        self.ima.full.read().wrapping_sub(self.ima.live.read())
    }

    /// Whether measuring is suspended.
    #[inline(always)]
    pub(super) fn is_suspended(&self) -> bool {
        // SAFETY: By the invariants of `Symbol` it is a byte. It is written under
        // `ima_extend_list_mutex`, which is held.
        unsafe { self.ima.symbols.ima_measurements_suspended.as_ptr().read() != 0 }
    }

    /// Why a list of another generation, or one that is suspended, cannot be used.
    #[cold]
    pub(super) fn lost(&self) -> Busy {
        self.counters().check().err().unwrap_or(Busy::Changed)
    }
}

/// For how long a mutex that is to be taken again is left free, at most: holds are shorter, unless
/// the task did not run all the time.
const LONGEST_PAUSE_NS: u64 = 100_000;

/// Leaves `ima_extend_list_mutex`, free since then, free for as long as it was held: whoever spins
/// on it would otherwise come too late again and again.
///
/// Sleeps if that is more than about 10 us, so that others come to run where there is one
/// processor.
pub(super) fn leave_free(since: Instant<Monotonic>, hold_ns: u64) {
    let left = hold_ns
        .min(LONGEST_PAUSE_NS)
        .saturating_sub(nanoseconds(since));

    if left != 0 {
        fsleep(Delta::from_nanos(i64::try_from(left).unwrap_or(0)));
    }
}

/// The time since then, in nanoseconds.
pub(super) fn nanoseconds(since: Instant<Monotonic>) -> u64 {
    u64::try_from(since.elapsed().as_nanos()).unwrap_or(0)
}
