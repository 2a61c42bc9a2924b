//! `Members`: the endpoints of a cluster at one moment, by level of priority, and who of them is next.

use std::sync::Arc;

use super::balance::{Balancer, hash};
use super::{Endpoint, Tried};
use crate::model::{Balance, Invalid};

/// The endpoints of a cluster at one moment.
#[derive(Debug, Default)]
pub struct Members {
    endpoints: Box<[Arc<Endpoint>]>,
    /// One a priority level, highest first.
    levels: Box<[Balancer]>,
}

impl Members {
    /// # Errors
    /// There are more than fit.
    pub(super) fn new(endpoints: Box<[Arc<Endpoint>]>, balance: Balance) -> Result<Self, Invalid> {
        let count = u16::try_from(endpoints.len())
            .map_err(|_| Invalid::new("nodes: at most 65535 nodes fit one upstream"))?;
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
            }
        };
        let levels = priorities.into_iter().map(level).collect();
        Ok(Self { endpoints, levels })
    }

    /// All endpoints.
    pub fn endpoints(&self) -> &[Arc<Endpoint>] {
        &self.endpoints
    }

    /// An endpoint that `tried` does not hold yet; it is added there. `key` is what a ring hashes, if there is one.
    pub(super) fn pick(&self, key: Option<&[u8]>, tried: &mut Tried) -> Option<&Arc<Endpoint>> {
        // The common case: nothing to choose.
        if let [only] = &*self.endpoints {
            let fresh = tried.count() == 0 && only.weight > 0;
            tried.add(0);
            return fresh.then_some(only);
        }
        let key = key.map_or(0, hash);
        let at = self.levels.iter().find_map(|level| level.pick(&self.endpoints, key, tried))?;
        tried.add(at);
        Some(&self.endpoints[at as usize])
    }
}
