// SPDX-License-Identifier: GPL-2.0

//! The directories of all boots: their order, and which of them go.

use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::path::Path;

use rustix::fs::Mode;
use rustix::fs::OFlags;
use rustix::fs::CWD;
use rustix::io::Errno;
use tracing::warn;

use crate::archive::calls::Calls;
use crate::archive::calls::Kernel;
use crate::archive::io;
use crate::archive::open_dir;
use crate::archive::segment;
use crate::archive::ArchiveError;
use crate::archive::BootId;
use crate::archive::Step;

/// The file with the place of a boot among the others: a decimal number and the end of a line.
///
/// Boots are ordered by it and not by time: a clock may have been wrong.
pub(super) const NUMBER: &str = "number";

/// How the name of a directory ends that is being removed.
const REMOVED: &str = ".removed";

/// The archive of one boot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Boot {
    /// Which boot.
    pub id: BootId,
    /// Its place among the others: a later boot has a higher one. 0 if it cannot be read.
    pub number: u64,
    /// How many segments there are.
    pub segments: u64,
    /// Bytes of all segments.
    pub bytes: u64,
}

/// How much of earlier boots is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keep {
    /// The most boots.
    pub boots: usize,
    /// The most bytes of all of them together.
    pub bytes: u64,
}

impl Keep {
    /// Those that are more than this allows, of boots from oldest to youngest.
    pub(super) fn surplus(self, boots: Vec<Boot>) -> Vec<Boot> {
        let (mut kept, mut bytes) = (0, 0u64);
        let mut full = false;
        let mut surplus = Vec::new();

        for boot in boots.into_iter().rev() {
            if boot.segments > 0 && !full {
                full = kept >= self.boots || bytes.saturating_add(boot.bytes) > self.bytes;
            }
            if boot.segments == 0 || full {
                surplus.push(boot);
            } else {
                kept += 1;
                bytes = bytes.saturating_add(boot.bytes);
            }
        }
        surplus.reverse();
        surplus
    }
}

/// All boots that have a directory in `root`, this one among them, from oldest to youngest.
///
/// # Errors
///
/// If a directory cannot be read.
pub fn boots(root: &Path) -> Result<Vec<Boot>, ArchiveError> {
    let dir = open_dir(&Kernel, CWD, root, root)?;
    list(&Kernel, dir.as_fd(), root)
}

/// The same, of a directory that is open.
pub(super) fn list(
    calls: &dyn Calls,
    root: BorrowedFd<'_>,
    root_path: &Path,
) -> Result<Vec<Boot>, ArchiveError> {
    let names = calls
        .names(root)
        .map_err(|errno| io(Step::List, root_path, errno))?;
    let mut boots = Vec::new();

    for id in names.iter().filter_map(|name| BootId::parse(name)) {
        let path = root_path.join(id.as_str());
        match look(calls, root, &path, id) {
            Ok(boot) => boots.push(boot),
            // Somebody removed it meanwhile.
            Err(ArchiveError::Io {
                errno: Errno::NOENT,
                ..
            }) => {}
            Err(error) => return Err(error),
        }
    }
    boots.sort_by(|a, b| (a.number, &a.id).cmp(&(b.number, &b.id)));
    Ok(boots)
}

fn look(
    calls: &dyn Calls,
    root: BorrowedFd<'_>,
    path: &Path,
    id: BootId,
) -> Result<Boot, ArchiveError> {
    let dir = open_dir(calls, root, path, id.as_str().as_ref())?;
    let names = calls
        .names(dir.as_fd())
        .map_err(|errno| io(Step::List, path, errno))?;
    let mut boot = Boot {
        id,
        number: number(calls, dir.as_fd()).unwrap_or(0),
        segments: 0,
        bytes: 0,
    };

    for name in names.iter().filter(|name| name.ends_with(segment::SUFFIX)) {
        let file = open(calls, dir.as_fd(), name);
        let size = file
            .and_then(|file| calls.size(file.as_fd()))
            .map_err(|errno| io(Step::Read, &path.join(name), errno))?;
        boot.segments += 1;
        boot.bytes = boot.bytes.saturating_add(size);
    }
    Ok(boot)
}

fn open(
    calls: &dyn Calls,
    dir: BorrowedFd<'_>,
    name: &str,
) -> rustix::io::Result<std::os::fd::OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW;
    calls.open(dir, name.as_ref(), flags, Mode::empty())
}

fn number(calls: &dyn Calls, dir: BorrowedFd<'_>) -> Option<u64> {
    let file = open(calls, dir, NUMBER).ok()?;
    let mut text = [0; 32];
    let length = calls.read(file.as_fd(), &mut text, 0).ok()?;

    let text = std::str::from_utf8(text.get(..length)?).ok()?;
    text.strip_suffix('\n')?.parse().ok()
}

/// The text of [`NUMBER`] for a boot that is later than all that are there.
pub(super) fn next_number(
    calls: &dyn Calls,
    root: BorrowedFd<'_>,
    root_path: &Path,
) -> Result<String, ArchiveError> {
    let boots = list(calls, root, root_path)?;
    let highest = boots.last().map_or(0, |boot| boot.number);
    Ok(format!("{}\n", highest.saturating_add(1)))
}

/// Removes the archive of a boot. It gets another name first: one that lacks some segments must
/// never be taken for a damaged one.
pub(super) fn remove(
    calls: &dyn Calls,
    root: BorrowedFd<'_>,
    root_path: &Path,
    id: &BootId,
) -> Result<(), ArchiveError> {
    let name = format!("{id}{REMOVED}");

    calls
        .rename(root, id.as_str(), &name)
        .map_err(|errno| io(Step::Rename, &root_path.join(id.as_str()), errno))?;
    calls
        .sync(root)
        .map_err(|errno| io(Step::Sync, root_path, errno))?;
    remove_files(calls, root, root_path, &name)
}

/// Removes what is left of directories that somebody began to remove, as far as that can be removed.
pub(super) fn remove_leftovers(
    calls: &dyn Calls,
    root: BorrowedFd<'_>,
    root_path: &Path,
) -> Result<(), ArchiveError> {
    let names = calls
        .names(root)
        .map_err(|errno| io(Step::List, root_path, errno))?;

    for name in &names {
        let id = name.strip_suffix(REMOVED).and_then(BootId::parse);
        if id.is_none() {
            continue;
        }
        // Nothing depends on it that it is gone.
        if let Err(error) = remove_files(calls, root, root_path, name) {
            warn!("what is left of the archive of an earlier boot: {error}");
        }
    }
    Ok(())
}

fn remove_files(
    calls: &dyn Calls,
    root: BorrowedFd<'_>,
    root_path: &Path,
    name: &str,
) -> Result<(), ArchiveError> {
    let path = root_path.join(name);
    let dir = open_dir(calls, root, &path, name.as_ref())?;
    let files = calls
        .names(dir.as_fd())
        .map_err(|errno| io(Step::List, &path, errno))?;

    for file in &files {
        calls
            .remove(dir.as_fd(), file)
            .map_err(|errno| io(Step::Remove, &path.join(file), errno))?;
    }
    calls
        .remove_dir(root, name)
        .map_err(|errno| io(Step::Remove, &path, errno))
}
