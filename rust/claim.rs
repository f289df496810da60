// SPDX-License-Identifier: GPL-2.0

//! The one claim on IMA.
//!
//! Much of what is safe in `rust/` is so because there is one [`super::ima::Ima`] only: one that
//! counts the readers that the module is, and one whose records are cut and freed. So finding it
//! takes a [`Claim`], which nobody but the module's root makes.

use kernel::sync::atomic::{
    Atomic,
    Relaxed, //
};

/// The right to find IMA. There is one, whatever is called how often.
pub(crate) struct Claim(());

impl Claim {
    /// The claim, if it was not taken yet.
    pub(super) fn take() -> Option<Self> {
        static TAKEN: Atomic<i32> = Atomic::new(0);

        // ORDERING: Nothing else is concluded from it.
        (TAKEN.xchg(1, Relaxed) == 0).then_some(Self(()))
    }
}
