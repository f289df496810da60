// SPDX-License-Identifier: GPL-2.0

//! What the events of ima_trim told so far, and what the next may say: V17 to V22 and V25.

use serde::Deserialize;
use serde::Serialize;

use ima_trim_pure::instance::Instance;

use crate::algorithm::Algorithm;
use crate::pcrfile::hex;
use crate::pcrs::Point;

use super::event::show;
use super::event::Event;
use super::event::Starting;
use super::event::VERSION;
use super::verdict::Refusal;

/// What an event announced: starting values, and what they stand for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stage {
    kind: Kind,
    /// The text of `starting_pcrs` that it announced.
    text: String,
    records: u64,
    violations: u64,
    trims: u64,
    /// How many records the kernel has removed, if it took effect.
    deleted: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    Load,
    Trim,
    Restore,
}

/// The account of the events since a boot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct History {
    /// All instances since the boot. The last is the present one.
    instances: Vec<String>,
    /// Alternatives: one of them took effect at most. Or one `load` or `restore`.
    last: Vec<Stage>,
    /// What holds if none of the last did.
    before: Vec<Stage>,
    /// Violations that a restore stated beyond the verifier's own count.
    excess: u64,
    /// Records that were gone when the present kernel began to count.
    earlier: u64,
    /// A kernel that is accepted was measured since the last kexec.
    kernel: bool,
    /// Another kernel began to count, and no `load` came since.
    kexec: bool,
    /// The same, and no restore said yet how many records were gone then.
    unsettled: bool,
    /// Records are gone of which a `load` or `foreign` told, and no `restore` came since.
    gone: u64,
}

/// What the caller decides about events.
pub(super) struct Expected {
    /// Whether the guard is wanted.
    pub(super) guard: bool,
    /// How many records removed by others the caller knows of.
    pub(super) removed: u64,
}

/// The verifier's own account at an event.
pub(super) struct Own<'a> {
    /// The number of the event's record.
    pub(super) record: u64,
    /// Violations before it, but for those that stand right before it.
    pub(super) settled_violations: u64,
    /// The verifier's own values after so many records.
    pub(super) point: &'a dyn Fn(u64) -> Option<&'a Point>,
}

impl History {
    pub(super) fn instance(&self) -> Option<&str> {
        self.instances.last().map(String::as_str)
    }

    /// Violations that a restore stated beyond the verifier's own count.
    pub(super) fn excess(&self) -> u64 {
        self.excess
    }

    /// Own violations before the last point that was announced.
    pub(super) fn announced_violations(&self) -> u64 {
        let last = self.last.last();
        last.map_or(0, |stage| stage.violations.saturating_sub(self.excess))
    }

    /// Whether an event announced starting values other than those of a `load`.
    pub(super) fn announced(&self) -> bool {
        let mut stages = self.last.iter().chain(&self.before);
        stages.any(|stage| stage.kind != Kind::Load)
    }

    /// An accepted kernel was measured: one that a kexec may start.
    pub(super) fn kernel(&mut self) {
        self.kernel = true;
    }

    /// A second `boot_aggregate`: a kexec without `CONFIG_IMA_KEXEC`.
    pub(super) fn boot_aggregate(&mut self) -> Result<(), Refusal> {
        if !std::mem::take(&mut self.kernel) {
            return Err(Refusal::new(
                25,
                "another kernel was started by kexec, and none that is accepted was measured \
                 before: state the digests of accepted kernels with --kernel, and have the policy \
                 measure func=KEXEC_KERNEL_CHECK",
            ));
        }
        self.kexec = true;
        Ok(())
    }

    /// Takes an event into the account. Gives what there is to ask.
    pub(super) fn event(
        &mut self,
        event: &Event,
        own: &Own<'_>,
        expected: &Expected,
    ) -> Result<Option<(u8, String)>, Refusal> {
        match event {
            Event::Foreseen { version } => Err(Refusal::new(
                17,
                "a module was loaded whose events this program does not know: use one that does",
            )
            .values(format!("version={VERSION}"), format!("version={version}"))),
            Event::Load {
                instance,
                guard,
                kernel_deleted,
                kernel_violations,
                starting,
                ..
            } => {
                self.instance_of_load(*instance)?;
                if expected.guard && !guard {
                    return Err(Refusal::new(
                        17,
                        "the module was loaded without its guard: load it with guard=1, or say \
                         --guard any",
                    )
                    .values("guard=on", "guard=off"));
                }
                self.load(
                    *kernel_deleted,
                    *kernel_violations,
                    starting,
                    own,
                    expected.removed,
                )
            }
            Event::Trim { instance, point } => {
                self.instance_of(*instance)?;
                self.trim(point, own)
            }
            Event::Restore { instance, point } => {
                self.instance_of(*instance)?;
                self.restore(point, own)
            }
            Event::Foreign {
                instance,
                kernel_deleted,
                foreign_records,
            } => {
                self.instance_of(*instance)?;
                self.foreign(*kernel_deleted, *foreign_records, expected.removed)
            }
        }
    }

    fn instance_of_load(&mut self, instance: Instance) -> Result<(), Refusal> {
        let instance = instance.to_string();

        if self.instances.contains(&instance) {
            return Err(Refusal::new(
                17,
                "a load of an instance that this boot had already: an old event, shown again",
            )
            .values("an instance that is new", &instance));
        }
        self.instances.push(instance);
        Ok(())
    }

    fn instance_of(&self, instance: Instance) -> Result<(), Refusal> {
        let instance = instance.to_string();

        match self.instance() {
            Some(present) if present == instance => Ok(()),
            Some(present) if self.instances.contains(&instance) => Err(Refusal::new(
                17,
                "an event of an earlier instance than the one that was loaded last",
            )
            .values(
                format!("instance={present}"),
                format!("instance={instance}"),
            )),
            Some(present) => {
                Err(
                    Refusal::new(17, "an event of an instance that no load came before").values(
                        format!("instance={present}"),
                        format!("instance={instance}"),
                    ),
                )
            }
            None => Err(
                Refusal::new(17, "an event of an instance that no load came before")
                    .values("a load first", format!("instance={instance}")),
            ),
        }
    }

    fn load(
        &mut self,
        kernel_deleted: u64,
        kernel_violations: u64,
        starting: &Starting,
        own: &Own<'_>,
        removed: u64,
    ) -> Result<Option<(u8, String)>, Refusal> {
        self.removals(kernel_deleted, removed)?;

        let fits = match starting {
            Starting::Unknown(records) => kernel_deleted != 0 && *records == kernel_deleted,
            Starting::Known(point) => {
                kernel_deleted == 0 && is_reset(point) && point.totals().trims == 0
            }
        };
        if !fits {
            let expected = if kernel_deleted == 0 {
                "the reset values, with all counts 0".to_owned()
            } else {
                format!("unknown records={kernel_deleted}")
            };
            return Err(Refusal::new(
                18,
                "the starting values at a load are not what its kernel_deleted= says",
            )
            .values(expected, starting.text().trim_end()));
        }
        // The first load may be measured long after it happened, once there is a policy. A
        // violation that stands right before the record may have come while it was made.
        if self.instances.len() > 1 && !self.unsettled && kernel_violations < own.settled_violations
        {
            return Err(Refusal::new(
                18,
                "the kernel had counted fewer violations at a load than were measured before",
            )
            .values(
                format!("kernel_violations={} or more", own.settled_violations),
                format!("kernel_violations={kernel_violations}"),
            ));
        }

        let stage = Stage {
            kind: Kind::Load,
            text: starting.text(),
            records: 0,
            violations: 0,
            trims: 0,
            deleted: kernel_deleted,
        };
        self.gone = if matches!(starting, Starting::Unknown(_)) {
            kernel_deleted
        } else {
            0
        };
        self.before.clear();
        self.last = vec![stage];
        Ok(None)
    }

    /// Whether the number of records that the kernel has removed is one that is known.
    fn removals(&mut self, kernel_deleted: u64, removed: u64) -> Result<(), Refusal> {
        let mut known: Vec<u64> = self
            .last
            .iter()
            .chain(&self.before)
            .map(|stage| stage.deleted)
            .collect();
        if known.is_empty() {
            known.push(0);
        }
        if std::mem::take(&mut self.kexec) {
            self.unsettled = true;
            known = vec![0];
        }
        if known.contains(&kernel_deleted) {
            return Ok(());
        }

        let most = known.iter().copied().max().unwrap_or_default();
        let expected = known
            .iter()
            .map(|deleted| format!("kernel_deleted={deleted}"))
            .collect::<Vec<_>>()
            .join(" or ");
        let found = format!("kernel_deleted={kernel_deleted}");
        if kernel_deleted > most {
            if kernel_deleted - most <= removed {
                return Ok(());
            }
            return Err(Refusal::new(
                18,
                "records were removed by other means while the module was not loaded: if that is \
                 accounted for, state the number with --removed",
            )
            .values(expected, found));
        }
        // Fewer than before: another kernel, which got the list from the one before.
        if std::mem::take(&mut self.kernel) {
            self.unsettled = true;
            return Ok(());
        }
        Err(Refusal::new(
            25,
            "the kernel has removed fewer records than before: another one was started by kexec, \
             and none that is accepted was measured before: state the digests of accepted kernels \
             with --kernel",
        )
        .values(expected, found))
    }

    fn trim(&mut self, point: &Point, own: &Own<'_>) -> Result<Option<(u8, String)>, Refusal> {
        if self.gone != 0 {
            return Err(Refusal::new(
                18,
                "a trim, though records were removed by other means and no restore came since",
            )
            .values("a restore first", format!("{} records are gone", self.gone)));
        }
        let totals = point.totals();
        let mine = own_values(19, point, own)?;
        let expected = mine.totals().violations.saturating_add(self.excess);
        if totals.violations != expected {
            return Err(Refusal::new(
                19,
                "a trim states another number of violations than there are before its point",
            )
            .values(
                format!("violations={expected}"),
                format!("violations={}", totals.violations),
            ));
        }

        let same = self
            .last
            .iter()
            .all(|stage| stage.kind == Kind::Trim && stage.trims == totals.trims);
        let next = self.last.iter().any(|stage| {
            stage.trims.checked_add(1) == Some(totals.trims)
                && stage.records <= totals.records
                && stage.violations <= totals.violations
        });
        let stage = Stage {
            kind: Kind::Trim,
            text: point.text(),
            records: totals.records,
            violations: totals.violations,
            trims: totals.trims,
            deleted: totals.records.saturating_sub(self.earlier),
        };
        if same {
            self.last.push(stage);
        } else if next {
            self.before = std::mem::replace(&mut self.last, vec![stage]);
        } else {
            return Err(Refusal::new(
                19,
                "the counts of a trim do not go on from those of the events before it",
            )
            .values(self.next_counts(), show(totals)));
        }
        Ok(None)
    }

    /// After how many records the starting values may be, if so many are not accounted for.
    pub(super) fn unaccounted(&self, records: u64) -> Vec<u64> {
        let stages = self.last.iter().chain(&self.before);
        stages
            .map(|stage| match stage.kind {
                Kind::Load => self.earlier.saturating_add(records),
                Kind::Trim | Kind::Restore => stage.records.saturating_add(records),
            })
            .collect()
    }

    /// What the counts of a trim may be.
    fn next_counts(&self) -> String {
        let mut all = Vec::new();

        for stage in &self.last {
            if stage.kind == Kind::Trim {
                all.push(format!("trims={}", stage.trims));
            }
            all.push(format!(
                "trims={} with records={} and violations={} or more",
                stage.trims.saturating_add(1),
                stage.records,
                stage.violations
            ));
        }
        all.dedup();
        all.join(", or ")
    }

    fn restore(&mut self, point: &Point, own: &Own<'_>) -> Result<Option<(u8, String)>, Refusal> {
        let totals = point.totals();
        let mine = own_values(21, point, own)?.totals().violations;
        let Some(excess) = totals.violations.checked_sub(mine) else {
            return Err(Refusal::new(
                21,
                "a restore states fewer violations than there are before its point",
            )
            .values(
                format!("violations={mine} or more"),
                format!("violations={}", totals.violations),
            ));
        };
        if std::mem::take(&mut self.unsettled) {
            let deleted = self.last.last().map_or(0, |stage| stage.deleted);
            self.earlier = totals.records.saturating_sub(deleted);
        }
        self.gone = 0;
        self.before.append(&mut self.last);
        self.last = vec![Stage {
            kind: Kind::Restore,
            text: point.text(),
            records: totals.records,
            violations: totals.violations,
            trims: totals.trims,
            deleted: totals.records.saturating_sub(self.earlier),
        }];
        if std::mem::replace(&mut self.excess, excess) == excess {
            return Ok(None);
        }
        Ok(Some((
            21,
            format!(
                "a restore states {} violations, {excess} more than were measured: the module can \
                 only check that they are not fewer",
                totals.violations
            ),
        )))
    }

    fn foreign(
        &mut self,
        kernel_deleted: u64,
        foreign_records: u64,
        removed: u64,
    ) -> Result<Option<(u8, String)>, Refusal> {
        if foreign_records > removed {
            return Err(Refusal::new(
                22,
                "records were removed by other means while the module was loaded: if that is \
                 accounted for, state the number with --removed",
            )
            .values(
                format!("foreign_records={removed} or less"),
                format!("foreign_records={foreign_records}"),
            ));
        }
        self.gone = foreign_records;
        // The next load finds as many gone.
        if let Some(stage) = self.last.last_mut() {
            stage.deleted = kernel_deleted;
        }
        Ok(Some((
            22,
            format!(
                "{foreign_records} records were removed by other means: a restore is to follow"
            ),
        )))
    }

    /// Whether the text of `starting_pcrs` is one that the events announced: V19.
    pub(super) fn check_starting(&self, starting: &Starting) -> Result<(), Refusal> {
        let text = starting.text();
        let announced = self.last.iter().chain(&self.before);

        if announced.clone().any(|stage| stage.text == text) {
            return Ok(());
        }
        if matches!(starting, Starting::Unknown(_)) && self.gone != 0 {
            return Ok(());
        }
        let expected = announced
            .map(|stage| stage.text.trim_end().replace('\n', " "))
            .collect::<Vec<_>>()
            .join(", or ");
        Err(Refusal::new(
            19,
            "the starting values are not of a text that the last events announced",
        )
        .values(expected, text.trim_end().replace('\n', " ")))
    }
}

/// Whether these are the values after a reset, with nothing replayed.
fn is_reset(point: &Point) -> bool {
    let banks: Vec<Algorithm> = point.banks().collect();

    point.totals().records == 0
        && point.totals().violations == 0
        && point.pcrs().iter().next().is_some_and(|pcr| {
            let reset = Point::reset(&banks, pcr);
            let mut pcrs = point.pcrs().iter();
            pcrs.all(|pcr| {
                banks
                    .iter()
                    .all(|&bank| point.get(bank, pcr) == reset.get(bank, pcr))
            })
        })
}

/// The verifier's own point where an event has one, if the values are the same.
fn own_values<'a>(rule: u8, point: &Point, own: &Own<'a>) -> Result<&'a Point, Refusal> {
    let records = point.totals().records;
    let mine = (records < own.record)
        .then(|| (own.point)(records))
        .flatten();
    let Some(mine) = mine else {
        return Err(Refusal::new(
            rule,
            format!(
                "an event has starting values after {records} records, where this verifier has no \
                 values of its own: give it all records since boot (ima-trim log, without \
                 --starting), or have it keep them (--keep)"
            ),
        ));
    };
    match difference(mine, point) {
        None => Ok(mine),
        Some(difference) => Err(Refusal::new(
            rule,
            format!(
                "an event has other starting values after {records} records than the replay of \
                 these records gives"
            ),
        )
        .values(difference.own, difference.stated)),
    }
}

/// Where stated values are not the verifier's own.
pub(super) struct Difference {
    pub(super) own: String,
    pub(super) stated: String,
    /// The PCR is not listed, as if it had its reset value.
    pub(super) unlisted: bool,
}

/// The first value that is another, in the banks that are stated.
pub(super) fn difference(own: &Point, stated: &Point) -> Option<Difference> {
    let pcrs = own.pcrs().union(stated.pcrs());
    let cells = stated
        .banks()
        .flat_map(|bank| pcrs.iter().map(move |pcr| (bank, pcr)));

    for (bank, pcr) in cells {
        let (mine, theirs) = (own.get(bank, pcr), stated.get(bank, pcr));
        if mine != theirs {
            let show = |value: Option<&[u8]>| {
                format!("{}:{pcr}={}", bank.name(), hex(value.unwrap_or_default()))
            };
            return Some(Difference {
                own: show(mine),
                stated: show(theirs),
                unlisted: !stated.pcrs().contains(pcr),
            });
        }
    }
    None
}
