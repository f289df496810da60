// SPDX-License-Identifier: GPL-2.0

//! The exact text of what the files of the interface say.

use core::fmt::Write;
use ima_trim_pure::bank::{Bank, Banks, Pcr, PcrSet, Value};
use ima_trim_pure::errno::Errno;
use ima_trim_pure::instance::Instance;
use ima_trim_pure::report::{
    event, keys, outcome, starting_pcrs, starting_pcrs_unknown, status, verify, violation,
    violations_dropped, Base, Event, Found, Outcome, Status, Totals, TrimResult,
};
use ima_trim_pure::signature::Fingerprint;
use ima_trim_pure::values::PcrValues;

type Values = PcrValues<Vec<Value>>;

/// What `write` writes.
fn text(write: impl FnOnce(&mut dyn Write) -> core::fmt::Result) -> String {
    let mut text = String::new();
    write(&mut text).unwrap();
    text
}

/// Banks in an order that is not that of their names.
fn banks() -> Banks {
    let mut banks = Banks::new();
    for (position, (name, size)) in [("sm3", 32), ("sha512", 64), ("sha1", 20), ("sha256", 32)]
        .into_iter()
        .enumerate()
    {
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

fn values(banks: &Banks) -> PcrValues<Vec<Value>> {
    let mut values = PcrValues::new(vec![[0; 64]; Values::cells(banks)], banks).unwrap();
    values.reset(banks);
    values
}

fn pcrs(numbers: &[u32]) -> PcrSet {
    numbers.iter().map(|&n| Pcr::new(n).unwrap()).collect()
}

const STATE: Status = Status {
    base: Base::Verified,
    records: 1,
    records_trimmed: 2,
    violations_trimmed: 3,
    trims: 4,
    foreign_records: 5,
    guard: true,
    hold_ns_last: 6,
    hold_ns_max: 7,
    bytes_freed: 8,
    measured: 9,
    evidence_failed: 10,
    instance: INSTANCE,
    evidence: true,
    signatures: false,
};

const INSTANCE: Instance = Instance([
    0, 1, 2, 3, 4, 5, 6, 7, 0x80, 0x9a, 0xab, 0xbc, 0xcd, 0xde, 0xef, 0xff,
]);

#[test]
fn starting_pcrs_are_sorted_by_bank_and_pcr() {
    let banks = banks();
    let mut values = values(&banks);
    let pcr = |number| Pcr::new(number).unwrap();
    for (bank, info) in banks.iter() {
        let value = values.get_mut(bank, pcr(10)).unwrap();
        for (number, byte) in value.iter_mut().take(info.size).enumerate() {
            *byte = 0xb0 + u8::try_from(number).unwrap();
        }
    }
    let totals = Totals {
        records: 1234,
        violations: 5,
        trims: 6,
    };
    let (zeros, ones) = ("0".repeat(128), "f".repeat(128));
    let ten = hex::encode((0xb0..0xf0).collect::<Vec<u8>>());
    let expected = format!(
        "sha1:9={}\nsha1:10={}\nsha1:17={}\n\
         sha256:9={}\nsha256:10={}\nsha256:17={}\n\
         sha512:9={}\nsha512:10={}\nsha512:17={}\n\
         sm3:9={}\nsm3:10={}\nsm3:17={}\n\
         records=1234\nviolations=5\ntrims=6\n",
        &zeros[..40],
        &ten[..40],
        &ones[..40],
        &zeros[..64],
        &ten[..64],
        &ones[..64],
        &zeros,
        &ten,
        &ones,
        &zeros[..64],
        &ten[..64],
        &ones[..64],
    );
    assert_eq!(
        text(|w| starting_pcrs(w, &banks, &values, pcrs(&[17, 10, 9]), &totals)),
        expected
    );
}

#[test]
fn starting_pcrs_before_any_trim() {
    let mut banks = Banks::new();
    banks
        .push(Bank {
            name: "sha1",
            size: 20,
            position: 0,
        })
        .unwrap();
    assert_eq!(
        text(|w| starting_pcrs(w, &banks, &values(&banks), pcrs(&[10]), &Totals::default())),
        "sha1:10=0000000000000000000000000000000000000000\nrecords=0\nviolations=0\ntrims=0\n"
    );
}

#[test]
fn starting_pcrs_of_other_banks_are_an_error() {
    let one = Banks::new();
    let none = PcrValues::new(Vec::new(), &one).unwrap();
    let mut w = String::new();
    let totals = Totals::default();
    assert!(starting_pcrs(&mut w, &banks(), &none, pcrs(&[10]), &totals).is_err());
}

#[test]
fn unknown_starting_pcrs() {
    assert_eq!(
        text(|w| starting_pcrs_unknown(w, 17)),
        "unknown records=17\n"
    );
}

#[test]
fn verdicts_are_sorted_by_bank_and_pcr() {
    let banks = banks();
    let sha1 = banks.find(b"sha1").unwrap();
    let sm3 = banks.find(b"sm3").unwrap();
    let equal = |bank: usize, pcr: Pcr| !(bank == sha1 && pcr.index() == 10 || bank == sm3);
    assert_eq!(
        text(|w| verify(w, &banks, pcrs(&[17, 10, 9]), equal, 1234, 5)),
        "sha1:9=ok\nsha1:10=mismatch\nsha1:17=ok\n\
         sha256:9=ok\nsha256:10=ok\nsha256:17=ok\n\
         sha512:9=ok\nsha512:10=ok\nsha512:17=ok\n\
         sm3:9=mismatch\nsm3:10=mismatch\nsm3:17=mismatch\n\
         records=1234\nviolations=5\n"
    );
    // Nothing is asked about a PCR that is not printed.
    let never = |_: usize, _: Pcr| panic!("asked about a PCR that is not there");
    assert_eq!(
        text(|w| verify(w, &banks, PcrSet::new(), never, 0, 0)),
        "records=0\nviolations=0\n"
    );
    assert_eq!(
        text(|w| verify(w, &Banks::new(), pcrs(&[10]), never, u64::MAX, 1)),
        "records=18446744073709551615\nviolations=1\n"
    );
}

/// Has no room for one of the pieces that are written, and counts them.
struct Narrow {
    pieces: usize,
    fails: Option<usize>,
}

impl Write for Narrow {
    fn write_str(&mut self, _text: &str) -> core::fmt::Result {
        self.pieces += 1;
        if self.fails == Some(self.pieces) {
            return Err(core::fmt::Error);
        }
        Ok(())
    }
}

/// Checks that a report says so if any piece of it could not be written.
fn check_no_room(write: impl Fn(&mut dyn Write) -> core::fmt::Result) {
    let mut w = Narrow {
        pieces: 0,
        fails: None,
    };
    assert!(write(&mut w).is_ok());
    assert!(w.pieces > 0);
    for piece in 1..=w.pieces {
        let mut w = Narrow {
            pieces: 0,
            fails: Some(piece),
        };
        assert!(write(&mut w).is_err(), "piece {piece}");
    }
}

#[test]
fn a_report_without_room_is_an_error() {
    let banks = banks();
    let values = values(&banks);
    let totals = Totals::default();
    check_no_room(|w| starting_pcrs(w, &banks, &values, pcrs(&[10, 17]), &totals));
    check_no_room(|w| starting_pcrs_unknown(w, 17));
    check_no_room(|w| verify(w, &banks, pcrs(&[10, 17]), |bank, _| bank == 0, 2, 1));
    check_no_room(|w| status(w, &banks, ["sha3-256"].into_iter(), &STATE));
}

#[test]
fn outcomes() {
    let trimmed = Outcome {
        result: TrimResult::Trimmed,
        found: Found {
            records: 4000,
            violations: 2,
            first_violation: Some(17),
        },
        hold_ns: Some(1500),
    };
    let none = Outcome {
        result: TrimResult::Nothing,
        found: Found::default(),
        hold_ns: None,
    };
    assert_eq!(
        text(|w| outcome(w, &trimmed)),
        "result=trimmed\nrecords=4000\nviolations=2\nfirst_violation=17\nhold_ns=1500\n"
    );
    assert_eq!(
        text(|w| outcome(w, &none)),
        "result=nothing\nrecords=0\nviolations=0\n"
    );
    let tried = Outcome {
        result: TrimResult::DryRun,
        hold_ns: Some(0),
        ..none
    };
    assert_eq!(
        text(|w| outcome(w, &tried)),
        "result=dry-run\nrecords=0\nviolations=0\nhold_ns=0\n"
    );
    let refused = Outcome {
        result: TrimResult::Refused(Errno::BadMsg),
        hold_ns: None,
        ..trimmed
    };
    assert_eq!(
        text(|w| outcome(w, &refused)),
        "result=refused\nerrno=EBADMSG\nrecords=4000\nviolations=2\nfirst_violation=17\n"
    );
}

#[test]
fn status_with_and_without_a_bank_that_cannot_be_replayed() {
    let state = STATE;
    let rest = "records=1\nrecords_trimmed=2\nviolations_trimmed=3\ntrims=4\nforeign_records=5\n\
                guard=on\nhold_ns_last=6\nhold_ns_max=7\nbytes_freed=8\nmeasured=9\n\
                evidence_failed=10\ninstance=0001020304050607809aabbccddeefff\n\
                evidence=measured\nsignatures=off\n";
    assert_eq!(
        text(|w| status(w, &banks(), [].into_iter(), &state)),
        format!("version=2\nbanks=sm3,sha512,sha1,sha256\nbase=verified\n{rest}")
    );
    for (base, name) in [(Base::Unverified, "unverified"), (Base::Unknown, "unknown")] {
        let state = Status { base, ..state };
        let mut one = Banks::new();
        one.push(*banks().get(3).unwrap()).unwrap();
        assert_eq!(
            text(|w| status(w, &one, ["sha3-256", "sm3"].into_iter(), &state)),
            format!(
                "version=2\nbanks=sha256\nbanks_unreplayable=sha3-256,sm3\nbase={name}\n{rest}"
            )
        );
    }
    assert_eq!(
        text(|w| status(w, &Banks::new(), ["sm3"].into_iter(), &state)),
        format!("version=2\nbanks=\nbanks_unreplayable=sm3\nbase=verified\n{rest}")
    );
    let state = Status {
        guard: false,
        ..state
    };
    let rest = rest.replace("guard=on", "guard=off");
    assert_eq!(
        text(|w| status(w, &banks(), [].into_iter(), &state)),
        format!("version=2\nbanks=sm3,sha512,sha1,sha256\nbase=verified\n{rest}")
    );
    let state = Status {
        evidence: false,
        ..state
    };
    let rest = rest.replace("evidence=measured", "evidence=none");
    assert_eq!(
        text(|w| status(w, &banks(), [].into_iter(), &state)),
        format!("version=2\nbanks=sm3,sha512,sha1,sha256\nbase=verified\n{rest}")
    );
    let state = Status {
        signatures: true,
        ..state
    };
    let rest = rest.replace("signatures=off", "signatures=required");
    assert_eq!(
        text(|w| status(w, &banks(), [].into_iter(), &state)),
        format!("version=2\nbanks=sm3,sha512,sha1,sha256\nbase=verified\n{rest}")
    );
}

#[test]
fn keys_are_one_line_each() {
    let fingerprints = [
        Fingerprint([0xa5; 32]),
        Fingerprint(core::array::from_fn(|i| i as u8)),
    ];
    let expected = format!(
        "key=sha256:{}\nkey=sha256:\
         000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f\n",
        "a5".repeat(32)
    );

    assert_eq!(text(|w| keys(w, fingerprints.into_iter())), expected);
    assert_eq!(text(|w| keys(w, [].into_iter())), "");
    check_no_room(|w| keys(w, fingerprints.into_iter()));
}

#[test]
fn events_byte_for_byte() {
    let instance = "instance=0001020304050607809aabbccddeefff\n";
    let load = Event::Load {
        guard: true,
        signatures: false,
        kernel_deleted: 12,
        kernel_violations: 3,
    };
    let unguarded = Event::Load {
        guard: false,
        signatures: false,
        kernel_deleted: 0,
        kernel_violations: u64::MAX,
    };
    let signed = Event::Load {
        guard: true,
        signatures: true,
        kernel_deleted: 0,
        kernel_violations: 0,
    };
    let foreign = Event::Foreign {
        kernel_deleted: 12,
        foreign_records: 5,
    };
    let cases = [
        (
            load,
            "load",
            format!(
                "version=2\n{instance}guard=on\nsignatures=off\nkernel_deleted=12\n\
                 kernel_violations=3\n"
            ),
        ),
        (
            unguarded,
            "load",
            format!(
                "version=2\n{instance}guard=off\nsignatures=off\nkernel_deleted=0\n\
                 kernel_violations=18446744073709551615\n"
            ),
        ),
        (
            signed,
            "load",
            format!(
                "version=2\n{instance}guard=on\nsignatures=required\nkernel_deleted=0\n\
                 kernel_violations=0\n"
            ),
        ),
        (Event::Trim, "trim", instance.into()),
        (Event::Restore, "restore", instance.into()),
        (
            foreign,
            "foreign",
            format!("{instance}kernel_deleted=12\nforeign_records=5\n"),
        ),
    ];
    for (of, name, expected) in cases {
        assert_eq!(text(|w| event(w, &of, INSTANCE)), expected);
        assert_eq!(of.as_str(), name);
        assert_eq!(of.name().to_bytes(), name.as_bytes());
        check_no_room(|w| event(w, &of, INSTANCE));
    }
}

#[test]
fn an_instance_is_read_as_it_is_printed() {
    let printed = INSTANCE.to_string();

    assert_eq!(Instance::parse(printed.as_bytes()), Some(INSTANCE));
    let capitals = printed.to_uppercase();
    assert_eq!(Instance::parse(capitals.as_bytes()), Some(INSTANCE));
    for wrong in [
        "".into(),
        printed[1..].to_string(),
        printed[2..].to_string(),
        format!("{printed}0"),
        format!("{printed}00"),
        printed.replace('9', "g"),
        printed.replace("80", "+8"),
        printed.replace("80", " 8"),
    ] {
        assert_eq!(Instance::parse(wrong.as_bytes()), None, "{wrong}");
    }
}

#[test]
fn violations_are_one_line_each_whatever_the_name() {
    // Number, PCR, template, name, line.
    type Case = (u64, i32, &'static [u8], &'static [u8], &'static str);
    let cases: &[Case] = &[
        (
            1,
            10,
            b"ima-ng",
            b"/etc/passwd",
            "1 10 ima-ng /etc/passwd\n",
        ),
        (u64::MAX, -1, b"", b"", "18446744073709551615 -1 - -\n"),
        (
            7,
            63,
            b"ima sig",
            b"/tmp/a b\n8 10 ima-ng /bin/sh\\\t",
            "7 63 ima\\040sig /tmp/a\\040b\\0128\\04010\\040ima-ng\\040/bin/sh\\134\\011\n",
        ),
        (
            7,
            10,
            b"ima-ng",
            b"\x00\x20!~\x7f\x80\xc3\xa9\xff\x1b",
            "7 10 ima-ng \\000\\040!~\\177\\200\\303\\251\\377\\033\n",
        ),
    ];
    for &(number, pcr, template, name, line) in cases {
        assert_eq!(text(|w| violation(w, number, pcr, template, name)), line);
    }
    for byte in 0..=u8::MAX {
        let line = text(|w| violation(w, 1, 10, b"t", &[byte]));
        let name = line.strip_prefix("1 10 t ").unwrap();
        let shown = (0x21..=0x7e).contains(&byte) && byte != b'\\';
        let expected = if shown {
            format!("{}\n", char::from(byte))
        } else {
            format!("\\{byte:03o}\n")
        };
        assert_eq!(name, expected);
    }
}

#[test]
fn dropped_violations_are_told_if_there_are_any() {
    assert_eq!(text(|w| violations_dropped(w, 0)), "");
    assert_eq!(text(|w| violations_dropped(w, 12)), "dropped=12\n");
}

#[test]
fn errors_have_their_names_and_numbers() {
    // As in include/uapi/asm-generic/errno-base.h and errno.h.
    for (errno, name, code) in [
        (Errno::NoEnt, "ENOENT", 2),
        (Errno::Intr, "EINTR", 4),
        (Errno::Io, "EIO", 5),
        (Errno::TooBig, "E2BIG", 7),
        (Errno::NoMem, "ENOMEM", 12),
        (Errno::Acces, "EACCES", 13),
        (Errno::Fault, "EFAULT", 14),
        (Errno::Busy, "EBUSY", 16),
        (Errno::Inval, "EINVAL", 22),
        (Errno::NoPkg, "ENOPKG", 65),
        (Errno::BadMsg, "EBADMSG", 74),
        (Errno::OpNotSupp, "EOPNOTSUPP", 95),
        (Errno::Stale, "ESTALE", 116),
        (Errno::Uclean, "EUCLEAN", 117),
        (Errno::NoKey, "ENOKEY", 126),
        (Errno::KeyRejected, "EKEYREJECTED", 129),
    ] {
        assert_eq!(errno.as_str(), name);
        assert_eq!(errno.code(), code);
        assert_eq!(errno.to_string(), name);
    }
}
