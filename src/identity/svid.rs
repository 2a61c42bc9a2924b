//! `Svid`: our own X.509-SVID, checked before it is used.

use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::SpiffeId;

/// An X.509-SVID with its private key. Debug output never shows the key.
pub struct Svid {
    /// Whom it names.
    pub id: SpiffeId,
    /// The chain, leaf first, without the root.
    pub chain: Vec<CertificateDer<'static>>,
    /// The leaf's private key, PKCS#8.
    pub key: PrivateKeyDer<'static>,
    /// The leaf's serial number, lower-case hexadecimal.
    pub serial: String,
    /// Start of validity, seconds since 1970.
    pub not_before: i64,
    /// End of validity, seconds since 1970.
    pub not_after: i64,
}

impl std::fmt::Debug for Svid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Svid")
            .field("id", &self.id)
            .field("serial", &self.serial)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}
