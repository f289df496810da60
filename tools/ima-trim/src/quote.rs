// SPDX-License-Identifier: GPL-2.0

//! A quote of the TPM: what it says, and whether it is to be believed.
//!
//! The structures are those of the TPM 2.0 Library Specification, Part 2: `TPMS_ATTEST` (10.12.12)
//! with `TPMS_QUOTE_INFO` (10.12.4), `TPMT_SIGNATURE` (11.3.4) and `TPM2B_PUBLIC` (12.2.5); what
//! the digest of the PCRs is made of is in Part 3, 18.4 (`TPM2_Quote`). The forms of files are
//! those of tpm2-tools.

use p256::ecdsa::signature::hazmat::PrehashVerifier;
use p256::pkcs8::DecodePublicKey;
use p256::pkcs8::EncodePublicKey;
use rsa::traits::PublicKeyParts;
use rsa::BigUint;
use rsa::Pkcs1v15Sign;
use rsa::Pss;
use rsa::RsaPublicKey;
use sha2::Sha256;
use sha2::Sha384;
use sha2::Sha512;
use tpm2_protocol::data::Tpm2bDigest;
use tpm2_protocol::data::Tpm2bEccParameter;
use tpm2_protocol::data::Tpm2bPublicKeyRsa;
use tpm2_protocol::data::Tpm2bPublicWire;
use tpm2_protocol::data::TpmAlgId;
use tpm2_protocol::data::TpmEccCurve;
use tpm2_protocol::data::TpmlPcrSelection;
use tpm2_protocol::data::TpmsAttest;
use tpm2_protocol::data::TpmsPcrSelection;
use tpm2_protocol::data::TpmtEccScheme;
use tpm2_protocol::data::TpmtPublic;
use tpm2_protocol::data::TpmtPublicView;
use tpm2_protocol::data::TpmtSignature;
use tpm2_protocol::data::TpmtSymDefObject;
use tpm2_protocol::data::TpmuAttestView;
use tpm2_protocol::data::TpmuPublicIdView;
use tpm2_protocol::data::TpmuPublicParmsView;
use tpm2_protocol::data::TpmuSignatureView;
use tpm2_protocol::TpmError;
use tpm2_protocol::TpmField;

use crate::algorithm::Algorithm;
use crate::pcrfile::hex;
use crate::pcrfile::of_tpm;
use crate::pcrfile::pcrs_of;
use crate::pcrfile::PcrFile;
use crate::pcrfile::Selection;

/// The least bits of an RSA key. TPMs have made none that are shorter for attestation.
const MIN_RSA_BITS: usize = 2048;

/// `TPMA_OBJECT` of a key with which the TPM signs only what it made itself, and that cannot leave
/// it: `fixedTPM`, `restricted` and `sign` (Part 2, 8.3.2).
const ATTESTATION: u32 = (1 << 1) | (1 << 16) | (1 << 18);

/// Why a quote is not to be believed, or cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuoteError {
    /// It is no `TPMS_ATTEST`.
    #[error("the message is not one that a TPM signed as its own (TPMS_ATTEST): {0}")]
    Attest(TpmError),
    /// It attests something else than PCRs.
    #[error("the message attests something else than PCRs: no TPM_ST_ATTEST_QUOTE")]
    Kind,
    /// Bytes follow it.
    #[error("{0} bytes follow the {1}")]
    Trailing(usize, &'static str),
    /// A bank that cannot be replayed here.
    #[error("the quote covers a bank that cannot be replayed here (TPM_ALG_ID {0:#06x}): ask for sha256, sha384 or sha512")]
    Bank(u16),
    /// A PCR that no TPM has.
    #[error("the quote covers PCR {0}, which no TPM has")]
    Pcr(u32),
    /// The key cannot be read.
    #[error("the key is neither PEM nor TPM2B_PUBLIC or TPMT_PUBLIC, of RSA, P-256 or P-384: {0}")]
    Key(String),
    /// The key can be used for more than attestation.
    #[error(
        "the key may sign what others made, or may leave the TPM (TPMA_OBJECT {0:#010x}): it must \
         have fixedTPM, restricted and sign"
    )]
    Attributes(u32),
    /// The key is too weak.
    #[error("the key has {0} bits: {MIN_RSA_BITS} at least are wanted of RSA")]
    Weak(usize),
    /// The signature cannot be read.
    #[error("the signature is neither TPMT_SIGNATURE nor a plain one of {0}")]
    Signature(&'static str),
    /// A hash that is not safe, or not known.
    #[error("the signature uses another hash than sha256, sha384 or sha512 (TPM_ALG_ID {0:#06x})")]
    Hash(u16),
    /// It is not by the key.
    #[error("the signature is not by this key, or not of this message")]
    Forged,
    /// It is the answer to another question.
    #[error("the nonce is {found}, not the one that was sent, {expected}")]
    Nonce {
        /// What was sent.
        expected: String,
        /// What is signed.
        found: String,
    },
    /// A value is missing.
    #[error("the quote covers {}:{}, and there is no value of it", .0.name(), .1)]
    Missing(Algorithm, ima_trim_pure::bank::Pcr),
    /// A value is there that is not covered.
    #[error("there is a value of {}:{}, which the quote does not cover", .0.name(), .1)]
    Uncovered(Algorithm, ima_trim_pure::bank::Pcr),
    /// The values are not those that were signed.
    #[error("the PCR values hash to {found}, not to the digest that is signed, {expected}")]
    Digest {
        /// What is signed.
        expected: String,
        /// What the values hash to.
        found: String,
    },
}

/// The TPM's clock at the time of a quote: `TPMS_CLOCK_INFO`, Part 2, 10.11.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clock {
    /// Milliseconds that the TPM was powered.
    pub clock: u64,
    /// TPM resets. To be compared for equality only: a constant may have been added.
    pub reset_count: u32,
    /// Restarts and resumes since the last reset. The same holds.
    pub restart_count: u32,
    /// Whether no higher `clock` was ever reported.
    pub safe: bool,
}

/// What a quote says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quote {
    /// The qualifying data: the verifier's nonce.
    pub nonce: Vec<u8>,
    /// The TPM's clock.
    pub clock: Clock,
    /// Which PCRs, in the order in which they were hashed.
    pub selection: Selection,
    /// Their digest, with the hash of the signature.
    pub digest: Vec<u8>,
}

impl Quote {
    /// Reads the message of a quote: `tpm2_quote -m`. It is not believed by that.
    ///
    /// # Errors
    ///
    /// If it is not the `TPMS_ATTEST` of a quote with the magic number of what a TPM made, or
    /// covers what cannot be replayed.
    pub fn parse(message: &[u8]) -> Result<Self, QuoteError> {
        let (attest, rest) =
            <TpmsAttest as TpmField>::cast_prefix_field(message).map_err(QuoteError::Attest)?;
        if !rest.is_empty() {
            return Err(QuoteError::Trailing(rest.len(), "message"));
        }
        let TpmuAttestView::Quote(info) = attest.attested else {
            return Err(QuoteError::Kind);
        };

        let (selections, digest) =
            <TpmlPcrSelection as TpmField>::cast_prefix_field(info.as_bytes())
                .map_err(QuoteError::Attest)?;
        let (digest, _) =
            <Tpm2bDigest as TpmField>::cast_prefix_field(digest).map_err(QuoteError::Attest)?;
        let mut selection = Selection::new();
        let mut rest = selections.items_bytes();
        for _ in 0..selections.count() {
            let ((hash, map), after) = <TpmsPcrSelection as TpmField>::cast_prefix_field(rest)
                .map_err(QuoteError::Attest)?;
            rest = after;
            let bank = of_tpm(hash.value()).ok_or(QuoteError::Bank(hash.value()))?;
            selection.push((bank, pcrs_of(map).map_err(QuoteError::Pcr)?));
        }

        let clock = attest.clock_info;
        Ok(Self {
            nonce: attest.extra_data.data().to_vec(),
            clock: Clock {
                clock: clock.clock().map_err(QuoteError::Attest)?.value(),
                reset_count: clock.reset_count().map_err(QuoteError::Attest)?.value(),
                restart_count: clock.restart_count().map_err(QuoteError::Attest)?.value(),
                // The last byte: `TPMI_YES_NO`.
                safe: clock.as_bytes().last() == Some(&1),
            },
            selection,
            digest: digest.data().to_vec(),
        })
    }
}

/// The public part of an attestation key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PublicKey {
    /// RSA, of 2048 bits or more.
    Rsa(RsaPublicKey),
    /// ECDSA on NIST P-256.
    P256(p256::ecdsa::VerifyingKey),
    /// ECDSA on NIST P-384.
    P384(p384::ecdsa::VerifyingKey),
}

impl PublicKey {
    /// Reads a key: PEM (`tpm2_createak -f pem -u`, `tpm2_readpublic -f pem -o`), `TPM2B_PUBLIC`
    /// (the same with `-f tss`), or `TPMT_PUBLIC` (`-f tpmt`).
    ///
    /// # Errors
    ///
    /// If it cannot be read, is too weak, or its attributes say that it is no attestation key. PEM
    /// has no attributes: that the key is one must be known then.
    pub fn parse(bytes: &[u8]) -> Result<Self, QuoteError> {
        let key = match std::str::from_utf8(bytes) {
            Ok(text) if text.contains("-----BEGIN") => Self::pem(text)?,
            _ => Self::tpm(bytes)?,
        };
        match &key {
            Self::Rsa(rsa) if rsa.n().bits() < MIN_RSA_BITS => {
                Err(QuoteError::Weak(rsa.n().bits()))
            }
            _ => Ok(key),
        }
    }

    /// SHA-256 of the key as `SubjectPublicKeyInfo` in DER, in hexadecimal: what tells it from all
    /// others, whatever form it came in.
    ///
    /// # Errors
    ///
    /// If the key cannot be encoded.
    pub fn fingerprint(&self) -> Result<String, QuoteError> {
        let der = match self {
            Self::Rsa(key) => key.to_public_key_der(),
            Self::P256(key) => key.to_public_key_der(),
            Self::P384(key) => key.to_public_key_der(),
        }
        .map_err(|error| QuoteError::Key(error.to_string()))?;

        Ok(hex(hash(Algorithm::Sha256, &[der.as_bytes()]).as_slice()))
    }

    /// Whether this is a plain signature of these bytes by the key, with SHA-256.
    pub fn has_signed(&self, bytes: &[u8], signature: &[u8]) -> bool {
        Signature::plain(signature, self, Algorithm::Sha256)
            .is_ok_and(|signature| signature.verifies(bytes, self))
    }

    fn pem(text: &str) -> Result<Self, QuoteError> {
        let wrong = |error: p256::pkcs8::spki::Error| QuoteError::Key(error.to_string());

        // The first says best what is wrong with a key that is none of the three.
        if let Ok(key) = p256::ecdsa::VerifyingKey::from_public_key_pem(text) {
            return Ok(Self::P256(key));
        }
        if let Ok(key) = p384::ecdsa::VerifyingKey::from_public_key_pem(text) {
            return Ok(Self::P384(key));
        }
        RsaPublicKey::from_public_key_pem(text)
            .map(Self::Rsa)
            .map_err(wrong)
    }

    fn tpm(bytes: &[u8]) -> Result<Self, QuoteError> {
        let wrong = |error: TpmError| QuoteError::Key(error.to_string());
        let public = match Tpm2bPublicWire::cast(bytes) {
            Ok(public) => public.inner().map_err(wrong)?,
            Err(error) => match <TpmtPublic as TpmField>::cast_prefix_field(bytes) {
                Ok((public, [])) => public,
                _ => return Err(wrong(error)),
            },
        };
        let attributes = public.object_attributes.bits();
        if attributes & ATTESTATION != ATTESTATION {
            return Err(QuoteError::Attributes(attributes));
        }
        Self::of_public(&public)
    }

    fn of_public(public: &TpmtPublicView<'_>) -> Result<Self, QuoteError> {
        let wrong = |error: TpmError| QuoteError::Key(error.to_string());

        match (&public.parameters, &public.unique) {
            (TpmuPublicParmsView::Rsa(parameters), TpmuPublicIdView::Rsa(modulus)) => {
                // Part 2, 12.2.3.5: the exponent is the last field, and 0 stands for 65537.
                let exponent = parameters.as_bytes().last_chunk::<4>();
                let exponent = match exponent.map(|bytes| u32::from_be_bytes(*bytes)) {
                    None | Some(0) => 65537,
                    Some(exponent) => exponent,
                };
                RsaPublicKey::new(BigUint::from_bytes_be(modulus.data()), exponent.into())
                    .map(Self::Rsa)
                    .map_err(|error| QuoteError::Key(error.to_string()))
            }
            (TpmuPublicParmsView::Ecc(parameters), TpmuPublicIdView::Ecc(point)) => {
                // Part 2, 12.2.3.6: symmetric, scheme, curveID, kdf.
                let rest = parameters.as_bytes();
                let (_, rest) =
                    <TpmtSymDefObject as TpmField>::cast_prefix_field(rest).map_err(wrong)?;
                let (_, rest) =
                    <TpmtEccScheme as TpmField>::cast_prefix_field(rest).map_err(wrong)?;
                let (curve, _) =
                    <TpmEccCurve as TpmField>::cast_prefix_field(rest).map_err(wrong)?;
                let (x, rest) =
                    <Tpm2bEccParameter as TpmField>::cast_prefix_field(point.as_bytes())
                        .map_err(wrong)?;
                let (y, _) =
                    <Tpm2bEccParameter as TpmField>::cast_prefix_field(rest).map_err(wrong)?;
                let size = match curve {
                    TpmEccCurve::NistP256 => 32,
                    TpmEccCurve::NistP384 => 48,
                    other => return Err(QuoteError::Key(other.to_string())),
                };
                let off_curve = |()| QuoteError::Key("a point that is not on the curve".to_owned());
                // SEC 1, 2.3.3: an uncompressed point.
                let mut sec1 = vec![4];
                sec1.extend(padded(x.data(), size).ok_or_else(|| off_curve(()))?);
                sec1.extend(padded(y.data(), size).ok_or_else(|| off_curve(()))?);
                if size == 32 {
                    p256::ecdsa::VerifyingKey::from_sec1_bytes(&sec1)
                        .map(Self::P256)
                        .map_err(|_| off_curve(()))
                } else {
                    p384::ecdsa::VerifyingKey::from_sec1_bytes(&sec1)
                        .map(Self::P384)
                        .map_err(|_| off_curve(()))
                }
            }
            _ => Err(QuoteError::Key(public.object_type.to_string())),
        }
    }
}

/// The bytes of a number with zeros in front, as many as `size` says.
fn padded(bytes: &[u8], size: usize) -> Option<Vec<u8>> {
    let mut number = vec![0; size.checked_sub(bytes.len())?];

    number.extend_from_slice(bytes);
    Some(number)
}

/// A signature: which hash, and what its bytes are.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Signature {
    hash: Algorithm,
    form: Form,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Form {
    /// RSASSA-PKCS1-v1_5.
    Rsassa(Vec<u8>),
    /// RSASSA-PSS.
    Rsapss(Vec<u8>),
    /// One of the two, as a plain signature does not say which.
    Rsa(Vec<u8>),
    /// r and s, one after the other, each of the size of the curve.
    Ecdsa(Vec<u8>),
    /// The same in DER.
    EcdsaDer(Vec<u8>),
}

impl Signature {
    /// Reads a signature as `tpm2_quote -s` writes it: `TPMT_SIGNATURE`, or plain (`-f plain`),
    /// which does not say which hash it is of. `hash` is that.
    fn parse(bytes: &[u8], key: &PublicKey, hash: Algorithm) -> Result<Self, QuoteError> {
        if let Ok(((_, signature), [])) = <TpmtSignature as TpmField>::cast_prefix_field(bytes) {
            return Self::of_tpm(&signature, key);
        }
        Self::plain(bytes, key, hash)
    }

    fn plain(bytes: &[u8], key: &PublicKey, hash: Algorithm) -> Result<Self, QuoteError> {
        let form = match key {
            PublicKey::Rsa(rsa) if rsa.size() == bytes.len() => Form::Rsa(bytes.to_vec()),
            PublicKey::P256(_) | PublicKey::P384(_) if bytes.first() == Some(&0x30) => {
                Form::EcdsaDer(bytes.to_vec())
            }
            PublicKey::Rsa(_) => return Err(QuoteError::Signature("RSA")),
            PublicKey::P256(_) | PublicKey::P384(_) => return Err(QuoteError::Signature("ECDSA")),
        };
        Ok(Self { hash, form })
    }

    fn of_tpm(signature: &TpmuSignatureView<'_>, key: &PublicKey) -> Result<Self, QuoteError> {
        let wrong = |_| QuoteError::Signature("the key's algorithm");
        // Part 2, 11.2.1.2 and 11.2.4.3: the hash comes first.
        let (bytes, scheme) = match signature {
            TpmuSignatureView::Rsassa(rsa) => (rsa.as_bytes(), TpmAlgId::Rsassa),
            TpmuSignatureView::Rsapss(rsa) => (rsa.as_bytes(), TpmAlgId::Rsapss),
            TpmuSignatureView::Ecdsa(ecc) => (ecc.as_bytes(), TpmAlgId::Ecdsa),
            _ => return Err(QuoteError::Signature("RSASSA, RSAPSS or ECDSA")),
        };
        let (hash, rest) = <TpmAlgId as TpmField>::cast_prefix_field(bytes).map_err(wrong)?;
        let hash = of_tpm(hash.value()).ok_or(QuoteError::Hash(hash.value()))?;
        let form = match (scheme, key) {
            (TpmAlgId::Ecdsa, PublicKey::P256(_)) => Form::Ecdsa(r_and_s(rest, 32)?),
            (TpmAlgId::Ecdsa, PublicKey::P384(_)) => Form::Ecdsa(r_and_s(rest, 48)?),
            (TpmAlgId::Rsassa | TpmAlgId::Rsapss, PublicKey::Rsa(_)) => {
                let (bytes, _) =
                    <Tpm2bPublicKeyRsa as TpmField>::cast_prefix_field(rest).map_err(wrong)?;
                if scheme == TpmAlgId::Rsassa {
                    Form::Rsassa(bytes.data().to_vec())
                } else {
                    Form::Rsapss(bytes.data().to_vec())
                }
            }
            _ => return Err(QuoteError::Forged),
        };
        Ok(Self { hash, form })
    }

    /// Whether it is by the key and of the message.
    fn verifies(&self, message: &[u8], key: &PublicKey) -> bool {
        let digest = hash(self.hash, &[message]);

        match (key, &self.form) {
            (PublicKey::Rsa(key), Form::Rsassa(bytes)) => self.rsassa(key, &digest, bytes),
            (PublicKey::Rsa(key), Form::Rsapss(bytes)) => self.rsapss(key, &digest, bytes),
            (PublicKey::Rsa(key), Form::Rsa(bytes)) => {
                self.rsassa(key, &digest, bytes) || self.rsapss(key, &digest, bytes)
            }
            (PublicKey::P256(key), Form::Ecdsa(bytes)) => p256::ecdsa::Signature::from_slice(bytes)
                .is_ok_and(|signature| key.verify_prehash(&digest, &signature).is_ok()),
            (PublicKey::P384(key), Form::Ecdsa(bytes)) => p384::ecdsa::Signature::from_slice(bytes)
                .is_ok_and(|signature| key.verify_prehash(&digest, &signature).is_ok()),
            (PublicKey::P256(key), Form::EcdsaDer(bytes)) => {
                p256::ecdsa::Signature::from_der(bytes)
                    .is_ok_and(|signature| key.verify_prehash(&digest, &signature).is_ok())
            }
            (PublicKey::P384(key), Form::EcdsaDer(bytes)) => {
                p384::ecdsa::Signature::from_der(bytes)
                    .is_ok_and(|signature| key.verify_prehash(&digest, &signature).is_ok())
            }
            _ => false,
        }
    }

    fn rsassa(&self, key: &RsaPublicKey, digest: &[u8], bytes: &[u8]) -> bool {
        let scheme = match self.hash {
            Algorithm::Sha1 => return false,
            Algorithm::Sha256 => Pkcs1v15Sign::new::<Sha256>(),
            Algorithm::Sha384 => Pkcs1v15Sign::new::<Sha384>(),
            Algorithm::Sha512 => Pkcs1v15Sign::new::<Sha512>(),
        };
        key.verify(scheme, digest, bytes).is_ok()
    }

    /// The salt has the size of the hash in TPMs of FIPS 140, and is as long as there is room for
    /// in others (Part 1, Annex B.7).
    fn rsapss(&self, key: &RsaPublicKey, digest: &[u8], bytes: &[u8]) -> bool {
        let room = key.size().checked_sub(digest.len() + 2);
        [Some(digest.len()), room]
            .into_iter()
            .flatten()
            .any(|salt| {
                let scheme = match self.hash {
                    Algorithm::Sha1 => return false,
                    Algorithm::Sha256 => Pss::new_with_salt::<Sha256>(salt),
                    Algorithm::Sha384 => Pss::new_with_salt::<Sha384>(salt),
                    Algorithm::Sha512 => Pss::new_with_salt::<Sha512>(salt),
                };
                key.verify(scheme, digest, bytes).is_ok()
            })
    }
}

fn r_and_s(bytes: &[u8], size: usize) -> Result<Vec<u8>, QuoteError> {
    let parameter = |bytes| {
        <Tpm2bEccParameter as TpmField>::cast_prefix_field(bytes)
            .map_err(|_| QuoteError::Signature("ECDSA"))
    };
    let (r, rest) = parameter(bytes)?;
    let (s, _) = parameter(rest)?;
    // Numbers that are too long are those of a longer curve: of another key.
    let mut both = padded(r.data(), size).ok_or(QuoteError::Forged)?;
    both.extend(padded(s.data(), size).ok_or(QuoteError::Forged)?);
    Ok(both)
}

/// Checks a quote, and gives what it says.
///
/// The signature must be by the key, the nonce the one that was sent, and the values those of
/// exactly the PCRs that it covers. Whose key it is, and that these are the PCRs that were asked
/// for, is up to the caller.
///
/// # Errors
///
/// What is wrong first.
pub fn check(
    message: &[u8],
    signature: &[u8],
    key: &PublicKey,
    nonce: &[u8],
    values: &PcrFile,
) -> Result<Quote, QuoteError> {
    let quote = Quote::parse(message)?;
    // The digest is made with the hash of the signature.
    let hash_of = Algorithm::ALL
        .into_iter()
        .find(|hash| hash.size() == quote.digest.len())
        .unwrap_or(Algorithm::Sha256);
    let signature = Signature::parse(signature, key, hash_of)?;
    if signature.hash == Algorithm::Sha1 {
        return Err(QuoteError::Hash(0x0004));
    }
    if !signature.verifies(message, key) {
        return Err(QuoteError::Forged);
    }
    if quote.nonce != nonce {
        return Err(QuoteError::Nonce {
            expected: hex(nonce),
            found: hex(&quote.nonce),
        });
    }

    let mut covered = Vec::new();
    for (bank, pcrs) in &quote.selection {
        for pcr in pcrs.iter() {
            covered.push(
                values
                    .get(*bank, pcr)
                    .ok_or(QuoteError::Missing(*bank, pcr))?,
            );
        }
    }
    let is_covered = |bank, pcr| {
        let mut selections = quote.selection.iter();
        selections.any(|(of, pcrs)| *of == bank && pcrs.contains(pcr))
    };
    if let Some((bank, pcr, _)) = values.iter().find(|&(bank, pcr, _)| !is_covered(bank, pcr)) {
        return Err(QuoteError::Uncovered(bank, pcr));
    }
    let found = hash(signature.hash, &covered);
    if found != quote.digest {
        return Err(QuoteError::Digest {
            expected: hex(&quote.digest),
            found: hex(&found),
        });
    }
    Ok(quote)
}

/// The hash of these parts, [`Algorithm::size`] bytes.
fn hash(algorithm: Algorithm, parts: &[&[u8]]) -> Vec<u8> {
    let mut digest = algorithm.hash(parts).to_vec();

    digest.truncate(algorithm.size());
    digest
}
