//! `Snapshot`: one compiled, immutable revision of everything; `CompiledRoute`: what a request finds in it.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::RwLock;

use super::compile::Conditions;
use super::consumers::Consumers;
use super::merge::{self, Links};
use super::router::Router;
use crate::model::{Id, Listeners, Method, Revision, Ssl};
use crate::pipeline::{
    Chain, Consumer, Directory, Exchange, Fault, RouteInfo, Side, Template, host_of, normal_path,
};
use crate::policy::Policy;
use crate::upstream::Cluster;

/// One compiled revision of everything. An exchange takes one and sees no other.
pub struct Snapshot {
    /// The store's revision that it shows.
    pub revision: Revision,
    /// Who may do what.
    pub policy: Arc<Policy>,
    /// Certificates for public clients: the enabled ones. The same `Arc` as long as none of them changes.
    pub certificates: Arc<[Arc<Ssl>]>,
    /// Credentials to consumers.
    pub consumers: Arc<dyn Directory>,
    /// The global rules: they run before each route's plugins, and where no route matches.
    pub global: Chain,
    pub(super) routers: Routers,
    pub(super) people: Arc<Consumers>,
    pub(super) merged: MergedChains,
}

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

/// A route with everything that it refers to.
#[derive(Debug)]
pub struct CompiledRoute {
    /// What plugins, policies and logs may know of it.
    pub info: Arc<RouteInfo>,
    /// The store's revision of the route itself.
    pub revision: Revision,
    /// Its plugins, its plugin config's and its service's.
    pub chain: Chain,
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
    pub(super) links: Links,
    pub(super) conditions: Arc<Conditions>,
    pub(super) broken: Option<Broken>,
    pub(super) no_cluster: Option<Broken>,
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
        self.broken.as_ref().map(Broken::fault)
    }

    /// Why there is no `cluster`. Asked after the plugins: one of them may have answered.
    pub fn cluster_fault(&self) -> Fault {
        let missing = || Broken::new(503, "the route has no upstream");
        self.no_cluster.clone().unwrap_or_else(missing).fault()
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

/// Merged chains, kept from their first use on: route to consumer to chain.
#[derive(Debug, Default)]
pub(super) struct MergedChains {
    kept: RwLock<HashMap<Id, ByConsumer>>,
}

type ByConsumer = HashMap<Box<str>, Arc<Merged>>;

/// Beyond this many consumers a route's merged chains are forgotten and made anew as they are used.
const MAX_MERGED: usize = 10_000;

impl Snapshot {
    /// The route for the exchange's request, told to the exchange. Allocates only for path parameters and odd paths.
    pub fn route(&self, door: Listeners, exchange: &mut Exchange) -> Option<&CompiledRoute> {
        let method = Method::bit(exchange.request.method());
        let (route, host, path_at, parameters) = {
            let path = normal_path(exchange.request.path())?;
            let host = host_of(exchange.request.authority());
            let accept = |route: &Arc<CompiledRoute>| route.conditions.hold(method, exchange);
            let found = self.routers.of(door).find(&host, &path, accept)?;
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
        Some(route)
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
        if own.is_empty() && group.is_none_or(Links::is_empty) {
            return Ok(None);
        }
        let kept = self.merged.kept.read();
        if let Some(merged) = kept.get(&route.info.id).and_then(|of| of.get(&*consumer.name)) {
            return Ok(Some(merged.clone()));
        }
        drop(kept);
        let merged = Arc::new(merge::with_consumer(&route.links, own, group));
        let mut kept = self.merged.kept.write();
        let of_route = kept.entry(route.info.id.clone()).or_default();
        if of_route.len() >= MAX_MERGED {
            of_route.clear();
        }
        Ok(Some(of_route.entry(consumer.name.as_str().into()).or_insert(merged).clone()))
    }
}
