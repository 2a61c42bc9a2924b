//! `PeerVerifier`: rustls asks it about the peer's certificate; its answer is the connection's `Peer`.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::pin;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, PeerIncompatible, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::provider::provider;
use super::{Error, ExpectedPeers, Refusal, refusal};
use crate::identity::{ChainVerifier, Flaw, Peer, Presented, Purpose, Trust};
use crate::rt::unix_seconds;

/// Judges the peer's certificate by the SPIFFE rules, with the bundle of the presented trust domain only.
///
/// One for each identity revision; the side that connects also says whom it expects.
#[derive(Debug)]
pub struct PeerVerifier {
    chains: Arc<ChainVerifier>,
    expected: Option<Arc<ExpectedPeers>>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl PeerVerifier {
    /// Takes every peer that a bundle vouches for: for the side that accepts, where policy decides afterwards.
    pub fn accepting(trust: &Trust) -> Self {
        Self::new(trust.verifier().clone(), None)
    }

    /// Takes only expected peers: for the side that connects.
    pub fn connecting(trust: &Trust, expected: Arc<ExpectedPeers>) -> Self {
        Self::new(trust.verifier().clone(), Some(expected))
    }

    pub(super) fn new(chains: Arc<ChainVerifier>, expected: Option<Arc<ExpectedPeers>>) -> Self {
        let algorithms = provider().signature_verification_algorithms;
        Self { chains, expected, algorithms }
    }

    /// Judges a chain outside of a handshake. What the leaf shows goes into `presented` in any case.
    ///
    /// # Errors
    /// The first rule that is broken.
    pub fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        purpose: Purpose,
        now: UnixTime,
        presented: &mut Presented,
    ) -> Result<Peer, Refusal> {
        let peer = self.chains.verify(leaf, intermediates, purpose, now, presented)?;
        match &self.expected {
            Some(expected) if !expected.admits(&peer.id) => {
                Err(Refusal::UnexpectedPeer { found: peer.id })
            }
            _ => Ok(peer),
        }
    }

    /// Judges within a handshake, and leaves the result for [`handshake`].
    fn judge(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        purpose: Purpose,
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        let mut presented = Presented::default();
        let peer = self.verify(leaf, intermediates, purpose, now, &mut presented);
        let answer = peer.as_ref().map(|_| ()).map_err(|refusal| refusal.clone().into());
        VERDICT.set(Some(Verdict { peer, presented }));
        answer
    }
}

/// What the verifier found in the handshake that is being polled.
struct Verdict {
    peer: Result<Peer, Refusal>,
    presented: Presented,
}

thread_local! {
    /// rustls asks a verifier that many connections share, so that its answer needs a way back to the one connection. It asks
    /// within the poll of that connection's handshake, on the same thread: before and after each poll the place is empty.
    static VERDICT: Cell<Option<Verdict>> = const { Cell::new(None) };
}

/// Drives a handshake and returns its result with the peer that the verifier made: parsed once, never again.
pub(super) async fn handshake<S>(
    shaking: impl Future<Output = io::Result<S>>,
) -> Result<(S, Arc<Peer>), Error> {
    match handshake_of_anybody(shaking).await? {
        (stream, Some(peer)) => Ok((stream, peer)),
        (_, None) => Err(Error::refused(Flaw::NoCertificate.into())),
    }
}

/// As [`handshake`], also when the configuration let a peer come without a certificate.
pub(super) async fn handshake_of_anybody<S>(
    shaking: impl Future<Output = io::Result<S>>,
) -> Result<(S, Option<Arc<Peer>>), Error> {
    let mut shaking = pin!(shaking);
    let mut verdict = None;
    let outcome = poll_fn(|context| {
        VERDICT.take();
        let outcome = shaking.as_mut().poll(context);
        if let Some(found) = VERDICT.take() {
            verdict = Some(found);
        }
        outcome
    })
    .await;
    match (outcome, verdict) {
        (Ok(stream), Some(Verdict { peer: Ok(peer), presented })) => {
            // A certificate may end while the handshake lasts.
            if peer.not_after < unix_seconds() {
                return Err(Error::Refused {
                    refusal: Flaw::Expired.into(),
                    presented: presented.into(),
                });
            }
            Ok((stream, Some(Arc::new(peer))))
        }
        (Ok(stream), None) => Ok((stream, None)),
        // rustls does not go on after a refusal.
        (Ok(_), Some(Verdict { peer: Err(refusal), .. })) => Err(Error::refused(refusal)),
        (Err(error), verdict) => {
            let (judged, presented) = match verdict {
                Some(Verdict { peer, presented }) => (peer.err(), presented),
                None => (None, Presented::default()),
            };
            match judged.or_else(|| refusal(&error)) {
                Some(refusal) => Err(Error::Refused { refusal, presented: presented.into() }),
                None => Err(Error::Network(error)),
            }
        }
    }
}

/// The mesh has no TLS 1.2, so rustls never asks for its signatures.
fn no_tls12() -> rustls::Error {
    PeerIncompatible::Tls12NotOfferedOrEnabled.into()
}

impl ClientCertVerifier for PeerVerifier {
    fn client_auth_mandatory(&self) -> bool {
        true
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // Hints would tell every caller whom we trust, and make each handshake longer.
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.judge(leaf, intermediates, Purpose::Client, now)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, leaf, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl ServerCertVerifier for PeerVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.judge(leaf, intermediates, Purpose::Server, now)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, leaf, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
