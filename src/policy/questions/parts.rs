//! What of a rule is settled by what is known, and what stays open.

use super::target::Known;
use crate::model::{From, PolicyRule, PolicySelector, To, When};

/// A rule taken apart. Both parts together ask what the rule asks.
#[derive(Clone, Debug)]
pub(super) struct Parts {
    /// Asks only what is known.
    pub(super) settled: PolicyRule,
    /// Asks what is not known, and who calls.
    pub(super) open: PolicyRule,
}

/// Takes a rule apart. Every field is named here, so that none can be forgotten.
pub(super) fn take_apart(rule: PolicyRule, known: Known) -> Parts {
    let PolicyRule { name, mode, from, to, when } = rule;
    let (mut settled, mut open) =
        (PolicyRule::default(), PolicyRule { name, mode, ..PolicyRule::default() });
    if let Some(from) = from {
        let From {
            principals,
            not_principals,
            trust_domains,
            not_trust_domains,
            namespaces,
            not_namespaces,
            service_accounts,
            not_service_accounts,
            ip_blocks,
            not_ip_blocks,
            remote_ip_blocks,
            not_remote_ip_blocks,
            claims,
        } = from;
        let mut known_from = From::default();
        let mut open_from = From {
            principals,
            not_principals,
            trust_domains,
            not_trust_domains,
            namespaces,
            not_namespaces,
            service_accounts,
            not_service_accounts,
            ..From::default()
        };
        let side = if known.source { &mut known_from } else { &mut open_from };
        (side.ip_blocks, side.not_ip_blocks) = (ip_blocks, not_ip_blocks);
        let side = if known.remote { &mut known_from } else { &mut open_from };
        (side.remote_ip_blocks, side.not_remote_ip_blocks) =
            (remote_ip_blocks, not_remote_ip_blocks);
        let side = if known.claims { &mut known_from } else { &mut open_from };
        side.claims = claims;
        settled.from = (known_from != From::default()).then_some(known_from);
        open.from = (open_from != From::default()).then_some(open_from);
    }
    if let Some(to) = to {
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
        let (mut known_to, mut open_to) = (To::default(), To::default());
        let side = if known.host { &mut known_to } else { &mut open_to };
        (side.hosts, side.not_hosts) = (hosts, not_hosts);
        let side = if known.port { &mut known_to } else { &mut open_to };
        (side.ports, side.not_ports) = (ports, not_ports);
        let side = if known.method { &mut known_to } else { &mut open_to };
        (side.methods, side.not_methods) = (methods, not_methods);
        let side = if known.path { &mut known_to } else { &mut open_to };
        (side.paths, side.not_paths) = (paths, not_paths);
        // A gRPC method is a path, asked for with a method, and said to be gRPC in a header field.
        let grpc_known = known.path && known.method && known.headers;
        let side = if grpc_known { &mut known_to } else { &mut open_to };
        (side.grpc, side.not_grpc) = (grpc, not_grpc);
        let side = if known.upgrade { &mut known_to } else { &mut open_to };
        side.upgrades = upgrades;
        for side in [&mut known_to, &mut open_to] {
            side.ignore_case = ignore_case && !(side.paths.is_empty() && side.not_paths.is_empty());
        }
        settled.to = (known_to != To::default()).then_some(known_to);
        open.to = (open_to != To::default()).then_some(open_to);
    }
    if let Some(when) = when {
        let When { headers, query, times, not_times, cel } = when;
        let (mut known_when, mut open_when) = (When::default(), When { cel, ..When::default() });
        let side = if known.headers { &mut known_when } else { &mut open_when };
        side.headers = headers;
        let side = if known.query { &mut known_when } else { &mut open_when };
        side.query = query;
        let side = if known.time { &mut known_when } else { &mut open_when };
        (side.times, side.not_times) = (times, not_times);
        settled.when = (known_when != When::default()).then_some(known_when);
        open.when = (open_when != When::default()).then_some(open_when);
    }
    Parts { settled, open }
}

/// The same for a selector; whom it selects is settled before.
pub(super) fn take_selector_apart(
    selector: &PolicySelector,
    known: Known,
) -> (PolicySelector, PolicySelector) {
    let by_route = PolicySelector { workloads: Vec::new(), ..selector.clone() };
    match known.route {
        true => (by_route, PolicySelector::default()),
        false => (PolicySelector::default(), by_route),
    }
}
