// SPDX-License-Identifier: GPL-2.0

//! Blobs of BTF made to measure: IMA's declarations as data, which a test alters and then encodes.

/// The type of a member.
#[derive(Clone, Debug)]
pub(crate) enum Ty {
    Void,
    Int(&'static str, u32, u32),
    Float,
    Struct(&'static str),
    Union(&'static str),
    Enum,
    /// A declaration without members; of a union if so.
    Forward(&'static str, bool),
    Pointer(Box<Ty>),
    Array(Box<Ty>, u32),
    /// A typedef or a qualifier, by kind.
    Alias(u32, &'static str, Box<Ty>),
    /// Whatever has this id, which need not exist.
    Id(u32),
}

pub(crate) const TYPEDEF: u32 = 8;
pub(crate) const VOLATILE: u32 = 9;
pub(crate) const CONST: u32 = 10;
pub(crate) const RESTRICT: u32 = 11;
pub(crate) const TYPE_TAG: u32 = 18;

const SIGNED: u32 = 1 << 24;
const BOOL: u32 = 4 << 24;

pub(crate) fn pointer(to: Ty) -> Ty {
    Ty::Pointer(Box::new(to))
}

pub(crate) fn array(of: Ty, count: u32) -> Ty {
    Ty::Array(Box::new(of), count)
}

pub(crate) fn alias(kind: u32, name: &'static str, of: Ty) -> Ty {
    Ty::Alias(kind, name, Box::new(of))
}

pub(crate) fn constant(of: Ty) -> Ty {
    alias(CONST, "", of)
}

pub(crate) fn int() -> Ty {
    Ty::Int("int", 4, 32 | SIGNED)
}

pub(crate) fn long() -> Ty {
    Ty::Int("long int", 8, 64 | SIGNED)
}

pub(crate) fn unsigned(size: u32) -> Ty {
    Ty::Int("unsigned int", size, size * 8)
}

pub(crate) fn char() -> Ty {
    Ty::Int("char", 1, 8)
}

pub(crate) fn signed_char() -> Ty {
    Ty::Int("char", 1, 8 | SIGNED)
}

pub(crate) fn unsigned_char() -> Ty {
    Ty::Int("unsigned char", 1, 8)
}

pub(crate) fn boolean() -> Ty {
    Ty::Int("_Bool", 1, 8 | BOOL)
}

/// An integer that has less bits than its bytes would hold.
pub(crate) fn narrow() -> Ty {
    Ty::Int("unsigned int", 4, 31)
}

/// A char of that sort.
pub(crate) fn narrow_char() -> Ty {
    Ty::Int("char", 1, 7)
}

fn typedef(name: &'static str, of: Ty) -> Ty {
    alias(TYPEDEF, name, of)
}

fn u8() -> Ty {
    typedef("u8", typedef("__u8", unsigned_char()))
}

fn u16() -> Ty {
    typedef("u16", Ty::Int("short unsigned int", 2, 16))
}

fn u32() -> Ty {
    typedef("u32", typedef("__u32", Ty::Int("unsigned int", 4, 32)))
}

#[derive(Clone, Debug)]
pub(crate) struct Member {
    pub(crate) name: &'static str,
    pub(crate) ty: Ty,
    pub(crate) bit_offset: u32,
    /// Not 0 for a bitfield.
    pub(crate) bits: u32,
}

#[derive(Clone, Debug)]
pub(crate) struct Struct {
    pub(crate) name: &'static str,
    pub(crate) size: u32,
    pub(crate) members: Vec<Member>,
}

fn structure(name: &'static str, size: u32, members: &[(&'static str, Ty, u32)]) -> Struct {
    Struct {
        name,
        size,
        members: members
            .iter()
            .map(|(name, ty, offset)| Member {
                name,
                ty: ty.clone(),
                bit_offset: offset * 8,
                bits: 0,
            })
            .collect(),
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Enum {
    pub(crate) name: &'static str,
    pub(crate) signed: bool,
    /// Encoded with 64 bits for a value.
    pub(crate) wide: bool,
    pub(crate) values: Vec<(&'static str, i64)>,
}

/// The declarations that a blob is made from.
#[derive(Clone, Debug)]
pub(crate) struct Ima {
    pub(crate) structs: Vec<Struct>,
    pub(crate) enums: Vec<Enum>,
    pub(crate) big_endian: bool,
    /// What a later version of the format may have appended to the header.
    pub(crate) more_header: Vec<u8>,
}

impl Ima {
    /// The declarations of Linux 7.3 for a 64-bit machine.
    pub(crate) fn new() -> Self {
        use Ty::Struct as S;
        let list = || S("list_head");
        let structs = vec![
            structure(
                "ima_field_data",
                16,
                &[("data", pointer(u8()), 0), ("len", u32(), 8)],
            ),
            structure(
                "list_head",
                16,
                &[("next", pointer(list()), 0), ("prev", pointer(list()), 8)],
            ),
            structure(
                "hlist_node",
                16,
                &[
                    ("next", pointer(S("hlist_node")), 0),
                    ("pprev", pointer(pointer(S("hlist_node"))), 8),
                ],
            ),
            structure(
                "ima_queue_entry",
                40,
                &[
                    ("hnext", S("hlist_node"), 0),
                    ("later", list(), 16),
                    ("entry", pointer(S("ima_template_entry")), 32),
                ],
            ),
            structure(
                "ima_template_entry",
                32,
                &[
                    ("pcr", int(), 0),
                    ("digests", pointer(S("tpm_digest")), 8),
                    ("template_desc", pointer(S("ima_template_desc")), 16),
                    ("template_data_len", u32(), 24),
                    ("template_data", array(S("ima_field_data"), 0), 32),
                ],
            ),
            structure(
                "ima_template_desc",
                48,
                &[
                    ("list", list(), 0),
                    ("name", pointer(char()), 16),
                    ("fmt", pointer(char()), 24),
                    ("num_fields", int(), 32),
                    (
                        "fields",
                        pointer(pointer(constant(S("ima_template_field")))),
                        40,
                    ),
                ],
            ),
            structure(
                "ima_template_field",
                32,
                &[
                    ("field_id", constant(array(constant(char()), 16)), 0),
                    ("field_init", pointer(Ty::Void), 16),
                    ("field_show", pointer(Ty::Void), 24),
                ],
            ),
            structure(
                "tpm_digest",
                66,
                &[("alg_id", u16(), 0), ("digest", array(u8(), 64), 2)],
            ),
        ];
        let enums = vec![Enum {
            name: "binary_lists",
            signed: false,
            wide: false,
            values: vec![
                ("BINARY", 0),
                ("BINARY_STAGED", 1),
                ("BINARY_FULL", 2),
                ("BINARY__LAST", 3),
            ],
        }];
        Ima {
            structs,
            enums,
            big_endian: false,
            more_header: Vec::new(),
        }
    }

    pub(crate) fn structure(&mut self, name: &str) -> &mut Struct {
        self.structs.iter_mut().find(|s| s.name == name).unwrap()
    }

    /// Lets all members that refer to `struct name` refer to another type.
    pub(crate) fn rename(&mut self, name: &str, to: Ty) {
        fn replace(ty: &mut Ty, name: &str, to: &Ty) {
            match ty {
                Ty::Struct(found) if *found == name => *ty = to.clone(),
                Ty::Pointer(of) | Ty::Array(of, _) | Ty::Alias(_, _, of) => replace(of, name, to),
                _ => (),
            }
        }
        for member in self.structs.iter_mut().flat_map(|s| &mut s.members) {
            replace(&mut member.ty, name, &to);
        }
    }

    pub(crate) fn member(&mut self, structure: &str, name: &str) -> &mut Member {
        let members = &mut self.structure(structure).members;
        members.iter_mut().find(|m| m.name == name).unwrap()
    }

    pub(crate) fn enumerator(&mut self, name: &str) -> &mut (&'static str, i64) {
        let values = &mut self.enums[0].values;
        values.iter_mut().find(|v| v.0 == name).unwrap()
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::new(self.big_endian);
        // The structs and enums have the first ids, so that they can refer to each other.
        let mut others = Others {
            structs: self.structs.iter().map(|s| s.name).collect(),
            first: (self.structs.len() + self.enums.len() + 1) as u32,
            records: Vec::new(),
        };
        for s in &self.structs {
            let has_bitfields = s.members.iter().any(|m| m.bits != 0);
            let mut data = Vec::new();
            for m in &s.members {
                let position = if has_bitfields { m.bits << 24 } else { 0 } | m.bit_offset;
                data.extend([writer.name(m.name), others.id(&m.ty), position]);
            }
            let info = Writer::info(4, has_bitfields, s.members.len());
            writer.record(s.name, info, s.size, &data);
        }
        for e in &self.enums {
            let mut data = Vec::new();
            for &(name, value) in &e.values {
                data.extend([writer.name(name), value as u32]);
                if e.wide {
                    data.push((value >> 32) as u32);
                }
            }
            let kind = if e.wide { 19 } else { 6 };
            let info = Writer::info(kind, e.signed, e.values.len());
            writer.record(e.name, info, if e.wide { 8 } else { 4 }, &data);
        }
        for (name, info, value, data) in &others.records {
            writer.record(name, *info, *value, data);
        }
        writer.finish(&self.more_header)
    }
}

/// The types that members have, encoded as they are met.
struct Others {
    structs: Vec<&'static str>,
    first: u32,
    records: Vec<(&'static str, u32, u32, Vec<u32>)>,
}

impl Others {
    fn id(&mut self, ty: &Ty) -> u32 {
        let info = |kind| Writer::info(kind, false, 0);
        let record = match ty {
            Ty::Void => return 0,
            Ty::Id(id) => return *id,
            Ty::Struct(name) => {
                if let Some(position) = self.structs.iter().position(|s| s == name) {
                    return position as u32 + 1;
                }
                (*name, info(4), 8, vec![])
            }
            Ty::Int(name, size, encoding) => (*name, info(1), *size, vec![*encoding]),
            Ty::Float => ("double", info(16), 8, vec![]),
            Ty::Union(name) => (*name, info(5), 8, vec![]),
            Ty::Enum => ("an_enum", info(6), 4, vec![]),
            Ty::Forward(name, union) => (*name, Writer::info(7, *union, 0), 0, vec![]),
            Ty::Pointer(to) => ("", info(2), self.id(to), vec![]),
            Ty::Alias(kind, name, of) => (*name, info(*kind), self.id(of), vec![]),
            Ty::Array(of, count) => {
                let element = self.id(of);
                let index = self.id(&unsigned(4));
                ("", info(3), 0, vec![element, index, *count])
            }
        };
        self.records.push(record);
        self.first + self.records.len() as u32 - 1
    }
}

/// Puts a blob together, record by record.
pub(crate) struct Writer {
    big_endian: bool,
    types: Vec<u8>,
    strings: Vec<u8>,
    /// Where each record begins in the type section, and where the last one ends.
    pub(crate) starts: Vec<usize>,
}

impl Writer {
    pub(crate) fn new(big_endian: bool) -> Self {
        Writer {
            big_endian,
            types: Vec::new(),
            strings: vec![0],
            starts: vec![0],
        }
    }

    pub(crate) fn info(kind: u32, flag: bool, elements: usize) -> u32 {
        (u32::from(flag) << 31) | (kind << 24) | elements as u32
    }

    pub(crate) fn name(&mut self, name: &str) -> u32 {
        if name.is_empty() {
            return 0;
        }
        let offset = self.strings.len();
        self.strings.extend_from_slice(name.as_bytes());
        self.strings.push(0);
        offset as u32
    }

    pub(crate) fn record(&mut self, name: &str, info: u32, value: u32, data: &[u32]) {
        let name = self.name(name);
        for word in [name, info, value].iter().chain(data) {
            let bytes = self.bytes(*word);
            self.types.extend(bytes);
        }
        self.starts.push(self.types.len());
    }

    pub(crate) fn finish(&self, more_header: &[u8]) -> Vec<u8> {
        let magic: u16 = 0xeb9f;
        let mut blob = if self.big_endian {
            magic.to_be_bytes().to_vec()
        } else {
            magic.to_le_bytes().to_vec()
        };
        blob.extend([1, 0]);
        let types = self.types.len() as u32;
        let strings = self.strings.len() as u32;
        for word in [24 + more_header.len() as u32, 0, types, types, strings] {
            blob.extend(self.bytes(word));
        }
        blob.extend(more_header);
        blob.extend(&self.types);
        blob.extend(&self.strings);
        blob
    }

    fn bytes(&self, word: u32) -> [u8; 4] {
        if self.big_endian {
            word.to_be_bytes()
        } else {
            word.to_le_bytes()
        }
    }
}
