//! Tasks with an owner: the one place of the house that spawns.

use std::future::{Future, poll_fn};
use std::task::Poll;

use tokio::task::{JoinHandle, JoinSet};

/// Spawns `work` on the current runtime. The caller owns the handle and waits for it or aborts it.
#[expect(clippy::disallowed_methods, reason = "the one lawful place; callers own the handle")]
pub fn spawn<F>(work: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    tokio::spawn(work)
}

/// Background tasks that end with their owner: dropping this aborts them all.
#[derive(Debug, Default)]
pub struct Tasks {
    set: JoinSet<()>,
}

impl Tasks {
    /// No tasks yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Runs `work` until it ends or until the owner is dropped.
    pub fn add(&mut self, work: impl Future<Output = ()> + Send + 'static) {
        self.set.spawn(work);
    }

    /// Waits until one of the tasks ends; pending for ever when there is none.
    pub async fn any_ended(&mut self) {
        if self.set.join_next().await.is_none() {
            std::future::pending::<()>().await;
        }
    }
}

/// Lets the tasks of this thread that are ready now go first.
///
/// Who has made something to send and waits a turn sends together with the others. Then whoever runs on another core is waked once for
/// all of it: to wake it costs more than to send, and one that still has something to do needs no waking.
pub fn turn() -> impl Future<Output = ()> + Send {
    let mut is_over = false;
    poll_fn(move |context| {
        if std::mem::replace(&mut is_over, true) {
            return Poll::Ready(());
        }
        // Not tokio's `yield_now`, which looks for events of the system first.
        context.waker().wake_by_ref();
        Poll::Pending
    })
}
