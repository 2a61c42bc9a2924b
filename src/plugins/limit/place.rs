//! `Place`: where limits are counted; `Placed`: settings beside which that stands.

use std::borrow::Cow;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use crate::pipeline::{
    Invalid, Redacted, Redis, RedisAccess, RedisCluster, RedisServer, Sentinels,
};
use crate::plugins::bounds;

/// The settings of a plugin, and where it counts: one object for those who write it.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Placed<C> {
    own: C,
    pub(super) place: Place,
}

impl<C> Deref for Placed<C> {
    type Target = C;

    fn deref(&self) -> &C {
        &self.own
    }
}

impl<'de, C: DeserializeOwned> Deserialize<'de> for Placed<C> {
    // Serde's `flatten` would take unknown fields.
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let fields = Map::<String, Value>::deserialize(from)?;
        let (place, own): (Map<_, _>, Map<_, _>) =
            fields.into_iter().partition(|(name, _)| Place::has(name));
        Ok(Self {
            own: C::deserialize(Value::Object(own)).map_err(D::Error::custom)?,
            place: Place::deserialize(Value::Object(place)).map_err(D::Error::custom)?,
        })
    }
}

impl<C: JsonSchema> JsonSchema for Placed<C> {
    fn schema_name() -> Cow<'static, str> {
        C::schema_name()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let mut schema = C::json_schema(generator);
        let place = Place::json_schema(generator).to_value();
        let fields = schema.get_mut("properties").and_then(Value::as_object_mut);
        if let (Some(fields), Some(more)) = (fields, place["properties"].as_object()) {
            fields.extend(more.clone());
        }
        schema
    }
}

/// Where limits are counted.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Place {
    /// Where is counted: in this process, or in Redis for all gateways together.
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
}

/// Where it is.
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

impl Place {
    fn has(name: &str) -> bool {
        name == "policy" || name.starts_with("redis_") || name.starts_with("sentinel_")
    }

    /// The Redis that is meant; `None` where this process counts. Nothing is connected yet.
    pub(super) fn redis(&self) -> Result<Option<Redis>, Invalid> {
        check(self)?;
        match self.policy {
            Policy::Local => Ok(None),
            _ => redis(self).map(Some),
        }
    }
}

/// Each field stands with its policy, and each policy has what it needs.
fn check(place: &Place) -> Result<(), Invalid> {
    use Policy::{Local, Redis, RedisCluster, RedisSentinel};
    let (all, some, plain) =
        (&[Redis, RedisCluster, RedisSentinel][..], &[Redis, RedisSentinel][..], &[Redis][..]);
    let (cluster, sentinel) = (&[RedisCluster][..], &[RedisSentinel][..]);
    let fields = [
        ("redis_host", place.redis_host.is_some(), plain),
        ("redis_port", place.redis_port.is_some(), plain),
        ("redis_username", place.redis_username.is_some(), some),
        ("redis_password", place.redis_password.is_some(), all),
        ("redis_database", place.redis_database.is_some(), some),
        ("redis_timeout", place.redis_timeout.is_some(), &[Redis, RedisCluster]),
        ("redis_ssl", place.redis_ssl.is_some(), plain),
        ("redis_ssl_verify", place.redis_ssl_verify.is_some(), plain),
        ("redis_keepalive_timeout", place.redis_keepalive_timeout.is_some(), all),
        ("redis_keepalive_pool", place.redis_keepalive_pool.is_some(), &[Redis, RedisCluster]),
        ("redis_cluster_nodes", place.redis_cluster_nodes.is_some(), cluster),
        ("redis_cluster_name", place.redis_cluster_name.is_some(), cluster),
        ("redis_cluster_ssl", place.redis_cluster_ssl.is_some(), cluster),
        ("redis_cluster_ssl_verify", place.redis_cluster_ssl_verify.is_some(), cluster),
        ("redis_sentinels", place.redis_sentinels.is_some(), sentinel),
        ("redis_master_name", place.redis_master_name.is_some(), sentinel),
        ("redis_role", place.redis_role.is_some(), sentinel),
        ("sentinel_username", place.sentinel_username.is_some(), sentinel),
        ("sentinel_password", place.sentinel_password.is_some(), sentinel),
        ("redis_connect_timeout", place.redis_connect_timeout.is_some(), sentinel),
        ("redis_read_timeout", place.redis_read_timeout.is_some(), sentinel),
    ];
    let policy = place.policy;
    let foreign = fields.iter().find(|(_, is_given, of)| *is_given && !of.contains(&policy));
    if let Some((field, ..)) = foreign {
        return Err(Invalid::new(format!("{field}: has no meaning with this policy")));
    }
    let needed: &[&str] = match policy {
        Local => &[],
        Redis => &["redis_host"],
        RedisCluster => &["redis_cluster_nodes", "redis_cluster_name"],
        RedisSentinel => &["redis_sentinels", "redis_master_name"],
    };
    let is_given =
        |name: &&str| fields.iter().any(|(field, is_given, _)| field == name && *is_given);
    match needed.iter().find(|name| !is_given(name)) {
        Some(name) => Err(Invalid::new(format!("{name}: is required with this policy"))),
        None => Ok(()),
    }
}

fn redis(place: &Place) -> Result<Redis, Invalid> {
    let millis = |given: Option<u32>, otherwise: u32, field: &str| {
        bounds::number(field, given.unwrap_or(otherwise), 1..=u32::MAX)
            .map(|millis| Duration::from_millis(millis.into()))
    };
    let is_sentinel = place.policy == Policy::RedisSentinel;
    let within = match is_sentinel {
        false => millis(place.redis_timeout, 1000, "redis_timeout")?,
        true => {
            millis(place.redis_connect_timeout, 1000, "redis_connect_timeout")?
                + millis(place.redis_read_timeout, 1000, "redis_read_timeout")?
        }
    };
    let keep = if is_sentinel { 60_000 } else { 10_000 };
    let keep = millis(place.redis_keepalive_timeout, keep, "redis_keepalive_timeout")?;
    let most = place.redis_keepalive_pool.unwrap_or(100);
    let most = bounds::number("redis_keepalive_pool", most, 1..=u32::MAX)?;
    let (tls, verify) = match place.policy {
        Policy::RedisCluster => (place.redis_cluster_ssl, place.redis_cluster_ssl_verify),
        _ => (place.redis_ssl, place.redis_ssl_verify),
    };
    let access = RedisAccess {
        user: place.redis_username.clone(),
        password: place.redis_password.clone(),
        database: place.redis_database.unwrap_or(0),
        tls: tls.unwrap_or(false).then(|| verify.unwrap_or(false)),
        within,
        keep,
        most: most as usize,
    };
    let host = |field: &str, host: &str| {
        let lawful = |b: u8| b.is_ascii_alphanumeric() || b"-._:".contains(&b);
        match !host.is_empty() && host.bytes().all(lawful) {
            true => Ok(host.to_owned()),
            false => Err(Invalid::new(format!("{field}: '{host}' is no host"))),
        }
    };
    let port = |field: &str, port: u16| bounds::number(field, port, 1..=u16::MAX);
    Ok(match place.policy {
        Policy::Local | Policy::Redis => {
            let host = host("redis_host", place.redis_host.as_deref().unwrap_or_default())?;
            let port = port("redis_port", place.redis_port.unwrap_or(6379))?;
            Redis::Server(Arc::new(RedisServer::new(host, port, access)))
        }
        Policy::RedisCluster => {
            let nodes = place.redis_cluster_nodes.as_deref().unwrap_or_default();
            bounds::some("redis_cluster_nodes", nodes)?;
            let node = |(at, node): (usize, &String)| {
                let field = format!("redis_cluster_nodes[{at}]");
                let wrong = || Invalid::new(format!("{field}: host:port is expected"));
                let (name, number) = node.rsplit_once(':').ok_or_else(wrong)?;
                let name = name.trim_start_matches('[').trim_end_matches(']');
                Ok((host(&field, name)?, port(&field, number.parse().map_err(|_| wrong())?)?))
            };
            let nodes = nodes.iter().enumerate().map(node).collect::<Result<_, _>>()?;
            Redis::Cluster(Arc::new(RedisCluster::new(nodes, access)))
        }
        Policy::RedisSentinel => {
            let places = place.redis_sentinels.as_deref().unwrap_or_default();
            bounds::some("redis_sentinels", places)?;
            let sentinel = |(at, sentinel): (usize, &SentinelPlace)| {
                let field = format!("redis_sentinels[{at}]");
                Ok((host(&format!("{field}.host"), &sentinel.host)?, port(&field, sentinel.port)?))
            };
            let places = places.iter().enumerate().map(sentinel).collect::<Result<_, _>>()?;
            let sentinel = RedisAccess {
                user: place.sentinel_username.clone(),
                password: place.sentinel_password.clone(),
                database: 0,
                ..access
            };
            let name = place.redis_master_name.clone().unwrap_or_default();
            Redis::Sentinels(Arc::new(Sentinels::new(places, &sentinel, name, access)))
        }
    })
}
