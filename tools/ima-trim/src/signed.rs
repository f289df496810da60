// SPDX-License-Identifier: GPL-2.0

//! Signed requests: PKCS#7 with the request enclosed, as a module takes them that has certificates
//! built in.
//!
//! Only the kernel judges signatures. What is read here of a request tells which of the module's
//! files it is for, and nothing is done for it that would not be done anyway.

use std::io;
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::process::Stdio;

use der::asn1::ContextSpecific;
use der::asn1::ObjectIdentifier;
use der::asn1::OctetStringRef;
use der::AnyRef;
use der::Decode;
use der::Reader;
use der::TagNumber;
use ima_trim_pure::bank::Pcr;
use ima_trim_pure::request::MAX_REQUEST;

use crate::algorithm::Algorithm;
use crate::pcrs::Point;
use crate::pcrs::PointError;

/// Bytes of the longest signed request.
pub const MAX_SIGNED: usize = 32768;

/// `id-signedData` and `id-data` of RFC 5652.
const SIGNED_DATA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.7.2");
const DATA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.7.1");

/// The program that signs: it knows keys in files, and those in tokens by URI.
const OPENSSL: &str = "openssl";

/// Why something is no signed request.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignedError {
    /// It is too long.
    #[error("{0} bytes are more than a signed request has, {MAX_SIGNED}")]
    TooLong(usize),
    /// It is not PKCS#7.
    #[error("it is not PKCS#7 in DER with the request enclosed: {0}")]
    Form(String),
    /// What is enclosed is no request.
    #[error("what is enclosed is no request: {0}")]
    Request(String),
    /// It is for whichever load of the module there is.
    #[error(
        "the request has no instance=: a module that demands signatures takes none without it"
    )]
    Instance,
}

impl From<PointError> for SignedError {
    fn from(error: PointError) -> Self {
        Self::Request(error.to_string())
    }
}

/// What a request is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// To be written to `trim`.
    Trim,
    /// To be written to `starting_pcrs`.
    Restore,
}

impl Purpose {
    /// What a request is for. No text is valid for both: only one of the two has `records=`.
    ///
    /// # Errors
    ///
    /// If it is valid for neither, or not for one load of the module alone.
    pub fn of(request: &[u8]) -> Result<Self, SignedError> {
        if request.len() > MAX_REQUEST {
            return Err(SignedError::Request(format!(
                "it has {} bytes, and {MAX_REQUEST} are the most",
                request.len()
            )));
        }
        let has = |key: &[u8]| {
            let mut tokens = request.split(u8::is_ascii_whitespace);
            tokens.any(|token| token.starts_with(key))
        };
        let purpose = if has(b"records=") {
            Point::parse(request)?;
            Self::Restore
        } else {
            // Which banks and PCRs there are is for the machine to say.
            any().parse_request(request)?;
            Self::Trim
        };
        if has(b"instance=") {
            Ok(purpose)
        } else {
            Err(SignedError::Instance)
        }
    }
}

/// A point with every bank, of any PCR: for reading requests of machines that are not known.
pub(crate) fn any() -> Point {
    let pcr = Pcr::new(0).unwrap_or_else(|| unreachable!("TPMs have a PCR 0"));
    Point::reset(&Algorithm::ALL, pcr)
}

/// A signed request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signed {
    der: Vec<u8>,
    purpose: Purpose,
}

impl Signed {
    /// Whether this is to be taken for PKCS#7 and not for tokens, as the module does.
    pub fn is_one(bytes: &[u8]) -> bool {
        bytes.first() == Some(&0x30)
    }

    /// Reads a signed request. Its signature is not looked at.
    ///
    /// # Errors
    ///
    /// If the module could not take it for one, whoever signed it.
    pub fn parse(der: &[u8]) -> Result<Self, SignedError> {
        Ok(Self {
            der: der.to_vec(),
            purpose: Purpose::of(&enclosed(der)?)?,
        })
    }

    /// What is written into the module's file.
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// Which file that is.
    pub fn purpose(&self) -> Purpose {
        self.purpose
    }
}

/// What is enclosed in PKCS#7: RFC 5652, 3, 5.1 and 5.2.
fn enclosed(der: &[u8]) -> Result<Vec<u8>, SignedError> {
    if der.len() > MAX_SIGNED {
        return Err(SignedError::TooLong(der.len()));
    }
    let form = |error: &dyn ToString| SignedError::Form(error.to_string());
    let (kind, content) = AnyRef::from_der(der)
        .and_then(|info| info.sequence(typed::<AnyRef<'_>>))
        .map_err(|error| form(&error))?;
    let signed = content.filter(|_| kind == SIGNED_DATA);
    let signed = signed.ok_or_else(|| form(&"it is not signed data"))?;
    let content = signed.sequence(|fields| {
        // The version, and the hashes.
        AnyRef::decode(fields)?;
        AnyRef::decode(fields)?;
        let content = AnyRef::decode(fields)?;
        // Certificates and signatures.
        while !fields.is_finished() {
            AnyRef::decode(fields)?;
        }
        content.sequence(typed::<OctetStringRef<'_>>)
    });
    match content.map_err(|error| form(&error))? {
        (DATA, Some(text)) => Ok(text.as_bytes().to_vec()),
        (_, Some(_)) => Err(form(&"what is enclosed is not plain data")),
        (_, None) => Err(form(
            &"the request is not enclosed (openssl does that with -nodetach)",
        )),
    }
}

/// A type, and content of that type, if there is any: `ContentInfo` and `EncapsulatedContentInfo`.
fn typed<'a, T: Decode<'a>>(
    fields: &mut der::SliceReader<'a>,
) -> der::Result<(ObjectIdentifier, Option<T>)> {
    let kind = ObjectIdentifier::decode(fields)?;
    let content = ContextSpecific::<T>::decode_explicit(fields, TagNumber::N0)?;
    Ok((kind, content.map(|content| content.value)))
}

/// Signs a request with openssl.
///
/// `key` is what its option `-inkey` takes: a file, or the URI of a key in a token, for which
/// openssl must be configured.
///
/// # Errors
///
/// If the request is none, or openssl does not sign it.
pub fn sign(request: &[u8], certificate: &Path, key: &str) -> Result<Vec<u8>, SignError> {
    Purpose::of(request)?;
    let der = openssl(
        Command::new(OPENSSL)
            .args(["smime", "-sign", "-binary", "-nodetach", "-noattr"])
            .args(["-md", "sha256", "-outform", "der", "-signer"])
            .arg(certificate)
            .args(["-inkey", key]),
        request,
    )?;
    // What the module would refuse for its form is not to be sent.
    if enclosed(&der)? != request {
        return Err(SignError::Other);
    }
    Ok(der)
}

/// Why nothing was signed.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    /// It is no request.
    #[error(transparent)]
    Request(#[from] SignedError),
    /// There is no openssl.
    #[error("openssl: {0}; install it (apt install openssl)")]
    Program(#[from] io::Error),
    /// It does not sign.
    #[error("openssl does not sign it: {0}")]
    Refused(String),
    /// It has signed something else.
    #[error("openssl has enclosed something else than the request")]
    Other,
}

/// Signs any bytes: PKCS#1 v1.5 or ECDSA, with SHA-256.
///
/// # Errors
///
/// If openssl does not sign them.
pub(crate) fn sign_bytes(bytes: &[u8], key: &str) -> Result<Vec<u8>, SignError> {
    openssl(
        Command::new(OPENSSL).args(["dgst", "-sha256", "-binary", "-sign", key]),
        bytes,
    )
}

/// Runs openssl, which may ask for a passphrase at the terminal.
fn openssl(command: &mut Command, input: &[u8]) -> Result<Vec<u8>, SignError> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        match stdin.write_all(input) {
            // It has ended, and says why.
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(error.into()),
            _ => {}
        }
    }
    let output = child.wait_with_output()?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let text = String::from_utf8_lossy(&output.stderr);
    Err(SignError::Refused(text.trim().to_owned()))
}
