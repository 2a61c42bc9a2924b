//! Who may administer: keys with roles. One is generated at the first start; only its hash is kept.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq;

use super::{Principal, Role, Scope};
use crate::model::Redacted;
use crate::rt::crypto::digest::{SHA256, digest};
use crate::rt::crypto::rand::{SecureRandom, SystemRandom};

/// A key that the operator chose.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct KeySettings {
    /// The holder, as records name it.
    #[schemars(length(min = 1, max = 256))]
    pub name: String,
    /// The key: at least 32 characters, better 256 random bits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 32))]
    pub key: Option<Redacted<String>>,
    /// In place of `key`, its SHA-256 in hex: `wardgate admin key generate` makes both.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = "^[0-9a-fA-F]{64}$"))]
    pub sha256: Option<String>,
    /// What its holder may do.
    pub role: Role,
    /// To what; everything when not given.
    #[serde(default, skip_serializing_if = "Scope::is_open")]
    pub scope: Scope,
}

impl KeySettings {
    /// A key in clear, for everything that its role may do.
    pub fn new(name: &str, key: &str, role: Role) -> Self {
        let key = Some(Redacted::new(key.to_owned()));
        Self { name: name.to_owned(), key, sha256: None, role, scope: Scope::default() }
    }
}

/// Why there are no keys to use.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Everybody knows this key.
    #[error("admin key {name:?} is one of the keys that APISIX published; choose a secret one")]
    Published {
        /// The key's name.
        name: String,
    },
    /// It can be guessed.
    #[error("admin key {name:?} has fewer than 32 characters")]
    Short {
        /// The key's name.
        name: String,
    },
    /// It is not said how to know it, or in two ways, or what it may do makes no sense.
    #[error("admin key {name:?}: {why}")]
    Setting {
        /// The key's name.
        name: String,
        /// What was expected.
        why: String,
    },
    /// Two keys of one name, or one key twice: nobody could tell who acted.
    #[error("admin keys: {name:?} is there twice")]
    Twice {
        /// The key's name.
        name: String,
    },
    /// The file with the generated key's hash is not as it was written. Nothing was overwritten.
    #[error(
        "{path} is damaged: expected the hash of the admin key; remove it to have a new key generated"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
    },
    /// The file cannot be read or made.
    #[error("cannot use {path}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The system gives no random bytes.
    #[error("the system gives no random bytes")]
    Random,
}

/// The keys that were printed in APISIX's documentation and default configuration.
const PUBLISHED: [&str; 2] =
    ["edd1c9f034335f136f87ad84b625c8f1", "4054f7cf07e344346cd3f287985e76a2"];

/// What the generated key's holder is called.
const GENERATED: &str = "admin";

/// The file in the state folder that holds the generated key's hash.
const FILE: &str = "admin-key.sha256";

/// All keys, hashed.
#[derive(Debug)]
pub struct AdminKeys {
    keys: Vec<(Redacted<[u8; 32]>, Principal)>,
}

impl AdminKeys {
    /// The keys of the settings alone.
    ///
    /// # Errors
    /// One of them is short, published, or there twice.
    pub fn of(settings: &[KeySettings]) -> Result<Self, Error> {
        let mut all = Self { keys: Vec::new() };
        for KeySettings { name, key, sha256, role, scope } in settings {
            let name = name.clone();
            let wrong = |why: &str| Error::Setting { name: name.clone(), why: why.to_owned() };
            scope.check().map_err(|why| wrong(&why))?;
            let hashed = match (key, sha256) {
                (Some(key), None) => {
                    let text = key.reveal().as_str();
                    if PUBLISHED.contains(&text) {
                        return Err(Error::Published { name });
                    }
                    if text.chars().count() < 32 {
                        return Err(Error::Short { name });
                    }
                    hash(text)
                }
                (None, Some(text)) => {
                    let mut hashed = [0; 32];
                    hex::decode_to_slice(text, &mut hashed)
                        .map_err(|_| wrong("sha256: expected 64 hexadecimal digits"))?;
                    if PUBLISHED.iter().any(|published| hash(published) == hashed) {
                        return Err(Error::Published { name });
                    }
                    hashed
                }
                _ => return Err(wrong("expected either key or sha256")),
            };
            all.add(hashed, Principal { name, role: *role, scope: scope.clone() })?;
        }
        Ok(all)
    }

    /// The keys of the settings and the generated one, whose hash is in `folder`. At the first start there is none: then it
    /// is generated (256 random bits) and returned, to be shown once; nobody can read it again.
    ///
    /// # Errors
    /// A key cannot be used, or the file.
    pub fn open(
        settings: &[KeySettings],
        folder: &Path,
    ) -> Result<(Self, Option<Redacted<String>>), Error> {
        let mut all = Self::of(settings)?;
        let path = folder.join(FILE);
        let (hashed, generated) = match fs::read_to_string(&path) {
            Ok(text) => {
                let hashed = hex::decode(text.trim()).ok().and_then(|bytes| bytes.try_into().ok());
                (hashed.ok_or(Error::Damaged { path })?, None)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let key = generate()?;
                let hashed = hash(&key);
                save(folder, &path, &hashed).map_err(|source| Error::File { path, source })?;
                (hashed, Some(Redacted::new(key)))
            }
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                return Err(Error::Damaged { path });
            }
            Err(source) => return Err(Error::File { path, source }),
        };
        all.add(
            hashed,
            Principal { name: GENERATED.into(), role: Role::Admin, scope: Scope::default() },
        )?;
        Ok((all, generated))
    }

    fn add(&mut self, hashed: [u8; 32], principal: Principal) -> Result<(), Error> {
        let twice = |(other, holder): &(Redacted<[u8; 32]>, Principal)| {
            *other.reveal() == hashed || holder.name == principal.name
        };
        if self.keys.iter().any(twice) {
            return Err(Error::Twice { name: principal.name });
        }
        self.keys.push((Redacted::new(hashed), principal));
        Ok(())
    }

    /// Whose key is this? Takes the same time for every wrong one.
    pub fn find(&self, key: &str) -> Option<&Principal> {
        self.find_hash(&hash(key))
    }

    /// Whose key hashes to this?
    pub(crate) fn find_hash(&self, presented: &[u8; 32]) -> Option<&Principal> {
        let mut found = None;
        for (hashed, principal) in &self.keys {
            if bool::from(hashed.reveal()[..].ct_eq(&presented[..])) {
                found = Some(principal);
            }
        }
        found
    }

    /// Everybody who holds a key.
    pub(crate) fn holders(&self) -> impl Iterator<Item = &Principal> {
        self.keys.iter().map(|(_, principal)| principal)
    }
}

/// A key of 256 random bits.
///
/// # Errors
/// The system gives no random bytes.
pub fn generate() -> Result<String, Error> {
    let mut bytes = [0; 32];
    loop {
        SystemRandom::new().fill(&mut bytes).map_err(|_| Error::Random)?;
        let key = URL_SAFE_NO_PAD.encode(bytes);
        // Given to a command as `--key KEY`, a key that begins with a dash would be taken for another switch.
        if key.starts_with(|first: char| first.is_ascii_alphanumeric()) {
            return Ok(key);
        }
    }
}

/// What is kept of a key. One round of SHA-256: enough for a key of 256 random bits, and for settings that are in clear beside it anyway.
pub fn hash(key: &str) -> [u8; 32] {
    let mut hashed = [0; 32];
    hashed.copy_from_slice(digest(&SHA256, key.as_bytes()).as_ref());
    hashed
}

/// Writes a new file whole or not at all; a file of another process is not overwritten.
fn save(folder: &Path, path: &Path, hashed: &[u8; 32]) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    let new = folder.join(format!("{FILE}.new-{}", std::process::id()));
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    let written = file
        .write_all(format!("{}\n", hex::encode(hashed)).as_bytes())
        .and_then(|()| file.sync_all())
        .and_then(|()| fs::hard_link(&new, path));
    let removed = fs::remove_file(&new);
    written.and(removed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder() -> PathBuf {
        std::env::temp_dir().join(format!("wardgate-keys-{}", uuid::Uuid::new_v4()))
    }

    fn setting(name: &str, key: &str, role: Role) -> KeySettings {
        KeySettings::new(name, key, role)
    }

    #[test]
    fn a_generated_key_can_be_given_on_a_command_line() {
        for _ in 0..500 {
            let key = generate().unwrap();
            assert_eq!(key.len(), 43);
            assert!(key.as_bytes()[0].is_ascii_alphanumeric(), "{key}");
        }
    }

    #[test]
    fn the_generated_key_is_shown_once_and_kept_as_a_hash() {
        let folder = folder();
        let (keys, key) = AdminKeys::open(&[], &folder).unwrap();
        let key = key.unwrap();
        assert_eq!(key.reveal().len(), 43);
        assert_eq!(keys.find(key.reveal()).unwrap().role, Role::Admin);
        assert!(!fs::read_to_string(folder.join(FILE)).unwrap().contains(key.reveal()));
        let (again, none) = AdminKeys::open(&[], &folder).unwrap();
        assert!(none.is_none());
        assert!(again.find(key.reveal()).is_some());
        assert!(again.find("").is_none() && again.find("wrong").is_none());
        assert!(!format!("{again:?}").contains(&hex::encode(hash(key.reveal()))));

        fs::write(folder.join(FILE), "half a ha").unwrap();
        let error = AdminKeys::open(&[], &folder).unwrap_err();
        assert!(matches!(error, Error::Damaged { .. }));
        assert_eq!(fs::read_to_string(folder.join(FILE)).unwrap(), "half a ha");
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn keys_that_can_be_known_are_refused() {
        let long = "0123456789abcdef0123456789abcdef";
        let of = |keys: &[KeySettings]| AdminKeys::of(keys).map(|_| ());
        for published in PUBLISHED {
            let refused = of(&[setting("a", published, Role::Viewer)]);
            assert!(matches!(refused, Err(Error::Published { .. })));
        }
        assert!(matches!(of(&[setting("a", &long[1..], Role::Admin)]), Err(Error::Short { .. })));
        let twice = [setting("a", long, Role::Admin), setting("b", long, Role::Viewer)];
        assert!(matches!(of(&twice), Err(Error::Twice { .. })));
        let keys = AdminKeys::of(&[setting("ops", long, Role::Viewer)]).unwrap();
        let principal =
            Principal { name: "ops".into(), role: Role::Viewer, scope: Scope::default() };
        assert_eq!(keys.find(long), Some(&principal));

        let hashed = |sha256: &str| KeySettings {
            key: None,
            sha256: Some(sha256.into()),
            ..setting("ops", "", Role::Viewer)
        };
        let keys = AdminKeys::of(&[hashed(&hex::encode(hash(long)))]).unwrap();
        assert_eq!(keys.find(long), Some(&principal), "a hash is as good as the key");
        let published = of(&[hashed(&hex::encode(hash(PUBLISHED[0])))]);
        assert!(matches!(published, Err(Error::Published { .. })));
        assert!(matches!(of(&[hashed("abc")]), Err(Error::Setting { .. })));
        let both = KeySettings { key: Some(Redacted::new(long.into())), ..hashed("ab") };
        assert!(matches!(of(&[both]), Err(Error::Setting { .. })));
        let nobody = KeySettings { key: None, ..setting("a", long, Role::Admin) };
        assert!(matches!(of(&[nobody]), Err(Error::Setting { .. })));
    }
}
