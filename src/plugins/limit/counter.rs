//! `Counter`: how often something happened within a window, by key. Shared by all workers, kept across revisions.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, RandomState};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// How a window moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Window {
    /// It begins with the first event and ends when its time is over.
    Fixed,
    /// It ends now; what of the previous one still overlaps it counts in proportion.
    Sliding,
}

/// What an event was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    /// It is within the limit, and was counted.
    pub(super) admitted: bool,
    /// How many more would be.
    pub(super) remaining: u64,
    /// When the window ends.
    pub(super) reset: Duration,
}

/// Events by key.
pub(super) struct Counter {
    /// Two keyed hashes name a key: a client's key may be long, and there may be many. Nobody outside finds two of one name.
    hashers: [RandomState; 2],
    shards: Box<[Mutex<Shard>]>,
    max_keys_a_shard: usize,
}

#[derive(Default)]
struct Shard {
    counts: HashMap<u128, Count, foldhash::fast::RandomState>,
    /// At this size the ended windows are swept out.
    sweep_at: usize,
    swept: Option<Instant>,
}

#[derive(Clone, Copy)]
struct Count {
    start: Instant,
    length: Duration,
    current: u64,
    previous: u64,
}

const SHARDS: usize = 64;
/// Callers may choose the key, so its number is bounded: 64 times this.
const MAX_KEYS_A_SHARD: usize = 16_384;
/// A shard full of windows that have not ended is not swept more often than this: a sweep looks at all of them.
const SWEEP_AFTER: Duration = Duration::from_secs(1);

impl Default for Counter {
    fn default() -> Self {
        Self::with_room(MAX_KEYS_A_SHARD)
    }
}

impl Counter {
    fn with_room(max_keys_a_shard: usize) -> Self {
        let shards = (0..SHARDS).map(|_| Mutex::default()).collect();
        Self { hashers: [RandomState::new(), RandomState::new()], shards, max_keys_a_shard }
    }

    /// Counts one event of `key`, unless `limit` events within `length` have been counted.
    ///
    /// When more keys are in use than there is room for, the window of the few looked at that ends first is given up.
    pub(super) fn count(
        &self,
        key: impl Hash,
        limit: u64,
        length: Duration,
        window: Window,
        now: Instant,
    ) -> Verdict {
        let [high, low] = [0, 1].map(|at: usize| self.hashers[at].hash_one(&key));
        let key = u128::from(high) << 64 | u128::from(low);
        let at = usize::from((high >> 56) as u8) % SHARDS;
        let mut shard = self.shards[at].lock();
        if let Some(count) = shard.counts.get_mut(&key) {
            return count.take(limit, length, window, now);
        }
        shard.make_room(self.max_keys_a_shard, now);
        let mut count = Count { start: now, length, current: 0, previous: 0 };
        let verdict = count.take(limit, length, window, now);
        shard.counts.insert(key, count);
        verdict
    }
}

impl Shard {
    fn make_room(&mut self, max: usize, now: Instant) {
        if self.counts.len() < self.sweep_at.max(64) {
            return;
        }
        if self.swept.is_none_or(|swept| now >= swept + SWEEP_AFTER) || self.counts.len() < max {
            self.counts.retain(|_, count| !count.is_forgotten(now));
            self.sweep_at = (self.counts.len() * 2).min(max);
            self.swept = Some(now);
        }
        if self.counts.len() >= max {
            let seen = self.counts.iter().take(16);
            let first = seen.min_by_key(|(_, count)| count.start + count.length);
            if let Some(key) = first.map(|(key, _)| *key) {
                self.counts.remove(&key);
            }
        }
    }
}

impl Count {
    fn is_forgotten(&self, now: Instant) -> bool {
        // Twice the length: a sliding window still looks at the one before.
        now >= self.start + self.length * 2
    }

    fn take(&mut self, limit: u64, length: Duration, window: Window, now: Instant) -> Verdict {
        let end = self.start + self.length;
        if now >= end {
            let next = now < end + length;
            *self = match window {
                Window::Fixed => Self { start: now, length, current: 0, previous: 0 },
                Window::Sliding if next => {
                    Self { start: end, length, current: 0, previous: self.current }
                }
                Window::Sliding => Self { start: now, length, current: 0, previous: 0 },
            };
        }
        let passed = now.saturating_duration_since(self.start);
        let reset = self.length.saturating_sub(passed);
        let used = self.current + self.overlap(reset);
        let admitted = used < limit;
        if admitted {
            self.current += 1;
        }
        let remaining = limit.saturating_sub(used + u64::from(admitted));
        Verdict { admitted, remaining, reset }
    }

    /// How much of the previous window lies within one that ends now.
    fn overlap(&self, rest: Duration) -> u64 {
        if self.previous == 0 || self.length.is_zero() {
            return 0;
        }
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "an estimate of a count, between 0 and `previous`"
        )]
        let overlap = (self.previous as f64 * rest.div_duration_f64(self.length)).floor() as u64;
        overlap
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn a_fixed_window_begins_with_the_first_event() {
        let counter = Counter::default();
        let start = Instant::now();
        let at = |seconds: u64| {
            let now = start + Duration::from_secs(seconds);
            let verdict = counter.count("k", 2, MINUTE, Window::Fixed, now);
            (verdict.admitted, verdict.remaining, verdict.reset.as_secs())
        };
        assert_eq!(at(0), (true, 1, 60));
        assert_eq!(at(10), (true, 0, 50));
        assert_eq!(at(59), (false, 0, 1));
        assert_eq!(at(60), (true, 1, 60));
        assert_eq!(at(200), (true, 1, 60));
    }

    #[test]
    fn a_sliding_window_remembers_its_predecessor_in_proportion() {
        let counter = Counter::default();
        let start = Instant::now();
        let at = |seconds: u64| {
            let now = start + Duration::from_secs(seconds);
            counter.count("k", 4, MINUTE, Window::Sliding, now).admitted
        };
        assert!((0..4).all(|_| at(50)));
        assert!(!at(59));
        // The window of the four events ends at 110: at 111 nearly all of them still count, at 140 half of them.
        assert!(at(111));
        assert!(!at(111));
        assert!(at(140));
        assert!(!at(140));
        // Two windows later nothing is left of them.
        assert!((0..4).all(|_| at(400)));
        assert!(!at(400));
    }

    #[test]
    fn keys_do_not_share_and_their_number_is_bounded() {
        let counter = Counter::with_room(128);
        let kept = || counter.shards.iter().map(|shard| shard.lock().counts.len()).sum::<usize>();
        let now = Instant::now();
        for key in 0..SHARDS * 256 {
            let key = key.to_string();
            assert!(counter.count(&key, 1, MINUTE, Window::Fixed, now).admitted);
        }
        assert!(kept() <= SHARDS * 128, "{}", kept());
        let later = now + MINUTE * 3;
        for key in 0..SHARDS * 32 {
            counter.count(format!("new {key}"), 1, MINUTE, Window::Fixed, later);
        }
        assert!(kept() < SHARDS * 64, "{}", kept());
    }
}
