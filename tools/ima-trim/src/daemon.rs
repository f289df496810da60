// SPDX-License-Identifier: GPL-2.0

//! The daemon: serves the whole list, archives, trims and restores.
//!
//! One thread keeps (archives, trims, answers what is asked over the socket), a few serve, and none
//! of these waits for the one that keeps.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::sync::mpsc;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::thread;
use std::time::Duration;
use std::time::Instant;
use std::time::SystemTime;
use std::time::UNIX_EPOCH;

use ima_trim_pure::bank::Pcr;
use ima_trim_pure::instance::parse_hex;
use rustix::pipe::PipeFlags;
use sd_notify::NotifyState;
use signal_hook::consts::SIGHUP;
use signal_hook::consts::SIGINT;
use signal_hook::consts::SIGTERM;
use tracing::error;
use tracing::info;
use tracing::warn;

use crate::algorithm::Algorithm;
use crate::archive::Archive;
use crate::archive::ArchiveError;
use crate::archive::BootId;
use crate::archive::Keep;
use crate::archive::Writer;
use crate::config::Config;
use crate::control;
use crate::control::Answer;
use crate::control::Question;
use crate::control::State;
use crate::fuse;
use crate::fuse::End;
use crate::fuse::Session;
use crate::inherited;
use crate::keeper::find_base;
use crate::keeper::Keeper;
use crate::keeper::KeeperError;
use crate::keeper::Trimmed;
use crate::keeper::Wanted;
use crate::kernel;
use crate::kernel::Kernel;
use crate::kernel::KernelError;
use crate::kernel::TPM;
use crate::list::ListError;
use crate::list::Source;
use crate::list::Whole;
use crate::pcrs::Point;
use crate::record::Record;
use crate::render::View;
use crate::serve::Served;
use crate::signed::Signed;
use crate::spool::Spool;
use crate::steps;
use crate::steps::StepError;
use crate::steps::OWN_SECURITYFS;
use crate::steps::STORED;

/// For how long the module is let go of while somebody reloads it.
const RELEASE_LIMIT: Duration = Duration::from_secs(120);

/// How often the daemon looks whether something is to be done.
const TICK: Duration = Duration::from_secs(1);

/// How long until a list that was not whole is looked at again.
const AGAIN: Duration = Duration::from_secs(10);

/// For how long a command that has the archive is waited for.
const LOCK_LIMIT: Duration = Duration::from_secs(10);

/// Bytes of a file that are compared with the kernel's at a time.
const COMPARED: usize = 1 << 20;

/// How many threads serve.
const SERVERS: usize = 4;

/// IMA's PCR, where neither the module nor an archive says another.
const USUAL_PCR: u32 = 10;

/// Why the daemon does not run.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The kernel did not answer.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The archive cannot be used.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// The list cannot be given.
    #[error(transparent)]
    List(#[from] ListError),
    /// The list is not whole, or the module and the archive differ.
    #[error(transparent)]
    Keeper(#[from] KeeperError),
    /// The file system cannot be served.
    #[error(transparent)]
    Fuse(#[from] fuse::Error),
    /// The file system could not be mounted, or IMA's files not be covered.
    #[error(transparent)]
    Step(#[from] StepError),
    /// Something of the operating system.
    #[error("{what}: {error}")]
    System {
        /// What was tried.
        what: String,
        /// What happened.
        error: io::Error,
    },
    /// There is no bank whose values could be replayed.
    #[error("the TPM has none of the banks sha1, sha256, sha384 and sha512: {0}")]
    Banks(PathBuf),
}

impl DaemonError {
    /// Whether it is a verdict on the list or the values, not something that is missing.
    pub fn is_negative(&self) -> bool {
        match self {
            Self::Keeper(error) => error.is_negative(),
            Self::List(error) => error.is_negative(),
            _ => false,
        }
    }
}

/// Names what was tried.
fn system(what: impl Into<String>) -> impl FnOnce(io::Error) -> DaemonError {
    let what = what.into();
    move |error| DaemonError::System { what, error }
}

/// What wakes the keeper.
enum Event {
    Ask(Question, mpsc::SyncSender<Answer>),
    Stop,
    Reload,
}

/// How the daemon goes on when it has been told something.
enum Next {
    Stop,
    Reload,
}

/// The archive and the list, with everything that was checked before either is used.
#[derive(Debug)]
pub struct Opened {
    /// The kernel's files, where nothing covers them.
    pub kernel: Kernel,
    /// Every record since boot.
    pub whole: Arc<Whole<Kernel>>,
    /// The owner of archive and trims.
    pub keeper: Keeper,
}

/// Opens archive and list, and makes sure that they are whole: that they replay from the reset
/// values to what the TPM has or, where the TPM has other values, that the module has trimmed to a
/// point of the archive. What the TPM does not confirm is not trimmed.
///
/// # Errors
///
/// If they are not, or somebody else has the archive.
pub fn open(config: &Config) -> Result<Opened, DaemonError> {
    let kernel = prepared()?;
    let Begin { boot, start, views } = Begin::of(&kernel)?;
    let writer = Writer::open(&config.archive.directory, &boot, &start, &views)?;
    let archive = Arc::clone(writer.archive());
    let base = find_base(&kernel, &archive)?;
    let whole = Arc::new(Whole::new(kernel.clone(), archive, base)?);
    let mut keeper = Keeper::new(
        kernel.clone(),
        Arc::clone(&whole),
        writer,
        config.trim.clone(),
    );
    keeper.read_all()?;
    keeper.confirm_or_vouch()?;
    Ok(Opened {
        kernel,
        whole,
        keeper,
    })
}

/// The archive, for reading, whoever has it.
///
/// # Errors
///
/// If there is none, or its headers are damaged.
pub fn archive(config: &Config) -> Result<Archive, DaemonError> {
    let Begin { boot, start, views } = Begin::of(&prepared()?)?;
    let root = &config.archive.directory;
    Ok(Archive::open(root, &boot, &start, &views)?)
}

/// What an archive of this boot begins with.
struct Begin {
    boot: BootId,
    start: Point,
    views: Vec<View>,
}

impl Begin {
    fn of(kernel: &Kernel) -> Result<Self, DaemonError> {
        let boot = kernel::boot_id()?;
        let boot = BootId::parse(&boot).ok_or(KernelError::Text {
            path: "/proc/sys/kernel/random/boot_id".into(),
            text: boot,
            expected: "the id of a boot",
        })?;
        let (banks, pcr) = banks_of(kernel, kernel.starting().ok().as_ref())?;
        Ok(Self {
            boot,
            start: Point::reset(&banks, pcr),
            views: kernel.views()?,
        })
    }
}

/// The kernel's files, in a securityfs where nothing covers them.
fn prepared() -> Result<Kernel, DaemonError> {
    steps::prepare()?;
    Ok(Kernel::new(Path::new(OWN_SECURITYFS)))
}

/// What the threads of the daemon share.
struct Shared {
    state: Arc<Mutex<State>>,
    served: Arc<Served>,
    events: mpsc::Sender<Event>,
    inbox: mpsc::Receiver<Event>,
    /// The file system, once it is served.
    session: Option<Arc<Session>>,
    /// Whether questions are answered.
    listens: bool,
}

impl Shared {
    /// Begins to answer at the socket, and to heed signals.
    fn listen(&mut self) -> Result<(), DaemonError> {
        if !self.listens {
            listen(&self.events, &self.state)?;
            heed_signals(self.events.clone())?;
            self.listens = true;
        }
        Ok(())
    }

    /// Serves the file system that somebody has left.
    fn take_over(&mut self) -> Result<bool, DaemonError> {
        let Some(device) = inherited::descriptor(STORED) else {
            return Ok(false);
        };
        self.serve(Session::take_over(device)?)?;
        Ok(true)
    }

    fn serve(&mut self, session: Session) -> Result<(), DaemonError> {
        let session = Arc::new(session);
        serve(&session, &self.served)?;
        self.session = Some(session);
        Ok(())
    }
}

/// Runs until it is told to stop.
///
/// Where archive and list are not whole, it says so, gives whoever reads a file system that it was
/// left an error in place of a list, and tries again.
///
/// `path` is where the configuration is, for a successor. With `by_steps` somebody else makes and
/// removes the mounts: see [`steps`].
///
/// # Errors
///
/// If it cannot begin, another one runs, or a file system that it served is gone.
pub fn run(config: &Config, path: Option<&Path>, by_steps: bool) -> Result<(), DaemonError> {
    let kernel = prepared()?;
    let served =
        Served::new(&kernel, &config.list).map_err(system("the files that are to be served"))?;
    let spool = Spool::new(&config.archive.directory);
    let (events, inbox) = mpsc::channel();
    let mut shared = Shared {
        state: Arc::new(Mutex::new(State {
            pid: std::process::id(),
            since: now(),
            archive: config.archive.directory.clone(),
            mountpoint: config.list.mountpoint.clone(),
            overlay: steps::is_covered(),
            requests: spool.path().to_owned(),
            ..State::default()
        })),
        served: Arc::new(served),
        events,
        inbox,
        session: None,
        listens: false,
    };
    let Some(Opened {
        whole, mut keeper, ..
    }) = open_at_last(config, &kernel, &mut shared, path, by_steps)?
    else {
        return Ok(());
    };
    if shared.listens && by_steps {
        info!("the list is whole again: begins anew, so that IMA's own files are covered");
        return Ok(());
    }
    prune(&mut keeper, config);
    if let Err(error) = spool.make() {
        warn!("{}: {error}", spool.path().display());
    }
    steps::note_untrimmed(false)?;
    shared.served.give(&whole);
    let taken_over = shared.session.is_some() || shared.take_over()?;
    if !taken_over {
        if by_steps {
            return Err(steps::lost(config).into());
        }
        shared.serve(steps::mount(config)?)?;
    }
    note(&shared.state, |state| {
        state.serving = true;
        state.problems.clear();
        state.archive = keeper.directory().to_owned();
    });
    if !by_steps && config.list.overlay {
        if !steps::was_measured() {
            // As another process: nothing is measured when the daemon itself opens it.
            program("cat", &[steps::probe_path(config).as_os_str()])?;
        }
        let refused = unfit(config, &whole)?;
        if refused.is_none() {
            steps::cover(config)?;
        } else {
            steps::uncover()?;
        }
        judged(&shared.state, refused);
    }

    shared.listen()?;
    let ready = sd_notify::notify(&[NotifyState::Ready, NotifyState::Status("")]);
    ready.map_err(system("telling the service manager"))?;
    info!(
        records = whole.known(),
        trimmed = whole.base(),
        taken_over,
        "serving the whole list"
    );
    loop {
        match keep(&mut keeper, &spool, &shared.inbox, &shared.state, config) {
            Next::Stop => break,
            Next::Reload => replace(shared.session.as_deref(), path, &kernel)?,
        }
    }
    // Somebody else may have removed records.
    let removed = matches!(kernel.removed(), Ok(Some(records)) if records > 0);
    let untrimmed = whole.base() == 0 && !whole.is_lost() && !removed;
    steps::note_untrimmed(untrimmed)?;
    if !untrimmed {
        warn!("records were trimmed: IMA's files stay covered, and cannot be read until the daemon runs again");
    } else if !by_steps {
        steps::unmount(config)?;
    }
    Ok(())
}

/// Removes archives of earlier boots beyond what is configured. Nothing else depends on it.
fn prune(keeper: &mut Keeper, config: &Config) {
    let keep = Keep {
        boots: config.archive.keep_boots,
        bytes: config.archive.keep_bytes,
    };
    match keeper.prune(keep) {
        Ok(removed) => {
            for boot in removed {
                info!("removed the archive of the earlier boot {}", boot.id);
            }
        }
        Err(error) => warn!("archives of earlier boots: {error}"),
    }
}

/// Opens archive and list, and waits until they can be. `None` if it is told to stop before.
fn open_at_last(
    config: &Config,
    kernel: &Kernel,
    shared: &mut Shared,
    path: Option<&Path>,
    by_steps: bool,
) -> Result<Option<Opened>, DaemonError> {
    let began = Instant::now();
    let mut said = None;

    loop {
        let error = match open(config) {
            Ok(opened) => return Ok(Some(opened)),
            Err(error) => error,
        };
        if matches!(error, DaemonError::Archive(ArchiveError::Locked { .. })) && !shared.listens {
            // A command that has it lets go of it soon, another daemon does not.
            if another_runs() || began.elapsed() >= LOCK_LIMIT {
                return Err(error);
            }
            thread::sleep(Duration::from_millis(100));
            continue;
        }
        let problem = error.to_string();
        if said.as_ref() != Some(&problem) {
            error!("the list is not served: {problem}");
        }
        if !shared.listens {
            wait_in_the_open(kernel, shared, by_steps)?;
        }
        note(&shared.state, |state| {
            state.problems = vec![format!("the list is not served: {problem}")];
        });
        let status = format!("the list is not served: {problem}");
        // Without a service manager this says nothing to nobody.
        let _ = sd_notify::notify(&[NotifyState::Ready, NotifyState::Status(&status)]);
        let negative = error.is_negative();
        said = Some(problem);
        let again = Instant::now() + AGAIN;
        loop {
            let _ = sd_notify::notify(&[NotifyState::Watchdog]);
            let left = again.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            match shared.inbox.recv_timeout(left.min(TICK)) {
                Ok(Event::Ask(Question::Overlay, reply)) => {
                    // The kernel's own files have everything, and whoever asks can uncover them.
                    let _ = reply.send(if is_untouched(kernel) {
                        Answer::Overlay {
                            refused: Some(status.clone()),
                        }
                    } else {
                        Answer::Unserved
                    });
                }
                Ok(Event::Ask(_, reply)) => {
                    let error = status.clone();
                    let _ = reply.send(Answer::Failed { error, negative });
                }
                Ok(Event::Reload) => replace(shared.session.as_deref(), path, kernel)?,
                Ok(Event::Stop) | Err(mpsc::RecvTimeoutError::Disconnected) => {
                    steps::note_untrimmed(is_untouched(kernel))?;
                    return Ok(None);
                }
                Err(mpsc::RecvTimeoutError::Timeout) => {}
            }
        }
    }
}

/// What is done before the first wait for a list that is whole.
fn wait_in_the_open(
    kernel: &Kernel,
    shared: &mut Shared,
    by_steps: bool,
) -> Result<(), DaemonError> {
    shared.listen()?;
    // Whoever reads the file system of a predecessor would wait for as long as nobody serves it.
    shared.take_over()?;
    // The mounts of this process may not be those that others see.
    if !by_steps && is_untouched(kernel) {
        steps::uncover()?;
    }
    Ok(())
}

/// Whether IMA's own files have everything, as no record was ever removed.
fn is_untouched(kernel: &Kernel) -> bool {
    matches!(kernel.removed(), Ok(Some(0)))
}

/// Whether another daemon answers.
fn another_runs() -> bool {
    matches!(
        control::ask(Path::new(control::SOCKET), &Question::Status),
        Ok(Some(_))
    )
}

/// Replaces this process. If that is not possible it goes on.
fn replace(
    session: Option<&Session>,
    path: Option<&Path>,
    kernel: &Kernel,
) -> Result<(), DaemonError> {
    // What a successor would end with at once, when there is nobody any more who goes on.
    let read = Config::read(path).map_err(io::Error::other);
    let served = read.and_then(|config| Served::new(kernel, &config.list));
    let error = match (served, session) {
        (Err(error), _) => error,
        (Ok(_), Some(session)) => exec(session),
        (Ok(_), None) => io::Error::other("there is no file system yet that could be handed on"),
    };
    // Nothing has changed: the service manager is told so.
    error!("the daemon cannot be replaced, and goes on: {error}");
    let ready = sd_notify::notify(&[NotifyState::Ready]);
    ready.map_err(system("telling the service manager"))
}

/// Replaces this process by the program as it is installed now, which takes everything over. Its
/// number stays, and so does all that the service manager has given it.
///
/// Gives the error if that is not possible.
fn exec(session: &Session) -> io::Error {
    let reloading = NotifyState::monotonic_usec_now()
        .and_then(|time| sd_notify::notify(&[NotifyState::Reloading, time]));
    if let Err(error) = reloading {
        return error;
    }
    let mut arguments = std::env::args_os();
    let Some(program) = arguments.next() else {
        return io::Error::other("the program does not know its own name");
    };
    let device = session.as_fd();
    let (name, value) = inherited::bequest(device, STORED);
    let kept = rustix::io::fcntl_setfd(device, rustix::io::FdFlags::empty());
    if let Err(errno) = kept {
        return errno.into();
    }
    let error = Command::new(program)
        .args(arguments)
        .env(name, value)
        .exec();
    let kept = rustix::io::fcntl_setfd(device, rustix::io::FdFlags::CLOEXEC);
    kept.map_or_else(io::Error::from, |()| error)
}

/// Notes whether IMA's own files are to be covered.
fn judged(state: &Mutex<State>, refused: Option<String>) {
    if let Some(reason) = &refused {
        warn!("IMA's own files are not covered: {reason}");
    }
    note(state, |state| {
        state.overlay = refused.is_none();
        state.overlay_refused = refused;
    });
}

/// Archives and trims when it is time, and answers, until it is told to stop.
fn keep(
    keeper: &mut Keeper,
    spool: &Spool,
    inbox: &mpsc::Receiver<Event>,
    state: &Mutex<State>,
    config: &Config,
) -> Next {
    let mut said = None;
    let mut released = None;
    let mut again = Instant::now();
    loop {
        if released.is_some_and(|since: Instant| since.elapsed() > RELEASE_LIMIT) {
            released = None;
        }
        let problem = tick(keeper, state, released.is_some())
            .err()
            .map(|error| error.to_string());
        // Also while the module has no starting values: they may be in one of them.
        if released.is_none() && keeper.takes_signed() && Instant::now() >= again {
            if let Err(error) = apply_waiting(keeper, spool, state) {
                warn!("{error}");
                again = Instant::now() + AGAIN;
            }
        }
        if problem != said {
            match &problem {
                Some(problem) => error!("{problem}"),
                None => info!("all is well again"),
            }
        }
        if keeper.holds() != snapshot(state).held {
            let signers = keeper.signers().unwrap_or_default();
            note(state, |state| state.signers = signers);
        }
        note(state, |state| {
            state.records = keeper.whole().known();
            state.archived = keeper.whole().archive().records();
            state.trimmed = keeper.whole().base();
            state.held = keeper.holds();
            state.problems = problem.iter().cloned().collect();
        });
        said = problem;
        if let Some(path) = &config.report.metrics {
            if let Err(error) = crate::metrics::write(path, &snapshot(state)) {
                warn!("{}: {error}", path.display());
            }
        }
        // Without a watchdog, or a service manager, this says nothing to nobody.
        let _ = sd_notify::notify(&[NotifyState::Watchdog]);
        match inbox.recv_timeout(TICK) {
            Ok(Event::Ask(question, reply)) => {
                released = match question {
                    Question::Release => Some(Instant::now()),
                    Question::Hold => None,
                    _ => released,
                };
                let _ = reply.send(obey(keeper, question, state, config));
            }
            Ok(Event::Reload) => return Next::Reload,
            Ok(Event::Stop) | Err(mpsc::RecvTimeoutError::Disconnected) => return Next::Stop,
            Err(mpsc::RecvTimeoutError::Timeout) => {}
        }
    }
}

/// What is to be done now. While the module is being reloaded nothing is asked of it.
fn tick(keeper: &mut Keeper, state: &Mutex<State>, released: bool) -> Result<(), KeeperError> {
    keeper.refresh()?;
    keeper.archive_full()?;
    if released {
        return Ok(());
    }
    keeper.hold()?;
    // The service manager is told that this is alive.
    keeper.sound(|_| drop(sd_notify::notify(&[NotifyState::Watchdog])))?;
    keeper.confirmed()?;
    if keeper.is_due() {
        let due = Wanted {
            archived: true,
            ..Wanted::default()
        };
        match keeper.trim(&due) {
            Ok(trimmed) => {
                note(state, |state| state.last_trim = Some(now()));
                info!(
                    records = trimmed.outcome.records,
                    violations = trimmed.outcome.violations,
                    total = trimmed.records,
                    reclaim = trimmed.reclaim,
                    "trimmed"
                );
            }
            // Somebody reads the kernel's own files: at the next tick.
            Err(error) if error.is_busy() => warn!("{error}"),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Hands the module what has arrived from a verifier, in the order of the names.
///
/// # Errors
///
/// Why the first of them waits.
fn apply_waiting(keeper: &mut Keeper, spool: &Spool, state: &Mutex<State>) -> Result<(), String> {
    let at = |error: io::Error| format!("{}: {error}", spool.path().display());
    let mut result = Ok(());
    for name in spool.waiting().map_err(at)? {
        let parsed = spool
            .read(&name)
            .map_err(|error| error.to_string())
            .and_then(|bytes| Signed::parse(&bytes).map_err(|error| error.to_string()));
        let refusal = match parsed {
            Err(reason) => reason,
            Ok(signed) => match keeper.apply(&signed) {
                Ok(trimmed) => {
                    applied(state, trimmed.as_ref(), &name);
                    spool.done(&name).map_err(at)?;
                    continue;
                }
                Err(error) if error.is_final() => error.to_string(),
                Err(error) => {
                    if result.is_ok() {
                        result = Err(format!("the request {name} waits: {error}"));
                    }
                    // A restore may be among the others.
                    if matches!(error, KeeperError::UnsignedRestore(_)) {
                        continue;
                    }
                    break;
                }
            },
        };
        warn!("the request {name} is refused: {refusal}");
        spool.refuse(&name).map_err(at)?;
        note(state, |state| {
            state.refused = Some(format!("{name}: {refusal}"));
        });
    }
    let waiting = spool.waiting().map_err(at)?;
    note(state, |state| {
        state.waiting = waiting;
        state.waits_for = result.clone().err();
    });
    result
}

/// Tells of a signed request that was done.
fn applied(state: &Mutex<State>, trimmed: Option<&Trimmed>, name: &str) {
    let Some(trimmed) = trimmed else {
        info!("restored by the request {name}");
        return;
    };
    note(state, |state| state.last_trim = Some(now()));
    info!(
        records = trimmed.outcome.records,
        violations = trimmed.outcome.violations,
        total = trimmed.records,
        "{} by the request {name}",
        trimmed.outcome.result
    );
}

/// Does what is asked for.
fn obey(keeper: &mut Keeper, question: Question, state: &Mutex<State>, config: &Config) -> Answer {
    let failed = |error: KeeperError| Answer::Failed {
        negative: error.is_negative(),
        error: error.to_string(),
    };
    match question {
        Question::Status => Answer::Status(Box::new(snapshot(state))),
        Question::Trim {
            to,
            violations,
            reclaim,
            dry_run,
            instance,
        } => {
            let reclaim = match reclaim.as_deref() {
                None => None,
                Some("keep") => Some("keep"),
                Some("compact") => Some("compact"),
                Some("flush") => Some("flush"),
                Some(other) => {
                    return Answer::Failed {
                        error: format!("reclaim is {other:?}, not keep, compact or flush"),
                        negative: false,
                    }
                }
            };
            let wanted = Wanted {
                to,
                violations,
                reclaim,
                dry_run,
                instance,
                archived: false,
            };
            match keeper.trim(&wanted) {
                Ok(trimmed) => {
                    if !dry_run {
                        note(state, |state| state.last_trim = Some(now()));
                    }
                    answer(trimmed)
                }
                Err(error) => failed(error),
            }
        }
        Question::Apply { request } => {
            let mut der = vec![0; request.len() / 2];
            if !parse_hex(request.as_bytes(), &mut der) {
                der.clear();
            }
            match Signed::parse(&der) {
                Err(error) => Answer::Failed {
                    error: error.to_string(),
                    negative: false,
                },
                Ok(signed) => match keeper.apply(&signed) {
                    Err(error) => failed(error),
                    Ok(None) => Answer::Done,
                    Ok(Some(trimmed)) => {
                        note(state, |state| state.last_trim = Some(now()));
                        answer(trimmed)
                    }
                },
            }
        }
        Question::Restore => match keeper.restore() {
            Ok(()) => Answer::Done,
            Err(error) => failed(error),
        },
        Question::Release => {
            keeper.release();
            Answer::Done
        }
        Question::Hold => match keeper.hold() {
            Ok(()) => Answer::Done,
            Err(error) => failed(error),
        },
        Question::Overlay => match unfit(config, keeper.whole()) {
            Ok(refused) => {
                judged(state, refused.clone());
                Answer::Overlay { refused }
            }
            Err(error) => Answer::Failed {
                error: error.to_string(),
                negative: false,
            },
        },
    }
}

/// What came of a trim, for who asked for it.
pub(crate) fn answer(trimmed: Trimmed) -> Answer {
    Answer::Trimmed {
        result: trimmed.outcome.result,
        records: trimmed.outcome.records,
        violations: trimmed.outcome.violations,
        total: trimmed.records,
    }
}

/// Unloads the module and loads another build of it.
///
/// # Errors
///
/// If it cannot be unloaded or loaded.
pub fn reload(path: Option<&Path>) -> Result<(), DaemonError> {
    program("rmmod", &["ima_trim".as_ref()])?;
    match path {
        Some(path) => program("insmod", &[path.as_os_str()]),
        None => program("modprobe", &["ima_trim".as_ref()]),
    }
}

/// Runs a program of the system to its end.
fn program(name: &str, arguments: &[&std::ffi::OsStr]) -> Result<(), DaemonError> {
    let output = Command::new(name)
        .args(arguments)
        .output()
        .map_err(system(name))?;
    if output.status.success() {
        return Ok(());
    }
    Err(DaemonError::System {
        what: name.to_owned(),
        error: io::Error::other(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
    })
}

/// Starts the threads that serve. They end with the process: a successor has what they leave
/// unanswered sent again.
fn serve(session: &Arc<Session>, served: &Arc<Served>) -> Result<(), DaemonError> {
    let (never, kept) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)
        .map_err(|errno| system("a pipe")(errno.into()))?;
    let ends = Arc::new((never, kept));
    for number in 0..SERVERS {
        let session = Arc::clone(session);
        let served = Arc::clone(served);
        let ends = Arc::clone(&ends);
        thread::Builder::new()
            .name(format!("serve-{number}"))
            .spawn(move || {
                match session.serve(&*served, ends.0.as_fd()) {
                    Ok(End::Unmounted) => {
                        error!("the file system was unmounted");
                        if let Err(error) = steps::forget() {
                            error!("telling the service manager: {error}");
                        }
                    }
                    Ok(End::Stopped) => {}
                    Err(error) => error!("the file system: {error}"),
                }
                // Nobody is served any more: the service manager starts the daemon anew.
                std::process::exit(3);
            })
            .map_err(system("starting a thread"))?;
    }
    Ok(())
}

/// Why IMA's own files must not be covered, if so. Another process must have read the probe.
fn unfit(config: &Config, whole: &Whole<Kernel>) -> Result<Option<String>, DaemonError> {
    let kernel = whole.source();
    let unknown = kernel.unknown_files()?;
    if !unknown.is_empty() {
        return Ok(Some(format!(
            "no rendering is known for {}",
            unknown.join(", ")
        )));
    }
    for &view in whole.views() {
        if let Some(reason) = differs(kernel, whole, view)? {
            return Ok(Some(reason));
        }
    }
    measured(config, whole)
}

/// Why a file's rendering is not what the kernel gives, if it is not.
fn differs(
    kernel: &Kernel,
    whole: &Whole<Kernel>,
    view: View,
) -> Result<Option<String>, DaemonError> {
    // While it is open nothing is trimmed, so that both begin at the same record.
    let list = kernel.open(view)?;
    whole.refresh()?;
    let from = whole.kernel_begins(view)?;
    let mut offset = 0;
    let (mut theirs, mut ours) = (Vec::new(), Vec::new());
    loop {
        theirs.clear();
        ours.clear();
        let more = list.read_from(offset, COMPARED, &mut theirs)?;
        whole.read_known(view, from.saturating_add(offset), theirs.len(), &mut ours)?;
        let same = ours.iter().zip(&theirs).take_while(|(a, b)| a == b).count();
        offset += same as u64;
        if same < ours.len() {
            return Ok(Some(format!(
                "{} is rendered otherwise than by the kernel, from byte {offset} of the kernel's on",
                view.file_name()
            )));
        }
        // There may be newer records in the kernel's.
        if !more || same < theirs.len() {
            return Ok(None);
        }
    }
}

/// Why the policy keeps IMA's files from being covered, if it does: the probe was measured when
/// another process opened it, and so would be the list, at each open.
fn measured(config: &Config, whole: &Whole<Kernel>) -> Result<Option<String>, DaemonError> {
    let path = steps::probe_path(config);
    let name = path.as_os_str().as_encoded_bytes();
    let mut found = steps::was_measured();
    if !found {
        whole.refresh()?;
        let mut look = |record: &Record<'_>| {
            found = record.data().windows(name.len()).any(|part| part == name);
            !found
        };
        // Its record may be archived by now. An archive that is damaged is not said here.
        match whole.each(&mut look) {
            Err(ListError::Archive(_)) => whole.each_in_memory(|_, record| look(record))?,
            looked => looked?,
        }
        if found {
            steps::note_measured()?;
        }
    }
    Ok(found.then(|| {
        "IMA's policy measures files of the type fuse.ima-trim at each open, under a digest that nobody can know: put the rule 'dont_measure func=FILE_CHECK fs_subtype=ima-trim' in front of those that measure files, and reboot".to_owned()
    }))
}

/// Answers at the socket, each connection in a thread of its own.
fn listen(events: &mpsc::Sender<Event>, state: &Arc<Mutex<State>>) -> Result<(), DaemonError> {
    let listener = control::listen(Path::new(control::SOCKET)).map_err(system(control::SOCKET))?;
    let events = events.clone();
    let state = Arc::clone(state);
    let spawned = thread::Builder::new()
        .name("control".to_owned())
        .spawn(move || {
            for stream in listener.incoming().flatten() {
                let events = events.clone();
                let state = Arc::clone(&state);
                let answered = thread::Builder::new().spawn(move || {
                    let answered = control::answer(stream, |question| match question {
                        // The state is told even while the keeper is busy.
                        Question::Status => Answer::Status(Box::new(snapshot(&state))),
                        other => ask(&events, other),
                    });
                    if let Err(error) = answered {
                        warn!("{}: {error}", control::SOCKET);
                    }
                });
                if let Err(error) = answered {
                    warn!("{}: {error}", control::SOCKET);
                }
            }
        });
    spawned.map(|_| ()).map_err(system("starting a thread"))
}

/// Has the keeper do something.
fn ask(events: &mpsc::Sender<Event>, question: Question) -> Answer {
    let (reply, answer) = mpsc::sync_channel(1);
    match events
        .send(Event::Ask(question, reply))
        .ok()
        .and_then(|()| answer.recv().ok())
    {
        Some(answer) => answer,
        None => Answer::Failed {
            error: "the daemon is stopping: start it again, or ask once it has stopped".to_owned(),
            negative: false,
        },
    }
}

/// Has the keeper stop at SIGTERM and SIGINT, and make room for a new program at SIGHUP.
fn heed_signals(events: mpsc::Sender<Event>) -> Result<(), DaemonError> {
    let mut stopping = false;
    let mut signals = signal_hook::iterator::Signals::new([SIGTERM, SIGINT, SIGHUP])
        .map_err(system("signals"))?;
    let spawned = thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            for signal in signals.forever() {
                let event = match signal {
                    SIGHUP => Event::Reload,
                    _ => Event::Stop,
                };
                let again = stopping && signal != SIGHUP;
                stopping = stopping || signal != SIGHUP;
                if again || events.send(event).is_err() {
                    // It does not stop by itself.
                    std::process::exit(3);
                }
            }
        });
    spawned.map(|_| ()).map_err(system("starting a thread"))
}

/// The banks that are replayed, and IMA's PCR: those of a point that is known, or the TPM's.
///
/// # Errors
///
/// If the TPM has no bank that can be replayed.
pub fn banks_of(
    kernel: &Kernel,
    known: Option<&Point>,
) -> Result<(Vec<Algorithm>, Pcr), DaemonError> {
    let banks: Vec<Algorithm> = match known {
        Some(point) => point.banks().collect(),
        None => kernel.banks(),
    };
    // A policy may have others extended, too: one that is listed and not IMA's.
    let usual = Pcr::new(USUAL_PCR);
    let listed = known.map(Point::pcrs);
    let is_usual = listed.is_none_or(|listed| usual.is_some_and(|pcr| listed.contains(pcr)));
    let pcr = if is_usual {
        usual
    } else {
        listed.and_then(|listed| listed.iter().next())
    };
    match pcr {
        Some(pcr) if !banks.is_empty() => Ok((banks, pcr)),
        _ => Err(DaemonError::Banks(TPM.into())),
    }
}

/// Changes the state.
fn note(state: &Mutex<State>, change: impl FnOnce(&mut State)) {
    change(&mut state.lock().unwrap_or_else(PoisonError::into_inner));
}

/// The state as it is now.
fn snapshot(state: &Mutex<State>) -> State {
    state.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

/// Seconds since the epoch.
fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map(|time| time.as_secs())
        .unwrap_or_default()
}
