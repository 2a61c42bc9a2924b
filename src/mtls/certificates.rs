//! Public TLS: certificates by server name towards clients (the `ssl` resource), and public authorities towards upstreams.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use arc_swap::{ArcSwap, ArcSwapOption};
use parking_lot::Mutex;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{verify_tls12_signature, verify_tls13_signature};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use x509_parser::prelude::{FromDer, X509Certificate};
use zeroize::Zeroizing;

use super::provider::{certified, provider};
use super::{Alpn, Error, OcspAnswer, OcspQuestion};
use crate::rt::crypto::digest::{SHA256, digest};

/// A certificate for server names, checked and ready to serve.
#[derive(Debug)]
pub struct PublicCertificate {
    names: Vec<String>,
    id: Option<String>,
    serial: String,
    sha256: String,
    not_after: i64,
    /// Replaced when an OCSP answer comes or ends.
    key: ArcSwap<CertifiedKey>,
    stapled: ArcSwapOption<OcspAnswer>,
}

impl PublicCertificate {
    /// From the PEM of an `ssl` resource. Names are exact, `*.suffix` for one label before the suffix, or `*`.
    ///
    /// # Errors
    /// No names, PEM without certificate or key, or a key that belongs to another certificate; the error has the names.
    pub fn from_pem<N: AsRef<str>>(
        names: impl IntoIterator<Item = N>,
        chain: &[u8],
        key: &[u8],
    ) -> Result<Self, Error> {
        let names: Vec<String> = names.into_iter().map(|name| folded(name.as_ref())).collect();
        let wrong = |detail: String| Error::PublicCertificate { names: names.join(", "), detail };
        if names.is_empty() {
            return Err(wrong("it is for no server name".into()));
        }
        if let Some(name) = names.iter().find(|name| !is_name(name)) {
            return Err(wrong(format!("{name:?} is no server name: expected a.b, *.b or *")));
        }
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
        let leaf = &key.cert[0];
        let (_, parsed) = X509Certificate::from_der(leaf)
            .map_err(|_| wrong("the first certificate is not X.509".into()))?;
        Ok(Self {
            id: None,
            serial: hex::encode(parsed.raw_serial()),
            sha256: hex::encode(digest(&SHA256, leaf)),
            not_after: parsed.validity().not_after.timestamp(),
            names,
            key: ArcSwap::from(key),
            stapled: ArcSwapOption::empty(),
        })
    }

    /// With the id of the resource that it comes from.
    #[must_use]
    pub fn of_resource(mut self, id: Option<&str>) -> Self {
        self.id = id.map(str::to_owned);
        self
    }

    /// The id of the resource that it comes from, where that is known.
    pub fn id(&self) -> Option<&str> {
        self.id.as_deref()
    }

    /// The serial number, lower-case hexadecimal.
    pub fn serial(&self) -> &str {
        &self.serial
    }

    /// SHA-256 of the certificate, lower-case hexadecimal.
    pub fn sha256(&self) -> &str {
        &self.sha256
    }

    /// When it ends, seconds since 1970.
    pub fn not_after(&self) -> i64 {
        self.not_after
    }

    /// Shows this OCSP answer in handshakes from now on, or none.
    pub fn staple(&self, answer: Option<Arc<OcspAnswer>>) {
        let mut key = CertifiedKey::clone(&self.key.load());
        key.ocsp = answer.as_ref().map(|answer| answer.der.clone());
        self.key.store(Arc::new(key));
        self.stapled.store(answer);
    }

    /// The OCSP answer that handshakes show.
    pub fn stapled(&self) -> Option<Arc<OcspAnswer>> {
        self.stapled.load_full()
    }

    /// Does the certificate demand an OCSP answer (RFC 7633)? Clients refuse it without one.
    pub fn must_staple(&self) -> bool {
        super::ocsp::must_staple(&self.key.load().cert[0])
    }

    /// What to ask its issuer's responder, where it names one.
    pub fn ocsp_question(&self) -> Option<OcspQuestion> {
        OcspQuestion::about(&self.key.load().cert)
    }

    /// The server names, in lower case.
    pub fn names(&self) -> &[String] {
        &self.names
    }
}

/// `*`, or labels of which only the first may be a lone star.
fn is_name(name: &str) -> bool {
    let rest = match name {
        "*" => return true,
        _ => name.strip_prefix("*.").unwrap_or(name),
    };
    let byte = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
    rest.len() <= 253 && rest.split('.').all(|label| !label.is_empty() && label.bytes().all(byte))
}

/// One form for names of settings and of clients: lower case, no dot at the end.
fn folded(name: &str) -> String {
    name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase()
}

/// The public certificates of a listener, found by server name (SNI).
#[derive(Debug, Default)]
pub struct PublicCertificates {
    exact: HashMap<String, Arc<PublicCertificate>>,
    /// By the suffix behind `*.`.
    wildcard: HashMap<String, Arc<PublicCertificate>>,
    any: Option<Arc<PublicCertificate>>,
}

impl PublicCertificates {
    /// The certificate for a server name: the exact one, else that of `*.` and all after the first label, else that of `*`.
    /// Without a name only `*` fits.
    pub fn find(&self, name: Option<&str>) -> Option<Arc<CertifiedKey>> {
        let name = name.map(folded);
        let exact = name.as_ref().and_then(|name| self.exact.get(name));
        let wildcard = || {
            let (_, suffix) = name.as_ref()?.split_once('.')?;
            self.wildcard.get(suffix)
        };
        exact.or_else(wildcard).or(self.any.as_ref()).map(|found| found.key.load_full())
    }
}

impl FromIterator<Arc<PublicCertificate>> for PublicCertificates {
    /// Of several certificates for one name the first is taken.
    fn from_iter<I: IntoIterator<Item = Arc<PublicCertificate>>>(all: I) -> Self {
        let mut found = Self::default();
        for certificate in all {
            for name in &certificate.names {
                let key = certificate.clone();
                match name.strip_prefix("*.") {
                    Some(suffix) => drop(found.wildcard.entry(suffix.to_owned()).or_insert(key)),
                    None if name == "*" => drop(found.any.get_or_insert(key)),
                    None => drop(found.exact.entry(name.clone()).or_insert(key)),
                }
            }
        }
        found
    }
}

impl ResolvesServerCert for PublicCertificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.find(hello.server_name())
    }
}

/// TLS of a public listener: TLS 1.2 and 1.3, no client certificates, HTTP/2 and HTTP/1.1. A server name without a
/// certificate is refused in the handshake.
///
/// Build it once for each revision of the certificates: sessions are resumed only within one configuration.
///
/// # Errors
/// The system has no random numbers for the tickets' keys.
pub fn public_server_config(
    certificates: Arc<PublicCertificates>,
) -> Result<Arc<ServerConfig>, Error> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13, &TLS12])
        .map_err(Error::Own)?
        .with_no_client_auth()
        .with_cert_resolver(certificates);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config.max_early_data_size = 0;
    // Nobody's identity is in a public session, so that resuming it saves two signatures and skips no check.
    config.ticketer = crate::rt::crypto::tls_ticketer().map_err(Error::Own)?;
    Ok(Arc::new(config))
}

/// Configurations by what they are for.
type Made = HashMap<(bool, Alpn), Arc<ClientConfig>>;

/// TLS towards upstreams of the public world: TLS 1.2 and 1.3, the server's name is checked against the system's roots.
///
/// `verify: false` takes any certificate for any name. Only an operator's explicit word may lead here.
/// Configurations are made once and shared.
///
/// # Errors
/// The system has no root certificates.
pub fn public_client_config(verify: bool, alpn: Alpn) -> Result<Arc<ClientConfig>, Error> {
    static MADE: LazyLock<Mutex<Made>> = LazyLock::new(Mutex::default);
    let mut made = MADE.lock();
    if let Some(config) = made.get(&(verify, alpn)) {
        return Ok(config.clone());
    }
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13, &TLS12])
        .map_err(Error::Own)?;
    let mut config = if verify {
        builder.with_root_certificates(system_roots()?).with_no_client_auth()
    } else {
        builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AnyServer))
            .with_no_client_auth()
    };
    config.alpn_protocols = alpn.offered();
    config.enable_early_data = false;
    let config = Arc::new(config);
    made.insert((verify, alpn), config.clone());
    Ok(config)
}

pub(super) fn system_roots() -> Result<RootCertStore, Error> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    let (usable, unusable) = roots.add_parsable_certificates(found.certs);
    for error in &found.errors {
        tracing::warn!(%error, "a root certificate of the system cannot be read");
    }
    tracing::debug!(usable, unusable, "root certificates of the system");
    if usable == 0 { Err(Error::NoPublicRoots) } else { Ok(roots) }
}

/// Takes every certificate, as an operator's `tls.verify: false` asks; the server still proves that it has its key.
#[derive(Debug)]
pub(super) struct AnyServer;

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &provider().signature_verification_algorithms;
        verify_tls12_signature(message, leaf, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &provider().signature_verification_algorithms;
        verify_tls13_signature(message, leaf, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}
