// SPDX-License-Identifier: GPL-2.0

//! The steps that make mounts, and those that remove them again.
//!
//! Mounts must be made in the mount namespace that everybody sees. A daemon that the service manager
//! keeps from most of the system has one of its own, whose mounts nobody else would see. So the unit
//! has these steps done by the program itself, once for each, with the privileges of root:
//!
//! | step | when | does |
//! |---|---|---|
//! | `mount` | before the daemon | mounts the file system and has the service manager keep its descriptor |
//! | `cover` | when the daemon is ready | opens the probe, asks the daemon, and covers IMA's own files |
//! | `uncover` | when the daemon has ended | uncovers them, if it was stopped and nothing was trimmed |
//!
//! A daemon that is run by itself does the same, with the same functions.
//!
//! What one step must tell another is in files of [`RUN`], which lasts as long as the machine runs.

use std::fs;
use std::io;
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use clap::Subcommand;
use rustix::event::poll;
use rustix::event::PollFd;
use rustix::event::PollFlags;
use rustix::event::Timespec;
use rustix::fs::Mode;
use rustix::fs::OFlags;
use rustix::thread::move_into_link_name_space;
use rustix::thread::LinkNameSpaceType;
use sd_notify::NotifyState;

use crate::config::Config;
use crate::control;
use crate::control::Answer;
use crate::control::Question;
use crate::fuse::Session;
use crate::kernel;
use crate::mounts;
use crate::mounts::Error as MountError;
use crate::serve;

/// Where the program has what lasts as long as the machine runs.
pub const RUN: &str = "/run/ima-trim";

/// A securityfs of its own, which shows the kernel's files wherever they are covered.
pub const OWN_SECURITYFS: &str = "/run/ima-trim/securityfs";

/// The name under which the service manager keeps the FUSE descriptor.
pub const STORED: &str = "fuse";

/// There if a daemon was given no descriptor of the file system that is mounted: the next `mount`
/// mounts another one.
const LOST: &str = "/run/ima-trim/lost";

/// There if a daemon was told to stop before anything was trimmed: the kernel's own list is whole.
const UNTRIMMED: &str = "/run/ima-trim/untrimmed";

/// There as long as IMA's own files are covered: for a daemon that is replaced, which no step tells.
const COVERED: &str = "/run/ima-trim/covered";

/// There if IMA's policy was seen to measure the probe. A repetition of that record would not be
/// seen: IMA has each only once.
const MEASURED: &str = "/run/ima-trim/measured";

/// How many records were trimmed since boot when the module was last told to flush.
const FLUSHED: &str = "/run/ima-trim/flushed";

/// How long the service manager may take to say that it has what it was given.
const BARRIER_LIMIT: Duration = Duration::from_secs(30);

/// Why a step was not done.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// A mount could not be made or removed.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// The file system cannot be taken over.
    #[error(transparent)]
    Fuse(#[from] crate::fuse::Error),
    /// Something of the operating system.
    #[error("{what}: {error}")]
    System {
        /// What was tried.
        what: String,
        /// What happened.
        error: io::Error,
    },
    /// The service manager has no descriptor of the file system.
    #[error(
        "the service manager has kept no descriptor of {0}: it is mounted anew at the next start"
    )]
    Lost(PathBuf),
    /// The probe is not what it should be.
    #[error("{0} does not have the text that it should have: is something else mounted there?")]
    Probe(PathBuf),
    /// The daemon did not say whether IMA's files are to be covered.
    #[error("the daemon did not say whether IMA's own files are to be covered: {0}")]
    Daemon(String),
    /// The service manager did not take what it was given.
    #[error("the service manager has not taken the descriptor within {BARRIER_LIMIT:?}: the unit needs NotifyAccess=exec and FileDescriptorStoreMax=1")]
    Barrier,
}

/// Names what was tried.
fn system(what: impl Into<String>) -> impl FnOnce(io::Error) -> StepError {
    let what = what.into();
    move |error| StepError::System { what, error }
}

/// A step of the unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Subcommand)]
pub enum Step {
    /// Mount the file system, and have the service manager keep its descriptor
    Mount,
    /// Cover IMA's own files, if the daemon says that it is right
    Cover,
    /// Uncover them, if the service was stopped and nothing was trimmed
    Uncover,
}

/// Does a step.
///
/// # Errors
///
/// If it could not be done: the service manager then starts the unit anew.
pub fn run(config: &Config, step: Step) -> Result<(), StepError> {
    leave_namespace()?;
    match step {
        Step::Mount => {
            prepare()?;
            // Nothing may be asked of a file system that is mounted and not served: it would wait.
            if exists(LOST) || !mounts::is_mounted(&config.list.mountpoint)? {
                let session = mount(config)?;
                barrier()?;
                drop(session);
                remove(LOST)?;
            }
            Ok(())
        }
        Step::Cover => {
            if !config.list.overlay {
                return Ok(());
            }
            if !exists(MEASURED) {
                probe(config)?;
            }
            match control::ask(Path::new(control::SOCKET), &Question::Overlay) {
                Ok(Some(Answer::Overlay { refused: None })) => cover(config),
                // Those of a predecessor that was of another opinion.
                Ok(Some(Answer::Overlay { refused: Some(_) })) => uncover(),
                // It serves none, and begins anew when it can: what is covered stays so until then.
                Ok(Some(Answer::Unserved)) => Ok(()),
                Ok(other) => Err(StepError::Daemon(format!("{other:?}"))),
                Err(error) => Err(StepError::Daemon(error.to_string())),
            }
        }
        Step::Uncover => {
            if !is_stop() {
                return Ok(());
            }
            if exists(UNTRIMMED) {
                return unmount(config);
            }
            // Without its last descriptor the connection ends, and reads of what stays covered fail
            // until there is another one: they would wait otherwise.
            end(config)
        }
    }
}

/// Enters the mount namespace of the first process, if this one is in another.
///
/// The service manager gives a step a mount namespace of its own where the daemon has one, even if
/// the step is to have full privileges (`+`): only what is protected there is left out
/// (`apply_mount_namespace()` of systemd 257).
fn leave_namespace() -> Result<(), StepError> {
    let everybodys = Path::new("/proc/1/ns/mnt");
    let failed = || system(format!("entering {}", everybodys.display()));
    let number = |path| fs::metadata(path).map(|found| found.ino());
    let ours = number(Path::new("/proc/self/ns/mnt")).map_err(failed())?;
    if number(everybodys).map_err(failed())? == ours {
        return Ok(());
    }
    let namespace = fs::File::open(everybodys).map_err(failed())?;
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Mount))
        .map_err(|errno| failed()(errno.into()))
}

/// Makes the directory of the program, and the securityfs in which nothing is covered.
///
/// # Errors
///
/// If one of them cannot be made.
pub fn prepare() -> Result<(), StepError> {
    directory(Path::new(RUN), 0o755)?;
    let path = Path::new(OWN_SECURITYFS);
    if path.join("ima").exists() {
        return Ok(());
    }
    directory(path, 0o700)?;
    Ok(mounts::securityfs()?.attach(path)?)
}

/// Mounts the file system anew, and gives the service manager its descriptor to keep.
///
/// # Errors
///
/// If it cannot be mounted, or the service manager cannot be told.
pub fn mount(config: &Config) -> Result<Session, StepError> {
    let mountpoint = &config.list.mountpoint;
    // That of a predecessor whose connection nobody has kept.
    mounts::unmount_all(mountpoint)?;
    forget().map_err(system("telling the service manager"))?;
    directory(mountpoint, 0o755)?;
    let (session, mount) = mounts::fuse()?;
    // In this order: whoever is given the descriptor finds the file system mounted, and one that
    // nobody is given is unmounted above.
    mount.attach(mountpoint)?;
    let stored = [
        NotifyState::FdStore,
        NotifyState::FdName(STORED),
        NotifyState::Custom("FDPOLL=0"),
    ];
    sd_notify::notify_with_fds(&stored, &[session.as_fd()])
        .map_err(system("giving the service manager the file system to keep"))?;
    Ok(session)
}

/// Has the next `mount` mount another file system, as the descriptor of this one is lost.
pub(crate) fn lost(config: &Config) -> StepError {
    match mark(LOST) {
        Ok(()) => StepError::Lost(config.list.mountpoint.clone()),
        Err(error) => system(LOST)(error),
    }
}

/// Waits until the service manager has taken what it was sent before: it closes what it is sent
/// with `BARRIER=1` (`sd_notify_barrier(3)`). Without a service manager there is nothing to wait for.
fn barrier() -> Result<(), StepError> {
    if std::env::var_os("NOTIFY_SOCKET").is_none() {
        return Ok(());
    }
    let (ours, theirs) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
        .map_err(|errno| system("a pipe")(errno.into()))?;
    sd_notify::notify_with_fds(&[NotifyState::Custom("BARRIER=1")], &[theirs.as_fd()])
        .map_err(system("asking the service manager"))?;
    drop(theirs);
    let limit = Timespec::try_from(BARRIER_LIMIT).unwrap_or_default();
    let mut events = [PollFd::new(&ours, PollFlags::HUP)];
    match poll(&mut events, Some(&limit)) {
        Ok(0) => Err(StepError::Barrier),
        Ok(_) => Ok(()),
        Err(errno) => Err(system("waiting for the service manager")(errno.into())),
    }
}

/// Uncovers IMA's own files, unmounts the file system and ends its connection.
///
/// # Errors
///
/// If something else is mounted over one of these.
pub fn unmount(config: &Config) -> Result<(), StepError> {
    uncover()?;
    end(config)
}

/// Unmounts the file system from where it has all files, and ends its connection.
fn end(config: &Config) -> Result<(), StepError> {
    mounts::unmount_all(&config.list.mountpoint)?;
    forget().map_err(system("telling the service manager"))
}

/// Has the service manager forget the file system.
pub(crate) fn forget() -> io::Result<()> {
    sd_notify::notify(&[NotifyState::FdStoreRemove, NotifyState::FdName(STORED)])
}

/// Opens and reads the probe, as an agent would open the list. Only IMA's policy makes a difference
/// between the two, and it has none for their names.
///
/// # Errors
///
/// If it cannot be read, or is another file.
pub fn probe(config: &Config) -> Result<(), StepError> {
    let path = probe_path(config);
    let mut text = Vec::new();
    fs::File::open(&path)
        .and_then(|file| file.take(4096).read_to_end(&mut text))
        .map_err(system(path.display().to_string()))?;
    if text == serve::PROBE_TEXT {
        Ok(())
    } else {
        Err(StepError::Probe(path))
    }
}

/// Where the probe is.
pub(crate) fn probe_path(config: &Config) -> PathBuf {
    config.list.mountpoint.join(serve::PROBE)
}

/// Whether IMA's policy was seen to measure the probe, since boot.
pub(crate) fn was_measured() -> bool {
    exists(MEASURED)
}

/// It was.
pub(crate) fn note_measured() -> Result<(), StepError> {
    mark(MEASURED).map_err(system(MEASURED))
}

/// Binds the files of the file system over IMA's own.
///
/// # Errors
///
/// If one cannot be covered; none is then.
pub fn cover(config: &Config) -> Result<(), StepError> {
    let mountpoint = &config.list.mountpoint;
    let log = rustix::fs::open(mountpoint, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .map_err(|errno| system(mountpoint.display().to_string())(errno.into()))?;
    mounts::cover(log.as_fd(), &usual())?;
    mark(COVERED).map_err(system(COVERED))
}

/// Whether they are covered, as far as it was this program that did it.
pub(crate) fn is_covered() -> bool {
    exists(COVERED)
}

/// The names of IMA's own files that the files of the file system that is mounted there do not cover.
///
/// # Errors
///
/// If it cannot be looked at.
pub fn uncovered(mountpoint: &Path) -> Result<Vec<String>, StepError> {
    let log = rustix::fs::open(mountpoint, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .map_err(|errno| system(mountpoint.display().to_string())(errno.into()))?;
    Ok(mounts::uncovered(log.as_fd(), &usual())?)
}

/// Uncovers IMA's own files.
///
/// # Errors
///
/// If one cannot be uncovered.
pub fn uncover() -> Result<(), StepError> {
    mounts::uncover(&usual())?;
    remove(COVERED)
}

/// IMA's directory, where everybody looks for it.
pub(crate) fn usual() -> PathBuf {
    Path::new(kernel::SECURITYFS).join("ima")
}

/// Says whether the kernel's own list is whole, for a step that comes when the daemon has ended.
pub(crate) fn note_untrimmed(untrimmed: bool) -> Result<(), StepError> {
    if untrimmed {
        mark(UNTRIMMED).map_err(system(UNTRIMMED))
    } else {
        remove(UNTRIMMED)
    }
}

/// How many records were trimmed at the last flush, as far as is known: 0 if none was, or nobody has
/// said so.
pub(crate) fn flushed() -> u64 {
    fs::read_to_string(FLUSHED)
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or_default()
}

/// Remembers how many records were trimmed at a flush.
pub(crate) fn note_flushed(records: u64) -> Result<(), StepError> {
    fs::write(FLUSHED, format!("{records}\n")).map_err(system(FLUSHED))
}

/// Whether the unit is being stopped, and neither restarted nor started anew after a failure: the
/// service manager's job is to stop it.
///
/// If it cannot be told it is no stop: what is covered stays so.
fn is_stop() -> bool {
    let Ok(unit) = std::env::var("IMA_TRIM_UNIT") else {
        return false;
    };
    let jobs = Command::new("systemctl")
        .args(["list-jobs", "--plain", "--no-legend", "--no-pager"])
        .output();
    let Ok(jobs) = jobs else {
        return false;
    };
    // A line has the job's number, its unit, its type and its state.
    String::from_utf8_lossy(&jobs.stdout).lines().any(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        matches!(fields.as_slice(), [_, name, "stop", ..] if *name == unit)
    })
}

/// Makes a directory, if it is not there.
fn directory(path: &Path, mode: u32) -> Result<(), StepError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(path)
        .map_err(system(path.display().to_string()))
}

/// Makes an empty file. The directory is not root's alone: it must lead nowhere else.
fn mark(path: &str) -> io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mode = Mode::RUSR | Mode::WUSR;
    Ok(rustix::fs::open(path, flags, mode).map(drop)?)
}

fn exists(path: &str) -> bool {
    Path::new(path).exists()
}

/// Removes a file, if it is there.
fn remove(path: &str) -> Result<(), StepError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(system(path)(error)),
        _ => Ok(()),
    }
}
