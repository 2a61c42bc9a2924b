//! `Judges`: policies over what the log tells. Where a rule asks for what the log does not tell, both ends of what it may have
//! decided are tried; a verdict is given only where they agree.

use std::collections::HashMap;

use crate::identity::SpiffeId;
use crate::model::{
    Id, IdentityPolicy, Labels, Mode, PolicyAction, PolicyRule, Revision, To, When,
};
use crate::policy::{Outcome, Policy};

use super::observations::Asked;

/// What a set of policies says of something that was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It may happen, by this policy and rule.
    Allow(Option<(String, String)>),
    /// It must not, for this reason and by this policy and rule.
    Deny(&'static str, Option<(String, String)>),
    /// It depends on what the log does not tell.
    Unknown,
}

/// A set of policies, compiled for each workload as it is asked about.
pub(super) struct Judges<'p> {
    policies: &'p [(Id, IdentityPolicy)],
    /// What routes bear, where it is known.
    labels: &'p HashMap<Id, Labels>,
    ingresses: &'p [SpiffeId],
    compiled: HashMap<SpiffeId, (Policy, Option<Policy>)>,
}

impl<'p> Judges<'p> {
    /// `labels` are the routes' labels; empty: they are not known. At the `ingresses`, what no policy selects is open.
    pub(super) fn new(
        policies: &'p [(Id, IdentityPolicy)],
        labels: &'p HashMap<Id, Labels>,
        ingresses: &'p [SpiffeId],
    ) -> Self {
        Self { policies, labels, ingresses, compiled: HashMap::new() }
    }

    pub(super) fn verdict(&mut self, asked: &Asked) -> Verdict {
        let (policies, labels) = (self.policies, self.labels);
        let (open, closed) = self.compiled.entry(asked.dst.clone()).or_insert_with(|| {
            let end = |end| compile(policies, !labels.is_empty(), &asked.dst, end);
            let asks = policies.iter().any(|(_, policy)| is_unsure(policy, !labels.is_empty()));
            (end(End::Open), asks.then(|| end(End::Closed)))
        });
        let route_labels = asked.route.as_ref().and_then(|route| labels.get(route));
        let is_public = self.ingresses.contains(&asked.dst);
        let decide = |policy: &Policy| {
            let standing = policy.standing_of(asked.src.as_ref());
            let action = asked.action(route_labels);
            match is_public {
                true => policy.decide_public(&standing, &action).outcome,
                false => policy.decide(&standing, &action).outcome,
            }
        };
        let outcome = decide(open);
        if let Some(closed) = closed
            && decide(closed).is_allowed() != outcome.is_allowed()
        {
            return Verdict::Unknown;
        }
        let rule = outcome.rule().and_then(|rule| open.rule(rule));
        let rule = rule.map(|name| (name.policy.to_string(), name.rule.to_owned()));
        match outcome {
            Outcome::Allow(_) => Verdict::Allow(rule),
            Outcome::Deny(reason, _) => Verdict::Deny(reason.code(), rule),
        }
    }
}

/// Which of the possible decisions is looked for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    /// What the log does not tell is taken to allow.
    Open,
    /// It is taken to refuse.
    Closed,
}

fn compile(
    policies: &[(Id, IdentityPolicy)],
    knows_labels: bool,
    me: &SpiffeId,
    end: End,
) -> Policy {
    let bounded: Vec<(&Id, Revision, IdentityPolicy)> =
        policies.iter().map(|(id, policy)| (id, 0, bounded(policy, knows_labels, end))).collect();
    Policy::compile(bounded.iter().map(|(id, revision, policy)| (*id, *revision, policy)), me).0
}

/// The policy as it decides at one end.
fn bounded(policy: &IdentityPolicy, knows_labels: bool, end: End) -> IdentityPolicy {
    let mut bounded = policy.clone();
    let of_policy = std::mem::take(&mut bounded.mode);
    let by_labels = !knows_labels && !policy.selector.labels.is_empty();
    if by_labels {
        bounded.selector.labels.clear();
    }
    // To allow, or to deny: does an unsure rule count at this end?
    let counts = (policy.action == PolicyAction::Allow) == (end == End::Open);
    for (at, rule) in bounded.rules.iter_mut().enumerate() {
        let mode = rule.mode.take().unwrap_or(of_policy);
        let is_canary = matches!(mode, Mode::Canary(_));
        if mode == Mode::Observe || ((by_labels || is_canary || asks_more(rule)) && !counts) {
            *rule = never(rule, at);
        } else {
            loosen(rule);
        }
    }
    bounded
}

/// Does the policy ask for what the log does not tell?
fn is_unsure(policy: &IdentityPolicy, knows_labels: bool) -> bool {
    let canary = |mode: &Mode| matches!(mode, Mode::Canary(_));
    canary(&policy.mode)
        || (!knows_labels && !policy.selector.labels.is_empty())
        || policy.rules.iter().any(|rule| rule.mode.as_ref().is_some_and(canary) || asks_more(rule))
}

/// Header fields, the query, the time, claims and the content's type are not in the log.
fn asks_more(rule: &PolicyRule) -> bool {
    rule.when.as_ref().is_some_and(|when| *when != When::default())
        || rule.from.as_ref().is_some_and(|from| !from.claims.is_empty())
        || rule.to.as_ref().is_some_and(|to| !(to.grpc.is_empty() && to.not_grpc.is_empty()))
}

fn loosen(rule: &mut PolicyRule) {
    rule.when = None;
    if let Some(from) = &mut rule.from {
        from.claims.clear();
    }
    if let Some(to) = &mut rule.to {
        // The log tells a gRPC method by its path.
        let paths: Vec<String> = to.grpc.drain(..).map(|method| format!("/{method}")).collect();
        if to.paths.is_empty() {
            to.paths = paths;
        }
        to.not_grpc.clear();
    }
}

/// The rule's place and name, and nothing that it could hold for.
fn never(rule: &PolicyRule, at: usize) -> PolicyRule {
    let to = To { ports: vec![1], not_ports: vec![1], ..To::default() };
    let name = rule.name.clone().unwrap_or_else(|| (at + 1).to_string());
    PolicyRule { name: Some(name), to: Some(to), ..PolicyRule::default() }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn asked(method: &str, path: &str) -> Asked {
        Asked {
            dst: "spiffe://shop/billing".parse().unwrap(),
            src: Some("spiffe://shop/web".parse().unwrap()),
            port: 15006,
            method: Some(method.into()),
            host: "billing".into(),
            path: path.into(),
            route: None,
            source: None,
            remote: None,
            was_allowed: true,
        }
    }

    fn verdict(policies: &[Value], asked: &Asked) -> Verdict {
        let policies: Vec<(Id, IdentityPolicy)> = policies
            .iter()
            .enumerate()
            .map(|(at, text)| {
                let id = Id::parse(&format!("p{at}")).unwrap();
                (id, serde_json::from_value(text.clone()).unwrap())
            })
            .collect();
        Judges::new(&policies, &HashMap::new(), &[]).verdict(asked)
    }

    #[test]
    fn a_verdict_is_given_only_where_what_the_log_does_not_tell_cannot_change_it() {
        let allow = |rule: Value| json!({"action": "allow", "rules": [rule]});
        let deny = |rule: Value| json!({"action": "deny", "rules": [rule]});
        let get = json!({"to": {"methods": ["GET"]}});
        let by_header = json!({"to": {"methods": ["GET"]}, "when": {"headers": [{"name": "x-role", "values": ["a"]}]}});
        let canary = json!({"mode": {"canary": 10}, "to": {"methods": ["GET"]}});
        let watched = json!({"mode": "observe", "to": {"methods": ["GET"]}});
        let one = |policy: &str| Some((policy.to_string(), "1".to_string()));
        for (policies, method, expected) in [
            (vec![allow(get.clone())], "GET", Verdict::Allow(one("p0"))),
            (vec![allow(get.clone())], "PUT", Verdict::Deny("no_rule", None)),
            (vec![allow(by_header.clone())], "GET", Verdict::Unknown),
            (vec![allow(by_header.clone())], "PUT", Verdict::Deny("no_rule", None)),
            (vec![allow(get), allow(by_header.clone())], "GET", Verdict::Allow(one("p0"))),
            (vec![allow(json!({})), deny(by_header.clone())], "GET", Verdict::Unknown),
            (vec![allow(json!({})), deny(by_header.clone())], "PUT", Verdict::Allow(one("p0"))),
            (vec![deny(by_header)], "GET", Verdict::Deny("no_rule", None)),
            (vec![allow(canary.clone())], "GET", Verdict::Unknown),
            (vec![allow(json!({})), deny(canary)], "GET", Verdict::Unknown),
            (vec![allow(watched)], "GET", Verdict::Deny("no_rule", None)),
        ] {
            assert_eq!(verdict(&policies, &asked(method, "/x")), expected, "{method} {policies:?}");
        }
    }
}
