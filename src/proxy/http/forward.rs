//! Sending to the chosen upstream: attempts, retries, time limits, and carrying both bodies.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use bytes::Bytes;
use smallvec::SmallVec;
use tokio::time::Instant;

use super::flow::Chains;
use super::forwarded;
use super::h1::{Http1, RequestLine};
use super::h2::{UpstreamHttp2, originate};
use super::headers::Hop;
use super::hedge;
use super::judge::{Asked, Kept};
use super::origin::{Answer, Origin};
use super::pace::Pace;
use super::transfer::{Failed, Pump};
use super::tunnel::Tunnel;
use super::vigil::{Alarm, Vigil};
use super::{BodyLength, Broken, Downstream};
use crate::model::PassHost;
use crate::mtls::Proof;
use crate::pipeline::{BodyFilters, Exchange, Fault, Flow, Reply, Rewritten, Side, Template};
use crate::proxy::worker::Worker;
use crate::rt::{coarse_now, coarse_unix_seconds, turn};
use crate::snapshot::CompiledRoute;
use crate::upstream::{
    Cluster, Endpoint, Held, Idle, Introduction, Multiplexed, Overflow, Pending, Place, Protocol,
    Resilience, Reuse, Security, Seen, Slot, Tried,
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
    place: Place,
    reuse: Reuse,
    held: Held,
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
    let sent = exchange.destination.take();
    let sent = sent.map(|destination| chains.snapshot.target(&destination));
    let sent = sent.transpose().map_err(Failure::Fault)?;
    let (cluster, hash_key) = match &sent {
        Some(target) => (target.cluster.clone(), target.hash_key.as_ref()),
        None => {
            let Some(cluster) = chains.route.and_then(|route| route.cluster.clone()) else {
                let none = || unavailable("the route has no upstream");
                let fault = chains.route.map_or_else(none, CompiledRoute::cluster_fault);
                return Err(Failure::Fault(fault));
            };
            (cluster, chains.route.and_then(|route| route.hash_key.as_ref()))
        }
    };
    let resilience = cluster.resilience();
    let admission = match resilience {
        None => None,
        Some(resilience) => resilience.admit().map_err(|overflow| full(&overflow))?,
    };
    if cluster.is_waiting() {
        Box::pin(cluster.found(cluster.connect_within)).await;
    }
    if let Some(hedging) = resilience.and_then(Resilience::hedging)
        && hop.switch.is_none()
        && hedge::is_lawful(exchange, caller)
    {
        let race = hedge::Race { worker, cluster: &cluster, chains, hop, hash_key, hedging };
        return Box::pin(race.run(exchange, caller, vigil, admission)).await;
    }
    let mut retry = None;
    let started = coarse_now();
    let mut began = started;
    let mut tried = Tried::default();
    let mut upload = Pump::within(exchange.body_limit(worker.limits.request_body));
    if let Some(read) = exchange.body.take() {
        upload.has_read(read);
    }
    let mut attempts = 0;
    let mut last: Option<Fault> = None;
    loop {
        let picked = match hash_key {
            None => cluster.pick(b"", &mut tried),
            Some(key) => cluster.pick(hash_input(exchange, key).as_bytes(), &mut tried),
        };
        let Some(endpoint) = picked else {
            return Err(Failure::Fault(last.unwrap_or_else(|| nobody(&cluster))));
        };
        exchange.endpoint = Some(endpoint.address());
        if let Some(reply) = forward_hooks(exchange, chains).await? {
            return Err(Failure::Reply(reply));
        }
        if let Some(deadline) = hop.deadline {
            super::grpc::shorten(&mut exchange.request, deadline);
        }
        let busy = endpoint.busy();
        let caller_ends = endpoint.introduction.map(|_| forwarded::introduction(exchange));
        let attempt =
            Attempt { worker, cluster: &cluster, endpoint: &endpoint, hop, caller: caller_ends };
        let fault = match attempt.run(exchange, caller, &mut upload, vigil).await {
            Ok((origin, answer, place, reuse)) => {
                let now = Instant::now();
                exchange.times.answered = Some(now);
                busy.answered(
                    exchange.times.forwarded.map_or_else(Default::default, |at| now - at),
                );
                exchange.upstream_statuses.push(exchange.response.status());
                let (length, switched) = match answer {
                    Answer::Final(length) => (length, false),
                    Answer::Interim | Answer::Switched => (BodyLength::None, true),
                };
                let protocol = exchange.response.value("upgrade").map(<[u8]>::to_vec);
                if let Some(resilience) = resilience {
                    resilience.note(&endpoint, Seen::Status(exchange.response.status()));
                }
                let held = Held { busy, admission, slot: reuse.slot.clone() };
                return Ok(Upstreamed {
                    origin,
                    upload,
                    length,
                    switched,
                    protocol,
                    cluster,
                    place,
                    reuse,
                    held,
                });
            }
            Err(Failure::Fault(fault)) => fault,
            Err(other) => return Err(other),
        };
        note_fault(&cluster, &endpoint, &fault);
        if fault.side == Side::Upstream {
            busy.failed(coarse_now() - began);
        }
        began = coarse_now();
        exchange.upstream_statuses.push(fault.status);
        attempts += 1;
        let in_time = cluster.retry_within.is_none_or(|within| coarse_now() - started < within);
        if !fault.retry || attempts > cluster.retries(&tried) {
            return Err(Failure::Fault(fault));
        }
        if !in_time {
            // As in APISIX, whatever it was that failed.
            return Err(Failure::Fault(Fault { status: 502, ..fault }));
        }
        if let Some(resilience) = resilience {
            // The attempt before is over, and so is its part of the budget.
            drop(retry.take());
            retry = resilience.retry();
            if retry.is_none() {
                return Err(Failure::Fault(fault));
            }
        }
        tracing::debug!(endpoint = %endpoint.authority(), cause = %fault.cause, "another endpoint is tried");
        last = Some(fault);
    }
}

/// The fault of a request whose body is larger than its limit.
pub(in crate::proxy) fn too_large() -> Fault {
    Fault::client(413, "the request's body is too large")
}

/// There is no node to ask.
pub(super) fn nobody(cluster: &Cluster) -> Fault {
    match cluster.has_nodes() {
        true => unreachable("none of the upstream's nodes may be used"),
        false => unavailable("the upstream has no node"),
    }
}

/// What a failed attempt says about its endpoint: nothing when it was not the endpoint that failed.
pub(super) fn note_fault(cluster: &Cluster, endpoint: &Arc<Endpoint>, fault: &Fault) {
    let Some(resilience) = cluster.resilience() else { return };
    match (fault.side, fault.status) {
        (Side::Upstream, 504) => resilience.note(endpoint, Seen::Late),
        (Side::Upstream, 502) => resilience.note(endpoint, Seen::Unreachable),
        _ => {}
    }
}

/// The answer when a limit of the upstream is reached. It is ours, and says nothing about an endpoint.
#[cold]
pub(super) fn full(overflow: &Overflow) -> Failure {
    Failure::Fault(Fault {
        side: Side::Gateway,
        status: 503,
        sentence: "the upstream has as much under way as it may",
        cause: overflow.to_string(),
        retry: false,
    })
}

fn unavailable(cause: &str) -> Fault {
    Fault::upstream(503, "no upstream is available", cause, false)
}

fn unreachable(cause: &str) -> Fault {
    Fault::upstream(502, "the upstream cannot be reached", cause, false)
}

pub(super) async fn forward_hooks(
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
pub(super) fn hash_input(exchange: &Exchange, key: &Template) -> String {
    let mut input = String::new();
    key.render(exchange, &mut input);
    if input.is_empty() { exchange.remote().ip().to_string() } else { input }
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
    pub(super) worker: &'a Arc<Worker>,
    pub(super) cluster: &'a Cluster,
    pub(super) endpoint: &'a Arc<Endpoint>,
    pub(super) hop: &'a Hop,
    /// Whom a PROXY header introduces; nobody where the endpoint wants none.
    pub(super) caller: Option<Introduction>,
}

impl Attempt<'_> {
    async fn run<D: Downstream>(
        &self,
        exchange: &mut Exchange,
        caller: &mut D,
        upload: &mut Pump,
        vigil: &mut Vigil<'_>,
    ) -> Result<(Origin, Answer, Place, Reuse), Failure> {
        let mut may_reuse = true;
        loop {
            let http2 = self.speaks_http2(caller);
            let host = self.host(exchange);
            let place = self.endpoint.place(host);
            let (mut origin, reuse, reused) = match self.hop.switch {
                None => self.obtain(http2, may_reuse, host, place).await?,
                Some(switch) => {
                    Box::pin(self.obtain_for(switch, http2, may_reuse, host, place)).await?
                }
            };
            vigil.over(reuse.proof.clone());
            self.send(exchange, caller, &mut origin)?;
            if matches!(origin, Origin::Http1(_)) {
                turn().await;
            }
            exchange.times.forwarded = Some(Instant::now());
            caller.invite_body();
            match self.head(exchange, caller, &mut origin, upload, vigil).await {
                Ok(answer) => return Ok((origin, answer, place, reuse)),
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
                        self.forget_http2(&origin, place);
                    }
                    if !fault.retry || !reused || fault.status == 504 {
                        return Err(Failure::Fault(fault));
                    }
                    // The other side closed a kept connection while we took it: that says nothing about the endpoint.
                    may_reuse = false;
                }
                Err(Failure::Fault(fault)) if fault.status == 504 => {
                    // The host behind a shared connection may be gone without a word: the next request tries a new one.
                    self.forget_http2(&origin, place);
                    return Err(Failure::Fault(fault));
                }
                Err(failure) => return Err(failure),
            }
        }
    }

    /// Towards workloads HTTP/2 stays HTTP/2 and HTTP/1.1 stays HTTP/1.1; elsewhere the scheme says it.
    pub(super) fn speaks_http2<D: Downstream>(&self, caller: &D) -> bool {
        match self.endpoint.security {
            Security::Mesh(_) => caller.is_http2() || self.cluster.speaks_http2(),
            Security::Plain | Security::Public { .. } => self.cluster.speaks_http2(),
        }
    }

    /// The `Host` that the request is sent with.
    pub(super) fn host<'e>(&'e self, exchange: &'e Exchange) -> &'e str {
        match (&exchange.rewritten.host, self.cluster.pass_host) {
            (Some(host), _) => host,
            (None, PassHost::Pass) => exchange.request.authority(),
            (None, PassHost::Rewrite) => self.cluster.host.as_deref().unwrap_or_default(),
            (None, PassHost::Node) => self.endpoint.host_field(),
        }
    }

    pub(super) async fn obtain(
        &self,
        http2: bool,
        may_reuse: bool,
        host: &str,
        place: Place,
    ) -> Result<(Origin, Reuse, bool), Failure> {
        if http2 {
            return Box::pin(self.obtain_http2(may_reuse, false, host, place)).await;
        }
        if let Some(Idle { stream, mut reuse }) = self.idle(may_reuse, place).await {
            reuse.requests += 1;
            return Ok((self.over(stream), reuse, true));
        }
        let counted = match self.counted() {
            None => None,
            Some(resilience) => match Box::pin(self.queue(resilience, may_reuse, place)).await? {
                Queued::Idle(Idle { stream, mut reuse }) => {
                    reuse.requests += 1;
                    return Ok((self.over(stream), reuse, true));
                }
                Queued::Slot(pending, slot) => Some((pending, slot)),
            },
        };
        let (stream, mut reuse) = Box::pin(self.connect(host, Protocol::Http1)).await?;
        reuse.slot = counted.map(|(_, slot)| slot);
        if let Some(proof) = &reuse.proof {
            proof.attended().await;
        }
        Ok((self.over(stream), reuse, false))
    }

    /// A connection that waits for a request.
    async fn idle(&self, may_reuse: bool, place: Place) -> Option<Idle> {
        if !may_reuse {
            return None;
        }
        let now = coarse_unix_seconds();
        let stands = |proof: &Arc<Proof>| self.worker.watch.lapse(proof).is_none();
        poll_fn(|context| {
            let idle = self.worker.pool.lock().take(place, self.caller, now, stands, context);
            if let Some(Idle { reuse: Reuse { proof: Some(proof), .. }, .. }) = &idle {
                proof.attend(context.waker());
            }
            Poll::Ready(idle)
        })
        .await
    }

    /// Whoever counts the cluster's connections.
    fn counted(&self) -> Option<&Resilience> {
        self.cluster.resilience().filter(|resilience| resilience.limits_connections())
    }

    /// Waits until a connection may be made, or one comes back.
    async fn queue(
        &self,
        resilience: &Resilience,
        may_reuse: bool,
        place: Place,
    ) -> Result<Queued, Failure> {
        let pending = resilience.pend().map_err(|overflow| full(&overflow))?;
        if let Some(slot) = resilience.slot() {
            return Ok(Queued::Slot(pending, slot));
        }
        // Who can use no connection that comes back waits as if elsewhere: an idle one is closed for it.
        let _waiting = may_reuse.then(|| Waiting::new(self.worker, place));
        let mut late = pin!(tokio::time::sleep(self.cluster.connect_within));
        loop {
            let mut freed = pin!(resilience.freed());
            // Registered before the look: what becomes free between the two is not missed.
            freed.as_mut().enable();
            if let Some(idle) = self.idle(may_reuse, place).await {
                return Ok(Queued::Idle(idle));
            }
            if let Some(slot) = resilience.slot() {
                return Ok(Queued::Slot(pending, slot));
            }
            tokio::select! {
                () = freed => {}
                () = &mut late => return Err(full(&resilience.connections_used_up())),
            }
        }
    }

    pub(super) fn over(&self, stream: crate::upstream::Stream) -> Origin {
        let mut http = Http1::new(stream);
        http.equip(&self.worker.buffers);
        Origin::http1(http, self.worker.limits.response_head)
    }

    /// A new connection, as soon as the cluster may have one more.
    pub(super) async fn connect_counted(
        &self,
        host: &str,
        protocol: Protocol,
        place: Place,
    ) -> Result<(crate::upstream::Stream, Reuse), Failure> {
        let counted = match self.counted() {
            None => None,
            Some(resilience) => match self.queue(resilience, false, place).await? {
                Queued::Idle(_) => None,
                Queued::Slot(pending, slot) => Some((pending, slot)),
            },
        };
        let (stream, mut reuse) = self.connect(host, protocol).await?;
        reuse.slot = counted.map(|(_, slot)| slot);
        Ok((stream, reuse))
    }

    async fn connect(
        &self,
        host: &str,
        protocol: Protocol,
    ) -> Result<(crate::upstream::Stream, Reuse), Failure> {
        let within = self.cluster.connect_within;
        let connect = &self.worker.connect;
        let established = connect.introducing(self.endpoint, host, protocol, within, self.caller);
        let established = established.await.map_err(|error| {
            self.worker.note_unreachable(&error, self.endpoint);
            let (status, sentence) = match error {
                crate::upstream::Error::Late { .. } => (504, "the upstream did not answer in time"),
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
                let expected = match &self.endpoint.security {
                    Security::Mesh(expected) => Some(expected.clone()),
                    Security::Plain | Security::Public(_) => None,
                };
                let proof = watch.originated(&established.stream, peer, before, expected);
                let proof = proof.map_err(|error| failed(error.to_string()))?;
                self.worker.note_originated(&proof);
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
        Ok((established.stream, Reuse { requests: 1, proof, introduced: self.caller, slot: None }))
    }

    /// A stream; on a new connection when `settled` only when it is known what the peer offers.
    pub(super) async fn obtain_http2(
        &self,
        may_reuse: bool,
        settled: bool,
        host: &str,
        key: Place,
    ) -> Result<(Origin, Reuse, bool), Failure> {
        let failed = |cause: String| {
            Failure::Fault(Fault::upstream(502, "the upstream cannot be reached", cause, true))
        };
        let limits = self.cluster.keepalive;
        let shared = self.worker.pool.lock().shared(key, limits);
        // Whoever holds the lock is connecting, and has no more time for it than we have.
        let within = self.cluster.connect_within;
        let Ok(mut place) = tokio::time::timeout(within, shared.lock()).await else {
            let (sentence, cause) = ("the upstream did not answer in time", "no connection yet");
            return Err(Failure::Fault(Fault::upstream(504, sentence, cause, true)));
        };
        let secure = !matches!(self.endpoint.security, Security::Plain);
        let origin = |opener, streams| {
            let origin = UpstreamHttp2::new(opener, streams, secure);
            Origin::Http2(Box::new(origin))
        };
        let now = coarse_unix_seconds();
        // What is no longer proved finishes the streams that it has, and gets no new ones.
        place.retain(|each| each.holds(now, |proof| self.worker.watch.lapse(proof).is_none()));
        let mut at = 0;
        while let Some(each) = place.get_mut(at).filter(|_| may_reuse) {
            if !each.has_room() || each.reuse.introduced != self.caller {
                at += 1;
                continue;
            }
            if !each.takes_one_more(limits) {
                // Its streams finish; it closes with the last of them.
                drop(place.remove(at));
                continue;
            }
            if each.opener.is_closed() {
                drop(place.remove(at));
                continue;
            }
            let origin = origin(each.opener.clone(), each.streams.clone());
            return Ok((origin, each.reuse.clone(), true));
        }
        // A connection that is introduced serves nobody else: others need not wait for it.
        let place = if self.caller.is_some() {
            drop(place);
            None
        } else {
            Some(place)
        };
        let (stream, reuse) = self.connect_counted(host, Protocol::Http2, key).await?;
        let settled = settled.then_some(within);
        let opener = originate(self.worker, stream, reuse.proof.clone(), settled).await;
        let opener = opener.map_err(|broken| failed(broken.to_string()))?;
        let streams = Arc::new(());
        let kept = Multiplexed::new(opener.clone(), reuse.clone(), streams.clone());
        match place {
            Some(mut place) => place.push(kept),
            None => shared.lock().await.push(kept),
        }
        Ok((origin(opener, streams), reuse, false))
    }

    /// Nobody else shall wait on the shared connection that failed; streams under way keep it.
    pub(super) fn forget_http2(&self, origin: &Origin, place: Place) {
        let Origin::Http2(origin) = origin else { return };
        let shared = self.worker.pool.lock().shared(place, self.cluster.keepalive);
        if let Ok(mut place) = shared.try_lock() {
            place.retain(|each| !origin.is_on(&each.streams));
        }
    }

    pub(super) fn send<D: Downstream>(
        &self,
        exchange: &Exchange,
        caller: &D,
        origin: &mut Origin,
    ) -> Result<(), Failure> {
        let rewritten = &exchange.rewritten;
        let host = self.host(exchange);
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
        vigil.set(Some(coarse_now() + self.cluster.send_within));
        let limits = &self.worker.limits;
        let mut pace =
            Pace::new(limits.body_within.min(self.cluster.send_within), limits.request_rate);
        let mut seen = (upload.moved, false);
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
                    Poll::Ready(Err(Failed::TooLarge)) => {
                        return Poll::Ready(Err(Failure::Fault(too_large())));
                    }
                    Poll::Ready(Err(Failed::Source(_) | Failed::Filter(_))) => {
                        return Poll::Ready(Err(Failure::Gone));
                    }
                    // It may have answered before it closed: the answer decides.
                    Poll::Ready(Err(Failed::Sink(_))) => upload.get_stuck(),
                    Poll::Pending => {}
                }
                let now_seen = (upload.moved, upload.is_starved());
                if now_seen != seen && !upload.is_finished() {
                    seen = now_seen;
                    let now = coarse_now();
                    // Who is waited for has its own time: the caller, or the upstream that takes nothing.
                    vigil.set(Some(match upload.is_starved() {
                        true => pace.wait(now, upload.moved),
                        false => {
                            pace.rest(now, upload.moved);
                            now + self.cluster.send_within
                        }
                    }));
                }
            }
            if upload.is_finished() && !waiting {
                waiting = true;
                vigil.set(Some(coarse_now() + self.cluster.read_within));
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

/// What a request that waits for a connection gets.
enum Queued {
    /// One that came back.
    Idle(Idle),
    /// Leave to make one.
    Slot(Pending, Slot),
}

/// One request of this worker that waits for a connection to come back.
struct Waiting<'a>(&'a Worker, Place);

impl<'a> Waiting<'a> {
    fn new(worker: &'a Worker, place: Place) -> Self {
        worker.pool.lock().waits(place, true);
        Self(worker, place)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.pool.lock().waits(self.1, false);
    }
}

impl Upstreamed {
    /// Of a race that is won.
    pub(super) fn won(
        cluster: &Arc<Cluster>,
        place: Place,
        (origin, reuse, length): (Origin, Reuse, BodyLength),
        held: Held,
    ) -> Self {
        Self {
            origin,
            upload: Pump::of_nothing(),
            length,
            switched: false,
            protocol: None,
            cluster: cluster.clone(),
            place,
            reuse,
            held,
        }
    }

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
        let limits = &vigil.worker().limits;
        let mut pace = Pace::new(limits.send_within, limits.response_rate);
        let mut download = Pump::within(limits.response_body);
        let mut moved = (self.upload.moved, 0, false);
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
                    Poll::Ready(Err(Failed::TooLarge)) => {
                        return broken("the request's body is too large".to_owned());
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
                Poll::Ready(Err(Failed::TooLarge)) => {
                    return broken("the upstream's answer is too large".to_owned());
                }
                Poll::Pending => {}
            }
            let now_moved = (self.upload.moved, download.moved, download.is_starved());
            if now_moved != moved || !armed {
                (moved, armed) = (now_moved, true);
                let now = coarse_now();
                vigil.set(Some(match download.is_starved() {
                    true => {
                        pace.rest(now, download.moved);
                        now + self.cluster.read_within
                    }
                    false => pace.wait(now, download.moved),
                }));
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
            worker.pool.lock().put(self.place, idle, self.cluster.keepalive);
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
        let Self { origin, protocol, reuse, held, .. } = self;
        Tunnel { origin, protocol, proof: reuse.proof, kept, decided, _held: held }
    }
}
