//! `limit-conn`: so many requests at once.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use schemars::JsonSchema;
use serde::Deserialize;
use smallvec::SmallVec;
use tokio::time::Instant;

use super::amount::{Amount, Key, KeyType, Number};
use super::place::Placed;
use super::refusal::{default_code, refusal};
use super::remote::{Remote, owner_name};
use super::under_way::{Room, Taken, Wish};
use crate::pipeline::{Access, Build, Exchange, Fault, Flow, Hooks, Invalid, Log, Plugin, Reply};
use crate::plugins::bounds;

/// How many requests of one key are under way at once. Up to `burst` more wait a while; what is above is refused. Either `conn`,
/// `burst` and `key`, or `rules`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("oneOf" = [
    {"required": ["conn", "burst", "default_conn_delay", "key"]}, {"required": ["default_conn_delay", "rules"]}
]))]
pub(super) struct Settings {
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
    /// Lets requests pass when the limit cannot be worked out (a variable that is no number, Redis does not answer), instead of
    /// answering 500.
    #[serde(default)]
    allow_degradation: bool,
    /// With Redis: seconds after which a request no longer counts that no gateway has ended: a gateway that dies gives its places
    /// back so. Longer than requests last; 3600 when not given.
    #[serde(default)]
    #[schemars(range(min = 1))]
    key_ttl: Option<u32>,
}

/// The settings, and where requests are counted.
pub(super) type Config = Placed<Settings>;

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

/// A note: the places that a request has.
#[derive(Default)]
struct Places(SmallVec<[Taken; 1]>);

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
        let refusal = refusal(config.rejected_code, config.rejected_msg.as_deref())?;
        let ttl = bounds::number("key_ttl", config.key_ttl.unwrap_or(3600), 1..=u32::MAX)?;
        let ttl = Duration::from_secs(ttl.into());
        let remote = Remote::of(&config.place, build)?;
        if remote.is_none() && config.key_ttl.is_some() {
            return Err(Invalid::new("key_ttl: has no meaning with this policy"));
        }
        // Of another delay, another room: what is under way in the old one is forgotten with it, never counted down here.
        let room = |part: &str| match &remote {
            None => build.keep(&format!("{part} {delay}"), || Room::here(delay)),
            Some(remote) => {
                let at = format!("{part} {delay} {ttl:?} {:p}", Arc::as_ptr(remote));
                let owner = format!("{}:{part}", owner_name(build));
                build.keep(&at, || Room::in_redis(delay, remote.clone(), owner, ttl))
            }
        };
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
            refusal,
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
                self.degraded("conn or burst gave no number that it may be")?;
                continue;
            };
            let most = conn.saturating_add(burst);
            let entered = limit.room.enter(Wish { key: (has_key, &key), most, now }).await;
            let (taken, count) = match entered {
                Ok(Some(entered)) => entered,
                // Places that other limits gave are given back when the refusal is logged.
                Ok(None) => return Ok(Flow::Reply(Box::new(self.refusal.clone()))),
                Err(why) => {
                    self.degraded(&why.told())?;
                    continue;
                }
            };
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

impl LimitConn {
    fn degraded(&self, cause: &str) -> Result<(), Fault> {
        match self.allow_degradation {
            true => Ok(()),
            false => Err(Fault::gateway("failed to limit conn", cause)),
        }
    }
}

impl Log for LimitConn {
    fn log(&self, exchange: &Exchange) {
        let Some(places) = exchange.notes.find::<Places>() else { return };
        for taken in &places.0 {
            if !self.limits.iter().any(|limit| taken.is_in(&limit.room)) {
                continue;
            }
            // Only what went upstream tells how long that takes.
            if self.learns
                && let (Some(from), Some(to)) = (exchange.times.forwarded, exchange.times.answered)
            {
                taken.learn(to.saturating_duration_since(from).as_secs_f64());
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
    use serde_json::json;

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
            (with("policy", json!("redis")), "redis_host: is required with this policy"),
            (with("policy", json!("disk")), "unknown variant `disk`"),
            (with("redis_port", json!(1)), "redis_port: has no meaning with this policy"),
            (with("redis_unknown", json!(1)), "unknown field `redis_unknown`"),
            (with("key_ttl", json!(60)), "key_ttl: has no meaning with this policy"),
            (with("key_ttl", json!(0)), "key_ttl: a number from 1"),
            (with("rejected_code", json!(199)), "rejected_code"),
            (with("rejected_msg", json!("")), "rejected_msg"),
        ] {
            let error = refused::<LimitConn>(config.clone());
            assert!(error.contains(says), "{config}: {error}");
        }
    }
}
