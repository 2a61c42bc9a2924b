//! `limit-conn`: so many requests at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::json;
use smallvec::SmallVec;
use tokio::time::Instant;

use super::amount::{Amount, Key, Number};
use super::keyed::{Keep, Keyed, Name, Passing};
use super::limit_req::{KeyType, Policy};
use crate::pipeline::{Access, Build, Exchange, Fault, Flow, Hooks, Invalid, Log, Plugin, Reply};
use crate::plugins::bounds;

/// How many requests of one key are under way at once. Up to `burst` more wait a while; what is above is refused. Either `conn`,
/// `burst` and `key`, or `rules`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("oneOf" = [
    {"required": ["conn", "burst", "default_conn_delay", "key"]}, {"required": ["default_conn_delay", "rules"]}
]))]
pub(super) struct Config {
    /// Requests at once: a number from 1, or a text with variables that gives one.
    #[serde(default)]
    conn: Option<Amount>,
    /// Requests beyond that which wait instead of being refused: a number from 0, or a text with variables that gives one.
    #[serde(default)]
    burst: Option<Amount>,
    /// Seconds that a request is taken to last, until some have been seen: a request beyond `conn` waits for it.
    #[schemars(extend("exclusiveMinimum" = 0))]
    default_conn_delay: f64,
    /// Waits for `default_conn_delay` whatever has been seen.
    #[serde(default)]
    only_use_default_delay: bool,
    /// What requests are told apart by: a variable, or variables in a text (`key_type`). Where it has no value, the caller's address.
    #[serde(default)]
    #[schemars(length(min = 1))]
    key: Option<String>,
    /// How `key` is read.
    #[serde(default)]
    key_type: KeyType,
    /// Several limits at once; each has its own key, and one whose key has no value does not apply.
    #[serde(default)]
    #[schemars(length(min = 1))]
    rules: Option<Vec<Rule>>,
    /// The status of a refusal.
    #[serde(default = "default_code")]
    #[schemars(range(min = 200, max = 599))]
    rejected_code: u16,
    /// What a refused caller reads, as `error_msg`; an empty body when not given.
    #[serde(default)]
    #[schemars(length(min = 1))]
    rejected_msg: Option<String>,
    /// Where requests are counted: in this process.
    #[serde(default, rename = "policy")]
    _policy: Policy,
    /// Lets requests pass when the limit cannot be worked out (a variable that is no number), instead of answering 500.
    #[serde(default)]
    allow_degradation: bool,
}

/// One of several limits.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Rule {
    /// Requests at once.
    conn: Amount,
    /// Requests beyond that which wait.
    burst: Amount,
    /// A text with variables.
    #[schemars(length(min = 1))]
    key: String,
}

const fn default_code() -> u16 {
    503
}

pub(super) struct LimitConn {
    limits: Vec<Limit>,
    is_rules: bool,
    refusal: Reply,
    allow_degradation: bool,
    learns: bool,
}

struct Limit {
    conn: Number,
    burst: Number,
    key: Key,
    room: Arc<Room>,
}

/// Who is under way, by key, and how long that takes by experience.
struct Room {
    under_way: Keyed<UnderWay>,
    /// Seconds, as the bits of an `f64`.
    delay: AtomicU64,
}

struct UnderWay {
    count: u64,
    since: Instant,
}

impl Passing for UnderWay {
    fn forgotten_at(&self) -> Instant {
        // What is under way is never given up: its number is that of open requests, which has bounds of its own.
        self.since + Duration::from_secs(u64::from(u32::MAX))
    }
}

/// A note: the places that a request has.
#[derive(Default)]
struct Places(SmallVec<[Taken; 1]>);

/// A place, which is given back at the latest when the request is forgotten.
struct Taken {
    room: Arc<Room>,
    name: Name,
    given_back: AtomicBool,
}

impl Taken {
    fn give_back(&self) {
        if self.given_back.swap(true, Ordering::Relaxed) {
            return;
        }
        self.room.under_way.look(self.name, |under_way| {
            under_way.count = under_way.count.saturating_sub(1);
            ((), if under_way.count == 0 { Keep::No } else { Keep::Yes })
        });
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.give_back();
    }
}

impl Room {
    fn new(delay: f64) -> Self {
        Self { under_way: Keyed::default(), delay: AtomicU64::new(delay.to_bits()) }
    }

    /// Takes a place; gives how many are taken by now, or nothing when there is no room.
    fn enter(&self, name: Name, most: u64, now: Instant) -> Option<u64> {
        let fresh = || UnderWay { count: 0, since: now };
        self.under_way.change(name, now, fresh, |under_way| {
            if under_way.count >= most {
                return None;
            }
            under_way.count += 1;
            Some(under_way.count)
        })
    }

    fn delay(&self) -> f64 {
        f64::from_bits(self.delay.load(Ordering::Relaxed))
    }

    /// The mean of what was known and what was seen, as in APISIX.
    fn learn(&self, seconds: f64) {
        let learned = |bits| Some(f64::midpoint(f64::from_bits(bits), seconds).to_bits());
        // The closure always gives a value.
        let _ = self.delay.fetch_update(Ordering::Relaxed, Ordering::Relaxed, learned);
    }
}

impl Plugin for LimitConn {
    const NAME: &'static str = "limit-conn";
    const PRIORITY: i32 = 1003;
    const EXAMPLE: &'static str =
        r#"{"conn": 10, "burst": 5, "default_conn_delay": 0.1, "key": "remote_addr"}"#;
    type Config = Config;

    fn compile(config: Config, build: &Build<'_>) -> Result<Hooks, Invalid> {
        let delay = config.default_conn_delay;
        if !(delay > 0.0 && delay <= 86_400.0) {
            return Err(Invalid::new(
                "default_conn_delay: a number above 0, and 86400 at most, is expected",
            ));
        }
        bounds::number("rejected_code", config.rejected_code, 200..=599)?;
        if let Some(text) = &config.rejected_msg {
            bounds::text("rejected_msg", text, 1..=usize::MAX)?;
        }
        // Of another delay, another room: what is under way in the old one is forgotten with it, never counted down here.
        let room = |part: &str| build.keep(&format!("{part} {delay}"), || Room::new(delay));
        let limits = match (&config.conn, &config.burst, &config.key, &config.rules) {
            (Some(conn), Some(burst), Some(key), None) => vec![Limit {
                conn: Number::parse("conn", conn, 1)?,
                burst: Number::parse("burst", burst, 0)?,
                key: config.key_type.read("key", key)?,
                room: room("conn"),
            }],
            (None, None, None, Some(rules)) => {
                bounds::some("rules", rules)?;
                let limit = |(at, rule): (usize, &Rule)| {
                    let field = |name: &str| format!("rules[{at}].{name}");
                    Ok(Limit {
                        conn: Number::parse(&field("conn"), &rule.conn, 1)?,
                        burst: Number::parse(&field("burst"), &rule.burst, 0)?,
                        key: Key::combination(&field("key"), &rule.key)?,
                        room: room(&format!("rule {at} {}", rule.key)),
                    })
                };
                rules.iter().enumerate().map(limit).collect::<Result<_, _>>()?
            }
            _ => return Err(Invalid::new("either conn, burst and key, or rules, are expected")),
        };
        let plugin = Self {
            limits,
            is_rules: config.rules.is_some(),
            refusal: match &config.rejected_msg {
                Some(text) => Reply::json(config.rejected_code, &json!({ "error_msg": text })),
                None => Reply::empty(config.rejected_code),
            },
            allow_degradation: config.allow_degradation,
            learns: !config.only_use_default_delay,
        };
        Ok(Hooks::of(plugin).access().log().done())
    }
}

#[async_trait]
impl Access for LimitConn {
    async fn access(&self, exchange: &mut Exchange) -> Result<Flow, Fault> {
        let now = Instant::now();
        let mut key = String::with_capacity(64);
        let mut waits = Duration::ZERO;
        for limit in &self.limits {
            key.clear();
            let has_key = match self.is_rules {
                true if !limit.key.write(exchange, &mut key) => continue,
                true => true,
                false => limit.key.write_or_address(exchange, &mut key),
            };
            let (Some(conn), Some(burst)) = (limit.conn.of(exchange), limit.burst.of(exchange))
            else {
                if self.allow_degradation {
                    continue;
                }
                return Err(Fault::gateway(
                    "failed to limit conn",
                    "conn or burst gave no number that it may be",
                ));
            };
            let name = limit.room.under_way.name((has_key, &key));
            let Some(count) = limit.room.enter(name, conn.saturating_add(burst), now) else {
                // Places that other limits gave are given back when the refusal is logged.
                return Ok(Flow::Reply(Box::new(self.refusal.clone())));
            };
            let taken =
                Taken { room: limit.room.clone(), name, given_back: AtomicBool::new(false) };
            match exchange.notes.find_mut::<Places>() {
                Some(places) => places.0.push(taken),
                None => exchange.notes.leave(Places(SmallVec::from_iter([taken]))),
            }
            if count > conn {
                #[expect(clippy::cast_precision_loss, reason = "a number of requests at once")]
                let turns = ((count - 1) / conn) as f64;
                let wait = Duration::try_from_secs_f64(limit.room.delay() * turns);
                waits += wait.unwrap_or(Duration::ZERO);
            }
        }
        if waits >= Duration::from_millis(1) {
            tokio::time::sleep(waits).await;
        }
        Ok(Flow::Next)
    }
}

impl Log for LimitConn {
    fn log(&self, exchange: &Exchange) {
        let Some(places) = exchange.notes.find::<Places>() else { return };
        for taken in &places.0 {
            if !self.limits.iter().any(|limit| Arc::ptr_eq(&limit.room, &taken.room)) {
                continue;
            }
            // Only what went upstream tells how long that takes.
            if self.learns
                && let (Some(from), Some(to)) = (exchange.times.forwarded, exchange.times.answered)
            {
                taken.room.learn(to.saturating_duration_since(from).as_secs_f64());
            }
            taken.give_back();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::tests::{exchange, reply};
    use crate::pipeline::{Chain, Kept};
    use crate::plugins::tests::{chain, compile, hooks, refused};

    /// One more request, under way from here on: whether it passes, and after how many milliseconds.
    async fn ask(chain: &Chain, target: &str) -> (Option<u128>, Exchange) {
        let before = Instant::now();
        let mut exchange = exchange("GET", target, "h");
        let passed = match chain.access(&mut exchange).await.unwrap() {
            Flow::Next => Some(before.elapsed().as_millis()),
            Flow::Reply(_) => None,
        };
        (passed, exchange)
    }

    #[tokio::test(start_paused = true)]
    async fn so_many_are_under_way_at_once() {
        let chain = compile::<LimitConn>(
            json!({"conn": 2, "burst": 0, "default_conn_delay": 0.1, "key": "arg_k", "rejected_code": 429}),
        );
        let (one, first) = ask(&chain, "/?k=a").await;
        let (two, second) = ask(&chain, "/?k=a").await;
        let (three, third) = ask(&chain, "/?k=a").await;
        assert_eq!((one, two, three), (Some(0), Some(0), None));
        assert_eq!(ask(&chain, "/?k=b").await.0, Some(0), "another key has its own room");
        // A refused one had no place to give back.
        chain.log(&third);
        assert_eq!(ask(&chain, "/?k=a").await.0, None);
        chain.log(&first);
        chain.log(&first);
        let (four, fourth) = ask(&chain, "/?k=a").await;
        assert_eq!((four, ask(&chain, "/?k=a").await.0), (Some(0), None));
        // Who breaks off before the end gives the place back, too.
        drop((second, fourth));
        assert_eq!(ask(&chain, "/?k=a").await.0, Some(0));
    }

    #[tokio::test(start_paused = true)]
    async fn those_beyond_wait_as_long_as_requests_take() {
        let config = |only: bool| json!({"conn": 1, "burst": 3, "default_conn_delay": 0.2, "key": "remote_addr", "only_use_default_delay": only});
        for (only, third) in [(true, 400), (false, 600)] {
            let kept = Kept::default();
            let chain = chain("limit-conn", hooks::<LimitConn>(&config(only), &kept).unwrap());
            let (first, _first) = ask(&chain, "/").await;
            let (second, mut done) = ask(&chain, "/").await;
            assert_eq!((first, second), (Some(0), Some(200)));
            // It took 0.4 seconds upstream: by experience a request takes 0.3 from now on.
            let now = Instant::now();
            done.times.forwarded = Some(now);
            done.times.answered = Some(now + Duration::from_millis(400));
            chain.log(&done);
            let (again, _again) = ask(&chain, "/").await;
            let (waited, _waited) = ask(&chain, "/").await;
            assert_eq!((again, waited), (Some(third / 2), Some(third)), "{only}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn rules_hold_together_and_give_back_together() {
        let chain = compile::<LimitConn>(json!({"default_conn_delay": 1, "rules": [
            {"conn": 2, "burst": 0, "key": "$remote_addr"},
            {"conn": "${arg_n ?? 1}", "burst": 0, "key": "$arg_tenant"}
        ], "rejected_msg": "busy"}));
        let (one, first) = ask(&chain, "/?tenant=a").await;
        let (two, second) = ask(&chain, "/?tenant=a").await;
        assert_eq!((one, two), (Some(0), None));
        drop(second);
        // The refused one has given its place at the first limit back; another tenant gets it, and without one only that limit holds.
        assert_eq!(ask(&chain, "/?tenant=b&n=5").await.0, Some(0));
        let (three, third) = ask(&chain, "/").await;
        assert_eq!((three, ask(&chain, "/").await.0), (Some(0), None));
        drop((first, third));
        let mut bad = exchange("GET", "/?tenant=c&n=none", "h");
        assert!(chain.access(&mut bad).await.is_err());
        let degraded =
            compile::<LimitConn>(json!({"default_conn_delay": 1, "conn": "$arg_n", "burst": 0,
            "key": "remote_addr", "allow_degradation": true}));
        assert_eq!(ask(&degraded, "/?n=x").await.0, Some(0));
    }

    #[tokio::test]
    async fn the_refusal_reads_as_configured() {
        let chain = compile::<LimitConn>(json!({"conn": 1, "burst": 0, "default_conn_delay": 1,
            "key": "$arg_a $arg_b", "key_type": "var_combination", "rejected_msg": "busy"}));
        let (_, _held) = ask(&chain, "/?a=1").await;
        let mut exchange = exchange("GET", "/?a=1", "h");
        let reply = reply(chain.access(&mut exchange).await.unwrap());
        assert_eq!((reply.status, &reply.body[..]), (503, &b"{\"error_msg\":\"busy\"}\n"[..]));
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        let with = |field: &str, value: serde_json::Value| {
            let mut config =
                json!({"conn": 1, "burst": 0, "default_conn_delay": 1, "key": "remote_addr"});
            config[field] = value;
            config
        };
        for (config, says) in [
            (json!({}), "missing field `default_conn_delay`"),
            (json!({"default_conn_delay": 1}), "either conn, burst and key, or rules"),
            (json!({"default_conn_delay": 1, "rules": []}), "rules: at least one"),
            (
                json!({"default_conn_delay": 1, "rules": [{"conn": 0, "burst": 0, "key": "$uri"}]}),
                "rules[0].conn",
            ),
            (
                json!({"default_conn_delay": 1, "rules": [{"conn": 1, "burst": 0, "key": "uri"}]}),
                "rules[0].key: 'uri' names no variable",
            ),
            (with("rules", json!([])), "either conn"),
            (with("conn", json!(0)), "conn: a number from 1"),
            (with("conn", json!("zero")), "conn: a number from 1"),
            (with("conn", json!("$nothing")), "conn: unknown variable"),
            (with("conn", json!(-1)), "did not match any variant"),
            (with("burst", json!("-1")), "burst: a number from 0"),
            (with("default_conn_delay", json!(0)), "default_conn_delay"),
            (with("default_conn_delay", json!(1e12)), "default_conn_delay"),
            (with("key", json!("nothing")), "key: unknown variable"),
            (with("key_type", json!("constant")), "unknown variant"),
            (with("policy", json!("redis")), "unknown variant `redis`"),
            (with("rejected_code", json!(199)), "rejected_code"),
            (with("rejected_msg", json!("")), "rejected_msg"),
        ] {
            let error = refused::<LimitConn>(config.clone());
            assert!(error.contains(says), "{config}: {error}");
        }
    }
}
