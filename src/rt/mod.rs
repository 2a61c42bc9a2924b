//! Small tools for long-lived async programs: current values, draining, time, sockets, owned tasks.
//!
//! This room knows nothing of gateways. It is a door: it defines nothing itself.

mod causes;
mod channel;
pub mod client_hello;
mod conversation;
pub mod crypto;
mod drain;
mod environment;
pub mod http2;
mod live;
pub mod memory;
pub mod proxy_protocol;
mod shards;
pub mod signals;
pub mod socket;
mod sockets;
pub mod systemd;
mod task;
mod time;

pub use causes::causes;
pub use channel::{Channel, MOST_DESCRIPTORS, Parcel};
pub use conversation::{Conversation, Unread, whole};
pub use drain::{Drain, DrainGuard};
pub use environment::substitute;
pub use live::{Cached, Live, Publisher};
pub use shards::Shards;
pub use sockets::{Given, Sockets};
pub use task::{Tasks, spawn, turn};
pub use time::{
    Backoff, Clock, Watchdog, coarse_now, coarse_unix_millis, coarse_unix_seconds, unix_millis,
    unix_seconds,
};
