//! `Freshness`: since when nothing was heard from where the configuration comes from; and routes that bear only so much of that.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::pipeline::{Fault, Side};
use crate::rt::coarse_unix_millis;

/// Whether what is in force is what is declared now, as far as this process can tell. Without a feed it always is.
#[derive(Debug, Default)]
pub struct Freshness {
    /// Milliseconds since 1970 of the last word from the source; 0 while it answers.
    silent_since: AtomicU64,
}

impl Freshness {
    /// The source answers: what is in force is what it has declared.
    pub fn confirm(&self) {
        self.silent_since.store(0, Ordering::Relaxed);
    }

    /// Nothing is heard any more, since so many seconds after 1970.
    pub fn silent_since(&self, unix_seconds: i64) {
        let millis = u64::try_from(unix_seconds).unwrap_or_default().saturating_mul(1000);
        self.silent_since.store(millis.max(1), Ordering::Relaxed);
    }

    /// How long nothing was heard, in milliseconds; 0 while the source answers.
    pub fn age(&self, now_millis: u64) -> u64 {
        match self.silent_since.load(Ordering::Relaxed) {
            0 => 0,
            since => now_millis.saturating_sub(since).max(1),
        }
    }

    /// A limit of so many seconds on it.
    pub(super) fn limited_to(self: &Arc<Self>, seconds: NonZeroU32) -> AgeLimit {
        AgeLimit { limit: u64::from(seconds.get()) * 1000, of: self.clone() }
    }
}

/// The longest silence that a route bears.
#[derive(Clone, Debug)]
pub(super) struct AgeLimit {
    /// Milliseconds.
    limit: u64,
    of: Arc<Freshness>,
}

impl AgeLimit {
    /// Why the route answers nobody at present, if so.
    pub(super) fn fault(&self) -> Option<Fault> {
        let age = self.of.age(coarse_unix_millis());
        (age > self.limit).then(|| Fault {
            side: Side::Gateway,
            status: 503,
            sentence: "the configuration is older than the route allows",
            cause: format!(
                "nothing was heard from the configuration's source for {} s, and max_config_age is {} s",
                age / 1000,
                self.limit / 1000
            ),
            retry: false,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_counts_from_the_last_word_and_ends_with_the_next() {
        let freshness = Arc::new(Freshness::default());
        let limit = freshness.limited_to(NonZeroU32::new(60).unwrap());
        assert_eq!(freshness.age(u64::MAX), 0, "without a feed nothing grows old");
        freshness.silent_since(1000);
        assert_eq!(freshness.age(1_000_000 + 61_000), 61_000);
        assert_eq!(freshness.age(5), 1, "a clock that was set back makes nothing fresh");
        let fault = limit.fault().expect("that was long ago");
        assert_eq!(fault.status, 503);
        assert!(fault.cause.contains("max_config_age is 60 s"), "{}", fault.cause);
        freshness.confirm();
        assert!(limit.fault().is_none());
    }
}
