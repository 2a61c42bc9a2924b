//! `replay`: what another set of policies would have decided about what really happened.

use std::collections::{BTreeMap, HashMap};

use serde::Serialize;

use super::bounds::{Judges, Verdict};
use super::observations::{Asked, Evidence, Observations, Skipped};
use super::templates::Templates;
use crate::identity::SpiffeId;
use crate::model::{Id, IdentityPolicy, Labels};

/// A set of policies to try, and what has to be known beside it.
#[derive(Clone, Copy, Debug)]
pub struct Tried<'a> {
    /// The policies.
    pub policies: &'a [(Id, IdentityPolicy)],
    /// The labels of the routes; empty: they are not known.
    pub labels: &'a HashMap<Id, Labels>,
    /// The identities of ingresses: there, what no policy selects is open.
    pub ingresses: &'a [SpiffeId],
}

/// Requests of one caller to one workload, alike but for identifiers in their paths, that are decided differently.
#[derive(Clone, Debug, Serialize)]
pub struct Change {
    /// Who called; `None`: a caller without an identity.
    pub src: Option<String>,
    /// The workload.
    pub dst: String,
    /// The method; `None` for a connection.
    pub method: Option<String>,
    /// The template of the paths.
    pub path: String,
    /// One of the paths.
    pub example: String,
    /// How often, and when.
    pub evidence: Evidence,
    /// What the set that was tried says: `allow` or a reason.
    pub now: &'static str,
    /// The policy and the rule that say so.
    pub rule: Option<(String, String)>,
}

/// What another set of policies would have decided.
#[derive(Clone, Debug, Serialize)]
pub struct Replay {
    /// Requests that were decided again.
    pub requests: u64,
    /// Those that are decided as they were.
    pub same: u64,
    /// What happened, and would be refused.
    pub newly_denied: Vec<Change>,
    /// What was refused, and would be allowed.
    pub newly_allowed: Vec<Change>,
    /// What depends on things that the log does not tell: header fields, query, claims, the time of day.
    pub unknown: Vec<Change>,
    /// What the log told of and could not be decided again.
    pub skipped: Skipped,
}

impl Replay {
    /// Would everything have been decided as it was?
    pub fn changes_nothing(&self) -> bool {
        self.newly_denied.is_empty() && self.newly_allowed.is_empty() && self.unknown.is_empty()
    }
}

/// Decides the past again. What it is compared with is what happened, or what the policies `against` say.
pub fn replay(observations: &Observations, tried: Tried<'_>, against: Option<Tried<'_>>) -> Replay {
    type Key = (u8, SpiffeId, Option<SpiffeId>, Option<String>, String);
    let templates = Templates::learn(observations.iter().map(|(asked, _)| asked));
    let mut new = Judges::new(tried.policies, tried.labels, tried.ingresses);
    let mut old = against.map(|set| Judges::new(set.policies, set.labels, set.ingresses));
    let (mut requests, mut same) = (0, 0);
    let mut changes: BTreeMap<Key, Change> = BTreeMap::new();
    for (asked, evidence) in observations.iter() {
        requests += evidence.count;
        let before = match old.as_mut().map(|old| old.verdict(asked)) {
            None => Some(asked.was_allowed),
            Some(Verdict::Allow(_)) => Some(true),
            Some(Verdict::Deny(..)) => Some(false),
            Some(Verdict::Unknown) => None,
        };
        let verdict = new.verdict(asked);
        let (list, now, rule) = match (before, verdict) {
            (Some(true), Verdict::Allow(_)) | (Some(false), Verdict::Deny(..)) => {
                same += evidence.count;
                continue;
            }
            (Some(true), Verdict::Deny(reason, rule)) => (0, reason, rule),
            (Some(false), Verdict::Allow(rule)) => (1, "allow", rule),
            (None, Verdict::Allow(rule)) => (2, "allow", rule),
            (None, Verdict::Deny(reason, rule)) => (2, reason, rule),
            (_, Verdict::Unknown) => (2, "unknown", None),
        };
        let path = templates.of(asked);
        let Asked { dst, src, method, .. } = asked;
        let key = (list, dst.clone(), src.clone(), method.clone(), path.clone());
        let change = changes.entry(key).or_insert_with(|| Change {
            src: src.as_ref().map(ToString::to_string),
            dst: dst.to_string(),
            method: method.clone(),
            path,
            example: asked.path.clone(),
            evidence: Evidence::NONE,
            now,
            rule,
        });
        change.evidence.add(evidence);
    }
    let mut replay = Replay {
        requests,
        same,
        newly_denied: Vec::new(),
        newly_allowed: Vec::new(),
        unknown: Vec::new(),
        skipped: observations.skipped(),
    };
    for ((list, ..), change) in changes {
        match list {
            0 => replay.newly_denied.push(change),
            1 => replay.newly_allowed.push(change),
            _ => replay.unknown.push(change),
        }
    }
    replay
}
