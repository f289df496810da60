// SPDX-License-Identifier: GPL-2.0

//! Reader of the kernel's type information (BTF).
//!
//! The kernel describes its own types, private structs included, in one blob of BTF: a header, a
//! section of type records and a section of strings (`include/uapi/linux/btf.h`,
//! `Documentation/bpf/btf.rst`). This reads such a blob where it lies. It allocates nothing, checks
//! every offset and length before it uses it, and its every loop is bounded by the size of the
//! blob: a blob that is cut short or altered gives an error or other types, never a crash.
//!
//! ```text
//! let btf = Btf::parse(blob)?;
//! let mut offsets = /* btf.count_types()? elements of u32 */;
//! let index = btf.index(&mut offsets)?;
//! for definition in index.structs("list_head") { ... }
//! ```

#![forbid(unsafe_code)]

use core::ffi::CStr;
use core::fmt;

const MAGIC: u16 = 0xeb9f;
const VERSION: u8 = 1;

/// Length of the header as of version 1; later ones may append to it.
const HEADER_LEN: usize = 24;
/// Length of what all type records begin with (`struct btf_type`).
const RECORD_LEN: usize = 12;
/// Length of `struct btf_member`.
const MEMBER_LEN: usize = 12;
/// Length of `struct btf_enum` and `struct btf_enum64`.
const ENUM_LEN: usize = 8;
const ENUM64_LEN: usize = 12;

/// How many typedefs and qualifiers in a row are followed; the kernel's own limit is the same.
const MAX_ALIASES: usize = 32;

const KIND_INT: u8 = 1;
const KIND_PTR: u8 = 2;
const KIND_ARRAY: u8 = 3;
const KIND_STRUCT: u8 = 4;
const KIND_UNION: u8 = 5;
const KIND_ENUM: u8 = 6;
const KIND_FWD: u8 = 7;
const KIND_TYPEDEF: u8 = 8;
const KIND_VOLATILE: u8 = 9;
const KIND_CONST: u8 = 10;
const KIND_RESTRICT: u8 = 11;
const KIND_FUNC: u8 = 12;
const KIND_FUNC_PROTO: u8 = 13;
const KIND_VAR: u8 = 14;
const KIND_DATASEC: u8 = 15;
const KIND_FLOAT: u8 = 16;
const KIND_DECL_TAG: u8 = 17;
const KIND_TYPE_TAG: u8 = 18;
const KIND_ENUM64: u8 = 19;

/// What is wrong with a blob of BTF.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BtfError {
    /// The blob, of this many bytes, is shorter than a header.
    Length(usize),
    /// The blob begins with another magic number.
    Magic(u16),
    /// The version is not 1.
    Version(u8),
    /// A flag is set, and none is known.
    Flags(u8),
    /// The header is shorter than that of version 1 or longer than the blob.
    HeaderLength(u32),
    /// The type section does not lie within the blob or is not aligned.
    TypeSection {
        /// Offset from the end of the header.
        offset: u32,
        /// Length in bytes.
        length: u32,
    },
    /// The string section does not lie within the blob or does not begin and end with a NUL.
    StringSection {
        /// Offset from the end of the header.
        offset: u32,
        /// Length in bytes.
        length: u32,
    },
    /// A type record of a kind that is not known, so that its length is not either.
    Kind {
        /// The kind.
        kind: u8,
        /// Offset of the record in the type section.
        offset: usize,
    },
    /// The type record at this offset in the type section is cut short.
    Record(usize),
    /// The buffer given for the index, of this many elements, is too small.
    IndexLength(usize),
    /// There is no type with this id.
    TypeId(u32),
    /// The string section does not reach to this offset.
    Name(u32),
    /// More typedefs and qualifiers in a row than are followed, from the type with this id on.
    Aliases(u32),
}

impl fmt::Display for BtfError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Length(n) => write!(f, "invalid BTF length: {n}"),
            Self::Magic(n) => write!(f, "invalid BTF magic: {n:#06x}"),
            Self::Version(n) => write!(f, "invalid BTF version: {n}"),
            Self::Flags(n) => write!(f, "invalid BTF flags: {n:#x}"),
            Self::HeaderLength(n) => write!(f, "invalid BTF header length: {n}"),
            Self::TypeSection { offset, length } => {
                write!(f, "invalid BTF type section: {length} bytes at {offset}")
            }
            Self::StringSection { offset, length } => {
                write!(f, "invalid BTF string section: {length} bytes at {offset}")
            }
            Self::Kind { kind, offset } => {
                write!(f, "invalid BTF kind: {kind}, of the type at {offset}")
            }
            Self::Record(offset) => write!(f, "invalid BTF type: cut short, at {offset}"),
            Self::IndexLength(n) => write!(f, "invalid BTF index length: {n}, too small"),
            Self::TypeId(id) => write!(f, "invalid BTF type id: {id}"),
            Self::Name(offset) => write!(f, "invalid BTF name offset: {offset}"),
            Self::Aliases(id) => write!(f, "invalid BTF typedef: type id {id}, endless"),
        }
    }
}

/// A blob of BTF, its header checked.
#[derive(Clone, Copy)]
pub struct Btf<'a> {
    types: &'a [u8],
    strings: &'a [u8],
    big_endian: bool,
}

impl<'a> Btf<'a> {
    /// Checks the header of `blob` and finds its sections. The byte order is that of the magic.
    pub fn parse(blob: &'a [u8]) -> Result<Self, BtfError> {
        let header: &[u8; HEADER_LEN] = blob.first_chunk().ok_or(BtfError::Length(blob.len()))?;
        let [m0, m1, version, flags, ..] = *header;
        let big_endian = match u16::from_le_bytes([m0, m1]) {
            MAGIC => false,
            magic if magic.swap_bytes() == MAGIC => true,
            magic => return Err(BtfError::Magic(magic)),
        };
        if version != VERSION {
            return Err(BtfError::Version(version));
        }
        if flags != 0 {
            return Err(BtfError::Flags(flags));
        }

        // The header is all there: its words can be read.
        let word = |at| word(header, at, big_endian).ok_or(BtfError::Length(blob.len()));
        let header_len = word(4)?;
        let sections = match blob.get(header_len as usize..) {
            Some(sections) if header_len as usize >= HEADER_LEN => sections,
            _ => return Err(BtfError::HeaderLength(header_len)),
        };
        let section =
            |offset: u32, length: u32| sections.get(offset as usize..)?.get(..length as usize);

        let (offset, length) = (word(8)?, word(12)?);
        let types = section(offset, length)
            .filter(|_| offset % 4 == 0)
            .ok_or(BtfError::TypeSection { offset, length })?;

        let (offset, length) = (word(16)?, word(20)?);
        let strings = section(offset, length)
            .filter(|s| s.first() == Some(&0) && s.last() == Some(&0))
            .ok_or(BtfError::StringSection { offset, length })?;

        Ok(Btf {
            types,
            strings,
            big_endian,
        })
    }

    /// Counts the types, and so checks the kind and length of every record.
    pub fn count_types(&self) -> Result<u32, BtfError> {
        self.records().try_fold(0, |count: u32, record| {
            record.map(|_| count.saturating_add(1))
        })
    }

    /// Makes types accessible by id. `buf` must have an element for each of [`Self::count_types`].
    pub fn index<'i>(&self, buf: &'i mut [u32]) -> Result<Index<'i>, BtfError>
    where
        'a: 'i,
    {
        let too_small = BtfError::IndexLength(buf.len());
        let mut slots = buf.iter_mut();
        let mut count: usize = 0;
        for record in self.records() {
            // The section's length is a u32, so an offset in it fits in one.
            *slots.next().ok_or(too_small)? = record?.offset as u32;
            count = count.saturating_add(1);
        }
        let btf: Btf<'i> = *self;
        let offsets = buf.get(..count).ok_or(too_small)?;
        Ok(Index { btf, offsets })
    }

    /// Goes over all records in the order of their ids. It ends after the first error.
    fn records(&self) -> impl Iterator<Item = Result<Record<'a>, BtfError>> + '_ {
        let mut next = Some(0);
        core::iter::from_fn(move || {
            let offset = next.take().filter(|&offset| offset < self.types.len())?;
            let record = self.record(offset);
            next = record.ok().map(|record| record.end);
            Some(record)
        })
    }

    fn record(&self, offset: usize) -> Result<Record<'a>, BtfError> {
        let short = BtfError::Record(offset);
        let (head, tail) = self
            .types
            .get(offset..)
            .and_then(|bytes| bytes.split_at_checked(RECORD_LEN))
            .ok_or(short)?;
        let word = |at| word(head, at, self.big_endian).ok_or(short);
        let (name, info, value) = (word(0)?, word(4)?, word(8)?);

        // The number of elements had 16 bits once and the kind 5; what was added to them was zero.
        let kind = (info >> 24) as u8 & 0x7f;
        let elements = (info & 0x00ff_ffff) as usize;
        let each = match kind {
            KIND_STRUCT | KIND_UNION => MEMBER_LEN,
            KIND_ENUM => ENUM_LEN,
            KIND_ENUM64 => ENUM64_LEN,
            KIND_FUNC_PROTO => 8,
            KIND_DATASEC => 12,
            _ => 0,
        };
        let fixed = match kind {
            KIND_INT | KIND_VAR | KIND_DECL_TAG => 4,
            KIND_ARRAY => 12,
            KIND_STRUCT | KIND_UNION | KIND_ENUM | KIND_ENUM64 | KIND_FUNC_PROTO | KIND_DATASEC => {
                0
            }
            KIND_PTR | KIND_FWD | KIND_TYPEDEF | KIND_VOLATILE | KIND_CONST | KIND_RESTRICT
            | KIND_FUNC | KIND_FLOAT | KIND_TYPE_TAG => 0,
            _ => return Err(BtfError::Kind { kind, offset }),
        };
        let length = elements
            .checked_mul(each)
            .and_then(|n| n.checked_add(fixed))
            .ok_or(short)?;
        Ok(Record {
            offset,
            end: offset
                .checked_add(RECORD_LEN)
                .and_then(|n| n.checked_add(length))
                .ok_or(short)?,
            name,
            kind,
            flag: info >> 31 != 0,
            value,
            data: tail.get(..length).ok_or(short)?,
        })
    }

    /// The name at `offset` in the string section.
    fn name(&self, offset: u32) -> Result<&'a [u8], BtfError> {
        self.strings
            .get(offset as usize..)
            .and_then(|s| CStr::from_bytes_until_nul(s).ok())
            .map(CStr::to_bytes)
            .ok_or(BtfError::Name(offset))
    }

    /// Whether the name at `offset` is `name`; quicker than reading it.
    fn is_name(&self, offset: u32, name: &str) -> Result<bool, BtfError> {
        match self.strings.get(offset as usize..) {
            Some(s) if !s.is_empty() => Ok(s
                .strip_prefix(name.as_bytes())
                .is_some_and(|rest| rest.first() == Some(&0))),
            _ => Err(BtfError::Name(offset)),
        }
    }
}

/// Reads the four bytes at `at`.
fn word(bytes: &[u8], at: usize, big_endian: bool) -> Option<u32> {
    let word = *bytes.get(at..)?.first_chunk()?;
    Some(if big_endian {
        u32::from_be_bytes(word)
    } else {
        u32::from_le_bytes(word)
    })
}

/// A type record, not interpreted yet.
#[derive(Clone, Copy)]
struct Record<'a> {
    /// Where it begins and ends in the type section.
    offset: usize,
    end: usize,
    name: u32,
    kind: u8,
    flag: bool,
    /// The size of the type or the id of another type, by kind.
    value: u32,
    /// What follows `struct btf_type`.
    data: &'a [u8],
}

/// A type.
#[derive(Clone, Copy)]
pub struct Type<'a> {
    /// Its name, empty if it has none.
    pub name: &'a [u8],
    /// What it is.
    pub kind: Kind<'a>,
}

/// What a type is.
#[derive(Clone, Copy)]
pub enum Kind<'a> {
    /// `void`.
    Void,
    /// An integer, character or boolean.
    Int(Int),
    /// A pointer to the type with this id.
    Pointer(u32),
    /// An array.
    Array {
        /// Type id of an element.
        element: u32,
        /// Number of elements; 0 for a flexible array member.
        count: u32,
    },
    /// A struct.
    Struct(Struct<'a>),
    /// A union.
    Union(Struct<'a>),
    /// An enum of any width.
    Enum(Enum<'a>),
    /// A struct of which only the name is known.
    ForwardStruct,
    /// A union of which only the name is known.
    ForwardUnion,
    /// Another name for, or a qualifier of, the type with this id: typedef, const, volatile,
    /// restrict, type tag.
    Alias(u32),
    /// A floating point number of this many bytes.
    Float(u32),
    /// A function, variable, section or declaration tag: not the type of any member.
    Other,
}

/// An integer type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Int {
    /// Size in bytes.
    pub size: u32,
    /// Whether it is signed.
    pub signed: bool,
    /// Whether it is a boolean.
    pub boolean: bool,
    /// Whether its value fills all of its bytes, as that of any C integer does outside a bitfield.
    pub whole: bool,
}

/// A struct or union.
#[derive(Clone, Copy)]
pub struct Struct<'a> {
    btf: Btf<'a>,
    /// Size in bytes.
    pub size: u32,
    has_bitfields: bool,
    members: &'a [u8],
}

/// A member of a struct or union.
#[derive(Clone, Copy)]
pub struct Member<'a> {
    /// Its name, empty for an anonymous struct or union.
    pub name: &'a [u8],
    /// The id of its type.
    pub type_id: u32,
    /// Offset in bits from the beginning of the struct.
    pub bit_offset: u32,
    /// Number of bits of a bitfield; 0 if it is not one.
    pub bitfield_size: u32,
}

impl<'a> Struct<'a> {
    /// Its members, in order.
    pub fn members(&self) -> impl Iterator<Item = Result<Member<'a>, BtfError>> + 'a {
        let Struct {
            btf, has_bitfields, ..
        } = *self;
        self.members.chunks_exact(MEMBER_LEN).map(move |bytes| {
            // The chunk is whole: its words can be read.
            let word = |at| word(bytes, at, btf.big_endian).unwrap_or(0);
            let position = word(8);
            let (bitfield_size, bit_offset) = if has_bitfields {
                (position >> 24, position & 0x00ff_ffff)
            } else {
                (0, position)
            };
            Ok(Member {
                name: btf.name(word(0))?,
                type_id: word(4),
                bit_offset,
                bitfield_size,
            })
        })
    }
}

/// An enum.
#[derive(Clone, Copy)]
pub struct Enum<'a> {
    btf: Btf<'a>,
    /// Size in bytes.
    pub size: u32,
    /// Whether its values are signed.
    pub signed: bool,
    wide: bool,
    enumerators: &'a [u8],
}

impl<'a> Enum<'a> {
    /// The names and values of its enumerators, in order. Of a signed enum the value is what the
    /// cast to u64 of the enumerator would be in C.
    pub fn enumerators(&self) -> impl Iterator<Item = Result<(&'a [u8], u64), BtfError>> + 'a {
        let Enum {
            btf, signed, wide, ..
        } = *self;
        let length = if wide { ENUM64_LEN } else { ENUM_LEN };
        self.enumerators.chunks_exact(length).map(move |bytes| {
            // The chunk is whole: its words can be read.
            let word = |at| word(bytes, at, btf.big_endian).unwrap_or(0);
            let low = word(4);
            let high = match (wide, signed && low >> 31 != 0) {
                (true, _) => word(8),
                (false, true) => u32::MAX,
                (false, false) => 0,
            };
            Ok((btf.name(word(0))?, (u64::from(high) << 32) | u64::from(low)))
        })
    }
}

/// The types of a blob of BTF, by id and by name.
#[derive(Clone, Copy)]
pub struct Index<'i> {
    btf: Btf<'i>,
    /// The offset of each type but void, whose id is 0, in the type section.
    offsets: &'i [u32],
}

impl<'i> Index<'i> {
    /// The type with the id `id`, which may be an alias.
    pub fn get(&self, id: u32) -> Result<Type<'i>, BtfError> {
        let Some(position) = id.checked_sub(1) else {
            return Ok(Type {
                name: b"",
                kind: Kind::Void,
            });
        };
        let offset = self
            .offsets
            .get(position as usize)
            .ok_or(BtfError::TypeId(id))?;
        let record = self.btf.record(*offset as usize)?;
        Ok(Type {
            name: self.btf.name(record.name)?,
            kind: self.kind(&record)?,
        })
    }

    /// The type with the id `id`, or what it is an alias of.
    pub fn resolve(&self, id: u32) -> Result<Type<'i>, BtfError> {
        let mut target = id;
        for _ in 0..MAX_ALIASES {
            match self.get(target)? {
                Type {
                    kind: Kind::Alias(next),
                    ..
                } => target = next,
                resolved => return Ok(resolved),
            }
        }
        Err(BtfError::Aliases(id))
    }

    /// All definitions of `struct name`.
    pub fn structs<'n>(
        &'n self,
        name: &'n str,
    ) -> impl Iterator<Item = Result<Struct<'i>, BtfError>> + 'n {
        self.named(name, |kind| kind == KIND_STRUCT)
            .filter_map(|found| match found {
                Ok(Kind::Struct(found)) => Some(Ok(found)),
                Ok(_) => None,
                Err(error) => Some(Err(error)),
            })
    }

    /// All definitions of `enum name`.
    pub fn enums<'n>(
        &'n self,
        name: &'n str,
    ) -> impl Iterator<Item = Result<Enum<'i>, BtfError>> + 'n {
        self.named(name, |kind| matches!(kind, KIND_ENUM | KIND_ENUM64))
            .filter_map(|found| match found {
                Ok(Kind::Enum(found)) => Some(Ok(found)),
                Ok(_) => None,
                Err(error) => Some(Err(error)),
            })
    }

    /// All types of the wanted kinds that are called `name`.
    fn named<'n>(
        &'n self,
        name: &'n str,
        wanted: impl Fn(u8) -> bool + 'n,
    ) -> impl Iterator<Item = Result<Kind<'i>, BtfError>> + 'n {
        self.offsets.iter().filter_map(move |&offset| {
            let found = || {
                let record = self.btf.record(offset as usize)?;
                if wanted(record.kind) && self.btf.is_name(record.name, name)? {
                    self.kind(&record).map(Some)
                } else {
                    Ok(None)
                }
            };
            found().transpose()
        })
    }

    fn kind(&self, record: &Record<'i>) -> Result<Kind<'i>, BtfError> {
        let short = BtfError::Record(record.offset);
        let btf = self.btf;
        let data = |at| word(record.data, at, btf.big_endian).ok_or(short);
        let composite = Struct {
            btf,
            size: record.value,
            has_bitfields: record.flag,
            members: record.data,
        };
        Ok(match record.kind {
            KIND_INT => {
                let encoding = data(0)?;
                Kind::Int(Int {
                    size: record.value,
                    signed: encoding & 0x0100_0000 != 0,
                    boolean: encoding & 0x0400_0000 != 0,
                    // No bit offset, and as many bits as the bytes have.
                    whole: record.value.checked_mul(8) == Some(encoding & 0x00ff_00ff),
                })
            }
            KIND_PTR => Kind::Pointer(record.value),
            KIND_ARRAY => Kind::Array {
                element: data(0)?,
                count: data(8)?,
            },
            KIND_STRUCT => Kind::Struct(composite),
            KIND_UNION => Kind::Union(composite),
            KIND_ENUM | KIND_ENUM64 => Kind::Enum(Enum {
                btf,
                size: record.value,
                signed: record.flag,
                wide: record.kind == KIND_ENUM64,
                enumerators: record.data,
            }),
            KIND_FWD if record.flag => Kind::ForwardUnion,
            KIND_FWD => Kind::ForwardStruct,
            KIND_TYPEDEF | KIND_VOLATILE | KIND_CONST | KIND_RESTRICT | KIND_TYPE_TAG => {
                Kind::Alias(record.value)
            }
            KIND_FLOAT => Kind::Float(record.value),
            _ => Kind::Other,
        })
    }
}
