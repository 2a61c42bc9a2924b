//! `limit-req`: so many requests a second, evenly (a leaky bucket).

use std::cell::Cell;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use async_trait::async_trait;
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::time::Instant;

use super::amount::{Key, KeyType};
use super::keyed::{Keyed, Passing};
use super::place::Placed;
use super::refusal::{default_code, refusal};
use super::remote::{Remote, owner_name, state_name};
use crate::pipeline::{
    Access, Build, Exchange, Fault, Flow, Hooks, Invalid, Plugin, RedisError, Reply, Script,
};
use crate::plugins::bounds;

/// How many requests of one key pass in a second, evenly. Up to `burst` more wait for their turn; what is above is refused.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Settings {
    /// Requests a second; a part of one is fine.
    #[schemars(extend("exclusiveMinimum" = 0))]
    rate: f64,
    /// Requests above the rate that wait instead of being refused.
    #[schemars(range(min = 0))]
    burst: f64,
    /// What requests are told apart by: a variable, or variables in a text (`key_type`). Where it has no value, the caller's address.
    #[schemars(length(min = 1))]
    key: String,
    /// How `key` is read.
    #[serde(default)]
    key_type: KeyType,
    /// Lets those within the burst pass at once, without waiting.
    #[serde(default)]
    nodelay: bool,
    /// The status of a refusal.
    #[serde(default = "default_code")]
    #[schemars(range(min = 200, max = 599))]
    rejected_code: u16,
    /// What a refused caller reads, as `error_msg`; an empty body when not given.
    #[serde(default)]
    #[schemars(length(min = 1))]
    rejected_msg: Option<String>,
    /// Lets requests pass when Redis does not answer, instead of answering 500.
    #[serde(default)]
    allow_degradation: bool,
}

/// The settings, and where the buckets are.
pub(super) type Config = Placed<Settings>;

pub(super) struct LimitReq {
    rate: f64,
    burst: f64,
    key: Key,
    waits: bool,
    refusal: Reply,
    buckets: Buckets,
    allow_degradation: bool,
}

/// Where the buckets are.
enum Buckets {
    Local(Arc<Keyed<Bucket>>),
    /// In Redis, under names that begin so.
    Remote(Arc<Remote>, String),
}

/// The same step as [`LimitReq::take`], by Redis' clock: `{admitted, microseconds to wait}`.
static TAKE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
local rate, burst = tonumber(ARGV[1]), tonumber(ARGV[2])
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
local known = redis.call('HMGET', KEYS[1], 'e', 't')
local excess, last = tonumber(known[1]), tonumber(known[2])
if excess and last then
  excess = math.max(excess - rate * math.max(now - last, 0) / 1000000 + 1, 0)
else
  excess = 0
end
if excess > burst then return {0, 0} end
redis.call('HSET', KEYS[1], 'e', string.format('%.17g', excess), 't', string.format('%.0f', now))
redis.call('PEXPIRE', KEYS[1], string.format('%.0f', math.min(math.ceil((excess + 1) / rate * 1000), 1e12)))
return {1, math.min(math.floor(excess / rate * 1000000), 1e15)}
",
    )
});

/// What is in a bucket: requests above the rate.
struct Bucket {
    excess: f64,
    last: Instant,
    empty_at: Instant,
}

impl Passing for Bucket {
    fn forgotten_at(&self) -> Instant {
        self.empty_at
    }
}

/// Below this nobody is made to wait, as in APISIX.
const LEAST_WAIT: Duration = Duration::from_millis(1);

impl Plugin for LimitReq {
    const NAME: &'static str = "limit-req";
    const PRIORITY: i32 = 1001;
    const EXAMPLE: &'static str =
        r#"{"rate": 10, "burst": 5, "key": "remote_addr", "rejected_code": 429}"#;
    type Config = Config;

    fn compile(config: Config, build: &Build<'_>) -> Result<Hooks, Invalid> {
        // The bucket must be empty again some day: its time has to fit into a clock.
        if !(config.rate.is_finite() && config.rate >= 1e-6) {
            return Err(Invalid::new("rate: a number above 0 is expected"));
        }
        bounds::number("burst", config.burst, 0.0..=1e9)?;
        let buckets = match Remote::of(&config.place, build)? {
            None => Buckets::Local(build.keep("buckets", Keyed::default)),
            Some(remote) => Buckets::Remote(remote, owner_name(build)),
        };
        let plugin = Self {
            rate: config.rate,
            burst: config.burst,
            key: config.key_type.read("key", &config.key)?,
            waits: !config.nodelay,
            refusal: refusal(config.rejected_code, config.rejected_msg.as_deref())?,
            buckets,
            allow_degradation: config.allow_degradation,
        };
        Ok(Hooks::of(plugin).access().done())
    }
}

impl LimitReq {
    /// How long this request waits; `None` when it is refused. What is refused fills nothing.
    fn take(
        &self,
        buckets: &Keyed<Bucket>,
        has_key: bool,
        key: &str,
        now: Instant,
    ) -> Option<Duration> {
        let is_new = Cell::new(false);
        let fresh = || {
            is_new.set(true);
            Bucket { excess: 0.0, last: now, empty_at: now }
        };
        buckets.change(buckets.name((has_key, key)), now, fresh, |bucket| {
            let excess = match is_new.get() {
                true => 0.0,
                false => {
                    let passed = now.saturating_duration_since(bucket.last).as_secs_f64();
                    (bucket.excess - self.rate * passed + 1.0).max(0.0)
                }
            };
            if excess > self.burst {
                return None;
            }
            let wait = Duration::try_from_secs_f64(excess / self.rate).ok()?;
            // One more for this request itself: until then the bucket knows more than a new one.
            let left = Duration::try_from_secs_f64((excess + 1.0) / self.rate).ok()?;
            *bucket = Bucket { excess, last: now, empty_at: now + left };
            Some(wait)
        })
    }

    /// The same in Redis, for all gateways together.
    async fn take_remotely(
        &self,
        remote: &Remote,
        name: &str,
    ) -> Result<Option<Duration>, RedisError> {
        let (rate, burst) = (self.rate.to_string(), self.burst.to_string());
        let arguments = [rate.as_bytes(), burst.as_bytes()];
        let [admitted, micros] = remote.run(&TAKE, name.as_bytes(), &arguments).await?;
        let wait = Duration::from_micros(u64::try_from(micros).unwrap_or_default());
        Ok((admitted == 1).then_some(wait))
    }
}

#[async_trait]
impl Access for LimitReq {
    async fn access(&self, exchange: &mut Exchange) -> Result<Flow, Fault> {
        let mut key = String::with_capacity(64);
        let has_key = self.key.write_or_address(exchange, &mut key);
        let taken = match &self.buckets {
            Buckets::Local(buckets) => self.take(buckets, has_key, &key, Instant::now()),
            Buckets::Remote(remote, owner) => {
                let name = state_name(owner, "bucket", has_key, &key);
                match self.take_remotely(remote, &name).await {
                    Ok(taken) => taken,
                    Err(why) if self.allow_degradation => {
                        tracing::debug!(why = %why.told(), "limit-req lets pass what it cannot count");
                        return Ok(Flow::Next);
                    }
                    Err(why) => return Err(Fault::gateway("failed to limit req", why.told())),
                }
            }
        };
        match taken {
            None => Ok(Flow::Reply(Box::new(self.refusal.clone()))),
            Some(wait) => {
                if self.waits && wait >= LEAST_WAIT {
                    tokio::time::sleep(wait).await;
                }
                Ok(Flow::Next)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::tests::{exchange, reply};
    use crate::pipeline::{Chain, Kept};
    use crate::plugins::tests::{chain, compile, hooks, refused};
    use serde_json::json;

    /// One more request: whether it passes, and after how many milliseconds.
    async fn ask(chain: &Chain, target: &str) -> Option<u128> {
        let before = Instant::now();
        let mut exchange = exchange("GET", target, "h");
        match chain.access(&mut exchange).await.unwrap() {
            Flow::Next => Some(before.elapsed().as_millis()),
            Flow::Reply(_) => None,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_above_the_rate_is_refused_and_the_bucket_drains() {
        let chain = compile::<LimitReq>(json!({"rate": 2, "burst": 0, "key": "remote_addr"}));
        assert_eq!(ask(&chain, "/").await, Some(0));
        assert_eq!(ask(&chain, "/").await, None);
        tokio::time::advance(Duration::from_millis(499)).await;
        assert_eq!(ask(&chain, "/").await, None);
        tokio::time::advance(Duration::from_millis(2)).await;
        assert_eq!(ask(&chain, "/").await, Some(0));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_within_the_burst_waits_for_its_turn_or_not() {
        let kept = Kept::default();
        let of = |nodelay: bool| {
            let config = json!({"rate": 10, "burst": 2, "key": "arg_k", "nodelay": nodelay});
            chain("limit-req", hooks::<LimitReq>(&config, &kept).unwrap())
        };
        let patient = of(false);
        let asked = futures_util::future::join_all((0..4).map(|_| ask(&patient, "/?k=a"))).await;
        let waited: Vec<Option<u128>> = asked.into_iter().collect();
        assert_eq!(waited[0], Some(0));
        assert!((100..=102).contains(&waited[1].unwrap()), "{waited:?}");
        assert!((200..=202).contains(&waited[2].unwrap()), "{waited:?}");
        assert_eq!(waited[3], None);
        let hasty = of(true);
        for expected in [Some(0), Some(0), Some(0), None] {
            assert_eq!(ask(&hasty, "/?k=b").await, expected);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn requests_are_told_apart_by_their_key() {
        let config = json!({"rate": 0.001, "burst": 0, "key": "$arg_a $arg_b", "key_type": "var_combination",
            "rejected_code": 429, "rejected_msg": "slowly"});
        let chain = compile::<LimitReq>(config);
        for (target, passes) in [
            ("/?a=1&b=2", true),
            ("/?a=1&b=3", true),
            ("/?a=1&b=2", false),
            // Without any of them the address counts.
            ("/", true),
            ("/?c=1", false),
        ] {
            assert_eq!(ask(&chain, target).await.is_some(), passes, "{target}");
        }
        let mut exchange = exchange("GET", "/", "h");
        let reply = reply(chain.access(&mut exchange).await.unwrap());
        assert_eq!((reply.status, &reply.body[..]), (429, &b"{\"error_msg\":\"slowly\"}\n"[..]));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn many_at_once_take_no_more_than_there_is() {
        let config = json!({"rate": 0.001, "burst": 99, "key": "remote_addr", "nodelay": true});
        let chain = Arc::new(compile::<LimitReq>(config));
        let passed = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let tasks = (0..8).map(|_| {
            let (chain, passed) = (chain.clone(), passed.clone());
            crate::rt::spawn(async move {
                for _ in 0..50 {
                    let mut exchange = exchange("GET", "/", "h");
                    if matches!(chain.access(&mut exchange).await.unwrap(), Flow::Next) {
                        passed.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    }
                }
            })
        });
        futures_util::future::join_all(tasks).await;
        assert_eq!(passed.load(std::sync::atomic::Ordering::Relaxed), 100);
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        let with = |field: &str, value: serde_json::Value| {
            let mut config = json!({"rate": 1, "burst": 0, "key": "remote_addr"});
            config[field] = value;
            config
        };
        for (config, says) in [
            (json!({"burst": 0, "key": "remote_addr"}), "missing field `rate`"),
            (json!({"rate": 1, "key": "remote_addr"}), "missing field `burst`"),
            (json!({"rate": 1, "burst": 0}), "missing field `key`"),
            (with("rate", json!(0)), "rate: a number above 0"),
            (with("rate", json!(-1)), "rate"),
            (with("burst", json!(-1)), "burst"),
            (with("key", json!("")), "key: unknown variable"),
            (with("key", json!("nothing")), "key: unknown variable 'nothing'"),
            (with("key_type", json!("constant")), "unknown variant `constant`"),
            (with("policy", json!("memory")), "unknown variant `memory`"),
            (with("policy", json!("redis")), "redis_host: is required with this policy"),
            (with("redis_port", json!(1)), "redis_port: has no meaning with this policy"),
            (with("redis_unknown", json!(1)), "unknown field `redis_unknown`"),
            (with("rejected_code", json!(600)), "rejected_code"),
            (with("rejected_msg", json!("")), "rejected_msg"),
            (with("nodelay", json!(1)), "boolean"),
            (with("allow_degradation", json!(1)), "boolean"),
        ] {
            let error = refused::<LimitReq>(config.clone());
            assert!(error.contains(says), "{config}: {error}");
        }
    }
}
