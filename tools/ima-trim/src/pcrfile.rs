// SPDX-License-Identifier: GPL-2.0

//! PCR values in the forms in which tools give them.
//!
//! What `tpm2_pcrread`, `tpm2_quote` and `tpm2_checkquote` print, the three binary forms that
//! `tpm2_quote -o` writes, and the tokens of ima_trim's own files.

use std::collections::BTreeMap;
use std::fmt::Write;

use ima_trim_pure::bank::Pcr;
use ima_trim_pure::bank::PcrSet;
use ima_trim_pure::instance::parse_hex;

use crate::algorithm::Algorithm;

/// The most banks in a selection: `TPM2_NUM_PCR_BANKS` of the TSS 2.0 library.
const MAX_BANKS: usize = 16;

/// Digests in one list: TPM 2.0 Library, Part 2, 10.9.4 (`TPML_DIGEST`).
const DIGESTS: usize = 8;

/// Bytes of a `TPMS_PCR_SELECTION` as the C structure of the TSS 2.0 library.
const C_SELECTION: usize = 8;

/// Bytes of a `TPML_DIGEST` as the C structure of the TSS 2.0 library.
const C_DIGESTS: usize = 4 + DIGESTS * C_DIGEST;

/// Bytes of a `TPM2B_DIGEST` as the C structure of the TSS 2.0 library.
const C_DIGEST: usize = 2 + 64;

/// Which PCRs of which banks, in an order: that of the values, and of a quote's digest.
pub type Selection = Vec<(Algorithm, PcrSet)>;

/// Why bytes are not PCR values.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PcrFileError {
    /// There is no value in it.
    #[error(
        "no PCR value in it: give what tpm2_pcrread, tpm2_checkquote or tpm2_quote -o give, or \
         tokens like sha256:10=<hex>"
    )]
    Empty,
    /// Something that looks like a value is none.
    #[error(
        "\"{0}\" is not a PCR value: <bank>:<pcr>=<hex>, with all digits of the bank's digest"
    )]
    Value(String),
    /// Two values for one PCR.
    #[error("two different values for {}:{}", .0.name(), .1)]
    Twice(Algorithm, Pcr),
    /// Binary, and neither of the forms that say which PCRs they are of.
    #[error(
        "binary, but neither what tpm2_quote -o writes (serialized or marshaled), nor as long as \
         the values of the PCRs in the quote are ({expected} bytes, not {found})"
    )]
    Form {
        /// Bytes of the values that the quote covers; 0 without a quote.
        expected: usize,
        /// Bytes that there are.
        found: usize,
    },
    /// A selection of what no PCR can be.
    #[error("it selects a bank or PCR that is not known here: number {0}")]
    Selection(u32),
}

/// Values of PCRs: [`Algorithm::size`] bytes each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PcrFile {
    values: BTreeMap<(Algorithm, Pcr), Vec<u8>>,
}

impl PcrFile {
    /// Reads values in whatever form they are.
    ///
    /// `quoted` is the selection of the quote that they come with. Without it the form `values` of
    /// `tpm2_quote -F` cannot be read, as it does not say what it has.
    ///
    /// # Errors
    ///
    /// If the form is not known, or it contradicts itself.
    pub fn parse(bytes: &[u8], quoted: Option<&Selection>) -> Result<Self, PcrFileError> {
        let text = std::str::from_utf8(bytes)
            .ok()
            .filter(|text| !text.contains(|c: char| c.is_control() && !c.is_ascii_whitespace()));

        let file = match text {
            Some(text) => Self::text(text)?,
            None => Self::binary(bytes, quoted)?,
        };
        if file.values.is_empty() {
            return Err(PcrFileError::Empty);
        }
        Ok(file)
    }

    /// The value of a PCR.
    #[must_use]
    pub fn get(&self, bank: Algorithm, pcr: Pcr) -> Option<&[u8]> {
        self.values.get(&(bank, pcr)).map(Vec::as_slice)
    }

    /// All values, by bank, then by PCR.
    pub fn iter(&self) -> impl Iterator<Item = (Algorithm, Pcr, &[u8])> {
        self.values
            .iter()
            .map(|(&(bank, pcr), value)| (bank, pcr, value.as_slice()))
    }

    /// The banks and PCRs, in the order of [`Algorithm`].
    #[must_use]
    pub fn selection(&self) -> Selection {
        Algorithm::ALL
            .into_iter()
            .map(|bank| {
                let pcrs = self.values.keys().filter(|key| key.0 == bank);
                (bank, pcrs.map(|key| key.1).collect::<PcrSet>())
            })
            .filter(|(_, pcrs)| !pcrs.is_empty())
            .collect()
    }

    /// Adds a value. False if there is another one already.
    fn add(&mut self, bank: Algorithm, pcr: Pcr, value: Vec<u8>) -> Result<(), PcrFileError> {
        match self.values.get(&(bank, pcr)) {
            Some(other) if *other != value => Err(PcrFileError::Twice(bank, pcr)),
            _ => {
                self.values.insert((bank, pcr), value);
                Ok(())
            }
        }
    }

    /// Lines as tpm2-tools print them, and tokens as ima_trim has them, in any mixture.
    ///
    /// What is neither is passed over: the tools print other things around the values.
    fn text(text: &str) -> Result<Self, PcrFileError> {
        let mut file = Self::default();
        // The bank that a line has named, until a line that is no value of it.
        let mut bank = None;

        for line in text.lines().map(str::trim) {
            if let (Some(of), Some((pcr, digits))) = (bank, printed(line)) {
                let value = pcr.and_then(|pcr| Some((pcr, value(of, digits)?)));
                let (pcr, value) = value.ok_or_else(|| PcrFileError::Value(line.to_owned()))?;
                file.add(of, pcr, value)?;
                continue;
            }
            bank = line.strip_suffix(':').and_then(Algorithm::named);
            for token in line.split_ascii_whitespace() {
                let Some((name, rest)) = token.split_once(':') else {
                    continue;
                };
                let (Some(of), Some((pcr, digits))) =
                    (Algorithm::named(name), rest.split_once('='))
                else {
                    continue;
                };
                let value = number(pcr).and_then(|pcr| Some((pcr, value(of, digits)?)));
                let (pcr, value) = value.ok_or_else(|| PcrFileError::Value(token.to_owned()))?;
                file.add(of, pcr, value)?;
            }
        }
        Ok(file)
    }

    fn binary(bytes: &[u8], quoted: Option<&Selection>) -> Result<Self, PcrFileError> {
        let known = serialized(bytes).or_else(|| marshaled(bytes));
        let (selection, values) = match (known, quoted) {
            (Some((selection, values)), _) => (algorithms(&selection)?, values),
            (None, Some(selection)) => (selection.clone(), bytes.to_vec()),
            (None, None) => {
                return Err(PcrFileError::Form {
                    expected: 0,
                    found: bytes.len(),
                })
            }
        };
        let mut file = Self::default();
        let mut rest = values.as_slice();
        let form = PcrFileError::Form {
            expected: selection
                .iter()
                .map(|(bank, pcrs)| bank.size() * pcrs.iter().count())
                .sum(),
            found: values.len(),
        };
        for (bank, pcrs) in &selection {
            for pcr in pcrs.iter() {
                let (value, after) = rest
                    .split_at_checked(bank.size())
                    .ok_or_else(|| form.clone())?;
                rest = after;
                file.add(*bank, pcr, value.to_vec())?;
            }
        }
        if rest.is_empty() {
            Ok(file)
        } else {
            Err(form)
        }
    }
}

/// The number of a bank and the bitmap of its PCRs, as a TPM has them.
type Raw = Vec<(u16, [u8; 4])>;

/// The form `serialized`: C structures of the TSS 2.0 library, little-endian.
///
/// `pcr_fwrite_serialized()` of tpm2-tools, `lib/pcr.c`. Gives the selection, and the values one
/// after the other.
fn serialized(bytes: &[u8]) -> Option<(Raw, Vec<u8>)> {
    let (banks, rest) = bytes.split_at_checked(4 + MAX_BANKS * C_SELECTION)?;
    let (count, selections) = banks.split_at_checked(4)?;
    let count = usize::try_from(u32::from_le_bytes(count.try_into().ok()?)).ok()?;
    let mut raw = Raw::new();

    if count > MAX_BANKS {
        return None;
    }
    for selection in selections.chunks_exact(C_SELECTION).take(count) {
        let (&[low, high, size], map) = selection.split_first_chunk::<3>()?;
        raw.push((
            u16::from_le_bytes([low, high]),
            bitmap(map.get(..4)?, size)?,
        ));
    }

    let (count, lists) = rest.split_at_checked(4)?;
    let count = usize::try_from(u32::from_le_bytes(count.try_into().ok()?)).ok()?;
    if lists.len() != count.checked_mul(C_DIGESTS)? {
        return None;
    }
    let mut values = Vec::new();
    for list in lists.chunks_exact(C_DIGESTS) {
        let (count, digests) = list.split_at_checked(4)?;
        let count = usize::try_from(u32::from_le_bytes(count.try_into().ok()?)).ok()?;
        if count > DIGESTS {
            return None;
        }
        for digest in digests.chunks_exact(C_DIGEST).take(count) {
            let (size, value) = digest.split_at_checked(2)?;
            let size = usize::from(u16::from_le_bytes(size.try_into().ok()?));
            values.extend_from_slice(value.get(..size)?);
        }
    }
    Some((raw, values))
}

/// The form `marshaled`: the same as a TPM would send it.
///
/// `pcr_fwrite_marshaled()` of tpm2-tools, `lib/pcr.c`.
fn marshaled(bytes: &[u8]) -> Option<(Raw, Vec<u8>)> {
    let mut rest = bytes;
    let mut raw = Raw::new();
    let mut values = Vec::new();

    for _ in 0..be32(&mut rest)? {
        let algorithm = be16(&mut rest)?;
        let size = *take(&mut rest, 1)?.first()?;
        raw.push((algorithm, bitmap(take(&mut rest, size.into())?, size)?));
    }
    for _ in 0..be32(&mut rest)? {
        for _ in 0..be32(&mut rest)? {
            let size = be16(&mut rest)?;
            values.extend_from_slice(take(&mut rest, size.into())?);
        }
    }
    rest.is_empty().then_some((raw, values))
}

/// The first `size` bytes of a bitmap, if it is not longer than any TPM has one.
fn bitmap(bytes: &[u8], size: u8) -> Option<[u8; 4]> {
    let mut map = [0; 4];

    let bytes = bytes.get(..usize::from(size))?;
    map.get_mut(..bytes.len())?.copy_from_slice(bytes);
    Some(map)
}

fn take<'a>(rest: &mut &'a [u8], size: usize) -> Option<&'a [u8]> {
    let (taken, after) = rest.split_at_checked(size)?;
    *rest = after;
    Some(taken)
}

fn be16(rest: &mut &[u8]) -> Option<u16> {
    Some(u16::from_be_bytes(take(rest, 2)?.try_into().ok()?))
}

fn be32(rest: &mut &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(take(rest, 4)?.try_into().ok()?))
}

/// The banks and PCRs of a selection as a TPM has it.
fn algorithms(raw: &[(u16, [u8; 4])]) -> Result<Selection, PcrFileError> {
    raw.iter()
        .map(|&(number, map)| {
            let bank = of_tpm(number).ok_or(PcrFileError::Selection(number.into()))?;
            Ok((bank, pcrs_of(&map).map_err(PcrFileError::Selection)?))
        })
        .collect()
}

/// The algorithm of this `TPM_ALG_ID`: TPM 2.0 Library, Part 2, 6.3.
pub(crate) fn of_tpm(number: u16) -> Option<Algorithm> {
    match number {
        0x0004 => Some(Algorithm::Sha1),
        0x000b => Some(Algorithm::Sha256),
        0x000c => Some(Algorithm::Sha384),
        0x000d => Some(Algorithm::Sha512),
        _ => None,
    }
}

/// The PCRs of a bitmap; the number of one that no TPM has as the error.
pub(crate) fn pcrs_of(map: &[u8]) -> Result<PcrSet, u32> {
    (0u32..)
        .zip(map)
        .flat_map(|(at, byte)| {
            (0u32..8)
                .filter(move |bit| byte & (1 << bit) != 0)
                .map(move |bit| 8 * at + bit)
        })
        .map(|number| Pcr::new(number).ok_or(number))
        .collect()
}

/// Bytes as two hexadecimal digits each.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut digits, byte| {
        // A string takes everything.
        let _ = write!(digits, "{byte:02x}");
        digits
    })
}

/// A line of tpm2-tools: `10: 0x41EC...`.
fn printed(line: &str) -> Option<(Option<Pcr>, &str)> {
    let (pcr, digits) = line.split_once(':')?;
    let digits = digits.trim().strip_prefix("0x")?;

    Some((number(pcr.trim()), digits))
}

fn number(digits: &str) -> Option<Pcr> {
    if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    Pcr::new(digits.parse().ok()?)
}

fn value(bank: Algorithm, digits: &str) -> Option<Vec<u8>> {
    let mut value = vec![0; bank.size()];

    parse_hex(digits.as_bytes(), &mut value).then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEN: [u8; 32] = [0xab; 32];

    fn pcr(number: u32) -> Pcr {
        Pcr::new(number).unwrap()
    }

    fn only_ten() -> Selection {
        vec![(Algorithm::Sha256, [pcr(10)].into_iter().collect())]
    }

    #[test]
    fn printed_by_tools() {
        let text = format!(
            "quoted: ff5443\nsignature:\n  alg: rsassa\n  sig: 0102\npcrs:\n  sha1:\n  sha256:\n    \
             0 : 0x{}\n    10: 0x{}\n  sm3_256:\n    1 : 0x00\ncalcDigest: 00\n",
            "0".repeat(64),
            hex(&TEN).to_uppercase()
        );
        let file = PcrFile::parse(text.as_bytes(), None).unwrap();
        assert_eq!(file.iter().count(), 2);
        assert_eq!(file.get(Algorithm::Sha256, pcr(10)), Some(&TEN[..]));
        assert_eq!(file.get(Algorithm::Sha256, pcr(0)), Some(&[0; 32][..]));
    }

    #[test]
    fn tokens() {
        let text = format!("sha256:10={} violations=1 instance=00\n", hex(&TEN));
        let file = PcrFile::parse(text.as_bytes(), None).unwrap();
        assert_eq!(file.selection(), only_ten());
        for bad in [
            "sha256:10=ab".to_owned(),
            format!("sha256:24={}", hex(&TEN)),
            format!("sha256:+1={}", hex(&TEN)),
            format!("sha256:\n  10: 0x{}", &hex(&TEN)[1..]),
        ] {
            assert!(
                matches!(
                    PcrFile::parse(bad.as_bytes(), None),
                    Err(PcrFileError::Value(_))
                ),
                "{bad}"
            );
        }
        let twice = format!("sha256:10={}\nsha256:10={}", hex(&TEN), hex(&[1; 32]));
        assert_eq!(
            PcrFile::parse(twice.as_bytes(), None),
            Err(PcrFileError::Twice(Algorithm::Sha256, pcr(10)))
        );
        assert_eq!(PcrFile::parse(b"nothing", None), Err(PcrFileError::Empty));
    }

    #[test]
    fn form_values() {
        let selection = only_ten();
        let file = PcrFile::parse(&TEN, Some(&selection)).unwrap();
        assert_eq!(file.get(Algorithm::Sha256, pcr(10)), Some(&TEN[..]));
        assert!(matches!(
            PcrFile::parse(&TEN, None),
            Err(PcrFileError::Form { .. })
        ));
        for size in [31, 33] {
            assert_eq!(
                PcrFile::parse(&vec![0xab; size], Some(&selection)),
                Err(PcrFileError::Form {
                    expected: 32,
                    found: size
                })
            );
        }
    }

    #[test]
    fn form_marshaled() {
        let mut bytes = vec![
            0, 0, 0, 1, 0, 0x0b, 3, 0, 4, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 32,
        ];
        bytes.extend(TEN);
        let file = PcrFile::parse(&bytes, None).unwrap();
        assert_eq!(file.selection(), only_ten());
        bytes.push(0);
        assert!(PcrFile::parse(&bytes, None).is_err());
    }

    #[test]
    fn form_serialized() {
        let mut bytes = vec![1, 0, 0, 0, 0x0b, 0, 3, 0, 4, 0, 0, 0];
        bytes.resize(132, 0);
        bytes.extend([1, 0, 0, 0, 1, 0, 0, 0, 32, 0]);
        bytes.extend(TEN);
        bytes.resize(132 + 4 + 532, 0);
        let file = PcrFile::parse(&bytes, None).unwrap();
        assert_eq!(file.selection(), only_ten());
        assert_eq!(file.get(Algorithm::Sha256, pcr(10)), Some(&TEN[..]));
        bytes.pop();
        assert!(PcrFile::parse(&bytes, None).is_err());
    }
}
