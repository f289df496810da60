// SPDX-License-Identifier: GPL-2.0

//! The replay and the search, over arbitrary logs: the point, the values and all that is counted are
//! those of a replay that keeps everything in maps; and it does not matter where a log is split.

#![no_main]

use core::convert::Infallible;
use ima_trim_fuzz::{banks, dirty, BANKS};
use ima_trim_pure::bank::{shows_violation, Bank, Banks, Pcr, Value};
use ima_trim_pure::replay::{advance, search, Extend, Outcome, Record, Replay, ReplayError};
use ima_trim_pure::replay::{SearchError, Target};
use libfuzzer_sys::fuzz_target;
use std::collections::HashMap;

/// A record of the log, its digests by position.
struct Entry {
    pcr: i32,
    digests: Vec<Vec<u8>>,
}

impl Record for &Entry {
    fn pcr(&self) -> i32 {
        self.pcr
    }

    fn digest(&self, bank: &Bank) -> Option<&[u8]> {
        self.digests.get(bank.position)?.get(..bank.size)
    }

    fn is_violation(&self) -> bool {
        shows_violation(&self.digests[0])
    }
}

/// What takes the place of a hash: quick, and no two inputs of a short log are likely to meet.
fn mix(data: &[u8], size: usize) -> Vec<u8> {
    let mut state = 0xcbf2_9ce4_8422_2325u64;
    let mut next = |byte: u8| {
        state = (state ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        (state >> 32) as u8
    };

    data.iter().for_each(|&byte| {
        next(byte);
    });
    (0..size).map(|at| next(at as u8)).collect()
}

struct Mix;

impl Extend for Mix {
    type Error = Infallible;

    fn extend(
        &self,
        _bank: usize,
        info: &Bank,
        value: &mut Value,
        digest: &[u8],
    ) -> Result<(), Infallible> {
        let mixed = mix(&[&value[..info.size], digest].concat(), info.size);

        value[..info.size].copy_from_slice(&mixed);
        Ok(())
    }
}

/// The bytes of the input, and zeros when they are used up.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn byte(&mut self) -> u8 {
        match self.0 {
            [first, rest @ ..] => {
                self.0 = rest;
                *first
            }
            [] => 0,
        }
    }
}

/// A log: few PCRs, so that they meet, and some that no TPM has; some digests all zero, some short.
fn log(input: &mut Input<'_>) -> Vec<Entry> {
    let mut log = Vec::new();

    while !input.0.is_empty() && log.len() < 200 {
        let (kind, seed) = (input.byte(), input.byte());
        let pcr = match kind >> 4 {
            0..=5 => 10,
            6..=8 => 11,
            9 => 17,
            10 => i32::from(input.byte() % 24),
            11 => 24,
            12 => i32::from(input.byte()),
            13 => -1,
            14 => i32::MAX,
            _ => i32::MIN,
        };
        let mut digests: Vec<Vec<u8>> = BANKS
            .iter()
            .map(|&(_, size)| {
                if kind & 7 == 0 {
                    vec![0; size]
                } else {
                    mix(&[seed], size)
                }
            })
            .collect();
        match kind & 15 {
            // Zeros up to the last byte that is looked at.
            8 => {
                digests[0].fill(0);
                digests[0][19] = 1;
            }
            // A digest that is too short, or none.
            9 if seed == 0 => digests[1].truncate(31),
            9 if seed == 1 => digests.truncate(2),
            // Zeros in another bank are no violation.
            10 => digests[1].fill(0),
            _ => {}
        }
        log.push(Entry { pcr, digests });
    }
    log
}

/// All values: of bank and PCR.
type State = HashMap<(usize, i32), Vec<u8>>;

fn reset() -> State {
    let pcrs = (0..24).map(|pcr| (pcr, if (17..=22).contains(&pcr) { 0xff } else { 0 }));

    pcrs.flat_map(|(pcr, byte)| {
        (0..BANKS.len()).map(move |bank| ((bank, pcr), vec![byte; BANKS[bank].1]))
    })
    .collect()
}

/// The state after a record. `None` if a digest is missing.
fn step(state: &State, entry: &Entry) -> Option<State> {
    let mut state = state.clone();

    if (0..24).contains(&entry.pcr) {
        let violation = entry.digests[0].iter().take(20).all(|&byte| byte == 0);
        for (bank, &(_, size)) in BANKS.iter().enumerate() {
            let digest = if violation {
                vec![0xff; size]
            } else {
                entry
                    .digests
                    .get(bank)
                    .filter(|digest| digest.len() >= size)?[..size]
                    .to_vec()
            };
            let value = state.get_mut(&(bank, entry.pcr))?;
            *value = mix(&[value.clone(), digest].concat(), size);
        }
    }
    Some(state)
}

/// Asserts that a replay is where it should be.
fn compare(replay: &Replay<Vec<Value>>, log: &[Entry], point: usize, state: &State) {
    let violations = (1..)
        .zip(&log[..point])
        .filter(|(_, entry)| entry.digests[0] == [0; 20]);
    let numbers: Vec<u64> = violations.map(|(number, _)| number).collect();

    assert_eq!(replay.records(), point as u64);
    assert_eq!(replay.violations(), numbers.len() as u64);
    assert_eq!(replay.first_violation(), numbers.first().copied());
    let outside = log[..point]
        .iter()
        .filter(|entry| !(0..24).contains(&entry.pcr));
    assert_eq!(replay.unextended(), outside.count() as u64);
    for pcr in Pcr::all() {
        let number = pcr.index() as i32;
        let seen = log[..point].iter().any(|entry| entry.pcr == number);
        assert_eq!(replay.seen().contains(pcr), seen);
        for (bank, &(_, size)) in BANKS.iter().enumerate() {
            let value = replay.values().get(bank, pcr).expect("the value of a bank");
            assert_eq!(value[..size], state[&(bank, number)]);
            assert!(value[size..].iter().all(|&byte| byte == 0));
        }
    }
}

fn fresh(banks: &Banks) -> Replay<Vec<Value>> {
    let mut values = dirty(banks);

    values.reset(banks);
    Replay::new(values)
}

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let (choice, at, split) = (input.byte(), input.byte(), input.byte());
    let log = log(&mut input);
    let banks = banks();

    // All states, up to the first record that cannot be replayed.
    let mut states = vec![reset()];
    for entry in &log {
        match step(&states[states.len() - 1], entry) {
            Some(state) => states.push(state),
            None => break,
        }
    }
    let broken = states.len() <= log.len();

    // Values of one point, of some banks and PCRs; or one of them another.
    let point = usize::from(at) % states.len();
    let mut target = Target::new(dirty(&banks));
    let mut wanted = Vec::new();
    for (bit, (bank, number)) in [(0, 10), (1, 10), (2, 10), (1, 11), (0, 17), (2, 3)]
        .into_iter()
        .enumerate()
    {
        if (choice >> bit) & 1 == 0 {
            continue;
        }
        let mut bytes = states[point][&(bank, number)].clone();
        if choice >> 6 == 3 && wanted.is_empty() {
            bytes[0] ^= 1;
        }
        let mut value = [0; 64];
        value[..bytes.len()].copy_from_slice(&bytes);
        let pcr = Pcr::new(number as u32).expect("a PCR of a TPM");
        target.set(bank, pcr, &value).expect("it is given once");
        wanted.push(((bank, number), bytes));
    }
    let matches = |state: &State| wanted.iter().all(|(key, value)| state[key] == *value);
    let earliest = states.iter().position(matches);

    let mut replay = fresh(&banks);
    let mut records = log.iter();
    match search(&banks, &Mix, &mut replay, &target, &mut records) {
        Ok(Outcome::Matched) => {
            let earliest = earliest.expect("no point matches");
            compare(&replay, &log, earliest, &states[earliest]);
            // Not one record more was asked for.
            assert_eq!(records.len(), log.len() - earliest);
        }
        Ok(Outcome::Exhausted) => {
            assert!(earliest.is_none() && !broken);
            compare(&replay, &log, log.len(), &states[log.len()]);
        }
        Err(SearchError::Step(ReplayError::Digest { .. })) => assert!(earliest.is_none() && broken),
        Err(error) => panic!("{error:?}"),
    }

    if !broken {
        let split = usize::from(split) % (log.len() + 1);
        let mut replay = fresh(&banks);
        let mut records = log.iter();
        let first = advance(
            &banks,
            &Mix,
            &mut replay,
            &mut records,
            Some(split as u64),
            |_, _| {},
        );
        assert_eq!(first.ok(), Some(split as u64));
        compare(&replay, &log, split, &states[split]);
        let mut extended = Vec::new();
        let rest = advance(&banks, &Mix, &mut replay, &mut records, None, |_, pcr| {
            extended.push(pcr.index() as i32);
        });
        assert_eq!(rest.ok(), Some((log.len() - split) as u64));
        compare(&replay, &log, log.len(), &states[log.len()]);
        let named = log[split..].iter().map(|entry| entry.pcr);
        assert_eq!(
            extended,
            named
                .filter(|pcr| (0..24).contains(pcr))
                .collect::<Vec<_>>()
        );
    }
});
