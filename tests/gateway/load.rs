//! Clients that ask all the time, in every way that a door can be reached, and count what is lost.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustls_pki_types::ServerName;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;
use wardgate::mtls::Alpn;

use crate::http2::{Client, request};
use crate::mesh::{Stream, Wire};
use crate::world::{PATIENCE, Peer, eventually_async};

/// Where clients go, and with what.
#[derive(Clone)]
pub(crate) enum Place {
    Plain(SocketAddr),
    /// A plain door, where another Host is asked for.
    Named {
        address: SocketAddr,
        name: &'static str,
    },
    /// A sidecar with this SPIFFE ID.
    Mesh {
        address: SocketAddr,
        id: String,
        peer: Arc<Peer>,
    },
    /// A public name, with the certificates that it may show.
    Public {
        address: SocketAddr,
        name: &'static str,
        trusted: Arc<rustls::RootCertStore>,
    },
}

impl Place {
    async fn stream(&self, alpn: Alpn) -> Result<Box<dyn Stream>, String> {
        match self {
            Self::Plain(address) | Self::Named { address, .. } => {
                Ok(Box::new(connect(*address).await?))
            }
            Self::Mesh { address, id, peer } => match peer.stream_to(*address, id, alpn).await {
                Ok(tls) => Ok(Box::new(tls)),
                Err(error) => Err(format!("handshake: {error}")),
            },
            Self::Public { address, name, trusted } => {
                let tcp = connect(*address).await?;
                let provider = wardgate::rt::crypto::tls_provider();
                let builder = rustls::ClientConfig::builder_with_provider(provider);
                let versions = builder.with_safe_default_protocol_versions().unwrap();
                let trusting = versions.with_root_certificates(trusted.clone());
                let mut config = trusting.with_no_client_auth();
                config.alpn_protocols = match alpn {
                    Alpn::Http2 => vec![b"h2".to_vec()],
                    _ => vec![b"http/1.1".to_vec()],
                };
                let connector = TlsConnector::from(Arc::new(config));
                let shaken = connector.connect(ServerName::try_from(*name).unwrap(), tcp).await;
                match shaken {
                    Ok(tls) => Ok(Box::new(tls)),
                    Err(error) => Err(format!("handshake: {error}")),
                }
            }
        }
    }

    fn host(&self) -> &str {
        match self {
            Self::Plain(_) | Self::Mesh { .. } => "a",
            Self::Named { name, .. } | Self::Public { name, .. } => name,
        }
    }
}

async fn connect(address: SocketAddr) -> Result<tokio::net::TcpStream, String> {
    let connected = tokio::net::TcpStream::connect(address).await;
    let tcp = connected.map_err(|error| format!("connect: {error}"))?;
    tcp.set_nodelay(true).unwrap();
    Ok(tcp)
}

/// What the clients have seen.
#[derive(Default)]
pub(crate) struct Seen {
    answered: AtomicUsize,
    lost: Mutex<Vec<String>>,
    latencies: Mutex<Vec<Duration>>,
    enough: AtomicBool,
}

impl Seen {
    pub(crate) fn is_enough(&self) -> bool {
        self.enough.load(Ordering::SeqCst)
    }

    pub(crate) fn that_is_enough(&self) {
        self.enough.store(true, Ordering::SeqCst);
    }

    pub(crate) fn answered(&self) -> usize {
        self.answered.load(Ordering::SeqCst)
    }

    pub(crate) fn lost(&self) -> Vec<String> {
        self.lost.lock().unwrap().clone()
    }

    /// From when each request was due to when it was answered, in rising order.
    pub(crate) fn latencies(&self) -> Vec<Duration> {
        let mut latencies = self.latencies.lock().unwrap().clone();
        latencies.sort_unstable();
        latencies
    }

    pub(crate) fn note(&self, what: &str, due: Option<Instant>, outcome: Result<u16, String>) {
        match outcome {
            Ok(200) => {
                self.answered.fetch_add(1, Ordering::SeqCst);
                self.latencies.lock().unwrap().extend(due.map(|due| due.elapsed()));
            }
            other => self.lost.lock().unwrap().push(format!("{what}: {other:?}")),
        }
    }

    /// Waits until so many more requests were answered.
    pub(crate) async fn more(&self, count: usize) {
        let until = self.answered() + count;
        eventually_async("more answers", || async { (self.answered() >= until).then_some(()) })
            .await;
    }
}

/// When requests are due: at once after the one before, or at a pace.
struct Pace {
    period: Option<Duration>,
    due: Instant,
}

impl Pace {
    fn new(period: Option<Duration>) -> Self {
        let wait = period.unwrap_or_default().mul_f64(fastrand::f64());
        Self { period, due: Instant::now() + wait }
    }

    async fn next(&mut self) -> Option<Instant> {
        let period = self.period?;
        let due = self.due;
        tokio::time::sleep_until(due).await;
        self.due += period;
        Some(due)
    }
}

/// One HTTP/1.1 request after the other, on a connection that is kept as long as it may be, or on a new one each.
pub(crate) async fn http1(place: Place, kept: bool, period: Option<Duration>, seen: Arc<Seen>) {
    let what = if kept { "kept HTTP/1.1" } else { "fresh HTTP/1.1" };
    let (mut wire, mut pace) = (None::<Wire>, Pace::new(period));
    let host = place.host().to_owned();
    for number in 0.. {
        let due = pace.next().await;
        if seen.is_enough() {
            return;
        }
        let mut on = match wire.take() {
            Some(wire) => wire,
            None => match place.stream(Alpn::Http1).await {
                Ok(stream) => Wire::over(stream),
                Err(why) => {
                    seen.note(what, due, Err(why));
                    continue;
                }
            },
        };
        let close = if kept { "" } else { "Connection: close\r\n" };
        on.send(match number % 2 {
            0 => format!("GET /x HTTP/1.1\r\nHost: {host}\r\n{close}\r\n"),
            _ => {
                format!("POST /x HTTP/1.1\r\nHost: {host}\r\nContent-Length: 4\r\n{close}\r\nbody")
            }
        })
        .await;
        let answer = on.response_to("GET").await;
        let last = answer.as_ref().is_none_or(|answer| answer.field("connection") == Some("close"));
        let outcome = match answer {
            Some(answer) if answer.whole => Ok(answer.status),
            other => Err(format!("{other:?}")),
        };
        seen.note(what, due, outcome);
        wire = (!last).then_some(on);
    }
}

/// One HTTP/2 request after the other on a connection that is kept until it says goodbye.
pub(crate) async fn http2(place: Place, period: Option<Duration>, seen: Arc<Seen>) {
    let (mut client, mut pace) = (None::<Client>, Pace::new(period));
    let uri = format!("http://{}/x", place.host());
    let mut due = None;
    while !seen.is_enough() {
        // One that was not looked at is sent again at once.
        if due.is_none() {
            due = Some(pace.next().await);
        }
        let since = due.flatten();
        let on = match client.take() {
            Some(client) => client,
            None => match place.stream(Alpn::Http2).await {
                Ok(stream) => Client::over(stream).await,
                Err(why) => {
                    seen.note("HTTP/2", since, Err(why));
                    due = None;
                    continue;
                }
            },
        };
        // A goodbye before a request was begun, or that says that it was not looked at, loses nothing.
        let mut asked = request("POST", "/x", &[]);
        *asked.uri_mut() = uri.parse().unwrap();
        let Ok((response, mut body)) = on.open(asked, false).await else { continue };
        let _ = body.send_data(bytes::Bytes::from_static(b"body"), true);
        match tokio::time::timeout(PATIENCE, response).await {
            Err(_) => seen.note("HTTP/2", since, Err("no answer".to_owned())),
            Ok(Ok(answer)) => {
                let status = answer.status().as_u16();
                let mut body = answer.into_body();
                let mut outcome = Ok(status);
                while let Some(piece) = body.data().await {
                    match piece {
                        Ok(piece) => drop(body.flow_control().release_capacity(piece.len())),
                        Err(error) => outcome = Err(format!("its body: {error}")),
                    }
                }
                seen.note("HTTP/2", since, outcome);
                client = Some(on);
            }
            Ok(Err(error)) if error.is_go_away() => continue,
            Ok(Err(error)) => seen.note("HTTP/2", since, Err(error.to_string())),
        }
        due = None;
    }
}
