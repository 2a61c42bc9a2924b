//! DNS: the records of a name as nodes, asked for again when their time is over.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::{StreamExt as _, stream};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::Error;
use super::board::Board;
use super::contact::{Contact, GATHER};
use super::registries::Registry;
use super::service::{Service, node};
use super::settings::{Environment, some, text};
use crate::model::{Invalid, Node};
use crate::upstream::{Answer, Family, NameError, Resolver};

/// Names that are asked for at one time.
const AT_ONCE: usize = 16;
/// Servers that do not answer are left alone this long at most.
const AT_MOST: Duration = Duration::from_secs(30);

/// A type of records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
pub enum RecordKind {
    /// The type that had records for this name the last time.
    #[serde(rename = "last")]
    Last,
    /// Hosts with their ports and weights.
    #[serde(rename = "SRV")]
    Srv,
    /// IPv4 addresses.
    A,
    /// IPv6 addresses.
    #[serde(rename = "AAAA")]
    Aaaa,
    /// Another name: servers follow it by themselves when addresses are asked for, so that this adds nothing.
    #[serde(rename = "CNAME")]
    Cname,
}

/// DNS as a registry. Names and defaults are APISIX's.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "DnsDiscoverySettings")]
pub struct DnsSettings {
    /// The servers, as `address` or `address:port`.
    #[serde(default)]
    pub servers: Vec<String>,
    /// In place of `servers`: those of this file (`resolv.conf(5)`), read at the start.
    #[serde(default)]
    pub resolv_conf: Option<PathBuf>,
    /// The types of records that are asked for, until there are some.
    #[serde(default = "default_order")]
    pub order: Vec<RecordKind>,
}

fn default_order() -> Vec<RecordKind> {
    vec![RecordKind::Last, RecordKind::Srv, RecordKind::A, RecordKind::Aaaa, RecordKind::Cname]
}

/// What a service's name says: a name, and the port of all its nodes where it has one.
#[derive(Debug, PartialEq)]
pub(super) struct Place {
    name: String,
    port: Option<u16>,
}

impl Place {
    /// `name` or `name:port`.
    pub(super) fn parse(written: &str) -> Result<Self, Invalid> {
        let wrong =
            || Invalid(format!("service_name: expected name or name:port, got {written:?}"));
        let (name, port) = match written.rsplit_once(':') {
            None => (written, None),
            Some((name, port)) => {
                let port = port.parse().ok().filter(|port| *port > 0).ok_or_else(wrong)?;
                (name, Some(port))
            }
        };
        let is_name = !name.is_empty()
            && name.len() <= 253
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
        if !is_name {
            return Err(wrong());
        }
        Ok(Self { name: name.to_owned(), port })
    }
}

/// DNS.
pub(super) struct Dns {
    resolver: Resolver,
    order: Vec<RecordKind>,
    shown: Value,
}

/// What is known of one service beside its nodes.
struct Due {
    at: Instant,
    /// The type that had records.
    last: Option<RecordKind>,
}

impl Dns {
    pub(super) fn new(settings: &DnsSettings, environment: Environment<'_>) -> Result<Self, Error> {
        let servers = match &settings.resolv_conf {
            Some(_) if !settings.servers.is_empty() => {
                let problem = "give either servers or resolv_conf";
                return Err(Error::setting("dns.resolv_conf", problem));
            }
            Some(path) => name_servers(path)?,
            None => {
                let server = |server: &String| text("dns.servers", server, environment);
                settings.servers.iter().map(server).collect::<Result<Vec<_>, _>>()?
            }
        };
        some("dns.servers", &servers)?;
        let of_use =
            |kind: &RecordKind| matches!(kind, RecordKind::Srv | RecordKind::A | RecordKind::Aaaa);
        if !settings.order.iter().any(of_use) {
            return Err(Error::setting("dns.order", "expected at least one of SRV, A and AAAA"));
        }
        let asked = crate::upstream::DnsSettings {
            dns_resolver: servers.clone(),
            enable_resolv_search_opt: false,
            // Names of a registry are the registry's, whatever stands in a file.
            hosts_file: PathBuf::new(),
            ..crate::upstream::DnsSettings::default()
        };
        let resolver = Resolver::new(&asked).map_err(|error| {
            // The sentence names the field of another block.
            let text = error.to_string();
            let problem = text.split_once(": ").map_or(&*text, |(_, problem)| problem);
            Error::setting("dns.servers", problem)
        })?;
        Ok(Self { resolver, order: settings.order.clone(), shown: json!({ "servers": servers }) })
    }

    /// Asks for the types in their order until one has records.
    async fn resolve(
        &self,
        place: &Place,
        last: Option<RecordKind>,
    ) -> Result<(Answer<Node>, Option<RecordKind>), NameError> {
        let mut none: Option<Duration> = None;
        let mut tried = Vec::new();
        for kind in &self.order {
            let kind = match (kind, last) {
                (RecordKind::Last, None) => continue,
                (RecordKind::Last, Some(last)) => last,
                (kind, _) => *kind,
            };
            if tried.contains(&kind) {
                continue;
            }
            tried.push(kind);
            let answer = match kind {
                RecordKind::Srv => self.services(place).await?,
                RecordKind::A => self.addresses(place, Family::V4).await?,
                RecordKind::Aaaa => self.addresses(place, Family::V6).await?,
                RecordKind::Last | RecordKind::Cname => continue,
            };
            if !answer.records.is_empty() {
                // That a type which comes first has none is over sooner or later as well.
                let holds = none.map_or(answer.holds, |none| none.min(answer.holds));
                return Ok((Answer { holds, ..answer }, Some(kind)));
            }
            none = Some(none.map_or(answer.holds, |none| none.min(answer.holds)));
        }
        Ok((Answer { records: Vec::new(), holds: none.unwrap_or(AT_MOST) }, None))
    }

    async fn addresses(&self, place: &Place, family: Family) -> Result<Answer<Node>, NameError> {
        let answer = self.resolver.records(&place.name, family).await?;
        let one = |address: std::net::IpAddr| node(address.to_string(), place.port, 1);
        Ok(Answer { records: answer.records.into_iter().map(one).collect(), holds: answer.holds })
    }

    /// RFC 2782: a lower priority comes first, a weight of 0 is the smallest one. A host's addresses share its weight.
    async fn services(&self, place: &Place) -> Result<Answer<Node>, NameError> {
        let answer = self.resolver.services(&place.name).await?;
        let (mut records, mut holds) = (Vec::new(), answer.holds);
        for service in answer.records {
            let addresses = self.resolver.addresses(&service.host).await?;
            holds = holds.min(addresses.holds);
            let count = u32::try_from(addresses.records.len()).unwrap_or(u32::MAX).max(1);
            let weight = (u32::from(service.weight.max(1)) / count).max(1);
            let port = place.port.or(Some(service.port).filter(|port| *port > 0));
            records.extend(addresses.records.into_iter().map(|address| Node {
                priority: -i32::from(service.priority),
                ..node(address.to_string(), port, weight)
            }));
        }
        Ok(Answer { records, holds })
    }
}

/// The servers of a file as `resolv.conf(5)`.
fn name_servers(path: &PathBuf) -> Result<Vec<String>, Error> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| Error::Read { path: path.clone(), source })?;
    let server = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        (words.next() == Some("nameserver")).then(|| words.next().map(str::to_owned)).flatten()
    };
    Ok(text.lines().filter_map(server).collect())
}

#[async_trait]
impl Registry for Dns {
    fn board(&self) -> Board {
        Board::new(1, None)
    }

    fn service(&self, service: Service) -> Result<Service, Invalid> {
        Place::parse(&service.name)?;
        Ok(Service::named(service.name.to_ascii_lowercase()))
    }

    async fn run(&self, board: Arc<Board>) {
        let mut contact = Contact::with("dns", &self.shown["servers"].to_string(), AT_MOST);
        let mut asked = board.asked();
        let mut known = HashMap::<Service, Due>::new();
        loop {
            let wanted = board.wanted();
            known.retain(|service, _| wanted.contains(service));
            for service in wanted {
                known.entry(service).or_insert_with(|| Due { at: Instant::now(), last: None });
            }
            let now = Instant::now();
            let due: Vec<(Service, Option<RecordKind>)> = known
                .iter()
                .filter(|(_, due)| due.at <= now)
                .map(|(service, due)| (service.clone(), due.last))
                .collect();
            let is_something = !due.is_empty();
            let mut failed = None;
            let mut answers = stream::iter(due)
                .map(async |(service, last)| {
                    let answer = match Place::parse(&service.name) {
                        Ok(place) => self.resolve(&place, last).await,
                        Err(error) => {
                            Err(NameError::NoName { name: service.name.clone(), why: error.0 })
                        }
                    };
                    (service, answer)
                })
                .buffer_unordered(AT_ONCE);
            let mut unanswered = Vec::new();
            while let Some((service, answer)) = answers.next().await {
                match answer {
                    Ok((answer, last)) => {
                        board.tell(0, &service, answer.records);
                        let at = Instant::now() + answer.holds;
                        known.insert(service, Due { at, last });
                    }
                    Err(source) => {
                        failed = Some(Error::Name { name: service.name.clone(), source });
                        unanswered.push(service);
                    }
                }
            }
            drop(answers);
            if let Some(error) = failed {
                board.lost(0);
                let at = Instant::now() + contact.lost(&error);
                for service in &unanswered {
                    if let Some(due) = known.get_mut(service) {
                        due.at = at;
                    }
                }
            } else if is_something {
                contact.holds();
            }
            let next = known.values().map(|due| due.at).min();
            let pause = next.map_or(Duration::MAX, |at| at - Instant::now());
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                _ = asked.changed() => tokio::time::sleep(GATHER).await,
            }
        }
    }

    fn config(&self) -> Value {
        self.shown.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_is_a_name_with_a_port_or_without() {
        let place = |name: &str, port| Ok(Place { name: name.to_owned(), port });
        assert_eq!(Place::parse("_http._tcp.shop.test"), place("_http._tcp.shop.test", None));
        assert_eq!(Place::parse("shop.test:8080"), place("shop.test", Some(8080)));
        for wrong in ["", ":80", "a:0", "a:b", "a b", "http://a", "[::1]:80"] {
            assert!(Place::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn settings_that_make_no_sense_are_refused_by_name() {
        for (settings, sentence) in [
            (json!({}), "setting discovery.dns.servers: expected at least one"),
            (
                json!({"servers": ["dns.test"]}),
                "setting discovery.dns.servers: expected address or address:port, got \"dns.test\"",
            ),
            (
                json!({"servers": ["127.0.0.1"], "order": ["last", "CNAME"]}),
                "setting discovery.dns.order: expected at least one of SRV, A and AAAA",
            ),
            (
                json!({"servers": ["127.0.0.1"], "resolv_conf": "/etc/resolv.conf"}),
                "setting discovery.dns.resolv_conf: give either servers or resolv_conf",
            ),
        ] {
            let settings = serde_json::from_value(settings).unwrap();
            let error = Dns::new(&settings, &|_| None).err().unwrap();
            assert_eq!(error.to_string(), sentence);
        }
    }
}
