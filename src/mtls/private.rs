//! TLS towards servers that have names and certificates of a private authority, such as Kubernetes' API server.

use std::io;
use std::sync::Arc;

use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::provider::provider;
use super::{Alpn, Error};

/// Shakes hands with a server that must own the name (or address) `host`, by the word of the authorities in `roots` (PEM) and
/// of nobody else.
///
/// # Errors
/// The roots hold no certificate, `host` is no name, or the handshake failed.
pub async fn connect_private<S>(
    stream: S,
    host: &str,
    roots: &[u8],
    alpn: Alpn,
) -> Result<TlsStream<S>, Error>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let invalid =
        |detail: String| Error::Network(io::Error::new(io::ErrorKind::InvalidInput, detail));
    let mut store = RootCertStore::empty();
    for root in CertificateDer::pem_slice_iter(roots) {
        let root =
            root.map_err(|error| invalid(format!("the authorities' PEM is damaged: {error}")))?;
        store.add(root).map_err(Error::Own)?;
    }
    if store.is_empty() {
        return Err(invalid("the authorities' PEM holds no certificate".into()));
    }
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13, &TLS12])
        .map_err(Error::Own)?
        .with_root_certificates(store)
        .with_no_client_auth();
    config.alpn_protocols = alpn.offered();
    config.enable_early_data = false;
    let name = ServerName::try_from(host.to_owned()).map_err(|error| invalid(error.to_string()))?;
    TlsConnector::from(Arc::new(config)).connect(name, stream).await.map_err(Error::Network)
}
