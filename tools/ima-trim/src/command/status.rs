// SPDX-License-Identifier: GPL-2.0

//! `ima-trim status`.

use std::path::Path;
use std::time::Duration;
use std::time::SystemTime;
use std::time::UNIX_EPOCH;

use clap::Args;
use serde::Serialize;

use super::Failure;
use crate::control;
use crate::control::Answer;
use crate::control::Question;
use crate::control::State;
use crate::kernel;
use crate::kernel::Kernel;
use crate::mounts;
use crate::steps;

/// How it is shown.
#[derive(Args, Clone, Debug)]
pub struct Arguments {
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// All that is shown.
#[derive(Debug, Serialize)]
struct Report {
    /// What the module's `status` says; nothing if it is not loaded.
    module: Option<serde_json::Map<String, serde_json::Value>>,
    /// What the daemon says; nothing if none runs.
    daemon: Option<State>,
    /// Records in the kernel's list.
    kernel_records: Option<u64>,
    /// Processes that have the kernel's own files open.
    readers: Vec<Reader>,
    /// Of each mount namespace in which the usual path leads to the kernel's own files, though they
    /// are covered here, one process.
    namespaces: Vec<Reader>,
    /// The files of IMA that should be covered and are not.
    uncovered: Vec<String>,
    /// How many processes could not be looked at.
    unknown: usize,
    /// What is wrong, and what to do.
    problems: Vec<String>,
}

/// A process that reads, or may read, what the kernel itself has.
#[derive(Debug, Serialize)]
struct Reader {
    pid: u32,
    command: String,
}

impl From<mounts::Process> for Reader {
    fn from(process: mounts::Process) -> Self {
        Self {
            pid: process.pid,
            command: process.command,
        }
    }
}

/// Shows the state.
///
/// # Errors
///
/// [`Failure::Negative`] if something is wrong.
pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    let own = Path::new(steps::OWN_SECURITYFS);
    let securityfs = if own.join("ima").exists() {
        own
    } else {
        Path::new(kernel::SECURITYFS)
    };
    let report = gather(&Kernel::new(securityfs));
    if arguments.json {
        let text = serde_json::to_string_pretty(&report)
            .map_err(|error| Failure::Failed(error.to_string()))?;
        println!("{text}");
    } else {
        print(&report);
    }
    match report.problems.len() {
        0 => Ok(()),
        1 => Err(Failure::Negative("there is a problem".to_owned())),
        number => Err(Failure::Negative(format!("there are {number} problems"))),
    }
}

fn gather(kernel: &Kernel) -> Report {
    let mut problems = Vec::new();
    let module = match kernel.status() {
        Ok(status) => Some(
            status
                .iter()
                .map(|(key, value)| (key.to_owned(), value.into()))
                .collect::<serde_json::Map<_, _>>(),
        ),
        Err(error) => {
            problems.push(error.to_string());
            None
        }
    };
    let says = |key: &str| module.as_ref()?.get(key)?.as_str();
    if says("base").is_some_and(|base| base == "unknown") {
        problems.push(
            "the module does not know the starting values: run 'ima-trim restore'".to_owned(),
        );
    }
    if says("evidence").is_some_and(|evidence| evidence == "none") {
        problems.push(
            "trims leave no evidence in the list: give IMA's policy the rule 'measure func=CRITICAL_DATA label=ima_trim'"
                .to_owned(),
        );
    }
    let daemon = match control::ask(Path::new(control::SOCKET), &Question::Status) {
        Ok(Some(Answer::Status(state))) => Some(*state),
        Ok(None) => {
            problems.push("no daemon runs: nothing is archived or trimmed, and nobody is given the whole list. Run 'systemctl start ima-trim'".to_owned());
            None
        }
        Ok(Some(other)) => {
            problems.push(format!("the daemon answered {other:?}"));
            None
        }
        Err(error) => {
            problems.push(format!("{}: {error}", control::SOCKET));
            None
        }
    };
    if let Some(state) = &daemon {
        problems.extend(state.problems.iter().cloned());
        problems.extend(state.waits_for.iter().cloned());
        if let Some(refused) = &state.refused {
            problems.push(format!(
                "the verifier's last request was refused: {refused}"
            ));
        }
        if let Some(reason) = &state.overlay_refused {
            problems.push(format!("IMA's own files are not covered: {reason}"));
        }
    }
    let kernel_records = kernel
        .count()
        .map_err(|error| problems.push(error.to_string()))
        .ok();
    let seen = mounts::readers(kernel.ima())
        .map_err(|error| problems.push(error.to_string()))
        .unwrap_or_default();
    let unknown = seen.unknown;
    if unknown > 0 {
        problems.push(format!(
            "{unknown} processes could not be looked at, and may keep trims from happening: run this as root"
        ));
    }
    let readers: Vec<Reader> = seen.processes.into_iter().map(Reader::from).collect();
    for reader in &readers {
        problems.push(format!(
            "process {} ({}) has the kernel's own list open, which keeps trims from happening: restart it, so that it opens the file that covers it",
            reader.pid, reader.command
        ));
    }
    let (namespaces, uncovered) = match &daemon {
        Some(state) if state.overlay => beside(state, kernel, &mut problems),
        _ => Default::default(),
    };
    Report {
        module,
        daemon,
        kernel_records,
        readers,
        namespaces,
        uncovered,
        unknown,
        problems,
    }
}

/// Who is not given the whole list though IMA's own files are covered: in which mount namespaces the
/// files are the kernel's, and which are the kernel's here.
fn beside(
    state: &State,
    kernel: &Kernel,
    problems: &mut Vec<String>,
) -> (Vec<Reader>, Vec<String>) {
    let usual = steps::usual();
    let uncovered = steps::uncovered(&state.mountpoint)
        .map_err(|error| problems.push(error.to_string()))
        .unwrap_or_default();
    if !uncovered.is_empty() {
        problems.push(format!(
            "somebody has unmounted what covered {} in {}: readers get the list without what was trimmed, and keep trims from happening. Run 'systemctl restart ima-trim', and restart who reads these files",
            uncovered.join(", "),
            usual.display()
        ));
    }
    let mut processes = mounts::namespaces(kernel.ima(), &usual)
        .map_err(|error| problems.push(error.to_string()))
        .map_or_else(|()| Vec::new(), |seen| seen.processes);
    // The daemon has mounts of its own, and reads where nothing is covered.
    processes.retain(|process| process.pid != state.pid);
    for process in &processes {
        problems.push(format!(
            "in the mount namespace of process {} ({}) IMA's own files are not covered: who reads them there gets the list without what was trimmed, and keeps trims from happening. Restart it, or the container that it is of",
            process.pid, process.command
        ));
    }
    (processes.into_iter().map(Reader::from).collect(), uncovered)
}

fn print(report: &Report) {
    let line = |name: &str, value: &str| println!("{name:<10}{value}");
    match &report.module {
        Some(module) => {
            let get = |key: &str| {
                module
                    .get(key)
                    .and_then(|value| value.as_str())
                    .unwrap_or("?")
            };
            line(
                "module",
                &format!(
                    "loaded, base {}, guard {}, evidence {}, {} trims of {} records, {} violations among them",
                    get("base"),
                    get("guard"),
                    get("evidence"),
                    get("trims"),
                    get("records_trimmed"),
                    get("violations_trimmed"),
                ),
            );
        }
        None => line("module", "not loaded"),
    }
    if let Some(records) = report.kernel_records {
        line("kernel", &format!("{records} records in memory"));
    }
    match &report.daemon {
        Some(state) => {
            line(
                "daemon",
                &format!("runs (pid {}) since {}", state.pid, ago(state.since)),
            );
            if state.serving {
                line(
                    "list",
                    &format!(
                        "{} records since boot, {} archived, {} trimmed",
                        state.records, state.archived, state.trimmed
                    ),
                );
            } else {
                line("list", "not served");
            }
            line("archive", &state.archive.display().to_string());
            let covers = if state.overlay {
                ", over IMA's own files"
            } else {
                ""
            };
            line("files", &format!("{}{covers}", state.mountpoint.display()));
            match state.last_trim {
                Some(time) => line("last trim", &ago(time)),
                None => line("last trim", "none since it runs"),
            }
            if let Some(signers) = &state.signers {
                line(
                    "requests",
                    &format!(
                        "signed ones only, by one of {} certificates; {} wait in {}",
                        signers.len(),
                        state.waiting.len(),
                        state.requests.display()
                    ),
                );
                for signer in signers {
                    line("", &format!("sha256:{signer}"));
                }
            }
        }
        None => line("daemon", "does not run"),
    }
    for problem in &report.problems {
        line("problem", problem);
    }
    if report.problems.is_empty() {
        line("problems", "none");
    }
}

/// How long ago a time in seconds since the epoch was.
fn ago(time: u64) -> String {
    let past = SystemTime::now()
        .duration_since(UNIX_EPOCH + Duration::from_secs(time))
        .unwrap_or_default()
        .as_secs();
    match past {
        0..=119 => format!("{past} s ago"),
        120..=7199 => format!("{} min ago", past / 60),
        7200..=172_799 => format!("{} h ago", past / 3600),
        _ => format!("{} days ago", past / 86400),
    }
}
