// SPDX-License-Identifier: GPL-2.0

//! Entries that have no more than the lookup of duplicates reads.

use super::record::ListRecord;
use crate::{
    replay::Record,
    rust::ffi, //
};
use core::ptr::{
    self,
    NonNull, //
};
use kernel::bindings;

/// An entry that has no more than the lookup of duplicates reads: a header without template, and
/// one digest behind it.
///
/// # Invariants
///
/// It was allocated by `kmalloc()` or the like, and nobody else has it.
pub(super) struct Small(NonNull<u8>);

impl Small {
    /// One that is found as the entry of this record is. `None` without memory.
    pub(super) fn new(record: &ListRecord<'_>) -> Option<Self> {
        let ima = record.ima;
        let layout = &ima.layout;
        let header = layout.template_entry.size;
        let slot = ima.lookup_slot;
        let size = header.checked_add(ima.lookup_size)?;
        let from = record.digest_at(slot)?;
        // What the lookup adds to `digests` to come to the digest.
        let offset = layout.digest_offset(slot)?;
        let memory = ffi::ima_trim_zalloc(size).cast::<u8>();
        // INVARIANT: It was just allocated.
        let small = Self(NonNull::new(memory)?);

        // SAFETY: There is room for the header and the digest. `digest_at()` gave a digest of the
        // record, which has `lookup_size` bytes by the invariants of `Ima`. The members are of
        // these types, and aligned as `kmalloc()` and `Layout` say.
        unsafe {
            let digest = memory.add(header);

            ptr::copy_nonoverlapping(from, digest, ima.lookup_size);
            memory
                .add(layout.template_entry.pcr)
                .cast::<i32>()
                .write(record.pcr());
            memory
                .add(layout.template_entry.digests)
                .cast::<*mut u8>()
                .write(digest.wrapping_sub(offset));
        }
        Some(small)
    }

    /// What becomes of it is the caller's business now.
    pub(super) fn into_raw(self) -> *mut u8 {
        let Self(memory) = self;

        core::mem::forget(self);
        memory.as_ptr()
    }

    /// Bytes taken from the slab allocator.
    pub(super) fn size(&self) -> u64 {
        // SAFETY: By the invariants of the type.
        unsafe { bindings::ksize(self.0.as_ptr().cast_const().cast()) as u64 }
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        // SAFETY: By the invariants of the type.
        unsafe { bindings::kfree(self.0.as_ptr().cast_const().cast()) };
    }
}
