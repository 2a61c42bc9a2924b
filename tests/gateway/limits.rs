//! How much of everything is allowed, and what whoever asks for more is told.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpSocket, TcpStream};
use wardgate::mtls::Alpn;

use crate::http2::{Client, request};
use crate::mesh::{End, RawApp, Wire};
use crate::tls_edge::Certificate;
use crate::world::{App, Process, World, eventually, eventually_async, send, soon};

/// An ingress with such limits before a place.
fn limited(world: &World, name: &str, place: SocketAddr, limits: &Value) -> Process {
    let upstream = json!({ "nodes": { place.to_string(): 1 } });
    with_upstream(world, name, &upstream, limits)
}

fn with_upstream(world: &World, name: &str, upstream: &Value, limits: &Value) -> Process {
    let resources = json!({ "routes": [{ "id": "1", "uri": "/*", "upstream": upstream }] });
    world.ingress().named(name).resources(&resources).set("limits", limits).start()
}

async fn status_of(ingress: &Process, request: impl AsRef<[u8]>) -> u16 {
    let mut wire = Wire::to(ingress.address("ingress")).await;
    let answer = wire.ask(request).await;
    if answer.status >= 400 {
        assert_eq!(answer.field("connection"), Some("close"), "{answer:?}");
        wire.end().await;
    }
    answer.status
}

async fn http2(ingress: &Process) -> Client {
    Client::over(TcpStream::connect(ingress.address("ingress")).await.unwrap()).await
}

#[tokio::test]
async fn a_head_is_refused_by_the_part_of_it_that_is_too_large_in_both_versions() {
    let (world, app) = (World::new(), App::echo("app"));
    let limits =
        json!({ "head_bytes": 4096, "target_bytes": 500, "field_bytes": 1000, "fields": 20 });
    let ingress = limited(&world, "ingress", app.address, &limits);
    let get = |target: usize, field: usize, fields: usize| {
        let fields: String =
            (0..fields).map(|number| format!("f{number}: {}\r\n", "f".repeat(field))).collect();
        format!("GET /{} HTTP/1.1\r\nHost: a\r\n{fields}\r\n", "t".repeat(target))
    };
    for (target, field, fields, status) in [
        (499, 900, 2, 200),
        (500, 0, 0, 414),
        (60_000, 0, 0, 414),
        (1, 1000, 1, 431),
        (1, 900, 5, 431),
        (1, 1, 25, 431),
        (1, 10_000, 10, 431),
        (1, 900, 6, 431),
    ] {
        assert_eq!(
            status_of(&ingress, get(target, field, fields)).await,
            status,
            "{target} {field} {fields}"
        );
        let names: Vec<String> = (0..fields).map(|number| format!("f{number}")).collect();
        let value = "f".repeat(field);
        let fields: Vec<(&str, &str)> =
            names.iter().map(|name| (name.as_str(), value.as_str())).collect();
        let client = http2(&ingress).await;
        let sent = request("GET", &format!("/{}", "t".repeat(target)), &fields);
        match client.try_send(sent, b"", None).await {
            Ok(answer) => assert_eq!(answer.status, status, "HTTP/2 {target} {field}"),
            // Far beyond what was told to be the most, the connection ends.
            Err(error) => {
                let is_over = error.is_go_away() || error.is_io();
                assert!(target + field * fields.len() > 50_000 && is_over, "{error}");
                continue;
            }
        }
        // One stream was refused, not the connection.
        assert_eq!(client.get("/").await.status, 200);
    }
    // A gRPC client is told so that it can read it.
    let fields = [("content-type", "application/grpc"), ("te", "trailers")];
    let sent = request("POST", &format!("/{}", "t".repeat(600)), &fields);
    let answer = http2(&ingress).await.try_send(sent, b"", None).await.unwrap();
    assert_eq!((answer.status, &answer.headers["grpc-status"]), (200, &"8".parse().unwrap()));
}

#[tokio::test]
async fn a_body_is_refused_when_it_is_announced_too_long_and_when_it_turns_out_to_be() {
    let (world, app) = (World::new(), App::echo("app"));
    let ingress = limited(&world, "ingress", app.address, &json!({ "request_body_bytes": 1000 }));
    let post = |length: usize| {
        format!(
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n{}",
            "b".repeat(length.min(2000))
        )
    };
    assert_eq!(status_of(&ingress, post(1000)).await, 200);
    let before = app.requests();
    assert_eq!(status_of(&ingress, post(1001)).await, 413);
    assert_eq!(status_of(&ingress, post(1 << 40)).await, 413);
    // Who waits to be asked for it is not asked.
    let expecting =
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1001\r\nExpect: 100-continue\r\n\r\n";
    assert_eq!(status_of(&ingress, expecting).await, 413);
    assert_eq!(app.requests(), before, "what is announced too long never sets out");

    let chunked = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    let chunk = format!("1f4\r\n{}\r\n", "c".repeat(500));
    let whole = format!("{chunked}{chunk}{chunk}0\r\n\r\n");
    assert_eq!(status_of(&ingress, whole).await, 200);
    let mut wire = Wire::to(ingress.address("ingress")).await;
    wire.send(chunked).await;
    for _ in 0..3 {
        wire.send(&chunk).await;
    }
    let answer = wire.response_to("POST").await.unwrap();
    assert_eq!((answer.status, answer.field("connection")), (413, Some("close")));
    wire.end().await;

    let client = http2(&ingress).await;
    let announced = request("POST", "/", &[("content-length", "1001")]);
    assert_eq!(client.try_send(announced, &[b'a'; 1001], None).await.unwrap().status, 413);
    let unannounced = request("POST", "/", &[]);
    assert_eq!(client.try_send(unannounced, &[b'a'; 3000], None).await.unwrap().status, 413);
    assert_eq!(
        client.try_send(request("POST", "/", &[]), &[b'a'; 1000], None).await.unwrap().status,
        200
    );
    let fields = [("content-type", "application/grpc"), ("te", "trailers")];
    let answer = client.try_send(request("POST", "/a/b", &fields), &[0; 1001], None).await.unwrap();
    assert_eq!((answer.status, &answer.headers["grpc-status"]), (200, &"8".parse().unwrap()));
}

#[tokio::test]
async fn an_upstreams_answer_that_is_too_large_is_a_bad_gateway_or_is_cut_off() {
    let world = World::new();
    let app = RawApp::serving(|stream| {
        while let Some(head) = stream.request() {
            let chunk = format!("1f4\r\n{}\r\n", "c".repeat(500));
            let answer = match head.split(' ').nth(1).unwrap() {
                "/head" => format!("A: {}\r\n\r\n", "a".repeat(3000)),
                "/field" => format!("A: {}\r\nContent-Length: 0\r\n\r\n", "a".repeat(600)),
                "/fields" => format!("{}Content-Length: 0\r\n\r\n", "A: b\r\n".repeat(30)),
                "/announced" => format!("Content-Length: 1001\r\n\r\n{}", "a".repeat(1001)),
                "/unannounced" => {
                    format!("Transfer-Encoding: chunked\r\n\r\n{chunk}{chunk}{chunk}0\r\n\r\n")
                }
                _ => format!("Content-Length: 1000\r\n\r\n{}", "a".repeat(1000)),
            };
            stream.send(format!("HTTP/1.1 200 OK\r\n{answer}"));
        }
    });
    let limits = json!({
        "response_head_bytes": 2048, "field_bytes": 500, "fields": 20, "response_body_bytes": 1000,
    });
    let ingress = limited(&world, "ingress", app.address, &limits);
    let door = ingress.address("ingress");
    for (path, status) in
        [("/", 200), ("/head", 502), ("/field", 502), ("/fields", 502), ("/announced", 502)]
    {
        assert_eq!(send(door, "GET", path, &[], "").await.status, status, "{path}");
    }
    let mut wire = Wire::to(door).await;
    wire.send("GET /unannounced HTTP/1.1\r\nHost: a\r\n\r\n").await;
    // What of it had set out by then is a matter of chance.
    assert!(wire.response_to("GET").await.is_none_or(|answer| !answer.whole));
}

#[tokio::test]
async fn who_takes_too_long_is_told_408_or_closed() {
    let (world, app) = (World::new(), App::echo("app"));
    let limits = json!({ "head_seconds": 0.4, "body_seconds": 0.4, "idle_seconds": 0.4 });
    let ingress = limited(&world, "ingress", app.address, &limits);
    let door = ingress.address("ingress");
    let late = async |sent: &str| {
        let mut wire = Wire::to(door).await;
        wire.send(sent).await;
        let answer = wire.response_to("POST").await.expect("an answer");
        assert_eq!((answer.status, answer.field("connection")), (408, Some("close")), "{sent:?}");
        wire.end().await;
    };
    late("GET / HTTP/1.1\r\nHost: a\r\n").await;
    late("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nbod").await;
    late("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nbod").await;
    // Nothing at all, and nothing after an answer: closed without a word.
    let mut silent = Wire::to(door).await;
    silent.end().await;
    let mut idle = Wire::to(door).await;
    assert_eq!(idle.ask("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.status, 200);
    assert_eq!(idle.end().await, End::Clean);

    let client = http2(&ingress).await;
    let (response, _open) = client.open(request("POST", "/", &[]), false).await.unwrap();
    let answer = soon("an answer", response).await.unwrap();
    assert_eq!(answer.status(), 408);
    let fields = [("content-type", "application/grpc"), ("te", "trailers")];
    let client = http2(&ingress).await;
    let (response, _open) = client.open(request("POST", "/a/b", &fields), false).await.unwrap();
    let answer = soon("an answer", response).await.unwrap();
    assert_eq!(
        (answer.status().as_u16(), &answer.headers()["grpc-status"]),
        (200, &"4".parse().unwrap())
    );
}

#[tokio::test]
async fn a_body_that_drips_is_given_up_and_one_that_keeps_up_is_not() {
    let (world, app) = (World::new(), App::echo("app"));
    let limits = json!({ "body_seconds": 1, "request_bytes_per_second": 10_000 });
    let ingress = limited(&world, "ingress", app.address, &limits);
    let mut dripping = TcpStream::connect(ingress.address("ingress")).await.unwrap();
    dripping
        .write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n")
        .await
        .unwrap();
    let (read, mut write) = dripping.into_split();
    let drip = async {
        // Each byte comes well within the time for a further part.
        while write.write_all(b"a").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        std::future::pending::<()>().await;
    };
    let mut wire = Wire::over(tokio::io::join(read, tokio::io::sink()));
    let answer = tokio::select! {
        answer = wire.response_to("POST") => answer.unwrap(),
        () = drip => unreachable!(),
    };
    assert_eq!(answer.status, 408);
    assert_eq!(app.requests(), 1, "it was on its way");

    // Fifty times the rate, for longer than may be waited: pauses are earned.
    let mut steady = Wire::to(ingress.address("ingress")).await;
    steady.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n").await;
    for _ in 0..20 {
        steady.send([b'a'; 5000]).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(steady.response_to("POST").await.unwrap().status, 200);
}

#[tokio::test]
async fn an_answer_that_nobody_takes_is_cut_off_and_slow_upstreams_are_not_to_blame_for_it() {
    let world = World::new();
    let app = RawApp::serving(|stream| {
        while let Some(head) = stream.request() {
            if head.starts_with("GET /slow") {
                // Slower than any rate: but it is not the caller who is waited for.
                stream.send("HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\n");
                for _ in 0..8 {
                    stream.send("a");
                    #[expect(clippy::disallowed_methods, reason = "an app that takes its time")]
                    std::thread::sleep(Duration::from_millis(200));
                }
            } else {
                let length = 64 * 1024 * 1024;
                stream.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n"));
                let piece = vec![b'a'; 64 * 1024];
                for _ in 0..length / piece.len() {
                    stream.send(&piece);
                }
            }
        }
    });
    let limits = json!({ "send_seconds": 0.5, "response_bytes_per_second": 100_000_000 });
    let ingress = limited(&world, "ingress", app.address, &limits);
    let door = ingress.address("ingress");
    let slow = send(door, "GET", "/slow", &[], "").await;
    assert_eq!((slow.status, slow.text().as_str()), (200, "aaaaaaaa"));

    // A caller that takes a little each time: never idle, and far too slow.
    let mut wire = Wire::to(door).await;
    wire.send("GET /large HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!(wire.head().await.unwrap().status, 200);
    let started = Instant::now();
    let mut taken = 0_usize;
    while wire.try_bytes(10_000).await.is_some() {
        taken += 10_000;
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(started.elapsed() < Duration::from_secs(60), "{taken}");
    }
    assert!(taken < 64 * 1024 * 1024, "{taken}");

    // One that opens no window for more.
    let client = http2(&ingress).await;
    let (response, _) = client.open(request("GET", "/large", &[]), true).await.unwrap();
    let mut body = soon("an answer", response).await.unwrap().into_body();
    let error = loop {
        match soon("the end of it", body.data()).await {
            Some(Ok(_)) => {}
            Some(Err(error)) => break error,
            None => panic!("it came whole through a closed window"),
        }
    };
    assert!(error.is_reset(), "{error}");
}

#[tokio::test]
async fn an_upstream_that_is_late_is_a_504_in_both_versions_and_for_grpc() {
    let world = World::new();
    let silent = RawApp::serving(|stream| {
        stream.rest();
    });
    let timeout = json!({ "connect": 5, "send": 5, "read": 0.3 });
    let upstream = json!({ "nodes": { silent.address.to_string(): 1 }, "timeout": timeout });
    let ingress = with_upstream(&world, "ingress", &upstream, &json!({}));
    let answer = send(ingress.address("ingress"), "GET", "/", &[], "").await;
    assert_eq!(answer.status, 504);
    let client = http2(&ingress).await;
    assert_eq!(client.get("/").await.status, 504);
    let fields = [("content-type", "application/grpc"), ("te", "trailers")];
    let answer = client.try_send(request("POST", "/a/b", &fields), b"", None).await.unwrap();
    assert_eq!((answer.status, &answer.headers["grpc-status"]), (200, &"14".parse().unwrap()));
}

#[tokio::test]
async fn a_connection_carries_so_many_requests_and_says_which_is_the_last() {
    let (world, app) = (World::new(), App::echo("app"));
    let ingress = limited(&world, "ingress", app.address, &json!({ "requests_per_connection": 3 }));
    let mut wire = Wire::to(ingress.address("ingress")).await;
    let get = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    for number in 1..=3 {
        let answer = wire.ask(get).await;
        let last = (number == 3).then_some("close");
        assert_eq!((answer.status, answer.field("connection")), (200, last), "{number}");
    }
    assert_eq!(wire.end().await, End::Clean);

    let client = http2(&ingress).await;
    for _ in 0..3 {
        assert_eq!(client.get("/").await.status, 200);
    }
    eventually_async("no further stream", || async {
        client.try_send(request("GET", "/", &[]), b"", None).await.is_err().then_some(())
    })
    .await;
}

/// Is a connection served?
async fn is_served(door: SocketAddr, source: &str) -> Option<Wire> {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(format!("{source}:0").parse().unwrap()).unwrap();
    let mut wire = Wire::over(socket.connect(door).await.ok()?);
    wire.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    wire.response_to("GET").await.map(|answer| {
        assert_eq!(answer.status, 200);
        wire
    })
}

#[tokio::test]
async fn so_many_connections_are_open_in_all_at_a_door_and_from_one_source() {
    let (world, app) = (World::new(), App::echo("app"));
    for (name, limits, others_too) in [
        ("connections", json!({ "connections": 2 }), true),
        ("connections_per_listener", json!({ "connections_per_listener": 2 }), true),
        ("connections_per_source", json!({ "connections_per_source": 2 }), false),
    ] {
        let upstream = json!({ "nodes": { app.address.to_string(): 1 } });
        let resources = json!({ "routes": [{ "id": "1", "uri": "/*", "upstream": upstream }] });
        let ingress = world
            .ingress()
            .named(name)
            .resources(&resources)
            .set("limits", &limits)
            .set("status", &json!("127.0.0.1:0"))
            .set("workers", &json!(2))
            .start();
        let door = ingress.address("ingress");
        let first = is_served(door, "127.0.0.1").await.expect("the first");
        let _second = is_served(door, "127.0.0.1").await.expect("the second");
        assert!(is_served(door, "127.0.0.1").await.is_none(), "{name}: the third");
        assert_eq!(is_served(door, "127.0.0.2").await.is_none(), others_too, "{name}: another");
        drop(first);
        eventually_async("room for one", || is_served(door, "127.0.0.1")).await;
        let metrics = send(ingress.address("status"), "GET", "/metrics", &[], "").await.text();
        let line = format!("wardgate_connections_turned_away_total{{limit=\"{name}\"}} ");
        let count = metrics.lines().find_map(|found| found.strip_prefix(&line));
        assert!(count.is_some_and(|count| count != "0"), "{name}: {metrics}");
    }
}

/// Does a handshake from there go well?
async fn shakes_hands(door: SocketAddr, source: &str) -> bool {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(format!("{source}:0").parse().unwrap()).unwrap();
    let tcp = socket.connect(door).await.unwrap();
    let anybody = wardgate::mtls::OriginConnector::new(None, None).unwrap();
    soon("a handshake", anybody.connect(tcp, "shop.example", Alpn::Http1)).await.is_ok()
}

#[tokio::test]
async fn a_flood_of_handshakes_from_one_address_leaves_the_others_in_peace() {
    let (world, app) = (World::new(), App::echo("app"));
    let certificate = Certificate::of(&["shop.example"]);
    let mut ssl = certificate.resource(&["shop.example"]);
    ssl["id"] = json!("1");
    let upstream = json!({ "nodes": { app.address.to_string(): 1 } });
    let resources = json!({
        "routes": [{ "id": "1", "uri": "/*", "upstream": upstream }], "ssls": [ssl],
    });
    let ingress = world
        .ingress()
        .set("ingress.https", &json!("127.0.0.1:0"))
        .set("limits", &json!({ "handshakes_per_source": 1 }))
        .resources(&resources)
        .start();
    let (plain, door) = (ingress.address_of("ingress", 0), ingress.address_of("ingress", 1));
    eventually_async("the certificate is in force", || async {
        shakes_hands(door, "127.0.0.9").await.then_some(())
    })
    .await;
    // More than any burst, as fast as they come: some are turned away, whoever else comes is not.
    let mut refused = 0;
    for round in 0..50 {
        if !shakes_hands(door, "127.0.0.1").await {
            refused += 1;
        }
        if round == 25 {
            assert!(shakes_hands(door, "127.0.0.2").await);
        }
    }
    assert!(refused > 0);
    assert!(shakes_hands(door, "127.0.0.3").await);
    // The plain door shakes no hands.
    for _ in 0..10 {
        assert!(is_served(plain, "127.0.0.1").await.is_some());
    }
    eventually("a line that says so", || {
        ingress.errors().contains("handshakes_per_source").then_some(())
    });
}

#[tokio::test]
async fn http2_has_as_many_streams_as_the_settings_say_and_who_resets_too_many_is_calmed() {
    let world = World::new();
    let app = App::serving(|_| async {
        tokio::time::sleep(Duration::from_secs(3600)).await;
        http::Response::new(http_body_util::Full::new(Bytes::new()))
    });
    let limits = json!({ "http2": { "streams": 4, "resets": 20 } });
    let ingress = limited(&world, "ingress", app.address, &limits);
    let tcp = TcpStream::connect(ingress.address("ingress")).await.unwrap();
    let (send, connection) = h2::client::handshake(tcp).await.unwrap();
    let mut driver = wardgate::rt::Tasks::new();
    driver.add(async move {
        let _ = connection.await;
    });
    eventually_async("the setting", || async {
        (send.current_max_send_streams() == 4).then_some(())
    })
    .await;

    let client = http2(&ingress).await;
    let ended = async {
        for _ in 0..2000 {
            match client.open(request("GET", "/", &[]), false).await {
                Ok((_, mut stream)) => {
                    // The stream must be there before it is given up.
                    tokio::task::yield_now().await;
                    stream.send_reset(h2::Reason::CANCEL);
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                Err(error) => return error,
            }
        }
        panic!("two thousand streams were given up, and nobody minded");
    };
    let error = soon("the end of patience", ended).await;
    assert!(error.is_go_away() || error.is_io(), "{error}");
}

#[tokio::test]
async fn limits_that_make_no_sense_keep_it_from_starting() {
    let world = World::new();
    for (limits, sentence) in [
        (json!({ "head_bytes": 10 }), "setting limits.head_bytes: 10; expected 1024 to 122880"),
        (json!({ "head_seconds": -1 }), "setting limits.head_seconds: -1; expected seconds"),
        (json!({ "http2": { "streams": 0 } }), "setting limits.http2.streams: 0; expected"),
        (json!({ "head_size": 10 }), "head_size"),
    ] {
        let ended = world.ingress().set("limits", &limits).fails();
        assert!(ended.err.contains(sentence), "{limits}: {}", ended.err);
    }
}
