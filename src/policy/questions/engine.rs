//! What questions ask of the engine itself, rule by rule.

use super::super::action::{Action, Facts};
use super::super::Policy;
use crate::identity::SpiffeId;

impl Policy {
    /// For each rule, in order: does it hold?
    pub(super) fn held(&self, caller: Option<&SpiffeId>, action: &Action<'_>) -> Vec<bool> {
        let facts = Facts::of(action);
        self.rules.iter().map(|rule| self.failed(rule, caller, &facts).is_empty()).collect()
    }
}
