//! HTTP/2 (RFC 9113) for whoever forwards messages: frames, streams and their flow control, over any stream of bytes. What a
//! message means is not known here.
//!
//! One task drives a connection ([`Connection::poll`]); an exchange holds a [`Stream`] of it, which reads what has come and writes
//! frames into the connection's buffer. All that was written by the time at which the driver runs again goes out in one write.

mod connection;
mod core;
mod error;
mod fields;
mod flow;
mod frame;
pub mod hpack;
mod opener;
mod settings;
mod spare;
mod stream;

#[cfg(test)]
mod tests;

pub use connection::{Connection, Incoming};
pub use core::Block;
pub use error::Error;
pub use fields::Fields;
pub use frame::Reason;
pub use opener::Opener;
pub use settings::Settings;
pub use stream::{Arrived, Stream};
