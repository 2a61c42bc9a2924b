//! What control planes share about canary pushes: one small record in the store, changed with compare-and-set.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::report::Report;
use crate::model::Revision;

/// How it stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Nothing is tried: everybody has everything up to the stable revision, and what is newer is about to be tried.
    #[default]
    Passed,
    /// Some data planes have the candidate.
    Trying,
    /// Nobody has the candidate, and nothing newer passes.
    Stopped,
}

/// The record.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// How it stands.
    pub phase: Phase,
    /// Everybody has what was written up to this revision.
    pub stable: Revision,
    /// What is tried, or was stopped: everything that was written up to this revision. The stable one when nothing is.
    pub candidate: Revision,
    /// A data plane is a canary when the number that its name gives is not above this one.
    #[serde(default)]
    pub threshold: u64,
    /// In place of the threshold: labels that a canary bears.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// There are data planes: while none is connected they are waited for.
    #[serde(default)]
    pub has_data_planes: bool,
    /// Since when it stands so, in seconds since 1970.
    pub since: i64,
    /// Why: what was found, or who decided.
    pub reason: String,
    /// Who decided, when it was a person.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// What was seen when it was decided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seen: Option<Report>,
    /// The candidate that was stopped last, with the reason, when a newer one has taken its place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub superseded: Option<Superseded>,
}

/// A candidate that was stopped and is no more.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Superseded {
    /// Its revision.
    pub revision: Revision,
    /// Why it was stopped.
    pub reason: String,
}

impl Record {
    /// Everything up to `revision` is with everybody.
    pub fn passed(revision: Revision, since: i64, reason: impl Into<String>) -> Self {
        Self {
            phase: Phase::Passed,
            stable: revision,
            candidate: revision,
            since,
            reason: reason.into(),
            ..Self::default()
        }
    }

    /// The candidate passes.
    #[must_use]
    pub fn pass(&self, since: i64, reason: impl Into<String>) -> Self {
        let passed = Self::passed(self.candidate.max(self.stable), since, reason);
        Self { has_data_planes: self.has_data_planes, ..passed }
    }

    /// The candidate is stopped.
    #[must_use]
    pub fn stop(&self, since: i64, reason: impl Into<String>) -> Self {
        Self { phase: Phase::Stopped, since, reason: reason.into(), by: None, ..self.clone() }
    }

    /// What was stopped is to be tried once more, with all that is newer.
    #[must_use]
    pub fn retry(&self, since: i64, reason: impl Into<String>) -> Self {
        let superseded = self.superseded_by_a_newer();
        let passed = Self::passed(self.stable, since, reason);
        Self { superseded, has_data_planes: self.has_data_planes, ..passed }
    }

    /// Something newer is tried.
    #[must_use]
    pub fn try_out(
        &self,
        candidate: Revision,
        (threshold, labels): (u64, BTreeMap<String, String>),
        since: i64,
    ) -> Self {
        Self {
            phase: Phase::Trying,
            stable: self.stable,
            candidate,
            threshold,
            labels,
            has_data_planes: true,
            since,
            reason: "some data planes try it".into(),
            by: None,
            seen: None,
            superseded: self.superseded_by_a_newer(),
        }
    }

    fn superseded_by_a_newer(&self) -> Option<Superseded> {
        match self.phase {
            Phase::Stopped => {
                Some(Superseded { revision: self.candidate, reason: self.reason.clone() })
            }
            Phase::Passed | Phase::Trying => self.superseded.clone(),
        }
    }
}
