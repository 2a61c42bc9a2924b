//! Answers on disk: one file each, written beside and moved into place when complete, with digests that every read is checked by.
//!
//! A file is the body, then what is known of it as JSON, then that JSON's SHA-256, its length and a mark. Nothing of a request
//! is in a file's name but a digest. One thread of a zone writes and removes; what it cannot keep up with is not stored.

use std::collections::HashMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::future::Future as _;
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::task::JoinHandle;

use super::flight::Flight;
use super::freshness::Freshness;
use super::key::Sum;
use super::stored::{Draft, Stored, StoredBody};
use super::zone::Index;
use crate::pipeline::{BodySource, Fault};
use crate::rt::crypto::digest::{self, SHA256, digest as sum};

/// Bytes that one digest stands for.
const BLOCK: usize = 64 << 10;
/// Bytes of a block's digest: against what storage loses, not against who may write there.
const BLOCK_SUM: usize = 16;
/// Behind the JSON: its digest, its length, the mark.
const TAIL: usize = 32 + 4 + 8;
const MARK: &[u8; 8] = b"WGCACHE1";
/// Bytes of JSON.
const MOST_TRAILER: usize = 1 << 20;
/// Bodies up to this size are read at once.
const AT_ONCE: u64 = 256 << 10;
/// Bytes that may wait to be written.
const MOST_QUEUED: u64 = 16 << 20;
/// Jobs that may wait.
const MOST_JOBS: usize = 4096;
/// Files that are written at the same time.
const MOST_WRITING: usize = 512;
/// How often to look for what is to be removed when nothing else is to be done.
const SWEEP: Duration = Duration::from_secs(5);
/// The folder of files that are not complete.
const UNFINISHED: &str = "unfinished";
/// Resources that changed after what is stored of them.
const CHANGES: &str = "changes";

#[derive(Serialize, Deserialize)]
struct Trailer {
    entry: String,
    resource: String,
    vary: Vec<(String, String)>,
    status: u16,
    fields: Vec<(String, String)>,
    freshness: Freshness,
    length: u64,
    blocks: String,
}

/// A body on disk.
#[derive(Debug)]
pub(super) struct DiskBody {
    path: PathBuf,
    pub(super) length: u64,
    /// Bytes of the whole file.
    pub(super) on_disk: u64,
    /// The digest of what the file says of itself.
    sum: Sum,
}

/// What is to be removed, and what has changed: noted by anybody, carried out by the zone's thread.
#[derive(Debug, Default)]
pub(super) struct Doomed {
    paths: Mutex<Vec<PathBuf>>,
    changes: Mutex<Vec<(Sum, u64)>>,
}

impl Doomed {
    pub(super) fn all_of(&self, dropped: &[Arc<Stored>]) {
        let mut paths = self.paths.lock();
        for stored in dropped {
            if let StoredBody::File(file) = &stored.body {
                paths.push(file.path.clone());
            }
        }
    }
}

/// The zone's thread, and the way to it.
#[derive(Debug)]
pub(super) struct Disk {
    jobs: SyncSender<Job>,
    queued: Arc<AtomicU64>,
    next: AtomicU64,
    doomed: Arc<Doomed>,
}

#[derive(Debug)]
enum Job {
    Begin(u64, Weak<()>),
    Chunk(u64, Bytes),
    End(u64, Box<Ending>),
    Sweep,
}

/// A body is complete: this is what it belongs to.
#[derive(Debug)]
struct Ending {
    entry: Sum,
    draft: Draft,
    /// Who waits for it hears of it when it is stored.
    _flight: Option<Flight>,
    _token: Arc<()>,
}

impl Disk {
    /// Opens the folder, which only this user may read, and begins to look at what is in it.
    pub(super) fn open(
        folder: &Path,
        levels: &[usize],
        index: Arc<Index>,
        doomed: Arc<Doomed>,
    ) -> io::Result<Self> {
        let unfinished = folder.join(UNFINISHED);
        DirBuilder::new().recursive(true).mode(0o700).create(&unfinished)?;
        let (jobs, waiting) = sync_channel(MOST_JOBS);
        let queued = Arc::<AtomicU64>::default();
        let mut keeper = DiskKeeper {
            folder: folder.to_owned(),
            levels: levels.to_vec(),
            index,
            doomed: doomed.clone(),
            queued: queued.clone(),
            writing: HashMap::new(),
        };
        let thread = std::thread::Builder::new().name("cache".to_owned());
        thread.spawn(move || keeper.run(&waiting))?;
        Ok(Self { jobs, queued, next: AtomicU64::new(0), doomed })
    }

    /// Begins a body; nothing when the disk has more to do than it can.
    pub(super) fn begin(&self) -> Option<DiskFill> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let token = Arc::new(());
        self.jobs.try_send(Job::Begin(number, Arc::downgrade(&token))).ok()?;
        Some(DiskFill { number, jobs: self.jobs.clone(), queued: self.queued.clone(), token })
    }

    /// Remembers a change beyond the end of this process.
    pub(super) fn change(&self, resource: Sum, now: u64) {
        self.doomed.changes.lock().push((resource, now));
        // It is written soon, with the next job at the latest.
        let _ = self.jobs.try_send(Job::Sweep);
    }

    /// Something was removed.
    pub(super) fn sweep(&self) {
        let _ = self.jobs.try_send(Job::Sweep);
    }
}

/// A body on its way to disk. When this goes before the end, nothing is left of it.
#[derive(Debug)]
pub(super) struct DiskFill {
    number: u64,
    jobs: SyncSender<Job>,
    queued: Arc<AtomicU64>,
    token: Arc<()>,
}

impl DiskFill {
    /// More of it; `false` when the disk cannot keep up.
    pub(super) fn add(&self, data: &Bytes) -> bool {
        let length = data.len() as u64;
        if self.queued.fetch_add(length, Ordering::Relaxed) + length > MOST_QUEUED {
            self.queued.fetch_sub(length, Ordering::Relaxed);
            return false;
        }
        let is_taken = self.jobs.try_send(Job::Chunk(self.number, data.clone())).is_ok();
        if !is_taken {
            self.queued.fetch_sub(length, Ordering::Relaxed);
        }
        is_taken
    }

    /// It is complete.
    pub(super) fn end(self, entry: Sum, draft: Draft, flight: Option<Flight>) {
        let ending = Ending { entry, draft, _flight: flight, _token: self.token };
        // A queue that is full gives it up; who waits hears of it either way.
        let _ = self.jobs.try_send(Job::End(self.number, Box::new(ending)));
    }
}

/// What the thread has.
struct DiskKeeper {
    folder: PathBuf,
    levels: Vec<usize>,
    index: Arc<Index>,
    doomed: Arc<Doomed>,
    queued: Arc<AtomicU64>,
    writing: HashMap<u64, Writing>,
}

impl DiskKeeper {
    fn run(&mut self, waiting: &Receiver<Job>) {
        self.load();
        loop {
            match waiting.recv_timeout(SWEEP) {
                Ok(job) => self.carry_out(job),
                Err(RecvTimeoutError::Timeout) => {
                    self.writing.retain(|_, writing| writing.token.strong_count() > 0);
                }
                Err(RecvTimeoutError::Disconnected) => return,
            }
            self.sweep();
        }
    }

    fn carry_out(&mut self, job: Job) {
        match job {
            Job::Begin(number, token) => {
                if self.writing.len() >= MOST_WRITING {
                    self.writing.retain(|_, writing| writing.token.strong_count() > 0);
                }
                if self.writing.len() >= MOST_WRITING {
                    return;
                }
                let path = self.folder.join(UNFINISHED).join(fresh_name());
                match Writing::begin(path, token) {
                    Ok(writing) => drop(self.writing.insert(number, writing)),
                    Err(error) => self.cannot_write(&error),
                }
            }
            Job::Chunk(number, data) => {
                self.queued.fetch_sub(data.len() as u64, Ordering::Relaxed);
                if let Some(writing) = self.writing.get_mut(&number)
                    && let Err(error) = writing.add(&data)
                {
                    drop(self.writing.remove(&number));
                    self.cannot_write(&error);
                }
            }
            Job::End(number, ending) => {
                if let Some(writing) = self.writing.remove(&number)
                    && let Err(error) = self.settle(writing, &ending)
                {
                    self.cannot_write(&error);
                }
            }
            Job::Sweep => {}
        }
    }

    fn cannot_write(&self, error: &io::Error) {
        tracing::warn!(folder = %self.folder.display(), %error, "an answer is not cached");
    }

    fn settle(&self, mut writing: Writing, ending: &Ending) -> io::Result<()> {
        let (sum, on_disk) = writing.end(&ending.entry, &ending.draft)?;
        let path = self.path_of(&ending.entry);
        if let Some(parent) = path.parent() {
            DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
        }
        fs::rename(&writing.path, &path)?;
        let length = writing.length;
        writing.is_settled = true;
        let body = DiskBody { path, length, on_disk, sum };
        let stored = ending.draft.clone().with(StoredBody::File(Arc::new(body)));
        self.index.put(ending.entry, &Arc::new(stored));
        Ok(())
    }

    /// A name of its own each time: a file that is being read is never replaced.
    fn path_of(&self, entry: &Sum) -> PathBuf {
        let name = hex::encode(entry);
        let (mut folder, mut end) = (self.folder.clone(), name.len());
        for level in &self.levels {
            folder.push(&name[end - level..end]);
            end -= level;
        }
        folder.push(format!("{name}-{}", fresh_name()));
        folder
    }

    fn sweep(&self) {
        let paths = std::mem::take(&mut *self.doomed.paths.lock());
        for path in paths {
            // Somebody else may have removed it.
            let _ = fs::remove_file(path);
        }
        let changes = std::mem::take(&mut *self.doomed.changes.lock());
        if !changes.is_empty()
            && let Err(error) = self.write_changes(&changes)
        {
            self.cannot_write(&error);
        }
    }

    fn write_changes(&self, changes: &[(Sum, u64)]) -> io::Result<()> {
        let path = self.folder.join(CHANGES);
        let mut file = OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
        let mut lines = Vec::with_capacity(changes.len() * 40);
        for (resource, at) in changes {
            lines.extend_from_slice(resource);
            lines.extend_from_slice(&at.to_le_bytes());
        }
        file.write_all(&lines)
    }

    /// What an earlier process has left: complete answers are used, others removed.
    fn load(&self) {
        if let Ok(changes) = fs::read(self.folder.join(CHANGES)) {
            for change in changes.chunks_exact(40) {
                let (resource, at) = change.split_at(32);
                let (mut sum, mut millis) = (Sum::default(), [0_u8; 8]);
                sum.copy_from_slice(resource);
                millis.copy_from_slice(at);
                self.index.change(sum, u64::from_le_bytes(millis));
            }
        }
        let mut files = Vec::new();
        list(&self.folder, self.levels.len(), &mut files);
        // What was stored last is thrown away last.
        files.sort();
        for (_, path) in files {
            match read_file(&path) {
                Ok((entry, stored)) => self.index.put(entry, &Arc::new(stored)),
                Err(_) => drop(fs::remove_file(&path)),
            }
        }
        // What was outdated is gone by now, or is in nobody's index.
        self.sweep();
        let _ = fs::remove_file(self.folder.join(CHANGES));
        let hour = Duration::from_secs(3600);
        for (changed, path) in files_in(&self.folder.join(UNFINISHED)) {
            // Another process may be at it: one that ends while this one begins.
            if changed.elapsed().is_ok_and(|age| age > hour) {
                let _ = fs::remove_file(path);
            }
        }
    }
}

fn fresh_name() -> String {
    format!("{:016x}", fastrand::u64(..))
}

fn files_in(folder: &Path) -> Vec<(SystemTime, PathBuf)> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let file = |entry: fs::DirEntry| {
        let facts = entry.metadata().ok().filter(fs::Metadata::is_file)?;
        Some((facts.modified().ok()?, entry.path()))
    };
    entries.filter_map(file).collect()
}

/// The files so many levels below `folder`.
fn list(folder: &Path, levels: usize, files: &mut Vec<(SystemTime, PathBuf)>) {
    if levels == 0 {
        files.extend(files_in(folder));
        return;
    }
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let is_level = entry.file_type().is_ok_and(|kind| kind.is_dir())
            && entry.file_name().to_str().is_some_and(|name| name.len() <= 2);
        if is_level {
            list(&entry.path(), levels - 1, files);
        }
    }
}

/// A file that is being written. Dropped before it is settled, it is gone.
#[derive(Debug)]
struct Writing {
    file: File,
    path: PathBuf,
    token: Weak<()>,
    length: u64,
    block: Vec<u8>,
    blocks: Vec<u8>,
    is_settled: bool,
}

impl Writing {
    fn begin(path: PathBuf, token: Weak<()>) -> io::Result<Self> {
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        let (block, blocks) = (Vec::new(), Vec::new());
        Ok(Self { file, path, token, length: 0, block, blocks, is_settled: false })
    }

    fn add(&mut self, mut data: &[u8]) -> io::Result<()> {
        self.length += data.len() as u64;
        while !data.is_empty() {
            let room = BLOCK - self.block.len();
            let (now, rest) = data.split_at(room.min(data.len()));
            self.block.extend_from_slice(now);
            data = rest;
            if self.block.len() == BLOCK {
                self.flush()?;
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        if !self.block.is_empty() {
            self.file.write_all(&self.block)?;
            self.blocks.extend_from_slice(&sum(&SHA256, &self.block).as_ref()[..BLOCK_SUM]);
            self.block.clear();
        }
        Ok(())
    }

    fn end(&mut self, entry: &Sum, draft: &Draft) -> io::Result<(Sum, u64)> {
        self.flush()?;
        let trailer = Trailer {
            entry: hex::encode(entry),
            resource: hex::encode(draft.resource),
            vary: draft.vary.clone(),
            status: draft.status,
            fields: draft.fields.clone(),
            freshness: draft.freshness,
            length: self.length,
            blocks: hex::encode(&self.blocks),
        };
        let mut trailer = serde_json::to_vec(&trailer).map_err(io::Error::other)?;
        let own = of_bytes(&trailer);
        let length = u32::try_from(trailer.len()).ok().filter(|_| trailer.len() <= MOST_TRAILER);
        let length = length.ok_or_else(|| io::Error::other("too much is to be said of it"))?;
        trailer.extend_from_slice(&own);
        trailer.extend_from_slice(&length.to_le_bytes());
        trailer.extend_from_slice(MARK);
        self.file.write_all(&trailer)?;
        Ok((own, self.length + trailer.len() as u64))
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        if !self.is_settled {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn of_bytes(bytes: &[u8]) -> Sum {
    let mut own = Sum::default();
    own.copy_from_slice(digest::digest(&SHA256, bytes).as_ref());
    own
}

fn damaged(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// What a file says of itself, with the digest of that and the size of the file.
fn read_trailer(file: &File) -> io::Result<(Trailer, Sum, u64)> {
    let size = file.metadata()?.len();
    let tail_at = size.checked_sub(TAIL as u64).ok_or_else(|| damaged("too short"))?;
    let mut tail = [0_u8; TAIL];
    file.read_exact_at(&mut tail, tail_at)?;
    let (own, rest) = tail.split_at(32);
    let (length, mark) = rest.split_at(4);
    if mark != MARK {
        return Err(damaged("no answer of a cache"));
    }
    let length = u32::from_le_bytes([length[0], length[1], length[2], length[3]]);
    let at = tail_at.checked_sub(u64::from(length)).filter(|_| length as usize <= MOST_TRAILER);
    let at = at.ok_or_else(|| damaged("a length that cannot be"))?;
    let mut json = vec![0; length as usize];
    file.read_exact_at(&mut json, at)?;
    if of_bytes(&json) != own {
        return Err(damaged("another digest"));
    }
    let trailer: Trailer = serde_json::from_slice(&json).map_err(io::Error::other)?;
    let blocks = usize::try_from(trailer.length).unwrap_or(usize::MAX).div_ceil(BLOCK);
    if trailer.length != at || trailer.blocks.len() != blocks * BLOCK_SUM * 2 {
        return Err(damaged("another length"));
    }
    Ok((trailer, of_bytes(&json), size))
}

fn read_file(path: &Path) -> io::Result<(Sum, Stored)> {
    let (trailer, own, on_disk) = read_trailer(&File::open(path)?)?;
    let (mut entry, mut resource) = (Sum::default(), Sum::default());
    hex::decode_to_slice(&trailer.entry, &mut entry).map_err(io::Error::other)?;
    hex::decode_to_slice(&trailer.resource, &mut resource).map_err(io::Error::other)?;
    let is_here = path.file_name().and_then(|name| name.to_str());
    if !is_here.is_some_and(|name| name.starts_with(&trailer.entry)) {
        return Err(damaged("another key"));
    }
    let body = DiskBody { path: path.to_owned(), length: trailer.length, on_disk, sum: own };
    let Trailer { vary, status, fields, freshness, .. } = trailer;
    let draft = Draft { resource, vary, status, fields, freshness };
    Ok((entry, draft.with(StoredBody::File(Arc::new(body)))))
}

/// A stored body that can be read: the file stays readable although it be removed.
#[derive(Debug)]
pub(super) enum Readable {
    Whole(Bytes),
    Pieces(FileSource),
}

impl DiskBody {
    fn blocks(&self) -> io::Result<Blocks> {
        let file = File::open(&self.path)?;
        let (trailer, own, _) = read_trailer(&file)?;
        if own != self.sum {
            return Err(damaged("another answer"));
        }
        let blocks = hex::decode(trailer.blocks).map_err(io::Error::other)?;
        Ok(Blocks { file, blocks, length: self.length })
    }

    /// Opens it off the worker's thread, and reads it when it is small.
    pub(super) async fn open(self: &Arc<Self>) -> io::Result<Readable> {
        let body = self.clone();
        let opened = tokio::task::spawn_blocking(move || {
            let blocks = body.blocks()?;
            if body.length > AT_ONCE {
                let (state, next) = (State::Open(Arc::new(blocks)), 0);
                return Ok(Readable::Pieces(FileSource { length: body.length, state, next }));
            }
            let mut whole = Vec::with_capacity(usize::try_from(body.length).unwrap_or(0));
            for at in 0..blocks.count() {
                whole.extend_from_slice(&blocks.read(at)?);
            }
            Ok(Readable::Whole(whole.into()))
        });
        opened.await.unwrap_or_else(|lost| Err(io::Error::other(lost)))
    }

    /// Opens it when its first piece is wanted.
    pub(super) fn later(self: &Arc<Self>) -> FileSource {
        FileSource { length: self.length, state: State::Shut(self.clone()), next: 0 }
    }
}

#[derive(Debug)]
struct Blocks {
    file: File,
    blocks: Vec<u8>,
    length: u64,
}

impl Blocks {
    fn count(&self) -> usize {
        self.blocks.len() / BLOCK_SUM
    }

    /// One block, checked.
    fn read(&self, at: usize) -> io::Result<Bytes> {
        let start = at as u64 * BLOCK as u64;
        let length = self.length.saturating_sub(start).min(BLOCK as u64);
        let mut block = vec![0; usize::try_from(length).unwrap_or(BLOCK)];
        self.file.read_exact_at(&mut block, start)?;
        let known = self.blocks.get(at * BLOCK_SUM..(at + 1) * BLOCK_SUM);
        if known != Some(&sum(&SHA256, &block).as_ref()[..BLOCK_SUM]) {
            return Err(damaged("a block with another digest"));
        }
        Ok(block.into())
    }
}

type Read = (Arc<Blocks>, Option<Bytes>);

#[derive(Debug)]
enum State {
    Shut(Arc<DiskBody>),
    Open(Arc<Blocks>),
    Reading(JoinHandle<io::Result<Read>>),
    Over,
}

/// Reads a large body as it is sent: a block in memory at a time.
#[derive(Debug)]
pub(super) struct FileSource {
    length: u64,
    state: State,
    next: usize,
}

impl BodySource for FileSource {
    fn length(&self) -> u64 {
        self.length
    }

    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Result<Option<Bytes>, Fault>> {
        let at = self.next;
        let read = move |blocks: Arc<Blocks>| {
            let block = (at < blocks.count()).then(|| blocks.read(at)).transpose()?;
            Ok((blocks, block))
        };
        let mut reading = match std::mem::replace(&mut self.state, State::Over) {
            State::Over => return Poll::Ready(Ok(None)),
            State::Reading(reading) => reading,
            State::Open(blocks) => tokio::task::spawn_blocking(move || read(blocks)),
            State::Shut(body) => {
                tokio::task::spawn_blocking(move || read(Arc::new(body.blocks()?)))
            }
        };
        let Poll::Ready(read) = Pin::new(&mut reading).poll(context) else {
            self.state = State::Reading(reading);
            return Poll::Pending;
        };
        match read.unwrap_or_else(|lost| Err(io::Error::other(lost))) {
            Ok((blocks, block)) => {
                if block.is_some() {
                    self.next += 1;
                    self.state = State::Open(blocks);
                }
                Poll::Ready(Ok(block))
            }
            Err(error) => {
                let sentence = "a stored answer cannot be read";
                Poll::Ready(Err(Fault::gateway(sentence, error.to_string())))
            }
        }
    }
}
