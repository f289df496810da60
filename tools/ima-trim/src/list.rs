// SPDX-License-Identifier: GPL-2.0

//! Every record since boot, by its number and by its offset in each of IMA's files.
//!
//! The beginning is in the archive, the rest was read from the kernel and is in memory until it is
//! archived. What is in the kernel's own list is no part of this: its records are those from
//! [`Whole::base`] on, which may be in either.
//!
//! A read first makes sure that it has all that the kernel has. The kernel's count of records tells
//! that without anything being opened. Only if there is something new the list is opened, which
//! keeps a trim from happening for as long, and read from the last known record on. That record
//! must be the same as it was: so a list that was cut by somebody else is noticed, and never taken
//! for a continuation.

use std::collections::VecDeque;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::RwLock;
use std::sync::RwLockReadGuard;
use std::sync::RwLockWriteGuard;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use rustix::io::Errno;

use crate::archive::Archive;
use crate::archive::ArchiveError;
use crate::kernel::Kernel;
use crate::kernel::KernelError;
use crate::kernel::OpenList;
use crate::pcrs::PointError;
use crate::record::Record;
use crate::record::RecordError;
use crate::record::Records;
use crate::render::View;
use crate::render::SOURCE;
use crate::template::TemplateError;

/// Records that are kept and rendered together have about as many bytes.
const BLOCK: usize = 32 << 10;

/// Bytes that are read from the kernel before they are looked at. Few records have as many.
const PIECE: usize = 256 << 10;

/// Bytes of rendered segments that are kept for who reads on.
const CACHE: usize = 4 << 20;

/// For how long a list that somebody has open for writing is waited for.
const WRITER_LIMIT: Duration = Duration::from_secs(5);

/// For how long a removal of our own is: it goes through as many records as there are.
const REMOVAL_LIMIT: Duration = Duration::from_secs(60);

/// Why the whole list cannot be given. Nothing wrong is given in its place.
#[derive(Debug, thiserror::Error)]
pub enum ListError {
    /// The kernel did not answer.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The archive is damaged or cannot be read.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// What the kernel gave is not a list.
    #[error("the kernel's list, record {number}: {error}")]
    Record {
        /// The number of the record since boot, from 0.
        number: u64,
        /// What is wrong.
        error: RecordError,
    },
    /// A record cannot be shown.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// Records are missing: somebody else removed them before they were read.
    #[error("records {from} to {to} are missing: they were removed from the kernel's list before they were read")]
    Hole {
        /// The first that is missing, counted from 0.
        from: u64,
        /// The first after them.
        to: u64,
    },
    /// The kernel's list does not go on where it should.
    #[error("the kernel's list does not continue the records that are known: record {number} is not where it was; somebody else removed records")]
    Parted {
        /// The last record that is known.
        number: u64,
    },
}

impl ListError {
    /// Whether it is a verdict on the list, not something that is missing.
    pub fn is_negative(&self) -> bool {
        matches!(
            self,
            Self::Record { .. } | Self::Hole { .. } | Self::Parted { .. }
        )
    }
}

/// What the list is read from: [`Kernel`], or a model of it in tests.
pub trait Source: Send + Sync {
    /// The list, open.
    type List: List;

    /// How many records the kernel has in its list.
    ///
    /// # Errors
    ///
    /// If it does not say.
    fn count(&self) -> Result<u64, KernelError>;

    /// Opens the list in the form of [`SOURCE`]. No record can be removed until it is dropped.
    ///
    /// # Errors
    ///
    /// EBUSY while somebody has it open for writing.
    fn list(&self) -> Result<Self::List, KernelError>;

    /// How many records were removed from the list; `None` if the module does not know, or is not
    /// there.
    ///
    /// # Errors
    ///
    /// If it does not say.
    fn removed(&self) -> Result<Option<u64>, KernelError>;
}

/// A list that is open.
pub trait List {
    /// Appends what follows an offset, until it has appended about `limit` bytes. Gives whether more
    /// may follow. What is appended may end within a record, but not after fewer bytes than that unless
    /// it is the end.
    ///
    /// # Errors
    ///
    /// If it cannot be read.
    fn read_from(&self, offset: u64, limit: usize, to: &mut Vec<u8>) -> Result<bool, KernelError>;
}

impl Source for Kernel {
    type List = OpenList;

    fn count(&self) -> Result<u64, KernelError> {
        Kernel::count(self)
    }

    fn list(&self) -> Result<OpenList, KernelError> {
        self.open(SOURCE)
    }

    fn removed(&self) -> Result<Option<u64>, KernelError> {
        let starting = match self.starting() {
            Ok(point) => Ok(Some(point.totals().records)),
            // What others have removed is counted, too. Only now: reading `status` waits for memory
            // that is being freed.
            Err(KernelError::Starting(PointError::Unknown(_))) => {
                self.status().map(|status| status.removed())
            }
            Err(KernelError::Starting(_)) => Ok(None),
            Err(error) => Err(error),
        };
        match starting {
            Err(KernelError::NotLoaded(_)) => Ok(None),
            other => other,
        }
    }
}

impl List for OpenList {
    fn read_from(&self, offset: u64, limit: usize, to: &mut Vec<u8>) -> Result<bool, KernelError> {
        OpenList::read_from(self, offset, limit, to)
    }
}

/// Records one after the other, in memory.
#[derive(Clone, Debug)]
struct Block {
    /// The number of the first.
    first: u64,
    records: u64,
    /// Their bytes as in [`SOURCE`].
    raw: Vec<u8>,
    /// How many bytes they have in each view.
    lengths: Vec<u64>,
}

impl Block {
    fn new(first: u64, views: usize) -> Self {
        Self {
            first,
            records: 0,
            raw: Vec::new(),
            lengths: vec![0; views],
        }
    }

    fn push(&mut self, record: &Record<'_>, lengths: &[u64]) {
        self.records += 1;
        self.raw.extend(record.raw());
        for (sum, length) in self.lengths.iter_mut().zip(lengths) {
            *sum += length;
        }
    }
}

/// The records that are in memory.
#[derive(Debug)]
struct Tail {
    /// Never an empty one.
    blocks: VecDeque<Arc<Block>>,
    /// Where the first block begins, in each view: what is archived before.
    starts: Vec<u64>,
    /// Where the last one ends, in each view.
    ends: Vec<u64>,
    /// The number of the first record in memory: how many are archived.
    first: u64,
    /// The number after the last one: how many records there are since boot.
    end: u64,
    /// The bytes of the last record since boot, wherever it is.
    last: Vec<u8>,
}

/// How the kernel's list stands to all records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Base {
    /// How many records are not in it any more.
    records: u64,
    /// How many bytes these have in [`SOURCE`].
    bytes: u64,
    /// Whether records are gone that were never read: what is missing does not come back, also if
    /// nobody says so any more.
    lost: Option<Lost>,
    /// Whether the list was read from here before.
    begun: bool,
}

impl Base {
    fn new(records: u64, bytes: u64) -> Self {
        Self {
            records,
            bytes,
            lost: None,
            begun: false,
        }
    }
}

/// Records that are gone and were never read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lost {
    /// So many are gone since boot, which is more than are known.
    Of(u64),
    /// Nobody knows how many.
    Some,
}

/// Bytes of one segment in one view.
#[derive(Debug)]
struct Rendered {
    segment: usize,
    view: View,
    bytes: Arc<Vec<u8>>,
}

/// Rendered records, and the offset at which they begin.
struct Piece {
    bytes: Arc<Vec<u8>>,
    start: u64,
}

/// Every record since boot.
#[derive(Debug)]
pub struct Whole<S> {
    source: S,
    archive: Arc<Archive>,
    views: Vec<View>,
    tail: RwLock<Tail>,
    /// Held by who reads from the kernel.
    base: Mutex<Base>,
    /// Whether the kernel's count alone does not tell whether something is new: while records are
    /// being removed, or if others than this program may remove some.
    uncertain: AtomicBool,
    /// Whether others may.
    others: AtomicBool,
    rendered: Mutex<VecDeque<Rendered>>,
    /// The segment that could not be read when somebody wanted to last.
    broken: Mutex<Option<usize>>,
    /// How often the kernel's list was opened.
    reads: AtomicU64,
    /// How many bytes are read from the kernel at a time.
    piece: usize,
}

/// A lock's guard, whatever became of the thread that had it before: nothing is left half-changed
/// by any of them.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<S: Source> Whole<S> {
    /// The archived records, and nothing more yet. `base` is how many records are not in the
    /// kernel's list any more; they must be archived.
    ///
    /// # Errors
    ///
    /// If the archive cannot be read, or has not all those records.
    pub fn new(source: S, archive: Arc<Archive>, base: u64) -> Result<Self, ListError> {
        let views = archive.views().to_vec();
        let archived = archive.records();
        let starts = lengths(&archive, &views);
        let last = last_record(&archive)?;
        let whole = Self {
            source,
            archive,
            tail: RwLock::new(Tail {
                blocks: VecDeque::new(),
                ends: starts.clone(),
                starts,
                first: archived,
                end: archived,
                last,
            }),
            views,
            base: Mutex::new(Base::new(0, 0)),
            uncertain: AtomicBool::new(false),
            others: AtomicBool::new(true),
            broken: Mutex::new(None),
            reads: AtomicU64::new(0),
            rendered: Mutex::new(VecDeque::new()),
            piece: PIECE,
        };
        let offset = whole.offset(SOURCE, base)?;
        *lock(&whole.base) = Base::new(base, offset);
        Ok(whole)
    }

    /// The same, reading so many bytes from the kernel at a time: for tests, whose lists are short.
    #[doc(hidden)]
    #[must_use]
    pub fn by_pieces(mut self, piece: usize) -> Self {
        self.piece = piece;
        self
    }

    /// The views that can be read.
    pub fn views(&self) -> &[View] {
        &self.views
    }

    /// The archive.
    pub fn archive(&self) -> &Arc<Archive> {
        &self.archive
    }

    /// Where the records come from.
    pub fn source(&self) -> &S {
        &self.source
    }

    /// How many records there are since boot, as far as is known without asking the kernel.
    pub fn known(&self) -> u64 {
        self.tail().end
    }

    /// How many records are in memory, and their bytes.
    pub fn in_memory(&self) -> (u64, u64) {
        let tail = self.tail();
        let bytes = tail.blocks.iter().map(|block| block.raw.len() as u64).sum();
        (tail.end - tail.first, bytes)
    }

    /// How many records the kernel has removed from its list.
    pub fn base(&self) -> u64 {
        lock(&self.base).records
    }

    /// How many bytes the kernel's list has in the form of [`SOURCE`], as far as is known without
    /// asking the kernel.
    pub fn kernel_bytes(&self) -> u64 {
        let gone = lock(&self.base).bytes;
        self.known_size(SOURCE).saturating_sub(gone)
    }

    /// Where the kernel's own file begins, as an offset in the whole file.
    ///
    /// # Errors
    ///
    /// If the archive cannot be read.
    pub fn kernel_begins(&self, view: View) -> Result<u64, ListError> {
        let base = lock(&self.base).records;
        self.offset(view, base)
    }

    /// Says that others than this program may remove records, as without the module's guard. It is
    /// taken to be so from the beginning.
    pub fn set_unguarded(&self) {
        self.others.store(true, Ordering::SeqCst);
    }

    /// Says where the kernel's list begins now, after a search for it, and what follows in it those
    /// records that are known. See [`Whole::new`].
    ///
    /// # Errors
    ///
    /// As for [`Whole::new`], and if what follows are no records.
    pub fn go_on(&self, records: u64, following: &[u8]) -> Result<(), ListError> {
        let mut base = lock(&self.base);
        let bytes = self.offset(SOURCE, records)?;
        self.append(following)?;
        *base = Base {
            begun: true,
            ..Base::new(records, bytes)
        };
        Ok(())
    }

    /// Says that records are gone that were never read: what follows them is given to nobody, unless
    /// [`Whole::go_on`] says otherwise.
    pub fn lose(&self) {
        lock(&self.base).lost.get_or_insert(Lost::Some);
    }

    /// Whether records are gone that were never read.
    pub fn is_lost(&self) -> bool {
        lock(&self.base).lost.is_some()
    }

    /// Whether nobody else can remove records.
    pub fn is_guarded(&self) -> bool {
        !self.others.load(Ordering::SeqCst)
    }

    /// Says that nobody else can remove records from now on, and makes sure that nobody has.
    ///
    /// # Errors
    ///
    /// As [`Whole::refresh`]. Then nothing is taken to be guarded.
    pub fn set_guarded(&self) -> Result<(), ListError> {
        let mut base = lock(&self.base);
        self.read_new(&mut base, usize::MAX)?;
        self.others.store(false, Ordering::SeqCst);
        Ok(())
    }

    /// Runs what removes records from the kernel's list, and learns of it. Reads go on meanwhile,
    /// unless it is to be `alone`: then those wait that want what is new. Only one at a time may.
    ///
    /// # Errors
    ///
    /// If the module does not say how many are removed now, or not all of these are known. What
    /// `remove` gave is lost then.
    pub fn removing<T>(&self, alone: bool, remove: impl FnOnce() -> T) -> Result<T, ListError> {
        self.uncertain.store(true, Ordering::SeqCst);
        let held = alone.then(|| lock(&self.base));
        let result = remove();
        let mut base = held.unwrap_or_else(|| lock(&self.base));
        let removed = self.source.removed()?;
        self.follow(&mut base, removed)?;
        // Before the lock is given back: see Whole::refresh. If the module does not know any more,
        // the count tells nothing until it does.
        self.uncertain.store(removed.is_none(), Ordering::SeqCst);
        Ok(result)
    }

    /// Takes note of how many records are gone from the kernel's list.
    fn follow(&self, base: &mut Base, removed: Option<u64>) -> Result<(), ListError> {
        let known = self.known();
        if let Some(records) = removed.filter(|&records| records > known) {
            base.lost.get_or_insert(Lost::Of(records));
        }
        match base.lost {
            Some(Lost::Of(to)) => return Err(ListError::Hole { from: known, to }),
            Some(Lost::Some) => return Err(ListError::Parted { number: known }),
            None => {}
        }
        if let Some(records) = removed.filter(|&records| records != base.records) {
            *base = Base {
                begun: base.begun,
                ..Base::new(records, self.offset(SOURCE, records)?)
            };
        }
        Ok(())
    }

    /// Makes sure that every record that was in the kernel's list when this was called is known.
    /// Gives how many records there are since boot.
    ///
    /// # Errors
    ///
    /// If records are missing, or the list cannot be read.
    pub fn refresh(&self) -> Result<u64, ListError> {
        let mut base = lock(&self.base);
        if let Some(end) = self.nothing_new(&base)? {
            return Ok(end);
        }
        self.read_new(&mut base, usize::MAX).map(|(end, _)| end)
    }

    /// How many records there are since boot, if the kernel's count tells that all are known.
    fn nothing_new(&self, base: &Base) -> Result<Option<u64>, ListError> {
        let count = self.source.count()?;
        // Asked after the count: whoever removes records says so before, and takes it back under
        // the lock that is held here. So if it is not said now, none was removed before the count,
        // and as many as were removed cannot have been added.
        let certain = !self.uncertain.load(Ordering::SeqCst) && !self.others.load(Ordering::SeqCst);
        let end = self.tail().end;

        let all = base.records.checked_add(count) == Some(end);
        Ok((certain && all && base.lost.is_none()).then_some(end))
    }

    /// Reads what is new in the kernel's list, but not much more than so many bytes of it. Gives
    /// whether there may be more.
    ///
    /// # Errors
    ///
    /// As [`Whole::refresh`].
    pub fn refresh_some(&self, limit: usize) -> Result<bool, ListError> {
        let mut base = lock(&self.base);
        if self.nothing_new(&base)?.is_some() {
            return Ok(false);
        }
        self.read_new(&mut base, limit).map(|(_, more)| more)
    }

    /// Reads what is new, or about so many bytes of it. Gives how many records there are since boot,
    /// as far as is known now, and whether there may be more.
    fn read_new(&self, base: &mut Base, limit: usize) -> Result<(u64, bool), ListError> {
        let list = self.wait_for_list()?;
        // As it is open, this stays so.
        let removed = self.source.removed()?;
        self.follow(base, removed)?;

        // The last known record, if the list has it, must be where it was.
        let mut last = {
            let tail = self.tail();
            if tail.end > base.records {
                tail.last.clone()
            } else {
                Vec::new()
            }
        };
        // Whether neither a record that is known nor the module says that what is new follows.
        let unsaid = base.begun && removed.is_none() && last.is_empty();
        let mut bytes = Vec::new();
        let begin = self.known_size(SOURCE);
        let mut most = self.piece.saturating_add(last.len());
        loop {
            let before = self.known();
            let from = self
                .known_size(SOURCE)
                .checked_sub(last.len() as u64)
                .and_then(|position| position.checked_sub(base.bytes))
                .ok_or(ListError::Parted { number: before })?;
            bytes.clear();
            let more = list.read_from(from, most, &mut bytes)?;
            let new = bytes
                .strip_prefix(last.as_slice())
                .ok_or(ListError::Parted {
                    number: before.saturating_sub(1),
                })?;
            if unsaid && !new.is_empty() {
                return Err(ListError::Parted { number: before });
            }
            let end = self.append(new)?;
            last.clear();
            base.begun = true;
            if !more {
                return Ok((end, false));
            }
            // A record that is longer than that, or none behind the last known one.
            most = if end == before {
                most.saturating_mul(2)
            } else {
                self.piece
            };
            let read = self.known_size(SOURCE).saturating_sub(begin);
            if read >= limit as u64 {
                return Ok((end, true));
            }
        }
    }

    /// How often the kernel's list was opened so far.
    pub fn reads(&self) -> u64 {
        self.reads.load(Ordering::SeqCst)
    }

    /// Opens the list, and waits for a writer to close it, or for a removal to end.
    fn wait_for_list(&self) -> Result<S::List, ListError> {
        let began = Instant::now();
        self.reads.fetch_add(1, Ordering::SeqCst);
        loop {
            let limit = if self.uncertain.load(Ordering::SeqCst) {
                REMOVAL_LIMIT
            } else {
                WRITER_LIMIT
            };
            match self.source.list() {
                Err(error) if error.is(Errno::BUSY) && began.elapsed() < limit => {
                    thread::sleep(Duration::from_millis(1));
                }
                other => return Ok(other?),
            }
        }
    }

    /// Appends records that were read. What is no whole record at the end is left for the next time.
    fn append(&self, bytes: &[u8]) -> Result<u64, ListError> {
        let mut tail = self.tail_mut();
        for record in Records::new(bytes) {
            let record = record.map_err(|error| ListError::Record {
                number: tail.end,
                error,
            })?;
            let lengths = in_views(&self.views, &record)?;
            tail.push(&record, &lengths);
        }
        Ok(tail.end)
    }

    /// How many bytes a file has now.
    ///
    /// # Errors
    ///
    /// As [`Whole::refresh`].
    pub fn size(&self, view: View) -> Result<u64, ListError> {
        self.refresh()?;
        Ok(self.known_size(view))
    }

    /// How many bytes a file has, as far as is known without asking the kernel.
    pub fn known_size(&self, view: View) -> u64 {
        let index = self.index(view);
        self.tail().ends.get(index).copied().unwrap_or_default()
    }

    /// Appends up to `size` bytes of a file from an offset, fewer only at its end, or after many.
    ///
    /// Every record that was in the kernel's list when this was called is in the file.
    ///
    /// # Errors
    ///
    /// As [`Whole::refresh`], and if the archive is damaged.
    pub fn read(
        &self,
        view: View,
        offset: u64,
        size: usize,
        to: &mut Vec<u8>,
    ) -> Result<(), ListError> {
        // What was there before need not be asked for again.
        if offset.saturating_add(size as u64) > self.known_size(view) {
            self.refresh()?;
        }
        self.read_known(view, offset, size, to)
    }

    /// As [`Whole::read`], of what is known without asking the kernel.
    ///
    /// # Errors
    ///
    /// If the archive is damaged.
    pub fn read_known(
        &self,
        view: View,
        mut offset: u64,
        size: usize,
        to: &mut Vec<u8>,
    ) -> Result<(), ListError> {
        let index = self.index(view);
        let wanted = to.len().saturating_add(size);

        while let Some(left) = wanted.checked_sub(to.len()).filter(|&left| left > 0) {
            let Some(Piece { bytes, start }) = self.piece(view, index, offset)? else {
                break;
            };
            let skip = usize::try_from(offset.saturating_sub(start)).unwrap_or(usize::MAX);
            let given = bytes.get(skip..).unwrap_or_default();
            let given = given.get(..left).unwrap_or(given);
            if given.is_empty() {
                break;
            }
            to.extend_from_slice(given);
            offset += given.len() as u64;
        }
        Ok(())
    }

    /// The rendered records around an offset, and where they begin; `None` at the end.
    fn piece(&self, view: View, index: usize, offset: u64) -> Result<Option<Piece>, ListError> {
        let (block, start) = {
            let tail = self.tail();
            match tail.block_at(index, offset) {
                Place::Block(block, start) => (block, start),
                Place::End => return Ok(None),
                Place::Archived => {
                    drop(tail);
                    return self.archived_piece(view, offset);
                }
            }
        };
        let length = block.lengths.get(index).copied().unwrap_or_default();
        let bytes = Arc::new(render(view, &block.raw, length)?);
        Ok(Some(Piece { bytes, start }))
    }

    /// As [`Whole::piece`], of a segment of the archive.
    fn archived_piece(&self, view: View, offset: u64) -> Result<Option<Piece>, ListError> {
        let Some((segment, start)) = self.archive.segment_at_offset(view, offset) else {
            return Ok(None);
        };
        let found = lock(&self.rendered)
            .iter()
            .find(|kept| kept.segment == segment && kept.view == view)
            .map(|kept| Arc::clone(&kept.bytes));
        if let Some(bytes) = found {
            return Ok(Some(Piece { bytes, start }));
        }
        let raw = self.archive.read_segment(segment).inspect_err(|_| {
            *lock(&self.broken) = Some(segment);
        })?;
        let bytes = if view == SOURCE {
            raw
        } else {
            let end = self.archive.offset(view, segment.saturating_add(1));
            render(view, &raw, end.unwrap_or_default().saturating_sub(start))?
        };
        let bytes = Arc::new(bytes);
        let mut rendered = lock(&self.rendered);
        rendered.push_front(Rendered {
            segment,
            view,
            bytes: Arc::clone(&bytes),
        });
        while rendered.len() > 1
            && rendered.iter().map(|kept| kept.bytes.len()).sum::<usize>() > CACHE
        {
            rendered.pop_back();
        }
        Ok(Some(Piece { bytes, start }))
    }

    /// Whether the archive could be read whenever somebody wanted to. What could not is tried again.
    ///
    /// # Errors
    ///
    /// Why it cannot be read.
    pub fn readable(&self) -> Result<(), ArchiveError> {
        let mut broken = lock(&self.broken);
        if let Some(segment) = *broken {
            self.archive.read_segment(segment)?;
        }
        *broken = None;
        Ok(())
    }

    /// The records in memory up to a number, or all, to be archived: their bytes as in [`SOURCE`],
    /// up to about `limit` bytes, at least one record.
    ///
    /// # Errors
    ///
    /// Never, unless memory is damaged: every record was parsed when it was read.
    pub fn to_archive(&self, to: u64, limit: usize) -> Result<Vec<u8>, ListError> {
        let (first, blocks) = {
            let tail = self.tail();
            (tail.first, tail.blocks.clone())
        };
        let mut bytes = Vec::new();
        let mut number = first;

        for block in &blocks {
            for record in Records::new(&block.raw) {
                let record = record.map_err(|error| ListError::Record { number, error })?;
                let full = !bytes.is_empty() && bytes.len() + record.raw().len() > limit;
                if number >= to || full {
                    return Ok(bytes);
                }
                bytes.extend(record.raw());
                number += 1;
            }
        }
        Ok(bytes)
    }

    /// Goes through all records since boot; `step` says whether to go on.
    ///
    /// # Errors
    ///
    /// If the archive is damaged.
    pub fn each(&self, mut step: impl FnMut(&Record<'_>) -> bool) -> Result<(), ListError> {
        let mut next = 0;
        loop {
            // What is archived meanwhile is read from there.
            while let Some(segment) = self.archive.segment_of_record(next) {
                let first = self
                    .archive
                    .segment(segment)
                    .map_or(next, |found| found.first);
                let raw = self.archive.read_segment(segment)?;
                for (number, record) in (first..).zip(Records::new(&raw)) {
                    let record = record.map_err(|error| ListError::Record { number, error })?;
                    if number < next {
                        continue;
                    }
                    if !step(&record) {
                        return Ok(());
                    }
                    next = number + 1;
                }
            }
            let mut parted = false;
            self.each_in_memory(|number, record| {
                parted = number > next;
                if parted || number < next {
                    return !parted;
                }
                next = number + 1;
                step(record)
            })?;
            if !parted {
                return Ok(());
            }
        }
    }

    /// Goes through the records in memory; `step` says whether to go on.
    ///
    /// # Errors
    ///
    /// As [`Whole::to_archive`].
    pub fn each_in_memory(
        &self,
        mut step: impl FnMut(u64, &Record<'_>) -> bool,
    ) -> Result<(), ListError> {
        let (mut number, blocks) = {
            let tail = self.tail();
            (tail.first, tail.blocks.clone())
        };
        for block in &blocks {
            for record in Records::new(&block.raw) {
                let record = record.map_err(|error| ListError::Record { number, error })?;
                if !step(number, &record) {
                    return Ok(());
                }
                number += 1;
            }
        }
        Ok(())
    }

    /// Lets go of the records in memory that the archive has by now. Nobody may archive meanwhile.
    ///
    /// # Errors
    ///
    /// As [`Whole::to_archive`].
    pub fn archived(&self) -> Result<(), ListError> {
        let archived = self.archive.records();
        let mut tail = self.tail_mut();

        while let Some(block) = tail.blocks.front().filter(|block| block.first < archived) {
            let mut rest = Block::new(archived, self.views.len());
            if block.first + block.records > archived {
                for (number, record) in (block.first..).zip(Records::new(&block.raw)) {
                    let record = record.map_err(|error| ListError::Record { number, error })?;
                    if number >= archived {
                        rest.push(&record, &in_views(&self.views, &record)?);
                    }
                }
            }
            tail.blocks.pop_front();
            if rest.records > 0 {
                tail.blocks.push_front(Arc::new(rest));
            }
        }
        tail.first = archived;
        tail.starts = lengths(&self.archive, &self.views);
        Ok(())
    }

    /// Where a record begins in a file.
    fn offset(&self, view: View, number: u64) -> Result<u64, ListError> {
        let index = self.index(view);
        let (blocks, mut offset) = {
            let tail = self.tail();
            if number > tail.end {
                return Err(ListError::Hole {
                    from: tail.end,
                    to: number,
                });
            }
            if number < tail.first {
                drop(tail);
                return self.archived_offset(view, number);
            }
            let start = tail.starts.get(index).copied().unwrap_or_default();
            (tail.blocks.clone(), start)
        };
        for block in &blocks {
            if number >= block.first + block.records {
                offset += block.lengths.get(index).copied().unwrap_or_default();
                continue;
            }
            offset += length(view, block.first, number, &block.raw)?;
            break;
        }
        Ok(offset)
    }

    /// As [`Whole::offset`], of a record in the archive.
    fn archived_offset(&self, view: View, number: u64) -> Result<u64, ListError> {
        let missing = ListError::Hole {
            from: number,
            to: number.saturating_add(1),
        };
        let found = self.archive.segment_of_record(number).and_then(|index| {
            let segment = self.archive.segment(index)?;
            Some((index, segment.first, self.archive.offset(view, index)?))
        });
        match found {
            None => Err(missing),
            Some((_, first, offset)) if first == number => Ok(offset),
            Some((index, first, offset)) => {
                let raw = self.archive.read_segment(index)?;
                Ok(offset + length(view, first, number, &raw)?)
            }
        }
    }

    /// The index of a view. One that is not there is given no bytes by anything that asks for it.
    fn index(&self, view: View) -> usize {
        self.views
            .iter()
            .position(|&one| one == view)
            .unwrap_or(usize::MAX)
    }

    fn tail(&self) -> RwLockReadGuard<'_, Tail> {
        self.tail.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn tail_mut(&self) -> RwLockWriteGuard<'_, Tail> {
        self.tail.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where an offset is.
enum Place {
    /// In records that are archived.
    Archived,
    /// In this block, which begins at that offset.
    Block(Arc<Block>, u64),
    /// Behind the last record.
    End,
}

impl Tail {
    /// Adds a record, which has so many bytes in each view.
    fn push(&mut self, record: &Record<'_>, lengths: &[u64]) {
        let full = self
            .blocks
            .back()
            .is_none_or(|block| block.raw.len() + record.raw().len() > BLOCK);
        if full {
            let block = Block::new(self.end, lengths.len());
            self.blocks.push_back(Arc::new(block));
        }
        if let Some(block) = self.blocks.back_mut() {
            // A reader may still have the block as it was.
            Arc::make_mut(block).push(record, lengths);
        }
        for (end, length) in self.ends.iter_mut().zip(lengths) {
            *end += length;
        }
        self.end += 1;
        self.last.clear();
        self.last.extend(record.raw());
    }

    fn block_at(&self, view: usize, offset: u64) -> Place {
        let (Some(&start), Some(&end)) = (self.starts.get(view), self.ends.get(view)) else {
            return Place::End;
        };
        if offset >= end {
            return Place::End;
        }
        if offset < start {
            return Place::Archived;
        }
        let mut at = start;
        for block in &self.blocks {
            let length = block.lengths.get(view).copied().unwrap_or_default();
            if offset < at + length {
                return Place::Block(Arc::clone(block), at);
            }
            at += length;
        }
        Place::End
    }
}

/// How many bytes a record has in each view.
fn in_views(views: &[View], record: &Record<'_>) -> Result<Vec<u64>, ListError> {
    views
        .iter()
        .map(|view| Ok(view.length(record)? as u64))
        .collect()
}

/// Records of [`SOURCE`] as they are in a view, where they should have so many bytes.
fn render(view: View, raw: &[u8], length: u64) -> Result<Vec<u8>, ListError> {
    if view == SOURCE {
        return Ok(raw.to_vec());
    }
    // One that is too small only costs time, and one that is too large memory.
    let length = usize::try_from(length).unwrap_or_default();
    let mut bytes = Vec::with_capacity(length.min(raw.len().saturating_mul(4)));
    for (number, record) in (0..).zip(Records::new(raw)) {
        let record = record.map_err(|error| ListError::Record { number, error })?;
        view.write(&record, &mut bytes)?;
    }
    Ok(bytes)
}

/// How many bytes the records up to a number have in a view. `raw` begins with that of number
/// `first`.
fn length(view: View, first: u64, number: u64, raw: &[u8]) -> Result<u64, ListError> {
    let mut bytes = 0;
    for (at, record) in (first..number).zip(Records::new(raw)) {
        let record = record.map_err(|error| ListError::Record { number: at, error })?;
        bytes += view.length(&record)? as u64;
    }
    Ok(bytes)
}

/// How many bytes the archived records have in each view.
fn lengths(archive: &Archive, views: &[View]) -> Vec<u64> {
    views
        .iter()
        .map(|&view| archive.length(view).unwrap_or_default())
        .collect()
}

/// The bytes of the last record of the archive; none if it is empty.
fn last_record(archive: &Archive) -> Result<Vec<u8>, ListError> {
    let Some(last) = archive.segments().checked_sub(1) else {
        return Ok(Vec::new());
    };
    let raw = archive.read_segment(last)?;
    let mut bytes = &[][..];
    for record in Records::new(&raw) {
        bytes = record
            .map_err(|error| ListError::Record {
                number: archive.records(),
                error,
            })?
            .raw();
    }
    Ok(bytes.to_vec())
}
