//! Time that tests can move, waiting times with jitter, and timers that cost nothing per request.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::task::coop::has_budget_remaining;
use tokio::time::{Instant, Sleep};

/// Seconds since 1970-01-01T00:00:00Z by the system's clock.
pub fn unix_seconds() -> i64 {
    i64::try_from(unix_millis() / 1000).unwrap_or(i64::MAX)
}

/// Milliseconds since 1970-01-01T00:00:00Z by the system's clock.
pub fn unix_millis() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// As [`unix_millis`], some milliseconds behind and for a fraction of the cost: the time of the system's last tick.
pub fn coarse_unix_millis() -> u64 {
    #[cfg(target_os = "linux")]
    {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::RealtimeCoarse);
        let seconds = u64::try_from(now.tv_sec).unwrap_or_default();
        seconds * 1000 + u64::try_from(now.tv_nsec).unwrap_or_default() / 1_000_000
    }
    #[cfg(not(target_os = "linux"))]
    unix_millis()
}

/// As [`unix_seconds`], by the clock of [`coarse_unix_millis`].
pub fn coarse_unix_seconds() -> i64 {
    i64::try_from(coarse_unix_millis() / 1000).unwrap_or(i64::MAX)
}

/// As [`Instant::now`], for limits: up to two ticks of the system's clock late (some milliseconds), never early, and for a fraction
/// of the cost.
pub fn coarse_now() -> Instant {
    // Tests may hold tokio's clock.
    #[cfg(all(target_os = "linux", not(test)))]
    {
        use rustix::time::{ClockId, Timespec, clock_getres, clock_gettime};
        use std::sync::OnceLock;
        // When it was asked first, and what the coarse clock said then, a tick less.
        static BASE: OnceLock<(Instant, Duration)> = OnceLock::new();
        let since_boot = |time: Timespec| {
            let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
            Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or_default())
        };
        let ticked = || since_boot(clock_gettime(ClockId::MonotonicCoarse));
        let (base, at) = BASE.get_or_init(|| {
            let tick = since_boot(clock_getres(ClockId::MonotonicCoarse));
            (Instant::now(), ticked().saturating_sub(tick))
        });
        *base + ticked().saturating_sub(*at)
    }
    #[cfg(not(all(target_os = "linux", not(test))))]
    Instant::now()
}

/// The wall clock, for what certificates and records say. A test moves it.
/// ```
/// # use wardgate::rt::Clock;
/// let clock = Clock::fixed(1_000);
/// clock.advance(60);
/// assert_eq!(clock.now(), 1_060);
/// ```
#[derive(Clone, Debug, Default)]
pub struct Clock {
    fixed: Option<Arc<AtomicI64>>,
}

impl Clock {
    /// The system's clock.
    pub fn system() -> Self {
        Self::default()
    }

    /// A clock that stands at `unix_seconds` until it is advanced.
    pub fn fixed(unix_seconds: i64) -> Self {
        Self { fixed: Some(Arc::new(AtomicI64::new(unix_seconds))) }
    }

    /// Seconds since 1970-01-01T00:00:00Z.
    pub fn now(&self) -> i64 {
        self.fixed.as_ref().map_or_else(unix_seconds, |at| at.load(Ordering::Relaxed))
    }

    /// Moves a fixed clock; the system's clock stays as it is.
    pub fn advance(&self, seconds: i64) {
        if let Some(at) = &self.fixed {
            at.fetch_add(seconds, Ordering::Relaxed);
        }
    }
}

/// How long to wait before trying again: doubling, bounded, with jitter.
/// ```
/// # use wardgate::rt::Backoff;
/// # use std::time::Duration;
/// let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
/// assert!(backoff.next() <= Duration::from_millis(100));
/// assert!(backoff.next() <= Duration::from_millis(200));
/// ```
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    max: Duration,
    next: Duration,
}

impl Backoff {
    /// Starts at `first` and doubles up to `max`.
    pub fn new(first: Duration, max: Duration) -> Self {
        Self { first, max, next: first }
    }

    /// The next waiting time: between half of the current step and all of it.
    #[expect(clippy::should_implement_trait, reason = "it never ends: not an iterator")]
    pub fn next(&mut self) -> Duration {
        let step = self.next;
        self.next = (step * 2).min(self.max);
        step.mul_f64(0.5 + fastrand::f64() * 0.5)
    }

    /// Something worked: start again from the first step.
    pub fn reset(&mut self) {
        self.next = self.first;
    }

    /// Waits for the next step.
    pub async fn wait(&mut self) {
        let step = self.next();
        tokio::time::sleep(step).await;
    }
}

/// One timer for one connection: moving the deadline later costs a store, not a timer operation.
///
/// The inner `Sleep` is re-armed only when it fires too early.
#[derive(Debug, Default)]
pub struct Watchdog {
    deadline: Option<Instant>,
    sleep: Option<Pin<Box<Sleep>>>,
    /// The task that the timer wakes, by the address of its waker.
    wakes: Option<usize>,
}

impl Watchdog {
    /// No deadline yet.
    pub const fn new() -> Self {
        Self { deadline: None, sleep: None, wakes: None }
    }

    /// Sets or clears the deadline.
    pub fn set(&mut self, deadline: Option<Instant>) {
        self.deadline = deadline;
    }

    /// Sets the deadline so far from now. Some milliseconds more or less are no matter to it.
    pub fn within(&mut self, within: Duration) {
        self.deadline = Some(coarse_now() + within);
    }

    /// The deadline that holds.
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Ready once the deadline has passed.
    pub fn poll(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let Some(deadline) = self.deadline else { return Poll::Pending };
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        // Earlier than armed: must re-arm. Later than armed: wait for the early firing.
        if sleep.deadline() > deadline {
            sleep.as_mut().reset(deadline);
            self.wakes = None;
        }
        // A task that the timer wakes need not tell it so again.
        let task = Some(context.waker().data().addr());
        if self.wakes == task && !sleep.is_elapsed() {
            return Poll::Pending;
        }
        // A task that has used up its turn is not heard by the timer: it comes again, and is heard then.
        let is_heard = has_budget_remaining();
        while sleep.as_mut().poll(context).is_ready() {
            if Instant::now() >= deadline {
                self.wakes = None;
                return Poll::Ready(());
            }
            sleep.as_mut().reset(deadline);
        }
        self.wakes = task.filter(|_| is_heard && has_budget_remaining());
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_watchdog_that_a_task_without_any_turn_left_asks_fires_nevertheless() {
        let (mut dog, mut is_first) = (Watchdog::new(), true);
        let start = Instant::now();
        dog.set(Some(start + Duration::from_secs(1)));
        let fires = std::future::poll_fn(|context| {
            if std::mem::take(&mut is_first) {
                while has_budget_remaining() {
                    let mut one = std::pin::pin!(tokio::task::coop::consume_budget());
                    assert!(one.as_mut().poll(context).is_ready());
                }
            }
            dog.poll(context)
        });
        tokio::time::timeout(Duration::from_secs(5), fires).await.expect("it fires");
        assert_eq!(start.elapsed().as_secs(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_watchdog_fires_at_the_deadline_that_holds_when_it_was_moved() {
        let mut dog = Watchdog::new();
        let start = Instant::now();
        dog.set(Some(start + Duration::from_secs(1)));
        assert!(futures_util::poll!(std::future::poll_fn(|cx| dog.poll(cx))).is_pending());
        dog.set(Some(start + Duration::from_secs(5)));
        std::future::poll_fn(|cx| dog.poll(cx)).await;
        assert_eq!(start.elapsed().as_secs(), 5);
        dog.set(Some(start + Duration::from_secs(9)));
        assert!(futures_util::poll!(std::future::poll_fn(|cx| dog.poll(cx))).is_pending());
        dog.set(Some(start + Duration::from_secs(6)));
        std::future::poll_fn(|cx| dog.poll(cx)).await;
        assert_eq!(start.elapsed().as_secs(), 6);
    }
}
