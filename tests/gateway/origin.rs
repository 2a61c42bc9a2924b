//! Who says where a request comes from: the PROXY protocol in and out, trusted addresses, and everybody who is not believed.

use std::net::SocketAddr;
use std::process::Command;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::net::{TcpSocket, TcpStream};
use wardgate::mtls::Alpn;
use wardgate::rt::proxy_protocol::{self, Ends, Version};

use crate::http2::Client;
use crate::mesh::{RawApp, Wire, field, merged};
use crate::tls_edge::Certificate;
use crate::world::{App, Part, Process, World, allow, eventually};

/// Somebody at this address of the loopback network.
async fn from(source: &str, to: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_reuseaddr(true).unwrap();
    socket.bind(format!("{source}:0").parse().unwrap()).unwrap();
    socket.connect(to).await.unwrap()
}

async fn wire_from(source: &str, to: SocketAddr) -> Wire {
    Wire::over(from(source, to).await)
}

fn ends(source: &str) -> Ends {
    let destination = "198.51.100.1:443".parse().unwrap();
    Ends { source: source.parse().unwrap(), destination }
}

/// What a balancer sends before everything else.
fn header(version: Version, source: &str) -> Vec<u8> {
    proxy_protocol::write(version, Some(ends(source)))
}

const BOTH: [Version; 2] = [Version::V1, Version::V2];
const GET: &str = "GET / HTTP/1.1\r\nHost: shop\r\n\r\n";

fn to_app(app: &App) -> Value {
    json!({ "routes": [{
        "id": "1", "uri": "/*", "upstream": { "nodes": { app.address.to_string(): 1 } },
    }] })
}

/// An ingress before the app, with settings of its own below `ingress`.
fn ingress(world: &World, app: &App, settings: &Value) -> Process {
    configured(world.ingress().resources(&to_app(app)), settings).start()
}

fn configured<'w>(mut part: Part<'w>, settings: &Value) -> Part<'w> {
    for (name, value) in settings.as_object().unwrap() {
        part = part.set(&format!("ingress.{name}"), value);
    }
    part
}

async fn headers(wire: &mut Wire, request: impl AsRef<[u8]>) -> Value {
    let answer = wire.ask(request).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()["headers"].clone()
}

#[tokio::test]
async fn a_balancer_that_is_trusted_says_for_whom_a_connection_is() {
    let (world, app) = (World::new(), App::echo("app"));
    let only_him = json!({ "ip-restriction": { "whitelist": ["203.0.113.9", "2001:db8::7"] } });
    let mut resources = to_app(&app);
    resources["routes"][0]["plugins"] = only_him;
    let ingress = configured(
        world.ingress().resources(&resources),
        &json!({ "proxy_protocol": { "http": { "trusted": ["127.0.0.1"] } } }),
    )
    .start();
    let door = ingress.address("ingress");
    for version in BOTH {
        for (source, address) in
            [("203.0.113.9:4711", "203.0.113.9"), ("[2001:db8::7]:1", "2001:db8::7")]
        {
            let mut wire = wire_from("127.0.0.1", door).await;
            wire.send(header(version, source)).await;
            // For all requests of the connection, and whatever they claim.
            for _ in 0..2 {
                let claims = "GET / HTTP/1.1\r\nHost: a\r\nX-Real-IP: 9.9.9.9\r\n\r\n";
                let found = headers(&mut wire, claims).await;
                assert_eq!(found["x-real-ip"], address);
                assert_eq!(found["x-forwarded-for"], address);
                assert_eq!(found["x-forwarded-port"], door.port().to_string());
            }
        }
        let mut stranger = wire_from("127.0.0.1", door).await;
        stranger.send(header(version, "203.0.113.10:4711")).await;
        assert_eq!(stranger.ask(GET).await.status, 403, "by the address that was said");

        // The balancer itself, which looks whether we are well: it is not on the list.
        let mut own = wire_from("127.0.0.1", door).await;
        own.send(proxy_protocol::write(version, None)).await;
        assert_eq!(own.ask(GET).await.status, 403);
    }
    // The header in the same packet as the request, and in many.
    let mut wire = wire_from("127.0.0.1", door).await;
    wire.send([&header(Version::V2, "203.0.113.9:1"), GET.as_bytes()].concat()).await;
    assert_eq!(wire.response_to("GET").await.unwrap().status, 200);
    let mut wire = wire_from("127.0.0.1", door).await;
    for byte in header(Version::V1, "203.0.113.9:1") {
        wire.send([byte]).await;
    }
    assert_eq!(wire.ask(GET).await.status, 200);
    // HTTP/2 without TLS behind it.
    let mut tcp = from("127.0.0.1", door).await;
    let said = header(Version::V2, "203.0.113.9:1");
    tokio::io::AsyncWriteExt::write_all(&mut tcp, &said).await.unwrap();
    let answer = Client::over(tcp).await.get("/").await;
    assert_eq!(answer.status, 200);
}

#[tokio::test]
async fn a_connection_that_nobody_trusted_introduces_is_closed_with_a_record() {
    let (world, app) = (World::new(), App::echo("app"));
    let ingress = ingress(
        &world,
        &app,
        &json!({ "proxy_protocol": { "http": { "trusted": ["127.0.0.1/32"] } } }),
    );
    let door = ingress.address("ingress");
    let with = header(Version::V2, "203.0.113.9:1");
    let without = GET.as_bytes().to_vec();
    let broken = b"PROXY TCP4 203.0.113.9\r\n".to_vec();
    let overrun = [&b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0f"[..], &[1; 12], &[4, 0, 9]].concat();
    let mixed = [&with[..12], b"PROXY UNKNOWN\r\n"].concat();
    for (source, sent, reason) in [
        ("127.0.0.2", &with, "proxy_protocol_untrusted"),
        ("127.0.0.3", &without, "proxy_protocol_untrusted"),
        ("127.0.0.1", &without, "proxy_protocol_missing"),
        ("127.0.0.1", &broken, "proxy_protocol_malformed"),
        ("127.0.0.1", &overrun, "proxy_protocol_malformed"),
        ("127.0.0.1", &mixed, "proxy_protocol_malformed"),
    ] {
        let tcp = from(source, door).await;
        let address = tcp.local_addr().unwrap().to_string();
        let mut wire = Wire::over(tcp);
        wire.send(sent).await;
        wire.end().await;
        let record = ingress.record_with("/src/addr", &json!(address));
        assert_eq!(
            (&record["type"], &record["reason"]),
            (&json!("handshake_refused"), &json!(reason))
        );
    }
    // A second header is none, in either version: it is what the request would be.
    for second in BOTH {
        let mut wire = wire_from("127.0.0.1", door).await;
        wire.send(header(Version::V1, "203.0.113.9:1")).await;
        wire.send([&header(second, "203.0.113.9:1")[..], b"\r\n"].concat()).await;
        let status = wire.response_to("GET").await.unwrap().status;
        assert!(matches!(status, 400 | 505), "{second:?}: {status}");
    }
    assert_eq!(app.requests(), 0);
}

#[tokio::test]
async fn a_header_that_never_ends_is_given_up_in_time() {
    let (world, app) = (World::new(), App::echo("app"));
    let part = world
        .ingress()
        .resources(&to_app(&app))
        .set("limits", &json!({ "handshake_seconds": 0.3 }));
    let settings = json!({ "proxy_protocol": { "http": { "trusted": ["127.0.0.1"] } } });
    let ingress = configured(part, &settings).start();
    for sent in [&b""[..], b"PROXY TCP4 1.2.3.4 ", b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x0f\0"] {
        let mut wire = wire_from("127.0.0.1", ingress.address("ingress")).await;
        wire.send(sent).await;
        wire.end().await;
    }
    eventually("three records", || {
        let late = |record: &Value| record["reason"] == "proxy_protocol_late";
        (ingress.audit().iter().filter(|record| late(record)).count() == 3).then_some(())
    });
}

#[tokio::test]
async fn where_it_is_not_required_balancers_may_leave_it_out_and_others_must() {
    let (world, app) = (World::new(), App::echo("app"));
    let lenient = json!({ "trusted": ["127.0.0.1"], "required": false });
    let ingress = ingress(&world, &app, &json!({ "proxy_protocol": { "http": lenient } }));
    let door = ingress.address("ingress");
    let mut balancer = wire_from("127.0.0.1", door).await;
    balancer.send(header(Version::V1, "203.0.113.9:1")).await;
    assert_eq!(headers(&mut balancer, GET).await["x-real-ip"], "203.0.113.9");
    assert_eq!(
        headers(&mut wire_from("127.0.0.1", door).await, GET).await["x-real-ip"],
        "127.0.0.1"
    );
    assert_eq!(
        headers(&mut wire_from("127.0.0.2", door).await, GET).await["x-real-ip"],
        "127.0.0.2"
    );
    // Begun like a header, and none.
    let mut put = wire_from("127.0.0.1", door).await;
    put.send("P").await;
    put.send("UT / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!(put.response_to("PUT").await.unwrap().status, 200);
    for version in BOTH {
        let mut stranger = wire_from("127.0.0.2", door).await;
        stranger.send(header(version, "203.0.113.9:1")).await;
        stranger.end().await;
    }
    ingress.record_with("/reason", &json!("proxy_protocol_untrusted"));
}

#[tokio::test]
async fn it_comes_before_tls_as_curl_sends_it() {
    let (world, app) = (World::new(), App::echo("app"));
    let certificate = Certificate::of(&["shop.example"]);
    let resources = merged(
        to_app(&app),
        &json!({ "ssls": [merged(certificate.resource(&["shop.example"]), &json!({ "id": "1" }))] }),
    );
    let trusted = json!({ "trusted": ["127.0.0.0/8"] });
    let ingress = configured(
        world.ingress().resources(&resources),
        &json!({
            "https": "127.0.0.1:0",
            "proxy_protocol": { "http": trusted, "https": trusted },
        }),
    )
    .start();
    let curl = |scheme: &str, number: usize, options: &[&str]| {
        let port = ingress.address_of("ingress", number).port();
        let output = Command::new("curl")
            .args(["--silent", "--show-error", "--max-time", "20", "--noproxy", "*", "--insecure"])
            .args(["--resolve", &format!("shop.example:{port}:127.0.0.1")])
            .args(options)
            .arg(format!("{scheme}://shop.example:{port}/x"))
            .output()
            .expect("curl is needed by this test");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        output.status.success().then(|| serde_json::from_str::<Value>(&text).expect(&text))
    };
    for (scheme, number) in [("http", 0), ("https", 1)] {
        let source = ["--interface", "127.0.0.9", "--haproxy-protocol"];
        let answer = eventually("the certificate is in force", || curl(scheme, number, &source));
        assert_eq!(answer["headers"]["x-real-ip"], "127.0.0.9");
        assert_eq!(answer["headers"]["x-forwarded-proto"], scheme);
        assert_eq!(curl(scheme, number, &[]), None, "without the header nobody comes in");
    }
}

#[tokio::test]
async fn in_the_mesh_it_tells_where_a_peer_is_and_never_who_it_is() {
    let (world, app) = (World::new(), App::echo("app"));
    let billing = world
        .sidecar("/billing")
        .app(&app)
        .set("sidecar.proxy_protocol", &json!({ "inbound": { "trusted": ["127.0.0.0/8"] } }))
        .resources(&json!({
            "identity_policies": [allow("p", &[&world.id("/billing")], &[&world.id("/shop")])],
        }))
        .start();
    let connector =
        wardgate::mtls::Connector::new(wardgate::rt::Live::fixed(world.identity("/shop")));
    let expected = wardgate::mtls::ExpectedPeers::exactly(&billing.id.parse().unwrap()).into();
    let mut tcp = from("127.0.0.1", billing.address("inbound")).await;
    let balancer = tcp.local_addr().unwrap().to_string();
    let said = header(Version::V2, "203.0.113.9:4711");
    tokio::io::AsyncWriteExt::write_all(&mut tcp, &said).await.unwrap();
    let (tls, _) = connector.connect(tcp, &expected, Alpn::Http1).await.unwrap();
    let found = headers(&mut Wire::over(tls), GET).await;
    let certificate = found["x-forwarded-client-cert"].as_str().unwrap();
    assert!(certificate.contains(&world.id("/shop")), "{certificate}");
    let record = billing.record_with("/src/addr", &json!("203.0.113.9:4711"));
    assert_eq!(record["src"]["spiffe_id"], world.id("/shop"));
    assert_eq!(record["src"]["via"], balancer);

    // Another sidecar introduces its own caller by an option of the upstream.
    let shop = world
        .sidecar("/shop")
        .resources(&json!({ "routes": [{
            "id": "billing", "uri": "/*", "workload_selector": { "listener": "outbound" },
            "upstream": {
                "nodes": { billing.address("inbound").to_string(): 1 },
                "proxy_protocol": "v2",
                "tls": { "identity": "svid", "spiffe_ids": [world.id("/billing")] },
            },
        }] }))
        .start();
    let tcp = from("127.0.0.7", shop.address("outbound")).await;
    let caller = tcp.local_addr().unwrap().to_string();
    headers(&mut Wire::over(tcp), GET).await;
    billing.record_with("/src/addr", &json!(caller));
}

/// An app that wants a PROXY header; tells what each connection began with.
fn introduced_app() -> (RawApp, Receiver<Ends>) {
    let (tell, told) = channel();
    let app = RawApp::serving(move |stream| {
        let (header, length) = loop {
            match proxy_protocol::read(&stream.buffer) {
                Ok(Some(read)) => break read,
                Ok(None) if stream.fill() => {}
                _ => return,
            }
        };
        let proxy_protocol::Header::For(ends) = header else { return };
        stream.buffer.drain(..length);
        let _ = tell.send(ends);
        while let Some(head) = stream.request() {
            let real = field(&head, "x-real-ip").unwrap_or_default().to_owned();
            stream.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{real}", real.len()));
        }
    });
    (app, told)
}

#[tokio::test]
async fn an_upstream_is_told_for_whom_a_connection_is_and_it_serves_nobody_else() {
    for version in ["v1", "v2"] {
        let world = World::new();
        let (app, told) = introduced_app();
        let upstream =
            json!({ "nodes": { app.address.to_string(): 1 }, "proxy_protocol": version });
        let resources = json!({ "routes": [{ "id": "1", "uri": "/*", "upstream": upstream }] });
        let ingress = world.ingress().resources(&resources).start();
        let door = ingress.address("ingress");
        let wait = || told.recv_timeout(Duration::from_secs(20)).unwrap();

        let first = from("127.0.0.5", door).await;
        let first_address = first.local_addr().unwrap();
        let mut first = Wire::over(first);
        for _ in 0..3 {
            assert_eq!(first.ask(GET).await.text(), "127.0.0.5");
        }
        assert_eq!(wait(), Ends { source: first_address, destination: door });
        assert_eq!(app.connections(), 1, "one caller's requests share a connection");

        // The first one's connection waits in the pool, for it alone.
        let second = from("127.0.0.6", door).await;
        let second_address = second.local_addr().unwrap();
        let mut second = Wire::over(second);
        assert_eq!(second.ask(GET).await.text(), "127.0.0.6");
        assert_eq!(wait().source, second_address);
        assert_eq!(app.connections(), 2);
        assert_eq!(first.ask(GET).await.status, 200);
        assert_eq!(second.ask(GET).await.status, 200);
        assert_eq!(app.connections(), 2);
        // The same host on another connection is another caller: its port is another one.
        let mut third = wire_from("127.0.0.6", door).await;
        assert_eq!(third.ask(GET).await.status, 200);
        assert_ne!(wait().source, second_address);
        assert_eq!(app.connections(), 3);
    }
}

#[tokio::test]
async fn an_upstream_on_http2_is_told_as_well_and_streams_of_two_callers_share_no_connection() {
    let world = World::new();
    let (tell, told) = channel();
    let app = RawApp::serving(move |stream| {
        let (header, length) = loop {
            match proxy_protocol::read(&stream.buffer) {
                Ok(Some(read)) => break read,
                Ok(None) if stream.fill() => {}
                _ => return,
            }
        };
        stream.buffer.drain(..length);
        let preface: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
        let begins = stream.body(preface.len());
        let _ = tell.send((header, begins.as_deref() == Some(preface)));
    });
    let upstream = json!({
        "nodes": { app.address.to_string(): 1 }, "scheme": "grpc", "proxy_protocol": "v2", "retries": 0,
    });
    let resources = json!({ "routes": [{ "id": "1", "uri": "/*", "upstream": upstream }] });
    let ingress = world.ingress().resources(&resources).start();
    for _ in 0..2 {
        let tcp = from("127.0.0.5", ingress.address("ingress")).await;
        let caller = tcp.local_addr().unwrap();
        assert_eq!(Wire::over(tcp).ask(GET).await.status, 502, "it hangs up");
        let (header, is_http2) = told.recv_timeout(Duration::from_secs(20)).unwrap();
        let destination = ingress.address("ingress");
        let expected = proxy_protocol::Header::For(Ends { source: caller, destination });
        assert_eq!((header, is_http2), (expected, true));
    }
}

#[tokio::test]
async fn nobody_but_trusted_addresses_speaks_for_anybody_in_any_spelling() {
    let (world, app) = (World::new(), App::echo("app"));
    let ingress =
        ingress(&world, &app, &json!({ "trusted_addresses": ["127.0.0.5", "10.0.0.0/8"] }));
    let door = ingress.address("ingress");
    let names = [
        "X-Forwarded-For",
        "x-forwarded-for",
        "X_Forwarded_For",
        "X-Forwarded_For",
        "X-FORWARDED-FOR",
        "X-Real-IP",
        "X_Real_IP",
        "x-real_ip",
        "X-Forwarded-Host",
        "X_Forwarded_Host",
        "X-Forwarded-Port",
        "X_Forwarded_Port",
        "X_Forwarded_Proto",
        "X-Forwarded",
        "Forwarded-For",
        "X-Forwarded-Server",
        "X-Forwarded-Ssl",
        "X-Forwarded-Scheme",
        "X-Original-Forwarded-For",
        "X-Client-IP",
        "Client-IP",
        "Client_IP",
        "True-Client-IP",
        "X-Cluster-Client-IP",
        "CF-Connecting-IP",
        "Fastly-Client-IP",
        "X-Remote-Addr",
        "Front-End-Https",
    ];
    let claims: String = names.iter().map(|name| format!("{name}: 6.6.6.6\r\n")).collect();
    let request = format!(
        "GET / HTTP/1.1\r\nHost: shop\r\n{claims}Forwarded: for=6.6.6.6\r\nX-Forwarded-Proto: https\r\n\
         X-Forwarded-For: 6.6.6.6, 127.0.0.5\r\nX-Kept: 1\r\n\r\n"
    );
    let found = headers(&mut wire_from("127.0.0.1", door).await, &request).await;
    let text = found.to_string();
    assert!(!text.contains("6.6.6.6"), "{text}");
    for (name, value) in [
        ("x-forwarded-for", "127.0.0.1"),
        ("x-real-ip", "127.0.0.1"),
        ("x-forwarded-proto", "http"),
        ("x-forwarded-host", "shop"),
        ("x-kept", "1"),
    ] {
        assert_eq!(found[name], value, "{name}");
    }

    // Who is trusted speaks for its own callers, and the way is continued.
    let request = "GET / HTTP/1.1\r\nHost: shop\r\nX-Forwarded-For: 6.6.6.6\r\nX-Forwarded-For: 10.0.0.1\r\n\
        X-Forwarded-Proto: https\r\nX-Forwarded-Host: outside.example\r\nX-Forwarded-Port: 8443\r\n\
        Forwarded: for=6.6.6.6;proto=https\r\nX_Forwarded_For: 7.7.7.7\r\nX-Forwarded-Ssl: on\r\n\r\n";
    let found = headers(&mut wire_from("127.0.0.5", door).await, request).await;
    for (name, value) in [
        ("x-forwarded-for", "6.6.6.6, 10.0.0.1, 127.0.0.5"),
        // The address that we know; `real_ip` says who may name another.
        ("x-real-ip", "127.0.0.5"),
        ("x-forwarded-proto", "https"),
        ("x-forwarded-host", "outside.example"),
        ("x-forwarded-port", "8443"),
        ("x-forwarded-ssl", "on"),
        ("forwarded", "for=6.6.6.6;proto=https, for=127.0.0.5;host=\"shop\";proto=http"),
    ] {
        assert_eq!(found[name], value, "{name}");
    }
    assert!(!found.to_string().contains("7.7.7.7"));
    // What it does not say is what we know.
    let found = headers(&mut wire_from("127.0.0.5", door).await, GET).await;
    assert_eq!(
        (&found["x-forwarded-proto"], &found["x-forwarded-host"]),
        (&json!("http"), &json!("shop"))
    );
    assert_eq!(found.get("forwarded"), None);
    // A field that would swallow ours is none.
    let open = "GET / HTTP/1.1\r\nHost: shop\r\nForwarded: for=\"6.6.6.6\r\n\r\n";
    let found = headers(&mut wire_from("127.0.0.5", door).await, open).await;
    assert_eq!(found["forwarded"], "for=127.0.0.5;host=\"shop\";proto=http");
}

#[tokio::test]
async fn before_routes_and_plugins_see_a_request_nobody_has_spoken_for_others() {
    let (world, app) = (World::new(), App::echo("app"));
    let mut resources = to_app(&app);
    resources["routes"][0]["vars"] = json!([["http_x_forwarded_proto", "==", "https"]]);
    let ingress = configured(
        world.ingress().resources(&resources),
        &json!({ "trusted_addresses": ["127.0.0.5"] }),
    )
    .start();
    let door = ingress.address("ingress");
    let secure = "GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-Proto: https\r\n\r\n";
    assert_eq!(wire_from("127.0.0.1", door).await.ask(secure).await.status, 404);
    assert_eq!(wire_from("127.0.0.5", door).await.ask(secure).await.status, 200);
}

#[tokio::test]
async fn a_redirect_to_https_goes_by_what_a_trusted_sender_says() {
    let (world, app) = (World::new(), App::echo("app"));
    let mut resources = to_app(&app);
    resources["routes"][0]["plugins"] = json!({ "redirect": { "http_to_https": true } });
    for trusted in [json!(["127.0.0.5"]), Value::Null] {
        let name = if trusted.is_null() { "unset" } else { "set" };
        let ingress = configured(
            world.ingress().named(name).resources(&resources),
            &json!({ "trusted_addresses": trusted }),
        )
        .start();
        let door = ingress.address("ingress");
        for (source, proto, status) in [
            ("127.0.0.1", "https", 301),
            ("127.0.0.5", "https", if trusted.is_null() { 301 } else { 200 }),
            ("127.0.0.5", "HTTPS", if trusted.is_null() { 301 } else { 200 }),
            ("127.0.0.5", "http", 301),
            ("127.0.0.5", "https, http", 301),
            ("127.0.0.5", "https\r\nX-Forwarded-Proto: https", 301),
            ("127.0.0.5", "httpss", 301),
        ] {
            let request =
                format!("GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-Proto: {proto}\r\n\r\n");
            let answer = wire_from(source, door).await.ask(request).await;
            assert_eq!(answer.status, status, "{name} {source} {proto:?}");
        }
    }
}

#[tokio::test]
async fn the_callers_address_is_taken_from_where_the_settings_say_and_from_nobody_else() {
    let (world, app) = (World::new(), App::echo("app"));
    let mut resources = to_app(&app);
    resources["routes"][0]["plugins"] = json!({ "ip-restriction": { "whitelist": ["6.6.6.6"] } });
    let proxies = json!(["127.0.0.5", "10.0.0.0/8"]);
    for (name, header, recursive, good, bad) in [
        (
            "single",
            "X-Real-IP",
            false,
            vec!["X-Real-IP: 6.6.6.6", "x-real-ip: 6.6.6.6:80"],
            vec![
                "X_Real_IP: 6.6.6.6",
                "X-Real-IP: 6.6.6.6, 7.7.7.7",
                "X-Real-IP: 6.6.6.06",
                "A: b",
            ],
        ),
        (
            "chain",
            "X-Forwarded-For",
            true,
            vec![
                "X-Forwarded-For: 1.1.1.1, 6.6.6.6, 10.0.0.1",
                "X-Forwarded-For: 6.6.6.6\r\nX-Forwarded-For: 10.0.0.1",
            ],
            vec![
                "X-Forwarded-For: 6.6.6.6, 7.7.7.7",
                "X-Real-IP: 6.6.6.6",
                "X-Forwarded-For: 6.6.6.6, , 10.0.0.1",
            ],
        ),
        (
            "standard",
            "Forwarded",
            true,
            vec![
                "Forwarded: for=6.6.6.6, for=\"10.0.0.1:80\"",
                "forwarded: For=6.6.6.6;proto=https",
            ],
            vec![
                "Forwarded: for=6.6.6.6, for=unknown",
                "Forwarded: for=\"6.6.6.6",
                "X-Forwarded-For: 6.6.6.6",
            ],
        ),
        (
            "own",
            "Edge-Client",
            false,
            vec!["Edge-Client: 6.6.6.6", "edge-client: 7.7.7.7, 6.6.6.6"],
            vec!["Edge_Client: 6.6.6.6", "Edge-Client: 6.6.6.6.6", "Edge-Client: \u{ff16}.6.6.6"],
        ),
    ] {
        let ingress = configured(
            world.ingress().named(name).resources(&resources),
            &json!({ "real_ip": { "header": header, "from": proxies, "recursive": recursive } }),
        )
        .start();
        let door = ingress.address("ingress");
        let request = |fields: &str| format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\n");
        for fields in &good {
            let found = headers(&mut wire_from("127.0.0.5", door).await, request(fields)).await;
            assert_eq!(found["x-real-ip"], "6.6.6.6", "{name} {fields:?}");
            // From anybody else it says nothing.
            let answer = wire_from("127.0.0.1", door).await.ask(request(fields)).await;
            assert_eq!(answer.status, 403, "{name} {fields:?}");
        }
        for fields in &bad {
            let answer = wire_from("127.0.0.5", door).await.ask(request(fields)).await;
            assert_eq!(answer.status, 403, "{name} {fields:?}");
        }
    }
}

#[tokio::test]
async fn a_field_by_which_others_name_the_caller_is_taken_off_when_anybody_sends_it() {
    let (world, app) = (World::new(), App::echo("app"));
    let real_ip = json!({ "header": "Edge-Client", "from": ["127.0.0.5"] });
    let ingress = ingress(&world, &app, &json!({ "real_ip": real_ip }));
    let request = "GET / HTTP/1.1\r\nHost: a\r\nEdge-Client: 6.6.6.6\r\n\r\n";
    let door = ingress.address("ingress");
    let found = headers(&mut wire_from("127.0.0.1", door).await, request).await;
    assert_eq!(found.get("edge-client"), None);
    let found = headers(&mut wire_from("127.0.0.5", door).await, request).await;
    assert_eq!(
        (&found["edge-client"], &found["x-real-ip"]),
        (&json!("6.6.6.6"), &json!("6.6.6.6"))
    );
    // The way names who sent it to us, not whom that one speaks for.
    assert_eq!(found["x-forwarded-for"], "127.0.0.5");
}

#[tokio::test]
async fn who_was_introduced_may_be_a_trusted_sender_itself() {
    let (world, app) = (World::new(), App::echo("app"));
    let ingress = ingress(
        &world,
        &app,
        &json!({
            "proxy_protocol": { "http": { "trusted": ["127.0.0.1"] } },
            "trusted_addresses": ["203.0.113.0/24"],
            "real_ip": { "from": ["203.0.113.0/24"] },
        }),
    );
    let request =
        "GET / HTTP/1.1\r\nHost: a\r\nX-Real-IP: 6.6.6.6\r\nX-Forwarded-Proto: https\r\n\r\n";
    for (source, real, proto) in
        [("203.0.113.9:1", "6.6.6.6", "https"), ("198.18.0.1:1", "198.18.0.1", "http")]
    {
        // It is by whom the balancer names that is gone by, and not by the balancer.
        let mut wire = wire_from("127.0.0.1", ingress.address("ingress")).await;
        wire.send(header(Version::V2, source)).await;
        let found = headers(&mut wire, request).await;
        assert_eq!(
            (&found["x-real-ip"], &found["x-forwarded-proto"]),
            (&json!(real), &json!(proto))
        );
    }
}

#[tokio::test]
async fn settings_of_senders_that_make_no_sense_keep_it_from_starting() {
    let world = World::new();
    for (settings, sentence) in [
        (json!({ "trusted_addresses": [] }), "trusted_addresses: at least one network"),
        (json!({ "trusted_addresses": ["lb.example"] }), "'lb.example'"),
        (json!({ "real_ip": { "from": ["10.0.0.0/40"] } }), "real_ip.from: '10.0.0.0/40'"),
        (json!({ "real_ip": { "header": "a b", "from": ["10.0.0.1"] } }), "real_ip.header"),
        (
            json!({ "proxy_protocol": { "http": { "trusted": [] } } }),
            "ingress.proxy_protocol.http: trusted: at least one network",
        ),
        (json!({ "proxy_protocol": { "http": { "trusted": ["x"] } } }), "'x'"),
    ] {
        let ended = configured(world.ingress(), &settings).fails();
        assert!(ended.err.contains(sentence), "{settings}: {}", ended.err);
    }
}

#[tokio::test]
async fn a_decision_names_the_caller_that_a_trusted_sender_names() {
    let (world, app) = (World::new(), App::echo("app"));
    let closed = json!({
        "id": "closed", "selector": { "routes": ["1"] }, "action": "allow",
        "rules": [{ "from": { "principals": [world.id("/nobody")] } }],
    });
    let resources = merged(to_app(&app), &json!({ "identity_policies": [closed] }));
    let ingress = configured(
        world.ingress().resources(&resources),
        &json!({ "real_ip": { "from": ["127.0.0.5"] } }),
    )
    .start();
    let request = "GET / HTTP/1.1\r\nHost: a\r\nX-Real-IP: 6.6.6.6\r\n\r\n";
    for (source, caller) in [("127.0.0.5", json!("6.6.6.6")), ("127.0.0.6", Value::Null)] {
        let tcp = from(source, ingress.address("ingress")).await;
        let address = tcp.local_addr().unwrap().to_string();
        assert_eq!(Wire::over(tcp).ask(request).await.status, 403);
        let record = ingress.record_with("/src/addr", &json!(address));
        assert_eq!((&record["outcome"], &record["caller"]), (&json!("deny"), &caller));
    }
}
