//! What a data plane is told about clusters.

use std::fmt;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use crate::model::Redacted;

/// One cluster, or a list of several. Names and defaults are APISIX's.
#[derive(Clone, Debug, JsonSchema)]
#[serde(untagged)]
pub enum KubernetesSettings {
    /// One; services are `namespace/name:port`.
    One(Box<ClusterSettings>),
    /// Several; services are `id/namespace/name:port`.
    Several(Vec<ClusterSettings>),
}

// By hand: serde's own way for untagged enums says of a misspelt key only that nothing fits.
impl<'de> Deserialize<'de> for KubernetesSettings {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = KubernetesSettings;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a cluster's settings, or a list of them")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
                let one = ClusterSettings::deserialize(MapAccessDeserializer::new(map))?;
                Ok(KubernetesSettings::One(Box::new(one)))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Self::Value, A::Error> {
                Vec::deserialize(SeqAccessDeserializer::new(list)).map(KubernetesSettings::Several)
            }
        }
        deserializer.deserialize_any(Either)
    }
}

/// A cluster.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ClusterSettings {
    /// Its name in services' names, 1 to 8 of `[a-z0-9]`: for each of several clusters.
    pub id: Option<String>,
    /// Its API server.
    pub service: ServiceSettings,
    /// Who we are there.
    pub client: ClientSettings,
    /// Which namespaces are followed; all when not given. At most one of its fields.
    pub namespace_selector: NamespaceSelector,
    /// Which objects are followed, in Kubernetes' own form: `first="a",second="b"`.
    pub label_selector: Option<String>,
    /// The weight of each node; 50 when not given.
    pub default_weight: Option<u32>,
    /// Follows EndpointSlices in place of Endpoints.
    pub watch_endpoint_slices: bool,
}

/// An API server. `${NAME}` is the environment variable of that name.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ServiceSettings {
    /// `https` when not given; `http` is taken for loopback addresses only.
    pub schema: Option<ApiScheme>,
    /// What a pod finds in its environment when not given (`${KUBERNETES_SERVICE_HOST}`).
    pub host: Option<String>,
    /// What a pod finds in its environment when not given (`${KUBERNETES_SERVICE_PORT}`).
    pub port: Option<Port>,
    /// Verifies the API server's certificate; `true` when not given. APISIX's default is `false`.
    pub ssl_verify: Option<bool>,
}

/// What an API server speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ApiScheme {
    /// Plain HTTP.
    Http,
    /// TLS.
    Https,
}

/// A port, or the variable that has it.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Port {
    /// As a number.
    Number(u16),
    /// As a text.
    Text(String),
}

/// Who we are at an API server, and who vouches for it.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ClientSettings {
    /// A service account's token.
    pub token: Option<Redacted<String>>,
    /// The same from a file, read again for each request; for one cluster the pod's own when neither is given.
    pub token_file: Option<String>,
    /// The API server's authorities as PEM, read at each handshake; the pod's own when there are such, and else the system's. Ours,
    /// not APISIX's.
    pub ca_file: Option<PathBuf>,
}

/// Which namespaces are followed.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct NamespaceSelector {
    /// This one: rights in that namespace are enough.
    pub equal: Option<String>,
    /// All but this one.
    pub not_equal: Option<String>,
    /// Those that one of these regular expressions matches wholly.
    #[serde(rename = "match")]
    pub matches: Vec<String>,
    /// Those that none of these regular expressions matches wholly.
    pub not_match: Vec<String>,
}
