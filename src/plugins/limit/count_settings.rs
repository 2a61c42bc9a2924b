//! The settings of `limit-count`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::amount::Amount;
use crate::pipeline::Redacted;

/// How many requests of one key pass within a time. Either `count` and `time_window`, or `rules`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("oneOf" = [{"required": ["count", "time_window"]}, {"required": ["rules"]}]))]
pub(super) struct Config {
    /// Requests that pass within the time; a number from 1, or a text with variables that gives one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) count: Option<Amount>,
    /// The time in seconds; a number from 1, or a text with variables that gives one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) time_window: Option<Amount>,
    /// How the time passes: from the first request on, or always the time just past.
    #[serde(default)]
    pub(super) window_type: WindowType,
    /// What requests are told apart by: a variable, variables in a text, or nothing (`key_type`).
    #[serde(default = "default_key")]
    pub(super) key: String,
    /// How `key` is read.
    #[serde(default)]
    pub(super) key_type: KeyType,
    /// The status of a refusal.
    #[serde(default = "default_code")]
    #[schemars(range(min = 200, max = 599))]
    pub(super) rejected_code: u16,
    /// What a refused caller reads, as `error_msg`; an empty body when not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub(super) rejected_msg: Option<String>,
    /// Routes with the same group share their counters; their settings must be the same, too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub(super) group: Option<String>,
    /// Where the counters are: in this process, or in Redis for all gateways together.
    #[serde(default)]
    pub(super) policy: Policy,
    /// With `redis`: the server's host. Required there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 2))]
    pub(super) redis_host: Option<String>,
    /// With `redis`: its port; 6379 when not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub(super) redis_port: Option<u16>,
    /// The user; the default one when not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub(super) redis_username: Option<String>,
    /// The password.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub(super) redis_password: Option<Redacted<String>>,
    /// With `redis` and `redis-sentinel`: the number of the database; 0 when not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub(super) redis_database: Option<u32>,
    /// With `redis` and `redis-cluster`: milliseconds within which Redis answers; 1000 when not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub(super) redis_timeout: Option<u32>,
    /// With `redis`: TLS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) redis_ssl: Option<bool>,
    /// With `redis_ssl`: the server's certificate must be one that the system trusts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) redis_ssl_verify: Option<bool>,
    /// Milliseconds that a connection waits for its next use; 10000 when not given, with `redis-sentinel` 60000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub(super) redis_keepalive_timeout: Option<u32>,
    /// How many connections wait; 100 when not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub(super) redis_keepalive_pool: Option<u32>,
    /// With `redis-cluster`: some of its nodes, `host:port`. Required there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1), inner(length(min = 2, max = 100)))]
    pub(super) redis_cluster_nodes: Option<Vec<String>>,
    /// With `redis-cluster`: its name, for operators. Required there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub(super) redis_cluster_name: Option<String>,
    /// With `redis-cluster`: TLS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) redis_cluster_ssl: Option<bool>,
    /// With `redis_cluster_ssl`: the nodes' certificates must be such that the system trusts them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) redis_cluster_ssl_verify: Option<bool>,
    /// With `redis-sentinel`: the sentinels. Required there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub(super) redis_sentinels: Option<Vec<SentinelPlace>>,
    /// With `redis-sentinel`: the name under which they know the server. Required there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub(super) redis_master_name: Option<String>,
    /// With `redis-sentinel`: `master`. Replicas cannot count: they are read only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Role")]
    pub(super) redis_role: Option<Role>,
    /// With `redis-sentinel`: the sentinels' user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub(super) sentinel_username: Option<String>,
    /// With `redis-sentinel`: the sentinels' password.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub(super) sentinel_password: Option<Redacted<String>>,
    /// With `redis-sentinel`: milliseconds to connect; 1000 when not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub(super) redis_connect_timeout: Option<u32>,
    /// With `redis-sentinel`: milliseconds to answer; 1000 when not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub(super) redis_read_timeout: Option<u32>,
    /// -1: every request is counted in Redis at once. Other values are refused: they would let through more than the limit.
    #[serde(default = "at_once")]
    #[schemars(range(min = -1, max = -1))]
    pub(super) sync_interval: f64,
    /// Lets requests pass when the limit cannot be worked out, or Redis does not answer.
    #[serde(default)]
    pub(super) allow_degradation: bool,
    /// Tells callers limit, rest and time in response headers.
    #[serde(default = "yes")]
    pub(super) show_limit_quota_header: bool,
    /// Several limits at once; each has its own key, and the first that is exceeded refuses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub(super) rules: Option<Vec<Rule>>,
}

/// One of several limits.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Rule {
    /// Requests that pass within the time.
    pub(super) count: Amount,
    /// The time in seconds.
    pub(super) time_window: Amount,
    /// A text with variables; where none of them has a value the rule does not apply.
    #[schemars(length(min = 1))]
    pub(super) key: String,
    /// Goes into the names of its headers: `X-<prefix>-RateLimit-Limit`; its number when not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) header_prefix: Option<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum WindowType {
    #[default]
    Fixed,
    Sliding,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum KeyType {
    #[default]
    Var,
    VarCombination,
    Constant,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Policy {
    #[default]
    Local,
    Redis,
    RedisCluster,
    RedisSentinel,
}

/// Where a sentinel is.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct SentinelPlace {
    /// Its host.
    #[schemars(length(min = 2))]
    pub(super) host: String,
    /// Its port.
    #[schemars(range(min = 1))]
    pub(super) port: u16,
}

/// Which of the servers that sentinels know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum Role {
    /// The one that is written to.
    Master,
}

const fn at_once() -> f64 {
    -1.0
}
fn default_key() -> String {
    "remote_addr".into()
}
const fn default_code() -> u16 {
    503
}
const fn yes() -> bool {
    true
}
