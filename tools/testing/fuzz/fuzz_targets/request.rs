// SPDX-License-Identifier: GPL-2.0

//! The grammar of `trim`: each text means what a second reading of its description says, or earns
//! the same error.

#![no_main]

use ima_trim_fuzz::{banks, dirty, errno, given, known, read, text};
use ima_trim_pure::request::{parse, Reclaim};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let text = &text(input);
    let banks = banks();
    let expected = read(
        text,
        &["violations"],
        &["dry-run", "keep", "compact", "flush"],
    );

    match (parse(text, &banks, known, dirty(&banks)), expected) {
        (Ok(request), Ok(expected)) => {
            assert_eq!(
                request.instance.map(|instance| instance.to_string()),
                expected.instance
            );
            assert_eq!(given(&banks, &request.target), expected.values);
            let violations = expected.counts.get("violations").copied();
            assert_eq!(request.violations, violations.unwrap_or(0));
            assert_eq!(
                request.dry_run,
                expected.words.iter().any(|word| word == "dry-run")
            );
            let mode = expected.words.iter().find(|word| *word != "dry-run");
            assert_eq!(
                request.reclaim.map(Reclaim::as_str),
                mode.map(String::as_str)
            );
        }
        (Err(error), Err(expected)) => {
            assert_eq!(errno(error.errno()), expected, "{error}");
            assert!(error.to_string().is_ascii());
        }
        (found, expected) => panic!("{found:?} in place of {expected:?}"),
    }
});
