//! Which endpoints may be used: what probes and requests found of them. A door: it defines nothing itself.

mod checks;
mod condition;
mod probe;
mod report;
mod warmup;
mod watch;

pub use checks::Seen;
pub(super) use checks::{ActiveChecks, Thresholds};
pub(super) use condition::{Change, Condition};
pub use report::{HealthReport, NodeCounter, NodeReport};
pub(super) use watch::attend;
