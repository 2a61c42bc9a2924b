//! Cases kept beside the policies: who asks for what of whom, and what has to come of it. A door: it defines nothing itself.

mod case;
mod text;
mod trial;

pub(super) use case::cases;
pub use case::{Case, Expected};
pub use text::PolicyTest;
pub use trial::{Trial, TrialReport, UnreachedRule, try_cases};
