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
}

impl Reason {
    /// All reasons, in the order of [`Reason::index`].
    pub const ALL: [Self; 5] = [
        Self::NoRule,
        Self::DeniedByRule,
        Self::AmbiguousPath,
        Self::NoIdentity,
        Self::BrokenPolicy,
    ];

    /// The stable code.
    pub const fn code(self) -> &'static str {
        match self {
            Self::NoRule => "no_rule",
            Self::DeniedByRule => "denied_by_rule",
            Self::AmbiguousPath => "ambiguous_path",
            Self::NoIdentity => "no_identity",
            Self::BrokenPolicy => "broken_policy",
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

/// What was decided, and what would have been if policies in mode `observe` decided as well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// What holds.
    pub outcome: Outcome,
    /// What would hold with the observed policies enforced; only when that is the opposite.
    pub would_be: Option<Outcome>,
}

impl Decision {
    /// May the action happen?
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
    /// The policy's selector: route ids or labels.
    Selector,
    Ports,
    Methods,
    NotMethods,
    Hosts,
    Paths,
    NotPaths,
}

impl Clause {
    /// The field's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Principals => "principals",
            Self::TrustDomains => "trust_domains",
            Self::NotPrincipals => "not_principals",
            Self::Selector => "selector",
            Self::Ports => "ports",
            Self::Methods => "methods",
            Self::NotMethods => "not_methods",
            Self::Hosts => "hosts",
            Self::Paths => "paths",
            Self::NotPaths => "not_paths",
        }
    }

    /// How far a rule is from allowing when this part fails: who and where weigh more than how.
    pub(super) const fn weight(self) -> u32 {
        match self {
            Self::Principals | Self::TrustDomains | Self::NotPrincipals => 32,
            Self::Selector => 16,
            Self::Hosts => 8,
            Self::Ports => 4,
            Self::Paths | Self::NotPaths => 2,
            Self::Methods | Self::NotMethods => 1,
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
