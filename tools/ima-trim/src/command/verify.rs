// SPDX-License-Identifier: GPL-2.0

//! `ima-trim verify`, of this machine.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use ima_trim_pure::bank::Pcr;

use super::earlier;
use super::earlier::Which;
use super::failed;
use super::Failure;
use crate::algorithm::Algorithm;
use crate::archive::Archive;
use crate::archive::ArchiveError;
use crate::config::Config;
use crate::daemon;
use crate::keeper::drop_reached;
use crate::kernel::Kernel;
use crate::kernel::KernelError;
use crate::pcrs::Point;
use crate::progress::Progress;
use crate::record::Records;
use crate::render::SOURCE;
use crate::steps;

/// How much is read at once.
const PIECE: usize = 1 << 20;

/// Replays every record since boot, compares with the starting values on the way, and with the TPM
/// at the end, in every bank; or what is archived of an earlier boot.
///
/// # Errors
///
/// [`Failure::Negative`] if something differs.
pub fn run(config: &Config, boot: Option<&Which>) -> Result<(), Failure> {
    if let Some(boot) = boot {
        return earlier::verify(config, boot);
    }
    if super::is_served()? {
        // By itself: a reader of the list is not told what is wrong with it.
        sound(&daemon::archive(config)?)?;
        let path = config.list.mountpoint.join(SOURCE.file_name());
        let kernel = Kernel::new(Path::new(steps::OWN_SECURITYFS));
        let mut file = File::open(&path).map_err(failed(path.display()))?;
        let size = file.metadata().map_err(failed(path.display()))?.len();
        return replay(&kernel, size, |piece| {
            let mut bytes = (&mut file).take(PIECE as u64);
            bytes.read_to_end(piece).map_err(failed(path.display()))
        });
    }
    let opened = super::open(config)?;
    sound(opened.whole.archive())?;
    let mut offset = 0;
    replay(&opened.kernel, opened.whole.known_size(SOURCE), |piece| {
        let before = piece.len();
        opened.whole.read(SOURCE, offset, PIECE, piece)?;
        let read = piece.len() - before;
        offset += read as u64;
        Ok(read)
    })
}

/// Verifies an archive.
fn sound(archive: &Archive) -> Result<(), Failure> {
    let progress = Progress::new("verifying the archive");
    archive
        .verify(|now| progress.at(now.records, now.of))
        .map_err(damaged)?;
    Ok(())
}

/// The verdict on an archive, unless it just cannot be read.
fn damaged(error: ArchiveError) -> Failure {
    match error {
        ArchiveError::Damaged { .. } => Failure::Negative(error.to_string()),
        error => Failure::Failed(error.to_string()),
    }
}

/// Replays what `read` appends, until it appends nothing, and says what was found. That is about `size`
/// bytes.
fn replay(
    kernel: &Kernel,
    size: u64,
    mut read: impl FnMut(&mut Vec<u8>) -> Result<usize, Failure>,
) -> Result<(), Failure> {
    let starting = match kernel.starting() {
        Ok(starting) => Some(starting),
        Err(KernelError::NotLoaded(_)) => None,
        Err(error) => return Err(Failure::Negative(error.to_string())),
    };
    let (banks, pcr) = daemon::banks_of(kernel, starting.as_ref())?;
    let reset = Point::reset(&banks, pcr);
    // The TPM first: what it has is in the list by then.
    let values = kernel.pcrs_of(starting.as_ref().unwrap_or(&reset))?;
    let progress = Progress::new("replaying the list");
    let mut replayed = 0;
    let read = |bytes: &mut Vec<u8>| {
        let read = read(bytes)?;
        replayed += read as u64;
        progress.at(replayed, size);
        Ok(read)
    };
    let totals = compare(reset, starting.as_ref(), &values, read)?.totals();
    drop(progress);
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

/// Replays what `read` appends, until it appends nothing. There must be a record that leads to the
/// starting values, and one to each value of the TPM.
fn compare(
    mut point: Point,
    starting: Option<&Point>,
    values: &[(Algorithm, Pcr, Vec<u8>)],
    mut read: impl FnMut(&mut Vec<u8>) -> Result<usize, Failure>,
) -> Result<Point, Failure> {
    let mut met = starting.is_none_or(|starting| starting.same_values(&point));
    // Each value for itself, as records come between the readings of two.
    let mut left: Vec<_> = values.iter().collect();
    drop_reached(&mut left, &point);

    let mut bytes = Vec::new();
    loop {
        let read = read(&mut bytes)?;
        let mut records = Records::new(&bytes);
        for record in records.by_ref() {
            let record = record.map_err(|error| {
                Failure::Negative(format!("record {}: {error}", point.totals().records))
            })?;
            point.extend(&record);
            met = met || starting.is_some_and(|starting| starting.same_values(&point));
            drop_reached(&mut left, &point);
        }
        let rest = records.rest().to_vec();
        bytes = rest;
        if read == 0 {
            break;
        }
    }
    if !met {
        return Err(Failure::Negative(
            "the starting values of the module are at no record of the archive and the list"
                .to_owned(),
        ));
    }
    if !left.is_empty() {
        return Err(Failure::Negative(format!(
            "the {} records of archive and list do not replay to the values of the TPM",
            point.totals().records
        )));
    }
    Ok(point)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PCR: u32 = 10;

    /// Records that differ in one byte.
    fn records() -> Vec<Vec<u8>> {
        let record = |byte: u8| {
            let sized =
                |bytes: &[u8]| [(bytes.len() as u32).to_ne_bytes().as_slice(), bytes].concat();
            let digest = sized(&[b"sha256:\0".as_slice(), &[byte; 32]].concat());
            let data = sized(&[digest, sized(b"/opt/file\0")].concat());
            let header = [PCR.to_ne_bytes().as_slice(), &[1; 20]].concat();
            [header, sized(b"ima-ng"), data].concat()
        };
        (0..5).map(record).collect()
    }

    /// The points after each of them, the one before the first included.
    fn points() -> Vec<Point> {
        let pcr = Pcr::new(PCR).unwrap();
        let mut point = Point::reset(&[Algorithm::Sha1, Algorithm::Sha256], pcr);
        let mut points = vec![point.clone()];
        for bytes in records() {
            point.extend(&Records::new(&bytes).next().unwrap().unwrap());
            points.push(point.clone());
        }
        points
    }

    /// What comes of these values of the two banks, and starting values.
    fn judge(sha1: &Point, sha256: &Point, starting: Option<&Point>) -> Result<Point, Failure> {
        let pcr = Pcr::new(PCR).unwrap();
        let values = [(Algorithm::Sha1, sha1), (Algorithm::Sha256, sha256)]
            .map(|(bank, point)| (bank, pcr, point.get(bank, pcr).unwrap().to_vec()));
        let bytes = records().concat();
        let mut list = bytes.as_slice();
        let reset = points().swap_remove(0);
        compare(reset, starting, &values, |piece| {
            let mut next = Read::take(&mut list, 100);
            Ok(next.read_to_end(piece).unwrap())
        })
    }

    #[test]
    fn records_may_come_between_two_values() {
        let points = points();
        for first in &points {
            for second in &points {
                let end = judge(first, second, Some(first)).unwrap();
                assert_eq!(end.totals().records, 5);
            }
        }
    }

    #[test]
    fn each_value_must_be_reached() {
        let points = points();
        let mut other = points[5].clone();
        let bytes = &records()[0];
        other.extend(&Records::new(bytes).next().unwrap().unwrap());
        for (sha1, sha256, starting) in [
            (&other, &points[5], None),
            (&points[5], &other, None),
            (&points[5], &points[5], Some(&other)),
        ] {
            let result = judge(sha1, sha256, starting);
            assert!(matches!(result, Err(Failure::Negative(_))), "{result:?}");
        }
    }
}
