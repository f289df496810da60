// SPDX-License-Identifier: GPL-2.0

//! Banks, PCR numbers and sets of them, and reset values.

use ima_trim_pure::bank::{
    reset_byte, shows_violation, Bank, Banks, BanksError, Pcr, PcrSet, Value, MAX_BANKS, MAX_DIGEST,
};
use ima_trim_pure::values::PcrValues;

type Values = PcrValues<Vec<Value>>;

const NAMES: [&str; MAX_BANKS + 1] = ["a", "b", "c", "d", "e", "f", "g", "h", "i"];

fn bank(number: usize) -> Bank {
    Bank {
        name: NAMES[number],
        size: 20 + number,
        position: number * 2,
    }
}

#[test]
fn banks_are_kept_in_order_up_to_the_most_there_can_be() {
    let mut banks = Banks::new();
    assert!(banks.is_empty());
    for number in 0..MAX_BANKS {
        assert_eq!(banks.len(), number);
        assert_eq!(banks.push(bank(number)), Ok(()));
        assert!(!banks.is_empty());
    }
    assert_eq!(banks.push(bank(MAX_BANKS)), Err(BanksError::Full));
    assert_eq!(banks.len(), MAX_BANKS);
    for (index, info) in banks.iter() {
        assert_eq!(info, &bank(index));
        assert_eq!(banks.get(index), Some(info));
        assert_eq!(banks.find(info.name.as_bytes()), Some(index));
    }
    assert_eq!(banks.get(MAX_BANKS), None);
    for name in ["", "i", "A", "ab", "a\0"] {
        assert_eq!(banks.find(name.as_bytes()), None, "{name:?}");
    }
}

#[test]
fn banks_that_cannot_be_are_refused() {
    let mut banks = Banks::new();
    for (size, expected) in [
        (0, Err(BanksError::Size)),
        (MAX_DIGEST + 1, Err(BanksError::Size)),
        (MAX_DIGEST, Ok(())),
    ] {
        assert_eq!(banks.push(Bank { size, ..bank(1) }), expected);
    }
    let same_name = Bank {
        name: "b",
        ..bank(2)
    };
    let same_position = Bank {
        position: 2,
        ..bank(2)
    };
    assert_eq!(banks.push(same_name), Err(BanksError::Duplicate));
    assert_eq!(banks.push(same_position), Err(BanksError::Duplicate));
    assert_eq!(banks.push(bank(2)), Ok(()));
    assert_eq!(banks.len(), 2);
}

#[test]
fn pcr_numbers() {
    for number in 0..24 {
        let pcr = Pcr::new(number).unwrap();
        assert_eq!(Pcr::from_record(number as i32), Some(pcr));
        assert_eq!(pcr.index(), number as usize);
        assert_eq!(pcr.bit(), 1 << number);
        assert_eq!(pcr.to_string(), number.to_string());
    }
    for number in [24, 31, 32, 63, 256, 266, 65546, u32::MAX] {
        assert_eq!(Pcr::new(number), None);
        assert_eq!(Pcr::from_record(number as i32), None);
    }
    assert_eq!(Pcr::from_record(i32::MIN), None);
    assert_eq!(Pcr::all().count(), 24);
}

#[test]
fn pcr_sets() {
    let set =
        |numbers: &[u32]| -> PcrSet { numbers.iter().map(|&n| Pcr::new(n).unwrap()).collect() };
    let some = set(&[23, 0, 10, 0]);
    assert!(some.iter().map(Pcr::index).eq([0, 10, 23]));
    assert!(Pcr::all().all(|pcr| some.contains(pcr) == [0, 10, 23].contains(&pcr.index())));
    assert_eq!(some.union(set(&[10, 11])), set(&[0, 10, 11, 23]));
    assert_eq!(some.without(set(&[10, 11])), set(&[0, 23]));
    assert_eq!(some.intersection(set(&[10, 11])), set(&[10]));
    assert!(some.without(some).is_empty());
    assert!(!some.is_empty());
    assert_eq!(PcrSet::new(), set(&[]));
}

#[test]
fn reset_values_are_ones_for_the_pcrs_of_a_dynamic_launch() {
    let mut banks = Banks::new();
    for number in [2, 0] {
        banks.push(bank(number)).unwrap();
    }
    assert_eq!(Values::cells(&banks), 48);
    assert!(PcrValues::new(vec![[0; 64]; 47], &banks).is_none());
    assert!(PcrValues::new(vec![[0; 64]; 49], &banks).is_none());
    let mut values = PcrValues::new(vec![[0x5a; 64]; 48], &banks).unwrap();
    values.reset(&banks);
    for (index, info) in banks.iter() {
        for pcr in Pcr::all() {
            let ones = [17, 18, 19, 20, 21, 22].contains(&pcr.index());
            let byte = if ones { 0xff } else { 0x00 };
            assert_eq!(reset_byte(pcr), byte);
            let value = values.get(index, pcr).unwrap();
            assert!(value[..info.size].iter().all(|&b| b == byte));
            assert!(value[info.size..].iter().all(|&b| b == 0));
        }
    }
    let pcr = Pcr::new(0).unwrap();
    assert_eq!(values.get(2, pcr), None);
    assert_eq!(values.get(usize::MAX, pcr), None);
    assert_eq!(values.get_mut(usize::MAX / 24, pcr), None);
}

#[test]
fn violations_are_told_by_twenty_zeros() {
    assert!(shows_violation(&[0; 20]));
    assert!(!shows_violation(&[0; 19]));
    for byte in 0..64 {
        let mut digest = [0; 64];
        digest[byte] = 1;
        assert_eq!(shows_violation(&digest), byte >= 20);
    }
}
