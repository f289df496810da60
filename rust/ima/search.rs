// SPDX-License-Identifier: GPL-2.0

//! Looking for a record from the end of the list, without keeping anybody from changing the list.
//!
//! The list is looked at in pieces, each in one hold of `ima_extend_list_mutex`: the records in the
//! list stay in it, and stay as they are, as long as it is held. Between two holds the place in the
//! list is good for as long as nothing was taken out of it.

use super::{
    lock::{
        leave_free,
        nanoseconds,
        ListGuard, //
    },
    record::ListRecord,
    Ima,
};
use crate::{
    replay::Record,
    rust::task, //
};
use kernel::{
    bindings::list_head,
    time::Instant, //
};

/// How many records are looked at in one hold of the mutex, at most.
const PIECE: u64 = 64;

/// How often the search begins, at most.
const ATTEMPTS: u32 = 4;

/// A search from the end of the list to its beginning.
///
/// # Invariants
///
/// As long as the list is of this generation, `at` is its head or the link of a record in it.
struct Search {
    at: *mut list_head,
    generation: i64,
    /// How many records are still to be looked at.
    left: u64,
}

/// How a piece of a search ended.
enum Looked {
    /// The record was found, and is of this PCR.
    Found(i32),
    /// There are more records to look at.
    More,
    /// There are no more records.
    Nowhere,
    /// Records were taken out of the list: the place in it is lost.
    Changed,
}

impl Ima {
    /// The PCR of the newest record that measured a buffer with this event name and these data: one
    /// of the template `ima-buf`, as IMA makes it of critical data unless a rule says otherwise.
    ///
    /// Looks at the records that were added since there were `since` ever, or at all. If somebody
    /// takes records out of the list meanwhile it begins again, a few times; `None` also if it is
    /// disturbed once more.
    ///
    /// Takes `ima_extend_list_mutex` shortly, several times, and lets others run.
    pub(crate) fn find_buffer(&self, event: &[u8], data: &[u8], since: Option<i64>) -> Option<i32> {
        for _ in 0..ATTEMPTS {
            let mut list = self.lock_list();
            let mut search = Search::begin(&list, since);

            loop {
                let held_since = Instant::now();
                let looked = search.look(&list, event, data);

                drop(list);
                leave_free(Instant::now(), nanoseconds(held_since));
                task::cond_resched();
                match looked {
                    Looked::Found(pcr) => return Some(pcr),
                    Looked::Nowhere => return None,
                    Looked::More => list = self.lock_list(),
                    Looked::Changed => break,
                }
            }
        }
        None
    }
}

impl Search {
    /// Begins at the end of the list, where the first look has to be in the same hold of the mutex:
    /// records that are appended after it are neither met nor counted in.
    fn begin(list: &ListGuard<'_>, since: Option<i64>) -> Self {
        let ima = list.ima;
        let added = |since| u64::try_from(ima.full.read().saturating_sub(since)).unwrap_or(0);

        // INVARIANT: The head is always that of the list.
        Self {
            at: ima.symbols.ima_measurements.as_ptr(),
            generation: list.generation(),
            left: since.map_or(u64::MAX, added),
        }
    }

    /// Looks at the next records, within a hold of the mutex.
    fn look(&mut self, list: &ListGuard<'_>, event: &[u8], data: &[u8]) -> Looked {
        let ima = list.ima;

        if list.generation() != self.generation {
            return Looked::Changed;
        }
        for _ in 0..PIECE {
            // SAFETY: By the invariants of the type `at` is a link of the list, as its generation
            // was just compared. All writers of links hold the mutex (`ima_queue.c`).
            let link = unsafe { (*self.at).prev };

            if link == ima.symbols.ima_measurements.as_ptr() || self.left == 0 {
                return Looked::Nowhere;
            }
            // INVARIANT: It is the link before another one of the list, and not the head.
            self.at = link;
            self.left = self.left.saturating_sub(1);
            // SAFETY: It is the link of a record in the list. As long as the mutex is held nobody
            // takes records out, and only what is out is changed. The record is not used any longer
            // than this call.
            let record = unsafe { ListRecord::from_link(ima, link) };

            if let Some(record) = record.filter(|record| measured(record, event, data)) {
                return Looked::Found(record.pcr());
            }
        }
        Looked::More
    }
}

/// Whether the record is that of a buffer with this event name and these data.
fn measured(record: &ListRecord<'_>, event: &[u8], data: &[u8]) -> bool {
    let name = || record.field(b"n-ng")?.strip_suffix(&[0]);

    record.template_name() == b"ima-buf"
        && name() == Some(event)
        && record.field(b"buf") == Some(data)
}
