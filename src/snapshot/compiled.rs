//! `Snapshot`: one compiled, immutable revision of everything; `CompiledRoute`: what a request finds in it.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::RwLock;

use super::compile::Conditions;
use super::consumers::Consumers;
use super::freshness::AgeLimit;
use super::merge::{self, Links};
use super::router::Router;
use crate::model::{Id, Listeners, Method, Revision};
use crate::mtls::Sites;
use crate::pipeline::{
    Chain, Consumer, Destination, Directory, Exchange, Fault, PathRules, RouteInfo, Side, Target,
    Template, host_of,
};
use crate::policy::{Modes, Policy};
use crate::upstream::Cluster;

/// One compiled revision of everything. An exchange takes one and sees no other.
pub struct Snapshot {
    /// The store's revision that it shows.
    pub revision: Revision,
    /// Who may do what.
    pub policy: Arc<Policy>,
    /// How strictly each door asks for identity. The same `Arc` as long as no `identity_modes` change.
    pub modes: Arc<Modes>,
    /// Who answers public clients. The same `Arc` as long as no certificate changes.
    pub sites: Arc<Sites>,
    /// Credentials to consumers.
    pub consumers: Arc<dyn Directory>,
    /// The global rules: they run before each route's plugins, and where no route matches.
    pub global: Chain,
    pub(super) path_rules: PathRules,
    pub(super) routers: Routers,
    pub(super) people: Arc<Consumers>,
    /// The upstreams that plugins name.
    pub(super) named: Arc<Targets>,
}

/// Upstreams by id, as far as they can serve.
pub(super) type Targets = HashMap<Id, Result<Arc<Target>, Broken>>;

impl std::fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Snapshot").field("revision", &self.revision).finish_non_exhaustive()
    }
}

/// One router a door.
#[derive(Clone, Debug, Default)]
pub(super) struct Routers {
    ingress: Router<Arc<CompiledRoute>>,
    inbound: Router<Arc<CompiledRoute>>,
    outbound: Router<Arc<CompiledRoute>>,
}

impl Routers {
    pub(super) fn of(&self, door: Listeners) -> &Router<Arc<CompiledRoute>> {
        match door {
            Listeners::Ingress => &self.ingress,
            Listeners::Inbound => &self.inbound,
            Listeners::Outbound => &self.outbound,
        }
    }

    pub(super) fn of_mut(&mut self, door: Listeners) -> &mut Router<Arc<CompiledRoute>> {
        match door {
            Listeners::Ingress => &mut self.ingress,
            Listeners::Inbound => &mut self.inbound,
            Listeners::Outbound => &mut self.outbound,
        }
    }
}

/// A request's path that nothing can be matched against: badly encoded, above the root, hiding dots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnreadablePath;

/// A route with everything that it refers to.
#[derive(Debug)]
pub struct CompiledRoute {
    /// What plugins, policies and logs may know of it.
    pub info: Arc<RouteInfo>,
    /// The store's revision of the route itself.
    pub revision: Revision,
    /// Its plugins, its plugin config's and its service's.
    pub chain: Arc<Chain>,
    /// Where its requests go; `None` when it has no upstream, see [`CompiledRoute::cluster_fault`].
    pub cluster: Option<Arc<Cluster>>,
    /// What the upstream's hash ring turns on, where it has one.
    pub hash_key: Option<Template>,
    /// May requests switch to WebSocket?
    pub websocket: bool,
    /// Does it open tunnels for CONNECT?
    pub connect: bool,
    /// Does a plugin find consumers here?
    pub has_auth: bool,
    pub(super) links: Arc<Links>,
    pub(super) merged: MergedChains,
    pub(super) conditions: Option<Arc<Conditions>>,
    pub(super) broken: Option<Box<Broken>>,
    pub(super) no_cluster: Option<Box<Broken>>,
    /// How old its configuration may be, if that is limited.
    pub(super) stale: Option<AgeLimit>,
}

/// Why a route, or a part of it, cannot serve.
#[derive(Clone, Debug)]
pub(super) struct Broken {
    pub(super) status: u16,
    pub(super) cause: String,
}

impl Broken {
    pub(super) fn new(status: u16, cause: impl Into<String>) -> Self {
        Self { status, cause: cause.into() }
    }

    fn fault(&self) -> Fault {
        let sentence = match self.status {
            404 => "404 Route Not Found",
            502 => "the route's upstream is unknown",
            _ => "the route cannot be served as it is configured",
        };
        let Self { status, cause } = self.clone();
        Fault { side: Side::Gateway, status, sentence, cause, retry: false }
    }
}

impl CompiledRoute {
    /// Why the route answers nobody, if so. Asked before its plugins: one of them may be what is missing.
    pub fn fault(&self) -> Option<Fault> {
        if let Some(broken) = &self.broken {
            return Some(broken.fault());
        }
        self.stale.as_ref().and_then(AgeLimit::fault)
    }

    /// Why there is no `cluster`. Asked after the plugins: one of them may have answered.
    pub fn cluster_fault(&self) -> Fault {
        match &self.no_cluster {
            Some(broken) => broken.fault(),
            None => Broken::new(503, "the route has no upstream").fault(),
        }
    }
}

/// A route's plugins with a consumer's.
#[derive(Debug)]
pub struct Merged {
    /// What runs from `access` on.
    pub chain: Chain,
    /// What came with the consumer alone; its `rewrite` runs when the consumer is known.
    pub late: Chain,
}

/// A route's chains merged with consumers', kept from their first use on: as long as neither the route nor the consumer changes,
/// whatever else does.
#[derive(Debug, Default)]
pub(super) struct MergedChains(RwLock<Option<Box<ByConsumer>>>);

type ByConsumer = HashMap<Box<str>, KeptChain>;

/// A merged chain and what it was made of.
#[derive(Debug)]
struct KeptChain {
    own: Arc<Links>,
    group: Option<Arc<Links>>,
    merged: Arc<Merged>,
}

impl KeptChain {
    fn is_of(&self, own: &Arc<Links>, group: Option<&Arc<Links>>) -> bool {
        let same_group = match (&self.group, group) {
            (None, None) => true,
            (Some(kept), Some(group)) => Arc::ptr_eq(kept, group),
            _ => false,
        };
        same_group && Arc::ptr_eq(&self.own, own)
    }
}

/// Beyond this many consumers a route's merged chains are forgotten and made anew as they are used.
const MAX_MERGED: usize = 10_000;

impl Snapshot {
    /// Where a plugin sends requests.
    ///
    /// # Errors
    /// The upstream that it names does not exist, or cannot serve.
    pub fn target(&self, destination: &Destination) -> Result<Arc<Target>, Fault> {
        match destination {
            Destination::Own(target) => Ok(target.clone()),
            Destination::Declared(id) => match self.named.get(id.as_ref()) {
                Some(Ok(target)) => Ok(target.clone()),
                Some(Err(broken)) => Err(broken.fault()),
                None => Err(Broken::new(500, format!("upstream {id} does not exist")).fault()),
            },
        }
    }

    /// The route for the exchange's request, told to the exchange. Allocates only for path parameters and odd paths.
    ///
    /// # Errors
    /// The path cannot be read: no route can match it, and 400 is the answer.
    pub fn route(
        &self,
        door: Listeners,
        exchange: &mut Exchange,
    ) -> Result<Option<&CompiledRoute>, UnreadablePath> {
        exchange.path_rules = self.path_rules;
        let method = Method::bit(exchange.request.method());
        let (route, host, path_at, parameters) = {
            let path = self.path_rules.matched(exchange.request.path()).ok_or(UnreadablePath)?;
            let host = host_of(exchange.request.authority());
            let accept = |route: &Arc<CompiledRoute>| {
                let conditions = route.conditions.as_ref();
                conditions.is_none_or(|conditions| conditions.hold(method, exchange))
            };
            let Some(found) = self.routers.of(door).find(&host, &path, accept) else {
                return Ok(None);
            };
            let text = |value: &[u8]| String::from_utf8_lossy(value).into_owned();
            let parameters: Vec<(String, String)> = found
                .parameters(&path)
                .into_iter()
                .map(|(name, value)| (name.to_owned(), text(value)))
                .collect();
            (found.value, found.host, found.path, parameters)
        };
        exchange.route = Some(route.info.clone());
        exchange.matched_host = host;
        exchange.matched_path = path_at;
        if !parameters.is_empty() {
            exchange.params = parameters;
        }
        Ok(Some(route))
    }

    /// The route's chain merged with the consumer's plugins; `None` when the consumer brings none.
    ///
    /// # Errors
    /// The consumer's group is not there, or is broken: what it would have limited must not pass.
    pub fn chain_for(
        &self,
        route: &CompiledRoute,
        consumer: &Consumer,
    ) -> Result<Option<Arc<Merged>>, Fault> {
        let Some(own) = self.people.links(&consumer.name) else {
            let cause = format!("consumer {} is gone", consumer.name);
            return Err(Broken::new(503, cause).fault());
        };
        let group = match &consumer.group {
            None => None,
            Some(id) => Some(self.people.group(id).map_err(|broken| broken.fault())?),
        };
        if own.is_empty() && group.is_none_or(|group| group.is_empty()) {
            return Ok(None);
        }
        let name = &*consumer.name;
        let kept = route.merged.0.read();
        if let Some(chain) = kept.as_ref().and_then(|kept| kept.get(name))
            && chain.is_of(own, group)
        {
            return Ok(Some(chain.merged.clone()));
        }
        drop(kept);
        let group_links = group.map(|group| &**group);
        let merged = Arc::new(merge::with_consumer(&route.links, own, group_links));
        let chain = KeptChain { own: own.clone(), group: group.cloned(), merged: merged.clone() };
        let mut kept = route.merged.0.write();
        let kept = kept.get_or_insert_default();
        if kept.len() >= MAX_MERGED {
            kept.clear();
        }
        kept.insert(name.into(), chain);
        Ok(Some(merged))
    }
}
