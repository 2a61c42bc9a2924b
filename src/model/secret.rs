//! What holds key material.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Id, Labels, OneOrMany, Redacted, Status};

/// What a certificate is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum SslType {
    /// Shown to clients of the ingress.
    #[default]
    Server,
    /// Shown to upstreams that name it as `tls.client_cert_id`.
    Client,
}

/// A public certificate for server names (`ssls`), or one to show to upstreams.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend(
    "if" = {"properties": {"type": {"enum": ["server"]}}},
    "then" = {"oneOf": [
        {"required": ["sni", "key", "cert"]},
        {"required": ["snis", "key", "cert"]}
    ]},
    "else" = {"required": ["key", "cert"]}
))]
pub struct Ssl {
    /// Its id; the key in the store is the truth.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<Id>,
    /// What it is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub desc: Option<String>,
    /// Free-form labels.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
    /// Towards clients, or towards upstreams.
    #[serde(default, rename = "type")]
    pub ssl_type: SslType,
    /// The chain as PEM, leaf first.
    #[schemars(length(min = 128, max = 65536))]
    pub cert: String,
    /// The private key as PEM; never returned by the Admin API.
    #[schemars(length(min = 64, max = 65536))]
    pub key: Redacted<String>,
    /// The server name: exact, `*.suffix` for one label, or `*`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^(\*|\*?[0-9a-zA-Z\-_.]+)$"))]
    pub sni: Option<String>,
    /// Several server names; exactly one of `sni` and `snis` is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1), inner(regex(pattern = r"^(\*|\*?[0-9a-zA-Z\-_.]+)$")))]
    pub snis: Option<Vec<String>>,
    /// 0 keeps it out of use.
    #[serde(default)]
    pub status: Status,
    /// Written by the server, seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub create_time: Option<i64>,
    /// Written by the server, seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub update_time: Option<i64>,
}

impl Ssl {
    /// `sni` and `snis` as one list.
    pub fn names(&self) -> OneOrMany<'_> {
        OneOrMany(self.snis.as_deref().unwrap_or_default(), self.sni.as_ref())
    }
}
