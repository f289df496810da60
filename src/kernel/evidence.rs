// SPDX-License-Identifier: GPL-2.0

//! Evidence of what the module does, in the measurement list itself: it is announced before it is
//! done, so that nothing that comes after can lose the announcement.
//!
//! What IMA answers is not evidence. An announcement is *measured* if its record is found in the
//! list as it should be: with the template of buffers, our data, and the PCR that is IMA's own. A
//! rule of the policy can make it otherwise, by `template=` or `pcr=`.
//!
//! Where requests have to be signed, nothing is changed unless the load and the announcement are
//! measured, and the list with the announcement replays to what the TPM has.

#![forbid(unsafe_code)]

use crate::{
    account::Account,
    bank::{
        Pcr,
        PcrSet, //
    },
    errno::Errno,
    ledger::{
        removed,
        Foreign, //
    },
    machine::Machine,
    refusal::Refusal,
    report::{
        self,
        Event, //
    },
    rust::{
        evidence::{
            self,
            Offered, //
        },
        ima::Busy,
        keyring::{
            self,
            Licence, //
        },
        workqueue::{
            Item,
            KernelThread, //
        },
    },
    text::Text,
    trimmer::Trimmer,
    verify::Verdict,
};
use core::fmt::{
    self,
    Write, //
};
use kernel::{
    new_mutex,
    prelude::*,
    sync::{
        Arc,
        Mutex, //
    },
};

/// What became of the evidence so far.
#[derive(Clone, Copy, Default)]
pub(crate) struct Tally {
    /// Events that are measured.
    pub(crate) measured: u64,
    /// Times that an audit record or a measurement failed.
    pub(crate) failed: u64,
    /// Whether the last event is measured.
    pub(crate) last: bool,
}

/// What the module keeps of its evidence.
#[pin_data]
pub(crate) struct Evidence {
    /// No other lock is taken while it is held.
    #[pin]
    kept: Mutex<Kept>,
}

struct Kept {
    tally: Tally,
    /// The announcement of the load, until it is measured.
    load: Option<Arc<Announcement>>,
    /// Whether there was no rule for it the last time.
    awaits_rule: bool,
    /// Which ways not to be measured were logged, by their number.
    told: [bool; 3],
}

/// Why an event that IMA has taken is not measured.
#[derive(Clone, Copy)]
enum Unmeasured {
    /// There is no rule for it.
    NoRule,
    /// The record is of another PCR.
    Pcr(i32),
    /// No such record was found: most likely it is of another template.
    Template,
}

impl fmt::Display for Unmeasured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoRule => f.write_str(
                "no rule of the IMA policy measures it; add \"measure func=CRITICAL_DATA \
                 label=ima_trim\"",
            ),
            Self::Pcr(pcr) => write!(
                f,
                "IMA measured it into PCR {pcr}, where it proves nothing; take pcr= out of the rule \
                 for label=ima_trim"
            ),
            Self::Template => f.write_str(
                "no record with its data is found in the list; take template= out of the rule for \
                 label=ima_trim",
            ),
        }
    }
}

/// An event, with the text that is to be measured, and a NUL behind it.
struct Announcement {
    event: Event,
    text: Text,
}

impl Announcement {
    /// The announcement of an event. `rest` writes what follows the text of the event itself.
    fn new(
        trimmer: &Trimmer,
        event: Event,
        rest: impl FnOnce(&mut Text) -> core::fmt::Result,
    ) -> Result<Self, Refusal<'static>> {
        let mut text = Text::new();

        report::event(&mut text, &event, trimmer.instance)?;
        rest(&mut text)?;
        text.write_char('\0')?;
        Ok(Self { event, text })
    }

    /// What is measured.
    fn data(&self) -> &[u8] {
        self.text.as_bytes().strip_suffix(&[0]).unwrap_or_default()
    }
}

/// What is about to be done was announced.
#[must_use = "what was announced is not known to be in the TPM"]
pub(crate) struct Announced(());

/// What was announced can be done.
pub(crate) struct Confirmed(());

impl Evidence {
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            kept <- new_mutex!(
                Kept {
                    tally: Tally::default(),
                    load: None,
                    awaits_rule: false,
                    told: [false; 3],
                },
                "ima_trim::Evidence"
            ),
        })
    }

    /// What became of the evidence so far.
    pub(crate) fn tally(&self) -> Tally {
        self.kept.lock().tally
    }

    /// Whether the load is measured.
    fn is_load_measured(&self) -> bool {
        self.kept.lock().load.is_none()
    }

    /// Notes that there is no audit record.
    pub(crate) fn audit_failed(&self) {
        let mut kept = self.kept.lock();

        kept.tally.failed = kept.tally.failed.saturating_add(1);
    }

    /// Notes that IMA has not taken an event.
    fn measuring_failed(&self) {
        let mut kept = self.kept.lock();

        kept.tally.failed = kept.tally.failed.saturating_add(1);
        kept.tally.last = false;
    }

    /// Notes that an event is measured.
    fn measured(&self, event: &Event) {
        let mut kept = self.kept.lock();

        kept.tally.measured = kept.tally.measured.saturating_add(1);
        kept.tally.last = true;
        let done = match event {
            Event::Load { .. } => kept.load.take(),
            _ => None,
        };
        drop(kept);
        drop(done);
    }

    /// Notes that IMA has taken an event, and that it is not measured.
    fn unmeasured(&self, event: &Event, why: Unmeasured) {
        let mut kept = self.kept.lock();
        let kind = match why {
            Unmeasured::NoRule => 0,
            Unmeasured::Pcr(_) => 1,
            Unmeasured::Template => 2,
        };
        let told = kept.told.get_mut(kind);
        let news = told.is_some_and(|told| !core::mem::replace(told, true));

        kept.tally.last = false;
        if let Event::Load { .. } = event {
            kept.awaits_rule = matches!(why, Unmeasured::NoRule);
        }
        drop(kept);
        if news {
            log_warn!(
                "the event {} leaves no evidence in the measurement list: {why}",
                event.as_str()
            );
        }
    }
}

impl Trimmer {
    /// Has IMA measure an event that is about to happen, and waits for that. `account` is the
    /// account as it will be after it. If the task is killed meanwhile, IMA measures it all the
    /// same.
    ///
    /// An event that no rule measures, or that one measures in another way, is an error only where
    /// requests have to be signed. No lock may be held that IMA takes.
    pub(crate) fn announce(
        self: &Arc<Self>,
        event: Event,
        account: &Account,
        _licence: &Licence,
    ) -> Result<Announced, Refusal<'static>> {
        let announcement =
            Announcement::new(self, event, |text| account.show(text, &self.machine))?;
        let trimmer = self.clone();

        let is_measured = self.machine.queue.call(move |thread| {
            trimmer
                .offer_after_load(thread, &announcement)
                .inspect_err(|_| {
                    trimmer.evidence.measuring_failed();
                })
        })??;
        if self.authority.is_signers() && !is_measured {
            return Err(Refusal::Unmeasured(event.as_str()));
        }
        Ok(Announced(()))
    }

    /// Makes sure that what was announced can be done. Where requests have to be signed, `replay`
    /// compares the list with the TPM, and these PCRs have to agree: IMA does not say whether its
    /// extend was carried out.
    pub(crate) fn confirm(
        &self,
        _announced: Announced,
        pcrs: PcrSet,
        replay: impl FnOnce() -> Result<Verdict, Refusal<'static>>,
    ) -> Result<Confirmed, Refusal<'static>> {
        if self.authority.is_signers() {
            let verdict = replay()?;

            if let Some(pcr) = pcrs.without(verdict.verified).iter().next() {
                return Err(Refusal::Unproved(pcr));
            }
        }
        Ok(Confirmed(()))
    }

    /// Where requests have to be signed, refuses to change anything before the load is measured:
    /// the verifier has to know of which instance the events are, and who may sign.
    pub(crate) fn require_load(&self) -> Result<(), Refusal<'static>> {
        if self.authority.is_signers() && !self.evidence.is_load_measured() {
            Err(Refusal::Unmeasured("load"))
        } else {
            Ok(())
        }
    }

    /// Announces that the module was loaded.
    pub(crate) fn announce_load(self: &Arc<Self>) -> Result<(), Refusal<'static>> {
        let ima = &self.machine.ima;
        let counters = ima.counters();
        let load = Event::Load {
            guard: ima.is_guarded(),
            signatures: self.authority.is_signers(),
            kernel_deleted: removed(&counters),
            kernel_violations: ima.violations(),
        };
        let announcement = Announcement::new(self, load, |text| {
            report::keys(text, keyring::fingerprints())?;
            self.ledger
                .lock()
                .show_starting(text, &self.machine, &counters)
        })?;

        self.evidence.kept.lock().load = Some(Arc::new(announcement, GFP_KERNEL)?);
        self.repeat_load()
    }

    /// Announces once more that the module was loaded, unless that is measured: the rule for it may
    /// come later than the module.
    pub(crate) fn repeat_load(self: &Arc<Self>) -> Result<(), Refusal<'static>> {
        let trimmer = self.clone();

        if self.evidence.kept.lock().load.is_none() {
            return Ok(());
        }
        self.machine.queue.call(move |thread| {
            let load = trimmer.evidence.kept.lock().load.clone();

            load.map_or(Ok(()), |load| trimmer.offer(thread, &load).map(drop))
                .inspect_err(|_| trimmer.evidence.measuring_failed())
        })?
    }

    /// Tells that somebody else has removed records: in the log, if they are more than before, and
    /// IMA, for which this does not wait. If that fails, IMA is told when somebody looks the next
    /// time.
    pub(crate) fn tell_foreign(self: &Arc<Self>, foreign: Foreign) {
        if foreign.has_grown {
            log_foreign(foreign.records);
        }
        let event = Event::Foreign {
            kernel_deleted: foreign.kernel_deleted,
            foreign_records: foreign.records,
        };
        let begin = || {
            let announcement = Announcement::new(self, event, |_| Ok(()))?;
            let item = Item::new()?;
            let trimmer = self.clone();

            // It is only dropped when the module is unloaded, and all files are gone.
            self.machine.queue.begin(item, move |thread| {
                if let Err(refusal) = trimmer.offer_after_load(thread, &announcement) {
                    trimmer.foreign_untold(&foreign, &refusal);
                }
            });
            Ok(())
        };

        if let Err(refusal) = begin() {
            self.foreign_untold(&foreign, &refusal);
        }
    }

    /// Notes that IMA could not be told that somebody else has removed records.
    fn foreign_untold(&self, foreign: &Foreign, refusal: &Refusal<'_>) {
        // Whoever looks again and again makes no more failures of it.
        if foreign.has_grown {
            self.evidence.measuring_failed();
        }
        log_limited!(
            log_warn,
            "the event foreign is not measured yet, and is offered again when a file is read or \
             written: {refusal}"
        );
        self.ledger.lock().foreign_untold();
    }

    /// Has IMA measure an announcement, after the load if there was no rule for that before: the
    /// rule may have come since, and the record of the load has to be the first.
    ///
    /// Says whether it is measured.
    fn offer_after_load(
        &self,
        thread: &KernelThread,
        announcement: &Announcement,
    ) -> Result<bool, Refusal<'static>> {
        let load = {
            let kept = self.evidence.kept.lock();

            kept.load.clone().filter(|_| kept.awaits_rule)
        };

        if let Some(load) = load {
            self.offer(thread, &load)?;
        }
        self.offer(thread, announcement)
    }

    /// Has IMA measure an announcement, and looks for the record. Says whether it is measured.
    fn offer(
        &self,
        thread: &KernelThread,
        announcement: &Announcement,
    ) -> Result<bool, Refusal<'static>> {
        let Machine {
            ima, measure_pcr, ..
        } = &*self.machine;
        let Announcement { event, text } = announcement;
        let before = ima.counters().full;
        let offered = evidence::measure(thread, event.name(), text.as_bytes()).map_err(
            |error| match error {
                ENODEV => Busy::Suspended.into(),
                ENOMEM => Refusal::Unannounced(event.as_str(), Errno::NoMem),
                _ => Refusal::Unannounced(event.as_str(), Errno::Io),
            },
        )?;
        // A new record is among those that were added since; one that was known is somewhere.
        let since = match offered {
            Offered::NoRule => {
                self.evidence.unmeasured(event, Unmeasured::NoRule);
                return Ok(false);
            }
            Offered::Taken => Some(before),
            Offered::Known => None,
        };

        match ima.find_buffer(event.name().to_bytes(), announcement.data(), since) {
            Some(pcr) if Pcr::from_record(pcr) == Some(*measure_pcr) => {
                self.evidence.measured(event);
                return Ok(true);
            }
            Some(pcr) => self.evidence.unmeasured(event, Unmeasured::Pcr(pcr)),
            None => self.evidence.unmeasured(event, Unmeasured::Template),
        }
        Ok(false)
    }
}

/// Tells the log that records are gone that the account does not have.
pub(crate) fn log_foreign(records: u64) {
    log_warn!(
        "somebody else removed {records} records: the starting PCR values are unknown until they are \
         written to starting_pcrs, and nothing will be trimmed"
    );
}
