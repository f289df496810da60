// SPDX-License-Identifier: GPL-2.0

//! The holds on IMA's measurement list, as types: what they prove, and what they are needed for.

use super::{
    list::{
        self,
        Ends,
        Position,
        Walk, //
    },
    reclaim::Cut,
    Ima,
};
use crate::openers::{
    self,
    Busy, //
};
use core::{
    hint::spin_loop,
    marker::PhantomData, //
};
use kernel::{
    sync::lock::{
        mutex::MutexBackend,
        Guard,
        Lock, //
    },
    time::{
        Instant,
        Monotonic, //
    },
};

/// The guard of a mutex that belongs to the kernel.
pub(super) type KernelMutexGuard = Guard<'static, (), MutexBackend>;

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
    fn measure_mutex(&self) -> KernelMutexGuard {
        // SAFETY: By the invariants of `Symbol` it is the kernel's mutex, which `DEFINE_MUTEX`
        // initialised (`security/integrity/ima/ima_fs.c`) and which is never freed.
        unsafe { Lock::from_raw(self.symbols.ima_measure_mutex.as_ptr()) }.lock()
    }

    /// Takes `ima_extend_list_mutex`.
    pub(super) fn extend_list_mutex(&self) -> KernelMutexGuard {
        // SAFETY: As above, of `security/integrity/ima/ima_queue.c`.
        unsafe { Lock::from_raw(self.symbols.ima_extend_list_mutex.as_ptr()) }.lock()
    }

    /// Takes `ima_extend_list_mutex`, if nobody has it.
    fn try_extend_list_mutex(&self) -> Option<KernelMutexGuard> {
        // SAFETY: As above.
        unsafe { Lock::from_raw(self.symbols.ima_extend_list_mutex.as_ptr()) }.try_lock()
    }

    /// How many have the measurement list files open for reading, us included. An error if somebody
    /// has one open for writing, be it the current task.
    fn readers(&self, _measure: &KernelMutexGuard) -> Result<isize, Busy> {
        // SAFETY: The three are only accessed under `ima_measure_mutex`, which is held.
        let (users, writer, extra) = unsafe {
            (
                self.symbols.ima_measure_users.as_ptr().read(),
                self.symbols.measure_writer.as_ptr().read(),
                self.symbols.measure_writer_extra_writes.as_ptr().read(),
            )
        };

        // They are 64 bits wide, and what is accepted of `users` is one of them.
        openers::readers(users as i64, !writer.is_null(), extra as i64).map(|_| users)
    }

    /// Sets `ima_measure_users`.
    fn set_users(&self, _measure: &mut KernelMutexGuard, users: isize) {
        // SAFETY: It is only accessed under `ima_measure_mutex`, which is held.
        unsafe { self.symbols.ima_measure_users.as_ptr().write(users) };
    }

    /// Counts us as a reader of the measurement list files once more, as `ima_measure_lock(false)`
    /// does.
    fn count_in(&self, measure: &mut KernelMutexGuard, users: isize) -> Result<(), Busy> {
        self.set_users(measure, users.checked_add(1).ok_or(Busy::TooManyReaders)?);
        Ok(())
    }

    /// Takes back what `count_in` did.
    fn count_out(&self) {
        let mut measure = self.measure_mutex();
        // SAFETY: It is only accessed under `ima_measure_mutex`, which is held.
        let users = unsafe { self.symbols.ima_measure_users.as_ptr().read() };

        self.set_users(&mut measure, users.saturating_sub(1));
    }

    /// Keeps all writers out until `self` is dropped: we are counted as a reader, for good.
    ///
    /// Takes `ima_measure_mutex` shortly.
    pub(crate) fn guard(&mut self) -> Result<(), Busy> {
        if self.guarded {
            return Ok(());
        }
        let mut measure = self.measure_mutex();

        let users = self.readers(&measure)?;
        self.count_in(&mut measure, users)?;
        drop(measure);
        // INVARIANT: We were just counted.
        self.guarded = true;
        Ok(())
    }

    /// Whether writers are kept out as long as the module is loaded.
    pub(crate) fn is_guarded(&self) -> bool {
        self.guarded
    }

    /// Makes sure that nobody stages or deletes records for a while: we are counted as a reader of
    /// the measurement list files.
    ///
    /// Takes `ima_measure_mutex` shortly.
    pub(crate) fn hold(&self) -> Result<Hold<'_>, Busy> {
        let mut measure = self.measure_mutex();
        let users = self.readers(&measure)?;

        self.count_in(&mut measure, users)?;
        drop(measure);
        // INVARIANT: We were just counted.
        Ok(Hold { ima: self })
    }

    /// IMA's counters. Takes `ima_extend_list_mutex` shortly.
    //
    // One function for all: code that did not run for a while makes a hold several times as long.
    #[inline(never)]
    pub(crate) fn counters(&self) -> Counters {
        self.counters_locked(&self.extend_list_mutex())
    }

    /// IMA's counters, under `ima_extend_list_mutex`.
    pub(super) fn counters_locked(&self, list: &KernelMutexGuard) -> Counters {
        let staged = self.symbols.ima_measurements_staged.as_ptr();

        Counters {
            live: self.live.read(),
            staged: self.staged.read(),
            full: self.full.read(),
            // SAFETY: The head of the staged list is changed under `ima_extend_list_mutex` only,
            // which is held.
            any_staged: unsafe { (*staged).next } != staged,
            suspended: self.is_suspended(list),
        }
    }

    /// [`Counters::generation`], of the two counters alone.
    pub(super) fn generation(&self, _list: &KernelMutexGuard) -> i64 {
        self.full.read().wrapping_sub(self.live.read())
    }

    /// Why a list of another generation, or one that is suspended, cannot be used.
    #[cold]
    pub(super) fn lost(&self, list: &KernelMutexGuard) -> Busy {
        let counters = self.counters_locked(list);

        counters.check().err().unwrap_or(Busy::Changed)
    }

    /// Whether measuring is suspended.
    fn is_suspended(&self, _list: &KernelMutexGuard) -> bool {
        // SAFETY: It is written under `ima_extend_list_mutex`, which is held.
        unsafe { self.symbols.ima_measurements_suspended.as_ptr().read() != 0 }
    }
}

impl Drop for Ima {
    fn drop(&mut self) {
        if self.guarded {
            self.count_out();
        }
    }
}

/// Nobody stages or deletes records.
///
/// As long as we are counted as a reader, a writer cannot open a measurement list file, and there was
/// none when the hold was taken. Others can read meanwhile and records can be appended.
///
/// # Invariants
///
/// `ima_measure_users` counts this hold. When it was taken, nobody had a measurement list file open
/// for writing.
pub(crate) struct Hold<'i> {
    pub(super) ima: &'i Ima,
}

impl<'i> Hold<'i> {
    /// Begins a walk along the list.
    ///
    /// Takes `ima_extend_list_mutex` shortly. The walk itself takes no lock.
    pub(crate) fn walk(&self) -> Result<Walk<'_>, Busy> {
        let counters = self.counters();

        counters.check()?;
        Ok(Walk::new(self, counters))
    }

    /// IMA's counters. Takes `ima_extend_list_mutex` shortly.
    pub(crate) fn counters(&self) -> Counters {
        self.ima.counters()
    }

    /// Takes `ima_measure_mutex`, and makes sure that nobody else has a list open.
    ///
    /// No walk, nor any record of one, can be used any more from here on: the next one is another.
    ///
    /// As long as it lasts, whoever opens or closes a measurement list file waits: no user memory
    /// may be accessed, nothing allocated, and nothing waited for but the mutex that follows.
    pub(crate) fn exclude(&mut self) -> Result<Exclusive<'i, '_>, Busy> {
        let measure = self.ima.measure_mutex();
        let own = isize::from(self.ima.guarded).saturating_add(1);
        let users = self.ima.readers(&measure)?;

        if users != own {
            return Err(Busy::Readers(users.saturating_sub(own) as i64));
        }
        // INVARIANT: We are counted as often as we should, so nobody else is.
        Ok(Exclusive {
            ima: self.ima,
            _measure: measure,
            _hold: PhantomData,
        })
    }
}

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        // By the invariants of the type we are counted.
        self.ima.count_out();
    }
}

/// `ima_measure_mutex` is held.
///
/// # Invariants
///
/// Nobody but us has a measurement list file open: neither [`Ima::guard`] nor the one [`Hold`], which
/// lives for `'h`, reads one now. While this exists, nobody can open one.
pub(crate) struct Exclusive<'i, 'h> {
    ima: &'i Ima,
    _measure: KernelMutexGuard,
    _hold: PhantomData<&'h mut ()>,
}

impl<'i, 'h> Exclusive<'i, 'h> {
    /// Makes sure that the records up to `position` could be cut off. Takes `ima_extend_list_mutex`
    /// shortly.
    pub(crate) fn check(&mut self, position: &Position) -> Result<(), Busy> {
        self.lock_list().check(position).map(|_| ())
    }

    /// Cuts off the records up to `position`, in constant time. Takes `ima_extend_list_mutex`
    /// shortly.
    ///
    /// Returns what was cut off, and for how many nanoseconds the mutex was held. On an error
    /// nothing was changed.
    //
    // All that is done in the hold is in one function and a few cache lines: it comes after a long
    // walk, of which all is cold, and calls would make the hold longer by half.
    #[inline(never)]
    pub(crate) fn cut(&mut self, position: Position) -> Result<(Cut, u64), Busy> {
        let mut list = self.lock_list();
        let cut = list.cut(position)?;
        let since = list.since;

        drop(list);
        Ok((cut, nanoseconds(since)))
    }

    /// Takes `ima_extend_list_mutex`.
    #[inline(always)]
    fn lock_list(&mut self) -> ListLock<'i, 'h, '_> {
        // Reading the clock takes as long as all else that is done in the hold: it is read outside,
        // unless the mutex has to be waited for longer than for a short hold.
        let began = Instant::<Monotonic>::now();
        while nanoseconds(began) < SHORT_WAIT_NS {
            let since = Instant::now();

            if let Some(list) = self.ima.try_extend_list_mutex() {
                return ListLock {
                    exclusive: self,
                    since,
                    list,
                };
            }
            spin_loop();
        }
        let list = self.ima.extend_list_mutex();

        ListLock {
            exclusive: self,
            since: Instant::now(),
            list,
        }
    }
}

/// For how long a mutex that is not free is tried before it is waited for.
const SHORT_WAIT_NS: u64 = 10_000;

/// `ima_extend_list_mutex` is held, within an [`Exclusive`].
///
/// Every measurement of the system waits for it.
struct ListLock<'i, 'h, 'e> {
    exclusive: &'e mut Exclusive<'i, 'h>,
    since: Instant<Monotonic>,
    list: KernelMutexGuard,
}

impl ListLock<'_, '_, '_> {
    /// Checks that the records up to `position` can be cut off: that the list is the one that was
    /// walked, that none of it is staged, that measuring goes on, and that the links are right.
    ///
    /// Nothing is staged as long as the list is of the generation of a [`Position`].
    #[inline(always)]
    fn check(&self, position: &Position) -> Result<Ends, Busy> {
        let ima = self.exclusive.ima;

        if ima.generation(&self.list) == position.generation() && !ima.is_suspended(&self.list) {
            // SAFETY: The mutex is held, and the generation was just compared under it.
            unsafe { list::ends(ima, &self.list, position) }
        } else {
            Err(ima.lost(&self.list))
        }
    }

    /// Cuts off the records up to `position`. On an error nothing was changed.
    #[inline(always)]
    fn cut(&mut self, position: Position) -> Result<Cut, Busy> {
        let ends = self.check(&position)?;
        // SAFETY: The mutex is held, within the `Exclusive`, since before `check` gave the ends.
        Ok(unsafe { list::cut(self.exclusive.ima, &mut self.list, position, ends) })
    }
}

/// For how long a mutex that is to be taken again is left free, at most: holds are shorter, unless
/// the task did not run all the time.
const LONGEST_PAUSE_NS: u64 = 100_000;

/// Leaves `ima_extend_list_mutex`, free since then, free for as long as it was held: whoever spins
/// on it would otherwise come too late again and again.
pub(super) fn leave_free(since: Instant<Monotonic>, hold_ns: u64) {
    while nanoseconds(since) < hold_ns.min(LONGEST_PAUSE_NS) {
        spin_loop();
    }
}

/// The time since then, in nanoseconds.
pub(super) fn nanoseconds(since: Instant<Monotonic>) -> u64 {
    u64::try_from(since.elapsed().as_nanos()).unwrap_or(0)
}
