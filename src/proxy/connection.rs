//! One connection: handshake to a peer, then the protocol that is spoken.

use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::Instant;

use super::http::judge::ConnectionStanding;
use super::http::{h1, h2};
use super::listener::Listener;
use super::metrics::TooMany;
use super::passthrough::{Heard, Passthrough};
use super::relay::{Outcome, Relay};
use super::sources::Seat;
use super::worker::Worker;
use crate::identity::{Peer, Presented, SpiffeId};
use crate::model::Strictness;
use crate::mtls::{
    self, Acceptor, Agreed, Demand, EdgeAcceptor, EdgeSession, Lapse, LetIn, MeshStream, Proof,
    Settled,
};
use crate::observe::{ConnectionRecord, HandshakeRefusedRecord, TlsFacts};
use crate::pipeline::{Client, Introduced};
use crate::rt::Live;
use crate::rt::proxy_protocol::Header;
use crate::upstream::Stream;

/// What protects a door.
#[derive(Clone)]
pub enum DoorSecurity {
    /// Nothing: loopback, or plain HTTP at the edge.
    Plain,
    /// mTLS of the mesh: nobody comes in without an SVID.
    Mesh(Acceptor),
    /// Public certificates by server name.
    Public(EdgeAcceptor),
    /// TLS that is between the client and a server behind us.
    Through(Arc<Passthrough>),
}

/// What a connection carried.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::proxy) struct Served {
    pub(in crate::proxy) requests: u64,
    pub(in crate::proxy) bytes_in: u64,
    pub(in crate::proxy) bytes_out: u64,
    /// Why the last exchange was broken off by us, and the connection with it.
    pub(in crate::proxy) ended: Option<Lapse>,
}

/// A connection after its handshake.
struct Shaken {
    stream: Stream,
    peer: Option<Arc<Peer>>,
    /// What a public handshake has settled.
    edge: Option<Arc<EdgeSession>>,
    http2: bool,
    /// What its handshake settled, when it is TLS that ends here.
    tls: Option<TlsFacts<'static>>,
    /// Of a caller that was let in without an identity at a door of the mesh: how strict the door was.
    lax: Option<Strictness>,
    /// What a client whose TLS is passed through has said.
    heard: Option<Heard>,
}

impl Shaken {
    const fn plain(tcp: TcpStream, http2: bool) -> Self {
        let stream = Stream::Tcp(tcp);
        Self { stream, peer: None, edge: None, http2, tls: None, lax: None, heard: None }
    }

    fn tls(tls: tokio_rustls::server::TlsStream<TcpStream>) -> Self {
        let session = tls.get_ref().1;
        let (http2, settled) = (session.alpn_protocol() == Some(b"h2"), settled(session));
        let stream = Stream::Terminated(Box::new(tls));
        Self { stream, peer: None, edge: None, http2, tls: Some(settled), lax: None, heard: None }
    }

    fn mesh(tls: MeshStream<TcpStream>) -> Self {
        let Settled { suite, group, alpn } = tls.settled();
        let http2 = alpn == Agreed::Http2;
        let alpn = match alpn {
            Agreed::Http2 => Some("h2"),
            Agreed::Http1 => Some("http/1.1"),
            Agreed::Nothing | Agreed::Other => None,
        };
        let tls_facts = TlsFacts { version: Some("1.3"), suite, group, sni: None, alpn };
        let stream = Stream::Mesh(Box::new(tls));
        Self { stream, peer: None, edge: None, http2, tls: Some(tls_facts), lax: None, heard: None }
    }
}

fn settled(session: &rustls::ServerConnection) -> TlsFacts<'static> {
    TlsFacts {
        version: match session.protocol_version() {
            Some(rustls::ProtocolVersion::TLSv1_3) => Some("1.3"),
            Some(rustls::ProtocolVersion::TLSv1_2) => Some("1.2"),
            _ => None,
        },
        suite: session.negotiated_cipher_suite().and_then(|suite| suite.suite().as_str()),
        group: session.negotiated_key_exchange_group().and_then(|group| group.name().as_str()),
        sni: None,
        alpn: match session.alpn_protocol() {
            Some(b"h2") => Some("h2"),
            Some(b"http/1.1") => Some("http/1.1"),
            _ => None,
        },
    }
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Serves a connection from its first byte to its last.
pub(in crate::proxy) async fn run(
    worker: &Arc<Worker>,
    listener: &Listener,
    tcp: TcpStream,
    address: SocketAddr,
    number: u64,
    seat: Seat,
) {
    let Ok(local) = tcp.local_addr() else { return };
    let _ = tcp.set_nodelay(true);
    let begun = Instant::now();
    let before = listener.me.as_ref().map(Live::load);
    let me = before.as_ref().map(|identity| identity.id().clone());
    let mut caller = Caller { number, local, address, introduced: None, seat };
    let handshake = Box::pin(meet(worker, listener, tcp, &mut caller));
    let limit = worker.limits.handshake_within.max(worker.limits.head_within);
    let within = match listener.security {
        DoorSecurity::Plain => limit,
        DoorSecurity::Mesh(_) | DoorSecurity::Public(_) | DoorSecurity::Through(_) => {
            worker.limits.handshake_within
        }
    };
    // As long as it has not said anything it is idle, and a drain gives it as long as any idle connection.
    let leaving = async {
        worker.draining().await;
        tokio::time::sleep(worker.drain_idle()).await;
    };
    let shaken = tokio::select! {
        biased;
        shaken = tokio::time::timeout(within, handshake) => shaken,
        () = leaving => return,
    };
    let Caller { address, introduced, seat: _seat, .. } = caller;
    let shaken = match shaken {
        Ok(Ok(Some(shaken))) => shaken,
        // An authority has seen its challenge answered.
        Ok(Ok(None)) => return,
        Ok(Err(NotMet::Left)) => return worker.note_handshake(address, "nothing was said"),
        Ok(Err(NotMet::TurnedAway(limit))) => {
            return worker.metrics.turn_away(limit, address.ip());
        }
        Ok(Err(NotMet::Refused(Refused { reason, code, presented }))) => {
            worker.note_handshake(address, &reason);
            worker.metrics.handshake_refused(code);
            // Nobody came in; a log that is full has counted what it lost.
            let _ = worker.lane.handshake_refused(&HandshakeRefusedRecord {
                conn_id: number,
                is_observed: false,
                src_addr: address,
                presented_id: presented.id.as_deref(),
                presented_serial: presented.serial.as_deref(),
                presented_issuer_ski: presented.issuer_ski.as_deref(),
                dst_spiffe_id: me.as_ref().map(SpiffeId::as_str),
                dst_port: local.port(),
                reason: code,
                detail: Some(&reason),
            });
            return;
        }
        Err(_) => {
            worker.note_handshake(address, "it took too long");
            return;
        }
    };
    if let Some(group) = shaken.tls.and_then(|tls| tls.group) {
        worker.metrics.handshake(group);
    }
    let proof = worker.watch.accepted(
        number,
        listener.door,
        (local, address),
        shaken.peer.as_ref(),
        before.as_deref(),
        shaken.lax,
    );
    drop(before);
    // The door may have become stricter since it let the caller in, and the watch may have looked before the proof was there.
    if shaken.lax.is_some_and(|lax| worker.snapshot().modes.at(local.port()) > lax) {
        worker.watch.tightened(&proof);
    }
    let client = Arc::new(Client {
        connection: number,
        door: listener.door,
        address,
        local,
        introduced,
        peer: shaken.peer,
        me,
        tls: shaken.tls.is_some(),
        sni: match &shaken.heard {
            Some(heard) => Some(heard.server_name.clone()),
            None => {
                shaken.edge.as_ref().and_then(|edge| edge.name.clone().filter(|_| edge.is_named))
            }
        },
    });
    let standing = ConnectionStanding::new(&client, worker, shaken.edge, shaken.tls);
    if worker.lane.records_connections() {
        // What is lost is counted in the log itself.
        let _ = worker.lane.connection(&ConnectionRecord {
            side: Some(proof.begun.opening.name()),
            ..ConnectionRecord::of(standing.ends(), "open")
        });
    }
    let mut served = Served::default();
    let relayed_to = match &shaken.heard {
        Some(heard) => Some(heard.target.clone()),
        None => listener.relay_to.clone(),
    };
    if let Some(target) = relayed_to {
        let (server_name, first) = match &shaken.heard {
            Some(heard) => (Some(&*heard.server_name), &*heard.first),
            None => (None, &[][..]),
        };
        let standing_here = standing.clone();
        let relay = Relay {
            worker,
            client: &client,
            standing: standing_here,
            proof: &proof,
            target: &target,
            server_name,
        };
        let outcome = Box::pin(relay.run(shaken.stream, first, &mut served)).await;
        worker.metrics.served(served);
        let lapse = proof.lapse().or(served.ended);
        if outcome == Outcome::Carried || lapse.is_some() {
            note_end(worker, &proof, &standing, lapse, &served, begun, "tcp");
        }
        return;
    }
    {
        let (stream, standing, served) = (shaken.stream, standing.clone(), &mut served);
        let mut serving = pin!(async {
            if shaken.http2 {
                Box::pin(h2::serve(worker, stream, client, standing, &proof, served)).await;
            } else {
                h1::serve(worker, stream, client, standing, &proof, served).await;
            }
        });
        proof.attended().await;
        poll_fn(|context| {
            match serving.as_mut().poll(context) {
                // It was told, and had its turn: whatever it still waits for is over.
                Poll::Pending if proof.is_cut() => Poll::Ready(()),
                polled => polled,
            }
        })
        .await;
    }
    worker.metrics.served(served);
    let lapse = proof.lapse().or(served.ended);
    if lapse.is_some() || worker.lane.records_connections() {
        let protocol = if shaken.http2 { "h2" } else { "http/1.1" };
        note_end(worker, &proof, &standing, lapse, &served, begun, protocol);
    }
}

/// The record of a connection that ended: because it lost its proof, because its bytes were passed on, or where all have one.
fn note_end(
    worker: &Worker,
    proof: &Proof,
    standing: &ConnectionStanding,
    lapse: Option<Lapse>,
    served: &Served,
    begun: Instant,
    protocol: &str,
) {
    if let Some(lapse) = lapse {
        worker.metrics.ended(proof.begun.opening, lapse);
    }
    let is_forced = proof.is_cut() || served.ended.is_some();
    let event = if is_forced { "forced_close" } else { "close" };
    // What is lost is counted in the log itself.
    let _ = worker.lane.connection(&ConnectionRecord {
        side: Some(proof.begun.opening.name()),
        peer_serial: proof.begun.peer.as_ref().map(|peer| peer.serial.as_str()),
        reason: lapse.map(Lapse::code),
        protocol: Some(protocol),
        requests: (protocol != "tcp").then_some(served.requests),
        bytes_in: Some(served.bytes_in),
        bytes_out: Some(served.bytes_out),
        duration_ms: Some(u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX)),
        ..ConnectionRecord::of(standing.ends(), event)
    });
}

/// A handshake that failed, for the decision log.
struct Refused {
    reason: String,
    code: &'static str,
    presented: Presented,
}

/// Who connects, as far as it is known.
struct Caller {
    number: u64,
    local: SocketAddr,
    address: SocketAddr,
    introduced: Option<Introduced>,
    /// Held for as long as the connection lives.
    seat: Seat,
}

/// Why a connection is closed before a byte of a request.
enum NotMet {
    /// It said nothing.
    Left,
    TurnedAway(TooMany),
    Refused(Refused),
}

/// Hears for whom the connection is, where the door has that, and shakes hands.
async fn meet(
    worker: &Worker,
    listener: &Listener,
    mut tcp: TcpStream,
    caller: &mut Caller,
) -> Result<Option<Shaken>, NotMet> {
    if let Some(introductions) = &listener.introductions {
        let by = caller.address;
        match introductions.hear(&mut tcp, by, worker.limits.handshake_within).await {
            Ok(Some(Header::For(ends))) => {
                caller.address = ends.source;
                caller.introduced = Some(Introduced { by, destination: ends.destination });
            }
            Ok(Some(Header::Own) | None) => {}
            Err(unheard) => {
                let Some(code) = unheard.code() else { return Err(NotMet::Left) };
                let reason = unheard.sentence().to_owned();
                let presented = Presented::default();
                return Err(NotMet::Refused(Refused { reason, code, presented }));
            }
        }
        caller.seat = listener.seat(worker, caller.address).map_err(NotMet::TurnedAway)?;
    }
    shake_hands(worker, listener, tcp, caller).await
}

impl From<mtls::Error> for Refused {
    fn from(error: mtls::Error) -> Self {
        Self {
            code: error.code(),
            presented: error.presented().cloned().unwrap_or_default(),
            reason: error.refusal().map_or_else(|| error.to_string(), ToString::to_string),
        }
    }
}

async fn shake_hands(
    worker: &Worker,
    listener: &Listener,
    mut tcp: TcpStream,
    caller: &Caller,
) -> Result<Option<Shaken>, NotMet> {
    let refused = |error: mtls::Error| NotMet::Refused(error.into());
    match &listener.security {
        DoorSecurity::Plain => {
            let http2 = begins_with_preface(&tcp).await;
            Ok(Some(Shaken::plain(tcp, http2)))
        }
        DoorSecurity::Mesh(acceptor) => match worker.snapshot().modes.at(caller.local.port()) {
            Strictness::Strict => {
                let (tls, peer) = acceptor.accept(tcp).await.map_err(refused)?;
                Ok(Some(Shaken { peer: Some(peer), ..Shaken::mesh(tls) }))
            }
            lax => meet_lax(worker, listener, acceptor, tcp, caller, lax).await.map(Some),
        },
        DoorSecurity::Public(acceptor) => {
            let Some((tls, edge)) = acceptor.accept(tcp).await.map_err(refused)? else {
                return Ok(None);
            };
            Ok(Some(Shaken { edge: Some(Arc::new(edge)), ..Shaken::tls(tls) }))
        }
        DoorSecurity::Through(passthrough) => match passthrough.hear(&mut tcp).await {
            Ok(heard) => Ok(Some(Shaken { heard: Some(heard), ..Shaken::plain(tcp, false) })),
            Err(unheard) => Err(match unheard.code {
                None => NotMet::Left,
                Some(code) => NotMet::Refused(Refused {
                    reason: unheard.sentence.to_owned(),
                    code,
                    presented: Presented::default(),
                }),
            }),
        },
    }
}

/// Who connects to a door that asks for less than an identity: plain, or by TLS.
async fn meet_lax(
    worker: &Worker,
    listener: &Listener,
    acceptor: &Acceptor,
    tcp: TcpStream,
    caller: &Caller,
    lax: Strictness,
) -> Result<Shaken, NotMet> {
    // Of HTTP the client speaks first. Of anything else the server may: then silence is an answer as well.
    let patience = listener.relay_to.is_some().then(|| worker.limits.handshake_within / 2);
    if !begins_with_tls(&tcp, patience).await? {
        let http2 = listener.relay_to.is_none() && begins_with_preface(&tcp).await;
        return Ok(Shaken { lax: Some(lax), ..Shaken::plain(tcp, http2) });
    }
    let demand = match lax {
        Strictness::Observe => Demand::Nothing,
        Strictness::Permissive | Strictness::Strict => Demand::IdentityIfAny,
    };
    let accepted = acceptor.accept_demanding(tcp, demand).await;
    let accepted = accepted.map_err(|error| NotMet::Refused(error.into()))?;
    if let Some(LetIn { refusal, presented }) = &accepted.let_in {
        // Nobody was refused; a log that is full has counted what it lost.
        let _ = worker.lane.handshake_refused(&HandshakeRefusedRecord {
            conn_id: caller.number,
            is_observed: true,
            src_addr: caller.address,
            presented_id: presented.id.as_deref(),
            presented_serial: presented.serial.as_deref(),
            presented_issuer_ski: presented.issuer_ski.as_deref(),
            dst_spiffe_id: listener
                .me
                .as_ref()
                .map(Live::load)
                .as_deref()
                .map(|me| me.id().as_str()),
            dst_port: caller.local.port(),
            reason: refusal.code(),
            detail: Some(&refusal.to_string()),
        });
    }
    let lax = accepted.peer.is_none().then_some(lax);
    Ok(Shaken { peer: accepted.peer, lax, ..Shaken::mesh(accepted.stream) })
}

/// The type of a TLS record that carries a handshake. No request of HTTP begins so.
const HANDSHAKE_RECORD: u8 = 22;

/// Does the connection begin with TLS? The byte stays where it is. After `patience` silence counts as no.
async fn begins_with_tls(tcp: &TcpStream, patience: Option<Duration>) -> Result<bool, NotMet> {
    let mut first = [0];
    let peeked = match patience {
        None => tcp.peek(&mut first).await,
        Some(patience) => match tokio::time::timeout(patience, tcp.peek(&mut first)).await {
            Ok(peeked) => peeked,
            Err(_) => return Ok(false),
        },
    };
    match peeked {
        Ok(count) if count > 0 => Ok(first[0] == HANDSHAKE_RECORD),
        _ => Err(NotMet::Left),
    }
}

/// Does a plain connection begin with HTTP/2's preface? The bytes stay where they are.
async fn begins_with_preface(tcp: &TcpStream) -> bool {
    let mut first = [0; PREFACE.len()];
    let mut pause = Duration::from_millis(1);
    loop {
        match tcp.peek(&mut first).await {
            Ok(count) if count > 0 && PREFACE.starts_with(&first[..count]) => {
                if count == PREFACE.len() {
                    return true;
                }
                // A part of the preface is there: the rest is on its way. Peeking again returns at once, so pause; longer each
                // time, since who sends no more than that must not keep us busy.
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(Duration::from_millis(200));
            }
            _ => return false,
        }
    }
}
