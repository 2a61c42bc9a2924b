//! A projected service-account token, read and judged by the keys of its cluster (RFC 7515, RFC 7519).
//!
//! Only what the settings say decides: the algorithm must be one of two, the key is one of the cluster's own, found by name;
//! nothing that a header offers (`jwk`, `jku`, `x5c`, ..) is looked at, and what it declares critical is refused.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use serde_json::Value;

use super::attestor::Account;
use super::keys::{Algorithm, Keys};
use crate::issuer::ProofFlaw;

const MAX_TOKEN_BYTES: usize = 16 * 1024;
/// The cluster's clock may be ahead of ours by this much. There is no leeway after a token's end.
const LEEWAY_SECONDS: i64 = 30;

/// What a token must say.
pub(super) struct Expected<'a> {
    pub(super) issuer: &'a str,
    pub(super) audience: &'a str,
    pub(super) now: i64,
}

/// A token whose signature has not been looked at.
pub(super) struct Unverified<'a> {
    pub(super) kid: String,
    algorithm: Algorithm,
    signed: &'a str,
    signature: Vec<u8>,
    payload: &'a str,
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    #[serde(default)]
    kid: Option<String>,
    #[serde(default)]
    crit: Option<Value>,
}

#[derive(Deserialize)]
struct Claims {
    iss: String,
    aud: OneOrMany,
    exp: i64,
    #[serde(default)]
    nbf: Option<i64>,
    #[serde(default)]
    iat: Option<i64>,
    sub: String,
    #[serde(rename = "kubernetes.io")]
    kubernetes: Kubernetes,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

#[derive(Deserialize)]
struct Kubernetes {
    namespace: String,
    serviceaccount: Named,
    #[serde(default)]
    pod: Option<Named>,
}

#[derive(Deserialize)]
struct Named {
    name: String,
    uid: String,
}

impl<'a> Unverified<'a> {
    /// Reads a token's shape and header.
    ///
    /// # Errors
    /// It is malformed, has no key's name, or is not signed with RS256 or ES256.
    pub(super) fn read(token: &'a str) -> Result<Self, ProofFlaw> {
        let malformed = |detail| ProofFlaw::Malformed { detail };
        let token = token.trim_ascii();
        if token.len() > MAX_TOKEN_BYTES {
            return Err(malformed("longer than 16384 bytes"));
        }
        let (signed, signature) = token.rsplit_once('.').ok_or(malformed("no signature"))?;
        let (header, payload) = signed.split_once('.').ok_or(malformed("no payload"))?;
        if payload.contains('.') {
            return Err(malformed("more than three parts"));
        }
        let bytes = URL_SAFE_NO_PAD.decode(header).map_err(|_| malformed("the header"))?;
        let header: Header = serde_json::from_slice(&bytes).map_err(|_| malformed("the header"))?;
        if header.crit.is_some() {
            return Err(malformed("a critical header that nobody here knows"));
        }
        let algorithm = match header.alg.as_str() {
            "RS256" => Algorithm::Rs256,
            "ES256" => Algorithm::Es256,
            _ => return Err(ProofFlaw::Algorithm { found: short(&header.alg) }),
        };
        let signature =
            URL_SAFE_NO_PAD.decode(signature).map_err(|_| malformed("the signature"))?;
        let kid = header.kid.ok_or(ProofFlaw::Key { kid: String::new() })?;
        Ok(Self { kid, algorithm, signed, signature, payload })
    }

    /// The account that the token speaks for, if one of `keys` signed it and it says what is expected.
    ///
    /// # Errors
    /// The first that does not hold.
    pub(super) fn verify(self, keys: &Keys, expected: &Expected<'_>) -> Result<Account, ProofFlaw> {
        let mut named = keys.named(&self.kid, self.algorithm).peekable();
        if named.peek().is_none() {
            return Err(ProofFlaw::Key { kid: short(&self.kid) });
        }
        if !named.any(|key| key.signed(self.signed.as_bytes(), &self.signature)) {
            return Err(ProofFlaw::Signature);
        }
        let malformed = ProofFlaw::Malformed { detail: "its claims" };
        let payload = URL_SAFE_NO_PAD.decode(self.payload).map_err(|_| malformed.clone())?;
        let claims: Claims = serde_json::from_slice(&payload).map_err(|_| malformed)?;
        claims.judge(expected)
    }
}

impl Claims {
    fn judge(self, expected: &Expected<'_>) -> Result<Account, ProofFlaw> {
        if self.iss != expected.issuer {
            return Err(ProofFlaw::Issuer { found: short(&self.iss) });
        }
        let audiences = match self.aud {
            OneOrMany::One(one) => vec![one],
            OneOrMany::Many(many) => many,
        };
        if !audiences.iter().any(|one| one == expected.audience) {
            return Err(ProofFlaw::Audience { found: short(&format!("{audiences:?}")) });
        }
        if expected.now >= self.exp {
            return Err(ProofFlaw::Expired);
        }
        let latest = expected.now.saturating_add(LEEWAY_SECONDS);
        if self.nbf.is_some_and(|from| from > latest) || self.iat.is_some_and(|at| at > latest) {
            return Err(ProofFlaw::NotYetValid);
        }
        let Kubernetes { namespace, serviceaccount, pod } = self.kubernetes;
        if self.sub != format!("system:serviceaccount:{namespace}:{}", serviceaccount.name) {
            return Err(ProofFlaw::Subject { detail: "sub names another than kubernetes.io does" });
        }
        let (pod_name, pod_uid) = pod.map_or((None, None), |pod| (Some(pod.name), Some(pod.uid)));
        let Named { name, uid } = serviceaccount;
        Account::new(namespace, name, &uid, pod_name, pod_uid)
    }
}

/// What a stranger wrote, for one field of a record.
pub(super) fn short(text: &str) -> String {
    text.chars().take(128).collect()
}
