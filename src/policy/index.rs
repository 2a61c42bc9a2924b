//! Which rules a caller can meet, found without looking at all of them.

use std::collections::HashMap;

use super::action::Facts;
use super::callers::kubernetes;
use super::host::HostPattern;
use super::policy_set::Stated;
use super::rule::{LOTS, Rule};
use super::selector::Selector;
use super::values::Text;
use crate::identity::SpiffeId;
use crate::model::{Id, PolicyAction};

type Map<V> = HashMap<Box<str>, V, foldhash::fast::RandomState>;

/// Rules by the callers they name.
#[derive(Debug, Default)]
pub(super) struct ByCaller {
    /// Rules that name this one ID.
    exact: Map<Vec<u32>>,
    /// Rules that name this Kubernetes namespace, as the beginning of its IDs.
    namespace: Map<Vec<u32>>,
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
        let by_cluster = !(from.service_accounts.is_empty() && from.namespaces.is_empty());
        if from.principals.is_empty() && from.trust_domains.is_empty() && !by_cluster {
            self.any.push(at);
            return;
        }
        self.named.push(at);
        let push = |map: &mut Map<Vec<u32>>, key: &str| {
            let list = map.entry(key.into()).or_default();
            if list.last() != Some(&at) {
                list.push(at);
            }
        };
        // By what tells most.
        if !from.principals.is_empty() {
            for pattern in from.principals.iter().map(|principal| principal.pattern()) {
                match pattern.exact() {
                    Some(id) => push(&mut self.exact, id.as_str()),
                    None => push(&mut self.domain, pattern.trust_domain().as_str()),
                }
            }
            return;
        }
        if !by_cluster {
            for domain in &from.trust_domains {
                push(&mut self.domain, domain.as_str());
            }
            return;
        }
        for domain in &from.clusters {
            for account in &from.service_accounts {
                let (namespace, name) = (&account.namespace, &account.name);
                push(&mut self.exact, &format!("spiffe://{domain}/ns/{namespace}/sa/{name}"));
            }
            if !from.service_accounts.is_empty() {
                continue;
            }
            for namespace in &from.namespaces {
                match namespace {
                    Text::Exactly(name) => {
                        push(&mut self.namespace, &format!("spiffe://{domain}/ns/{name}"));
                    }
                    Text::Prefix(_) | Text::Suffix(_) | Text::Any => {
                        push(&mut self.domain, domain.as_str());
                    }
                }
            }
        }
    }

    /// Indexes of rules that may be about this caller, ascending.
    pub(super) fn candidates(&self, caller: Option<&SpiffeId>) -> Vec<u32> {
        let in_namespace = |id: &SpiffeId| {
            let (_, account) = kubernetes(id)?;
            let beginning = id.as_str().len() - "/sa/".len() - account.len();
            self.namespace.get(&id.as_str()[..beginning])
        };
        let lists = match caller {
            Some(id) => [
                Some(&self.any),
                self.exact.get(id.as_str()),
                in_namespace(id),
                self.domain.get(id.trust_domain_name()),
            ],
            None => [Some(&self.any), Some(&self.named), None, None],
        };
        let mut found: Vec<u32> = lists.into_iter().flatten().flatten().copied().collect();
        found.sort_unstable();
        found.dedup();
        found
    }
}

/// Fewer rules than this are quicker to try than to look up.
const WORTH_AN_INDEX: usize = 16;
/// So many segments of a path are looked up.
const DEPTH: usize = 4;

/// Rules of one caller and one action, by the routes, paths and hosts that they name.
#[derive(Debug, Default)]
pub(super) struct Group {
    /// All rules, ascending.
    all: Box<[u32]>,
    split: Option<Box<Split>>,
}

/// Each rule stands in one of the lists, by what tells most.
#[derive(Debug, Default)]
struct Split {
    by_route: HashMap<Id, Vec<u32>, foldhash::fast::RandomState>,
    /// By the literal segments that their paths begin with.
    by_beginning: Map<Vec<u32>>,
    /// A bit for each count of segments that occurs.
    depths: u8,
    /// By exact hosts, in lower case.
    by_host: Map<Vec<u32>>,
    any: Vec<u32>,
}

impl Split {
    fn add(&mut self, at: u32, rule: &Rule, policies: &[Stated]) {
        let push = |list: &mut Vec<u32>| {
            if list.last() != Some(&at) {
                list.push(at);
            }
        };
        let routes = &policies[rule.policy as usize].selector.routes;
        if !routes.is_empty() {
            for route in routes {
                push(self.by_route.entry(route.clone()).or_default());
            }
            return;
        }
        let paths = rule.to.index_paths();
        let beginnings: Option<Vec<_>> = paths.iter().map(|path| path.beginning(DEPTH)).collect();
        if let Some(beginnings) = beginnings.filter(|beginnings| !beginnings.is_empty()) {
            for (beginning, depth) in beginnings {
                self.depths |= 1 << depth;
                push(self.by_beginning.entry(beginning.into()).or_default());
            }
            return;
        }
        let exact = |host: &HostPattern| match host {
            HostPattern::Exactly(name) => Some(name.clone()),
            HostPattern::Below(_) | HostPattern::Captured(..) => None,
        };
        let hosts: Option<Vec<_>> = rule.to.hosts.iter().map(exact).collect();
        match hosts.filter(|hosts| !hosts.is_empty()) {
            Some(hosts) => {
                for host in hosts {
                    push(self.by_host.entry(host).or_default());
                }
            }
            None => self.any.push(at),
        }
    }
}

impl Group {
    pub(super) fn new(all: Vec<u32>, rules: &[Rule], policies: &[Stated]) -> Self {
        if all.len() < WORTH_AN_INDEX {
            return Self { all: all.into(), split: None };
        }
        let mut split = Split::default();
        for at in all.iter().copied() {
            split.add(at, &rules[at as usize], policies);
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
        let mut found = find(&split.any);
        let mut take = |list: Option<&Vec<u32>>| {
            let first = list.and_then(|list| find(list));
            found = found.into_iter().chain(first).min();
        };
        if let Some(route) = facts.route.filter(|_| !split.by_route.is_empty()) {
            take(split.by_route.get(route.id));
        }
        if split.depths != 0 {
            let body = body.strip_suffix('/').unwrap_or(body);
            let ends = memchr::memchr_iter(b'/', body.as_bytes()).chain([body.len()]);
            for (at, end) in ends.take(DEPTH).enumerate() {
                if split.depths & (2 << at) != 0 {
                    take(split.by_beginning.get(&body[..end]));
                }
            }
        }
        if !split.by_host.is_empty() {
            let mut lower = [0; 256];
            match facts.host().and_then(|host| lower_case(host, &mut lower)) {
                Some(host) => take(split.by_host.get(host)),
                // What is no host name is held against those that refuse.
                None => split.by_host.values().for_each(|list| take(Some(list))),
            }
        }
        found
    }
}

/// The host in lower case; nothing when it is longer than host names are.
fn lower_case<'b>(host: &'b str, buffer: &'b mut [u8; 256]) -> Option<&'b str> {
    if !host.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return Some(host);
    }
    let room = buffer.get_mut(..host.len())?;
    room.copy_from_slice(host.as_bytes());
    room.make_ascii_lowercase();
    std::str::from_utf8(room).ok()
}

/// Policies by the routes that they select, to tell whether a public route is governed at all.
#[derive(Debug)]
pub(super) struct ByRoute {
    /// Of the policies that are about everything: one decides for lots below, one is watched for the others from here on.
    any_decides_below: u8,
    any_watched_from: u8,
    by_route: HashMap<Id, Vec<u32>, foldhash::fast::RandomState>,
    /// Policies that name no route, by their first label.
    by_label: Map<Map<Vec<u32>>>,
}

impl Default for ByRoute {
    fn default() -> Self {
        Self {
            any_decides_below: 0,
            any_watched_from: LOTS,
            by_route: HashMap::default(),
            by_label: Map::default(),
        }
    }
}

impl ByRoute {
    pub(super) fn add(&mut self, at: u32, stated: &Stated) {
        let selector: &Selector = &stated.selector;
        if !selector.routes.is_empty() {
            for route in &selector.routes {
                self.by_route.entry(route.clone()).or_default().push(at);
            }
        } else if let Some((name, value)) = selector.labels.first_key_value() {
            let values = self.by_label.entry(name.as_str().into()).or_default();
            values.entry(value.as_str().into()).or_default().push(at);
        } else {
            self.any_decides_below = self.any_decides_below.max(stated.decides_below);
            self.any_watched_from = self.any_watched_from.min(stated.watched_from);
        }
    }

    /// Does a policy that decides for this lot select the action's route?
    pub(super) fn governs(&self, facts: &Facts<'_>, policies: &[Stated]) -> bool {
        facts.lot < self.any_decides_below
            || self.finds(facts, policies, |stated| facts.lot < stated.decides_below)
    }

    /// Does a policy that is watched for this lot select the action's route?
    pub(super) fn watches(&self, facts: &Facts<'_>, policies: &[Stated]) -> bool {
        facts.lot >= self.any_watched_from
            || self.finds(facts, policies, |stated| facts.lot >= stated.watched_from)
    }

    fn finds(
        &self,
        facts: &Facts<'_>,
        policies: &[Stated],
        is_meant: impl Fn(&Stated) -> bool,
    ) -> bool {
        let Some(route) = facts.route else { return false };
        let about = |list: &Vec<u32>| {
            let mut stated = list.iter().map(|at| &policies[*at as usize]);
            stated.any(|stated| {
                is_meant(stated) && stated.selector.selects(facts, PolicyAction::Allow)
            })
        };
        self.by_route.get(route.id).is_some_and(about)
            || (!self.by_label.is_empty()
                && route.labels.iter().any(|(name, value)| {
                    let values = self.by_label.get(name.as_str());
                    values.and_then(|values| values.get(value.as_str())).is_some_and(about)
                }))
    }
}
