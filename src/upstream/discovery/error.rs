//! Why a registry cannot be used, or does not answer.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::mtls;
use crate::rt::Unread;
use crate::upstream::NameError;

/// Why a registry cannot be used, or does not answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A setting makes no sense.
    #[error("setting discovery.{field}: {problem}")]
    Setting {
        /// Its name, with dots.
        field: String,
        /// What is wrong, and what is expected.
        problem: String,
    },
    /// A file cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file that should hold a token holds none that HTTP can carry.
    #[error("{path} holds no token")]
    Token {
        /// Which.
        path: PathBuf,
    },
    /// DNS does not answer.
    #[error("{name} cannot be resolved")]
    Name {
        /// What was asked for.
        name: String,
        /// Why not.
        source: NameError,
    },
    /// No connection.
    #[error("{server} cannot be reached")]
    Connect {
        /// Whom.
        server: String,
        /// What the system said.
        source: io::Error,
    },
    /// The TLS handshake failed.
    #[error("the handshake with {server} failed")]
    Handshake {
        /// With whom.
        server: String,
        /// Why.
        source: mtls::Error,
    },
    /// The connection broke, or it is no HTTP.
    #[error("the exchange with {server} failed")]
    Exchange {
        /// With whom.
        server: String,
        /// What happened.
        source: hyper::Error,
    },
    /// The answer was not read to its end.
    #[error("{server} was not heard to the end")]
    Unread {
        /// Who.
        server: String,
        /// Why.
        source: Unread,
    },
    /// No answer in time.
    #[error("{server} gave no answer within {within:?}")]
    Late {
        /// Who.
        server: String,
        /// How long we waited.
        within: Duration,
    },
    /// Another status than 200.
    #[error("{server} answers {path} with status {status}")]
    Status {
        /// Who.
        server: String,
        /// What was asked for, without the query.
        path: String,
        /// The status.
        status: u16,
    },
    /// The answer is not what the registry's interface says.
    #[error("{server} answers {path} with something else than expected: {why}")]
    Shape {
        /// Who.
        server: String,
        /// What was asked for, without the query.
        path: String,
        /// What is wrong.
        why: String,
    },
}

impl Error {
    pub(super) fn setting(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Setting { field: field.into(), problem: problem.into() }
    }
}
