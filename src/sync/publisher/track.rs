//! `Track`: one state of everything declared, with who needs what of it. Where pushes have canaries there are two.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use bytes::Bytes;
use foldhash::fast::RandomState;
use serde_json::Value;
use tracing::warn;

use super::state::PlaneId;
use crate::model::{Body, Kind, Rejected, Revision};
use crate::store::Stored;
use crate::sync::delta::{Key, Version};
use crate::sync::scope::{Rules, ScopeId, Scopes, Touched};

/// A state of everything declared.
pub(super) struct Track {
    pub(super) revision: Revision,
    pub(super) resources: HashMap<Key, Published, RandomState>,
    pub(super) unreadable: BTreeMap<Key, Rejected>,
    pub(super) scopes: Scopes,
    pub(super) members: BTreeMap<ScopeId, BTreeSet<PlaneId>>,
}

/// A resource in the version that is published.
pub(super) struct Published {
    pub(super) version: Version,
    pub(super) json: Bytes,
}

impl Published {
    fn of(revision: Revision, json: Bytes) -> Self {
        Self { version: Version::of(revision, &json), json }
    }
}

/// Whom a change concerns.
#[derive(Default)]
pub(super) struct News {
    pub(super) touched: Vec<Touched>,
    /// What could not be read took nothing away from those that had it, wherever they are; now it can, or is gone.
    pub(super) is_mended: bool,
}

/// A stored resource, as far as it can be read.
pub(super) struct Entry {
    pub(super) key: Key,
    published: Published,
    body: Result<Body, String>,
}

pub(super) fn read(prefix: &str, stored: &Stored) -> Option<Entry> {
    // Whatever else lives under the prefix (placeholders, kinds that we do not know) is not ours to publish.
    let key = stored.key.strip_prefix(prefix).and_then(Kind::split_key)?;
    let json = json_text(&stored.value);
    let body = Body::parse(key.0, &stored.value).map_err(|invalid| invalid.to_string());
    Some(Entry { key, published: Published::of(stored.modified, json), body })
}

/// Kinds that every data plane must know of, readable or not, so that it keeps closed what they might have closed.
fn is_for_everybody(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::IdentityPolicies | Kind::IdentityModes | Kind::TrustDomains | Kind::Revocations
    )
}

fn json_text(value: &Value) -> Bytes {
    value.to_string().into()
}

impl Track {
    pub(super) fn new(rules: Rules) -> Self {
        Self {
            revision: 0,
            resources: HashMap::default(),
            unreadable: BTreeMap::new(),
            scopes: Scopes::new(rules),
            members: BTreeMap::new(),
        }
    }

    /// What is here and not among `entries`.
    pub(super) fn gone(&self, entries: &[Entry]) -> BTreeSet<Key> {
        let named: HashSet<&Key, RandomState> = entries.iter().map(|entry| &entry.key).collect();
        let known = self.resources.keys().chain(self.unreadable.keys());
        known.filter(|key| !named.contains(key)).cloned().collect()
    }

    pub(super) fn put(&mut self, Entry { key, mut published, body }: Entry) -> News {
        let known = self.resources.get(&key).map(|known| known.version);
        if known == Some(published.version) {
            return News::default();
        }
        let read = match &body {
            Ok(body) => self.scopes.put(&key, body).map_err(|invalid| invalid.to_string()),
            Err(why) => Err(why.clone()),
        };
        let mut is_mended = false;
        let touched = match read {
            Ok(touched) => {
                is_mended = self.unreadable.remove(&key).is_some();
                touched
            }
            Err(reason) => {
                let (kind, id) = key.clone();
                let revision = published.version.revision;
                warn!(%kind, %id, revision, reason, "a resource of the store cannot be read");
                let rejected = Rejected { kind, id, revision, reason };
                let was_unreadable = self.unreadable.insert(key.clone(), rejected).is_some();
                let before = self.resources.contains_key(&key) && !was_unreadable;
                if before && !is_for_everybody(kind) {
                    return News::default();
                }
                // Whoever would serve a route must know of it, so that no broader one takes its requests.
                match self.closed(kind, &mut published).map(|closed| self.scopes.put(&key, &closed))
                {
                    Some(Ok(touched)) => touched,
                    Some(Err(_)) | None => self.scopes.put_unreadable(&key),
                }
            }
        };
        self.resources.insert(key, published);
        News { touched, is_mended }
    }

    /// What would stand in the place of a resource that cannot be read. Where nobody can tell whose it is, no more than its place
    /// is published: it goes to workloads that it was perhaps not meant for.
    fn closed(&self, kind: Kind, published: &mut Published) -> Option<Body> {
        let value: Value = serde_json::from_slice(&published.json).ok()?;
        let is_pattern = |text: &str| self.scopes.reads_pattern(text);
        let Some(place) = Body::closed_for_all(kind, &value, is_pattern) else {
            return if is_for_everybody(kind) { None } else { Body::closed(kind, &value) };
        };
        *published = Published::of(published.version.revision, json_text(&place));
        Body::parse(kind, &place).ok()
    }

    pub(super) fn delete(&mut self, key: &Key) -> News {
        let is_mended = self.unreadable.remove(key).is_some();
        self.resources.remove(key);
        News { touched: self.scopes.delete(key), is_mended }
    }

    /// The version that somebody of this scope should have, who has `held`.
    pub(super) fn wanted(
        &self,
        scope: ScopeId,
        key: &Key,
        held: Option<Version>,
    ) -> Option<Version> {
        if self.scopes.needs(scope, key) {
            return self.resources.get(key).map(|published| published.version);
        }
        // Nobody can tell whose it is: it takes nothing away.
        held.filter(|_| self.unreadable.contains_key(key))
    }

    pub(super) fn leave(&mut self, scope: ScopeId, plane: PlaneId) {
        if let Some(members) = self.members.get_mut(&scope) {
            members.remove(&plane);
            if members.is_empty() {
                self.members.remove(&scope);
            }
        }
        self.scopes.leave(scope);
    }
}
