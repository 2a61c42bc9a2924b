//! Differences against brute force: each claim is true, and each action that is decided differently is in a claim.

use std::collections::HashMap;

use proptest::prelude::*;
use serde_json::json;

use super::super::engine::is_call;
use super::super::instances::SYMBOLS;
use super::super::lines::{Line, OTHER};
use super::super::properties::{policies, run, target, universe};
use super::super::shape::Name;
use super::diagram::Diagram;
use super::space::{Standing, judge};
use super::*;
use crate::identity::SpiffeId;
use crate::model::{Id, PolicyAction, PolicyRule, To};

const NOW: i64 = 1_790_000_000;

fn set_of(list: &[(&str, serde_json::Value)]) -> Policies {
    Policies::new(list.iter().map(|(id, text)| {
        (Id::parse(id).unwrap(), 1, serde_json::from_value(text.clone()).unwrap())
    }))
}
#[expect(clippy::needless_pass_by_value, reason = "it reads better where it is called")]
fn allow(rules: serde_json::Value) -> serde_json::Value {
    json!({"selector": {"workloads": ["spiffe://shop/billing"]}, "action": "allow", "rules": rules})
}
#[expect(clippy::needless_pass_by_value, reason = "it reads better where it is called")]
fn deny(rules: serde_json::Value) -> serde_json::Value {
    json!({"selector": {"workloads": ["spiffe://shop/billing"]}, "action": "deny", "rules": rules})
}

/// One line a change: `+ who [- who not]: what`.
fn told(difference: &Difference) -> Vec<String> {
    let line = |sign: &str, change: &Change| {
        assert_eq!(change.workloads, ["spiffe://shop/billing"]);
        let or_anybody =
            |who: &[String]| if who.is_empty() { "anybody".into() } else { who.join(", ") };
        let but = match &*change.who_but {
            [] => String::new(),
            but => format!(" but {}", but.join(", ")),
        };
        format!("{sign} {}{but}: {}", or_anybody(&change.who), change.what.join("; "))
    };
    let gained = difference.gained.iter().map(|change| line("+", change));
    gained.chain(difference.lost.iter().map(|change| line("-", change))).collect()
}

fn differ(old: &[(&str, serde_json::Value)], new: &[(&str, serde_json::Value)]) -> Vec<String> {
    let difference = set_of(old).difference(&set_of(new), None, NOW);
    assert_eq!(difference.not_compared, Vec::<String>::new());
    told(&difference)
}

#[test]
fn what_says_the_same_in_other_words_is_no_difference() {
    let from = |list: serde_json::Value| json!({"principals": list});
    let one = allow(
        json!([{"from": from(json!(["spiffe://shop/a", "spiffe://shop/b"])), "to": {"methods": ["GET", "PUT"]}}]),
    );
    let a = allow(json!([
        {"from": from(json!(["spiffe://shop/b"])), "to": {"methods": ["PUT", "GET"]}},
        {"from": from(json!(["spiffe://shop/a"])), "to": {"methods": ["GET"]}},
    ]));
    let b = allow(
        json!([{"from": from(json!(["spiffe://shop/a"])), "to": {"methods": ["PUT"], "paths": ["/**"]}}]),
    );
    assert_eq!(differ(&[("p", one.clone())], &[("p", a.clone()), ("q", b)]), Vec::<String>::new());
    let narrower = differ(&[("p", one)], &[("p", a)]);
    assert_eq!(narrower, ["- spiffe://shop/a: HTTP requests; method PUT"]);
}

#[test]
fn who_gains_and_loses_is_told_in_the_words_of_the_policies() {
    let everybody = json!({"principals": ["spiffe://shop/**"]});
    let read = json!({"from": everybody, "to": {"methods": ["GET"], "paths": ["/invoices/**"]}});
    let no_intern = json!({"from": {"principals": ["spiffe://shop/intern/*"]}});
    let write = json!({"from": {"principals": ["spiffe://shop/clerk"]}, "to": {"methods": ["DELETE"], "paths": ["/invoices/{id}"]}});
    let old = [("read", allow(json!([read])))];
    let new = [("read", allow(json!([read, write]))), ("not", deny(json!([no_intern])))];
    assert_eq!(
        differ(&old, &new),
        [
            "+ spiffe://shop/clerk: HTTP requests; method DELETE; path /invoices/*",
            "- spiffe://shop/intern/*: HTTP requests; method GET; path /invoices/**",
        ]
    );
    let opened = [("read", allow(json!([{"from": everybody}])))];
    let told = differ(&old, &opened);
    assert!(
        told.iter().any(|line| line == "+ spiffe://shop/**: connections (layer 4)"),
        "{told:?}"
    );
    assert!(
        told.iter().any(|line| line == "+ spiffe://shop/**: HTTP requests; method not GET"),
        "{told:?}"
    );
    assert!(
        told.iter()
            .any(|line| line
                == "+ spiffe://shop/**: HTTP requests; method GET; path not /invoices/**"),
        "{told:?}"
    );
    assert_eq!(told.len(), 3);
}

#[test]
fn conditions_modes_and_names_in_braces_are_told() {
    let a = json!({"principals": ["spiffe://shop/a"]});
    let get = json!({"methods": ["GET"]});
    let old = [("p", allow(json!([{"from": a, "to": get}])))];
    let header = |values: serde_json::Value| {
        [(
            "p",
            allow(
                json!([{"from": a, "to": get, "when": {"headers": [{"name": "x-tier", "values": values}]}}]),
            ),
        )]
    };
    assert_eq!(
        differ(&old, &header(json!(["gold"]))),
        [
            "- spiffe://shop/a: HTTP requests; method GET; not: header x-tier is gold or absent or unclear: header x-tier is gold"
        ]
    );
    let canary = [("p", allow(json!([{"from": a, "to": get, "mode": {"canary": 10}}])))];
    assert_eq!(
        differ(&old, &canary),
        ["- spiffe://shop/a: HTTP requests; method GET; canary: not 10 % of connections"]
    );
    let tenant = json!({"from": {"principals": ["spiffe://shop/ns/{t}/sa/*"]}, "to": {"paths": ["/t/{t}/**"]}});
    assert_eq!(
        differ(&[], &[("p", allow(json!([tenant])))]),
        ["+ spiffe://shop/ns/{any}/sa/*: HTTP requests; path /t/{any}/**"]
    );
    let times =
        |times: serde_json::Value| [("p", allow(json!([{"from": a, "to": get, "when": times}])))];
    let told = differ(&old, &times(json!({"times": [{"not_after": "2020-01-01T00:00:00Z"}]})));
    assert_eq!(
        told,
        ["- spiffe://shop/a: HTTP requests; method GET; not: until 2020-01-01T00:00:00Z"]
    );
}

#[test]
fn a_claim_comes_with_a_request_that_both_engines_decide_so() {
    let a = json!({"principals": ["spiffe://shop/a"]});
    let by = |claims: serde_json::Value| {
        allow(json!([{"from": {"principals": ["spiffe://shop/a"], "claims": claims}}]))
    };
    let old = set_of(&[("p", by(json!([{"name": "role", "values": ["admin"]}])))]);
    let new = set_of(&[("p", allow(json!([{"from": a}])))]);
    let difference = old.difference(&new, None, NOW);
    for change in &difference.gained {
        let Example { workload, identity, target, old: was, new: is } = &change.example;
        let (workload, identity) =
            (workload.parse().unwrap(), identity.as_ref().map(|id| id.parse().unwrap()));
        assert_eq!((was.allowed, is.allowed), (false, true));
        assert!(!old.can_i(&workload, identity.as_ref(), target).allowed);
        assert!(new.can_i(&workload, identity.as_ref(), target).allowed);
        assert_eq!(is.rule.as_ref().unwrap().policy, "p");
    }
    assert!(difference.gained.len() >= 2, "{difference:#?}");
    assert_eq!(difference.lost, []);
}

/// Can the line hold for the action, as far as this dimension goes?
fn member(
    value: &Value,
    line: &Line,
    me: &SpiffeId,
    caller: Option<&SpiffeId>,
    target: &Target,
) -> bool {
    let of = |to: To, value: Value| judge(&to, line.action, &[value])[0];
    let to = line.to.clone();
    match value {
        Value::Workload(_) => line.workloads.iter().any(|shape| shape.holds(&Name::of_id(me))),
        Value::Caller(_) => line.callers.holds(caller),
        Value::Connection(_) => line.connection == target.connection,
        Value::Route(_) => {
            let selector = &line.selector;
            (selector.routes.is_empty() && selector.labels.is_empty())
                || target.route.as_ref().is_some_and(|route| {
                    (selector.routes.is_empty() || selector.routes.contains(&route.id))
                        && selector
                            .labels
                            .iter()
                            .all(|(name, value)| route.labels.get(name) == Some(value))
                })
        }
        Value::Port(_) => {
            let port = Value::Port(target.port.unwrap());
            of(To { ports: to.ports, not_ports: to.not_ports, ..To::default() }, port)
        }
        Value::Host(_) => {
            let host = Value::Host(target.host.clone());
            let never = To { not_hosts: vec!["never.named".into()], ..To::default() };
            let is_there = judge(&never, PolicyAction::Allow, std::slice::from_ref(&host))[0];
            line.host.is_none_or(|has_host| has_host == is_there)
                && of(To { hosts: to.hosts, not_hosts: to.not_hosts, ..To::default() }, host)
        }
        Value::Method(_) => {
            let Some(method) = &target.method else { return true };
            (!line.is_call || method == "POST")
                && of(
                    To { methods: to.methods, not_methods: to.not_methods, ..To::default() },
                    Value::Method(method.clone()),
                )
        }
        Value::Path(_) => {
            let Some(path) = &target.path else { return true };
            let body = &path[1..];
            let closed = body.strip_suffix('/').unwrap_or(body);
            let segments =
                closed.split('/').filter(|_| !closed.is_empty()).map(str::to_owned).collect();
            let slash = body.is_empty() || body.ends_with('/');
            let name = Name { root: String::new(), segments, slash };
            let any = |shapes: &Vec<super::super::shape::Shape>| {
                shapes.iter().any(|shape| shape.holds(&name))
            };
            line.paths.all_of.iter().all(any) && !any(&line.paths.but)
        }
        Value::Upgrade(_) => {
            if line.connection {
                return true;
            }
            of(
                To { upgrades: to.upgrades, ..To::default() },
                Value::Upgrade(target.upgrade.clone()),
            )
        }
        Value::Lot(_) => target.lot.unwrap() < line.below,
        Value::Condition(rule, _) => {
            let standing = standing(rule, target);
            // A rule may ask that one thing holds and that it does not.
            let asked = line.conditions.iter().filter(|(one, _)| **rule == *one);
            asked.into_iter().all(|(_, wanted)| match (wanted, line.action) {
                (false, _) => standing == Standing::Fails,
                (true, PolicyAction::Allow) => standing == Standing::Holds,
                (true, PolicyAction::Deny) => standing != Standing::Fails,
            })
        }
    }
}

fn standing(rule: &PolicyRule, target: &Target) -> Standing {
    // Whether it may switch its connection is a dimension of its own.
    let target = &Target { upgrade: None, ..target.clone() };
    if rule.to.is_some() {
        let fields = target.fields();
        return if is_call(&target.action(&fields)) { Standing::Holds } else { Standing::Fails };
    }
    let holds = |action: PolicyAction| super::super::engine::holds_alone(rule, action, target);
    match (holds(PolicyAction::Allow), holds(PolicyAction::Deny)) {
        (true, true) => Standing::Holds,
        (false, false) => Standing::Fails,
        (false, true) => Standing::Absent,
        (true, false) => panic!("what holds to allow holds to refuse: {rule:?} {target:?}"),
    }
}

const PLAIN: [&str; 10] =
    ["/", "/a", "/a/", "/a/b", "/c/b", "/x", "/web/b", "/p.S/M", "/p.S/N", "/b/a"];

/// As [`target`], some without a token or without a host.
fn whole() -> impl Strategy<Value = Target> {
    let without = (proptest::bool::weighted(0.2), proptest::bool::weighted(0.1));
    (target(&PLAIN), without).prop_map(|(target, (no_token, no_host))| Target {
        claims: target.claims.filter(|_| !no_token),
        host: target.host.filter(|_| !no_host),
        ..target
    })
}

/// The action as the symbols tell it: each text that no rule names, where names in braces are bound, is one of them.
fn told_by_symbols(
    lines: &Lines,
    caller: Option<&SpiffeId>,
    target: &Target,
) -> (Option<SpiffeId>, Target) {
    let texts = &lines.texts;
    let mut known: HashMap<String, String> = HashMap::new();
    let symbol_for = |known: &mut HashMap<String, String>, text: &str| {
        let next = SYMBOLS[..texts.symbols].get(known.len()).map(|(symbol, _)| *symbol);
        let longest = |fits: &dyn Fn(&(String, String)) -> usize| {
            texts.affixes.iter().max_by_key(|affixes| fits(affixes)).unwrap().clone()
        };
        let len = |fits: bool, affix: &str| if fits { affix.len() + 1 } else { 0 };
        let prefix = longest(&|(prefix, _)| len(text.starts_with(&**prefix), prefix)).0;
        let end = longest(&|(_, end)| len(text.ends_with(&**end), end)).1;
        let symbol = known.entry(text.to_owned());
        symbol.or_insert_with(|| format!("{prefix}{}{end}", next.unwrap())).clone()
    };
    let mut name = caller.map(Name::of_id);
    if let Some(name) = &mut name {
        let found = name.clone();
        for (shape, places) in lines.lines.iter().filter_map(|line| line.binders.principal.as_ref())
        {
            for at in places.iter().filter(|_| shape.holds(&found)) {
                let text = &found.segments[*at];
                if !texts.values.contains(text) {
                    name.segments[*at] = symbol_for(&mut known, text);
                }
            }
        }
    }
    let mut target = target.clone();
    let host = target.host.take().map(|host| host.to_ascii_lowercase());
    target.host = host.map(|host| {
        let Some((label, rest)) = host.split_once('.') else { return host };
        let rest = format!(".{}", rest.split(':').next().unwrap());
        let binds = lines.lines.iter().any(|line| line.binders.suffix.as_ref() == Some(&rest));
        match known.get(label) {
            Some(symbol) => format!("{symbol}{rest}"),
            None if binds && !texts.values.contains(label) => {
                format!("{}{rest}", symbol_for(&mut known, label))
            }
            None => host,
        }
    });
    if let Some(path) = &mut target.path {
        let parts = path.split('/').enumerate().map(|(at, part)| match known.get(part) {
            Some(symbol) if at > 0 && texts.of_paths.contains(&(at - 1)) => symbol.clone(),
            _ => part.to_owned(),
        });
        *path = parts.collect::<Vec<_>>().join("/");
    }
    (name.and_then(|name| name.id()), target)
}

#[test]
fn every_claim_comes_with_a_request_that_is_decided_differently() {
    let points = proptest::collection::vec((whole(), proptest::sample::select(universe())), 12);
    let sets = (policies(3), policies(2), proptest::bool::ANY);
    run(100, (sets, points), |((one, other, extend), points)| {
        prop_assume!(one.iter().chain(other.iter()).all(|stated| stated.broken.is_none()));
        // Either two sets that have little in common, or one with policies added.
        let new = match extend {
            false => other,
            true => {
                Policies::new(one.iter().chain(other.iter()).enumerate().map(|(at, stated)| {
                    (Id::parse(&format!("n{at}")).unwrap(), 1, (*stated.text).clone())
                }))
            }
        };
        let difference = one.difference(&new, None, NOW);
        for change in difference.gained.iter().chain(&difference.lost) {
            let Example { workload, identity, target, old: was, new: is } = &change.example;
            let (workload, identity) =
                (workload.parse().unwrap(), identity.as_ref().map(|id| id.parse().unwrap()));
            prop_assert_eq!(one.can_i(&workload, identity.as_ref(), target).allowed, was.allowed);
            prop_assert_eq!(new.can_i(&workload, identity.as_ref(), target).allowed, is.allowed);
            prop_assert_ne!(was.allowed, is.allowed);
        }
        let told = lines(&one, &new);
        prop_assert_eq!(&told.not_compared, &Vec::<String>::new());
        let all = &told.lines;
        let space = Space::of(all, &told.texts, None);
        let mut diagram = Diagram::new(all, &space);
        let root = diagram.root();
        let mut walk =
            Walk { nodes: &diagram.nodes, path: Vec::new(), regions: Vec::new(), unknown: false };
        walk.visit(root);
        prop_assert!(!walk.unknown);
        let switches = |target: &Target| {
            let upgrade =
                space.dimensions.iter().find(|one| matches!(one.atoms[0].value, Value::Upgrade(_)));
            // Where no rule admits a protocol, both sets refuse it, and claims are about other requests.
            target.upgrade.is_some() && upgrade.is_none_or(|one| one.atoms.len() == 1)
        };
        let is_told = |target: &Target, caller: &SpiffeId| {
            // Methods are compared as rules write them. Nobody bears an ID without a path: it is a trust domain's own.
            target.method.as_deref() != Some("get")
                && !switches(target)
                && !caller.path().is_empty()
        };
        for (target, caller) in points.iter().filter(|(target, caller)| is_told(target, caller)) {
            for me in ["spiffe://a/me", "spiffe://b/me", "spiffe://b/other"] {
                let me: SpiffeId = me.parse().unwrap();
                // One trust domain stands for the workload's own where no policy names that.
                let own = me.trust_domain_name().to_owned();
                let roots = || {
                    all.iter().flat_map(|line| &line.workloads).map(|shape| shape.root.as_deref())
                };
                let asks_own = roots().any(|root| root == Some(OTHER));
                let stands = |id: &SpiffeId| -> SpiffeId {
                    match asks_own
                        && id.trust_domain_name() == own
                        && !roots().any(|root| root == Some(&*own))
                    {
                        true => format!("spiffe://{OTHER}{}", id.path()).parse().unwrap(),
                        false => id.clone(),
                    }
                };
                for caller in [Some(caller), None] {
                    let (was, is) = (one.engine(&me), new.engine(&me));
                    let fields = target.fields();
                    let action = target.action(&fields);
                    let was = was.decide(&was.standing_of(caller), &action).is_allowed();
                    let is = is.decide(&is.standing_of(caller), &action).is_allowed();
                    let my_place = stands(&me);
                    let (callers_place, shown) =
                        told_by_symbols(&told, caller.map(&stands).as_ref(), target);
                    let fits = |region: &&Region| {
                        region.chosen.iter().all(|(at, atoms)| {
                            let dimension = &space.dimensions[*at];
                            let value = &dimension.atoms[0].value;
                            let members: Vec<bool> = all
                                .iter()
                                .map(|line| {
                                    member(value, line, &my_place, callers_place.as_ref(), &shown)
                                })
                                .collect();
                            atoms.iter().any(|atom| {
                                members.iter().zip(&dimension.by_line).all(|(member, by_line)| {
                                    by_line.as_ref().is_none_or(|atoms| atoms.contains(atom))
                                        == *member
                                })
                            })
                        })
                    };
                    let found = walk.regions.iter().find(fits).map(|region| region.gained);
                    let expected = (was != is).then_some(is);
                    prop_assert_eq!(found, expected, "{} {:?} {:?}", me, caller, target);
                }
            }
        }
        Ok(())
    });
}

#[test]
fn a_host_that_no_rule_names_is_told_apart_from_every_pattern() {
    let set = |to: serde_json::Value| set_of(&[("p", allow(json!([{ "to": to }])))]);
    let (old, new) = (set(json!({"methods": ["GET"]})), set(json!({"not_hosts": ["*.test"]})));
    let difference = old.difference(&new, None, NOW);
    let examples = |changes: &[Change]| -> Vec<(String, bool)> {
        let request = |change: &Change| {
            let target = &change.example.target;
            let is_test = target.host.as_deref().unwrap_or_default().ends_with(".test");
            (target.method.clone().unwrap_or_default(), is_test)
        };
        changes.iter().map(request).collect()
    };
    assert_eq!(examples(&difference.lost), [("GET".to_owned(), true)]);
    let gained = examples(&difference.gained);
    assert!(
        !gained.is_empty() && gained.iter().all(|(method, is_test)| method != "GET" && !is_test)
    );
}
