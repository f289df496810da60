// SPDX-License-Identifier: GPL-2.0

//! `ima-trim state`: what one verifier knows of a machine, for another one to go on from.

use std::io::Write;
use std::path::PathBuf;

use super::verifier::about;
use super::verifier::known;
use super::verifier::read;
use super::verifier::Successor;
use super::Failure;
use crate::quote::PublicKey;
use crate::signed::sign_bytes;
use crate::verifier::Export;

/// What is done with a state.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Print what is known of a machine, signed
    Export(ExportArguments),
    /// Take over what another verifier knows of a machine
    Import(ImportArguments),
}

/// What is exported.
#[derive(Debug, clap::Args)]
pub struct ExportArguments {
    /// What ima-trim verify keeps of the machine
    #[arg(long, value_name = "FILE")]
    pub state: PathBuf,
    /// The private key of this verifier: a file, or a URI that openssl knows
    #[arg(long, value_name = "KEY")]
    pub sign: String,
}

/// What is imported.
#[derive(Debug, clap::Args)]
pub struct ImportArguments {
    /// Where ima-trim verify is to keep it. There must be no such file yet
    #[arg(long, value_name = "FILE")]
    pub state: PathBuf,
    /// The public key of a verifier that is trusted like this one
    #[arg(long, value_name = "PEM")]
    pub trust_key: PathBuf,
    /// What it has exported; - for standard input
    #[arg(value_name = "FILE", default_value = "-")]
    pub export: PathBuf,
}

/// Exports or imports.
///
/// # Errors
///
/// If there is no state, or it is not signed by that key.
pub fn run(command: &Command, out: &mut dyn Write) -> Result<(), Failure> {
    match command {
        Command::Export(args) => export(args, out),
        Command::Import(args) => import(args),
    }
}

fn export(args: &ExportArguments, out: &mut dyn Write) -> Result<(), Failure> {
    let state = known(Some(&args.state))?;
    let export = Export::new(&state, |bytes| -> Result<_, Failure> {
        sign_bytes(bytes, &args.sign).map_err(|error| Failure::Failed(error.to_string()))
    })?;
    writeln!(out, "{export}").map_err(|error| Failure::Failed(format!("standard output: {error}")))
}

fn import(args: &ImportArguments) -> Result<(), Failure> {
    let key =
        PublicKey::parse(&read(&args.trust_key)?).map_err(|error| about(&args.trust_key, error))?;
    let bytes = read(&args.export)?;
    let export = Export::parse(&bytes).map_err(|error| about(&args.export, error))?;
    let state = export
        .verify(&key)
        .map_err(|error| Failure::Negative(format!("{}: {error}", args.export.display())))?;
    let successor = Successor::begin(&args.state)?;
    if args.state.exists() {
        return Err(about(
            &args.state,
            "there is a state already: what this verifier knows itself is not replaced",
        ));
    }
    let text = state.to_json().map_err(|error| about(&args.state, error))?;
    successor.replace(text.as_bytes())
}
