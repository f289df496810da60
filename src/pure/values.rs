// SPDX-License-Identifier: GPL-2.0

//! The values of all PCRs in all banks.

#![forbid(unsafe_code)]

use core::ops::Deref;
use core::ops::DerefMut;

use crate::bank::reset_byte;
use crate::bank::Banks;
use crate::bank::Pcr;
use crate::bank::Value;
use crate::bank::MAX_DIGEST;
use crate::bank::PCRS;

/// One [`Value`] for each bank and PCR, in memory that the caller has allocated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PcrValues<S> {
    /// The value of a PCR is at bank index times [`PCRS`] plus PCR.
    cells: S,
}

/// Where the value of a PCR is.
fn cell(bank: usize, pcr: Pcr) -> Option<usize> {
    bank.checked_mul(PCRS)?.checked_add(pcr.index())
}

impl<S: Deref<Target = [Value]>> PcrValues<S> {
    /// How many cells the values of these banks need.
    pub fn cells(banks: &Banks) -> usize {
        // There are at most MAX_BANKS banks, so this never saturates.
        banks.len().saturating_mul(PCRS)
    }

    /// Values in these cells, as they are. There must be as many as [`PcrValues::cells`] says.
    pub fn new(cells: S, banks: &Banks) -> Option<Self> {
        (cells.len() == Self::cells(banks)).then_some(Self { cells })
    }

    /// The value of a PCR.
    pub fn get(&self, bank: usize, pcr: Pcr) -> Option<&Value> {
        self.cells.get(cell(bank, pcr)?)
    }
}

impl<S: DerefMut<Target = [Value]>> PcrValues<S> {
    /// The value of a PCR, to be changed.
    pub fn get_mut(&mut self, bank: usize, pcr: Pcr) -> Option<&mut Value> {
        self.cells.get_mut(cell(bank, pcr)?)
    }

    /// Sets all PCRs to their reset values.
    pub fn reset(&mut self, banks: &Banks) {
        self.cells.fill([0; MAX_DIGEST]);
        for (bank, info) in banks.iter() {
            for pcr in Pcr::all() {
                if let Some(value) = self.get_mut(bank, pcr) {
                    value
                        .iter_mut()
                        .take(info.size)
                        .for_each(|byte| *byte = reset_byte(pcr));
                }
            }
        }
    }

    /// Takes over the values of `other`. False, and nothing is changed, if it is of other banks.
    #[must_use]
    pub fn copy_from<T: Deref<Target = [Value]>>(&mut self, other: &PcrValues<T>) -> bool {
        if self.cells.len() != other.cells.len() {
            return false;
        }
        for (to, from) in self.cells.iter_mut().zip(other.cells.iter()) {
            *to = *from;
        }
        true
    }
}
