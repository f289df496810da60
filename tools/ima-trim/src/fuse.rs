// SPDX-License-Identifier: GPL-2.0

//! The protocol of the kernel's FUSE, as much of it as a flat directory of files that are only read
//! needs.
//!
//! # Why not a library
//!
//! Readers must not notice that the server is killed and started again, so a process has to serve a
//! connection that another one began. `fuser` (MIT) begins every session with the handshake, and a
//! connection has just one. `fuse-backend-rs` can continue a session, but its licence is Apache-2.0,
//! which code under GPL-2.0-only cannot be linked with. What is left to do is the few structures and
//! requests below; the structures are read and written with `zerocopy`, without unsafe code.
//!
//! # What is answered
//!
//! | request | answer |
//! |---|---|
//! | `INIT` | constants: [`Session::begin`] |
//! | `LOOKUP`, `GETATTR` | from the nodes; names may be cached for [`ENTRY_SECONDS`], attributes never |
//! | `READLINK` | the target |
//! | `OPEN` | handle 0, direct I/O, no `FLUSH` at close; `EROFS` for writing |
//! | `READ` | [`Files::read`] |
//! | `OPENDIR`, `READDIR` | handle 0; the nodes in their order, after `.` and `..` |
//! | `RELEASE`, `RELEASEDIR`, `DESTROY` | success: nothing is kept |
//! | `STATFS` | zeros, and how long a name may be |
//! | `FORGET`, `BATCH_FORGET` | never answered: node numbers are constant |
//! | `INTERRUPT` | `ENOSYS`: no more of them come, nothing here waits long enough |
//! | what changes something | `EROFS`, though a mount that is read-only sends none of it |
//! | everything else | `ENOSYS`: the kernel does without it from then on |
//!
//! Of the rest: `STATX` is asked only for a time of birth, and there is none. `ACCESS` is left to
//! the kernel (`default_permissions`), as are `LSEEK`, `POLL` and locks. `READDIRPLUS` is not
//! negotiated: a directory of some twenty names has no use for it. Extended attributes are none, as
//! on securityfs.
//!
//! # What the kernel does
//!
//! Names of functions are those of Linux 7.3, in `fs/fuse/`.
//!
//! * *One handshake.* `INIT` is sent when the file system is made (`fuse_send_init()`, `inode.c`),
//!   and nothing else before it is answered (`fuse_block_alloc()`, `dev.c`). Nothing of what is
//!   negotiated has to be remembered here: answers have the same form from minor version 36 on, and
//!   the size that reads of the device must have depends on `max_write` alone, which is a constant.
//! * *Takeover.* Requests that were read and not answered are with the device
//!   (`fuse_pqueue.processing`), for as long as any process has it open. `FUSE_NOTIFY_RESEND` puts
//!   them in front of those that nobody has read, with bit 63 of `unique` set
//!   (`fuse_chan_resend()`, `dev.c`). An answer is matched by the whole of `unique`
//!   (`fuse_request_find()`), so it has to have the bit, too; one without, of a server that is slower
//!   than its successor, is refused with `ENOENT` and does no harm. Until `INIT` is answered every
//!   notification is refused (`fuse_dev_do_write()`): had a server died in between, nobody could
//!   ever have `INIT` again. Hence [`Session::begin`] answers it before anybody else can have the
//!   device and before anything is mounted.
//! * *The predecessor must be gone*, waited for, not just sent a signal: a thread that is copying a
//!   request out of the kernel when `FUSE_NOTIFY_RESEND` arrives finishes that, and its request would
//!   stay unanswered. [`Session::resend`] may be called again at any time; what is under way is done
//!   twice then, which costs time and nothing else.
//! * *Killed while copying.* A page that the copy needs and that is not there is not brought in for
//!   a process that is being killed, and the request fails with `EIO` (end of `fuse_dev_do_read()`
//!   and `fuse_dev_do_write()`, `dev.c`). So both buffers are written to before they are used. What
//!   remains is a page that was swapped out or is being migrated in that moment: a service that
//!   wants to exclude the former locks its memory.
//! * *Which readers can be killed.* One whose request no server has read, at any time
//!   (`fuse_remove_pending_req()`). One whose request was read, not before it is answered: by a
//!   successor, or with `ENOTCONN` when the device is closed by all, the file system is unmounted by
//!   force, or the connection is aborted in `/sys/fs/fuse/connections`
//!   (`request_wait_answer()`, `dev.c`). Closing a file waits for nobody: `FOPEN_NOFLUSH`
//!   (`fuse_flush()`, `file.c`), and `RELEASE` is sent in the background (`fuse_file_put()`).
//! * *Direct I/O.* Each read(2) becomes requests of at most [`MAX_READ`] bytes, until one has
//!   less than was asked for (`fuse_direct_io()`, `file.c`). The size in the kernel's inode limits
//!   neither offset nor count.
//! * *mmap and splice* go through the page cache even so (`fuse_file_mmap()`,
//!   `fuse_splice_read()`), where size counts. Opening a file asks for its attributes, as those are
//!   never cached (`fuse_permission()`, `dir.c`), and drops its pages (`fuse_open()`); a size that
//!   has changed drops them, too, or a page that was the last one would have zeros where there are
//!   records now (`fuse_change_attributes_i()`, `inode.c`: not with `FUSE_EXPLICIT_INVAL_DATA`).
//!   `MAP_SHARED`, which can only be for reading, needs `FUSE_DIRECT_IO_ALLOW_MMAP`.
//! * *Errors* that the kernel does not know are refused, and their request stays unanswered
//!   (`fuse_dev_do_write()`); so what [`Files`] returns is checked.

use std::io::IoSlice;
use std::mem::size_of;

use rustix::event::poll;
use rustix::event::PollFd;
use rustix::event::PollFlags;
use rustix::fd::AsFd;
use rustix::fd::BorrowedFd;
use rustix::fd::OwnedFd;
use rustix::fs::fcntl_getfl;
use rustix::fs::fcntl_setfl;
use rustix::fs::OFlags;
use rustix::io::read;
use rustix::io::writev;
use rustix::io::Errno;
use zerocopy::FromBytes;
use zerocopy::Immutable;
use zerocopy::IntoBytes;
use zerocopy::KnownLayout;

/// The node number of the directory.
pub const ROOT: u64 = 1;

/// The most bytes that one request reads. It is what 256 pages of 4 KiB hold, the most that the
/// kernel asks for unless the sysctl `fs.fuse.max_pages_limit` says otherwise.
pub const MAX_READ: u32 = 1 << 20;

/// How long the kernel may keep a name that it has looked up, in seconds: they never change. It
/// keeps no name that does not exist.
pub const ENTRY_SECONDS: u64 = 24 * 60 * 60;

/// Something in the directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// What the kernel knows it by, and `st_ino`. It is more than [`ROOT`], and the same in every
    /// process that serves the connection.
    pub number: u64,
    /// Its name, 1 to 255 bytes without `/` and NUL.
    pub name: String,
    /// What it is.
    pub kind: Kind,
    /// Permissions, the lowest twelve bits of `st_mode`.
    pub mode: u32,
    /// Who owns it.
    pub uid: u32,
    /// The group that owns it.
    pub gid: u32,
    /// Each of its times, in seconds since 1970.
    pub time: u64,
}

/// What a [`Node`] is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A regular file, whose content is that of [`Files`].
    File,
    /// A symbolic link to this.
    Link(String),
}

/// The content of the directory.
///
/// Several threads call this at the same time. An error is the reader's error; `EIO` is given for
/// one that the kernel would not take from a file system.
pub trait Files: Sync {
    /// All there is, the same each time. No two have the same name or number.
    fn nodes(&self) -> &[Node];

    /// How many bytes the file has now. It never gets less.
    ///
    /// # Errors
    ///
    /// If that cannot be said.
    fn size(&self, node: &Node) -> Result<u64, Errno>;

    /// Appends the `size` bytes of the file that begin at `offset`. Fewer, or none, mean that the
    /// file ends there. `size` is at most [`MAX_READ`]; the offset may be behind the end.
    ///
    /// # Errors
    ///
    /// If they cannot be read. What was appended is thrown away.
    fn read(&self, node: &Node, offset: u64, size: usize, to: &mut Vec<u8>) -> Result<(), Errno>;
}

/// Why [`Session::serve`] ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The file system is not mounted any more, or its connection was aborted. It is over for good.
    Unmounted,
    /// It was told to stop. Another session can go on with the device.
    Stopped,
}

/// What went wrong with the FUSE device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A system call on it failed.
    #[error("cannot {action} the FUSE device: {errno}")]
    Device {
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        errno: Errno,
    },
    /// The handshake is not one that can be answered.
    #[error("the kernel does not begin the FUSE connection with INIT of version 7: opcode {opcode}, version {version}; is the device that of a file system just made?")]
    Handshake {
        /// Of the request that came.
        opcode: u32,
        /// Its major version, 0 if it has none.
        version: u32,
    },
}

impl Error {
    fn device(action: &'static str) -> impl Fn(Errno) -> Self {
        move |errno| Self::Device { action, errno }
    }
}

/// One connection to the kernel's FUSE, which is what an open `/dev/fuse` stands for once a file
/// system was made with it.
#[derive(Debug)]
pub struct Session {
    device: OwnedFd,
}

impl Session {
    /// Begins the connection of a file system that was just made with this device: answers `INIT`.
    /// Only after that the device may be given to others.
    ///
    /// # Errors
    ///
    /// If `INIT` is not what is waiting there, or cannot be answered.
    pub fn begin(device: OwnedFd) -> Result<Self, Error> {
        let session = Self::nonblocking(device)?;
        let mut request = buffer(REQUEST_SIZE);
        let mut payload = Vec::new();

        let length =
            read(&session.device, &mut request).map_err(Error::device("read INIT from"))?;
        let request = request.get(..length).unwrap_or_default();
        let (opcode, version) = match Request::parse(request) {
            Some(request) => {
                let version = u32::read_from_prefix(request.body).map_or(0, |(major, _)| major);
                (request.header.opcode, version)
            }
            None => (0, 0),
        };
        if opcode != op::INIT || version != MAJOR {
            return Err(Error::Handshake { opcode, version });
        }
        session
            .answer(&NoFiles, request, &mut payload)
            .map_err(Error::device("answer INIT on"))?;
        Ok(session)
    }

    /// Takes over a connection that was begun in another process, which must be gone and waited
    /// for, and has requests that it left unanswered sent again. If they cannot be, as the file
    /// system is not mounted any more, [`Session::serve`] says so.
    ///
    /// # Errors
    ///
    /// If the device is not one whose connection was begun.
    pub fn take_over(device: OwnedFd) -> Result<Self, Error> {
        let session = Self::nonblocking(device)?;

        session.resend()?;
        Ok(session)
    }

    /// Whoever has the device open shares this flag: no thread may wait for a request in read(2),
    /// where it could not be told to stop.
    fn nonblocking(device: OwnedFd) -> Result<Self, Error> {
        let flags = fcntl_getfl(&device).map_err(Error::device("ask for the flags of"))?;

        fcntl_setfl(&device, flags | OFlags::NONBLOCK)
            .map_err(Error::device("set O_NONBLOCK for"))?;
        Ok(Self { device })
    }

    /// Has all requests sent again that were read from the device and not answered.
    ///
    /// # Errors
    ///
    /// If the kernel refuses it, with `EINVAL`: it is older than 6.9, or the connection was not begun.
    pub fn resend(&self) -> Result<(), Error> {
        let message = OutHeader {
            len: length_of::<OutHeader>(0),
            error: NOTIFY_RESEND,
            unique: 0,
        };

        match rustix::io::write(&self.device, message.as_bytes()) {
            // The connection is over, which the next read tells.
            Ok(_) | Err(Errno::NODEV | Errno::NOTCONN) => Ok(()),
            // The same, as newer kernels say it.
            Err(_) if self.is_over() => Ok(()),
            Err(errno) => Err(Error::device("have unanswered requests sent again by")(
                errno,
            )),
        }
    }

    fn is_over(&self) -> bool {
        let mut events = [PollFd::new(&self.device, PollFlags::IN)];

        poll(&mut events, Some(&rustix::event::Timespec::default())).is_ok()
            && events[0].revents().contains(PollFlags::ERR)
    }

    /// Answers requests, until the file system is unmounted or `stop` is readable or closed at its
    /// other end. What was read is answered before that. Any number of threads may do this at the
    /// same time; each has buffers of some [`MAX_READ`] bytes once it was asked for as much.
    ///
    /// # Errors
    ///
    /// If the device cannot be read, written or waited for.
    pub fn serve<F: Files + ?Sized>(&self, files: &F, stop: BorrowedFd<'_>) -> Result<End, Error> {
        let mut request = buffer(REQUEST_SIZE);
        let mut payload = Vec::new();

        loop {
            let mut events = [
                PollFd::new(&self.device, PollFlags::IN),
                PollFd::from_borrowed_fd(stop, PollFlags::IN),
            ];
            match poll(&mut events, None) {
                Ok(_) => {}
                Err(Errno::INTR) => continue,
                Err(errno) => return Err(Error::device("wait for")(errno)),
            }
            if !events[1].revents().is_empty() {
                return Ok(End::Stopped);
            }
            match read(&self.device, &mut request) {
                Ok(length) => {
                    let request = request.get(..length).unwrap_or_default();
                    match self.answer(files, request, &mut payload) {
                        // Nobody waits for this answer: the request was sent again, or its reader
                        // is gone. Where it is the connection that is gone, reading tells.
                        Ok(()) | Err(Errno::NOENT) => {}
                        Err(errno) => return Err(Error::device("answer a request on")(errno)),
                    }
                }
                // Another thread was faster, or the reader was while this was under way.
                Err(Errno::AGAIN | Errno::INTR | Errno::NOENT) => {}
                Err(Errno::NODEV | Errno::CONNABORTED) => return Ok(End::Unmounted),
                Err(errno) => return Err(Error::device("read from")(errno)),
            }
        }
    }

    fn answer<F: Files + ?Sized>(
        &self,
        files: &F,
        request: &[u8],
        payload: &mut Vec<u8>,
    ) -> Result<(), Errno> {
        let Some(request) = Request::parse(request) else {
            return Ok(());
        };
        payload.clear();
        let error = match request.answer(files, payload) {
            Ok(Answer::None) => return Ok(()),
            Ok(Answer::Payload) => 0,
            Err(errno) => {
                payload.clear();
                known_to_kernel(errno)
            }
        };
        let header = OutHeader {
            len: length_of::<OutHeader>(payload.len()),
            error: -error,
            // As it came, with the bit that says that it was sent again.
            unique: request.header.unique,
        };
        let parts = [IoSlice::new(header.as_bytes()), IoSlice::new(payload)];
        writev(&self.device, &parts)?;
        Ok(())
    }
}

/// The device, to be given to whoever keeps it, or to a successor. It is closed on execve(2).
impl AsFd for Session {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }
}

/// The error's number, if `fuse_dev_do_write()` takes it.
fn known_to_kernel(errno: Errno) -> i32 {
    match errno.raw_os_error() {
        error @ 1..=511 => error,
        _ => Errno::IO.raw_os_error(),
    }
}

/// A buffer whose pages are there: zeros would be mapped when they are first written to.
fn buffer(size: usize) -> Vec<u8> {
    vec![0xff; size]
}

/// A message's length: that of its header and of what follows, some [`MAX_READ`] bytes at most.
fn length_of<Header>(payload: usize) -> u32 {
    u32::try_from(size_of::<Header>() + payload).unwrap_or(u32::MAX)
}

struct NoFiles;

impl Files for NoFiles {
    fn nodes(&self) -> &[Node] {
        &[]
    }

    fn size(&self, _node: &Node) -> Result<u64, Errno> {
        Err(Errno::NOENT)
    }

    fn read(
        &self,
        _node: &Node,
        _offset: u64,
        _size: usize,
        _to: &mut Vec<u8>,
    ) -> Result<(), Errno> {
        Err(Errno::NOENT)
    }
}

/// What the kernel sent.
struct Request<'a> {
    header: InHeader,
    body: &'a [u8],
}

enum Answer {
    /// Nobody waits for one.
    None,
    /// Success, with what is in the buffer.
    Payload,
}

impl<'a> Request<'a> {
    fn parse(bytes: &'a [u8]) -> Option<Self> {
        let (header, body) = InHeader::read_from_prefix(bytes).ok()?;

        Some(Self { header, body })
    }

    /// Writes what the kernel is to be told, after the header, to an empty buffer.
    fn answer<F: Files + ?Sized>(&self, files: &F, to: &mut Vec<u8>) -> Result<Answer, Errno> {
        match self.header.opcode {
            op::FORGET | op::BATCH_FORGET => return Ok(Answer::None),
            op::INIT => to.extend_from_slice(INIT_OUT.as_bytes()),
            op::LOOKUP => self.lookup(files, to)?,
            op::GETATTR => self.attributes(files, to)?,
            op::READLINK => match &self.node(files)?.kind {
                Kind::Link(target) => to.extend_from_slice(target.as_bytes()),
                Kind::File => return Err(Errno::INVAL),
            },
            op::OPEN => self.open(files, to)?,
            op::READ => self.read(files, to)?,
            op::OPENDIR => {
                self.directory()?;
                to.extend_from_slice(OpenOut::default().as_bytes());
            }
            op::READDIR => self.read_directory(files, to)?,
            op::STATFS => to.extend_from_slice(STATFS_OUT.as_bytes()),
            op::RELEASE | op::RELEASEDIR | op::DESTROY => {}
            op::SETATTR
            | op::SYMLINK
            | op::MKNOD
            | op::MKDIR
            | op::UNLINK
            | op::RMDIR
            | op::RENAME
            | op::LINK
            | op::WRITE
            | op::SETXATTR
            | op::REMOVEXATTR
            | op::CREATE
            | op::FALLOCATE
            | op::RENAME2
            | op::COPY_FILE_RANGE
            | op::TMPFILE
            | op::COPY_FILE_RANGE_64 => return Err(Errno::ROFS),
            _ => return Err(Errno::NOSYS),
        }
        Ok(Answer::Payload)
    }

    fn node<'f, F: Files + ?Sized>(&self, files: &'f F) -> Result<&'f Node, Errno> {
        match self.header.nodeid {
            ROOT => Err(Errno::ISDIR),
            number => files
                .nodes()
                .iter()
                .find(|node| node.number == number)
                // Another version of the program had it.
                .ok_or(Errno::STALE),
        }
    }

    fn directory(&self) -> Result<(), Errno> {
        match self.header.nodeid {
            ROOT => Ok(()),
            _ => Err(Errno::NOTDIR),
        }
    }

    /// The structure that the request begins with.
    fn body<T: FromBytes>(&self) -> Result<T, Errno> {
        match T::read_from_prefix(self.body) {
            Ok((body, _)) => Ok(body),
            Err(_) => Err(Errno::INVAL),
        }
    }

    fn lookup<F: Files + ?Sized>(&self, files: &F, to: &mut Vec<u8>) -> Result<(), Errno> {
        self.directory()?;
        let name = self.body.split(|byte| *byte == 0).next();
        let node = files
            .nodes()
            .iter()
            .find(|node| Some(node.name.as_bytes()) == name)
            .ok_or(Errno::NOENT)?;
        let entry = EntryOut {
            nodeid: node.number,
            entry_valid: ENTRY_SECONDS,
            attr: attributes_of(files, node)?,
            ..EntryOut::default()
        };
        to.extend_from_slice(entry.as_bytes());
        Ok(())
    }

    fn attributes<F: Files + ?Sized>(&self, files: &F, to: &mut Vec<u8>) -> Result<(), Errno> {
        let attr = match self.header.nodeid {
            ROOT => ROOT_ATTR,
            _ => attributes_of(files, self.node(files)?)?,
        };
        let attributes = AttrOut {
            attr,
            ..AttrOut::default()
        };
        to.extend_from_slice(attributes.as_bytes());
        Ok(())
    }

    fn open<F: Files + ?Sized>(&self, files: &F, to: &mut Vec<u8>) -> Result<(), Errno> {
        self.node(files)?;
        let open: OpenIn = self.body()?;
        if open.flags & O_ACCMODE != O_RDONLY {
            return Err(Errno::ROFS);
        }
        let out = OpenOut {
            open_flags: FOPEN_DIRECT_IO | FOPEN_NOFLUSH,
            ..OpenOut::default()
        };
        to.extend_from_slice(out.as_bytes());
        Ok(())
    }

    fn read<F: Files + ?Sized>(&self, files: &F, to: &mut Vec<u8>) -> Result<(), Errno> {
        let node = self.node(files)?;
        let read: ReadIn = self.body()?;
        let size = read.size.min(MAX_READ) as usize;

        if node.kind != Kind::File {
            return Err(Errno::INVAL);
        }
        files.read(node, read.offset, size, to)?;
        // More than was asked for would be refused, and the reader would wait for ever.
        to.truncate(size);
        Ok(())
    }

    fn read_directory<F: Files + ?Sized>(&self, files: &F, to: &mut Vec<u8>) -> Result<(), Errno> {
        self.directory()?;
        let read: ReadIn = self.body()?;
        let size = read.size.min(MAX_READ) as usize;
        let dots = [(ROOT, DT_DIR, "."), (ROOT, DT_DIR, "..")];
        let nodes = files.nodes().iter().map(|node| {
            let kind = match node.kind {
                Kind::File => DT_REG,
                Kind::Link(_) => DT_LNK,
            };
            (node.number, kind, node.name.as_str())
        });
        // An entry's offset is where the next one is found.
        let entries = (1..).zip(dots.into_iter().chain(nodes));

        for (off, (ino, kind, name)) in entries {
            if off <= read.offset {
                continue;
            }
            let dirent = Dirent {
                ino,
                off,
                namelen: length_of::<[u8; 0]>(name.len()),
                kind,
            };
            let length = (size_of::<Dirent>() + name.len()).next_multiple_of(8);
            if to.len() + length > size {
                break;
            }
            let end = to.len() + length;
            to.extend_from_slice(dirent.as_bytes());
            to.extend_from_slice(name.as_bytes());
            to.resize(end, 0);
        }
        Ok(())
    }
}

fn attributes_of<F: Files + ?Sized>(files: &F, node: &Node) -> Result<Attr, Errno> {
    let (kind, size) = match &node.kind {
        Kind::File => (S_IFREG, files.size(node)?),
        Kind::Link(target) => (S_IFLNK, target.len() as u64),
    };

    Ok(Attr {
        ino: node.number,
        size,
        blocks: size.div_ceil(512),
        atime: node.time,
        mtime: node.time,
        ctime: node.time,
        mode: kind | node.mode & 0o7777,
        nlink: 1,
        uid: node.uid,
        gid: node.gid,
        blksize: BLOCK_SIZE,
        ..Attr::default()
    })
}

// What follows is of include/uapi/linux/fuse.h, and of the headers that it refers to.

const MAJOR: u32 = 7;
/// That of FUSE_HAS_RESEND.
const MINOR: u32 = 40;

/// What reads of the device must have room for, `FUSE_MIN_READ_BUFFER`: twice `max_write`.
const REQUEST_SIZE: usize = 8192;
const MAX_WRITE: u32 = 4096;
const MAX_PAGES: u16 = 256;
/// What programs that go by `st_blksize` read at once.
const BLOCK_SIZE: u32 = 128 << 10;

const NOTIFY_RESEND: i32 = 7;

const FOPEN_DIRECT_IO: u32 = 1 << 0;
const FOPEN_NOFLUSH: u32 = 1 << 5;

const INIT_ASYNC_READ: u64 = 1 << 0;
const INIT_AUTO_INVAL_DATA: u64 = 1 << 12;
const INIT_PARALLEL_DIROPS: u64 = 1 << 18;
const INIT_MAX_PAGES: u64 = 1 << 22;
const INIT_CACHE_SYMLINKS: u64 = 1 << 23;
const INIT_EXT: u64 = 1 << 30;
const INIT_DIRECT_IO_ALLOW_MMAP: u64 = 1 << 36;
const INIT_HAS_RESEND: u64 = 1 << 39;

const INIT_FLAGS: u64 = INIT_ASYNC_READ
    | INIT_AUTO_INVAL_DATA
    | INIT_PARALLEL_DIROPS
    | INIT_MAX_PAGES
    | INIT_CACHE_SYMLINKS
    | INIT_EXT
    | INIT_DIRECT_IO_ALLOW_MMAP
    | INIT_HAS_RESEND;

const O_ACCMODE: u32 = 3;
const O_RDONLY: u32 = 0;

const S_IFDIR: u32 = 0o040_000;
const S_IFREG: u32 = 0o100_000;
const S_IFLNK: u32 = 0o120_000;

const DT_DIR: u32 = 4;
const DT_REG: u32 = 8;
const DT_LNK: u32 = 10;

/// Requests, `enum fuse_opcode`: those that are answered with something else than `ENOSYS`.
mod op {
    pub(super) const LOOKUP: u32 = 1;
    pub(super) const FORGET: u32 = 2;
    pub(super) const GETATTR: u32 = 3;
    pub(super) const SETATTR: u32 = 4;
    pub(super) const READLINK: u32 = 5;
    pub(super) const SYMLINK: u32 = 6;
    pub(super) const MKNOD: u32 = 8;
    pub(super) const MKDIR: u32 = 9;
    pub(super) const UNLINK: u32 = 10;
    pub(super) const RMDIR: u32 = 11;
    pub(super) const RENAME: u32 = 12;
    pub(super) const LINK: u32 = 13;
    pub(super) const OPEN: u32 = 14;
    pub(super) const READ: u32 = 15;
    pub(super) const WRITE: u32 = 16;
    pub(super) const STATFS: u32 = 17;
    pub(super) const RELEASE: u32 = 18;
    pub(super) const SETXATTR: u32 = 21;
    pub(super) const REMOVEXATTR: u32 = 24;
    pub(super) const INIT: u32 = 26;
    pub(super) const OPENDIR: u32 = 27;
    pub(super) const READDIR: u32 = 28;
    pub(super) const RELEASEDIR: u32 = 29;
    pub(super) const CREATE: u32 = 35;
    pub(super) const DESTROY: u32 = 38;
    pub(super) const BATCH_FORGET: u32 = 42;
    pub(super) const FALLOCATE: u32 = 43;
    pub(super) const RENAME2: u32 = 45;
    pub(super) const COPY_FILE_RANGE: u32 = 47;
    pub(super) const TMPFILE: u32 = 51;
    pub(super) const COPY_FILE_RANGE_64: u32 = 53;
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct InHeader {
    len: u32,
    opcode: u32,
    unique: u64,
    nodeid: u64,
    uid: u32,
    gid: u32,
    pid: u32,
    total_extlen: u16,
    padding: u16,
}

#[derive(Clone, Copy, IntoBytes, Immutable)]
#[repr(C)]
struct OutHeader {
    len: u32,
    error: i32,
    unique: u64,
}

#[derive(Clone, Copy, Default, IntoBytes, Immutable)]
#[repr(C)]
struct Attr {
    ino: u64,
    size: u64,
    blocks: u64,
    atime: u64,
    mtime: u64,
    ctime: u64,
    atimensec: u32,
    mtimensec: u32,
    ctimensec: u32,
    mode: u32,
    nlink: u32,
    uid: u32,
    gid: u32,
    rdev: u32,
    blksize: u32,
    flags: u32,
}

/// Everybody may see what there is; who may read it is up to each file.
const ROOT_ATTR: Attr = Attr {
    ino: ROOT,
    size: 0,
    blocks: 0,
    atime: 0,
    mtime: 0,
    ctime: 0,
    atimensec: 0,
    mtimensec: 0,
    ctimensec: 0,
    mode: S_IFDIR | 0o555,
    nlink: 2,
    uid: 0,
    gid: 0,
    rdev: 0,
    blksize: 4096,
    flags: 0,
};

#[derive(Clone, Copy, Default, IntoBytes, Immutable)]
#[repr(C)]
struct EntryOut {
    nodeid: u64,
    generation: u64,
    entry_valid: u64,
    attr_valid: u64,
    entry_valid_nsec: u32,
    attr_valid_nsec: u32,
    attr: Attr,
}

#[derive(Clone, Copy, Default, IntoBytes, Immutable)]
#[repr(C)]
struct AttrOut {
    attr_valid: u64,
    attr_valid_nsec: u32,
    dummy: u32,
    attr: Attr,
}

#[derive(Clone, Copy, FromBytes)]
#[repr(C)]
struct OpenIn {
    flags: u32,
    _open_flags: u32,
}

#[derive(Clone, Copy, Default, IntoBytes, Immutable)]
#[repr(C)]
struct OpenOut {
    fh: u64,
    open_flags: u32,
    backing_id: i32,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct ReadIn {
    fh: u64,
    offset: u64,
    size: u32,
    read_flags: u32,
    lock_owner: u64,
    flags: u32,
    padding: u32,
}

/// Without the name that follows.
#[derive(Clone, Copy, IntoBytes, Immutable)]
#[repr(C)]
struct Dirent {
    ino: u64,
    off: u64,
    namelen: u32,
    kind: u32,
}

#[derive(Clone, Copy, IntoBytes, Immutable)]
#[repr(C)]
struct StatfsOut {
    blocks: u64,
    bfree: u64,
    bavail: u64,
    files: u64,
    ffree: u64,
    bsize: u32,
    namelen: u32,
    frsize: u32,
    padding: u32,
    spare: [u32; 6],
}

const STATFS_OUT: StatfsOut = StatfsOut {
    blocks: 0,
    bfree: 0,
    bavail: 0,
    files: 0,
    ffree: 0,
    bsize: 4096,
    namelen: 255,
    frsize: 4096,
    padding: 0,
    spare: [0; 6],
};

#[derive(Clone, Copy, IntoBytes, Immutable)]
#[repr(C)]
struct InitOut {
    major: u32,
    minor: u32,
    max_readahead: u32,
    flags: u32,
    max_background: u16,
    congestion_threshold: u16,
    max_write: u32,
    time_gran: u32,
    max_pages: u16,
    map_alignment: u16,
    flags2: u32,
    max_stack_depth: u32,
    request_timeout: u16,
    unused: [u16; 11],
}

/// Of limits that are 0 the kernel takes its own. Flags that it does not know it ignores.
const INIT_OUT: InitOut = InitOut {
    major: MAJOR,
    minor: MINOR,
    max_readahead: MAX_READ,
    // Both halves of it.
    #[allow(clippy::cast_possible_truncation)]
    flags: INIT_FLAGS as u32,
    max_background: 0,
    congestion_threshold: 0,
    max_write: MAX_WRITE,
    time_gran: 1,
    max_pages: MAX_PAGES,
    map_alignment: 0,
    flags2: (INIT_FLAGS >> 32) as u32,
    max_stack_depth: 0,
    request_timeout: 0,
    unused: [0; 11],
};

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    struct Two([Node; 2]);

    impl Two {
        fn new() -> Self {
            let node = |number, name: &str, kind| Node {
                number,
                name: name.into(),
                kind,
                mode: 0o440,
                uid: 3,
                gid: 4,
                time: 5,
            };
            Self([
                node(2, "file", Kind::File),
                node(3, "link", Kind::Link("file".into())),
            ])
        }
    }

    const CONTENT: &[u8] = b"0123456789";

    impl Files for Two {
        fn nodes(&self) -> &[Node] {
            &self.0
        }

        fn size(&self, _node: &Node) -> Result<u64, Errno> {
            Ok(CONTENT.len() as u64)
        }

        fn read(
            &self,
            _node: &Node,
            offset: u64,
            size: usize,
            to: &mut Vec<u8>,
        ) -> Result<(), Errno> {
            if offset == 77 {
                // Against the contract.
                to.resize(size + 1, 0);
                return Ok(());
            }
            let rest = CONTENT.get(offset as usize..).unwrap_or_default();
            to.extend_from_slice(&rest[..size.min(rest.len())]);
            Ok(())
        }
    }

    fn ask(opcode: u32, nodeid: u64, body: &[u8]) -> Result<Option<Vec<u8>>, Errno> {
        let header = InHeader {
            len: 0,
            opcode,
            unique: 9,
            nodeid,
            uid: 0,
            gid: 0,
            pid: 0,
            total_extlen: 0,
            padding: 0,
        };
        let bytes = [header.as_bytes(), body].concat();
        let mut payload = Vec::new();

        Ok(
            match Request::parse(&bytes)
                .unwrap()
                .answer(&Two::new(), &mut payload)?
            {
                Answer::None => None,
                Answer::Payload => Some(payload),
            },
        )
    }

    fn read_in(offset: u64, size: u32) -> Vec<u8> {
        let read = ReadIn {
            fh: 0,
            offset,
            size,
            read_flags: 0,
            lock_owner: 0,
            flags: 0,
            padding: 0,
        };
        read.as_bytes().to_vec()
    }

    #[test]
    fn sizes_are_those_of_the_kernel() {
        // sizeof() of the structures in include/uapi/linux/fuse.h.
        assert_eq!(size_of::<InHeader>(), 40);
        assert_eq!(size_of::<OutHeader>(), 16);
        assert_eq!(size_of::<Attr>(), 88);
        assert_eq!(size_of::<EntryOut>(), 128);
        assert_eq!(size_of::<AttrOut>(), 104);
        assert_eq!(size_of::<OpenIn>(), 8);
        assert_eq!(size_of::<OpenOut>(), 16);
        assert_eq!(size_of::<ReadIn>(), 40);
        assert_eq!(size_of::<Dirent>(), 24);
        assert_eq!(size_of::<StatfsOut>(), 80);
        assert_eq!(size_of::<InitOut>(), 64);
    }

    #[test]
    fn the_device_is_read_with_the_size_that_the_kernel_wants() {
        // fuse_dev_do_read(): fuse_in_header, fuse_write_in and max_write.
        assert!(REQUEST_SIZE >= 40 + 40 + MAX_WRITE as usize);
    }

    #[test]
    fn reads_end_where_the_file_does() {
        let read = |offset, size| ask(op::READ, 2, &read_in(offset, size)).unwrap().unwrap();

        assert_eq!(read(0, 4), b"0123");
        assert_eq!(read(8, 4), b"89");
        assert_eq!(read(10, 4), b"");
        assert_eq!(read(u64::MAX, 4), b"");
        assert_eq!(read(77, 4).len(), 4);
    }

    #[test]
    fn nothing_is_written() {
        for opcode in [op::SETATTR, op::WRITE, op::CREATE, op::UNLINK, op::SETXATTR] {
            assert_eq!(ask(opcode, 2, &[0; 128]), Err(Errno::ROFS));
        }
        for flags in [1_u32, 2, 0o1001] {
            let body = [flags.to_ne_bytes(), [0; 4]].concat();
            assert_eq!(ask(op::OPEN, 2, &body), Err(Errno::ROFS));
        }
    }

    #[test]
    fn names_are_found_as_a_whole() {
        for name in ["file", "link"] {
            assert!(ask(op::LOOKUP, ROOT, format!("{name}\0").as_bytes()).is_ok());
        }
        for name in ["", "fil", "files", ".", "..", "file/"] {
            let answer = ask(op::LOOKUP, ROOT, format!("{name}\0").as_bytes());
            assert_eq!(answer, Err(Errno::NOENT), "{name}");
        }
        assert_eq!(ask(op::LOOKUP, 2, b"file\0"), Err(Errno::NOTDIR));
    }

    #[test]
    fn a_directory_is_read_in_any_pieces() {
        let whole = ask(op::READDIR, ROOT, &read_in(0, 4096)).unwrap().unwrap();
        let mut pieces = Vec::new();

        // One entry fits, never two.
        for offset in 0..4 {
            pieces.extend(
                ask(op::READDIR, ROOT, &read_in(offset, 40))
                    .unwrap()
                    .unwrap(),
            );
        }
        assert_eq!(pieces, whole);
        assert_eq!(whole.len(), 4 * 32);
        let end = ask(op::READDIR, ROOT, &read_in(4, 4096)).unwrap().unwrap();
        assert!(end.is_empty());
    }

    #[test]
    fn errors_are_ones_that_the_kernel_takes() {
        assert_eq!(known_to_kernel(Errno::NOENT), 2);
        for error in [512, 524, 4095] {
            assert_eq!(known_to_kernel(Errno::from_raw_os_error(error)), 5);
        }
    }

    #[test]
    fn nobody_waits_for_an_answer_to_forget() {
        assert_eq!(ask(op::FORGET, 2, &[0; 8]), Ok(None));
        assert_eq!(ask(op::BATCH_FORGET, 0, &[0; 8]), Ok(None));
    }

    proptest! {
        /// Whatever comes: no panic, and no more than the kernel takes.
        #[test]
        fn any_request_is_answered(
            opcode in prop_oneof![0_u32..64, any::<u32>()],
            nodeid in prop_oneof![0_u64..5, any::<u64>()],
            body in proptest::collection::vec(any::<u8>(), 0..80),
        ) {
            if let Ok(Some(payload)) = ask(opcode, nodeid, &body) {
                prop_assert!(payload.len() <= MAX_READ as usize);
            }
        }
    }
}
