//! `TrustBundle`: the roots of one trust domain; `TrustBundles`: one for each domain, never merged.

use std::collections::BTreeMap;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use rustls_pki_types::CertificateDer;
use serde_json::{Value, json};
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::public_key::PublicKey;

use super::svid::{certificates, concatenated, pem_text};
use super::{Error, TrustDomain, strict_json};
use crate::rt::crypto::digest::{SHA256, digest};

/// A key that verifies JWT-SVIDs of its trust domain, and nothing else (64).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JwtAuthority {
    /// `kid`: which tokens it is for.
    pub key_id: String,
    /// The public key as a JSON Web Key (RFC 7517): its type and its numbers, without `kid` and `use`.
    pub key: Value,
}

/// The members of a key that are kept: what is public and says which key it is.
const JWK_MEMBERS: [&str; 7] = ["kty", "crv", "x", "y", "n", "e", "alg"];

impl JwtAuthority {
    /// From an entry of a key set; `None` when it has no `kid` (64) or its type is unknown (59).
    pub fn from_jwk(entry: &Value) -> Option<Self> {
        let text = |name: &str| entry.get(name).and_then(Value::as_str);
        let key_id = text("kid").filter(|id| !id.is_empty())?.to_owned();
        text("kty").filter(|kind| KEY_TYPES.contains(kind))?;
        let kept = JWK_MEMBERS.iter().filter_map(|name| Some((*name, entry.get(*name)?.clone())));
        let key = kept.map(|(name, value)| (name.to_owned(), value)).collect();
        Some(Self { key_id, key: Value::Object(key) })
    }

    /// As an entry of a key set, for JWT-SVIDs only.
    pub fn to_jwk(&self) -> Value {
        let mut entry = self.key.clone();
        entry["kid"] = self.key_id.clone().into();
        entry["use"] = JWT_SVID.into();
        entry
    }

    /// From the key set of one trust domain as the Workload API carries it. There a key needs no `use`, since the message says
    /// what its keys are for; a key for something else is passed over all the same (64).
    ///
    /// # Errors
    /// It is not a key set.
    pub fn parse_set(json: &[u8]) -> Result<Vec<Self>, Error> {
        let wrong = |detail: &str| Error::BundleDocument { detail: detail.into() };
        let document = strict_json::parse(json)
            .map_err(|error| Error::BundleDocument { detail: error.to_string() })?;
        let keys = document.get("keys").and_then(Value::as_array);
        let keys = keys.ok_or_else(|| wrong("`keys` is missing, or not a list"))?;
        let for_tokens = |entry: &&Value| entry.get("use").is_none_or(|of| of == JWT_SVID);
        Ok(keys.iter().filter(for_tokens).filter_map(Self::from_jwk).collect())
    }

    /// A key set of these keys, as the Workload API carries it.
    pub fn to_set(authorities: &[Self]) -> Value {
        json!({ "keys": authorities.iter().map(Self::to_jwk).collect::<Vec<_>>() })
    }
}

const JWT_SVID: &str = "jwt-svid";
const KEY_TYPES: [&str; 3] = ["EC", "RSA", "OKP"];

/// The authorities of one trust domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrustBundle {
    /// Whose authorities they are.
    pub domain: TrustDomain,
    /// The root certificates. None at all means that nobody of the domain is trusted.
    pub roots: Vec<CertificateDer<'static>>,
    /// The keys for JWT-SVIDs.
    pub jwt_authorities: Vec<JwtAuthority>,
}

impl TrustBundle {
    /// X.509 authorities alone.
    pub fn new(domain: TrustDomain, roots: Vec<CertificateDer<'static>>) -> Self {
        Self { domain, roots, jwt_authorities: Vec::new() }
    }

    /// From PEM: one certificate or more.
    ///
    /// # Errors
    /// The text holds no certificate, or one that is none.
    pub fn from_pem(domain: TrustDomain, pem: &[u8]) -> Result<Self, Error> {
        Self::checked(domain, certificates(pem)?)
    }

    /// From DER certificates one after another, as the Workload API carries them.
    ///
    /// # Errors
    /// A part is not a certificate, or bytes trail.
    pub fn from_der(domain: TrustDomain, der: &[u8]) -> Result<Self, Error> {
        let roots = concatenated(der).map_err(|position| Error::BundleCertificate { position })?;
        Ok(Self::new(domain, roots))
    }

    /// From either form that a file may have: PEM, or a SPIFFE bundle document when it begins with a brace.
    ///
    /// # Errors
    /// As [`TrustBundle::from_pem`] and [`BundleDocument::parse`].
    pub fn from_text(domain: TrustDomain, text: &[u8]) -> Result<Self, Error> {
        if text.trim_ascii_start().starts_with(b"{") {
            return Ok(BundleDocument::parse(domain, text)?.bundle);
        }
        Self::from_pem(domain, text)
    }

    /// Tells what the bundle trusts from everything else: the first 16 digits of the SHA-256 over the SHA-256 of its root
    /// certificates, each once and ascending. It has nothing to do with who published it under which number.
    pub fn revision(&self) -> String {
        let mut roots: Vec<_> =
            self.roots.iter().map(|root| digest(&SHA256, root).as_ref().to_vec()).collect();
        roots.sort_unstable();
        roots.dedup();
        hex::encode(&digest(&SHA256, &roots.concat()).as_ref()[..8])
    }

    /// The roots as PEM.
    pub fn to_pem(&self) -> String {
        self.roots.iter().map(|root| pem_text("CERTIFICATE", root)).collect()
    }

    /// The roots as DER, one after another.
    pub fn to_der(&self) -> Vec<u8> {
        self.roots.iter().flat_map(|root| root.iter().copied()).collect()
    }

    /// Are the authorities the same, in whatever order?
    pub fn has_authorities_of(&self, other: &Self) -> bool {
        let within = |some: &Self, all: &Self| {
            some.roots.iter().all(|root| all.roots.contains(root))
                && some.jwt_authorities.iter().all(|key| all.jwt_authorities.contains(key))
        };
        within(self, other) && within(other, self)
    }

    fn checked(domain: TrustDomain, roots: Vec<CertificateDer<'static>>) -> Result<Self, Error> {
        for (at, root) in roots.iter().enumerate() {
            match X509Certificate::from_der(root) {
                Ok(([], _)) => {}
                _ => return Err(Error::BundleCertificate { position: at + 1 }),
            }
        }
        Ok(Self::new(domain, roots))
    }
}

/// A bundle as SPIFFE publishes it: a JWKS with the X.509 authorities in `x5c` (Trust Domain and Bundle, section 4).
///
/// Both kinds of keys are read, each for its own use: a key for JWT-SVIDs never vouches for a certificate, nor the reverse.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BundleDocument {
    /// The authorities.
    pub bundle: TrustBundle,
    /// `spiffe_sequence`: grows with each change.
    pub sequence: Option<u64>,
    /// `spiffe_refresh_hint`: when to fetch it again; 300 s when not given, always between 10 s and 24 h.
    pub refresh_after: Duration,
}

impl BundleDocument {
    /// Reads a document. Entries of unknown type or use are passed over, unknown members as well; a document without
    /// usable keys is an empty bundle, which trusts nobody.
    ///
    /// # Errors
    /// It is not JSON, has a member twice, has no list `keys`, or an X.509 entry carries something that is not a certificate.
    pub fn parse(domain: TrustDomain, json: &[u8]) -> Result<Self, Error> {
        let document = strict_json::parse(json)
            .map_err(|error| Error::BundleDocument { detail: error.to_string() })?;
        Self::from_value(domain, &document)
    }

    /// The same of JSON that is parsed already.
    pub(super) fn from_value(domain: TrustDomain, document: &Value) -> Result<Self, Error> {
        let wrong = |detail: &str| Error::BundleDocument { detail: detail.into() };
        let keys = document.get("keys").ok_or_else(|| wrong("`keys` is missing"))?;
        let keys = keys.as_array().ok_or_else(|| wrong("`keys` is not a list"))?;
        let mut roots = Vec::new();
        let mut jwt_authorities = Vec::new();
        for key in keys {
            let text = |name: &str| key.get(name).and_then(Value::as_str);
            if text("use") == Some(JWT_SVID) {
                jwt_authorities.extend(JwtAuthority::from_jwk(key));
                continue;
            }
            if !matches!(text("kty"), Some("EC" | "RSA" | "OKP"))
                || text("use") != Some("x509-svid")
            {
                continue;
            }
            // Only the first value counts (62): the rest would be a chain, and authorities have none.
            let first = key.get("x5c").and_then(Value::as_array).and_then(|values| values.first());
            let Some(encoded) = first else { continue };
            let position = roots.len() + 1;
            let der = encoded.as_str().and_then(|encoded| STANDARD.decode(encoded).ok());
            roots.push(CertificateDer::from(der.ok_or(Error::BundleCertificate { position })?));
        }
        let bundle = TrustBundle { jwt_authorities, ..TrustBundle::checked(domain, roots)? };
        let sequence = match document.get("spiffe_sequence") {
            None => None,
            Some(found) => Some(
                found.as_u64().ok_or_else(|| wrong("`spiffe_sequence` is not a whole number"))?,
            ),
        };
        let hint = match document.get("spiffe_refresh_hint") {
            None => 300,
            Some(found) => found
                .as_u64()
                .ok_or_else(|| wrong("`spiffe_refresh_hint` is not a whole number of seconds"))?,
        };
        Ok(Self { bundle, sequence, refresh_after: Duration::from_secs(hint.clamp(10, 86_400)) })
    }

    /// May this document take the place of `stored`, which was fetched from the same place before?
    ///
    /// # Errors
    /// Its sequence is lower, or gone (67), or the same with other authorities (68): install nothing and tell an operator.
    pub fn succeeds(&self, stored: &Self) -> Result<Succession, Error> {
        let same = self.bundle.has_authorities_of(&stored.bundle);
        match (self.sequence, stored.sequence) {
            (Some(found), Some(stored)) if found < stored => {
                Err(Error::SequenceRollback { found: found.to_string(), stored })
            }
            (None, Some(stored)) => Err(Error::SequenceRollback { found: "none".into(), stored }),
            (Some(sequence), Some(stored)) if sequence == stored && !same => {
                Err(Error::SequenceReused { sequence })
            }
            _ if same => Ok(Succession::Same),
            _ => Ok(Succession::Newer),
        }
    }

    /// The document as JSON.
    ///
    /// # Errors
    /// A root's key is of a kind that JSON Web Keys cannot express here.
    pub fn to_json(&self) -> Result<Value, Error> {
        let keys = self.bundle.roots.iter().enumerate();
        let keys = keys
            .map(|(at, root)| {
                let position = at + 1;
                let mut key = public_jwk(root).ok_or(Error::BundleCertificate { position })?;
                key["use"] = "x509-svid".into();
                key["x5c"] = json!([STANDARD.encode(root)]);
                Ok(key)
            })
            .chain(self.bundle.jwt_authorities.iter().map(|authority| Ok(authority.to_jwk())))
            .collect::<Result<Vec<_>, Error>>()?;
        let mut document = json!({ "keys": keys });
        if let Some(sequence) = self.sequence {
            document["spiffe_sequence"] = sequence.into();
        }
        document["spiffe_refresh_hint"] = self.refresh_after.as_secs().into();
        Ok(document)
    }
}

/// What a fetched bundle document is to the one before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Succession {
    /// The authorities are the same.
    Same,
    /// The authorities changed: install them.
    Newer,
}

/// The certificate's public key as RFC 7517 and RFC 7518 write it.
fn public_jwk(der: &[u8]) -> Option<Value> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let spki = certificate.public_key();
    let text = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    match spki.parsed().ok()? {
        PublicKey::EC(point) => {
            let coordinates = point.data().strip_prefix(&[4])?;
            let curve = match coordinates.len() {
                64 => "P-256",
                96 => "P-384",
                _ => return None,
            };
            let (x, y) = coordinates.split_at(coordinates.len() / 2);
            Some(json!({ "kty": "EC", "crv": curve, "x": text(x), "y": text(y) }))
        }
        PublicKey::RSA(key) => {
            let unsigned = |bytes: &[u8]| text(bytes.strip_prefix(&[0]).unwrap_or(bytes));
            Some(json!({ "kty": "RSA", "n": unsigned(key.modulus), "e": unsigned(key.exponent) }))
        }
        // RFC 8037; x509-parser has no name of its own for Ed25519.
        PublicKey::Unknown(key) if spki.algorithm.algorithm.to_id_string() == "1.3.101.112" => {
            Some(json!({ "kty": "OKP", "crv": "Ed25519", "x": text(key) }))
        }
        _ => None,
    }
}

/// The bundles that we hold, by trust domain. A bundle speaks only for its own domain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrustBundles {
    by_domain: BTreeMap<TrustDomain, TrustBundle>,
}

impl TrustBundles {
    /// The bundle of that trust domain.
    pub fn find(&self, domain: &TrustDomain) -> Option<&TrustBundle> {
        self.by_domain.get(domain)
    }

    /// All bundles.
    pub fn iter(&self) -> impl Iterator<Item = &TrustBundle> {
        self.by_domain.values()
    }

    /// Puts `bundle` in the place of its domain's former one, which is returned.
    pub fn insert(&mut self, bundle: TrustBundle) -> Option<TrustBundle> {
        self.by_domain.insert(bundle.domain.clone(), bundle)
    }

    /// How many trust domains there are.
    pub fn len(&self) -> usize {
        self.by_domain.len()
    }

    /// Nobody is trusted.
    pub fn is_empty(&self) -> bool {
        self.by_domain.is_empty()
    }

    /// Pairs of trust domains whose bundles share a public key: each can then speak for the other, which is for an operator
    /// to know (Trust Domain and Bundle, section 6.2).
    pub fn shared_keys(&self) -> Vec<(TrustDomain, TrustDomain)> {
        let key_of = |root: &CertificateDer<'_>| {
            let (_, certificate) = X509Certificate::from_der(root).ok()?;
            Some(certificate.public_key().raw.to_vec())
        };
        let mut owner: BTreeMap<Vec<u8>, &TrustDomain> = BTreeMap::new();
        let mut shared = Vec::new();
        for bundle in self.by_domain.values() {
            for key in bundle.roots.iter().filter_map(key_of) {
                let first = *owner.entry(key).or_insert(&bundle.domain);
                let pair = (first.clone(), bundle.domain.clone());
                if pair.0 != pair.1 && !shared.contains(&pair) {
                    shared.push(pair);
                }
            }
        }
        shared
    }
}

impl FromIterator<TrustBundle> for TrustBundles {
    fn from_iter<I: IntoIterator<Item = TrustBundle>>(bundles: I) -> Self {
        let by_domain = bundles.into_iter().map(|bundle| (bundle.domain.clone(), bundle)).collect();
        Self { by_domain }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::forge::Forge;

    fn parse(document: &Value) -> Result<BundleDocument, Error> {
        let domain = "a.test".parse().unwrap();
        BundleDocument::parse(domain, document.to_string().as_bytes())
    }

    #[test]
    fn a_bundle_survives_each_of_its_forms() {
        let bundle = Forge::new("a.test").bundle();
        let domain = || bundle.domain.clone();
        let pem = bundle.to_pem();
        assert_eq!(TrustBundle::from_pem(domain(), pem.as_bytes()).unwrap(), bundle);
        assert_eq!(TrustBundle::from_der(domain(), &bundle.to_der()).unwrap(), bundle);
        let document = BundleDocument {
            bundle: bundle.clone(),
            sequence: Some(u64::MAX),
            refresh_after: Duration::from_secs(60),
        };
        let json = document.to_json().unwrap();
        assert_eq!(json["keys"][0]["kty"], "EC");
        assert_eq!(json["keys"][0]["crv"], "P-256");
        assert_eq!(parse(&json).unwrap(), document);
        let text = json.to_string();
        assert_eq!(TrustBundle::from_text(domain(), text.as_bytes()).unwrap(), bundle);
        assert_eq!(TrustBundle::from_text(domain(), pem.as_bytes()).unwrap(), bundle);
    }

    #[test]
    fn rules_56_to_66_tell_which_keys_count() {
        let x5c = STANDARD.encode(&Forge::new("a.test").root);
        let other = STANDARD.encode(&Forge::new("b.test").root);
        let key = json!({ "kty": "EC", "use": "x509-svid", "x5c": [x5c] });
        let with = |name: &str, value: Value| {
            let mut changed = key.clone();
            changed[name] = value;
            changed
        };
        for (rule, entry, counted) in [
            ("63 kid is not required", key.clone(), 1),
            ("59 unknown kty", with("kty", "QQ".into()), 0),
            ("60 missing use", with("use", Value::Null), 0),
            ("60 unknown use", with("use", "sig".into()), 0),
            ("61 use is compared with case", with("use", "X509-SVID".into()), 0),
            ("64 a JWT key never vouches for certificates", with("use", "jwt-svid".into()), 0),
            ("62 x5c missing", with("x5c", Value::Null), 0),
            ("62 x5c empty", with("x5c", json!([])), 0),
            ("62 only the first of x5c", with("x5c", json!([x5c, other])), 1),
            ("65 unknown members", with("colour", "green".into()), 1),
        ] {
            let parsed = parse(&json!({ "keys": [entry], "extra": 1 })).unwrap();
            assert_eq!(parsed.bundle.roots.len(), counted, "{rule}");
        }
        assert!(parse(&json!({})).is_err(), "56 keys missing");
        assert!(parse(&json!({ "keys": 1 })).is_err(), "56 keys no list");
        assert!(parse(&json!({ "keys": [] })).unwrap().bundle.roots.is_empty(), "57");
        let garbage = with("x5c", json!(["AAAA"]));
        assert!(parse(&json!({ "keys": [garbage] })).is_err(), "a root that is none");
        let wide = json!({ "keys": [], "spiffe_sequence": u64::MAX });
        assert_eq!(parse(&wide).unwrap().sequence, Some(u64::MAX), "66");
        for (hint, seconds) in [(0, 10), (60, 60), (1_000_000, 86_400)] {
            let document = json!({ "keys": [], "spiffe_refresh_hint": hint });
            assert_eq!(parse(&document).unwrap().refresh_after.as_secs(), seconds, "69, 70");
        }
        assert_eq!(parse(&json!({ "keys": [] })).unwrap().refresh_after.as_secs(), 300, "69");
    }

    #[test]
    fn a_key_in_two_bundles_is_noticed() {
        let (a, b) = (Forge::new("a.test"), Forge::new("b.test"));
        let mut bundles: TrustBundles = [a.bundle(), b.bundle()].into_iter().collect();
        assert!(bundles.shared_keys().is_empty());
        bundles.insert(TrustBundle { roots: vec![a.root.clone()], ..b.bundle() });
        assert_eq!(bundles.shared_keys(), [(a.domain, b.domain)], "55");
    }

    #[test]
    fn damaged_bundles_say_which_authority_is_none() {
        let bundle = Forge::new("a.test").bundle();
        let mut der = bundle.to_der();
        der.extend([0x30, 0x82]);
        let error = TrustBundle::from_der(bundle.domain.clone(), &der).unwrap_err();
        assert_eq!(error.to_string(), "authority 2 of the bundle is not a certificate");
        assert!(TrustBundle::from_pem(bundle.domain, b"hello").is_err());
    }
}
