//! `Endpoint`: one place that serves, whom we expect there, and how busy it is.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::model::ProxyProtocol;
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
    /// Which PROXY header begins a connection.
    pub introduction: Option<ProxyProtocol>,
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
            introduction: None,
            address,
            key: u128::from_be_bytes(key),
            state,
        }
    }

    /// The same, with connections that a PROXY header begins.
    pub(super) fn introduced_by(mut self, version: Option<ProxyProtocol>) -> Self {
        self.introduction = version;
        self.key ^= match version {
            None => 0,
            // Connections that begin otherwise are others: they never share a place in the pool.
            Some(ProxyProtocol::V1) => 1,
            Some(ProxyProtocol::V2) => 2,
        };
        self
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
