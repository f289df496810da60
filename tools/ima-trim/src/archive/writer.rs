// SPDX-License-Identifier: GPL-2.0

//! The one that owns the archive and adds to it.

use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;

use rustix::fs::FlockOperation;
use rustix::fs::Mode;
use rustix::fs::OFlags;
use rustix::fs::CWD;
use rustix::io::Errno;

use crate::archive::boots;
use crate::archive::calls::Calls;
use crate::archive::calls::Kernel;
use crate::archive::describe;
use crate::archive::io;
use crate::archive::open_dir;
use crate::archive::segment;
use crate::archive::segment::Lines;
use crate::archive::Archive;
use crate::archive::ArchiveError;
use crate::archive::Boot;
use crate::archive::BootId;
use crate::archive::Keep;
use crate::archive::Step;
use crate::pcrs::Point;
use crate::render::View;

/// How the name of a file ends that is not whole yet.
const TMP: &str = ".tmp";

/// The mode of directories: records name files that not everybody may know of.
const DIR_MODE: Mode = Mode::RWXU;

/// The mode of files.
const FILE_MODE: Mode = Mode::RUSR;

/// The owner of the archive. There is one at a time on a machine: it holds a lock on the directory
/// of all boots until it is dropped or its process ends.
#[derive(Debug)]
pub struct Writer {
    archive: Arc<Archive>,
    /// The directory of all boots. The lock, of flock(2), is on it and not on a file in it: a file
    /// could be removed and made anew, and a policy might measure it.
    root: OwnedFd,
    root_path: PathBuf,
    /// Whether the next segment may be on the disk already, from an [`Writer::append`] that failed.
    doubtful: bool,
}

impl Writer {
    /// Takes the archive over, makes its directories if they are missing, removes what a crash
    /// left behind, and reads the headers of this boot's segments.
    ///
    /// `root` is the directory of all boots, usually [`crate::archive::ROOT`]. `start` is where
    /// the list of this boot begins, usually [`Point::reset`]: an archive that begins elsewhere is
    /// refused. `views` are IMA's files in which offsets will be asked for. The archive has one
    /// length for each of them in every segment.
    ///
    /// When this returns, every segment in the archive is on the disk for good, also one that was
    /// left by a process that was killed before it could see to that.
    ///
    /// # Errors
    ///
    /// [`ArchiveError::Locked`] if somebody else has it, and as for [`Archive::open`].
    pub fn open(
        root: &Path,
        boot: &BootId,
        start: &Point,
        views: &[View],
    ) -> Result<Self, ArchiveError> {
        Self::open_with(Arc::new(Kernel), root, boot, start, views)
    }

    /// The same with other system calls.
    pub(super) fn open_with(
        calls: Arc<dyn Calls>,
        root_path: &Path,
        boot: &BootId,
        start: &Point,
        views: &[View],
    ) -> Result<Self, ArchiveError> {
        let root = make_root(&*calls, root_path)?;
        lock(&root, root_path)?;
        boots::remove_leftovers(&*calls, root.as_fd(), root_path)?;

        let path = root_path.join(boot.as_str());
        match calls.make_dir(root.as_fd(), boot.as_str().as_ref(), DIR_MODE) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(io(Step::Create, &path, errno)),
        }
        sync_dir(&*calls, root.as_fd(), root_path)?;
        let dir = open_dir(&*calls, root.as_fd(), &path, boot.as_str().as_ref())?;

        let names = calls
            .names(dir.as_fd())
            .map_err(|errno| io(Step::List, &path, errno))?;
        for name in names.iter().filter(|name| name.ends_with(TMP)) {
            remove_file(&*calls, dir.as_fd(), &path, name)?;
        }
        if !names.iter().any(|name| name == boots::NUMBER) {
            let text = boots::next_number(&*calls, root.as_fd(), root_path)?;
            create(
                &*calls,
                dir.as_fd(),
                &path,
                boots::NUMBER,
                &[text.as_bytes()],
            )?;
        }
        // A predecessor that was killed after the rename and before the fsync of the directory
        // has left a segment that can be read, and that a loss of power would take away again.
        sync_dir(&*calls, dir.as_fd(), &path)?;

        let archive = Archive::in_dir(calls, path, dir, boot, start, views);
        archive.scan()?;
        Ok(Self {
            archive: Arc::new(archive),
            root,
            root_path: root_path.to_owned(),
            doubtful: false,
        })
    }

    /// The archive, for whoever reads it. It sees what is added.
    pub fn archive(&self) -> &Arc<Archive> {
        &self.archive
    }

    /// Archives these records as one segment. They follow those that are archived, have the form
    /// of `binary_runtime_measurements_sha1`, and begin and end where records do. How many bytes
    /// they should have at most is in [`crate::archive::SEGMENT_BYTES`].
    ///
    /// `trims` is the number that the module will give for trims once it has trimmed them. The
    /// archive keeps it for a restore and compares it with nothing.
    ///
    /// When this returns, they are on the disk for good, and readers find them. It takes two times
    /// fsync(2), for which no reader waits.
    ///
    /// # Errors
    ///
    /// If they are not whole records, or the kernel refuses something. Then the archive is what it
    /// was, and the same can be tried again.
    pub fn append(&mut self, records: &[u8], trims: u64) -> Result<(), ArchiveError> {
        let archive = &self.archive;
        let calls = &*archive.calls;
        let (before, previous) = {
            let index = archive.index();
            let previous = index.entries.last().map(|entry| entry.header);
            (index.end.clone(), previous)
        };
        let (header, lengths) = describe(
            &archive.boot,
            &before,
            trims,
            previous,
            records,
            &archive.views,
        )?;
        let name = segment::name(header.first);
        let (text, lines) = Lines::write(header);

        if self.doubtful {
            remove_file(calls, archive.dir.as_fd(), &archive.path, &name)?;
            self.doubtful = false;
        }
        let written = create(
            calls,
            archive.dir.as_fd(),
            &archive.path,
            &name,
            &[&text, records],
        );
        if let Err(Failed { error, doubtful }) = written {
            self.doubtful = doubtful;
            return Err(error);
        }
        archive.push(&lines, &lengths);
        Ok(())
    }

    /// Removes archives of earlier boots, the oldest first, until there are no more than `keep`
    /// allows, and returns what was removed. Never among them are this boot's and those in
    /// `needed`. An earlier boot without any segment is always removed.
    ///
    /// # Errors
    ///
    /// If the kernel refuses something. What is removed by half is gone, and the rest of it is
    /// removed by the next [`Writer::open`].
    pub fn prune(&mut self, keep: Keep, needed: &[BootId]) -> Result<Vec<Boot>, ArchiveError> {
        let calls = &*self.archive.calls;
        let mut boots = boots::list(calls, self.root.as_fd(), &self.root_path)?;

        boots.retain(|boot| boot.id != self.archive.boot && !needed.contains(&boot.id));
        let surplus = keep.surplus(boots);
        for boot in &surplus {
            boots::remove(calls, self.root.as_fd(), &self.root_path, &boot.id)?;
        }
        Ok(surplus)
    }
}

/// Opens the directory of all boots, and makes it if there is none.
fn make_root(calls: &dyn Calls, path: &Path) -> Result<OwnedFd, ArchiveError> {
    match open_dir(calls, CWD, path, path) {
        Err(ArchiveError::Io {
            errno: Errno::NOENT,
            ..
        }) => {}
        opened => return opened,
    }
    calls
        .make_dir(CWD, path, DIR_MODE)
        .map_err(|errno| io(Step::Create, path, errno))?;

    let parent = match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => path,
    };
    let dir = open_dir(calls, CWD, parent, parent)?;
    sync_dir(calls, dir.as_fd(), parent)?;
    open_dir(calls, CWD, path, path)
}

/// Takes the lock on the directory of all boots, or says who has it.
fn lock(root: &OwnedFd, path: &Path) -> Result<(), ArchiveError> {
    match rustix::fs::flock(root, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(()),
        Err(Errno::WOULDBLOCK) => Err(ArchiveError::Locked {
            path: path.to_owned(),
            pid: owner(root),
        }),
        Err(errno) => Err(io(Step::Lock, path, errno)),
    }
}

/// The process that has the lock, from `/proc/locks`.
fn owner(root: &OwnedFd) -> Option<u32> {
    let stat = rustix::fs::fstat(root).ok()?;
    let locks = std::fs::read_to_string("/proc/locks").ok()?;
    owner_in(&locks, stat.st_ino)
}

/// The process that has the lock of flock(2) on the inode of this number: the fifth word of a line
/// like `3: FLOCK  ADVISORY  WRITE 1412 fd:00:131073 0 EOF`.
///
/// The device is not compared: that of stat(2) is another one on some file systems.
fn owner_in(locks: &str, inode: u64) -> Option<u32> {
    locks.lines().find_map(|line| {
        let mut words = line.split_ascii_whitespace().skip(1);
        if words.next()? != "FLOCK" {
            return None;
        }
        let pid = words.nth(2)?.parse().ok().filter(|&pid| pid != 0);
        let found = words.next()?.rsplit(':').next()?.parse::<u64>().ok()?;
        pid.filter(|_| found == inode)
    })
}

fn sync_dir(calls: &dyn Calls, dir: BorrowedFd<'_>, path: &Path) -> Result<(), ArchiveError> {
    calls.sync(dir).map_err(|errno| io(Step::Sync, path, errno))
}

/// Removes a file if there is one of this name.
fn remove_file(
    calls: &dyn Calls,
    dir: BorrowedFd<'_>,
    path: &Path,
    name: &str,
) -> Result<(), ArchiveError> {
    match calls.remove(dir, name) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(io(Step::Remove, &path.join(name), errno)),
    }
}

/// Why a file was not written.
struct Failed {
    error: ArchiveError,
    /// Whether it may be there nevertheless.
    doubtful: bool,
}

impl From<Failed> for ArchiveError {
    fn from(failed: Failed) -> Self {
        failed.error
    }
}

/// Writes a file so that it is there as a whole or not at all, whenever the machine stops, and so
/// that it is there for good when this returns.
///
/// The order of calls is what the archive stands on; see archive.rst.
fn create(
    calls: &dyn Calls,
    dir: BorrowedFd<'_>,
    path: &Path,
    name: &str,
    parts: &[&[u8]],
) -> Result<(), Failed> {
    let tmp = format!("{name}{TMP}");
    let certain = |error| Failed {
        error,
        doubtful: false,
    };

    remove_file(calls, dir, path, &tmp).map_err(certain)?;
    let renamed = write(calls, dir, &path.join(&tmp), &tmp, parts).and_then(|()| {
        calls
            .rename(dir, &tmp, name)
            .map_err(|errno| io(Step::Rename, &path.join(&tmp), errno))
    });
    if let Err(error) = renamed {
        // It is not looked at again, whatever is in it: after a failed fsync nobody knows. If it
        // cannot be removed now, then before the next one is made.
        let _ = calls.remove(dir, &tmp);
        return Err(certain(error));
    }
    sync_dir(calls, dir, path).map_err(|error| Failed {
        error,
        doubtful: calls.remove(dir, name).is_err(),
    })
}

/// Writes a new file to the disk, and closes it.
fn write(
    calls: &dyn Calls,
    dir: BorrowedFd<'_>,
    path: &Path,
    name: &str,
    parts: &[&[u8]],
) -> Result<(), ArchiveError> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
    let file = calls
        .open(dir, name.as_ref(), flags, FILE_MODE)
        .map_err(|errno| io(Step::Create, path, errno))?;

    for part in parts {
        let mut rest = *part;
        while !rest.is_empty() {
            let written = match calls.write(file.as_fd(), rest) {
                // No file does this. An endless loop would be worse than a wrong name for it.
                Ok(0) => Err(Errno::IO),
                other => other,
            };
            let count = written.map_err(|errno| io(Step::Write, path, errno))?;
            rest = rest.get(count..).unwrap_or_default();
        }
    }
    calls
        .sync(file.as_fd())
        .map_err(|errno| io(Step::Sync, path, errno))
}

#[cfg(test)]
mod tests {
    use super::owner_in;

    #[test]
    fn the_owner_of_a_lock_is_found_in_the_kernels_list() {
        let locks = "1: POSIX  ADVISORY  WRITE 1 00:1a:77 0 EOF\n\
                     2: FLOCK  ADVISORY  WRITE 12 fd:00:7 0 EOF\n\
                     2: -> FLOCK  ADVISORY  WRITE 13 fd:00:77 0 EOF\n\
                     3: FLOCK  ADVISORY  WRITE 14 fd:00:77 0 EOF\n\
                     4: FLOCK  ADVISORY  WRITE 0 fd:00:78 0 EOF\n";
        assert_eq!(owner_in(locks, 7), Some(12));
        assert_eq!(owner_in(locks, 77), Some(14));
        assert_eq!(owner_in(locks, 78), None);
        assert_eq!(owner_in(locks, 79), None);
        assert_eq!(owner_in("what is this", 7), None);
    }
}
