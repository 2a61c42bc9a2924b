//! The feed's connections: mTLS from a data plane to the control plane, and the other way round.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::places::Places;
use super::proved::Proved;
use crate::identity::{Identity, SpiffeId};
use crate::mtls::{Acceptor, Alpn, Connector, ExpectedPeers, MeshStream};
use crate::observe::{AuditLane, HandshakeRefusedRecord, next_connection_id};
use crate::rt::{DrainGuard, Live, Tasks, causes};
use crate::sync::publisher::PeerStream;
use crate::sync::subscriber;

/// How long a data plane may take for its handshake.
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(5);
/// Handshakes and finished connections that wait at once.
const WAITING: usize = 64;

/// Connects a data plane to its control plane, or one of them, and to nobody else.
pub(super) struct FeedConnect {
    places: Places,
    connector: Connector,
    expected: Arc<ExpectedPeers>,
}

impl FeedConnect {
    pub(super) fn new(places: &[String], identity: Live<Identity>, expected: &SpiffeId) -> Self {
        let expected = Arc::new(ExpectedPeers::exactly(expected));
        Self { places: Places::new(places), connector: Connector::new(identity), expected }
    }

    /// Where it connects to.
    pub(super) fn places(&self) -> &Places {
        &self.places
    }

    async fn connect_to(&self, address: &str) -> io::Result<Proved<MeshStream<TcpStream>>> {
        let tcp = TcpStream::connect(address).await?;
        let _ = tcp.set_nodelay(true);
        let identity = self.connector.identity();
        let own = identity.load();
        let connected = self.connector.connect(tcp, &self.expected, Alpn::Http2).await;
        let (stream, peer) = connected.map_err(|error| io::Error::other(causes(&error)))?;
        Ok(Proved::new(stream, peer, &own, identity.clone()))
    }
}

#[async_trait]
impl subscriber::Connect for FeedConnect {
    type Stream = Proved<MeshStream<TcpStream>>;

    async fn connect(&self) -> io::Result<Self::Stream> {
        self.places.reach(|address| self.connect_to(address)).await
    }
}

/// The connections of data planes that the control plane's own handshake has verified.
pub(super) fn accept(
    listener: TcpListener,
    identity: &Live<Identity>,
    lane: AuditLane,
    mut drain: DrainGuard,
    tasks: &mut Tasks,
) -> ReceiverStream<PeerStream<Proved<MeshStream<TcpStream>>>> {
    let (sender, receiver) = mpsc::channel(WAITING);
    let acceptor = Acceptor::new(identity.clone());
    let identity = identity.clone();
    tasks.add(async move {
        let mut handshakes = Tasks::new();
        loop {
            let (tcp, address) = tokio::select! {
                () = drain.asked() => return,
                accepted = listener.accept() => match accepted {
                    Ok(accepted) => accepted,
                    Err(error) => {
                        tracing::warn!(%error, "the feed cannot accept a connection");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                        continue;
                    }
                },
            };
            let _ = tcp.set_nodelay(true);
            let (acceptor, sender, lane) = (acceptor.clone(), sender.clone(), lane.clone());
            let (own, identity) = (identity.load(), identity.clone());
            let me = own.id().clone();
            handshakes.add(async move {
                let port = tcp.local_addr().map_or(0, |local| local.port());
                let shaken = tokio::time::timeout(HANDSHAKE_WITHIN, acceptor.accept(tcp)).await;
                match shaken {
                    Ok(Ok((stream, peer))) => {
                        let spiffe_id = peer.id.as_str().into();
                        let stream = Proved::new(stream, peer, &own, identity);
                        let _ = sender.send(PeerStream { stream, spiffe_id }).await;
                    }
                    Ok(Err(error)) => {
                        let presented = error.presented();
                        let detail = causes(&error);
                        tracing::warn!(%address, "a data plane was refused: {detail}");
                        let _ = lane.handshake_refused(&HandshakeRefusedRecord {
                            is_observed: false,
                            conn_id: next_connection_id(),
                            src_addr: address,
                            presented_id: presented.and_then(|presented| presented.id.as_deref()),
                            presented_serial: presented
                                .and_then(|presented| presented.serial.as_deref()),
                            presented_issuer_ski: presented
                                .and_then(|presented| presented.issuer_ski.as_deref()),
                            dst_spiffe_id: Some(me.as_str()),
                            dst_port: port,
                            reason: error.code(),
                            detail: Some(&detail),
                        });
                    }
                    Err(_) => tracing::debug!(%address, "a data plane's handshake took too long"),
                }
            });
        }
    });
    ReceiverStream::new(receiver)
}
