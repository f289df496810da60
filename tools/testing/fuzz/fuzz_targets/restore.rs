// SPDX-License-Identifier: GPL-2.0

//! The grammar of `starting_pcrs`: each text means what a second reading of its description says, or
//! earns the same error; and what was understood, written as the file has it, means the same again.

#![no_main]

use ima_trim_fuzz::{banks, dirty, errno, given, known, read, text, Errno};
use ima_trim_pure::report::starting_pcrs;
use ima_trim_pure::request::parse_starting_pcrs;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let text = &text(input);
    let banks = banks();
    let keys = ["records", "violations", "trims"];
    let expected = read(text, &keys, &[]).and_then(|meaning| {
        if keys.iter().all(|key| meaning.counts.contains_key(*key)) {
            Ok(meaning)
        } else {
            Err(Errno::EINVAL)
        }
    });

    match (
        parse_starting_pcrs(text, &banks, known, dirty(&banks)),
        expected,
    ) {
        (Ok(statement), Ok(expected)) => {
            let values = given(&banks, &statement.values);
            assert_eq!(
                statement.instance.map(|instance| instance.to_string()),
                expected.instance
            );
            assert_eq!(values, expected.values);
            let totals = &statement.totals;
            let counts = [totals.records, totals.violations, totals.trims];
            assert_eq!(counts, keys.map(|key| expected.counts[key]));

            let mut again = String::new();
            let pcrs = statement.values.pcrs();
            starting_pcrs(&mut again, &banks, statement.values.values(), pcrs, totals)
                .expect("a string takes all");
            let again = parse_starting_pcrs(again.as_bytes(), &banks, known, dirty(&banks))
                .expect("what the file has can be written to it");
            assert_eq!(again.totals, statement.totals);
            let again = given(&banks, &again.values);
            assert!(values
                .iter()
                .all(|(key, value)| again.get(key) == Some(value)));
        }
        (Err(error), Err(expected)) => {
            assert_eq!(errno(error.errno()), expected, "{error}");
            assert!(error.to_string().is_ascii());
        }
        (found, expected) => panic!("{found:?} in place of {expected:?}"),
    }
});
