//! HTTP/1: what is framed well goes through unchanged, in order and in bounded memory; what is not is refused.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use serde_json::json;

use crate::mesh::{DOORS, Door, End, Mesh, RawApp, Wire, field, peak_memory};
use crate::world::{App, PATIENCE, eventually};

#[tokio::test]
async fn a_connection_carries_one_request_after_the_other_and_pipelined_ones_in_order() {
    let app = App::echo("app");
    let mesh = Mesh::before(&format!("http://{}", app.address));
    for door in DOORS {
        let mut wire = mesh.wire(door).await;
        for path in ["/1", "/2?x", "/3"] {
            let answer = wire.ask(format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n")).await;
            assert_eq!((answer.status, answer.json()["path"] == path), (200, true), "{door:?}");
        }
        let pipelined = "\
            POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\none\
            POST /b HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2;x=\"y\"\r\ntw\r\n1\r\no\r\n0\r\nX-Sum: 1\r\n\r\n\
            GET /c HTTP/1.1\r\nHost: a\r\n\r\n\
            PUT /d HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n\
            GET /e HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
        wire.send(pipelined).await;
        for (path, body) in [("/a", "one"), ("/b", "two"), ("/c", ""), ("/d", ""), ("/e", "")] {
            let answer = wire.response_to("GET").await.expect(path).json();
            assert_eq!((&answer["path"], &answer["body"]), (&json!(path), &json!(body)));
            assert_eq!(answer["headers"].get("x-sum"), None, "trailers end with their hop");
        }
        assert_eq!(wire.end().await, End::Clean);
    }
}

#[tokio::test]
async fn a_response_body_arrives_as_it_was_sent_in_each_framing() {
    let app = RawApp::serving(|stream| {
        while let Some(head) = stream.request() {
            let path = head.split(' ').nth(1).unwrap();
            stream.send("HTTP/1.1 200 OK\r\n");
            match path {
                "/length" => stream.send("Content-Length: 5\r\n\r\nhello"),
                "/chunked" => stream.send(
                    "Transfer-Encoding: chunked\r\n\r\n3;a=b\r\nhel\r\n2\r\nlo\r\n0\r\nX-T: 1\r\n\r\n",
                ),
                "/empty" => stream.send("Content-Length: 0\r\n\r\n"),
                "/close" => {
                    stream.send("Connection: close\r\n\r\nhel");
                    return stream.send("lo");
                }
                _ => stream.send("Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
            }
        }
    });
    let mesh = Mesh::before(&app.url());
    for door in DOORS {
        let mut wire = mesh.wire(door).await;
        for (path, length, body) in [
            ("/length", Some("5"), "hello"),
            ("/chunked", None, "hello"),
            ("/empty", Some("0"), ""),
            ("/close", None, "hello"),
            ("/nothing", None, ""),
        ] {
            let answer = wire.ask(format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n")).await;
            assert_eq!((answer.status, answer.text().as_str()), (200, body), "{door:?} {path}");
            assert_eq!(answer.field("content-length"), length, "{door:?} {path}");
            assert!(answer.whole, "{door:?} {path}");
        }
    }
}

#[tokio::test]
async fn answers_without_a_body_leave_the_connection_ready_for_the_next_request() {
    let app = RawApp::serving(|stream| {
        while let Some(head) = stream.request() {
            let mut words = head.split(' ');
            match (words.next().unwrap(), words.next().unwrap()) {
                ("HEAD", _) => stream.send("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"),
                (_, "/204") => stream.send("HTTP/1.1 204 No Content\r\n\r\n"),
                (_, "/304") => {
                    stream.send(
                        "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\nETag: \"x\"\r\n\r\n",
                    );
                }
                _ => stream.send("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"),
            }
        }
    });
    let mesh = Mesh::before(&app.url());
    for door in DOORS {
        let mut wire = mesh.wire(door).await;
        for (request, status, length) in [
            ("HEAD /", 200, Some("5")),
            ("GET /204", 204, None),
            ("GET /304", 304, Some("5")),
            ("GET /", 200, Some("5")),
            ("HEAD /304", 200, Some("5")),
            ("GET /", 200, Some("5")),
        ] {
            let answer = wire.ask(format!("{request} HTTP/1.1\r\nHost: a\r\n\r\n")).await;
            assert_eq!(answer.status, status, "{door:?} {request}");
            assert_eq!(answer.field("content-length"), length, "{door:?} {request}");
        }
    }
    assert!(app.connections() <= 2, "the sidecar reuses its connection to the app");
}

#[tokio::test]
async fn http_1_0_gets_what_it_can_read() {
    let app = RawApp::serving(|stream| {
        while let Some(head) = stream.request() {
            assert!(head.contains(" HTTP/1.1\r\n"), "towards the app it is HTTP/1.1: {head}");
            if head.contains("/chunked") {
                stream.send(
                    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
                );
            } else {
                stream.send("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello");
            }
        }
    });
    let mesh = Mesh::before(&app.url());
    for door in DOORS {
        let mut wire = mesh.wire(door).await;
        let answer = wire.ask("GET / HTTP/1.0\r\nHost: a\r\n\r\n").await;
        assert_eq!((answer.text().as_str(), answer.whole), ("hello", true));
        assert_eq!(wire.end().await, End::Clean, "without keep-alive it ends");

        let mut wire = mesh.wire(door).await;
        let keep = "GET / HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n";
        for _ in 0..2 {
            let answer = wire.ask(keep).await;
            assert_eq!(answer.field("connection"), Some("keep-alive"), "{door:?}");
            assert_eq!(answer.text(), "hello");
        }
        let answer = wire.ask(keep.replace("/ ", "/chunked ")).await;
        assert_eq!(answer.field("transfer-encoding"), None, "no chunks for HTTP/1.0");
        assert_eq!((answer.text().as_str(), answer.whole), ("hello", true));
    }
}

#[tokio::test]
async fn who_expects_100_continue_is_asked_for_the_body_only_when_somebody_reads_it() {
    let app = App::echo("app");
    let mesh = Mesh::before(&format!("http://{}", app.address));
    for door in DOORS {
        let mut wire = mesh.wire(door).await;
        wire.send(
            "POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n",
        )
        .await;
        let asked = Instant::now();
        assert_eq!(wire.head().await.unwrap().status, 100, "{door:?}");
        assert!(asked.elapsed() < Duration::from_secs(5), "{door:?}: {:?}", asked.elapsed());
        wire.send("body").await;
        let answer = wire.response_to("POST").await.unwrap().json();
        assert_eq!(answer["body"], "body", "{door:?}");
        assert_eq!(answer["headers"].get("expect"), None, "it was answered here");
    }
    // No route, so no reader: the final answer comes at once, and the connection cannot go on without the body.
    let ingress = mesh.world.ingress().named("bare").resources(&json!({ "routes": [] })).start();
    let mut wire = Wire::to(ingress.address("ingress")).await;
    let answer = wire
        .ask("POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n")
        .await;
    assert_eq!(answer.status, 404);
    assert_eq!(wire.end().await, End::Clean);
}

#[tokio::test]
async fn interim_answers_come_through_at_once_and_a_flood_of_them_is_a_fault() {
    let (go, wait) = mpsc::channel::<()>();
    let wait = Arc::new(Mutex::new(wait));
    let app = RawApp::serving(move |stream| {
        while let Some(head) = stream.request() {
            if head.contains("/flood") {
                stream.send("HTTP/1.1 102 Processing\r\n\r\n".repeat(9));
            } else {
                stream.send(
                    "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n",
                );
                wait.lock().unwrap().recv_timeout(PATIENCE).unwrap();
            }
            stream.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
        }
    });
    let mesh = Mesh::before(&app.url());
    for door in DOORS {
        let mut wire = mesh.wire(door).await;
        wire.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        let early = wire.head().await.unwrap();
        assert_eq!((early.status, early.field("link")), (103, Some("</a>")), "{door:?}");
        go.send(()).unwrap();
        assert_eq!(wire.response_to("GET").await.unwrap().text(), "ok");
        wire.send("GET /flood HTTP/1.1\r\nHost: a\r\n\r\n").await;
        let last = loop {
            let answer = wire.response_to("GET").await.unwrap();
            if answer.status >= 200 {
                break answer;
            }
        };
        assert_eq!(last.status, 502, "{door:?}");
    }
}

/// A WebSocket in all but its frames: it answers the handshake and then sends back what it gets, in capitals.
fn loud_echo() -> RawApp {
    RawApp::serving(|stream| {
        while let Some(head) = stream.request() {
            if field(&head, "upgrade") != Some("websocket") {
                stream.send("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nplain");
                continue;
            }
            assert!(field(&head, "connection").unwrap().eq_ignore_ascii_case("upgrade"));
            // The first bytes of the new protocol ride behind the answer's head.
            stream.send("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: x\r\n\r\nHI");
            while !stream.buffer.is_empty() || stream.fill() {
                let loud = std::mem::take(&mut stream.buffer).to_ascii_uppercase();
                stream.send(loud);
            }
            return stream.send("BYE");
        }
    })
}

const UPGRADE: &str = "GET /chat HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\nSec-WebSocket-Version: 13\r\n\r\n";

#[tokio::test]
async fn a_websocket_goes_through_both_ways_with_what_came_early_and_half_a_close() {
    let app = loud_echo();
    let mesh = Mesh::before(&app.url());
    for door in DOORS {
        let mut wire = mesh.wire(door).await;
        wire.send(format!("{UPGRADE}early ")).await;
        let answer = wire.head().await.unwrap();
        assert_eq!((answer.status, answer.field("upgrade")), (101, Some("websocket")), "{door:?}");
        assert_eq!(answer.field("connection"), Some("upgrade"));
        assert_eq!(answer.field("sec-websocket-accept"), Some("x"));
        assert_eq!(wire.bytes(8).await, b"HIEARLY ");
        let long = "x".repeat(300_000);
        wire.send(&long).await;
        assert_eq!(wire.bytes(long.len()).await, long.to_uppercase().as_bytes());
        wire.half_close().await;
        assert_eq!(wire.bytes(3).await, b"BYE", "{door:?}");
        assert_eq!(wire.end().await, End::Clean);
    }
}

#[tokio::test]
async fn nothing_but_a_websocket_on_a_route_that_says_so_takes_over_a_connection() {
    let app = loud_echo();
    let mesh = Mesh::before(&app.url());
    let h2c = "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n\r\n";
    let both = UPGRADE.replace("Upgrade: websocket", "Upgrade: websocket, h2c");
    let with_body = UPGRADE.replace("\r\n\r\n", "\r\nContent-Length: 4\r\n\r\nbody");
    let unnamed = UPGRADE.replace("keep-alive, Upgrade", "keep-alive");
    let old = UPGRADE.replace("HTTP/1.1", "HTTP/1.0");
    for door in DOORS {
        for request in [h2c, &both, &with_body, &unnamed, &old] {
            let answer = mesh.wire(door).await.ask(request).await;
            assert_eq!(
                (answer.status, answer.text().as_str()),
                (200, "plain"),
                "{door:?} {request}"
            );
        }
    }
    let plain = Mesh::with(&app.url(), &json!({}), &json!({}));
    for door in [Door::Outbound, Door::Ingress] {
        let answer = plain.wire(door).await.ask(UPGRADE).await;
        assert_eq!((answer.status, answer.text().as_str()), (200, "plain"), "{door:?}");
    }
}

#[tokio::test]
async fn a_switch_that_nobody_asked_for_is_a_fault_of_the_upstream() {
    let app = RawApp::answering(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
        false,
    );
    let mesh = Mesh::before(&app.url());
    for door in DOORS {
        let answer = mesh.wire(door).await.ask("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert_eq!(answer.status, 502, "{door:?}");
    }
}

#[tokio::test]
async fn a_response_that_breaks_off_is_never_taken_for_whole() {
    let (go, wait) = mpsc::channel::<()>();
    let wait = Arc::new(Mutex::new(wait));
    let app = RawApp::serving(move |stream| {
        let Some(head) = stream.request() else { return };
        let path = head.split(' ').nth(1).unwrap();
        stream.send("HTTP/1.1 200 OK\r\n");
        match path {
            "/length" => stream.send("Content-Length: 10\r\n\r\nhello"),
            "/inside" => stream.send("Transfer-Encoding: chunked\r\n\r\n9\r\nhello"),
            "/reset" => stream.send("Connection: close\r\n\r\nhello"),
            _ => stream.send("Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"),
        }
        // Not before the client has the first bytes: else it may get no answer at all.
        wait.lock().unwrap().recv_timeout(PATIENCE).unwrap();
        match path {
            "/reset" => stream.reset(),
            "/framing" => stream.send("xyz\r\n"),
            _ => {}
        }
    });
    let mesh = Mesh::before(&app.url());
    for door in DOORS {
        for version in ["1.1", "1.0"] {
            for path in ["/length", "/chunked", "/inside", "/framing", "/reset"] {
                let what = format!("{door:?} {path} HTTP/{version}");
                let mut wire = mesh.wire(door).await;
                wire.send(format!("GET {path} HTTP/{version}\r\nHost: a\r\n\r\n")).await;
                let head = wire.head().await.expect(&what);
                let chunked = head.field("transfer-encoding").is_some();
                let first = if chunked { "5\r\nhello\r\n" } else { "hello" };
                assert_eq!(wire.bytes(first.len()).await, first.as_bytes(), "{what}");
                go.send(()).unwrap();
                let end = wire.end().await;
                let told = chunked || head.field("content-length") == Some("10");
                assert!(told || end == End::Cut, "{what}: it looks whole");
            }
        }
    }
}

#[tokio::test]
async fn a_request_that_breaks_off_never_reaches_the_app_as_whole() {
    let (seen, sees) = mpsc::channel();
    let app = RawApp::serving(move |stream| {
        let Some(head) = stream.head() else { return };
        seen.send(head).unwrap();
        seen.send(String::from_utf8(stream.rest()).unwrap()).unwrap();
    });
    let mesh = Mesh::before(&app.url());
    for door in DOORS {
        for (fields, body) in [
            ("Content-Length: 10", "hello"),
            ("Transfer-Encoding: chunked", "5\r\nhello\r\n"),
            ("Transfer-Encoding: chunked", "9\r\nhello"),
        ] {
            let mut wire = mesh.wire(door).await;
            wire.send(format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\n{body}")).await;
            let head = sees.recv_timeout(PATIENCE).unwrap();
            assert!(head.starts_with("POST / "), "{head}");
            wire.half_close().await;
            let rest = sees.recv_timeout(PATIENCE).unwrap();
            assert!(!rest.contains("0\r\n\r\n") && rest.len() < 15, "{door:?} {fields}: {rest:?}");
            let answer = wire.response_to("POST").await;
            assert!(answer.is_none_or(|answer| answer.status >= 400), "{door:?} {fields}");
        }
    }
}

#[tokio::test]
async fn a_client_that_leaves_frees_the_app_at_once() {
    let (seen, sees) = mpsc::channel();
    let app = RawApp::serving(move |stream| {
        let Some(head) = stream.request() else { return };
        if head.contains("/streaming") {
            stream.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n");
        }
        seen.send("asked").unwrap();
        assert!(stream.rest().is_empty());
        seen.send("free").unwrap();
    });
    let mesh = Mesh::before(&app.url());
    for door in DOORS {
        for path in ["/waiting", "/streaming"] {
            let mut wire = mesh.wire(door).await;
            wire.send(format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n")).await;
            assert_eq!(sees.recv_timeout(PATIENCE), Ok("asked"), "{door:?} {path}");
            if path == "/streaming" {
                assert_eq!(wire.head().await.unwrap().status, 200);
                assert_eq!(wire.bytes(10).await, b"5\r\nhello\r\n");
            }
            drop(wire);
            assert_eq!(sees.recv_timeout(PATIENCE), Ok("free"), "{door:?} {path}");
        }
    }
}

/// Reads a response body of `total` zeros and counts it; the heads are read already.
async fn swallow(wire: &mut Wire, total: usize) {
    let mut left = total;
    while left > 0 {
        let count = left.min(1 << 20);
        assert!(wire.bytes(count).await.iter().all(|byte| *byte == 0));
        left -= count;
    }
}

const LARGE: usize = 100 << 20;

#[tokio::test]
async fn a_hundred_mebibytes_stream_both_ways_in_bounded_memory() {
    let app = RawApp::serving(|stream| {
        while let Some(head) = stream.head() {
            if head.starts_with("PUT") {
                let mut left = LARGE;
                while left > 0 && (!stream.buffer.is_empty() || stream.fill()) {
                    left -= stream.buffer.len();
                    stream.buffer.clear();
                }
                stream.send(format!("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n{}", left.min(9)));
                continue;
            }
            stream.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {LARGE}\r\n\r\n"));
            let piece = vec![0; 1 << 20];
            for _ in 0..LARGE / piece.len() {
                stream.send(&piece);
            }
        }
    });
    let mesh = Mesh::before(&app.url());
    let before = [peak_memory(&mesh.shop), peak_memory(&mesh.billing)];
    let mut wire = mesh.wire(Door::Outbound).await;
    wire.send(format!("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: {LARGE}\r\n\r\n")).await;
    let piece = vec![0; 1 << 20];
    for _ in 0..LARGE / piece.len() {
        wire.send(&piece).await;
    }
    assert_eq!(wire.response_to("PUT").await.unwrap().text(), "0");
    wire.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!(wire.head().await.unwrap().status, 200);
    swallow(&mut wire, LARGE).await;
    for (process, before) in [(&mesh.shop, before[0]), (&mesh.billing, before[1])] {
        let grown = peak_memory(process).saturating_sub(before);
        assert!(grown < 16 * 1024, "{} grew by {grown} KiB", process.name);
    }
}

#[tokio::test]
async fn a_client_that_reads_slowly_slows_the_app_down_and_costs_no_memory() {
    let sent = Arc::new(AtomicUsize::new(0));
    let counted = sent.clone();
    let app = RawApp::serving(move |stream| {
        let Some(head) = stream.request() else { return };
        let chunked = head.contains("/chunked");
        let framing =
            if chunked { "Transfer-Encoding: chunked" } else { "Content-Length: 1099511627776" };
        stream.send(format!("HTTP/1.1 200 OK\r\n{framing}\r\n\r\n"));
        let mut piece = if chunked { b"10000\r\n".to_vec() } else { Vec::new() };
        piece.extend_from_slice(&[0; 65_536]);
        if chunked {
            piece.extend_from_slice(b"\r\n");
        }
        while std::io::Write::write_all(&mut stream.tcp, &piece).is_ok() {
            counted.fetch_add(65_536, Ordering::SeqCst);
        }
    });
    let mesh = Mesh::before(&app.url());
    for door in [Door::Outbound, Door::Inbound] {
        for path in ["/length", "/chunked"] {
            let before = [peak_memory(&mesh.shop), peak_memory(&mesh.billing)];
            sent.store(0, Ordering::SeqCst);
            let mut wire = mesh.wire(door).await;
            wire.send(format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n")).await;
            assert_eq!(wire.head().await.unwrap().status, 200);
            // Nobody reads: the app comes to a stop once the buffers on the way are full.
            let mut last = (0, Instant::now());
            let stopped = eventually("the app stops", || {
                let now = sent.load(Ordering::SeqCst);
                assert!(now < 128 << 20, "{door:?} {path}: the app could send {now} bytes");
                if now != last.0 {
                    last = (now, Instant::now());
                }
                (now > 0 && last.1.elapsed() > Duration::from_millis(500)).then_some(now)
            });
            swallow_some(&mut wire, stopped + (8 << 20)).await;
            assert!(sent.load(Ordering::SeqCst) > stopped, "{door:?} {path}: it goes on");
            for (process, before) in [(&mesh.shop, before[0]), (&mesh.billing, before[1])] {
                let grown = peak_memory(process).saturating_sub(before);
                assert!(grown < 16 * 1024, "{door:?} {path}: {} grew by {grown} KiB", process.name);
            }
        }
    }
}

/// Reads so many bytes, whatever they are.
async fn swallow_some(wire: &mut Wire, total: usize) {
    let mut left = total;
    while left > 0 {
        let count = left.min(1 << 20);
        wire.bytes(count).await;
        left -= count;
    }
}

#[tokio::test]
async fn an_answer_before_the_end_of_the_body_arrives_and_ends_the_connection() {
    let app = RawApp::serving(|stream| {
        if stream.head().is_some() {
            stream.send("HTTP/1.1 413 Content Too Large\r\nContent-Length: 5\r\n\r\nlarge");
            stream.rest();
        }
    });
    let mesh = Mesh::before(&app.url());
    for door in DOORS {
        let mut wire = mesh.wire(door).await;
        wire.send(format!("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: {LARGE}\r\n\r\n")).await;
        wire.send(vec![0; 4 << 20]).await;
        let answer = wire.response_to("PUT").await.expect("the answer arrives");
        assert_eq!((answer.status, answer.text().as_str(), answer.whole), (413, "large", true));
        // What would follow is the rest of the body: it must never be read as a request.
        wire.send("GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n").await;
        wire.end().await;
    }
}

/// Requests that RFC 9112 calls invalid or ambiguous, and what answers them. By zero-trust's numbers where it has one.
fn hostile_heads() -> Vec<(&'static str, u16, String)> {
    let post =
        |fields: &str| format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\n0\r\n\r\nabcde");
    let get = |line: &str, host: &str| format!("{line} HTTP/1.1\r\nHost: {host}\r\n\r\n");
    let many = "A: 1\r\n".repeat(5000);
    vec![
        ("1 both framings", 400, post("Content-Length: 5\r\nTransfer-Encoding: chunked")),
        ("1 in the other order", 400, post("Transfer-Encoding: chunked\r\nContent-Length: 5")),
        ("2 two lengths", 400, post("Content-Length: 5\r\nContent-Length: 6")),
        ("3 two equal lengths", 400, post("Content-Length: 5\r\nContent-Length: 5")),
        ("3 a list of lengths", 400, post("Content-Length: 5, 5")),
        ("4 a plus", 400, post("Content-Length: +5")),
        ("4 a minus", 400, post("Content-Length: -5")),
        ("4 hexadecimal", 400, post("Content-Length: 0x5")),
        ("4 an underscore", 400, post("Content-Length: 5_0")),
        ("4 no number", 400, post("Content-Length:")),
        ("4 too large a number", 400, post("Content-Length: 18446744073709551616")),
        ("5 twice", 400, post("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked")),
        ("5 identity first", 400, post("Transfer-Encoding: identity, chunked")),
        ("5 gzip last", 400, post("Transfer-Encoding: chunked, gzip")),
        ("5 gzip first", 400, post("Transfer-Encoding: gzip, chunked")),
        ("5 another coding", 400, post("Transfer-Encoding: xchunked")),
        ("5 a tab behind", 400, post("Transfer-Encoding: Chunked\t")),
        ("5 quoted", 400, post("Transfer-Encoding: \"chunked\"")),
        ("5 a vertical tab", 400, post("Transfer-Encoding: \x0bchunked")),
        ("8 a bare LF", 400, "GET / HTTP/1.1\nHost: a\r\n\r\n".to_owned()),
        ("8 a bare LF before it", 400, "\nGET / HTTP/1.1\r\nHost: a\r\n\r\n".to_owned()),
        ("8 a bare LF at the end", 400, "GET / HTTP/1.1\r\nHost: a\r\n\n".to_owned()),
        ("8 a bare CR", 400, "GET / HTTP/1.1\r\nHost: a\r\nA: 1\rB: 2\r\n\r\n".to_owned()),
        ("8 a folded line", 400, post("A: 1\r\n folded")),
        ("8 a folded first line", 400, "GET / HTTP/1.1\r\n Host: a\r\n\r\n".to_owned()),
        ("8 a space before the colon", 400, post("Content-Length : 5")),
        (
            "10 chunks in 1.0",
            400,
            "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".to_owned(),
        ),
        ("13 CONNECT", 405, get("CONNECT a:80", "a:80")),
        ("13 CONNECT with a path", 400, get("CONNECT /", "a")),
        ("13 CONNECT without a port", 400, get("CONNECT a", "a")),
        ("13 CONNECT to another host", 400, get("CONNECT a:80", "b:80")),
        (
            "13 CONNECT with a body",
            400,
            "CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\nContent-Length: 1\r\n\r\na".to_owned(),
        ),
        ("20 another host in the line", 400, get("GET http://b/", "a")),
        ("20 another port in the line", 400, get("GET http://a:81/", "a")),
        ("20 a user in the line", 400, get("GET http://u@a/", "a")),
        ("21 no Host", 400, "GET / HTTP/1.1\r\n\r\n".to_owned()),
        ("21 two Hosts", 400, "GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n".to_owned()),
        ("22 a user", 400, get("GET /", "u@a")),
        ("22 a space", 400, get("GET /", "a b")),
        ("22 a comma", 400, get("GET /", "a,b")),
        ("22 a control byte", 400, get("GET /", "a\x01")),
        ("22 a path", 400, get("GET /", "a/b")),
        ("22 a port that is none", 400, get("GET /", "a:b")),
        ("22 a port too large", 400, get("GET /", "a:65536")),
        ("23 a name that is no token", 400, post("A(b): 1")),
        ("23 a name with a space", 400, post("A b: 1")),
        ("23 no name", 400, post(": 1")),
        ("23 no colon", 400, post("A")),
        ("23 NUL in a value", 400, post("A: a\0b")),
        ("48 a fragment", 400, get("GET /a#b", "a")),
        ("50 a broken escape", 400, get("GET /%zz", "a")),
        ("50 %u", 400, get("GET /%u002f", "a")),
        ("50 an escaped NUL", 400, get("GET /a%00b", "a")),
        ("50 a raw byte", 400, get("GET /ä", "a")),
        ("115 a huge value", 431, post(&format!("A: {}", "a".repeat(100_000)))),
        ("115 5000 fields", 431, format!("GET / HTTP/1.1\r\nHost: a\r\n{many}\r\n")),
        ("a target without slash", 400, get("GET admin", "a")),
        ("a star for GET", 400, get("GET *", "a")),
        ("two spaces", 400, get("GET  /", "a")),
        ("no method", 400, get(" /", "a")),
        ("no version", 400, "GET /\r\n\r\n".to_owned()),
        ("another version", 505, "GET / HTTP/2.0\r\nHost: a\r\n\r\n".to_owned()),
        ("lower case", 505, "GET / http/1.1\r\nHost: a\r\n\r\n".to_owned()),
        ("an unknown expectation", 417, post("Expect: magic")),
        ("TLS on the plain door", 400, "\x16\x03\x01\0\u{0}\n\n\n\n".to_owned()),
    ]
}

#[tokio::test]
async fn a_head_that_can_be_read_in_two_ways_is_refused_and_ends_the_connection() {
    let app = App::echo("app");
    let mesh = Mesh::before(&format!("http://{}", app.address));
    for door in DOORS {
        for (name, status, bytes) in hostile_heads() {
            let mut wire = mesh.wire(door).await;
            wire.send(&bytes).await;
            let answer = wire.response_to("GET").await;
            let answer = answer.unwrap_or_else(|| panic!("{door:?} {name}: no answer"));
            assert_eq!(answer.status, status, "{door:?} {name}: {}", answer.text());
            assert_eq!(answer.field("connection"), Some("close"), "{door:?} {name}");
            wire.end().await;
        }
    }
    assert_eq!(app.requests(), 0, "none of it reached the app");
}

#[tokio::test]
async fn a_body_that_breaks_its_framing_is_refused_and_never_whole_for_the_app() {
    let (seen, sees) = mpsc::channel();
    let app = RawApp::serving(move |stream| {
        if stream.head().is_some() {
            seen.send(String::from_utf8(stream.rest()).unwrap()).unwrap();
        }
    });
    let mesh = Mesh::before(&app.url());
    let long = format!("1;{}\r\na\r\n0\r\n\r\n", "e".repeat(5000));
    let trailers = format!("1\r\na\r\n0\r\nA: {}\r\n\r\n", "a".repeat(20_000));
    for door in DOORS {
        for (name, body) in [
            ("6 a size of 17 digits", "10000000000000000\r\na\r\n0\r\n\r\n"),
            ("6 a size beyond 63 bits", "ffffffffffffffff\r\na\r\n0\r\n\r\n"),
            ("a sign", "+1\r\na\r\n0\r\n\r\n"),
            ("no digit", "\r\na\r\n0\r\n\r\n"),
            ("a prefix", "0x1\r\na\r\n0\r\n\r\n"),
            ("7 a long extension", &long),
            ("7 a bare LF in an extension", "1;a\nb\r\na\r\n0\r\n\r\n"),
            ("a bare LF", "1\na\r\n0\r\n\r\n"),
            ("data without end", "1\r\nab\r\n0\r\n\r\n"),
            ("trailers without bound", &trailers),
            ("a trailer that is none", "1\r\na\r\n0\r\nA b: 1\r\n\r\n"),
        ] {
            let mut wire = mesh.wire(door).await;
            let head = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
            wire.send(format!("{head}{body}GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n")).await;
            let answer = wire.response_to("POST").await;
            let answer = answer.unwrap_or_else(|| panic!("{door:?} {name}: no answer"));
            assert_eq!(answer.status, 400, "{door:?} {name}");
            wire.end().await;
            // The app may have seen the start of it, but no end.
            while let Ok(rest) = sees.try_recv() {
                assert!(!rest.contains("0\r\n\r\n"), "{door:?} {name}: {rest:?}");
            }
        }
    }
}

#[tokio::test]
async fn a_response_that_breaks_the_rules_is_a_bad_gateway_and_its_connection_is_not_used_again() {
    let app = RawApp::serving(|stream| {
        if let Some(head) = stream.request() {
            let number: usize = field(&head, "x-case").unwrap().parse().unwrap();
            stream.send(HOSTILE_RESPONSES[number].1);
            stream.rest();
        }
    });
    let mesh = Mesh::before(&app.url());
    for door in DOORS {
        let mut wire = mesh.wire(door).await;
        for (number, (name, _)) in HOSTILE_RESPONSES.iter().enumerate() {
            let before = app.connections();
            // A method that is not tried again: each answer is the app's first and only one.
            let request = format!("POST / HTTP/1.1\r\nHost: a\r\nX-Case: {number}\r\n\r\n");
            let answer = wire.ask(request).await;
            assert_eq!(answer.status, 502, "{door:?} {name}");
            assert_eq!(app.connections(), before + 1, "{door:?} {name}");
        }
    }
}

const HOSTILE_RESPONSES: &[(&str, &str)] = &[
    (
        "17 both framings",
        "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ),
    ("two lengths", "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabc"),
    ("a length that is none", "HTTP/1.1 200 OK\r\nContent-Length: 3a\r\n\r\nabc"),
    ("another coding", "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
    ("chunks in 1.0", "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    ("a folded line", "HTTP/1.1 200 OK\r\nA: 1\r\n 2\r\nContent-Length: 0\r\n\r\n"),
    ("a bare LF", "HTTP/1.1 200 OK\nContent-Length: 0\r\n\r\n"),
    ("a NUL", "HTTP/1.1 200 OK\r\nA: \0\r\nContent-Length: 0\r\n\r\n"),
    ("a status that is none", "HTTP/1.1 99 Odd\r\nContent-Length: 0\r\n\r\n"),
    ("another protocol", "SSH-2.0-OpenSSH_9.2\r\n\r\n"),
    ("HTTP/0.9", "<html>hello</html>\r\n\r\n"),
];

#[tokio::test]
async fn a_body_behind_an_answer_without_one_is_nobodys_answer() {
    let app = RawApp::serving(|stream| {
        while let Some(head) = stream.request() {
            match head.split(' ').next().unwrap() {
                "HEAD" => stream.send("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison"),
                _ => stream.send("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nclean"),
            }
        }
    });
    let mesh = Mesh::before(&app.url());
    for door in DOORS {
        let mut wire = mesh.wire(door).await;
        for _ in 0..5 {
            assert_eq!(wire.ask("HEAD / HTTP/1.1\r\nHost: a\r\n\r\n").await.status, 200);
            let answer = wire.ask("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
            assert_eq!(answer.text(), "clean", "{door:?}");
        }
    }
}

#[tokio::test]
async fn the_absolute_form_and_options_for_the_whole_server_are_understood() {
    let app = App::echo("app");
    let mesh = Mesh::before(&format!("http://{}", app.address));
    for door in DOORS {
        let mut wire = mesh.wire(door).await;
        let answer =
            wire.ask("GET http://A:80/x?y=%20 HTTP/1.1\r\nHost: a:80\r\n\r\n").await.json();
        assert_eq!(
            (&answer["path"], &answer["headers"]["host"]),
            (&json!("/x?y=%20"), &json!("A:80"))
        );
        let answer = wire.ask("FROB /a;b=c//d/../e HTTP/1.1\r\nHost: a\r\n\r\n").await.json();
        assert_eq!(
            (&answer["method"], &answer["path"]),
            (&json!("FROB"), &json!("/a;b=c//d/../e"))
        );
    }
}

/// The one test that has to wait: half a minute for a head is what the program promises.
#[tokio::test]
async fn who_never_ends_what_it_began_is_told_so_or_closed_in_time() {
    let app = App::echo("app");
    let mesh = Mesh::before(&format!("http://{}", app.address));
    let started = Instant::now();
    let (mut head, mut dripping) =
        (mesh.wire(Door::Inbound).await, mesh.wire(Door::Outbound).await);
    let mut preface = mesh.wire(Door::Ingress).await;
    let mut silent = mesh.wire(Door::Ingress).await;
    let mut handshake = Wire::to(mesh.address(Door::Inbound)).await;
    head.send("GET / HTTP/1.1\r\nHost: a\r\n").await;
    dripping.send("GET / HTTP/1.1\r\n").await;
    preface.send("PRI * HTTP/2.0\r\n").await;
    handshake.send([0x16, 3, 1]).await;
    handshake.end().await;
    assert!(started.elapsed() < Duration::from_secs(15), "a handshake has less time");
    while started.elapsed() < Duration::from_secs(25) {
        dripping.send("A: b\r\n").await;
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    // More time has passed than is left: nobody's patience ends before the program's.
    for wire in [&mut head, &mut dripping] {
        let answer = wire.response_to("GET").await.expect("an answer");
        assert_eq!((answer.status, answer.field("connection")), (408, Some("close")));
        wire.end().await;
    }
    preface.end().await;
    silent.end().await;
    let took = started.elapsed();
    assert!((Duration::from_secs(29)..Duration::from_secs(50)).contains(&took), "{took:?}");
    assert_eq!(app.requests(), 0);
}

#[tokio::test]
async fn thousands_of_pipelined_requests_are_answered_in_order_in_bounded_memory() {
    let app = App::echo("app");
    let mesh = Mesh::before(&format!("http://{}", app.address));
    let before = [peak_memory(&mesh.shop), peak_memory(&mesh.billing)];
    let (reads, mut writes) =
        tokio::io::split(mesh.stream(Door::Outbound, wardgate::mtls::Alpn::Http1).await);
    let all: String =
        (0..5000).map(|number| format!("GET /{number} HTTP/1.1\r\nHost: a\r\n\r\n")).collect();
    let send = async { tokio::io::AsyncWriteExt::write_all(&mut writes, all.as_bytes()).await };
    let read = async {
        let mut wire = Wire::over(tokio::io::join(reads, tokio::io::sink()));
        for number in 0..5000 {
            let answer = wire.response_to("GET").await.unwrap().json();
            assert_eq!(answer["path"], format!("/{number}"));
        }
    };
    let (sent, ()) = tokio::join!(send, read);
    sent.unwrap();
    for (process, before) in [(&mesh.shop, before[0]), (&mesh.billing, before[1])] {
        let grown = peak_memory(process).saturating_sub(before);
        assert!(grown < 8 * 1024, "{} grew by {grown} KiB", process.name);
    }
}

#[tokio::test]
async fn no_bytes_at_all_end_the_process_or_reach_the_app_by_chance() {
    // A head may be passed on before the bytes after it show that they are none; a whole request must be none by chance.
    let whole = Arc::new(AtomicUsize::new(0));
    let counted = whole.clone();
    let app = App::serving(move |request: Request<Incoming>| {
        let counted = counted.clone();
        async move {
            let path = request.uri().path().to_owned();
            if request.into_body().collect().await.is_ok() {
                counted.fetch_add(1, Ordering::Relaxed);
            }
            Response::new(Full::new(Bytes::from(path)))
        }
    });
    let mesh = Mesh::before(&format!("http://{}", app.address));
    let mut random = fastrand::Rng::with_seed(7);
    let starts: [&[u8]; 6] = [
        b"",
        b"GET / HTTP/1.1\r\nHost: a\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0\0\0\x10\x01\x05\0\0\0\x01",
        b"\x16\x03\x01",
    ];
    for door in [Door::Outbound, Door::Ingress, Door::Inbound] {
        for round in 0..120 {
            let mut wire = match (door, round % 2) {
                // Half of them behind a handshake.
                (Door::Inbound, 0) => Wire::to(mesh.address(door)).await,
                _ => mesh.wire(door).await,
            };
            wire.send(starts[round % starts.len()]).await;
            let count = random.usize(1..600);
            wire.send((0..count).map(|_| random.u8(..)).collect::<Vec<u8>>()).await;
            wire.half_close().await;
            while wire.try_bytes(1).await.is_some() {}
        }
        let answer = mesh.wire(door).await.ask("GET /well HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert_eq!(answer.text(), "/well", "{door:?}");
    }
    assert_eq!(whole.load(Ordering::Relaxed), 3);
}
