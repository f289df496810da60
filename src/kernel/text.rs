// SPDX-License-Identifier: GPL-2.0

//! Text that grows.

#![forbid(unsafe_code)]

use core::fmt;
use kernel::prelude::*;

/// A text in memory that may fail to grow: writing to it then gives [`fmt::Error`]. It counts as
/// memory of the current task's control group, as it may stay for as long as a descriptor does.
pub(crate) struct Text(KVVec<u8>);

impl Text {
    /// An empty text.
    pub(crate) const fn new() -> Self {
        Self(KVVec::new())
    }

    /// Its bytes.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        self.0.as_slice()
    }
}

impl fmt::Write for Text {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0
            .extend_from_slice(text.as_bytes(), GFP_KERNEL_ACCOUNT)
            .map_err(|_| fmt::Error)
    }
}
