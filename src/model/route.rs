//! Routes and services, field by field as in APISIX v3, with our `workload_selector` beside.

use std::num::NonZeroU32;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Id, Labels, PluginSet, Timeout, Upstream};

/// A request method that a route can name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
#[expect(missing_docs, reason = "the methods' own names")]
pub enum Method {
    Get,
    Post,
    Put,
    Delete,
    Patch,
    Head,
    Options,
    Connect,
    Trace,
    Purge,
}

impl Method {
    /// The method's bit in a route's mask, and `None` for a method that no route can name.
    pub fn bit(method: &str) -> Option<u16> {
        let shift = match method {
            "GET" => 0,
            "POST" => 1,
            "PUT" => 2,
            "DELETE" => 3,
            "PATCH" => 4,
            "HEAD" => 5,
            "OPTIONS" => 6,
            "CONNECT" => 7,
            "TRACE" => 8,
            "PURGE" => 9,
            _ => return None,
        };
        Some(1 << shift)
    }

    /// Its name, as requests bear it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Post => "POST",
            Self::Put => "PUT",
            Self::Delete => "DELETE",
            Self::Patch => "PATCH",
            Self::Head => "HEAD",
            Self::Options => "OPTIONS",
            Self::Connect => "CONNECT",
            Self::Trace => "TRACE",
            Self::Purge => "PURGE",
        }
    }

    /// This method's bit in a route's mask.
    pub const fn mask(self) -> u16 {
        1 << self as u16
    }
}

/// Either of the two spellings that APISIX offers: one value, or a list.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct OneOrMany<'a>(pub &'a [String], pub Option<&'a String>);

impl<'a> OneOrMany<'a> {
    /// All values.
    pub fn iter(&self) -> impl Iterator<Item = &'a str> {
        self.0.iter().chain(self.1).map(String::as_str)
    }
}

/// Enabled (1) or not (0).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
#[schemars(with = "u8", extend("enum" = [1, 0]))]
pub enum Status {
    /// 0: kept, and not in force.
    Disabled,
    /// 1: in force.
    #[default]
    Enabled,
}

impl Serialize for Status {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u8(u8::from(*self == Self::Enabled))
    }
}

impl<'de> Deserialize<'de> for Status {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match u8::deserialize(deserializer)? {
            0 => Ok(Self::Disabled),
            1 => Ok(Self::Enabled),
            other => Err(serde::de::Error::custom(format!("status is 0 or 1, not {other}"))),
        }
    }
}

/// What a decision's record means for the request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Recording {
    /// The request does not wait for it.
    #[default]
    Best,
    /// It is on file before anything of the request goes upstream.
    Required,
}

/// Which door of a data plane a route serves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Listeners {
    /// The ingress' public listeners.
    Ingress,
    /// The sidecar's mTLS listener: what reaches the workload.
    #[default]
    Inbound,
    /// The sidecar's plain listener: what the workload calls.
    Outbound,
}

/// Scopes a route to the sidecars that need it. A route without one serves the ingress, as in APISIX.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WorkloadSelector {
    /// The door that the route serves.
    #[serde(default)]
    pub listener: Listeners,
    /// SPIFFE ID patterns of the workloads that need the route; none given means all of them.
    #[serde(default)]
    pub spiffe_ids: Vec<String>,
}

/// Where a request goes and what happens to it on the way.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend(
    "allOf" = [
        {"oneOf": [{"required": ["uri"]}, {"required": ["uris"]}]},
        {"not": {"required": ["host", "hosts"]}},
        {"not": {"required": ["remote_addr", "remote_addrs"]}}
    ],
    "anyOf" = [
        {"required": ["plugins", "uri"]}, {"required": ["upstream", "uri"]},
        {"required": ["upstream_id", "uri"]}, {"required": ["service_id", "uri"]},
        {"required": ["plugins", "uris"]}, {"required": ["upstream", "uris"]},
        {"required": ["upstream_id", "uris"]}, {"required": ["service_id", "uris"]}
    ]
))]
pub struct Route {
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
    /// Free-form labels; policies select by them.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
    /// The path: exact, or a prefix when it ends with `*`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 4096))]
    pub uri: Option<String>,
    /// Several paths; exactly one of `uri` and `uris` is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1), inner(length(min = 1, max = 4096)), extend("uniqueItems" = true))]
    pub uris: Option<Vec<String>>,
    /// The host: exact, `*.suffix`, or `*`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^(\*|\*?[0-9a-zA-Z\-_.\[\]:]+)$"))]
    pub host: Option<String>,
    /// Several hosts; at most one of `host` and `hosts` is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1), inner(regex(pattern = r"^(\*|\*?[0-9a-zA-Z\-_.\[\]:]+)$")), extend("uniqueItems" = true))]
    pub hosts: Option<Vec<String>>,
    /// An address or network that callers must come from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote_addr: Option<String>,
    /// Several addresses or networks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1), extend("uniqueItems" = true))]
    pub remote_addrs: Option<Vec<String>>,
    /// Among routes of the same host and path the higher number is tried first.
    #[serde(default)]
    pub priority: i64,
    /// The methods that match; none given means all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("uniqueItems" = true))]
    pub methods: Option<Vec<Method>>,
    /// A condition on the request, as lua-resty-expr writes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Vec<Value>>")]
    pub vars: Option<Box<Value>>,
    /// The plugins of this route.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plugins: Option<PluginSet>,
    /// Plugins by reference; the route's own win.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plugin_config_id: Option<Id>,
    /// Where matching requests go.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upstream: Option<Box<Upstream>>,
    /// The same by reference; wins over `upstream`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upstream_id: Option<Id>,
    /// The service that gives what the route itself lacks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_id: Option<Id>,
    /// Overrides the upstream's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Timeout>,
    /// Lets requests switch to WebSocket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enable_websocket: Option<bool>,
    /// Opens tunnels for CONNECT, to the route's upstream and nowhere else; `methods` must name it. Ours, not APISIX's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enable_connect: Option<bool>,
    /// `required`: what is allowed is on record before it has effect, and refused with 503 when it cannot be. Ours, not APISIX's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audit: Option<Recording>,
    /// Answers 503 when nothing was heard from where the configuration comes from for so many seconds: what it allows may have been
    /// taken back. Without it what is in force stays in force. Ours, not APISIX's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_config_age: Option<NonZeroU32>,
    /// 0 keeps the route out of the router.
    #[serde(default)]
    pub status: Status,
    /// Scopes the route to sidecars. Ours, not APISIX's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workload_selector: Option<Box<WorkloadSelector>>,
    /// Written by the server, seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub create_time: Option<i64>,
    /// Written by the server, seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub update_time: Option<i64>,
}

impl Route {
    /// `uri` and `uris` as one list.
    pub fn paths(&self) -> OneOrMany<'_> {
        OneOrMany(self.uris.as_deref().unwrap_or_default(), self.uri.as_ref())
    }

    /// `host` and `hosts` as one list.
    pub fn host_list(&self) -> OneOrMany<'_> {
        OneOrMany(self.hosts.as_deref().unwrap_or_default(), self.host.as_ref())
    }

    /// `remote_addr` and `remote_addrs` as one list.
    pub fn networks(&self) -> OneOrMany<'_> {
        OneOrMany(self.remote_addrs.as_deref().unwrap_or_default(), self.remote_addr.as_ref())
    }

    /// The door that the route serves.
    pub fn listener(&self) -> Listeners {
        self.workload_selector.as_ref().map_or(Listeners::Ingress, |selector| selector.listener)
    }
}

/// What several routes share.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Service {
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
    /// Free-form labels; policies select by them.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
    /// Hosts of the routes that name none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1), inner(regex(pattern = r"^(\*|\*?[0-9a-zA-Z\-_.\[\]:]+)$")), extend("uniqueItems" = true))]
    pub hosts: Option<Vec<String>>,
    /// The plugins of its routes; a route's own win.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plugins: Option<PluginSet>,
    /// Where requests go when the route says nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upstream: Option<Box<Upstream>>,
    /// The same by reference; wins over `upstream`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upstream_id: Option<Id>,
    /// Lets requests switch to WebSocket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enable_websocket: Option<bool>,
    /// `required`: of its routes that say nothing themselves, what is allowed is on record before it has effect, and refused with 503 when it cannot be. Ours, not APISIX's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audit: Option<Recording>,
    /// As that of its routes, for those that say nothing themselves. Ours, not APISIX's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_config_age: Option<NonZeroU32>,
    /// Written by the server, seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub create_time: Option<i64>,
    /// Written by the server, seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub update_time: Option<i64>,
}
