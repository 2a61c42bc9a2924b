//! What keeps an upstream usable while some of its nodes are not, and keeps us from making it worse. Ours, not APISIX's; the
//! names are Envoy's where Envoy has one.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What keeps an upstream usable while some of its nodes are not. Each part is off when not given.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Resilience {
    /// Percent of the nodes: when fewer than that may be used, all are. 0: when none may be used, as in APISIX.
    #[schemars(range(min = 0, max = 100))]
    pub panic_threshold: u8,
    /// Seconds in which the share of a node that is new, or usable again, grows from a tenth to all of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slow_start: Option<f64>,
    /// Takes nodes out for a time that fail requests.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outlier_detection: Option<OutlierDetection>,
    /// Bounds what retries and hedges add to the load.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_budget: Option<RetryBudget>,
    /// Sends a request to a further node when the first one is slow.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hedging: Option<Hedging>,
    /// What may be under way at once; beyond that the answer is 503.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limits: Option<UpstreamLimits>,
}

/// Takes nodes out for a time that fail requests: 5xx answers, failed connections, late answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct OutlierDetection {
    /// So many failures one after the other take a node out; 0: they do not.
    pub consecutive_5xx: u32,
    /// Percent of the requests of an interval that must succeed; a node below is taken out. Off when not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub min_success_rate: Option<u8>,
    /// Requests that a node must have had in an interval before its success rate says anything.
    #[schemars(range(min = 1))]
    pub request_volume: u32,
    /// Seconds of an interval.
    pub interval: f64,
    /// Seconds that a node is out for the first time; each further time adds as many, each interval in order takes them off.
    pub base_ejection_time: f64,
    /// Seconds that a node is out at most.
    pub max_ejection_time: f64,
    /// Percent of the nodes that may be out at once; one in any case, unless this is 0 or there is only one node.
    #[schemars(range(min = 0, max = 100))]
    pub max_ejection_percent: u8,
}

impl Default for OutlierDetection {
    fn default() -> Self {
        Self {
            consecutive_5xx: 5,
            min_success_rate: None,
            request_volume: 100,
            interval: 10.0,
            base_ejection_time: 30.0,
            max_ejection_time: 300.0,
            max_ejection_percent: 10,
        }
    }
}

/// Bounds what retries and hedges add to the load.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RetryBudget {
    /// Percent of the requests under way that may be further attempts.
    #[schemars(range(min = 0, max = 100))]
    pub percent: u8,
    /// So many further attempts are lawful however few requests there are.
    pub min_concurrency: u32,
}

impl Default for RetryBudget {
    fn default() -> Self {
        Self { percent: 20, min_concurrency: 3 }
    }
}

/// Sends a request to a further node when the first one is slow; the first answer below 500 wins, and the others are
/// cancelled. For GET, HEAD, OPTIONS and TRACE without a body.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Hedging {
    /// Seconds without an answer before the next attempt.
    pub delay: f64,
    /// Attempts under way at once, the first one included.
    #[serde(default = "two")]
    #[schemars(range(min = 2, max = 5))]
    pub max_attempts: u8,
}

const fn two() -> u8 {
    2
}

/// What may be under way at once towards the upstream, of one process; no limit where none is given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct UpstreamLimits {
    /// Connections, idle ones included. Requests wait for one when all are in use.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub max_connections: Option<u32>,
    /// Requests that have no connection yet, because one is being made or because all are in use.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub max_pending_requests: Option<u32>,
    /// Requests, from their choice of a node to the end of the answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub max_requests: Option<u32>,
}
