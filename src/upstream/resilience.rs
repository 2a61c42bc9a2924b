//! `Resilience`: a cluster's checks, ejection, slow start, budget, hedging and limits as they are compiled. A cluster without
//! any of them has none, and costs a branch.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::futures::Notified;

use super::breaker::{Admission, Limit, Overflow, Pending, Retry, Slot, enter};
use super::budget;
use super::cluster_state::{ClusterState, increment, seconds};
use super::health::{ActiveChecks, Seen, Thresholds};
use super::members::Members;
use super::outlier::Outlier;
use super::roster::{Attended, Roster};
use super::{Cluster, Endpoint, Tried};
use crate::model::{self, Balance, Invalid, RetryBudget, Upstream, UpstreamLimits};

/// When a request goes to a further node as well.
#[derive(Clone, Copy, Debug)]
pub struct Hedging {
    /// Without an answer for so long.
    pub delay: Duration,
    /// Attempts under way at once, the first one included.
    pub max_attempts: usize,
}

/// What of `checks` and `resilience` is compiled.
#[derive(Debug)]
pub struct Resilience {
    state: Arc<Attended<ClusterState>>,
    active: Option<Arc<ActiveChecks>>,
    passive: Option<Thresholds>,
    outlier: Option<Outlier>,
    panic_threshold: u8,
    /// In milliseconds.
    slow_start: Option<u64>,
    budget: Option<RetryBudget>,
    hedging: Option<Hedging>,
    limits: UpstreamLimits,
}

impl Resilience {
    /// Compiles what an upstream declares; `None` when that is nothing. Needs to be [entered](Self::enter) later.
    ///
    /// # Errors
    /// The sentence names the field.
    pub(super) fn compile(
        name: &str,
        upstream: &Upstream,
        roster: &Roster,
    ) -> Result<Option<Box<Self>>, Invalid> {
        let checks = upstream.checks.as_ref();
        let checks =
            checks.map(|checks| ActiveChecks::compile(checks, upstream, roster)).transpose()?;
        let checks = checks.filter(|_| roster.checks());
        let declared = upstream.resilience.clone().unwrap_or_default();
        let slow_start = slow_start(&declared, upstream.balance)?;
        let outlier = declared.outlier_detection.as_ref().map(Outlier::compile).transpose()?;
        let limits = limits(declared.limits.unwrap_or_default())?;
        let hedging = declared.hedging.as_ref().map(hedging).transpose()?;
        if let Some(RetryBudget { percent: 101.., .. }) = declared.retry_budget {
            return Err(Invalid::new("resilience.retry_budget.percent: expected 0 to 100"));
        }
        if declared.panic_threshold > 100 {
            return Err(Invalid::new("resilience.panic_threshold: expected 0 to 100"));
        }
        let is_empty = checks.is_none() && upstream.resilience.is_none();
        if is_empty {
            return Ok(None);
        }
        let connect = roster.connect();
        let state = roster.keep(
            name,
            || ClusterState::new(name),
            |state| super::health::attend(state, connect),
        );
        let (active, passive) =
            checks.map_or((None, None), |(active, passive)| (Some(active), passive));
        Ok(Some(Box::new(Self {
            state,
            active,
            passive,
            outlier,
            panic_threshold: declared.panic_threshold,
            slow_start,
            budget: declared.retry_budget,
            hedging,
            limits,
        })))
    }

    /// This revision is the newest one from now on: its endpoints are probed, and what another one asked for ends.
    pub(super) fn enter(cluster: &Arc<Cluster>, roster: &Roster) {
        if !roster.attends() {
            return;
        }
        match cluster.resilience() {
            Some(resilience) => resilience.state.follow(cluster),
            None => {
                if let Some(state) = roster.held_under::<ClusterState>(&cluster.name) {
                    state.follow(cluster);
                }
            }
        }
    }

    pub(super) fn active_checks(&self) -> Option<&Arc<ActiveChecks>> {
        self.active.as_ref()
    }

    pub(super) fn outlier(&self) -> Option<&Outlier> {
        self.outlier.as_ref()
    }

    /// Are those left out that may not be used? Worked out anew only when that may have changed.
    pub(super) fn leaves_out(&self, members: &Members) -> bool {
        let epoch = self.state.epoch();
        let known = members.left_out.load(Ordering::Relaxed);
        if known >> 1 == epoch {
            return known & 1 == 1;
        }
        let all = members.endpoints().iter().filter(|endpoint| endpoint.weight > 0);
        let (total, usable) = all.fold((0, 0), |(total, usable), endpoint| {
            (total + 1, usable + usize::from(endpoint.condition().is_usable()))
        });
        let leaves_out = usable < total && !panics(usable, total, self.panic_threshold);
        members.left_out.store(epoch << 1 | u64::from(leaves_out), Ordering::Relaxed);
        leaves_out
    }

    /// An endpoint of `members` that may be used and was not tried yet; it is added to `tried`.
    pub(super) fn pick<'a>(
        &self,
        members: &'a Members,
        key: Option<&[u8]>,
        tried: &mut Tried,
    ) -> Option<&'a Arc<Endpoint>> {
        tried.only_usable(self.leaves_out(members));
        let before = tried.count();
        let first = members.pick(key, tried)?;
        let Some(window) = self.slow_start else { return Some(first) };
        let (now, mut chosen) = (self.state.now(), first);
        while !chosen.condition().takes_turn(now, window) {
            match members.pick(key, tried) {
                // Lower levels are for when the higher ones fail, not for when they are new.
                Some(next) if next.priority == first.priority => chosen = next,
                _ => {
                    tried.keep_one(before, 0);
                    return Some(first);
                }
            }
        }
        // Those that were passed over may be tried later.
        tried.keep_one(before, tried.count() - before - 1);
        Some(chosen)
    }

    /// What a request found of an endpoint.
    pub fn note(&self, endpoint: &Arc<Endpoint>, seen: Seen) {
        if let Some((verdict, limit)) =
            self.passive.as_ref().and_then(|passive| passive.verdict(seen))
            && let Some(change) = endpoint.condition().judge(verdict, limit)
        {
            self.state.changed(endpoint, change, &format!("request: {seen}"));
        }
        let Some(outlier) = &self.outlier else { return };
        let row = endpoint.condition().count(seen.is_failure(), outlier.counts_volume());
        if outlier.consecutive > 0 && row >= outlier.consecutive {
            endpoint.condition().end_row();
            let cause = format!("{row} failures one after the other, the last: {seen}");
            self.state.eject(outlier, endpoint, &cause);
        }
    }

    /// One more request; counted where somebody asks for the number.
    ///
    /// # Errors
    /// There are as many as may be.
    pub fn admit(&self) -> Result<Option<Admission>, Overflow> {
        if self.limits.max_requests.is_none() && self.budget.is_none() {
            return Ok(None);
        }
        match enter(&self.state.under_way.requests, self.limits.max_requests) {
            true => Ok(Some(Admission(self.state.clone()))),
            false => Err(self.overflow(Limit::Requests, self.limits.max_requests)),
        }
    }

    /// One more attempt beside the first, or none when the budget is used up.
    pub fn retry(&self) -> Option<Retry> {
        let under_way = &self.state.under_way;
        let requests = || under_way.requests.load(Ordering::Relaxed);
        let before = under_way.retries.fetch_add(1, Ordering::Relaxed);
        let retry = Retry(self.state.clone());
        if self.budget.is_some_and(|budget| !budget::allows(budget, requests(), before)) {
            increment(&self.state.counts.retries_refused);
            return None;
        }
        increment(&self.state.counts.retries);
        Some(retry)
    }

    /// When a further node is asked as well.
    pub fn hedging(&self) -> Option<Hedging> {
        self.hedging
    }

    /// An attempt was begun because another one was slow.
    pub fn note_hedge(&self) {
        increment(&self.state.counts.hedges);
    }

    /// Such an attempt answered first.
    pub fn note_hedge_won(&self) {
        increment(&self.state.counts.hedges_won);
    }

    /// Are connections counted?
    pub fn limits_connections(&self) -> bool {
        self.limits.max_connections.is_some() || self.limits.max_pending_requests.is_some()
    }

    /// A request needs a connection that is not there yet.
    ///
    /// # Errors
    /// As many as may do so already.
    pub fn pend(&self) -> Result<Pending, Overflow> {
        match enter(&self.state.under_way.pending, self.limits.max_pending_requests) {
            true => Ok(Pending(self.state.clone())),
            false => Err(self.overflow(Limit::PendingRequests, self.limits.max_pending_requests)),
        }
    }

    /// One more connection, or none when there are as many as may be.
    pub fn slot(&self) -> Option<Slot> {
        let fits = enter(&self.state.under_way.connections, self.limits.max_connections);
        fits.then(|| Slot::new(self.state.clone()))
    }

    /// Ready when a connection was closed or became idle.
    pub fn freed(&self) -> Notified<'_> {
        self.state.under_way.freed.notified()
    }

    /// No connection became free in time.
    pub fn connections_used_up(&self) -> Overflow {
        self.overflow(Limit::Connections, self.limits.max_connections)
    }

    #[cold]
    fn overflow(&self, limit: Limit, max: Option<u32>) -> Overflow {
        increment(&self.state.counts.overflows[limit as usize]);
        Overflow { upstream: self.state.name.clone(), limit, max: max.unwrap_or(u32::MAX) }
    }
}

/// Is it better to use all when only so many of them may be used?
fn panics(usable: usize, total: usize, threshold: u8) -> bool {
    usable == 0 || usable * 100 < total * usize::from(threshold)
}

fn slow_start(declared: &model::Resilience, balance: Balance) -> Result<Option<u64>, Invalid> {
    let Some(window) = declared.slow_start else { return Ok(None) };
    if balance == Balance::Chash {
        let why = "resilience.slow_start: chash sends a key to its node whatever the node's age";
        return Err(Invalid::new(why));
    }
    let window = seconds("slow_start", window)?.as_millis();
    Ok(Some(u64::try_from(window).unwrap_or(u64::MAX)))
}

fn hedging(declared: &model::Hedging) -> Result<Hedging, Invalid> {
    if !(2..=5).contains(&declared.max_attempts) {
        let got = declared.max_attempts;
        return Err(Invalid(format!(
            "resilience.hedging.max_attempts: expected 2 to 5, got {got}"
        )));
    }
    let delay = seconds("hedging.delay", declared.delay)?;
    Ok(Hedging { delay, max_attempts: usize::from(declared.max_attempts) })
}

fn limits(declared: UpstreamLimits) -> Result<UpstreamLimits, Invalid> {
    let UpstreamLimits { max_connections, max_pending_requests, max_requests } = declared;
    let all = [max_connections, max_pending_requests, max_requests];
    match Limit::ALL.into_iter().zip(all).find(|(_, max)| *max == Some(0)) {
        Some((limit, _)) => {
            let name = limit.name();
            Err(Invalid(format!("resilience.limits.{name}: expected 1 or more, got 0")))
        }
        None => Ok(declared),
    }
}

#[cfg(test)]
mod tests;
