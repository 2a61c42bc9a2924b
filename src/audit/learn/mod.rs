//! What the past teaches: what other policies would have decided, which rules are used, and which rules would be enough.
//!
//! Everything is decided by the engine that enforces. It is a door: it defines nothing itself.

mod bounds;
mod coverage;
mod observations;
mod replay;
mod suggest;
mod templates;

#[cfg(test)]
mod tests;

pub use coverage::{Coverage, EntryUse, RuleUse, coverage};
pub use observations::{Asked, Evidence, Observations, Skipped};
pub use replay::{Change, Replay, Tried, replay};
pub use suggest::{RuleEvidence, SuggestedPolicy, Suggestion, suggest};
