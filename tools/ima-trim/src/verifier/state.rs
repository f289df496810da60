// SPDX-License-Identifier: GPL-2.0

//! What a verifier keeps of a machine: "What a verifier keeps" in
//! `Documentation/admin-guide/verifier.rst`.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::Serialize;

use crate::pcrs::Point;

use super::history::History;

/// The version of the form in which a state is kept.
const VERSION: u32 = 1;

/// The most points that are remembered, but for the first.
const MAX_POINTS: usize = 1000;

/// What is known of a machine. It must come from nobody but the verifier itself, or from one that
/// it trusts (V26).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    version: u32,
    /// [`crate::quote::PublicKey::fingerprint`] of the attestation key.
    pub(super) key: Option<String>,
    /// Digests of IMA policies that were accepted at first sight.
    pub(super) policies: Vec<String>,
    /// What is known since the last boot.
    pub(super) boot: Option<Boot>,
}

/// What is known since a boot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Boot {
    /// Both reset counts of the last accepted quote: none without a quote.
    pub(super) counts: Option<(u32, u32)>,
    /// The values of PCRs 0 to 9 in it, by `<bank>:<pcr>`.
    pub(super) pcrs: BTreeMap<String, String>,
    /// The template of the kernel.
    pub(super) template: String,
    /// The digest of the policy that was measured last.
    pub(super) policy: Option<String>,
    /// Points up to which records were accepted, ascending. The last is the present one.
    pub(super) points: Vec<Point>,
    /// `<bank>:<pcr>` that the last quote covers, of what the list is about.
    pub(super) covered: Vec<String>,
    /// Violations that were trimmed, as far as starting values said last.
    pub(super) trimmed_violations: u64,
    /// How many violations were accepted.
    pub(super) violations: u64,
    /// What the events told.
    pub(super) history: History,
}

impl Boot {
    /// The point up to which records were accepted last.
    pub(super) fn end(&self) -> Option<&Point> {
        self.points.last()
    }

    /// Remembers a point. Of very many the oldest are forgotten, but for the very first: it is that
    /// of the starting values, where the next list will begin.
    pub(super) fn remember(&mut self, point: &Point) {
        let number = |point: &Point| point.totals().records;
        let at = self.points.partition_point(|of| number(of) < number(point));
        if self.points.get(at).map(number) != Some(number(point)) {
            self.points.insert(at, point.clone());
        }
        if self.points.len() > 1 + MAX_POINTS {
            self.points.remove(1);
        }
    }
}

impl Default for State {
    fn default() -> Self {
        Self {
            version: VERSION,
            key: None,
            policies: Vec::new(),
            boot: None,
        }
    }
}

/// Why there is no state.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// It cannot be read.
    #[error("not a state that ima-trim verify wrote: {0}")]
    Json(#[from] serde_json::Error),
    /// Another version of the program wrote it.
    #[error(
        "a state of version {0}, and this program knows {VERSION}: use the program that wrote it"
    )]
    Version(u32),
    /// Nothing was accepted of it yet.
    #[error("nothing was accepted of this machine yet: run ima-trim verify with this state first")]
    Nothing,
    /// Another number of violations.
    #[error(
        "{stated} violations were looked at, and {found} would be trimmed: look at all of them, and \
         state their number"
    )]
    Violations {
        /// What the caller says.
        stated: u64,
        /// What was counted.
        found: u64,
    },
}

impl State {
    /// Reads a state.
    ///
    /// # Errors
    ///
    /// If it is none, or one of another version.
    pub fn from_json(text: &str) -> Result<Self, StateError> {
        let state: Self = serde_json::from_str(text)?;

        if state.version == VERSION {
            Ok(state)
        } else {
            Err(StateError::Version(state.version))
        }
    }

    /// The state as text, which ends in a newline.
    ///
    /// # Errors
    ///
    /// None that is known: a state has nothing that JSON has not.
    pub fn to_json(&self) -> Result<String, StateError> {
        Ok(serde_json::to_string_pretty(self)? + "\n")
    }

    /// How many records since boot were accepted.
    #[must_use]
    pub fn records(&self) -> u64 {
        let end = self.boot.as_ref().and_then(Boot::end);
        end.map_or(0, |point| point.totals().records)
    }

    /// The instance of the module that was loaded last, if an event told.
    #[must_use]
    pub fn instance(&self) -> Option<&str> {
        self.boot.as_ref()?.history.instance()
    }

    /// The request that trims to what was accepted last: V24.
    ///
    /// It has the values of the last accepted quote in the banks of SHA-256 or better, with every
    /// PCR that the list is about, and the number of accepted violations that would be trimmed.
    /// `violations` is that number if the caller wants to be sure; `instance` is put into it as it
    /// is.
    ///
    /// # Errors
    ///
    /// If nothing was accepted yet, or another number of violations.
    pub fn request(
        &self,
        violations: Option<u64>,
        instance: Option<&str>,
    ) -> Result<String, StateError> {
        let boot = self.boot.as_ref().ok_or(StateError::Nothing)?;
        let end = boot.end().ok_or(StateError::Nothing)?;
        let found = end
            .totals()
            .violations
            .saturating_sub(boot.trimmed_violations);

        if let Some(stated) = violations.filter(|&stated| stated != found) {
            return Err(StateError::Violations { stated, found });
        }
        let text = end.text();
        let mut tokens: Vec<String> = text
            .lines()
            .filter(|line| {
                let cell = line.split('=').next().unwrap_or_default();
                boot.covered.iter().any(|covered| covered == cell)
            })
            .map(str::to_owned)
            .collect();
        tokens.push(format!("violations={found}"));
        tokens.extend(instance.map(|instance| format!("instance={instance}")));
        Ok(tokens.join(" "))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::Boot;
    use super::History;
    use super::Point;
    use super::MAX_POINTS;

    #[test]
    fn points_are_not_without_number() {
        let point = |records: u64| {
            let zero = "0".repeat(64);
            let text = format!("sha256:10={zero} records={records} violations=0 trims=1");
            Point::parse(text.as_bytes()).unwrap()
        };
        let mut boot = Boot {
            counts: None,
            pcrs: BTreeMap::new(),
            template: String::new(),
            policy: None,
            points: Vec::new(),
            covered: Vec::new(),
            trimmed_violations: 0,
            violations: 0,
            history: History::default(),
        };
        for number in [3, 1, 2, 3] {
            boot.remember(&point(number));
        }
        assert_eq!(boot.points, [point(1), point(2), point(3)]);
        for number in 4..2000 {
            boot.remember(&point(number));
        }
        assert_eq!(boot.points.len(), 1 + MAX_POINTS);
        assert_eq!(boot.points[0], point(1));
        assert_eq!(boot.end(), Some(&point(1999)));
    }
}
