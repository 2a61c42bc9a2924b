//! The data plane: listeners, connections, exchanges. A door: it defines nothing itself.

mod buffer;
mod connection;
mod data_plane;
pub mod http;
mod listener;
mod metrics;
mod proof;
mod worker;

pub use connection::DoorSecurity;
pub use data_plane::{DataPlane, Door, Error, Parts};
pub use metrics::ProxyMetrics;
pub use proof::ProofLimits;
pub use worker::Limits;
