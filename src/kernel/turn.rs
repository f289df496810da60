// SPDX-License-Identifier: GPL-2.0

//! Turns: what one task at a time may do, for as long as it takes. Unlike a mutex, a turn is waited
//! for only until a signal arrives, and can pass to another task.

#![forbid(unsafe_code)]

use crate::rust::task::Interrupted;
use kernel::{
    new_condvar, new_mutex,
    prelude::*,
    sync::{
        Arc,
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
    /// No other lock is taken while it is held.
    #[pin]
    taken: Mutex<Taken>,
    /// Signalled when the turn is given back.
    #[pin]
    given_back: CondVar,
}

impl Turn {
    /// A turn that nobody has.
    pub(crate) fn new() -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                taken <- new_mutex!(Taken::Nobody, "ima_trim::Turn"),
                given_back <- new_condvar!("ima_trim::Turn"),
            }),
            GFP_KERNEL_ACCOUNT,
        )
    }

    /// Waits for the turn.
    pub(crate) fn take(self: &Arc<Self>) -> Result<Held, Interrupted> {
        let mut taken = self.taken.lock();

        while *taken != Taken::Nobody {
            if self.given_back.wait_interruptible(&mut taken) {
                return Err(Interrupted);
            }
        }
        *taken = Taken::Caller;
        Ok(Held(self.clone()))
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
}

/// The turn of whoever has this, which gives it back when it is dropped.
#[must_use = "the turn is given back at once"]
pub(crate) struct Held(Arc<Turn>);

impl Held {
    /// The same, for work that a caller leaves.
    pub(crate) fn for_work(self) -> Self {
        *self.0.taken.lock() = Taken::Work;
        self
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        *self.0.taken.lock() = Taken::Nobody;
        // Not all that wait do so for the turn.
        self.0.given_back.notify_all();
    }
}
