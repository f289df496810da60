// SPDX-License-Identifier: GPL-2.0

//! `--boot`: what is archived of an earlier boot.
//!
//! Nothing is asked of the kernel or of a daemon, and nothing is changed. The archive of an earlier
//! boot is no whole list: what was in the kernel when that boot ended, and not archived, is gone. So
//! each command says how many records there are.

use std::fmt;
use std::io;
use std::io::Write;

use super::failed;
use super::Failure;
use crate::archive::boots;
use crate::archive::Archive;
use crate::archive::ArchiveError;
use crate::archive::BootId;
use crate::config::Config;
use crate::kernel;
use crate::record::Records;
use crate::render::View;
use crate::render::SOURCE;

/// Which boot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Which {
    /// The one with this id.
    Id(BootId),
    /// Counted back among those that are archived: 1 is the one before this boot.
    Before(usize),
}

impl Which {
    /// Reads an argument: the id of a boot, or -1, -2 and so on.
    ///
    /// # Errors
    ///
    /// If it is neither.
    pub fn parse(text: &str) -> Result<Self, String> {
        let back = text
            .strip_prefix('-')
            .and_then(|digits| digits.parse().ok());
        match (BootId::parse(text), back) {
            (Some(id), _) => Ok(Self::Id(id)),
            (None, Some(number)) if number > 0 => Ok(Self::Before(number)),
            _ => Err(
                "neither the id of a boot, as of the directories of the archive, nor -1, which is the one before this"
                    .to_owned(),
            ),
        }
    }

    /// The boot, of those that have a segment in the archive, from oldest to youngest.
    fn of(&self, mut archived: Vec<BootId>, running: Option<&BootId>) -> Result<BootId, Failure> {
        archived.retain(|id| Some(id) != running);
        let found = match self {
            Self::Id(id) if Some(id) == running => {
                return Err(Failure::Usage(format!(
                    "{id} is the boot that runs: leave --boot out, and you are given all of it"
                )))
            }
            Self::Id(id) => archived.contains(id).then(|| id.clone()),
            Self::Before(number) => archived.iter().nth_back(number.saturating_sub(1)).cloned(),
        };
        found.ok_or_else(|| {
            let ids: Vec<_> = archived.iter().map(BootId::as_str).collect();
            let there = if ids.is_empty() {
                "there is none of an earlier boot".to_owned()
            } else {
                format!("there are, the oldest first, {}", ids.join(", "))
            };
            Failure::Usage(format!("no archive of the boot {self}: {there}"))
        })
    }
}

impl fmt::Display for Which {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(id) => id.fmt(f),
            Self::Before(number) => write!(f, "-{number}"),
        }
    }
}

/// Its archive.
fn open(config: &Config, which: &Which) -> Result<Archive, Failure> {
    let root = &config.archive.directory;
    let archived = boots(root)
        .map_err(said)?
        .into_iter()
        .filter(|boot| boot.segments > 0)
        .map(|boot| boot.id)
        .collect();
    // Without /proc every boot is an earlier one.
    let running = kernel::boot_id().ok().and_then(|id| BootId::parse(&id));
    let id = which.of(archived, running.as_ref())?;
    Archive::open_earlier(root, &id, &[SOURCE]).map_err(said)
}

/// The verdict on an archive, unless it just cannot be read. Nothing of what is said of a damaged
/// archive of the running boot is true of this one.
fn said(error: ArchiveError) -> Failure {
    match error {
        ArchiveError::Damaged { path, damage } => {
            Failure::Negative(format!("{} is damaged: {damage}", path.display()))
        }
        error => Failure::Failed(error.to_string()),
    }
}

/// Prints the records.
///
/// # Errors
///
/// If there are none, they are damaged, or standard output cannot be written.
pub fn log(config: &Config, which: &Which, view: View) -> Result<(), Failure> {
    let archive = open(config, which)?;
    let mut output = io::stdout().lock();

    for segment in 0..archive.segments() {
        let raw = archive.read_segment(segment).map_err(said)?;
        let mut piece = Vec::with_capacity(raw.len().saturating_mul(2));
        for record in Records::new(&raw) {
            let record = record.map_err(|error| Failure::Negative(error.to_string()))?;
            view.write(&record, &mut piece)
                .map_err(|error| Failure::Failed(error.to_string()))?;
        }
        match output.write_all(&piece) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            other => other.map_err(failed("standard output"))?,
        }
    }
    eprintln!(
        "ima-trim: {} records of the boot {} are archived; what was not when it ended is not among them",
        archive.records(),
        archive.boot()
    );
    Ok(())
}

/// Reads and replays everything, and prints where that leads.
///
/// # Errors
///
/// [`Failure::Negative`] if something is not as it was written.
pub fn verify(config: &Config, which: &Which) -> Result<(), Failure> {
    let archive = open(config, which)?;
    let verified = archive.verify(|_| {}).map_err(said)?;
    let mut output = io::stdout().lock();

    write!(
        output,
        "verified: {} records of the boot {} are archived, {} violations among them; they replay from the values after a reset to\n{}",
        verified.records,
        archive.boot(),
        verified.violations,
        archive.end().text()
    )
    .map_err(failed("standard output"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u32) -> BootId {
        BootId::parse(&format!("{number:08x}-0000-4000-8000-000000000000")).unwrap()
    }

    #[test]
    fn a_boot_is_named_by_its_id_or_counted_back() {
        assert_eq!(Which::parse(id(7).as_str()), Ok(Which::Id(id(7))));
        assert_eq!(Which::parse("-1"), Ok(Which::Before(1)));
        assert_eq!(Which::parse("-12"), Ok(Which::Before(12)));
        for text in ["", "-", "0", "-0", "1", "--1", "-1x", "-x", "7", "last"] {
            assert!(Which::parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn the_boot_that_runs_is_no_earlier_one() {
        let archived = || vec![id(3), id(1), id(2)];
        let which = |text: &str| Which::parse(text).unwrap().of(archived(), Some(&id(2)));
        assert_eq!(which("-1"), Ok(id(1)));
        assert_eq!(which("-2"), Ok(id(3)));
        assert!(matches!(which("-3"), Err(Failure::Usage(_))));
        assert_eq!(which(id(3).as_str()), Ok(id(3)));
        for other in [2, 4] {
            assert!(
                matches!(which(id(other).as_str()), Err(Failure::Usage(_))),
                "{other}"
            );
        }
        // Before a daemon has run in this boot.
        let which = Which::parse("-1").unwrap();
        assert_eq!(which.of(archived(), Some(&id(9))), Ok(id(2)));
        assert_eq!(which.of(archived(), None), Ok(id(2)));
        assert!(matches!(which.of(Vec::new(), None), Err(Failure::Usage(_))));
    }
}
