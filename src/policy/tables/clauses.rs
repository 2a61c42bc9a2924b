//! Truth tables of the parts of a rule: present and absent, to allow and to refuse.

use super::rows::{Lines, all_but, only, request};
use super::*;
use crate::policy::{Content, Token};

/// What a rule does to a caller: whether it allows alone, and whether it refuses beside a rule that allows all.
fn does(rule: &Value, caller: &str, action: &Action<'_>) -> (bool, bool) {
    let allows = only(rule.clone()).decides(caller, action).starts_with("allow");
    let refuses = all_but(rule.clone()).decides(caller, action).starts_with("deny");
    (allows, refuses)
}

#[test]
fn callers_are_meant_by_trust_domain_namespace_and_service_account() {
    // The workload is spiffe://shop/billing.
    let (web, other) = ("spiffe://shop/ns/web/sa/cart", "spiffe://other/ns/web/sa/cart");
    for (from, caller, holds) in [
        (json!({"not_trust_domains": ["other"]}), web, true),
        (json!({"not_trust_domains": ["other"]}), other, false),
        (json!({"namespaces": ["web"]}), web, true),
        (json!({"namespaces": ["web"]}), "spiffe://shop/ns/webs/sa/cart", false),
        (json!({"namespaces": ["we*"]}), web, true),
        (json!({"namespaces": ["*eb"]}), web, true),
        (json!({"namespaces": ["*"]}), web, true),
        (json!({"namespaces": ["*"]}), "spiffe://shop/web", false),
        // Never across trust domains unless it is said.
        (json!({"namespaces": ["web"]}), other, false),
        (json!({"namespaces": ["web"], "trust_domains": ["other"]}), other, true),
        (json!({"namespaces": ["web"], "trust_domains": ["other"]}), web, false),
        (json!({"namespaces": ["web"], "trust_domains": ["other", "shop"]}), web, true),
        (json!({"not_namespaces": ["web"]}), web, false),
        (json!({"not_namespaces": ["test"]}), web, true),
        (json!({"not_namespaces": ["web"]}), other, true),
        (json!({"not_namespaces": ["web"], "trust_domains": ["other"]}), other, false),
        (json!({"not_namespaces": ["web"]}), "spiffe://shop/web", true),
        (json!({"service_accounts": ["web/cart"]}), web, true),
        (json!({"service_accounts": ["web/carts", "test/cart"]}), web, false),
        (json!({"service_accounts": ["web/cart"]}), other, false),
        (json!({"service_accounts": ["web/cart"]}), "spiffe://shop/ns/web/sa/cart/x", false),
        (json!({"not_service_accounts": ["web/cart"]}), web, false),
        (json!({"not_service_accounts": ["web/x"]}), web, true),
    ] {
        let rule = json!({"from": from});
        assert_eq!(does(&rule, caller, &get("/")), (holds, holds), "{rule} {caller}");
        // Nobody's identity allows nothing and is refused.
        assert_eq!(does(&rule, "", &get("/")), (false, true), "{rule} nobody");
    }
}

#[test]
fn networks_are_those_of_the_connection_or_of_the_caller_that_was_named() {
    let from = |source: Option<&str>, remote: Option<&str>| {
        let parse = |text: Option<&str>| text.map(|text| text.parse().unwrap());
        Action { source: parse(source), remote: parse(remote), ..get("/") }
    };
    let (near, far) = (Some("10.1.2.3"), Some("192.0.2.7"));
    for (field, source, remote, allows, refuses) in [
        ("ip_blocks", near, None, true, true),
        ("ip_blocks", Some("::ffff:10.1.2.3"), None, true, true),
        ("ip_blocks", far, near, false, false),
        ("ip_blocks", None, near, false, true),
        ("not_ip_blocks", near, None, false, false),
        ("not_ip_blocks", far, near, true, true),
        ("not_ip_blocks", None, None, false, true),
        ("remote_ip_blocks", near, None, true, true),
        ("remote_ip_blocks", near, far, false, false),
        ("remote_ip_blocks", far, near, true, true),
        ("remote_ip_blocks", None, None, false, true),
        ("not_remote_ip_blocks", near, far, true, true),
        ("not_remote_ip_blocks", far, near, false, false),
        ("not_remote_ip_blocks", None, None, false, true),
    ] {
        let rule = json!({"from": {field: ["10.0.0.0/8", "fd00::1"]}});
        let found = does(&rule, WEB, &from(source, remote));
        assert_eq!(found, (allows, refuses), "{field} {source:?} {remote:?}");
    }
}

#[test]
fn named_values_are_lists() {
    let entry = |rest: Value| {
        let mut entry = rest;
        entry["name"] = "x-a".into();
        json!({"when": {"headers": [entry]}})
    };
    let two = &["u", "v"][..];
    for (rest, values, allows, refuses) in [
        (json!({"values": ["u"]}), &["u"][..], true, true),
        (json!({"values": ["u"]}), &["v"], false, false),
        (json!({"values": ["u"]}), two, false, true),
        (json!({"values": ["u", "v"]}), two, true, true),
        (json!({"values": ["u*"]}), &["user"], true, true),
        (json!({"values": ["u*"]}), &["user, admin"], false, true),
        (json!({"values": ["u*"]}), &["user, ua"], true, true),
        (json!({"values": ["u, v"]}), &["u, v"], true, true),
        (json!({"values": ["*v"]}), &["uv"], true, true),
        (json!({"values": ["*"]}), &[""], false, false),
        (json!({"values": [""]}), &[""], true, true),
        (json!({"values": ["u"]}), &[], false, true),
        (json!({"not_values": ["u"]}), &["v"], true, true),
        (json!({"not_values": ["u"]}), &["u"], false, false),
        (json!({"not_values": ["u"]}), two, false, true),
        (json!({"not_values": ["u"]}), &["v, u"], false, true),
        (json!({"not_values": ["u"]}), &[], false, true),
        (json!({"present": true}), &["u"], true, true),
        (json!({"present": true}), &[""], true, true),
        (json!({"present": true}), &[], false, false),
        (json!({"present": false}), &["u"], false, false),
        (json!({"present": false}), &[], true, true),
        (json!({"present": true, "values": ["u"]}), &[], false, false),
        (json!({"present": true, "values": ["u"]}), two, false, true),
        (json!({"values": ["u*"], "not_values": ["ub"]}), &["ua"], true, true),
        (json!({"values": ["u*"], "not_values": ["ub"]}), &["ub"], false, false),
    ] {
        let lines: Vec<_> = values.iter().map(|value| ("X-A", *value)).collect();
        let lines = Lines(&lines);
        let action = request(|request| request.fields = &lines);
        assert_eq!(
            does(&entry(rest.clone()), WEB, &action),
            (allows, refuses),
            "{rest} {values:?}"
        );
    }
}

#[test]
fn claims_are_found_by_name_or_pointer() {
    let claims = json!({
        "role": "admin", "groups": ["a", "b"], "realm": {"roles": ["x"]}, "n": 7, "ok": true, "gone": null,
        "scope": "read write", "empty": [], "object": {"a": 1}, "a/b": "slash"
    });
    let claims = claims.as_object().unwrap();
    for (entry, allows, refuses) in [
        (json!({"name": "role", "values": ["admin"]}), true, true),
        (json!({"name": "role", "values": ["user"]}), false, false),
        (json!({"name": "groups", "values": ["a"]}), false, true),
        (json!({"name": "groups", "values": ["a", "b"]}), true, true),
        (json!({"name": "/groups/1", "values": ["b"]}), true, true),
        (json!({"name": "/groups/01", "values": ["b"]}), false, true),
        (json!({"name": "/realm/roles", "values": ["x"]}), true, true),
        (json!({"name": "/a~1b", "values": ["slash"]}), true, true),
        (json!({"name": "a/b", "values": ["slash"]}), true, true),
        (json!({"name": "n", "values": ["7"]}), true, true),
        (json!({"name": "ok", "values": ["true"]}), true, true),
        (json!({"name": "scope", "values": ["read", "write"]}), true, true),
        (json!({"name": "scope", "values": ["read write"]}), false, false),
        (json!({"name": "gone", "present": true}), false, false),
        (json!({"name": "missing", "present": false}), true, true),
        (json!({"name": "missing", "values": ["x"]}), false, true),
        (json!({"name": "empty", "present": true}), true, true),
        (json!({"name": "empty", "values": ["x"]}), false, true),
        (json!({"name": "object", "values": ["x"]}), false, true),
        (json!({"name": "object", "not_values": ["x"]}), false, true),
    ] {
        let rule = json!({"from": {"claims": [entry]}});
        let verified = request(|request| request.token = Token::Verified(claims));
        assert_eq!(does(&rule, WEB, &verified), (allows, refuses), "{rule}");
        // Of a token that is not there nothing can be told, not even that a claim is absent.
        assert_eq!(does(&rule, WEB, &get("/")), (false, true), "{rule}");
        assert_eq!(only(rule.clone()).decides(WEB, &get("/")), "deny no_token only 1");
        assert_eq!(all_but(rule).decides(WEB, &get("/")), "deny no_token no 1");
    }
}

#[test]
fn a_grpc_call_is_a_post_of_its_content_type() {
    let call = [("Content-Type", "application/grpc+proto")];
    let (call, text) = (Lines(&call), Lines(&[("content-type", "text/plain")]));
    let (twice, longer) = (
        Lines(&[("content-type", "application/grpc"), ("content-type", "text/plain")]),
        Lines(&[("content-type", "application/grpcx")]),
    );
    for (field, fields, method, path, allows, refuses) in [
        ("grpc", &call, "POST", "/shop.Cart/Add", true, true),
        ("grpc", &call, "POST", "/shop.Pay/Any", true, true),
        ("grpc", &call, "POST", "/shop.Cart/Drop", false, false),
        ("grpc", &call, "POST", "/shop.Cart/add", false, false),
        ("grpc", &call, "GET", "/shop.Cart/Add", false, true),
        ("grpc", &text, "POST", "/shop.Cart/Add", false, true),
        ("grpc", &twice, "POST", "/shop.Cart/Add", false, true),
        ("grpc", &longer, "POST", "/shop.Cart/Add", false, true),
        ("grpc", &call, "POST", "//shop.Cart/Add", false, true),
        ("grpc", &call, "POST", "/shop.Cart/%zz", false, true),
        ("not_grpc", &call, "POST", "/shop.Cart/Add", false, false),
        ("not_grpc", &text, "POST", "/shop.Cart/Add", false, true),
        ("not_grpc", &call, "POST", "/shop.Cart/Drop", true, true),
        ("not_grpc", &text, "GET", "/x", true, true),
        ("not_grpc", &call, "POST", "/x/../shop.Cart/Add", false, true),
    ] {
        let rule = json!({"to": {field: ["shop.Cart/Add", "shop.Pay/*"]}});
        let action = request(|request| {
            (request.fields, request.method, request.path) = (fields, method, path);
        });
        assert_eq!(does(&rule, WEB, &action), (allows, refuses), "{field} {method} {path}");
    }
}

#[test]
fn names_in_braces_are_the_same_text_wherever_they_stand() {
    let tenant = "spiffe://shop/ns/acme/sa/web";
    let rule = json!({"from": {"principals": ["spiffe://shop/ns/{tenant}/sa/*"]},
        "to": {"hosts": ["{tenant}.example.com"], "paths": ["/t/{tenant}/**", "/open/{any}"]}});
    for (caller, host, path, allows, refuses) in [
        (tenant, "acme.example.com", "/t/acme/x", true, true),
        (tenant, "ACME.example.com:443", "/t/acme/x", true, true),
        (tenant, "other.example.com", "/t/acme/x", false, false),
        (tenant, "acme.example.com", "/t/other/x", false, false),
        (tenant, "acme.example.com", "/open/whatever", true, true),
        (tenant, "a.acme.example.com", "/t/acme", false, false),
        // One reading is the caller's own, another one is not.
        (tenant, "acme.example.com", "/t/acme/../other", false, true),
        (tenant, "acme.example.com", "/t/other/../acme", false, true),
        (tenant, "acme.example.com", "/t/%61cme", true, true),
        (tenant, "acme.example.com", "/t/Acme/x", false, false),
        // What is unclear is any, to refuse.
        (tenant, "a..b", "/t/acme/x", false, true),
        (tenant, "acme.example.com", "/t/%zz", false, true),
        ("", "acme.example.com", "/t/acme", false, true),
        ("", "acme.example.com", "/t/other", false, false),
        // A host has no case, a SPIFFE ID has: to refuse, that is no difference.
        ("spiffe://shop/ns/Acme/sa/web", "acme.example.com", "/open/x", false, true),
    ] {
        let action = Action::http(1, "GET", host, path);
        assert_eq!(does(&rule, caller, &action), (allows, refuses), "{caller} {host} {path}");
    }
    // Whatever is not the caller's own.
    let foreign = json!({"from": {"principals": ["spiffe://shop/ns/{t}/**", "spiffe://shop/{t}"]},
        "to": {"paths": ["/t/**"], "not_paths": ["/t/{t}/**"]}});
    for (path, holds) in [("/t/acme/x", false), ("/t/other/x", true)] {
        assert_eq!(does(&foreign, tenant, &get(path)), (holds, holds), "{path}");
    }
    let world = all_but(foreign.clone());
    for path in ["/t/acme/../other", "/t//acme", "/t/%zz", "/t/Acme"] {
        assert!(world.decides(tenant, &get(path)).starts_with("deny"), "{path}");
    }
    // Whoever has no identity is exempt by no name, of which nobody knows what it stands for.
    let but_own = json!({"from": {"principals": ["spiffe://shop/ns/{t}/sa/*"]}, "to": {"not_hosts": ["{t}.example.com"]}});
    for rule in [&foreign, &but_own] {
        for path in ["/t/acme/x", "/t/other/x"] {
            let action = Action::http(1, "GET", "acme.example.com", path);
            assert_eq!(does(rule, "", &action), (false, true), "{rule} {path}");
        }
    }
    // At layer 4 the server name is the host.
    let by_name = json!({"from": {"principals": ["spiffe://shop/ns/{t}/sa/*"]}, "to": {"hosts": ["{t}.example.com"]}});
    let asks = |server_name| Action {
        content: Content::Connection { server_name },
        ..Action::connection(1)
    };
    assert_eq!(does(&by_name, tenant, &asks(Some("acme.example.com"))), (true, true));
    assert_eq!(does(&by_name, tenant, &asks(Some("other.example.com"))), (false, false));
    assert_eq!(does(&by_name, tenant, &asks(None)), (false, true));
}

#[test]
fn times_hold_in_one_of_the_windows() {
    // 2026-03-02 is a Monday.
    let at = |unix_seconds| Action { unix_seconds, ..get("/") };
    let noon = 1_772_452_800;
    let rule = |field: &str| {
        json!({"when": {field: [{"days": ["mon"], "from": "11:00", "until": "13:00"},
            {"days": ["sat"], "zone": "Europe/Berlin"}]}})
    };
    for (moment, within) in [(noon, true), (noon + 3600, false), (noon + 5 * 86_400, true)] {
        assert_eq!(does(&rule("times"), WEB, &at(moment)), (within, within), "{moment}");
        assert_eq!(does(&rule("not_times"), WEB, &at(moment)), (!within, !within), "{moment}");
    }
    // A moment that no calendar has allows nothing and is refused.
    assert_eq!(does(&rule("times"), WEB, &at(i64::MAX)), (false, true));
    assert_eq!(does(&rule("not_times"), WEB, &at(i64::MAX)), (false, true));
}

#[test]
fn at_layer_4_what_only_http_has_never_allows_and_always_refuses() {
    let connection = Action::connection(15006);
    for rule in [
        json!({"to": {"methods": ["GET"]}}),
        json!({"to": {"not_methods": ["GET"]}}),
        json!({"to": {"paths": ["/**"]}}),
        json!({"to": {"not_paths": ["/a"]}}),
        json!({"to": {"grpc": ["a.B/C"]}}),
        json!({"to": {"not_grpc": ["a.B/C"]}}),
        json!({"to": {"upgrades": ["*"]}}),
        json!({"to": {"hosts": ["a"]}}),
        json!({"to": {"not_hosts": ["a"]}}),
        json!({"when": {"headers": [{"name": "a", "present": false}]}}),
        json!({"when": {"query": [{"name": "a", "present": false}]}}),
        json!({"from": {"claims": [{"name": "a", "present": false}]}}),
    ] {
        assert_eq!(does(&rule, WEB, &connection), (false, true), "{rule}");
    }
    for (rule, holds) in [
        (json!({"to": {"ports": [15006]}}), true),
        (json!({"to": {"not_ports": [15006]}}), false),
        (json!({"to": {"not_ports": [1]}}), true),
        (json!({"from": {"namespaces": ["a"]}}), false),
    ] {
        assert_eq!(does(&rule, WEB, &connection), (holds, holds), "{rule}");
    }
    let named = Action {
        content: Content::Connection { server_name: Some("pay.example.com") },
        ..connection
    };
    let rule = json!({"to": {"hosts": ["*.example.com"]}});
    assert_eq!(does(&rule, WEB, &named), (true, true));
    let rule = json!({"to": {"not_hosts": ["pay.example.com"]}});
    assert_eq!(does(&rule, WEB, &named), (false, false));
}

#[test]
fn what_failed_is_told_and_secrets_are_not() {
    let claims = json!({"role": "secret-role"});
    let lines = Lines(&[("x-key", "secret-value")]);
    let action = request(|request| {
        request.fields = &lines;
        request.query = Some("k=secret-value");
        request.token = Token::Verified(claims.as_object().unwrap());
    });
    for (rule, clause) in [
        (json!({"from": {"namespaces": ["a"]}}), "namespaces"),
        (json!({"from": {"not_trust_domains": ["shop"]}}), "not_trust_domains"),
        (json!({"from": {"ip_blocks": ["10.0.0.0/8"]}}), "ip_blocks"),
        (json!({"from": {"claims": [{"name": "role", "values": ["x"]}]}}), "claims"),
        (json!({"to": {"not_hosts": ["billing"]}}), "not_hosts"),
        (json!({"to": {"not_ports": [15006]}}), "not_ports"),
        (json!({"to": {"grpc": ["a.B/C"]}}), "grpc"),
        (json!({"to": {"upgrades": ["websocket"]}}), "upgrades"),
        (
            json!({"from": {"principals": ["spiffe://shop/{a}"]}, "to": {"not_paths": ["/{a}"], "hosts": ["{a}.x", "billing"]}}),
            "",
        ),
        (
            json!({"from": {"principals": ["spiffe://shop/{a}"]}, "to": {"paths": ["/", "/{a}/x"], "not_hosts": ["{a}.x"]}}),
            "",
        ),
        (json!({"when": {"headers": [{"name": "x-key", "values": ["a"]}]}}), "headers"),
        (json!({"when": {"query": [{"name": "k", "values": ["a"]}]}}), "query"),
        (json!({"when": {"times": [{"not_before": "2026-01-01T00:00:00Z"}]}}), "times"),
    ] {
        let policy = only(rule.clone()).policy();
        let explained = policy.explain(Some(&id(WEB)), &action);
        let failed = explained.tried[0].failed.as_ref();
        assert_eq!(failed.map_or("", |failure| failure.clause.name()), clause, "{rule}");
        let nearest = policy.nearest(&policy.standing_of(Some(&id(WEB))), &action);
        assert_eq!(nearest.map_or("", |near| near.clause.name()), clause, "{rule}");
        if let Some(failure) = failed {
            assert!(!failure.wanted.is_empty(), "{rule}");
            assert!(!failure.found.contains("secret-"), "{}", failure.found);
        }
    }
    let other =
        only(json!({"from": {"principals": ["spiffe://shop/{a}"]}, "to": {"paths": ["/t/{a}"]}}));
    let explained = other.policy().explain(Some(&id(WEB)), &get("/t/other"));
    let failure = explained.nearest.unwrap().failed.unwrap();
    assert_eq!(failure.clause, Clause::Captures);
    assert_eq!(failure.wanted, ["{a} is the same everywhere"]);
}
