// SPDX-License-Identifier: GPL-2.0

//! Descriptors that the service manager has kept for us, or that the program which was executed
//! before in this process has left: the only `unsafe` code of the program.

#![allow(unsafe_code)]

use std::os::fd::AsRawFd;
use std::os::fd::BorrowedFd;
use std::os::fd::FromRawFd;
use std::os::fd::OwnedFd;
use std::os::fd::RawFd;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::sync::Mutex;
use std::sync::PoisonError;

/// The first descriptor that is passed on: `SD_LISTEN_FDS_START` of `sd-daemon.h`.
const FIRST: RawFd = 3;

/// What a program that is replaced leaves: the number of the process, that of the descriptor, and
/// its name, with colons between them.
const BEQUEST: &str = "IMA_TRIM_DESCRIPTOR";

/// Those that were not asked for yet, by their names.
static LEFT: Mutex<Vec<(String, OwnedFd)>> = Mutex::new(Vec::new());

/// Takes what was passed to this process. To be called once, before anything is opened.
pub fn take() {
    let mut left = LEFT.lock().unwrap_or_else(PoisonError::into_inner);
    for (number, name) in passed() {
        // SAFETY: `number` is not negative, and the call uses it for nothing but asking.
        let open = rustix::io::fcntl_getfd(unsafe { BorrowedFd::borrow_raw(number) });
        if open.is_err() {
            continue;
        }
        // SAFETY: It is open, and main() calls this before it does anything else, when the standard
        // library has opened nothing but what is missing of 0, 1 and 2: so it was open when this
        // program was executed. The service manager has passed it for this use alone, as the
        // environment says (sd_listen_fds(3)); or the program before this one in the same process
        // has kept it open for it. Nothing else makes an `OwnedFd` of a number, and `passed` gives
        // each number once, and nothing at a second call: so this is its only owner.
        let descriptor = unsafe { OwnedFd::from_raw_fd(number) };
        if rustix::io::fcntl_setfd(&descriptor, rustix::io::FdFlags::CLOEXEC).is_ok() {
            left.push((name, descriptor));
        }
    }
}

/// The descriptor that was stored under a name, if there is one. It is given once.
pub(crate) fn descriptor(name: &str) -> Option<OwnedFd> {
    let mut left = LEFT.lock().unwrap_or_else(PoisonError::into_inner);
    let index = left.iter().position(|(given, _)| given == name)?;
    Some(left.swap_remove(index).1)
}

/// What to have in the environment of a program that is executed in place of this one, so that it
/// finds a descriptor, which must stay open.
pub(crate) fn bequest(descriptor: BorrowedFd<'_>, name: &str) -> (&'static str, String) {
    let number = descriptor.as_raw_fd();
    (BEQUEST, format!("{}:{number}:{name}", std::process::id()))
}

/// What the environment says: what was bequeathed, or else `LISTEN_PID`, `LISTEN_FDS` and
/// `LISTEN_FDNAMES`. A program that was replaced has taken over what these name. Each is given once.
fn passed() -> Vec<(RawFd, String)> {
    static ASKED: AtomicBool = AtomicBool::new(false);
    if ASKED.swap(true, Ordering::SeqCst) {
        return Vec::new();
    }
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
