// SPDX-License-Identifier: GPL-2.0

//! Trimming: from a request to its outcome.
//!
//! One request at a time has its turn. It takes the reader hold, replays the list without any lock
//! until the values match, and checks all that may speak against the trim. What is to be allocated
//! is allocated then. The rest is short and cannot fail half-way: the ledger's lock,
//! `ima_measure_mutex`, `ima_extend_list_mutex`, the cut, the account. Whoever opens the list after
//! the cut finds the account of it, because the ledger's lock is the outermost. The records are
//! freed last, by a worker, when the request has returned: the turn passes to it.

#![forbid(unsafe_code)]

use crate::{
    bank::{
        Pcr,
        PcrSet,
        Value, //
    },
    base::{
        self,
        Undecided,
        Verdict, //
    },
    errno::Errno,
    ledger::{
        Ledger,
        Trimmed,
        Violation,
        Violations, //
    },
    machine::{
        error,
        Machine, //
    },
    replay::{
        self,
        search,
        Record,
        Replay,
        ReplayError, //
    },
    report::{
        self,
        Outcome,
        Totals,
        TrimResult, //
    },
    request::{
        self,
        Reclaim,
        Request,
        Unread, //
    },
    rust::{
        evidence::{
            self,
            Measured, //
        },
        hash::{
            is_algorithm,
            HashError, //
        },
        ima::{
            Busy,
            Cut,
            Hold,
            Walk, //
        },
        task::FatalSignal,
        worker::{
            Job,
            Worker, //
        },
    },
    text::Text,
};
use core::fmt::Write;
use kernel::{
    new_condvar, new_mutex,
    prelude::*,
    sync::{
        Arc,
        CondVar,
        Mutex, //
    },
};

/// What trims the list of a machine.
#[pin_data]
pub(crate) struct Trimmer {
    /// The machine.
    pub(crate) machine: KBox<Machine>,
    /// What becomes of the memory if a request does not say it.
    reclaim: Reclaim,
    /// The account. Outside of the mutexes of IMA.
    #[pin]
    pub(crate) ledger: Mutex<Ledger>,
    /// Who has the turn. Never held together with another lock.
    #[pin]
    taken: Mutex<Taken>,
    /// Signalled when the turn is given back.
    #[pin]
    given_back: CondVar,
    /// What gives memory back.
    pub(crate) worker: Arc<Worker<Reclaiming>>,
}

/// Who has the turn.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Taken {
    /// Whoever wants it can take it.
    Nobody,
    /// Whoever made a request, or reads a file.
    Caller,
    /// The worker, after a request.
    Worker,
}

/// The turn: nobody else uses the list through the module, and nobody else changes the ledger.
pub(crate) struct Turn<'t>(&'t Trimmer);

impl Turn<'_> {
    /// Passes the turn to the worker, which gives it back.
    fn pass(self) {
        *self.0.taken.lock() = Taken::Worker;
        core::mem::forget(self);
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        *self.0.taken.lock() = Taken::Nobody;
        // Not all that wait do so for the turn.
        self.0.given_back.notify_all();
    }
}

/// What a request leaves for later: records whose memory is to be given back.
struct Left {
    cut: Cut,
    mode: Reclaim,
    /// For how long the mutex was held for the cut.
    hold_ns: u64,
}

/// The same, with whose turn it is meanwhile.
pub(crate) struct Reclaiming {
    trimmer: Arc<Trimmer>,
    left: Left,
}

impl Job for Reclaiming {
    fn run(self) {
        let Self { trimmer, left } = self;
        let _turn = Turn(&trimmer);

        trimmer.reclaim(left);
    }
}

/// A request, with its values in memory of the kernel.
type TrimRequest = Request<KVec<Value>>;

/// Why a request is refused, and what would have been trimmed as far as that is known.
pub(crate) struct Refusal {
    pub(crate) errno: Errno,
    found: Found,
}

/// What a request would trim.
#[derive(Clone, Copy, Default)]
struct Found {
    records: u64,
    violations: u64,
    first_violation: Option<u64>,
}

impl Found {
    /// The outcome of a request that found this.
    fn outcome(self, result: TrimResult, hold_ns: Option<u64>) -> Outcome {
        Outcome {
            result,
            records: self.records,
            violations: self.violations,
            first_violation: self.first_violation,
            hold_ns,
        }
    }
}

impl From<Errno> for Refusal {
    fn from(errno: Errno) -> Self {
        Self {
            errno,
            found: Found::default(),
        }
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self::from(match error {
            ENOMEM => Errno::NoMem,
            E2BIG => Errno::TooBig,
            EINVAL => Errno::Inval,
            EFAULT => Errno::Fault,
            _ => Errno::Io,
        })
    }
}

impl From<Busy> for Refusal {
    fn from(busy: Busy) -> Self {
        log_warn!("refused: {busy}");
        Self::from(busy.errno())
    }
}

impl From<FatalSignal> for Refusal {
    fn from(killed: FatalSignal) -> Self {
        Undecided::from(killed).into()
    }
}

impl From<Undecided> for Refusal {
    fn from(undecided: Undecided) -> Self {
        match undecided {
            Undecided::Busy(busy) => busy.into(),
            // The log has which of its values it did not give.
            Undecided::Tpm => Errno::Io.into(),
            Undecided::Killed => Errno::Intr.into(),
            Undecided::NoMemory => Errno::NoMem.into(),
            Undecided::Replay(error) => {
                log_err!("refused: {error}");
                Errno::Io.into()
            }
        }
    }
}

impl From<replay::SearchError<ReplayError<HashError>, FatalSignal>> for Refusal {
    fn from(error: replay::SearchError<ReplayError<HashError>, FatalSignal>) -> Self {
        Undecided::from(error).into()
    }
}

impl From<replay::SearchError<Refusal, FatalSignal>> for Refusal {
    fn from(error: replay::SearchError<Refusal, FatalSignal>) -> Self {
        match error {
            replay::SearchError::Step(refusal) => refusal,
            replay::SearchError::Walk(killed) => killed.into(),
        }
    }
}

impl Trimmer {
    /// A trimmer that trimmed nothing yet.
    pub(crate) fn new(machine: KBox<Machine>, reclaim: Reclaim) -> impl PinInit<Self, Error> {
        let ledger = Ledger::new(&machine);

        try_pin_init!(Self {
            machine,
            reclaim,
            ledger <- new_mutex!(ledger?, "ima_trim::ledger"),
            taken <- new_mutex!(Taken::Nobody, "ima_trim::taken"),
            given_back <- new_condvar!("ima_trim::given_back"),
            worker: Worker::new()?,
        })
    }

    /// Waits for the turn. `EINTR` if a signal arrives.
    pub(crate) fn turn(&self) -> Result<Turn<'_>, Errno> {
        let mut taken = self.taken.lock();

        while *taken != Taken::Nobody {
            if self.given_back.wait_interruptible(&mut taken) {
                return Err(Errno::Intr);
            }
        }
        *taken = Taken::Caller;
        Ok(Turn(self))
    }

    /// Waits until the memory of records that were trimmed is given back. `EINTR` if a signal
    /// arrives.
    pub(crate) fn await_worker(&self) -> Result<(), Errno> {
        let mut taken = self.taken.lock();

        while *taken == Taken::Worker {
            if self.given_back.wait_interruptible(&mut taken) {
                return Err(Errno::Intr);
            }
        }
        Ok(())
    }

    /// Takes the turn, if nobody has it.
    fn try_turn(&self) -> Option<Turn<'_>> {
        let mut taken = self.taken.lock();

        if *taken != Taken::Nobody {
            return None;
        }
        *taken = Taken::Caller;
        Some(Turn(self))
    }

    /// Reads IMA's counters, and looks whether somebody else removed records. Gives their number.
    fn look(&self) -> u64 {
        let mut ledger = self.ledger.lock();
        let counters = self.machine.ima.counters();

        ledger.notice(&counters)
    }

    /// Compares the replay from the starting values with the TPM, for the PCRs of `wanted` and all
    /// that occur, and notes the verdict.
    pub(crate) fn verify(
        &self,
        _turn: &Turn<'_>,
        hold: &Hold<'_>,
        wanted: PcrSet,
    ) -> Result<Verdict, Undecided> {
        let starting = {
            let ledger = self.ledger.lock();

            self.machine
                .copy(ledger.starting())
                .map_err(|_| Undecided::NoMemory)?
        };
        let verdict = base::verify(&self.machine, hold, starting, wanted)?;

        if self.look() != 0 {
            return Err(Busy::Changed.into());
        }
        for pcr in self.ledger.lock().judge(&verdict).iter() {
            log_warn!(
                "starting values of PCR {pcr} are not verified: the replay of the list from them \
                 does not give what the TPM has; something else extended it, or an extend failed"
            );
        }
        Ok(verdict)
    }

    /// Writes the text of `verify`.
    pub(crate) fn show_verify(&self, text: &mut Text) -> Result<(), Errno> {
        let turn = self.turn()?;
        let refused = |busy: Busy| {
            log_limited!(log_warn, "refused: {busy}");
            busy.errno()
        };
        let hold = self.machine.ima.hold().map_err(refused)?;

        if self.look() != 0 {
            return Err(Errno::Uclean);
        }
        let known = self.ledger.lock().known();
        let verdict = self
            .verify(&turn, &hold, known)
            .map_err(|undecided| match undecided {
                Undecided::Busy(busy) => refused(busy),
                undecided => Refusal::from(undecided).errno,
            })?;

        report::verify(
            text,
            &self.machine.banks,
            verdict.pcrs,
            |bank, pcr| verdict.is_equal(bank, pcr),
            verdict.records,
            verdict.violations,
        )
        .map_err(|_| Errno::NoMem)
    }

    /// Decides on the starting values of PCRs that records began to extend since the last time.
    ///
    /// If that cannot be done now, it is left for later.
    pub(crate) fn catch_up(&self) {
        {
            let ledger = self.ledger.lock();
            let counters = self.machine.ima.counters();

            if ledger.is_decided(&counters) || ledger.foreign(&counters) != 0 {
                return;
            }
        }
        let Some(turn) = self.try_turn() else {
            return;
        };
        let Ok(hold) = self.machine.ima.hold() else {
            return;
        };

        let Ok(walk) = hold.walk() else {
            return;
        };
        let counters = *walk.began();
        let Ok(seen) = pcrs(walk) else {
            return;
        };
        let undecided = {
            let mut ledger = self.ledger.lock();

            ledger.look_at(&counters, seen);
            if ledger.foreign(&counters) != 0 {
                return;
            }
            ledger.undecided(seen)
        };
        if !undecided.is_empty() && self.verify(&turn, &hold, undecided).is_err() {
            log_limited!(
                log_info,
                "starting values of new PCRs are left unverified for now"
            );
        }
    }

    /// The first verification, when the module is loaded.
    ///
    /// `EBUSY` if a process has a list open for writing or records are staged, `ESTALE` if measuring
    /// is suspended, `EINTR`, `ENOMEM`. Starting values that turn out wrong, or a TPM that does not
    /// answer, are no error here: trims will be refused.
    pub(crate) fn begin(&self) -> Result {
        let turn = self.turn().map_err(error)?;
        let refused = |busy: Busy| {
            log_err!("not loaded: {busy}");
            error(busy.errno())
        };
        let hold = self.machine.ima.hold().map_err(refused)?;
        let counters = hold.counters();

        counters.check().map_err(refused)?;
        if self.look() != 0 {
            return Ok(());
        }

        let mut own = PcrSet::new();
        own.insert(self.machine.measure_pcr);
        match self.verify(&turn, &hold, own) {
            Ok(_) => Ok(()),
            Err(Undecided::Tpm) => {
                log_warn!("the TPM cannot be read: nothing will be trimmed until it can");
                Ok(())
            }
            Err(Undecided::Busy(busy)) => Err(refused(busy)),
            Err(Undecided::Killed) => Err(EINTR),
            Err(Undecided::NoMemory) => Err(ENOMEM),
            Err(Undecided::Replay(error)) => {
                log_err!("not loaded: {error}");
                Err(EIO)
            }
        }
    }

    /// Carries out a request, or refuses it, and notes the outcome. The memory of what was trimmed
    /// is given back later.
    ///
    /// `request` is its text, or why that could not be read.
    pub(crate) fn request(this: &Arc<Self>, request: Result<&[u8]>) -> Outcome {
        let mut turn = None;
        let result = match request {
            Ok(text) => this.parse(text).and_then(|request| {
                let turn = turn.insert(this.turn()?);
                this.trim(turn, request)
            }),
            Err(error) => {
                let refusal = Refusal::from(error);

                log_warn!("trim refused {}", Unread(refusal.errno));
                Err(refusal)
            }
        };
        let (outcome, left) = result.unwrap_or_else(|Refusal { errno, found }| {
            (found.outcome(TrimResult::Refused(errno), None), None)
        });

        // The turn, if it was taken, is given back or passed on after this: outcomes are in their
        // order.
        this.ledger.lock().conclude(outcome);
        if let (Some(turn), Some(left)) = (turn, left) {
            let trimmer = this.clone();

            turn.pass();
            Worker::begin(&this.worker, Reclaiming { trimmer, left });
        }
        outcome
    }

    /// Gives back the memory that a request left.
    fn reclaim(&self, left: Left) {
        let Left { cut, mode, hold_ns } = left;
        let reclaimed = cut.reclaim(&self.machine.ima, mode);
        let hold_ns = hold_ns.max(reclaimed.hold_ns);

        self.ledger.lock().reclaimed(reclaimed.bytes, hold_ns);
        match (mode, reclaimed.kept) {
            (_, 0) | (Reclaim::Keep, _) => {}
            (Reclaim::Compact, kept) => {
                log_warn!("no memory to compact {kept} trimmed records: they are kept as by keep");
            }
            (Reclaim::Flush, kept) => log_warn!(
                "somebody else removed records meanwhile: {kept} trimmed records are kept as by \
                 keep, until the next flush"
            ),
        }
        log_info!(
            "{}: {} bytes freed, mutex held for {} ns at most",
            mode.as_str(),
            reclaimed.bytes,
            hold_ns
        );
    }

    /// Reads a request.
    fn parse(&self, text: &[u8]) -> Result<TrimRequest, Refusal> {
        let request = request::parse(
            text,
            &self.machine.banks,
            is_algorithm,
            self.machine.reset_values()?,
        )
        .map_err(|error| {
            log_warn!("trim refused: {error}");
            Refusal::from(error.errno())
        })?;

        if self.mode(&request) != Reclaim::Keep && !self.machine.ima.can_sweep() {
            log_warn!(
                "trim refused: the digest hash table of this kernel is not one that is known: use \
                 keep"
            );
            return Err(Errno::OpNotSupp.into());
        }
        Ok(request)
    }

    /// What becomes of the memory.
    fn mode(&self, request: &TrimRequest) -> Reclaim {
        request.reclaim.unwrap_or(self.reclaim)
    }

    /// Makes sure that the starting values of these PCRs are a fact.
    fn require(&self, turn: &Turn<'_>, hold: &Hold<'_>, pcrs: PcrSet) -> Result<(), Refusal> {
        let undecided = self.ledger.lock().undecided(pcrs);
        // Of a PCR that no record extends yet this holds for the moment, and needs to for no longer.
        let mut verified = PcrSet::new();

        if !undecided.is_empty() {
            match self.verify(turn, hold, undecided) {
                Ok(verdict) => verified = verdict.verified,
                Err(Undecided::Tpm) => {
                    log_warn!(
                        "trim refused: without the TPM's values the starting values are not verified"
                    );
                    return Err(Errno::Uclean.into());
                }
                Err(undecided) => return Err(undecided.into()),
            }
        }
        let unverified: Option<Pcr> = self.ledger.lock().unverified(pcrs.without(verified));
        match unverified {
            None => Ok(()),
            Some(pcr) => {
                log_warn!(
                    "trim refused: the starting values of PCR {pcr} are not verified: the replay \
                     of the list from them does not give what the TPM has"
                );
                Err(Errno::Uclean.into())
            }
        }
    }

    /// Carries out a request. Nothing is changed if it is refused.
    fn trim(
        &self,
        turn: &Turn<'_>,
        request: TrimRequest,
    ) -> Result<(Outcome, Option<Left>), Refusal> {
        let mode = self.mode(&request);
        let mut hold = self.machine.ima.hold()?;
        drop(hold.exclude()?);

        // The list that is walked is the one that the account is compared with, at one moment.
        let mut walk = hold.walk()?;
        let foreign = self.ledger.lock().notice(walk.began());
        if foreign != 0 {
            log_warn!(
                "trim refused: somebody else removed {foreign} records, so the starting PCR values \
                 are unknown until they are written to starting_pcrs"
            );
            return Err(Errno::Uclean.into());
        }
        self.require(turn, &hold, request.target.pcrs())?;

        let (starting, before, kept) = {
            let ledger = self.ledger.lock();

            (
                self.machine.copy(ledger.starting())?,
                ledger.totals().records,
                ledger.violations_kept(),
            )
        };
        let mut replay = Replay::new(starting);
        match search(
            &self.machine.banks,
            &self.machine.hashes,
            &mut replay,
            &request.target,
            &mut walk,
        )? {
            replay::Outcome::Matched => {}
            replay::Outcome::Exhausted => {
                log_warn!(
                    "trim refused: at no record do all given values match those of the replay; \
                     {} records were replayed",
                    replay.records()
                );
                return Err(Errno::NoEnt.into());
            }
        }

        let found = Found {
            records: replay.records(),
            violations: replay.violations(),
            first_violation: replay
                .first_violation()
                .map(|number| number.saturating_add(before)),
        };
        let Some(position) = walk.position() else {
            // What earlier trims left can still be flushed.
            let left = (!request.dry_run && mode == Reclaim::Flush).then(|| Left {
                cut: Cut::nothing(),
                mode,
                hold_ns: 0,
            });

            return Ok((found.outcome(TrimResult::Nothing, None), left));
        };
        self.require(turn, &hold, replay.seen())?;
        if found.violations != request.violations {
            log_warn!(
                "trim refused: {} violations would be dropped, {} are stated; look at them, and \
                 state violations={} if they are to go",
                found.violations,
                request.violations,
                found.violations
            );
            return Err(Refusal {
                errno: Errno::BadMsg,
                found,
            });
        }

        let unextended = replay.unextended();
        let list = violations(&hold, found, before, kept)?;
        let trimmed = Trimmed {
            pcrs: replay.seen(),
            records: found.records,
            violations: found.violations,
            list,
            values: replay.into_values(),
        };
        let mut evidence = Text::new();
        let totals = self
            .ledger
            .lock()
            .show_trimmed(&mut evidence, &self.machine, &trimmed)
            .and_then(|totals| evidence.write_char('\0').map(|()| totals))
            .map_err(|_| Errno::NoMem)?;

        // What goes wrong from here on is logged after IMA's mutexes are let go.
        let mut ledger = self.ledger.lock();
        let mut exclusive = hold.exclude()?;
        if request.dry_run {
            let checked = exclusive.check(&position);
            drop(exclusive);
            checked?;
            return Ok((found.outcome(TrimResult::DryRun, None), None));
        }
        let cut = exclusive.cut(position);
        drop(exclusive);
        let (cut, hold_ns) = cut?;
        let replaced = ledger.commit(trimmed, hold_ns);
        drop(ledger);

        drop(hold);
        drop(replaced);
        self.give_evidence(found, &totals, &evidence);

        log_info!(
            "trimmed {} records ({} violations, {} for no PCR of the TPM), mutex held for {} ns",
            found.records,
            found.violations,
            unextended,
            hold_ns
        );
        Ok((
            found.outcome(TrimResult::Trimmed, Some(hold_ns)),
            Some(Left { cut, mode, hold_ns }),
        ))
    }

    /// Makes the trim known: to the audit log, and, if the policy says so, in the list itself.
    ///
    /// A failure does not undo the trim. `text` is what `starting_pcrs` says after it, with a NUL.
    fn give_evidence(&self, found: Found, totals: &Totals, text: &Text) {
        let mut failed = 0;

        if let Err(error) = evidence::audit(c"trim", found.records, found.violations, totals) {
            failed += 1;
            log_warn!(
                "no audit record of the trim: error {}; is auditing on, and its backlog not full?",
                error.to_errno()
            );
        }
        let measured = match evidence::measure(text.as_bytes()) {
            Ok(Measured::Yes) => true,
            Ok(Measured::NoRule) => false,
            Err(error) => {
                failed += 1;
                log_warn!(
                    "the trim is not in the measurement list: error {} of IMA",
                    error.to_errno()
                );
                false
            }
        };
        self.ledger.lock().evidence(measured, failed);
    }
}

/// The PCRs that the records of a walk extend.
fn pcrs(mut walk: Walk<'_>) -> Result<PcrSet, Refusal> {
    let mut pcrs = PcrSet::new();

    replay::each(&mut walk, |record| {
        if let Some(pcr) = Pcr::from_record(record.pcr()) {
            pcrs.insert(pcr);
        }
        Ok::<_, Refusal>(false)
    })?;
    Ok(pcrs)
}

/// Lists the violations of what was found. `before` records were trimmed earlier, and `kept` of
/// their violations are listed.
fn violations(
    hold: &Hold<'_>,
    found: Found,
    before: u64,
    kept: usize,
) -> Result<Violations, Refusal> {
    let mut list = Violations::with_room(found.violations, kept)?;
    let mut number = before;

    if found.violations == 0 {
        return Ok(list);
    }
    // Nothing is allocated while a record is looked at.
    let mut violation = Violation::blank()?;
    let mut walk = hold.walk()?;
    for count in 0..found.violations {
        let outcome = replay::each(&mut walk, |record| {
            let is_violation = record.is_violation();

            number = number.saturating_add(1);
            if is_violation {
                violation.note(number, record);
            }
            Ok::<_, Refusal>(is_violation)
        })?;

        match outcome {
            replay::Outcome::Matched if count < list.omitted() => {}
            replay::Outcome::Matched => list.push(&violation)?,
            replay::Outcome::Exhausted => return Err(Busy::Changed.into()),
        }
    }
    Ok(list)
}
