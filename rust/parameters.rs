// SPDX-License-Identifier: GPL-2.0

//! The parameters of the module, which do not change after the load: those of mode 0444 are written
//! to before the module is initialised, and not any more. `chmod(2)` does not change that
//! (`add_sysfs_param()`, `kernel/params.c`).

use super::ffi;
use kernel::{
    prelude::*,
    str::CStr, //
};

/// Whether other writers of the measurement lists are kept out as long as the module is loaded.
pub(crate) fn guard() -> bool {
    // SAFETY: It is not written to any more.
    unsafe { ffi::ima_trim_guard }
}

/// The name of what becomes of the memory if a request does not say it.
pub(crate) fn reclaim() -> Result<KVec<u8>> {
    let mut copy = KVec::new();
    // SAFETY: It is not written to any more.
    let name = unsafe { ffi::ima_trim_reclaim };

    if !name.is_null() {
        // SAFETY: It is a string of the module, or one that is freed with the module, when none of
        // its code runs any more.
        let name = unsafe { CStr::from_char_ptr(name) };

        copy.extend_from_slice(name.to_bytes(), GFP_KERNEL)?;
    }
    Ok(copy)
}

/// For how long, in milliseconds, a request waits for readers of the measurement lists to go.
pub(crate) fn reader_wait_ms() -> u32 {
    // SAFETY: It is not written to any more.
    unsafe { ffi::ima_trim_reader_wait_ms }
}

/// Whether this kernel is newer than the newest on which the module was tested, and the parameter
/// `untested` does not say to take it for one that was.
pub(crate) fn untested() -> bool {
    // SAFETY: One is a constant, the other is not written to any more.
    unsafe { ffi::ima_trim_newer && !ffi::ima_trim_untested }
}
