//! `Condition`: what is known of an endpoint's health, in atomics: requests count without a lock.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use serde::Serialize;

/// How healthy an endpoint is by its checks. The names are APISIX's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// In order.
    #[default]
    Healthy,
    /// In order, with failures since.
    MostlyHealthy,
    /// Out of order, with successes since.
    MostlyUnhealthy,
    /// Out of order.
    Unhealthy,
}

impl Status {
    /// May it get requests?
    pub fn is_usable(self) -> bool {
        matches!(self, Self::Healthy | Self::MostlyHealthy)
    }
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Healthy => "healthy",
            Self::MostlyHealthy => "mostly_healthy",
            Self::MostlyUnhealthy => "mostly_unhealthy",
            Self::Unhealthy => "unhealthy",
        })
    }
}

/// What a check says of one try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::upstream) enum Verdict {
    /// It went well.
    Success,
    /// The status was a bad one.
    HttpFailure,
    /// There was no connection, or no answer over it.
    TcpFailure,
    /// It took too long.
    Timeout,
}

impl Verdict {
    /// Where its counter stands in a [`Word`].
    const fn shift(self) -> u32 {
        match self {
            Self::Success => 8,
            Self::HttpFailure => 16,
            Self::TcpFailure => 24,
            Self::Timeout => 32,
        }
    }
}

/// Counters as reports show them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counters {
    pub(super) success: u8,
    pub(super) http_failure: u8,
    pub(super) tcp_failure: u8,
    pub(super) timeout: u8,
}

/// A status, whether the endpoint is ejected, and the four counters, in one number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Word(u64);

const STATUS: u64 = 0b11;
/// Of the four statuses those that have this bit are not usable.
const OUT_OF_ORDER: u64 = 0b10;
const EJECTED: u64 = 0b100;
const SUCCESSES: u64 = 0xff << 8;
const FAILURES: u64 = 0xff_ffff << 16;

impl Word {
    fn status(self) -> Status {
        match self.0 & STATUS {
            0 => Status::Healthy,
            1 => Status::MostlyHealthy,
            2 => Status::MostlyUnhealthy,
            _ => Status::Unhealthy,
        }
    }

    fn with(self, status: Status) -> Self {
        let bits = match status {
            Status::Healthy => 0,
            Status::MostlyHealthy => 1,
            Status::MostlyUnhealthy => 2,
            Status::Unhealthy => 3,
        };
        Self(self.0 & !STATUS | bits)
    }

    #[expect(clippy::cast_possible_truncation, reason = "it is the low byte that counts")]
    const fn counter(self, verdict: Verdict) -> u8 {
        (self.0 >> verdict.shift()) as u8
    }

    /// After one more try: lua-resty-healthcheck's rules, which are APISIX's. `limit` 0 counts nothing.
    fn after(self, verdict: Verdict, limit: u8) -> Self {
        let status = self.status();
        let is_success = verdict == Verdict::Success;
        let nothing_new = if is_success { Status::Healthy } else { Status::Unhealthy };
        if limit == 0 || status == nothing_new {
            return self;
        }
        let count = self.counter(verdict).saturating_add(1);
        // A success ends a row of failures, and a failure one of successes.
        let ended = if is_success { FAILURES } else { SUCCESSES };
        let counted = self.0 & !ended & !(0xff << verdict.shift());
        let word = Self(counted | u64::from(count) << verdict.shift());
        match (is_success, status) {
            _ if count >= limit => word.with(nothing_new),
            (true, Status::Unhealthy) => word.with(Status::MostlyUnhealthy),
            (false, Status::Healthy) => word.with(Status::MostlyHealthy),
            _ => word,
        }
    }
}

/// A status became another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::upstream) struct Change {
    pub(in crate::upstream) from: Status,
    pub(in crate::upstream) to: Status,
}

/// What is known of an endpoint's health. It outlives revisions.
#[derive(Debug, Default)]
pub(in crate::upstream) struct Condition {
    word: AtomicU64,
    /// Failures one after the other.
    consecutive: AtomicU32,
    /// How often it was ejected of late.
    pub(in crate::upstream) ejections: AtomicU32,
    /// Requests of this interval, and in the upper half those that failed.
    volume: AtomicU64,
    /// See [`super::warmup`].
    pub(super) warming: AtomicU64,
    pub(super) turns: AtomicU32,
}

impl Condition {
    /// May it get requests, by its checks and as far as it is not ejected?
    pub(in crate::upstream) fn is_usable(&self) -> bool {
        self.word.load(Ordering::Relaxed) & (OUT_OF_ORDER | EJECTED) == 0
    }

    /// How healthy it is by its checks.
    pub(in crate::upstream) fn status(&self) -> Status {
        Word(self.word.load(Ordering::Relaxed)).status()
    }

    pub(super) fn counters(&self) -> Counters {
        let word = Word(self.word.load(Ordering::Relaxed));
        Counters {
            success: word.counter(Verdict::Success),
            http_failure: word.counter(Verdict::HttpFailure),
            tcp_failure: word.counter(Verdict::TcpFailure),
            timeout: word.counter(Verdict::Timeout),
        }
    }

    /// Counts one try; tells when the status changed.
    pub(in crate::upstream) fn judge(&self, verdict: Verdict, limit: u8) -> Option<Change> {
        let mut before = self.word.load(Ordering::Relaxed);
        loop {
            let after = Word(before).after(verdict, limit);
            // The common case: a success of a healthy endpoint writes nothing.
            if after.0 == before {
                return None;
            }
            let order = Ordering::Relaxed;
            match self.word.compare_exchange_weak(before, after.0, order, order) {
                Ok(_) => {
                    let (from, to) = (Word(before).status(), after.status());
                    return (from != to).then_some(Change { from, to });
                }
                Err(now) => before = now,
            }
        }
    }

    /// Nobody checks it any more: it is as good as any. `true` when it was not.
    pub(in crate::upstream) fn forget_checks(&self) -> bool {
        self.word.fetch_and(EJECTED, Ordering::Relaxed) & OUT_OF_ORDER != 0
    }

    /// Takes it out, or back in; `false` when it was that way already.
    pub(in crate::upstream) fn set_ejected(&self, is_ejected: bool) -> bool {
        let before = match is_ejected {
            true => self.word.fetch_or(EJECTED, Ordering::Relaxed),
            false => self.word.fetch_and(!EJECTED, Ordering::Relaxed),
        };
        (before & EJECTED != 0) != is_ejected
    }

    pub(in crate::upstream) fn is_ejected(&self) -> bool {
        self.word.load(Ordering::Relaxed) & EJECTED != 0
    }

    /// One more request, failed or not; gives how many have failed one after the other.
    pub(in crate::upstream) fn count(&self, has_failed: bool, volume: bool) -> u32 {
        if volume {
            self.volume.fetch_add(1 | u64::from(has_failed) << 32, Ordering::Relaxed);
        }
        if has_failed {
            return self.consecutive.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        }
        // A load is shared by all who read; a store is not.
        if self.consecutive.load(Ordering::Relaxed) != 0 {
            self.consecutive.store(0, Ordering::Relaxed);
        }
        0
    }

    /// A row of failures is over.
    pub(in crate::upstream) fn end_row(&self) {
        self.consecutive.store(0, Ordering::Relaxed);
    }

    /// The requests of the interval that is over, and those of them that failed.
    #[expect(clippy::cast_possible_truncation, reason = "it is two halves")]
    pub(in crate::upstream) fn take_volume(&self) -> (u32, u32) {
        let volume = self.volume.swap(0, Ordering::Relaxed);
        (volume as u32, (volume >> 32) as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: (Verdict, u8) = (Verdict::Success, 2);
    const H: (Verdict, u8) = (Verdict::HttpFailure, 3);
    const T: (Verdict, u8) = (Verdict::TcpFailure, 2);
    const L: (Verdict, u8) = (Verdict::Timeout, 2);

    fn after(tries: &[(Verdict, u8)]) -> Condition {
        let condition = Condition::default();
        for (verdict, limit) in tries {
            condition.judge(*verdict, *limit);
        }
        condition
    }

    #[test]
    fn thresholds_move_an_endpoint_between_the_four_statuses() {
        use Status::{Healthy, MostlyHealthy, MostlyUnhealthy, Unhealthy};
        for (tries, status) in [
            (&[][..], Healthy),
            (&[S], Healthy),
            (&[H], MostlyHealthy),
            (&[H, H], MostlyHealthy),
            (&[H, H, H], Unhealthy),
            // Each kind of failure has its own counter; they do not add up.
            (&[H, H, T, L], MostlyHealthy),
            (&[T, T], Unhealthy),
            (&[T, H, T], Unhealthy),
            (&[L, L], Unhealthy),
            // A success ends a row of failures.
            (&[H, H, S, H, H], MostlyHealthy),
            (&[T, S, T], MostlyHealthy),
            (&[H, S, S], Healthy),
            (&[H, S], MostlyHealthy),
            (&[T, T, S], MostlyUnhealthy),
            (&[T, T, S, S], Healthy),
            // And a failure one of successes.
            (&[T, T, S, H, S], MostlyUnhealthy),
            (&[T, T, S, T], MostlyUnhealthy),
            (&[T, T, S, T, T], Unhealthy),
            (&[T, T, S, T, T, S, S], Healthy),
            (&[(Verdict::HttpFailure, 0); 9], Healthy),
            (&[(Verdict::HttpFailure, 1)], Unhealthy),
        ] {
            let condition = after(tries);
            assert_eq!(condition.status(), status, "{tries:?}");
            assert_eq!(condition.is_usable(), status.is_usable(), "{tries:?}");
        }
    }

    #[test]
    fn a_change_is_told_once_and_counters_are_shown_as_they_stand() {
        let condition = Condition::default();
        let judge = |(verdict, limit): (Verdict, u8)| condition.judge(verdict, limit);
        assert_eq!(judge(S), None);
        let change = |from, to| Some(Change { from, to });
        assert_eq!(judge(T), change(Status::Healthy, Status::MostlyHealthy));
        assert_eq!(judge(T), change(Status::MostlyHealthy, Status::Unhealthy));
        assert_eq!(judge(T), None);
        let counters = Counters { tcp_failure: 2, ..Counters::default() };
        assert_eq!(condition.counters(), counters);
        assert_eq!(judge(S), change(Status::Unhealthy, Status::MostlyUnhealthy));
        assert_eq!(condition.counters(), Counters { success: 1, ..Counters::default() });
        assert!(condition.forget_checks() && !condition.forget_checks());
        assert_eq!((condition.status(), condition.counters()), Default::default());
    }

    #[test]
    fn counters_do_not_run_over() {
        let condition = after(&[(Verdict::HttpFailure, 254); 600]);
        assert_eq!(condition.counters().http_failure, 254);
        let condition = after(&[(Verdict::HttpFailure, 1), (Verdict::Success, 0)]);
        assert_eq!(condition.status(), Status::Unhealthy);
    }

    #[test]
    fn ejection_stands_beside_the_checks() {
        let condition = after(&[H]);
        assert!(condition.set_ejected(true) && !condition.set_ejected(true));
        assert!(!condition.is_usable() && condition.status().is_usable());
        assert!(condition.judge(S.0, 1).is_some() && condition.is_ejected());
        assert!(!condition.forget_checks() && condition.is_ejected());
        assert!(condition.set_ejected(false) && condition.is_usable());
    }

    #[test]
    fn rows_and_volumes_of_failures_are_counted() {
        let condition = Condition::default();
        assert_eq!(
            [true, true, false, true].map(|failed| condition.count(failed, true)),
            [1, 2, 0, 1]
        );
        assert_eq!(condition.take_volume(), (4, 3));
        assert_eq!(condition.take_volume(), (0, 0));
    }
}
