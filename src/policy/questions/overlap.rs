//! Can an allow rule and a deny rule hold for one action? Only where that surely cannot be, answers leave the deny rule out.

use super::policies::Stated;
use super::shape::{End, Segment, Shape};
use crate::model::{PolicyRule, PolicySelector, To};

impl Shape {
    /// Of the text of a path template that was parsed before. `wide`: a slash at the end more or less is the same.
    pub(super) fn of_template(text: &str, wide: bool, ignore_case: bool) -> Self {
        let body = text.strip_prefix('/').unwrap_or(text);
        let (body, open) = match body.strip_suffix("**") {
            Some(closed) => (closed.strip_suffix('/').unwrap_or(closed), true),
            None => (body, false),
        };
        let (body, slash) = match body.strip_suffix('/') {
            Some(closed) => (closed, true),
            None => (body, body.is_empty()),
        };
        let parts = body.split('/').filter(|_| !body.is_empty());
        let segments = parts.map(|part| {
            if part == "*" || part.starts_with('{') {
                return Segment::Any;
            }
            let text = percent_encoding::percent_decode_str(part).decode_utf8_lossy();
            match ignore_case {
                true => Segment::Folded(text.to_ascii_lowercase().into()),
                false => Segment::exactly(&text),
            }
        });
        let end = match (open, wide, slash) {
            (true, ..) => End::Rest,
            (false, true, _) => End::Either,
            (false, false, true) => End::Slash,
            (false, false, false) => End::Closed,
        };
        Self { root: None, segments: segments.collect(), end }
    }
}

/// Can both hold for one action, whoever calls?
pub(super) fn may_overlap(allow: &PolicyRule, deny: &PolicyRule) -> bool {
    let (Some(allow), Some(deny)) = (&allow.to, &deny.to) else { return true };
    let disjoint = |one: bool, other: bool, meet: bool| !one && !other && !meet;
    let methods = allow
        .methods
        .iter()
        .any(|one| deny.methods.iter().any(|other| one.eq_ignore_ascii_case(other)));
    let ports = allow.ports.iter().any(|port| deny.ports.contains(port));
    let hosts = allow.hosts.iter().any(|one| deny.hosts.iter().any(|other| hosts_meet(one, other)));
    let paths = paths_meet(allow, deny);
    !(disjoint(allow.methods.is_empty(), deny.methods.is_empty(), methods)
        || disjoint(allow.ports.is_empty(), deny.ports.is_empty(), ports)
        || disjoint(allow.hosts.is_empty(), deny.hosts.is_empty(), hosts)
        || disjoint(allow.paths.is_empty(), deny.paths.is_empty(), paths))
}

fn paths_meet(allow: &To, deny: &To) -> bool {
    let shapes = |to: &To, wide: bool, fold: bool| -> Vec<Shape> {
        to.paths.iter().map(|text| Shape::of_template(text, wide, fold)).collect()
    };
    // Compared without case as soon as one of them is: more may meet, and nothing is left out wrongly.
    let fold = allow.ignore_case || deny.ignore_case;
    let denied = shapes(deny, true, fold);
    shapes(allow, true, fold).iter().any(|one| denied.iter().any(|other| one.meet(other).is_some()))
}

pub(super) fn hosts_meet(one: &str, other: &str) -> bool {
    let plain = |text: &str| {
        // A name in braces is one label, and a star one or more: taking it for a star leaves nothing out.
        let named = text.strip_prefix('{').and_then(|rest| rest.split_once('}'));
        let text = named.map_or(text.to_owned(), |(_, rest)| format!("*{rest}"));
        text.trim_end_matches('.').to_ascii_lowercase()
    };
    let (one, other) = (plain(one), plain(other));
    match (one.strip_prefix('*'), other.strip_prefix('*')) {
        (None, None) => one == other,
        (Some(suffix), None) => other.ends_with(suffix),
        (None, Some(suffix)) => one.ends_with(suffix),
        (Some(one), Some(other)) => one.ends_with(other) || other.ends_with(one),
    }
}

/// Can both selectors be about one request, or one connection?
pub(super) fn selectors_meet(one: &PolicySelector, other: &PolicySelector) -> bool {
    let routes = one.routes.is_empty()
        || other.routes.is_empty()
        || one.routes.iter().any(|route| other.routes.contains(route));
    let labels = one
        .labels
        .iter()
        .all(|(name, value)| other.labels.get(name).is_none_or(|found| found == value));
    routes && labels
}

/// Can both policies be about one workload?
pub(super) fn share_a_workload(one: &Stated, other: &Stated) -> bool {
    let shapes = |stated: &Stated| -> Vec<Shape> {
        stated.text.selector.workloads.iter().map(|text| Shape::of_text(text)).collect()
    };
    let (one, other) = (shapes(one), shapes(other));
    one.is_empty()
        || other.is_empty()
        || one.iter().any(|one| other.iter().any(|other| one.meet(other).is_some()))
}
