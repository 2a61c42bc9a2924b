//! Slow start: a new endpoint takes only a part of its turns, a growing one.

use std::sync::atomic::Ordering;

use super::Condition;

/// A turn, in the parts that shares are counted in.
const WHOLE: u64 = 256;
/// The share at the start: a tenth.
const FIRST: u64 = WHOLE / 10;

/// [`Condition::warming`] of an endpoint that nobody has looked at yet.
const NEW: u64 = 0;
/// The same for one that has its whole share. Beyond are the milliseconds at which it began.
const SETTLED: u64 = 1;

/// The share of an endpoint after `elapsed` of `window`, both in milliseconds.
fn share(elapsed: u64, window: u64) -> u64 {
    (elapsed * WHOLE / window.max(1)).clamp(FIRST, WHOLE)
}

impl Condition {
    /// It has its whole share from the start.
    pub(in crate::upstream) fn settle(&self) {
        let order = Ordering::Relaxed;
        let _ = self.warming.compare_exchange(NEW, SETTLED, order, order);
    }

    /// It is usable again, and begins anew.
    pub(in crate::upstream) fn begin_anew(&self) {
        self.warming.store(NEW, Ordering::Relaxed);
    }

    /// Does it take this turn? `now` and `window` in milliseconds.
    ///
    /// Of n turns it takes exactly its share: chance would have a new endpoint hit by bursts.
    pub(in crate::upstream) fn takes_turn(&self, now: u64, window: u64) -> bool {
        let mut began = self.warming.load(Ordering::Relaxed);
        if began == SETTLED {
            return true;
        }
        if began == NEW {
            began = now + SETTLED + 1;
            self.warming.store(began, Ordering::Relaxed);
        }
        let elapsed = now.saturating_sub(began - SETTLED - 1);
        if elapsed >= window {
            self.warming.store(SETTLED, Ordering::Relaxed);
            return true;
        }
        let share = u32::try_from(share(elapsed, window)).unwrap_or(u32::MAX);
        let turns = u64::from(self.turns.fetch_add(share, Ordering::Relaxed));
        (turns + u64::from(share)) / WHOLE > turns / WHOLE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_endpoint_takes_a_growing_part_of_its_turns() {
        let condition = Condition::default();
        let taken = |now| (0..1000).filter(|_| condition.takes_turn(now, 10_000)).count();
        // A tenth at first, then as much as has passed of the window, then all.
        for (now, expected) in
            [(7_000, 97), (7_900, 98), (9_000, 199), (12_000, 500), (15_000, 796), (17_000, 1000)]
        {
            let taken = taken(now);
            assert!(taken.abs_diff(expected) <= 4, "at {now}: {taken}, expected {expected}");
        }
        // It stays settled, whatever the clock says.
        assert_eq!(taken(7_000), 1000);
        condition.begin_anew();
        assert!(taken(30_000) < 110);
    }

    #[test]
    fn one_that_was_there_from_the_start_has_its_share_at_once() {
        let condition = Condition::default();
        condition.settle();
        assert!((0..100).all(|_| condition.takes_turn(0, 10_000)));
        let begun = Condition::default();
        begun.takes_turn(5, 10_000);
        begun.settle();
        assert!((0..100).any(|_| !begun.takes_turn(5, 10_000)), "it has begun already");
    }
}
