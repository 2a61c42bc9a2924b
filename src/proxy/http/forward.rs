//! Sending to the chosen upstream: attempts, retries, time limits, and carrying both bodies.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;

use bytes::Bytes;
use smallvec::SmallVec;
use tokio::time::Instant;

use super::flow::Chains;
use super::h1::{Http1, RequestLine};
use super::h2::{UpstreamHttp2, originate};
use super::headers::Hop;
use super::judge::{Asked, Kept};
use super::origin::{Answer, Origin};
use super::transfer::{Failed, Pump};
use super::tunnel::Tunnel;
use super::vigil::{Alarm, Vigil};
use super::{BodyLength, Broken, Downstream};
use crate::model::PassHost;
use crate::mtls::Proof;
use crate::pipeline::{BodyFilters, Exchange, Fault, Flow, Reply, Rewritten, Template};
use crate::proxy::worker::Worker;
use crate::snapshot::CompiledRoute;
use crate::upstream::{
    Busy, Cluster, Endpoint, Idle, Multiplexed, Protocol, Reuse, Security, Tried,
};

/// Why there is no answer from an upstream.
pub(in crate::proxy) enum Failure {
    /// The caller has gone.
    Gone,
    /// A plugin answers.
    Reply(Box<Reply>),
    /// It failed.
    Fault(Fault),
    /// Policy refuses by now what it allowed at the start.
    Refused,
    /// The time that the caller gave is over.
    Overdue,
}

/// Why an answer did not come through wholly.
pub(in crate::proxy) enum Stopped {
    /// One of the sides broke off; the cause, for the log.
    Broken(String),
    /// Policy refuses by now what it allowed at the start.
    Refused,
    /// The time that the caller gave is over.
    Overdue,
}

/// An exchange whose upstream has begun to answer.
pub(in crate::proxy) struct Upstreamed {
    origin: Origin,
    upload: Pump,
    /// The body of the answer.
    pub(in crate::proxy) length: BodyLength,
    switched: bool,
    protocol: Option<Vec<u8>>,
    cluster: Arc<Cluster>,
    endpoint: Arc<Endpoint>,
    reuse: Reuse,
    _busy: Busy,
}

/// Sends the request, to another endpoint as often as that is lawful, until one begins to answer.
pub(in crate::proxy) async fn begin<D: Downstream>(
    worker: &Arc<Worker>,
    exchange: &mut Exchange,
    caller: &mut D,
    chains: &Chains<'_>,
    vigil: &mut Vigil<'_>,
    hop: &Hop,
) -> Result<Upstreamed, Failure> {
    let Some(cluster) = chains.route.and_then(|route| route.cluster.clone()) else {
        let none = || unavailable("the route has no upstream");
        let fault = chains.route.map_or_else(none, CompiledRoute::cluster_fault);
        return Err(Failure::Fault(fault));
    };
    let hash_key = chains.route.and_then(|route| route.hash_key.as_ref());
    let started = Instant::now();
    let mut tried = Tried::default();
    let mut upload = Pump::default();
    let mut attempts = 0;
    let mut last: Option<Fault> = None;
    loop {
        let picked = match hash_key {
            None => cluster.pick(b"", &mut tried),
            Some(key) => cluster.pick(hash_input(exchange, key).as_bytes(), &mut tried),
        };
        let Some(endpoint) = picked.cloned() else {
            let none = || unavailable("the upstream has no node that may be used");
            return Err(Failure::Fault(last.unwrap_or_else(none)));
        };
        exchange.endpoint = endpoint.address();
        if let Some(reply) = forward_hooks(exchange, chains).await? {
            return Err(Failure::Reply(reply));
        }
        if let Some(deadline) = hop.deadline {
            super::grpc::shorten(&mut exchange.request, deadline);
        }
        let busy = endpoint.busy();
        let attempt = Attempt { worker, cluster: &cluster, endpoint: &endpoint, hop };
        let fault = match attempt.run(exchange, caller, &mut upload, vigil).await {
            Ok((origin, answer, reuse)) => {
                exchange.times.answered = Some(Instant::now());
                exchange.upstream_statuses.push(exchange.response.status());
                let (length, switched) = match answer {
                    Answer::Final(length) => (length, false),
                    Answer::Interim | Answer::Switched => (BodyLength::None, true),
                };
                let protocol = exchange.response.value("upgrade").map(<[u8]>::to_vec);
                return Ok(Upstreamed {
                    origin,
                    upload,
                    length,
                    switched,
                    protocol,
                    cluster,
                    endpoint,
                    reuse,
                    _busy: busy,
                });
            }
            Err(Failure::Fault(fault)) => fault,
            Err(other) => return Err(other),
        };
        exchange.upstream_statuses.push(fault.status);
        attempts += 1;
        let in_time = cluster.retry_within.is_none_or(|within| started.elapsed() < within);
        if !fault.retry || attempts > cluster.retries || !in_time {
            return Err(Failure::Fault(fault));
        }
        tracing::debug!(endpoint = %endpoint.authority(), cause = %fault.cause, "another endpoint is tried");
        last = Some(fault);
    }
}

fn unavailable(cause: &str) -> Fault {
    Fault::upstream(503, "no upstream is available", cause, false)
}

async fn forward_hooks(
    exchange: &mut Exchange,
    chains: &Chains<'_>,
) -> Result<Option<Box<Reply>>, Failure> {
    let both = [Some(&chains.snapshot.global), chains.own()];
    for chain in both.into_iter().flatten().filter(|chain| chain.has_forward()) {
        match chain.forward(exchange).await {
            Ok(Flow::Next) => {}
            Ok(Flow::Reply(reply)) => return Ok(Some(reply)),
            Err(fault) => return Err(Failure::Fault(fault)),
        }
    }
    Ok(None)
}

/// What the hash ring turns on. As in APISIX, a key that is not there falls back to the caller's address, so that load still
/// spreads.
fn hash_input(exchange: &Exchange, key: &Template) -> String {
    let mut input = String::new();
    key.render(exchange, &mut input);
    if input.is_empty() { exchange.client.address.ip().to_string() } else { input }
}

/// What plugins made must not end a line early. What came from the caller was checked when it came.
fn check_rewritten(rewritten: &Rewritten) -> Result<(), Failure> {
    let parts = [&rewritten.method, &rewritten.target, &rewritten.host];
    let lawful = |text: &&String| text.bytes().all(|b| (0x21..=0x7e).contains(&b));
    match parts.into_iter().flatten().find(|text| !lawful(text)) {
        None => Ok(()),
        Some(_) => {
            let cause = "a plugin made a method, target or host with bytes that none may have";
            Err(Failure::Fault(Fault::gateway("the request cannot be forwarded", cause)))
        }
    }
}

/// One try at one endpoint.
pub(super) struct Attempt<'a> {
    worker: &'a Arc<Worker>,
    pub(super) cluster: &'a Cluster,
    pub(super) endpoint: &'a Arc<Endpoint>,
    hop: &'a Hop,
}

impl Attempt<'_> {
    async fn run<D: Downstream>(
        &self,
        exchange: &mut Exchange,
        caller: &mut D,
        upload: &mut Pump,
        vigil: &mut Vigil<'_>,
    ) -> Result<(Origin, Answer, Reuse), Failure> {
        let mut may_reuse = true;
        loop {
            let http2 = self.speaks_http2(caller);
            let (mut origin, reuse, reused) = match self.hop.switch {
                None => self.obtain(http2, may_reuse).await?,
                Some(switch) => Box::pin(self.obtain_for(switch, http2, may_reuse)).await?,
            };
            vigil.over(reuse.proof.clone());
            self.send(exchange, caller, &mut origin)?;
            exchange.times.forwarded = Some(Instant::now());
            caller.invite_body();
            match self.head(exchange, caller, &mut origin, upload, vigil).await {
                Ok(answer) => return Ok((origin, answer, reuse)),
                Err(Failure::Fault(mut fault)) if fault.retry => {
                    match upload.has_begun() {
                        // It may have finished an empty body: the next origin has seen nothing of it.
                        false => upload.begin_again(Bytes::new()),
                        true => match origin.hand_back() {
                            Some(taken) => upload.begin_again(taken),
                            None => fault.retry = false,
                        },
                    }
                    if reused || fault.status == 504 {
                        self.forget_http2(&origin);
                    }
                    if !fault.retry || !reused || fault.status == 504 {
                        return Err(Failure::Fault(fault));
                    }
                    // The other side closed a kept connection while we took it: that says nothing about the endpoint.
                    may_reuse = false;
                }
                Err(Failure::Fault(fault)) if fault.status == 504 => {
                    // The host behind a shared connection may be gone without a word: the next request tries a new one.
                    self.forget_http2(&origin);
                    return Err(Failure::Fault(fault));
                }
                Err(failure) => return Err(failure),
            }
        }
    }

    /// Towards workloads HTTP/2 stays HTTP/2 and HTTP/1.1 stays HTTP/1.1; elsewhere the scheme says it.
    fn speaks_http2<D: Downstream>(&self, caller: &D) -> bool {
        match self.endpoint.security {
            Security::Mesh(_) => caller.is_http2() || self.cluster.speaks_http2(),
            Security::Plain | Security::Public { .. } => self.cluster.speaks_http2(),
        }
    }

    pub(super) async fn obtain(
        &self,
        http2: bool,
        may_reuse: bool,
    ) -> Result<(Origin, Reuse, bool), Failure> {
        if http2 {
            return Box::pin(self.obtain_http2(may_reuse, false)).await;
        }
        if may_reuse {
            let now = crate::rt::unix_seconds();
            let stands = |proof: &Arc<Proof>| self.worker.watch.lapse(proof).is_none();
            let idle = poll_fn(|context| {
                let idle = self.worker.pool.lock().take(self.endpoint, now, stands, context);
                if let Some(Idle { reuse: Reuse { proof: Some(proof), .. }, .. }) = &idle {
                    proof.attend(context.waker());
                }
                Poll::Ready(idle)
            })
            .await;
            if let Some(Idle { stream, mut reuse }) = idle {
                reuse.requests += 1;
                return Ok((self.over(stream), reuse, true));
            }
        }
        let (stream, reuse) = Box::pin(self.connect(Protocol::Http1)).await?;
        if let Some(proof) = &reuse.proof {
            proof.attended().await;
        }
        Ok((self.over(stream), reuse, false))
    }

    pub(super) fn over(&self, stream: crate::upstream::Stream) -> Origin {
        let mut http = Http1::new(stream);
        http.equip(&self.worker.buffers);
        Origin::http1(http)
    }

    pub(super) async fn connect(
        &self,
        protocol: Protocol,
    ) -> Result<(crate::upstream::Stream, Reuse), Failure> {
        let within = self.cluster.connect_within;
        let established =
            self.worker.connect.to(self.endpoint, protocol, within).await.map_err(|error| {
                self.worker.note_unreachable(&error);
                let (status, sentence) = match error {
                    crate::upstream::Error::Late { .. } => {
                        (504, "the upstream did not answer in time")
                    }
                    _ => (502, "the upstream cannot be reached"),
                };
                Failure::Fault(Fault::upstream(status, sentence, error.to_string(), true))
            })?;
        let proof = match &established.proved {
            None => None,
            Some((peer, before)) => {
                let failed = |cause: String| {
                    let sentence = "the upstream cannot be reached";
                    Failure::Fault(Fault::upstream(502, sentence, cause, true))
                };
                let watch = &self.worker.watch;
                let proof = watch.originated(&established.stream, peer, before);
                let proof = proof.map_err(|error| failed(error.to_string()))?;
                // Trust may have changed while hands were shaken.
                if let Some(lapse) = watch.lapse(&proof) {
                    return Err(failed(format!(
                        "the peer is not proved any more: {}",
                        lapse.code()
                    )));
                }
                Some(proof)
            }
        };
        Ok((established.stream, Reuse { requests: 1, proof }))
    }

    /// A stream; on a new connection when `settled` only when it is known what the peer offers.
    pub(super) async fn obtain_http2(
        &self,
        may_reuse: bool,
        settled: bool,
    ) -> Result<(Origin, Reuse, bool), Failure> {
        let failed = |cause: String| {
            Failure::Fault(Fault::upstream(502, "the upstream cannot be reached", cause, true))
        };
        let shared = self.worker.pool.lock().shared(self.endpoint);
        // Whoever holds the lock is connecting, and has no more time for it than we have.
        let within = self.cluster.connect_within;
        let Ok(mut place) = tokio::time::timeout(within, shared.lock()).await else {
            let (sentence, cause) = ("the upstream did not answer in time", "no connection yet");
            return Err(Failure::Fault(Fault::upstream(504, sentence, cause, true)));
        };
        let secure = !matches!(self.endpoint.security, Security::Plain);
        let origin = |ready, streams| {
            let origin = UpstreamHttp2::new(ready, streams, secure);
            Origin::Http2(Box::new(origin))
        };
        let now = crate::rt::unix_seconds();
        // What is no longer proved finishes the streams that it has, and gets no new ones.
        place.retain(|each| each.holds(now, |proof| self.worker.watch.lapse(proof).is_none()));
        let mut at = 0;
        while let Some(each) = place.get(at).filter(|_| may_reuse) {
            if !each.has_room() {
                at += 1;
                continue;
            }
            match each.send.clone().ready().await {
                Ok(ready) => {
                    return Ok((origin(ready, each.streams.clone()), each.reuse.clone(), true));
                }
                Err(_) => drop(place.remove(at)),
            }
        }
        let (stream, reuse) = self.connect(Protocol::Http2).await?;
        let settled = settled.then_some(within);
        let send = originate(self.worker, stream, reuse.proof.clone(), settled).await;
        let send = send.map_err(|broken| failed(broken.to_string()))?;
        let streams = Arc::new(());
        let kept =
            Multiplexed { send: send.clone(), reuse: reuse.clone(), streams: streams.clone() };
        place.push(kept);
        drop(place);
        let ready = send.ready().await.map_err(|error| failed(error.to_string()))?;
        Ok((origin(ready, streams), reuse, false))
    }

    /// Nobody else shall wait on the shared connection that failed; streams under way keep it.
    fn forget_http2(&self, origin: &Origin) {
        let Origin::Http2(origin) = origin else { return };
        let shared = self.worker.pool.lock().shared(self.endpoint);
        if let Ok(mut place) = shared.try_lock() {
            place.retain(|each| !origin.is_on(&each.streams));
        }
    }

    fn send<D: Downstream>(
        &self,
        exchange: &Exchange,
        caller: &D,
        origin: &mut Origin,
    ) -> Result<(), Failure> {
        let rewritten = &exchange.rewritten;
        let node;
        let host = match (&rewritten.host, self.cluster.pass_host) {
            (Some(host), _) => host,
            (None, PassHost::Pass) => exchange.request.authority(),
            (None, PassHost::Rewrite) => self.cluster.host.as_deref().unwrap_or_default(),
            (None, PassHost::Node) => {
                node = self.endpoint.authority();
                &node
            }
        };
        check_rewritten(rewritten)?;
        let line = RequestLine {
            method: rewritten.method.as_deref().unwrap_or_else(|| exchange.request.method()),
            target: rewritten.target.as_deref().unwrap_or_else(|| exchange.request.target()),
            host,
            body: caller.request_body(),
            switch: self.hop.switch,
            te_trailers: self.hop.te_trailers,
        };
        origin.send(&line, &exchange.request).map_err(|broken| {
            let cause = broken.to_string();
            Failure::Fault(Fault::upstream(502, "the upstream cannot be reached", cause, true))
        })
    }

    /// Sends the body and waits for the answer's head, both at once: an upstream may answer early.
    async fn head<D: Downstream>(
        &self,
        exchange: &mut Exchange,
        caller: &mut D,
        origin: &mut Origin,
        upload: &mut Pump,
        vigil: &mut Vigil<'_>,
    ) -> Result<Answer, Failure> {
        vigil.set(Some(Instant::now() + self.cluster.send_within));
        let mut moved = upload.moved;
        let mut waiting = false;
        // The method that was sent: it decides whether the answer has a body.
        let method = exchange.rewritten.method.as_deref();
        let method = method.unwrap_or_else(|| exchange.request.method());
        let method: SmallVec<[u8; 16]> = SmallVec::from_slice(method.as_bytes());
        let method = std::str::from_utf8(&method).unwrap_or_default();
        let is_idempotent =
            matches!(method, "GET" | "HEAD" | "PUT" | "DELETE" | "OPTIONS" | "TRACE");
        let unproved = |origin: &Origin| {
            origin.reset_on_close();
            let (sentence, cause) = ("the upstream is not proved any more", "its proof fell");
            let retry = is_idempotent && !origin.has_answered();
            Err(Failure::Fault(Fault::upstream(503, sentence, cause, retry)))
        };
        poll_fn(|context| {
            if vigil.is_unproved() {
                return Poll::Ready(unproved(origin));
            }
            // `100 Continue` and other interim responses must not wait for the final one.
            if let Poll::Ready(Err(_)) = caller.poll_flush(context) {
                return Poll::Ready(Err(Failure::Gone));
            }
            if !upload.is_finished() && !upload.is_stuck() {
                match upload.poll(context, caller, origin) {
                    Poll::Ready(Ok(())) => {}
                    Poll::Ready(Err(Failed::Source(Broken::Protocol(cause)))) => {
                        let mut fault = Fault::client(400, "the request's body is malformed");
                        fault.cause = cause;
                        return Poll::Ready(Err(Failure::Fault(fault)));
                    }
                    Poll::Ready(Err(Failed::Source(_) | Failed::Filter(_))) => {
                        return Poll::Ready(Err(Failure::Gone));
                    }
                    // It may have answered before it closed: the answer decides.
                    Poll::Ready(Err(Failed::Sink(_))) => upload.get_stuck(),
                    Poll::Pending => {}
                }
                if upload.moved != moved {
                    moved = upload.moved;
                    vigil.set(Some(Instant::now() + self.cluster.send_within));
                }
            }
            if upload.is_finished() && !waiting {
                waiting = true;
                vigil.set(Some(Instant::now() + self.cluster.read_within));
            }
            loop {
                match origin.poll_head(context, method, &mut exchange.response) {
                    Poll::Ready(Ok(Answer::Interim)) => {
                        // 100 was ours to send; the others are told on.
                        if exchange.response.status() != 100 {
                            super::headers::receive_response(&mut exchange.response);
                            caller.interim(&exchange.response);
                            if let Poll::Ready(Err(_)) = caller.poll_flush(context) {
                                return Poll::Ready(Err(Failure::Gone));
                            }
                        }
                    }
                    Poll::Ready(Ok(answer)) => return Poll::Ready(Ok(answer)),
                    Poll::Ready(Err(broken)) => {
                        let unanswered = !origin.has_answered();
                        let untouched = origin.is_untouched(&broken);
                        let retry = unanswered && (is_idempotent || untouched);
                        let fault = Fault::upstream(
                            502,
                            "the upstream gave no valid answer",
                            broken.to_string(),
                            retry,
                        );
                        return Poll::Ready(Err(Failure::Fault(fault)));
                    }
                    Poll::Pending => break,
                }
            }
            if upload.is_finished() && caller.poll_gone(context).is_ready() {
                return Poll::Ready(Err(Failure::Gone));
            }
            vigil.poll(context, || Asked::of(exchange)).map(|alarm| {
                match alarm {
                    Alarm::Unproved => return unproved(origin),
                    Alarm::Refused => return Err(Failure::Refused),
                    Alarm::Late => {}
                }
                if !upload.is_finished() && upload.is_starved() {
                    let sentence = "the request's body took too long";
                    return Err(Failure::Fault(Fault::client(408, sentence)));
                }
                let cause = "no answer within the time limit";
                let retry = is_idempotent && !origin.has_answered();
                Err(Failure::Fault(Fault::upstream(
                    504,
                    "the upstream did not answer in time",
                    cause,
                    retry,
                )))
            })
        })
        .await
    }
}

impl Upstreamed {
    /// From here on the bytes belong to another protocol.
    pub(in crate::proxy) fn is_switched(&self) -> bool {
        self.switched
    }

    /// Has the request's body gone out wholly?
    pub(in crate::proxy) fn is_uploaded(&self) -> bool {
        self.upload.is_finished()
    }

    /// Carries the answer's body, and what is left of the request's.
    pub(in crate::proxy) async fn carry<D: Downstream>(
        &mut self,
        caller: &mut D,
        mut filters: BodyFilters,
        vigil: &mut Vigil<'_>,
        exchange: &Exchange,
    ) -> Result<(), Stopped> {
        let within = self.cluster.read_within;
        let mut download = Pump::default();
        let mut moved = (self.upload.moved, 0);
        let mut armed = false;
        let is_filtered = !filters.is_empty();
        let broken = |cause: String| Poll::Ready(Err(Stopped::Broken(cause)));
        let unproved = |origin: &Origin| {
            origin.reset_on_close();
            broken("the upstream's proof fell".to_owned())
        };
        poll_fn(|context| {
            if vigil.is_unproved() {
                return unproved(&self.origin);
            }
            if !self.upload.is_finished() && !self.upload.is_stuck() {
                match self.upload.poll(context, caller, &mut self.origin) {
                    Poll::Ready(Err(Failed::Source(cause))) => {
                        return broken(format!("the caller broke off: {cause}"));
                    }
                    Poll::Ready(Err(_)) => self.upload.get_stuck(),
                    Poll::Ready(Ok(())) | Poll::Pending => {}
                }
            }
            let polled = match is_filtered {
                false => download.poll(context, &mut self.origin, caller),
                true => download.poll_filtered(context, &mut self.origin, caller, &mut filters),
            };
            match polled {
                Poll::Ready(Ok(())) => return Poll::Ready(Ok(())),
                Poll::Ready(Err(Failed::Source(cause))) => {
                    return broken(format!("the upstream broke off: {cause}"));
                }
                Poll::Ready(Err(Failed::Sink(cause))) => {
                    return broken(format!("the caller broke off: {cause}"));
                }
                Poll::Ready(Err(Failed::Filter(fault))) => return broken(fault.cause),
                Poll::Pending => {}
            }
            let now_moved = (self.upload.moved, download.moved);
            if now_moved != moved || !armed {
                (moved, armed) = (now_moved, true);
                vigil.set(Some(Instant::now() + within));
            }
            // Nothing moves: should the caller have gone, nobody waits for the rest, and the upstream may stop.
            if self.upload.is_finished() && caller.poll_gone(context).is_ready() {
                return broken("the caller has gone".to_owned());
            }
            match std::task::ready!(vigil.poll(context, || Asked::of(exchange))) {
                Alarm::Late => broken("nothing moved within the time limit".to_owned()),
                Alarm::Unproved => unproved(&self.origin),
                Alarm::Refused => Poll::Ready(Err(Stopped::Refused)),
            }
        })
        .await
    }

    /// The exchange is over: the connection waits for the next one, if it may.
    pub(in crate::proxy) fn settle(self, worker: &Worker) {
        let Origin::Http1(origin) = self.origin else { return };
        if !origin.is_reusable() || !self.upload.is_finished() {
            return;
        }
        if let Some(stream) = origin.http.into_stream(&worker.buffers) {
            let idle = Idle { stream, reuse: self.reuse };
            worker.pool.lock().put(&self.endpoint, idle, self.cluster.keepalive);
        }
    }

    /// The answer switches to WebSocket: its head as the caller's version has it.
    pub(in crate::proxy) fn translate<D: Downstream>(
        &self,
        caller: &D,
        exchange: &mut Exchange,
    ) -> Result<(), Fault> {
        super::switch::translate(caller, &self.origin, exchange)
    }

    /// The upstream's half of a tunnel, after a switch of protocols.
    pub(in crate::proxy) fn into_tunnel(self, kept: Kept, decided: u64) -> Tunnel {
        let Self { origin, protocol, reuse, _busy, .. } = self;
        Tunnel { origin, protocol, proof: reuse.proof, kept, decided, _busy }
    }
}
