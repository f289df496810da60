// SPDX-License-Identifier: GPL-2.0

//! The parameters of the module, which do not change after the load.

use super::ffi;
use kernel::{
    prelude::*,
    str::CStr, //
};

/// Whether other writers of the measurement lists are kept out as long as the module is loaded.
pub(crate) fn guard() -> bool {
    // SAFETY: It was set before the module was initialised, and is not written to any more.
    unsafe { ffi::ima_trim_guard }
}

/// The name of what becomes of the memory if a request does not say it.
pub(crate) fn reclaim() -> &'static [u8] {
    // SAFETY: As above. It is a string of the module or, if given, one that is freed with it.
    let name = unsafe { ffi::ima_trim_reclaim };

    if name.is_null() {
        return &[];
    }
    // SAFETY: As above.
    unsafe { CStr::from_char_ptr(name) }.to_bytes()
}

/// Stub.
pub(crate) fn untested() -> bool {
    false
}

/// Stub.
pub(crate) fn reader_wait_ms() -> u32 {
    1000
}
