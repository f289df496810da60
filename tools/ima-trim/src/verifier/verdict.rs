// SPDX-License-Identifier: GPL-2.0

//! What a verifier finds.

use std::fmt;

use serde::Serialize;
use serde::Serializer;

/// A rule of `Documentation/admin-guide/verifier.rst`, by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rule(pub u8);

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "V{}", self.0)
    }
}

/// As `V8`.
impl Serialize for Rule {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Why a machine is not accepted: the first rule that it breaks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Refusal {
    /// The rule.
    pub rule: Rule,
    /// The number of the record that breaks it, counted from 1 since boot, if it is one.
    pub record: Option<u64>,
    /// What is wrong, and what to do.
    pub what: String,
    /// What should be there.
    pub expected: Option<String>,
    /// What is there instead.
    pub found: Option<String>,
}

impl Refusal {
    pub(super) fn new(rule: u8, what: impl Into<String>) -> Self {
        Self {
            rule: Rule(rule),
            record: None,
            what: what.into(),
            expected: None,
            found: None,
        }
    }

    pub(super) fn at(mut self, record: u64) -> Self {
        self.record = Some(record);
        self
    }

    pub(super) fn values(mut self, expected: impl ToString, found: impl ToString) -> Self {
        self.expected = Some(expected.to_string());
        self.found = Some(found.to_string());
        self
    }
}

/// What is worth a question, and breaks no rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Note {
    /// The rule that it is about.
    pub rule: Rule,
    /// The record that it is about, counted from 1 since boot.
    pub record: Option<u64>,
    /// What there is to ask.
    pub what: String,
}

/// What is known of an accepted machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Accepted {
    /// The number of the first record of the list.
    pub first: u64,
    /// Records since boot that the quote covers: the number of the last of them.
    pub records: u64,
    /// Violations among them.
    pub violations: u64,
    /// Records behind them, which wait for the next quote.
    pub waiting: u64,
    /// The instance of the module that was loaded last, if an event says so.
    pub instance: Option<String>,
    /// What `TPMS_CLOCK_INFO` of the quote has.
    pub reset_count: Option<u32>,
    /// The same.
    pub restart_count: Option<u32>,
    /// The digest of the IMA policy that was measured last.
    pub policy: Option<String>,
    /// The request that trims to the last record that the quote covers.
    pub request: String,
}

/// A verdict on a machine at the time of a quote.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "verdict", rename_all = "lowercase")]
pub enum Verdict {
    /// No rule that can be checked is broken.
    Accepted {
        /// What is known now.
        machine: Accepted,
        /// What there is to ask.
        notes: Vec<Note>,
    },
    /// A rule is broken. What the list says must not be believed.
    Refused {
        /// The first one.
        refusal: Refusal,
        /// What there was to ask until then.
        notes: Vec<Note>,
    },
}

impl Verdict {
    /// Whether the machine is accepted.
    #[must_use]
    pub fn is_accepted(&self) -> bool {
        matches!(self, Self::Accepted { .. })
    }

    /// Why not, if it is not.
    #[must_use]
    pub fn refusal(&self) -> Option<&Refusal> {
        match self {
            Self::Accepted { .. } => None,
            Self::Refused { refusal, .. } => Some(refusal),
        }
    }

    /// What there is to ask.
    #[must_use]
    pub fn notes(&self) -> &[Note] {
        match self {
            Self::Accepted { notes, .. } | Self::Refused { notes, .. } => notes,
        }
    }
}

/// For people, several lines.
impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Accepted { machine, .. } => machine.fmt(f)?,
            Self::Refused { refusal, .. } => refusal.fmt(f)?,
        }
        for note in self.notes() {
            write!(f, "\nnote: ")?;
            about(f, note.rule, note.record)?;
            f.write_str(&note.what)?;
        }
        Ok(())
    }
}

impl fmt::Display for Accepted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "accepted: the quote covers records {} to {}; violations since boot: {}",
            self.first, self.records, self.violations
        )?;
        if self.waiting != 0 {
            write!(f, "; {} more wait for the next quote", self.waiting)?;
        }
        if let (Some(reset), Some(restart)) = (self.reset_count, self.restart_count) {
            write!(f, "\nboot: resetCount {reset}, restartCount {restart}")?;
        }
        if let Some(policy) = &self.policy {
            write!(f, "\npolicy: {policy}")?;
        }
        if let Some(instance) = &self.instance {
            write!(f, "\ninstance: {instance}")?;
        }
        write!(f, "\nrequest: {}", self.request)
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "refused: ")?;
        about(f, self.rule, self.record)?;
        f.write_str(&self.what)?;
        if let Some(expected) = &self.expected {
            write!(f, "\nexpected: {expected}")?;
        }
        if let Some(found) = &self.found {
            write!(f, "\nfound: {found}")?;
        }
        Ok(())
    }
}

fn about(f: &mut fmt::Formatter<'_>, rule: Rule, record: Option<u64>) -> fmt::Result {
    match record {
        Some(record) => write!(f, "{rule}, record {record}: "),
        None => write!(f, "{rule}: "),
    }
}
