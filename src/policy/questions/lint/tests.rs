//! Each finding, and what is no finding.

use serde_json::{Value, json};

use super::*;

/// `code policy:rule` of each finding, sorted.
fn found(policies: &[(&str, Value)], around: &Surroundings) -> Vec<String> {
    let policies = Policies::new(policies.iter().map(|(id, text)| {
        (Id::parse(id).unwrap(), 1, serde_json::from_value(text.clone()).unwrap())
    }));
    let findings = policies.lint(around);
    let line = |one: &Finding| {
        let place =
            [one.policy.clone(), one.rule.clone()].into_iter().flatten().collect::<Vec<_>>();
        format!("{} {}", one.code, place.join(":"))
    };
    findings.iter().map(line).collect()
}
#[expect(clippy::needless_pass_by_value, reason = "it reads better where it is called")]
fn allow(rules: Value) -> Value {
    json!({"selector": {"workloads": ["spiffe://shop/billing"]}, "action": "allow", "rules": rules})
}
#[expect(clippy::needless_pass_by_value, reason = "it reads better where it is called")]
fn deny(rules: Value) -> Value {
    json!({"selector": {"workloads": ["spiffe://shop/billing"]}, "action": "deny", "rules": rules})
}
#[expect(clippy::needless_pass_by_value, reason = "it reads better where it is called")]
fn single(rule: Value) -> Vec<String> {
    let around = Surroundings { now: 1_790_000_000, ..Surroundings::default() };
    found(&[("p", allow(json!([rule])))], &around)
}

#[test]
fn a_rule_that_says_what_it_means_is_no_finding() {
    let a = json!({"principals": ["spiffe://shop/a"]});
    assert_eq!(single(json!({"from": a})), Vec::<String>::new());
    assert_eq!(
        single(json!({"from": {"principals": ["spiffe://shop/**"]}, "to": {"methods": ["GET"]}})),
        Vec::<String>::new()
    );
    let tenant =
        json!({"from": {"principals": ["spiffe://shop/{t}/a"]}, "to": {"paths": ["/{t}/{id}"]}});
    assert_eq!(single(tenant), Vec::<String>::new());
}

#[test]
fn one_rule_can_be_odd_alone() {
    let a = json!({"principals": ["spiffe://shop/a"]});
    for (rule, code) in [
        (
            json!({"from": {"principals": ["spiffe://shop/a"], "not_principals": ["spiffe://shop/*"]}}),
            "WG1002 p:1",
        ),
        (
            json!({"from": {"principals": ["spiffe://shop/a"], "trust_domains": ["other"]}}),
            "WG1002 p:1",
        ),
        (json!({"from": a, "to": {"hosts": ["a.test"], "not_hosts": ["*.test"]}}), "WG1002 p:1"),
        (
            json!({"from": a, "to": {"paths": ["/a/b", "/a/c"], "not_paths": ["/a/**"]}}),
            "WG1002 p:1",
        ),
        (json!({"from": a, "to": {"methods": ["GET"], "grpc": ["p.S/M"]}}), "WG1002 p:1"),
        (json!({}), "WG1005 p:1"),
        (
            json!({"from": {"principals": ["spiffe://shop/**"]}, "to": {"paths": ["/**"]}}),
            "WG1005 p:1",
        ),
        (json!({"from": {"trust_domains": ["shop"]}}), "WG1005 p:1"),
        (json!({"from": a, "mode": {"canary": 5}}), "WG1007 p:1"),
        (
            json!({"from": a, "when": {"times": [{"not_after": "2020-01-01T00:00:00Z"}]}}),
            "WG1010 p:1",
        ),
        (
            json!({"from": a, "when": {"times": [{"not_before": "2999-01-01T00:00:00Z"}]}}),
            "WG1010 p:1",
        ),
        (json!({"from": {"principals": ["spiffe://shop/{t}/a"]}}), "WG1011 p:1"),
    ] {
        assert_eq!(single(rule.clone()), [code], "{rule}");
    }
    let observed = single(json!({"from": a, "mode": "observe"}));
    assert_eq!(observed, ["WG1009 ", "WG1006 p:1"]);
}

#[test]
fn rules_make_each_other_idle() {
    let none = Surroundings::default();
    let all =
        json!({"from": {"principals": ["spiffe://shop/**"]}, "to": {"methods": ["GET", "PUT"]}});
    let one = json!({"name": "one", "from": {"principals": ["spiffe://shop/a"]}, "to": {"methods": ["GET"], "paths": ["/x"]}});
    let post = json!({"from": {"principals": ["spiffe://shop/a"]}, "to": {"methods": ["POST"]}});
    assert_eq!(found(&[("p", allow(json!([all, one])))], &none), ["WG1004 p:one"]);
    assert_eq!(found(&[("p", allow(json!([one, all])))], &none), ["WG1004 p:one"]);
    assert_eq!(found(&[("p", allow(json!([all, post])))], &none), Vec::<String>::new());
    assert_eq!(
        found(&[("p", allow(json!([one]))), ("q", allow(json!([one])))], &none),
        ["WG1004 q:one"]
    );
    let no_x = json!({"from": {"principals": ["spiffe://shop/*"]}, "to": {"paths": ["/x/**"]}});
    assert_eq!(
        found(&[("p", allow(json!([one, post]))), ("q", deny(json!([no_x])))], &none),
        ["WG1003 p:one"]
    );
    let seldom = json!({"from": {"principals": ["spiffe://shop/*"]}, "when": {"headers": [{"name": "x", "values": ["1"]}]}});
    assert_eq!(
        found(&[("p", allow(json!([one]))), ("q", deny(json!([seldom])))], &none),
        Vec::<String>::new()
    );
}

#[test]
fn what_is_around_the_policies_counts() {
    let a = json!([{"from": {"principals": ["spiffe://shop/a"]}}]);
    let mut policy = allow(a.clone());
    policy["selector"]["routes"] = json!(["r1", "gone"]);
    let route = |id: &str| TargetRoute { id: Id::parse(id).unwrap(), labels: Labels::new() };
    let mode = json!({"mode": "strict", "ports": {"8080": "permissive"}});
    let around = Surroundings {
        workloads: Some(vec![
            "spiffe://shop/billing".parse().unwrap(),
            "spiffe://shop/bare".parse().unwrap(),
        ]),
        routes: Some(vec![route("r1")]),
        modes: vec![(Id::parse("m").unwrap(), serde_json::from_value(mode).unwrap())],
        now: 0,
    };
    let mut stray = allow(a);
    stray["selector"]["workloads"] = json!(["spiffe://shop/typo"]);
    let broken = json!({"action": "deny", "rules": [{"to": {"paths": ["no-slash"]}}]});
    assert_eq!(
        found(&[("p", policy), ("q", stray), ("z", broken)], &around),
        ["WG1001 z", "WG1008 p", "WG1008 q", "WG1009 ", "WG1012 identity_modes/m"]
    );
}
