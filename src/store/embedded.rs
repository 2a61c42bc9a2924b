//! A store in one local database file, with etcd's revisions: the default where no etcd is named.
//!
//! Each write is on the disk (fsync) when it returns. The file is one process's at a time. A file that does not pass the
//! database's own check of all its pages is refused as it is.

use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use parking_lot::Mutex;
use redb::backends::FileBackend;
use redb::{Database, ReadableDatabase, ReadableTable, ReadableTableMetadata, TableDefinition};
use tokio::sync::Notify;

use super::history::{self, History, Remembers};
use super::image::{Image, ImageEntry};
use super::{Commit, Error, Event, Expect, Listing, MAX_TTL, Store, Stored, Watch, Write, Written};
use crate::model::Revision;
use crate::rt::{self, Tasks};

/// Key to (created, modified, end of life in milliseconds since 1970 or 0, JSON).
const ENTRIES: TableDefinition<'_, &str, (u64, u64, u64, &[u8])> = TableDefinition::new("entries");
/// Names to numbers: the format of this file and the newest revision.
const COUNTERS: TableDefinition<'_, &str, u64> = TableDefinition::new("counters");
/// The layout above.
const FORMAT: u64 = 1;

/// The store. Dropping it closes the file.
pub struct Embedded {
    inner: Arc<Inner>,
    sweeper: Tasks,
}

struct Inner {
    path: PathBuf,
    database: Database,
    history: Mutex<History>,
    /// What has an end of life, earliest first. The lock also puts writes in one order with their history.
    deadlines: Mutex<BTreeSet<(u64, String)>>,
    /// Rings when `deadlines` has something new.
    changed: Arc<Notify>,
}

impl Embedded {
    /// Opens the file, or makes it (and its folder) when it does not exist.
    ///
    /// # Errors
    /// The file is damaged, in use by another process, or cannot be read or created.
    pub async fn open(path: impl Into<PathBuf>) -> Result<Self, Error> {
        let path = path.into();
        let inner = blocking(move || Inner::open(path)).await?;
        let inner = Arc::new(inner);
        let mut sweeper = Tasks::new();
        sweeper.add(sweep_for_ever(Arc::downgrade(&inner), inner.changed.clone()));
        Ok(Self { inner, sweeper })
    }

    /// Waits for what is under way and closes the file; another process may then open it.
    ///
    /// # Errors
    /// Something is still under way after five seconds (it closes the file when it ends), or the disk fails.
    pub async fn close(self) -> Result<(), Error> {
        let Self { mut inner, sweeper } = self;
        drop(sweeper);
        let path = inner.path.clone();
        for _ in 0..500 {
            inner = match Arc::try_unwrap(inner) {
                Ok(inner) => {
                    return blocking(move || {
                        inner.database.close().map_err(|error| failed(&path, error))
                    })
                    .await;
                }
                Err(shared) => shared,
            };
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Err(Error::InUse { path })
    }

    /// Makes the file anew with what the image holds, revisions included. A file that is there must be a store that nobody uses,
    /// and is replaced only when it is empty or `overwrite` says so. A crash leaves the former file or the new one.
    ///
    /// # Errors
    /// The file is in use, damaged or not empty, or the disk fails. Nothing has changed then.
    pub async fn restore(
        path: impl Into<PathBuf>,
        image: Image,
        overwrite: bool,
    ) -> Result<(), Error> {
        let path = path.into();
        blocking(move || restore(&path, &image, overwrite)).await
    }

    /// Forgets the past: watches that are behind start again with a `Reset`.
    pub fn compact(&self) {
        self.inner.history.lock().compact();
    }
}

/// Runs what waits for the disk where it may wait. A panic of the database goes on in the caller.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_) => Err(Error::Unreachable("this process is shutting down".into())),
    }
}

impl Inner {
    fn open(path: PathBuf) -> Result<Self, Error> {
        let database = match path.try_exists() {
            Ok(true) => open_existing(&path)?,
            Ok(false) => create(&path)?,
            Err(error) => return Err(Error::File { path, why: error.to_string() }),
        };
        let (revision, deadlines) = read_through(&path, &database)?;
        Ok(Self {
            path,
            database,
            history: Mutex::new(History::new(revision)),
            deadlines: Mutex::new(deadlines),
            changed: Arc::new(Notify::new()),
        })
    }

    fn failed(&self, error: impl Into<redb::Error>) -> Error {
        failed(&self.path, error)
    }

    fn list(&self, prefix: &str) -> Result<Listing, Error> {
        let transaction = self.database.begin_read().map_err(|e| self.failed(e))?;
        let table = transaction.open_table(ENTRIES).map_err(|e| self.failed(e))?;
        let counters = transaction.open_table(COUNTERS).map_err(|e| self.failed(e))?;
        let revision = counters.get("revision").map_err(|e| self.failed(e))?;
        let mut listing =
            Listing { entries: Vec::new(), revision: revision.map_or(1, |r| r.value()) };
        for row in table.range(prefix..).map_err(|e| self.failed(e))? {
            let (key, entry) = row.map_err(|e| self.failed(e))?;
            if !key.value().starts_with(prefix) {
                break;
            }
            listing.entries.push(self.decode(key.value(), entry.value())?);
        }
        Ok(listing)
    }

    fn image(&self, prefix: &str) -> Result<Image, Error> {
        // One transaction is one revision, whatever is written meanwhile.
        let transaction = self.database.begin_read().map_err(|e| self.failed(e))?;
        let table = transaction.open_table(ENTRIES).map_err(|e| self.failed(e))?;
        let counters = transaction.open_table(COUNTERS).map_err(|e| self.failed(e))?;
        let revision = counters.get("revision").map_err(|e| self.failed(e))?;
        let mut image = Image { revision: revision.map_or(1, |r| r.value()), ..Image::default() };
        let now = rt::unix_millis();
        for row in table.range(prefix..).map_err(|e| self.failed(e))? {
            let (key, entry) = row.map_err(|e| self.failed(e))?;
            let key = key.value();
            if !key.starts_with(prefix) {
                break;
            }
            let (created, modified, until, json) = entry.value();
            let text = std::str::from_utf8(json).map_err(|error| Error::Damaged {
                path: self.path.clone(),
                why: format!("entry {key}: {error}"),
            })?;
            image.entries.push(ImageEntry {
                key: key.to_owned(),
                text: text.to_owned(),
                created,
                modified,
                ttl: (until != 0).then(|| until.saturating_sub(now).div_ceil(1000).max(1)),
            });
        }
        Ok(image)
    }

    fn get(&self, key: &str) -> Result<Option<Stored>, Error> {
        let transaction = self.database.begin_read().map_err(|e| self.failed(e))?;
        let table = transaction.open_table(ENTRIES).map_err(|e| self.failed(e))?;
        let entry = table.get(key).map_err(|e| self.failed(e))?;
        entry.map(|entry| self.decode(key, entry.value())).transpose()
    }

    fn decode(&self, key: &str, entry: (u64, u64, u64, &[u8])) -> Result<Stored, Error> {
        let (created, modified, _, json) = entry;
        let value = serde_json::from_slice(json).map_err(|error| Error::Damaged {
            path: self.path.clone(),
            why: format!("entry {key}: {error}"),
        })?;
        Ok(Stored { key: key.to_owned(), value, created, modified })
    }

    fn commit(&self, writes: &[Write]) -> Result<Commit, Error> {
        // Held to the end: changes reach the history in the order of their revisions.
        let mut deadlines = self.deadlines.lock();
        let transaction = self.database.begin_write().map_err(|e| self.failed(e))?;
        let mut written = Vec::with_capacity(writes.len());
        let mut ends = Vec::with_capacity(writes.len());
        let revision = {
            let mut table = transaction.open_table(ENTRIES).map_err(|e| self.failed(e))?;
            let mut counters = transaction.open_table(COUNTERS).map_err(|e| self.failed(e))?;
            let newest = counters.get("revision").map_err(|e| self.failed(e))?;
            let newest = newest.map_or(1, |newest| newest.value());
            let revision = newest + 1;
            for Write { key, value, expect, ttl } in writes {
                let before = table.get(key.as_str()).map_err(|e| self.failed(e))?;
                let before =
                    before.map(|entry| (entry.value().0, entry.value().1, entry.value().2));
                if !expect.holds(before.map(|(_, modified, _)| modified)) {
                    return Err(Error::Conflict);
                }
                let until = value.as_ref().and(*ttl).map(end_of);
                written.push(match (value, before) {
                    (Some(value), _) => {
                        let created = before.map_or(revision, |(created, ..)| created);
                        let json = value.to_string();
                        let entry = (created, revision, until.unwrap_or(0), json.as_bytes());
                        table.insert(key.as_str(), entry).map_err(|e| self.failed(e))?;
                        let (key, value) = (key.clone(), value.clone());
                        Written::Put(Stored { key, value, created, modified: revision })
                    }
                    (None, Some(_)) => {
                        table.remove(key.as_str()).map_err(|e| self.failed(e))?;
                        Written::Removed
                    }
                    (None, None) => Written::WasAbsent,
                });
                ends.push((key, before.map(|(_, _, until)| until), until));
            }
            if written.iter().all(|written| *written == Written::WasAbsent) {
                return Ok(Commit { revision: newest, written });
            }
            counters.insert("revision", revision).map_err(|e| self.failed(e))?;
            revision
        };
        transaction.commit().map_err(|e| self.failed(e))?;
        for (key, before, until) in ends {
            if let Some(before) = before {
                deadlines.remove(&(before, key.clone()));
            }
            if let Some(until) = until {
                deadlines.insert((until, key.clone()));
                self.changed.notify_one();
            }
        }
        // One lock for all: a reader sees the whole of a revision.
        let mut history = self.history.lock();
        for (write, written) in writes.iter().zip(&written) {
            match written {
                Written::Put(stored) => history.push(Event::Put(stored.clone())),
                Written::Removed => {
                    history.push(Event::Delete { key: write.key.clone(), revision });
                }
                Written::WasAbsent => {}
            }
        }
        Ok(Commit { revision, written })
    }

    /// Removes what is over and tells in how many milliseconds the next entry will be.
    fn sweep(&self) -> Result<Option<Duration>, Error> {
        loop {
            let Some((until, key)) = self.deadlines.lock().first().cloned() else {
                return Ok(None);
            };
            let now = rt::unix_millis();
            if until > now {
                return Ok(Some(Duration::from_millis(until - now)));
            }
            // Only as it was when its time was over: somebody may just have written it anew.
            match self.get(&key)? {
                Some(stored) if self.deadlines.lock().contains(&(until, key.clone())) => {
                    let expect = Expect::Revision(stored.modified);
                    match self.commit(&[Write { key, value: None, expect, ttl: None }]) {
                        Ok(_) | Err(Error::Conflict) => {}
                        Err(error) => return Err(error),
                    }
                }
                Some(_) => {}
                None => {
                    self.deadlines.lock().remove(&(until, key));
                }
            }
        }
    }
}

/// When an entry that lives so many seconds from now vanishes, in milliseconds since 1970.
fn end_of(ttl: u64) -> u64 {
    let ttl = Duration::from_secs(ttl).min(MAX_TTL).as_millis();
    rt::unix_millis().saturating_add(u64::try_from(ttl).unwrap_or(u64::MAX))
}

/// Ends when the store is gone; it does not keep the store alive.
async fn sweep_for_ever(inner: Weak<Inner>, changed: Arc<Notify>) {
    loop {
        let Some(sweeping) = inner.upgrade() else { return };
        let next = match blocking(move || sweeping.sweep()).await {
            Ok(next) => next,
            Err(error) => {
                tracing::error!(%error, "entries whose time is over cannot be removed");
                Some(Duration::from_secs(60))
            }
        };
        match next {
            Some(next) => tokio::select! {
                () = tokio::time::sleep(next) => {}
                () = changed.notified() => {}
            },
            None => changed.notified().await,
        }
    }
}

/// Makes a new file under another name and moves it to its place when it is whole: a crash leaves none or a good one.
fn create(path: &Path) -> Result<Database, Error> {
    let file = |why: std::io::Error| Error::File { path: path.to_owned(), why: why.to_string() };
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder).map_err(file)?;
    }
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".new-{}", std::process::id()));
    let new = PathBuf::from(name);
    let made = make(path, &new).and_then(|()| {
        // A hard link fails when another process was faster; a rename would overwrite its file.
        std::fs::hard_link(&new, path).map_err(file)
    });
    let removed = std::fs::remove_file(&new).map_err(file);
    made.and(removed)?;
    open_existing(path)
}

fn restore(path: &Path, image: &Image, overwrite: bool) -> Result<(), Error> {
    let file = |why: std::io::Error| Error::File { path: path.to_owned(), why: why.to_string() };
    let before = match path.try_exists().map_err(file)? {
        true => {
            // Held open to the end: nobody else begins to use it meanwhile.
            let database = open_existing(path)?;
            let transaction = database.begin_read().map_err(|error| failed(path, error))?;
            let table = transaction.open_table(ENTRIES).map_err(|error| failed(path, error))?;
            let count = table.len().map_err(|error| failed(path, error))?;
            if count > 0 && !overwrite {
                return Err(Error::NotEmpty(format!("{count} entries in {}", path.display())));
            }
            Some(database)
        }
        false => None,
    };
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder).map_err(file)?;
    }
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".new-{}", std::process::id()));
    let new = PathBuf::from(name);
    let made = make(path, &new)
        .and_then(|()| fill(&new, image))
        .and_then(|()| std::fs::rename(&new, path).map_err(file));
    if made.is_err() {
        let _ = std::fs::remove_file(&new);
    }
    drop(before);
    made?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = std::fs::File::open(folder.unwrap_or(Path::new("."))).map_err(file)?;
    folder.sync_all().map_err(file)
}

/// Writes all of an image into an empty file of ours.
fn fill(path: &Path, image: &Image) -> Result<(), Error> {
    let database = open_existing(path)?;
    let transaction = database.begin_write().map_err(|error| failed(path, error))?;
    {
        let mut table = transaction.open_table(ENTRIES).map_err(|error| failed(path, error))?;
        for ImageEntry { key, text, created, modified, ttl } in &image.entries {
            let until = ttl.map_or(0, end_of);
            let entry = (*created, *modified, until, text.as_bytes());
            table.insert(key.as_str(), entry).map_err(|error| failed(path, error))?;
        }
        let mut counters = transaction.open_table(COUNTERS).map_err(|error| failed(path, error))?;
        counters.insert("revision", image.revision.max(1)).map_err(|error| failed(path, error))?;
    }
    transaction.commit().map_err(|error| failed(path, error))?;
    database.close().map_err(|error| failed(path, error))
}

fn make(path: &Path, new: &Path) -> Result<(), Error> {
    // Keys and credentials of consumers are in it: it is for its owner alone.
    let mut options = OpenOptions::new();
    let file = options.read(true).write(true).create(true).truncate(true).mode(0o600).open(new);
    let file = file.map_err(|why| Error::File { path: path.to_owned(), why: why.to_string() })?;
    let backend = FileBackend::new(file).map_err(|error| failed(path, error))?;
    let backed = Database::builder().create_with_backend(backend);
    let database = backed.map_err(|error| failed(path, error))?;
    let transaction = database.begin_write().map_err(|error| failed(path, error))?;
    {
        transaction.open_table(ENTRIES).map_err(|error| failed(path, error))?;
        let mut counters = transaction.open_table(COUNTERS).map_err(|error| failed(path, error))?;
        counters.insert("format", FORMAT).map_err(|error| failed(path, error))?;
        counters.insert("revision", 1).map_err(|error| failed(path, error))?;
    }
    transaction.commit().map_err(|error| failed(path, error))?;
    database.close().map_err(|error| failed(path, error))
}

/// Waits up to a second for whoever uses the file: a process that is just ending, or a child that is just beginning and has yet to
/// close what it inherited.
#[expect(clippy::disallowed_methods, reason = "it runs where it may wait")]
fn open_existing(path: &Path) -> Result<Database, Error> {
    let until = Instant::now() + Duration::from_secs(1);
    loop {
        match Database::builder().set_check_integrity_on_open(true).open(path) {
            Err(redb::DatabaseError::DatabaseAlreadyOpen) if Instant::now() < until => {
                std::thread::sleep(Duration::from_millis(20));
            }
            opened => return opened.map_err(|error| failed(path, error)),
        }
    }
}

/// Reads the whole file once: the revision it stands at, and what has an end of life.
fn read_through(
    path: &Path,
    database: &Database,
) -> Result<(Revision, BTreeSet<(u64, String)>), Error> {
    let transaction = database.begin_read().map_err(|error| failed(path, error))?;
    let counters = transaction.open_table(COUNTERS).map_err(|error| failed(path, error))?;
    let counter = |name: &str| -> Result<Option<u64>, Error> {
        let value = counters.get(name).map_err(|error| failed(path, error))?;
        Ok(value.map(|value| value.value()))
    };
    if let Some(format) = counter("format")?
        && format != FORMAT
    {
        let why = format!("its format is {format}, this version of Wardgate reads format {FORMAT}");
        return Err(Error::File { path: path.to_owned(), why });
    }
    let Some(revision) = counter("revision")? else {
        return Err(Error::Damaged { path: path.to_owned(), why: "no revision".into() });
    };
    let table = transaction.open_table(ENTRIES).map_err(|error| failed(path, error))?;
    let mut deadlines = BTreeSet::new();
    for row in table.iter().map_err(|error| failed(path, error))? {
        let (key, entry) = row.map_err(|error| failed(path, error))?;
        let (_, modified, until, _) = entry.value();
        if modified > revision {
            let why = format!("entry {} is newer than the store", key.value());
            return Err(Error::Damaged { path: path.to_owned(), why });
        }
        if until != 0 {
            deadlines.insert((until, key.value().to_owned()));
        }
    }
    Ok((revision, deadlines))
}

/// What the database's error means for the operator.
fn failed(path: &Path, error: impl Into<redb::Error>) -> Error {
    let path = path.to_owned();
    match error.into() {
        redb::Error::DatabaseAlreadyOpen => Error::InUse { path },
        redb::Error::Corrupted(why) => Error::Damaged { path, why },
        redb::Error::RepairAborted => {
            Error::Damaged { path, why: "repair was not possible".into() }
        }
        // How the database says that the first bytes are not its own, or that there are too few of them.
        redb::Error::Io(error)
            if matches!(
                error.kind(),
                std::io::ErrorKind::InvalidData | std::io::ErrorKind::UnexpectedEof
            ) =>
        {
            Error::Damaged { path, why: error.to_string() }
        }
        error @ (redb::Error::TableDoesNotExist(_) | redb::Error::TableTypeMismatch { .. }) => {
            Error::Damaged { path, why: error.to_string() }
        }
        error => Error::File { path, why: error.to_string() },
    }
}

#[async_trait]
impl Remembers for Inner {
    fn history(&self) -> &Mutex<History> {
        &self.history
    }

    async fn everything(self: Arc<Self>, prefix: &str) -> Result<Listing, Error> {
        let prefix = prefix.to_owned();
        blocking(move || self.list(&prefix)).await
    }
}

#[async_trait]
impl Store for Embedded {
    async fn get(&self, key: &str) -> Result<Option<Stored>, Error> {
        let (inner, key) = (self.inner.clone(), key.to_owned());
        blocking(move || inner.get(&key)).await
    }

    async fn list(&self, prefix: &str) -> Result<Listing, Error> {
        self.inner.clone().everything(prefix).await
    }

    async fn commit(&self, writes: Vec<Write>) -> Result<Commit, Error> {
        let inner = self.inner.clone();
        blocking(move || inner.commit(&writes)).await
    }

    async fn image(&self, prefix: &str) -> Result<Image, Error> {
        let (inner, prefix) = (self.inner.clone(), prefix.to_owned());
        blocking(move || inner.image(&prefix)).await
    }

    fn watch(&self, prefix: &str, from: Revision) -> Watch {
        let (store, prefix) = (Arc::downgrade(&self.inner), prefix.to_owned());
        Watch::fed_by(|events| history::feed(store, prefix, from, events))
    }
}
