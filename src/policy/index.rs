//! Which rules a caller can meet, found without looking at all of them.

use std::collections::HashMap;

use super::action::Facts;
use super::policy_set::Stated;
use super::rule::{Rule, Selector};
use crate::identity::SpiffeId;
use crate::model::{Id, PolicyAction};

type Map<V> = HashMap<Box<str>, V, foldhash::fast::RandomState>;

/// Rules by the callers they name.
#[derive(Debug, Default)]
pub(super) struct ByCaller {
    /// Rules that name this one ID.
    exact: Map<Vec<u32>>,
    /// Rules that name a pattern of this trust domain, or the domain.
    domain: Map<Vec<u32>>,
    /// Rules that name nobody: they are about everybody.
    any: Vec<u32>,
    /// Rules that name somebody; an absent identity must be held against those that refuse.
    named: Vec<u32>,
}

impl ByCaller {
    pub(super) fn add(&mut self, at: u32, rule: &Rule) {
        let from = &rule.from;
        if from.principals.is_empty() && from.trust_domains.is_empty() {
            self.any.push(at);
            return;
        }
        self.named.push(at);
        let mut push = |map: fn(&mut Self) -> &mut Map<Vec<u32>>, key: &str| {
            let list = map(self).entry(key.into()).or_default();
            if list.last() != Some(&at) {
                list.push(at);
            }
        };
        if from.principals.is_empty() {
            for domain in &from.trust_domains {
                push(|index| &mut index.domain, domain.as_str());
            }
            return;
        }
        for pattern in &from.principals {
            match pattern.exact() {
                Some(id) => push(|index| &mut index.exact, id.as_str()),
                None => push(|index| &mut index.domain, pattern.trust_domain().as_str()),
            }
        }
    }

    /// Indexes of rules that may be about this caller, ascending.
    pub(super) fn candidates(&self, caller: Option<&SpiffeId>) -> Vec<u32> {
        let lists = match caller {
            Some(id) => [
                Some(&self.any),
                self.exact.get(id.as_str()),
                self.domain.get(id.trust_domain_name()),
            ],
            None => [Some(&self.any), Some(&self.named), None],
        };
        let mut found: Vec<u32> = lists.into_iter().flatten().flatten().copied().collect();
        found.sort_unstable();
        found.dedup();
        found
    }
}

/// Fewer rules than this are quicker to try than to look up.
const WORTH_AN_INDEX: usize = 16;

/// Rules of one caller and one action, by the routes and the first path segments that they name.
#[derive(Debug, Default)]
pub(super) struct Group {
    /// All rules, ascending.
    all: Box<[u32]>,
    split: Option<Box<Split>>,
}

/// Each rule stands in one of the three, by what tells most.
#[derive(Debug, Default)]
struct Split {
    by_route: HashMap<Id, Vec<u32>, foldhash::fast::RandomState>,
    by_segment: Map<Vec<u32>>,
    any: Vec<u32>,
}

impl Group {
    pub(super) fn new(all: Vec<u32>, rules: &[Rule], policies: &[Stated]) -> Self {
        if all.len() < WORTH_AN_INDEX {
            return Self { all: all.into(), split: None };
        }
        let mut split = Split::default();
        let push = |list: &mut Vec<u32>, at| {
            if list.last() != Some(&at) {
                list.push(at);
            }
        };
        for at in all.iter().copied() {
            let rule = &rules[at as usize];
            let routes = &policies[rule.policy as usize].selector.routes;
            for route in routes {
                push(split.by_route.entry(route.clone()).or_default(), at);
            }
            if !routes.is_empty() {
                continue;
            }
            match rule.to.first_segments() {
                Some(segments) => {
                    for segment in segments {
                        push(split.by_segment.entry(segment.into()).or_default(), at);
                    }
                }
                None => split.any.push(at),
            }
        }
        Self { all: all.into(), split: Some(Box::new(split)) }
    }

    pub(super) fn all(&self) -> &[u32] {
        &self.all
    }

    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// The first rule for which `holds`.
    pub(super) fn first(&self, facts: &Facts<'_>, holds: impl Fn(u32) -> bool) -> Option<u32> {
        let find = |list: &[u32]| list.iter().copied().find(|at| holds(*at));
        // Where the path has several readings, or there is none, no rule can be left out.
        let Some(split) = &self.split else { return find(&self.all) };
        let Some(body) = facts.plain_path().and_then(|path| path.strip_prefix('/')) else {
            return find(&self.all);
        };
        let segment = body.split('/').next().unwrap_or_default();
        let route = facts.route.and_then(|route| split.by_route.get(route.id));
        let lists = [Some(&split.any), split.by_segment.get(segment), route];
        lists.into_iter().flatten().filter_map(|list| find(list)).min()
    }
}

/// Policies by the routes that they select, to tell whether a public route is governed at all.
#[derive(Debug, Default)]
pub(super) struct ByRoute {
    /// A policy that is about everything.
    any: bool,
    by_route: HashMap<Id, Vec<u32>, foldhash::fast::RandomState>,
    /// Policies that name no route, by their first label.
    by_label: Map<Map<Vec<u32>>>,
}

impl ByRoute {
    pub(super) fn add(&mut self, at: u32, selector: &Selector) {
        if !selector.routes.is_empty() {
            for route in &selector.routes {
                self.by_route.entry(route.clone()).or_default().push(at);
            }
        } else if let Some((name, value)) = selector.labels.first_key_value() {
            let values = self.by_label.entry(name.as_str().into()).or_default();
            values.entry(value.as_str().into()).or_default().push(at);
        } else {
            self.any = true;
        }
    }

    /// Does one of the policies select the action's route?
    pub(super) fn selects(&self, facts: &Facts<'_>, policies: &[Stated]) -> bool {
        let Some(route) = facts.route else { return self.any };
        let about = |list: &Vec<u32>| {
            list.iter()
                .any(|at| policies[*at as usize].selector.selects(facts, PolicyAction::Allow))
        };
        self.any
            || self.by_route.get(route.id).is_some_and(about)
            || (!self.by_label.is_empty()
                && route.labels.iter().any(|(name, value)| {
                    let values = self.by_label.get(name.as_str());
                    values.and_then(|values| values.get(value.as_str())).is_some_and(about)
                }))
    }
}
