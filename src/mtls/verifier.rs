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
    demand: Demand,
    algorithms: WebPkiSupportedAlgorithms,
}

/// What is asked of a peer that connects to us.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Demand {
    /// A certificate that is good.
    #[default]
    Identity,
    /// A certificate that is good, or none.
    IdentityIfAny,
    /// Nothing: what is wrong with its certificate is only noted, and it counts as nobody.
    Nothing,
}

impl PeerVerifier {
    /// Takes every peer that a bundle vouches for: for the side that accepts, where policy decides afterwards.
    pub fn accepting(trust: &Trust) -> Self {
        Self::new(trust.verifier().clone(), None)
    }

    /// The same for a door that asks for less.
    #[must_use]
    pub(super) fn demanding(self, demand: Demand) -> Self {
        Self { demand, ..self }
    }

    /// Takes only expected peers: for the side that connects.
    pub fn connecting(trust: &Trust, expected: Arc<ExpectedPeers>) -> Self {
        Self::new(trust.verifier().clone(), Some(expected))
    }

    pub(super) fn new(chains: Arc<ChainVerifier>, expected: Option<Arc<ExpectedPeers>>) -> Self {
        let algorithms = provider().signature_verification_algorithms;
        Self { chains, expected, demand: Demand::default(), algorithms }
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
    ) -> Result<Arc<Peer>, Refusal> {
        let peer = self.chains.verify(leaf, intermediates, purpose, now, presented)?;
        match &self.expected {
            Some(expected) if !expected.admits(&peer.id) => {
                Err(Refusal::UnexpectedPeer { found: peer.id.clone() })
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
    peer: Result<Arc<Peer>, Refusal>,
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

/// Of a peer that was let in as nobody although it showed a certificate: what it showed, and what is wrong with it.
#[derive(Debug)]
pub struct LetIn {
    /// What is wrong.
    pub refusal: Refusal,
    /// What it showed. Nothing of it is proved.
    pub presented: Box<Presented>,
}

/// As [`handshake`], for a door that asks for less than an identity.
pub(super) async fn handshake_demanding<S>(
    shaking: impl Future<Output = io::Result<S>>,
    demand: Demand,
) -> Result<(S, Option<Arc<Peer>>, Option<LetIn>), Error> {
    let error = match shake(shaking).await {
        (Ok(stream), None) => return Ok((stream, None, None)),
        (Ok(stream), Some(Verdict { peer: Ok(peer), presented })) => {
            // A certificate may end while the handshake lasts.
            if peer.not_after >= unix_seconds() {
                return Ok((stream, Some(peer), None));
            }
            let (refusal, presented) = (Flaw::Expired.into(), presented.into());
            if demand == Demand::Nothing {
                return Ok((stream, None, Some(LetIn { refusal, presented })));
            }
            Error::Refused { refusal, presented }
        }
        (Ok(stream), Some(Verdict { peer: Err(refusal), presented })) => {
            let presented = presented.into();
            if demand == Demand::Nothing {
                return Ok((stream, None, Some(LetIn { refusal, presented })));
            }
            Error::Refused { refusal, presented }
        }
        (Err(error), verdict) => failed(error, verdict),
    };
    Err(error)
}

/// As [`handshake`], also when the configuration let a peer come without a certificate.
pub(super) async fn handshake_of_anybody<S>(
    shaking: impl Future<Output = io::Result<S>>,
) -> Result<(S, Option<Arc<Peer>>), Error> {
    match shake(shaking).await {
        (Ok(stream), Some(Verdict { peer: Ok(peer), presented })) => {
            // A certificate may end while the handshake lasts.
            if peer.not_after < unix_seconds() {
                return Err(Error::Refused {
                    refusal: Flaw::Expired.into(),
                    presented: presented.into(),
                });
            }
            Ok((stream, Some(peer)))
        }
        (Ok(stream), None) => Ok((stream, None)),
        // rustls does not go on after a refusal.
        (Ok(_), Some(Verdict { peer: Err(refusal), .. })) => Err(Error::refused(refusal)),
        (Err(error), verdict) => Err(failed(error, verdict)),
    }
}

/// Drives a handshake, with what the verifier found in it.
async fn shake<S>(
    shaking: impl Future<Output = io::Result<S>>,
) -> (io::Result<S>, Option<Verdict>) {
    let mut shaking = pin!(shaking);
    let mut verdict = None;
    let outcome = poll_fn(|context| {
        VERDICT.take();
        let outcome = shaking.as_mut().poll(context);
        if let Some(mut found) = VERDICT.take() {
            if let Some(Verdict { presented, .. }) = verdict.take()
                && found.presented == Presented::default()
            {
                found.presented = presented;
            }
            verdict = Some(found);
        }
        outcome
    })
    .await;
    (outcome, verdict)
}

fn failed(error: io::Error, verdict: Option<Verdict>) -> Error {
    let (judged, presented) = match verdict {
        Some(Verdict { peer, presented }) => (peer.err(), presented),
        None => (None, Presented::default()),
    };
    match judged.or_else(|| refusal(&error)) {
        Some(refusal) => Error::Refused { refusal, presented: presented.into() },
        None => Error::Network(error),
    }
}

/// The mesh has no TLS 1.2, so rustls never asks for its signatures.
fn no_tls12() -> rustls::Error {
    PeerIncompatible::Tls12NotOfferedOrEnabled.into()
}

impl ClientCertVerifier for PeerVerifier {
    fn client_auth_mandatory(&self) -> bool {
        self.demand == Demand::Identity
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
        match self.judge(leaf, intermediates, Purpose::Client, now) {
            Err(error) if self.demand != Demand::Nothing => Err(error),
            // What is wrong is in the verdict: nobody is who is shown there.
            _ => Ok(ClientCertVerified::assertion()),
        }
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
        let verified = verify_tls13_signature(message, leaf, signature, &self.algorithms);
        if verified.is_err() && self.demand == Demand::Nothing {
            // What it showed is not believed, and stands in the record all the same.
            let presented = VERDICT.take().map(|verdict| verdict.presented).unwrap_or_default();
            VERDICT.set(Some(Verdict { peer: Err(Refusal::NoProof), presented }));
            return Ok(HandshakeSignatureValid::assertion());
        }
        verified
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
