//! Hedging: a request that is slow at one node goes to a further one as well; the first good answer wins.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use smallvec::SmallVec;
use tokio::time::{Instant, Sleep};

use super::flow::Chains;
use super::forward::{Attempt, Failure, Upstreamed, forward_hooks, hash_input, nobody, note_fault};
use super::forwarded;
use super::headers::Hop;
use super::judge::Asked;
use super::origin::{Answer, Origin};
use super::vigil::{Alarm, Vigil};
use super::{BodyLength, Downstream, Side};
use crate::pipeline::{Exchange, Fault, Head, Side as FaultSide, Template};
use crate::proxy::worker::Worker;
use crate::upstream::{
    Admission, Busy, Cluster, Endpoint, Hedging, Held, Introduction, Place, Resilience, Retry,
    Reuse, Seen, Tried,
};

/// May this request be sent twice at once? Only what is safe (RFC 9110 section 9.2.1): of two answers to a DELETE the first one
/// to come may be the 404 of the second.
pub(super) fn is_lawful<D: Downstream>(exchange: &Exchange, caller: &D) -> bool {
    let method = sent_method(exchange);
    caller.request_body() == BodyLength::None
        && matches!(method, "GET" | "HEAD" | "OPTIONS" | "TRACE")
}

fn sent_method(exchange: &Exchange) -> &str {
    exchange.rewritten.method.as_deref().unwrap_or_else(|| exchange.request.method())
}

/// What all attempts of one request share.
pub(super) struct Race<'a> {
    pub(super) worker: &'a Arc<Worker>,
    pub(super) cluster: &'a Arc<Cluster>,
    pub(super) chains: &'a Chains<'a>,
    pub(super) hop: &'a Hop,
    pub(super) hash_key: Option<&'a Template>,
    pub(super) hedging: Hedging,
}

/// What happened among the attempts.
enum Turn {
    /// That one answered.
    Answered(usize, BodyLength),
    /// That one failed.
    Failed(usize, Fault),
    /// They are slow.
    Slow,
    /// It ends for all of them.
    Ended(Failure),
}

/// An answer that is kept in case that no better one comes.
struct Kept<'a> {
    lane: Lane<'a>,
    length: BodyLength,
}

impl<'a> Race<'a> {
    pub(super) async fn run<D: Downstream>(
        &self,
        exchange: &mut Exchange,
        caller: &mut D,
        vigil: &mut Vigil<'_>,
        admission: Option<Admission>,
    ) -> Result<Upstreamed, Failure> {
        let started = Instant::now();
        let mut tried = Tried::default();
        let mut lanes: SmallVec<[Lane<'a>; 2]> = SmallVec::new();
        let mut kept: Option<Kept<'a>> = None;
        let mut failures = 0;
        let method = sent_method(exchange).to_owned();
        vigil.over(None);
        vigil.set(None);
        let Some(first) = self.begin(exchange, &mut tried, None, false).await? else {
            return Err(Failure::Fault(nobody(self.cluster)));
        };
        lanes.push(first);
        let mut hedge = Some(Box::pin(tokio::time::sleep(self.hedging.delay)));
        loop {
            let turn = self.turn(exchange, caller, vigil, &method, &mut lanes, &mut hedge).await;
            match turn {
                Turn::Answered(at, length) => {
                    let lane = lanes.remove(at);
                    let status = lane.head.status();
                    self.note(&lane.endpoint, Seen::Status(status));
                    lane.busy.answered(lane.began.elapsed());
                    exchange.upstream_statuses.push(status);
                    if status < 500 || lanes.is_empty() {
                        return self.win(exchange, vigil, lane, length, admission);
                    }
                    kept = Some(Kept { lane, length });
                }
                Turn::Failed(at, fault) => {
                    let lane = lanes.remove(at);
                    note_fault(self.cluster, &lane.endpoint, &fault);
                    if fault.side == FaultSide::Upstream {
                        lane.busy.failed(lane.began.elapsed());
                    }
                    exchange.upstream_statuses.push(fault.status);
                    failures += 1;
                    if !lanes.is_empty() {
                        continue;
                    }
                    if let Some(Kept { lane, length }) = kept {
                        return self.win(exchange, vigil, lane, length, admission);
                    }
                    let within = self.cluster.retry_within;
                    let in_time = within.is_none_or(|within| started.elapsed() < within);
                    if !fault.retry || failures > self.cluster.retries(&tried) {
                        return Err(Failure::Fault(fault));
                    }
                    if !in_time {
                        return Err(Failure::Fault(Fault { status: 502, ..fault }));
                    }
                    drop(lane);
                    let Some(retry) = self.resilience().and_then(Resilience::retry) else {
                        return Err(Failure::Fault(fault));
                    };
                    let endpoint = exchange.endpoint;
                    match self.begin(exchange, &mut tried, Some(retry), false).await? {
                        Some(lane) => lanes.push(lane),
                        None => {
                            exchange.endpoint = endpoint;
                            return Err(Failure::Fault(fault));
                        }
                    }
                    tracing::debug!(cause = %fault.cause, "another endpoint is tried");
                    hedge = Some(Box::pin(tokio::time::sleep(self.hedging.delay)));
                }
                Turn::Slow => {
                    hedge = None;
                    let resilience = self.resilience();
                    let Some(retry) = resilience.and_then(Resilience::retry) else { continue };
                    let Some(lane) = self.begin(exchange, &mut tried, Some(retry), true).await?
                    else {
                        continue;
                    };
                    if let Some(resilience) = resilience {
                        resilience.note_hedge();
                    }
                    lanes.push(lane);
                    if lanes.len() < self.hedging.max_attempts {
                        hedge = Some(Box::pin(tokio::time::sleep(self.hedging.delay)));
                    }
                }
                Turn::Ended(failure) => return Err(failure),
            }
        }
    }

    fn resilience(&self) -> Option<&Resilience> {
        self.cluster.resilience()
    }

    fn note(&self, endpoint: &Arc<Endpoint>, seen: Seen) {
        if let Some(resilience) = self.resilience() {
            resilience.note(endpoint, seen);
        }
    }

    /// Begins an attempt at an endpoint that was not tried yet; `None` when there is none.
    async fn begin(
        &self,
        exchange: &mut Exchange,
        tried: &mut Tried,
        retry: Option<Retry>,
        is_hedge: bool,
    ) -> Result<Option<Lane<'a>>, Failure> {
        let picked = match self.hash_key {
            None => self.cluster.pick(b"", tried),
            Some(key) => self.cluster.pick(hash_input(exchange, key).as_bytes(), tried),
        };
        let Some(endpoint) = picked else { return Ok(None) };
        exchange.endpoint = Some(endpoint.address());
        if let Some(reply) = forward_hooks(exchange, self.chains).await? {
            return Err(Failure::Reply(reply));
        }
        if let Some(deadline) = self.hop.deadline {
            super::grpc::shorten(&mut exchange.request, deadline);
        }
        Ok(Some(Lane {
            worker: self.worker,
            cluster: self.cluster,
            hop: self.hop,
            busy: endpoint.busy(),
            introduced: endpoint.introduction.map(|_| forwarded::introduction(exchange)),
            endpoint,
            began: Instant::now(),
            _retry: retry,
            is_hedge,
            head: Head::default(),
            step: Step::Begun,
            place: None,
            is_reused: false,
            late: None,
        }))
    }

    /// Waits until something happens.
    async fn turn<D: Downstream>(
        &self,
        exchange: &mut Exchange,
        caller: &mut D,
        vigil: &mut Vigil<'_>,
        method: &str,
        lanes: &mut SmallVec<[Lane<'a>; 2]>,
        hedge: &mut Option<Pin<Box<Sleep>>>,
    ) -> Turn {
        // Hooks change the request for one endpoint: a further attempt waits until this one has gone out.
        let chains = [Some(&self.chains.snapshot.global), self.chains.own()];
        let hooked = chains.into_iter().flatten().any(|chain| chain.has_forward());
        poll_fn(|context| {
            if let Poll::Ready(Err(_)) = caller.poll_flush(context) {
                return Poll::Ready(Turn::Ended(Failure::Gone));
            }
            for (at, lane) in lanes.iter_mut().enumerate() {
                match lane.poll(context, exchange, caller, method) {
                    Poll::Ready(Ok(length)) => return Poll::Ready(Turn::Answered(at, length)),
                    Poll::Ready(Err(Failure::Fault(fault))) => {
                        return Poll::Ready(Turn::Failed(at, fault));
                    }
                    Poll::Ready(Err(failure)) => return Poll::Ready(Turn::Ended(failure)),
                    Poll::Pending => {}
                }
            }
            if caller.poll_gone(context).is_ready() {
                return Poll::Ready(Turn::Ended(Failure::Gone));
            }
            match vigil.poll(context, || Asked::of(exchange)) {
                Poll::Ready(Alarm::Refused) => {
                    return Poll::Ready(Turn::Ended(Failure::Refused));
                }
                // Each attempt has its own limit and its own proof.
                Poll::Ready(Alarm::Late | Alarm::Unproved) | Poll::Pending => {}
            }
            let waits = hooked && lanes.iter().any(|lane| !lane.is_sent());
            if let Some(timer) = hedge.as_mut().filter(|_| !waits)
                && timer.as_mut().poll(context).is_ready()
            {
                return Poll::Ready(Turn::Slow);
            }
            Poll::Pending
        })
        .await
    }

    fn win(
        &self,
        exchange: &mut Exchange,
        vigil: &mut Vigil<'_>,
        lane: Lane<'a>,
        length: BodyLength,
        admission: Option<Admission>,
    ) -> Result<Upstreamed, Failure> {
        let Lane { endpoint, busy, mut head, step, is_hedge, place, .. } = lane;
        let (Step::Asked { origin, reuse, .. }, Some(place)) = (step, place) else {
            let cause = "an attempt answered before it asked";
            return Err(Failure::Fault(Fault::gateway("the request cannot be forwarded", cause)));
        };
        if is_hedge && let Some(resilience) = self.resilience() {
            resilience.note_hedge_won();
        }
        vigil.over(reuse.proof.clone());
        exchange.endpoint = Some(endpoint.address());
        exchange.times.answered = Some(Instant::now());
        std::mem::swap(&mut exchange.response, &mut head);
        let held = Held { busy, admission, slot: reuse.slot.clone() };
        Ok(Upstreamed::won(self.cluster, place, (origin, reuse, length), held))
    }
}

type Connecting<'a> =
    Pin<Box<dyn Future<Output = Result<(Origin, Reuse, bool), Failure>> + Send + 'a>>;

/// How far an attempt is.
#[expect(clippy::large_enum_variant, reason = "most of its time an attempt has an origin")]
enum Step<'a> {
    Begun,
    Connecting(Connecting<'a>),
    /// The request goes out, or has; the answer is awaited.
    Asked {
        origin: Origin,
        reuse: Reuse,
        is_sent: bool,
    },
}

/// One attempt among several.
struct Lane<'a> {
    worker: &'a Arc<Worker>,
    cluster: &'a Arc<Cluster>,
    hop: &'a Hop,
    endpoint: Arc<Endpoint>,
    busy: Busy,
    began: Instant,
    _retry: Option<Retry>,
    is_hedge: bool,
    /// Whom a PROXY header introduces; nobody where the endpoint wants none.
    introduced: Option<Introduction>,
    head: Head,
    step: Step<'a>,
    /// Which connections it may use. Known from its beginning on.
    place: Option<Place>,
    /// It uses a connection that was kept.
    is_reused: bool,
    late: Option<Pin<Box<Sleep>>>,
}

impl<'a> Lane<'a> {
    fn is_sent(&self) -> bool {
        matches!(self.step, Step::Asked { .. })
    }

    fn attempt(&self) -> Attempt<'_> {
        Attempt {
            worker: self.worker,
            cluster: self.cluster,
            endpoint: &self.endpoint,
            hop: self.hop,
            caller: self.introduced,
        }
    }

    fn connect(&self, http2: bool, may_reuse: bool, host: String, place: Place) -> Connecting<'a> {
        let (worker, cluster, hop) = (self.worker, self.cluster, self.hop);
        let (endpoint, caller) = (self.endpoint.clone(), self.introduced);
        Box::pin(async move {
            let endpoint = &endpoint;
            let attempt = Attempt { worker, cluster, endpoint, hop, caller };
            attempt.obtain(http2, may_reuse, &host, place).await
        })
    }

    /// Ready with the answer's head in `self.head`.
    fn poll<D: Downstream>(
        &mut self,
        context: &mut Context<'_>,
        exchange: &mut Exchange,
        caller: &mut D,
        method: &str,
    ) -> Poll<Result<BodyLength, Failure>> {
        loop {
            match &mut self.step {
                Step::Begun => {
                    let attempt = self.attempt();
                    let (http2, host) = (attempt.speaks_http2(caller), attempt.host(exchange));
                    let (place, host) = (self.endpoint.place(host), host.to_owned());
                    self.place = Some(place);
                    self.step = Step::Connecting(self.connect(http2, true, host, place));
                }
                Step::Connecting(connecting) => {
                    let (mut origin, reuse, is_reused) =
                        std::task::ready!(connecting.as_mut().poll(context))?;
                    self.attempt().send(exchange, caller, &mut origin)?;
                    exchange.times.forwarded.get_or_insert_with(Instant::now);
                    self.is_reused = is_reused;
                    self.late = Some(Box::pin(tokio::time::sleep(self.cluster.send_within)));
                    self.step = Step::Asked { origin, reuse, is_sent: false };
                }
                Step::Asked { .. } => {
                    let polled = self.poll_answer(context, caller, method);
                    let fault = match std::task::ready!(polled) {
                        Err(Failure::Fault(fault)) => fault,
                        done => return Poll::Ready(done),
                    };
                    if let (Step::Asked { origin, .. }, Some(place)) = (&self.step, self.place)
                        && (self.is_reused || fault.status == 504)
                    {
                        self.attempt().forget_http2(origin, place);
                    }
                    if !self.is_reused || !fault.retry || fault.status == 504 {
                        return Poll::Ready(Err(Failure::Fault(fault)));
                    }
                    // The other side closed a kept connection while we took it: that says nothing about the endpoint.
                    let attempt = self.attempt();
                    let (http2, host) = (attempt.speaks_http2(caller), attempt.host(exchange));
                    let (place, host) = (self.endpoint.place(host), host.to_owned());
                    self.step = Step::Connecting(self.connect(http2, false, host, place));
                }
            }
        }
    }

    fn poll_answer<D: Downstream>(
        &mut self,
        context: &mut Context<'_>,
        caller: &mut D,
        method: &str,
    ) -> Poll<Result<BodyLength, Failure>> {
        let failed = |status, sentence, cause: String, retry| {
            Poll::Ready(Err(Failure::Fault(Fault::upstream(status, sentence, cause, retry))))
        };
        let Step::Asked { origin, reuse, is_sent } = &mut self.step else { return Poll::Pending };
        if reuse.proof.as_ref().is_some_and(|proof| proof.is_cut()) {
            origin.reset_on_close();
            let (sentence, cause) = ("the upstream is not proved any more", "its proof fell");
            return failed(503, sentence, cause.to_owned(), !origin.has_answered());
        }
        if !*is_sent && let Poll::Ready(sent) = origin.poll_finish(context, None) {
            // Where that failed it may have answered before it closed: the answer decides.
            let _ = sent;
            *is_sent = true;
            self.late = Some(Box::pin(tokio::time::sleep(self.cluster.read_within)));
        }
        loop {
            match origin.poll_head(context, method, &mut self.head) {
                Poll::Ready(Ok(Answer::Interim)) => {
                    if self.head.status() != 100 {
                        super::headers::receive_response(&mut self.head);
                        caller.interim(&self.head);
                        if let Poll::Ready(Err(_)) = caller.poll_flush(context) {
                            return Poll::Ready(Err(Failure::Gone));
                        }
                    }
                }
                Poll::Ready(Ok(Answer::Final(length))) => return Poll::Ready(Ok(length)),
                Poll::Ready(Ok(Answer::Switched)) => {
                    let cause = "101 that nobody asked for".to_owned();
                    return failed(502, "the upstream gave no valid answer", cause, false);
                }
                Poll::Ready(Err(broken)) => {
                    let (cause, retry) = (broken.to_string(), !origin.has_answered());
                    return failed(502, "the upstream gave no valid answer", cause, retry);
                }
                Poll::Pending => break,
            }
        }
        let late = self.late.as_mut().map_or(Poll::Pending, |late| late.as_mut().poll(context));
        if late.is_ready() {
            let (sentence, cause) =
                ("the upstream did not answer in time", "no answer within the time limit");
            return failed(504, sentence, cause.to_owned(), !origin.has_answered());
        }
        Poll::Pending
    }
}
