//! Answers against brute force: whoever an answer names may do it, and nobody else, as the engine decides for each single ID.

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::callers::{ANYBODY, NOBODY};
use super::shape::{Name, Shape};
use super::what_can::About;
use super::who_can::Candidate;
use super::{Allowed, Policies, Target, TargetRoute};
use crate::identity::SpiffeId;
use crate::model::{
    From, Id, IdentityPolicy, Labels, Mode, PolicyAction, PolicyRule, PolicySelector, TimeWindow,
    To, ValueMatch, When,
};

pub(super) const PATTERNS: [&str; 14] = [
    "spiffe://a/x",
    "spiffe://a/x/y",
    "spiffe://a/*",
    "spiffe://a/**",
    "spiffe://a/x/**",
    "spiffe://a/*/y",
    "spiffe://a/*/*/**",
    "spiffe://a/ns/*/sa/*",
    "spiffe://a/ns/web/sa/cart",
    "spiffe://a/ns/web/**",
    "spiffe://b/x",
    "spiffe://b/**",
    "spiffe://b/*/y",
    "spiffe://c",
];

/// Every ID that can matter: all short ones over the segments that patterns name and one that they do not.
pub(super) fn universe() -> Vec<SpiffeId> {
    let words: [&[&str]; 4] = [&["x", "ns", "z"], &["y", "web", "z"], &["sa", "y"], &["cart", "z"]];
    let mut paths = vec![String::new()];
    let mut layer = paths.clone();
    for words in words {
        let longer =
            |path: &String| words.iter().map(|word| format!("{path}/{word}")).collect::<Vec<_>>();
        layer = layer.iter().flat_map(longer).collect();
        paths.extend(layer.iter().cloned());
    }
    let domains = ["a", "b", "c", "d"];
    let ids =
        domains.iter().flat_map(|td| paths.iter().map(move |path| format!("spiffe://{td}{path}")));
    ids.map(|text| text.parse().unwrap()).collect()
}

/// What a text of an answer means.
pub(super) fn means(text: &str, caller: Option<&SpiffeId>) -> bool {
    let Some(id) = caller else { return matches!(text, ANYBODY | NOBODY) };
    match text {
        ANYBODY | "anybody with an identity" => return true,
        NOBODY => return false,
        _ => {}
    }
    if let Some(domain) = text.strip_prefix("anybody of ") {
        return id.trust_domain_name() == domain;
    }
    let (closed, open) = match text.strip_suffix("/**") {
        Some(closed) => (closed, true),
        None => (text, false),
    };
    let wanted: Vec<&str> = closed.split('/').collect();
    let found: Vec<&str> = id.as_str().split('/').collect();
    let fits = |wanted: &str, found: &str| match wanted.strip_prefix('[') {
        Some(folded) => folded.strip_suffix(" in any case]").unwrap().eq_ignore_ascii_case(found),
        None => match wanted.split_once('*') {
            Some((prefix, suffix)) => found.starts_with(prefix) && found.ends_with(suffix),
            None => wanted == found,
        },
    };
    wanted.len() <= found.len()
        && (found.len() > wanted.len()) == open
        && wanted.iter().zip(&found).all(|(wanted, found)| fits(wanted, found))
}

fn among(list: &[String], caller: Option<&SpiffeId>) -> bool {
    list.iter().any(|text| means(text, caller))
}

/// What an answer without other conditions than a canary's says of a caller.
fn says(answer: &Allowed, lot: u8, caller: Option<&SpiffeId>) -> bool {
    let holds = |conditions: &[String]| {
        conditions.iter().all(|text| {
            assert_eq!(text, "canary: for 30 % of connections");
            lot < 30
        })
    };
    answer.grants.iter().any(|grant| {
        let denied = grant.except.iter().any(|at| {
            let denial = &answer.denials[*at];
            holds(&denial.conditions) && among(&denial.who, caller) && !among(&denial.but, caller)
        });
        holds(&grant.conditions)
            && among(&grant.who, caller)
            && !among(&grant.but, caller)
            && !denied
    })
}

fn some_of<T: Clone + std::fmt::Debug + 'static>(
    from: Vec<T>,
    most: usize,
) -> impl Strategy<Value = Vec<T>> {
    prop_oneof![2 => Just(Vec::new()), 3 => proptest::collection::vec(proptest::sample::select(from), 1..=most)]
}

fn texts(list: &[&str], most: usize) -> impl Strategy<Value = Vec<String>> + use<> {
    some_of(list.iter().map(|text| (*text).to_owned()).collect(), most)
}

/// One time in five something, else nothing.
fn seldom<T: Clone + std::fmt::Debug + 'static>(of: Vec<T>, most: usize) -> BoxedStrategy<Vec<T>> {
    prop_oneof![4 => Just(Vec::new()), 1 => proptest::collection::vec(proptest::sample::select(of), 1..=most)].boxed()
}

fn rarely(list: &[&str], most: usize) -> BoxedStrategy<Vec<String>> {
    seldom(list.iter().map(|text| (*text).to_owned()).collect(), most)
}

fn entry(name: &str) -> impl Strategy<Value = ValueMatch> + use<> {
    let name = name.to_owned();
    let present = prop_oneof![3 => Just(None), 1 => any::<bool>().prop_map(Some)];
    let values = (rarely(&["one", "t*", "*e"], 2), rarely(&["one", "two"], 1), present);
    values.prop_map(move |(values, not_values, present)| {
        // An entry that asks nothing is refused.
        let present =
            present.or(if values.is_empty() && not_values.is_empty() { Some(true) } else { None });
        let values = if present == Some(false) { Vec::new() } else { values };
        let not_values = if present == Some(false) { Vec::new() } else { not_values };
        ValueMatch { name: name.clone(), values, not_values, present }
    })
}

fn entries(name: &str) -> BoxedStrategy<Vec<ValueMatch>> {
    prop_oneof![6 => Just(Vec::new()), 1 => proptest::collection::vec(entry(name), 1..=2)].boxed()
}

/// Who calls. `captures`: with names in braces.
pub(super) fn from() -> impl Strategy<Value = Option<From>> {
    let mut principals = PATTERNS.to_vec();
    principals.extend(["spiffe://a/ns/{t}/sa/*", "spiffe://a/{t}/y", "spiffe://b/{t}"]);
    let callers = (texts(&principals, 3), texts(&PATTERNS, 2), texts(&["a", "b", "d"], 2));
    let kubernetes = (
        rarely(&["b", "c"], 1),
        (rarely(&["web", "w*", "*"], 2), rarely(&["*b", "z"], 1)),
        (rarely(&["web/cart", "z/z"], 2), rarely(&["web/cart"], 1)),
    );
    let blocks = ["10.0.0.0/8", "10.0.0.1", "192.0.2.0/24"];
    let circumstances = (rarely(&blocks, 1), rarely(&blocks, 1), rarely(&blocks, 1), entries("c"));
    let from = (callers, kubernetes, circumstances).prop_map(|(callers, kubernetes, besides)| {
        let (principals, not_principals, trust_domains) = callers;
        let (not_trust_domains, (namespaces, not_namespaces), accounts) = kubernetes;
        let (service_accounts, not_service_accounts) = accounts;
        let (ip_blocks, not_ip_blocks, remote_ip_blocks, claims) = besides;
        From {
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
            not_remote_ip_blocks: Vec::new(),
            claims,
        }
    });
    proptest::option::weighted(0.8, from)
}

pub(super) const PATHS: [&str; 12] = [
    "/", "/a", "/a/", "/a/**", "/a/{id}", "/a/b", "/*/b", "/b/**", "/**", "/{t}", "/{t}/b",
    "/p.S/M",
];

pub(super) fn to() -> impl Strategy<Value = Option<To>> {
    let methods = ["GET", "PUT", "QUX", "POST"];
    let hosts = ["h.test", "*.test", "k", "{t}.test"];
    let parts = (
        (texts(&methods, 2), rarely(&methods, 1)),
        (texts(&PATHS, 2), rarely(&PATHS, 1)),
        (rarely(&hosts, 2), rarely(&["h.test", "*.test", "{t}.test"], 1)),
        (seldom(vec![80_u16, 443], 1), seldom(vec![80_u16], 1)),
        (rarely(&["p.S/M", "p.S/*"], 1), rarely(&["p.S/M"], 1)),
        (rarely(&["websocket", "*"], 1), proptest::bool::weighted(0.2)),
    );
    let to = parts.prop_map(|(methods, paths, hosts, ports, grpc, (upgrades, ignore_case))| To {
        methods: methods.0,
        not_methods: methods.1,
        paths: paths.0,
        not_paths: paths.1,
        hosts: hosts.0,
        not_hosts: hosts.1,
        ports: ports.0,
        not_ports: ports.1,
        grpc: grpc.0,
        not_grpc: grpc.1,
        upgrades,
        ignore_case,
    });
    proptest::option::weighted(0.7, to)
}

fn when() -> impl Strategy<Value = Option<When>> {
    let span = |not_before: &str| TimeWindow {
        not_before: Some(not_before.into()),
        ..TimeWindow::default()
    };
    let spans = vec![span("2020-01-01T00:00:00Z"), span("2100-01-01T00:00:00Z")];
    let parts = (entries("x-h"), entries("q"), seldom(spans.clone(), 1), seldom(spans, 1));
    let when = parts.prop_map(|(headers, query, times, not_times)| When {
        headers,
        query,
        times,
        not_times,
        cel: None,
    });
    proptest::option::weighted(0.2, when)
}

fn mode() -> impl Strategy<Value = Mode> {
    prop_oneof![12 => Just(Mode::Enforce), 1 => Just(Mode::Observe), 1 => Just(Mode::Canary(30))]
}

pub(super) fn policy() -> impl Strategy<Value = IdentityPolicy> {
    let rule = (proptest::option::weighted(0.1, mode()), from(), to(), when())
        .prop_map(|(mode, from, to, when)| PolicyRule { name: None, mode, from, to, when });
    let rules = proptest::collection::vec(rule, 1..4);
    let workloads = texts(&["spiffe://a/me", "spiffe://a/*", "spiffe://b/me"], 1);
    let routes = seldom(vec![Id::from(1), Id::from(2)], 1);
    let labels = prop_oneof![9 => Just(Labels::new()), 1 => Just(Labels::from([("l".to_owned(), "v".to_owned())]))];
    let selector = (workloads, routes, labels)
        .prop_map(|(workloads, routes, labels)| PolicySelector { workloads, routes, labels });
    let allow = prop_oneof![3 => Just(PolicyAction::Allow), 2 => Just(PolicyAction::Deny)];
    (rules, selector, allow, mode()).prop_map(|(rules, selector, action, mode)| IdentityPolicy {
        id: None,
        name: None,
        desc: None,
        labels: Default::default(),
        selector,
        action,
        mode,
        rules,
        signature: None,
        create_time: None,
        update_time: None,
    })
}

pub(super) fn policies(most: usize) -> impl Strategy<Value = Policies> {
    proptest::collection::vec(policy(), 1..=most).prop_map(|list| {
        let named = list.into_iter().enumerate();
        Policies::new(named.map(|(at, policy)| (Id::parse(&format!("p{at}")).unwrap(), 1, policy)))
    })
}

/// A target of which everything is known.
pub(super) fn target(paths: &[&'static str]) -> impl Strategy<Value = Target> + Clone + use<> {
    let paths = paths.to_vec();
    let pairs = |name: &str| {
        let pair = |value: &str| (name.to_owned(), value.to_owned());
        vec![vec![], vec![pair("one")], vec![pair("two")], vec![pair("one"), pair("three")]]
    };
    let mut headers = pairs("x-h");
    headers.push(vec![("content-type".to_owned(), "application/grpc".to_owned())]);
    let claims = ["{}", r#"{"c":"one"}"#, r#"{"c":["one","three"]}"#];
    let claims: Vec<serde_json::Map<String, serde_json::Value>> =
        claims.iter().map(|text| serde_json::from_str(text).unwrap()).collect();
    let route = |id: u64, label: &str| TargetRoute {
        id: Id::from(id),
        labels: Labels::from([("l".to_owned(), label.to_owned())]),
    };
    let routes = vec![None, Some(route(1, "v")), Some(route(3, "v")), Some(route(2, "w"))];
    let http = (
        proptest::sample::select(vec!["GET", "PUT", "get", "QUX", "POST"]),
        proptest::sample::select(paths),
        proptest::sample::select(vec![
            "h.test",
            "H.test:80",
            "k",
            "a..b",
            "other",
            "web.test",
            "X.test",
        ]),
        proptest::sample::select(vec![80_u16, 443, 1]),
        (
            proptest::sample::select(headers),
            proptest::sample::select(vec!["", "q=one", "q=two&q=one", "q=%zz"]),
        ),
        (proptest::sample::select(claims), proptest::sample::select(routes)),
        proptest::sample::select(vec![None, None, None, Some("websocket".to_owned())]),
        (
            proptest::sample::select(vec!["10.0.0.1", "192.0.2.7"]),
            proptest::sample::select(vec![0_u8, 29, 30, 99]),
        ),
    );
    let full =
        http.prop_map(|(method, path, host, port, fields, found, upgrade, (source, lot))| Target {
            connection: false,
            method: Some(method.into()),
            path: Some(path.into()),
            host: Some(host.into()),
            port: Some(port),
            query: Some(fields.1.into()),
            headers: Some(fields.0),
            claims: Some(found.0),
            no_route: found.1.is_none(),
            route: found.1,
            source: Some(source.parse().unwrap()),
            remote: None,
            unix_seconds: Some(1_790_000_000),
            upgrade,
            lot: Some(lot),
        });
    prop_oneof![
        9 => full.clone(),
        1 => full.prop_map(|target| Target {
            connection: true,
            port: target.port,
            host: target.host,
            source: target.source,
            unix_seconds: target.unix_seconds,
            lot: target.lot,
            ..Target::default()
        }),
    ]
}

pub(super) const ODD: [&str; 16] = [
    "/",
    "/a",
    "/a/",
    "/a/b",
    "/a/b/",
    "/a//b",
    "/b/../a/b",
    "/c/b",
    "/b/%2e",
    "/%zz",
    "/A",
    "/x",
    "/web/b",
    "/WEB/b",
    "/p.S/M",
    "/p.S/N",
];

pub(super) fn run<T: std::fmt::Debug>(
    cases: u32,
    strategy: impl Strategy<Value = T>,
    test: impl Fn(T) -> Result<(), TestCaseError>,
) {
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    TestRunner::new(config).run(&strategy, test).unwrap();
}

/// The same decision, from the answer's parts: an allow rule that holds, and no deny rule.
fn decides(
    candidates: &[Candidate<'_>],
    me: &SpiffeId,
    caller: Option<&SpiffeId>,
    target: &Target,
) -> bool {
    let holds = |candidate: &&Candidate<'_>| {
        let (selector, open) = &candidate.open;
        // Who calls is said by the callers.
        let from = open.from.clone().map(|from| From {
            ip_blocks: from.ip_blocks,
            not_ip_blocks: from.not_ip_blocks,
            remote_ip_blocks: from.remote_ip_blocks,
            not_remote_ip_blocks: from.not_remote_ip_blocks,
            claims: from.claims,
            ..From::default()
        });
        candidate.callers.holds(caller)
            && rule_holds(&PolicyRule { from, ..open.clone() }, selector, candidate, me, target)
    };
    let action = |candidate: &&Candidate<'_>| candidate.stated.text.action;
    let decides = |candidate: &&Candidate<'_>| match candidate.mode {
        Mode::Enforce => true,
        Mode::Observe => false,
        Mode::Canary(percent) => target.lot.unwrap() < percent,
    };
    let mut held = candidates.iter().filter(decides).filter(holds);
    let mut allowed = false;
    held.all(|candidate| {
        allowed |= action(&candidate) == PolicyAction::Allow;
        action(&candidate) == PolicyAction::Allow
    }) && allowed
}

fn rule_holds(
    rule: &PolicyRule,
    selector: &PolicySelector,
    candidate: &Candidate<'_>,
    me: &SpiffeId,
    target: &Target,
) -> bool {
    let text = IdentityPolicy {
        selector: selector.clone(),
        rules: vec![PolicyRule { mode: None, name: None, ..rule.clone() }],
        mode: Mode::Enforce,
        ..(*candidate.stated.text).clone()
    };
    let (engine, rejected) = super::super::Policy::compile([(&Id::from(1), 1, &text)], me);
    assert_eq!(rejected, []);
    // Whether it may switch its connection is settled: a rule that names no protocol asks that none is wanted.
    let target = Target { upgrade: None, ..target.clone() };
    let fields = target.fields();
    engine.held(None, &target.action(&fields)) == [true]
}

#[test]
fn who_can_names_exactly_those_whom_the_engine_admits() {
    let universe = universe();
    let me: SpiffeId = "spiffe://a/me".parse().unwrap();
    run(1000, (policies(5), target(&ODD)), |(policies, target)| {
        let answer = policies.who_can(&me, &target);
        let engine = policies.engine(&me);
        let fields = target.fields();
        let action = target.action(&fields);
        let callers = universe.iter().map(Some).chain([None]);
        for caller in callers {
            let decided = engine.decide(&engine.standing_of(caller), &action).is_allowed();
            prop_assert_eq!(
                says(&answer, target.lot.unwrap(), caller),
                decided,
                "{:?} {:#?}",
                caller,
                answer
            );
        }
        Ok(())
    });
}

#[test]
fn what_is_not_said_stays_a_condition() {
    let universe = universe();
    let me: SpiffeId = "spiffe://a/me".parse().unwrap();
    let hidden = proptest::collection::vec(any::<bool>(), 9);
    let caller = proptest::sample::select(universe);
    run(2000, (policies(3), target(&ODD), hidden, caller), |(policies, full, hidden, caller)| {
        let keep = |at: usize| hidden[at];
        let partial = Target {
            method: full.method.clone().filter(|_| keep(0)),
            host: full.host.clone().filter(|_| keep(1)),
            path: full.path.clone().filter(|_| keep(2)),
            port: full.port.filter(|_| keep(3)),
            query: full.query.clone().filter(|_| keep(4)),
            headers: full.headers.clone().filter(|_| keep(5)),
            claims: full.claims.clone().filter(|_| keep(6)),
            route: full.route.clone().filter(|_| keep(7)),
            no_route: full.no_route && keep(7),
            source: full.source.filter(|_| keep(8)),
            unix_seconds: full.unix_seconds.filter(|_| keep(8)),
            lot: None,
            ..full.clone()
        };
        let engine = policies.engine(&me);
        let fields = full.fields();
        let action = full.action(&fields);
        let (candidates, broken) = policies.candidates(&me, &partial);
        prop_assume!(broken.is_empty());
        // A name in braces that is compared with the caller is for the callers and the engine together to say.
        prop_assume!(
            candidates.iter().all(|one| !one.conditions.iter().any(|text| text.starts_with('{')))
        );
        for caller in [Some(&caller), None] {
            let decided = engine.decide(&engine.standing_of(caller), &action).is_allowed();
            prop_assert_eq!(decides(&candidates, &me, caller, &full), decided, "{:?}", caller);
        }
        Ok(())
    });
}

#[test]
fn what_can_says_exactly_what_the_engine_allows() {
    let ids = (
        proptest::sample::select(universe()),
        proptest::sample::select(vec!["spiffe://a/me", "spiffe://b/me", "spiffe://d/x"]),
    );
    run(1500, (policies(5), target(&ODD), ids), |(policies, target, (caller, me))| {
        let me: SpiffeId = me.parse().unwrap();
        prop_assume!(policies.iter().all(|stated| stated.broken.is_none()));
        let (allows, denies) = policies.about_caller(&caller);
        let holds = |about: &About<'_>| {
            let text =
                IdentityPolicy { rules: vec![about.rule.clone()], ..(*about.stated.text).clone() };
            let (engine, rejected) = super::super::Policy::compile([(&Id::from(1), 1, &text)], &me);
            assert_eq!(rejected, []);
            let same = me.trust_domain_name() == caller.trust_domain_name();
            let fields = target.fields();
            let decides = match about.permit.via.mode {
                Mode::Canary(percent) => target.lot.unwrap() < percent,
                _ => true,
            };
            decides
                && about.at_own.is_none_or(|own| own == same)
                && engine.held(None, &target.action(&fields)) == [true]
        };
        let permitted = allows
            .iter()
            .any(|allow| holds(allow) && !allow.permit.except.iter().any(|at| holds(&denies[*at])));
        let engine = policies.engine(&me);
        let fields = target.fields();
        let decided =
            engine.decide(&engine.standing_of(Some(&caller)), &target.action(&fields)).is_allowed();
        prop_assert_eq!(
            permitted,
            decided,
            "{} at {} {:#?}",
            caller,
            me,
            policies.what_can(&caller)
        );
        Ok(())
    });
}

#[test]
fn shapes_meet_and_are_left_over_as_sets_do() {
    let universe: Vec<Name> = universe().iter().map(Name::of_id).collect();
    let shapes: Vec<Shape> = PATTERNS
        .iter()
        .map(|text| Shape::of_text(text))
        .chain([Shape::all(), Shape::of_domain("a"), Shape::of_domain("d")])
        .collect();
    for one in &shapes {
        for other in &shapes {
            let both = one.meet(other);
            for name in &universe {
                let holds = both.as_ref().is_some_and(|both| both.holds(name));
                assert_eq!(holds, one.holds(name) && other.holds(name), "{one} {other} {name:?}");
            }
        }
    }
    let lists = proptest::collection::vec(proptest::sample::select(shapes.clone()), 0..5);
    run(3000, (proptest::sample::select(shapes), lists), |(include, minus)| {
        let minus: Vec<&Shape> = minus.iter().collect();
        let left = |name: &Name| include.holds(name) && !minus.iter().any(|out| out.holds(name));
        match super::shape::left_over(super::shape::Space::Ids, &include, &minus) {
            Some(name) => prop_assert!(left(&name), "{name:?} of {include} without {minus:?}"),
            None => {
                let name = universe.iter().find(|name| left(name));
                prop_assert!(name.is_none(), "{name:?} is left of {include} without {minus:?}");
            }
        }
        Ok(())
    });
}

/// 10,000 rules, half of them about this very request.
fn many() -> Policies {
    let policies = (0..100).map(|policy| {
        let deny = policy % 10 == 9;
        let rules = (0..100).map(|rule| {
            let path = if rule % 2 == 0 { "/invoices/{id}".to_owned() } else { format!("/other-{rule}/**") };
            let principal = match rule {
                0 => format!("spiffe://shop/team-{policy}/**"),
                _ => format!("spiffe://shop/team-{}/service-{rule}", if deny { policy - 1 } else { policy }),
            };
            serde_json::json!({"from": {"principals": [principal]}, "to": {"methods": ["GET"], "paths": [path]}})
        });
        let rules: Vec<serde_json::Value> = rules.collect();
        let text = serde_json::json!({"action": if deny { "deny" } else { "allow" }, "rules": rules});
        (Id::parse(&format!("p{policy}")).unwrap(), 1, serde_json::from_value(text).unwrap())
    });
    Policies::new(policies)
}

#[test]
fn who_can_over_ten_thousand_rules_is_answered_at_once() {
    let policies = many();
    let target = Target {
        method: Some("GET".into()),
        path: Some("/invoices/7".into()),
        ..Target::default()
    };
    let me: SpiffeId = "spiffe://shop/billing".parse().unwrap();
    let start = std::time::Instant::now();
    let answer = policies.who_can(&me, &target);
    let took = start.elapsed();
    // Each tenth policy denies, and takes the named services of the policy before it.
    assert_eq!(answer.grants.len(), 90 * 50 - 10 * 49);
    assert_eq!(answer.overruled.len(), 10 * 49);
    eprintln!("who-can over 10,000 rules: {took:?} in this build");
}
