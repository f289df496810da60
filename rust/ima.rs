// SPDX-License-Identifier: GPL-2.0

//! IMA: its measurement list, and who may touch it when.
//!
//! IMA keeps two exclusions (`security/integrity/ima/`). The measurement list *files* have many
//! readers or one writer, counted in `ima_measure_users` under `ima_measure_mutex` (`ima_fs.c`);
//! only a writer stages or deletes. Appending takes `ima_extend_list_mutex` (`ima_queue.c`), which
//! also covers the counters, each change of the list, and the digest hash table.
//!
//! Their order, outermost first, and what each is here:
//!
//! 1. `Hold` (`access`): we are counted as one more reader, so no writer can come in;
//! 2. `Exclusive` (`cut`): `ima_measure_mutex`, and the proof that nobody but us is counted;
//! 3. `ListGuard` (`lock`): `ima_extend_list_mutex`, shortly.
//!
//! A walk needs the first and borrows it. A cut needs all three: an `Exclusive` is made of a hold
//! that nobody walks in, and takes the mutex itself. Reclaiming what a cut returned needs none:
//! nobody can reach the records any more but by the hash table, which takes the one [`Table`].
//!
//! From the bottom up, each file knowing only those before it: `record` reads a record; `lock` has
//! the two mutexes and what they cover; `access` who has the list open; `walk` goes along it and
//! `search` looks at its end; `free` gives memory back; `small` makes entries for the hash table
//! alone; `chain` has the records that were taken out of the list, `table` takes them out of the
//! hash table; `reclaim` has the modes; `cut` cuts.
//!
//! IMA's structs are private, so whatever is read of them is found by the offsets of
//! [`Layout`], which come from the running kernel's own BTF.
//!
//! [`Ima::guard`] counts us once more, from the load to the unload, and [`Ima::lock`] more often,
//! until the machine is rebooted. Nobody walks in these.
//!
//! Not supported: staging, appending.

mod access;
mod chain;
mod cut;
mod free;
mod lock;
mod reclaim;
mod record;
mod search;
mod small;
mod table;
mod walk;

pub(crate) use self::{
    access::Hold,
    lock::Counters,
    reclaim::Cut,
    record::ListRecord,
    table::Table,
    walk::Position, //
};
pub(crate) use super::openers::Busy;

use super::{
    btf::{
        Btf,
        BtfError, //
    },
    claim::Claim,
    ffi,
    hash,
    layout::{
        Layout,
        LayoutError, //
    },
    symbols::{
        Symbol,
        SymbolError,
        Symbols, //
    },
    tpm::Chip, //
};
use crate::errno::Errno;
use core::{
    fmt,
    ptr::NonNull, //
};
use kernel::{
    prelude::*,
    sync::atomic::Atomic, //
};

/// The PCR that IMA extends unless a rule names another: `CONFIG_IMA_MEASURE_PCR_IDX`.
pub(crate) fn measure_pcr() -> u32 {
    // SAFETY: It is a constant of `helpers.c`.
    unsafe { ffi::ima_trim_measure_pcr }
}

/// The kernel's IMA.
///
/// # Invariants
///
/// - `layout` is that of the running kernel, whose private structs are nowhere else described.
/// - Every record has `slots` digests: one for each bank of the TPM, in their order, and
///   `ima_extra_slots` more (`ima_alloc_init_template()`, `ima_restore_template_data()`).
///   `sha1_slot` and `lookup_slot` are less than that, and a digest has at least `lookup_size`
///   bytes.
/// - `ima_measure_users` counts us `counted` times, apart from holds.
pub(crate) struct Ima {
    symbols: Symbols,
    layout: Layout,
    /// How many digests a record has.
    slots: usize,
    sha1_slot: usize,
    /// The slot of the digest that duplicates are looked up by, and how many bytes of it.
    lookup_slot: usize,
    lookup_size: usize,
    /// How often we are counted as a reader, for the guard or the lock.
    counted: isize,
    /// Whether we stay counted when this is dropped.
    stays: Atomic<bool>,
    /// `ima_num_records[]` of the list, of the staged list, and of all records ever added.
    live: Symbol<i64>,
    staged: Symbol<i64>,
    full: Symbol<i64>,
    /// `binary_runtime_size[]` of the list.
    serialised: Symbol<usize>,
}

/// Why IMA cannot be used.
pub(crate) enum FindError {
    /// A symbol is missing, or not what it should be.
    Symbol(SymbolError),
    /// The kernel's BTF cannot be read.
    Btf(BtfError),
    /// IMA's structs are others.
    Layout(LayoutError),
    /// No memory.
    NoMemory,
    /// IMA was not initialised.
    NoIma,
    /// IMA has no TPM.
    NoTpm,
    /// What IMA says of the digests of its records makes no sense.
    Slots {
        /// `ima_sha1_idx`.
        sha1: i32,
        /// `ima_hash_algo_idx`.
        lookup: i32,
        /// `ima_extra_slots`.
        extra: i32,
    },
    /// The enumerators of `enum binary_lists` lie beyond the counters.
    Lists,
}

impl FindError {
    /// The error number for the failed load.
    pub(crate) fn errno(&self) -> Error {
        match self {
            Self::Symbol(error) => error.errno(),
            // `kernel::error::code` has it from Linux 7.3 on.
            Self::Btf(_) | Self::Layout(_) => {
                Error::from_errno(Errno::OpNotSupp.code().saturating_neg())
            }
            Self::NoMemory => ENOMEM,
            Self::NoIma | Self::NoTpm => ENODEV,
            Self::Slots { .. } | Self::Lists => ENXIO,
        }
    }
}

impl fmt::Display for FindError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Symbol(error) => error.fmt(f),
            Self::Btf(error) => write!(f, "BTF of the kernel: {error}"),
            Self::Layout(error) => write!(
                f,
                "{error}: this kernel's IMA is not one that is known; nothing is touched"
            ),
            Self::NoMemory => f.write_str("no memory to read the kernel's BTF"),
            Self::NoIma => {
                f.write_str("IMA is not initialised on this kernel: there is no list to trim")
            }
            Self::NoTpm => f.write_str(
                "IMA has no TPM: no PCR values name a point of the list; a TPM driver that is a \
                 module comes too late for IMA",
            ),
            Self::Slots {
                sha1,
                lookup,
                extra,
            } => write!(
                f,
                "ima_sha1_idx={sha1}, ima_hash_algo_idx={lookup} and ima_extra_slots={extra} make \
                 no sense"
            ),
            Self::Lists => {
                f.write_str("enum binary_lists has more enumerators than IMA has counters")
            }
        }
    }
}

impl From<SymbolError> for FindError {
    fn from(error: SymbolError) -> Self {
        Self::Symbol(error)
    }
}

impl From<BtfError> for FindError {
    fn from(error: BtfError) -> Self {
        Self::Btf(error)
    }
}

impl From<LayoutError> for FindError {
    fn from(error: LayoutError) -> Self {
        Self::Layout(error)
    }
}

/// The layout of the running kernel's structs.
fn layout(symbols: &Symbols) -> Result<Layout, FindError> {
    let btf = Btf::parse(symbols.btf()?)?;
    let types = btf.count_types()? as usize;
    let mut offsets = KVVec::from_elem(0u32, types, GFP_KERNEL).map_err(|_| FindError::NoMemory)?;

    Ok(Layout::resolve(&btf.index(&mut offsets)?)?)
}

impl Ima {
    /// IMA of the running kernel, the right to its digest hash table, and its TPM.
    ///
    /// Takes the claim, so there is one of each at most. Allocates and sleeps.
    pub(crate) fn find(claim: Claim) -> Result<(Self, Table, Chip), FindError> {
        let symbols = Symbols::find()?;
        let layout = layout(&symbols)?;
        // SAFETY: By the invariants of `Symbol` the pointers are valid. These variables are written
        // only while the kernel starts, but for `ima_htable`, which is a word that is exchanged
        // whole; only whether it is null is looked at.
        let (htable, chip, sha1, lookup, algorithm, extra) = unsafe {
            (
                symbols.ima_htable.as_ptr().read_volatile(),
                symbols.ima_tpm_chip.as_ptr().read_volatile(),
                symbols.ima_sha1_idx.as_ptr().read_volatile(),
                symbols.ima_hash_algo_idx.as_ptr().read_volatile(),
                symbols.ima_hash_algo.as_ptr().read_volatile(),
                symbols.ima_extra_slots.as_ptr().read_volatile(),
            )
        };

        if htable.is_null() {
            return Err(FindError::NoIma);
        }
        // SAFETY: It is what was just read of `ima_tpm_chip`.
        let chip = NonNull::new(chip).map(|chip| unsafe { Chip::new(chip) });
        let Some(chip) = chip else {
            return Err(FindError::NoTpm);
        };

        let slots = usize::try_from(extra)
            .ok()
            .and_then(|extra| chip.banks().count().checked_add(extra))
            .unwrap_or(0);
        let slot = |index: i32| usize::try_from(index).ok().filter(|slot| *slot < slots);
        let lookup_size = u16::try_from(algorithm)
            .ok()
            .and_then(hash::algorithm)
            .map(|(_, size)| size)
            .filter(|size| *size <= layout.tpm_digest.digest_len);
        let (Some(sha1_slot), Some(lookup_slot), Some(lookup_size)) =
            (slot(sha1), slot(lookup), lookup_size)
        else {
            return Err(FindError::Slots {
                sha1,
                lookup,
                extra,
            });
        };

        let lists = layout.binary_lists;
        let records = &symbols.ima_num_records;
        let (Some(live), Some(staged), Some(full), Some(serialised)) = (
            records.element(lists.binary),
            records.element(lists.binary_staged),
            records.element(lists.binary_full),
            symbols.binary_runtime_size.element(lists.binary),
        ) else {
            return Err(FindError::Lists);
        };

        // INVARIANT: The slots were just checked. The layout is what the kernel's BTF says.
        Ok((
            Self {
                symbols,
                layout,
                slots,
                sha1_slot,
                lookup_slot,
                lookup_size,
                counted: 0,
                stays: Atomic::new(false),
                live,
                staged,
                full,
                serialised,
            },
            Table::new(claim),
            chip,
        ))
    }

    /// Whether kernels before this one may have had records that this one never counted.
    pub(crate) fn maybe_kexec(&self) -> bool {
        self.symbols.maybe_kexec
    }

    /// `ima_num_violations`: how many violations there were in this kernel, whether or not they
    /// became records.
    pub(crate) fn violations(&self) -> u64 {
        let count = self.symbols.ima_num_violations.read();

        u64::try_from(count).unwrap_or(0)
    }
}
