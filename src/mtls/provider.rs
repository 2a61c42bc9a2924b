//! The crypto provider, decided once: everything in the program that speaks TLS takes it from here.

use std::sync::{Arc, OnceLock};

use rustls::crypto::{CryptoProvider, ring};
use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::Error;
use crate::identity::Svid;

/// ring, with AES-128-GCM first (the cheapest where the processor has AES) and X25519 before P-256 and P-384.
pub fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    let build = || {
        use ring::cipher_suite as suite;
        Arc::new(CryptoProvider {
            cipher_suites: vec![
                suite::TLS13_AES_128_GCM_SHA256,
                suite::TLS13_AES_256_GCM_SHA384,
                suite::TLS13_CHACHA20_POLY1305_SHA256,
                suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
                suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
                suite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
                suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
                suite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
                suite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
            ],
            kx_groups: vec![
                ring::kx_group::X25519,
                ring::kx_group::SECP256R1,
                ring::kx_group::SECP384R1,
            ],
            ..ring::default_provider()
        })
    };
    PROVIDER.get_or_init(build).clone()
}

/// A chain with its key, ready to sign handshakes.
pub(super) fn certified(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<Arc<CertifiedKey>, Error> {
    let key = provider().key_provider.load_private_key(key).map_err(Error::Own)?;
    Ok(Arc::new(CertifiedKey::new(chain, key)))
}

/// Our own SVID, ready to sign handshakes.
pub(super) fn certified_svid(svid: &Svid) -> Result<Arc<CertifiedKey>, Error> {
    certified(svid.chain.clone(), svid.key.clone_key())
}
