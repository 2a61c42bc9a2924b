//! `Listener`: sockets become connections, within bounds, until the drain.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

use super::connection::{self, DoorSecurity};
use super::introduction::Introductions;
use super::metrics::TooMany;
use super::relay::Target;
use super::sources::{Seat, Spent};
use super::worker::Worker;
use crate::identity::Identity;
use crate::model::Listeners;
use crate::rt::socket::refuse_new;
use crate::rt::{DrainGuard, Live, Sockets};

/// How long a connection that is just being made may take to be there when its door closes.
const LAST_CALL: Duration = Duration::from_millis(250);

/// One worker's socket of a door.
#[derive(Clone)]
pub(in crate::proxy) struct Listener {
    pub(in crate::proxy) door: Listeners,
    pub(in crate::proxy) security: DoorSecurity,
    /// Where its bytes go unread; nowhere where HTTP is spoken.
    pub(in crate::proxy) relay_to: Option<Arc<Target>>,
    /// Who may introduce connections.
    pub(in crate::proxy) introductions: Option<Arc<Introductions>>,
    /// Who we are, where we have an identity.
    pub(in crate::proxy) me: Option<Live<Identity>>,
    /// Connections of the door that are open, at all workers.
    pub(in crate::proxy) open: Arc<AtomicUsize>,
}

impl Listener {
    /// A place for one more connection of this source.
    pub(in crate::proxy) fn seat(
        &self,
        worker: &Worker,
        source: SocketAddr,
    ) -> Result<Seat, TooMany> {
        let shakes_hands = !matches!(self.security, DoorSecurity::Plain);
        let entered = worker.sources.enter(source.ip(), shakes_hands, Instant::now());
        entered.map_err(|spent| match spent {
            Spent::Connections => TooMany::OfSource,
            Spent::Handshakes => TooMany::Handshakes,
        })
    }

    /// Accepts until the worker drains; whoever has begun to connect by then is still served, by us or by the process that
    /// takes the socket over.
    pub(in crate::proxy) async fn run(
        self,
        worker: Arc<Worker>,
        socket: TcpListener,
        sockets: Sockets,
        guard: DrainGuard,
    ) {
        let mut draining = std::pin::pin!(worker.draining());
        tokio::select! {
            () = sockets.opened() => {}
            () = &mut draining => return,
        }
        let listener = Arc::new(self);
        loop {
            let next = std::future::poll_fn(|context| {
                if let Poll::Ready(accepted) = socket.poll_accept(context) {
                    return Poll::Ready(Some(accepted));
                }
                draining.as_mut().poll(context).map(|()| None)
            })
            .await;
            match next {
                Some(Ok((tcp, address))) => {
                    serve(&worker, &listener, tcp, address, &guard);
                }
                Some(Err(error)) => {
                    // Out of descriptors and the like: the loop must neither end nor spin.
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                None => break,
            }
        }
        if sockets.do_live_on() {
            return;
        }
        // What connects while the socket is closed would be reset. So nobody else may begin, and who has begun gets the time
        // for the last packet of the three.
        refuse_new(&socket);
        let last_call = Instant::now() + LAST_CALL;
        while let Ok(accepted) = tokio::time::timeout_at(last_call, socket.accept()).await {
            let Ok((tcp, address)) = accepted else { break };
            serve(&worker, &listener, tcp, address, &guard);
        }
        // What the system has accepted since the event queue was read last.
        let Ok(socket) = socket.into_std() else { return };
        while let Ok((tcp, address)) = socket.accept() {
            if tcp.set_nonblocking(true).is_ok()
                && let Ok(tcp) = TcpStream::from_std(tcp)
            {
                serve(&worker, &listener, tcp, address, &guard);
            }
        }
    }
}

/// Serves a connection on this worker, unless there are too many.
fn serve(
    worker: &Arc<Worker>,
    listener: &Arc<Listener>,
    tcp: TcpStream,
    address: SocketAddr,
    guard: &DrainGuard,
) {
    // Dropping it tells the client at once; waiting would only fill the queue behind it.
    let turn_away = |limit| worker.metrics.turn_away(limit, address.ip());
    // Who is introduced is counted when it is known who that is.
    let seat = match listener.introductions {
        None => match listener.seat(worker, address) {
            Ok(seat) => seat,
            Err(limit) => return turn_away(limit),
        },
        Some(_) => Seat::default(),
    };
    if worker.metrics.open(worker.limits.max_connections).is_err() {
        return turn_away(TooMany::Connections);
    }
    if listener.open.fetch_add(1, Ordering::Relaxed) >= worker.limits.max_of_door {
        listener.open.fetch_sub(1, Ordering::Relaxed);
        worker.metrics.close();
        return turn_away(TooMany::OfListener);
    }
    let number = crate::observe::next_connection_id();
    let (worker, listener, guard) = (worker.clone(), listener.clone(), guard.clone());
    worker.clone().spawn(async move {
        connection::run(&worker, &listener, tcp, address, number, seat).await;
        listener.open.fetch_sub(1, Ordering::Relaxed);
        worker.metrics.close();
        drop(guard);
    });
}
