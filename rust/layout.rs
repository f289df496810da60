// SPDX-License-Identifier: GPL-2.0

//! Where the members of IMA's private structs are.
//!
//! IMA keeps these structs to itself, and they may change with any release. The running kernel's
//! BTF tells where their members are; each is looked up there by name, once, and its type is
//! checked as far as BTF can tell. If anything is missing or of another type there is no
//! [`Layout`], and the error says what.

#![forbid(unsafe_code)]

use core::fmt;

use super::btf::BtfError;
use super::btf::Enum;
use super::btf::Index;
use super::btf::Kind;
use super::btf::Struct;
use super::btf::Type;

/// Size of a pointer: the module's own, since the BTF read is that of the kernel it runs in.
const WORD: u32 = core::mem::size_of::<usize>() as u32;

/// The longest digest there is: `TPM2_MAX_DIGEST_SIZE`, that of SHA-512.
const MAX_DIGEST_SIZE: u32 = 64;

/// More lists than this in `enum binary_lists` is not IMA as we know it.
const MAX_LISTS: u64 = 8;

/// Offsets and sizes, in bytes, of all that the module reads in IMA's structs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// `struct ima_queue_entry`
    pub queue_entry: QueueEntry,
    /// `struct ima_template_entry`
    pub template_entry: TemplateEntry,
    /// `struct ima_template_desc`
    pub template_desc: TemplateDesc,
    /// `struct ima_template_field`
    pub template_field: TemplateField,
    /// `struct ima_field_data`
    pub field_data: FieldData,
    /// `struct tpm_digest`
    pub tpm_digest: TpmDigest,
    /// `enum binary_lists`
    pub binary_lists: BinaryLists,
}

/// `struct ima_queue_entry` (`security/integrity/ima/ima.h`): a record's place in the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueEntry {
    /// Size of the struct.
    pub size: usize,
    /// `struct hlist_node hnext`: place in the digest hash table.
    pub hnext: usize,
    /// `struct list_head later`: place in `ima_measurements`.
    pub later: usize,
    /// `struct ima_template_entry *entry`
    pub entry: usize,
}

/// `struct ima_template_entry` (`security/integrity/ima/ima.h`): a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TemplateEntry {
    /// Size of the struct without any field.
    pub size: usize,
    /// `int pcr`
    pub pcr: usize,
    /// `struct tpm_digest *digests`: one for each bank, then the extra ones.
    pub digests: usize,
    /// `struct ima_template_desc *template_desc`
    pub template_desc: usize,
    /// `u32 template_data_len`
    pub template_data_len: usize,
    /// `struct ima_field_data template_data[]`: as many as the descriptor has fields.
    pub template_data: usize,
}

/// `struct ima_template_desc` (`security/integrity/ima/ima.h`): the template of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TemplateDesc {
    /// `char *name`
    pub name: usize,
    /// `int num_fields`
    pub num_fields: usize,
    /// `const struct ima_template_field **fields`
    pub fields: usize,
}

/// `struct ima_template_field` (`security/integrity/ima/ima.h`): what a field of a template is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TemplateField {
    /// `const char field_id[]`
    pub field_id: usize,
    /// Length of the array `field_id`.
    pub field_id_len: usize,
}

/// `struct ima_field_data` (`security/integrity/ima/ima.h`): one field of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FieldData {
    /// Size of the struct: the stride of `template_data`.
    pub size: usize,
    /// `u8 *data`
    pub data: usize,
    /// `u32 len`
    pub len: usize,
}

/// `struct tpm_digest` (`include/linux/tpm_command.h`, once `include/linux/tpm.h`): a digest in one
/// bank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TpmDigest {
    /// Size of the struct: the stride of `digests`.
    pub size: usize,
    /// `u16 alg_id`
    pub alg_id: usize,
    /// `u8 digest[]`
    pub digest: usize,
    /// Length of the array `digest`: no bank's digest is longer.
    pub digest_len: usize,
}

/// `enum binary_lists` (`security/integrity/ima/ima.h`): indexes in `ima_num_records` and
/// `binary_runtime_size`. All differ, and `last` is the greatest: the length of these arrays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BinaryLists {
    /// `BINARY`: the list itself.
    pub binary: usize,
    /// `BINARY_STAGED`: the staged list.
    pub binary_staged: usize,
    /// `BINARY_FULL`: all records ever added.
    pub binary_full: usize,
    /// `BINARY__LAST`: the number of counters.
    pub last: usize,
}

/// The type that a member must have. Typedefs and qualifiers are looked through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// `char`, signed or not.
    Char,
    /// An unsigned integer of this many bytes.
    Unsigned(u32),
    /// A signed integer of this many bytes.
    Signed(u32),
    /// The struct with this name.
    Struct(&'static str),
    /// A pointer.
    Pointer(&'static Expected),
    /// An array of at least so many elements.
    Array(u32, &'static Expected),
    /// A flexible array.
    Flexible(&'static Expected),
}

impl Expected {
    /// What the offset of such a member must be a multiple of. The structs that are members here,
    /// or elements, hold pointers.
    const fn align(&self) -> u32 {
        match *self {
            Self::Char => 1,
            Self::Unsigned(size) | Self::Signed(size) => size,
            Self::Struct(_) | Self::Pointer(_) => WORD,
            Self::Array(_, element) | Self::Flexible(element) => element.align(),
        }
    }
}

impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Char => f.write_str("a char"),
            Self::Unsigned(size) => write!(f, "a {size}-byte unsigned integer"),
            Self::Signed(size) => write!(f, "a {size}-byte signed integer"),
            Self::Struct(name) => write!(f, "a struct {name}"),
            Self::Pointer(target) => write!(f, "a pointer to {target}"),
            Self::Array(count, element) => {
                write!(f, "an array of {count} or more, each {element}")
            }
            Self::Flexible(element) => write!(f, "a flexible array, each {element}"),
        }
    }
}

/// What was found where some other type was expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// A signed integer of this many bytes.
    Signed(u32),
    /// An unsigned integer, character or boolean of this many bytes.
    Unsigned(u32),
    /// An array of this many elements.
    Array(u32),
    /// Something else, in a word.
    Other(&'static str),
}

impl Found {
    fn new(found: &Type<'_>) -> Self {
        match found.kind {
            Kind::Int(int) if int.signed => Self::Signed(int.size),
            Kind::Int(int) => Self::Unsigned(int.size),
            Kind::Array { count, .. } => Self::Array(count),
            Kind::Void => Self::Other("void"),
            Kind::Pointer(_) => Self::Other("pointer"),
            Kind::Struct(_) => Self::Other("another struct"),
            Kind::ForwardStruct => Self::Other("struct without members"),
            Kind::Union(_) | Kind::ForwardUnion => Self::Other("union"),
            Kind::Enum(_) => Self::Other("enum"),
            Kind::Float(_) => Self::Other("floating point number"),
            Kind::Alias(_) | Kind::Other => Self::Other("not the type of a member"),
        }
    }
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Signed(size) => write!(f, "{size}-byte signed integer"),
            Self::Unsigned(size) => write!(f, "{size}-byte unsigned integer"),
            Self::Array(count) => write!(f, "array of {count}"),
            Self::Other(what) => f.write_str(what),
        }
    }
}

/// Why there is no layout. The names are those of C.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayoutError {
    /// The BTF is not well-formed.
    Btf(BtfError),
    /// There is no such struct.
    NoStruct(&'static str),
    /// There is no such enum.
    NoEnum(&'static str),
    /// Several structs have this name, and differ in what is needed of them.
    AmbiguousStruct(&'static str),
    /// Several enums have this name, and differ in what is needed of them.
    AmbiguousEnum(&'static str),
    /// The struct has no such member.
    NoMember {
        /// The struct.
        structure: &'static str,
        /// The member.
        member: &'static str,
    },
    /// The member is of another type.
    Type {
        /// The struct.
        structure: &'static str,
        /// The member.
        member: &'static str,
        /// The type it should have.
        expected: Expected,
        /// What was found there, or where the pointer or array leads.
        found: Found,
    },
    /// The member is a bitfield.
    Bitfield {
        /// The struct.
        structure: &'static str,
        /// The member.
        member: &'static str,
    },
    /// The member is not aligned, or reaches beyond the end of its struct.
    Place {
        /// The struct.
        structure: &'static str,
        /// The member.
        member: &'static str,
        /// Its offset in bits.
        bit_offset: usize,
        /// Size of the struct in bytes.
        struct_size: usize,
    },
    /// The size of the struct is not that of an array element with such members.
    Size {
        /// The struct.
        structure: &'static str,
        /// Its size in bytes.
        size: usize,
    },
    /// The enum has no such enumerator.
    NoEnumerator {
        /// The enum.
        enumeration: &'static str,
        /// The enumerator.
        enumerator: &'static str,
    },
    /// The enumerator is no index, or that of another.
    Enumerator {
        /// The enum.
        enumeration: &'static str,
        /// The enumerator.
        enumerator: &'static str,
        /// Its value.
        value: u64,
    },
}

impl From<BtfError> for LayoutError {
    fn from(error: BtfError) -> Self {
        Self::Btf(error)
    }
}

impl fmt::Display for LayoutError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Btf(error) => error.fmt(f),
            Self::NoStruct(name) => write!(f, "there is no struct {name}"),
            Self::NoEnum(name) => write!(f, "there is no enum {name}"),
            Self::AmbiguousStruct(name) => write!(f, "there are different structs {name}"),
            Self::AmbiguousEnum(name) => write!(f, "there are different enums {name}"),
            Self::NoMember { structure, member } => {
                write!(f, "struct {structure} has no member '{member}'")
            }
            Self::Type {
                structure,
                member,
                expected,
                found,
            } => write!(
                f,
                "struct {structure}: member '{member}' is not {expected} (found: {found})"
            ),
            Self::Bitfield { structure, member } => {
                write!(f, "struct {structure}: member '{member}' is a bitfield")
            }
            Self::Place {
                structure,
                member,
                bit_offset,
                struct_size,
            } => write!(
                f,
                "struct {structure}: member '{member}' is misplaced, at bit {bit_offset} of {struct_size} bytes"
            ),
            Self::Size { structure, size } => {
                write!(f, "struct {structure}: invalid size: {size}")
            }
            Self::NoEnumerator {
                enumeration,
                enumerator,
            } => write!(f, "enum {enumeration} has no enumerator '{enumerator}'"),
            Self::Enumerator {
                enumeration,
                enumerator,
                value,
            } => write!(
                f,
                "enum {enumeration}: enumerator '{enumerator}' is no valid index: {value}"
            ),
        }
    }
}

const TEMPLATE_ENTRY: &str = "ima_template_entry";
const TEMPLATE_DESC: &str = "ima_template_desc";
const TEMPLATE_FIELD: &str = "ima_template_field";
const FIELD_DATA: &str = "ima_field_data";
const TPM_DIGEST: &str = "tpm_digest";

const U8: Expected = Expected::Unsigned(1);
const U16: Expected = Expected::Unsigned(2);
const U32: Expected = Expected::Unsigned(4);
const INT: Expected = Expected::Signed(4);

impl Layout {
    /// Looks everything up in the kernel's BTF.
    pub fn resolve(index: &Index<'_>) -> Result<Self, LayoutError> {
        use Expected::{Array, Char, Flexible, Pointer, Struct};

        // Each struct comes before those that refer to it: one that is not there is named first.
        let (size, [alg_id, digest]) = members(
            index,
            TPM_DIGEST,
            [("alg_id", U16), ("digest", Array(MAX_DIGEST_SIZE, &U8))],
        )?;
        let tpm_digest = TpmDigest {
            size,
            alg_id: alg_id.offset,
            digest: digest.offset,
            digest_len: digest.size,
        };

        let (size, [data, len]) =
            members(index, FIELD_DATA, [("data", Pointer(&U8)), ("len", U32)])?;
        let field_data = FieldData {
            size,
            data: data.offset,
            len: len.offset,
        };

        let (_, [field_id]) = members(index, TEMPLATE_FIELD, [("field_id", Array(1, &Char))])?;
        let template_field = TemplateField {
            field_id: field_id.offset,
            field_id_len: field_id.size,
        };

        let (_, [name, num_fields, fields]) = members(
            index,
            TEMPLATE_DESC,
            [
                ("name", Pointer(&Char)),
                ("num_fields", INT),
                ("fields", Pointer(&Pointer(&Struct(TEMPLATE_FIELD)))),
            ],
        )?;
        let template_desc = TemplateDesc {
            name: name.offset,
            num_fields: num_fields.offset,
            fields: fields.offset,
        };

        let (size, [pcr, digests, desc, template_data_len, template_data]) = members(
            index,
            TEMPLATE_ENTRY,
            [
                ("pcr", INT),
                ("digests", Pointer(&Struct(TPM_DIGEST))),
                ("template_desc", Pointer(&Struct(TEMPLATE_DESC))),
                ("template_data_len", U32),
                ("template_data", Flexible(&Struct(FIELD_DATA))),
            ],
        )?;
        let template_entry = TemplateEntry {
            size,
            pcr: pcr.offset,
            digests: digests.offset,
            template_desc: desc.offset,
            template_data_len: template_data_len.offset,
            template_data: template_data.offset,
        };

        let (size, [hnext, later, entry]) = members(
            index,
            "ima_queue_entry",
            [
                ("hnext", Struct("hlist_node")),
                ("later", Struct("list_head")),
                ("entry", Pointer(&Struct(TEMPLATE_ENTRY))),
            ],
        )?;
        let queue_entry = QueueEntry {
            size,
            hnext: hnext.offset,
            later: later.offset,
            entry: entry.offset,
        };

        let [binary, binary_staged, binary_full, last] = indexes(
            index,
            "binary_lists",
            ["BINARY", "BINARY_STAGED", "BINARY_FULL", "BINARY__LAST"],
        )?;
        let binary_lists = BinaryLists {
            binary,
            binary_staged,
            binary_full,
            last,
        };

        Ok(Self {
            queue_entry,
            template_entry,
            template_desc,
            template_field,
            field_data,
            tpm_digest,
            binary_lists,
        })
    }
}

impl Layout {
    /// Where in the array `digests` of a record the digest of this slot is, in bytes.
    pub fn digest_offset(&self, slot: usize) -> Option<usize> {
        slot.checked_mul(self.tpm_digest.size)?
            .checked_add(self.tpm_digest.digest)
    }
}

/// Where a member is, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Slot {
    offset: usize,
    size: usize,
}

/// The size of `struct structure` and the places of its members with these names and types.
fn members<const N: usize>(
    index: &Index<'_>,
    structure: &'static str,
    wanted: [(&'static str, Expected); N],
) -> Result<(usize, [Slot; N]), LayoutError> {
    let mut agreed = None;
    for definition in index.structs(structure) {
        let definition = definition?;
        let mut slots = [Slot::default(); N];
        for (slot, (name, expected)) in slots.iter_mut().zip(wanted) {
            *slot = member(index, structure, &definition, name, expected)?;
        }
        let found = (definition.size as usize, slots);
        if *agreed.get_or_insert(found) != found {
            return Err(LayoutError::AmbiguousStruct(structure));
        }
    }
    agreed.ok_or(LayoutError::NoStruct(structure))
}

/// The place of one member of one definition of `struct structure`.
fn member(
    index: &Index<'_>,
    structure: &'static str,
    definition: &Struct<'_>,
    name: &'static str,
    expected: Expected,
) -> Result<Slot, LayoutError> {
    for found in definition.members() {
        let found = found?;
        if found.name != name.as_bytes() {
            continue;
        }
        if found.bitfield_size != 0 {
            return Err(LayoutError::Bitfield {
                structure,
                member: name,
            });
        }
        let size = measure(index, found.type_id, expected)?.map_err(|found| LayoutError::Type {
            structure,
            member: name,
            expected,
            found,
        })?;

        let (offset, bits) = (found.bit_offset / 8, found.bit_offset % 8);
        let align = expected.align();
        let fits = offset
            .checked_add(size)
            .is_some_and(|end| end <= definition.size);
        if bits != 0 || offset.checked_rem(align) != Some(0) || !fits {
            return Err(LayoutError::Place {
                structure,
                member: name,
                bit_offset: found.bit_offset as usize,
                struct_size: definition.size as usize,
            });
        }
        // A struct whose size is no multiple of this could not be an array's element.
        if definition.size.checked_rem(align) != Some(0) {
            return Err(LayoutError::Size {
                structure,
                size: definition.size as usize,
            });
        }
        return Ok(Slot {
            offset: offset as usize,
            size: size as usize,
        });
    }
    Err(LayoutError::NoMember {
        structure,
        member: name,
    })
}

/// The size in bytes of the type with the id `id`, or what was found if that is not `expected`.
fn measure(index: &Index<'_>, id: u32, expected: Expected) -> Result<Result<u32, Found>, BtfError> {
    let found = index.resolve(id)?;
    let differs = Found::new(&found);
    Ok(match (expected, found.kind) {
        (Expected::Char, Kind::Int(int)) if int.whole && int.size == 1 && found.name == b"char" => {
            Ok(int.size)
        }
        (Expected::Unsigned(size) | Expected::Signed(size), Kind::Int(int))
            if int.whole
                && int.size == size
                && int.signed == matches!(expected, Expected::Signed(_))
                && !int.boolean =>
        {
            Ok(size)
        }
        (Expected::Struct(name), Kind::Struct(definition)) if found.name == name.as_bytes() => {
            Ok(definition.size)
        }
        (Expected::Pointer(target), Kind::Pointer(id)) => {
            measure(index, id, *target)?.map(|_| WORD)
        }
        (Expected::Array(least, element), Kind::Array { element: id, count }) if count >= least => {
            measure(index, id, *element)?.and_then(|size| size.checked_mul(count).ok_or(differs))
        }
        (
            Expected::Flexible(element),
            Kind::Array {
                element: id,
                count: 0,
            },
        ) => measure(index, id, *element)?.map(|_| 0),
        _ => Err(differs),
    })
}

/// The values of these enumerators of `enum enumeration`: all different, the last one the greatest.
fn indexes<const N: usize>(
    index: &Index<'_>,
    enumeration: &'static str,
    wanted: [&'static str; N],
) -> Result<[usize; N], LayoutError> {
    let mut agreed = None;
    for definition in index.enums(enumeration) {
        let definition = definition?;
        let mut values = [0; N];
        for (value, name) in values.iter_mut().zip(wanted) {
            *value = enumerator(enumeration, &definition, name)?;
        }
        let last = values.last().copied().unwrap_or(0);
        for (value, name) in values.into_iter().zip(wanted) {
            let unique = values.iter().filter(|&&other| other == value).count() == 1;
            if !unique || value > last.min(MAX_LISTS) {
                return Err(LayoutError::Enumerator {
                    enumeration,
                    enumerator: name,
                    value,
                });
            }
        }
        let found = values.map(|value| value as usize);
        if *agreed.get_or_insert(found) != found {
            return Err(LayoutError::AmbiguousEnum(enumeration));
        }
    }
    agreed.ok_or(LayoutError::NoEnum(enumeration))
}

/// The value of one enumerator of one definition of `enum enumeration`.
fn enumerator(
    enumeration: &'static str,
    definition: &Enum<'_>,
    name: &'static str,
) -> Result<u64, LayoutError> {
    for found in definition.enumerators() {
        let (found, value) = found?;
        if found == name.as_bytes() {
            return Ok(value);
        }
    }
    Err(LayoutError::NoEnumerator {
        enumeration,
        enumerator: name,
    })
}
