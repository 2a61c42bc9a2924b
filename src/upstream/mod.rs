//! Where requests go: clusters that pick an endpoint, and connections to it. A door: it defines nothing itself.

mod average;
mod balance;
mod blueprint;
mod breaker;
mod budget;
mod cluster;
mod cluster_state;
mod connect;
mod discovery;
mod endpoint;
mod following;
mod health;
mod members;
mod names;
mod nodes;
mod origin_tls;
mod outlier;
mod pool;
mod resilience;
mod roster;

pub use breaker::{Admission, Held, Limit, Overflow, Pending, Retry, Slot};
pub use cluster::{Cluster, HashKey, Tried};
pub use connect::{Connect, Error, Established, Introduction, Protocol, Stream};
pub use discovery::{Discovery, Error as DiscoveryError, Settings as DiscoverySettings};
pub use endpoint::{Busy, Endpoint, Place, PublicTls, Security};
pub use health::{HealthReport, NodeCounter, NodeReport, Seen};
pub use members::Members;
pub use names::{Answer, DnsSettings, Family, NameError, Resolver, Service};
pub use origin_tls::UpstreamSettings;
pub use pool::{Idle, Multiplexed, Pool, Reuse, Shared};
pub use resilience::{Hedging, Resilience};
pub use roster::{Attended, Roster};
