// SPDX-License-Identifier: GPL-2.0

//! Giving back the memory of records that were cut off the list.
//!
//! IMA's hash table of digests may still refer to them: `ima_lookup_digest_entry()` (`ima_queue.c`)
//! reads `hnext`, `entry`, `entry->pcr` and one digest, under `ima_extend_list_mutex` and
//! `rcu_read_lock()`. Nobody else takes records out of the table, so it is only changed here:
//!
//! - by a sweep over the buckets of the table, which unlinks marked records by their predecessor.
//!   `pprev` is never followed: it is garbage in a record restored over kexec, and points to freed
//!   memory in one whose table was exchanged. What the sweep does not meet is not in the table;
//! - by exchanging `entry` for a smaller one.
//!
//! Both go in batches, each in one hold of the mutex. What was unlinked or exchanged is freed after a
//! grace period.
//!
//! The links in `later` are ours after a cut: `next` leads to the next record, `prev` says what
//! becomes of this one. At the end records that stay have there what `list_del()` leaves, as after
//! IMA's own deletion.

use super::{
    list::{
        member,
        ListRecord, //
    },
    lock::nanoseconds,
    Ima,
};
use crate::{
    replay::Record,
    request::Reclaim,
    rust::{
        ffi,
        task, //
    },
};
use core::ptr::{
    self,
    NonNull, //
};
use kernel::{
    bindings::{
        self,
        hlist_head,
        hlist_node,
        list_head, //
    },
    prelude::*,
    sync::atomic::{
        Atomic,
        Relaxed,
        Release, //
    },
    time::{
        Instant,
        Monotonic, //
    },
};

/// How many records and buckets a hold of the mutex looks at, at most.
const BATCH: usize = 256;

/// How many entries a hold of the mutex exchanges, at most.
const EXCHANGES: usize = 64;

/// How many buckets the hash table has: `IMA_MEASURE_HTABLE_SIZE` (`ima.h`). It is checked against
/// the memory that the table has.
const BUCKETS: usize = 1024;

/// The bucket of violations: `ima_hash_key()` (`ima.h`) of a digest of zeros.
const VIOLATIONS: usize = 0;

/// Marks in `later.prev`: addresses of no list.
static MARKS: [u8; 2] = [0; 2];

/// The record is to be unlinked from the table.
fn marked() -> *mut list_head {
    (&raw const MARKS).cast_mut().cast()
}

/// The record was unlinked from the table.
fn unlinked() -> *mut list_head {
    (&raw const MARKS)
        .cast::<u8>()
        .wrapping_add(1)
        .cast_mut()
        .cast()
}

/// Whether the digest hash table is one that can be swept.
pub(super) fn can_sweep(ima: &Ima) -> bool {
    let _list = ima.extend_list_mutex();
    // SAFETY: The table is not null, as `Ima::new()` saw, and was allocated by `kzalloc_objs()`
    // (`ima_alloc_replace_htable()`, `ima_queue.c`). It is exchanged under the mutex, which is held,
    // and freed only after that.
    let size = unsafe { bindings::ksize(ima.table().cast_const().cast()) };

    no_table() || BUCKETS.checked_mul(size_of::<hlist_head>()) == Some(size)
}

/// Whether the kernel has no hash table (`CONFIG_IMA_DISABLE_HTABLE`).
fn no_table() -> bool {
    // SAFETY: It is a constant.
    unsafe { ffi::ima_trim_htable_disabled }
}

/// What a reclaim did.
#[derive(Clone, Copy, Default)]
pub(crate) struct Reclaimed {
    /// Bytes given back to the slab allocator, less those taken from it.
    pub(crate) bytes: u64,
    /// For how many nanoseconds the mutex was held at a time, at most.
    pub(crate) hold_ns: u64,
    /// Records that were left as they are, because somebody may still be using them.
    pub(crate) abandoned: u64,
    /// Records that were to be made small, and were not for lack of memory.
    pub(crate) uncompacted: u64,
}

impl Reclaimed {
    /// Notes a hold of the mutex.
    fn held(&mut self, since: Instant<Monotonic>) {
        self.hold_ns = self.hold_ns.max(nanoseconds(since));
    }
}

/// Records that were cut off the list: nobody but the digest hash table refers to them.
///
/// # Invariants
///
/// `first` is the link of the first of `records` records, linked by `next`. What the lookup in the
/// hash table does not read is ours.
#[must_use = "the records are reachable by nobody else"]
pub(crate) struct Cut<'i> {
    ima: &'i Ima,
    first: *mut list_head,
    records: u64,
    abandoned: bool,
}

impl<'i> Cut<'i> {
    /// # Safety
    ///
    /// The invariants of the type hold.
    pub(super) unsafe fn new(ima: &'i Ima, first: *mut list_head, records: u64) -> Self {
        // INVARIANT: By the safety requirement.
        Self {
            ima,
            first,
            records,
            abandoned: false,
        }
    }

    /// Nothing was cut off.
    pub(super) fn nothing(ima: &'i Ima) -> Self {
        // INVARIANT: There is no record.
        Self {
            ima,
            first: ptr::null_mut(),
            records: 0,
            abandoned: false,
        }
    }

    /// Somebody may still be using the records: they will be left as they are.
    pub(super) fn abandon(&mut self) {
        self.abandoned = true;
    }

    /// Gives back the memory of the records, as far as the mode says.
    ///
    /// Takes `ima_extend_list_mutex` shortly, several times, waits for a grace period, and lets
    /// others run. Runs to its end whatever signals arrive.
    pub(crate) fn reclaim(self, mode: Reclaim) -> Reclaimed {
        let mut done = Reclaimed::default();

        if self.abandoned {
            done.abandoned = self.records;
        } else if no_table() {
            self.each(|record, _| {
                // SAFETY: No hash table refers to the record, nor does anything else.
                done.bytes = done.bytes.saturating_add(unsafe { record.free() });
            });
        } else {
            match mode {
                Reclaim::Keep => self.keep(&mut done),
                Reclaim::Compact => self.compact(&mut done),
                Reclaim::Flush => self.flush(&mut done),
            }
        }
        done
    }

    /// Calls `f` for each record, with its link. It may free the record.
    fn each(&self, mut f: impl FnMut(ListRecord<'i>, Link)) {
        let mut next = self.first;

        for _ in 0..self.records {
            let link = next;
            // SAFETY: By the invariants, `link` is one of the records', whose links nobody else
            // uses.
            next = unsafe { (*link).next };
            // SAFETY: By the invariants; what the table uses is not written to.
            let Some(record) = (unsafe { ListRecord::from_link(self.ima, link) }) else {
                break;
            };

            // INVARIANT: By those of the cut.
            f(record, Link(link));
            task::cond_resched();
        }
    }

    /// Frees the template data, as `ima_queue_delete()` (`ima_queue.c`) does, and leaves the rest
    /// to the hash table.
    fn keep(&self, done: &mut Reclaimed) {
        self.each(|record, link| {
            done.bytes = done.bytes.saturating_add(record.free_template_data());
            link.poison();
        });
    }

    /// Takes the records out of the hash table, and with them all that earlier deletions left
    /// there, and frees everything.
    fn flush(&self, done: &mut Reclaimed) {
        self.each(|_, link| link.set(marked()));

        let mut sweep = Sweep::new(self.ima, 0, BUCKETS, true);
        let complete = sweep.run(done);
        grace_period();

        self.each(|record, link| {
            if complete || link.mark() == unlinked() {
                // SAFETY: The sweep left no reference in the table, and the lookups that may have
                // seen one have ended.
                done.bytes = done.bytes.saturating_add(unsafe { record.free() });
            } else {
                done.bytes = done.bytes.saturating_add(record.free_template_data());
                link.poison();
            }
        });
        sweep.left.each(|record, _| {
            // SAFETY: As above.
            done.bytes = done.bytes.saturating_add(unsafe { record.free() });
        });
    }

    /// Exchanges the entry of each record for the smallest one that the lookup of duplicates needs.
    /// Violations, which no lookup finds, are freed.
    fn compact(&self, done: &mut Reclaimed) {
        let mut violations = 0u64;
        let mut taken = 0u64;
        let mut next = self.first;
        let mut left = self.records;

        while left != 0 {
            // What the batch needs is allocated and filled before the mutex is taken.
            let mut batch: [Option<(ListRecord<'_>, Small)>; EXCHANGES] =
                [const { None }; EXCHANGES];

            for place in &mut batch {
                if left == 0 {
                    break;
                }
                left = left.saturating_sub(1);
                // INVARIANT: By those of the cut.
                let link = Link(next);
                // SAFETY: As in `each()`.
                let Some(record) = (unsafe { ListRecord::from_link(self.ima, next) }) else {
                    left = 0;
                    break;
                };
                // SAFETY: As in `each()`.
                next = unsafe { (*next).next };

                if record.is_violation() {
                    violations = violations.saturating_add(1);
                    link.set(marked());
                    continue;
                }
                link.set(ptr::null_mut());
                match Small::new(&record) {
                    Some(small) => {
                        taken = taken.saturating_add(small.size());
                        *place = Some((record, small));
                    }
                    None => done.uncompacted = done.uncompacted.saturating_add(1),
                }
            }

            let list = self.ima.extend_list_mutex();
            let since = Instant::now();
            for (record, small) in batch.iter_mut().filter_map(Option::take) {
                let old = record.entry;

                record.exchange(small);
                record.link().set(old.as_ptr().cast());
            }
            done.held(since);
            drop(list);
            task::cond_resched();
        }

        let buckets = VIOLATIONS.saturating_add(usize::from(violations != 0));
        Sweep::new(self.ima, VIOLATIONS, buckets, false).run(done);
        grace_period();

        self.each(|record, link| {
            let prev = link.mark();

            if prev == unlinked() {
                // SAFETY: The table does not refer to the record any more, and the lookups that may
                // have seen it there have ended.
                done.bytes = done.bytes.saturating_add(unsafe { record.free() });
                return;
            }
            if prev.is_null() || prev == marked() {
                done.bytes = done.bytes.saturating_add(record.free_template_data());
            } else if let Some(old) = NonNull::new(prev.cast::<u8>()) {
                // SAFETY: It is the entry that the record had, which nobody refers to any more.
                let freed = unsafe { record.with_entry(old).free_entry() };

                done.bytes = done.bytes.saturating_add(freed);
            }
            link.poison();
        });
        done.bytes = done.bytes.saturating_sub(taken);
    }
}

impl Ima {
    /// Reclaims what earlier deletions left in the hash table, be they the module's or IMA's own.
    pub(crate) fn reclaim_left(&self) -> Reclaimed {
        Cut::nothing(self).reclaim(Reclaim::Flush)
    }

    /// The hash table, as it is now.
    fn table(&self) -> *mut hlist_head {
        // SAFETY: The pointer is valid. It is only exchanged as a whole.
        unsafe { self.symbols.ima_htable.as_ptr().read_volatile() }.cast()
    }
}

/// Waits until all lookups have ended that may have begun before.
fn grace_period() {
    // SAFETY: The function has no requirements but that it may sleep.
    unsafe { bindings::synchronize_rcu() };
}

/// The link of a record that was cut off.
///
/// # Invariants
///
/// It is the member `later` of a record that is in no list, and nobody else uses it.
struct Link(*mut list_head);

impl Link {
    /// Leaves a mark.
    fn set(&self, mark: *mut list_head) {
        // SAFETY: By the invariants of the type. A sweep may be looking at it.
        unsafe { Atomic::from_ptr(&raw mut (*self.0).prev) }.store(mark, Relaxed);
    }

    /// The mark that was left.
    fn mark(&self) -> *mut list_head {
        // SAFETY: By the invariants of the type.
        unsafe { (*self.0).prev }
    }

    /// Leaves what `list_del()` leaves: the link is not ours any more.
    fn poison(self) {
        // SAFETY: By the invariants of the type.
        unsafe { ffi::ima_trim_list_poison(self.0) };
    }
}

/// A sweep over buckets of the hash table, which unlinks marked records.
struct Sweep<'i> {
    ima: &'i Ima,
    /// The table at the beginning, and how many records were deleted by then: exchanging the table
    /// always comes with a deletion.
    table: *mut hlist_head,
    deleted: i64,
    bucket: usize,
    end: usize,
    /// The node to go on after, or null for the head of the bucket.
    after: *mut hlist_node,
    /// Whether to unlink those that earlier deletions left, too.
    all: bool,
    /// These, when they were unlinked.
    left: Cut<'i>,
}

/// How a batch of a sweep ended.
#[derive(PartialEq, Eq)]
enum Swept {
    /// There is more.
    More,
    /// All buckets were swept.
    All,
    /// The table is not the one that it was.
    Exchanged,
}

impl<'i> Sweep<'i> {
    fn new(ima: &'i Ima, begin: usize, end: usize, all: bool) -> Self {
        let list = ima.extend_list_mutex();

        Self {
            ima,
            table: ima.table(),
            deleted: ima.counters_locked(&list).deleted(),
            bucket: begin,
            end,
            after: ptr::null_mut(),
            all,
            left: Cut::nothing(ima),
        }
    }

    /// Sweeps all buckets. Says whether it came to the end.
    fn run(&mut self, done: &mut Reclaimed) -> bool {
        loop {
            let list = self.ima.extend_list_mutex();
            let since = Instant::now();
            let counters = self.ima.counters_locked(&list);
            let swept = if self.ima.table() == self.table && counters.deleted() == self.deleted {
                // SAFETY: The mutex is held, and the table is still the same.
                unsafe { self.batch() }
            } else {
                Swept::Exchanged
            };

            done.held(since);
            drop(list);
            if swept != Swept::More {
                return swept == Swept::All;
            }
            task::cond_resched();
        }
    }

    /// Sweeps on, over no more than [`BATCH`] nodes and buckets.
    ///
    /// # Safety
    ///
    /// `ima_extend_list_mutex` is held, and since the sweep began the table was not exchanged.
    unsafe fn batch(&mut self) -> Swept {
        let mut seen = 0;

        while self.bucket < self.end {
            let mut slot = if self.after.is_null() {
                // SAFETY: There are that many buckets (`can_sweep()`).
                unsafe { &raw mut (*self.table.add(self.bucket)).first }
            } else {
                // SAFETY: The node was in this bucket and not unlinked. Nobody else unlinks nodes.
                unsafe { &raw mut (*self.after).next }
            };

            loop {
                if seen >= BATCH {
                    return Swept::More;
                }
                seen = seen.saturating_add(1);
                // SAFETY: It is the head of the bucket or the link of a node in it.
                let node = unsafe { *slot };
                if node.is_null() {
                    break;
                }
                // SAFETY: The node is in the table, so it is a record's.
                if unsafe { self.take(node) } {
                    // As `__hlist_del()` (`include/linux/list.h`), but from the predecessor.
                    //
                    // SAFETY: Nodes of a bucket are valid as long as they are in it. Whoever
                    // looks up meanwhile finds the rest of the bucket from either side.
                    unsafe {
                        let next = (*node).next;

                        Atomic::from_ptr(slot).store(next, Release);
                        if !next.is_null() {
                            Atomic::from_ptr(&raw mut (*next).pprev).store(slot, Relaxed);
                        }
                    }
                } else {
                    self.after = node;
                    // SAFETY: As above.
                    slot = unsafe { &raw mut (*node).next };
                }
            }
            self.bucket = self.bucket.saturating_add(1);
            self.after = ptr::null_mut();
        }
        Swept::All
    }

    /// Whether the record of this node is to be unlinked. Notes that it is, then.
    ///
    /// # Safety
    ///
    /// The node is that of a record in the table, and the mutex is held.
    unsafe fn take(&mut self, node: *mut hlist_node) -> bool {
        let layout = &self.ima.layout.queue_entry;
        let link = node
            .cast::<u8>()
            .wrapping_sub(layout.hnext)
            .wrapping_add(layout.later)
            .cast::<list_head>();
        // SAFETY: A record in the table is valid. Its links may be written to by IMA's own
        // deletion, which poisons them last, `prev` after `next`.
        let (next, prev) = unsafe {
            (
                Atomic::from_ptr(&raw mut (*link).next).load(Relaxed),
                Atomic::from_ptr(&raw mut (*link).prev).load(Relaxed),
            )
        };

        if prev == marked() {
            // INVARIANT: Only records of a cut have this mark.
            Link(link).set(unlinked());
            return true;
        }
        // SAFETY: The function only compares.
        if !self.all || !unsafe { ffi::ima_trim_list_poisoned(next, prev) } {
            return false;
        }
        // SAFETY: IMA's deletion has let go of the record, and it is in no list: the links are
        // free to be used.
        unsafe { (*link).next = self.left.first };
        // INVARIANT: As just said.
        Link(link).set(unlinked());
        // INVARIANT: One more, linked by `next`. It will not be used before the grace period, by
        // when all that IMA's deletion wrote to it has arrived.
        self.left.first = link;
        self.left.records = self.left.records.saturating_add(1);
        true
    }
}

/// An entry that has no more than the lookup of duplicates reads: a header without template, and
/// one digest behind it.
struct Small(NonNull<u8>);

impl Small {
    /// One that is found as the entry of this record is. `None` without memory.
    fn new(record: &ListRecord<'_>) -> Option<Self> {
        let ima = record.ima;
        let layout = &ima.layout;
        let header = layout.template_entry.size;
        let slot = ima.lookup_slot;
        let size = header.checked_add(ima.lookup_size)?;
        let from = record.digest_at(slot)?;
        let memory = ffi::ima_trim_zalloc(size).cast::<u8>();
        let small = Self(NonNull::new(memory)?);
        // What the lookup adds to `digests` to come to the digest.
        let offset = slot
            .checked_mul(layout.tpm_digest.size)
            .and_then(|offset| offset.checked_add(layout.tpm_digest.digest));
        let offset = offset?;

        // SAFETY: There is room for the header and the digest. The record has a digest in this slot
        // of at least this size (`Ima::new()`). The members are of these types.
        unsafe {
            let digest = memory.add(header);

            ptr::copy_nonoverlapping(from, digest, ima.lookup_size);
            memory
                .add(layout.template_entry.pcr)
                .cast::<i32>()
                .write_unaligned(record.pcr());
            memory
                .add(layout.template_entry.digests)
                .cast::<*mut u8>()
                .write_unaligned(digest.wrapping_sub(offset));
        }
        Some(small)
    }

    /// Bytes taken from the slab allocator.
    fn size(&self) -> u64 {
        // SAFETY: It was allocated.
        unsafe { bindings::ksize(self.0.as_ptr().cast_const().cast()) as u64 }
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        // SAFETY: It was allocated, and nobody uses it.
        unsafe { bindings::kfree(self.0.as_ptr().cast_const().cast()) };
    }
}

/// Frees what `kfree()` frees. Returns its size.
///
/// # Safety
///
/// `memory` is null, or was allocated by `kmalloc()` or the like, and nobody uses it any more.
unsafe fn kfree(memory: *const u8) -> u64 {
    // SAFETY: By the safety requirement.
    let size = unsafe { bindings::ksize(memory.cast()) };

    // SAFETY: By the safety requirement.
    unsafe { bindings::kfree(memory.cast()) };
    size as u64
}

/// Only for records of a [`Cut`].
impl<'r> ListRecord<'r> {
    /// The link.
    fn link(&self) -> Link {
        // INVARIANT: It is the member `later` of a record of a cut.
        Link(
            self.queue
                .as_ptr()
                .wrapping_add(self.ima.layout.queue_entry.later)
                .cast(),
        )
    }

    /// Exchanges the entry. The caller holds `ima_extend_list_mutex`.
    fn exchange(&self, small: Small) {
        let entry = self
            .queue
            .as_ptr()
            .wrapping_add(self.ima.layout.queue_entry.entry)
            .cast::<*mut u8>();

        // SAFETY: It is the member `entry`, which is aligned (`Layout`) and read by lookups only.
        // The release makes what is in the new one visible before it.
        unsafe { Atomic::from_ptr(entry) }.store(small.0.as_ptr(), Release);
        core::mem::forget(small);
    }

    /// The record with the entry that it had.
    ///
    /// # Safety
    ///
    /// `entry` is a valid `struct ima_template_entry`.
    unsafe fn with_entry(self, entry: NonNull<u8>) -> Self {
        // INVARIANT: By the safety requirement.
        Self { entry, ..self }
    }

    /// Frees the data of each field, and empties the field.
    ///
    /// An entry that was made small has no template, and so no field.
    fn free_template_data(&self) -> u64 {
        let layout = &self.ima.layout.field_data;
        let mut freed = 0u64;

        for index in 0..self.num_fields() {
            let Some(field) = self.field_data(index) else {
                break;
            };
            // SAFETY: The record has as many fields as its template; they are the cut's own.
            unsafe {
                let data = field.as_ptr().add(layout.data).cast::<*const u8>();
                let len = field.as_ptr().add(layout.len).cast::<u32>();

                freed = freed.saturating_add(kfree(data.read_unaligned()));
                data.write_unaligned(ptr::null());
                len.write_unaligned(0);
            }
        }
        freed
    }

    /// Frees the entry, with its digests and template data.
    ///
    /// # Safety
    ///
    /// Nobody refers to the entry any more.
    unsafe fn free_entry(self) -> u64 {
        let data = self.free_template_data();
        // SAFETY: By the safety requirement. Each was allocated by `kmalloc()` or the like
        // (`ima_api.c`, `ima_template.c`); an entry that was made small has its digest within.
        unsafe {
            let digests = match self.template() {
                Some(_) => kfree(member(self.entry, self.ima.layout.template_entry.digests)),
                None => 0,
            };

            data.saturating_add(digests)
                .saturating_add(kfree(self.entry.as_ptr()))
        }
    }

    /// Frees all of the record.
    ///
    /// # Safety
    ///
    /// Nobody refers to the record any more.
    unsafe fn free(self) -> u64 {
        // SAFETY: By the safety requirement; the queue entry was allocated by `kmalloc()`
        // (`ima_queue.c`).
        unsafe {
            let queue = self.queue.as_ptr();

            self.free_entry().saturating_add(kfree(queue))
        }
    }
}
