// SPDX-License-Identifier: GPL-2.0

//! What is left of the archive when any of its system calls fails, or is the last one.
//!
//! Everything that needs no such call is in `tests/archive.rs`.

use std::fs;
use std::os::fd::AsRawFd;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::path::PathBuf;
use std::sync::mpsc;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use rustix::fs::Mode;
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::io::Result;

use crate::archive::calls::Calls;
use crate::archive::calls::Kernel;
use crate::archive::Archive;
use crate::archive::ArchiveError;
use crate::archive::Keep;
use crate::archive::Step;
use crate::archive::Writer;

use self::list::boot;
use self::list::point;
use self::list::records;
use self::list::start;
use self::list::views;
use self::list::Scratch;

#[path = "../../tests/common/mod.rs"]
mod common;
#[path = "../../tests/common/list.rs"]
mod list;

/// Which call does not do what it should.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// None.
    Never,
    /// This one, and the next one does again.
    Once(usize, Errno),
    /// This one and all that follow: the process or the machine has stopped.
    From(usize),
    /// The same, and it is this one of the calls of `fsync(2)`.
    FromSync(usize),
}

/// What is gone after a loss of power, unless it was synced before.
#[derive(Debug)]
enum Volatile {
    Content(PathBuf),
    Rename(PathBuf, PathBuf),
    Directory(PathBuf),
}

/// The kernel's calls, but for one.
#[derive(Debug)]
struct Faulty {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    fault: Fault,
    /// How many calls there were.
    count: usize,
    /// Their names.
    log: Vec<&'static str>,
    volatile: Vec<Volatile>,
}

fn path_of(file: BorrowedFd<'_>) -> PathBuf {
    fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap()
}

impl Faulty {
    fn new(fault: Fault) -> Arc<Self> {
        let state = State {
            fault,
            count: 0,
            log: Vec::new(),
            volatile: Vec::new(),
        };
        Arc::new(Self {
            state: Mutex::new(state),
        })
    }

    fn set(&self, fault: Fault) {
        let mut state = self.state.lock().unwrap();
        state.fault = fault;
        state.count = 0;
        state.log.clear();
    }

    fn log(&self) -> Vec<&'static str> {
        self.state.lock().unwrap().log.clone()
    }

    fn gate(&self, call: &'static str) -> Result<()> {
        let mut state = self.state.lock().unwrap();
        let count = state.count;
        state.count += 1;
        state.log.push(call);
        let syncs = state.log.iter().filter(|&&call| call == "sync").count();
        match state.fault {
            Fault::FromSync(at) if at < syncs => Err(Errno::IO),
            Fault::Once(at, errno) if at == count => Err(errno),
            Fault::From(at) if at <= count => Err(Errno::IO),
            _ => Ok(()),
        }
    }

    /// Takes away what was not synced.
    fn lose_power(&self) {
        let mut state = self.state.lock().unwrap();
        for volatile in state.volatile.drain(..).rev() {
            match volatile {
                // If it was renamed, the rename was undone before.
                Volatile::Content(path) => {
                    if let Ok(bytes) = fs::read(&path) {
                        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
                        fs::write(&path, vec![0; bytes.len() / 2]).unwrap();
                    }
                }
                Volatile::Rename(from, to) => {
                    let _ = fs::rename(to, from);
                }
                Volatile::Directory(path) => {
                    let _ = fs::remove_dir_all(path);
                }
            }
        }
    }
}

impl Calls for Faulty {
    fn open(&self, dir: BorrowedFd<'_>, name: &Path, flags: OFlags, mode: Mode) -> Result<OwnedFd> {
        self.gate("open")?;
        let file = Kernel.open(dir, name, flags, mode)?;
        let path = path_of(std::os::fd::AsFd::as_fd(&file));
        assert!(!flags.contains(OFlags::RDWR));
        if flags.contains(OFlags::WRONLY) {
            let mut state = self.state.lock().unwrap();
            state.volatile.push(Volatile::Content(path));
        } else {
            // Nothing has it open for writing.
            for entry in fs::read_dir("/proc/self/fdinfo").unwrap().flatten() {
                let fd = entry.file_name().to_string_lossy().parse::<i32>().unwrap();
                let same = fs::read_link(format!("/proc/self/fd/{fd}")).is_ok_and(|of| of == path);
                let info = fs::read_to_string(entry.path()).unwrap_or_default();
                let access = info.lines().find_map(|line| line.strip_prefix("flags:\t"));
                assert!(
                    !same || access.is_none_or(|flags| flags.ends_with('0')),
                    "{path:?}"
                );
            }
        }
        Ok(file)
    }

    fn read(&self, file: BorrowedFd<'_>, to: &mut [u8], at: u64) -> Result<usize> {
        self.gate("read")?;
        // A short one.
        let most = to.len().min(1 + to.len() / 2);
        Kernel.read(file, &mut to[..most], at)
    }

    fn size(&self, file: BorrowedFd<'_>) -> Result<u64> {
        self.gate("size")?;
        Kernel.size(file)
    }

    fn write(&self, file: BorrowedFd<'_>, bytes: &[u8]) -> Result<usize> {
        self.gate("write")?;
        // A short one.
        Kernel.write(file, &bytes[..bytes.len().min(1 + bytes.len() / 2)])
    }

    fn sync(&self, file: BorrowedFd<'_>) -> Result<()> {
        self.gate("sync")?;
        let path = path_of(file);
        self.state
            .lock()
            .unwrap()
            .volatile
            .retain(|volatile| match volatile {
                Volatile::Content(of) => *of != path,
                Volatile::Rename(_, of) | Volatile::Directory(of) => of.parent() != Some(&path),
            });
        Kernel.sync(file)
    }

    fn rename(&self, dir: BorrowedFd<'_>, from: &str, to: &str) -> Result<()> {
        self.gate("rename")?;
        Kernel.rename(dir, from, to)?;
        let dir = path_of(dir);
        let (from, to) = (dir.join(from), dir.join(to));
        for entry in fs::read_dir("/proc/self/fd").unwrap().flatten() {
            let open = fs::read_link(entry.path());
            assert!(open.is_err() || open.unwrap() != to, "renamed while open");
        }
        let mut state = self.state.lock().unwrap();
        // What is renamed must be on the disk already.
        assert!(!state
            .volatile
            .iter()
            .any(|volatile| matches!(volatile, Volatile::Content(of) if *of == from)));
        state.volatile.push(Volatile::Rename(from, to));
        Ok(())
    }

    fn make_dir(&self, dir: BorrowedFd<'_>, name: &Path, mode: Mode) -> Result<()> {
        self.gate("make_dir")?;
        Kernel.make_dir(dir, name, mode)?;
        let path = if name.is_absolute() {
            name.to_owned()
        } else {
            path_of(dir).join(name)
        };
        let mut state = self.state.lock().unwrap();
        state.volatile.push(Volatile::Directory(path));
        Ok(())
    }

    fn remove(&self, dir: BorrowedFd<'_>, name: &str) -> Result<()> {
        self.gate("remove")?;
        Kernel.remove(dir, name)
    }

    fn remove_dir(&self, dir: BorrowedFd<'_>, name: &str) -> Result<()> {
        self.gate("remove_dir")?;
        Kernel.remove_dir(dir, name)
    }

    fn names(&self, dir: BorrowedFd<'_>) -> Result<Vec<String>> {
        self.gate("names")?;
        Kernel.names(dir)
    }
}

fn open(
    calls: &Arc<Faulty>,
    root: &Path,
    number: u32,
) -> std::result::Result<Writer, ArchiveError> {
    Writer::open_with(calls.clone(), root, &boot(number), &start(), &views())
}

/// The archive has exactly the first so many records.
fn check(archive: &Archive, count: u64) {
    let all: Vec<u8> = (0..archive.segments())
        .flat_map(|index| archive.read_segment(index).unwrap())
        .collect();
    assert_eq!(archive.records(), count);
    assert!(all == records(0..count));
    assert!(archive.end().same_values(&point(count)));
    assert_eq!(archive.verify(|_| {}).unwrap().records, count);
}

fn no_tmp(root: &Path, number: u32) {
    let names = fs::read_dir(root.join(boot(number).as_str())).unwrap();
    for name in names {
        let name = name.unwrap().file_name().into_string().unwrap();
        assert!(!name.ends_with(".tmp"), "{name}");
    }
}

#[test]
fn an_append_makes_its_calls_in_the_order_of_the_contract() {
    let scratch = Scratch::new();
    let calls = Faulty::new(Fault::Never);
    let mut writer = open(&calls, &scratch.root(), 1).unwrap();

    calls.set(Fault::Never);
    writer.append(&records(0..3), 1).unwrap();
    let mut log = calls.log();
    log.dedup();
    assert_eq!(log, ["remove", "open", "write", "sync", "rename", "sync"]);
}

#[test]
fn opening_syncs_what_a_killed_predecessor_renamed() {
    let scratch = Scratch::new();
    let root = scratch.root();
    let calls = Faulty::new(Fault::Never);
    let mut writer = open(&calls, &root, 1).unwrap();

    writer.append(&records(0..3), 1).unwrap();
    // Killed at the fsync of the directory, and at all that would have come after it.
    calls.set(Fault::FromSync(1));
    writer.append(&records(3..4), 1).unwrap_err();
    drop(writer);
    // The log of what is not synced goes on in the next process.
    calls.set(Fault::Never);
    let writer = open(&calls, &root, 1).unwrap();
    check(writer.archive(), 4);
    drop(writer);
    calls.lose_power();
    check(open(&calls, &root, 1).unwrap().archive(), 4);
}

#[test]
fn an_append_that_fails_at_any_call_changes_nothing_and_names_it() {
    let scratch = Scratch::new();
    let root = scratch.root();
    let calls = Faulty::new(Fault::Never);
    let mut writer = open(&calls, &root, 1).unwrap();
    let mut have = 0;

    // How many calls there are depends on the records: the end is where none is left to fail.
    'calls: for at in 0.. {
        for errno in [Errno::NOSPC, Errno::IO, Errno::ROFS] {
            calls.set(Fault::Once(at, errno));
            let more = records(have..have + 3);
            let Err(error) = writer.append(&more, 1) else {
                assert!(calls.log().len() == at && at > 6);
                have += 3;
                break 'calls;
            };
            let call = calls.log()[at];
            let expected = match call {
                "remove" => Step::Remove,
                "open" => Step::Create,
                "write" => Step::Write,
                "sync" => Step::Sync,
                "rename" => Step::Rename,
                call => panic!("{call}"),
            };
            let ArchiveError::Io {
                step,
                path,
                errno: said,
            } = &error
            else {
                panic!("{error}");
            };
            assert_eq!((*step, *said), (expected, errno));
            assert!(error.to_string().contains(path.to_str().unwrap()));
            assert!(path.starts_with(root.join(boot(1).as_str())));

            calls.set(Fault::Never);
            check(writer.archive(), have);
            no_tmp(&root, 1);
            // Reopened, it is the same, and the same records can be archived again.
            drop(writer);
            writer = open(&calls, &root, 1).unwrap();
            check(writer.archive(), have);
            writer.append(&more, 1).unwrap();
            have += 3;
        }
    }
    calls.set(Fault::Never);
    check(writer.archive(), have);
}

/// As before, but the writer goes on as it is, and what it cannot remove at once stays.
#[test]
fn an_append_is_possible_after_any_two_failures() {
    let scratch = Scratch::new();
    let root = scratch.root();
    let calls = Faulty::new(Fault::Never);
    let mut writer = open(&calls, &root, 1).unwrap();
    let mut have = 0;

    for at in 0.. {
        calls.set(Fault::From(at));
        if writer.append(&records(have..have + 3), 1).is_ok() {
            assert!(calls.log().len() == at && at > 6);
            have += 3;
            break;
        }
        calls.set(Fault::Never);
        // Others than before, under the same name.
        writer.append(&records(have..have + 2), 1).unwrap();
        have += 2;
        check(writer.archive(), have);
        no_tmp(&root, 1);
    }
    drop(writer);
    calls.set(Fault::Never);
    check(open(&calls, &root, 1).unwrap().archive(), have);
}

/// What a life of the archive does: it is made, added to, and an earlier one is removed.
/// Returns how many records were archived by calls that came back.
fn life(calls: &Arc<Faulty>, root: &Path) -> u64 {
    let mut done = 0;
    let mut run = || -> std::result::Result<(), ArchiveError> {
        let mut writer = open(calls, root, 2)?;
        done = writer.archive().records();
        for more in [3, 1] {
            writer.append(&records(done..done + more), 1)?;
            done += more;
        }
        let keep = Keep { boots: 0, bytes: 0 };
        writer.prune(keep, &[])?;
        Ok(())
    };
    let _ = run();
    done
}

#[test]
fn nothing_is_lost_wherever_the_process_or_the_machine_stops() {
    let prepare = |root: &Path| {
        let calls = Faulty::new(Fault::Never);
        let mut old = open(&calls, root, 1).unwrap();
        old.append(&records(0..2), 1).unwrap();
        old.append(&records(2..5), 2).unwrap();
        drop(old);
    };
    let scratch = Scratch::new();
    let calls = Faulty::new(Fault::Never);
    prepare(&scratch.root());
    calls.set(Fault::Never);
    assert_eq!(life(&calls, &scratch.root()), 4);
    let count = calls.log().len();
    assert!(count > 40);

    for power in [false, true] {
        for at in 0..count {
            let scratch = Scratch::new();
            let root = scratch.root();
            prepare(&root);
            let calls = Faulty::new(Fault::From(at));
            let done = life(&calls, &root);
            if power {
                calls.lose_power();
            }

            // The earlier boot is there as a whole or not at all.
            if root.join(boot(1).as_str()).exists() {
                let old = Archive::open(&root, &boot(1), &start(), &views()).unwrap();
                check(&old, 5);
            }
            calls.set(Fault::Never);
            let writer = open(&calls, &root, 2).unwrap();
            let have = writer.archive().records();
            assert!(
                have == done || have == done + if done == 0 { 3 } else { 1 },
                "{at}: {done} archived, {have} there"
            );
            check(writer.archive(), have);
            no_tmp(&root, 2);
            drop(writer);
            // What was found is there for good.
            calls.lose_power();
            let mut writer = open(&calls, &root, 2).unwrap();
            check(writer.archive(), have);
            writer.append(&records(have..have + 2), 1).unwrap();
            check(writer.archive(), have + 2);
            let gone = root.join(format!("{}.removed", boot(1)));
            assert!(!gone.exists());
        }
    }
}

#[test]
fn reading_that_fails_says_so() {
    let scratch = Scratch::new();
    let calls = Faulty::new(Fault::Never);
    let mut writer = open(&calls, &scratch.root(), 1).unwrap();
    writer.append(&records(0..3), 1).unwrap();
    calls.set(Fault::Never);
    writer.archive().read_segment(0).unwrap();

    for at in 0..calls.log().len() {
        calls.set(Fault::Once(at, Errno::IO));
        let error = writer.archive().read_segment(0).unwrap_err();
        assert!(matches!(
            error,
            ArchiveError::Io {
                errno: Errno::IO,
                step: Step::Read | Step::Open,
                ..
            }
        ));
    }
}

/// While a sync is under way, another thread reads.
struct Watched {
    archive: Mutex<Option<Arc<Archive>>>,
    seen: mpsc::Sender<u64>,
}

impl Calls for Watched {
    fn sync(&self, file: BorrowedFd<'_>) -> Result<()> {
        if let Some(archive) = self.archive.lock().unwrap().clone() {
            let (done, wait) = mpsc::channel();
            std::thread::spawn(move || {
                check(&archive, 3);
                done.send(archive.records()).unwrap();
            });
            let records = wait.recv_timeout(Duration::from_secs(20)).unwrap();
            self.seen.send(records).unwrap();
        }
        Kernel.sync(file)
    }
}

#[test]
fn no_reader_waits_for_a_sync_or_sees_what_is_not_synced() {
    let scratch = Scratch::new();
    let (seen, sights) = mpsc::channel();
    let calls = Arc::new(Watched {
        archive: Mutex::new(None),
        seen,
    });
    let mut writer =
        Writer::open_with(calls.clone(), &scratch.root(), &boot(1), &start(), &views()).unwrap();
    writer.append(&records(0..3), 1).unwrap();

    *calls.archive.lock().unwrap() = Some(writer.archive().clone());
    writer.append(&records(3..5), 1).unwrap();
    assert_eq!(sights.try_iter().collect::<Vec<_>>(), [3, 3]);
    check(writer.archive(), 5);
}
