//! What a workload is told about the issuer that it enrols with.

use std::path::PathBuf;

use crate::rt::crypto::digest::{SHA256, digest};
use schemars::JsonSchema;
use serde::Deserialize;

use super::client::Proof;
use crate::identity::{SpiffeId, Trust, TrustBundle, TrustBundles, TrustDomain};
use crate::issuer::Error;
use crate::model::Redacted;
use crate::mtls::Anchor;

/// An identity from an issuer on another machine. The key never leaves this one.
///
/// Exactly one of `bundle`, `bundle_pem` and `bundle_sha256` says how the issuer is known; exactly one of `token`, `token_file`
/// and `kubernetes_token_file` proves who we are until there is an SVID.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EnrolSettings {
    /// `host:port` of the issuer's `issuer.listen`. It must prove to be `spiffe://<trust domain>/wardgate/issuer`.
    pub issuer: String,
    /// A file with our trust domain's bundle: PEM, or a SPIFFE bundle document. It is where trust begins; from the first answer
    /// on, the issuer keeps it current.
    #[serde(default)]
    pub bundle: Option<PathBuf>,
    /// The bundle itself, as PEM.
    #[serde(default)]
    pub bundle_pem: Option<String>,
    /// SHA-256 of the root certificate, hexadecimal, as `wardgate identity init` prints it.
    #[serde(default)]
    pub bundle_sha256: Option<String>,
    /// A join token. Better in a file: settings are read by more people.
    #[serde(default)]
    pub token: Option<Redacted<String>>,
    /// A file with a join token.
    #[serde(default)]
    pub token_file: Option<PathBuf>,
    /// The projected service-account token of this pod, for the issuer's audience.
    #[serde(default)]
    pub kubernetes_token_file: Option<PathBuf>,
    /// Which of the issuer's clusters vouches for the service-account token.
    #[serde(default = "default_cluster")]
    pub cluster: String,
    /// Which of several identities to take; the first when not given.
    #[serde(default)]
    pub spiffe_id: Option<String>,
    /// How long a start waits for the first valid identity, in seconds.
    #[serde(default = "thirty")]
    pub first_within_seconds: u64,
}

fn default_cluster() -> String {
    "default".into()
}

const fn thirty() -> u64 {
    30
}

/// Where trust begins, and what tells it from another beginning.
pub(super) struct Beginning {
    pub(super) anchor: Anchor,
    pub(super) sha256: String,
}

impl EnrolSettings {
    /// Checks what can be checked without looking at a file.
    ///
    /// # Errors
    /// Names the setting.
    pub fn check(&self) -> Result<(), Error> {
        let wrong = |field, detail: &str| Error::EnrolSetting { field, detail: detail.into() };
        let is_address = self
            .issuer
            .rsplit_once(':')
            .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
        if !is_address {
            return Err(wrong("issuer", "expected host:port"));
        }
        let one_of = |given: [bool; 3]| given.iter().filter(|given| **given).count() == 1;
        let bundles =
            [self.bundle.is_some(), self.bundle_pem.is_some(), self.bundle_sha256.is_some()];
        if !one_of(bundles) {
            return Err(wrong("bundle", "expected one of bundle, bundle_pem and bundle_sha256"));
        }
        let kubernetes = self.kubernetes_token_file.is_some();
        if !one_of([self.token.is_some(), self.token_file.is_some(), kubernetes]) {
            return Err(wrong(
                "token",
                "expected one of token, token_file and kubernetes_token_file",
            ));
        }
        self.wanted().map(drop)
    }

    /// The identity that is wanted.
    ///
    /// # Errors
    /// It is no SPIFFE ID.
    pub(super) fn wanted(&self) -> Result<Option<SpiffeId>, Error> {
        let parsed = self.spiffe_id.as_ref().map(|text| {
            text.parse().map_err(|error| Error::EnrolSetting {
                field: "spiffe_id",
                detail: format!("{text:?} {error}"),
            })
        });
        parsed.transpose()
    }

    /// Where trust in an issuer of `domain` begins. Files are read each time: a cluster replaces them.
    pub(super) async fn beginning(&self, domain: &TrustDomain) -> Result<Beginning, Error> {
        let wrong = |field, detail: String| Error::EnrolSetting { field, detail };
        if let Some(text) = &self.bundle_sha256 {
            let mut sha256 = [0; 32];
            let plain = text.replace(':', "");
            hex::decode_to_slice(&plain, &mut sha256).map_err(|_| {
                wrong("bundle_sha256", format!("{text:?}: expected 64 hexadecimal digits"))
            })?;
            let anchor = Anchor::Root { domain: domain.clone(), sha256 };
            return Ok(Beginning { anchor, sha256: hex::encode(sha256) });
        }
        let (field, text) = match (&self.bundle, &self.bundle_pem) {
            (Some(path), _) => ("bundle", read(path).await?),
            (None, pem) => ("bundle_pem", pem.clone().unwrap_or_default().into_bytes()),
        };
        let bundle = TrustBundle::from_text(domain.clone(), &text)
            .map_err(|error| wrong(field, error.report()))?;
        // By its content, not by how it is written.
        let sha256 = hex::encode(digest(&SHA256, &bundle.to_der()));
        let bundles: TrustBundles = [bundle].into_iter().collect();
        Ok(Beginning { anchor: Anchor::Trust(Trust::from(bundles).into()), sha256 })
    }

    /// What proves who we are.
    pub(super) async fn proof(&self) -> Result<Proof, Error> {
        let text = |path| async move {
            let text = read(path).await?;
            let detail = || format!("{} holds no token", path.display());
            match String::from_utf8(text) {
                Ok(text) if !text.trim().is_empty() => Ok(Redacted::new(text.trim().to_owned())),
                _ => Err(Error::EnrolSetting { field: "token_file", detail: detail() }),
            }
        };
        match (&self.token, &self.token_file, &self.kubernetes_token_file) {
            (Some(token), ..) => Ok(Proof::JoinToken(token.clone())),
            (None, Some(path), _) => Ok(Proof::JoinToken(text(path).await?)),
            (None, None, Some(path)) => {
                let cluster = self.cluster.clone();
                Ok(Proof::Kubernetes { cluster, token: text(path).await? })
            }
            (None, None, None) => Err(Error::EnrolSetting {
                field: "token",
                detail: "expected one of token, token_file and kubernetes_token_file".into(),
            }),
        }
    }

    /// Can what proves us be shown more than once?
    pub(super) fn is_proof_lasting(&self) -> bool {
        self.kubernetes_token_file.is_some()
    }
}

async fn read(path: &std::path::Path) -> Result<Vec<u8>, Error> {
    tokio::fs::read(path).await.map_err(|source| Error::Read { path: path.to_owned(), source })
}
