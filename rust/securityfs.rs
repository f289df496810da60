// SPDX-License-Identifier: GPL-2.0

//! A directory of securityfs with files whose content is text, made when it is read, and to which
//! requests are written, one `write(2)` each.
//!
//! securityfs has no handshake between opening and removing as debugfs has, and a file that is
//! opened while its module goes away ends in a `WARN_ON()` of `do_dentry_open()` (`fs/open.c`), or
//! worse. So inodes here have a `file_operations` without owner, which only knows how to open: it
//! takes a reference on the module, or fails, and then gives the file its real `file_operations`,
//! as `misc_open()` does (`drivers/char/misc.c`). When a [`Directory`] is dropped, the inodes
//! become bad, and whoever has seen that `file_operations` before, and may be held up for as long
//! as fanotify likes, finds another `open` in it. So its memory outlives the module if need be; its
//! code does not.
//!
//! Files that requests are written to can be opened exclusively (`O_EXCL`): nobody else has any of
//! them open for writing then. No path is created by such an open, so that the flag means nothing
//! else.
//!
//! Not supported: subdirectories, symbolic links, `mmap(2)`, `splice(2)`.

use super::ffi;
use crate::{text::Text, turn::Turn};
use core::{
    marker::PhantomData,
    mem::ManuallyDrop,
    ptr::NonNull, //
};
use kernel::{
    bindings,
    error::{
        from_err_ptr,
        from_result,
        to_result, //
    },
    ffi::{
        c_char,
        c_int, //
    },
    fs::Kiocb,
    iov::IovIterSource,
    new_mutex,
    prelude::*,
    str::CStr,
    sync::{
        atomic::{
            Acquire,
            Atomic,
            Release, //
        },
        Arc,
        Mutex, //
    },
    types::ForeignOwnable,
    uaccess::{
        UserPtr,
        UserSlice, //
    },
};

/// What the files of a directory do.
pub(crate) trait Files: Send + Sync + 'static {
    /// The most bytes that a request may have.
    const MAX_REQUEST: usize;

    /// Which file it is.
    type File: Copy + Send + Sync + 'static;

    /// Writes the text of a file, as it is now.
    fn show(self: &Arc<Self>, file: Self::File, text: &mut Text) -> Result;

    /// Carries out a request, or refuses one that could not be read: `E2BIG` if it is too long,
    /// `EINVAL` if it is not the whole of one write. Writes what can be read back on the same
    /// descriptor to `reply`, whatever the result is.
    fn store(
        self: &Arc<Self>,
        file: Self::File,
        request: Result<&[u8]>,
        reply: &mut Text,
    ) -> Result;
}

/// Who has files that requests are written to open for writing.
struct Writers {
    /// How many descriptors.
    opened: usize,
    /// Whether the one that there is keeps all others out.
    exclusive: bool,
}

/// A descriptor that is counted among the [`Writers`].
struct Writer(Arc<Mutex<Writers>>);

impl Writer {
    /// Counts a descriptor in, unless another one is in the way.
    ///
    /// One that is exclusive wants to be the only one, and keeps others out as long as it is there.
    fn enter(writers: &Arc<Mutex<Writers>>, exclusive: bool) -> Result<Self> {
        let mut now = writers.lock();

        if now.exclusive || (exclusive && now.opened != 0) {
            return Err(EBUSY);
        }
        now.opened = now.opened.checked_add(1).ok_or(EBUSY)?;
        now.exclusive = exclusive;
        Ok(Self(writers.clone()))
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let mut now = self.0.lock();

        now.opened = now.opened.saturating_sub(1);
        // Whoever is exclusive was the only one.
        now.exclusive = false;
    }
}

/// A file of a directory.
struct Entry<T: Files> {
    files: Arc<T>,
    file: T::File,
    /// Those of all files that requests are written to, if this is one of them.
    writers: Option<Arc<Mutex<Writers>>>,
    /// The operations of an opened file, with the module as owner.
    opened: *const bindings::file_operations,
    /// Whether all files are there, and so the module is sure to stay for whoever opens one.
    ready: Atomic<bool>,
}

/// A file that was made.
struct Made<T: Files> {
    entry: KBox<Entry<T>>,
    /// Our reference on its inode.
    inode: NonNull<bindings::inode>,
}

/// What a descriptor has of its own.
#[pin_data]
struct Descriptor {
    /// One read or write at a time. A request may take long, and whoever waits for it can be
    /// killed.
    turn: Arc<Turn>,
    /// What is read. Whoever has the turn is the only one to lock it.
    #[pin]
    reading: Mutex<Reading>,
    /// Only there to be dropped.
    _writer: Option<Writer>,
}

/// What is read from a descriptor.
struct Reading {
    /// The text, once there is one.
    text: Option<Text>,
    /// Whether it is the reply to a request.
    reply: bool,
}

/// A directory with its files.
///
/// # Invariants
///
/// - `dir` is a directory of securityfs that was not removed yet.
/// - Each of `made` is a file in it, whose inode has the entry as `i_private` and `closed` as
///   `i_fop`.
/// - `_opened` and the entries stay where they are until no file is open and none can be opened;
///   `closed` until nobody has a path to one.
///
/// It is owned by the module's root, which drops it before the module goes.
pub(super) struct Directory<T: Files> {
    dir: NonNull<bindings::dentry>,
    made: KVec<Made<T>>,
    /// The operations of the inodes.
    closed: ManuallyDrop<KBox<bindings::file_operations>>,
    _opened: KBox<bindings::file_operations>,
}

// SAFETY: Whatever is pointed to may be used by any task.
unsafe impl<T: Files> Send for Directory<T> {}
// SAFETY: A shared reference offers nothing.
unsafe impl<T: Files> Sync for Directory<T> {}

impl<T: Files> Directory<T> {
    /// Makes a directory in the root of securityfs, and its files: name, mode and which it is.
    ///
    /// Files can be opened once all are made. Nothing that can fail may come after this when a
    /// module is loaded, for an open file does not keep a module that fails to load.
    pub(super) fn new(
        module: &'static ThisModule,
        name: &'static CStr,
        files: &Arc<T>,
        list: &[(&'static CStr, u16, T::File)],
    ) -> Result<Self> {
        let opened = KBox::new(
            bindings::file_operations {
                owner: module.as_ptr(),
                ..Operations::<T>::OPENED
            },
            GFP_KERNEL,
        )?;
        let closed = KBox::new(Operations::<T>::CLOSED, GFP_KERNEL)?;
        let made = KVec::with_capacity(list.len(), GFP_KERNEL)?;
        // SAFETY: `name` is a string, and null stands for the root.
        let dir = from_err_ptr(unsafe {
            bindings::securityfs_create_dir(name.as_char_ptr(), core::ptr::null_mut())
        })?;

        // INVARIANT: The directory was just made and has no files.
        let mut this = Self {
            dir: NonNull::new(dir).ok_or(ENODEV)?,
            made,
            closed: ManuallyDrop::new(closed),
            _opened: opened,
        };
        let writers = Arc::pin_init(
            new_mutex!(
                Writers {
                    opened: 0,
                    exclusive: false,
                },
                "ima_trim::Writers"
            ),
            GFP_KERNEL,
        )?;
        for (name, mode, file) in list {
            let writers = (mode & MAY_WRITE != 0).then(|| writers.clone());

            this.create(name, *mode, *file, files, writers)?;
        }
        for made in &this.made {
            made.entry.ready.store(true, Release);
        }
        Ok(this)
    }

    /// Makes a file.
    fn create(
        &mut self,
        name: &'static CStr,
        mode: u16,
        file: T::File,
        files: &Arc<T>,
        writers: Option<Arc<Mutex<Writers>>>,
    ) -> Result {
        let entry = KBox::new(
            Entry {
                files: files.clone(),
                file,
                writers,
                opened: &raw const *self._opened,
                ready: Atomic::new(false),
            },
            GFP_KERNEL,
        )?;

        // SAFETY: `name` is a string, the directory is one by the type's invariants. The entry is
        // in memory of its own, which `made` owns, and so are the operations. `drop` frees them
        // when nobody uses them any more.
        let dentry = from_err_ptr(unsafe {
            bindings::securityfs_create_file(
                name.as_char_ptr(),
                mode,
                self.dir.as_ptr(),
                (&raw const *entry).cast_mut().cast(),
                &raw const **self.closed,
            )
        })?;
        // SAFETY: securityfs gives a dentry with an inode (`securityfs_create_dentry()`,
        // `security/inode.c`), and both stay until `securityfs_remove()`. The reference is given
        // back in `drop`.
        let inode = unsafe {
            bindings::ihold((*dentry).d_inode);
            NonNull::new_unchecked((*dentry).d_inode)
        };
        // INVARIANT: The file was just made. There is room, so this does not fail.
        self.made
            .push_within_capacity(Made { entry, inode })
            .map_err(|_| ENOMEM)
    }
}

impl<T: Files> Drop for Directory<T> {
    fn drop(&mut self) {
        // SAFETY: By the type's invariants. Takes the files along.
        unsafe { bindings::securityfs_remove(self.dir.as_ptr()) };

        let closed = &raw mut **self.closed;
        for made in &self.made {
            // SAFETY: We have a reference on the inode, and `closed` is what its `i_fop` is.
            unsafe { ffi::ima_trim_inode_retire(made.inode.as_ptr(), closed) };
        }
        // Whoever has read `open()` below in `closed` comes out of it without having slept, as
        // there is no reference on the module to be had: a file that is open has one, and then this
        // does not run, or the module is not loaded yet, and then the files are not ready. Tasks
        // RCU waits until each task has slept once, or has left the kernel.
        ffi::ima_trim_synchronize_rcu_tasks();

        let mut in_use = false;
        for made in &self.made {
            // SAFETY: We have a reference on the inode, and give it back.
            unsafe {
                in_use |= ffi::ima_trim_inode_shared(made.inode.as_ptr());
                bindings::iput(made.inode.as_ptr());
            }
        }
        if in_use {
            // Somebody has a path to a file, and may be on the way to `open` in `closed`, held up
            // by fanotify. That can take as long as they like, so it is not waited for.
            //
            // SAFETY: It was allocated by `kmalloc()`, and is never freed.
            unsafe { ffi::ima_trim_leak(closed.cast()) };
        } else {
            // SAFETY: It is not used again. Who opens a file has a reference on its inode, through
            // the path, so nobody does: the inodes have had other operations since before the look
            // at them.
            unsafe { ManuallyDrop::drop(&mut self.closed) };
        }
    }
}

/// The write bit of a file's owner.
const MAY_WRITE: u16 = 0o200;

/// The file operations.
struct Operations<T>(PhantomData<T>);

impl<T: Files> Operations<T> {
    /// Those of an inode, until the directory goes: without owner, and all they do is to open.
    const CLOSED: bindings::file_operations = bindings::file_operations {
        open: Some(Self::open),
        // SAFETY: All of its fields may be zero: null pointers, and no flags.
        ..unsafe { core::mem::zeroed() }
    };

    /// Those of an open file, which the directory adds the owner to.
    ///
    /// All parts of a `writev(2)` come in one call of `write_iter`, and so are one request; `write`
    /// would be called for each. There is no `read_iter`: so `__kernel_read()` (`fs/read_write.c`)
    /// refuses to read the file, and IMA does not measure its content.
    const OPENED: bindings::file_operations = bindings::file_operations {
        read: Some(Self::read),
        write_iter: Some(Self::write_iter),
        llseek: Some(bindings::default_llseek),
        release: Some(Self::release),
        // SAFETY: As above.
        ..unsafe { core::mem::zeroed() }
    };

    /// The entry of an inode.
    ///
    /// # Safety
    ///
    /// `inode` is one that a [`Directory`] of this type made, opened or being opened.
    unsafe fn entry<'a>(inode: *const bindings::inode) -> &'a Entry<T> {
        // SAFETY: By the invariants of `Directory` `i_private` is the entry, which is freed only
        // after nobody can be in one of these functions any more.
        unsafe { &*(*inode).i_private.cast::<Entry<T>>() }
    }

    /// # Safety
    ///
    /// Only to be called by `do_dentry_open()` (`fs/open.c`).
    unsafe extern "C" fn open(inode: *mut bindings::inode, file: *mut bindings::file) -> c_int {
        // SAFETY: `inode` is that of the file, being opened.
        let entry = unsafe { Self::entry(inode) };

        from_result(|| {
            if !entry.ready.load(Acquire) {
                return Err(ENODEV);
            }
            // SAFETY: `file` is being opened and has operations without owner; those it gets live
            // as long as the directory.
            to_result(unsafe { ffi::ima_trim_file_pin(file, entry.opened) })?;

            // SAFETY: `file` is valid; `do_dentry_open()` takes the flag away after this.
            let (writes, exclusive) = unsafe {
                (
                    ffi::ima_trim_file_writes(file),
                    (*file).f_flags & bindings::O_EXCL != 0,
                )
            };
            // SAFETY: The function has no requirements.
            if writes && !unsafe { bindings::capable(bindings::CAP_SYS_ADMIN as c_int) } {
                return Err(EPERM);
            }
            let writer = match &entry.writers {
                Some(writers) if writes => Some(Writer::enter(writers, exclusive)?),
                _ => None,
            };

            let descriptor = KBox::try_pin_init(
                try_pin_init!(Descriptor {
                    turn: Turn::new()?,
                    reading <- new_mutex!(
                        Reading {
                            text: None,
                            reply: false,
                        },
                        "ima_trim::Reading"
                    ),
                    _writer: writer,
                }),
                GFP_KERNEL_ACCOUNT,
            )?;
            // SAFETY: `file` is valid, and `private_data` the driver's own.
            unsafe { (*file).private_data = descriptor.into_foreign() };
            Ok(0)
        })
    }

    /// What belongs to a descriptor.
    ///
    /// # Safety
    ///
    /// `file` is one that `open` succeeded for and that is not yet released.
    unsafe fn descriptor<'a>(file: *const bindings::file) -> Pin<&'a Descriptor> {
        // SAFETY: `open` put it there, and it stays until `release`.
        unsafe { <Pin<KBox<Descriptor>> as ForeignOwnable>::borrow((*file).private_data) }
    }

    /// # Safety
    ///
    /// Only to be called by the VFS, for a file that `open` succeeded for.
    unsafe extern "C" fn release(_: *mut bindings::inode, file: *mut bindings::file) -> c_int {
        // SAFETY: `open` put it there, and nobody uses it any more.
        drop(unsafe {
            <Pin<KBox<Descriptor>> as ForeignOwnable>::from_foreign((*file).private_data)
        });
        0
    }

    /// # Safety
    ///
    /// Only to be called by the VFS, for a file that `open` succeeded for.
    unsafe extern "C" fn read(
        file: *mut bindings::file,
        buffer: *mut c_char,
        count: usize,
        position: *mut bindings::loff_t,
    ) -> isize {
        // SAFETY: `file` is open, and `position` valid for this call.
        let (entry, descriptor, position) = unsafe {
            (
                Self::entry((*file).f_inode),
                Self::descriptor(file),
                &mut *position,
            )
        };

        returned(|| {
            let _turn = descriptor.turn.take()?;
            let mut reading = descriptor.reading.lock();

            if !reading.reply && (*position == 0 || reading.text.is_none()) {
                let mut text = Text::new();

                entry.files.show(entry.file, &mut text)?;
                reading.text = Some(text);
            }
            let text = reading.text.as_ref().map_or(&[][..], Text::as_bytes);
            UserSlice::new(UserPtr::from_ptr(buffer.cast()), count)
                .writer()
                .write_slice_file(text, position)
        })
    }

    /// # Safety
    ///
    /// Only to be called by the VFS, for a file that `open` succeeded for.
    unsafe extern "C" fn write_iter(
        kiocb: *mut bindings::kiocb,
        iter: *mut bindings::iov_iter,
    ) -> isize {
        // SAFETY: Both are valid for this call, `iter` is a source, and the file is open: `open`
        // has left a descriptor with it.
        let (file, call, source) = unsafe {
            (
                (*kiocb).ki_filp,
                Kiocb::<Pin<KBox<Descriptor>>>::from_raw(kiocb),
                IovIterSource::from_raw(iter),
            )
        };
        // SAFETY: The file is open.
        let entry = unsafe { Self::entry((*file).f_inode) };
        let (descriptor, position) = (call.file(), call.ki_pos());
        // SAFETY: `file` is valid and the user namespace is static. The functions have no other
        // requirements.
        let capable = unsafe {
            bindings::file_ns_capable(
                file,
                &raw mut bindings::init_user_ns,
                bindings::CAP_SYS_ADMIN as c_int,
            ) && bindings::capable(bindings::CAP_SYS_ADMIN as c_int)
        };

        returned(|| {
            if !capable {
                return Err(EPERM);
            }

            let count = source.len();
            let mut bytes = KVVec::new();
            let request = if position != 0 {
                Err(EINVAL)
            } else if count > T::MAX_REQUEST {
                Err(E2BIG)
            } else {
                source
                    .copy_from_iter_vec(&mut bytes, GFP_KERNEL)
                    .and_then(|copied| (copied == count).then_some(()).ok_or(EFAULT))
                    .map(|()| bytes.as_slice())
            };

            let _turn = descriptor.turn.take()?;
            let mut reading = descriptor.reading.lock();

            reading.reply = true;
            // The position stays, so that the next read gives the reply from its beginning.
            entry
                .files
                .store(entry.file, request, reading.text.insert(Text::new()))?;
            Ok(count)
        })
    }
}

/// The return value of a `read` or a `write`.
fn returned(call: impl FnOnce() -> Result<usize>) -> isize {
    match call() {
        // The VFS limits counts to less than `isize::MAX` (`MAX_RW_COUNT`).
        Ok(count) => count as isize,
        Err(error) => error.to_errno() as isize,
    }
}
