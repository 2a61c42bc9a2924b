//! Small tools for long-lived async programs: current values, draining, time, sockets, owned tasks.
//!
//! This room knows nothing of gateways. It is a door: it defines nothing itself.

mod causes;
pub mod crypto;
mod drain;
mod live;
pub mod memory;
mod shards;
pub mod socket;
mod task;
mod time;

pub use causes::causes;
pub use drain::{Drain, DrainGuard};
pub use live::{Cached, Live, Publisher};
pub use shards::Shards;
pub use task::{Tasks, spawn};
pub use time::{Backoff, Clock, Watchdog, unix_millis, unix_seconds};
