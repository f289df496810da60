// SPDX-License-Identifier: GPL-2.0

//! The format of a segment: two lines of text, then records.
//!
//! `Documentation/admin-guide/archive.rst` describes it for people.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::Error as _;
use serde::Deserialize;
use serde::Deserializer;
use serde::Serialize;
use serde::Serializer;
use sha2::Digest;

use crate::archive::BootId;
use crate::archive::Damage;
use crate::pcrs::Point;

/// The number of the format that is written, and the highest that is read.
pub(super) const VERSION: u32 = 1;

/// The most bytes that the lines before the records may have. All 24 PCRs in eight banks, twice,
/// are less than half of this.
pub(super) const MAX_HEADER: usize = 128 << 10;

/// How the first line begins. The number of the format and the header's SHA-256 follow.
const MAGIC: &[u8] = b"ima-trim segment ";

/// How the name of a segment ends.
pub(super) const SUFFIX: &str = ".segment";

/// A SHA-256 digest, of 32 bytes. As text it is 64 lower case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Sha256([u8; 32]);

impl Sha256 {
    /// That of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self(sha2::Sha256::digest(bytes).into())
    }

    fn parse(text: &[u8]) -> Option<Self> {
        let mut digest = [0; 32];

        if text.len() != 2 * digest.len() {
            return None;
        }
        for (byte, pair) in digest.iter_mut().zip(text.chunks_exact(2)) {
            // from_str_radix() alone would take a sign and upper case.
            if !pair.iter().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f')) {
                return None;
            }
            *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
        }
        Some(Self(digest))
    }
}

impl fmt::Display for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Sha256 {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Sha256 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(text.as_bytes()).ok_or_else(|| D::Error::custom("no SHA-256 in hexadecimal"))
    }
}

/// What a segment says of its records: its second line, in JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Header {
    /// The boot whose records these are.
    pub(super) boot: BootId,
    /// The number of the first record, counted from 0 since boot.
    pub(super) first: u64,
    /// How many records.
    pub(super) records: u64,
    /// How many of them are violations.
    pub(super) violations: u64,
    /// Bytes of all records.
    pub(super) bytes: u64,
    /// Of these bytes.
    pub(super) sha256: Sha256,
    /// Of the header of the segment before it, the line's end included. The first has none.
    pub(super) previous: Option<Sha256>,
    /// PCR values and totals before the first record.
    #[serde(with = "point")]
    pub(super) before: Point,
    /// PCR values and totals after the last.
    #[serde(with = "point")]
    pub(super) after: Point,
    /// Bytes that the records have in each of IMA's files.
    pub(super) lengths: BTreeMap<String, u64>,
}

/// A point as the text of `starting_pcrs`.
mod point {
    use super::Point;

    use serde::de::Error as _;
    use serde::Deserialize;
    use serde::Deserializer;
    use serde::Serializer;

    pub(super) fn serialize<S: Serializer>(point: &Point, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&point.text())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Point, D::Error> {
        let text = String::deserialize(from)?;
        Point::parse(text.as_bytes()).map_err(D::Error::custom)
    }
}

/// A header that was read or is to be written.
#[derive(Debug)]
pub(super) struct Lines {
    /// What it says.
    pub(super) header: Header,
    /// Of its line, the line's end included.
    pub(super) sha256: Sha256,
    /// Bytes of both lines, which is where the records begin.
    pub(super) bytes: usize,
}

/// Why a header could not be read.
#[derive(Debug)]
pub(super) enum Unreadable {
    /// A number of the format that is not known here.
    Version(u32),
    /// Something that was not written so.
    Damage(Damage),
}

/// What somebody who looks at the file is told of it.
fn unreadable(what: impl fmt::Display) -> Unreadable {
    Unreadable::Damage(Damage::Header(what.to_string()))
}

impl Lines {
    /// The two lines of a header, and what they will be read as.
    pub(super) fn write(header: Header) -> (Vec<u8>, Self) {
        // Writing to memory cannot fail, and no map in a header has keys that are not strings: the
        // two reasons for which serde_json gives an error. If there were another, the empty line
        // would be refused by whoever reads it.
        let mut json = serde_json::to_vec(&header).unwrap_or_default();
        json.push(b'\n');

        let sha256 = Sha256::of(&json);
        let mut text = Vec::from(MAGIC);
        text.extend_from_slice(format!("{VERSION} {sha256}\n").as_bytes());
        text.append(&mut json);

        let bytes = text.len();
        let lines = Self {
            header,
            sha256,
            bytes,
        };
        (text, lines)
    }

    /// Reads the header that a file begins with. `None` if these bytes end before it does.
    pub(super) fn read(file: &[u8]) -> Result<Option<Self>, Unreadable> {
        let magic = file.get(..MAGIC.len()).unwrap_or(file);
        if !MAGIC.starts_with(magic) {
            return Err(unreadable("the file does not begin as a segment does"));
        }
        let Some((first, rest)) = line(file) else {
            return Ok(None);
        };

        // A later format may have anything after its number.
        let mut words = first
            .get(MAGIC.len()..)
            .unwrap_or_default()
            .split(|&byte| byte == b' ');
        let version = words
            .next()
            .and_then(|word| std::str::from_utf8(word).ok())
            .and_then(|word| word.parse().ok())
            .ok_or_else(|| unreadable("there is no number of the format"))?;
        match version {
            VERSION => {}
            0 => return Err(unreadable("no format has the number 0")),
            _ => return Err(Unreadable::Version(version)),
        }
        let sha256 = words
            .next()
            .and_then(Sha256::parse)
            .filter(|_| words.next().is_none())
            .ok_or_else(|| unreadable("there is no SHA-256 of the header"))?;

        let Some((json, _)) = line(rest) else {
            return Ok(None);
        };
        let bytes = first.len() + json.len() + 2;
        let found = Sha256::of(rest.get(..=json.len()).unwrap_or_default());
        if found != sha256 {
            return Err(unreadable(format_args!(
                "its SHA-256 is {found} and should be {sha256}"
            )));
        }
        let header = serde_json::from_slice(json).map_err(unreadable)?;
        Ok(Some(Self {
            header,
            sha256,
            bytes,
        }))
    }
}

/// The first line without its end, and what follows.
fn line(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = bytes.iter().position(|&byte| byte == b'\n')?;
    Some((bytes.get(..end)?, bytes.get(end + 1..)?))
}

/// The name of the segment whose first record has this number.
pub(super) fn name(first: u64) -> String {
    format!("{first:020}{SUFFIX}")
}

/// The number in the name of a segment.
pub(super) fn number(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(SUFFIX)?;
    let number = digits.parse().ok()?;
    // parse() alone would take a sign and any number of digits.
    (self::name(number) == name).then_some(number)
}
