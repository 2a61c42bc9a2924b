//! Where requests go: clusters that pick an endpoint, and connections to it. A door: it defines nothing itself.

mod balance;
mod cluster;
mod connect;
mod endpoint;
mod pool;

pub use cluster::{Cluster, Tried};
pub use connect::{Connect, Error, Established, Introduction, Protocol, Stream};
pub use endpoint::{Busy, Endpoint, Security};
pub use pool::{Idle, Multiplexed, Pool, Reuse, Shared};
