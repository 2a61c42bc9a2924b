//! What the gateway tells of itself. Only the metrics stand here; the room itself is written elsewhere.

mod metrics;

pub use metrics::{Counter, Gauge, Histogram, MetricKind, Registry};
