//! `Acceptor`: the server's half of a mesh handshake, with the current identity.

use std::sync::Arc;

use rustls::ServerConfig;
use rustls::server::NoServerSessionStorage;
use rustls::sign::SingleCertAndKey;
use rustls::version::TLS13;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::prepared::Prepared;
use super::provider::{certified_svid, provider};
use super::verifier::handshake;
use super::{Error, PeerVerifier};
use crate::identity::{Identity, Peer};
use crate::rt::Live;

/// Accepts mesh connections: presents our SVID, insists on the peer's, and tells who the peer is.
///
/// Clones share one TLS configuration, which is built once for each identity revision.
#[derive(Clone, Debug)]
pub struct Acceptor {
    prepared: Prepared<TlsAcceptor>,
}

impl Acceptor {
    /// Accepts as whoever `identity` says at each handshake.
    pub fn new(identity: Live<Identity>) -> Self {
        Self { prepared: Prepared::new(identity) }
    }

    /// Shakes hands. The caller limits the time.
    ///
    /// # Errors
    /// The handshake was refused (with the reason and what the peer showed), or the network failed.
    pub async fn accept<S>(&self, stream: S) -> Result<(TlsStream<S>, Arc<Peer>), Error>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let tls =
            self.prepared.get(|identity| Ok(TlsAcceptor::from(Arc::new(config(identity)?))))?;
        handshake(tls.accept(stream)).await
    }
}

fn config(identity: &Identity) -> Result<ServerConfig, Error> {
    let verifier = Arc::new(PeerVerifier::accepting(&identity.trust));
    let own = SingleCertAndKey::from(certified_svid(&identity.svid)?);
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .map_err(Error::Own)?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(own));
    config.ignore_client_order = true;
    // Nothing is resumed: a resumed session would skip the verifier. No data before the peer is known.
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.max_early_data_size = 0;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}
