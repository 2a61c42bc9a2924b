//! `ClusterState`: what of a cluster outlives revisions: what is under way, who is ejected, what was counted.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::breaker::UnderWay;
use super::health::{Change, Seen};
use super::outlier::{Outlier, success_rate};
use super::{Cluster, Endpoint};

/// What was counted, for metrics.
#[derive(Debug, Default)]
pub(super) struct Counts {
    /// Overflows, by [`super::breaker::Limit`].
    pub(super) overflows: [AtomicU64; 3],
    pub(super) retries: AtomicU64,
    pub(super) retries_refused: AtomicU64,
    pub(super) hedges: AtomicU64,
    pub(super) hedges_won: AtomicU64,
    pub(super) ejections: AtomicU64,
    pub(super) ejections_refused: AtomicU64,
    /// Probes that found a status or a connection, and others.
    pub(super) probes: [AtomicU64; 2],
    /// How often an endpoint became unusable or usable by its checks.
    pub(super) transitions: [AtomicU64; 2],
}

pub(super) fn increment(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// One endpoint that is ejected.
#[derive(Debug)]
struct Ejected {
    endpoint: Arc<Endpoint>,
    until: Instant,
}

/// What of a cluster outlives revisions.
#[derive(Debug)]
pub(super) struct ClusterState {
    /// The upstream's id, or its carrier's.
    pub(super) name: String,
    pub(super) under_way: UnderWay,
    pub(super) counts: Counts,
    begun: Instant,
    /// Counts up whenever it may be somebody else who is usable; never 0.
    epoch: AtomicU64,
    /// Its revisions, the newest last. Those that nobody uses any more fall out.
    clusters: Mutex<Vec<Weak<Cluster>>>,
    /// Held briefly, and never on the way of a request that goes well.
    ejected: Mutex<Vec<Ejected>>,
    news: Notify,
}

impl ClusterState {
    pub(super) fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            under_way: UnderWay::default(),
            counts: Counts::default(),
            begun: Instant::now(),
            epoch: AtomicU64::new(1),
            clusters: Mutex::default(),
            ejected: Mutex::default(),
            news: Notify::new(),
        }
    }

    pub(super) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Relaxed)
    }

    /// Milliseconds since this cluster first came into force.
    pub(super) fn now(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// A further revision comes into force.
    pub(super) fn follow(&self, cluster: &Arc<Cluster>) {
        let resilience = cluster.resilience();
        let endpoints = cluster.endpoints();
        {
            let mut clusters = self.clusters.lock();
            clusters.retain(|cluster| cluster.strong_count() > 0);
            if clusters.is_empty() {
                // They are not new: we are.
                endpoints.iter().for_each(|endpoint| endpoint.condition().settle());
            }
            clusters.push(Arc::downgrade(cluster));
        }
        if resilience.is_none_or(|resilience| resilience.active_checks().is_none()) {
            for endpoint in &endpoints {
                endpoint.condition().forget_checks();
            }
        }
        self.renew();
    }

    /// The revision in force, as long as anybody uses one.
    pub(super) fn newest(&self) -> Option<Arc<Cluster>> {
        self.clusters.lock().iter().rev().find_map(Weak::upgrade)
    }

    /// Waits until a revision comes into force or somebody is ejected.
    pub(super) async fn news(&self) {
        self.news.notified().await;
    }

    fn renew(&self) {
        self.epoch.fetch_add(1, Ordering::Relaxed);
        self.news.notify_one();
    }

    /// An endpoint's status changed.
    pub(super) fn changed(&self, endpoint: &Endpoint, change: Change, cause: &str) {
        let Change { from, to } = change;
        let (upstream, node) = (&*self.name, endpoint.authority());
        if from.is_usable() == to.is_usable() {
            tracing::debug!(upstream, node, %from, %to, cause, "a node's health changed");
            return;
        }
        if to.is_usable() {
            endpoint.condition().begin_anew();
        }
        self.epoch.fetch_add(1, Ordering::Relaxed);
        increment(&self.counts.transitions[usize::from(to.is_usable())]);
        tracing::info!(upstream, node, %from, %to, cause, "a node's health changed");
    }

    pub(super) fn probed(&self, seen: Seen) {
        let is_answer = matches!(seen, Seen::Status(_) | Seen::Connected);
        increment(&self.counts.probes[usize::from(!is_answer)]);
    }

    /// Takes an endpoint out for a time, as far as that is lawful.
    pub(super) fn eject(&self, outlier: &Outlier, endpoint: &Arc<Endpoint>, cause: &str) {
        let Some(cluster) = self.newest() else { return };
        let members = cluster.endpoints();
        let (upstream, node) = (&*self.name, endpoint.authority());
        let condition = endpoint.condition();
        let mut ejected = self.ejected.lock();
        let is_out = |endpoint: &&Arc<Endpoint>| endpoint.condition().is_ejected();
        let all = members.iter().filter(|endpoint| endpoint.weight > 0);
        let (total, out) = (all.clone().count(), all.filter(is_out).count());
        if condition.is_ejected() {
            return;
        }
        if out >= outlier.max_ejected(total) {
            increment(&self.counts.ejections_refused);
            tracing::debug!(upstream, node, cause, out, total, "a node fails, and is not ejected");
            return;
        }
        let times = condition.ejections.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        let within = outlier.ejection_time(times);
        condition.set_ejected(true);
        ejected.push(Ejected { endpoint: endpoint.clone(), until: Instant::now() + within });
        drop(ejected);
        increment(&self.counts.ejections);
        self.renew();
        let seconds = within.as_secs_f64();
        tracing::info!(upstream, node, cause, seconds, "a node is ejected");
    }

    /// Takes those back in whose time is over, or all when nobody is to be out any more; tells when the next one's is.
    pub(super) fn end_ejections(&self, now: Instant, goes_on: bool) -> Option<Instant> {
        let mut ejected = self.ejected.lock();
        let mut next: Option<Instant> = None;
        ejected.retain(|one| {
            if goes_on && one.until > now {
                next = Some(next.map_or(one.until, |next| next.min(one.until)));
                return true;
            }
            let condition = one.endpoint.condition();
            condition.end_row();
            condition.begin_anew();
            condition.set_ejected(false);
            self.epoch.fetch_add(1, Ordering::Relaxed);
            let (upstream, node) = (&*self.name, one.endpoint.authority());
            tracing::info!(upstream, node, "a node is no longer ejected");
            false
        });
        next
    }

    /// An interval is over: who failed too much in it is taken out, who was in order is forgiven one ejection.
    pub(super) fn judge_interval(&self, outlier: &Outlier, endpoints: &[Arc<Endpoint>]) {
        for endpoint in endpoints {
            let condition = endpoint.condition();
            let (requests, failed) = condition.take_volume();
            if outlier.is_outlier(requests, failed) {
                let rate = success_rate(requests, failed);
                let cause = format!("{rate:.0}% of {requests} requests succeeded");
                self.eject(outlier, endpoint, &cause);
            } else if !condition.is_ejected() {
                let less = |ejections: u32| Some(ejections.saturating_sub(1));
                let order = Ordering::Relaxed;
                let _ = condition.ejections.fetch_update(order, order, less);
            }
        }
    }
}

impl Drop for ClusterState {
    fn drop(&mut self) {
        // Endpoints may outlive it, and nobody else would take them back in.
        for one in self.ejected.get_mut() {
            one.endpoint.condition().set_ejected(false);
        }
    }
}

/// Seconds above 0, as a field of `resilience` has them.
pub(super) fn seconds(field: &str, seconds: f64) -> Result<Duration, crate::model::Invalid> {
    match Duration::try_from_secs_f64(seconds) {
        Ok(duration) if !duration.is_zero() && duration <= Duration::from_secs(86_400) => {
            Ok(duration)
        }
        _ => Err(crate::model::Invalid(format!(
            "resilience.{field}: expected seconds above 0, and at most 86400, got {seconds}"
        ))),
    }
}
