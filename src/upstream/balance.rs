//! Balancers: which of the endpoints that may be picked serves the next request. No I/O.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use smallvec::SmallVec;

use super::Endpoint;
use super::average::Tick;

/// Slots of a round-robin order, unless there are more endpoints: larger weights are scaled down.
const LONGEST_ORDER: u64 = 4096;
/// Steps that the smoothest order may cost; a larger one is put together in a cheaper way.
const SMOOTH_STEPS: u64 = 1 << 22;
/// Points on the hash ring for one unit of weight, as in libketama.
const POINTS: f64 = 160.0;
/// Points of a whole ring: one of a million serves nobody better.
const MOST_POINTS: f64 = 262_144.0;
/// So many endpoints are compared by their load; of more a sample.
const FEW: usize = 32;
const SAMPLE: usize = 5;
/// Seconds that an endpoint counts for of which nothing is known, or nothing for long. Not 0: load shall count.
const QUICKEST: f64 = 0.0001;

/// How a level of equal priority is shared among its endpoints.
#[derive(Debug)]
pub(super) enum Balancer {
    /// The smooth weighted order, computed once; requests walk around it.
    RoundRobin { order: Box<[u16]>, next: AtomicUsize },
    /// Points on a ring, sorted; a key goes to the next point.
    HashRing { points: Box<[(u64, u16)]> },
    /// The smallest load for the weight.
    LeastConnections { members: Box<[u16]> },
    /// Of two by chance the one that answers sooner.
    PeakEwma { members: Box<[u16]> },
}

impl Balancer {
    pub(super) fn round_robin(endpoints: &[Arc<Endpoint>], members: &[u16]) -> Self {
        let order = smooth_order(endpoints, members);
        // Not always the first: with many revisions, and many data planes, it would serve the most.
        let next = AtomicUsize::new(fastrand::usize(..order.len().max(1)));
        Self::RoundRobin { order, next }
    }

    pub(super) fn hash_ring(endpoints: &[Arc<Endpoint>], members: &[u16]) -> Self {
        let weight = |at: u16| f64::from(endpoints[at as usize].weight);
        let total: f64 = members.iter().map(|&at| weight(at)).sum();
        let factor = POINTS.min(MOST_POINTS / total.max(1.0));
        let mut points = Vec::new();
        for at in weighted(endpoints, members) {
            let endpoint = &endpoints[at as usize];
            // One endpoint's points are the beginning of those that it has with a larger weight: few keys move with a weight.
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "bounded")]
            let share = (weight(at) * factor).round().max(1.0) as u32;
            let place = hash(format!("{}|{}", endpoint.host, endpoint.address()).as_bytes());
            points.extend((0..share).map(|point| (spread(place, point), at)));
        }
        points.sort_unstable();
        Self::HashRing { points: points.into() }
    }

    pub(super) fn least_connections(endpoints: &[Arc<Endpoint>], members: &[u16]) -> Self {
        Self::LeastConnections { members: weighted(endpoints, members).collect() }
    }

    pub(super) fn peak_ewma(endpoints: &[Arc<Endpoint>], members: &[u16]) -> Self {
        Self::PeakEwma { members: weighted(endpoints, members).collect() }
    }

    /// An endpoint of this level of those that `may` be picked; `key` is the hash for a ring.
    pub(super) fn pick(
        &self,
        endpoints: &[Arc<Endpoint>],
        key: u64,
        may: impl Fn(u16) -> bool,
    ) -> Option<u16> {
        let busy = |at: u16| {
            let endpoint = &endpoints[at as usize];
            f64::from(endpoint.load() + 1) / f64::from(endpoint.weight)
        };
        match self {
            Self::RoundRobin { order, .. } if order.is_empty() => None,
            Self::RoundRobin { order, next } => {
                let start = next.fetch_add(1, Ordering::Relaxed) % order.len();
                let (skipped, at) = (0..).zip(around(order, start)).find(|(_, at)| may(*at))?;
                // Otherwise the next in order would get all that is not for those that are left out.
                if skipped > 0 {
                    next.fetch_add(skipped, Ordering::Relaxed);
                }
                Some(at)
            }
            Self::HashRing { points } => {
                let start = points.partition_point(|(point, _)| *point < key);
                around(points, start).map(|(_, at)| at).find(|at| may(*at))
            }
            Self::LeastConnections { members } => {
                let compared = if members.len() <= FEW { FEW } else { SAMPLE };
                least(members, compared, may, busy)
            }
            Self::PeakEwma { members } => {
                let now = Tick::now();
                let seconds = |at: u16| f64::from(endpoints[at as usize].time_to_answer(now));
                least(members, 2, may, |at| seconds(at).max(QUICKEST) * busy(at))
            }
        }
    }
}

/// Those that get anything at all.
fn weighted<'a>(
    endpoints: &'a [Arc<Endpoint>],
    members: &'a [u16],
) -> impl Iterator<Item = u16> + 'a {
    members.iter().copied().filter(|&at| endpoints[at as usize].weight > 0)
}

fn around<T: Copy>(all: &[T], start: usize) -> impl Iterator<Item = T> + '_ {
    all[start..].iter().chain(&all[..start]).copied()
}

/// Of at most `compared` members that may be picked, taken by chance, the one with the least cost.
fn least(
    members: &[u16],
    compared: usize,
    may: impl Fn(u16) -> bool,
    cost: impl Fn(u16) -> f64,
) -> Option<u16> {
    let any = || fastrand::usize(..members.len().max(1));
    let mut seen: SmallVec<[u16; FEW]> = SmallVec::new();
    // With many that may not be picked chance could miss the others for long: then they are looked through in their order.
    if members.len() > compared {
        for _ in 0..4 * compared {
            let at = members[any()];
            if !seen.contains(&at) && may(at) {
                seen.push(at);
            }
            if seen.len() == compared {
                break;
            }
        }
    }
    if seen.is_empty() {
        // Of equals not always the first.
        seen.extend(around(members, any()).filter(|at| may(*at)).take(compared));
    }
    seen.into_iter().map(|at| (cost(at), at)).min_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, at)| at)
}

/// FNV-1a: stable over versions and machines, so that a restart keeps keys where they are.
pub(super) fn hash(bytes: &[u8]) -> u64 {
    let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    // FNV's high bits move little for short keys; one finalising mix spreads them over the ring.
    mixed(hash)
}

/// One of the points of a place.
fn spread(place: u64, point: u32) -> u64 {
    // Steps of the golden ratio, as SplitMix64 takes them.
    mixed(mixed(place.wrapping_add(u64::from(point).wrapping_mul(0x9e37_79b9_7f4a_7c15))))
}

const fn mixed(hash: u64) -> u64 {
    let hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash ^ (hash >> 33)
}

/// Smooth weighted round robin, one whole turn: `{a: 2, b: 1}` gives a b a.
fn smooth_order(endpoints: &[Arc<Endpoint>], members: &[u16]) -> Box<[u16]> {
    let mut weights: Vec<(u16, u64)> = weighted(endpoints, members)
        .map(|at| (at, u64::from(endpoints[at as usize].weight)))
        .collect();
    let divisor = weights.iter().fold(0, |a, (_, b)| gcd(a, *b)).max(1);
    weights.iter_mut().for_each(|(_, weight)| *weight /= divisor);
    let sum = |weights: &[(u16, u64)]| weights.iter().map(|(_, weight)| weight).sum::<u64>();
    let mut total = sum(&weights);
    if total > LONGEST_ORDER {
        for (_, weight) in &mut weights {
            *weight = (*weight * LONGEST_ORDER / total).max(1);
        }
        total = sum(&weights);
    }
    match total.saturating_mul(weights.len() as u64) <= SMOOTH_STEPS {
        true => smoothest(&weights, total),
        false => by_deadline(&weights, total),
    }
}

/// nginx's way: each step costs a look at all.
fn smoothest(weights: &[(u16, u64)], total: u64) -> Box<[u16]> {
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

/// Whoever's turn is due first: as exact over a turn, a little less even within it.
fn by_deadline(weights: &[(u16, u64)], total: u64) -> Box<[u16]> {
    // The n-th turn of a weight w is due at (2n + 1) / 2w of the order; so many parts make that whole numbers.
    let due = |weight: u64, turn: u64| ((2 * turn + 1) << 40) / (2 * weight);
    let first =
        weights.iter().enumerate().map(|(at, (_, weight))| Reverse((due(*weight, 0), at, 0)));
    let mut heap: BinaryHeap<Reverse<(u64, usize, u64)>> = first.collect();
    let mut order = Vec::new();
    for _ in 0..total {
        let Some(Reverse((_, at, turn))) = heap.pop() else { break };
        let (member, weight) = weights[at];
        order.push(member);
        heap.push(Reverse((due(weight, turn + 1), at, turn + 1)));
    }
    order.into()
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests;
