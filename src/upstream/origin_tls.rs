//! TLS towards upstreams of the public world, as an upstream declares it: one connector for each setting, kept over revisions.

use std::path::PathBuf;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::Deserialize;

use super::Roster;
use super::endpoint::PublicTls;
use crate::model::{Invalid, UpstreamTls};
use crate::mtls::{self, ClientCertificate, OriginConnector, PublicRoots};
use crate::rt::crypto::digest::{SHA256, digest};

/// What holds for all upstreams with public certificates.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct UpstreamSettings {
    /// A file with the authorities (PEM) that vouch for upstreams without `tls.ca_certs`; those that the system trusts when not
    /// given.
    pub ssl_trusted_certificate: Option<PathBuf>,
}

impl UpstreamSettings {
    /// The authorities. Reads files. `None` when the system has none.
    ///
    /// # Errors
    /// The file that was given cannot be used.
    pub fn public_roots(&self) -> Result<Option<PublicRoots>, mtls::Error> {
        match &self.ssl_trusted_certificate {
            Some(file) => PublicRoots::from_file(file).map(Some),
            None => Ok(PublicRoots::system()
                .inspect_err(|error| tracing::info!("public upstreams cannot be verified: {error}"))
                .ok()),
        }
    }
}

/// # Errors
/// The sentence names the field.
pub(super) fn public_tls(tls: &UpstreamTls, roster: &Roster) -> Result<PublicTls, Invalid> {
    let setting: Arc<str> = setting(tls).into();
    let unusable =
        |why: String| Ok(PublicTls { connector: Err(why.into()), setting: setting.clone() });
    if let Some(id) = &tls.client_cert_id {
        if tls.client_cert.is_some() || tls.client_key.is_some() {
            return Err(Invalid::new(
                "tls.client_cert_id: only one of it and client_cert with client_key is expected",
            ));
        }
        // Whoever knows the resource has put its certificate here in its place.
        return unusable(format!("tls.client_cert_id: there is no client certificate {id}"));
    }
    let make = || {
        let certificate = certificate(tls)?;
        let own = match tls.ca_certs.is_empty() {
            true => None,
            false => Some(authorities(&tls.ca_certs)?),
        };
        let roots = match (tls.verify.unwrap_or(true), own.as_ref().or(roster.public_roots())) {
            (false, _) => None,
            (true, Some(roots)) => Some(roots),
            (true, None) => return Err(Failed::NoRoots),
        };
        OriginConnector::new(roots, certificate.as_ref())
            .map_err(|error| Failed::Invalid(Invalid(format!("tls: {error}"))))
    };
    match roster.share(&setting, make) {
        Ok(connector) => Ok(PublicTls { connector: Ok(connector), setting }),
        Err(Failed::NoRoots) => unusable(mtls::Error::NoPublicRoots.to_string()),
        Err(Failed::Invalid(error)) => Err(error),
    }
}

enum Failed {
    Invalid(Invalid),
    /// Not the upstream's fault.
    NoRoots,
}

impl From<Invalid> for Failed {
    fn from(error: Invalid) -> Self {
        Self::Invalid(error)
    }
}

fn certificate(tls: &UpstreamTls) -> Result<Option<ClientCertificate>, Invalid> {
    match (&tls.client_cert, &tls.client_key) {
        (None, None) => Ok(None),
        (Some(_), None) => Err(Invalid::new("tls.client_key: required with client_cert")),
        (None, Some(_)) => Err(Invalid::new("tls.client_cert: required with client_key")),
        (Some(chain), Some(key)) => {
            ClientCertificate::from_pem(chain.as_bytes(), key.reveal().as_bytes())
                .map(Some)
                .map_err(|error| Invalid(format!("tls.client_cert: {error}")))
        }
    }
}

fn authorities(texts: &[String]) -> Result<PublicRoots, Invalid> {
    PublicRoots::from_pem(texts.iter().map(String::as_bytes))
        .map_err(|error| Invalid(format!("tls.ca_certs: {error}")))
}

/// Tells settings apart without giving anything of them away.
fn setting(tls: &UpstreamTls) -> String {
    let key = tls.client_key.as_ref().map(|key| key.reveal().as_str());
    let id = tls.client_cert_id.as_ref().map(|id| id.as_str());
    let parts = [tls.client_cert.as_deref(), key, id];
    let mut text = format!("{:?}\n", tls.verify.unwrap_or(true));
    for part in parts.into_iter().chain(tls.ca_certs.iter().map(|text| Some(text.as_str()))) {
        // With lengths, so that no two settings read the same.
        let part = part.unwrap_or_default();
        text.push_str(&format!("{} {part}\n", part.len()));
    }
    let text = zeroize::Zeroizing::new(text);
    format!("public {}", hex::encode(digest(&SHA256, text.as_bytes())))
}
