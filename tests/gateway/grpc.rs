//! gRPC: tonic's own client and server on both ends of two sidecars, with each kind of call.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use http::uri::PathAndQuery;
use prost::Message as _;
use serde_json::json;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt as _};
use tonic::body::Body;
use tonic::metadata::MetadataValue;
use tonic::server::{
    ClientStreamingService, Grpc as Server, NamedService, ServerStreamingService, StreamingService,
    UnaryService,
};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;

use crate::http2::H2App;
use crate::mesh::{Door, Mesh};
use crate::world::{World, eventually_async, soon};

#[derive(Clone, PartialEq, prost::Message)]
struct Note {
    #[prost(string, tag = "1")]
    text: String,
}

fn note(text: impl Into<String>) -> Note {
    Note { text: text.into() }
}

type Codec = ProstCodec<Note, Note>;
type Notes = Pin<Box<dyn Stream<Item = Result<Note, Status>> + Send>>;

/// The service: each kind of call, errors, and one that never answers.
#[derive(Clone, Default)]
struct Choir {
    /// Endless streams that are open.
    singing: Arc<AtomicUsize>,
}

impl NamedService for Choir {
    const NAME: &'static str = "test.Choir";
}

impl UnaryService<Note> for Choir {
    type Response = Note;
    type Future = BoxFuture<'static, Result<Response<Note>, Status>>;
    fn call(&mut self, request: Request<Note>) -> Self::Future {
        Box::pin(async move {
            let header = |name: &str| {
                let value = request.metadata().get(name);
                value.map(|value| value.to_str().unwrap().to_owned()).unwrap_or_default()
            };
            match &*request.get_ref().text {
                "fail" => {
                    let mut status = Status::with_details(
                        Code::FailedPrecondition,
                        "not now, é %",
                        "details".into(),
                    );
                    status.metadata_mut().insert("x-extra", MetadataValue::from_static("1"));
                    Err(status)
                }
                "sleep" => std::future::pending().await,
                "deadline" => Ok(Response::new(note(header("grpc-timeout")))),
                "caller" => Ok(Response::new(note(header("x-forwarded-client-cert")))),
                text => Ok(Response::new(note(format!("hello {text}")))),
            }
        })
    }
}

/// Counts one open stream until it is dropped.
struct Open(Arc<AtomicUsize>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl ServerStreamingService<Note> for Choir {
    type Response = Note;
    type ResponseStream = Notes;
    type Future = BoxFuture<'static, Result<Response<Notes>, Status>>;
    fn call(&mut self, request: Request<Note>) -> Self::Future {
        self.singing.fetch_add(1, Ordering::SeqCst);
        let open = Open(self.singing.clone());
        Box::pin(async move {
            let count: usize = request.get_ref().text.parse().unwrap();
            let notes = tokio_stream::iter(0..count).map(|number| Ok(note(number.to_string())));
            let end: Notes = match count {
                // Two, and then silence.
                2 => Box::pin(notes.chain(tokio_stream::pending()).map(move |item| {
                    let _ = &open;
                    item
                })),
                3 => {
                    Box::pin(notes.chain(tokio_stream::once(Err(Status::data_loss("after three")))))
                }
                _ => Box::pin(notes),
            };
            Ok(Response::new(end))
        })
    }
}

impl ClientStreamingService<Note> for Choir {
    type Response = Note;
    type Future = BoxFuture<'static, Result<Response<Note>, Status>>;
    fn call(&mut self, request: Request<Streaming<Note>>) -> Self::Future {
        Box::pin(async move {
            let mut stream = request.into_inner();
            let (mut count, mut bytes) = (0, 0);
            while let Some(note) = stream.message().await? {
                count += 1;
                bytes += note.text.len();
            }
            Ok(Response::new(note(format!("{count} notes, {bytes} bytes"))))
        })
    }
}

impl StreamingService<Note> for Choir {
    type Response = Note;
    type ResponseStream = Notes;
    type Future = BoxFuture<'static, Result<Response<Notes>, Status>>;
    fn call(&mut self, request: Request<Streaming<Note>>) -> Self::Future {
        Box::pin(async move {
            let echo =
                request.into_inner().map(|item| item.map(|heard| note(heard.text.to_uppercase())));
            Ok(Response::new(Box::pin(echo) as Notes))
        })
    }
}

impl tower::Service<http::Request<Body>> for Choir {
    type Response = http::Response<Body>;
    type Error = std::convert::Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }
    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let choir = self.clone();
        Box::pin(async move {
            let mut server = Server::new(Codec::default());
            Ok(match request.uri().path() {
                "/test.Choir/Unary" => server.unary(choir, request).await,
                "/test.Choir/ServerStream" => server.server_streaming(choir, request).await,
                "/test.Choir/ClientStream" => server.client_streaming(choir, request).await,
                "/test.Choir/Both" => server.streaming(choir, request).await,
                _ => Status::unimplemented("no such call").into_http(),
            })
        })
    }
}

/// A running server.
struct App {
    url: String,
    choir: Choir,
    _stop: tokio::sync::oneshot::Sender<()>,
}

impl App {
    fn start() -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let url = format!("grpc://{}", listener.local_addr().unwrap());
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let choir = Choir::default();
        let serving = choir.clone();
        std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
                let server = tonic::transport::Server::builder().add_service(serving);
                tokio::select! {
                    _ = server.serve_with_incoming(incoming) => {}
                    _ = stopped => {}
                }
            });
        });
        Self { url, choir, _stop: stop }
    }
}

/// The client.
struct Client(tonic::client::Grpc<Channel>);

impl Client {
    async fn at(address: SocketAddr) -> Self {
        Self::of(address, &format!("http://{address}")).await
    }

    /// At `address`, and asking for another host.
    async fn of(address: SocketAddr, origin: &str) -> Self {
        let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
        let endpoint = endpoint.origin(origin.parse().unwrap());
        Self(tonic::client::Grpc::new(soon("a channel", endpoint.connect()).await.unwrap()))
    }

    async fn ready(&mut self) {
        self.0.ready().await.unwrap();
    }

    async fn unary(&mut self, request: Request<Note>) -> Result<Response<Note>, Status> {
        self.ready().await;
        let path = PathAndQuery::from_static("/test.Choir/Unary");
        soon("an answer", self.0.unary(request, path, Codec::default())).await
    }

    async fn ask(&mut self, text: &str) -> Result<String, Status> {
        self.unary(Request::new(note(text))).await.map(|answer| answer.into_inner().text)
    }

    async fn server_stream(&mut self, count: usize) -> Result<Streaming<Note>, Status> {
        self.ready().await;
        let path = PathAndQuery::from_static("/test.Choir/ServerStream");
        let request = Request::new(note(count.to_string()));
        let asked = self.0.server_streaming(request, path, Codec::default());
        soon("a stream", asked).await.map(Response::into_inner)
    }
}

#[tokio::test]
async fn every_kind_of_call_goes_through_both_sidecars_and_the_ingress() {
    let app = App::start();
    let mesh = Mesh::with(&app.url, &json!({}), &json!({ "scheme": "grpc" }));
    for door in [Door::Outbound, Door::Ingress] {
        let mut client = Client::at(mesh.address(door)).await;
        assert_eq!(client.ask("you").await.unwrap(), "hello you", "{door:?}");
        let caller = if door == Door::Ingress { "/wardgate/ingress" } else { "/shop" };
        let seen = client.ask("caller").await.unwrap();
        assert!(seen.ends_with(&format!("URI={}", mesh.world.id(caller))), "{seen}");

        let stream = client.server_stream(100).await.unwrap();
        let notes: Vec<String> = stream.map(|note| note.unwrap().text).collect().await;
        assert_eq!(notes, (0..100).map(|number| number.to_string()).collect::<Vec<_>>());

        client.ready().await;
        let notes = tokio_stream::iter((0..50).map(|_| note("x".repeat(10_000))));
        let path = PathAndQuery::from_static("/test.Choir/ClientStream");
        let sent = client.0.client_streaming(Request::new(notes), path, Codec::default());
        assert_eq!(
            soon("an answer", sent).await.unwrap().into_inner().text,
            "50 notes, 500000 bytes"
        );

        // A conversation: each note is answered before the next one is sent.
        client.ready().await;
        let (say, said) = mpsc::channel(1);
        say.send(note("first")).await.unwrap();
        let path = PathAndQuery::from_static("/test.Choir/Both");
        let talk =
            client.0.streaming(Request::new(ReceiverStream::new(said)), path, Codec::default());
        let mut answers = soon("a stream", talk).await.unwrap().into_inner();
        assert_eq!(soon("an answer", answers.message()).await.unwrap().unwrap().text, "FIRST");
        for number in 0..20 {
            say.send(note(format!("n{number}"))).await.unwrap();
            let answer = soon("an answer", answers.message()).await.unwrap().unwrap();
            assert_eq!(answer.text, format!("N{number}"));
        }
        drop(say);
        assert_eq!(soon("the end", answers.message()).await.unwrap(), None, "{door:?}");
    }
}

#[tokio::test]
async fn an_error_keeps_its_code_message_details_and_metadata() {
    let app = App::start();
    let mesh = Mesh::with(&app.url, &json!({}), &json!({ "scheme": "grpc" }));
    let mut client = Client::at(mesh.address(Door::Outbound)).await;
    let status = client.ask("fail").await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::FailedPrecondition, "not now, é %"));
    assert_eq!(
        (status.details(), status.metadata().get("x-extra").unwrap().to_str().unwrap()),
        (&b"details"[..], "1")
    );

    let mut stream = client.server_stream(3).await.unwrap();
    for number in 0..3 {
        assert_eq!(stream.message().await.unwrap().unwrap().text, number.to_string());
    }
    let status = soon("the end", stream.message()).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::DataLoss, "after three"));

    client.ready().await;
    let path = PathAndQuery::from_static("/test.Choir/Nothing");
    let status =
        client.0.unary::<Note, Note, Codec>(Request::new(note("")), path, Codec::default()).await;
    assert_eq!(status.unwrap_err().code(), Code::Unimplemented);
}

#[tokio::test]
async fn a_deadline_reaches_the_app_and_ends_the_call_in_time() {
    let app = App::start();
    let mesh = Mesh::with(&app.url, &json!({}), &json!({ "scheme": "grpc" }));
    let mut client = Client::at(mesh.address(Door::Outbound)).await;
    let within = |text: &str, limit: Duration| {
        let mut request = Request::new(note(text));
        request.set_timeout(limit);
        request
    };
    let seen =
        client.unary(within("deadline", Duration::from_secs(9))).await.unwrap().into_inner().text;
    assert!(seen.ends_with('u') || seen.ends_with('m') || seen.ends_with('n'), "{seen:?}");
    let started = Instant::now();
    let status = client.unary(within("sleep", Duration::from_millis(300))).await.unwrap_err();
    assert!(matches!(status.code(), Code::DeadlineExceeded | Code::Cancelled), "{status:?}");
    assert!(started.elapsed() < Duration::from_secs(5));
    assert_eq!(client.ask("again").await.unwrap(), "hello again");
}

#[tokio::test]
async fn a_call_that_its_caller_drops_ends_at_the_app() {
    let app = App::start();
    let mesh = Mesh::with(&app.url, &json!({}), &json!({ "scheme": "grpc" }));
    let mut client = Client::at(mesh.address(Door::Outbound)).await;
    let mut stream = client.server_stream(2).await.unwrap();
    for number in 0..2 {
        let heard = soon("a note", stream.message()).await.unwrap().unwrap();
        assert_eq!(heard.text, number.to_string());
    }
    assert_eq!(app.choir.singing.load(Ordering::SeqCst), 1);
    drop(stream);
    let singing = || async { (app.choir.singing.load(Ordering::SeqCst) == 0).then_some(()) };
    eventually_async("the app stops", singing).await;
}

#[tokio::test]
async fn a_hundred_calls_at_once_share_the_connections() {
    let app = App::start();
    let mesh = Mesh::with(&app.url, &json!({}), &json!({ "scheme": "grpc" }));
    let client = Client::at(mesh.address(Door::Outbound)).await;
    let calls = (0..300).map(|number| {
        let mut client = Client(client.0.clone());
        async move {
            let answer = client.ask(&number.to_string()).await.unwrap();
            assert_eq!(answer, format!("hello {number}"));
        }
    });
    futures_util::future::join_all(calls).await;
}

#[tokio::test]
async fn a_denial_and_a_failure_are_statuses_that_a_grpc_client_reads() {
    let world = World::new();
    let app = App::start();
    let only = json!({
        "id": "p", "selector": { "workloads": [world.id("/choir")] }, "action": "allow",
        "rules": [{
            "from": { "principals": [world.id("/shop")] },
            "to": { "paths": ["/test.Choir/ServerStream"] },
        }],
    });
    let choir = world
        .sidecar("/choir")
        .set("sidecar.app", &json!(app.url))
        .resources(&json!({ "identity_policies": [only] }))
        .start();
    let node = choir.address("inbound").to_string();
    let down = format!("127.0.0.1:{}", crate::world::free_port());
    let towards = |id: &str, host: &str, node: &str| {
        json!({
            "id": id, "uri": "/*", "host": host, "workload_selector": { "listener": "outbound" },
            "upstream": {
                "scheme": "grpc", "nodes": { node: 1 },
                "tls": { "identity": "svid", "spiffe_ids": [world.id("/choir")] },
            },
        })
    };
    let routes = [towards("up", "127.0.0.1", &node), towards("down", "down", &down)];
    let shop = world.sidecar("/shop").resources(&json!({ "routes": routes })).start();

    let mut client = Client::at(shop.address("outbound")).await;
    assert_eq!(client.server_stream(1).await.unwrap().message().await.unwrap(), Some(note("0")));
    let status = client.ask("you").await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied, "{status:?}");
    let denial = status.metadata().get("x-wardgate-denial").expect("a denial id");
    let record = choir.record_with("/denial_id", &json!(denial.to_str().unwrap()));
    assert_eq!(record["path"], "/test.Choir/Unary");

    for (host, code) in [("down", Code::Unavailable), ("nowhere", Code::Unimplemented)] {
        let mut client = Client::of(shop.address("outbound"), &format!("http://{host}")).await;
        let status = client.ask("you").await.unwrap_err();
        assert_eq!(status.code(), code, "{host}: {status:?}");
        assert!(!status.message().contains("protocol"), "{host}: {status:?}");
    }
}

#[tokio::test]
async fn a_deadline_is_shortened_by_what_was_spent_and_ends_the_call_here_when_it_is_over() {
    let app = App::start();
    let mesh = Mesh::with(&app.url, &json!({}), &json!({ "scheme": "grpc" }));
    // The app above keeps deadlines itself, and might be first; this one keeps none and says nothing.
    let silent = H2App::serving(|request, respond| async move {
        let _held = (request, respond);
        std::future::pending::<()>().await;
    });
    let mesh_of_silent = Mesh::with(&silent.url(), &json!({}), &json!({}));
    let asked = |timeout: &str, path: &str| {
        let fields =
            [("content-type", "application/grpc"), ("te", "trailers"), ("grpc-timeout", timeout)];
        crate::http2::request("POST", path, &fields)
    };
    let message = |text: &str| {
        let mut body = Vec::new();
        note(text).encode(&mut body).unwrap();
        let length = u32::try_from(body.len()).unwrap().to_be_bytes();
        [&[0], &length[..], &body].concat()
    };
    for door in crate::mesh::DOORS {
        let client = crate::http2::Client::to(&mesh, door).await;
        // What this client says is its own affair: it waits on, and we do not.
        let unary = |timeout: &'static str, text: &'static str| {
            let (client, request) = (client.clone(), asked(timeout, "/test.Choir/Unary"));
            async move { client.try_send(request, &message(text), None).await.unwrap() }
        };
        let seen = unary("9S", "deadline").await;
        let seen = Note::decode(&seen.body[5..]).unwrap().text;
        let (amount, unit) = seen.split_at(seen.len() - 1);
        assert_eq!(unit, "u", "{door:?} {seen}");
        assert!(amount.parse::<u64>().unwrap() < 9_000_000, "{door:?} {seen}");
        let waiting = crate::http2::Client::to(&mesh_of_silent, door).await;
        for timeout in ["200m", "0n"] {
            let request = asked(timeout, "/test.Choir/Unary");
            let answer = waiting.try_send(request, &message("sleep"), None).await.unwrap();
            let status = &answer.headers["grpc-status"];
            assert_eq!((answer.status, status.as_bytes()), (200, &b"4"[..]), "{door:?} {timeout}");
            assert_eq!(answer.headers["content-type"], "application/grpc");
        }
        // In the middle of an answer, which then goes no further.
        let request = asked("300m", "/test.Choir/ServerStream");
        let answer = client.try_send(request, &message("2"), None).await.unwrap();
        assert_eq!(answer.status, 200, "{door:?}");
        assert_eq!(answer.trailers["grpc-status"], "4", "{door:?}");
        let singing = || async { (app.choir.singing.load(Ordering::SeqCst) == 0).then_some(()) };
        eventually_async("the app stops", singing).await;
        // A time that nobody can read is the app's to judge.
        assert_eq!(unary("5x", "you").await.status, 200, "{door:?}");
    }
}

#[tokio::test]
async fn a_stream_that_nobody_reads_stops_the_app_that_sends_it() {
    let app = App::start();
    let mesh = Mesh::with(&app.url, &json!({}), &json!({ "scheme": "grpc" }));
    let mut client = Client::at(mesh.address(Door::Outbound)).await;
    client.ready().await;
    // 64 MiB of notes, of which nobody takes an answer: what is sent stays within the windows of the hops.
    let (counted, count) = (Arc::new(AtomicUsize::new(0)), 64 * 1024);
    let sent = counted.clone();
    let notes = tokio_stream::iter((0..count).map(move |_| {
        sent.fetch_add(1, Ordering::SeqCst);
        note("x".repeat(1024))
    }));
    let path = PathAndQuery::from_static("/test.Choir/Both");
    let talk = client.0.streaming(Request::new(notes), path, Codec::default());
    let mut answers = soon("a stream", talk).await.unwrap().into_inner();
    let mut last = usize::MAX;
    let stands = || {
        let now = counted.load(Ordering::SeqCst);
        let still = now > 0 && now == std::mem::replace(&mut last, now);
        async move {
            tokio::time::sleep(Duration::from_millis(300)).await;
            still.then_some(now)
        }
    };
    let held = eventually_async("the sender stops", stands).await;
    assert!(held < count / 2, "{held} of {count}");
    let mut heard = 0;
    while let Some(answer) = soon("an answer", answers.message()).await.unwrap() {
        assert_eq!(answer.text.len(), 1024);
        heard += 1;
    }
    assert_eq!(heard, count);
}
