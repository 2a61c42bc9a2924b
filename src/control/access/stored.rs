//! Admin keys that were made over the Admin API: their hashes lie in the store beside the resources (`/apisix-access/keys/`), so
//! that all control planes know them, and nobody who follows the resources reads them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq;
use tokio::sync::watch;

use super::{Principal, Role, Scope};
use crate::model::Revision;
use crate::rt::Tasks;
use crate::store::{Event, Store, Stored};

/// How long a change waits until it is seen here.
const WITHIN: Duration = Duration::from_secs(5);

/// A key as it is stored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct StoredKey {
    pub(crate) name: String,
    /// SHA-256 of the key, in hex.
    pub(crate) sha256: String,
    pub(crate) role: Role,
    #[serde(default, skip_serializing_if = "Scope::is_open")]
    pub(crate) scope: Scope,
    /// Who made it.
    pub(crate) author: String,
    /// Seconds since 1970.
    pub(crate) created: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) rotated: Option<i64>,
    /// From when on it is no key any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) expires: Option<i64>,
    /// The key before the last rotation, while it is still good.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) previous: Option<Previous>,
}

/// A key that was rotated.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Previous {
    pub(crate) sha256: String,
    /// Until when it is good as well, seconds since 1970.
    pub(crate) until: i64,
}

impl StoredKey {
    fn is(&self, presented: &[u8; 32], now: i64) -> bool {
        let same = |hashed: &str| {
            let mut bytes = [0; 32];
            hex::decode_to_slice(hashed, &mut bytes).is_ok()
                && bool::from(bytes[..].ct_eq(&presented[..]))
        };
        let lives = self.expires.is_none_or(|end| now < end);
        let previous = self.previous.as_ref().filter(|previous| now < previous.until);
        let is_previous = previous.is_some_and(|previous| same(&previous.sha256));
        // Both are compared whatever the first says.
        (same(&self.sha256) | is_previous) && lives
    }
}

/// All stored keys, and the task that follows them.
pub(crate) struct StoredKeys {
    keys: Arc<RwLock<BTreeMap<String, StoredKey>>>,
    reached: watch::Receiver<Revision>,
    folder: String,
    _follower: Tasks,
}

impl StoredKeys {
    /// Begins to follow the keys beside the resources under `prefix`.
    pub(crate) fn follow(store: Arc<dyn Store>, prefix: &str) -> Self {
        let keys = Arc::<RwLock<BTreeMap<String, StoredKey>>>::default();
        let (sender, reached) = watch::channel(0);
        let folder = format!("{prefix}-access/keys/");
        let mut follower = Tasks::new();
        let (into, from) = (keys.clone(), folder.clone());
        follower.add(async move {
            let mut watch = store.watch(&from, 0);
            while let Some(event) = watch.next().await {
                let revision = event.revision();
                match event {
                    Event::Put(stored) => put(&mut into.write(), &from, &stored),
                    Event::Delete { key, .. } => {
                        if let Some(name) = key.strip_prefix(from.as_str()) {
                            into.write().remove(name);
                        }
                    }
                    Event::Reset(listing) => {
                        let mut fresh = BTreeMap::new();
                        listing.entries.iter().for_each(|stored| put(&mut fresh, &from, stored));
                        *into.write() = fresh;
                    }
                }
                sender.send_replace(revision);
            }
        });
        Self { keys, reached, folder, _follower: follower }
    }

    /// Where a key lies.
    pub(crate) fn place(&self, name: &str) -> String {
        format!("{}{name}", self.folder)
    }

    /// Waits until a change is in force here; tells whether it is.
    pub(crate) async fn reaches(&self, revision: Revision) -> bool {
        let mut reached = self.reached.clone();
        let reaches = reached.wait_for(|reached| *reached >= revision);
        matches!(tokio::time::timeout(WITHIN, reaches).await, Ok(Ok(_)))
    }

    /// Whose key hashes to this?
    pub(crate) fn find(&self, presented: &[u8; 32], now: i64) -> Option<Principal> {
        let keys = self.keys.read();
        // All are compared, so that the time tells nothing.
        let found = keys.values().rfind(|key| key.is(presented, now))?;
        Some(Principal { name: found.name.clone(), role: found.role, scope: found.scope.clone() })
    }

    /// All of them, by name.
    pub(crate) fn all(&self) -> Vec<StoredKey> {
        self.keys.read().values().cloned().collect()
    }
}

fn put(keys: &mut BTreeMap<String, StoredKey>, folder: &str, stored: &Stored) {
    let Some(name) = stored.key.strip_prefix(folder) else { return };
    match StoredKey::deserialize(&stored.value) {
        Ok(key) if key.name == name => drop(keys.insert(name.to_owned(), key)),
        // What cannot be read is no key; an older reading of it must not stay one.
        _ => {
            tracing::error!(key = %stored.key, "an admin key in the store cannot be read");
            keys.remove(name);
        }
    }
}
