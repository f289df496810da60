// SPDX-License-Identifier: GPL-2.0

//! The system calls of the archive, in one place, so that a test can make each of them fail or be
//! the last one.
//!
//! Every name is one in a directory that is open: nobody can exchange a directory on the way.

use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::AtFlags;
use rustix::fs::Dir;
use rustix::fs::Mode;
use rustix::fs::OFlags;
use rustix::fs::RenameFlags;
use rustix::io::retry_on_intr;
use rustix::io::Result;

/// What the archive asks the kernel for.
pub(crate) trait Calls: Send + Sync {
    /// `openat(2)`. A descriptor is never passed on to another program.
    fn open(&self, dir: BorrowedFd<'_>, name: &Path, flags: OFlags, mode: Mode) -> Result<OwnedFd> {
        retry_on_intr(|| rustix::fs::openat(dir, name, flags | OFlags::CLOEXEC, mode))
    }

    /// `pread(2)`.
    fn read(&self, file: BorrowedFd<'_>, to: &mut [u8], at: u64) -> Result<usize> {
        retry_on_intr(|| rustix::io::pread(file, &mut *to, at))
    }

    /// `fstat(2)`, for the size.
    fn size(&self, file: BorrowedFd<'_>) -> Result<u64> {
        rustix::fs::fstat(file).map(|stat| u64::try_from(stat.st_size).unwrap_or(0))
    }

    /// `write(2)`.
    fn write(&self, file: BorrowedFd<'_>, bytes: &[u8]) -> Result<usize> {
        retry_on_intr(|| rustix::io::write(file, bytes))
    }

    /// `fsync(2)`, of a file or a directory.
    fn sync(&self, file: BorrowedFd<'_>) -> Result<()> {
        retry_on_intr(|| rustix::fs::fsync(file))
    }

    /// `renameat2(2)`, within a directory. A file that has the name already stays.
    fn rename(&self, dir: BorrowedFd<'_>, from: &str, to: &str) -> Result<()> {
        rustix::fs::renameat_with(dir, from, dir, to, RenameFlags::NOREPLACE)
    }

    /// `mkdirat(2)`.
    fn make_dir(&self, dir: BorrowedFd<'_>, name: &Path, mode: Mode) -> Result<()> {
        rustix::fs::mkdirat(dir, name, mode)
    }

    /// `unlinkat(2)`, of a file.
    fn remove(&self, dir: BorrowedFd<'_>, name: &str) -> Result<()> {
        rustix::fs::unlinkat(dir, name, AtFlags::empty())
    }

    /// `unlinkat(2)`, of an empty directory.
    fn remove_dir(&self, dir: BorrowedFd<'_>, name: &str) -> Result<()> {
        rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR)
    }

    /// `getdents64(2)` until the end: all names, in no order. One that is no text cannot be a name
    /// that the archive gave, and is left out.
    fn names(&self, dir: BorrowedFd<'_>) -> Result<Vec<String>> {
        let mut names = Vec::new();

        for entry in Dir::read_from(dir)? {
            match entry?.file_name().to_str() {
                Ok("." | "..") | Err(_) => {}
                Ok(name) => names.push(name.to_owned()),
            }
        }
        Ok(names)
    }
}

/// The calls themselves.
#[derive(Debug)]
pub(crate) struct Kernel;

impl Calls for Kernel {}
