// SPDX-License-Identifier: GPL-2.0

//! The rules of `Documentation/admin-guide/verifier.rst`, one by one.
//!
//! There is one good history, which a verifier follows in visits. Each test makes one change to it,
//! and says which rule must find it, at which record.

// What few bytes are printed here need not be printed fast.
#![allow(clippy::format_collect)]

mod common;
mod machine;

use std::sync::OnceLock;

use ima_trim::pcrfile::PcrFile;
use ima_trim::pcrs::Point;
use ima_trim::quote::PublicKey;
use ima_trim::record::Record;
use ima_trim::verifier::verify;
use ima_trim::verifier::Event;
use ima_trim::verifier::Input;
use ima_trim::verifier::Kind;
use ima_trim::verifier::Options;
use ima_trim::verifier::Outcome;
use ima_trim::verifier::Quoted;
use ima_trim::verifier::State;
use ima_trim::verifier::StateError;
use ima_trim::verifier::Verdict;
use ima_trim::verifier::VerifyError;
use ima_trim_pure::bank::Pcr;
use sha2::Digest;
use sha2::Sha256;

use common::Build;
use machine::buffer;
use machine::change_text;
use machine::file;
use machine::hex;
use machine::Edit;
use machine::Evidence;
use machine::Machine;
use machine::Signer;
use machine::POLICY;

fn digest(data: &str) -> String {
    format!("sha256:{}", hex(&Sha256::digest(data)))
}

/// What the verifier decides in the good history.
fn options() -> Options {
    let mut options = Options::new(Pcr::new(10).unwrap());
    options.policies = vec![digest(POLICY)];
    options.violations = Some(1);
    options.kernels = [digest("/boot/vmlinuz")].into_iter().collect();
    options
}

fn nothing() -> Edit<'static> {
    Box::new(|_, _| {})
}

fn send(options: &Options, state: &State, evidence: &Evidence) -> Outcome {
    try_send(options, state, evidence).unwrap()
}

fn try_send(options: &Options, state: &State, evidence: &Evidence) -> Result<Outcome, VerifyError> {
    submit(options, state, evidence, &Form::default())
}

/// In which form evidence is sent.
#[derive(Clone, Debug)]
struct Form {
    /// Other bytes than those of the list.
    log: Option<Vec<u8>>,
    /// The list has all records, whatever starting values there are.
    whole: bool,
    /// Whether there is a quote.
    quoted: bool,
    /// Other PCR values than those of the evidence.
    pcrs: Option<String>,
}

impl Default for Form {
    fn default() -> Self {
        Self {
            log: None,
            whole: false,
            quoted: true,
            pcrs: None,
        }
    }
}

fn submit(
    options: &Options,
    state: &State,
    evidence: &Evidence,
    form: &Form,
) -> Result<Outcome, VerifyError> {
    let message = evidence.message();
    let signature = evidence.signature(&message);
    let key = PublicKey::parse(evidence.key().as_bytes()).unwrap();
    let pcrs = form.pcrs.clone().unwrap_or_else(|| evidence.printed());
    let kept: Option<Vec<u8>> = evidence
        .kept
        .as_ref()
        .map(|records| records.iter().flat_map(Build::bytes).collect());
    let input = Input {
        log: &form.log.clone().unwrap_or_else(|| evidence.log()),
        whole: form.whole || evidence.starting.is_none(),
        starting: evidence.starting.as_ref().map(String::as_bytes),
        pcrs: &PcrFile::parse(pcrs.as_bytes(), None).unwrap(),
        quote: form.quoted.then_some(Quoted {
            message: &message,
            signature: &signature,
            key: &key,
            nonce: b"a nonce",
        }),
        kept: kept.as_deref(),
    };
    verify(options, state, &input)
}

/// The verdict on these bytes as the whole list.
fn send_log(log: Vec<u8>, evidence: &Evidence) -> Verdict {
    let form = Form {
        log: Some(log),
        ..Form::default()
    };
    submit(&options(), &State::default(), evidence, &form)
        .unwrap()
        .verdict
}

/// What changes what is sent on a visit of this name.
type Change<'a> = Box<dyn Fn(&str, &mut Evidence) + 'a>;

/// One visit of the verifier.
#[derive(Clone)]
struct Visit {
    before: State,
    evidence: Evidence,
    outcome: Outcome,
}

/// The good history, up to where a verdict is not the one that is expected.
///
/// Each visit begins with the state that the one before left, and is passed through `change` on
/// its way to the verifier.
struct History<'a> {
    options: Options,
    machine: Machine<'a>,
    state: State,
    change: Change<'a>,
    keep: bool,
    kept: Vec<Build>,
    visits: Vec<(&'static str, Visit)>,
}

impl History<'_> {
    /// False if the machine was refused.
    fn visit(&mut self, name: &'static str, whole: bool) -> bool {
        let mut evidence = self.machine.evidence(whole);
        if self.keep {
            evidence.kept = Some(self.kept.clone());
        }
        (self.change)(name, &mut evidence);
        let outcome = send(&self.options, &self.state, &evidence);
        let before = self.state.clone();
        if let Some(state) = &outcome.state {
            self.kept = self.machine.records.clone();
            self.state = state.clone();
        }
        let accepted = outcome.state.is_some();
        self.visits.push((
            name,
            Visit {
                before,
                evidence,
                outcome,
            },
        ));
        accepted
    }

    /// Everything that a machine does.
    fn run(&mut self) -> bool {
        let machine = &mut self.machine;
        machine.policy("policy");
        machine.load("load", 'a');
        machine.file("server");
        machine.file("plugin");
        machine.violation("plugin");
        if !self.visit("first", true) {
            return false;
        }
        let machine = &mut self.machine;
        machine.file("conf");
        machine.trim("trim", 6, true);
        machine.file("motd");
        if !self.visit("trimmed", false) {
            return false;
        }
        let machine = &mut self.machine;
        machine.file("ten");
        machine.trim("announced", 9, false);
        machine.file("twelve");
        if !self.visit("announced", false) {
            return false;
        }
        let machine = &mut self.machine;
        machine.trim("alternative", 12, true);
        machine.file("fourteen");
        if !self.visit("alternative", false) {
            return false;
        }
        let machine = &mut self.machine;
        machine.load("reload", 'b');
        machine.restore("restore");
        machine.file("seventeen");
        if !self.visit("restored", false) {
            return false;
        }
        let machine = &mut self.machine;
        machine.trim("third", 17, true);
        machine.measure("kernel", file("/boot/vmlinuz", "/boot/vmlinuz"));
        machine.kexec();
        machine.load("kexec", 'c');
        machine.restore("carried");
        machine.file("twenty-two");
        if !self.visit("kexec", false) {
            return false;
        }
        let machine = &mut self.machine;
        machine.foreign("foreign", 2);
        machine.file("twenty-four");
        self.options.removed = 2;
        if !self.visit("foreign", self.keep_whole()) {
            return false;
        }
        self.machine.restore("last");
        self.machine.file("twenty-six");
        self.visit("last", self.keep_whole())
    }

    /// The starting values after a removal by others are known to a verifier that keeps records, or
    /// that gets all.
    fn keep_whole(&self) -> bool {
        !self.keep
    }
}

fn history<'a>(edit: Edit<'a>, change: Change<'a>, keep: bool) -> History<'a> {
    let mut history = History {
        options: options(),
        machine: Machine::new(edit),
        state: State::default(),
        change,
        keep,
        kept: Vec::new(),
        visits: Vec::new(),
    };
    history.run();
    history
}

fn good() -> History<'static> {
    let history = history(nothing(), Box::new(|_, _| {}), true);
    let (name, last) = history.visits.last().unwrap();
    assert!(
        last.outcome.state.is_some(),
        "{name}: {}",
        last.outcome.verdict
    );
    history
}

/// A visit of the good history, before it is judged.
fn at(name: &str) -> Visit {
    static VISITS: OnceLock<Vec<(&str, Visit)>> = OnceLock::new();
    let visits = VISITS.get_or_init(|| good().visits);
    let found = visits.iter().find(|(of, _)| *of == name);
    found.unwrap().1.clone()
}

/// Judges a visit after a change of what was sent.
fn judge(name: &str, change: impl FnOnce(&mut Evidence)) -> Verdict {
    judge_with(name, change, |_| {})
}

fn judge_with(
    name: &str,
    change: impl FnOnce(&mut Evidence),
    decide: impl FnOnce(&mut Options),
) -> Verdict {
    let mut visit = at(name);
    let mut options = options();
    options.removed = 2;
    decide(&mut options);
    change(&mut visit.evidence);
    send(&options, &visit.before, &visit.evidence).verdict
}

/// The verdict on a history in which one record was measured otherwise.
fn measured(label: &str, change: impl Fn(&mut Build)) -> Verdict {
    let edit = move |of: &str, record: &mut Build| {
        if of == label {
            change(record);
        }
    };
    let history = history(Box::new(edit), Box::new(|_, _| {}), true);
    history.visits.last().unwrap().1.outcome.verdict.clone()
}

/// The same, for the text of an event or policy.
fn told(label: &str, from: &str, to: &str) -> Verdict {
    measured(label, |record| {
        change_text(record, |text| text.replace(from, to));
    })
}

/// A text of starting values with another value in it.
fn flipped(text: &str) -> String {
    let at = text.find("sha384:10=").unwrap() + 10;
    let digit = if &text[at..=at] == "0" { "1" } else { "0" };
    let mut changed = text.to_owned();
    changed.replace_range(at..=at, digit);
    changed
}

#[track_caller]
fn refused(verdict: &Verdict, rule: u8, record: Option<u64>) {
    let refusal = verdict
        .refusal()
        .unwrap_or_else(|| panic!("not refused: {verdict}"));
    assert_eq!(
        (refusal.rule.0, refusal.record),
        (rule, record),
        "{verdict}"
    );
}

/// At whatever record.
#[track_caller]
fn refused_by(verdict: &Verdict, rule: u8) {
    let refusal = verdict.refusal().unwrap_or_else(|| panic!("{verdict}"));
    assert_eq!(refusal.rule.0, rule, "{verdict}");
}

#[track_caller]
fn noted(verdict: &Verdict, rule: u8, record: Option<u64>) {
    assert!(
        verdict
            .notes()
            .iter()
            .any(|note| (note.rule.0, note.record) == (rule, record)),
        "no such note: {verdict}"
    );
}

#[track_caller]
fn accepted(verdict: &Verdict) {
    assert!(verdict.is_accepted(), "{verdict}");
}

#[test]
fn the_good_history() {
    let history = good();
    let names: Vec<_> = history.visits.iter().map(|(name, _)| *name).collect();
    assert_eq!(
        names,
        [
            "first",
            "trimmed",
            "announced",
            "alternative",
            "restored",
            "kexec",
            "foreign",
            "last"
        ]
    );
    let Verdict::Accepted { machine, .. } = &history.visits[7].1.outcome.verdict else {
        panic!();
    };
    assert_eq!((machine.first, machine.records), (20, 26));
    assert_eq!((machine.violations, machine.waiting), (1, 0));
    assert_eq!(machine.instance, Some("c".repeat(32)));
    assert_eq!(machine.policy, Some(digest(POLICY)));
    // What there is to ask is asked once.
    let rules: Vec<(u8, Option<u64>)> = history
        .visits
        .iter()
        .flat_map(|(_, visit)| visit.outcome.verdict.notes())
        .map(|note| (note.rule.0, note.record))
        .collect();
    assert_eq!(rules, [(7, None), (22, Some(23))]);
}

#[test]
fn the_good_history_from_the_whole_list() {
    let machine = good().machine;
    let mut options = options();
    options.removed = 2;
    let outcome = send(&options, &State::default(), &machine.evidence(true));
    accepted(&outcome.verdict);
    assert_eq!(outcome.news, 0..machine.evidence(true).log().len());

    // The starting values that are sent along are checked as well.
    let check = |starting: &str| {
        let mut evidence = machine.evidence(true);
        evidence.starting = Some(starting.to_owned());
        let form = Form {
            whole: true,
            ..Form::default()
        };
        submit(&options, &State::default(), &evidence, &form)
            .unwrap()
            .verdict
    };
    accepted(&check(&machine.starting));
    refused(
        &check(&machine.starting.replace("trims=3", "trims=4")),
        19,
        None,
    );
    refused(&check(&flipped(&machine.starting)), 4, None);
}

#[test]
fn a_whole_list_that_is_taken_for_a_trimmed_one() {
    let History { machine, state, .. } = good();
    let mut options = options();
    options.removed = 2;
    let mut evidence = machine.evidence(true);
    evidence.starting = Some(machine.starting.clone());
    let check = |state: &State, evidence: &Evidence, whole: bool| {
        let form = Form {
            whole,
            ..Form::default()
        };
        submit(&options, state, evidence, &form).unwrap().verdict
    };
    let hint = |verdict: &Verdict| verdict.to_string().contains("--whole");
    // The verifier has no values of its own where the starting values are, and it has.
    let before = at("kexec").before;
    for (state, rule) in [(State::default(), 26), (before, 4), (state, 8)] {
        let verdict = check(&state, &evidence, false);
        refused_by(&verdict, rule);
        assert!(hint(&verdict), "{verdict}");
        accepted(&check(&state, &evidence, true));
    }

    // A list that is trimmed, and one that begins at the reset values.
    let verdict = judge("trimmed", |e| {
        e.records.pop();
    });
    refused_8(&verdict);
    assert!(!hint(&verdict), "{verdict}");
    let mut evidence = at("first").evidence;
    evidence.starting = Some(Machine::new(nothing()).starting);
    accepted(&check(&State::default(), &evidence, false));
    evidence.records.pop();
    let verdict = check(&State::default(), &evidence, false);
    refused_8(&verdict);
    assert!(!hint(&verdict), "{verdict}");
}

#[test]
fn every_prefix_that_a_quote_covers() {
    // Records that arrive between quote and list wait.
    let mut visit = at("trimmed");
    let late = file("/opt/late", "late");
    visit.evidence.records.push(late);
    let outcome = send(&options(), &visit.before, &visit.evidence);
    let Verdict::Accepted { machine, .. } = &outcome.verdict else {
        panic!("{}", outcome.verdict);
    };
    assert_eq!((machine.records, machine.waiting), (9, 1));
    assert_eq!(outcome.news.start, 0);
    assert!(outcome.news.end < visit.evidence.log().len());
}

#[test]
fn each_signature_scheme() {
    for signer in [Signer::P384, Signer::Rsassa, Signer::Rsapss] {
        let mut visit = at("first");
        visit.evidence.signer = signer;
        let outcome = send(&options(), &State::default(), &visit.evidence);
        accepted(&outcome.verdict);
    }
}

#[test]
fn a_state_survives_its_text() {
    let state = good().state;
    let text = state.to_json().unwrap();
    assert_eq!(State::from_json(&text).unwrap(), state);
    assert!(State::from_json(&text.replace("\"version\": 1", "\"version\": 2")).is_err());
    assert!(State::from_json("{}").is_err());
}

#[test]
fn v1_the_quote() {
    refused(
        &judge("trimmed", |e| e.nonce = b"another".to_vec()),
        1,
        None,
    );
    refused(&judge("trimmed", |e| e.signer = Signer::OtherP256), 1, None);
    let other = |e: &mut Evidence| {
        e.signed = Some(e.pcrs.clone());
        e.pcrs.get_mut(&("sha256", 10)).unwrap()[0] ^= 1;
    };
    refused(&judge("trimmed", other), 1, None);
    let visit = at("trimmed");
    let form = Form {
        quoted: false,
        ..Form::default()
    };
    let verdict = submit(&options(), &visit.before, &visit.evidence, &form)
        .unwrap()
        .verdict;
    refused(&verdict, 1, None);
    let asked = |select: &str| {
        let select = select.to_owned();
        judge_with(
            "trimmed",
            |_| {},
            move |options| {
                options.asked = Some(PcrFile::parse(select.as_bytes(), None).unwrap().selection());
            },
        )
    };
    let all = at("trimmed").evidence.printed();
    accepted(&asked(&all));
    let less: String = all
        .lines()
        .filter(|line| !line.contains("    9 :"))
        .map(|line| format!("{line}\n"))
        .collect();
    refused(&asked(&less), 1, None);
}

#[test]
fn without_a_quote() {
    let evidence = at("first").evidence;
    let text = evidence.printed();
    let check = |pcrs: &str| {
        let form = Form {
            quoted: false,
            pcrs: Some(pcrs.to_owned()),
            ..Form::default()
        };
        submit(&options(), &State::default(), &evidence, &form)
            .unwrap()
            .verdict
    };
    let verdict = check(&text);
    accepted(&verdict);
    noted(&verdict, 1, None);
    let ten = format!("sha256:10={}", hex(&evidence.pcrs[&("sha256", 10)]));
    let verdict = check(&ten);
    accepted(&verdict);
    noted(&verdict, 2, None);
    noted(&verdict, 2, Some(1));
    refused(&check(&ten.replace("sha256:10=", "sha256:11=")), 2, None);
}

#[test]
fn v2_the_pcrs() {
    let without = |pcr| move |e: &mut Evidence| e.pcrs.retain(|cell, _| cell.1 != pcr);
    refused(&judge("trimmed", without(10)), 2, None);
    refused(&judge("trimmed", without(9)), 2, None);
    // SHA-1 alone.
    refused(
        &judge("trimmed", |e| {
            e.pcrs = e
                .pcrs
                .iter()
                .filter(|(cell, _)| cell.0 == "sha256")
                .map(|(cell, value)| (("sha1", cell.1), value[..20].to_vec()))
                .collect();
        }),
        2,
        None,
    );
    refused(
        &judge_with("trimmed", |_| {}, |o| o.pcr = Pcr::new(23).unwrap()),
        2,
        None,
    );
    refused(
        &judge_with(
            "trimmed",
            |_| {},
            |o| o.policy_pcrs = vec![Pcr::new(11).unwrap()],
        ),
        2,
        None,
    );
    // Another system was booted than the one that measured.
    refused(
        &judge("first", |e| e.pcrs.get_mut(&("sha256", 4)).unwrap()[0] ^= 1),
        2,
        Some(1),
    );
    refused(
        &measured("boot", |r| r.fields[1] = common::string(b"/boot")),
        2,
        Some(1),
    );
}

#[test]
fn v3_the_reset_counts() {
    // A new boot, and starting values of the one before.
    let verdict = judge("trimmed", |e| e.reset_count += 1);
    refused(&verdict, 26, None);
    noted(&verdict, 3, None);
    // A suspend.
    accepted(&judge("trimmed", |e| e.restart_count += 1));
    refused(
        &judge("trimmed", |e| {
            e.restart_count += 1;
            e.pcrs.get_mut(&("sha256", 4)).unwrap()[0] ^= 1;
        }),
        3,
        None,
    );
    // A hibernation.
    refused(
        &judge("trimmed", |e| {
            e.restart_count += 1;
            e.pcrs.insert(("sha256", 10), vec![0; 32]);
        }),
        3,
        None,
    );
    // A new boot from its beginning.
    let mut machine = Machine::new(nothing());
    machine.reset_count = 42;
    machine.policy("policy");
    machine.load("load", 'a');
    let outcome = send(&options(), &good().state, &machine.evidence(true));
    accepted(&outcome.verdict);
    assert!(outcome.rebooted);
}

#[test]
fn v4_own_values() {
    let change = |e: &mut Evidence| {
        let text = e.starting.as_mut().unwrap();
        *text = flipped(text);
    };
    refused(&judge("trimmed", change), 4, None);
    // Values of a point that the verifier has not been at.
    refused(
        &judge("trimmed", |e| {
            let machine = good().machine;
            let mut text = machine.stated(7);
            text = text.replace("trims=3", "trims=1");
            e.starting = Some(text);
            e.records.remove(0);
        }),
        4,
        None,
    );
    refused(
        &judge("trimmed", |e| {
            *e.starting.as_mut().unwrap() += "records=1\n"
        }),
        4,
        None,
    );
}

#[test]
fn v4_starting_values_behind_the_quote() {
    let whole = Form {
        whole: true,
        ..Form::default()
    };
    // No module is loaded, and nobody has quoted what the starting values stand for.
    let mut machine = Machine::new(nothing());
    machine.policy("policy");
    machine.file("a");
    let mut evidence = machine.evidence(true);
    machine.file("b");
    machine.violation("c");
    evidence.records = machine.records.clone();
    evidence.starting = Some(machine.stated(5));
    let mut options = options();
    options.violations = None;
    let outcome = submit(&options, &State::default(), &evidence, &whole).unwrap();
    accepted(&outcome.verdict);
    noted(&outcome.verdict, 4, None);
    let state = outcome.state.unwrap();
    assert_eq!(state.records(), 3);
    let value = hex(&evidence.pcrs[&("sha256", 10)]);
    let request = state.request(None, None).unwrap();
    assert!(
        request.starts_with(&format!("sha256:10={value} ")),
        "{request}"
    );
    let verdict = send(&options, &state, &machine.evidence(true)).verdict;
    refused(&verdict, 12, Some(5));

    // The daemon trims while the list is sent: to what was quoted, and to what was not.
    for to in [3, 4, 5] {
        let mut machine = Machine::new(nothing());
        machine.policy("policy");
        machine.load("load", 'a');
        machine.file("a");
        let mut evidence = machine.evidence(true);
        machine.file("b");
        machine.trim("trim", to, true);
        evidence.records = machine.records.clone();
        evidence.starting = Some(machine.starting.clone());
        let outcome = submit(&options, &State::default(), &evidence, &whole).unwrap();
        accepted(&outcome.verdict);
        noted(&outcome.verdict, 4, None);
        let state = outcome.state.unwrap();
        assert_eq!(state.records(), 4);
        let mut evidence = machine.evidence(true);
        evidence.starting = Some(machine.starting.replace("trims=1", "trims=2"));
        let outcome = submit(&options, &state, &evidence, &whole).unwrap();
        refused(&outcome.verdict, 19, None);
        evidence.starting = Some(machine.starting.clone());
        let outcome = submit(&options, &state, &evidence, &whole).unwrap();
        accepted(&outcome.verdict);
        assert_eq!(outcome.state.unwrap().records(), 6);
    }
}

#[test]
fn v5_pcrs_that_are_not_listed() {
    // The file of an earlier record is in PCR 11, and quoted. Its line is left out later.
    let edit = |label: &str, record: &mut Build| {
        if label == "server" {
            record.pcr = 11;
        }
    };
    let run = |cut: bool| {
        let change = move |name: &str, e: &mut Evidence| {
            if name == "trimmed" && cut {
                let text = e.starting.take().unwrap();
                let lines = text.lines().filter(|line| !line.contains(":11="));
                e.starting = Some(lines.map(|line| format!("{line}\n")).collect());
            }
        };
        let history = history(Box::new(edit), Box::new(change), true);
        let (name, visit) = history.visits.last().unwrap().clone();
        (name, visit.outcome.verdict)
    };
    let (name, verdict) = run(false);
    assert_eq!(name, "last", "{verdict}");
    accepted(&verdict);
    let (name, verdict) = run(true);
    assert_eq!(name, "trimmed");
    refused(&verdict, 5, None);
}

#[test]
fn v6_own_counts() {
    let replace = |from: &'static str, to: &'static str| {
        move |e: &mut Evidence| {
            let text = e.starting.as_mut().unwrap();
            assert!(text.contains(from), "{text}");
            *text = text.replace(from, to);
        }
    };
    refused(
        &judge("trimmed", replace("records=6", "records=5")),
        6,
        None,
    );
    refused(
        &judge("trimmed", replace("violations=1", "violations=0")),
        6,
        None,
    );
    refused(
        &judge("trimmed", replace("violations=1", "violations=2")),
        6,
        None,
    );
    refused(
        &judge("restored", replace("violations=1", "violations=0")),
        6,
        None,
    );
}

#[test]
fn v7_unknown() {
    let unknown = |e: &mut Evidence| e.starting = Some("unknown records=6\n".to_owned());
    // The events say otherwise, but the verifier has seen the records.
    let verdict = judge("trimmed", unknown);
    refused(&verdict, 19, None);
    noted(&verdict, 7, None);
    // One record more is gone than it has seen.
    refused(
        &judge("foreign", |e| {
            e.records.remove(0);
        }),
        7,
        None,
    );
    let mut visit = at("foreign");
    visit.evidence.kept = None;
    let mut options = options();
    options.removed = 2;
    let verdict = send(&options, &visit.before, &visit.evidence).verdict;
    refused(&verdict, 7, None);
    refused(
        &judge_with("foreign", |_| {}, |o| o.removed = 1),
        22,
        Some(23),
    );
}

#[test]
fn v8_the_replay() {
    for (visit, records) in [("first", 6), ("trimmed", 3), ("last", 7)] {
        for at in 0..records {
            let skip = |e: &mut Evidence| {
                assert_eq!(e.records.len(), records);
                e.records.remove(at);
            };
            refused_8(&judge(visit, skip));
        }
    }
    refused_8(&judge("trimmed", |e| e.records.swap(0, 1)));
    refused_8(&judge("trimmed", |e| {
        let first = e.records[0].clone();
        e.records.insert(0, first);
    }));
    refused_8(&judge("trimmed", |e| {
        *e.records[0].fields[0].last_mut().unwrap() ^= 1;
    }));
    // One bank alone.
    refused_8(&judge("trimmed", |e| {
        e.pcrs.get_mut(&("sha384", 10)).unwrap()[0] ^= 1;
    }));
    // A violation in place of a record, and the other way round.
    refused_8(&judge("trimmed", |e| e.records[0].violation = true));
    refused_8(&judge("first", |e| e.records[5].violation = false));
}

#[track_caller]
fn refused_8(verdict: &Verdict) {
    refused_by(verdict, 8);
}

#[test]
fn v8_an_earlier_quote_is_not_enough() {
    // Of the visit before, with a fresh nonce: something must have reset the TPM.
    let mut visit = at("trimmed");
    visit.evidence.pcrs = at("first").evidence.pcrs;
    visit.evidence.kept = at("announced").evidence.kept;
    let verdict = send(&options(), &at("announced").before, &visit.evidence).verdict;
    refused(&verdict, 8, None);
    // The list of an earlier visit, to its end.
    let mut visit = at("announced");
    let state = at("alternative").before;
    visit.evidence.kept = at("alternative").evidence.kept;
    visit.evidence.records.truncate(3);
    refused(
        &send(&options(), &state, &visit.evidence).verdict,
        8,
        Some(9),
    );
}

#[test]
fn v8_a_record_that_is_cut() {
    let evidence = at("first").evidence;
    let mut log = evidence.log();
    log.extend(&evidence.records[0].bytes()[..50]);
    let verdict = send_log(log, &evidence);
    accepted(&verdict);
    noted(&verdict, 8, None);
}

#[test]
fn v8_damage() {
    let mut visit = at("trimmed");
    visit.evidence.records[1].template = b"bad name\n".to_vec();
    refused(
        &send(&options(), &visit.before, &visit.evidence).verdict,
        8,
        Some(8),
    );
}

#[test]
fn v9_digests_and_templates() {
    let verdict = measured("conf", |record| record.template = b"ima-ngv2".to_vec());
    refused(&verdict, 9, Some(7));
    // No field is left out, added, or in another place by the name of a template.
    for template in ["ima-ng", "evm-sig", "sig|n-ng|d-ng"] {
        let mut visit = at("first");
        for record in &mut visit.evidence.records {
            if record.template == b"ima-sig" {
                record.template = template.as_bytes().to_vec();
            }
        }
        let verdict = send(&options(), &State::default(), &visit.evidence).verdict;
        let rule = verdict.refusal().map(|refusal| refusal.rule.0);
        assert!(matches!(rule, Some(2 | 9)), "{template}: {verdict}");
    }
    // The record of a file, shown as one of a buffer: the same digest.
    let mut visit = at("trimmed");
    visit.evidence.records[0].template = b"ima-buf".to_vec();
    let verdict = send(&options(), &visit.before, &visit.evidence).verdict;
    refused(&verdict, 9, Some(7));
    let verdict = measured("policy", |record| record.fields[2].push(b'\n'));
    refused(&verdict, 9, Some(2));
    // The digest that is printed says nothing.
    let evidence = at("first").evidence;
    let mut log = evidence.log();
    log[4 + 7] ^= 1;
    accepted(&send_log(log, &evidence));
}

#[test]
fn v9_buffers_that_are_shown_as_files() {
    // The same digest again. Whoever goes by the template's name sees neither policy nor event.
    for template in ["ima-sig", "ima-sigv2", "d-ng|n-ng|evmsig", "n-ng|d-ng|sig"] {
        let shown = |label: &str, change: &dyn Fn(&mut Build)| {
            let edit = |of: &str, record: &mut Build| {
                if of == label {
                    change(record);
                    record.template = template.as_bytes().to_vec();
                }
            };
            let history = history(Box::new(edit), Box::new(|_, _| {}), true);
            let visit = &history.visits.last().unwrap().1;
            let mut options = options();
            options.templates = vec![template.to_owned()];
            send(&options, &visit.before, &visit.evidence).verdict
        };
        let policy = b"measure func=MODULE_CHECK\n";
        let verdict = shown("conf", &|r| *r = buffer("ima_policy_loaded", policy));
        refused(&verdict, 9, Some(7));
        let verdict = shown("load", &|r| {
            change_text(r, |text| text.replace("guard=on", "guard=off"));
        });
        refused(&verdict, 9, Some(3));
    }
    // A hash that is not known here, in which nothing can be compared.
    let other = |record: &mut Build, name: &str| {
        record.fields[0] = common::d_ng("sm3", &[1; 32]);
        record.fields[1] = common::string(name.as_bytes());
        record.fields[2] = b"some data".to_vec();
    };
    refused(&measured("conf", |r| other(r, "foreign")), 9, Some(7));
    refused(
        &measured("conf", |r| other(r, "ima_policy_loaded")),
        9,
        Some(7),
    );

    // Files: with such a hash, with a signature, and with nothing in them.
    accepted(&measured("conf", |r| other(r, "/opt/app/conf")));
    accepted(&measured("conf", |r| {
        r.fields[2] = b"\x03\x02\x04".to_vec()
    }));
    accepted(&measured("conf", |r| *r = file("/opt/app/empty", "")));
}

#[test]
fn v10_records_that_prove_nothing() {
    for pcr in [11, 16, 17, 23, 30] {
        // They are counted, and their events and policies are not believed.
        let history = history(
            Box::new(move |label, record| {
                if label == "server" {
                    record.pcr = pcr;
                }
            }),
            Box::new(|_, _| {}),
            true,
        );
        let (name, first) = &history.visits[0];
        assert_eq!(*name, "first");
        accepted(&first.outcome.verdict);
        noted(&first.outcome.verdict, 10, Some(4));
        accepted(&history.visits.last().unwrap().1.outcome.verdict);
    }
    let verdict = measured("policy", |record| record.pcr = 23);
    refused(&verdict, 13, None);
    noted(&verdict, 10, Some(2));
}

#[test]
fn v12_violations() {
    refused(
        &judge_with("first", |_| {}, |o| o.violations = Some(0)),
        12,
        Some(6),
    );
    refused(
        &judge_with("first", |_| {}, |o| o.violations = None),
        12,
        Some(6),
    );
    // Those that were accepted before need not be stated again.
    accepted(&judge_with("trimmed", |_| {}, |o| o.violations = None));
    // What a violation says is not believed.
    accepted(&judge("first", |e| {
        e.records[5].fields[1] = common::string(b"/var/log/messages");
    }));
    let verdict = measured("conf", |record| record.violation = true);
    refused(&verdict, 12, Some(7));
}

#[test]
fn v13_the_policy() {
    refused(&told("policy", "uid=0", "uid=1"), 13, Some(2));
    refused(
        &measured("policy", |r| *r = file("/etc/motd", "motd")),
        13,
        None,
    );
    refused(
        &measured("conf", |r| *r = buffer("ima_policy_loaded", b"")),
        13,
        Some(7),
    );
    accepted(&judge_with(
        "first",
        |_| {},
        |o| o.policies = vec!["any".to_owned()],
    ));
    // At first sight.
    let verdict = judge_with("first", |_| {}, |o| o.policies.clear());
    accepted(&verdict);
    noted(&verdict, 13, Some(2));
    // Its file, as before Linux 7.3.
    let text = "measure func=POLICY_CHECK\n";
    let edit = |label: &str, record: &mut Build| {
        if label == "policy" {
            *record = file("/etc/ima/ima-policy", text);
        }
    };
    let evidence = history(Box::new(edit), Box::new(|_, _| {}), true)
        .machine
        .evidence(true);
    let judge = |policies: &[&str], files: &[&str]| {
        let mut options = options();
        options.policies = policies.iter().map(|text| digest(text)).collect();
        options.policy_files = files.iter().map(|text| digest(text)).collect();
        send(&options, &State::default(), &evidence).verdict
    };
    accepted(&judge(&[], &[text]));
    accepted(&judge(&[POLICY], &[text]));
    refused(&judge(&[], &["another"]), 13, None);
    refused(&judge(&[text], &[]), 13, None);
}

#[test]
fn v13_a_file_is_no_policy() {
    // Anybody can write the text of the accepted policy into a file, and have that measured.
    let verdict = measured("policy", |r| *r = file("/tmp/x", POLICY));
    refused(&verdict, 13, None);
    let verdict = measured("policy", |r| *r = buffer("other", POLICY.as_bytes()));
    refused(&verdict, 13, None);
    let files = |o: &mut Options| {
        o.policy_files = [digest(POLICY)].into_iter().collect();
    };
    // Nor is a policy that is measured one of those of which the file is accepted.
    let verdict = judge_with(
        "first",
        |_| {},
        |o| {
            files(o);
            o.policies.clear();
        },
    );
    refused(&verdict, 13, Some(2));
    accepted(&judge_with("first", |_| {}, files));
}

#[test]
fn v13_the_rule_of_the_events() {
    for (from, to) in [
        ("label=ima_trim ", "label=ima_trim pcr=23 "),
        ("measure func=CRITICAL_DATA label=ima_trim \n", ""),
        (
            "dont_measure fsmagic=0x9fa0 ",
            "dont_measure func=CRITICAL_DATA ",
        ),
    ] {
        let changed = POLICY.replace(from, to);
        let edit = |label: &str, record: &mut Build| {
            if label == "policy" {
                *record = buffer("ima_policy_loaded", changed.as_bytes());
            }
        };
        let history = history(Box::new(edit), Box::new(|_, _| {}), true);
        let mut options = options();
        options.policies = vec![digest(&changed)];
        let evidence = &history.visits[0].1.evidence;
        let verdict = send(&options, &State::default(), evidence).verdict;
        refused(&verdict, 13, Some(2));
        options.events = false;
        accepted(&send(&options, &State::default(), evidence).verdict);
    }
}

#[test]
fn v14_revoked() {
    let revoke = |content: &'static str| {
        move |options: &mut Options| {
            options.revoked = [digest(content)].into_iter().collect();
        }
    };
    refused(&judge_with("first", |_| {}, revoke("plugin")), 14, Some(5));
    // Trimmed, and kept by the verifier.
    refused(&judge_with("last", |_| {}, revoke("plugin")), 14, Some(5));
    refused(
        &judge_with("last", |_| {}, revoke("twenty-six")),
        14,
        Some(26),
    );
    accepted(&judge_with("last", |_| {}, revoke("nothing")));
    let mut visit = at("trimmed");
    visit.evidence.kept = None;
    let mut options = options();
    revoke("plugin")(&mut options);
    let verdict = send(&options, &visit.before, &visit.evidence).verdict;
    accepted(&verdict);
    noted(&verdict, 14, Some(6));
}

#[test]
fn v15_events_are_no_authority() {
    // A verifier without memory, values that are confirmed by a trim, and a replay that fits.
    let visit = at("trimmed");
    let verdict = send(&options(), &State::default(), &visit.evidence).verdict;
    refused(&verdict, 26, None);
}

#[test]
fn v16_lookalikes() {
    for change in [
        (|r: &mut Build| r.fields[1] = common::string(b"trim\n")) as fn(&mut Build),
        |r| change_text(r, |text| text.to_owned() + "\n"),
        |r| change_text(r, |text| text.replace("trims=1", "trims=01")),
        |r| change_text(r, |text| text.replace("instance=a", "instance=A")),
        |r| change_text(r, |text| text.replace("sha1:10", "sha1:010")),
    ] {
        // It is no event, so that none says that records were trimmed.
        let verdict = measured("trim", change);
        refused(&verdict, 19, None);
        noted(&verdict, 23, None);
    }
    noted(&told("trim", "trims=1", "trims=01"), 16, Some(8));
    // A keyring of this name.
    let verdict = measured("conf", |r| *r = buffer("trim", b"a key"));
    accepted(&verdict);
    let edit = |label: &str, record: &mut Build| {
        if label == "server" {
            *record = buffer("load", b"a key");
        }
    };
    let history = history(Box::new(edit), Box::new(|_, _| {}), true);
    noted(&history.visits[0].1.outcome.verdict, 16, Some(4));
}

#[test]
fn v16_no_byte_of_an_event_is_passed_over() {
    let ima = Pcr::new(10).unwrap();
    let kind = |record: &Build| {
        let bytes = record.bytes();
        let record = Record::first(&bytes).unwrap().unwrap();
        Event::of(&record, ima)
    };
    let machine = good().machine;
    let mut events = 0;
    for record in &machine.records {
        let event = kind(record);
        if event == Kind::Other {
            continue;
        }
        assert!(matches!(event, Kind::Event(_)), "{event:?}");
        events += 1;
        let name = String::from_utf8_lossy(&record.fields[1]).replace('\0', "");
        let text = &record.fields[2];
        for at in 0..text.len() {
            for byte in [text[at] ^ 1, text[at] ^ 0x20, b'0', b'1', b'\n', b' '] {
                let mut other = text.clone();
                other[at] = byte;
                let is_same = &other == text;
                assert_eq!(
                    kind(&buffer(&name, &other)) == event,
                    is_same,
                    "{name}, {at}"
                );
            }
            let mut other = text.clone();
            other.remove(at);
            assert_ne!(kind(&buffer(&name, &other)), event, "{name}, {at}");
            let mut other = text.clone();
            other.insert(at, b'\n');
            assert_ne!(kind(&buffer(&name, &other)), event, "{name}, {at}");
        }
    }
    assert_eq!(events, 11);
}

#[test]
fn v17_instances() {
    let b = "b".repeat(32);
    refused(&told("trim", &"a".repeat(32), &b), 17, Some(8));
    refused(&told("restore", &b, &"a".repeat(32)), 17, Some(16));
    refused(&told("reload", &b, &"a".repeat(32)), 17, Some(15));
    refused(
        &measured("load", |r| *r = file("/etc/motd", "motd")),
        17,
        Some(8),
    );
    refused(&told("load", "guard=on", "guard=off"), 17, Some(3));
    refused(&told("load", "version=2", "version=3"), 17, Some(3));
    refused(&told("foreign", &"c".repeat(32), &b), 17, Some(23));
    let edit = |label: &str, record: &mut Build| {
        if label == "load" {
            change_text(record, |text| text.replace("guard=on", "guard=off"));
        }
    };
    let history = history(Box::new(edit), Box::new(|_, _| {}), true);
    let mut options = options();
    options.guard = false;
    let evidence = &history.visits[0].1.evidence;
    accepted(&send(&options, &State::default(), evidence).verdict);
}

#[test]
fn v18_loads() {
    refused(
        &told("load", "kernel_deleted=0", "kernel_deleted=4"),
        18,
        Some(3),
    );
    refused(&told("load", "records=0", "records=1"), 18, Some(3));
    refused(
        &told("reload", "kernel_deleted=12", "kernel_deleted=13"),
        18,
        Some(15),
    );
    refused(
        &told("reload", "unknown records=12", "unknown records=11"),
        18,
        Some(15),
    );
    refused(
        &told("reload", "kernel_violations=1", "kernel_violations=0"),
        18,
        Some(15),
    );
    // IMA counts those that it had no memory to list.
    accepted(&told(
        "reload",
        "kernel_violations=1",
        "kernel_violations=2",
    ));
    // A trim before the restore.
    let mut machine = Machine::new(nothing());
    machine.policy("policy");
    machine.load("load", 'a');
    machine.trim("trim", 3, true);
    machine.load("reload", 'b');
    machine.trim("again", 4, true);
    let verdict = send(&options(), &State::default(), &machine.evidence(true)).verdict;
    refused(&verdict, 18, Some(6));
    // The last trim was refused: the kernel has removed what it had before.
    refused(
        &told("reload", "kernel_deleted=12", "kernel_deleted=6"),
        18,
        Some(15),
    );
}

#[test]
fn v18_loads_that_are_measured_late() {
    // The policy was loaded after the module: the load is told of with the first trim.
    let mut machine = Machine::new(nothing());
    machine.violation("early");
    machine.file("file");
    machine.policy("policy");
    machine.kernel_violations = 0;
    machine.load("load", 'a');
    machine.trim("trim", 4, true);
    let judge = |machine: &Machine<'_>| {
        send(&options(), &State::default(), &machine.evidence(true)).verdict
    };
    accepted(&judge(&machine));

    // A violation came while a load was measured; and one that was there before it.
    for files in [0, 1] {
        let mut machine = Machine::new(nothing());
        machine.policy("policy");
        machine.load("load", 'a');
        machine.violation("just now");
        (0..files).for_each(|_| machine.file("file"));
        machine.kernel_violations = 0;
        machine.load("reload", 'b');
        if files == 0 {
            accepted(&judge(&machine));
        } else {
            refused(&judge(&machine), 18, Some(6));
        }
    }
}

#[test]
fn v19_trims() {
    refused(&told("trim", "violations=1", "violations=0"), 19, Some(8));
    refused(&told("trim", "violations=1", "violations=2"), 19, Some(8));
    refused(&told("trim", "records=6", "records=5"), 19, Some(8));
    refused(&told("trim", "trims=1", "trims=2"), 19, Some(8));
    refused(&told("trim", "trims=1", "trims=0"), 19, Some(8));
    // An alternative of what was not refused, and what does not follow.
    refused(&told("alternative", "trims=2", "trims=4"), 19, Some(13));
    refused(&told("alternative", "trims=2", "trims=1"), 19, Some(13));
    // The digit after it is one of the value.
    refused(&told("trim", "sha256:10=", "sha256:10=0"), 19, None);
    refused(&measured("trim", |r| change_text(r, flipped)), 19, Some(8));
    // What came of it.
    refused(
        &judge("trimmed", |e| {
            let text = e.starting.as_mut().unwrap();
            *text = text.replace("trims=1", "trims=2");
        }),
        19,
        None,
    );
}

#[test]
fn v19_a_trim_that_was_refused_is_the_safe_error() {
    // In the visit "announced" a trim was announced, and the starting values are those before it.
    let visit = at("announced");
    assert!(visit.evidence.starting.unwrap().contains("records=6"));
    // The alternative is announced, and refused as well.
    let mut history = history(nothing(), Box::new(|_, _| {}), true);
    let state = at("alternative").before;
    let mut evidence = at("announced").evidence;
    evidence.kept = at("alternative").evidence.kept;
    history.machine.records.truncate(13);
    evidence.records.push(history.machine.records[12].clone());
    evidence.pcrs.insert(
        ("sha256", 10),
        history.machine.values[13][&("sha256", 10)].clone(),
    );
    evidence.pcrs.insert(
        ("sha384", 10),
        history.machine.values[13][&("sha384", 10)].clone(),
    );
    accepted(&send(&options(), &state, &evidence).verdict);
}

#[test]
fn v20_trims_that_nobody_asked_for() {
    let mut machine = Machine::new(nothing());
    machine.policy("policy");
    machine.load("load", 'a');
    machine.file("a");
    let mut state = State::default();
    let mut options = options();
    options.violations = None;
    let outcome = send(&options, &state, &machine.evidence(true));
    state = outcome.state.unwrap();
    let kept = machine.records.clone();
    machine.file("b");
    machine.trim("own", 4, true);
    let outcome = send(&options, &state, &machine.evidence(false));
    accepted(&outcome.verdict);
    assert_eq!(outcome.verdict.notes(), []);

    // Root trims to a point that the verifier was not at.
    let mut other = Machine::new(nothing());
    other.policy("policy");
    other.load("load", 'a');
    other.file("a");
    other.trim("theirs", 3, true);
    let mut evidence = other.evidence(false);
    evidence.kept = Some(kept);
    let outcome = send(&options, &state, &evidence);
    accepted(&outcome.verdict);
    noted(&outcome.verdict, 20, Some(5));
}

#[test]
fn v21_restores() {
    refused(&told("restore", "records=12", "records=11"), 21, Some(16));
    refused(
        &told("restore", "violations=1", "violations=0"),
        21,
        Some(16),
    );
    refused(
        &measured("restore", |r| change_text(r, flipped)),
        21,
        Some(16),
    );
    // More violations are told of once, and remembered.
    let mut machine = Machine::new(nothing());
    machine.policy("policy");
    machine.load("load", 'a');
    machine.trim("trim", 3, true);
    machine.load("reload", 'b');
    machine.excess = 2;
    machine.restore("restore");
    let mut options = options();
    options.violations = None;
    let outcome = send(&options, &State::default(), &machine.evidence(true));
    accepted(&outcome.verdict);
    noted(&outcome.verdict, 21, Some(6));
    let state = outcome.state.unwrap();
    machine.trim("trim", 6, true);
    let outcome = send(&options, &state, &machine.evidence(false));
    accepted(&outcome.verdict);
    assert_eq!(outcome.verdict.notes(), []);
    machine.excess = 3;
    machine.starting = machine.stated(6);
    let verdict = send(&options, &state, &machine.evidence(false)).verdict;
    refused(&verdict, 6, None);
}

#[test]
fn v22_foreign() {
    refused(
        &told("foreign", "foreign_records=2", "foreign_records=3"),
        22,
        Some(23),
    );
    let mut machine = Machine::new(nothing());
    machine.policy("policy");
    machine.load("load", 'a');
    machine.foreign("foreign", 1);
    machine.trim("trim", 3, true);
    let mut options = options();
    options.removed = 1;
    let verdict = send(&options, &State::default(), &machine.evidence(true)).verdict;
    refused(&verdict, 18, Some(5));
}

#[test]
fn v23_trims_without_an_event() {
    let edit = |label: &str, record: &mut Build| {
        if matches!(label, "load" | "trim") {
            *record = file(&format!("/etc/{label}"), label);
        }
    };
    let history = history(Box::new(edit), Box::new(|_, _| {}), true);
    let (name, visit) = &history.visits[1];
    assert_eq!(*name, "trimmed");
    accepted(&visit.outcome.verdict);
    noted(&visit.outcome.verdict, 23, None);
}

#[test]
fn v24_the_request() {
    let visit = at("first");
    let outcome = send(&options(), &visit.before, &visit.evidence);
    let state = outcome.state.unwrap();
    let value = |bank| hex(&visit.evidence.pcrs[&(bank, 10)]);
    let request = format!(
        "sha256:10={} sha384:10={} violations=1 instance={}",
        value("sha256"),
        value("sha384"),
        "a".repeat(32)
    );
    let Verdict::Accepted { machine, .. } = &outcome.verdict else {
        panic!();
    };
    assert_eq!(machine.request, request);
    assert_eq!(state.request(Some(1), state.instance()).unwrap(), request);
    assert!(matches!(
        state.request(Some(2), None),
        Err(StateError::Violations {
            stated: 2,
            found: 1
        })
    ));
    assert!(matches!(
        State::default().request(None, None),
        Err(StateError::Nothing)
    ));
    // Those that are gone already are not counted again.
    let state = at("announced").before;
    assert!(state
        .request(None, None)
        .unwrap()
        .ends_with(" violations=0"));
}

#[test]
fn v25_kexec() {
    // The kernel is not one that is accepted.
    refused(
        &judge_with("kexec", |_| {}, |o| o.kernels.clear()),
        25,
        Some(20),
    );
    refused(
        &measured("kernel", |r| *r = file("/boot/other", "other")),
        25,
        Some(20),
    );
    // The list begins anew.
    let run = |measured: bool| {
        let mut machine = Machine::new(nothing());
        machine.policy("policy");
        machine.load("load", 'a');
        if measured {
            machine.measure("kernel", file("/boot/vmlinuz", "/boot/vmlinuz"));
        } else {
            machine.file("a");
        }
        machine.start = 4;
        machine.kexec();
        machine.boot_aggregate("again");
        machine.policy("policy");
        machine.load("load", 'b');
        machine.restore("restore");
        machine.trim("trim", 5, true);
        send(&options(), &State::default(), &machine.evidence(true)).verdict
    };
    let verdict = run(true);
    noted(&verdict, 25, Some(5));
    accepted(&verdict);
    refused(&run(false), 25, Some(5));
}

#[test]
fn v26_a_verifier_without_memory() {
    for name in ["trimmed", "restored", "last"] {
        let mut visit = at(name);
        visit.evidence.kept = None;
        refused(
            &send(&options(), &State::default(), &visit.evidence).verdict,
            26,
            None,
        );
    }
}

#[test]
fn kept_records_of_another_machine() {
    let mut visit = at("last");
    let kept = visit.evidence.kept.as_mut().unwrap();
    kept.swap(0, 1);
    assert_eq!(
        try_send(&options(), &visit.before, &visit.evidence),
        Err(VerifyError::Kept)
    );
}

#[test]
fn a_base_that_is_known_from_elsewhere() {
    // Something extended PCR 11 before IMA did, and the policy names it.
    let mut machine = Machine::new(nothing());
    for bank in machine::BANKS {
        let base = machine::hash(bank, &[b"stub"]);
        for values in &mut machine.values {
            values.insert((bank, 11), base.clone());
        }
    }
    let base: String = ["sha1", "sha256", "sha384", "sha512"]
        .iter()
        .flat_map(|bank| {
            let zero = "00".repeat(machine::hash(bank, &[]).len());
            let stub = hex(&machine::hash(bank, &[b"stub"]));
            [format!("{bank}:10={zero}\n"), format!("{bank}:11={stub}\n")]
        })
        .collect::<String>()
        + "records=0\nviolations=0\ntrims=0\n";
    machine.policy("policy");
    machine.load("load", 'a');
    machine.measure("eleven", file("/a", "a").pcr(11));
    let mut evidence = machine.evidence(true);
    for bank in ["sha256", "sha384"] {
        let value = machine.values.last().unwrap()[&(bank, 11)].clone();
        evidence.pcrs.insert((bank, 11), value);
    }
    let mut options = options();
    options.policy_pcrs = vec![Pcr::new(11).unwrap()];
    refused(
        &send(&options, &State::default(), &evidence).verdict,
        8,
        None,
    );
    options.base = Some(Point::parse(base.as_bytes()).unwrap());
    accepted(&send(&options, &State::default(), &evidence).verdict);
}

#[test]
fn verdicts_as_json_and_as_text() {
    let verdict = told("trim", "trims=1", "trims=2");
    let json: serde_json::Value = serde_json::to_value(&verdict).unwrap();
    assert_eq!(json["verdict"], "refused");
    assert_eq!(json["refusal"]["rule"], "V19");
    assert_eq!(json["refusal"]["record"], 8);
    let text = verdict.to_string();
    assert!(text.starts_with("refused: V19, record 8: "), "{text}");
    assert!(
        text.contains("\nfound: records=6 violations=1 trims=2"),
        "{text}"
    );

    let verdict = judge("trimmed", |_| {});
    let json = serde_json::to_value(&verdict).unwrap();
    assert_eq!(json["verdict"], "accepted");
    assert_eq!(json["machine"]["records"], 9);
    assert!(verdict.to_string().starts_with("accepted: "));
}

#[test]
fn events_by_themselves() {
    let machine = good().machine;
    let ima = Pcr::new(10).unwrap();
    let is_event = |record: &Build| {
        let bytes = record.bytes();
        let record = Record::first(&bytes).unwrap().unwrap();
        matches!(Event::of(&record, ima), Kind::Event(_))
    };
    let load = &machine.records[2];
    assert!(is_event(load));
    assert!(!is_event(&load.clone().pcr(11)));
    assert!(!is_event(&load.clone().violation()));
    let mut other = load.clone();
    *other.fields[0].last_mut().unwrap() ^= 1;
    assert!(!is_event(&other));
}

#[test]
fn v8_records_that_prove_nothing_stay_as_they_were() {
    let mut machine = Machine::new(nothing());
    machine.policy("policy");
    machine.load("load", 'a');
    machine.measure("idle", file("/a", "a").pcr(23));
    machine.file("b");
    let outcome = send(&options(), &State::default(), &machine.evidence(true));
    let state = outcome.state.unwrap();
    accepted(&send(&options(), &state, &machine.evidence(true)).verdict);
    let mut evidence = machine.evidence(true);
    evidence.records[3] = file("/a", "other").pcr(23);
    refused(&send(&options(), &state, &evidence).verdict, 8, Some(5));
}

#[test]
fn v12_more_violations_than_were_looked_at() {
    let mut machine = Machine::new(nothing());
    machine.policy("policy");
    machine.load("load", 'a');
    let mut options = options();
    options.violations = Some(5);
    let outcome = send(&options, &State::default(), &machine.evidence(true));
    let state = outcome.state.unwrap();
    machine.violation("late");
    options.violations = None;
    refused(
        &send(&options, &state, &machine.evidence(true)).verdict,
        12,
        Some(4),
    );
}

#[test]
fn v19_a_trim_that_goes_back() {
    let mut machine = Machine::new(nothing());
    machine.policy("policy");
    machine.load("load", 'a');
    machine.file("a");
    machine.trim("first", 4, true);
    machine.trim("back", 3, false);
    let verdict = send(&options(), &State::default(), &machine.evidence(true)).verdict;
    refused(&verdict, 19, Some(6));
}

#[test]
fn v25_the_new_kernel_counts_from_zero() {
    let mut machine = Machine::new(nothing());
    machine.policy("policy");
    machine.load("load", 'a');
    machine.trim("trim", 3, true);
    machine.measure("kernel", file("/boot/vmlinuz", "/boot/vmlinuz"));
    machine.kexec();
    machine.load("kexec", 'b');
    machine.restore("restore");
    machine.trim("again", 6, true);
    // Three records were removed by this kernel.
    assert_eq!(machine.kernel_deleted, 3);
    machine.load("reload", 'c');
    machine.restore("last");
    let verdict = send(&options(), &State::default(), &machine.evidence(true)).verdict;
    accepted(&verdict);
}
