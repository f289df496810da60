// SPDX-License-Identifier: GPL-2.0

//! Replaying and searching, against vectors that were computed independently.

mod common;

use common::{reset_values, Entry, Hashes, Values};
use ima_trim_pure::bank::{Bank, Banks, Pcr, Value};
use ima_trim_pure::replay::{
    advance, search, Extend, Matcher, Outcome, Piece, Record, Records, Replay, ReplayError,
    SearchError, Target, TargetError, PIECE,
};
use std::convert::Infallible;

/// What the vectors say of the replay after a number of records.
#[derive(Clone, Debug)]
struct Point {
    records: u64,
    violations: u64,
    first_violation: Option<u64>,
    unextended: u64,
    values: Values,
}

/// One list of the vectors: its records, and a point before the first and after each of them.
struct Log {
    name: String,
    banks: Banks,
    records: Vec<Entry>,
    points: Vec<Point>,
}

fn size(bank: &str) -> usize {
    match bank {
        "sha1" => 20,
        "sha256" => 32,
        "sha384" => 48,
        "sha512" => 64,
        _ => panic!("bank {bank} in the vectors"),
    }
}

/// Sets the value that a PCR token of the vectors gives.
fn set(values: &mut Values, banks: &Banks, token: &str) {
    let (bank, rest) = token.split_once(':').unwrap();
    let (pcr, hex) = rest.split_once('=').unwrap();
    let bytes = hex::decode(hex).unwrap();
    let bank = banks.find(bank.as_bytes()).unwrap();
    let pcr = Pcr::new(pcr.parse().unwrap()).unwrap();
    assert_eq!(bytes.len(), banks.get(bank).unwrap().size);
    values.get_mut(bank, pcr).unwrap()[..bytes.len()].copy_from_slice(&bytes);
}

/// The vectors. See vectors/README for the format.
fn logs() -> Vec<Log> {
    include_str!("vectors/replay.txt")
        .split("\nlog ")
        .skip(1)
        .map(read)
        .collect()
}

fn read(text: &'static str) -> Log {
    let (name, text) = text.split_once('\n').unwrap();
    let mut banks = Banks::new();
    let mut slots = Vec::new();

    for line in text.lines().filter_map(|line| line.strip_prefix("slot ")) {
        let (algorithm, kind) = line.split_once(' ').unwrap();
        if kind == "bank" {
            banks
                .push(Bank {
                    name: algorithm,
                    size: size(algorithm),
                    position: slots.len(),
                })
                .unwrap();
        }
        slots.push(algorithm);
    }
    let sha1_slot = slots.iter().position(|&slot| slot == "sha1").unwrap();
    let mut now = Point {
        records: 0,
        violations: 0,
        first_violation: None,
        unextended: 0,
        values: reset_values(&banks),
    };
    let mut log = Log {
        name: name.to_string(),
        banks,
        records: Vec::new(),
        points: Vec::new(),
    };

    for line in text.lines().filter(|line| !line.is_empty()) {
        let words: Vec<&str> = line.split(' ').collect();
        if log.records.is_empty() && words[0] == "record" {
            log.points.push(now.clone());
        }
        match words[0] {
            "slot" => {}
            "start" | "value" => set(&mut now.values, &banks, words[1]),
            "record" => log.records.push(Entry {
                pcr: words[1].parse().unwrap(),
                digests: words[2..]
                    .iter()
                    .map(|hex| hex::decode(hex).unwrap())
                    .collect(),
                sha1_slot,
            }),
            "after" => {
                now.records = words[1].parse().unwrap();
                now.violations = words[2].parse().unwrap();
                now.first_violation = words[3].parse().ok();
                now.unextended = words[4].parse().unwrap();
                log.points.push(now.clone());
            }
            word => panic!("{word} in the vectors"),
        }
    }
    assert_eq!(log.points.len(), log.records.len() + 1);
    log
}

/// A target of these values, or of those that `wanted` picks.
fn target(
    banks: &Banks,
    values: &Values,
    wanted: impl Fn(usize, Pcr) -> bool,
) -> Target<Vec<Value>> {
    let mut target = Target::new(values.clone());
    for (bank, _) in banks.iter() {
        for pcr in Pcr::all().filter(|&pcr| wanted(bank, pcr)) {
            target
                .set(bank, pcr, values.get(bank, pcr).unwrap())
                .unwrap();
        }
    }
    target
}

/// Searches `records` from `start`. Gives the number of records replayed if they match.
fn find(
    banks: &Banks,
    start: &Values,
    target: &Target<Vec<Value>>,
    records: &[Entry],
) -> Option<u64> {
    let mut replay = Replay::new(start.clone());
    match search(banks, &Hashes, &mut replay, target, &mut records.iter()).unwrap() {
        Outcome::Matched => Some(replay.records()),
        Outcome::Exhausted => {
            assert_eq!(replay.records(), records.len() as u64);
            None
        }
    }
}

fn pcr(number: u32) -> Pcr {
    Pcr::new(number).unwrap()
}

#[test]
fn vectors_are_what_they_should_be() {
    let logs = logs();
    let names: Vec<&str> = logs.iter().map(|log| log.name.as_str()).collect();
    assert_eq!(names, ["plain", "everything", "continued"]);
    let last = logs[1].points.last().unwrap();
    assert_eq!((last.records, last.violations, last.unextended), (25, 7, 5));
    // A bank that is not at the slot of its index makes a mistaken index show.
    assert_eq!(logs[2].banks.get(1).unwrap().position, 2);
}

#[test]
fn replay_gives_the_values_of_the_vectors_after_each_record() {
    for log in logs() {
        let mut replay = Replay::new(log.points[0].values.clone());
        let mut seen = Vec::new();
        for (record, point) in log.records.iter().zip(&log.points[1..]) {
            let extended = replay.step(&log.banks, &Hashes, &record).unwrap();
            let at = format!("{} after record {}", log.name, point.records);
            assert_eq!(extended, Pcr::from_record(record.pcr), "{at}");
            assert_eq!(replay.values(), &point.values, "{at}");
            assert_eq!(replay.records(), point.records, "{at}");
            assert_eq!(replay.violations(), point.violations, "{at}");
            assert_eq!(replay.first_violation(), point.first_violation, "{at}");
            assert_eq!(replay.unextended(), point.unextended, "{at}");
            seen.extend(extended);
            assert_eq!(replay.seen(), seen.iter().copied().collect(), "{at}");
        }
        assert_eq!(replay.into_values(), log.points.last().unwrap().values);
    }
}

#[test]
fn all_values_of_a_point_find_the_earliest_record_that_has_them() {
    for log in logs() {
        for point in &log.points {
            // A record that no TPM extends changes nothing, so the point before it is the match.
            let earliest = log.points.iter().find(|p| p.values == point.values);
            let all = target(&log.banks, &point.values, |_, _| true);
            assert_eq!(
                find(&log.banks, &log.points[0].values, &all, &log.records),
                Some(earliest.unwrap().records),
                "{} point {}",
                log.name,
                point.records
            );
        }
    }
}

#[test]
fn one_value_of_a_point_finds_the_record_that_extended_it() {
    for log in logs() {
        for point in &log.points {
            for (bank, _) in log.banks.iter() {
                for pcr in Pcr::all() {
                    let value = point.values.get(bank, pcr);
                    let earliest = log.points.iter().find(|p| p.values.get(bank, pcr) == value);
                    let one = target(&log.banks, &point.values, |b, p| (b, p) == (bank, pcr));
                    assert_eq!(
                        find(&log.banks, &log.points[0].values, &one, &log.records),
                        Some(earliest.unwrap().records),
                        "{} point {} bank {bank} pcr {pcr}",
                        log.name,
                        point.records
                    );
                }
            }
        }
    }
}

#[test]
fn one_wrong_bit_of_one_value_matches_nothing() {
    for log in logs() {
        let point = &log.points[log.points.len() / 2];
        for (bank, info) in log.banks.iter() {
            for pcr in Pcr::all() {
                for byte in [0, info.size - 1] {
                    let mut values = point.values.clone();
                    values.get_mut(bank, pcr).unwrap()[byte] ^= 1;
                    let wrong = target(&log.banks, &values, |_, _| true);
                    assert_eq!(
                        find(&log.banks, &log.points[0].values, &wrong, &log.records),
                        None,
                        "{} bank {bank} pcr {pcr} byte {byte}",
                        log.name
                    );
                }
            }
        }
    }
}

#[test]
fn values_of_different_points_do_not_match_together() {
    let log = &logs()[1];
    // PCR 10 as after the first record, PCR 11 as after the third, when PCR 10 has moved on.
    let mut values = log.points[1].values.clone();
    for (bank, _) in log.banks.iter() {
        *values.get_mut(bank, pcr(11)).unwrap() = *log.points[3].values.get(bank, pcr(11)).unwrap();
    }
    let start = &log.points[0].values;
    let both = target(&log.banks, &values, |_, p| p == pcr(10) || p == pcr(11));
    assert_eq!(find(&log.banks, start, &both, &log.records), None);
    // Its positive twin: the third record leaves PCR 10 as it was after the second.
    for (bank, _) in log.banks.iter() {
        *values.get_mut(bank, pcr(10)).unwrap() = *log.points[2].values.get(bank, pcr(10)).unwrap();
    }
    let both = target(&log.banks, &values, |_, p| p == pcr(10) || p == pcr(11));
    assert_eq!(find(&log.banks, start, &both, &log.records), Some(3));
}

#[test]
fn a_log_without_its_violation_does_not_match() {
    let log = &logs()[1];
    let mut washed = log.records.clone();
    // The fourth record is the first violation, on PCR 10.
    washed.remove(3);
    let point = &log.points[7];
    let wanted = target(&log.banks, &point.values, |_, p| p == pcr(10));
    let start = &log.points[0].values;
    assert_eq!(find(&log.banks, start, &wanted, &washed), None);
    assert_eq!(find(&log.banks, start, &wanted, &log.records), Some(7));
}

#[test]
fn a_violation_is_extended_as_ones_and_not_as_listed() {
    let log = &logs()[1];
    let record = &log.records[3];
    assert!(record.digests.iter().flatten().all(|&byte| byte == 0));
    for (bank, info) in log.banks.iter() {
        for (byte, equal) in [(0x00, false), (0xff, true)] {
            let mut value = *log.points[3].values.get(bank, pcr(10)).unwrap();
            Hashes
                .extend(bank, info, &mut value, &vec![byte; info.size])
                .unwrap();
            let expected = log.points[4].values.get(bank, pcr(10)).unwrap();
            assert_eq!(&value == expected, equal, "{} {byte}", info.name);
        }
    }
}

#[test]
fn starting_values_and_the_rest_make_the_whole() {
    for log in logs() {
        let whole = log.points.last().unwrap();
        for point in &log.points {
            let rest = &log.records[point.records as usize..];
            let mut replay = Replay::new(point.values.clone());
            let replayed = advance(
                &log.banks,
                &Hashes,
                &mut replay,
                &mut rest.iter(),
                None,
                |_, _| {},
            );
            assert_eq!(replayed, Ok(rest.len() as u64));
            assert_eq!(replay.values(), &whole.values);
            assert_eq!(point.violations + replay.violations(), whole.violations);
        }
    }
}

#[test]
fn advance_stops_where_it_is_told() {
    let log = &logs()[1];
    let len = log.records.len() as u64;
    for count in 0..len + 2 {
        let mut replay = Replay::new(log.points[0].values.clone());
        let mut records = log.records.iter();
        for (count, expected) in [(count, count.min(len)), (0, 0)] {
            let replayed = advance(
                &log.banks,
                &Hashes,
                &mut replay,
                &mut records,
                Some(count),
                |_, _| {},
            );
            assert_eq!(replayed, Ok(expected));
        }
        assert_eq!(records.len() as u64, len - count.min(len), "asked for more");
        let point = &log.points[count.min(len) as usize];
        assert_eq!(replay.values(), &point.values);
        // A second stretch counts from where the first ended.
        let rest = len - count.min(len);
        let replayed = advance(
            &log.banks,
            &Hashes,
            &mut replay,
            &mut records,
            Some(rest),
            |_, _| {},
        );
        assert_eq!(replayed, Ok(rest));
        assert_eq!(replay.records(), len);
    }
}

#[test]
fn search_asks_for_no_record_beyond_the_match() {
    let log = &logs()[0];
    for point in &log.points {
        let wanted = target(&log.banks, &point.values, |_, p| p == pcr(10));
        let mut replay = Replay::new(log.points[0].values.clone());
        let mut records = log.records.iter();
        let outcome = search(&log.banks, &Hashes, &mut replay, &wanted, &mut records);
        assert_eq!(outcome, Ok(Outcome::Matched));
        assert_eq!(
            records.len() as u64,
            log.records.len() as u64 - point.records
        );
        assert_eq!(replay.values(), &point.values);
    }
}

/// Records that are lost after some pieces.
struct Fleeting<I> {
    records: I,
    pieces: usize,
}

impl<I: Iterator<Item: Record>> Records for Fleeting<I> {
    type Record = I::Item;
    type Error = &'static str;

    fn piece(&mut self, step: impl FnMut(&I::Item) -> bool) -> Result<Piece, &'static str> {
        self.pieces = self.pieces.checked_sub(1).ok_or("lost")?;
        self.records.piece(step).map_err(|never| match never {})
    }
}

#[test]
fn pieces_are_bounded_and_a_loss_ends_the_search() {
    let log = &logs()[0];
    let wanted = {
        let mut values = log.points[0].values.clone();
        values.get_mut(0, pcr(10)).unwrap()[0] = 1;
        target(&log.banks, &values, |_, p| p == pcr(10))
    };
    let mut seen = 0;
    let mut endless = log.records.iter().cycle();
    let piece = endless.piece(|_| {
        seen += 1;
        false
    });
    assert_eq!((piece, seen), (Ok(Piece::Full), PIECE));
    assert_eq!(endless.piece(|_| true), Ok(Piece::Stopped));
    assert_eq!(log.records[..3].iter().piece(|_| false), Ok(Piece::Last));

    // Exactly as many pieces as the records take, and one less.
    for (records, pieces) in [(0, 1), (PIECE - 1, 1), (PIECE, 2), (1000, 16)] {
        for pieces in [pieces, pieces - 1] {
            let mut replay = Replay::new(log.points[0].values.clone());
            let mut fleeting = Fleeting {
                records: log.records.iter().cycle().take(records),
                pieces,
            };
            let outcome = search(&log.banks, &Hashes, &mut replay, &wanted, &mut fleeting);
            if fleeting.pieces == 0 && outcome.is_ok() {
                assert_eq!(outcome, Ok(Outcome::Exhausted), "{records} records");
                assert_eq!(replay.records(), records as u64);
            } else {
                assert_eq!(outcome, Err(SearchError::Walk("lost")));
                assert_eq!(replay.records(), (pieces * PIECE) as u64);
            }
        }
    }
}

/// A record that has the same digest for every bank, whatever the bank's size.
struct AnySize(Vec<u8>);

impl Record for AnySize {
    fn pcr(&self) -> i32 {
        10
    }

    fn digest(&self, _: &Bank) -> Option<&[u8]> {
        Some(&self.0)
    }

    fn is_violation(&self) -> bool {
        false
    }
}

#[test]
fn a_record_without_a_digest_ends_the_replay() {
    let log = &logs()[2];
    let start = || Replay::new(log.points[0].values.clone());
    let missing = ReplayError::Digest { bank: "sha256" };

    let mut record = log.records[0].clone();
    record.digests.pop();
    assert_eq!(start().step(&log.banks, &Hashes, &&record), Err(missing));
    record.digests.push(vec![1; 31]);
    assert_eq!(start().step(&log.banks, &Hashes, &&record), Err(missing));
    record.digests.pop();
    record.digests.push(vec![1; 32]);
    assert!(start().step(&log.banks, &Hashes, &&record).is_ok());

    for (len, expected) in [
        (31, Err(missing)),
        (32, Ok(Pcr::new(10))),
        (33, Err(missing)),
    ] {
        let mut banks = Banks::new();
        banks.push(*log.banks.get(2).unwrap()).unwrap();
        let mut replay = Replay::new(reset_values(&banks));
        assert_eq!(
            replay.step(&banks, &Hashes, &AnySize(vec![1; len])),
            expected
        );
    }
    assert_eq!(
        ReplayError::<Infallible>::Digest { bank: "sha256" }.to_string(),
        "a record has no sha256 digest of the right size"
    );
}

/// A hash that fails in one bank.
struct Broken;

impl Extend for Broken {
    type Error = &'static str;

    fn extend(&self, bank: usize, _: &Bank, _: &mut Value, _: &[u8]) -> Result<(), &'static str> {
        if bank == 1 {
            Err("no transform")
        } else {
            Ok(())
        }
    }
}

#[test]
fn a_hash_that_fails_ends_the_replay() {
    let log = &logs()[1];
    let mut replay = Replay::new(log.points[0].values.clone());
    let failed = replay.step(&log.banks, &Broken, &&log.records[0]);
    assert_eq!(failed, Err(ReplayError::Hash("no transform")));
    assert_eq!(
        failed.unwrap_err().to_string(),
        "a digest could not be hashed: no transform"
    );
}

#[test]
fn target_takes_each_value_once_and_only_of_its_banks() {
    let log = &logs()[2];
    let value = [7; 64];
    // What the memory held before must not count as given.
    let mut target = Target::new(log.points[3].values.clone());
    assert!(target.is_empty());
    assert_eq!(target.iter().count(), 0);
    assert_eq!(target.set(1, pcr(10), &value), Ok(()));
    assert_eq!(target.set(0, pcr(23), &value), Ok(()));
    assert_eq!(target.set(1, pcr(0), &value), Ok(()));
    assert_eq!(
        target.set(1, pcr(10), &[0; 64]),
        Err(TargetError::Duplicate)
    );
    assert_eq!(target.set(3, pcr(10), &value), Err(TargetError::Bank));
    assert_eq!(target.set(8, pcr(10), &value), Err(TargetError::Bank));
    assert_eq!(
        target.set(usize::MAX, pcr(10), &value),
        Err(TargetError::Bank)
    );
    let given: Vec<_> = target.iter().map(|(b, p, v)| (b, p.index(), *v)).collect();
    assert_eq!(given, [(0, 23, value), (1, 0, value), (1, 10, value)]);
    let pcrs: Vec<_> = target.pcrs().iter().map(Pcr::index).collect();
    assert_eq!(pcrs, [0, 10, 23]);
    let given = |bank| -> Vec<_> { target.given(bank).iter().map(Pcr::index).collect() };
    assert_eq!(given(0), [23]);
    assert_eq!(given(1), [0, 10]);
    for none in [2, 3, 8, usize::MAX] {
        assert_eq!(given(none), [0; 0], "bank {none}");
    }

    // All else in the memory is as it was.
    let mut values = log.points[3].values.clone();
    for (bank, number) in [(0, 23), (1, 0), (1, 10)] {
        *values.get_mut(bank, pcr(number)).unwrap() = value;
    }
    assert_eq!(target.values(), &values);
    assert_eq!(target.into_values(), values);
}

#[test]
fn matcher_notices_that_a_value_moves_on() {
    let log = &logs()[0];
    let wanted = target(&log.banks, &log.points[2].values, |_, p| p == pcr(10));
    let mut matcher = Matcher::new(&wanted, &log.points[0].values);
    for (point, matched) in log.points.iter().zip([false, false, true, false, false]) {
        matcher.update(&point.values, pcr(10));
        assert_eq!(matcher.matched(), matched);
        matcher.update(&point.values, pcr(11));
        assert_eq!(matcher.matched(), matched, "PCR 11 was not asked for");
    }
}

#[test]
fn values_are_copied_between_the_same_banks_only() {
    let logs = logs();
    let mut values = reset_values(&logs[1].banks);
    assert!(values.copy_from(&logs[1].points[9].values));
    assert_eq!(values, logs[1].points[9].values);
    assert!(!values.copy_from(&logs[0].points[1].values));
    assert_eq!(values, logs[1].points[9].values);
}
