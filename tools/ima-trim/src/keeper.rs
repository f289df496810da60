// SPDX-License-Identifier: GPL-2.0

//! Archives records, then has them trimmed, and gives a module that was loaded anew its values back.
//!
//! The order is what keeps records from being lost: a record is on disk, with its directory, before
//! the module is asked to remove it; what is asked for is the point at the end of a segment, and only
//! if the TPM confirms that the list replays through it; and what the module says afterwards is
//! compared with what the archive says. See `Documentation/admin-guide/archive.rst`.

use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use ima_trim_pure::bank::Pcr;
use rustix::io::Errno;
use rustix::time::clock_gettime;
use rustix::time::ClockId;
use rustix::time::Timespec;
use tracing::warn;

use crate::algorithm::Algorithm;
use crate::archive::Archive;
use crate::archive::ArchiveError;
use crate::archive::Boot;
use crate::archive::Keep;
use crate::archive::Progress;
use crate::archive::Writer;
use crate::archive::SEGMENT_BYTES;
use crate::config::Reclaim;
use crate::config::Trim;
use crate::config::Violations;
use crate::kernel::Kernel;
use crate::kernel::KernelError;
use crate::kernel::Outcome;
use crate::kernel::Requests;
use crate::list::List;
use crate::list::ListError;
use crate::list::Source;
use crate::list::Whole;
use crate::pcrfile::hex;
use crate::pcrs::Point;
use crate::pcrs::PointError;
use crate::record::Record;
use crate::record::Records;
use crate::render::SOURCE;
use crate::signed::Purpose;
use crate::signed::Signed;
use crate::steps;
use crate::verifier::Event;
use crate::verifier::Kind;

/// So many bytes of records that are new are archived before more are read.
const AT_ONCE: usize = 4 * SEGMENT_BYTES;

/// How often the TPM is asked before it is said not to confirm the list: a record is in the list
/// before it is in the TPM.
const CONFIRMATIONS: u32 = 20;

/// How often the files of the archive are looked at, and a TPM that did not confirm the list is asked
/// again.
const LOOK: Duration = Duration::from_secs(60);

/// When the machine is taken to have slept: by less the clocks may differ while it does not.
const NAP: Duration = Duration::from_millis(500);

/// Why nothing was archived, trimmed or restored.
#[derive(Debug, thiserror::Error)]
pub enum KeeperError {
    /// The list cannot be given.
    #[error(transparent)]
    List(#[from] ListError),
    /// The kernel did not answer, or refused.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The archive could not be written.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// The TPM does not confirm the list.
    #[error("the TPM does not confirm the list: {bank}:{pcr} is {found} there, and no record after record {from} replays to it; nothing is trimmed. After a hibernation or a kexec only a reboot helps")]
    Unconfirmed {
        /// The bank.
        bank: &'static str,
        /// The PCR.
        pcr: Pcr,
        /// Its value in the TPM.
        found: String,
        /// The end of the archive.
        from: u64,
    },
    /// The same, when the TPM was asked last.
    #[error("{0}")]
    StillUnconfirmed(String),
    /// The values that were asked for are not reached.
    #[error("no record in the kernel's list leads to {0}: they are of another boot, of records that were trimmed, or of ones that are not in the list yet")]
    NoMatch(String),
    /// Violations wait for a person.
    #[error("{0} violations are in what would be trimmed, and the configuration says violations = \"stop\": look at them ('ima-trim log --ascii'), then run 'ima-trim trim --violations {0}'")]
    Violations(u64),
    /// The module and the archive have other values.
    #[error("starting_pcrs is not what the archive says for record {records}: {detail}. Nothing is trimmed any more")]
    Differs {
        /// How many records are trimmed.
        records: u64,
        /// What differs.
        detail: String,
    },
    /// Somebody else makes requests.
    #[error("another process has {0}, or starting_pcrs beside it, open for writing: end it; 'fuser {0}' names it. Nothing is trimmed until then")]
    Held(PathBuf),
    /// The module refused a request.
    #[error("the module refused to trim to record {to}: {error}; see the kernel's log")]
    Refused {
        /// Where it should have trimmed to.
        to: u64,
        /// What it said.
        error: KernelError,
    },
    /// The request is for another load of the module.
    #[error("the request is for instance {wanted} of the module, and {found} is loaded: have the machine attested anew")]
    Instance {
        /// What the request says.
        wanted: String,
        /// What the module says.
        found: String,
    },
    /// The module takes no request that nobody has signed.
    #[error("the module takes signed requests only: have the verifier sign what 'ima-trim request' prints there, and give it to 'ima-trim trim --to' or put it into the directory 'requests' of the archive")]
    Unsigned,
    /// The module does not know the starting values, and takes them from nobody but a verifier.
    #[error("the module does not know the starting values, and takes signed ones only: have the verifier sign {0:?}, with the instance= of the module's status, and give it to 'ima-trim trim --to' or put it into the directory 'requests' of the archive")]
    UnsignedRestore(String),
    /// The module refused a signed request.
    #[error("the module refused the signed request: {error}{}; see the kernel's log", meaning(.error))]
    SignedRefused {
        /// What it said.
        error: KernelError,
    },
    /// The list is not whole and the archive does not know its beginning.
    #[error("{0} records are gone from the kernel's list and not in the archive: it cannot be given as a whole before the next boot")]
    Beheaded(u64),
}

impl KeeperError {
    /// Whether it is a verdict on the list or the values, not something that is missing.
    pub fn is_negative(&self) -> bool {
        match self {
            Self::List(error) => error.is_negative(),
            Self::Unconfirmed { .. }
            | Self::StillUnconfirmed(_)
            | Self::NoMatch(_)
            | Self::Violations(_)
            | Self::Instance { .. }
            | Self::Differs { .. }
            | Self::Beheaded(_) => true,
            Self::Kernel(_)
            | Self::Archive(_)
            | Self::Held(_)
            | Self::Unsigned
            | Self::UnsignedRestore(_)
            | Self::SignedRefused { .. }
            | Self::Refused { .. } => false,
        }
    }

    /// Whether it passes by itself: somebody reads the list just now.
    pub fn is_busy(&self) -> bool {
        matches!(
            self,
            Self::Refused { error, .. } | Self::SignedRefused { error } if error.is(Errno::BUSY)
        )
    }

    /// Whether it is for the request itself that the module refused it: it will never take it.
    pub fn is_final(&self) -> bool {
        // What passes: somebody reads the list, the TPM does not answer, the module is not loaded, or
        // its values are not known; and the evidence may be measured once there is a rule for it.
        let finals = [
            Errno::INVAL,
            Errno::TOOBIG,
            Errno::OPNOTSUPP,
            Errno::NOENT,
            Errno::BADMSG,
            Errno::KEYREJECTED,
            Errno::NOKEY,
            Errno::NOPKG,
        ];
        matches!(
            self,
            Self::SignedRefused { error } if finals.iter().any(|&errno| error.is(errno))
        )
    }
}

/// What the module means by an error of a signed request, where that is not plain.
fn meaning(error: &KernelError) -> &'static str {
    let meanings = [
        (Errno::NOKEY, " (no key that is built in has signed it)"),
        (
            Errno::KEYREJECTED,
            " (it is for another load of the module, or altered)",
        ),
        (Errno::NOPKG, " (the kernel lacks what it was signed with)"),
        (
            Errno::ACCESS,
            " (the module's records are not measured by IMA's policy)",
        ),
    ];
    let found = meanings.iter().find(|(errno, _)| error.is(*errno));
    found.map_or("", |(_, meaning)| meaning)
}

/// What is asked for beyond what the configuration says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Where to, as tokens of PCR values in the grammar of `trim`; `None`: to the last record.
    pub to: Option<String>,
    /// How many violations were looked at and may go; `None`: as the configuration says.
    pub violations: Option<u64>,
    /// How memory is given back; `None`: as the configuration says.
    pub reclaim: Option<&'static str>,
    /// Change nothing.
    pub dry_run: bool,
    /// For which load of the module it is; `None`: for any.
    pub instance: Option<String>,
    /// If more is archived than is trimmed, that will do. So trims that are refused again and again
    /// do not make a segment each.
    pub archived: bool,
}

/// What came of a trim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trimmed {
    /// What the module said.
    pub outcome: Outcome,
    /// How many records are trimmed since boot.
    pub records: u64,
    /// How memory was given back: `keep`, `compact` or `flush`. A signed request says so itself.
    pub reclaim: Option<&'static str>,
}

/// The one owner of archive and trims.
#[derive(Debug)]
pub struct Keeper {
    kernel: Kernel,
    whole: Arc<Whole<Kernel>>,
    writer: Writer,
    config: Trim,
    requests: Option<Requests>,
    /// Whether the module takes no request that nobody has signed, as it said last.
    signed_only: bool,
    /// How many trims the module has counted.
    trims: u64,
    last_trim: Option<Instant>,
    /// How many records were trimmed since boot at the last flush. What was trimmed since then has
    /// left something in the kernel.
    flushed: u64,
    /// What came of reading the whole archive, and when.
    verified: Option<(Instant, Result<(), ArchiveError>)>,
    /// Why the TPM does not confirm the list, and when it was asked.
    unconfirmed: Option<(Instant, String)>,
    /// For how long the machine had slept since boot when that was looked at last.
    slept: Duration,
}

impl Keeper {
    /// The keeper of this list and its archive.
    pub fn new(kernel: Kernel, whole: Arc<Whole<Kernel>>, writer: Writer, config: Trim) -> Self {
        // If the module is not there it has counted none.
        let trims = kernel
            .starting()
            .map_or(0, |starting| starting.totals().trims);
        Self {
            kernel,
            whole,
            writer,
            config,
            requests: None,
            signed_only: false,
            trims,
            last_trim: None,
            flushed: steps::flushed(),
            verified: None,
            unconfirmed: None,
            slept: slept(),
        }
    }

    /// The list.
    pub fn whole(&self) -> &Arc<Whole<Kernel>> {
        &self.whole
    }

    /// PCR values and totals at the end of the archive.
    pub fn point(&self) -> Point {
        self.whole.archive().end()
    }

    /// Removes archives of earlier boots beyond what is kept. Gives which.
    ///
    /// # Errors
    ///
    /// If one cannot be removed.
    pub fn prune(&mut self, keep: Keep) -> Result<Vec<Boot>, KeeperError> {
        Ok(self.writer.prune(keep, &[])?)
    }

    /// Archives records in memory up to a number.
    ///
    /// # Errors
    ///
    /// If the archive cannot be written. Those that were archived before stay so.
    pub fn archive_to(&mut self, to: u64) -> Result<(), KeeperError> {
        loop {
            let records = self.whole.to_archive(to, SEGMENT_BYTES)?;
            if records.is_empty() {
                return Ok(());
            }
            // What the module will say once it has trimmed to the end of these.
            self.writer.append(&records, self.trims.saturating_add(1))?;
            self.whole.archived()?;
        }
    }

    /// Reads everything in the kernel's list. If much is new its beginning is archived before the rest
    /// is read, so that memory does not depend on how long the list is: also of one that is not
    /// confirmed afterwards, which is neither served nor trimmed.
    ///
    /// # Errors
    ///
    /// If records are missing, the list cannot be read, or the archive not be written.
    pub fn read_all(&mut self) -> Result<u64, KeeperError> {
        while self.whole.refresh_some(AT_ONCE)? {
            self.archive_to(self.whole.known())?;
        }
        Ok(self.whole.known())
    }

    /// Makes sure that every record in the kernel's list is known, and finds out where that begins
    /// if somebody else has removed records.
    ///
    /// # Errors
    ///
    /// If records are missing, or the list cannot be read.
    pub fn refresh(&mut self) -> Result<u64, KeeperError> {
        match self.read_all() {
            Err(KeeperError::List(ListError::Parted { .. })) => {}
            other => return other,
        }
        // What is in memory may be in the kernel no more.
        self.archive_to(self.whole.known())?;
        let base = find_base(&self.kernel, self.whole.archive())?;
        match self.following(base) {
            Ok(following) => self.whole.go_on(base, &following)?,
            Err(error) => {
                if matches!(error, KeeperError::Unconfirmed { .. }) {
                    self.whole.lose();
                }
                return Err(error);
            }
        }
        Ok(self.whole.known())
    }

    /// What follows the archive in the kernel's list, which begins with record `base`. It is given
    /// only if the TPM confirms it.
    fn following(&self, base: u64) -> Result<Vec<u8>, KeeperError> {
        let archived = self.point().totals().records;
        let mut following = Vec::new();
        self.confirm_by(|step| {
            let mut list = Vec::new();
            let open = self.kernel.open(SOURCE)?;
            while open.read_from(list.len() as u64, usize::MAX, &mut list)? {}
            following.clear();
            for (number, record) in (base..).zip(Records::new(&list)) {
                let record = record.map_err(|error| ListError::Record { number, error })?;
                if number >= archived {
                    following.extend(record.raw());
                    step(&record);
                }
            }
            Ok(())
        })?;
        Ok(following)
    }

    /// Archives what fills a segment.
    ///
    /// # Errors
    ///
    /// As [`Keeper::archive_to`].
    pub fn archive_full(&mut self) -> Result<(), KeeperError> {
        let (_, bytes) = self.whole.in_memory();
        if bytes >= SEGMENT_BYTES as u64 {
            self.archive_to(self.whole.known())?;
        }
        Ok(())
    }

    /// Makes sure that `trim` is held, and that the module's values are those of the archive;
    /// restores them if the module was loaded anew.
    ///
    /// # Errors
    ///
    /// If the module is not loaded, somebody else makes requests, or the values cannot be restored.
    pub fn hold(&mut self) -> Result<(), KeeperError> {
        if self.requests.is_some() && self.whole.is_guarded() {
            return Ok(());
        }
        let starting = match self.kernel.starting() {
            Ok(starting) => Some(starting),
            Err(KernelError::Starting(PointError::Unknown(_))) => None,
            Err(error) => return Err(error.into()),
        };
        if self.requests.is_some() && starting.is_some() {
            return Ok(());
        }
        let status = self.kernel.status()?;
        self.signed_only = status.wants_signatures();
        let base = self.whole.base();
        match starting {
            Some(starting) if starting.totals().records == base => self.compare(&starting)?,
            _ => self.restore()?,
        }
        self.trims = self.kernel.starting()?.totals().trims;
        if self.requests.is_none() {
            self.requests = Some(self.take()?);
        }
        if status.get("guard") == Some("on") {
            self.whole.set_guarded()?;
        }
        Ok(())
    }

    /// Whether the module takes no request that nobody has signed.
    pub fn takes_signed(&self) -> bool {
        self.signed_only
    }

    /// Whether `trim` is held.
    pub fn holds(&self) -> bool {
        self.requests.is_some()
    }

    /// Where the archive of this boot is.
    pub fn directory(&self) -> &Path {
        self.whole.archive().path()
    }

    /// Lets go of `trim`, so that the module can be unloaded.
    pub fn release(&mut self) {
        // Nothing guards the list without the module.
        self.whole.set_unguarded();
        self.requests = None;
    }

    /// Gives the module the values of the point at which the kernel's list begins.
    ///
    /// # Errors
    ///
    /// If that point is not known, or the module does not take the values.
    pub fn restore(&mut self) -> Result<(), KeeperError> {
        let held = self.requests.take().is_some();
        let records = self.whole.base();
        if records > self.whole.archive().records() {
            self.archive_to(self.whole.known())?;
        }
        let mut point = self.point_at(records)?;
        if records > 0 {
            // A point within a segment has the number of the segment before.
            point.set_trims(point.totals().trims.max(self.trims).max(1));
        }
        let text = point.text();
        if self.kernel.status()?.wants_signatures() {
            // Nobody shall be in the way of the one that is signed.
            return Err(KeeperError::UnsignedRestore(
                text.trim_end().replace('\n', " "),
            ));
        }
        self.kernel.restore(text.as_bytes())?;
        if held {
            self.requests = Some(self.take()?);
        }
        Ok(())
    }

    /// Opens `trim` for nobody but us.
    fn take(&self) -> Result<Requests, KeeperError> {
        self.kernel.hold().map_err(|error| {
            if error.is(Errno::BUSY) {
                KeeperError::Held(self.kernel.module("trim"))
            } else {
                error.into()
            }
        })
    }

    /// Compares what the module says with the archive.
    fn compare(&self, starting: &Point) -> Result<(), KeeperError> {
        let records = starting.totals().records;
        let expected = self.point_at(records)?;
        if expected.same_values(starting) {
            return Ok(());
        }
        Err(KeeperError::Differs {
            records,
            detail: format!("{:?} there, {:?} here", starting.text(), expected.text()),
        })
    }

    /// The point after so many records, all of which must be archived.
    fn point_at(&self, records: u64) -> Result<Point, KeeperError> {
        Ok(self.whole.archive().point_after(records)?)
    }

    /// Whether a trim is due.
    pub fn is_due(&self) -> bool {
        let now = self.whole.known().saturating_sub(self.whole.base());
        let bytes = self.whole.kernel_bytes();
        self.config.automatic
            && !self.signed_only
            && (now > self.config.records || bytes > self.config.bytes)
            && self
                .last_trim
                .is_none_or(|last| last.elapsed() >= self.config.interval())
    }

    /// Archives what is to go, and trims to there.
    ///
    /// # Errors
    ///
    /// Nothing was trimmed then, unless it is [`KeeperError::Differs`].
    pub fn trim(&mut self, wanted: &Wanted) -> Result<Trimmed, KeeperError> {
        let end = self.refresh()?;
        self.hold()?;
        if !wanted.dry_run && self.signed_only {
            return Err(KeeperError::Unsigned);
        }
        self.sound(|_| {})?;
        self.look()?;
        let to = match &wanted.to {
            Some(values) => self.find(values)?,
            None => {
                if !wanted.archived || self.whole.archive().records() <= self.whole.base() {
                    self.archive_to(end)?;
                }
                self.point()
            }
        };
        let records = to.totals().records;
        self.archive_to(records)?;
        self.last_trim = Some(Instant::now());

        let starting = self.kernel.starting()?;
        let violations = to
            .totals()
            .violations
            .saturating_sub(starting.totals().violations);
        match wanted.violations {
            None if violations > 0 && self.config.violations == Violations::Stop => {
                return Err(KeeperError::Violations(violations));
            }
            _ => {}
        }
        self.confirm_now()?;
        let reclaim = wanted.reclaim.unwrap_or_else(|| self.reclaim());
        let mut request = to.request(wanted.violations.unwrap_or(violations));
        if let Some(instance) = self.kernel.status()?.get("instance") {
            if let Some(wanted) = wanted.instance.as_ref().filter(|&of| of != instance) {
                return Err(KeeperError::Instance {
                    wanted: wanted.clone(),
                    found: instance.to_owned(),
                });
            }
            request.push_str(" instance=");
            request.push_str(instance);
        }
        if wanted.dry_run {
            request.push_str(" dry-run");
        }
        let asked = self.request(format!("{request} {reclaim}").as_bytes(), records);
        let (outcome, reclaim) = match asked {
            // A kernel that is newer than those that were tested.
            Err(KeeperError::Refused { error, .. }) if error.is(Errno::OPNOTSUPP) => {
                let kept = self.request(format!("{request} keep").as_bytes(), records)?;
                (kept, "keep")
            }
            other => (other?, reclaim),
        };
        if !wanted.dry_run {
            let starting = self.kernel.starting()?;
            self.compare(&starting)?;
            self.trims = starting.totals().trims;
            if reclaim == "flush" {
                self.flushed = self.whole.base();
                // A successor would flush once more than it has to.
                if let Err(error) = steps::note_flushed(self.flushed) {
                    warn!("{error}");
                }
            }
        }
        Ok(Trimmed {
            outcome,
            records: self.whole.base(),
            reclaim: Some(reclaim),
        })
    }

    /// Archives everything, and hands the module a signed request: what it trims is for the request
    /// to say. Gives what came of a trim, nothing of a restore.
    ///
    /// # Errors
    ///
    /// As [`Keeper::trim`].
    pub fn apply(&mut self, signed: &Signed) -> Result<Option<Trimmed>, KeeperError> {
        let end = self.refresh()?;
        self.sound(|_| {})?;
        self.look()?;
        self.archive_to(end)?;
        match signed.purpose() {
            Purpose::Trim => {
                self.hold()?;
                self.confirm_now()?;
                self.last_trim = Some(Instant::now());
                let outcome = self
                    .request(signed.der(), end)
                    .map_err(|error| match error {
                        KeeperError::Refused { error, .. } => KeeperError::SignedRefused { error },
                        other => other,
                    })?;
                let starting = self.kernel.starting()?;
                self.compare(&starting)?;
                self.trims = starting.totals().trims;
                let records = self.whole.base();
                Ok(Some(Trimmed {
                    outcome,
                    records,
                    reclaim: None,
                }))
            }
            Purpose::Restore => {
                // Nobody may hold `trim` meanwhile.
                self.requests = None;
                self.kernel
                    .restore(signed.der())
                    .map_err(|error| KeeperError::SignedRefused { error })?;
                self.hold()?;
                Ok(None)
            }
        }
    }

    /// The certificates that the module takes requests by, as its record of the load says; `None`
    /// if it takes those that nobody has signed.
    ///
    /// # Errors
    ///
    /// If the module or the archive cannot be read.
    pub fn signers(&self) -> Result<Option<Vec<String>>, KeeperError> {
        let status = self.kernel.status()?;
        if !status.wants_signatures() {
            return Ok(None);
        }
        let mut found = Vec::new();
        let mut look = |record: &Record<'_>| {
            if let Some(pcr) = Pcr::from_record(record.pcr()) {
                if let Kind::Event(Event::Load {
                    instance,
                    signers: Some(signers),
                    ..
                }) = Event::of(record, pcr)
                {
                    if status.get("instance") == Some(instance.to_string().as_str()) {
                        found = signers;
                    }
                }
            }
        };
        let archive = self.whole.archive();
        for segment in 0..archive.segments() {
            let raw = archive.read_segment(segment)?;
            for record in Records::new(&raw).flatten() {
                look(&record);
            }
        }
        self.whole.each_in_memory(|_, record| {
            look(record);
            true
        })?;
        Ok(Some(found))
    }

    /// The earliest point of the kernel's list at which PCRs have these values.
    fn find(&self, values: &str) -> Result<Point, KeeperError> {
        let mut point = self.point_at(self.whole.base())?;
        let target = point
            .parse_request(values.as_bytes())
            .map_err(KernelError::from)?
            .target;
        let mut offset = self.whole.kernel_begins(SOURCE)?;
        let mut list = Vec::new();
        loop {
            let before = list.len();
            self.whole
                .read_known(SOURCE, offset, SEGMENT_BYTES, &mut list)?;
            let read = list.len() - before;
            offset += read as u64;
            let mut records = Records::new(&list);
            let found =
                point
                    .replay_to(&target, &mut records)
                    .map_err(|error| ListError::Record {
                        number: point.totals().records,
                        error,
                    })?;
            if found {
                return Ok(point);
            }
            if read == 0 {
                return Err(KeeperError::NoMatch(values.trim().to_owned()));
            }
            list = records.rest().to_vec();
        }
    }

    /// Makes a request, and learns where the list begins afterwards.
    fn request(&mut self, request: &[u8], to: u64) -> Result<Outcome, KeeperError> {
        let Some(requests) = self.requests.as_mut() else {
            return Err(KernelError::NotLoaded(self.kernel.module("trim")).into());
        };
        let reads = self.whole.reads();
        let mut made = self.whole.removing(false, || requests.trim(request))?;
        // Our own reads have the kernel's list open for some milliseconds each, but with many readers
        // and much that is new, one or another has most of the time. Then they wait once: for as long
        // as the module waits for who reads the list (reader_wait_ms), and replays.
        let busy = made.as_ref().is_err_and(|error| error.is(Errno::BUSY));
        if busy && self.whole.reads() != reads {
            made = self.whole.removing(true, || requests.trim(request))?;
        }
        made.map_err(|error| KeeperError::Refused { to, error })
    }

    /// How many records trims have left something of in the kernel.
    fn left_behind(&self) -> u64 {
        self.whole.base().saturating_sub(self.flushed)
    }

    /// How memory is given back this time.
    fn reclaim(&self) -> &'static str {
        match self.config.reclaim {
            Reclaim::Keep => "keep",
            Reclaim::Compact => "compact",
            Reclaim::Flush => "flush",
            Reclaim::Auto if self.left_behind() > self.config.flush_records => "flush",
            Reclaim::Auto => "compact",
        }
    }

    /// Makes sure that the archive is what was written: as a whole before anything else is asked
    /// of it, then all files of it from time to time, and what could not be read.
    ///
    /// # Errors
    ///
    /// If it is damaged. Nothing may be trimmed then.
    pub fn sound(&mut self, progress: impl FnMut(Progress)) -> Result<(), KeeperError> {
        let archive = self.whole.archive();
        let now = Instant::now();
        let fresh = |when: &Instant| now.duration_since(*when) < LOOK;
        match &self.verified {
            Some((when, result)) if fresh(when) => result.clone()?,
            Some((_, Ok(()))) => self.look()?,
            _ => {
                let result = archive.verify(progress).map(|_| ());
                self.verified = Some((now, result.clone()));
                result?;
            }
        }
        Ok(self.whole.readable()?)
    }

    /// Makes sure that all files of the archive are there, with their headers and lengths.
    fn look(&mut self) -> Result<(), KeeperError> {
        let result = self.whole.archive().check();
        self.verified = Some((Instant::now(), result.clone()));
        Ok(result?)
    }

    /// As [`Keeper::confirm`], and remembers what came of it.
    fn confirm_now(&mut self) -> Result<(), KeeperError> {
        let confirmed = self.confirm();
        self.unconfirmed = match &confirmed {
            Err(error @ KeeperError::Unconfirmed { .. }) => {
                Some((Instant::now(), error.to_string()))
            }
            _ => None,
        };
        confirmed
    }

    /// Makes sure that the TPM confirmed the list when it was asked last. If it did not, it is asked
    /// again from time to time; and it is asked when the machine has slept, for a hibernation resets
    /// PCRs under a list that goes on.
    ///
    /// # Errors
    ///
    /// [`KeeperError::StillUnconfirmed`].
    pub fn confirmed(&mut self) -> Result<(), KeeperError> {
        let slept = slept();
        let woke = slept > self.slept.saturating_add(NAP);
        match &self.unconfirmed {
            None if !woke => return Ok(()),
            Some((when, text)) if !woke && when.elapsed() < LOOK => {
                return Err(KeeperError::StillUnconfirmed(text.clone()));
            }
            _ => {}
        }
        self.slept = slept;
        let confirmed = self.confirm();
        self.unconfirmed = confirmed
            .as_ref()
            .err()
            .map(|error| (Instant::now(), error.to_string()));
        confirmed
    }

    /// As [`Keeper::confirm`]; or, if the TPM has other values, makes sure that the module has
    /// trimmed to a point that the archive has: nothing is missing then.
    ///
    /// # Errors
    ///
    /// [`KeeperError::Unconfirmed`].
    pub fn confirm_or_vouch(&mut self) -> Result<(), KeeperError> {
        let error = match self.confirm() {
            Err(error @ KeeperError::Unconfirmed { .. }) => error,
            other => return other,
        };
        let base = self.whole.base();
        let vouched = match self.kernel.starting() {
            Ok(starting) if base > 0 && starting.totals().records == base => {
                self.point_at(base)?.same_values(&starting)
            }
            _ => false,
        };
        if !vouched {
            return Err(error);
        }
        self.unconfirmed = Some((Instant::now(), error.to_string()));
        Ok(())
    }

    /// Makes sure that the list replays from the end of the archive to what the TPM has, in each PCR
    /// and bank.
    ///
    /// # Errors
    ///
    /// [`KeeperError::Unconfirmed`].
    pub fn confirm(&self) -> Result<(), KeeperError> {
        self.confirm_by(|step| {
            self.whole.refresh()?;
            Ok(self.whole.each_in_memory(|_, record| step(record))?)
        })
    }

    /// As [`Keeper::confirm`], of what `walk` goes through: it gives each record to what it is given,
    /// which says whether it wants more.
    fn confirm_by(
        &self,
        mut walk: impl FnMut(&mut dyn FnMut(&Record<'_>) -> bool) -> Result<(), KeeperError>,
    ) -> Result<(), KeeperError> {
        let archived = self.point();
        let mut tries = 0;
        loop {
            // The TPM first: every record that it has is in the list by the time that is read.
            let values = self.kernel.pcrs_of(&archived)?;
            // Each value for itself, as records come between the readings of two.
            let mut left: Vec<_> = values.iter().collect();
            let mut point = archived.clone();
            drop_reached(&mut left, &point);
            walk(&mut |record| {
                point.extend(record);
                drop_reached(&mut left, &point);
                !left.is_empty()
            })?;
            let Some((bank, pcr, value)) = left.first() else {
                return Ok(());
            };
            tries += 1;
            if tries >= CONFIRMATIONS {
                return Err(KeeperError::Unconfirmed {
                    bank: bank.name(),
                    pcr: *pcr,
                    found: hex(value),
                    from: archived.totals().records,
                });
            }
            thread::sleep(Duration::from_millis(50));
        }
    }
}

/// For how long the machine has slept since boot, in suspend or hibernation: one clock counts that,
/// and the other does not.
fn slept() -> Duration {
    let awake = clock_gettime(ClockId::Monotonic);
    let all = clock_gettime(ClockId::Boottime);
    let since = |time: Timespec| {
        Duration::new(
            u64::try_from(time.tv_sec).unwrap_or_default(),
            u32::try_from(time.tv_nsec).unwrap_or_default(),
        )
    };
    since(all).saturating_sub(since(awake))
}

/// Leaves those values out that PCRs have at this point.
pub(crate) fn drop_reached(left: &mut Vec<&(Algorithm, Pcr, Vec<u8>)>, point: &Point) {
    left.retain(|(bank, pcr, value)| point.get(*bank, *pcr) != Some(value.as_slice()));
}

/// Finds where the kernel's list begins: how many records are not in it any more.
///
/// `removed` is what the module says. If it is not there, the list is compared with what the archive
/// ends with, the most records first: it must begin with these. If it begins with none of them it can
/// only go on where the archive ends, which no byte of it tells. Whether what is found is right is
/// shown by [`Keeper::confirm`].
///
/// # Errors
///
/// [`KeeperError::Beheaded`], or if something cannot be read.
pub fn find_base<S: Source>(source: &S, archive: &Archive) -> Result<u64, KeeperError> {
    let archived = archive.records();
    let open = source.list()?;
    match source.removed()? {
        Some(records) if records <= archived => return Ok(records),
        Some(records) => return Err(KeeperError::Beheaded(records - archived)),
        None => {}
    }
    let mut list = Vec::new();
    while open.read_from(list.len() as u64, usize::MAX, &mut list)? {}
    drop(open);

    // The end of the archive, and where its records begin in that.
    let mut end = Vec::new();
    let mut found = archived;
    for segment in (0..archive.segments()).rev() {
        let mut raw = archive.read_segment(segment)?;
        let mut starts = Vec::new();
        let mut start = 0;
        for record in Records::new(&raw) {
            let first = archive.segment(segment).map_or(0, |found| found.first);
            let number = first + starts.len() as u64;
            let record = record.map_err(|error| ListError::Record { number, error })?;
            starts.push((number, start));
            start += record.raw().len();
        }
        raw.append(&mut end);
        end = raw;
        for (number, start) in starts.into_iter().rev() {
            if list.starts_with(end.get(start..).unwrap_or_default()) {
                found = number;
            }
        }
        // More of it cannot be in the list.
        if end.len() > list.len() {
            break;
        }
    }
    Ok(found)
}
