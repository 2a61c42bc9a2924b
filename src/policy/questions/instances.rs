//! Rules that compare names in braces, as rules that compare none: with texts in the place of the names.
//!
//! The texts are those that rules name where names in braces stand, and some that stand for all others ([`SYMBOLS`]): one for
//! each place where a name can be bound, so that texts of one action may all differ or be the same. Where a name is bound,
//! callers and hosts then bear no other text; where it is compared, any other text is one that equals none of them.

use std::collections::BTreeSet;

use super::captures::{compared, is_segment, names_of};
use super::shape::{Segment, Shape};
use crate::model::{From, PolicyAction, PolicyRule, To};

/// Each stands for any one text that no rule names, and differs from the others: the text, and how claims show it.
pub(super) const SYMBOLS: [(&str, &str); 5] = [
    ("any-same-text", "{any}"),
    ("second-same-text", "{second}"),
    ("third-same-text", "{third}"),
    ("fourth-same-text", "{fourth}"),
    ("fifth-same-text", "{fifth}"),
];

/// So many texts are put into the place of one rule's names.
const MOST: usize = 2048;

/// What may stand in the place of names in braces.
#[derive(Clone, Debug, Default)]
pub(super) struct Texts {
    pub(super) values: BTreeSet<String>,
    /// In the test, requests are told as the symbols tell them.
    #[cfg(test)]
    pub(super) symbols: usize,
    #[cfg(test)]
    pub(super) affixes: Vec<(String, String)>,
    #[cfg(test)]
    pub(super) of_paths: BTreeSet<usize>,
    /// There are more names than symbols.
    pub(super) cut: bool,
}

/// Where an instance's names were bound.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Binders {
    /// By callers whom this means, in these segments.
    pub(super) principal: Option<(Shape, Vec<usize>)>,
    /// By the label before this, in lower case.
    pub(super) suffix: Option<String>,
}

/// A rule with texts in the place of its names.
#[derive(Clone, Debug)]
pub(super) struct Instance {
    /// Names that are compared stand only in its paths still.
    pub(super) rule: PolicyRule,
    bound: Vec<Bound>,
    pub(super) binders: Binders,
    /// It is about callers with an identity alone, or about those without.
    pub(super) identity: Option<bool>,
    /// It is about requests and connections with a host alone, or about those without.
    pub(super) host: Option<bool>,
}

/// What a name stands for.
#[derive(Clone, Debug)]
struct Bound {
    name: String,
    text: String,
    /// By the host, of which case means nothing; else by the caller.
    by_host: bool,
}

impl Bound {
    /// The text in a path; nothing where it is the same as nothing.
    fn in_path(&self, wide: bool, ignore_case: bool) -> Option<Segment> {
        let lower = self.text.to_ascii_lowercase();
        let folded = || Segment::Folded(lower.as_str().into());
        match (self.by_host, ignore_case) {
            (true, _) if wide || ignore_case => Some(folded()),
            (true, _) => Some(Segment::exactly(&lower)),
            (false, false) => Some(Segment::exactly(&self.text)),
            // To allow, text whose case means nothing is its lower case.
            (false, true) => (wide || self.text == lower).then(folded),
        }
    }

    /// The text as a host's first label; nothing where it is none, or is the same as none.
    fn in_host(&self, wide: bool) -> Option<String> {
        let lower = self.text.to_ascii_lowercase();
        let fits = (wide || self.by_host || self.text == lower) && !lower.contains('.');
        fits.then_some(lower)
    }
}

impl Instance {
    /// The rule as it stands: names bind nothing.
    pub(super) fn plain(rule: PolicyRule) -> Self {
        Self { rule, bound: Vec::new(), binders: Binders::default(), identity: None, host: None }
    }

    /// The paths that a template means with the texts in the place of its names, if it means any.
    pub(super) fn template(&self, text: &str, wide: bool, ignore_case: bool) -> Option<Shape> {
        let mut shape = Shape::of_template(text, wide, ignore_case);
        for (segment, part) in shape.segments.iter_mut().zip(text.split('/').skip(1)) {
            let name = names_of(part).next();
            if let Some(bound) = self.bound.iter().find(|bound| Some(&*bound.name) == name) {
                *segment = bound.in_path(wide, ignore_case)?;
            }
        }
        Some(shape)
    }
}

/// The segments of an ID in which these names stand.
fn places(principal: &str, names: &[String]) -> Vec<usize> {
    let parts = principal.split('/').skip(3).enumerate();
    let bears = |part: &str| names_of(part).any(|name| names.iter().any(|one| one == name));
    parts.filter(|(_, part)| bears(part)).map(|(at, _)| at).collect()
}

/// The name in the first label of a host, if one of these stands there, and what follows it.
fn captured<'h>(host: &'h str, names: &[String]) -> Option<(&'h str, String)> {
    let name = names_of(host).next().filter(|name| names.iter().any(|one| one == name))?;
    Some((name, host.split_once('}')?.1.trim_end_matches('.').to_ascii_lowercase()))
}

impl Texts {
    /// Those that count for these rules.
    pub(super) fn of<'r>(rules: impl Iterator<Item = &'r PolicyRule> + Clone) -> Self {
        let (mut of_callers, mut of_paths) = (BTreeSet::new(), BTreeSet::new());
        let mut suffixes = BTreeSet::new();
        let mut by_host = false;
        for rule in rules.clone() {
            let names = compared(rule);
            let (from, to) = (rule.from.iter(), rule.to.iter());
            let principals = from.flat_map(|from| &from.principals);
            let of_principals: Vec<usize> =
                principals.flat_map(|principal| places(principal, &names)).collect();
            by_host |=
                to.clone().flat_map(|to| &to.hosts).any(|host| captured(host, &names).is_some());
            let hosts = to.clone().flat_map(|to| to.hosts.iter().chain(&to.not_hosts));
            suffixes.extend(hosts.filter_map(|host| captured(host, &names)).map(|(_, rest)| rest));
            for path in to.flat_map(|to| to.paths.iter().chain(&to.not_paths)) {
                let parts = path.split('/').skip(1).enumerate();
                let bears =
                    |part: &str| names_of(part).any(|name| names.iter().any(|one| one == name));
                of_paths.extend(parts.filter(|(_, part)| bears(part)).map(|(at, _)| at));
            }
            of_callers.extend(of_principals);
        }
        let count = of_callers.len() + usize::from(by_host);
        if count == 0 {
            return Self::default();
        }
        let mut named: BTreeSet<String> = BTreeSet::new();
        let (mut prefixes, mut ends) = (BTreeSet::from([""]), BTreeSet::from([""]));
        for rule in rules {
            let from = rule.from.iter();
            let patterns =
                from.clone().flat_map(|from| from.principals.iter().chain(&from.not_principals));
            for pattern in patterns {
                let parts = pattern.split('/').skip(3).enumerate();
                named.extend(
                    parts.filter(|(at, _)| of_callers.contains(at)).map(|(_, part)| part.into()),
                );
            }
            let namespaces =
                from.clone().flat_map(|from| from.namespaces.iter().chain(&from.not_namespaces));
            let accounts = from
                .flat_map(|from| from.service_accounts.iter().chain(&from.not_service_accounts));
            let mut of_kubernetes: Vec<(usize, &str)> = Vec::new();
            for entry in namespaces {
                of_kubernetes.extend([(0, "ns"), (1, entry), (2, "sa")]);
            }
            for (namespace, account) in accounts.filter_map(|entry| entry.split_once('/')) {
                of_kubernetes.extend([(0, "ns"), (1, namespace), (2, "sa"), (3, account)]);
            }
            for (_, text) in of_kubernetes.into_iter().filter(|(at, _)| of_callers.contains(at)) {
                match (text.strip_suffix('*'), text.strip_prefix('*')) {
                    (Some(prefix), _) => drop(prefixes.insert(prefix)),
                    (None, Some(end)) => drop(ends.insert(end)),
                    (None, None) => drop(named.insert(text.into())),
                }
            }
            let to = rule.to.iter();
            let paths = to.clone().flat_map(|to| to.paths.iter().chain(&to.not_paths));
            let calls = to.clone().flat_map(|to| to.grpc.iter().chain(&to.not_grpc));
            let segments = paths
                .flat_map(|path| path.split('/').skip(1).enumerate())
                .chain(calls.flat_map(|call| call.split('/').enumerate()));
            for (_, part) in segments.filter(|(at, _)| of_paths.contains(at)) {
                let text = percent_encoding::percent_decode_str(part).decode_utf8_lossy();
                named.extend([text.to_ascii_lowercase(), text.into_owned()]);
            }
            for host in to.flat_map(|to| to.hosts.iter().chain(&to.not_hosts)) {
                let host = host.trim_end_matches('.').to_ascii_lowercase();
                let label = |rest: &String| host.strip_suffix(&**rest).map(str::to_owned);
                named.extend(suffixes.iter().filter_map(label));
            }
        }
        let affixes: Vec<(String, String)> = prefixes
            .iter()
            .flat_map(|prefix| ends.iter().map(|end| ((*prefix).to_owned(), (*end).to_owned())))
            .collect();
        let symbols = SYMBOLS.iter().take(count).flat_map(|(symbol, _)| {
            affixes.iter().map(move |(prefix, end)| format!("{prefix}{symbol}{end}"))
        });
        let values = named.into_iter().filter(|text| is_segment(text)).chain(symbols).collect();
        Self {
            values,
            #[cfg(test)]
            symbols: count,
            #[cfg(test)]
            of_paths,
            cut: count > SYMBOLS.len(),
            #[cfg(test)]
            affixes,
        }
    }
}

/// The rule as rules that compare no names; nothing, where they would be too many.
pub(super) fn instances(
    rule: &PolicyRule,
    action: PolicyAction,
    texts: &Texts,
) -> Option<Vec<Instance>> {
    let names = compared(rule);
    if names.is_empty() {
        return Some(vec![Instance::plain(rule.clone())]);
    }
    let mut found = Vec::new();
    if action == PolicyAction::Allow {
        add_pairs(rule, action, texts, &[], &mut found)?;
        return Some(found);
    }
    // A deny rule holds for what is absent, which binds no names; nothing is exempt by a name that it would have bound.
    let (from, to) = (rule.from.clone().unwrap_or_default(), rule.to.clone().unwrap_or_default());
    let bears = |list: &[String]| {
        list.iter().flat_map(|text| names_of(text)).any(|name| names.iter().any(|one| one == name))
    };
    let by_caller = bears(&from.principals);
    let with_host = bears(&to.hosts) || bears(&to.not_hosts);
    for (nobody, no_host) in [(false, false), (true, false), (false, true), (true, true)] {
        if (nobody && !by_caller) || (no_host && !with_host) {
            continue;
        }
        let mut absent: Vec<&str> = Vec::new();
        let mut rule = rule.clone();
        if nobody {
            absent.extend(from.principals.iter().flat_map(|text| names_of(text)));
            rule.from = Some(From { principals: Vec::new(), ..from.clone() });
        }
        if no_host {
            absent.extend(to.hosts.iter().flat_map(|text| names_of(text)));
            rule.to = Some(To { hosts: Vec::new(), not_hosts: Vec::new(), ..to.clone() });
        }
        let mut of_these = Vec::new();
        add_pairs(&rule, action, texts, &absent, &mut of_these)?;
        found.extend(of_these.into_iter().map(|one| Instance {
            identity: by_caller.then_some(!nobody),
            host: with_host.then_some(!no_host),
            ..one
        }));
    }
    Some(found)
}

/// A rule with several principals and hosts is as several rules with one of each. `absent`: names that nobody binds who could.
fn add_pairs(
    rule: &PolicyRule,
    action: PolicyAction,
    texts: &Texts,
    absent: &[&str],
    found: &mut Vec<Instance>,
) -> Option<()> {
    for pair in one_of_each(rule) {
        let pair = without_open_exceptions(pair, absent);
        found.extend(of_pair(&pair, action, texts)?);
        if found.len() > MOST {
            return None;
        }
    }
    Some(())
}

/// The rule without what it exempts by names that are absent, and that its one principal and its one host do not bind either.
fn without_open_exceptions(rule: PolicyRule, absent: &[&str]) -> PolicyRule {
    let (from, mut to) =
        (rule.from.clone().unwrap_or_default(), rule.to.clone().unwrap_or_default());
    let binds = |name: &str| {
        let binders = from.principals.iter().chain(&to.hosts);
        binders.flat_map(|text| names_of(text)).any(|bound| bound == name)
    };
    let open: Vec<&str> = absent.iter().copied().filter(|name| !binds(name)).collect();
    let is_kept = |text: &String| !names_of(text).any(|name| open.contains(&name));
    to.not_hosts.retain(is_kept);
    to.not_paths.retain(is_kept);
    PolicyRule { to: Some(to), ..rule }
}

fn one_of_each(rule: &PolicyRule) -> Vec<PolicyRule> {
    let (from, to) = (rule.from.clone().unwrap_or_default(), rule.to.clone().unwrap_or_default());
    let single = |list: &[String]| -> Vec<Vec<String>> {
        match list {
            [] => vec![Vec::new()],
            _ => list.iter().map(|text| vec![text.clone()]).collect(),
        }
    };
    let mut rules = Vec::new();
    for principals in single(&from.principals) {
        for hosts in single(&to.hosts) {
            let from = From { principals: principals.clone(), ..from.clone() };
            let to = To { hosts, ..to.clone() };
            rules.push(PolicyRule { from: Some(from), to: Some(to), ..rule.clone() });
        }
    }
    rules
}

/// Of a rule with one principal and one host at most.
fn of_pair(rule: &PolicyRule, action: PolicyAction, texts: &Texts) -> Option<Vec<Instance>> {
    let names = compared(rule);
    if names.is_empty() {
        return Some(vec![Instance::plain(rule.clone())]);
    }
    let (from, to) = (rule.from.clone().unwrap_or_default(), rule.to.clone().unwrap_or_default());
    let principal = from.principals.first();
    let by_caller: Vec<&str> = principal.map(|text| names_of(text).collect()).unwrap_or_default();
    let at = principal.map(|text| places(text, &names)).unwrap_or_default();
    let suffix = to.hosts.first().and_then(|host| captured(host, &names));
    let suffix = suffix.filter(|(name, _)| !by_caller.contains(name)).map(|(_, rest)| rest);
    let binders = Binders {
        principal: principal.filter(|_| !at.is_empty()).map(|text| (Shape::of_text(text), at)),
        suffix,
    };
    let mut all: Vec<Vec<Bound>> = vec![Vec::new()];
    for name in &names {
        let by_host = !by_caller.contains(&&**name);
        let fits = |text: &&String| {
            !by_host || (!text.contains('.') && **text == text.to_ascii_lowercase())
        };
        let values: Vec<&String> = texts.values.iter().filter(fits).collect();
        if all.len().saturating_mul(values.len()) > MOST {
            return None;
        }
        let bound = |text: &String| Bound { name: name.clone(), text: text.clone(), by_host };
        let longer = |chosen: &Vec<Bound>| {
            let chosen = chosen.clone();
            values.iter().map(move |text| [chosen.clone(), vec![bound(text)]].concat())
        };
        all = all.iter().flat_map(longer).collect();
    }
    let instance = |bound: Vec<Bound>| {
        let braced = |entry: &String| {
            bound.iter().fold(entry.clone(), |entry, bound| {
                entry.replace(&format!("{{{}}}", bound.name), &bound.text)
            })
        };
        let wide = action == PolicyAction::Deny;
        let label = |host: &String, wide: bool| {
            let Some((name, _)) = captured(host, &names) else { return Some(host.clone()) };
            let bound = bound.iter().find(|bound| bound.name == name)?;
            Some(format!("{}{}", bound.in_host(wide)?, host.split_once('}')?.1))
        };
        let hosts: Vec<String> = to.hosts.iter().filter_map(|host| label(host, wide)).collect();
        // The one host that it asks for is none with this text.
        if hosts.len() < to.hosts.len() {
            return None;
        }
        let not_hosts = to.not_hosts.iter().filter_map(|host| label(host, !wide)).collect();
        let from =
            From { principals: from.principals.iter().map(braced).collect(), ..from.clone() };
        let to = To { hosts, not_hosts, ..to.clone() };
        let rule = PolicyRule { from: Some(from), to: Some(to), ..rule.clone() };
        Some(Instance { rule, bound, binders: binders.clone(), identity: None, host: None })
    };
    Some(all.into_iter().filter_map(instance).collect())
}
