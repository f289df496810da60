// SPDX-License-Identifier: GPL-2.0

//! What the program says to its daemon, and the daemon answers: one line of JSON each, over a socket
//! that only root may use.

use std::io;
use std::io::BufRead;
use std::io::BufReader;
use std::io::Read;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use serde::Serialize;

/// Where the socket is.
pub const SOCKET: &str = "/run/ima-trim/control";

/// The most bytes of a question or an answer.
const MAX_MESSAGE: u64 = 1 << 20;

/// For how long the daemon waits for a question.
const QUESTION_LIMIT: Duration = Duration::from_secs(10);

/// What the daemon is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "do")]
pub enum Question {
    /// Its state.
    Status,
    /// Archive, and trim.
    Trim {
        /// Where to, as tokens of PCR values; none given: to the last record.
        to: Option<String>,
        /// How many violations were looked at; none given: as configured.
        violations: Option<u64>,
        /// `keep`, `compact` or `flush`; none given: as configured.
        reclaim: Option<String>,
        /// Change nothing.
        dry_run: bool,
        /// For which load of the module it is; none given: for any.
        instance: Option<String>,
    },
    /// Hand a signed request to the module, once what it may trim is archived.
    Apply {
        /// The request, PKCS#7 in hexadecimal.
        request: String,
    },
    /// Give the module its values.
    Restore,
    /// Let go of the module's files for two minutes, so that it can be reloaded.
    Release,
    /// Hold them again, and restore the module's values.
    Hold,
    /// Whether IMA's own files are to be covered. Whoever asks has read the probe before.
    Overlay,
}

/// What it answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "answer")]
pub enum Answer {
    /// Its state.
    Status(Box<State>),
    /// What came of a trim.
    Trimmed {
        /// `trimmed`, `nothing` or `dry-run`.
        result: String,
        /// Records.
        records: u64,
        /// Violations among them.
        violations: u64,
        /// How many are trimmed since boot.
        total: u64,
    },
    /// Whether IMA's own files are to be covered.
    Overlay {
        /// Why not, if not.
        refused: Option<String>,
    },
    /// No list is served yet, as the state says.
    Unserved,
    /// Done.
    Done,
    /// It could not be done.
    Failed {
        /// Why, and what to do.
        error: String,
        /// Whether it is a verdict on the list or the values, not something that is missing.
        negative: bool,
    },
}

/// What the daemon knows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct State {
    /// Its process.
    pub pid: u32,
    /// Since when it runs, in seconds since the epoch.
    pub since: u64,
    /// Whether the whole list is served. Otherwise the first of the problems says why not.
    pub serving: bool,
    /// Records since boot.
    pub records: u64,
    /// How many of them are archived.
    pub archived: u64,
    /// How many are trimmed.
    pub trimmed: u64,
    /// Where the archive of this boot is.
    pub archive: PathBuf,
    /// Where the whole list is mounted.
    pub mountpoint: PathBuf,
    /// Whether it covers IMA's own files.
    pub overlay: bool,
    /// Why it does not, if it should.
    pub overlay_refused: Option<String>,
    /// Whether the module's file `trim` is held.
    pub held: bool,
    /// When the last trim was, in seconds since the epoch.
    pub last_trim: Option<u64>,
    /// The certificates that the module takes requests by, by the SHA-256 of each; nothing if it
    /// takes those that nobody has signed.
    pub signers: Option<Vec<String>>,
    /// The directory in which signed requests are looked for.
    pub requests: PathBuf,
    /// The names of those that wait there.
    pub waiting: Vec<String>,
    /// Why the first of them waits, if it was tried.
    pub waits_for: Option<String>,
    /// The name of the one that was refused last, and why.
    pub refused: Option<String>,
    /// What is wrong now, and what to do: the newest of each kind.
    pub problems: Vec<String>,
}

/// Makes the socket. A socket of a daemon that has ended is replaced: the archive's lock has shown
/// that there is no other.
///
/// # Errors
///
/// If it cannot be made.
pub fn listen(path: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Answers one connection.
///
/// # Errors
///
/// If it is not understood, or went away.
pub fn answer(stream: UnixStream, reply: impl FnOnce(Question) -> Answer) -> io::Result<()> {
    stream.set_read_timeout(Some(QUESTION_LIMIT))?;
    let mut line = String::new();
    BufReader::new((&stream).take(MAX_MESSAGE)).read_line(&mut line)?;
    let answer = match serde_json::from_str(&line) {
        Ok(question) => reply(question),
        Err(error) => Answer::Failed {
            error: format!("the daemon does not understand {line:?}: {error}; are program and daemon of the same version?"),
            negative: false,
        },
    };
    send(&stream, &answer)
}

/// Asks the daemon; `None` if none runs.
///
/// # Errors
///
/// If it does not answer.
pub fn ask(path: &Path, question: &Question) -> io::Result<Option<Answer>> {
    let stream = match UnixStream::connect(path) {
        Ok(stream) => stream,
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
            ) =>
        {
            return Ok(None)
        }
        Err(error) => return Err(error),
    };
    send(&stream, question)?;
    let mut line = String::new();
    BufReader::new((&stream).take(MAX_MESSAGE)).read_line(&mut line)?;
    Ok(Some(serde_json::from_str(&line)?))
}

fn send(mut stream: &UnixStream, message: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    stream.write_all(&line)
}
