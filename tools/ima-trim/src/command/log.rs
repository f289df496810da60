// SPDX-License-Identifier: GPL-2.0

//! `ima-trim log`.

use std::fs::File;
use std::io;
use std::io::IsTerminal;
use std::io::Read;
use std::io::StdoutLock;
use std::io::Write;

use clap::Args;

use super::earlier;
use super::earlier::Which;
use super::failed;
use super::Failure;
use crate::algorithm::Algorithm;
use crate::config::Config;
use crate::progress::Progress;
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
    /// What is archived of an earlier boot: its id, or -1 for the boot before this one, -2 for that
    /// before it
    #[arg(long, value_name = "BOOT", value_parser = Which::parse, allow_hyphen_values = true)]
    boot: Option<Which>,
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
    if let Some(boot) = &arguments.boot {
        return earlier::log(config, boot, view);
    }
    let mut output = Output::new();
    // A daemon that runs has the archive, and gives all of it here.
    if super::is_served()? {
        let path = config.list.mountpoint.join(view.file_name());
        let mut file = File::open(&path).map_err(failed(path.display()))?;
        let size = file.metadata().map_err(failed(path.display()))?.len();
        return output.copy(size, |piece| {
            piece.resize(PIECE, 0);
            let read = file.read(piece).map_err(failed(path.display()))?;
            piece.truncate(read);
            Ok(())
        });
    }
    let opened = super::open(config)?;
    if !opened.whole.views().contains(&view) {
        return Err(Failure::Usage(format!(
            "IMA has no file {}: the TPM has no such bank",
            view.file_name()
        )));
    }
    let mut offset = 0;
    output.copy(opened.whole.known_size(view), |piece| {
        opened.whole.read(view, offset, PIECE, piece)?;
        offset += piece.len() as u64;
        Ok(())
    })
}

/// Standard output.
struct Output {
    file: StdoutLock<'static>,
    /// Whether a person sees what is printed: that is progress enough, and would be broken by more.
    seen: bool,
}

impl Output {
    fn new() -> Self {
        let file = io::stdout().lock();
        let seen = file.is_terminal();
        Self { file, seen }
    }

    /// Prints what `read` gives, until it gives nothing: about `size` bytes.
    fn copy(
        &mut self,
        size: u64,
        mut read: impl FnMut(&mut Vec<u8>) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let progress = (!self.seen).then(|| Progress::new("printing the list"));
        let mut piece = Vec::new();
        let mut printed = 0;
        loop {
            piece.clear();
            read(&mut piece)?;
            let written = if piece.is_empty() {
                self.file.flush()
            } else {
                self.file.write_all(&piece)
            };
            match written {
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
                other => other.map_err(failed("standard output"))?,
            }
            if piece.is_empty() {
                return Ok(());
            }
            printed += piece.len() as u64;
            if let Some(progress) = &progress {
                progress.at(printed, size);
            }
        }
    }
}
