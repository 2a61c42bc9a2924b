//! What plugins cost: the ten that are used most, each alone and all together, and a decision in Redis.
//!
//! `cargo bench --bench plugins`. The last part wants `redis-server`; without it it says so and is left out.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a bench prints its figures")]
#![allow(clippy::unwrap_used, reason = "a bench that fails says where")]

use std::hint::black_box;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use serde_json::{Value, json};
use wardgate::identity::SpiffeId;
use wardgate::model::{Id, Kind, Listeners};
use wardgate::observe::Registry;
use wardgate::pipeline::{
    Build, Chain, Client, Consumer, Directory, Entry, Exchange, Flow, Head, Kept, Link, NoTargets,
    Ready,
};

/// As they stand on routes; each lets the request through.
fn most_used() -> Vec<(&'static str, Value)> {
    vec![
        ("cors", json!({ "allow_origins": "https://shop.example" })),
        ("ip-restriction", json!({ "whitelist": ["127.0.0.0/8", "10.0.0.0/8"] })),
        ("jwt-auth", json!({})),
        ("key-auth", json!({})),
        ("consumer-restriction", json!({ "whitelist": ["jack", "jill"] })),
        (
            "limit-count",
            json!({ "count": 1_000_000_000, "time_window": 3600, "key": "consumer_name" }),
        ),
        ("request-id", json!({})),
        (
            "proxy-rewrite",
            json!({ "regex_uri": ["^/api/(.*)$", "/$1"], "headers": { "set": { "x-from": "gateway" } } }),
        ),
        ("response-rewrite", json!({ "headers": { "set": { "x-served-by": "gateway" } } })),
        ("prometheus", json!({})),
    ]
}

fn entry(name: &str) -> &'static Entry {
    wardgate::plugins::ALL.iter().find(|entry| entry.name == name).unwrap()
}

fn link(name: &str, config: &Value, kept: &Kept, metrics: &Registry) -> Link {
    let (entry, owner) = (entry(name), Id::parse("bench").unwrap());
    let build = Build {
        kind: Kind::Routes,
        owner: &owner,
        plugin: entry.name,
        metadata: None,
        targets: &NoTargets,
        part: "",
        metrics,
        kept,
    };
    let hooks = (entry.compile)(config, &build).unwrap();
    Link::new(entry.name, entry.priority, None, hooks).unwrap()
}

/// One consumer, known by a key and by a token.
struct Jack {
    consumer: Arc<Consumer>,
    key: Arc<Value>,
    token: Ready,
}

impl Jack {
    fn new() -> Self {
        let token = json!({ "key": "jack", "secret": "a-secret-of-the-bench" });
        Self {
            consumer: Arc::new(Consumer { name: "jack".into(), ..Consumer::default() }),
            key: Arc::new(json!({ "key": "jack-key" })),
            token: (entry("jwt-auth").ready_credential.unwrap())(&token).unwrap(),
        }
    }
}

impl Directory for Jack {
    fn find(&self, _: &str, key: &str) -> Option<(Arc<Consumer>, Arc<Value>)> {
        (key == "jack-key").then(|| (self.consumer.clone(), self.key.clone()))
    }
    fn of_identity(&self, _: &str, _: &SpiffeId) -> Option<(Arc<Consumer>, Arc<Value>)> {
        None
    }
    fn ready(&self, _: &str, key: &str) -> Option<(Arc<Consumer>, Ready)> {
        (key == "jack").then(|| (self.consumer.clone(), self.token.clone()))
    }
    fn named(&self, _: &str) -> Option<Arc<Consumer>> {
        None
    }
}

fn client() -> Arc<Client> {
    let address: SocketAddr = "127.0.0.1:4000".parse().unwrap();
    Arc::new(Client {
        connection: 1,
        door: Listeners::Ingress,
        address,
        local: address,
        introduced: None,
        peer: None,
        me: None,
        tls: false,
        sni: None,
    })
}

/// `{"alg":"HS256","typ":"JWT"}` and `{"key":"jack","exp":4102444800}`, signed with the consumer's secret.
fn token() -> String {
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    let encoded = |text: &str| URL_SAFE_NO_PAD.encode(text);
    let signed = format!(
        "{}.{}",
        encoded(r#"{"alg":"HS256","typ":"JWT"}"#),
        encoded(r#"{"key":"jack","exp":4102444800}"#)
    );
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, b"a-secret-of-the-bench");
    let signature = ring::hmac::sign(&key, signed.as_bytes());
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
}

/// All phases of one exchange, as the proxy walks them.
async fn walk(chain: &Chain, exchange: &mut Exchange) {
    for flow in
        [chain.rewrite(exchange).await, chain.access(exchange).await, chain.forward(exchange).await]
    {
        assert!(matches!(flow, Ok(Flow::Next)), "a plugin does not let the request through");
    }
    exchange.response.set_status(200);
    exchange.times.forwarded = Some(exchange.times.started);
    exchange.times.answered = Some(exchange.times.started);
    chain.response_head(exchange).unwrap();
    chain.log(exchange);
}

fn chains(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("plugins/all phases");
    let (kept, metrics) = (Kept::default(), Registry::new());
    let (jack, client, token) = (Arc::new(Jack::new()), client(), format!("Bearer {}", token()));
    let plugins = most_used();
    let mut cases: Vec<(&str, &[(&str, Value)])> = vec![("none", &[])];
    cases.extend(plugins.iter().map(|one| (one.0, std::slice::from_ref(one))));
    cases.push(("all ten", &plugins));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    for (name, of) in cases {
        let chain = Chain::new(of.iter().map(|(name, config)| link(name, config, &kept, &metrics)));
        let mut exchange = Exchange::new(client.clone());
        group.bench_function(name, |bencher| {
            bencher.iter_custom(|times| {
                runtime.block_on(async {
                    let mut spent = Duration::ZERO;
                    for _ in 0..times {
                        // Making the request is no part of it.
                        exchange.forget();
                        exchange.request =
                            Head::request("GET", "/api/items?page=2", "shop.example");
                        exchange.request.append("apikey", b"jack-key");
                        exchange.request.append("authorization", token.as_bytes());
                        exchange.request.append("origin", b"https://shop.example");
                        exchange.consumers = Some(jack.clone());
                        // Where the plugin is alone that asks who calls.
                        exchange.consumer = Some(jack.consumer.clone());
                        let started = Instant::now();
                        walk(black_box(&chain), &mut exchange).await;
                        spent += started.elapsed();
                    }
                    spent
                })
            });
        });
    }
    group.finish();
}

struct RedisServer(Child, u16);

impl RedisServer {
    fn start() -> Option<Self> {
        let port = TcpListener::bind("127.0.0.1:0").ok()?.local_addr().ok()?.port();
        let child = Command::new("redis-server")
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1"])
            .args(["--save", "", "--appendonly", "no", "--loglevel", "warning"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .ok()?;
        let server = Self(child, port);
        let since = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(since.elapsed() < Duration::from_secs(30), "Redis does not come up");
            std::thread::park_timeout(Duration::from_millis(20));
        }
        Some(server)
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A decision in Redis, from the hook's start to its end: one at a time, and sixteen at once on one worker.
fn redis(criterion: &mut Criterion) {
    let Some(server) = RedisServer::start() else {
        eprintln!("plugins/redis: left out, there is no redis-server");
        return;
    };
    let place = json!({ "policy": "redis", "redis_host": "127.0.0.1", "redis_port": server.1 });
    let with = |more: Value| {
        let mut all = place.clone();
        all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        all
    };
    let count = json!({ "count": 1_000_000_000, "time_window": 3600, "key": "remote_addr" });
    let sliding = json!({ "count": 1_000_000_000, "time_window": 3600, "key": "remote_addr", "window_type": "sliding" });
    let req = json!({ "rate": 1e9, "burst": 1e6, "key": "remote_addr", "nodelay": true });
    let conn =
        json!({ "conn": 1_000_000, "burst": 0, "default_conn_delay": 0.1, "key": "remote_addr" });
    let (kept, metrics) = (Kept::default(), Registry::new());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut group = criterion.benchmark_group("plugins/redis");
    for (title, name, config) in [
        ("limit-count, fixed", "limit-count", count),
        ("limit-count, sliding", "limit-count", sliding),
        ("limit-req", "limit-req", req),
        ("limit-conn", "limit-conn", conn),
    ] {
        let chain = Chain::new([link(name, &with(config), &kept, &metrics)]);
        let ask = async || {
            let mut exchange = Exchange::new(client());
            exchange.request = Head::request("GET", "/", "shop.example");
            let started = Instant::now();
            assert!(matches!(chain.access(&mut exchange).await, Ok(Flow::Next)));
            let spent = started.elapsed();
            chain.log(&exchange);
            spent
        };
        for at_once in [1, 16] {
            let mut spent: Vec<Duration> = runtime.block_on(async {
                let mut spent = Vec::new();
                for _ in 0..4000 / at_once {
                    let asked = (0..at_once).map(|_| ask());
                    spent.extend(futures_util::future::join_all(asked).await);
                }
                spent
            });
            // The first ones connect and bring the script.
            let mut spent = spent.split_off(400);
            spent.sort_unstable();
            let at = |part: usize| spent[spent.len() * part / 100].as_micros();
            println!(
                "{title}, {at_once} at once: p50 {} us, p90 {} us, p99 {} us",
                at(50),
                at(90),
                at(99)
            );
        }
        group.bench_function(title, |bencher| {
            bencher.iter_custom(|times| {
                runtime.block_on(async {
                    let mut spent = Duration::ZERO;
                    for _ in 0..times {
                        spent += ask().await;
                    }
                    spent
                })
            });
        });
    }
    group.finish();
}

criterion_group!(benches, chains, redis);
criterion_main!(benches);
