// SPDX-License-Identifier: GPL-2.0

//! The violations that were trimmed: who reads `violations` learns which they were.

#![forbid(unsafe_code)]

use crate::{
    replay::Record,
    report,
    rust::ima::ListRecord, //
};
use core::fmt;
use kernel::{
    alloc::AllocError,
    prelude::*, //
};

/// How many violations are kept.
const MAX_VIOLATIONS: usize = 4096;

/// How many bytes are kept of the name hint of a violation: IMA's own limit for names
/// (`IMA_EVENT_NAME_LEN_MAX`).
const MAX_NAME: usize = 255;

/// A violation that was trimmed.
pub(crate) struct Violation {
    /// The number of the record, counted from 1 since boot.
    number: u64,
    pcr: i32,
    template: KVec<u8>,
    name: KVec<u8>,
}

impl Violation {
    fn new(number: u64, record: &ListRecord<'_>) -> Result<Self, AllocError> {
        let copy = |text: &[u8]| {
            let mut copy = KVec::new();

            copy.extend_from_slice(text.get(..MAX_NAME).unwrap_or(text), GFP_KERNEL)?;
            Ok::<_, AllocError>(copy)
        };

        Ok(Self {
            number,
            pcr: record.pcr(),
            template: copy(record.template_name())?,
            name: copy(record.name_hint())?,
        })
    }
}

/// The violations of one trim.
pub(crate) struct NewViolations {
    list: KVVec<Violation>,
    /// Room for them and for those that are kept of earlier trims.
    room: KVVec<Violation>,
    /// How many were not even listed, because more than [`MAX_VIOLATIONS`] came after them.
    omitted: u64,
}

impl NewViolations {
    /// Room for `count` violations beside those that are kept.
    pub(crate) fn with_room(count: u64, kept: usize) -> Result<Self, AllocError> {
        let new = usize::try_from(count).unwrap_or(MAX_VIOLATIONS);
        let new = new.min(MAX_VIOLATIONS);
        let all = match new {
            // Those that are kept stay where they are.
            0 => 0,
            _ => new.saturating_add(kept).min(MAX_VIOLATIONS),
        };

        Ok(Self {
            list: KVVec::with_capacity(new, GFP_KERNEL)?,
            room: KVVec::with_capacity(all, GFP_KERNEL)?,
            omitted: count.saturating_sub(MAX_VIOLATIONS as u64),
        })
    }

    /// How many of the first violations are not to be listed.
    pub(crate) fn omitted(&self) -> u64 {
        self.omitted
    }

    /// Lists one, with the number of its record.
    pub(crate) fn push(&mut self, number: u64, record: &ListRecord<'_>) -> Result<(), AllocError> {
        self.list
            .push_within_capacity(Violation::new(number, record)?)
            .map_err(|_| AllocError)
    }
}

/// The youngest violations of all trims since the module was loaded.
pub(crate) struct KeptViolations {
    list: KVVec<Violation>,
    /// Violations that were trimmed and are not in the list.
    dropped: u64,
}

impl KeptViolations {
    /// None yet.
    pub(crate) const fn new() -> Self {
        Self {
            list: KVVec::new(),
            dropped: 0,
        }
    }

    /// How many are kept.
    pub(crate) fn len(&self) -> usize {
        self.list.len()
    }

    /// Adds those of one trim. Does not allocate. What is returned is to be dropped without locks.
    pub(crate) fn add(&mut self, violations: NewViolations) -> [KVVec<Violation>; 2] {
        let NewViolations {
            list: mut new,
            room,
            omitted,
        } = violations;

        if new.is_empty() {
            return [new, room];
        }
        let mut old = core::mem::replace(&mut self.list, room);
        let surplus = old
            .len()
            .saturating_add(new.len())
            .saturating_sub(MAX_VIOLATIONS);

        self.dropped = self
            .dropped
            .saturating_add(omitted)
            .saturating_add(surplus as u64);
        for violation in Iterator::chain(old.drain_all().skip(surplus), new.drain_all()) {
            // There is room: `NewViolations::with_room()`.
            let _ = self.list.push_within_capacity(violation);
        }
        [old, new]
    }

    /// Notes that so many violations were trimmed in all.
    pub(crate) fn set_total(&mut self, total: u64) {
        self.dropped = total.saturating_sub(self.list.len() as u64);
    }

    /// Writes the text of `violations`.
    pub(crate) fn show(&self, w: &mut dyn fmt::Write) -> fmt::Result {
        for violation in &self.list {
            report::violation(
                w,
                violation.number,
                violation.pcr,
                &violation.template,
                &violation.name,
            )?;
        }
        report::violations_dropped(w, self.dropped)
    }
}
