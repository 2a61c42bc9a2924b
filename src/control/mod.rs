//! The control plane: APISIX's Admin API over a store. Every write is authenticated, judged, tried, and then stored.
//!
//! What it needs from above comes in as traits, so that this room names no plugin, no compiler and no audit file:
//! [`PluginCatalog`], [`Trial`], [`AuditTrail`], [`Convergence`].

pub mod access;
mod answer;
mod api;
mod apply;
mod at_rest;
pub mod canary;
mod certificates;
mod changes;
mod configs;
mod draft;
pub mod history;
mod index;
mod listing;
mod patch;
mod plugins;
mod protos;
mod questions;
mod records;
mod references;
mod revisions;
pub mod serve;
mod sets;
pub mod standalone;
mod turns;
mod validate;
mod wording;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use serde_json::Value;

use crate::audit::Archive;
use crate::identity::SpiffeId;
use crate::model::{Invalid, Rejected, Resource, Revision};
use crate::policy::questions::{Supposed, Walked};
use crate::rt::{Clock, Tasks};
use crate::store::Store;
use crate::sync::fleet::Presence;

use access::{AdminKeys, Limits, Network, Peers, StoredKeys};
use canary::Canaries;
use history::HistorySettings;
use index::Index;
use plugins::Plugins;
use standalone::{Standalone, StandaloneSettings};
use turns::Turns;
use validate::Shapes;

/// Which of a plugin's schemas is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PluginPart {
    /// Its settings on routes, services, plugin configs, groups and global rules; on consumers for plugins without a
    /// credential.
    Config,
    /// What a consumer or credential holds for it.
    Credential,
    /// Its gateway-wide metadata.
    Metadata,
}

/// What the control plane knows of a plugin.
#[derive(Clone, Debug)]
pub struct PluginFacts {
    /// As APISIX spells it.
    pub name: String,
    /// Higher runs earlier.
    pub priority: i32,
    /// The JSON Schema of its settings.
    pub schema: Value,
    /// The JSON Schema of its credentials; only plugins that authenticate have one.
    pub credential: Option<Value>,
    /// The JSON Schema of its metadata.
    pub metadata: Option<Value>,
}

/// All plugins of this build.
pub trait PluginCatalog: Send + Sync {
    /// The plugins' facts; asked once.
    fn plugins(&self) -> Vec<PluginFacts>;

    /// Judges what matches the schema and may still make no sense (a regular expression, two fields that exclude one another).
    /// `config` is without `_meta`.
    ///
    /// # Errors
    /// The sentence for the operator.
    fn check(&self, plugin: &str, part: PluginPart, config: &Value) -> Result<(), String>;
}

/// Tries a write with the data plane's own code before it is stored: what is accepted can run.
pub trait Trial: Send + Sync {
    /// Compiles `candidate` beside `referred` (what it names: upstream, service, plugin config, group, metadata of its
    /// plugins). Does no I/O and keeps nothing.
    ///
    /// # Errors
    /// A data plane would refuse the candidate; the sentence says why.
    fn check(&self, candidate: &Resource, referred: &[Resource]) -> Result<(), Invalid>;

    /// Compiles a whole state, of which some is `changed` and the rest stands already. Does no I/O and keeps nothing. Tells what a
    /// data plane would refuse of all of it.
    fn check_whole(&self, _kept: Vec<Resource>, changed: Vec<Resource>) -> Vec<Rejected> {
        let refused = |candidate: Resource| match self.check(&candidate, &[]) {
            Ok(()) => None,
            Err(Invalid(reason)) => {
                let Resource { kind, id, revision, .. } = candidate;
                Some(Rejected { kind, id, revision, reason })
            }
        };
        changed.into_iter().filter_map(refused).collect()
    }

    /// What a supposed request at this workload would meet among these resources; `None` where there is no router.
    fn walk(
        &self,
        _resources: &[Resource],
        _workload: &SpiffeId,
        _supposed: &Supposed,
    ) -> Option<Walked> {
        None
    }
}

/// One request that changes something, or wanted to.
#[derive(Clone, Debug)]
pub struct AdminRecord<'a> {
    /// Whose key or SPIFFE ID it was; `None` when there was none, or a wrong one.
    pub principal: Option<&'a str>,
    /// Where it came from.
    pub client: SocketAddr,
    /// The method.
    pub method: &'a str,
    /// The path, without its query.
    pub path: &'a str,
    /// The answer's status.
    pub status: u16,
    /// The store's revision that it made.
    pub revision: Option<Revision>,
    /// SHA-256 of the stored JSON, in hex.
    pub digest: Option<String>,
    /// SHA-256 of the JSON before, a line feed, and the JSON after (`null` for nothing), in hex: what exactly was changed.
    pub difference: Option<String>,
    /// Why the caller was not let do it.
    pub reason: Option<String>,
}

/// Where records of administration go.
pub trait AuditTrail: Send + Sync {
    /// Notes a request that was not a mere question, whatever its outcome. Does not wait.
    fn admin(&self, record: &AdminRecord<'_>);
}

/// One data plane, as the publisher sees it.
#[derive(Clone, Debug)]
pub struct DataPlaneState {
    /// Its SPIFFE ID, or another name that tells it from the others.
    pub id: String,
    /// Is its feed connected now?
    pub connected: bool,
    /// The revision that it has acknowledged.
    pub applied: Revision,
    /// Newer revisions that it has acknowledged all the same: they went past a canary push.
    pub beside: Vec<Revision>,
    /// What it did not take.
    pub rejected: Vec<Rejected>,
}

impl DataPlaneState {
    /// Has it acknowledged this revision?
    pub fn has(&self, revision: Revision) -> bool {
        self.applied >= revision || self.beside.contains(&revision)
    }
}

/// How far the data planes are.
pub trait Convergence: Send + Sync {
    /// All data planes that were seen.
    fn data_planes(&self) -> Vec<DataPlaneState>;

    /// How far the data planes of the other control planes over the same store are.
    fn elsewhere(&self) -> Vec<Presence> {
        Vec::new()
    }

    /// What lies in the store and cannot be read: data planes keep the version before, or its place closed.
    fn unreadable(&self) -> Vec<Rejected> {
        Vec::new()
    }
}

/// What a control plane is made of.
pub struct Parts {
    /// Where the declared state rests.
    pub store: Arc<dyn Store>,
    /// What all keys start with.
    pub prefix: String,
    /// Who may administer.
    pub keys: AdminKeys,
    /// Further names of this host.
    pub hosts: Vec<String>,
    /// Who reaches the Admin API, and how.
    pub access: access::Settings,
    /// The plugins.
    pub catalog: Arc<dyn PluginCatalog>,
    /// The trial compiler.
    pub trial: Arc<dyn Trial>,
    /// Where records go.
    pub audit: Arc<dyn AuditTrail>,
    /// How far the data planes are; `None` where there are none.
    pub convergence: Option<Arc<dyn Convergence>>,
    /// The collected decision logs; `None` where they are not kept.
    pub archive: Option<Archive>,
    /// For `create_time` and `update_time`.
    pub clock: Clock,
    /// How much of the past is kept.
    pub history: HistorySettings,
    /// APISIX's API-driven standalone mode: the configuration comes whole, and the store is in memory.
    pub standalone: Option<StandaloneSettings>,
    /// How canary pushes stand; `None` where pushes have none.
    pub canaries: Option<Canaries>,
}

/// A control plane at work. It follows the store from its first moment to its last.
pub struct ControlPlane {
    store: Arc<dyn Store>,
    prefix: String,
    access: Access,
    hosts: Vec<String>,
    plugins: Plugins,
    trial: Arc<dyn Trial>,
    audit: Arc<dyn AuditTrail>,
    convergence: Option<Arc<dyn Convergence>>,
    archive: Option<Archive>,
    clock: Clock,
    revisions_kept: usize,
    standalone: Option<Standalone>,
    canaries: Option<Canaries>,
    shapes: Shapes,
    index: Index,
    /// The newest revision that this process wrote: the index must have seen it before it is asked.
    written: AtomicU64,
    /// Who may write at the same time.
    turns: Turns,
    /// The policies that were asked about last.
    asked: questions::Asked,
    /// Completes the history of what is written past the Admin API.
    _historians: Tasks,
}

/// Who is let in.
struct Access {
    /// Of the settings, and the generated one.
    keys: AdminKeys,
    stored: StoredKeys,
    peers: Peers,
    limits: Limits,
    origins: Vec<String>,
    proxies: Vec<Network>,
}

/// Why a control plane cannot start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A schema of a kind or a plugin is none: a mistake in this build.
    #[error("the schema of {name} cannot be used: {why}")]
    Schema {
        /// Whose schema.
        name: String,
        /// What the validator said.
        why: String,
    },
    /// The settings of access cannot hold what they say.
    #[error("setting {field}: {why}")]
    Access {
        /// The setting.
        field: &'static str,
        /// What was expected.
        why: String,
    },
}

impl ControlPlane {
    /// Puts the parts together and begins to follow the store, on the current tokio runtime. The store need not be reachable
    /// yet.
    ///
    /// # Errors
    /// A schema cannot be used, or the settings of access.
    pub fn new(parts: Parts) -> Result<Arc<Self>, Error> {
        let access = Access::of(parts.access, parts.keys, &parts.store, &parts.prefix)?;
        let index = Index::follow(parts.store.clone(), &parts.prefix);
        let mut historians = Tasks::new();
        // What lives in memory and comes whole has no past of its own.
        let remembers = parts.standalone.is_none();
        for kind in history::COMPLETE.into_iter().filter(|_| remembers) {
            let (store, prefix) = (parts.store.clone(), parts.prefix.clone());
            historians.add(history::follow(store, prefix, kind, parts.clock.clone()));
        }
        if remembers && parts.history.revisions > 0 {
            let (store, prefix) = (parts.store.clone(), parts.prefix.clone());
            historians.add(history::follow_rest(store, prefix, parts.clock.clone()));
        }
        Ok(Arc::new(Self {
            plugins: Plugins::new(parts.catalog)?,
            shapes: Shapes::new()?,
            index,
            store: parts.store,
            prefix: parts.prefix,
            access,
            hosts: parts.hosts,
            trial: parts.trial,
            audit: parts.audit,
            convergence: parts.convergence,
            archive: parts.archive,
            clock: parts.clock,
            revisions_kept: parts.history.revisions,
            standalone: parts.standalone.map(Standalone::new),
            canaries: parts.canaries,
            written: AtomicU64::new(0),
            turns: Turns::new(),
            asked: questions::Asked::default(),
            _historians: historians,
        }))
    }
}

impl Access {
    fn of(
        settings: access::Settings,
        keys: AdminKeys,
        store: &Arc<dyn Store>,
        prefix: &str,
    ) -> Result<Self, Error> {
        settings.check().map_err(|(field, why)| Error::Access { field, why })?;
        let access::Settings {
            peers,
            origins,
            proxies,
            requests_per_second,
            failures_per_minute,
            ..
        } = settings;
        let wrong = |field| move |why| Error::Access { field, why };
        Ok(Self {
            keys,
            stored: StoredKeys::follow(store.clone(), prefix),
            peers: Peers::of(&peers).map_err(wrong("control.access.peers"))?,
            limits: Limits::new(requests_per_second, failures_per_minute),
            origins,
            proxies: access::networks(&proxies).map_err(wrong("control.access.proxies"))?,
        })
    }
}
