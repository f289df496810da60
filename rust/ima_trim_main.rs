// SPDX-License-Identifier: GPL-2.0

//! The crate of the module: what files it has. It begins here and not in `src/` because `module!`
//! expands to code that is not safe, which `src/` forbids.

#[macro_use]
#[path = "../src/kernel/log.rs"]
mod log;

// What knows nothing of the kernel, and is compiled for the host from the same files.
#[path = "../src/pure/bank.rs"]
pub mod bank;
#[path = "../src/pure/errno.rs"]
pub mod errno;
#[path = "../src/pure/instance.rs"]
pub mod instance;
#[path = "../src/pure/replay.rs"]
pub mod replay;
#[path = "../src/pure/report.rs"]
pub mod report;
#[path = "../src/pure/request.rs"]
pub mod request;
#[path = "../src/pure/signature.rs"]
pub mod signature;
#[path = "../src/pure/values.rs"]
pub mod values;

#[path = "../src/kernel/account.rs"]
mod account;
#[path = "../src/kernel/evidence.rs"]
mod evidence;
#[path = "../src/kernel/files.rs"]
mod files;
#[path = "../src/kernel/known.rs"]
mod known;
#[path = "../src/kernel/ledger.rs"]
mod ledger;
#[path = "../src/kernel/machine.rs"]
mod machine;
#[path = "../src/kernel/module.rs"]
mod module;
#[path = "../src/kernel/permission.rs"]
mod permission;
#[path = "../src/kernel/plan.rs"]
mod plan;
#[path = "../src/kernel/refusal.rs"]
mod refusal;
#[path = "../src/kernel/restore.rs"]
mod restore;
#[path = "../src/kernel/text.rs"]
mod text;
#[path = "../src/kernel/trim.rs"]
mod trim;
#[path = "../src/kernel/trimmer.rs"]
mod trimmer;
#[path = "../src/kernel/turn.rs"]
mod turn;
#[path = "../src/kernel/verify.rs"]
mod verify;
#[path = "../src/kernel/violations.rs"]
mod violations;

/// Safe abstractions over what the `kernel` crate lacks: the only code that is not safe.
///
/// Whatever the rest of the crate does with what it can reach of this, it touches no memory that is
/// not its own.
#[path = "."]
mod rust {
    // What the host tests reach of these three is public, and more than is used here.
    #[allow(dead_code, unreachable_pub)]
    mod btf;
    pub(crate) mod claim;
    pub(crate) mod evidence;
    mod ffi;
    pub(crate) mod hash;
    pub(crate) mod ima;
    pub(crate) mod keyring;
    #[allow(dead_code, unreachable_pub)]
    mod layout;
    #[allow(unreachable_pub)]
    mod openers;
    pub(crate) mod parameters;
    pub(crate) mod random;
    pub(crate) mod root;
    pub(crate) mod securityfs;
    mod symbols;
    pub(crate) mod task;
    pub(crate) mod tpm;
    pub(crate) mod workqueue;
}

kernel::prelude::module! {
    type: rust::root::ImaTrim,
    name: "ima_trim",
    authors: ["The ima_trim developers"],
    description: "Trims the IMA measurement list by PCR values",
    license: "GPL",
}
