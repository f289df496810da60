// SPDX-License-Identifier: GPL-2.0

//! The parts of ima_trim that know nothing of the kernel, built for the host to be tested there.
//!
//! These are the files of the module itself, not copies.

#![no_std]

#[path = "../../../../src/bank.rs"]
pub mod bank;
#[path = "../../../../src/btf.rs"]
pub mod btf;
#[path = "../../../../src/errno.rs"]
pub mod errno;
#[path = "../../../../src/layout.rs"]
pub mod layout;
#[path = "../../../../src/replay.rs"]
pub mod replay;
#[path = "../../../../src/report.rs"]
pub mod report;
#[path = "../../../../src/request.rs"]
pub mod request;
#[path = "../../../../src/values.rs"]
pub mod values;
