//! Why a role cannot start.

use std::io;
use std::net::SocketAddr;

use super::settings;

/// Why a role cannot start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The settings.
    #[error(transparent)]
    Settings(#[from] settings::Error),
    /// Our own identity.
    #[error("there is no identity to start with")]
    Identity(#[from] crate::identity::Error),
    /// The issuer's authority or its socket.
    #[error(transparent)]
    Issuer(#[from] crate::issuer::Error),
    /// The bundle endpoint.
    #[error(transparent)]
    Federation(#[from] crate::federation::Error),
    /// The store.
    #[error("the store cannot be used")]
    Store(#[from] crate::store::Error),
    /// The Admin API's keys.
    #[error("the admin keys cannot be used")]
    AdminKeys(#[from] crate::control::access::Error),
    /// A schema of this build.
    #[error(transparent)]
    Control(#[from] crate::control::Error),
    /// The decision log.
    #[error("the decision log cannot be used")]
    Audit(#[from] crate::observe::Error),
    /// A listener or a worker.
    #[error(transparent)]
    DataPlane(#[from] crate::proxy::Error),
    /// The resources file.
    #[error("the resources file cannot be used")]
    Resources(#[from] crate::sync::file::Error),
    /// The registries.
    #[error(transparent)]
    Discovery(#[from] crate::upstream::DiscoveryError),
    /// How names are resolved.
    #[error("setting {0}")]
    Names(#[from] crate::upstream::NameError),
    /// Public certificates.
    #[error("TLS cannot be set up")]
    Tls(#[from] crate::mtls::Error),
    /// The archive of decision logs.
    #[error(transparent)]
    Archive(#[from] crate::audit::ArchiveError),
    /// The folder for state.
    #[error("cannot keep state in {path}")]
    State {
        /// The folder.
        path: std::path::PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A listener of the control side.
    #[error(transparent)]
    Listen(#[from] crate::rt::socket::Error),
    /// The process that this one was started to replace.
    #[error("cannot take over from the process before")]
    Predecessor(#[source] io::Error),
    /// The system refuses something at the start.
    #[error("{what} {address}")]
    Socket {
        /// What was tried.
        what: &'static str,
        /// Where.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
}
