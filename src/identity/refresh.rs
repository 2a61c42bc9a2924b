//! `Refresh`: whoever meets a key that our bundles do not know asks their source for newer ones, not too often.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use super::TrustDomain;

/// One forced refresh in this time for each trust domain: whoever makes up key IDs causes no more.
const AT_MOST_EVERY: Duration = Duration::from_secs(10);
/// How long a caller waits for it.
const WITHIN: Duration = Duration::from_secs(3);

/// Asks the sources of bundles for the newest. Cheap to copy; the default one has no source behind it.
#[derive(Clone, Debug, Default)]
pub struct Refresh(Option<Arc<Line>>);

#[derive(Debug)]
struct Line {
    asked: watch::Sender<u64>,
    served: watch::Sender<u64>,
    last: Mutex<HashMap<TrustDomain, Instant>>,
}

impl Refresh {
    /// A line to a source, and the source's end of it.
    pub fn new() -> (Self, Refreshing) {
        let (asked, hearing) = watch::channel(0);
        let (served, _) = watch::channel(0);
        let line = Arc::new(Line { asked, served, last: Mutex::default() });
        (Self(Some(line.clone())), Refreshing { hearing, line })
    }

    /// Asks for newer bundles because of `domain` and waits until they were looked for: `true` when it is worth looking again.
    ///
    /// `false` at once when nobody can look, or somebody has looked for this trust domain a moment ago.
    pub async fn ask(&self, domain: &TrustDomain) -> bool {
        let Some(line) = &self.0 else { return false };
        let mut served = line.served.subscribe();
        {
            let mut last = line.last.lock();
            let now = Instant::now();
            if last.get(domain).is_some_and(|at| now.duration_since(*at) < AT_MOST_EVERY) {
                return false;
            }
            last.insert(domain.clone(), now);
        }
        line.asked.send_modify(|count| *count += 1);
        matches!(timeout(WITHIN, served.changed()).await, Ok(Ok(())))
    }
}

/// The source's end of a [`Refresh`].
#[derive(Debug)]
pub struct Refreshing {
    hearing: watch::Receiver<u64>,
    line: Arc<Line>,
}

impl Refreshing {
    /// Waits until somebody asks.
    pub async fn asked(&mut self) {
        if self.hearing.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// The newest bundles are in force now, or cannot be had.
    pub fn served(&self) {
        self.line.served.send_modify(|count| *count += 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rt::Tasks;

    #[tokio::test(start_paused = true)]
    async fn rule_125_one_forced_refresh_for_a_trust_domain_and_no_more_for_a_while() {
        let (refresh, mut source) = Refresh::new();
        let domain = "a.test".parse().unwrap();
        let mut tasks = Tasks::new();
        tasks.add(async move {
            loop {
                source.asked().await;
                source.served();
            }
        });
        assert!(refresh.ask(&domain).await);
        for _ in 0..100 {
            assert!(!refresh.ask(&domain).await, "125 rate-limited");
        }
        assert!(refresh.ask(&"b.test".parse().unwrap()).await, "125 each domain by itself");
        tokio::time::advance(AT_MOST_EVERY).await;
        assert!(refresh.ask(&domain).await);
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_for_ever_and_nobody_for_nothing() {
        let domain = "a.test".parse().unwrap();
        assert!(!Refresh::default().ask(&domain).await);
        let (refresh, _mute) = Refresh::new();
        assert!(!refresh.ask(&domain).await);
    }
}
