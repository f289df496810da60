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
    /// How many records there were ever before those that are looked at.
    since: Option<i64>,
    /// How many records are still to be looked at, once the search has begun.
    left: u64,
}

/// How a piece of a search ended.
enum Looked<T> {
    /// This was found.
    Found(T),
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
    /// Looks at the records that were added since there were `since` ever, or at all. If somebody takes
    /// records out of the list meanwhile it begins again, a few times; `None` also if it is disturbed
    /// once more.
    ///
    /// Takes `ima_extend_list_mutex` shortly, several times, and lets others run.
    pub(crate) fn find_buffer(&self, event: &[u8], data: &[u8], since: Option<i64>) -> Option<i32> {
        self.find_last(since, |record| {
            (record.template_name() == b"ima-buf"
                && record
                    .field(b"n-ng")
                    .and_then(|name| name.strip_suffix(&[0]))
                    == Some(event)
                && record.field(b"buf") == Some(data))
            .then(|| record.pcr())
        })
    }

    /// What `judge` says of the last record that it says anything of, among those
    /// that were added since there were `since` ever.
    fn find_last<T>(
        &self,
        since: Option<i64>,
        judge: impl Fn(&ListRecord<'_>) -> Option<T>,
    ) -> Option<T> {
        for _ in 0..ATTEMPTS {
            // INVARIANT: The head is always that of the list.
            let mut search = Search {
                at: self.symbols.ima_measurements.as_ptr(),
                generation: self.lock_list().generation(),
                since,
                left: u64::MAX,
            };

            loop {
                match search.piece(self, &judge) {
                    Looked::Found(found) => return Some(found),
                    Looked::Nowhere => return None,
                    Looked::More => {}
                    Looked::Changed => break,
                }
            }
        }
        None
    }
}

impl Search {
    /// Looks at the next records. Sleeps.
    fn piece<T>(&mut self, ima: &Ima, judge: impl Fn(&ListRecord<'_>) -> Option<T>) -> Looked<T> {
        let list = ima.lock_list();
        let since = Instant::now();
        let looked = self.look(&list, judge);

        drop(list);
        leave_free(Instant::now(), nanoseconds(since));
        task::cond_resched();
        looked
    }

    /// Looks at the next records, within a hold of the mutex.
    fn look<T>(
        &mut self,
        list: &ListGuard<'_>,
        judge: impl Fn(&ListRecord<'_>) -> Option<T>,
    ) -> Looked<T> {
        if list.generation() != self.generation {
            return Looked::Changed;
        }
        let ima = list.ima;
        if let (true, Some(since)) = (self.at == ima.symbols.ima_measurements.as_ptr(), self.since)
        {
            // Those that are appended from now on are not looked at.
            self.left = u64::try_from(ima.full.read().saturating_sub(since)).unwrap_or(0);
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

            if let Some(found) = record.as_ref().and_then(&judge) {
                return Looked::Found(found);
            }
        }
        Looked::More
    }
}
