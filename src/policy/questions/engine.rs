//! What questions ask of the engine itself, rule by rule.

use super::super::Policy;
use super::super::action::{Action, Facts};
use super::super::path::{Readings, read};
use super::super::times::Window;
use crate::identity::SpiffeId;
use crate::model::TimeWindow;

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
