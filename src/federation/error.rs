//! Why something could not be fetched, or may not be taken.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use crate::identity;
use crate::rt::causes;

/// Why a bundle or a revocation list could not be fetched, or may not be taken. What was held before stays in force.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The name in the URL has no address.
    #[error("cannot resolve {host}")]
    Resolve {
        /// The name.
        host: String,
        /// What the system said.
        source: io::Error,
    },
    /// The address is not one of the public internet (85).
    #[error("{host} has the private address {address}; allow_private permits it")]
    PrivateAddress {
        /// The name, or the address as it is written.
        host: String,
        /// The address.
        address: IpAddr,
    },
    /// Nobody answers there.
    #[error("cannot connect to {address}")]
    Connect {
        /// Where.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The server is not who it must be.
    #[error("the handshake with {host} failed")]
    Handshake {
        /// The name in the URL.
        host: String,
        /// Why.
        source: crate::mtls::Error,
    },
    /// There is no bundle with which the endpoint's server could be verified.
    #[error("there is no bundle of trust domain {domain} to verify the endpoint's server with")]
    NoBundle {
        /// The server's trust domain.
        domain: identity::TrustDomain,
    },
    /// The server does not speak HTTP as it should.
    #[error("the exchange with {host} failed")]
    Http {
        /// The name in the URL.
        host: String,
        /// Why.
        source: hyper::Error,
    },
    /// Another answer than 200.
    #[error("{host} answered {status}")]
    Status {
        /// The name in the URL.
        host: String,
        /// The status.
        status: u16,
    },
    /// A redirect that may not be followed (83, 85).
    #[error("the redirect to {target:?} is not followed: {why}")]
    Redirect {
        /// What the server named.
        target: String,
        /// Why not.
        why: String,
    },
    /// More than may be read (88).
    #[error("the answer has more than {max} bytes")]
    TooLarge {
        /// The limit.
        max: usize,
    },
    /// It took too long (88).
    #[error("there was no whole answer within {seconds} s")]
    TooLate {
        /// The limit.
        seconds: u64,
    },
    /// The document is no bundle, or may not take the place of the one that is held (67, 68).
    #[error("the answer cannot be used")]
    Bundle(#[from] identity::Error),
    /// What came is no revocation list.
    #[error("the answer is no revocation list: {why}")]
    List {
        /// What is wrong with it.
        why: String,
    },
    /// An older revocation list than the one that is held.
    #[error("the revocation list is older than the one that is held: a rollback")]
    OlderList,
    /// What was kept cannot be used.
    #[error("{path} is damaged: {why}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The file system's answer.
    #[error("cannot use {path}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A setting of the endpoint.
    #[error("setting {field}: {problem}")]
    Setting {
        /// The setting's name, with dots.
        field: &'static str,
        /// What is wrong, and what is expected.
        problem: String,
    },
    /// The endpoint's certificate.
    #[error("the bundle endpoint's certificate cannot be used")]
    Certificate(#[source] crate::mtls::Error),
    /// The endpoint's address.
    #[error(transparent)]
    Listen(#[from] crate::rt::socket::Error),
}

impl Error {
    /// The stable name of the reason, for metrics and records.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Resolve { .. } => "resolve",
            Self::PrivateAddress { .. } => "private_address",
            Self::Connect { .. } => "connect",
            Self::Handshake { .. } => "handshake",
            Self::NoBundle { .. } => "no_bundle",
            Self::Http { .. } => "http",
            Self::Status { .. } => "status",
            Self::Redirect { .. } => "redirect",
            Self::TooLarge { .. } => "too_large",
            Self::TooLate { .. } => "too_late",
            Self::Bundle(identity::Error::SequenceRollback { .. }) => "rollback",
            Self::Bundle(identity::Error::SequenceReused { .. }) => "same_sequence",
            Self::Bundle(_) => "no_bundle_document",
            Self::List { .. } => "no_revocation_list",
            Self::OlderList => "older_list",
            Self::Damaged { .. } => "damaged",
            Self::File { .. } => "file",
            Self::Setting { .. } | Self::Certificate(_) | Self::Listen(_) => "settings",
        }
    }

    /// Is it a sign of an attack, or of a grave mistake, for somebody to look at now?
    pub fn is_alarm(&self) -> bool {
        use identity::Error::{SequenceReused, SequenceRollback};
        matches!(
            self,
            Self::Bundle(SequenceRollback { .. } | SequenceReused { .. }) | Self::OlderList
        )
    }

    /// The sentence with all its causes, on one line.
    pub fn report(&self) -> String {
        causes(self)
    }
}
