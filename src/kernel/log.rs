// SPDX-License-Identifier: GPL-2.0

//! Lines for the kernel's log. The pure parts know only of `core::fmt`, which `pr_err!` and the like
//! take no arguments of; these do, and end the line.

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
