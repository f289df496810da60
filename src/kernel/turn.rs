// SPDX-License-Identifier: GPL-2.0

//! Turns: what one task at a time may do, for as long as it takes. Unlike a mutex, a turn is waited
//! for only until a signal arrives, and can pass to another task.

#![forbid(unsafe_code)]

use kernel::{
    new_condvar, new_mutex,
    prelude::*,
    sync::{
        CondVar,
        Mutex, //
    },
};

/// Whose turn it is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Taken {
    /// Whoever wants it can take it.
    Nobody,
    /// A task that called.
    Caller,
    /// Work that a caller has left.
    Work,
}

/// Something that one task at a time does.
#[pin_data]
pub(crate) struct Turn {
    /// Never held together with another lock.
    #[pin]
    taken: Mutex<Taken>,
    /// Signalled when the turn is given back.
    #[pin]
    given_back: CondVar,
}

/// A signal has ended the waiting.
#[derive(Clone, Copy)]
pub(crate) struct Interrupted;

impl Turn {
    /// A turn that nobody has.
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            taken <- new_mutex!(Taken::Nobody, "ima_trim::Turn"),
            given_back <- new_condvar!("ima_trim::Turn"),
        })
    }

    /// Waits for the turn.
    pub(crate) fn take(&self) -> Result<Held<'_>, Interrupted> {
        let mut taken = self.taken.lock();

        while *taken != Taken::Nobody {
            if self.given_back.wait_interruptible(&mut taken) {
                return Err(Interrupted);
            }
        }
        *taken = Taken::Caller;
        Ok(Held(self))
    }

    /// Waits as long as it is the turn of work that a caller has left.
    pub(crate) fn await_work(&self) -> Result<(), Interrupted> {
        let mut taken = self.taken.lock();

        while *taken == Taken::Work {
            if self.given_back.wait_interruptible(&mut taken) {
                return Err(Interrupted);
            }
        }
        Ok(())
    }

    /// Goes on with a turn that was passed on.
    pub(crate) fn go_on(&self, _passed: Passed) -> Held<'_> {
        Held(self)
    }
}

/// The turn of whoever has this, which gives it back when it is dropped.
pub(crate) struct Held<'t>(&'t Turn);

impl Held<'_> {
    /// Passes the turn on, to work that is to be begun.
    pub(crate) fn pass(self) -> Passed {
        *self.0.taken.lock() = Taken::Work;
        core::mem::forget(self);
        Passed(())
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        *self.0.taken.lock() = Taken::Nobody;
        // Not all that wait do so for the turn.
        self.0.given_back.notify_all();
    }
}

/// A turn that was passed on: nobody has it until [`Turn::go_on`].
#[must_use = "nobody else could ever take the turn"]
pub(crate) struct Passed(());
