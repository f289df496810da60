// SPDX-License-Identifier: GPL-2.0

//! Quotes that a TPM made, in each form in which tpm2-tools write them: `quote/README`.

use std::fs;
use std::path::Path;

use ima_trim::algorithm::Algorithm;
use ima_trim::pcrfile::PcrFile;
use ima_trim::pcrfile::PcrFileError;
use ima_trim::quote;
use ima_trim::quote::PublicKey;
use ima_trim::quote::Quote;
use ima_trim::quote::QuoteError;
use ima_trim_pure::bank::Pcr;

const KEYS: [&str; 4] = ["rsassa", "rsapss", "p256", "p384"];
const NONCE: [u8; 4] = [0x8b, 0xad, 0xf0, 0x0d];

/// Where `resetCount` and what follows it are in these messages, from the end of the nonce.
const AFTER_NONCE: usize = 8;

fn read(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/quote")
        .join(name);
    fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn key(name: &str) -> PublicKey {
    PublicKey::parse(&read(name)).unwrap()
}

fn values(name: &str) -> PcrFile {
    PcrFile::parse(&read(name), None).unwrap()
}

fn pcr(number: u32) -> Pcr {
    Pcr::new(number).unwrap()
}

fn check(name: &str) -> Result<Quote, QuoteError> {
    quote::check(
        &read(&format!("{name}.msg")),
        &read(&format!("{name}.sig")),
        &key(&format!("{name}.tss")),
        &NONCE,
        &values(&format!("{name}.pcrs")),
    )
}

#[test]
fn quotes_of_a_tpm_are_believed() {
    for name in KEYS {
        let quote = check(name).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(
            quote.selection,
            [(Algorithm::Sha256, [pcr(0), pcr(10)].into_iter().collect())],
            "{name}"
        );
        assert!(quote.clock.clock > 0, "{name}");
        assert_ne!(quote.clock.reset_count, 0, "{name}");
        assert_ne!(quote.clock.reset_count, quote.clock.restart_count, "{name}");
    }
    let [first, last] = ["rsassa", "p384"].map(|name| check(name).unwrap().clock);
    assert!(first.clock < last.clock);
}

#[test]
fn plain_signatures_and_keys_in_pem() {
    for name in KEYS {
        let quote = quote::check(
            &read(&format!("{name}.plain.msg")),
            &read(&format!("{name}.plain.sig")),
            &key(&format!("{name}.pem")),
            &NONCE,
            &values("pcrread.txt"),
        );
        assert!(quote.is_ok(), "{name}: {quote:?}");
    }
}

#[test]
fn a_key_is_the_same_in_either_form() {
    let mut all: Vec<String> = KEYS
        .iter()
        .map(|name| {
            let [pem, tss] = ["pem", "tss"].map(|form| {
                let key = key(&format!("{name}.{form}"));
                key.fingerprint().unwrap()
            });
            assert_eq!(pem, tss, "{name}");
            assert_eq!(pem.len(), 64);
            pem
        })
        .collect();
    all.sort();
    all.dedup();
    assert_eq!(all.len(), KEYS.len());
}

#[test]
fn values_are_the_same_in_each_form() {
    let printed = values("pcrread.txt");
    assert_eq!(printed.iter().count(), 2);
    for name in KEYS {
        let quote = Quote::parse(&read(&format!("{name}.plain.msg"))).unwrap();
        let raw = read(&format!("{name}.values"));
        assert_eq!(
            PcrFile::parse(&raw, Some(&quote.selection)).as_ref(),
            Ok(&printed)
        );
        assert_eq!(values(&format!("{name}.pcrs")), printed);
        assert_eq!(values(&format!("{name}.txt")), printed);
        assert!(matches!(
            PcrFile::parse(&raw, None),
            Err(PcrFileError::Form { .. })
        ));
    }
}

#[test]
fn each_byte_of_the_message_is_signed() {
    for name in KEYS {
        let message = read(&format!("{name}.msg"));
        for at in 0..message.len() {
            let mut forged = message.clone();
            forged[at] ^= 1;
            let result = quote::check(
                &forged,
                &read(&format!("{name}.sig")),
                &key(&format!("{name}.tss")),
                &NONCE,
                &values("pcrread.txt"),
            );
            assert!(result.is_err(), "{name}: byte {at}");
        }
    }
}

#[test]
fn each_byte_of_the_signature_counts() {
    for name in KEYS {
        let message = read(&format!("{name}.msg"));
        let signature = read(&format!("{name}.sig"));
        for at in 0..signature.len() {
            let mut forged = signature.clone();
            forged[at] ^= 1;
            let result = quote::check(
                &message,
                &forged,
                &key(&format!("{name}.tss")),
                &NONCE,
                &values("pcrread.txt"),
            );
            assert!(result.is_err(), "{name}: byte {at}");
        }
    }
}

#[test]
fn others_keys() {
    for name in KEYS {
        for other in KEYS.iter().filter(|other| **other != name) {
            let result = quote::check(
                &read(&format!("{name}.msg")),
                &read(&format!("{name}.sig")),
                &key(&format!("{other}.pem")),
                &NONCE,
                &values("pcrread.txt"),
            );
            assert_eq!(result, Err(QuoteError::Forged), "{name} by {other}");
        }
    }
}

#[test]
fn another_nonce() {
    let result = quote::check(
        &read("p256.msg"),
        &read("p256.sig"),
        &key("p256.tss"),
        &[0x8b, 0xad, 0xf0, 0x0e],
        &values("pcrread.txt"),
    );
    assert_eq!(
        result,
        Err(QuoteError::Nonce {
            expected: "8badf00e".to_owned(),
            found: "8badf00d".to_owned()
        })
    );
}

#[test]
fn other_values() {
    let text = String::from_utf8(read("pcrread.txt")).unwrap();
    let check = |text: &str| {
        quote::check(
            &read("p256.msg"),
            &read("p256.sig"),
            &key("p256.tss"),
            &NONCE,
            &PcrFile::parse(text.as_bytes(), None).unwrap(),
        )
    };
    assert!(check(&text).is_ok());
    assert!(matches!(
        check(&text.replace("0x563A", "0x563B")),
        Err(QuoteError::Digest { .. })
    ));
    assert_eq!(
        check(&text.replace("    0 :", "    1 :")),
        Err(QuoteError::Missing(Algorithm::Sha256, pcr(0)))
    );
    let more = format!("{text}    11: 0x{}\n", "00".repeat(32));
    assert_eq!(
        check(&more),
        Err(QuoteError::Uncovered(Algorithm::Sha256, pcr(11)))
    );
}

#[test]
fn what_is_no_quote() {
    let message = read("p256.msg");
    let mut magic = message.clone();
    magic[0] = 0;
    assert!(matches!(Quote::parse(&magic), Err(QuoteError::Attest(_))));
    let mut longer = message.clone();
    longer.push(0);
    assert_eq!(
        Quote::parse(&longer),
        Err(QuoteError::Trailing(1, "message"))
    );
    for size in 0..message.len() {
        assert!(Quote::parse(&message[..size]).is_err(), "{size}");
    }
    // A certified NV index of an attacker's choice may have the values where a quote has them.
    let mut other = message.clone();
    other[4..6].copy_from_slice(&0x8014_u16.to_be_bytes());
    assert!(Quote::parse(&other).is_err());
    // A bank of SHA3-256.
    let mut sha3 = message;
    let bank = sha3.len() - 34 - 6;
    assert_eq!(sha3[bank..bank + 2], [0, 0x0b]);
    sha3[bank + 1] = 0x27;
    assert_eq!(Quote::parse(&sha3), Err(QuoteError::Bank(0x27)));
}

#[test]
fn keys_for_other_purposes() {
    assert!(matches!(
        PublicKey::parse(&read("unrestricted.tss")),
        Err(QuoteError::Attributes(_))
    ));
    let mut attributes = read("p256.tss");
    // TPM2B size, type, name algorithm; the byte of fixedTPM.
    attributes[2 + 2 + 2 + 3] ^= 2;
    assert!(matches!(
        PublicKey::parse(&attributes),
        Err(QuoteError::Attributes(_))
    ));
    assert!(matches!(
        PublicKey::parse(b"no key"),
        Err(QuoteError::Key(_))
    ));
}

#[test]
fn the_clock() {
    let message = read("p256.msg");
    let at = message
        .windows(NONCE.len())
        .position(|bytes| bytes == NONCE)
        .unwrap()
        + NONCE.len()
        + AFTER_NONCE;
    let before = Quote::parse(&message).unwrap().clock;
    let mut reset = message.clone();
    reset[at + 3] ^= 1;
    let mut restart = message.clone();
    restart[at + 7] ^= 1;
    let mut safe = message;
    safe[at + 8] ^= 1;
    let [reset, restart, safe] = [reset, restart, safe].map(|m| Quote::parse(&m).unwrap().clock);
    assert_eq!(reset.reset_count, before.reset_count ^ 1);
    assert_eq!(restart.restart_count, before.restart_count ^ 1);
    assert_ne!(safe.safe, before.safe);
    assert_eq!(safe.reset_count, before.reset_count);
}
