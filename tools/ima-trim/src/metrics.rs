// SPDX-License-Identifier: GPL-2.0

//! The state as the node exporter's textfile collector reads it.

use std::fmt::Write as _;
use std::fs;
use std::fs::OpenOptions;
use std::fs::Permissions;
use std::io;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::control::State;

/// Writes the file anew. It is replaced as a whole, as its reader does not wait.
///
/// # Errors
///
/// If it cannot be written.
pub(crate) fn write(path: &Path, state: &State) -> io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".tmp");
    // The directory may be somebody else's, who could have anything there.
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(&temporary)?;
    file.write_all(text(state).as_bytes())?;
    // The collector is another user.
    file.set_permissions(Permissions::from_mode(0o644))?;
    fs::rename(&temporary, path)
}

/// The metrics, in the text format of Prometheus.
fn text(state: &State) -> String {
    let mut text = String::new();
    let mut metric = |name: &str, kind: &str, help: &str, value: u64| {
        // Writing to a string does not fail.
        let _ = writeln!(
            text,
            "# HELP ima_trim_{name} {help}\n# TYPE ima_trim_{name} {kind}\nima_trim_{name} {value}"
        );
    };
    metric(
        "records_total",
        "counter",
        "Records of the measurement list since boot.",
        state.records,
    );
    metric(
        "archived_records_total",
        "counter",
        "Records in the archive.",
        state.archived,
    );
    metric(
        "trimmed_records_total",
        "counter",
        "Records trimmed from the kernel's list.",
        state.trimmed,
    );
    metric(
        "last_trim_timestamp_seconds",
        "gauge",
        "When the last trim was.",
        state.last_trim.unwrap_or(0),
    );
    metric(
        "overlay",
        "gauge",
        "Whether IMA's own files are covered.",
        u64::from(state.overlay),
    );
    metric(
        "held",
        "gauge",
        "Whether the module is held.",
        u64::from(state.held),
    );
    metric(
        "problems",
        "gauge",
        "How many things are wrong: see ima-trim status.",
        state.problems.len() as u64,
    );
    text
}
