//! Who asks for what, what policy says to it, and the records of that.

use std::net::SocketAddr;
use std::sync::Arc;

use super::server_name::Edge;
use super::{grpc, headers};
use crate::identity::SpiffeId;
use crate::model::Listeners;
use crate::mtls::EdgeSession;
use crate::observe::{
    DecisionRecord, DenialId, Ends, EndsFacts, Full, Nearest, RequestHead, TlsFacts, WouldBe,
};
use crate::pipeline::{Client, Exchange, Head, Reply, RouteInfo};
use crate::policy::{Action, Decision, Policy, Reason, RouteFacts, Standing};
use crate::proxy::worker::Worker;
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
            src_via: client.introduced.map(|introduced| introduced.by),
            dst_spiffe_id: client.me.as_ref().map(SpiffeId::as_str),
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

    pub(super) fn of(&mut self, policy: &Policy, exchange: &Exchange) -> &Standing {
        if !self.standing.as_ref().is_some_and(|standing| standing.is_of(policy)) {
            self.standing = None;
        }
        self.standing.get_or_insert_with(|| policy.standing(exchange.client.peer.as_deref()))
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
    /// The request's fields, while they are there.
    pub(in crate::proxy) head: Option<&'a Head>,
    /// Which of the route's paths matched.
    pub(in crate::proxy) path_at: usize,
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
            head: Some(&exchange.request),
            path_at: exchange.matched_path,
            is_http2: exchange.is_http2,
            caller: exchange.caller,
        }
    }

    /// Must it be on record before it has effect?
    pub(super) fn must_record(&self) -> bool {
        self.route.is_some_and(|route| route.must_record)
    }

    fn action(&self) -> Action<'a> {
        let route = self.route.map(|route| RouteFacts { id: &route.id, labels: &route.labels });
        Action::http(self.client.local.port(), self.method, self.host, self.path).on_route(route)
    }
}

/// [`Asked`] of an exchange that is over, for what goes on behind it.
pub(in crate::proxy) struct Kept {
    route: Option<Arc<RouteInfo>>,
    method: Box<str>,
    host: Box<str>,
    path: Box<str>,
    path_at: usize,
    is_http2: bool,
    caller: Option<SocketAddr>,
}

impl Kept {
    pub(super) fn of(exchange: &Exchange) -> Self {
        let Asked { method, host, path, path_at, is_http2, caller, .. } = Asked::of(exchange);
        let route = exchange.route.clone();
        Self {
            route,
            method: method.into(),
            host: host.into(),
            path: path.into(),
            path_at,
            is_http2,
            caller,
        }
    }

    pub(in crate::proxy) fn asked<'a>(&'a self, client: &'a Client) -> Asked<'a> {
        Asked {
            client,
            route: self.route.as_deref(),
            method: &self.method,
            host: &self.host,
            path: &self.path,
            head: None,
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
        let action = asked.action();
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

    /// The refusal that the caller reads, and its record.
    pub(super) fn refuse(&self, exchange: &Exchange, decision: Decision) -> Box<Reply> {
        let policy = &self.snapshot.policy;
        let asked = Asked::of(exchange);
        let reason = decision.outcome.reason().unwrap_or(Reason::NoRule);
        let denial = DenialId::new();
        let near = self.standing().and_then(|standing| policy.nearest(standing, &asked.action()));
        let nearest = near.and_then(|near| {
            let rule = policy.rule(near.rule)?;
            let (policy_id, rule) = (rule.policy.as_str(), rule.rule);
            Some(Nearest { policy_id, rule, clause: near.clause.name() })
        });
        // A refusal that cannot be recorded is still a refusal: the caller gets nothing more either way.
        let _ = self.record(&asked, decision, Some(denial), nearest);
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
        let reply = Reply { status: 403, fields: Vec::new(), body: format!("{body}\n").into() };
        Box::new(
            reply
                .with("Content-Type", "application/problem+json")
                .with("x-wardgate-denial", denial.as_str()),
        )
    }

    pub(super) fn record(
        &self,
        asked: &Asked<'_>,
        decision: Decision,
        denial_id: Option<DenialId>,
        nearest: Option<Nearest<'_>>,
    ) -> Result<(), Full> {
        let policy = &*self.snapshot.policy;
        let rule = decision.outcome.rule().and_then(|rule| policy.rule(rule));
        let would_be = decision.would_be.map(|outcome| WouldBe {
            allowed: outcome.is_allowed(),
            reason: outcome.reason().map(Reason::code),
            rule: outcome
                .rule()
                .and_then(|rule| policy.rule(rule))
                .map(|rule| (rule.policy.as_str(), rule.rule)),
        });
        self.worker.metrics.decided(decision.outcome);
        self.worker.lane.decision(&DecisionRecord {
            route_id: asked.route.map(|route| route.id.as_str()),
            service_id: asked.route.and_then(|route| Some(route.service.as_ref()?.as_str())),
            upstream_id: asked.route.and_then(|route| Some(route.upstream.as_ref()?.as_str())),
            template: asked.route.and_then(|route| Some(route.paths.get(asked.path_at)?.as_str())),
            head: asked.head.map(|head| head as &dyn RequestHead),
            must_stand: asked.must_record(),
            protocol: if asked.is_http2 { "h2" } else { "http/1.1" },
            method: asked.method.as_bytes(),
            host: asked.host.as_bytes(),
            path: asked.path.as_bytes(),
            would_be,
            reason: decision.outcome.reason().map(Reason::code),
            policy_id: rule.map(|rule| rule.policy.as_str()),
            rule: rule.map(|rule| rule.rule),
            policy_revision: rule.map(|rule| rule.revision),
            denial_id,
            nearest,
            caller: asked.caller,
            config_revision: self.snapshot.revision,
            ..DecisionRecord::of(&self.connection.ends, decision.is_allowed())
        })
    }
}

impl Judge<'_> {
    /// The record of a request that was allowed and is not forwarded, because that could not be recorded in time.
    pub(super) fn refuse_unrecorded(&self, asked: &Asked<'_>) {
        // It waits where the record of the allowance waits, and stands behind it.
        let _ = self.worker.lane.decision(&DecisionRecord {
            route_id: asked.route.map(|route| route.id.as_str()),
            protocol: if asked.is_http2 { "h2" } else { "http/1.1" },
            method: asked.method.as_bytes(),
            host: asked.host.as_bytes(),
            path: asked.path.as_bytes(),
            head: asked.head.map(|head| head as &dyn RequestHead),
            status: Some(503),
            reason: Some("not_recorded"),
            denial_id: Some(DenialId::new()),
            caller: asked.caller,
            config_revision: self.snapshot.revision,
            ..DecisionRecord::of(&self.connection.ends, false)
        });
    }
}

/// The answer when no decision can be recorded: what cannot be proved later does not happen.
pub(super) fn unlogged() -> Reply {
    Reply::json(503, &serde_json::json!({ "error_msg": "the decision log is full" }))
}
