//! Circuit breaking: what is under way towards a cluster on all workers, and guards that count it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use tokio::sync::Notify;

use super::cluster_state::ClusterState;
use super::roster::Attended;

/// What is under way towards a cluster.
#[derive(Debug, Default)]
pub(super) struct UnderWay {
    pub(super) requests: AtomicU32,
    pub(super) pending: AtomicU32,
    pub(super) connections: AtomicU32,
    pub(super) retries: AtomicU32,
    pub(super) freed: Notify,
}

/// A limit of an upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// `max_connections`.
    Connections,
    /// `max_pending_requests`.
    PendingRequests,
    /// `max_requests`.
    Requests,
}

impl Limit {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Connections, Self::PendingRequests, Self::Requests];

    /// Its name in `resilience.limits`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Connections => "max_connections",
            Self::PendingRequests => "max_pending_requests",
            Self::Requests => "max_requests",
        }
    }
}

/// A limit is reached.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{upstream}: resilience.limits.{} of {max} is reached", limit.name())]
pub struct Overflow {
    /// Whose limit.
    pub upstream: String,
    /// Which.
    pub limit: Limit,
    /// How much it allows.
    pub max: u32,
}

type State = Arc<Attended<ClusterState>>;

/// One more, unless there are `max` already.
pub(super) fn enter(count: &AtomicU32, max: Option<u32>) -> bool {
    let before = count.fetch_add(1, Ordering::Relaxed);
    let fits = max.is_none_or(|max| before < max);
    if !fits {
        count.fetch_sub(1, Ordering::Relaxed);
    }
    fits
}

/// One request under way towards a cluster.
#[derive(Debug)]
pub struct Admission(pub(super) State);

impl Drop for Admission {
    fn drop(&mut self) {
        self.0.under_way.requests.fetch_sub(1, Ordering::Relaxed);
    }
}

/// One request that has no connection yet.
#[derive(Debug)]
pub struct Pending(pub(super) State);

impl Drop for Pending {
    fn drop(&mut self) {
        self.0.under_way.pending.fetch_sub(1, Ordering::Relaxed);
    }
}

/// One further attempt.
#[derive(Debug)]
pub struct Retry(pub(super) State);

impl Drop for Retry {
    fn drop(&mut self) {
        self.0.under_way.retries.fetch_sub(1, Ordering::Relaxed);
    }
}

/// One connection; clones are the same.
#[derive(Clone, Debug)]
pub struct Slot(Arc<Occupied>);

#[derive(Debug)]
struct Occupied(State);

impl Drop for Occupied {
    fn drop(&mut self) {
        let under_way = &self.0.under_way;
        under_way.connections.fetch_sub(1, Ordering::Relaxed);
        under_way.freed.notify_waiters();
    }
}

impl Slot {
    pub(super) fn new(state: State) -> Self {
        Self(Arc::new(Occupied(state)))
    }

    /// Should an idle connection be closed because requests of other workers wait for one? `own` of this worker wait too, and
    /// get their part.
    pub(super) fn is_wanted_elsewhere(&self, own: u32) -> bool {
        let pending = self.0.0.under_way.pending.load(Ordering::Relaxed);
        let others = pending.saturating_sub(own);
        others > 0 && fastrand::u32(..pending) < others
    }

    /// The connection is idle: whoever waits may look for it.
    pub(super) fn is_idle(&self) {
        self.0.0.under_way.freed.notify_waiters();
    }
}

/// What an exchange holds of a cluster until its end.
#[derive(Debug)]
pub struct Held {
    /// At the endpoint.
    pub busy: super::Busy,
    /// At the cluster.
    pub admission: Option<Admission>,
    /// Its connection, when that is counted.
    pub slot: Option<Slot>,
}
