// SPDX-License-Identifier: GPL-2.0

//! The parts of ima_trim that know nothing of the kernel, for programs outside of it.
//!
//! These are the files of the module itself, not copies. This is the one place that includes them:
//! the host tests, the fuzz targets and other programs depend on this crate.

#![no_std]

#[path = "../../../src/pure/bank.rs"]
pub mod bank;
#[path = "../../../rust/btf.rs"]
pub mod btf;
#[path = "../../../src/pure/errno.rs"]
pub mod errno;
#[path = "../../../src/pure/instance.rs"]
pub mod instance;
#[path = "../../../rust/layout.rs"]
pub mod layout;
#[path = "../../../rust/openers.rs"]
pub mod openers;
#[path = "../../../src/pure/replay.rs"]
pub mod replay;
#[path = "../../../src/pure/report.rs"]
pub mod report;
#[path = "../../../src/pure/request.rs"]
pub mod request;
#[path = "../../../src/pure/signature.rs"]
pub mod signature;
#[path = "../../../src/pure/values.rs"]
pub mod values;
