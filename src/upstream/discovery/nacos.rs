//! Nacos: the instances of each service that an upstream names, asked for at intervals (API v1, `ns/instance/list`).

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::time::Instant;

use super::Error;
use super::board::{Board, Services};
use super::client::{Authorities, Line, Question, Server, encoded};
use super::contact::{Contact, GATHER};
use super::dump;
use super::eureka::{HttpTimeout, default_interval, default_weight, spread};
use super::registries::Registry;
use super::service::{Service, node};
use super::settings::{Environment, above_zero, secret, some, time};
use crate::model::{Invalid, Node, Redacted};
use crate::rt::crypto::hmac;
use crate::rt::unix_millis;

/// Nacos. Names and defaults are APISIX's.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NacosSettings {
    /// `http://[user:password@]host:port`, or with `https`; one of them is taken by chance, and the others when it fails.
    pub host: Vec<Redacted<String>>,
    /// What stands before the paths of the API.
    #[serde(default = "default_prefix")]
    pub prefix: String,
    /// The authorities of `https` servers as PEM; the system's when not given. Ours, not APISIX's.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
    /// Seconds between two fetches. A service that is named for the first time is asked for at once.
    #[serde(default = "default_interval")]
    pub fetch_interval: u64,
    /// The weight of instances that have none.
    #[serde(default = "default_weight")]
    #[schemars(range(min = 1))]
    pub weight: u32,
    /// How long Nacos may take.
    #[serde(default)]
    pub timeout: HttpTimeout,
    /// Signs requests with `secret_key`, as Alibaba's MSE asks for.
    #[serde(default)]
    pub access_key: Option<Redacted<String>>,
    /// The key of `access_key`.
    #[serde(default)]
    pub secret_key: Option<Redacted<String>>,
}

fn default_prefix() -> String {
    "/nacos/v1/".into()
}

const NAMESPACE: &str = "public";
const GROUP: &str = "DEFAULT_GROUP";

/// Nacos.
pub(super) struct Nacos {
    servers: Vec<Arc<Server>>,
    interval: Duration,
    weight: u32,
    signer: Option<(Redacted<String>, hmac::Key)>,
    shown: Value,
}

impl Nacos {
    pub(super) fn new(
        settings: &NacosSettings,
        environment: Environment<'_>,
    ) -> Result<Self, Error> {
        some("nacos.host", &settings.host)?;
        above_zero("nacos.weight", settings.weight)?;
        let within = settings.timeout.within("nacos")?;
        let authorities = settings.ca_file.clone().map_or(Authorities::System, Authorities::File);
        let server = |url: &Redacted<String>| {
            let url = secret("nacos.host", url, environment)?;
            let server = Server::parse("nacos.host", url.reveal(), authorities.clone(), within)?;
            Ok(Arc::new(server.below(&settings.prefix)))
        };
        let servers: Vec<Arc<Server>> =
            settings.host.iter().map(server).collect::<Result<_, Error>>()?;
        let key = |name: &str, key: &Option<Redacted<String>>| {
            let key = key.as_ref().map(|key| secret(&format!("nacos.{name}"), key, environment));
            Ok::<_, Error>(key.transpose()?.filter(|key| !key.reveal().is_empty()))
        };
        let signer = match (
            key("access_key", &settings.access_key)?,
            key("secret_key", &settings.secret_key)?,
        ) {
            (None, None) => None,
            (Some(access), Some(secret)) => {
                let algorithm = hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY;
                Some((access, hmac::Key::new(algorithm, secret.reveal().as_bytes())))
            }
            _ => {
                let problem = "expected both access_key and secret_key, or neither";
                return Err(Error::setting("nacos.access_key", problem));
            }
        };
        let hosts: Vec<&str> = servers.iter().map(|server| &*server.name).collect();
        Ok(Self {
            shown: json!({
                "host": hosts,
                "prefix": settings.prefix,
                "fetch_interval": settings.fetch_interval,
                "weight": settings.weight,
                "timeout": settings.timeout.shown(),
            }),
            servers,
            interval: time("nacos.fetch_interval", Duration::from_secs(settings.fetch_interval))?,
            weight: settings.weight,
            signer,
        })
    }

    /// Asks for each of these, one server after the other until all have been answered.
    async fn fetch(
        &self,
        sessions: &mut [Session],
        services: Vec<Service>,
        board: &Board,
    ) -> Result<(), Error> {
        let first = fastrand::usize(..sessions.len());
        let mut left = services;
        let mut last = None;
        for at in 0..sessions.len() {
            let session = &mut sessions[(first + at) % self.servers.len()];
            let mut asked = std::mem::take(&mut left).into_iter();
            while let Some(service) = asked.next() {
                match self.instances(session, &service).await {
                    Ok(nodes) => board.tell(0, &service, nodes),
                    Err(error) => {
                        left.push(service);
                        // Something is wrong with this service; else with the server, and so with all that are left.
                        if !matches!(error, Error::Status { .. } | Error::Shape { .. }) {
                            left.extend(asked.by_ref());
                        }
                        last = Some(error);
                    }
                }
            }
            if left.is_empty() {
                return Ok(());
            }
        }
        last.map_or(Ok(()), Err)
    }

    async fn instances(
        &self,
        session: &mut Session,
        service: &Service,
    ) -> Result<Vec<Node>, Error> {
        let had_token = session.token.is_some();
        match self.ask(session, service).await {
            // The token may have been withdrawn, or forgotten by a server that began anew.
            Err(Error::Status { status: 401 | 403, .. }) if had_token => {
                session.token = None;
                self.ask(session, service).await
            }
            other => other,
        }
    }

    async fn ask(&self, session: &mut Session, service: &Service) -> Result<Vec<Node>, Error> {
        let mut path = format!(
            "/ns/instance/list?healthyOnly=true&serviceName={}&namespaceId={}&groupName={}",
            encoded(&service.name),
            encoded(namespace(service)),
            encoded(group(service)),
        );
        if let Some(token) = session.token().await? {
            path.push_str("&accessToken=");
            path.push_str(&encoded(token.reveal()));
        }
        if let Some((access, key)) = &self.signer {
            let data = format!("{}@@{}@@{}", unix_millis(), group(service), service.name);
            let signature = STANDARD.encode(hmac::sign(key, data.as_bytes()));
            let (data, signature) = (encoded(&data), encoded(&signature));
            let access = encoded(access.reveal());
            path.push_str(&format!("&ak={access}&data={data}&signature={signature}"));
        }
        let question = Question::get(&session.line.server, path);
        let instances: Instances = session.line.json(&question).await?;
        Ok(self.nodes(instances, service.speaks_grpc))
    }

    fn nodes(&self, instances: Instances, speaks_grpc: bool) -> Vec<Node> {
        let usable = |instance: &Instance| {
            instance.enabled.unwrap_or(true) && instance.healthy.unwrap_or(true)
        };
        let hosts: Vec<Instance> =
            instances.hosts.unwrap_or_default().into_iter().filter(usable).collect();
        // Weights are fractions in Nacos: with one that is none of ours all are taken a hundredfold.
        let is_fraction = |weight: f64| weight.fract() != 0.0;
        let factor = match hosts.iter().filter_map(|host| host.weight).any(is_fraction) {
            true => 100.0,
            false => 1.0,
        };
        let one = |host: Instance| {
            // As the Spring starter for gRPC registers it.
            let grpc = host.metadata.as_ref().filter(|_| speaks_grpc).and_then(grpc_port);
            let weight = host.weight.map_or(f64::from(self.weight), f64::abs) * factor;
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "bounded")]
            let weight = weight.ceil().min(f64::from(u32::MAX)) as u32;
            node(host.ip, Some(grpc.unwrap_or(host.port)), weight)
        };
        hosts.into_iter().map(one).collect()
    }
}

fn namespace(service: &Service) -> &str {
    service.namespace.as_deref().unwrap_or(NAMESPACE)
}

fn group(service: &Service) -> &str {
    service.group.as_deref().unwrap_or(GROUP)
}

fn grpc_port(metadata: &Map<String, Value>) -> Option<u16> {
    match metadata.get("gRPC_port")? {
        Value::Number(port) => port.as_u64()?.try_into().ok(),
        Value::String(port) => port.parse().ok(),
        _ => None,
    }
}

/// A line to one server, with the token that it gave.
struct Session {
    line: Line,
    token: Option<(Redacted<String>, Instant)>,
}

impl Session {
    /// The token, asked for when there is none or when it ends soon; `None` for a server without users.
    async fn token(&mut self) -> Result<Option<&Redacted<String>>, Error> {
        let server = self.line.server.clone();
        let Some((user, password)) = server.user() else { return Ok(None) };
        let is_good = self.token.as_ref().is_some_and(|(_, until)| Instant::now() < *until);
        if !is_good {
            let form = format!("username={}&password={}", encoded(user), encoded(password));
            let question = Question::post(&server, "/auth/login", form);
            let login: Login = self.line.json(&question).await?;
            if login.access_token.reveal().is_empty() {
                return Err(server.shape("/auth/login", "there is no accessToken"));
            }
            let lasts = Duration::from_secs(login.token_ttl.min(86_400)).mul_f64(0.9);
            self.token = Some((login.access_token, Instant::now() + lasts));
        }
        Ok(self.token.as_ref().map(|(token, _)| token))
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Login {
    access_token: Redacted<String>,
    /// Seconds.
    #[serde(default = "default_ttl")]
    token_ttl: u64,
}

const fn default_ttl() -> u64 {
    18_000
}

#[derive(Deserialize)]
struct Instances {
    #[serde(default)]
    hosts: Option<Vec<Instance>>,
}

#[derive(Deserialize)]
struct Instance {
    ip: String,
    port: u16,
    #[serde(default)]
    weight: Option<f64>,
    #[serde(default)]
    healthy: Option<bool>,
    #[serde(default)]
    enabled: Option<bool>,
    #[serde(default)]
    metadata: Option<Map<String, Value>>,
}

#[async_trait]
impl Registry for Nacos {
    fn board(&self) -> Board {
        Board::new(1, None)
    }

    fn service(&self, service: Service) -> Result<Service, Invalid> {
        Ok(service)
    }

    async fn run(&self, board: Arc<Board>) {
        let session =
            |server: &Arc<Server>| Session { line: Line::to(server.clone()), token: None };
        let mut sessions: Vec<Session> = self.servers.iter().map(session).collect();
        let names: Vec<&str> = self.servers.iter().map(|server| &*server.name).collect();
        let mut contact = Contact::with("nacos", &names.join(" "), self.interval);
        let mut asked = board.asked();
        let mut services = board.wanted();
        let mut due = Instant::now();
        loop {
            let is_all = Instant::now() >= due;
            let is_something = !services.is_empty();
            match self.fetch(&mut sessions, services, &board).await {
                Ok(()) => {
                    if is_something {
                        contact.holds();
                    }
                    if is_all {
                        due = Instant::now() + spread(self.interval);
                    }
                }
                Err(error) => {
                    board.lost(0);
                    due = Instant::now() + contact.lost(&error);
                }
            }
            services = tokio::select! {
                () = tokio::time::sleep_until(due) => board.wanted(),
                _ = asked.changed() => {
                    tokio::time::sleep(GATHER).await;
                    board.unheard(0)
                }
            };
        }
    }

    fn config(&self) -> Value {
        self.shown.clone()
    }

    fn shown(&self, known: &Services) -> Value {
        let mut services = BTreeMap::<&str, BTreeMap<&str, BTreeMap<&str, Value>>>::new();
        for (service, nodes) in known {
            let groups = services.entry(namespace(service)).or_default();
            let nodes = json!(dump::shown(nodes));
            groups.entry(group(service)).or_default().insert(&service.name, nodes);
        }
        json!({ "config": self.config(), "services": services })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nacos(settings: Value) -> Result<Nacos, Error> {
        Nacos::new(&serde_json::from_value(settings).unwrap(), &|_| None)
    }

    #[test]
    fn healthy_and_enabled_instances_are_nodes_and_fractions_keep_their_proportions() {
        let nacos = nacos(json!({"host": ["http://127.0.0.1:8848"]})).unwrap();
        let nodes = |hosts: Value, speaks_grpc| {
            let instances = serde_json::from_value(json!({"name": "x", "hosts": hosts})).unwrap();
            let nodes = nacos.nodes(instances, speaks_grpc).into_iter();
            nodes.map(|node| (node.port.unwrap(), node.weight)).collect::<Vec<_>>()
        };
        let hosts = json!([
            {"ip": "10.0.0.1", "port": 1, "weight": 2.0, "healthy": true, "enabled": true,
             "metadata": {"gRPC_port": "91"}},
            {"ip": "10.0.0.2", "port": 2, "healthy": true},
            {"ip": "10.0.0.3", "port": 3, "weight": 1.0, "healthy": false},
            {"ip": "10.0.0.4", "port": 4, "weight": 1.0, "enabled": false},
            {"ip": "10.0.0.5", "port": 5, "weight": 0.0},
        ]);
        assert_eq!(nodes(hosts.clone(), false), [(1, 2), (2, 100), (5, 0)]);
        assert_eq!(nodes(hosts, true), [(91, 2), (2, 100), (5, 0)]);
        let fractions = json!([
            {"ip": "10.0.0.1", "port": 1, "weight": 0.5}, {"ip": "10.0.0.2", "port": 2, "weight": 1.0},
            {"ip": "10.0.0.2", "port": 3, "weight": 0.001},
        ]);
        assert_eq!(nodes(fractions, false), [(1, 50), (2, 100), (3, 1)]);
        assert_eq!(nodes(Value::Null, false), []);
    }

    #[test]
    fn a_key_without_the_other_is_refused() {
        let settings = json!({"host": ["http://127.0.0.1:8848"], "access_key": "a"});
        assert_eq!(
            nacos(settings).err().unwrap().to_string(),
            "setting discovery.nacos.access_key: expected both access_key and secret_key, or neither"
        );
    }
}
