// SPDX-License-Identifier: GPL-2.0

//! `ima-trim trim`.

use std::fmt::Write;
use std::fs;
use std::io;
use std::io::Read;
use std::path::Path;
use std::path::PathBuf;

use clap::Args;
use clap::ValueEnum;

use super::ask;
use super::failed;
use super::Failure;
use crate::config::Config;
use crate::control::Answer;
use crate::control::Question;
use crate::keeper::Wanted;
use crate::pcrfile::PcrFile;
use crate::progress::Progress;

/// What is trimmed, and how.
#[derive(Args, Clone, Debug)]
pub struct Arguments {
    /// Where to: a file with PCR values, as tokens (sha256:10=...) or as tpm2_pcrread, tpm2_quote or
    /// tpm2_checkquote give them; - for standard input; present for the last record
    #[arg(long, value_name = "FILE", default_value = "present")]
    to: PathBuf,
    /// How many violations were looked at and may go with the rest [default: as configured]
    #[arg(long, value_name = "NUMBER")]
    violations: Option<u64>,
    /// Match and check, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// How memory is given back [default: as configured]
    #[arg(long, value_enum)]
    reclaim: Option<Reclaim>,
}

/// The modes of the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Reclaim {
    /// Free the template data
    Keep,
    /// Free that, and shrink what is left to recognise duplicates
    Compact,
    /// Free everything; files that were measured may be measured again
    Flush,
}

impl Reclaim {
    const fn name(self) -> &'static str {
        match self {
            Self::Keep => "keep",
            Self::Compact => "compact",
            Self::Flush => "flush",
        }
    }
}

/// The values that a file has, as tokens.
fn values(path: &Path) -> Result<Option<String>, Failure> {
    let text = match path.to_str() {
        Some("present") => return Ok(None),
        Some("-") => {
            let mut text = Vec::new();
            io::stdin()
                .read_to_end(&mut text)
                .map_err(failed("standard input"))?;
            text
        }
        _ => fs::read(path).map_err(failed(path.display()))?,
    };
    let values = PcrFile::parse(&text, None)
        .map_err(|error| Failure::Usage(format!("{}: {error}", path.display())))?;
    let mut tokens = String::new();
    for (bank, pcr, value) in values.iter() {
        // Writing to a string does not fail.
        let _ = write!(tokens, "{}:{pcr}=", bank.name());
        for byte in value {
            let _ = write!(tokens, "{byte:02x}");
        }
        tokens.push(' ');
    }
    Ok(Some(tokens))
}

/// Archives what is to go, and trims.
///
/// # Errors
///
/// Nothing was trimmed then.
pub fn run(config: &Config, arguments: &Arguments) -> Result<(), Failure> {
    let to = values(&arguments.to)?;
    let question = Question::Trim {
        to: to.clone(),
        violations: arguments.violations,
        reclaim: arguments.reclaim.map(|reclaim| reclaim.name().to_owned()),
        dry_run: arguments.dry_run,
    };
    let (result, records, violations, total) = match ask(&question)? {
        Some(Answer::Trimmed {
            result,
            records,
            violations,
            total,
        }) => (result, records, violations, total),
        Some(other) => return Err(Failure::Failed(format!("the daemon answered {other:?}"))),
        None => {
            let mut opened = super::open(config)?;
            let _progress = Progress::new("archiving and trimming");
            let trimmed = opened.keeper.trim(&Wanted {
                to,
                violations: arguments.violations,
                reclaim: arguments.reclaim.map(Reclaim::name),
                dry_run: arguments.dry_run,
                archived: false,
            })?;
            (
                trimmed.outcome.result,
                trimmed.outcome.records,
                trimmed.outcome.violations,
                trimmed.records,
            )
        }
    };
    println!("{result}: {records} records, {violations} violations among them; {total} are trimmed since boot");
    Ok(())
}
