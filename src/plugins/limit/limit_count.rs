//! `limit-count`: so many requests within a time, by key.

use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use smallvec::SmallVec;
use tokio::time::Instant;

use super::counter::{Counter, Verdict, Window};
use crate::pipeline::{
    Access, Build, Exchange, Fault, Flow, Hooks, Invalid, Plugin, Reply, ResponseHead, Template,
    Variable, field_name,
};

/// How many requests of one key pass within a time. Either `count` and `time_window`, or `rules`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("oneOf" = [{"required": ["count", "time_window"]}, {"required": ["rules"]}]))]
pub(super) struct Config {
    /// Requests that pass within the time; a number from 1, or a text with variables that gives one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    count: Option<Amount>,
    /// The time in seconds; a number from 1, or a text with variables that gives one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    time_window: Option<Amount>,
    /// How the time passes: from the first request on, or always the time just past.
    #[serde(default)]
    window_type: WindowType,
    /// What requests are told apart by: a variable, variables in a text, or nothing (`key_type`).
    #[serde(default = "default_key")]
    key: String,
    /// How `key` is read.
    #[serde(default)]
    key_type: KeyType,
    /// The status of a refusal.
    #[serde(default = "default_code")]
    #[schemars(range(min = 200, max = 599))]
    rejected_code: u16,
    /// What a refused caller reads, as `error_msg`; an empty body when not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    rejected_msg: Option<String>,
    /// Routes with the same group share their counters; their settings must be the same, too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    group: Option<String>,
    /// Where the counters are: in this process.
    #[serde(default)]
    policy: Policy,
    /// Lets requests pass when the limit cannot be worked out.
    #[serde(default)]
    allow_degradation: bool,
    /// Tells callers limit, rest and time in response headers.
    #[serde(default = "yes")]
    show_limit_quota_header: bool,
    /// Several limits at once; each has its own key, and the first that is exceeded refuses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    rules: Option<Vec<Rule>>,
}

/// One of several limits.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Rule {
    /// Requests that pass within the time.
    count: Amount,
    /// The time in seconds.
    time_window: Amount,
    /// A text with variables; where none of them has a value the rule does not apply.
    #[schemars(length(min = 1))]
    key: String,
    /// Goes into the names of its headers: `X-<prefix>-RateLimit-Limit`; its number when not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    header_prefix: Option<String>,
}

/// A number from 1, or a text with variables that gives one.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
enum Amount {
    Fixed(#[schemars(range(min = 1))] u64),
    Text(String),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum WindowType {
    #[default]
    Fixed,
    Sliding,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum KeyType {
    #[default]
    Var,
    VarCombination,
    Constant,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
enum Policy {
    #[default]
    Local,
    Redis,
    RedisCluster,
    RedisSentinel,
}

fn default_key() -> String {
    "remote_addr".into()
}
const fn default_code() -> u16 {
    503
}
const fn yes() -> bool {
    true
}

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
    counter: Arc<Counter>,
}

struct Headers {
    limit: String,
    remaining: String,
    reset: String,
}

enum Number {
    Fixed(u64),
    Text(Template),
}

enum Key {
    Variable(Variable),
    Combination(Template),
    Constant(String),
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
        if config.policy != Policy::Local {
            return Err(Invalid::new(
                "policy: counters in Redis are not supported by this version; use local",
            ));
        }
        if !(200..=599).contains(&config.rejected_code) {
            return Err(Invalid::new("rejected_code: a status from 200 to 599 is expected"));
        }
        if config.rejected_msg.as_deref() == Some("") {
            return Err(Invalid::new("rejected_msg: a text is expected"));
        }
        let metadata = build.metadata.cloned().unwrap_or_else(|| json!({}));
        let names: Metadata = serde_json::from_value(metadata)
            .map_err(|error| Invalid::new(format!("plugin metadata: {error}")))?;
        names.check()?;
        let (counters, group) = counters(&config, build)?;
        let limits = limits(&config, &names, &counters)?;
        let refusal = match &config.rejected_msg {
            Some(text) => Reply::json(config.rejected_code, &json!({ "error_msg": text })),
            None => Reply::empty(config.rejected_code),
        };
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

fn limits(
    config: &Config,
    names: &Metadata,
    counters: &[Arc<Counter>],
) -> Result<Vec<Limit>, Invalid> {
    match (&config.count, &config.time_window, &config.rules) {
        (Some(count), Some(time_window), None) => Ok(vec![Limit {
            count: Number::parse("count", count)?,
            seconds: Number::parse("time_window", time_window)?,
            key: Key::parse(config.key_type, &config.key)?,
            headers: Arc::new(Headers {
                limit: names.limit_header.clone(),
                remaining: names.remaining_header.clone(),
                reset: names.reset_header.clone(),
            }),
            counter: counters[0].clone(),
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
                    count: Number::parse("rules.count", &rule.count)?,
                    seconds: Number::parse("rules.time_window", &rule.time_window)?,
                    key: Key::parse(KeyType::VarCombination, &rule.key)?,
                    headers: Arc::new(Headers {
                        limit: format!("X-{prefix}-RateLimit-Limit"),
                        remaining: format!("X-{prefix}-RateLimit-Remaining"),
                        reset: format!("X-{prefix}-RateLimit-Reset"),
                    }),
                    counter: counters[at].clone(),
                })
            };
            rules.iter().enumerate().map(limit).collect()
        }
        _ => Err(Invalid::new("either count and time_window, or rules, are expected")),
    }
}

impl Number {
    fn parse(field: &str, amount: &Amount) -> Result<Self, Invalid> {
        let refuse = || Invalid::new(format!("{field}: a number from 1 is expected"));
        match amount {
            Amount::Fixed(0) => Err(refuse()),
            Amount::Fixed(number) => Ok(Self::Fixed(*number)),
            Amount::Text(text) => {
                let template = Template::parse(text)
                    .map_err(|error| Invalid::new(format!("{field}: {error}")))?;
                match template.fixed() {
                    Some(text) => match text.parse() {
                        Ok(number) if number > 0 => Ok(Self::Fixed(number)),
                        _ => Err(refuse()),
                    },
                    None => Ok(Self::Text(template)),
                }
            }
        }
    }

    fn of(&self, exchange: &Exchange) -> Option<u64> {
        match self {
            Self::Fixed(number) => Some(*number),
            Self::Text(template) => {
                let mut text = String::new();
                template.render(exchange, &mut text);
                text.trim().parse().ok().filter(|number| *number > 0)
            }
        }
    }
}

impl Key {
    fn parse(key_type: KeyType, text: &str) -> Result<Self, Invalid> {
        let at = |error: Invalid| Invalid::new(format!("key: {error}"));
        Ok(match key_type {
            KeyType::Var => Self::Variable(Variable::parse(text).map_err(at)?),
            KeyType::VarCombination => {
                let template = Template::parse(text).map_err(at)?;
                if template.fixed().is_some() {
                    return Err(Invalid::new(format!("key: '{text}' names no variable")));
                }
                Self::Combination(template)
            }
            KeyType::Constant => Self::Constant(text.to_owned()),
        })
    }

    /// The key of this request, and whether anything in it had a value.
    fn write(&self, exchange: &Exchange, out: &mut String) -> bool {
        match self {
            Self::Variable(variable) => match variable.read(exchange) {
                Some(reading) => {
                    reading.write(out);
                    !out.is_empty()
                }
                None => false,
            },
            Self::Combination(template) => template.render(exchange, out) > 0,
            Self::Constant(text) => {
                out.push_str(text);
                true
            }
        }
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
            let has_key = limit.key.write(exchange, &mut key);
            if !has_key {
                if self.is_rules {
                    continue;
                }
                // As in APISIX: who has no key is told apart by address. Apart from all keys, too: nobody may use up another's
                // quota by naming its address.
                key.clear();
                let _ = write!(key, "{}", exchange.remote().ip().to_canonical());
            }
            applied = true;
            let numbers = (limit.count.of(exchange), limit.seconds.of(exchange));
            let (Some(count), Some(seconds)) = numbers else {
                return self.degraded("count or time_window gave no number from 1");
            };
            let length = Duration::from_secs(seconds.min(u64::from(u32::MAX)));
            let verdict = limit.counter.count((has_key, &key), count, length, self.window, now);
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
                "not supported by this version",
            ),
            (json!({"count": 1, "time_window": 1, "policy": "disk"}), "unknown variant `disk`"),
            (json!({"count": 1, "time_window": 1, "rejected_code": 600}), "rejected_code"),
            (json!({"rules": [{"count": 1, "time_window": 1, "key": "x"}]}), "names no variable"),
        ] {
            let error = refused::<LimitCount>(config.clone());
            assert!(error.contains(says), "{config}: {error}");
        }
    }
}
