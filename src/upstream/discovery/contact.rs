//! `Contact`: whether a registry answers, said once a change, and how long to leave it alone when it does not.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::Error;
use crate::rt::{Backoff, causes};

/// What comes as fast as this after one another is done once.
pub(super) const GATHER: Duration = Duration::from_millis(20);

/// Whether a registry answers.
pub(super) struct Contact {
    registry: &'static str,
    server: String,
    backoff: Backoff,
    is_lost: bool,
    /// How many of those who ask the same server are without an answer.
    without: Arc<AtomicUsize>,
}

impl Contact {
    /// As long as nothing else is known it answers. After failures it is left alone for half a second, and for `at_most` when
    /// they go on.
    pub(super) fn with(registry: &'static str, server: &str, at_most: Duration) -> Self {
        let first = Duration::from_millis(500).min(at_most);
        Self {
            registry,
            server: server.to_owned(),
            backoff: Backoff::new(first, at_most),
            is_lost: false,
            without: Arc::default(),
        }
    }

    /// For somebody else who asks the same server: what befalls both is said once.
    pub(super) fn beside(&self) -> Self {
        Self {
            server: self.server.clone(),
            backoff: self.backoff.clone(),
            without: self.without.clone(),
            ..*self
        }
    }

    /// It answered.
    pub(super) fn holds(&mut self) {
        self.backoff.reset();
        if std::mem::take(&mut self.is_lost) && self.without.fetch_sub(1, Ordering::Relaxed) == 1 {
            let (registry, server) = (self.registry, &self.server);
            tracing::info!(registry, server, "the registry answers again");
        }
    }

    /// It did not answer, or not as it should; gives how long to leave it alone.
    pub(super) fn lost(&mut self, error: &Error) -> Duration {
        let is_news = !std::mem::replace(&mut self.is_lost, true);
        if is_news && self.without.fetch_add(1, Ordering::Relaxed) == 0 {
            tracing::warn!(
                registry = self.registry,
                server = self.server,
                error = causes(error),
                "the registry does not answer as it should; what is known stays"
            );
        }
        self.backoff.next()
    }
}
