// SPDX-License-Identifier: GPL-2.0

//! Evidence of what was done: audit records, and records in the measurement list itself.
//!
//! Not supported: other labels than the module's own.

use super::{
    ffi,
    workqueue::KernelThread, //
};
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

/// What IMA says of a text that it was to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Offered {
    /// It has measured it, in whatever way its policy says.
    Taken,
    /// It has measured the same before.
    Known,
    /// The policy has no rule that measures it.
    NoRule,
}

/// Has IMA measure a text as critical data of label `ima_trim`.
///
/// `event` is IMA's name for it. `text` ends with a NUL, which is not measured: IMA takes the
/// buffer for a name, too (`process_buffer_measurement()`, `ima_main.c`), and looks for the end of
/// that. No lock may be held: this sleeps, takes `ima_extend_list_mutex`, and waits for the TPM,
/// for which it has to be a thread of the kernel.
///
/// `ENODEV` if measuring is suspended, `ENOMEM`, `EINVAL`.
pub(crate) fn measure(_thread: &KernelThread, event: &CStr, text: &[u8]) -> Result<Offered> {
    let Some((0, data)) = text.split_last() else {
        return Err(EINVAL);
    };

    // SAFETY: `event` is a string; `text` is `data` and a NUL behind.
    let ret = unsafe { ffi::ima_trim_measure(event.as_char_ptr(), text.as_ptr(), data.len()) };
    match to_result(ret) {
        Ok(()) => Ok(Offered::Taken),
        Err(error) if error == EEXIST => Ok(Offered::Known),
        Err(error) if error == ENOENT => Ok(Offered::NoRule),
        Err(error) => Err(error),
    }
}
