//! One exchange, start to end: identity, route, policy, plugins, upstream, log.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use bytes::Bytes;
use tokio::time::{Instant, timeout_at};

use super::forward::{self, Stopped, Upstreamed};
use super::headers::{self, Hop};
use super::judge::{Asked, ConnectionStanding, Judge, Kept, unlogged};
use super::switch::Switch;
use super::tunnel::Tunnel;
use super::vigil::Vigil;
use super::{BodyLength, Downstream, grpc, hooks, switch};
use crate::model::Listeners;
use crate::mtls::Proof;
use crate::observe::{DecisionRecord, DenialId, TokenFacts};
use crate::pipeline::{
    BodyFilters, Exchange, Fault, Flow, Known, Refusal, Reply, ResponseSource, Side as FaultSide,
};
use crate::policy::{Decision, Outcome, Standing, other_readings};
use crate::proxy::worker::Worker;
use crate::rt::{Watchdog, turn};
use crate::snapshot::{CompiledRoute, Merged, Snapshot};

/// What happens to the connection after an exchange.
pub(in crate::proxy) enum After {
    /// It may carry another exchange.
    Next,
    /// It ends.
    Close,
    /// It ends, the answer broken off: policy refuses by now what it allowed at the start.
    Refused,
    /// Its bytes go through from here on, or those of this stream.
    Tunnel(Box<Tunnel>),
}

/// The plugins of one exchange: everybody's, and the route's, merged with the consumer's once that is known.
pub(in crate::proxy) struct Chains<'a> {
    pub(in crate::proxy) snapshot: &'a Snapshot,
    pub(in crate::proxy) route: Option<&'a CompiledRoute>,
    pub(in crate::proxy) merged: Option<Arc<Merged>>,
}

impl Chains<'_> {
    /// The route's chain, as it stands.
    pub(in crate::proxy) fn own(&self) -> Option<&crate::pipeline::Chain> {
        match &self.merged {
            Some(merged) => Some(&merged.chain),
            None => self.route.map(|route| &*route.chain),
        }
    }

    fn response_head(&self, exchange: &mut Exchange) -> Result<(), Fault> {
        self.snapshot.global.response_head(exchange)?;
        self.own().map_or(Ok(()), |chain| chain.response_head(exchange))
    }

    fn filters(&self, exchange: &Exchange) -> BodyFilters {
        let mut filters = BodyFilters::default();
        self.snapshot.global.filters(exchange, &mut filters);
        if let Some(chain) = self.own() {
            chain.filters(exchange, &mut filters);
        }
        filters
    }

    fn log(&self, exchange: &Exchange) {
        self.snapshot.global.log(exchange);
        if let Some(chain) = self.own() {
            chain.log(exchange);
        }
    }
}

/// How a request is answered.
enum Course {
    Forward,
    Reply(Box<Reply>),
    Fault(Fault),
}

impl From<Result<Flow, Fault>> for Course {
    fn from(result: Result<Flow, Fault>) -> Self {
        match result {
            Ok(Flow::Next) => Self::Forward,
            Ok(Flow::Reply(reply)) => Self::Reply(reply),
            Err(fault) => Self::Fault(fault),
        }
    }
}

/// Answers one request, whose head is in `exchange.request`; breaks it off when `proof`, the caller's, demands it.
pub(in crate::proxy) async fn exchange<D: Downstream>(
    worker: &Arc<Worker>,
    exchange: &mut Exchange,
    caller: &mut D,
    standing: &mut ConnectionStanding,
    watchdog: &mut Watchdog,
    proof: &Proof,
) -> After {
    // Looked at before the snapshot: what an older one decided is asked again.
    let policies = worker.watch.policies();
    let snapshot = worker.snapshot();
    let mut hop = headers::receive(exchange, &standing.told);
    exchange.consumers = Some(snapshot.consumers.clone());
    exchange.is_http2 = caller.is_http2();
    let mut chains = Chains { snapshot: &snapshot, route: None, merged: None };

    let answered = async {
        let course = match admit(worker, &snapshot, exchange, standing, caller, &mut hop) {
            Err(reply) => Course::Reply(reply),
            Ok(Admitted { route, awaits_token }) => {
                chains.route = route;
                let judge = Judge { worker, snapshot: &snapshot, connection: standing };
                let mut course = rewrites(worker, exchange, caller, &mut chains).await;
                if awaits_token {
                    course = decided_late(course, &judge, exchange);
                }
                if matches!(course, Course::Forward) {
                    course = accesses(worker, exchange, caller, &chains).await;
                }
                if matches!(course, Course::Forward)
                    && let Some(decision) = judge.refuses_rewritten(exchange)
                {
                    course = Course::Reply(judge.refuse(exchange, decision));
                }
                course
            }
        };
        let course = refused_by_plugin(course, worker, &snapshot, exchange, standing);
        let course = match course {
            Course::Forward => on_record(worker, &snapshot, exchange, standing).await,
            answered => answered,
        };
        match course {
            Course::Forward => {
                let limit = exchange.body_limit(worker.limits.request_body);
                if matches!(caller.request_body(), BodyLength::Known(length) if length > limit) {
                    let fault = forward::too_large();
                    return faulted(exchange, caller, &chains, watchdog, worker, fault).await;
                }
                headers::send(exchange, &standing.told);
                if exchange.is_http2 {
                    hop.deadline = grpc::deadline(exchange);
                }
                if let Some(switch) = hop.switch {
                    switch::prepare(switch, caller, &mut exchange.request);
                }
                let mut vigil = Vigil::new(worker, standing, watchdog, policies);
                forwarded(worker, exchange, caller, &chains, &mut vigil, &hop).await
            }
            Course::Reply(reply) => {
                reply_with(exchange, caller, &chains, watchdog, worker, *reply).await
            }
            Course::Fault(fault) => {
                faulted(exchange, caller, &chains, watchdog, worker, fault).await
            }
        }
    };
    let after = {
        let mut answered = pin!(answered);
        let whole = poll_fn(|context| match proof.is_cut() {
            true => Poll::Ready(None),
            false => answered.as_mut().poll(context).map(Some),
        });
        whole.await
    };
    let after = after.unwrap_or_else(|| {
        caller.abort();
        if exchange.times.answered.is_none() {
            exchange.response.clear();
            exchange.response.set_status(499);
        }
        After::Close
    });
    (exchange.bytes_in, exchange.bytes_out) = caller.counts();
    chains.log(exchange);
    worker.note_exchange(exchange);
    after
}

/// A request that may go on to the plugins.
struct Admitted<'a> {
    route: Option<&'a CompiledRoute>,
    /// Policy decides once more when its token is known.
    awaits_token: bool,
}

/// Route, what the caller may switch to, and policy. `Err` is the refusal.
fn admit<'a, D: Downstream>(
    worker: &Worker,
    snapshot: &'a Snapshot,
    exchange: &mut Exchange,
    connection: &mut ConnectionStanding,
    caller: &D,
    hop: &mut Hop,
) -> Result<Admitted<'a>, Box<Reply>> {
    let door = exchange.client.door;
    let policy = &*snapshot.policy;
    if door == Listeners::Outbound {
        let route = snapshot.route(door, exchange).map_err(|_| Box::new(unreadable()))?;
        hop.switch = switch::granted(caller, route, hop)?;
        return Ok(Admitted { route, awaits_token: false });
    }
    // Before routes and redirects: an authority that gives certificates knows of neither.
    if let Some(challenges) = worker.challenges.as_ref().filter(|_| door == Listeners::Ingress)
        && let Some(answer) = challenges.over_http(exchange.request.path())
    {
        let body = Bytes::copy_from_slice(answer.as_bytes());
        let reply = Reply { status: 200, fields: Vec::new(), body };
        return Err(Box::new(reply.with("Content-Type", "application/octet-stream")));
    }
    if let Some(edge) = &mut connection.edge {
        edge.check(snapshot, &exchange.request)?;
    }
    connection.of(policy, exchange.client.peer.as_deref());
    if policy.asks_fields() || policy.asks_query() {
        exchange.request.settle();
    }
    let judge = Judge { worker, snapshot, connection };
    // Who can never be allowed anything does not get as far as routes and plugins.
    if door == Listeners::Inbound
        && judge.standing().is_some_and(Standing::is_hopeless)
        && !judge.observes(&exchange.client)
    {
        return Err(judge.refuse(exchange, judge.decide(&Asked::of(exchange))));
    }
    let routed = snapshot.route(door, exchange);
    let granted = switch::granted(caller, routed.as_ref().ok().copied().flatten(), hop);
    exchange.upgrade = switch::wanted(caller, &granted);
    // What is answered at once is decided at once.
    let goes_on = routed.is_ok() && granted.is_ok();
    let asked = Asked::of(exchange);
    let asked = if goes_on { asked.awaiting() } else { asked };
    let decision = judge.decide(&asked);
    if !judge.permits(decision, &exchange.client) {
        return Err(judge.refuse(exchange, decision));
    }
    if !decision.awaits_token {
        note(&judge, &asked, decision)?;
    }
    let route = routed.map_err(|_| Box::new(unreadable()))?;
    hop.switch = granted?;
    if policy.asks_method()
        && (door == Listeners::Inbound || decision.outcome != Outcome::Allow(None))
    {
        // An application that takes another method from there would do what was not decided on.
        exchange.request.remove_known(Known::MethodOverride);
    }
    Ok(Admitted { route, awaits_token: decision.awaits_token })
}

/// Records what was allowed. `Err` is the answer when that cannot be.
fn note(judge: &Judge<'_>, asked: &Asked<'_>, decision: Decision) -> Result<(), Box<Reply>> {
    // An open public route that no policy selects is no decision of ours.
    let is_ours = asked.client.door == Listeners::Inbound
        || decision.outcome != Outcome::Allow(None)
        || decision.would_be.is_some()
        || asked.must_record();
    if is_ours && judge.record(asked, decision, None).is_err() {
        return Err(Box::new(unlogged()));
    }
    Ok(())
}

/// Policy decides once more: by now plugins have looked for the caller's token. An auth plugin's own refusal stands, and so does
/// a fault; any other answer of a plugin is given to those alone who may have it.
fn decided_late(course: Course, judge: &Judge<'_>, exchange: &Exchange) -> Course {
    match &course {
        Course::Fault(_) => return course,
        Course::Reply(reply)
            if matches!(reply.status, 401 | 403) || exchange.notes.find::<Refusal>().is_some() =>
        {
            return course;
        }
        Course::Reply(_) | Course::Forward => {}
    }
    let asked = Asked::of(exchange);
    let decision = judge.decide(&asked);
    if !judge.permits(decision, &exchange.client) {
        return Course::Reply(judge.refuse(exchange, decision));
    }
    match note(judge, &asked, decision) {
        Ok(()) => course,
        Err(unlogged) => Course::Reply(unlogged),
    }
}

/// An auth plugin's refusal goes into the decision log, and the caller learns under which id.
fn refused_by_plugin(
    course: Course,
    worker: &Worker,
    snapshot: &Snapshot,
    exchange: &Exchange,
    standing: &ConnectionStanding,
) -> Course {
    let Course::Reply(mut reply) = course else { return course };
    let Some(refusal) = exchange.notes.find::<Refusal>() else { return Course::Reply(reply) };
    let denial = DenialId::new();
    let token = refusal.token_hash.as_deref().map(|hash| TokenFacts {
        hash: Some(hash),
        issuer: None,
        subject: refusal.token.as_ref().map(|token| token.id.as_str()),
        id: refusal.token.as_ref().and_then(|token| token.token_id.as_deref()),
    });
    // A refusal that cannot be recorded is still a refusal.
    let _ = worker.lane.decision(&DecisionRecord {
        route_id: exchange.route.as_ref().map(|route| route.id.as_str()),
        protocol: if exchange.is_http2 { "h2" } else { "http/1.1" },
        method: exchange.request.method().as_bytes(),
        host: exchange.request.authority().as_bytes(),
        path: exchange.request.path().as_bytes(),
        readings: Some(other_readings),
        status: Some(reply.status),
        mode: "plugin",
        reason: Some(refusal.reason),
        denial_id: Some(denial),
        config_revision: snapshot.revision,
        plugin: Some(refusal.plugin),
        caller: exchange.caller,
        token,
        ..DecisionRecord::of(standing.ends(), false)
    });
    reply.fields.push(("x-wardgate-denial".into(), denial.as_str().into()));
    Course::Reply(reply)
}

/// Where a route asks for it, waits until what was allowed is on record, and refuses it when it cannot be.
async fn on_record(
    worker: &Worker,
    snapshot: &Snapshot,
    exchange: &Exchange,
    connection: &ConnectionStanding,
) -> Course {
    let asked = Asked::of(exchange);
    if !asked.must_record() || worker.lane.written().await.is_ok() {
        return Course::Forward;
    }
    let judge = Judge { worker, snapshot, connection };
    judge.refuse_unrecorded(&asked);
    Course::Reply(Box::new(unlogged()))
}

/// The answer to a path that cannot be read, as nginx gives it before APISIX sees the request.
fn unreadable() -> Reply {
    Reply::json(400, &serde_json::json!({ "error_msg": "the request's path cannot be read" }))
}

/// Runs the first half of the request-side plugins in APISIX's order: global rewrite, route rewrite, consumer merge. Auth
/// plugins are among them.
async fn rewrites<D: Downstream>(
    worker: &Worker,
    exchange: &mut Exchange,
    caller: &mut D,
    chains: &mut Chains<'_>,
) -> Course {
    let limits = &worker.limits;
    let global = &chains.snapshot.global;
    if global.has_rewrite() {
        let course = Course::from(hooks::rewrite(global, exchange, caller, limits).await);
        if !matches!(course, Course::Forward) {
            return course;
        }
    }
    let Some(route) = chains.route else { return Course::Forward };
    if let Some(fault) = route.fault() {
        return Course::Fault(fault);
    }
    if route.chain.has_rewrite() {
        let course = Course::from(hooks::rewrite(&route.chain, exchange, caller, limits).await);
        if !matches!(course, Course::Forward) {
            return course;
        }
    }
    if let Some(consumer) = exchange.consumer.clone() {
        match chains.snapshot.chain_for(route, &consumer) {
            Ok(None) => {}
            Ok(Some(merged)) => {
                let late = &chains.merged.insert(merged).late;
                if late.has_rewrite() {
                    let course = Course::from(hooks::rewrite(late, exchange, caller, limits).await);
                    if !matches!(course, Course::Forward) {
                        return course;
                    }
                }
            }
            Err(fault) => return Course::Fault(fault),
        }
    }
    Course::Forward
}

/// Runs the second half: global access, route access.
async fn accesses<D: Downstream>(
    worker: &Worker,
    exchange: &mut Exchange,
    caller: &mut D,
    chains: &Chains<'_>,
) -> Course {
    let limits = &worker.limits;
    let global = &chains.snapshot.global;
    if global.has_access() {
        let course = Course::from(hooks::access(global, exchange, caller, limits).await);
        if !matches!(course, Course::Forward) {
            return course;
        }
    }
    if chains.route.is_none() {
        let body = serde_json::json!({ "error_msg": "404 Route Not Found" });
        return Course::Reply(Box::new(Reply::json(404, &body)));
    }
    match chains.own() {
        Some(chain) if chain.has_access() => {
            Course::from(hooks::access(chain, exchange, caller, limits).await)
        }
        _ => Course::Forward,
    }
}

async fn forwarded<D: Downstream>(
    worker: &Arc<Worker>,
    exchange: &mut Exchange,
    caller: &mut D,
    chains: &Chains<'_>,
    vigil: &mut Vigil<'_>,
    hop: &Hop,
) -> After {
    let begun = {
        let begin = pin!(forward::begin(worker, exchange, caller, chains, vigil, hop));
        match hop.deadline {
            None => begin.await,
            Some(deadline) if deadline <= Instant::now() => Err(forward::Failure::Overdue),
            Some(deadline) => {
                timeout_at(deadline, begin).await.unwrap_or(Err(forward::Failure::Overdue))
            }
        }
    };
    let mut upstreamed = match begun {
        Ok(upstreamed) => upstreamed,
        Err(forward::Failure::Gone) => {
            caller.abort();
            exchange.response.clear();
            exchange.response.set_status(499);
            return After::Close;
        }
        Err(forward::Failure::Refused) => {
            let reply = vigil.refuse(exchange);
            return reply_with(exchange, caller, chains, vigil.watchdog, worker, *reply).await;
        }
        Err(forward::Failure::Overdue) => {
            let reply = grpc::overdue();
            return reply_with(exchange, caller, chains, vigil.watchdog, worker, reply).await;
        }
        Err(forward::Failure::Reply(reply)) => {
            return reply_with(exchange, caller, chains, vigil.watchdog, worker, *reply).await;
        }
        Err(forward::Failure::Fault(fault)) => {
            return faulted(exchange, caller, chains, vigil.watchdog, worker, fault).await;
        }
    };
    if matches!(upstreamed.length, BodyLength::Known(length) if length > worker.limits.response_body)
    {
        let (sentence, cause) =
            ("the upstream's answer is too large", "limits.response_body_bytes");
        let fault = Fault::upstream(502, sentence, cause, false);
        return faulted(exchange, caller, chains, vigil.watchdog, worker, fault).await;
    }
    exchange.source = ResponseSource::Upstream;
    headers::receive_response(&mut exchange.response);
    let lawful = match (hop.switch, upstreamed.is_switched()) {
        (Some(Switch::WebSocket), true) => upstreamed.translate(caller, exchange),
        (Some(_), false) => switch::refused(caller, exchange),
        (Some(Switch::Connect), true) | (None, _) => Ok(()),
    };
    let status = exchange.response.status();
    if let Err(fault) = lawful.and_then(|()| chains.response_head(exchange)) {
        return faulted(exchange, caller, chains, vigil.watchdog, worker, fault).await;
    }
    if upstreamed.is_switched() {
        // A plugin may change what the answer says, and not what it is.
        exchange.response.set_status(status);
        return switched(exchange, caller, upstreamed, vigil.decided()).await;
    }
    let filters = chains.filters(exchange);
    let mut length = upstreamed.length;
    if !filters.is_empty() && may_have_body(exchange) {
        // What filters make of the body is known only when they have made it.
        length = BodyLength::Unknown;
        exchange.response.remove("content-length");
    }
    if let Err(broken) = caller.start_response(&exchange.response, length) {
        tracing::debug!(%broken, "the response cannot be begun");
        caller.abort();
        return After::Close;
    }
    // Streams of HTTP/2 go out together anyway.
    if !caller.is_http2() {
        turn().await;
    }
    let carried = {
        let carry = pin!(upstreamed.carry(caller, filters, vigil, exchange));
        match hop.deadline {
            None => carry.await,
            Some(deadline) => timeout_at(deadline, carry).await.unwrap_or(Err(Stopped::Overdue)),
        }
    };
    match carried {
        Ok(()) => {
            let uploaded = upstreamed.is_uploaded();
            upstreamed.settle(worker);
            if uploaded { After::Next } else { After::Close }
        }
        Err(Stopped::Overdue) => {
            let trailers = || Some(grpc::overdue_trailers());
            let is_told = caller.is_http2()
                && poll_fn(|context| caller.poll_finish(context, trailers())).await.is_ok();
            if !is_told {
                caller.abort();
            }
            After::Close
        }
        Err(Stopped::Refused) => {
            // The exchange ends either way; what was lost is counted in the log itself.
            let _ = vigil.record_refusal(&Asked::of(exchange));
            caller.abort();
            After::Refused
        }
        Err(Stopped::Broken(cause)) => {
            tracing::debug!(connection = exchange.client.connection, %cause, "the exchange broke off");
            caller.abort();
            After::Close
        }
    }
}

/// May the answer have a body at all, whatever the upstream announced? A filter may make one.
fn may_have_body(exchange: &Exchange) -> bool {
    let status = exchange.response.status();
    exchange.request.method() != "HEAD" && status >= 200 && status != 204 && status != 304
}

async fn switched<D: Downstream>(
    exchange: &mut Exchange,
    caller: &mut D,
    upstreamed: Upstreamed,
    decided: u64,
) -> After {
    let tunnel = upstreamed.into_tunnel(Kept::of(exchange), decided);
    if exchange.response.status() == 101 {
        // It is hop-by-hop and was taken off; the codec adds `connection: upgrade` to a 101.
        let protocol = tunnel.protocol.as_deref().unwrap_or(b"websocket");
        exchange.response.set("upgrade", protocol);
    }
    let begun = caller.start_tunnel(&exchange.response);
    if begun.is_err() || poll_fn(|context| caller.poll_flush(context)).await.is_err() {
        return After::Close;
    }
    After::Tunnel(Box::new(tunnel))
}

/// A fault becomes a response: the sentence for the caller, the cause for the log.
async fn faulted<D: Downstream>(
    exchange: &mut Exchange,
    caller: &mut D,
    chains: &Chains<'_>,
    watchdog: &mut Watchdog,
    worker: &Worker,
    fault: Fault,
) -> After {
    let route = exchange.route.as_ref().map(|route| route.id.as_str());
    tracing::warn!(status = fault.status, route, cause = %fault.cause, "{}", fault.sentence);
    let reply = if grpc::is_call(exchange) {
        grpc::refusal(grpc::code_of(fault.status), fault.sentence)
    } else {
        Reply::json(fault.status, &serde_json::json!({ "error_msg": fault.sentence }))
    };
    exchange.source = match fault.side {
        FaultSide::Upstream => ResponseSource::Failure,
        FaultSide::Client | FaultSide::Gateway => ResponseSource::Gateway,
    };
    answer(exchange, caller, chains, watchdog, worker, reply).await
}

async fn reply_with<D: Downstream>(
    exchange: &mut Exchange,
    caller: &mut D,
    chains: &Chains<'_>,
    watchdog: &mut Watchdog,
    worker: &Worker,
    reply: Reply,
) -> After {
    exchange.source = ResponseSource::Gateway;
    let refuses = reply.status >= 400 && grpc::is_call(exchange);
    let reply = if refuses { grpc::translated(reply) } else { reply };
    answer(exchange, caller, chains, watchdog, worker, reply).await
}

/// Sends an answer of the gateway's own.
async fn answer<D: Downstream>(
    exchange: &mut Exchange,
    caller: &mut D,
    chains: &Chains<'_>,
    watchdog: &mut Watchdog,
    worker: &Worker,
    reply: Reply,
) -> After {
    exchange.response.clear();
    exchange.response.set_status(reply.status);
    for (name, value) in &reply.fields {
        exchange.response.append(name, value.as_bytes());
    }
    if exchange.response.value("server").is_none() {
        exchange.response.append("Server", b"Wardgate");
    }
    if chains.response_head(exchange).is_err() {
        exchange.response.set_status(500);
    }
    let mut filters = chains.filters(exchange);
    let body = match filtered(&mut filters, reply.body) {
        Ok(body) => body,
        Err(fault) => {
            tracing::warn!(cause = %fault.cause, "{}", fault.sentence);
            exchange.response.set_status(500);
            Bytes::new()
        }
    };
    if matches!(reply.status, 408 | 413) {
        // Nobody waits for what is left of the body.
        caller.is_last();
    }
    let length = match body.len() {
        0 => BodyLength::None,
        length => BodyLength::Known(length as u64),
    };
    if caller.start_response(&exchange.response, length).is_err() {
        caller.abort();
        return After::Close;
    }
    watchdog.within(worker.limits.send_within);
    let mut left = body;
    let sent = poll_fn(|context| {
        while !left.is_empty() {
            match caller.poll_send(context, &left) {
                Poll::Ready(Ok(taken)) => {
                    let _ = left.split_to(taken);
                }
                Poll::Ready(Err(broken)) => return Poll::Ready(Err(broken.to_string())),
                Poll::Pending => {
                    return watchdog.poll(context).map(|()| Err("too slow".to_owned()));
                }
            }
        }
        match caller.poll_finish(context, None) {
            Poll::Ready(done) => Poll::Ready(done.map_err(|broken| broken.to_string())),
            Poll::Pending => watchdog.poll(context).map(|()| Err("too slow".to_owned())),
        }
    })
    .await;
    if sent.is_err() {
        caller.abort();
        return After::Close;
    }
    // What of a body is still to come would be read as a request: a body that is not there wholly ends the connection.
    if discard_body(caller) { After::Next } else { After::Close }
}

/// Throws away what of the request's body has arrived; `true` when that was all of it.
fn discard_body<D: Downstream>(caller: &mut D) -> bool {
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    let mut left = 64 * 1024_usize;
    loop {
        let count = match caller.poll_data(&mut context) {
            Poll::Ready(Ok(super::Piece::Data(data))) if data.len() <= left => data.len(),
            Poll::Ready(Ok(super::Piece::End)) => return true,
            _ => return false,
        };
        left -= count;
        caller.consume(count);
    }
}

fn filtered(filters: &mut BodyFilters, body: Bytes) -> Result<Bytes, Fault> {
    if filters.is_empty() {
        return Ok(body);
    }
    let passed = filters.chunk(body)?;
    let rest = filters.finish()?;
    Ok(if rest.is_empty() { passed } else { [passed, rest].concat().into() })
}
