//! `Discovery`: the registries of a process, and the contract that each of them fulfils.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use futures_util::future::join_all;
use serde_json::{Value, json};

use super::board::{Board, Services};
use super::consul::Consul;
use super::consul_kv::ConsulKv;
use super::dns::{self, Dns};
use super::dump::{self, DumpFile};
use super::eureka::Eureka;
use super::kubernetes::{self, Kubernetes};
use super::nacos::Nacos;
use super::service::Service;
use super::settings::Environment;
use super::{Error, Settings};
use crate::model::{DiscoveryType, Invalid, Upstream};
use crate::rt::{Live, causes};
use crate::upstream::Roster;
use crate::upstream::following::Source;

/// A registry: it is followed by one task for the whole process, which writes what it learns on the registry's board.
#[async_trait]
pub(super) trait Registry: Send + Sync + 'static {
    /// A board for what it tells.
    fn board(&self) -> Board;

    /// The service as the board knows it.
    ///
    /// # Errors
    /// The registry can have no such service.
    fn service(&self, service: Service) -> Result<Service, Invalid>;

    /// Follows the registry, for ever.
    async fn run(&self, board: Arc<Board>);

    /// Its settings without secrets.
    fn config(&self) -> Value;

    /// What is known, as APISIX shows it.
    fn shown(&self, known: &Services) -> Value {
        json!({ "config": self.config(), "services": dump::services(known) })
    }

    /// A file with what is known.
    fn dump_file(&self) -> Option<&DumpFile> {
        None
    }
}

struct Followed {
    registry: Box<dyn Registry>,
    board: Arc<Board>,
}

/// The registries of a process. Clones are the same ones.
#[derive(Clone)]
pub struct Discovery {
    registries: Arc<BTreeMap<DiscoveryType, Followed>>,
}

impl std::fmt::Debug for Discovery {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.types()).finish()
    }
}

impl Discovery {
    /// The registries of the settings. Nothing is asked until [`Discovery::run`].
    ///
    /// # Errors
    /// A setting makes no sense; the error names it.
    pub fn new(settings: &Settings) -> Result<Self, Error> {
        Self::with_environment(settings, &|name| std::env::var(name).ok())
    }

    fn with_environment(settings: &Settings, environment: Environment<'_>) -> Result<Self, Error> {
        let mut registries = BTreeMap::new();
        let mut add = |kind: DiscoveryType, registry: Box<dyn Registry>| {
            let board = Arc::new(registry.board());
            if let Some(file) = registry.dump_file() {
                board.remember(file.load());
            }
            registries.insert(kind, Followed { registry, board });
        };
        if let Some(dns) = &settings.dns {
            add(DiscoveryType::Dns, Box::new(Dns::new(dns, environment)?));
        }
        if let Some(consul) = &settings.consul {
            add(DiscoveryType::Consul, Box::new(Consul::new(consul, environment)?));
        }
        if let Some(keys) = &settings.consul_kv {
            add(DiscoveryType::ConsulKv, Box::new(ConsulKv::new(keys, environment)?));
        }
        if let Some(eureka) = &settings.eureka {
            add(DiscoveryType::Eureka, Box::new(Eureka::new(eureka, environment)?));
        }
        if let Some(nacos) = &settings.nacos {
            add(DiscoveryType::Nacos, Box::new(Nacos::new(nacos, environment)?));
        }
        if let Some(clusters) = &settings.kubernetes {
            add(DiscoveryType::Kubernetes, Box::new(Kubernetes::new(clusters, environment)?));
        }
        Ok(Self { registries: Arc::new(registries) })
    }

    /// Follows the registries, for ever.
    pub async fn run(self) {
        let each =
            self.registries.values().map(|followed| followed.registry.run(followed.board.clone()));
        join_all(each).await;
        std::future::pending::<()>().await;
    }

    /// The registries that are followed.
    pub fn types(&self) -> impl Iterator<Item = DiscoveryType> + '_ {
        self.registries.keys().copied()
    }

    /// What is known of a registry's services, for `GET /v1/discovery/<type>/dump` of APISIX's control API. `None`: it is not
    /// followed. No secret is in it.
    pub fn dump(&self, kind: DiscoveryType) -> Option<Value> {
        let followed = self.registries.get(&kind)?;
        Some(followed.registry.shown(&followed.board.known()))
    }

    /// What a registry's dump file has, for `GET /v1/discovery/<type>/show_dump_file`. `None`: it has no such file.
    ///
    /// # Errors
    /// The sentence that the control API answers with status 503.
    pub fn dump_file(&self, kind: DiscoveryType) -> Option<Result<Value, String>> {
        let file = self.registries.get(&kind)?.registry.dump_file()?;
        Some(file.contents().map_err(|error| causes(&error)))
    }
}

/// Who names the nodes of an upstream that names a service; `None` for one that does not.
///
/// # Errors
/// The registry is not set up here, or can have no such service. Who has no registries, as a control plane, takes all types.
pub(in crate::upstream) fn source(
    upstream: &Upstream,
    roster: &Roster,
) -> Result<Option<Source>, Invalid> {
    let (name, kind) = match (&upstream.service_name, upstream.discovery_type) {
        (None, None) if upstream.discovery_args.is_none() => return Ok(None),
        (None, None) => return Err(Invalid::new("discovery_args: needs service_name beside it")),
        (Some(_), None) => {
            return Err(Invalid::new("discovery_type: required beside service_name"));
        }
        (None, Some(_)) => {
            return Err(Invalid::new("service_name: required beside discovery_type"));
        }
        (Some(name), Some(kind)) => (name, kind),
    };
    if upstream.nodes.is_some() {
        return Err(Invalid::new("nodes: expected either nodes or service_name"));
    }
    if kind != DiscoveryType::Nacos && upstream.discovery_args.is_some() {
        return Err(Invalid(format!("discovery_args: {kind} takes none")));
    }
    match kind {
        DiscoveryType::Kubernetes => kubernetes::check_name(name)?,
        DiscoveryType::Dns => drop(dns::Place::parse(name)?),
        _ => {}
    }
    let nothing = Source { found: Live::fixed(None), held: Arc::new(()) };
    let Some(discovery) = roster.discovery() else { return Ok(Some(nothing)) };
    let Some(followed) = discovery.registries.get(&kind) else {
        return Err(Invalid(format!(
            "discovery_type: {kind} is not among the settings of this process (discovery.{kind})"
        )));
    };
    let service = followed.registry.service(Service::of(name, upstream))?;
    Ok(Some(match roster.attends() {
        true => followed.board.follow(service),
        false => nothing,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(discovery: Option<Value>, upstream: Value) -> Result<bool, String> {
        let roster = Roster::default();
        let roster = match discovery {
            None => roster,
            Some(settings) => {
                let settings = serde_json::from_value(settings).unwrap();
                roster.with_discovery(Discovery::new(&settings).unwrap())
            }
        };
        let upstream = serde_json::from_value(upstream).map_err(|error| error.to_string())?;
        source(&upstream, &roster).map(|source| source.is_some()).map_err(|error| error.0)
    }

    #[test]
    fn a_service_is_taken_when_its_registry_is_set_up_and_by_whoever_has_none() {
        let consul = json!({"consul": {"servers": ["http://127.0.0.1:8500"]}});
        let upstream = json!({"service_name": "a", "discovery_type": "consul"});
        assert_eq!(judged(Some(consul.clone()), upstream.clone()), Ok(true));
        assert_eq!(judged(None, upstream.clone()), Ok(true));
        assert_eq!(judged(None, json!({"nodes": {}})), Ok(false));
        assert_eq!(
            judged(Some(json!({})), upstream).unwrap_err(),
            "discovery_type: consul is not among the settings of this process (discovery.consul)"
        );
        for (upstream, sentence) in [
            (json!({"service_name": "a"}), "discovery_type: required beside service_name"),
            (json!({"discovery_type": "dns"}), "service_name: required beside discovery_type"),
            (
                json!({"service_name": "a", "discovery_type": "consul", "nodes": {}}),
                "nodes: expected either nodes or service_name",
            ),
            (
                json!({"service_name": "a", "discovery_type": "consul",
                       "discovery_args": {"group_name": "g"}}),
                "discovery_args: consul takes none",
            ),
            (
                json!({"service_name": "a", "discovery_type": "kubernetes"}),
                "service_name: expected [id/]namespace/name:port, got \"a\"",
            ),
        ] {
            assert_eq!(judged(None, upstream).unwrap_err(), sentence);
        }
        let unknown = judged(None, json!({"service_name": "a", "discovery_type": "tars"}));
        assert!(unknown.unwrap_err().starts_with("unknown variant `tars`, expected one of `dns`"));
    }
}
