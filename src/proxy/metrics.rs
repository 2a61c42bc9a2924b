//! What the data plane counts of itself. Labels come from configuration alone, never from a client.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::connection::Served;
use crate::observe::{Counter, Registry};
use crate::pipeline::Exchange;
use crate::policy::Outcome;

/// The data plane's own counters; one set a data plane.
pub struct ProxyMetrics {
    connections: AtomicUsize,
    /// Connections and requests that broke the protocol.
    pub(in crate::proxy) malformed: Arc<Counter>,
    /// Attempts that did not reach an upstream.
    pub(in crate::proxy) unreachable: Arc<Counter>,
    requests: Arc<Counter>,
    failed: Arc<Counter>,
    allowed: Arc<Counter>,
    denied: Arc<Counter>,
    refused: Arc<Counter>,
    bytes_in: Arc<Counter>,
    bytes_out: Arc<Counter>,
}

/// No further connection fits.
pub(in crate::proxy) struct Full;

impl ProxyMetrics {
    /// Registers the counters.
    pub fn new(registry: &Registry) -> Arc<Self> {
        let counter = |name: &str, labels: &[(&str, &str)]| registry.counter(name, labels);
        Arc::new(Self {
            connections: AtomicUsize::new(0),
            malformed: counter("wardgate_malformed_total", &[]),
            unreachable: counter("wardgate_upstream_unreachable_total", &[]),
            requests: counter("wardgate_requests_total", &[]),
            failed: counter("wardgate_requests_failed_total", &[]),
            allowed: counter("wardgate_decisions_total", &[("outcome", "allow")]),
            denied: counter("wardgate_decisions_total", &[("outcome", "deny")]),
            refused: counter("wardgate_handshakes_refused_total", &[]),
            bytes_in: counter("wardgate_bytes_total", &[("direction", "in")]),
            bytes_out: counter("wardgate_bytes_total", &[("direction", "out")]),
        })
    }

    /// One more connection, unless there are `max` already.
    pub(in crate::proxy) fn open(&self, max: usize) -> Result<(), Full> {
        if self.connections.fetch_add(1, Ordering::Relaxed) >= max {
            self.connections.fetch_sub(1, Ordering::Relaxed);
            return Err(Full);
        }
        Ok(())
    }

    pub(in crate::proxy) fn close(&self) {
        self.connections.fetch_sub(1, Ordering::Relaxed);
    }

    /// Connections that are open now.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    pub(in crate::proxy) fn served(&self, served: Served) {
        self.bytes_in.add(served.bytes_in);
        self.bytes_out.add(served.bytes_out);
    }

    pub(in crate::proxy) fn handshake_refused(&self) {
        self.refused.inc();
    }

    pub(in crate::proxy) fn decided(&self, outcome: Outcome) {
        if outcome.is_allowed() { self.allowed.inc() } else { self.denied.inc() }
    }

    pub(in crate::proxy) fn exchanged(&self, exchange: &Exchange) {
        self.requests.inc();
        if exchange.response.status() >= 500 {
            self.failed.inc();
        }
    }
}
