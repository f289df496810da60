// SPDX-License-Identifier: GPL-2.0

//! `ima-trim request`: what a verifier sends back to a machine that it accepted.

use std::io::Write;
use std::path::PathBuf;

use ima_trim_pure::instance::Instance;

use super::verifier::about;
use super::verifier::known;
use super::Failure;
use crate::verifier::StateError;

/// Which request.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
It has the values of the last accepted quote, in the banks of SHA-256 or better, with every PCR \
that the list is about; the number of violations among the records that would be trimmed; and the \
instance of the module that was loaded last. Send it to the machine, signed if that demands it. \
The rule is V24 of Documentation/admin-guide/verifier.rst.")]
pub struct Arguments {
    /// What ima-trim verify keeps of the machine
    #[arg(long, value_name = "FILE")]
    pub state: PathBuf,
    /// Fail unless exactly so many violations would be trimmed
    #[arg(long, value_name = "N")]
    pub violations: Option<u64>,
    /// For which load of the module it is: the last one that an event told of, any, or the 32
    /// digits of instance= in its status
    #[arg(long, value_name = "auto|any|HEX", default_value = "auto", value_parser = instance)]
    pub instance: Which,
}

/// For which load of the module a request is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Which {
    /// The one that the last `load` told of. Fails if none did.
    Auto,
    /// Whichever there is.
    Any,
    /// This one.
    One(String),
}

/// Prints the request, in one line.
///
/// # Errors
///
/// If there is no state of an accepted machine.
pub fn run(args: &Arguments, out: &mut dyn Write) -> Result<(), Failure> {
    if !args.state.exists() {
        return Err(about(
            &args.state,
            "there is no such file: ima-trim verify with this --state writes it",
        ));
    }
    let state = known(Some(&args.state))?;
    let instance = match &args.instance {
        Which::Any => None,
        Which::One(instance) => Some(instance.as_str()),
        Which::Auto => Some(state.instance().ok_or_else(|| {
            about(
                &args.state,
                "no event told which instance of the module is loaded: give --instance",
            )
        })?),
    };
    let request = state
        .request(args.violations, instance)
        .map_err(|error| match error {
            StateError::Violations { .. } => Failure::Negative(error.to_string()),
            other => about(&args.state, other),
        })?;
    writeln!(out, "{request}").map_err(|error| Failure::Failed(format!("standard output: {error}")))
}

fn instance(text: &str) -> Result<Which, String> {
    match text {
        "auto" => Ok(Which::Auto),
        "any" => Ok(Which::Any),
        digits => Instance::parse(digits.as_bytes())
            .map(|instance| Which::One(instance.to_string()))
            .ok_or_else(|| "give auto, any, or 32 hexadecimal digits".to_owned()),
    }
}
