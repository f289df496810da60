// SPDX-License-Identifier: GPL-2.0

//! BTF: any bytes are refused or read within their bounds, in bounded time; and a layout that is
//! found is one that a second reader finds, too.

#![no_main]

#[path = "../../host/tests/btf_fixtures/mod.rs"]
#[allow(dead_code, missing_docs)]
mod btf_fixtures;

use btf_fixtures::Ima;
use ima_trim_pure::btf::{Btf, Index};
use ima_trim_pure::layout::Layout;
use libfuzzer_sys::fuzz_target;
use std::sync::LazyLock;

/// What a kernel with IMA says of it, in both byte orders.
static BLOBS: LazyLock<[Vec<u8>; 2]> = LazyLock::new(|| {
    let mut ima = Ima::new();
    let little = ima.encode();

    ima.big_endian = true;
    [little, ima.encode()]
});

/// The blob that an input stands for: its own bytes; or those of a kernel, some of them changed, the
/// rest cut off, or filled up with what is left of the input.
fn blob(data: &[u8]) -> Vec<u8> {
    let [kind, data @ ..] = data else {
        return Vec::new();
    };
    if kind & 1 == 0 {
        return data.to_vec();
    }
    let mut blob = BLOBS[usize::from((kind >> 1) & 1)].clone();
    let mut edits = data.chunks_exact(4);
    for edit in &mut edits {
        let at = usize::from(u16::from_le_bytes([edit[0], edit[1]])) % blob.len();
        match edit[2] & 15 {
            0 => {
                blob.truncate(at);
                if blob.is_empty() {
                    return blob;
                }
            }
            1 => blob.push(edit[3]),
            2 => blob[at] = blob[at].wrapping_add(edit[3] as i8 as u8),
            _ => blob[at] = edit[3],
        }
    }
    blob
}

/// Reads a word.
fn word(bytes: &[u8], at: usize, big: bool) -> usize {
    let bytes = bytes[at..][..4].try_into().expect("there are four");

    (if big {
        u32::from_be_bytes(bytes)
    } else {
        u32::from_le_bytes(bytes)
    }) as usize
}

/// The parts of a blob whose header is in order, and whether it is big-endian.
fn sections(blob: &[u8]) -> (&[u8], &[u8], bool) {
    let big = blob[0] == 0xeb;
    let body = &blob[word(blob, 4, big)..];
    let types = &body[word(blob, 8, big)..][..word(blob, 12, big)];
    let strings = &body[word(blob, 16, big)..][..word(blob, 20, big)];

    (types, strings, big)
}

/// Where each type begins, if all of them are of known kinds and whole.
fn starts(types: &[u8], big: bool) -> Option<Vec<usize>> {
    let mut starts = Vec::new();
    let mut at = 0;

    while at < types.len() {
        if types.len() - at < 12 {
            return None;
        }
        let info = word(types, at + 4, big);
        let elements = info & 0xff_ffff;
        starts.push(at);
        at += 12
            + match (info >> 24) & 0x7f {
                1 | 14 | 17 => 4,
                2 | 7..=12 | 16 | 18 => 0,
                3 => 12,
                4 | 5 | 15 | 19 => 12 * elements,
                6 | 13 => 8 * elements,
                _ => return None,
            };
    }
    (at == types.len()).then_some(starts)
}

/// Whether the blob has a struct of this name and size with a member of this name at this byte.
fn has_member(
    blob: &[u8],
    structure: &str,
    size: Option<usize>,
    member: &str,
    offset: usize,
) -> bool {
    let (types, strings, big) = sections(blob);
    let is_name = |at: usize, name: &str| {
        let found = strings[word(types, at, big)..]
            .split(|&byte| byte == 0)
            .next();
        found == Some(name.as_bytes())
    };

    starts(types, big)
        .expect("the types were read")
        .into_iter()
        .any(|at| {
            let info = word(types, at + 4, big);
            // With the flag of the struct the upper byte is the width of a bitfield.
            let mask = if info >> 31 == 1 { 0xff_ffff } else { !0 };

            (info >> 24) & 0x7f == 4
                && is_name(at, structure)
                && size.is_none_or(|size| size == word(types, at + 8, big))
                && (0..info & 0xff_ffff)
                    .map(|each| at + 12 + 12 * each)
                    .any(|each| {
                        is_name(each, member) && word(types, each + 8, big) & mask == 8 * offset
                    })
        })
}

/// Asserts that all that is in a layout is in the blob.
fn confirm(blob: &[u8], layout: &Layout) {
    let Layout {
        queue_entry,
        template_entry,
        template_desc,
        template_field,
        field_data,
        tpm_digest,
        binary_lists,
    } = layout;
    let queue = Some(queue_entry.size);
    let entry = Some(template_entry.size);

    for (structure, size, member, offset) in [
        ("ima_queue_entry", queue, "hnext", queue_entry.hnext),
        ("ima_queue_entry", queue, "later", queue_entry.later),
        ("ima_queue_entry", queue, "entry", queue_entry.entry),
        ("ima_template_entry", entry, "pcr", template_entry.pcr),
        (
            "ima_template_entry",
            entry,
            "digests",
            template_entry.digests,
        ),
        (
            "ima_template_entry",
            entry,
            "template_desc",
            template_entry.template_desc,
        ),
        (
            "ima_template_entry",
            entry,
            "template_data_len",
            template_entry.template_data_len,
        ),
        (
            "ima_template_entry",
            entry,
            "template_data",
            template_entry.template_data,
        ),
        ("ima_template_desc", None, "name", template_desc.name),
        (
            "ima_template_desc",
            None,
            "num_fields",
            template_desc.num_fields,
        ),
        ("ima_template_desc", None, "fields", template_desc.fields),
        (
            "ima_template_field",
            None,
            "field_id",
            template_field.field_id,
        ),
        (
            "ima_field_data",
            Some(field_data.size),
            "data",
            field_data.data,
        ),
        (
            "ima_field_data",
            Some(field_data.size),
            "len",
            field_data.len,
        ),
        (
            "tpm_digest",
            Some(tpm_digest.size),
            "alg_id",
            tpm_digest.alg_id,
        ),
        (
            "tpm_digest",
            Some(tpm_digest.size),
            "digest",
            tpm_digest.digest,
        ),
    ] {
        assert!(
            has_member(blob, structure, size, member, offset),
            "struct {structure} has no {member} at {offset}: {layout:?}"
        );
    }
    // What the module reads of each struct is within it.
    assert!(queue_entry.hnext + 16 <= queue_entry.size);
    assert!(queue_entry.later + 16 <= queue_entry.size);
    assert!(queue_entry.entry + 8 <= queue_entry.size);
    assert!(template_entry.pcr + 4 <= template_entry.size);
    assert!(template_entry.digests + 8 <= template_entry.size);
    assert!(template_entry.template_desc + 8 <= template_entry.size);
    assert!(template_entry.template_data_len + 4 <= template_entry.size);
    assert!(template_entry.template_data <= template_entry.size);
    assert!(field_data.data + 8 <= field_data.size && field_data.len + 4 <= field_data.size);
    assert!(tpm_digest.digest + tpm_digest.digest_len <= tpm_digest.size);
    let lists = [
        binary_lists.binary,
        binary_lists.binary_staged,
        binary_lists.binary_full,
    ];
    assert!(lists.iter().all(|&list| list < binary_lists.last));
}

/// Looks at every type, and at one that is not there.
fn look_at_all(index: &Index<'_>, count: u32) {
    for id in 0..=count.saturating_add(1) {
        let _ = index.get(id);
    }
    let _ = index.get(u32::MAX);
}

fuzz_target!(|data: &[u8]| {
    let blob = blob(data);
    let btf = match Btf::parse(&blob) {
        Ok(btf) => btf,
        Err(error) => return drop(error.to_string()),
    };
    let (types, strings, big) = sections(&blob);
    assert!(strings.first() == Some(&0) && strings.last() == Some(&0));
    let expected = starts(types, big);
    let count = match btf.count_types() {
        Ok(count) => count,
        Err(error) => {
            assert!(expected.is_none(), "{error}");
            return drop(error.to_string());
        }
    };
    assert_eq!(Some(count as usize), expected.map(|starts| starts.len()));
    if let Some(less) = count.checked_sub(1) {
        assert!(btf.index(&mut vec![0; less as usize]).is_err());
    }
    let mut offsets = vec![0; count as usize];
    let index = btf
        .index(&mut offsets)
        .expect("the types that were counted");
    look_at_all(&index, count);
    match Layout::resolve(&index) {
        Ok(layout) => confirm(&blob, &layout),
        Err(error) => drop(error.to_string()),
    }
});
