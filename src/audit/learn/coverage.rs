//! `coverage`: which rules, and which entries of them, were used.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde::Serialize;

use super::bounds::{Judges, Verdict};
use super::observations::{Asked, Evidence, Observations};
use super::replay::Tried;
use crate::identity::SpiffeId;
use crate::model::{From, Id, IdentityPolicy, PolicyAction, PolicyRule, To};
use crate::policy::Policy;

/// How far one list of a rule is used.
#[derive(Clone, Debug, Serialize)]
pub struct EntryUse {
    /// The field, as `from.principals`.
    pub field: &'static str,
    /// How many entries it has.
    pub entries: usize,
    /// Those that nothing was asked by.
    pub unused: Vec<String>,
}

/// How a rule was used.
#[derive(Clone, Debug, Serialize)]
pub struct RuleUse {
    /// The policy.
    pub policy: Id,
    /// The rule's name, else its number.
    pub rule: String,
    /// What a match means.
    pub action: PolicyAction,
    /// How often it decided; `None`: never.
    pub evidence: Option<Evidence>,
    /// So many different callers.
    pub callers: usize,
    /// Lists with entries that were never used; only of rules that were.
    pub partly: Vec<EntryUse>,
}

/// How a set of policies was used.
#[derive(Clone, Debug, Serialize)]
pub struct Coverage {
    /// All rules, in the order of the policies.
    pub rules: Vec<RuleUse>,
    /// Requests that no rule decided: refused because none allows them.
    pub undecided: u64,
    /// Requests whose decision depends on what the log does not tell.
    pub unknown: u64,
}

/// Finds what of a set of policies was used. A request counts for the rule that decides it: the first that holds.
pub fn coverage(observations: &Observations, tried: Tried<'_>) -> Coverage {
    let mut judges = Judges::new(tried.policies, tried.labels, tried.ingresses);
    let mut used: HashMap<(String, String), Vec<(&Asked, Evidence)>> = HashMap::new();
    let (mut undecided, mut unknown) = (0, 0);
    for (asked, evidence) in observations.iter() {
        match judges.verdict(asked) {
            Verdict::Allow(Some(rule)) | Verdict::Deny(_, Some(rule)) => {
                used.entry(rule).or_default().push((asked, evidence));
            }
            Verdict::Allow(None) | Verdict::Deny(_, None) => undecided += evidence.count,
            Verdict::Unknown => unknown += evidence.count,
        }
    }
    let mut rules = Vec::new();
    for (id, policy) in tried.policies {
        for (at, rule) in policy.rules.iter().enumerate() {
            let name = rule.name.clone().unwrap_or_else(|| (at + 1).to_string());
            let uses = used.remove(&(id.to_string(), name.clone())).unwrap_or_default();
            let mut evidence = Evidence::NONE;
            uses.iter().for_each(|(_, one)| evidence.add(*one));
            let callers: BTreeSet<_> = uses.iter().map(|(asked, _)| &asked.src).collect();
            rules.push(RuleUse {
                policy: id.clone(),
                rule: name,
                action: policy.action,
                evidence: (!uses.is_empty()).then_some(evidence),
                callers: callers.len(),
                partly: if uses.is_empty() { Vec::new() } else { partly(rule, &uses) },
            });
        }
    }
    Coverage { rules, undecided, unknown }
}

/// The lists of a used rule whose entries were not all used.
fn partly(rule: &PolicyRule, uses: &[(&Asked, Evidence)]) -> Vec<EntryUse> {
    let (from, to) = (rule.from.clone().unwrap_or_default(), rule.to.clone().unwrap_or_default());
    /// A field, its entries, and a rule with one of them alone.
    type List<'a> = (&'static str, &'a [String], fn(String) -> PolicyRule);
    let lists: [List<'_>; 4] = [
        ("from.principals", &from.principals, |one| PolicyRule {
            from: Some(From { principals: vec![one], ..From::default() }),
            ..PolicyRule::default()
        }),
        ("to.hosts", &to.hosts, |one| of(To { hosts: vec![one], ..To::default() })),
        ("to.methods", &to.methods, |one| of(To { methods: vec![one], ..To::default() })),
        ("to.paths", &to.paths, |one| of(To { paths: vec![one], ..To::default() })),
    ];
    let mut found = Vec::new();
    for (field, entries, alone) in lists {
        if entries.len() < 2 {
            continue;
        }
        let is_unused = |entry: &&String| {
            let mut engines: BTreeMap<SpiffeId, Policy> = BTreeMap::new();
            !uses.iter().any(|(asked, _)| {
                let engine = engines
                    .entry(asked.dst.clone())
                    .or_insert_with(|| engine(alone((*entry).clone()), &asked.dst));
                let standing = engine.standing_of(asked.src.as_ref());
                engine.decide(&standing, &asked.action(None)).is_allowed()
            })
        };
        let unused: Vec<String> = entries.iter().filter(is_unused).cloned().collect();
        if !unused.is_empty() {
            found.push(EntryUse { field, entries: entries.len(), unused });
        }
    }
    found
}

fn of(to: To) -> PolicyRule {
    PolicyRule { to: Some(to), ..PolicyRule::default() }
}

/// One rule alone, as what it would allow.
fn engine(rule: PolicyRule, me: &SpiffeId) -> Policy {
    let id = Id::from(1);
    let policy = IdentityPolicy::of(PolicyAction::Allow, vec![rule]);
    Policy::compile([(&id, 0, &policy)], me).0
}
