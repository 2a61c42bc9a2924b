//! Why a conformance run cannot be made.

use std::io;
use std::path::PathBuf;

/// Why a conformance run cannot be made. That a proxy breaks a rule is no error but a row of the report.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The file system's answer.
    #[error("cannot use {path}")]
    File {
        /// Which file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The fixtures are not those of `init`.
    #[error("{path} is not a fixture of `wardgate conformance spiffe init`: {detail}")]
    Fixture {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        detail: String,
    },
    /// Fixtures are there already.
    #[error("{path} is there already; fixtures are never overwritten: choose another folder")]
    Exists {
        /// The folder.
        path: PathBuf,
    },
    /// A certificate cannot be made.
    #[error("a certificate cannot be made")]
    Forge(#[from] rcgen::Error),
    /// A bundle cannot be written as a document.
    #[error("a trust bundle cannot be written")]
    Bundle(#[from] crate::identity::Error),
    /// TLS cannot be set up.
    #[error("TLS cannot be set up")]
    Tls(#[from] rustls::Error),
    /// The proxy does not even take what every rule allows, so that refusals would prove nothing.
    #[error(
        "{side}: a good X.509-SVID is not taken ({seen}); configure the proxy with the fixtures first, since refusals prove \
         nothing before"
    )]
    Baseline {
        /// `inbound` or `outbound`.
        side: &'static str,
        /// What was seen.
        seen: String,
    },
    /// The runner's own listener.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address.
        address: std::net::SocketAddr,
        /// What the system said.
        source: io::Error,
    },
}
