//! What is odd about one rule alone.

use super::super::callers::{Callers, asks_identity};
use super::super::captures::{compared, names_of};
use super::super::overlap::hosts_meet;
use super::super::policies::Via;
use super::super::shape::{Shape, Space, left_over};
use super::Findings;
use crate::model::{Mode, PolicyAction, PolicyRule, TimeWindow, To, ValueMatch};

pub(super) fn rule(via: &Via, rule: &PolicyRule, now: i64, findings: &mut Findings) {
    let (from, to) = (rule.from.clone().unwrap_or_default(), rule.to.clone().unwrap_or_default());
    match via.mode {
        Mode::Enforce => {}
        Mode::Observe => findings.of_rule("WG1006", via, "only observes: it decides nothing"),
        Mode::Canary(percent) => {
            let sentence = format!("decides for {percent} % of connections");
            findings.of_rule("WG1007", via, sentence);
        }
    }
    for sentence in contradictions(via, rule) {
        findings.of_rule("WG1002", via, format!("never holds: {sentence}"));
    }
    times(via, rule, now, findings);
    let names = compared(rule);
    for text in from.principals.iter().chain(&to.hosts) {
        for name in names_of(text).filter(|name| !names.iter().any(|one| one == name)) {
            let sentence = format!("{{{name}}} in {text} is compared with nothing");
            findings.of_rule("WG1011", via, sentence);
        }
    }
    if via.action == PolicyAction::Allow && via.mode != Mode::Observe {
        over_wide(via, rule, findings);
    }
}

/// Everybody, or a whole trust domain, may do everything.
fn over_wide(via: &Via, rule: &PolicyRule, findings: &mut Findings) {
    let to = rule.to.clone().unwrap_or_default();
    let all_paths = to.paths.is_empty() || to.paths.iter().any(|path| path == "/**");
    let narrowed = To { paths: Vec::new(), upgrades: Vec::new(), ignore_case: false, ..to };
    if !all_paths || narrowed != To::default() || rule.when.is_some() {
        return;
    }
    let from = rule.from.clone().unwrap_or_default();
    let circumstances =
        [&from.ip_blocks, &from.not_ip_blocks, &from.remote_ip_blocks, &from.not_remote_ip_blocks];
    if circumstances.iter().any(|list| !list.is_empty()) || !from.claims.is_empty() {
        return;
    }
    if !asks_identity(&from) {
        let sentence = "allows everything to everybody, also without an identity";
        return findings.of_rule("WG1005", via, sentence);
    }
    let callers = Callers::of(rule.from.as_ref(), via.action, "");
    let wide = callers.any_of.iter().find(|shape| shape.segments.is_empty());
    if let Some(shape) = wide {
        findings.of_rule("WG1005", via, format!("allows everything to {shape}"));
    }
}

fn contradictions(via: &Via, rule: &PolicyRule) -> Vec<String> {
    let (from, to) = (rule.from.clone().unwrap_or_default(), rule.to.clone().unwrap_or_default());
    let allow = via.action == PolicyAction::Allow;
    let mut found = Vec::new();
    let mut say = |wrong: bool, sentence: &str| {
        if wrong {
            found.push(sentence.to_owned());
        }
    };
    // A namespace means one trust domain or another; which does not matter here.
    let callers = Callers::of(rule.from.as_ref(), via.action, "own");
    say(
        asks_identity(&from) && callers.left_of(&[]).is_none() && !(callers.nobody && allow),
        "from: nobody is left of those whom it names",
    );
    let all_in = |list: &[String], not: &[String]| {
        !list.is_empty() && list.iter().all(|one| not.contains(one))
    };
    let folded =
        |list: &[String]| list.iter().map(|one| one.to_ascii_uppercase()).collect::<Vec<_>>();
    say(
        all_in(&folded(&to.methods), &folded(&to.not_methods)),
        "to: every method of methods is in not_methods",
    );
    say(
        !to.ports.is_empty() && to.ports.iter().all(|port| to.not_ports.contains(port)),
        "to: every port of ports is in not_ports",
    );
    let excluded = |host: &String| {
        to.not_hosts.iter().any(|not| match not.strip_prefix('*') {
            Some(suffix) => host.trim_start_matches('*').ends_with(suffix) && hosts_meet(host, not),
            None => host.eq_ignore_ascii_case(not),
        })
    };
    say(
        !to.hosts.is_empty() && to.hosts.iter().all(excluded),
        "to: every host of hosts is in not_hosts",
    );
    say(
        all_in(&from.ip_blocks, &from.not_ip_blocks),
        "from: every network of ip_blocks is in not_ip_blocks",
    );
    say(
        all_in(&from.remote_ip_blocks, &from.not_remote_ip_blocks),
        "from: every network of remote_ip_blocks is in not_remote_ip_blocks",
    );
    let named = !compared(rule).is_empty();
    let shapes = |list: &[String], wide: bool| -> Vec<Shape> {
        list.iter().map(|text| Shape::of_template(text, wide, to.ignore_case)).collect()
    };
    let paths = shapes(&to.paths, !allow);
    let not_paths = shapes(&to.not_paths, allow);
    let not_paths: Vec<&Shape> = not_paths.iter().collect();
    say(
        !paths.is_empty()
            && !named
            && paths.iter().all(|path| left_over(Space::Paths, path, &not_paths).is_none()),
        "to: every path of paths is in not_paths",
    );
    let calls: Vec<String> = to.grpc.iter().map(|call| format!("/{call}")).collect();
    let calls = shapes(&calls, !allow);
    say(
        !paths.is_empty()
            && !calls.is_empty()
            && !paths.iter().any(|path| calls.iter().any(|call| path.meet(call).is_some())),
        "to: no gRPC method of grpc has a path of paths",
    );
    say(
        allow
            && !calls.is_empty()
            && !to.methods.is_empty()
            && !to.methods.iter().any(|one| one == "POST"),
        "to: a gRPC call is a POST, which methods does not name",
    );
    let when = rule.when.clone().unwrap_or_default();
    let values = |entry: &ValueMatch| allow && all_in(&entry.values, &entry.not_values);
    for (what, list) in
        [("header", &when.headers), ("query parameter", &when.query), ("claim", &from.claims)]
    {
        for entry in list.iter().filter(|entry| values(entry)) {
            say(true, &format!("every value of {what} {} is in not_values", entry.name));
        }
    }
    say(
        !when.times.is_empty() && when.times.iter().all(|span| when.not_times.contains(span)),
        "when: every span of times is in not_times",
    );
    found
}

/// Times that are over for ever, or have not begun.
fn times(via: &Via, rule: &PolicyRule, now: i64, findings: &mut Findings) {
    let Some(when) = &rule.when else { return };
    let moment = |text: &Option<String>| {
        let format = &time::format_description::well_known::Rfc3339;
        let moment = time::OffsetDateTime::parse(text.as_deref()?, format).ok()?;
        Some(moment.unix_timestamp())
    };
    let over = |span: &TimeWindow| moment(&span.not_after).is_some_and(|end| end <= now);
    let later = |span: &TimeWindow| moment(&span.not_before).is_some_and(|start| start > now);
    if !when.times.is_empty() && when.times.iter().all(over) {
        let ends = when.times.iter().filter_map(|span| span.not_after.clone()).collect::<Vec<_>>();
        findings.of_rule("WG1010", via, format!("its time is over: {}", ends.join(", ")));
    } else if !when.times.is_empty() && when.times.iter().all(later) {
        let starts =
            when.times.iter().filter_map(|span| span.not_before.clone()).collect::<Vec<_>>();
        findings.of_rule("WG1010", via, format!("its time has not come: {}", starts.join(", ")));
    }
}
