//! `Endpoint`: one place that serves, whom we expect there, and how busy it is.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::health::Condition;
use crate::mtls::ExpectedPeers;
use crate::rt::crypto::digest::{SHA256, digest};

/// What protects a connection to an endpoint.
#[derive(Clone, Debug)]
pub enum Security {
    /// Nothing: our own workload, or an upstream that speaks plain HTTP.
    Plain,
    /// Server authentication by public certificates.
    Public {
        /// `false` only where the operator wrote so.
        verify: bool,
    },
    /// mTLS with our SVID; the peer must prove one of these IDs.
    Mesh(Arc<ExpectedPeers>),
}

impl Security {
    /// What an https probe uses: the same, but for whether the server's certificate is verified.
    pub(super) fn for_probe(&self, verify: bool) -> Self {
        match self {
            Self::Plain | Self::Public { .. } => Self::Public { verify },
            Self::Mesh(expected) => Self::Mesh(expected.clone()),
        }
    }
}

/// One place that serves a cluster.
#[derive(Debug)]
pub struct Endpoint {
    /// An address or a name; IPv6 without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
    /// Its share of the requests.
    pub weight: u32,
    /// A lower level is used only when the higher ones have failed.
    pub priority: i32,
    /// What protects the connection.
    pub security: Security,
    /// The address, when `host` is one.
    pub(super) address: Option<SocketAddr>,
    /// Tells apart connections that must not be mixed: place, protection and expected identities.
    pub(super) key: u128,
    state: Arc<EndpointState>,
}

/// What is known of an endpoint beside its declaration. It outlives revisions.
#[derive(Debug, Default)]
pub(super) struct EndpointState {
    load: AtomicU32,
    condition: Condition,
}

impl Endpoint {
    pub(super) fn new(
        host: &str,
        port: u16,
        weight: u32,
        priority: i32,
        security: Security,
        state: Arc<EndpointState>,
    ) -> Self {
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let address = host.parse::<IpAddr>().ok().map(|ip| SocketAddr::new(ip, port));
        let expected = match &security {
            Security::Plain => "plain".to_owned(),
            Security::Public { verify } => format!("public {verify}"),
            Security::Mesh(expected) => format!("mesh {expected:?}"),
        };
        let digest = digest(&SHA256, format!("{host}\n{port}\n{expected}").as_bytes());
        let mut key = [0; 16];
        key.copy_from_slice(&digest.as_ref()[..16]);
        Self {
            host: host.to_owned(),
            port,
            weight,
            priority,
            security,
            address,
            key: u128::from_be_bytes(key),
            state,
        }
    }

    /// `host:port`, as a `Host` header names the node.
    pub fn authority(&self) -> String {
        match self.host.contains(':') {
            true => format!("[{}]:{}", self.host, self.port),
            false => format!("{}:{}", self.host, self.port),
        }
    }

    /// The address, when the endpoint is not a name.
    pub fn address(&self) -> Option<SocketAddr> {
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

    /// The same place as a probe connects to it: at another port, under another server name, protected in another way. The
    /// server name can differ where the address is known.
    pub(super) fn as_probed(
        &self,
        port: Option<u16>,
        server_name: Option<&str>,
        security: Security,
    ) -> Self {
        let port = port.unwrap_or(self.port);
        let host = server_name.filter(|_| self.address.is_some()).unwrap_or(&self.host);
        let state = self.state.clone();
        let mut place = Self::new(host, port, self.weight, self.priority, security, state);
        place.address = self.address.map(|address| SocketAddr::new(address.ip(), port));
        place
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
}

/// Counts one request under way at its endpoint.
#[derive(Debug)]
pub struct Busy(Arc<Endpoint>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.state.load.fetch_sub(1, Ordering::Relaxed);
    }
}
