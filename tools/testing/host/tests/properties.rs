// SPDX-License-Identifier: GPL-2.0

//! What must hold for every measurement list, every point in it and every request.

mod common;

use common::{reset_values, Entry, Hashes, Values};
use ima_trim_pure::bank::{Bank, Banks, Pcr, PcrSet, Value};
use ima_trim_pure::replay::{advance, search, Outcome, Replay, Target};
use ima_trim_pure::report::{starting_pcrs, verify, Totals};
use ima_trim_pure::request::{parse, parse_starting_pcrs, Reclaim, RequestError};
use ima_trim_pure::values::PcrValues;
use proptest::prelude::*;
use proptest::sample::{select, Index};
use sha1::Sha1;
use sha2::{Digest, Sha256, Sha384, Sha512};

const ALGORITHMS: [(&str, usize); 4] =
    [("sha1", 20), ("sha256", 32), ("sha384", 48), ("sha512", 64)];

/// A random measurement list.
#[derive(Clone, Debug)]
struct Log {
    banks: Banks,
    records: Vec<Entry>,
}

/// The values of all PCRs, by bank and PCR, without their unused bytes.
type State = Vec<Vec<Vec<u8>>>;

/// The state after each number of records, by another replay than the one that is tested.
fn history(log: &Log) -> Vec<State> {
    let mut state: State = log
        .banks
        .iter()
        .map(|(_, bank)| {
            (0..24)
                .map(|pcr| vec![if (17..23).contains(&pcr) { 0xff } else { 0 }; bank.size])
                .collect()
        })
        .collect();
    let mut states = vec![state.clone()];
    for record in &log.records {
        if (0..24).contains(&record.pcr) {
            let violation = record.digests[record.sha1_slot] == [0; 20];
            for (index, bank) in log.banks.iter() {
                let value = &mut state[index][record.pcr as usize];
                if violation {
                    value.extend(vec![0xff; bank.size]);
                } else {
                    value.extend(&record.digests[bank.position]);
                }
                *value = match bank.name {
                    "sha1" => Sha1::digest(&value).to_vec(),
                    "sha256" => Sha256::digest(&value).to_vec(),
                    "sha384" => Sha384::digest(&value).to_vec(),
                    _ => Sha512::digest(&value).to_vec(),
                };
            }
        }
        states.push(state.clone());
    }
    states
}

/// Values as the code under test keeps them.
fn values(banks: &Banks, state: &State) -> Values {
    let mut values = reset_values(banks);
    for (index, bank) in banks.iter() {
        for pcr in Pcr::all() {
            values.get_mut(index, pcr).unwrap()[..bank.size]
                .copy_from_slice(&state[index][pcr.index()]);
        }
    }
    values
}

/// One to four banks, in any order.
fn banks() -> impl Strategy<Value = Vec<(&'static str, usize)>> {
    (Just(ALGORITHMS.to_vec()).prop_shuffle(), 1..=4usize).prop_map(|(mut banks, count)| {
        banks.truncate(count);
        banks
    })
}

/// PCRs as records name them: mostly few, so that they meet, and some that no TPM has.
fn record_pcr() -> impl Strategy<Value = i32> {
    prop_oneof![
        6 => select(vec![10, 11, 17]),
        2 => 0..24i32,
        1 => select(vec![24, 32, 42, 63, -1, i32::MAX, i32::MIN]),
    ]
}

/// A log of up to 80 records, a sixth of them violations, beyond one checkpoint.
fn logs() -> impl Strategy<Value = Log> {
    let record = (record_pcr(), 0..6u8, any::<u64>());
    (banks(), prop::collection::vec(record, 0..80)).prop_map(|(algorithms, records)| {
        let banks = banks_of(&algorithms);
        // IMA adds a slot for SHA-1 where the TPM has no such bank.
        let mut slots = algorithms;
        let sha1_slot = slots
            .iter()
            .position(|slot| slot.0 == "sha1")
            .unwrap_or_else(|| {
                slots.push(("sha1", 20));
                slots.len() - 1
            });
        let records = records
            .into_iter()
            .map(|(pcr, kind, seed)| Entry {
                pcr,
                digests: slots
                    .iter()
                    .map(|&(name, size)| {
                        if kind == 0 {
                            vec![0; size]
                        } else {
                            let data = [name.as_bytes(), &seed.to_le_bytes()].concat();
                            Sha512::digest(data)[..size].to_vec()
                        }
                    })
                    .collect(),
                sha1_slot,
            })
            .collect();
        Log { banks, records }
    })
}

/// Banks in this order.
fn banks_of(algorithms: &[(&'static str, usize)]) -> Banks {
    let mut banks = Banks::new();
    for (position, &(name, size)) in algorithms.iter().enumerate() {
        banks
            .push(Bank {
                name,
                size,
                position,
            })
            .unwrap();
    }
    banks
}

/// PCR values at random, and PCRs that are listed.
#[derive(Clone, Debug)]
struct Printed {
    banks: Banks,
    values: Values,
    pcrs: PcrSet,
    totals: Totals,
}

impl Printed {
    /// The text of `starting_pcrs`.
    fn text(&self) -> String {
        let mut text = String::new();
        starting_pcrs(
            &mut text,
            &self.banks,
            &self.values,
            self.pcrs,
            &self.totals,
        )
        .unwrap();
        text
    }

    /// Memory that holds something else.
    fn memory(&self) -> Values {
        let cells = vec![[9; 64]; Values::cells(&self.banks)];
        PcrValues::new(cells, &self.banks).unwrap()
    }
}

/// A count: often at an end of what there is.
fn count() -> impl Strategy<Value = u64> {
    prop_oneof![select(vec![0, 1, 9, 10, u64::MAX]), any::<u64>()]
}

/// All that `starting_pcrs` is printed from.
fn printed() -> impl Strategy<Value = Printed> {
    let numbers = prop::collection::btree_set(0..24u32, 1..=24);
    (banks(), any::<u64>(), numbers, [count(), count(), count()]).prop_map(
        |(algorithms, seed, numbers, [records, violations, trims])| {
            let banks = banks_of(&algorithms);
            let mut values = reset_values(&banks);
            for (index, bank) in banks.iter() {
                for pcr in Pcr::all() {
                    let data = format!("{seed} {} {pcr}", bank.name);
                    let random = Sha512::digest(data);
                    values.get_mut(index, pcr).unwrap()[..bank.size]
                        .copy_from_slice(&random[..bank.size]);
                }
            }
            Printed {
                banks,
                values,
                pcrs: numbers.iter().map(|&n| Pcr::new(n).unwrap()).collect(),
                totals: Totals {
                    records,
                    violations,
                    trims,
                },
            }
        },
    )
}

/// Gives printed PCR tokens another form of the same meaning.
fn disguise(lines: &str, upper: bool, separator: &str) -> String {
    let tokens: Vec<String> = lines
        .lines()
        .map(|token| match token.split_once('=') {
            Some((name, hex)) if upper => format!("{name}={}", hex.to_uppercase()),
            _ => token.to_string(),
        })
        .collect();
    tokens.join(separator)
}

/// Pieces that requests are made of, good and bad.
fn piece() -> impl Strategy<Value = Vec<u8>> {
    let words = [
        "sha1",
        "sha256",
        "sm3",
        "md5",
        ":",
        "=",
        "10",
        "0",
        "24",
        "99999999999",
        "violations=",
        "records=",
        "trims=",
        "unknown",
        "dry-run",
        "keep",
        "flush",
        "compact",
        "\n",
        " ",
        "\t",
        "00",
        "fF",
        "é",
        "\0",
    ];
    prop_oneof![
        6 => select(words.to_vec()).prop_map(|word| word.as_bytes().to_vec()),
        1 => prop::collection::vec(any::<u8>(), 0..8),
        1 => select(vec![38usize, 39, 40, 41, 64, 128, 200]).prop_map(|n| vec![b'7'; n]),
        1 => select(vec![
            format!("sha1:10={}", "0".repeat(40)),
            format!("sha256:10={}", "a".repeat(64)),
            format!("sha256:11={}\n", "b".repeat(64)),
            "records=4\tviolations=3 trims=2\n".to_string(),
        ]).prop_map(String::into_bytes),
    ]
}

fn known(name: &[u8]) -> bool {
    [&b"sha1"[..], b"sha256", b"sha384", b"sha512", b"sm3"].contains(&name)
}

/// Parses what may be no request at all, and looks at all that comes of it.
fn try_request(text: &[u8]) {
    let banks = banks_of(&ALGORITHMS[..2]);
    let request = parse(text, &banks, known, reset_values(&banks));
    let statement = parse_starting_pcrs(text, &banks, known, reset_values(&banks));
    // What one grammar needs, records=, the other refuses.
    assert!(request.is_err() || statement.is_err());
    try_target(&banks, request.map(|request| request.target));
    try_target(&banks, statement.map(|statement| statement.values));
}

/// Looks at all that comes of a text.
fn try_target(banks: &Banks, parsed: Result<Target<Vec<Value>>, RequestError<'_>>) {
    match parsed {
        Ok(target) => {
            assert!(!target.is_empty());
            for (bank, _, value) in target.iter() {
                let size = banks.get(bank).unwrap().size;
                assert!(value[size..].iter().all(|&byte| byte == 0));
            }
        }
        Err(error) => {
            let message = error.to_string();
            assert!(message.bytes().all(|byte| (b' '..=b'~').contains(&byte)));
            // At most 64 bytes of a token are shown, each as four at most.
            assert!(message.len() < 512);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// The values of any point, or any part of them, find the earliest record that has them all.
    /// From there on, starting values and the rest make the whole.
    #[test]
    fn trim_to_values_find_their_point_and_the_rest_makes_the_whole(
        log in logs(),
        point in any::<Index>(),
        mask in prop_oneof![Just(u128::MAX), any::<u128>()],
    ) {
        let history = history(&log);
        let point = point.index(history.len());
        let at_point = values(&log.banks, &history[point]);

        let mut target = Target::new(reset_values(&log.banks));
        let mut given = Vec::new();
        for (bank, _) in log.banks.iter() {
            for pcr in Pcr::all() {
                if (mask >> (bank * 24 + pcr.index())) & 1 != 0 {
                    target.set(bank, pcr, at_point.get(bank, pcr).unwrap()).unwrap();
                    given.push((bank, pcr.index()));
                }
            }
        }
        let same = |state: &State| given.iter().all(|&(b, p)| state[b][p] == history[point][b][p]);
        let earliest = history.iter().position(same).unwrap();

        let mut replay = Replay::new(reset_values(&log.banks));
        let mut records = log.records.iter();
        let outcome = search(
            &log.banks, &Hashes, &mut replay, &target, &mut records,
        );
        prop_assert_eq!(outcome, Ok(Outcome::Matched));
        prop_assert_eq!(replay.records(), earliest as u64);
        prop_assert_eq!(replay.values(), &values(&log.banks, &history[earliest]));

        // The trimmed part, counted another way.
        let trimmed = &log.records[..earliest];
        let is_violation = |record: &Entry| record.digests[record.sha1_slot] == [0; 20];
        let violations = trimmed.iter().filter(|&record| is_violation(record)).count();
        let first = trimmed.iter().position(is_violation).map(|index| index as u64 + 1);
        let unextended = trimmed.iter().filter(|record| !(0..24).contains(&record.pcr)).count();
        let seen: PcrSet = trimmed.iter().filter_map(|r| Pcr::from_record(r.pcr)).collect();
        prop_assert_eq!(replay.violations(), violations as u64);
        prop_assert_eq!(replay.first_violation(), first);
        prop_assert_eq!(replay.unextended(), unextended as u64);
        prop_assert_eq!(replay.seen(), seen);

        // The rest, from the starting values that the trim leaves.
        let mut rest = Replay::new(replay.into_values());
        let replayed = advance(
            &log.banks, &Hashes, &mut rest, &mut records, None, |_, _| {},
        );
        prop_assert_eq!(replayed, Ok((log.records.len() - earliest) as u64));
        prop_assert_eq!(rest.values(), &values(&log.banks, history.last().unwrap()));
    }

    /// Asking for the same values again, or for any earlier ones, never trims more.
    #[test]
    fn a_repeat_is_a_no_op_and_an_earlier_point_is_gone(
        log in logs(),
        point in any::<Index>(),
    ) {
        let history = history(&log);
        let point = point.index(history.len());
        let start = values(&log.banks, &history[point]);
        for (earlier, state) in history.iter().enumerate().take(point + 1) {
            let wanted = values(&log.banks, state);
            let mut target = Target::new(reset_values(&log.banks));
            for (bank, _) in log.banks.iter() {
                for pcr in Pcr::all() {
                    target.set(bank, pcr, wanted.get(bank, pcr).unwrap()).unwrap();
                }
            }
            let mut replay = Replay::new(start.clone());
            let outcome = search(
                &log.banks, &Hashes, &mut replay, &target, &mut log.records[point..].iter(),
            );
            if state == &history[point] {
                prop_assert_eq!(outcome, Ok(Outcome::Matched), "point {}", earlier);
                prop_assert_eq!(replay.records(), 0);
            } else {
                prop_assert_eq!(outcome, Ok(Outcome::Exhausted), "point {}", earlier);
            }
        }
    }

    /// A list in which a violation was replaced by a clean record never reaches the TPM's values.
    #[test]
    fn no_violation_can_be_swapped_for_a_clean_record(
        log in logs(),
        which in any::<Index>(),
    ) {
        let extended = |record: &&Entry| (0..24).contains(&record.pcr);
        let whole = history(&log).pop().unwrap();
        let violations: Vec<usize> = (0..log.records.len())
            .filter(|&i| extended(&&log.records[i]))
            .filter(|&i| log.records[i].digests[log.records[i].sha1_slot] == [0; 20])
            .collect();
        prop_assume!(!violations.is_empty());
        let swapped = violations[which.index(violations.len())];
        let mut forged = log.clone();
        for digest in &mut forged.records[swapped].digests {
            digest.fill(1);
        }
        let mut replay = Replay::new(reset_values(&log.banks));
        let replayed = advance(
            &log.banks, &Hashes, &mut replay, &mut forged.records.iter(), None,
            |_, _| {},
        );
        prop_assert!(replayed.is_ok());
        prop_assert_ne!(replay.values(), &values(&log.banks, &whole));
    }

    /// What `starting_pcrs` prints, given back as a request, is what it was printed from.
    #[test]
    fn printed_starting_values_read_back(
        log in logs(),
        numbers in prop::collection::btree_set(0..24u32, 1..24),
        upper in any::<bool>(),
        separator in select(vec!["\n", " ", "\t", " \n\t"]),
    ) {
        let state = values(&log.banks, history(&log).last().unwrap());
        let pcrs: PcrSet = numbers.iter().map(|&number| Pcr::new(number).unwrap()).collect();
        let totals = Totals { records: 3, violations: 2, trims: 1 };
        let mut text = String::new();
        starting_pcrs(&mut text, &log.banks, &state, pcrs, &totals).unwrap();
        let (tokens, rest) = text.split_at(text.find("records=").unwrap());
        prop_assert_eq!(rest, "records=3\nviolations=2\ntrims=1\n");

        let request = disguise(tokens, upper, separator) + " compact violations=2";
        let memory = PcrValues::new(vec![[9; 64]; Values::cells(&log.banks)], &log.banks);
        let request = parse(request.as_bytes(), &log.banks, known, memory.unwrap()).unwrap();
        prop_assert_eq!(request.target.pcrs(), pcrs);
        prop_assert_eq!(request.target.iter().count(), log.banks.len() * numbers.len());
        for (bank, pcr, value) in request.target.iter() {
            prop_assert_eq!(Some(value), state.get(bank, pcr));
        }
        prop_assert_eq!(request.violations, 2);
        prop_assert_eq!(request.reclaim, Some(Reclaim::Compact));
    }

    /// What `starting_pcrs` prints is what it takes, in any order and form.
    #[test]
    fn printed_starting_pcrs_restore_what_they_were_printed_from(
        printed in printed(),
        order in prop::collection::vec(any::<u32>(), 99),
        upper in any::<bool>(),
        separator in select(vec!["\n", " ", "\t", " \n\t"]),
    ) {
        let text = printed.text();
        let mut tokens: Vec<_> = text.lines().zip(order).collect();
        tokens.sort_by_key(|&(_, place)| place);
        let shuffled: Vec<_> = tokens.iter().map(|&(token, _)| token).collect();
        let shuffled = disguise(&shuffled.join("\n"), upper, separator);

        for text in [text, shuffled] {
            let memory = printed.memory();
            let statement = parse_starting_pcrs(text.as_bytes(), &printed.banks, known, memory);
            let statement = statement.unwrap();
            prop_assert_eq!(statement.totals, printed.totals);
            let mut expected = printed.memory();
            for (bank, _) in printed.banks.iter() {
                prop_assert_eq!(statement.values.given(bank), printed.pcrs);
                for pcr in printed.pcrs.iter() {
                    *expected.get_mut(bank, pcr).unwrap() = *printed.values.get(bank, pcr).unwrap();
                }
            }
            prop_assert_eq!(statement.values.into_values(), expected);
        }
    }

    /// No token of it may be there twice, and no count may be left out. A value that is left out
    /// is not made up.
    #[test]
    fn each_token_of_starting_pcrs_counts(
        printed in printed(),
        which in any::<Index>(),
        at in any::<Index>(),
    ) {
        let text = printed.text();
        let mut tokens: Vec<&str> = text.lines().collect();
        let token = tokens[which.index(tokens.len())];
        let memory = || printed.memory();

        let mut twice = tokens.clone();
        twice.insert(at.index(tokens.len() + 1), token);
        let twice = twice.join(" ");
        let error = parse_starting_pcrs(twice.as_bytes(), &printed.banks, known, memory());
        let expected = RequestError::Duplicate { token: token.as_bytes() };
        prop_assert_eq!(error.unwrap_err(), expected);

        tokens.retain(|&other| other != token);
        let without = tokens.join(" ");
        let parsed = parse_starting_pcrs(without.as_bytes(), &printed.banks, known, memory());
        match (token.split_once(':'), parsed) {
            (None, Err(RequestError::Missing { key })) => {
                prop_assert_eq!(key, token.split_once('=').unwrap().0);
            }
            (Some(_), Err(RequestError::Empty { .. })) => {
                prop_assert_eq!(tokens.len(), 3);
            }
            (Some((name, rest)), Ok(statement)) => {
                prop_assert_eq!(statement.totals, printed.totals);
                let number = rest.split_once('=').unwrap().0.parse().unwrap();
                let pcr: PcrSet = Pcr::new(number).into_iter().collect();
                for (bank, info) in printed.banks.iter() {
                    let given = if info.name == name {
                        printed.pcrs.without(pcr)
                    } else {
                        printed.pcrs
                    };
                    prop_assert_eq!(statement.values.given(bank), given);
                }
            }
            (_, other) => prop_assert!(false, "{}: {:?}", token, other.map(|s| s.totals)),
        }
    }

    /// `verify` has a line for each of `starting_pcrs`, in the same order, with the right verdict.
    #[test]
    fn verdicts_stand_where_starting_values_do(printed in printed(), mask in any::<u128>()) {
        let equal = |bank: usize, pcr: Pcr| (mask >> (bank * 24 + pcr.index())) & 1 != 0;
        let Totals { records, violations, .. } = printed.totals;
        let mut text = String::new();
        verify(&mut text, &printed.banks, printed.pcrs, equal, records, violations).unwrap();

        let mut expected = String::new();
        for token in printed.text().lines() {
            let (key, _) = token.split_once('=').unwrap();
            expected += &match key.split_once(':') {
                Some((name, number)) => {
                    let bank = printed.banks.find(name.as_bytes()).unwrap();
                    let bit = bank * 24 + number.parse::<usize>().unwrap();
                    let verdict = ["mismatch", "ok"][usize::from((mask >> bit) & 1 != 0)];
                    format!("{key}={verdict}\n")
                }
                None if key == "trims" => String::new(),
                None => format!("{token}\n"),
            };
        }
        prop_assert_eq!(text, expected);
    }

    /// No bytes make the parser panic, or its messages unprintable.
    #[test]
    fn arbitrary_bytes_are_parsed_or_refused(
        text in prop::collection::vec(any::<u8>(), 0..600),
    ) {
        try_request(&text);
    }

    /// Nor do more bytes than a request may have, or just as many.
    #[test]
    fn long_garbage_is_parsed_or_refused(
        pattern in prop::collection::vec(any::<u8>(), 1..600),
        len in prop_oneof![16_380..16_390usize, 600..20_000usize],
    ) {
        let text: Vec<u8> = pattern.into_iter().cycle().take(len).collect();
        try_request(&text);
    }

    /// Nor does anything that looks much like a request.
    #[test]
    fn near_requests_are_parsed_or_refused(
        pieces in prop::collection::vec(piece(), 0..24),
        glue in select(vec!["", " ", "\n"]),
    ) {
        try_request(&pieces.join(glue.as_bytes()));
    }
}
