// SPDX-License-Identifier: GPL-2.0

//! A list of which every record can be told from its number, and directories to archive it in.
#![allow(dead_code, unreachable_pub, missing_docs)]

use std::ops::Range;
use std::path::Path;
use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use ima_trim::algorithm::Algorithm;
use ima_trim::archive::BootId;
use ima_trim::pcrs::Point;
use ima_trim::record::Records;
use ima_trim::render::View;
use ima_trim_pure::bank::Pcr;

use super::common::ima_ng;

/// The record of this number: every 7th is a violation, every 11th in PCR 11.
pub fn record(number: u64) -> Vec<u8> {
    let name = "x".repeat(usize::try_from(number % 13).unwrap());
    let build = ima_ng(format!("/opt/{number}/{name}").as_bytes());
    let build = if number % 11 == 10 {
        build.pcr(11)
    } else {
        build
    };
    if number % 7 == 6 {
        build.violation().bytes()
    } else {
        build.bytes()
    }
}

pub fn records(numbers: Range<u64>) -> Vec<u8> {
    numbers.flat_map(record).collect()
}

pub fn start() -> Point {
    Point::reset(&[Algorithm::Sha256, Algorithm::Sha1], Pcr::new(10).unwrap())
}

/// What the first so many records lead to.
pub fn point(records: u64) -> Point {
    let mut point = start();
    for record in Records::new(&self::records(0..records)) {
        point.extend(&record.unwrap());
    }
    point
}

pub fn views() -> Vec<View> {
    View::all().collect()
}

pub fn boot(number: u32) -> BootId {
    BootId::parse(&format!("{number:08x}-0000-4000-8000-000000000000\n")).unwrap()
}

/// A directory that is removed when it is dropped.
pub struct Scratch(PathBuf);

impl Scratch {
    pub fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);

        let next = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("ima-trim-archive-{}-{next}", std::process::id());
        // Thousands of times fsync(2) take long on a disk, and no test here can cut its power.
        let memory = Path::new("/dev/shm");
        let path = if memory.is_dir() {
            memory.join(name)
        } else {
            std::env::temp_dir().join(name)
        };
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// A directory for archives, which is not there yet.
    pub fn root(&self) -> PathBuf {
        self.0.join("ima-trim")
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
