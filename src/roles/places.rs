//! Where control planes are, and which of them a connection goes to.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;

/// How long an address has to be reached before the next one is asked beside it: a host that is gone does not refuse.
pub(super) const HEAD_START: Duration = Duration::from_millis(300);

/// The addresses of control planes that serve one store. Clones share which one was reached last.
#[derive(Clone, Debug)]
pub(super) struct Places {
    addresses: Arc<[String]>,
    /// Where the next search begins: behind the one that was reached last, which is left for a reason.
    next: Arc<AtomicUsize>,
    /// The one that was reached last, counted from 1; 0 before that.
    reached: Arc<AtomicUsize>,
}

impl Places {
    /// Begins with one by chance, so that a fleet spreads over its control planes.
    pub(super) fn new(addresses: &[String]) -> Self {
        let next = fastrand::usize(..addresses.len().max(1));
        Self { addresses: addresses.into(), next: Arc::new(next.into()), reached: Arc::default() }
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.addresses.len()
    }

    /// The one that was reached last; all of them before that.
    pub(super) fn told(&self) -> String {
        let reached = self.reached.load(Ordering::Relaxed);
        let reached = reached.checked_sub(1).and_then(|at| self.addresses.get(at));
        reached.cloned().unwrap_or_else(|| self.addresses.join(", "))
    }

    /// Connects to one of them: asks one after the other, the next one when the one before has failed or has not answered within
    /// [`HEAD_START`]; the first that answers wins.
    pub(super) async fn reach<'p, T, F>(&'p self, dial: impl Fn(&'p str) -> F) -> io::Result<T>
    where
        F: Future<Output = io::Result<T>>,
    {
        let count = self.count();
        let first = self.next.load(Ordering::Relaxed);
        let mut untried = (0..count).map(|step| (first + step) % count);
        let mut attempts = FuturesUnordered::new();
        let mut failures: Vec<(&str, io::Error)> = Vec::new();
        loop {
            if let Some(at) = untried.next() {
                let address = &*self.addresses[at];
                let attempt = dial(address);
                attempts.push(async move { (at, attempt.await) });
            } else if attempts.is_empty() {
                return Err(told_of(failures));
            }
            let others = untried.len() > 0;
            tokio::select! {
                Some((at, outcome)) = attempts.next() => match outcome {
                    Ok(reached) => {
                        self.next.store((at + 1) % count, Ordering::Relaxed);
                        self.reached.store(at + 1, Ordering::Relaxed);
                        return Ok(reached);
                    }
                    Err(error) => failures.push((&*self.addresses[at], error)),
                },
                () = tokio::time::sleep(HEAD_START), if others => {}
            }
        }
    }
}

/// One address needs no name in its error: whoever tells it names it.
fn told_of(mut failures: Vec<(&str, io::Error)>) -> io::Error {
    if failures.len() == 1
        && let Some((_, error)) = failures.pop()
    {
        return error;
    }
    let all: Vec<String> =
        failures.iter().map(|(address, error)| format!("{address}: {error}")).collect();
    io::Error::other(all.join("; "))
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use tokio::time::Instant;

    use super::*;
    use crate::sync::scope::Role;
    use crate::sync::subscriber::Settings;

    fn three() -> Places {
        let places = Places::new(&["a:1", "b:1", "c:1"].map(str::to_owned));
        places.next.store(0, Ordering::Relaxed);
        places
    }

    /// What becomes of a connection to an address.
    enum Fate {
        Answers,
        Refuses,
        Silent,
    }

    async fn reach(
        places: &Places,
        fate: impl Fn(&str) -> Fate,
    ) -> (io::Result<String>, Vec<String>) {
        let asked = Mutex::new(Vec::new());
        let reached = places.reach(|address| {
            asked.lock().unwrap().push(address.to_owned());
            let fate = fate(address);
            async move {
                match fate {
                    Fate::Answers => Ok(address.to_owned()),
                    Fate::Refuses => Err(io::Error::other("refused")),
                    Fate::Silent => std::future::pending().await,
                }
            }
        });
        let reached = reached.await;
        (reached, asked.into_inner().unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn the_next_one_is_asked_at_once_when_one_refuses_and_soon_when_one_is_silent() {
        let places = three();
        assert_eq!(places.told(), "a:1, b:1, c:1");
        let (reached, asked) = reach(&places, |_| Fate::Answers).await;
        assert_eq!((reached.unwrap(), asked.len()), ("a:1".to_owned(), 1));
        assert_eq!(places.told(), "a:1");

        // The one that was left is asked last.
        let began = Instant::now();
        let refuses = |address: &str| if address == "b:1" { Fate::Refuses } else { Fate::Answers };
        let (reached, asked) = reach(&places, refuses).await;
        assert_eq!((reached.unwrap(), asked), ("c:1".to_owned(), vec!["b:1".into(), "c:1".into()]));
        assert_eq!(began.elapsed(), Duration::ZERO);

        let began = Instant::now();
        let silent = |address: &str| if address == "a:1" { Fate::Silent } else { Fate::Answers };
        let (reached, _) = reach(&places, silent).await;
        assert_eq!(reached.unwrap(), "b:1");
        assert!(began.elapsed() >= HEAD_START && began.elapsed() < HEAD_START * 2);
    }

    #[tokio::test(start_paused = true)]
    async fn when_nobody_answers_the_error_says_so_of_each() {
        let places = three();
        let (reached, asked) = reach(&places, |_| Fate::Refuses).await;
        assert_eq!(asked.len(), 3);
        assert_eq!(reached.unwrap_err().to_string(), "a:1: refused; b:1: refused; c:1: refused");
        let alone = Places::new(&["a:1".to_owned()]);
        let (reached, _) = reach(&alone, |_| Fate::Refuses).await;
        assert_eq!(reached.unwrap_err().to_string(), "refused");
        assert_eq!(alone.told(), "a:1");
    }

    #[test]
    fn our_own_timers_leave_time_for_a_connection_within_the_two_seconds() {
        let settings = Settings::new(Role::Sidecar, "node").with_others(1);
        let longest = settings.leaves_within() + HEAD_START;
        assert!(longest <= Duration::from_millis(1_900), "{longest:?}");
    }
}
