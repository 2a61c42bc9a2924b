//! Health checks of an upstream's nodes, field by field as in APISIX.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Method;

/// How nodes are checked: by probes of our own, and by what requests find.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Checks {
    /// Probes of our own.
    pub active: ActiveCheck,
    /// What requests find.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub passive: Option<PassiveCheck>,
}

/// What a check speaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum CheckType {
    /// A request and the status of its answer.
    #[default]
    Http,
    /// The same over TLS.
    Https,
    /// A connection is enough.
    Tcp,
}

/// Probes of our own. They connect as requests do: to mesh nodes over mTLS, with the SPIFFE ID that is expected there.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ActiveCheck {
    /// What a probe speaks.
    #[serde(rename = "type")]
    pub kind: CheckType,
    /// Seconds that a probe may take, connection included.
    pub timeout: f64,
    /// Probes under way at once.
    #[schemars(range(min = 1))]
    pub concurrency: u32,
    /// The Host of a probe, and the name of the server's certificate; the node's own when not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^\*?[0-9a-zA-Z\-_.\[\]:]+$"))]
    pub host: Option<String>,
    /// The port that is probed; the node's own when not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub port: Option<u16>,
    /// The method.
    pub http_method: Method,
    /// The path, with the query.
    pub http_path: String,
    /// The body.
    pub http_req_body: String,
    /// Verify the server's certificate. Peers with a SPIFFE ID are verified in any case.
    pub https_verify_certificate: bool,
    /// Further fields, each as `Name: value`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("minItems" = 1, "uniqueItems" = true))]
    pub req_headers: Vec<String>,
    /// What makes a node healthy.
    pub healthy: ActiveHealthy,
    /// What makes a node unhealthy.
    pub unhealthy: ActiveUnhealthy,
}

impl Default for ActiveCheck {
    fn default() -> Self {
        Self {
            kind: CheckType::Http,
            timeout: 1.0,
            concurrency: 10,
            host: None,
            port: None,
            http_method: Method::Get,
            http_path: "/".to_owned(),
            http_req_body: String::new(),
            https_verify_certificate: true,
            req_headers: Vec::new(),
            healthy: ActiveHealthy::default(),
            unhealthy: ActiveUnhealthy::default(),
        }
    }
}

/// What makes a node healthy by probes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ActiveHealthy {
    /// Seconds between two probes of a healthy node.
    #[schemars(range(min = 1))]
    pub interval: u32,
    /// Statuses that count as a success.
    #[schemars(length(min = 1), inner(range(min = 200, max = 599)), extend("uniqueItems" = true))]
    pub http_statuses: Vec<u16>,
    /// Successes that make a node healthy.
    #[schemars(range(min = 1, max = 254))]
    pub successes: u8,
}

impl Default for ActiveHealthy {
    fn default() -> Self {
        Self { interval: 1, http_statuses: vec![200, 302], successes: 2 }
    }
}

/// What makes a node unhealthy by probes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ActiveUnhealthy {
    /// Seconds between two probes of an unhealthy node.
    #[schemars(range(min = 1))]
    pub interval: u32,
    /// Statuses that count as a failure.
    #[schemars(length(min = 1), inner(range(min = 200, max = 599)), extend("uniqueItems" = true))]
    pub http_statuses: Vec<u16>,
    /// Failures by status that make a node unhealthy.
    #[schemars(range(min = 1, max = 254))]
    pub http_failures: u8,
    /// Failed connections that make a node unhealthy.
    #[schemars(range(min = 1, max = 254))]
    pub tcp_failures: u8,
    /// Late answers that make a node unhealthy.
    #[schemars(range(min = 1, max = 254))]
    pub timeouts: u8,
}

impl Default for ActiveUnhealthy {
    fn default() -> Self {
        Self {
            interval: 1,
            http_statuses: vec![429, 404, 500, 501, 502, 503, 504, 505],
            http_failures: 5,
            tcp_failures: 2,
            timeouts: 3,
        }
    }
}

/// What requests find.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PassiveCheck {
    /// `tcp` looks at no status.
    #[serde(rename = "type")]
    pub kind: CheckType,
    /// What makes a node healthy.
    pub healthy: PassiveHealthy,
    /// What makes a node unhealthy.
    pub unhealthy: PassiveUnhealthy,
}

/// What makes a node healthy by requests.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PassiveHealthy {
    /// Statuses that count as a success.
    #[schemars(length(min = 1), inner(range(min = 200, max = 599)), extend("uniqueItems" = true))]
    pub http_statuses: Vec<u16>,
    /// Successes that make a node healthy; 0 counts none.
    #[schemars(range(min = 0, max = 254))]
    pub successes: u8,
}

impl Default for PassiveHealthy {
    fn default() -> Self {
        let http_statuses = (200..=208).chain([226]).chain(300..=308).collect();
        Self { http_statuses, successes: 5 }
    }
}

/// What makes a node unhealthy by requests.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PassiveUnhealthy {
    /// Statuses that count as a failure.
    #[schemars(length(min = 1), inner(range(min = 200, max = 599)), extend("uniqueItems" = true))]
    pub http_statuses: Vec<u16>,
    /// Failed connections that make a node unhealthy; 0 counts none.
    #[schemars(range(min = 0, max = 254))]
    pub tcp_failures: u8,
    /// Late answers that make a node unhealthy; 0 counts none.
    #[schemars(range(min = 0, max = 254))]
    pub timeouts: u8,
    /// Failures by status that make a node unhealthy; 0 counts none.
    #[schemars(range(min = 0, max = 254))]
    pub http_failures: u8,
}

impl Default for PassiveUnhealthy {
    fn default() -> Self {
        Self { http_statuses: vec![429, 500, 503], tcp_failures: 2, timeouts: 7, http_failures: 5 }
    }
}
