//! The settings of `limit-count`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::amount::Amount;
use super::place::Placed;
use super::refusal::default_code;

/// The settings, and where the counters are.
pub(super) type Config = Placed<Settings>;

/// How many requests of one key pass within a time. Either `count` and `time_window`, or `rules`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("oneOf" = [{"required": ["count", "time_window"]}, {"required": ["rules"]}]))]
pub(super) struct Settings {
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

const fn at_once() -> f64 {
    -1.0
}
fn default_key() -> String {
    "remote_addr".into()
}
const fn yes() -> bool {
    true
}
