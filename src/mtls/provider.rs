//! Certificates with their keys, ready to sign; the provider that does it is that of the build.

use std::sync::Arc;

use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::Error;
use crate::identity::Svid;
pub use crate::rt::crypto::tls_provider as provider;
use crate::rt::crypto::tls_signing_key;

/// A chain with its key, ready to sign handshakes.
pub(super) fn certified(
    chain: Vec<CertificateDer<'static>>,
    key: &PrivateKeyDer<'_>,
) -> Result<Arc<CertifiedKey>, Error> {
    let key = tls_signing_key(key).map_err(Error::Own)?;
    Ok(Arc::new(CertifiedKey::new(chain, key)))
}

/// Our own SVID, ready to sign handshakes.
pub(super) fn certified_svid(svid: &Svid) -> Result<Arc<CertifiedKey>, Error> {
    certified(svid.chain.clone(), &svid.key)
}
