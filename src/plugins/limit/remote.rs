//! Counters in Redis, for all gateways together.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use super::count_settings::{Config, Policy};
use super::counter::{Verdict, Window};
use crate::pipeline::{
    Build, Invalid, Redis, RedisAccess, RedisCluster, RedisError, RedisServer, Script, Sentinels,
};
use crate::plugins::bounds;
use crate::rt::crypto::digest::{SHA256, digest};

/// Counts if there is room: `{admitted, remaining, milliseconds until the window ends}`. A window begins with its first event.
static FIXED: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
local limit, length = tonumber(ARGV[1]), tonumber(ARGV[2])
local used = tonumber(redis.call('GET', KEYS[1]) or '0')
local rest = -1
if used > 0 then rest = redis.call('PTTL', KEYS[1]) end
if rest <= 0 then used, rest = 0, length end
if used >= limit then return {0, 0, rest} end
redis.call('SET', KEYS[1], used + 1, 'PX', rest)
return {1, limit - used - 1, rest}
",
    )
});

/// The same for a window that slides: what of the one before still overlaps it counts in proportion. By Redis' clock: gateways' own
/// clocks may differ.
static SLIDING: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
local limit, length = tonumber(ARGV[1]), tonumber(ARGV[2])
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local known = redis.call('HMGET', KEYS[1], 's', 'l', 'c', 'p')
local start, old, current, previous = tonumber(known[1]), tonumber(known[2]), tonumber(known[3]), tonumber(known[4])
if not start then
  start, old, current, previous = now, length, 0, 0
elseif now >= start + old then
  if now < start + 2 * old then
    start, previous, current = start + old, current, 0
  else
    start, previous, current = now, 0, 0
  end
  old = length
end
local rest = math.min(math.max(start + old - now, 0), old)
local used = current + math.floor(previous * rest / old)
local admitted = 0
if used < limit then
  admitted = 1
  current = current + 1
  redis.call('HSET', KEYS[1], 's', start, 'l', old, 'c', current, 'p', previous)
  redis.call('PEXPIRE', KEYS[1], rest + old)
end
return {admitted, math.max(limit - used - admitted, 0), rest}
",
    )
});

/// Counters in Redis.
#[derive(Debug)]
pub(super) struct Remote(Redis);

impl Remote {
    /// Where the settings say that counters are. All that say the same share the connections.
    pub(super) fn of(config: &Config, build: &Build<'_>) -> Result<Option<Arc<Self>>, Invalid> {
        check(config)?;
        if config.policy == Policy::Local {
            return Ok(None);
        }
        let redis = redis(config)?;
        let mut settings =
            serde_json::to_value(config).map_err(|error| Invalid::new(error.to_string()))?;
        if let Some(fields) = settings.as_object_mut() {
            let is_place = |name: &str| name.starts_with("redis_") || name.starts_with("sentinel_");
            fields.retain(|name, _| is_place(name) || name == "policy");
        }
        // By digest: the settings hold passwords.
        let name = hex::encode(digest(&SHA256, settings.to_string().as_bytes()));
        let name = format!("redis {name}");
        Ok(Some(build.keep_group(&name, || Self(redis))))
    }

    /// Counts one event of a key, unless `limit` events within `length` have been counted.
    pub(super) async fn count(
        &self,
        name: &str,
        has_key: bool,
        key: &str,
        limit: u64,
        length: Duration,
        window: Window,
    ) -> Result<Verdict, RedisError> {
        let (kind, script) = match window {
            Window::Fixed => ("fixed", &*FIXED),
            Window::Sliding => ("sliding", &*SLIDING),
        };
        // Where the address counts it is told apart from keys, and a long key has a short name.
        let kind = if has_key { kind.to_owned() } else { format!("{kind}:address") };
        let name = match key.len() {
            ..=128 => format!("{name}:{kind}:{key}"),
            _ => format!("{name}:{kind}:#{}", hex::encode(digest(&SHA256, key.as_bytes()))),
        };
        let (limit, length) = (limit.to_string(), length.as_millis().to_string());
        let arguments = [limit.as_bytes(), length.as_bytes()];
        let told = self.0.run(script, name.as_bytes(), &arguments).await?;
        let number = |at: usize| {
            told.get(at).and_then(|number| u64::try_from(*number).ok()).unwrap_or_default()
        };
        Ok(Verdict {
            admitted: number(0) == 1,
            remaining: number(1),
            reset: Duration::from_millis(number(2)),
        })
    }
}

/// Each field stands with its policy, and each policy has what it needs.
fn check(config: &Config) -> Result<(), Invalid> {
    use Policy::{Local, Redis, RedisCluster, RedisSentinel};
    if (config.sync_interval + 1.0).abs() > f64::EPSILON {
        return Err(Invalid::new(
            "sync_interval: only -1 is supported: counting later would let through more than the limit",
        ));
    }
    let (all, some, plain) =
        (&[Redis, RedisCluster, RedisSentinel][..], &[Redis, RedisSentinel][..], &[Redis][..]);
    let (cluster, sentinel) = (&[RedisCluster][..], &[RedisSentinel][..]);
    let fields = [
        ("redis_host", config.redis_host.is_some(), plain),
        ("redis_port", config.redis_port.is_some(), plain),
        ("redis_username", config.redis_username.is_some(), some),
        ("redis_password", config.redis_password.is_some(), all),
        ("redis_database", config.redis_database.is_some(), some),
        ("redis_timeout", config.redis_timeout.is_some(), &[Redis, RedisCluster]),
        ("redis_ssl", config.redis_ssl.is_some(), plain),
        ("redis_ssl_verify", config.redis_ssl_verify.is_some(), plain),
        ("redis_keepalive_timeout", config.redis_keepalive_timeout.is_some(), all),
        ("redis_keepalive_pool", config.redis_keepalive_pool.is_some(), &[Redis, RedisCluster]),
        ("redis_cluster_nodes", config.redis_cluster_nodes.is_some(), cluster),
        ("redis_cluster_name", config.redis_cluster_name.is_some(), cluster),
        ("redis_cluster_ssl", config.redis_cluster_ssl.is_some(), cluster),
        ("redis_cluster_ssl_verify", config.redis_cluster_ssl_verify.is_some(), cluster),
        ("redis_sentinels", config.redis_sentinels.is_some(), sentinel),
        ("redis_master_name", config.redis_master_name.is_some(), sentinel),
        ("redis_role", config.redis_role.is_some(), sentinel),
        ("sentinel_username", config.sentinel_username.is_some(), sentinel),
        ("sentinel_password", config.sentinel_password.is_some(), sentinel),
        ("redis_connect_timeout", config.redis_connect_timeout.is_some(), sentinel),
        ("redis_read_timeout", config.redis_read_timeout.is_some(), sentinel),
    ];
    let policy = config.policy;
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

fn redis(config: &Config) -> Result<Redis, Invalid> {
    let millis = |given: Option<u32>, otherwise: u32, field: &str| {
        bounds::number(field, given.unwrap_or(otherwise), 1..=u32::MAX)
            .map(|millis| Duration::from_millis(millis.into()))
    };
    let is_sentinel = config.policy == Policy::RedisSentinel;
    let within = match is_sentinel {
        false => millis(config.redis_timeout, 1000, "redis_timeout")?,
        true => {
            millis(config.redis_connect_timeout, 1000, "redis_connect_timeout")?
                + millis(config.redis_read_timeout, 1000, "redis_read_timeout")?
        }
    };
    let keep = if is_sentinel { 60_000 } else { 10_000 };
    let keep = millis(config.redis_keepalive_timeout, keep, "redis_keepalive_timeout")?;
    let most = config.redis_keepalive_pool.unwrap_or(100);
    let most = bounds::number("redis_keepalive_pool", most, 1..=u32::MAX)?;
    let (tls, verify) = match config.policy {
        Policy::RedisCluster => (config.redis_cluster_ssl, config.redis_cluster_ssl_verify),
        _ => (config.redis_ssl, config.redis_ssl_verify),
    };
    let access = RedisAccess {
        user: config.redis_username.clone(),
        password: config.redis_password.clone(),
        database: config.redis_database.unwrap_or(0),
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
    Ok(match config.policy {
        Policy::Local | Policy::Redis => {
            let host = host("redis_host", config.redis_host.as_deref().unwrap_or_default())?;
            let port = port("redis_port", config.redis_port.unwrap_or(6379))?;
            Redis::Server(Arc::new(RedisServer::new(host, port, access)))
        }
        Policy::RedisCluster => {
            let nodes = config.redis_cluster_nodes.as_deref().unwrap_or_default();
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
            let places = config.redis_sentinels.as_deref().unwrap_or_default();
            bounds::some("redis_sentinels", places)?;
            let place = |(at, place): (usize, &super::count_settings::SentinelPlace)| {
                let field = format!("redis_sentinels[{at}]");
                Ok((host(&format!("{field}.host"), &place.host)?, port(&field, place.port)?))
            };
            let places = places.iter().enumerate().map(place).collect::<Result<_, _>>()?;
            let sentinel = RedisAccess {
                user: config.sentinel_username.clone(),
                password: config.sentinel_password.clone(),
                database: 0,
                ..access
            };
            let name = config.redis_master_name.clone().unwrap_or_default();
            Redis::Sentinels(Arc::new(Sentinels::new(places, &sentinel, name, access)))
        }
    })
}
