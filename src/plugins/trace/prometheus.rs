//! `prometheus`: counts what passes, under APISIX's metric names and labels.

use std::cell::RefCell;
use std::collections::HashMap;
use std::hash::BuildHasher;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use foldhash::fast::FixedState;
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::time::Instant;

use crate::pipeline::{
    Build, Counter, Exchange, Histogram, Hooks, Id, Invalid, Log, MetricKind, Plugin, Registry,
    ResponseSource,
};

/// Counts the exchanges of the routes that have it.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Config {
    /// Labels routes and services by their names where they have one, not by their ids.
    #[serde(default)]
    prefer_name: bool,
}

/// What is counted less finely than it could be.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Metadata {
    /// Labels whose values are left empty, by metric: fewer series. `code` and `type` say what is counted and stay.
    #[serde(default)]
    disabled_labels: DisabledLabels,
}

/// Labels whose values are left empty.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct DisabledLabels {
    /// Of `apisix_http_status`.
    #[serde(default)]
    http_status: Vec<StatusLabel>,
    /// Of `apisix_http_latency`.
    #[serde(default)]
    http_latency: Vec<Label>,
    /// Of `apisix_bandwidth`.
    #[serde(default)]
    bandwidth: Vec<Label>,
}

macro_rules! labels {
    ($(#[$about:meta])* $name:ident { $($variant:ident = $text:literal),* $(,)? }) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
        enum $name { $(#[serde(rename = $text)] $variant),* }

        impl $name {
            const fn text(self) -> &'static str {
                match self { $(Self::$variant => $text),* }
            }
        }
    };
}

labels! {
    /// A label of `apisix_http_status` that may be left empty.
    StatusLabel {
        Route = "route", MatchedUri = "matched_uri", MatchedHost = "matched_host",
        Service = "service", Consumer = "consumer", Node = "node", RequestType = "request_type",
        RequestLlmModel = "request_llm_model", LlmModel = "llm_model",
        ResponseSource = "response_source",
    }
}

labels! {
    /// A label of the other metrics that may be left empty.
    Label {
        Route = "route", Service = "service", Consumer = "consumer", Node = "node",
        RequestType = "request_type", RequestLlmModel = "request_llm_model",
        LlmModel = "llm_model",
    }
}

pub(super) struct Prometheus {
    /// Tells this one's series from those of others in a thread's memory of them.
    number: u64,
    prefer_name: bool,
    disabled: DisabledLabels,
    registry: Registry,
}

/// Upper bounds of the latency's buckets, in milliseconds.
const BUCKETS: &[f64] = &[
    1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1_000.0, 2_000.0, 5_000.0, 10_000.0,
    30_000.0, 60_000.0,
];

impl Plugin for Prometheus {
    const NAME: &'static str = "prometheus";
    const PRIORITY: i32 = 500;
    const EXAMPLE: &'static str = r#"{"prefer_name": true}"#;
    type Config = Config;

    fn compile(config: Config, build: &Build<'_>) -> Result<Hooks, Invalid> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let metadata: Metadata = match build.metadata {
            None => Metadata::default(),
            Some(value) => Metadata::deserialize(value)
                .map_err(|error| Invalid::new(format!("plugin metadata: {error}")))?,
        };
        for (name, kind, help) in [
            ("apisix_http_status", MetricKind::Counter, "HTTP status codes per service in APISIX"),
            (
                "apisix_http_latency",
                MetricKind::Histogram,
                "HTTP request latency in milliseconds per service in APISIX",
            ),
            (
                "apisix_bandwidth",
                MetricKind::Counter,
                "Total bandwidth in bytes consumed per service in APISIX",
            ),
        ] {
            build.metrics.describe(name, kind, help);
        }
        let plugin = Self {
            number: NUMBER.fetch_add(1, Ordering::Relaxed),
            prefer_name: config.prefer_name,
            disabled: metadata.disabled_labels,
            registry: build.metrics.clone(),
        };
        Ok(Hooks::of(plugin).log().done())
    }
}

/// What tells one exchange's series from another's.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Key<'a> {
    plugin: u64,
    route: Option<&'a Id>,
    status: u16,
    path: usize,
    host: Option<usize>,
    consumer: Option<&'a str>,
    node: Option<IpAddr>,
    source: &'static str,
}

/// The series of one key. Looked up once a thread, counted in from then on.
struct Series {
    plugin: u64,
    route: Option<Id>,
    status: u16,
    path: usize,
    host: Option<usize>,
    consumer: Option<Box<str>>,
    node: Option<IpAddr>,
    source: &'static str,
    /// What the series were resolved from: a route whose words changed has others.
    info: Option<Arc<crate::pipeline::RouteInfo>>,
    count: Arc<Counter>,
    total: Arc<Histogram>,
    upstream: Arc<Histogram>,
    own: Arc<Histogram>,
    ingress: Arc<Counter>,
    egress: Arc<Counter>,
}

impl Series {
    fn is_of(&self, key: &Key<'_>) -> bool {
        *key == Key {
            plugin: self.plugin,
            route: self.route.as_ref(),
            status: self.status,
            path: self.path,
            host: self.host,
            consumer: self.consumer.as_deref(),
            node: self.node,
            source: self.source,
        }
    }
}

/// A thread remembers at most so many series; then it begins anew.
const MAX_REMEMBERED: usize = 4096;

thread_local! {
    /// By the key's hash. Nothing is shared between workers here, so nothing is waited for.
    static REMEMBERED: RefCell<HashMap<u64, Vec<Series>, FixedState>> = RefCell::default();
}

impl Log for Prometheus {
    fn log(&self, exchange: &Exchange) {
        let key = Key {
            plugin: self.number,
            route: exchange.route.as_ref().map(|route| &route.id),
            status: exchange.response.status(),
            path: exchange.matched_path,
            host: exchange.matched_host,
            consumer: exchange.consumer.as_ref().map(|consumer| &*consumer.name),
            node: exchange.endpoint.map(|endpoint| endpoint.ip()),
            source: match exchange.source {
                ResponseSource::Gateway => "apisix",
                ResponseSource::Failure => "nginx",
                ResponseSource::Upstream => "upstream",
            },
        };
        let hash = FixedState::default().hash_one(&key);
        REMEMBERED.with_borrow_mut(|remembered| {
            let known = remembered.get(&hash).and_then(|of| {
                of.iter().find(|series| series.is_of(&key) && same(&series.info, &exchange.route))
            });
            if let Some(series) = known {
                series.count_in(exchange);
                return;
            }
            let series = self.resolve(&key, exchange);
            series.count_in(exchange);
            if remembered.len() >= MAX_REMEMBERED {
                remembered.clear();
            }
            let of = remembered.entry(hash).or_default();
            of.retain(|series| !series.is_of(&key));
            of.push(series);
        });
    }
}

fn same<T>(one: &Option<Arc<T>>, other: &Option<Arc<T>>) -> bool {
    match (one, other) {
        (None, None) => true,
        (Some(one), Some(other)) => Arc::ptr_eq(one, other),
        _ => false,
    }
}

impl Series {
    fn count_in(&self, exchange: &Exchange) {
        self.count.increment();
        let now = Instant::now();
        let total = now.saturating_duration_since(exchange.times.started);
        self.total.observe(millis(total));
        let forwarded = exchange.times.forwarded.filter(|_| exchange.times.answered.is_some());
        match forwarded {
            // As nginx counts it: from sending the request to the end of the response.
            Some(forwarded) => {
                let upstream = now.saturating_duration_since(forwarded);
                self.upstream.observe(millis(upstream));
                self.own.observe(millis(total.saturating_sub(upstream)));
            }
            None => self.own.observe(millis(total)),
        }
        self.ingress.add(exchange.bytes_in);
        self.egress.add(exchange.bytes_out);
    }
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

impl Prometheus {
    /// Looks the series up in the registry.
    fn resolve(&self, key: &Key<'_>, exchange: &Exchange) -> Series {
        let info = exchange.route.as_deref();
        let (mut route, mut service) = ("", "");
        if let Some(info) = info {
            route = info.id.as_str();
            service = info.service.as_ref().map_or("", Id::as_str);
            if self.prefer_name {
                route = info.name.as_deref().unwrap_or(route);
                service = info.service_name.as_deref().unwrap_or(service);
            }
        }
        let path = info.and_then(|info| info.paths.get(key.path)).map_or("", String::as_str);
        let host = key.host.and_then(|at| info?.hosts.get(at)).map_or("", String::as_str);
        let consumer = key.consumer.unwrap_or_default();
        let node = key.node.map(|node| node.to_string()).unwrap_or_default();
        let code = key.status.to_string();

        let off: Vec<&str> = self.disabled.http_status.iter().map(|label| label.text()).collect();
        let status = labels(
            &off,
            &[
                ("code", &code),
                ("route", route),
                ("matched_uri", path),
                ("matched_host", host),
                ("service", service),
                ("consumer", consumer),
                ("node", &node),
                ("request_type", "traditional_http"),
                ("request_llm_model", ""),
                ("llm_model", ""),
                ("response_source", key.source),
            ],
        );
        let others = |of: &'static str, off: &[Label]| {
            let off: Vec<&str> = off.iter().map(|label| label.text()).collect();
            let all = [
                ("type", of),
                ("route", route),
                ("service", service),
                ("consumer", consumer),
                ("node", &node),
                ("request_type", "traditional_http"),
                ("request_llm_model", ""),
                ("llm_model", ""),
            ];
            labels(&off, &all).iter().map(|(n, v)| (*n, (*v).to_owned())).collect::<Vec<_>>()
        };
        let latency = |of: &'static str| {
            let owned = others(of, &self.disabled.http_latency);
            let labels: Vec<(&str, &str)> = owned.iter().map(|(n, v)| (*n, v.as_str())).collect();
            self.registry.histogram("apisix_http_latency", &labels, BUCKETS)
        };
        let bandwidth = |of: &'static str| {
            let owned = others(of, &self.disabled.bandwidth);
            let labels: Vec<(&str, &str)> = owned.iter().map(|(n, v)| (*n, v.as_str())).collect();
            self.registry.counter("apisix_bandwidth", &labels)
        };
        Series {
            plugin: key.plugin,
            route: key.route.cloned(),
            status: key.status,
            path: key.path,
            host: key.host,
            consumer: key.consumer.map(Into::into),
            node: key.node,
            source: key.source,
            info: exchange.route.clone(),
            count: self.registry.counter("apisix_http_status", &status),
            total: latency("request"),
            upstream: latency("upstream"),
            own: latency("apisix"),
            ingress: bandwidth("ingress"),
            egress: bandwidth("egress"),
        }
    }
}

/// The labels, with empty values where they are switched off.
fn labels<'a>(off: &[&str], all: &[(&'static str, &'a str)]) -> Vec<(&'static str, &'a str)> {
    all.iter().map(|(name, value)| (*name, if off.contains(name) { "" } else { *value })).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::tests::{exchange, route_info};
    use crate::pipeline::{Chain, Consumer, Kept, Kind};
    use crate::plugins::tests::chain;
    use serde_json::{Value, json};

    fn watched(registry: &Registry, config: Value, metadata: Option<&Value>) -> Chain {
        let (kept, owner) = (Kept::default(), Id::parse("r1").unwrap());
        let build = Build {
            kind: Kind::Routes,
            owner: &owner,
            plugin: "prometheus",
            metadata,
            targets: &crate::pipeline::NoTargets,
            part: "",
            kept: &kept,
            metrics: registry,
        };
        let config: Config = serde_json::from_value(config).unwrap();
        chain("prometheus", Prometheus::compile(config, &build).unwrap())
    }

    async fn done(status: u16) -> Exchange {
        let mut exchange = exchange("GET", "/a", "shop");
        let mut info = route_info();
        info.hosts = vec!["*.shop".into()];
        info.service = Some(Id::parse("s1").unwrap());
        info.service_name = Some("cart".into());
        exchange.route = Some(Arc::new(info));
        exchange.matched_host = Some(0);
        exchange.consumer = Some(Arc::new(Consumer { name: "jack".into(), ..Consumer::default() }));
        exchange.endpoint = Some("127.0.0.1:8080".parse().unwrap());
        exchange.source = ResponseSource::Upstream;
        exchange.response.set_status(status);
        (exchange.bytes_in, exchange.bytes_out) = (100, 2000);
        tokio::time::advance(Duration::from_millis(3)).await;
        exchange.times.forwarded = Some(Instant::now());
        tokio::time::advance(Duration::from_millis(40)).await;
        exchange.times.answered = Some(Instant::now());
        exchange
    }

    #[tokio::test(start_paused = true)]
    async fn an_exchange_is_counted_under_apisixs_names_and_labels() {
        let registry = Registry::new();
        let chain = watched(&registry, json!({}), None);
        let exchange = done(200).await;
        chain.log(&exchange);
        chain.log(&exchange);
        chain.log(&done(502).await);
        let text = registry.render();
        let llm = r#"request_type="traditional_http",request_llm_model="",llm_model="""#;
        let who = r#"route="r1",service="s1",consumer="jack",node="127.0.0.1""#;
        for line in [
            format!(
                r#"apisix_http_status{{code="200",route="r1",matched_uri="/*",matched_host="*.shop",service="s1",consumer="jack",node="127.0.0.1",{llm},response_source="upstream"}} 2"#
            ),
            format!(r#"apisix_bandwidth{{type="ingress",{who},{llm}}} 300"#),
            format!(r#"apisix_bandwidth{{type="egress",{who},{llm}}} 6000"#),
            format!(r#"apisix_http_latency_bucket{{type="request",{who},{llm},le="20"}} 0"#),
            format!(r#"apisix_http_latency_bucket{{type="request",{who},{llm},le="50"}} 3"#),
            format!(r#"apisix_http_latency_bucket{{type="apisix",{who},{llm},le="5"}} 3"#),
            format!(r#"apisix_http_latency_sum{{type="upstream",{who},{llm}}} 120"#),
            "# TYPE apisix_http_latency histogram".to_owned(),
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn names_go_before_ids_where_asked_and_labels_can_be_switched_off() {
        let registry = Registry::new();
        let metadata = json!({"disabled_labels": {"http_status": ["consumer", "node"]}});
        let chain = watched(&registry, json!({"prefer_name": true}), Some(&metadata));
        chain.log(&done(200).await);
        let text = registry.render();
        assert!(text.contains(r#"route="first",matched_uri="/*",matched_host="*.shop",service="cart",consumer="",node="","#), "{text}");
        assert!(text.contains(r#"route="first",service="cart",consumer="jack",node="127.0.0.1""#));
    }

    #[tokio::test(start_paused = true)]
    async fn what_no_route_and_no_upstream_answered_is_counted_too() {
        let registry = Registry::new();
        let chain = watched(&registry, json!({}), None);
        let mut exchange = exchange("GET", "/", "h");
        exchange.route = None;
        exchange.response.set_status(404);
        chain.log(&exchange);
        let text = registry.render();
        assert!(text.contains(r#"code="404",route="",matched_uri="",matched_host="","#), "{text}");
        assert!(text.contains(r#"response_source="apisix"} 1"#), "{text}");
        assert!(text.contains("apisix_http_latency_count{type=\"upstream\",route=\"\",service=\"\",consumer=\"\",node=\"\",request_type=\"traditional_http\",request_llm_model=\"\",llm_model=\"\"} 0"), "{text}");
    }
}
