//! Leaving HTTP behind: WebSocket over both versions, and CONNECT where a route opens it. What decided about the request goes
//! on deciding about the tunnel.

use h2::ext::Protocol;
use serde_json::{Value, json};
use wardgate::mtls::Alpn;

use crate::http2::Client;
use crate::mesh::{DOORS, Door, Mesh, RawApp, Wire, field};
use crate::versions::{Body, End, Ending, Stage, VERSIONS, Version, value};
use crate::world::{PATIENCE, Process, World, allow, eventually};

const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPTED: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// The handshake in a caller's version.
async fn handshake(stage: &mut Stage, (door, version): (Door, Version)) -> End {
    match version {
        Version::One => {
            let fields = [
                ("Connection", "Upgrade"),
                ("Upgrade", "websocket"),
                ("Sec-WebSocket-Version", "13"),
                ("Sec-WebSocket-Key", KEY),
            ];
            stage.ask((door, version), ("GET", "/chat?x"), &fields, Body::None).await
        }
        Version::Two => stage.open(door, extended("websocket"), false).await,
    }
}

fn extended(protocol: &str) -> http::Request<()> {
    let mut request =
        crate::http2::request("CONNECT", "/chat?x", &[("sec-websocket-version", "13")]);
    request.extensions_mut().insert(Protocol::from(protocol));
    request
}

/// Checks the handshake at the app, whatever its version, and accepts it.
async fn accept(stage: &mut Stage, app_version: Version) -> End {
    let (mut app, head) = stage.arrival().await;
    assert_eq!((head.uri.path(), head.uri.query()), ("/chat", Some("x")));
    assert_eq!(head.headers["sec-websocket-version"], "13");
    match app_version {
        Version::One => {
            assert_eq!(head.method, "GET");
            assert_eq!(head.headers["upgrade"], "websocket");
            let key = head.headers["sec-websocket-key"].to_str().unwrap();
            let accept = accept_of(key);
            let fields = [
                ("Upgrade", "websocket"),
                ("Connection", "Upgrade"),
                ("Sec-WebSocket-Accept", &accept),
                ("Sec-WebSocket-Protocol", "chat"),
            ];
            app.respond(101, &fields, Body::Tunnel).await;
        }
        Version::Two => {
            assert_eq!(head.method, "CONNECT");
            assert_eq!(head.extensions.get::<Protocol>().map(Protocol::as_str), Some("websocket"));
            assert_eq!(head.headers.get("sec-websocket-key"), None, "HTTP/2 has no keys");
            app.respond(200, &[("sec-websocket-protocol", "chat")], Body::Tunnel).await;
        }
    }
    app.switch();
    app
}

fn accept_of(key: &str) -> String {
    use base64::Engine as _;
    use wardgate::rt::crypto::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
    let text = format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    let digest = digest(&SHA1_FOR_LEGACY_USE_ONLY, text.as_bytes());
    base64::engine::general_purpose::STANDARD.encode(digest)
}

/// The caller reads the acceptance in its version.
async fn accepted(caller: &mut End, version: Version) {
    let (status, fields) = caller.answer().await;
    match version {
        Version::One => {
            assert_eq!(status, 101);
            assert_eq!(value(&fields, "upgrade"), Some("websocket"));
            assert_eq!(value(&fields, "connection"), Some("upgrade"));
            assert_eq!(value(&fields, "sec-websocket-accept"), Some(ACCEPTED));
        }
        Version::Two => {
            assert_eq!(status, 200);
            assert_eq!(value(&fields, "sec-websocket-accept"), None, "HTTP/2 has no keys");
        }
    }
    assert_eq!(value(&fields, "sec-websocket-protocol"), Some("chat"));
    assert_eq!(
        (value(&fields, "content-length"), value(&fields, "transfer-encoding")),
        (None, None)
    );
    caller.switch();
}

#[tokio::test]
async fn a_websocket_goes_through_every_pair_of_versions_both_ways_and_ends_one_way_at_a_time() {
    for app_version in VERSIONS {
        // An HTTP/1.1 caller reaches an app of HTTP/2 only where HTTP/2 is spoken all the way.
        let scheme = if app_version == Version::One { "http" } else { "grpc" };
        let route = json!({ "enable_websocket": true });
        let make = |url: &str| Mesh::with(url, &route, &json!({ "scheme": scheme }));
        let mut stage = Stage::with(app_version, make).await;
        for door in DOORS {
            for version in VERSIONS {
                let name = format!("{door:?} {version:?} {app_version:?}");
                let mut caller = handshake(&mut stage, (door, version)).await;
                let mut app = accept(&mut stage, app_version).await;
                accepted(&mut caller, version).await;
                for number in 0..3 {
                    app.send(&format!("to you {number}")).await;
                    assert_eq!(caller.bytes(8).await, format!("to you {number}"), "{name}");
                    caller.send(&format!("to me {number}")).await;
                    assert_eq!(app.bytes(7).await, format!("to me {number}"), "{name}");
                }
                caller.finish(&[]).await;
                assert_eq!(app.end().await, Ending::Clean, "{name}");
                app.send("still here").await;
                assert_eq!(caller.bytes(10).await, "still here", "{name}");
                app.finish(&[]).await;
                assert_eq!(caller.end().await, Ending::Clean, "{name}");
            }
        }
    }
}

#[tokio::test]
async fn an_end_that_breaks_off_breaks_the_tunnel_off() {
    for app_version in VERSIONS {
        let mut stage = Stage::before(app_version).await;
        for door in DOORS {
            let from = (door, Version::Two);
            let mut caller = handshake(&mut stage, from).await;
            let mut app = accept(&mut stage, app_version).await;
            accepted(&mut caller, Version::Two).await;
            app.send("x").await;
            assert_eq!(caller.bytes(1).await, "x");
            drop(caller);
            app.left().await;
        }
    }
}

#[tokio::test]
async fn a_refused_websocket_is_an_ordinary_answer_and_a_success_that_is_no_switch_a_fault() {
    let mut stage = Stage::before(Version::One).await;
    for door in DOORS {
        for (at_the_app, expected) in [(403, 403), (404, 404), (200, 502)] {
            let mut caller = handshake(&mut stage, (door, Version::Two)).await;
            let (mut app, _) = stage.arrival().await;
            app.respond(at_the_app, &[], Body::Length(2)).await;
            app.send("no").await;
            assert_eq!(caller.answer().await.0, expected, "{door:?}");
        }
        // Nobody proves to have understood the handshake.
        let mut caller = handshake(&mut stage, (door, Version::Two)).await;
        let (mut app, _) = stage.arrival().await;
        let fields = [
            ("Upgrade", "websocket"),
            ("Connection", "Upgrade"),
            ("Sec-WebSocket-Accept", ACCEPTED),
        ];
        app.respond(101, &fields, Body::Tunnel).await;
        assert_eq!(caller.answer().await.0, 502, "{door:?}");
    }
}

#[tokio::test]
async fn nothing_but_a_websocket_on_a_route_that_says_so_takes_over_a_stream() {
    let app = RawApp::answering("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", false);
    let mesh = Mesh::with(&app.url(), &json!({}), &json!({}));
    let status = async |door, request| {
        let client = Client::to(&mesh, door).await;
        client.try_send(request, b"", None).await.unwrap().status
    };
    for door in [Door::Outbound, Door::Ingress] {
        assert_eq!(status(door, extended("websocket")).await, 501, "{door:?}: not on this route");
    }
    for door in DOORS {
        assert_eq!(status(door, extended("connect-udp")).await, 501, "{door:?}");
    }
    assert_eq!(app.connections(), 0, "nothing of it went on");
}

#[tokio::test]
async fn an_app_of_http_2_without_extended_connect_gets_no_websocket() {
    let app = crate::http2::H2App::serving(|_, mut respond| async move {
        respond.send_response(http::Response::new(()), true).unwrap();
    });
    let mesh = Mesh::before(&app.url());
    let client = Client::to(&mesh, Door::Inbound).await;
    for _ in 0..2 {
        let answer = client.open(extended("websocket"), false).await.unwrap().0.await.unwrap();
        assert_eq!(answer.status(), 502);
    }
    assert_eq!(client.get("/").await.status, 200, "everything else it gets");
}

#[tokio::test]
async fn a_tunnel_over_http_2_ends_when_policy_refuses_what_it_allowed() {
    let world = World::new();
    let app = RawApp::serving(|stream| {
        while let Some(head) = stream.head() {
            let accept = accept_of(field(&head, "sec-websocket-key").unwrap());
            stream.send(format!("HTTP/1.1 101 X\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n\r\nhello"));
            stream.rest();
        }
    });
    let allowed = allow("p", &[&world.id("/billing")], &[&world.id("/shop")]);
    let only = |paths: &[&str]| {
        let mut policy = allowed.clone();
        policy["rules"][0]["to"] = json!({ "paths": paths, "upgrades": ["websocket"] });
        json!({ "identity_policies": [policy] })
    };
    let billing = world
        .sidecar("/billing")
        .set("sidecar.app", &json!(app.url()))
        .set("proof", &json!({ "drain_within_seconds": 0.3 }))
        .resources(&only(&["/chat", "/kept"]))
        .start();
    let peer = world.peer("/shop");
    let client = Client::over(peer.stream(&billing, Alpn::Http2).await.unwrap()).await;
    let (response, sends) = client.open(extended("websocket"), false).await.unwrap();
    let mut body = response.await.unwrap().into_body();
    assert_eq!(&body.data().await.unwrap().unwrap()[..], b"hello");
    let record = billing.record_with("/path", &json!("/chat"));
    assert_eq!((&record["method"], &record["outcome"]), (&json!("GET"), &json!("allow")));

    billing.write_resources(&only(&["/kept"]));
    let end = tokio::time::timeout(PATIENCE, body.data()).await.expect("it is cut");
    assert!(end.unwrap().is_err(), "and not ended as if it were whole");
    drop(sends);
    let refused = |record: &Value| record["path"] == "/chat" && record["outcome"] == "deny";
    billing.record("the refused tunnel", refused);
    let ended =
        |record: &Value| record["event"] == "exchange_end" && record["reason"] == "policy_changed";
    billing.record("its end", ended);
}

/// A server that has its own word for what it gets, and no HTTP.
fn loud() -> RawApp {
    RawApp::serving(|stream| {
        while !stream.buffer.is_empty() || stream.fill() {
            let loud = std::mem::take(&mut stream.buffer).to_ascii_uppercase();
            stream.send(loud);
        }
        stream.send("BYE");
    })
}

fn connect_route(more: &Value) -> Value {
    let own = json!({ "id": "c", "uri": "/*", "methods": ["CONNECT"], "enable_connect": true });
    crate::mesh::merged(own, more)
}

#[tokio::test]
async fn connect_opens_a_tunnel_to_the_routes_upstream_and_never_to_the_place_that_is_named() {
    let world = World::new();
    let (app, other) = (loud(), loud());
    let node = app.address.to_string();
    let route =
        connect_route(&json!({ "upstream": { "nodes": { &node: 1 } }, "host": "127.0.0.1" }));
    let ingress = world.ingress().resources(&json!({ "routes": [route] })).start();
    let named = other.address;

    let mut wire = Wire::to(ingress.address("ingress")).await;
    wire.send(format!("CONNECT {named} HTTP/1.1\r\nHost: {named}\r\n\r\nearly ")).await;
    let answer = wire.head().await.unwrap();
    assert_eq!((answer.status, answer.field("content-length")), (200, None));
    assert_eq!((answer.field("transfer-encoding"), answer.field("connection")), (None, None));
    assert_eq!(wire.bytes(6).await, b"EARLY ");
    let long = "x".repeat(300_000);
    wire.send(&long).await;
    assert_eq!(wire.bytes(long.len()).await, long.to_uppercase().as_bytes());
    wire.half_close().await;
    assert_eq!(wire.bytes(3).await, b"BYE");
    assert_eq!(wire.end().await, crate::mesh::End::Clean);

    let tcp = tokio::net::TcpStream::connect(ingress.address("ingress")).await.unwrap();
    let client = Client::over(tcp).await;
    let mut body = connect(&client, &named.to_string(), 200).await;
    body.1.send_data("two".into(), true).unwrap();
    let mut got = Vec::new();
    while let Some(data) = body.0.data().await {
        got.extend_from_slice(&data.unwrap());
    }
    assert_eq!(got, b"TWOBYE");
    assert_eq!((app.connections(), other.connections()), (2, 0));
}

async fn connect(
    client: &Client,
    to: &str,
    status: u16,
) -> (h2::RecvStream, h2::SendStream<bytes::Bytes>) {
    let request = http::Request::builder().method("CONNECT").uri(to).body(()).unwrap();
    let (response, sends) = client.open(request, false).await.unwrap();
    let response = crate::world::soon("an answer", response).await.unwrap();
    assert_eq!(response.status(), status);
    (response.into_body(), sends)
}

#[tokio::test]
async fn connect_is_refused_where_no_route_opens_it_in_both_versions() {
    let world = World::new();
    let app = loud();
    let upstream = json!({ "nodes": { app.address.to_string(): 1 } });
    // All methods, as dashboards write them, are no word for it.
    let named = json!({ "id": "n", "uri": "/*", "host": "n", "methods": ["GET", "CONNECT"], "upstream": upstream });
    let all = json!({ "id": "a", "uri": "/*", "host": "a", "upstream": upstream });
    let ingress = world.ingress().resources(&json!({ "routes": [named, all] })).start();
    for host in ["n", "a", "nowhere"] {
        let mut wire = Wire::to(ingress.address("ingress")).await;
        let asked = format!(
            "CONNECT {host}:80 HTTP/1.1\r\nHost: {host}:80\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n"
        );
        wire.send(asked).await;
        assert_eq!(wire.response_to("CONNECT").await.unwrap().status, 405, "{host}");
        assert_eq!(wire.end().await, crate::mesh::End::Clean, "what follows is no request");
        let tcp = tokio::net::TcpStream::connect(ingress.address("ingress")).await.unwrap();
        let client = Client::over(tcp).await;
        drop(connect(&client, &format!("{host}:80"), 405).await);
    }
    assert_eq!(app.connections(), 0);
}

#[tokio::test]
async fn connect_goes_through_both_sidecars_when_both_open_it_and_policy_admits_it() {
    let world = World::new();
    let app = loud();
    let inbound = connect_route(&json!({
        "workload_selector": { "listener": "inbound" },
        "upstream": { "nodes": { app.address.to_string(): 1 } },
    }));
    let mut policy = allow("p", &[&world.id("/db")], &[&world.id("/shop"), &world.id("/web")]);
    policy["rules"][0]["to"] = json!({ "methods": ["CONNECT"], "upgrades": ["connect"] });
    let db = world
        .sidecar("/db")
        .resources(&json!({ "routes": [inbound], "identity_policies": [policy] }))
        .start();
    let outbound = connect_route(&json!({
        "workload_selector": { "listener": "outbound" },
        "upstream": {
            "nodes": { db.address("inbound").to_string(): 1 },
            "tls": { "identity": "svid", "spiffe_ids": [world.id("/db")] },
        },
    }));
    let sidecar = |name: &str| -> Process {
        world.sidecar(name).resources(&json!({ "routes": [outbound] })).start()
    };
    let shop = sidecar("/shop");
    for version in VERSIONS {
        match version {
            Version::One => {
                let mut wire = Wire::to(shop.address("outbound")).await;
                wire.send("CONNECT db:5432 HTTP/1.1\r\nHost: db:5432\r\n\r\n").await;
                assert_eq!(wire.head().await.unwrap().status, 200);
                wire.send("hello").await;
                assert_eq!(wire.bytes(5).await, b"HELLO");
            }
            Version::Two => {
                let tcp = tokio::net::TcpStream::connect(shop.address("outbound")).await.unwrap();
                let client = Client::over(tcp).await;
                let mut tunnel = connect(&client, "db:5432", 200).await;
                tunnel.1.send_data("hello".into(), false).unwrap();
                assert_eq!(&tunnel.0.data().await.unwrap().unwrap()[..], b"HELLO");
            }
        }
    }
    let record = db.record_with("/method", &json!("CONNECT"));
    assert_eq!((&record["outcome"], &record["host"]), (&json!("allow"), &json!("db:5432")));

    let stranger = sidecar("/stranger");
    let mut wire = Wire::to(stranger.address("outbound")).await;
    let answer = wire.ask("CONNECT db:5432 HTTP/1.1\r\nHost: db:5432\r\n\r\n").await;
    assert_eq!(answer.status, 403, "the other sidecar's refusal comes back as an answer");
    eventually("two tunnels and no third", || (app.connections() == 2).then_some(()));
}

#[tokio::test]
async fn a_route_that_opens_connect_must_name_the_method() {
    let world = World::new();
    let control = world.control().start();
    let admin = control.admin();
    let route = json!({ "uri": "/*", "enable_connect": true, "upstream": { "nodes": { "127.0.0.1:1": 1 } } });
    let answer = admin.ask("PUT", "/routes/c", Some(&route)).await;
    assert_eq!(answer.status, 400);
    assert!(answer.text().contains("enable_connect"), "{}", answer.text());
}
