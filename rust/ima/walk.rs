// SPDX-License-Identifier: GPL-2.0

//! Walking along the list without a lock.

use super::{
    access::Hold,
    lock::Counters,
    record::ListRecord,
    Ima, //
};
use crate::{
    replay::{
        Piece,
        Records, //
    },
    rust::{
        openers::Busy,
        task::{
            self,
            Interrupted, //
        }, //
    },
};
use core::iter::from_fn;
use kernel::{
    bindings::list_head,
    sync::atomic::{
        Acquire,
        Atomic, //
    }, //
};

/// What `binary_runtime_size[]` says where nothing is counted: `ULONG_MAX`.
pub(super) const NOT_COUNTED: usize = usize::MAX;

impl Ima {
    /// Whether IMA counts what the records take when serialised (`CONFIG_IMA_KEXEC`).
    fn counts_serialised(&self) -> bool {
        // SAFETY: By the invariants of `Symbol` it is there. The size changes meanwhile, but
        // whether it is the mark does not, save once from a size to the mark; a cut looks again
        // under the mutex.
        unsafe { self.serialised.as_ptr().read_volatile() != NOT_COUNTED }
    }
}

impl Hold<'_> {
    /// Begins a walk along the list.
    ///
    /// Takes `ima_extend_list_mutex` shortly. The walk itself takes no lock.
    pub(crate) fn walk(&self) -> Result<Walk<'_>, Busy> {
        let began = self.counters();

        began.check()?;
        // INVARIANT: It is the head. Nothing is staged: that was just checked, and during the hold
        // nobody stages.
        Ok(Walk {
            hold: self,
            at: self.ima.symbols.ima_measurements.as_ptr(),
            records: 0,
            serialised: self.ima.counts_serialised().then_some(0),
            began,
        })
    }
}

/// A walk along the list, from its head.
///
/// Records that are appended meanwhile are met. The TPM may not have been extended by the last
/// ones yet.
///
/// No lock is taken: during the hold, records stay.
///
/// # Invariants
///
/// `at` is the head of the list or the link of a record in it, and nothing is staged. That stays so
/// during the hold, which keeps all out that stage or delete.
pub(crate) struct Walk<'h> {
    hold: &'h Hold<'h>,
    at: *mut list_head,
    records: u64,
    /// What the records take when serialised, if IMA counts that.
    serialised: Option<usize>,
    began: Counters,
}

impl<'h> Walk<'h> {
    /// IMA's counters when the walk began. What is concluded from them holds for all of the walk.
    pub(crate) fn began(&self) -> &Counters {
        &self.began
    }

    /// How many records were in the list when the walk began. The TPM had been extended by all of
    /// them by then, because appending holds the mutex until it is.
    pub(crate) fn listed(&self) -> u64 {
        u64::try_from(self.began.live).unwrap_or(0)
    }

    /// Where the walk is now, to be cut there: nowhere if it is still at the head.
    pub(crate) fn position(&self) -> Option<Position> {
        let records = i64::try_from(self.records)
            .ok()
            .filter(|records| *records > 0)?;

        // INVARIANT: That of the walk, which is at its last record.
        Some(Position {
            last: self.at,
            records,
            serialised: self.serialised,
            generation: self.began.generation(),
        })
    }

    /// The next record.
    fn next(&mut self) -> Option<ListRecord<'h>> {
        let ima = self.hold.ima;
        // SAFETY: `at` is a valid link by the invariants, whose `next` is only stored to atomically
        // (`list_add_tail_rcu()`).
        let next = unsafe { Atomic::from_ptr(&raw mut (*self.at).next) };
        // ORDERING: The acquire pairs with the release of `list_add_tail_rcu()`: what the record
        // is made of was written before.
        let next = next.load(Acquire);

        if next == ima.symbols.ima_measurements.as_ptr() {
            return None;
        }
        // SAFETY: It is the link of a record in the list, complete as just said, and stays that
        // during the hold, as nobody deletes records meanwhile.
        let record = unsafe { ListRecord::from_link(ima, next) }?;

        // INVARIANT: As just said.
        self.at = next;
        self.records = self.records.saturating_add(1);
        self.serialised = self
            .serialised
            .map(|size| size.saturating_add(record.serialised()));
        Some(record)
    }
}

impl<'h> Records for Walk<'h> {
    type Record = ListRecord<'h>;
    type Error = Interrupted;

    /// Sleeps.
    fn piece(&mut self, step: impl FnMut(&ListRecord<'h>) -> bool) -> Result<Piece, Interrupted> {
        task::checkpoint()?;

        let Ok(piece) = from_fn(|| self.next()).piece(step);
        Ok(piece)
    }
}

/// A place behind a record, reached by a [`Walk`].
///
/// # Invariants
///
/// As long as the list is of this generation, `last` is the link of its record number `records`,
/// which is more than 0, and nothing is staged.
pub(crate) struct Position {
    pub(super) last: *mut list_head,
    pub(super) records: i64,
    pub(super) serialised: Option<usize>,
    pub(super) generation: i64,
}
