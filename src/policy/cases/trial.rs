//! Trying cases on the engine that enforces, and telling which rules none of them reached.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::case::{Case, rule_text, word};
use crate::identity::SpiffeId;
use crate::policy::files::{Declared, Place};
use crate::policy::{Outcome, Policy, Reason, TriedRule};

/// What came of all cases.
#[derive(Clone, Debug, Serialize)]
pub struct TrialReport {
    /// Each case, in the order of the files.
    pub trials: Vec<Trial>,
    /// The rules that no case reached.
    pub unreached: Vec<UnreachedRule>,
}

impl TrialReport {
    /// How many cases did not come out as expected.
    pub fn failures(&self) -> usize {
        self.trials.iter().filter(|trial| trial.differs.is_some()).count()
    }
}

/// What came of a case.
#[derive(Clone, Debug, Serialize)]
pub struct Trial {
    /// The file.
    pub file: String,
    /// The line of the case.
    pub line: u32,
    /// The test's name and the case's.
    pub name: String,
    /// Who asked, or `none`.
    #[serde(rename = "as")]
    pub caller: String,
    /// Whom.
    pub to: String,
    /// For what.
    pub what: String,
    /// `allow` or `deny`.
    pub outcome: &'static str,
    /// Why not.
    pub reason: Option<&'static str>,
    /// The rule that decided.
    pub rule: Option<String>,
    /// What would have been, where that is the opposite.
    pub would_be: Option<&'static str>,
    /// What is not as expected; `None`: nothing.
    pub differs: Option<String>,
    /// All rules that were looked at, of a case that failed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tried: Vec<TriedRule>,
}

/// A rule that no case reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct UnreachedRule {
    /// The policy's id.
    pub policy: String,
    /// The rule's name, else its number.
    pub rule: String,
    /// The file of the policy.
    pub file: String,
    /// Where the policy begins there.
    pub line: u32,
}

/// Tries all cases of `declared` on its policies. `now` (seconds since 1970) holds where a case gives no time.
pub fn try_cases(declared: &Declared, now: i64) -> TrialReport {
    let mut compiled: BTreeMap<SpiffeId, Policy> = BTreeMap::new();
    let mut reached: BTreeSet<(String, String)> = BTreeSet::new();
    let mut trials = Vec::new();
    for case in &declared.cases {
        let policy = compiled
            .entry(case.to.clone())
            .or_insert_with(|| Policy::compile(declared.compilable(), &case.to).0);
        trials.push(try_case(case, policy, now, &mut reached));
    }
    let mut unreached = Vec::new();
    for policy in &declared.policies {
        for (at, rule) in policy.body.rules.iter().enumerate() {
            let rule = rule.name.clone().unwrap_or_else(|| (at + 1).to_string());
            let name = (policy.id.to_string(), rule);
            if !reached.contains(&name) {
                let (policy_id, rule) = name;
                let Place { file, line } = policy.place.clone();
                unreached.push(UnreachedRule { policy: policy_id, rule, file, line });
            }
        }
    }
    TrialReport { trials, unreached }
}

fn try_case(
    case: &Case,
    policy: &Policy,
    now: i64,
    reached: &mut BTreeSet<(String, String)>,
) -> Trial {
    let decision = case.decide(policy, now);
    let explanation = policy.explain(case.caller.as_ref(), &case.asked.action(now));
    // A rule is reached when it holds, also where another one decided before it.
    let held = explanation.tried.iter().filter(|tried| tried.failed.is_none());
    reached.extend(held.map(|tried| (tried.policy.clone(), tried.rule.clone())));
    let differs = case.expected.differs(policy, &decision);
    Trial {
        file: case.place.file.clone(),
        line: case.place.line,
        name: case.name.clone(),
        caller: case.caller_text(),
        to: case.to.to_string(),
        what: case.what(),
        outcome: word(decision.is_allowed()),
        reason: decision.outcome.reason().map(Reason::code),
        rule: rule_text(policy, decision.outcome),
        would_be: decision.would_be.map(Outcome::is_allowed).map(word),
        tried: if differs.is_some() { explanation.tried } else { Vec::new() },
        differs,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICIES: &str = "\
id: billing
selector: { workloads: ['spiffe://shop/billing'] }
action: allow
rules:
- { name: read, from: { principals: ['spiffe://shop/web'] }, to: { methods: [GET], paths: ['/invoices/**'] } }
- { name: health, to: { paths: [/healthz] } }
- { name: never, to: { ports: [9] } }
---
id: no-admin
action: deny
rules: [{ to: { paths: ['/invoices/admin/**'] } }]
---
id: later
action: deny
mode: observe
rules: [{ name: old, to: { paths: ['/invoices/old'] } }]
";

    fn report(cases: &str) -> TrialReport {
        let mut declared = Declared::default();
        assert_eq!(declared.add("p.yaml", POLICIES), []);
        assert_eq!(declared.add("p.test.yaml", cases), []);
        try_cases(&declared, 0)
    }

    #[test]
    fn cases_that_hold_and_rules_that_none_reaches() {
        let report = report(
            "\
name: billing
to: spiffe://shop/billing
as: spiffe://shop/web
cases:
- name: web reads
  request: ['GET http://billing/invoices/7', { path: /invoices, headers: { x-a: [b, c] } }]
  expect: { outcome: allow, rule: billing/read }
- name: web writes nothing
  request: POST /invoices/7
  expect: { outcome: deny, reason: no_rule }
- name: nobody reads
  as: [none, 'spiffe://shop/other']
  request: GET /invoices/7
  expect: deny
- name: the admin part is closed, whoever asks and however it is written
  request: [GET /invoices/admin/x, GET //invoices/admin/x, 'GET /invoices/%61dmin/x?a=b']
  expect: deny
- name: a connection says nothing of paths
  connection: { port: 15006 }
  expect: { outcome: deny, rule: no-admin/1 }
- name: soon
  request: GET /invoices/old
  expect: { outcome: allow, would_be: deny }
",
        );
        let failed: Vec<_> =
            report.trials.iter().filter_map(|trial| trial.differs.as_deref()).collect();
        assert_eq!(failed, Vec::<&str>::new(), "{report:#?}");
        assert_eq!(report.trials.len(), 10);
        let unreached: Vec<_> = report.unreached.iter().map(|rule| rule.rule.as_str()).collect();
        assert_eq!(unreached, ["health", "never"]);
    }

    #[test]
    fn what_differs_is_told_with_all_rules() {
        let report = report(
            "\
cases:
- name: wrong
  as: spiffe://shop/web
  to: spiffe://shop/billing
  request: POST /invoices/7
  expect: { outcome: allow, rule: billing/read }
- name: wrong reason
  as: none
  to: spiffe://shop/billing
  request: GET /invoices/7
  expect: { outcome: deny, reason: denied_by_rule }
- name: would not be
  as: spiffe://shop/web
  to: spiffe://shop/billing
  request: GET /invoices/7
  expect: { outcome: allow, would_be: deny }
",
        );
        let differs: Vec<_> =
            report.trials.iter().filter_map(|trial| trial.differs.as_deref()).collect();
        assert_eq!(
            differs,
            [
                "expected allow, expected rule billing/read",
                "expected reason denied_by_rule",
                "expected would_be deny",
            ]
        );
        assert_eq!(report.failures(), 3);
        let first = &report.trials[0];
        assert_eq!((first.file.as_str(), first.line), ("p.test.yaml", 2));
        assert!(first.tried.iter().any(|tried| tried.rule == "read" && tried.failed.is_some()));
    }

    #[test]
    fn mistakes_of_cases_name_line_and_field() {
        for (cases, expected) in [
            ("cases: []", "c.test.yaml:1: cases: expected at least one"),
            (
                "cases:\n- name: a\n  to: spiffe://a/b\n  request: GET /\n  expect: allow",
                "c.test.yaml:2: cases[0].as: expected who asks",
            ),
            (
                "cases:\n- name: a\n  as: web\n  to: spiffe://a/b\n  request: GET /\n  expect: allow",
                "c.test.yaml:3: cases[0].as: \"web\" is neither none",
            ),
            (
                "cases:\n- name: a\n  as: none\n  to: spiffe://a/b\n  request: GET /\n  expect: permit",
                "c.test.yaml:6: cases[0].expect: unknown variant `permit`",
            ),
            (
                "cases:\n- name: a\n  as: none\n  to: spiffe://a/b\n  request: { path: /, header: {} }\n  expect: allow",
                "c.test.yaml:5: cases[0].request: unknown field `header`",
            ),
            (
                "cases:\n- name: a\n  as: none\n  to: spiffe://a/b\n  request: /\n  expect: allow",
                "c.test.yaml:5: cases[0].request: \"/\": expected METHOD URL",
            ),
            (
                "cases:\n- name: a\n  as: none\n  to: spiffe://a/b\n  expect: allow",
                "c.test.yaml:2: cases[0].request: expected either",
            ),
            (
                "cases:\n- name: a\n  as: none\n  to: spiffe://a/b\n  request: GET /\n  expect:\n    outcome: deny\n    reason: because",
                "c.test.yaml:8: cases[0].expect.reason: \"because\": expected one of no_rule",
            ),
        ] {
            let flaws = Declared::default().add("c.test.yaml", cases);
            let said: Vec<_> = flaws.iter().map(ToString::to_string).collect();
            assert_eq!(said.len(), 1, "{cases}\n{said:?}");
            assert!(said[0].starts_with(expected), "{cases}\n{said:?}");
        }
    }
}
