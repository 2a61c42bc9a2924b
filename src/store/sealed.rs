//! Private keys at rest: a store around a store that encrypts the keys of `ssls`, and those that upstreams have for their
//! servers, before they are written.
//!
//! AES-256-GCM with a random nonce for each writing. The resource's key in the store is bound in, so that what was sealed
//! for one resource opens for no other. Values that somebody wrote in clear stay readable and are sealed at their next write.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use zeroize::Zeroizing;

use super::{Commit, Error, Event, Listing, Store, Stored, Watch, Write, Written};
use crate::model::{Kind, Revision};
use crate::rt::crypto::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use crate::rt::crypto::rand::{SecureRandom, SystemRandom};

/// What a sealed text starts with.
const MARK: &str = "wardgate-sealed-1:";

/// The key that seals. All control planes of one store must have the same.
pub struct SealingKey(LessSafeKey);

impl SealingKey {
    /// A key of 256 bits.
    #[expect(clippy::missing_panics_doc, reason = "the length is right")]
    pub fn new(bytes: &[u8; 32]) -> Self {
        let key = UnboundKey::new(&AES_256_GCM, bytes).expect("the length is right");
        Self(LessSafeKey::new(key))
    }

    /// Reads the key from a file (base64, readable by its owner alone), or makes key and file when there is none.
    ///
    /// # Errors
    /// The file cannot be read or made, or holds something else; then it is left as it is.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let file = |why: &dyn std::fmt::Display| Error::File {
            path: path.to_owned(),
            why: why.to_string(),
        };
        let text = match fs::read_to_string(path) {
            Ok(text) => Zeroizing::new(text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let mut bytes = Zeroizing::new([0; 32]);
                SystemRandom::new()
                    .fill(&mut bytes[..])
                    .map_err(|_| file(&"the system gives no random bytes"))?;
                let text = Zeroizing::new(STANDARD.encode(&bytes[..]) + "\n");
                save(path, &text).map_err(|error| file(&error))?;
                text
            }
            Err(error) => return Err(file(&error)),
        };
        let bytes = STANDARD.decode(text.trim()).map(Zeroizing::new).ok();
        match bytes.as_deref().and_then(|bytes| <&[u8; 32]>::try_from(bytes.as_slice()).ok()) {
            Some(bytes) => Ok(Self::new(bytes)),
            None => Err(Error::Damaged {
                path: path.to_owned(),
                why: "expected 32 bytes in base64".into(),
            }),
        }
    }

    fn seal(&self, place: &str, text: &str) -> Result<String, Error> {
        let mut nonce = [0; NONCE_LEN];
        let failed = || Error::Refused("a private key cannot be sealed".into());
        SystemRandom::new().fill(&mut nonce).map_err(|_| failed())?;
        // With room for the tag: growing would leave a copy of the clear text behind.
        let mut sealed = Vec::with_capacity(text.len() + AES_256_GCM.tag_len());
        sealed.extend_from_slice(text.as_bytes());
        self.0
            .seal_in_place_append_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(place.as_bytes()),
                &mut sealed,
            )
            .map_err(|_| failed())?;
        let mut whole = nonce.to_vec();
        whole.append(&mut sealed);
        Ok(format!("{MARK}{}", STANDARD.encode(whole)))
    }

    fn unseal(&self, place: &str, text: &str) -> Option<String> {
        let mut whole = Zeroizing::new(STANDARD.decode(text.strip_prefix(MARK)?).ok()?);
        let (nonce, sealed) = whole.split_at_mut_checked(NONCE_LEN)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let clear = self.0.open_in_place(nonce, Aad::from(place.as_bytes()), sealed).ok()?;
        Some(std::str::from_utf8(clear).ok()?.to_owned())
    }
}

/// A new file that only its owner reads; another process' file is not overwritten.
fn save(path: &Path, text: &str) -> io::Result<()> {
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        fs::create_dir_all(folder)?;
    }
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".new-{}", std::process::id()));
    let new = PathBuf::from(name);
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    let written = file
        .write_all(text.as_bytes())
        .and_then(|()| file.sync_all())
        .and_then(|()| fs::hard_link(&new, path));
    let removed = fs::remove_file(&new);
    written.and(removed)
}

/// The store around the store.
pub struct Sealed {
    inner: Arc<dyn Store>,
    lock: Arc<Lock>,
}

struct Lock {
    key: SealingKey,
    /// What all keys of resources begin with.
    prefix: String,
}

impl Sealed {
    /// Seals what `inner` keeps under `prefix`.
    pub fn new(inner: Arc<dyn Store>, key: SealingKey, prefix: &str) -> Self {
        Self { inner, lock: Arc::new(Lock { key, prefix: prefix.to_owned() }) }
    }
}

impl Lock {
    fn seal(&self, place: &str, value: &Value) -> Result<Value, Error> {
        let mut value = value.clone();
        for text in self.secrets(place, &mut value) {
            if !text.starts_with(MARK) {
                *text = self.key.seal(place, text)?;
            }
        }
        Ok(value)
    }

    fn unseal(&self, mut stored: Stored) -> Stored {
        for text in self.secrets(&stored.key, &mut stored.value) {
            if text.starts_with(MARK) {
                match self.key.unseal(&stored.key, text) {
                    Some(clear) => *text = clear,
                    // It stays as it is: no data plane can use it, and nobody can read it.
                    None => tracing::error!(
                        key = %stored.key,
                        "a private key was sealed with another sealing key"
                    ),
                }
            }
        }
        stored
    }

    /// The texts of a resource that nobody may read.
    fn secrets<'v>(&self, place: &str, value: &'v mut Value) -> Vec<&'v mut String> {
        // An entry of the history holds what a resource said: `<prefix>-history/<kind>/<id>/<entry>`.
        if let Some(rest) = place.strip_prefix(&self.prefix)
            && let Some(remembered) = rest.strip_prefix("-history")
        {
            return match (remembered.rsplit_once('/'), value.get_mut("value")) {
                (Some((resource, _)), Some(value)) => {
                    self.secrets(&format!("{}{resource}", self.prefix), value)
                }
                _ => Vec::new(),
            };
        }
        let key = place.strip_prefix(&self.prefix).and_then(Kind::split_key);
        let client_key = match key.map(|(kind, _)| kind) {
            Some(Kind::Ssls) => return certificate_keys(value),
            Some(Kind::Upstreams) => "/tls/client_key",
            Some(Kind::Routes | Kind::Services) => "/upstream/tls/client_key",
            _ => return Vec::new(),
        };
        match value.pointer_mut(client_key) {
            Some(Value::String(text)) => vec![text],
            _ => Vec::new(),
        }
    }

    fn unseal_all(&self, mut listing: Listing) -> Listing {
        listing.entries = listing.entries.into_iter().map(|stored| self.unseal(stored)).collect();
        listing
    }
}

fn certificate_keys(value: &mut Value) -> Vec<&mut String> {
    let mut found = Vec::new();
    for (name, field) in value.as_object_mut().into_iter().flatten() {
        match (name.as_str(), field) {
            ("key", Value::String(text)) => found.push(text),
            ("keys", Value::Array(texts)) => {
                found.extend(texts.iter_mut().filter_map(|text| match text {
                    Value::String(text) => Some(text),
                    _ => None,
                }));
            }
            _ => {}
        }
    }
    found
}

#[async_trait]
impl Store for Sealed {
    async fn get(&self, key: &str) -> Result<Option<Stored>, Error> {
        Ok(self.inner.get(key).await?.map(|stored| self.lock.unseal(stored)))
    }

    async fn list(&self, prefix: &str) -> Result<Listing, Error> {
        Ok(self.lock.unseal_all(self.inner.list(prefix).await?))
    }

    async fn commit(&self, mut writes: Vec<Write>) -> Result<Commit, Error> {
        for write in &mut writes {
            if let Some(value) = &mut write.value {
                *value = self.lock.seal(&write.key, value)?;
            }
        }
        let mut commit = self.inner.commit(writes).await?;
        for written in &mut commit.written {
            if let Written::Put(stored) = written {
                *stored = self.lock.unseal(stored.clone());
            }
        }
        Ok(commit)
    }

    fn watch(&self, prefix: &str, from: Revision) -> Watch {
        let mut watch = self.inner.watch(prefix, from);
        let lock = self.lock.clone();
        Watch::fed_by(|events| async move {
            while let Some(event) = watch.next().await {
                let event = match event {
                    Event::Put(stored) => Event::Put(lock.unseal(stored)),
                    Event::Reset(listing) => Event::Reset(lock.unseal_all(listing)),
                    event @ Event::Delete { .. } => event,
                };
                if events.send(event).await.is_err() {
                    return;
                }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::store::Expect;
    use crate::store::memory::Memory;

    #[tokio::test]
    async fn private_keys_are_unreadable_at_rest_and_open_for_their_own_resource_only() {
        let inner = Arc::new(Memory::new());
        let folder = std::env::temp_dir().join(format!("wardgate-seal-{}", uuid::Uuid::new_v4()));
        let path = folder.join("sealing-key");
        let sealed = |key| Sealed::new(inner.clone(), key, "/apisix");
        let store = sealed(SealingKey::open(&path).unwrap());
        let value =
            json!({"sni": "a", "key": "PRIVATE one", "keys": ["PRIVATE two"], "cert": "PUBLIC"});
        let mut watch = store.watch("/apisix/", 1);
        store.put("/apisix/ssls/1", &value, Expect::Anything, None).await.unwrap();
        store
            .put("/apisix/routes/1", &json!({"key": "no secret"}), Expect::Anything, None)
            .await
            .unwrap();

        let rest = inner.get("/apisix/ssls/1").await.unwrap().unwrap().value;
        assert!(!rest.to_string().contains("PRIVATE") && rest["cert"] == "PUBLIC");
        assert_eq!(inner.get("/apisix/routes/1").await.unwrap().unwrap().value["key"], "no secret");
        let tls = json!({"tls": {"client_cert": "PUBLIC", "client_key": "PRIVATE three"}});
        for (place, value) in [
            ("/apisix/upstreams/1", tls.clone()),
            ("/apisix/services/1", json!({"upstream": tls})),
            ("/apisix/routes/2", json!({"upstream": tls})),
        ] {
            store.put(place, &value, Expect::Anything, None).await.unwrap();
            let rest = inner.get(place).await.unwrap().unwrap().value.to_string();
            assert!(!rest.contains("PRIVATE") && rest.contains("PUBLIC"), "{place}: {rest}");
            assert_eq!(store.get(place).await.unwrap().unwrap().value, value);
        }
        // What is remembered of it is as unreadable.
        let entry = json!({"kind": "ssls", "id": "1", "value": value});
        let past = "/apisix-history/ssls/1/entry";
        store.put(past, &entry, Expect::Anything, None).await.unwrap();
        let remembered = inner.get(past).await.unwrap().unwrap().value.to_string();
        assert!(!remembered.contains("PRIVATE") && remembered.contains("PUBLIC"), "{remembered}");
        assert_eq!(store.get(past).await.unwrap().unwrap().value, entry);
        // The same key after a restart opens it, in every way of reading.
        let again = sealed(SealingKey::open(&path).unwrap());
        assert_eq!(again.get("/apisix/ssls/1").await.unwrap().unwrap().value, value);
        assert_eq!(again.list("/apisix/ssls/").await.unwrap().entries[0].value, value);
        let Some(Event::Put(stored)) = watch.next().await else { panic!("a put") };
        assert_eq!(stored.value, value);

        // Another place, or another key: it stays closed.
        inner.put("/apisix/ssls/2", &rest, Expect::Anything, None).await.unwrap();
        let moved = again.get("/apisix/ssls/2").await.unwrap().unwrap().value;
        assert!(moved["key"].as_str().unwrap().starts_with(MARK));
        let other = sealed(SealingKey::new(&[7; 32]));
        let closed = other.get("/apisix/ssls/1").await.unwrap().unwrap().value;
        assert!(!closed.to_string().contains("PRIVATE"));

        // What was written in clear is readable.
        inner.put("/apisix/ssls/3", &value, Expect::Anything, None).await.unwrap();
        assert_eq!(store.get("/apisix/ssls/3").await.unwrap().unwrap().value, value);

        fs::write(&path, "no key").unwrap();
        assert!(matches!(SealingKey::open(&path), Err(Error::Damaged { .. })));
        assert_eq!(fs::read_to_string(&path).unwrap(), "no key");
        fs::remove_dir_all(folder).unwrap();
    }
}
