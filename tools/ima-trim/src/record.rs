// SPDX-License-Identifier: GPL-2.0

//! One record of the measurement list, in the form of the file `binary_runtime_measurements_sha1`.
//!
//! That form has all there is to a record: its digests in other banks are hashes of its template
//! data, and what the other files show is made of the same bytes. It is what is archived. The
//! layout is that of `ima_measurements_show()` in `security/integrity/ima/ima_fs.c`, in the byte
//! order of this machine (which is IMA's canonical one wherever that is little-endian):
//!
//! | bytes | what |
//! |---|---|
//! | 4 | the PCR |
//! | 20 | SHA-1 of the template data, or zeros for a violation |
//! | 4, n | length of the template's name, and the name |
//! | 4, n | length of the template data, and the data |
//!
//! Only the old template `ima` has no length of the data: see [`crate::template`].
//!
//! Nothing of a record is to be believed because it is there. What proves it is a replay of
//! [`Record::digest`], which hashes the template data, to PCR values that a TPM signed
//! ([`crate::pcrs`]). The SHA-1 digest in the record is proved by that only where the bank is
//! SHA-1: a verifier of another bank compares [`Record::sha1`] with the hash if it uses it. Zeros
//! in it make a violation: that is extended as all ones instead of the hash, whatever its data is,
//! so that the data of a violation is proved by nothing.

use ima_trim_pure::bank::Value;
use ima_trim_pure::bank::MAX_DIGEST;

use crate::algorithm::Algorithm;
use crate::template::length;
use crate::template::old_digest_size;
use crate::template::old_size;
use crate::template::take;
use crate::template::Field;
use crate::template::FieldId;
use crate::template::Fields;
use crate::template::MAX_OLD_NAME;
use crate::template::MAX_TEMPLATE;
use crate::template::OLD;

/// Bytes of the digest in this form.
pub const SHA1_SIZE: usize = 20;

/// The most bytes that a record may have: longer ones are taken for damage.
///
/// The kernel sets no limit of its own; what a record measures is a file's name, a signature or a
/// buffer.
pub const MAX_RECORD: usize = 16 << 20;

/// Why bytes are not a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// A length in it is more than [`MAX_RECORD`], or a template's name, allows.
    #[error("these bytes are no record: they have a length of {0} bytes, which no record has")]
    Length(usize),
    /// The template's name is empty or has characters other than printable ones.
    #[error("these bytes are no record: they have a template's name that no kernel writes")]
    Template,
}

/// A record, in bytes that somebody else owns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    raw: &'a [u8],
    pcr: i32,
    sha1: &'a [u8; SHA1_SIZE],
    template: &'a [u8],
    data: &'a [u8],
}

impl<'a> Record<'a> {
    /// The record that these bytes begin with; `None` if they end before it does.
    ///
    /// Of the template `ima`, with `ima_hash=md5`, a record at the very end whose file name has
    /// less than four bytes counts as not whole until another one follows.
    ///
    /// # Errors
    ///
    /// Where the bytes cannot be a record however they go on.
    pub fn first(bytes: &'a [u8]) -> Result<Option<Self>, RecordError> {
        let mut rest = bytes;

        let Some((pcr, behind)) = rest.split_first_chunk() else {
            return Ok(None);
        };
        let Some((sha1, behind)) = behind.split_first_chunk() else {
            return Ok(None);
        };
        rest = behind;

        let Some(size) = length(&mut rest) else {
            return Ok(None);
        };
        let Some(template) = take(&mut rest, limited(size, MAX_TEMPLATE)?) else {
            return Ok(None);
        };
        if template.is_empty() || !template.iter().all(u8::is_ascii_graphic) {
            return Err(RecordError::Template);
        }

        let size = if template == OLD {
            old_size(rest).transpose().map_err(RecordError::Length)?
        } else {
            // The header is at most some 300 bytes, so this does not wrap.
            let most = MAX_RECORD - (bytes.len() - rest.len() + size_of::<u32>());
            length(&mut rest)
                .map(|size| limited(size, most))
                .transpose()?
        };
        let Some(data) = size.and_then(|size| take(&mut rest, size)) else {
            return Ok(None);
        };
        let (raw, _) = bytes.split_at(bytes.len() - rest.len());
        Ok(Some(Self {
            raw,
            pcr: i32::from_ne_bytes(*pcr),
            sha1,
            template,
            data,
        }))
    }

    /// All its bytes.
    pub fn raw(&self) -> &'a [u8] {
        self.raw
    }

    /// The PCR that it names. IMA's policy accepts numbers up to 63; a TPM has those up to 23.
    pub fn pcr(&self) -> i32 {
        self.pcr
    }

    /// The digest that is in the list: SHA-1 of the template data, or zeros for a violation.
    pub fn sha1(&self) -> &'a [u8; SHA1_SIZE] {
        self.sha1
    }

    /// The name of the template, or its format if it has no name. Printable ASCII without blanks.
    pub fn template(&self) -> &'a [u8] {
        self.template
    }

    /// The template data: fields, each with its length in front, but for the old template `ima`.
    pub fn data(&self) -> &'a [u8] {
        self.data
    }

    /// The fields of the template data.
    pub fn fields(&self) -> Fields<'a> {
        Fields::new(self.template, self.data)
    }

    /// The first field of this id: `None` if the template has none, is not known, or is damaged
    /// before that field.
    pub fn field(&self, id: FieldId) -> Option<Field<'a>> {
        self.fields()
            .map_while(Result::ok)
            .find(|field| field.id == id)
    }

    /// The name of the file or event: the field `n-ng`, or else `n`, without its NUL. Any bytes but
    /// NUL and blanks may be in it, newlines among them.
    pub fn name(&self) -> Option<&'a [u8]> {
        let field = self
            .field(FieldId::NNg)
            .or_else(|| self.field(FieldId::N))?;
        Some(field.text())
    }

    /// Whether it is a violation, tested as IMA does.
    pub fn is_violation(&self) -> bool {
        ima_trim_pure::bank::shows_violation(self.sha1)
    }

    /// The digest that the list shows in a bank: the hash of the template data, or zeros for a
    /// violation.
    ///
    /// It is always computed, that of SHA-1, too, as `ima_calc_field_array_hash_tfm()` in
    /// `ima_crypto.c` does: over the data as it is here, but for the old template `ima`, whose
    /// name has no length then and is filled up with zeros to 256 bytes. The first
    /// [`Algorithm::size`] bytes are the digest, the others zeros.
    pub fn digest(&self, algorithm: Algorithm) -> Value {
        if self.is_violation() {
            return [0; MAX_DIGEST];
        }
        if self.template != OLD {
            return algorithm.hash(&[self.data]);
        }
        let mut rest = self.data;
        let digest = take(&mut rest, old_digest_size(self.data)).unwrap_or_default();
        // What is left is a length, which is not hashed, and a name that it is right for.
        let name = rest.get(size_of::<u32>()..).unwrap_or_default();
        let zeros = [0; MAX_OLD_NAME + 1];
        let padding = zeros.get(name.len()..).unwrap_or_default();

        algorithm.hash(&[digest, name, padding])
    }
}

/// A length that is at most so much.
fn limited(length: usize, most: usize) -> Result<usize, RecordError> {
    if length > most {
        return Err(RecordError::Length(length));
    }
    Ok(length)
}

/// Goes through records that stand one after the other.
#[derive(Clone, Debug)]
pub struct Records<'a> {
    rest: &'a [u8],
    failed: bool,
}

impl<'a> Records<'a> {
    /// The records in these bytes.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self {
            rest: bytes,
            failed: false,
        }
    }

    /// What is left: after the end the bytes of a record that is not whole, or nothing; after an
    /// error the bytes that it is about.
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }
}

/// Ends before bytes that are no whole record; an error is given once.
impl<'a> Iterator for Records<'a> {
    type Item = Result<Record<'a>, RecordError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        match Record::first(self.rest) {
            Ok(record) => {
                let record = record?;
                take(&mut self.rest, record.raw.len())?;
                Some(Ok(record))
            }
            Err(error) => {
                self.failed = true;
                Some(Err(error))
            }
        }
    }
}
