// SPDX-License-Identifier: GPL-2.0

//! `ima-trim log`.

use std::fs::File;
use std::io;
use std::io::Write;

use clap::Args;

use super::failed;
use super::Failure;
use crate::algorithm::Algorithm;
use crate::config::Config;
use crate::daemon;
use crate::render::Format;
use crate::render::View;

/// How the list is printed.
#[derive(Args, Clone, Debug)]
pub struct Arguments {
    /// As in binary_runtime_measurements
    #[arg(long, conflicts_with = "ascii")]
    binary: bool,
    /// As in ascii_runtime_measurements; this is the default
    #[arg(long)]
    ascii: bool,
    /// The bank whose digests are shown: sha1, sha256, sha384 or sha512
    #[arg(long, default_value = "sha1", value_parser = bank)]
    bank: Algorithm,
}

fn bank(name: &str) -> Result<Algorithm, String> {
    Algorithm::named(name).ok_or_else(|| "not one of sha1, sha256, sha384 and sha512".to_owned())
}

/// How much is read at once.
const PIECE: usize = 1 << 20;

/// Prints the whole list.
///
/// # Errors
///
/// If it cannot be given as a whole, or standard output cannot be written.
pub fn run(config: &Config, arguments: &Arguments) -> Result<(), Failure> {
    let view = View {
        format: if arguments.binary {
            Format::Binary
        } else {
            Format::Ascii
        },
        algorithm: arguments.bank,
    };
    let mut output = io::stdout().lock();
    // A daemon that runs has the archive, and gives all of it here.
    if super::is_served()? {
        let path = config.list.mountpoint.join(view.file_name());
        let mut file = File::open(&path).map_err(failed(path.display()))?;
        return match io::copy(&mut file, &mut output) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            other => other.map(|_| ()).map_err(failed(path.display())),
        };
    }
    let opened = daemon::open(config)?;
    if !opened.whole.views().contains(&view) {
        return Err(Failure::Usage(format!(
            "IMA has no file {}: the TPM has no such bank",
            view.file_name()
        )));
    }
    let mut offset = 0;
    let mut piece = Vec::new();
    loop {
        piece.clear();
        opened.whole.read(view, offset, PIECE, &mut piece)?;
        if piece.is_empty() {
            return Ok(());
        }
        offset += piece.len() as u64;
        match output.write_all(&piece) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            other => other.map_err(failed("standard output"))?,
        }
    }
}
