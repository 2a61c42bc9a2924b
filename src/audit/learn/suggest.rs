//! `suggest`: the rules that would be enough for what really happened, with the evidence for each, and the proof.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde::Serialize;

use super::observations::{Evidence, Observations};
use super::replay::{Change, Replay, Tried, replay};
use super::templates::Templates;
use crate::identity::SpiffeId;
use crate::model::{
    From, Id, IdentityPolicy, Labels, PolicyAction, PolicyRule, PolicySelector, To,
};
use crate::policy;

/// How much a suggested rule rests on.
#[derive(Clone, Debug, Serialize)]
pub struct RuleEvidence {
    /// The rule's name.
    pub rule: String,
    /// How often it was used, and when.
    pub evidence: Evidence,
    /// So many different paths.
    pub paths: usize,
}

/// A policy that allows what one workload was asked for.
#[derive(Clone, Debug, Serialize)]
pub struct SuggestedPolicy {
    /// Its id.
    pub id: Id,
    /// What it says.
    pub policy: IdentityPolicy,
    /// One for each rule, in their order.
    pub evidence: Vec<RuleEvidence>,
}

/// Policies that would be enough.
#[derive(Clone, Debug, Serialize)]
pub struct Suggestion {
    /// One for each workload.
    pub policies: Vec<SuggestedPolicy>,
    /// What happened and no suggested rule allows: callers without an identity, paths that no template can mean.
    pub uncovered: Vec<Change>,
    /// What the suggested policies would have decided about all that happened.
    pub proof: Replay,
}

/// What was done together: the same callers with the same methods.
type Group = (BTreeSet<SpiffeId>, BTreeSet<String>, Option<u16>);

/// Writes the least that allows what was allowed. Callers without an identity get no rule: it would be one for everybody.
///
/// # Panics
/// Never: the ids that are made are lawful.
pub fn suggest(observations: &Observations, ingresses: &[SpiffeId]) -> Suggestion {
    let templates = Templates::learn(observations.iter().map(|(asked, _)| asked));
    // Of each workload: its templates (or port), and who asked for them how.
    type Place = (Option<u16>, String);
    type Use = BTreeMap<SpiffeId, (BTreeSet<String>, Evidence, BTreeSet<String>)>;
    let mut workloads: BTreeMap<SpiffeId, BTreeMap<Place, Use>> = BTreeMap::new();
    for (asked, evidence) in observations.iter().filter(|(asked, _)| asked.was_allowed) {
        let Some(src) = &asked.src else { continue };
        let place = match asked.method {
            Some(_) => (None, templates.of(asked)),
            None => (Some(asked.port), String::new()),
        };
        let places = workloads.entry(asked.dst.clone()).or_default();
        let by_caller = places.entry(place).or_default();
        let nothing = (BTreeSet::new(), Evidence::NONE, BTreeSet::new());
        let used = by_caller.entry(src.clone()).or_insert(nothing);
        used.0.extend(asked.method.clone());
        used.1.add(evidence);
        used.2.insert(asked.path.clone());
    }
    let mut ids = BTreeSet::new();
    let policies: Vec<SuggestedPolicy> = workloads
        .into_iter()
        .map(|(workload, places)| {
            let mut groups: BTreeMap<Group, (BTreeSet<String>, Evidence, usize)> = BTreeMap::new();
            for ((port, template), callers) in places {
                // Callers that use a place with the same methods share a rule.
                let mut alike: BTreeMap<BTreeSet<String>, (BTreeSet<SpiffeId>, Evidence, usize)> =
                    BTreeMap::new();
                for (src, (methods, evidence, paths)) in callers {
                    let nothing = (BTreeSet::new(), Evidence::NONE, 0);
                    let one = alike.entry(methods).or_insert(nothing);
                    one.0.insert(src);
                    one.1.add(evidence);
                    one.2 += paths.len();
                }
                for (methods, (callers, evidence, paths)) in alike {
                    let nothing = (BTreeSet::new(), Evidence::NONE, 0);
                    let group = groups.entry((callers, methods, port)).or_insert(nothing);
                    if port.is_none() {
                        group.0.insert(template.clone());
                    }
                    group.1.add(evidence);
                    group.2 += paths;
                }
            }
            policy_of(&workload, groups, &mut ids)
        })
        .collect();
    let set: Vec<(Id, IdentityPolicy)> =
        policies.iter().map(|one| (one.id.clone(), one.policy.clone())).collect();
    let labels: HashMap<Id, Labels> = HashMap::new();
    let proof = replay(observations, Tried { policies: &set, labels: &labels, ingresses }, None);
    Suggestion { policies, uncovered: proof.newly_denied.clone(), proof }
}

fn policy_of(
    workload: &SpiffeId,
    groups: BTreeMap<Group, (BTreeSet<String>, Evidence, usize)>,
    ids: &mut BTreeSet<String>,
) -> SuggestedPolicy {
    let mut names = BTreeSet::new();
    let (mut rules, mut all) = (Vec::new(), Vec::new());
    for ((callers, methods, port), (templates, evidence, paths)) in groups {
        let rule = PolicyRule {
            from: Some(From {
                principals: callers.iter().map(ToString::to_string).collect(),
                ..From::default()
            }),
            to: Some(To {
                methods: methods.into_iter().collect(),
                paths: templates.into_iter().filter(|template| is_sayable(template)).collect(),
                ports: port.into_iter().collect(),
                ..To::default()
            }),
            ..PolicyRule::default()
        };
        // Without a path that can be said, the rule would be about all paths.
        let to = rule.to.as_ref().expect("it was just made");
        if port.is_none() && to.paths.is_empty() {
            continue;
        }
        let name = unique(&name_of(&callers, to), &mut names);
        all.push(RuleEvidence { rule: name.clone(), evidence, paths });
        rules.push(PolicyRule { name: Some(name), ..rule });
    }
    let tail: Vec<&str> = workload.path().split('/').filter(|part| !part.is_empty()).collect();
    let mut name: String = format!("suggested-{}", tail.join("-"));
    name.retain(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
    name.truncate(58);
    let id = Id::parse(&unique(&name, ids)).expect("it has lawful characters only");
    let policy = IdentityPolicy {
        id: Some(id.clone()),
        selector: PolicySelector {
            workloads: vec![workload.to_string()],
            ..PolicySelector::default()
        },
        ..IdentityPolicy::of(PolicyAction::Allow, rules)
    };
    SuggestedPolicy { id, policy, evidence: all }
}

/// Would the engine take the template?
fn is_sayable(template: &str) -> bool {
    let rule = PolicyRule {
        to: Some(To { paths: vec![template.to_owned()], ..To::default() }),
        ..PolicyRule::default()
    };
    let policy = IdentityPolicy::of(PolicyAction::Allow, vec![rule]);
    policy::check(&policy).is_ok()
}

/// `web-invoices`: who, and the first word of where.
fn name_of(callers: &BTreeSet<SpiffeId>, to: &To) -> String {
    let first = callers.first().map_or("nobody", |id| id.path().rsplit('/').next().unwrap_or("td"));
    let others =
        if callers.len() > 1 { format!("-and-{}", callers.len() - 1) } else { String::new() };
    let word = match (to.ports.first(), to.paths.first()) {
        (Some(port), _) => format!("port-{port}"),
        (None, Some(path)) => {
            let word = path.split('/').find(|part| !part.is_empty() && !part.starts_with('{'));
            word.unwrap_or("root").to_owned()
        }
        (None, None) => "all".into(),
    };
    format!("{first}{others}-{word}")
}

fn unique(name: &str, taken: &mut BTreeSet<String>) -> String {
    let mut unique = name.to_owned();
    let mut number = 1;
    while !taken.insert(unique.clone()) {
        number += 1;
        unique = format!("{name}-{number}");
    }
    unique
}
