//! A process that is asked to end finishes what it has begun, loses no request, and is gone in its time.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::json;

use crate::http2::{Client, request};
use crate::mesh::{DOORS, Door, End, Mesh, RawApp, Wire};
use crate::world::{App, PATIENCE, Process, World, allow, eventually_async, soon};

/// What the clients of a test have seen.
#[derive(Default)]
struct Seen {
    answered: AtomicUsize,
    lost: Mutex<Vec<String>>,
    enough: AtomicBool,
}

impl Seen {
    fn answered(&self) -> usize {
        self.answered.load(Ordering::SeqCst)
    }

    fn note(&self, number: usize, outcome: Result<u16, String>) {
        match outcome {
            Ok(200) => drop(self.answered.fetch_add(1, Ordering::SeqCst)),
            other => self.lost.lock().unwrap().push(format!("request {number}: {other:?}")),
        }
    }

    /// Waits until so many more requests were answered.
    async fn more(&self, count: usize) {
        let until = self.answered() + count;
        eventually_async("more answers", || async { (self.answered() >= until).then_some(()) })
            .await;
    }

    fn nothing_lost(&self) {
        let lost = self.lost.lock().unwrap();
        assert!(lost.is_empty(), "of {} requests: {lost:#?}", self.answered() + lost.len());
    }
}

fn asked(number: usize) -> String {
    match number % 3 {
        0 => "GET /x HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(),
        1 => "POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbody".to_owned(),
        _ => "POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n".to_owned(),
    }
}

/// One request after the other on a connection, until the answer says that it is the last one.
async fn keep_asking(wire: &mut Wire, seen: &Seen) {
    for number in 0.. {
        wire.send(asked(number)).await;
        let answer = wire.response_to("GET").await;
        let last = answer.as_ref().is_none_or(|answer| answer.field("connection") == Some("close"));
        let outcome = match answer {
            Some(answer) if answer.whole => Ok(answer.status),
            other => Err(format!("{other:?}")),
        };
        seen.note(number, outcome);
        if last || seen.enough.load(Ordering::SeqCst) {
            return;
        }
    }
}

/// Asks a process to end while `asking` goes on; how long the end took.
async fn ended(process: &mut Process) -> Duration {
    let started = Instant::now();
    process.ask_to_end();
    eventually_async("the process ends", || async { has_ended(process).then_some(()) }).await;
    let took = started.elapsed();
    assert!(process.wait().success(), "{}", process.said());
    took
}

/// Has it ended, as the system sees it?
fn has_ended(process: &Process) -> bool {
    let state = std::fs::read_to_string(format!("/proc/{}/stat", process.pid()));
    state.is_ok_and(|state| state.contains(") Z "))
}

#[tokio::test]
async fn clients_on_open_connections_lose_no_request_when_their_sidecar_ends() {
    let app = App::echo("app");
    let mut mesh = Mesh::before(&format!("http://{}", app.address));
    for door in [Door::Ingress, Door::Outbound, Door::Inbound] {
        let seen = Arc::new(Seen::default());
        let mut wires = Vec::new();
        for _ in 0..16 {
            wires.push(mesh.wire(door).await);
        }
        let clients = wires.into_iter().map(|mut wire| {
            let seen = seen.clone();
            async move {
                keep_asking(&mut wire, &seen).await;
                assert_eq!(wire.end().await, End::Clean);
            }
        });
        let clients = futures_util::future::join_all(clients);
        let process = match door {
            Door::Ingress => &mut mesh.ingress,
            Door::Outbound => &mut mesh.shop,
            Door::Inbound => &mut mesh.billing,
        };
        let end = async {
            seen.more(100).await;
            ended(process).await
        };
        let (took, _) = tokio::join!(end, soon("all clients are told to go", clients));
        seen.nothing_lost();
        assert!(took < Duration::from_secs(4), "{door:?}: {took:?}");
        assert!(process.lines().contains(&"stopped".to_owned()), "{door:?}: {}", process.said());
    }
}

/// Two sidecars of the same workload, and one that calls them.
struct Pair {
    shop: Process,
    billing: [Process; 2],
    _app: App,
    _world: World,
}

impl Pair {
    fn new(scheme: &str) -> Self {
        let world = World::new();
        let app = App::echo("app");
        let policy = allow("p", &[&world.id("/billing")], &[&world.id("/shop")]);
        let billing = ["billing-a", "billing-b"].map(|name| {
            world
                .sidecar("/billing")
                .named(name)
                .app(&app)
                .resources(&json!({ "identity_policies": [policy] }))
                .start()
        });
        let nodes: serde_json::Map<String, serde_json::Value> = billing
            .iter()
            .map(|process| (process.address("inbound").to_string(), json!(1)))
            .collect();
        let shop = world
            .sidecar("/shop")
            .resources(&json!({ "routes": [{
                "id": "r", "uri": "/*", "workload_selector": { "listener": "outbound" },
                "upstream": {
                    "scheme": scheme, "nodes": nodes,
                    "tls": { "identity": "svid", "spiffe_ids": [world.id("/billing")] },
                },
            }] }))
            .start();
        Self { shop, billing, _app: app, _world: world }
    }
}

#[tokio::test]
async fn callers_notice_nothing_when_one_of_two_sidecars_of_a_workload_ends() {
    for scheme in ["http", "grpc"] {
        let mut pair = Pair::new(scheme);
        let seen = Arc::new(Seen::default());
        let door = pair.shop.address("outbound");
        let clients = (0..16).map(|_| {
            let seen = seen.clone();
            async move { keep_asking(&mut Wire::to(door).await, &seen).await }
        });
        let clients = futures_util::future::join_all(clients);
        let end = async {
            seen.more(100).await;
            ended(&mut pair.billing[0]).await;
            seen.more(100).await;
            seen.enough.store(true, Ordering::SeqCst);
        };
        tokio::join!(end, soon("all clients have enough", clients));
        seen.nothing_lost();
    }
}

#[tokio::test]
async fn streams_of_http_2_are_answered_when_their_sidecar_ends_and_callers_notice_nothing_with_two()
 {
    // Through a caller's sidecar, behind which one of two goes.
    let mut pair = Pair::new("http");
    let seen = Arc::new(Seen::default());
    let tcp = tokio::net::TcpStream::connect(pair.shop.address("outbound")).await.unwrap();
    let client = Client::over(tcp).await;
    let clients = (0..16).map(|_| {
        let (seen, client) = (seen.clone(), client.clone());
        async move {
            for number in 0.. {
                let body = if number % 2 == 0 { &b""[..] } else { b"body" };
                let method = if number % 2 == 0 { "GET" } else { "POST" };
                let answer = client.try_send(request(method, "/x", &[]), body, None).await;
                let outcome = answer.map(|answer| answer.status).map_err(|error| error.to_string());
                seen.note(number, outcome);
                if seen.enough.load(Ordering::SeqCst) {
                    return;
                }
            }
        }
    });
    let clients = futures_util::future::join_all(clients);
    let end = async {
        seen.more(100).await;
        ended(&mut pair.billing[0]).await;
        seen.more(100).await;
        seen.enough.store(true, Ordering::SeqCst);
    };
    tokio::join!(end, soon("all clients have enough", clients));
    seen.nothing_lost();

    // At the sidecar that goes itself: streams that were begun are answered, and then the connection ends.
    let seen = Arc::new(Seen::default());
    let clients = (0..16).map(|_| {
        let (seen, client) = (seen.clone(), client.clone());
        async move {
            for number in 0.. {
                let Ok((response, _)) = client.open(request("GET", "/x", &[]), true).await else {
                    return;
                };
                match soon("an answer or a goodbye", response).await {
                    Ok(answer) => seen.note(number, Ok(answer.status().as_u16())),
                    // Begun after the goodbye: it says that it was not looked at.
                    Err(error) if error.is_go_away() => return,
                    Err(error) => return seen.note(number, Err(error.to_string())),
                }
            }
        }
    });
    let clients = futures_util::future::join_all(clients);
    let end = async {
        seen.more(100).await;
        ended(&mut pair.shop).await
    };
    let (took, _) = tokio::join!(end, soon("all clients are told to go", clients));
    seen.nothing_lost();
    assert!(took < Duration::from_secs(4), "{took:?}");
}

/// An app that begins its answer, and goes on when it is told to.
fn slow() -> (RawApp, mpsc::Sender<()>, mpsc::Receiver<()>) {
    let (go, wait) = mpsc::channel::<()>();
    let (told, begun) = mpsc::channel();
    let wait = Arc::new(Mutex::new(wait));
    let app = RawApp::serving(move |stream| {
        while let Some(head) = stream.head() {
            stream.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n");
            told.send(()).unwrap();
            wait.lock().unwrap().recv_timeout(PATIENCE).unwrap();
            if head.starts_with("POST") {
                stream.body(10).expect("the whole body");
            }
            stream.send("3\r\nbye\r\n0\r\n\r\n");
        }
    });
    (app, go, begun)
}

#[tokio::test]
async fn what_was_begun_is_finished_before_the_end() {
    let (app, go, begun) = slow();
    let mut mesh = Mesh::before(&app.url());
    for door in [Door::Ingress, Door::Outbound, Door::Inbound] {
        let mut streaming = mesh.wire(door).await;
        streaming.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        let mut uploading = mesh.wire(door).await;
        uploading.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhello").await;
        // Half a head: the rest is on its way.
        let mut asking = mesh.wire(door).await;
        asking.send("GET / HTTP/1.1\r\nHo").await;
        let mut idle = mesh.wire(door).await;
        let client = Client::to(&mesh, door).await;
        let (response, _) = client.open(request("GET", "/", &[]), true).await.unwrap();
        let mut stream = soon("a response", response).await.unwrap().into_body();
        for wire in [&mut streaming, &mut uploading] {
            assert_eq!(wire.head().await.unwrap().status, 200);
        }
        for _ in 0..3 {
            begun.recv_timeout(PATIENCE).unwrap();
        }

        let process = match door {
            Door::Ingress => &mut mesh.ingress,
            Door::Outbound => &mut mesh.shop,
            Door::Inbound => &mut mesh.billing,
        };
        process.ask_to_end();
        process.logs("draining");
        assert_eq!(idle.end().await, End::Clean, "{door:?}: nothing to wait for");
        assert!(!has_ended(process), "{door:?}: it waits for the others");
        asking.send("st: a\r\n\r\n").await;
        assert_eq!(asking.head().await.unwrap().field("connection"), Some("close"), "{door:?}");
        begun.recv_timeout(PATIENCE).unwrap();
        uploading.send("world").await;
        for _ in 0..4 {
            go.send(()).unwrap();
        }
        for wire in [&mut streaming, &mut uploading, &mut asking] {
            assert_eq!(wire.bytes(23).await, b"5\r\nhello\r\n3\r\nbye\r\n0\r\n\r\n", "{door:?}");
            assert_eq!(wire.end().await, End::Clean, "{door:?}");
        }
        let mut body = Vec::new();
        while let Some(piece) = soon("more", stream.data()).await {
            let piece: Bytes = piece.unwrap();
            stream.flow_control().release_capacity(piece.len()).unwrap();
            body.extend(piece);
        }
        assert_eq!(body, b"hellobye", "{door:?}");
        assert!(process.wait().success());
        assert!(process.lines().contains(&"stopped".to_owned()), "{door:?}: {}", process.said());
    }
    assert_eq!(DOORS.len(), 3);
}

#[tokio::test]
async fn what_does_not_finish_is_cut_off_when_the_time_is_over() {
    let (app, _go, begun) = slow();
    let world = World::new();
    let mut ingress = world
        .ingress()
        .set("drain_seconds", &json!(1))
        .resources(&json!({ "routes": [{
            "id": "r", "uri": "/*", "upstream": { "nodes": { app.address.to_string(): 1 } },
        }] }))
        .start();
    let mut wire = Wire::to(ingress.address("ingress")).await;
    wire.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!(wire.head().await.unwrap().status, 200);
    begun.recv_timeout(PATIENCE).unwrap();
    let mut silent = Wire::to(ingress.address("ingress")).await;
    silent.send("GET / HTTP/1.1\r\nHo").await;
    let took = ended(&mut ingress).await;
    assert!((Duration::from_millis(900)..Duration::from_secs(4)).contains(&took), "{took:?}");
    assert_eq!(wire.bytes(10).await, b"5\r\nhello\r\n");
    wire.end().await;
    silent.end().await;
    assert!(ingress.lines().iter().any(|line| line.contains("cut off")), "{}", ingress.said());
}

#[tokio::test]
async fn new_connections_are_refused_once_the_end_was_asked_for() {
    let (app, go, begun) = slow();
    let mut mesh = Mesh::before(&app.url());
    let door = mesh.address(Door::Outbound);
    let mut wire = mesh.wire(Door::Outbound).await;
    wire.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    begun.recv_timeout(PATIENCE).unwrap();
    mesh.shop.ask_to_end();
    eventually_async("nobody comes in", || async {
        tokio::net::TcpStream::connect(door).await.is_err().then_some(())
    })
    .await;
    go.send(()).unwrap();
    assert!(wire.response_to("GET").await.unwrap().whole);
    assert!(mesh.shop.wait().success());
}

#[tokio::test]
async fn a_tunnel_in_which_nothing_moves_does_not_hold_up_the_end() {
    let app = RawApp::serving(|stream| {
        if stream.head().is_some() {
            stream.send("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n");
            stream.rest();
        }
    });
    let mut mesh = Mesh::before(&app.url());
    let mut wire = mesh.wire(Door::Outbound).await;
    wire.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
        .await;
    assert_eq!(wire.head().await.unwrap().status, 101);
    let took = ended(&mut mesh.shop).await;
    assert!(took < Duration::from_secs(4), "{took:?}");
    wire.end().await;
}
