//! Rules that another rule makes idle: a wider one of the same action, or a deny rule that refuses all that they allow.
//!
//! Told by comparing two rules part by part. What several rules make idle only together is not told.

use std::collections::{BTreeMap, BTreeSet};

use super::super::callers::ByShape;

use super::super::lines::{Line, lines};
use super::super::policies::{Policies, Via};
use super::super::shape::{Shape, Space, left_over};
use super::Findings;
use crate::model::{PolicyAction, PolicyRule, PolicySelector, To};

pub(super) fn compare(policies: &Policies, findings: &mut Findings) {
    duplicates(policies, findings);
    let lines = lines(policies, &Policies::default()).lines;
    // A rule is idle when all its parts are, for requests and for connections.
    let mut index = ByShape::default();
    for (at, line) in lines.iter().enumerate() {
        index.add(u32::try_from(at).unwrap_or(u32::MAX), &line.callers);
    }
    let broken: BTreeSet<&str> = policies
        .iter()
        .filter(|stated| stated.broken.is_some())
        .map(|stated| stated.id.as_str())
        .collect();
    let order = |line: &Line| line.old.clone().map(|via| (via.policy, via.rule));
    let mut idle: BTreeMap<_, Vec<Option<(usize, bool)>>> = BTreeMap::new();
    for (at, line) in lines.iter().enumerate() {
        let Some(key) = order(line) else { continue };
        let mut near: Vec<usize> = Vec::new();
        for shape in line.callers.any_of.iter().take(1) {
            near.extend(index.near(shape).into_iter().map(|at| at as usize));
        }
        let by = near.into_iter().find(|other| {
            let wider = &lines[*other];
            // What a broken policy refuses is told with the policy.
            let whole = wider.old.as_ref().is_some_and(|via| broken.contains(&*via.policy));
            let same_rule = whole || order(wider) == order(line);
            let counts = wider.action == PolicyAction::Deny || line.action == PolicyAction::Allow;
            // Of two rules that say the same, the second is idle.
            let first = *other < at || !covers(line, wider);
            !same_rule && counts && (wider.action != line.action || first) && covers(wider, line)
        });
        let by = by.map(|other| {
            (other, lines[other].action == PolicyAction::Deny && line.action == PolicyAction::Allow)
        });
        idle.entry(key).or_default().push(by);
    }
    for ((policy, rule), parts) in idle {
        let Some(parts) = parts.into_iter().collect::<Option<Vec<_>>>() else { continue };
        let Some((other, denied)) = parts.first() else { continue };
        let Some(wider) = &lines[*other].old else { continue };
        let Some(line) = lines.iter().find_map(|line| {
            line.old.as_ref().filter(|via| via.policy == policy && via.rule == rule)
        }) else {
            continue;
        };
        match denied {
            true => findings.of_rule("WG1003", line, format!("{wider} refuses all that it allows")),
            false => findings.of_rule("WG1004", line, format!("{wider} is as wide or wider")),
        }
    }
}

/// Rules that say the same word for word.
fn duplicates(policies: &Policies, findings: &mut Findings) {
    let mut known: BTreeMap<String, Via> = BTreeMap::new();
    for stated in policies.iter().filter(|stated| stated.broken.is_none()) {
        for (at, rule) in stated.text.rules.iter().enumerate() {
            let via = stated.rule(at);
            let bare = PolicyRule { name: None, mode: None, ..rule.clone() };
            let key = serde_json::json!([via.action, via.mode, stated.text.selector, bare]);
            match known.get(&key.to_string()) {
                Some(first) => findings.of_rule("WG1004", &via, format!("{first} says the same")),
                None => drop(known.insert(key.to_string(), via)),
            }
        }
    }
}

/// Does the one surely hold wherever the other does?
fn covers(wide: &Line, narrow: &Line) -> bool {
    let Line {
        old: _,
        new: _,
        action: _,
        connection,
        workloads,
        callers,
        selector,
        to,
        is_call,
        paths,
        host,
        binders: _,
        below,
        conditions,
    } = narrow;
    let none_left = |space: Space, shapes: &[Shape], but: &[Shape], minus: &[Shape]| {
        let minus: Vec<&Shape> = minus.iter().chain(but).collect();
        shapes.iter().all(|shape| left_over(space, shape, &minus).is_none())
    };
    let meets = |shapes: &[Shape], but: &[Shape], out: &Shape, space: Space| {
        let but: Vec<&Shape> = but.iter().collect();
        let met = shapes.iter().filter_map(|shape| shape.meet(out));
        met.into_iter().any(|both| left_over(space, &both, &but).is_some())
    };
    let who = none_left(Space::Ids, &callers.any_of, &callers.but, &wide.callers.any_of)
        && !wide
            .callers
            .but
            .iter()
            .any(|out| meets(&callers.any_of, &callers.but, out, Space::Ids))
        && (wide.callers.nobody || !callers.nobody);
    let what = wide.paths.all_of.iter().all(|list| {
        paths.all_of.iter().any(|found| none_left(Space::Paths, found, &paths.but, list))
            || none_left(Space::Paths, &[Shape::all()], &paths.but, list)
    }) && wide.paths.but.iter().all(|out| {
        paths.all_of.iter().any(|found| !meets(found, &paths.but, out, Space::Paths))
            || none_left(Space::Paths, std::slice::from_ref(out), &[], &paths.but)
    });
    wide.connection == *connection
        && who
        && none_left(Space::Ids, workloads, &[], &wide.workloads)
        && selects(&wide.selector, selector)
        && is_wider(&wide.to, to)
        && (!wide.is_call || *is_call)
        && (wide.host.is_none() || wide.host == *host)
        && what
        && wide.below >= *below
        && wide.conditions.iter().all(|condition| conditions.contains(condition))
}

fn selects(wide: &PolicySelector, narrow: &PolicySelector) -> bool {
    let routes = wide.routes.is_empty()
        || (!narrow.routes.is_empty()
            && narrow.routes.iter().all(|route| wide.routes.contains(route)));
    routes && wide.labels.iter().all(|(name, value)| narrow.labels.get(name) == Some(value))
}

/// Hosts, ports, methods and upgrades, by their texts.
fn is_wider(wide: &To, narrow: &To) -> bool {
    let listed = |wide: &[String], narrow: &[String], means: fn(&str, &str) -> bool| {
        wide.is_empty()
            || (!narrow.is_empty()
                && narrow.iter().all(|one| wide.iter().any(|other| means(other, one))))
    };
    let host = |wide: &str, narrow: &str| match wide.strip_prefix('*') {
        Some(suffix) => {
            narrow.trim_start_matches('*').to_ascii_lowercase().ends_with(suffix)
                && narrow.len() > suffix.len()
        }
        None => wide.eq_ignore_ascii_case(narrow),
    };
    let same = |wide: &str, narrow: &str| wide == narrow;
    let excluded = |wide: &[String], narrow: &[String], named: &[String]| {
        wide.iter().all(|out| {
            narrow.contains(out)
                || (!named.is_empty() && !named.iter().any(|one| one.eq_ignore_ascii_case(out)))
        })
    };
    listed(&wide.hosts, &narrow.hosts, host)
        && wide.not_hosts.iter().all(|out| narrow.not_hosts.contains(out))
        && listed(&wide.methods, &narrow.methods, same)
        && excluded(&wide.not_methods, &narrow.not_methods, &narrow.methods)
        && (wide.ports.is_empty()
            || (!narrow.ports.is_empty()
                && narrow.ports.iter().all(|port| wide.ports.contains(port))))
        && wide.not_ports.iter().all(|out| {
            narrow.not_ports.contains(out)
                || (!narrow.ports.is_empty() && !narrow.ports.contains(out))
        })
        && wide.upgrades == narrow.upgrades
}
