//! Connections with the public world: clients of the ingress, and upstreams with public certificates.

use std::io;
use std::sync::Arc;

use rustls::ServerConfig;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

use super::{Alpn, Error, public_client_config};
use crate::rt::Live;

/// Accepts public connections with the certificates of the moment.
#[derive(Clone, Debug)]
pub struct PublicAcceptor {
    current: Live<Option<Arc<ServerConfig>>>,
}

impl PublicAcceptor {
    /// With the configuration of each moment; while there is none, everybody is refused.
    pub fn new(current: Live<Option<Arc<ServerConfig>>>) -> Self {
        Self { current }
    }

    /// Shakes hands. The caller limits the time.
    ///
    /// # Errors
    /// There is no certificate yet, or the handshake failed.
    pub async fn accept(&self, tcp: TcpStream) -> io::Result<server::TlsStream<TcpStream>> {
        match &*self.current.load() {
            Some(config) => TlsAcceptor::from(config.clone()).accept(tcp).await,
            None => Err(io::Error::other("no public certificate is configured")),
        }
    }
}

/// Shakes hands with an upstream of the public world, which must own the name `host` unless `verify` is off.
///
/// # Errors
/// The system has no roots, `host` is no name, or the handshake failed.
pub async fn connect_public(
    tcp: TcpStream,
    host: &str,
    alpn: Alpn,
    verify: bool,
) -> Result<client::TlsStream<TcpStream>, Error> {
    let config = public_client_config(verify, alpn)?;
    let name = ServerName::try_from(host.to_owned())
        .map_err(|error| Error::Network(io::Error::new(io::ErrorKind::InvalidInput, error)))?;
    TlsConnector::from(config).connect(name, tcp).await.map_err(Error::Network)
}
