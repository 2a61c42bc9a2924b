//! `Revocations`: who is no longer trusted although a bundle vouches for him.

use std::collections::{BTreeMap, BTreeSet};

use rustls_pki_types::CertificateRevocationListDer;

use super::{SpiffeId, TrustDomain};

/// What a trust domain's revocation lists mean for a handshake.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RevocationMode {
    /// Lists are not looked at.
    Off,
    /// What a list revokes is refused; a list that is absent or out of date lets pass.
    #[default]
    Soft,
    /// Refused is also whatever no current list speaks for.
    Hard,
}

/// The revocation lists of one trust domain (RFC 5280, section 5).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RevocationLists {
    /// What they mean.
    pub mode: RevocationMode,
    /// The lists; several when the domain has several authorities.
    pub lists: Vec<CertificateRevocationListDer<'static>>,
}

/// Refused at once, whatever bundles and lists say: what operators declare as `revocations`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DenyList {
    /// Serial numbers, lower-case hexadecimal, with the trust domain whose authority gave them.
    pub serials: BTreeSet<(TrustDomain, String)>,
    /// SHA-256 of public keys (SubjectPublicKeyInfo), lower-case hexadecimal.
    pub keys: BTreeSet<String>,
    /// SPIFFE IDs.
    pub ids: BTreeSet<SpiffeId>,
}

/// Revocation lists by trust domain, and the deny list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Revocations {
    /// The lists; a trust domain that is not in here has none and is judged softly.
    pub by_domain: BTreeMap<TrustDomain, RevocationLists>,
    /// Who is refused at once.
    pub denied: DenyList,
}
