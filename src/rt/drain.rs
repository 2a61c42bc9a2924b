//! `Drain`: ask everyone to finish, wait, then insist.

use std::time::Duration;

use tokio::sync::{mpsc, watch};

/// Starts the end of something: connections, listeners, a whole role.
///
/// Whoever must be waited for holds a [`DrainGuard`]. `drain` asks all of them to finish and
/// waits until the last guard is dropped or the time is over.
#[derive(Debug)]
pub struct Drain {
    asked: watch::Sender<bool>,
    alive: mpsc::Sender<()>,
    last: mpsc::Receiver<()>,
}

/// Held by work that must be allowed to finish. Clone it for each piece of work.
#[derive(Clone, Debug)]
pub struct DrainGuard {
    asked: watch::Receiver<bool>,
    _alive: mpsc::Sender<()>,
}

impl Default for Drain {
    fn default() -> Self {
        Self::new()
    }
}

impl Drain {
    /// A drain that nobody has asked for yet.
    pub fn new() -> Self {
        let (alive, last) = mpsc::channel(1);
        Self { asked: watch::channel(false).0, alive, last }
    }

    /// A guard for one more piece of work.
    pub fn guard(&self) -> DrainGuard {
        DrainGuard { asked: self.asked.subscribe(), _alive: self.alive.clone() }
    }

    /// Asks all guards to finish and waits for them, at most `within`.
    ///
    /// `true` when all have finished; `false` when some are still at work and must be cut off.
    pub async fn drain(self, within: Duration) -> bool {
        let Self { asked, alive, mut last } = self;
        let _ = asked.send(true);
        drop(alive);
        tokio::time::timeout(within, last.recv()).await.is_ok()
    }
}

impl DrainGuard {
    /// Waits until the end is asked for.
    pub async fn asked(&mut self) {
        // An error means that the Drain itself is gone, which asks for the end as well.
        let _ = self.asked.wait_for(|asked| *asked).await;
    }

    /// Has the end been asked for?
    pub fn is_asked(&self) -> bool {
        *self.asked.borrow() || self.asked.has_changed().is_err()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn drain_waits_for_the_last_guard_and_tells_when_it_gave_up() {
        let drain = Drain::new();
        let mut guard = drain.guard();
        let work = crate::rt::spawn(async move {
            guard.asked().await;
            assert!(guard.is_asked());
        });
        assert!(drain.drain(Duration::from_secs(5)).await);
        work.await.unwrap();

        let drain = Drain::new();
        let _stuck = drain.guard();
        assert!(!drain.drain(Duration::from_millis(10)).await);
    }
}
