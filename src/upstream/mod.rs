//! Where requests go: clusters that pick an endpoint, and connections to it. A door: it defines nothing itself.

mod balance;
mod breaker;
mod budget;
mod cluster;
mod cluster_state;
mod connect;
mod endpoint;
mod health;
mod members;
mod outlier;
mod pool;
mod resilience;
mod roster;

pub use breaker::{Admission, Held, Limit, Overflow, Pending, Retry, Slot};
pub use cluster::{Cluster, Tried};
pub use connect::{Connect, Error, Established, Protocol, Stream};
pub use endpoint::{Busy, Endpoint, Security};
pub use health::{HealthReport, NodeCounter, NodeReport, Seen};
pub use members::Members;
pub use pool::{Idle, Multiplexed, Pool, Reuse, Shared};
pub use resilience::{Hedging, Resilience};
pub use roster::{Attended, Roster};
