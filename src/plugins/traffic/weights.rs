//! `Weights`: choices by weight, in exact proportion and well mixed.

use std::sync::atomic::{AtomicU64, Ordering};

/// Chooses among entries by their weights: of as many choices as the weights' sum each entry gets exactly its own.
/// Without lock, for all workers together.
pub(super) struct Weights {
    /// The sums of the weights up to and with each entry.
    sums: Vec<u64>,
    total: u64,
    /// Without a common divisor with the total: one round of steps meets each place once.
    step: u64,
    next: AtomicU64,
}

impl Weights {
    /// `None` where all weights are 0: there is nothing to choose.
    pub(super) fn new(weights: impl IntoIterator<Item = u32>) -> Option<Self> {
        let mut total = 0;
        let sums = weights.into_iter().map(|weight| {
            total += u64::from(weight);
            total
        });
        let sums: Vec<u64> = sums.collect();
        let total = sums.last().copied().filter(|total| *total > 0)?;
        // About the golden section of the whole: neighbours in time are far from each other.
        let golden = u64::try_from(u128::from(total) * 618 / 1000).unwrap_or(1);
        let step = (golden.max(1)..).find(|step| coprime(*step, total)).unwrap_or(1);
        Some(Self { sums, total, step, next: AtomicU64::new(0) })
    }

    /// The place of the next choice.
    pub(super) fn choose(&self) -> usize {
        if let [_] = self.sums.as_slice() {
            return 0;
        }
        let turn = self.next.fetch_add(1, Ordering::Relaxed) % self.total;
        let at = u128::from(turn) * u128::from(self.step) % u128::from(self.total);
        self.sums.partition_point(|sum| u128::from(*sum) <= at)
    }
}

fn coprime(one: u64, other: u64) -> bool {
    let (mut one, mut other) = (one, other);
    while other > 0 {
        (one, other) = (other, one % other);
    }
    one == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_are_in_exact_proportion_in_each_round() {
        for weights in
            [vec![1], vec![3, 2], vec![1, 0, 1], vec![0, 7], vec![100, 1], vec![1, 1, 1, 997]]
        {
            let total: u32 = weights.iter().sum();
            let chooser = Weights::new(weights.iter().copied()).unwrap();
            for _ in 0..3 {
                let mut chosen = vec![0; weights.len()];
                (0..total).for_each(|_| chosen[chooser.choose()] += 1);
                assert_eq!(chosen, weights);
            }
        }
        assert!(Weights::new([0, 0]).is_none());
        assert!(Weights::new([]).is_none());
        let big = Weights::new([u32::MAX, u32::MAX]).unwrap();
        assert!((0..100).any(|_| big.choose() == 0) && (0..100).any(|_| big.choose() == 1));
    }

    #[test]
    fn neighbours_in_time_are_mixed() {
        let chooser = Weights::new([50, 50]).unwrap();
        let first: Vec<usize> = (0..10).map(|_| chooser.choose()).collect();
        assert!(first.contains(&0) && first.contains(&1), "{first:?}");
    }
}
