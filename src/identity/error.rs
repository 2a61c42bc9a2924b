//! Why an identity or a trust bundle cannot be used.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use super::{Flaw, TokenFlaw, TrustDomain};

/// Why an identity or a trust bundle cannot be used. Each variant names what the operator looks at.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The file system's answer.
    #[error("cannot read {path}")]
    Read {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file was read and what it holds is of no use.
    #[error("{path} cannot be used")]
    File {
        /// Which file.
        path: PathBuf,
        /// What is wrong with its content.
        source: Box<Self>,
    },
    /// PEM that does not hold what was expected.
    #[error("expected PEM with {expected}, found {found}")]
    Pem {
        /// `at least one certificate`, `one private key`.
        expected: &'static str,
        /// What is there instead.
        found: String,
    },
    /// A certificate breaks a rule.
    #[error(transparent)]
    Flaw(#[from] Flaw),
    /// A chain in the wrong order, or with a certificate that belongs elsewhere.
    #[error("certificate {position} of the chain did not issue the one before it")]
    ChainOrder {
        /// Counted from 1, the leaf.
        position: usize,
    },
    /// No private key that can sign, or of a kind that is not supported.
    #[error(
        "the private key cannot be read: expected an unencrypted ECDSA P-256 or P-384, Ed25519 or RSA key"
    )]
    Key,
    /// The private key belongs to another certificate.
    #[error("the private key does not belong to the leaf certificate")]
    KeyMismatch,
    /// The SVID names another identity than was announced or asked for.
    #[error("the SVID is for {found}, expected {expected}")]
    OtherId {
        /// The ID in the certificate.
        found: String,
        /// What it should be.
        expected: String,
    },
    /// A trust domain name that is none.
    #[error("{name:?} is not a trust domain name")]
    TrustDomain {
        /// What was given.
        name: String,
    },
    /// A bundle for another trust domain's name, or twice for the same.
    #[error("the settings name two bundles for trust domain {domain}")]
    TwoBundles {
        /// The trust domain.
        domain: TrustDomain,
    },
    /// A SPIFFE bundle document (JWKS) that is none.
    #[error("the bundle document is not a SPIFFE bundle: {detail}")]
    BundleDocument {
        /// What is wrong with it.
        detail: String,
    },
    /// A bundle's certificate that is none.
    #[error("authority {position} of the bundle is not a certificate")]
    BundleCertificate {
        /// Counted from 1.
        position: usize,
    },
    /// The Workload API's address is missing or wrong.
    #[error(
        "the Workload API's address {address:?} cannot be used: expected unix:/absolute/path or tcp:ADDRESS:PORT, \
         from the setting `socket` or from SPIFFE_ENDPOINT_SOCKET"
    )]
    Address {
        /// What was given; empty when nothing was.
        address: String,
    },
    /// Anybody could replace the Workload API's socket.
    #[error(
        "everybody may write to {directory}, where the Workload API's socket is: any user could replace it"
    )]
    SocketDirectory {
        /// The socket's directory.
        directory: PathBuf,
    },
    /// The Workload API's answer.
    #[error("the Workload API at {address} gave no identity")]
    WorkloadApi {
        /// Where it was asked.
        address: String,
        /// What it said.
        source: Box<spiffe::WorkloadApiError>,
    },
    /// The Workload API's answer to a call about JWT-SVIDs.
    #[error("the Workload API at {address} refused a call about JWT-SVIDs")]
    JwtApi {
        /// Where it was asked.
        address: String,
        /// What it said.
        source: Box<tonic::Status>,
    },
    /// A token that the Workload API gave us is of no use.
    #[error("the JWT-SVID of the Workload API cannot be used")]
    Token(#[from] TokenFlaw),
    /// The Workload API closed its stream.
    #[error("the Workload API at {address} ended the stream")]
    StreamEnded {
        /// Where it was asked.
        address: String,
    },
    /// No SVID bears the hint that the settings ask for.
    #[error("no SVID of the Workload API has the hint {hint:?}")]
    NoHint {
        /// The wanted hint.
        hint: String,
    },
    /// Nothing valid came in time.
    #[error("no valid identity within {} s from {origin}", within.as_secs_f64())]
    NotInTime {
        /// Where it should have come from.
        origin: String,
        /// How long was waited.
        within: Duration,
        /// What the last attempt said.
        source: Option<Box<Self>>,
    },
}

impl Error {
    /// The sentence with all its causes, on one line.
    pub fn report(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(next) = cause {
            text.push_str(": ");
            text.push_str(&next.to_string());
            cause = next.source();
        }
        text
    }
}
