// SPDX-License-Identifier: GPL-2.0

//! Records that were taken out of the list, linked by what was their link in it.
//!
//! Nobody but lookups in IMA's digest hash table can reach them. The links in `later` are ours:
//! `next` leads to the next record, `prev` says what becomes of this one. At the end records that
//! stay in the table have there what `list_del()` leaves, as after IMA's own deletion.

use super::{
    free::Bins,
    lock::ListGuard,
    record::{
        member,
        ListRecord, //
    },
    small::Small,
    Ima,
};
use crate::rust::{
    ffi,
    task, //
};
use core::{
    marker::PhantomData,
    ops::{
        Deref,
        DerefMut, //
    },
    ptr::{
        self,
        NonNull, //
    }, //
};
use kernel::{
    bindings::list_head,
    sync::atomic::{
        Atomic,
        Relaxed,
        Release, //
    }, //
};

/// How many records a step of a pass has, at most. `compact` has as many on its stack.
pub(super) const STEP: usize = 32;

/// Marks in `later.prev`: addresses of no list.
static MARKS: [u8; 2] = [0; 2];

/// The record is to be unlinked from the table.
pub(super) fn marked() -> *mut list_head {
    (&raw const MARKS).cast_mut().cast()
}

/// The record was unlinked from the table.
pub(super) fn unlinked() -> *mut list_head {
    (&raw const MARKS)
        .cast::<u8>()
        .wrapping_add(1)
        .cast_mut()
        .cast()
}

/// The link of a record that was taken out of the list.
///
/// # Invariants
///
/// It is the member `later` of a record that is in no list, and nobody else writes to it.
pub(super) struct Link(*mut list_head);

impl Link {
    /// # Safety
    ///
    /// The invariants of the type hold.
    pub(super) unsafe fn new(link: *mut list_head) -> Self {
        // INVARIANT: By the safety requirement.
        Self(link)
    }

    /// Leaves a mark.
    pub(super) fn set_mark(&self, mark: *mut list_head) {
        // SAFETY: By the invariants of the type. A sweep may be looking at it.
        unsafe { Atomic::from_ptr(&raw mut (*self.0).prev) }.store(mark, Relaxed);
    }

    /// The mark that was left.
    pub(super) fn mark(&self) -> *mut list_head {
        // SAFETY: By the invariants of the type.
        unsafe { (*self.0).prev }
    }

    /// Leaves what `list_del()` leaves.
    fn poison(self) {
        // SAFETY: By the invariants of the type.
        unsafe { ffi::ima_trim_list_poison(self.0) };
    }
}

/// Records that were taken out of the list.
///
/// # Invariants
///
/// `first` is the link of the first of `records` records, linked by `next`. They are in no list.
/// But for the digest hash table, which may refer to them, and of which lookups read `hnext`,
/// `entry`, `pcr` and one digest, they are ours.
pub(super) struct Chain {
    first: *mut list_head,
    records: u64,
}

// SAFETY: By the invariants of the type the records are its own, whichever task has it.
unsafe impl Send for Chain {}

impl Chain {
    /// No record.
    pub(super) const fn empty() -> Self {
        // INVARIANT: There is none.
        Self {
            first: ptr::null_mut(),
            records: 0,
        }
    }

    /// # Safety
    ///
    /// The invariants of the type hold.
    pub(super) unsafe fn new(first: *mut list_head, records: u64) -> Self {
        // INVARIANT: By the safety requirement.
        Self { first, records }
    }

    /// Adds a record in front.
    ///
    /// # Safety
    ///
    /// `link` is that of one more record for which the invariants of the type hold.
    pub(super) unsafe fn push(&mut self, link: *mut list_head) {
        // SAFETY: By the safety requirement the link is ours.
        unsafe { (*link).next = self.first };
        // INVARIANT: One more, linked by `next`.
        self.first = link;
        self.records = self.records.saturating_add(1);
    }

    /// A pass over the records, which stay.
    pub(super) fn pass<'c>(&'c mut self, ima: &'c Ima) -> Pass<'c> {
        // INVARIANT: By those of the chain, which is borrowed meanwhile.
        Pass {
            ima,
            next: self.first,
            left: self.records,
            _chain: PhantomData,
        }
    }

    /// The last pass over the records: each is freed, or left to the hash table.
    pub(super) fn last_pass(mut self, ima: &Ima, mut f: impl FnMut(LastRecord<'_>)) {
        self.pass(ima).run(|record| f(LastRecord(record)));
    }
}

/// A pass over the records of a chain, a few at a time.
///
/// # Invariants
///
/// `next` is the link of the first of `left` records of a chain, linked by `next`, to which nobody
/// else has access during `'c`.
pub(super) struct Pass<'c> {
    ima: &'c Ima,
    next: *mut list_head,
    left: u64,
    _chain: PhantomData<&'c mut Chain>,
}

impl<'c> Pass<'c> {
    /// Calls `f` for each of the next records, up to [`STEP`], and lets others run. Says whether
    /// there are more.
    pub(super) fn step(&mut self, f: &mut impl FnMut(CutRecord<'c>)) -> bool {
        for _ in 0..STEP {
            if self.left == 0 {
                return false;
            }
            let link = self.next;
            // INVARIANT: It is one record further.
            //
            // SAFETY: By the invariants `link` is that of a record of the chain. It is read before
            // `f` may free it.
            self.next = unsafe { (*link).next };
            self.left = self.left.saturating_sub(1);
            // SAFETY: By the invariants of the chain; what lookups read is not written to, but for
            // `entry`, which is exchanged for the like.
            if let Some(record) = unsafe { ListRecord::from_link(self.ima, link) } {
                // INVARIANT: It is a record of a chain, and is given out once in this pass.
                f(CutRecord(record));
            }
        }
        task::cond_resched();
        self.left != 0
    }

    /// Calls `f` for each record.
    pub(super) fn run(mut self, mut f: impl FnMut(CutRecord<'c>)) {
        while self.step(&mut f) {}
    }
}

/// A record of a [`Chain`].
///
/// # Invariants
///
/// Nobody else has access to the record but lookups in the hash table, as the chain says.
pub(super) struct CutRecord<'c>(ListRecord<'c>);

impl<'c> Deref for CutRecord<'c> {
    type Target = ListRecord<'c>;

    fn deref(&self) -> &ListRecord<'c> {
        &self.0
    }
}

impl CutRecord<'_> {
    /// The link.
    pub(super) fn link(&self) -> Link {
        let later = self.0.ima.layout.queue_entry.later;

        // INVARIANT: It is the member `later` of a record of a chain.
        Link(self.0.queue.as_ptr().wrapping_add(later).cast())
    }

    /// Exchanges the entry, and leaves the one that it had as mark.
    pub(super) fn exchange(&mut self, small: Small, _list: &ListGuard<'_>) {
        let offset = self.0.ima.layout.queue_entry.entry;
        let entry = self.0.queue.as_ptr().wrapping_add(offset).cast();

        // SAFETY: It is the member `entry`, which is aligned (`Layout`), and which lookups read
        // under `ima_extend_list_mutex`. That is held. The release makes what is in the new one
        // visible before it.
        unsafe { Atomic::<*mut u8>::from_ptr(entry) }.store(small.into_raw(), Release);
        self.link().set_mark(self.0.entry.as_ptr().cast());
    }

    /// Frees the data of each field, and empties the field. No lookup reads them, and as `self` is
    /// borrowed mutably, nobody still has what [`ListRecord::field`] gave of them.
    ///
    /// An entry that was made small has no template, and so no field.
    pub(super) fn free_template_data(&mut self, bins: &mut Bins) {
        let layout = &self.0.ima.layout.field_data;

        for index in 0..self.0.num_fields() {
            let Some(field) = self.0.field_data(index) else {
                break;
            };
            // SAFETY: The record has as many fields as its template. By the invariants of the type
            // nobody else has access to them. Their data were allocated by `kmalloc()` or the like
            // (`ima_template_lib.c`, `ima_template.c`), and are not freed again, as they are
            // emptied.
            unsafe {
                let data = field.as_ptr().add(layout.data).cast::<*const u8>();
                let len = field.as_ptr().add(layout.len).cast::<u32>();

                bins.data.put(data.read());
                data.write(ptr::null());
                len.write(0);
            }
        }
    }
}

/// A record in the last pass over its chain: nobody will come to it by the chain again.
pub(super) struct LastRecord<'c>(CutRecord<'c>);

impl<'c> Deref for LastRecord<'c> {
    type Target = CutRecord<'c>;

    fn deref(&self) -> &CutRecord<'c> {
        &self.0
    }
}

impl DerefMut for LastRecord<'_> {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.0
    }
}

impl LastRecord<'_> {
    /// Leaves the record to the hash table.
    pub(super) fn leave(self) {
        self.link().poison();
    }

    /// Frees all of the record.
    ///
    /// # Safety
    ///
    /// The hash table does not refer to the record, and no lookup is still reading it.
    pub(super) unsafe fn free(mut self, bins: &mut Bins) {
        self.free_template_data(bins);
        // SAFETY: By the safety requirement nobody reads the record, and as this is the last pass
        // nobody will. The queue entry was allocated by `kmalloc()` (`ima_queue.c`).
        unsafe {
            self.free_entry(self.0 .0.entry, bins);
            bins.queue_entries.put(self.0 .0.queue.as_ptr());
        }
    }

    /// Frees an entry of the record: the one that it has, or had before it was exchanged.
    ///
    /// # Safety
    ///
    /// `entry` is a `struct ima_template_entry` that is or was this record's, and that nobody uses
    /// any more, lookups included. Its template data were freed.
    pub(super) unsafe fn free_entry(&self, entry: NonNull<u8>, bins: &mut Bins) {
        let layout = &self.0 .0.ima.layout.template_entry;

        // SAFETY: By the safety requirement. Each was allocated by `kmalloc()` or the like
        // (`ima_api.c`, `ima_template.c`, `Small`); an entry that was made small has no template,
        // and its digest within.
        unsafe {
            if !member::<*const u8>(entry, layout.template_desc).is_null() {
                bins.digests.put(member(entry, layout.digests));
            }
            bins.entries.put(entry.as_ptr());
        }
    }
}
