// SPDX-License-Identifier: GPL-2.0

//! IMA's hash table of digests, and taking records out of it.
//!
//! `ima_lookup_digest_entry()` (`ima_queue.c`) reads `hnext`, `entry`, `entry->pcr` and one digest,
//! under `ima_extend_list_mutex` and `rcu_read_lock()`. IMA itself takes no record out of the
//! table, so that is only done here, by who has the one [`Table`]:
//!
//! - by a sweep over the buckets, which unlinks marked records by their predecessor. `pprev` is
//!   never followed: it is garbage in a record restored over kexec, and points to freed memory in
//!   one whose table was exchanged. What the sweep does not meet is not in the table;
//! - by exchanging `entry` for a smaller one.
//!
//! Both go in batches, each in one hold of the mutex, which is left free for as long in between.
//! What a batch of a sweep looks at was read beforehand, without the mutex. What was unlinked or
//! exchanged is freed after a grace period.

use super::{
    chain::{
        marked,
        unlinked,
        Chain,
        Link, //
    },
    lock::{
        leave_free,
        nanoseconds,
        ListGuard, //
    },
    Ima,
};
use crate::rust::{
    claim::Claim,
    ffi,
    task, //
};
use core::ptr;
use kernel::{
    bindings::{
        self,
        hlist_head,
        hlist_node,
        list_head, //
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

/// How many nodes and buckets a hold of the mutex looks at, at most.
const BATCH: usize = 64;

/// How many buckets the hash table has: `IMA_MEASURE_HTABLE_SIZE` (`ima.h`). That it has as many on
/// this kernel is one of the things that the parameter `untested` takes the responsibility for.
const BUCKETS: usize = 1024;

/// How many buckets, from the first one, have violations: `ima_hash_key()` (`ima.h`) of a digest of
/// zeros is 0.
const VIOLATION_BUCKETS: usize = 1;

/// The right to take records out of IMA's digest hash table.
///
/// There is one, as it is made of the one claim. Whoever has it borrowed mutably is the only one
/// who takes records out of the table, exchanges entries, or frees what was in it.
pub(crate) struct Table {
    _claim: Claim,
}

impl Table {
    /// The right that comes with the claim.
    pub(super) fn new(claim: Claim) -> Self {
        Self { _claim: claim }
    }

    /// A sweep that unlinks marked records: with `all` wherever they are, and those too that
    /// earlier deletions left; else only violations. Takes `ima_extend_list_mutex` shortly.
    pub(super) fn sweep<'t>(&'t mut self, ima: &'t Ima, all: bool) -> Sweep<'t> {
        let list = ima.lock_list();

        // INVARIANT: The end is one of the two constants, and there is no node to go on after.
        Sweep {
            ima,
            _table: self,
            began: table(&list),
            deleted: list.counters().deleted(),
            bucket: 0,
            end: if all { BUCKETS } else { VIOLATION_BUCKETS },
            after: ptr::null_mut(),
            all,
            left: Chain::empty(),
        }
    }
}

/// Whether the kernel has no hash table (`CONFIG_IMA_DISABLE_HTABLE`).
pub(super) fn no_table() -> bool {
    // SAFETY: It is a constant of `helpers.c`.
    unsafe { ffi::ima_trim_htable_disabled }
}

/// The hash table, as it is now.
fn table(list: &ListGuard<'_>) -> *mut hlist_head {
    // SAFETY: By the invariants of `Symbol` it is there. It is exchanged under
    // `ima_extend_list_mutex`, which is held.
    unsafe { list.ima.symbols.ima_htable.as_ptr().read() }.cast()
}

/// Waits until all lookups have ended that may not have seen what was stored before.
pub(super) fn grace_period() {
    // SAFETY: The function has no requirements but that it may sleep.
    unsafe { bindings::synchronize_rcu() };
}

/// A sweep over buckets of the hash table, which unlinks marked records.
///
/// # Invariants
///
/// `end` is not more than [`BUCKETS`]. As long as the table is `began` and nothing was deleted
/// since, `after` is null or a node in the bucket `bucket`.
pub(super) struct Sweep<'t> {
    ima: &'t Ima,
    _table: &'t mut Table,
    /// The table at the beginning, and how many records were deleted by then: exchanging the table
    /// always comes with a deletion.
    began: *mut hlist_head,
    deleted: i64,
    bucket: usize,
    end: usize,
    /// The node to go on after, or null for the head of the bucket.
    after: *mut hlist_node,
    /// Whether to unlink those that earlier deletions left, too.
    all: bool,
    /// These, when they were unlinked.
    pub(super) left: Chain,
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

impl Sweep<'_> {
    /// Sweeps all buckets. Says whether it came to the end. `held` is told of each hold of the
    /// mutex, in nanoseconds.
    ///
    /// Between two holds there is `between`, or a pause if that is shorter than the hold was:
    /// whoever waits would otherwise come too late again and again.
    pub(super) fn run(&mut self, mut held: impl FnMut(u64), mut between: impl FnMut()) -> bool {
        loop {
            let list = self.ima.lock_list();
            let since = Instant::now();
            let swept = self.batch(&list);

            let readable = rcu::read_lock();
            drop(list);
            let free_since = Instant::<Monotonic>::now();
            let hold_ns = nanoseconds(since);

            held(hold_ns);
            if swept != Swept::More {
                return swept == Swept::All;
            }
            // SAFETY: The batch was swept, and RCU's read side entered, before the mutex was let
            // go.
            unsafe { self.look_ahead(readable) };
            between();
            leave_free(free_since, hold_ns);
            task::cond_resched();
        }
    }

    /// Sweeps on, over no more than [`BATCH`] nodes and buckets.
    fn batch(&mut self, list: &ListGuard<'_>) -> Swept {
        let mut seen = 0;

        if table(list) != self.began || list.counters().deleted() != self.deleted {
            return Swept::Exchanged;
        }
        while self.bucket < self.end {
            // SAFETY: The table is the one that the sweep began in, and the mutex, which covers it,
            // is held. `bucket` is less than `end`. `after` was not unlinked or freed since: only
            // who has the `Table` does that, or IMA's own deletion, when it has exchanged the
            // table.
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
                // SAFETY: The node is in the table, so it is a record's, and the mutex is held.
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
    /// held: the nodes of a bucket are far from each other, and the more there are, the fewer of
    /// them are in a cache.
    ///
    /// # Safety
    ///
    /// RCU's read side was entered with the mutex held, and the table had not been exchanged by
    /// then. The sweep is not at its end.
    unsafe fn look_ahead(&self, readable: rcu::Guard) {
        let mut bucket = self.bucket;
        // SAFETY: As in a batch: if the table is exchanged meanwhile, it and what is in it are
        // freed after a grace period (`ima_queue_staged_delete_all()`, `ima_queue.c`), which does
        // not end before the read side is left.
        let mut slot = unsafe { self.slot(bucket, self.after) };

        // One more, as the last one leads to a node.
        for _ in 0..=BATCH {
            // SAFETY: It is the head of a bucket or the link of a node in it, stored to atomically
            // (`hlist_add_head_rcu()`). Nobody else unlinks nodes. If the table is exchanged, see
            // above.
            let node = unsafe { Atomic::from_ptr(slot) }.load(Acquire);

            slot = if node.is_null() {
                bucket = bucket.saturating_add(1);
                if bucket >= self.end {
                    break;
                }
                // SAFETY: As above.
                unsafe { self.slot(bucket, ptr::null_mut()) }
            } else {
                // SAFETY: As above.
                unsafe { &raw mut (*node).next }
            };
        }
        drop(readable);
    }

    /// Where the first node of a bucket is found, or the one behind `after` if that is not null.
    ///
    /// # Safety
    ///
    /// The table that the sweep began in is not freed meanwhile. It has such a bucket, and `after`
    /// is in it.
    unsafe fn slot(&self, bucket: usize, after: *mut hlist_node) -> *mut *mut hlist_node {
        // SAFETY: By the safety requirement.
        unsafe {
            if after.is_null() {
                &raw mut (*self.began.add(bucket)).first
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

        if prev != marked() {
            // SAFETY: The function only compares.
            if !self.all || !unsafe { ffi::ima_trim_list_poisoned(next, prev) } {
                return false;
            }
            // SAFETY: A deletion, IMA's or ours, has let go of the record, as it poisons the links
            // last (`ima_queue_delete()`), and it is in no list. The caller takes it out of the
            // table now. Nothing but the links is used before a grace period has ended, by when all
            // else that IMA's deletion wrote has arrived.
            unsafe { self.left.push(link) };
        }
        // SAFETY: It has the mark of a record of a chain, or was just put in one. The passes over a
        // chain write no mark while a sweep runs.
        unsafe { Link::new(link) }.set_mark(unlinked());
        true
    }
}
