//! `Decision`: the outcome, why, and by which rule. Small enough to copy; names are looked up only when they are written.

use std::fmt;

use serde::Serialize;

use crate::model::{Id, Revision};

/// Points at a rule of the [`Policy`](super::Policy) that decided; [`Policy::rule`](super::Policy::rule) has its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RuleRef(pub(super) u32);

/// A rule's name, as the decision log and people read it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RuleName<'a> {
    /// The policy's id.
    pub policy: &'a Id,
    /// The rule's name, else its number in the policy, counted from 1.
    pub rule: &'a str,
    /// The store's revision of the policy.
    pub revision: Revision,
    /// What the rule says: 16 digits, worked out when it was compiled (`docs/audit.md`, `rule_hash`).
    pub hash: &'a str,
    /// It decides for some connections only.
    pub is_canary: bool,
}

/// Why an action is refused. The codes are stable: logs, metrics and answers carry them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Reason {
    /// No rule allows it.
    NoRule,
    /// A deny rule matches.
    DeniedByRule,
    /// The path can be read in several ways that rules judge differently, or is not properly encoded.
    AmbiguousPath,
    /// The caller has no identity, and a rule asks for one.
    NoIdentity,
    /// A policy whose text is not valid stands in the way.
    BrokenPolicy,
    /// The caller has no token that was verified, and a rule asks for one.
    NoToken,
    /// An allow rule holds but for the protocol that the request wants to switch its connection to.
    UpgradeNotAllowed,
    /// A deny rule asks for what cannot be told: a query that is not properly encoded, a condition without an answer.
    UnclearInput,
}

impl Reason {
    /// All reasons, in the order of [`Reason::index`].
    pub const ALL: [Self; 8] = [
        Self::NoRule,
        Self::DeniedByRule,
        Self::AmbiguousPath,
        Self::NoIdentity,
        Self::BrokenPolicy,
        Self::NoToken,
        Self::UpgradeNotAllowed,
        Self::UnclearInput,
    ];

    /// The stable code.
    pub const fn code(self) -> &'static str {
        match self {
            Self::NoRule => "no_rule",
            Self::DeniedByRule => "denied_by_rule",
            Self::AmbiguousPath => "ambiguous_path",
            Self::NoIdentity => "no_identity",
            Self::BrokenPolicy => "broken_policy",
            Self::NoToken => "no_token",
            Self::UpgradeNotAllowed => "upgrade_not_allowed",
            Self::UnclearInput => "unclear_input",
        }
    }

    /// The reason's place in [`Reason::ALL`], for tables of counters.
    pub const fn index(self) -> usize {
        self as usize
    }

    /// One sentence for the caller and the operator.
    pub const fn sentence(self) -> &'static str {
        match self {
            Self::NoRule => "no rule allows it",
            Self::DeniedByRule => "a deny rule matches",
            Self::AmbiguousPath => "the path can be read in more than one way",
            Self::NoIdentity => "the caller has no identity",
            Self::BrokenPolicy => "a policy that is not valid stands in the way",
            Self::NoToken => "the caller has no verified token",
            Self::UpgradeNotAllowed => "no rule allows it to switch to this protocol",
            Self::UnclearInput => "a deny rule asks for what cannot be told of this request",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code())
    }
}

/// Allowed or refused, and by which rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The action may happen. No rule: no policy selects the public route.
    Allow(Option<RuleRef>),
    /// The action must not happen. The rule is the one that refused, if one did.
    Deny(Reason, Option<RuleRef>),
}

impl Outcome {
    /// May it happen?
    pub const fn is_allowed(self) -> bool {
        matches!(self, Self::Allow(_))
    }

    /// The rule that decided, if one did.
    pub const fn rule(self) -> Option<RuleRef> {
        match self {
            Self::Allow(rule) | Self::Deny(_, rule) => rule,
        }
    }

    /// Why not.
    pub const fn reason(self) -> Option<Reason> {
        match self {
            Self::Allow(_) => None,
            Self::Deny(reason, _) => Some(reason),
        }
    }
}

/// What was decided, and what would have been if everything that is only watched decided as well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// What holds.
    pub outcome: Outcome,
    /// What would hold with the watched rules enforced; only when that is the opposite. One answer for all of them together.
    pub would_be: Option<Outcome>,
    /// The action is allowed for now, and has to be decided once more when its token is known: a rule that asks for claims was
    /// met whose other parts hold, and it can change the outcome or what would be.
    ///
    /// Only while the token is [`Token::Awaited`](super::Token::Awaited), and never of a refusal, which is final.
    pub awaits_token: bool,
}

impl Decision {
    /// May the action happen? While [`Decision::awaits_token`]: for now.
    pub const fn is_allowed(self) -> bool {
        self.outcome.is_allowed()
    }
}

/// A part of a rule, as operators write it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
#[expect(missing_docs, reason = "the fields' own names")]
pub enum Clause {
    Principals,
    TrustDomains,
    NotPrincipals,
    NotTrustDomains,
    Namespaces,
    NotNamespaces,
    ServiceAccounts,
    NotServiceAccounts,
    IpBlocks,
    NotIpBlocks,
    RemoteIpBlocks,
    NotRemoteIpBlocks,
    Claims,
    /// The policy's selector: route ids or labels.
    Selector,
    Ports,
    NotPorts,
    Methods,
    NotMethods,
    Hosts,
    NotHosts,
    Paths,
    NotPaths,
    /// A name in braces that is not the same text wherever it stands.
    Captures,
    Grpc,
    NotGrpc,
    Upgrades,
    Headers,
    Query,
    Times,
    NotTimes,
    Cel,
}

impl Clause {
    /// The field's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Principals => "principals",
            Self::TrustDomains => "trust_domains",
            Self::NotPrincipals => "not_principals",
            Self::NotTrustDomains => "not_trust_domains",
            Self::Namespaces => "namespaces",
            Self::NotNamespaces => "not_namespaces",
            Self::ServiceAccounts => "service_accounts",
            Self::NotServiceAccounts => "not_service_accounts",
            Self::IpBlocks => "ip_blocks",
            Self::NotIpBlocks => "not_ip_blocks",
            Self::RemoteIpBlocks => "remote_ip_blocks",
            Self::NotRemoteIpBlocks => "not_remote_ip_blocks",
            Self::Claims => "claims",
            Self::Selector => "selector",
            Self::Ports => "ports",
            Self::NotPorts => "not_ports",
            Self::Methods => "methods",
            Self::NotMethods => "not_methods",
            Self::Hosts => "hosts",
            Self::NotHosts => "not_hosts",
            Self::Paths => "paths",
            Self::NotPaths => "not_paths",
            Self::Captures => "captures",
            Self::Grpc => "grpc",
            Self::NotGrpc => "not_grpc",
            Self::Upgrades => "upgrades",
            Self::Headers => "headers",
            Self::Query => "query",
            Self::Times => "times",
            Self::NotTimes => "not_times",
            Self::Cel => "cel",
        }
    }

    /// How far a rule is from allowing when this part fails: who and where weigh more than how and when.
    pub(super) const fn weight(self) -> u32 {
        match self {
            Self::Principals
            | Self::TrustDomains
            | Self::NotPrincipals
            | Self::NotTrustDomains
            | Self::Namespaces
            | Self::NotNamespaces
            | Self::ServiceAccounts
            | Self::NotServiceAccounts => 32,
            Self::Selector => 16,
            Self::Hosts | Self::NotHosts => 8,
            Self::Ports
            | Self::NotPorts
            | Self::IpBlocks
            | Self::NotIpBlocks
            | Self::RemoteIpBlocks
            | Self::NotRemoteIpBlocks
            | Self::Captures => 4,
            Self::Paths | Self::NotPaths | Self::Grpc | Self::NotGrpc => 2,
            Self::Methods
            | Self::NotMethods
            | Self::Upgrades
            | Self::Claims
            | Self::Headers
            | Self::Query
            | Self::Times
            | Self::NotTimes
            | Self::Cel => 1,
        }
    }
}

impl fmt::Display for Clause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The allow rule that came nearest to matching, and its first part that did not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Near {
    /// The rule.
    pub rule: RuleRef,
    /// What failed first.
    pub clause: Clause,
}
