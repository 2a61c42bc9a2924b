//! Explanations: every rule that was tried, what did not hold, and what came nearest.

use serde::Serialize;

use super::action::{Action, Facts};
use super::decision::{Clause, Decision};
use super::policy_set::Policy;
use super::rule::Rule;
use crate::identity::SpiffeId;
use crate::model::{Mode, PolicyAction, Revision};

/// Why a decision is what it is.
#[derive(Clone, Debug)]
pub struct Explanation {
    /// What was decided.
    pub decision: Decision,
    /// All rules of the policies that select this workload, in order.
    pub tried: Vec<TriedRule>,
    /// The enforced allow rule that came nearest, when nothing allowed.
    pub nearest: Option<TriedRule>,
}

/// One rule, and whether it held.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TriedRule {
    /// The policy's id.
    pub policy: String,
    /// The rule's name, else its number, counted from 1.
    pub rule: String,
    /// The store's revision of the policy.
    pub revision: Revision,
    /// What a match means.
    pub action: PolicyAction,
    /// Whether the policy decides.
    pub mode: Mode,
    /// The first part that did not hold; `None` when the rule matched.
    pub failed: Option<Failure>,
}

/// A part of a rule that did not hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Failure {
    /// Which part.
    pub clause: Clause,
    /// What the rule asks for.
    pub wanted: Vec<String>,
    /// What the action has.
    pub found: String,
}

impl Policy {
    /// Decides, and tells about every rule. For people: it looks at all rules and allocates.
    pub fn explain(&self, caller: Option<&SpiffeId>, action: &Action<'_>) -> Explanation {
        let standing = self.standing_of(caller);
        let decision = self.decide(&standing, action);
        let facts = Facts::of(action);
        let tried = self.rules.iter().map(|rule| self.tried(rule, caller, &facts)).collect();
        let nearest = match decision.is_allowed() {
            true => None,
            false => self.nearest(&standing, action),
        };
        let nearest =
            nearest.map(|near| self.tried(&self.rules[near.rule.0 as usize], caller, &facts));
        Explanation { decision, tried, nearest }
    }

    fn tried(&self, rule: &Rule, caller: Option<&SpiffeId>, facts: &Facts<'_>) -> TriedRule {
        let stated = self.stated(rule);
        let clause = self.failed(rule, caller, facts).first().copied();
        TriedRule {
            policy: stated.id.to_string(),
            rule: rule.name.to_string(),
            revision: stated.revision,
            action: rule.action,
            mode: stated.mode,
            failed: clause.map(|clause| self.failure(rule, clause, caller, facts)),
        }
    }

    fn failure(
        &self,
        rule: &Rule,
        clause: Clause,
        caller: Option<&SpiffeId>,
        facts: &Facts<'_>,
    ) -> Failure {
        fn texts<T: ToString>(list: &[T]) -> Vec<String> {
            list.iter().map(T::to_string).collect()
        }
        let http = |part: fn(&super::action::Request<'_>) -> String| {
            facts.http.as_ref().map_or_else(|| "nothing: not HTTP".to_string(), part)
        };
        let selector = &self.stated(rule).selector;
        let id = || caller.map_or_else(|| "no identity".to_string(), ToString::to_string);
        let (wanted, found) = match clause {
            Clause::Principals => (texts(&rule.from.principals), id()),
            Clause::TrustDomains => (texts(&rule.from.trust_domains), id()),
            Clause::NotPrincipals => (texts(&rule.from.not_principals), id()),
            Clause::Selector => {
                let routes = selector.routes.iter().map(|id| format!("route {id}"));
                let labels =
                    selector.labels.iter().map(|(name, value)| format!("label {name}={value}"));
                let found = facts.route.map_or_else(
                    || "no route".to_string(),
                    |route| format!("route {} {:?}", route.id, route.labels),
                );
                (routes.chain(labels).collect(), found)
            }
            Clause::Ports => (texts(&rule.to.ports), facts.port.to_string()),
            Clause::Methods => (texts(&rule.to.methods), http(|http| http.method.to_string())),
            Clause::NotMethods => {
                (texts(&rule.to.not_methods), http(|http| http.method.to_string()))
            }
            Clause::Hosts => (texts(&rule.to.hosts), http(|http| http.host.to_string())),
            Clause::Paths => (texts(&rule.to.paths), http(|http| http.path.to_string())),
            Clause::NotPaths => (texts(&rule.to.not_paths), http(|http| http.path.to_string())),
            _ => (Vec::new(), String::new()),
        };
        Failure { clause, wanted, found }
    }
}
