// SPDX-License-Identifier: GPL-2.0

//! `ima-trim trim`.

use std::fmt::Display;
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
use crate::daemon;
use crate::keeper::Wanted;
use crate::pcrfile::hex;
use crate::pcrfile::PcrFile;
use crate::progress::Progress;
use crate::signed;
use crate::signed::Signed;

/// What is trimmed, and how.
#[derive(Args, Clone, Debug)]
pub struct Arguments {
    /// Where to: a file with PCR values, as tokens (sha256:10=...) or as tpm2_pcrread, tpm2_quote or
    /// tpm2_checkquote give them, or a signed request; - for standard input; present for the last
    /// record
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

/// What a file asks for.
enum Asked {
    /// What a verifier has signed.
    Signed(Signed),
    /// The rest. What it does not say is as configured.
    Plain(Wanted),
}

/// What a file says.
fn asked(path: &Path) -> Result<Asked, Failure> {
    let text = match path.to_str() {
        Some("present") => return Ok(Asked::Plain(Wanted::default())),
        Some("-") => {
            let mut text = Vec::new();
            io::stdin()
                .read_to_end(&mut text)
                .map_err(failed("standard input"))?;
            text
        }
        _ => fs::read(path).map_err(failed(path.display()))?,
    };
    let wrong = |error: &dyn Display| Failure::Usage(format!("{}: {error}", path.display()));
    if Signed::is_one(&text) {
        let signed = Signed::parse(&text).map_err(|error| wrong(&error))?;
        return Ok(Asked::Signed(signed));
    }
    if let Some(wanted) = request(&text) {
        return Ok(Asked::Plain(wanted));
    }
    let values = PcrFile::parse(&text, None).map_err(|error| wrong(&error))?;
    let mut tokens = String::new();
    for (bank, pcr, value) in values.iter() {
        // Writing to a string does not fail.
        let _ = write!(tokens, "{}:{pcr}={} ", bank.name(), hex(value));
    }
    Ok(Asked::Plain(Wanted {
        to: Some(tokens),
        ..Wanted::default()
    }))
}

/// What a text in the grammar of the module's `trim` asks for, nothing of it left out.
fn request(text: &[u8]) -> Option<Wanted> {
    let request = signed::any().parse_request(text).ok()?;
    let text = std::str::from_utf8(text).ok()?;
    let has = |key: &str| {
        text.split_ascii_whitespace()
            .any(|token| token.starts_with(key))
    };
    let values: Vec<&str> = text
        .split_ascii_whitespace()
        .filter(|token| token.contains(':'))
        .collect();
    Some(Wanted {
        to: Some(values.join(" ")),
        violations: has("violations=").then_some(request.violations),
        reclaim: request.reclaim.map(|mode| mode.as_str()),
        dry_run: request.dry_run,
        instance: request.instance.map(|instance| instance.to_string()),
        archived: false,
    })
}

/// Archives what is to go, and trims.
///
/// # Errors
///
/// Nothing was trimmed then.
pub fn run(config: &Config, arguments: &Arguments) -> Result<(), Failure> {
    let mut wanted = match asked(&arguments.to)? {
        Asked::Plain(wanted) => wanted,
        Asked::Signed(signed) => {
            if arguments.violations.is_some() || arguments.reclaim.is_some() || arguments.dry_run {
                return Err(Failure::Usage(
                    "a signed request says itself how many violations may go, and how".to_owned(),
                ));
            }
            return apply(config, &signed);
        }
    };
    wanted.violations = arguments.violations.or(wanted.violations);
    wanted.reclaim = arguments.reclaim.map(Reclaim::name).or(wanted.reclaim);
    wanted.dry_run |= arguments.dry_run;
    let question = Question::Trim {
        to: wanted.to.clone(),
        violations: wanted.violations,
        reclaim: wanted.reclaim.map(str::to_owned),
        dry_run: wanted.dry_run,
        instance: wanted.instance.clone(),
    };
    let answer = match ask(&question)? {
        Some(answer) => answer,
        None => {
            let mut opened = super::open(config)?;
            let _progress = Progress::new("archiving and trimming");
            daemon::answer(opened.keeper.trim(&wanted)?)
        }
    };
    print(&answer)
}

/// Hands a signed request to the module.
fn apply(config: &Config, signed: &Signed) -> Result<(), Failure> {
    let question = Question::Apply {
        request: hex(signed.der()),
    };
    let answer = match ask(&question)? {
        Some(answer) => answer,
        None => {
            let mut opened = super::open(config)?;
            let _progress = Progress::new("archiving and trimming");
            opened
                .keeper
                .apply(signed)?
                .map_or(Answer::Done, daemon::answer)
        }
    };
    print(&answer)
}

fn print(answer: &Answer) -> Result<(), Failure> {
    match answer {
        Answer::Trimmed {
            result,
            records,
            violations,
            total,
        } => println!("{result}: {records} records, {violations} violations among them; {total} are trimmed since boot"),
        Answer::Done => println!("restored"),
        other => return Err(Failure::Failed(format!("the daemon answered {other:?}"))),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_a_request_is_left_out() {
        let value = format!("sha256:10={}", "ab".repeat(32));
        let instance = "0123456789abcdef".repeat(2);
        let text = format!("{value} violations=0 dry-run\nflush instance={instance}\n");
        assert_eq!(
            request(text.as_bytes()),
            Some(Wanted {
                to: Some(value.clone()),
                violations: Some(0),
                reclaim: Some("flush"),
                dry_run: true,
                instance: Some(instance),
                archived: false,
            })
        );
        let plain = Wanted {
            to: Some(value.clone()),
            ..Wanted::default()
        };
        assert_eq!(request(value.as_bytes()), Some(plain));
        for other in [
            &b"sha256:10=ab"[..],
            b"dry-run",
            b"\xff",
            b"pcrs:\n  sha256:\n",
        ] {
            assert_eq!(request(other), None);
        }
    }
}
