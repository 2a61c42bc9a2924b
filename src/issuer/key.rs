//! `KeyPair`: rcgen's, wiped when it is dropped.

use std::ops::Deref;

use rcgen::{PublicKeyData, SignatureAlgorithm, SigningKey};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use zeroize::Zeroizing;

/// A private key that signs certificates. What is stored of it is wiped when it is dropped; the library's own form of the key
/// is wiped by AWS-LC and not by ring (docs/crypto.md).
pub(super) struct KeyPair(Zeroizing<rcgen::KeyPair>);

impl KeyPair {
    /// A fresh ECDSA P-256 key.
    pub(super) fn generate() -> Result<Self, rcgen::Error> {
        rcgen::KeyPair::generate().map(|key| Self(Zeroizing::new(key)))
    }
}

impl Deref for KeyPair {
    type Target = rcgen::KeyPair;
    fn deref(&self) -> &rcgen::KeyPair {
        &self.0
    }
}

impl TryFrom<&PrivateKeyDer<'_>> for KeyPair {
    type Error = rcgen::Error;
    fn try_from(key: &PrivateKeyDer<'_>) -> Result<Self, rcgen::Error> {
        rcgen::KeyPair::try_from(key).map(|key| Self(Zeroizing::new(key)))
    }
}

impl From<KeyPair> for PrivateKeyDer<'static> {
    fn from(key: KeyPair) -> Self {
        Self::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()))
    }
}

impl PublicKeyData for KeyPair {
    fn der_bytes(&self) -> &[u8] {
        self.0.der_bytes()
    }
    fn algorithm(&self) -> &'static SignatureAlgorithm {
        self.0.algorithm()
    }
}

impl SigningKey for KeyPair {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        self.0.sign(message)
    }
}
