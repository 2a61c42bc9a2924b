//! `Policies`: all policies of one moment, as questions are asked about them.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::super::policy_set::strictest;
use super::super::{Policy, check};
use crate::identity::{SpiffeId, SpiffePattern};
use crate::model::{Id, IdentityPolicy, Invalid, Mode, PolicyAction, PolicySelector, Revision};

/// One policy.
#[derive(Clone, Debug)]
pub struct Stated {
    /// Its id.
    pub id: Id,
    /// The store's revision of it; 0 for a file.
    pub revision: Revision,
    /// What it says.
    pub text: Arc<IdentityPolicy>,
    /// Why it is not valid. It then holds against everybody whom it may select.
    pub broken: Option<String>,
    /// Whom it selects; `None` when that cannot be read, which selects everybody.
    workloads: Option<Vec<SpiffePattern>>,
}

impl Stated {
    fn new((id, revision, text): (Id, Revision, IdentityPolicy)) -> Self {
        let broken = check(&text).err().map(|Invalid(reason)| reason);
        let patterns = text.selector.workloads.iter().map(|text| text.parse::<SpiffePattern>());
        let workloads = patterns.collect::<Result<_, _>>().ok();
        Self { id, revision, text: Arc::new(text), broken, workloads }
    }

    /// Is it about this workload?
    pub fn selects(&self, workload: &SpiffeId) -> bool {
        let Some(patterns) = &self.workloads else { return true };
        patterns.is_empty() || patterns.iter().any(|pattern| pattern.matches(workload))
    }

    /// Does it name this very workload?
    pub fn names(&self, workload: &SpiffeId) -> bool {
        let patterns = self.workloads.iter().flatten();
        patterns.filter_map(SpiffePattern::exact).any(|id| id == *workload)
    }

    /// A rule of it, as answers name it.
    pub(super) fn rule(&self, at: usize) -> Via {
        let rule = self.text.rules.get(at);
        let name = rule.and_then(|rule| rule.name.clone());
        let mode = rule.and_then(|rule| rule.mode).unwrap_or(self.text.mode);
        Via {
            policy: self.id.to_string(),
            rule: name.unwrap_or_else(|| at.saturating_add(1).to_string()),
            revision: self.revision,
            action: self.text.action,
            mode,
        }
    }

    /// A policy that is broken as a whole, as answers name it.
    pub(super) fn whole(&self) -> Via {
        let mode = strictest(&self.text);
        Via { rule: "(the whole policy)".into(), mode, ..self.rule(usize::MAX) }
    }

    /// The selector, as far as it can be read: what cannot be read selects everything.
    pub(super) fn readable_selector(&self) -> PolicySelector {
        let selector = self.text.selector.clone();
        match self.workloads {
            Some(_) => selector,
            None => PolicySelector { workloads: Vec::new(), ..selector },
        }
    }
}

/// The rule that an answer rests on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Via {
    /// The policy's id.
    pub policy: String,
    /// The rule's name, else its number, counted from 1.
    pub rule: String,
    /// The store's revision of the policy.
    pub revision: Revision,
    /// What a match means.
    pub action: PolicyAction,
    /// Whether it decides.
    pub mode: Mode,
}

/// As people read it: `policy/billing-read:web-reads`.
impl std::fmt::Display for Via {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "policy/{}:{}", self.policy, self.rule)
    }
}

/// All policies of one moment, in the order of their ids. What is asked of them does no I/O.
/// ```
/// # use wardgate::policy::questions::{Policies, Target, WhoCan};
/// let policy = serde_json::from_value(serde_json::json!({
///     "action": "allow",
///     "rules": [{"from": {"principals": ["spiffe://shop/web", "spiffe://shop/jobs/*"]}, "to": {"methods": ["GET"]}}],
/// })).unwrap();
/// let policies = Policies::new([(wardgate::model::Id::parse("read").unwrap(), 7, policy)]);
/// let target = Target { method: Some("GET".into()), ..Target::default() };
/// let answer = policies.who_can(&"spiffe://shop/billing".parse().unwrap(), &target);
/// assert_eq!(answer.grants[0].who, ["spiffe://shop/web", "spiffe://shop/jobs/*"]);
/// ```
#[derive(Clone, Debug, Default)]
pub struct Policies {
    list: Arc<[Stated]>,
}

impl Policies {
    /// Judges each policy once.
    pub fn new(policies: impl IntoIterator<Item = (Id, Revision, IdentityPolicy)>) -> Self {
        let mut list: Vec<_> = policies.into_iter().map(Stated::new).collect();
        list.sort_by(|one, other| one.id.cmp(&other.id));
        Self { list: list.into() }
    }

    /// The policies.
    pub fn iter(&self) -> impl Iterator<Item = &Stated> {
        self.list.iter()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Are there none?
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// The policies that select this workload.
    pub(super) fn about(&self, workload: &SpiffeId) -> impl Iterator<Item = &Stated> {
        self.list.iter().filter(|stated| stated.selects(workload))
    }

    /// What the workload enforces: the engine itself.
    pub fn engine(&self, workload: &SpiffeId) -> Policy {
        let policies = self.list.iter().map(|one| (&one.id, one.revision, &*one.text));
        Policy::compile(policies, workload).0
    }

    /// The workloads that policies name one by one.
    pub fn named_workloads(&self) -> Vec<SpiffeId> {
        let patterns = self.list.iter().filter_map(|stated| stated.workloads.as_ref()).flatten();
        let mut named: Vec<_> = patterns.filter_map(SpiffePattern::exact).collect();
        named.sort();
        named.dedup();
        named
    }
}
