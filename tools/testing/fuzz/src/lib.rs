// SPDX-License-Identifier: GPL-2.0

//! What the grammars of `trim` and `starting_pcrs` mean, once more: written from their description
//! (Documentation/ABI) alone, without regard for memory or time, to disagree with the module.

use ima_trim_pure::bank::{Bank, Banks, Pcr, Value};
use ima_trim_pure::replay::Target;
use ima_trim_pure::values::PcrValues;
use std::collections::BTreeMap;

// Without them, and the overflow checks that go with them, much would not be found.
const _: () = assert!(cfg!(debug_assertions));

/// The errors that a text may earn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Errno {
    EINVAL,
    E2BIG,
    EOPNOTSUPP,
}

/// Values by bank and PCR.
pub type Given = BTreeMap<(String, u32), Vec<u8>>;

/// What a text says.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Meaning {
    /// The PCR values.
    pub values: Given,
    /// The counts, by their keys.
    pub counts: BTreeMap<String, u64>,
    /// The words that stand alone.
    pub words: Vec<String>,
    /// The load of the module, as lower-case digits.
    pub instance: Option<String>,
}

/// The text that an input stands for: itself, or, behind a NUL and another byte, filled up with blanks
/// to about as much as a request may have.
pub fn text(input: &[u8]) -> Vec<u8> {
    match input {
        [0, more, text @ ..] => {
            let mut text = text.to_vec();

            text.resize(16376 + usize::from(more % 16), b' ');
            text
        }
        text => text.to_vec(),
    }
}

/// The banks of the TPM, with the bytes of a digest.
pub const BANKS: [(&str, usize); 3] = [("sha1", 20), ("sha256", 32), ("sha512", 64)];

/// The algorithms that the kernel knows beside these.
const OTHERS: [&str; 2] = ["sha384", "sm3"];

/// Whether the kernel knows an algorithm of this name.
pub fn known(name: &[u8]) -> bool {
    let all = BANKS.iter().map(|bank| bank.0).chain(OTHERS);

    all.into_iter().any(|known| known.as_bytes() == name)
}

/// The banks, as the module has them.
pub fn banks() -> Banks {
    let mut banks = Banks::new();

    for (position, (name, size)) in BANKS.into_iter().enumerate() {
        banks
            .push(Bank {
                name,
                size,
                position,
            })
            .expect("there are few banks");
    }
    banks
}

/// Memory for values, with something in it.
pub fn dirty(banks: &Banks) -> PcrValues<Vec<Value>> {
    let cells = PcrValues::<Vec<Value>>::cells(banks);

    PcrValues::new(vec![[0x5a; 64]; cells], banks).expect("it is as many as there should be")
}

/// The values that the module understood.
pub fn given(banks: &Banks, target: &Target<Vec<Value>>) -> Given {
    target
        .iter()
        .map(|(index, pcr, value)| {
            let bank = banks.get(index).expect("the bank of a value");

            assert!(value[bank.size..].iter().all(|&byte| byte == 0));
            let key = (bank.name.to_string(), pcr.index() as u32);
            (key, value[..bank.size].to_vec())
        })
        .collect()
}

/// Whether the module knows a PCR of this number.
pub fn is_pcr(number: u64) -> bool {
    u32::try_from(number).is_ok_and(|number| Pcr::new(number).is_some())
}

/// A decimal number of 64 bits, without sign or leading zeros.
fn number(text: &str) -> Option<u64> {
    let number: u64 = text.parse().ok()?;

    (number.to_string() == text).then_some(number)
}

/// Reads a text in which these keys have counts and these words stand alone.
///
/// Of several errors that of the first token that has one counts.
pub fn read(text: &[u8], keys: &[&str], words: &[&str]) -> Result<Meaning, Errno> {
    let mut meaning = Meaning::default();

    if text.len() > 16384 {
        return Err(Errno::E2BIG);
    }
    // What is not ASCII is in no token that means anything; the blanks of others are not blanks.
    let text: String = text.iter().map(|&byte| char::from(byte)).collect();
    for token in text
        .split([' ', '\t', '\n'])
        .filter(|token| !token.is_empty())
    {
        if words.contains(&token) {
            if meaning.words.iter().any(|word| word == token) {
                return Err(Errno::EINVAL);
            }
            meaning.words.push(token.to_string());
            // Of keep, compact and flush there is one at most.
            if meaning
                .words
                .iter()
                .filter(|word| *word != "dry-run")
                .count()
                > 1
            {
                return Err(Errno::EINVAL);
            }
            continue;
        }
        let (left, right) = token.split_once('=').ok_or(Errno::EINVAL)?;
        if keys.contains(&left) {
            let count = number(right).ok_or(Errno::EINVAL)?;
            if meaning.counts.insert(left.to_string(), count).is_some() {
                return Err(Errno::EINVAL);
            }
            continue;
        }
        let is_hex = right
            .chars()
            .all(|digit| "0123456789abcdefABCDEF".contains(digit));
        if left == "instance" {
            let instance = right.to_ascii_lowercase();
            if right.len() != 32 || !is_hex || meaning.instance.replace(instance).is_some() {
                return Err(Errno::EINVAL);
            }
            continue;
        }
        let (name, pcr) = left.split_once(':').ok_or(Errno::EINVAL)?;
        let pcr = number(pcr).filter(|&pcr| pcr < 24).ok_or(Errno::EINVAL)?;
        if !known(name.as_bytes()) || right.is_empty() {
            return Err(Errno::EINVAL);
        }
        if !is_hex {
            return Err(Errno::EINVAL);
        }
        let Some((_, size)) = BANKS.into_iter().find(|bank| bank.0 == name) else {
            return Err(Errno::EOPNOTSUPP);
        };
        if right.len() != 2 * size {
            return Err(Errno::EINVAL);
        }
        let value = (0..size)
            .map(|at| u8::from_str_radix(&right[2 * at..][..2], 16).expect("they are digits"))
            .collect();
        if meaning
            .values
            .insert((name.to_string(), pcr as u32), value)
            .is_some()
        {
            return Err(Errno::EINVAL);
        }
    }
    if meaning.values.is_empty() {
        return Err(Errno::EINVAL);
    }
    Ok(meaning)
}

/// The module's error, in this crate's terms.
pub fn errno(errno: ima_trim_pure::errno::Errno) -> Errno {
    match errno.as_str() {
        "EINVAL" => Errno::EINVAL,
        "E2BIG" => Errno::E2BIG,
        "EOPNOTSUPP" => Errno::EOPNOTSUPP,
        name => panic!("no text earns {name}"),
    }
}
