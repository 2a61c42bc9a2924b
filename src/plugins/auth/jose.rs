//! Signed tokens in the compact form (RFC 7515), and the keys that verify them (RFC 7517, 7518, 8037).
//!
//! A key is of one kind, and an algorithm works with keys of its own kind alone: a public key is never taken for a shared secret,
//! whatever the token says. There is no `none`.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value};
use x509_parser::certificate::X509Certificate;
use x509_parser::oid_registry::{
    OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_NIST_EC_P384, OID_NIST_EC_P521,
    OID_PKCS1_RSAENCRYPTION, OID_SIG_ED25519,
};

use x509_parser::pem::parse_x509_pem;
use x509_parser::prelude::FromDer as _;
use x509_parser::x509::SubjectPublicKeyInfo;

use crate::pipeline::{Invalid, Redacted, strict_json};
use crate::rt::crypto::signature::{self, RsaPublicKeyComponents, UnparsedPublicKey};
use crate::rt::crypto::{hmac, p521};

/// Longer tokens are refused before anything of them is decoded.
pub(super) const MAX_TOKEN: usize = 16 * 1024;

/// The algorithms of signatures (RFC 7518, section 3.1; RFC 8037).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
pub(super) enum Algorithm {
    #[default]
    #[serde(rename = "HS256")]
    Hs256,
    #[serde(rename = "HS384")]
    Hs384,
    #[serde(rename = "HS512")]
    Hs512,
    #[serde(rename = "RS256")]
    Rs256,
    #[serde(rename = "RS384")]
    Rs384,
    #[serde(rename = "RS512")]
    Rs512,
    #[serde(rename = "ES256")]
    Es256,
    #[serde(rename = "ES384")]
    Es384,
    #[serde(rename = "ES512")]
    Es512,
    #[serde(rename = "PS256")]
    Ps256,
    #[serde(rename = "PS384")]
    Ps384,
    #[serde(rename = "PS512")]
    Ps512,
    #[serde(rename = "EdDSA")]
    EdDsa,
}

impl Algorithm {
    pub(super) const ALL: [(&'static str, Self); 13] = [
        ("HS256", Self::Hs256),
        ("HS384", Self::Hs384),
        ("HS512", Self::Hs512),
        ("RS256", Self::Rs256),
        ("RS384", Self::Rs384),
        ("RS512", Self::Rs512),
        ("ES256", Self::Es256),
        ("ES384", Self::Es384),
        ("ES512", Self::Es512),
        ("PS256", Self::Ps256),
        ("PS384", Self::Ps384),
        ("PS512", Self::Ps512),
        ("EdDSA", Self::EdDsa),
    ];

    pub(super) fn of(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(known, _)| *known == name).map(|(_, algorithm)| *algorithm)
    }

    pub(super) fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, known)| *known == self).map_or("", |(name, _)| name)
    }

    /// Does it sign with a secret that both sides share?
    pub(super) fn is_shared(self) -> bool {
        matches!(self, Self::Hs256 | Self::Hs384 | Self::Hs512)
    }

    fn rsa(self) -> Option<&'static signature::RsaParameters> {
        Some(match self {
            Self::Rs256 => &signature::RSA_PKCS1_2048_8192_SHA256,
            Self::Rs384 => &signature::RSA_PKCS1_2048_8192_SHA384,
            Self::Rs512 => &signature::RSA_PKCS1_2048_8192_SHA512,
            Self::Ps256 => &signature::RSA_PSS_2048_8192_SHA256,
            Self::Ps384 => &signature::RSA_PSS_2048_8192_SHA384,
            Self::Ps512 => &signature::RSA_PSS_2048_8192_SHA512,
            _ => return None,
        })
    }

    pub(super) fn hmac(self) -> Option<hmac::Algorithm> {
        Some(match self {
            Self::Hs256 => hmac::HMAC_SHA256,
            Self::Hs384 => hmac::HMAC_SHA384,
            Self::Hs512 => hmac::HMAC_SHA512,
            _ => return None,
        })
    }
}

/// A key that verifies signatures.
pub(super) struct VerifyingKey(Material);

enum Material {
    Secret(Redacted<Vec<u8>>),
    /// As PKCS #1 has it.
    Rsa(Vec<u8>),
    RsaParts {
        n: Vec<u8>,
        e: Vec<u8>,
    },
    /// An uncompressed point.
    P256(Vec<u8>),
    P384(Vec<u8>),
    P521(Vec<u8>),
    Ed25519(Vec<u8>),
}

impl VerifyingKey {
    /// A shared secret.
    pub(super) fn secret(bytes: Vec<u8>) -> Self {
        Self(Material::Secret(Redacted::new(bytes)))
    }

    /// A public key as PEM: `PUBLIC KEY`, `RSA PUBLIC KEY` or `CERTIFICATE`.
    pub(super) fn from_pem(pem: &str) -> Result<Self, Invalid> {
        let wrong = || Invalid::new("expected a public key as PEM (RSA, P-256, P-384 or Ed25519)");
        let (_, pem) = parse_x509_pem(pem.trim().as_bytes()).map_err(|_| wrong())?;
        match pem.label.as_str() {
            "PUBLIC KEY" => Self::from_spki(&pem.contents),
            "RSA PUBLIC KEY" => Self::rsa(pem.contents),
            "CERTIFICATE" => {
                let (_, certificate) =
                    X509Certificate::from_der(&pem.contents).map_err(|_| wrong())?;
                Self::from_spki(certificate.public_key().raw)
            }
            _ => Err(wrong()),
        }
    }

    fn from_spki(der: &[u8]) -> Result<Self, Invalid> {
        let wrong = || Invalid::new("expected a public key (RSA, P-256, P-384 or Ed25519)");
        let (_, spki) = SubjectPublicKeyInfo::from_der(der).map_err(|_| wrong())?;
        let bits = spki.subject_public_key.data.to_vec();
        let kind = &spki.algorithm.algorithm;
        if *kind == OID_PKCS1_RSAENCRYPTION {
            return Self::rsa(bits);
        }
        if *kind == OID_SIG_ED25519 && bits.len() == 32 {
            return Ok(Self(Material::Ed25519(bits)));
        }
        if *kind != OID_KEY_TYPE_EC_PUBLIC_KEY || bits.first() != Some(&4) {
            return Err(wrong());
        }
        let curve = spki.algorithm.parameters.as_ref().and_then(|any| any.as_oid().ok());
        let curve = curve.ok_or_else(wrong)?;
        Ok(Self(match bits.len() {
            65 if curve == OID_EC_P256 => Material::P256(bits),
            97 if curve == OID_NIST_EC_P384 => Material::P384(bits),
            133 if curve == OID_NIST_EC_P521 => Material::P521(bits),
            _ => return Err(wrong()),
        }))
    }

    fn rsa(pkcs1: Vec<u8>) -> Result<Self, Invalid> {
        let wrong = || Invalid::new("expected an RSA public key");
        let (_, key) =
            x509_parser::public_key::RSAPublicKey::from_der(&pkcs1).map_err(|_| wrong())?;
        // The library verifies with nothing shorter; better said now than at each request.
        if !(2048..=8192).contains(&key.key_size()) {
            return Err(Invalid::new("expected an RSA key of 2048 to 8192 bits"));
        }
        Ok(Self(Material::Rsa(pkcs1)))
    }

    /// A public key of a set of keys. Keys for encryption, and kinds that sign nothing, are none.
    pub(super) fn from_jwk(key: &Map<String, Value>) -> Option<Self> {
        let text = |name: &str| key.get(name).and_then(Value::as_str);
        let bytes = |name: &str| URL_SAFE_NO_PAD.decode(text(name)?).ok();
        if text("use").is_some_and(|purpose| purpose != "sig") {
            return None;
        }
        let point = |length: usize| {
            let (x, y) = (bytes("x")?, bytes("y")?);
            (x.len() == length && y.len() == length).then(|| [&[4], &x[..], &y[..]].concat())
        };
        Some(Self(match (text("kty")?, text("crv")) {
            ("RSA", _) => {
                let stripped = |mut bytes: Vec<u8>| {
                    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
                    bytes.drain(..zeros);
                    bytes
                };
                Material::RsaParts { n: stripped(bytes("n")?), e: stripped(bytes("e")?) }
            }
            ("EC", Some("P-256")) => Material::P256(point(32)?),
            ("EC", Some("P-384")) => Material::P384(point(48)?),
            ("EC", Some("P-521")) => Material::P521(point(66)?),
            ("OKP", Some("Ed25519")) => Material::Ed25519(bytes("x").filter(|x| x.len() == 32)?),
            _ => return None,
        }))
    }

    /// Is the key of the algorithm's kind, and can this build verify with it?
    pub(super) fn fits(&self, algorithm: Algorithm) -> bool {
        match &self.0 {
            Material::Secret(_) => algorithm.is_shared(),
            Material::Rsa(_) | Material::RsaParts { .. } => algorithm.rsa().is_some(),
            Material::P256(_) => algorithm == Algorithm::Es256,
            Material::P384(_) => algorithm == Algorithm::Es384,
            Material::P521(_) => algorithm == Algorithm::Es512 && p521().is_some(),
            Material::Ed25519(_) => algorithm == Algorithm::EdDsa,
        }
    }

    /// Is `signature` the key's over `signed`?
    pub(super) fn verifies(&self, algorithm: Algorithm, signed: &[u8], signature: &[u8]) -> bool {
        let with = |known: &'static dyn signature::VerificationAlgorithm, key: &[u8]| {
            UnparsedPublicKey::new(known, key).verify(signed, signature).is_ok()
        };
        if !self.fits(algorithm) {
            return false;
        }
        match &self.0 {
            Material::Secret(secret) => algorithm.hmac().is_some_and(|known| {
                hmac::verify(&hmac::Key::new(known, secret.reveal()), signed, signature).is_ok()
            }),
            Material::Rsa(key) => algorithm.rsa().is_some_and(|known| with(known, key)),
            Material::RsaParts { n, e } => algorithm.rsa().is_some_and(|known| {
                RsaPublicKeyComponents { n, e }.verify(known, signed, signature).is_ok()
            }),
            Material::P256(key) => with(&signature::ECDSA_P256_SHA256_FIXED, key),
            Material::P384(key) => with(&signature::ECDSA_P384_SHA384_FIXED, key),
            Material::P521(key) => p521().is_some_and(|known| with(known, key)),
            Material::Ed25519(key) => with(&signature::ED25519, key),
        }
    }
}

/// A token that was read, and proves nothing yet.
pub(super) struct Token<'t> {
    /// What the header says it is signed with. `None`: with nothing that we know, which `none` is among.
    pub(super) algorithm: Option<Algorithm>,
    /// The `kid` of the header.
    pub(super) key_id: Option<String>,
    /// The claims, unproved.
    pub(super) claims: Map<String, Value>,
    signed: &'t [u8],
    signature: Vec<u8>,
}

impl<'t> Token<'t> {
    /// Reads header and claims. A token with a member twice is none: its readers would not agree which one counts. Neither is
    /// one whose header has extensions that must be understood (`crit`).
    pub(super) fn read(text: &'t str) -> Option<Self> {
        if text.len() > MAX_TOKEN {
            return None;
        }
        let (signed, signature) = text.rsplit_once('.')?;
        let (header, claims) = signed.split_once('.')?;
        let object = |part: &str| match strict_json(&URL_SAFE_NO_PAD.decode(part).ok()?).ok()? {
            Value::Object(members) => Some(members),
            _ => None,
        };
        let (header, claims) = (object(header)?, object(claims)?);
        if header.contains_key("crit") {
            return None;
        }
        Some(Self {
            algorithm: Algorithm::of(header.get("alg")?.as_str()?),
            key_id: header.get("kid").and_then(Value::as_str).map(str::to_owned),
            claims,
            signed: signed.as_bytes(),
            signature: URL_SAFE_NO_PAD.decode(signature).ok()?,
        })
    }

    /// Has `key` signed it, with `algorithm` and no other?
    pub(super) fn is_signed_by(&self, key: &VerifyingKey, algorithm: Algorithm) -> bool {
        self.algorithm == Some(algorithm) && key.verifies(algorithm, self.signed, &self.signature)
    }
}

/// Is `now` between `nbf` and `exp`, as far as those are claimed and `ask` names them? A claim that is no number is broken.
pub(super) fn is_timely(claims: &Map<String, Value>, ask: &[&str], leeway: f64, now: f64) -> bool {
    ask.iter().all(|name| match (claims.get(*name), *name) {
        (None, _) => true,
        (Some(at), "exp") => at.as_f64().is_some_and(|at| now < at + leeway),
        (Some(at), _) => at.as_f64().is_some_and(|at| at - leeway <= now),
    })
}
