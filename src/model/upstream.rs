//! Upstreams: nodes, balancing, timeouts, TLS, and whom we expect at the other end.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{Checks, DiscoveryArgs, DiscoveryType, Id, Labels, Redacted, Resilience, Timeout};

/// How a node is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Balance {
    /// Weighted, smooth.
    #[default]
    #[serde(rename = "roundrobin")]
    RoundRobin,
    /// The same key goes to the same node.
    Chash,
    /// The node with the fewest requests under way for its weight.
    LeastConn,
    /// Of two nodes by chance the one that has answered sooner lately.
    Ewma,
}

/// What `chash` hashes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum HashOn {
    /// A variable, named by `key`.
    #[default]
    Vars,
    /// A request header, named by `key`.
    Header,
    /// A cookie, named by `key`.
    Cookie,
    /// The consumer's name.
    Consumer,
    /// Several variables, as a template in `key`.
    VarsCombinations,
}

/// What the upstream speaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the schemes' own names")]
pub enum Scheme {
    #[default]
    Http,
    Https,
    Grpc,
    Grpcs,
}

/// Which Host the upstream reads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum PassHost {
    /// The client's.
    #[default]
    Pass,
    /// The node's.
    Node,
    /// `upstream_host`.
    Rewrite,
}

/// One place that serves the upstream.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Node {
    /// An address or a name. IPv6 in brackets.
    #[schemars(regex(pattern = r"^\*?[0-9a-zA-Z\-_.\[\]:]+$"))]
    pub host: String,
    /// 80 for http and grpc, 443 for https and grpcs when not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub port: Option<u16>,
    /// Its share; 0 gets nothing.
    #[schemars(range(min = 0))]
    pub weight: u32,
    /// A lower level is used only when all nodes of the higher ones have failed.
    #[serde(default)]
    pub priority: i32,
    /// The SPIFFE IDs one of which this node must prove; wins over the upstream's. Ours, not APISIX's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub spiffe_ids: Vec<String>,
    /// Free-form; nothing here reads it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<Map<String, Value>>,
}

/// Nodes in either of APISIX's two forms.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Nodes {
    /// `{"host:port": weight}`.
    Map(BTreeMap<String, u32>),
    /// A list of objects.
    List(Vec<Node>),
}

/// How many connections wait for their next request, and how long; one pool a worker.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct KeepalivePool {
    /// Idle connections kept.
    #[serde(default = "default_pool_size")]
    #[schemars(range(min = 1))]
    pub size: u32,
    /// Seconds after which an idle one is closed; 0: when the server closes it.
    #[serde(default = "default_idle_timeout")]
    #[schemars(range(min = 0))]
    pub idle_timeout: f64,
    /// Requests after which a connection is closed.
    #[serde(default = "default_pool_requests")]
    #[schemars(range(min = 1))]
    pub requests: u32,
}

const fn default_pool_size() -> u32 {
    320
}
const fn default_idle_timeout() -> f64 {
    60.0
}
const fn default_pool_requests() -> u32 {
    1000
}

impl Default for KeepalivePool {
    fn default() -> Self {
        Self {
            size: default_pool_size(),
            idle_timeout: default_idle_timeout(),
            requests: default_pool_requests(),
        }
    }
}

/// What we present to the upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum UpstreamIdentity {
    /// Our own SVID: mTLS to a workload.
    Svid,
}

/// TLS towards the upstream.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct UpstreamTls {
    /// Present our SVID and verify the peer's by its trust domain's bundle. Ours, not APISIX's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<UpstreamIdentity>,
    /// The SPIFFE IDs (exact, or path patterns of one trust domain) one of which the peer must prove; mandatory with `identity`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub spiffe_ids: Vec<String>,
    /// Verify the server's public certificate; `true` when not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verify: Option<bool>,
    /// Who vouches for the server: certificates as PEM, in place of the authorities that the data plane trusts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(inner(length(min = 128, max = 65536)))]
    pub ca_certs: Vec<String>,
    /// What we show to the server: a chain as PEM, leaf first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 128, max = 65536))]
    pub client_cert: Option<String>,
    /// The private key of `client_cert` as PEM; never returned by the Admin API.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 64, max = 65536))]
    pub client_key: Option<Redacted<String>>,
    /// In place of both: an `ssl` resource of type `client`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_cert_id: Option<Id>,
}

/// Which version of the PROXY protocol introduces the caller to the upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ProxyProtocol {
    /// A line of text.
    V1,
    /// Binary.
    V2,
}

/// Where requests go.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("oneOf" = [
    {"required": ["nodes"]},
    {"required": ["service_name", "discovery_type"]}
]))]
pub struct Upstream {
    /// Its id; the key in the store is the truth.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<Id>,
    /// A name for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    pub name: Option<String>,
    /// What it is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub desc: Option<String>,
    /// Free-form labels.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
    /// How a node is chosen.
    #[serde(default, rename = "type")]
    pub balance: Balance,
    /// What `chash` hashes.
    #[serde(default)]
    pub hash_on: HashOn,
    /// The variable, header or cookie that `chash` hashes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// The nodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nodes: Option<Nodes>,
    /// In place of nodes: the service's name in the registry of `discovery_type`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    pub service_name: Option<String>,
    /// Which registry knows the nodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub discovery_type: Option<DiscoveryType>,
    /// What the registry is told beside the name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub discovery_args: Option<DiscoveryArgs>,
    /// Further nodes tried after a failure; all the others when not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub retries: Option<u32>,
    /// Seconds after which no further node is tried; 0 means no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub retry_timeout: Option<f64>,
    /// Time limits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Timeout>,
    /// What the upstream speaks.
    #[serde(default)]
    pub scheme: Scheme,
    /// Which Host it reads.
    #[serde(default)]
    pub pass_host: PassHost,
    /// The Host for `pass_host: rewrite`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upstream_host: Option<String>,
    /// TLS and identity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<UpstreamTls>,
    /// Idle connections.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keepalive_pool: Option<KeepalivePool>,
    /// Introduces the caller by a PROXY header before anything else on a connection, which then serves that caller alone. Ours,
    /// not APISIX's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxy_protocol: Option<ProxyProtocol>,
    /// How nodes are checked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checks: Option<Checks>,
    /// What keeps it usable while some of its nodes are not. Ours, not APISIX's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resilience: Option<Resilience>,
    /// Written by the server, seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub create_time: Option<i64>,
    /// Written by the server, seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub update_time: Option<i64>,
}
