//! `Listener`: sockets become connections, within bounds, until the drain.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};

use super::connection::{self, DoorSecurity};
use super::worker::Worker;
use crate::identity::Identity;
use crate::model::Listeners;
use crate::rt::{DrainGuard, Live};

/// For handshakes of TCP that have begun when the drain comes.
const HANDSHAKES_WITHIN: Duration = Duration::from_millis(200);

/// One worker's socket of a door.
#[derive(Clone)]
pub(in crate::proxy) struct Listener {
    pub(in crate::proxy) door: Listeners,
    pub(in crate::proxy) security: DoorSecurity,
    /// Who we are, where we have an identity.
    pub(in crate::proxy) me: Option<Live<Identity>>,
}

impl Listener {
    /// Accepts until the worker drains; what the system has accepted for us by then is still served.
    pub(in crate::proxy) async fn run(
        self,
        worker: Arc<Worker>,
        socket: TcpListener,
        guard: DrainGuard,
    ) {
        let mut draining = std::pin::pin!(worker.draining());
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
        // A handshake that has begun is finished: the client may have sent its request already.
        let left = HANDSHAKES_WITHIN.min(worker.limits.drain_idle);
        if crate::rt::socket::turn_away(&socket).is_ok() {
            let begun = async {
                while let Ok((tcp, address)) = socket.accept().await {
                    serve(&worker, &listener, tcp, address, &guard);
                }
            };
            let _ = tokio::time::timeout(left, begun).await;
        }
        // What the system has accepted since the event queue was read last would be reset with the socket.
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
    if worker.metrics.open(worker.limits.max_connections).is_err() {
        // Dropping it tells the client at once; waiting would only fill the queue behind it.
        return;
    }
    let number = crate::observe::next_connection_id();
    let (worker, listener, guard) = (worker.clone(), listener.clone(), guard.clone());
    worker.clone().spawn(async move {
        connection::run(&worker, &listener, tcp, address, number).await;
        worker.metrics.close();
        drop(guard);
    });
}
