//! Public TLS: certificates towards clients (the `ssl` resource), and public authorities towards upstreams.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, LazyLock};

use arc_swap::{ArcSwap, ArcSwapOption};
use parking_lot::Mutex;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{verify_tls12_signature, verify_tls13_signature};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::version::{TLS12, TLS13};
use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureAlgorithm,
    SignatureScheme,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};
use zeroize::Zeroizing;

use super::edge::{folded, is_name};
use super::provider::{certified, provider};
use super::{Alpn, Error, OcspAnswer, OcspQuestion};
use crate::model::Ssl;
use crate::rt::crypto::digest::{SHA256, digest};

/// A certificate for server names, checked and ready to serve.
#[derive(Debug)]
pub struct PublicCertificate {
    names: Vec<String>,
    id: Option<String>,
    serial: String,
    sha256: String,
    not_after: i64,
    /// Which of its resource's pairs it is.
    pair: usize,
    is_rsa: bool,
    /// The hosts that the certificate itself is for.
    hosts: Vec<String>,
    addresses: Vec<IpAddr>,
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
        let key = pair(chain, key).map_err(&wrong)?;
        let leaf = &key.cert[0];
        let (_, parsed) = X509Certificate::from_der(leaf)
            .map_err(|_| wrong("the first certificate is not X.509".into()))?;
        let (hosts, addresses) = subjects(&parsed);
        Ok(Self {
            id: None,
            pair: 0,
            is_rsa: key.key.algorithm() == SignatureAlgorithm::RSA,
            hosts,
            addresses,
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

    /// As the resource's pair of this number: 0 is `cert` and `key`.
    pub(super) fn of_pair(mut self, pair: usize) -> Self {
        self.pair = pair;
        self
    }

    pub(super) fn pair(&self) -> usize {
        self.pair
    }

    /// Does it sign with RSA, which costs a server some ten times what ECDSA does?
    pub(super) fn is_rsa(&self) -> bool {
        self.is_rsa
    }

    /// What handshakes show.
    pub(super) fn shown(&self) -> Arc<CertifiedKey> {
        self.key.load_full()
    }

    /// Is the certificate itself one for this host, by its subject alternative names? A wildcard stands for one label.
    pub(super) fn covers(&self, host: &str, address: Option<IpAddr>) -> bool {
        if let Some(address) = address {
            return self.addresses.contains(&address);
        }
        let suffix = host.split_once('.').map(|(_, suffix)| suffix);
        self.hosts.iter().any(|known| match known.strip_prefix("*.") {
            Some(known) => suffix == Some(known),
            None => known == host,
        })
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

/// Chain and private key of an `ssl` resource. The error never shows a part of the key.
fn pair(chain: &[u8], key: &[u8]) -> Result<Arc<CertifiedKey>, String> {
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(chain)
        .collect::<Result<_, _>>()
        .map_err(|error| format!("the certificate PEM is damaged: {error}"))?;
    if chain.is_empty() {
        return Err("the certificate PEM holds no certificate".into());
    }
    let key = PrivateKeyDer::from_pem_slice(key)
        .map(Zeroizing::new)
        .map_err(|error| format!("the key PEM holds no private key: {error}"))?;
    let key = certified(chain, &key).map_err(|error| match error {
        Error::Own(cause) => format!("the private key cannot be used: {cause}"),
        other => other.to_string(),
    })?;
    key.keys_match().map_err(|error| format!("key and certificate: {error}"))?;
    Ok(key)
}

/// Can the chains and keys of this resource be shown, whoever they are for?
///
/// # Errors
/// One of them cannot be used, or two do not belong together.
pub fn check_pairs(ssl: &Ssl) -> Result<(), Error> {
    ssl.pairs().try_for_each(|(chain, key)| {
        let names = "upstreams".to_owned();
        pair(chain.as_bytes(), key.reveal().as_bytes())
            .map(drop)
            .map_err(|detail| Error::PublicCertificate { names, detail })
    })
}

fn subjects(certificate: &X509Certificate<'_>) -> (Vec<String>, Vec<IpAddr>) {
    let (mut hosts, mut addresses) = (Vec::new(), Vec::new());
    let names = certificate.subject_alternative_name().ok().flatten();
    for name in names.iter().flat_map(|found| &found.value.general_names) {
        match name {
            GeneralName::DNSName(name) => hosts.push(folded(name)),
            GeneralName::IPAddress(bytes) => addresses.extend(
                <[u8; 4]>::try_from(*bytes)
                    .map(IpAddr::from)
                    .or_else(|_| <[u8; 16]>::try_from(*bytes).map(IpAddr::from)),
            ),
            _ => {}
        }
    }
    (hosts, addresses)
}

/// TLS of a public listener with one certificate for whoever comes: TLS 1.2 and 1.3, no client certificates, HTTP/2 and
/// HTTP/1.1.
///
/// Build it once for each revision of the certificate: sessions are resumed only within one configuration.
///
/// # Errors
/// The system has no random numbers for the tickets' keys.
pub fn public_server_config(certificate: PublicCertificate) -> Result<Arc<ServerConfig>, Error> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13, &TLS12])
        .map_err(Error::Own)?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(certificate.key.into_inner())));
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
