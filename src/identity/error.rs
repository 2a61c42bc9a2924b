//! Why an identity or a trust bundle cannot be used.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use super::{Flaw, TokenFlaw, TrustDomain};
use crate::rt::causes;

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
    /// One bundle of a bundle map.
    #[error("the bundle of trust domain {domain} in the map cannot be used")]
    BundleInMap {
        /// Whose bundle it is.
        domain: TrustDomain,
        /// What is wrong with it.
        source: Box<Self>,
    },
    /// A bundle document older than the one that is in use (67).
    #[error(
        "the bundle document has spiffe_sequence {found}, older than {stored}, which is in use"
    )]
    SequenceRollback {
        /// Its sequence, `none` when it has none any more.
        found: String,
        /// The sequence of the document in use.
        stored: u64,
    },
    /// Two bundle documents of one sequence (68).
    #[error(
        "the bundle document has spiffe_sequence {sequence} as the one in use, and other authorities"
    )]
    SequenceReused {
        /// The sequence of both.
        sequence: u64,
    },
    /// A bundle's certificate that is none.
    #[error("authority {position} of the bundle is not a certificate")]
    BundleCertificate {
        /// Counted from 1.
        position: usize,
    },
    /// A certificate revocation list that cannot be read, or of a kind that is not taken.
    #[error("the revocation list cannot be used: {detail}")]
    RevocationList {
        /// What is wrong with it.
        detail: String,
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
    /// The Workload API's socket is not served by whom it should be.
    #[error(
        "{socket} is served by user {uid}, in a directory where every user may make something: expected root or our own user"
    )]
    SocketServer {
        /// The socket.
        socket: PathBuf,
        /// Who serves it.
        uid: u32,
    },
    /// Nothing answers at the Workload API's address.
    #[error("cannot reach the Workload API at {address}")]
    Unreachable {
        /// Where it should be.
        address: String,
        /// What the system said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The Workload API's answer.
    #[error("the Workload API at {address} gave no identity: {code:?}: {message}")]
    WorkloadApi {
        /// Where it was asked.
        address: String,
        /// gRPC's name for it.
        code: tonic::Code,
        /// What it said.
        message: String,
    },
    /// A message of the Workload API that lacks what it must have.
    #[error("the Workload API's message is malformed: {detail}")]
    WorkloadMessage {
        /// What is wrong with it.
        detail: String,
    },
    /// The settings' SPIFFE ID or hint.
    #[error("setting identity.{setting}: {problem}")]
    Wanted {
        /// `spiffe_id` or `hint`.
        setting: &'static str,
        /// What is wrong, and what is expected.
        problem: String,
    },
    /// The Workload API has SVIDs for us, but not the one that we want.
    #[error("the Workload API has no SVID for {wanted}, only for {found}")]
    NotAmong {
        /// The ID or the hint.
        wanted: String,
        /// The IDs that it has.
        found: String,
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
        causes(self)
    }
}
