//! `Callers`: whom a rule means, as a set: what it names, without what it excludes.

use std::collections::HashMap;

use super::shape::{End, Name, Segment, Shape, Space, left_over};
use crate::identity::SpiffeId;
use crate::model::{From, PolicyAction};

/// A set of callers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Callers {
    /// Whoever is meant by one of these,
    pub(super) any_of: Vec<Shape>,
    /// and by none of these.
    pub(super) but: Vec<Shape>,
    /// Whoever has no identity.
    pub(super) nobody: bool,
}

impl Callers {
    pub(super) fn everybody() -> Self {
        Self { any_of: vec![Shape::all()], but: Vec::new(), nobody: true }
    }

    /// Whom a rule's `from` means, at a workload of the trust domain `own`. Claims and networks are not about identities.
    pub(super) fn of(from: Option<&From>, action: PolicyAction, own: &str) -> Self {
        let Some(from) = from else { return Self::everybody() };
        let principals = from.principals.iter().map(|text| Shape::of_text(text)).collect();
        Self::within(principals, from, action, own)
    }

    /// The same, with these in the place of `from.principals`; none: everybody.
    pub(super) fn within(
        principals: Vec<Shape>,
        from: &From,
        action: PolicyAction,
        own: &str,
    ) -> Self {
        let mut any_of = vec![Shape::all()];
        narrow(&mut any_of, principals);
        narrow(&mut any_of, from.trust_domains.iter().map(|name| Shape::of_domain(name)));
        let domains = match &*from.trust_domains {
            [] => vec![own],
            named => named.iter().map(String::as_str).collect(),
        };
        let kubernetes = |entries: &[String], shape: fn(&str, &str) -> Shape| -> Vec<Shape> {
            let pairs = entries.iter().flat_map(|entry| domains.iter().map(move |td| (td, entry)));
            pairs.map(|(domain, entry)| shape(domain, entry)).collect()
        };
        narrow(&mut any_of, kubernetes(&from.namespaces, namespace));
        narrow(&mut any_of, kubernetes(&from.service_accounts, service_account));
        let mut but: Vec<Shape> =
            from.not_principals.iter().map(|text| Shape::of_text(text)).collect();
        but.extend(from.not_trust_domains.iter().map(|name| Shape::of_domain(name)));
        but.extend(kubernetes(&from.not_namespaces, namespace));
        but.extend(kubernetes(&from.not_service_accounts, service_account));
        // An absent identity: an allow rule that asks for one does not hold, a deny rule does.
        let nobody = action == PolicyAction::Deny || !asks_identity(from);
        Self { any_of, but, nobody }
    }

    pub(super) fn holds(&self, caller: Option<&SpiffeId>) -> bool {
        let Some(id) = caller else { return self.nobody };
        let name = Name::of_id(id);
        self.any_of.iter().any(|shape| shape.holds(&name))
            && !self.but.iter().any(|shape| shape.holds(&name))
    }

    /// Somebody whom this means and the others do not.
    pub(super) fn left_of(&self, minus: &[&Shape]) -> Option<Name> {
        let all: Vec<&Shape> = self.but.iter().chain(minus.iter().copied()).collect();
        self.any_of.iter().find_map(|shape| left_over(Space::Ids, shape, &all))
    }

    /// Does it mean somebody with an identity whom the other means too?
    pub(super) fn meets(&self, other: &Self) -> bool {
        let but: Vec<&Shape> = self.but.iter().chain(&other.but).collect();
        self.any_of.iter().any(|one| {
            let mut both = other.any_of.iter().filter_map(|shape| one.meet(shape));
            both.any(|shape| but.is_empty() || left_over(Space::Ids, &shape, &but).is_some())
        })
    }

    /// The texts for people and programs, whoever has no identity among them.
    pub(super) fn texts(&self) -> Vec<String> {
        if self.any_of == [Shape::all()] && self.nobody && self.but.is_empty() {
            return vec![ANYBODY.to_owned()];
        }
        let mut texts: Vec<String> = self.any_of.iter().map(ToString::to_string).collect();
        if self.nobody {
            texts.push(NOBODY.to_owned());
        }
        texts
    }
}

/// Everybody, with an identity or without.
pub(super) const ANYBODY: &str = "anybody";
/// Whoever presents no identity.
pub(super) const NOBODY: &str = "anybody without an identity";

/// Does any part of it ask for an identity?
pub(super) fn asks_identity(from: &From) -> bool {
    [
        &from.principals,
        &from.not_principals,
        &from.trust_domains,
        &from.not_trust_domains,
        &from.namespaces,
        &from.not_namespaces,
        &from.service_accounts,
        &from.not_service_accounts,
    ]
    .into_iter()
    .any(|list| !list.is_empty())
}

/// What both mean; a list that is empty asks nothing.
fn narrow(any_of: &mut Vec<Shape>, list: impl IntoIterator<Item = Shape>) {
    let list: Vec<Shape> = list.into_iter().collect();
    if list.is_empty() {
        return;
    }
    if *any_of == [Shape::all()] {
        *any_of = list;
        return;
    }
    *any_of = any_of
        .iter()
        .flat_map(|one| list.iter().filter_map(move |other| one.meet(other)))
        .collect();
}

fn workload(domain: &str, namespace: Segment, account: Segment) -> Shape {
    let segments = vec![Segment::exactly("ns"), namespace, Segment::exactly("sa"), account];
    Shape { root: Some(domain.into()), segments, end: End::Closed }
}

fn namespace(domain: &str, entry: &str) -> Shape {
    workload(domain, Segment::entry(entry), Segment::Any)
}

fn service_account(domain: &str, entry: &str) -> Shape {
    let (namespace, account) = entry.split_once('/').unwrap_or((entry, ""));
    workload(domain, Segment::entry(namespace), Segment::entry(account))
}

/// Which of many sets may have something in common with a shape, found without comparing all.
#[derive(Debug, Default)]
pub(super) struct ByShape {
    /// Sets that mean a single ID, by it.
    exact: HashMap<Name, Vec<u32>>,
    /// Sets that mean a single ID, by its trust domain and first segment.
    exact_by_first: HashMap<(Box<str>, Box<str>), Vec<u32>>,
    /// Other sets, by trust domain and first segment.
    by_first: HashMap<(Box<str>, Box<str>), Vec<u32>>,
    /// Those whose first segment may be any.
    by_root: HashMap<Box<str>, Vec<u32>>,
    all_of_root: HashMap<Box<str>, Vec<u32>>,
    anywhere: Vec<u32>,
    all: Vec<u32>,
}

fn first_of(shape: &Shape) -> Option<Box<str>> {
    match shape.segments.first()? {
        Segment::Exactly(text) => Some(text.clone()),
        Segment::Any | Segment::Folded(_) | Segment::Like { .. } => None,
    }
}

impl ByShape {
    pub(super) fn add(&mut self, at: u32, callers: &Callers) {
        for shape in &callers.any_of {
            self.all.push(at);
            let Some(root) = shape.root.clone() else {
                self.anywhere.push(at);
                continue;
            };
            self.all_of_root.entry(root.clone()).or_default().push(at);
            match (shape.exact(), first_of(shape)) {
                (Some(name), first) => {
                    self.exact.entry(name).or_default().push(at);
                    let first = first.unwrap_or_default();
                    self.exact_by_first.entry((root, first)).or_default().push(at);
                }
                (None, Some(first)) => self.by_first.entry((root, first)).or_default().push(at),
                (None, None) => self.by_root.entry(root).or_default().push(at),
            }
        }
    }

    /// Sets that may have something in common with it, ascending.
    pub(super) fn near(&self, shape: &Shape) -> Vec<u32> {
        let mut found = self.anywhere.clone();
        match (&shape.root, first_of(shape)) {
            (None, _) => found.clone_from(&self.all),
            (Some(root), None) if !shape.segments.is_empty() || shape.end != End::Closed => {
                found.extend(self.all_of_root.get(root).into_iter().flatten());
            }
            (Some(root), first) => {
                let key = (root.clone(), first.unwrap_or_default());
                match shape.exact() {
                    Some(name) => found.extend(self.exact.get(&name).into_iter().flatten()),
                    None => found.extend(self.exact_by_first.get(&key).into_iter().flatten()),
                }
                found.extend(self.by_first.get(&key).into_iter().flatten());
                found.extend(self.by_root.get(root).into_iter().flatten());
            }
        }
        found.sort_unstable();
        found.dedup();
        found
    }
}
