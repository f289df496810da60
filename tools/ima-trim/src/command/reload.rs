// SPDX-License-Identifier: GPL-2.0

//! `ima-trim reload-module`.

use std::path::Path;
use std::path::PathBuf;

use clap::Args;

use super::ask;
use super::Failure;
use crate::config::Config;
use crate::control::Question;
use crate::daemon;
use crate::daemon::DaemonError;
use crate::progress::Progress;

/// Which module is loaded.
#[derive(Args, Clone, Debug)]
pub struct Arguments {
    /// The file [default: the installed module]
    path: Option<PathBuf>,
}

/// Unloads the module, loads another build, and gives it its values.
///
/// # Errors
///
/// If one of these fails. The module may be unloaded then: the message says what to do.
pub fn run(config: &Config, arguments: &Arguments) -> Result<(), Failure> {
    let path = arguments.path.as_deref();
    // It may not load modules itself, and has nothing to do with which one it is.
    if ask(&Question::Release)?.is_some() {
        let reloaded = reload(path);
        // It looks for the module, whatever came of it.
        let held = ask(&Question::Hold);
        reloaded?;
        held?;
        return Ok(());
    }
    let mut opened = super::open(config)?;
    reload(path)?;
    opened.keeper.hold()?;
    Ok(())
}

/// A module that is loaded replays what is in the list.
fn reload(path: Option<&Path>) -> Result<(), DaemonError> {
    let _progress = Progress::new("loading the module");
    daemon::reload(path)
}
