//! Readiness gates, and the port where probes and scrapers ask.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::get;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::metrics::Registry;

/// Whether a process may get traffic: all its gates are open.
///
/// ```
/// # use wardgate::observe::Readiness;
/// let readiness = Readiness::new();
/// let identity = readiness.gate("identity", "no identity yet");
/// assert_eq!(readiness.waiting_for(), ["identity: no identity yet"]);
/// identity.open();
/// assert!(readiness.is_ready());
/// ```
#[derive(Clone, Debug)]
pub struct Readiness {
    /// By name; a gate that is shut has its reason.
    gates: Arc<watch::Sender<BTreeMap<&'static str, Option<String>>>>,
    /// What a process does without although it is ready, and how.
    without: Arc<Mutex<BTreeMap<&'static str, String>>>,
    started: Instant,
}

/// One condition of readiness. Dropping it leaves it as it is.
#[derive(Clone, Debug)]
pub struct Gate {
    name: &'static str,
    gates: Arc<watch::Sender<BTreeMap<&'static str, Option<String>>>>,
}

impl Gate {
    /// The condition holds.
    pub fn open(&self) {
        self.set(None);
    }

    /// The condition does not hold, and why.
    pub fn shut(&self, reason: impl Into<String>) {
        self.set(Some(reason.into()));
    }

    fn set(&self, mut reason: Option<String>) {
        self.gates.send_if_modified(|gates| {
            let gate = gates.entry(self.name).or_default();
            let changed = *gate != reason;
            *gate = reason.take();
            changed
        });
    }
}

impl Default for Readiness {
    fn default() -> Self {
        Self::new()
    }
}

impl Readiness {
    /// No gates: ready.
    pub fn new() -> Self {
        Self {
            gates: Arc::new(watch::Sender::new(BTreeMap::new())),
            without: Arc::default(),
            started: Instant::now(),
        }
    }

    /// Adds a gate that is shut for this reason.
    pub fn gate(&self, name: &'static str, reason: &str) -> Gate {
        let gate = Gate { name, gates: self.gates.clone() };
        gate.shut(reason);
        gate
    }

    /// The process is ready, and does without something: probes are told, and get their 200. `None`: it is there again.
    pub fn does_without(&self, name: &'static str, how: Option<String>) {
        let mut without = self.without.lock();
        match how {
            Some(how) => drop(without.insert(name, how)),
            None => drop(without.remove(name)),
        }
    }

    /// Are all gates open?
    pub fn is_ready(&self) -> bool {
        self.gates.borrow().values().all(Option::is_none)
    }

    /// The gates that are shut, each with its reason.
    pub fn waiting_for(&self) -> Vec<String> {
        let gates = self.gates.borrow();
        let shut = |(name, reason): (&&str, &Option<String>)| {
            reason.as_ref().map(|reason| format!("{name}: {reason}"))
        };
        gates.iter().filter_map(shut).collect()
    }

    /// Seconds since the start.
    pub fn uptime(&self) -> u64 {
        self.started.elapsed().as_secs()
    }

    /// Waits until all gates are open.
    pub async fn ready(&self) {
        let mut gates = self.gates.subscribe();
        // The sender lives as long as we do.
        let _ = gates.wait_for(|gates| gates.values().all(Option::is_none)).await;
    }

    fn debug(&self) -> Value {
        let gates = self.gates.borrow();
        let gates: BTreeMap<&str, &str> = gates
            .iter()
            .map(|(name, reason)| (*name, reason.as_deref().unwrap_or("open")))
            .collect();
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "pid": std::process::id(),
            "uptime_seconds": self.started.elapsed().as_secs(),
            "gates": gates,
        })
    }
}

/// APISIX's status port: `/status` and `/status/ready`.
pub fn status_router(readiness: &Readiness) -> Router {
    let ready = readiness.clone();
    Router::new()
        .route("/status", get(|| async { Json(json!({"status": "ok"})) }))
        .route("/status/ready", get(move || async move { probe(&ready) }))
}

/// All that probes, scrapers and people may read: status, health, metrics, `/debug`. Nothing here changes anything.
pub fn router(readiness: &Readiness, registry: &Registry) -> Router {
    let (ready, debug) = (readiness.clone(), readiness.clone());
    let (metrics, registry) = (registry.clone(), registry.clone());
    status_router(readiness)
        .route("/healthz/live", get(|| async { "ok\n" }))
        .route("/healthz/ready", get(move || async move { probe(&ready) }))
        .route("/metrics", get(move || async move { scrape(&metrics) }))
        .route("/apisix/prometheus/metrics", get(move || async move { scrape(&registry) }))
        .route("/debug", get(move || async move { Json(debug.debug()) }))
        .fallback(|| async { (StatusCode::NOT_FOUND, Json(json!({"error_msg": "404 Not Found"}))) })
}

fn probe(readiness: &Readiness) -> Response {
    let waiting = readiness.waiting_for();
    if waiting.is_empty() {
        let mut body = json!({"status": "ok"});
        let without = readiness.without.lock();
        if !without.is_empty() {
            body["without"] = json!(*without);
        }
        return Json(body).into_response();
    }
    let gates = readiness.gates.borrow();
    let shut = |(name, reason): (&&str, &Option<String>)| {
        reason.as_ref().map(|reason| json!({"gate": name, "reason": reason}))
    };
    let reasons: Vec<Value> = gates.iter().filter_map(shut).collect();
    let body = json!({"status": "error", "error": waiting.join("; "), "reasons": reasons});
    drop(gates);
    (StatusCode::SERVICE_UNAVAILABLE, Json(body)).into_response()
}

fn scrape(registry: &Registry) -> Response {
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    ([(header::CONTENT_TYPE, kind)], registry.render()).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::{Body, to_bytes};
    use axum::http::Request;
    use tower::ServiceExt;

    async fn ask(router: &Router, path: &str) -> (u16, String) {
        let request = Request::get(path).body(Body::empty()).unwrap();
        let answer = router.clone().oneshot(request).await.unwrap();
        let status = answer.status().as_u16();
        let body = to_bytes(answer.into_body(), 1 << 20).await.unwrap();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn probes_tell_what_is_missing_and_scrapers_get_the_metrics() {
        let (readiness, registry) = (Readiness::new(), Registry::new());
        let router = router(&readiness, &registry);
        let config = readiness.gate("config", "no configuration received yet");
        let identity = readiness.gate("identity", "no identity yet");
        registry.counter("apisix_http_requests_total", &[]).increment();

        assert_eq!(ask(&router, "/status").await, (200, r#"{"status":"ok"}"#.into()));
        assert_eq!(ask(&router, "/healthz/live").await.0, 200);
        let (status, body) = ask(&router, "/status/ready").await;
        assert_eq!(status, 503);
        let body: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(
            body["error"],
            "config: no configuration received yet; identity: no identity yet"
        );
        assert_eq!(body["reasons"][1], json!({"gate": "identity", "reason": "no identity yet"}));

        config.open();
        identity.open();
        readiness.ready().await;
        assert_eq!(ask(&router, "/healthz/ready").await.0, 200);
        identity.shut("our certificate has expired");
        assert_eq!(ask(&router, "/status/ready").await.0, 503);
        assert!(ask(&router, "/debug").await.1.contains("our certificate has expired"));
        for path in ["/metrics", "/apisix/prometheus/metrics"] {
            let (status, text) = ask(&router, path).await;
            assert_eq!((status, text.contains("apisix_http_requests_total 1")), (200, true));
        }
        assert_eq!(ask(&router, "/other").await.0, 404);
    }
}
