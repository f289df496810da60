// SPDX-License-Identifier: GPL-2.0

//! Giving memory back to the slab allocator.
//!
//! Memory is freed by `kfree_bulk()`, each kind by itself and in the order of the list, in which it
//! was allocated: what comes from one slab goes back to it together.

use core::ptr;
use kernel::{
    bindings,
    ffi::c_void, //
};

/// How many pieces of memory are freed together, at most. There are four times as many on the
/// stack.
const GATHERED: usize = 16;

/// Memory of one kind that nobody uses any more, gathered to be freed together.
///
/// # Invariants
///
/// The first `len` of `memory` are not null, were allocated by `kmalloc()` or the like, and are
/// used by nobody.
pub(super) struct Bin {
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
    pub(super) unsafe fn put(&mut self, memory: *const u8) {
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
pub(super) struct Bins {
    pub(super) data: Bin,
    pub(super) digests: Bin,
    pub(super) entries: Bin,
    pub(super) queue_entries: Bin,
}

impl Bins {
    pub(super) const fn new() -> Self {
        Self {
            data: Bin::new(),
            digests: Bin::new(),
            entries: Bin::new(),
            queue_entries: Bin::new(),
        }
    }

    /// What all that was ever put in here takes, in bytes.
    pub(super) fn bytes(&self) -> u64 {
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
