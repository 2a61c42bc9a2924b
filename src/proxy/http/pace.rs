//! `Pace`: how long a caller may be waited for in the course of a body. No I/O.

use std::time::Duration;

use tokio::time::Instant;

/// How long a caller may be waited for while it sends or takes a body.
///
/// It has a stock of time, which waiting for it uses up. Without a rate, any byte fills the stock; with one, each byte earns the
/// time that it may take at that rate. Time in which somebody else is waited for costs nothing.
#[derive(Debug)]
pub(in crate::proxy) struct Pace {
    within: Duration,
    /// Bytes in a second; 0: none.
    rate: u32,
    left: Duration,
    waits: Option<Instant>,
    moved: u64,
}

impl Pace {
    pub(in crate::proxy) const fn new(within: Duration, rate: u32) -> Self {
        Self { within, rate, left: within, waits: None, moved: 0 }
    }

    /// The caller is waited for from `now` on, after `moved` bytes: until when?
    pub(in crate::proxy) fn wait(&mut self, now: Instant, moved: u64) -> Instant {
        self.settle(now, moved);
        self.waits = Some(now);
        now + self.left
    }

    /// Somebody else is waited for.
    pub(in crate::proxy) fn rest(&mut self, now: Instant, moved: u64) {
        self.settle(now, moved);
        self.waits = None;
    }

    fn settle(&mut self, now: Instant, moved: u64) {
        let gained = moved.saturating_sub(self.moved);
        self.moved = moved;
        if self.rate == 0 && gained > 0 {
            self.left = self.within;
            return;
        }
        if let Some(since) = self.waits {
            self.left = self.left.saturating_sub(now.saturating_duration_since(since));
        }
        if self.rate > 0 && gained > 0 {
            let nanos = gained.saturating_mul(1_000_000_000) / u64::from(self.rate);
            self.left = self.left.saturating_add(Duration::from_nanos(nanos)).min(self.within);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    #[test]
    fn without_a_rate_any_byte_buys_all_the_time() {
        let start = Instant::now();
        let mut pace = Pace::new(seconds(60), 0);
        assert_eq!(pace.wait(start, 0), start + seconds(60));
        assert_eq!(pace.wait(start + seconds(59), 1), start + seconds(119));
        // Nothing came: what is left is left, whoever looks.
        assert_eq!(pace.wait(start + seconds(69), 1), start + seconds(119));
    }

    #[test]
    fn with_a_rate_dripping_does_not_help_and_keeping_up_does() {
        let start = Instant::now();
        let mut dripping = Pace::new(seconds(10), 100);
        let mut until = dripping.wait(start, 0);
        let mut now = start;
        let mut moved = 0;
        // A byte each second: ten seconds and little more.
        while now + seconds(1) < until {
            (now, moved) = (now + seconds(1), moved + 1);
            until = dripping.wait(now, moved);
        }
        assert!(now < start + seconds(11), "{:?}", now - start);

        let mut steady = Pace::new(seconds(10), 100);
        for second in 0..1000 {
            let now = start + seconds(second);
            assert!(steady.wait(now, second * 101) > now + seconds(9));
        }
    }

    #[test]
    fn time_in_which_somebody_else_is_waited_for_costs_nothing() {
        let start = Instant::now();
        let mut pace = Pace::new(seconds(10), 1000);
        pace.wait(start, 0);
        pace.rest(start + seconds(4), 0);
        assert_eq!(pace.wait(start + seconds(1000), 0), start + seconds(1006));
    }
}
