//! Conditions in words: what has to hold besides, as an operator would say it.

use crate::model::{From, Mode, PolicyRule, PolicySelector, TimeWindow, To, ValueMatch, When};

/// What a rule asks besides who calls, one sentence a part.
pub(super) fn conditions(selector: &PolicySelector, rule: &PolicyRule, mode: Mode) -> Vec<String> {
    let mut said = Vec::new();
    match mode {
        Mode::Enforce | Mode::Observe => {}
        Mode::Canary(percent) => said.push(format!("canary: for {percent} % of connections")),
    }
    let PolicySelector { workloads: _, labels, routes } = selector;
    let routes: Vec<String> = routes.iter().map(ToString::to_string).collect();
    list(&mut said, "route", &routes);
    for (name, value) in labels {
        said.push(format!("route label {name}={value}"));
    }
    if let Some(to) = &rule.to {
        of_target(&mut said, to);
    }
    if let Some(from) = &rule.from {
        of_circumstances(&mut said, from);
    }
    if let Some(when) = &rule.when {
        of_when(&mut said, when);
    }
    said
}

fn list(said: &mut Vec<String>, what: &str, entries: &[String]) {
    if !entries.is_empty() {
        said.push(format!("{what} {}", entries.join(" or ")));
    }
}

fn not_list(said: &mut Vec<String>, what: &str, entries: &[String]) {
    if !entries.is_empty() {
        said.push(format!("{what} not {}", entries.join(" nor ")));
    }
}

fn of_target(said: &mut Vec<String>, to: &To) {
    let To {
        hosts,
        not_hosts,
        ports,
        not_ports,
        methods,
        not_methods,
        paths,
        not_paths,
        ignore_case,
        grpc,
        not_grpc,
        upgrades,
    } = to;
    let texts = |ports: &[u16]| ports.iter().map(ToString::to_string).collect::<Vec<_>>();
    list(said, "method", methods);
    not_list(said, "method", not_methods);
    let path = if *ignore_case { "path (in any case)" } else { "path" };
    list(said, path, paths);
    not_list(said, path, not_paths);
    list(said, "gRPC method", grpc);
    not_list(said, "gRPC method", not_grpc);
    list(said, "host", hosts);
    not_list(said, "host", not_hosts);
    list(said, "port", &texts(ports));
    not_list(said, "port", &texts(not_ports));
    list(said, "upgrade to", upgrades);
}

/// The parts of `from` that are not about an identity.
fn of_circumstances(said: &mut Vec<String>, from: &From) {
    list(said, "source", &from.ip_blocks);
    not_list(said, "source", &from.not_ip_blocks);
    list(said, "remote address", &from.remote_ip_blocks);
    not_list(said, "remote address", &from.not_remote_ip_blocks);
    values(said, "claim", &from.claims);
}

fn of_when(said: &mut Vec<String>, when: &When) {
    let When { headers, query, times, not_times, cel } = when;
    values(said, "header", headers);
    values(said, "query parameter", query);
    if !times.is_empty() {
        said.push(times.iter().map(window).collect::<Vec<_>>().join(" or "));
    }
    said.extend(not_times.iter().map(|span| format!("not {}", window(span))));
    if let Some(text) = cel {
        said.push(format!("when {text}"));
    }
}

fn values(said: &mut Vec<String>, what: &str, matches: &[ValueMatch]) {
    for ValueMatch { name, values, not_values, present } in matches {
        match present {
            Some(true) => said.push(format!("{what} {name} is there")),
            Some(false) => said.push(format!("{what} {name} is absent")),
            None => {}
        }
        list(said, &format!("{what} {name} is"), values);
        not_list(said, &format!("{what} {name} is"), not_values);
    }
}

fn window(span: &TimeWindow) -> String {
    let TimeWindow { days, from, until, zone, not_before, not_after } = span;
    let mut parts = Vec::new();
    if !days.is_empty() {
        parts.push(format!("on {}", days.join(", ")));
    }
    match (from, until) {
        (Some(from), Some(until)) => parts.push(format!("{from} to {until}")),
        (Some(from), None) => parts.push(format!("from {from}")),
        (None, Some(until)) => parts.push(format!("before {until}")),
        (None, None) => {}
    }
    let of_day = !parts.is_empty();
    if let Some(zone) = zone.as_ref().filter(|_| of_day) {
        parts.push(zone.clone());
    }
    parts.extend(not_before.iter().map(|moment| format!("since {moment}")));
    parts.extend(not_after.iter().map(|moment| format!("until {moment}")));
    parts.join(" ")
}
