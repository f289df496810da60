// SPDX-License-Identifier: GPL-2.0

//! Who has the measurement list files open, and keeping writers out: the guard, the lock, and holds.
//!
//! IMA counts who has them open under `ima_measure_mutex` (`ima_fs.c`), and only a writer stages or
//! deletes. The module counts itself as a reader, as `ima_measure_lock(false)` does: as long as it
//! is counted, no writer can come in. With the lock it stays counted when it goes.

use super::{
    lock::{
        Counters,
        MeasureGuard, //
    },
    Ima,
};
use crate::rust::openers::{
    self,
    Busy,
    LOCK, //
};
use kernel::sync::atomic::Relaxed;

/// How often the lock counts us. The counters of IMA have 64 bits.
const LOCK_COUNTS: isize = LOCK as isize;

impl MeasureGuard<'_> {
    /// How many have the measurement list files open for reading, us included. An error if somebody
    /// has one open for writing, be it the current task.
    pub(super) fn readers(&self) -> Result<isize, Busy> {
        let symbols = &self.ima.symbols;
        // SAFETY: By the invariants of `Symbol` they are there. They are only accessed under
        // `ima_measure_mutex`, which is held.
        let (users, writer, extra) = unsafe {
            (
                symbols.ima_measure_users.as_ptr().read(),
                symbols.measure_writer.as_ptr().read(),
                symbols.measure_writer_extra_writes.as_ptr().read(),
            )
        };

        // They are 64 bits wide, and what is accepted of `users` is one of them.
        openers::readers(users as i64, !writer.is_null(), extra as i64).map(|_| users)
    }

    /// Sets `ima_measure_users`.
    fn set_users(&mut self, users: isize) {
        // SAFETY: By the invariants of `Symbol` it is there, and `ima_measure_mutex`, which covers
        // it, is held.
        unsafe { self.ima.symbols.ima_measure_users.as_ptr().write(users) };
    }

    /// Counts us as this many readers more, each as `ima_measure_lock(false)` does.
    fn count_in(&mut self, times: isize) -> Result<(), Busy> {
        let users = self.readers()?;

        self.set_users(users.checked_add(times).ok_or(Busy::Readers(i64::MAX))?);
        Ok(())
    }

    /// Takes back what [`Self::count_in`] did.
    fn count_out(&mut self, times: isize) {
        // SAFETY: By the invariants of `Symbol` it is there, and `ima_measure_mutex`, which covers
        // it, is held.
        let users = unsafe { self.ima.symbols.ima_measure_users.as_ptr().read() };

        self.set_users(users.saturating_sub(times));
    }
}

impl Ima {
    /// Keeps all writers out until `self` is dropped: we are counted as a reader, for good.
    ///
    /// Takes `ima_measure_mutex` shortly.
    pub(crate) fn guard(&mut self) -> Result<(), Busy> {
        if self.counted == 0 {
            self.lock_measure().count_in(1)?;
            // INVARIANT: We were just counted.
            self.counted = 1;
        }
        Ok(())
    }

    /// Keeps all writers out, as [`Self::guard`] does. From [`Self::stay_locked`] on that is until
    /// the machine is rebooted, whatever becomes of `self`.
    ///
    /// Refused if an earlier load of the module has done so, since this one could not be told from
    /// that. Takes `ima_measure_mutex` shortly.
    pub(crate) fn lock(&mut self) -> Result<(), Busy> {
        if self.counted == 0 {
            let mut measure = self.lock_measure();

            if measure.readers()? >= LOCK_COUNTS {
                return Err(Busy::Locked);
            }
            measure.count_in(LOCK_COUNTS)?;
            drop(measure);
            // INVARIANT: We were just counted.
            self.counted = LOCK_COUNTS;
        }
        Ok(())
    }

    /// Does not give back what [`Self::lock`] has taken, until the machine is rebooted.
    pub(crate) fn stay_locked(&self) {
        // ORDERING: It is looked at when `self` is dropped, which nobody else uses any more then.
        self.stays.store(true, Relaxed);
    }

    /// Whether an earlier load of the module has locked the list. Takes `ima_measure_mutex` shortly.
    pub(crate) fn is_locked_by_others(&self) -> bool {
        self.lock_measure()
            .readers()
            .is_ok_and(|users| users.saturating_sub(self.counted) >= LOCK_COUNTS)
    }

    /// Whether writers are kept out as long as the module is loaded.
    pub(crate) fn is_guarded(&self) -> bool {
        self.counted != 0
    }

    /// Makes sure that nobody stages or deletes records for a while: we are counted as a reader of
    /// the measurement list files.
    ///
    /// Takes `ima_measure_mutex` shortly.
    pub(crate) fn hold(&self) -> Result<Hold<'_>, Busy> {
        self.lock_measure().count_in(1)?;
        // INVARIANT: We were just counted, which is not done if somebody has one open for writing.
        Ok(Hold { ima: self })
    }
}

impl Drop for Ima {
    fn drop(&mut self) {
        // ORDERING: See `stay_locked()`.
        if self.counted != 0 && !self.stays.load(Relaxed) {
            self.lock_measure().count_out(self.counted);
        }
    }
}

/// Nobody stages or deletes records.
///
/// As long as we are counted as a reader, a writer cannot open a measurement list file, and there
/// was none when the hold was taken. Others can read meanwhile and records can be appended.
///
/// # Invariants
///
/// `ima_measure_users` counts this hold. When it was taken, nobody had a measurement list file open
/// for writing, so nobody has now.
pub(crate) struct Hold<'i> {
    pub(super) ima: &'i Ima,
}

impl Hold<'_> {
    /// IMA's counters. Takes `ima_extend_list_mutex` shortly.
    pub(crate) fn counters(&self) -> Counters {
        self.ima.counters()
    }
}

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        self.ima.lock_measure().count_out(1);
    }
}
