//! A store that lives as long as its process: for tests and for the demo.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::history::{self, History, Remembers};
use super::image::{Image, ImageEntry};
use super::{Commit, Error, Event, Listing, MAX_TTL, Store, Stored, Watch, Write, Written};
use crate::model::Revision;
use crate::rt::Tasks;

/// The store. Its state is gone when it is dropped.
pub struct Memory {
    inner: Arc<Inner>,
    /// Removes what has a time to live; made with the first such entry.
    sweeper: Mutex<Option<Tasks>>,
}

struct Inner {
    state: Mutex<State>,
    history: Mutex<History>,
    deadlines: Notify,
}

struct State {
    entries: BTreeMap<String, (Stored, Option<Instant>)>,
    revision: Revision,
}

impl Default for Memory {
    fn default() -> Self {
        Self::new()
    }
}

impl Memory {
    /// An empty store at revision 1, as a new etcd is.
    pub fn new() -> Self {
        let inner = Inner {
            state: Mutex::new(State { entries: BTreeMap::new(), revision: 1 }),
            history: Mutex::new(History::new(1)),
            deadlines: Notify::new(),
        };
        Self { inner: Arc::new(inner), sweeper: Mutex::new(None) }
    }

    /// Forgets the past: watches that are behind start again with a `Reset`.
    pub fn compact(&self) {
        self.inner.history.lock().compact();
    }
}

impl Inner {
    fn commit(&self, writes: Vec<Write>) -> Result<Commit, Error> {
        let mut state = self.state.lock();
        let modified_of =
            |state: &State, key: &str| state.entries.get(key).map(|(stored, _)| stored.modified);
        if writes.iter().any(|write| !write.expect.holds(modified_of(&state, &write.key))) {
            return Err(Error::Conflict);
        }
        let revision = state.revision + 1;
        // One lock for all: a reader sees the whole of a revision.
        let mut history = self.history.lock();
        let mut written = Vec::with_capacity(writes.len());
        for Write { key, value, ttl, .. } in writes {
            let before = state.entries.remove(&key);
            let Some(value) = value else {
                written.push(match before {
                    Some(_) => {
                        history.push(Event::Delete { key, revision });
                        Written::Removed
                    }
                    None => Written::WasAbsent,
                });
                continue;
            };
            let created = before.map_or(revision, |(stored, _)| stored.created);
            let stored = Stored { key: key.clone(), value, created, modified: revision };
            let until = ttl.map(|ttl| Instant::now() + Duration::from_secs(ttl).min(MAX_TTL));
            state.entries.insert(key, (stored.clone(), until));
            history.push(Event::Put(stored.clone()));
            written.push(Written::Put(stored));
        }
        if written.iter().any(|written| *written != Written::WasAbsent) {
            state.revision = revision;
        }
        Ok(Commit { revision: state.revision, written })
    }

    fn remove(&self, state: &mut State, key: &str) {
        state.revision += 1;
        state.entries.remove(key);
        let event = Event::Delete { key: key.to_owned(), revision: state.revision };
        self.history.lock().push(event);
    }

    /// Removes what is over and tells when the next entry will be.
    fn sweep(&self) -> Option<Instant> {
        let mut state = self.state.lock();
        let now = Instant::now();
        let over: Vec<String> = state
            .entries
            .iter()
            .filter(|(_, (_, until))| until.is_some_and(|until| until <= now))
            .map(|(key, _)| key.clone())
            .collect();
        for key in over {
            self.remove(&mut state, &key);
        }
        state.entries.values().filter_map(|(_, until)| *until).min()
    }

    async fn sweep_for_ever(self: Arc<Self>) {
        loop {
            match self.sweep() {
                Some(next) => tokio::select! {
                    () = tokio::time::sleep_until(next) => {}
                    () = self.deadlines.notified() => {}
                },
                None => self.deadlines.notified().await,
            }
        }
    }
}

#[async_trait]
impl Remembers for Inner {
    fn history(&self) -> &Mutex<History> {
        &self.history
    }

    async fn everything(self: Arc<Self>, prefix: &str) -> Result<Listing, Error> {
        let state = self.state.lock();
        let entries = state
            .entries
            .range(prefix.to_owned()..)
            .take_while(|(key, _)| key.starts_with(prefix))
            .map(|(_, (stored, _))| stored.clone())
            .collect();
        Ok(Listing { entries, revision: state.revision })
    }
}

#[async_trait]
impl Store for Memory {
    async fn get(&self, key: &str) -> Result<Option<Stored>, Error> {
        Ok(self.inner.state.lock().entries.get(key).map(|(stored, _)| stored.clone()))
    }

    async fn list(&self, prefix: &str) -> Result<Listing, Error> {
        self.inner.clone().everything(prefix).await
    }

    async fn commit(&self, writes: Vec<Write>) -> Result<Commit, Error> {
        let has_deadline = writes.iter().any(|write| write.ttl.is_some());
        let commit = self.inner.commit(writes)?;
        if has_deadline {
            self.sweeper.lock().get_or_insert_with(|| {
                let mut tasks = Tasks::new();
                tasks.add(self.inner.clone().sweep_for_ever());
                tasks
            });
            self.inner.deadlines.notify_one();
        }
        Ok(commit)
    }

    async fn image(&self, prefix: &str) -> Result<Image, Error> {
        let state = self.inner.state.lock();
        let now = Instant::now();
        let below = state.entries.range(prefix.to_owned()..);
        let entries = below.take_while(|(key, _)| key.starts_with(prefix));
        let entry = |(key, (stored, until)): (&String, &(Stored, Option<Instant>))| ImageEntry {
            key: key.clone(),
            text: stored.value.to_string(),
            created: stored.created,
            modified: stored.modified,
            ttl: until.map(|until| until.saturating_duration_since(now).as_secs().max(1)),
        };
        let entries = entries.map(entry).collect();
        Ok(Image { entries, revision: state.revision, skipped: Vec::new() })
    }

    fn watch(&self, prefix: &str, from: Revision) -> Watch {
        let (store, prefix) = (Arc::downgrade(&self.inner), prefix.to_owned());
        Watch::fed_by(|events| history::feed(store, prefix, from, events))
    }
}
