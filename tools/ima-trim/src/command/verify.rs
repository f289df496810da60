// SPDX-License-Identifier: GPL-2.0

//! `ima-trim verify`, of this machine.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use super::failed;
use super::Failure;
use crate::archive::ArchiveError;
use crate::config::Config;
use crate::daemon;
use crate::kernel::Kernel;
use crate::kernel::KernelError;
use crate::pcrs::Point;
use crate::record::Records;
use crate::render::SOURCE;
use crate::steps;

/// How much is read at once.
const PIECE: usize = 1 << 20;

/// Replays every record since boot, compares with the starting values on the way, and with the TPM
/// at the end, in every bank.
///
/// # Errors
///
/// [`Failure::Negative`] if something differs.
pub fn run(config: &Config) -> Result<(), Failure> {
    if super::is_served()? {
        archive(config)?;
        let path = config.list.mountpoint.join(SOURCE.file_name());
        let kernel = Kernel::new(Path::new(steps::OWN_SECURITYFS));
        let mut file = File::open(&path).map_err(failed(path.display()))?;
        return replay(&kernel, |piece| {
            let mut bytes = (&mut file).take(PIECE as u64);
            bytes.read_to_end(piece).map_err(failed(path.display()))
        });
    }
    let opened = daemon::open(config)?;
    opened.whole.archive().verify(|_| {}).map_err(damaged)?;
    let mut offset = 0;
    replay(&opened.kernel, |piece| {
        let before = piece.len();
        opened.whole.read(SOURCE, offset, PIECE, piece)?;
        let read = piece.len() - before;
        offset += read as u64;
        Ok(read)
    })
}

/// Verifies the archive by itself: a reader of the list is not told what is wrong with it.
fn archive(config: &Config) -> Result<(), Failure> {
    daemon::archive(config)?.verify(|_| {}).map_err(damaged)?;
    Ok(())
}

/// The verdict on an archive, unless it just cannot be read.
fn damaged(error: ArchiveError) -> Failure {
    match error {
        ArchiveError::Damaged { .. } => Failure::Negative(error.to_string()),
        error => Failure::Failed(error.to_string()),
    }
}

/// Replays what `read` appends, until it appends nothing.
fn replay(
    kernel: &Kernel,
    mut read: impl FnMut(&mut Vec<u8>) -> Result<usize, Failure>,
) -> Result<(), Failure> {
    let starting = match kernel.starting() {
        Ok(starting) => Some(starting),
        Err(KernelError::NotLoaded(_)) => None,
        Err(error) => return Err(Failure::Negative(error.to_string())),
    };
    let (banks, pcr) = daemon::banks_of(kernel, starting.as_ref())?;
    let mut point = Point::reset(&banks, pcr);
    // The TPM first: what it has is in the list by then.
    let values = kernel.pcrs_of(starting.as_ref().unwrap_or(&point))?;
    let mut bytes = Vec::new();
    let mut met = starting
        .as_ref()
        .is_none_or(|starting| starting.same_values(&point));
    let mut confirmed = false;

    let holds = |point: &Point| {
        values
            .iter()
            .all(|(bank, pcr, value)| point.get(*bank, *pcr) == Some(value.as_slice()))
    };
    loop {
        let read = read(&mut bytes)?;
        let mut records = Records::new(&bytes);
        for record in records.by_ref() {
            let record = record.map_err(|error| {
                Failure::Negative(format!("record {}: {error}", point.totals().records))
            })?;
            point.extend(&record);
            met = met
                || starting
                    .as_ref()
                    .is_some_and(|starting| starting.same_values(&point));
            confirmed = confirmed || holds(&point);
        }
        let rest = records.rest().to_vec();
        bytes = rest;
        if read == 0 {
            break;
        }
    }
    let totals = point.totals();
    if !met {
        return Err(Failure::Negative(
            "the starting values of the module are at no record of the archive and the list"
                .to_owned(),
        ));
    }
    if !confirmed {
        return Err(Failure::Negative(format!(
            "the {} records of archive and list do not replay to the values of the TPM",
            totals.records
        )));
    }
    let trimmed = starting.map_or(0, |starting| starting.totals().records);
    let names: Vec<&str> = banks.iter().map(|bank| bank.name()).collect();
    println!(
        "verified: {} records since boot, {} violations among them, {trimmed} trimmed; they replay to the TPM in {}",
        totals.records,
        totals.violations,
        names.join(", ")
    );
    Ok(())
}
