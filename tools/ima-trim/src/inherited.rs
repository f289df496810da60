// SPDX-License-Identifier: GPL-2.0

//! Descriptors that the service manager has kept for us, or that the program which was executed
//! before in this process has left: the only `unsafe` code of the program.

#![allow(unsafe_code)]

use std::os::fd::AsRawFd;
use std::os::fd::BorrowedFd;
use std::os::fd::FromRawFd;
use std::os::fd::OwnedFd;
use std::os::fd::RawFd;
use std::sync::Mutex;
use std::sync::PoisonError;

/// The first descriptor that is passed on: `SD_LISTEN_FDS_START` of `sd-daemon.h`.
const FIRST: RawFd = 3;

/// What a program that is replaced leaves: the number of the process, that of the descriptor, and
/// its name, with colons between them.
const BEQUEST: &str = "IMA_TRIM_DESCRIPTOR";

/// The names of those that were not asked for yet. Taken from the environment once.
static LEFT: Mutex<Option<Vec<(RawFd, String)>>> = Mutex::new(None);

/// The descriptor that was stored under a name, if there is one. It is given once.
pub(crate) fn descriptor(name: &str) -> Option<OwnedFd> {
    let mut left = LEFT.lock().unwrap_or_else(PoisonError::into_inner);
    let all = left.get_or_insert_with(passed);
    let index = all.iter().position(|(_, given)| given == name)?;
    let (number, _) = all.swap_remove(index);

    // A number that is not open would be somebody else's as soon as one is opened.
    // SAFETY: `number` is not negative, and the call uses it for nothing but asking.
    rustix::io::fcntl_getfd(unsafe { BorrowedFd::borrow_raw(number) }).ok()?;
    // SAFETY: The service manager has passed it to this process, as the environment says and as
    // it is open, for this use alone (sd_listen_fds(3)); or the program before this one in the same
    // process has kept it open for it. Nothing else in this program makes an `OwnedFd` of a number,
    // and each number is in the list once, and taken out above: so this is its only owner.
    let descriptor = unsafe { OwnedFd::from_raw_fd(number) };
    rustix::io::fcntl_setfd(&descriptor, rustix::io::FdFlags::CLOEXEC).ok()?;
    Some(descriptor)
}

/// What to have in the environment of a program that is executed in place of this one, so that it
/// finds a descriptor, which must stay open.
pub(crate) fn bequest(descriptor: BorrowedFd<'_>, name: &str) -> (&'static str, String) {
    let number = descriptor.as_raw_fd();
    (BEQUEST, format!("{}:{number}:{name}", std::process::id()))
}

/// What the environment says: what was bequeathed, or else `LISTEN_PID`, `LISTEN_FDS` and
/// `LISTEN_FDNAMES`. A program that was replaced has taken over what these name.
fn passed() -> Vec<(RawFd, String)> {
    if let Some(bequeathed) = bequeathed() {
        return vec![bequeathed];
    }
    let number = |name| std::env::var(name).ok()?.parse::<i32>().ok();
    let ours = number("LISTEN_PID").and_then(|pid| u32::try_from(pid).ok());
    if ours != Some(std::process::id()) {
        return Vec::new();
    }
    let count = number("LISTEN_FDS").unwrap_or(0).clamp(0, 1024);
    let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
    (FIRST..FIRST + count)
        .zip(names.split(':').map(str::to_owned))
        .collect()
}

/// What the program before this one in the same process has left.
fn bequeathed() -> Option<(RawFd, String)> {
    let text = std::env::var(BEQUEST).ok()?;
    let mut fields = text.splitn(3, ':');
    let pid: u32 = fields.next()?.parse().ok()?;
    let number: RawFd = fields.next()?.parse().ok()?;
    let name = fields.next()?.to_owned();
    (pid == std::process::id() && number >= FIRST).then_some((number, name))
}
