//! Why a directory gives no answer.

use std::io;
use std::time::Duration;

/// Why a directory gives no answer.
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
    /// What came is no LDAP, or more than there is room for.
    #[error("{0} speaks no LDAP that can be read")]
    Protocol(String),
    /// The directory cannot, or does not want to.
    #[error("{server} refuses {step}: result {code}")]
    Refused {
        /// Who was asked.
        server: String,
        /// What it was asked for.
        step: &'static str,
        /// The result code of RFC 4511, section 4.1.9.
        code: u32,
    },
    /// This host cannot make the TLS connection.
    #[error("TLS cannot be used")]
    Tls(#[source] crate::mtls::Error),
}

impl Error {
    /// The sentence with its causes, for the log.
    pub fn told(&self) -> String {
        crate::rt::causes(self)
    }
}
