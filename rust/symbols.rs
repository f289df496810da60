// SPDX-License-Identifier: GPL-2.0

//! Data of the kernel that is not exported: IMA's list, locks and counters, and the kernel's BTF.
//!
//! Only data is looked up; nothing is called that is not exported. `register_kprobe()`
//! (`kernel/kprobes.c`) stores the address of a symbol before it refuses it for not being code.
//! That this still works is tried on data whose address is known, and each address found is mapped
//! back by `sprint_symbol()`: exactly the name asked for, at offset 0, in the kernel itself, with
//! as much room up to the next symbol as is accessed. Whatever does not fit, fails the load.
//!
//! Not supported: functions, symbols of modules.

use super::ffi;
use core::{
    fmt,
    ptr::NonNull, //
};
use kernel::{
    bindings,
    error::to_result,
    ffi::c_ulong,
    prelude::*,
    str::CStr, //
};

#[cfg(not(target_pointer_width = "64"))]
compile_error!("the counters of IMA are taken for 64 bits wide");

/// The address of data of type `T`, or of the first of several.
///
/// # Invariants
///
/// `address` is in the data of the kernel's symbol of the name asked for, aligned for `T`, with at
/// least `room` bytes, no less than a `T` has, before the next symbol. It is data of the kernel
/// itself and so is never freed.
pub(super) struct Symbol<T> {
    address: NonNull<T>,
    room: usize,
}

// SAFETY: It is an address only; whoever accesses what is there has to say why they may.
unsafe impl<T> Send for Symbol<T> {}
// SAFETY: As above.
unsafe impl<T> Sync for Symbol<T> {}

impl<T> Symbol<T> {
    /// The address.
    pub(super) fn as_ptr(&self) -> *mut T {
        self.address.as_ptr()
    }

    /// The element `index` of an array, if there is room for it before the next symbol.
    pub(super) fn element(&self, index: usize) -> Option<Self> {
        let offset = index.checked_mul(size_of::<T>())?;
        let room = self.room.checked_sub(offset)?;

        // INVARIANT: The element has at least the room of a `T`, and it is within the same data.
        (room >= size_of::<T>())
            .then(|| NonNull::new(self.as_ptr().wrapping_add(index)))
            .flatten()
            .map(|address| Self { address, room })
    }
}

/// Only `atomic_long_t`s are declared as `i64` below.
///
/// `kernel::sync::atomic` reaches them through functions of the kernel; the few calls took most of
/// the time of a hold of `ima_extend_list_mutex`. On 64 bits `atomic_long_read()` and
/// `atomic_long_set()` are a `READ_ONCE()` and a `WRITE_ONCE()` (`include/linux/atomic`), which are
/// volatile accesses.
impl Symbol<i64> {
    /// As `atomic_long_read()`.
    pub(super) fn read(&self) -> i64 {
        // SAFETY: By the invariants of the type it is valid, and aligned as the kernel's own. The
        // kernel accesses it by atomic operations only.
        unsafe { self.as_ptr().read_volatile() }
    }

    /// As `atomic_long_set()`. The caller keeps all others from changing it.
    pub(super) fn set(&self, value: i64) {
        // SAFETY: As above.
        unsafe { self.as_ptr().write_volatile(value) };
    }
}

/// Why a symbol is not used.
pub(crate) struct SymbolError {
    name: &'static CStr,
    why: Why,
}

enum Why {
    /// The look-up gave an error number.
    NotFound(Error),
    /// The address found is another symbol's, or within one.
    Elsewhere,
    /// The next symbol comes too early, or the address is not aligned.
    TooSmall { room: usize, need: usize },
    /// Look-ups do not give the addresses they should.
    Broken,
    /// No memory.
    NoMemory,
}

impl fmt::Display for SymbolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.name.to_str().unwrap_or("?");

        match self.why {
            Why::NotFound(error) => write!(
                f,
                "symbol {name} not found (error {}): this needs Linux 7.2 or later with CONFIG_IMA, \
                 CONFIG_KPROBES, CONFIG_KALLSYMS_ALL and CONFIG_DEBUG_INFO_BTF",
                error.to_errno()
            ),
            Why::Elsewhere => write!(f, "symbol {name} is not where the kernel says it is"),
            Why::TooSmall { room, need } => write!(
                f,
                "symbol {name} has room for {room} bytes, not for {need}: this kernel is not known"
            ),
            Why::Broken => write!(
                f,
                "looking up {name}, which is exported, gave a wrong address: kprobes of this kernel \
                 do not tell where symbols are"
            ),
            Why::NoMemory => write!(f, "no memory to look up {name}"),
        }
    }
}

impl SymbolError {
    /// The error number for the failed load.
    pub(crate) fn errno(&self) -> Error {
        match self.why {
            Why::NotFound(_) => ENOENT,
            Why::Elsewhere | Why::TooSmall { .. } | Why::Broken => ENXIO,
            Why::NoMemory => ENOMEM,
        }
    }
}

/// The address of a data symbol.
fn look_up(name: &'static CStr) -> core::result::Result<usize, SymbolError> {
    let mut address: c_ulong = 0;

    // SAFETY: `name` is a string, and `address` can be written.
    to_result(unsafe { ffi::ima_trim_data_symbol(name.as_char_ptr(), &mut address) }).map_err(
        |error| SymbolError {
            name,
            why: Why::NotFound(error),
        },
    )?;
    Ok(address as usize)
}

/// Room for what `sprint_symbol()` prints: too much for the stack.
struct Names(KVec<u8>);

impl Names {
    fn new() -> Result<Self> {
        // SAFETY: It is a constant of `helpers.c`.
        let len = unsafe { ffi::ima_trim_symbol_len };

        Ok(Self(KVec::from_elem(0, len, GFP_KERNEL)?))
    }

    /// The bytes from a symbol to the next one, if `address` is where the symbol `name` begins.
    fn room(&mut self, name: &CStr, address: usize) -> Option<usize> {
        let Self(text) = self;
        // SAFETY: `text` has KSYM_SYMBOL_LEN bytes, the most that is written: `__sprint_symbol()`
        // (`kernel/kallsyms.c`) and its callers count on that. The address is only looked up.
        let len = unsafe { bindings::sprint_symbol(text.as_mut_ptr().cast(), address as c_ulong) };
        let text = text.get(..usize::try_from(len).ok()?)?;

        // `name+0x0/0x<size>`; a symbol of a module has the module's name behind.
        let size = text
            .strip_prefix(name.to_bytes())?
            .strip_prefix(b"+0x0/0x")?;
        usize::from_str_radix(core::str::from_utf8(size).ok()?, 16).ok()
    }
}

/// Tries on data of a known address whether look-ups tell the truth.
fn self_check(names: &mut Names) -> core::result::Result<(), SymbolError> {
    let name = c"hash_algo_name";
    let address = look_up(name)?;

    // SAFETY: The function has no requirements.
    let known = unsafe { ffi::ima_trim_exported_data() } as usize;
    if address == known && names.room(name, address).is_some() {
        Ok(())
    } else {
        Err(SymbolError {
            name,
            why: Why::Broken,
        })
    }
}

impl<T> Symbol<T> {
    /// Finds a symbol by its name.
    fn find(name: &'static CStr, names: &mut Names) -> core::result::Result<Self, SymbolError> {
        let error = |why| SymbolError { name, why };
        let address = look_up(name)?;
        let room = names
            .room(name, address)
            .ok_or_else(|| error(Why::Elsewhere))?;
        let need = size_of::<T>();
        let pointer = NonNull::new(address as *mut T).ok_or_else(|| error(Why::Elsewhere))?;

        if room < need || !pointer.is_aligned() {
            return Err(error(Why::TooSmall { room, need }));
        }
        // INVARIANT: As just checked.
        Ok(Self {
            address: pointer,
            room,
        })
    }
}

/// Declares [`Symbols`] and how they are found.
macro_rules! symbols {
    ($($(#[$doc:meta])* $field:ident = $name:literal: $type:ty,)*) => {
        /// The symbols that are used.
        pub(crate) struct Symbols {
            $($(#[$doc])* pub(super) $field: Symbol<$type>,)*
            /// Whether kernels before this one may have had records that this one never counted.
            pub(super) maybe_kexec: bool,
        }

        impl Symbols {
            /// Finds all symbols, or says which one cannot be used.
            pub(crate) fn find() -> core::result::Result<Self, SymbolError> {
                let mut names = Names::new().map_err(|_| SymbolError {
                    name: c"hash_algo_name",
                    why: Why::NoMemory,
                })?;

                self_check(&mut names)?;
                Ok(Self {
                    $($field: Symbol::find($name, &mut names)?,)*
                    maybe_kexec: maybe_kexec(&mut names),
                })
            }
        }
    };
}

symbols! {
    /// The head of the list of records (`security/integrity/ima/ima_queue.c`, as all down to
    /// `binary_runtime_size`).
    ima_measurements = c"ima_measurements": bindings::list_head,
    /// The head of the list of staged records.
    ima_measurements_staged = c"ima_measurements_staged": bindings::list_head,
    /// The mutex that appending takes.
    ima_extend_list_mutex = c"ima_extend_list_mutex": bindings::mutex,
    /// Whether measuring is suspended: a `bool` of C, which is a byte. Under
    /// `ima_extend_list_mutex`.
    ima_measurements_suspended = c"ima_measurements_suspended": u8,
    /// How many records there are, by `enum binary_lists`. Written under `ima_extend_list_mutex`.
    ima_num_records = c"ima_num_records": i64,
    /// What the lists take when serialised, by `enum binary_lists`, or `ULONG_MAX` where that is
    /// not counted. Under `ima_extend_list_mutex`.
    binary_runtime_size = c"binary_runtime_size": usize,
    /// How many violations there were since boot.
    ima_num_violations = c"ima_num_violations": i64,
    /// The hash table of the records' digests; null as long as IMA is not initialised.
    ima_htable = c"ima_htable": *mut c_void,
    /// The mutex of the three that follow (`security/integrity/ima/ima_fs.c`).
    ima_measure_mutex = c"ima_measure_mutex": bindings::mutex,
    /// How many have a measurement list open for reading, or -1 for one that writes.
    ima_measure_users = c"ima_measure_users": isize,
    /// The task that opened a measurement list for writing.
    measure_writer = c"measure_writer": *mut c_void,
    /// How many times more that task did.
    measure_writer_extra_writes = c"measure_writer_extra_writes": isize,
    /// The TPM, or null (`security/integrity/ima/ima_init.c`).
    ima_tpm_chip = c"ima_tpm_chip": *mut ffi::TpmChip,
    /// The slot of a record's digests that has the SHA-1
    /// (`security/integrity/ima/ima_crypto.c`, as the next one).
    ima_sha1_idx = c"ima_sha1_idx": i32,
    /// The slot of the digest that duplicates are looked up by.
    ima_hash_algo_idx = c"ima_hash_algo_idx": i32,
    /// The algorithm of that digest (`security/integrity/ima/ima_main.c`).
    ima_hash_algo = c"ima_hash_algo": i32,
    /// How many digests a record has beyond those of the TPM's banks.
    ima_extra_slots = c"ima_extra_slots": i32,
    /// The kernel's BTF (`include/asm-generic/vmlinux.lds.h`).
    start_btf = c"__start_BTF": u8,
}

/// What kexec says of itself to the kernel that it starts, in the upper half of a byte
/// (`type_of_loader`, `Documentation/arch/x86/boot.rst`).
const KEXEC_LOADER: i32 = 0xd;

/// Whether the kernel may have been started by kexec, and others before it had the TPM.
///
/// Loaders say who they are on x86 only. If it cannot be told there, it was not.
fn maybe_kexec(names: &mut Names) -> bool {
    if !cfg!(CONFIG_X86) {
        return true;
    }
    Symbol::<i32>::find(c"bootloader_type", names).is_ok_and(|symbol| {
        // SAFETY: By the invariants of `Symbol`; it is written while the kernel starts only
        // (`arch/x86/kernel/setup.c`).
        let loader = unsafe { symbol.as_ptr().read_volatile() };

        loader.checked_shr(4) == Some(KEXEC_LOADER)
    })
}

/// The most that a kernel's BTF may have.
const MAX_BTF: usize = 64 << 20;

impl Symbols {
    /// The kernel's BTF.
    pub(crate) fn btf(&self) -> core::result::Result<&'static [u8], SymbolError> {
        let start = self.start_btf.as_ptr();
        // It is no place to read from and may be where another symbol begins, so only the order of
        // the two addresses is checked.
        let stop = look_up(c"__stop_BTF")?;

        match stop.checked_sub(start as usize) {
            Some(len) if (1..=MAX_BTF).contains(&len) => {
                // SAFETY: The linker script of the kernel puts all of `.BTF`, which is read-only
                // and never freed, between the two symbols.
                Ok(unsafe { core::slice::from_raw_parts(start, len) })
            }
            _ => Err(SymbolError {
                name: c"__stop_BTF",
                why: Why::Elsewhere,
            }),
        }
    }
}
