//! `Listener`: sockets become connections, within bounds, until the drain.

use std::future::Future;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::net::TcpListener;

use super::connection::{self, DoorSecurity};
use super::worker::Worker;
use crate::identity::Identity;
use crate::model::Listeners;
use crate::rt::{DrainGuard, Live};

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
                    if worker.metrics.open(worker.limits.max_connections).is_err() {
                        // Dropping it tells the client at once; waiting would only fill the queue behind it.
                        continue;
                    }
                    let number = crate::observe::next_connection_id();
                    let (worker, listener, guard) =
                        (worker.clone(), listener.clone(), guard.clone());
                    worker.clone().spawn(async move {
                        connection::run(&worker, &listener, tcp, address, number).await;
                        worker.metrics.close();
                        drop(guard);
                    });
                }
                Some(Err(error)) => {
                    // Out of descriptors and the like: the loop must neither end nor spin.
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                None => return,
            }
        }
    }
}
