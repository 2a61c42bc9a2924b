//! TLS towards etcd.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::rt::crypto::{tls_provider, tls_signing_key};
use crate::store::Error;

/// The files for `https` endpoints; read once at start.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TlsFiles {
    /// PEM of the authorities that etcd's certificate must come from; the system's when not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
    /// PEM of the certificate chain that we present.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cert: Option<PathBuf>,
    /// PEM of its private key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<PathBuf>,
}

pub(super) fn tls_config(files: &TlsFiles) -> Result<rustls::ClientConfig, Error> {
    let unusable = |path: &Path, why: &dyn std::fmt::Display| {
        Error::Settings(format!("etcd tls: {}: {why}", path.display()))
    };
    let certificates = |path: &Path| -> Result<Vec<CertificateDer<'static>>, Error> {
        CertificateDer::pem_file_iter(path)
            .and_then(Iterator::collect)
            .map_err(|error| unusable(path, &error))
    };
    let mut roots = rustls::RootCertStore::empty();
    match &files.ca {
        Some(path) => {
            for certificate in certificates(path)? {
                roots.add(certificate).map_err(|error| unusable(path, &error))?;
            }
        }
        None => {
            let _ = roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    if roots.is_empty() {
        return Err(Error::Settings("etcd tls: no authority to verify etcd by; set tls.ca".into()));
    }
    let provider = tls_provider();
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| Error::Settings(format!("etcd tls: {error}")))?
        .with_root_certificates(roots);
    let mut config = match (&files.cert, &files.key) {
        (Some(cert), Some(key)) => {
            let secret = PrivateKeyDer::from_pem_file(key)
                .map(Zeroizing::new)
                .map_err(|error| unusable(key, &error))?;
            let secret = tls_signing_key(&secret).map_err(|error| unusable(key, &error))?;
            let own = CertifiedKey::new(certificates(cert)?, secret);
            own.keys_match().map_err(|error| unusable(cert, &error))?;
            builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(own)))
        }
        (None, None) => builder.with_no_client_auth(),
        _ => return Err(Error::Settings("etcd tls: cert and key go together".into())),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}
