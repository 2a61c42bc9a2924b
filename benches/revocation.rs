//! From a revocation to the last byte: `cargo bench --bench revocation -- [connections] [drain seconds]`.
//!
//! So many peers, each with an SVID of its own, hold one connection each to a sidecar of the real binary, in the middle of an
//! answer over HTTP/1.1, of a stream over HTTP/2, or of a WebSocket in which bytes come all the time. Then the authority that
//! vouched for them is removed, policy takes everything from them, or the deny list names them. Measured is, for each connection, when its last byte came
//! and when it was closed, and how long requests of a bystander took meanwhile.

#![allow(clippy::unwrap_used, reason = "a bench that fails says where")]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a bench prints its figures")]
#![allow(unused_imports, reason = "the tests' world has more than is needed here")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use wardgate::identity::{Identity, TrustBundles};
use wardgate::issuer::Authority;
use wardgate::mtls::Alpn;
use wardgate::mtls::MeshStream;
use wardgate::rt::{Clock, Tasks};

#[path = "../tests/support/etcd.rs"]
mod etcd_server;
#[path = "../tests/gateway/world.rs"]
mod world;

use world::{Peer, Process, World, allow, eventually};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Http1,
    Http2,
    WebSocket,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cause {
    /// The authority is taken out of the bundle file.
    Bundle,
    /// A policy is written through the Admin API.
    Policy,
    /// The deny list gets their SPIFFE ID through the Admin API.
    Denied,
}

/// When a connection had its last byte, and when it ended.
type Ended = (SystemTime, SystemTime);

const TICK: Duration = Duration::from_millis(100);

/// Sends a little all the time, in whichever way it is asked.
async fn tick(mut tcp: TcpStream) -> std::io::Result<()> {
    let mut head = vec![0; 4096];
    let mut got = 0;
    while !head[..got].windows(4).any(|four| four == b"\r\n\r\n") {
        match tcp.read(&mut head[got..]).await? {
            0 => return Ok(()),
            count => got += count,
        }
    }
    let text = String::from_utf8_lossy(&head[..got]).to_ascii_lowercase();
    if text.starts_with("get /once") {
        return tcp
            .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
            .await;
    }
    if text.contains("upgrade: websocket") {
        tcp.write_all(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n").await?;
    } else {
        tcp.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await?;
    }
    loop {
        tokio::time::sleep(TICK).await;
        tcp.write_all(b"10\r\n0123456789abcdef\r\n").await?;
    }
}

async fn app(tasks: &mut Tasks) -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tasks.add(async move {
        let mut connections = Tasks::new();
        while let Ok((tcp, _)) = listener.accept().await {
            connections.add(async move {
                let _ = tick(tcp).await;
            });
        }
    });
    address
}

/// Reads until the end, once the answer has begun.
async fn hold(
    stream: MeshStream<TcpStream>,
    kind: Kind,
    begun: Arc<tokio::sync::Semaphore>,
) -> Ended {
    let mut last = SystemTime::now();
    match kind {
        Kind::Http1 | Kind::WebSocket => {
            let mut stream = stream;
            let upgrade = match kind {
                Kind::WebSocket => "Connection: Upgrade\r\nUpgrade: websocket\r\n",
                Kind::Http1 | Kind::Http2 => "",
            };
            let request = format!("GET /tick HTTP/1.1\r\nHost: a\r\n{upgrade}\r\n");
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut piece = vec![0; 4096];
            let mut is_first = true;
            while let Ok(count @ 1..) = stream.read(&mut piece).await {
                last = SystemTime::now();
                if std::mem::take(&mut is_first) {
                    let answer = String::from_utf8_lossy(&piece[..count]).into_owned();
                    assert!(
                        answer.starts_with("HTTP/1.1 200") || answer.starts_with("HTTP/1.1 101"),
                        "{answer}"
                    );
                    begun.add_permits(1);
                }
            }
        }
        Kind::Http2 => {
            let (mut send, connection) = h2::client::handshake(stream).await.unwrap();
            let mut driver = Tasks::new();
            driver.add(async move {
                let _ = connection.await;
            });
            let request = http::Request::get("http://a/tick").body(()).unwrap();
            let (response, _) = send.send_request(request, true).unwrap();
            let response = response.await.unwrap();
            assert_eq!(response.status(), 200);
            begun.add_permits(1);
            let mut body = response.into_body();
            while let Some(Ok(piece)) = body.data().await {
                last = SystemTime::now();
                let _ = body.flow_control().release_capacity(piece.len());
            }
            // The connection itself is over when nothing drives it any more.
            driver.any_ended().await;
        }
    }
    (last, SystemTime::now())
}

fn after(from: SystemTime, times: impl Iterator<Item = SystemTime>) -> Vec<f64> {
    let millis = |time: SystemTime| match time.duration_since(from) {
        Ok(later) => later.as_secs_f64() * 1e3,
        Err(earlier) => -earlier.duration().as_secs_f64() * 1e3,
    };
    let mut all: Vec<f64> = times.map(millis).collect();
    all.sort_by(f64::total_cmp);
    all
}

async fn run(kind: Kind, cause: Cause, count: usize, drain: f64) {
    let world = World::new();
    let domain = world.bundle().domain.clone();
    let other =
        Authority::create(domain.clone(), &world.folder.join("other"), Clock::system()).unwrap();
    let files = world.files("/billing");
    let first = std::fs::read_to_string(world.authority().join("root.pem")).unwrap();
    let second = std::fs::read_to_string(world.folder.join("other/root.pem")).unwrap();
    std::fs::write(files.join("bundle.pem"), format!("{first}{second}")).unwrap();

    let mut tasks = Tasks::new();
    let app = app(&mut tasks).await;
    let me = world.id("/billing");
    let everyone = [world.id("/load"), world.id("/bystander")];
    let everyone: Vec<&str> = everyone.iter().map(String::as_str).collect();
    let policy = allow("p", &[&me], &everyone);
    let part = world
        .sidecar("/billing")
        .set("sidecar.app", &json!(format!("http://{app}")))
        .set("proof", &json!({ "drain_within_seconds": drain }));
    let control = (cause != Cause::Bundle).then(|| world.control().start());
    let billing = match &control {
        None => part.resources(&json!({ "identity_policies": [policy] })).start(),
        Some(control) => {
            let revision = control.admin().put("/identity_policies/p", &policy).await;
            let billing = part.fed_by(control).start();
            control.admin().applied(revision, 1).await;
            billing
        }
    };

    // Each peer has a certificate of its own, so that each is judged.
    let begun = Arc::new(tokio::sync::Semaphore::new(0));
    let (ends, mut ended) = tokio::sync::mpsc::channel(count);
    let alpn = if kind == Kind::Http2 { Alpn::Http2 } else { Alpn::Http1 };
    let load = domain.workload("/load").unwrap();
    for _ in 0..count {
        let svid = other.issue(&load, Duration::from_secs(3600), &[]).unwrap();
        let trust: TrustBundles = [world.bundle()].into_iter().collect();
        let peer = Peer::with(Identity::new(svid, trust));
        let stream = peer.stream(&billing, alpn).await.unwrap();
        let (ends, begun) = (ends.clone(), begun.clone());
        tasks.add(async move {
            let _ = ends.send(hold(stream, kind, begun).await).await;
        });
    }
    let all = begun.acquire_many(count.try_into().unwrap());
    let _all = tokio::time::timeout(Duration::from_secs(120), all).await.unwrap().unwrap();

    // Somebody whom nothing of this concerns.
    let stop = Arc::new(AtomicBool::new(false));
    let bystander = world.peer("/bystander");
    let mut connection = bystander.connect(&billing).await;
    let (stopped, told) = (stop.clone(), tokio::sync::oneshot::channel());
    tasks.add(async move {
        let mut longest = Duration::ZERO;
        while !stopped.load(Ordering::Relaxed) {
            let begun = Instant::now();
            assert_eq!(connection.get("/once").await.status, 200);
            longest = longest.max(begun.elapsed());
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let _ = told.0.send(longest);
    });

    tokio::time::sleep(Duration::from_millis(500)).await;
    let mut from = SystemTime::now();
    match (cause, &control) {
        (Cause::Policy, Some(control)) => {
            let only = allow("p", &[&me], &[&world.id("/bystander")]);
            control.admin().put("/identity_policies/p", &only).await;
        }
        (Cause::Denied, Some(control)) => {
            let denied = json!({ "spiffe_id": world.id("/load") });
            control.admin().put("/revocations/r", &denied).await;
        }
        _ => {
            std::fs::write(files.join("bundle.new"), &first).unwrap();
            std::fs::rename(files.join("bundle.new"), files.join("bundle.pem")).unwrap();
        }
    }
    let mut seen: Vec<Ended> = Vec::new();
    while seen.len() < count {
        let one = tokio::time::timeout(Duration::from_secs(60), ended.recv()).await;
        seen.push(one.unwrap_or_else(|_| panic!("{} of {count} ended", seen.len())).unwrap());
    }
    stop.store(true, Ordering::Relaxed);
    let longest = told.1.await.unwrap();
    if cause == Cause::Bundle {
        // Files are looked at each second: what counts begins when the process knows.
        let record = billing.record_with("/event", &json!("bundle_changed"));
        let text = record["time"].as_str().unwrap();
        let format = &time::format_description::well_known::Rfc3339;
        let known: SystemTime = time::OffsetDateTime::parse(text, format).unwrap().into();
        let waited = known.duration_since(from).unwrap_or_default();
        print!("noticed after {:>4.0} ms; ", waited.as_secs_f64() * 1e3);
        from = known;
    }
    let bytes = after(from, seen.iter().map(|(last, _)| *last));
    let closes = after(from, seen.iter().map(|(_, end)| *end));
    let middle = |sorted: &[f64]| sorted[sorted.len() / 2];
    let most = |sorted: &[f64]| sorted[sorted.len() - 1];
    println!(
        "{cause:?} {kind:?} {count} connections, {drain} s to finish: last byte p50 {:.0} ms max {:.0} ms, closed p50 {:.0} ms max {:.0} ms; a bystander waited {:.1} ms at most",
        middle(&bytes),
        most(&bytes),
        middle(&closes),
        most(&closes),
        longest.as_secs_f64() * 1e3,
    );
}

fn main() {
    // Run as a test it only shows that it works.
    let is_bench = std::env::args().any(|argument| argument == "--bench");
    let numbers: Vec<f64> = std::env::args().skip(1).filter_map(|text| text.parse().ok()).collect();
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a small number")]
    let count = numbers.first().copied().unwrap_or(if is_bench { 1000.0 } else { 10.0 }) as usize;
    let drain = numbers.get(1).copied().unwrap_or(0.0);
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.unwrap().block_on(async {
        for cause in [Cause::Bundle, Cause::Policy, Cause::Denied] {
            for kind in [Kind::Http1, Kind::Http2, Kind::WebSocket] {
                run(kind, cause, count, drain).await;
            }
        }
    });
}
