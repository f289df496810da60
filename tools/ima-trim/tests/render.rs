// SPDX-License-Identifier: GPL-2.0

//! Records as IMA's files show them.

mod common;

use proptest::prelude::*;
use sha2::Digest;
use sha2::Sha256;
use sha2::Sha384;
use sha2::Sha512;

use common::build;
use common::d_ng;
use common::ima_ng;
use common::string;
use common::Build;
use ima_trim::algorithm::Algorithm;
use ima_trim::record::Record;
use ima_trim::record::Records;
use ima_trim::render::Format;
use ima_trim::render::View;
use ima_trim::render::SOURCE;
use ima_trim::template::TemplateError;

const ASCII: View = View {
    format: Format::Ascii,
    algorithm: Algorithm::Sha1,
};

fn rendered(view: View, built: &Build) -> Result<Vec<u8>, TemplateError> {
    let bytes = built.bytes();
    let record = Record::first(&bytes).unwrap().unwrap();
    let mut to = b"before".to_vec();
    let result = view.write(&record, &mut to);
    let length = view.length(&record);

    assert_eq!(&to[..6], b"before");
    if let Err(error) = result {
        assert_eq!(to, b"before");
        assert_eq!(length, Err(error.clone()));
        return Err(error);
    }
    assert_eq!(length, Ok(to.len() - 6));
    Ok(to.split_off(6))
}

/// The line has this text behind PCR and digest, which are as the kernel prints them.
#[track_caller]
fn check_line(built: &Build, expected: &[u8]) {
    let line = rendered(ASCII, built).unwrap();
    let front = format!("{:>2} {} ", built.pcr, hex(&built.sha1()));
    let expected = [front.as_bytes(), expected, b"\n"].concat();
    assert_eq!(
        String::from_utf8_lossy(&line),
        String::from_utf8_lossy(&expected)
    );
    assert_eq!(line, expected);
}

fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .fold(String::new(), |digits, byte| format!("{digits}{byte:02x}"))
}

fn repeated(hex: &str, times: usize) -> String {
    hex.repeat(times)
}

#[test]
fn whole_line_of_a_known_record() {
    // The data is written out, and the digests are those of sha1sum and sha256sum over it.
    let built = build("ima-ng", &[b"sha256:\0\x01\x02\xff", b"/bin/sh\0"]);
    let data = b"\x0b\0\0\0sha256:\0\x01\x02\xff\x08\0\0\0/bin/sh\0";
    assert_eq!(built.data(), data);
    assert_eq!(
        rendered(ASCII, &built).unwrap(),
        b"10 7db815d8d413437dd358249a386b3d06e0808d43 ima-ng sha256:0102ff /bin/sh\n"
    );
    let sha256 = View {
        algorithm: Algorithm::Sha256,
        ..ASCII
    };
    assert_eq!(
        rendered(sha256, &built).unwrap(),
        b"10 2863485ebefc367b1d6500999a7a95c07bc8a6691a5269fae26116efc78796b9 ima-ng sha256:0102ff /bin/sh\n"
            .as_slice()
    );
}

#[test]
fn builtin_templates() {
    let digest = d_ng("sha256", &[0xa5; 32]);
    let digest = digest.as_slice();
    let v2 = [b"ima:".as_slice(), digest].concat();
    let verity = [b"verity:".as_slice(), digest].concat();
    let a5 = repeated("a5", 32);

    check_line(
        &build("ima", &[&[0x0f; 20], b"boot_aggregate\0"]),
        format!("ima {} boot_aggregate", repeated("0f", 20)).as_bytes(),
    );
    check_line(
        &build("ima", &[&[0x0f; 16], b"/bin/true\0"]),
        format!("ima {} /bin/true", repeated("0f", 16)).as_bytes(),
    );
    check_line(
        &build("ima-ng", &[digest, b"/bin/sh\0"]),
        format!("ima-ng sha256:{a5} /bin/sh").as_bytes(),
    );
    check_line(
        &build("ima-sig", &[digest, b"/bin/sh\0", b"\x03\x02\x04"]),
        format!("ima-sig sha256:{a5} /bin/sh 030204").as_bytes(),
    );
    // Without a signature the line ends in a blank.
    check_line(
        &build("ima-sig", &[digest, b"/bin/sh\0", b""]),
        format!("ima-sig sha256:{a5} /bin/sh ").as_bytes(),
    );
    check_line(
        &build("ima-ngv2", &[&v2, b"/bin/sh\0"]),
        format!("ima-ngv2 ima:sha256:{a5} /bin/sh").as_bytes(),
    );
    check_line(
        &build("ima-sigv2", &[&verity, b"/bin/sh\0", b"\x06\x03"]),
        format!("ima-sigv2 verity:sha256:{a5} /bin/sh 0603").as_bytes(),
    );
    check_line(
        &build(
            "ima-buf",
            &[digest, b"kexec-cmdline\0", b"root=/dev/vda ro\n"],
        ),
        format!("ima-buf sha256:{a5} kexec-cmdline 726f6f743d2f6465762f76646120726f0a").as_bytes(),
    );
    let modsig = d_ng("sha512", &[0x5a; 64]);
    check_line(
        &build(
            "ima-modsig",
            &[digest, b"/lib/m.ko\0", b"", &modsig, b"\x30\x82"],
        ),
        format!(
            "ima-modsig sha256:{a5} /lib/m.ko  sha512:{} 3082",
            repeated("5a", 64)
        )
        .as_bytes(),
    );
    check_line(
        &build("ima-modsig", &[digest, b"/lib/m.ko\0", b"\x03", b"", b""]),
        format!("ima-modsig sha256:{a5} /lib/m.ko 03  ").as_bytes(),
    );
    check_line(
        &build(
            "evm-sig",
            &[
                digest,
                b"/bin/su\0",
                b"\x05\x02",
                b"security.selinux|security.ima\0",
                &[4u32.to_ne_bytes(), 2u32.to_ne_bytes()].concat(),
                b"abc\0\x03\x02",
                &0u32.to_ne_bytes(),
                &u32::MAX.to_ne_bytes(),
                &0o104_755_u16.to_ne_bytes(),
            ],
        ),
        format!(
            "evm-sig sha256:{a5} /bin/su 0502 security.selinux|security.ima 0400000002000000 \
             616263000302 0 4294967295 35309"
        )
        .as_bytes(),
    );
    // Of an event without a file, all that depends on the file is empty.
    check_line(
        &build(
            "evm-sig",
            &[digest, b"x\0", b"", b"", b"", b"", b"", b"", b""],
        ),
        format!("evm-sig sha256:{a5} x       ").as_bytes(),
    );
}

#[test]
fn violations() {
    // No digest of the file either: as many zeros as the algorithm has.
    let built = ima_ng(b"");
    let built = Build {
        fields: vec![d_ng("sha256", &[0; 32]), string(b"/var/log/x")],
        ..built
    }
    .violation();
    check_line(
        &built,
        format!("ima-ng sha256:{} /var/log/x", repeated("00", 32)).as_bytes(),
    );
    let sha512 = View {
        algorithm: Algorithm::Sha512,
        ..ASCII
    };
    let line = rendered(sha512, &built).unwrap();
    let front = format!("10 {} ima-ng ", repeated("00", 64));
    assert_eq!(&line[..front.len()], front.as_bytes());

    check_line(
        &build("ima", &[&[0; 20], b"/var/log/x\0"]).violation(),
        format!("ima {} /var/log/x", repeated("00", 20)).as_bytes(),
    );
}

#[test]
fn custom_formats() {
    check_line(
        &build("d|n", &[&[0x0f; 20], b"/bin/true\0"]),
        format!("d|n {} /bin/true", repeated("0f", 20)).as_bytes(),
    );
    check_line(
        &build(
            "n-ng|buf|modsig|iuid|igid|imode|d-ngv2",
            &[
                b"a\0",
                b"\xab",
                b"\xcd",
                &1000u32.to_ne_bytes(),
                &100u32.to_ne_bytes(),
                &0o100_644_u16.to_ne_bytes(),
                b"ima:sha1:\0\x00\x11",
            ],
        ),
        b"n-ng|buf|modsig|iuid|igid|imode|d-ngv2 a ab cd 1000 100 33188 ima:sha1:0011",
    );
    check_line(&build("sig|sig", &[b"", b""]), b"sig|sig  ");
    check_line(&build("n-ng", &[b"\0"]), b"n-ng ");
}

#[test]
fn numbers_of_other_sizes() {
    let number = |data: &[u8], expected: &str| {
        check_line(
            &build("iuid", &[data]),
            format!("iuid {expected}").as_bytes(),
        );
    };
    number(&[255], "255");
    number(&u64::MAX.to_ne_bytes(), "18446744073709551615");
    number(&[1, 2, 3], "");
    number(&[0; 16], "");
}

#[test]
fn digests_with_unusual_prefixes() {
    // strrchr() finds the last colon before the NUL; one at the beginning is not printed.
    check_line(&build("d-ng", &[b":\0\xaa:\0\xbb"]), b"d-ng aa3a00bb");
    check_line(&build("d-ng", &[b"sha1:\0"]), b"d-ng sha1:");
    check_line(&build("d-ngv2", &[b"a:b:\0:\0"]), b"d-ngv2 a:b:3a00");
    // Without a colon, or with nothing behind it, the kernel would read what is not its own.
    for bad in [&b"sha1"[..], b"sha1\0:\0\xaa", b"sha1:", b"\0"] {
        assert_eq!(
            rendered(ASCII, &build("d-ng", &[bad])),
            Err(TemplateError::Data("d-ng".to_owned()))
        );
    }
}

#[test]
fn names_stay_bytes() {
    for name in [
        &b"/tmp/two\nlines"[..],
        b"/tmp/\xff\xfe\xc3",
        b"/tmp/a\tb\x1b[1m\\",
        "/tmp/\u{e4}\u{20ac}".as_bytes(),
        b"\n",
        b"/tmp/gone_(deleted)",
    ] {
        let built = build("n-ng", &[&string(name)]);
        check_line(&built, &[b"n-ng ", name].concat());
    }
    // What is behind a NUL is not shown, and a blank is as it came.
    check_line(&build("n-ng", &[b"a b\0c\0"]), b"n-ng a b");
    check_line(&build("n-ng", &[b"no end"]), b"n-ng no end");
}

#[test]
fn pcrs_have_two_places() {
    for (pcr, expected) in [
        (0, " 0 "),
        (7, " 7 "),
        (10, "10 "),
        (63, "63 "),
        (100, "100 "),
        (-1, "-1 "),
    ] {
        let line = rendered(ASCII, &ima_ng(b"x").pcr(pcr)).unwrap();
        assert_eq!(&line[..expected.len()], expected.as_bytes());
        check_line(&build("n-ng", &[b"x\0"]).pcr(pcr), b"n-ng x");
    }
}

#[test]
fn other_banks_have_their_digests() {
    for built in [
        ima_ng(b"/bin/sh"),
        build("ima", &[&[1; 20], b"/bin/sh\0"]),
        build("ima-later", &[b"what"]),
        ima_ng(b"/bin/sh").violation(),
    ] {
        for algorithm in Algorithm::ALL {
            let digest = match algorithm {
                _ if built.violation => vec![0; algorithm.size()],
                Algorithm::Sha1 => built.sha1(),
                Algorithm::Sha256 => Sha256::digest(built.hashed()).to_vec(),
                Algorithm::Sha384 => Sha384::digest(built.hashed()).to_vec(),
                Algorithm::Sha512 => Sha512::digest(built.hashed()).to_vec(),
            };
            let binary = View {
                format: Format::Binary,
                algorithm,
            };
            assert_eq!(
                rendered(binary, &built).unwrap(),
                built.with_digest(&digest)
            );

            if built.template != b"ima-later" {
                let ascii = View {
                    format: Format::Ascii,
                    algorithm,
                };
                let line = rendered(ascii, &built).unwrap();
                let front = format!("10 {} ima", hex(&digest));
                assert_eq!(&line[..front.len()], front.as_bytes());
            }
        }
    }
}

#[test]
fn unknown_template_has_no_text() {
    let built = build("ima-later", &[b"what"]);
    let error = rendered(ASCII, &built).unwrap_err();
    assert_eq!(error, TemplateError::Unknown("ima-later".to_owned()));
    assert!(error.to_string().contains("\"ima-later\""));

    let built = build("ima-ng", &[b"sha1:\0", b"x\0", b""]);
    assert_eq!(
        rendered(ASCII, &built),
        Err(TemplateError::Data("ima-ng".to_owned()))
    );
}

#[test]
fn large_records() {
    let data: Vec<_> = (0..65536u32).map(|at| (at * 7) as u8).collect();
    check_line(
        &build("n-ng|buf", &[b"x\0", &data]),
        format!("n-ng|buf x {}", hex(&data)).as_bytes(),
    );
    let name = vec![b'n'; 65536];
    check_line(
        &build("n-ng", &[&string(&name)]),
        &[b"n-ng ", &name[..]].concat(),
    );
}

#[test]
fn files_have_views() {
    assert_eq!(View::all().count(), 8);
    for view in View::all() {
        assert_eq!(View::of_file(&view.file_name()), Some(view));
    }
    assert_eq!(SOURCE.file_name(), "binary_runtime_measurements_sha1");
    assert_eq!(
        View::of_file("ascii_runtime_measurements_sha384"),
        Some(View {
            format: Format::Ascii,
            algorithm: Algorithm::Sha384,
        })
    );
    for other in [
        "ascii_runtime_measurements",
        "binary_runtime_measurements_",
        "ascii_runtime_measurements_sm3",
        "ascii_runtime_measurements_sha1_staged",
        "runtime_measurements_count",
        "",
    ] {
        assert_eq!(View::of_file(other), None);
    }
}

proptest! {
    /// Any data of any format gives a line of the length that was said, or an error and nothing.
    #[test]
    fn any_data_has_its_length(
        template in prop::sample::select(vec![
            "ima-ng", "ima-sigv2", "ima-modsig", "evm-sig", "ima", "n-ng|iuid", "d|n|d-ng", "none",
        ]),
        mut fields in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..10),
        colon in any::<bool>(),
    ) {
        if template == "ima" {
            fields = vec![vec![3; 20], string(b"name")];
        }
        if colon {
            for field in &mut fields {
                field.splice(..0, *b"sha256:\0");
            }
            if template == "ima" {
                fields[0].truncate(20);
            }
        }
        let built = build(template, &fields.iter().map(Vec::as_slice).collect::<Vec<_>>());
        for view in View::all() {
            let result = rendered(view, &built);
            prop_assert!(view.format == Format::Ascii || result.is_ok());
            if let (Ok(line), Format::Ascii) = (result, view.format) {
                prop_assert_eq!(line.last(), Some(&b'\n'));
            }
        }
    }

    /// A binary file of any bank, cut back to SHA-1, is the source.
    #[test]
    fn source_is_the_records(names in prop::collection::vec("[^\0]{0,30}", 0..8)) {
        let list: Vec<_> = names.iter().flat_map(|name| ima_ng(name.as_bytes()).bytes()).collect();
        let mut to = Vec::new();
        for record in Records::new(&list) {
            SOURCE.write(&record.unwrap(), &mut to).unwrap();
        }
        prop_assert_eq!(to, list);
    }
}
