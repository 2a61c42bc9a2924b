//! Eureka: the whole registry, fetched at intervals (`GET /eureka/apps`).

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::Error;
use super::board::Board;
use super::client::{Authorities, Line, Question, Server, Within};
use super::contact::Contact;
use super::registries::Registry;
use super::service::{Service, node};
use super::settings::{self, Environment, secret, time};
use crate::model::{Invalid, Node, Redacted};

/// Eureka. Names and defaults are APISIX's.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EurekaSettings {
    /// `http://[user:password@]host:port`, or with `https`; the first one that answers is taken.
    pub host: Vec<Redacted<String>>,
    /// What stands before `/apps`, such as `/eureka/`.
    #[serde(default)]
    pub prefix: Option<String>,
    /// The authorities of `https` servers as PEM; the system's when not given. Ours, not APISIX's, which verifies nobody.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
    /// Seconds between two fetches.
    #[serde(default = "default_interval")]
    pub fetch_interval: u64,
    /// The weight of instances whose metadata has none.
    #[serde(default = "default_weight")]
    pub weight: u32,
    /// How long Eureka may take.
    #[serde(default)]
    pub timeout: HttpTimeout,
}

/// How long a server may take, in milliseconds.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct HttpTimeout {
    /// To connect.
    pub connect: u64,
    /// To take what is sent.
    pub send: u64,
    /// To answer.
    pub read: u64,
}

impl Default for HttpTimeout {
    fn default() -> Self {
        Self { connect: 2000, send: 2000, read: 5000 }
    }
}

impl HttpTimeout {
    /// As a server's limits.
    pub(super) fn within(self, registry: &str) -> Result<Within, Error> {
        let millis = |name: &str, millis| {
            time(&format!("{registry}.timeout.{name}"), Duration::from_millis(millis))
        };
        let (send, read) = (millis("send", self.send)?, millis("read", self.read)?);
        Ok(Within { connect: millis("connect", self.connect)?, answer: send + read })
    }

    pub(super) fn shown(self) -> Value {
        json!({ "connect": self.connect, "send": self.send, "read": self.read })
    }
}

pub(super) const fn default_interval() -> u64 {
    30
}
pub(super) const fn default_weight() -> u32 {
    100
}

/// Eureka.
pub(super) struct Eureka {
    servers: Vec<Arc<Server>>,
    interval: Duration,
    weight: u32,
    shown: Value,
}

impl Eureka {
    pub(super) fn new(
        settings: &EurekaSettings,
        environment: Environment<'_>,
    ) -> Result<Self, Error> {
        settings::some("eureka.host", &settings.host)?;
        let within = settings.timeout.within("eureka")?;
        let authorities = settings.ca_file.clone().map_or(Authorities::System, Authorities::File);
        let server = |url: &Redacted<String>| {
            let url = secret("eureka.host", url, environment)?;
            let server = Server::parse("eureka.host", url.reveal(), authorities.clone(), within)?;
            Ok(Arc::new(server.below(settings.prefix.as_deref().unwrap_or_default())))
        };
        let servers: Vec<Arc<Server>> =
            settings.host.iter().map(server).collect::<Result<_, Error>>()?;
        let hosts: Vec<&str> = servers.iter().map(|server| &*server.name).collect();
        let interval = Duration::from_secs(settings.fetch_interval);
        Ok(Self {
            shown: json!({
                "host": hosts,
                "prefix": settings.prefix,
                "fetch_interval": settings.fetch_interval,
                "weight": settings.weight,
                "timeout": settings.timeout.shown(),
            }),
            servers,
            interval: time("eureka.fetch_interval", interval)?,
            weight: settings.weight,
        })
    }

    /// From the first server that answers.
    async fn fetch(&self, lines: &mut [Line]) -> Result<BTreeMap<Service, Vec<Node>>, Error> {
        let mut last = None;
        for line in lines {
            let question = Question::get(&line.server, "/apps").with_basic(line.server.user());
            match line.json::<Answer>(&question).await {
                Ok(answer) => return Ok(self.services(answer)),
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| Error::setting("eureka.host", "expected at least one")))
    }

    fn services(&self, answer: Answer) -> BTreeMap<Service, Vec<Node>> {
        let mut services = BTreeMap::<Service, Vec<Node>>::new();
        for application in answer.applications.application.into_list() {
            let nodes = services.entry(Service::named(application.name)).or_default();
            let instances = application.instance.into_list().into_iter();
            nodes.extend(instances.filter_map(|instance| self.node(&instance)));
        }
        services
    }

    fn node(&self, instance: &Instance) -> Option<Node> {
        let overridden = instance.overridden.as_deref().filter(|status| *status != "UNKNOWN");
        if overridden.unwrap_or(&instance.status) != "UP" {
            return None;
        }
        if instance.address.parse::<IpAddr>().is_err() {
            tracing::debug!(
                registry = "eureka",
                address = instance.address,
                "an instance is passed over: its ipAddr is no address"
            );
            return None;
        }
        // The secure port wins where both are on, as in APISIX; what is spoken there the upstream's scheme says.
        let port = instance.secure_port.as_ref().and_then(Port::number);
        let port = port.or_else(|| instance.port.as_ref().and_then(Port::number))?;
        let weight = instance.metadata.as_ref().and_then(|metadata| metadata.get("weight"));
        let weight = weight.and_then(|weight| match weight {
            Value::Number(number) => number.as_u64().and_then(|weight| weight.try_into().ok()),
            Value::String(text) => text.parse().ok(),
            _ => None,
        });
        Some(node(&instance.address, Some(port), weight.unwrap_or(self.weight)))
    }
}

/// Eureka writes a list of one as its only element, sometimes.
#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany<T> {
    Many(Vec<T>),
    One(T),
}

impl<T> Default for OneOrMany<T> {
    fn default() -> Self {
        Self::Many(Vec::new())
    }
}

impl<T> OneOrMany<T> {
    fn into_list(self) -> Vec<T> {
        match self {
            Self::Many(list) => list,
            Self::One(one) => vec![one],
        }
    }
}

#[derive(Deserialize)]
struct Answer {
    applications: Applications,
}

#[derive(Deserialize)]
struct Applications {
    #[serde(default)]
    application: OneOrMany<Application>,
}

#[derive(Deserialize)]
struct Application {
    name: String,
    #[serde(default)]
    instance: OneOrMany<Instance>,
}

#[derive(Deserialize)]
struct Instance {
    #[serde(default)]
    status: String,
    /// Eureka 1 and 2 spell it differently.
    #[serde(default, rename = "overriddenStatus", alias = "overriddenstatus")]
    overridden: Option<String>,
    #[serde(default, rename = "ipAddr")]
    address: String,
    #[serde(default)]
    port: Option<Port>,
    #[serde(default, rename = "securePort")]
    secure_port: Option<Port>,
    #[serde(default)]
    metadata: Option<Map<String, Value>>,
}

#[derive(Deserialize)]
struct Port {
    #[serde(default, rename = "$")]
    number: Value,
    /// `true` or `"true"`.
    #[serde(default, rename = "@enabled")]
    enabled: Value,
}

impl Port {
    fn number(&self) -> Option<u16> {
        let is_enabled = self.enabled == json!(true) || self.enabled == json!("true");
        let number = match &self.number {
            Value::Number(number) => number.as_u64()?.try_into().ok()?,
            Value::String(text) => text.parse().ok()?,
            _ => return None,
        };
        (is_enabled && number > 0).then_some(number)
    }
}

#[async_trait]
impl Registry for Eureka {
    fn board(&self) -> Board {
        Board::new(1, None)
    }

    fn service(&self, service: Service) -> Result<Service, Invalid> {
        Ok(Service::named(service.name))
    }

    async fn run(&self, board: Arc<Board>) {
        let mut lines: Vec<Line> = self.servers.iter().cloned().map(Line::to).collect();
        let names: Vec<&str> = self.servers.iter().map(|server| &*server.name).collect();
        let mut contact = Contact::with("eureka", &names.join(" "), self.interval);
        loop {
            match self.fetch(&mut lines).await {
                Ok(services) => {
                    contact.holds();
                    board.tell_all(0, services);
                    tokio::time::sleep(spread(self.interval)).await;
                }
                Err(error) => {
                    board.lost(0);
                    tokio::time::sleep(contact.lost(&error)).await;
                }
            }
        }
    }

    fn config(&self) -> Value {
        self.shown.clone()
    }
}

/// Up to a tenth earlier, so that a fleet does not come at once.
pub(super) fn spread(interval: Duration) -> Duration {
    interval.mul_f64(1.0 - fastrand::f64() * 0.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instances_that_are_up_are_nodes_with_their_secure_port_where_it_is_on() {
        let settings = json!({"host": ["http://u:p@127.0.0.1:8761"], "prefix": "/eureka/"});
        let eureka = Eureka::new(&serde_json::from_value(settings).unwrap(), &|_| None).unwrap();
        let instance = |address: &str, status: &str, overridden: &str, secure: &str| {
            json!({
                "app": "SHOP", "hostName": "h", "ipAddr": address, "status": status,
                "overriddenStatus": overridden,
                "port": {"$": 8080, "@enabled": "true"},
                "securePort": {"$": 8443, "@enabled": secure},
                "metadata": {"weight": "7", "zone": "a"}, "leaseInfo": {},
            })
        };
        let mut plain = instance("10.0.0.6", "UP", "UNKNOWN", "false");
        plain["metadata"] = json!({"@class": "java.util.Collections$EmptyMap"});
        let answer = json!({"applications": {
            "versions__delta": "1", "apps__hashcode": "UP_2_",
            "application": [
                {"name": "SHOP", "instance": [
                    instance("10.0.0.1", "UP", "UNKNOWN", "false"),
                    instance("10.0.0.2", "UP", "UNKNOWN", "true"),
                    instance("10.0.0.3", "DOWN", "UNKNOWN", "false"),
                    instance("10.0.0.4", "UP", "OUT_OF_SERVICE", "false"),
                    instance("host.test", "UP", "UNKNOWN", "false"),
                ]},
                {"name": "ONE", "instance": plain},
                {"name": "NONE", "instance": []},
            ],
        }});
        let services = eureka.services(serde_json::from_value(answer).unwrap());
        let places = |name: &str| {
            let nodes = &services[&Service::named(name)];
            let place = |node: &Node| (node.host.clone(), node.port.unwrap(), node.weight);
            nodes.iter().map(place).collect::<Vec<_>>()
        };
        let at = |host: &str, port, weight| (host.to_owned(), port, weight);
        assert_eq!(places("SHOP"), [at("10.0.0.1", 8080, 7), at("10.0.0.2", 8443, 7)]);
        assert_eq!(places("ONE"), [at("10.0.0.6", 8080, 100)]);
        assert!(places("NONE").is_empty());
        assert!(!eureka.config().to_string().contains("u:p"));
    }
}
