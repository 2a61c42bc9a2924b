//! Serving a client's HTTP/2 connection: a task a stream.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::ext::Protocol;
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::{Method, Request};

use super::body::{Receiving, length_of};
use super::caller::Caller;
use super::connection::{
    CONNECTION_WINDOW, MAX_FIELDS, MAX_STREAMS, Proved, SEND_BUFFER, STREAM_WINDOW, Turn,
};
use super::request::read_request;
use crate::mtls::Proof;
use crate::pipeline::{Client, Exchange};
use crate::proxy::connection::Served;
use crate::proxy::http::flow::{self, After};
use crate::proxy::http::judge::ConnectionStanding;
use crate::proxy::http::{Downstream, tunnel};
use crate::proxy::worker::Worker;
use crate::rt::Watchdog;
use crate::upstream;

/// Serves a client's HTTP/2 connection until its end; one task a stream.
pub(in crate::proxy) async fn serve(
    worker: &Arc<Worker>,
    stream: upstream::Stream,
    client: Arc<Client>,
    standing: ConnectionStanding,
    proof: &Arc<Proof>,
    served: &mut Served,
) {
    let handshake = h2::server::Builder::new()
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_FIELDS)
        .max_send_buffer_size(SEND_BUFFER)
        .max_pending_accept_reset_streams(32)
        .max_local_error_reset_streams(Some(128))
        .enable_connect_protocol()
        .handshake::<_, Bytes>(Proved::new(stream, Some(proof.clone())));
    let handshake = tokio::time::timeout(worker.limits.head_within, handshake).await;
    let Ok(Ok(mut connection)) = handshake else {
        if proof.lapse().is_none() {
            worker.note_malformed(&client, "the HTTP/2 preface is missing or late");
        }
        return;
    };
    let mut turn = Turn::default();
    let mut draining = pin!(worker.draining());
    let mut watchdog = Watchdog::new();
    let (mut is_leaving, mut is_calmed) = (false, false);
    let open = Arc::new(());
    let cancelled = Arc::new(Cancelled::default());
    loop {
        let next = poll_fn(|context| {
            if proof.is_cut() {
                // The streams' tasks hear of it from the connection.
                return Poll::Ready(None);
            }
            let idle = Arc::strong_count(&open) == 1 && !connection.has_streams();
            if watchdog.deadline().is_none() || !idle {
                watchdog.set(Some(tokio::time::Instant::now() + worker.limits.idle_within));
            }
            let is_idle_for_long = watchdog.poll(context).is_ready();
            if is_leaving && is_idle_for_long {
                // It was told to go, has nothing to do here, and does not go.
                return Poll::Ready(None);
            }
            if !is_leaving {
                let ends = proof.lapse().is_some();
                if ends || is_idle_for_long || draining.as_mut().poll(context).is_ready() {
                    is_leaving = true;
                    watchdog.set(Some(tokio::time::Instant::now() + worker.limits.head_within));
                    connection.graceful_shutdown();
                }
            }
            if !is_calmed && cancelled.too_many(served.requests) {
                is_calmed = true;
                worker.note_malformed(&client, "too many streams were given up");
                connection.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
            }
            ready!(turn.poll(context));
            connection.poll_accept(context)
        })
        .await;
        let (request, mut respond) = match next {
            Some(Ok(accepted)) => accepted,
            Some(Err(error)) => {
                worker.note_malformed(&client, &format!("HTTP/2: {error}"));
                return;
            }
            None => return,
        };
        if worker.watch.lapse(proof).is_some_and(|lapse| !lapse.is_gentle()) {
            respond.send_reset(Reason::REFUSED_STREAM);
            continue;
        }
        served.requests += 1;
        watchdog.set(None);
        let (worker, client, guard) = (worker.clone(), client.clone(), open.clone());
        let (standing, cancelled) = (standing.clone(), cancelled.clone());
        let proof = proof.clone();
        worker.clone().spawn(async move {
            let accompanied = poll_fn(|context| Poll::Ready(proof.accompany(context.waker())));
            let accompanied = accompanied.await;
            let stream = Stream { client: &client, proof: &proof, cancelled: &cancelled };
            stream.serve(&worker, standing, request, respond).await;
            drop(accompanied);
            drop(guard);
        });
    }
}

/// Streams that a caller began and gave up: work for us and for upstreams, next to none for it (CVE-2023-44487). The `h2`
/// crate bounds those that it resets before we see them; this counts the others.
#[derive(Default)]
struct Cancelled(AtomicU32);

impl Cancelled {
    /// So many, and more than half of all: no client that wants answers does that.
    fn too_many(&self, all: u64) -> bool {
        let cancelled = u64::from(self.0.load(Ordering::Relaxed));
        cancelled > 500 && cancelled * 2 > all
    }
}

fn expects_continue(fields: &http::HeaderMap) -> bool {
    let expected = fields.get(http::header::EXPECT);
    expected.is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"))
}

/// What the streams of a connection share.
struct Stream<'a> {
    client: &'a Arc<Client>,
    proof: &'a Proof,
    cancelled: &'a Cancelled,
}

impl Stream<'_> {
    async fn serve(
        &self,
        worker: &Arc<Worker>,
        mut standing: ConnectionStanding,
        request: Request<RecvStream>,
        mut respond: SendResponse<Bytes>,
    ) {
        let (client, cancelled) = (self.client, self.cancelled);
        let (parts, stream) = request.into_parts();
        let mut exchange: Box<Exchange> = worker.lend_exchange(client);
        if let Err(sentence) = read_request(&parts, &mut exchange.request) {
            worker.note_malformed(client, sentence);
            worker.take_back(exchange);
            respond.send_reset(Reason::PROTOCOL_ERROR);
            cancelled.0.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let mut caller = Caller {
            length: length_of(&exchange.request, stream.is_end_stream()),
            is_head: parts.method == Method::HEAD,
            connect: (parts.method == Method::CONNECT)
                .then(|| parts.extensions.get::<Protocol>().cloned()),
            is_tunnel: false,
            expects_continue: expects_continue(&parts.headers) && !stream.is_end_stream(),
            receiving: Receiving::new(stream),
            respond,
            sending: None,
            received: 0,
            sent: 0,
        };
        drop(parts);
        let mut watchdog = Watchdog::new();
        let after = flow::exchange(
            worker,
            &mut exchange,
            &mut caller,
            &mut standing,
            &mut watchdog,
            self.proof,
        )
        .await;
        let is_answered = caller.sending.as_ref().is_some_and(|sending| sending.is_over);
        if let After::Tunnel(tunnel) = after {
            worker.take_back(exchange);
            // Should policy refuse it by now, that is in the log.
            let _ =
                tunnel::carry(worker, &mut caller, client, &standing, self.proof, *tunnel).await;
            return;
        }
        // A caller that still sends what nobody reads is told to stop when the response has gone out and the stream is dropped;
        // resetting it here would drop the response.
        let mut context = Context::from_waker(std::task::Waker::noop());
        if !is_answered && caller.poll_gone(&mut context).is_ready() {
            cancelled.0.fetch_add(1, Ordering::Relaxed);
        }
        worker.take_back(exchange);
    }
}
