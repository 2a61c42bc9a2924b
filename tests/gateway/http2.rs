//! HTTP/2: many streams share a connection, each keeps its own pace and its own end, and none can harm the others.

use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::client::SendRequest;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, Request, Response};
use serde_json::{Value, json};
use wardgate::mtls::Alpn;

use crate::mesh::{DOORS, Door, Mesh, RawApp, Wire, peak_memory};
use crate::world::{App, PATIENCE, World, send, soon};

/// A client of one HTTP/2 connection.
#[derive(Clone)]
pub(crate) struct Client {
    send: SendRequest<Bytes>,
    _driver: Arc<wardgate::rt::Tasks>,
}

/// A response, read to its end.
#[derive(Debug)]
pub(crate) struct Whole {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Vec<u8>,
    pub(crate) trailers: HeaderMap,
}

impl Whole {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("no JSON: {self:?}"))
    }
}

impl Client {
    pub(crate) async fn to(mesh: &Mesh, door: Door) -> Self {
        let stream = mesh.stream(door, Alpn::Http2).await;
        Self::over(stream).await
    }

    pub(crate) async fn over<S: crate::mesh::Stream + 'static>(stream: S) -> Self {
        let mut builder = h2::client::Builder::new();
        // As lawful clients do while they do not know the server's limit.
        builder.initial_max_send_streams(100);
        let (send, connection) = builder.handshake(stream).await.unwrap();
        let mut driver = wardgate::rt::Tasks::new();
        driver.add(async move {
            let _ = connection.await;
        });
        Self { send, _driver: Arc::new(driver) }
    }

    /// Opens a stream.
    pub(crate) async fn open(
        &self,
        request: Request<()>,
        ended: bool,
    ) -> Result<(h2::client::ResponseFuture, SendStream<Bytes>), h2::Error> {
        let mut ready = soon("room for a stream", self.send.clone().ready()).await?;
        ready.send_request(request, ended)
    }

    pub(crate) async fn try_send(
        &self,
        request: Request<()>,
        body: &[u8],
        trailers: Option<HeaderMap>,
    ) -> Result<Whole, h2::Error> {
        let ended = body.is_empty() && trailers.is_none();
        let (response, mut stream) = self.open(request, ended).await?;
        if !ended {
            let sending = push(&mut stream, Bytes::copy_from_slice(body), trailers.is_none());
            let _ = soon("the body taken", sending).await;
            if let Some(trailers) = trailers {
                let _ = stream.send_trailers(trailers);
            }
        }
        let (head, mut body) = soon("a response", response).await?.into_parts();
        let mut whole = Whole {
            status: head.status.as_u16(),
            headers: head.headers,
            body: vec![],
            trailers: HeaderMap::new(),
        };
        pull(&mut body, &mut whole.body).await?;
        if let Some(trailers) = soon("trailers", body.trailers()).await? {
            whole.trailers = trailers;
        }
        Ok(whole)
    }

    pub(crate) async fn get(&self, path: &str) -> Whole {
        self.try_send(request("GET", path, &[]), b"", None).await.unwrap()
    }
}

pub(crate) fn request(method: &str, path: &str, fields: &[(&str, &str)]) -> Request<()> {
    let uri = format!("http://a{path}");
    let mut request = Request::builder().method(method).uri(uri).version(http::Version::HTTP_2);
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    request.body(()).unwrap()
}

/// Sends bytes at the pace that the other end takes them.
async fn push(
    stream: &mut SendStream<Bytes>,
    mut body: Bytes,
    last: bool,
) -> Result<(), h2::Error> {
    while !body.is_empty() {
        stream.reserve_capacity(body.len());
        let room = poll_fn(|context| stream.poll_capacity(context)).await;
        let room = room.unwrap_or(Err(Reason::STREAM_CLOSED.into()))?;
        let piece = body.split_to(room.min(body.len()));
        stream.send_data(piece, last && body.is_empty())?;
    }
    Ok(())
}

/// Reads a body to its end.
async fn pull(stream: &mut RecvStream, into: &mut Vec<u8>) -> Result<(), h2::Error> {
    while let Some(piece) = soon("more of the body", stream.data()).await {
        let piece = piece?;
        stream.flow_control().release_capacity(piece.len())?;
        into.extend_from_slice(&piece);
    }
    Ok(())
}

/// An app on HTTP/2 that has each stream in its own hands.
pub(crate) struct H2App {
    pub(crate) address: SocketAddr,
    _stop: tokio::sync::oneshot::Sender<()>,
}

impl H2App {
    pub(crate) fn serving<F, R>(answer: F) -> Self
    where
        F: Fn(Request<RecvStream>, SendResponse<Bytes>) -> R + Clone + Send + Sync + 'static,
        R: Future<Output = ()> + Send + 'static,
    {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, mut stopped) = tokio::sync::oneshot::channel::<()>();
        std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                let mut connections = wardgate::rt::Tasks::new();
                loop {
                    let tcp = tokio::select! {
                        _ = &mut stopped => return,
                        accepted = listener.accept() => accepted.unwrap().0,
                    };
                    let answer = answer.clone();
                    connections.add(async move {
                        let Ok(mut connection) = h2::server::handshake(tcp).await else { return };
                        let mut streams = wardgate::rt::Tasks::new();
                        while let Some(Ok((request, respond))) = connection.accept().await {
                            streams.add(answer(request, respond));
                        }
                    });
                }
            });
        });
        Self { address, _stop: stop }
    }

    pub(crate) fn url(&self) -> String {
        format!("grpc://{}", self.address)
    }
}

fn ok() -> Response<()> {
    Response::new(())
}

#[tokio::test]
async fn requests_reach_apps_of_both_versions_whole_and_answers_come_back() {
    let app = App::echo("app");
    for (scheme, version) in [("http", "HTTP/1.1"), ("grpc", "HTTP/2.0")] {
        let mesh = Mesh::before(&format!("{scheme}://{}", app.address));
        for door in DOORS {
            let client = Client::to(&mesh, door).await;
            let fields = [
                ("x-a", "1"),
                ("x-a", "2"),
                ("cookie", "a=b"),
                ("cookie", "c=d"),
                ("te", "trailers"),
            ];
            let asked = request("POST", "/x/%20?y", &fields);
            let mut trailers = HeaderMap::new();
            trailers.insert("x-sum", "7".parse().unwrap());
            let answer = client.try_send(asked, b"body", Some(trailers)).await.unwrap();
            assert_eq!(answer.status, 200, "{scheme} {door:?}");
            let echo = answer.json();
            assert_eq!(echo["version"], version, "{scheme} {door:?}");
            assert_eq!((&echo["method"], &echo["path"]), (&json!("POST"), &json!("/x/%20?y")));
            assert_eq!((&echo["body"], &echo["headers"]["x-a"]), (&json!("body"), &json!("1, 2")));
            assert_eq!(echo["headers"]["cookie"], "a=b; c=d");
            assert_eq!(echo["headers"]["te"], "trailers", "{scheme} {door:?}");
            let caller = if door == Door::Ingress { "/wardgate/ingress" } else { "/shop" };
            let certificate = echo["headers"]["x-forwarded-client-cert"].as_str().unwrap();
            assert!(certificate.ends_with(&format!("URI={}", mesh.world.id(caller))));
        }
    }
}

#[tokio::test]
async fn http_1_1_callers_reach_an_app_of_http_2() {
    let app = App::echo("app");
    // Between the sidecars as well, where the upstream says so.
    for upstream in [json!({}), json!({ "scheme": "grpc" })] {
        let mesh = Mesh::with(&format!("grpc://{}", app.address), &json!({}), &upstream);
        for door in DOORS {
            let mut wire = mesh.wire(door).await;
            for body in ["", "chunked"] {
                let framing = if body.is_empty() { "" } else { "Transfer-Encoding: chunked\r\n" };
                let body = if body.is_empty() { "" } else { "7\r\nchunked\r\n0\r\n\r\n" };
                let asked = format!("POST /p HTTP/1.1\r\nHost: a\r\n{framing}\r\n{body}");
                let answer = wire.ask(asked).await.json();
                assert_eq!(answer["version"], "HTTP/2.0", "{door:?}");
                assert_eq!(answer["body"].as_str().unwrap().is_empty(), body.is_empty());
            }
        }
    }
}

#[tokio::test]
async fn a_thousand_streams_at_once_are_all_answered_on_one_connection() {
    let app = App::echo("app");
    let mesh = Mesh::before(&format!("http://{}", app.address));
    for door in DOORS {
        let client = Client::to(&mesh, door).await;
        let body = "x".repeat(2000);
        let asked = (0..1000).map(|number| {
            let (client, body) = (client.clone(), body.clone());
            async move {
                let path = format!("/{number}");
                let answer = client.try_send(request("POST", &path, &[]), body.as_bytes(), None);
                let echo = answer.await.unwrap().json();
                assert_eq!(
                    (echo["path"].as_str(), echo["body"].as_str()),
                    (Some(&*path), Some(&*body))
                );
            }
        });
        futures_util::future::join_all(asked).await;
    }
    assert_eq!(app.requests(), 3000);
}

#[tokio::test]
async fn large_bodies_flow_both_ways_at_the_pace_of_the_slower_end() {
    const SIZE: usize = 20 << 20;
    let app = H2App::serving(|request, mut respond| async move {
        let mut body = Vec::new();
        let upload = pull(&mut request.into_body(), &mut body).await;
        let mut stream = respond.send_response(ok(), false).unwrap();
        if upload.is_ok() {
            let _ = push(&mut stream, body.into(), true).await;
        }
    });
    let mesh = Mesh::before(&app.url());
    let before = [peak_memory(&mesh.shop), peak_memory(&mesh.billing)];
    let body: Vec<u8> = (0..SIZE).map(|at| u8::try_from((at / 251 + at) % 251).unwrap()).collect();
    let client = Client::to(&mesh, Door::Outbound).await;
    let answer = client.try_send(request("POST", "/", &[]), &body, None).await.unwrap();
    assert!(answer.body == body, "{} bytes came back", answer.body.len());
    for (process, before) in [(&mesh.shop, before[0]), (&mesh.billing, before[1])] {
        let grown = peak_memory(process).saturating_sub(before);
        assert!(grown < 16 * 1024, "{} grew by {grown} KiB", process.name);
    }
}

#[tokio::test]
async fn a_stream_that_nobody_reads_stops_its_sender_and_no_other_stream() {
    let sent = Arc::new(AtomicUsize::new(0));
    let counted = sent.clone();
    let app = H2App::serving(move |request, mut respond| {
        let counted = counted.clone();
        async move {
            let mut stream = respond.send_response(ok(), false).unwrap();
            if request.uri().path() == "/small" {
                return stream.send_data("small".into(), true).unwrap();
            }
            while push(&mut stream, vec![0; 65_536].into(), false).await.is_ok() {
                counted.fetch_add(65_536, Ordering::SeqCst);
            }
        }
    });
    let mesh = Mesh::before(&app.url());
    for door in [Door::Outbound, Door::Inbound] {
        sent.store(0, Ordering::SeqCst);
        let client = Client::to(&mesh, door).await;
        let (response, _stream) = client.open(request("GET", "/endless", &[]), true).await.unwrap();
        let mut body = soon("a response", response).await.unwrap().into_body();
        let mut last = (0, Instant::now());
        let stopped = crate::world::eventually_async("the app stops", || {
            let now = sent.load(Ordering::SeqCst);
            assert!(now < 32 << 20, "{door:?}: the app could send {now} bytes");
            if now != last.0 {
                last = (now, Instant::now());
            }
            let stopped = now > 0 && last.1.elapsed() > Duration::from_millis(500);
            async move { stopped.then_some(now) }
        })
        .await;
        for _ in 0..20 {
            // On a connection of its own: the first one's window is used up by the stream that nobody reads.
            assert_eq!(Client::to(&mesh, door).await.get("/small").await.body, b"small");
        }
        let mut read = 0;
        while read < stopped + (1 << 20) {
            let piece = soon("more", body.data()).await.unwrap().unwrap();
            body.flow_control().release_capacity(piece.len()).unwrap();
            read += piece.len();
        }
    }
}

#[tokio::test]
async fn trailers_come_through_except_those_that_must_not_come_late() {
    let (seen, sees) = mpsc::channel();
    let app = H2App::serving(move |request, mut respond| {
        let seen = seen.clone();
        async move {
            let mut body = request.into_body();
            pull(&mut body, &mut Vec::new()).await.unwrap();
            seen.send(body.trailers().await.unwrap().unwrap_or_default()).unwrap();
            let mut stream = respond.send_response(ok(), false).unwrap();
            stream.send_data("x".into(), false).unwrap();
            stream.send_trailers(trailers()).unwrap();
        }
    });
    let mesh = Mesh::before(&app.url());
    for door in DOORS {
        let client = Client::to(&mesh, door).await;
        let asked = request("POST", "/", &[("te", "trailers")]);
        let answer = client.try_send(asked, b"x", Some(trailers())).await.unwrap();
        for found in [sees.recv_timeout(PATIENCE).unwrap(), answer.trailers] {
            let names: Vec<&str> = found.keys().map(|name| name.as_str()).collect();
            assert_eq!(names, ["x-sum"], "{door:?}");
        }
    }
}

/// One lawful trailer among those of zero-trust's row 19.
fn trailers() -> HeaderMap {
    let names = [
        "host",
        "content-length",
        "authorization",
        "set-cookie",
        "x-forwarded-client-cert",
        "x_spiffe_id",
        "x-sum",
        "x-ssl-client-verify",
    ];
    names
        .into_iter()
        .map(|name| (name.parse().unwrap(), "7".parse().unwrap()))
        .collect::<HeaderMap>()
}

#[tokio::test]
async fn a_stream_that_its_caller_gives_up_is_given_up_at_the_app() {
    let (seen, sees) = mpsc::channel();
    let app = H2App::serving(move |request, mut respond| {
        let seen = seen.clone();
        async move {
            let path = request.uri().path().to_owned();
            let mut sending = None;
            if path == "/streaming" {
                let mut stream = respond.send_response(ok(), false).unwrap();
                stream.send_data("hello".into(), false).unwrap();
                sending = Some(stream);
            }
            seen.send("asked".to_owned()).unwrap();
            let reset = match &mut sending {
                Some(stream) => poll_fn(|context| stream.poll_reset(context)).await,
                None => poll_fn(|context| respond.poll_reset(context)).await,
            };
            seen.send(format!("{:?}", reset.unwrap())).unwrap();
        }
    });
    let mesh = Mesh::before(&app.url());
    for door in DOORS {
        let client = Client::to(&mesh, door).await;
        for path in ["/waiting", "/streaming"] {
            let (response, mut stream) =
                client.open(request("POST", path, &[]), false).await.unwrap();
            stream.send_data("x".into(), path == "/waiting").unwrap();
            assert_eq!(receive(&sees).await, "asked", "{door:?} {path}");
            let body = match path {
                "/streaming" => Some(soon("a response", response).await.unwrap().into_body()),
                _ => None,
            };
            stream.send_reset(Reason::CANCEL);
            assert_eq!(receive(&sees).await, "CANCEL", "{door:?} {path}");
            drop(body);
        }
    }
}

/// Waits for a message of an app without stopping this test's own connections.
async fn receive<T>(from: &mpsc::Receiver<T>) -> T {
    crate::world::eventually_async("a message of the app", || async { from.try_recv().ok() }).await
}

#[tokio::test]
async fn a_response_that_the_app_breaks_off_ends_with_a_reset_and_not_as_whole() {
    let (go, wait) = tokio::sync::watch::channel(0);
    let app = H2App::serving(move |_, mut respond| {
        let mut wait = wait.clone();
        async move {
            let mut stream = respond.send_response(ok(), false).unwrap();
            stream.send_data("hello".into(), false).unwrap();
            wait.mark_unchanged();
            wait.changed().await.unwrap();
            stream.send_reset(Reason::INTERNAL_ERROR);
        }
    });
    let mesh = Mesh::before(&app.url());
    for door in DOORS {
        let client = Client::to(&mesh, door).await;
        let (response, _) = client.open(request("GET", "/", &[]), true).await.unwrap();
        let mut body = soon("a response", response).await.unwrap().into_body();
        assert_eq!(soon("data", body.data()).await.unwrap().unwrap(), "hello");
        go.send_modify(|number| *number += 1);
        assert!(soon("the end", body.data()).await.unwrap().is_err(), "{door:?}");

        let mut wire = mesh.wire(door).await;
        wire.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert_eq!(wire.head().await.unwrap().status, 200);
        assert_eq!(wire.bytes(10).await, b"5\r\nhello\r\n");
        go.send_modify(|number| *number += 1);
        wire.end().await;
    }
}

#[tokio::test]
async fn even_a_post_goes_to_another_node_when_the_first_refuses_the_stream_untouched() {
    let refuses = H2App::serving(|_, mut respond| async move {
        respond.send_reset(Reason::REFUSED_STREAM);
    });
    let breaks = H2App::serving(|_, mut respond| async move {
        respond.send_reset(Reason::INTERNAL_ERROR);
    });
    let serves = App::echo("app");
    let world = World::new();
    for (name, first, status) in [("refuses", &refuses, 200), ("breaks", &breaks, 502)] {
        let node = |port, priority| json!({ "host": "127.0.0.1", "port": port, "weight": 1, "priority": priority });
        let nodes = json!([node(first.address.port(), 1), node(serves.address.port(), 0)]);
        let ingress = world
            .ingress()
            .named(name)
            .resources(&json!({ "routes": [{
                "id": "r", "uri": "/*", "upstream": { "scheme": "grpc", "nodes": nodes },
            }] }))
            .start();
        for _ in 0..3 {
            let answer = send(ingress.address("ingress"), "POST", "/", &[], "").await;
            assert_eq!(answer.status, status, "{name}");
        }
    }
}

#[tokio::test]
async fn a_fragment_is_cut_off_before_anybody_reads_the_path() {
    let app = App::echo("app");
    let mesh = Mesh::before(&format!("http://{}", app.address));
    let mut frames = Frames::to(&mesh, Door::Inbound).await;
    let fields = with(":path", Some("/a#b"));
    frames.0.send(frame(HEADERS, END_HEADERS | END_STREAM, 1, &block(&fields))).await;
    assert_eq!(frames.outcome(1).await, Outcome::Answered(0x88));
    assert_eq!(mesh.billing.record_with("/type", &json!("decision"))["path"], "/a");
}

#[tokio::test]
async fn interim_answers_of_an_http_2_app_come_through() {
    let app = H2App::serving(|_, mut respond| async move {
        let mut early = ok();
        *early.status_mut() = http::StatusCode::EARLY_HINTS;
        early.headers_mut().insert("link", "</a>".parse().unwrap());
        respond.send_informational(early).unwrap();
        respond.send_response(ok(), true).unwrap();
    });
    let mesh = Mesh::with(&app.url(), &json!({}), &json!({ "scheme": "grpc" }));
    for door in DOORS {
        let mut wire = mesh.wire(door).await;
        wire.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        let early = wire.head().await.unwrap();
        assert_eq!((early.status, early.field("link")), (103, Some("</a>")), "{door:?}");
        assert_eq!(wire.response_to("GET").await.unwrap().status, 200);
    }
}

#[tokio::test]
async fn answers_without_a_body_and_early_ones_end_their_streams() {
    let app = RawApp::serving(|stream| {
        while let Some(head) = stream.head() {
            match head.split(' ').next().unwrap() {
                "HEAD" => stream.send("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"),
                "GET" => stream.send("HTTP/1.1 204 No Content\r\n\r\n"),
                _ => {
                    stream.send("HTTP/1.1 413 Content Too Large\r\nContent-Length: 5\r\n\r\nlarge");
                    stream.rest();
                }
            }
        }
    });
    let mesh = Mesh::before(&app.url());
    for door in DOORS {
        let client = Client::to(&mesh, door).await;
        let answer = client.try_send(request("HEAD", "/", &[]), b"", None).await.unwrap();
        assert_eq!((answer.status, answer.headers["content-length"].as_bytes()), (200, &b"5"[..]));
        assert_eq!(client.get("/").await.status, 204);
        let answer = client.try_send(request("PUT", "/", &[]), &vec![0; 4 << 20], None).await;
        let answer = answer.unwrap();
        assert_eq!((answer.status, &*answer.body), (413, &b"large"[..]), "{door:?}");
        assert_eq!(client.get("/").await.status, 204, "the connection goes on");
    }
}

#[tokio::test]
async fn long_streams_beyond_what_one_connection_takes_get_another_one() {
    let app = H2App::serving(|_, mut respond| async move {
        let mut stream = respond.send_response(ok(), false).unwrap();
        let _ = poll_fn(|context| stream.poll_reset(context)).await;
    });
    let mesh = Mesh::before(&app.url());
    let mut clients = Vec::new();
    for _ in 0..3 {
        clients.push(Client::to(&mesh, Door::Outbound).await);
    }
    let open = (0..600).map(|number| {
        let client = clients[number % 3].clone();
        async move {
            let (response, stream) = client.open(request("GET", "/", &[]), true).await.unwrap();
            (soon("a response", response).await.unwrap(), stream)
        }
    });
    let open = futures_util::future::join_all(open).await;
    assert!(open.iter().all(|(response, _)| response.status() == 200));
}

// --- in frames ---

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = length[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// Fields as HPACK literals without indexing and without compression: any bytes can be said that way.
fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    let text = |block: &mut Vec<u8>, text: &str| {
        let byte = |number: usize| u8::try_from(number).unwrap();
        let length = text.len();
        if length < 127 {
            block.push(byte(length));
        } else {
            block.push(127);
            let mut left = length - 127;
            while left >= 128 {
                block.push(byte(left % 128 + 128));
                left /= 128;
            }
            block.push(byte(left));
        }
        block.extend(text.bytes());
    };
    for (name, value) in fields {
        block.push(0);
        text(&mut block, name);
        text(&mut block, value);
    }
    block
}

/// What became of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Outcome {
    /// The first byte of its block of fields: 0x88 is status 200.
    Answered(u8),
    Reset(u32),
    GoAway(u32),
    Closed,
}

/// A client that speaks HTTP/2 in frames.
struct Frames(Wire);

impl Frames {
    async fn to(mesh: &Mesh, door: Door) -> Self {
        let mut wire = Wire::over(mesh.stream(door, Alpn::Http2).await);
        wire.send(
            [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), frame(SETTINGS, 0, 0, &[])].concat(),
        )
        .await;
        Self(wire)
    }

    async fn next(&mut self) -> Option<(u8, u8, u32, Vec<u8>)> {
        let head = self.0.try_bytes(9).await?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        let payload = self.0.try_bytes(length).await?;
        Some((head[3], head[4], stream, payload))
    }

    async fn outcome(&mut self, stream: u32) -> Outcome {
        loop {
            let Some((kind, flags, of, payload)) = self.next().await else {
                return Outcome::Closed;
            };
            let number = |at: usize| u32::from_be_bytes(payload[at..at + 4].try_into().unwrap());
            match kind {
                SETTINGS if flags & ACK == 0 => self.0.send(frame(SETTINGS, ACK, 0, &[])).await,
                PING if flags & ACK == 0 => self.0.send(frame(PING, ACK, 0, &payload)).await,
                GOAWAY => return Outcome::GoAway(number(4)),
                RST_STREAM if of == stream => return Outcome::Reset(number(0)),
                HEADERS if of == stream => return Outcome::Answered(payload[0]),
                _ => {}
            }
        }
    }

    /// Waits until the other end has read all that was sent.
    async fn settle(&mut self) -> Option<()> {
        self.0.send(frame(PING, 0, 0, b"settle..")).await;
        loop {
            let (kind, flags, _, payload) = self.next().await?;
            match kind {
                PING if flags & ACK != 0 && payload == b"settle.." => return Some(()),
                GOAWAY => return None,
                _ => {}
            }
        }
    }
}

const GET: [(&str, &str); 4] =
    [(":method", "GET"), (":scheme", "http"), (":authority", "a"), (":path", "/")];

/// `GET` with one pseudo-header field replaced, or left out.
fn with(name: &str, value: Option<&'static str>) -> Vec<(&'static str, &'static str)> {
    GET.iter()
        .filter_map(
            |&(found, old)| {
                if found == name { value.map(|new| (found, new)) } else { Some((found, old)) }
            },
        )
        .collect()
}

fn and(more: &[(&'static str, &'static str)]) -> Vec<(&'static str, &'static str)> {
    GET.iter().chain(more).copied().collect()
}

#[tokio::test]
async fn a_malformed_request_harms_its_stream_only_and_never_reaches_the_app() {
    let app = App::echo("app");
    let mesh = Mesh::before(&format!("http://{}", app.address));
    let late = [&GET[..3], &[("x-a", "1"), GET[3]]].concat();
    let rows: Vec<(&str, Vec<(&str, &str)>)> = vec![
        ("34 another host", and(&[("host", "b")])),
        ("35 no authority and no host", with(":authority", None)),
        ("36 a method twice", and(&[(":method", "GET")])),
        ("36 a path twice", and(&[(":path", "/")])),
        ("36 an upper-case name", and(&[("X-A", "1")])),
        ("36 a late pseudo-header", late),
        ("36 an unknown pseudo-header", and(&[(":odd", "1")])),
        ("36 a pseudo-header of responses", and(&[(":status", "200")])),
        ("36 no method", with(":method", None)),
        ("36 no scheme", with(":scheme", None)),
        ("36 no path", with(":path", None)),
        ("37 an empty path", with(":path", Some(""))),
        ("37 a path without slash", with(":path", Some("admin"))),
        ("37 a path with a space", with(":path", Some("/a b"))),
        ("37 a star for GET", with(":path", Some("*"))),
        ("38 CR in a value", and(&[("x-a", "1\r")])),
        ("38 LF in a value", and(&[("x-a", "1\nx-b: 2")])),
        ("38 NUL in a value", and(&[("x-a", "1\0")])),
        ("38 a line end in a name", and(&[("x-a\r\nx-b", "1")])),
        ("38 a line end in the path", with(":path", Some("/ HTTP/1.1\r\nx: y"))),
        ("38 a line end in the method", with(":method", Some("GET / HTTP/1.1\r\n"))),
        ("38 a line end in the authority", with(":authority", Some("a\r\nx: y"))),
        ("39 connection", and(&[("connection", "close")])),
        ("39 keep-alive", and(&[("keep-alive", "1")])),
        ("39 proxy-connection", and(&[("proxy-connection", "close")])),
        ("39 transfer-encoding", and(&[("transfer-encoding", "chunked")])),
        ("39 upgrade", and(&[("upgrade", "websocket")])),
        ("39 te other than trailers", and(&[("te", "gzip")])),
        ("40 a length of a body that is not there", and(&[("content-length", "5")])),
        ("40 a length that is none", and(&[("content-length", "+0")])),
        ("40 two lengths", and(&[("content-length", "0"), ("content-length", "0")])),
        ("41 another scheme", with(":scheme", Some("ftp"))),
        ("42 CONNECT", with(":method", Some("CONNECT"))),
        ("42 CONNECT without a port", vec![(":method", "CONNECT"), (":authority", "a")]),
        ("42 CONNECT without a place", vec![(":method", "CONNECT")]),
        ("42 extended CONNECT", and(&[(":protocol", "websocket")])),
        ("a user in the authority", with(":authority", Some("u@a"))),
        ("a list of authorities", with(":authority", Some("a,b"))),
        ("a port that is none", with(":authority", Some("a:x"))),
        ("50 a broken escape", with(":path", Some("/%zz"))),
        ("50 an escaped NUL", with(":path", Some("/%00"))),
        ("two hosts", and(&[("host", "a"), ("host", "a")])),
    ];
    for door in DOORS {
        for (name, fields) in &rows {
            let mut frames = Frames::to(&mesh, door).await;
            let head = frame(HEADERS, END_HEADERS | END_STREAM, 1, &block(fields));
            frames.0.send(head).await;
            let outcome = frames.outcome(1).await;
            // 0x8c is 400; 1 is PROTOCOL_ERROR.
            let refused = [Outcome::Answered(0x8c), Outcome::Reset(1), Outcome::GoAway(1)];
            assert!(refused.contains(&outcome), "{door:?} {name}: {outcome:?}");
            if !matches!(outcome, Outcome::GoAway(_)) {
                frames.0.send(frame(HEADERS, END_HEADERS | END_STREAM, 3, &block(&GET))).await;
                assert_eq!(
                    frames.outcome(3).await,
                    Outcome::Answered(0x88),
                    "{door:?} after {name}"
                );
            }
        }
    }
    let asked_well = app.requests();
    assert!(asked_well <= DOORS.len() * rows.len(), "{asked_well}");
    let records = mesh.billing.audit();
    let paths = records.iter().filter_map(|record| record["path"].as_str());
    assert!(paths.clone().all(|path| path == "/"), "{:?}", paths.collect::<Vec<_>>());
}

#[tokio::test]
async fn a_body_that_disagrees_with_its_length_is_reset_and_never_whole_for_the_app() {
    let (seen, sees) = mpsc::channel();
    let app = RawApp::serving(move |stream| {
        if stream.head().is_some() {
            seen.send(stream.rest()).unwrap();
        }
    });
    let mesh = Mesh::before(&app.url());
    for door in DOORS {
        for body in [&b"abc"[..], b"abcdefg"] {
            let mut frames = Frames::to(&mesh, door).await;
            let mut fields = with(":method", Some("POST"));
            fields.push(("content-length", "5"));
            frames.0.send(frame(HEADERS, END_HEADERS, 1, &block(&fields))).await;
            frames.0.send(frame(DATA, END_STREAM, 1, body)).await;
            let outcome = frames.outcome(1).await;
            assert!(
                matches!(outcome, Outcome::Reset(_) | Outcome::GoAway(1)),
                "{door:?}: {outcome:?}"
            );
            while let Ok(rest) = sees.recv_timeout(Duration::from_millis(50)) {
                assert!(rest.len() < 5, "{door:?}: {rest:?}");
            }
        }
    }
}

/// What a hostile client does to its connection, and how it ends.
async fn punished(mesh: &Mesh, door: Door, what: &str, bytes: &[u8]) -> Outcome {
    let mut frames = Frames::to(mesh, door).await;
    frames.0.send(bytes).await;
    let outcome = frames.outcome(0).await;
    assert!(
        matches!(outcome, Outcome::GoAway(_) | Outcome::Closed),
        "{door:?} {what}: {outcome:?}"
    );
    outcome
}

#[tokio::test]
async fn a_flood_ends_its_own_connection_in_bounded_memory_and_nobody_elses() {
    let app = App::echo("app");
    let mesh = Mesh::before(&format!("http://{}", app.address));
    let reset = 8_u32.to_be_bytes();
    let rapid: Vec<u8> = (0..2000)
        .flat_map(|number| {
            let stream = number * 2 + 1;
            let head = frame(HEADERS, END_HEADERS | END_STREAM, stream, &block(&GET));
            [head, frame(RST_STREAM, 0, stream, &reset)].concat()
        })
        .collect();
    let mut continued = frame(HEADERS, 0, 1, &block(&GET));
    for _ in 0..500 {
        continued.extend(frame(CONTINUATION, 0, 1, &block(&[("x-a", &"a".repeat(8000))])));
    }
    let mut empty = frame(HEADERS, END_HEADERS, 1, &block(&with(":method", Some("POST"))));
    for _ in 0..100_000 {
        empty.extend(frame(DATA, 0, 1, &[]));
    }
    let zero = frame(WINDOW_UPDATE, 0, 0, &0_u32.to_be_bytes());
    let overflow = frame(WINDOW_UPDATE, 0, 0, &0x7fff_ffff_u32.to_be_bytes());
    for door in DOORS {
        let others = Client::to(&mesh, door).await;
        let before = [peak_memory(&mesh.shop), peak_memory(&mesh.billing)];
        for (what, bytes) in [
            ("25 rapid reset", &rapid),
            ("28 continuation", &continued),
            ("30 empty data", &empty),
            ("32 a window of nothing more", &zero),
            ("32 a window too large", &overflow),
        ] {
            let outcome = punished(&mesh, door, what, bytes).await;
            assert!(
                what != "25 rapid reset"
                    || outcome == Outcome::GoAway(11)
                    || outcome == Outcome::Closed
            );
            assert_eq!(others.get("/").await.status, 200, "{door:?} after {what}");
        }
        for (process, before) in [(&mesh.shop, before[0]), (&mesh.billing, before[1])] {
            let grown = peak_memory(process).saturating_sub(before);
            assert!(grown < 24 * 1024, "{door:?}: {} grew by {grown} KiB", process.name);
        }
    }
}

#[tokio::test]
async fn streams_that_are_given_up_after_they_were_served_count_as_well() {
    let app = RawApp::serving(|stream| drop(stream.rest()));
    let mesh = Mesh::before(&app.url());
    let mut frames = Frames::to(&mesh, Door::Inbound).await;
    let mut ended = false;
    for number in 0..40 {
        // Twenty at a time, each begun and then given up once it is under way.
        let streams = (0..20).map(|at| (number * 20 + at) * 2 + 1);
        for stream in streams.clone() {
            frames.0.send(frame(HEADERS, END_HEADERS | END_STREAM, stream, &block(&GET))).await;
        }
        ended |= frames.settle().await.is_none();
        for stream in streams {
            frames.0.send(frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes())).await;
        }
        ended |= frames.settle().await.is_none();
        if ended {
            break;
        }
    }
    assert!(ended, "800 streams were begun and given up on one connection");
    mesh.world.peer("/shop").stream(&mesh.billing, Alpn::Http2).await.expect("others come in");
}

#[tokio::test]
async fn more_fields_than_fit_are_refused_while_they_are_read() {
    let app = App::echo("app");
    let mesh = Mesh::before(&format!("http://{}", app.address));
    // One large field in the table, and then its index again and again: 31 in HPACK.
    let mut bomb = block(&GET);
    let large = block(&[("x-a", &"a".repeat(3000))]);
    bomb.push(0x40);
    bomb.extend(&large[1..]);
    bomb.extend([0xbe; 4000]);
    for door in DOORS {
        let before = [peak_memory(&mesh.shop), peak_memory(&mesh.billing)];
        let mut frames = Frames::to(&mesh, door).await;
        frames.0.send(frame(HEADERS, END_HEADERS | END_STREAM, 1, &bomb)).await;
        let outcome = frames.outcome(1).await;
        assert_ne!(outcome, Outcome::Answered(0x88), "{door:?}");
        for (process, before) in [(&mesh.shop, before[0]), (&mesh.billing, before[1])] {
            let grown = peak_memory(process).saturating_sub(before);
            assert!(grown < 8 * 1024, "{door:?}: {} grew by {grown} KiB", process.name);
        }
    }
    assert_eq!(app.requests(), 0);
}

#[tokio::test]
async fn more_streams_than_allowed_are_refused_untouched() {
    let app = RawApp::serving(|stream| drop(stream.rest()));
    let mesh = Mesh::before(&app.url());
    let mut frames = Frames::to(&mesh, Door::Outbound).await;
    frames.settle().await.unwrap();
    for number in 0..300 {
        let head = frame(HEADERS, END_HEADERS | END_STREAM, number * 2 + 1, &block(&GET));
        frames.0.send(head).await;
    }
    // 7 is REFUSED_STREAM.
    assert_eq!(frames.outcome(599).await, Outcome::Reset(7));
}

#[tokio::test]
async fn what_alpn_agreed_on_is_what_must_be_spoken() {
    let app = App::echo("app");
    let mesh = Mesh::before(&format!("http://{}", app.address));
    let mut wire = Wire::over(mesh.stream(Door::Inbound, Alpn::Http2).await);
    wire.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    while let Some(byte) = wire.try_bytes(1).await {
        drop(byte);
    }
    let mut wire = Wire::over(mesh.stream(Door::Inbound, Alpn::Http1).await);
    wire.send([b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), frame(SETTINGS, 0, 0, &[])].concat())
        .await;
    assert_eq!(wire.response_to("PRI").await.unwrap().status, 505);
    let mut wire = mesh.wire(Door::Outbound).await;
    // The start of HTTP/2's preface, and then something else.
    wire.send("PRI * HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert!(wire.response_to("PRI").await.unwrap().status >= 400);
    assert_eq!(app.requests(), 0);
}

#[tokio::test]
async fn a_denial_and_a_missing_route_are_answered_in_http_2() {
    let app = App::echo("app");
    let mesh = Mesh::before(&format!("http://{}", app.address));
    let stranger = mesh.world.peer("/stranger").stream(&mesh.billing, Alpn::Http2).await.unwrap();
    let client = Client::over(stranger).await;
    let answer = client.try_send(request("POST", "/", &[]), &[0; 100_000], None).await.unwrap();
    assert_eq!(answer.status, 403);
    assert_eq!(answer.json()["denial"], answer.headers["x-wardgate-denial"].to_str().unwrap());
    let bare = mesh.world.ingress().named("bare").resources(&json!({ "routes": [] })).start();
    let tcp = tokio::net::TcpStream::connect(bare.address("ingress")).await.unwrap();
    let client = Client::over(tcp).await;
    assert_eq!(client.get("/").await.status, 404);
}
