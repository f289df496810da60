// SPDX-License-Identifier: GPL-2.0

//! The configuration, `/etc/ima-trim.toml`.

use std::fs;
use std::io;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

/// Where the configuration is. Nothing needs to be there: every setting has a default.
pub const PATH: &str = "/etc/ima-trim.toml";

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It cannot be read.
    #[error("{path}: {error}")]
    File {
        /// The file.
        path: PathBuf,
        /// What happened.
        error: io::Error,
    },
    /// It is not understood.
    #[error("{path}: {error}")]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Where and why.
        error: Box<toml::de::Error>,
    },
    /// A value that no setting can have.
    #[error("{path}: {setting} = {value:?} is not {expected}")]
    Value {
        /// The file.
        path: PathBuf,
        /// The setting, with its section.
        setting: &'static str,
        /// Its value.
        value: String,
        /// What it could be.
        expected: &'static str,
    },
}

/// All settings.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// How the whole list is given.
    pub list: List,
    /// Where records are archived.
    pub archive: Archive,
    /// When the kernel's list is trimmed.
    pub trim: Trim,
    /// What tells of the state.
    pub report: Report,
}

/// How the whole list is given.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct List {
    /// Where the file system with the whole list is mounted.
    pub mountpoint: PathBuf,
    /// Whether it covers IMA's own files, at the paths that agents read.
    pub overlay: bool,
    /// The permissions of its files, in octal.
    pub mode: String,
    /// Who owns them: a number or a name.
    pub owner: String,
    /// Their group.
    pub group: String,
}

impl Default for List {
    fn default() -> Self {
        Self {
            mountpoint: "/run/ima-trim/log".into(),
            overlay: true,
            mode: "0440".to_owned(),
            owner: "root".to_owned(),
            group: "root".to_owned(),
        }
    }
}

/// Where records are archived.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Archive {
    /// The directory. What is in it must last for as long as the machine runs, and is of no use to
    /// the boots after it but as a record.
    pub directory: PathBuf,
    /// Archives of how many earlier boots are kept.
    pub keep_boots: usize,
    /// How many bytes they have together, at most.
    pub keep_bytes: u64,
}

impl Default for Archive {
    fn default() -> Self {
        Self {
            directory: "/var/lib/ima-trim".into(),
            keep_boots: 3,
            keep_bytes: 1 << 30,
        }
    }
}

/// What becomes of memory in the kernel: the last word of a request to trim.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reclaim {
    /// `compact`, and one `flush` when what trims have left behind exceeds a bound.
    #[default]
    Auto,
    /// Always `keep`.
    Keep,
    /// Always `compact`.
    Compact,
    /// Always `flush`.
    Flush,
}

/// What violations do to trims.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Violations {
    /// They are archived like other records, where every reader sees them, and trimmed.
    #[default]
    Archive,
    /// Nothing is trimmed until a person has looked at them.
    Stop,
}

/// When the kernel's list is trimmed.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Trim {
    /// Whether it ever is, without being asked to.
    pub automatic: bool,
    /// When it has more records than this,
    pub records: u64,
    /// or more bytes, as in the binary file,
    pub bytes: u64,
    /// but not more often than once in so many seconds.
    pub every: u64,
    /// How memory is given back.
    pub reclaim: Reclaim,
    /// With `auto`: how many records earlier trims may have left in the kernel, compact, before
    /// they are flushed. Each has some 130 bytes.
    pub flush_records: u64,
    /// What violations do.
    pub violations: Violations,
}

impl Default for Trim {
    fn default() -> Self {
        Self {
            automatic: true,
            records: 5_000,
            bytes: 2 << 20,
            every: 10,
            reclaim: Reclaim::Auto,
            flush_records: 100_000,
            violations: Violations::Archive,
        }
    }
}

impl Trim {
    /// The least time between two trims.
    pub fn interval(&self) -> Duration {
        Duration::from_secs(self.every)
    }
}

/// What tells of the state.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Report {
    /// A file for the node exporter's textfile collector, if it is wanted.
    pub metrics: Option<PathBuf>,
}

impl Config {
    /// The configuration in a file; the defaults if there is none and it is the usual one.
    ///
    /// # Errors
    ///
    /// If it cannot be read or understood.
    pub fn read(path: Option<&Path>) -> Result<Self, ConfigError> {
        let named = path.is_some();
        let path = path.unwrap_or(Path::new(PATH));
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound && !named => String::new(),
            Err(error) => {
                return Err(ConfigError::File {
                    path: path.to_owned(),
                    error,
                })
            }
        };
        let config: Self = toml::from_str(&text).map_err(|error| ConfigError::Syntax {
            path: path.to_owned(),
            error: Box::new(error),
        })?;
        config
            .list
            .permissions()
            .map_err(|value| ConfigError::Value {
                path: path.to_owned(),
                setting: "list.mode",
                value,
                expected: "permissions in octal, such as 0440, that let nobody write",
            })?;
        Ok(config)
    }
}

impl List {
    /// The permissions as a number.
    ///
    /// # Errors
    ///
    /// The text itself, if it is none.
    pub fn permissions(&self) -> Result<u32, String> {
        u32::from_str_radix(&self.mode, 8)
            .ok()
            .filter(|mode| mode & !0o555 == 0)
            .ok_or_else(|| self.mode.clone())
    }
}
