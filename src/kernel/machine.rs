// SPDX-License-Identifier: GPL-2.0

//! The machine that the module was loaded on: its IMA, its TPM, and the banks that can be replayed.
//! All of it is found at load and never changes.

#![forbid(unsafe_code)]

use crate::{
    bank::{
        Bank,
        Banks,
        Pcr,
        Value,
        MAX_BANKS,
        MAX_DIGEST, //
    },
    errno::Errno,
    refusal::Refusal,
    report::Escaped,
    rust::{
        claim::Claim,
        hash::{
            self,
            Hashes, //
        },
        ima::{
            self,
            Ima,
            Table, //
        },
        tpm::Chip,
        workqueue::Queue, //
    },
    values::PcrValues,
};
use kernel::{
    alloc::AllocError,
    prelude::*,
    str::CString, //
};

/// PCR values in memory of the kernel.
pub(crate) type Values = PcrValues<KVec<Value>>;

/// The kernel's error of an error number.
///
/// `EINTR` becomes `ERESTARTSYS`: nothing was changed, so the kernel may make the call again after
/// a signal, a stop or a freeze.
pub(crate) fn error(errno: Errno) -> Error {
    match errno {
        Errno::Intr => ERESTARTSYS,
        // `kernel::error::code` has not all of them before Linux 7.3.
        errno => Error::from_errno(errno.code().saturating_neg()),
    }
}

/// What the module was loaded on.
pub(crate) struct Machine {
    /// IMA.
    pub(crate) ima: Ima,
    /// The banks that can be replayed, in the order of the TPM.
    pub(crate) banks: Banks,
    /// The hash algorithms of these banks.
    pub(crate) hashes: Hashes,
    /// The names of the banks that cannot be replayed.
    pub(crate) unreplayable: KVec<CString>,
    /// The PCR that IMA extends unless a rule names another.
    pub(crate) measure_pcr: Pcr,
    /// Where work is done for which the current task will not do, talking to the TPM above all.
    pub(crate) queue: Queue,
    tpm: Chip,
    /// The TPM's own number for the algorithm of each bank.
    alg_ids: [u16; MAX_BANKS],
}

impl Machine {
    /// Finds all of it, or says in the log what is missing.
    ///
    /// `ENOENT` if a symbol is missing, `ENXIO` if one is not what it should be, `EOPNOTSUPP` if a
    /// struct or every bank is unknown, `ENODEV` without IMA or a TPM, `ENOMEM`.
    pub(crate) fn find(claim: Claim, queue: Queue) -> Result<(KBox<Self>, Table)> {
        let (ima, table, tpm) = Ima::find(claim).map_err(|error| {
            log_err!("{error}");
            error.errno()
        })?;
        let Some(measure_pcr) = Pcr::new(ima::measure_pcr()) else {
            log_err!("CONFIG_IMA_MEASURE_PCR_IDX is no PCR");
            return Err(ENXIO);
        };

        let mut this = KBox::new(
            Self {
                ima,
                banks: Banks::new(),
                hashes: Hashes::new(),
                unreplayable: KVec::new(),
                measure_pcr,
                queue,
                tpm,
                alg_ids: [0; MAX_BANKS],
            },
            GFP_KERNEL,
        )?;
        this.find_banks()?;
        Ok((this, table))
    }

    /// Finds which banks can be replayed.
    fn find_banks(&mut self) -> Result {
        for (position, bank) in self.tpm.banks().enumerate() {
            let number = self.banks.len();
            let algorithm = hash::algorithm(bank.crypto_id);
            let replayable = algorithm
                .filter(|(name, size)| {
                    *size == usize::from(bank.digest_size)
                        && self.hashes.set(number, name, *size).is_ok()
                })
                .and_then(|(name, size)| {
                    let name = name.to_str().ok()?;

                    Some(Bank {
                        name,
                        size,
                        position,
                    })
                })
                .is_some_and(|bank| self.banks.push(bank).is_ok());

            if !replayable {
                let alg_id = bank.alg_id;
                let name = match algorithm.and_then(|(name, _)| name.to_str().ok()) {
                    Some(name) => CString::try_from_fmt(fmt!("{name}"))?,
                    None => CString::try_from_fmt(fmt!("alg_{alg_id:#06x}"))?,
                };

                log_warn!(
                    "bank {} cannot be replayed: its values are neither kept nor accepted",
                    Escaped(name.to_bytes())
                );
                self.unreplayable.push(name, GFP_KERNEL)?;
            } else if let Some(slot) = self.alg_ids.get_mut(number) {
                *slot = bank.alg_id;
            }
        }
        if self.banks.is_empty() {
            log_err!("no bank of the TPM can be replayed");
            return Err(error(Errno::OpNotSupp));
        }
        Ok(())
    }

    /// Room for the values of all PCRs in all banks, at their reset values.
    pub(crate) fn reset_values(&self) -> Result<Values, AllocError> {
        let cells = KVec::from_elem([0; MAX_DIGEST], Values::cells(&self.banks), GFP_KERNEL)?;
        let mut values = PcrValues::new(cells, &self.banks).ok_or(AllocError)?;

        values.reset(&self.banks);
        Ok(values)
    }

    /// A copy of PCR values of these banks.
    pub(crate) fn copy(&self, values: &Values) -> Result<Values, AllocError> {
        let mut copy = self.reset_values()?;

        copy.copy_from(values).then_some(copy).ok_or(AllocError)
    }

    /// The value that a PCR of the TPM has in a bank, of this index.
    ///
    /// A thread of the kernel reads it, and is waited for.
    pub(crate) fn read_pcr(&self, bank: usize, pcr: Pcr) -> Result<Value, Refusal<'static>> {
        let (Some(&info), Some(&alg_id)) = (self.banks.get(bank), self.alg_ids.get(bank)) else {
            return Err(Refusal::Tpm { bank: "?", pcr });
        };
        let tpm = self.tpm;

        self.queue
            .call(move |thread| tpm.read(thread, &info, alg_id, pcr))?
            .map_err(|error| match error {
                ENOMEM => Refusal::NoMemory,
                _ => Refusal::Tpm {
                    bank: info.name,
                    pcr,
                },
            })
    }
}
