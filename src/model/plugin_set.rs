//! Plugins as configured: name to settings, with the part `_meta` that belongs to the chain.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Id, Labels};

/// Plugin name to its settings. Each plugin judges its own settings when the set is compiled.
pub type PluginSet = BTreeMap<String, PluginSettings>;

/// One plugin's settings as the operator wrote them, `_meta` apart.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PluginSettings {
    /// What the chain does with the plugin; the plugin itself never sees it.
    #[serde(rename = "_meta", default, skip_serializing_if = "Option::is_none")]
    pub meta: Option<PluginMeta>,
    /// The plugin's own settings, judged by its own schema.
    #[serde(flatten)]
    pub config: serde_json::Map<String, Value>,
}

/// `_meta`: how the chain treats a plugin.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PluginMeta {
    /// Leaves the plugin out; a disabled plugin on a route also cancels the service's.
    #[serde(default)]
    pub disable: bool,
    /// Runs the plugin only when this expression (`vars` syntax) holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filter: Option<Value>,
    /// Sorts the plugin by this number instead of its own priority.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<i32>,
    /// Replaces the body of the plugin's own refusals: a text, or an object that is sent as JSON.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error_response: Option<Value>,
}

/// Plugins under a name, for several routes (`plugin_configs`).
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PluginConfig {
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
    /// The plugins.
    pub plugins: PluginSet,
    /// Written by the server, seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub create_time: Option<i64>,
    /// Written by the server, seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub update_time: Option<i64>,
}

/// Plugins that run before every route's own (`global_rules`).
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GlobalRule {
    /// Its id; the key in the store is the truth.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<Id>,
    /// The plugins.
    pub plugins: PluginSet,
    /// Written by the server, seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub create_time: Option<i64>,
    /// Written by the server, seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub update_time: Option<i64>,
}
