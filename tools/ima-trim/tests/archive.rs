// SPDX-License-Identifier: GPL-2.0

//! The archive: what goes in comes out, whatever is done to the process or the files is noticed.

use std::fs;
use std::io::BufRead;
use std::io::BufReader;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::process::Stdio;
use std::time::Duration;

use ima_trim::archive::boots;
use ima_trim::archive::Archive;
use ima_trim::archive::ArchiveError;
use ima_trim::archive::Damage;
use ima_trim::archive::Keep;
use ima_trim::archive::NotRecords;
use ima_trim::archive::Sha256;
use ima_trim::archive::Writer;
use ima_trim::record::Record;
use ima_trim::render::SOURCE;
use proptest::prelude::*;

use self::list::boot;
use self::list::point;
use self::list::record;
use self::list::records;
use self::list::start;
use self::list::views;
use self::list::Scratch;

mod common;
#[path = "common/list.rs"]
mod list;

fn open_once(root: &Path, number: u32) -> Result<Writer, ArchiveError> {
    Writer::open(root, &boot(number), &start(), &views())
}

/// Another test that starts a process has the descriptor of a lock, too, from fork(2) to exec(2).
fn open(root: &Path, number: u32) -> Result<Writer, ArchiveError> {
    for _ in 0..1000 {
        match open_once(root, number) {
            Err(ArchiveError::Locked { .. }) => std::thread::sleep(Duration::from_millis(5)),
            opened => return opened,
        }
    }
    open_once(root, number)
}

fn open_to_read(root: &Path, number: u32) -> Result<Archive, ArchiveError> {
    Archive::open(root, &boot(number), &start(), &views())
}

/// Archives segments of these numbers of records.
fn fill(root: &Path, number: u32, segments: &[u64]) -> Writer {
    let mut writer = open(root, number).unwrap();
    let mut have = writer.archive().records();
    for (trims, more) in (1..).zip(segments) {
        writer.append(&records(have..have + more), trims).unwrap();
        have += more;
    }
    writer
}

fn file(root: &Path, number: u32, first: u64) -> PathBuf {
    root.join(boot(number).as_str())
        .join(format!("{first:020}.segment"))
}

/// Writes a file that has no mode for that.
fn overwrite(path: &Path, bytes: &[u8]) {
    let _ = fs::remove_file(path);
    fs::write(path, bytes).unwrap();
}

fn damage<T>(result: Result<T, ArchiveError>) -> (PathBuf, Damage) {
    match result {
        Err(ArchiveError::Damaged { path, damage }) => (path, damage),
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("nothing was noticed"),
    }
}

/// Changes the JSON of a segment and makes the SHA-256 in its first line fit.
fn edit(path: &Path, change: impl Fn(&str) -> String) {
    let bytes = fs::read(path).unwrap();
    let mut lines = bytes.splitn(3, |&byte| byte == b'\n');
    lines.next().unwrap();
    let json = std::str::from_utf8(lines.next().unwrap()).unwrap();
    let changed = format!("{}\n", change(json));
    assert_ne!(changed.trim_end(), json);
    let sha256 = Sha256::of(changed.as_bytes());
    let mut text = format!("ima-trim segment 1 {sha256}\n{changed}").into_bytes();
    text.extend(lines.next().unwrap());
    overwrite(path, &text);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    /// Every look-up, before and after the archive is opened anew, against what is computed from
    /// the records.
    #[test]
    fn what_goes_in_comes_out(segments in prop::collection::vec(1u64..9, 0..6)) {
        let scratch = Scratch::new();
        let count: u64 = segments.iter().sum();
        let all = records(0..count);
        let writer = fill(&scratch.root(), 1, &segments);
        let other = open_to_read(&scratch.root(), 1).unwrap();

        for archive in [&**writer.archive(), &other] {
            prop_assert_eq!(archive.segments(), segments.len());
            prop_assert_eq!(archive.records(), count);
            prop_assert!(archive.end().same_values(&point(count)));
            prop_assert_eq!(archive.end().totals().trims, segments.len() as u64);
            let read: Vec<u8> = (0..segments.len()).flat_map(|at| archive.read_segment(at).unwrap()).collect();
            prop_assert!(read == all);

            let verified = archive.verify(|_| {}).unwrap();
            prop_assert_eq!(verified.segments, segments.len() as u64);
            prop_assert_eq!(verified.violations, point(count).totals().violations);
            prop_assert_eq!(verified.bytes, all.len() as u64);

            for number in 0..=count {
                let after = archive.point_after(number).unwrap();
                prop_assert!(after.same_values(&point(number)));
            }
            prop_assert!(archive.point_after(count + 1).is_err());
            prop_assert!(archive.read_segment(segments.len()).is_err());

            let mut first = 0;
            let mut offsets = vec![0; views().len()];
            for (at, &length) in segments.iter().enumerate() {
                let segment = archive.segment(at).unwrap();
                prop_assert_eq!((segment.first, segment.records), (first, length));
                for number in first..first + length {
                    prop_assert_eq!(archive.segment_of_record(number), Some(at));
                }
                for (view, offset) in views().into_iter().zip(&mut offsets) {
                    let begin = *offset;
                    prop_assert_eq!(archive.offset(view, at), Some(begin));
                    for number in first..first + length {
                        let raw = record(number);
                        let record = Record::first(&raw).unwrap().unwrap();
                        let mut shown = Vec::new();
                        view.write(&record, &mut shown).unwrap();
                        let size = shown.len() as u64;
                        for inside in [*offset, *offset + size - 1] {
                            prop_assert_eq!(archive.segment_at_offset(view, inside), Some((at, begin)));
                        }
                        *offset += size;
                    }
                }
                first += length;
            }
            prop_assert_eq!(archive.segment_of_record(count), None);
            for (view, offset) in views().into_iter().zip(offsets) {
                prop_assert_eq!(archive.length(view), Some(offset));
                prop_assert_eq!(archive.offset(view, segments.len()), Some(offset));
                prop_assert_eq!(archive.segment_at_offset(view, offset), None);
            }
        }
    }
}

#[test]
fn the_format_is_what_the_documentation_says() {
    let scratch = Scratch::new();
    let root = scratch.root();
    drop(fill(&root, 1, &[3, 7]));

    let path = file(&root, 1, 3);
    let bytes = fs::read(&path).unwrap();
    let mut lines = bytes.splitn(3, |&byte| byte == b'\n');
    let first = std::str::from_utf8(lines.next().unwrap()).unwrap();
    let json = std::str::from_utf8(lines.next().unwrap()).unwrap();
    let of_json = Sha256::of(format!("{json}\n").as_bytes());
    assert_eq!(first, format!("ima-trim segment 1 {of_json}"));
    assert_eq!(lines.next().unwrap(), records(3..10));

    let before = fs::read(file(&root, 1, 0)).unwrap();
    let previous: Vec<u8> = before
        .split_inclusive(|&byte| byte == b'\n')
        .nth(1)
        .unwrap()
        .to_vec();
    let (mut from, mut to) = (point(3), point(10));
    from.set_trims(1);
    to.set_trims(2);
    let text = |text: String| text.replace('\n', "\\n");
    let start = format!(
        "{{\"boot\":\"{}\",\"first\":3,\"records\":7,\"violations\":1,\"bytes\":{},\
         \"sha256\":\"{}\",\"previous\":\"{}\",\"before\":\"{}\",\"after\":\"{}\",\"lengths\":{{",
        boot(1),
        records(3..10).len(),
        Sha256::of(&records(3..10)),
        Sha256::of(&previous),
        text(from.text()),
        text(to.text()),
    );
    assert!(json.starts_with(&start), "{json}\n{start}");
    let lengths = json.strip_prefix(&start).unwrap();
    for view in views() {
        assert!(lengths.contains(&format!("\"{}\":", view.file_name())));
    }

    // Directories and files are for their owner alone, and files for reading.
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(&root), 0o700);
    assert_eq!(mode(path.parent().unwrap()), 0o700);
    assert_eq!(mode(&path), 0o400);
}

#[test]
fn what_is_not_whole_records_is_refused_and_nothing_changes() {
    let scratch = Scratch::new();
    let mut writer = fill(&scratch.root(), 1, &[3]);
    let mut refuse = |bytes: &[u8]| match writer.append(bytes, 1).unwrap_err() {
        ArchiveError::Records(problem) => problem,
        error => panic!("{error}"),
    };

    assert_eq!(refuse(&[]), NotRecords::Empty);
    let more = records(3..5);
    assert_eq!(
        refuse(&more[..more.len() - 1]),
        NotRecords::Partial(record(4).len() - 1)
    );
    let mut bad = records(3..5);
    let name = record(3).len() + 24;
    bad[name..name + 4].copy_from_slice(&u32::MAX.to_ne_bytes());
    assert!(matches!(refuse(&bad), NotRecords::Record { number: 4, .. }));
    let mut bad = records(3..5);
    bad[record(3).len() + 28] = b'!';
    assert!(matches!(
        refuse(&bad),
        NotRecords::Template { number: 4, .. }
    ));
    writer.append(&records(3..5), 1).unwrap();
    assert_eq!(writer.archive().verify(|_| {}).unwrap().records, 5);
}

#[test]
fn an_earlier_boot_tells_by_itself_what_its_list_began_with() {
    let scratch = Scratch::new();
    let root = scratch.root();
    drop(fill(&root, 1, &[3, 4]));
    drop(fill(&root, 2, &[]));
    let earlier = |number| Archive::open_earlier(&root, &boot(number), &[SOURCE]);

    let archive = earlier(1).unwrap();
    assert_eq!(archive.verify(|_| {}).unwrap().records, 7);
    assert!(archive.end().same_values(&point(7)));
    assert_eq!(archive.read_segment(1).unwrap(), records(3..7));

    // No segment, and none at the beginning.
    for (number, first) in [(2, 0), (3, 0)] {
        match earlier(number).unwrap_err() {
            ArchiveError::Io { path, errno, .. } => {
                let directory = root.join(boot(number).as_str());
                assert!(path == file(&root, number, first) || path == directory);
                assert_eq!(errno.raw_os_error(), 2);
            }
            error => panic!("{error}"),
        }
    }
    let first = file(&root, 1, 0);
    let bytes = fs::read(&first).unwrap();
    fs::remove_file(&first).unwrap();
    let missing = (first.clone(), Damage::Missing { next: 3 });
    assert_eq!(damage(earlier(1)), missing);

    // One that begins elsewhere, and says so.
    overwrite(&first, &bytes);
    let begin = start().text().lines().next().unwrap().to_owned();
    let other = point(1).text().lines().next().unwrap().to_owned();
    edit(&first, |json| json.replacen(&begin, &other, 1));
    assert_eq!(damage(earlier(1)), (first, Damage::Beginning));
}

#[test]
fn one_owner_and_the_second_is_told_which() {
    let scratch = Scratch::new();
    let root = scratch.root();
    let writer = fill(&root, 1, &[3]);

    for number in [1, 2] {
        match open_once(&root, number).unwrap_err() {
            ArchiveError::Locked { path, pid } => {
                assert_eq!((path, pid), (root.clone(), Some(std::process::id())));
            }
            error => panic!("{error}"),
        }
    }
    // Who only reads needs no lock, and removes nothing.
    let tmp = file(&root, 1, 3).with_extension("segment.tmp");
    overwrite(&tmp, b"half");
    assert_eq!(open_to_read(&root, 1).unwrap().records(), 3);
    assert!(tmp.exists());
    drop(writer);
    assert_eq!(open(&root, 1).unwrap().archive().records(), 3);
    assert!(!tmp.exists());
}

#[test]
fn every_byte_that_is_changed_is_noticed() {
    let scratch = Scratch::new();
    let root = scratch.root();
    drop(fill(&root, 1, &[2, 2]));

    // The last segment, whose header no other one names.
    for first in [0, 2] {
        let path = file(&root, 1, first);
        let good = fs::read(&path).unwrap();
        let header = good.len() - records(first..first + 2).len();
        let step = |at: usize| if at < 120 { 1 } else { 13 };
        let mut at = 0;
        while at < good.len() {
            for bit in [0x01, 0x40] {
                let mut bad = good.clone();
                bad[at] ^= bit;
                overwrite(&path, &bad);
                let archive = open_to_read(&root, 1);
                if at >= header {
                    // Found when it is read, and by whoever looks at everything.
                    let archive = archive.unwrap();
                    let index = usize::from(first != 0);
                    for result in [
                        archive.read_segment(index).map(|_| ()),
                        archive.verify(|_| {}).map(|_| ()),
                    ] {
                        let (name, damage) = damage(result);
                        assert_eq!(name, path);
                        assert!(matches!(damage, Damage::Records { .. }), "{damage}");
                    }
                    archive.read_segment(1 - index).unwrap();
                    continue;
                }
                match archive.unwrap_err() {
                    ArchiveError::Damaged {
                        path: name,
                        damage: Damage::Header(_),
                    } => assert_eq!(name, path),
                    // The number of the format: a 1 that became a 0 or a q is none.
                    error => panic!("{at} {bit}: {error}"),
                }
            }
            at += step(at);
        }
        overwrite(&path, &good);
    }
    assert_eq!(open_to_read(&root, 1).unwrap().records(), 4);
}

#[test]
fn each_damage_has_its_name() {
    let scratch = Scratch::new();
    let root = scratch.root();
    let fresh = || {
        let _ = fs::remove_dir_all(&root);
        drop(fill(&root, 2, &[2, 3, 1]));
        drop(fill(&root, 1, &[2, 3, 1]));
    };
    let [first, second, third] = [0, 2, 5].map(|number| file(&root, 1, number));
    let expect = |at: &Path, expected: Damage| {
        // Whoever writes and whoever reads finds the same.
        assert_eq!(
            damage(open_to_read(&root, 1)),
            (at.to_owned(), expected.clone())
        );
        assert_eq!(damage(open(&root, 1)), (at.to_owned(), expected));
    };

    // Missing, in the middle and at the beginning.
    fresh();
    fs::remove_file(&second).unwrap();
    expect(&second, Damage::Missing { next: 5 });
    fresh();
    fs::remove_file(&first).unwrap();
    expect(&first, Damage::Missing { next: 2 });
    // The last one cannot be missed here. What is there is right.
    fresh();
    fs::remove_file(&third).unwrap();
    assert_eq!(open_to_read(&root, 1).unwrap().records(), 5);

    // Shorter, longer, empty.
    for change in [-1i64, 1] {
        fresh();
        let mut bytes = fs::read(&second).unwrap();
        let expected = bytes.len() as u64;
        let found = expected.checked_add_signed(change).unwrap();
        bytes.resize(usize::try_from(found).unwrap(), 0);
        overwrite(&second, &bytes);
        expect(&second, Damage::Size { expected, found });
    }
    fresh();
    overwrite(&third, b"");
    expect(&third, Damage::Header("it does not end".to_owned()));
    fresh();
    overwrite(
        &third,
        &[b"ima-trim segment 1 ".as_slice(), &[b'0'; 300_000]].concat(),
    );
    expect(&third, Damage::Header("it does not end".to_owned()));

    // Two that have changed their names.
    fresh();
    let tmp = root.join("tmp");
    fs::rename(&second, &tmp).unwrap();
    fs::rename(&third, &second).unwrap();
    fs::rename(&tmp, &third).unwrap();
    expect(&second, Damage::Number(5));

    // Of another boot: one, and all.
    fresh();
    fs::copy(file(&root, 2, 2), root.join("copy")).unwrap();
    fs::rename(root.join("copy"), &second).unwrap();
    expect(&second, Damage::ForeignBoot(boot(2)));
    fresh();
    fs::remove_dir_all(root.join(boot(1).as_str())).unwrap();
    fs::rename(root.join(boot(2).as_str()), root.join(boot(1).as_str())).unwrap();
    expect(&first, Damage::ForeignBoot(boot(2)));

    // One more, where another one is, and one that is none.
    fresh();
    fs::copy(&third, file(&root, 1, 3)).unwrap();
    expect(&file(&root, 1, 3), Damage::Overlap { last: 4 });
    fresh();
    fs::copy(&third, file(&root, 1, 1)).unwrap();
    expect(&file(&root, 1, 1), Damage::Overlap { last: 1 });
    for name in ["5.segment", "+0000000000000000005.segment", "a.segment"] {
        fresh();
        let stray = first.with_file_name(name);
        fs::copy(&third, &stray).unwrap();
        expect(&stray, Damage::Name);
    }

    // Headers that were made to fit.
    fresh();
    edit(&first, |json| {
        json.replace("\"trims", " \"trims")
            .replace("trims=1", "trims=9")
    });
    expect(&second, Damage::Chain);
    fresh();
    edit(&third, |json| {
        json.replace("\"violations\":0", "\"violations\":1")
    });
    expect(&third, Damage::Points);
    fresh();
    edit(&third, |json| json.replacen("sha256:10=", "sha256:10=f", 1));
    let (at, what) = damage(open_to_read(&root, 1));
    assert!(at == third && matches!(&what, Damage::Header(_)), "{what}");
    fresh();
    let (before, other) = (point(5).text(), point(4).text());
    let [before, other] = [before, other].map(|text| text.lines().next().unwrap().to_owned());
    edit(&third, |json| json.replacen(&before, &other, 1));
    expect(&third, Damage::Points);

    // What opening cannot find, and a look at all records does.
    fresh();
    let (after, other) = (point(6).text(), point(4).text());
    let [after, other] = [after, other].map(|text| text.lines().next().unwrap().to_owned());
    edit(&third, |json| json.replacen(&after, &other, 1));
    let archive = open_to_read(&root, 1).unwrap();
    assert_eq!(
        damage(archive.verify(|_| {})),
        (third.clone(), Damage::Replay)
    );
    fresh();
    edit(&third, |json| {
        json.replace(
            "ascii_runtime_measurements_sha384\":",
            "ascii_runtime_measurements_sha384\":1",
        )
    });
    let archive = open_to_read(&root, 1).unwrap();
    let name = "ascii_runtime_measurements_sha384".to_owned();
    assert_eq!(
        damage(archive.verify(|_| {})),
        (third.clone(), Damage::Length(name))
    );

    // What happens to a file while the archive is open.
    fresh();
    let archive = open_to_read(&root, 1).unwrap();
    edit(&third, |json| json.replace("trims=3", "trims=4"));
    assert_eq!(
        damage(archive.read_segment(2)),
        (third.clone(), Damage::Changed)
    );
    fs::remove_file(&third).unwrap();
    assert!(matches!(archive.read_segment(2), Err(ArchiveError::Io { path, .. }) if path == third));

    // A later format.
    fresh();
    overwrite(&second, b"ima-trim segment 20 what do we know\n");
    let error = open_to_read(&root, 1).unwrap_err();
    assert_eq!(
        error,
        ArchiveError::Version {
            path: second,
            found: 20,
            known: 1
        }
    );
    assert!(error.to_string().contains("use a newer one"));

    // Another beginning than this boot's.
    fresh();
    let other = point(1);
    let error = Archive::open(&root, &boot(1), &other, &views()).unwrap_err();
    assert!(matches!(error, ArchiveError::Damaged { .. }), "{error}");
    let other = ima_trim::pcrs::Point::reset(
        &[ima_trim::algorithm::Algorithm::Sha256],
        ima_trim_pure::bank::Pcr::new(10).unwrap(),
    );
    let error = Archive::open(&root, &boot(1), &other, &views()).unwrap_err();
    assert!(matches!(error, ArchiveError::Start { .. }), "{error}");
}

#[test]
fn a_file_that_an_earlier_program_did_not_know_is_measured_anew() {
    let scratch = Scratch::new();
    let root = scratch.root();
    let few = &views()[..3];
    let mut writer = Writer::open(&root, &boot(1), &start(), few).unwrap();
    writer.append(&records(0..8), 1).unwrap();
    assert_eq!(writer.archive().length(views()[3]), None);
    drop(writer);

    let old = open_to_read(&root, 1).unwrap();
    let other = Scratch::new();
    let new = fill(&other.root(), 1, &[8]);
    for view in views() {
        assert_eq!(old.length(view), new.archive().length(view));
    }
    assert_eq!(old.verify(|_| {}).unwrap().records, 8);
}

#[test]
fn what_is_left_of_an_earlier_boot_and_cannot_go_stops_nobody() {
    let scratch = Scratch::new();
    let root = scratch.root();
    drop(fill(&root, 1, &[2]));
    let left = root.join(format!("{}.removed", boot(1).as_str()));
    fs::rename(root.join(boot(1).as_str()), &left).unwrap();
    // Somebody has kept something there.
    fs::create_dir(left.join("copies")).unwrap();
    let writer = fill(&root, 2, &[3]);
    assert_eq!(writer.archive().records(), 3);
    assert!(left.join("copies").exists());
}

#[test]
fn progress_ends_at_the_end() {
    let scratch = Scratch::new();
    let writer = fill(&scratch.root(), 1, &[2, 3, 1]);
    let mut seen = Vec::new();
    writer
        .archive()
        .verify(|progress| seen.push((progress.records, progress.of)))
        .unwrap();
    assert_eq!(seen, [(2, 6), (5, 6), (6, 6)]);
}

#[test]
fn earlier_boots_go_in_the_order_in_which_they_were() {
    let scratch = Scratch::new();
    let root = scratch.root();
    // Their names and, as the last is the first that is changed, their times say otherwise.
    let order = [4, 2, 9, 3];
    for number in order {
        drop(fill(&root, number, &[5]));
    }
    drop(fill(&root, 8, &[]));
    fs::create_dir(root.join("requests")).unwrap();
    overwrite(&root.join("requests/1"), b"");
    let name = root.join(boot(4).as_str()).join("number");
    fs::File::open(name)
        .unwrap()
        .set_modified(std::time::SystemTime::now() + Duration::from_secs(99))
        .unwrap();
    let mut writer = fill(&root, 1, &[5]);

    let ids = |boots: Vec<ima_trim::archive::Boot>| -> Vec<_> {
        boots.into_iter().map(|boot| boot.id).collect()
    };
    let there = || ids(boots(&root).unwrap());
    let bytes = boots(&root).unwrap()[0].bytes;
    assert_eq!(there(), [4, 2, 9, 3, 8, 1].map(boot));

    // One without segments is not kept, whatever is allowed.
    let all = Keep {
        boots: 9,
        bytes: u64::MAX,
    };
    assert_eq!(ids(writer.prune(all, &[]).unwrap()), [8].map(boot));
    assert_eq!(ids(writer.prune(all, &[]).unwrap()), []);
    // Not the one that is needed, and not this one.
    let keep = Keep {
        boots: 2,
        bytes: u64::MAX,
    };
    assert_eq!(ids(writer.prune(keep, &[boot(4)]).unwrap()), [2].map(boot));
    let keep = Keep {
        boots: 9,
        bytes: bytes + bytes / 2,
    };
    assert_eq!(ids(writer.prune(keep, &[boot(4)]).unwrap()), [9].map(boot));
    assert_eq!(there(), [4, 3, 1].map(boot));
    let none = Keep { boots: 0, bytes: 0 };
    assert_eq!(ids(writer.prune(none, &[]).unwrap()), [4, 3].map(boot));
    assert_eq!(there(), [1].map(boot));
    assert!(root.join("requests/1").exists());
    assert_eq!(writer.archive().verify(|_| {}).unwrap().records, 5);
}

/// Archives segments for as long as it can, in a process of its own, and says how many records are
/// there after each.
#[test]
#[ignore = "the other half of tests that start it"]
fn child() {
    let root = PathBuf::from(std::env::var_os("IMA_TRIM_TEST_ROOT").unwrap());
    let mut out = std::io::stdout();
    let mut writer = open(&root, 1).unwrap();
    while writer.archive().records() < 50_000 {
        let have = writer.archive().records();
        writeln!(out, "have {have}").unwrap();
        let more = 1 + have % 31;
        if let Err(error) = writer.append(&records(have..have + more), 1) {
            writeln!(out, "error {error}").unwrap();
            return;
        }
    }
}

fn child_command() -> Vec<String> {
    let program = std::env::current_exe().unwrap();
    let mut command = vec![program.to_str().unwrap().to_owned()];
    command.extend(["--exact", "child", "--ignored", "--nocapture"].map(str::to_owned));
    command
}

#[test]
fn a_process_that_is_killed_200_times_loses_nothing() {
    let scratch = Scratch::new();
    let mut root = PathBuf::new();
    let command = child_command();
    let mut seed = 1u64;
    let mut before = 0;
    let mut cut_off = 0;

    let mut all_records = 0;

    for round in 0..200 {
        // Otherwise most of the time goes by with opening what has become long.
        if round % 20 == 0 {
            root = scratch.path().join(round.to_string());
            before = 0;
        }
        let mut child = Command::new(&command[0])
            .args(&command[1..])
            .env("IMA_TRIM_TEST_ROOT", &root)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut said = before;
        let mut next = |said: &mut u64| {
            let have = lines.next().map(Result::unwrap);
            if let Some(have) = have.as_ref().and_then(|line| line.strip_prefix("have ")) {
                *said = have.parse().unwrap();
            }
            have.is_some()
        };
        // Usually when it is at work, sometimes while it opens the archive.
        while round % 8 != 0 && said == before && next(&mut said) {}
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        std::thread::sleep(Duration::from_micros((seed >> 33) % 6000));
        child.kill().unwrap();
        child.wait().unwrap();
        while next(&mut said) {}

        let archive = open_to_read(&root, 1).unwrap_or_else(|error| match error {
            // It was killed before it began.
            ArchiveError::Io { .. } if before == 0 => open(&root, 1)
                .map(drop)
                .and_then(|()| open_to_read(&root, 1))
                .unwrap(),
            error => panic!("{error}"),
        });
        let have = archive.records();
        assert!(
            have == said || have == said + 1 + said % 31,
            "{said} {have}"
        );
        cut_off += u32::from(have != said);
        before = have;
        if round % 20 == 19 {
            let writer = open(&root, 1).unwrap();
            let archive = writer.archive();
            let all: Vec<u8> = (0..archive.segments())
                .flat_map(|at| archive.read_segment(at).unwrap())
                .collect();
            assert!(all == records(0..before));
            assert_eq!(archive.verify(|_| {}).unwrap().records, before);
            all_records += before;
        }
    }
    assert!(all_records > 200, "{all_records}");
    println!("{all_records} records, {cut_off} appends that ended unheard");
}

/// The kernel itself refuses to write more: in the middle of a file, after a short write.
#[test]
fn a_limit_of_the_kernel_is_met_in_the_middle_of_a_file() {
    let scratch = Scratch::new();
    let root = scratch.root();
    // The header alone has some 1.4 KiB; the limit is in blocks of 512 bytes.
    let script = "trap '' XFSZ; ulimit -f 4; exec \"$@\"";
    let output = Command::new("sh")
        .args(["-c", script, "sh"])
        .args(child_command())
        .env("IMA_TRIM_TEST_ROOT", &root)
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let error = text
        .lines()
        .find(|line| line.starts_with("error "))
        .unwrap();
    assert!(error.contains("cannot write "), "{error}");
    assert!(error.contains(".segment.tmp: "), "{error}");
    let said = text
        .lines()
        .filter_map(|line| line.strip_prefix("have "))
        .next_back();
    let have: u64 = said.unwrap().parse().unwrap();

    let writer = fill(&root, 1, &[5]);
    assert_eq!(writer.archive().verify(|_| {}).unwrap().records, have + 5);
}
