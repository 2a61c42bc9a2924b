//! `Worker`: what one thread of the data plane shares among its connections, and with nobody else.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::buffer::Buffers;
use super::limits::Limits;
use super::metrics::ProxyMetrics;
use super::proof::{Watch, originated_ends};
use super::senders::Senders;
use super::sources::Sources;
use crate::identity::{Identity, SpiffeId, Tokens};
use crate::mtls::{self, Challenges, ExpectedPeers, Proof};
use crate::observe::{AuditLane, ConnectionRecord, UpstreamRefusedRecord, next_connection_id};
use crate::pipeline::{Client, Exchange};
use crate::rt::{Cached, Clock, Live};
use crate::snapshot::Snapshot;
use crate::upstream::{Connect, Endpoint, Error, Pool, Security};

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

/// Exchanges that a worker keeps for reuse.
const SPARE_EXCHANGES: usize = 256;

/// What one thread's connections share.
pub(in crate::proxy) struct Worker {
    pub(in crate::proxy) buffers: Buffers,
    pub(in crate::proxy) limits: Limits,
    pub(in crate::proxy) pool: Mutex<Pool>,
    pub(in crate::proxy) connect: Connect,
    pub(in crate::proxy) lane: AuditLane,
    pub(in crate::proxy) metrics: Arc<ProxyMetrics>,
    /// Who may speak for others.
    pub(in crate::proxy) senders: Arc<Senders>,
    /// What each source address has open, at all workers.
    pub(in crate::proxy) sources: Arc<Sources>,
    /// What its connections rest on.
    pub(in crate::proxy) watch: Watch,
    snapshot: Mutex<Cached<Snapshot>>,
    /// Where this worker's tokens are verified; nowhere without an identity.
    tokens: Option<Arc<Tokens>>,
    /// What authorities that give public certificates are answered.
    pub(in crate::proxy) challenges: Option<Challenges>,
    #[expect(clippy::vec_box, reason = "too large to be moved between a connection and this list")]
    exchanges: Mutex<Vec<Box<Exchange>>>,
    is_draining: AtomicBool,
    /// In milliseconds, see [`Limits::drain_idle`].
    drain_idle: AtomicU64,
    drain: Notify,
}

impl Worker {
    #[expect(clippy::too_many_arguments, reason = "the parts of one thing, at its one birth")]
    pub(in crate::proxy) fn new(
        limits: Limits,
        senders: Arc<Senders>,
        sources: Arc<Sources>,
        connect: Connect,
        lane: AuditLane,
        metrics: Arc<ProxyMetrics>,
        identity: Option<Live<Identity>>,
        snapshot: &Live<Snapshot>,
        tokens: Option<Arc<Tokens>>,
        challenges: Option<Challenges>,
    ) -> Arc<Self> {
        let clock = Clock::system();
        let watch = Watch::new(limits.proof, clock, identity, lane.clone(), metrics.clone());
        Arc::new(Self {
            watch,
            buffers: Buffers::default(),
            limits,
            senders,
            sources,
            pool: Mutex::new(Pool::new()),
            connect,
            lane,
            metrics,
            snapshot: Mutex::new(snapshot.cached()),
            tokens,
            challenges,
            exchanges: Mutex::new(Vec::new()),
            is_draining: AtomicBool::new(false),
            drain_idle: AtomicU64::new(millis(limits.drain_idle)),
            drain: Notify::new(),
        })
    }

    /// The snapshot of this moment. An exchange takes one and keeps it to its end.
    pub(in crate::proxy) fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshot.lock().load().clone()
    }

    /// Runs `work` on this worker's thread; it ends with the worker.
    #[expect(clippy::unused_self, reason = "says whose thread it is")]
    pub(in crate::proxy) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        // The worker's runtime is the owner: it drops what is left when it ends.
        drop(crate::rt::spawn(work));
    }

    /// An exchange for a request that has begun to arrive.
    pub(in crate::proxy) fn lend_exchange(&self, client: &Arc<Client>) -> Box<Exchange> {
        match self.exchanges.lock().pop() {
            Some(mut exchange) => {
                exchange.client = client.clone();
                exchange.times.started = Instant::now();
                exchange
            }
            None => {
                let mut exchange = Box::new(Exchange::new(client.clone()));
                exchange.tokens.clone_from(&self.tokens);
                exchange
            }
        }
    }

    /// Keeps an exchange's memory for the next one.
    pub(in crate::proxy) fn take_back(&self, mut exchange: Box<Exchange>) {
        exchange.request.shrink();
        exchange.response.shrink();
        // Nothing of a finished exchange may hold on to an old snapshot.
        exchange.consumers = None;
        exchange.forget();
        let mut exchanges = self.exchanges.lock();
        if exchanges.len() < SPARE_EXCHANGES {
            exchanges.push(exchange);
        }
    }

    pub(in crate::proxy) fn is_draining(&self) -> bool {
        self.is_draining.load(Ordering::Relaxed)
    }

    /// How long an idle connection waits for one more request in a drain.
    pub(in crate::proxy) fn drain_idle(&self) -> Duration {
        Duration::from_millis(self.drain_idle.load(Ordering::Relaxed))
    }

    /// Asks all connections to finish, idle ones after `idle` at the earliest.
    pub(in crate::proxy) fn start_draining(&self, idle: Duration) {
        self.drain_idle.store(millis(idle.max(self.limits.drain_idle)), Ordering::Relaxed);
        self.is_draining.store(true, Ordering::Relaxed);
        self.drain.notify_waiters();
    }

    /// Waits until the worker drains.
    pub(in crate::proxy) fn draining(&self) -> impl Future<Output = ()> {
        let mut notified = Box::pin(self.drain.notified());
        // Registered before the flag is looked at: a drain between the two is not missed.
        notified.as_mut().enable();
        let mut over = self.is_draining();
        std::future::poll_fn(move |context: &mut Context<'_>| {
            if !over {
                over = self.is_draining() || notified.as_mut().poll(context).is_ready();
            }
            if over { Poll::Ready(()) } else { Poll::Pending }
        })
    }

    pub(in crate::proxy) fn note_malformed(&self, client: &Client, sentence: &str) {
        self.metrics.malformed.increment();
        tracing::debug!(address = %client.address, connection = client.connection, "refused: {sentence}");
    }

    pub(in crate::proxy) fn note_unreachable(&self, error: &Error, endpoint: &Endpoint) {
        self.metrics.unreachable.increment();
        tracing::debug!(%error, "an upstream cannot be reached");
        if let (Error::Handshake { error, reason, .. }, Security::Mesh(expected)) =
            (error, &endpoint.security)
        {
            self.note_upstream_refused(error, reason, expected, endpoint);
        }
    }

    /// Somebody else than whom we wanted, or we are not wanted there: as much on record as who was refused here.
    fn note_upstream_refused(
        &self,
        error: &mtls::Error,
        reason: &str,
        expected: &ExpectedPeers,
        endpoint: &Endpoint,
    ) {
        if error.refusal().is_none() {
            return;
        }
        let me = self.watch.me();
        let presented = error.presented();
        // Nothing is sent there either way; a log that is full has counted what it lost.
        let _ = self.lane.upstream_refused(&UpstreamRefusedRecord {
            conn_id: next_connection_id(),
            src_spiffe_id: me.as_ref().map(SpiffeId::as_str),
            upstream: &endpoint.authority(),
            expected_id: &expected.text(),
            presented_id: presented.and_then(|presented| presented.id.as_deref()),
            presented_serial: presented.and_then(|presented| presented.serial.as_deref()),
            presented_issuer_ski: presented.and_then(|presented| presented.issuer_ski.as_deref()),
            reason: error.code(),
            detail: Some(reason),
        });
    }

    /// A connection was made to a workload.
    pub(in crate::proxy) fn note_originated(&self, proof: &Proof) {
        if self.lane.records_connections() {
            let ends = originated_ends(&proof.begun, &self.lane);
            // What is lost is counted in the log itself.
            let _ = self.lane.connection(&ConnectionRecord {
                side: Some(proof.begun.opening.name()),
                peer_serial: proof.begun.peer.as_ref().map(|peer| peer.serial.as_str()),
                ..ConnectionRecord::of(&ends, "open")
            });
        }
    }

    pub(in crate::proxy) fn note_handshake(&self, address: SocketAddr, reason: &str) {
        tracing::debug!(%address, "handshake refused: {reason}");
    }

    pub(in crate::proxy) fn note_exchange(&self, exchange: &Exchange) {
        self.metrics.exchanged(exchange);
    }
}
