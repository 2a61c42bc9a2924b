//! Who refers to whom, and which keys are taken: kept up to date by watching the store, so that no check reads everything.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::Value;
use tokio::sync::watch;

use crate::identity::SpiffeId;
use crate::model::{Body, Id, Kind, Revision, SecretReference};
use crate::rt::Tasks;
use crate::rt::crypto::digest::{SHA256, digest};
use crate::store::{Event, Store, Stored};

/// How long a request waits until the index has seen what was written before it.
const WITHIN: Duration = Duration::from_secs(5);

/// A resource's place.
pub(super) type Place = (Kind, Id);

/// Something about a resource by which others must be able to find it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Fact {
    /// It uses that resource.
    Refers(Kind, String),
    /// It holds this key of an auth plugin; hashed, so that the index holds no secret.
    AuthKey { plugin: String, key: [u8; 32] },
    /// It is a global rule with this plugin.
    GlobalPlugin(String),
}

/// The field of each auth plugin that must be unique among all consumers and credentials.
const UNIQUE: [(&str, &str); 9] = [
    ("key-auth", "key"),
    ("spiffe-auth", "spiffe_id"),
    ("basic-auth", "username"),
    ("jwt-auth", "key"),
    ("hmac-auth", "key_id"),
    ("jwe-decrypt", "key"),
    ("wolf-rbac", "appid"),
    ("ldap-auth", "user_dn"),
    ("ldap-auth-advanced", "user_dn"),
];

/// The facts of a resource.
pub(super) fn facts(kind: Kind, id: &Id, value: &Value) -> Vec<Fact> {
    let mut facts = Vec::new();
    let plugins = || value.get("plugins").and_then(Value::as_object).into_iter().flatten();
    for (field, target) in [
        ("upstream_id", Kind::Upstreams),
        ("service_id", Kind::Services),
        ("plugin_config_id", Kind::PluginConfigs),
        ("group_id", Kind::ConsumerGroups),
    ] {
        if let Some(target_id) = value.get(field).and_then(id_text) {
            facts.push(Fact::Refers(target, target_id));
        }
    }
    match kind {
        Kind::Consumers | Kind::Credentials => {
            facts.extend(plugins().filter_map(|(name, config)| auth_key(name, config)));
        }
        Kind::GlobalRules => {
            facts.extend(plugins().map(|(name, _)| Fact::GlobalPlugin(name.clone())));
        }
        _ => {}
    }
    // Whose bundle verifies the server of a bundle endpoint.
    if kind == Kind::TrustDomains
        && let Some(server) = value.pointer("/endpoint/spiffe_id").and_then(Value::as_str)
        && let Ok(server) = server.parse::<SpiffeId>()
        && server.trust_domain_name() != id.as_str()
    {
        facts.push(Fact::Refers(Kind::TrustDomains, server.trust_domain_name().to_owned()));
    }
    if kind == Kind::Credentials
        && let Some((consumer, _)) = id.as_str().split_once('/')
    {
        facts.push(Fact::Refers(Kind::Consumers, consumer.to_owned()));
    }
    if kind == Kind::StreamRoutes
        && let Some(superior) = value.pointer("/protocol/superior_id").and_then(id_text)
    {
        facts.push(Fact::Refers(Kind::StreamRoutes, superior));
    }
    let managers = references(kind, value);
    facts.extend(managers.into_iter().map(|id| Fact::Refers(Kind::Secrets, id)));
    for (name, config) in plugins() {
        if name == "grpc-transcode"
            && let Some(proto) = config.get("proto_id").and_then(id_text)
        {
            facts.push(Fact::Refers(Kind::Protos, proto));
        }
        if name == "traffic-split" {
            facts.extend(split_upstreams(config).map(|id| Fact::Refers(Kind::Upstreams, id)));
        }
    }
    facts
}

/// The managers of secrets that a resource refers to.
fn references(kind: Kind, value: &Value) -> BTreeSet<String> {
    // Only what begins like a reference anywhere is worth reading.
    if kind == Kind::Secrets || SecretReference::first_in(value).is_none() {
        return BTreeSet::new();
    }
    let borne = Body::parse(kind, value).map(|body| body.references()).unwrap_or_default();
    let references = borne.into_iter().filter_map(|one| one.reference.ok());
    references.filter_map(|one| one.manager().map(ToString::to_string)).collect()
}

/// The unique key that a consumer or credential holds for a plugin.
pub(super) fn auth_key(plugin: &str, config: &Value) -> Option<Fact> {
    let (_, field) = UNIQUE.iter().find(|(name, _)| *name == plugin)?;
    let text = config.get(field)?.as_str()?;
    let mut key = [0; 32];
    key.copy_from_slice(digest(&SHA256, text.as_bytes()).as_ref());
    Some(Fact::AuthKey { plugin: plugin.to_owned(), key })
}

fn split_upstreams(config: &Value) -> impl Iterator<Item = String> {
    let list = |value: &Value, field: &str| {
        value.get(field).and_then(Value::as_array).cloned().unwrap_or_default()
    };
    list(config, "rules")
        .into_iter()
        .flat_map(move |rule| list(&rule, "weighted_upstreams"))
        .filter_map(|one| one.get("upstream_id").and_then(id_text))
}

/// An id as it is compared: `1` and `"1"` are the same.
pub(super) fn id_text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

#[derive(Default)]
struct State {
    holders: HashMap<Fact, BTreeSet<Place>>,
    held: HashMap<Place, Vec<Fact>>,
}

impl State {
    fn put(&mut self, place: Place, facts: Vec<Fact>) {
        self.remove(&place);
        for fact in &facts {
            self.holders.entry(fact.clone()).or_default().insert(place.clone());
        }
        if !facts.is_empty() {
            self.held.insert(place, facts);
        }
    }

    fn remove(&mut self, place: &Place) {
        for fact in self.held.remove(place).unwrap_or_default() {
            if let Some(holders) = self.holders.get_mut(&fact) {
                holders.remove(place);
                if holders.is_empty() {
                    self.holders.remove(&fact);
                }
            }
        }
    }
}

/// The index, and the task that follows the store.
pub(super) struct Index {
    state: Arc<Mutex<State>>,
    reached: watch::Receiver<Revision>,
    /// The newest revision that changed something below the prefix.
    latest: Arc<AtomicU64>,
    _follower: Tasks,
}

/// The index has not seen the newest writes in time.
#[derive(Debug)]
pub(super) struct Behind;

impl Index {
    /// Begins to follow all keys below `prefix`.
    pub(super) fn follow(store: Arc<dyn Store>, prefix: &str) -> Self {
        let state = Arc::new(Mutex::new(State::default()));
        let (sender, reached) = watch::channel(0);
        let mut follower = Tasks::new();
        let latest = Arc::<AtomicU64>::default();
        let into = (state.clone(), latest.clone());
        follower.add(follow(store, prefix.to_owned(), into, sender));
        Self { state, reached, latest, _follower: follower }
    }

    /// The newest revision that changed something below the prefix, as far as it was seen here; 0 before the first look.
    pub(super) fn latest(&self) -> Revision {
        self.latest.load(Ordering::Acquire)
    }

    /// Waits until everything up to `revision` is in the index.
    pub(super) async fn reaches(&self, revision: Revision) -> Result<(), Behind> {
        let mut reached = self.reached.clone();
        let reaches = reached.wait_for(|reached| *reached >= revision.max(1));
        match tokio::time::timeout(WITHIN, reaches).await {
            Ok(Ok(_)) => Ok(()),
            _ => Err(Behind),
        }
    }

    /// All resources with this fact, by kind and id.
    pub(super) fn holders(&self, fact: &Fact) -> Vec<Place> {
        let state = self.state.lock();
        state.holders.get(fact).into_iter().flatten().cloned().collect()
    }
}

async fn follow(
    store: Arc<dyn Store>,
    prefix: String,
    (state, latest): (Arc<Mutex<State>>, Arc<AtomicU64>),
    reached: watch::Sender<Revision>,
) {
    let mut watch = store.watch(&format!("{prefix}/"), 0);
    let place = |key: &str| Kind::split_key(key.strip_prefix(prefix.as_str())?);
    while let Some(event) = watch.next().await {
        let revision = event.revision();
        let put = |state: &mut State, stored: &Stored| {
            if let Some((kind, id)) = place(&stored.key) {
                let facts = facts(kind, &id, &stored.value);
                state.put((kind, id), facts);
            }
        };
        match &event {
            Event::Put(stored) => put(&mut state.lock(), stored),
            Event::Delete { key, .. } => {
                if let Some(place) = place(key) {
                    state.lock().remove(&place);
                }
            }
            Event::Reset(listing) => {
                let mut fresh = State::default();
                listing.entries.iter().for_each(|stored| put(&mut fresh, stored));
                *state.lock() = fresh;
            }
        }
        // Others write into the same store: its revision is not ours.
        let changed = match &event {
            Event::Reset(listing) => {
                let all = listing.entries.iter().map(|stored| stored.modified);
                all.max().unwrap_or_default()
            }
            Event::Put(_) | Event::Delete { .. } => revision,
        };
        latest.fetch_max(changed, Ordering::AcqRel);
        reached.send_replace(revision);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::store::Expect;
    use crate::store::memory::Memory;

    #[tokio::test]
    async fn the_index_follows_puts_changes_and_deletes() {
        let store = Arc::new(Memory::new());
        let put = async |key: &str, value: Value| {
            store.put(key, &value, Expect::Anything, None).await.unwrap().modified
        };
        put("/apisix/routes/1", json!({"upstream_id": 7, "service_id": "s"})).await;
        let index = Index::follow(store.clone(), "/apisix");
        let revision = put(
            "/apisix/consumers/bob/credentials/c",
            json!({"plugins": {"key-auth": {"key": "k"}}}),
        )
        .await;
        index.reaches(revision).await.unwrap();
        let holders = |fact: Fact| -> Vec<String> {
            index.holders(&fact).into_iter().map(|(kind, id)| format!("{kind}/{id}")).collect()
        };
        assert_eq!(index.latest(), revision);
        let upstream = Fact::Refers(Kind::Upstreams, "7".into());
        assert_eq!(holders(upstream.clone()), ["routes/1"]);
        let key = auth_key("key-auth", &json!({"key": "k"})).unwrap();
        assert_eq!(holders(key.clone()), ["credentials/bob/credentials/c"]);
        assert_eq!(holders(Fact::Refers(Kind::Consumers, "bob".into())).len(), 1);

        put("/apisix/routes/1", json!({"upstream_id": 8})).await;
        store.delete("/apisix/consumers/bob/credentials/c", Expect::Anything).await.unwrap();
        let split = json!({"plugins": {"traffic-split": {"rules": [{"weighted_upstreams": [{"upstream_id": "9", "weight": 1}, {"weight": 1}]}]}}});
        let revision = put("/apisix/services/1", split).await;
        index.reaches(revision).await.unwrap();
        assert!(holders(upstream).is_empty() && holders(key).is_empty());
        assert_eq!(holders(Fact::Refers(Kind::Upstreams, "9".into())), ["services/1"]);
    }
}
