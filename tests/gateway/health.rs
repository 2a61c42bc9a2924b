//! Nodes that come and go: checks, ejection, slow start, hedging, budgets and limits, and that no request fails of it.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use serde_json::{Value, json};

use crate::mesh::{RawApp, Wire};
use crate::upstream_tls::{Authority, Server};
use crate::world::{App, PATIENCE, Process, World, allow, eventually_async, free_port, get, send};

/// An ingress with one route for everything to this upstream, and a status port.
fn ingress(world: &World, upstream: &Value) -> Process {
    let part = world.ingress().set("status", &json!("127.0.0.1:0"));
    part.resources(&route(upstream)).start()
}

fn route(upstream: &Value) -> Value {
    json!({ "routes": [{ "id": "all", "uri": "/*", "upstream": upstream }] })
}

async fn metrics(process: &Process) -> String {
    get(process.address("status"), "/metrics").await.text()
}

/// Waits for a line of the metrics.
async fn shows(process: &Process, line: &str) {
    eventually_async(&format!("{} shows {line}", process.name), || async {
        metrics(process).await.lines().any(|found| found == line).then_some(())
    })
    .await;
}

/// Waits until a node counts as healthy, or not.
async fn node_is(process: &Process, node: SocketAddr, is_healthy: bool) {
    let (ip, port, value) = (node.ip(), node.port(), u8::from(is_healthy));
    let line = format!(
        r#"apisix_upstream_status{{name="/apisix/routes/all",ip="{ip}",port="{port}"}} {value}"#
    );
    shows(process, &line).await;
}

/// A place that serves while it is up, and where nothing listens while it is down.
struct Node {
    address: SocketAddr,
    name: &'static str,
    serving: Option<(Arc<AtomicBool>, std::thread::JoinHandle<()>)>,
}

impl Node {
    fn up(name: &'static str) -> Self {
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let mut node = Self { address, name, serving: None };
        node.start();
        node
    }

    fn start(&mut self) {
        let listener = std::net::TcpListener::bind(self.address).unwrap();
        let is_over = Arc::<AtomicBool>::default();
        let (over, name) = (is_over.clone(), self.name);
        let thread = std::thread::spawn(move || {
            let mut connections = Vec::new();
            for tcp in listener.incoming() {
                if over.load(Ordering::SeqCst) {
                    break;
                }
                let (over, mut tcp) = (over.clone(), tcp.unwrap());
                connections.push(std::thread::spawn(move || {
                    tcp.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
                    let (mut piece, mut asked) = ([0; 4096], Vec::new());
                    while !over.load(Ordering::SeqCst) {
                        match tcp.read(&mut piece) {
                            Ok(0) => return,
                            Ok(count) => asked.extend_from_slice(&piece[..count]),
                            Err(_) => continue,
                        }
                        if asked.ends_with(b"\r\n\r\n") {
                            asked.clear();
                            let length = name.len();
                            let answer = format!(
                                "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{name}"
                            );
                            let _ = tcp.write_all(answer.as_bytes());
                        }
                    }
                }));
            }
            for connection in connections {
                connection.join().unwrap();
            }
        });
        self.serving = Some((is_over, thread));
    }

    fn stop(&mut self) {
        if let Some((is_over, thread)) = self.serving.take() {
            is_over.store(true, Ordering::SeqCst);
            let _ = std::net::TcpStream::connect(self.address);
            thread.join().unwrap();
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.stop();
    }
}

/// An app that answers with a status that can be changed: to requests, and to `/health`.
struct Moody {
    app: App,
    status: Arc<AtomicU16>,
    health: Arc<AtomicU16>,
    probes: Arc<AtomicUsize>,
}

impl Moody {
    fn new(name: &'static str) -> Self {
        let (status, health) = (Arc::new(AtomicU16::new(200)), Arc::new(AtomicU16::new(200)));
        let probes = Arc::<AtomicUsize>::default();
        let (by_request, by_probe, counted) = (status.clone(), health.clone(), probes.clone());
        let app = App::serving(move |request: http::Request<hyper::body::Incoming>| {
            let is_probe = request.uri().path() == "/health";
            counted.fetch_add(usize::from(is_probe), Ordering::SeqCst);
            let status = if is_probe { &by_probe } else { &by_request }.load(Ordering::SeqCst);
            async move {
                let body = http_body_util::Full::new(bytes::Bytes::from_static(name.as_bytes()));
                http::Response::builder().status(status).body(body).unwrap()
            }
        });
        Self { app, status, health, probes }
    }

    fn node(&self) -> String {
        self.app.address.to_string()
    }

    /// Waits until it was probed so often.
    async fn is_probed(&self, times: usize) {
        eventually_async("probes", || async {
            (self.probes.load(Ordering::SeqCst) >= times).then_some(())
        })
        .await;
    }
}

/// So many requests, which must all be answered with 200; how many of them each app got.
async fn shares(process: &Process, count: usize) -> BTreeMap<String, usize> {
    let mut seen = BTreeMap::new();
    for _ in 0..count {
        let answer = get(process.address("ingress"), "/").await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        *seen.entry(answer.text()).or_default() += 1;
    }
    seen
}

#[tokio::test]
async fn a_node_goes_away_and_comes_back_and_no_request_fails() {
    let world = World::new();
    let (mut one, two) = (Node::up("one"), Node::up("two"));
    let upstream = json!({
        "nodes": { one.address.to_string(): 1, two.address.to_string(): 1 },
        "checks": { "active": { "healthy": { "successes": 1 }, "unhealthy": { "tcp_failures": 1 } } },
    });
    let ingress = ingress(&world, &upstream);
    assert_eq!(shares(&ingress, 10).await.len(), 2);
    node_is(&ingress, one.address, true).await;

    one.stop();
    // Before a probe finds out, a further attempt does.
    shares(&ingress, 10).await;
    node_is(&ingress, one.address, false).await;
    let line = ingress.logs("to=unhealthy");
    assert!(line.contains(&one.address.to_string()) && line.contains("probe: "), "{line}");
    let before = unreachable(&ingress).await;
    assert_eq!(shares(&ingress, 10).await, BTreeMap::from([("two".to_owned(), 10)]));
    assert_eq!(unreachable(&ingress).await, before, "nobody asked it any more");

    one.start();
    node_is(&ingress, one.address, true).await;
    assert_eq!(
        shares(&ingress, 10).await,
        BTreeMap::from([("one".to_owned(), 5), ("two".to_owned(), 5)])
    );
}

async fn unreachable(process: &Process) -> String {
    let name = "wardgate_upstream_unreachable_total ";
    let text = metrics(process).await;
    text.lines().find_map(|line| line.strip_prefix(name)).unwrap().to_owned()
}

#[tokio::test]
async fn statuses_of_probes_decide_and_a_change_of_nodes_alone_keeps_them() {
    let world = World::new();
    let (one, two, three) = (Moody::new("one"), Moody::new("two"), Moody::new("three"));
    let checks = json!({ "active": {
        "http_path": "/health",
        "healthy": { "http_statuses": [200, 204], "successes": 1 },
        "unhealthy": { "http_statuses": [418], "http_failures": 2 },
    } });
    let upstream = |nodes: Value| json!({ "nodes": nodes, "checks": checks });
    let ingress = ingress(&world, &upstream(json!({ one.node(): 1, two.node(): 1 })));
    one.health.store(418, Ordering::SeqCst);
    node_is(&ingress, one.app.address, false).await;
    assert_eq!(shares(&ingress, 6).await, BTreeMap::from([("two".to_owned(), 6)]));

    // A status that is in no list says nothing.
    one.health.store(500, Ordering::SeqCst);
    let probed = one.probes.load(Ordering::SeqCst);
    ingress.write_resources(&route(&upstream(json!({
        one.node(): 2, two.node(): 1, three.node(): 1,
    }))));
    three.is_probed(2).await;
    one.is_probed(probed + 2).await;
    assert_eq!(
        shares(&ingress, 10).await,
        BTreeMap::from([("two".to_owned(), 5), ("three".to_owned(), 5)])
    );
    one.health.store(204, Ordering::SeqCst);
    node_is(&ingress, one.app.address, true).await;
    assert_eq!(shares(&ingress, 8).await["one"], 4);

    // When nobody is healthy everybody is asked.
    for app in [&one, &two, &three] {
        app.health.store(418, Ordering::SeqCst);
    }
    for app in [&one, &two, &three] {
        node_is(&ingress, app.app.address, false).await;
    }
    assert_eq!(shares(&ingress, 8).await.len(), 3);
}

#[tokio::test]
async fn a_probe_asks_what_its_check_says() {
    let world = World::new();
    let (heard, hears) = mpsc::channel();
    let app = RawApp::serving(move |stream| {
        if let Some(head) = stream.head() {
            let body = stream.body(4).unwrap();
            stream.send("HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\n\r\n");
            heard.send((head, body)).unwrap();
        }
    });
    let other = RawApp::answering("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", true);
    let upstream = json!({
        "nodes": { other.address.to_string(): 1 },
        "checks": { "active": {
            "port": app.address.port(), "host": "health.example", "http_method": "POST",
            "http_path": "/ready?deep=1", "http_req_body": "ping",
            "req_headers": ["User-Agent: prober", "X-Two: a b"],
            "unhealthy": { "tcp_failures": 1 },
        } },
    });
    let ingress = ingress(&world, &upstream);
    let (head, body) = hears.recv_timeout(PATIENCE).unwrap();
    assert!(head.starts_with("POST /ready?deep=1 HTTP/1.1\r\n"), "{head}");
    for line in ["Host: health.example", "user-agent: prober", "x-two: a b", "Connection: close"] {
        assert!(head.contains(&format!("\r\n{line}\r\n")), "{line}: {head}");
    }
    assert_eq!(body, b"ping");
    shows(
        &ingress,
        r#"wardgate_upstream_probes_total{upstream="routes/all",outcome="answered"} 2"#,
    )
    .await;
}

#[tokio::test]
async fn what_requests_find_marks_a_node_without_a_probe() {
    let world = World::new();
    let (one, two) = (Moody::new("one"), Moody::new("two"));
    let upstream = json!({
        "nodes": { one.node(): 1, two.node(): 1 },
        "checks": {
            "active": {
                "http_path": "/health", "healthy": { "interval": 3600 },
                "unhealthy": { "interval": 3600 },
            },
            "passive": { "unhealthy": { "http_statuses": [502], "http_failures": 3 } },
        },
    });
    let ingress = ingress(&world, &upstream);
    // Their first probes are behind us, and further ones are far away.
    one.is_probed(1).await;
    two.is_probed(1).await;
    one.status.store(502, Ordering::SeqCst);
    let mut failed = 0;
    while failed < 3 {
        failed += usize::from(get(ingress.address("ingress"), "/").await.status == 502);
    }
    assert_eq!(shares(&ingress, 10).await, BTreeMap::from([("two".to_owned(), 10)]));
    let line = ingress.logs("to=unhealthy");
    assert!(line.contains("request: status 502"), "{line}");
}

#[tokio::test]
async fn a_tcp_check_asks_for_a_connection_and_nothing_else() {
    let world = World::new();
    // It takes connections, and never says a word.
    let mute = RawApp::serving(|stream| drop(stream.rest()));
    let mut one = Node::up("one");
    let upstream = json!({
        "nodes": { one.address.to_string(): 1, mute.address.to_string(): 0 },
        "checks": { "active": {
            "type": "tcp", "healthy": { "successes": 1 }, "unhealthy": { "tcp_failures": 1 },
        } },
    });
    let ingress = ingress(&world, &upstream);
    one.stop();
    node_is(&ingress, one.address, false).await;
    let connections = mute.connections();
    eventually_async("further probes", || async {
        (mute.connections() > connections).then_some(())
    })
    .await;
    node_is(&ingress, mute.address, true).await;
    one.start();
    node_is(&ingress, one.address, true).await;
}

#[tokio::test]
async fn sidecars_are_probed_over_mtls_and_an_impostor_is_not_healthy() {
    let world = World::new();
    let (app, other) = (App::echo("billing"), App::echo("impostor"));
    let policy = |workload: &str| json!({ "identity_policies": [allow("p", &[&world.id(workload)], &[&world.id("/shop")])] });
    let billing = world.sidecar("/billing").app(&app).resources(&policy("/billing")).start();
    let impostor = world.sidecar("/impostor").app(&other).resources(&policy("/impostor")).start();
    let (right, wrong) = (billing.address("inbound"), impostor.address("inbound"));
    for kind in ["http", "tcp"] {
        let shop = world
            .sidecar("/shop")
            .named(kind)
            .set("status", &json!("127.0.0.1:0"))
            .resources(&json!({ "routes": [{
                "id": "all", "uri": "/*", "workload_selector": { "listener": "outbound" },
                "upstream": {
                    "nodes": { right.to_string(): 1, wrong.to_string(): 1 }, "retries": 0,
                    "tls": { "identity": "svid", "spiffe_ids": [world.id("/billing")] },
                    "checks": { "active": {
                        "type": kind, "http_path": "/health", "timeout": 10,
                        "unhealthy": { "tcp_failures": 1 },
                    } },
                },
            }] }))
            .start();
        node_is(&shop, wrong, false).await;
        node_is(&shop, right, true).await;
        if kind == "http" {
            // Its probes are answered by the workload itself, for whom the sidecar vouches.
            let probed = billing.record("a probe", |record| record["path"] == json!("/health"));
            assert!(probed.to_string().contains(&world.id("/shop")), "{probed}");
        }
        for _ in 0..6 {
            let answer = get(shop.address("outbound"), "/").await;
            assert_eq!((answer.status, &answer.json()["app"]), (200, &json!("billing")), "{kind}");
        }
    }
    assert_eq!(other.requests(), 0);
}

#[tokio::test]
async fn https_probes_show_the_upstreams_certificate_and_verify_as_the_check_says() {
    let world = World::new();
    let (servers, clients) = (Authority::new("servers"), Authority::new("clients"));
    let pair = servers.issue("s", &["health.example"]);
    let server = Server::start(&pair, Some(&clients)).await;
    let (ca, ours) = (json!([servers.pem()]), clients.issue("gateway", &[]));
    let shown = |more: Value| {
        let certificate = json!({ "client_cert": ours.chain, "client_key": ours.key });
        crate::mesh::merged(certificate, &more)
    };
    for (name, tls, check, is_healthy) in [
        ("shown", shown(json!({ "ca_certs": ca })), json!({ "host": "health.example" }), true),
        ("unshown", json!({ "ca_certs": ca }), json!({ "host": "health.example" }), false),
        ("other", shown(json!({ "ca_certs": ca })), json!({ "host": "evil.example" }), false),
        ("unknown", shown(json!({})), json!({ "host": "health.example" }), false),
        (
            "unverified",
            shown(json!({})),
            json!({ "host": "evil.example", "https_verify_certificate": false }),
            true,
        ),
    ] {
        let mut upstream = server.upstream(&tls);
        let base = json!({ "type": "https", "timeout": 10, "unhealthy": { "tcp_failures": 1 } });
        upstream["checks"] = json!({ "active": crate::mesh::merged(base, &check) });
        let part = world.ingress().named(name).set("status", &json!("127.0.0.1:0"));
        let ingress = part.resources(&route(&upstream)).start();
        let outcome = if is_healthy { "answered" } else { "failed" };
        eventually_async("a probe", || async {
            let start = format!(
                "wardgate_upstream_probes_total{{upstream=\"routes/all\",outcome=\"{outcome}\"}} "
            );
            let text = metrics(&ingress).await;
            let count = text.lines().find_map(|line| line.strip_prefix(&start))?.to_owned();
            (count != "0").then_some(())
        })
        .await;
        node_is(&ingress, server.address, is_healthy).await;
    }
}

#[tokio::test]
async fn checks_can_be_switched_off_for_a_process() {
    let world = World::new();
    let seen = Arc::<Mutex<Vec<String>>>::default();
    let kept = seen.clone();
    let app = RawApp::serving(move |stream| {
        while let Some(head) = stream.request() {
            kept.lock().unwrap().push(head.split(' ').nth(1).unwrap().to_owned());
            stream.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
        }
    });
    let upstream = |path: &str| {
        route(&json!({
            "nodes": { app.address.to_string(): 1 }, "checks": { "active": { "http_path": path } },
        }))
    };
    let _off = world
        .ingress()
        .named("off")
        .set("disable_upstream_healthcheck", &json!(true))
        .resources(&upstream("/off"))
        .start();
    let _on = world.ingress().named("on").resources(&upstream("/on")).start();
    eventually_async("probes of the other process", || async {
        (seen.lock().unwrap().iter().filter(|path| *path == "/on").count() >= 3).then_some(())
    })
    .await;
    assert!(!seen.lock().unwrap().contains(&"/off".to_owned()));
}

#[tokio::test]
async fn a_node_that_fails_in_a_row_is_ejected_and_tried_again_later() {
    let world = World::new();
    let (one, two) = (Moody::new("one"), Moody::new("two"));
    let upstream = json!({
        "nodes": { one.node(): 1, two.node(): 1 },
        "resilience": { "outlier_detection": { "consecutive_5xx": 3, "base_ejection_time": 2 } },
    });
    let ingress = ingress(&world, &upstream);
    one.status.store(500, Ordering::SeqCst);
    let mut failed = 0;
    while failed < 3 {
        failed += usize::from(get(ingress.address("ingress"), "/").await.status == 500);
    }
    let line = ingress.logs("a node is ejected");
    assert!(line.contains("3 failures one after the other, the last: status 500"), "{line}");
    one.status.store(200, Ordering::SeqCst);
    ingress.logs("a node is no longer ejected");
    assert_eq!(shares(&ingress, 10).await["one"], 5);
    let requests = one.app.requests();
    assert!((8..=9).contains(&requests), "it got {requests}");
}

#[tokio::test]
async fn a_node_that_joins_gets_a_small_share_first() {
    let world = World::new();
    let (one, two) = (Moody::new("one"), Moody::new("two"));
    let upstream =
        |nodes: Value| route(&json!({ "nodes": nodes, "resilience": { "slow_start": 36_000 } }));
    let ingress = world.ingress().resources(&upstream(json!({ one.node(): 1 }))).start();
    assert_eq!(shares(&ingress, 3).await["one"], 3);
    ingress.write_resources(&upstream(json!({ one.node(): 1, two.node(): 1 })));
    // A tenth of its half: of twenty turns it takes one or two.
    eventually_async("a first request", || async {
        get(ingress.address("ingress"), "/").await;
        (two.app.requests() > 0).then_some(())
    })
    .await;
    let share = shares(&ingress, 110).await["two"];
    assert!((5..=20).contains(&share), "{share} of 110");
}

/// An app whose first requests wait until they are let go; how many were given up is counted.
fn slow(answer: &'static str) -> (RawApp, mpsc::Sender<()>, mpsc::Receiver<String>) {
    let (go, gone) = mpsc::channel::<()>();
    let (heard, hears) = mpsc::channel();
    let gone = Arc::new(Mutex::new(gone));
    let app = RawApp::serving(move |stream| {
        while let Some(head) = stream.request() {
            heard.send(head).unwrap();
            if gone.lock().unwrap().recv_timeout(PATIENCE).is_err() {
                return;
            }
            stream.send(answer);
        }
    });
    (app, go, hears)
}

/// The next one; the test's own requests go on meanwhile.
async fn heard(hears: &mpsc::Receiver<String>) -> String {
    eventually_async("what an app heard", || async { hears.try_recv().ok() }).await
}

const GOOD: &str = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ngood";
const BAD: &str = "HTTP/1.1 500 Oh\r\nContent-Length: 3\r\n\r\nbad";

fn hedged(first: SocketAddr, second: SocketAddr) -> Value {
    let node = |address: SocketAddr, priority: i32| json!({ "host": "127.0.0.1", "port": address.port(), "weight": 1, "priority": priority });
    json!({
        "nodes": [node(first, 1), node(second, 0)],
        "resilience": { "hedging": { "delay": 0.05 } },
    })
}

#[tokio::test]
async fn a_request_that_is_slow_at_one_node_is_answered_by_another_and_the_first_is_cancelled() {
    let world = World::new();
    let (given_up, gives_up) = mpsc::channel();
    let (reached, reaches) = mpsc::channel::<()>();
    let mute = RawApp::serving(move |stream| {
        let head = stream.head().unwrap();
        reached.send(()).unwrap();
        stream.rest();
        given_up.send(head).unwrap();
    });
    let reaches = Arc::new(Mutex::new(reaches));
    let quick = RawApp::serving(move |stream| {
        while stream.request().is_some() {
            // Not before the other one has the request: otherwise it might never get it.
            reaches.lock().unwrap().recv_timeout(PATIENCE).unwrap();
            stream.send(GOOD);
        }
    });
    let ingress = ingress(&world, &hedged(mute.address, quick.address));
    for method in ["GET", "HEAD", "OPTIONS"] {
        let answer = send(ingress.address("ingress"), method, "/slow", &[], "").await;
        assert_eq!(answer.status, 200, "{method}");
        let head = heard(&gives_up).await;
        assert!(head.starts_with(&format!("{method} /slow ")), "{head}");
    }
    let line = r#"wardgate_upstream_hedges_total{upstream="routes/all",outcome="won"} 3"#;
    shows(&ingress, line).await;
}

#[tokio::test]
async fn over_http2_hedging_is_the_same() {
    let world = World::new();
    let reached = Arc::new(tokio::sync::Notify::new());
    let empty = || http::Response::new(http_body_util::Full::new(bytes::Bytes::new()));
    let reaches = reached.clone();
    let stuck = App::serving(move |_: http::Request<hyper::body::Incoming>| {
        reaches.notify_one();
        async move {
            std::future::pending::<()>().await;
            empty()
        }
    });
    let quick = App::serving(move |request: http::Request<hyper::body::Incoming>| {
        let reached = reached.clone();
        async move {
            reached.notified().await;
            assert_eq!(request.version(), http::Version::HTTP_2);
            empty()
        }
    });
    let mut upstream = hedged(stuck.address, quick.address);
    upstream["scheme"] = json!("grpc");
    let ingress = ingress(&world, &upstream);
    for _ in 0..3 {
        assert_eq!(get(ingress.address("ingress"), "/").await.status, 200);
    }
    assert_eq!((stuck.requests(), quick.requests()), (3, 3));
}

#[tokio::test]
async fn a_bad_answer_waits_for_a_better_one_and_is_passed_on_when_there_is_none() {
    let world = World::new();
    for (name, second, status) in [("better", GOOD, 200), ("worse", BAD, 500)] {
        let (one, let_one_go, one_hears) = slow(BAD);
        let (two, let_two_go, two_hears) = slow(second);
        let part = world.ingress().named(name).set("status", &json!("127.0.0.1:0"));
        let ingress = part.resources(&route(&hedged(one.address, two.address))).start();
        let door = ingress.address("ingress");
        let asked = wardgate::rt::spawn(async move { get(door, "/").await });
        heard(&one_hears).await;
        heard(&two_hears).await;
        let_one_go.send(()).unwrap();
        // It has answered by the time that its connection takes another request, at the latest.
        let_two_go.send(()).unwrap();
        let answer = asked.await.unwrap();
        assert_eq!(answer.status, status, "{name}");
    }
}

#[tokio::test]
async fn what_is_not_safe_is_sent_once() {
    let world = World::new();
    let (one, let_go, hears) = slow(GOOD);
    let two = RawApp::answering(BAD, false);
    let ingress = ingress(&world, &hedged(one.address, two.address));
    let door = ingress.address("ingress");
    for (method, body) in [("POST", ""), ("PUT", ""), ("DELETE", ""), ("GET", "body")] {
        let asked = wardgate::rt::spawn(async move { send(door, method, "/", &[], body).await });
        heard(&hears).await;
        // Longer than the delay: a further attempt would be there.
        tokio::time::sleep(Duration::from_millis(200)).await;
        let_go.send(()).unwrap();
        assert_eq!(asked.await.unwrap().status, 200, "{method}");
    }
    assert_eq!(two.connections(), 0);
}

#[tokio::test]
async fn a_budget_bounds_further_attempts() {
    let world = World::new();
    let up = App::echo("up");
    let down = free_port();
    for (name, budget, status) in [
        ("some", json!({ "percent": 0, "min_concurrency": 1 }), 200),
        ("none", json!({ "percent": 0, "min_concurrency": 0 }), 502),
        ("all", json!({ "percent": 100, "min_concurrency": 0 }), 200),
    ] {
        let upstream = json!({
            "nodes": [
                { "host": "127.0.0.1", "port": down, "weight": 1, "priority": 1 },
                { "host": "127.0.0.1", "port": up.address.port(), "weight": 1 },
            ],
            "resilience": { "retry_budget": budget },
        });
        let part = world.ingress().named(name).set("status", &json!("127.0.0.1:0"));
        let ingress = part.resources(&route(&upstream)).start();
        for _ in 0..3 {
            assert_eq!(get(ingress.address("ingress"), "/").await.status, status, "{name}");
        }
        let outcome = if status == 200 { "begun" } else { "over_budget" };
        let line = format!(
            r#"wardgate_upstream_retries_total{{upstream="routes/all",outcome="{outcome}"}} 3"#
        );
        shows(&ingress, &line).await;
    }
}

#[tokio::test]
async fn beyond_a_limit_the_answer_is_503_and_says_why_in_the_log() {
    let world = World::new();
    let (app, let_go, hears) = slow(GOOD);
    let upstream = json!({
        "nodes": { app.address.to_string(): 1 },
        "resilience": { "limits": { "max_requests": 1 } },
    });
    let ingress = ingress(&world, &upstream);
    let door = ingress.address("ingress");
    for round in 1..=2 {
        let first = wardgate::rt::spawn(async move { get(door, "/").await });
        heard(&hears).await;
        let refused = get(door, "/").await;
        assert_eq!(refused.status, 503);
        assert_eq!(
            refused.json(),
            json!({ "error_msg": "the upstream has as much under way as it may" })
        );
        let_go.send(()).unwrap();
        assert_eq!(first.await.unwrap().status, 200);
        let line = format!(
            r#"wardgate_upstream_overflows_total{{upstream="routes/all",limit="max_requests"}} {round}"#
        );
        shows(&ingress, &line).await;
        // Only then has the answer gone out wholly.
        let none = r#"wardgate_upstream_under_way{upstream="routes/all",of="requests"} 0"#;
        shows(&ingress, none).await;
    }
    ingress.logs("resilience.limits.max_requests of 1 is reached");
}

#[tokio::test]
async fn requests_wait_for_a_connection_when_all_are_in_use() {
    let world = World::new();
    let (app, let_go, hears) = slow(GOOD);
    let upstream = json!({
        "nodes": { app.address.to_string(): 1 },
        "resilience": { "limits": { "max_connections": 1, "max_pending_requests": 1 } },
    });
    let ingress = ingress(&world, &upstream);
    let door = ingress.address("ingress");
    let first = wardgate::rt::spawn(async move { get(door, "/1").await });
    heard(&hears).await;
    let second = wardgate::rt::spawn(async move { get(door, "/2").await });
    let waits = r#"wardgate_upstream_under_way{upstream="routes/all",of="pending_requests"} 1"#;
    shows(&ingress, waits).await;
    assert_eq!(get(door, "/3").await.status, 503, "one may wait");
    let_go.send(()).unwrap();
    assert_eq!(first.await.unwrap().status, 200);
    let head = heard(&hears).await;
    assert!(head.starts_with("GET /2 "), "{head}");
    let_go.send(()).unwrap();
    assert_eq!(second.await.unwrap().status, 200);
    assert_eq!(app.connections(), 1, "it came back and was used again");
    let text = metrics(&ingress).await;
    for line in [
        r#"wardgate_upstream_overflows_total{upstream="routes/all",limit="max_pending_requests"} 1"#,
        r#"wardgate_upstream_under_way{upstream="routes/all",of="connections"} 1"#,
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }

    // A connection that is closed makes room as well; a switched one stays in use to its end.
    let mut wire = Wire::to(door).await;
    wire.send("GET /4 HTTP/1.1\r\nHost: a\r\n\r\n").await;
    heard(&hears).await;
    let fifth = wardgate::rt::spawn(async move { get(door, "/5").await });
    shows(&ingress, waits).await;
    drop(wire);
    let head = heard(&hears).await;
    assert!(head.starts_with("GET /5 "), "{head}");
    let_go.send(()).unwrap();
    let_go.send(()).unwrap();
    assert_eq!(fifth.await.unwrap().status, 200);
}

#[tokio::test]
async fn what_checks_cannot_mean_is_refused_before_it_is_stored() {
    let world = World::new();
    let control = world.control().start();
    let admin = control.admin();
    let node = json!({ "127.0.0.1:1": 1 });
    for (more, sentence) in [
        (json!({ "checks": { "passive": {} } }), "property \"active\" is required"),
        (json!({ "checks": { "active": { "timeout": 0 } } }), "checks.active.timeout"),
        (json!({ "checks": { "active": { "req_headers": ["nonsense"] } } }), "req_headers"),
        (json!({ "checks": { "active": { "healthy": { "successes": 0 } } } }), "successes"),
        (json!({ "resilience": { "hedging": { "delay": 0 } } }), "resilience.hedging.delay"),
        (json!({ "resilience": { "hedge": {} } }), "hedge"),
        (json!({ "resilience": { "limits": { "max_requests": 0 } } }), "max_requests"),
    ] {
        let upstream = crate::mesh::merged(json!({ "nodes": node }), &more);
        let answer = admin.ask("PUT", "/upstreams/1", Some(&upstream)).await;
        assert_eq!(answer.status, 400, "{more}: {}", answer.text());
        assert!(
            answer.text().contains(sentence.trim_matches('"'))
                || answer.json()["error_msg"].as_str().unwrap().contains(sentence),
            "{more}: {}",
            answer.text()
        );
    }
    let whole = json!({
        "nodes": node,
        "checks": { "active": { "type": "https", "https_verify_certificate": false }, "passive": {} },
        "resilience": {
            "panic_threshold": 50, "slow_start": 30, "outlier_detection": {},
            "retry_budget": {}, "hedging": { "delay": 0.5 }, "limits": { "max_requests": 100 },
        },
    });
    admin.put("/upstreams/1", &whole).await;
}
