//! Who asks for what, what policy says to it, and the records of that.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::sync::Arc;

use serde_json::{Map, Value};

use super::server_name::Edge;
use super::{grpc, headers};
use crate::identity::{JwtSvid, Peer, SpiffeId};
use crate::model::{Listeners, Strictness};
use crate::mtls::EdgeSession;
use crate::observe::{
    DecisionRecord, DenialId, Ends, EndsFacts, Full, Nearest, RequestHead, TlsFacts, TokenFacts,
    WouldBe,
};
use crate::pipeline::{Client, Exchange, Head, Reply, Rewritten, RouteInfo};
use crate::policy::{
    Action, Content, Decision, Outcome, Policy, Reason, Request, RouteFacts, Standing, Token,
    other_readings,
};
use crate::proxy::worker::Worker;
use crate::rt::unix_seconds;
use crate::snapshot::Snapshot;

/// What holds for all exchanges of a connection: who the caller is, as records and upstreams read it, and what it may do.
#[derive(Clone)]
pub(in crate::proxy) struct ConnectionStanding {
    ends: Arc<Ends>,
    pub(super) told: Arc<headers::Told>,
    /// Worked out once for each revision of the policy.
    standing: Option<Standing>,
    /// The handshake of a connection from the public.
    pub(super) edge: Option<Edge>,
}

impl ConnectionStanding {
    /// For a connection whose handshake is over.
    pub(in crate::proxy) fn new(
        client: &Client,
        worker: &Worker,
        edge: Option<Arc<EdgeSession>>,
        tls: Option<TlsFacts<'_>>,
    ) -> Self {
        let peer = client.peer.as_deref();
        let ends = worker.lane.ends(&EndsFacts {
            src_spiffe_id: peer.map(|peer| peer.id.as_str()),
            src_serial: peer.map(|peer| peer.serial.as_str()),
            src_spki_sha256: peer.map(|peer| peer.spki_sha256.as_str()),
            src_not_after: peer.map(|peer| peer.not_after),
            src_issuer_ski: peer.and_then(|peer| peer.issuer_ski.as_deref()),
            src_bundle_revision: peer.map(|peer| &*peer.bundle_revision),
            src_via: client.introduced.map(|introduced| introduced.by),
            dst_spiffe_id: client.me.as_ref().map(SpiffeId::as_str),
            dst_original: client.introduced.map(|introduced| introduced.destination),
            tls: tls.map(|tls| TlsFacts { sni: client.sni.as_deref(), ..tls }),
            ..EndsFacts::of(client.connection, client.address, client.local.port())
        });
        let told = Arc::new(headers::Told::new(client, &worker.senders));
        Self { ends: Arc::new(ends), told, standing: None, edge: edge.map(Edge::new) }
    }

    /// Who is at the ends, for records.
    pub(in crate::proxy) fn ends(&self) -> &Ends {
        &self.ends
    }

    /// What the connection's peer can meet of this policy.
    pub(in crate::proxy) fn of(&mut self, policy: &Policy, peer: Option<&Peer>) -> &Standing {
        if !self.standing.as_ref().is_some_and(|standing| standing.is_of(policy)) {
            self.standing = None;
        }
        self.standing.get_or_insert_with(|| policy.standing(peer))
    }
}

/// The connection's lot among a hundred, for rules in canary mode: the same for all that the connection carries.
pub(in crate::proxy) const fn lot(connection: u64) -> u8 {
    // Numbers follow one another; their lots must not. (The finalizer of SplitMix64.)
    let mut mixed = connection.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^= mixed >> 31;
    let lot = ((mixed >> 32) * 100) >> 32;
    #[expect(clippy::cast_possible_truncation, reason = "it is below 100")]
    let lot = lot as u8;
    lot
}

/// The facts that do not depend on what is asked for.
pub(in crate::proxy) fn circumstances<'a>(
    policy: &Policy,
    client: &Client,
    caller: Option<SocketAddr>,
    content: Content<'a>,
) -> Action<'a> {
    Action {
        port: client.local.port(),
        source: Some(client.address.ip()),
        remote: caller.map(|caller| caller.ip()),
        unix_seconds: if policy.asks_time() { unix_seconds() } else { 0 },
        lot: if policy.asks_lot() { lot(client.connection) } else { 0 },
        content,
    }
}

/// What policy decides on.
#[derive(Clone, Copy)]
pub(in crate::proxy) struct Asked<'a> {
    pub(in crate::proxy) client: &'a Client,
    pub(in crate::proxy) route: Option<&'a RouteInfo>,
    pub(in crate::proxy) method: &'a str,
    pub(in crate::proxy) host: &'a str,
    pub(in crate::proxy) path: &'a str,
    query: Option<&'a str>,
    /// The head with its fields, as the caller sent it.
    head: &'a Head,
    upgrade: Option<&'a str>,
    token: Token<'a>,
    /// The token's hash, where one is known.
    token_hash: Option<&'a str>,
    /// Which of the route's paths matched.
    path_at: usize,
    pub(in crate::proxy) is_http2: bool,
    /// Whom a trusted sender named as the caller.
    pub(in crate::proxy) caller: Option<SocketAddr>,
}

impl<'a> Asked<'a> {
    pub(in crate::proxy) fn of(exchange: &'a Exchange) -> Self {
        Self {
            client: &exchange.client,
            route: exchange.route.as_deref(),
            method: exchange.request.method(),
            host: exchange.request.authority(),
            path: exchange.request.path(),
            query: exchange.request.settled_query(),
            head: &exchange.request,
            upgrade: exchange.upgrade.as_deref(),
            token: token(exchange.verified_claims()),
            token_hash: exchange.token.as_deref().map(|token| &*token.hash),
            path_at: exchange.matched_path,
            is_http2: exchange.is_http2,
            caller: exchange.caller,
        }
    }

    /// Must it be on record before it has effect?
    pub(super) fn must_record(&self) -> bool {
        self.route.is_some_and(|route| route.must_record)
    }

    /// Before plugins have looked for a token.
    pub(super) fn awaiting(self) -> Self {
        Self { token: Token::Awaited, ..self }
    }

    /// What goes upstream in place of what was asked for.
    pub(super) fn rewritten(exchange: &'a Exchange) -> Self {
        let asked = Self::of(exchange);
        let Rewritten { target, host, method } = &exchange.rewritten;
        let (path, query) = match target {
            None => (asked.path, asked.query),
            Some(target) => match target.split_once('?') {
                Some((path, query)) => (path, Some(query)),
                None => (&**target, None),
            },
        };
        Self {
            method: method.as_deref().unwrap_or(asked.method),
            host: host.as_deref().unwrap_or(asked.host),
            path,
            query,
            ..asked
        }
    }

    /// The token that the decision may rest on, for its record.
    fn token_facts(&self) -> Option<TokenFacts<'a>> {
        let Token::Verified(claims) = self.token else { return None };
        let text = |name: &str| claims.get(name).and_then(Value::as_str);
        let (issuer, subject, id) = (text("iss"), text("sub"), text("jti"));
        Some(TokenFacts { hash: self.token_hash, issuer, subject, id })
    }

    fn action(&self, policy: &Policy) -> Action<'a> {
        let request = Request {
            method: self.method,
            host: self.host,
            path: self.path,
            query: self.query,
            fields: self.head,
            upgrade: self.upgrade,
            token: self.token,
            route: self.route.map(|route| RouteFacts { id: &route.id, labels: &route.labels }),
        };
        circumstances(policy, self.client, self.caller, Content::Request(request))
    }
}

fn token(claims: Option<&Map<String, Value>>) -> Token<'_> {
    claims.map_or(Token::Absent, Token::Verified)
}

/// [`Asked`] of an exchange that is over, for what goes on behind it.
pub(in crate::proxy) struct Kept {
    route: Option<Arc<RouteInfo>>,
    head: Head,
    upgrade: Option<Cow<'static, str>>,
    claims: Option<Arc<Map<String, Value>>>,
    token: Option<Arc<JwtSvid>>,
    path_at: usize,
    is_http2: bool,
    caller: Option<SocketAddr>,
}

impl Kept {
    pub(super) fn of(exchange: &Exchange) -> Self {
        Self {
            route: exchange.route.clone(),
            head: exchange.request.clone(),
            upgrade: exchange.upgrade.clone(),
            claims: exchange.claims.clone(),
            token: exchange.token.clone(),
            path_at: exchange.matched_path,
            is_http2: exchange.is_http2,
            caller: exchange.caller,
        }
    }

    pub(in crate::proxy) fn asked<'a>(&'a self, client: &'a Client) -> Asked<'a> {
        let claims = || self.token.as_deref().map(|token| &token.claims);
        Asked {
            client,
            route: self.route.as_deref(),
            method: self.head.method(),
            host: self.head.authority(),
            path: self.head.path(),
            query: self.head.settled_query(),
            head: &self.head,
            upgrade: self.upgrade.as_deref(),
            token: token(self.claims.as_deref().or_else(claims)),
            token_hash: self.token.as_deref().map(|token| &*token.hash),
            path_at: self.path_at,
            is_http2: self.is_http2,
            caller: self.caller,
        }
    }
}

/// Decides about a connection's requests, and writes down what was decided.
pub(super) struct Judge<'a> {
    pub(super) worker: &'a Worker,
    pub(super) snapshot: &'a Snapshot,
    pub(super) connection: &'a ConnectionStanding,
}

impl Judge<'_> {
    pub(super) fn standing(&self) -> Option<&Standing> {
        self.connection.standing.as_ref()
    }

    pub(super) fn decide(&self, asked: &Asked<'_>) -> Decision {
        let policy = &self.snapshot.policy;
        let action = asked.action(policy);
        let nobody;
        let standing = match self.standing() {
            Some(standing) => standing,
            None => {
                nobody = policy.standing(None);
                &nobody
            }
        };
        match asked.client.door {
            Listeners::Inbound => policy.decide(standing, &action),
            Listeners::Ingress | Listeners::Outbound => policy.decide_public(standing, &action),
        }
    }

    /// Is nothing refused here, and what would have been only written down?
    pub(super) fn observes(&self, client: &Client) -> bool {
        observes(self.snapshot, client)
    }

    /// May what was decided so happen?
    pub(super) fn permits(&self, decision: Decision, client: &Client) -> bool {
        decision.is_allowed() || self.observes(client)
    }

    /// Whether a rule that refuses stands against what a plugin made of the request: a rewrite must not get around it. What is
    /// allowed is what was asked for, and no rule need allow what is made of it.
    pub(super) fn refuses_rewritten(&self, exchange: &Exchange) -> Option<Decision> {
        if exchange.client.door == Listeners::Outbound || !exchange.rewritten.is_any() {
            return None;
        }
        let decision = self.decide(&Asked::rewritten(exchange));
        let by_rule = match decision.outcome {
            Outcome::Allow(_) => false,
            Outcome::Deny(
                Reason::DeniedByRule | Reason::AmbiguousPath | Reason::UnclearInput,
                _,
            ) => true,
            Outcome::Deny(Reason::NoIdentity | Reason::NoToken, rule) => rule.is_some(),
            Outcome::Deny(_, _) => false,
        };
        (by_rule && !self.observes(&exchange.client)).then_some(decision)
    }

    /// The refusal that the caller reads, and its record.
    pub(super) fn refuse(&self, exchange: &Exchange, decision: Decision) -> Box<Reply> {
        let asked = Asked::of(exchange);
        let reason = decision.outcome.reason().unwrap_or(Reason::NoRule);
        let denial = DenialId::new();
        // A refusal that cannot be recorded is still a refusal: the caller gets nothing more either way.
        let _ = self.record(&asked, decision, Some(denial));
        if grpc::is_call(exchange) {
            return Box::new(
                grpc::refusal(7, reason.sentence()).with("x-wardgate-denial", denial.as_str()),
            );
        }
        let body = serde_json::json!({
            "type": "urn:wardgate:problem:denied",
            "title": "Forbidden",
            "status": 403,
            "detail": format!("The identity policy refuses this request: {}.", reason.sentence()),
            "reason": reason.code(),
            "denial": denial.as_str(),
        });
        let reply = Reply { status: 403, body: format!("{body}\n").into(), ..Reply::default() };
        Box::new(
            reply
                .with("Content-Type", "application/problem+json")
                .with("x-wardgate-denial", denial.as_str()),
        )
    }

    /// The allow rule that came nearest.
    fn nearest(&self, asked: &Asked<'_>) -> Option<Nearest<'_>> {
        let policy = &*self.snapshot.policy;
        let near = policy.nearest(self.standing()?, &asked.action(policy))?;
        let rule = policy.rule(near.rule)?;
        Some(Nearest {
            policy_id: rule.policy.as_str(),
            rule: rule.rule,
            clause: near.clause.name(),
        })
    }

    pub(super) fn record(
        &self,
        asked: &Asked<'_>,
        decision: Decision,
        denial_id: Option<DenialId>,
    ) -> Result<(), Full> {
        let policy = &*self.snapshot.policy;
        // A refusal that is none where nothing is refused.
        let is_observed =
            denial_id.is_none() && !decision.is_allowed() && self.observes(asked.client);
        self.worker.metrics.decided(decision.outcome, is_observed);
        self.worker.lane.decision(&DecisionRecord {
            route_id: asked.route.map(|route| route.id.as_str()),
            service_id: asked.route.and_then(|route| Some(route.service.as_ref()?.as_str())),
            upstream_id: asked.route.and_then(|route| Some(route.upstream.as_ref()?.as_str())),
            template: asked.route.and_then(|route| Some(route.paths.get(asked.path_at)?.as_str())),
            head: Some(asked.head as &dyn RequestHead),
            must_stand: asked.must_record(),
            protocol: if asked.is_http2 { "h2" } else { "http/1.1" },
            method: asked.method.as_bytes(),
            host: asked.host.as_bytes(),
            path: asked.path.as_bytes(),
            readings: Some(other_readings),
            token: asked.token_facts(),
            denial_id,
            nearest: if decision.is_allowed() { None } else { self.nearest(asked) },
            caller: asked.caller,
            config_revision: self.snapshot.revision,
            ..decided(policy, &self.connection.ends, decision, is_observed)
        })
    }

    /// The record of a request that was allowed and is not forwarded, because that could not be recorded in time.
    pub(super) fn refuse_unrecorded(&self, asked: &Asked<'_>) {
        // It waits where the record of the allowance waits, and stands behind it.
        let _ = self.worker.lane.decision(&DecisionRecord {
            route_id: asked.route.map(|route| route.id.as_str()),
            protocol: if asked.is_http2 { "h2" } else { "http/1.1" },
            method: asked.method.as_bytes(),
            host: asked.host.as_bytes(),
            path: asked.path.as_bytes(),
            head: Some(asked.head as &dyn RequestHead),
            status: Some(503),
            reason: Some("not_recorded"),
            denial_id: Some(DenialId::new()),
            caller: asked.caller,
            config_revision: self.snapshot.revision,
            ..DecisionRecord::of(&self.connection.ends, false)
        });
    }
}

/// Is nothing refused at this client's door?
pub(in crate::proxy) fn observes(snapshot: &Snapshot, client: &Client) -> bool {
    client.door != Listeners::Outbound
        && snapshot.modes.at(client.local.port()) == Strictness::Observe
}

/// What a record says of a decision; when it is only observed, what would have been refused is let through.
pub(in crate::proxy) fn decided<'a>(
    policy: &'a Policy,
    ends: &'a Ends,
    decision: Decision,
    is_observed: bool,
) -> DecisionRecord<'a> {
    let named = |outcome: Outcome| outcome.rule().and_then(|rule| policy.rule(rule));
    let would_be = if is_observed { Some(decision.outcome) } else { decision.would_be };
    let would_be = would_be.map(|outcome| WouldBe {
        allowed: outcome.is_allowed(),
        reason: outcome.reason().map(Reason::code),
        rule: named(outcome).map(|rule| (rule.policy.as_str(), rule.rule)),
    });
    let rule = if is_observed { None } else { named(decision.outcome) };
    DecisionRecord {
        mode: match &rule {
            _ if is_observed => "observe",
            Some(rule) if rule.is_canary => "canary",
            _ => "enforce",
        },
        would_be,
        reason: decision.outcome.reason().filter(|_| !is_observed).map(Reason::code),
        policy_id: rule.map(|rule| rule.policy.as_str()),
        rule: rule.map(|rule| rule.rule),
        rule_hash: rule.map(|rule| rule.hash),
        policy_revision: rule.map(|rule| rule.revision),
        ..DecisionRecord::of(ends, is_observed || decision.is_allowed())
    }
}

/// The answer when no decision can be recorded: what cannot be proved later does not happen.
pub(super) fn unlogged() -> Reply {
    Reply::json(503, &serde_json::json!({ "error_msg": "the decision log is full" }))
}

#[cfg(test)]
mod tests {
    use super::lot;

    #[test]
    fn lots_are_spread_evenly_over_connections_that_follow_one_another() {
        let mut found = [0_u32; 100];
        (1..=100_000).for_each(|connection| found[usize::from(lot(connection))] += 1);
        assert!(found.iter().all(|count| (850..1150).contains(count)), "{found:?}");
        let below_ten = (1..=100).filter(|connection| lot(*connection) < 10).count();
        assert!((4..=18).contains(&below_ten), "{below_ten}");
    }
}
