// SPDX-License-Identifier: GPL-2.0

//! What is concluded from IMA's account of readers and writers, checked against a model of that
//! account in every state that it can reach.

use ima_trim_pure::errno::Errno;
use ima_trim_pure::openers::{alone, readers, Busy, LOCK};
use std::collections::{HashSet, VecDeque};

/// How many tasks open and close files.
const TASKS: u8 = 3;

/// How many descriptors there are, at most, for writing and for reading.
const WRITABLE: i64 = 6;
const READABLE: i64 = 4;

/// How often the module counts itself, at most: the guard, a hold, and one more.
const OWN: i64 = 3;

/// The kernel's account, and what it should account for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct State {
    /// `ima_measure_users`
    users: i64,
    /// `measure_writer`
    writer: Option<u8>,
    /// `measure_writer_extra_writes`
    extra: i64,
    /// Descriptors open for writing.
    writable: i64,
    /// Descriptors open for reading.
    readable: i64,
    /// How often the module is counted as a reader.
    own: i64,
}

const CLOSED: State = State {
    users: 0,
    writer: None,
    extra: 0,
    writable: 0,
    readable: 0,
    own: 0,
};

impl State {
    fn judged(self) -> Result<i64, Busy> {
        readers(self.users, self.writer.is_some(), self.extra)
    }

    /// `ima_measure_lock()`, called by this task, when a file is opened.
    fn open(mut self, current: u8, write: bool) -> Option<Self> {
        if write && self.writer == Some(current) {
            self.extra += 1;
        } else if (write && self.users != 0) || (!write && self.users < 0) {
            return None;
        } else if write {
            self.users -= 1;
            self.writer = Some(current);
        } else {
            self.users += 1;
        }
        if write {
            self.writable += 1;
        } else {
            self.readable += 1;
        }
        Some(self)
    }

    /// `ima_measure_unlock()`, called by the task that closes the last descriptor of a file.
    fn close(mut self, current: u8, write: bool) -> Option<Self> {
        let open = if write {
            &mut self.writable
        } else {
            &mut self.readable
        };
        *open -= 1;
        if *open < 0 {
            return None;
        }
        if write && self.writer == Some(current) && self.extra != 0 {
            self.extra -= 1;
        } else if write {
            self.users += 1;
            self.writer = None;
        } else {
            self.users -= 1;
        }
        Some(self)
    }

    /// The module counts itself as a reader, if it may.
    fn count_in(mut self) -> Option<Self> {
        self.users = self.judged().ok()? + 1;
        self.own += 1;
        Some(self)
    }

    /// The module takes one count back.
    fn count_out(mut self) -> Option<Self> {
        self.users -= 1;
        self.own -= 1;
        (self.own >= 0).then_some(self)
    }

    /// All that can come next, if any task may close what another opened.
    fn next(self) -> Vec<Self> {
        let mut next: Vec<_> = [self.count_in(), self.count_out()]
            .into_iter()
            .flatten()
            .collect();
        for task in 0..TASKS {
            for write in [false, true] {
                next.extend(self.open(task, write));
                next.extend(self.close(task, write));
            }
        }
        next
    }
}

/// All states that are reached from that in which nothing is open.
fn reached<S>(first: S, next: impl Fn(S) -> Vec<S>, bounded: impl Fn(S) -> bool) -> HashSet<S>
where
    S: Copy + Eq + std::hash::Hash,
{
    let mut seen = HashSet::from([first]);
    let mut queue = VecDeque::from([first]);
    while let Some(state) = queue.pop_front() {
        for state in next(state) {
            if bounded(state) && seen.insert(state) {
                queue.push_back(state);
            }
        }
    }
    seen
}

fn bounded(state: State) -> bool {
    state.writable <= WRITABLE && state.readable <= READABLE && state.own <= OWN
}

fn all() -> HashSet<State> {
    reached(CLOSED, State::next, bounded)
}

#[test]
fn nothing_is_open_for_writing_where_the_account_is_accepted() {
    for state in all() {
        if let Ok(users) = state.judged() {
            assert_eq!(state.writable, 0, "{state:?}");
            assert_eq!(users, state.readable + state.own, "{state:?}");
        }
    }
}

#[test]
fn no_writer_comes_while_the_module_is_counted() {
    let all = all();
    let counted = all.iter().filter(|state| state.own > 0);
    for state in counted.clone() {
        assert_eq!(state.writable, 0, "{state:?}");
        assert_eq!(state.judged(), Ok(state.readable + state.own), "{state:?}");
    }
    assert!(counted.count() > 10);
}

/// The states that it is all about are among those explored: without them the tests above would
/// prove nothing.
#[test]
fn the_account_can_contradict_itself() {
    let all = all();
    let counts_as_free =
        |state: &&State| state.users >= 0 && state.writer.is_none() && state.writable > 0;
    let state = all.iter().find(counts_as_free);
    assert!(state.is_some());
    for state in all.iter().filter(counts_as_free) {
        assert_eq!(
            state.judged(),
            Err(Busy::Inconsistent {
                users: state.users,
                extra: state.extra
            })
        );
    }
    // Readers beside a writer, and nobody although somebody is counted.
    assert!(all
        .iter()
        .any(|state| state.writable > 0 && state.readable > 0));
    assert!(all.iter().any(|state| state.writable == 0
        && state.readable == 0
        && state.own == 0
        && state.users > 0));
}

/// Each descriptor closed by the task that opened it: whoever it is, a writer is a writer.
#[test]
fn an_ordinary_writer_is_told_as_one() {
    type Ordinary = (State, [i64; TASKS as usize]);
    let next = |(state, open): Ordinary| -> Vec<Ordinary> {
        let mut next: Vec<_> = [state.count_in(), state.count_out()]
            .into_iter()
            .flatten()
            .map(|state| (state, open))
            .collect();
        for task in 0..TASKS {
            next.extend(state.open(task, false).map(|state| (state, open)));
            next.extend(state.close(task, false).map(|state| (state, open)));
            let index = usize::from(task);
            let mut more = open;
            more[index] += 1;
            next.extend(state.open(task, true).map(|state| (state, more)));
            if open[index] > 0 {
                let mut less = open;
                less[index] -= 1;
                next.extend(state.close(task, true).map(|state| (state, less)));
            }
        }
        next
    };
    let states = reached((CLOSED, [0; TASKS as usize]), next, |(state, _)| {
        bounded(state)
    });
    for &(state, _) in &states {
        let expected = if state.writable > 0 {
            Err(Busy::Writer)
        } else {
            Ok(state.readable + state.own)
        };
        assert_eq!(state.judged(), expected, "{state:?}");
    }
    assert!(states.iter().any(|(state, _)| state.writable == WRITABLE));
}

#[test]
fn what_no_kernel_writes_is_not_accepted() {
    for users in [i64::MIN, -2, -1, 0, 1, i64::MAX] {
        for noted in [false, true] {
            for extra in [i64::MIN, -1, 0, 1, i64::MAX] {
                let judged = readers(users, noted, extra);
                match (users, noted, extra) {
                    (0.., false, 0) => assert_eq!(judged, Ok(users)),
                    (-1, true, 0..) => assert_eq!(judged, Err(Busy::Writer)),
                    _ => assert_eq!(judged, Err(Busy::Inconsistent { users, extra })),
                }
            }
        }
    }
}

#[test]
fn whoever_is_counted_beside_us_is_in_the_way() {
    for own in [1, 2, LOCK + 1] {
        assert_eq!(alone(own, own), Ok(()));
        for others in [1, 2, 1000, LOCK - 1] {
            assert_eq!(alone(own + others, own), Err(Busy::Readers(others)));
        }
        // What an earlier load has left is told from readers, with or without some.
        for others in [LOCK, LOCK + 1, LOCK + 1000, 2 * LOCK, i64::MAX - own] {
            assert_eq!(alone(own + others, own), Err(Busy::Locked));
        }
        // Nobody has counted us out, so this cannot be; it is not accepted all the same.
        assert_eq!(alone(own - 1, own), Err(Busy::Readers(-1)));
        assert_eq!(alone(0, own), Err(Busy::Readers(-own)));
    }
}

/// The list stays locked whatever anybody opens and closes from then on.
#[test]
fn no_writer_comes_when_the_module_has_left_its_lock() {
    let locked = State {
        users: LOCK,
        own: LOCK,
        ..CLOSED
    };
    let others = |state: State| -> Vec<State> {
        (0..TASKS)
            .flat_map(|task| {
                [(true, true), (true, false), (false, true), (false, false)].map(
                    |(opens, write)| {
                        if opens {
                            state.open(task, write)
                        } else {
                            state.close(task, write)
                        }
                    },
                )
            })
            .flatten()
            .collect()
    };
    let states = reached(locked, others, |state| state.readable <= READABLE);

    assert!(states.iter().any(|state| state.readable == READABLE));
    for state in states {
        assert_eq!(state.writable, 0, "{state:?}");
        assert_eq!(state.judged(), Ok(LOCK + state.readable), "{state:?}");
        // To a module that is loaded afterwards, with a hold, and with a guard or without.
        for own in [1, 2] {
            assert_eq!(
                alone(state.users + own, own),
                Err(Busy::Locked),
                "{state:?}"
            );
        }
    }
}

#[test]
fn who_is_in_the_way_is_told() {
    let inconsistent = Busy::Inconsistent { users: 1, extra: 2 };
    for (busy, errno, text) in [
        (Busy::Writer, Errno::Busy, "open for writing"),
        (Busy::Readers(3), Errno::Busy, "(3 open)"),
        (
            inconsistent,
            Errno::Busy,
            "ima_measure_users=1, measure_writer_extra_writes=2",
        ),
        (Busy::Locked, Errno::Busy, "until the machine is rebooted"),
        (Busy::Staged(4), Errno::Busy, "4 records are staged"),
        (Busy::Suspended, Errno::Stale, "suspended"),
        (Busy::Changed, Errno::Uclean, "somebody else removed"),
        (Busy::Corrupt, Errno::Uclean, "contradict each other"),
    ] {
        assert_eq!(busy.errno(), errno);
        assert!(busy.to_string().contains(text), "{busy}");
    }
}
