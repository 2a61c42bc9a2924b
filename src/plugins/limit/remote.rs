//! Counting in Redis, for all gateways together.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use super::counter::{Verdict, Window};
use super::place::Place;
use crate::pipeline::{Build, Invalid, Redis, RedisError, Script};
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

/// Redis, for what all gateways count together.
#[derive(Debug)]
pub(super) struct Remote(Redis);

impl Remote {
    /// The Redis that `place` means, if it means one. All that mean the same share the connections.
    pub(super) fn of(place: &Place, build: &Build<'_>) -> Result<Option<Arc<Self>>, Invalid> {
        let Some(redis) = place.redis()? else { return Ok(None) };
        let settings =
            serde_json::to_string(place).map_err(|error| Invalid::new(error.to_string()))?;
        // By digest: the settings hold passwords.
        let name = hex::encode(digest(&SHA256, settings.as_bytes()));
        let name = format!("redis {name}");
        Ok(Some(build.keep_group(&name, || Self(redis))))
    }

    /// Runs a script on one key's state.
    ///
    /// # Errors
    /// Redis does not answer in time, or not as the script does.
    pub(super) async fn run<const N: usize>(
        &self,
        script: &Script,
        key: &[u8],
        arguments: &[&[u8]],
    ) -> Result<[i64; N], RedisError> {
        let told = self.0.run(script, key, arguments).await?;
        told.try_into().map_err(|_| RedisError::Protocol("the script's answer".to_owned()))
    }

    /// Counts one event of a key, unless `limit` events within `length` have been counted.
    pub(super) async fn count(
        &self,
        owner: &str,
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
        let name = state_name(owner, kind, has_key, key);
        let (limit, length) = (limit.to_string(), length.as_millis().to_string());
        let arguments = [limit.as_bytes(), length.as_bytes()];
        let [admitted, remaining, reset] = self.run(script, name.as_bytes(), &arguments).await?;
        let number = |told: i64| u64::try_from(told).unwrap_or_default();
        Ok(Verdict {
            admitted: admitted == 1,
            remaining: number(remaining),
            reset: Duration::from_millis(number(reset)),
        })
    }
}

/// What the state of a plugin's owner is called in Redis: the same on all gateways.
pub(super) fn owner_name(build: &Build<'_>) -> String {
    format!("plugin-{}:{}/{}/{}", build.plugin, build.kind, build.owner, build.part)
}

/// What a key's state is called in Redis. Where the address counts it is told apart from keys, and a long key has a short name.
pub(super) fn state_name(owner: &str, kind: &str, has_key: bool, key: &str) -> String {
    let of = if has_key { "" } else { "-address" };
    match key.len() {
        ..=128 => format!("{owner}:{kind}{of}:{key}"),
        _ => format!("{owner}:{kind}{of}:#{}", hex::encode(digest(&SHA256, key.as_bytes()))),
    }
}
