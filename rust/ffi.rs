// SPDX-License-Identifier: GPL-2.0

//! Functions of the C side: those of `helpers.c` and `signatures.c`, and what the kernel's bindings
//! lack.

use kernel::{
    bindings,
    ffi::{
        c_char,
        c_int,
        c_uint,
        c_ulong,
        c_void, //
    },
};

/// `struct tpm_chip`, only ever passed back to C.
///
/// C header: [`include/linux/tpm.h`](srctree/include/linux/tpm.h)
#[repr(C)]
pub(super) struct TpmChip {
    _opaque: [u8; 0],
}

/// `struct crypto_shash`, only ever passed back to C.
///
/// C header: [`include/crypto/hash.h`](srctree/include/crypto/hash.h)
#[repr(C)]
pub(super) struct CryptoShash {
    _opaque: [u8; 0],
}

/// `struct key`, only ever passed back to C.
///
/// C header: [`include/linux/key.h`](srctree/include/linux/key.h)
#[repr(C)]
pub(super) struct Key {
    _opaque: [u8; 0],
}

// Without lockdep, which `struct file` and the like have a key of, that key is a struct without
// members. It is only pointed to.
#[allow(improper_ctypes)]
unsafe extern "C" {
    /// `CONFIG_IMA_MEASURE_PCR_IDX`.
    pub(super) static ima_trim_measure_pcr: u32;
    /// `CONFIG_IMA_DISABLE_HTABLE`.
    pub(super) static ima_trim_htable_disabled: bool;
    /// The module parameter `guard`.
    pub(super) static ima_trim_guard: bool;
    /// The module parameter `reclaim`, a string.
    pub(super) static ima_trim_reclaim: *const c_char;
    /// The module parameter `reader_wait_ms`.
    pub(super) static ima_trim_reader_wait_ms: c_uint;
    /// The module parameter `untested`.
    pub(super) static ima_trim_untested: bool;
    /// Whether the kernel is newer than the newest tested.
    pub(super) static ima_trim_newer: bool;
    /// `KSYM_SYMBOL_LEN`.
    pub(super) static ima_trim_symbol_len: usize;

    pub(super) fn ima_trim_data_symbol(name: *const c_char, address: *mut c_ulong) -> c_int;
    pub(super) fn ima_trim_exported_data() -> *const c_void;

    pub(super) safe fn ima_trim_fatal_signal_pending() -> bool;
    pub(super) safe fn ima_trim_freezing() -> bool;
    pub(super) safe fn ima_trim_cond_resched();
    pub(super) safe fn ima_trim_may_log() -> bool;
    pub(super) safe fn ima_trim_zalloc(size: usize) -> *mut c_void;

    pub(super) fn ima_trim_file_pin(
        file: *mut bindings::file,
        fops: *const bindings::file_operations,
    ) -> c_int;
    pub(super) fn ima_trim_file_writes(file: *const bindings::file) -> bool;
    pub(super) fn ima_trim_inode_retire(
        inode: *mut bindings::inode,
        fops: *mut bindings::file_operations,
    );
    pub(super) safe fn ima_trim_synchronize_rcu_tasks();
    pub(super) fn ima_trim_inode_shared(inode: *mut bindings::inode) -> bool;
    pub(super) fn ima_trim_leak(memory: *const c_void);

    pub(super) fn ima_trim_list_poison(entry: *mut bindings::list_head);
    pub(super) fn ima_trim_list_poisoned(
        next: *const bindings::list_head,
        prev: *const bindings::list_head,
    ) -> bool;

    pub(super) fn ima_trim_audit(
        cause: *const c_char,
        records: u64,
        violations: u64,
        records_trimmed: u64,
        violations_trimmed: u64,
        trims: u64,
    ) -> c_int;
    pub(super) fn ima_trim_workqueue() -> *mut bindings::workqueue_struct;
    pub(super) fn ima_trim_measure(event: *const c_char, data: *const u8, len: usize) -> c_int;

    pub(super) fn ima_trim_tpm_bank(
        chip: *const TpmChip,
        index: u32,
        alg_id: *mut u16,
        digest_size: *mut u16,
        crypto_id: *mut u16,
    ) -> c_int;
    pub(super) fn ima_trim_pcr_read(
        chip: *mut TpmChip,
        pcr: u32,
        alg_id: u16,
        value: *mut u8,
        size: usize,
    ) -> c_int;

    pub(super) fn ima_trim_hash_name(algo: u32, digest_size: *mut u32) -> *const c_char;
    pub(super) fn ima_trim_shash_alloc(
        name: *const c_char,
        digest_size: *mut u32,
    ) -> *mut CryptoShash;
    pub(super) fn ima_trim_shash_free(tfm: *mut CryptoShash);
    pub(super) fn ima_trim_shash(
        tfm: *mut CryptoShash,
        data: *const u8,
        len: u32,
        out: *mut u8,
    ) -> c_int;

    pub(super) fn ima_trim_certificate(index: usize, data: *mut *const u8) -> usize;
    pub(super) fn ima_trim_keyring() -> *mut Key;
    pub(super) fn ima_trim_keyring_add(
        keyring: *mut Key,
        name: *const c_char,
        certificate: *const u8,
        size: usize,
    ) -> c_int;
    pub(super) fn ima_trim_keyring_seal(keyring: *mut Key) -> c_int;
    pub(super) fn ima_trim_keyring_put(keyring: *mut Key);
    pub(super) fn ima_trim_verify(
        keyring: *mut Key,
        message: *const u8,
        size: usize,
        content: *mut u8,
        room: usize,
        taken: *mut usize,
    ) -> c_int;

    /// C header: [`include/crypto/sha1.h`](srctree/include/crypto/sha1.h)
    pub(super) fn sha1(data: *const u8, len: usize, out: *mut u8);
}
