//! Secrets at rest: a store around a store that encrypts, before they are written, the keys of `ssls`, those that upstreams have
//! for their servers, the tokens of secret managers, and the fields of plugins that APISIX encrypts.
//!
//! AES-256-GCM in envelopes ([`key`]). The resource's key in the store is bound in, so that what was sealed for one resource opens
//! for no other. Values that somebody wrote in clear, and those that APISIX has encrypted, are readable and are sealed at
//! their next write, or by [`Store::reseal`]. References to secrets kept elsewhere are no secrets and stay as they are.

mod apisix;
mod fields;
pub mod key;
mod settings;

use std::sync::Arc;

use async_trait::async_trait;
use serde_json::Value;

use super::image::{Image, Resealed};
use super::{Commit, Error, Event, Expect, Listing, Store, Stored, Watch, Write, Written};
use crate::model::{Revision, SecretReference};

pub use self::apisix::Keyring;
pub use self::key::{SealingKey, SealingRing, is_sealed};
pub use self::settings::{KeySource, SealingSettings};

/// The store around the store.
pub struct Sealed {
    inner: Arc<dyn Store>,
    lock: Arc<Lock>,
}

/// What seals and opens the values of resources.
pub struct Lock {
    ring: SealingRing,
    /// What all keys of resources begin with.
    prefix: String,
}

impl Sealed {
    /// Seals what `inner` keeps under `prefix`.
    pub fn new(inner: Arc<dyn Store>, keys: impl Into<SealingRing>, prefix: &str) -> Self {
        Self { inner, lock: Arc::new(Lock::new(keys, prefix)) }
    }
}

impl Lock {
    /// Seals the resources under `prefix`.
    pub fn new(keys: impl Into<SealingRing>, prefix: &str) -> Self {
        Self { ring: keys.into(), prefix: prefix.to_owned() }
    }

    /// The value of the resource at `place` with its secrets sealed.
    ///
    /// # Errors
    /// The system gives no random bytes.
    pub fn seal(&self, place: &str, value: &Value) -> Result<Value, Error> {
        let mut value = value.clone();
        for text in self.secrets(place, &mut value) {
            if !is_sealed(text) && SecretReference::of(text).is_none() {
                *text = self.ring.seal(place, text)?;
            }
        }
        Ok(value)
    }

    /// Opens what can be opened, in place; tells how many secrets stay closed.
    pub fn open(&self, place: &str, value: &mut Value) -> usize {
        let mut closed = 0;
        for text in self.secrets(place, value) {
            match self.ring.open(place, text) {
                Ok(Some(clear)) => *text = clear,
                Ok(None) => {}
                Err(_) => closed += 1,
            }
        }
        closed
    }

    /// Are all secrets of the value sealed, and with the key that seals now?
    fn is_current(&self, place: &str, value: &mut Value) -> bool {
        let all = self.secrets(place, value);
        all.into_iter()
            .all(|text| self.ring.is_current(text) || SecretReference::of(text).is_some())
    }

    fn unseal(&self, mut stored: Stored) -> Stored {
        if self.open(&stored.key, &mut stored.value) > 0 {
            // It stays as it is: no data plane can use it, and nobody can read it.
            tracing::error!(key = %stored.key, "a secret was sealed with another sealing key");
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
        match place.strip_prefix(&self.prefix) {
            Some(key) => fields::secrets(key, value),
            None => Vec::new(),
        }
    }

    fn unseal_all(&self, mut listing: Listing) -> Listing {
        listing.entries = listing.entries.into_iter().map(|stored| self.unseal(stored)).collect();
        listing
    }
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

    /// As it rests: sealed.
    async fn image(&self, prefix: &str) -> Result<Image, Error> {
        self.inner.image(prefix).await
    }

    async fn reseal(&self) -> Result<Resealed, Error> {
        let image = self.inner.image(&format!("{}/", self.lock.prefix)).await?;
        let mut done = Resealed::default();
        for entry in image.entries {
            let Ok(mut value) = serde_json::from_str::<Value>(&entry.text) else { continue };
            if self.lock.is_current(&entry.key, &mut value) {
                continue;
            }
            if self.lock.open(&entry.key, &mut value) > 0 {
                done.closed.push(entry.key);
                continue;
            }
            let value = self.lock.seal(&entry.key, &value)?;
            let expect = Expect::Revision(entry.modified);
            match self.inner.put(&entry.key, &value, expect, entry.ttl).await {
                // Who wrote in between has sealed it.
                Ok(_) | Err(Error::Conflict) => done.sealed += 1,
                Err(error) => return Err(error),
            }
        }
        Ok(done)
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
    use std::fs;

    use serde_json::json;

    use super::*;
    use crate::store::Expect;
    use crate::store::memory::Memory;

    #[tokio::test]
    async fn private_keys_are_unreadable_at_rest_and_open_for_their_own_resource_only() {
        let inner = Arc::new(Memory::new());
        let folder = std::env::temp_dir().join(format!("wardgate-seal-{}", uuid::Uuid::new_v4()));
        let path = folder.join("sealing-key");
        let sealed = |key: SealingKey| Sealed::new(inner.clone(), key, "/apisix");
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
        assert!(moved["key"].as_str().unwrap().starts_with("wardgate-sealed-"));
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

    #[tokio::test]
    async fn a_key_takes_the_place_of_another_and_what_was_sealed_or_clear_or_apisix_s_follows() {
        let inner = Arc::new(Memory::new());
        let ring = |bytes: &[u8]| {
            let mut keys = bytes.iter().map(|byte| SealingKey::new(&[*byte; 32]));
            SealingRing::new(keys.next().unwrap(), keys)
        };
        let store = |bytes: &[u8]| Sealed::new(inner.clone(), ring(bytes), "/apisix");
        let consumer = json!({"username": "bob", "plugins": {"key-auth": {"key": "bobs"}}});
        let put = async |store: &dyn Store, key: &str, value: &Value, ttl| {
            store.put(key, value, Expect::Anything, ttl).await.unwrap()
        };
        put(&store(b"a"), "/apisix/consumers/bob", &consumer, Some(1000)).await;
        put(&*inner, "/apisix/consumers/clear", &consumer, None).await;
        let mut encrypted = consumer.clone();
        encrypted["plugins"]["key-auth"]["key"] = json!("4y+JvURBE6ZwRbbgaryrhg==");
        put(&*inner, "/apisix/consumers/old", &encrypted, None).await;
        let referring = json!({"plugins": {"key-auth": {"key": "$secret://vault/1/a/b"}}});
        let untouched = put(&store(b"a"), "/apisix/consumers/ref", &referring, None).await;
        let foreign = put(&store(b"x"), "/apisix/consumers/foreign", &consumer, None).await;

        let keyring = Keyring::new(["qeddd145sfvddff3"]).unwrap();
        let both = Sealed::new(inner.clone(), ring(b"ba").reading(keyring), "/apisix");
        for (name, key) in [("bob", "bobs"), ("clear", "bobs"), ("old", "auth-one")] {
            let read = both.get(&format!("/apisix/consumers/{name}")).await.unwrap().unwrap();
            assert_eq!(read.value["plugins"]["key-auth"]["key"], key, "{name}");
        }
        let done = both.reseal().await.unwrap();
        assert_eq!(
            (done.sealed, &done.closed[..]),
            (3, &["/apisix/consumers/foreign".to_owned()][..])
        );
        assert_eq!(both.reseal().await.unwrap().sealed, 0, "nothing is left to do");
        // The old key is no longer needed.
        let new = store(b"b");
        for (name, key) in [("bob", "bobs"), ("clear", "bobs"), ("old", "auth-one")] {
            let place = format!("/apisix/consumers/{name}");
            assert_eq!(
                new.get(&place).await.unwrap().unwrap().value["plugins"]["key-auth"]["key"],
                key
            );
            assert!(!inner.get(&place).await.unwrap().unwrap().value.to_string().contains(key));
        }
        let rest = async |name: &str| {
            inner.get(&format!("/apisix/consumers/{name}")).await.unwrap().unwrap()
        };
        assert_eq!(rest("ref").await, untouched);
        assert_eq!(rest("foreign").await.modified, foreign.modified);
        let image = inner.image("/apisix/").await.unwrap();
        let bob = image.entries.iter().find(|entry| entry.key.ends_with("/bob")).unwrap();
        assert!(bob.ttl.is_some_and(|ttl| (1..=1000).contains(&ttl)), "its end stays");
    }
}
