//! Why the issuer cannot work, or does not issue.

use std::io;
use std::path::PathBuf;

use super::{Issued, Step};
use crate::identity::{SpiffeId, TrustDomain};

/// Why the issuer cannot work, or does not issue. Each variant names what the operator looks at.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An authority would be overwritten.
    #[error("{path} exists already: an authority is never overwritten")]
    Exists {
        /// The file that is there.
        path: PathBuf,
    },
    /// The file system's answer.
    #[error("cannot read {path}")]
    Read {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file system's answer.
    #[error("cannot write {path}")]
    Write {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file of the authority is of no use. Nothing was changed.
    #[error("{path} is damaged: {detail}")]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        detail: String,
    },
    /// There is nothing to open.
    #[error("there is no authority: {path} is missing; `wardgate identity init` makes one")]
    NoAuthority {
        /// The file that every authority has.
        path: PathBuf,
    },
    /// The authority's intermediate was asked for and is not there yet.
    #[error(
        "the authority waits for its upstream: have {path} signed, then `wardgate identity adopt`"
    )]
    AwaitingUpstream {
        /// The request.
        path: PathBuf,
    },
    /// What upstream gave, or what it is asked for, does not fit.
    #[error("upstream authority: {detail}")]
    Upstream {
        /// What does not fit, and what was expected.
        detail: String,
    },
    /// A private key does not open.
    #[error(
        "the passphrase does not open {path}: it is another key's passphrase, or the file was changed"
    )]
    Passphrase {
        /// The key's file.
        path: PathBuf,
    },
    /// A private key is encrypted, and nobody said with what.
    #[error(
        "{path} is encrypted: give its passphrase in a file (issuer.passphrase_file, --passphrase-file) or in \
         WARDGATE_CA_PASSPHRASE"
    )]
    PassphraseMissing {
        /// The key's file.
        path: PathBuf,
    },
    /// The passphrase cannot be taken from where it should be.
    #[error("the passphrase cannot be used: {detail}")]
    PassphraseSource {
        /// Why.
        detail: String,
    },
    /// Private keys are not where their custody should have them.
    #[error("the custody of the authority's keys: {detail}")]
    Custody {
        /// What its holder said.
        detail: String,
    },
    /// The steps of a root's rotation have an order.
    #[error("rotate-root {step} is not the next step: expected {next}")]
    Step {
        /// What was asked for.
        step: Step,
        /// What comes next.
        next: Step,
    },
    /// Others cannot know of the step before yet.
    #[error(
"too early: the step before must be known for {} s, so that all who verify have heard of it; --force does it all the same",
        until - since
    )]
    TooEarly {
        /// Since when it could be known, seconds since 1970.
        since: i64,
        /// From when on it is, seconds since 1970.
        until: i64,
    },
    /// Whoever has one of these would be refused by everybody.
    #[error("{} live SVIDs chain to the root that would leave the bundle; --force does it all the same", live.len())]
    WouldBreak {
        /// They.
        live: Vec<Issued>,
    },
    /// The intermediate's time is over.
    #[error(
        "the intermediate of {domain} expired: `wardgate identity request` and `adopt` bring the next one"
    )]
    IntermediateExpired {
        /// Whose it is.
        domain: TrustDomain,
    },
    /// What is issued could not be recorded.
    #[error(
        "the ledger {path} has no room: too many live SVIDs are recorded in it; nothing is issued"
    )]
    LedgerFull {
        /// The ledger.
        path: PathBuf,
    },
    /// Nobody was issued this serial number.
    #[error(
        "the ledger does not know the serial number {serial}: it never was issued, or expired long ago; \
         --force revokes it all the same"
    )]
    UnknownSerial {
        /// What was asked for.
        serial: String,
    },
    /// A text that is no serial number.
    #[error("{text:?} is not a serial number: expected up to 20 bytes in hexadecimal")]
    Serial {
        /// What was given.
        text: String,
    },
    /// A moment that certificates cannot express.
    #[error("{seconds} s since 1970 cannot stand in a certificate")]
    Moment {
        /// The moment.
        seconds: i64,
    },
    /// Everybody may read a private key.
    #[error("everybody may read the private key {path}: expected mode 0600")]
    KeyReadable {
        /// The key's file.
        path: PathBuf,
    },
    /// The root's time is over.
    #[error(
        "the root certificate of {domain} expired: make a new authority and distribute its bundle"
    )]
    RootExpired {
        /// Whose root it is.
        domain: TrustDomain,
    },
    /// An identity of another trust domain was asked for.
    #[error("{id} is not in trust domain {domain}, the only one that this issuer speaks for")]
    OtherDomain {
        /// What was asked for.
        id: SpiffeId,
        /// What can be issued.
        domain: TrustDomain,
    },
    /// The ID of a trust domain is nobody's identity.
    #[error("{id} has no path: it names a trust domain, not a workload")]
    NoPath {
        /// What was asked for.
        id: SpiffeId,
    },
    /// A DNS name that cannot stand in a certificate.
    #[error("{name:?} is not a DNS name")]
    DnsName {
        /// What was asked for.
        name: String,
    },
    /// A public key that cannot stand in a certificate.
    #[error(
        "the public key cannot be read: expected an ECDSA P-256 or P-384, Ed25519 or RSA key as SubjectPublicKeyInfo"
    )]
    PublicKey,
    /// A lifetime that is none.
    #[error("a lifetime of {seconds} s cannot be issued: expected 1 s to 24 h")]
    Lifetime {
        /// What was asked for.
        seconds: u64,
    },
    /// A token for nobody would be for everybody.
    #[error("a JWT-SVID needs at least one audience, and none may be empty")]
    NoAudience,
    /// The certificate could not be made.
    #[error("cannot make a certificate")]
    Sign(#[from] rcgen::Error),
    /// The system gave no random numbers.
    #[error("the system gave no random numbers")]
    Random,
    /// What was issued does not follow our own rules.
    #[error("an issued identity was refused by our own rules")]
    Issued(#[from] crate::identity::Error),
    /// A registration entry that cannot be used.
    #[error("{field} of the registration entry: {detail}")]
    Entry {
        /// Which field.
        field: &'static str,
        /// What is wrong, and what was expected.
        detail: String,
    },
    /// The socket serves somebody already.
    #[error("{path} is served by another process")]
    SocketTaken {
        /// The socket's path.
        path: PathBuf,
    },
    /// Something that is no socket is in the socket's place; it is left alone.
    #[error("{path} exists and is not a socket")]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// The Workload API's server failed.
    #[error("the Workload API at {path} failed")]
    Serve {
        /// The socket's path.
        path: PathBuf,
        /// What the server said.
        source: tonic::transport::Error,
    },
    /// The caller cannot be attested.
    #[error("the caller cannot be attested: {detail}")]
    Attest {
        /// Why.
        detail: &'static str,
    },
    /// A setting of a Kubernetes cluster that cannot be used.
    #[error("issuer.kubernetes, cluster {cluster:?}, {field}: {detail}")]
    Kubernetes {
        /// The cluster's name.
        cluster: String,
        /// Which setting.
        field: &'static str,
        /// What is wrong, and what was expected.
        detail: String,
    },
    /// A setting of the identity source `enrol` that cannot be used.
    #[error("identity.{field}: {detail}")]
    EnrolSetting {
        /// Which setting.
        field: &'static str,
        /// What is wrong, and what was expected.
        detail: String,
    },
    /// The listener for enrolments failed.
    #[error("the issuer's listener failed")]
    Listen(#[source] tonic::transport::Error),
    /// Nobody who is our issuer answers.
    #[error("no answer from the issuer at {address}: {detail}")]
    IssuerUnreachable {
        /// Where it was looked for.
        address: String,
        /// What happened.
        detail: String,
    },
    /// The issuer does not take what was shown.
    #[error("the issuer at {address} refuses: {detail}")]
    IssuerRefused {
        /// Where it was asked.
        address: String,
        /// What it said.
        detail: String,
    },
    /// The issuer says that the identity is not ours, or no longer.
    #[error("the issuer at {address} gives us no identity: {detail}")]
    IssuerDenied {
        /// Where it was asked.
        address: String,
        /// What it said.
        detail: String,
    },
    /// The issuer's answer makes no sense.
    #[error("the issuer's answer cannot be used: {detail}")]
    IssuerAnswer {
        /// Which part of it.
        detail: String,
    },
    /// No identity came in time.
    #[error("no valid identity within {} s from the issuer at {address}", within.as_secs_f64())]
    NotInTime {
        /// Where it was looked for.
        address: String,
        /// How long was waited.
        within: std::time::Duration,
        /// What the last attempt said.
        source: Option<Box<Self>>,
    },
}
