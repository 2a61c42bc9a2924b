//! `lint`: what is odd about policies, with stable codes.

mod coverage;
mod single;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::policies::{Policies, Via};
use super::target::TargetRoute;
use crate::identity::{SpiffeId, SpiffePattern};
use crate::model::{Id, IdentityMode, Labels, PolicyAction, Strictness};

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// It is not what it says, or says nothing.
    Error,
    /// It is hardly meant so.
    Warning,
    /// It may be meant so.
    Note,
}

/// Something odd.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// Stable: `WG1001` and so on.
    pub code: String,
    /// How bad it is.
    pub severity: Severity,
    /// The policy, or the identity mode; none: about all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
    /// The rule's name, else its number, counted from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// What is odd.
    pub sentence: String,
    /// What to do about it.
    pub fix: String,
}

/// What there is beside the policies, as far as it is known.
#[derive(Clone, Debug, Default)]
pub struct Surroundings {
    /// The workloads; `None` when they are not known.
    pub workloads: Option<Vec<SpiffeId>>,
    /// The routes; `None` when they are not known.
    pub routes: Option<Vec<TargetRoute>>,
    /// The identity modes.
    pub modes: Vec<(Id, IdentityMode)>,
    /// Now, in seconds since 1970.
    pub now: i64,
}

/// The codes: what each means, how bad it is, and what to do.
pub(super) const CODES: [(&str, Severity, &str); 12] = [
    (
        "WG1001",
        Severity::Error,
        "correct the policy: until then it refuses everybody, or admits nobody",
    ),
    ("WG1002", Severity::Error, "remove the contradiction, or the rule"),
    ("WG1003", Severity::Warning, "remove the rule, or narrow the deny rule"),
    ("WG1004", Severity::Warning, "remove the rule: the other one says it already"),
    ("WG1005", Severity::Warning, "name who may, or what"),
    ("WG1006", Severity::Note, "enforce it when its log shows no surprise: wardgate policy replay"),
    ("WG1007", Severity::Note, "raise the canary, or enforce the rule"),
    ("WG1008", Severity::Warning, "correct the selector, or remove the policy"),
    ("WG1009", Severity::Warning, "allow somebody, or take the workload away"),
    ("WG1010", Severity::Warning, "remove the rule, or renew its time"),
    ("WG1011", Severity::Note, "write * if nothing is to be compared"),
    ("WG1012", Severity::Warning, "make it strict when all its callers have identities"),
];

/// What was found so far.
#[derive(Default)]
pub(super) struct Findings(Vec<Finding>);

impl Findings {
    fn add(&mut self, code: &str, policy: Option<&str>, rule: Option<&str>, sentence: String) {
        let (_, severity, fix) =
            CODES.iter().find(|(known, ..)| *known == code).expect("every code is listed");
        self.0.push(Finding {
            code: code.to_owned(),
            severity: *severity,
            policy: policy.map(str::to_owned),
            rule: rule.map(str::to_owned),
            sentence,
            fix: (*fix).to_owned(),
        });
    }

    pub(super) fn of_rule(&mut self, code: &str, via: &Via, sentence: impl Into<String>) {
        self.add(code, Some(&via.policy), Some(&via.rule), sentence.into());
    }
}

impl Policies {
    /// What is odd about the policies, the worst first.
    pub fn lint(&self, around: &Surroundings) -> Vec<Finding> {
        let mut findings = Findings::default();
        for stated in self.iter() {
            if let Some(why) = &stated.broken {
                findings.add(
                    "WG1001",
                    Some(stated.id.as_str()),
                    None,
                    format!("is not valid: {why}"),
                );
                continue;
            }
            for (at, rule) in stated.text.rules.iter().enumerate() {
                single::rule(&stated.rule(at), rule, around.now, &mut findings);
            }
            self.selector(stated, around, &mut findings);
        }
        coverage::compare(self, &mut findings);
        self.workloads_without_allow(around, &mut findings);
        for (id, mode) in &around.modes {
            modes(id, mode, &mut findings);
        }
        let mut found = findings.0;
        found.sort_by(|one, other| {
            let key = |finding: &Finding| (finding.severity, finding.code.clone());
            key(one).cmp(&key(other))
        });
        found
    }

    fn selector(&self, stated: &super::Stated, around: &Surroundings, findings: &mut Findings) {
        let selector = &stated.text.selector;
        let id = Some(stated.id.as_str());
        if let Some(workloads) = &around.workloads {
            for text in &selector.workloads {
                let Ok(pattern) = text.parse::<SpiffePattern>() else { continue };
                if !workloads.iter().any(|workload| pattern.matches(workload)) {
                    let sentence = format!("selector.workloads: {text} is no known workload");
                    findings.add("WG1008", id, None, sentence);
                }
            }
        }
        if let Some(routes) = &around.routes {
            for route in &selector.routes {
                if !routes.iter().any(|known| known.id == *route) {
                    let sentence = format!("selector.routes: there is no route {route}");
                    findings.add("WG1008", id, None, sentence);
                }
            }
            let bears = |labels: &Labels| {
                selector.labels.iter().all(|(name, value)| labels.get(name) == Some(value))
            };
            if !selector.labels.is_empty() && !routes.iter().any(|route| bears(&route.labels)) {
                let sentence = "selector.labels: no route bears them".to_owned();
                findings.add("WG1008", id, None, sentence);
            }
        }
    }

    fn workloads_without_allow(&self, around: &Surroundings, findings: &mut Findings) {
        let named = self.named_workloads();
        let workloads = around.workloads.as_ref().unwrap_or(&named);
        for workload in workloads {
            let allows = |stated: &super::Stated| {
                stated.broken.is_none()
                    && stated.text.action == PolicyAction::Allow
                    && (0..stated.text.rules.len())
                        .any(|at| stated.rule(at).mode != crate::model::Mode::Observe)
            };
            if !self.about(workload).any(allows) {
                let sentence =
                    format!("nobody may do anything at {workload}: no allow rule selects it");
                findings.add("WG1009", None, None, sentence);
            }
        }
    }
}

fn modes(id: &Id, mode: &IdentityMode, findings: &mut Findings) {
    let what = |strictness: Strictness| match strictness {
        Strictness::Strict => None,
        Strictness::Permissive => Some("permissive: callers without an identity are let in"),
        Strictness::Observe => Some("observe: nobody is refused"),
    };
    let name = format!("identity_modes/{id}");
    if let Some(what) = what(mode.mode) {
        findings.add("WG1012", Some(&name), None, format!("is {what}"));
    }
    let ports: BTreeMap<_, _> = mode.ports.iter().collect();
    for (port, strictness) in ports {
        if let Some(what) = what(*strictness) {
            findings.add("WG1012", Some(&name), None, format!("port {port} is {what}"));
        }
    }
}
