//! TLS of published things: bundle endpoints on both sides, and whatever else is fetched over HTTPS. Nobody shows a client
//! certificate here (SPIFFE Federation, section 5.2; rule 89).

use std::io;
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::server::NoServerSessionStorage;
use rustls::sign::SingleCertAndKey;
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

use super::prepared::Prepared;
use super::provider::{certified_svid, provider};
use super::verifier::handshake;
use super::{Alpn, Error, ExpectedPeers, PeerVerifier, public_client_config};
use crate::identity::{Identity, SpiffeId, Trust};
use crate::rt::Live;

/// Shakes hands with a server that is known by its public name: `https_web`. One of `authorities` vouches for it, or one of
/// the system's when none are given (79).
///
/// # Errors
/// There are no authorities, `host` is no name, or the handshake failed.
pub async fn connect_web<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    host: &str,
    authorities: Option<&[CertificateDer<'static>]>,
) -> Result<client::TlsStream<S>, Error> {
    let config = match authorities {
        None => public_client_config(true, Alpn::Http1)?,
        Some(authorities) => Arc::new(config_with(authorities)?),
    };
    TlsConnector::from(config).connect(name(host)?, stream).await.map_err(|error| {
        match super::refusal(&error) {
            Some(refusal) => Error::refused(refusal),
            None => Error::Network(error),
        }
    })
}

/// Shakes hands with a server that must be exactly `id`, by a certificate that `trust` vouches for: `https_spiffe` (80).
///
/// # Errors
/// The handshake was refused, or the network failed.
pub async fn connect_spiffe<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    host: &str,
    trust: &Trust,
    id: &SpiffeId,
) -> Result<client::TlsStream<S>, Error> {
    let expected = Arc::new(ExpectedPeers::exactly(id));
    let verifier = Arc::new(PeerVerifier::connecting(trust, expected));
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .map_err(Error::Own)?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    config.alpn_protocols = Alpn::Http1.offered();
    let tls = TlsConnector::from(Arc::new(config));
    // The name serves a front end that has several; who answers is decided by the SPIFFE ID alone.
    let (stream, _) = handshake(tls.connect(name(host)?, stream)).await?;
    Ok(stream)
}

fn name(host: &str) -> Result<ServerName<'static>, Error> {
    let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
    ServerName::try_from(bare.to_owned())
        .map_err(|error| Error::Network(io::Error::new(io::ErrorKind::InvalidInput, error)))
}

fn config_with(authorities: &[CertificateDer<'static>]) -> Result<ClientConfig, Error> {
    let mut roots = RootCertStore::empty();
    for authority in authorities {
        roots.add(authority.clone()).map_err(Error::Own)?;
    }
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13, &TLS12])
        .map_err(Error::Own)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = Alpn::Http1.offered();
    config.enable_early_data = false;
    Ok(config)
}

/// Accepts anybody and shows our SVID: the server of `https_spiffe`.
#[derive(Clone, Debug)]
pub struct OpenAcceptor {
    prepared: Prepared<TlsAcceptor>,
}

impl OpenAcceptor {
    /// Accepts as whoever `identity` says at each handshake.
    pub fn new(identity: Live<Identity>) -> Self {
        Self { prepared: Prepared::new(identity) }
    }

    /// Shakes hands. The caller limits the time.
    ///
    /// # Errors
    /// Our own certificate cannot be used, or the handshake failed.
    pub async fn accept<S>(&self, stream: S) -> Result<server::TlsStream<S>, Error>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        self.prepared.get(|identity| open(identity))?.accept(stream).await.map_err(Error::Network)
    }
}

fn open(identity: &Identity) -> Result<TlsAcceptor, Error> {
    let own = SingleCertAndKey::from(certified_svid(&identity.svid)?);
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .map_err(Error::Own)?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(own));
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}
