//! `proxy-mirror`: copies of requests to another server, whose answers nobody reads.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::header::{CONTENT_LENGTH, HOST};
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::sync::{Mutex, mpsc};

use crate::pipeline::{
    Access, Build, Exchange, Fault, Flow, Forward, Hooks, Invalid, Plugin, Question, Server, Terms,
};
use crate::plugins::bounds;
use crate::rt::Tasks;

/// Sends copies of requests to another server as well. Nobody waits for them, and what comes back is thrown away.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Config {
    /// The server: `http://host` or `https://host`, with a port where it is another one than usual.
    #[schemars(regex(
        pattern = r"^(http(s)?|grpc(s)?)://([0-9a-zA-Z.\-]+|\[[0-9a-fA-F:]+\])(:\d+)?$"
    ))]
    host: String,
    /// The path of copies; the request's own when not given.
    #[serde(default)]
    #[schemars(regex(pattern = r"^/[^?&]+$"))]
    path: Option<String>,
    /// Whether `path` stands in place of the request's path or before it.
    #[serde(default)]
    path_concat_mode: Mode,
    /// The part of the requests that is copied.
    #[serde(default = "all")]
    #[schemars(range(min = 0.00001, max = 1.0))]
    sample_ratio: f64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum Mode {
    #[default]
    Replace,
    Prefix,
}

const fn all() -> f64 {
    1.0
}

pub(super) struct ProxyMirror {
    path: Option<(String, Mode)>,
    share: f64,
    mirror: Arc<Mirror>,
}

/// Who sends the copies. Those that find no room are not sent: a slow mirror must not fill memory.
struct Mirror {
    sender: mpsc::Sender<Question>,
    waiting: Arc<Mutex<mpsc::Receiver<Question>>>,
    server: Arc<Server>,
    /// Begun with the first copy.
    work: OnceLock<Tasks>,
}

/// Copies that wait for somebody to send them.
const ROOM: usize = 256;
/// Copies under way.
const AT_ONCE: usize = 16;
/// For a copy, from connecting to the answer's end.
const WITHIN: Duration = Duration::from_secs(60);
/// Bytes of a body that is copied.
const MOST: u64 = 64 << 20;

/// A note: the body of a request that is copied.
struct Copied(Option<Bytes>);

impl Plugin for ProxyMirror {
    const NAME: &'static str = "proxy-mirror";
    const PRIORITY: i32 = 1010;
    const EXAMPLE: &'static str = r#"{"host": "http://127.0.0.1:9797", "sample_ratio": 0.1}"#;
    type Config = Config;

    fn compile(config: Config, build: &Build<'_>) -> Result<Hooks, Invalid> {
        if config.host.starts_with("grpc") {
            return Err(Invalid::new(
                "host: copies of gRPC calls are not supported by this version",
            ));
        }
        if !(0.00001..=1.0).contains(&config.sample_ratio) {
            return Err(Invalid::new("sample_ratio: a number from 0.00001 to 1 is expected"));
        }
        let authority = config.host.split_once("://").map_or("", |(_, authority)| authority);
        if authority.contains(['/', '?', '#', '@', ',']) {
            return Err(Invalid::new(
                "host: scheme, host and port are expected, and nothing behind them",
            ));
        }
        if let Some(path) = &config.path {
            let lawful = |b: u8| (0x21..=0x7e).contains(&b) && !b"?&#".contains(&b);
            if !path.starts_with('/') || path.len() < 2 || !path.bytes().all(lawful) {
                return Err(Invalid::new("path: '/' and a path without query are expected"));
            }
        }
        let terms =
            Terms { within: WITHIN, verify: true, keep: Some((Duration::from_secs(60), AT_ONCE)) };
        let server =
            Server::new("host", &config.host, terms).map_err(|why| bounds::at("host", &why))?;
        let mirror = build.keep(&config.host, || Mirror::to(server));
        let path = config.path.map(|path| (path, config.path_concat_mode));
        let plugin = Self { path, share: config.sample_ratio, mirror };
        Ok(Hooks::of(plugin).access().forward().reading_body().done())
    }
}

impl Mirror {
    fn to(server: Server) -> Self {
        let (sender, waiting) = mpsc::channel(ROOM);
        Self {
            sender,
            waiting: Arc::new(Mutex::new(waiting)),
            server: Arc::new(server),
            work: OnceLock::new(),
        }
    }

    /// Has a copy sent, unless too many wait already.
    fn send(&self, question: Question) {
        self.work.get_or_init(|| {
            let mut tasks = Tasks::new();
            for _ in 0..AT_ONCE {
                tasks.add(copies(self.waiting.clone(), self.server.clone()));
            }
            tasks
        });
        if self.sender.try_send(question).is_err() {
            tracing::debug!(mirror = %self.server.name(), "a copy is left out: too many wait");
        }
    }
}

async fn copies(waiting: Arc<Mutex<mpsc::Receiver<Question>>>, server: Arc<Server>) {
    loop {
        let next = waiting.lock().await.recv().await;
        let Some(question) = next else { return };
        if let Err(why) = server.ask(&question).await {
            tracing::debug!(mirror = %server.name(), why = %why.told(), "a copy was lost");
        }
    }
}

#[async_trait]
impl Access for ProxyMirror {
    async fn access(&self, exchange: &mut Exchange) -> Result<Flow, Fault> {
        let kind = exchange.request.text("content-type").unwrap_or_default();
        // What goes on in both directions at once cannot be collected first.
        let flows = exchange.upgrade.is_some() || kind.starts_with("application/grpc");
        if flows || fastrand::f64() >= self.share {
            return Ok(Flow::Next);
        }
        // A body that cannot be copied is still forwarded, and judged there.
        if let Ok(body) = exchange.read_body(exchange.body_limit(MOST).min(MOST)).await {
            exchange.notes.leave(Copied(Some(body)));
        }
        Ok(Flow::Next)
    }
}

#[async_trait]
impl Forward for ProxyMirror {
    async fn forward(&self, exchange: &mut Exchange) -> Result<Flow, Fault> {
        // Once, however many attempts there are.
        let body = exchange.notes.find_mut::<Copied>().and_then(|copied| copied.0.take());
        if let Some(body) = body
            && let Some(question) = self.copy(exchange, body)
        {
            self.mirror.send(question);
        }
        Ok(Flow::Next)
    }
}

impl ProxyMirror {
    fn copy(&self, exchange: &Exchange, body: Bytes) -> Option<Question> {
        let (request, rewritten) = (&exchange.request, &exchange.rewritten);
        let method = rewritten.method.as_deref().unwrap_or_else(|| request.method());
        let target = rewritten.target.as_deref().unwrap_or_else(|| request.target());
        let mut headers = HeaderMap::new();
        for field in request.fields() {
            let name = HeaderName::from_bytes(field.name.as_bytes());
            let value = HeaderValue::from_bytes(field.value);
            if let (Ok(name), Ok(value)) = (name, value) {
                headers.append(name, value);
            }
        }
        headers.remove(CONTENT_LENGTH);
        let host = rewritten.host.as_deref().unwrap_or_else(|| request.authority());
        if let Ok(host) = HeaderValue::from_str(host) {
            headers.insert(HOST, host);
        }
        let method = Method::from_bytes(method.as_bytes()).ok()?;
        Some(Question { method, path: self.target(target), headers, body, is_once: true })
    }

    fn target(&self, own: &str) -> String {
        let Some((path, mode)) = &self.path else { return own.to_owned() };
        match mode {
            Mode::Prefix => format!("{path}{own}"),
            Mode::Replace => match own.split_once('?') {
                Some((_, query)) => format!("{path}?{query}"),
                None => path.clone(),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plugins::tests::refused;
    use serde_json::json;

    #[test]
    fn copies_go_where_the_settings_say() {
        let server =
            || Server::new("host", "http://a", Terms { within: WITHIN, verify: true, keep: None });
        for (path, own, target) in [
            (None, "/a?b", "/a?b"),
            (Some(("/m", Mode::Replace)), "/a?b=c?d", "/m?b=c?d"),
            (Some(("/m", Mode::Replace)), "/a", "/m"),
            (Some(("/m", Mode::Prefix)), "/a?b", "/m/a?b"),
        ] {
            let path = path.map(|(path, mode)| (path.to_owned(), mode));
            let mirror = Arc::new(Mirror::to(server().unwrap()));
            assert_eq!(ProxyMirror { path, share: 1.0, mirror }.target(own), target);
        }
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        let with = |field: &str, value: serde_json::Value| {
            let mut config = json!({"host": "http://127.0.0.1:1"});
            config[field] = value;
            config
        };
        for (config, says) in [
            (json!({}), "missing field `host`"),
            (with("host", json!("127.0.0.1")), "host: "),
            (with("host", json!("http://a/b")), "host: scheme, host and port"),
            (with("host", json!("http://u@a")), "host: scheme, host and port"),
            (with("host", json!("grpc://a:1")), "host: copies of gRPC"),
            (with("path", json!("a")), "path: "),
            (with("path", json!("/")), "path: "),
            (with("path", json!("/a?b")), "path: "),
            (with("path", json!("/a\r\nb")), "path: "),
            (with("path_concat_mode", json!("append")), "unknown variant"),
            (with("sample_ratio", json!(0)), "sample_ratio"),
            (with("sample_ratio", json!(1.1)), "sample_ratio"),
        ] {
            let error = refused::<ProxyMirror>(config.clone());
            assert!(error.contains(says), "{config}: {error}");
        }
    }
}
