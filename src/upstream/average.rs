//! `Average`: an exponentially weighted moving average of times, which follows a peak at once.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// After so many seconds a time counts for 1/e of what it did, as in APISIX and Finagle.
const DECAY_SECONDS: f32 = 10.0;

/// A moment, in hundredths of a second since some moment of this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tick(u32);

impl Tick {
    pub(super) fn now() -> Self {
        static START: LazyLock<Instant> = LazyLock::new(Instant::now);
        #[expect(clippy::cast_possible_truncation, reason = "it goes around after 497 days")]
        Self((START.elapsed().as_millis() / 10) as u32)
    }

    #[cfg(test)]
    pub(super) fn of(hundredths: u32) -> Self {
        Self(hundredths)
    }

    /// Seconds since `earlier`; 0 when that is later.
    fn since(self, earlier: Self) -> f32 {
        #[expect(clippy::cast_possible_wrap, reason = "the sign tells which one is later")]
        let hundredths = self.0.wrapping_sub(earlier.0) as i32;
        #[expect(clippy::cast_precision_loss, reason = "seconds are enough")]
        let seconds = hundredths.max(0) as f32 / 100.0;
        seconds
    }
}

/// Seconds and the tick at which they were noted, in one word: no lock, and no torn pair.
#[derive(Debug, Default)]
pub(super) struct Average(AtomicU64);

impl Average {
    /// What it is by then. It fades, so that a node which was slow once is tried again.
    pub(super) fn at(&self, now: Tick) -> f32 {
        let (seconds, noted) = unpack(self.0.load(Ordering::Relaxed));
        faded(seconds, noted, now)
    }

    /// Takes one more time in: a longer one counts at once, a shorter one the more the longer ago the last one was.
    pub(super) fn note(&self, took: Duration, now: Tick) {
        let took = took.as_secs_f32();
        let next = |word| {
            let (seconds, noted) = unpack(word);
            let average = match took > seconds {
                true => took,
                false => {
                    let old = (-now.since(noted) / DECAY_SECONDS).exp();
                    seconds * old + took * (1.0 - old)
                }
            };
            Some(pack(average, now))
        };
        let _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next);
    }
}

fn faded(seconds: f32, noted: Tick, now: Tick) -> f32 {
    seconds * (-now.since(noted) / DECAY_SECONDS).exp()
}

fn pack(seconds: f32, at: Tick) -> u64 {
    u64::from(seconds.to_bits()) << 32 | u64::from(at.0)
}

fn unpack(word: u64) -> (f32, Tick) {
    #[expect(clippy::cast_possible_truncation, reason = "the two halves of the word")]
    let (seconds, at) = ((word >> 32) as u32, word as u32);
    (f32::from_bits(seconds), Tick(at))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peak_counts_at_once_and_fades() {
        let average = Average::default();
        assert!(average.at(Tick::of(0)).abs() < f32::EPSILON);
        average.note(Duration::from_millis(10), Tick::of(100));
        assert!((average.at(Tick::of(100)) - 0.01).abs() < 1e-6);
        average.note(Duration::from_secs(2), Tick::of(100));
        assert!((average.at(Tick::of(100)) - 2.0).abs() < 1e-6, "a longer one counts wholly");
        average.note(Duration::from_millis(10), Tick::of(101));
        assert!(average.at(Tick::of(101)) > 1.9, "a short one soon after it hardly does");
        assert!((average.at(Tick::of(1101)) / average.at(Tick::of(101)) - 0.368).abs() < 0.01);
        average.note(Duration::from_millis(10), Tick::of(6000));
        assert!(average.at(Tick::of(6000)) < 0.05, "after a minute it is all that counts");
    }

    #[test]
    fn ticks_go_around() {
        assert!((Tick::of(49).since(Tick::of(u32::MAX - 50)) - 1.0).abs() < 1e-6);
        assert!(Tick::of(1).since(Tick::of(2)).abs() < f32::EPSILON);
    }
}
