// SPDX-License-Identifier: GPL-2.0

//! The holds on IMA's measurement list, as types: what they prove, and what they are needed for.

use super::{
    list::{
        self,
        Cut,
        Position,
        Walk, //
    },
    Ima,
};
use core::{
    fmt,
    marker::PhantomData, //
};
use kernel::{
    sync::{
        atomic::Relaxed,
        lock::{
            mutex::MutexBackend,
            Guard,
            Lock, //
        },
    },
    time::{
        Instant,
        Monotonic, //
    },
};

/// The guard of a mutex that belongs to the kernel.
pub(super) type KernelMutexGuard = Guard<'static, (), MutexBackend>;

/// Why the measurement list cannot be used now. Nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Busy {
    /// A process has a measurement list open for writing.
    Writer,
    /// Processes have measurement lists open for reading.
    Readers(i64),
    /// The kernel's account of readers and writers contradicts itself.
    Inconsistent {
        /// `ima_measure_users`.
        users: i64,
        /// `measure_writer_extra_writes`.
        extra: i64,
    },
    /// There are as many readers as can be counted.
    TooManyReaders,
    /// Records are staged.
    Staged(i64),
    /// IMA has suspended measuring.
    Suspended,
    /// The list is not the one that was walked.
    Changed,
    /// The links of the list contradict each other.
    Corrupt,
}

impl fmt::Display for Busy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Writer => f.write_str(
                "a process has a measurement list file open for writing: have it closed",
            ),
            Self::Readers(count) => write!(
                f,
                "a process has a measurement list file open for reading ({count} open): \
                 have it closed"
            ),
            Self::Inconsistent { users, extra } => write!(
                f,
                "the kernel's account of who has the measurement list files open contradicts \
                 itself (ima_measure_users={users}, measure_writer_extra_writes={extra}): a file \
                 opened for writing was closed by another task; close all, or reboot"
            ),
            Self::TooManyReaders => {
                f.write_str("the measurement list files are open too often to be opened once more")
            }
            Self::Staged(count) => write!(
                f,
                "{count} records are staged: somebody else is about to delete them, and after that \
                 the starting PCR values are unknown"
            ),
            Self::Suspended => {
                f.write_str("IMA has suspended measuring: a reboot or kexec is under way")
            }
            Self::Changed => f.write_str("somebody else removed records meanwhile"),
            Self::Corrupt => f.write_str("the links of the measurement list contradict each other"),
        }
    }
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

    /// A number that appending leaves as it is, and that any other change of the list changes.
    pub(super) fn generation(&self) -> i64 {
        self.full.saturating_sub(self.live)
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
    fn extend_list_mutex(&self) -> KernelMutexGuard {
        // SAFETY: As above, of `security/integrity/ima/ima_queue.c`.
        unsafe { Lock::from_raw(self.symbols.ima_extend_list_mutex.as_ptr()) }.lock()
    }

    /// `ima_measure_users`, unless there is or may be a writer.
    fn users(&self, _measure: &KernelMutexGuard) -> Result<isize, Busy> {
        // SAFETY: The three are only accessed under `ima_measure_mutex`, which is held.
        let (users, writer, extra) = unsafe {
            (
                self.symbols.ima_measure_users.as_ptr().read(),
                self.symbols.measure_writer.as_ptr().read(),
                self.symbols.measure_writer_extra_writes.as_ptr().read(),
            )
        };

        // `ima_measure_unlock()` knows the writer by the closing task. If that is not the one that
        // opened, the count can come back to zero while a file is still open for writing. That
        // leaves one of the other two set; the replay of all transitions shows no state in which
        // it does not.
        match (users, writer.is_null(), extra) {
            (0.., true, 0) => Ok(users),
            (-1, false, 0..) => Err(Busy::Writer),
            _ => Err(Busy::Inconsistent {
                users: users as i64,
                extra: extra as i64,
            }),
        }
    }

    /// Sets `ima_measure_users`.
    fn set_users(&self, _measure: &mut KernelMutexGuard, users: isize) {
        // SAFETY: It is only accessed under `ima_measure_mutex`, which is held.
        unsafe { self.symbols.ima_measure_users.as_ptr().write(users) };
    }

    /// Counts us as a reader of the measurement list files, as `ima_measure_lock(false)` does.
    ///
    /// Takes `ima_measure_mutex` shortly.
    pub(crate) fn hold(&self) -> Result<ReaderHold<'_>, Busy> {
        let mut measure = self.measure_mutex();
        let users = self.users(&measure)?;

        self.set_users(
            &mut measure,
            users.checked_add(1).ok_or(Busy::TooManyReaders)?,
        );
        drop(measure);
        // INVARIANT: We were just counted.
        Ok(ReaderHold { ima: self })
    }

    /// IMA's counters. Takes `ima_extend_list_mutex` shortly.
    pub(crate) fn counters(&self) -> Counters {
        self.counters_locked(&self.extend_list_mutex())
    }

    /// IMA's counters, under `ima_extend_list_mutex`.
    fn counters_locked(&self, _list: &KernelMutexGuard) -> Counters {
        let staged = self.symbols.ima_measurements_staged.as_ptr();

        Counters {
            live: self.live.atomic().load(Relaxed),
            staged: self.staged.atomic().load(Relaxed),
            full: self.full.atomic().load(Relaxed),
            // SAFETY: The head of the staged list is changed under `ima_extend_list_mutex` only,
            // which is held.
            any_staged: unsafe { (*staged).next } != staged,
            // SAFETY: It is written under `ima_extend_list_mutex`, which is held.
            suspended: unsafe { self.symbols.ima_measurements_suspended.as_ptr().read() },
        }
    }
}

/// We are counted as a reader of the measurement list files.
///
/// Others can read meanwhile and records can be appended, but nobody can stage or delete any: a
/// writer cannot open, and there was none open when the hold was taken.
///
/// # Invariants
///
/// `ima_measure_users` counts this hold.
pub(crate) struct ReaderHold<'i> {
    pub(super) ima: &'i Ima,
}

impl<'i> ReaderHold<'i> {
    /// Begins a walk along the list.
    ///
    /// Takes `ima_extend_list_mutex` shortly. The walk itself takes no lock.
    pub(crate) fn walk(&self) -> Result<Walk<'_>, Busy> {
        let counters = self.ima.counters();

        counters.check()?;
        Ok(Walk::new(self, &counters))
    }

    /// IMA's counters. Takes `ima_extend_list_mutex` shortly.
    pub(crate) fn counters(&self) -> Counters {
        self.ima.counters()
    }

    /// Takes `ima_measure_mutex`, and makes sure that we are the only reader.
    ///
    /// No walk, nor any record of one, can be used any more from here on: the next one is another.
    ///
    /// As long as it lasts, whoever opens or closes a measurement list file waits: no user memory
    /// may be accessed, nothing allocated, and nothing waited for but the mutex that follows.
    pub(crate) fn exclude(&mut self) -> Result<Exclusive<'i, '_>, Busy> {
        let measure = self.ima.measure_mutex();

        match self.ima.users(&measure)? {
            // INVARIANT: We are counted, so nobody else is.
            1 => Ok(Exclusive {
                ima: self.ima,
                _measure: measure,
                _hold: PhantomData,
            }),
            users => Err(Busy::Readers((users as i64).saturating_sub(1))),
        }
    }
}

impl Drop for ReaderHold<'_> {
    fn drop(&mut self) {
        let mut measure = self.ima.measure_mutex();
        // SAFETY: It is only accessed under `ima_measure_mutex`, which is held.
        let users = unsafe { self.ima.symbols.ima_measure_users.as_ptr().read() };

        // INVARIANT: By the invariants of the type we are counted.
        self.ima.set_users(&mut measure, users.saturating_sub(1));
    }
}

/// `ima_measure_mutex` is held.
///
/// # Invariants
///
/// Nobody but one [`ReaderHold`], which lives for `'h`, has a measurement list file open, and while
/// this exists, nobody can open one.
pub(crate) struct Exclusive<'i, 'h> {
    ima: &'i Ima,
    _measure: KernelMutexGuard,
    _hold: PhantomData<&'h mut ()>,
}

impl<'i, 'h> Exclusive<'i, 'h> {
    /// Takes `ima_extend_list_mutex`.
    pub(crate) fn lock_list(&mut self) -> ListLock<'i, 'h, '_> {
        let list = self.ima.extend_list_mutex();

        ListLock {
            ima: self.ima,
            since: Instant::now(),
            list,
            _exclusive: PhantomData,
        }
    }
}

/// `ima_extend_list_mutex` is held, within an [`Exclusive`].
///
/// Every measurement of the system waits for it.
pub(crate) struct ListLock<'i, 'h, 'e> {
    ima: &'i Ima,
    since: Instant<Monotonic>,
    list: KernelMutexGuard,
    _exclusive: PhantomData<&'e mut Exclusive<'i, 'h>>,
}

impl<'i, 'h> ListLock<'i, 'h, '_> {
    /// Checks that the records up to `position` can be cut off: that the list is the one that was
    /// walked, that none of it is staged, and that measuring goes on.
    pub(crate) fn check(&self, position: &Position) -> Result<(), Busy> {
        let counters = self.ima.counters_locked(&self.list);

        counters.check()?;
        if counters.generation() != position.generation() || counters.live < position.records() {
            return Err(Busy::Changed);
        }
        Ok(())
    }

    /// Cuts off the records up to `position`, in constant time, and lets go of the mutex.
    ///
    /// Returns what was cut off, and for how many nanoseconds the mutex was held. On an error
    /// nothing was changed.
    pub(crate) fn cut(mut self, position: Position) -> Result<(Cut<'i>, u64), Busy> {
        self.check(&position)?;

        let cut = list::cut(self.ima, &mut self.list, position)?;
        let Self { since, list, .. } = self;

        drop(list);
        Ok((cut, u64::try_from(since.elapsed().as_nanos()).unwrap_or(0)))
    }
}
