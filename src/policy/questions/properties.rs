//! Answers against brute force: whoever an answer names may do it, and nobody else, as the engine decides for each single ID.

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::callers::{ANYBODY, NOBODY};
use super::shape::{Name, Shape};
use super::{Allowed, Policies, Target};
use crate::identity::SpiffeId;
use crate::model::{
    From, Id, IdentityPolicy, Mode, PolicyAction, PolicyRule, PolicySelector, To,
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
        let longer = |path: &String| words.iter().map(|word| format!("{path}/{word}")).collect::<Vec<_>>();
        layer = layer.iter().flat_map(longer).collect();
        paths.extend(layer.iter().cloned());
    }
    let domains = ["a", "b", "c", "d"];
    let ids = domains.iter().flat_map(|td| paths.iter().map(move |path| format!("spiffe://{td}{path}")));
    ids.map(|text| text.parse().unwrap()).collect()
}

/// What a text of an answer means.
pub(super) fn means(text: &str, caller: Option<&SpiffeId>) -> bool {
    let Some(id) = caller else { return matches!(text, ANYBODY | NOBODY) };
    match text {
        ANYBODY | "anybody with an identity" => true,
        NOBODY => false,
        _ => match text.strip_prefix("anybody of ") {
            Some(domain) => id.trust_domain_name() == domain,
            None => text.parse::<crate::identity::SpiffePattern>().unwrap().matches(id),
        },
    }
}

fn among(list: &[String], caller: Option<&SpiffeId>) -> bool {
    list.iter().any(|text| means(text, caller))
}

/// What an answer without conditions says of a caller.
fn says(answer: &Allowed, caller: Option<&SpiffeId>) -> bool {
    answer.grants.iter().any(|grant| {
        assert_eq!(grant.conditions, Vec::<String>::new());
        let denied = grant.except.iter().any(|at| {
            let denial = &answer.denials[*at];
            among(&denial.who, caller) && !among(&denial.but, caller)
        });
        among(&grant.who, caller) && !among(&grant.but, caller) && !denied
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

pub(super) fn from() -> impl Strategy<Value = Option<From>> {
    let callers = (texts(&PATTERNS, 3), texts(&PATTERNS, 2), texts(&["a", "b", "d"], 2));
    proptest::option::weighted(
        0.8,
        callers.prop_map(|(principals, not_principals, trust_domains)| From {
            principals,
            not_principals,
            trust_domains,
            ..From::default()
        }),
    )
}

pub(super) const PATHS: [&str; 9] =
    ["/", "/a", "/a/", "/a/**", "/a/{id}", "/a/b", "/*/b", "/b/**", "/**"];

pub(super) fn to() -> impl Strategy<Value = Option<To>> {
    let methods = ["GET", "PUT", "QUX"];
    let hosts = ["h.test", "*.test", "k"];
    let parts = (
        (texts(&methods, 2), texts(&methods, 1)),
        (texts(&PATHS, 2), texts(&PATHS, 1)),
        texts(&hosts, 2),
        some_of(vec![80_u16, 443], 1),
    );
    let to = parts.prop_map(|((methods, not_methods), (paths, not_paths), hosts, ports)| To {
        methods,
        not_methods,
        paths,
        not_paths,
        hosts,
        ports,
        ..To::default()
    });
    proptest::option::weighted(0.7, to)
}

pub(super) fn policy() -> impl Strategy<Value = IdentityPolicy> {
    let rule = (from(), to()).prop_map(|(from, to)| PolicyRule { from, to, ..PolicyRule::default() });
    let rules = proptest::collection::vec(rule, 1..4);
    let workloads = texts(&["spiffe://a/me", "spiffe://a/*", "spiffe://b/me"], 1);
    let allow = prop_oneof![3 => Just(PolicyAction::Allow), 2 => Just(PolicyAction::Deny)];
    let mode = prop_oneof![9 => Just(Mode::Enforce), 1 => Just(Mode::Observe)];
    (rules, workloads, allow, mode).prop_map(|(rules, workloads, action, mode)| IdentityPolicy {
        id: None,
        name: None,
        desc: None,
        labels: Default::default(),
        selector: PolicySelector { workloads, ..PolicySelector::default() },
        action,
        mode,
        rules,
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

fn target() -> impl Strategy<Value = Target> {
    let paths = ["/", "/a", "/a/", "/a/b", "/a/b/", "/a//b", "/b/../a/b", "/c/b", "/b/%2e", "/%zz", "/A"];
    let http = (
        proptest::sample::select(vec!["GET", "PUT", "get", "QUX", "X"]),
        proptest::sample::select(paths.to_vec()),
        proptest::sample::select(vec!["h.test", "H.test:80", "k", "a..b", "other"]),
        proptest::sample::select(vec![80_u16, 443, 1]),
    );
    let full = http.prop_map(|(method, path, host, port)| Target {
        method: Some(method.into()),
        path: Some(path.into()),
        host: Some(host.into()),
        port: Some(port),
        query: Some(String::new()),
        headers: Some(Vec::new()),
        claims: Some(serde_json::Map::new()),
        source: Some("10.0.0.1".parse().unwrap()),
        unix_seconds: Some(1_790_000_000),
        ..Target::default()
    });
    prop_oneof![
        9 => full.clone(),
        1 => full.prop_map(|target| Target { connection: true, method: None, path: None, ..target }),
    ]
}

fn run<T: std::fmt::Debug>(
    cases: u32,
    strategy: impl Strategy<Value = T>,
    test: impl Fn(T) -> Result<(), TestCaseError>,
) {
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    TestRunner::new(config).run(&strategy, test).unwrap();
}

#[test]
fn who_can_names_exactly_those_whom_the_engine_admits() {
    let universe = universe();
    let me: SpiffeId = "spiffe://a/me".parse().unwrap();
    run(2000, (policies(5), target()), |(policies, target)| {
        let answer = policies.who_can(&me, &target);
        let engine = policies.engine(&me);
        let fields = target.fields();
        let action = target.action(&fields);
        let callers = universe.iter().map(Some).chain([None]);
        for caller in callers {
            let decided = engine.decide(&engine.standing_of(caller), &action).is_allowed();
            prop_assert_eq!(says(&answer, caller), decided, "{:?} {:#?}", caller, answer);
        }
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
