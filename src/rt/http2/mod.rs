//! HTTP/2 (RFC 9113) for whoever forwards messages: frames, streams and their flow control, over any stream of bytes. What a
//! message means is not known here.
//!
//! One task drives a connection ([`Connection::poll`]); an exchange holds a [`Stream`] of it, which reads what has come and writes
//! frames into the connection's buffer. All that was written by the time at which the driver runs again goes out in one write.

mod connection;
mod core;
mod fields;
mod flow;
mod frame;
pub mod hpack;
mod opener;
mod stream;

#[cfg(test)]
mod tests;

pub use connection::{Connection, Incoming};
pub use core::Block;
pub use fields::Fields;
pub use frame::Reason;
pub use opener::Opener;
pub use stream::{Arrived, Stream};

/// What we tell the peer, and keep to.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Bytes of a body that may be on their way on one stream.
    pub stream_window: u32,
    /// The same on all of them together; at least 65,535.
    pub connection_window: u32,
    /// Streams that the peer may have open at once.
    pub streams: u32,
    /// Bytes of a head's fields, with 32 more for each.
    pub list_size: usize,
    /// Bytes that wait for a peer that does not take them.
    pub send_buffer: usize,
    /// We know extended CONNECT (RFC 8441).
    pub extended_connect: bool,
}

/// Why a stream or a connection cannot go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// The connection was lost.
    Io(std::io::ErrorKind, String),
    /// The peer reset the stream.
    Reset(Reason),
    /// The peer did nothing with the stream, nor will it (RFC 9113 section 8.7).
    Refused,
    /// We reset the stream, because of what the peer did on it.
    Broken(&'static str),
    /// We ended the connection, because of what the peer did.
    Fatal(Reason, &'static str),
    /// The peer ended the connection.
    GoneAway(Reason),
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Io(_, cause) => f.write_str(cause),
            Self::Reset(reason) => write!(f, "the stream was reset: {reason}"),
            Self::Refused => f.write_str("the stream was refused"),
            Self::Broken(what) => f.write_str(what),
            Self::Fatal(reason, what) => write!(f, "{what} ({reason})"),
            Self::GoneAway(reason) => write!(f, "the peer ended the connection: {reason}"),
        }
    }
}

impl std::error::Error for Error {}

impl From<std::io::Error> for Error {
    fn from(error: std::io::Error) -> Self {
        Self::Io(error.kind(), error.to_string())
    }
}
