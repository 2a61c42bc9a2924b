//! Serving a client's HTTP/2 connection: a task a stream.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll};

use super::caller::Caller;
use super::connection::{Proved, settings};
use super::message::{Body, length_of};
use super::request::{read_request, too_large};
use crate::mtls::Proof;
use crate::pipeline::{Client, Exchange};
use crate::proxy::connection::Served;
use crate::proxy::http::flow::{self, After};
use crate::proxy::http::judge::ConnectionStanding;
use crate::proxy::http::{Downstream, bounds, tunnel};
use crate::proxy::worker::Worker;
use crate::rt::Watchdog;
use crate::rt::http2::{Connection, Incoming, Reason};
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
    let mut stream = Proved::new(stream, Some(proof.clone()));
    let limits = &worker.limits;
    let mut connection = Connection::server(settings(limits.request_head, limits.streams));
    let mut draining = pin!(worker.draining());
    let mut watchdog = Watchdog::new();
    watchdog.set(Some(crate::rt::coarse_now() + limits.head_within));
    let (mut is_leaving, mut has_begun) = (false, false);
    let cancelled = Arc::new(Cancelled::default());
    loop {
        let next = poll_fn(|context| {
            if proof.is_cut() {
                // The streams' tasks hear of it from the connection.
                return Poll::Ready(None);
            }
            if !has_begun && connection.is_settled() {
                has_begun = true;
                watchdog.set(None);
            }
            let is_late = if !has_begun {
                watchdog.poll(context).is_ready()
            } else {
                if watchdog.deadline().is_none() || connection.has_streams() {
                    watchdog.set(Some(crate::rt::coarse_now() + limits.idle_within));
                }
                watchdog.poll(context).is_ready()
            };
            if is_late && !has_begun {
                worker.note_malformed(&client, "the HTTP/2 preface is missing or late");
                return Poll::Ready(None);
            }
            if is_leaving && is_late {
                // It was told to go, has nothing to do here, and does not go.
                return Poll::Ready(None);
            }
            if !is_leaving {
                let ends = proof.lapse().is_some() || served.requests >= limits.requests;
                if ends || is_late || draining.as_mut().poll(context).is_ready() {
                    is_leaving = true;
                    watchdog.set(Some(crate::rt::coarse_now() + limits.head_within));
                    connection.leave();
                }
            }
            if cancelled.too_many(served.requests, limits.resets) {
                connection.give_up(Reason::ENHANCE_YOUR_CALM, "too many streams were given up");
            }
            connection.poll(&mut stream, context)
        })
        .await;
        let mut incoming = match next {
            Some(Ok(incoming)) => incoming,
            Some(Err(error)) => {
                if has_begun || proof.lapse().is_none() {
                    worker.note_malformed(&client, &format!("HTTP/2: {error}"));
                }
                return;
            }
            None => return,
        };
        if worker.watch.lapse(proof).is_some_and(|lapse| !lapse.is_gentle()) {
            incoming.stream.reset(Reason::REFUSED_STREAM);
            continue;
        }
        served.requests += 1;
        let (worker, client) = (worker.clone(), client.clone());
        let (standing, cancelled) = (standing.clone(), cancelled.clone());
        let proof = proof.clone();
        worker.clone().spawn(async move {
            let accompanied = poll_fn(|context| Poll::Ready(proof.accompany(context.waker())));
            let accompanied = accompanied.await;
            let begun = Begun { client: &client, proof: &proof, cancelled: &cancelled };
            begun.serve(&worker, standing, incoming).await;
            drop(accompanied);
        });
    }
}

/// Streams that a caller began and gave up: work for us and for upstreams, next to none for it (CVE-2023-44487).
#[derive(Default)]
struct Cancelled(AtomicU32);

impl Cancelled {
    /// So many, and more than half of all: no client that wants answers does that.
    fn too_many(&self, all: u64, limit: u32) -> bool {
        let cancelled = u64::from(self.0.load(Ordering::Relaxed));
        cancelled > u64::from(limit) && cancelled * 2 > all
    }
}

/// What the streams of a connection share.
struct Begun<'a> {
    client: &'a Arc<Client>,
    proof: &'a Arc<Proof>,
    cancelled: &'a Cancelled,
}

impl Begun<'_> {
    async fn serve(
        &self,
        worker: &Arc<Worker>,
        mut standing: ConnectionStanding,
        incoming: Incoming,
    ) {
        let (client, cancelled) = (self.client, self.cancelled);
        let Incoming { mut stream, fields, is_ended } = incoming;
        if let Some(refused) = too_large(&fields, &worker.limits.request_head) {
            worker.note_malformed(client, refused.sentence);
            bounds::answer(&fields, refused, stream).await;
            return;
        }
        let mut exchange: Box<Exchange> = worker.lend_exchange(client);
        let asked = match read_request(&fields, &mut exchange.request) {
            Ok(asked) => asked,
            Err(sentence) => {
                worker.note_malformed(client, sentence);
                worker.take_back(exchange);
                stream.reset(Reason::PROTOCOL_ERROR);
                cancelled.0.fetch_add(1, Ordering::Relaxed);
                return;
            }
        };
        let expects = |value: &[u8]| value.eq_ignore_ascii_case(b"100-continue");
        let mut caller = Caller {
            length: length_of(&exchange.request, is_ended),
            is_head: exchange.request.method() == "HEAD",
            connect: asked.connect,
            is_tunnel: false,
            expects_continue: !is_ended && fields.get(b"expect").is_some_and(expects),
            has_begun: false,
            body: Body::of(stream),
            received: 0,
            sent: 0,
        };
        caller.body.stream.recycle(fields);
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
        let is_answered = caller.has_begun && caller.body.stream.is_sent();
        if let After::Tunnel(tunnel) = after {
            worker.take_back(exchange);
            // Should policy refuse it by now, that is in the log.
            let _ =
                tunnel::carry(worker, &mut caller, client, &standing, self.proof, *tunnel).await;
            return;
        }
        // A caller that still sends what nobody reads is told to stop when the stream goes.
        let mut context = Context::from_waker(std::task::Waker::noop());
        if !is_answered && caller.poll_gone(&mut context).is_ready() {
            cancelled.0.fetch_add(1, Ordering::Relaxed);
        }
        worker.take_back(exchange);
    }
}
