//! The rule language by tables: path and host bypasses, absent inputs, modes, selectors, broken texts, names.

mod clauses;
mod modes;
mod rows;
mod tokens;

use serde_json::{Value, json};

use super::{Action, Clause, Outcome, Policy, Reason, RouteFacts, check};
use crate::identity::SpiffeId;
use crate::model::{Id, IdentityPolicy, Labels};

/// Policies by name, for the workload `spiffe://shop/billing`.
struct World {
    texts: Vec<(Id, IdentityPolicy)>,
}

fn id(text: &str) -> SpiffeId {
    text.parse().unwrap()
}

impl World {
    fn new(policies: &[(&str, Value)]) -> Self {
        let parse = |(name, text): &(&str, Value)| {
            (Id::parse(name).unwrap(), serde_json::from_value(text.clone()).unwrap())
        };
        Self { texts: policies.iter().map(parse).collect() }
    }

    fn policy(&self) -> Policy {
        let texts = self.texts.iter().map(|(id, text)| (id, 7, text));
        Policy::compile(texts, &id("spiffe://shop/billing")).0
    }

    /// The outcome, as `allow billing-read 1` or `deny no_rule`.
    fn decides(&self, caller: &str, action: &Action<'_>) -> String {
        let policy = self.policy();
        let caller = (!caller.is_empty()).then(|| id(caller));
        let decision = policy.decide(&policy.standing_of(caller.as_ref()), action);
        said(&policy, decision.outcome)
    }
}

fn said(policy: &Policy, outcome: Outcome) -> String {
    let mut text = match outcome.reason() {
        None => "allow".to_string(),
        Some(reason) => format!("deny {reason}"),
    };
    if let Some(name) = outcome.rule().and_then(|rule| policy.rule(rule)) {
        text += &format!(" {} {}", name.policy, name.rule);
    }
    text
}

const WEB: &str = "spiffe://shop/web";

fn get(path: &str) -> Action<'_> {
    Action::http(15006, "GET", "billing", path)
}

fn to(host: &str) -> Action<'_> {
    Action::http(15006, "GET", host, "/")
}

#[test]
fn a_denied_path_stays_denied_however_it_is_written() {
    let world = World::new(&[
        ("all", json!({"action": "allow", "rules": [{}]})),
        ("no-admin", json!({"action": "deny", "rules": [{"to": {"paths": ["/admin/**"]}}]})),
    ]);
    // Rows 45 to 48 and 50 of the adversarial checklist.
    for path in [
        "/admin",
        "/admin/",
        "/admin/users",
        "//admin",
        "///admin",
        "/./admin",
        "/x/../admin",
        "/x/y/../../admin",
        "/../admin",
        "/x//../admin",
        "/%2fadmin",
        "/%2Fadmin",
        "/%5cadmin",
        "/\\admin",
        "/x/%2e%2e/admin",
        "/x/%2E./admin",
        "/x%2f%2e%2e%2fadmin",
        "/%252fadmin",
        "/x/%252e%252e/admin",
        "/x/%252e%252e%252fadmin",
        "/%61dmin",
        "/%2561dmin",
        "/admin;x=1",
        "/admin;x=1/users",
        "/admin%3bx",
        "/admin%253bx",
        "/;/admin",
        "/x;/../admin",
        "/x/..;/admin",
        "/admin%23x",
        "/admin%3fx",
        "/admin#x",
        "/admin%00",
        "/%c0%afadmin",
        "/%u002fadmin",
        "/%zzadmin",
        "/%25252561dmin",
        "admin",
        "*",
        "",
    ] {
        let said = world.decides(WEB, &get(path));
        assert!(
            said == "deny denied_by_rule no-admin 1" || said == "deny ambiguous_path no-admin 1",
            "{path:?}: {said}"
        );
    }
    // Row 49: paths differ by case. The others are no way to it.
    for path in
        ["/Admin", "/administrator", "/x/admin", "/x/%2e/admin", "/", "/a%20dmin", "/..admin"]
    {
        assert_eq!(world.decides(WEB, &get(path)), "allow all 1", "{path:?}");
    }
}

#[test]
fn an_allowed_path_is_allowed_only_when_every_reading_is() {
    let world = World::new(&[(
        "read",
        json!({"action": "allow", "rules": [{"to": {"paths": ["/public/**", "/docs/{page}"]}}]}),
    )]);
    for (path, expected) in [
        ("/public/a", "allow read 1"),
        ("/public", "allow read 1"),
        ("/public//a", "allow read 1"),
        ("/public/a%2fb", "allow read 1"),
        ("/public/./a;v=1", "allow read 1"),
        ("/docs/caf%C3%A9", "allow read 1"),
        ("/docs/a%20b", "allow read 1"),
        // Its readings fall under different templates, but each under one.
        ("/public/../docs/a", "allow read 1"),
        ("/docs/a/../b", "deny ambiguous_path read 1"),
        ("/docs/a%2fb", "deny ambiguous_path read 1"),
        ("/public/../secret", "deny ambiguous_path read 1"),
        ("/public/%2e%2e/secret", "deny ambiguous_path read 1"),
        ("/public/%252e%252e/secret", "deny ambiguous_path read 1"),
        ("/public/..;/secret", "deny ambiguous_path read 1"),
        ("/public/..\\..\\secret", "deny ambiguous_path read 1"),
        ("/public/%zz", "deny ambiguous_path read 1"),
        ("/public/%c0%ae%c0%ae/secret", "deny ambiguous_path read 1"),
        ("/secret", "deny no_rule"),
        ("/docs", "deny no_rule"),
        ("/docs/", "deny no_rule"),
        ("/docs/a/", "deny no_rule"),
        ("/secret/%2e", "deny no_rule"),
    ] {
        assert_eq!(world.decides(WEB, &get(path)), expected, "{path}");
    }
}

#[test]
fn a_malformed_path_matters_only_where_a_rule_looks_at_paths() {
    let world = World::new(&[("all", json!({"action": "allow", "rules": [{}]}))]);
    assert_eq!(world.decides(WEB, &get("/%zz")), "allow all 1");
}

#[test]
fn hosts_are_compared_by_name() {
    // Rows 51 and 52.
    let world = World::new(&[
        ("all", json!({"action": "allow", "rules": [{}]})),
        (
            "no-admin",
            json!({"action": "deny", "rules": [{"to": {"hosts": ["admin.example.com", "*.internal"]}}]}),
        ),
    ]);
    for host in [
        "admin.example.com",
        "admin.example.com.",
        "admin.example.com:443",
        "admin.example.com.:443",
        "ADMIN.example.COM",
        "a.internal",
        "a.b.internal:80",
        // No host name: nobody knows what it becomes behind us.
        "a..internal",
        ".internal",
        "admin.example.com@evil",
        "",
    ] {
        assert_eq!(world.decides(WEB, &to(host)), "deny denied_by_rule no-admin 1", "{host:?}");
    }
    for host in ["internal", "example.com", "xadmin.example.com", "admin.example.com.evil"] {
        assert_eq!(world.decides(WEB, &to(host)), "allow all 1", "{host:?}");
    }
    let world = World::new(&[(
        "wild",
        json!({"action": "allow", "rules": [{"to": {"hosts": ["*.example.com"]}}]}),
    )]);
    assert_eq!(world.decides(WEB, &to("a.example.com")), "allow wild 1");
    for host in [".example.com", "a..example.com", "example.com", "a.example.com@x", ""] {
        assert_eq!(world.decides(WEB, &to(host)), "deny no_rule", "{host:?}");
    }
}

#[test]
fn methods_are_exact_to_allow_and_without_case_to_refuse() {
    let ask = |world: &World, method: &'static str| {
        let action = Action::http(1, method, "billing", "/");
        world.decides(WEB, &action).split(' ').next().unwrap().to_string()
    };
    let rule = |action: &str, field: &str| {
        let rest = ("all", json!({"action": "allow", "rules": [{}]}));
        let policy = json!({"action": action, "rules": [{"to": {field: ["DELETE"]}}]});
        World::new(&if action == "deny" { vec![rest, ("p", policy)] } else { vec![("p", policy)] })
    };
    for (action, field, exact, folded, other) in [
        ("allow", "methods", "allow", "deny", "deny"),
        ("allow", "not_methods", "deny", "deny", "allow"),
        ("deny", "methods", "deny", "deny", "allow"),
        ("deny", "not_methods", "allow", "deny", "deny"),
    ] {
        let world = rule(action, field);
        let found = [ask(&world, "DELETE"), ask(&world, "delete"), ask(&world, "GET")];
        assert_eq!(found, [exact, folded, other], "{action} {field}");
    }
}

#[test]
fn what_is_absent_never_allows_and_always_refuses() {
    let connect = Action::connection(15006);
    let clauses = [
        json!({"from": {"principals": ["spiffe://shop/evil"]}}),
        json!({"from": {"trust_domains": ["shop"]}}),
        json!({"from": {"not_principals": ["spiffe://shop/evil"]}}),
    ];
    for clause in clauses {
        let allow = World::new(&[("p", json!({"action": "allow", "rules": [clause]}))]);
        assert_eq!(allow.decides("", &get("/")), "deny no_identity", "{clause}");
        let deny = World::new(&[
            ("all", json!({"action": "allow", "rules": [{}]})),
            ("p", json!({"action": "deny", "rules": [clause]})),
        ]);
        assert_eq!(deny.decides("", &get("/")), "deny no_identity p 1", "{clause}");
    }
    for clause in [
        json!({"to": {"hosts": ["a"]}}),
        json!({"to": {"methods": ["GET"]}}),
        json!({"to": {"not_methods": ["GET"]}}),
        json!({"to": {"paths": ["/a"]}}),
        json!({"to": {"not_paths": ["/a"]}}),
    ] {
        let allow = World::new(&[("p", json!({"action": "allow", "rules": [clause]}))]);
        assert_eq!(allow.decides(WEB, &connect), "deny no_rule", "{clause}");
        let deny = World::new(&[
            ("all", json!({"action": "allow", "rules": [{}]})),
            ("p", json!({"action": "deny", "rules": [clause]})),
        ]);
        assert_eq!(deny.decides(WEB, &connect), "deny denied_by_rule p 1", "{clause}");
    }
    let ports =
        World::new(&[("p", json!({"action": "allow", "rules": [{"to": {"ports": [15006]}}]}))]);
    assert_eq!(ports.decides(WEB, &connect), "allow p 1");
    assert_eq!(ports.decides(WEB, &Action::connection(1)), "deny no_rule");
}

#[test]
fn nothing_is_allowed_by_default() {
    let world = World::new(&[]);
    assert_eq!(world.decides(WEB, &get("/")), "deny no_rule");
    assert_eq!(world.decides("", &get("/")), "deny no_identity");
    let policy = world.policy();
    assert!(policy.standing_of(Some(&id(WEB))).is_hopeless());
    // Policies of other workloads neither help nor harm.
    let world = World::new(&[
        (
            "a",
            json!({"action": "allow", "rules": [{}], "selector": {"workloads": ["spiffe://shop/cart"]}}),
        ),
        (
            "b",
            json!({"action": "allow", "rules": [{}], "selector": {"workloads": ["spiffe://shop/bill*ing"]}}),
        ),
    ]);
    assert_eq!(world.decides(WEB, &get("/")), "deny broken_policy b (the whole policy)");
}

#[test]
fn a_principal_is_never_a_string_prefix() {
    let world = World::new(&[(
        "p",
        json!({"action": "allow", "rules": [{"from": {
            "principals": ["spiffe://shop/ns/*/sa/web", "spiffe://shop/web"],
            "not_principals": ["spiffe://shop/ns/test/**"]}}]}),
    )]);
    for (caller, allowed) in [
        ("spiffe://shop/web", true),
        ("spiffe://shop/ns/prod/sa/web", true),
        ("spiffe://shop/ns/test/sa/web", false),
        ("spiffe://shop.evil/web", false),
        ("spiffe://shop/web/x", false),
        ("spiffe://shop/webs", false),
        ("spiffe://shop", false),
    ] {
        assert_eq!(world.decides(caller, &get("/")).starts_with("allow"), allowed, "{caller}");
    }
}

#[test]
fn selectors_ask_the_route() {
    let labels = |pairs: &[(&str, &str)]| -> Labels {
        pairs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect()
    };
    let (one, two) = (Id::parse("1").unwrap(), Id::parse("2").unwrap());
    let (team, none) = (labels(&[("team", "pay"), ("x", "y")]), labels(&[]));
    let world = World::new(&[
        (
            "by-label",
            json!({"action": "allow", "rules": [{}], "selector": {"labels": {"team": "pay"}}}),
        ),
        ("by-route", json!({"action": "allow", "rules": [{}], "selector": {"routes": ["2", 3]}})),
        (
            "no",
            json!({"action": "deny", "selector": {"routes": ["2"], "labels": {"team": "pay"}}, "rules": [{}]}),
        ),
    ]);
    let ask = |id, labels| {
        let route = Some(RouteFacts { id, labels });
        let action = Action::http(1, "GET", "a", "/").on_route(route);
        world.decides(WEB, &action)
    };
    assert_eq!(ask(&one, &team), "allow by-label 1");
    assert_eq!(ask(&one, &none), "deny no_rule");
    assert_eq!(ask(&two, &none), "allow by-route 1");
    assert_eq!(ask(&two, &team), "deny denied_by_rule no 1");
    // No route matched: these policies are not about the request.
    assert_eq!(world.decides(WEB, &get("/")), "deny no_rule");
    // Layer 4 does not know the route: what might refuse refuses.
    assert_eq!(world.decides(WEB, &Action::connection(1)), "deny denied_by_rule no 1");
}

#[test]
fn a_public_route_is_governed_only_by_policies_that_select_it() {
    let (one, two, none) = (Id::parse("1").unwrap(), Id::parse("2").unwrap(), Labels::new());
    let world = World::new(&[
        (
            "p",
            json!({"action": "allow", "selector": {"routes": ["1"]},
            "rules": [{"to": {"methods": ["GET"]}}]}),
        ),
        (
            "q",
            json!({"action": "deny", "mode": "observe", "selector": {"routes": ["2"]}, "rules": [{}]}),
        ),
    ]);
    let policy = world.policy();
    let nobody = policy.standing_of(None);
    let ask = |id: Option<&Id>, method| {
        let route = id.map(|id| RouteFacts { id, labels: &none });
        let action = Action::http(1, method, "a", "/").on_route(route);
        policy.decide_public(&nobody, &action)
    };
    assert!(policy.governs(RouteFacts { id: &one, labels: &none }));
    assert!(!policy.governs(RouteFacts { id: &two, labels: &none }));
    assert_eq!(said(&policy, ask(Some(&one), "GET").outcome), "allow p 1");
    assert_eq!(said(&policy, ask(Some(&one), "PUT").outcome), "deny no_rule");
    let watched = ask(Some(&two), "GET");
    assert_eq!(watched.outcome, Outcome::Allow(None));
    assert_eq!(said(&policy, watched.would_be.unwrap()), "deny denied_by_rule q 1");
    assert_eq!(ask(None, "GET").outcome, Outcome::Allow(None));
    // An empty selector selects everything.
    let all = World::new(&[(
        "all",
        json!({"action": "allow", "rules": [{"from": {"trust_domains": ["shop"]}}]}),
    )]);
    assert!(all.policy().governs(RouteFacts { id: &one, labels: &none }));
}

#[test]
fn an_observed_policy_decides_nothing_and_tells_what_it_would_have_done() {
    let cases = [
        // enforced, observed, outcome, would be
        (json!([]), "allow", "deny no_rule", Some("allow watched 1")),
        (json!([]), "deny", "deny no_rule", None),
        (json!([{"action": "allow", "rules": [{}]}]), "allow", "allow e0 1", None),
        (
            json!([{"action": "allow", "rules": [{}]}]),
            "deny",
            "allow e0 1",
            Some("deny denied_by_rule watched 1"),
        ),
        (json!([{"action": "deny", "rules": [{}]}]), "allow", "deny denied_by_rule e0 1", None),
    ];
    for (enforced, observed, outcome, would_be) in cases {
        let watched = json!({"action": observed, "mode": "observe", "rules": [{}]});
        let mut all = vec![("watched", watched)];
        all.extend(enforced.as_array().unwrap().iter().map(|text| ("e0", text.clone())));
        let policy = World::new(&all).policy();
        let decision = policy.decide(&policy.standing_of(Some(&id(WEB))), &get("/"));
        assert_eq!(said(&policy, decision.outcome), outcome, "{enforced} {observed}");
        let found = decision.would_be.map(|outcome| said(&policy, outcome));
        assert_eq!(found.as_deref(), would_be, "{enforced} {observed}");
    }
}

#[test]
fn a_broken_policy_holds_against_everybody_it_may_select() {
    let broken = |action: &str| json!({"action": action, "rules": [{"to": {"paths": ["admin"]}}]});
    let all = ("all", json!({"action": "allow", "rules": [{}]}));
    let world = World::new(&[all.clone(), ("bad", broken("deny"))]);
    assert_eq!(world.decides(WEB, &get("/")), "deny broken_policy bad (the whole policy)");
    // A broken allow policy admits nobody, and takes nothing from what others admit.
    let world = World::new(&[all, ("bad", broken("allow"))]);
    assert_eq!(world.decides(WEB, &get("/")), "allow all 1");
    let world = World::new(&[("bad", broken("allow"))]);
    assert_eq!(world.decides(WEB, &get("/")), "deny broken_policy bad (the whole policy)");
    let policy = world.policy();
    assert!(policy.standing_of(Some(&id(WEB))).is_hopeless());
    // Another workload's broken policy is named and harms nobody here.
    let mut elsewhere = broken("deny");
    elsewhere["selector"] = json!({"workloads": ["spiffe://shop/cart"]});
    let world =
        World::new(&[("bad", elsewhere), ("ok", json!({"action": "allow", "rules": [{}]}))]);
    assert_eq!(world.decides(WEB, &get("/")), "allow ok 1");
    let texts = world.texts.iter().map(|(id, text)| (id, 7, text));
    let (_, rejected) = Policy::compile(texts, &id("spiffe://shop/billing"));
    assert_eq!(rejected.len(), 1);
    assert_eq!((rejected[0].id.as_str(), rejected[0].revision), ("bad", 7));
}

#[test]
fn a_text_that_cannot_be_meant_is_refused_by_a_sentence_that_names_the_field() {
    for (text, expected) in [
        (json!({"rules": []}), "rules: at least one rule is expected"),
        (
            json!({"rules": [{"from": {"principals": ["spiffe://shop/web-*"]}}]}),
            "rules[0].from.principals[0]: \"spiffe://shop/web-*\" the path may have only",
        ),
        (
            json!({"rules": [{}, {"from": {"trust_domains": ["ok", "Shop"]}}]}),
            "rules[1].from.trust_domains[1]: \"Shop\" the trust domain may have only",
        ),
        (
            json!({"rules": [{"from": {"not_principals": ["x"]}}]}),
            "rules[0].from.not_principals[0]: \"x\" does not start with spiffe://",
        ),
        (
            json!({"rules": [{"to": {"ports": [80, 0]}}]}),
            "rules[0].to.ports[1]: a port is 1 to 65535",
        ),
        (
            json!({"rules": [{"to": {"hosts": ["a:80"]}}]}),
            "rules[0].to.hosts[0]: \"a:80\" has a port",
        ),
        (
            json!({"rules": [{"to": {"methods": ["get"]}}]}),
            "rules[0].to.methods[0]: methods are case-sensitive: write GET",
        ),
        (
            json!({"rules": [{"to": {"not_methods": ["G T"]}}]}),
            "rules[0].to.not_methods[0]: \"G T\" is no method",
        ),
        (json!({"rules": [{"to": {"paths": ["/a*"]}}]}), "rules[0].to.paths[0]: \"/a*\": a star"),
        (
            json!({"rules": [{"to": {"not_paths": ["a"]}}]}),
            "rules[0].to.not_paths[0]: \"a\": a path template starts",
        ),
        (
            json!({"rules": [{"name": "1"}, {"name": "1"}]}),
            "rules[1].name: \"1\" names another rule",
        ),
        (json!({"rules": [{"name": ""}]}), "rules[0].name: has 1 to 256 characters"),
        (json!({"rules": [{"name": "a\u{1b}[2J"}]}), "rules[0].name: has no control characters"),
        (
            json!({"rules": [{}], "selector": {"workloads": ["shop"]}}),
            "selector.workloads[0]: \"shop\" does not start with spiffe://",
        ),
    ] {
        let mut text = text;
        text["action"] = "allow".into();
        let policy: IdentityPolicy = serde_json::from_value(text).unwrap();
        let sentence = check(&policy).unwrap_err().to_string();
        assert!(sentence.starts_with(expected), "{sentence}\n{expected}");
    }
}

#[test]
fn a_refusal_tells_the_nearest_rule_and_what_would_have_to_change() {
    let world = World::new(&[
        (
            "billing-read",
            json!({"action": "allow", "rules": [
                {"name": "read", "from": {"principals": ["spiffe://shop/web"]},
                 "to": {"methods": ["GET"], "paths": ["/invoices/{id}"]}},
                {"name": "clerk", "from": {"principals": ["spiffe://shop/clerk"]}}]}),
        ),
        ("watched", json!({"action": "allow", "mode": "observe", "rules": [{}]})),
    ]);
    let policy = world.policy();
    let delete = Action::http(1, "DELETE", "billing", "/invoices/7");
    let web = policy.standing_of(Some(&id(WEB)));
    let near = policy.nearest(&web, &delete).unwrap();
    let name = policy.rule(near.rule).unwrap();
    assert_eq!(
        (name.policy.as_str(), name.rule, near.clause),
        ("billing-read", "read", Clause::Methods)
    );

    let stranger = policy.standing_of(Some(&id("spiffe://shop/other")));
    let near = policy.nearest(&stranger, &delete).unwrap();
    assert_eq!((policy.rule(near.rule).unwrap().rule, near.clause), ("clerk", Clause::Principals));

    let explained = policy.explain(Some(&id(WEB)), &delete);
    assert_eq!(explained.decision.outcome, Outcome::Deny(Reason::NoRule, None));
    let nearest = explained.nearest.unwrap();
    let failure = nearest.failed.unwrap();
    assert_eq!((failure.wanted, failure.found.as_str()), (vec!["GET".to_string()], "DELETE"));
    assert_eq!(explained.tried.len(), 3);
    assert_eq!(explained.tried[2].failed, None);
    assert_eq!(said(&policy, explained.decision.would_be.unwrap()), "allow watched 1");
}

#[test]
fn a_standing_of_an_older_policy_still_decides_by_the_new_one() {
    let open = World::new(&[("all", json!({"action": "allow", "rules": [{}]}))]).policy();
    let closed = World::new(&[]).policy();
    let standing = open.standing_of(Some(&id(WEB)));
    assert!(standing.is_of(&open) && !standing.is_of(&closed));
    assert!(open.decide(&standing, &get("/")).is_allowed());
    assert!(!closed.decide(&standing, &get("/")).is_allowed());
    assert!(open.decide(&closed.standing_of(Some(&id(WEB))), &get("/")).is_allowed());
}

#[test]
fn many_rules_are_found_by_caller_route_and_path() {
    let rules: Vec<Value> = (0..10_000)
        .map(|at| json!({"from": {"principals": [format!("spiffe://shop/w{at}")]}, "to": {"paths": [format!("/p{at}")]}}))
        .collect();
    let paths: Vec<Value> =
        (0..1_000).map(|at| json!({"to": {"paths": [format!("/q{at}/**")]}})).collect();
    let world = World::new(&[
        ("a", json!({"action": "allow", "rules": rules})),
        ("b", json!({"action": "allow", "rules": paths})),
    ]);
    let policy = world.policy();
    let standing = policy.standing_of(Some(&id("spiffe://shop/w77")));
    for (path, expected) in [
        ("/p77", "allow a 78"),
        ("/p78", "deny no_rule"),
        ("/q999/x/y", "allow b 1000"),
        ("//q99/x/y", "deny ambiguous_path b 100"),
        ("/", "deny no_rule"),
    ] {
        let decision = policy.decide(&standing, &get(path));
        assert_eq!(said(&policy, decision.outcome), expected, "{path}");
    }
}
