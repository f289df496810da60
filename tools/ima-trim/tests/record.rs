// SPDX-License-Identifier: GPL-2.0

//! Parsing of records.

mod common;

use proptest::prelude::*;
use sha1::Sha1;
use sha2::Digest;
use sha2::Sha256;
use sha2::Sha384;
use sha2::Sha512;

use common::build;
use common::d_ng;
use common::ima_ng;
use common::string;
use common::Build;
use ima_trim::algorithm::Algorithm;
use ima_trim::record::Record;
use ima_trim::record::RecordError;
use ima_trim::record::Records;
use ima_trim::record::MAX_RECORD;
use ima_trim::template::FieldId;
use ima_trim::template::TemplateError;

fn first(bytes: &[u8]) -> Record<'_> {
    Record::first(bytes).unwrap().unwrap()
}

/// A whole record gives back what it was built of, and no beginning of it is one.
fn check_whole(built: &Build) {
    let bytes = built.bytes();
    let record = first(&bytes);

    assert_eq!(record.raw(), bytes);
    assert_eq!(record.pcr(), built.pcr);
    assert_eq!(record.sha1().as_slice(), built.sha1());
    assert_eq!(record.template(), built.template);
    assert_eq!(record.data(), built.data());
    assert_eq!(record.is_violation(), built.violation);
    for length in 0..bytes.len() {
        assert_eq!(Record::first(&bytes[..length]), Ok(None), "{length}");
    }
    for algorithm in Algorithm::ALL {
        let hashed = built.hashed();
        let mut expected = match algorithm {
            _ if built.violation => vec![],
            Algorithm::Sha1 => Sha1::digest(hashed).to_vec(),
            Algorithm::Sha256 => Sha256::digest(hashed).to_vec(),
            Algorithm::Sha384 => Sha384::digest(hashed).to_vec(),
            Algorithm::Sha512 => Sha512::digest(hashed).to_vec(),
        };
        expected.resize(64, 0);
        assert_eq!(record.digest(algorithm).as_slice(), expected);
    }
}

#[test]
fn ima_ng_is_parsed() {
    let built = ima_ng(b"/bin/sh");
    check_whole(&built);

    let bytes = built.bytes();
    let record = first(&bytes);
    let fields: Vec<_> = record.fields().map(Result::unwrap).collect();
    assert_eq!(fields.len(), 2);
    assert_eq!(fields[0].id, FieldId::DNg);
    assert_eq!(fields[0].data, built.fields[0]);
    assert_eq!(fields[0].text(), b"sha256:");
    assert_eq!(fields[1].id, FieldId::NNg);
    assert_eq!(fields[1].data, b"/bin/sh\0");
    assert_eq!(record.name(), Some(b"/bin/sh".as_slice()));
    assert_eq!(record.field(FieldId::Sig), None);
}

#[test]
fn violation_has_zeros_in_every_bank() {
    let built = ima_ng(b"/etc/mtab").violation();
    check_whole(&built);
    assert_eq!(first(&built.bytes()).digest(Algorithm::Sha1), [0; 64]);
}

#[test]
fn old_template_is_parsed() {
    for name in [&b"boot_aggregate"[..], b"a", &[b'x'; 255]] {
        let built = build("ima", &[&[0xab; 20], &string(name)]);
        check_whole(&built);
        let bytes = built.bytes();
        let fields: Vec<_> = first(&bytes).fields().map(Result::unwrap).collect();
        assert_eq!(
            fields
                .iter()
                .map(|field| (field.id, field.data))
                .collect::<Vec<_>>(),
            [(FieldId::D, &[0xab; 20][..]), (FieldId::N, name)]
        );
    }
    check_whole(&build("ima", &[&[0; 20], &string(b"/bin/true")]).violation());
}

#[test]
fn old_template_hashes_256_bytes_of_name() {
    let bytes = build("ima", &[&[1; 20], b"n\0"]).bytes();
    let hashed = [&[1; 20][..], b"n", &[0; 255]].concat();
    assert_eq!(
        first(&bytes).digest(Algorithm::Sha1)[..20],
        Sha1::digest(hashed)[..]
    );
}

#[test]
fn old_template_with_md5_is_told_from_sha1() {
    let md5 = build("ima", &[&[0xab; 16], &string(b"/usr/bin/true")]);
    check_whole(&md5);

    // A violation has 20 zeros whatever the algorithm.
    let mixed: Vec<_> = [
        md5.clone(),
        build("ima", &[&[0; 20], &string(b"/tmp/x")]).violation(),
        build("ima", &[&[0xff; 16], &string(b"/a")]),
        md5,
    ]
    .iter()
    .flat_map(Build::bytes)
    .collect();
    let names: Vec<_> = Records::new(&mixed)
        .map(|record| record.unwrap().name().unwrap())
        .collect();
    assert_eq!(
        names,
        [&b"/usr/bin/true"[..], b"/tmp/x", b"/a", b"/usr/bin/true"]
    );
}

#[test]
fn old_template_with_impossible_name_is_refused() {
    let mut bytes = build("ima", &[&[0xab; 20], &string(b"name")]).bytes();
    bytes[4 + 20 + 4 + 3 + 20 + 1] = 1; // A name of 260 bytes.
    assert_eq!(Record::first(&bytes), Err(RecordError::Length(260)));
}

#[test]
fn custom_format_is_its_name_and_has_lengths() {
    // Not the layout of `ima`, though the fields are the same.
    let built = build("d|n", &[&[0xab; 20], &string(b"/bin/true")]);
    check_whole(&built);
    let bytes = built.bytes();
    assert_eq!(first(&bytes).template(), b"d|n");
    assert_eq!(first(&bytes).name(), Some(b"/bin/true".as_slice()));

    check_whole(&build("n-ng|imode", &[&string(b"x y"), &[0xff, 0x81]]));
    check_whole(&build("n-ng", &[b""]));
}

#[test]
fn unknown_template_is_a_record_without_known_fields() {
    let built = build("ima-ngv9", &[b"what", b""]);
    check_whole(&built);
    let bytes = built.bytes();
    let mut fields = first(&bytes).fields();
    let unknown = TemplateError::Unknown("ima-ngv9".to_owned());
    assert_eq!(fields.next(), Some(Err(unknown)));
    assert_eq!(fields.next(), None);
    assert_eq!(first(&bytes).name(), None);
}

#[test]
fn fields_are_those_of_the_template_exactly() {
    let damaged = |template: &str, fields: &[&[u8]]| {
        let bytes = build(template, fields).bytes();
        let results: Vec<_> = first(&bytes).fields().collect();
        assert_eq!(
            results.last(),
            Some(&Err(TemplateError::Data(template.to_owned()))),
            "{results:?}"
        );
        results.len()
    };
    assert_eq!(damaged("ima-ng", &[b"one"]), 2);
    assert_eq!(damaged("ima-ng", &[b"one", b"two", b""]), 3);
    assert_eq!(damaged("n-ng", &[]), 1);

    for template in ["|", "n-ng|", "|n-ng", "n-ng||n-ng", "N", "n-", "ima-ng|sig"] {
        let bytes = build(template, &[b"", b"", b""]).bytes();
        let last = first(&bytes).fields().last().unwrap();
        assert_eq!(last, Err(TemplateError::Unknown(template.to_owned())));
    }
    // 15 fields are the most.
    let most = ["sig"; 15].join("|");
    let bytes = build(&most, &[&b""[..]; 15]).bytes();
    assert_eq!(first(&bytes).fields().count(), 15);
    assert!(first(&bytes).fields().all(|field| field.is_ok()));
    let more = ["sig"; 16].join("|");
    let bytes = build(&more, &[&b""[..]; 16]).bytes();
    assert_eq!(
        first(&bytes).fields().next(),
        Some(Err(TemplateError::Unknown(more)))
    );
}

#[test]
fn what_cannot_be_a_record_is_refused_at_once() {
    let header = |size: u32, rest: &[u8]| [&[0; 24][..], &size.to_ne_bytes(), rest].concat();

    assert_eq!(Record::first(&header(0, b"")), Err(RecordError::Template));
    assert_eq!(Record::first(&header(254, b"")), Ok(None));
    assert_eq!(
        Record::first(&header(255, b"")),
        Err(RecordError::Length(255))
    );
    assert_eq!(
        Record::first(&header(u32::MAX, b"")),
        Err(RecordError::Length(u32::MAX as usize))
    );
    for bad in [&b"i a"[..], b"i\0a", b"i\na", b"i\x7fa", b"\xc3\xa4 "] {
        assert_eq!(
            Record::first(&header(3, &bad[..3])),
            Err(RecordError::Template)
        );
    }
    let most = (MAX_RECORD - 4 - 20 - 4 - 1 - 4) as u32;
    let data = |size: u32| header(1, &[b"n", &size.to_ne_bytes()[..]].concat());
    assert_eq!(Record::first(&data(most)), Ok(None));
    assert_eq!(
        Record::first(&data(most + 1)),
        Err(RecordError::Length(most as usize + 1))
    );
}

#[test]
fn records_end_before_what_is_not_whole() {
    let one = ima_ng(b"one").bytes();
    let two = ima_ng(b"two").bytes();
    let both = [&one[..], &two, &one[..one.len() - 1]].concat();
    let mut records = Records::new(&both);

    assert_eq!(records.next().unwrap().unwrap().raw(), one);
    assert_eq!(records.next().unwrap().unwrap().raw(), two);
    assert_eq!(records.next(), None);
    assert_eq!(records.rest(), &one[..one.len() - 1]);
    assert_eq!(records.next(), None);
}

#[test]
fn records_give_an_error_once() {
    let one = ima_ng(b"one").bytes();
    let bad = [&one[..], &[0; 40]].concat();
    let mut records = Records::new(&bad);

    assert!(records.next().unwrap().is_ok());
    assert_eq!(records.next(), Some(Err(RecordError::Template)));
    assert_eq!(records.next(), None);
    assert_eq!(records.rest(), [0; 40]);
}

#[test]
fn large_records_are_parsed() {
    let built = build(
        "ima-buf",
        &[&d_ng("sha256", &[1; 32]), &string(b"event"), &[7; 65536]],
    );
    let bytes = built.bytes();
    assert_eq!(first(&bytes).field(FieldId::Buf).unwrap().data, [7; 65536]);
}

fn any_build() -> impl Strategy<Value = Build> {
    let field = || prop::collection::vec(any::<u8>(), 0..80);
    let usual = (
        prop::sample::select(vec!["ima-ng", "ima-sig", "n-ng|sig", "ima-future"]),
        prop::collection::vec(field(), 0..5),
    )
        .prop_map(|(template, fields)| (template.as_bytes().to_vec(), fields));
    let old = (
        prop::array::uniform20(any::<u8>()),
        prop::collection::vec(1..=255u8, 0..=255),
    )
        .prop_map(|(digest, name)| (b"ima".to_vec(), vec![digest.to_vec(), string(&name)]));

    (
        any::<i32>(),
        prop_oneof![3 => usual, 1 => old],
        any::<bool>(),
    )
        .prop_map(|(pcr, (template, fields), violation)| Build {
            pcr,
            template,
            fields,
            violation,
        })
}

proptest! {
    #[test]
    fn built_records_parse_back(built in any_build()) {
        check_whole(&built);
    }

    #[test]
    fn lists_parse_back(built in prop::collection::vec(any_build(), 0..12), cut in any::<prop::sample::Index>()) {
        let list: Vec<_> = built.iter().flat_map(Build::bytes).collect();
        let parsed: Vec<_> = Records::new(&list).map(|record| record.unwrap().raw().to_vec()).collect();
        prop_assert_eq!(&parsed, &built.iter().map(Build::bytes).collect::<Vec<_>>());

        // Read in two parts, it is the same.
        let (before, after) = list.split_at(cut.index(list.len() + 1));
        let mut records = Records::new(before);
        let mut twice: Vec<_> = records.by_ref().map(|record| record.unwrap().raw().to_vec()).collect();
        let rest = [records.rest(), after].concat();
        twice.extend(Records::new(&rest).map(|record| record.unwrap().raw().to_vec()));
        prop_assert_eq!(twice, parsed);
    }

    #[test]
    fn any_bytes_are_gone_through(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        go_through(&bytes);
    }

    #[test]
    fn damaged_records_are_gone_through(
        built in any_build(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut bytes = built.bytes();
        for (at, to) in changes {
            let at = at.index(bytes.len());
            bytes[at] = to;
        }
        go_through(&bytes);
    }
}

/// What comes out lies in the bytes one after the other, and nothing panics.
fn go_through(bytes: &[u8]) {
    let mut records = Records::new(bytes);
    let mut length = 0;
    while let Some(Ok(record)) = records.next() {
        assert_eq!(record.raw(), &bytes[length..][..record.raw().len()]);
        length += record.raw().len();
        assert!(record.data().len() + record.template().len() < record.raw().len());
        let _ = record.fields().count();
        let _ = record.name();
        for algorithm in Algorithm::ALL {
            let _ = record.digest(algorithm);
        }
    }
    assert_eq!(records.rest(), &bytes[length..]);
}
