//! TLS between an issuer and whoever enrols there: the server always proves its SPIFFE ID, the client does once it has one.

use std::sync::Arc;

use crate::rt::crypto::digest::{SHA256, digest};
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::server::NoServerSessionStorage;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::sign::SingleCertAndKey;
use rustls::version::TLS13;
use rustls::{
    ClientConfig, DigitallySignedStruct, DistinguishedName, ServerConfig, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, IpAddr, ServerName, UnixTime};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::prepared::Prepared;
use super::provider::{certified, certified_svid, provider};
use super::verifier::{handshake, handshake_of_anybody};
use super::{Error, ExpectedPeers, PeerVerifier, Refusal};
use crate::identity::{Identity, Peer, Svid, Trust, TrustBundle, TrustBundles, TrustDomain};
use crate::rt::Live;

/// Accepts whoever wants to enrol: callers with an SVID are verified as everywhere in the mesh, callers without one may come
/// in and have to prove themselves by other means. TLS 1.3 and HTTP/2 only.
///
/// The root goes with the chain, for callers who know nothing but its fingerprint.
#[derive(Clone, Debug)]
pub struct EnrolmentAcceptor {
    prepared: Prepared<TlsAcceptor>,
}

impl EnrolmentAcceptor {
    /// Accepts as whoever `identity` says at each handshake.
    pub fn new(identity: Live<Identity>) -> Self {
        Self { prepared: Prepared::new(identity) }
    }

    /// Shakes hands; who the caller is, if it shows an SVID. The caller of this limits the time.
    ///
    /// # Errors
    /// The handshake was refused: an SVID that was shown and does not hold is never taken for none.
    pub async fn accept<S>(
        &self,
        stream: S,
    ) -> Result<(server::TlsStream<S>, Option<Arc<Peer>>), Error>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let tls =
            self.prepared.get(|identity| Ok(TlsAcceptor::from(Arc::new(config(identity)?))))?;
        let (stream, peer) = handshake_of_anybody(tls.accept(stream)).await?;
        if stream.get_ref().1.alpn_protocol() != Some(b"h2") {
            return Err(Error::refused(Refusal::NoCommonProtocol));
        }
        Ok((stream, peer))
    }
}

fn config(identity: &Identity) -> Result<ServerConfig, Error> {
    let verifier = Arc::new(MaybePeer(PeerVerifier::accepting(&identity.trust)));
    let own = certified(with_root(identity), &identity.svid.key)?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .map_err(Error::Own)?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(own)));
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.max_early_data_size = 0;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

/// Our chain with the root that it ends in.
fn with_root(identity: &Identity) -> Vec<CertificateDer<'static>> {
    let mut chain = identity.svid.chain.clone();
    let name = |der: &CertificateDer<'_>, of_issuer: bool| {
        let (_, parsed) = X509Certificate::from_der(der).ok()?;
        let name = if of_issuer { parsed.issuer() } else { parsed.subject() };
        Some(name.as_raw().to_vec())
    };
    let wanted = chain.last().and_then(|last| name(last, true));
    let own = identity.trust.bundles.find(&identity.id().trust_domain());
    let mut roots = own.into_iter().flat_map(|bundle| &bundle.roots);
    chain.extend(roots.find(|root| wanted.is_some() && name(root, false) == wanted).cloned());
    chain
}

/// As [`PeerVerifier`], for callers who may come without a certificate.
#[derive(Debug)]
struct MaybePeer(PeerVerifier);

impl ClientCertVerifier for MaybePeer {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        ClientCertVerifier::root_hint_subjects(&self.0)
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.0.verify_client_cert(leaf, intermediates, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        ClientCertVerifier::verify_tls12_signature(&self.0, message, leaf, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        ClientCertVerifier::verify_tls13_signature(&self.0, message, leaf, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        ClientCertVerifier::supported_verify_schemes(&self.0)
    }
}

/// How a caller knows its issuer before it has an identity.
#[derive(Clone, Debug)]
pub enum Anchor {
    /// By what it trusts.
    Trust(Arc<Trust>),
    /// By the fingerprint of the root that the issuer's chain has to end in.
    Root {
        /// The trust domain that the root speaks for.
        domain: TrustDomain,
        /// SHA-256 of the root certificate.
        sha256: [u8; 32],
    },
}

/// Shakes hands with an issuer that must be one of `expected` by the word of `anchor`; shows `own` if there is one.
///
/// # Errors
/// The handshake was refused (with the reason and what the issuer showed), or the network failed.
pub async fn connect_issuer<S>(
    stream: S,
    anchor: &Anchor,
    expected: &Arc<ExpectedPeers>,
    own: Option<&Svid>,
) -> Result<(client::TlsStream<S>, Arc<Peer>), Error>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let verifier = Arc::new(IssuerVerifier { anchor: anchor.clone(), expected: expected.clone() });
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .map_err(Error::Own)?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match own {
        None => builder.with_no_client_auth(),
        Some(own) => {
            let own = SingleCertAndKey::from(certified_svid(own)?);
            builder.with_client_cert_resolver(Arc::new(own))
        }
    };
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    config.enable_sni = false;
    config.alpn_protocols = vec![b"h2".to_vec()];
    // As in the mesh: identities are SPIFFE IDs, not names.
    let nameless = ServerName::IpAddress(IpAddr::from(std::net::Ipv4Addr::LOCALHOST));
    let tls = TlsConnector::from(Arc::new(config));
    let (stream, peer) = handshake(tls.connect(nameless, stream)).await?;
    if stream.get_ref().1.alpn_protocol() != Some(b"h2") {
        return Err(Error::refused(Refusal::NoCommonProtocol));
    }
    Ok((stream, peer))
}

/// Judges an issuer's chain by an anchor.
#[derive(Debug)]
struct IssuerVerifier {
    anchor: Anchor,
    expected: Arc<ExpectedPeers>,
}

impl IssuerVerifier {
    /// The verifier for a chain. A fingerprint vouches for the certificate that has it; where none has, nobody is trusted.
    fn for_chain(&self, chain: &[CertificateDer<'_>]) -> PeerVerifier {
        match &self.anchor {
            Anchor::Trust(trust) => PeerVerifier::connecting(trust, self.expected.clone()),
            Anchor::Root { domain, sha256 } => {
                let pinned = |one: &&CertificateDer<'_>| digest(&SHA256, one).as_ref() == sha256;
                let roots = chain.iter().find(pinned).map(|root| root.clone().into_owned());
                let bundle = TrustBundle::new(domain.clone(), roots.into_iter().collect());
                let bundles: TrustBundles = [bundle].into_iter().collect();
                PeerVerifier::connecting(&Trust::from(bundles), self.expected.clone())
            }
        }
    }
}

impl ServerCertVerifier for IssuerVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verifier = self.for_chain(intermediates);
        verifier.verify_server_cert(leaf, intermediates, name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        ServerCertVerifier::verify_tls12_signature(&self.for_chain(&[]), message, leaf, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        ServerCertVerifier::verify_tls13_signature(&self.for_chain(&[]), message, leaf, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::forge::Forge;

    fn sha256(der: &[u8]) -> [u8; 32] {
        digest(&SHA256, der).as_ref().try_into().unwrap()
    }

    async fn meet(
        issuer: &Forge,
        anchor: &Anchor,
        own: Option<&Svid>,
    ) -> (Result<Arc<Peer>, Error>, Result<Option<Arc<Peer>>, Error>) {
        let identity = issuer.identity("/wardgate/issuer", &[]);
        let expected = Arc::new(ExpectedPeers::exactly(identity.id()));
        let acceptor = EnrolmentAcceptor::new(Live::fixed(identity));
        let (near, far) = tokio::io::duplex(64 * 1024);
        let (near, far) =
            tokio::join!(connect_issuer(near, anchor, &expected, own), acceptor.accept(far));
        (near.map(|(_, peer)| peer), far.map(|(_, peer)| peer))
    }

    #[tokio::test]
    async fn the_issuer_is_known_by_its_bundle_or_by_its_roots_fingerprint() {
        let a = Forge::new("a.test");
        for anchor in [
            Anchor::Trust(Arc::new(a.bundles().into())),
            Anchor::Root { domain: a.domain.clone(), sha256: sha256(&a.root) },
        ] {
            let (near, far) = meet(&a, &anchor, None).await;
            assert_eq!(near.unwrap().id.path(), "/wardgate/issuer");
            assert!(far.unwrap().is_none());
            let own = a.svid("/web");
            let (near, far) = meet(&a, &anchor, Some(&own)).await;
            near.unwrap();
            assert_eq!(far.unwrap().unwrap().id.path(), "/web");
        }
    }

    #[tokio::test]
    async fn an_issuer_of_another_authority_is_refused() {
        let (a, other) = (Forge::new("a.test"), Forge::new("a.test"));
        for anchor in [
            Anchor::Trust(Arc::new(other.bundles().into())),
            Anchor::Trust(Arc::default()),
            Anchor::Root { domain: a.domain.clone(), sha256: sha256(&other.root) },
            // The leaf or the intermediate is no root, whoever has its fingerprint.
            Anchor::Root { domain: a.domain.clone(), sha256: [0; 32] },
            Anchor::Root { domain: "b.test".parse().unwrap(), sha256: sha256(&a.root) },
        ] {
            let (near, _) = meet(&a, &anchor, None).await;
            assert!(near.unwrap_err().refusal().is_some(), "{anchor:?}");
        }
    }

    #[tokio::test]
    async fn an_svid_that_does_not_hold_is_not_taken_for_none() {
        let (a, other) = (Forge::new("a.test"), Forge::new("a.test"));
        let anchor = Anchor::Trust(Arc::new(a.bundles().into()));
        let own = other.svid("/web");
        let (_, far) = meet(&a, &anchor, Some(&own)).await;
        let error = far.unwrap_err();
        assert_eq!(error.presented().unwrap().id.as_deref(), Some(own.id.as_str()));
        assert!(matches!(error.refusal(), Some(Refusal::Flaw(_))), "{error:?}");
    }
}
