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
//! Both go in batches, each in one hold of the mutex, which is left free for as long in between. What
//! a batch looks at was read beforehand, without the mutex: the nodes of a bucket are far from each
//! other, and the more there are, the fewer of them are in a cache. What was unlinked or exchanged is
//! freed after a grace period; template data, which no lookup reads, in the time that others have the
//! mutex, or that the grace period takes.
//!
//! Memory is freed by `kfree_bulk()`, each kind by itself and in the order of the list, in which it
//! was allocated: what comes from one slab goes back to it together.
//!
//! The links in `later` are ours after a cut: `next` leads to the next record, `prev` says what
//! becomes of this one. At the end records that stay have there what `list_del()` leaves, as after
//! IMA's own deletion.

use super::{
    list::{
        member,
        ListRecord, //
    },
    lock::{
        leave_free,
        nanoseconds, //
    },
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
use core::{
    ptr::{
        self,
        NonNull, //
    }, //
};
use kernel::{
    bindings::{
        self,
        hlist_head,
        hlist_node,
        list_head, //
    },
    ffi::{
        c_ulong,
        c_void, //
    },
    sync::{
        atomic::{
            Acquire,
            Atomic,
            Relaxed,
            Release, //
        },
        rcu, //
    },
    time::{
        Instant,
        Monotonic, //
    },
};

/// How many records a step of a pass has, a hold of the mutex exchanges, or, with the buckets, looks
/// at, at most.
const BATCH: usize = 64;

/// How many pieces of memory are freed together, at most.
const GATHERED: usize = 32;

/// How many buckets the hash table has: `IMA_MEASURE_HTABLE_SIZE` (`ima.h`).
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
    /// Records of which as much is left as `keep` leaves: with `compact` those that there was no memory
    /// for, with `flush` all if somebody else removed records meanwhile.
    pub(crate) kept: u64,
}

impl Reclaimed {
    /// Notes a hold of the mutex, in nanoseconds.
    fn held(&mut self, hold_ns: u64) {
        self.hold_ns = self.hold_ns.max(hold_ns);
    }
}

/// Records that were cut off the list: nobody but the digest hash table refers to them.
///
/// # Invariants
///
/// `first` is the link of the first of `records` records, linked by `next`. What the lookup in the
/// hash table does not read is ours.
#[must_use = "the records are reachable by nobody else"]
pub(crate) struct Cut {
    first: *mut list_head,
    records: u64,
}

// SAFETY: By the invariants of the type the records are its own, whichever task has it.
unsafe impl Send for Cut {}

impl Cut {
    /// # Safety
    ///
    /// The invariants of the type hold.
    pub(super) unsafe fn new(first: *mut list_head, records: u64) -> Self {
        // INVARIANT: By the safety requirement.
        Self { first, records }
    }

    /// Nothing was cut off: `flush` has what earlier deletions left in the hash table, be they the
    /// module's or IMA's own.
    pub(crate) fn nothing() -> Self {
        // INVARIANT: There is no record.
        Self {
            first: ptr::null_mut(),
            records: 0,
        }
    }

    /// Gives back the memory of the records, as far as the mode says.
    ///
    /// Takes `ima_extend_list_mutex` shortly, several times, waits for a grace period, and lets
    /// others run. Runs to its end whatever signals arrive.
    pub(crate) fn reclaim(self, ima: &Ima, mode: Reclaim) -> Reclaimed {
        let mut done = Reclaimed::default();
        let mut bins = Bins::new();
        let mut taken = 0;

        if no_table() {
            self.pass(ima).run(|record, _| {
                record.free_template_data(&mut bins);
                // SAFETY: No hash table refers to the record, nor does anything else.
                unsafe { record.free_rest(&mut bins) };
            });
        } else {
            match mode {
                Reclaim::Keep => self.keep(ima, &mut bins),
                Reclaim::Compact => taken = self.compact(ima, &mut bins, &mut done),
                Reclaim::Flush => self.flush(ima, &mut bins, &mut done),
            }
        }
        done.bytes = bins.bytes().saturating_sub(taken);
        done
    }

    /// A pass over the records.
    fn pass<'i>(&self, ima: &'i Ima) -> Pass<'i> {
        // INVARIANT: By those of the cut.
        Pass {
            ima,
            next: self.first,
            left: self.records,
        }
    }

    /// Frees the template data, as `ima_queue_delete()` (`ima_queue.c`) does, and leaves the rest
    /// to the hash table.
    fn keep(&self, ima: &Ima, bins: &mut Bins) {
        self.pass(ima).run(|record, link| {
            record.free_template_data(bins);
            link.poison();
        });
    }

    /// Takes the records out of the hash table, and with them all that earlier deletions left
    /// there, and frees everything.
    fn flush<'i>(&self, ima: &'i Ima, bins: &mut Bins, done: &mut Reclaimed) {
        self.pass(ima).run(|_, link| link.set(marked()));

        let mut data = self.pass(ima);
        let mut free_data = |record: ListRecord<'i>, _| record.free_template_data(bins);
        let mut sweep = Sweep::new(ima, 0, BUCKETS, true);
        let complete = sweep.run(done, || {
            data.step(&mut free_data);
        });
        let grace_period = GracePeriod::begin();
        data.run(free_data);
        grace_period.wait();

        self.pass(ima).run(|record, link| {
            if complete || link.mark() == unlinked() {
                // SAFETY: The sweep left no reference in the table, and the lookups that may have
                // seen one have ended.
                unsafe { record.free_rest(bins) };
            } else {
                done.kept = done.kept.saturating_add(1);
                link.poison();
            }
        });
        sweep.left.pass(ima).run(|record, _| {
            record.free_template_data(bins);
            // SAFETY: As above.
            unsafe { record.free_rest(bins) };
        });
    }

    /// Exchanges the entry of each record for the smallest one that the lookup of duplicates needs.
    /// Violations, which no lookup finds, are freed. Gives the bytes that the new entries take.
    fn compact(&self, ima: &Ima, bins: &mut Bins, done: &mut Reclaimed) -> u64 {
        let mut taken = 0u64;
        let mut violations = false;
        let mut pass = self.pass(ima);
        let mut more = true;

        while more {
            // What the batch needs is allocated and filled before the mutex is taken.
            let mut batch: [Option<(ListRecord<'_>, Small)>; BATCH] = [const { None }; BATCH];
            let mut places = batch.iter_mut();

            more = pass.step(&mut |record, link| {
                record.free_template_data(bins);
                if record.is_violation() {
                    violations = true;
                    link.set(marked());
                    return;
                }
                link.set(ptr::null_mut());
                match (Small::new(&record), places.next()) {
                    (Some(small), Some(place)) => {
                        taken = taken.saturating_add(small.size());
                        *place = Some((record, small));
                    }
                    _ => done.kept = done.kept.saturating_add(1),
                }
            });

            let list = ima.extend_list_mutex();
            let since = Instant::now();
            for (record, small) in batch.iter_mut().filter_map(Option::take) {
                let old = record.entry;

                record.exchange(small);
                record.link().set(old.as_ptr().cast());
            }
            drop(list);
            done.held(nanoseconds(since));
        }

        let buckets = VIOLATIONS.saturating_add(usize::from(violations));
        Sweep::new(ima, VIOLATIONS, buckets, false).run(done, || {});
        GracePeriod::begin().wait();

        self.pass(ima).run(|record, link| {
            let prev = link.mark();

            if prev == unlinked() {
                // SAFETY: The table does not refer to the record any more, and the lookups that may
                // have seen it there have ended.
                unsafe { record.free_rest(bins) };
                return;
            }
            if prev != marked() {
                if let Some(old) = NonNull::new(prev.cast::<u8>()) {
                    // SAFETY: It is the entry that the record had, which nobody refers to any more.
                    unsafe { record.with_entry(old).free_entry(bins) };
                }
            }
            link.poison();
        });
        taken
    }
}

/// A pass over the records of a cut, a few at a time.
///
/// # Invariants
///
/// `next` is the link of the first of `left` records of a cut, linked by `next`.
struct Pass<'i> {
    ima: &'i Ima,
    next: *mut list_head,
    left: u64,
}

impl<'i> Pass<'i> {
    /// Calls `f` for each of the next records, up to [`BATCH`], with its link, and lets others run.
    /// Says whether there are more. `f` may free the record.
    fn step(&mut self, f: &mut impl FnMut(ListRecord<'i>, Link)) -> bool {
        for _ in 0..BATCH {
            if self.left == 0 {
                return false;
            }
            let link = self.next;
            // INVARIANT: It is one record further.
            //
            // SAFETY: By the invariants, `link` is that of a record of a cut, which nobody else
            // uses.
            self.next = unsafe { (*link).next };
            self.left = self.left.saturating_sub(1);
            // SAFETY: By the invariants; what the table uses is not written to.
            let Some(record) = (unsafe { ListRecord::from_link(self.ima, link) }) else {
                continue;
            };

            // INVARIANT: By those of the pass.
            f(record, Link(link));
        }
        task::cond_resched();
        self.left != 0
    }

    /// Calls `f` for each record, with its link. It may free the record.
    fn run(mut self, mut f: impl FnMut(ListRecord<'i>, Link)) {
        while self.step(&mut f) {}
    }
}

impl Ima {
    /// The hash table, as it is now.
    fn table(&self) -> *mut hlist_head {
        // SAFETY: The pointer is valid. It is only exchanged as a whole.
        unsafe { self.symbols.ima_htable.as_ptr().read_volatile() }.cast()
    }
}

/// A grace period: when it has ended, so have all lookups that began before it did.
struct GracePeriod(c_ulong);

impl GracePeriod {
    /// Begins one. What was stored before is seen by all lookups that do not end with it.
    fn begin() -> Self {
        // SAFETY: The function has no requirements.
        Self(unsafe { bindings::start_poll_synchronize_rcu() })
    }

    /// Waits until it has ended.
    fn wait(self) {
        // SAFETY: The function has no requirements but that it may sleep.
        unsafe { bindings::cond_synchronize_rcu(self.0) };
    }
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
    left: Cut,
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
            left: Cut::nothing(),
        }
    }

    /// Sweeps all buckets. Says whether it came to the end.
    ///
    /// Between two holds of the mutex there is `between`, or a pause if that is shorter than the hold
    /// was: whoever waits would otherwise come too late again and again.
    fn run(&mut self, done: &mut Reclaimed, mut between: impl FnMut()) -> bool {
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
            let readable = rcu::read_lock();
            drop(list);
            let free_since = Instant::<Monotonic>::now();
            let hold_ns = nanoseconds(since);

            done.held(hold_ns);
            if swept != Swept::More {
                return swept == Swept::All;
            }
            // SAFETY: The batch found the table to be the same and more to sweep, and RCU's read side
            // was entered, before the mutex was let go.
            unsafe { self.look_ahead(readable) };
            between();
            leave_free(free_since, hold_ns);
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
            // SAFETY: By the safety requirement; `after` was not unlinked, and nobody else unlinks.
            let mut slot = unsafe { self.slot(self.bucket, self.after) };

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

    /// Reads what the next batch will look at, so that it need not wait for memory with the mutex
    /// held.
    ///
    /// # Safety
    ///
    /// RCU's read side was entered with the mutex held, and the table had not been exchanged by then.
    /// The sweep is not at its end.
    unsafe fn look_ahead(&self, readable: rcu::Guard) {
        let mut bucket = self.bucket;
        // SAFETY: The table is not freed before RCU's read side is left, as said below; `bucket` and
        // `after` are as the batch left them.
        let mut slot = unsafe { self.slot(bucket, self.after) };

        // One more, as the last one leads to a node.
        for _ in 0..=BATCH {
            // SAFETY: It is the head of a bucket or the link of a node in it, stored to atomically
            // (`hlist_add_head_rcu()`). Nobody else unlinks nodes, and if the table is exchanged
            // meanwhile, it and what is in it are freed after a grace period
            // (`ima_queue_staged_delete_all()`, `ima_queue.c`), which does not end before the read side
            // is left.
            let node = unsafe { Atomic::from_ptr(slot) }.load(Acquire);

            slot = if !node.is_null() {
                // SAFETY: As above.
                unsafe { &raw mut (*node).next }
            } else {
                bucket = bucket.saturating_add(1);
                if bucket >= self.end {
                    break;
                }
                // SAFETY: As above, and there is such a bucket, as `end` is at most `BUCKETS`.
                unsafe { self.slot(bucket, ptr::null_mut()) }
            };
        }
        drop(readable);
    }

    /// Where the first node of a bucket is found, or the one behind `after` if that is not null.
    ///
    /// # Safety
    ///
    /// The table is not freed meanwhile. There is such a bucket, and `after` is in it.
    unsafe fn slot(&self, bucket: usize, after: *mut hlist_node) -> *mut *mut hlist_node {
        // SAFETY: By the safety requirement; there are as many buckets as `can_sweep()` saw.
        unsafe {
            if after.is_null() {
                &raw mut (*self.table.add(bucket)).first
            } else {
                &raw mut (*after).next
            }
        }
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
        // What the lookup adds to `digests` to come to the digest.
        let offset = slot
            .checked_mul(layout.tpm_digest.size)?
            .checked_add(layout.tpm_digest.digest)?;
        let memory = ffi::ima_trim_zalloc(size).cast::<u8>();
        let small = Self(NonNull::new(memory)?);

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

/// Memory of one kind that nobody uses any more, gathered to be freed together.
///
/// # Invariants
///
/// The first `len` of `memory` are not null, were allocated by `kmalloc()` or the like, and are used
/// by nobody.
struct Bin {
    memory: [*mut c_void; GATHERED],
    len: usize,
    /// What all that was ever put in here takes.
    bytes: u64,
}

impl Bin {
    const fn new() -> Self {
        // INVARIANT: It is empty.
        Self {
            memory: [ptr::null_mut(); GATHERED],
            len: 0,
            bytes: 0,
        }
    }

    /// Puts what `kfree()` frees in here.
    ///
    /// # Safety
    ///
    /// `memory` is null, or was allocated by `kmalloc()` or the like, and nobody uses it any more.
    unsafe fn put(&mut self, memory: *const u8) {
        // SAFETY: By the safety requirement.
        let size = unsafe { bindings::ksize(memory.cast()) };

        // Null, or an allocation of no bytes.
        if size == 0 {
            return;
        }
        if self.len >= GATHERED {
            self.empty();
        }
        if let Some(place) = self.memory.get_mut(self.len) {
            *place = memory.cast_mut().cast();
            // INVARIANT: By the safety requirement, and as its size says.
            self.len = self.len.saturating_add(1);
            self.bytes = self.bytes.saturating_add(size as u64);
        }
    }

    /// Frees what is in here.
    fn empty(&mut self) {
        // SAFETY: By the invariants of the type. Without a cache it is `kfree_bulk()`
        // (`include/linux/slab.h`), which is inline.
        unsafe {
            bindings::kmem_cache_free_bulk(ptr::null_mut(), self.len, self.memory.as_mut_ptr())
        };
        // INVARIANT: Nothing is left.
        self.len = 0;
    }
}

impl Drop for Bin {
    fn drop(&mut self) {
        self.empty();
    }
}

/// A bin for each kind of memory that a record has.
struct Bins {
    data: Bin,
    digests: Bin,
    entries: Bin,
    queue_entries: Bin,
}

impl Bins {
    const fn new() -> Self {
        Self {
            data: Bin::new(),
            digests: Bin::new(),
            entries: Bin::new(),
            queue_entries: Bin::new(),
        }
    }

    /// What all that was ever put in here takes, in bytes.
    fn bytes(&self) -> u64 {
        [
            &self.data,
            &self.digests,
            &self.entries,
            &self.queue_entries,
        ]
        .iter()
        .fold(0, |bytes, bin| bytes.saturating_add(bin.bytes))
    }
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
    fn free_template_data(&self, bins: &mut Bins) {
        let layout = &self.ima.layout.field_data;

        for index in 0..self.num_fields() {
            let Some(field) = self.field_data(index) else {
                break;
            };
            // SAFETY: The record has as many fields as its template; they are the cut's own, and
            // their data were allocated by `kmalloc()` or the like (`ima_template_lib.c`,
            // `ima_template.c`).
            unsafe {
                let data = field.as_ptr().add(layout.data).cast::<*const u8>();
                let len = field.as_ptr().add(layout.len).cast::<u32>();

                bins.data.put(data.read_unaligned());
                data.write_unaligned(ptr::null());
                len.write_unaligned(0);
            }
        }
    }

    /// Frees the entry, with its digests, when its template data are freed.
    ///
    /// # Safety
    ///
    /// Nobody refers to the entry any more.
    unsafe fn free_entry(self, bins: &mut Bins) {
        // SAFETY: By the safety requirement. Each was allocated by `kmalloc()` or the like
        // (`ima_api.c`, `ima_template.c`); an entry that was made small has its digest within.
        unsafe {
            if self.template().is_some() {
                bins.digests
                    .put(member(self.entry, self.ima.layout.template_entry.digests));
            }
            bins.entries.put(self.entry.as_ptr());
        }
    }

    /// Frees all of the record, when its template data are freed.
    ///
    /// # Safety
    ///
    /// Nobody refers to the record any more.
    unsafe fn free_rest(self, bins: &mut Bins) {
        let queue = self.queue;

        // SAFETY: By the safety requirement; the queue entry was allocated by `kmalloc()`
        // (`ima_queue.c`).
        unsafe {
            self.free_entry(bins);
            bins.queue_entries.put(queue.as_ptr());
        }
    }
}
