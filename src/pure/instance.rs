// SPDX-License-Identifier: GPL-2.0

//! The number by which one load of the module is told from all others.

#![forbid(unsafe_code)]

use core::fmt;

/// Bytes of the number.
pub const INSTANCE: usize = 16;

/// A number that was chosen at random when the module was loaded.
///
/// It is printed and read as 32 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instance(pub [u8; INSTANCE]);

impl Instance {
    /// Reads exactly 32 hexadecimal digits.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let mut number = [0; INSTANCE];

        parse_hex(text, &mut number).then_some(Self(number))
    }
}

impl fmt::Display for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Reads two hexadecimal digits into each byte of `bytes`. False if these are not just the digits
/// that there are.
#[must_use]
pub fn parse_hex(text: &[u8], bytes: &mut [u8]) -> bool {
    let mut pairs = text.chunks(2);
    let digit = |digit: &u8| char::from(*digit).to_digit(16);

    for byte in bytes {
        let Some([high, low]) = pairs.next() else {
            return false;
        };
        let (Some(high), Some(low)) = (digit(high), digit(low)) else {
            return false;
        };
        // Two digits of four bits.
        *byte = (high.wrapping_shl(4) | low) as u8;
    }
    pairs.next().is_none()
}
