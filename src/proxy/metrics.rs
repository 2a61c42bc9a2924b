//! What the data plane counts of itself. Labels come from configuration alone, never from a client.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};

use parking_lot::Mutex;

use super::connection::Served;
use crate::model::Listeners;
use crate::mtls::{Lapse, Opening};
use crate::observe::{Counter, Gauge, MetricKind, Registry, WardgateMetrics};
use crate::pipeline::Exchange;
use crate::policy::{Outcome, Reason};

/// The data plane's own counters; one set a data plane.
pub struct ProxyMetrics {
    connections: AtomicUsize,
    /// Connections and requests that broke the protocol.
    pub(in crate::proxy) malformed: Arc<Counter>,
    /// Attempts that did not reach an upstream.
    pub(in crate::proxy) unreachable: Arc<Counter>,
    requests: Arc<Counter>,
    failed: Arc<Counter>,
    denied: [Arc<Counter>; Reason::ALL.len()],
    /// Refusals that were none, since nothing is refused at the door.
    observed: Arc<Counter>,
    refused: Mutex<HashMap<&'static str, Arc<Counter>>>,
    handshakes: Mutex<HashMap<&'static str, Arc<Counter>>>,
    bytes_in: Arc<Counter>,
    bytes_out: Arc<Counter>,
    /// Connections that we made to workloads, idle ones included.
    pub(in crate::proxy) proved_upstreams: Arc<Gauge>,
    /// Connections that were closed at once, by what there were too many of.
    turned_away: [Arc<Counter>; TooMany::ALL.len()],
    /// When that was logged last, in seconds, and how many there were since.
    told: (AtomicI64, AtomicUsize),
    /// Connections that ended because their proof fell: those that came in, and those that we made.
    ended: [[Arc<Counter>; Lapse::ALL.len()]; 2],
    shared: WardgateMetrics,
}

/// What there are too many of when a connection is closed at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::proxy) enum TooMany {
    /// Connections of all doors.
    Connections,
    /// Connections of the door.
    OfListener,
    /// Connections of the source address.
    OfSource,
    /// Handshakes of the source address.
    Handshakes,
}

impl TooMany {
    const ALL: [Self; 4] = [Self::Connections, Self::OfListener, Self::OfSource, Self::Handshakes];

    /// The setting that says how many are too many.
    const fn setting(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::OfListener => "connections_per_listener",
            Self::OfSource => "connections_per_source",
            Self::Handshakes => "handshakes_per_source",
        }
    }
}

const TURNED_AWAY: &str = "wardgate_connections_turned_away_total";
const OBSERVED: &str = "wardgate_refusals_observed_total";
const ENDED: &str = "wardgate_connections_ended_total";
const PROVED: &str = "wardgate_upstream_connections_proved";

/// No further connection fits.
pub(in crate::proxy) struct Full;

impl ProxyMetrics {
    /// Resolves the counters once.
    pub fn new(registry: &Registry) -> Arc<Self> {
        let shared = WardgateMetrics::new(registry);
        let counter = |name: &str, labels: &[(&str, &str)]| registry.counter(name, labels);
        let requests = counter("wardgate_requests_total", &[]);
        // APISIX's name for the same, a gauge there despite its own.
        let seen = requests.clone();
        #[expect(clippy::cast_precision_loss, reason = "a metric's value")]
        let seen = move || seen.value() as f64;
        registry.computed("apisix_http_requests_total", &[], MetricKind::Gauge, seen);
        let (name, help) = (ENDED, "Connections that ended because they lost their proof.");
        registry.describe(name, MetricKind::Counter, help);
        registry.describe(
            PROVED,
            MetricKind::Gauge,
            "Connections to workloads, idle ones included.",
        );
        let ended = [Opening::Accepted(Listeners::Inbound), Opening::Originated].map(|side| {
            Lapse::ALL
                .map(|lapse| counter(ENDED, &[("side", side.name()), ("reason", lapse.code())]))
        });
        let help = "Refusals that were let through, since the identity mode is observe.";
        registry.describe(OBSERVED, MetricKind::Counter, help);
        let help = "Connections closed at once because there were too many, by the limit.";
        registry.describe(TURNED_AWAY, MetricKind::Counter, help);
        Arc::new(Self {
            turned_away: TooMany::ALL
                .map(|limit| counter(TURNED_AWAY, &[("limit", limit.setting())])),
            told: Default::default(),
            proved_upstreams: registry.gauge(PROVED, &[]),
            ended,
            connections: AtomicUsize::new(0),
            malformed: counter("wardgate_malformed_total", &[]),
            unreachable: counter("wardgate_upstream_unreachable_total", &[]),
            requests,
            failed: counter("wardgate_requests_failed_total", &[]),
            denied: Reason::ALL.map(|reason| shared.denied(reason.code())),
            observed: counter(OBSERVED, &[]),
            refused: Mutex::default(),
            handshakes: Mutex::default(),
            bytes_in: counter("wardgate_bytes_total", &[("direction", "in")]),
            bytes_out: counter("wardgate_bytes_total", &[("direction", "out")]),
            shared,
        })
    }

    /// One more connection, unless there are `max` already.
    pub(in crate::proxy) fn open(&self, max: usize) -> Result<(), Full> {
        if self.connections.fetch_add(1, Ordering::Relaxed) >= max {
            self.connections.fetch_sub(1, Ordering::Relaxed);
            return Err(Full);
        }
        self.shared.connections_open.add(1.0);
        Ok(())
    }

    /// A connection was closed at once. The log hears of it once a second: a flood must not become one of lines.
    pub(in crate::proxy) fn turn_away(&self, limit: TooMany, source: IpAddr) {
        self.turned_away[limit as usize].increment();
        let (at, since) = (&self.told.0, &self.told.1);
        let count = since.fetch_add(1, Ordering::Relaxed) + 1;
        let (now, before) = (crate::rt::unix_seconds(), at.load(Ordering::Relaxed));
        let is_mine = now != before
            && at.compare_exchange(before, now, Ordering::Relaxed, Ordering::Relaxed).is_ok();
        if is_mine {
            since.fetch_sub(count, Ordering::Relaxed);
            let limit = limit.setting();
            tracing::warn!(limit, %source, count, "connections are turned away: too many");
        }
    }

    pub(in crate::proxy) fn close(&self) {
        self.connections.fetch_sub(1, Ordering::Relaxed);
        self.shared.connections_open.add(-1.0);
    }

    pub(in crate::proxy) fn served(&self, served: Served) {
        self.bytes_in.add(served.bytes_in);
        self.bytes_out.add(served.bytes_out);
    }

    pub(in crate::proxy) fn handshake_refused(&self, code: &'static str) {
        let mut refused = self.refused.lock();
        refused.entry(code).or_insert_with(|| self.shared.handshakes_refused(code)).increment();
    }

    pub(in crate::proxy) fn ended(&self, opening: Opening, lapse: Lapse) {
        let side = usize::from(opening == Opening::Originated);
        self.ended[side][lapse.index()].increment();
    }

    /// A handshake that went well, by its key exchange.
    pub(in crate::proxy) fn handshake(&self, group: &'static str) {
        let mut handshakes = self.handshakes.lock();
        handshakes.entry(group).or_insert_with(|| self.shared.handshakes(group)).increment();
    }

    /// A decision; one that is only observed refuses nobody.
    pub(in crate::proxy) fn decided(&self, outcome: Outcome, is_observed: bool) {
        if is_observed {
            self.observed.increment();
        }
        match outcome.reason().filter(|_| !is_observed) {
            None => self.shared.allowed.increment(),
            Some(reason) => self.denied[reason.index()].increment(),
        }
    }

    pub(in crate::proxy) fn exchanged(&self, exchange: &Exchange) {
        self.requests.increment();
        if exchange.response.status() >= 500 {
            self.failed.increment();
        }
    }
}
