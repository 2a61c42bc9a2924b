//! Why Redis gives no answer.

use std::io;
use std::time::Duration;

/// Why Redis gives no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// It took too long.
    #[error("{server} did not answer within {within:?}")]
    Late {
        /// Who was asked.
        server: String,
        /// How long.
        within: Duration,
    },
    /// Nobody listens there, or the connection broke.
    #[error("{server} cannot be reached")]
    Unreachable {
        /// Who was asked.
        server: String,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// What came is no Redis protocol.
    #[error("{0} speaks no Redis protocol")]
    Protocol(String),
    /// Redis refused; its own words.
    #[error("{server}: {words}")]
    Refused {
        /// Who was asked.
        server: String,
        /// What it said.
        words: String,
    },
    /// No node of the cluster, and no sentinel, could tell whom to ask.
    #[error("nobody tells who serves: {0}")]
    Nobody(String),
    /// This host cannot make the TLS connection.
    #[error("TLS cannot be used")]
    Tls(#[source] crate::mtls::Error),
}

impl Error {
    /// The word that an error of Redis begins with.
    pub(super) fn kind(&self) -> &str {
        match self {
            Self::Refused { words, .. } => words.split(' ').next().unwrap_or_default(),
            _ => "",
        }
    }

    /// Is there nobody at the other end, or not the one who was meant?
    pub(super) fn is_elsewhere(&self) -> bool {
        matches!(self, Self::Late { .. } | Self::Unreachable { .. })
            || matches!(self.kind(), "READONLY" | "LOADING" | "MASTERDOWN" | "CLUSTERDOWN")
    }

    /// The sentence with its causes, for the log.
    pub fn told(&self) -> String {
        crate::rt::causes(self)
    }
}
