//! `Callers`: who calls, by identity. What is worked out once for a connection.

use super::decision::Clause;
use super::rule::{Wrong, each};
use super::values::Text;
use crate::identity::{SpiffeId, SpiffePattern, TrustDomain};
use crate::model::{From, PolicyAction};

/// A SPIFFE ID pattern that may have names in braces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Principal {
    text: Box<str>,
    pattern: SpiffePattern,
    /// Names, and which segments they stand for.
    names: Box<[(usize, Box<str>)]>,
}

impl Principal {
    /// Reads what an operator wrote.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let mut names: Vec<(usize, Box<str>)> = Vec::new();
        let mut plain = Vec::new();
        // Behind "spiffe:", "" and the trust domain stand the segments.
        for (at, part) in text.split('/').enumerate() {
            let name = part.strip_prefix('{').and_then(|rest| rest.strip_suffix('}'));
            let Some(name) = name.filter(|_| at > 2) else {
                plain.push(part);
                continue;
            };
            check_name(name).map_err(|why| format!("\"{}\": {why}", text.escape_debug()))?;
            if names.iter().any(|(_, known)| **known == *name) {
                return Err(format!("\"{text}\": a name in braces stands only once"));
            }
            names.push((at - 3, name.into()));
            plain.push("*");
        }
        let pattern = plain
            .join("/")
            .parse::<SpiffePattern>()
            .map_err(|error| format!("\"{}\" {error}", text.escape_debug()))?;
        let text = match names.is_empty() {
            true => pattern.to_string().into(),
            false => text.into(),
        };
        Ok(Self { text, pattern, names: names.into() })
    }

    pub(super) fn matches(&self, id: &SpiffeId) -> bool {
        self.pattern.matches(id)
    }

    pub(super) fn pattern(&self) -> &SpiffePattern {
        &self.pattern
    }

    pub(super) fn names(&self) -> &[(usize, Box<str>)] {
        &self.names
    }
}

impl std::fmt::Display for Principal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

/// May this stand in braces?
pub(super) fn check_name(name: &str) -> Result<(), &'static str> {
    let fits = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    match name.as_bytes().first() {
        Some(first) if !first.is_ascii_digit() && name.bytes().all(fits) => Ok(()),
        _ => Err("a name in braces has letters, digits and underscores"),
    }
}

/// A Kubernetes service account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Account {
    pub(super) namespace: Box<str>,
    pub(super) name: Box<str>,
}

impl Account {
    fn parse(text: &str) -> Result<Self, String> {
        match text.split_once('/') {
            Some((namespace, name)) if is_segment(namespace) && is_segment(name) => {
                Ok(Self { namespace: namespace.into(), name: name.into() })
            }
            _ => Err(format!(
                "\"{}\" is no service account: namespace/name is expected, without stars",
                text.escape_debug()
            )),
        }
    }

    fn is(&self, (namespace, name): (&str, &str)) -> bool {
        *self.namespace == *namespace && *self.name == *name
    }
}

impl std::fmt::Display for Account {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// What can stand between the slashes of a SPIFFE ID.
fn is_segment(text: &str) -> bool {
    let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
    !text.is_empty() && text.bytes().all(fits)
}

fn namespace(text: &str) -> Result<Text, String> {
    let parsed = Text::parse(text)?;
    let named = match &parsed {
        Text::Any => true,
        Text::Exactly(name) | Text::Prefix(name) | Text::Suffix(name) => is_segment(name),
    };
    match named {
        true => Ok(parsed),
        false => Err(format!(
            "\"{}\" is no namespace: a name, prefix*, *suffix or * is expected",
            text.escape_debug()
        )),
    }
}

fn not_principal(text: &str) -> Result<SpiffePattern, String> {
    if text.contains('{') {
        return Err(format!(
            "\"{}\": a name in braces captures in principals; write * here",
            text.escape_debug()
        ));
    }
    super::rule::parse_pattern(text)
}

fn trust_domain(text: &str) -> Result<TrustDomain, String> {
    text.parse::<TrustDomain>().map_err(|error| format!("\"{}\" {error}", text.escape_debug()))
}

/// Who calls, by identity.
#[derive(Debug, Default)]
pub(super) struct Callers {
    pub(super) principals: Box<[Principal]>,
    pub(super) not_principals: Box<[SpiffePattern]>,
    pub(super) trust_domains: Box<[TrustDomain]>,
    pub(super) not_trust_domains: Box<[TrustDomain]>,
    pub(super) namespaces: Box<[Text]>,
    pub(super) not_namespaces: Box<[Text]>,
    pub(super) service_accounts: Box<[Account]>,
    pub(super) not_service_accounts: Box<[Account]>,
    /// The trust domains whose namespaces and service accounts are meant.
    pub(super) clusters: Box<[TrustDomain]>,
}

impl Callers {
    /// Without `own`, the workload's own trust domain, a rule is only checked.
    pub(super) fn compile(from: &From, own: Option<&TrustDomain>) -> Result<Self, Wrong> {
        let trust_domains = each("from.trust_domains", &from.trust_domains, trust_domain)?;
        let account = Account::parse;
        Ok(Self {
            principals: each("from.principals", &from.principals, Principal::parse)?,
            not_principals: each("from.not_principals", &from.not_principals, not_principal)?,
            not_trust_domains: each(
                "from.not_trust_domains",
                &from.not_trust_domains,
                trust_domain,
            )?,
            namespaces: each("from.namespaces", &from.namespaces, namespace)?,
            not_namespaces: each("from.not_namespaces", &from.not_namespaces, namespace)?,
            service_accounts: each("from.service_accounts", &from.service_accounts, account)?,
            not_service_accounts: each(
                "from.not_service_accounts",
                &from.not_service_accounts,
                account,
            )?,
            clusters: match trust_domains.is_empty() {
                true => own.into_iter().cloned().collect(),
                false => trust_domains.clone(),
            },
            trust_domains,
        })
    }

    /// The first part that does not hold for this caller.
    pub(super) fn fails(&self, caller: Option<&SpiffeId>, action: PolicyAction) -> Option<Clause> {
        let Some(id) = caller else { return self.fails_for_nobody(action) };
        let domain = id.trust_domain_name();
        let among = |domains: &[TrustDomain]| domains.iter().any(|td| td.as_str() == domain);
        if !self.principals.is_empty() && !self.principals.iter().any(|p| p.matches(id)) {
            return Some(Clause::Principals);
        }
        if !self.trust_domains.is_empty() && !among(&self.trust_domains) {
            return Some(Clause::TrustDomains);
        }
        if among(&self.not_trust_domains) {
            return Some(Clause::NotTrustDomains);
        }
        if self.not_principals.iter().any(|pattern| pattern.matches(id)) {
            return Some(Clause::NotPrincipals);
        }
        if self.asks_kubernetes() {
            return self.fails_in_kubernetes(kubernetes(id).filter(|_| among(&self.clusters)));
        }
        None
    }

    /// `found`: namespace and service account; `None` for a caller that is in none.
    fn fails_in_kubernetes(&self, found: Option<(&str, &str)>) -> Option<Clause> {
        let within = |list: &[Text]| {
            found.is_some_and(|(namespace, _)| {
                list.iter().any(|text| text.matches(namespace.as_bytes()))
            })
        };
        let one_of = |list: &[Account]| {
            found.is_some_and(|found| list.iter().any(|account| account.is(found)))
        };
        if !self.namespaces.is_empty() && !within(&self.namespaces) {
            return Some(Clause::Namespaces);
        }
        if !self.service_accounts.is_empty() && !one_of(&self.service_accounts) {
            return Some(Clause::ServiceAccounts);
        }
        if within(&self.not_namespaces) {
            return Some(Clause::NotNamespaces);
        }
        one_of(&self.not_service_accounts).then_some(Clause::NotServiceAccounts)
    }

    fn asks_kubernetes(&self) -> bool {
        !(self.namespaces.is_empty()
            && self.not_namespaces.is_empty()
            && self.service_accounts.is_empty()
            && self.not_service_accounts.is_empty())
    }

    /// An absent identity: an allow rule that asks for one does not hold, a deny rule does.
    fn fails_for_nobody(&self, action: PolicyAction) -> Option<Clause> {
        if action == PolicyAction::Deny {
            return None;
        }
        [
            (self.principals.is_empty(), Clause::Principals),
            (self.trust_domains.is_empty(), Clause::TrustDomains),
            (self.namespaces.is_empty(), Clause::Namespaces),
            (self.service_accounts.is_empty(), Clause::ServiceAccounts),
            (self.not_principals.is_empty(), Clause::NotPrincipals),
            (self.not_trust_domains.is_empty(), Clause::NotTrustDomains),
            (self.not_namespaces.is_empty(), Clause::NotNamespaces),
            (self.not_service_accounts.is_empty(), Clause::NotServiceAccounts),
        ]
        .into_iter()
        .find_map(|(absent, clause)| (!absent).then_some(clause))
    }

    /// Does any part ask for an identity?
    pub(super) fn asks_identity(&self) -> bool {
        self.fails_for_nobody(PolicyAction::Allow).is_some()
    }
}

/// Namespace and service account of an ID that has the shape of Kubernetes: `/ns/<namespace>/sa/<service account>`.
pub(super) fn kubernetes(id: &SpiffeId) -> Option<(&str, &str)> {
    let (namespace, rest) = id.path().strip_prefix("/ns/")?.split_once('/')?;
    let account = rest.strip_prefix("sa/")?;
    (!account.contains('/')).then_some((namespace, account))
}
