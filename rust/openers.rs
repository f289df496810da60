// SPDX-License-Identifier: GPL-2.0

//! IMA's account of who has the measurement list files open, and what may be concluded from it.
//!
//! `ima_measure_lock()` and `ima_measure_unlock()` (`security/integrity/ima/ima_fs.c`) let many
//! readers or one writer in. `ima_measure_users` is the number of open readers, or -1 with a
//! writer, `measure_writer` the task that opened for writing, and `measure_writer_extra_writes` how
//! many more descriptors that task has opened so.
//!
//! The account knows the writer by the task that *closes*. If that is not the one that opened,
//! because a descriptor was passed on or inherited, the count comes back to zero while a file is
//! still open for writing. But then one of the other two is left as it should not be without a
//! writer, which is what is looked at here.

#![forbid(unsafe_code)]

use crate::errno::Errno;
use core::fmt;

/// Why the measurement list cannot be used now. Nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Busy {
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
    /// An earlier load of the module has locked the list.
    Locked,
    /// Records are staged.
    Staged(i64),
    /// IMA has suspended measuring.
    Suspended,
    /// The list is not the one that was walked.
    Changed,
    /// The links of the list contradict each other.
    Corrupt,
}

impl Busy {
    /// The error that whoever wanted to use the list gets.
    pub fn errno(self) -> Errno {
        match self {
            Self::Suspended => Errno::Stale,
            Self::Changed | Self::Corrupt => Errno::Uclean,
            Self::Writer
            | Self::Readers(_)
            | Self::Inconsistent { .. }
            | Self::Locked
            | Self::Staged(_) => Errno::Busy,
        }
    }
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
            Self::Locked => f.write_str(
                "the module was loaded before in this boot, with signatures required: nothing can be \
                 removed from the list any more until the machine is rebooted",
            ),
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

/// How often a module counts itself that locks the list until reboot.
///
/// Nobody removes records as long as it is counted, and it stays counted when it is unloaded. Later
/// loads of the module, of whatever build, tell it from readers by its size: there are never so
/// many, as each descriptor takes the kernel some hundred bytes of memory.
pub const LOCK: i64 = 1 << 48;

/// Makes sure that nobody but us is counted, who are counted `own` times, among `users` that
/// [`readers`] has accepted.
pub fn alone(users: i64, own: i64) -> Result<(), Busy> {
    match users.saturating_sub(own) {
        0 => Ok(()),
        LOCK.. => Err(Busy::Locked),
        others => Err(Busy::Readers(others)),
    }
}

/// How many have the measurement list files open for reading.
///
/// The arguments are `ima_measure_users`, whether `measure_writer` is set, and
/// `measure_writer_extra_writes`, all read in one hold of `ima_measure_mutex`. An error unless it
/// is certain that nobody has one open for writing.
pub fn readers(users: i64, writer_noted: bool, extra_writes: i64) -> Result<i64, Busy> {
    match (users, writer_noted, extra_writes) {
        (0.., false, 0) => Ok(users),
        (-1, true, 0..) => Err(Busy::Writer),
        _ => Err(Busy::Inconsistent {
            users,
            extra: extra_writes,
        }),
    }
}
