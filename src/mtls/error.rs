//! Why there is no TLS connection: a stable reason for the record, and what the peer showed.

use std::io;

use rustls::{CertificateError, PeerIncompatible};

use crate::identity::{Flaw, Presented, SpiffeId};

/// Why a handshake was refused. [`Refusal::code`] is stable: records, metrics and tests use it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The peer's certificate breaks a rule.
    #[error(transparent)]
    Flaw(#[from] Flaw),
    /// A valid peer, but not the one that was to be reached.
    #[error("the peer is {found}, which is not who was expected")]
    UnexpectedPeer {
        /// Who answered.
        found: SpiffeId,
    },
    /// The peer cannot speak TLS 1.3.
    #[error("the peer does not offer TLS 1.3")]
    TlsVersion,
    /// Something else than TLS arrived, plain HTTP for instance.
    #[error("what arrived is not TLS")]
    NotTls,
    /// ALPN has no common protocol.
    #[error("no application protocol in common")]
    NoCommonProtocol,
    /// The peer showed a certificate and did not prove that it has the key.
    #[error("the peer did not prove that it holds the certificate's key")]
    NoProof,
    /// The peer ended the handshake with an alert: it refused us.
    #[error("the peer refused us with the alert {alert}")]
    ByPeer {
        /// The alert's name, or its number.
        alert: String,
    },
    /// The peer closed the connection in the middle.
    #[error("the peer closed the connection during the handshake")]
    Closed,
    /// Everything else that breaks the protocol.
    #[error("the handshake broke the protocol: {detail}")]
    Protocol {
        /// What rustls says.
        detail: String,
    },
}

impl Refusal {
    /// The stable name of the reason.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Flaw(flaw) => flaw.code(),
            Self::UnexpectedPeer { .. } => "unexpected_peer",
            Self::TlsVersion => "tls_version",
            Self::NotTls => "not_tls",
            Self::NoCommonProtocol => "no_common_protocol",
            Self::NoProof => "no_proof_of_key",
            Self::ByPeer { .. } => "refused_by_peer",
            Self::Closed => "closed_in_handshake",
            Self::Protocol { .. } => "tls_protocol",
        }
    }
}

impl From<Refusal> for rustls::Error {
    fn from(refusal: Refusal) -> Self {
        let cause = rustls::OtherError(std::sync::Arc::new(refusal));
        Self::InvalidCertificate(CertificateError::Other(cause))
    }
}

/// The reason in an error of a TLS stream; `None` for errors of the network.
///
/// Also for the first error after a handshake: in TLS 1.3 a client learns only then that the server refused its certificate.
pub fn refusal(error: &io::Error) -> Option<Refusal> {
    if error.kind() == io::ErrorKind::UnexpectedEof {
        return Some(Refusal::Closed);
    }
    let error = error.get_ref()?.downcast_ref::<rustls::Error>()?;
    Some(match error {
        rustls::Error::InvalidCertificate(CertificateError::Other(cause)) => {
            match cause.0.downcast_ref::<Refusal>() {
                Some(refusal) => refusal.clone(),
                None => Refusal::Protocol { detail: error.to_string() },
            }
        }
        rustls::Error::InvalidCertificate(CertificateError::BadSignature) => Refusal::NoProof,
        rustls::Error::NoCertificatesPresented => Refusal::Flaw(Flaw::NoCertificate),
        rustls::Error::NoApplicationProtocol => Refusal::NoCommonProtocol,
        rustls::Error::InvalidMessage(_) => Refusal::NotTls,
        rustls::Error::PeerIncompatible(
            PeerIncompatible::ServerDoesNotSupportTls12Or13
            | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig
            | PeerIncompatible::SupportedVersionsExtensionRequired
            | PeerIncompatible::Tls12NotOffered
            | PeerIncompatible::Tls12NotOfferedOrEnabled
            | PeerIncompatible::Tls13RequiredForQuic,
        ) => Refusal::TlsVersion,
        rustls::Error::AlertReceived(alert) => {
            let alert = match alert.as_str() {
                Some(name) => name.to_owned(),
                None => u8::from(*alert).to_string(),
            };
            Refusal::ByPeer { alert }
        }
        other => Refusal::Protocol { detail: other.to_string() },
    })
}

/// Why there is no TLS connection, or why a certificate cannot be served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The handshake was refused, by us or by the peer.
    #[error("handshake refused")]
    Refused {
        /// The rule or the reason.
        #[source]
        refusal: Refusal,
        /// What the peer showed, empty when it showed no certificate. Nothing of it is proved.
        presented: Box<Presented>,
    },
    /// The network failed during the handshake.
    #[error("the connection failed during the handshake")]
    Network(#[source] io::Error),
    /// Our own certificate and key cannot be used.
    #[error("our own certificate and key cannot be used")]
    Own(#[source] rustls::Error),
    /// A public certificate that cannot be served.
    #[error("the certificate for {names} cannot be served: {detail}")]
    PublicCertificate {
        /// The server names it is for.
        names: String,
        /// What is wrong with it.
        detail: String,
    },
    /// No list of patterns may be empty: nobody would be expected, or anybody.
    #[error("no expected SPIFFE ID given")]
    NobodyExpected,
    /// The system has no root certificates.
    #[error(
        "no root certificates of public authorities found: install ca-certificates or set SSL_CERT_FILE"
    )]
    NoPublicRoots,
    /// Certificates that were given as authorities of the public world cannot be used.
    #[error("authorities of public certificates: {0}")]
    PublicRoots(String),
    /// A certificate to show to upstreams cannot be used.
    #[error("client certificate: {0}")]
    ClientCertificate(String),
}

impl Error {
    /// The reason, when the handshake was refused.
    pub fn refusal(&self) -> Option<&Refusal> {
        match self {
            Self::Refused { refusal, .. } => Some(refusal),
            _ => None,
        }
    }

    /// What the peer showed, when it showed a certificate.
    pub fn presented(&self) -> Option<&Presented> {
        match self {
            Self::Refused { presented, .. } if **presented != Presented::default() => {
                Some(presented)
            }
            _ => None,
        }
    }

    /// The stable name of the reason.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Refused { refusal, .. } => refusal.code(),
            Self::Network(_) => "network",
            Self::Own(_) => "own_identity",
            Self::PublicCertificate { .. } => "public_certificate",
            Self::NobodyExpected => "nobody_expected",
            Self::PublicRoots(_) => "public_roots",
            Self::ClientCertificate(_) => "client_certificate",
            Self::NoPublicRoots => "no_public_roots",
        }
    }

    pub(super) fn refused(refusal: Refusal) -> Self {
        Self::Refused { refusal, presented: Box::default() }
    }
}
