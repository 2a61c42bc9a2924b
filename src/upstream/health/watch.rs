//! What goes on for a cluster beside requests: probes as they are due, ejections that end, intervals that are over.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::time::Instant;

use super::ActiveChecks;
use super::probe::{Found, probe};
use crate::upstream::cluster_state::ClusterState;
use crate::upstream::outlier::Outlier;
use crate::upstream::{Connect, Endpoint};

/// How often members are looked at again: those of names and registries change by themselves.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Attends to a cluster for as long as it is polled. Which of its revisions counts is looked up each time: the newest.
pub(in crate::upstream) async fn attend(state: Arc<ClusterState>, connect: Option<Connect>) {
    let mut schedule = Schedule::default();
    let mut probes = FuturesUnordered::new();
    let mut interval_ends: Option<Instant> = None;
    loop {
        let now = Instant::now();
        let plan = Plan::of(&state);
        if let Some(outlier) = &plan.outlier {
            if interval_ends.is_some_and(|end| end <= now) {
                state.judge_interval(outlier, &plan.endpoints);
                interval_ends = None;
            }
            interval_ends.get_or_insert(now + outlier.interval);
        } else {
            interval_ends = None;
        }
        let ejection_ends = state.end_ejections(now, plan.outlier.is_some());
        let checks = plan.checks.filter(|_| connect.is_some());
        let mut wake = [interval_ends, ejection_ends].into_iter().flatten().min();
        match (&checks, &connect) {
            (Some(checks), Some(connect)) => {
                schedule.follow(&plan.endpoints, now, || spread(checks.every(true)));
                while probes.len() < checks.concurrency {
                    let Some(endpoint) = schedule.begin_due(now) else { break };
                    let (connect, checks) = (connect.clone(), checks.clone());
                    probes.push(async move {
                        let found = probe(&connect, &checks, &endpoint).await;
                        (endpoint, checks, found)
                    });
                }
                let look_again = now + LOOK_AGAIN;
                let due = match probes.len() < checks.concurrency {
                    true => schedule.next_due().unwrap_or(look_again),
                    // A place becomes free with an answer, which wakes us.
                    false => look_again,
                };
                wake = wake.into_iter().chain([due, look_again]).min();
            }
            _ => schedule.follow(&[], now, Duration::default),
        }
        // Until the next look nothing here holds a revision: the last one that is used ends this task.
        drop(plan.endpoints);
        drop(checks);
        tokio::select! {
            Some((endpoint, checks, found)) = probes.next(), if !probes.is_empty() => {
                let (endpoint, checks): (Arc<Endpoint>, Arc<ActiveChecks>) = (endpoint, checks);
                note(&state, &endpoint, &checks, &found);
                let every = checks.every(endpoint.condition().status().is_usable());
                schedule.end(&endpoint, Instant::now() + jittered(every));
            }
            () = state.news() => {}
            () = sleep_until(wake) => {}
        }
    }
}

/// What is to be done for a cluster by its newest revision.
struct Plan {
    endpoints: Vec<Arc<Endpoint>>,
    checks: Option<Arc<ActiveChecks>>,
    outlier: Option<Outlier>,
}

impl Plan {
    fn of(state: &ClusterState) -> Self {
        let cluster = state.newest();
        let resilience = cluster.as_ref().and_then(|cluster| cluster.resilience());
        let checks = resilience.and_then(|resilience| resilience.active_checks().cloned());
        let outlier = resilience.and_then(|resilience| resilience.outlier().cloned());
        let endpoints = match checks.is_some() || outlier.is_some() {
            true => cluster.as_ref().map(|cluster| cluster.endpoints()).unwrap_or_default(),
            false => Vec::new(),
        };
        Self { endpoints, checks, outlier }
    }
}

fn note(state: &ClusterState, endpoint: &Endpoint, checks: &ActiveChecks, found: &Found) {
    tracing::debug!(
        upstream = state.name, node = %endpoint.authority(), found = %found.cause, "probed"
    );
    state.probed(found.seen);
    let Some((verdict, limit)) = checks.thresholds.verdict(found.seen) else { return };
    if let Some(change) = endpoint.condition().judge(verdict, limit) {
        state.changed(endpoint, change, &found.cause);
    }
}

/// A tenth more or less, so that probes of many nodes, and of many gateways, do not come all at once.
fn jittered(every: Duration) -> Duration {
    every.mul_f64(0.9 + fastrand::f64() * 0.2)
}

/// When an endpoint is probed first: at once, but not all of them in the same moment.
fn spread(every: Duration) -> Duration {
    every.min(Duration::from_secs(1)).mul_f64(fastrand::f64() * 0.1)
}

async fn sleep_until(wake: Option<Instant>) {
    match wake {
        Some(wake) => tokio::time::sleep_until(wake).await,
        None => std::future::pending().await,
    }
}

/// When which endpoint is probed next. No I/O and no clock of its own.
#[derive(Default)]
struct Schedule {
    entries: HashMap<usize, Entry>,
    /// Beside those that hold there may be some that do not any more: an entry knows its own time.
    due: BinaryHeap<Reverse<(Instant, usize)>>,
}

struct Entry {
    endpoint: Arc<Endpoint>,
    /// `None` while it is probed.
    next: Option<Instant>,
}

impl Schedule {
    /// These are the endpoints from now on. One that stays keeps its time; a new one is due after `first`.
    fn follow(
        &mut self,
        endpoints: &[Arc<Endpoint>],
        now: Instant,
        mut first: impl FnMut() -> Duration,
    ) {
        if endpoints.is_empty() && self.entries.is_empty() {
            return;
        }
        let mut before = std::mem::take(&mut self.entries);
        for endpoint in endpoints {
            let key = endpoint.state_key();
            let next = match before.remove(&key).or_else(|| self.entries.remove(&key)) {
                Some(entry) => entry.next,
                None => {
                    let at = now + first();
                    self.due.push(Reverse((at, key)));
                    Some(at)
                }
            };
            self.entries.insert(key, Entry { endpoint: endpoint.clone(), next });
        }
        if self.due.len() > 2 * self.entries.len() + 16 {
            let entries = &self.entries;
            self.due.retain(|Reverse((at, key))| holds(entries, *at, *key));
        }
    }

    /// An endpoint whose time has come; it is under way from now on.
    fn begin_due(&mut self, now: Instant) -> Option<Arc<Endpoint>> {
        loop {
            let Reverse((at, key)) = *self.due.peek()?;
            if at > now {
                return None;
            }
            self.due.pop();
            if let Some(entry) = self.entries.get_mut(&key)
                && entry.next == Some(at)
            {
                entry.next = None;
                return Some(entry.endpoint.clone());
            }
        }
    }

    /// Its probe is over; the next one is due then.
    fn end(&mut self, endpoint: &Endpoint, next: Instant) {
        let key = endpoint.state_key();
        if let Some(entry) = self.entries.get_mut(&key) {
            entry.next = Some(next);
            self.due.push(Reverse((next, key)));
        }
    }

    fn next_due(&mut self) -> Option<Instant> {
        loop {
            let Reverse((at, key)) = *self.due.peek()?;
            if holds(&self.entries, at, key) {
                return Some(at);
            }
            self.due.pop();
        }
    }
}

fn holds(entries: &HashMap<usize, Entry>, at: Instant, key: usize) -> bool {
    entries.get(&key).is_some_and(|entry| entry.next == Some(at))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Upstream;
    use crate::upstream::{Cluster, Roster};
    use serde_json::json;

    fn endpoints(roster: &Roster, nodes: &serde_json::Value) -> Vec<Arc<Endpoint>> {
        let upstream: Upstream = serde_json::from_value(json!({ "nodes": nodes })).unwrap();
        Cluster::compile("upstreams/1", &upstream, None, roster).unwrap().endpoints()
    }

    #[test]
    fn endpoints_are_due_in_their_turn_and_those_that_stay_keep_their_time() {
        let roster = Roster::attending();
        let now = Instant::now();
        let second = Duration::from_secs(1);
        let mut schedule = Schedule::default();
        let two = endpoints(&roster, &json!({"10.0.0.1:1": 1, "10.0.0.2:2": 1}));
        schedule.follow(&two, now, || Duration::ZERO);
        let first = schedule.begin_due(now).unwrap();
        let other = schedule.begin_due(now).unwrap();
        assert_ne!(first.state_key(), other.state_key());
        assert!(schedule.begin_due(now).is_none(), "both are under way");
        schedule.end(&first, now + second);
        assert_eq!(schedule.next_due(), Some(now + second));

        // A change of nodes alone: a new weight, and a third one.
        let three = endpoints(&roster, &json!({"10.0.0.1:1": 5, "10.0.0.2:2": 1, "10.0.0.3:3": 1}));
        schedule.follow(&three, now, || second * 3);
        assert!(schedule.begin_due(now).is_none());
        let due = schedule.begin_due(now + second).unwrap();
        assert_eq!(due.state_key(), first.state_key());
        assert_eq!(schedule.next_due(), Some(now + second * 3));
        schedule.end(&other, now + second * 2);

        // One that has gone is not probed again, nor when its probe ends.
        schedule.follow(&three[2..], now, || second);
        schedule.end(&first, now);
        assert_eq!(schedule.begin_due(now + second * 9).unwrap().port, 3);
        assert!(schedule.begin_due(now + second * 9).is_none() && schedule.next_due().is_none());
    }

    #[test]
    fn a_place_that_is_named_twice_is_probed_once() {
        let nodes = json!([
            {"host": "10.0.0.1", "port": 1, "weight": 1}, {"host": "10.0.0.1", "port": 1, "weight": 2}]);
        let mut schedule = Schedule::default();
        let now = Instant::now();
        schedule.follow(&endpoints(&Roster::attending(), &nodes), now, || Duration::ZERO);
        assert!(schedule.begin_due(now).is_some() && schedule.begin_due(now).is_none());
    }
}
