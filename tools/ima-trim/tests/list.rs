// SPDX-License-Identifier: GPL-2.0

//! The whole list against a model of the kernel: whatever happens, and between whichever steps of
//! whatever, a read gives the bytes of the records that there were, with all that were there when it
//! began, or an error.
#![allow(missing_docs)]

mod common;

use std::collections::HashMap;
use std::fmt;
use std::fs;
use std::io;
use std::path::Path;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::sync::Arc;
use std::sync::Mutex;
use std::thread;
use std::thread::JoinHandle;
use std::time::Duration;
use std::time::Instant;

use common::ima_ng;
use ima_trim::algorithm::Algorithm;
use ima_trim::archive::BootId;
use ima_trim::archive::Writer;
use ima_trim::keeper::find_base;
use ima_trim::keeper::KeeperError;
use ima_trim::kernel::KernelError;
use ima_trim::list::List;
use ima_trim::list::ListError;
use ima_trim::list::Source;
use ima_trim::list::Whole;
use ima_trim::pcrs::Point;
use ima_trim::record::Record;
use ima_trim::render::Format;
use ima_trim::render::View;
use ima_trim::render::SOURCE;
use ima_trim_pure::bank::Pcr;
use proptest::prelude::*;

const VIEWS: [View; 4] = [
    SOURCE,
    View {
        format: Format::Ascii,
        algorithm: Algorithm::Sha1,
    },
    View {
        format: Format::Ascii,
        algorithm: Algorithm::Sha256,
    },
    View {
        format: Format::Binary,
        algorithm: Algorithm::Sha512,
    },
];

const EBUSY: i32 = 16;

/// So many bytes are read from the model at a time. Some records have more.
const PIECE: usize = 3000;

/// A step of the program at which something else can happen in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Step {
    BeforeCount,
    AfterCount,
    BeforeOpen,
    AfterOpen,
    BeforeRemoved,
    AfterRemoved,
    InRead,
    AfterRead,
}

const STEPS: [Step; 8] = [
    Step::BeforeCount,
    Step::AfterCount,
    Step::BeforeOpen,
    Step::AfterOpen,
    Step::BeforeRemoved,
    Step::AfterRemoved,
    Step::InRead,
    Step::AfterRead,
];

type Hook = Box<dyn FnMut() + Send>;

/// What a kernel has.
#[derive(Default)]
struct State {
    /// All records since boot, in the form of [`SOURCE`].
    records: Vec<Vec<u8>>,
    /// How many of them are not in the list any more.
    gone: usize,
    /// Every byte since boot in each view, and where its records end.
    files: Vec<(Vec<u8>, Vec<usize>)>,
    /// How often the list is open.
    open: usize,
    /// Whether the module is loaded and knows how many records are gone.
    module: bool,
}

/// A model of the kernel.
#[derive(Clone)]
struct Model(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    /// What happens at a step, once.
    hooks: Mutex<HashMap<Step, Hook>>,
}

impl fmt::Debug for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Model")
    }
}

fn busy() -> KernelError {
    KernelError::File {
        path: PathBuf::from("model"),
        error: io::Error::from_raw_os_error(EBUSY),
    }
}

impl Model {
    fn new() -> Self {
        let state = State {
            files: VIEWS.map(|_| (Vec::new(), vec![0])).to_vec(),
            module: true,
            ..State::default()
        };
        Self(Arc::new(Shared {
            state: Mutex::new(state),
            hooks: Mutex::new(HashMap::new()),
        }))
    }

    fn with<T>(&self, look: impl FnOnce(&mut State) -> T) -> T {
        look(&mut self.0.state.lock().unwrap())
    }

    fn step(&self, step: Step) {
        let hook = self.0.hooks.lock().unwrap().remove(&step);
        if let Some(mut hook) = hook {
            hook();
        }
    }

    fn at(&self, step: Step, hook: Hook) {
        self.0.hooks.lock().unwrap().insert(step, hook);
    }

    fn clear(&self) {
        self.0.hooks.lock().unwrap().clear();
    }

    /// Appends a record; a violation is like any other of the same name.
    fn append(&self, size: usize, violation: bool) {
        self.with(|state| {
            let built = if violation {
                ima_ng(b"/var/log/twin").violation()
            } else {
                let name = format!("/{}/{}", state.records.len(), "x".repeat(size));
                ima_ng(name.as_bytes())
            };
            let raw = built.bytes();
            let record = Record::first(&raw).unwrap().unwrap();
            for (view, (bytes, ends)) in VIEWS.iter().zip(&mut state.files) {
                view.write(&record, bytes).unwrap();
                ends.push(bytes.len());
            }
            state.records.push(raw);
        });
    }

    /// Has the module remove records up to a number.
    fn trim(&self, to: u64) -> Result<(), KernelError> {
        if self.with(|state| state.module) {
            return self.remove(to);
        }
        Err(KernelError::NotLoaded(PathBuf::from("model")))
    }

    /// Removes records up to a number: not while the list is open.
    fn remove(&self, to: u64) -> Result<(), KernelError> {
        self.with(|state| {
            if state.open > 0 {
                return Err(busy());
            }
            state.gone = state.gone.max(usize::try_from(to).unwrap());
            assert!(state.gone <= state.records.len());
            Ok(())
        })
    }

    fn end(&self) -> usize {
        self.with(|state| state.records.len())
    }

    /// Checks what a read gave that began when there were `before` records.
    fn check(&self, view: usize, offset: u64, size: usize, before: usize, got: &[u8]) {
        self.with(|state| {
            let (bytes, ends) = &state.files[view];
            let offset = usize::try_from(offset).unwrap();
            let rest = bytes.get(offset..).unwrap_or_default();
            assert!(
                rest.starts_with(got),
                "other bytes at {offset} of {}",
                VIEWS[view].file_name()
            );
            if got.len() == size {
                return;
            }
            let end = offset + got.len();
            assert!(
                end >= ends[before],
                "the file ends at {end}, and {before} records that were there have {}",
                ends[before]
            );
            assert!(
                got.is_empty() || ends.binary_search(&end).is_ok(),
                "the file ends within a record, at {end}"
            );
        });
    }
}

impl Source for Model {
    type List = Open;

    fn count(&self) -> Result<u64, KernelError> {
        self.step(Step::BeforeCount);
        let count = self.with(|state| state.records.len() - state.gone) as u64;
        self.step(Step::AfterCount);
        Ok(count)
    }

    fn list(&self) -> Result<Open, KernelError> {
        self.step(Step::BeforeOpen);
        self.with(|state| state.open += 1);
        let open = Open(self.clone());
        self.step(Step::AfterOpen);
        Ok(open)
    }

    fn removed(&self) -> Result<Option<u64>, KernelError> {
        self.step(Step::BeforeRemoved);
        let removed = self.with(|state| state.module.then_some(state.gone as u64));
        self.step(Step::AfterRemoved);
        Ok(removed)
    }
}

#[derive(Debug)]
struct Open(Model);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.with(|state| state.open -= 1);
    }
}

impl List for Open {
    /// In two pieces, the second of what has come in between, and in all as many bytes as are asked
    /// for: that may be within a record.
    fn read_from(&self, offset: u64, limit: usize, to: &mut Vec<u8>) -> Result<bool, KernelError> {
        let begin = usize::try_from(offset).unwrap();
        let enough = begin.saturating_add(limit);
        let mut at = begin;
        for step in [Step::InRead, Step::AfterRead] {
            self.0.with(|state| {
                let (bytes, ends) = &state.files[0];
                let list = ends[state.gone];
                let end = bytes.len().min(list.saturating_add(enough));
                to.extend(bytes.get(list + at..end).unwrap_or_default());
                at = at.max(end - list);
            });
            self.0.step(step);
        }
        Ok(at >= enough)
    }
}

/// A directory that is removed in the end, where fsync(2) costs little.
struct Directory(PathBuf);

impl Directory {
    fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let memory = Path::new("/dev/shm");
        let base = if memory.is_dir() {
            memory.to_owned()
        } else {
            std::env::temp_dir()
        };
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = base.join(format!("ima-trim-list-{}-{number}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn writer(&self) -> Writer {
        let boot = BootId::parse("00000000-0000-4000-8000-000000000000").unwrap();
        let start = Point::reset(&[Algorithm::Sha256], Pcr::new(10).unwrap());
        Writer::open(&self.0, &boot, &start, &VIEWS).unwrap()
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn whole(model: &Model, writer: &Writer, base: u64) -> Result<Whole<Model>, ListError> {
    let archive = Arc::clone(writer.archive());
    Ok(Whole::new(model.clone(), archive, base)?.by_pieces(PIECE))
}

/// The program, in front of a model.
struct Machine {
    // First, so that it has let go of its lock before the directory is removed.
    writer: Arc<Mutex<Option<Writer>>>,
    whole: Arc<Whole<Model>>,
    model: Model,
    directory: Directory,
    guard: bool,
    /// Records were removed of which nobody says how many.
    unsaid: bool,
    /// Records are gone that nobody had read.
    hole: bool,
    /// Removals that were begun within another call.
    started: Arc<Mutex<Vec<JoinHandle<()>>>>,
}

impl Machine {
    fn new() -> Self {
        let directory = Directory::new();
        let model = Model::new();
        let writer = directory.writer();
        let whole = Arc::new(whole(&model, &writer, 0).unwrap());
        whole.set_guarded().unwrap();
        Self {
            writer: Arc::new(Mutex::new(Some(writer))),
            whole,
            model,
            directory,
            guard: true,
            unsaid: false,
            hole: false,
            started: Arc::default(),
        }
    }

    fn whole(&self) -> &Whole<Model> {
        &self.whole
    }

    fn archived(&self) -> u64 {
        self.whole.archive().records()
    }

    /// Reads and checks.
    fn read(&self, view: usize, offset: u64, size: usize) {
        let before = self.model.end();
        let mut got = Vec::new();
        match self.whole.read(VIEWS[view], offset, size, &mut got) {
            Ok(()) => self.model.check(view, offset, size, before, &got),
            Err(error) => self.refused(&error),
        }
    }

    fn refused(&self, error: &ListError) {
        let (known, base) = (self.whole.known(), self.whole.base());
        let module = self.model.with(|state| state.module);
        if !self.unsaid && !self.hole && !module && known == base {
            // Nothing says that what is new follows what is known: the keeper has it confirmed.
            assert!(matches!(error, ListError::Parted { .. }), "{error}");
            let following = self.model.with(|state| {
                let (bytes, ends) = &state.files[0];
                bytes[ends[usize::try_from(known).unwrap()]..].to_vec()
            });
            self.whole.go_on(base, &following).unwrap();
            return;
        }
        assert!(self.unsaid || self.hole, "{error}");
        assert!(
            matches!(
                error,
                ListError::Parted { .. } | ListError::Hole { .. } | ListError::Record { .. }
            ),
            "{error}"
        );
    }

    fn refresh(&self) {
        let before = self.model.end() as u64;
        match self.whole.refresh() {
            Ok(end) => assert!(end >= before && end <= self.model.end() as u64),
            Err(error) => self.refused(&error),
        }
    }

    /// What the keeper does, from any thread.
    fn archive(&self) -> impl Fn(u64, usize) + Send + 'static {
        let whole = Arc::clone(&self.whole);
        let writer = Arc::clone(&self.writer);
        move |to, limit| {
            let mut writer = writer.lock().unwrap();
            let records = whole.to_archive(to, limit).unwrap();
            if !records.is_empty() {
                writer.as_mut().unwrap().append(&records, 1).unwrap();
                // Between the two readers find records in both places.
                let mut got = Vec::new();
                whole.read_known(SOURCE, 0, usize::MAX, &mut got).unwrap();
                whole.archived().unwrap();
                let mut again = Vec::new();
                whole.read_known(SOURCE, 0, got.len(), &mut again).unwrap();
                assert!(got == again, "archiving changed what is read");
            }
        }
    }

    /// Has a removal happen at a step of another call, up to where it waits for that call.
    fn trim_at(&self, step: Step, share: f64) {
        let whole = Arc::clone(&self.whole);
        let model = self.model.clone();
        let started = Arc::clone(&self.started);
        let hook = move || {
            let (tell, told) = mpsc::channel();
            let whole = Arc::clone(&whole);
            let model = model.clone();
            let thread = thread::spawn(move || {
                // What the module says when it refuses is of no interest here.
                let result = whole.removing(false, || {
                    let gone = model.with(|state| state.gone as u64);
                    let archived = whole.archive().records().max(gone);
                    let _ = model.trim(gone + part(archived - gone, share));
                    tell.send(()).unwrap();
                });
                drop(result);
            });
            told.recv().unwrap();
            started.lock().unwrap().push(thread);
        };
        self.model.at(step, Box::new(hook));
    }

    fn join(&self) {
        self.model.clear();
        for thread in self.started.lock().unwrap().drain(..) {
            thread.join().unwrap();
        }
    }

    /// Removes archived records, with reads while that is under way.
    fn trim(&self, share: f64) {
        let gone = self.model.with(|state| state.gone as u64);
        let to = gone + part(self.archived().saturating_sub(gone), share);
        let removed = self.whole.removing(false, || {
            self.read(0, 0, usize::MAX);
            let _ = self.model.trim(to);
            self.model.append(1, false);
            self.read(1, self.whole.known_size(VIEWS[1]), 1 << 20);
            self.refresh();
        });
        if let Err(error) = removed {
            self.refused(&error);
        }
    }

    /// Somebody else removes records.
    fn foreign(&mut self, share: f64) {
        let (gone, end, module) = self
            .model
            .with(|state| (state.gone as u64, state.records.len() as u64, state.module));
        let to = gone + part(end - gone, share);
        // With none in the kernel's list that is known there is nothing to tell it by but a replay,
        // which is the keeper's: Keeper::confirm.
        if self.guard || to == gone || (!module && self.whole.known() == self.whole.base()) {
            return;
        }
        self.model.remove(to).unwrap();
        self.unsaid = !module;
        self.hole |= to > self.whole.known();
    }

    fn module(&mut self, there: bool) {
        if !there {
            // The keeper lets go of it first.
            self.whole.set_unguarded();
            self.guard = false;
            // What others have removed since it was asked last, if there is anything to tell by.
            if self.whole.known() == self.whole.base() {
                self.refresh();
            }
            self.unsaid |= self.model.with(|state| state.gone as u64) != self.whole.base();
        } else if !self.model.with(|state| state.module) {
            self.unsaid = false;
        }
        self.model.with(|state| state.module = there);
    }

    fn guard(&mut self, guard: bool) {
        if !guard {
            self.whole.set_unguarded();
            self.guard = false;
        } else if self.model.with(|state| state.module) {
            match self.whole.set_guarded() {
                Ok(()) => self.guard = true,
                Err(error) => self.refused(&error),
            }
        }
    }

    /// The program is started anew.
    fn restart(&mut self) {
        if self.hole || self.unsaid {
            // What a daemon does then is find_base()'s and confirm()'s, which refuse.
            return;
        }
        let mut place = self.writer.lock().unwrap();
        *place = None;
        let writer = self.directory.writer();
        let base = self.model.with(|state| state.gone as u64);
        // Records that are gone and not archived are a hole for a successor.
        let whole = whole(&self.model, &writer, base);
        *place = Some(writer);
        drop(place);
        match whole {
            Ok(whole) => self.whole = Arc::new(whole),
            Err(ListError::Hole { .. }) if base > self.archived() => self.hole = true,
            Err(error) => panic!("{error}"),
        }
        if self.guard && !self.hole {
            self.whole.set_guarded().unwrap();
        }
    }
}

/// A share of so many.
fn part(of: u64, share: f64) -> u64 {
    #[allow(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss
    )]
    let part = (of as f64 * share).round() as u64;
    part.min(of)
}

/// Something that happens.
#[derive(Clone, Debug)]
enum Event {
    Append(Vec<(usize, bool)>),
    /// A read at this share of the file, or some bytes behind its end.
    Read(usize, f64, usize),
    All(usize),
    Size(usize),
    Refresh,
    Archive(f64, usize),
    Trim(f64),
    Foreign(f64),
    Module(bool),
    Guard(bool),
    Restart,
    /// A read of everything or what is new, with these at a step of it.
    Within(usize, bool, Vec<(Step, Inner)>),
}

/// Something that happens within a read.
#[derive(Clone, Copy, Debug)]
enum Inner {
    Append(usize),
    Archive(usize),
    Trim(f64),
}

fn share() -> impl Strategy<Value = f64> {
    prop_oneof![Just(1.0), 0.0..1.0]
}

fn records(twins: bool) -> impl Strategy<Value = Vec<(usize, bool)>> {
    let size = prop_oneof![9 => 0..40_usize, 1 => 0..20_000_usize];
    let violation = if twins {
        any::<bool>().boxed()
    } else {
        Just(false).boxed()
    };
    proptest::collection::vec((size, violation), 1..12)
}

fn inner() -> impl Strategy<Value = Inner> {
    prop_oneof![
        (1..4_usize).prop_map(Inner::Append),
        (1..3000_usize).prop_map(Inner::Archive),
        share().prop_map(Inner::Trim),
    ]
}

fn event(twins: bool) -> impl Strategy<Value = Event> {
    let step = (0..STEPS.len()).prop_map(|step| STEPS[step]);
    let view = 0..VIEWS.len();
    let within = proptest::collection::vec((step, inner()), 1..5);
    let limit = prop_oneof![Just(1_usize), 1..5000_usize, Just(1 << 20)];
    prop_oneof![
        6 => records(twins).prop_map(Event::Append),
        4 => (view.clone(), 0.0..1.05, 1..70_000_usize).prop_map(|(v, s, n)| Event::Read(v, s, n)),
        2 => view.clone().prop_map(Event::All),
        1 => view.clone().prop_map(Event::Size),
        1 => Just(Event::Refresh),
        4 => (share(), limit).prop_map(|(share, limit)| Event::Archive(share, limit)),
        4 => share().prop_map(Event::Trim),
        1 => share().prop_map(Event::Foreign),
        1 => any::<bool>().prop_map(Event::Module),
        1 => prop_oneof![3 => Just(true), 1 => Just(false)].prop_map(Event::Guard),
        1 => Just(Event::Restart),
        6 => (view, any::<bool>(), within).prop_map(|(v, all, w)| Event::Within(v, all, w)),
    ]
}

/// Records that look alike cannot be told apart, so that others' removals of them go unnoticed where
/// the module says nothing: they come only where nobody else removes any.
fn events() -> impl Strategy<Value = Vec<Event>> {
    any::<bool>().prop_flat_map(|twins| {
        let some = event(twins).prop_filter("twins and others", move |event| {
            !twins || !matches!(event, Event::Foreign(_))
        });
        proptest::collection::vec(some, 1..60)
    })
}

fn happen(machine: &mut Machine, event: &Event) {
    match event {
        Event::Append(records) => {
            for &(size, violation) in records {
                machine.model.append(size, violation);
            }
        }
        &Event::Read(view, share, size) => {
            let length = machine.model.with(|state| state.files[view].0.len());
            #[allow(
                clippy::cast_precision_loss,
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss
            )]
            let offset = (length as f64 * share) as u64;
            machine.read(view, offset, size);
        }
        &Event::All(view) => machine.read(view, 0, 64 << 20),
        &Event::Size(view) => {
            let before = machine.model.end();
            match machine.whole().size(VIEWS[view]) {
                Ok(size) => machine.model.with(|state| {
                    let ends = &state.files[view].1;
                    let size = usize::try_from(size).unwrap();
                    assert!(size >= ends[before] && ends.binary_search(&size).is_ok());
                }),
                Err(error) => machine.refused(&error),
            }
        }
        Event::Refresh => machine.refresh(),
        &Event::Archive(share, limit) => {
            let known = machine.whole().known();
            let archived = machine.archived();
            machine.archive()(archived + part(known - archived, share), limit);
        }
        &Event::Trim(share) => machine.trim(share),
        &Event::Foreign(share) => machine.foreign(share),
        &Event::Module(there) => machine.module(there),
        &Event::Guard(guard) => machine.guard(guard),
        Event::Restart => machine.restart(),
        Event::Within(view, all, inner) => {
            for &(step, inner) in inner {
                let model = machine.model.clone();
                match inner {
                    Inner::Append(count) => machine.model.at(
                        step,
                        Box::new(move || (0..count).for_each(|_| model.append(5, false))),
                    ),
                    Inner::Archive(limit) => {
                        let archive = machine.archive();
                        machine
                            .model
                            .at(step, Box::new(move || archive(u64::MAX, limit)));
                    }
                    Inner::Trim(share) => machine.trim_at(step, share),
                }
            }
            let offset = if *all {
                0
            } else {
                machine.whole().known_size(VIEWS[*view])
            };
            machine.read(*view, offset, 64 << 20);
            machine.join();
            machine.read(*view, offset, 64 << 20);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 1000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn every_read_is_right_or_an_error(events in events()) {
        let mut machine = Machine::new();
        for event in &events {
            happen(&mut machine, event);
        }
        for view in 0..VIEWS.len() {
            machine.read(view, 0, 64 << 20);
        }
        if !machine.hole && !machine.unsaid {
            prop_assert_eq!(machine.whole().refresh().unwrap(), machine.model.end() as u64);
        }
    }
}

/// As many records are appended as were removed, at each step of a read: the count is the same.
#[test]
fn the_count_hides_nothing() {
    for step in STEPS {
        for known in 0..3 {
            let mut machine = Machine::new();
            for _ in 0..5 {
                machine.model.append(3, false);
            }
            machine.refresh();
            machine.archive()(5, 1 << 20);
            for _ in 0..known {
                machine.model.append(3, false);
            }
            let model = machine.model.clone();
            let whole = Arc::clone(&machine.whole);
            let started = Arc::clone(&machine.started);
            machine.model.at(
                step,
                Box::new(move || {
                    let (tell, told) = mpsc::channel();
                    let whole = Arc::clone(&whole);
                    let model = model.clone();
                    started.lock().unwrap().push(thread::spawn(move || {
                        let _ = whole.removing(false, || {
                            if model.remove(5).is_ok() {
                                (0..5).for_each(|_| model.append(4, false));
                            }
                            tell.send(()).unwrap();
                        });
                    }));
                    told.recv().unwrap();
                }),
            );
            machine.read(0, 0, 1 << 20);
            machine.join();
            machine.read(1, 0, 1 << 20);
            assert_eq!(
                machine.whole().refresh().unwrap(),
                machine.model.end() as u64
            );
            machine.restart();
            machine.read(2, 0, 1 << 20);
        }
    }
}

/// The module was unloaded in the middle of a trim and does not say what it has removed.
#[test]
fn a_removal_that_nobody_counts_is_not_forgotten() {
    let mut machine = Machine::new();
    (0..5).for_each(|_| machine.model.append(3, false));
    machine.refresh();
    machine.archive()(5, 1 << 20);
    machine.unsaid = true;
    machine
        .whole()
        .removing(true, || {
            machine.model.remove(3).unwrap();
            machine.model.with(|state| state.module = false);
        })
        .unwrap();
    (0..3).for_each(|_| machine.model.append(3, false));
    machine.read(0, 0, 1 << 20);
    machine.module(true);
    machine.read(0, 0, 1 << 20);
}

/// Nobody has said that records are guarded, and as many were appended as somebody has removed.
#[test]
fn others_are_reckoned_with_until_there_is_a_guard() {
    let directory = Directory::new();
    let writer = directory.writer();
    let model = Model::new();
    (0..5).for_each(|_| model.append(3, false));
    let whole = whole(&model, &writer, 0).unwrap();
    whole.refresh().unwrap();
    model.remove(2).unwrap();
    (0..2).for_each(|_| model.append(3, false));
    assert_eq!(whole.refresh().unwrap(), 7);
    model.remove(4).unwrap();
    (0..2).for_each(|_| model.append(3, false));
    whole.set_guarded().unwrap();
    assert_eq!(whole.refresh().unwrap(), 9);
    // What was removed before it was read is missed.
    whole.set_unguarded();
    (0..2).for_each(|_| model.append(3, false));
    model.remove(10).unwrap();
    assert!(matches!(
        whole.refresh(),
        Err(ListError::Hole { from: 9, to: 10 })
    ));
    assert!(whole.set_guarded().is_err());
    assert!(matches!(whole.refresh(), Err(ListError::Hole { .. })));
}

/// Neither a module nor a record that is known tells that what is new follows what is known.
#[test]
fn what_follows_nothing_is_not_taken_for_what_follows() {
    let machine = Machine::new();
    (0..3).for_each(|_| machine.model.append(3, false));
    machine.refresh();
    machine.archive()(3, 1 << 20);
    let trimmed = machine.whole().removing(false, || machine.model.trim(3));
    trimmed.unwrap().unwrap();
    assert_eq!((machine.whole().known(), machine.whole().base()), (3, 3));
    machine.whole().set_unguarded();
    machine.model.with(|state| state.module = false);
    (0..5).for_each(|_| machine.model.append(3, false));
    machine.model.remove(6).unwrap();
    for _ in 0..2 {
        assert!(matches!(
            machine.whole().refresh(),
            Err(ListError::Parted { number: 3 })
        ));
        assert_eq!(machine.whole().known(), 3);
    }
    assert!(!machine.whole().is_lost());
    machine.whole().lose();
    assert!(machine.whole().is_lost());
    assert!(machine.whole().refresh().is_err());
    // It was the model's mistake.
    machine.model.with(|state| state.gone = 3);
    let following = machine.model.with(|state| {
        let (bytes, ends) = &state.files[0];
        bytes[ends[3]..].to_vec()
    });
    machine.whole().go_on(3, &following).unwrap();
    assert!(!machine.whole().is_lost());
    machine.read(0, 0, 1 << 20);
    machine.model.append(3, false);
    machine.read(1, 0, 1 << 20);
}

/// A list that is longer than what memory is to be used for, and a record that alone is.
#[test]
fn a_long_list_is_read_and_archived_bit_by_bit() {
    const LIMIT: usize = 20_000;
    const LONGEST: usize = 50_000;
    let machine = Machine::new();
    for number in 0..300 {
        let size = if number == 150 {
            LONGEST
        } else {
            number % 40 * 50
        };
        machine.model.append(size, number % 9 == 0);
    }
    let archive = machine.archive();
    let mut times = 0;
    while machine.whole().refresh_some(LIMIT).unwrap() {
        times += 1;
        let (_, bytes) = machine.whole().in_memory();
        assert!(bytes >= LIMIT as u64, "{bytes}");
        assert!(bytes < (LIMIT + 2 * (PIECE + LONGEST)) as u64, "{bytes}");
        archive(machine.whole().known(), 1 << 20);
        assert_eq!(machine.whole().in_memory(), (0, 0));
    }
    assert!(times > 8, "{times}");
    assert_eq!(machine.whole().known(), 300);
    (0..VIEWS.len()).for_each(|view| machine.read(view, 0, 64 << 20));
    // Nothing new is no reason to go on.
    assert!(!machine.whole().refresh_some(LIMIT).unwrap());
    machine.model.append(1, false);
    assert!(!machine.whole().refresh_some(1).unwrap());
    assert_eq!(machine.whole().known(), 301);
}

/// Without a module that tells, the records tell: whatever was removed of those that are archived.
#[test]
fn where_the_list_begins_is_found_by_its_records() {
    for twins in [false, true] {
        let machine = Machine::new();
        for number in 0..9 {
            machine.model.append(3, twins && number % 3 == 1);
        }
        machine.refresh();
        for to in [2, 6, 7, 9] {
            machine.archive()(to, 1 << 20);
        }
        assert!(machine.whole().archive().segments() > 1);
        // What is new is no hindrance.
        (0..2).for_each(|_| machine.model.append(3, false));
        machine.model.with(|state| state.module = false);
        for gone in 0..=9 {
            machine.model.remove(gone).unwrap();
            let found = find_base(&machine.model, machine.whole().archive()).unwrap();
            assert_eq!(found, gone, "twins: {twins}");
        }
        // And if it is said, it is believed.
        machine.model.with(|state| state.module = true);
        let found = find_base(&machine.model, machine.whole().archive()).unwrap();
        assert_eq!(found, 9);
        machine.model.remove(11).unwrap();
        assert!(matches!(
            find_base(&machine.model, machine.whole().archive()),
            Err(KeeperError::Beheaded(2))
        ));
    }
}

/// What could not be read is named for as long as it cannot be read.
#[test]
fn a_segment_that_cannot_be_read_is_remembered() {
    let machine = Machine::new();
    (0..5).for_each(|_| machine.model.append(3, false));
    machine.refresh();
    machine.archive()(3, 1 << 20);
    machine.archive()(5, 1 << 20);
    let archive = machine.whole().archive();
    let path = archive.path().join("00000000000000000000.segment");
    let away = machine.directory.0.join("away");
    fs::rename(&path, &away).unwrap();

    assert!(archive.check().is_err());
    machine.whole().readable().unwrap();
    let mut got = Vec::new();
    // The first view may still be in memory.
    assert!(machine.whole().read(VIEWS[1], 0, 10, &mut got).is_err());
    assert!(got.is_empty());
    assert!(machine.whole().readable().is_err());
    fs::rename(&away, &path).unwrap();
    machine.whole().readable().unwrap();
    archive.check().unwrap();
    machine.read(0, 0, 1 << 20);
}

/// Everything at once.
#[test]
fn many_threads() {
    const SECONDS: u64 = 3;
    let directory = Directory::new();
    let mut writer = directory.writer();
    let model = Model::new();
    let whole = whole(&model, &writer, 0).unwrap();
    whole.set_guarded().unwrap();
    let stop = AtomicBool::new(false);
    let stopped = || stop.load(Ordering::Relaxed);
    let trims = AtomicU32::new(0);
    let reads = AtomicU32::new(0);

    thread::scope(|scope| {
        let appender = scope.spawn(|| {
            let mut number = 0_usize;
            while !stopped() && model.end() < 40_000 {
                number += 1;
                model.append(
                    if number % 97 == 0 { 9000 } else { number % 30 },
                    number % 11 == 0,
                );
                if number % 8 == 0 {
                    thread::sleep(Duration::from_micros(300));
                }
            }
        });
        for reader in 0..6_usize {
            let (model, whole, reads, stopped) = (&model, &whole, &reads, &stopped);
            scope.spawn(move || {
                let view = reader % VIEWS.len();
                let mut at = 0;
                let mut seed = reader as u64 + 1;
                while !stopped() {
                    seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    let size = [100, 4096, 1 << 17][(seed >> 33) as usize % 3];
                    // Some read on, the others anywhere.
                    let offset = if reader < 4 {
                        at
                    } else {
                        (seed >> 20) % (at + 1)
                    };
                    let before = model.end();
                    let mut got = Vec::new();
                    whole.read(VIEWS[view], offset, size, &mut got).unwrap();
                    model.check(view, offset, size, before, &got);
                    at = at.max(offset + got.len() as u64);
                    reads.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let (model, whole, trims, stopped) = (&model, &whole, &trims, &stopped);
        let keeper = scope.spawn(move || {
            while !stopped() {
                let end = whole.refresh().unwrap();
                let records = whole.to_archive(end, 20_000).unwrap();
                if records.is_empty() {
                    continue;
                }
                writer.append(&records, 1).unwrap();
                whole.archived().unwrap();
                let to = whole.archive().records();
                let done = (0..1000).any(|attempt| {
                    let removed = whole.removing(attempt > 20, || model.remove(to).is_ok());
                    removed.unwrap()
                });
                if done {
                    assert_eq!(whole.base(), to);
                    trims.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        let began = Instant::now();
        // A thread that has panicked ends it, too.
        while began.elapsed() < Duration::from_secs(SECONDS)
            && !keeper.is_finished()
            && !appender.is_finished()
        {
            thread::sleep(Duration::from_millis(20));
        }
        stop.store(true, Ordering::Relaxed);
    });
    for (index, view) in VIEWS.iter().enumerate() {
        let mut got = Vec::new();
        whole.read(*view, 0, usize::MAX, &mut got).unwrap();
        model.with(|state| assert!(state.files[index].0 == got));
    }
    let (trims, reads) = (trims.into_inner(), reads.into_inner());
    assert!(trims > 20 && reads > 200, "{trims} trims, {reads} reads");
}
