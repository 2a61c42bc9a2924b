//! What is written is Cedar, means the same, and tells what it does not say.

use super::grammar::{read_policies, read_schema};
use super::{Cedar, export_cedar};
use crate::model::{Id, IdentityPolicy};

fn export(policies: &serde_json::Value) -> Cedar {
    let policies: Vec<(Id, IdentityPolicy)> = policies
        .as_array()
        .unwrap()
        .iter()
        .map(|policy| {
            let policy: IdentityPolicy = serde_json::from_value(policy.clone()).unwrap();
            (policy.id.clone().unwrap(), policy)
        })
        .collect();
    let cedar = export_cedar(policies.iter().map(|(id, policy)| (id, policy)));
    read_policies(&cedar.policies).unwrap_or_else(|error| panic!("{error}\n{}", cedar.policies));
    read_schema(&cedar.schema).unwrap_or_else(|error| panic!("{error}\n{}", cedar.schema));
    cedar
}

#[test]
fn an_allow_rule_is_a_permit_and_a_deny_rule_a_forbid() {
    let cedar = export(&serde_json::json!([
        {"id": "read", "action": "allow", "selector": {"workloads": ["spiffe://shop/billing"]}, "rules": [
            {"name": "web", "from": {"principals": ["spiffe://shop/web"]},
             "to": {"methods": ["GET"], "paths": ["/invoices/{id}", "/lists/**"]}}]},
        {"id": "no-admin", "action": "deny", "rules": [
            {"from": {"not_principals": ["spiffe://shop/ns/ops/sa/*"]}, "to": {"paths": ["/admin"]}}]},
    ]));
    assert_eq!(cedar.differences, Vec::<String>::new());
    assert_eq!(
        cedar.policies,
        r#"@id("read/web")
permit (
  principal is Wardgate::Workload,
  action == Wardgate::Action::"Request",
  resource
) when {
  resource.id == "spiffe://shop/billing" &&
  principal.id == "spiffe://shop/web" &&
  ["GET"].contains(context.method) &&
  ((context.path like "/invoices/*" && context.depth == 2 && !(context.path like "*/")) || (context.path == "/lists" || context.path like "/lists/*")) &&
  !(context has upgrade)
};

@id("no-admin/1 (layer 4)")
forbid (
  principal,
  action == Wardgate::Action::"Connect",
  resource
) when {
  (!(principal is Wardgate::Workload) || !((principal.id like "spiffe://shop/ns/ops/sa/*" && principal.depth == 4)))
};

@id("no-admin/1")
forbid (
  principal,
  action == Wardgate::Action::"Request",
  resource
) when {
  (!(principal is Wardgate::Workload) || !((principal.id like "spiffe://shop/ns/ops/sa/*" && principal.depth == 4))) &&
  (context.path == "/admin" || context.path == "/admin/")
};

"#
    );
}

#[test]
fn every_part_that_cedar_can_say_is_said() {
    let cedar = export(&serde_json::json!([{"id": "all", "action": "allow", "rules": [
        {"from": {"trust_domains": ["a"], "not_trust_domains": ["b"], "namespaces": ["x", "y-*"], "not_namespaces": ["*-z"],
                  "service_accounts": ["n/s"], "not_service_accounts": ["n/t"], "ip_blocks": ["10.0.0.0/8"],
                  "not_ip_blocks": ["10.1.0.0/16"], "remote_ip_blocks": ["::/0"],
                  "claims": [{"name": "role", "values": ["a\"b"]}, {"name": "/realm/x", "present": true}]},
         "to": {"hosts": ["a.b", "*.c"], "not_hosts": ["d.c"], "ports": [1, 2], "not_ports": [3], "methods": ["GET"],
                "not_methods": ["PUT"], "paths": ["/a/*/**", "/**", "/a%20b"], "not_paths": ["/x/*"],
                "grpc": ["p.S/M", "p.S/*"], "upgrades": ["websocket"]},
         "when": {"headers": [{"name": "x-a", "values": ["1"], "not_values": ["2"]}],
                  "query": [{"name": "q", "present": false}]}}]}]));
    assert_eq!(cedar.differences, Vec::<String>::new(), "{}", cedar.policies);
    for part in [
        r#"["a"].contains(principal.trustDomain)"#,
        r#"(principal.namespace == "x" || principal.namespace like "y-*")"#,
        r#"principal.namespace like "*-z""#,
        r#"context.source.isInRange(ip("10.0.0.0/8"))"#,
        r#"(context has remote && context.remote.isInRange(ip("::/0")))"#,
        r#"["a\"b"].containsAll(context.claims["role"])"#,
        r#"(context.claims has "/realm/x")"#,
        r#"(context.host == "a.b" || context.host like "*.c")"#,
        r"[1, 2].contains(context.port)",
        r#"(context.path like "/a/*" && context.depth >= 2 && (context.depth > 2 || !(context.path like "*/")))"#,
        r#"context.path == "/a b""#,
        r#"(!(context has upgrade) || ["websocket"].contains(context.upgrade))"#,
        r#"(context.headers has "x-a" && ["1"].containsAll(context.headers["x-a"]))"#,
        r#"!((context.query has "q"))"#,
    ] {
        assert!(cedar.policies.contains(part), "{part}\n{}", cedar.policies);
    }
    assert!(cedar.schema.contains(r#"headers: { "x-a"?: Set<String> }"#), "{}", cedar.schema);
    assert!(cedar.schema.contains(r#"claims: { "/realm/x"?: Set<String>, "role"?: Set<String> }"#));
}

#[test]
fn what_cedar_cannot_say_is_left_out_in_the_safe_direction() {
    let rules = serde_json::json!([
        {"name": "captures", "from": {"principals": ["spiffe://t/ns/{tenant}/sa/*"]}, "to": {"paths": ["/{tenant}/**"]}},
        {"name": "cel", "when": {"cel": "port == 1"}},
        {"name": "times", "when": {"times": [{"days": ["mon"]}]}},
        {"name": "values", "when": {"headers": [{"name": "a", "values": ["x*"]}]}},
        {"name": "rest", "to": {"paths": ["/a/*/b/**"]}},
        {"name": "watched", "mode": "observe"},
        {"name": "some", "mode": {"canary": 5}},
    ]);
    let policy = |action| serde_json::json!([{"id": "p", "action": action, "rules": rules}]);
    let allow = export(&policy("allow"));
    assert_eq!(allow.policies, "");
    assert_eq!(allow.differences.len(), 7, "{:#?}", allow.differences);
    let deny = export(&policy("deny"));
    // Each of them but the one that is only watched refuses, with what could be said of it.
    assert_eq!(read_policies(&deny.policies), Ok(12), "{}", deny.policies);
    assert_eq!(deny.differences.len(), 7, "{:#?}", deny.differences);
    assert!(deny.policies.contains("spiffe://t/ns/*/sa/*"), "{}", deny.policies);
}
