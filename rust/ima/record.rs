// SPDX-License-Identifier: GPL-2.0

//! Records of the measurement list, and what can be read of them.
//!
//! A record is a `struct ima_queue_entry`, linked by `later`, and the `struct ima_template_entry`
//! that it points to (`security/integrity/ima/ima.h`). Both are complete before
//! `list_add_tail_rcu()` publishes them (`ima_add_digest_entry()`, `ima_queue.c`) and are not
//! changed as long as they are in the list, but for `hnext` and `later`.

use super::Ima;
use crate::{
    bank::{
        shows_violation,
        Bank,
        VIOLATION_PROBE, //
    },
    replay::Record, //
};
use core::ptr::NonNull;
use kernel::{
    bindings::list_head,
    str::{
        CStr,
        CStrExt, //
    }, //
};

/// The fields of a template that name the file or the event
/// (`security/integrity/ima/ima_template.c`).
const NAME_FIELDS: [&[u8]; 2] = [b"n-ng", b"n"];

/// What a record takes beyond its template's name and data when serialised: the PCR, the SHA-1,
/// and the lengths of the name and of the data (`get_binary_runtime_size()`, `ima_queue.c`).
const SERIALISED: usize = 4 + 20 + 4 + 4;

/// Reads the member at `offset` of the struct at `base`.
///
/// # Safety
///
/// `base` is a struct of the kernel, `offset` is that of a member of type `T` of it, as
/// [`crate::rust::layout::Layout`] has it, and nobody writes to the member meanwhile.
pub(super) unsafe fn member<T: Copy>(base: NonNull<u8>, offset: usize) -> T {
    // SAFETY: By the safety requirement. It is aligned: the struct is, as all of the compiler and
    // of `kmalloc()`, and no layout has an offset that is no multiple of the alignment of its type.
    unsafe { base.as_ptr().add(offset).cast::<T>().read() }
}

/// A record in the list, or one that was cut off.
///
/// # Invariants
///
/// - `queue` is a valid `struct ima_queue_entry` and `entry` the valid `struct ima_template_entry`
///   of it, and they stay so for `'r`.
/// - Nobody writes to them during `'r`, but to `hnext` and `later` of the former.
/// - Either the entry has a template, as many fields as that, and `slots` digests (`Ima`); or it
///   has none of these, but the digest in `lookup_slot`.
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

    /// The first byte of the digest in slot `slot`, of which `digest_len` bytes can be read.
    ///
    /// `None` if records have no such slot, or the entry was made small.
    pub(super) fn digest_at(&self, slot: usize) -> Option<*const u8> {
        let layout = &self.ima.layout;

        if slot >= self.ima.slots {
            return None;
        }
        self.template()?;
        // SAFETY: By the invariants of the type, and `digests` is a pointer.
        let digests = unsafe { member::<*const u8>(self.entry, layout.template_entry.digests) };
        let offset = layout.digest_offset(slot)?;

        (!digests.is_null()).then(|| digests.wrapping_add(offset))
    }

    /// The template of the record. `None` if its entry was made small.
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
        // (`ima_template.c`), and `name` is a pointer.
        let name = unsafe { member::<*const u8>(template, self.ima.layout.template_desc.name) };

        if name.is_null() {
            return &[];
        }
        // SAFETY: It is a string, as valid as the template.
        unsafe { CStr::from_char_ptr(name.cast()) }.to_bytes()
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

    /// The `struct ima_field_data` of field `index`, if there are as many.
    pub(super) fn field_data(&self, index: usize) -> Option<NonNull<u8>> {
        let layout = &self.ima.layout;
        let offset = (index < self.num_fields())
            .then_some(index)?
            .checked_mul(layout.field_data.size)?
            .checked_add(layout.template_entry.template_data)?;

        NonNull::new(self.entry.as_ptr().wrapping_add(offset))
    }

    /// The identifier of field `index`, if there are as many.
    fn field_id(&self, index: usize) -> Option<&[u8]> {
        let layout = &self.ima.layout;

        if index >= self.num_fields() {
            return None;
        }
        // SAFETY: Templates are valid for ever, and `fields` points to `num_fields` pointers
        // (`template_desc_init_fields()`, `ima_template.c`), of which `index` is one.
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
    pub(super) fn serialised(&self) -> usize {
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
        // SAFETY: `digest_at()` gave a digest that the record has, which has `digest_len` bytes,
        // not less than `size` as checked. It is not changed, by the invariants of the type.
        Some(unsafe { core::slice::from_raw_parts(digest, bank.size) })
    }

    fn is_violation(&self) -> bool {
        let size = VIOLATION_PROBE.min(self.ima.layout.tpm_digest.digest_len);

        self.digest_at(self.ima.sha1_slot).is_some_and(|digest| {
            // SAFETY: As above.
            shows_violation(unsafe { core::slice::from_raw_parts(digest, size) })
        })
    }
}
