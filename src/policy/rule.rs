//! Compiled rules: who and what, and whether a part holds.
//!
//! Where an input can be taken in two ways, or is absent, an allow rule does not hold and a deny rule does.

use std::fmt::Display;

use super::action::Facts;
use super::decision::Clause;
use super::host::HostPattern;
use super::path::{Look, Template};
use crate::identity::{SpiffeId, SpiffePattern, TrustDomain};
use crate::model::{From, Id, Invalid, Labels, PolicyAction, PolicyRule, PolicySelector, To};

/// One rule of one policy.
#[derive(Debug)]
pub(super) struct Rule {
    /// Index of its policy.
    pub(super) policy: u32,
    pub(super) name: Box<str>,
    pub(super) action: PolicyAction,
    pub(super) from: Callers,
    pub(super) to: Targets,
}

impl Rule {
    pub(super) fn compile(
        policy: u32,
        at: usize,
        action: PolicyAction,
        rule: &PolicyRule,
    ) -> Result<Self, Invalid> {
        let name = match &rule.name {
            Some(name) if name.is_empty() || name.chars().count() > 256 => {
                return Err(Invalid(format!("rules[{at}].name: has 1 to 256 characters")));
            }
            Some(name) if name.chars().any(char::is_control) => {
                return Err(Invalid(format!("rules[{at}].name: has no control characters")));
            }
            Some(name) => name.as_str().into(),
            None => (at + 1).to_string().into(),
        };
        if let Some(field) = not_yet(rule) {
            return Err(Invalid(format!("rules[{at}].{field}: not supported yet")));
        }
        let field = |error: (&str, usize, String)| {
            let (field, entry, sentence) = error;
            Invalid(format!("rules[{at}].{field}[{entry}]: {sentence}"))
        };
        let from =
            rule.from.as_ref().map_or(Ok(Callers::default()), Callers::compile).map_err(field)?;
        let to =
            rule.to.as_ref().map_or(Ok(Targets::default()), Targets::compile).map_err(field)?;
        Ok(Self { policy, name, action, from, to })
    }
}

/// A field that the rule bears and nothing judges.
fn not_yet(rule: &PolicyRule) -> Option<&'static str> {
    let (from, to) = (rule.from.clone().unwrap_or_default(), rule.to.clone().unwrap_or_default());
    [
        (rule.mode.is_some(), "mode"),
        (rule.when.is_some(), "when"),
        (
            from != From {
                principals: from.principals.clone(),
                not_principals: from.not_principals.clone(),
                trust_domains: from.trust_domains.clone(),
                ..From::default()
            },
            "from",
        ),
        (
            to != To {
                hosts: to.hosts.clone(),
                ports: to.ports.clone(),
                methods: to.methods.clone(),
                paths: to.paths.clone(),
                not_methods: to.not_methods.clone(),
                not_paths: to.not_paths.clone(),
                ..To::default()
            },
            "to",
        ),
    ]
    .into_iter()
    .find_map(|(bears, field)| bears.then_some(field))
}

type FieldError = (&'static str, usize, String);

fn each<T, E: Display>(
    field: &'static str,
    texts: &[String],
    parse: impl Fn(&str) -> Result<T, E>,
) -> Result<Box<[T]>, FieldError> {
    let parsed = texts
        .iter()
        .enumerate()
        .map(|(at, text)| parse(text).map_err(|error| (field, at, error.to_string())));
    parsed.collect()
}

fn quoted<T, E: Display>(text: &str, parsed: Result<T, E>) -> Result<T, String> {
    parsed.map_err(|error| format!("\"{}\" {error}", text.escape_debug()))
}

pub(super) fn parse_pattern(text: &str) -> Result<SpiffePattern, String> {
    quoted(text, text.parse::<SpiffePattern>())
}

/// Who calls.
#[derive(Debug, Default)]
pub(super) struct Callers {
    pub(super) principals: Box<[SpiffePattern]>,
    pub(super) trust_domains: Box<[TrustDomain]>,
    pub(super) not_principals: Box<[SpiffePattern]>,
}

impl Callers {
    fn compile(from: &From) -> Result<Self, FieldError> {
        Ok(Self {
            principals: each("from.principals", &from.principals, parse_pattern)?,
            trust_domains: each("from.trust_domains", &from.trust_domains, |text| {
                quoted(text, text.parse::<TrustDomain>())
            })?,
            not_principals: each("from.not_principals", &from.not_principals, parse_pattern)?,
        })
    }

    /// The first part that does not hold for this caller.
    pub(super) fn fails(&self, caller: Option<&SpiffeId>, action: PolicyAction) -> Option<Clause> {
        let Some(id) = caller else { return self.fails_for_nobody(action) };
        let Self { principals, trust_domains, not_principals } = self;
        if !principals.is_empty() && !principals.iter().any(|pattern| pattern.matches(id)) {
            return Some(Clause::Principals);
        }
        let domain = id.trust_domain_name();
        if !trust_domains.is_empty() && !trust_domains.iter().any(|td| td.as_str() == domain) {
            return Some(Clause::TrustDomains);
        }
        not_principals.iter().any(|pattern| pattern.matches(id)).then_some(Clause::NotPrincipals)
    }

    /// An absent identity: an allow rule that asks for one does not hold, a deny rule does.
    fn fails_for_nobody(&self, action: PolicyAction) -> Option<Clause> {
        if action == PolicyAction::Deny {
            return None;
        }
        [
            (self.principals.is_empty(), Clause::Principals),
            (self.trust_domains.is_empty(), Clause::TrustDomains),
            (self.not_principals.is_empty(), Clause::NotPrincipals),
        ]
        .into_iter()
        .find_map(|(absent, clause)| (!absent).then_some(clause))
    }

    /// Does any part ask for an identity?
    pub(super) fn asks_identity(&self) -> bool {
        !(self.principals.is_empty()
            && self.trust_domains.is_empty()
            && self.not_principals.is_empty())
    }
}

/// What is called.
#[derive(Debug, Default)]
pub(super) struct Targets {
    pub(super) hosts: Box<[HostPattern]>,
    pub(super) ports: Box<[u16]>,
    pub(super) methods: Box<[Box<str>]>,
    pub(super) paths: Box<[Template]>,
    pub(super) not_methods: Box<[Box<str>]>,
    pub(super) not_paths: Box<[Template]>,
}

impl Targets {
    fn compile(to: &To) -> Result<Self, FieldError> {
        if let Some(at) = to.ports.iter().position(|port| *port == 0) {
            return Err(("to.ports", at, "a port is 1 to 65535".into()));
        }
        Ok(Self {
            hosts: each("to.hosts", &to.hosts, HostPattern::parse)?,
            ports: to.ports.as_slice().into(),
            methods: each("to.methods", &to.methods, method)?,
            paths: each("to.paths", &to.paths, Template::parse)?,
            not_methods: each("to.not_methods", &to.not_methods, method)?,
            not_paths: each("to.not_paths", &to.not_paths, Template::parse)?,
        })
    }

    /// The first part that does not hold for this action.
    pub(super) fn fails(&self, facts: &Facts<'_>, action: PolicyAction) -> Option<Clause> {
        self.fails_beside_paths(facts, action).or_else(|| self.fails_by_path(facts, action))
    }

    /// As [`Targets::fails`], without the paths.
    pub(super) fn fails_beside_paths(
        &self,
        facts: &Facts<'_>,
        action: PolicyAction,
    ) -> Option<Clause> {
        let allow = action == PolicyAction::Allow;
        if !self.ports.is_empty() && !self.ports.contains(&facts.port) {
            return Some(Clause::Ports);
        }
        let Some(http) = facts.http else {
            // Layer 4: whatever is asked of HTTP is absent.
            return [
                (self.methods.is_empty(), Clause::Methods),
                (self.not_methods.is_empty(), Clause::NotMethods),
                (self.hosts.is_empty(), Clause::Hosts),
            ]
            .into_iter()
            .find_map(|(absent, clause)| (!absent && allow).then_some(clause));
        };
        // Methods differ by case, but not for every program behind us.
        let exactly = |method: &str| method == http.method;
        let folded = |method: &str| method.eq_ignore_ascii_case(http.method);
        let listed = |list: &[Box<str>], wide: bool| {
            list.iter().any(|method| if wide { folded(method) } else { exactly(method) })
        };
        if !self.methods.is_empty() && !listed(&self.methods, !allow) {
            return Some(Clause::Methods);
        }
        if listed(&self.not_methods, allow) {
            return Some(Clause::NotMethods);
        }
        if !self.hosts.is_empty() {
            let holds = match facts.host() {
                Some(host) => self.hosts.iter().any(|pattern| pattern.matches(host)),
                None => !allow,
            };
            if !holds {
                return Some(Clause::Hosts);
            }
        }
        None
    }

    /// The path part that does not hold.
    pub(super) fn fails_by_path(&self, facts: &Facts<'_>, action: PolicyAction) -> Option<Clause> {
        let allow = action == PolicyAction::Allow;
        if !self.asks_path() || (facts.is_connect() && !allow) {
            return None;
        }
        let readings = facts.readings();
        let certain = |list: &[Template]| {
            readings.all(|path| list.iter().any(|template| template.matches(path, Look::Strict)))
        };
        let possible = |list: &[Template]| {
            readings.any(|path| list.iter().any(|template| template.matches(path, Look::Wide)))
        };
        let (holds, excluded) = if allow {
            (
                self.paths.is_empty() || certain(&self.paths),
                !self.not_paths.is_empty() && possible(&self.not_paths),
            )
        } else {
            (
                self.paths.is_empty() || possible(&self.paths),
                !self.not_paths.is_empty() && certain(&self.not_paths),
            )
        };
        match (holds, excluded) {
            (false, _) => Some(Clause::Paths),
            (true, true) => Some(Clause::NotPaths),
            (true, false) => None,
        }
    }

    /// Does the rule look at the path?
    pub(super) fn asks_path(&self) -> bool {
        !(self.paths.is_empty() && self.not_paths.is_empty())
    }

    /// The first path segments that the rule can mean; `None` when it can mean any.
    pub(super) fn first_segments(&self) -> Option<Vec<&str>> {
        if self.paths.is_empty() {
            return None;
        }
        self.paths.iter().map(Template::first).collect()
    }
}

fn method(text: &str) -> Result<Box<str>, String> {
    let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    if text.is_empty() || !text.bytes().all(token) {
        return Err(format!("\"{}\" is no method", text.escape_debug()));
    }
    let upper = text.to_ascii_uppercase();
    // Methods are case-sensitive: such a rule would never match, and nobody would see why.
    if upper != text && crate::model::Method::bit(&upper).is_some() {
        return Err(format!("methods are case-sensitive: write {upper}, not {text}"));
    }
    Ok(text.into())
}

/// Which routes a policy is about; the workloads were matched when it was compiled.
#[derive(Debug, Default)]
pub(super) struct Selector {
    pub(super) labels: Labels,
    pub(super) routes: Box<[Id]>,
}

impl Selector {
    /// Does it select at all by route? Otherwise the policy is about everything its workloads serve.
    pub(super) fn asks_route(&self) -> bool {
        !(self.labels.is_empty() && self.routes.is_empty())
    }

    /// Is the policy about this action?
    ///
    /// A request that matched no route is none of a route's policies' business. At layer 4 the route is not known yet: a
    /// deny policy is about it, an allow policy is not.
    pub(super) fn selects(&self, facts: &Facts<'_>, action: PolicyAction) -> bool {
        if !self.asks_route() {
            return true;
        }
        let Some(route) = facts.route else {
            return facts.is_connect() && action == PolicyAction::Deny;
        };
        (self.routes.is_empty() || self.routes.contains(route.id))
            && self.labels.iter().all(|(name, value)| route.labels.get(name) == Some(value))
    }

    pub(super) fn of(selector: &PolicySelector) -> Self {
        Self { labels: selector.labels.clone(), routes: selector.routes.as_slice().into() }
    }
}
