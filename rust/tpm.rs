// SPDX-License-Identifier: GPL-2.0

//! The TPM that IMA extends: its banks and its PCR values.
//!
//! Not supported: extending, and any other chip than IMA's.

use super::{
    ffi,
    workqueue::KernelThread, //
};
use crate::bank::{
    Bank,
    Pcr,
    Value, //
};
use core::ptr::NonNull;
use kernel::{
    error::to_result,
    prelude::*, //
};

/// A PCR bank that the TPM has allocated.
#[derive(Clone, Copy)]
pub(crate) struct TpmBank {
    /// The algorithm, as the TPM numbers it (`TPM_ALG_ID`).
    pub(crate) alg_id: u16,
    /// The bytes of a digest.
    pub(crate) digest_size: u16,
    /// The algorithm, as the kernel numbers it (`enum hash_algo`), or one past the last.
    pub(crate) crypto_id: u16,
}

/// The TPM chip of IMA.
///
/// # Invariants
///
/// The chip is `ima_tpm_chip`, on which IMA holds a reference from `ima_init()`
/// (`security/integrity/ima/ima_init.c`) until the machine stops.
#[derive(Clone, Copy)]
pub(crate) struct Chip(NonNull<ffi::TpmChip>);

// SAFETY: The functions used here may be called from any task.
unsafe impl Send for Chip {}
// SAFETY: They take the chip's own locks.
unsafe impl Sync for Chip {}

impl Chip {
    /// # Safety
    ///
    /// `chip` is `ima_tpm_chip`.
    pub(super) unsafe fn new(chip: NonNull<ffi::TpmChip>) -> Self {
        // INVARIANT: By the safety requirement.
        Self(chip)
    }

    /// The banks, in the order in which records have their digests.
    pub(crate) fn banks(&self) -> impl Iterator<Item = TpmBank> + '_ {
        (0..).map_while(|index| {
            let mut bank = TpmBank {
                alg_id: 0,
                digest_size: 0,
                crypto_id: 0,
            };
            // SAFETY: The chip is valid by the type's invariants. Its banks are found before it is
            // registered (`tpm_chip_bootstrap()`, `tpm-chip.c`), and IMA finds none that is not.
            // The three fields can be written.
            to_result(unsafe {
                ffi::ima_trim_tpm_bank(
                    self.0.as_ptr(),
                    index,
                    &mut bank.alg_id,
                    &mut bank.digest_size,
                    &mut bank.crypto_id,
                )
            })
            .ok()
            .map(|()| bank)
        })
    }

    /// The value of a PCR in the bank of the algorithm `alg_id`.
    ///
    /// Takes the chip's locks and sleeps; a thread of the kernel, as its driver may wait
    /// interruptibly. `ENOMEM` if there is no memory for the command; what the TPM itself answers
    /// other than success, and whatever else goes wrong, is `EIO`.
    pub(crate) fn read(
        &self,
        _thread: &KernelThread,
        bank: &Bank,
        alg_id: u16,
        pcr: Pcr,
    ) -> Result<Value> {
        let mut value: Value = [0; crate::bank::MAX_DIGEST];

        if bank.size > value.len() {
            return Err(EINVAL);
        }
        // SAFETY: The chip is valid by the type's invariants, and `bank.size` bytes of `value` can
        // be written.
        let ret = unsafe {
            ffi::ima_trim_pcr_read(
                self.0.as_ptr(),
                pcr.index() as u32,
                alg_id,
                value.as_mut_ptr(),
                bank.size,
            )
        };
        // A positive number is an answer of the TPM.
        match ret {
            0 => Ok(value),
            ret if ret == ENOMEM.to_errno() => Err(ENOMEM),
            _ => Err(EIO),
        }
    }
}
