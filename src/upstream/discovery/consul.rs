//! Consul: nodes of services whose health checks pass.
//!
//! Two blocking queries a server tell that something has changed, be it services (`/v1/catalog/services`) or their health
//! (`/v1/health/state/any`); then the services that upstreams name are asked for (`/v1/health/service/NAME?passing=true`).
//! Several servers are taken for several clusters, whose services have different names.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::join_all;
use schemars::JsonSchema;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Value, json};

use super::blocking::{AgentSettings, Agents, ConsulTimeout, DefaultService, DumpSettings, Watch};
use super::board::Board;
use super::client::{Line, encoded};
use super::contact::{Contact, GATHER};
use super::dump::DumpFile;
use super::registries::Registry;
use super::service::{Service, node};
use super::settings::Environment;
use super::{Error, settings};
use crate::model::{Invalid, Node, Redacted};
use crate::rt::Publisher;

/// A server that does not answer is left alone this long at most.
pub(super) const AT_MOST: Duration = Duration::from_secs(30);

/// In which order nodes stand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SortType {
    /// As Consul tells them.
    #[default]
    Origin,
    /// By host.
    HostSort,
    /// By port.
    PortSort,
    /// By host, then by port.
    CombineSort,
}

/// Consul's catalog and health checks. Names and defaults are APISIX's.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ConsulSettings {
    /// `http://host:port` or `https://host:port`; one of each cluster.
    pub servers: Vec<String>,
    /// The ACL token; it needs `service:read` and `node:read`.
    #[serde(default)]
    pub token: Option<Redacted<String>>,
    /// The authorities of `https` servers as PEM; the system's when not given. Ours, not APISIX's.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
    /// Seconds between two fetches, without `keepalive`.
    #[serde(default = "default_interval")]
    pub fetch_interval: u64,
    /// Waits for changes with blocking queries; without it services are fetched at intervals.
    #[serde(default = "default_keepalive")]
    pub keepalive: bool,
    /// The weight of each node.
    #[serde(default = "default_weight")]
    #[schemars(range(min = 1))]
    pub weight: u32,
    /// How long Consul may take.
    #[serde(default)]
    pub timeout: ConsulTimeout,
    /// In which order nodes stand.
    #[serde(default)]
    pub sort_type: SortType,
    /// Services that are taken not to exist; `consul` is one of them in any case.
    #[serde(default)]
    pub skip_services: Vec<String>,
    /// A file with what is known, for the next start.
    #[serde(default)]
    pub dump: Option<DumpSettings>,
    /// What stands for a service that Consul does not know, or of which nothing is known.
    #[serde(default)]
    pub default_service: Option<DefaultService>,
}

pub(super) const fn default_interval() -> u64 {
    3
}
pub(super) const fn default_keepalive() -> bool {
    true
}
pub(super) const fn default_weight() -> u32 {
    1
}

/// Consul's catalog and health checks.
pub(super) struct Consul {
    agents: Agents,
    weight: u32,
    sort: SortType,
    skipped: BTreeSet<String>,
    default: Option<Node>,
    dump: Option<DumpFile>,
    shown: Value,
}

impl Consul {
    pub(super) fn new(
        settings: &ConsulSettings,
        environment: Environment<'_>,
    ) -> Result<Self, Error> {
        let agents = Agents::new(
            &AgentSettings {
                registry: "consul",
                servers: &settings.servers,
                token: settings.token.as_ref(),
                ca_file: settings.ca_file.as_ref(),
                timeout: settings.timeout,
                keepalive: settings.keepalive,
                fetch_interval: settings.fetch_interval,
            },
            environment,
        )?;
        settings::above_zero("consul.weight", settings.weight)?;
        let servers: Vec<&str> = agents.servers.iter().map(|server| &*server.name).collect();
        let shown = json!({
            "servers": servers,
            "fetch_interval": settings.fetch_interval,
            "keepalive": settings.keepalive,
            "weight": settings.weight,
            "timeout": {
                "connect": settings.timeout.connect,
                "read": settings.timeout.read,
                "wait": settings.timeout.wait,
            },
            "skip_services": settings.skip_services,
        });
        let skipped = settings.skip_services.iter().cloned().chain(["consul".to_owned()]);
        Ok(Self {
            weight: settings.weight,
            sort: settings.sort_type,
            skipped: skipped.collect(),
            default: settings.default_service.as_ref().map(|node| node.node(settings.weight)),
            dump: settings.dump.as_ref().map(DumpFile::new),
            agents,
            shown,
        })
    }

    async fn follow(&self, server: usize, board: &Board) {
        let contact = Contact::with("consul", &self.agents.servers[server].name, AT_MOST);
        let (catalog, mut catalog_changed) = Publisher::new(());
        let (health, mut health_changed) = Publisher::new(());
        let fetch = async {
            let mut fetching = Fetching {
                consul: self,
                board,
                server,
                contact: contact.beside(),
                line: Line::to(self.agents.servers[server].clone()),
            };
            let mut asked = board.asked();
            // With watches the first answers of both are waited for: what changes before them they do not tell.
            let mut services = match self.agents.wait {
                None => board.wanted(),
                Some(_) => Vec::new(),
            };
            loop {
                let again = match (fetching.fetch(services).await, self.agents.wait) {
                    (Some(pause), _) => pause,
                    (None, None) => self.agents.interval,
                    (None, Some(_)) => Duration::MAX,
                };
                let is_all = tokio::select! {
                    _ = catalog_changed.changed() => true,
                    _ = health_changed.changed() => true,
                    _ = asked.changed() => false,
                    () = tokio::time::sleep(again) => true,
                };
                tokio::time::sleep(GATHER).await;
                services = if is_all { board.wanted() } else { board.unheard(server) };
            }
        };
        if self.agents.wait.is_none() {
            return fetch.await;
        }
        tokio::join!(
            fetch,
            self.watch(server, "/v1/catalog/services", board, (contact.beside(), &catalog)),
            self.watch(server, "/v1/health/state/any", board, (contact.beside(), &health)),
        );
    }

    /// Tells `changed` whenever the answer is another one.
    async fn watch(
        &self,
        server: usize,
        path: &str,
        board: &Board,
        (mut contact, changed): (Contact, &Publisher<()>),
    ) {
        let mut watch = Watch::new(&self.agents, server, path);
        loop {
            let next = watch.next().await;
            let judged = next.and_then(|(question, answer)| {
                watch.line().parse::<IgnoredAny>(&question, &answer)
            });
            match judged {
                Ok(_) => {
                    contact.holds();
                    changed.set(());
                }
                Err(error) => {
                    board.lost(server);
                    tokio::time::sleep(contact.lost(&error)).await;
                }
            }
        }
    }

    fn nodes(&self, entries: Vec<Entry>) -> Vec<Node> {
        let mut seen = BTreeSet::new();
        let mut nodes: Vec<Node> = entries
            .into_iter()
            .filter_map(|entry| {
                let service = entry.service;
                let host = match service.address.is_empty() {
                    false => service.address,
                    true => entry.node?.address,
                };
                // A service without a port; 80 is what APISIX takes.
                let port = if service.port == 0 { 80 } else { service.port };
                (!host.is_empty() && seen.insert((host.clone(), port)))
                    .then(|| node(host, Some(port), self.weight))
            })
            .collect();
        match self.sort {
            SortType::Origin => {}
            SortType::HostSort => nodes.sort_by(|a, b| a.host.cmp(&b.host)),
            SortType::PortSort => nodes.sort_by_key(|node| node.port),
            SortType::CombineSort => {
                nodes.sort_by(|a, b| (&a.host, a.port).cmp(&(&b.host, b.port)));
            }
        }
        nodes
    }
}

/// Fetches services from one server.
struct Fetching<'a> {
    consul: &'a Consul,
    board: &'a Board,
    server: usize,
    contact: Contact,
    line: Line,
}

impl Fetching<'_> {
    /// Asks for each of these. When it failed for one, gives the time after which to try again.
    async fn fetch(&mut self, services: Vec<Service>) -> Option<Duration> {
        let mut failed = None;
        let is_something = !services.is_empty();
        for service in services {
            match self.one(&service).await {
                Ok(nodes) => self.board.tell(self.server, &service, nodes),
                Err(error) => {
                    // Something is wrong with this service; else with the server, and so with all that are left.
                    let is_refusal = matches!(error, Error::Status { .. } | Error::Shape { .. });
                    failed = Some(error);
                    if !is_refusal {
                        break;
                    }
                }
            }
        }
        match failed {
            Some(error) => {
                self.board.lost(self.server);
                Some(self.contact.lost(&error))
            }
            None => {
                if is_something {
                    self.contact.holds();
                }
                None
            }
        }
    }

    async fn one(&mut self, service: &Service) -> Result<Vec<Node>, Error> {
        if self.consul.skipped.contains(&service.name) {
            return Ok(Vec::new());
        }
        let path = format!("/v1/health/service/{}?passing=true", encoded(&service.name));
        let question = self.consul.agents.question(&self.line.server, &path);
        let entries = self.line.json(&question).await?;
        Ok(self.consul.nodes(entries))
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    service: AgentService,
    #[serde(default)]
    node: Option<AgentNode>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct AgentService {
    #[serde(default)]
    address: String,
    #[serde(default)]
    port: u16,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct AgentNode {
    #[serde(default)]
    address: String,
}

#[async_trait]
impl Registry for Consul {
    fn board(&self) -> Board {
        Board::new(self.agents.servers.len(), self.default.clone())
    }

    fn service(&self, service: Service) -> Result<Service, Invalid> {
        Ok(Service::named(service.name))
    }

    async fn run(&self, board: Arc<Board>) {
        let servers = join_all((0..self.agents.servers.len()).map(|at| self.follow(at, &board)));
        match &self.dump {
            None => drop(servers.await),
            Some(dump) => drop(tokio::join!(servers, dump.keep(&board))),
        }
    }

    fn config(&self) -> Value {
        self.shown.clone()
    }

    fn dump_file(&self) -> Option<&DumpFile> {
        self.dump.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_has_the_services_address_or_its_hosts_and_stands_once() {
        let settings = |sort: &str| {
            serde_json::from_value(json!({
                "servers": ["http://127.0.0.1:8500"], "weight": 7, "sort_type": sort,
            }))
            .unwrap()
        };
        let nodes = |sort: &str| {
            let entries = json!([
                {"Node": {"Address": "10.0.0.9"}, "Service": {"Address": "", "Port": 2}},
                {"Node": {"Address": "10.0.0.9"}, "Service": {"Address": "10.0.0.1", "Port": 9}},
                {"Node": {"Address": "10.0.0.9"}, "Service": {"Address": "10.0.0.1", "Port": 0}},
                {"Node": {"Address": "10.0.0.9"}, "Service": {"Address": "10.0.0.9", "Port": 2}},
            ]);
            let consul = Consul::new(&settings(sort), &|_| None).unwrap();
            let nodes = consul.nodes(serde_json::from_value(entries).unwrap());
            assert!(nodes.iter().all(|node| node.weight == 7));
            let place = |node: Node| format!("{}:{}", node.host, node.port.unwrap());
            nodes.into_iter().map(place).collect::<Vec<_>>()
        };
        assert_eq!(nodes("origin"), ["10.0.0.9:2", "10.0.0.1:9", "10.0.0.1:80"]);
        assert_eq!(nodes("host_sort"), ["10.0.0.1:9", "10.0.0.1:80", "10.0.0.9:2"]);
        assert_eq!(nodes("port_sort"), ["10.0.0.9:2", "10.0.0.1:9", "10.0.0.1:80"]);
        assert_eq!(nodes("combine_sort"), ["10.0.0.1:9", "10.0.0.1:80", "10.0.0.9:2"]);
    }

    #[test]
    fn settings_that_make_no_sense_are_refused_by_name() {
        for (settings, sentence) in [
            (json!({"servers": []}), "setting discovery.consul.servers: expected at least one"),
            (
                json!({"servers": ["127.0.0.1:8500"]}),
                "setting discovery.consul.servers: expected http://host:port or https://host:port",
            ),
            (
                json!({"servers": ["http://a"], "token": "${{NOPE}}"}),
                "setting discovery.consul.token: the environment variable NOPE is not set",
            ),
            (
                json!({"servers": ["http://a"], "weight": 0}),
                "setting discovery.consul.weight: expected 1 or more",
            ),
            (
                json!({"servers": ["http://a"], "timeout": {"wait": 0}}),
                "setting discovery.consul.timeout.wait: expected 1 or more",
            ),
        ] {
            let settings = serde_json::from_value(settings).unwrap();
            let error = Consul::new(&settings, &|_| None).err().unwrap();
            assert_eq!(error.to_string(), sentence);
        }
    }
}
