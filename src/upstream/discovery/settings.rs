//! What a data plane is told about registries: the settings block `discovery`.

use std::time::Duration;

use schemars::JsonSchema;
use serde::Deserialize;

use super::Error;
use super::consul::ConsulSettings;
use super::consul_kv::ConsulKvSettings;
use super::dns::DnsSettings;
use super::eureka::EurekaSettings;
use super::kubernetes::KubernetesSettings;
use super::nacos::NacosSettings;
use crate::model::Redacted;
use crate::rt::substitute;

/// The registries that upstreams may name. In their texts `${{NAME}}` is the environment variable of that name. See
/// `docs/discovery.md`.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "DiscoverySettings")]
pub struct Settings {
    /// SRV, A and AAAA records.
    #[serde(default)]
    pub dns: Option<DnsSettings>,
    /// Consul's catalog and health checks.
    #[serde(default)]
    pub consul: Option<ConsulSettings>,
    /// Consul's keys.
    #[serde(default)]
    pub consul_kv: Option<ConsulKvSettings>,
    /// Eureka.
    #[serde(default)]
    pub eureka: Option<EurekaSettings>,
    /// Nacos.
    #[serde(default)]
    pub nacos: Option<NacosSettings>,
    /// One cluster of Kubernetes, or a list of several.
    #[serde(default)]
    pub kubernetes: Option<KubernetesSettings>,
}

/// The environment, or a table in a test.
pub(super) type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

/// A text of the settings with its variables.
pub(super) fn text(field: &str, text: &str, environment: Environment<'_>) -> Result<String, Error> {
    match substitute(text, environment) {
        Ok(resolved) => Ok(resolved.unwrap_or_else(|| text.to_owned())),
        Err(name) => {
            Err(Error::setting(field, format!("the environment variable {name} is not set")))
        }
    }
}

/// The same for what no log may show.
pub(super) fn secret(
    field: &str,
    hidden: &Redacted<String>,
    environment: Environment<'_>,
) -> Result<Redacted<String>, Error> {
    text(field, hidden.reveal(), environment).map(Redacted::new)
}

/// A time of the settings that must not be 0.
pub(super) fn time(field: &str, time: Duration) -> Result<Duration, Error> {
    if time.is_zero() {
        return Err(Error::setting(field, "expected 1 or more"));
    }
    Ok(time)
}

/// At least one server.
pub(super) fn some<T>(field: &str, list: &[T]) -> Result<(), Error> {
    if list.is_empty() {
        return Err(Error::setting(field, "expected at least one"));
    }
    Ok(())
}

/// A weight that must not be 0.
pub(super) fn above_zero(field: &str, weight: u32) -> Result<(), Error> {
    if weight == 0 {
        return Err(Error::setting(field, "expected 1 or more"));
    }
    Ok(())
}
