//! TLS on every side: mesh connections that prove a SPIFFE ID, and public TLS at the edges. A door: it defines nothing itself.
//!
//! In the mesh: TLS 1.3 only, both sides present an X.509-SVID, no resumption and no early data, and whoever connects says
//! whom it expects. The peer's certificate is judged in the handshake, and what the rest of the program sees is the
//! [`Peer`](crate::identity::Peer) that this judgement made; a [`Proof`] remembers what the connection rests on from then on.

mod acceptor;
mod certificates;
mod connector;
mod edge;
mod enrolment;
mod error;
mod ocsp;
mod origin;
mod prepared;
mod private;
mod proof;
mod provider;
mod public;
mod publication;
mod records;
#[cfg(test)]
mod tests;
mod verifier;

pub use acceptor::{Accepted, Acceptor};
pub use certificates::{
    PublicCertificate, check_pairs, public_client_config, public_server_config,
};
pub use connector::{Alpn, Connector, ExpectedPeers};
pub use edge::{
    Challenges, ClientRule, EdgeAcceptor, EdgeSession, EdgeTls, EdgeTlsSettings, Site, Sites,
};
pub use enrolment::{Anchor, EnrolmentAcceptor, connect_issuer};
pub use error::{Error, Refusal, refusal};
pub use ocsp::{
    Answer as OcspAnswer, Error as OcspError, MAX_ANSWER_BYTES as MAX_OCSP_ANSWER_BYTES,
    Question as OcspQuestion,
};
pub use origin::{ClientCertificate, OriginConnector, PublicRoots};
pub use private::connect_private;
pub use proof::{Accompanied, Begun, Lapse, Opening, Proof, Proofs};
pub use provider::provider;
pub use public::PublicAcceptor;
pub use publication::{OpenAcceptor, connect_spiffe, connect_web};
pub use records::{Agreed, MeshStream, Settled};
pub use verifier::{Demand, LetIn, PeerVerifier};
