//! Balancers: which of the endpoints that are left serves the next request. No I/O.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::{Endpoint, Tried};

/// Slots of a round-robin order at most: weights beyond are scaled down.
const LONGEST_ORDER: u64 = 4096;
/// Points on the hash ring for one unit of weight, as in libketama.
const POINTS: u32 = 160;

/// How a level of equal priority is shared among its endpoints.
#[derive(Debug)]
pub(super) enum Balancer {
    /// The smooth weighted order, computed once; requests walk around it.
    RoundRobin { order: Box<[u16]>, next: AtomicUsize },
    /// Points on a ring, sorted; a key goes to the next point.
    HashRing { points: Box<[(u64, u16)]> },
    /// The smallest load for the weight.
    LeastConnections { members: Box<[u16]> },
}

impl Balancer {
    pub(super) fn round_robin(endpoints: &[Arc<Endpoint>], members: &[u16]) -> Self {
        Self::RoundRobin { order: smooth_order(endpoints, members), next: AtomicUsize::new(0) }
    }

    pub(super) fn hash_ring(endpoints: &[Arc<Endpoint>], members: &[u16]) -> Self {
        let heaviest = members.iter().map(|&at| endpoints[at as usize].weight).max().unwrap_or(1);
        let mut points = Vec::new();
        for &at in members {
            let endpoint = &endpoints[at as usize];
            // A ring of a million points serves nobody better: very large weights are scaled.
            let share = if heaviest > 1000 {
                (u64::from(endpoint.weight) * 1000 / u64::from(heaviest)).max(1)
            } else {
                u64::from(endpoint.weight)
            };
            for point in 0..share * u64::from(POINTS) {
                let name = format!("{}:{}#{point}", endpoint.host, endpoint.port);
                points.push((hash(name.as_bytes()), at));
            }
        }
        points.sort_unstable();
        Self::HashRing { points: points.into() }
    }

    pub(super) fn least_connections(endpoints: &[Arc<Endpoint>], members: &[u16]) -> Self {
        let members = members.iter().copied().filter(|&at| endpoints[at as usize].weight > 0);
        Self::LeastConnections { members: members.collect() }
    }

    /// An endpoint of this level that was not tried yet; `key` is the hash for a ring.
    pub(super) fn pick(&self, endpoints: &[Arc<Endpoint>], key: u64, tried: &Tried) -> Option<u16> {
        match self {
            Self::RoundRobin { order, .. } if order.is_empty() => None,
            Self::RoundRobin { order, next } => {
                let start = next.fetch_add(1, Ordering::Relaxed);
                let (skipped, at) = (0..order.len())
                    .map(|step| (step, order[(start.wrapping_add(step)) % order.len()]))
                    .find(|(_, at)| tried.admits(endpoints, *at))?;
                // Otherwise the next in order would get all that is not for those that are left out.
                if skipped > 0 {
                    next.fetch_add(skipped, Ordering::Relaxed);
                }
                Some(at)
            }
            Self::HashRing { points } => {
                let start = points.partition_point(|(point, _)| *point < key);
                let around = points[start..].iter().chain(&points[..start]);
                around.map(|(_, at)| *at).find(|at| tried.admits(endpoints, *at))
            }
            Self::LeastConnections { members } => {
                let left = members.iter().copied().filter(|at| tried.admits(endpoints, *at));
                left.min_by(|&a, &b| {
                    let load = |at: u16| {
                        let endpoint = &endpoints[at as usize];
                        f64::from(endpoint.load() + 1) / f64::from(endpoint.weight)
                    };
                    load(a).total_cmp(&load(b))
                })
            }
        }
    }
}

/// FNV-1a: stable over versions and machines, so that a restart keeps keys where they are.
pub(super) fn hash(bytes: &[u8]) -> u64 {
    let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    // FNV's high bits move little for short keys; one finalising mix spreads them over the ring.
    let hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash ^ (hash >> 33)
}

/// Smooth weighted round robin, one whole turn: `{a: 2, b: 1}` gives a b a.
fn smooth_order(endpoints: &[Arc<Endpoint>], members: &[u16]) -> Box<[u16]> {
    let mut weights: Vec<(u16, u64)> = members
        .iter()
        .map(|&at| (at, u64::from(endpoints[at as usize].weight)))
        .filter(|(_, weight)| *weight > 0)
        .collect();
    let divisor = weights.iter().fold(0, |a, (_, b)| gcd(a, *b)).max(1);
    weights.iter_mut().for_each(|(_, weight)| *weight /= divisor);
    let mut total: u64 = weights.iter().map(|(_, weight)| weight).sum();
    if total > LONGEST_ORDER {
        for (_, weight) in &mut weights {
            *weight = (*weight * LONGEST_ORDER / total).max(1);
        }
        total = weights.iter().map(|(_, weight)| weight).sum();
    }
    let mut current: Vec<i64> = vec![0; weights.len()];
    let mut order = Vec::new();
    for _ in 0..total {
        let mut best = 0;
        for (at, (_, weight)) in weights.iter().enumerate() {
            current[at] += i64::try_from(*weight).unwrap_or(i64::MAX);
            if current[at] > current[best] {
                best = at;
            }
        }
        current[best] -= i64::try_from(total).unwrap_or(i64::MAX);
        order.push(weights[best].0);
    }
    order.into()
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}
