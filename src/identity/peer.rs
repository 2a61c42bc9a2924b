//! `Peer`: who is at the other end of a connection, and how we know.

use std::sync::Arc;

use rustls_pki_types::CertificateDer;

use super::{Purpose, SpiffeId};

/// The other end of an mTLS connection, as its handshake proved it. Made by the verifier alone.
#[derive(Clone, Debug)]
pub struct Peer {
    /// The identity of the leaf certificate.
    pub id: SpiffeId,
    /// The leaf's serial number, lower-case hexadecimal.
    pub serial: String,
    /// SHA-256 of the leaf's public key (SubjectPublicKeyInfo), lower-case hexadecimal.
    pub spki_sha256: String,
    /// SHA-256 of the leaf certificate, lower-case hexadecimal, as `x-forwarded-client-cert` carries it.
    pub sha256: String,
    /// When the proof ends, seconds since 1970: the earliest notAfter of the presented chain.
    pub not_after: i64,
    /// The key that signed the leaf, as the leaf names it (its authority key identifier), lower-case hexadecimal.
    pub issuer_ski: Option<String>,
    /// The revision of the trust bundle that vouched for it, see [`super::TrustBundle::revision`].
    pub bundle_revision: Arc<str>,
    /// Which half of the handshake it held.
    pub purpose: Purpose,
    /// What it presented, leaf first: trust may change while the connection lives, and is asked again then.
    pub chain: Arc<[CertificateDer<'static>]>,
}
