//! Where requests go: clusters that pick an endpoint, and connections to it. A door: it defines nothing itself.

mod balance;
mod cluster;
mod connect;
mod endpoint;
mod members;
mod pool;
mod roster;

pub use cluster::{Cluster, Tried};
pub use connect::{Connect, Error, Established, Introduction, Protocol, Stream};
pub use endpoint::{Busy, Endpoint, Security};
pub use members::Members;
pub use pool::{Idle, Multiplexed, Pool, Reuse, Shared};
pub use roster::{Attended, Roster};
