//! TLS towards upstreams of the public world: whom we trust there, and what we show them.

use std::io;
use std::path::Path;
use std::sync::Arc;

use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client};
use zeroize::Zeroizing;

use super::certificates::{AnyServer, system_roots};
use super::provider::{certified, certified_svid, provider};
use super::{Alpn, Error};
use crate::identity::Svid;

/// Sessions that one kind of connection remembers, over all servers.
const SESSIONS: usize = 1024;

/// Certificate authorities of the public world.
#[derive(Clone)]
pub struct PublicRoots(Arc<RootCertStore>);

impl std::fmt::Debug for PublicRoots {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PublicRoots({})", self.0.len())
    }
}

impl PublicRoots {
    /// Those that the system trusts. Reads files.
    ///
    /// # Errors
    /// There are none.
    pub fn system() -> Result<Self, Error> {
        system_roots().map(|roots| Self(Arc::new(roots)))
    }

    /// Those of a file with certificates as PEM.
    ///
    /// # Errors
    /// It cannot be read, or holds something else.
    pub fn from_file(path: &Path) -> Result<Self, Error> {
        let pem = std::fs::read(path).map_err(|source| {
            Error::PublicRoots(format!("{} cannot be read: {source}", path.display()))
        })?;
        Self::from_pem([pem.as_slice()])
            .map_err(|why| Error::PublicRoots(format!("{}: {why}", path.display())))
    }

    /// Those of several texts with certificates as PEM.
    ///
    /// # Errors
    /// One of the texts holds no certificate, or one that is damaged.
    pub fn from_pem<'a>(texts: impl IntoIterator<Item = &'a [u8]>) -> Result<Self, Error> {
        let mut roots = RootCertStore::empty();
        for text in texts {
            let before = roots.len();
            for certificate in CertificateDer::pem_slice_iter(text) {
                let certificate = certificate.map_err(|error| {
                    Error::PublicRoots(format!("the certificate PEM is damaged: {error}"))
                })?;
                roots.add(certificate).map_err(|error| {
                    Error::PublicRoots(format!("a certificate cannot be an authority: {error}"))
                })?;
            }
            if roots.len() == before {
                return Err(Error::PublicRoots("it holds no certificate".into()));
            }
        }
        Ok(Self(Arc::new(roots)))
    }
}

/// A certificate with its key, to show to upstreams.
#[derive(Clone, Debug)]
pub struct ClientCertificate(Arc<CertifiedKey>);

impl ClientCertificate {
    /// From PEM: the chain, leaf first, and its key.
    ///
    /// # Errors
    /// One of them cannot be read, or the key belongs to another certificate.
    pub fn from_pem(chain: &[u8], key: &[u8]) -> Result<Self, Error> {
        let wrong = Error::ClientCertificate;
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(chain)
            .collect::<Result<_, _>>()
            .map_err(|error| wrong(format!("the certificate PEM is damaged: {error}")))?;
        if chain.is_empty() {
            return Err(wrong("the certificate PEM holds no certificate".into()));
        }
        let key = PrivateKeyDer::from_pem_slice(key)
            .map(Zeroizing::new)
            .map_err(|error| wrong(format!("the key PEM holds no private key: {error}")))?;
        let key = certified(chain, &key).map_err(|error| match error {
            Error::Own(cause) => wrong(format!("the private key cannot be used: {cause}")),
            other => other,
        })?;
        key.keys_match().map_err(|error| wrong(format!("key and certificate: {error}")))?;
        Ok(Self(key))
    }

    /// Our SVID, for servers that know our trust domain and have none themselves.
    ///
    /// # Errors
    /// Its key cannot be used.
    pub fn of(svid: &Svid) -> Result<Self, Error> {
        certified_svid(svid).map(Self)
    }
}

/// Connects to upstreams of the public world in one way. TLS 1.3 and 1.2; sessions are resumed among the connections that one
/// `OriginConnector` makes, so that it should live as long as its setting does.
#[derive(Debug)]
pub struct OriginConnector {
    nameless: Arc<ClientConfig>,
    http1: Arc<ClientConfig>,
    http2: Arc<ClientConfig>,
    is_verifying: bool,
}

impl OriginConnector {
    /// Trusting servers that `roots` vouch for, or any server at all with `None`: only an operator's explicit word may lead
    /// there.
    ///
    /// # Errors
    /// There is no root.
    pub fn new(
        roots: Option<&PublicRoots>,
        certificate: Option<&ClientCertificate>,
    ) -> Result<Self, Error> {
        let config = |alpn: Alpn| {
            let builder = ClientConfig::builder_with_provider(provider())
                .with_protocol_versions(&[&TLS13, &TLS12])
                .map_err(Error::Own)?;
            let builder = match roots {
                Some(roots) => {
                    let verifier =
                        WebPkiServerVerifier::builder_with_provider(roots.0.clone(), provider())
                            .build()
                            .map_err(|error| Error::PublicRoots(error.to_string()))?;
                    builder.with_webpki_verifier(verifier)
                }
                None => builder.dangerous().with_custom_certificate_verifier(Arc::new(AnyServer)),
            };
            let mut config = match certificate {
                None => builder.with_no_client_auth(),
                Some(ClientCertificate(key)) => {
                    builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(key.clone())))
                }
            };
            config.alpn_protocols = alpn.offered();
            config.enable_early_data = false;
            config.resumption = Resumption::in_memory_sessions(SESSIONS);
            Ok(Arc::new(config))
        };
        let (nameless, http1, http2) =
            (config(Alpn::None)?, config(Alpn::Http1)?, config(Alpn::Http2)?);
        Ok(Self { nameless, http1, http2, is_verifying: roots.is_some() })
    }

    /// Is the server's certificate verified?
    pub fn is_verifying(&self) -> bool {
        self.is_verifying
    }

    /// Shakes hands with whoever proves to be `name`: a DNS name, which is also the server name that is asked for (SNI), or an
    /// address. The caller limits the time.
    ///
    /// # Errors
    /// `name` is neither, or the handshake failed.
    pub async fn connect(
        &self,
        tcp: TcpStream,
        name: &str,
        alpn: Alpn,
    ) -> Result<client::TlsStream<TcpStream>, Error> {
        let name = ServerName::try_from(name.to_owned())
            .map_err(|error| Error::Network(io::Error::new(io::ErrorKind::InvalidInput, error)))?;
        let config = match alpn {
            Alpn::None => &self.nameless,
            Alpn::Http1 => &self.http1,
            Alpn::Http2 => &self.http2,
        };
        TlsConnector::from(config.clone()).connect(name, tcp).await.map_err(Error::Network)
    }
}
