// SPDX-License-Identifier: GPL-2.0

//! Evidence of what was done: audit records, and records in the measurement list itself.
//!
//! Not supported: other events than those of this module.

use super::ffi;
use crate::report::Totals;
use kernel::{
    error::to_result,
    prelude::*,
    str::CStr, //
};

/// Writes an audit record, of the same class as IMA's own (`AUDIT_INTEGRITY_PCR`).
///
/// `cause` is one word; `records` and `violations` are those of this event. Sleeps; no lock may be
/// held that IMA takes. An error if the kernel makes no record, or does not keep it.
pub(crate) fn audit(
    cause: &'static CStr,
    records: u64,
    violations: u64,
    totals: &Totals,
) -> Result {
    // SAFETY: `cause` is a string.
    to_result(unsafe {
        ffi::ima_trim_audit(
            cause.as_char_ptr(),
            records,
            violations,
            totals.records,
            totals.violations,
            totals.trims,
        )
    })
}

/// What became of a measurement.
pub(crate) enum Measured {
    /// There is a record of it.
    Yes,
    /// The policy has no rule that measures it.
    NoRule,
}

/// Has IMA measure a text as critical data, with label `ima_trim` and event name `trim`.
///
/// `text` ends with a NUL, which is not measured: IMA takes the buffer for a name, too
/// (`process_buffer_measurement()`, `ima_main.c`), and looks for the end of that. No two texts may be
/// equal, for IMA does not measure the same again. Sleeps, takes `ima_extend_list_mutex`, and waits
/// for the TPM.
pub(crate) fn measure(text: &[u8]) -> Result<Measured> {
    let (0, len) = (
        text.last().copied().unwrap_or(1),
        text.len().saturating_sub(1),
    ) else {
        return Err(EINVAL);
    };

    // SAFETY: `text` has `len` bytes and a NUL behind.
    match to_result(unsafe { ffi::ima_trim_measure(text.as_ptr(), len) }) {
        Ok(()) => Ok(Measured::Yes),
        Err(error) if error == ENOENT => Ok(Measured::NoRule),
        Err(error) => Err(error),
    }
}
