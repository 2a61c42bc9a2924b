//! `Enrolment`: the issuer's listener. Whoever has an SVID proves it in the handshake; whoever has none may stay briefly.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::Sleep;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;
use tonic::transport::server::Connected;

use super::service::{EnrolmentParts, Service};
use crate::identity::{Identity, Peer};
use crate::issuer::Error;
use crate::issuer::wire::issuer_server::IssuerServer;
use crate::mtls::EnrolmentAcceptor;
use crate::observe::{AuditLane, HandshakeRefusedRecord, next_connection_id};
use crate::rt::{DrainGuard, Live, Tasks, unix_seconds};

const HANDSHAKE_WITHIN: Duration = Duration::from_secs(5);
/// Handshakes at once; the next ones wait in the socket's queue.
const MAX_HANDSHAKES: usize = 256;
/// Connections at once of callers without an SVID, and how long each may stay: time for one call.
const MAX_STRANGERS: usize = 256;
const STRANGERS_STAY: Duration = Duration::from_secs(30);
/// Connections at once of callers with an SVID.
const MAX_PEERS: usize = 16_384;
/// Calls at once of one caller.
const MAX_CALLS: u32 = 4;
/// The longest request: a certificate request, a proof and a ticket are far shorter.
const MAX_REQUEST_BYTES: usize = 64 * 1024;
const KEEP_ALIVE: Duration = Duration::from_secs(30);

/// An issuer's listener for workloads on other machines.
pub struct Enrolment {
    listener: TcpListener,
    service: Service,
    identity: Live<Identity>,
    audit: AuditLane,
    guard: DrainGuard,
}

impl fmt::Debug for Enrolment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Enrolment").field("listener", &self.listener).finish_non_exhaustive()
    }
}

/// Who is behind a connection.
#[derive(Clone, Debug)]
pub(super) struct Origin {
    pub(super) address: SocketAddr,
    pub(super) peer: Option<Arc<Peer>>,
}

impl Enrolment {
    /// Prepares to serve on `listener` until the end is asked for.
    ///
    /// # Errors
    /// A cluster's settings cannot be used, or the tickets' key cannot be read or made.
    pub fn new(
        listener: TcpListener,
        parts: EnrolmentParts,
        guard: DrainGuard,
    ) -> Result<Self, Error> {
        let (identity, audit) = (parts.identity.clone(), parts.audit.clone());
        let service = Service::new(parts, guard.clone())?;
        Ok(Self { listener, service, identity, audit, guard })
    }

    /// Serves until the end is asked for; then streams end.
    ///
    /// # Errors
    /// The server fails as a whole.
    pub async fn serve(self) -> Result<(), Error> {
        let Self { listener, service, identity, audit, guard } = self;
        let mut asked = guard.clone();
        let (sender, receiver) = mpsc::channel(64);
        let mut accepting = Tasks::new();
        accepting.add(accept(listener, identity, audit, guard, sender));
        let service = IssuerServer::new(service).max_decoding_message_size(MAX_REQUEST_BYTES);
        Server::builder()
            .max_concurrent_streams(MAX_CALLS)
            .http2_keepalive_interval(Some(KEEP_ALIVE))
            .http2_keepalive_timeout(Some(KEEP_ALIVE))
            .timeout(Duration::from_secs(15))
            .add_service(service)
            .serve_with_incoming_shutdown(ReceiverStream::new(receiver), async move {
                asked.asked().await;
            })
            .await
            .map_err(Error::Listen)
    }
}

async fn accept(
    listener: TcpListener,
    identity: Live<Identity>,
    audit: AuditLane,
    mut guard: DrainGuard,
    sender: mpsc::Sender<Result<Connection, io::Error>>,
) {
    let acceptor = EnrolmentAcceptor::new(identity.clone());
    let places = Places {
        handshakes: Arc::new(Semaphore::new(MAX_HANDSHAKES)),
        strangers: Arc::new(Semaphore::new(MAX_STRANGERS)),
        peers: Arc::new(Semaphore::new(MAX_PEERS)),
    };
    let mut handshakes = Tasks::new();
    loop {
        let Ok(turn) = places.handshakes.clone().acquire_owned().await else { return };
        let (tcp, address) = tokio::select! {
            () = guard.asked() => return,
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "the issuer cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
        };
        let _ = tcp.set_nodelay(true);
        let (acceptor, sender, audit) = (acceptor.clone(), sender.clone(), audit.clone());
        let (identity, places) = (identity.clone(), places.clone());
        handshakes.add(async move {
            let port = tcp.local_addr().map_or(0, |local| local.port());
            let shaken = tokio::time::timeout(HANDSHAKE_WITHIN, acceptor.accept(tcp)).await;
            drop(turn);
            match shaken {
                Ok(Ok((stream, peer))) => {
                    let Some(connection) = places.seat(stream, address, peer) else { return };
                    let _ = sender.send(Ok(connection)).await;
                }
                Ok(Err(error)) => {
                    let presented = error.presented();
                    let detail = error.refusal().map(ToString::to_string);
                    tracing::warn!(%address, reason = error.code(), detail, "a caller was refused");
                    let me = identity.load();
                    let _ = audit.handshake_refused(&HandshakeRefusedRecord {
                        is_observed: false,
                        conn_id: next_connection_id(),
                        src_addr: address,
                        presented_id: presented.and_then(|presented| presented.id.as_deref()),
                        presented_serial: presented
                            .and_then(|presented| presented.serial.as_deref()),
                        presented_issuer_ski: presented
                            .and_then(|presented| presented.issuer_ski.as_deref()),
                        dst_spiffe_id: Some(me.id().as_str()),
                        dst_port: port,
                        reason: error.code(),
                        detail: detail.as_deref(),
                    });
                }
                Err(_) => tracing::debug!(%address, "a caller's handshake took too long"),
            }
        });
    }
}

/// How many there may be of each.
#[derive(Clone)]
struct Places {
    handshakes: Arc<Semaphore>,
    strangers: Arc<Semaphore>,
    peers: Arc<Semaphore>,
}

impl Places {
    /// A place for a connection: strangers cannot take those of callers with an SVID. `None` when all are taken.
    fn seat(
        &self,
        stream: TlsStream<TcpStream>,
        address: SocketAddr,
        peer: Option<Arc<Peer>>,
    ) -> Option<Connection> {
        let (places, stay) = match &peer {
            None => (&self.strangers, STRANGERS_STAY),
            Some(peer) => {
                let left = u64::try_from(peer.not_after - unix_seconds()).unwrap_or(0);
                (&self.peers, Duration::from_secs(left))
            }
        };
        let Ok(place) = places.clone().try_acquire_owned() else {
            tracing::warn!(%address, has_svid = peer.is_some(), "no place for a caller");
            return None;
        };
        let end = Box::pin(tokio::time::sleep(stay));
        Some(Connection { stream, from: Origin { address, peer }, end, _place: place })
    }
}

/// A connection, who is behind it, and when it ends: with the SVID, or soon when there is none.
struct Connection {
    stream: TlsStream<TcpStream>,
    from: Origin,
    end: Pin<Box<Sleep>>,
    _place: OwnedSemaphorePermit,
}

impl Connected for Connection {
    type ConnectInfo = Origin;
    fn connect_info(&self) -> Origin {
        self.from.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.end.as_mut().poll(context).is_ready() {
            // Nothing more is read: the server takes it for the caller's end.
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_read(context, into)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
