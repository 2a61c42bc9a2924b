//! Modes of policies and rules, canaries, and which facts rules ask for.

use super::rows::only;
use super::*;
use crate::model::Mode;

fn with_lot(lot: u8) -> Action<'static> {
    Action { lot, ..get("/") }
}

/// The outcome, and what would be.
fn both(policy: &Policy, action: &Action<'_>) -> (String, Option<String>) {
    let decision = policy.decide(&policy.standing_of(Some(&id(WEB))), action);
    (said(policy, decision.outcome), decision.would_be.map(|outcome| said(policy, outcome)))
}

#[test]
fn a_rule_in_canary_mode_decides_for_so_many_lots_and_is_watched_for_the_others() {
    let all = ("all", json!({"action": "allow", "rules": [{}]}));
    let no = json!({"action": "deny", "mode": {"canary": 30}, "rules": [{}]});
    let policy = World::new(&[all, ("no", no)]).policy();
    for (lot, outcome, would_be) in [
        (0, "deny denied_by_rule no 1", None),
        (29, "deny denied_by_rule no 1", None),
        (30, "allow all 1", Some("deny denied_by_rule no 1")),
        (99, "allow all 1", Some("deny denied_by_rule no 1")),
        // There is none such; the nearest is meant.
        (255, "allow all 1", Some("deny denied_by_rule no 1")),
    ] {
        let (found, would) = both(&policy, &with_lot(lot));
        assert_eq!((found.as_str(), would.as_deref()), (outcome, would_be), "{lot}");
    }
    let only =
        World::new(&[("new", json!({"action": "allow", "mode": {"canary": 1}, "rules": [{}]}))])
            .policy();
    assert!(!only.standing_of(Some(&id(WEB))).is_hopeless());
    assert_eq!(both(&only, &with_lot(0)), ("allow new 1".into(), None));
    assert_eq!(both(&only, &with_lot(1)), ("deny no_rule".into(), Some("allow new 1".into())));
}

#[test]
fn a_rules_own_mode_counts_more_than_its_policys() {
    let policy = World::new(&[(
        "p",
        json!({"action": "allow", "mode": "observe", "rules": [
            {"name": "watched", "to": {"paths": ["/a"]}},
            {"name": "decides", "mode": "enforce", "to": {"paths": ["/b"]}},
            {"name": "some", "mode": {"canary": 50}, "to": {"paths": ["/c"]}}]}),
    )])
    .policy();
    let ask = |lot, path| both(&policy, &Action { lot, ..get(path) });
    assert_eq!(ask(0, "/a"), ("deny no_rule".into(), Some("allow p watched".into())));
    assert_eq!(ask(99, "/b"), ("allow p decides".into(), None));
    assert_eq!(ask(49, "/c"), ("allow p some".into(), None));
    assert_eq!(ask(50, "/c"), ("deny no_rule".into(), Some("allow p some".into())));
    let modes: Vec<Mode> =
        policy.explain(Some(&id(WEB)), &get("/")).tried.iter().map(|tried| tried.mode).collect();
    assert_eq!(modes, [Mode::Observe, Mode::Enforce, Mode::Canary(50)]);
}

#[test]
fn a_canary_is_1_to_99() {
    for percent in [0, 100, 255] {
        let text = json!({"action": "deny", "mode": {"canary": percent}, "rules": [{}]});
        let policy: IdentityPolicy = serde_json::from_value(text.clone()).unwrap();
        let sentence = check(&policy).unwrap_err().to_string();
        assert!(
            sentence.starts_with("mode: canary is 1 to 99 in a hundred connections, not"),
            "{sentence}"
        );
        // Should it come all the same, it is not taken for a mode that decides nothing.
        let world = World::new(&[("all", json!({"action": "allow", "rules": [{}]})), ("no", text)]);
        let action = with_lot(99);
        assert_eq!(world.decides(WEB, &action), "deny broken_policy no (the whole policy)");
    }
    let text = json!({"action": "deny", "mode": "observe", "rules": [{"mode": {"canary": 0}}]});
    let policy: IdentityPolicy = serde_json::from_value(text).unwrap();
    assert!(
        check(&policy).unwrap_err().to_string().starts_with("rules[0].mode: canary is 1 to 99")
    );
}

#[test]
fn a_canary_closes_a_public_route_for_its_lots_only() {
    let (one, none) = (Id::parse("1").unwrap(), Labels::new());
    let route = RouteFacts { id: &one, labels: &none };
    let policy = World::new(&[(
        "p",
        json!({"action": "allow", "mode": {"canary": 10}, "selector": {"routes": ["1"]},
            "rules": [{"to": {"methods": ["GET"]}}]}),
    )])
    .policy();
    let nobody = policy.standing_of(None);
    let ask = |lot, method| {
        let action = Action { lot, ..Action::http(1, method, "a", "/").on_route(Some(route)) };
        policy.decide_public(&nobody, &action)
    };
    assert_eq!(ask(9, "PUT").outcome, Outcome::Deny(Reason::NoRule, None));
    assert!(ask(9, "GET").outcome.rule().is_some());
    let open = ask(10, "PUT");
    assert_eq!(open.outcome, Outcome::Allow(None));
    assert_eq!(open.would_be, Some(Outcome::Deny(Reason::NoRule, None)));
    assert_eq!(ask(10, "GET").would_be, None);
    // For most connections it is open.
    assert!(!policy.governs(route));
}

#[test]
fn facts_that_no_rule_asks_for_need_not_be_prepared() {
    let asks = |policy: &Policy| {
        [
            policy.asks_fields(),
            policy.asks_query(),
            policy.asks_token(),
            policy.asks_time(),
            policy.asks_lot(),
            policy.asks_method(),
        ]
    };
    for (rule, expected) in [
        (json!({}), [false; 6]),
        (json!({"to": {"paths": ["/a"], "ports": [1]}}), [false; 6]),
        (
            json!({"when": {"headers": [{"name": "a", "present": true}]}}),
            [true, false, false, false, false, false],
        ),
        (json!({"to": {"not_grpc": ["a.B/*"]}}), [true, false, false, false, false, true]),
        (
            json!({"when": {"query": [{"name": "a", "present": true}]}}),
            [false, true, false, false, false, false],
        ),
        (
            json!({"from": {"claims": [{"name": "a", "present": true}]}}),
            [false, false, true, false, false, false],
        ),
        (
            json!({"when": {"not_times": [{"days": ["mon"]}]}}),
            [false, false, false, true, false, false],
        ),
        (json!({"mode": {"canary": 5}}), [false, false, false, false, true, false]),
        (json!({"to": {"methods": ["GET"]}}), [false, false, false, false, false, true]),
    ] {
        assert_eq!(asks(&only(rule.clone()).policy()), expected, "{rule}");
    }
}

#[test]
fn the_language_is_parsed_strictly() {
    for (rule, expected) in [
        (
            json!({"from": {"principals": ["spiffe://shop/{a}/{a}"]}}),
            "from.principals[0]: \"spiffe://shop/{a}/{a}\": a name in braces stands only once",
        ),
        (
            json!({"from": {"principals": ["spiffe://{a}/x"]}}),
            "from.principals[0]: \"spiffe://{a}/x\" the trust domain",
        ),
        (
            json!({"from": {"principals": ["spiffe://shop/x{a}"]}}),
            "from.principals[0]: \"spiffe://shop/x{a}\" the path may have only",
        ),
        (
            json!({"from": {"principals": ["spiffe://shop/{1a}"]}}),
            "from.principals[0]: \"spiffe://shop/{1a}\": a name in braces has letters",
        ),
        (
            json!({"from": {"not_principals": ["spiffe://shop/{a}"]}}),
            "from.not_principals[0]: \"spiffe://shop/{a}\": a name in braces captures in principals; write * here",
        ),
        (
            json!({"from": {"not_trust_domains": ["A"]}}),
            "from.not_trust_domains[0]: \"A\" the trust domain may have only",
        ),
        (json!({"from": {"namespaces": ["a/b"]}}), "from.namespaces[0]: \"a/b\" is no namespace"),
        (
            json!({"from": {"not_namespaces": ["a", "a*b"]}}),
            "from.not_namespaces[1]: \"a*b\": a star stands only",
        ),
        (
            json!({"from": {"service_accounts": ["a"]}}),
            "from.service_accounts[0]: \"a\" is no service account: namespace/name",
        ),
        (
            json!({"from": {"not_service_accounts": ["a/*"]}}),
            "from.not_service_accounts[0]: \"a/*\" is no service account",
        ),
        (
            json!({"from": {"ip_blocks": ["10.0.0.0/8", "10.0.0.1/8"]}}),
            "from.ip_blocks[1]: \"10.0.0.1/8\" has bits behind its prefix",
        ),
        (
            json!({"from": {"not_remote_ip_blocks": ["example.com"]}}),
            "from.not_remote_ip_blocks[0]: \"example.com\" is neither an address nor a network",
        ),
        (
            json!({"from": {"claims": [{"name": "a"}]}}),
            "from.claims[0]: asks nothing: values, not_values or present",
        ),
        (
            json!({"from": {"claims": [{"name": "/a~2", "present": true}]}}),
            "from.claims[0].name: \"/a~2\": in a JSON pointer",
        ),
        (
            json!({"from": {"claims": [{"name": "", "present": true}]}}),
            "from.claims[0].name: has 1 to 256",
        ),
        (
            json!({"when": {"headers": [{"name": "a", "present": false, "values": ["x"]}]}}),
            "when.headers[0].present: false asks that it is absent",
        ),
        (
            json!({"when": {"headers": [{"name": "a b", "present": true}]}}),
            "when.headers[0].name: \"a b\" is no name of a header field",
        ),
        (
            json!({"when": {"headers": [{"name": "Host", "values": ["x"]}]}}),
            "when.headers[0].name: \"Host\": hosts are asked for by to.hosts",
        ),
        (
            json!({"when": {"headers": [{"name": "a", "values": ["x", "*x*"]}]}}),
            "when.headers[0].values[1]: \"*x*\": a star stands at the start or at the end, not both",
        ),
        (
            json!({"when": {"query": [{"name": "a", "not_values": ["a*b"]}]}}),
            "when.query[0].not_values[0]: \"a*b\": a star",
        ),
        (
            json!({"when": {"query": [{"name": "a", "values": ["\u{0}"]}]}}),
            "when.query[0].values[0]: \"\\0\": a value has no control characters",
        ),
        (
            json!({"when": {"times": [{"days": ["mon"]}, {"days": ["mon"], "zone": "Mars/Base"}]}}),
            "when.times[1].zone: \"Mars/Base\" is no time zone",
        ),
        (json!({"when": {"not_times": [{}]}}), "when.not_times[0]: asks nothing"),
        (json!({"when": {"cel": "1 +"}}), "when.cel: "),
        (json!({"to": {"not_ports": [0]}}), "to.not_ports[0]: a port is 1 to 65535"),
        (json!({"to": {"not_hosts": ["{a}"]}}), "to.not_hosts[0]: \"{a}\": a name in braces"),
        (json!({"to": {"grpc": ["Service"]}}), "to.grpc[0]: \"Service\" is no gRPC method"),
        (
            json!({"to": {"not_grpc": ["a.B/*", "*/Get"]}}),
            "to.not_grpc[1]: \"*/Get\" is no gRPC method",
        ),
        (
            json!({"to": {"upgrades": ["web socket"]}}),
            "to.upgrades[0]: \"web socket\" is no protocol",
        ),
    ] {
        let text = json!({"action": "deny", "rules": [{}, rule]});
        let policy: IdentityPolicy = serde_json::from_value(text).unwrap();
        let sentence = check(&policy).unwrap_err().to_string();
        let expected = format!("rules[1].{expected}");
        assert!(sentence.starts_with(&expected), "{sentence}\n{expected}");
    }
    let names: Vec<String> = (0..9).map(|at| format!("{{n{at}}}")).collect();
    let many = json!({"from": {"principals": [format!("spiffe://shop/{}", names.join("/"))]},
        "to": {"paths": [format!("/{}", names.join("/"))]}});
    let policy: IdentityPolicy =
        serde_json::from_value(json!({"action": "allow", "rules": [many]})).unwrap();
    let sentence = check(&policy).unwrap_err().to_string();
    assert!(sentence.starts_with("rules[0].from.principals: has more than 8 names"), "{sentence}");
}
