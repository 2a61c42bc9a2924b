//! `limit-count`: so many requests within a time, by key.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};
use smallvec::SmallVec;
use tokio::time::Instant;

use super::amount::{Key, Number};
pub(super) use super::count_settings::Config;
use super::count_settings::{KeyType, Rule, WindowType};
use super::counter::{Counter, Verdict, Window};
use super::refusal::refusal;
use super::remote::{Remote, owner_name};
use crate::pipeline::{
    Access, Build, Exchange, Fault, Flow, Hooks, Invalid, Plugin, Reply, ResponseHead, field_name,
};

/// The names of the headers that tell callers how much is left.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Metadata {
    /// How many requests pass.
    #[serde(default = "limit_header")]
    limit_header: String,
    /// How many more pass.
    #[serde(default = "remaining_header")]
    remaining_header: String,
    /// Seconds until the window ends.
    #[serde(default = "reset_header")]
    reset_header: String,
}

fn limit_header() -> String {
    "X-RateLimit-Limit".into()
}
fn remaining_header() -> String {
    "X-RateLimit-Remaining".into()
}
fn reset_header() -> String {
    "X-RateLimit-Reset".into()
}

impl Metadata {
    fn check(&self) -> Result<(), Invalid> {
        for name in [&self.limit_header, &self.remaining_header, &self.reset_header] {
            field_name(name).map_err(|error| Invalid::new(format!("plugin metadata: {error}")))?;
        }
        Ok(())
    }
}

pub(super) struct LimitCount {
    limits: Vec<Limit>,
    /// Whether the limits are `rules`: then one that has no key does not apply.
    is_rules: bool,
    window: Window,
    refusal: Reply,
    allow_degradation: bool,
    show: bool,
    /// Keeps the group alive as long as it has members.
    _group: Option<Arc<Group>>,
}

struct Limit {
    count: Number,
    seconds: Number,
    key: Key,
    headers: Arc<Headers>,
    counter: Counts,
}

/// Where events are counted.
enum Counts {
    Local(Arc<Counter>),
    /// In Redis, under names that begin so.
    Remote(Arc<Remote>, String),
}

struct Headers {
    limit: String,
    remaining: String,
    reset: String,
}

/// Counters of a group, and the settings that all of its members must have.
struct Group {
    settings: Value,
    counters: Vec<Arc<Counter>>,
}

/// The counters of some limits, and the group that they belong to.
type Counters = (Vec<Arc<Counter>>, Option<Arc<Group>>);

/// A note: what the limits said, for the response.
#[derive(Default)]
struct Quotas(SmallVec<[(Arc<Headers>, u64, Verdict); 2]>);

impl Plugin for LimitCount {
    const NAME: &'static str = "limit-count";
    const PRIORITY: i32 = 1002;
    const EXAMPLE: &'static str =
        r#"{"count": 100, "time_window": 60, "key": "remote_addr", "rejected_code": 429}"#;
    type Config = Config;

    fn compile(config: Config, build: &Build<'_>) -> Result<Hooks, Invalid> {
        let refusal = refusal(config.rejected_code, config.rejected_msg.as_deref())?;
        if (config.sync_interval + 1.0).abs() > f64::EPSILON {
            return Err(Invalid::new(
                "sync_interval: only -1 is supported: counting later would let through more than the limit",
            ));
        }
        let metadata = build.metadata.cloned().unwrap_or_else(|| json!({}));
        let names: Metadata = serde_json::from_value(metadata)
            .map_err(|error| Invalid::new(format!("plugin metadata: {error}")))?;
        names.check()?;
        let (counters, group) = counters(&config, build)?;
        let remote = Remote::of(&config.place, build)?;
        let counts = |at: usize| match &remote {
            None => Counts::Local(counters[at].clone()),
            Some(remote) => Counts::Remote(remote.clone(), remote_name(&config, build, at)),
        };
        let limits = limits(&config, &names, counts)?;
        let plugin = Self {
            limits,
            is_rules: config.rules.is_some(),
            window: match config.window_type {
                WindowType::Fixed => Window::Fixed,
                WindowType::Sliding => Window::Sliding,
            },
            refusal,
            allow_degradation: config.allow_degradation,
            show: config.show_limit_quota_header,
            _group: group,
        };
        Ok(Hooks::of(plugin).access().response_head().done())
    }
}

/// The counters, in the order of the limits: the owner's, or its group's. They outlive revisions.
fn counters(config: &Config, build: &Build<'_>) -> Result<Counters, Invalid> {
    let number = config.rules.as_ref().map_or(1, Vec::len);
    let Some(group) = &config.group else {
        let of = |at: usize| match config.rules.as_ref().and_then(|rules| rules.get(at)) {
            // A rule is known by its key, not by its place: rules may be sorted anew.
            Some(rule) => build.keep(&format!("rule {}", rule.key), Counter::default),
            None => build.keep("count", Counter::default),
        };
        return Ok(((0..number).map(of).collect(), None));
    };
    if group.is_empty() {
        return Err(Invalid::new("group: a name is expected"));
    }
    let settings = serde_json::to_value(config).map_err(|error| Invalid::new(error.to_string()))?;
    let shared = build.keep_group(group, || Group {
        settings: settings.clone(),
        counters: (0..number).map(|_| Arc::default()).collect(),
    });
    if shared.settings != settings {
        return Err(Invalid::new(format!(
            "group conf mismatched: group '{group}' is in use with other settings"
        )));
    }
    Ok((shared.counters.clone(), Some(shared)))
}

/// What the names of a limit's counters in Redis begin with: the same on all gateways.
fn remote_name(config: &Config, build: &Build<'_>, at: usize) -> String {
    let owner = match &config.group {
        Some(group) => format!("plugin-{}:group/{group}", build.plugin),
        None => owner_name(build),
    };
    let rule = config.rules.as_ref().and_then(|rules| rules.get(at));
    format!("{owner}:{}", rule.map_or("", |rule| &rule.key))
}

fn limits(
    config: &Config,
    names: &Metadata,
    counts: impl Fn(usize) -> Counts,
) -> Result<Vec<Limit>, Invalid> {
    match (&config.count, &config.time_window, &config.rules) {
        (Some(count), Some(time_window), None) => Ok(vec![Limit {
            count: Number::parse("count", count, 1)?,
            seconds: Number::parse("time_window", time_window, 1)?,
            key: match config.key_type {
                KeyType::Var => Key::variable("key", &config.key)?,
                KeyType::VarCombination => Key::combination("key", &config.key)?,
                KeyType::Constant => Key::Constant(config.key.clone()),
            },
            headers: Arc::new(Headers {
                limit: names.limit_header.clone(),
                remaining: names.remaining_header.clone(),
                reset: names.reset_header.clone(),
            }),
            counter: counts(0),
        }]),
        (None, None, Some(rules)) if !rules.is_empty() => {
            let mut keys = std::collections::BTreeSet::new();
            let limit = |(at, rule): (usize, &Rule)| {
                if !keys.insert(rule.key.clone()) {
                    return Err(Invalid::new(format!(
                        "rules: two of them have the key {}",
                        rule.key
                    )));
                }
                let prefix = rule.header_prefix.clone().unwrap_or_else(|| (at + 1).to_string());
                if !prefix.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b)) {
                    return Err(Invalid::new(
                        "rules.header_prefix: letters, digits, dashes and underscores are expected",
                    ));
                }
                Ok(Limit {
                    count: Number::parse("rules.count", &rule.count, 1)?,
                    seconds: Number::parse("rules.time_window", &rule.time_window, 1)?,
                    key: Key::combination("rules.key", &rule.key)?,
                    headers: Arc::new(Headers {
                        limit: format!("X-{prefix}-RateLimit-Limit"),
                        remaining: format!("X-{prefix}-RateLimit-Remaining"),
                        reset: format!("X-{prefix}-RateLimit-Reset"),
                    }),
                    counter: counts(at),
                })
            };
            rules.iter().enumerate().map(limit).collect()
        }
        _ => Err(Invalid::new("either count and time_window, or rules, are expected")),
    }
}

#[async_trait]
impl Access for LimitCount {
    async fn access(&self, exchange: &mut Exchange) -> Result<Flow, Fault> {
        let now = Instant::now();
        let mut key = String::with_capacity(64);
        let mut applied = false;
        for limit in &self.limits {
            key.clear();
            let has_key = match self.is_rules {
                true if !limit.key.write(exchange, &mut key) => continue,
                true => true,
                false => limit.key.write_or_address(exchange, &mut key),
            };
            applied = true;
            let numbers = (limit.count.of(exchange), limit.seconds.of(exchange));
            let (Some(count), Some(seconds)) = numbers else {
                return self.degraded("count or time_window gave no number from 1");
            };
            let length = Duration::from_secs(seconds.min(u64::from(u32::MAX)));
            let verdict = match &limit.counter {
                Counts::Local(counter) => {
                    counter.count((has_key, &key), count, length, self.window, now)
                }
                Counts::Remote(remote, name) => {
                    let counted = remote.count(name, has_key, &key, count, length, self.window);
                    match counted.await {
                        Ok(verdict) => verdict,
                        Err(why) => return self.degraded(&why.told()),
                    }
                }
            };
            if self.show {
                if exchange.notes.find::<Quotas>().is_none() {
                    exchange.notes.leave(Quotas::default());
                }
                if let Some(quotas) = exchange.notes.find_mut::<Quotas>() {
                    quotas.0.push((limit.headers.clone(), count, verdict));
                }
            }
            if !verdict.admitted {
                return Ok(Flow::Reply(Box::new(self.refusal.clone())));
            }
        }
        if !applied {
            return self.degraded("no rule's key has a value");
        }
        Ok(Flow::Next)
    }
}

impl LimitCount {
    fn degraded(&self, cause: &str) -> Result<Flow, Fault> {
        if self.allow_degradation {
            return Ok(Flow::Next);
        }
        Err(Fault::gateway("failed to limit count", cause))
    }
}

impl ResponseHead for LimitCount {
    fn response_head(&self, exchange: &mut Exchange) -> Result<(), Fault> {
        let Some(quotas) = exchange.notes.find::<Quotas>() else { return Ok(()) };
        let mut number = itoa::Buffer::new();
        for (headers, limit, verdict) in &quotas.0 {
            if !self.limits.iter().any(|own| Arc::ptr_eq(&own.headers, headers)) {
                continue;
            }
            let response = &mut exchange.response;
            response.set(&headers.limit, number.format(*limit).as_bytes());
            response.set(&headers.remaining, number.format(verdict.remaining).as_bytes());
            let seconds = verdict.reset.as_millis().div_ceil(1000);
            response.set(&headers.reset, number.format(seconds).as_bytes());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::tests::exchange;
    use crate::pipeline::{Chain, Id, Kept};
    use crate::plugins::tests::{build, chain, compile, hooks, refused};

    /// The status that one more request gets; 0 when it passes.
    async fn ask(chain: &Chain, target: &str) -> (u16, Exchange) {
        let mut exchange = exchange("GET", target, "h");
        let status = match chain.access(&mut exchange).await.unwrap() {
            Flow::Next => 0,
            Flow::Reply(reply) => reply.status,
        };
        chain.response_head(&mut exchange).unwrap();
        (status, exchange)
    }

    fn told(exchange: &Exchange, prefix: &str) -> Vec<String> {
        ["Limit", "Remaining", "Reset"]
            .iter()
            .filter_map(|part| exchange.response.text(&format!("X-{prefix}RateLimit-{part}")))
            .map(str::to_owned)
            .collect()
    }

    #[tokio::test(start_paused = true)]
    async fn so_many_pass_within_the_time_and_callers_are_told() {
        let chain = compile::<LimitCount>(json!({"count": 2, "time_window": 60}));
        let (status, exchange) = ask(&chain, "/").await;
        assert_eq!((status, told(&exchange, "")), (0, vec!["2".into(), "1".into(), "60".into()]));
        tokio::time::advance(Duration::from_millis(10_500)).await;
        assert_eq!(ask(&chain, "/").await.0, 0);
        let (status, exchange) = ask(&chain, "/").await;
        assert_eq!((status, told(&exchange, "")), (503, vec!["2".into(), "0".into(), "50".into()]));
        tokio::time::advance(Duration::from_secs(50)).await;
        assert_eq!(ask(&chain, "/").await.0, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn requests_are_told_apart_by_their_key() {
        for (config, same, other) in [
            (json!({"key": "arg_k"}), "/?k=1", "/?k=2"),
            (
                json!({"key": "$arg_a $arg_b", "key_type": "var_combination"}),
                "/?a=1&b=2",
                "/?a=1&b=3",
            ),
            // Without a value the address counts, which is one and the same.
            (json!({"key": "arg_none"}), "/?x=1", ""),
            (json!({"key": "everybody", "key_type": "constant"}), "/?x=1", ""),
        ] {
            let mut config = config;
            config["count"] = json!(1);
            config["time_window"] = json!("60");
            config["rejected_code"] = json!(429);
            config["show_limit_quota_header"] = json!(false);
            let chain = compile::<LimitCount>(config.clone());
            assert_eq!(ask(&chain, same).await.0, 0, "{config}");
            let (status, exchange) = ask(&chain, same).await;
            assert_eq!((status, told(&exchange, "").len()), (429, 0), "{config}");
            if !other.is_empty() {
                assert_eq!(ask(&chain, other).await.0, 0, "{config}");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_uses_up_the_quota_of_an_address_by_naming_it() {
        let chain = compile::<LimitCount>(json!({"count": 1, "time_window": 60, "key": "arg_k"}));
        assert_eq!(ask(&chain, "/?k=192.0.2.7").await.0, 0);
        assert_eq!(ask(&chain, "/").await.0, 0);
        assert_eq!(ask(&chain, "/").await.0, 503);
    }

    #[tokio::test(start_paused = true)]
    async fn limits_may_come_from_the_request() {
        let config = json!({"count": "${arg_n ?? 2}", "time_window": "$arg_t", "key": "arg_k"});
        let chain = compile::<LimitCount>(config.clone());
        assert_eq!(ask(&chain, "/?n=1&t=60&k=a").await.0, 0);
        assert_eq!(ask(&chain, "/?n=1&t=60&k=a").await.0, 503);
        assert_eq!(ask(&chain, "/?t=60&k=a").await.0, 0);
        let mut exchange = exchange("GET", "/?n=1&t=soon&k=a", "h");
        let fault = chain.access(&mut exchange).await.unwrap_err();
        assert_eq!((fault.status, fault.sentence), (500, "failed to limit count"));
        let mut lenient = config;
        lenient["allow_degradation"] = json!(true);
        let chain = compile::<LimitCount>(lenient);
        assert_eq!(ask(&chain, "/?n=1&t=soon&k=a").await.0, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn several_rules_each_count_and_the_first_exceeded_refuses() {
        let chain = compile::<LimitCount>(json!({
            "rejected_msg": "slow down",
            "rules": [
                {"count": 1, "time_window": 10, "key": "${arg_user}", "header_prefix": "User"},
                {"count": 3, "time_window": 60, "key": "${remote_addr}"}
            ]
        }));
        let (status, exchange) = ask(&chain, "/?user=a").await;
        assert_eq!(status, 0);
        assert_eq!(told(&exchange, "User-"), ["1", "0", "10"]);
        assert_eq!(told(&exchange, "2-"), ["3", "2", "60"]);
        assert_eq!(ask(&chain, "/?user=a").await.0, 503);
        assert_eq!(ask(&chain, "/?user=b").await.0, 0);
        // Without a user only the second rule applies.
        assert_eq!(ask(&chain, "/").await.0, 0);
        assert_eq!(ask(&chain, "/").await.0, 503);
    }

    #[tokio::test(start_paused = true)]
    async fn counters_survive_a_change_of_other_settings() {
        let kept = Kept::default();
        let before = hooks::<LimitCount>(&json!({"count": 1, "time_window": 60}), &kept).unwrap();
        let before = chain("limit-count", before);
        assert_eq!(ask(&before, "/").await.0, 0);
        let after =
            json!({"count": 1, "time_window": 60, "rejected_code": 429, "rejected_msg": "no"});
        let after = chain("limit-count", hooks::<LimitCount>(&after, &kept).unwrap());
        drop(before);
        assert_eq!(ask(&after, "/").await.0, 429);
    }

    #[tokio::test(start_paused = true)]
    async fn a_group_counts_together_and_must_agree() {
        let kept = Kept::default();
        let (one, two) = (Id::parse("1").unwrap(), Id::parse("2").unwrap());
        let member = |owner: &Id, count: u64| {
            let config = json!({"count": count, "time_window": 60, "group": "g"});
            let config: Config = serde_json::from_value(config).unwrap();
            LimitCount::compile(config, &build(owner, "limit-count", None, &kept))
        };
        let first = chain("limit-count", member(&one, 1).unwrap());
        let second = chain("limit-count", member(&two, 1).unwrap());
        assert_eq!(ask(&first, "/").await.0, 0);
        assert_eq!(ask(&second, "/").await.0, 503);
        assert!(member(&two, 2).unwrap_err().to_string().contains("group conf mismatched"));
        drop((first, second));
        assert!(member(&two, 2).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn metadata_names_the_headers() {
        let kept = Kept::default();
        let owner = Id::parse("r1").unwrap();
        let metadata = json!({"limit_header": "X-My-Limit"});
        let build = build(&owner, "limit-count", Some(&metadata), &kept);
        let config = json!({"count": 5, "time_window": 60});
        let config: Config = serde_json::from_value(config).unwrap();
        let chain = chain("limit-count", LimitCount::compile(config, &build).unwrap());
        let (_, exchange) = ask(&chain, "/").await;
        assert_eq!(exchange.response.text("X-My-Limit"), Some("5"));
        assert_eq!(exchange.response.text("X-RateLimit-Remaining"), Some("4"));
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        for (config, says) in [
            (json!({}), "either count and time_window"),
            (json!({"count": 1}), "either count and time_window"),
            (json!({"count": 1, "time_window": 1, "rules": []}), "either count and time_window"),
            (json!({"rules": []}), "either count and time_window"),
            (json!({"count": 0, "time_window": 1}), "count: a number from 1"),
            (json!({"count": "0", "time_window": 1}), "count: a number from 1"),
            (json!({"count": 1, "time_window": "$nothing"}), "unknown variable 'nothing'"),
            (json!({"count": 1, "time_window": 1, "key": "nothing"}), "unknown variable"),
            (
                json!({"count": 1, "time_window": 1, "policy": "redis"}),
                "redis_host: is required with this policy",
            ),
            (json!({"count": 1, "time_window": 1, "policy": "disk"}), "unknown variant `disk`"),
            (
                json!({"count": 1, "time_window": 1, "redis_host": "127.0.0.1"}),
                "redis_host: has no meaning with this policy",
            ),
            (json!({"count": 1, "time_window": 1, "sync_interval": 1}), "sync_interval: only -1"),
            (json!({"count": 1, "time_window": 1, "rejected_code": 600}), "rejected_code"),
            (json!({"rules": [{"count": 1, "time_window": 1, "key": "x"}]}), "names no variable"),
        ] {
            let error = refused::<LimitCount>(config.clone());
            assert!(error.contains(says), "{config}: {error}");
        }
    }
}
