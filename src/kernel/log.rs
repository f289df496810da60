// SPDX-License-Identifier: GPL-2.0

//! Lines for the kernel's log. The pure parts know only of `core::fmt`, which `pr_err!` and the
//! like take no arguments of; these do, and end the line.

#![forbid(unsafe_code)]

/// Logs an error.
macro_rules! log_err {
    ($($arg:tt)*) => {
        ::kernel::prelude::pr_err!("{}\n", ::core::format_args!($($arg)*))
    };
}

/// Logs a warning.
macro_rules! log_warn {
    ($($arg:tt)*) => {
        ::kernel::prelude::pr_warn!("{}\n", ::core::format_args!($($arg)*))
    };
}

/// Logs, by one of the others, what whoever may read a file can cause: not too often.
macro_rules! log_limited {
    ($log:ident, $($arg:tt)*) => {
        if $crate::rust::task::may_log() {
            $log!($($arg)*)
        }
    };
}

/// Logs an information.
macro_rules! log_info {
    ($($arg:tt)*) => {
        ::kernel::prelude::pr_info!("{}\n", ::core::format_args!($($arg)*))
    };
}

use core::fmt;

/// Where text is written to that the log is to have line by line. It takes no memory.
pub(crate) struct Lines {
    line: [u8; Self::LONGEST],
    len: usize,
}

impl Lines {
    /// Bytes of the longest line: more than a name of a bank, and the value of a PCR, have.
    const LONGEST: usize = 256;

    /// No line yet.
    pub(crate) const fn new() -> Self {
        Self {
            line: [0; Self::LONGEST],
            len: 0,
        }
    }

    /// Logs the line.
    fn end(&mut self) {
        let line = self.line.get(..self.len).unwrap_or_default();

        log_info!("{}", core::str::from_utf8(line).unwrap_or_default());
        self.len = 0;
    }
}

impl fmt::Write for Lines {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            if byte == b'\n' {
                self.end();
            } else {
                *self.line.get_mut(self.len).ok_or(fmt::Error)? = byte;
                self.len = self.len.saturating_add(1);
            }
        }
        Ok(())
    }
}
