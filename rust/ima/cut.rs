// SPDX-License-Identifier: GPL-2.0

//! Cutting the head off the list.

use super::{
    access::Hold,
    chain::Chain,
    lock::{
        nanoseconds,
        ListGuard,
        MeasureGuard, //
    },
    reclaim::Cut,
    walk::{
        Position,
        NOT_COUNTED, //
    },
};
use crate::rust::openers::{
    self,
    Busy, //
};
use core::marker::PhantomData;
use kernel::{
    bindings::list_head,
    time::Instant, //
};

impl<'i> Hold<'i> {
    /// Takes `ima_measure_mutex`, and makes sure that nobody else has a list open.
    ///
    /// No walk, nor any record of one, can be used any more from here on: the next one is another.
    ///
    /// As long as it lasts, whoever opens or closes a measurement list file waits: no user memory
    /// may be accessed, nothing allocated, and nothing waited for but the mutex that follows.
    pub(crate) fn exclude(&mut self) -> Result<Exclusive<'i, '_>, Busy> {
        let measure = self.ima.lock_measure();
        // We are counted for this hold, and for the guard or the lock.
        let own = self.ima.counted.saturating_add(1);

        openers::alone(measure.readers()? as i64, own as i64)?;
        // INVARIANT: We are counted as often as we should, so nobody else is.
        Ok(Exclusive {
            measure,
            _hold: PhantomData,
        })
    }
}

/// `ima_measure_mutex` is held.
///
/// # Invariants
///
/// Nobody but us has a measurement list file open: neither [`super::Ima::guard`] nor the one
/// [`Hold`], which is borrowed mutably for `'h`, reads one now. While this exists, nobody can open
/// one.
pub(crate) struct Exclusive<'i, 'h> {
    measure: MeasureGuard<'i>,
    _hold: PhantomData<&'h mut Hold<'i>>,
}

/// What a cut is about to change.
struct Ends {
    /// The link of the first record.
    first: *mut list_head,
    /// The link of the first record behind the cut, or the head.
    rest: *mut list_head,
    /// The records that will be left.
    left: i64,
}

/// Looks at what a cut up to `position` would change: the list must be the one that was walked,
/// none of it staged, measuring must go on, and the links be right.
///
/// Nothing is staged as long as the list is of the generation of a [`Position`].
#[inline(always)]
fn ends(list: &ListGuard<'_>, position: &Position) -> Result<Ends, Busy> {
    let head = list.ima.symbols.ima_measurements.as_ptr();
    let last = position.last;

    if list.generation() != position.generation || list.is_suspended() {
        return Err(list.lost());
    }
    let left = list.ima.live.read().wrapping_sub(position.records);
    if left < 0 {
        return Err(Busy::Changed);
    }
    // The two links are looked at from both sides: a list that contradicts itself would be a BUG at
    // the next append, with the mutex held.
    //
    // SAFETY: `head`, `last` and their neighbours are links of this list, by the invariants of
    // `Position`, whose generation is that of the list. Under the mutex nobody else writes to them.
    unsafe {
        let first = (*head).next;
        let rest = (*last).next;

        if (*first).prev == head && (*rest).prev == last {
            Ok(Ends { first, rest, left })
        } else {
            Err(Busy::Corrupt)
        }
    }
}

impl Exclusive<'_, '_> {
    /// Makes sure that the records up to `position` could be cut off. Takes `ima_extend_list_mutex`
    /// shortly.
    pub(crate) fn check(&mut self, position: &Position) -> Result<(), Busy> {
        ends(&self.measure.ima.lock_list(), position).map(|_| ())
    }

    /// Cuts off the records up to `position`, in constant time. Takes `ima_extend_list_mutex`
    /// shortly.
    ///
    /// Returns what was cut off, and for how many nanoseconds the mutex was held. On an error
    /// nothing was changed.
    //
    // All that is done in the hold is in one function and a few cache lines: it comes after a long
    // walk, of which all is cold, and calls would make the hold longer by half.
    #[inline(never)]
    pub(crate) fn cut(&mut self, position: &Position) -> Result<(Cut, u64), Busy> {
        let ima = self.measure.ima;
        let list = ima.lock_list();
        let since = Instant::now();
        let Ends { first, rest, left } = ends(&list, position)?;
        let head = ima.symbols.ima_measurements.as_ptr();

        // As `__list_cut_position()` (`include/linux/list.h`) with nothing kept of the head.
        //
        // SAFETY: `head` and `rest` are links of this list, as `ends()` just saw under the mutex.
        // While it is held nobody else accesses them: who goes along the list without it has a
        // descriptor of a list, and there is nobody, by the invariants of the type. There are no
        // walks of this module either: they borrow the hold, which is borrowed mutably.
        unsafe {
            (*head).next = rest;
            (*rest).prev = head;
        }

        ima.live.set(left);
        if let Some(size) = position.serialised {
            let total = ima.serialised.as_ptr();

            // SAFETY: By the invariants of `Symbol` it is there. The mutex, which covers it, is
            // held.
            unsafe {
                if *total != NOT_COUNTED {
                    *total = (*total).saturating_sub(size);
                }
            }
        }
        drop(list);

        // SAFETY: They are out of the list, and linked from `first` to the last as before. Nobody
        // goes along them, as just said. Only the list and the hash table keep records
        // (`ima_queue.c`).
        let chain = unsafe { Chain::new(first, position.records.unsigned_abs()) };
        Ok((Cut(chain), nanoseconds(since)))
    }
}
