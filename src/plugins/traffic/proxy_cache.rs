//! `proxy-cache`: answers of the upstream are kept and given again (RFC 9111).

use async_trait::async_trait;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::pipeline::{
    Access, Answered, Asking, Build, CacheKey, CacheStrategy, CacheZone, Caching, CachingRules,
    Exchange, Fault, Flow, Hooks, Invalid, Plugin, Reply, ResponseHead, Taken, Template,
};
use crate::plugins::bounds;

/// Keeps answers of the upstream and gives them again. Policy and auth plugins decide before; answers to one caller are given to
/// this caller alone, unless `consumer_isolation` is turned off.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Config {
    /// Where answers are kept.
    #[serde(default)]
    cache_strategy: CacheStrategy,
    /// The zone, one of the setting `proxy_cache.zones`.
    #[serde(default = "default_zone")]
    #[schemars(length(min = 1, max = 100))]
    cache_zone: String,
    /// What is asked for, of texts and variables. Route, scheme and authority belong to it always.
    #[serde(default = "default_key")]
    #[schemars(length(min = 1))]
    cache_key: Vec<String>,
    /// Where one of these variables is neither empty nor `0`, nothing kept is given; the answer is kept.
    #[serde(default)]
    #[schemars(length(min = 1))]
    cache_bypass: Option<Vec<String>>,
    /// Where one of these variables is neither empty nor `0` when the answer is there, it is not kept.
    #[serde(default)]
    #[schemars(length(min = 1))]
    no_cache: Option<Vec<String>>,
    /// The methods that are answered so. HEAD is answered from what GET has brought; a POST's body is part of its key.
    #[serde(default = "default_methods")]
    #[schemars(length(min = 1))]
    cache_method: Vec<Method>,
    /// The statuses of answers that are kept; 206 and 304 never are.
    #[serde(default = "default_statuses")]
    #[schemars(length(min = 1), inner(range(min = 200, max = 599)))]
    cache_http_status: Vec<u16>,
    /// Seconds that an answer is given that does not say itself how long it is fresh.
    #[serde(default = "default_ttl")]
    #[schemars(range(min = 1))]
    cache_ttl: u64,
    /// Callers do not see `Cache-Control` and `Expires`.
    #[serde(default)]
    hide_cache_headers: bool,
    /// `Cache-Control` of requests counts, and in memory what answers say of their freshness. That answers must not be kept
    /// (`private`, `no-store`) always counts, and on disk what they say of their freshness.
    #[serde(default)]
    cache_control: bool,
    /// Answers are kept for each caller apart: by mesh identity, consumer, token and what an authorization service says.
    #[serde(default = "yes")]
    consumer_isolation: bool,
    /// Answers with `Set-Cookie` are kept, and the cookie is given to whoever asks.
    #[serde(default)]
    cache_set_cookie: bool,
    /// Bytes of the largest body that is kept.
    #[serde(default = "default_size")]
    #[schemars(range(min = 1))]
    max_resp_body_size: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
enum Method {
    Get,
    Post,
    Head,
}

fn default_zone() -> String {
    "disk_cache_one".to_owned()
}

fn default_key() -> Vec<String> {
    ["$host", "$request_uri"].map(str::to_owned).to_vec()
}

fn default_methods() -> Vec<Method> {
    vec![Method::Get, Method::Head]
}

fn default_statuses() -> Vec<u16> {
    vec![200, 301, 404]
}

const fn default_ttl() -> u64 {
    300
}

const fn yes() -> bool {
    true
}

const fn default_size() -> u64 {
    64 << 20
}

/// Bytes of a POST's body that belongs to a key.
const MOST_BODY: u64 = 1 << 20;

pub(super) struct ProxyCache {
    caching: Caching,
    strategy: CacheStrategy,
    key: Vec<Template>,
    bypass: Vec<Template>,
    no_cache: Vec<Template>,
    methods: Vec<Method>,
    is_isolated: bool,
}

impl Plugin for ProxyCache {
    const NAME: &'static str = "proxy-cache";
    const PRIORITY: i32 = 1085;
    const EXAMPLE: &'static str = r#"{
        "cache_strategy": "memory", "cache_zone": "memory_cache", "cache_ttl": 60, "cache_control": true,
        "cache_key": ["$host", "$request_uri"], "cache_bypass": ["$arg_bypass"], "cache_http_status": [200, 404]
    }"#;
    type Config = Config;

    fn compile(config: Config, build: &Build<'_>) -> Result<Hooks, Invalid> {
        let zone = zone(&config.cache_zone, config.cache_strategy, build)?;
        bounds::some("cache_key", &config.cache_key)?;
        bounds::some("cache_method", &config.cache_method)?;
        bounds::some("cache_http_status", &config.cache_http_status)?;
        for (field, is_twice) in [
            ("cache_method", twice(&config.cache_method)),
            ("cache_http_status", twice(&config.cache_http_status)),
        ] {
            if is_twice {
                return Err(Invalid::new(format!("{field}: the same is there twice")));
            }
        }
        for status in &config.cache_http_status {
            bounds::number("cache_http_status", *status, 200..=599)?;
            if matches!(status, 206 | 304) {
                let why = "cache_http_status: 206 and 304 are no whole answers, and are not kept";
                return Err(Invalid::new(why));
            }
        }
        bounds::number("cache_ttl", config.cache_ttl, 1..=(1 << 31))?;
        bounds::number("max_resp_body_size", config.max_resp_body_size, 1..=u64::MAX)?;
        let is_memory = config.cache_strategy == CacheStrategy::Memory;
        let rules = CachingRules {
            statuses: config.cache_http_status,
            ttl: config.cache_ttl,
            heeds_callers: config.cache_control,
            heeds_upstream: config.cache_control || !is_memory,
            stores_cookies: config.cache_set_cookie,
            most: config.max_resp_body_size,
            hides: config.hide_cache_headers,
        };
        let reads_body = config.cache_method.contains(&Method::Post);
        let optional = |field, texts: Option<Vec<String>>| match texts {
            None => Ok(Vec::new()),
            Some(texts) => {
                bounds::some(field, &texts)?;
                values(field, &texts)
            }
        };
        let plugin = Self {
            caching: Caching::new(zone, rules),
            strategy: config.cache_strategy,
            key: values("cache_key", &config.cache_key)?,
            bypass: optional("cache_bypass", config.cache_bypass)?,
            no_cache: optional("no_cache", config.no_cache)?,
            methods: config.cache_method,
            is_isolated: config.consumer_isolation,
        };
        let hooks = Hooks::of(plugin).access().answered().response_head().asking_within();
        Ok(if reads_body { hooks.reading_body().done() } else { hooks.done() })
    }
}

/// The zone of this name, when it is one for this strategy.
pub(super) fn zone(
    name: &str,
    strategy: CacheStrategy,
    build: &Build<'_>,
) -> Result<std::sync::Arc<CacheZone>, Invalid> {
    bounds::text("cache_zone", name, 1..=100)?;
    let Some(zone) = build.zone(name) else {
        return Err(Invalid::new(format!(
            "cache_zone: there is no '{name}' among the zones of the setting proxy_cache"
        )));
    };
    if zone.strategy() != strategy {
        let (is, wanted) = (zone.strategy().name(), strategy.name());
        return Err(Invalid::new(format!(
            "cache_zone: '{name}' is a zone for {is}, and cache_strategy is {wanted}"
        )));
    }
    Ok(zone)
}

fn twice<T: PartialEq>(list: &[T]) -> bool {
    list.iter().enumerate().any(|(at, one)| list[..at].contains(one))
}

/// Each is one variable, or a text of two characters or more without one.
fn values(field: &str, texts: &[String]) -> Result<Vec<Template>, Invalid> {
    let value = |(at, text): (usize, &String)| {
        let place = format!("{field}[{at}]");
        let is_lawful = match text.strip_prefix('$') {
            Some(name) => {
                !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
            }
            None => text.chars().count() >= 2 && !text.contains('$'),
        };
        if !is_lawful {
            return Err(Invalid::new(format!(
                "{place}: one variable, or a text of two characters or more, is expected"
            )));
        }
        Template::parse(text).map_err(|why| bounds::at(&place, &why))
    };
    texts.iter().enumerate().map(value).collect()
}

/// Is one of them neither empty nor `0`?
fn any(values: &[Template], exchange: &Exchange) -> bool {
    values.iter().any(|value| {
        let text = value.text(exchange);
        !text.is_empty() && text != "0"
    })
}

impl ProxyCache {
    fn key(&self, exchange: &Exchange, body: Option<&[u8]>) -> CacheKey {
        let parts: Vec<String> = self.key.iter().map(|part| part.text(exchange)).collect();
        CacheKey::of(exchange, &parts, body, self.is_isolated)
    }
}

#[async_trait]
impl Access for ProxyCache {
    async fn access(&self, exchange: &mut Exchange) -> Result<Flow, Fault> {
        if exchange.route.is_none() {
            return Ok(Flow::Next);
        }
        let method = match exchange.request.method() {
            "PURGE" => return Ok(self.caching.purge(&self.key(exchange, None))),
            "GET" => Some(Method::Get),
            "HEAD" => Some(Method::Head),
            "POST" => Some(Method::Post),
            _ => None,
        };
        let method = method.filter(|method| self.methods.contains(method));
        let with_body = method == Some(Method::Post);
        let (Some(method), true) = (method, Caching::may_concern(exchange, with_body)) else {
            let status = match (method, self.strategy) {
                (None, CacheStrategy::Memory) => "MISS",
                _ => "BYPASS",
            };
            let is_safe = matches!(exchange.request.method(), "GET" | "HEAD" | "OPTIONS" | "TRACE");
            let changes = (!is_safe).then(|| self.key(exchange, None));
            self.caching.passes(exchange, status, changes);
            return Ok(Flow::Next);
        };
        let key = match method {
            Method::Get | Method::Head => self.key(exchange, None),
            Method::Post => match exchange.read_body(MOST_BODY).await {
                Ok(body) => self.key(exchange, Some(&body)),
                // It is forwarded, and judged there.
                Err(_) => {
                    self.caching.passes(exchange, "BYPASS", None);
                    return Ok(Flow::Next);
                }
            },
        };
        let asking = Asking {
            key,
            bypasses: any(&self.bypass, exchange),
            isolated: self.is_isolated,
            has_body: with_body,
        };
        self.caching.look(exchange, asking).await
    }
}

impl Answered for ProxyCache {
    fn answered(&self, exchange: &mut Exchange) -> Taken {
        let declines = any(&self.no_cache, exchange);
        self.caching.answered(exchange, declines)
    }

    fn failed(&self, exchange: &mut Exchange, fault: &Fault) -> Option<Box<Reply>> {
        self.caching.failed(exchange, fault)
    }
}

impl ResponseHead for ProxyCache {
    fn response_head(&self, exchange: &mut Exchange) -> Result<(), Fault> {
        self.caching.response_head(exchange);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plugins::tests::{compile, refused};
    use serde_json::json;

    #[test]
    fn what_cannot_be_meant_is_refused_by_its_field() {
        for (field, value, says) in [
            ("cache_strategy", json!("tape"), "unknown variant"),
            ("cache_strategy", json!("memory"), "cache_zone: 'disk_cache_one' is a zone for disk"),
            (
                "cache_zone",
                json!("memory_cache"),
                "cache_zone: 'memory_cache' is a zone for memory",
            ),
            ("cache_zone", json!("nowhere"), "cache_zone: there is no 'nowhere'"),
            ("cache_zone", json!(""), "cache_zone: 1 to 100"),
            ("cache_zone", json!(1), "invalid type"),
            ("cache_key", json!([]), "cache_key: at least one"),
            ("cache_key", json!(["a"]), "cache_key[0]: one variable"),
            ("cache_key", json!(["$host$uri"]), "cache_key[0]: one variable"),
            ("cache_key", json!(["$"]), "cache_key[0]: one variable"),
            ("cache_key", json!(["$nothing_like_it"]), "cache_key[0]: "),
            ("cache_key", json!("$host"), "invalid type"),
            ("cache_bypass", json!([]), "cache_bypass: at least one"),
            ("cache_bypass", json!(["$x y"]), "cache_bypass[0]"),
            ("no_cache", json!([]), "no_cache: at least one"),
            ("no_cache", json!([1]), "invalid type"),
            ("cache_method", json!([]), "cache_method: at least one"),
            ("cache_method", json!(["PUT"]), "unknown variant"),
            ("cache_method", json!(["GET", "GET"]), "cache_method: the same"),
            ("cache_http_status", json!([]), "cache_http_status: at least one"),
            ("cache_http_status", json!([199]), "cache_http_status: a number from 200"),
            ("cache_http_status", json!([600]), "cache_http_status: a number from 200"),
            ("cache_http_status", json!([206]), "cache_http_status: 206 and 304"),
            ("cache_http_status", json!([200, 200]), "cache_http_status: the same"),
            ("cache_ttl", json!(0), "cache_ttl: a number from 1"),
            ("cache_ttl", json!("1"), "invalid type"),
            ("hide_cache_headers", json!(1), "invalid type"),
            ("cache_control", json!("yes"), "invalid type"),
            ("consumer_isolation", json!(0), "invalid type"),
            ("cache_set_cookie", json!(null), "invalid type"),
            ("max_resp_body_size", json!(0), "max_resp_body_size: a number from 1"),
            ("cache_disk", json!(true), "unknown field"),
        ] {
            let error = refused::<ProxyCache>(json!({ field: value.clone() }));
            assert!(error.contains(says), "{field} {value}: {error}");
        }
    }

    #[test]
    fn only_chains_that_cache_watch_answers_and_only_those_with_post_read_bodies() {
        let chain = compile::<ProxyCache>(json!({}));
        assert!(chain.has_answered() && chain.asks_within() && !chain.reads_body());
        assert!(compile::<ProxyCache>(json!({"cache_method": ["POST"]})).reads_body());
    }
}
