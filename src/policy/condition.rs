//! `Condition`: a CEL expression that a rule may end with. Compiled once for a revision, limited in size and in cost.

use super::action::Action;
use crate::identity::SpiffeId;

/// An expression over the caller and the action.
#[derive(Debug)]
pub(super) struct Condition {}

impl Condition {
    /// Reads and checks an expression.
    ///
    /// # Errors
    /// A sentence: where it is no condition, or what it may cost.
    pub(super) fn compile(_text: &str) -> Result<Self, String> {
        Err("conditions in CEL are not supported yet".into())
    }

    /// Is it true? `None` when it cannot be told: something is absent or of another type, or it would cost too much. Then an
    /// allow rule does not hold and a deny rule does.
    pub(super) fn holds(&self, _caller: Option<&SpiffeId>, _action: &Action<'_>) -> Option<bool> {
        None
    }
}
