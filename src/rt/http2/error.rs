//! `Error`: why a stream or a connection ends.

use super::Reason;

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
