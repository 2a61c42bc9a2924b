//! Where a request goes: weights, further nodes after a failure, time limits, names, kept connections, expected identities.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::mesh::{Door, Mesh, RawApp, RawStream, Wire};
use crate::world::{App, PATIENCE, Process, World, allow, eventually, free_port, get, send};

/// An ingress with one route for everything to this upstream.
fn ingress(world: &World, upstream: &Value) -> Process {
    world.ingress().resources(&route(upstream)).start()
}

fn route(upstream: &Value) -> Value {
    json!({ "routes": [{ "id": "all", "uri": "/*", "upstream": upstream }] })
}

/// An app that answers with its name, on whatever connection.
fn named(name: &'static str) -> RawApp {
    RawApp::answering(
        format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{name}", name.len()),
        false,
    )
}

#[tokio::test]
async fn nodes_share_requests_by_their_weights() {
    let world = World::new();
    let (one, two, none) = (named("one"), named("two"), named("none"));
    let ingress = ingress(
        &world,
        &json!({ "nodes": {
            one.address.to_string(): 3, two.address.to_string(): 1, none.address.to_string(): 0,
        } }),
    );
    let mut seen = BTreeMap::<String, usize>::new();
    for _ in 0..40 {
        *seen.entry(get(ingress.address("ingress"), "/").await.text()).or_default() += 1;
    }
    assert_eq!(seen, BTreeMap::from([("one".to_owned(), 30), ("two".to_owned(), 10)]));
}

#[tokio::test]
async fn a_node_that_is_down_costs_no_request_whatever_its_method() {
    let world = World::new();
    let up = App::echo("up");
    let down = format!("127.0.0.1:{}", free_port());
    let ingress = ingress(&world, &json!({ "nodes": { &down: 1, up.address.to_string(): 1 } }));
    for method in ["GET", "POST", "PUT", "DELETE", "PATCH"] {
        for _ in 0..2 {
            let body = if method == "GET" { "" } else { "body" };
            let answer = send(ingress.address("ingress"), method, "/", &[], body).await;
            assert_eq!((answer.status, &answer.json()["body"]), (200, &json!(body)), "{method}");
        }
    }
}

/// Takes requests and closes without an answer; counts them by method.
fn rude(seen: &Arc<Mutex<Vec<String>>>) -> RawApp {
    let seen = seen.clone();
    RawApp::serving(move |stream| {
        if let Some(head) = stream.request() {
            seen.lock().unwrap().push(head.split(' ').next().unwrap().to_owned());
        }
    })
}

#[tokio::test]
async fn a_node_that_took_a_request_and_broke_is_followed_by_another_only_when_the_request_may_be_repeated()
 {
    let world = World::new();
    let seen = Arc::<Mutex<Vec<String>>>::default();
    let (rude, polite) = (rude(&seen), App::echo("polite"));
    let large = "x".repeat(100_000);
    let nodes = json!([
        { "host": "127.0.0.1", "port": rude.address.port(), "weight": 1, "priority": 1 },
        { "host": "127.0.0.1", "port": polite.address.port(), "weight": 1 },
    ]);
    let ingress = ingress(&world, &json!({ "nodes": nodes }));
    for (method, body, status) in [
        ("GET", "", 200),
        ("HEAD", "", 200),
        ("DELETE", "", 200),
        ("PUT", "", 200),
        ("POST", "", 502),
        ("POST", "body", 502),
        ("PATCH", "", 502),
        ("PUT", "body", 200),
        // Its body has been sent away already, and is more than is kept.
        ("PUT", &large, 502),
    ] {
        let answer = send(ingress.address("ingress"), method, "/", &[], body.to_owned()).await;
        let name = format!("{method} of {} bytes", body.len());
        assert_eq!(answer.status, status, "{name}: {}", answer.text());
        assert_eq!(seen.lock().unwrap().drain(..).collect::<Vec<_>>(), [method], "{name}");
        if (method, status) == ("PUT", 200) {
            assert_eq!(answer.json()["body"], body, "{name}");
        }
    }
    assert_eq!(polite.requests(), 5);
}

#[tokio::test]
async fn so_many_further_nodes_are_tried_as_the_upstream_says() {
    let world = World::new();
    let seen = Arc::<Mutex<Vec<String>>>::default();
    let apps: Vec<RawApp> = (0..4).map(|_| rude(&seen)).collect();
    let nodes: serde_json::Map<String, Value> =
        apps.iter().map(|app| (app.address.to_string(), json!(1))).collect();
    for (name, retries, tries) in [("none", Some(0), 1), ("two", Some(2), 3), ("default", None, 4)]
    {
        let mut upstream = json!({ "nodes": nodes });
        if let Some(retries) = retries {
            upstream["retries"] = json!(retries);
        }
        let ingress = world.ingress().named(name).resources(&route(&upstream)).start();
        assert_eq!(get(ingress.address("ingress"), "/").await.status, 502);
        assert_eq!(seen.lock().unwrap().drain(..).count(), tries, "{name}");
    }
}

#[tokio::test]
async fn when_no_node_answers_the_caller_is_told_so() {
    let world = World::new();
    let down = format!("127.0.0.1:{}", free_port());
    for (name, upstream, status) in [
        ("down", json!({ "nodes": { &down: 1 } }), 502),
        ("weightless", json!({ "nodes": { &down: 0 } }), 503),
        ("empty", json!({ "nodes": {} }), 503),
        ("nameless", json!({ "nodes": { "no-such-host.invalid:80": 1 } }), 502),
        ("unlike", json!({ "scheme": "grpc", "nodes": { &down: 1 } }), 502),
    ] {
        let ingress = world.ingress().named(name).resources(&route(&upstream)).start();
        let mut wire = Wire::to(ingress.address("ingress")).await;
        for _ in 0..2 {
            let answer = wire.ask("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
            assert_eq!(answer.status, status, "{name}: {}", answer.text());
            assert!(
                !answer.text().contains("127.0.0.1"),
                "{name}: no internals: {}",
                answer.text()
            );
        }
    }
}

#[tokio::test]
async fn an_upstream_that_is_late_is_given_up_in_time() {
    let world = World::new();
    let silent = RawApp::serving(|stream| {
        if let Some(head) = stream.head() {
            match head.split(' ').nth(1).unwrap() {
                "/head" => {}
                "/body" => stream.send("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel"),
                _ => stream.send("HTTP/1.1 200"),
            }
            stream.rest();
        }
    });
    let timeout = json!({ "connect": 0.4, "send": 0.4, "read": 0.4 });
    let node = silent.address.to_string();
    let ingress = ingress(&world, &json!({ "nodes": { &node: 1 }, "timeout": timeout }));
    for path in ["/head", "/half"] {
        let started = Instant::now();
        let answer = get(ingress.address("ingress"), path).await;
        assert_eq!(answer.status, 504, "{path}");
        let took = started.elapsed();
        assert!((Duration::from_millis(350)..Duration::from_secs(5)).contains(&took), "{took:?}");
    }
    let mut wire = Wire::to(ingress.address("ingress")).await;
    wire.send("GET /body HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let answer = wire.response_to("GET").await.unwrap();
    assert!(!answer.whole, "a body that stops in the middle is broken off: {answer:?}");

    // A caller that does not send what it promised is late itself.
    let mut wire = Wire::to(ingress.address("ingress")).await;
    let answer = wire.ask("POST /head HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhel").await;
    assert_eq!(answer.status, 408);
    wire.end().await;
}

#[tokio::test]
async fn a_place_that_takes_no_connection_is_given_up_in_time() {
    let world = World::new();
    // A queue of one that is full: the system answers no further handshake.
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&"127.0.0.1:0".parse::<std::net::SocketAddr>().unwrap().into()).unwrap();
    socket.listen(0).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    let _fill: Vec<_> = (0..4)
        .map(|_| {
            let filler =
                socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
            filler.set_nonblocking(true).unwrap();
            let _ = filler.connect(&address.into());
            filler
        })
        .collect();
    let timeout = json!({ "connect": 0.4, "send": 5, "read": 5 });
    for scheme in ["http", "grpc"] {
        let upstream =
            json!({ "scheme": scheme, "nodes": { address.to_string(): 1 }, "timeout": timeout });
        let ingress = world.ingress().named(scheme).resources(&route(&upstream)).start();
        let started = Instant::now();
        let door = ingress.address("ingress");
        // Several at once: none waits for the others' attempts one after the other.
        let all = futures_util::future::join_all((0..8).map(|_| get(door, "/"))).await;
        assert!(all.iter().all(|answer| answer.status == 504), "{scheme}: {all:?}");
        assert!(started.elapsed() < Duration::from_secs(3), "{scheme}: {:?}", started.elapsed());
    }
}

#[tokio::test]
async fn the_host_that_the_app_reads_is_the_one_that_the_upstream_says() {
    let world = World::new();
    let app = App::echo("app");
    let node = app.address.to_string();
    for (name, more, host) in [
        ("pass", json!({}), "Client.example:99"),
        ("node", json!({ "pass_host": "node" }), node.as_str()),
        (
            "rewrite",
            json!({ "pass_host": "rewrite", "upstream_host": "app.internal" }),
            "app.internal",
        ),
    ] {
        let upstream = crate::mesh::merged(json!({ "nodes": { &node: 1 } }), &more);
        let ingress = world.ingress().named(name).resources(&route(&upstream)).start();
        let answer =
            send(ingress.address("ingress"), "GET", "/", &[("host", "Client.example:99")], "")
                .await;
        assert_eq!(answer.json()["headers"]["host"], host, "{name}");
        assert_eq!(answer.json()["headers"]["x-forwarded-host"], "Client.example:99", "{name}");
    }
}

#[tokio::test]
async fn a_node_may_be_a_name() {
    let world = World::new();
    let app = App::echo("app");
    let node = format!("localhost:{}", app.address.port());
    let ingress = ingress(&world, &json!({ "pass_host": "node", "nodes": { &node: 1 } }));
    let answer = get(ingress.address("ingress"), "/").await;
    assert_eq!((answer.status, &answer.json()["headers"]["host"]), (200, &json!(node)));
}

#[tokio::test]
async fn connections_are_kept_as_the_pool_says() {
    let world = World::new();
    for (name, pool, requests, connections) in [
        ("default", json!(null), 20, 1),
        ("three", json!({ "requests": 3 }), 9, 3),
        ("none", json!({ "idle_timeout": 0 }), 4, 4),
    ] {
        let app = named("app");
        let mut upstream = json!({ "nodes": { app.address.to_string(): 1 } });
        if !pool.is_null() {
            upstream["keepalive_pool"] = pool;
        }
        let ingress = world.ingress().named(name).resources(&route(&upstream)).start();
        for _ in 0..requests {
            assert_eq!(get(ingress.address("ingress"), "/").await.status, 200);
        }
        assert_eq!(app.connections(), connections, "{name}");
    }
}

#[tokio::test]
async fn a_kept_connection_that_the_upstream_closed_meanwhile_costs_no_request() {
    let world = World::new();
    let (closed, closes) = mpsc::channel();
    let app = RawApp::serving(move |stream: &mut RawStream| {
        // One answer that promises to stay, and then the end.
        if stream.request().is_some() {
            stream.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
        }
        stream.tcp.shutdown(std::net::Shutdown::Both).unwrap();
        closed.send(()).unwrap();
    });
    let ingress = ingress(&world, &json!({ "nodes": { app.address.to_string(): 1 } }));
    for method in ["GET", "POST", "PUT", "GET", "POST"] {
        let answer = send(ingress.address("ingress"), method, "/", &[], "").await;
        assert_eq!((answer.status, answer.text().as_str()), (200, "ok"), "{method}");
        closes.recv_timeout(PATIENCE).unwrap();
    }

    // It closes only when the next request is on its way: what may be repeated is.
    let app = RawApp::serving(|stream: &mut RawStream| {
        if stream.request().is_some() {
            stream.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
            let _ = stream.head();
        }
    });
    let upstream = json!({ "nodes": { app.address.to_string(): 1 } });
    let ingress = world.ingress().named("late").resources(&route(&upstream)).start();
    for _ in 0..6 {
        let answer = get(ingress.address("ingress"), "/").await;
        assert_eq!((answer.status, answer.text().as_str()), (200, "ok"));
    }
}

#[tokio::test]
async fn a_peer_with_another_identity_than_expected_gets_no_request() {
    let world = World::new();
    let app = App::echo("impostor");
    let everybody = [world.id("/shop")];
    let everybody: Vec<&str> = everybody.iter().map(String::as_str).collect();
    let impostor = world
        .sidecar("/impostor")
        .app(&app)
        .resources(
            &json!({ "identity_policies": [allow("p", &[&world.id("/impostor")], &everybody)] }),
        )
        .start();
    let node = impostor.address("inbound").to_string();
    for (name, ids, status) in [
        ("right", json!([world.id("/impostor")]), 200),
        ("pattern", json!([world.id("/*")]), 200),
        ("other", json!([world.id("/billing")]), 502),
        ("beside", json!([world.id("/impostor/deeper"), world.id("/imposto")]), 502),
        ("elsewhere", json!(["spiffe://elsewhere.test/impostor"]), 502),
    ] {
        for scheme in ["http", "grpc"] {
            let name = format!("{name}-{scheme}");
            let shop = world
                .sidecar("/shop")
                .named(&name)
                .resources(&json!({ "routes": [{
                    "id": "r", "uri": "/*", "workload_selector": { "listener": "outbound" },
                    "upstream": {
                        "scheme": scheme, "nodes": { &node: 1 },
                        "tls": { "identity": "svid", "spiffe_ids": ids },
                    },
                }] }))
                .start();
            let before = app.requests();
            let answer = get(shop.address("outbound"), "/").await;
            assert_eq!(answer.status, status, "{name}: {}", answer.text());
            assert_eq!(app.requests() - before, usize::from(status == 200), "{name}");
        }
    }
}

#[tokio::test]
async fn a_route_that_changes_its_upstream_sends_the_next_request_there() {
    let world = World::new();
    let (old, new) = (named("old"), named("new"));
    let to = |app: &RawApp| route(&json!({ "nodes": { app.address.to_string(): 1 } }));
    let ingress = world.ingress().resources(&to(&old)).start();
    let mut wire = Wire::to(ingress.address("ingress")).await;
    let request = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    assert_eq!(wire.ask(request).await.text(), "old");
    ingress.write_resources(&to(&new));
    eventually("the new upstream is in force", || {
        ingress.errors().contains("revision=2").then_some(())
    });
    assert_eq!(wire.ask(request).await.text(), "new", "on the same connection");
}

#[tokio::test]
async fn sidecars_keep_their_connections_to_each_other() {
    let app = named("app");
    let mesh = Mesh::before(&app.url());
    for _ in 0..20 {
        let mut wire = mesh.wire(Door::Outbound).await;
        let answer = wire.ask("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert_eq!(answer.text(), "app");
    }
    assert_eq!(app.connections(), 1);
    let mut connections: Vec<String> = eventually("20 decisions in the log", || {
        let records = mesh.billing.audit();
        let decisions = records.iter().filter(|record| record["type"] == "decision");
        let of = decisions.map(|record| record["conn_id"].to_string()).collect::<Vec<_>>();
        (of.len() >= 20).then_some(of)
    });
    connections.dedup();
    assert_eq!(connections.len(), 1, "{connections:?}");
}
