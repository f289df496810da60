// SPDX-License-Identifier: GPL-2.0

//! The commands of the program: one file each, but for those that are one line.
//!
//! While a daemon runs, what changes anything is a question to it: it is the one owner of the
//! archive and of the module's file `trim`. Without one, a command is the owner for as long as it
//! runs.

use std::fmt;
use std::io;
use std::path::Path;

use clap::Args;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::Config;
use crate::config::ConfigError;
use crate::control;
use crate::control::Answer;
use crate::control::Question;
use crate::daemon;
use crate::daemon::DaemonError;
use crate::daemon::Opened;
use crate::keeper::KeeperError;
use crate::kernel::KernelError;
use crate::list::ListError;
use crate::progress::Progress;
use crate::steps;
use crate::steps::Step;
use crate::steps::StepError;
use crate::verifier::StateError;

pub mod earlier;
pub mod log;
pub mod reload;
pub mod request;
pub mod sign;
pub mod state;
pub mod status;
pub mod trim;
pub mod verifier;
pub mod verify;

/// Why a command did not do what it was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// It did, and the verdict is negative: exit status 1.
    Negative(String),
    /// It was asked for something that does not exist: exit status 2.
    Usage(String),
    /// Something that is needed is missing or has failed: exit status 3.
    Failed(String),
}

impl Failure {
    /// The exit status.
    pub fn status(&self) -> u8 {
        match self {
            Self::Negative(_) => 1,
            Self::Usage(_) => 2,
            Self::Failed(_) => 3,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Negative(text) | Self::Usage(text) | Self::Failed(text)) = self;
        f.write_str(text)
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::Usage(error.to_string())
    }
}

impl From<KeeperError> for Failure {
    fn from(error: KeeperError) -> Self {
        if error.is_negative() {
            Self::Negative(error.to_string())
        } else {
            Self::Failed(error.to_string())
        }
    }
}

impl From<DaemonError> for Failure {
    fn from(error: DaemonError) -> Self {
        match error {
            error if error.is_negative() => Self::Negative(error.to_string()),
            error => Self::Failed(error.to_string()),
        }
    }
}

impl From<StepError> for Failure {
    fn from(error: StepError) -> Self {
        Self::Failed(error.to_string())
    }
}

impl From<ListError> for Failure {
    fn from(error: ListError) -> Self {
        KeeperError::from(error).into()
    }
}

impl From<KernelError> for Failure {
    fn from(error: KernelError) -> Self {
        Self::Failed(error.to_string())
    }
}

impl From<StateError> for Failure {
    fn from(error: StateError) -> Self {
        match error {
            StateError::Violations { .. } => Self::Negative(error.to_string()),
            other => Self::Failed(other.to_string()),
        }
    }
}

/// Names what failed.
pub(crate) fn failed(what: impl fmt::Display) -> impl FnOnce(io::Error) -> Failure {
    move |error| Failure::Failed(format!("{what}: {error}"))
}

/// Opens archive and list, as no daemon has them.
pub(crate) fn open(config: &Config) -> Result<Opened, Failure> {
    let _progress = Progress::new("reading the kernel's list");
    Ok(daemon::open(config)?)
}

/// Asks the daemon; `None` if none runs.
pub(crate) fn ask(question: &Question) -> Result<Option<Answer>, Failure> {
    let _progress = Progress::new("waiting for the daemon");
    match control::ask(Path::new(control::SOCKET), question).map_err(failed(control::SOCKET))? {
        Some(Answer::Failed {
            error,
            negative: true,
        }) => Err(Failure::Negative(error)),
        Some(Answer::Failed { error, .. }) => Err(Failure::Failed(error)),
        other => Ok(other),
    }
}

/// Whether a daemon serves the whole list. One that runs and does not has left the archive alone.
pub(crate) fn is_served() -> Result<bool, Failure> {
    Ok(matches!(
        ask(&Question::Status)?,
        Some(Answer::Status(state)) if state.serving
    ))
}

/// How the daemon is run.
#[derive(Args, Clone, Debug)]
pub struct DaemonArguments {
    /// Make no mounts: the unit has steps that do
    #[arg(long, hide = true)]
    by_steps: bool,
}

/// `ima-trim daemon`.
///
/// # Errors
///
/// See [`daemon::run`].
pub fn daemon(
    config: &Config,
    path: Option<&Path>,
    arguments: &DaemonArguments,
) -> Result<(), Failure> {
    journal();
    Ok(daemon::run(config, path, arguments.by_steps)?)
}

/// `ima-trim step`.
///
/// # Errors
///
/// See [`steps::run`].
pub fn step(config: &Config, step: Step) -> Result<(), Failure> {
    Ok(steps::run(config, step)?)
}

/// Sends messages to the journal, with their fields, if that is where standard error leads; and as
/// text to standard error otherwise.
fn journal() {
    if std::env::var_os("JOURNAL_STREAM").is_some() {
        if let Ok(journal) = tracing_journald::layer() {
            let journal = journal
                .with_syslog_identifier("ima-trim".to_owned())
                .with_field_prefix(Some("IMA_TRIM".to_owned()));
            tracing_subscriber::registry().with(journal).init();
            return;
        }
    }
    tracing_subscriber::fmt()
        .with_writer(io::stderr)
        .with_target(false)
        .without_time()
        .init();
}

/// `ima-trim restore`.
///
/// # Errors
///
/// If the module is not loaded, or does not take the values.
pub fn restore(config: &Config) -> Result<(), Failure> {
    if ask(&Question::Restore)?.is_none() {
        let mut opened = open(config)?;
        let _progress = Progress::new("restoring");
        opened.keeper.restore()?;
    }
    Ok(())
}
