//! The recent past of a local store: what a watch has to tell a reader that stands at some revision.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};

use super::{Error, Event, Listing};
use crate::model::Revision;

/// So many changes are remembered; a reader that is further behind gets a `Reset`.
const REMEMBERED: usize = 4096;

/// The last changes in order, and a bell that rings at each.
pub(super) struct History {
    /// Changes after `floor`, in order, shared with the readers.
    log: VecDeque<Arc<Event>>,
    /// The newest revision that is no longer in the log.
    floor: Revision,
    /// The newest revision of all.
    bell: watch::Sender<Revision>,
}

impl History {
    /// A history that starts after `revision`.
    pub(super) fn new(revision: Revision) -> Self {
        Self { log: VecDeque::new(), floor: revision, bell: watch::channel(revision).0 }
    }

    /// Notes a change.
    pub(super) fn push(&mut self, event: Event) {
        let revision = event.revision();
        if self.log.len() == REMEMBERED
            && let Some(oldest) = self.log.pop_front()
        {
            self.floor = oldest.revision();
        }
        self.log.push_back(Arc::new(event));
        self.bell.send_replace(revision);
    }

    /// Forgets everything so far, as etcd does when it is compacted.
    pub(super) fn compact(&mut self) {
        self.log.clear();
        self.floor = *self.bell.borrow();
    }

    /// What a reader must be told that stands at `from`; `None` when that is not known any more.
    fn after(&self, from: Revision) -> Option<Vec<Arc<Event>>> {
        if from < self.floor || from > *self.bell.borrow() {
            return None;
        }
        let start = self.log.partition_point(|event| event.revision() <= from);
        Some(self.log.iter().skip(start).cloned().collect())
    }
}

/// A local store, as its watches see it.
#[async_trait]
pub(super) trait Remembers: Send + Sync + 'static {
    /// The recent past.
    fn history(&self) -> &Mutex<History>;
    /// All entries below a prefix.
    async fn everything(self: Arc<Self>, prefix: &str) -> Result<Listing, Error>;
}

/// Feeds a watch. It does not keep the store alive: when the store goes, the watch ends.
pub(super) async fn feed<S: Remembers>(
    store: Weak<S>,
    prefix: String,
    mut from: Revision,
    events: mpsc::Sender<Event>,
) {
    let Some(mut bell) = store.upgrade().map(|store| store.history().lock().bell.subscribe())
    else {
        return;
    };
    loop {
        let Some(open) = store.upgrade() else { return };
        let news = if from == 0 { None } else { open.history().lock().after(from) };
        let told = match news {
            Some(news) => news,
            None => match open.clone().everything(&prefix).await {
                Ok(listing) => vec![Arc::new(Event::Reset(listing))],
                Err(error) => {
                    tracing::error!(%error, "the watched store cannot be read; trying again");
                    drop(open);
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    continue;
                }
            },
        };
        drop(open);
        for event in told {
            from = event.revision();
            let concerns = match &*event {
                Event::Put(stored) => stored.key.starts_with(&prefix),
                Event::Delete { key, .. } => key.starts_with(&prefix),
                Event::Reset(_) => true,
            };
            if concerns && events.send(Event::clone(&event)).await.is_err() {
                return;
            }
        }
        // The bell may have rung while we were telling; then this returns at once.
        if bell.wait_for(|newest| *newest > from).await.is_err() {
            return;
        }
    }
}
