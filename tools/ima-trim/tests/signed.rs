// SPDX-License-Identifier: GPL-2.0

//! Requests and states that openssl has signed.

use std::fs;
use std::path::Path;

use ima_trim::quote::PublicKey;
use ima_trim::signed;
use ima_trim::signed::Purpose;
use ima_trim::signed::SignError;
use ima_trim::signed::Signed;
use ima_trim::signed::SignedError;
use ima_trim::signed::MAX_SIGNED;

#[path = "common/keys.rs"]
mod keys;

use keys::openssl;
use keys::Keys;
use keys::P256;

fn trim() -> String {
    let value = "ab".repeat(32);
    let instance = "0123456789abcdef".repeat(2);
    format!("sha256:10={value} violations=2 instance={instance}")
}

fn restore() -> String {
    trim().replace("violations=2", "records=7 violations=2 trims=1")
}

#[test]
fn what_a_request_is_for() {
    assert_eq!(Purpose::of(trim().as_bytes()), Ok(Purpose::Trim));
    assert_eq!(Purpose::of(restore().as_bytes()), Ok(Purpose::Restore));
    let (without, _) = trim()
        .rsplit_once(' ')
        .map(|(a, b)| (a.to_owned(), b.to_owned()))
        .unwrap();
    assert_eq!(Purpose::of(without.as_bytes()), Err(SignedError::Instance));
    for bad in ["", "instance=0", "sha256:10=00", "hello"] {
        let found = Purpose::of(bad.as_bytes());
        assert!(
            matches!(found, Err(SignedError::Request(_))),
            "{bad}: {found:?}"
        );
    }
}

#[test]
fn a_signed_request_is_what_was_signed() {
    let keys = Keys::new("request");
    let algorithms: [(&str, &[&str]); 3] = [
        ("p256", &P256),
        ("p384", &["ec", "-pkeyopt", "ec_paramgen_curve:P-384"]),
        ("rsa", &["rsa:2048"]),
    ];
    for (name, algorithm) in algorithms {
        let (certificate, key) = keys.make(name, algorithm);
        for (text, purpose) in [(trim(), Purpose::Trim), (restore(), Purpose::Restore)] {
            let der = signed::sign(text.as_bytes(), &certificate, &key).unwrap();
            assert!(Signed::is_one(&der));
            let signed = Signed::parse(&der).unwrap();
            assert_eq!(signed.purpose(), purpose);
            assert_eq!(signed.der(), der);

            // Whoever verifies it gets the request.
            let file = keys.path("request.p7");
            fs::write(&file, &der).unwrap();
            let (file, trusted) = (
                file.display().to_string(),
                certificate.display().to_string(),
            );
            let found = openssl(&[
                "smime", "-verify", "-inform", "der", "-in", &file, "-CAfile", &trusted,
                "-purpose", "any", "-binary",
            ]);
            assert_eq!(found, text.as_bytes());

            // Each piece of it is an error, never a panic.
            for end in 0..der.len() {
                assert!(Signed::parse(&der[..end]).is_err(), "{end}");
            }
        }
    }
}

#[test]
fn what_is_no_signed_request() {
    let keys = Keys::new("none");
    let (certificate, key) = keys.make("one", &P256);
    let request = keys.path("request");
    fs::write(&request, trim()).unwrap();
    let (certificate_name, request_name) = (
        certificate.display().to_string(),
        request.display().to_string(),
    );
    let sign = |more: &[&str]| {
        let mut arguments = vec![
            "smime",
            "-sign",
            "-binary",
            "-outform",
            "der",
            "-signer",
            &certificate_name,
        ];
        arguments.extend(["-inkey", &key, "-in", &request_name]);
        arguments.extend(more);
        openssl(&arguments)
    };
    // The request must be enclosed.
    let found = Signed::parse(&sign(&[]));
    assert!(
        matches!(&found, Err(SignedError::Form(text)) if text.contains("-nodetach")),
        "{found:?}"
    );
    assert!(Signed::parse(&sign(&["-nodetach"])).is_ok());
    // It is no certificate, either.
    let certificate_der = openssl(&["x509", "-in", &certificate_name, "-outform", "der"]);
    assert!(matches!(
        Signed::parse(&certificate_der),
        Err(SignedError::Form(_))
    ));
    let long = vec![0x30; MAX_SIGNED + 1];
    assert_eq!(
        Signed::parse(&long),
        Err(SignedError::TooLong(MAX_SIGNED + 1))
    );
    assert!(!Signed::is_one(trim().as_bytes()));

    let found = signed::sign(b"hello", &certificate, &key);
    assert!(matches!(found, Err(SignError::Request(_))), "{found:?}");
    let found = signed::sign(trim().as_bytes(), Path::new("/nowhere"), &key);
    assert!(
        matches!(&found, Err(SignError::Refused(text)) if text.contains("/nowhere")),
        "{found:?}"
    );
    let (_, other) = keys.make("other", &P256);
    let found = signed::sign(trim().as_bytes(), &certificate, &other);
    assert!(matches!(found, Err(SignError::Refused(_))), "{found:?}");
}

#[test]
fn a_key_knows_what_it_has_signed() {
    let keys = Keys::new("bytes");
    for (name, algorithm) in [("p256", &P256[..]), ("rsa", &["rsa:2048"])] {
        let (_, key) = keys.make(name, algorithm);
        let public = fs::read(keys.path(&format!("{name}.pub"))).unwrap();
        let public = PublicKey::parse(&public).unwrap();
        let bytes = keys.path("bytes");
        fs::write(&bytes, b"some bytes").unwrap();
        let file = bytes.display().to_string();
        let signature = openssl(&["dgst", "-sha256", "-binary", "-sign", &key, &file]);
        assert!(public.has_signed(b"some bytes", &signature));
        assert!(!public.has_signed(b"other bytes", &signature));
        assert!(!public.has_signed(b"some bytes", &signature[1..]));
        let weak = openssl(&["dgst", "-sha1", "-binary", "-sign", &key, &file]);
        assert!(!public.has_signed(b"some bytes", &weak));
    }
}
