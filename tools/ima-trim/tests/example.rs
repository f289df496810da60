// SPDX-License-Identifier: GPL-2.0

//! The example of `Documentation/admin-guide/verifier.rst`, with what a TPM quoted:
//! `example/make.py`. The page has the output that is compared here.

// What few bytes are printed here need not be printed fast.
#![allow(clippy::format_collect)]

use std::fs;
use std::path::Path;
use std::path::PathBuf;

use clap::Args;
use clap::Command;
use clap::FromArgMatches;
use ima_trim::command::request;
use ima_trim::command::state;
use ima_trim::command::verifier;
use ima_trim::command::Failure;

#[path = "common/keys.rs"]
mod keys;

/// A directory for a verifier, removed with it.
struct Memory(PathBuf);

impl Memory {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("ima-trim.{name}.{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn example(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/example");
    path.join(name).display().to_string()
}

fn parse<T: Args + FromArgMatches>(words: &[String]) -> Result<T, clap::Error> {
    let command = T::augment_args(Command::new("ima-trim").no_binary_name(true));
    T::from_arg_matches(&command.try_get_matches_from(words)?)
}

/// The digest of the policy in the list of the example.
fn policy() -> String {
    let list = fs::read(example("first.list")).unwrap();
    let name = b"ima_policy_loaded";
    let at = list.windows(name.len()).position(|at| at == name).unwrap();
    // Before it are the digest and the length of the name.
    let digest = &list[at - 4 - 32..at - 4];
    let digits: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{digits}")
}

/// What a visit needs, with the nonce that was sent.
fn visit(memory: &Memory, name: &str, nonce: &str, more: &[&str]) -> Vec<String> {
    let file = |ending: &str| example(&format!("{name}.{ending}"));
    let mut words: Vec<String> = [
        "--state",
        &memory.path("state"),
        "--keep",
        &memory.path("records"),
        "--log",
        &file("list"),
        "--pcrs",
        &file("pcrs"),
        "--quote",
        &file("msg"),
        "--signature",
        &file("sig"),
        "--key",
        &example("ak.pem"),
        "--nonce",
        nonce,
        "--policy",
        &policy(),
    ]
    .map(str::to_owned)
    .to_vec();
    words.extend(more.iter().map(|word| (*word).to_owned()));
    words
}

fn verify(words: &[String]) -> (Result<(), Failure>, String) {
    let mut out = Vec::new();
    let result = verifier::run(&parse(words).unwrap(), &mut out);
    (result, String::from_utf8(out).unwrap())
}

fn ask(words: &[String]) -> (Result<(), Failure>, String) {
    let mut out = Vec::new();
    let result = request::run(&parse(words).unwrap(), &mut out);
    (result, String::from_utf8(out).unwrap())
}

fn documentation() -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    fs::read_to_string(root.join("Documentation/admin-guide/verifier.rst")).unwrap()
}

/// Whether the page has this output. Long lines are cut there.
#[track_caller]
fn is_documented(output: &str) {
    let page = documentation();
    for line in output.lines() {
        let shown = page
            .lines()
            .map(str::trim)
            .any(|of| match of.strip_suffix("...") {
                Some(cut) if cut.len() > 20 => line.trim().starts_with(cut),
                _ => line.trim() == of,
            });
        assert!(
            shown,
            "not in Documentation/admin-guide/verifier.rst: {line}"
        );
    }
}

#[test]
fn the_example() {
    let memory = Memory::new("example");
    let first = visit(&memory, "first", "c0ffee00", &[]);
    let (result, output) = verify(&first);
    assert!(matches!(result, Err(Failure::Negative(_))), "{output}");
    assert!(output.contains("V12, record 6"), "{output}");
    assert!(!Path::new(&memory.path("state")).exists());
    is_documented(&output);

    let first = visit(&memory, "first", "c0ffee00", &["--violations", "1"]);
    let (result, output) = verify(&first);
    assert_eq!(result, Ok(()), "{output}");
    is_documented(&output);
    let list = fs::read(example("first.list")).unwrap();
    assert_eq!(fs::read(memory.path("records")).unwrap(), list);

    let state = ["--state".to_owned(), memory.path("state")];
    let (result, output) = ask(&state);
    assert_eq!(result, Ok(()), "{output}");
    is_documented(&output);

    let starting = example("second.starting");
    let second = visit(&memory, "second", "8badf00d", &["--starting", &starting]);
    let (result, output) = verify(&second);
    assert_eq!(result, Ok(()), "{output}");
    is_documented(&output);
    let whole = [list, fs::read(example("second.list")).unwrap()].concat();
    assert_eq!(fs::read(memory.path("records")).unwrap(), whole);

    // The same again changes nothing.
    let (result, _) = verify(&second);
    assert_eq!(result, Ok(()));
    assert_eq!(fs::read(memory.path("records")).unwrap(), whole);

    // A verifier without memory: the kept records are the whole list.
    let without = |words: Vec<String>| -> Vec<String> {
        let at = words.iter().position(|word| word == "--log").unwrap();
        words[at..].to_vec()
    };
    let (result, output) = verify(&without(second));
    assert!(matches!(result, Err(Failure::Negative(_))), "{output}");
    is_documented(&output);
    let mut all = without(visit(&memory, "second", "8badf00d", &["--violations", "1"]));
    all[1] = memory.path("records");
    let (result, output) = verify(&all);
    assert_eq!(result, Ok(()), "{output}");
    is_documented(output.lines().next().unwrap());
}

#[test]
fn one_byte_of_anything() {
    let memory = Memory::new("bytes");
    assert_eq!(
        verify(&visit(&memory, "first", "c0ffee00", &["--violations", "1"])).0,
        Ok(())
    );
    let state = fs::read(memory.path("state")).unwrap();
    let starting = example("second.starting");
    let words = visit(&memory, "second", "8badf00d", &["--starting", &starting]);
    for option in ["--log", "--starting", "--quote", "--signature", "--key"] {
        let at = words.iter().position(|word| word == option).unwrap() + 1;
        let good = fs::read(&words[at]).unwrap();
        for byte in (0..good.len()).step_by(7) {
            // The digest that the list shows says nothing, as long as it is not that of a
            // violation.
            let mut bad = good.clone();
            bad[byte] ^= 1;
            fs::write(memory.path("bad"), &bad).unwrap();
            let mut forged = words.clone();
            forged[at] = memory.path("bad");
            let (result, output) = verify(&forged);
            if result.is_ok() {
                assert!(
                    option == "--log" && is_sha1(&good, byte),
                    "{option}, byte {byte}: {output}"
                );
                fs::write(memory.path("state"), &state).unwrap();
            }
        }
    }
}

/// Whether this byte of a list is one of a digest that it shows.
fn is_sha1(list: &[u8], byte: usize) -> bool {
    let mut at = 0;
    for record in ima_trim::record::Records::new(list).map_while(Result::ok) {
        if (at + 4..at + 24).contains(&byte) {
            return true;
        }
        at += record.raw().len();
    }
    false
}

#[test]
fn usage() {
    let words =
        |words: &[&str]| -> Vec<String> { words.iter().map(|word| (*word).to_owned()).collect() };
    for bad in [
        &["--log", "list"][..],
        &["--pcrs", "pcrs"],
        &["--log", "list", "--pcrs", "pcrs", "--quote", "quote"],
        &["--log", "list", "--pcrs", "pcrs", "--policy", "sha256:00"],
        &["--log", "list", "--pcrs", "pcrs", "--policy-file", "any"],
        &["--log", "list", "--pcrs", "pcrs", "--pcr", "24"],
        &["--log", "list", "--pcrs", "pcrs", "--guard", "off"],
        &["--log", "list", "--pcrs", "pcrs", "--keep", "records"],
    ] {
        assert!(
            parse::<verifier::Arguments>(&words(bad)).is_err(),
            "{bad:?}"
        );
    }
    let decisions = |more: &[&str]| {
        let all = [&["--log", "list", "--pcrs", "pcrs"], more].concat();
        parse::<verifier::Arguments>(&words(&all))
            .unwrap()
            .decisions
    };
    assert!(decisions(&[]).events);
    assert!(!decisions(&["--events", "off"]).events);
    assert!(decisions(&["--events", "on"]).events);
    assert_eq!(decisions(&["--guard", "any"]).guard, "any");
    assert_eq!(
        decisions(&["--kernel", "md5:00", "--kernel", "md5:01"])
            .kernel
            .len(),
        2
    );
    let file = ["--policy-file", "md5:00"];
    assert_eq!(decisions(&file).policy_file, ["md5:00"]);
    assert!(decisions(&file).policy.is_empty());
    let (result, _) = verify(&words(&["--log", "/nowhere", "--pcrs", "/nowhere"]));
    assert!(matches!(result, Err(Failure::Failed(_))));
    let (result, _) = ask(&words(&["--state", "/nowhere"]));
    assert!(matches!(result, Err(Failure::Failed(_))));
}

#[test]
fn one_judges_at_a_time() {
    let memory = Memory::new("alone");
    let (result, output) = verify(&visit(&memory, "first", "c0ffee00", &["--violations", "1"]));
    assert_eq!(result, Ok(()), "{output}");
    assert!(!Path::new(&memory.path("state.new")).exists());

    // Another one is about to accept the first visit.
    let state = memory.path("state");
    fs::rename(&state, memory.path("state.new")).unwrap();
    let other = fs::File::open(memory.path("state.new")).unwrap();
    rustix::fs::flock(&other, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let starting = example("second.starting");
    let second = visit(&memory, "second", "8badf00d", &["--starting", &starting]);
    let judged = std::thread::spawn(move || verify(&second));
    std::thread::sleep(std::time::Duration::from_millis(300));
    assert!(!judged.is_finished());

    // Without what the other one knows, the second visit would be refused.
    fs::rename(memory.path("state.new"), &state).unwrap();
    drop(other);
    let (result, output) = judged.join().unwrap();
    assert_eq!(result, Ok(()), "{output}");
    assert!(!Path::new(&memory.path("state.new")).exists());
}

#[test]
fn another_verifier_goes_on() {
    let keys = keys::Keys::new("export");
    keys.make("one", &keys::P256);
    keys.make("other", &["rsa:2048"]);
    let memory = Memory::new("exports");
    let export = |name: &str| {
        let command = state::Command::Export(state::ExportArguments {
            state: memory.path("state").into(),
            sign: keys.path(&format!("{name}.key")).display().to_string(),
        });
        let mut out = Vec::new();
        state::run(&command, &mut out).map(|()| String::from_utf8(out).unwrap())
    };
    assert!(matches!(export("one"), Err(Failure::Failed(_))));
    let (result, output) = verify(&visit(&memory, "first", "c0ffee00", &["--violations", "1"]));
    assert_eq!(result, Ok(()), "{output}");
    let exported = export("one").unwrap();

    let second = Memory::new("imports");
    let import = |text: &str, key: &str| {
        fs::write(second.path("export"), text).unwrap();
        let command = state::Command::Import(state::ImportArguments {
            state: second.path("state").into(),
            trust_key: keys.path(&format!("{key}.pub")),
            export: second.path("export").into(),
        });
        state::run(&command, &mut Vec::new())
    };
    // By another key; with one digit of a value altered; with a signature of something else.
    let negative = |result: Result<(), Failure>| matches!(result, Err(Failure::Negative(_)));
    assert!(negative(import(&exported, "other")));
    assert!(negative(import(&export("other").unwrap(), "one")));
    let altered = exported.replacen("records=", "records=1", 1);
    assert_ne!(altered, exported);
    assert!(negative(import(&altered, "one")));
    assert!(matches!(import("{}", "one"), Err(Failure::Failed(_))));
    assert!(!Path::new(&second.path("state")).exists());

    assert_eq!(import(&exported, "one"), Ok(()));
    let same = fs::read(memory.path("state")).unwrap();
    assert_eq!(fs::read(second.path("state")).unwrap(), same);
    // What it knows is not replaced.
    assert!(matches!(import(&exported, "one"), Err(Failure::Failed(_))));
    let starting = example("second.starting");
    let mut words = visit(&second, "second", "8badf00d", &["--starting", &starting]);
    // The first one has the records, and this one does not keep any.
    let keep = words.iter().position(|word| word == "--keep").unwrap();
    words.drain(keep..keep + 2);
    let (result, output) = verify(&words);
    assert_eq!(result, Ok(()), "{output}");
}

#[test]
fn a_request_states_what_was_looked_at() {
    let memory = Memory::new("request");
    assert_eq!(
        verify(&visit(&memory, "first", "c0ffee00", &["--violations", "1"])).0,
        Ok(())
    );
    let words = |more: &[&str]| {
        let mut words = vec!["--state".to_owned(), memory.path("state")];
        words.extend(more.iter().map(|word| (*word).to_owned()));
        words
    };
    let (result, output) = ask(&words(&["--violations", "1", "--instance", "any"]));
    assert_eq!(result, Ok(()));
    assert!(output.ends_with(" violations=1\n"), "{output}");
    let (result, output) = ask(&words(&["--violations", "0"]));
    assert!(matches!(result, Err(Failure::Negative(_))));
    assert_eq!(output, "");
    fs::write(memory.path("state"), "{}").unwrap();
    let (result, _) = ask(&words(&[]));
    assert!(matches!(result, Err(Failure::Failed(_))));
}
