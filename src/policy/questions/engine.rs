//! What questions ask of the engine itself, rule by rule.

use super::super::Policy;
use super::super::action::{Action, Facts};
use super::super::path::{Readings, read};
use super::super::times::Window;
use crate::identity::{SpiffeId, TrustDomain};
use crate::model::{
    Id, IdentityPolicy, Labels, Mode, PolicyAction, PolicyRule, PolicySelector, TimeWindow,
};

impl Policy {
    /// For each rule, in order: does it hold?
    pub(super) fn held(&self, caller: Option<&SpiffeId>, action: &Action<'_>) -> Vec<bool> {
        let facts = Facts::of(action, caller);
        self.rules.iter().map(|rule| self.failed(rule, &facts).is_empty()).collect()
    }
}

/// Is the moment within the span?
pub(super) fn is_within(span: &TimeWindow, unix_seconds: i64) -> bool {
    let window = Window::compile("", span);
    window.is_ok_and(|window| window.holds(unix_seconds) == Some(true))
}

/// Every segment of every reading of a path.
pub(super) fn segments(path: &str) -> Vec<String> {
    let split = |path: &str| path.split('/').map(str::to_owned).collect::<Vec<_>>();
    match read(path) {
        Readings::One(path) => split(path),
        Readings::Several(paths) => paths.iter().flat_map(|path| split(path)).collect(),
        Readings::Unclear => Vec::new(),
    }
}

/// A policy of one rule, and whether it holds: what is said of a part of a rule is said by the engine.
pub(super) fn alone(rule: PolicyRule, action: PolicyAction) -> Policy {
    let policy = IdentityPolicy {
        id: None,
        name: None,
        desc: None,
        labels: Labels::default(),
        selector: PolicySelector::default(),
        action,
        mode: Mode::Enforce,
        rules: vec![rule],
        signature: None,
        create_time: None,
        update_time: None,
    };
    let domain: TrustDomain = "asked".parse().expect("it is a trust domain's name");
    let (engine, rejected) = Policy::compile([(&Id::from(0), 0, &policy)], &domain.id());
    debug_assert!(rejected.is_empty(), "a part of a valid rule is valid: {rejected:?}");
    engine
}

#[cfg(test)]
pub(super) fn holds_alone(rule: &PolicyRule, action: PolicyAction, target: &super::Target) -> bool {
    let fields = target.fields();
    alone(rule.clone(), action).held(None, &target.action(&fields)) == [true]
}

#[cfg(test)]
pub(super) fn is_call(action: &Action<'_>) -> bool {
    let to = crate::model::To { grpc: vec!["a.B/*".into()], ..Default::default() };
    let mut call = *action;
    if let super::super::Content::Request(request) = &mut call.content {
        request.path = "/a.B/c";
    }
    let rule = PolicyRule { to: Some(to), ..PolicyRule::default() };
    alone(rule, PolicyAction::Allow).held(None, &call) == [true]
}
