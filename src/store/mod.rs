//! Where the declared state rests: keys with revisions, compare-and-set, watch. etcd's semantics for every store.
//!
//! [`etcd`] is for production, [`embedded`] keeps one file and is the default where no etcd is named, [`memory`] is for
//! tests. One conformance suite (`tests/store.rs`) holds all three to this contract.

pub mod embedded;
pub mod etcd;
mod history;
pub mod image;
pub mod memory;
pub mod sealed;
pub mod settings;

use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use self::image::{Image, Resealed};
use crate::model::Revision;
use crate::rt;

/// The prefix of all keys where the settings name none, as in APISIX.
pub const DEFAULT_PREFIX: &str = "/apisix";

/// How many events wait for a slow reader of a [`Watch`]; the store's side waits when they are that many.
const WATCH_BOUND: usize = 256;

/// One entry as it stands.
#[derive(Clone, Debug, PartialEq)]
pub struct Stored {
    /// The whole key, prefix included.
    pub key: String,
    /// What was written, its fields in the writer's order.
    pub value: Value,
    /// The revision that created the key (etcd's create_revision).
    pub created: Revision,
    /// The revision that wrote it last (etcd's mod_revision).
    pub modified: Revision,
}

/// All entries below a prefix at one revision.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Listing {
    /// The entries, by key.
    pub entries: Vec<Stored>,
    /// The store's revision at which they all stood.
    pub revision: Revision,
}

/// What must hold for a write to happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// Nothing.
    Anything,
    /// The key does not exist.
    Absent,
    /// The key was last written by this revision.
    Revision(Revision),
}

impl Expect {
    /// Does the expectation hold for a key that was last written by `modified`?
    fn holds(self, modified: Option<Revision>) -> bool {
        match self {
            Self::Anything => true,
            Self::Absent => modified.is_none(),
            Self::Revision(expected) => modified == Some(expected),
        }
    }
}

/// One write of a [`Store::commit`].
#[derive(Clone, Debug, PartialEq)]
pub struct Write {
    /// The whole key.
    pub key: String,
    /// What is written; `None` removes the entry.
    pub value: Option<Value>,
    /// What must hold before.
    pub expect: Expect,
    /// After so many seconds the entry vanishes.
    pub ttl: Option<u64>,
}

/// What a [`Store::commit`] has done.
#[derive(Clone, Debug, PartialEq)]
pub struct Commit {
    /// The revision that it made; the one before it when there was nothing to do.
    pub revision: Revision,
    /// One for each write, in their order.
    pub written: Vec<Written>,
}

/// What became of one write.
#[derive(Clone, Debug, PartialEq)]
pub enum Written {
    /// The entry as it stands now.
    Put(Stored),
    /// The entry is gone.
    Removed,
    /// There was none to remove.
    WasAbsent,
}

/// One change, as a [`Watch`] tells it. Who applies them in order has the store's state.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The key is new or different.
    Put(Stored),
    /// The key is gone, by a delete or because its time was over.
    Delete {
        /// The whole key.
        key: String,
        /// The revision that removed it.
        revision: Revision,
    },
    /// The store cannot tell what happened in between (it forgot, or was restored from a backup): this is all there is now.
    /// The reader swaps its whole state for it at once.
    Reset(Listing),
}

impl Event {
    /// The store's revision that the reader has reached with this event.
    pub fn revision(&self) -> Revision {
        match self {
            Self::Put(stored) => stored.modified,
            Self::Delete { revision, .. } => *revision,
            Self::Reset(listing) => listing.revision,
        }
    }
}

/// Why a store does not do what it is asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Nobody answers, or not in time. A write may or may not have happened when the connection broke while it was under way.
    #[error("the store is unreachable: {0}")]
    Unreachable(String),
    /// The expectation of a write does not hold.
    #[error("value changed before overwritten")]
    Conflict,
    /// The database file cannot be read. Nothing was written to it.
    #[error(
        "the store file {path} is damaged ({why}); restore it from a backup or move it away, nothing was overwritten"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What the database said.
        why: String,
    },
    /// A file is not the image of a store that it should be.
    #[error("{path} is not a whole image of a store: {why}")]
    BadImage {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// What is to be filled holds something, and nobody said that it may be replaced.
    #[error("the store to be written is not empty ({0}); nothing was written")]
    NotEmpty(String),
    /// Another process has the database file open.
    #[error("the store file {path} is in use by another process")]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// The file, or its folder, cannot be created, read or written.
    #[error("cannot use the store file {path}: {why}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        why: String,
    },
    /// The store understood and refuses: size, quota, permission.
    #[error("the store refuses: {0}")]
    Refused(String),
    /// Somebody else wrote something under the key that is not JSON.
    #[error("the value of {key} in the store is not JSON")]
    NotJson {
        /// The key.
        key: String,
    },
    /// The settings cannot be used.
    #[error("store settings: {0}")]
    Settings(String),
}

/// Keys with revisions. All methods may be called at once from anywhere.
#[async_trait]
pub trait Store: Send + Sync {
    /// The entry under this key.
    ///
    /// # Errors
    /// The store is unreachable or damaged, or the value is not JSON.
    async fn get(&self, key: &str) -> Result<Option<Stored>, Error>;

    /// All entries whose keys start with `prefix`, by key. Values that are not JSON (APISIX's `init_dir`) are left out.
    ///
    /// # Errors
    /// The store is unreachable or damaged.
    async fn list(&self, prefix: &str) -> Result<Listing, Error>;

    /// Makes all writes in one revision, or none of them. No two of them are about the same key.
    ///
    /// # Errors
    /// [`Error::Conflict`] when an expectation does not hold; or the store is unreachable, or refuses.
    async fn commit(&self, writes: Vec<Write>) -> Result<Commit, Error>;

    /// Writes the entry if the expectation holds. With `ttl`, it vanishes that many seconds later.
    ///
    /// # Errors
    /// As [`Store::commit`].
    async fn put(
        &self,
        key: &str,
        value: &Value,
        expect: Expect,
        ttl: Option<u64>,
    ) -> Result<Stored, Error> {
        let write = Write { key: key.to_owned(), value: Some(value.clone()), expect, ttl };
        match self.commit(vec![write]).await?.written.pop() {
            Some(Written::Put(stored)) => Ok(stored),
            _ => Err(Error::Refused("the store did not say what it had written".into())),
        }
    }

    /// Removes the entry if the expectation holds; tells the revision that removed it, and `None` when there was none.
    ///
    /// # Errors
    /// As [`Store::commit`].
    async fn delete(&self, key: &str, expect: Expect) -> Result<Option<Revision>, Error> {
        let write = Write { key: key.to_owned(), value: None, expect, ttl: None };
        let commit = self.commit(vec![write]).await?;
        Ok(matches!(commit.written[..], [Written::Removed]).then_some(commit.revision))
    }

    /// All entries whose keys start with `prefix`, as they rest, at one revision.
    ///
    /// # Errors
    /// The store is unreachable or damaged.
    async fn image(&self, prefix: &str) -> Result<Image, Error>;

    /// Seals anew whatever is not sealed with the key that seals now. A store that seals nothing has nothing to do.
    ///
    /// # Errors
    /// The store is unreachable, or refuses. What was sealed until then stays sealed; asking again goes on.
    async fn reseal(&self) -> Result<Resealed, Error> {
        Ok(Resealed::default())
    }

    /// Tells every change below `prefix` after the revision `from`, without end; `from` is what [`Store::list`] returned.
    ///
    /// `from: 0` starts with a [`Event::Reset`] of all there is. A store that is unreachable is tried again, for ever; the
    /// watch then goes on where it was, or with a `Reset` when that is not possible.
    fn watch(&self, prefix: &str, from: Revision) -> Watch;
}

/// The reading end of [`Store::watch`]. Dropping it ends the watch.
#[derive(Debug)]
pub struct Watch {
    events: mpsc::Receiver<Event>,
    task: JoinHandle<()>,
}

impl Watch {
    /// Runs `feed` until this watch is dropped. The channel is bounded: a slow reader makes the feed wait.
    fn fed_by<F>(feed: impl FnOnce(mpsc::Sender<Event>) -> F) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (sender, events) = mpsc::channel(WATCH_BOUND);
        Self { events, task: rt::spawn(feed(sender)) }
    }

    /// The next change. `None` only when the store itself is gone.
    pub async fn next(&mut self) -> Option<Event> {
        self.events.recv().await
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The longest time to live: a hundred years, so that deadlines never overflow.
const MAX_TTL: Duration = Duration::from_secs(100 * 365 * 24 * 3600);
