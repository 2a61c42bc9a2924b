//! `can_i`: one request, decided by the engine, with every rule that was tried.

use serde::{Deserialize, Serialize};

use super::super::{Outcome, Policy, TriedRule};
use super::policies::{Policies, Via};
use super::target::Target;
use crate::identity::SpiffeId;
use crate::model::{Mode, PolicyAction, Revision};

/// The question.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CanI {
    /// The workload that is called.
    pub workload: String,
    /// Who calls; nobody: without an identity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<String>,
    /// What is asked of it.
    #[serde(default)]
    pub target: Target,
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// May it?
    pub allowed: bool,
    /// Why not: the code that the decision log would bear.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The rule that decided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<Via>,
    /// With observed policies enforced it would be the opposite.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub would_be: Option<WouldBe>,
    /// The allow rule that came nearest, when nothing allowed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nearest: Option<Tried>,
    /// Every rule of the policies that select the workload, in order.
    pub tried: Vec<Tried>,
    /// What rules look at and the question did not say; taken for absent.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_said: Vec<String>,
}

/// What observed policies would decide.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WouldBe {
    /// Would it be allowed?
    pub allowed: bool,
    /// The rule that would decide.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<Via>,
}

/// A rule, and the first part of it that did not hold.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Tried {
    /// The policy's id.
    pub policy: String,
    /// The rule's name, else its number, counted from 1.
    pub rule: String,
    /// The store's revision of the policy.
    pub revision: Revision,
    /// What a match means.
    pub action: PolicyAction,
    /// Whether it decides.
    pub mode: Mode,
    /// Nothing: it matched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<Failed>,
}

/// A part of a rule that did not hold.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Failed {
    /// The field's name.
    pub clause: String,
    /// What the rule asks for.
    pub wanted: Vec<String>,
    /// What the request has.
    pub found: String,
}

impl Policies {
    /// May this caller do this at the workload?
    pub fn can_i(
        &self,
        workload: &SpiffeId,
        caller: Option<&SpiffeId>,
        target: &Target,
    ) -> Verdict {
        let engine = self.engine(workload);
        let fields = target.fields();
        let explained = engine.explain(caller, &target.action(&fields));
        let via = |outcome: Outcome| self.via(&engine, outcome);
        let outcome = explained.decision.outcome;
        let tried: Vec<Tried> = explained.tried.into_iter().map(Into::into).collect();
        Verdict {
            allowed: outcome.is_allowed(),
            reason: outcome.reason().map(|reason| reason.code().to_owned()),
            rule: via(outcome),
            would_be: explained
                .decision
                .would_be
                .map(|would_be| WouldBe { allowed: would_be.is_allowed(), rule: via(would_be) }),
            nearest: explained.nearest.map(Into::into),
            tried,
            not_said: self.not_said(workload, target),
        }
    }

    /// The rule of an outcome.
    pub(super) fn via(&self, engine: &Policy, outcome: Outcome) -> Option<Via> {
        let name = engine.rule(outcome.rule()?)?;
        let stated = self.iter().find(|stated| stated.id == *name.policy)?;
        let rules = 0..stated.text.rules.len();
        let mut all = rules.map(|at| stated.rule(at));
        Some(all.find(|via| via.rule == name.rule).unwrap_or_else(|| stated.whole()))
    }

    /// What rules about the workload look at and the target does not say.
    fn not_said(&self, workload: &SpiffeId, target: &Target) -> Vec<String> {
        let known = target.known();
        let asked = |asks: &dyn Fn(&crate::model::PolicyRule) -> bool| {
            let mut rules = self.about(workload).flat_map(|stated| &stated.text.rules);
            rules.any(asks)
        };
        let from = |look: fn(&crate::model::From) -> bool| {
            move |rule: &crate::model::PolicyRule| rule.from.as_ref().is_some_and(look)
        };
        let to = |look: fn(&crate::model::To) -> bool| {
            move |rule: &crate::model::PolicyRule| rule.to.as_ref().is_some_and(look)
        };
        let when = |look: fn(&crate::model::When) -> bool| {
            move |rule: &crate::model::PolicyRule| rule.when.as_ref().is_some_and(look)
        };
        let by_route = self.about(workload).any(|stated| {
            !(stated.text.selector.routes.is_empty() && stated.text.selector.labels.is_empty())
        });
        [
            ("the route", !known.route && by_route),
            (
                "the listener's port",
                !known.port && asked(&to(|to| !(to.ports.is_empty() && to.not_ports.is_empty()))),
            ),
            (
                "the host",
                !known.host && asked(&to(|to| !(to.hosts.is_empty() && to.not_hosts.is_empty()))),
            ),
            (
                "the source address",
                !known.source
                    && asked(&from(|from| {
                        !(from.ip_blocks.is_empty() && from.not_ip_blocks.is_empty())
                    })),
            ),
            (
                "the remote address",
                !known.remote
                    && asked(&from(|from| {
                        !(from.remote_ip_blocks.is_empty() && from.not_remote_ip_blocks.is_empty())
                    })),
            ),
            ("claims", !known.claims && asked(&from(|from| !from.claims.is_empty()))),
            ("header fields", !known.headers && asked(&when(|when| !when.headers.is_empty()))),
            ("the query", !known.query && asked(&when(|when| !when.query.is_empty()))),
            (
                "the time",
                !known.time
                    && asked(&when(|when| !(when.times.is_empty() && when.not_times.is_empty()))),
            ),
        ]
        .into_iter()
        .filter(|(_, missing)| *missing)
        .map(|(what, _)| what.to_owned())
        .collect()
    }
}

impl From<TriedRule> for Tried {
    fn from(tried: TriedRule) -> Self {
        let TriedRule { policy, rule, revision, action, mode, failed } = tried;
        let failed = failed.map(|failure| Failed {
            clause: failure.clause.name().to_owned(),
            wanted: failure.wanted,
            found: failure.found,
        });
        Self { policy, rule, revision, action, mode, failed }
    }
}
