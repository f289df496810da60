// SPDX-License-Identifier: GPL-2.0

//! The grammars of the requests: what is accepted, and the error that everything else earns.

use ima_trim_pure::bank::{Bank, Banks, Pcr, Value};
use ima_trim_pure::errno::Errno;
use ima_trim_pure::instance::Instance;
use ima_trim_pure::report::Totals;
use ima_trim_pure::request::{
    parse, parse_starting_pcrs, Grammar, Reclaim, Request, RequestError, Statement, Unread,
    MAX_REQUEST,
};
use ima_trim_pure::values::PcrValues;

type Values = PcrValues<Vec<Value>>;

/// A TPM with two banks. The kernel knows more algorithms than these.
fn banks() -> Banks {
    let mut banks = Banks::new();
    for (position, (name, size)) in [("sha1", 20), ("sha256", 32)].into_iter().enumerate() {
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

fn known(name: &[u8]) -> bool {
    [&b"sha1"[..], b"sha256", b"sha512", b"sm3"].contains(&name)
}

fn read(text: &[u8]) -> Result<Request<Vec<Value>>, RequestError<'_>> {
    let banks = banks();
    // What is in the memory must not matter.
    let values = PcrValues::new(vec![[0x5a; 64]; Values::cells(&banks)], &banks).unwrap();
    parse(text, &banks, known, values)
}

/// Reads what is written to `starting_pcrs`.
fn restore(text: &[u8]) -> Result<Statement<Vec<Value>>, RequestError<'_>> {
    let banks = banks();
    let values = PcrValues::new(vec![[0x5a; 64]; Values::cells(&banks)], &banks).unwrap();
    parse_starting_pcrs(text, &banks, known, values)
}

/// Replaces `{n}` by n hexadecimal digits.
fn expand(text: &str) -> String {
    let mut parts = text.split('{');
    let mut expanded = parts.next().unwrap().to_string();
    for part in parts {
        let (digits, rest) = part.split_once('}').unwrap();
        expanded.extend(
            "0123456789abcdef"
                .chars()
                .cycle()
                .take(digits.parse().unwrap()),
        );
        expanded.push_str(rest);
    }
    expanded
}

/// The value that `{40}` or `{64}` gives.
fn value(size: usize) -> Value {
    let mut value = [0; 64];
    for (i, byte) in value.iter_mut().take(size).enumerate() {
        *byte = [0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef][i % 8];
    }
    value
}

/// The kind of an error and the token it blames.
fn blame<'t>(error: &RequestError<'t>) -> (&'static str, &'t [u8]) {
    match *error {
        RequestError::TooLong { .. } => ("too long", b""),
        RequestError::Empty { .. } => ("empty", b""),
        RequestError::Missing { key } => ("missing", key.as_bytes()),
        RequestError::Unknown { token, .. } => ("unknown", token),
        RequestError::Duplicate { token } => ("duplicate", token),
        RequestError::SecondMode { token } => ("second mode", token),
        RequestError::Count { token } => ("count", token),
        RequestError::Instance { token } => ("instance", token),
        RequestError::Algorithm { token } => ("algorithm", token),
        RequestError::Bank { token } => ("bank", token),
        RequestError::Pcr { token } => ("pcr", token),
        RequestError::Hex { token } => ("hex", token),
        RequestError::Length { token, .. } => ("length", token),
    }
}

#[test]
fn accepted() {
    const NONE: Option<Reclaim> = None;
    // Text; the PCR values it gives as (bank, PCR); violations, dry run, mode.
    type Case = (
        &'static str,
        &'static [(usize, usize)],
        u64,
        bool,
        Option<Reclaim>,
    );
    let cases: &[Case] = &[
        ("sha256:10={64}", &[(1, 10)], 0, false, NONE),
        ("sha256:10={64}\n", &[(1, 10)], 0, false, NONE),
        ("sha1:10={40}", &[(0, 10)], 0, false, NONE),
        ("sha1:0={40}", &[(0, 0)], 0, false, NONE),
        ("sha1:9={40}", &[(0, 9)], 0, false, NONE),
        ("sha1:23={40}", &[(0, 23)], 0, false, NONE),
        (
            "sha256:10={64} sha1:10={40}",
            &[(0, 10), (1, 10)],
            0,
            false,
            NONE,
        ),
        (
            "sha1:11={40} sha1:1={40} sha256:1={64}",
            &[(0, 1), (0, 11), (1, 1)],
            0,
            false,
            NONE,
        ),
        // Any of the three separators, any number of them, anywhere.
        (
            "\n\n \t sha1:10={40}\t\tdry-run \n\n",
            &[(0, 10)],
            0,
            true,
            NONE,
        ),
        ("violations=3\tsha1:10={40}\n", &[(0, 10)], 3, false, NONE),
        ("sha1:10={40} violations=0", &[(0, 10)], 0, false, NONE),
        ("sha1:10={40} violations=10", &[(0, 10)], 10, false, NONE),
        (
            "sha1:10={40} violations=18446744073709551615",
            &[(0, 10)],
            u64::MAX,
            false,
            NONE,
        ),
        (
            "keep sha1:10={40}",
            &[(0, 10)],
            0,
            false,
            Some(Reclaim::Keep),
        ),
        (
            "sha1:10={40} compact",
            &[(0, 10)],
            0,
            false,
            Some(Reclaim::Compact),
        ),
        (
            "flush\nviolations=1\ndry-run\nsha1:10={40}\n",
            &[(0, 10)],
            1,
            true,
            Some(Reclaim::Flush),
        ),
    ];
    for &(text, given, violations, dry_run, reclaim) in cases {
        let text = expand(text);
        let request = read(text.as_bytes()).unwrap_or_else(|error| panic!("{text:?}: {error}"));
        let values: Vec<_> = request
            .target
            .iter()
            .map(|(bank, pcr, value)| (bank, pcr.index(), *value))
            .collect();
        let expected: Vec<_> = given
            .iter()
            .map(|&(bank, pcr)| (bank, pcr, value([20, 32][bank])))
            .collect();
        assert_eq!(values, expected, "{text:?}");
        assert_eq!(request.violations, violations, "{text:?}");
        assert_eq!(request.dry_run, dry_run, "{text:?}");
        assert_eq!(request.reclaim, reclaim, "{text:?}");
    }
}

/// Text, error, kind of error, the token that is blamed or the key that is missing.
type Refusal = (&'static str, Errno, &'static str, &'static str);

/// Requests to trim that are refused.
fn refusals() -> &'static [Refusal] {
    use Errno::{Inval, OpNotSupp};
    &[
        // Nothing to trim to.
        ("", Inval, "empty", ""),
        ("\n", Inval, "empty", ""),
        (" \t\n ", Inval, "empty", ""),
        ("dry-run", Inval, "empty", ""),
        ("violations=1 keep dry-run", Inval, "empty", ""),
        // Instances.
        ("sha1:10={40} instance=", Inval, "instance", "instance="),
        ("sha1:10={40} instance=00", Inval, "instance", "instance=00"),
        (
            "sha1:10={40} instance=0123456789abcdef0123456789abcdef0",
            Inval,
            "instance",
            "instance=0123456789abcdef0123456789abcdef0",
        ),
        (
            "sha1:10={40} instance=0123456789abcdef0123456789abcdeg",
            Inval,
            "instance",
            "instance=0123456789abcdef0123456789abcdeg",
        ),
        (
            "instance=0123456789abcdef0123456789abcdef instance=0123456789abcdef0123456789abcdef",
            Inval,
            "duplicate",
            "instance=0123456789abcdef0123456789abcdef",
        ),
        ("sha1:10={40} instance", Inval, "unknown", "instance"),
        ("sha1:10={40} Instance=00", Inval, "unknown", "Instance=00"),
        // Tokens of no known form.
        ("1000", Inval, "unknown", "1000"),
        ("sha1:10={40} D", Inval, "unknown", "D"),
        ("sha1:10={40} dryrun", Inval, "unknown", "dryrun"),
        ("sha1:10={40} dry-run=1", Inval, "unknown", "dry-run=1"),
        ("sha1:10={40} DRY-RUN", Inval, "unknown", "DRY-RUN"),
        ("sha1:10={40} Keep", Inval, "unknown", "Keep"),
        ("sha1:10={40} keep,", Inval, "unknown", "keep,"),
        ("sha1:10={40} fl", Inval, "unknown", "fl"),
        ("sha1:10={40} violations", Inval, "unknown", "violations"),
        (
            "sha1:10={40} Violations=1",
            Inval,
            "unknown",
            "Violations=1",
        ),
        ("sha1:10={40} records=1", Inval, "unknown", "records=1"),
        ("sha1={40}", Inval, "unknown", "sha1={40}"),
        ("sha1:10", Inval, "unknown", "sha1:10"),
        ("sha1:10:{40}", Inval, "unknown", "sha1:10:{40}"),
        (":", Inval, "unknown", ":"),
        ("=", Inval, "unknown", "="),
        ("sha1 :10={40}", Inval, "unknown", "sha1"),
        // Other white space, and NUL, are parts of a token.
        ("sha1:10={40}\r\n", Inval, "hex", "sha1:10={40}\r"),
        ("sha1:10={40}\0", Inval, "hex", "sha1:10={40}\0"),
        ("\0", Inval, "unknown", "\0"),
        ("\0sha1:10={40}", Inval, "algorithm", "\0sha1:10={40}"),
        (
            "sha1:10={40}\x0bdry-run",
            Inval,
            "hex",
            "sha1:10={40}\x0bdry-run",
        ),
        ("sha1:10={40}\x0c", Inval, "hex", "sha1:10={40}\x0c"),
        ("sha1:10={40},dry-run", Inval, "hex", "sha1:10={40},dry-run"),
        (
            "\u{a0}sha1:10={40}",
            Inval,
            "algorithm",
            "\u{a0}sha1:10={40}",
        ),
        // Algorithms and banks.
        ("md6:10={40}", Inval, "algorithm", "md6:10={40}"),
        (":10={40}", Inval, "algorithm", ":10={40}"),
        ("SHA1:10={40}", Inval, "algorithm", "SHA1:10={40}"),
        ("sha:10={40}", Inval, "algorithm", "sha:10={40}"),
        ("sha1x:10={40}", Inval, "algorithm", "sha1x:10={40}"),
        ("sha-256:10={64}", Inval, "algorithm", "sha-256:10={64}"),
        ("10:sha1={40}", Inval, "algorithm", "10:sha1={40}"),
        ("sm3:10={64}", OpNotSupp, "bank", "sm3:10={64}"),
        ("sha512:10={128}", OpNotSupp, "bank", "sha512:10={128}"),
        ("sha512:10={2}", OpNotSupp, "bank", "sha512:10={2}"),
        // What is malformed for any bank is not blamed on the TPM.
        ("sha512:24={128}", Inval, "pcr", "sha512:24={128}"),
        ("sha512:10=", Inval, "hex", "sha512:10="),
        ("sha512:10={127}g", Inval, "hex", "sha512:10={127}g"),
        // PCRs.
        ("sha1:24={40}", Inval, "pcr", "sha1:24={40}"),
        ("sha1:63={40}", Inval, "pcr", "sha1:63={40}"),
        ("sha1:100={40}", Inval, "pcr", "sha1:100={40}"),
        ("sha1:256={40}", Inval, "pcr", "sha1:256={40}"),
        ("sha1:266={40}", Inval, "pcr", "sha1:266={40}"),
        ("sha1:4294967306={40}", Inval, "pcr", "sha1:4294967306={40}"),
        (
            "sha1:18446744073709551626={40}",
            Inval,
            "pcr",
            "sha1:18446744073709551626={40}",
        ),
        ("sha1:={40}", Inval, "pcr", "sha1:={40}"),
        ("sha1:-1={40}", Inval, "pcr", "sha1:-1={40}"),
        ("sha1:-0={40}", Inval, "pcr", "sha1:-0={40}"),
        ("sha1:+10={40}", Inval, "pcr", "sha1:+10={40}"),
        ("sha1:010={40}", Inval, "pcr", "sha1:010={40}"),
        ("sha1:00={40}", Inval, "pcr", "sha1:00={40}"),
        ("sha1:01={40}", Inval, "pcr", "sha1:01={40}"),
        ("sha1:0xa={40}", Inval, "pcr", "sha1:0xa={40}"),
        ("sha1:a={40}", Inval, "pcr", "sha1:a={40}"),
        ("sha1:10.0={40}", Inval, "pcr", "sha1:10.0={40}"),
        ("sha1:1٠={40}", Inval, "pcr", "sha1:1٠={40}"),
        // Values.
        ("sha1:10=", Inval, "hex", "sha1:10="),
        ("sha1:10={39}g", Inval, "hex", "sha1:10={39}g"),
        ("sha1:10=0x{38}", Inval, "hex", "sha1:10=0x{38}"),
        ("sha1:10=+{39}", Inval, "hex", "sha1:10=+{39}"),
        ("sha1:10={20}:{19}", Inval, "hex", "sha1:10={20}:{19}"),
        ("sha1:10=={39}", Inval, "hex", "sha1:10=={39}"),
        ("sha1:10={39}", Inval, "length", "sha1:10={39}"),
        ("sha1:10={41}", Inval, "length", "sha1:10={41}"),
        ("sha1:10={38}", Inval, "length", "sha1:10={38}"),
        ("sha1:10={42}", Inval, "length", "sha1:10={42}"),
        ("sha1:10={1}", Inval, "length", "sha1:10={1}"),
        ("sha1:10={64}", Inval, "length", "sha1:10={64}"),
        ("sha256:10={40}", Inval, "length", "sha256:10={40}"),
        ("sha256:10={128}", Inval, "length", "sha256:10={128}"),
        ("sha256:10={16000}", Inval, "length", "sha256:10={16000}"),
        // The count of violations.
        ("sha1:10={40} violations=", Inval, "count", "violations="),
        (
            "sha1:10={40} violations=+1",
            Inval,
            "count",
            "violations=+1",
        ),
        (
            "sha1:10={40} violations=-1",
            Inval,
            "count",
            "violations=-1",
        ),
        (
            "sha1:10={40} violations=00",
            Inval,
            "count",
            "violations=00",
        ),
        (
            "sha1:10={40} violations=01",
            Inval,
            "count",
            "violations=01",
        ),
        (
            "sha1:10={40} violations=0x1",
            Inval,
            "count",
            "violations=0x1",
        ),
        (
            "sha1:10={40} violations=1a",
            Inval,
            "count",
            "violations=1a",
        ),
        (
            "sha1:10={40} violations==1",
            Inval,
            "count",
            "violations==1",
        ),
        (
            "sha1:10={40} violations=1,",
            Inval,
            "count",
            "violations=1,",
        ),
        ("sha1:10={40} violations= 1", Inval, "count", "violations="),
        (
            "sha1:10={40} violations=18446744073709551616",
            Inval,
            "count",
            "violations=18446744073709551616",
        ),
        (
            "sha1:10={40} violations=99999999999999999999999999",
            Inval,
            "count",
            "violations=99999999999999999999999999",
        ),
        // Anything twice.
        (
            "sha1:10={40} sha1:10={40}",
            Inval,
            "duplicate",
            "sha1:10={40}",
        ),
        (
            "sha1:10={40} dry-run sha1:10=ffffffffffffffffffffffffffffffffffffffff",
            Inval,
            "duplicate",
            "sha1:10=ffffffffffffffffffffffffffffffffffffffff",
        ),
        (
            "dry-run sha1:10={40} dry-run",
            Inval,
            "duplicate",
            "dry-run",
        ),
        (
            "violations=1 sha1:10={40} violations=1",
            Inval,
            "duplicate",
            "violations=1",
        ),
        (
            "violations=0 sha1:10={40} violations=2",
            Inval,
            "duplicate",
            "violations=2",
        ),
        ("keep keep sha1:10={40}", Inval, "duplicate", "keep"),
        ("flush sha1:10={40} flush", Inval, "duplicate", "flush"),
        ("keep sha1:10={40} flush", Inval, "second mode", "flush"),
        ("compact keep sha1:10={40}", Inval, "second mode", "keep"),
        // The first thing wrong counts.
        ("sha1:24={40} junk", Inval, "pcr", "sha1:24={40}"),
        ("junk sha1:24={40}", Inval, "unknown", "junk"),
        ("sm3:10={64} junk", OpNotSupp, "bank", "sm3:10={64}"),
        ("dry-run dry-run", Inval, "duplicate", "dry-run"),
        ("violations=x", Inval, "count", "violations=x"),
    ]
}

/// Checks that texts are refused as they should be.
fn check_refused<'c, R>(
    cases: impl IntoIterator<Item = &'c Refusal>,
    read: fn(&[u8]) -> Result<R, RequestError<'_>>,
    expected: Grammar,
) {
    for &(text, errno, kind, token) in cases {
        let (text, token) = (expand(text), expand(token));
        let error = match read(text.as_bytes()) {
            Ok(_) => panic!("{text:?} was accepted"),
            Err(error) => error,
        };
        assert_eq!(blame(&error), (kind, token.as_bytes()), "{text:?}");
        assert_eq!(error.errno(), errno, "{text:?}");
        if let RequestError::Empty { grammar } | RequestError::Unknown { grammar, .. } = error {
            assert_eq!(grammar, expected, "{text:?}");
        }
        let message = error.to_string();
        assert!(
            message.bytes().all(|byte| (b' '..=b'~').contains(&byte)),
            "{message:?}"
        );
    }
}

#[test]
fn refused() {
    check_refused(refusals(), read, Grammar::Trim);
}

#[test]
fn starting_pcrs_accepted() {
    // Text; the PCR values it gives as (bank, PCR); records, violations, trims.
    type Case = (&'static str, &'static [(usize, usize)], [u64; 3]);
    const MAX: u64 = u64::MAX;
    let cases: &[Case] = &[
        // As printed.
        (
            "sha1:10={40}\nsha256:10={64}\nrecords=300\nviolations=20\ntrims=1\n",
            &[(0, 10), (1, 10)],
            [300, 20, 1],
        ),
        (
            "sha1:9={40}\nsha1:10={40}\nsha1:23={40}\nsha256:0={64}\nrecords=0\nviolations=0\n\
             trims=0\n",
            &[(0, 9), (0, 10), (0, 23), (1, 0)],
            [0, 0, 0],
        ),
        // In any order.
        (
            "trims=3\nviolations=2\nrecords=1\nsha256:10={64}\nsha1:10={40}\n",
            &[(0, 10), (1, 10)],
            [1, 2, 3],
        ),
        (
            "violations=2 sha1:11={40} records=1 sha256:10={64} trims=3 sha1:1={40}",
            &[(0, 1), (0, 11), (1, 10)],
            [1, 2, 3],
        ),
        // Any of the three separators, any number of them, anywhere.
        (
            "\n\t \nrecords=1\t\tsha1:10={40} \n violations=2\ttrims=3 \t\n\n",
            &[(0, 10)],
            [1, 2, 3],
        ),
        // The module judges the counts, the grammar does not.
        (
            "sha1:10={40} records=0 violations=5 trims=10",
            &[(0, 10)],
            [0, 5, 10],
        ),
        (
            "sha1:10={40} records=18446744073709551615 violations=18446744073709551615 \
             trims=18446744073709551615",
            &[(0, 10)],
            [MAX, MAX, MAX],
        ),
    ];
    for &(text, given, [records, violations, trims]) in cases {
        let text = expand(text);
        let statement = restore(text.as_bytes()).unwrap_or_else(|e| panic!("{text:?}: {e}"));
        let values: Vec<_> = statement
            .values
            .iter()
            .map(|(bank, pcr, value)| (bank, pcr.index(), *value))
            .collect();
        let expected: Vec<_> = given
            .iter()
            .map(|&(bank, pcr)| (bank, pcr, value([20, 32][bank])))
            .collect();
        assert_eq!(values, expected, "{text:?}");
        let totals = Totals {
            records,
            violations,
            trims,
        };
        assert_eq!(statement.totals, totals, "{text:?}");
    }
}

#[test]
fn starting_pcrs_refused() {
    use Errno::{Inval, OpNotSupp};
    let cases: &[Refusal] = &[
        // No PCR value.
        ("", Inval, "empty", ""),
        ("\n", Inval, "empty", ""),
        (" \t\n ", Inval, "empty", ""),
        ("records=1", Inval, "empty", ""),
        ("records=1\nviolations=0\ntrims=1\n", Inval, "empty", ""),
        // A count that is not given. The first in the order of the file is named.
        ("sha1:10={40}", Inval, "missing", "records"),
        (
            "sha1:10={40} violations=0 trims=1",
            Inval,
            "missing",
            "records",
        ),
        (
            "trims=1 records=1 sha1:10={40}",
            Inval,
            "missing",
            "violations",
        ),
        (
            "sha1:10={40} records=1 violations=0",
            Inval,
            "missing",
            "trims",
        ),
        ("sha1:10={40} trims=1", Inval, "missing", "records"),
        (
            "sha1:10={40} violations=0 violation=0 trims=1",
            Inval,
            "unknown",
            "violation=0",
        ),
        // What the file says while the values are not known.
        ("unknown records=5\n", Inval, "unknown", "unknown"),
        ("unknown records=5", Inval, "unknown", "unknown"),
        ("records=5 unknown", Inval, "unknown", "unknown"),
        // What only a request to trim may have, and what no text may.
        ("sha1:10={40} dry-run", Inval, "unknown", "dry-run"),
        ("sha1:10={40} keep", Inval, "unknown", "keep"),
        ("compact sha1:10={40}", Inval, "unknown", "compact"),
        ("sha1:10={40} flush", Inval, "unknown", "flush"),
        ("1000", Inval, "unknown", "1000"),
        ("sha1:10={40} records", Inval, "unknown", "records"),
        ("sha1:10={40} Records=1", Inval, "unknown", "Records=1"),
        ("sha1:10={40} record=1", Inval, "unknown", "record=1"),
        ("sha1:10={40} recordss=1", Inval, "unknown", "recordss=1"),
        ("sha1:10={40} records:1", Inval, "unknown", "records:1"),
        ("sha1:10={40} =1", Inval, "unknown", "=1"),
        ("sha1:10={40} TRIMS=1", Inval, "unknown", "TRIMS=1"),
        ("sha1:10={40} base=verified", Inval, "unknown", "base=verified"),
        ("sha1:10=ok", Inval, "hex", "sha1:10=ok"),
        (
            "sha1:10={40} records=1 violations=0 trims=1 junk",
            Inval,
            "unknown",
            "junk",
        ),
        (
            "sha1:10={40} records=1 violations=0 trims=1\0",
            Inval,
            "count",
            "trims=1\0",
        ),
        (
            "sha1:10={40} records=1 violations=0 trims=1 \0",
            Inval,
            "unknown",
            "\0",
        ),
        (
            "sha1:10={40}\r\nrecords=1\r\n",
            Inval,
            "hex",
            "sha1:10={40}\r",
        ),
        (
            "records=1\r\nsha1:10={40}\r\n",
            Inval,
            "count",
            "records=1\r",
        ),
        (
            "sha1:10={40},records=1",
            Inval,
            "hex",
            "sha1:10={40},records=1",
        ),
        // Banks, with all else there.
        (
            "sm3:10={64} records=0 violations=0 trims=0",
            OpNotSupp,
            "bank",
            "sm3:10={64}",
        ),
        (
            "records=0 violations=0 trims=0 sha1:10={40} sha512:10={128}",
            OpNotSupp,
            "bank",
            "sha512:10={128}",
        ),
        (
            "md6:10={40} records=0 violations=0 trims=0",
            Inval,
            "algorithm",
            "md6:10={40}",
        ),
        // A PCR twice.
        (
            "sha1:10={40} records=1 sha1:10={40} violations=0 trims=1",
            Inval,
            "duplicate",
            "sha1:10={40}",
        ),
        (
            "sha256:7={64}\nsha256:7=ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
            Inval,
            "duplicate",
            "sha256:7=ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
        ),
        // The first thing wrong counts, and what is wrong before what is not there.
        ("records=x junk", Inval, "count", "records=x"),
        ("junk records=x", Inval, "unknown", "junk"),
        ("trims=1 trims=1", Inval, "duplicate", "trims=1"),
    ];
    check_refused(cases, restore, Grammar::StartingPcrs);
}

#[test]
fn each_count_of_starting_pcrs_is_a_plain_number_given_once() {
    let keys = ["records", "violations", "trims"];
    for (place, key) in keys.into_iter().enumerate() {
        // The other two counts, and the one in question as it is written.
        let text = |token: &str| {
            let mut text = expand("sha1:10={40}\n");
            for other in keys.iter().filter(|&&other| other != key) {
                text.push_str(&format!("{other}=7\n"));
            }
            text + token + "\n"
        };
        for number in [0, 1, 9, 10, 1 << 32, u64::MAX] {
            let text = text(&format!("{key}={number}"));
            let totals = restore(text.as_bytes()).unwrap().totals;
            let mut expected = [7; 3];
            expected[place] = number;
            assert_eq!(
                [totals.records, totals.violations, totals.trims],
                expected,
                "{text:?}"
            );
        }
        for number in [
            "",
            "+1",
            "-1",
            "-0",
            "00",
            "01",
            "0x1",
            "1a",
            "=1",
            "1,",
            "1.0",
            "1e3",
            "\"1\"",
            "1\0",
            "1\r",
            "1\x0b",
            "\u{664}",
            "18446744073709551616",
            "18446744073709551617",
            "36893488147419103233",
            "99999999999999999999999999",
        ] {
            let token = format!("{key}={number}");
            let text = text(&token);
            let error = restore(text.as_bytes()).unwrap_err();
            assert_eq!(blame(&error), ("count", token.as_bytes()), "{text:?}");
            assert_eq!(error.errno(), Errno::Inval);
        }
        for second in ["1", "2"] {
            let token = format!("{key}={second}");
            let text = text(&format!("{key}=1\n{token}"));
            let error = restore(text.as_bytes()).unwrap_err();
            assert_eq!(blame(&error), ("duplicate", token.as_bytes()), "{text:?}");
            assert_eq!(error.errno(), Errno::Inval);
        }
        let text = text("");
        let error = restore(text.as_bytes()).unwrap_err();
        assert_eq!(error, RequestError::Missing { key });
        assert_eq!(error.errno(), Errno::Inval);
    }
}

#[test]
fn both_grammars_take_an_instance() {
    let values = expand("sha1:10={40}");
    let number = "0123456789aBcDeF0123456789abcdef";
    let instance = Instance::parse(number.as_bytes());
    assert!(instance.is_some());

    let text = format!("{values} instance={number} violations=1");
    assert_eq!(read(text.as_bytes()).unwrap().instance, instance);
    assert_eq!(read(values.as_bytes()).unwrap().instance, None);
    let counts = format!("{values} records=1 violations=0 trims=1");
    assert_eq!(restore(counts.as_bytes()).unwrap().instance, None);
    let text = format!("instance={number}\n{counts}");
    assert_eq!(restore(text.as_bytes()).unwrap().instance, instance);
}

#[test]
fn no_text_is_accepted_by_both_grammars() {
    let all = [
        "sha1:10={40}",
        "violations=0",
        "records=1",
        "trims=1",
        "dry-run",
        "keep",
    ];

    for some in 0..1 << all.len() {
        let tokens: Vec<_> = (0..all.len())
            .filter(|bit| some & (1 << bit) != 0)
            .map(|bit| expand(all[bit]))
            .collect();
        let text = tokens.join(" ");
        let both = (
            read(text.as_bytes()).is_ok(),
            restore(text.as_bytes()).is_ok(),
        );
        assert_ne!(both, (true, true), "{text}");
    }
}

#[test]
fn tokens_that_both_grammars_have_are_refused_by_both() {
    let kinds = [
        "algorithm",
        "bank",
        "pcr",
        "hex",
        "length",
        "count",
        "instance",
    ];
    let cases: Vec<_> = refusals()
        .iter()
        .filter(|case| kinds.contains(&case.2))
        .collect();
    for kind in kinds {
        assert!(cases.iter().any(|case| case.2 == kind), "{kind}");
    }
    check_refused(cases, restore, Grammar::StartingPcrs);
}

#[test]
fn either_case_of_hex_and_every_digit() {
    let text = b"sha256:10=000102030405060708090A0b0C0d0E0fA0B1c2D3e4F5f6a7B8C9daEBfcFdFeFF";
    let request = read(text).unwrap();
    let text = [&text[..], b" records=1 violations=0 trims=1"].concat();
    let statement = restore(&text).unwrap();
    for target in [request.target, statement.values] {
        let (_, _, value) = target.iter().next().unwrap();
        assert_eq!(
            value[..32],
            [
                0x00, 0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x07, 0x08, 0x09, 0x0a, 0x0b, 0x0c, 0x0d,
                0x0e, 0x0f, 0xa0, 0xb1, 0xc2, 0xd3, 0xe4, 0xf5, 0xf6, 0xa7, 0xb8, 0xc9, 0xda, 0xeb,
                0xfc, 0xfd, 0xfe, 0xff,
            ]
        );
        assert_eq!(value[32..], [0; 32]);
    }
}

#[test]
fn bytes_that_are_no_text_are_refused() {
    let token = expand("sha1:10={40}");
    for byte in 0..=u8::MAX {
        let mut text = token.clone().into_bytes();
        text.push(byte);
        let separates = matches!(byte, b' ' | b'\t' | b'\n');
        assert_eq!(read(&text).is_ok(), separates, "{byte:#04x} at the end");
        let mut text = vec![byte];
        text.extend(token.bytes());
        assert_eq!(read(&text).is_ok(), separates, "{byte:#04x} at the start");
        let mut text = token.clone().into_bytes();
        text[20] = byte;
        assert_eq!(
            read(&text).is_ok(),
            byte.is_ascii_hexdigit(),
            "{byte:#04x} in the value"
        );
    }
}

#[test]
fn length_of_a_request() {
    let padded = |len: usize| {
        let mut text = expand("sha1:10={40}");
        text.push_str(&" ".repeat(len - text.len()));
        text
    };
    assert_eq!(MAX_REQUEST, 16384);
    assert!(read(padded(MAX_REQUEST).as_bytes()).is_ok());
    for text in [padded(MAX_REQUEST + 1), "junk ".repeat(100_000)] {
        let error = read(text.as_bytes()).unwrap_err();
        assert_eq!(error, RequestError::TooLong { len: text.len() });
        assert_eq!(error.errno(), Errno::TooBig);
    }
}

#[test]
fn length_of_starting_pcrs() {
    let padded = |len: usize| {
        let mut text = expand("sha1:10={40} records=1 violations=0 trims=1");
        text.push_str(&" ".repeat(len - text.len()));
        text
    };
    assert!(restore(padded(MAX_REQUEST).as_bytes()).is_ok());
    let text = padded(MAX_REQUEST + 1);
    let error = restore(text.as_bytes()).unwrap_err();
    assert_eq!(error, RequestError::TooLong { len: text.len() });
    assert_eq!(error.errno(), Errno::TooBig);
}

#[test]
fn garbage_of_the_greatest_length() {
    for byte in 0..=u8::MAX {
        let text = vec![byte; MAX_REQUEST];
        let expected = match byte {
            b' ' | b'\t' | b'\n' => ("empty", &b""[..]),
            _ => ("unknown", &text[..]),
        };
        assert_eq!(blame(&read(&text).unwrap_err()), expected, "{byte:#04x}");
        assert_eq!(blame(&restore(&text).unwrap_err()), expected, "{byte:#04x}");
        let longer = vec![byte; MAX_REQUEST + 1];
        let expected = RequestError::TooLong { len: longer.len() };
        assert_eq!(read(&longer).unwrap_err(), expected);
        assert_eq!(restore(&longer).unwrap_err(), expected);
    }
}

#[test]
fn every_value_of_two_banks_in_one_request() {
    let mut text = String::new();
    for pcr in (0..24).rev() {
        text.push_str(&expand(&format!("sha256:{pcr}={{64}} sha1:{pcr}={{40}}\n")));
    }
    let request = read(text.as_bytes()).unwrap();
    assert_eq!(request.target.iter().count(), 48);
    assert!(request.target.pcrs().iter().eq(Pcr::all()));
}

#[test]
fn values_of_fewer_banks_are_not_written_beyond() {
    // A request is parsed for two banks, into memory for one.
    let mut one = Banks::new();
    one.push(*banks().get(0).unwrap()).unwrap();
    let values = PcrValues::new(vec![[0; 64]; 24], &one).unwrap();
    let text = expand("sha1:10={40} sha256:10={64}");
    let error = parse(text.as_bytes(), &banks(), known, values.clone()).unwrap_err();
    assert_eq!(error.errno(), Errno::OpNotSupp);
    let text = text + " records=1 violations=0 trims=1";
    let error = parse_starting_pcrs(text.as_bytes(), &banks(), known, values).unwrap_err();
    assert_eq!(error.errno(), Errno::OpNotSupp);
}

#[test]
fn messages_say_what_is_wrong_and_what_to_do() {
    let cases: &[(&[u8], &str)] = &[
        (
            b"",
            "request gives no PCR value: give at least one <bank>:<pcr>=<hex>",
        ),
        (
            b"10",
            "token \"10\": not known: expected <bank>:<pcr>=<hex>, violations=<n>, \
             instance=<hex>, dry-run, keep, compact or flush, separated by blanks, tabs or newlines",
        ),
        (b"dry-run dry-run", "token \"dry-run\": given more than once: give it once"),
        (
            b"keep flush",
            "token \"flush\": a second mode: give one of keep, compact and flush",
        ),
        (
            b"violations=-1",
            "token \"violations=-1\": not a count: give a decimal number of 64 bits without sign \
             or leading zeros",
        ),
        (
            b"instance=1",
            "token \"instance=1\": not an instance: give the 32 hexadecimal digits that the status \
             file has",
        ),
        (
            b"crc32:10=00",
            "token \"crc32:10=00\": no hash algorithm has this name: use the banks that the \
             status file lists",
        ),
        (
            b"sm3:10=00",
            "token \"sm3:10=00\": the TPM has not allocated this bank, or it cannot be replayed: \
             use the banks that the status file lists",
        ),
        (
            b"sha1:24=00",
            "token \"sha1:24=00\": no such PCR: give a decimal number below 24, as in sha256:10=",
        ),
        (
            b"sha1:10=0g",
            "token \"sha1:10=0g\": value is not hexadecimal: give digits 0-9 and a-f",
        ),
        (
            b"sha1:10=00",
            "token \"sha1:10=00\": value has 2 hexadecimal digits: digests of this bank have 40",
        ),
        // Nothing from outside reaches a log as it is.
        (
            b"\x1b[2J\\\xff\r\"",
            "token \"\\033[2J\\134\\377\\015\"\": not known: expected <bank>:<pcr>=<hex>, \
             violations=<n>, instance=<hex>, dry-run, keep, compact or flush, separated by blanks, \
             tabs or newlines",
        ),
    ];
    for &(text, message) in cases {
        assert_eq!(read(text).unwrap_err().to_string(), message);
    }
    let cases: &[(&[u8], &str)] = &[
        (
            b"",
            "request gives no PCR value: give a <bank>:<pcr>=<hex> for each bank and PCR, as the \
             starting_pcrs file does",
        ),
        (
            b"sha1:10=0000000000000000000000000000000000000000 records=1",
            "request has no violations=<n>: give records=, violations= and trims=, as the \
             starting_pcrs file does",
        ),
        (
            b"unknown records=5",
            "token \"unknown\": not known: expected <bank>:<pcr>=<hex>, records=<n>, \
             violations=<n>, trims=<n> or instance=<hex>, separated by blanks, tabs or newlines",
        ),
        (
            b"keep",
            "token \"keep\": not known: expected <bank>:<pcr>=<hex>, records=<n>, \
             violations=<n>, trims=<n> or instance=<hex>, separated by blanks, tabs or newlines",
        ),
        (
            b"records=-1",
            "token \"records=-1\": not a count: give a decimal number of 64 bits without sign or \
             leading zeros",
        ),
        (
            b"trims=1 trims=2",
            "token \"trims=2\": given more than once: give it once",
        ),
    ];
    for &(text, message) in cases {
        assert_eq!(restore(text).unwrap_err().to_string(), message);
    }
    let long = "x".repeat(64);
    let message = read(long.as_bytes()).unwrap_err().to_string();
    assert!(message.starts_with(&format!("token \"{long}\": ")));
    let message = read(&[b'x'; 65]).unwrap_err().to_string();
    assert!(message.starts_with(&format!("token \"{long}...\": ")));
    assert_eq!(
        read(&[b'x'; 16385]).unwrap_err().to_string(),
        "request of 16385 bytes is longer than 16384: give fewer PCR values"
    );
}

#[test]
fn what_cannot_be_read_says_what_to_do() {
    for (errno, message) in [
        (
            Errno::Inval,
            "a request is one write of at most 16384 bytes at offset 0 (EINVAL)",
        ),
        (
            Errno::TooBig,
            "a request is one write of at most 16384 bytes at offset 0, or of 32768 if it is \
             signed (E2BIG)",
        ),
        (Errno::NoMem, "there is no memory to read it (ENOMEM)"),
        (Errno::Fault, "what was written cannot be read (EFAULT)"),
    ] {
        assert_eq!(Unread(errno).to_string(), message);
    }
}

#[test]
fn modes_have_the_names_of_the_contract() {
    for (mode, name) in [
        (Reclaim::Keep, "keep"),
        (Reclaim::Compact, "compact"),
        (Reclaim::Flush, "flush"),
    ] {
        assert_eq!(mode.as_str(), name);
        assert_eq!(Reclaim::parse(name.as_bytes()), Some(mode));
    }
    for name in ["", "Keep", "keep\n", "kee", "none"] {
        assert_eq!(Reclaim::parse(name.as_bytes()), None, "{name:?}");
    }
}
