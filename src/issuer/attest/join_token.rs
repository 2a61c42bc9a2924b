//! Join tokens: one-time secrets that an operator hands to a machine, kept beside the authority as hashes.
//!
//! A token is two files: its record, and, once somebody has shown it, the mark of its use with the public key that was shown.
//! The mark is made by linking a finished file to its name, which the file system does for one caller only, whoever else tries
//! in this process, in another one, or after a crash; only then is an SVID issued.

use std::fmt;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use crate::rt::crypto::digest::{SHA256, digest};
use crate::rt::crypto::rand::{SecureRandom, SystemRandom};
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::ProofFlaw;
use crate::identity::SpiffeId;
use crate::issuer::{DEFAULT_TTL, Error};

/// What every token begins with, so that scanners for secrets find it.
const PREFIX: &str = "wgj_";
const SECRET_BYTES: usize = 32;

/// The public half of a join token: 16 hexadecimal digits. It stands in records, in file names and in selectors.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TokenId(String);

impl TokenId {
    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for TokenId {
    type Err = ProofFlaw;
    fn from_str(text: &str) -> Result<Self, ProofFlaw> {
        let fits = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        if text.len() == 16 && text.bytes().all(fits) {
            return Ok(Self(text.to_owned()));
        }
        Err(ProofFlaw::Malformed { detail: "the ID is not 16 hexadecimal digits" })
    }
}

impl TryFrom<String> for TokenId {
    type Error = ProofFlaw;
    fn try_from(text: String) -> Result<Self, ProofFlaw> {
        text.parse()
    }
}

impl From<TokenId> for String {
    fn from(id: TokenId) -> Self {
        id.0
    }
}

impl fmt::Display for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a new token is to be good for.
#[derive(Clone, Debug, Default)]
pub struct TokenOrder {
    /// The identity that it gives. None: registration entries with the selector `join_token:ID` say.
    pub spiffe_id: Option<SpiffeId>,
    /// How long it may be shown for the first time.
    pub lifetime: Duration,
    /// How long the SVIDs live; an hour when not given.
    pub svid_ttl: Option<Duration>,
    /// DNS names that the SVIDs also bear.
    pub dns_names: Vec<String>,
}

/// The identity that a token itself gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Whom the SVID names.
    pub spiffe_id: SpiffeId,
    /// How long it lives.
    pub ttl: Duration,
    /// DNS names that it also bears.
    pub dns_names: Vec<String>,
}

/// A token as operators see it: never its secret.
#[derive(Clone, Debug)]
pub struct TokenState {
    /// Its public half.
    pub id: TokenId,
    /// The identity that it gives itself.
    pub spiffe_id: Option<SpiffeId>,
    /// When it can no longer be shown for the first time, seconds since 1970.
    pub expires: i64,
    /// When it was first shown, seconds since 1970.
    pub used: Option<i64>,
}

/// A token's file.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    sha256: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    spiffe_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    svid_seconds: Option<u64>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    dns_names: Vec<String>,
    created: i64,
    expires: i64,
}

/// The mark of a token's use.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Use {
    spki_sha256: String,
    at: i64,
}

/// The join tokens of one authority.
#[derive(Clone, Debug)]
pub struct JoinTokens {
    directory: PathBuf,
}

impl JoinTokens {
    /// Those beside the authority in `authority`. Nothing is made or read yet.
    pub fn of(authority: &Path) -> Self {
        Self { directory: authority.join("join-tokens") }
    }

    /// Makes a token. What is returned is the only copy of its secret. Tokens whose time went by unused are swept away.
    ///
    /// # Errors
    /// The system gives no random numbers, or the files cannot be written.
    pub fn mint(
        &self,
        order: &TokenOrder,
        now: i64,
    ) -> Result<(TokenId, Zeroizing<String>), Error> {
        let random = SystemRandom::new();
        let (mut id, mut secret) = ([0; 8], Zeroizing::new([0; SECRET_BYTES]));
        random.fill(&mut id).map_err(|_| Error::Random)?;
        random.fill(&mut *secret).map_err(|_| Error::Random)?;
        let id = TokenId(hex::encode(id));
        let lifetime = i64::try_from(order.lifetime.as_secs()).unwrap_or(i64::MAX);
        let record = Record {
            sha256: hex::encode(digest(&SHA256, &*secret)),
            spiffe_id: order.spiffe_id.as_ref().map(ToString::to_string),
            svid_seconds: order.svid_ttl.map(|ttl| ttl.as_secs()),
            dns_names: order.dns_names.clone(),
            created: now,
            expires: now.saturating_add(lifetime),
        };
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.directory)
            .map_err(|source| Error::Write { path: self.directory.clone(), source })?;
        self.sweep(now)?;
        let path = self.record_file(&id);
        if !place(&path, &record).map_err(|source| Error::Write { path: path.clone(), source })? {
            return Err(Error::Exists { path });
        }
        let text = Zeroizing::new(hex::encode(secret.as_slice()));
        Ok((id.clone(), Zeroizing::new(format!("{PREFIX}{id}_{}", *text))))
    }

    /// All tokens, by ID.
    ///
    /// # Errors
    /// The directory or a record cannot be read.
    pub fn list(&self) -> Result<Vec<TokenState>, Error> {
        let failed = |source| Error::Read { path: self.directory.clone(), source };
        let entries = match self.directory.read_dir() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(failed)?,
        };
        let mut found = Vec::new();
        for entry in entries {
            let name = entry.map_err(failed)?.file_name();
            let id = name.to_str().and_then(|name| name.strip_suffix(".json"));
            let Some(id) = id.and_then(|id| id.parse::<TokenId>().ok()) else { continue };
            let Some(record) = read::<Record>(&self.record_file(&id))? else { continue };
            found.push(TokenState {
                spiffe_id: record.spiffe_id.and_then(|id| id.parse().ok()),
                expires: record.expires,
                used: read::<Use>(&self.use_file(&id))?.map(|used| used.at),
                id,
            });
        }
        found.sort_by(|one, other| one.id.cmp(&other.id));
        Ok(found)
    }

    /// Takes a token away: it cannot be shown any more, and who enrolled with it is not renewed. `false` when there is none.
    ///
    /// # Errors
    /// The files cannot be removed.
    pub fn revoke(&self, id: &TokenId) -> Result<bool, Error> {
        // The record first: without it nothing is granted. A mark that is left alone keeps the token used.
        let existed = remove(&self.record_file(id))?;
        remove(&self.use_file(id))?;
        Ok(existed)
    }

    /// Whose is the token that was shown, and may it be used now? It is not used up by this.
    ///
    /// # Errors
    /// The flaw; [`ProofFlaw::Unavailable`] when the files cannot be read.
    pub fn check(&self, shown: &str, now: i64) -> Result<(TokenId, Option<Grant>), ProofFlaw> {
        let malformed = |detail| ProofFlaw::Malformed { detail };
        let rest = shown.trim_ascii();
        let rest = rest.strip_prefix(PREFIX).ok_or_else(|| malformed("the beginning"))?;
        let (id, secret) = rest.split_once('_').ok_or_else(|| malformed("no secret"))?;
        let id: TokenId = id.parse()?;
        let mut bytes = Zeroizing::new([0; SECRET_BYTES]);
        hex::decode_to_slice(secret, &mut *bytes).map_err(|_| malformed("the secret"))?;
        let record = self.record(&id)?.ok_or(ProofFlaw::Unknown)?;
        let shown = hex::encode(digest(&SHA256, &*bytes));
        if !bool::from(shown.as_bytes().ct_eq(record.sha256.as_bytes())) {
            return Err(ProofFlaw::Unknown);
        }
        if now >= record.expires {
            return Err(ProofFlaw::Expired);
        }
        let grant = record.grant()?;
        Ok((id, grant))
    }

    /// Uses a token up for the public key with this SHA-256, durably: whatever happens from now on, no other key can use it.
    ///
    /// The same key may use it again while it has not expired: that is the one who asked before and did not get the answer.
    ///
    /// # Errors
    /// It was used with another key; [`ProofFlaw::Unavailable`] when that cannot be found out or written down.
    pub fn use_up(&self, id: &TokenId, spki_sha256: &str, now: i64) -> Result<(), ProofFlaw> {
        let path = self.use_file(id);
        let unavailable =
            |error: &dyn fmt::Display| ProofFlaw::Unavailable { detail: error.to_string() };
        let mine = Use { spki_sha256: spki_sha256.to_owned(), at: now };
        if place(&path, &mine).map_err(|error| unavailable(&error))? {
            return Ok(());
        }
        let used = read::<Use>(&path).map_err(|error| unavailable(&error))?;
        match used {
            Some(used) if used.spki_sha256 == spki_sha256 => Ok(()),
            _ => Err(ProofFlaw::Used),
        }
    }

    /// May who enrolled with this token go on, and with which identity of the token's own?
    ///
    /// # Errors
    /// The token was revoked; [`ProofFlaw::Unavailable`] when that cannot be found out.
    pub fn standing(&self, id: &TokenId) -> Result<Option<Grant>, ProofFlaw> {
        self.record(id)?.ok_or(ProofFlaw::Unknown)?.grant()
    }

    fn record(&self, id: &TokenId) -> Result<Option<Record>, ProofFlaw> {
        read(&self.record_file(id)).map_err(|error| {
            tracing::error!(%error, token = %id, "the join token's record cannot be read");
            ProofFlaw::Unavailable { detail: error.to_string() }
        })
    }

    /// Removes what expired without ever being used.
    fn sweep(&self, now: i64) -> Result<(), Error> {
        for token in self.list()? {
            if token.used.is_none() && token.expires <= now {
                remove(&self.record_file(&token.id))?;
            }
        }
        Ok(())
    }

    fn record_file(&self, id: &TokenId) -> PathBuf {
        self.directory.join(format!("{id}.json"))
    }

    fn use_file(&self, id: &TokenId) -> PathBuf {
        self.directory.join(format!("{id}.used"))
    }
}

impl Record {
    fn grant(&self) -> Result<Option<Grant>, ProofFlaw> {
        let Some(text) = &self.spiffe_id else { return Ok(None) };
        let damaged = |_| ProofFlaw::Unavailable { detail: "its record is damaged".into() };
        let spiffe_id = text.parse().map_err(damaged)?;
        let ttl = self.svid_seconds.map_or(DEFAULT_TTL, Duration::from_secs);
        Ok(Some(Grant { spiffe_id, ttl, dns_names: self.dns_names.clone() }))
    }
}

/// Writes `content` to `path` if nothing is there yet: `false` when something is. The content is complete and on disk before
/// its name exists, and the name is on disk when this returns.
fn place(path: &Path, content: &impl Serialize) -> io::Result<bool> {
    let text = serde_json::to_vec(content).map_err(io::Error::other)?;
    let mut suffix = [0; 8];
    SystemRandom::new().fill(&mut suffix).map_err(io::Error::other)?;
    let fresh = path.with_extension(format!("{}.new", hex::encode(suffix)));
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&fresh)?;
    let placed = file.write_all(&text).and_then(|()| file.sync_all());
    let placed = placed.and_then(|()| match std::fs::hard_link(&fresh, path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(error),
    });
    let _ = std::fs::remove_file(&fresh);
    if let Some(directory) = path.parent() {
        File::open(directory)?.sync_all()?;
    }
    placed
}

/// What a file holds; `None` when it is not there.
fn read<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<Option<T>, Error> {
    match std::fs::read(path) {
        Ok(text) => serde_json::from_slice(&text)
            .map(Some)
            .map_err(|error| Error::Damaged { path: path.to_owned(), detail: error.to_string() }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::Read { path: path.to_owned(), source }),
    }
}

fn remove(path: &Path) -> Result<bool, Error> {
    match std::fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(Error::Write { path: path.to_owned(), source }),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::identity::forge::Folder;

    const NOW: i64 = 1_800_000_000;

    fn order() -> TokenOrder {
        TokenOrder {
            spiffe_id: Some("spiffe://a.test/web".parse().unwrap()),
            lifetime: Duration::from_secs(600),
            ..TokenOrder::default()
        }
    }

    #[test]
    fn a_token_is_good_for_its_identity_its_time_and_one_key() {
        let folder = Folder::new();
        let tokens = JoinTokens::of(folder.path());
        let (id, text) = tokens.mint(&order(), NOW).unwrap();
        let (found, grant) = tokens.check(&format!("{}\n", *text), NOW + 599).unwrap();
        let grant = grant.unwrap();
        assert_eq!((&found, grant.spiffe_id.path(), grant.ttl), (&id, "/web", DEFAULT_TTL));
        assert_eq!(tokens.check(&text, NOW + 600), Err(ProofFlaw::Expired));

        tokens.use_up(&id, "one", NOW).unwrap();
        tokens.use_up(&id, "one", NOW + 1).unwrap();
        // Another process, or this one after a restart.
        let again = JoinTokens::of(folder.path());
        assert_eq!(again.use_up(&id, "other", NOW), Err(ProofFlaw::Used));
        assert_eq!(again.standing(&id).unwrap().as_ref(), Some(&grant));
        assert_eq!(again.list().unwrap()[0].used, Some(NOW));

        assert!(again.revoke(&id).unwrap());
        assert_eq!(tokens.standing(&id), Err(ProofFlaw::Unknown));
        assert_eq!(tokens.check(&text, NOW), Err(ProofFlaw::Unknown));
        assert!(!again.revoke(&id).unwrap());
    }

    #[test]
    fn of_many_who_use_a_token_at_once_one_wins() {
        let folder = Folder::new();
        let tokens = JoinTokens::of(folder.path());
        for _ in 0..20 {
            let (id, _) = tokens.mint(&order(), NOW).unwrap();
            let won = std::thread::scope(|scope| {
                let racing: Vec<_> = (0..8)
                    .map(|key| {
                        let (tokens, id) = (&tokens, &id);
                        scope.spawn(move || tokens.use_up(id, &key.to_string(), NOW).is_ok())
                    })
                    .collect();
                racing.into_iter().map(|one| one.join().unwrap()).collect::<Vec<_>>()
            });
            assert_eq!(won.iter().filter(|won| **won).count(), 1, "{won:?}");
        }
    }

    #[test]
    fn only_hashes_are_kept_and_only_for_the_owner() {
        let folder = Folder::new();
        let tokens = JoinTokens::of(folder.path());
        let (id, text) = tokens.mint(&order(), NOW).unwrap();
        let secret = text.rsplit_once('_').unwrap().1;
        let path = tokens.record_file(&id);
        assert!(!std::fs::read_to_string(&path).unwrap().contains(secret));
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
        let left = std::fs::read_dir(path.parent().unwrap()).unwrap().count();
        assert_eq!(left, 1, "nothing half-written is left");
    }

    #[test]
    fn what_is_no_token_or_another_ones_is_refused() {
        let folder = Folder::new();
        let tokens = JoinTokens::of(folder.path());
        let (id, text) = tokens.mint(&order(), NOW).unwrap();
        let (other, _) = tokens.mint(&order(), NOW).unwrap();
        let secret = text.rsplit_once('_').unwrap().1;
        let wrong = hex::encode([0; 32]);
        for (shown, code) in [
            (String::new(), "token_malformed"),
            ("wgj_".into(), "token_malformed"),
            (format!("wgj_{id}"), "token_malformed"),
            (format!("wgj_{id}_"), "token_malformed"),
            (format!("wgj_../../root_{secret}"), "token_malformed"),
            (format!("wgj_{}_{secret}", id.as_str().to_uppercase()), "token_malformed"),
            (format!("wgj_{id}_{}", &secret[2..]), "token_malformed"),
            (format!("wgj_{id}_{secret}00"), "token_malformed"),
            (format!("wgj_{id}_{wrong}"), "token_unknown"),
            (format!("wgj_{other}_{secret}"), "token_unknown"),
            (format!("wgj_0123456789abcdef_{secret}"), "token_unknown"),
        ] {
            assert_eq!(tokens.check(&shown, NOW).unwrap_err().code(), code, "{shown}");
        }
        std::fs::write(tokens.record_file(&id), "{").unwrap();
        assert_eq!(tokens.check(&text, NOW).unwrap_err().code(), "token_not_checkable");
    }

    #[test]
    fn what_expired_unused_is_swept_away_and_what_was_used_stays() {
        let folder = Folder::new();
        let tokens = JoinTokens::of(folder.path());
        let (used, _) = tokens.mint(&order(), NOW).unwrap();
        let (unused, _) = tokens.mint(&order(), NOW).unwrap();
        tokens.use_up(&used, "one", NOW).unwrap();
        let (fresh, _) = tokens.mint(&order(), NOW + 601).unwrap();
        let left: Vec<TokenId> = tokens.list().unwrap().into_iter().map(|one| one.id).collect();
        assert!(left.contains(&used) && left.contains(&fresh) && !left.contains(&unused));
    }
}
