//! `Resolver`: what names mean, asked from DNS and `/etc/hosts`, and kept current while somebody needs it.
//!
//! Requests do not ask: whoever needs a name's addresses holds [`Addresses`], which a task of the roster asks for again whenever
//! they are over. What is known stays in force while the servers cannot say better.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{
    ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts,
};
use hickory_resolver::lookup::Lookup;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::rr::{Name, RData, RecordType};
use hickory_resolver::system_conf::read_system_conf;
use schemars::JsonSchema;
use serde::Deserialize;

use super::{Attended, Roster};
use crate::rt::{Backoff, Live, Publisher};

/// An answer holds for so long at least: a TTL of 0 must not mean a question without pause.
const SHORTEST: Duration = Duration::from_secs(1);
/// How long it holds that a name has no records, where the answer does not say so.
const NONE_HOLDS: Duration = Duration::from_secs(10);
/// How long a line of the hosts file holds.
const HOSTS_HOLD: Duration = Duration::from_secs(5);
/// The longest pause between two questions that are not answered.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// How names are resolved. The names are those of APISIX's `config.yaml`.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct DnsSettings {
    /// The servers, as `address` or `address:port`; those of `/etc/resolv.conf` when there are none.
    pub dns_resolver: Vec<String>,
    /// Seconds that an answer holds, whatever its TTL says.
    #[schemars(range(min = 1))]
    pub dns_resolver_valid: Option<u32>,
    /// Seconds that an answer holds at most, whatever its TTL says.
    #[schemars(range(min = 1))]
    pub dns_resolver_max_valid: u32,
    /// Seconds for a question. The first requests for a name wait so long at most.
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub resolver_timeout: f64,
    /// Completes names as `search` and `ndots` of `/etc/resolv.conf` say.
    pub enable_resolv_search_opt: bool,
    /// Uses IPv6 addresses, of names that have no IPv4 address.
    pub enable_ipv6: bool,
    /// Names that need no server.
    pub hosts_file: PathBuf,
}

impl Default for DnsSettings {
    fn default() -> Self {
        Self {
            dns_resolver: Vec::new(),
            dns_resolver_valid: None,
            dns_resolver_max_valid: 3600,
            resolver_timeout: 5.0,
            enable_resolv_search_opt: true,
            enable_ipv6: true,
            hosts_file: "/etc/hosts".into(),
        }
    }
}

/// Why nothing can be said about a name.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NameError {
    /// A setting makes no sense.
    #[error("{0}")]
    Setting(String),
    /// It is no name.
    #[error("{name:?} is no name: {why}")]
    NoName {
        /// What it is.
        name: String,
        /// What is wrong with it.
        why: String,
    },
    /// There is nobody to ask.
    #[error("{0} is not in the hosts file, and no DNS server is known")]
    NoServer(String),
    /// No server gave an answer that can be used.
    #[error("{name}: {why}")]
    Server {
        /// The name that was asked for.
        name: String,
        /// What came in place of an answer.
        why: String,
    },
}

/// What is known of a name, and for how long. No records: there are none.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer<T> {
    /// The records.
    pub records: Vec<T>,
    /// Not to be asked again before that.
    pub holds: Duration,
}

/// A family of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// A records.
    V4,
    /// AAAA records.
    V6,
}

/// A host that serves a service (RFC 2782).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Service {
    /// A lower one comes first.
    pub priority: u16,
    /// Its share among those of the same priority; 0 is the smallest.
    pub weight: u16,
    /// The port there.
    pub port: u16,
    /// The host's name, without a dot at its end.
    pub host: String,
}

/// What names mean. Clones ask the same servers.
#[derive(Clone)]
pub struct Resolver(Arc<Inner>);

struct Inner {
    resolver: Option<TokioResolver>,
    hosts: PathBuf,
    timeout: Duration,
    valid: Option<Duration>,
    longest: Duration,
    ipv6: bool,
}

impl std::fmt::Debug for Resolver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Resolver").field("has_servers", &self.0.resolver.is_some()).finish()
    }
}

impl Resolver {
    /// Reads `/etc/resolv.conf` where it is needed. Without servers only the hosts file says something.
    ///
    /// # Errors
    /// A setting makes no sense.
    pub fn new(settings: &DnsSettings) -> Result<Self, NameError> {
        let invalid = |field: &str, why: &str| NameError::Setting(format!("dns.{field}: {why}"));
        let timeout = Duration::try_from_secs_f64(settings.resolver_timeout)
            .ok()
            .filter(|timeout| !timeout.is_zero())
            .ok_or_else(|| invalid("resolver_timeout", "expected seconds above 0"))?;
        if settings.dns_resolver_valid == Some(0) || settings.dns_resolver_max_valid == 0 {
            return Err(invalid("dns_resolver_valid", "expected seconds above 0"));
        }
        let servers = settings
            .dns_resolver
            .iter()
            .map(|text| {
                server(text).ok_or_else(|| {
                    invalid(
                        "dns_resolver",
                        &format!("expected address or address:port, got {text:?}"),
                    )
                })
            })
            .collect::<Result<Vec<_>, _>>()?;
        Ok(Self(Arc::new(Inner {
            resolver: resolver(settings, servers, timeout)?,
            hosts: settings.hosts_file.clone(),
            timeout,
            valid: settings.dns_resolver_valid.map(|seconds| Duration::from_secs(seconds.into())),
            longest: Duration::from_secs(settings.dns_resolver_max_valid.into()),
            ipv6: settings.enable_ipv6,
        })))
    }

    /// How long a question may take.
    pub fn timeout(&self) -> Duration {
        self.0.timeout
    }

    /// The addresses of a name, sorted: IPv4, or IPv6 where there are none of the former.
    ///
    /// # Errors
    /// Nothing can be said: the name makes no sense, or no server answers.
    pub async fn addresses(&self, name: &str) -> Result<Answer<IpAddr>, NameError> {
        let read = parsed(name)?;
        let listed = listed(&self.0.hosts, name).await;
        let (mut v4, mut v6): (Vec<_>, Vec<_>) = listed.into_iter().partition(IpAddr::is_ipv4);
        let mut holds = HOSTS_HOLD;
        if v4.is_empty() && (v6.is_empty() || !self.0.ipv6) {
            let address = |data: &RData| match data {
                RData::A(address) => Some(IpAddr::V4(address.0)),
                RData::AAAA(address) => Some(IpAddr::V6(address.0)),
                _ => None,
            };
            let answer = self.ask(&read, RecordType::A, address).await?;
            (v4, holds) = (answer.records, answer.holds);
            if v4.is_empty() && self.0.ipv6 {
                let answer = self.ask(&read, RecordType::AAAA, address).await?;
                // That there is no IPv4 address is over sooner or later as well.
                let none_holds = if answer.records.is_empty() { holds } else { answer.holds };
                (v6, holds) = (answer.records, answer.holds.min(none_holds));
            }
        }
        let mut records = if v4.is_empty() && self.0.ipv6 { v6 } else { v4 };
        records.sort_unstable();
        records.dedup();
        Ok(Answer { records, holds })
    }

    /// The addresses of a name that its records of one type give, sorted. The hosts file is not asked.
    ///
    /// # Errors
    /// As [`Resolver::addresses`].
    pub async fn records(&self, name: &str, family: Family) -> Result<Answer<IpAddr>, NameError> {
        let (kind, is_v4) = match family {
            Family::V4 => (RecordType::A, true),
            Family::V6 => (RecordType::AAAA, false),
        };
        let address = |data: &RData| match data {
            RData::A(address) if is_v4 => Some(IpAddr::V4(address.0)),
            RData::AAAA(address) if !is_v4 => Some(IpAddr::V6(address.0)),
            _ => None,
        };
        let mut answer = self.ask(&parsed(name)?, kind, address).await?;
        answer.records.sort_unstable();
        answer.records.dedup();
        Ok(answer)
    }

    /// The hosts that serve a service such as `_http._tcp.shop.example`, sorted.
    ///
    /// # Errors
    /// As [`Resolver::addresses`].
    pub async fn services(&self, name: &str) -> Result<Answer<Service>, NameError> {
        let service = |data: &RData| match data {
            RData::SRV(found) => Some(Service {
                priority: found.priority,
                weight: found.weight,
                port: found.port,
                host: found.target.to_utf8().trim_end_matches('.').to_owned(),
            }),
            _ => None,
        };
        let mut answer = self.ask(&parsed(name)?, RecordType::SRV, service).await?;
        // RFC 2782: a target of "." says that the service is decidedly not there.
        answer.records.retain(|service| !service.host.is_empty());
        answer.records.sort_unstable();
        answer.records.dedup();
        Ok(answer)
    }

    async fn ask<T>(
        &self,
        name: &Name,
        kind: RecordType,
        read: impl Fn(&RData) -> Option<T>,
    ) -> Result<Answer<T>, NameError> {
        let wrong = |why: String| NameError::Server { name: name.to_string(), why };
        let Some(resolver) = &self.0.resolver else {
            return Err(NameError::NoServer(name.to_string()));
        };
        let asked = tokio::time::timeout(self.0.timeout, resolver.lookup(name.clone(), kind));
        let (records, ttl) = match asked.await {
            Err(_) => return Err(wrong(format!("no answer within {:?}", self.0.timeout))),
            Ok(Ok(lookup)) => {
                let records = lookup.answers().iter().filter_map(|record| read(&record.data));
                (records.collect(), ttl(&lookup))
            }
            Ok(Err(NetError::Dns(DnsError::NoRecordsFound(none)))) => {
                let ttl =
                    none.negative_ttl.map_or(NONE_HOLDS, |ttl| Duration::from_secs(ttl.into()));
                (Vec::new(), ttl)
            }
            Ok(Err(error)) => return Err(wrong(error.to_string())),
        };
        let longest = self.0.longest.max(SHORTEST);
        let holds = self.0.valid.unwrap_or(ttl).clamp(SHORTEST, longest);
        Ok(Answer { records, holds })
    }
}

fn ttl(lookup: &Lookup) -> Duration {
    lookup.valid_until().saturating_duration_since(std::time::Instant::now())
}

fn parsed(name: &str) -> Result<Name, NameError> {
    Name::from_str_relaxed(name)
        .map_err(|error| NameError::NoName { name: name.to_owned(), why: error.to_string() })
}

fn server(text: &str) -> Option<SocketAddr> {
    let address = || text.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    text.parse().ok().or_else(|| address().ok().map(|address| SocketAddr::new(address, 53)))
}

fn resolver(
    settings: &DnsSettings,
    servers: Vec<SocketAddr>,
    timeout: Duration,
) -> Result<Option<TokioResolver>, NameError> {
    let (system, mut options) = match read_system_conf() {
        Ok((config, options)) => (Some(config), options),
        Err(error) => {
            tracing::debug!(%error, "the system names no DNS servers");
            (None, ResolverOpts::default())
        }
    };
    let (domain, search, known) = system.map(ResolverConfig::into_parts).unwrap_or_default();
    let (domain, search) = match settings.enable_resolv_search_opt {
        true => (domain, search),
        false => (None, Vec::new()),
    };
    let servers = match servers.is_empty() {
        true => known,
        false => servers.into_iter().map(name_server).collect(),
    };
    if servers.is_empty() {
        return Ok(None);
    }
    let attempts = u32::try_from(options.attempts.clamp(1, 5)).unwrap_or(1);
    // All attempts fit the time for the question.
    options.timeout = timeout / (attempts + 1);
    // The file is read by us, since it may change; and what is known is remembered by whoever needs it.
    options.use_hosts_file = ResolveHosts::Never;
    options.cache_size = 0;
    options.try_tcp_on_error = true;
    options.edns0 = true;
    let config = ResolverConfig::from_parts(domain, search, servers);
    let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
    *builder.options_mut() = options;
    builder.build().map(Some).map_err(|error| NameError::Setting(format!("dns: {error}")))
}

fn name_server(address: SocketAddr) -> NameServerConfig {
    let connection = |mut connection: ConnectionConfig| {
        connection.port = address.port();
        connection
    };
    let connections =
        vec![connection(ConnectionConfig::udp()), connection(ConnectionConfig::tcp())];
    NameServerConfig::new(address.ip(), true, connections)
}

/// The addresses that the hosts file gives a name (`hosts(5)`). A file that is not there gives none.
async fn listed(file: &Path, name: &str) -> Vec<IpAddr> {
    let Ok(text) = tokio::fs::read_to_string(file).await else { return Vec::new() };
    let name = name.strip_suffix('.').unwrap_or(name);
    let address = |line: &str| {
        let line = line.split('#').next().unwrap_or_default();
        let mut words = line.split_ascii_whitespace();
        let address = words.next()?.parse().ok()?;
        words.any(|word| word.eq_ignore_ascii_case(name)).then_some(address)
    };
    text.lines().filter_map(address).collect()
}

/// The addresses of a name, kept current for as long as somebody holds them.
pub(super) struct Addresses {
    name: String,
    publisher: Publisher<Option<Arc<[IpAddr]>>>,
    live: Live<Option<Arc<[IpAddr]>>>,
}

impl Addresses {
    /// Those of `name`; one task for all who hold them.
    pub(super) fn keep(name: &str, roster: &Roster) -> Arc<Attended<Self>> {
        let name = name.to_ascii_lowercase();
        let names = roster.names().cloned();
        let key = format!("addresses of {name}");
        let make = || {
            let (publisher, live) = Publisher::new(None);
            Self { name, publisher, live }
        };
        roster.keep(&key, make, |addresses| async move {
            if let Some(names) = names {
                addresses.follow(&names).await;
            }
        })
    }

    /// The addresses of each moment. `None`: nobody has answered yet.
    pub(super) fn live(&self) -> &Live<Option<Arc<[IpAddr]>>> {
        &self.live
    }

    async fn follow(&self, names: &Resolver) {
        let mut backoff = Backoff::new(SHORTEST, LONGEST_PAUSE);
        let mut failing = false;
        loop {
            match names.addresses(&self.name).await {
                Ok(answer) => {
                    if failing || answer.records.is_empty() {
                        tracing::info!(
                            name = self.name,
                            addresses = answer.records.len(),
                            "a name is resolved"
                        );
                    }
                    backoff.reset();
                    failing = false;
                    self.set(&answer.records);
                    tokio::time::sleep(answer.holds).await;
                }
                Err(error) => {
                    if !std::mem::replace(&mut failing, true) {
                        tracing::warn!(name = self.name, "a name cannot be resolved: {error}");
                    }
                    if self.live.load().is_none() {
                        // Nobody shall wait for what nobody knows.
                        self.set(&[]);
                    }
                    backoff.wait().await;
                }
            }
        }
    }

    /// The same addresses as before are nothing new.
    fn set(&self, addresses: &[IpAddr]) {
        if self.live.load().as_deref() != Some(addresses) {
            self.publisher.set(Some(addresses.into()));
        }
    }
}

#[cfg(test)]
mod tests;
