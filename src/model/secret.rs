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

/// A version of TLS, as APISIX writes it.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
pub enum TlsVersion {
    /// RFC 4346. Not spoken: deprecated by RFC 8996.
    #[serde(rename = "TLSv1.1")]
    Tls11,
    /// RFC 5246.
    #[serde(rename = "TLSv1.2")]
    Tls12,
    /// RFC 8446.
    #[serde(rename = "TLSv1.3")]
    Tls13,
}

/// Which certificates clients must show.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SslClient {
    /// Who vouches for clients: certificates as PEM, each of them an anchor.
    #[schemars(length(min = 128, max = 65536))]
    pub ca: String,
    /// How many authorities may stand between the client's certificate and one of `ca`.
    #[serde(default = "default_depth")]
    #[schemars(range(min = 0))]
    pub depth: u32,
    /// Paths that need no client certificate, as regular expressions. With any, the handshake passes without a certificate, and
    /// requests for other paths are answered 400.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1), extend("uniqueItems" = true))]
    pub skip_mtls_uri_regex: Option<Vec<String>>,
}

const fn default_depth() -> u32 {
    1
}

/// A public certificate for server names (`ssls`), or one to show to upstreams.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(transform = required_by_type, extend(
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
    /// Further chains for the same names, such as one with an RSA key beside one with an ECDSA key.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(inner(length(min = 128, max = 65536)))]
    pub certs: Vec<String>,
    /// Their private keys, in the same order; never returned by the Admin API.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(inner(length(min = 64, max = 65536)))]
    pub keys: Vec<Redacted<String>>,
    /// The server name: exact, `*.suffix` for one label, or `*`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^(\*|\*?[0-9a-zA-Z\-_.]+)$"))]
    pub sni: Option<String>,
    /// Several server names; exactly one of `sni` and `snis` is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1), inner(regex(pattern = r"^(\*|\*?[0-9a-zA-Z\-_.]+)$")))]
    pub snis: Option<Vec<String>>,
    /// Clients must show a certificate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<SslClient>,
    /// The versions of TLS for these names; those of the process' settings when not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 3), extend("uniqueItems" = true))]
    pub ssl_protocols: Option<Vec<TlsVersion>>,
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

/// What is required depends on the type alone, as in APISIX, whose sentences tell so.
fn required_by_type(schema: &mut schemars::Schema) {
    schema.remove("required");
}

impl Ssl {
    /// `sni` and `snis` as one list.
    pub fn names(&self) -> OneOrMany<'_> {
        OneOrMany(self.snis.as_deref().unwrap_or_default(), self.sni.as_ref())
    }

    /// All chains with their private keys, as PEM. A chain without a key, or a key without a chain, is not among them.
    pub fn pairs(&self) -> impl Iterator<Item = (&str, &Redacted<String>)> {
        let more = self.certs.iter().map(String::as_str).zip(&self.keys);
        std::iter::once((self.cert.as_str(), &self.key)).chain(more)
    }

    /// Is it in use towards clients?
    pub fn is_served(&self) -> bool {
        self.status == Status::Enabled && self.ssl_type == SslType::Server
    }
}
