//! Seals: a signature by our SVID over everything in the log up to it.
//!
//! A chain shows that its lines belong together. Who may write to the file could write another chain; a seal shows which workload
//! wrote this one, and that nothing before it was changed since.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use rustls::SignatureScheme;
use rustls::sign::SigningKey;
use rustls_pki_types::{CertificateDer, SignatureVerificationAlgorithm, UnixTime};
use serde::Deserialize;

use super::json::Fields;
use crate::identity::{Identity, Presented, Purpose, SpiffeId, TrustBundle, TrustBundles};
use crate::identity::{Revocations, Rules, Trust};
use crate::rt::crypto::digest::{SHA256, digest};
use crate::rt::{Live, crypto, unix_seconds};

/// What is signed: this, then boot id, number, time and the hash of the record before, each on a line.
const STATEMENT: &str = "wardgate-seal-v1";

/// The schemes that seals are signed with, as TLS names them (RFC 8446 4.2.3).
const SCHEMES: [(SignatureScheme, &str, &dyn SignatureVerificationAlgorithm); 4] = [
    (
        SignatureScheme::ECDSA_NISTP256_SHA256,
        "ecdsa_secp256r1_sha256",
        crypto::certificates::ECDSA_P256_SHA256,
    ),
    (
        SignatureScheme::ECDSA_NISTP384_SHA384,
        "ecdsa_secp384r1_sha384",
        crypto::certificates::ECDSA_P384_SHA384,
    ),
    (SignatureScheme::ED25519, "ed25519", crypto::certificates::ED25519),
    (
        SignatureScheme::RSA_PSS_SHA256,
        "rsa_pss_rsae_sha256",
        crypto::certificates::RSA_PSS_2048_8192_SHA256_LEGACY_KEY,
    ),
];

/// The place of a seal in the chain.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place<'a> {
    pub(super) boot_id: &'a str,
    pub(super) seq: u64,
    pub(super) time: &'a str,
    /// The hash of the record before, in hexadecimal.
    pub(super) prev: &'a str,
}

impl Place<'_> {
    fn statement(&self) -> String {
        let Self { boot_id, seq, time, prev } = self;
        format!("{STATEMENT}\n{boot_id}\n{seq}\n{time}\n{prev}\n")
    }
}

/// Signs as whoever the process is at the moment.
pub(super) struct Sealer {
    identity: Live<Identity>,
    made: Option<Made>,
    /// The leaf whose chain stands in this file already.
    shown: Option<String>,
}

struct Made {
    of: Arc<Identity>,
    key: Arc<dyn SigningKey>,
    sha256: String,
}

impl Sealer {
    pub(super) fn new(identity: Live<Identity>) -> Self {
        Self { identity, made: None, shown: None }
    }

    /// A new file is begun: it shall be judged without the ones before it.
    pub(super) fn begin_file(&mut self) {
        self.shown = None;
    }

    /// Writes a seal's fields; `false`, and nothing is written, when there is no identity to sign with.
    pub(super) fn write(&mut self, place: Place<'_>, fields: &mut Fields<'_>) -> bool {
        let Some(signed) = self.sign(&place.statement()) else { return false };
        let Signed { by, scheme, certificate_sha256, signature } = signed;
        fields.text("spiffe_id", by.id().as_str());
        fields.text("scheme", scheme);
        fields.text("certificate_sha256", &certificate_sha256);
        if self.shown.as_ref() != Some(&certificate_sha256) {
            let chain = by.svid.chain.iter().map(|certificate| BASE64.encode(certificate));
            fields.texts("certificates", chain);
            self.shown = Some(certificate_sha256);
        }
        fields.text("signature", &BASE64.encode(signature));
        true
    }

    /// Signs a text as whoever the process is now; `None` when it is nobody.
    pub(super) fn sign(&mut self, statement: &str) -> Option<Signed> {
        let identity = self.identity.load();
        if identity.is_withdrawn() || identity.svid.not_after <= unix_seconds() {
            return None;
        }
        if self.made.as_ref().is_none_or(|made| !Arc::ptr_eq(&made.of, &identity)) {
            let key = crypto::tls_signing_key(&identity.svid.key)
                .inspect_err(|error| tracing::error!(%error, "the decision log cannot be sealed"))
                .ok()?;
            let sha256 = hex::encode(digest(&SHA256, identity.svid.chain.first()?));
            self.made = Some(Made { of: identity, key, sha256 });
        }
        let Made { of, key, sha256 } = self.made.as_ref()?;
        let signer = key.choose_scheme(&SCHEMES.map(|(scheme, ..)| scheme))?;
        let scheme = SCHEMES.iter().find(|(scheme, ..)| *scheme == signer.scheme())?.1;
        let signature = signer
            .sign(statement.as_bytes())
            .inspect_err(|error| tracing::error!(%error, "the decision log cannot be sealed"))
            .ok()?;
        Some(Signed { by: of.clone(), scheme, certificate_sha256: sha256.clone(), signature })
    }
}

/// A signature, and by whom.
pub(super) struct Signed {
    pub(super) by: Arc<Identity>,
    pub(super) scheme: &'static str,
    pub(super) certificate_sha256: String,
    pub(super) signature: Vec<u8>,
}

/// A seal as it stands in the log.
#[derive(Debug, Deserialize)]
pub(super) struct Seal {
    pub(super) spiffe_id: String,
    scheme: String,
    pub(super) certificate_sha256: String,
    #[serde(default)]
    certificates: Vec<String>,
    signature: String,
}

/// Judges seals one after another.
#[derive(Debug, Default)]
pub(super) struct SealJudge {
    /// Chains that were shown, by the SHA-256 of their leaf.
    chains: std::collections::HashMap<String, Vec<CertificateDer<'static>>>,
    trust: Option<Trust>,
}

impl SealJudge {
    /// With a bundle whose authorities must vouch for whoever sealed; without one only the signatures are judged.
    pub(super) fn new(bundle: Option<TrustBundle>) -> Self {
        let trust = bundle.map(|bundle| {
            let bundles: TrustBundles = [bundle].into_iter().collect();
            Trust::new(bundles, Revocations::default(), Rules::default())
        });
        Self { trust, ..Self::default() }
    }

    /// Is this seal what it says it is? `seconds` is the time that the record bears, since 1970.
    pub(super) fn judge(
        &mut self,
        seal: &Seal,
        place: Place<'_>,
        seconds: Option<i64>,
    ) -> Result<(), String> {
        if !seal.certificates.is_empty() {
            let chain = seal.certificates.iter().map(|text| BASE64.decode(text));
            let chain = chain
                .map(|der| der.map(CertificateDer::from))
                .collect::<Result<Vec<_>, _>>()
                .map_err(|_| "\"certificates\" is not base64".to_owned())?;
            let found = chain.first().map(|leaf| hex::encode(digest(&SHA256, leaf)));
            if found.as_ref() != Some(&seal.certificate_sha256) {
                return Err("\"certificate_sha256\" is not that of its certificate".into());
            }
            self.chains.insert(seal.certificate_sha256.clone(), chain);
        }
        let Some([leaf, intermediates @ ..]) =
            self.chains.get(&seal.certificate_sha256).map(Vec::as_slice)
        else {
            return Err("its certificate stands nowhere before it".into());
        };
        check_signature(leaf, &seal.scheme, &place.statement(), &seal.signature, &seal.spiffe_id)?;
        let Some(trust) = &self.trust else { return Ok(()) };
        vouched(trust, leaf, intermediates, seconds)
    }

    /// The chain of certificates that was shown with this leaf.
    pub(super) fn chain(&self, sha256: &str) -> Option<&[CertificateDer<'static>]> {
        self.chains.get(sha256).map(Vec::as_slice)
    }

    /// Knows a chain that was shown elsewhere.
    pub(super) fn know(&mut self, sha256: &str, chain: Vec<CertificateDer<'static>>) {
        self.chains.insert(sha256.to_owned(), chain);
    }
}

/// Is this the signature of `spiffe_id`, whose certificate is `leaf`, over `statement`?
pub(super) fn check_signature(
    leaf: &CertificateDer<'_>,
    scheme: &str,
    statement: &str,
    signature: &str,
    spiffe_id: &str,
) -> Result<(), String> {
    let (_, _, algorithm) = SCHEMES
        .iter()
        .find(|(_, name, _)| *name == scheme)
        .ok_or_else(|| format!("the scheme {scheme:?} is not known"))?;
    let signature =
        BASE64.decode(signature).map_err(|_| "\"signature\" is not base64".to_owned())?;
    let certificate = webpki::EndEntityCert::try_from(leaf)
        .map_err(|error| format!("its certificate cannot be read: {error}"))?;
    certificate
        .verify_signature(*algorithm, statement.as_bytes(), &signature)
        .map_err(|_| "its signature does not fit".to_owned())?;
    let named: SpiffeId =
        named(&certificate).ok_or_else(|| "its certificate names no SPIFFE ID".to_owned())?;
    if named.as_str() != spiffe_id {
        return Err(format!("it says {spiffe_id:?}, and its certificate {named}"));
    }
    Ok(())
}

/// Does an authority that we trust vouch for this certificate at that time, in seconds since 1970?
pub(super) fn vouched(
    trust: &Trust,
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    seconds: Option<i64>,
) -> Result<(), String> {
    let seconds = seconds.and_then(|seconds| u64::try_from(seconds).ok());
    let seconds = seconds.ok_or("its time cannot be read")?;
    let at = UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds));
    let mut presented = Presented::default();
    trust
        .verifier()
        .verify(leaf, intermediates, Purpose::Client, at, &mut presented)
        .map(drop)
        .map_err(|flaw| format!("the bundle does not vouch for its certificate: {flaw}"))
}

fn named(certificate: &webpki::EndEntityCert<'_>) -> Option<SpiffeId> {
    let mut names = certificate.valid_uri_names();
    let only = names.next()?.parse().ok();
    only.filter(|_| names.next().is_none())
}

#[cfg(test)]
mod tests;
