//! Connections with clients of the ingress.

use std::io;
use std::sync::Arc;

use rustls::ServerConfig;
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, server};

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
