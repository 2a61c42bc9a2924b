//! `Condition`: a CEL expression that a rule may end with. Compiled once for a revision, limited in size and in cost.
//!
//! The crate `cel` reads the text. What may be written is a subset, judged here: known variables and functions, types as far as
//! they can be told, and what the evaluation costs at worst. The evaluation is ours, over facts that are borrowed from the action.

#[cfg(feature = "cel")]
mod code;
#[cfg(feature = "cel")]
mod lower;
#[cfg(feature = "cel")]
mod parse;
#[cfg(test)]
#[cfg(feature = "cel")]
mod tests;

use super::action::Action;
use crate::identity::SpiffeId;

/// An expression over the caller and the action.
#[derive(Debug)]
pub(super) struct Condition {
    text: Box<str>,
    asks: Asks,
    #[cfg(feature = "cel")]
    code: code::Code,
}

/// What an expression looks at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Asks {
    /// The caller's identity.
    pub(super) identity: bool,
    /// What only an HTTP request has.
    pub(super) http: bool,
    /// The request's path.
    pub(super) path: bool,
    /// Header fields of the request.
    pub(super) headers: bool,
    /// The request's query.
    pub(super) query: bool,
    /// The claims of a token.
    pub(super) claims: bool,
    /// The time.
    pub(super) time: bool,
}

/// The longest text, in bytes.
const LONGEST: usize = 2048;

impl Condition {
    /// Reads and checks an expression.
    ///
    /// # Errors
    /// A sentence: where it is no condition, or what it may cost.
    pub(super) fn compile(text: &str) -> Result<Self, String> {
        if text.trim().is_empty() {
            return Err("expected an expression".into());
        }
        if text.len() > LONGEST {
            return Err(format!("has {} bytes; {LONGEST} are allowed", text.len()));
        }
        #[cfg(feature = "cel")]
        {
            let (code, asks) = lower::lower(&parse::parse(text)?)?;
            Ok(Self { text: text.into(), asks, code })
        }
        #[cfg(not(feature = "cel"))]
        Err("conditions in CEL need a build with the feature `cel`; this one is without it".into())
    }

    /// Is it true? `None` when it cannot be told: something is absent or of another type, or larger than it may be. Then an
    /// allow rule does not hold and a deny rule does.
    #[cfg_attr(not(feature = "cel"), expect(unused_variables, reason = "there is no condition"))]
    pub(super) fn holds(&self, caller: Option<&SpiffeId>, action: &Action<'_>) -> Option<bool> {
        #[cfg(feature = "cel")]
        return self.code.holds(caller, action);
        #[cfg(not(feature = "cel"))]
        None
    }

    /// What it looks at.
    pub(super) const fn asks(&self) -> Asks {
        self.asks
    }

    /// The text, as written.
    pub(super) fn text(&self) -> &str {
        &self.text
    }
}
