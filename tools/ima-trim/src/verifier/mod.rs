// SPDX-License-Identifier: GPL-2.0

//! The verifier: `Documentation/admin-guide/verifier.rst` as a library.
//!
//! [`verify`] judges what an agent sent, by the rules of that page, in their order: the first that
//! is broken makes the verdict. What the rules call the verifier's memory is a [`State`], which
//! goes in and, if the machine is accepted, comes out anew. Nothing here reads files or clocks, or
//! asks anybody: the same input gives the same verdict.
//!
//! What no program can know is left to the caller: whose key it is and that the nonce is fresh
//! (V1), that accepted records speak for a machine only if all that ran on it is accepted (V11),
//! and what to think of the files that were measured.
//!
//! Record numbers count from 1 since boot. Digests are written as `sha256:<hex>`.

mod event;
mod export;
mod history;
mod policy;
mod state;
mod verdict;

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::ops::Range;
use std::ops::RangeInclusive;

use ima_trim_pure::bank::Pcr;
use ima_trim_pure::bank::PcrSet;

use crate::algorithm::Algorithm;
use crate::pcrfile::hex;
use crate::pcrfile::PcrFile;
use crate::pcrfile::Selection;
use crate::pcrs::Point;
use crate::pcrs::PointError;
use crate::quote;
use crate::quote::Clock;
use crate::quote::PublicKey;
use crate::record::Record;
use crate::record::Records;
use crate::template::FieldId;

pub use event::Event;
pub use event::Kind;
pub use event::Starting;
pub use export::Export;
pub use export::ExportError;
pub use state::State;
pub use state::StateError;
pub use verdict::Accepted;
pub use verdict::Note;
pub use verdict::Refusal;
pub use verdict::Rule;
pub use verdict::Verdict;

use event::check_buffer;
use event::file_digest;
use event::named_digest;
use event::Buffer;
use event::POLICY_LOADED;
use history::difference;
use history::Difference;
use history::Expected;
use history::Own;
use state::Boot;

/// The PCRs of the boot, of which the record `boot_aggregate` is made.
const BOOT_PCRS: RangeInclusive<u32> = 0..=9;

/// IMA's names of the record of the boot: `ima_init.c`.
const BOOT_AGGREGATE: [&[u8]; 2] = [b"boot_aggregate", b"boot_aggregate_late"];

/// The templates of files that have names: `ima_template.c`. Their names are under no hash, but none
/// has the fields of another in another order. Those of three fields share them with [`BUFFER`]:
/// [`check_buffer`] tells which it is.
const NAMED: [&str; 7] = [
    "ima",
    "ima-ng",
    "ima-sig",
    "ima-ngv2",
    "ima-sigv2",
    "ima-modsig",
    "evm-sig",
];

/// The template of buffers.
const BUFFER: &str = "ima-buf";

/// How often as many records are replayed as there are, in search of the one with which a list
/// begins.
const TRIES: u64 = 4;

/// Whatever is named there is accepted.
const ANY: &str = "any";

/// What the caller decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// IMA's PCR: `CONFIG_IMA_MEASURE_PCR_IDX` of the machine's kernel.
    pub pcr: Pcr,
    /// Other PCRs, which the accepted IMA policy names with `pcr=` (V2).
    pub policy_pcrs: Vec<Pcr>,
    /// The PCRs and banks that were asked for, if the quote must have exactly these (V1).
    pub asked: Option<Selection>,
    /// Values that PCRs had before IMA extended them, in the form of `starting_pcrs` (V5).
    pub base: Option<Point>,
    /// How many violations since boot were looked at and accepted. Without: as many as before (V12).
    pub violations: Option<u64>,
    /// How many records that others removed are accounted for (V18, V22).
    pub removed: u64,
    /// Digests of accepted IMA policies in records `ima_policy_loaded`, or `any`. Without any of
    /// these and of files: the first that is seen (V13).
    pub policies: Vec<String>,
    /// Digests of files with accepted IMA policies, whose records do in place of that (V13).
    pub policy_files: BTreeSet<String>,
    /// Whether the accepted policy has the rule with `label=ima_trim` (V13, V23).
    pub events: bool,
    /// Templates that are accepted besides that of `boot_aggregate` and `ima-buf` (V9).
    pub templates: Vec<String>,
    /// Digests that must not be there (V14).
    pub revoked: BTreeSet<String>,
    /// Whether the module must have its guard (V17).
    pub guard: bool,
    /// Digests of kernels that kexec may start (V25).
    pub kernels: BTreeSet<String>,
}

impl Options {
    /// The strictest ones, for a kernel that has IMA's PCR here.
    #[must_use]
    pub fn new(pcr: Pcr) -> Self {
        Self {
            pcr,
            policy_pcrs: Vec::new(),
            asked: None,
            base: None,
            violations: None,
            removed: 0,
            policies: Vec::new(),
            policy_files: BTreeSet::new(),
            events: true,
            templates: Vec::new(),
            revoked: BTreeSet::new(),
            guard: true,
            kernels: BTreeSet::new(),
        }
    }
}

/// A quote, as files that tpm2-tools write.
#[derive(Clone, Copy, Debug)]
pub struct Quoted<'a> {
    /// `TPMS_ATTEST`.
    pub message: &'a [u8],
    /// `TPMT_SIGNATURE`, or a plain one.
    pub signature: &'a [u8],
    /// The key that is known to live in the TPM of this machine.
    pub key: &'a PublicKey,
    /// What was sent.
    pub nonce: &'a [u8],
}

/// What the agent sent.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    /// The list: records in the form of `binary_runtime_measurements_sha1`.
    pub log: &'a [u8],
    /// Whether the list has all records since boot, whatever the starting values are.
    pub whole: bool,
    /// The text of `starting_pcrs`. Without it the list must have all records since boot.
    pub starting: Option<&'a [u8]>,
    /// The PCR values of the quote.
    pub pcrs: &'a PcrFile,
    /// The quote. Without it the values are believed as they are.
    pub quote: Option<Quoted<'a>>,
    /// Records since boot that the verifier has kept itself, if it has: at least those that the
    /// state counts.
    pub kept: Option<&'a [u8]>,
}

/// What comes of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The verdict.
    pub verdict: Verdict,
    /// What is to be kept, if the machine is accepted. If not, the state from before stays.
    pub state: Option<State>,
    /// The bytes of the list that are records accepted now, for the first time.
    pub news: Range<usize>,
    /// Whether this is another boot than that of the state: kept records are of the one before.
    pub rebooted: bool,
}

/// Why there can be no verdict.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// What the caller kept is not what was accepted.
    #[error(
        "the kept records do not replay to the state: they are of another machine or boot, or were \
         changed. Verify all records since boot anew, without --state and --keep"
    )]
    Kept,
}

/// Judges a machine.
///
/// # Errors
///
/// If the caller's own memory contradicts itself. What is wrong with the machine is a verdict.
pub fn verify(options: &Options, state: &State, input: &Input<'_>) -> Result<Outcome, VerifyError> {
    let mut check = Check::new(options, state, input);
    match check.run()? {
        Ok((machine, news)) => Ok(Outcome {
            verdict: Verdict::Accepted {
                machine,
                notes: check.notes,
            },
            state: Some(check.state),
            news,
            rebooted: check.rebooted,
        }),
        Err(refusal) => Ok(Outcome {
            verdict: Verdict::Refused {
                refusal,
                notes: check.notes,
            },
            state: None,
            news: 0..0,
            rebooted: check.rebooted,
        }),
    }
}

/// A check that is under way.
struct Check<'a> {
    options: &'a Options,
    input: &'a Input<'a>,
    /// What was known, and what is found.
    state: State,
    notes: Vec<Note>,
    clock: Option<Clock>,
    rebooted: bool,
    /// The numbers of records after which starting values are said to be.
    wanted: BTreeSet<u64>,
    /// How many records were replayed.
    steps: u64,
}

/// The replay of the list, up to what the quote covers.
struct Replayed<'a> {
    /// Every record that the quote covers.
    records: Vec<Record<'a>>,
    /// Records behind them.
    waiting: u64,
    /// Whether an event of ima_trim is among those.
    events_wait: bool,
    /// Bytes behind the last whole record.
    cut: usize,
    /// Points after the numbers of records that were asked for, the last one included.
    points: BTreeMap<u64, Point>,
    /// The point that has the quoted values.
    end: Point,
}

impl Replayed<'_> {
    /// Whether starting values may be those of something behind the quote.
    fn ends_before(&self, starting: &Starting) -> bool {
        match starting {
            Starting::Known(stated) if stated.totals().records > self.end.totals().records => true,
            _ => self.events_wait,
        }
    }
}

type Checked<T> = Result<T, Refusal>;

impl<'a> Check<'a> {
    fn new(options: &'a Options, state: &State, input: &'a Input<'a>) -> Self {
        Self {
            options,
            input,
            state: state.clone(),
            notes: Vec::new(),
            clock: None,
            rebooted: false,
            wanted: BTreeSet::new(),
            steps: 0,
        }
    }

    fn run(&mut self) -> Result<Checked<(Accepted, Range<usize>)>, VerifyError> {
        // The state that a reboot makes void is seen by the quote alone.
        if let Err(refusal) = self.quote().and_then(|()| self.which_pcrs()) {
            return Ok(Err(refusal));
        }
        let restarted = match self.reset_counts() {
            Ok(restarted) => restarted,
            Err(refusal) => return Ok(Err(refusal)),
        };
        self.wanted = self.find_wanted();
        let kept = self.kept_points()?;
        Ok(self.list(&kept, restarted))
    }

    fn note(&mut self, rule: u8, record: Option<u64>, what: impl Into<String>) {
        self.notes.push(Note {
            rule: Rule(rule),
            record,
            what: what.into(),
        });
    }

    /// V1.
    fn quote(&mut self) -> Checked<()> {
        let Some(quoted) = self.input.quote else {
            if self.state.key.is_some() {
                return Err(Refusal::new(
                    1,
                    "there is no quote, and this machine was accepted with one before: give it",
                ));
            }
            self.note(
                1,
                None,
                "there is no quote: the PCR values are believed as they are",
            );
            return Ok(());
        };
        let refuse = |error: quote::QuoteError| Refusal::new(1, error.to_string());
        let quote = quote::check(
            quoted.message,
            quoted.signature,
            quoted.key,
            quoted.nonce,
            self.input.pcrs,
        )
        .map_err(refuse)?;
        let key = quoted.key.fingerprint().map_err(refuse)?;
        match &self.state.key {
            Some(known) if *known != key => {
                return Err(Refusal::new(
                    1,
                    "the key is not the one of this machine so far: another machine answered, or \
                     the state is that of another",
                )
                .values(known, key));
            }
            _ => self.state.key = Some(key),
        }
        if let Some(asked) = &self.options.asked {
            if cells(asked) != cells(&quote.selection) {
                return Err(Refusal::new(
                    1,
                    "the quote covers other PCRs than those that were asked for",
                )
                .values(show_selection(asked), show_selection(&quote.selection)));
            }
        }
        self.clock = Some(quote.clock);
        Ok(())
    }

    /// V2, but for the record `boot_aggregate`.
    fn which_pcrs(&mut self) -> Checked<()> {
        let wanted: PcrSet = [self.options.pcr]
            .iter()
            .chain(&self.options.policy_pcrs)
            .copied()
            .collect();
        if let Some(pcr) = wanted.iter().find(|pcr| !pcr.is_proof()) {
            return Err(Refusal::new(
                2,
                format!(
                    "PCR {pcr} proves nothing: programs can reset it, or the TPM refuses the \
                     kernel's extends. Accept no policy with pcr={pcr}"
                ),
            ));
        }
        let boot: PcrSet = BOOT_PCRS.filter_map(Pcr::new).collect();
        let selection = self.input.pcrs.selection();
        let covers = |pcrs: PcrSet| {
            selection
                .iter()
                .any(|(bank, of)| is_strong(*bank) && pcrs.without(*of).is_empty())
        };
        if !covers(wanted) {
            return Err(Refusal::new(
                2,
                "IMA's PCR, or one that the policy names, is not quoted in a bank of SHA-256 or \
                 better: ask for it",
            )
            .values(
                show_selection(&vec![(Algorithm::Sha256, wanted)]),
                show_selection(&selection),
            ));
        }
        if covers(wanted.union(boot)) {
            return Ok(());
        }
        if self.input.quote.is_some() {
            return Err(Refusal::new(
                2,
                "the PCRs of the boot, 0 to 9, are not quoted in a bank of SHA-256 or better: ask \
                 for them",
            )
            .values(
                show_selection(&vec![(Algorithm::Sha256, wanted.union(boot))]),
                show_selection(&selection),
            ));
        }
        self.note(
            2,
            None,
            "there are no values of PCRs 0 to 9: which system was booted is not known",
        );
        Ok(())
    }

    /// V3. Says whether the TPM was without power in between.
    fn reset_counts(&mut self) -> Checked<bool> {
        let counts = self
            .clock
            .map(|clock| (clock.reset_count, clock.restart_count));
        let Some(boot) = &mut self.state.boot else {
            return Ok(false);
        };
        let (Some(before), Some(now)) = (boot.counts, counts) else {
            // Without a quote on either side there is nothing to compare.
            return Ok(false);
        };
        if before.0 != now.0 {
            self.state.boot = None;
            self.rebooted = true;
            self.note(
                3,
                None,
                format!(
                    "a new boot: resetCount was {} and is {}. What was known of the one before is \
                     void",
                    before.0, now.0
                ),
            );
            return Ok(false);
        }
        if before.1 == now.1 {
            return Ok(false);
        }
        let now_pcrs = boot_pcrs(self.input.pcrs);
        let changed = boot
            .pcrs
            .iter()
            .find(|(cell, value)| now_pcrs.get(*cell) != Some(value));
        if let Some((cell, value)) = changed {
            let found = now_pcrs.get(cell).map_or("nothing", String::as_str);
            return Err(Refusal::new(
                3,
                "the TPM was without power, and another system was booted then: restartCount and a \
                 PCR of the boot have changed. The machine cannot be attested before it boots anew",
            )
            .values(format!("{cell}={value}"), format!("{cell}={found}")));
        }
        Ok(true)
    }

    /// The point at which every list begins.
    fn reset(&self) -> Point {
        self.options
            .base
            .clone()
            .unwrap_or_else(|| Point::reset(&Algorithm::ALL, self.options.pcr))
    }

    /// The verifier's own points after so many records, of those that it keeps itself. Empty if it
    /// keeps none.
    fn kept_points(&self) -> Result<BTreeMap<u64, Point>, VerifyError> {
        let mut points = BTreeMap::new();
        let (Some(kept), Some(boot)) = (self.input.kept, &self.state.boot) else {
            return Ok(points);
        };
        let Some(end) = boot.end() else {
            return Ok(points);
        };
        let mut wanted = self.wanted.clone();
        wanted.insert(end.totals().records);
        let mut point = self.reset();
        let mut records = Records::new(kept);
        loop {
            let number = point.totals().records;
            if wanted.contains(&number) {
                points.insert(number, point.clone());
            }
            if number == end.totals().records {
                break;
            }
            let Some(Ok(record)) = records.next() else {
                return Err(VerifyError::Kept);
            };
            point.extend(&record);
        }
        if point.same_values(end) {
            Ok(points)
        } else {
            Err(VerifyError::Kept)
        }
    }

    /// The numbers of records after which starting values are said to be.
    fn find_wanted(&self) -> BTreeSet<u64> {
        let events = Records::new(self.input.log)
            .map_while(Result::ok)
            .filter_map(|record| match Event::of(&record, self.options.pcr) {
                Kind::Event(Event::Trim { point, .. } | Event::Restore { point, .. }) => {
                    Some(point.totals().records)
                }
                _ => None,
            });
        let mut wanted: BTreeSet<u64> = events.collect();
        match self.input.starting.map(Starting::parse) {
            Some(Ok(Starting::Known(point))) => {
                wanted.insert(point.totals().records);
            }
            Some(Ok(Starting::Unknown(records))) => {
                if let Some(boot) = &self.state.boot {
                    wanted.extend(boot.history.unaccounted(records));
                }
                wanted.insert(records);
            }
            _ => {}
        }
        wanted
    }

    /// V4 and what follows: the list.
    fn list(
        &mut self,
        kept: &BTreeMap<u64, Point>,
        restarted: bool,
    ) -> Checked<(Accepted, Range<usize>)> {
        let mut known = kept.clone();
        known.insert(0, self.reset());
        if let Some(boot) = &self.state.boot {
            for point in &boot.points {
                known.insert(point.totals().records, point.clone());
            }
        }

        let mut starting = match self.input.starting.map(Starting::parse) {
            None => None,
            Some(Ok(starting)) => Some(starting),
            Some(Err(error)) => return Err(refuse_starting(&error)),
        };
        let whole = self.input.whole || starting.is_none();
        let (from, replayed) = match &starting {
            Some(Starting::Known(stated)) if !whole => self
                .known_start(stated, &known, restarted)
                .map_err(|refusal| self.or_whole(refusal, stated))?,
            Some(Starting::Unknown(records)) if !whole => {
                self.unknown_start(*records, &known, restarted)?
            }
            _ => (0, self.replay(self.reset(), &known, restarted)?),
        };
        if replayed.cut != 0 {
            self.note(
                8,
                None,
                format!(
                    "the list ends with {} bytes that are no whole record: they are not looked at",
                    replayed.cut
                ),
            );
        }
        // Nothing keeps trims from happening while a whole list is sent.
        if whole && starting.as_ref().is_some_and(|of| replayed.ends_before(of)) {
            self.note(
                4,
                None,
                "the starting values may be those of a trim that the quote does not cover: they \
                 wait for the next quote",
            );
            starting = None;
        }
        let mut points = known;
        points.extend(
            replayed
                .points
                .iter()
                .map(|(at, point)| (*at, point.clone())),
        );
        if let (Some(Starting::Known(stated)), true) = (&starting, whole) {
            self.own_start(stated, &points)?;
        }

        let found = self.records(from, &replayed, &points)?;
        if let Some(starting) = &starting {
            self.check_starting(starting, &found, &points)?;
        }
        Ok(self.accept(from, starting.as_ref(), replayed, &points, found))
    }

    /// V4 to V6, and V8: the list goes on from the starting values.
    fn known_start(
        &mut self,
        stated: &Point,
        known: &BTreeMap<u64, Point>,
        restarted: bool,
    ) -> Checked<(u64, Replayed<'a>)> {
        let first = self.own_start(stated, known)?;
        let from = first.totals().records;
        Ok((from, self.replay(first, known, restarted)?))
    }

    /// Adds to a refusal what may be behind it: that the list is not the one that goes on from the
    /// starting values. No trimmed one begins as this does, unless a kexec came right before.
    fn or_whole(&self, mut refusal: Refusal, stated: &Point) -> Refusal {
        let first = Records::new(self.input.log).next().and_then(Result::ok);
        let name = first.and_then(|record| record.name());
        if stated.totals().records != 0 && name.is_some_and(|name| BOOT_AGGREGATE.contains(&name)) {
            refusal.what += ". The list begins with boot_aggregate, though: if it has all records \
                             since boot, as ima-trim serves them, say so with --whole";
        }
        refusal
    }

    /// V7: the list goes on from one of the verifier's own points, if from any.
    fn unknown_start(
        &mut self,
        missing: u64,
        known: &BTreeMap<u64, Point>,
        restarted: bool,
    ) -> Checked<(u64, Replayed<'a>)> {
        // What the events let expect comes first.
        let likely: BTreeSet<u64> = match &self.state.boot {
            Some(boot) => boot.history.unaccounted(missing).into_iter().collect(),
            None => BTreeSet::new(),
        };
        let likely = likely.iter().filter_map(|at| known.get_key_value(at));
        // From where the list does not go on it is seen at the next point that is known. Only one
        // that was made for it, of the same record over and over, takes longer.
        let list = Records::new(self.input.log).map_while(Result::ok).count() as u64;
        let most = TRIES.saturating_mul(list.saturating_add(self.state.records()));
        for (from, point) in likely.chain(known.iter().rev()) {
            if self.steps > most {
                break;
            }
            if let Ok(replayed) = self.replay(point.clone(), known, restarted) {
                self.note(
                    7,
                    None,
                    format!(
                        "{missing} records were removed by other means than ima_trim: this verifier \
                         has seen them, and goes on from its own values, after record {from}"
                    ),
                );
                return Ok((*from, replayed));
            }
        }
        Err(Refusal::new(
            7,
            "records were removed by other means than ima_trim, and the list does not go on from \
             any values that this verifier has of its own: give it all records since boot, or boot \
             the machine anew",
        )
        .values(
            "records that go on from own values",
            format!("unknown records={missing}"),
        ))
    }

    /// V4 to V6: the verifier's own point where the starting values are said to be.
    fn own_start(&self, stated: &Point, known: &BTreeMap<u64, Point>) -> Checked<Point> {
        let totals = stated.totals();
        let Some(own) = known.get(&totals.records) else {
            let same = known
                .values()
                .find(|own| own.totals().records != 0 && difference(own, stated).is_none());
            if let Some(own) = same {
                return Err(Refusal::new(
                    6,
                    "the starting values are known, and another number of records led to them",
                )
                .values(
                    format!("records={}", own.totals().records),
                    format!("records={}", totals.records),
                ));
            }
            return Err(if self.state.boot.is_none() {
                Refusal::new(
                    26,
                    "nothing is known of this machine since it booted, so that its starting values \
                     cannot be believed: give all records since boot (ima-trim log, without \
                     --starting), or the state of a verifier that has seen them",
                )
                .values("the reset values", format!("records={}", totals.records))
            } else {
                Refusal::new(
                    4,
                    "this verifier has no values of its own where the starting values are: give it \
                     all records since boot (ima-trim log, without --starting), or have it keep \
                     them (--keep)",
                )
                .values(
                    format!(
                        "records={}",
                        known.keys().map(u64::to_string).collect::<Vec<_>>().join(", ")
                    ),
                    format!("records={}", totals.records),
                )
            });
        };
        if let Some(Difference {
            own: mine,
            stated: theirs,
            unlisted,
        }) = difference(own, stated)
        {
            let others = known
                .values()
                .find(|own| own.totals().records != 0 && difference(own, stated).is_none());
            if let Some(other) = others {
                return Err(Refusal::new(
                    6,
                    "the starting values are known, and another number of records led to them",
                )
                .values(
                    format!("records={}", other.totals().records),
                    format!("records={}", totals.records),
                ));
            }
            let refusal = if unlisted {
                Refusal::new(
                    5,
                    "a PCR that is not in the starting values stands for one at its reset value, \
                     and records that are gone have extended it",
                )
            } else {
                Refusal::new(
                    4,
                    "the starting values are not those that the records before them lead to",
                )
            };
            return Err(refusal.values(mine, theirs));
        }
        let own_violations = own.totals().violations;
        if totals.violations < own_violations {
            return Err(refuse_violations(own_violations, totals.violations));
        }
        Ok(own.clone())
    }

    /// V8: replays the list up to the record after which the PCRs have the quoted values, by the
    /// points that are known.
    fn replay(
        &mut self,
        first: Point,
        known: &BTreeMap<u64, Point>,
        restarted: bool,
    ) -> Checked<Replayed<'a>> {
        let least = self.state.records();
        let mut replayed = Replayed {
            records: Vec::new(),
            waiting: 0,
            events_wait: false,
            cut: 0,
            points: BTreeMap::new(),
            end: first.clone(),
        };
        let mut point = first;
        let mut list = Records::new(self.input.log);
        let mut all = Vec::new();
        let mut matched = None;
        loop {
            let number = point.totals().records;
            let other = known.get(&number).and_then(|of| difference(of, &point));
            if let Some(Difference { own, stated, .. }) = other {
                return Err(Refusal::new(
                    8,
                    "records that were accepted before are not the same now",
                )
                .at(number)
                .values(own, stated));
            }
            if self.wanted.contains(&number) {
                replayed.points.insert(number, point.clone());
            }
            if matched.is_none() && number >= least && self.has_quoted(&point) {
                matched = Some(all.len());
                replayed.end = point.clone();
            }
            let Some(record) = list.next() else {
                break;
            };
            let record = record.map_err(|error| {
                Refusal::new(8, format!("the list is damaged: {error}"))
                    .at(number.saturating_add(1))
            })?;
            point.extend(&record);
            self.steps += 1;
            all.push(record);
        }

        replayed.cut = list.rest().len();
        let Some(matched) = matched else {
            return Err(self.mismatch(&point, least, restarted));
        };
        let waiting = all.split_off(matched);
        replayed.waiting = waiting.len() as u64;
        replayed.events_wait = waiting
            .iter()
            .any(|record| matches!(Event::of(record, self.options.pcr), Kind::Event(_)));
        // What no quote covers is no value of our own.
        let end = replayed.end.totals().records;
        replayed.points.retain(|&number, _| number <= end);
        replayed.records = all;
        Ok(replayed)
    }

    /// Whether a point has every quoted value that the list is about, in every bank.
    fn has_quoted(&self, point: &Point) -> bool {
        self.about(point)
            .all(|(bank, pcr, value)| point.get(bank, pcr) == Some(value))
    }

    /// The quoted values that a list is about, as far as they prove anything.
    fn about<'p>(&'p self, point: &Point) -> impl Iterator<Item = (Algorithm, Pcr, &'p [u8])> + 'p {
        let named: PcrSet = self.options.policy_pcrs.iter().copied().collect();
        let pcrs = point.pcrs().union(named);

        self.input
            .pcrs
            .iter()
            .filter(move |(_, pcr, _)| pcrs.contains(*pcr) && pcr.is_proof())
    }

    fn mismatch(&self, point: &Point, least: u64, restarted: bool) -> Refusal {
        let totals = point.totals();
        if totals.records < least {
            return Refusal::new(
                8,
                "the list ends before the last record that was accepted before",
            )
            .at(totals.records)
            .values(
                format!("{least} records or more"),
                format!("{} records", totals.records),
            );
        }
        let show = |bank: Algorithm, pcr, value: Option<&[u8]>| {
            format!("{}:{pcr}={}", bank.name(), hex(value.unwrap_or_default()))
        };
        let (rule, what) = if restarted {
            (
                3,
                "the TPM was without power, and the list does not replay to what it has since: \
                 after hibernation the machine cannot be attested before it boots anew",
            )
        } else {
            (
                8,
                "the list does not replay to the quoted values, after whatever record: something \
                 of it was changed, left out or moved, or something else extended the PCR",
            )
        };
        let other = self
            .about(point)
            .find(|&(bank, pcr, value)| point.get(bank, pcr) != Some(value));
        let refusal = Refusal::new(rule, what);
        match other {
            Some((bank, pcr, value)) => refusal.values(
                show(bank, pcr, Some(value)),
                format!(
                    "{} after the last record, {}",
                    show(bank, pcr, point.get(bank, pcr)),
                    totals.records
                ),
            ),
            None => refusal,
        }
    }
}

/// What was found on the way through the records.
struct Found {
    boot: Boot,
    policies: Vec<String>,
}

impl Check<'_> {
    /// V9 to V25, for the records that the quote covers.
    fn records(
        &mut self,
        from: u64,
        replayed: &Replayed<'_>,
        points: &BTreeMap<u64, Point>,
    ) -> Checked<Found> {
        let seen = self.state.records();
        let is_known = self.state.boot.is_some();
        let mut found = Found {
            boot: self.state.boot.clone().unwrap_or(Boot {
                counts: None,
                pcrs: BTreeMap::new(),
                template: String::new(),
                policy: None,
                points: Vec::new(),
                covered: Vec::new(),
                trimmed_violations: 0,
                violations: 0,
                history: history::History::default(),
            }),
            policies: self.state.policies.clone(),
        };
        self.revoked(from, replayed)?;

        // Those of the records before the list are in the point at which it begins.
        let mut violations = points
            .get(&seen.max(from))
            .map_or(0, |point| point.totals().violations);
        let accepted = self.options.violations.unwrap_or(found.boot.violations);
        // Violations that stand right before the present record.
        let mut run = 0;
        let mut idle = None;

        for (number, record) in (from.saturating_add(1)..).zip(&replayed.records) {
            if number <= seen {
                continue;
            }
            let proves = self.proves(record);
            if !proves {
                idle.get_or_insert(number);
            }
            if number == 1 {
                self.boot_aggregate(record, &mut found.boot)
                    .map_err(|refusal| refusal.at(number))?;
            }
            if record.is_violation() {
                violations += 1;
                run += 1;
                if violations > accepted {
                    return Err(Refusal::new(
                        12,
                        "a violation that was not accepted: a file was changed while it was \
                         measured, or the other way round. Look at all of them, treat each as one \
                         of any file, and state their number since boot with --violations",
                    )
                    .at(number)
                    .values(
                        format!("violations={accepted}"),
                        format!("violations={}", replayed.end.totals().violations),
                    ));
                }
                continue;
            }
            if proves {
                self.record(number, record, &mut found)
                    .map_err(|refusal| refusal.at(number))?;
                let own = Own {
                    record: number,
                    settled_violations: violations - run,
                    point: &|at| points.get(&at),
                };
                self.event(record, &own, &mut found, is_known)
                    .map_err(|refusal| refusal.at(number))?;
            }
            run = 0;
        }

        if let Some(number) = idle {
            self.note(
                10,
                Some(number),
                "records of this PCR prove nothing, as it is not quoted, can be reset, or is not \
                 extended by IMA: they are counted, and treated as if they were not there",
            );
        }
        if found.boot.policy.is_none() && !self.accepts_any() {
            return Err(Refusal::new(
                13,
                "there is no record of the IMA policy: have it measured (measure \
                 func=CRITICAL_DATA label=ima_policy), or, before Linux 7.3, state the digest of \
                 its file with --policy-file",
            ));
        }
        found.boot.violations = violations;
        Ok(found)
    }

    /// V10: whether a record proves anything.
    fn proves(&self, record: &Record<'_>) -> bool {
        Pcr::from_record(record.pcr()).is_some_and(|pcr| {
            let mut quoted = self.input.pcrs.iter();
            pcr.is_proof() && quoted.any(|(bank, of, _)| of == pcr && is_strong(bank))
        })
    }

    fn accepts_any(&self) -> bool {
        self.options.policies.iter().any(|policy| policy == ANY)
    }

    /// V14.
    fn revoked(&mut self, from: u64, replayed: &Replayed<'_>) -> Checked<()> {
        if self.options.revoked.is_empty() {
            return Ok(());
        }
        if from != 0 && self.input.kept.is_none() {
            self.note(
                14,
                Some(from),
                "records up to this one were not searched for revoked digests: have them kept \
                 (--keep), or give all records since boot",
            );
        }
        let search = |number, record: &Record<'_>| match named_digest(record) {
            Some(digest) if self.options.revoked.contains(&digest) => Err(Refusal::new(
                14,
                format!(
                    "a file with a digest that was revoked was measured: {}",
                    String::from_utf8_lossy(record.name().unwrap_or_default())
                ),
            )
            .at(number)
            .values("none of the revoked digests", digest)),
            _ => Ok(()),
        };
        if self.state.boot.is_some() {
            let kept = Records::new(self.input.kept.unwrap_or_default()).map_while(Result::ok);
            for (number, record) in (1..=self.state.records()).zip(kept) {
                search(number, &record)?;
            }
        }
        for (number, record) in (from.saturating_add(1)..).zip(&replayed.records) {
            search(number, record)?;
        }
        Ok(())
    }

    /// V2: the first record is that of the boot.
    fn boot_aggregate(&mut self, record: &Record<'_>, boot: &mut Boot) -> Checked<()> {
        let name = record.name().unwrap_or_default();
        let is_ours = Pcr::from_record(record.pcr()) == Some(self.options.pcr);
        if record.is_violation() || !is_ours || !BOOT_AGGREGATE.contains(&name) {
            return Err(Refusal::new(
                2,
                "the first record since boot is not boot_aggregate, in IMA's PCR: these are not \
                 all records since boot",
            )
            .values("boot_aggregate", String::from_utf8_lossy(name)));
        }
        let template = String::from_utf8_lossy(record.template());
        let mut accepted = self.options.templates.iter().map(String::as_str);
        if !NAMED.contains(&&*template) && !accepted.any(|name| name == template) {
            return Err(Refusal::new(
                9,
                "boot_aggregate has a template that no kernel uses by itself: state it with \
                 --template if the machine's does",
            )
            .values(NAMED.join(", or "), template));
        }
        boot.template = template.into_owned();
        self.check_aggregate(record)
    }

    /// V2: the record `boot_aggregate` has the digest of PCRs 0 to 9, or 0 to 7 in the bank SHA-1:
    /// `ima_calc_boot_aggregate_tfm()` in `ima_crypto.c`.
    fn check_aggregate(&mut self, record: &Record<'_>) -> Checked<()> {
        let Some((name, digest)) = file_digest(record) else {
            return Err(Refusal::new(2, "boot_aggregate has no digest"));
        };
        let bank = Algorithm::named(name);
        let values = bank.and_then(|bank| {
            let pcrs = if bank == Algorithm::Sha1 {
                0..=7
            } else {
                BOOT_PCRS
            };
            let values: Option<Vec<&[u8]>> = pcrs
                .map(|pcr| self.input.pcrs.get(bank, Pcr::new(pcr)?))
                .collect();
            Some((bank, values?))
        });
        let Some((bank, values)) = values else {
            let what = format!(
                "boot_aggregate is of the bank {name}, and PCRs 0 to 9 are not quoted in it: ask \
                 for them"
            );
            return if self.input.quote.is_some() {
                Err(Refusal::new(2, what))
            } else {
                self.note(2, Some(1), what);
                Ok(())
            };
        };
        let hash = bank.hash(&values);
        let hash = hash.get(..bank.size()).unwrap_or_default();
        if hash == digest {
            return Ok(());
        }
        Err(Refusal::new(
            2,
            "boot_aggregate is not of the PCRs that are quoted: another system was booted than the \
             one that measured",
        )
        .values(
            format!("{name}:{}", hex(hash)),
            format!("{name}:{}", hex(digest)),
        ))
    }

    /// V9, V13, and the kernels of V25.
    fn record(&mut self, number: u64, record: &Record<'_>, found: &mut Found) -> Checked<()> {
        let template = String::from_utf8_lossy(record.template());
        let mut accepted = self.options.templates.iter().map(String::as_str);
        if template != found.boot.template && template != BUFFER && !accepted.any(|t| t == template)
        {
            return Err(Refusal::new(
                9,
                "a template that the accepted kernel and policy do not use: state those that they \
                 use with --template",
            )
            .values(&found.boot.template, template));
        }
        if let Some(error) = record.fields().find_map(Result::err) {
            return Err(Refusal::new(9, error.to_string()));
        }
        match check_buffer(record) {
            Buffer::Good => {}
            Buffer::Bad => {
                return Err(Refusal::new(
                    9,
                    "the digest in an ima-buf record is not that of its data: it is a record of \
                     something else",
                ));
            }
            Buffer::Renamed => {
                return Err(Refusal::new(
                    9,
                    "the record of a buffer is shown under the name of another template: the digest \
                     in it is that of its data, as in an ima-buf record",
                ));
            }
            Buffer::Unknown => {
                return Err(Refusal::new(
                    9,
                    "the digest in the record of a buffer is of an algorithm that this program does \
                     not know, so that it cannot be compared with the data",
                ));
            }
        }

        let name = record.name().unwrap_or_default();
        let Some(digest) = named_digest(record) else {
            return Ok(());
        };
        if number > 1 && template != BUFFER && BOOT_AGGREGATE.contains(&name) {
            self.check_aggregate(record)?;
            found.boot.history.boot_aggregate()?;
            self.note(25, Some(number), "another kernel was started by kexec");
        }
        if self.options.kernels.contains(&digest) {
            found.boot.history.kernel();
        }
        if template == BUFFER && name == POLICY_LOADED {
            self.policy(number, record, digest, found)?;
        } else if template != BUFFER && self.options.policy_files.contains(&digest) {
            // All that there is before Linux 7.3. It was read, which need not have loaded it.
            found.boot.policy = Some(digest);
        }
        Ok(())
    }

    /// V13.
    fn policy(
        &mut self,
        number: u64,
        record: &Record<'_>,
        digest: String,
        found: &mut Found,
    ) -> Checked<()> {
        let text = record.field(FieldId::Buf).map_or(&b""[..], |buf| buf.data);
        if !self.accepts_any() {
            let is_stated =
                !self.options.policies.is_empty() || !self.options.policy_files.is_empty();
            let accepted = if is_stated {
                &self.options.policies
            } else {
                &found.policies
            };
            if accepted.is_empty() && !is_stated {
                self.note(
                    13,
                    Some(number),
                    format!("the IMA policy is accepted at first sight: --policy {digest} says so"),
                );
                found.policies.push(digest.clone());
            } else if !accepted.contains(&digest) {
                return Err(Refusal::new(
                    13,
                    "an IMA policy was loaded that is not accepted: look at it, and state its \
                     digest with --policy",
                )
                .values(
                    if accepted.is_empty() {
                        "none with this record".to_owned()
                    } else {
                        accepted.join(", or ")
                    },
                    digest,
                ));
            }
        }
        if self.options.events && !policy::measures_events(text) {
            return Err(Refusal::new(
                13,
                "the IMA policy does not have the events of ima_trim measured as they should be: \
                 give it the rule, before others of this func=, or say --events off",
            )
            .values(
                "measure func=CRITICAL_DATA label=ima_trim",
                "no such rule, one with other conditions, or another before it",
            ));
        }
        found.boot.policy = Some(digest);
        Ok(())
    }

    /// V16 to V22.
    fn event(
        &mut self,
        record: &Record<'_>,
        own: &Own<'_>,
        found: &mut Found,
        is_known: bool,
    ) -> Checked<()> {
        let event = match Event::of(record, self.options.pcr) {
            Kind::Other => return Ok(()),
            Kind::Lookalike(why) => {
                self.note(
                    16,
                    Some(own.record),
                    format!("a record has the name of an event of ima_trim and is none: {why}"),
                );
                return Ok(());
            }
            Kind::Event(event) => event,
        };
        let expected = Expected {
            guard: self.options.guard,
            removed: self.options.removed,
        };
        if let Some((rule, what)) = found.boot.history.event(&event, own, &expected)? {
            self.note(rule, Some(own.record), what);
        }
        if let Event::Trim { point, .. } = &event {
            let records = point.totals().records;
            let mut asked = found.boot.points.iter();
            if is_known && !asked.any(|point| point.totals().records == records) {
                self.note(
                    20,
                    Some(own.record),
                    format!(
                        "a trim to record {records}, which this verifier did not ask for: what it \
                         wanted to keep may be gone from the machine"
                    ),
                );
            }
        }
        Ok(())
    }

    /// V6, V19 and V23, of the starting values: what the events said of them.
    fn check_starting(
        &mut self,
        starting: &Starting,
        found: &Found,
        points: &BTreeMap<u64, Point>,
    ) -> Checked<()> {
        let history = &found.boot.history;
        if let Starting::Known(point) = starting {
            let totals = point.totals();
            let own = points
                .get(&totals.records)
                .map_or(0, |own| own.totals().violations);
            if totals.violations > own.saturating_add(history.excess()) {
                return Err(refuse_violations(
                    own.saturating_add(history.excess()),
                    totals.violations,
                ));
            }
            if totals.records != 0 && !history.announced() && self.options.events {
                self.note(
                    23,
                    None,
                    "records were trimmed, and no event says so: something else than the module \
                     was at work, or the policy came later",
                );
                if history.instance().is_none() {
                    return Ok(());
                }
            }
        }
        if history.instance().is_some() {
            history.check_starting(starting)?;
        }
        Ok(())
    }
}

impl Check<'_> {
    fn accept(
        &mut self,
        from: u64,
        starting: Option<&Starting>,
        replayed: Replayed<'_>,
        points: &BTreeMap<u64, Point>,
        found: Found,
    ) -> (Accepted, Range<usize>) {
        let seen = self.state.records();
        let Found { mut boot, policies } = found;
        let end = replayed.end;

        boot.counts = self
            .clock
            .map(|clock| (clock.reset_count, clock.restart_count))
            .or(boot.counts);
        boot.pcrs = boot_pcrs(self.input.pcrs);
        let mut covered = Vec::new();
        for (bank, pcr, _) in self.input.pcrs.iter() {
            if is_strong(bank) && pcr.is_proof() && end.pcrs().contains(pcr) {
                covered.push(format!("{}:{pcr}", bank.name()));
            }
        }
        boot.covered = covered;
        boot.trimmed_violations = match starting {
            Some(Starting::Known(point)) => points
                .get(&point.totals().records)
                .map_or(0, |own| own.totals().violations),
            Some(Starting::Unknown(_)) => boot.trimmed_violations,
            None => boot.history.announced_violations(),
        };
        // What is before the starting values is never started from again.
        let oldest = match starting {
            Some(Starting::Known(point)) => point.totals().records,
            _ => from,
        };
        boot.points.retain(|point| point.totals().records >= oldest);
        if let Some(point) = points.get(&oldest).filter(|_| oldest != 0) {
            boot.remember(point);
        }
        boot.remember(&end);

        // The bytes of the records that were not accepted before.
        let bytes = |records: &[Record<'_>]| -> usize {
            records.iter().map(|record| record.raw().len()).sum()
        };
        let known = usize::try_from(seen.saturating_sub(from)).unwrap_or(usize::MAX);
        let old = replayed
            .records
            .get(..known)
            .unwrap_or(replayed.records.as_slice());
        let news = bytes(old)..bytes(&replayed.records);

        let policy = boot.policy.clone();
        self.state.policies = policies;
        self.state.boot = Some(boot);
        let instance = self.state.instance().map(str::to_owned);
        let request = self
            .state
            .request(None, instance.as_deref())
            .unwrap_or_default();
        (
            Accepted {
                first: from.saturating_add(1),
                records: end.totals().records,
                violations: end.totals().violations,
                waiting: replayed.waiting,
                instance,
                reset_count: self.clock.map(|clock| clock.reset_count),
                restart_count: self.clock.map(|clock| clock.restart_count),
                policy,
                request,
            },
            news,
        )
    }
}

/// Whether collisions cannot be made in a bank.
fn is_strong(bank: Algorithm) -> bool {
    bank != Algorithm::Sha1
}

/// The values of PCRs 0 to 9, by `<bank>:<pcr>`.
fn boot_pcrs(pcrs: &PcrFile) -> BTreeMap<String, String> {
    pcrs.iter()
        .filter(|(_, pcr, _)| BOOT_PCRS.filter_map(Pcr::new).any(|of| of == *pcr))
        .map(|(bank, pcr, value)| (format!("{}:{pcr}", bank.name()), hex(value)))
        .collect()
}

fn refuse_starting(error: &PointError) -> Refusal {
    Refusal::new(4, format!("not a text of starting_pcrs: {error}"))
}

fn refuse_violations(expected: u64, found: u64) -> Refusal {
    Refusal::new(
        6,
        "the starting values come with another number of violations than was measured: only after \
         a restore it may be more, and it must never be less",
    )
    .values(
        format!("violations={expected}"),
        format!("violations={found}"),
    )
}

/// The banks and PCRs of a selection, whatever order it has.
fn cells(selection: &Selection) -> BTreeSet<(Algorithm, Pcr)> {
    selection
        .iter()
        .flat_map(|(bank, pcrs)| pcrs.iter().map(move |pcr| (*bank, pcr)))
        .collect()
}

/// A selection as tpm2-tools write it: `sha256:0,10`.
fn show_selection(selection: &Selection) -> String {
    selection
        .iter()
        .map(|(bank, pcrs)| {
            let pcrs: Vec<String> = pcrs.iter().map(|pcr| pcr.to_string()).collect();
            format!("{}:{}", bank.name(), pcrs.join(","))
        })
        .collect::<Vec<_>>()
        .join("+")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A record of a file of this name.
    fn record(name: &str) -> Vec<u8> {
        let sized = |bytes: &[u8]| [(bytes.len() as u32).to_ne_bytes().as_slice(), bytes].concat();
        let digest = sized(&[b"sha256:\0".as_slice(), &[7; 32]].concat());
        let name = sized(&[name.as_bytes(), b"\0"].concat());
        let data = sized(&[digest, name].concat());
        let header = [10_u32.to_ne_bytes().as_slice(), &[1; 20]].concat();
        [header, sized(b"ima-ng"), data].concat()
    }

    fn names(prefix: &str) -> Vec<Vec<u8>> {
        (0..1000)
            .map(|at| record(&format!("{prefix}{at}")))
            .collect()
    }

    /// The points after every tenth of these records.
    fn points(records: &[Vec<u8>]) -> Vec<Point> {
        let mut point = Point::reset(&Algorithm::ALL, Pcr::new(10).unwrap());
        let mut points = Vec::new();
        for (bytes, number) in records.iter().zip(1..) {
            point.extend(&Record::first(bytes).unwrap().unwrap());
            if number % 10 == 0 {
                points.push(point.clone());
            }
        }
        points
    }

    /// The rule that refuses a list that begins nobody knows where, and how many records were
    /// replayed for it.
    fn search(known: &[Vec<u8>], list: &[Vec<u8>], quoted: &[Vec<u8>]) -> (Option<u8>, u64) {
        let pcr = Pcr::new(10).unwrap();
        let mut options = Options::new(pcr);
        options.policies = vec![ANY.to_owned()];
        let mut state = State::default();
        state.boot = Some(Boot {
            counts: None,
            pcrs: BTreeMap::new(),
            template: "ima-ng".to_owned(),
            policy: None,
            points: points(known),
            covered: Vec::new(),
            trimmed_violations: 0,
            violations: 0,
            history: history::History::default(),
        });
        let points = points(quoted);
        let value = points.last().unwrap().get(Algorithm::Sha256, pcr).unwrap();
        let pcrs = format!("sha256:10={}", hex(value));
        let input = Input {
            log: &list.concat(),
            whole: false,
            starting: Some(b"unknown records=1\n"),
            pcrs: &PcrFile::parse(pcrs.as_bytes(), None).unwrap(),
            quote: None,
            kept: None,
        };
        let mut check = Check::new(&options, &state, &input);
        let refusal = check.run().unwrap().err();
        (refusal.map(|refusal| refusal.rule.0), check.steps)
    }

    #[test]
    fn a_beginning_that_is_not_known_is_found_soon() {
        let known = names("known");
        let whole = [known.clone(), names("new")].concat();
        for from in (0..=1000).step_by(100) {
            let list = whole.get(from..).unwrap();
            let (rule, steps) = search(&known, list, &whole);
            assert_eq!(rule, None, "{from}");
            assert!(steps <= 1000 + 2 * list.len() as u64, "{from}: {steps}");
        }
        // None of them.
        let (rule, steps) = search(&known, &names("other"), &whole);
        assert_eq!(rule, Some(7));
        assert!(steps <= 2000, "{steps}");
        // All of them, until the end.
        let same = vec![record("same"); 1000];
        let (rule, steps) = search(&same, &same, &whole);
        assert_eq!(rule, Some(7));
        assert!(steps <= (TRIES + 1) * 2000, "{steps}");
    }
}
