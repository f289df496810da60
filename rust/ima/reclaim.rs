// SPDX-License-Identifier: GPL-2.0

//! Giving back the memory of records that were cut off the list, as far as the mode says.
//!
//! The digest hash table may still refer to them: see [`super::table`]. What was unlinked from it
//! or exchanged is freed after a grace period; template data, which no lookup reads, in the time
//! that others have the mutex.

use super::{
    chain::{
        marked,
        unlinked,
        Chain,
        CutRecord,
        STEP, //
    },
    free::Bins,
    lock::nanoseconds,
    small::Small,
    table::{
        self,
        Table, //
    },
    Ima,
};
use crate::{
    replay::Record,
    request::Reclaim, //
};
use core::ptr::{
    self,
    NonNull, //
};
use kernel::time::Instant;

/// What a reclaim did.
#[derive(Clone, Copy, Default)]
pub(crate) struct Reclaimed {
    /// Bytes given back to the slab allocator, less those taken from it.
    pub(crate) bytes: u64,
    /// For how many nanoseconds the mutex was held at a time, at most.
    pub(crate) hold_ns: u64,
    /// Records of which as much is left as `keep` leaves: with `compact` those that there was no
    /// memory for, with `flush` all if somebody else removed records meanwhile.
    pub(crate) kept: u64,
}

impl Reclaimed {
    /// Notes a hold of the mutex, in nanoseconds.
    fn held(&mut self, hold_ns: u64) {
        self.hold_ns = self.hold_ns.max(hold_ns);
    }
}

/// Records that were cut off the list: nobody but the digest hash table refers to them.
#[must_use = "the records are reachable by nobody else"]
pub(crate) struct Cut(pub(super) Chain);

impl Cut {
    /// Gives back the memory of the records, as far as the mode says.
    ///
    /// Takes `ima_extend_list_mutex` shortly, several times, waits for a grace period, and lets
    /// others run. Runs to its end whatever signals arrive.
    //
    // Sound whoever calls it: the records are the cut's own, and nobody else changes the hash table
    // or frees what is in it, as there is one `Table`.
    pub(crate) fn reclaim(self, ima: &Ima, table: &mut Table, mode: Reclaim) -> Reclaimed {
        let Self(chain) = self;
        let mut done = Reclaimed::default();
        let mut bins = Bins::new();
        let mut taken = 0;

        if table::no_table() {
            chain.last_pass(ima, |record| {
                // SAFETY: There is no hash table.
                unsafe { record.free(&mut bins) }
            });
        } else {
            match mode {
                Reclaim::Keep => keep(chain, ima, &mut bins),
                Reclaim::Compact => taken = compact(chain, ima, table, &mut bins, &mut done),
                Reclaim::Flush => flush(chain, ima, table, &mut bins, &mut done),
            }
        }
        done.bytes = bins.bytes().saturating_sub(taken);
        done
    }
}

impl Table {
    /// Gives back the memory of what earlier deletions left in the hash table, be they the module's
    /// or IMA's own. Otherwise as [`Cut::reclaim`].
    pub(crate) fn flush(&mut self, ima: &Ima) -> Reclaimed {
        Cut(Chain::empty()).reclaim(ima, self, Reclaim::Flush)
    }
}

/// Frees the template data, as `ima_queue_delete()` (`ima_queue.c`) does, and leaves the rest to
/// the hash table.
fn keep(chain: Chain, ima: &Ima, bins: &mut Bins) {
    chain.last_pass(ima, |mut record| {
        record.free_template_data(bins);
        record.leave();
    });
}

/// Takes the records out of the hash table, and with them all that earlier deletions left there,
/// and frees everything.
fn flush(mut chain: Chain, ima: &Ima, table: &mut Table, bins: &mut Bins, done: &mut Reclaimed) {
    chain
        .pass(ima)
        .run(|record| record.link().set_mark(marked()));

    let mut data = chain.pass(ima);
    let mut free_data = |mut record: CutRecord<'_>| record.free_template_data(bins);
    let mut sweep = table.sweep(ima, true);
    let complete = sweep.run(
        |hold_ns| done.held(hold_ns),
        || {
            data.step(&mut free_data);
        },
    );
    let left = sweep.left;
    data.run(free_data);
    table::grace_period();

    chain.last_pass(ima, |record| {
        if complete || record.link().mark() == unlinked() {
            // SAFETY: The sweep left no reference in the table, and the lookups that may have seen
            // one have ended with the grace period.
            unsafe { record.free(bins) };
        } else {
            done.kept = done.kept.saturating_add(1);
            record.leave();
        }
    });
    // SAFETY: As above: the sweep unlinked them.
    left.last_pass(ima, |record| unsafe { record.free(bins) });
}

/// Exchanges the entry of each record for the smallest one that the lookup of duplicates needs.
/// Violations, which no lookup finds, are freed. Gives the bytes that the new entries take.
fn compact(
    mut chain: Chain,
    ima: &Ima,
    table: &mut Table,
    bins: &mut Bins,
    done: &mut Reclaimed,
) -> u64 {
    let mut taken = 0u64;
    let mut violations = false;
    let mut pass = chain.pass(ima);
    let mut more = true;

    while more {
        // What the batch needs is allocated and filled before the mutex is taken.
        let mut batch: [Option<(CutRecord<'_>, Small)>; STEP] = [const { None }; STEP];
        let mut places = batch.iter_mut();

        more = pass.step(&mut |mut record| {
            record.free_template_data(bins);
            if record.is_violation() {
                violations = true;
                record.link().set_mark(marked());
                return;
            }
            record.link().set_mark(ptr::null_mut());
            match (Small::new(&record), places.next()) {
                (Some(small), Some(place)) => {
                    taken = taken.saturating_add(small.size());
                    *place = Some((record, small));
                }
                _ => done.kept = done.kept.saturating_add(1),
            }
        });

        let list = ima.lock_list();
        let since = Instant::now();
        for (mut record, small) in batch.iter_mut().filter_map(Option::take) {
            record.exchange(small, &list);
        }
        drop(list);
        done.held(nanoseconds(since));
    }

    if violations {
        table
            .sweep(ima, false)
            .run(|hold_ns| done.held(hold_ns), || {});
    }
    table::grace_period();

    chain.last_pass(ima, |record| {
        let mark = record.link().mark();

        if mark == unlinked() {
            // SAFETY: The sweep unlinked it, and the lookups that may have seen it in the table
            // have ended with the grace period.
            unsafe { record.free(bins) };
            return;
        }
        if mark != marked() {
            if let Some(old) = NonNull::new(mark.cast::<u8>()) {
                // SAFETY: `exchange()` left the entry that the record had. Its template data are
                // freed, and the lookups that may have seen it have ended with the grace period.
                unsafe { record.free_entry(old, bins) };
            }
        }
        record.leave();
    });
    taken
}
