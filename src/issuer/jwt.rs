//! `JwtIssuer`: signs JWT-SVIDs, with keys of its own that change by themselves.
//!
//! A key stands in the bundle for a while before it signs, so that whoever verifies knows it by then, and stays there until the
//! last token it signed has ended. It is kept beside the authority in a file of mode 0600. A file that somebody changes is read
//! again; one that is taken away ends all its keys at once, which is what to do when a key was stolen.

use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::rt::crypto::digest::{SHA256, digest};
use crate::rt::crypto::ecdsa_key;
use crate::rt::crypto::rand::SystemRandom;
use crate::rt::crypto::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair,
    EcdsaSigningAlgorithm, KeyPair,
};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use parking_lot::Mutex;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use zeroize::{Zeroize, Zeroizing};

use super::Error;
use super::authority::write_file;
use crate::identity::{JwtAuthority, SpiffeId, TokenText, TrustDomain};
use crate::rt::{Clock, Live, Publisher};

const FILE: &str = "jwt-keys.json";
/// Clocks of verifiers may lag behind ours: a key outlives its tokens by this.
const GRACE: i64 = 120;
const MAX_TTL: u32 = 86_400;

/// The algorithm of new keys.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum JwtAlgorithm {
    /// ECDSA with P-256 and SHA-256.
    #[default]
    #[serde(rename = "ES256")]
    Es256,
    /// ECDSA with P-384 and SHA-384.
    #[serde(rename = "ES384")]
    Es384,
}

impl JwtAlgorithm {
    const fn name(self) -> &'static str {
        match self {
            Self::Es256 => "ES256",
            Self::Es384 => "ES384",
        }
    }

    const fn curve(self) -> &'static str {
        match self {
            Self::Es256 => "P-256",
            Self::Es384 => "P-384",
        }
    }

    fn signing(self) -> &'static EcdsaSigningAlgorithm {
        match self {
            Self::Es256 => &ECDSA_P256_SHA256_FIXED_SIGNING,
            Self::Es384 => &ECDSA_P384_SHA384_FIXED_SIGNING,
        }
    }
}

/// How JWT-SVIDs are issued.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct JwtSettings {
    /// Seconds that a token lives; at most a day, and never longer than its registration entry's `ttl`.
    #[schemars(range(min = 1, max = 86400))]
    pub ttl_seconds: u32,
    /// Seconds that a key signs before the next one takes over.
    pub key_seconds: u32,
    /// Seconds that a key is published before it signs.
    pub publish_ahead_seconds: u32,
    /// The algorithm of new keys.
    pub algorithm: JwtAlgorithm,
}

impl Default for JwtSettings {
    fn default() -> Self {
        Self {
            ttl_seconds: 300,
            key_seconds: 7 * 86_400,
            publish_ahead_seconds: 3600,
            algorithm: JwtAlgorithm::default(),
        }
    }
}

impl JwtSettings {
    /// # Errors
    /// A number contradicts another; the sentence names the field.
    pub fn check(&self) -> Result<(), String> {
        if !(1..=MAX_TTL).contains(&self.ttl_seconds) {
            return Err(format!("ttl_seconds: {}: expected 1 to 86400", self.ttl_seconds));
        }
        if self.publish_ahead_seconds == 0 || self.publish_ahead_seconds >= self.key_seconds {
            return Err(format!(
                "publish_ahead_seconds: {}: expected at least 1 and less than key_seconds, which is {}",
                self.publish_ahead_seconds, self.key_seconds
            ));
        }
        Ok(())
    }
}

/// A token that was issued.
#[derive(Clone, Debug)]
pub struct IssuedToken {
    /// Whom it names.
    pub id: SpiffeId,
    /// The token.
    pub text: TokenText,
    /// Its `jti`, for the log.
    pub token_id: String,
    /// Its `exp`, seconds since 1970.
    pub expires_at: i64,
}

/// Signs the tokens of a trust domain.
pub struct JwtIssuer {
    domain: TrustDomain,
    clock: Clock,
    /// Where the keys are kept; nowhere when they live in memory.
    path: Option<PathBuf>,
    settings: Mutex<JwtSettings>,
    keys: Publisher<Keys>,
    /// What the file was like when we wrote or read it; held while keys change, so that it happens once.
    seen: Mutex<Option<Seen>>,
}

impl std::fmt::Debug for JwtIssuer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let keys = self.keys.live().load();
        f.debug_struct("JwtIssuer").field("domain", &self.domain).field("keys", &keys).finish()
    }
}

/// The keys of this moment, the earliest first.
#[derive(Debug, Default)]
pub struct Keys(Vec<Arc<SigningKey>>);

struct SigningKey {
    id: String,
    algorithm: JwtAlgorithm,
    /// When it begins to sign, seconds since 1970.
    active_from: i64,
    pair: EcdsaKeyPair,
    pkcs8: Zeroizing<Vec<u8>>,
    public: JwtAuthority,
}

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SigningKey({} from {})", self.id, self.active_from)
    }
}

/// By this a change of the file is noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seen {
    inode: u64,
    size: u64,
    modified: (i64, i64),
}

/// The file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    keys: Vec<StoredKey>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredKey {
    algorithm: JwtAlgorithm,
    active_from: i64,
    /// PKCS#8 in base64.
    private: String,
}

impl Drop for StoredKey {
    fn drop(&mut self) {
        self.private.zeroize();
    }
}

impl JwtIssuer {
    /// An issuer whose keys are gone when it is dropped.
    ///
    /// # Errors
    /// The system gives no random numbers.
    pub(super) fn in_memory(domain: TrustDomain, clock: Clock) -> Result<Self, Error> {
        let made = Self::of(domain, clock, None);
        made.tend()?;
        Ok(made)
    }

    /// An issuer whose keys are kept in `directory`. They are read when they are there; the first one is made when it is needed.
    ///
    /// # Errors
    /// The file is damaged, or everybody may read it.
    pub(super) fn open(domain: TrustDomain, directory: &Path, clock: Clock) -> Result<Self, Error> {
        let path = directory.join(FILE);
        let made = Self::of(domain, clock, Some(path.clone()));
        if let Some(seen) = Seen::of(&path)? {
            *made.seen.lock() = Some(seen);
            made.keys.set(read(&path)?);
        }
        Ok(made)
    }

    fn of(domain: TrustDomain, clock: Clock, path: Option<PathBuf>) -> Self {
        let (keys, _) = Publisher::new(Keys::default());
        let settings = Mutex::new(JwtSettings::default());
        Self { domain, clock, path, settings, keys, seen: Mutex::new(None) }
    }

    /// Issues by these settings from now on.
    pub fn configure(&self, settings: JwtSettings) {
        *self.settings.lock() = settings;
    }

    /// The keys and their successors: a change means that the bundle changed.
    pub fn keys(&self) -> Live<Keys> {
        self.keys.live()
    }

    /// What others need to verify the tokens.
    pub fn authorities(&self) -> Vec<JwtAuthority> {
        self.keys.live().load().0.iter().map(|key| key.public.clone()).collect()
    }

    /// Issues a token that lives as long as the settings say, and not longer than `at_most`.
    ///
    /// # Errors
    /// There is no audience, `id` is of another trust domain or has no path, or the system gives no random numbers.
    pub fn issue(
        &self,
        id: &SpiffeId,
        audiences: &[String],
        at_most: Duration,
    ) -> Result<IssuedToken, Error> {
        if id.trust_domain_name() != self.domain.as_str() {
            return Err(Error::OtherDomain { id: id.clone(), domain: self.domain.clone() });
        }
        if id.path().is_empty() {
            return Err(Error::NoPath { id: id.clone() });
        }
        if audiences.is_empty() || audiences.iter().any(String::is_empty) {
            return Err(Error::NoAudience);
        }
        self.tend()?;
        let now = self.clock.now();
        let keys = self.keys.live().load();
        // The newest that is old enough; the first one there is, when the clock was set back.
        let ready = keys.0.iter().rev().find(|key| key.active_from <= now);
        let key = ready.or(keys.0.first()).ok_or(Error::Random)?;
        let ttl = Duration::from_secs(self.settings.lock().ttl_seconds.into()).min(at_most);
        let expires_at = now.saturating_add(i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX));
        let token_id = uuid::Uuid::new_v4().to_string();
        let header = json!({ "alg": key.algorithm.name(), "kid": key.id, "typ": "JWT" });
        let claims = json!({
            "sub": id.as_str(),
            "aud": audiences,
            "exp": expires_at,
            "iat": now,
            "jti": token_id,
        });
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let mut text = format!("{}.{}", part(&header), part(&claims));
        let signature = key.pair.sign(&SystemRandom::new(), text.as_bytes());
        let signature = signature.map_err(|_| Error::Random)?;
        text.push('.');
        text.push_str(&URL_SAFE_NO_PAD.encode(signature));
        Ok(IssuedToken { id: id.clone(), text: TokenText::new(text), token_id, expires_at })
    }

    /// Brings the keys up to date: the next one made in time, ended ones dropped, a changed file read. To be called now and
    /// then, once a second say; it costs a look at the file.
    ///
    /// # Errors
    /// The first key cannot be made or written. Later failures are logged, and the keys stay as they are.
    pub fn tend(&self) -> Result<(), Error> {
        let mut seen = self.seen.lock();
        let mut keys = self.keys.live().load();
        if let Some(path) = &self.path {
            match Seen::of(path) {
                Ok(found) if found == *seen => {}
                Ok(None) => {
                    tracing::warn!(domain = %self.domain, "the keys of JWT-SVIDs were taken away; their tokens end now");
                    *seen = None;
                    keys = Arc::default();
                }
                Ok(found) => match read(path) {
                    Ok(read) => {
                        *seen = found;
                        keys = Arc::new(read);
                        self.keys.set_arc(keys.clone());
                    }
                    Err(error) => {
                        tracing::error!(%error, "the keys of JWT-SVIDs stay as they were");
                    }
                },
                Err(error) => tracing::error!(%error, "the keys of JWT-SVIDs stay as they were"),
            }
        }
        let settings = *self.settings.lock();
        let now = self.clock.now();
        let Some(next) = keys.next(&settings, now)? else { return Ok(()) };
        let next = Arc::new(next);
        if let Some(path) = &self.path {
            match next.write(path).and_then(|()| Seen::of(path)) {
                Ok(found) => *seen = found,
                Err(error) if keys.0.is_empty() => return Err(error),
                Err(error) => {
                    let cause = std::error::Error::source(&error).map(ToString::to_string);
                    tracing::error!(%error, cause, "the new keys of JWT-SVIDs are only in memory");
                }
            }
        }
        tracing::info!(domain = %self.domain, keys = ?next, "the keys of JWT-SVIDs changed");
        self.keys.set_arc(next);
        Ok(())
    }
}

impl Keys {
    /// What follows these keys now; `None` when nothing changes.
    fn next(&self, settings: &JwtSettings, now: i64) -> Result<Option<Self>, Error> {
        let (ahead, life) =
            (i64::from(settings.publish_ahead_seconds), i64::from(settings.key_seconds));
        let kept_for = i64::from(settings.ttl_seconds) + GRACE;
        // A key may go when its successor has signed for as long as a token lives.
        let is_over = |at: usize| {
            let successor = self.0.get(at + 1);
            successor.is_some_and(|next| next.active_from.saturating_add(kept_for) <= now)
        };
        let mut keys: Vec<_> =
            (0..self.0.len()).filter(|at| !is_over(*at)).map(|at| self.0[at].clone()).collect();
        let first_from = match keys.last() {
            // Nobody can know it yet, whenever it begins.
            None => Some(now),
            Some(last) => {
                let due = last.active_from.saturating_add(life).saturating_sub(ahead) <= now;
                due.then(|| now.saturating_add(ahead))
            }
        };
        let grows = first_from.is_some();
        if let Some(active_from) = first_from {
            keys.push(Arc::new(SigningKey::generate(settings.algorithm, active_from)?));
        }
        Ok((grows || keys.len() != self.0.len()).then_some(Self(keys)))
    }

    fn write(&self, path: &Path) -> Result<(), Error> {
        let stored = Stored {
            keys: self
                .0
                .iter()
                .map(|key| StoredKey {
                    algorithm: key.algorithm,
                    active_from: key.active_from,
                    private: STANDARD.encode(&*key.pkcs8),
                })
                .collect(),
        };
        let failed = |source| Error::Write { path: path.to_owned(), source };
        let text = Zeroizing::new(
            serde_json::to_string_pretty(&stored).map_err(|error| failed(error.into()))?,
        );
        let folder = path.parent().unwrap_or(Path::new("."));
        write_file(folder, FILE, text.as_bytes(), 0o600).map_err(failed)
    }
}

impl SigningKey {
    fn generate(algorithm: JwtAlgorithm, active_from: i64) -> Result<Self, Error> {
        let document = EcdsaKeyPair::generate_pkcs8(algorithm.signing(), &SystemRandom::new());
        let pkcs8 = Zeroizing::new(document.map_err(|_| Error::Random)?.as_ref().to_vec());
        Self::new(algorithm, active_from, pkcs8).ok_or(Error::Random)
    }

    fn new(algorithm: JwtAlgorithm, active_from: i64, pkcs8: Zeroizing<Vec<u8>>) -> Option<Self> {
        let pair = ecdsa_key(algorithm.signing(), &pkcs8).ok()?;
        let coordinates = pair.public_key().as_ref().strip_prefix(&[4])?;
        let (x, y) = coordinates.split_at(coordinates.len() / 2);
        let (x, y) = (URL_SAFE_NO_PAD.encode(x), URL_SAFE_NO_PAD.encode(y));
        let curve = algorithm.curve();
        // RFC 7638: the members in this order, without blanks.
        let thumbprint = format!(r#"{{"crv":"{curve}","kty":"EC","x":"{x}","y":"{y}"}}"#);
        let id = URL_SAFE_NO_PAD.encode(digest(&SHA256, thumbprint.as_bytes()));
        let mut key = Map::new();
        for (name, value) in
            [("kty", "EC"), ("crv", curve), ("x", &x), ("y", &y), ("alg", algorithm.name())]
        {
            key.insert(name.into(), value.into());
        }
        let public = JwtAuthority { key_id: id.clone(), key: Value::Object(key) };
        Some(Self { id, algorithm, active_from, pair, pkcs8, public })
    }
}

impl Seen {
    /// `None` when there is no file.
    fn of(path: &Path) -> Result<Option<Self>, Error> {
        match std::fs::metadata(path) {
            Ok(found) if found.permissions().mode() & 0o007 != 0 => {
                Err(Error::KeyReadable { path: path.to_owned() })
            }
            Ok(found) => Ok(Some(Self {
                inode: found.ino(),
                size: found.size(),
                modified: (found.mtime(), found.mtime_nsec()),
            })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(Error::Read { path: path.to_owned(), source }),
        }
    }
}

fn read(path: &Path) -> Result<Keys, Error> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| Error::Read { path: path.to_owned(), source })?;
    let text = Zeroizing::new(text);
    let damaged = |detail: &str| Error::Damaged { path: path.to_owned(), detail: detail.into() };
    let stored: Stored = serde_json::from_str(&text)
        .map_err(|_| damaged("expected keys with algorithm, active_from and private"))?;
    let mut keys = Vec::with_capacity(stored.keys.len());
    for key in &stored.keys {
        let pkcs8 = STANDARD.decode(key.private.as_bytes()).ok().map(Zeroizing::new);
        let read = pkcs8.and_then(|pkcs8| SigningKey::new(key.algorithm, key.active_from, pkcs8));
        keys.push(Arc::new(read.ok_or_else(|| damaged("a private key is none"))?));
    }
    keys.sort_by_key(|key| key.active_from);
    Ok(Keys(keys))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::forge::Folder;
    use crate::identity::{TokenFlaw, TokenRules, Trust, TrustBundle, TrustBundles};

    const WEB: &str = "spiffe://a.test/web";
    const NOW: i64 = 1_800_000_000;

    fn prove(issuer: &JwtIssuer, token: &str) -> Result<crate::identity::JwtSvid, TokenFlaw> {
        let bundle = TrustBundle {
            jwt_authorities: issuer.authorities(),
            ..TrustBundle::new("a.test".parse().unwrap(), Vec::new())
        };
        let bundles: TrustBundles = [bundle].into_iter().collect();
        Trust::from(bundles).token_verifier().prove(token)
    }

    fn issue(issuer: &JwtIssuer) -> IssuedToken {
        let audiences = ["billing".to_owned()];
        issuer.issue(&WEB.parse().unwrap(), &audiences, Duration::from_secs(3600)).unwrap()
    }

    fn key_of(issuer: &JwtIssuer, token: &IssuedToken) -> String {
        prove(issuer, token.text.reveal()).unwrap().key_id.unwrap()
    }

    #[test]
    fn a_token_is_what_the_specification_asks_for() {
        for algorithm in [JwtAlgorithm::Es256, JwtAlgorithm::Es384] {
            let clock = Clock::fixed(NOW);
            let issuer = JwtIssuer::of("a.test".parse().unwrap(), clock.clone(), None);
            issuer.configure(JwtSettings { algorithm, ..JwtSettings::default() });
            let issued = issue(&issuer);
            let svid = prove(&issuer, issued.text.reveal()).unwrap();
            assert_eq!((svid.id.as_str(), &*svid.audiences), (WEB, &["billing".to_owned()][..]));
            assert_eq!((svid.expires_at, svid.issued_at), (NOW + 300, Some(NOW)));
            assert_eq!(svid.token_id.as_deref(), Some(&*issued.token_id));
            let rules = TokenRules {
                audiences: vec!["billing".into()],
                several_audiences: false,
                leeway: 0,
                max_lifetime: Some(300),
            };
            assert_eq!(svid.judge(&rules, NOW), Ok(()));
            assert_eq!(svid.judge(&rules, NOW + 300), Err(TokenFlaw::Expired));
            // Two tokens are never the same one.
            assert_ne!(issue(&issuer).token_id, issued.token_id);
            let shown = format!("{issued:?} {issuer:?}");
            assert!(!shown.contains(issued.text.reveal().split('.').nth(2).unwrap()), "{shown}");
        }
    }

    #[test]
    fn what_must_not_be_issued_is_refused_and_no_token_outlives_its_entry() {
        let issuer = JwtIssuer::in_memory("a.test".parse().unwrap(), Clock::fixed(NOW)).unwrap();
        let refused = |id: &str, audiences: &[&str]| {
            let audiences: Vec<String> = audiences.iter().map(|&one| one.to_owned()).collect();
            let ttl = Duration::from_secs(60);
            issuer.issue(&id.parse().unwrap(), &audiences, ttl).unwrap_err().to_string()
        };
        assert!(refused("spiffe://b.test/web", &["x"]).contains("not in trust domain a.test"));
        assert!(refused("spiffe://a.test", &["x"]).contains("has no path"));
        assert!(refused(WEB, &[]).contains("audience"));
        assert!(refused(WEB, &["x", ""]).contains("audience"));
        let short =
            issuer.issue(&WEB.parse().unwrap(), &["x".into()], Duration::from_secs(60)).unwrap();
        assert_eq!(short.expires_at, NOW + 60);
    }

    #[test]
    fn a_key_is_published_before_it_signs_and_until_its_last_token_has_ended() {
        let clock = Clock::fixed(NOW);
        let issuer = JwtIssuer::in_memory("a.test".parse().unwrap(), clock.clone()).unwrap();
        issuer.configure(JwtSettings {
            ttl_seconds: 300,
            key_seconds: 10_000,
            publish_ahead_seconds: 1_000,
            ..JwtSettings::default()
        });
        let step = |seconds: i64| {
            clock.advance(seconds);
            issuer.tend().unwrap();
        };
        let count = || issuer.authorities().len();
        let first = key_of(&issuer, &issue(&issuer));
        step(8_999);
        assert_eq!(count(), 1);
        step(1);
        assert_eq!(
            (count(), key_of(&issuer, &issue(&issuer))),
            (2, first.clone()),
            "only published"
        );
        step(999);
        let last = issue(&issuer);
        assert_eq!(key_of(&issuer, &last), first);
        step(1);
        let second = key_of(&issuer, &issue(&issuer));
        assert_ne!(second, first);
        step(300 + GRACE - 1);
        assert_eq!(prove(&issuer, last.text.reveal()).unwrap().key_id.unwrap(), first);
        step(1);
        assert_eq!(count(), 1, "the first one's tokens have all ended");
        assert!(matches!(prove(&issuer, last.text.reveal()), Err(TokenFlaw::UnknownKey { .. })));
    }

    #[test]
    fn keys_are_kept_on_disk_closed_and_a_file_that_goes_takes_them_along() {
        let folder = Folder::new();
        let clock = Clock::fixed(NOW);
        let open = || JwtIssuer::open("a.test".parse().unwrap(), folder.path(), clock.clone());
        let path = folder.path().join(FILE);
        let issuer = open().unwrap();
        assert!(!path.exists(), "to open changes nothing");
        let token = issue(&issuer);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let again = open().unwrap();
        assert_eq!(again.authorities(), issuer.authorities());
        assert_eq!(key_of(&again, &token), key_of(&issuer, &token));

        // The other one rotates: this one takes its keys over.
        clock.advance(7 * 86_400);
        again.tend().unwrap();
        issuer.tend().unwrap();
        assert_eq!(again.authorities(), issuer.authorities());
        assert_eq!(issuer.authorities().len(), 2);

        std::fs::remove_file(&path).unwrap();
        issuer.tend().unwrap();
        assert_eq!(issuer.authorities().len(), 1);
        assert!(matches!(prove(&issuer, token.text.reveal()), Err(TokenFlaw::UnknownKey { .. })));

        let before = issuer.authorities();
        std::fs::write(&path, "{}").unwrap();
        issuer.tend().unwrap();
        assert_eq!(issuer.authorities(), before, "a damaged file changes nothing");
        assert!(open().unwrap_err().to_string().contains("is damaged"));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(open().unwrap_err().to_string().contains("everybody may read"));
    }

    #[test]
    fn settings_that_contradict_each_other_are_refused_by_field() {
        let default = JwtSettings::default();
        assert_eq!(default.check(), Ok(()));
        let refused = |settings: JwtSettings| settings.check().unwrap_err();
        assert!(refused(JwtSettings { ttl_seconds: 0, ..default }).contains("ttl_seconds"));
        assert!(refused(JwtSettings { ttl_seconds: 90_000, ..default }).contains("ttl_seconds"));
        for ahead in [0, default.key_seconds] {
            let wrong = JwtSettings { publish_ahead_seconds: ahead, ..default };
            assert!(refused(wrong).contains("publish_ahead_seconds"));
        }
    }
}
