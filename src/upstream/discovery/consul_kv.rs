//! Consul's keys: `PREFIX/NAME/HOST:PORT` is a node, its value says with what weight. As nginx-upsync-module writes them.
//!
//! One recursive blocking query a server gives everything below the prefix.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::future::join_all;
use http::StatusCode;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};

use super::blocking::{AgentSettings, Agents, ConsulTimeout, DefaultService, DumpSettings, Watch};
use super::board::Board;
use super::consul::{AT_MOST, default_interval, default_keepalive, default_weight};
use super::contact::Contact;
use super::dump::DumpFile;
use super::registries::Registry;
use super::service::{Service, node};
use super::settings::Environment;
use super::{Error, settings};
use crate::model::{Invalid, Node, Redacted};

/// Consul's keys. Names and defaults are APISIX's.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ConsulKvSettings {
    /// `http://host:port` or `https://host:port`; a service's name begins with one of them.
    pub servers: Vec<String>,
    /// The ACL token; it needs `key:read` below the prefix.
    #[serde(default)]
    pub token: Option<Redacted<String>>,
    /// The authorities of `https` servers as PEM; the system's when not given. Ours, not APISIX's.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
    /// Below it are the services.
    #[serde(default = "default_prefix")]
    pub prefix: String,
    /// Seconds between two fetches, without `keepalive`.
    #[serde(default = "default_interval")]
    pub fetch_interval: u64,
    /// Waits for changes with blocking queries; without it keys are fetched at intervals.
    #[serde(default = "default_keepalive")]
    pub keepalive: bool,
    /// The weight of nodes whose value has none.
    #[serde(default = "default_weight")]
    #[schemars(range(min = 1))]
    pub weight: u32,
    /// How long Consul may take.
    #[serde(default)]
    pub timeout: ConsulTimeout,
    /// Services that are passed over, such as `upstreams/unused_api/`.
    #[serde(default)]
    pub skip_keys: Vec<String>,
    /// A file with what is known, for the next start.
    #[serde(default)]
    pub dump: Option<DumpSettings>,
    /// What stands for a service that Consul does not know, or of which nothing is known.
    #[serde(default)]
    pub default_service: Option<DefaultService>,
}

fn default_prefix() -> String {
    "upstreams".into()
}

/// Consul's keys.
pub(super) struct ConsulKv {
    agents: Agents,
    prefix: String,
    weight: u32,
    skipped: BTreeSet<String>,
    default: Option<Node>,
    dump: Option<DumpFile>,
    shown: Value,
}

impl ConsulKv {
    pub(super) fn new(
        settings: &ConsulKvSettings,
        environment: Environment<'_>,
    ) -> Result<Self, Error> {
        let agents = Agents::new(
            &AgentSettings {
                registry: "consul_kv",
                servers: &settings.servers,
                token: settings.token.as_ref(),
                ca_file: settings.ca_file.as_ref(),
                timeout: settings.timeout,
                keepalive: settings.keepalive,
                fetch_interval: settings.fetch_interval,
            },
            environment,
        )?;
        settings::above_zero("consul_kv.weight", settings.weight)?;
        let prefix = settings.prefix.trim_matches('/').to_owned();
        if prefix.is_empty() {
            return Err(Error::setting("consul_kv.prefix", "expected a key's name"));
        }
        let servers: Vec<&str> = agents.servers.iter().map(|server| &*server.name).collect();
        let shown = json!({
            "servers": servers,
            "prefix": prefix,
            "fetch_interval": settings.fetch_interval,
            "keepalive": settings.keepalive,
            "weight": settings.weight,
            "timeout": {
                "connect": settings.timeout.connect,
                "read": settings.timeout.read,
                "wait": settings.timeout.wait,
            },
            "skip_keys": settings.skip_keys,
        });
        Ok(Self {
            prefix,
            weight: settings.weight,
            skipped: settings.skip_keys.iter().cloned().collect(),
            default: settings.default_service.as_ref().map(|node| node.node(settings.weight)),
            dump: settings.dump.as_ref().map(DumpFile::new),
            agents,
            shown,
        })
    }

    async fn follow(&self, server: usize, board: &Board) {
        let name = &self.agents.servers[server].name;
        let mut contact = Contact::with("consul_kv", name, AT_MOST);
        // The slash: `upstreams` shall not match `upstreams-of-others`.
        let path = format!("/v1/kv/{}/?recurse=true", path_of(&self.prefix));
        let mut watch = Watch::new(&self.agents, server, &path);
        let mut said = HashSet::new();
        loop {
            let next = watch.next().await;
            let services = next.and_then(|(question, answer)| {
                // Consul's word for "there is nothing below".
                if answer.status == StatusCode::NOT_FOUND {
                    return Ok(BTreeMap::new());
                }
                Ok(self.services(name, watch.line().parse(&question, &answer)?, &mut said))
            });
            match services {
                Ok(services) => {
                    contact.holds();
                    board.tell_all(server, services);
                    if self.agents.wait.is_none() {
                        tokio::time::sleep(self.agents.interval).await;
                    }
                }
                Err(error) => {
                    board.lost(server);
                    tokio::time::sleep(contact.lost(&error)).await;
                }
            }
        }
    }

    /// `said` has the keys of which the log has spoken.
    fn services(
        &self,
        server: &str,
        pairs: Vec<Pair>,
        said: &mut HashSet<String>,
    ) -> BTreeMap<Service, Vec<Node>> {
        let mut services = BTreeMap::<Service, Vec<Node>>::new();
        for pair in pairs {
            match self.instance(&pair) {
                Ok(Some((key, node))) => {
                    let name = format!("{server}/v1/kv/{key}");
                    services.entry(Service::named(name)).or_default().push(node);
                }
                Ok(None) => {}
                Err(why) => {
                    if said.insert(pair.key.clone()) {
                        let (registry, key) = ("consul_kv", pair.key);
                        tracing::warn!(registry, server, key, "a key is passed over: {why}");
                    }
                }
            }
        }
        services
    }

    /// The service's key and the node that a pair stands for; `None` for one that stands for none on purpose.
    fn instance(&self, pair: &Pair) -> Result<Option<(String, Node)>, String> {
        let below = pair.key.strip_prefix(&self.prefix).and_then(|rest| rest.strip_prefix('/'));
        let Some((service, place)) = below.and_then(|below| below.rsplit_once('/')) else {
            return Err(format!("expected {}/NAME/HOST:PORT", self.prefix));
        };
        let key = format!("{}/{service}/", self.prefix);
        // A folder, as Consul's own pages make them.
        if self.skipped.contains(&key) || place.is_empty() {
            return Ok(None);
        }
        let (host, port) = place.rsplit_once(':').ok_or("expected HOST:PORT at its end")?;
        let port: u16 = port.parse().map_err(|_| "expected a port at its end")?;
        if host.is_empty() || port == 0 {
            return Err("expected HOST:PORT at its end".into());
        }
        let value = pair.value.as_deref().unwrap_or_default();
        let value = STANDARD.decode(value).map_err(|error| error.to_string())?;
        let value: Instance = serde_json::from_slice(&value)
            .map_err(|error| format!("expected JSON as its value: {error}"))?;
        if matches!(&value.check_status, Some(status) if *status == json!(false) || *status == json!("false"))
        {
            return Ok(None);
        }
        Ok(Some((key, node(host, Some(port), value.weight.unwrap_or(self.weight)))))
    }
}

/// A key in a path.
fn path_of(key: &str) -> String {
    let parts: Vec<String> = key.split('/').map(super::client::encoded).collect();
    parts.join("/")
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Pair {
    key: String,
    /// In Base64.
    #[serde(default)]
    value: Option<String>,
}

/// A value. Others read more in it.
#[derive(Deserialize)]
struct Instance {
    #[serde(default)]
    weight: Option<u32>,
    #[serde(default)]
    check_status: Option<Value>,
}

#[async_trait]
impl Registry for ConsulKv {
    fn board(&self) -> Board {
        Board::new(self.agents.servers.len(), self.default.clone())
    }

    fn service(&self, service: Service) -> Result<Service, Invalid> {
        let servers = &self.agents.servers;
        let is_ours = servers.iter().any(|server| {
            let rest = service.name.strip_prefix(&server.name);
            rest.is_some_and(|rest| rest.starts_with(&format!("/v1/kv/{}/", self.prefix)))
        });
        if !is_ours || !service.name.ends_with('/') {
            return Err(Invalid(format!(
                "service_name: expected {}/v1/kv/{}/NAME/, got {:?}",
                servers[0].name, self.prefix, service.name
            )));
        }
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
    fn keys_are_nodes_and_what_is_none_is_passed_over() {
        let settings = json!({
            "servers": ["http://127.0.0.1:8500"], "weight": 5, "skip_keys": ["upstreams/old/"],
        });
        let kv = ConsulKv::new(&serde_json::from_value(settings).unwrap(), &|_| None).unwrap();
        let pair = |key: &str, value: &str| Pair {
            key: key.into(),
            value: (!value.is_empty()).then(|| STANDARD.encode(value)),
        };
        let pairs = vec![
            pair("upstreams/web/10.0.0.1:80", r#"{"weight": 3, "max_fails": 2}"#),
            pair("upstreams/web/10.0.0.2:81", "{}"),
            pair("upstreams/web/10.0.0.3:82", r#"{"check_status": "false"}"#),
            pair("upstreams/team/a/[::1]:83", "{}"),
            pair("upstreams/web/", ""),
            pair("upstreams/web/no-port", "{}"),
            pair("upstreams/web/10.0.0.4:80", "no JSON"),
            pair("upstreams/web/10.0.0.5:80", ""),
            pair("upstreams/old/10.0.0.6:80", "{}"),
            pair("upstreams-of-others/web/10.0.0.7:80", "{}"),
        ];
        let services = kv.services("http://127.0.0.1:8500", pairs, &mut HashSet::new());
        let seen: Vec<_> = services
            .iter()
            .flat_map(|(service, nodes)| nodes.iter().map(move |node| (service, node)))
            .map(|(service, node)| {
                let name = service.name.strip_prefix("http://127.0.0.1:8500/v1/kv/upstreams/");
                (name.unwrap(), &*node.host, node.port.unwrap(), node.weight)
            })
            .collect();
        assert_eq!(
            seen,
            [("team/a/", "[::1]", 83, 5), ("web/", "10.0.0.1", 80, 3), ("web/", "10.0.0.2", 81, 5)]
        );
        let service = |name: &str| kv.service(Service::named(name)).map_err(|error| error.0);
        assert!(service("http://127.0.0.1:8500/v1/kv/upstreams/web/").is_ok());
        assert_eq!(
            service("web").unwrap_err(),
            "service_name: expected http://127.0.0.1:8500/v1/kv/upstreams/NAME/, got \"web\""
        );
    }
}
