// SPDX-License-Identifier: GPL-2.0

//! How signed requests are told from others, and what becomes of the kernel's answers.

use ima_trim_pure::bank::{Bank, Banks};
use ima_trim_pure::errno::Errno;
use ima_trim_pure::request::{parse, parse_starting_pcrs, MAX_REQUEST};
use ima_trim_pure::signature::{is_message, Fingerprint, SignatureError, MAX_MESSAGE};
use ima_trim_pure::values::PcrValues;

#[test]
fn a_message_is_told_by_its_first_byte() {
    for first in 0..=u8::MAX {
        for rest in [&b""[..], b"\x82\x01\x00", b"a256:10=00"] {
            let mut written = vec![first];
            written.extend_from_slice(rest);
            assert_eq!(is_message(&written), first == 0x30, "{written:02x?}");
        }
    }
    assert!(!is_message(b""));
}

/// A text that begins like a message is no request in either grammar, whatever follows: so nothing
/// is lost by taking it for a message.
#[test]
fn no_request_begins_like_a_message() {
    let mut banks = Banks::new();
    banks
        .push(Bank {
            name: "sha256",
            size: 32,
            position: 0,
        })
        .unwrap();
    let values = || {
        let cells = vec![[0; 64]; PcrValues::<Vec<[u8; 64]>>::cells(&banks)];
        PcrValues::new(cells, &banks).unwrap()
    };
    let known = |name: &[u8]| matches!(name, b"sha256" | b"sha1" | b"sm3");
    let token = format!("sha256:10={}", "5a".repeat(32));
    let totals = "records=1 violations=0 trims=1";

    assert!(parse(token.as_bytes(), &banks, known, values()).is_ok());
    let statement = format!("{token} {totals}");
    assert!(parse_starting_pcrs(statement.as_bytes(), &banks, known, values()).is_ok());
    for begin in ["0", "00", "0:", "0=", "0x", "0sha256:10="] {
        for text in [
            format!("{begin}{token}"),
            format!("{begin} {token}"),
            format!("{begin} {statement}"),
        ] {
            assert!(is_message(text.as_bytes()));
            let error = parse(text.as_bytes(), &banks, known, values()).unwrap_err();
            assert_eq!(error.errno(), Errno::Inval, "{text}");
            let error = parse_starting_pcrs(text.as_bytes(), &banks, known, values()).unwrap_err();
            assert_eq!(error.errno(), Errno::Inval, "{text}");
        }
    }
}

#[test]
fn a_message_has_room_for_the_longest_request() {
    // A certificate of RSA 4096 and a signature with it take less than 4 KiB.
    const { assert!(MAX_MESSAGE >= MAX_REQUEST + 4 * 4096) };
}

#[test]
fn of_the_errors_of_the_kernel_few_pass_as_they_are() {
    for code in 1..=4095 {
        let error = SignatureError::of_kernel(code);
        let expected = match code {
            // ENOENT is an algorithm that the crypto API does not find.
            2 | 65 => Errno::NoPkg,
            12 => Errno::NoMem,
            126 => Errno::NoKey,
            129 => Errno::KeyRejected,
            _ => Errno::Inval,
        };
        assert_eq!(error.errno(), expected, "{code}");
        assert!(!error.to_string().is_empty());
        if code == 61 {
            assert_eq!(error, SignatureError::NoContent);
        } else if expected == Errno::Inval {
            assert!(error.to_string().contains(&format!("error {code})")));
        }
    }
}

#[test]
fn each_error_says_what_to_do() {
    for (error, errno, text) in [
        (
            SignatureError::TooLong { len: 16385 },
            Errno::TooBig,
            "16385 bytes, more than 16384",
        ),
        (SignatureError::NoMemory, Errno::NoMem, "no memory"),
        (SignatureError::NoKey, Errno::NoKey, "keyring .ima_trim"),
        (SignatureError::Unsupported, Errno::NoPkg, "RSA or ECDSA"),
        (
            SignatureError::Rejected,
            Errno::KeyRejected,
            "signature is wrong",
        ),
        (SignatureError::NoContent, Errno::Inval, "encloses nothing"),
        (
            SignatureError::Malformed { code: 74 },
            Errno::Inval,
            "the kernel gives error 74",
        ),
    ] {
        assert_eq!(error.errno(), errno);
        assert!(error.to_string().contains(text), "{error}");
    }
}

#[test]
fn a_fingerprint_is_printed_as_openssl_and_sha256sum_have_it() {
    let printed = Fingerprint(core::array::from_fn(|i| (i as u8).wrapping_mul(17))).to_string();

    assert_eq!(
        printed,
        "sha256:00112233445566778899aabbccddeeff102132435465768798a9bacbdcedfe0f"
    );
}
