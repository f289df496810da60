// SPDX-License-Identifier: GPL-2.0

//! The archive: the records that are no longer in the kernel.
//!
//! It has one directory for each boot, and in it segments: files with some thousand records each,
//! written once and never changed. [`Writer`] owns it and adds segments. [`Archive`] is what
//! others read: it never waits for the writer's `fsync(2)`. What is written, in which order, and
//! what is found after a crash at any point is in `Documentation/admin-guide/archive.rst`.
//!
//! No file is ever open for reading and for writing at once, and none is opened for writing again:
//! with a policy that measures these files, that would be a violation in IMA's own list.

mod boots;
mod calls;
mod error;
mod segment;
mod writer;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::fmt;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::PoisonError;
use std::sync::RwLock;
use std::sync::RwLockReadGuard;

use rustix::fs::Mode;
use rustix::fs::OFlags;
use rustix::fs::CWD;
use rustix::io::Errno;
use serde::Deserialize;
use serde::Serialize;

use crate::pcrs::Point;
use crate::record::Record;
use crate::record::Records;
use crate::render::View;
use crate::template::TemplateError;

use self::calls::Calls;
use self::calls::Kernel;
use self::segment::Header;
use self::segment::Lines;
use self::segment::Unreadable;

pub use self::boots::boots;
pub use self::boots::Boot;
pub use self::boots::Keep;
pub use self::error::ArchiveError;
pub use self::error::Damage;
pub use self::error::NotRecords;
pub use self::error::Step;
pub use self::segment::Sha256;
pub use self::writer::Writer;

/// Where the archive is unless something else is configured.
pub const ROOT: &str = "/var/lib/ima-trim";

/// A segment of more bytes than this should be two, unless it is a single record.
///
/// Whoever reads one record of a segment reads and hashes all of it, and what many readers of
/// different places read at a time is to be in memory. And what is less than a segment is read and
/// replayed anew by a daemon that begins: one that is killed again and again must get to the end of a
/// segment each time, or what it has to read grows without bound.
pub const SEGMENT_BYTES: usize = 256 << 10;

/// What names a boot: `/proc/sys/kernel/random/boot_id`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct BootId(String);

impl BootId {
    /// That of this text: five groups of lower case hexadecimal digits, as the kernel prints it,
    /// with or without the end of the line.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.strip_suffix('\n').unwrap_or(text);
        let fits = text.len() == 36
            && text.bytes().enumerate().all(|(at, byte)| match at {
                8 | 13 | 18 | 23 => byte == b'-',
                _ => matches!(byte, b'0'..=b'9' | b'a'..=b'f'),
            });
        fits.then(|| Self(text.to_owned()))
    }

    /// The text, which is also the name of the boot's directory.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for BootId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for BootId {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::parse(&text).ok_or("no boot id as the kernel prints it")
    }
}

impl From<BootId> for String {
    fn from(boot: BootId) -> Self {
        boot.0
    }
}

/// One segment, as the index knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// The number of its first record, counted from 0 since boot.
    pub first: u64,
    /// How many records it has.
    pub records: u64,
    /// Bytes of these records in the form that is archived, [`crate::render::SOURCE`].
    pub bytes: u64,
}

/// How far [`Archive::verify`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Records that were verified.
    pub records: u64,
    /// Records that there are.
    pub of: u64,
}

/// What [`Archive::verify`] has found right.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// Segments.
    pub segments: u64,
    /// Records in them.
    pub records: u64,
    /// Violations among these.
    pub violations: u64,
    /// Bytes of the records in the form that is archived.
    pub bytes: u64,
}

/// The archive of one boot, for reading. Any number of threads can use it at once, also while
/// [`Writer`] adds to it.
pub struct Archive {
    calls: Arc<dyn Calls>,
    /// The boot's directory, for messages.
    path: PathBuf,
    dir: OwnedFd,
    boot: BootId,
    views: Vec<View>,
    /// Locked for as long as it takes to look something up or to add one entry. Nobody reads or
    /// writes a file meanwhile.
    index: RwLock<Index>,
}

impl fmt::Debug for Archive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Archive")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

/// What is kept in memory of the segments: some 150 bytes of each.
struct Index {
    entries: Vec<Entry>,
    /// After the last record.
    end: Point,
}

/// What is kept in memory of one segment.
struct Entry {
    segment: Segment,
    /// Of its header.
    header: Sha256,
    /// For each of the views, in their order: bytes of all records up to the last of this segment.
    ends: Box<[u64]>,
}

impl Entry {
    /// The number of the record after its last.
    fn end(&self) -> u64 {
        self.segment.first + self.segment.records
    }
}

impl Index {
    /// The number of the record after the last.
    fn records(&self) -> u64 {
        self.end.totals().records
    }

    /// Bytes of all records in the view of this place.
    fn length(&self, view: usize) -> u64 {
        self.entries
            .last()
            .and_then(|entry| entry.ends.get(view).copied())
            .unwrap_or(0)
    }

    /// Adds a segment. `lengths` has bytes for each of the views.
    fn push(&mut self, lines: &Lines, lengths: impl Iterator<Item = u64>) {
        let header = &lines.header;
        let ends = lengths
            .enumerate()
            .map(|(view, length)| self.length(view).saturating_add(length))
            .collect();

        self.entries.push(Entry {
            segment: Segment {
                first: header.first,
                records: header.records,
                bytes: header.bytes,
            },
            header: lines.sha256,
            ends,
        });
        self.end.clone_from(&header.after);
    }
}

/// What records are, taken together: everything that a header says of them.
struct Measured {
    after: Point,
    /// For each of the views, in their order.
    lengths: Vec<u64>,
}

impl Measured {
    /// Nothing, at this point.
    fn at(before: &Point, views: &[View]) -> Self {
        Self {
            after: before.clone(),
            lengths: vec![0; views.len()],
        }
    }

    fn add(&mut self, record: &Record<'_>, views: &[View]) -> Result<(), TemplateError> {
        self.after.extend(record);
        self.measure(record, views)
    }

    fn measure(&mut self, record: &Record<'_>, views: &[View]) -> Result<(), TemplateError> {
        for (length, view) in self.lengths.iter_mut().zip(views) {
            *length += view.length(record)? as u64;
        }
        Ok(())
    }
}

impl Archive {
    /// Opens the archive of a boot for reading alone: nothing is written, removed or locked, and a
    /// [`Writer`] may be at work. What that adds later is not seen.
    ///
    /// `root` is the directory of all boots, usually [`ROOT`]. `start` is where the list of this
    /// boot begins, usually [`Point::reset`]. `views` are IMA's files in which offsets will be
    /// asked for.
    ///
    /// # Errors
    ///
    /// If there is no such directory, it cannot be read, or what is in it is damaged. Only the
    /// headers are read: records are checked when they are read, and all at once by
    /// [`Archive::verify`].
    pub fn open(
        root: &Path,
        boot: &BootId,
        start: &Point,
        views: &[View],
    ) -> Result<Self, ArchiveError> {
        let archive = Self::unread(root, boot, start, views)?;
        archive.scan()?;
        Ok(archive)
    }

    /// The same of an earlier boot: its first segment tells which PCRs and banks there were. What was
    /// not archived when that boot ended is in no archive.
    ///
    /// # Errors
    ///
    /// As of [`Archive::open`]; and if there is no segment, or the first does not begin with the
    /// values after a reset.
    pub fn open_earlier(root: &Path, boot: &BootId, views: &[View]) -> Result<Self, ArchiveError> {
        let archive = Self::unread(root, boot, &Point::blank(), views)?;
        let Some(file) = archive.open_segment(0)? else {
            // If there are others, this says so.
            archive.scan()?;
            return Err(archive.io(Step::Open, 0, Errno::NOENT));
        };
        let before = archive.header(&file, 0)?.header.before;
        let start = before.after_reset();

        if !before.same_values(&start) {
            return Err(archive.damaged(0, Damage::Beginning));
        }
        archive.begin_at(start);
        archive.scan()?;
        Ok(archive)
    }

    /// An archive of which nothing was read yet.
    fn unread(
        root: &Path,
        boot: &BootId,
        start: &Point,
        views: &[View],
    ) -> Result<Self, ArchiveError> {
        let calls: Arc<dyn Calls> = Arc::new(Kernel);
        let root_dir = open_dir(&*calls, CWD, root, root)?;
        let path = root.join(boot.as_str());
        let dir = open_dir(&*calls, root_dir.as_fd(), &path, boot.as_str().as_ref())?;

        Ok(Self::in_dir(calls, path, dir, boot, start, views))
    }

    /// The same, of a directory that is open.
    fn in_dir(
        calls: Arc<dyn Calls>,
        path: PathBuf,
        dir: OwnedFd,
        boot: &BootId,
        start: &Point,
        views: &[View],
    ) -> Self {
        let index = RwLock::new(Index {
            entries: Vec::new(),
            end: start.clone(),
        });
        Self {
            calls,
            path,
            dir,
            boot: boot.clone(),
            views: views.to_vec(),
            index,
        }
    }

    /// Says where the list begins. No segment was read yet.
    fn begin_at(&self, start: Point) {
        let mut index = self.index.write().unwrap_or_else(PoisonError::into_inner);
        index.end = start;
    }

    /// Reads the headers of all segments in the directory.
    ///
    /// It goes from one to the next by their names: a list of names is not made at one point of
    /// time, and what a writer adds meanwhile may be in it without what it added before.
    fn scan(&self) -> Result<(), ArchiveError> {
        let names = self
            .calls
            .names(self.dir.as_fd())
            .map_err(|errno| io(Step::List, &self.path, errno))?;
        let mut found = BTreeSet::new();
        for name in names.iter().filter(|name| name.ends_with(segment::SUFFIX)) {
            let number =
                segment::number(name).ok_or_else(|| damaged(self.path.join(name), Damage::Name))?;
            found.insert(number);
        }

        let mut last = None;
        loop {
            let next = self.records();
            // Whatever comes before the next segment and is not the last one has no place.
            while found.first().is_some_and(|&number| number < next) {
                let number = found.pop_first();
                if let Some(number) = number.filter(|_| number != last) {
                    let last = next.saturating_sub(1);
                    return Err(self.damaged(number, Damage::Overlap { last }));
                }
            }
            if !self.add(next)? {
                break;
            }
            last = Some(next);
        }
        match found.first() {
            None => Ok(()),
            Some(&next) => Err(self.damaged(self.records(), Damage::Missing { next })),
        }
    }

    /// Adds the segment that begins with this record to the index. `false` if there is none.
    fn add(&self, first: u64) -> Result<bool, ArchiveError> {
        let Some(file) = self.open_segment(first)? else {
            return Ok(false);
        };
        let lines = self.header(&file, first)?;
        let header = &lines.header;
        let damage = |damage| Err(self.damaged(first, damage));

        if header.boot != self.boot {
            return damage(Damage::ForeignBoot(header.boot.clone()));
        }
        if header.first != first {
            return damage(Damage::Number(header.first));
        }
        let (previous, end) = {
            let index = self.index();
            let previous = index.entries.last().map(|entry| entry.header);
            (previous, index.end.clone())
        };
        if header.previous != previous {
            return damage(Damage::Chain);
        }
        if !header.before.same_values(&end) {
            return if previous.is_none() {
                Err(ArchiveError::Start {
                    path: self.path.clone(),
                })
            } else {
                damage(Damage::Points)
            };
        }
        let (before, after) = (header.before.totals(), header.after.totals());
        if header.records == 0
            || before.records.checked_add(header.records) != Some(after.records)
            || before.violations.checked_add(header.violations) != Some(after.violations)
        {
            return damage(Damage::Points);
        }
        self.check_size(&file, first, &lines)?;

        let lengths = self.lengths(&file, first, &lines)?;
        self.push(&lines, &lengths);
        Ok(true)
    }

    /// Bytes that the records of a segment have in each of the views. An ima-trim that knew fewer
    /// files may have written it: then the records tell.
    fn lengths(&self, file: &OwnedFd, first: u64, lines: &Lines) -> Result<Vec<u64>, ArchiveError> {
        let known: Option<Vec<u64>> = self
            .views
            .iter()
            .map(|view| lines.header.lengths.get(&view.file_name()).copied())
            .collect();
        if let Some(known) = known {
            return Ok(known);
        }
        let bytes = self.records_of(file, first, lines)?;
        let mut measured = Measured::at(&lines.header.before, &self.views);
        self.for_each(first, &bytes, |record| {
            measured.measure(record, &self.views)
        })?;
        Ok(measured.lengths)
    }

    fn push(&self, lines: &Lines, lengths: &[u64]) {
        let mut index = self.index.write().unwrap_or_else(PoisonError::into_inner);
        index.push(lines, lengths.iter().copied());
    }

    /// The boot whose records these are.
    pub fn boot(&self) -> &BootId {
        &self.boot
    }

    /// The directory with the segments.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The files in which offsets can be asked for.
    pub fn views(&self) -> &[View] {
        &self.views
    }

    /// How many records are archived. They have the numbers from 0 to one less than this.
    pub fn records(&self) -> u64 {
        self.index().records()
    }

    /// How many segments there are.
    pub fn segments(&self) -> usize {
        self.index().entries.len()
    }

    /// PCR values and totals after the last record, or where the list begins if there is none.
    ///
    /// `trims` in it is what the last [`Writer::append`] was told.
    pub fn end(&self) -> Point {
        self.index().end.clone()
    }

    /// A segment, by its index from 0.
    pub fn segment(&self, index: usize) -> Option<Segment> {
        self.index()
            .entries
            .get(index)
            .map(|entry| entry.segment.clone())
    }

    /// The index of the segment that has the record of this number, counted from 0.
    pub fn segment_of_record(&self, number: u64) -> Option<usize> {
        let index = self.index();
        let at = index.entries.partition_point(|entry| entry.end() <= number);
        (at < index.entries.len()).then_some(at)
    }

    /// The index of the segment that has the byte at this offset of a file, and the offset at
    /// which this segment begins there. `None` if the file goes on in the kernel there, or is none
    /// of [`Archive::views`].
    pub fn segment_at_offset(&self, view: View, offset: u64) -> Option<(usize, u64)> {
        let place = self.place(view)?;
        let index = self.index();
        let at = index
            .entries
            .partition_point(|entry| entry.ends.get(place).is_some_and(|&end| end <= offset));
        if at == index.entries.len() {
            return None;
        }
        Some((at, start_of(&index, place, at)?))
    }

    /// The offset in a file at which a segment begins; that of the file's archived part as a
    /// whole if `index` is the number of segments.
    pub fn offset(&self, view: View, index: usize) -> Option<u64> {
        start_of(&self.index(), self.place(view)?, index)
    }

    /// Bytes that the archived records have in a file. `None` if it is none of
    /// [`Archive::views`].
    pub fn length(&self, view: View) -> Option<u64> {
        let place = self.place(view)?;
        Some(self.index().length(place))
    }

    /// The records of a segment, in the form of `binary_runtime_measurements_sha1`. They are read
    /// from the disk and their SHA-256 is compared each time.
    ///
    /// # Errors
    ///
    /// If there is no such segment, the file is missing or cannot be read, or its records are not
    /// those that were written.
    pub fn read_segment(&self, index: usize) -> Result<Vec<u8>, ArchiveError> {
        self.load(index).map(|(_, bytes)| bytes)
    }

    /// PCR values and totals after this many records.
    ///
    /// Within a segment this replays the segment. `trims` in it is that of the segment's
    /// beginning, which is only right at the end of a segment.
    ///
    /// # Errors
    ///
    /// If there are fewer records, or those that it needs are missing or damaged.
    pub fn point_after(&self, records: u64) -> Result<Point, ArchiveError> {
        let have = {
            let index = self.index();
            if index.records() == records {
                return Ok(index.end.clone());
            }
            index.records()
        };
        let beyond = ArchiveError::Beyond {
            path: self.path.clone(),
            what: "record",
            number: records,
            have,
        };
        let at = self.segment_of_record(records).ok_or(beyond)?;
        let (lines, bytes) = self.load(at)?;
        let mut point = lines.header.before;
        let mut left = records.saturating_sub(lines.header.first);

        self.for_each(lines.header.first, &bytes, |record| {
            if left > 0 {
                left -= 1;
                point.extend(record);
            }
            Ok(())
        })?;
        Ok(point)
    }

    /// Reads everything and compares everything: each SHA-256, the chain of headers, the PCR
    /// values to which the records of each segment replay, their number, the violations among
    /// them, and their lengths in IMA's files. Memory is that of one segment.
    ///
    /// `progress` is called after each segment.
    ///
    /// # Errors
    ///
    /// The first that is not right.
    pub fn verify(&self, mut progress: impl FnMut(Progress)) -> Result<Verified, ArchiveError> {
        let (segments, of) = {
            let index = self.index();
            (index.entries.len(), index.records())
        };
        let mut verified = Verified::default();

        for at in 0..segments {
            let (lines, bytes) = self.load(at)?;
            let header = &lines.header;
            let mut measured = Measured::at(&header.before, &self.views);

            self.for_each(header.first, &bytes, |record| {
                measured.add(record, &self.views)
            })?;
            if !measured.after.same_values(&header.after) {
                return Err(self.damaged(header.first, Damage::Replay));
            }
            for (view, length) in self.views.iter().zip(&measured.lengths) {
                let name = view.file_name();
                if header
                    .lengths
                    .get(&name)
                    .is_some_and(|stated| stated != length)
                {
                    return Err(self.damaged(header.first, Damage::Length(name)));
                }
            }
            verified.segments += 1;
            verified.records += header.records;
            verified.violations += header.violations;
            verified.bytes += header.bytes;
            progress(Progress {
                records: verified.records,
                of,
            });
        }
        Ok(verified)
    }

    /// Makes sure that every segment is there, with its header and its length.
    ///
    /// # Errors
    ///
    /// The first that is not right.
    pub fn check(&self) -> Result<(), ArchiveError> {
        (0..self.segments()).try_for_each(|at| self.find(at).map(|_| ()))
    }

    /// The header and the records of a segment, compared with what the index knows.
    fn load(&self, at: usize) -> Result<(Lines, Vec<u8>), ArchiveError> {
        let (first, file, lines) = self.find(at)?;
        let bytes = self.records_of(&file, first, &lines)?;
        Ok((lines, bytes))
    }

    /// The number of the first record, the file and the header of a segment, compared with what the
    /// index knows.
    fn find(&self, at: usize) -> Result<(u64, OwnedFd, Lines), ArchiveError> {
        let (first, header) = {
            let index = self.index();
            let entry = index.entries.get(at).ok_or_else(|| ArchiveError::Beyond {
                path: self.path.clone(),
                what: "segment",
                number: at as u64,
                have: index.entries.len() as u64,
            })?;
            (entry.segment.first, entry.header)
        };
        let file = self
            .open_segment(first)?
            .ok_or_else(|| self.io(Step::Open, first, Errno::NOENT))?;
        let lines = self.header(&file, first)?;
        if lines.sha256 != header {
            return Err(self.damaged(first, Damage::Changed));
        }
        self.check_size(&file, first, &lines)?;
        Ok((first, file, lines))
    }

    /// Opens the file of a segment for reading. `None` if there is none.
    fn open_segment(&self, first: u64) -> Result<Option<OwnedFd>, ArchiveError> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW;
        match self.calls.open(
            self.dir.as_fd(),
            segment::name(first).as_ref(),
            flags,
            Mode::empty(),
        ) {
            Ok(file) => Ok(Some(file)),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(self.io(Step::Open, first, errno)),
        }
    }

    fn check_size(&self, file: &OwnedFd, first: u64, lines: &Lines) -> Result<(), ArchiveError> {
        let found = self
            .calls
            .size(file.as_fd())
            .map_err(|errno| self.io(Step::Read, first, errno))?;
        let expected = lines.header.bytes.saturating_add(lines.bytes as u64);

        if found == expected {
            Ok(())
        } else {
            Err(self.damaged(first, Damage::Size { expected, found }))
        }
    }

    /// Reads from an offset until the file ends or there are this many bytes more.
    fn read(
        &self,
        file: &OwnedFd,
        first: u64,
        from: u64,
        most: usize,
    ) -> Result<Vec<u8>, ArchiveError> {
        let mut bytes = vec![0; most];
        let mut have = 0;

        while let Some(to) = bytes.get_mut(have..).filter(|to| !to.is_empty()) {
            match self.calls.read(file.as_fd(), to, from + have as u64) {
                Ok(0) => break,
                Ok(count) => have += count,
                Err(errno) => return Err(self.io(Step::Read, first, errno)),
            }
        }
        bytes.truncate(have);
        Ok(bytes)
    }

    /// Reads the header of a segment.
    fn header(&self, file: &OwnedFd, first: u64) -> Result<Lines, ArchiveError> {
        // Enough for four banks, so that one read does usually.
        let mut most = 8 << 10;

        loop {
            let bytes = self.read(file, first, 0, most)?;
            match Lines::read(&bytes) {
                Ok(Some(lines)) => return Ok(lines),
                Ok(None) if bytes.len() == most && most < segment::MAX_HEADER => most *= 4,
                Ok(None) => {
                    let damage = Damage::Header("it does not end".to_owned());
                    return Err(self.damaged(first, damage));
                }
                Err(Unreadable::Damage(damage)) => return Err(self.damaged(first, damage)),
                Err(Unreadable::Version(found)) => {
                    return Err(ArchiveError::Version {
                        path: self.file(first),
                        found,
                        known: segment::VERSION,
                    })
                }
            }
        }
    }

    /// Reads the records of a segment, of which the size was checked, and compares their SHA-256.
    fn records_of(
        &self,
        file: &OwnedFd,
        first: u64,
        lines: &Lines,
    ) -> Result<Vec<u8>, ArchiveError> {
        let most = usize::try_from(lines.header.bytes).unwrap_or(usize::MAX);
        let bytes = self.read(file, first, lines.bytes as u64, most)?;
        let expected = lines.header.sha256;
        let found = Sha256::of(&bytes);

        if found != expected {
            return Err(self.damaged(first, Damage::Records { expected, found }));
        }
        Ok(bytes)
    }

    /// Calls a function with each of these records, which are a segment's.
    fn for_each(
        &self,
        first: u64,
        bytes: &[u8],
        each: impl FnMut(&Record<'_>) -> Result<(), TemplateError>,
    ) -> Result<(), ArchiveError> {
        match for_each(first, bytes, each) {
            Ok(_) => Ok(()),
            Err(problem) => Err(self.damaged(first, Damage::NotRecords(problem))),
        }
    }

    fn place(&self, view: View) -> Option<usize> {
        self.views.iter().position(|&other| other == view)
    }

    fn index(&self) -> RwLockReadGuard<'_, Index> {
        // Whoever panicked while it was locked did so before or after the one push that there is.
        self.index.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn file(&self, first: u64) -> PathBuf {
        self.path.join(segment::name(first))
    }

    fn io(&self, step: Step, first: u64, errno: Errno) -> ArchiveError {
        io(step, &self.file(first), errno)
    }

    fn damaged(&self, first: u64, damage: Damage) -> ArchiveError {
        damaged(self.file(first), damage)
    }
}

/// The offset at which a segment begins in the view of this place.
fn start_of(index: &Index, view: usize, segment: usize) -> Option<u64> {
    match segment.checked_sub(1) {
        None => Some(0),
        Some(before) => index.entries.get(before)?.ends.get(view).copied(),
    }
}

/// Calls a function with each record in these bytes, and says how many there are. The first has the
/// number `first`.
fn for_each(
    first: u64,
    bytes: &[u8],
    mut each: impl FnMut(&Record<'_>) -> Result<(), TemplateError>,
) -> Result<u64, NotRecords> {
    let mut records = Records::new(bytes);
    let mut number = first;

    for record in records.by_ref() {
        let record = record.map_err(|error| NotRecords::Record { number, error })?;
        each(&record).map_err(|error| NotRecords::Template { number, error })?;
        number += 1;
    }
    match records.rest().len() {
        0 if number == first => Err(NotRecords::Empty),
        0 => Ok(number - first),
        left => Err(NotRecords::Partial(left)),
    }
}

/// The header of a segment with these records.
fn describe(
    boot: &BootId,
    before: &Point,
    trims: u64,
    previous: Option<Sha256>,
    bytes: &[u8],
    views: &[View],
) -> Result<(Header, Vec<u64>), NotRecords> {
    let first = before.totals().records;
    let mut measured = Measured::at(before, views);
    let records = for_each(first, bytes, |record| measured.add(record, views))?;

    measured.after.set_trims(trims);
    let names = views.iter().map(|view| view.file_name());
    let lengths: BTreeMap<_, _> = names.zip(measured.lengths.iter().copied()).collect();
    let violations = measured
        .after
        .totals()
        .violations
        .saturating_sub(before.totals().violations);
    let header = Header {
        boot: boot.clone(),
        first,
        records,
        violations,
        bytes: bytes.len() as u64,
        sha256: Sha256::of(bytes),
        previous,
        before: before.clone(),
        after: measured.after,
        lengths,
    };
    Ok((header, measured.lengths))
}

fn io(step: Step, path: &Path, errno: Errno) -> ArchiveError {
    ArchiveError::Io {
        step,
        path: path.to_owned(),
        errno,
    }
}

fn damaged(path: PathBuf, damage: Damage) -> ArchiveError {
    ArchiveError::Damaged { path, damage }
}

/// Opens the directory `name` in `dir`.
fn open_dir(
    calls: &dyn Calls,
    dir: BorrowedFd<'_>,
    path: &Path,
    name: &Path,
) -> Result<OwnedFd, ArchiveError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    calls
        .open(dir, name, flags, Mode::empty())
        .map_err(|errno| io(Step::Open, path, errno))
}
