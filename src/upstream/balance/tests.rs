//! Shares by weight, few keys that move, nothing for weight 0, no matter what the weights are.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::upstream::Security;
use crate::upstream::endpoint::{EndpointParts, EndpointState};

/// Endpoints of these weights, at ports 1, 2, ...
fn endpoints(weights: &[u32]) -> Vec<Arc<Endpoint>> {
    let endpoint = |(at, weight): (usize, &u32)| {
        Arc::new(Endpoint::new(EndpointParts {
            introduction: None,
            host: "127.0.0.1",
            address: [127, 0, 0, 1].into(),
            port: u16::try_from(at + 1).unwrap(),
            weight: *weight,
            priority: 0,
            security: Security::Plain,
            default_port: 80,
            is_timed: true,
            state: Arc::new(EndpointState::default()),
        }))
    };
    weights.iter().enumerate().map(endpoint).collect()
}

fn members(count: usize) -> Vec<u16> {
    (0..u16::try_from(count).unwrap()).collect()
}

fn weights() -> impl Strategy<Value = Vec<u32>> {
    prop::collection::vec(prop_oneof![Just(0), 1..10_u32, Just(100)], 1..12)
}

fn all_kinds(endpoints: &[Arc<Endpoint>]) -> [Balancer; 4] {
    let members = members(endpoints.len());
    [
        Balancer::round_robin(endpoints, &members),
        Balancer::hash_ring(endpoints, &members),
        Balancer::least_connections(endpoints, &members),
        Balancer::peak_ewma(endpoints, &members),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_weight_of_nothing_gets_nothing_and_everybody_else_comes_before_nobody(
        weights in weights(), key: u64
    ) {
        let endpoints = endpoints(&weights);
        let serving = weights.iter().filter(|weight| **weight > 0).count();
        for balancer in all_kinds(&endpoints) {
            let mut tried = HashSet::new();
            while let Some(at) = balancer.pick(&endpoints, key, |at| !tried.contains(&at)) {
                prop_assert!(weights[at as usize] > 0, "{balancer:?}");
                prop_assert!(tried.insert(at), "picked twice");
            }
            prop_assert_eq!(tried.len(), serving, "{:?}", balancer);
        }
    }

    #[test]
    fn round_robin_gives_exact_shares_over_a_turn_and_even_ones_within_it(
        weights in prop::collection::vec(0..30_u32, 1..12)
    ) {
        let endpoints = endpoints(&weights);
        let order = smooth_order(&endpoints, &members(weights.len()));
        let total: u32 = weights.iter().sum();
        let divisor = weights.iter().fold(0, |a, b| gcd(a, u64::from(*b))).max(1);
        prop_assert_eq!(order.len() as u64, u64::from(total) / divisor);
        for (at, weight) in weights.iter().enumerate() {
            let turns = |order: &[u16]| order.iter().filter(|other| **other as usize == at).count();
            prop_assert_eq!(turns(&order) as u64, u64::from(*weight) / divisor);
            // At no moment is anybody behind or ahead by more than the nodes there are.
            for end in 1..=order.len() {
                let due = f64::from(*weight) * end as f64 / f64::from(total.max(1));
                prop_assert!((turns(&order[..end]) as f64 - due).abs() <= weights.len() as f64);
            }
        }
    }

    #[test]
    fn both_ways_of_putting_an_order_together_give_the_same_shares(
        weights in prop::collection::vec(1..40_u64, 1..12)
    ) {
        let weights: Vec<(u16, u64)> = (0_u16..).zip(weights).collect();
        let total = weights.iter().map(|(_, weight)| weight).sum();
        let count = |order: &[u16]| {
            let mut count = BTreeMap::<u16, usize>::new();
            order.iter().for_each(|at| *count.entry(*at).or_default() += 1);
            count
        };
        prop_assert_eq!(count(&smoothest(&weights, total)), count(&by_deadline(&weights, total)));
    }

    #[test]
    fn when_a_node_goes_only_its_own_keys_move(
        weights in prop::collection::vec(1..5_u32, 2..10), keys in prop::collection::vec(any::<u64>(), 200)
    ) {
        let endpoints = endpoints(&weights);
        let all = Balancer::hash_ring(&endpoints, &members(weights.len()));
        let fewer = Balancer::hash_ring(&endpoints, &members(weights.len() - 1));
        let gone = u16::try_from(weights.len() - 1).unwrap();
        for key in keys {
            let before = all.pick(&endpoints, key, |_| true).unwrap();
            let after = fewer.pick(&endpoints, key, |_| true).unwrap();
            prop_assert!(before == gone || before == after);
            // The next on the ring is the one that it moves to.
            prop_assert!(before != gone || all.pick(&endpoints, key, |at| at != gone) == Some(after));
        }
    }
}

#[test]
fn a_ring_gives_shares_by_weight_and_stays_small() {
    let endpoints = endpoints(&[1, 2, 5, 0]);
    let ring = Balancer::hash_ring(&endpoints, &members(4));
    let mut count = [0_u32; 4];
    for key in 0..80_000_u32 {
        count[ring.pick(&endpoints, hash(&key.to_be_bytes()), |_| true).unwrap() as usize] += 1;
    }
    for (at, share) in [(0, 10_000), (1, 20_000), (2, 50_000), (3, 0)] {
        assert!(count[at].abs_diff(share) <= share / 5, "{count:?}");
    }
    let heavy = self::endpoints(&[1_000_000, 3_000_000, 1]);
    let Balancer::HashRing { points } = Balancer::hash_ring(&heavy, &members(3)) else { panic!() };
    assert!(points.len() < 300_000, "{}", points.len());
    assert!(points.iter().any(|(_, at)| *at == 2), "the lightest has a point at least");
}

#[test]
fn an_order_of_very_many_is_put_together_in_time() {
    let weights: Vec<u32> = (0..20_000).map(|at| 1 + at % 7).collect();
    let order = smooth_order(&endpoints(&weights), &members(weights.len()));
    assert!(order.len() >= weights.len());
    assert_eq!(order.iter().collect::<HashSet<_>>().len(), weights.len(), "each has a turn");
}

#[test]
fn few_are_compared_exactly_by_their_load_and_many_by_a_sample() {
    let few = endpoints(&[1; 8]);
    let balancer = Balancer::least_connections(&few, &members(8));
    let mut held = Vec::new();
    for _ in 0..80 {
        held.push(few[balancer.pick(&few, 0, |_| true).unwrap() as usize].busy());
    }
    assert!(few.iter().all(|endpoint| endpoint.load() == 10), "exactly even");

    let many = endpoints(&[1; 2000]);
    let balancer = Balancer::least_connections(&many, &members(2000));
    let mut held = Vec::new();
    for _ in 0..20_000 {
        held.push(many[balancer.pick(&many, 0, |_| true).unwrap() as usize].busy());
    }
    let loads = many.iter().map(|endpoint| endpoint.load());
    assert!(loads.clone().max().unwrap() <= 14 && loads.min().unwrap() >= 4);
    // When all but one were tried or are ill, that one is found.
    assert_eq!(balancer.pick(&many, 0, |at| at == 1234), Some(1234));
}

#[test]
fn the_one_that_answers_sooner_gets_more_and_a_new_one_is_not_overrun() {
    let endpoints = endpoints(&[1, 1]);
    let balancer = Balancer::peak_ewma(&endpoints, &members(2));
    endpoints[0].busy().answered(Duration::from_millis(5));
    endpoints[1].busy().answered(Duration::from_millis(500));
    let pick = || balancer.pick(&endpoints, 0, |_| true).unwrap();
    assert!((0..100).all(|_| pick() == 0), "the quicker one while it is not busy");
    let held: Vec<_> = (0..200).map(|_| endpoints[0].busy()).collect();
    assert_eq!(pick(), 1, "a quick one with 200 under way is slower than a slow one with none");
    drop(held);
    // One that refuses at once is not a quick one.
    endpoints[0].busy().failed(Duration::from_millis(1));
    assert!((0..100).all(|_| pick() == 1));

    let fresh = self::endpoints(&[1, 1]);
    fresh[1].busy().answered(Duration::from_millis(5));
    let held: Vec<_> = (0..1000).map(|_| fresh[0].busy()).collect();
    let balancer = Balancer::peak_ewma(&fresh, &members(2));
    assert_eq!(balancer.pick(&fresh, 0, |_| true), Some(1), "nothing is known of it but its load");
    drop(held);
}
