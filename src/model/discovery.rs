//! Service discovery: which registry knows an upstream's nodes, and by what name.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A kind of registry.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum DiscoveryType {
    /// SRV, A and AAAA records; `service_name` is `name` or `name:port`.
    Dns,
    /// Consul's catalog and health checks.
    Consul,
    /// Consul's keys; `service_name` is `http://server/v1/kv/prefix/name/`.
    ConsulKv,
    /// Eureka; `service_name` is the application's.
    Eureka,
    /// Nacos; namespace and group are in `discovery_args`.
    Nacos,
    /// Endpoints of Kubernetes services; `service_name` is `namespace/name:port`, with `id/` before it for one of several
    /// clusters.
    Kubernetes,
}

impl DiscoveryType {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Dns, Self::Consul, Self::ConsulKv, Self::Eureka, Self::Nacos, Self::Kubernetes];

    /// As it is written in resources and settings.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Dns => "dns",
            Self::Consul => "consul",
            Self::ConsulKv => "consul_kv",
            Self::Eureka => "eureka",
            Self::Nacos => "nacos",
            Self::Kubernetes => "kubernetes",
        }
    }
}

impl std::fmt::Display for DiscoveryType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// What a registry is told beside the name. Only Nacos asks for something.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DiscoveryArgs {
    /// Nacos: the namespace; `public` when not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace_id: Option<String>,
    /// Nacos: the group; `DEFAULT_GROUP` when not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group_name: Option<String>,
}
