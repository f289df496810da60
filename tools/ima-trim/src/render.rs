// SPDX-License-Identifier: GPL-2.0

//! A record as it is in each of IMA's files.
//!
//! IMA has a file for each bank, with records in binary form, and another with a line of text for
//! each. All of them can be made of a [`Record`], byte for byte as the kernel does: what
//! [`View::write`] gives for one record after the other is the file.
//!
//! A line is no safe way to hand records to anybody. Names of files may have newlines and any
//! other bytes, which the kernel prints as they are, so that one record can look like two. A field
//! that is empty leaves nothing between two blanks, or behind the last. Who judges records parses
//! the binary form ([`crate::record`]), in which nothing is ambiguous.
//!
//! Text is made only for templates that are known ([`crate::template`]), and only if the data has
//! exactly the fields of the template. Everything else is an error, for nobody can say what the
//! kernel would print. The binary form of any template is known, but for the hash of one that the
//! kernel treats as specially as `ima`; no template that has a length of its data is.

use crate::algorithm::Algorithm;
use crate::record::Record;
use crate::record::SHA1_SIZE;
use crate::template::Field;
use crate::template::FieldId;
use crate::template::TemplateError;

/// Bytes of the PCR's number in a record.
const PCR_SIZE: usize = size_of::<u32>();

/// How a file shows records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Format {
    /// A line of text each: `ima_ascii_measurements_show()` in `ima_fs.c`.
    Ascii,
    /// `ima_measurements_show()` in `ima_fs.c`.
    Binary,
}

/// What a measurement file shows: `ascii_runtime_measurements_sha256`, say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct View {
    /// How.
    pub format: Format,
    /// The bank whose digests it shows.
    pub algorithm: Algorithm,
}

/// The form that everything else is made from, and that is archived.
pub const SOURCE: View = View {
    format: Format::Binary,
    algorithm: Algorithm::Sha1,
};

impl View {
    /// All files that there can be. A kernel has those of SHA-1 and of its TPM's banks.
    pub fn all() -> impl Iterator<Item = Self> {
        Algorithm::ALL.into_iter().flat_map(|algorithm| {
            [Format::Ascii, Format::Binary]
                .into_iter()
                .map(move |format| Self { format, algorithm })
        })
    }

    /// The name of the file: `ascii_runtime_measurements_sha256`.
    pub fn file_name(self) -> String {
        let format = match self.format {
            Format::Ascii => "ascii",
            Format::Binary => "binary",
        };
        format!("{format}_runtime_measurements_{}", self.algorithm.name())
    }

    /// The view of the file of this name. The names without a bank are symbolic links and none.
    pub fn of_file(name: &str) -> Option<Self> {
        Self::all().find(|view| view.file_name() == name)
    }

    /// How many bytes a record has in this file. Costs no hashing.
    ///
    /// # Errors
    ///
    /// As those of [`View::write`].
    pub fn length(self, record: &Record<'_>) -> Result<usize, TemplateError> {
        match self.format {
            // The sum cannot wrap: a digest has no more than 64 bytes.
            Format::Binary => Ok(record.raw().len() - SHA1_SIZE + self.algorithm.size()),
            Format::Ascii => {
                let mut count = Count(0);
                line(record, self.algorithm, &mut count)?;
                Ok(count.0)
            }
        }
    }

    /// Appends a record's bytes in this file.
    ///
    /// The digest is hashed from the template data, but for SHA-1, for which that of the record is
    /// taken as it is: what is damaged there is shown as such.
    ///
    /// # Errors
    ///
    /// If it is text and the fields of the record are not known. Nothing is appended then.
    pub fn write(self, record: &Record<'_>, to: &mut Vec<u8>) -> Result<(), TemplateError> {
        match (self.format, self.algorithm) {
            (Format::Binary, Algorithm::Sha1) => to.extend_from_slice(record.raw()),
            (Format::Binary, _) => {
                let raw = record.raw();
                // A record begins with its PCR and its digest.
                to.extend_from_slice(raw.get(..PCR_SIZE).unwrap_or_default());
                with_digest(record, self.algorithm, |digest| {
                    to.extend_from_slice(digest);
                });
                to.extend_from_slice(raw.get(PCR_SIZE + SHA1_SIZE..).unwrap_or_default());
            }
            (Format::Ascii, _) => {
                let before = to.len();
                if let Err(error) = line(record, self.algorithm, to) {
                    to.truncate(before);
                    return Err(error);
                }
            }
        }
        Ok(())
    }
}

/// Calls `with` with the digest of a record that is shown in a bank.
fn with_digest(record: &Record<'_>, algorithm: Algorithm, with: impl FnOnce(&[u8])) {
    if algorithm == Algorithm::Sha1 {
        with(record.sha1());
    } else {
        let digest = record.digest(algorithm);
        with(digest.get(..algorithm.size()).unwrap_or_default());
    }
}

/// Where a line goes to: memory, or only a count of its bytes.
trait Sink {
    fn bytes(&mut self, bytes: &[u8]);

    /// As `ima_print_digest()`.
    fn hex(&mut self, bytes: &[u8]);

    /// The digest of a record, in hexadecimal.
    fn digest(&mut self, record: &Record<'_>, algorithm: Algorithm);
}

impl Sink for Vec<u8> {
    fn bytes(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }

    fn hex(&mut self, bytes: &[u8]) {
        const DIGITS: [u8; 16] = *b"0123456789abcdef";

        self.reserve(bytes.len().saturating_mul(2));
        for &byte in bytes {
            // Four bits are less than 16.
            self.push(DIGITS[usize::from(byte >> 4)]);
            self.push(DIGITS[usize::from(byte & 15)]);
        }
    }

    fn digest(&mut self, record: &Record<'_>, algorithm: Algorithm) {
        with_digest(record, algorithm, |digest| self.hex(digest));
    }
}

struct Count(usize);

/// A record has at most `MAX_RECORD` bytes, so that no sum here wraps.
impl Sink for Count {
    fn bytes(&mut self, bytes: &[u8]) {
        self.0 += bytes.len();
    }

    fn hex(&mut self, bytes: &[u8]) {
        self.0 += 2 * bytes.len();
    }

    fn digest(&mut self, _: &Record<'_>, algorithm: Algorithm) {
        self.0 += 2 * algorithm.size();
    }
}

/// `ima_ascii_measurements_show()`.
fn line(
    record: &Record<'_>,
    algorithm: Algorithm,
    to: &mut impl Sink,
) -> Result<(), TemplateError> {
    to.bytes(format!("{:2} ", record.pcr()).as_bytes());
    to.digest(record, algorithm);
    to.bytes(b" ");
    to.bytes(record.template());

    for field in record.fields() {
        let field = field?;
        to.bytes(b" ");
        if !field.data.is_empty() {
            text(&field, to).ok_or_else(|| TemplateError::data(record.template()))?;
        }
    }
    to.bytes(b"\n");
    Ok(())
}

/// `ima_show_template_data_ascii()`; `None` where the kernel would read beyond the field.
fn text(field: &Field<'_>, to: &mut impl Sink) -> Option<()> {
    match field.id {
        FieldId::N | FieldId::NNg | FieldId::XattrNames => to.bytes(field.text()),
        FieldId::DNg | FieldId::DNgV2 | FieldId::DModsig => {
            let algorithm = field.text();
            let colon = algorithm.iter().rposition(|&byte| byte == b':')?;
            if colon > 0 {
                to.bytes(algorithm);
            }
            // Behind the colon is a NUL, and behind that the digest.
            to.hex(field.data.get(colon + 2..)?);
        }
        FieldId::D
        | FieldId::Sig
        | FieldId::Buf
        | FieldId::Modsig
        | FieldId::EvmSig
        | FieldId::XattrLengths
        | FieldId::XattrValues => to.hex(field.data),
        FieldId::IUid | FieldId::IGid | FieldId::IMode => {
            if let Some(number) = number(field.data) {
                to.bytes(number.to_string().as_bytes());
            }
        }
    }
    Some(())
}

/// The number that a field is, if it is as long as one; nothing is printed otherwise.
fn number(data: &[u8]) -> Option<u64> {
    Some(match data.len() {
        1 => u64::from(u8::from_ne_bytes(data.try_into().ok()?)),
        2 => u64::from(u16::from_ne_bytes(data.try_into().ok()?)),
        4 => u64::from(u32::from_ne_bytes(data.try_into().ok()?)),
        8 => u64::from_ne_bytes(data.try_into().ok()?),
        _ => return None,
    })
}
