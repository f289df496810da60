// SPDX-License-Identifier: GPL-2.0

//! Tells a person at a terminal how far something is that takes longer than a second.
//!
//! It is one line on standard error, written anew a few times a second and removed in the end.
//! Nothing is written where standard error is no terminal: neither files nor the journal are of use
//! for it.

use std::io;
use std::io::IsTerminal;
use std::io::Write;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::sync::Condvar;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::thread;
use std::thread::JoinHandle;
use std::time::Duration;
use std::time::Instant;

/// How long something may take without a word.
const PATIENCE: Duration = Duration::from_secs(1);

/// How often the line is written anew.
const PACE: Duration = Duration::from_millis(250);

/// Something that is under way until this is dropped.
#[derive(Debug)]
pub(crate) struct Progress {
    shared: Arc<Shared>,
    /// Nobody is told if there is none.
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    done: AtomicU64,
    /// 0 if that is not known.
    of: AtomicU64,
    ended: Mutex<bool>,
    ends: Condvar,
}

impl Progress {
    /// Begins something: `what` is it, in a few words.
    pub(crate) fn new(what: &'static str) -> Self {
        let error = io::stderr();
        if error.is_terminal() {
            Self::told(error, what, PATIENCE, PACE)
        } else {
            Self {
                shared: Arc::default(),
                thread: None,
            }
        }
    }

    fn told(
        to: impl Write + Send + 'static,
        what: &'static str,
        patience: Duration,
        pace: Duration,
    ) -> Self {
        let shared = Arc::<Shared>::default();
        let theirs = Arc::clone(&shared);
        // Where no thread can be had nobody is told: it is of no account for what is under way.
        let thread = thread::Builder::new()
            .name("progress".to_owned())
            .spawn(move || tell(&theirs, to, what, patience, pace))
            .ok();
        Self { shared, thread }
    }

    /// Says that so much of so much is done, in whatever unit.
    pub(crate) fn at(&self, done: u64, of: u64) {
        self.shared.done.store(done, Ordering::Relaxed);
        self.shared.of.store(of, Ordering::Relaxed);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        *self
            .shared
            .ended
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = true;
        self.shared.ends.notify_all();
        if let Some(thread) = self.thread.take() {
            // It has no error that would be of interest.
            let _ = thread.join();
        }
    }
}

/// Writes the line until it ends, then removes it.
fn tell(shared: &Shared, mut to: impl Write, what: &str, patience: Duration, pace: Duration) {
    // A terminal that cannot be written to changes nothing for what is under way.
    let mut write = |text: &str| {
        let _ = to.write_all(text.as_bytes()).and_then(|()| to.flush());
    };
    let began = Instant::now();
    let mut told = false;
    let mut wait = patience;
    let mut ended = shared.ended.lock().unwrap_or_else(PoisonError::into_inner);

    loop {
        (ended, _) = shared
            .ends
            .wait_timeout_while(ended, wait, |ended| !*ended)
            .unwrap_or_else(PoisonError::into_inner);
        if *ended {
            break;
        }
        write(&format!("\r{}\x1b[K", line(shared, what, began.elapsed())));
        told = true;
        wait = pace;
    }
    if told {
        write("\r\x1b[K");
    }
}

/// The line: `verifying the archive: 42 %, 3 s`.
fn line(shared: &Shared, what: &str, elapsed: Duration) -> String {
    let done = shared.done.load(Ordering::Relaxed);
    let of = shared.of.load(Ordering::Relaxed);
    let seconds = elapsed.as_secs();
    match done.saturating_mul(100).checked_div(of) {
        Some(percent) => format!("{what}: {} %, {seconds} s", percent.min(100)),
        None => format!("{what}: {seconds} s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Standard error, in a test.
    #[derive(Clone, Default)]
    struct Screen(Arc<Mutex<Vec<u8>>>);

    impl Screen {
        fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }

        /// Waits until something is there.
        fn wait_for(&self, text: &str) {
            let began = Instant::now();
            while !self.text().contains(text) {
                assert!(began.elapsed() < Duration::from_secs(20), "{text:?}");
                thread::sleep(Duration::from_millis(1));
            }
        }
    }

    impl Write for Screen {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn begin(screen: &Screen, patience: Duration) -> Progress {
        let pace = Duration::from_millis(1);
        Progress::told(screen.clone(), "doing it", patience, pace)
    }

    #[test]
    fn what_is_soon_done_is_not_spoken_of() {
        let screen = Screen::default();
        let began = Instant::now();
        let progress = begin(&screen, Duration::from_secs(1000));
        progress.at(1, 2);
        drop(progress);
        assert_eq!(screen.text(), "");
        assert!(began.elapsed() < Duration::from_secs(20));
    }

    #[test]
    fn what_takes_long_is_spoken_of_until_it_ends() {
        let screen = Screen::default();
        let progress = begin(&screen, Duration::ZERO);
        screen.wait_for("\rdoing it: 0 s\x1b[K");
        progress.at(1, 3);
        screen.wait_for("\rdoing it: 33 %, ");
        progress.at(u64::MAX, 4);
        screen.wait_for("\rdoing it: 100 %, ");
        drop(progress);
        assert!(screen.text().ends_with(" s\x1b[K\r\x1b[K"));
    }
}
