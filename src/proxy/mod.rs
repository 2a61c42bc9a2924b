//! The data plane: listeners, connections, exchanges. A door: it defines nothing itself.

mod buffer;
mod connection;
mod data_plane;
pub mod http;
mod introduction;
mod limits;
mod listener;
mod metrics;
mod passthrough;
mod proof;
mod relay;
mod senders;
mod sources;
mod tcp;
mod worker;

pub use connection::DoorSecurity;
pub use data_plane::{DataPlane, Door, Error, Parts};
pub use introduction::{Introductions, ProxyProtocolSettings};
pub use limits::{Http2LimitSettings, InvalidLimit, LimitSettings, Limits, SourceLimits};
pub use metrics::ProxyMetrics;
pub use passthrough::{Passthrough, PassthroughDoor, PassthroughRoute, PassthroughSettings};
pub use proof::ProofLimits;
pub use relay::Target;
pub use senders::{RealIpSettings, Senders};
pub use tcp::{TcpDoor, TcpSettings};
