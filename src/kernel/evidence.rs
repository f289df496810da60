// SPDX-License-Identifier: GPL-2.0

//! Evidence of what the module does, in the measurement list itself: it is announced before it is done,
//! so that nothing that comes after can lose the announcement.
//!
//! What IMA answers is not evidence. An announcement is *measured* if its record is found in the list as
//! it should be: with the template of buffers, our data, and the PCR that is IMA's own. A rule of the
//! policy can make it otherwise, by `template=` or `pcr=`.

#![forbid(unsafe_code)]

use crate::{
    bank::Pcr,
    errno::Errno,
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
        workqueue::{
            Item,
            KernelThread, //
        },
    },
    text::Text,
    trimmer::Trimmer,
};
use core::fmt::Write;
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
    /// Whether the last event that was offered to IMA is measured.
    pub(crate) last: bool,
}

/// What the module keeps of its evidence.
#[pin_data]
pub(crate) struct Evidence {
    /// Never held together with another lock.
    #[pin]
    kept: Mutex<Kept>,
}

struct Kept {
    tally: Tally,
    /// What is to be measured of the load, as long as it is not.
    load: Option<Arc<Announcement>>,
    /// Which ways not to be measured the log has told of.
    told: [bool; Unmeasured::KINDS],
}

/// Why an event that IMA has taken is not measured.
#[derive(Clone, Copy)]
enum Unmeasured {
    /// There is no rule for it.
    NoRule,
    /// The record is of another PCR.
    Pcr(i32),
    /// The record is of another template.
    Template,
}

impl Unmeasured {
    const KINDS: usize = 3;

    fn kind(self) -> usize {
        match self {
            Self::NoRule => 0,
            Self::Pcr(_) => 1,
            Self::Template => 2,
        }
    }
}

/// An event, with the text that is to be measured, and a NUL behind it.
pub(crate) struct Announcement {
    event: Event,
    text: Text,
}

impl Announcement {
    /// The announcement of an event. `rest` writes what follows the text of the event itself.
    pub(crate) fn new(
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

impl Evidence {
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            kept <- new_mutex!(
                Kept {
                    tally: Tally::default(),
                    load: None,
                    told: [false; Unmeasured::KINDS],
                },
                "ima_trim::Evidence"
            ),
        })
    }

    /// What became of the evidence so far.
    pub(crate) fn tally(&self) -> Tally {
        self.kept.lock().tally
    }

    /// Notes that there is no audit record.
    pub(crate) fn audit_failed(&self) {
        let mut kept = self.kept.lock();

        kept.tally.failed = kept.tally.failed.saturating_add(1);
    }

    /// Notes that IMA has not taken an event.
    fn measuring_failed(&self) {
        self.audit_failed();
        self.kept.lock().tally.last = false;
    }

    /// Notes what became of an event that IMA has taken.
    fn note(&self, announcement: &Announcement, result: Result<(), Unmeasured>) {
        let event = announcement.event.as_str();
        let (done, news) = {
            let mut kept = self.kept.lock();

            kept.tally.last = result.is_ok();
            match result {
                Ok(()) => {
                    kept.tally.measured = kept.tally.measured.saturating_add(1);
                    let done = match announcement.event {
                        Event::Load { .. } => kept.load.take(),
                        _ => None,
                    };
                    (done, None)
                }
                Err(why) => {
                    let told = kept.told.get_mut(why.kind());
                    let news = told.is_some_and(|told| !core::mem::replace(told, true));

                    (None, news.then_some(why))
                }
            }
        };

        drop(done);
        match news {
            None => {}
            Some(Unmeasured::NoRule) => log_warn!(
                "no rule of the IMA policy measures the event {}, nor others of the module: they \
                 leave no evidence in the list; add \"measure func=CRITICAL_DATA label=ima_trim\"",
                event
            ),
            Some(Unmeasured::Pcr(pcr)) => log_warn!(
                "IMA measured the event {} into PCR {pcr}, where it is no evidence: take pcr= out of \
                 the rule for label=ima_trim",
                event
            ),
            Some(Unmeasured::Template) => log_warn!(
                "IMA measured the event {} without its data, so that it is no evidence: take \
                 template= out of the rule for label=ima_trim",
                event
            ),
        }
    }
}

impl Trimmer {
    /// Has IMA measure an announcement, and waits for it. If the task is killed meanwhile, IMA measures
    /// it all the same.
    ///
    /// An event that no rule measures, or that one measures in another way, is no error. No lock may be
    /// held that IMA takes.
    pub(crate) fn announce(
        this: &Arc<Self>,
        announcement: Arc<Announcement>,
    ) -> Result<(), Refusal<'static>> {
        let trimmer = this.clone();
        let event = announcement.event.as_str();

        this.machine
            .queue
            .call(move |thread| trimmer.offer(thread, &announcement))?
            .map_err(|errno| Refusal::Announcement { event, errno })
    }

    /// Announces that the module was loaded: now, and at the begin of each request until it is measured,
    /// as the rule for it may come later.
    pub(crate) fn announce_load(this: &Arc<Self>) -> Result<(), Refusal<'static>> {
        let ima = &this.machine.ima;
        let counters = ima.counters();
        let load = Event::Load {
            guard: ima.is_guarded(),
            kernel_deleted: crate::ledger::removed(&counters),
            kernel_violations: ima.violations(),
        };
        let announcement = Announcement::new(this, load, |text| {
            this.ledger
                .lock()
                .show_starting(text, &this.machine, &counters)
        })?;

        this.evidence.kept.lock().load = Some(Arc::new(announcement, GFP_KERNEL)?);
        Self::repeat_load(this)
    }

    /// Announces once more that the module was loaded, unless that is measured.
    pub(crate) fn repeat_load(this: &Arc<Self>) -> Result<(), Refusal<'static>> {
        let load = this.evidence.kept.lock().load.clone();

        match load {
            Some(load) => Self::announce(this, load),
            None => Ok(()),
        }
    }

    /// Tells that somebody else has removed records: in the log, and to IMA, for which this does not
    /// wait.
    pub(crate) fn tell_foreign(this: &Arc<Self>, kernel_deleted: u64, foreign_records: u64) {
        log_foreign(foreign_records);
        let event = Event::Foreign {
            kernel_deleted,
            foreign_records,
        };
        let begun = Announcement::new(this, event, |_| Ok(())).and_then(|announcement| {
            let trimmer = this.clone();

            let begun = this.machine.queue.begin(Item::new()?, move |thread| {
                if let Err(errno) = trimmer.offer(thread, &announcement) {
                    log_warn!("IMA did not measure that records were removed: {errno}");
                }
            });
            begun.then_some(()).ok_or(Refusal::NoMemory)
        });

        if begun.is_err() {
            this.evidence.measuring_failed();
            log_warn!("no memory to have it measured that records were removed");
        }
    }

    /// Has IMA measure an announcement, and looks for the record. `Stale` if measuring is suspended,
    /// `NoMem`, `Io`: then there is none.
    fn offer(&self, thread: &KernelThread, announcement: &Announcement) -> Result<(), Errno> {
        let Machine {
            ima, measure_pcr, ..
        } = &*self.machine;
        let event = announcement.event.name();
        let before = ima.counters().full;
        let offered =
            evidence::measure(thread, event, announcement.text.as_bytes()).map_err(|error| {
                self.evidence.measuring_failed();
                match error {
                    ENODEV => Errno::Stale,
                    ENOMEM => Errno::NoMem,
                    _ => Errno::Io,
                }
            })?;
        // A new record is among those that were added since; one that was known is somewhere.
        let since = match offered {
            Offered::NoRule => {
                self.evidence.note(announcement, Err(Unmeasured::NoRule));
                return Ok(());
            }
            Offered::Taken => Some(before),
            Offered::Known => None,
        };
        let found = ima.find_buffer(event.to_bytes(), announcement.data(), since);

        self.evidence.note(
            announcement,
            match found {
                Some(pcr) if Pcr::from_record(pcr) == Some(*measure_pcr) => Ok(()),
                Some(pcr) => Err(Unmeasured::Pcr(pcr)),
                None => Err(Unmeasured::Template),
            },
        );
        Ok(())
    }
}

/// Tells the log that records are gone that the account does not have.
pub(crate) fn log_foreign(records: u64) {
    log_warn!(
        "somebody else removed {records} records: the starting PCR values are unknown until they are \
         written to starting_pcrs, and nothing will be trimmed"
    );
}
