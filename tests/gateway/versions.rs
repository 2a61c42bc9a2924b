//! HTTP/1.1 and HTTP/2 on both sides: whatever a message is made of comes through each pair of versions, every piece of it when
//! it was sent. The test holds both ends of an exchange, the caller's and the app's, and what one of them does the other sees.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::Poll;

use bytes::Bytes;
use h2::client::ResponseFuture;
use h2::server::SendResponse;
use h2::{RecvStream, SendStream};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use wardgate::mtls::Alpn;
use wardgate::rt::Tasks;

use crate::http2::Client;
use crate::mesh::{DOORS, Door, Mesh, Stream};
use crate::world::soon;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Version {
    One,
    Two,
}

pub(crate) const VERSIONS: [Version; 2] = [Version::One, Version::Two];

pub(crate) type Fields = Vec<(String, String)>;

pub(crate) fn value<'a>(fields: &'a Fields, name: &str) -> Option<&'a str> {
    let field = fields.iter().find(|(found, _)| found.eq_ignore_ascii_case(name));
    field.map(|(_, value)| value.as_str())
}

fn listed(map: &http::HeaderMap) -> Fields {
    map.iter().map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned())).collect()
}

/// How a tunnel ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// As who is done ends it.
    Clean,
    /// Broken off.
    Cut,
}

/// How a body is announced.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Body {
    None,
    Length(usize),
    Streamed,
    /// None: what follows is another protocol.
    Tunnel,
}

/// One end of an exchange.
pub(crate) enum End {
    One(One),
    Two(Two),
}

/// One end over HTTP/1.1.
pub(crate) struct One {
    stream: Box<dyn Stream>,
    buffer: Vec<u8>,
    incoming: Body,
    is_chunked: bool,
    trailers: Fields,
}

/// One end over HTTP/2.
#[derive(Default)]
pub(crate) struct Two {
    response: Option<ResponseFuture>,
    respond: Option<SendResponse<Bytes>>,
    sends: Option<SendStream<Bytes>>,
    receives: Option<RecvStream>,
    trailers: Fields,
}

impl One {
    fn over(stream: impl Stream + 'static) -> Self {
        let (buffer, trailers) = (Vec::new(), Vec::new());
        Self { stream: Box::new(stream), buffer, incoming: Body::None, is_chunked: false, trailers }
    }

    /// Reads once; `false` at the end.
    async fn fill(&mut self) -> bool {
        let read = soon("bytes over HTTP/1.1", self.stream.read_buf(&mut self.buffer)).await;
        read.is_ok_and(|count| count > 0)
    }

    async fn line(&mut self) -> Option<String> {
        loop {
            if let Some(at) = self.buffer.windows(2).position(|two| two == b"\r\n") {
                let line: Vec<u8> = self.buffer.drain(..at + 2).collect();
                return Some(String::from_utf8(line[..at].to_vec()).unwrap());
            }
            if !self.fill().await {
                return None;
            }
        }
    }

    async fn fields(&mut self) -> Option<Fields> {
        let mut fields = Vec::new();
        loop {
            let line = self.line().await?;
            let Some((name, value)) = line.split_once(": ") else { return Some(fields) };
            fields.push((name.to_owned(), value.to_owned()));
        }
    }

    /// The first line and the fields.
    async fn head(&mut self) -> Option<(String, Fields)> {
        let line = self.line().await?;
        let fields = self.fields().await?;
        let length = value(&fields, "content-length").map(|length| length.parse().unwrap());
        self.incoming = match length {
            _ if value(&fields, "transfer-encoding").is_some() => Body::Streamed,
            Some(length) => Body::Length(length),
            None => Body::None,
        };
        Some((line, fields))
    }

    async fn piece(&mut self) -> Option<Vec<u8>> {
        let length = match self.incoming {
            Body::None | Body::Length(0) => return None,
            Body::Tunnel => {
                let there = !self.buffer.is_empty() || self.fill().await;
                return there.then(|| std::mem::take(&mut self.buffer));
            }
            Body::Length(length) => length,
            Body::Streamed => {
                let line = self.line().await.expect("a chunk's size");
                let length = usize::from_str_radix(&line, 16).unwrap();
                if length == 0 {
                    self.incoming = Body::None;
                    self.trailers = self.fields().await.expect("trailers");
                    return None;
                }
                while self.buffer.len() < length + 2 {
                    assert!(self.fill().await, "the body broke off");
                }
                let data = self.buffer.drain(..length).collect();
                self.buffer.drain(..2);
                return Some(data);
            }
        };
        if self.buffer.is_empty() {
            assert!(self.fill().await, "the body broke off");
        }
        let data: Vec<u8> = self.buffer.drain(..length.min(self.buffer.len())).collect();
        self.incoming = Body::Length(length - data.len());
        Some(data)
    }

    async fn write(&mut self, bytes: impl AsRef<[u8]>) {
        soon("bytes taken", self.stream.write_all(bytes.as_ref())).await.unwrap();
        self.stream.flush().await.unwrap();
    }

    async fn write_head(&mut self, line: &str, fields: &[(&str, &str)], body: Body) {
        let mut head = format!("{line}\r\n");
        for (name, value) in fields {
            head += &format!("{name}: {value}\r\n");
        }
        match body {
            Body::None | Body::Tunnel => {}
            Body::Length(length) => head += &format!("Content-Length: {length}\r\n"),
            Body::Streamed => head += "Transfer-Encoding: chunked\r\n",
        }
        self.is_chunked = matches!(body, Body::Streamed);
        self.write(head + "\r\n").await;
    }
}

fn message(fields: &[(&str, &str)], body: Body) -> http::HeaderMap {
    let mut map = http::HeaderMap::new();
    for (name, value) in fields {
        map.append(name.parse::<http::HeaderName>().unwrap(), value.parse().unwrap());
    }
    if let Body::Length(length) = body {
        map.insert("content-length", length.into());
    }
    map
}

impl End {
    /// The next bytes of the body that comes; `None` at its end.
    pub(crate) async fn piece(&mut self) -> Option<Vec<u8>> {
        match self {
            Self::One(one) => one.piece().await,
            Self::Two(two) => {
                let receives = two.receives.as_mut().unwrap();
                match soon("bytes over HTTP/2", receives.data()).await {
                    Some(data) => {
                        let data = data.expect("the body goes on");
                        receives.flow_control().release_capacity(data.len()).unwrap();
                        Some(data.to_vec())
                    }
                    None => {
                        let trailers = soon("trailers", receives.trailers()).await.unwrap();
                        two.trailers = trailers.as_ref().map(listed).unwrap_or_default();
                        None
                    }
                }
            }
        }
    }

    /// So many bytes of the body, which must come without the other end doing any more.
    pub(crate) async fn bytes(&mut self, count: usize) -> String {
        let mut bytes = Vec::new();
        while bytes.len() < count {
            bytes.extend(self.piece().await.expect("more of the body"));
        }
        String::from_utf8(bytes).unwrap()
    }

    /// The rest of the body, and its trailers.
    async fn rest(&mut self) -> (String, Fields) {
        let mut bytes = Vec::new();
        while let Some(piece) = self.piece().await {
            bytes.extend(piece);
        }
        let trailers = match self {
            Self::One(one) => std::mem::take(&mut one.trailers),
            Self::Two(two) => std::mem::take(&mut two.trailers),
        };
        (String::from_utf8(bytes).unwrap(), trailers)
    }

    pub(crate) async fn send(&mut self, data: &str) {
        match self {
            Self::One(one) if one.is_chunked => {
                one.write(format!("{:x}\r\n{data}\r\n", data.len())).await;
            }
            Self::One(one) => one.write(data).await,
            Self::Two(two) => {
                let sends = two.sends.as_mut().unwrap();
                sends.send_data(data.to_owned().into(), false).unwrap();
            }
        }
    }

    pub(crate) async fn finish(&mut self, trailers: &[(&str, &str)]) {
        match self {
            Self::One(one) if one.is_chunked => {
                let lines: String =
                    trailers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
                one.write(format!("0\r\n{lines}\r\n")).await;
            }
            Self::One(One { incoming: Body::Tunnel, stream, .. }) => {
                stream.shutdown().await.unwrap();
            }
            Self::One(_) => {}
            Self::Two(two) => {
                let sends = two.sends.as_mut().unwrap();
                match trailers {
                    [] => sends.send_data(Bytes::new(), true).unwrap(),
                    _ => sends.send_trailers(message(trailers, Body::None)).unwrap(),
                }
            }
        }
    }

    /// The caller's: the next head of an answer, interim ones included.
    pub(crate) async fn answer(&mut self) -> (u16, Fields) {
        match self {
            Self::One(one) => {
                let (line, fields) = one.head().await.expect("an answer");
                (line.split(' ').nth(1).unwrap().parse().unwrap(), fields)
            }
            Self::Two(two) => {
                let mut response = two.response.take().expect("no answer yet");
                let next = poll_fn(|context| {
                    if let Poll::Ready(Some(interim)) = response.poll_informational(context) {
                        return Poll::Ready(Ok((interim?.into_parts().0, None)));
                    }
                    let answer = std::task::ready!(Pin::new(&mut response).poll(context))?;
                    let (parts, body) = answer.into_parts();
                    Poll::Ready(Ok::<_, h2::Error>((parts, Some(body))))
                });
                let (parts, body) = soon("an answer", next).await.expect("an answer");
                match body {
                    Some(body) => two.receives = Some(body),
                    None => two.response = Some(response),
                }
                (parts.status.as_u16(), listed(&parts.headers))
            }
        }
    }

    /// The app's: a 1xx.
    async fn interim(&mut self, status: u16, fields: &[(&str, &str)]) {
        match self {
            Self::One(one) => {
                one.write_head(&format!("HTTP/1.1 {status} Early"), fields, Body::None).await;
            }
            Self::Two(two) => {
                let mut response = http::Response::new(());
                *response.status_mut() = http::StatusCode::from_u16(status).unwrap();
                *response.headers_mut() = message(fields, Body::None);
                two.respond.as_mut().unwrap().send_informational(response).unwrap();
            }
        }
    }

    /// The app's: the answer's head.
    pub(crate) async fn respond(&mut self, status: u16, fields: &[(&str, &str)], body: Body) {
        match self {
            Self::One(one) => {
                // The test holds this end as long as it likes; no other request shall come to it.
                let close = [("Connection", "close")];
                let is_tunnel = matches!(body, Body::Tunnel);
                let fields = if is_tunnel { fields.to_vec() } else { [fields, &close].concat() };
                one.write_head(&format!("HTTP/1.1 {status} X"), &fields, body).await;
            }
            Self::Two(two) => {
                let mut response = http::Response::new(());
                *response.status_mut() = http::StatusCode::from_u16(status).unwrap();
                *response.headers_mut() = message(fields, body);
                let ended = matches!(body, Body::None);
                let sends = two.respond.as_mut().unwrap().send_response(response, ended).unwrap();
                two.sends = Some(sends);
            }
        }
    }

    /// What comes and goes from here on is another protocol.
    pub(crate) fn switch(&mut self) {
        if let Self::One(one) = self {
            one.incoming = Body::Tunnel;
        }
    }

    /// The tunnel's end, as this end of it sees it.
    pub(crate) async fn end(&mut self) -> Ending {
        match self {
            Self::One(one) => {
                let mut rest = [0; 64];
                match soon("the tunnel's end", one.stream.read(&mut rest)).await {
                    Ok(0) => Ending::Clean,
                    Ok(count) => panic!("more came: {:?}", &rest[..count]),
                    Err(_) => Ending::Cut,
                }
            }
            Self::Two(two) => {
                match soon("the tunnel's end", two.receives.as_mut().unwrap().data()).await {
                    None => Ending::Clean,
                    // An empty frame may end a stream.
                    Some(Ok(data)) if data.is_empty() => Ending::Clean,
                    Some(Ok(data)) => panic!("more came: {data:?}"),
                    Some(Err(_)) => Ending::Cut,
                }
            }
        }
    }

    /// Waits until the other end has left.
    pub(crate) async fn left(&mut self) {
        match self {
            Self::One(one) => while one.fill().await {},
            Self::Two(two) => {
                let gone = poll_fn(|context| match &mut two.sends {
                    Some(sends) => sends.poll_reset(context).map(|_| ()),
                    None => two.respond.as_mut().unwrap().poll_reset(context).map(|_| ()),
                });
                soon("a reset", gone).await;
            }
        }
    }
}

/// A mesh before an app, both ends of which the test holds.
pub(crate) struct Stage {
    pub(crate) mesh: Mesh,
    arrivals: mpsc::Receiver<(End, http::request::Parts)>,
    _app: Tasks,
    _clients: Vec<Client>,
}

impl Stage {
    pub(crate) async fn before(app: Version) -> Self {
        Self::with(app, Mesh::before).await
    }

    /// Before an app, with the mesh that `mesh` makes of its URL.
    pub(crate) async fn with(app: Version, mesh: impl FnOnce(&str) -> Mesh) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (arrive, arrivals) = mpsc::channel(64);
        let mut tasks = Tasks::new();
        tasks.add(async move {
            let mut connections = Tasks::new();
            while let Ok((tcp, _)) = listener.accept().await {
                let _ = tcp.set_nodelay(true);
                let arrive = arrive.clone();
                connections.add(async move {
                    match app {
                        Version::One => one_arrives(tcp, &arrive).await,
                        Version::Two => two_arrive(tcp, &arrive).await,
                    }
                });
            }
        });
        let scheme = if app == Version::One { "http" } else { "grpc" };
        let mesh = mesh(&format!("{scheme}://{address}"));
        Self { mesh, arrivals, _app: tasks, _clients: Vec::new() }
    }

    /// Begins a request; the app's end of it is the next arrival.
    pub(crate) async fn ask(
        &mut self,
        (door, version): (Door, Version),
        (method, path): (&str, &str),
        fields: &[(&str, &str)],
        body: Body,
    ) -> End {
        match version {
            Version::One => {
                let mut one = One::over(self.mesh.stream(door, Alpn::Http1).await);
                let fields = [&[("Host", "a")], fields].concat();
                one.write_head(&format!("{method} {path} HTTP/1.1"), &fields, body).await;
                End::One(one)
            }
            Version::Two => {
                let mut request = crate::http2::request(method, path, &[]);
                *request.headers_mut() = message(fields, body);
                self.open(door, request, matches!(body, Body::None)).await
            }
        }
    }

    /// Begins a request over HTTP/2.
    pub(crate) async fn open(
        &mut self,
        door: Door,
        request: http::Request<()>,
        ended: bool,
    ) -> End {
        let client = Client::to(&self.mesh, door).await;
        let (response, sends) = client.open(request, ended).await.unwrap();
        self._clients.push(client);
        let (response, sends) = (Some(response), Some(sends));
        End::Two(Two { response, sends, ..Two::default() })
    }

    pub(crate) async fn arrival(&mut self) -> (End, http::request::Parts) {
        soon("a request at the app", self.arrivals.recv()).await.unwrap()
    }
}

async fn one_arrives(tcp: TcpStream, arrive: &mpsc::Sender<(End, http::request::Parts)>) {
    let mut one = One::over(tcp);
    let Some((line, fields)) = one.head().await else { return };
    let mut words = line.split(' ');
    let (method, target) = (words.next().unwrap(), words.next().unwrap());
    let mut request = http::Request::builder().method(method).uri(target).body(()).unwrap();
    for (name, value) in &fields {
        let name: http::HeaderName = name.parse().unwrap();
        request.headers_mut().append(name, value.parse().unwrap());
    }
    let _ = arrive.send((End::One(one), request.into_parts().0)).await;
}

async fn two_arrive(tcp: TcpStream, arrive: &mpsc::Sender<(End, http::request::Parts)>) {
    let mut builder = h2::server::Builder::new();
    builder.enable_connect_protocol();
    let Ok(mut connection) = builder.handshake(tcp).await else { return };
    while let Some(Ok((request, respond))) = connection.accept().await {
        let (parts, receives) = request.into_parts();
        let (respond, receives) = (Some(respond), Some(receives));
        let end = End::Two(Two { respond, receives, ..Two::default() });
        let _ = arrive.send((end, parts)).await;
    }
}

const TRAILERS: &[(&str, &str)] = &[("X-Sum", "7"), ("Content-Length", "1")];

/// What every pair of versions must carry.
async fn carries_everything(stage: &mut Stage, from: (Door, Version)) {
    // A body of known length each way.
    let mut caller = stage.ask(from, ("PUT", "/known?x"), &[("X-A", "1")], Body::Length(5)).await;
    let (mut app, head) = stage.arrival().await;
    assert_eq!(
        (head.method.as_str(), head.uri.path(), head.uri.query()),
        ("PUT", "/known", Some("x"))
    );
    for (name, expected) in [("x-a", "1"), ("content-length", "5")] {
        assert_eq!(head.headers[name], expected, "{from:?} {name}");
    }
    caller.send("hello").await;
    caller.finish(&[]).await;
    assert_eq!(app.rest().await, ("hello".to_owned(), vec![]), "{from:?}");
    app.respond(201, &[("X-B", "2")], Body::Length(5)).await;
    app.send("world").await;
    app.finish(&[]).await;
    let (status, fields) = caller.answer().await;
    assert_eq!((status, value(&fields, "x-b")), (201, Some("2")), "{from:?}");
    assert_eq!(value(&fields, "content-length"), Some("5"), "{from:?}");
    assert_eq!(caller.rest().await, ("world".to_owned(), vec![]), "{from:?}");

    // Bodies in pieces, each of which arrives before the next one is sent, both ways at once, and trailers behind them.
    let fields = [("TE", "trailers"), ("Trailer", "X-Sum")];
    let mut caller = stage.ask(from, ("POST", "/talk"), &fields, Body::Streamed).await;
    let (mut app, head) = stage.arrival().await;
    for (name, expected) in [("te", "trailers"), ("trailer", "X-Sum")] {
        assert_eq!(head.headers[name], expected, "{from:?} {name}");
    }
    for number in 0..3 {
        caller.send(&format!("there {number}")).await;
        assert_eq!(app.bytes(7).await, format!("there {number}"), "{from:?}");
        if number == 0 {
            // As server-sent events come: no length, nothing held back.
            app.respond(200, &[("Content-Type", "text/event-stream")], Body::Streamed).await;
            assert_eq!(caller.answer().await.0, 200, "{from:?}");
        }
        app.send(&format!("data: back {number}\n\n")).await;
        assert_eq!(caller.bytes(14).await, format!("data: back {number}\n\n"), "{from:?}");
    }
    caller.finish(TRAILERS).await;
    let (left, trailers) = app.rest().await;
    assert_eq!((left.as_str(), value(&trailers, "x-sum")), ("", Some("7")), "{from:?}");
    app.finish(TRAILERS).await;
    let (left, trailers) = caller.rest().await;
    assert_eq!((left.as_str(), value(&trailers, "x-sum")), ("", Some("7")), "{from:?}");

    // 1xx, and the body only when it is asked for.
    let expects = [("Expect", "100-continue")];
    let mut caller = stage.ask(from, ("POST", "/expect"), &expects, Body::Length(4)).await;
    assert_eq!(caller.answer().await.0, 100, "{from:?}");
    let (mut app, head) = stage.arrival().await;
    assert_eq!(head.headers.get("expect"), None, "it was answered on the way");
    app.interim(103, &[("Link", "</a.css>")]).await;
    let (status, fields) = caller.answer().await;
    assert_eq!((status, value(&fields, "link")), (103, Some("</a.css>")), "{from:?}");
    caller.send("body").await;
    caller.finish(&[]).await;
    assert_eq!(app.rest().await.0, "body", "{from:?}");
    app.respond(204, &[], Body::None).await;
    assert_eq!(caller.answer().await.0, 204, "{from:?}");

    // An answer before the end of the request.
    let mut caller = stage.ask(from, ("POST", "/early"), &[], Body::Streamed).await;
    let (mut app, _) = stage.arrival().await;
    caller.send("some").await;
    assert_eq!(app.bytes(4).await, "some");
    app.respond(413, &[], Body::Length(5)).await;
    app.send("large").await;
    app.finish(&[]).await;
    assert_eq!(caller.answer().await.0, 413, "{from:?}");
    assert_eq!(caller.rest().await.0, "large", "{from:?}");
    drop((caller, app));

    // A caller that leaves: before the answer, and in the middle of it.
    for begun in [false, true] {
        let mut caller = stage.ask(from, ("GET", "/left"), &[], Body::None).await;
        let (mut app, _) = stage.arrival().await;
        if begun {
            app.respond(200, &[], Body::Streamed).await;
            app.send("begun").await;
            assert_eq!(caller.answer().await.0, 200);
            assert_eq!(caller.bytes(5).await, "begun");
        }
        drop(caller);
        app.left().await;
    }
}

#[tokio::test]
async fn every_pair_of_versions_carries_everything_to_an_app_of_http_1() {
    let mut stage = Stage::before(Version::One).await;
    for door in DOORS {
        for version in VERSIONS {
            carries_everything(&mut stage, (door, version)).await;
        }
    }
}

#[tokio::test]
async fn every_pair_of_versions_carries_everything_to_an_app_of_http_2() {
    let mut stage = Stage::before(Version::Two).await;
    for door in DOORS {
        for version in VERSIONS {
            carries_everything(&mut stage, (door, version)).await;
        }
    }
}

#[tokio::test]
async fn trailers_of_a_message_with_a_length_come_through_where_they_were_announced() {
    for app_version in VERSIONS {
        let mut stage = Stage::before(app_version).await;
        for door in DOORS {
            let fields = [("trailer", "x-sum"), ("te", "trailers")];
            let from = (door, Version::Two);
            let mut caller = stage.ask(from, ("POST", "/"), &fields, Body::Length(5)).await;
            let (mut app, _) = stage.arrival().await;
            caller.send("hello").await;
            caller.finish(&[("x-sum", "7")]).await;
            let (body, trailers) = app.rest().await;
            assert_eq!(
                (body.as_str(), value(&trailers, "x-sum")),
                ("hello", Some("7")),
                "{door:?}"
            );
            // HTTP/1.1 has trailers behind chunks alone.
            let body = if app_version == Version::One { Body::Streamed } else { Body::Length(5) };
            app.respond(200, &[("trailer", "x-sum")], body).await;
            app.send("world").await;
            app.finish(&[("x-sum", "8")]).await;
            assert_eq!(caller.answer().await.0, 200);
            let (body, trailers) = caller.rest().await;
            assert_eq!(
                (body.as_str(), value(&trailers, "x-sum")),
                ("world", Some("8")),
                "{door:?}"
            );
        }
    }
}

#[tokio::test]
async fn a_caller_of_http_1_that_does_not_ask_for_trailers_gets_none() {
    let mut stage = Stage::before(Version::Two).await;
    for door in DOORS {
        let from = (door, Version::One);
        let mut caller = stage.ask(from, ("GET", "/"), &[], Body::None).await;
        let (mut app, head) = stage.arrival().await;
        assert_eq!(head.headers.get("te"), None);
        app.respond(200, &[("trailer", "x-sum")], Body::Length(5)).await;
        app.send("hello").await;
        app.finish(&[("x-sum", "7")]).await;
        let (_, fields) = caller.answer().await;
        assert_eq!(value(&fields, "content-length"), Some("5"), "{door:?}");
        assert_eq!(caller.rest().await, ("hello".to_owned(), vec![]), "{door:?}");
    }
}

#[tokio::test]
async fn what_is_not_asked_for_is_not_held_back_either() {
    // A length that is used up while the stream's end is still to come: the last bytes must not wait for it.
    let mut stage = Stage::before(Version::Two).await;
    for door in DOORS {
        let from = (door, Version::Two);
        let mut caller = stage.ask(from, ("POST", "/"), &[], Body::Length(5)).await;
        let (mut app, _) = stage.arrival().await;
        caller.send("hello").await;
        assert_eq!(app.bytes(5).await, "hello", "{door:?}");
        app.respond(200, &[], Body::Length(5)).await;
        app.send("world").await;
        assert_eq!(caller.answer().await.0, 200);
        assert_eq!(caller.bytes(5).await, "world", "{door:?}");
        caller.finish(&[]).await;
        assert_eq!(app.rest().await.0, "");
        app.finish(&[]).await;
        assert_eq!(caller.rest().await.0, "");
    }
}
