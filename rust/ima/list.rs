// SPDX-License-Identifier: GPL-2.0

//! IMA's list of records: walking along it, and cutting its head off.
//!
//! A record is a `struct ima_queue_entry`, linked by `later`, and the `struct ima_template_entry`
//! that it points to (`security/integrity/ima/ima.h`). Both are complete before
//! `list_add_tail_rcu()` publishes them (`ima_add_digest_entry()`, `ima_queue.c`) and are not
//! changed as long as they are in the list, but for `hnext` and `later`.

use super::{
    lock::{
        Counters,
        Hold,
        KernelMutexGuard, //
    },
    reclaim::Cut,
    Ima,
};
use crate::{
    bank::{
        shows_violation,
        Bank,
        VIOLATION_PROBE, //
    },
    openers::Busy,
    replay::{
        Piece,
        Record,
        Records, //
    },
    rust::task::{
        self,
        FatalSignal, //
    },
};
use core::{
    iter::from_fn,
    ptr::NonNull, //
};
use kernel::{
    bindings::list_head,
    str::{
        CStr,
        CStrExt, //
    },
    sync::atomic::{
        Acquire,
        Atomic, //
    },
};

/// The fields of a template that name the file or the event (`security/integrity/ima/ima_template.c`).
const NAME_FIELDS: [&[u8]; 2] = [b"n-ng", b"n"];

/// What a record takes beyond its template's name and data when serialised: the PCR, the SHA-1,
/// and the lengths of the name and of the data (`get_binary_runtime_size()`, `ima_queue.c`).
const SERIALISED: usize = 4 + 20 + 4 + 4;

/// What `binary_runtime_size[]` says where nothing is counted: `ULONG_MAX`.
const NOT_COUNTED: usize = usize::MAX;

/// Reads the member at `offset` of the struct at `base`.
///
/// # Safety
///
/// `offset` is that of a member of type `T` of the struct at `base`, as [`crate::rust::layout::Layout`]
/// has it, and nobody writes to it meanwhile.
pub(super) unsafe fn member<T: Copy>(base: NonNull<u8>, offset: usize) -> T {
    // SAFETY: By the safety requirement. The kernel aligns its structs, but this relies on no more
    // than the offset.
    unsafe { base.as_ptr().add(offset).cast::<T>().read_unaligned() }
}

/// The bytes of a string, without its NUL.
///
/// # Safety
///
/// `text` is null, or a NUL-terminated string that is not changed during `'a`.
unsafe fn string<'a>(text: *const u8) -> &'a [u8] {
    if text.is_null() {
        return &[];
    }
    // SAFETY: By the safety requirement.
    unsafe { CStr::from_char_ptr(text.cast()) }.to_bytes()
}

/// A record in the list, or one that was cut off.
///
/// # Invariants
///
/// - `queue` is a valid `struct ima_queue_entry` and `entry` the valid `struct ima_template_entry`
///   of it, and they stay so for `'r`.
/// - Nobody writes to them during `'r`, but to `hnext` and `later` of the former.
///
pub(crate) struct ListRecord<'r> {
    pub(super) ima: &'r Ima,
    pub(super) queue: NonNull<u8>,
    pub(super) entry: NonNull<u8>,
}

impl<'r> ListRecord<'r> {
    /// The record of which `later` is a link.
    ///
    /// # Safety
    ///
    /// `later` is the member of that name of a `struct ima_queue_entry` for which the invariants
    /// of the type hold.
    pub(super) unsafe fn from_link(ima: &'r Ima, later: *mut list_head) -> Option<Self> {
        let offset = ima.layout.queue_entry.later;
        let queue = NonNull::new(later.cast::<u8>().wrapping_sub(offset))?;
        // SAFETY: `queue` is a valid `struct ima_queue_entry`, and `entry` is a pointer of it.
        let entry = unsafe { member::<*mut u8>(queue, ima.layout.queue_entry.entry) };

        // INVARIANT: By the safety requirement.
        Some(Self {
            ima,
            queue,
            entry: NonNull::new(entry)?,
        })
    }

    /// The first byte of the digest in slot `slot`.
    pub(super) fn digest_at(&self, slot: usize) -> Option<*const u8> {
        let layout = &self.ima.layout;
        // SAFETY: By the invariants of the type, and `digests` is a pointer.
        let digests = unsafe { member::<*const u8>(self.entry, layout.template_entry.digests) };
        let offset = slot
            .checked_mul(layout.tpm_digest.size)?
            .checked_add(layout.tpm_digest.digest)?;

        (!digests.is_null()).then(|| digests.wrapping_add(offset))
    }

    /// The template of the record: null only if memory was corrupted.
    pub(super) fn template(&self) -> Option<NonNull<u8>> {
        // SAFETY: By the invariants of the type, and `template_desc` is a pointer.
        NonNull::new(unsafe {
            member::<*mut u8>(self.entry, self.ima.layout.template_entry.template_desc)
        })
    }

    /// The name of the template, empty for one made by a format.
    pub(crate) fn template_name(&self) -> &[u8] {
        let Some(template) = self.template() else {
            return &[];
        };

        // SAFETY: Templates are valid for ever and never changed once a record has them
        // (`ima_template.c`); `name` is a string or null.
        unsafe { string(member(template, self.ima.layout.template_desc.name)) }
    }

    /// How many fields the template, and so the record, has.
    pub(super) fn num_fields(&self) -> usize {
        self.template()
            // SAFETY: As above; `num_fields` is an `int`.
            .map(|template| unsafe {
                member::<i32>(template, self.ima.layout.template_desc.num_fields)
            })
            .and_then(|count| usize::try_from(count).ok())
            .unwrap_or(0)
    }

    /// The `struct ima_field_data` of field `index`, which must be less than `num_fields`.
    pub(super) fn field_data(&self, index: usize) -> Option<NonNull<u8>> {
        let layout = &self.ima.layout;
        let offset = index
            .checked_mul(layout.field_data.size)?
            .checked_add(layout.template_entry.template_data)?;

        NonNull::new(self.entry.as_ptr().wrapping_add(offset))
    }

    /// The identifier of field `index`, which must be less than `num_fields`.
    fn field_id(&self, index: usize) -> Option<&[u8]> {
        let layout = &self.ima.layout;
        // SAFETY: The template is valid, and `fields` points to `num_fields` pointers.
        let field = unsafe {
            let fields = member::<*mut *mut u8>(self.template()?, layout.template_desc.fields);

            NonNull::new(fields)?.as_ptr().add(index).read()
        };
        let id = NonNull::new(field)?
            .as_ptr()
            .wrapping_add(layout.template_field.field_id);
        // SAFETY: A `struct ima_template_field` is constant, and `field_id` an array of this
        // length.
        let id = unsafe {
            core::slice::from_raw_parts(id.cast_const(), layout.template_field.field_id_len)
        };

        id.split(|byte| *byte == 0).next()
    }

    /// The data of the field with this identifier, if the template has one.
    pub(super) fn field(&self, id: &[u8]) -> Option<&[u8]> {
        let layout = &self.ima.layout;
        let index = (0..self.num_fields()).find(|&index| self.field_id(index) == Some(id))?;
        let field = self.field_data(index)?;
        // SAFETY: The record has as many fields as its template.
        let (data, len) = unsafe {
            (
                member::<*const u8>(field, layout.field_data.data),
                member::<u32>(field, layout.field_data.len),
            )
        };

        // A field without data may have any pointer.
        if data.is_null() || len == 0 {
            return Some(&[]);
        }
        // SAFETY: `data` has `len` bytes, which are not changed.
        Some(unsafe { core::slice::from_raw_parts(data, len as usize) })
    }

    /// The name of the file, or of the event, that was measured: a hint, not necessarily unique
    /// nor text. Empty if the template has no such field.
    pub(crate) fn name_hint(&self) -> &[u8] {
        NAME_FIELDS
            .iter()
            .find_map(|id| self.field(id))
            .and_then(|name| name.split(|byte| *byte == 0).next())
            .unwrap_or(&[])
    }

    /// What the record takes when serialised, as `get_binary_runtime_size()` counts it.
    fn serialised(&self) -> usize {
        // SAFETY: By the invariants of the type, and `template_data_len` is a `u32`.
        let data =
            unsafe { member::<u32>(self.entry, self.ima.layout.template_entry.template_data_len) };

        SERIALISED
            .saturating_add(self.template_name().len())
            .saturating_add(data as usize)
    }
}

impl Record for ListRecord<'_> {
    fn pcr(&self) -> i32 {
        // SAFETY: By the invariants of the type, and `pcr` is an `int`.
        unsafe { member(self.entry, self.ima.layout.template_entry.pcr) }
    }

    fn digest(&self, bank: &Bank) -> Option<&[u8]> {
        if bank.size > self.ima.layout.tpm_digest.digest_len {
            return None;
        }
        let digest = self.digest_at(bank.position)?;
        // SAFETY: A record has a digest for every bank of the TPM (`ima_alloc_init_template()`,
        // `ima_restore_template_data()`), in their order, and `position` is that of one. A digest
        // has `digest_len` bytes, as checked.
        Some(unsafe { core::slice::from_raw_parts(digest, bank.size) })
    }

    fn is_violation(&self) -> bool {
        let size = VIOLATION_PROBE.min(self.ima.layout.tpm_digest.digest_len);

        self.digest_at(self.ima.sha1_slot).is_some_and(|digest| {
            // SAFETY: `sha1_slot` is less than the number of digests, by the invariants of `Ima`.
            shows_violation(unsafe { core::slice::from_raw_parts(digest, size) })
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
    /// The counters were read during the hold, and checked.
    pub(super) fn new(hold: &'h Hold<'h>, began: Counters) -> Self {
        // INVARIANT: It is the head, and nothing was staged.
        Self {
            hold,
            at: hold.ima.symbols.ima_measurements.as_ptr(),
            records: 0,
            serialised: hold.ima.counts_serialised().then_some(0),
            began,
        }
    }

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
    type Error = FatalSignal;

    /// Sleeps.
    fn piece(&mut self, step: impl FnMut(&ListRecord<'h>) -> bool) -> Result<Piece, FatalSignal> {
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
    last: *mut list_head,
    records: i64,
    serialised: Option<usize>,
    generation: i64,
}

impl Position {
    /// The generation of the list in which it is.
    pub(super) fn generation(&self) -> i64 {
        self.generation
    }
}

impl Ima {
    /// Whether IMA counts what the records take when serialised (`CONFIG_IMA_KEXEC`).
    fn counts_serialised(&self) -> bool {
        // SAFETY: The pointer is valid. The size changes meanwhile, but whether it is the mark does
        // not, save once from a size to the mark; a cut looks again under the mutex.
        unsafe { self.serialised.as_ptr().read_volatile() != NOT_COUNTED }
    }
}

/// What a cut is about to change.
pub(super) struct Ends {
    /// The link of the first record.
    first: *mut list_head,
    /// The link of the first record behind the cut, or the head.
    rest: *mut list_head,
    /// The records that will be left.
    left: i64,
}

/// Looks at what a cut up to `position` would change.
///
/// # Safety
///
/// `list` is `ima_extend_list_mutex`, and the list is of the generation of `position`.
#[inline(always)]
pub(super) unsafe fn ends(
    ima: &Ima,
    _list: &KernelMutexGuard,
    position: &Position,
) -> Result<Ends, Busy> {
    let head = ima.symbols.ima_measurements.as_ptr();
    let last = position.last;
    let left = ima.live.read().wrapping_sub(position.records);

    if left < 0 {
        return Err(Busy::Changed);
    }
    // The two links are looked at from both sides: a list that contradicts itself would be a BUG at
    // the next append, with the mutex held.
    //
    // SAFETY: `head`, `last` and their neighbours are links of this list, by the safety requirement
    // and the invariants of `Position`. Under the mutex nobody else writes to them.
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

/// Cuts off the records up to `position`, in constant time.
///
/// # Safety
///
/// `list` is `ima_extend_list_mutex`, within a [`super::lock::Exclusive`], and [`ends`] gave `ends`
/// for `position` since it was taken.
#[inline(always)]
pub(super) unsafe fn cut(
    ima: &Ima,
    _list: &mut KernelMutexGuard,
    position: Position,
    ends: Ends,
) -> Cut {
    let head = ima.symbols.ima_measurements.as_ptr();
    let Ends { first, rest, left } = ends;

    // As `__list_cut_position()` (`include/linux/list.h`) with nothing kept of the head.
    //
    // SAFETY: `head` and `rest` are links of this list, by the safety requirement. Under the mutex
    // nobody else accesses them: who goes along the list without it has a descriptor of a list, and
    // there is nobody, by the invariants of `Exclusive`. There are no walks of this module either: they
    // borrow the hold, which the `Exclusive` borrows mutably.
    unsafe {
        (*head).next = rest;
        (*rest).prev = head;
    }

    ima.live.set(left);
    if let Some(size) = position.serialised {
        let total = ima.serialised.as_ptr();

        // SAFETY: The pointer is valid, and the mutex, which covers it, is held.
        unsafe {
            if *total != NOT_COUNTED {
                *total = (*total).saturating_sub(size);
            }
        }
    }

    // SAFETY: They are out of the list, and linked from `first` to the last as before.
    unsafe { Cut::new(first, position.records.unsigned_abs()) }
}
