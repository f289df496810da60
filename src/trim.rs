// SPDX-License-Identifier: GPL-2.0

//! Trimming: from a request to its outcome.
//!
//! One request at a time has its turn. It takes the reader hold, replays the list without any lock
//! until the values match, and checks all that may speak against the trim. What is to be allocated
//! is allocated then. The rest is short and cannot fail half-way: the ledger's lock,
//! `ima_measure_mutex`, `ima_extend_list_mutex`, the cut, the account. Whoever opens the list after
//! the cut finds the account of it, because the ledger's lock is the outermost. The records are
//! freed last, with no lock at all.

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
        Replay, //
    },
    report::{
        Outcome,
        TrimResult, //
    },
    request::{
        self,
        Reclaim,
        Request, //
    },
    rust::{
        hash::{
            is_algorithm,
            HashError, //
        },
        ima::{
            Busy,
            ReaderHold,
            Walk, //
        },
        task::{
            checkpoint,
            FatalSignal, //
        },
    },
};
use kernel::{
    new_condvar, new_mutex,
    prelude::*,
    sync::{
        CondVar,
        Mutex, //
    },
};

/// What trims the list of a machine.
#[pin_data]
pub(crate) struct Trimmer {
    /// The machine.
    pub(crate) machine: KBox<Machine>,
    /// The account. Outside of the mutexes of IMA.
    #[pin]
    pub(crate) ledger: Mutex<Ledger>,
    /// Whether somebody has the turn. Never held together with another lock.
    #[pin]
    taken: Mutex<bool>,
    /// Signalled when the turn is given back.
    #[pin]
    given_back: CondVar,
}

/// The turn: nobody else uses the list through the module, and nobody else changes the ledger.
pub(crate) struct Turn<'t>(&'t Trimmer);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        *self.0.taken.lock() = false;
        self.0.given_back.notify_one();
    }
}

/// A request, with its values in memory of the kernel.
type TrimRequest = Request<KVec<Value>>;

/// Why a request is refused, and what would have been trimmed as far as that is known.
struct Refusal {
    errno: Errno,
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
        log_warn!("trim refused: {busy}");
        Self::from(match busy {
            Busy::Suspended => Errno::Stale,
            Busy::Changed | Busy::Corrupt => Errno::Uclean,
            Busy::Writer
            | Busy::Readers(_)
            | Busy::Inconsistent { .. }
            | Busy::TooManyReaders
            | Busy::Staged(_) => Errno::Busy,
        })
    }
}

impl From<Undecided> for Refusal {
    fn from(undecided: Undecided) -> Self {
        match undecided {
            Undecided::Busy(busy) => busy.into(),
            Undecided::Tpm => {
                log_warn!(
                    "trim refused: without the TPM's values the starting values are not verified"
                );
                Errno::Uclean.into()
            }
            Undecided::Killed => Errno::Intr.into(),
            Undecided::NoMemory => Errno::NoMem.into(),
            Undecided::Replay(error) => {
                log_err!("trim refused: {error}");
                Errno::Io.into()
            }
        }
    }
}

impl From<replay::SearchError<HashError, FatalSignal>> for Refusal {
    fn from(error: replay::SearchError<HashError, FatalSignal>) -> Self {
        Undecided::from(error).into()
    }
}

impl Trimmer {
    /// A trimmer that trimmed nothing yet.
    pub(crate) fn new(machine: KBox<Machine>) -> impl PinInit<Self, Error> {
        let ledger = Ledger::new(&machine);

        try_pin_init!(Self {
            machine,
            ledger <- new_mutex!(ledger?, "ima_trim::ledger"),
            taken <- new_mutex!(false, "ima_trim::taken"),
            given_back <- new_condvar!("ima_trim::given_back"),
        })
    }

    /// Waits for the turn. `EINTR` if a signal arrives.
    fn turn(&self) -> Result<Turn<'_>, Errno> {
        let mut taken = self.taken.lock();

        while *taken {
            if self.given_back.wait_interruptible(&mut taken) {
                // The signal may have come together with the turn: let the next one have it.
                self.given_back.notify_one();
                return Err(Errno::Intr);
            }
        }
        *taken = true;
        Ok(Turn(self))
    }

    /// Takes the turn, if nobody has it.
    fn try_turn(&self) -> Option<Turn<'_>> {
        let mut taken = self.taken.lock();

        if *taken {
            return None;
        }
        *taken = true;
        Some(Turn(self))
    }

    /// Compares the replay from the starting values with the TPM, and notes the verdict.
    pub(crate) fn verify(
        &self,
        _turn: &Turn<'_>,
        hold: &ReaderHold<'_>,
        wanted: PcrSet,
    ) -> Result<(), Undecided> {
        let starting = {
            let ledger = self.ledger.lock();

            self.machine
                .copy(ledger.starting())
                .map_err(|_| Undecided::NoMemory)?
        };
        let verdict: Verdict = base::verify(&self.machine, hold, &starting, wanted)?;

        for pcr in verdict.refuted.iter() {
            log_warn!(
                "starting values of PCR {pcr} are not verified: the replay of the list from them \
                 does not give what the TPM has; something else extended it, or an extend failed"
            );
        }
        self.ledger.lock().judge(&verdict);
        Ok(())
    }

    /// Decides on the starting values of PCRs that records began to extend since the last time.
    ///
    /// If that cannot be done now, it is left for later.
    pub(crate) fn catch_up(&self) {
        if self.ledger.lock().is_decided(&self.machine.ima.counters()) {
            return;
        }
        let Some(turn) = self.try_turn() else {
            return;
        };
        let Ok(hold) = self.machine.ima.hold() else {
            return;
        };

        let counters = hold.counters();
        let seen = hold.walk().ok().and_then(|walk| pcrs(walk).ok());
        let Some(seen) = seen else {
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
            log_info!("starting values of new PCRs are left unverified for now");
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
            match busy {
                Busy::Suspended => error(Errno::Stale),
                _ => EBUSY,
            }
        };
        let hold = self.machine.ima.hold().map_err(refused)?;
        let counters = hold.counters();

        counters.check().map_err(refused)?;
        let foreign = self.ledger.lock().foreign(&counters);
        if foreign != 0 {
            log_warn!(
                "{foreign} records were removed from the list before the module was loaded: the \
                 starting PCR values are unknown, and nothing will be trimmed"
            );
            return Ok(());
        }

        let mut own = PcrSet::new();
        own.insert(self.machine.measure_pcr);
        match self.verify(&turn, &hold, own) {
            Ok(()) => Ok(()),
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

    /// Carries out a request, or refuses it, and notes the outcome.
    ///
    /// `request` is its text, or why that could not be read.
    pub(crate) fn request(&self, request: Result<&[u8]>) -> Outcome {
        let mut turn = None;
        let result = match request {
            Ok(text) => self.parse(text).and_then(|request| {
                let turn = turn.insert(self.turn()?);
                self.trim(turn, request)
            }),
            Err(error) => {
                let refusal = Refusal::from(error);

                log_warn!(
                    "trim refused ({}): a request is one write of at most {} bytes at offset 0",
                    refusal.errno,
                    request::MAX_REQUEST
                );
                Err(refusal)
            }
        };
        let outcome = result.unwrap_or_else(|Refusal { errno, found }| {
            found.outcome(TrimResult::Refused(errno), None)
        });

        // The turn, if it was taken, is given back after this: outcomes are in their order.
        self.ledger.lock().conclude(outcome);
        outcome
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

        match request.reclaim {
            None | Some(Reclaim::Keep) => Ok(request),
            Some(mode) => {
                log_warn!("trim refused: {} is not supported: use keep", mode.as_str());
                Err(Errno::OpNotSupp.into())
            }
        }
    }

    /// Makes sure that the starting values of these PCRs are a fact.
    fn require(&self, turn: &Turn<'_>, hold: &ReaderHold<'_>, pcrs: PcrSet) -> Result<(), Refusal> {
        let undecided = self.ledger.lock().undecided(pcrs);

        if !undecided.is_empty() {
            self.verify(turn, hold, undecided)?;
        }
        let unverified: Option<Pcr> = self.ledger.lock().unverified(pcrs);
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
    fn trim(&self, turn: &Turn<'_>, request: TrimRequest) -> Result<Outcome, Refusal> {
        let mut hold = self.machine.ima.hold()?;
        drop(hold.exclude()?);

        let counters = hold.counters();
        counters.check()?;
        let foreign = self.ledger.lock().foreign(&counters);
        if foreign != 0 {
            log_warn!(
                "trim refused: somebody else removed {foreign} records, so the starting PCR \
                 values are unknown"
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
        let mut walk = hold.walk()?;
        match search(
            &self.machine.banks,
            &self.machine.hashes,
            &mut replay,
            &request.target,
            walk.by_ref(),
            checkpoint,
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
        if found.records == 0 {
            return Ok(found.outcome(TrimResult::Nothing, None));
        }
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

        let position = walk.position();
        let unextended = replay.unextended();
        let list = violations(&hold, found, before, kept)?;
        let trimmed = Trimmed {
            pcrs: replay.seen(),
            records: found.records,
            violations: found.violations,
            list,
            values: replay.into_values(),
        };

        // What goes wrong from here on is logged after IMA's mutexes are let go.
        let mut ledger = self.ledger.lock();
        let mut exclusive = hold.exclude()?;
        let locked = exclusive.lock_list();
        if request.dry_run {
            let checked = locked.check(&position);
            drop(locked);
            drop(exclusive);
            checked?;
            return Ok(found.outcome(TrimResult::DryRun, None));
        }
        let cut = locked.cut(position);
        drop(exclusive);
        let (cut, hold_ns) = cut?;
        let replaced = ledger.commit(trimmed, hold_ns);
        drop(ledger);

        drop(hold);
        drop(replaced);
        let freed = cut.keep();
        self.ledger.lock().freed(freed);
        log_info!(
            "trimmed {} records ({} violations, {} for no PCR of the TPM), {} bytes freed, mutex held \
             for {} ns",
            found.records,
            found.violations,
            unextended,
            freed,
            hold_ns
        );
        Ok(found.outcome(TrimResult::Trimmed, Some(hold_ns)))
    }
}

/// The PCRs that the records of a walk extend.
fn pcrs(walk: Walk<'_>) -> Result<PcrSet, FatalSignal> {
    let mut pcrs = PcrSet::new();

    for record in walk {
        if let Some(pcr) = Pcr::from_record(record.pcr()) {
            pcrs.insert(pcr);
        }
        checkpoint()?;
    }
    Ok(pcrs)
}

/// Lists the violations of what was found. `before` records were trimmed earlier, and `kept` of
/// their violations are listed.
fn violations(
    hold: &ReaderHold<'_>,
    found: Found,
    before: u64,
    kept: usize,
) -> Result<Violations, Refusal> {
    let mut list = Violations::with_room(found.violations, kept)?;
    let mut left = found.violations;
    let mut number = before;

    if left == 0 {
        return Ok(list);
    }
    for record in hold.walk()? {
        number = number.saturating_add(1);
        if record.is_violation() {
            if found.violations.saturating_sub(left) >= list.omitted() {
                list.push(Violation::new(number, &record)?)?;
            }
            left = left.saturating_sub(1);
            if left == 0 {
                break;
            }
        }
        checkpoint().map_err(|FatalSignal| Errno::Intr)?;
    }
    Ok(list)
}
