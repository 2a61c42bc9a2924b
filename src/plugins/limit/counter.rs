//! `Counter`: how often something happened within a window, by key. Shared by all workers, kept across revisions.

use std::hash::Hash;
use std::time::Duration;

use tokio::time::Instant;

use super::keyed::{Keyed, Passing};

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
#[derive(Default)]
pub(super) struct Counter(Keyed<Count>);

#[derive(Clone, Copy)]
struct Count {
    start: Instant,
    length: Duration,
    current: u64,
    previous: u64,
}

impl Counter {
    /// Counts one event of `key`, unless `limit` events within `length` have been counted.
    pub(super) fn count(
        &self,
        key: impl Hash,
        limit: u64,
        length: Duration,
        window: Window,
        now: Instant,
    ) -> Verdict {
        let fresh = || Count { start: now, length, current: 0, previous: 0 };
        self.0.change(self.0.name(key), now, fresh, |count| count.take(limit, length, window, now))
    }
}

impl Passing for Count {
    fn forgotten_at(&self) -> Instant {
        // Twice the length: a sliding window still looks at the one before.
        self.start + self.length * 2
    }
}

impl Count {
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
        let counter = Counter(Keyed::with_room(128));
        let kept = || counter.0.count();
        let now = Instant::now();
        for key in 0..64 * 256 {
            let key = key.to_string();
            assert!(counter.count(&key, 1, MINUTE, Window::Fixed, now).admitted);
        }
        assert!(kept() <= 64 * 128, "{}", kept());
        let later = now + MINUTE * 3;
        for key in 0..64 * 32 {
            counter.count(format!("new {key}"), 1, MINUTE, Window::Fixed, later);
        }
        assert!(kept() < 64 * 64, "{}", kept());
    }
}
