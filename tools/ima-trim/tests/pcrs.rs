// SPDX-License-Identifier: GPL-2.0

//! PCR values, and the replay to them.

// What few bytes are printed here need not be printed fast.
#![allow(clippy::format_collect)]

mod common;

use std::collections::BTreeMap;

use ima_trim_pure::bank::Pcr;
use ima_trim_pure::report::Totals;
use proptest::prelude::*;
use sha1::Sha1;
use sha2::Digest;
use sha2::Sha256;
use sha2::Sha384;
use sha2::Sha512;

use common::build;
use common::ima_ng;
use common::string;
use common::Build;
use ima_trim::algorithm::Algorithm;
use ima_trim::algorithm::Algorithm::Sha1 as SHA1;
use ima_trim::algorithm::Algorithm::Sha256 as SHA256;
use ima_trim::algorithm::Algorithm::Sha384 as SHA384;
use ima_trim::algorithm::Algorithm::Sha512 as SHA512;
use ima_trim::pcrs::Point;
use ima_trim::pcrs::PointError;
use ima_trim::record::RecordError;
use ima_trim::record::Records;

fn pcr(number: u32) -> Pcr {
    Pcr::new(number).unwrap()
}

fn hash(algorithm: Algorithm, bytes: &[u8]) -> Vec<u8> {
    match algorithm {
        SHA1 => Sha1::digest(bytes).to_vec(),
        SHA256 => Sha256::digest(bytes).to_vec(),
        SHA384 => Sha384::digest(bytes).to_vec(),
        SHA512 => Sha512::digest(bytes).to_vec(),
    }
}

/// What the TPM has after these records, by the text of the TCG and of IMA's documentation.
fn tpm(bank: Algorithm, records: &[Build]) -> BTreeMap<u32, Vec<u8>> {
    let size = hash(bank, b"").len();
    let mut pcrs: BTreeMap<u32, Vec<u8>> = (0..24)
        .map(|pcr| {
            (
                pcr,
                vec![if (17..=22).contains(&pcr) { 0xff } else { 0 }; size],
            )
        })
        .collect();
    for record in records {
        if let Some(value) = u32::try_from(record.pcr)
            .ok()
            .and_then(|n| pcrs.get_mut(&n))
        {
            let digest = if record.violation {
                vec![0xff; size]
            } else {
                hash(bank, &record.hashed())
            };
            *value = hash(bank, &[value.as_slice(), &digest].concat());
        }
    }
    pcrs
}

fn list(records: &[Build]) -> Vec<u8> {
    records.iter().flat_map(Build::bytes).collect()
}

fn extend(point: &mut Point, records: &[Build]) {
    for record in Records::new(&list(records)) {
        point.extend(&record.unwrap());
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[track_caller]
fn check(point: &Point, bank: Algorithm, records: &[Build]) {
    for (number, value) in tpm(bank, records) {
        assert_eq!(
            point.get(bank, pcr(number)),
            Some(value.as_slice()),
            "{number}"
        );
    }
}

fn some_records() -> Vec<Build> {
    vec![
        ima_ng(b"boot_aggregate"),
        build("ima", &[&[5; 20], &string(b"/old")]),
        ima_ng(b"/etc/x").violation(),
        ima_ng(b"/etc/y").pcr(11),
        ima_ng(b"/no/tpm").pcr(24),
        ima_ng(b"/no/tpm").pcr(63).violation(),
        build("n-ng|buf", &[b"x\0", &[1; 65536]]).pcr(10),
        ima_ng(b"/dynamic").pcr(17),
        ima_ng(b"/negative").pcr(-1),
    ]
}

#[test]
fn reset_is_as_the_module_says_before_any_trim() {
    let point = Point::reset(&[SHA256, SHA1, SHA256], pcr(10));
    let text = format!(
        "sha1:10={}\nsha256:10={}\nrecords=0\nviolations=0\ntrims=0\n",
        "0".repeat(40),
        "0".repeat(64)
    );
    assert_eq!(point.text(), text);
    assert_eq!(point.banks().collect::<Vec<_>>(), [SHA1, SHA256]);
    assert_eq!(point.get(SHA512, pcr(10)), None);
    assert_eq!(point.get(SHA256, pcr(17)), Some([0xff; 32].as_slice()));
    assert_eq!(Point::parse(text.as_bytes()), Ok(point));
}

#[test]
fn one_known_extension() {
    // sha256 of 32 zeros and the sha256 of the data, by sha256sum.
    let mut point = Point::reset(&[SHA256], pcr(10));
    extend(
        &mut point,
        &[build("ima-ng", &[b"sha256:\0\x01\x02\xff", b"/bin/sh\0"])],
    );
    assert_eq!(
        point.text(),
        "sha256:10=75c27415b763269b6bd71bb4ddf7560e7f3e56d51f4c90f4151f9b958421211e\nrecords=1\nviolations=0\ntrims=0\n"
    );
}

#[test]
fn replay_is_that_of_the_tpm() {
    let records = some_records();
    let mut point = Point::reset(&Algorithm::ALL, pcr(10));
    for count in 0..=records.len() {
        for bank in Algorithm::ALL {
            check(&point, bank, &records[..count]);
        }
        extend(&mut point, records.get(count..=count).unwrap_or_default());
    }
    assert_eq!(
        point.totals(),
        Totals {
            records: 9,
            violations: 2,
            trims: 0
        }
    );
    assert_eq!(
        point.pcrs().iter().collect::<Vec<_>>(),
        [pcr(10), pcr(11), pcr(17)]
    );
}

#[test]
fn pcr_10_is_listed_even_if_others_are_extended() {
    let mut point = Point::reset(&[SHA1], pcr(10));
    extend(&mut point, &[ima_ng(b"x").pcr(9)]);
    assert_eq!(
        point.text(),
        format!(
            "sha1:9={}\nsha1:10={}\nrecords=1\nviolations=0\ntrims=0\n",
            hex(&tpm(SHA1, &[ima_ng(b"x").pcr(9)])[&9]),
            "0".repeat(40)
        )
    );
}

#[test]
fn replay_goes_on_from_a_text() {
    let records = some_records();
    for at in 0..records.len() {
        let mut whole = Point::reset(&[SHA256, SHA384], pcr(10));
        extend(&mut whole, &records[..at]);
        whole.set_trims(3);
        let mut restored = Point::parse(whole.text().as_bytes()).unwrap();
        assert_eq!(restored, whole);
        assert_eq!(restored.text(), whole.text());

        extend(&mut whole, &records[at..]);
        assert_ne!(restored, whole);
        extend(&mut restored, &records[at..]);
        assert_eq!(restored, whole);
        assert_eq!(restored.totals().trims, 3);
        check(&restored, SHA384, &records);
    }
}

#[test]
fn equality_is_of_all_that_is_in_the_text() {
    let base = Point::reset(&[SHA1, SHA256], pcr(10));
    let mut trims = base.clone();
    trims.set_trims(1);
    assert_ne!(trims, base);
    assert!(trims.same_values(&base));

    let mut unextended = base.clone();
    extend(&mut unextended, &[ima_ng(b"x").pcr(24)]);
    let mut violation = base.clone();
    extend(&mut violation, &[ima_ng(b"x").pcr(24).violation()]);
    let mut extended = base.clone();
    extend(&mut extended, &[ima_ng(b"x")]);
    let all = [
        base,
        unextended,
        violation,
        extended,
        Point::reset(&[SHA1], pcr(10)),
        Point::reset(&[SHA1, SHA384], pcr(10)),
        Point::reset(&[SHA1, SHA256], pcr(9)),
    ];
    for (number, one) in all.iter().enumerate() {
        for (other_number, other) in all.iter().enumerate() {
            assert_eq!(one == other, number == other_number);
            assert_eq!(one.same_values(other), number == other_number);
            assert_eq!(one.text() == other.text(), number == other_number);
        }
    }
}

#[test]
fn parse_refuses_what_is_not_whole() {
    let zeros = "0".repeat(40);
    let totals = "records=1 violations=0 trims=1";
    let parse = |text: String| Point::parse(text.as_bytes());
    let text = |result: Result<Point, PointError>, part: &str| match result {
        Err(PointError::Text(text)) => assert!(text.contains(part), "{text}"),
        other => panic!("{other:?}"),
    };

    assert_eq!(
        parse("unknown records=18446744073709551615\n".into()),
        Err(PointError::Unknown(u64::MAX))
    );
    text(parse("unknown records=x\n".into()), "unknown");
    text(parse(String::new()), "no PCR value");
    text(parse(totals.into()), "no PCR value");
    text(
        parse(format!("sha1:10={zeros} records=1 violations=0")),
        "trims=",
    );
    text(parse(format!("sha1:10={zeros}0 {totals}")), "40");
    text(parse(format!("sha1:24={zeros} {totals}")), "PCR");
    text(
        parse(format!("sha1:10={zeros} sha1:10={zeros} {totals}")),
        "more than once",
    );
    text(
        parse(format!("sha1:10={zeros} rubbish {totals}")),
        "rubbish",
    );
    // A PCR in one bank, and not in the other.
    text(
        parse(format!(
            "sha1:10={zeros} sha1:11={zeros} sha256:10={} {totals}",
            "0".repeat(64)
        )),
        "sha256:11",
    );
    assert_eq!(
        parse(format!(
            "sha1:10={zeros} sm3:10={} {totals}",
            "0".repeat(64)
        )),
        Err(PointError::Bank("sm3".into()))
    );
    assert!(Point::parse(b"\xff\xfe").is_err());

    // Any order, any case, and an instance.
    let point = parse(format!(
        "trims=1\tviolations=0 instance={} sha1:11={zeros}\n\n sha1:10={} records=7",
        "a".repeat(32),
        "AB".repeat(20)
    ))
    .unwrap();
    assert_eq!(
        point.text(),
        format!(
            "sha1:10={}\nsha1:11={zeros}\nrecords=7\nviolations=0\ntrims=1\n",
            "ab".repeat(20)
        )
    );
}

#[test]
fn request_names_every_value() {
    let mut point = Point::reset(&[SHA1, SHA256], pcr(10));
    extend(&mut point, &[ima_ng(b"x").pcr(11)]);
    let value = |bank, number| hex(point.get(bank, pcr(number)).unwrap());
    assert_eq!(
        point.request(2),
        format!(
            "sha1:10={} sha1:11={} sha256:10={} sha256:11={} violations=2",
            value(SHA1, 10),
            value(SHA1, 11),
            value(SHA256, 10),
            value(SHA256, 11)
        )
    );

    let request = point.parse_request(point.request(2).as_bytes()).unwrap();
    assert_eq!(request.violations, 2);
    assert_eq!(request.target.iter().count(), 4);
    assert!(point
        .clone()
        .replay_to(&request.target, &mut Records::new(b""))
        .unwrap());
    for bad in [
        "",
        "violations=2",
        "sha384:10=00",
        "sha999:10=00",
        "sha1:10=0",
    ] {
        assert!(matches!(
            point.parse_request(bad.as_bytes()),
            Err(PointError::Text(_))
        ));
    }
}

#[test]
fn target_takes_values_of_the_banks_only() {
    let point = Point::reset(&[SHA1, SHA256], pcr(10));
    let value = [7; 64];
    let target = |values: &[(Algorithm, u32, usize)]| {
        point.target(
            values
                .iter()
                .map(|&(bank, number, size)| (bank, pcr(number), &value[..size])),
        )
    };
    assert!(target(&[(SHA1, 10, 20), (SHA256, 10, 32), (SHA1, 0, 20)]).is_some());
    assert!(target(&[]).is_none());
    assert!(target(&[(SHA384, 10, 48)]).is_none());
    assert!(target(&[(SHA1, 10, 32)]).is_none());
    assert!(target(&[(SHA256, 10, 0)]).is_none());
    assert!(target(&[(SHA1, 10, 20), (SHA1, 10, 20)]).is_none());
}

#[test]
fn replay_to_gives_the_error_of_the_records() {
    let records = some_records();
    let bytes = [list(&records), vec![0; 40]].concat();
    let mut point = Point::reset(&[SHA256], pcr(10));
    let target = point
        .target([(SHA256, pcr(10), [1; 32].as_slice())])
        .unwrap();
    let result = point.replay_to(&target, &mut Records::new(&bytes));
    assert_eq!(result, Err(RecordError::Template));
    assert_eq!(point.totals().records, records.len() as u64);
    check(&point, SHA256, &records);
}

#[test]
fn data_that_was_changed_does_not_replay() {
    let records = [ima_ng(b"/bin/good"), ima_ng(b"/bin/other")];
    let mut point = Point::reset(&[SHA1, SHA256], pcr(10));
    extend(&mut point, &records);

    // The digest in the record is that of what it was.
    let mut bytes = list(&records);
    let at = bytes.windows(4).position(|four| four == b"good").unwrap();
    bytes[at] ^= 1;
    for bank in [SHA1, SHA256] {
        let mut changed = Point::reset(&[SHA1, SHA256], pcr(10));
        let target = changed
            .target([(bank, pcr(10), point.get(bank, pcr(10)).unwrap())])
            .unwrap();
        assert_eq!(
            changed.replay_to(&target, &mut Records::new(&bytes)),
            Ok(false)
        );
        assert_eq!(changed.totals().records, 2);
    }
}

#[test]
fn serialised_as_text() {
    let mut point = Point::reset(&[SHA1], pcr(10));
    extend(&mut point, &some_records());
    let json = serde_json::to_string(&point).unwrap();
    assert_eq!(json, serde_json::to_string(&point.text()).unwrap());
    assert_eq!(serde_json::from_str::<Point>(&json).unwrap(), point);
    let error = serde_json::from_str::<Point>("\"unknown records=5\\n\"").unwrap_err();
    assert!(error.to_string().contains("5 records"), "{error}");
}

fn any_record() -> impl Strategy<Value = Build> {
    (
        prop::sample::select(vec![10, 10, 10, 11, 0, 18, 23, 24, -1]),
        // Few names, so that lists have duplicates.
        0..6u8,
        prop::bool::weighted(0.2),
    )
        .prop_map(|(pcr, name, violation)| Build {
            violation,
            ..ima_ng(&[b'a' + name]).pcr(pcr)
        })
}

proptest! {
    /// More than one piece of records, and the earliest match.
    #[test]
    fn replay_to_stops_at_the_earliest(
        records in prop::collection::vec(any_record(), 0..200),
        at in any::<prop::sample::Index>(),
        number in prop::sample::select(vec![10, 11, 18]),
    ) {
        let at = at.index(records.len() + 1);
        let reached = tpm(SHA256, &records[..at])[&number].clone();
        // That PCR was the same since it was last extended.
        let earliest = records[..at]
            .iter()
            .rposition(|record| u32::try_from(record.pcr) == Ok(number))
            .map_or(0, |last| last + 1);

        let bytes = list(&records);
        let mut rest = Records::new(&bytes);
        let mut point = Point::reset(&[SHA1, SHA256], pcr(10));
        let target = point.target([(SHA256, pcr(number), reached.as_slice())]).unwrap();
        prop_assert_eq!(point.replay_to(&target, &mut rest), Ok(true));
        prop_assert_eq!(point.totals().records, earliest as u64);
        let violations = records[..earliest].iter().filter(|record| record.violation).count();
        prop_assert_eq!(point.totals().violations, violations as u64);

        // The records go on behind it.
        for record in rest {
            point.extend(&record.unwrap());
        }
        check(&point, SHA1, &records);
        prop_assert_eq!(point.totals().records, records.len() as u64);
    }

    #[test]
    fn any_text_is_parsed_or_refused(text in "((sha1|sha256|sm3|records|trims):?[0-9]{0,2}=[0-9a-f]{0,6}[ \n]?){0,6}") {
        let _ = Point::parse(text.as_bytes());
    }

    #[test]
    fn any_bytes_are_parsed_or_refused(text in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = Point::parse(&text);
    }
}
