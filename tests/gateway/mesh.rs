//! Two sidecars and an ingress around one app, and clients and apps that speak in bytes.
//!
//! ```text
//! client ─▶ outbound door of /shop ─┐
//! client ─▶ ingress ────────────────┼─ mTLS ─▶ inbound door of /billing ─▶ app
//! peer of the mesh ─────────────────┘
//! ```

#![allow(dead_code, unreachable_pub, reason = "each file of the binary uses its part")]

use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use wardgate::mtls::Alpn;

use crate::world::{PATIENCE, Process, World, allow_switching, soon};

/// Where a client comes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Door {
    /// The plain door of the calling workload's sidecar.
    Outbound,
    /// The mTLS door of the called workload's sidecar, as the peer /shop.
    Inbound,
    /// The plain door of the ingress.
    Ingress,
}

pub const DOORS: [Door; 3] = [Door::Outbound, Door::Inbound, Door::Ingress];

/// The sidecars of /shop and /billing, an ingress, and the way from each to the app behind /billing.
pub struct Mesh {
    /// The calling workload's sidecar.
    pub shop: Process,
    pub ingress: Process,
    /// The called workload's sidecar.
    pub billing: Process,
    pub world: World,
}

impl Mesh {
    /// Before an app that is named as the setting `sidecar.app` names it. WebSocket is let through.
    pub fn before(app: &str) -> Self {
        Self::with(app, &json!({ "enable_websocket": true }), &json!({}))
    }

    /// The same with fields of one's own in the routes towards /billing and in their upstreams.
    pub fn with(app: &str, route: &Value, upstream: &Value) -> Self {
        let world = World::new();
        let callers = [world.id("/shop"), world.id("/wardgate/ingress")];
        let callers: Vec<&str> = callers.iter().map(String::as_str).collect();
        let billing = world
            .sidecar("/billing")
            .set("sidecar.app", &json!(app))
            .resources(&json!({
                "identity_policies": [allow_switching("callers", &[&world.id("/billing")], &callers)],
            }))
            .launch();
        let node = billing.address("inbound").to_string();
        let towards = |selector: &Value| {
            let upstream = merged(
                json!({
                    "nodes": { &node: 1 },
                    "tls": { "identity": "svid", "spiffe_ids": [world.id("/billing")] },
                }),
                upstream,
            );
            let own = json!({ "id": "billing", "uri": "/*", "upstream": upstream });
            json!({ "routes": [merged(merged(own, selector), route)] })
        };
        let outbound = towards(&json!({ "workload_selector": { "listener": "outbound" } }));
        let shop = world.sidecar("/shop").resources(&outbound).launch();
        let ingress = world.ingress().resources(&towards(&json!({}))).launch();
        for part in [&billing, &shop, &ingress] {
            part.wait_ready();
        }
        Self { shop, ingress, billing, world }
    }

    pub fn address(&self, door: Door) -> SocketAddr {
        match door {
            Door::Outbound => self.shop.address("outbound"),
            Door::Inbound => self.billing.address("inbound"),
            Door::Ingress => self.ingress.address("ingress"),
        }
    }

    /// A connection to a door, ready for the first byte of HTTP.
    pub async fn stream(&self, door: Door, alpn: Alpn) -> Box<dyn Stream> {
        match door {
            Door::Outbound | Door::Ingress => {
                Box::new(TcpStream::connect(self.address(door)).await.unwrap())
            }
            Door::Inbound => {
                let peer = self.world.peer("/shop");
                Box::new(peer.stream(&self.billing, alpn).await.unwrap())
            }
        }
    }

    /// A connection for HTTP/1.1.
    pub async fn wire(&self, door: Door) -> Wire {
        Wire::over(self.stream(door, Alpn::Http1).await)
    }
}

/// `base` with the fields of `more`.
pub fn merged(mut base: Value, more: &Value) -> Value {
    for (name, value) in more.as_object().unwrap() {
        base[name] = value.clone();
    }
    base
}

pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// As who is done ends it.
    Clean,
    /// Broken off.
    Cut,
}

/// A client that speaks HTTP/1 in bytes.
pub struct Wire {
    stream: Box<dyn Stream>,
    /// What has come and was not used yet.
    pub buffer: Vec<u8>,
    ended: Option<End>,
}

/// A response as it came over a wire.
#[derive(Debug, Default)]
pub struct Response {
    pub status: u16,
    pub fields: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// Did the body end as its framing said?
    pub whole: bool,
}

impl Response {
    pub fn field(&self, name: &str) -> Option<&str> {
        let field = self.fields.iter().find(|(found, _)| found.eq_ignore_ascii_case(name));
        field.map(|(_, value)| value.as_str())
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("no JSON: {self:?}"))
    }
}

impl Wire {
    pub fn over(stream: impl Stream + 'static) -> Self {
        Self { stream: Box::new(stream), buffer: Vec::new(), ended: None }
    }

    pub async fn to(address: SocketAddr) -> Self {
        Self::over(TcpStream::connect(address).await.unwrap())
    }

    /// Sends bytes; who has closed need not take them.
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let sent = async {
            if self.stream.write_all(bytes.as_ref()).await.is_ok() {
                let _ = self.stream.flush().await;
            }
        };
        soon("bytes taken", sent).await;
    }

    /// Ends our half of the connection.
    pub async fn half_close(&mut self) {
        let _ = self.stream.shutdown().await;
    }

    /// Reads once; `false` at the end.
    async fn fill(&mut self) -> bool {
        if self.ended.is_some() {
            return false;
        }
        self.buffer.reserve(16 * 1024);
        let seen = String::from_utf8_lossy(&self.buffer[..self.buffer.len().min(500)]).into_owned();
        match soon(&format!("more behind {seen:?}"), self.stream.read_buf(&mut self.buffer)).await {
            Ok(0) => self.ended = Some(End::Clean),
            Err(_) => self.ended = Some(End::Cut),
            Ok(_) => {}
        }
        self.ended.is_none()
    }

    /// So many bytes, as they come.
    pub async fn bytes(&mut self, count: usize) -> Vec<u8> {
        let bytes = self.try_bytes(count).await;
        bytes.unwrap_or_else(|| panic!("only {} of {count} bytes came", self.buffer.len()))
    }

    /// So many bytes; `None` when the connection ends before.
    pub async fn try_bytes(&mut self, count: usize) -> Option<Vec<u8>> {
        while self.buffer.len() < count {
            if !self.fill().await {
                return None;
            }
        }
        Some(self.buffer.drain(..count).collect())
    }

    /// The head of a response; `None` when the connection ends before it does.
    pub async fn head(&mut self) -> Option<Response> {
        let end = loop {
            match self.buffer.windows(4).position(|four| four == b"\r\n\r\n") {
                Some(at) => break at + 4,
                None if self.fill().await => {}
                None => return None,
            }
        };
        let head: Vec<u8> = self.buffer.drain(..end).collect();
        let head = String::from_utf8(head).unwrap();
        let mut lines = head.trim_end().split("\r\n");
        let first = lines.next().unwrap();
        assert!(first.starts_with("HTTP/1.1 "), "{first:?}");
        let fields = lines.map(|line| {
            let (name, value) = line.split_once(": ").unwrap_or_else(|| panic!("{line:?}"));
            (name.to_owned(), value.to_owned())
        });
        let status = first[9..12].parse().unwrap();
        Some(Response { status, fields: fields.collect(), ..Response::default() })
    }

    /// A whole response to a request of this method; `None` when the connection ends before a head.
    pub async fn response_to(&mut self, method: &str) -> Option<Response> {
        let mut response = self.head().await?;
        let bodiless = method == "HEAD" || matches!(response.status, 100..=199 | 204 | 304);
        let length = response.field("content-length").map(|text| text.parse::<usize>().unwrap());
        if bodiless {
            response.whole = true;
        } else if response.field("transfer-encoding") == Some("chunked") {
            assert_eq!(length, None, "two framings");
            response.whole = self.chunks(&mut response.body).await;
        } else if let Some(length) = length {
            while self.buffer.len() < length && self.fill().await {}
            response.whole = self.buffer.len() >= length;
            response.body = self.buffer.drain(..length.min(self.buffer.len())).collect();
        } else {
            while self.fill().await {}
            response.whole = self.ended == Some(End::Clean);
            response.body = std::mem::take(&mut self.buffer);
        }
        Some(response)
    }

    async fn chunks(&mut self, body: &mut Vec<u8>) -> bool {
        loop {
            let line = loop {
                match self.buffer.windows(2).position(|two| two == b"\r\n") {
                    Some(at) => break at,
                    None if self.fill().await => {}
                    None => return false,
                }
            };
            let size = std::str::from_utf8(&self.buffer[..line]).unwrap();
            let size = usize::from_str_radix(size, 16).unwrap();
            while self.buffer.len() < line + 2 + size + 2 && self.fill().await {}
            let there = (line + 2 + size).min(self.buffer.len());
            body.extend_from_slice(&self.buffer[line + 2..there]);
            if self.buffer.len() < line + 2 + size + 2 {
                return false;
            }
            assert_eq!(&self.buffer[there..there + 2], b"\r\n");
            self.buffer.drain(..there + 2);
            if size == 0 {
                return true;
            }
        }
    }

    /// Sends a request and reads its response, which must come.
    pub async fn ask(&mut self, request: impl AsRef<[u8]>) -> Response {
        let request = request.as_ref();
        self.send(request).await;
        let method: Vec<u8> = request.iter().copied().take_while(|b| *b != b' ').collect();
        let answer = self.response_to(std::str::from_utf8(&method).unwrap()).await;
        let line = || String::from_utf8_lossy(&request[..request.len().min(200)]).into_owned();
        answer.unwrap_or_else(|| panic!("no answer to {:?}", line()))
    }

    /// Waits for the end of the connection, before which nothing more may come.
    pub async fn end(&mut self) -> End {
        while self.fill().await {}
        let left = String::from_utf8_lossy(&self.buffer).into_owned();
        assert!(left.is_empty(), "unexpected: {left:?}");
        self.ended.unwrap()
    }
}

/// An app that speaks in bytes: each connection runs on a thread of its own.
pub struct RawApp {
    pub address: SocketAddr,
    connections: Arc<AtomicUsize>,
}

impl RawApp {
    /// `serve` gets each connection; it is closed when `serve` returns.
    pub fn serving(serve: impl Fn(&mut RawStream) + Clone + Send + 'static) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Arc::<AtomicUsize>::default();
        let counted = connections.clone();
        std::thread::spawn(move || {
            for tcp in listener.incoming() {
                let number = counted.fetch_add(1, Ordering::SeqCst);
                let tcp = tcp.unwrap();
                // A thread must not outlive a test that failed by much.
                tcp.set_read_timeout(Some(PATIENCE)).unwrap();
                tcp.set_write_timeout(Some(PATIENCE)).unwrap();
                tcp.set_nodelay(true).unwrap();
                let serve = serve.clone();
                std::thread::spawn(move || {
                    serve(&mut RawStream { tcp, number, buffer: Vec::new() });
                });
            }
        });
        Self { address, connections }
    }

    /// Answers every request, whatever it is, with these bytes, and closes when it is told to.
    pub fn answering(answer: impl Into<Vec<u8>>, close: bool) -> Self {
        let answer: Vec<u8> = answer.into();
        Self::serving(move |stream| {
            while stream.request().is_some() {
                stream.send(&answer);
                if close {
                    return;
                }
            }
        })
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// How many connections have come.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

/// One connection of a [`RawApp`].
pub struct RawStream {
    pub tcp: std::net::TcpStream,
    /// 0 for the app's first connection.
    pub number: usize,
    pub buffer: Vec<u8>,
}

impl RawStream {
    /// Reads once; `false` at the end, however it came.
    pub fn fill(&mut self) -> bool {
        let mut piece = [0; 64 * 1024];
        match self.tcp.read(&mut piece) {
            Ok(count) if count > 0 => {
                self.buffer.extend_from_slice(&piece[..count]);
                true
            }
            _ => false,
        }
    }

    /// The next request's head.
    pub fn head(&mut self) -> Option<String> {
        loop {
            if let Some(at) = self.buffer.windows(4).position(|four| four == b"\r\n\r\n") {
                let head = self.buffer.drain(..at + 4).collect();
                return Some(String::from_utf8(head).unwrap());
            }
            if !self.fill() {
                return None;
            }
        }
    }

    /// The next request's head, its body of known length read and thrown away.
    pub fn request(&mut self) -> Option<String> {
        let head = self.head()?;
        let length = field(&head, "content-length").map_or(0, |text| text.parse().unwrap());
        self.body(length)?;
        Some(head)
    }

    pub fn body(&mut self, length: usize) -> Option<Vec<u8>> {
        while self.buffer.len() < length {
            if !self.fill() {
                return None;
            }
        }
        Some(self.buffer.drain(..length).collect())
    }

    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let _ = self.tcp.write_all(bytes.as_ref());
    }

    /// Waits until the other end closes; what came until then.
    pub fn rest(&mut self) -> Vec<u8> {
        while self.fill() {}
        std::mem::take(&mut self.buffer)
    }

    /// Closes so that the other end sees a reset.
    pub fn reset(&mut self) {
        socket2::SockRef::from(&self.tcp).set_linger(Some(std::time::Duration::ZERO)).unwrap();
    }
}

/// The first value of a field in a head as text.
pub fn field<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().skip(1).find_map(|line| {
        let (found, value) = line.split_once(':')?;
        found.eq_ignore_ascii_case(name).then(|| value.trim())
    })
}

/// The most memory that a process has had at once, in KiB.
pub fn peak_memory(process: &Process) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}
