// SPDX-License-Identifier: GPL-2.0

//! Reading BTF and finding IMA's structs in it: the real one of a kernel, and made up ones that are
//! cut short, altered, or describe another IMA.

mod btf_fixtures;

use btf_fixtures::*;
use ima_trim_pure::btf::{Btf, BtfError, Index, Kind};
use ima_trim_pure::layout::{
    BinaryLists, FieldData, Layout, LayoutError, QueueEntry, TemplateDesc, TemplateEntry,
    TemplateField, TpmDigest,
};
use proptest::prelude::*;
use std::collections::HashMap;
use std::process::Command;
use std::time::{Duration, Instant};

/// What [`Ima::new`] describes.
const LAYOUT: Layout = Layout {
    queue_entry: QueueEntry {
        size: 40,
        hnext: 0,
        later: 16,
        entry: 32,
    },
    template_entry: TemplateEntry {
        size: 32,
        pcr: 0,
        digests: 8,
        template_desc: 16,
        template_data_len: 24,
        template_data: 32,
    },
    template_desc: TemplateDesc {
        name: 16,
        num_fields: 32,
        fields: 40,
    },
    template_field: TemplateField {
        field_id: 0,
        field_id_len: 16,
    },
    field_data: FieldData {
        size: 16,
        data: 0,
        len: 8,
    },
    tpm_digest: TpmDigest {
        size: 66,
        alg_id: 0,
        digest: 2,
        digest_len: 64,
    },
    binary_lists: BinaryLists {
        binary: 0,
        binary_staged: 1,
        binary_full: 2,
        last: 3,
    },
};

/// All members that the layout has, by struct.
const MEMBERS: &[(&str, &str)] = &[
    ("ima_queue_entry", "hnext"),
    ("ima_queue_entry", "later"),
    ("ima_queue_entry", "entry"),
    ("ima_template_entry", "pcr"),
    ("ima_template_entry", "digests"),
    ("ima_template_entry", "template_desc"),
    ("ima_template_entry", "template_data_len"),
    ("ima_template_entry", "template_data"),
    ("ima_template_desc", "name"),
    ("ima_template_desc", "num_fields"),
    ("ima_template_desc", "fields"),
    ("ima_template_field", "field_id"),
    ("ima_field_data", "data"),
    ("ima_field_data", "len"),
    ("tpm_digest", "alg_id"),
    ("tpm_digest", "digest"),
];

const STRUCTS: &[&str] = &[
    "ima_queue_entry",
    "ima_template_entry",
    "ima_template_desc",
    "ima_template_field",
    "ima_field_data",
    "tpm_digest",
];

const ENUMERATORS: &[&str] = &["BINARY", "BINARY_STAGED", "BINARY_FULL", "BINARY__LAST"];

/// The whole way from a blob to the layout, as the module goes it.
fn resolve(blob: &[u8]) -> Result<Layout, LayoutError> {
    let btf = Btf::parse(blob)?;
    let mut offsets = vec![0; btf.count_types()? as usize];
    Layout::resolve(&btf.index(&mut offsets)?)
}

/// Visits everything that can be reached by the public functions.
fn visit(blob: &[u8]) -> Result<(), BtfError> {
    let btf = Btf::parse(blob)?;
    let count = btf.count_types()?;
    let mut offsets = vec![0; count as usize];
    let index = btf.index(&mut offsets)?;
    for id in 0..=count + 1 {
        let _ = index.resolve(id);
        match index.get(id).map(|found| found.kind) {
            Ok(Kind::Struct(found) | Kind::Union(found)) => found.members().for_each(drop),
            Ok(Kind::Enum(found)) => found.enumerators().for_each(drop),
            _ => (),
        }
    }
    Ok(())
}

fn count_types(blob: &[u8]) -> u32 {
    Btf::parse(blob).unwrap().count_types().unwrap()
}

/// Runs `f` with the index of a well-formed blob.
fn with_index<R>(blob: &[u8], f: impl FnOnce(Index<'_>) -> R) -> R {
    let btf = Btf::parse(blob).unwrap();
    let mut offsets = vec![0; btf.count_types().unwrap() as usize];
    f(btf.index(&mut offsets).unwrap())
}

/// The layout of the altered declarations.
fn altered(alter: impl FnOnce(&mut Ima)) -> Result<Layout, LayoutError> {
    let mut ima = Ima::new();
    alter(&mut ima);
    resolve(&ima.encode())
}

/// Asserts that the altered declarations are refused with this message.
#[track_caller]
fn refused(message: &str, alter: impl FnOnce(&mut Ima)) {
    let error = altered(alter).expect_err("it should have been refused");
    assert_eq!(error.to_string(), message);
}

// ---- the BTF of a real kernel ----

fn real() -> Vec<u8> {
    let path = std::env::var_os("IMA_TRIM_BTF").expect(
        "IMA_TRIM_BTF is not set: it names the file with the kernel's BTF. 'make test T=host' makes it and runs \
         these tests; tools/testing/vm/vmlinux-btf takes it out of a kernel image",
    );
    std::fs::read(&path).unwrap_or_else(|error| panic!("IMA_TRIM_BTF={path:?}: {error}"))
}

/// What pahole says: of a struct the size, of a member (as `struct.member`) the offset and size, of
/// an enumerator the value as a size.
fn pahole() -> HashMap<String, (usize, usize)> {
    let path = std::env::var_os("IMA_TRIM_BTF").unwrap();
    let output = Command::new("pahole")
        .args(["-F", "btf", "-C"])
        .arg(format!("{},binary_lists", STRUCTS.join(",")))
        .arg(path)
        .output()
        .expect("pahole cannot be run: install it; the build root of 'make test' has it");
    let mut found = HashMap::new();
    let mut structure = String::new();
    for line in String::from_utf8(output.stdout).unwrap().lines() {
        let numbers: Vec<usize> = line
            .split("/*")
            .last()
            .unwrap()
            .split(|c: char| !c.is_ascii_digit())
            .filter_map(|number| number.parse().ok())
            .collect();
        if let Some((enumerator, value)) = line.split_once(" = ") {
            let value = value.trim_end_matches(',').parse().unwrap();
            found.insert(enumerator.trim().to_string(), (0, value));
        } else if let Some(name) = line
            .strip_prefix("struct ")
            .and_then(|s| s.strip_suffix(" {"))
        {
            structure = name.to_string();
        } else if line.contains("/* size: ") {
            found.insert(structure.clone(), (0, numbers[0]));
        } else if let (Some((declaration, _)), [offset, size]) =
            (line.split_once(';'), &numbers[..])
        {
            let member = declaration.split('[').next().unwrap();
            let member = member.rsplit([' ', '*']).next().unwrap();
            found.insert(format!("{structure}.{member}"), (*offset, *size));
        }
    }
    found
}

#[test]
fn the_layout_of_a_real_kernel_is_what_pahole_says() {
    let layout = resolve(&real()).unwrap_or_else(|error| panic!("{error}"));
    let pahole = pahole();
    let offset = |member: &str| pahole[member].0;
    let size = |name: &str| pahole[name].1;
    let expected = Layout {
        queue_entry: QueueEntry {
            size: size("ima_queue_entry"),
            hnext: offset("ima_queue_entry.hnext"),
            later: offset("ima_queue_entry.later"),
            entry: offset("ima_queue_entry.entry"),
        },
        template_entry: TemplateEntry {
            size: size("ima_template_entry"),
            pcr: offset("ima_template_entry.pcr"),
            digests: offset("ima_template_entry.digests"),
            template_desc: offset("ima_template_entry.template_desc"),
            template_data_len: offset("ima_template_entry.template_data_len"),
            template_data: offset("ima_template_entry.template_data"),
        },
        template_desc: TemplateDesc {
            name: offset("ima_template_desc.name"),
            num_fields: offset("ima_template_desc.num_fields"),
            fields: offset("ima_template_desc.fields"),
        },
        template_field: TemplateField {
            field_id: offset("ima_template_field.field_id"),
            field_id_len: size("ima_template_field.field_id"),
        },
        field_data: FieldData {
            size: size("ima_field_data"),
            data: offset("ima_field_data.data"),
            len: offset("ima_field_data.len"),
        },
        tpm_digest: TpmDigest {
            size: size("tpm_digest"),
            alg_id: offset("tpm_digest.alg_id"),
            digest: offset("tpm_digest.digest"),
            digest_len: size("tpm_digest.digest"),
        },
        binary_lists: BinaryLists {
            binary: size("BINARY"),
            binary_staged: size("BINARY_STAGED"),
            binary_full: size("BINARY_FULL"),
            last: size("BINARY__LAST"),
        },
    };
    assert_eq!(layout, expected);
}

#[test]
fn a_real_kernel_is_read_to_the_last_type() {
    let blob = real();
    let start = Instant::now();
    resolve(&blob).unwrap();
    // It takes some 10 ms; what is far from that would be felt when the module is loaded.
    assert!(start.elapsed() < Duration::from_secs(1));

    // Every kernel has more types than that, and nothing in any of them is out of place.
    assert!(count_types(&blob) > 10_000);
    with_index(&blob, |index| {
        for id in 0..=count_types(&blob) {
            match index.get(id).unwrap().kind {
                Kind::Struct(found) | Kind::Union(found) => {
                    for member in found.members() {
                        index.resolve(member.unwrap().type_id).unwrap();
                    }
                }
                Kind::Enum(found) => assert!(found.enumerators().all(|e| e.is_ok())),
                _ => drop(index.resolve(id).unwrap()),
            }
        }
    });
}

#[test]
fn a_real_kernel_cut_short_is_refused() {
    let blob = real();
    let word = |at: usize| u32::from_le_bytes(blob[at..at + 4].try_into().unwrap()) as usize;
    let types_end = word(4) + word(8) + word(12);
    let coarse = (0..blob.len()).step_by(50_021);
    let dense = (0..64).chain(types_end - 64..types_end + 64);
    for length in coarse.chain(dense).chain(blob.len() - 64..blob.len()) {
        assert!(Btf::parse(&blob[..length]).is_err(), "{length} bytes");
    }

    // The same with a header that agrees, so that it is the types that are cut.
    for missing in (1..64).chain((64..types_end - 64).step_by(150_011)) {
        let mut blob = blob.clone();
        let length = word(12) - missing;
        blob[12..16].copy_from_slice(&(length as u32).to_le_bytes());
        match Btf::parse(&blob).unwrap().count_types() {
            Ok(count) => assert!(count < 1_000_000),
            Err(error) => assert!(matches!(error, BtfError::Record(at) if at < length)),
        }
        assert!(ends_soon(&blob));
    }
}

/// Whether looking for the layout ends, and soon.
fn ends_soon(blob: &[u8]) -> bool {
    let start = Instant::now();
    let _ = resolve(blob);
    start.elapsed() < Duration::from_secs(5)
}

// ---- the format ----

#[test]
fn the_header_is_checked() {
    let good = Ima::new().encode();
    let length = good.len();
    let types = u32::from_le_bytes(good[12..16].try_into().unwrap());
    let strings = u32::from_le_bytes(good[20..24].try_into().unwrap());
    assert!(Btf::parse(&good).is_ok());

    let check = |at: usize, bytes: &[u8], message: &str| {
        let mut blob = good.clone();
        blob[at..at + bytes.len()].copy_from_slice(bytes);
        let error = Btf::parse(&blob)
            .err()
            .unwrap_or_else(|| panic!("not refused: {message}"));
        assert_eq!(error.to_string(), message);
    };
    let word = |at, word: u32, message: &str| check(at, &word.to_le_bytes(), message);

    check(0, &[0x7f, 0x45], "invalid BTF magic: 0x457f");
    check(2, &[0], "invalid BTF version: 0");
    check(2, &[2], "invalid BTF version: 2");
    check(3, &[1], "invalid BTF flags: 0x1");
    for bad in [0, 23, length as u32 + 1, u32::MAX] {
        word(4, bad, &format!("invalid BTF header length: {bad}"));
    }
    for bad in [2, length as u32, u32::MAX - 3] {
        word(
            8,
            bad,
            &format!("invalid BTF type section: {types} bytes at {bad}"),
        );
    }
    for bad in [length as u32, u32::MAX] {
        word(
            12,
            bad,
            &format!("invalid BTF type section: {bad} bytes at 0"),
        );
    }
    for bad in [0, types + 1, u32::MAX] {
        word(
            16,
            bad,
            &format!("invalid BTF string section: {strings} bytes at {bad}"),
        );
    }
    for bad in [0, strings - 1, strings + 1, u32::MAX] {
        word(
            20,
            bad,
            &format!("invalid BTF string section: {bad} bytes at {types}"),
        );
    }
    for at in [24 + types as usize, length - 1] {
        let message = format!("invalid BTF string section: {strings} bytes at {types}");
        check(at, b"x", &message);
    }
    for length in 0..24 {
        let error = Btf::parse(&good[..length]).err().unwrap();
        assert_eq!(error.to_string(), format!("invalid BTF length: {length}"));
    }
}

#[test]
fn a_longer_header_and_either_byte_order_are_read() {
    for big_endian in [false, true] {
        for more_header in [0, 4, 8, 100] {
            let layout = altered(|ima| {
                ima.big_endian = big_endian;
                ima.more_header = vec![0xff; more_header];
            });
            assert_eq!(layout, Ok(LAYOUT));
        }
    }
}

/// One record of each kind with elements where it can have them, and the kind of each.
fn every_kind() -> (Writer, Vec<u32>) {
    let mut writer = Writer::new(false);
    let mut kinds = Vec::new();
    let a = writer.name("a");
    let mut add = |kind: u32, flag: bool, elements: usize, data: &[u32]| {
        writer.record("x", Writer::info(kind, flag, elements), 1, data);
        kinds.push(kind);
    };
    add(1, false, 0, &[8]);
    add(2, false, 0, &[]);
    add(3, false, 0, &[1, 1, 5]);
    add(4, true, 2, &[a, 1, 0, a, 1, (3 << 24) | 8]);
    add(5, false, 1, &[a, 1, 0]);
    add(6, true, 2, &[a, 7, a, u32::MAX]);
    add(7, false, 0, &[]);
    add(7, true, 0, &[]);
    for kind in [8, 9, 10, 11, 12] {
        add(kind, false, 0, &[]);
    }
    // The number of elements of a function is its linkage: nothing follows.
    add(12, false, 1, &[]);
    add(13, false, 2, &[a, 1, 0, 0]);
    add(14, false, 0, &[1]);
    add(15, false, 2, &[1, 0, 4, 1, 4, 4]);
    add(16, false, 0, &[]);
    add(17, false, 0, &[u32::MAX]);
    add(18, false, 0, &[]);
    add(19, false, 2, &[a, 7, 1, a, u32::MAX, u32::MAX]);
    add(1, false, 0, &[8]);
    (writer, kinds)
}

#[test]
fn every_kind_of_type_is_known_and_has_its_length() {
    let (writer, kinds) = every_kind();
    let blob = writer.finish(&[]);
    assert_eq!(count_types(&blob) as usize, kinds.len());
    with_index(&blob, |index| {
        for (position, kind) in kinds.iter().enumerate() {
            let found = index.get(position as u32 + 1).unwrap();
            assert_eq!(found.name, b"x");
            let as_expected = match found.kind {
                Kind::Void => false,
                Kind::Int(int) => *kind == 1 && int.size == 1 && int.whole && !int.signed,
                Kind::Pointer(1) => *kind == 2,
                Kind::Array { element, count } => *kind == 3 && (element, count) == (1, 5),
                Kind::Struct(_) => *kind == 4,
                Kind::Union(_) => *kind == 5,
                Kind::Enum(_) => matches!(kind, 6 | 19),
                Kind::ForwardStruct | Kind::ForwardUnion => *kind == 7,
                Kind::Alias(1) => matches!(kind, 8..=11 | 18),
                Kind::Float(1) => *kind == 16,
                Kind::Other => matches!(kind, 12..=15 | 17),
                _ => false,
            };
            assert!(as_expected, "type {position} of kind {kind}");
        }

        let members = |id: u32| match index.get(id).unwrap().kind {
            Kind::Struct(found) | Kind::Union(found) => found
                .members()
                .map(|m| m.map(|m| (m.name, m.bit_offset, m.bitfield_size)))
                .collect::<Result<Vec<_>, _>>()
                .unwrap(),
            _ => panic!("type {id} has no members"),
        };
        assert_eq!(members(4), [(&b"a"[..], 0, 0), (b"a", 8, 3)]);
        assert_eq!(members(5), [(&b"a"[..], 0, 0)]);

        let values = |position: usize| match index.get(position as u32 + 1).unwrap().kind {
            Kind::Enum(found) => found
                .enumerators()
                .map(|e| e.unwrap().1)
                .collect::<Vec<_>>(),
            _ => panic!("no enum"),
        };
        let wide = kinds.iter().position(|&kind| kind == 19).unwrap();
        assert_eq!(values(5), [7, u64::MAX]);
        assert_eq!(values(wide), [(1 << 32) | 7, u64::MAX]);
    });
}

#[test]
fn a_type_may_have_more_elements_than_16_bits_count() {
    let mut writer = Writer::new(false);
    let count = 0x1_0001;
    writer.record("x", Writer::info(6, false, count), 4, &vec![0; 2 * count]);
    with_index(&writer.finish(&[]), |index| {
        let found = index.enums("x").next().unwrap().unwrap();
        assert_eq!(found.enumerators().count(), count);
    });
}

#[test]
fn a_type_of_unknown_kind_is_refused() {
    for kind in [0, 20, 31, 64, 127] {
        let (mut writer, _) = every_kind();
        let at = *writer.starts.last().unwrap();
        writer.record("x", Writer::info(kind, false, 0), 1, &[]);
        let blob = writer.finish(&[]);
        let error = Btf::parse(&blob).unwrap().count_types().unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("invalid BTF kind: {kind}, of the type at {at}")
        );
    }
}

#[test]
fn types_cut_short_are_refused_at_every_byte() {
    let (writer, _) = every_kind();
    let mut ends_well = 0;
    for length in 0..*writer.starts.last().unwrap() {
        let mut blob = writer.finish(&[]);
        blob[12..16].copy_from_slice(&(length as u32).to_le_bytes());
        let count = Btf::parse(&blob).unwrap().count_types();
        let complete = writer.starts.iter().filter(|&&s| s <= length).count() - 1;
        if writer.starts.contains(&length) {
            assert_eq!(count, Ok(complete as u32));
            ends_well += 1;
        } else {
            assert_eq!(count, Err(BtfError::Record(writer.starts[complete])));
        }
    }
    assert_eq!(ends_well, writer.starts.len() - 1);

    // More elements than there are bytes.
    for kind in [4, 5, 6, 13, 15, 19] {
        let mut writer = Writer::new(false);
        writer.record("x", Writer::info(kind, false, 0x00ff_ffff), 0, &[0; 30]);
        let count = Btf::parse(&writer.finish(&[])).unwrap().count_types();
        assert_eq!(count, Err(BtfError::Record(0)));
    }
}

#[test]
fn every_prefix_is_refused() {
    let blob = Ima::new().encode();
    for length in 0..blob.len() {
        assert!(resolve(&blob[..length]).is_err(), "{length} bytes");
    }
    assert_eq!(resolve(&blob), Ok(LAYOUT));
}

#[test]
fn the_buffer_of_the_index_must_be_large_enough() {
    let blob = Ima::new().encode();
    let btf = Btf::parse(&blob).unwrap();
    let count = btf.count_types().unwrap() as usize;
    for length in [0, 1, count - 1] {
        let mut buf = vec![0; length];
        let error = btf.index(&mut buf).err().unwrap();
        assert_eq!(
            error.to_string(),
            format!("invalid BTF index length: {length}, too small")
        );
    }
    for length in [count, count + 1, 2 * count] {
        let mut buf = vec![u32::MAX; length];
        let index = btf.index(&mut buf).unwrap();
        assert_eq!(Layout::resolve(&index), Ok(LAYOUT));
        // What is left of a larger buffer is no type.
        let beyond = count as u32 + 1;
        assert_eq!(index.get(beyond).err(), Some(BtfError::TypeId(beyond)));
    }
}

#[test]
fn a_name_that_is_not_there_is_refused() {
    let blob = Ima::new().encode();
    let strings = u32::from_le_bytes(blob[20..24].try_into().unwrap());
    for bad in [strings, u32::MAX] {
        // That of the first struct, and that of its first member.
        for at in [24, 24 + 12] {
            let mut blob = blob.clone();
            blob[at..at + 4].copy_from_slice(&bad.to_le_bytes());
            let error = resolve(&blob).unwrap_err();
            assert_eq!(error.to_string(), format!("invalid BTF name offset: {bad}"));
        }
    }
    // A name is all of a string, not its beginning or end.
    for name in ["tpm_digests", "tpm_diges", "_tpm_digest", "pm_digest", ""] {
        refused("there is no struct tpm_digest", |ima| {
            ima.rename("tpm_digest", Ty::Struct(name));
            ima.structure("tpm_digest").name = name;
        });
    }
}

#[test]
fn typedefs_are_followed_so_far_and_no_further() {
    let chain = |length: usize| {
        (0..length).fold(int(), |of, i| {
            let kinds = [TYPEDEF, VOLATILE, CONST, RESTRICT, TYPE_TAG];
            alias(kinds[i % kinds.len()], "t", of)
        })
    };
    let pcr = |ty: Ty| altered(|ima| ima.member("ima_template_entry", "pcr").ty = ty);
    assert_eq!(pcr(chain(31)), Ok(LAYOUT));
    assert!(matches!(
        pcr(chain(32)),
        Err(LayoutError::Btf(BtfError::Aliases(_)))
    ));

    // A typedef of itself: the first type after the structs and the enum.
    let own_id = Ima::new().structs.len() as u32 + 2;
    let error = altered(|ima| {
        ima.member("ima_field_data", "data").ty = alias(TYPEDEF, "t", Ty::Id(own_id));
    })
    .unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("invalid BTF typedef: type id {own_id}, endless")
    );

    refused("invalid BTF type id: 4000000000", |ima| {
        ima.member("ima_field_data", "data").ty = pointer(Ty::Id(4_000_000_000));
    });
}

// ---- another IMA ----

#[test]
fn the_layout_follows_the_declarations() {
    // As if each struct had something new before all else, and room behind.
    let moved = altered(|ima| {
        for s in &mut ima.structs {
            let more = if s.name == "tpm_digest" { 2 } else { 8 };
            if matches!(s.name, "list_head" | "hlist_node") {
                continue;
            }
            s.size += 2 * more;
            for m in &mut s.members {
                m.bit_offset += 8 * more;
            }
        }
        ima.member("ima_template_field", "field_id").ty = array(signed_char(), 15);
        ima.structure("tpm_digest").size += 36;
        ima.member("tpm_digest", "digest").ty = array(unsigned_char(), 100);
        ima.enums[0].values = vec![
            ("BINARY__LAST", 8),
            ("BINARY_FULL", 0),
            ("BINARY", 7),
            ("BINARY_NEW", 2),
            ("BINARY_STAGED", 3),
        ];
    });
    assert_eq!(
        moved,
        Ok(Layout {
            queue_entry: QueueEntry {
                size: 56,
                hnext: 8,
                later: 24,
                entry: 40
            },
            template_entry: TemplateEntry {
                size: 48,
                pcr: 8,
                digests: 16,
                template_desc: 24,
                template_data_len: 32,
                template_data: 40,
            },
            template_desc: TemplateDesc {
                name: 24,
                num_fields: 40,
                fields: 48
            },
            template_field: TemplateField {
                field_id: 8,
                field_id_len: 15
            },
            field_data: FieldData {
                size: 32,
                data: 8,
                len: 16
            },
            tpm_digest: TpmDigest {
                size: 106,
                alg_id: 2,
                digest: 4,
                digest_len: 100
            },
            binary_lists: BinaryLists {
                binary: 7,
                binary_staged: 3,
                binary_full: 0,
                last: 8
            },
        })
    );
}

#[test]
fn what_is_not_used_may_change() {
    assert_eq!(
        altered(|ima| {
            ima.structure("ima_template_desc").members.remove(0);
            ima.member("ima_template_desc", "fmt").name = "format";
            ima.member("ima_template_field", "field_init").ty = Ty::Union("other");
            ima.structure("hlist_node").members.clear();
            // A bitfield changes how all offsets of its struct are encoded.
            ima.member("ima_template_desc", "format").bits = 3;
        }),
        Ok(LAYOUT)
    );
}

#[test]
fn each_struct_is_needed() {
    for &name in STRUCTS {
        let message = format!("there is no struct {name}");
        refused(&message, |ima| {
            ima.rename(name, Ty::Struct("another"));
            ima.structure(name).name = "another";
        });
        // A declaration without members is no definition, nor is a union.
        refused(&message, |ima| {
            ima.rename(name, Ty::Forward(name, false));
            ima.structs.retain(|s| s.name != name);
        });
        refused(&message, |ima| {
            ima.rename(name, Ty::Union(name));
            ima.structs.retain(|s| s.name != name);
        });
    }
}

#[test]
fn each_member_is_needed() {
    for &(structure, member) in MEMBERS {
        let message = format!("struct {structure} has no member '{member}'");
        refused(&message, |ima| {
            ima.member(structure, member).name = "renamed"
        });
        refused(&message, |ima| ima.member(structure, member).name = "");
        refused(&message, |ima| {
            ima.structure(structure)
                .members
                .retain(|m| m.name != member);
        });
    }
}

#[test]
fn no_member_may_have_another_type() {
    let wrong = [
        (Ty::Void, "void"),
        (Ty::Float, "floating point number"),
        (Ty::Union("other"), "union"),
        (Ty::Enum, "enum"),
        (Ty::Struct("other"), "another struct"),
        (Ty::Forward("other", false), "struct without members"),
        (Ty::Forward("other", true), "union"),
        (unsigned(8), "8-byte unsigned integer"),
        (long(), "8-byte signed integer"),
        (boolean(), "1-byte unsigned integer"),
        (narrow(), "4-byte unsigned integer"),
    ];
    for &(structure, member) in MEMBERS {
        for (ty, found) in &wrong {
            for ty in [
                ty.clone(),
                constant(ty.clone()),
                alias(TYPEDEF, "t", ty.clone()),
            ] {
                let error = altered(|ima| ima.member(structure, member).ty = ty).unwrap_err();
                let message = error.to_string();
                assert!(
                    message.starts_with(&format!("struct {structure}: member '{member}' is not a"))
                        && message.ends_with(&format!(" (found: {found})")),
                    "{message}"
                );
            }
        }
    }
}

#[test]
fn types_that_differ_little_are_told_apart() {
    let check = |structure: &str, member: &str, expected: &str, cases: &[(Ty, &str)]| {
        for (ty, found) in cases {
            refused(
                &format!(
                    "struct {structure}: member '{member}' is not {expected} (found: {found})"
                ),
                |ima| ima.member(structure, member).ty = ty.clone(),
            );
        }
    };
    let of = Ty::Struct;
    check(
        "ima_queue_entry",
        "hnext",
        "a struct hlist_node",
        &[(of("list_head"), "another struct")],
    );
    check(
        "ima_queue_entry",
        "later",
        "a struct list_head",
        &[
            (of("hlist_node"), "another struct"),
            (pointer(of("list_head")), "pointer"),
            (array(of("list_head"), 1), "array of 1"),
        ],
    );
    check(
        "ima_queue_entry",
        "entry",
        "a pointer to a struct ima_template_entry",
        &[
            (of("ima_template_entry"), "another struct"),
            (pointer(pointer(of("ima_template_entry"))), "pointer"),
            (pointer(of("ima_template_desc")), "another struct"),
            (pointer(Ty::Void), "void"),
            (
                pointer(Ty::Forward("ima_template_entry", false)),
                "struct without members",
            ),
        ],
    );
    check(
        "ima_template_entry",
        "pcr",
        "a 4-byte signed integer",
        &[
            (unsigned(4), "4-byte unsigned integer"),
            (long(), "8-byte signed integer"),
        ],
    );
    check(
        "ima_template_entry",
        "template_data_len",
        "a 4-byte unsigned integer",
        &[
            (int(), "4-byte signed integer"),
            (unsigned(8), "8-byte unsigned integer"),
        ],
    );
    check(
        "ima_template_entry",
        "template_data",
        "a flexible array, each a struct ima_field_data",
        &[
            (pointer(of("ima_field_data")), "pointer"),
            (array(of("ima_field_data"), 1), "array of 1"),
            (array(pointer(of("ima_field_data")), 0), "pointer"),
        ],
    );
    check(
        "ima_template_desc",
        "name",
        "a pointer to a char",
        &[
            (pointer(unsigned_char()), "1-byte unsigned integer"),
            (pointer(narrow_char()), "1-byte unsigned integer"),
            (array(char(), 16), "array of 16"),
        ],
    );
    check(
        "ima_template_desc",
        "fields",
        "a pointer to a pointer to a struct ima_template_field",
        &[(pointer(of("ima_template_field")), "another struct")],
    );
    check(
        "ima_template_field",
        "field_id",
        "an array of 1 or more, each a char",
        &[
            (pointer(char()), "pointer"),
            (array(char(), 0), "array of 0"),
        ],
    );
    check(
        "ima_field_data",
        "data",
        "a pointer to a 1-byte unsigned integer",
        &[
            (pointer(Ty::Void), "void"),
            (pointer(boolean()), "1-byte unsigned integer"),
        ],
    );
    check(
        "ima_field_data",
        "len",
        "a 4-byte unsigned integer",
        &[(unsigned(2), "2-byte unsigned integer")],
    );
    check(
        "tpm_digest",
        "alg_id",
        "a 2-byte unsigned integer",
        &[(unsigned(1), "1-byte unsigned integer")],
    );
    check(
        "tpm_digest",
        "digest",
        "an array of 64 or more, each a 1-byte unsigned integer",
        &[
            (array(unsigned_char(), 63), "array of 63"),
            (array(signed_char(), 64), "1-byte signed integer"),
            (array(unsigned(4), 64), "4-byte unsigned integer"),
        ],
    );
    // An array that would be larger than a size can tell.
    refused(
        "struct ima_template_field: member 'field_id' is misplaced, at bit 0 of 32 bytes",
        |ima| ima.member("ima_template_field", "field_id").ty = array(char(), u32::MAX),
    );
}

#[test]
fn types_that_are_the_same_are_taken() {
    let qualified = |kind| alias(kind, "", pointer(alias(kind, "", Ty::Struct("tpm_digest"))));
    for kind in [TYPEDEF, VOLATILE, CONST, RESTRICT, TYPE_TAG] {
        assert_eq!(
            altered(|ima| ima.member("ima_template_entry", "digests").ty = qualified(kind)),
            Ok(LAYOUT)
        );
    }
    // char has a sign on some machines.
    assert_eq!(
        altered(|ima| {
            ima.member("ima_template_desc", "name").ty = pointer(signed_char());
            ima.member("ima_template_field", "field_id").ty = array(signed_char(), 16);
        }),
        Ok(LAYOUT)
    );
}

#[test]
fn each_member_is_aligned_within_its_struct() {
    for &(structure, member) in MEMBERS {
        let mut ima = Ima::new();
        let size = ima.structure(structure).size;
        let message = |bit: u32, size: u32| {
            format!(
                "struct {structure}: member '{member}' is misplaced, at bit {bit} of {size} bytes"
            )
        };
        let at = |bit: u32| move |ima: &mut Ima| ima.member(structure, member).bit_offset = bit;
        // Not at a byte, and beyond the end.
        let bit = ima.member(structure, member).bit_offset + 1;
        refused(&message(bit, size), at(bit));
        for bit in [size * 8 + 64, u32::MAX - 63] {
            refused(&message(bit, size), at(bit));
        }
        // Half outside; a flexible array may end the struct.
        if member != "template_data" {
            refused(&message(size * 8, size), at(size * 8));
        }
        // The arrays of bytes alone may be anywhere.
        if !matches!(member, "digest" | "field_id") {
            refused(&message(8, size), at(8));
        }
    }
    // The last member that fits just so, and one byte less.
    for (structure, member) in [
        ("ima_queue_entry", "entry"),
        ("ima_template_desc", "fields"),
    ] {
        refused_place(structure, member, |ima| ima.structure(structure).size -= 8);
    }
    refused_place("tpm_digest", "digest", |ima| {
        ima.member("tpm_digest", "digest").ty = array(unsigned_char(), 65);
    });
}

#[track_caller]
fn refused_place(structure: &str, member: &str, alter: impl FnOnce(&mut Ima)) {
    let message = altered(alter).unwrap_err().to_string();
    let expected = format!("struct {structure}: member '{member}' is misplaced, ");
    assert!(message.starts_with(&expected), "{message}");
}

#[test]
fn each_struct_could_be_the_element_of_an_array() {
    for (structure, size) in [
        ("ima_queue_entry", 41),
        ("ima_template_entry", 34),
        ("ima_template_desc", 52),
        ("ima_field_data", 18),
        ("tpm_digest", 67),
    ] {
        refused(
            &format!("struct {structure}: invalid size: {size}"),
            |ima| {
                ima.structure(structure).size = size;
            },
        );
    }
}

#[test]
fn no_member_may_be_a_bitfield() {
    for &(structure, member) in MEMBERS {
        refused(
            &format!("struct {structure}: member '{member}' is a bitfield"),
            |ima| ima.member(structure, member).bits = 8,
        );
    }
}

#[test]
fn structs_of_one_name_must_agree() {
    for &name in STRUCTS {
        let again = |alter: &dyn Fn(&mut Struct)| {
            altered(|ima| {
                let mut copy = ima.structure(name).clone();
                alter(&mut copy);
                ima.structs.push(copy);
            })
        };
        assert_eq!(again(&|_| ()), Ok(LAYOUT));

        let error = again(&|copy| copy.members.clear()).unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with(&format!("struct {name} has no member '")),
            "{error}"
        );
        let message = format!("there are different structs {name}");
        let error = again(&|copy| copy.size += 16).unwrap_err();
        assert_eq!(error.to_string(), message);
        let error = again(&|copy| {
            copy.size += 16;
            copy.members.iter_mut().for_each(|m| m.bit_offset += 64);
        });
        assert_eq!(error.unwrap_err().to_string(), message);
    }
    // What is not used need not agree, nor does what only has the same name.
    assert_eq!(
        altered(|ima| {
            let mut copy = ima.structure("ima_template_desc").clone();
            copy.members.retain(|m| m.name != "fmt");
            ima.structs.push(copy);
            ima.member("ima_template_field", "field_show").ty = Ty::Forward("tpm_digest", true);
        }),
        Ok(LAYOUT)
    );
}

#[test]
fn each_enumerator_is_needed_and_an_index_of_its_own() {
    refused("there is no enum binary_lists", |ima| {
        ima.enums[0].name = "lists"
    });
    refused("there is no enum binary_lists", |ima| ima.enums.clear());
    for &name in ENUMERATORS {
        let message = format!("enum binary_lists has no enumerator '{name}'");
        refused(&message, |ima| ima.enumerator(name).0 = "RENAMED");
        refused(&message, |ima| ima.enums[0].values.retain(|v| v.0 != name));
    }

    let invalid = |name: &str, value: u64, alter: &dyn Fn(&mut Ima)| {
        refused(
            &format!("enum binary_lists: enumerator '{name}' is no valid index: {value}"),
            alter,
        );
    };
    for name in ["BINARY", "BINARY_STAGED", "BINARY_FULL"] {
        // As great as the number of lists, greater, less than nothing.
        invalid(name, 3, &|ima| ima.enumerator(name).1 = 3);
        invalid(name, 4, &|ima| ima.enumerator(name).1 = 4);
        invalid(name, u64::MAX, &|ima| {
            ima.enums[0].signed = true;
            ima.enumerator(name).1 = -1;
        });
        invalid(name, u64::from(u32::MAX), &|ima| {
            ima.enumerator(name).1 = -1
        });
    }
    invalid("BINARY", 1, &|ima| ima.enumerator("BINARY").1 = 1);
    invalid("BINARY", 0, &|ima| ima.enumerator("BINARY_FULL").1 = 0);
    invalid("BINARY_STAGED", 2, &|ima| {
        ima.enumerator("BINARY_STAGED").1 = 2
    });
    // Less lists than there are, and more than there can be.
    invalid("BINARY_FULL", 2, &|ima| {
        ima.enumerator("BINARY__LAST").1 = 2
    });
    invalid("BINARY__LAST", 9, &|ima| {
        ima.enumerator("BINARY__LAST").1 = 9
    });
    invalid("BINARY__LAST", 1 << 31, &|ima| {
        ima.enumerator("BINARY__LAST").1 = 1 << 31
    });
    assert!(altered(|ima| ima.enumerator("BINARY__LAST").1 = 8).is_ok());
}

#[test]
fn enums_may_be_wide_and_must_agree() {
    for (signed, wide) in [(true, false), (false, true), (true, true)] {
        assert_eq!(
            altered(|ima| {
                ima.enums[0].signed = signed;
                ima.enums[0].wide = wide;
            }),
            Ok(LAYOUT)
        );
    }
    refused(
        "enum binary_lists: enumerator 'BINARY' is no valid index: 4294967296",
        |ima| {
            ima.enums[0].wide = true;
            ima.enumerator("BINARY").1 = 1 << 32;
        },
    );
    assert_eq!(
        altered(|ima| ima.enums.push(ima.enums[0].clone())),
        Ok(LAYOUT)
    );
    refused("there are different enums binary_lists", |ima| {
        let mut copy = ima.enums[0].clone();
        copy.values[3].1 = 4;
        ima.enums.push(copy);
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    /// Whatever is altered, everything ends, and nothing panics.
    #[test]
    fn altered_bytes_do_no_harm(
        big_endian: bool,
        changes in prop::collection::vec((any::<prop::sample::Index>(), 1u8..), 1..12),
    ) {
        let mut blob = Ima { big_endian, ..Ima::new() }.encode();
        for (at, change) in changes {
            *at.get_mut(&mut blob) ^= change;
        }
        let _ = resolve(&blob);
        let _ = visit(&blob);
    }

    /// The same below the header, which otherwise takes most of the hits that matter.
    #[test]
    fn altered_words_of_types_do_no_harm(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u32>(), any::<bool>()), 1..8),
    ) {
        let ima = Ima::new().encode();
        let (header, rest) = ima.split_at(24);
        let types = u32::from_le_bytes(header[12..16].try_into().unwrap()) as usize;
        let mut blob = [header, rest].concat();
        for (at, value, small) in changes {
            let at = 24 + at.index(types / 4) * 4;
            let value = if small { value % 64 } else { value };
            blob[at..at + 4].copy_from_slice(&value.to_le_bytes());
        }
        let _ = resolve(&blob);
        let _ = visit(&blob);
    }

    #[test]
    fn noise_does_no_harm(mut blob in prop::collection::vec(any::<u8>(), 0..400), header: bool) {
        if header && blob.len() > 24 {
            let types = (blob.len() as u32 - 24) / 2 / 4 * 4;
            let strings = blob.len() as u32 - 24 - types;
            let words = [24, 0, types, types, strings];
            let words = words.iter().flat_map(|word: &u32| word.to_le_bytes());
            let start: Vec<u8> = [0x9f, 0xeb, 1, 0].into_iter().chain(words).collect();
            blob[..24].copy_from_slice(&start);
            blob[24 + types as usize] = 0;
            *blob.last_mut().unwrap() = 0;
        }
        let _ = resolve(&blob);
        let _ = visit(&blob);
    }
}
