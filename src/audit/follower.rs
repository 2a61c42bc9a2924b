//! `Follower`: hands a log on to one destination, record by record, behind a cursor on the disk.
//!
//! It reads the log's files and nothing else, so that it never slows whoever writes them. Only the process that owns the log may
//! follow it: a process that hands its log over finishes its followers before, and the new one starts its own after.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;

use super::board::{OutputBoard, Progress};
use super::cursor::{Cursor, CursorFile};
use super::destination::{Destination, Undelivered};
use super::reading::{Limits, LogReader, Portion, newest};
use super::selection::Selection;
use crate::observe::{AuditLog, Hold, Progress as Written};
use crate::rt::{Backoff, Live, Tasks};

/// What is followed, and how records are handed over.
#[derive(Clone, Debug)]
pub struct Following {
    /// The log's file; those that were put aside lie beside it.
    pub log: PathBuf,
    /// The folder of the cursors.
    pub cursors: PathBuf,
    /// How many records are handed over at once.
    pub batch: Batch,
    /// Which ones.
    pub selection: Selection,
    /// Without a cursor: begin behind what is there, in place of the oldest record.
    pub from_now: bool,
}

/// How many records are handed over at once.
#[derive(Clone, Copy, Debug)]
pub struct Batch {
    /// At most so many.
    pub records: usize,
    /// Bytes of their lines at most; a single record may be longer.
    pub bytes: usize,
    /// How long it waits after one batch for the next one to become larger.
    pub within: Duration,
}

impl Default for Batch {
    fn default() -> Self {
        Self { records: 512, bytes: 1 << 20, within: Duration::from_millis(250) }
    }
}

/// How often the files are looked at while there is nothing new; and while whoever writes them would say so.
const LOOK: Duration = Duration::from_millis(250);
const LOOK_AFTER: Duration = Duration::from_secs(1);
/// How long one try may take.
const DELIVER_WITHIN: Duration = Duration::from_secs(60);
/// Waiting times between tries.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// Longer than that, nobody else says when to try again.
const LONGEST_WISH: Duration = Duration::from_secs(300);

/// Hands a log on to one destination until it is finished or dropped.
#[derive(Debug)]
pub struct Follower {
    asked: watch::Sender<bool>,
    hold: SharedHold,
    tasks: Tasks,
}

type SharedHold = Arc<Mutex<Option<Hold>>>;

/// What keeps the log's files for a follower that is finished. Release it when the next one has begun, or none will.
#[derive(Debug, Default)]
#[must_use = "a hold that is only dropped keeps files of the log for as long as the process lives"]
pub struct Kept(Vec<Hold>);

impl Kept {
    /// The files may go.
    pub fn release(self) {
        self.0.into_iter().for_each(Hold::release);
    }

    pub(super) fn and(mut self, other: Self) -> Self {
        self.0.extend(other.0);
        self
    }
}

impl Follower {
    /// Goes on behind the destination's cursor. To be called within a runtime, by the process that owns the log. The files are
    /// looked at four times a second.
    pub fn start(
        destination: Box<dyn Destination>,
        following: Following,
        board: &OutputBoard,
    ) -> Self {
        Self::begin(destination, following, None, board)
    }

    /// The same for the log of this very process, which wakes the follower, and keeps files that it has not delivered yet.
    pub fn start_with(
        log: &AuditLog,
        destination: Box<dyn Destination>,
        following: Following,
        board: &OutputBoard,
    ) -> Self {
        Self::begin(destination, following, Some(log), board)
    }

    fn begin(
        destination: Box<dyn Destination>,
        following: Following,
        log: Option<&AuditLog>,
        board: &OutputBoard,
    ) -> Self {
        let (asked, asks) = watch::channel(false);
        let name = destination.name().to_owned();
        let cursor_file = CursorFile::of(&following.cursors, &name);
        let progress = board.row(&name);
        // One small file at a start; before anything of the log may be retired.
        let cursor = cursor_file.read();
        let delivered = match &cursor {
            Ok(Some(cursor)) => cursor.seq,
            Ok(None) | Err(_) => 0,
        };
        let hold = Arc::new(Mutex::new(log.map(|log| log.hold(delivered))));
        let work = Work {
            name,
            destination,
            following,
            cursor_file,
            progress,
            asks,
            written: log.map(AuditLog::progress),
            hold: hold.clone(),
            cursor: Some(cursor),
            reader: None,
            saved: None,
            is_saving: true,
        };
        let mut tasks = Tasks::new();
        tasks.add(work.run());
        Self { asked, hold, tasks }
    }

    /// Hands over what is there and ends; ends at once when the other side does not take it, and in any case `within` this time.
    /// What was not handed over is when the next follower of this destination starts.
    pub async fn finish(mut self, within: Duration) -> Kept {
        self.asked.send_replace(true);
        let _ = tokio::time::timeout(within, self.tasks.any_ended()).await;
        Kept(self.hold.lock().take().into_iter().collect())
    }
}

struct Work {
    name: String,
    destination: Box<dyn Destination>,
    following: Following,
    cursor_file: CursorFile,
    progress: Arc<Progress>,
    asks: watch::Receiver<bool>,
    /// How far the log is written, when it is this process' own.
    written: Option<Live<Written>>,
    hold: SharedHold,
    /// What was read at the start, until it is used.
    cursor: Option<io::Result<Option<Cursor>>>,
    reader: Option<LogReader>,
    saved: Option<Cursor>,
    /// The last cursor could be saved.
    is_saving: bool,
}

impl Work {
    async fn run(mut self) {
        let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
        loop {
            let portion = match self.read().await {
                Ok(portion) => portion,
                Err(error) => {
                    if self.progress.fails(format!("the decision log cannot be read: {error}")) {
                        tracing::error!(output = %self.name, %error, "the decision log cannot be read");
                    }
                    if self.is_asked() || self.pause(backoff.next()).await {
                        return;
                    }
                    continue;
                }
            };
            self.tell(&portion);
            let (is_full, is_empty) = (portion.is_full, portion.records.is_empty());
            if !self.hand_over(portion).await {
                return;
            }
            backoff.reset();
            if is_full {
                self.look_ahead().await;
                continue;
            }
            self.progress.is_level();
            match (self.is_asked(), is_empty) {
                (true, true) => return,
                (true, false) => {}
                (false, true) => self.wait_for_news().await,
                (false, false) => _ = self.pause(self.following.batch.within).await,
            }
        }
    }

    fn is_asked(&self) -> bool {
        *self.asks.borrow()
    }

    /// Waits; `true` when it is asked to end.
    async fn pause(&mut self, time: Duration) -> bool {
        tokio::select! {
            // Whoever asks may be gone.
            _ = self.asks.changed() => true,
            () = tokio::time::sleep(time) => self.is_asked(),
        }
    }

    /// Waits until there may be more, or until it is asked to end.
    async fn wait_for_news(&mut self) {
        let Some(written) = &mut self.written else {
            self.pause(LOOK).await;
            return;
        };
        let is_there = tokio::select! {
            is_there = written.changed() => is_there,
            _ = self.asks.changed() => true,
            () = tokio::time::sleep(LOOK_AFTER) => true,
        };
        if !is_there {
            self.written = None;
        }
    }

    async fn read(&mut self) -> io::Result<Portion> {
        let batch = self.following.batch;
        let limits = Limits { records: batch.records.max(1), bytes: batch.bytes };
        let selection = self.following.selection.clone();
        let mut reader = match self.reader.take() {
            Some(reader) => reader,
            None => self.open(),
        };
        let reading = tokio::task::spawn_blocking(move || {
            let portion = reader.read(limits, &selection);
            (reader, portion)
        });
        let (reader, portion) = reading.await.map_err(io::Error::other)?;
        if portion.is_ok() {
            self.reader = Some(reader);
        } else {
            // Behind what was handed over, not behind what was read.
            let (log, from_now) = (&self.following.log, self.following.from_now);
            self.reader =
                self.saved.clone().map(|saved| LogReader::new(log, Some(saved), from_now));
        }
        portion
    }

    fn open(&mut self) -> LogReader {
        let (cursor, from_now) = match self.cursor.take().unwrap_or(Ok(None)) {
            Ok(cursor) => (cursor, self.following.from_now),
            Err(error) => {
                tracing::error!(output = %self.name, %error, "what was handed over before is not known any more; the oldest record is the next");
                (None, false)
            }
        };
        if let Some(cursor) = &cursor {
            self.progress.is_at(cursor.seq);
        }
        self.saved.clone_from(&cursor);
        LogReader::new(&self.following.log, cursor, from_now)
    }

    /// Tells what was met while reading.
    fn tell(&self, portion: &Portion) {
        let Portion { missing, damaged, is_another_log, .. } = *portion;
        self.progress.passed_over(missing, damaged);
        if is_another_log {
            tracing::warn!(output = %self.name, "this is another decision log than before; it is handed over from its oldest record on");
        }
        if missing > 0 {
            tracing::error!(output = %self.name, records = missing, "records of the decision log were gone before they could be delivered");
        }
        if damaged > 0 {
            tracing::error!(output = %self.name, lines = damaged, "lines of the decision log are not what was written, and are not delivered; see `wardgate audit verify`");
        }
    }

    /// Hands a portion over, however long that takes. `false` when it was asked to end before.
    async fn hand_over(&mut self, portion: Portion) -> bool {
        let Portion { records, places, end, first_time, .. } = portion;
        let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
        let mut done = 0;
        self.progress.waits_since(first_time.as_deref());
        while let Some(rest) = records.get(done..).filter(|rest| !rest.is_empty()) {
            let trying = tokio::time::timeout(DELIVER_WITHIN, self.destination.deliver(rest));
            let outcome = trying.await.unwrap_or_else(|_| {
                Err(Undelivered::Later(format!("no answer within {DELIVER_WITHIN:?}")))
            });
            let (why, wait) = match outcome {
                Ok(()) => {
                    self.arrived(rest.len());
                    break;
                }
                Err(Undelivered::Never { seq, why }) => {
                    let before = rest.iter().take_while(|record| record.seq != seq).count();
                    // Who names none of them means the first.
                    let before = if before == rest.len() { 0 } else { before };
                    self.arrived(before);
                    self.progress.undeliverable(1);
                    tracing::warn!(output = %self.name, seq, why, "a record of the decision log is not taken by the other side, and never will be");
                    done += before + 1;
                    self.is_behind(&places[done - 1]).await;
                    continue;
                }
                Err(Undelivered::Partly { refused, why }) => {
                    let refused = refused.min(rest.len() as u64);
                    let (first, last) = (rest[0].seq, rest[rest.len() - 1].seq);
                    self.arrived(rest.len() - usize::try_from(refused).unwrap_or(rest.len()));
                    self.progress.undeliverable(refused);
                    tracing::warn!(output = %self.name, refused, first, last, why, "some records of the decision log are not taken by the other side, and never will be");
                    break;
                }
                Err(Undelivered::Later(why)) => (why, Duration::ZERO),
                Err(Undelivered::NotBefore { wait, why }) => (why, wait.min(LONGEST_WISH)),
            };
            if self.progress.fails(why.clone()) {
                tracing::warn!(output = %self.name, why, "the decision log cannot be delivered; its records wait in the log");
            }
            self.look_ahead().await;
            let pause = backoff.next().max(wait);
            if self.is_asked() || self.pause(pause).await {
                return false;
            }
        }
        if let Some(end) = end {
            self.is_behind(&end).await;
        }
        true
    }

    fn arrived(&self, records: usize) {
        self.progress.delivered(records as u64);
        if records > 0 && self.progress.works() {
            tracing::info!(output = %self.name, "the decision log is delivered again");
        }
    }

    /// All up to there is handed over: remembers it.
    async fn is_behind(&mut self, place: &Cursor) {
        self.progress.is_at(place.seq);
        if let Some(hold) = &*self.hold.lock() {
            hold.delivered(place.seq);
        }
        if self.saved.as_ref() == Some(place) {
            return;
        }
        let (file, cursor) = (self.cursor_file.clone(), place.clone());
        let written = tokio::task::spawn_blocking(move || file.write(&cursor)).await;
        let written = written.map_err(io::Error::other).flatten();
        if let (Err(error), true) = (&written, self.is_saving) {
            tracing::error!(output = %self.name, %error, "what was delivered cannot be remembered; after a restart it is delivered again");
        }
        self.is_saving = written.is_ok();
        self.saved = Some(place.clone());
    }

    /// How far the log is ahead.
    async fn look_ahead(&mut self) {
        let written = self.written.as_ref().map_or(0, |written| written.load().seq);
        if written > 0 {
            return self.progress.newest_is(written);
        }
        let log = self.following.log.clone();
        if let Ok(Ok(Some(seq))) = tokio::task::spawn_blocking(move || newest(&log)).await {
            self.progress.newest_is(seq);
        }
    }
}
