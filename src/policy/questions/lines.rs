//! The rules of two sets as boxes: each a set of workloads, callers, methods, paths and so on, all of which must hold.

use std::collections::{BTreeMap, BTreeSet};

use super::callers::Callers;
use super::captures::names_of;
use super::instances::{Binders, Instance, SYMBOLS, Texts, instances};
use super::overlap::hosts_meet;
use super::policies::{Policies, Via};
use super::shape::Shape;
use crate::model::{
    From, Mode, PolicyAction, PolicyRule, PolicySelector, TimeWindow, To, ValueMatch, When,
};

/// A trust domain that stands for all that no policy names, where rules mean the workload's own.
pub(super) const OTHER: &str = "any-other-trust-domain";
/// So many pairs of rules are looked at to leave out those that cannot matter.
const PAIRS: usize = 4_000_000;

/// A box: the part of a rule that holds for requests, or for connections.
#[derive(Clone, Debug)]
pub(super) struct Line {
    pub(super) old: Option<Via>,
    pub(super) new: Option<Via>,
    pub(super) action: PolicyAction,
    pub(super) connection: bool,
    pub(super) workloads: Vec<Shape>,
    pub(super) callers: Callers,
    pub(super) selector: PolicySelector,
    /// Of it, hosts, ports, methods and upgrades are looked at.
    pub(super) to: To,
    /// It is about gRPC calls alone.
    pub(super) is_call: bool,
    pub(super) paths: Paths,
    /// It is about requests and connections with a host alone, or about those without.
    pub(super) host: Option<bool>,
    /// Where its names in braces were bound.
    pub(super) binders: Binders,
    /// It decides for lots below.
    pub(super) below: u8,
    /// What has to hold, or not to hold, besides: a rule with that part alone.
    pub(super) conditions: Vec<(PolicyRule, bool)>,
}

/// A set of paths.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Paths {
    /// Each of these lists must mean it.
    pub(super) all_of: Vec<Vec<Shape>>,
    pub(super) but: Vec<Shape>,
}

impl Line {
    pub(super) fn is_common(&self) -> bool {
        self.old.is_some() && self.new.is_some()
    }
}

/// A rule as it stands in one of the sets or in both.
struct Ruled {
    old: Option<Via>,
    new: Option<Via>,
    action: PolicyAction,
    mode: Mode,
    selector: PolicySelector,
    rule: PolicyRule,
}

/// Both sets as boxes.
pub(super) struct Lines {
    pub(super) lines: Vec<Line>,
    /// What stands in the place of names in braces.
    pub(super) texts: Texts,
    /// What could not be put into boxes.
    pub(super) not_compared: Vec<String>,
}

/// Both sets as boxes: the rules that changed, and those that may hold where one of them does.
pub(super) fn lines(old: &Policies, new: &Policies) -> Lines {
    let mut rules: BTreeMap<String, Ruled> = BTreeMap::new();
    for (policies, is_old) in [(old, true), (new, false)] {
        for (via, selector, rule) in ruled(policies) {
            let bare = PolicyRule { name: None, mode: None, ..rule };
            let key = serde_json::json!([via.action, via.mode, selector, bare]).to_string();
            let entry = rules.entry(key).or_insert_with(|| Ruled {
                old: None,
                new: None,
                action: via.action,
                mode: via.mode,
                selector,
                rule: bare,
            });
            let place = if is_old { &mut entry.old } else { &mut entry.new };
            place.get_or_insert(via);
        }
    }
    let rules = relevant(rules.into_values().collect());
    let texts = Texts::of(rules.iter().map(|rule| &rule.rule));
    let mut not_compared = Vec::new();
    if texts.cut {
        let places = SYMBOLS.len();
        not_compared.push(format!("names in braces, bound in more than {places} places at once"));
    }
    let domains = domains(&rules);
    let mut lines = Vec::new();
    for rule in &rules {
        let found = instances(&rule.rule, rule.action, &texts).unwrap_or_else(|| {
            let via = rule.old.as_ref().or(rule.new.as_ref());
            let via = via.map(ToString::to_string).unwrap_or_default();
            not_compared.push(format!("{via}: too many texts in the place of names in braces"));
            vec![Instance::plain(rule.rule.clone())]
        });
        for instance in found {
            add_lines(rule, &instance, &domains, &mut lines);
        }
    }
    Lines { lines, texts, not_compared }
}

/// The rules that changed, and those that may hold where one of them does.
fn relevant(rules: Vec<Ruled>) -> Vec<Ruled> {
    let domains = domains(&rules);
    // As they stand, rules mean at least what they mean with texts in the place of names.
    let wide = |rule: &Ruled| {
        let mut lines = Vec::new();
        add_lines(rule, &Instance::plain(rule.rule.clone()), &domains, &mut lines);
        lines
    };
    let wide: Vec<Vec<Line>> = rules.iter().map(wide).collect();
    let changed: Vec<&Line> = wide.iter().flatten().filter(|line| !line.is_common()).collect();
    if changed.len().saturating_mul(rules.len()) > PAIRS {
        return rules;
    }
    let matters = |line: &Line| !line.is_common() || changed.iter().any(|one| may_meet(one, line));
    let kept: Vec<bool> = wide.iter().map(|lines| lines.iter().any(matters)).collect();
    rules.into_iter().zip(kept).filter(|(_, kept)| *kept).map(|(rule, _)| rule).collect()
}

/// Every rule that decides. A broken policy is a rule that refuses everything, or one that allows nothing.
fn ruled(policies: &Policies) -> Vec<(Via, PolicySelector, PolicyRule)> {
    let mut found = Vec::new();
    for stated in policies.iter() {
        let selector = stated.text.selector.clone();
        if stated.broken.is_some() {
            let via = stated.whole();
            if via.action == PolicyAction::Deny && via.mode != Mode::Observe {
                found.push((via, stated.readable_selector(), PolicyRule::default()));
            }
            continue;
        }
        for (at, rule) in stated.text.rules.iter().enumerate() {
            let via = stated.rule(at);
            if via.mode != Mode::Observe {
                found.push((via, selector.clone(), rule.clone()));
            }
        }
    }
    found
}

/// The trust domains of workloads, and one that no selector names: what namespaces mean depends on them.
fn domains(rules: &[Ruled]) -> BTreeSet<String> {
    let texts = rules.iter().flat_map(|rule| &rule.selector.workloads);
    let named = texts.filter_map(|text| Shape::of_text(text).root).map(String::from);
    let of_rules = rules.iter().filter_map(|rule| rule.rule.from.as_ref()).flat_map(|from| {
        let patterns = from.principals.iter().chain(&from.not_principals);
        let roots = patterns.filter_map(|text| Shape::of_text(text).root).map(String::from);
        roots.chain(from.trust_domains.iter().chain(&from.not_trust_domains).cloned())
    });
    named.chain(of_rules).chain([OTHER.to_owned()]).collect()
}

fn add_lines(rule: &Ruled, instance: &Instance, domains: &BTreeSet<String>, lines: &mut Vec<Line>) {
    let PolicyRule { from, to, when, .. } = instance.rule.clone();
    let (from, to, when) =
        (from.unwrap_or_default(), to.unwrap_or_default(), when.unwrap_or_default());
    let allow = rule.action == PolicyAction::Allow;
    let mut workloads: Vec<Shape> =
        rule.selector.workloads.iter().map(|text| Shape::of_text(text)).collect();
    if workloads.is_empty() {
        workloads.push(Shape::all());
    }
    let kubernetes = [
        &from.namespaces,
        &from.not_namespaces,
        &from.service_accounts,
        &from.not_service_accounts,
    ];
    let asks_own = from.trust_domains.is_empty() && kubernetes.iter().any(|list| !list.is_empty());
    let mut at: Vec<(Vec<Shape>, Callers)> = Vec::new();
    if asks_own {
        for domain in domains {
            let of_domain = Shape::of_domain(domain);
            let met: Vec<Shape> = workloads.iter().filter_map(|one| one.meet(&of_domain)).collect();
            if !met.is_empty() {
                at.push((met, Callers::of(Some(&from), rule.action, domain)));
            }
        }
    } else {
        at.push((workloads, Callers::of(Some(&from), rule.action, "")));
    }
    let below = match rule.mode {
        Mode::Enforce => 100,
        Mode::Observe => 0,
        Mode::Canary(percent) => percent,
    };
    for (workloads, callers) in at {
        let callers = match instance.identity {
            None => callers,
            Some(true) => Callers { nobody: false, ..callers },
            Some(false) => Callers { nobody: true, ..Callers::default() },
        };
        let line = Line {
            old: rule.old.clone(),
            new: rule.new.clone(),
            action: rule.action,
            connection: false,
            workloads,
            callers,
            selector: PolicySelector { workloads: Vec::new(), ..rule.selector.clone() },
            to: To { paths: Vec::new(), not_paths: Vec::new(), ..to.clone() },
            is_call: allow && !to.grpc.is_empty(),
            paths: Paths::default(),
            host: instance.host,
            binders: instance.binders.clone(),
            below,
            conditions: of_connections(&from, &when),
        };
        add_connection(&line, &to, &from, &when, lines);
        add_requests(line, instance, &from, &when, lines);
    }
}

/// Layer 4: what only HTTP has is absent, which allows nothing and refuses.
fn add_connection(line: &Line, to: &To, from: &From, when: &When, lines: &mut Vec<Line>) {
    let To { hosts, not_hosts, ports, not_ports, .. } = to.clone();
    let bare = To { hosts, not_hosts, ports, not_ports, ..To::default() };
    let plain = line.selector == PolicySelector::default()
        && bare == To { ignore_case: false, ..to.clone() }
        && from.claims.is_empty()
        && when.headers.is_empty()
        && when.query.is_empty();
    if !plain && line.action == PolicyAction::Allow {
        return;
    }
    lines.push(Line {
        connection: true,
        selector: PolicySelector::default(),
        to: bare,
        is_call: false,
        ..line.clone()
    });
}

fn add_requests(
    mut line: Line,
    instance: &Instance,
    from: &From,
    when: &When,
    lines: &mut Vec<Line>,
) {
    let to = &instance.rule.to.clone().unwrap_or_default();
    let allow = line.action == PolicyAction::Allow;
    let template = |wide: bool| move |text: &String| instance.template(text, wide, to.ignore_case);
    let call = |wide: bool| {
        move |text: &String| Shape::of_template(&format!("/{text}"), wide, to.ignore_case)
    };
    let mut all_of: Vec<Vec<Shape>> = Vec::new();
    if !to.paths.is_empty() {
        all_of.push(to.paths.iter().filter_map(template(!allow)).collect());
    }
    if !to.grpc.is_empty() {
        all_of.push(to.grpc.iter().map(call(!allow)).collect());
    }
    let mut but: Vec<Shape> = to.not_paths.iter().filter_map(template(allow)).collect();
    let not_calls: Vec<Shape> = to.not_grpc.iter().map(call(allow)).collect();
    line.conditions.extend(of_requests(from, when));
    if line.is_call {
        line.conditions.push((is_grpc(), true));
    }
    if allow || not_calls.is_empty() {
        but.extend(not_calls);
        lines.push(Line { paths: Paths { all_of, but }, ..line });
        return;
    }
    // A deny rule exempts calls alone: it holds for other paths, and for what is no call.
    let mut no_call = line.clone();
    no_call.conditions.push((is_grpc(), false));
    lines.push(Line { paths: Paths { all_of: all_of.clone(), but: but.clone() }, ..no_call });
    but.extend(not_calls);
    lines.push(Line { paths: Paths { all_of, but }, ..line });
}

/// Stands for "it is a gRPC call".
pub(super) fn is_grpc() -> PolicyRule {
    of_to(To { grpc: vec!["any".into()], ..To::default() })
}

fn of_to(to: To) -> PolicyRule {
    PolicyRule { to: Some(to), ..PolicyRule::default() }
}

fn of_from(from: From) -> PolicyRule {
    PolicyRule { from: Some(from), ..PolicyRule::default() }
}

fn of_when(when: When) -> PolicyRule {
    PolicyRule { when: Some(when), ..PolicyRule::default() }
}

/// Conditions that connections have as well.
fn of_connections(from: &From, when: &When) -> Vec<(PolicyRule, bool)> {
    let mut found = Vec::new();
    if !from.ip_blocks.is_empty() {
        found.push((of_from(From { ip_blocks: from.ip_blocks.clone(), ..From::default() }), true));
    }
    if !from.not_ip_blocks.is_empty() {
        found.push((
            of_from(From { ip_blocks: from.not_ip_blocks.clone(), ..From::default() }),
            false,
        ));
    }
    if !from.remote_ip_blocks.is_empty() {
        let remote = From { remote_ip_blocks: from.remote_ip_blocks.clone(), ..From::default() };
        found.push((of_from(remote), true));
    }
    if !from.not_remote_ip_blocks.is_empty() {
        let remote =
            From { remote_ip_blocks: from.not_remote_ip_blocks.clone(), ..From::default() };
        found.push((of_from(remote), false));
    }
    let times = |times: &[TimeWindow]| of_when(When { times: times.to_vec(), ..When::default() });
    if !when.times.is_empty() {
        found.push((times(&when.times), true));
    }
    found.extend(when.not_times.iter().map(|span| (times(std::slice::from_ref(span)), false)));
    found.extend(
        when.cel
            .iter()
            .map(|text| (of_when(When { cel: Some(text.clone()), ..When::default() }), true)),
    );
    found
}

/// Conditions that only requests have.
fn of_requests(from: &From, when: &When) -> Vec<(PolicyRule, bool)> {
    let one = |entry: &ValueMatch| vec![entry.clone()];
    let claims =
        from.claims.iter().map(|claim| of_from(From { claims: one(claim), ..From::default() }));
    let headers =
        when.headers.iter().map(|header| of_when(When { headers: one(header), ..When::default() }));
    let query =
        when.query.iter().map(|value| of_when(When { query: one(value), ..When::default() }));
    claims.chain(headers).chain(query).map(|rule| (rule, true)).collect()
}

/// Can a rule that changed and another hold for one action? Only where that surely cannot be, it is left out.
pub(super) fn may_meet(one: &Line, other: &Line) -> bool {
    let shapes = |one: &[Shape], other: &[Shape]| {
        one.iter().any(|one| other.iter().any(|other| one.meet(other).is_some()))
    };
    let nobody = one.callers.nobody && other.callers.nobody;
    let denies = one.action == PolicyAction::Deny && other.action == PolicyAction::Deny;
    let listed = |one: &[String], other: &[String], meet: fn(&str, &str) -> bool| {
        one.is_empty()
            || other.is_empty()
            || one.iter().any(|one| other.iter().any(|other| meet(one, other)))
    };
    one.connection == other.connection
        && shapes(&one.workloads, &other.workloads)
        && (nobody || shapes(&one.callers.any_of, &other.callers.any_of))
        && listed(&one.to.methods, &other.to.methods, |a, b| a.eq_ignore_ascii_case(b))
        // Where the host is absent, deny rules hold whatever hosts they name.
        && (denies || listed(&one.to.hosts, &other.to.hosts, hosts_meet))
        && (one.to.ports.is_empty()
            || other.to.ports.is_empty()
            || one.to.ports.iter().any(|port| other.to.ports.contains(port)))
        && one
            .paths
            .all_of
            .iter()
            .all(|list| other.paths.all_of.iter().all(|found| shapes(list, found)))
}

/// A name in braces that is left over binds nothing: any text.
pub(super) fn is_free(text: &str) -> bool {
    names_of(text).next().is_some()
}
