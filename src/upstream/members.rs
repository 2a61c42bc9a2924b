//! `Members`: the endpoints of a cluster at one moment, by level of priority, and who of them is next.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use super::balance::{Balancer, hash};
use super::{Endpoint, Tried};
use crate::model::{Balance, Invalid};

/// The endpoints of a cluster at one moment.
#[derive(Debug, Default)]
pub struct Members {
    endpoints: Box<[Arc<Endpoint>]>,
    /// One a priority level, highest first.
    levels: Box<[Balancer]>,
    /// Whether those that may not be used are left out, and as of when that is known.
    pub(super) left_out: AtomicU64,
    is_unknown: bool,
    /// Somebody was named, be it that no name leads anywhere.
    has_nodes: bool,
}

impl Members {
    /// # Errors
    /// There are more than fit.
    pub(super) fn new(endpoints: Box<[Arc<Endpoint>]>, balance: Balance) -> Result<Self, Invalid> {
        let count = Self::judge_count(endpoints.len())?;
        let mut priorities: Vec<i32> = endpoints.iter().map(|endpoint| endpoint.priority).collect();
        priorities.sort_unstable_by(|a, b| b.cmp(a));
        priorities.dedup();
        let level = |priority: i32| {
            let of = |at: &u16| endpoints[*at as usize].priority == priority;
            let members: Vec<u16> = (0..count).filter(of).collect();
            match balance {
                Balance::RoundRobin => Balancer::round_robin(&endpoints, &members),
                Balance::Chash => Balancer::hash_ring(&endpoints, &members),
                Balance::LeastConn => Balancer::least_connections(&endpoints, &members),
                Balance::Ewma => Balancer::peak_ewma(&endpoints, &members),
            }
        };
        let levels = priorities.into_iter().map(level).collect();
        Ok(Self {
            has_nodes: !endpoints.is_empty(),
            endpoints,
            levels,
            left_out: AtomicU64::default(),
            is_unknown: false,
        })
    }

    /// # Errors
    /// There are more than fit.
    pub(super) fn judge_count(count: usize) -> Result<u16, Invalid> {
        u16::try_from(count)
            .map_err(|_| Invalid::new("nodes: at most 65535 nodes fit one upstream"))
    }

    /// Whoever names the nodes has not answered yet.
    pub(super) fn unknown() -> Self {
        Self { is_unknown: true, ..Self::default() }
    }

    /// Has anybody said who they are, be it nobody?
    pub fn are_known(&self) -> bool {
        !self.is_unknown
    }

    /// They were made of nodes whose names may lead nowhere at the moment.
    #[must_use]
    pub(super) fn of_nodes(self, has_nodes: bool) -> Self {
        Self { has_nodes, ..self }
    }

    /// Is there a node, whether its name leads anywhere or not?
    pub fn has_nodes(&self) -> bool {
        self.has_nodes
    }

    /// All endpoints.
    pub fn endpoints(&self) -> &[Arc<Endpoint>] {
        &self.endpoints
    }

    /// An endpoint that `tried` does not hold yet; it is added there. `key` is what a ring hashes, if there is one.
    pub(super) fn pick(&self, key: Option<&[u8]>, tried: &mut Tried) -> Option<&Arc<Endpoint>> {
        // The common case: nothing to choose, and as in APISIX nothing that health could take away.
        if let [only] = &*self.endpoints {
            let fresh = tried.count() == 0 && only.weight > 0;
            tried.add(0);
            return fresh.then_some(only);
        }
        let key = key.map_or(0, hash);
        // All that speaks against an endpoint is asked here.
        let may = |at: u16| tried.admits(&self.endpoints, at);
        let at = self.levels.iter().find_map(|level| level.pick(&self.endpoints, key, may))?;
        tried.add(at);
        Some(&self.endpoints[at as usize])
    }
}
