//! A log, and what it teaches.

use std::collections::HashMap;

use serde_json::{Value, json};

use super::{Observations, Tried, coverage, replay, suggest};
use crate::audit::Seen;
use crate::model::{Id, IdentityPolicy};

const BILLING: &str = "spiffe://shop/billing";

fn observed(lines: &[(Option<&str>, &str, &str, &str, u64)]) -> Observations {
    let mut observations = Observations::new();
    for (number, (src, method, path, outcome, count)) in lines.iter().enumerate() {
        let mut line = json!({
            "seq": number + 1, "time": format!("2026-11-21T12:00:{number:02}.000Z"), "type": "decision",
            "src": {"addr": "10.0.0.1:1"}, "dst": {"spiffe_id": BILLING, "port": 15006},
            "protocol": "h2", "method": method, "host": "billing", "path": path, "outcome": outcome,
            "count": count,
        });
        if let Some(src) = src {
            line["src"]["spiffe_id"] = json!(format!("spiffe://shop/{src}"));
        }
        observations.add(&Seen::parse(&line.to_string()).unwrap());
    }
    observations
}

fn policies(texts: &[Value]) -> Vec<(Id, IdentityPolicy)> {
    let parsed = texts.iter().enumerate().map(|(at, text)| {
        let id = Id::parse(&format!("p{at}")).unwrap();
        (id, serde_json::from_value(text.clone()).unwrap())
    });
    parsed.collect()
}

fn day() -> Observations {
    observed(&[
        (Some("web"), "GET", "/invoices/7", "allow", 40),
        (Some("web"), "GET", "/invoices/8", "allow", 2),
        (Some("app"), "GET", "/invoices/9", "allow", 1),
        (Some("clerk"), "DELETE", "/invoices/7", "allow", 1),
        (Some("web"), "DELETE", "/invoices/7", "deny", 3),
        (None, "GET", "/health", "allow", 9),
        (Some("web"), "GET", "/a%zz", "deny", 1),
    ])
}

#[test]
fn a_replay_tells_who_would_lose_and_who_would_gain() {
    let set = policies(&[json!({"action": "allow", "rules": [
        {"name": "read", "from": {"principals": ["spiffe://shop/web"]}, "to": {"paths": ["/invoices/{id}"]}},
        {"name": "health", "to": {"methods": ["GET"], "paths": ["/health"]}}]})]);
    let labels = HashMap::new();
    let tried = Tried { policies: &set, labels: &labels, ingresses: &[] };
    let found = replay(&day(), tried, None);
    assert_eq!((found.requests, found.same), (57, 40 + 2 + 9 + 1));
    let told = |changes: &[super::Change]| -> Vec<String> {
        changes
            .iter()
            .map(|change| {
                let src = change.src.as_deref().unwrap_or("nobody");
                let src = src.trim_start_matches("spiffe://shop/");
                let method = change.method.as_deref().unwrap_or("-");
                format!("{src} {method} {} x{} {}", change.path, change.evidence.count, change.now)
            })
            .collect()
    };
    assert_eq!(
        told(&found.newly_denied),
        ["app GET /invoices/{id} x1 no_rule", "clerk DELETE /invoices/{id} x1 no_rule"]
    );
    assert_eq!(told(&found.newly_allowed), ["web DELETE /invoices/{id} x3 allow"]);
    assert!(found.unknown.is_empty());
    // Compared with itself, a set changes nothing.
    assert!(replay(&day(), tried, Some(tried)).changes_nothing());
}

#[test]
fn what_is_suggested_is_enough_and_no_more() {
    let found = suggest(&day(), &[]);
    let [one] = &found.policies[..] else { panic!("{found:?}") };
    assert_eq!(
        (one.id.as_str(), &one.policy.selector.workloads[0]),
        ("suggested-billing", &BILLING.to_string())
    );
    let rules: Vec<Value> = one.policy.rules.iter().map(|rule| json!(rule)).collect();
    assert_eq!(
        rules,
        [
            json!({"name": "app-and-1-invoices",
                "from": {"principals": ["spiffe://shop/app", "spiffe://shop/web"]},
                "to": {"methods": ["GET"], "paths": ["/invoices/{id}"]}}),
            json!({"name": "clerk-invoices", "from": {"principals": ["spiffe://shop/clerk"]},
                "to": {"methods": ["DELETE"], "paths": ["/invoices/{id}"]}}),
        ]
    );
    assert_eq!((one.evidence[0].evidence.count, one.evidence[0].paths), (43, 3));
    // The proof: whoever had an identity and was let in still is, and nobody else.
    assert!(found.proof.newly_allowed.is_empty() && found.proof.unknown.is_empty());
    let [lost] = &found.uncovered[..] else { panic!("{found:?}") };
    assert_eq!((&lost.src, lost.path.as_str(), lost.evidence.count), (&None, "/health", 9));
}

#[test]
fn coverage_names_rules_and_entries_that_nobody_uses() {
    let set = policies(&[
        json!({"action": "allow", "rules": [
            {"name": "read", "from": {"principals": ["spiffe://shop/web", "spiffe://shop/app", "spiffe://shop/old"]},
             "to": {"methods": ["GET", "HEAD"], "paths": ["/invoices/{id}", "/reports/**"]}},
            {"name": "never", "from": {"principals": ["spiffe://shop/gone"]}}]}),
        json!({"action": "deny", "rules": [{"to": {"paths": ["/internal/**"]}}]}),
    ]);
    let labels = HashMap::new();
    let found = coverage(&day(), Tried { policies: &set, labels: &labels, ingresses: &[] });
    let [read, never, deny] = &found.rules[..] else { panic!("{found:?}") };
    assert_eq!((read.evidence.unwrap().count, read.callers), (43, 2));
    let unused: Vec<_> =
        read.partly.iter().map(|list| (list.field, list.entries, list.unused.join(" "))).collect();
    assert_eq!(
        unused,
        [
            ("from.principals", 3, "spiffe://shop/old".to_string()),
            ("to.methods", 2, "HEAD".into()),
            ("to.paths", 2, "/reports/**".into()),
        ]
    );
    assert!(never.evidence.is_none());
    // A path that cannot be read is refused by the deny rule.
    assert_eq!(deny.evidence.unwrap().count, 1);
    assert_eq!((found.undecided, found.unknown), (1 + 3 + 9, 0));
}

#[test]
fn what_was_hidden_before_it_was_logged_is_counted_and_not_guessed() {
    let mut observations = observed(&[(Some("web"), "GET", "/", "allow", 1)]);
    let mut add = |line: Value| observations.add(&Seen::parse(&line.to_string()).unwrap());
    let line = |src: &str, path: Option<&str>| {
        let mut line = json!({"seq": 1, "time": "2026-11-21T12:00:00.000Z", "type": "decision",
            "src": {"spiffe_id": src}, "dst": {"spiffe_id": BILLING, "port": 1}, "protocol": "h2",
            "method": "GET", "host": "billing", "outcome": "allow"});
        if let Some(path) = path {
            line["path"] = json!(path);
        }
        line
    };
    add(line("spiffe://shop/web", None));
    add(line("hmac:0123", Some("/")));
    let mut nowhere = line("spiffe://shop/web", Some("/"));
    nowhere["dst"] = json!({"port": 1});
    add(nowhere);
    let skipped = observations.skipped();
    assert_eq!((skipped.hidden, skipped.without_workload, observations.iter().count()), (2, 1, 1));
}
