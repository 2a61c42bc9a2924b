//! JWT-SVIDs: tokens that name a workload to an audience (the JWT-SVID specification; RFC 7515, 7518, 7519).
//!
//! The parser is our own. A general library reads what a JWT may be, which is more than a JWT-SVID may be: unknown members of
//! the header, a member twice, numbers in any form, and each of these has been a way in. Signatures are checked by ring, which
//! has no P-521: ES512 is a lawful algorithm that is refused by name.

use std::collections::{BTreeSet, HashMap};
use std::fmt;

use crate::rt::crypto::digest::{SHA256, digest};
use crate::rt::crypto::signature::{self, RsaPublicKeyComponents, UnparsedPublicKey};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value};
use zeroize::Zeroizing;

use super::{JwtAuthority, SpiffeId, Trust, TrustDomain, spiffe_id, strict_json};

/// Longer tokens are refused before anything of them is decoded.
const MAX_TOKEN: usize = 16 * 1024;
const MAX_HEADER: usize = 2 * 1024;
const MAX_KEY_ID: usize = 256;
/// No clock may be further off than this (122).
pub const MAX_LEEWAY: u8 = 60;

/// Why a token proves nothing. `code` is stable and goes into records; nothing of the token itself is in the sentence.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TokenFlaw {
    /// More than 16 KiB, or a header of more than 2 KiB.
    #[error("the token is too long")]
    TooLong,
    /// Not three parts of base64url (114).
    #[error("the token is not in the compact form of JWS")]
    NotCompact,
    /// A part is not what it should be, or has a member twice: readers would not agree which one counts.
    #[error("the token's {part} cannot be read")]
    Malformed {
        /// `header`, `claims` or `signature`.
        part: &'static str,
    },
    /// `alg` is missing, or none of RS, ES and PS with 256, 384 and 512 (115).
    #[error("the token's algorithm is not one that a JWT-SVID may have")]
    Algorithm,
    /// ES512.
    #[error("the token's algorithm is ES512, which this build cannot verify")]
    UnsupportedAlgorithm,
    /// The header has a member beside alg, kid and typ (116).
    #[error("the token's header has a member that a JWT-SVID may not have")]
    HeaderMember,
    /// `typ` is neither JWT nor JOSE (117).
    #[error("the token is of another type than JWT")]
    Type,
    /// `kid` is empty, too long or no text.
    #[error("the token's key ID is not one")]
    KeyId,
    /// `sub` is missing or no SPIFFE ID of a workload (118).
    #[error("the token's subject is not a workload's SPIFFE ID")]
    Subject(#[source] Option<spiffe_id::Error>),
    /// `aud` is missing, empty or of another form (120).
    #[error("the token names no audience")]
    NoAudience,
    /// `exp` is missing (122).
    #[error("the token does not say when it ends")]
    NoExpiry,
    /// A time that is no whole number of seconds, or negative.
    #[error("the token's {claim} is not a whole number of seconds since 1970")]
    Time {
        /// `exp`, `nbf` or `iat`.
        claim: &'static str,
    },
    /// No bundle for the subject's trust domain, or one without keys for tokens (119).
    #[error("there are no keys for tokens of the subject's trust domain")]
    UnknownTrustDomain,
    /// The trust domain has no key of that ID (125). Newer bundles may have it.
    #[error("the subject's trust domain has no key of the token's key ID")]
    UnknownKey {
        /// Whose keys were looked through.
        domain: TrustDomain,
    },
    /// The key is of another type or curve than the algorithm (124).
    #[error("the token's algorithm does not fit the key")]
    KeyMismatch,
    /// The signature is not the key's.
    #[error("the token's signature is wrong")]
    Signature,
    /// The subject stands in the deny list.
    #[error("the token's subject is denied")]
    Denied,
    /// None of the audiences is ours (120).
    #[error("the token is for another audience")]
    OtherAudience,
    /// More than one audience where only one is allowed (121).
    #[error("the token is for several audiences")]
    SeveralAudiences,
    /// `exp` is past (122).
    #[error("the token has expired")]
    Expired,
    /// `nbf` is in the future (123).
    #[error("the token is not valid yet")]
    NotYetValid,
    /// `iat` is in the future (123).
    #[error("the token was issued in the future")]
    IssuedInFuture,
    /// It lives longer than the configured maximum (123).
    #[error("the token's lifetime is longer than allowed")]
    Lifetime,
}

impl TokenFlaw {
    /// The stable code.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::TooLong => "token_too_long",
            Self::NotCompact => "token_not_compact",
            Self::Malformed { .. } => "token_malformed",
            Self::Algorithm => "token_algorithm",
            Self::UnsupportedAlgorithm => "token_algorithm_unsupported",
            Self::HeaderMember => "token_header_member",
            Self::Type => "token_type",
            Self::KeyId => "token_key_id",
            Self::Subject(_) => "token_subject",
            Self::NoAudience => "token_no_audience",
            Self::NoExpiry => "token_no_expiry",
            Self::Time { .. } => "token_time",
            Self::UnknownTrustDomain => "token_unknown_trust_domain",
            Self::UnknownKey { .. } => "token_unknown_key",
            Self::KeyMismatch => "token_key_mismatch",
            Self::Signature => "token_signature",
            Self::Denied => "token_denied",
            Self::OtherAudience => "token_other_audience",
            Self::SeveralAudiences => "token_several_audiences",
            Self::Expired => "token_expired",
            Self::NotYetValid => "token_not_yet_valid",
            Self::IssuedInFuture => "token_issued_in_future",
            Self::Lifetime => "token_lifetime",
        }
    }
}

/// The text of a token, which is as good as a password while it lives. It prints as the start of its hash, and is wiped when
/// dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct TokenText(Zeroizing<String>);

impl TokenText {
    /// Keeps a token.
    pub fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }

    /// The token itself, for whoever sends it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for TokenText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TokenText(sha256 {})", hash_text(&token_hash(&self.0)))
    }
}

/// SHA-256 of a token: by this it is known in caches and records.
pub(super) fn token_hash(token: &str) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest(&SHA256, token.as_bytes()).as_ref());
    hash
}

/// Eight bytes of a hash: enough to find a token again, nothing to use it with.
pub(super) fn hash_text(hash: &[u8; 32]) -> String {
    hex::encode(&hash[..8])
}

/// What a token has proved: whom a key of the subject's own trust domain names, to whom, and until when.
///
/// It is who the bearer of the token speaks for, never who is at the other end of the connection.
#[derive(Clone)]
pub struct JwtSvid {
    /// `sub`.
    pub id: SpiffeId,
    /// `aud`: at least one.
    pub audiences: Vec<String>,
    /// `exp`, seconds since 1970.
    pub expires_at: i64,
    /// `nbf`, seconds since 1970.
    pub not_before: Option<i64>,
    /// `iat`, seconds since 1970.
    pub issued_at: Option<i64>,
    /// `jti`.
    pub token_id: Option<String>,
    /// `kid`.
    pub key_id: Option<String>,
    /// Eight bytes of the token's SHA-256, lower-case hexadecimal: what records call it.
    pub hash: String,
    /// All claims, those above among them.
    pub claims: Map<String, Value>,
}

impl JwtSvid {
    /// Is it for us, and now?
    ///
    /// # Errors
    /// The rule that it breaks.
    pub fn judge(&self, rules: &TokenRules, now: i64) -> Result<(), TokenFlaw> {
        let ours = |audience: &String| rules.audiences.contains(audience);
        if !self.audiences.iter().any(ours) {
            return Err(TokenFlaw::OtherAudience);
        }
        if self.audiences.len() > 1 && !rules.several_audiences {
            return Err(TokenFlaw::SeveralAudiences);
        }
        let leeway = i64::from(rules.leeway.min(MAX_LEEWAY));
        if self.expires_at.saturating_add(leeway) <= now {
            return Err(TokenFlaw::Expired);
        }
        if self.not_before.is_some_and(|at| at > now.saturating_add(leeway)) {
            return Err(TokenFlaw::NotYetValid);
        }
        if self.issued_at.is_some_and(|at| at > now.saturating_add(leeway)) {
            return Err(TokenFlaw::IssuedInFuture);
        }
        // Without `iat` what is left of its life is all that can be judged.
        let begun = self.issued_at.unwrap_or(now);
        let lifetime = self.expires_at.saturating_sub(begun);
        if rules.max_lifetime.is_some_and(|max| lifetime > i64::from(max)) {
            return Err(TokenFlaw::Lifetime);
        }
        Ok(())
    }
}

/// Without the claims, which are the bearer's and not for logs.
impl fmt::Debug for JwtSvid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JwtSvid")
            .field("id", &self.id)
            .field("hash", &self.hash)
            .field("token_id", &self.token_id)
            .field("expires_at", &self.expires_at)
            .finish_non_exhaustive()
    }
}

/// What is asked of a token beside that it is genuine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenRules {
    /// One of these must stand in `aud`, to the letter.
    pub audiences: Vec<String>,
    /// Takes tokens that are also for others.
    pub several_audiences: bool,
    /// Seconds that our clock and the issuer's may differ; at most 60.
    pub leeway: u8,
    /// Seconds between `iat` (or now, without one) and `exp`.
    pub max_lifetime: Option<u32>,
}

/// The keys for tokens of one [`Trust`], ready for use. Nothing of one trust domain vouches for another.
#[derive(Debug)]
pub struct TokenVerifier {
    domains: HashMap<TrustDomain, Vec<VerifyingKey>>,
    denied: BTreeSet<SpiffeId>,
}

impl TokenVerifier {
    /// Reads the keys of every bundle. A key that no JWT-SVID can be signed with is passed over (59, 124).
    pub fn new(trust: &Trust) -> Self {
        let domains = trust
            .bundles
            .iter()
            .map(|bundle| {
                let keys = bundle.jwt_authorities.iter().filter_map(VerifyingKey::of);
                (bundle.domain.clone(), keys.collect())
            })
            .collect();
        Self { domains, denied: trust.revocation.denied.ids.clone() }
    }

    /// Whom a token names, proved by its signature. Whether it is for us and now is [`JwtSvid::judge`]'s.
    ///
    /// # Errors
    /// The first rule that it breaks.
    pub fn prove(&self, token: &str) -> Result<JwtSvid, TokenFlaw> {
        let read = Token::read(token)?;
        let domain = read.svid.id.trust_domain();
        let keys = self.domains.get(&domain).filter(|keys| !keys.is_empty());
        let keys = keys.ok_or(TokenFlaw::UnknownTrustDomain)?;
        let wanted = read.svid.key_id.as_deref();
        let mut of_id = keys.iter().filter(|key| wanted.is_none_or(|id| key.id == id)).peekable();
        if of_id.peek().is_none() {
            return Err(TokenFlaw::UnknownKey { domain });
        }
        let mut fitting = of_id.filter(|key| key.fits(read.algorithm)).peekable();
        if fitting.peek().is_none() {
            return Err(TokenFlaw::KeyMismatch);
        }
        if !fitting.any(|key| key.verifies(read.algorithm, read.signed, &read.signature)) {
            return Err(TokenFlaw::Signature);
        }
        if self.denied.contains(&read.svid.id) {
            return Err(TokenFlaw::Denied);
        }
        Ok(read.svid)
    }
}

/// What a token says, without a proof: for tokens that came to us over a channel that we trust.
pub(super) fn read_unproved(token: &str) -> Result<JwtSvid, TokenFlaw> {
    Ok(Token::read(token)?.svid)
}

/// The algorithms that a JWT-SVID may have (JWT-SVID, section 2.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Algorithm {
    Rs256,
    Rs384,
    Rs512,
    Ps256,
    Ps384,
    Ps512,
    Es256,
    Es384,
}

impl Algorithm {
    fn named(name: &str) -> Result<Self, TokenFlaw> {
        Ok(match name {
            "RS256" => Self::Rs256,
            "RS384" => Self::Rs384,
            "RS512" => Self::Rs512,
            "PS256" => Self::Ps256,
            "PS384" => Self::Ps384,
            "PS512" => Self::Ps512,
            "ES256" => Self::Es256,
            "ES384" => Self::Es384,
            "ES512" => return Err(TokenFlaw::UnsupportedAlgorithm),
            _ => return Err(TokenFlaw::Algorithm),
        })
    }

    /// How long a signature is, where the algorithm says so (RFC 7518, section 3.4).
    const fn signature_length(self) -> Option<usize> {
        match self {
            Self::Es256 => Some(64),
            Self::Es384 => Some(96),
            _ => None,
        }
    }

    fn rsa(self) -> Option<&'static signature::RsaParameters> {
        Some(match self {
            Self::Rs256 => &signature::RSA_PKCS1_2048_8192_SHA256,
            Self::Rs384 => &signature::RSA_PKCS1_2048_8192_SHA384,
            Self::Rs512 => &signature::RSA_PKCS1_2048_8192_SHA512,
            Self::Ps256 => &signature::RSA_PSS_2048_8192_SHA256,
            Self::Ps384 => &signature::RSA_PSS_2048_8192_SHA384,
            Self::Ps512 => &signature::RSA_PSS_2048_8192_SHA512,
            Self::Es256 | Self::Es384 => return None,
        })
    }
}

/// One key for tokens.
struct VerifyingKey {
    id: String,
    /// The algorithm that the key itself names; it serves no other.
    only: Option<Algorithm>,
    key: PublicKey,
}

enum PublicKey {
    /// An uncompressed point.
    P256(Vec<u8>),
    P384(Vec<u8>),
    Rsa {
        n: Vec<u8>,
        e: Vec<u8>,
    },
}

impl fmt::Debug for VerifyingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VerifyingKey({})", self.id)
    }
}

impl VerifyingKey {
    fn of(authority: &JwtAuthority) -> Option<Self> {
        let text = |name: &str| authority.key.get(name).and_then(Value::as_str);
        let bytes = |name: &str| URL_SAFE_NO_PAD.decode(text(name)?).ok();
        let only = match authority.key.get("alg") {
            None => None,
            Some(name) => Some(Algorithm::named(name.as_str()?).ok()?),
        };
        let key = match (text("kty")?, text("crv")) {
            ("EC", Some("P-256")) => PublicKey::P256(point(&bytes("x")?, &bytes("y")?, 32)?),
            ("EC", Some("P-384")) => PublicKey::P384(point(&bytes("x")?, &bytes("y")?, 48)?),
            ("RSA", _) => {
                PublicKey::Rsa { n: without_zeros(&bytes("n")?), e: without_zeros(&bytes("e")?) }
            }
            _ => return None,
        };
        Some(Self { id: authority.key_id.clone(), only, key })
    }

    fn fits(&self, algorithm: Algorithm) -> bool {
        let by_type = match self.key {
            PublicKey::P256(_) => algorithm == Algorithm::Es256,
            PublicKey::P384(_) => algorithm == Algorithm::Es384,
            PublicKey::Rsa { .. } => algorithm.rsa().is_some(),
        };
        by_type && self.only.is_none_or(|only| only == algorithm)
    }

    fn verifies(&self, algorithm: Algorithm, signed: &[u8], signature: &[u8]) -> bool {
        let curve = |algorithm, point: &[u8]| {
            UnparsedPublicKey::new(algorithm, point).verify(signed, signature).is_ok()
        };
        match &self.key {
            PublicKey::P256(point) => curve(&signature::ECDSA_P256_SHA256_FIXED, point),
            PublicKey::P384(point) => curve(&signature::ECDSA_P384_SHA384_FIXED, point),
            PublicKey::Rsa { n, e } => algorithm.rsa().is_some_and(|parameters| {
                RsaPublicKeyComponents { n, e }.verify(parameters, signed, signature).is_ok()
            }),
        }
    }
}

/// RFC 7518, section 6.2.1.2: coordinates have the full length of the curve's field.
fn point(x: &[u8], y: &[u8], length: usize) -> Option<Vec<u8>> {
    (x.len() == length && y.len() == length).then(|| [&[4], x, y].concat())
}

fn without_zeros(number: &[u8]) -> Vec<u8> {
    let start = number.iter().position(|byte| *byte != 0).unwrap_or(number.len());
    number[start..].to_vec()
}

/// A token that was read and is not believed yet.
struct Token<'t> {
    algorithm: Algorithm,
    signed: &'t [u8],
    signature: Vec<u8>,
    svid: JwtSvid,
}

impl<'t> Token<'t> {
    fn read(token: &'t str) -> Result<Self, TokenFlaw> {
        if token.len() > MAX_TOKEN {
            return Err(TokenFlaw::TooLong);
        }
        let (signed, signature) = token.rsplit_once('.').ok_or(TokenFlaw::NotCompact)?;
        let (header, claims) = signed.split_once('.').ok_or(TokenFlaw::NotCompact)?;
        let in_alphabet = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
        if [header, claims, signature]
            .iter()
            .any(|part| part.is_empty() || !part.bytes().all(in_alphabet))
        {
            return Err(TokenFlaw::NotCompact);
        }
        if header.len() > MAX_HEADER {
            return Err(TokenFlaw::TooLong);
        }
        let (algorithm, key_id) = read_header(&object(header, "header")?)?;
        let part = "signature";
        let signature =
            URL_SAFE_NO_PAD.decode(signature).map_err(|_| TokenFlaw::Malformed { part })?;
        if algorithm.signature_length().is_some_and(|length| length != signature.len()) {
            return Err(TokenFlaw::Signature);
        }
        let svid = read_claims(object(claims, "claims")?, key_id, &token_hash(token))?;
        Ok(Self { algorithm, signed: signed.as_bytes(), signature, svid })
    }
}

fn read_header(header: &Map<String, Value>) -> Result<(Algorithm, Option<String>), TokenFlaw> {
    // Before anything else (115): no other member can have a say in how the token is read.
    let name = header.get("alg").and_then(Value::as_str).ok_or(TokenFlaw::Algorithm)?;
    let algorithm = Algorithm::named(name)?;
    if header.keys().any(|name| !matches!(&**name, "alg" | "kid" | "typ")) {
        return Err(TokenFlaw::HeaderMember);
    }
    match header.get("typ") {
        None => {}
        Some(Value::String(name)) if matches!(&**name, "JWT" | "JOSE") => {}
        Some(_) => return Err(TokenFlaw::Type),
    }
    let key_id = match header.get("kid") {
        None => None,
        Some(Value::String(id)) if (1..=MAX_KEY_ID).contains(&id.len()) => Some(id.clone()),
        Some(_) => return Err(TokenFlaw::KeyId),
    };
    Ok((algorithm, key_id))
}

fn read_claims(
    claims: Map<String, Value>,
    key_id: Option<String>,
    hash: &[u8; 32],
) -> Result<JwtSvid, TokenFlaw> {
    let subject = claims.get("sub").and_then(Value::as_str).ok_or(TokenFlaw::Subject(None))?;
    let id: SpiffeId = subject.parse().map_err(|cause| TokenFlaw::Subject(Some(cause)))?;
    if id.path().is_empty() {
        return Err(TokenFlaw::Subject(None));
    }
    let audiences = match claims.get("aud") {
        Some(Value::String(one)) => vec![one.clone()],
        Some(Value::Array(all)) => {
            let texts = all.iter().map(|one| one.as_str().map(str::to_owned));
            texts.collect::<Option<Vec<_>>>().ok_or(TokenFlaw::NoAudience)?
        }
        _ => return Err(TokenFlaw::NoAudience),
    };
    if audiences.iter().all(String::is_empty) {
        return Err(TokenFlaw::NoAudience);
    }
    let time = |claim: &'static str| match claims.get(claim) {
        None => Ok(None),
        Some(found) => {
            let seconds = found.as_i64().filter(|seconds| *seconds >= 0);
            seconds.map(Some).ok_or(TokenFlaw::Time { claim })
        }
    };
    Ok(JwtSvid {
        audiences,
        expires_at: time("exp")?.ok_or(TokenFlaw::NoExpiry)?,
        not_before: time("nbf")?,
        issued_at: time("iat")?,
        token_id: claims.get("jti").and_then(Value::as_str).map(str::to_owned),
        key_id,
        hash: hash_text(hash),
        id,
        claims,
    })
}

/// An object of JSON in base64url, read without mercy: no member twice, no depth without end, nothing behind it.
fn object(encoded: &str, part: &'static str) -> Result<Map<String, Value>, TokenFlaw> {
    let json = URL_SAFE_NO_PAD.decode(encoded).ok();
    match json.and_then(|json| strict_json::parse(&json).ok()) {
        Some(Value::Object(members)) => Ok(members),
        _ => Err(TokenFlaw::Malformed { part }),
    }
}

#[cfg(test)]
mod tests;
