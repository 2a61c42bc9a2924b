//! The rule language once more: slow and obvious, straight from the text of the policies. Random policies and actions must
//! be decided alike by it and by the compiled index.

use std::collections::BTreeSet;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::{Action, Outcome, Policy, Reason, RouteFacts};
use crate::identity::{SpiffeId, SpiffePattern};
use crate::model::{
    From, Id, IdentityPolicy, Labels, Mode, PolicyAction, PolicyRule, PolicySelector, To,
};

#[derive(Clone, Debug)]
struct Asked {
    http: Option<(String, String, String)>,
    port: u16,
    route: Option<(Id, Labels)>,
}

/// What the reference finds: allowed or not, and the policy and rule number that decided.
#[derive(Clone, Debug, PartialEq)]
struct Found {
    allowed: bool,
    rule: Option<(String, usize)>,
}

fn decide(
    policies: &[(Id, IdentityPolicy)],
    me: &SpiffeId,
    caller: Option<&SpiffeId>,
    asked: &Asked,
    modes: &[Mode],
) -> Found {
    let mut sorted: Vec<_> = policies.iter().collect();
    sorted.sort_by(|a, b| a.0.cmp(&b.0));
    let matching = |action: PolicyAction| {
        sorted
            .iter()
            .filter(|(_, policy)| policy.action == action && modes.contains(&policy.mode))
            .filter(|(_, policy)| selects(&policy.selector, me, asked, action))
            .flat_map(|(id, policy)| {
                policy.rules.iter().enumerate().map(move |(at, rule)| (id, at, rule))
            })
            .find(|(_, _, rule)| holds(rule, caller, asked, action))
            .map(|(id, at, _)| (id.to_string(), at + 1))
    };
    if let Some(rule) = matching(PolicyAction::Deny) {
        return Found { allowed: false, rule: Some(rule) };
    }
    match matching(PolicyAction::Allow) {
        Some(rule) => Found { allowed: true, rule: Some(rule) },
        None => Found { allowed: false, rule: None },
    }
}

fn selects(selector: &PolicySelector, me: &SpiffeId, asked: &Asked, action: PolicyAction) -> bool {
    let PolicySelector { workloads, labels, routes } = selector;
    if !workloads.is_empty() && !workloads.iter().any(|text| pattern(text).matches(me)) {
        return false;
    }
    if labels.is_empty() && routes.is_empty() {
        return true;
    }
    match &asked.route {
        Some((id, found)) => {
            (routes.is_empty() || routes.contains(id))
                && labels.iter().all(|(name, value)| found.get(name) == Some(value))
        }
        None => asked.http.is_none() && action == PolicyAction::Deny,
    }
}

fn pattern(text: &str) -> SpiffePattern {
    text.parse().unwrap()
}

fn holds(
    rule: &PolicyRule,
    caller: Option<&SpiffeId>,
    asked: &Asked,
    action: PolicyAction,
) -> bool {
    let deny = action == PolicyAction::Deny;
    let From { principals, trust_domains, not_principals, .. } =
        rule.from.clone().unwrap_or_default();
    let among = |list: &[String], id: &SpiffeId| list.iter().any(|p| pattern(p).matches(id));
    let named = !principals.is_empty() || !trust_domains.is_empty() || !not_principals.is_empty();
    let who = match caller {
        None => !named || deny,
        Some(id) => {
            (principals.is_empty() || among(&principals, id))
                && (trust_domains.is_empty()
                    || trust_domains.iter().any(|td| td == id.trust_domain_name()))
                && !among(&not_principals, id)
        }
    };
    let To { hosts, ports, methods, paths, not_methods, not_paths, .. } =
        rule.to.clone().unwrap_or_default();
    let Some((method, host, path)) = &asked.http else {
        let asks_http = !(hosts.is_empty()
            && methods.is_empty()
            && paths.is_empty()
            && not_methods.is_empty()
            && not_paths.is_empty());
        return who && (ports.is_empty() || ports.contains(&asked.port)) && (!asks_http || deny);
    };
    let exact = |list: &[String]| list.contains(method);
    let folded = |list: &[String]| list.iter().any(|m| m.eq_ignore_ascii_case(method));
    let host = plain_host(host);
    let host_holds = hosts.is_empty()
        || host.as_ref().map_or(deny, |host| hosts.iter().any(|pattern| host_means(pattern, host)));
    let readings = readings(path);
    let certain = |list: &[String]| {
        readings.as_ref().is_some_and(|all| {
            all.iter().all(|path| list.iter().any(|template| means(template, path)))
        })
    };
    let trimmed = |text: &str| text.strip_suffix('/').unwrap_or(text).to_string();
    let possible = |list: &[String]| {
        readings.as_ref().is_none_or(|all| {
            all.iter().any(|path| {
                list.iter().any(|template| {
                    let (short, path_short) = (trimmed(template), trimmed(path));
                    means(template, path)
                        || (template != "/"
                            && path != "/"
                            && path != "//"
                            && means(&short, &path_short))
                })
            })
        })
    };
    who && (ports.is_empty() || ports.contains(&asked.port))
        && (methods.is_empty() || if deny { folded(&methods) } else { exact(&methods) })
        && !(if deny { exact(&not_methods) } else { folded(&not_methods) })
        && host_holds
        && (paths.is_empty() || if deny { possible(&paths) } else { certain(&paths) })
        && (not_paths.is_empty()
            || !(if deny { certain(&not_paths) } else { possible(&not_paths) }))
}

fn plain_host(host: &str) -> Option<String> {
    let (name, port) = host.split_once(':').unwrap_or((host, ""));
    let name = name.strip_suffix('.').unwrap_or(name).to_lowercase();
    let fits = |c: char| c.is_ascii_alphanumeric() || "-_*".contains(c);
    (port.chars().all(|c| c.is_ascii_digit())
        && name.split('.').all(|label| !label.is_empty() && label.chars().all(fits)))
    .then_some(name)
}

fn host_means(pattern: &str, host: &str) -> bool {
    match pattern.strip_prefix('*') {
        Some(suffix) => host.ends_with(suffix) && host.len() > suffix.len(),
        None => pattern == host,
    }
}

fn means(template: &str, path: &str) -> bool {
    fn walk(template: &[&str], path: &[&str]) -> bool {
        match (template, path) {
            (["**"], _) => true,
            ([], []) => true,
            ([segment, template @ ..], [found, path @ ..]) => {
                let any = segment.starts_with('{') || *segment == "*";
                (if any { !found.is_empty() } else { segment == found }) && walk(template, path)
            }
            _ => false,
        }
    }
    // "/a/" and "/a/**" differ from "/a" by their last, empty or missing, segment.
    let split = |text: &str| text.split('/').skip(1).map(String::from).collect::<Vec<_>>();
    let (template, path) = (split(template), split(path));
    fn texts(list: &[String]) -> Vec<&str> {
        list.iter().map(String::as_str).collect()
    }
    if template.is_empty() || path.is_empty() {
        return template == path;
    }
    walk(&texts(&template), &texts(&path))
}

/// All readings; `None` when the path is unclear.
fn readings(path: &str) -> Option<BTreeSet<String>> {
    if !path.starts_with('/') || path.contains(|c: char| c.is_ascii_control()) {
        return None;
    }
    unescape(path, |_| true, false)?;
    let start = unescape(path, |byte| !b"/\\.;%?#".contains(&byte), false)?;
    let mut all = BTreeSet::from([(start, 0)]);
    loop {
        let mut more = all.clone();
        for (text, depth) in &all {
            for changed in [
                merge(text),
                resolve(text),
                text.split('/').map(|s| s.split(';').next().unwrap()).collect::<Vec<_>>().join("/"),
                text.replace('\\', "/"),
                text.split(['?', '#']).next().unwrap().to_string(),
            ] {
                more.insert((changed, *depth));
            }
            let deeper = unescape(text, |_| true, true)?;
            if deeper != *text {
                if *depth == 2 {
                    return None;
                }
                more.insert((deeper, depth + 1));
            }
        }
        // The bound is part of the language: what can be read in more ways is unclear.
        if more.len() > 32 {
            return None;
        }
        if more == all {
            break;
        }
        all = more;
    }
    Some(all.into_iter().map(|(text, _)| text).collect())
}

fn merge(path: &str) -> String {
    let mut merged = path.to_string();
    while merged.contains("//") {
        merged = merged.replace("//", "/");
    }
    merged
}

fn resolve(path: &str) -> String {
    let mut kept: Vec<&str> = Vec::new();
    let segments: Vec<&str> = path.split('/').skip(1).collect();
    for (at, segment) in segments.iter().enumerate() {
        let last = at + 1 == segments.len();
        match *segment {
            "." | ".." => {
                if *segment == ".." {
                    kept.pop();
                }
                if last {
                    kept.push("");
                }
            }
            other => kept.push(other),
        }
    }
    format!("/{}", kept.join("/"))
}

fn unescape(text: &str, which: impl Fn(u8) -> bool, lenient: bool) -> Option<String> {
    let mut out = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, behind @ ..] = rest {
        let escaped = behind
            .get(..2)
            .filter(|_| *first == b'%')
            .and_then(|pair| std::str::from_utf8(pair).ok())
            .filter(|pair| pair.bytes().all(|b| b.is_ascii_hexdigit()))
            .and_then(|pair| u8::from_str_radix(pair, 16).ok());
        match escaped {
            Some(byte) if which(byte) => {
                out.push(byte);
                rest = &behind[2..];
            }
            Some(_) => {
                out.extend_from_slice(&rest[..3]);
                rest = &behind[2..];
            }
            None if *first == b'%' && !lenient => return None,
            None => {
                out.push(*first);
                rest = behind;
            }
        }
    }
    String::from_utf8(out).ok().filter(|text| !text.contains(|c: char| c.is_ascii_control()))
}

// Small alphabets, so that rules and actions meet.

fn some_of(texts: &'static [&'static str]) -> impl Strategy<Value = Vec<String>> {
    prop_oneof![
        3 => Just(Vec::new()),
        2 => proptest::sample::subsequence(texts, 1..=texts.len().min(2))
            .prop_map(|list| list.into_iter().map(String::from).collect()),
    ]
}

const PRINCIPALS: &[&str] = &[
    "spiffe://a/web",
    "spiffe://a/*",
    "spiffe://a/**",
    "spiffe://b/web",
    "spiffe://a/ns/*/web",
    "spiffe://b/**",
];
const PATHS: &[&str] = &[
    "/", "/**", "/a", "/a/", "/a/**", "/a/b", "/a/{x}", "/{x}", "/*/b", "/a/*/c", "/b/**", "/a b",
    "/{x}/",
];

fn rule() -> impl Strategy<Value = PolicyRule> {
    let from = (some_of(PRINCIPALS), some_of(&["a", "b"]), some_of(PRINCIPALS)).prop_map(
        |(principals, trust_domains, not_principals)| From {
            principals,
            trust_domains,
            not_principals,
            ..From::default()
        },
    );
    let ports = prop_oneof![
        3 => Just(vec![]),
        1 => Just(vec![80]),
        1 => Just(vec![80, 443])
    ];
    let to = (
        some_of(&["a.x", "*.x", "b.a.x"]),
        ports,
        some_of(&["GET", "POST", "lock"]),
        some_of(PATHS),
        some_of(&["GET", "POST"]),
        some_of(PATHS),
    )
        .prop_map(|(hosts, ports, methods, paths, not_methods, not_paths)| To {
            hosts,
            ports,
            methods,
            paths,
            not_methods,
            not_paths,
            ..To::default()
        });
    (proptest::option::weighted(0.7, from), proptest::option::weighted(0.7, to))
        .prop_map(|(from, to)| PolicyRule { from, to, ..PolicyRule::default() })
}

fn labels() -> impl Strategy<Value = Labels> {
    proptest::sample::select(vec![
        vec![],
        vec![],
        vec![("t", "1")],
        vec![("t", "2")],
        vec![("t", "1"), ("u", "1")],
    ])
    .prop_map(|pairs| pairs.into_iter().map(|(k, v)| (k.to_string(), v.to_string())).collect())
}

fn policy() -> impl Strategy<Value = IdentityPolicy> {
    let routes = proptest::sample::select(vec![vec![], vec![], vec!["r1"], vec!["r1", "r2"]]);
    let selector = (some_of(&["spiffe://a/me", "spiffe://a/other"]), labels(), routes).prop_map(
        |(workloads, labels, routes)| PolicySelector {
            workloads,
            labels,
            routes: routes.into_iter().map(|id| Id::parse(id).unwrap()).collect(),
        },
    );
    let action = prop_oneof![3 => Just(PolicyAction::Allow), 1 => Just(PolicyAction::Deny)];
    let mode = prop_oneof![3 => Just(Mode::Enforce), 1 => Just(Mode::Observe)];
    // Now and then enough rules for the index by path.
    let rules = prop_oneof![
        19 => proptest::collection::vec(rule(), 1..4),
        1 => proptest::collection::vec(rule(), 17..24)
    ];
    (selector, action, mode, rules).prop_map(|(selector, action, mode, rules)| IdentityPolicy {
        id: None,
        name: None,
        desc: None,
        labels: Labels::new(),
        selector,
        action,
        mode,
        rules,
        create_time: None,
        update_time: None,
    })
}

fn path() -> impl Strategy<Value = String> {
    let part = proptest::sample::select(vec![
        "a", "a", "a", "b", "b", "c", "7", "", ".", "..", "%61", "%2e", "%2e%2e", "%252e", "a;x",
        "%2f", "a%2fb", "%5c", "..\\", "%3b", "a%20b", "%zz", "%c0%af", "%3f", "%25", "..;y",
    ]);
    let plain = proptest::sample::select(vec!["/", "/a", "/a/", "/a/b", "/a/b/c", "/b", "*", ""]);
    prop_oneof![
        1 => plain.prop_map(String::from),
        2 => proptest::collection::vec(part, 1..4).prop_map(|parts| format!("/{}", parts.join("/"))),
    ]
}

fn asked() -> impl Strategy<Value = Asked> {
    let http = (
        proptest::sample::select(vec!["GET", "GET", "POST", "get", "LOCK", "lock"]),
        proptest::sample::select(vec!["a.x", "A.x:80", "b.a.x.", "x", ".x", "c..x", "a.x:y", ""]),
        path(),
    )
        .prop_map(|(method, host, path)| (method.to_string(), host.to_string(), path));
    let route = (proptest::sample::select(vec!["r1", "r2", "r3"]), labels())
        .prop_map(|(id, labels)| (Id::parse(id).unwrap(), labels));
    (
        proptest::option::weighted(0.9, http),
        proptest::sample::select(vec![80, 443, 8080]),
        proptest::option::weighted(0.8, route),
    )
        .prop_map(|(http, port, route)| Asked {
            route: route.filter(|_| http.is_some()),
            http,
            port,
        })
}

fn caller() -> impl Strategy<Value = Option<SpiffeId>> {
    proptest::sample::select(vec![
        Some("spiffe://a/web"),
        Some("spiffe://a/web"),
        Some("spiffe://b/web"),
        Some("spiffe://a/ns/x/web"),
        Some("spiffe://a"),
        Some("spiffe://c/web"),
        None,
    ])
    .prop_map(|id| id.map(|id| id.parse().unwrap()))
}

impl Asked {
    fn action(&self) -> Action<'_> {
        match &self.http {
            None => Action::connection(self.port),
            Some((method, host, path)) => {
                let route = self.route.as_ref().map(|(id, labels)| RouteFacts { id, labels });
                Action::http(self.port, method, host, path).on_route(route)
            }
        }
    }
}

#[test]
fn the_index_decides_as_the_reference_does() {
    let cases = proptest::collection::vec(policy(), 0..5);
    let mut runner =
        TestRunner::new(Config { cases: 20_000, failure_persistence: None, ..Config::default() });
    let outcome = runner.run(&(cases, caller(), asked()), |(texts, caller, asked)| {
        let me: SpiffeId = "spiffe://a/me".parse().unwrap();
        let policies: Vec<(Id, IdentityPolicy)> = texts
            .into_iter()
            .enumerate()
            .map(|(at, policy)| (Id::parse(&format!("p{at}")).unwrap(), policy))
            .collect();
        let (compiled, rejected) =
            Policy::compile(policies.iter().map(|(id, policy)| (id, 1, policy)), &me);
        prop_assert!(rejected.is_empty(), "{:?}", rejected);
        let standing = compiled.standing_of(caller.as_ref());
        let action = asked.action();
        let decision = compiled.decide(&standing, &action);

        let name = |outcome: Outcome| {
            outcome.rule().map(|rule| {
                let rule = compiled.rule(rule).unwrap();
                (rule.policy.to_string(), rule.rule.parse::<usize>().unwrap())
            })
        };
        let expected = decide(&policies, &me, caller.as_ref(), &asked, &[Mode::Enforce]);
        prop_assert_eq!(decision.is_allowed(), expected.allowed, "{:?}", decision);
        // An ambiguous path names the rule that would have allowed one reading; the reference does not look for it.
        if decision.outcome.reason() != Some(Reason::AmbiguousPath) || expected.rule.is_some() {
            prop_assert_eq!(name(decision.outcome), expected.rule, "{:?}", decision);
        }
        let both = [Mode::Enforce, Mode::Observe];
        let would_be = decide(&policies, &me, caller.as_ref(), &asked, &both);
        let found = decision.would_be.map_or(decision.is_allowed(), Outcome::is_allowed);
        prop_assert_eq!(found, would_be.allowed, "would be: {:?}", decision);
        prop_assert!(decision.would_be.is_none_or(|o| o.is_allowed() != decision.is_allowed()));
        if standing.is_hopeless() {
            prop_assert!(!decision.is_allowed());
        }
        let explained = compiled.explain(caller.as_ref(), &action);
        prop_assert_eq!(explained.decision, decision);
        for tried in &explained.tried {
            if decision.is_allowed() && tried.mode == Mode::Enforce {
                let denies = tried.action == PolicyAction::Deny;
                prop_assert!(!(denies && tried.failed.is_none()), "{:?}", tried);
            }
        }
        Ok(())
    });
    if let Err(error) = outcome {
        panic!("{error}");
    }
}
