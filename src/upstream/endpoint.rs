//! `Endpoint`: one place that serves, whom we expect there, how busy and how quick it is.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use rustls_pki_types::ServerName;

use super::average::{Average, Tick};
use super::health::Condition;
use crate::model::ProxyProtocol;
use crate::mtls::{ExpectedPeers, OriginConnector};
use crate::rt::crypto::digest::{SHA256, digest};

/// What protects a connection to an endpoint.
#[derive(Clone, Debug)]
pub enum Security {
    /// Nothing: our own workload, or an upstream that speaks plain HTTP.
    Plain,
    /// TLS to a server with a public certificate.
    Public(PublicTls),
    /// mTLS with our SVID; the peer must prove one of these IDs.
    Mesh(Arc<ExpectedPeers>),
}

/// How upstreams of the public world are reached.
#[derive(Clone, Debug)]
pub struct PublicTls {
    /// The sentence says why they cannot be reached.
    pub(super) connector: Result<Arc<OriginConnector>, Arc<str>>,
    /// Tells settings apart.
    pub(super) setting: Arc<str>,
}

/// Connections that may stand for each other: to the same endpoint, in the same way, and by the same server name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Place(u128);

/// One place that serves a cluster.
#[derive(Debug)]
pub struct Endpoint {
    /// The address or the name that was declared; IPv6 without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
    /// Its share of the requests.
    pub weight: u32,
    /// A lower level is used only when the higher ones have failed.
    pub priority: i32,
    /// What protects the connection.
    pub security: Security,
    /// Which PROXY header begins a connection.
    pub introduction: Option<ProxyProtocol>,
    address: SocketAddr,
    /// The `Host` of `pass_host: node`.
    host_field: Box<str>,
    /// Tells apart connections that must not be mixed: place, protection and expected identities.
    key: u128,
    /// Answers are timed: somebody chooses by that.
    is_timed: bool,
    state: Arc<EndpointState>,
}

/// What an [`Endpoint`] is made of.
pub(super) struct EndpointParts<'a> {
    pub(super) host: &'a str,
    pub(super) address: IpAddr,
    pub(super) port: u16,
    pub(super) weight: u32,
    pub(super) priority: i32,
    pub(super) security: Security,
    /// Which PROXY header begins a connection.
    pub(super) introduction: Option<ProxyProtocol>,
    /// The port that goes without saying.
    pub(super) default_port: u16,
    pub(super) is_timed: bool,
    pub(super) state: Arc<EndpointState>,
}

/// What is known of an endpoint beside its declaration. It outlives revisions.
#[derive(Debug, Default)]
pub(super) struct EndpointState {
    load: AtomicU32,
    condition: Condition,
    time_to_answer: Average,
}

impl Endpoint {
    pub(super) fn new(parts: EndpointParts<'_>) -> Self {
        let EndpointParts {
            port, weight, priority, security, introduction, is_timed, state, ..
        } = parts;
        let host = parts.host.trim_start_matches('[').trim_end_matches(']');
        let address = SocketAddr::new(parts.address, port);
        let expected = match &security {
            Security::Plain => "plain".to_owned(),
            Security::Public(tls) => format!("public {}", tls.setting),
            Security::Mesh(expected) => format!("mesh {expected:?}"),
        };
        let digest =
            digest(&SHA256, format!("{host}\n{address}\n{expected}\n{introduction:?}").as_bytes());
        let mut key = [0; 16];
        key.copy_from_slice(&digest.as_ref()[..16]);
        let key = u128::from_be_bytes(key);
        let bracketed = match host.contains(':') {
            true => format!("[{host}]"),
            false => host.to_owned(),
        };
        let host_field = match port == parts.default_port {
            true => bracketed,
            false => format!("{bracketed}:{port}"),
        };
        let (host, host_field) = (host.to_owned(), host_field.into());
        Self {
            host,
            port,
            weight,
            priority,
            security,
            introduction,
            address,
            host_field,
            key,
            is_timed,
            state,
        }
    }

    /// `host:port`, for people; with the address behind a name.
    pub fn authority(&self) -> String {
        match self.host.parse::<IpAddr>() {
            Ok(_) => self.address.to_string(),
            Err(_) => format!("{}:{} ({})", self.host, self.port, self.address.ip()),
        }
    }

    /// The `Host` of `pass_host: node`: without the port where it goes without saying.
    pub fn host_field(&self) -> &str {
        &self.host_field
    }

    /// Where it is.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What is known of its health.
    pub(super) fn condition(&self) -> &Condition {
        &self.state.condition
    }

    /// Tells its state apart from others'.
    pub(super) fn state_key(&self) -> usize {
        Arc::as_ptr(&self.state).addr()
    }

    /// The same place as a probe connects to it: at another port, protected in another way.
    pub(super) fn as_probed(&self, port: Option<u16>, security: Security) -> Self {
        let port = port.unwrap_or(self.port);
        Self::new(EndpointParts {
            host: &self.host,
            address: self.address.ip(),
            port,
            weight: self.weight,
            priority: self.priority,
            default_port: if matches!(security, Security::Public(_)) { 443 } else { 80 },
            security,
            introduction: self.introduction.filter(|_| port == self.port),
            is_timed: false,
            state: self.state.clone(),
        })
    }

    /// Which connections may take a request that is sent with this `Host`.
    pub fn place(&self, sent_host: &str) -> Place {
        match &self.security {
            Security::Public(_) => Place(self.key ^ hash_of(self.server_name(sent_host))),
            Security::Plain | Security::Mesh(_) => Place(self.key),
        }
    }

    /// The name that a public server has to prove: that of the `Host` that is sent, as nginx's `proxy_ssl_name`; the node's own
    /// where that is none.
    pub(super) fn server_name<'a>(&'a self, sent_host: &'a str) -> &'a str {
        let name = match sent_host.strip_prefix('[') {
            Some(rest) => rest.split(']').next().unwrap_or_default(),
            None => sent_host.split(':').next().unwrap_or_default(),
        };
        let name = name.strip_suffix('.').unwrap_or(name);
        match ServerName::try_from(name) {
            Ok(_) => name,
            Err(_) => &self.host,
        }
    }

    /// Requests under way.
    pub fn load(&self) -> u32 {
        self.state.load.load(Ordering::Relaxed)
    }

    /// One more request is under way until the guard is dropped.
    pub fn busy(self: &Arc<Self>) -> Busy {
        self.state.load.fetch_add(1, Ordering::Relaxed);
        Busy(self.clone())
    }

    /// Seconds until it answers, lately. 0 when nothing is known.
    pub(super) fn time_to_answer(&self, now: Tick) -> f32 {
        self.state.time_to_answer.at(now)
    }
}

/// Nobody outside can aim at it: a caller chooses the names where the client's `Host` is passed on.
fn hash_of(name: &str) -> u128 {
    static KEYS: LazyLock<(RandomState, RandomState)> =
        LazyLock::new(|| (RandomState::new(), RandomState::new()));
    let half = |keys: &RandomState| {
        let mut hasher = keys.build_hasher();
        name.bytes().for_each(|byte| hasher.write_u8(byte.to_ascii_lowercase()));
        u128::from(hasher.finish())
    };
    half(&KEYS.0) << 64 | half(&KEYS.1)
}

/// Counts one request under way at its endpoint.
#[derive(Debug)]
pub struct Busy(Arc<Endpoint>);

impl Busy {
    /// What a failure counts for at least, so that a node that refuses at once does not pass for a quick one.
    const FAILED: Duration = Duration::from_secs(1);

    /// The answer began `after` the request was sent.
    pub fn answered(&self, after: Duration) {
        if self.0.is_timed {
            self.0.state.time_to_answer.note(after, Tick::now());
        }
    }

    /// There was no answer.
    pub fn failed(&self, after: Duration) {
        self.answered(after.max(Self::FAILED));
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.state.load.fetch_sub(1, Ordering::Relaxed);
    }
}
