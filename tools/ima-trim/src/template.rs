// SPDX-License-Identifier: GPL-2.0

//! Templates: which fields the template data of a record has.
//!
//! A record names its template by a name that the kernel has built in, `ima-ng` say, or, if there
//! is none, by the format itself: ids of fields with `|` between them, as `ima_template_fmt=` on
//! the kernel's command line has them. Either way the fields are known from the name alone. The
//! tables here are those of `security/integrity/ima/ima_template.c`.
//!
//! In the template data each field is a length (`u32`, in the byte order of the machine) followed
//! by as many bytes. The template `ima` is older than that: its digest has no length, and its name
//! does not end in a NUL.

use ima_trim_pure::report::Escaped;

use crate::record::SHA1_SIZE;

/// The name of the old template, which has a layout and a hash of its own.
pub const OLD: &[u8] = b"ima";

/// The most fields that a format has: `IMA_TEMPLATE_NUM_FIELDS_MAX`.
pub const MAX_FIELDS: usize = 15;

/// Bytes of the longest id of a field that the kernel looks at: `IMA_TEMPLATE_FIELD_ID_MAX_LEN`.
const MAX_ID: usize = 16;

/// Bytes of the longest name of a template: a format of the most and longest ids.
pub const MAX_TEMPLATE: usize = MAX_FIELDS * (MAX_ID + 1) - 1;

/// Bytes of the longest name of a file in a field `n`: `IMA_EVENT_NAME_LEN_MAX`.
pub const MAX_OLD_NAME: usize = 255;

/// Bytes of an MD5 digest.
const MD5_SIZE: usize = 16;

/// Bytes of a length.
const LENGTH: usize = size_of::<u32>();

/// The templates that have names, and their formats.
const NAMED: [(&[u8], &[u8]); 8] = [
    (OLD, b"d|n"),
    (b"ima-ng", b"d-ng|n-ng"),
    (b"ima-sig", b"d-ng|n-ng|sig"),
    (b"ima-ngv2", b"d-ngv2|n-ng"),
    (b"ima-sigv2", b"d-ngv2|n-ng|sig"),
    (b"ima-buf", b"d-ng|n-ng|buf"),
    (b"ima-modsig", b"d-ng|n-ng|sig|d-modsig|modsig"),
    (
        b"evm-sig",
        b"d-ng|n-ng|evmsig|xattrnames|xattrlengths|xattrvalues|iuid|igid|imode",
    ),
];

/// What a field is: `supported_fields[]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FieldId {
    /// `d`: a digest, of SHA-1 or MD5.
    D,
    /// `n`: the name of a file, at most [`MAX_OLD_NAME`] bytes, and a NUL.
    N,
    /// `d-ng`: the name of a hash algorithm, `:`, a NUL, and a digest.
    DNg,
    /// `d-ngv2`: `ima:` or `verity:`, and then as `d-ng`.
    DNgV2,
    /// `n-ng`: the name of a file or event, of any length, and a NUL. Blanks are `_`.
    NNg,
    /// `sig`: the signature of a file, as in its attribute `security.ima`, or that of `evmsig`.
    Sig,
    /// `buf`: the data of an event.
    Buf,
    /// `d-modsig`: the digest that an appended signature is of, as `d-ng`.
    DModsig,
    /// `modsig`: an appended signature.
    Modsig,
    /// `evmsig`: a portable signature, as in the attribute `security.evm` of a file.
    EvmSig,
    /// `iuid`: the user that owns a file, `u32`.
    IUid,
    /// `igid`: the group of a file, `u32`.
    IGid,
    /// `imode`: type and permissions of a file, `u16`.
    IMode,
    /// `xattrnames`: the names of the attributes that EVM protects, with `|` between them, and a
    /// NUL.
    XattrNames,
    /// `xattrlengths`: their lengths, `u32` each.
    XattrLengths,
    /// `xattrvalues`: their values, one after the other.
    XattrValues,
}

impl FieldId {
    /// All of them.
    pub const ALL: [Self; 16] = [
        Self::D,
        Self::N,
        Self::DNg,
        Self::DNgV2,
        Self::NNg,
        Self::Sig,
        Self::Buf,
        Self::DModsig,
        Self::Modsig,
        Self::EvmSig,
        Self::IUid,
        Self::IGid,
        Self::IMode,
        Self::XattrNames,
        Self::XattrLengths,
        Self::XattrValues,
    ];

    /// The id as a format has it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::D => "d",
            Self::N => "n",
            Self::DNg => "d-ng",
            Self::DNgV2 => "d-ngv2",
            Self::NNg => "n-ng",
            Self::Sig => "sig",
            Self::Buf => "buf",
            Self::DModsig => "d-modsig",
            Self::Modsig => "modsig",
            Self::EvmSig => "evmsig",
            Self::IUid => "iuid",
            Self::IGid => "igid",
            Self::IMode => "imode",
            Self::XattrNames => "xattrnames",
            Self::XattrLengths => "xattrlengths",
            Self::XattrValues => "xattrvalues",
        }
    }

    /// The field of this id.
    fn named(name: &[u8]) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|id| id.name().as_bytes() == name)
    }
}

/// Why the fields of a record are not known.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// The template is neither one of those that have names, nor a format of known fields.
    #[error(
        "the template \"{0}\" is not known: the kernel is newer than this program, which is to be \
         updated"
    )]
    Unknown(String),
    /// The template data has not exactly the fields of its template, or one of them no content
    /// that the kernel would write.
    #[error(
        "a record of the template \"{0}\" is damaged: its data does not have the fields of it"
    )]
    Data(String),
}

impl TemplateError {
    pub(crate) fn unknown(template: &[u8]) -> Self {
        Self::Unknown(Escaped(template).to_string())
    }

    pub(crate) fn data(template: &[u8]) -> Self {
        Self::Data(Escaped(template).to_string())
    }
}

/// One field of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field<'a> {
    /// What it is.
    pub id: FieldId,
    /// Its content, without the length. It may be empty: IMA leaves a field empty that it has
    /// nothing for.
    pub data: &'a [u8],
}

impl<'a> Field<'a> {
    /// Its content up to the first NUL, or all of it if there is none.
    pub fn text(&self) -> &'a [u8] {
        let mut parts = self.data.splitn(2, |&byte| byte == 0);
        parts.next().unwrap_or_default()
    }
}

/// The fields of a record, in the order of the template. The first error ends them.
#[derive(Clone, Debug)]
pub struct Fields<'a> {
    template: &'a [u8],
    /// The ids that are left; `None` after the last.
    format: Option<&'a [u8]>,
    data: &'a [u8],
}

impl<'a> Fields<'a> {
    /// The fields in the data of a record of this template.
    pub(crate) fn new(template: &'a [u8], data: &'a [u8]) -> Self {
        let named = NAMED.iter().find(|(name, _)| *name == template);
        Self {
            template,
            format: Some(named.map_or(template, |&(_, format)| format)),
            data,
        }
    }

    /// The next field; `None` after the last.
    fn field(&mut self) -> Result<Option<Field<'a>>, TemplateError> {
        let damaged = || TemplateError::data(self.template);
        let unknown = || TemplateError::unknown(self.template);

        let Some(format) = self.format else {
            return if self.data.is_empty() {
                Ok(None)
            } else {
                Err(damaged())
            };
        };
        if format.iter().filter(|&&byte| byte == b'|').count() >= MAX_FIELDS {
            return Err(unknown());
        }
        let mut ids = format.splitn(2, |&byte| byte == b'|');
        let id = ids.next().and_then(FieldId::named).ok_or_else(unknown)?;

        let data = if self.template == OLD && id == FieldId::D {
            let size = old_digest_size(self.data);
            take(&mut self.data, size)
        } else {
            length(&mut self.data).and_then(|size| take(&mut self.data, size))
        };
        let data = data.ok_or_else(|| TemplateError::data(self.template))?;
        self.format = ids.next();
        Ok(Some(Field { id, data }))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<Field<'a>, TemplateError>;

    fn next(&mut self) -> Option<Self::Item> {
        let field = self.field();

        if field.is_err() {
            self.format = None;
            self.data = &[];
        }
        field.transpose()
    }
}

/// How many bytes the data of the old template has at the beginning of `bytes`. `None` if they end
/// before that is known; an error is a length that no name has.
///
/// What is there is a digest without a length, then a name with one. With `ima_hash=md5` the
/// digest has 16 bytes, otherwise 20, and nothing says which. But no name is longer than
/// [`MAX_OLD_NAME`] bytes, while the first characters of a name make a large number: where a
/// length of 20 leads to none, it is 16.
pub(crate) fn old_size(bytes: &[u8]) -> Option<Result<usize, usize>> {
    let sha1 = old_name_size(bytes, SHA1_SIZE)?;
    if sha1 <= MAX_OLD_NAME {
        return Some(Ok(SHA1_SIZE + LENGTH + sha1));
    }
    let md5 = old_name_size(bytes, MD5_SIZE)?;
    if md5 <= MAX_OLD_NAME {
        return Some(Ok(MD5_SIZE + LENGTH + md5));
    }
    Some(Err(sha1))
}

/// Bytes of the digest in the data of the old template.
pub(crate) fn old_digest_size(data: &[u8]) -> usize {
    match old_name_size(data, SHA1_SIZE) {
        Some(size) if size <= MAX_OLD_NAME => SHA1_SIZE,
        _ => MD5_SIZE,
    }
}

/// The length of the name in the data of the old template, if the digest has `digest` bytes.
fn old_name_size(data: &[u8], digest: usize) -> Option<usize> {
    length(&mut data.get(digest..)?)
}

/// Takes as many bytes from the front.
pub(crate) fn take<'a>(from: &mut &'a [u8], count: usize) -> Option<&'a [u8]> {
    let (taken, rest) = from.split_at_checked(count)?;
    *from = rest;
    Some(taken)
}

/// Takes a length from the front.
pub(crate) fn length(from: &mut &[u8]) -> Option<usize> {
    let (taken, rest) = from.split_first_chunk()?;
    *from = rest;
    // No Linux has a usize of less than 32 bits.
    Some(u32::from_ne_bytes(*taken) as usize)
}
