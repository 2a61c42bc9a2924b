//! Redis, as plugins use it: scripts over kept connections, on one server, a cluster, or whoever sentinels name. Bounded in time.

mod answer;
mod cluster;
mod error;
mod link;
mod script;
mod sentinel;
mod server;
mod text;

pub use cluster::{Cluster as RedisCluster, slot_of};
pub use error::Error as RedisError;
pub use script::{Redis, Script};
pub use sentinel::Sentinels;
pub use server::{Access as RedisAccess, Server as RedisServer};
