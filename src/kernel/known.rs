// SPDX-License-Identifier: GPL-2.0

//! What is known of the starting PCR values. They are *verified* if the replay from them has ended
//! in the values that the TPM has.

#![forbid(unsafe_code)]

use crate::{
    bank::{
        Pcr,
        PcrSet, //
    },
    verify::Verdict,
};

/// The verdicts on the starting PCR values.
#[derive(Clone, Copy)]
pub(crate) struct Known {
    /// PCRs whose starting values are verified, and that records extend.
    verified: PcrSet,
    /// PCRs whose starting values do not lead to what the TPM has.
    refuted: PcrSet,
    /// PCRs that records extended, trimmed or not.
    seen: PcrSet,
}

impl Known {
    /// Nothing but that IMA extends this PCR.
    pub(crate) fn new(own: Pcr) -> Self {
        Self {
            verified: PcrSet::new(),
            refuted: PcrSet::new(),
            seen: [own].into_iter().collect(),
        }
    }

    /// Whether the starting values of this PCR are verified.
    pub(crate) fn is_verified(&self, pcr: Pcr) -> bool {
        self.verified.contains(pcr)
    }

    /// PCRs that records extended, trimmed or not.
    pub(crate) fn seen(&self) -> PcrSet {
        self.seen
    }

    /// Of these PCRs, those whose starting values are neither verified nor refuted.
    pub(crate) fn undecided(&self, pcrs: PcrSet) -> PcrSet {
        pcrs.without(self.verified).without(self.refuted)
    }

    /// Of these PCRs, one whose starting values are not verified.
    pub(crate) fn unverified(&self, pcrs: PcrSet) -> Option<Pcr> {
        pcrs.without(self.verified).iter().next()
    }

    /// Notes a verdict. A verified starting value of a PCR that records extend stays verified: only
    /// a replay from it changes it. A PCR that no record extends may be extended by something else.
    ///
    /// Gives the PCRs that were refuted just now.
    pub(crate) fn judge(&mut self, verdict: &Verdict) -> PcrSet {
        let news = self.undecided(verdict.refuted);

        self.verified = self.verified.union(self.proved(verdict));
        self.refuted = self.refuted.union(verdict.refuted).without(self.verified);
        self.seen = self.seen.union(verdict.extended);
        news
    }

    /// Notes the verdict on values that are taken over: it is all that is known of these.
    pub(crate) fn replace(&mut self, verdict: &Verdict) {
        self.verified = self.proved(verdict);
        self.refuted = PcrSet::new();
        self.seen = self.seen.union(verdict.extended);
    }

    /// The PCRs whose starting values a verdict has verified for good.
    fn proved(&self, verdict: &Verdict) -> PcrSet {
        verdict
            .verified
            .intersection(self.seen.union(verdict.extended))
    }
}
