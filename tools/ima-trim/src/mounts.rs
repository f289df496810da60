// SPDX-License-Identifier: GPL-2.0

//! The file system's mount, and the binds that put its files in place of IMA's.
//!
//! Mounts are made with the newer system calls (`fsopen`, `fsmount`, `open_tree`,
//! `move_mount`): a mount exists, and can be looked into, before anybody else can see it.
//!
//! * *The type*. `fuse.ima-trim` is file system `fuse` with the subtype `ima-trim`, which a rule of
//!   IMA's policy can name (`fs_subtype=ima-trim`: `ima_match_rules()` compares `s_subtype`). mount(2)
//!   takes it from the name (`do_new_mount()`, `fs/namespace.c`). fsopen(2) does not, and wants the
//!   parameter `subtype` (`fuse_parse_param()`, `fs/fuse/inode.c`).
//! * *Binds without a gap*. A reader that opens IMA's file while its bind is being replaced would get
//!   what the kernel has, which may be a list without its beginning. So the new one is mounted
//!   beneath the stale one (`MOVE_MOUNT_BENEATH`), and that is unmounted then.
//! * *Binds of a dead server* are found in `/proc/self/mountinfo`, by type and place: looking at the
//!   files would give `ENOTCONN`, or wait for ever.
//!
//! Whoever makes the binds must be in the mount namespace that readers see, and with a mount
//! propagation that reaches it: settings of a service manager such as `ProtectSystem=` cut it.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::path::PathBuf;

use rustix::fd::AsFd;
use rustix::fd::AsRawFd;
use rustix::fd::BorrowedFd;
use rustix::fd::OwnedFd;
use rustix::fs::makedev;
use rustix::fs::open;
use rustix::fs::openat2;
use rustix::fs::statx;
use rustix::fs::AtFlags;
use rustix::fs::Mode;
use rustix::fs::OFlags;
use rustix::fs::ResolveFlags;
use rustix::fs::Statx;
use rustix::fs::StatxFlags;
use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::fsconfig_create;
use rustix::mount::fsconfig_set_flag;
use rustix::mount::fsconfig_set_string;
use rustix::mount::fsmount;
use rustix::mount::fsopen;
use rustix::mount::move_mount;
use rustix::mount::open_tree;
use rustix::mount::unmount;
use rustix::mount::FsMountFlags;
use rustix::mount::FsOpenFlags;
use rustix::mount::MountAttrFlags;
use rustix::mount::MoveMountFlags;
use rustix::mount::OpenTreeFlags;
use rustix::mount::UnmountFlags;

use crate::fuse;
use crate::fuse::Session;

/// The type of the file system, as it is in `/proc/self/mountinfo`.
pub const FS_TYPE: &str = "fuse.ima-trim";
const SUBTYPE: &str = "ima-trim";

const MOUNTINFO: &str = "/proc/self/mountinfo";

/// What went wrong with a mount.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A system call failed.
    #[error("cannot {action} {}: {errno}", path.display())]
    Path {
        /// What was tried.
        action: &'static str,
        /// With what.
        path: PathBuf,
        /// Why it failed.
        errno: Errno,
    },
    /// A file system could not be made.
    #[error("cannot make a file system of type {fs}: {action} failed: {errno}{}", log.trim_end())]
    Make {
        /// Its type.
        fs: &'static str,
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        errno: Errno,
        /// What the kernel says of it: lines, each after a newline, or nothing.
        log: String,
    },
    /// The connection could not be begun.
    #[error(transparent)]
    Fuse(#[from] fuse::Error),
    /// Somebody else has mounted something over one of IMA's files.
    #[error("a mount of type {fs} is over {}: unmount it", path.display())]
    Foreign {
        /// IMA's file.
        path: PathBuf,
        /// The type of what is over it.
        fs: String,
    },
    /// There is nothing that could be covered.
    #[error("no measurement files in {}: is securityfs mounted, and IMA in the kernel?", path.display())]
    Empty {
        /// The directory.
        path: PathBuf,
    },
}

impl Error {
    fn path(action: &'static str, path: &Path) -> impl Fn(Errno) -> Self {
        let path = path.to_path_buf();
        move |errno| Self::Path {
            action,
            path: path.clone(),
            errno,
        }
    }

    fn io(action: &'static str, path: &Path) -> impl Fn(std::io::Error) -> Self {
        let with = Self::path(action, path);
        move |error| with(Errno::from_io_error(&error).unwrap_or(Errno::IO))
    }
}

/// A mount. As long as it is attached nowhere, it exists for as long as this value does.
#[derive(Debug)]
pub struct Mount {
    root: OwnedFd,
}

impl Mount {
    /// Makes it visible at a directory, over whatever is there. The last part of the path is not
    /// followed if it is a symbolic link: others than root may have made it.
    ///
    /// # Errors
    ///
    /// If the directory cannot be mounted on.
    pub fn attach(&self, at: &Path) -> Result<(), Error> {
        let error = Error::path("mount on", at);
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory = open(at, flags, Mode::empty()).map_err(&error)?;
        move_mount(
            &self.root,
            "",
            &directory,
            "",
            MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH,
        )
        .map_err(error)
    }
}

/// Its root directory, opened with `O_PATH`.
impl AsFd for Mount {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }
}

/// Makes the file system of [`crate::fuse`], and begins its connection. From here on it can be
/// served, and the session's device can be kept for a successor.
///
/// It is for all users, who may do what the files' permissions say, and read-only.
///
/// # Errors
///
/// If `/dev/fuse` cannot be opened, or the kernel does not make the file system.
pub fn fuse() -> Result<(Session, Mount), Error> {
    let path = Path::new("/dev/fuse");
    let device = open(
        path,
        OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK,
        Mode::empty(),
    )
    .map_err(Error::path("open", path))?;
    let fd = device.as_raw_fd().to_string();
    let max_read = fuse::MAX_READ.to_string();
    let parameters = [
        ("source", Some(SUBTYPE)),
        ("subtype", Some(SUBTYPE)),
        ("fd", Some(fd.as_str())),
        ("rootmode", Some("40000")),
        ("user_id", Some("0")),
        ("group_id", Some("0")),
        ("max_read", Some(max_read.as_str())),
        ("allow_other", None),
        ("default_permissions", None),
        ("ro", None),
    ];
    let root = make("fuse", &parameters)?;
    let session = Session::begin(device)?;

    Ok((session, Mount { root }))
}

/// Makes another mount of securityfs, of which nothing is covered, for reading.
///
/// # Errors
///
/// If the kernel has no securityfs, or does not allow it.
pub fn securityfs() -> Result<Mount, Error> {
    // Read-only is this mount: the file system itself is the same for all.
    let root = make("securityfs", &[("source", Some("securityfs"))])?;

    Ok(Mount { root })
}

fn make(fs: &'static str, parameters: &[(&str, Option<&str>)]) -> Result<OwnedFd, Error> {
    let error = |action: &'static str, context: Option<&OwnedFd>| {
        let log = context.map(kernel_log).unwrap_or_default();
        move |errno| Error::Make {
            fs,
            action,
            errno,
            log,
        }
    };
    let context =
        fsopen(fs, FsOpenFlags::FSOPEN_CLOEXEC).map_err(|errno| error("fsopen", None)(errno))?;

    for (key, value) in parameters {
        match value {
            Some(value) => fsconfig_set_string(context.as_fd(), *key, *value),
            None => fsconfig_set_flag(context.as_fd(), *key),
        }
        .map_err(|errno| error("fsconfig", Some(&context))(errno))?;
    }
    fsconfig_create(context.as_fd())
        .map_err(|errno| error("fsconfig to create it", Some(&context))(errno))?;
    fsmount(
        context.as_fd(),
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::MOUNT_ATTR_RDONLY
            | MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOEXEC,
    )
    .map_err(|errno| error("fsmount", Some(&context))(errno))
}

/// What the kernel has to say of why it did not like a parameter, one line each.
fn kernel_log(context: &OwnedFd) -> String {
    let mut log = String::new();
    let mut line = [0; 256];

    while let Ok(length) = rustix::io::read(context, &mut line) {
        log.push('\n');
        log.push_str(String::from_utf8_lossy(line.get(..length).unwrap_or_default()).trim_end());
        if length == 0 {
            break;
        }
    }
    log
}

/// Whether a name is that of a regular file that shows the list or counts it.
///
/// Those of staged records are not: they are the kernel's own way to delete. The names without a
/// bank are symbolic links.
#[must_use]
pub fn is_measurement_file(name: &str) -> bool {
    match name {
        "runtime_measurements_count" | "violations" => true,
        _ => ["ascii", "binary"].into_iter().any(|format| {
            name.strip_prefix(format)
                .and_then(|rest| rest.strip_prefix("_runtime_measurements_"))
                .is_some_and(|bank| !bank.is_empty() && !bank.ends_with("staged"))
        }),
    }
}

/// The names of the measurement files in IMA's directory, sorted. Nothing is asked of what may
/// cover them.
///
/// # Errors
///
/// If there are none, or the directory cannot be read.
pub fn measurement_files(ima: &Path) -> Result<Vec<String>, Error> {
    let error = Error::io("read the directory", ima);
    let mut names = Vec::new();

    for entry in fs::read_dir(ima).map_err(&error)? {
        let entry = entry.map_err(&error)?;
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        // This is what the directory says, not stat(2).
        if is_measurement_file(&name) && entry.file_type().map_err(&error)?.is_file() {
            names.push(name);
        }
    }
    if names.is_empty() {
        return Err(Error::Empty { path: ima.into() });
    }
    names.sort();
    Ok(names)
}

/// Binds the files of a mount over the measurement files in IMA's directory, each over the one of
/// the same name: over all of them, or, on an error, over none that was not covered before.
///
/// `log` is the root directory of the mount. The connection must be served, as the files are looked
/// up. Those that are covered by this file system already are left as they are. What another
/// connection of ours has left there is replaced, and no reader sees the kernel's file in between.
///
/// # Errors
///
/// If the directory has no such files, a file is missing in the mount, something else is mounted
/// over one, or a bind is refused.
pub fn cover(log: BorrowedFd<'_>, ima: &Path) -> Result<(), Error> {
    let ima = fs::canonicalize(ima).map_err(Error::io("find", ima))?;
    let device = device_of(&status(log, "").map_err(Error::path("look at the mount for", &ima))?);
    let mounts = Mounts::read()?;
    let mut binds = Vec::new();

    // What can fail first.
    for name in measurement_files(&ima)? {
        let path = ima.join(&name);
        let top = mounts.ours_on_top(&path)?;
        if top.is_some_and(|mount| mount.device == device) {
            continue;
        }
        let tree = open_tree(
            log,
            name.as_str(),
            OpenTreeFlags::OPEN_TREE_CLONE
                | OpenTreeFlags::OPEN_TREE_CLOEXEC
                | OpenTreeFlags::AT_SYMLINK_NOFOLLOW,
        )
        .map_err(Error::path("find the file to bind over", &path))?;
        binds.push((tree, path, top.is_some()));
    }

    for (index, (tree, path, replaces)) in binds.iter().enumerate() {
        if let Err(errno) = bind(tree, path, *replaces) {
            // What was covered before stays so: it may be the kernel's own file that is below.
            for (_, path, _) in binds.iter().take(index).filter(|bind| !bind.2) {
                // There is nothing better to do about an error here than to report the first one.
                let _ = detach(path);
            }
            return Err(Error::path("bind the whole list's file over", path)(errno));
        }
    }
    Ok(())
}

fn bind(tree: &OwnedFd, path: &Path, replaces: bool) -> Result<(), Errno> {
    let mount = |flags| {
        move_mount(
            tree,
            "",
            CWD,
            path,
            MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | flags,
        )
    };

    if replaces {
        match mount(MoveMountFlags::MOVE_MOUNT_BENEATH) {
            Ok(()) => return detach(path),
            // Mount propagation may not allow it. Then the stale one stays, below.
            Err(Errno::INVAL) => {}
            Err(errno) => return Err(errno),
        }
    }
    mount(MoveMountFlags::empty())
}

/// Removes all binds of this file system from IMA's files, of this connection and of others. Gives
/// how many there were.
///
/// # Errors
///
/// If something else is mounted over one of them, or one cannot be removed.
pub fn uncover(ima: &Path) -> Result<usize, Error> {
    let ima = fs::canonicalize(ima).map_err(Error::io("find", ima))?;

    remove(|path| path.parent() == Some(&ima))
}

/// Unmounts this file system from the directory where it is attached, as often as it is mounted
/// there, be its connections dead or not. Gives how often it was.
///
/// # Errors
///
/// If something else is mounted over it, or it cannot be unmounted.
pub fn unmount_all(at: &Path) -> Result<usize, Error> {
    let at = resolved(at)?;

    remove(|path| path == at)
}

/// A path as the kernel tells it of a mount. The directory itself is not looked at: what is mounted
/// there may have no server any more.
fn resolved(at: &Path) -> Result<PathBuf, Error> {
    match (at.parent(), at.file_name()) {
        (Some(parent), Some(name)) => match fs::canonicalize(parent) {
            Ok(parent) => Ok(parent.join(name)),
            // Then nothing is mounted there.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(at.into()),
            Err(error) => Err(Error::io("find", at)(error)),
        },
        _ => Ok(at.into()),
    }
}

/// Whether this file system, of whatever connection, is what is seen at a directory.
///
/// # Errors
///
/// If something else is mounted over it.
pub fn is_mounted(at: &Path) -> Result<bool, Error> {
    Ok(Mounts::read()?.ours_on_top(&resolved(at)?)?.is_some())
}

fn remove(here: impl Fn(&Path) -> bool) -> Result<usize, Error> {
    let mut removed = 0;

    // Each unmounting shows what was below, and may have changed others by propagation.
    loop {
        let mounts = Mounts::read()?;
        let Some(mount) = mounts
            .all
            .values()
            .find(|mount| mount.is_ours() && here(&mount.path))
        else {
            return Ok(removed);
        };
        mounts.ours_on_top(&mount.path)?;
        detach(&mount.path).map_err(Error::path("unmount", &mount.path))?;
        removed += 1;
    }
}

/// Unmounts what is on top. Readers that have the file open keep it.
fn detach(path: &Path) -> Result<(), Errno> {
    unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)
}

/// The names of measurement files in IMA's directory that this file system is not on top of.
///
/// # Errors
///
/// As of [`measurement_files`].
pub fn uncovered(log: BorrowedFd<'_>, ima: &Path) -> Result<Vec<String>, Error> {
    let ima = fs::canonicalize(ima).map_err(Error::io("find", ima))?;
    let device = device_of(&status(log, "").map_err(Error::path("look at the mount for", &ima))?);
    let mounts = Mounts::read()?;
    let mut names = measurement_files(&ima)?;

    names.retain(|name| {
        let top = mounts.on_top(&ima.join(name));
        !top.is_some_and(|mount| mount.is_ours() && mount.device == device)
    });
    Ok(names)
}

/// One line of `/proc/self/mountinfo`: `show_mountinfo()` in `fs/proc_namespace.c`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Line {
    id: u64,
    parent: u64,
    device: u64,
    path: PathBuf,
    fs: String,
}

impl Line {
    fn parse(line: &[u8]) -> Option<Self> {
        let mut fields = line.split(|byte| *byte == b' ');
        let mut number = || std::str::from_utf8(fields.next()?).ok()?.parse().ok();
        let id = number()?;
        let parent = number()?;
        let (major, minor) = std::str::from_utf8(fields.next()?).ok()?.split_once(':')?;
        let _root = fields.next()?;
        let path = unescape(fields.next()?);
        let fs = fields.skip_while(|field| *field != b"-").nth(1)?;

        Some(Self {
            id,
            parent,
            device: makedev(major.parse().ok()?, minor.parse().ok()?),
            path: OsString::from_vec(path).into(),
            fs: String::from_utf8_lossy(&unescape(fs)).into_owned(),
        })
    }

    fn is_ours(&self) -> bool {
        self.fs == FS_TYPE
    }
}

/// Takes back what `mangle()` in `fs/proc_namespace.c` does: `\040` is a blank.
fn unescape(mut text: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());

    while let Some((first, rest)) = text.split_first() {
        let octal = rest.get(..3).filter(|_| *first == b'\\');
        let byte = octal.and_then(|digits| {
            let digits = std::str::from_utf8(digits).ok()?;
            u8::from_str_radix(digits, 8).ok()
        });
        bytes.push(byte.unwrap_or(*first));
        text = match byte {
            Some(_) => rest.get(3..).unwrap_or_default(),
            None => rest,
        };
    }
    bytes
}

/// The mounts of this process's namespace, by their numbers.
struct Mounts {
    all: BTreeMap<u64, Line>,
}

impl Mounts {
    fn read() -> Result<Self, Error> {
        let path = Path::new(MOUNTINFO);
        let text = fs::read(path).map_err(Error::io("read", path))?;

        Ok(Self::parse(&text))
    }

    fn parse(text: &[u8]) -> Self {
        let lines = text.split(|byte| *byte == b'\n').filter_map(Line::parse);

        Self {
            all: lines.map(|line| (line.id, line)).collect(),
        }
    }

    /// What is seen at a path that something is mounted on. Of several there the one on top is
    /// the one that is no other's parent: their order in the file says nothing.
    fn on_top(&self, path: &Path) -> Option<&Line> {
        let here = || self.all.values().filter(|mount| mount.path == path);

        here().find(|mount| !here().any(|other| other.parent == mount.id))
    }

    /// The same, if it is of ours.
    fn ours_on_top(&self, path: &Path) -> Result<Option<&Line>, Error> {
        match self.on_top(path) {
            Some(mount) if !mount.is_ours() => Err(Error::Foreign {
                path: path.into(),
                fs: mount.fs.clone(),
            }),
            top => Ok(top),
        }
    }
}

/// What statx(2) says without asking a server, which may be dead, or the one that asks.
fn status<P: rustix::path::Arg>(directory: BorrowedFd<'_>, path: P) -> Result<Statx, Errno> {
    statx(
        directory,
        path,
        AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT,
        StatxFlags::INO | StatxFlags::TYPE,
    )
}

fn device_of(status: &Statx) -> u64 {
    makedev(status.stx_dev_major, status.stx_dev_minor)
}

/// What tells one file from all others: device and inode number.
type Identity = (u64, u64);

fn identity(status: &Statx) -> Identity {
    (device_of(status), status.stx_ino)
}

/// A process.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Process {
    /// Its number, in the namespace of `/proc`.
    pub pid: u32,
    /// The name of its command, as `/proc/<pid>/comm` has it.
    pub command: String,
}

/// What [`readers`] and [`namespaces`] found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Sorted by number.
    pub processes: Vec<Process>,
    /// How many processes could not be looked at, for want of `CAP_SYS_PTRACE`.
    pub unknown: usize,
}

/// The processes that have one of the kernel's own measurement files open. Until they close it or
/// end, no trim is possible.
///
/// `ima` is IMA's directory in a mount where nothing is covered, that of [`securityfs`]. This
/// process itself is left out, and threads that have a descriptor table of their own are not seen.
///
/// # Errors
///
/// If the directory or `/proc` cannot be read.
pub fn readers(ima: &Path) -> Result<Seen, Error> {
    let files = identities(ima)?;

    processes(|process| {
        for entry in fs::read_dir(process.join("fd"))? {
            let Ok(file) = status(CWD, entry?.path()) else {
                continue;
            };
            if files.contains(&identity(&file)) {
                return Ok(true);
            }
        }
        Ok(false)
    })
}

/// Of each other mount namespace in which the usual path leads to the kernel's own measurement
/// files, one process.
///
/// `ima` is as of [`readers`], `usual` the path that readers use, `/sys/kernel/security/ima`.
///
/// # Errors
///
/// If the directory or `/proc` cannot be read.
pub fn namespaces(ima: &Path, usual: &Path) -> Result<Seen, Error> {
    let files = identities(ima)?;
    let names = measurement_files(ima)?;
    let own =
        namespace(Path::new("/proc/self")).map_err(Error::io("find", "/proc/self".as_ref()))?;
    let mut found = Vec::new();

    processes(|process| {
        let space = namespace(process)?;
        if space == own || found.contains(&space) {
            return Ok(false);
        }
        let root = open(
            process.join("root"),
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        // A process may have a root directory of its own, so the next one of the same namespace
        // may see what this one does not.
        let seen = names.iter().any(|name| {
            openat2(
                &root,
                usual.join(name),
                OFlags::PATH | OFlags::CLOEXEC,
                Mode::empty(),
                // Links are this process's: without, absolute ones would be followed from ours.
                ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
            )
            .and_then(|file| status(file.as_fd(), ""))
            .is_ok_and(|file| files.contains(&identity(&file)))
        });
        if seen {
            found.push(space);
        }
        Ok(seen)
    })
}

fn namespace(process: &Path) -> std::io::Result<u64> {
    Ok(fs::metadata(process.join("ns/mnt"))?.ino())
}

fn identities(ima: &Path) -> Result<Vec<Identity>, Error> {
    measurement_files(ima)?
        .into_iter()
        .map(|name| {
            let path = ima.join(name);
            let file = status(CWD, &path).map_err(Error::path("look at", &path))?;
            Ok(identity(&file))
        })
        .collect()
}

/// Goes through all other processes, in the order of their numbers.
fn processes(mut found: impl FnMut(&Path) -> std::io::Result<bool>) -> Result<Seen, Error> {
    let proc = Path::new("/proc");
    let mut pids = Vec::new();
    let mut seen = Seen {
        processes: Vec::new(),
        unknown: 0,
    };

    for entry in fs::read_dir(proc).map_err(Error::io("read the directory", proc))? {
        let entry = entry.map_err(Error::io("read the directory", proc))?;
        pids.extend(number(&entry.file_name()));
    }
    pids.sort_unstable();
    for pid in pids {
        if pid == std::process::id() {
            continue;
        }
        let process = proc.join(pid.to_string());
        match found(&process) {
            Ok(true) => {
                let command = fs::read(process.join("comm")).unwrap_or_default();
                seen.processes.push(Process {
                    pid,
                    command: String::from_utf8_lossy(&command).trim_end().to_owned(),
                });
            }
            Ok(false) => {}
            Err(error) => {
                // Else it has ended in the meantime, or is about to: such a one has no files.
                if let Some(Errno::ACCESS | Errno::PERM) = Errno::from_io_error(&error) {
                    seen.unknown += 1;
                }
            }
        }
    }
    Ok(seen)
}

fn number(name: &OsStr) -> Option<u32> {
    std::str::from_utf8(name.as_bytes()).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn measurement_files_are_those_that_show_or_count_the_list() {
        for name in [
            "ascii_runtime_measurements_sha1",
            "binary_runtime_measurements_sha3-256",
            "runtime_measurements_count",
            "violations",
        ] {
            assert!(is_measurement_file(name), "{name}");
        }
        for name in [
            "ascii_runtime_measurements",
            "ascii_runtime_measurements_",
            "ascii_runtime_measurements_staged",
            "binary_runtime_measurements_sha256_staged",
            "policy",
            "violations2",
        ] {
            assert!(!is_measurement_file(name), "{name}");
        }
    }

    #[test]
    fn mountinfo_is_understood() {
        let text =
            b"36 35 98:3 /a /mnt\\040x rw,noatime master:1 shared:2 - fuse.ima-trim a\\011b rw\n";
        let mounts = Mounts::parse(text);

        let line = mounts.all.get(&36).unwrap();
        assert_eq!(line.parent, 35);
        assert_eq!(line.device, makedev(98, 3));
        assert_eq!(line.path, Path::new("/mnt x"));
        assert!(line.is_ours());
    }

    #[test]
    fn what_is_on_top_is_nobodys_parent() {
        // 40 was mounted beneath 39, later.
        let text = b"38 1 0:9 / /a rw - securityfs s rw\n\
            39 40 0:1 / /a/f ro - fuse.ima-trim i rw\n\
            40 38 0:2 / /a/f ro - fuse.ima-trim i rw\n";
        let mounts = Mounts::parse(text);

        assert_eq!(
            mounts.on_top(Path::new("/a/f")).map(|line| line.id),
            Some(39)
        );
        assert!(mounts
            .on_top(Path::new("/a"))
            .is_some_and(|line| !line.is_ours()));
        assert!(mounts.on_top(Path::new("/b")).is_none());
    }

    proptest! {
        #[test]
        fn escaped_names_come_back(name in proptest::collection::vec(1_u8.., 0..40)) {
            let escaped: Vec<u8> = name
                .iter()
                .flat_map(|byte| match byte {
                    b' ' | b'\t' | b'\n' | b'\\' | b'#' => format!("\\{byte:03o}").into_bytes(),
                    _ => vec![*byte],
                })
                .collect();
            prop_assert_eq!(unescape(&escaped), name);
        }

        #[test]
        fn any_line_is_taken(line in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = Line::parse(&line);
        }
    }
}
