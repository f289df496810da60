// SPDX-License-Identifier: GPL-2.0

//! What can be wrong with an archive, and where.

use std::fmt;
use std::path::PathBuf;

use rustix::io::Errno;

use crate::archive::segment::Sha256;
use crate::archive::BootId;
use crate::record::RecordError;
use crate::template::TemplateError;

/// Why the archive did not do what it was asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ArchiveError {
    /// Somebody else writes this archive.
    #[error(
        "the archive {path} belongs to {}; ask that one, or stop it",
        Owner(*pid)
    )]
    Locked {
        /// The archive's directory.
        path: PathBuf,
        /// Who it is, if `/proc/locks` tells.
        pid: Option<u32>,
    },
    /// The kernel refused something.
    #[error("cannot {step} {path}: {errno}{}", advice(*errno))]
    Io {
        /// What was to be done.
        step: Step,
        /// The file or directory.
        path: PathBuf,
        /// What the kernel said.
        errno: Errno,
    },
    /// A file is not what was written.
    #[error(
        "{path} is damaged: {damage}; nothing may be trimmed: put back a copy of the file, or boot \
         anew, which begins a new archive"
    )]
    Damaged {
        /// The file, or the one that is missing.
        path: PathBuf,
        /// What is wrong with it.
        damage: Damage,
    },
    /// A later ima-trim wrote it.
    #[error("{path} has format {found}, and this ima-trim knows {known}: use a newer one")]
    Version {
        /// The file.
        path: PathBuf,
        /// The number of its format.
        found: u32,
        /// The highest that is known here.
        known: u32,
    },
    /// The archive does not begin where it is said to begin.
    #[error(
        "{path} begins at other PCR values, or in other banks, than this boot; move the directory \
         away, and boot anew, which begins a new archive"
    )]
    Start {
        /// The directory.
        path: PathBuf,
    },
    /// What is to be archived is not whole records, from first byte to last, or cannot be shown in
    /// each of the views.
    #[error("cannot archive: {0}")]
    Records(#[from] NotRecords),
    /// No segment has this index, or no record this number.
    #[error("{path} has no {what} {number}: it has {have}")]
    Beyond {
        /// The directory.
        path: PathBuf,
        /// `segment` or `record`.
        what: &'static str,
        /// What was asked for.
        number: u64,
        /// How many there are.
        have: u64,
    },
}

/// Why bytes are not the records of a segment.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotRecords {
    /// There are none.
    #[error("there are no records")]
    Empty,
    /// The last one is not whole.
    #[error("the last record is not whole: {0} bytes are left over")]
    Partial(usize),
    /// One cannot be a record.
    #[error("record {number}: {error}")]
    Record {
        /// Its number since boot, from 0.
        number: u64,
        /// What is wrong with it.
        error: RecordError,
    },
    /// One cannot be shown as IMA shows it.
    #[error("record {number}: {error}")]
    Template {
        /// Its number since boot, from 0.
        number: u64,
        /// Why not.
        error: TemplateError,
    },
}

/// What is wrong with a file of the archive.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    /// It is not there, but later segments are.
    #[error("it is missing, and record {next} is archived")]
    Missing {
        /// The first record of the next segment that is there.
        next: u64,
    },
    /// Its name says that it has records that another segment has.
    #[error("it begins in the middle of the segment before it, which ends with record {last}")]
    Overlap {
        /// The last record of the segment before it.
        last: u64,
    },
    /// It is called a segment, and has no number of one.
    #[error("no segment has this name")]
    Name,
    /// The lines before the records are not what was written.
    #[error("its header cannot be read: {0}")]
    Header(String),
    /// It is from another boot.
    #[error("it is of the boot {0}")]
    ForeignBoot(BootId),
    /// It has other records than its name says.
    #[error("its first record is number {0}, which its name does not say")]
    Number(u64),
    /// Its length is not what its header says.
    #[error("it has {found} bytes and should have {expected}")]
    Size {
        /// Bytes that it should have.
        expected: u64,
        /// Bytes that it has.
        found: u64,
    },
    /// It does not name the segment before it as its predecessor.
    #[error("the segment before it is not the one that was there when it was written")]
    Chain,
    /// Its PCR values or totals are not those at the end of the segment before it.
    #[error("it does not begin where the segment before it ends: PCR values or totals differ")]
    Points,
    /// It is the first of its boot, and does not begin where a list does.
    #[error("it does not begin with the values that PCRs have after a reset")]
    Beginning,
    /// The header is not the one that was found when the archive was opened.
    #[error("its header has changed since the archive was opened")]
    Changed,
    /// The records are not those that were written.
    #[error("the SHA-256 of its records is {found} and should be {expected}")]
    Records {
        /// What the header says.
        expected: Sha256,
        /// What the records have.
        found: Sha256,
    },
    /// Its bytes are what was written, but not records.
    #[error("what it has is not whole records: {0}")]
    NotRecords(NotRecords),
    /// Replaying the records does not lead to what the header says.
    #[error("the replay of its records leads to other PCR values or totals than its header says")]
    Replay,
    /// The records have another length in one of IMA's files than the header says.
    #[error("its records have another length in {0} than its header says")]
    Length(String),
}

/// What the archive was about to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// `mkdir(2)`, or `open(2)` of a new file.
    Create,
    /// `open(2)` of something that is there.
    Open,
    /// `flock(2)`.
    Lock,
    /// `getdents64(2)`.
    List,
    /// `read(2)` or `fstat(2)`.
    Read,
    /// `write(2)`.
    Write,
    /// `fsync(2)`.
    Sync,
    /// `rename(2)`.
    Rename,
    /// `unlink(2)` or `rmdir(2)`.
    Remove,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Create => "create",
            Self::Open => "open",
            Self::Lock => "lock",
            Self::List => "list",
            Self::Read => "read",
            Self::Write => "write",
            Self::Sync => "fsync",
            Self::Rename => "give its name to",
            Self::Remove => "remove",
        })
    }
}

/// What somebody can do about an error of the kernel.
fn advice(errno: Errno) -> &'static str {
    match errno {
        Errno::NOSPC | Errno::DQUOT => "; make room there",
        Errno::ROFS => "; mount the file system writable",
        Errno::IO => "; look at the disk and at the kernel's log",
        Errno::ACCESS | Errno::PERM => "; look at owner and mode of the directories above it",
        _ => "",
    }
}

/// Who owns the lock.
struct Owner(Option<u32>);

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(pid) => write!(f, "process {pid}"),
            None => f.write_str("another process"),
        }
    }
}
