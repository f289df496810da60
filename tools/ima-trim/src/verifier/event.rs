// SPDX-License-Identifier: GPL-2.0

//! The events of ima_trim, as IMA measured them.
//!
//! Their texts are in `Documentation/ABI/testing/securityfs-ima_trim`. They are read byte for byte:
//! what the module would not write is no event.

use ima_trim_pure::bank::Pcr;
use ima_trim_pure::instance::Instance;
use ima_trim_pure::report::Totals;

use crate::algorithm::Algorithm;
use crate::pcrfile::hex;
use crate::pcrs::Point;
use crate::pcrs::PointError;
use crate::record::Record;
use crate::template::FieldId;
use crate::template::Fields;

/// The version of the texts that are known here.
pub(super) const VERSION: u64 = 2;

/// The template that IMA uses for buffers.
const BUFFER: &[u8] = b"ima-buf";

/// IMA's name of the record of a policy: `ima_measure_loaded_policy()` in `ima_policy.c`.
pub(super) const POLICY_LOADED: &[u8] = b"ima_policy_loaded";

/// The names that events have.
const NAMES: [&[u8]; 4] = [b"load", b"trim", b"restore", b"foreign"];

/// Bytes of a SHA-256 digest in hexadecimal.
const KEY_DIGITS: usize = 64;

/// Starting PCR values, as a text has them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Starting {
    /// Values and totals.
    Known(Box<Point>),
    /// `unknown records=<n>`: so many records were removed by others.
    Unknown(u64),
}

impl Starting {
    /// Reads the text of `starting_pcrs`, to the last byte.
    ///
    /// # Errors
    ///
    /// Why it is none.
    pub fn parse(text: &[u8]) -> Result<Self, PointError> {
        let starting = match Point::parse(text) {
            Ok(point) => Self::Known(Box::new(point)),
            Err(PointError::Unknown(records)) => Self::Unknown(records),
            Err(error) => return Err(error),
        };
        if starting.text().as_bytes() == text {
            Ok(starting)
        } else {
            Err(PointError::Text(
                "the text is not as the module writes it: nothing may be added, left out or moved"
                    .to_owned(),
            ))
        }
    }

    /// The text.
    #[must_use]
    pub fn text(&self) -> String {
        match self {
            Self::Known(point) => point.text(),
            Self::Unknown(records) => format!("unknown records={records}\n"),
        }
    }
}

/// An event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The module was loaded.
    Load {
        /// The new instance.
        instance: Instance,
        /// Whether others are kept from removing records.
        guard: bool,
        /// The built-in certificates, by the SHA-256 of each in hexadecimal, where requests must be
        /// signed.
        signers: Option<Vec<String>>,
        /// Records that the kernel had removed.
        kernel_deleted: u64,
        /// Violations that the kernel had counted.
        kernel_violations: u64,
        /// The starting values after the load.
        starting: Starting,
    },
    /// A `load` with a version that is not known here.
    Foreseen {
        /// The version.
        version: u64,
    },
    /// Records are about to be trimmed.
    Trim {
        /// By which instance.
        instance: Instance,
        /// The starting values that there will be.
        point: Box<Point>,
    },
    /// Starting values are about to be taken over.
    Restore {
        /// By which instance.
        instance: Instance,
        /// These values.
        point: Box<Point>,
    },
    /// Others have removed records.
    Foreign {
        /// Which instance noticed.
        instance: Instance,
        /// Records that the kernel has removed.
        kernel_deleted: u64,
        /// Those of them that this instance has no account of.
        foreign_records: u64,
    },
}

/// What a record has to do with ima_trim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Nothing.
    Other,
    /// It has the name of an event and is none, for this reason.
    Lookalike(&'static str),
    /// It is an event.
    Event(Event),
}

impl Event {
    /// What a record is. `ima` is IMA's PCR.
    ///
    /// It is an event only with the template `ima-buf`, IMA's PCR, one of the four names, the right
    /// digest of its data, and data that the module would write.
    #[must_use]
    pub fn of(record: &Record<'_>, ima: Pcr) -> Kind {
        let Some(name) = record.name().filter(|name| NAMES.contains(name)) else {
            return Kind::Other;
        };
        if record.template() != BUFFER {
            return Kind::Lookalike("its template is not ima-buf");
        }
        if Pcr::from_record(record.pcr()) != Some(ima) {
            return Kind::Lookalike("it is not in IMA's PCR");
        }
        if record.is_violation() {
            return Kind::Lookalike("it is a violation");
        }
        if check_buffer(record) != Buffer::Good {
            return Kind::Lookalike("its digest is not that of its data");
        }
        let text = record.field(FieldId::Buf).map_or(&b""[..], |buf| buf.data);
        match std::str::from_utf8(text)
            .ok()
            .and_then(|text| Self::parse(name, text))
        {
            Some(event) => Kind::Event(event),
            None => Kind::Lookalike("its data is not a text of ima_trim"),
        }
    }

    /// Reads the text of an event of this name.
    fn parse(name: &[u8], text: &str) -> Option<Self> {
        let mut lines = Lines(text);

        if name == b"load" {
            return Self::load(&mut lines);
        }
        let instance = lines.instance()?;
        if name == b"foreign" {
            return Some(Self::Foreign {
                instance,
                kernel_deleted: lines.number("kernel_deleted=")?,
                foreign_records: lines.number("foreign_records=")?,
            })
            .filter(|_| lines.0.is_empty());
        }
        let Ok(Starting::Known(point)) = Starting::parse(lines.0.as_bytes()) else {
            return None;
        };
        match name {
            b"trim" => Some(Self::Trim { instance, point }),
            b"restore" => Some(Self::Restore { instance, point }),
            _ => None,
        }
    }

    fn load(lines: &mut Lines<'_>) -> Option<Self> {
        let version = lines.number("version=")?;
        if version != VERSION {
            return Some(Self::Foreseen { version });
        }
        let instance = lines.instance()?;
        let guard = match lines.value("guard=")? {
            "on" => true,
            "off" => false,
            _ => return None,
        };
        let mut signers = match lines.value("signatures=")? {
            "off" => None,
            "required" => Some(Vec::new()),
            _ => return None,
        };
        let kernel_deleted = lines.number("kernel_deleted=")?;
        let kernel_violations = lines.number("kernel_violations=")?;
        if let Some(signers) = &mut signers {
            while lines.0.starts_with("key=") {
                let key = lines.value("key=sha256:")?;
                if key.len() != KEY_DIGITS || !key.bytes().all(is_digit) {
                    return None;
                }
                signers.push(key.to_owned());
            }
        }
        Some(Self::Load {
            instance,
            guard,
            signers,
            kernel_deleted,
            kernel_violations,
            starting: Starting::parse(lines.0.as_bytes()).ok()?,
        })
    }
}

/// The lines of a text that are left.
struct Lines<'a>(&'a str);

impl<'a> Lines<'a> {
    /// What stands behind this key, which must begin the next line.
    fn value(&mut self, key: &str) -> Option<&'a str> {
        let (line, rest) = self.0.split_once('\n')?;
        self.0 = rest;
        line.strip_prefix(key)
    }

    fn number(&mut self, key: &str) -> Option<u64> {
        let digits = self.value(key)?;
        digits
            .parse()
            .ok()
            .filter(|number: &u64| number.to_string() == digits)
    }

    fn instance(&mut self) -> Option<Instance> {
        let digits = self.value("instance=")?;
        Instance::parse(digits.as_bytes()).filter(|instance| instance.to_string() == digits)
    }
}

fn is_digit(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'a'..=b'f')
}

/// Whether a record is one of a buffer: the first field of `ima-buf` is the digest of the third.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Buffer {
    /// It is, and its template is `ima-buf`, or neither.
    Good,
    /// It has the template, and is none.
    Bad,
    /// It is one, under the name of another template.
    Renamed,
    /// The digest is of an algorithm that is not known here.
    Unknown,
}

/// The name of a template is under no hash, so the data are what matters. In a file's record the
/// third field is a signature: it may be empty, but no signature hashes to what it is of.
pub(super) fn check_buffer(record: &Record<'_>) -> Buffer {
    if record.is_violation() {
        return Buffer::Good;
    }
    let is_named = record.template() == BUFFER;
    let fields: Result<Vec<_>, _> = Fields::new(BUFFER, record.data()).collect();
    let found = match fields.as_deref() {
        Ok([digest, name, buf]) => split_digest(digest.data).map(|of| (of, name.text(), buf.data)),
        _ => None,
    };
    let Some(((algorithm, digest), name, buf)) = found else {
        return if is_named { Buffer::Bad } else { Buffer::Good };
    };
    if !is_named && buf.is_empty() {
        return Buffer::Good;
    }
    let Some(algorithm) = Algorithm::named(algorithm) else {
        // Files are signed with other hashes, too. But none of them has such a name.
        return if is_named || NAMES.contains(&name) || name == POLICY_LOADED {
            Buffer::Unknown
        } else {
            Buffer::Good
        };
    };
    let hash = algorithm.hash(&[buf]);
    match (is_named, hash.get(..algorithm.size()) == Some(digest)) {
        (true, true) | (false, false) => Buffer::Good,
        (true, false) => Buffer::Bad,
        (false, true) => Buffer::Renamed,
    }
}

/// The digest that a record has of a file or buffer, and the name of its algorithm.
///
/// The formats are in `ima_eventdigest_init_common()` of `ima_template_lib.c`.
pub(super) fn file_digest<'a>(record: &Record<'a>) -> Option<(&'a str, &'a [u8])> {
    if let Some(old) = record.field(FieldId::D) {
        let name = if old.data.len() == 16 { "md5" } else { "sha1" };
        return Some((name, old.data));
    }
    let field = record
        .field(FieldId::DNg)
        .or_else(|| record.field(FieldId::DNgV2))?;
    split_digest(field.data)
}

/// The name of the algorithm and the digest in a field `d-ng` or `d-ngv2`.
fn split_digest(field: &[u8]) -> Option<(&str, &[u8])> {
    let at = field.iter().position(|&byte| byte == 0)?;
    let (name, digest) = field.split_at_checked(at)?;
    let name = std::str::from_utf8(name).ok()?.strip_suffix(':')?;

    Some((name.rsplit(':').next()?, digest.get(1..)?))
}

/// The same as people write it: `sha256:5af9...`.
pub(super) fn named_digest(record: &Record<'_>) -> Option<String> {
    let (name, digest) = file_digest(record)?;

    Some(format!("{name}:{}", hex(digest)))
}

/// Records, violations and trims, as messages show them.
pub(super) fn show(totals: Totals) -> String {
    format!(
        "records={} violations={} trims={}",
        totals.records, totals.violations, totals.trims
    )
}
