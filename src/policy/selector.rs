//! `Selector`: which routes a policy is about.

use super::action::Facts;
use crate::model::{Id, Labels, PolicyAction, PolicySelector};

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
