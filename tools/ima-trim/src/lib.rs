// SPDX-License-Identifier: GPL-2.0

//! The whole IMA measurement list, however much of it the kernel has trimmed.
//!
//! IMA's list grows in kernel memory for as long as a machine runs. The module ima_trim removes its
//! beginning, and this library keeps it: records are archived before they are trimmed, and archive
//! and kernel together are served as the files that IMA itself has. A verifier finds here what it
//! needs to judge either.
//!
//! Data flows one way:
//!
//! ```text
//! securityfs, sysfs     kernel     what IMA, the module and the TPM say
//!                         |
//!                       record     one record in binary form; pcrs: what records replay to
//!                         |
//!        archive ------ list       every record since boot, by number and by offset
//!           |             |
//!        keeper         serve      archive, then trim; IMA's files, rendered (render)
//!                         |
//!                       fuse       the protocol of the kernel's FUSE
//! ```

// The one module that needs any says so, and why.
#![deny(unsafe_code)]

// Tests in here share files with those in tests/, which know this crate by its name.
#[cfg(test)]
extern crate self as ima_trim;

pub mod algorithm;
pub mod archive;
pub mod command;
pub mod config;
pub mod control;
pub mod daemon;
pub mod fuse;
pub mod inherited;
pub mod keeper;
pub mod kernel;
pub mod list;
mod metrics;
pub mod mounts;
pub mod pcrfile;
pub mod pcrs;
mod progress;
pub mod quote;
pub mod record;
pub mod render;
pub mod serve;
pub mod signed;
pub mod spool;
pub mod steps;
pub mod template;
pub mod verifier;
