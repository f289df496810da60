// SPDX-License-Identifier: GPL-2.0

//! The file system as readers see it: mounted for real, served, killed, and bound over files.
//!
//! This needs root and `/dev/fuse`. Every test runs in a process and a mount namespace of its own,
//! so that nothing is left when it ends, however it does.

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::fs::File;
use std::io::Read;
use std::io::Seek;
use std::os::unix::fs::symlink;
use std::os::unix::fs::FileExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Child;
use std::process::Command;
use std::process::ExitStatus;
use std::process::Stdio;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;
use std::time::Instant;
use std::time::SystemTime;

use ima_trim::fuse::End;
use ima_trim::fuse::Files;
use ima_trim::fuse::Kind;
use ima_trim::fuse::Node;
use ima_trim::fuse::Session;
use ima_trim::mounts;
use ima_trim::mounts::Mount;
use rustix::fd::AsFd;
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::mount::mount;
use rustix::mount::mount_bind;
use rustix::mount::mount_change;
use rustix::mount::unmount;
use rustix::mount::MountFlags;
use rustix::mount::MountPropagationFlags;
use rustix::mount::UnmountFlags;

/// Set to what this process is to do: a test's body, or to serve.
const ROLE: &str = "IMA_TRIM_TEST_ROLE";
const SERVER: &str = "server";

const LOG: &str = "/mnt/log";
const IMA: &str = "/mnt/ima";
/// The same files, where nothing is over them.
const OWN: &str = "/mnt/own";

const BIG: &str = "ascii_runtime_measurements_sha256";
const BIG_SIZE: u64 = 3 * 1024 * 1024 + 77;
const GROWING: &str = "binary_runtime_measurements_sha256";
const COUNT: &str = "runtime_measurements_count";
const LINK: &str = "ascii_runtime_measurements";
const FILES: [&str; 3] = [BIG, GROWING, COUNT];

fn role(name: &str) -> bool {
    env::var(ROLE).is_ok_and(|role| role == name)
}

/// This program again, with one test, in another role.
fn again(program: &str, test: &str, role: &str) -> Command {
    let mut command = Command::new(program);

    if program == "unshare" {
        command.args(["--mount", "--propagation", "private", "--"]);
        command.arg(env::current_exe().unwrap());
    }
    command
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(ROLE, role);
    command
}

/// Runs a test's body where mounts are its own, with an empty file system at `/mnt`.
fn in_namespace(test: &str, body: fn()) {
    if role(test) {
        mount("tmpfs", "/mnt", "tmpfs", MountFlags::empty(), None).unwrap();
        fs::create_dir(LOG).unwrap();
        return body();
    }
    let mut child = again("unshare", test, test).spawn().unwrap();
    let status = wait(&mut child, Duration::from_secs(60));
    assert!(status.is_some_and(|status| status.success()), "{status:?}");
}

/// The status of a process that ends in time. One that does not is killed.
fn wait(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
    let end = Instant::now() + limit;

    while Instant::now() < end {
        if let Some(status) = child.try_wait().unwrap() {
            return Some(status);
        }
        thread::sleep(Duration::from_millis(2));
    }
    let _ = child.kill();
    None
}

/// What each file has at an offset.
fn byte(node: u64, offset: u64) -> u8 {
    ((offset.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) ^ (node * 37)) as u8
}

fn check(node: u64, offset: u64, bytes: &[u8]) -> Result<(), String> {
    match (offset..)
        .zip(bytes)
        .find(|(at, is)| byte(node, *at) != **is)
    {
        None => Ok(()),
        Some((at, is)) => Err(format!("node {node} has {is} at {at}")),
    }
}

struct Content {
    nodes: Vec<Node>,
    /// Of the file that grows.
    size: AtomicU64,
    /// Of the file whose content changes, and its size does not.
    version: AtomicU64,
    /// Whether some reads take long.
    slow: bool,
    clock: AtomicU64,
}

impl Content {
    fn new() -> Self {
        let kinds = [
            (BIG, Kind::File, 0o440),
            (GROWING, Kind::File, 0o444),
            (COUNT, Kind::File, 0o444),
            (LINK, Kind::Link(BIG.into()), 0o777),
        ];
        let nodes = (2..)
            .zip(kinds)
            .map(|(number, (name, kind, mode))| Node {
                number,
                name: name.into(),
                kind,
                mode,
                uid: 0,
                gid: 7,
                time: 1_000_000_000,
            })
            .collect();
        Self {
            nodes,
            size: AtomicU64::new(1000),
            version: AtomicU64::new(0),
            slow: false,
            clock: AtomicU64::new(seed()),
        }
    }

    fn without(name: &str) -> Self {
        let mut content = Self::new();
        content.nodes.retain(|node| node.name != name);
        content
    }
}

fn number(name: &str) -> u64 {
    let node = Content::new()
        .nodes
        .into_iter()
        .find(|node| node.name == name);
    node.unwrap().number
}

impl Files for Content {
    fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    fn size(&self, node: &Node) -> Result<u64, Errno> {
        Ok(match node.name.as_str() {
            BIG => BIG_SIZE,
            GROWING => self.size.load(Ordering::SeqCst),
            _ => 10,
        })
    }

    fn read(&self, node: &Node, offset: u64, size: usize, to: &mut Vec<u8>) -> Result<(), Errno> {
        if self.slow {
            let random = random(&mut self.clock.fetch_add(0x1234_5677, Ordering::Relaxed));
            if random % 4 == 0 {
                thread::sleep(Duration::from_micros(random % 3000));
            }
        }
        let end = self.size(node)?.min(offset.saturating_add(size as u64));
        let length = usize::try_from(end.saturating_sub(offset)).unwrap();
        to.resize(length, 0);
        for (at, to) in (offset..).zip(to.iter_mut()) {
            *to = byte(node.number, at);
        }
        if let (COUNT, Some(first)) = (node.name.as_str(), to.first_mut()) {
            *first ^= self.version.load(Ordering::SeqCst) as u8;
        }
        Ok(())
    }
}

fn seed() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    now.unwrap().as_nanos() as u64 | 1
}

fn random(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state >> 8
}

/// The file system at [`LOG`]. If a test fails, nobody is left waiting for an answer.
struct Attached(Mount);

impl Attached {
    fn new() -> (Session, Self) {
        let (session, mount) = mounts::fuse().unwrap();
        mount.attach(LOG.as_ref()).unwrap();
        (session, Self(mount))
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        let _ = unmount(LOG, UnmountFlags::FORCE | UnmountFlags::DETACH);
    }
}

/// Has two threads serve while something is done.
fn served<T>(session: &Session, content: &Content, task: impl FnOnce() -> T) -> T {
    let (stop, stopped) = UnixStream::pair().unwrap();

    thread::scope(|scope| {
        // Dropped, and so readable at the other end, even if the task panics.
        let stop = stop;
        for _ in 0..2 {
            scope.spawn(|| assert_eq!(session.serve(content, stopped.as_fd()), Ok(End::Stopped)));
        }
        let result = task();
        drop(stop);
        result
    })
}

fn log(name: &str) -> String {
    format!("{LOG}/{name}")
}

#[test]
fn looks_like_the_files_it_has() {
    in_namespace("looks_like_the_files_it_has", || {
        let (session, _mount) = Attached::new();
        let content = Content::new();

        served(&session, &content, || {
            let names: BTreeSet<_> = fs::read_dir(LOG)
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            assert_eq!(
                names,
                BTreeSet::from([BIG, GROWING, COUNT, LINK].map(String::from))
            );

            let stat = fs::metadata(log(BIG)).unwrap();
            assert_eq!(stat.len(), BIG_SIZE);
            assert_eq!(stat.blocks(), BIG_SIZE.div_ceil(512));
            assert_eq!(stat.mode(), 0o100_440);
            assert_eq!((stat.uid(), stat.gid(), stat.ino()), (0, 7, 2));
            assert_eq!(stat.mtime(), 1_000_000_000);
            assert_eq!(fs::metadata(LOG).unwrap().mode(), 0o040_555);

            assert_eq!(fs::read_link(log(LINK)).unwrap(), Path::new(BIG));
            for _ in 0..2 {
                check(2, 0, &fs::read(log(LINK)).unwrap()).unwrap();
            }
            assert_eq!(fs::read(log(BIG)).unwrap().len() as u64, BIG_SIZE);

            let info = fs::read_to_string("/proc/self/mountinfo").unwrap();
            let line = info.lines().find(|line| line.contains(LOG)).unwrap();
            assert!(line.contains(" ro,nosuid,nodev,noexec,"), "{line}");
            assert!(line.contains(" - fuse.ima-trim ima-trim ro,"), "{line}");
            assert!(
                line.ends_with("default_permissions,allow_other,max_read=1048576"),
                "{line}"
            );

            for name in ["nothing", "ascii", ".hidden"] {
                let error = fs::metadata(log(name)).unwrap_err();
                assert_eq!(Errno::from_io_error(&error), Some(Errno::NOENT));
            }
        });
    });
}

#[test]
fn nobody_writes_and_permissions_count() {
    in_namespace("nobody_writes_and_permissions_count", || {
        let (session, _mount) = Attached::new();
        let content = Content::new();

        served(&session, &content, || {
            let error = |result: std::io::Result<File>| Errno::from_io_error(&result.unwrap_err());
            let open = |name| File::options().write(true).open(log(name));
            assert_eq!(error(open(BIG)), Some(Errno::ROFS));
            assert_eq!(error(File::create(log("new"))), Some(Errno::ROFS));
            assert!(fs::remove_file(log(BIG)).is_err());

            let cat = |name| {
                let mut command = Command::new("setpriv");
                command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "cat"]);
                command
                    .arg(log(name))
                    .stderr(Stdio::null())
                    .output()
                    .unwrap()
            };
            assert!(!cat(BIG).status.success());
            let output = cat(COUNT);
            assert!(output.status.success());
            check(4, 0, &output.stdout).unwrap();
            // An agent opens the list as root, and reads it as somebody else.
            let mut command = Command::new("setpriv");
            command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "cat"]);
            let opened = command
                .stdin(File::open(log(BIG)).unwrap())
                .output()
                .unwrap();
            assert_eq!(opened.stdout.len() as u64, BIG_SIZE);
        });
    });
}

#[test]
fn grows_under_its_readers() {
    in_namespace("grows_under_its_readers", || {
        let (session, _mount) = Attached::new();
        let content = Content::new();

        served(&session, &content, || {
            let mut bytes = vec![0; 8192];
            let mut file = File::open(log(GROWING)).unwrap();
            assert_eq!(file.read(&mut bytes).unwrap(), 1000);
            assert_eq!(file.read(&mut bytes).unwrap(), 0);
            assert_eq!(file.read_at(&mut bytes, 1 << 40).unwrap(), 0);

            for size in (1000..20_000).step_by(777) {
                content.size.store(size, Ordering::SeqCst);
                // No stat in between: the kernel does not know the size yet.
                let length = file.read_at(&mut bytes, size - 700).unwrap();
                assert_eq!(length, 700);
                check(3, size - 700, &bytes[..length]).unwrap();
                assert_eq!(file.metadata().unwrap().len(), size);
                assert_eq!(fs::metadata(log(GROWING)).unwrap().len(), size);
            }
            file.rewind().unwrap();
            let mut whole = Vec::new();
            file.read_to_end(&mut whole).unwrap();
            assert_eq!(whole.len() as u64, content.size.load(Ordering::SeqCst));
            check(3, 0, &whole).unwrap();
        });
    });
}

/// Nothing that was read once is given again, and closing a file waits for nobody.
#[test]
fn each_read_and_no_close_asks_the_server() {
    in_namespace("each_read_and_no_close_asks_the_server", || {
        let (session, _mount) = Attached::new();
        let content = Content::new();

        let file = served(&session, &content, || {
            let file = File::open(log(COUNT)).unwrap();
            for version in 0..5 {
                content.version.store(version, Ordering::SeqCst);
                let mut bytes = [0; 20];
                assert_eq!(file.read_at(&mut bytes, 0).unwrap(), 10);
                assert_eq!(u64::from(bytes[0] ^ byte(4, 0)), version);
                check(4, 1, &bytes[1..10]).unwrap();
            }
            file
        });
        thread::scope(|scope| {
            let closer = scope.spawn(|| drop(file));
            thread::sleep(Duration::from_millis(200));
            let closed = closer.is_finished();
            if !closed {
                let _ = unmount(LOG, UnmountFlags::FORCE | UnmountFlags::DETACH);
            }
            assert!(closed);
        });
    });
}

/// Rust has no safe mmap(2), so this is done by a program that has one.
#[test]
fn can_be_mapped_and_spliced() {
    const SCRIPT: &str = r"
import mmap, os, sys
path, tell, hear = sys.argv[1], sys.stdout, sys.stdin
f = open(path, 'rb', buffering=0)
private = mmap.mmap(f.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
shared = mmap.mmap(f.fileno(), 0, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ)
def splice(fd):
    r, w = os.pipe()
    data = b''
    while True:
        n = os.splice(fd, w, 65536)
        if not n:
            return data
        data += os.read(r, n)
def all(f):
    os.lseek(f.fileno(), 0, 0)
    spliced = splice(f.fileno())
    os.lseek(f.fileno(), 0, 0)
    read = f.read()
    assert spliced == read, (len(spliced), len(read))
    return read
first = all(f)
assert private[:] == first and shared[:] == first
print(len(first), flush=True)
hear.readline()
# It is longer now. What was mapped is as it was, what is opened and mapped anew is whole.
assert private[:] == first and shared[:] == first
g = open(path, 'rb', buffering=0)
second = all(g)
assert len(second) > len(first) and second[:len(first)] == first
again = mmap.mmap(g.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ)
assert again[:] == second
# The same descriptor, once the kernel knows the size.
os.stat(path)
assert all(f) == second
assert private[:] == first and shared[:] == first
print(len(second), flush=True)
";

    in_namespace("can_be_mapped_and_spliced", || {
        let (session, _mount) = Attached::new();
        let content = Content::new();

        served(&session, &content, || {
            let mut child = Command::new("python3")
                .args(["-c", SCRIPT, &log(GROWING)])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let mut line = [0; 5];
            child
                .stdout
                .as_mut()
                .unwrap()
                .read_exact(&mut line)
                .unwrap();
            assert_eq!(&line, b"1000\n");
            content.size.store(9999, Ordering::SeqCst);
            drop(child.stdin.take());
            child
                .stdout
                .as_mut()
                .unwrap()
                .read_exact(&mut line)
                .unwrap();
            assert_eq!(&line, b"9999\n");
            assert!(child.wait().unwrap().success());
        });
    });
}

#[test]
fn serving_ends_when_it_is_unmounted() {
    in_namespace("serving_ends_when_it_is_unmounted", || {
        let (session, mount) = Attached::new();
        let (_stop, stopped) = UnixStream::pair().unwrap();

        thread::scope(|scope| {
            let server = scope.spawn(|| session.serve(&Content::new(), stopped.as_fd()));
            assert!(fs::metadata(log(BIG)).is_ok());
            drop(mount);
            assert_eq!(server.join().unwrap(), Ok(End::Unmounted));
        });
        // A successor finds out in the same way.
        let device = session.as_fd().try_clone_to_owned().unwrap();
        let session = Session::take_over(device).unwrap();
        assert_eq!(
            session.serve(&Content::new(), stopped.as_fd()),
            Ok(End::Unmounted)
        );
    });
}

/// Serves what is at standard input, for ever.
fn serve_standard_input() {
    let device = std::io::stdin().as_fd().try_clone_to_owned().unwrap();
    let session = Session::take_over(device).unwrap();
    let mut content = Content::new();
    let (_stop, stopped) = UnixStream::pair().unwrap();

    content.slow = true;
    thread::scope(|scope| {
        for _ in 0..2 {
            scope
                .spawn(|| assert_eq!(session.serve(&content, stopped.as_fd()), Ok(End::Unmounted)));
        }
    });
}

fn server(test: &str, session: &Session) -> Child {
    let device = session.as_fd().try_clone_to_owned().unwrap();
    let program = env::current_exe().unwrap();

    again(program.to_str().unwrap(), test, SERVER)
        .stdin(device)
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

/// What a reader has done.
#[derive(Debug, Default)]
struct Tally {
    calls: AtomicU64,
    longest: AtomicU64,
}

impl Tally {
    fn time<T>(&self, what: impl FnOnce() -> std::io::Result<T>) -> Result<T, String> {
        let begin = Instant::now();
        let result = what().map_err(|error| error.to_string());
        let time = u64::try_from(begin.elapsed().as_millis()).unwrap();
        self.longest.fetch_max(time, Ordering::SeqCst);
        self.calls.fetch_add(1, Ordering::SeqCst);
        result
    }

    /// Reads the whole file again and again, opening it anew every other time.
    fn read_on(&self, end: &AtomicBool) -> Result<(), String> {
        let mut buffer = vec![0; 300_000];
        let mut file = self.time(|| File::open(log(BIG)))?;

        for round in 0_u64.. {
            let mut offset = 0;
            loop {
                let length = self.time(|| file.read(&mut buffer))?;
                if length == 0 {
                    break;
                }
                check(2, offset, &buffer[..length])?;
                offset += length as u64;
                if end.load(Ordering::SeqCst) {
                    return Ok(());
                }
            }
            if offset != BIG_SIZE {
                return Err(format!("the file ends at {offset}"));
            }
            match round % 2 {
                0 => file = self.time(|| File::open(log(LINK)))?,
                _ => file.rewind().map_err(|error| error.to_string())?,
            }
        }
        Ok(())
    }

    fn read_anywhere(&self, end: &AtomicBool) -> Result<(), String> {
        let mut state = seed();
        let mut buffer = vec![0; 1 << 20];
        let file = self.time(|| File::open(log(BIG)))?;

        while !end.load(Ordering::SeqCst) {
            let offset = random(&mut state) % (BIG_SIZE + 10_000);
            let size = random(&mut state) as usize % buffer.len();
            let length = self.time(|| file.read_at(&mut buffer[..size], offset))?;
            let expected = BIG_SIZE.saturating_sub(offset).min(size as u64);
            if length as u64 != expected {
                return Err(format!("{length} bytes of {expected} at {offset}"));
            }
            check(2, offset, &buffer[..length])?;
        }
        Ok(())
    }
}

/// A server is killed 200 times while nine readers read: they notice nothing.
#[test]
fn readers_outlive_their_server() {
    const TEST: &str = "readers_outlive_their_server";

    if role(SERVER) {
        return serve_standard_input();
    }
    in_namespace(TEST, || {
        let (session, _mount) = Attached::new();
        let end = AtomicBool::new(false);
        let mut state = seed();
        let tallies: [Tally; 9] = Default::default();
        let calls = || {
            tallies
                .each_ref()
                .map(|tally| tally.calls.load(Ordering::SeqCst))
        };

        // Waits until each reader has got something.
        let all_served = |failed: &dyn Fn() -> bool| {
            let (begin, before) = (Instant::now(), calls());
            while calls()
                .iter()
                .zip(before)
                .any(|(now, before)| *now == before)
            {
                if failed() {
                    return Err("a reader failed".to_string());
                }
                if begin.elapsed() > Duration::from_secs(2) {
                    return Err(format!("{before:?} calls, {:?} after 2 s", calls()));
                }
                thread::sleep(Duration::from_micros(100));
            }
            Ok(begin.elapsed())
        };

        thread::scope(|scope| {
            let mut readers = Vec::new();
            for (index, tally) in tallies.iter().enumerate() {
                let end = &end;
                readers.push(scope.spawn(move || match index {
                    0 => tally.read_anywhere(end),
                    _ => tally.read_on(end),
                }));
            }
            let mut task = || -> Result<Duration, String> {
                let mut slowest = Duration::ZERO;
                for round in 0..200 {
                    let mut child = server(TEST, &session);
                    // Everybody is served again before every other one is killed.
                    let taken_over = match round % 2 {
                        0 => all_served(&|| readers.iter().any(|reader| reader.is_finished())),
                        _ => Ok(Duration::ZERO),
                    };
                    thread::sleep(Duration::from_micros(random(&mut state) % 30_000));
                    child.kill().unwrap();
                    assert_eq!(child.wait().unwrap().signal(), Some(9));
                    slowest = slowest.max(taken_over?);
                }
                Ok(slowest)
            };
            let result = task();
            end.store(true, Ordering::SeqCst);
            let mut last = server(TEST, &session);
            let limit = Instant::now() + Duration::from_secs(2);
            while !readers.iter().all(thread::ScopedJoinHandle::is_finished) {
                if Instant::now() > limit {
                    let _ = unmount(LOG, UnmountFlags::FORCE | UnmountFlags::DETACH);
                    panic!("a reader hangs: {result:?}");
                }
                thread::sleep(Duration::from_millis(1));
            }
            last.kill().unwrap();
            last.wait().unwrap();
            for reader in readers {
                assert_eq!(reader.join().unwrap(), Ok(()));
            }
            println!("the slowest takeover: {result:?}; {tallies:?}");
            assert!(result.is_ok());
        });
    });
}

/// Reads requests as a server does, and dies before it answers: `count` of those that are answered.
fn swallow(session: &Session, count: usize) {
    const FORGET: u32 = 2;
    let mut request = [0xff; 8192];
    let mut swallowed = 0;
    let end = Instant::now() + Duration::from_secs(5);

    while swallowed < count {
        assert!(Instant::now() < end, "no request has come");
        match rustix::io::read(session.as_fd(), &mut request) {
            Ok(_) if request[4..8] == FORGET.to_ne_bytes() => {}
            Ok(_) => swallowed += 1,
            Err(errno) => {
                assert_eq!(errno, Errno::AGAIN);
                thread::sleep(Duration::from_millis(1));
            }
        }
    }
}

fn state_of(child: &Child) -> char {
    let stat = fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap();
    let (_, rest) = stat.rsplit_once(") ").unwrap();
    rest.chars().next().unwrap()
}

/// The kernel allows one, and the other only once a successor answers.
#[test]
fn readers_can_be_killed_while_nobody_serves() {
    in_namespace("readers_can_be_killed_while_nobody_serves", || {
        let (session, _mount) = Attached::new();
        let cat = || {
            let mut command = Command::new("cat");
            command.arg(log(BIG)).stdout(Stdio::null()).spawn().unwrap()
        };
        let long = Duration::from_secs(2);

        // Nobody has read its request.
        let mut child = cat();
        thread::sleep(Duration::from_millis(100));
        assert_eq!(child.try_wait().unwrap(), None);
        child.kill().unwrap();
        assert!(wait(&mut child, long).is_some_and(|status| status.signal() == Some(9)));

        // Somebody has, and died.
        let mut child = cat();
        let mut other = cat();
        swallow(&session, 2);
        child.kill().unwrap();
        assert_eq!(wait(&mut child, Duration::from_millis(200)), None);
        assert_eq!(state_of(&child), 'D');

        let device = session.as_fd().try_clone_to_owned().unwrap();
        let successor = Session::take_over(device).unwrap();
        served(&successor, &Content::new(), || {
            assert!(wait(&mut child, long).is_some_and(|status| status.signal() == Some(9)));
            assert!(wait(&mut other, long).is_some_and(|status| status.success()));
        });
    });
}

/// Each server but the last dies with the request.
#[test]
fn requests_are_sent_again_more_than_once() {
    in_namespace("requests_are_sent_again_more_than_once", || {
        let (session, _mount) = Attached::new();
        let mut child = Command::new("cat");
        let mut child = child.arg(log(COUNT)).stdout(Stdio::null()).spawn().unwrap();

        for _ in 0..3 {
            swallow(&session, 1);
            session.resend().unwrap();
        }
        swallow(&session, 1);
        served(&session, &Content::new(), || {
            assert_eq!(wait_no_kill(&mut child, Duration::from_millis(100)), None);
            // While threads serve, too.
            session.resend().unwrap();
            let status = wait(&mut child, Duration::from_secs(2));
            assert!(status.is_some_and(|status| status.success()));
        });
    });
}

fn wait_no_kill(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
    thread::sleep(limit);
    child.try_wait().unwrap()
}

/// INIT is answered before anybody else has the device. Were it not, Linux 7.3 would refuse to send
/// it again; 6.18 does.
#[test]
fn a_connection_is_begun_before_it_is_handed_over() {
    in_namespace("a_connection_is_begun_before_it_is_handed_over", || {
        let (session, mount) = Attached::new();
        // Some kernels would refuse this.
        session.resend().unwrap();
        drop(mount);

        let device: OwnedFd = File::options()
            .read(true)
            .write(true)
            .open("/dev/fuse")
            .unwrap()
            .into();
        let options = format!(
            "fd={},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions",
            std::os::fd::AsRawFd::as_raw_fd(&device)
        );
        let options = std::ffi::CString::new(options).unwrap();
        mount_plain(&options);
        let mut init = [0xff; 8192];
        assert!(rustix::io::read(&device, &mut init).unwrap() > 40);
        assert_eq!(init[4..8], 26_u32.to_ne_bytes());

        match Session::take_over(device) {
            Ok(session) => served(&session, &Content::new(), || {
                assert_eq!(fs::metadata(log(BIG)).unwrap().len(), BIG_SIZE);
            }),
            Err(error) => assert_eq!(
                error,
                ima_trim::fuse::Error::Device {
                    action: "have unanswered requests sent again by",
                    errno: Errno::INVAL
                }
            ),
        }
        let _ = unmount(LOG, UnmountFlags::FORCE | UnmountFlags::DETACH);
    });
}

/// As mount(8) does it: the subtype is in the type's name.
fn mount_plain(options: &std::ffi::CStr) {
    mount("x", LOG, mounts::FS_TYPE, MountFlags::RDONLY, options).unwrap();
    let info = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(
        info.contains(" /mnt/log ro,") && info.contains(" - fuse.ima-trim x "),
        "{info}"
    );
}

/// Something like IMA's directory, and the same without what will be mounted over its files.
fn kernel_files() {
    for directory in [IMA, OWN] {
        fs::create_dir(directory).unwrap();
    }
    for name in FILES {
        fs::write(format!("{IMA}/{name}"), "kernel").unwrap();
    }
    for name in ["policy", "ascii_runtime_measurements_sha256_staged"] {
        fs::write(format!("{IMA}/{name}"), "kernel").unwrap();
    }
    symlink(BIG, format!("{IMA}/{LINK}")).unwrap();
    mount_bind(IMA, OWN).unwrap();
}

fn is_kernels(name: &str) -> bool {
    fs::read(format!("{IMA}/{name}")).unwrap() == b"kernel"
}

fn is_ours(name: &str) -> bool {
    let bytes = fs::read(format!("{IMA}/{name}")).unwrap();
    check(number(name), 0, &bytes).is_ok()
}

fn mounted() -> usize {
    let info = fs::read_to_string("/proc/self/mountinfo").unwrap();
    info.lines()
        .filter(|line| line.contains(&format!(" {IMA}/")))
        .count()
}

#[test]
fn covers_and_uncovers() {
    in_namespace("covers_and_uncovers", || {
        kernel_files();
        let (session, mount) = Attached::new();
        let content = Content::new();

        served(&session, &content, || {
            for _ in 0..2 {
                let uncovered = mounts::uncovered(mount.0.as_fd(), IMA.as_ref()).unwrap();
                assert_eq!(uncovered, FILES);
                // Once more changes nothing.
                for _ in 0..2 {
                    mounts::cover(mount.0.as_fd(), IMA.as_ref()).unwrap();
                    assert!(FILES.into_iter().all(is_ours));
                    assert_eq!(mounted(), FILES.len());
                }
                // A link leads to a file that is covered.
                check(2, 0, &fs::read(format!("{IMA}/{LINK}")).unwrap()).unwrap();
                assert!(is_kernels("policy"));
                assert!(is_kernels("ascii_runtime_measurements_sha256_staged"));
                assert_eq!(fs::read(format!("{OWN}/{BIG}")).unwrap(), b"kernel");
                let uncovered = mounts::uncovered(mount.0.as_fd(), IMA.as_ref()).unwrap();
                assert!(uncovered.is_empty());

                // Somebody else unmounts one: it is named, and nothing else is covered anew.
                unmount(format!("{IMA}/{BIG}"), UnmountFlags::DETACH).unwrap();
                assert!(is_kernels(BIG));
                let uncovered = mounts::uncovered(mount.0.as_fd(), IMA.as_ref()).unwrap();
                assert_eq!(uncovered, [BIG]);
                mounts::cover(mount.0.as_fd(), IMA.as_ref()).unwrap();
                let uncovered = mounts::uncovered(mount.0.as_fd(), IMA.as_ref()).unwrap();
                assert!(uncovered.is_empty());
                assert_eq!(mounted(), FILES.len());

                assert_eq!(mounts::uncover(IMA.as_ref()).unwrap(), FILES.len());
                assert!(FILES.into_iter().all(is_kernels));
                assert_eq!(mounts::uncover(IMA.as_ref()).unwrap(), 0);
            }
        });
    });
}

#[test]
fn covers_all_or_none() {
    in_namespace("covers_all_or_none", || {
        kernel_files();
        let (session, mount) = Attached::new();

        served(&session, &Content::without(COUNT), || {
            let error = mounts::cover(mount.0.as_fd(), IMA.as_ref()).unwrap_err();
            assert!(error.to_string().contains(COUNT), "{error}");
            assert_eq!(mounted(), 0);
        });
        drop(mount);

        let (session, mount) = Attached::new();
        served(&session, &Content::new(), || {
            // Somebody else's bind, over the last one.
            mount_bind(format!("{IMA}/policy"), format!("{IMA}/{COUNT}")).unwrap();
            let error = mounts::cover(mount.0.as_fd(), IMA.as_ref()).unwrap_err();
            assert!(error.to_string().contains("tmpfs"), "{error}");
            assert_eq!(mounted(), 1);

            // The same, over what is ours.
            unmount(format!("{IMA}/{COUNT}"), UnmountFlags::empty()).unwrap();
            mounts::cover(mount.0.as_fd(), IMA.as_ref()).unwrap();
            mount_bind(format!("{IMA}/policy"), format!("{IMA}/{COUNT}")).unwrap();
            assert!(mounts::uncover(IMA.as_ref()).is_err());
            assert!(is_kernels(COUNT));
        });

        fs::create_dir("/mnt/empty").unwrap();
        let error = mounts::cover(mount.0.as_fd(), "/mnt/empty".as_ref()).unwrap_err();
        assert!(
            error.to_string().contains("no measurement files"),
            "{error}"
        );
    });
}

/// A live or dead connection's binds are replaced by those of another, and nobody sees what is
/// below.
fn replaces(dead: bool) {
    let (old_session, old_mount) = mounts::fuse().unwrap();
    served(&old_session, &Content::new(), || {
        mounts::cover(old_mount.as_fd(), IMA.as_ref()).unwrap();
        assert!(FILES.into_iter().all(is_ours));
    });
    let (session, mount) = Attached::new();
    // Closes the device.
    let old_session = (!dead).then_some(old_session);
    if dead {
        let error = fs::read(format!("{IMA}/{BIG}")).unwrap_err();
        assert_eq!(Errno::from_io_error(&error), Some(Errno::NOTCONN));
    }
    let before = mounted();
    let end = AtomicBool::new(false);
    let content = Content::new();

    thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut seen = 0;
            while !end.load(Ordering::SeqCst) {
                // With a dead one it fails, which is right.
                if let Ok(bytes) = fs::read(format!("{IMA}/{COUNT}")) {
                    assert_ne!(bytes, b"kernel");
                    seen += 1;
                }
            }
            seen
        });
        served(&session, &content, || {
            let replace = || {
                mounts::cover(mount.0.as_fd(), IMA.as_ref()).unwrap();
                thread::sleep(Duration::from_millis(50));
                end.store(true, Ordering::SeqCst);
                assert!(FILES.into_iter().all(is_ours));
            };
            match &old_session {
                Some(session) => served(session, &content, replace),
                None => replace(),
            }
            assert!(reader.join().unwrap() > 0);
        });
    });
    assert_eq!(mounted(), before);
    assert_eq!(mounts::uncover(IMA.as_ref()).unwrap(), FILES.len());
    assert!(FILES.into_iter().all(is_kernels));
}

#[test]
fn replaces_binds_of_other_connections() {
    in_namespace("replaces_binds_of_other_connections", || {
        kernel_files();
        replaces(false);
        replaces(true);
    });
}

/// The same where mounts are shared with other namespaces, as service managers have it.
#[test]
fn replaces_binds_that_propagate() {
    in_namespace("replaces_binds_that_propagate", || {
        let flags = MountPropagationFlags::SHARED | MountPropagationFlags::REC;
        mount_change("/mnt", flags).unwrap();
        kernel_files();
        unmount(OWN, UnmountFlags::empty()).unwrap();
        replaces(false);
        replaces(true);
    });
}

#[test]
fn says_who_sees_the_kernels_files() {
    in_namespace("says_who_sees_the_kernels_files", || {
        kernel_files();
        let own = Path::new(OWN);
        let ima = Path::new(IMA);
        let sleep = |file: &str| {
            let mut command = Command::new("sleep");
            command
                .arg("60")
                .stdin(File::open(file).unwrap())
                .spawn()
                .unwrap()
        };
        let elsewhere = || {
            let mut command = Command::new("unshare");
            command.args(["--mount", "--propagation", "private", "sleep", "60"]);
            let child = command.spawn().unwrap();
            let comm = format!("/proc/{}/comm", child.id());
            while fs::read_to_string(&comm).unwrap() != "sleep\n" {
                thread::sleep(Duration::from_millis(1));
            }
            child
        };
        let pids = |seen: mounts::Seen| {
            seen.processes
                .iter()
                .map(|process| process.pid)
                .collect::<Vec<_>>()
        };
        let (session, mount) = Attached::new();
        let reader = sleep(&format!("{IMA}/{BIG}"));
        let policy = sleep(&format!("{IMA}/policy"));
        let before = elsewhere();

        served(&session, &Content::new(), || {
            mounts::cover(mount.0.as_fd(), ima).unwrap();
            let covered = sleep(&format!("{IMA}/{BIG}"));
            let after = elsewhere();

            let seen = mounts::readers(own).unwrap();
            assert_eq!(seen.processes[0].command, "sleep");
            assert_eq!(pids(seen), [reader.id()]);
            let seen = mounts::namespaces(own, ima).unwrap();
            assert_eq!(pids(seen), [before.id()]);

            for mut child in [covered, after] {
                child.kill().unwrap();
                child.wait().unwrap();
            }
        });
        // Nobody answers now, which is not waited for.
        assert_eq!(pids(mounts::readers(own).unwrap()), [reader.id()]);
        assert_eq!(pids(mounts::namespaces(own, ima).unwrap()), [before.id()]);
        for mut child in [reader, policy, before] {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        assert!(pids(mounts::readers(own).unwrap()).is_empty());
    });
}

/// Dead ones among them.
#[test]
fn is_unmounted_as_often_as_it_is_mounted() {
    in_namespace("is_unmounted_as_often_as_it_is_mounted", || {
        let log = Path::new(LOG);
        for _ in 0..3 {
            let (session, mount) = mounts::fuse().unwrap();
            mount.attach(log).unwrap();
            drop(session);
            assert!(fs::read_dir(log).is_err());
        }
        assert_eq!(mounts::unmount_all(log).unwrap(), 3);
        assert_eq!(fs::read_dir(log).unwrap().count(), 0);
        assert_eq!(mounts::unmount_all(log).unwrap(), 0);
    });
}

#[test]
fn securityfs_is_mounted_once_more() {
    in_namespace("securityfs_is_mounted_once_more", || {
        fs::create_dir("/mnt/security").unwrap();
        let mount = mounts::securityfs().unwrap();
        mount.attach("/mnt/security".as_ref()).unwrap();

        let info = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let line = info
            .lines()
            .find(|line| line.contains(" /mnt/security "))
            .unwrap();
        assert!(line.contains(" ro,nosuid,nodev,noexec,"), "{line}");
        // The file system itself is not read-only, for others write there.
        assert!(line.contains(" - securityfs securityfs rw"), "{line}");
        assert!(fs::read_dir("/mnt/security").is_ok());
    });
}
