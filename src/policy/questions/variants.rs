//! A rule whose names in braces are compared, as rules that compare none: for each of its principals, whom it then means.

use std::collections::BTreeSet;

use super::super::Policy;
use super::callers::Callers;
use super::captures::{compared, is_segment, names_of};
use super::engine::{alone, segments};
use super::shape::{Name, Segment, Shape, Space, left_over};
use super::target::{Known, Target};
use crate::identity::SpiffeId;
use crate::model::{From, PolicyAction, PolicyRule, To};

/// A rule, or the part of it that one of its principals has.
pub(super) struct Variant {
    /// Without what `callers` and `besides` already say.
    pub(super) rule: PolicyRule,
    /// What of it is known.
    pub(super) known: Known,
    pub(super) callers: Callers,
    /// A condition that the rule's parts alone do not show.
    pub(super) besides: Option<String>,
}

/// So many combinations of texts are looked at.
const MOST: usize = 4096;

/// The rule for a target, at a workload of the trust domain `own`.
pub(super) fn variants(
    rule: &PolicyRule,
    action: PolicyAction,
    target: &Target,
    own: &str,
) -> Vec<Variant> {
    let known = target.known();
    let names = compared(rule);
    let callers = || Callers::of(rule.from.as_ref(), action, own);
    if names.is_empty() {
        return vec![Variant { rule: rule.clone(), known, callers: callers(), besides: None }];
    }
    let (from, to) = (rule.from.clone().unwrap_or_default(), rule.to.clone().unwrap_or_default());
    let bears = |list: &[String]| list.iter().any(|text| names_of(text).next().is_some());
    let asks_host = bears(&to.hosts) || bears(&to.not_hosts);
    let asks_path = bears(&to.paths) || bears(&to.not_paths);
    let found = match (asks_host && !known.host) || (asks_path && !known.path) {
        true => None,
        false => {
            let named = keep(&to, asks_host, asks_path);
            by_principal(&from, &named, &names, action, target, own)
        }
    };
    let Some(found) = found else {
        let same = names.iter().map(|name| format!("{{{name}}}")).collect::<Vec<_>>().join(", ");
        return vec![Variant {
            rule: rule.clone(),
            known: Known { host: false, path: false, ..known },
            callers: callers(),
            besides: Some(format!("{same} is the same text wherever it stands")),
        }];
    };
    // What the callers say already is no part of the rule any more.
    let bare = keep(&to, !asks_host, !asks_path);
    let has_paths = [&bare.paths, &bare.not_paths, &bare.grpc, &bare.not_grpc];
    let ignore_case = to.ignore_case && has_paths.iter().any(|list| !list.is_empty());
    let bare = To { ignore_case, ..bare };
    let variant = |callers| Variant {
        rule: PolicyRule { to: Some(bare.clone()), ..rule.clone() },
        known,
        callers,
        besides: None,
    };
    found.into_iter().map(variant).collect()
}

/// It without its hosts or its paths.
fn keep(to: &To, hosts: bool, paths: bool) -> To {
    let only = |list: &[String], kept: bool| if kept { list.to_vec() } else { Vec::new() };
    To {
        hosts: only(&to.hosts, hosts),
        not_hosts: only(&to.not_hosts, hosts),
        paths: only(&to.paths, paths),
        not_paths: only(&to.not_paths, paths),
        ..to.clone()
    }
}

/// What a name in braces can stand for.
#[derive(Clone)]
enum Text {
    /// Nothing that stands elsewhere.
    Other,
    /// This, in another case.
    Folded(String),
    Exactly(String),
}

/// For each principal, the callers for whom everything that bears names holds. The engine decides about one caller of each kind.
fn by_principal(
    from: &From,
    to: &To,
    names: &[String],
    action: PolicyAction,
    target: &Target,
    own: &str,
) -> Option<Vec<Callers>> {
    let mut texts: BTreeSet<String> = BTreeSet::new();
    texts.extend(target.path.iter().flat_map(|path| segments(path)));
    let host = target.host.as_deref().unwrap_or_default();
    texts.extend(host.split(['.', ':']).next().map(str::to_owned));
    let mut kinds = vec![Text::Other];
    for text in texts.iter().filter(|text| is_segment(text)) {
        let folded: String = text.chars().map(swap_case).collect();
        if !texts.contains(&folded) {
            kinds.push(Text::Folded(text.clone()));
        }
        kinds.push(Text::Exactly(text.clone()));
    }
    let mut found = Vec::new();
    let principals = match &*from.principals {
        [] => vec![None],
        list => list.iter().map(Some).collect(),
    };
    for principal in principals {
        let engine = engine(principal, to, action);
        let fields = target.fields();
        let holds = |caller: Option<&SpiffeId>| {
            engine.held(caller, &target.action(&fields)).first() == Some(&true)
        };
        let Some(principal) = principal else {
            // The host binds the names: whoever calls, it is the same.
            if holds(None) {
                found.push(Callers::within(Vec::new(), from, action, own));
            }
            continue;
        };
        let bound: Vec<&str> =
            names_of(principal).filter(|name| names.iter().any(|one| one == name)).collect();
        if kinds.len().checked_pow(u32::try_from(bound.len()).ok()?)? > MOST {
            return None;
        }
        let (mut any_of, mut but) = (Vec::new(), Vec::new());
        for chosen in combinations(&kinds, bound.len()) {
            let (shape, caller) = specialised(principal, &bound, &chosen)?;
            let list = if holds(caller.id().as_ref()) { &mut any_of } else { &mut but };
            list.push(shape);
        }
        // Only what a wider one of those that hold would mean as well has to be excluded.
        but.retain(|out| any_of.iter().any(|shape: &Shape| shape.covers(out)));
        any_of.retain(|shape| {
            left_over(Space::Ids, shape, &but.iter().collect::<Vec<_>>()).is_some()
        });
        let wide = any_of.clone();
        any_of.retain(|shape| !wide.iter().any(|other| other != shape && other.covers(shape)));
        let mut callers = Callers::within(any_of.clone(), from, action, own);
        callers.but.extend(but);
        // To whoever has no identity, only the host can bind names.
        callers.nobody &= holds(None);
        if !any_of.is_empty() {
            found.push(callers);
        } else if action == PolicyAction::Deny && holds(None) {
            found.push(Callers { nobody: true, ..Callers::default() });
        }
    }
    Some(found)
}

fn swap_case(char: char) -> char {
    if char.is_ascii_lowercase() { char.to_ascii_uppercase() } else { char.to_ascii_lowercase() }
}

fn combinations(kinds: &[Text], count: usize) -> Vec<Vec<Text>> {
    let mut all = vec![Vec::new()];
    for _ in 0..count {
        let longer = |chosen: &Vec<Text>| {
            let chosen = chosen.clone();
            kinds.iter().map(move |kind| [chosen.clone(), vec![kind.clone()]].concat())
        };
        all = all.iter().flat_map(longer).collect();
    }
    all
}

/// The principal with texts in the place of its names, and one caller that it means.
fn specialised(principal: &str, bound: &[&str], chosen: &[Text]) -> Option<(Shape, Name)> {
    let mut shape = Shape::of_text(principal);
    let parts: Vec<&str> = principal.split('/').skip(3).collect();
    let mut name = left_over(Space::Ids, &shape, &[])?;
    for (wanted, text) in bound.iter().zip(chosen) {
        let at = parts.iter().position(|part| *part == format!("{{{wanted}}}"))?;
        (shape.segments[at], name.segments[at]) = match text {
            Text::Other => (Segment::Any, "no-text-that-stands-elsewhere".into()),
            Text::Exactly(text) => (Segment::exactly(text), text.clone()),
            Text::Folded(text) => {
                let folded = text.to_ascii_lowercase();
                (Segment::Folded(folded.into()), text.chars().map(swap_case).collect())
            }
        };
    }
    Some((shape, name))
}

fn engine(principal: Option<&String>, to: &To, action: PolicyAction) -> Policy {
    let principals = principal.into_iter().cloned().collect();
    let To { hosts, not_hosts, paths, not_paths, ignore_case, upgrades, .. } = to.clone();
    let rule = PolicyRule {
        from: Some(From { principals, ..From::default() }),
        to: Some(To { hosts, not_hosts, paths, not_paths, ignore_case, upgrades, ..To::default() }),
        ..PolicyRule::default()
    };
    alone(rule, action)
}
