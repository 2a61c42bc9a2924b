//! `api-breaker`: spares an upstream that fails.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::time::Instant;

use super::keyed::{Keep, Keyed, Name, Passing};
use crate::pipeline::{
    Access, Build, Exchange, Fault, Flow, Hooks, Invalid, Log, Plugin, Reply, Template, field_name,
    host_of,
};
use crate::plugins::bounds;

/// After so many bad answers for a host and path, answers in the upstream's place: for 2 seconds, then 4, 8 and so on.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Config {
    /// The status of the answer in the upstream's place.
    #[schemars(range(min = 200, max = 599))]
    break_response_code: u16,
    /// Its body.
    #[serde(default)]
    break_response_body: Option<String>,
    /// Its headers; values may have variables. Sent where there is a body.
    #[serde(default)]
    break_response_headers: Option<Vec<Header>>,
    /// The longest time in seconds.
    #[serde(default = "default_seconds")]
    #[schemars(range(min = 3))]
    max_breaker_sec: u32,
    /// Which answers are bad.
    #[serde(default)]
    unhealthy: Unhealthy,
    /// Which answers are good.
    #[serde(default)]
    healthy: Healthy,
}

/// A header of the answer.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Header {
    /// Its name.
    #[schemars(length(min = 1))]
    key: String,
    /// Its value, a text with variables.
    #[schemars(length(min = 1))]
    value: String,
}

/// Which answers are bad.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
struct Unhealthy {
    /// Their statuses.
    #[schemars(length(min = 1), inner(range(min = 500, max = 599)), extend("uniqueItems" = true))]
    http_statuses: Vec<u16>,
    /// How many of them make, or prolong, a break.
    #[schemars(range(min = 1))]
    failures: u32,
}

impl Default for Unhealthy {
    fn default() -> Self {
        Self { http_statuses: vec![500], failures: 3 }
    }
}

/// Which answers are good.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
struct Healthy {
    /// Their statuses.
    #[schemars(length(min = 1), inner(range(min = 200, max = 499)), extend("uniqueItems" = true))]
    http_statuses: Vec<u16>,
    /// How many of them, with no bad one between, end it.
    #[schemars(range(min = 1))]
    successes: u32,
}

impl Default for Healthy {
    fn default() -> Self {
        Self { http_statuses: vec![200], successes: 3 }
    }
}

const fn default_seconds() -> u32 {
    300
}

pub(super) struct ApiBreaker {
    status: u16,
    body: Option<String>,
    headers: Vec<(Box<str>, Template)>,
    longest: Duration,
    bad: Vec<u16>,
    failures: u32,
    good: Vec<u16>,
    successes: u32,
    seen: Arc<Seen>,
}

/// What was seen, by host and path.
#[derive(Default)]
struct Seen {
    by_place: Keyed<Place>,
    /// Has anything bad been seen? As long as not, nobody looks.
    any: AtomicBool,
}

struct Place {
    failures: u32,
    successes: u32,
    /// When a break began last.
    broken: Option<Instant>,
    touched: Instant,
    longest: Duration,
}

/// What has not happened for so long beyond the longest break is forgotten.
const MEMORY: Duration = Duration::from_secs(3600);

impl Passing for Place {
    fn forgotten_at(&self) -> Instant {
        self.touched + self.longest + MEMORY
    }
}

impl Plugin for ApiBreaker {
    const NAME: &'static str = "api-breaker";
    const PRIORITY: i32 = 1005;
    const EXAMPLE: &'static str = r#"{
        "break_response_code": 502, "max_breaker_sec": 60,
        "unhealthy": {"http_statuses": [500, 503], "failures": 3}, "healthy": {"http_statuses": [200], "successes": 1}
    }"#;
    type Config = Config;

    fn compile(config: Config, build: &Build<'_>) -> Result<Hooks, Invalid> {
        bounds::number("break_response_code", config.break_response_code, 200..=599)?;
        bounds::number("max_breaker_sec", config.max_breaker_sec, 3..=u32::MAX)?;
        let statuses = |field: &str, statuses: &[u16], from: u16, to: u16| {
            bounds::some(field, statuses)?;
            statuses
                .iter()
                .try_for_each(|status| bounds::number(field, *status, from..=to).map(drop))
        };
        let (unhealthy, healthy) = (config.unhealthy, config.healthy);
        statuses("unhealthy.http_statuses", &unhealthy.http_statuses, 500, 599)?;
        statuses("healthy.http_statuses", &healthy.http_statuses, 200, 499)?;
        bounds::number("unhealthy.failures", unhealthy.failures, 1..=u32::MAX)?;
        bounds::number("healthy.successes", healthy.successes, 1..=u32::MAX)?;
        let header = |(at, header): (usize, &Header)| {
            let refuse = |name: &'static str| {
                move |why: Invalid| {
                    bounds::at(&format!("break_response_headers[{at}].{name}"), &why)
                }
            };
            bounds::field_value(&format!("break_response_headers[{at}].value"), &header.value)?;
            let name = field_name(&header.key).map_err(refuse("key"))?;
            Ok((name, Template::parse(&header.value).map_err(refuse("value"))?))
        };
        let headers = config.break_response_headers.iter().flatten().enumerate().map(header);
        let plugin = Self {
            status: config.break_response_code,
            headers: headers.collect::<Result<_, _>>()?,
            body: config.break_response_body,
            longest: Duration::from_secs(config.max_breaker_sec.into()),
            bad: unhealthy.http_statuses,
            failures: unhealthy.failures,
            good: healthy.http_statuses,
            successes: healthy.successes,
            seen: build.keep("places", Seen::default),
        };
        Ok(Hooks::of(plugin).access().log().done())
    }
}

impl ApiBreaker {
    fn place(&self, exchange: &Exchange) -> Name {
        let path = exchange.uri().unwrap_or_default();
        self.seen.by_place.name((host_of(exchange.request.authority()), path))
    }

    /// How long breaks are after so many failures.
    fn length(&self, failures: u32) -> Duration {
        let times = (failures / self.failures).max(1);
        let seconds = 1_u64.checked_shl(times).unwrap_or(u64::MAX);
        Duration::from_secs(seconds).min(self.longest)
    }

    fn note(&self, place: Name, status: u16, now: Instant) {
        if self.bad.contains(&status) {
            self.seen.any.store(true, Ordering::Relaxed);
            let longest = self.longest;
            let fresh = || Place { failures: 0, successes: 0, broken: None, touched: now, longest };
            self.seen.by_place.change(place, now, fresh, |place| {
                place.failures = place.failures.saturating_add(1);
                (place.successes, place.touched, place.longest) = (0, now, longest);
                if place.failures.is_multiple_of(self.failures) {
                    place.broken = Some(now);
                }
            });
        } else if self.good.contains(&status) {
            self.seen.by_place.look(place, |place| {
                (place.successes, place.touched) = (place.successes + 1, now);
                ((), if place.successes >= self.successes { Keep::No } else { Keep::Yes })
            });
        }
    }
}

#[async_trait]
impl Access for ApiBreaker {
    async fn access(&self, exchange: &mut Exchange) -> Result<Flow, Fault> {
        if !self.seen.any.load(Ordering::Relaxed) {
            return Ok(Flow::Next);
        }
        let now = Instant::now();
        let is_broken = self.seen.by_place.look(self.place(exchange), |place| {
            let ends = place.broken.map(|broken| broken + self.length(place.failures));
            (ends.is_some_and(|ends| now <= ends), Keep::Yes)
        });
        if is_broken != Some(true) {
            return Ok(Flow::Next);
        }
        let mut reply = Reply::empty(self.status);
        if let Some(body) = &self.body {
            reply.body = body.clone().into();
            for (name, value) in &self.headers {
                reply = reply.with(name, &value.text(exchange));
            }
        }
        Ok(Flow::Reply(Box::new(reply)))
    }
}

impl Log for ApiBreaker {
    fn log(&self, exchange: &Exchange) {
        let Some(status) = exchange.upstream_statuses.last() else { return };
        if self.bad.contains(status) || self.seen.any.load(Ordering::Relaxed) {
            self.note(self.place(exchange), *status, Instant::now());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::Chain;
    use crate::pipeline::tests::{exchange, reply};
    use crate::plugins::tests::{compile, refused};
    use serde_json::{Value, json};

    /// What a request gets whose upstream would answer `status`; nothing when it went there.
    async fn ask(chain: &Chain, target: &str, status: u16) -> Option<Reply> {
        let mut exchange = exchange("GET", target, "h");
        match chain.access(&mut exchange).await.unwrap() {
            Flow::Reply(broken) => Some(*broken),
            Flow::Next => {
                exchange.upstream_statuses.push(status);
                chain.log(&exchange);
                None
            }
        }
    }

    fn breaker(more: &Value) -> Chain {
        let mut config = json!({"break_response_code": 502, "unhealthy": {"failures": 2, "http_statuses": [500, 503]},
            "healthy": {"successes": 2, "http_statuses": [200]}});
        config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        compile::<ApiBreaker>(config)
    }

    #[tokio::test(start_paused = true)]
    async fn breaks_grow_with_failures_and_end_with_successes() {
        let chain = breaker(&json!({"max_breaker_sec": 5}));
        assert!(ask(&chain, "/a", 500).await.is_none());
        assert!(ask(&chain, "/a", 404).await.is_none(), "neither good nor bad");
        assert!(ask(&chain, "/a", 503).await.is_none());
        for seconds in [2, 4, 5, 5] {
            assert_eq!(ask(&chain, "/a", 200).await.unwrap().status, 502);
            assert!(ask(&chain, "/b", 200).await.is_none(), "another path goes on");
            tokio::time::advance(Duration::from_millis(seconds * 1000 - 10)).await;
            assert!(ask(&chain, "/a", 200).await.is_some(), "{seconds}");
            tokio::time::advance(Duration::from_millis(20)).await;
            assert!(ask(&chain, "/a", 500).await.is_none(), "{seconds}");
            assert!(ask(&chain, "/a", 500).await.is_none(), "{seconds}");
        }
        tokio::time::advance(Duration::from_secs(6)).await;
        assert!(ask(&chain, "/a", 200).await.is_none());
        assert!(ask(&chain, "/a", 500).await.is_none(), "between two good ones: they begin anew");
        assert!(ask(&chain, "/a", 200).await.is_none());
        assert!(ask(&chain, "/a", 200).await.is_none());
        // All is forgotten: one bad answer is the first again.
        assert!(ask(&chain, "/a", 500).await.is_none());
        assert!(ask(&chain, "/a", 200).await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn the_answer_reads_as_configured() {
        let told = json!({"break_response_body": "later", "break_response_headers": [{"key": "X-A", "value": "$uri"}]});
        let silent = json!({"break_response_headers": [{"key": "X-A", "value": "$uri"}]});
        for (more, body, headers) in [(told, "later", 1), (silent, "", 0)] {
            let chain = breaker(&more);
            ask(&chain, "/a", 500).await;
            ask(&chain, "/a", 500).await;
            let mut exchange = exchange("GET", "/a", "h");
            let reply = reply(chain.access(&mut exchange).await.unwrap());
            assert_eq!((&reply.body[..], reply.fields.len()), (body.as_bytes(), headers));
            assert!(reply.fields.iter().all(|(name, value)| (&**name, &**value) == ("X-A", "/a")));
        }
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        let with = |field: &str, value: Value| {
            let mut config = json!({"break_response_code": 502});
            config[field] = value;
            config
        };
        for (config, says) in [
            (json!({}), "missing field `break_response_code`"),
            (with("break_response_code", json!(600)), "break_response_code"),
            (with("max_breaker_sec", json!(2)), "max_breaker_sec: a number from 3"),
            (
                with("unhealthy", json!({"http_statuses": []})),
                "unhealthy.http_statuses: at least one",
            ),
            (
                with("unhealthy", json!({"http_statuses": [404]})),
                "unhealthy.http_statuses: a number from 500",
            ),
            (with("unhealthy", json!({"failures": 0})), "unhealthy.failures"),
            (with("healthy", json!({"http_statuses": [500]})), "healthy.http_statuses"),
            (with("healthy", json!({"successes": 0})), "healthy.successes"),
            (
                with("break_response_headers", json!([{"key": "a b", "value": "c"}])),
                "break_response_headers[0].key",
            ),
            (
                with("break_response_headers", json!([{"key": "a", "value": "b\r\nc"}])),
                "break_response_headers[0].value",
            ),
            (
                with("break_response_headers", json!([{"key": "a", "value": "$no"}])),
                "break_response_headers[0].value",
            ),
        ] {
            let error = refused::<ApiBreaker>(config.clone());
            assert!(error.contains(says), "{config}: {error}");
        }
    }
}
