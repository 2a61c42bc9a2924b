//! Why it is not known what a reference stands for. No sentence shows a secret.

use std::path::PathBuf;

use crate::mtls;
use crate::rt::Unread;

/// Why it is not known what a reference stands for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The manager is declared nowhere, or in a way that cannot be read.
    #[error("there is no secret manager {0}")]
    NoManager(String),
    /// The operator of this process has not allowed it.
    #[error("the environment variable {0} is not among those of the setting secrets.environment")]
    NotAllowed(String),
    /// It is allowed and not there.
    #[error("the environment variable {0} is not set")]
    NotSet(String),
    /// It is there and no text.
    #[error("the environment variable {0} is not UTF-8")]
    NotText(String),
    /// A field of a manager's resource makes no sense.
    #[error("{field}: {why}")]
    Field {
        /// The field.
        field: &'static str,
        /// What was expected.
        why: String,
    },
    /// A file cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// Which one.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file holds something else.
    #[error("{path}: {why}")]
    File {
        /// Which one.
        path: PathBuf,
        /// What was expected.
        why: String,
    },
    /// Plain HTTP would show the secret to whoever listens.
    #[error(
        "{0} is plain http:// and not on loopback; use https://, or allow it by the setting secrets.plain_http"
    )]
    Plain(String),
    /// Nobody is there.
    #[error("{server} cannot be reached")]
    Connect {
        /// `scheme://host:port`.
        server: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// It is somebody else, or speaks no TLS.
    #[error("{server} cannot be trusted, or does not speak TLS")]
    Handshake {
        /// `scheme://host:port`.
        server: String,
        /// Why.
        source: mtls::Error,
    },
    /// The exchange broke.
    #[error("the exchange with {server} failed")]
    Exchange {
        /// `scheme://host:port`.
        server: String,
        /// Why.
        source: hyper::Error,
    },
    /// The answer broke off or is too long.
    #[error("the answer of {server} cannot be read")]
    Unread {
        /// `scheme://host:port`.
        server: String,
        /// Why.
        source: Unread,
    },
    /// It takes too long.
    #[error("{server} did not answer within {seconds} s")]
    Late {
        /// `scheme://host:port`.
        server: String,
        /// How long it had.
        seconds: u64,
    },
    /// It answered with another status than 200.
    #[error("{server} answered {status}: {told}")]
    Status {
        /// `scheme://host:port`.
        server: String,
        /// The status.
        status: u16,
        /// What its error says, or what the status means.
        told: String,
    },
    /// The answer is not what its interface promises.
    #[error("{server} answered something else than {expected}")]
    Shape {
        /// `scheme://host:port`.
        server: String,
        /// What was expected.
        expected: &'static str,
    },
    /// There is no such secret, or no version of it.
    #[error("{0}")]
    Absent(String),
    /// The secret has no such field.
    #[error("the secret has no field {0:?}")]
    NoField(String),
    /// The field holds an object, a list or nothing.
    #[error("the field {0:?} of the secret is no text")]
    NoText(String),
    /// A field is asked for of what is no object.
    #[error("the secret is no JSON object, so that it has no field {0:?}")]
    NoObject(String),
    /// A service account's key cannot sign.
    #[error("the service account's private key is no RSA key as PEM (PKCS#8)")]
    Key,
}
