//! The keys with which a cluster signs its tokens: a JSON Web Key Set (RFC 7517).

use crate::rt::crypto::signature::{
    ECDSA_P256_SHA256_FIXED, RSA_PKCS1_2048_8192_SHA256, RsaPublicKeyComponents, UnparsedPublicKey,
};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::Value;

/// How a token may be signed: what Kubernetes uses, and nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Algorithm {
    Rs256,
    Es256,
}

/// One key, usable for one algorithm only: whoever writes a token's header does not choose what its key means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Key {
    kid: String,
    material: Material,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Material {
    Rsa {
        modulus: Vec<u8>,
        exponent: Vec<u8>,
    },
    /// An uncompressed point of P-256.
    Point(Vec<u8>),
}

/// A cluster's keys.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Keys {
    all: Vec<Key>,
}

impl Keys {
    /// Reads a key set; keys of other kinds and uses are passed over.
    ///
    /// # Errors
    /// It is no key set, or has no key that can be used here.
    pub(super) fn parse(document: &Value) -> Result<Self, String> {
        let keys = document.get("keys").and_then(Value::as_array);
        let keys = keys.ok_or("it is no JSON Web Key Set: `keys` is missing")?;
        let all: Vec<Key> = keys.iter().filter_map(Key::parse).collect();
        if all.is_empty() {
            return Err("it has no named RSA or P-256 key for signatures".into());
        }
        Ok(Self { all })
    }

    /// The keys with this name for this algorithm.
    pub(super) fn named(&self, kid: &str, algorithm: Algorithm) -> impl Iterator<Item = &Key> {
        self.all.iter().filter(move |key| key.kid == kid && key.algorithm() == algorithm)
    }

    /// Has any key this name?
    pub(super) fn knows(&self, kid: &str) -> bool {
        self.all.iter().any(|key| key.kid == kid)
    }
}

impl Key {
    fn parse(key: &Value) -> Option<Self> {
        let text = |name: &str| key.get(name).and_then(Value::as_str);
        if text("use").is_some_and(|usage| usage != "sig") {
            return None;
        }
        let bytes = |name: &str| URL_SAFE_NO_PAD.decode(text(name)?).ok();
        let kid = text("kid").filter(|kid| !kid.is_empty())?.to_owned();
        let (material, algorithm) = match (text("kty")?, text("crv")) {
            ("RSA", None) => {
                (Material::Rsa { modulus: bytes("n")?, exponent: bytes("e")? }, "RS256")
            }
            ("EC", Some("P-256")) => {
                let (x, y) = (bytes("x")?, bytes("y")?);
                if x.len() != 32 || y.len() != 32 {
                    return None;
                }
                (Material::Point([&[4][..], &x, &y].concat()), "ES256")
            }
            _ => return None,
        };
        text("alg").is_none_or(|alg| alg == algorithm).then_some(Self { kid, material })
    }

    fn algorithm(&self) -> Algorithm {
        match self.material {
            Material::Rsa { .. } => Algorithm::Rs256,
            Material::Point(_) => Algorithm::Es256,
        }
    }

    /// Did this key sign the message? RSA keys below 2048 bits never did.
    pub(super) fn signed(&self, message: &[u8], signature: &[u8]) -> bool {
        match &self.material {
            Material::Rsa { modulus, exponent } => {
                RsaPublicKeyComponents { n: modulus, e: exponent }
                    .verify(&RSA_PKCS1_2048_8192_SHA256, message, signature)
                    .is_ok()
            }
            Material::Point(point) => UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point)
                .verify(message, signature)
                .is_ok(),
        }
    }
}
