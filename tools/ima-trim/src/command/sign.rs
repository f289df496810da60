// SPDX-License-Identifier: GPL-2.0

//! `ima-trim sign`: what makes a request one of the verifier's.

use std::io;
use std::io::IsTerminal;
use std::io::Write;
use std::path::PathBuf;

use super::verifier::read;
use super::Failure;
use crate::signed;

/// What is signed, and with what.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The result is PKCS#7 in DER with the request enclosed: put it into the directory 'requests' of the \
machine's archive, give it to 'ima-trim trim --to', or write it into the module's file yourself. \
The key must sign nothing but requests: see 'Keys' in Documentation/admin-guide/signatures.rst.")]
pub struct Arguments {
    /// The request, as ima-trim request prints it; - for standard input
    #[arg(value_name = "FILE", default_value = "-")]
    pub request: PathBuf,
    /// The certificate that is built into the module, or one that its key has issued
    #[arg(long, value_name = "PEM")]
    pub cert: PathBuf,
    /// Its private key: a file, or a URI such as pkcs11:..., for which openssl must be configured
    #[arg(long, value_name = "KEY")]
    pub key: String,
}

/// Prints the signed request.
///
/// # Errors
///
/// If it is no request, or cannot be signed.
pub fn run(args: &Arguments) -> Result<(), Failure> {
    if io::stdout().is_terminal() {
        return Err(Failure::Usage(
            "a signed request is binary: write it into a file".to_owned(),
        ));
    }
    let text = read(&args.request)?;
    // The line's end is no part of what ima-trim request prints.
    let request = text.strip_suffix(b"\n").unwrap_or(&text);
    let der = signed::sign(request, &args.cert, &args.key)
        .map_err(|error| Failure::Failed(error.to_string()))?;
    io::stdout()
        .write_all(&der)
        .map_err(|error| Failure::Failed(format!("standard output: {error}")))
}
