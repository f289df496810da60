// SPDX-License-Identifier: GPL-2.0

//! Random numbers.

use kernel::bindings;

/// Random bytes, of the kernel's own generator. May be called in any context; before the generator
/// is seeded they are as good as it has them.
pub(crate) fn bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];

    // SAFETY: `N` bytes can be written.
    unsafe { bindings::get_random_bytes(bytes.as_mut_ptr().cast(), N) };
    bytes
}
