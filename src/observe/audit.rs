//! `AuditLog`: every decision, on record and in a chain, written by a thread of its own.

use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::chain::{self, Link};
use super::error::Error;
use super::heir::{Orders, Output};
use super::json::{self, Fields};
use super::lane::{Frame, Full, Lane, Lanes, Lost, Room, Sink, Stalled, push_frame};
use super::log_file::{Damage, LogFile, create, next_number, open_file, put_aside};
use super::progress::{Hold, Holds, Progress};
use super::record::{
    AdminRecord, ConfigRecord, ConnectionRecord, DecisionRecord, HandshakeRefusedRecord,
    IdentityRecord, IssuerRecord, Record, Type,
};
use super::seal::{Place, Sealer};
use crate::identity::Identity;
use crate::rt::{Live, Publisher, unix_millis};

/// Where the log goes and how much of it may wait.
#[derive(Clone, Debug)]
pub struct AuditSettings {
    /// The file; its folder is made if needed. `None`: no file.
    pub path: Option<PathBuf>,
    /// Write each line to standard output as well.
    pub stdout: bool,
    /// A file of this many bytes is put aside as `audit-000001.jsonl` and so on, and a new one begun. 0: never.
    pub rotate_bytes: u64,
    /// Bytes of records of one worker that may wait to be written. What comes on top is dropped and counted.
    pub pending_bytes: usize,
    /// Further bytes for records that must not be lost: refusals, and changes of identity and configuration.
    pub reserved_bytes: usize,
    /// Also refuse what was allowed when there is no room for its record.
    pub required: bool,
    /// Ask the disk to keep what was written, with each batch.
    pub sync: bool,
    /// How long a record waits for its seal at most, once there is an identity to seal with ([`AuditLog::seal_as`]).
    pub seal_within: Duration,
    /// So many records are sealed at once, without waiting.
    pub seal_records: u64,
}

impl Default for AuditSettings {
    fn default() -> Self {
        Self {
            path: None,
            stdout: false,
            rotate_bytes: 256 << 20,
            pending_bytes: 4 << 20,
            reserved_bytes: 1 << 20,
            required: false,
            sync: false,
            seal_within: Duration::from_secs(1),
            seal_records: 4096,
        }
    }
}

/// Who writes the log: stands in the record that opens it.
#[derive(Clone, Debug, Default)]
pub struct Posture {
    /// The roles of the process, as `sidecar` or `control`.
    pub role: String,
    /// Our identity, if it is known at the start.
    pub spiffe_id: Option<String>,
    /// Anything that an auditor should know: `("policy_default", "deny")`.
    pub facts: Vec<(&'static str, String)>,
}

/// The decision log of a process. Clones are the same log; the last one to go writes what is left.
///
/// A worker takes a lane once and writes its records there:
/// ```
/// # use wardgate::observe::{AuditLog, AuditSettings, DecisionRecord, Ends, EndsFacts, Expected, Posture, verify};
/// # let folder = std::env::temp_dir().join(format!("wardgate-doc-{}", std::process::id()));
/// # let path = folder.join("audit.jsonl");
/// let settings = AuditSettings { path: Some(path.clone()), ..AuditSettings::default() };
/// let audit = AuditLog::open(settings, &Posture::default()).unwrap();
/// let lane = audit.lane();
/// let ends = Ends::new(&EndsFacts {
///     conn_id: 1, src_spiffe_id: Some("spiffe://shop/web"), src_serial: None, src_spki_sha256: None,
///     src_not_after: None, src_addr: "127.0.0.1:9".parse().unwrap(), src_via: None, dst_spiffe_id: None, dst_port: 15006,
/// });
/// lane.decision(&DecisionRecord::of(&ends, true)).unwrap();
/// audit.flush(std::time::Duration::from_secs(5)).unwrap();
/// assert!(verify(&[path], Expected::default()).unwrap().is_sound());
/// # std::fs::remove_dir_all(folder).unwrap();
/// ```
#[derive(Clone)]
pub struct AuditLog {
    pub(super) lanes: Arc<Lanes>,
    /// For records that come from no worker.
    own: AuditLane,
    state: Arc<State>,
    pub(super) orders: Orders,
    _thread: Arc<Thread>,
}

impl std::fmt::Debug for AuditLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AuditLog").field("state", &self.state).finish_non_exhaustive()
    }
}

/// One worker's way into the log.
#[derive(Clone)]
pub struct AuditLane {
    lane: Arc<Lane>,
    required: bool,
}

struct State {
    written: AtomicU64,
    failing: AtomicBool,
    progress: Publisher<Progress>,
    holds: Holds,
    /// Whose seals it bears, once that is known.
    sealed_by: OnceLock<Live<Identity>>,
}

impl Default for State {
    fn default() -> Self {
        Self {
            written: AtomicU64::new(0),
            failing: AtomicBool::new(false),
            progress: Publisher::new(Progress::default()).0,
            holds: Holds::default(),
            sealed_by: OnceLock::new(),
        }
    }
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State")
            .field("written", &self.written)
            .field("failing", &self.failing)
            .finish_non_exhaustive()
    }
}

/// The writing thread; dropping it ends the log.
struct Thread {
    lanes: Arc<Lanes>,
    handle: Mutex<Option<JoinHandle<()>>>,
}

impl Drop for Thread {
    fn drop(&mut self) {
        self.lanes.close();
        if let Some(handle) = self.handle.get_mut().take() {
            let _ = handle.join();
        }
    }
}

impl AuditLane {
    fn record<R: Record>(&self, record: &R) -> Result<(), Full> {
        let reserved = record.is_reserved();
        // The type's number is its place in the enum.
        let pushed = self.lane.push(R::TYPE as u8, reserved, |out| {
            record.write(&mut Fields::first(out));
        });
        match pushed {
            Err(Full) if reserved || self.required => Err(Full),
            // Counted by the lane, and told by a loss record.
            Err(Full) | Ok(()) => Ok(()),
        }
    }

    /// Records a decision. Some hundred nanoseconds, no allocation, no system call but to wake a sleeping writer.
    ///
    /// # Errors
    /// There is no room for a refusal, or for any decision if the log is required: refuse the request.
    pub fn decision(&self, record: &DecisionRecord<'_>) -> Result<(), Full> {
        self.record(record)
    }

    /// Records a refused handshake. Dropped and counted when there is no room.
    ///
    /// # Errors
    /// As [`AuditLane::decision`], if the log is required.
    pub fn handshake_refused(&self, record: &HandshakeRefusedRecord<'_>) -> Result<(), Full> {
        self.record(record)
    }

    /// Records what became of a connection. Dropped and counted when there is no room, unless we forced it to close.
    ///
    /// # Errors
    /// As [`AuditLane::decision`].
    pub fn connection(&self, record: &ConnectionRecord<'_>) -> Result<(), Full> {
        self.record(record)
    }

    /// Records a change of identity.
    ///
    /// # Errors
    /// There is no room even in the reserved part.
    pub fn identity(&self, record: &IdentityRecord<'_>) -> Result<(), Full> {
        self.record(record)
    }

    /// Records what the issuer gave or refused. A refusal is dropped and counted when there is no room.
    ///
    /// # Errors
    /// There is no room even in the reserved part: give nothing.
    pub fn issuer(&self, record: &IssuerRecord<'_>) -> Result<(), Full> {
        self.record(record)
    }

    /// Records a change of configuration.
    ///
    /// # Errors
    /// There is no room even in the reserved part.
    pub fn config(&self, record: &ConfigRecord<'_>) -> Result<(), Full> {
        self.record(record)
    }

    /// Records a call of the Admin API.
    ///
    /// # Errors
    /// There is no room even in the reserved part: refuse the call.
    pub fn admin(&self, record: &AdminRecord<'_>) -> Result<(), Full> {
        self.record(record)
    }
}

impl AuditLog {
    /// Opens the log and starts its thread. A sound file is continued; a damaged one is put aside untouched.
    ///
    /// # Errors
    /// The file cannot be opened, or belongs to another process. Without a log that was asked for, nothing should start.
    pub fn open(settings: AuditSettings, posture: &Posture) -> Result<Self, Error> {
        Self::start(settings, posture, false)
    }

    pub(super) fn start(
        settings: AuditSettings,
        posture: &Posture,
        is_held: bool,
    ) -> Result<Self, Error> {
        let state = Arc::new(State::default());
        let room = Room { common: settings.pending_bytes, reserved: settings.reserved_bytes };
        let required = settings.required;
        let lanes = Lanes::new(room);
        let orders = Orders::default();
        let mut writer = Writer::new(settings, posture, state.clone(), orders.clone());
        if is_held {
            writer.output = Output::Held;
        } else {
            writer.open("start")?;
        }
        let running = lanes.clone();
        let handle = std::thread::Builder::new()
            .name("audit".into())
            .spawn(move || running.run(&mut writer))
            .map_err(|source| Error::Thread { source })?;
        let own = AuditLane { lane: lanes.lane(), required };
        let thread = Thread { lanes: lanes.clone(), handle: Mutex::new(Some(handle)) };
        Ok(Self { lanes, own, state, orders, _thread: Arc::new(thread) })
    }

    /// From now on what is written is sealed: signed with the SVID of this identity, whichever it is at the time. The first
    /// identity that is given stays; what was written before is covered by the first seal.
    pub fn seal_as(&self, identity: Live<Identity>) {
        if self.state.sealed_by.set(identity).is_ok() {
            self.lanes.look_again();
        }
    }

    /// A way in for one more worker. Take it once, not for each record.
    pub fn lane(&self) -> AuditLane {
        AuditLane { lane: self.lanes.lane(), required: self.own.required }
    }

    /// The way in for what is no worker: identity, feed, Admin API.
    pub fn control(&self) -> &AuditLane {
        &self.own
    }

    /// Waits until everything recorded before is written, at most `within`. Blocks the thread.
    ///
    /// # Errors
    /// The time is over.
    pub fn flush(&self, within: Duration) -> Result<(), Stalled> {
        self.lanes.flush(within)
    }

    /// Records written since the start.
    pub fn written(&self) -> u64 {
        self.state.written.load(Ordering::Relaxed)
    }

    /// How far the file is written: wakes whoever follows it, once a batch.
    ///
    /// While another process has the file ([`AuditLog::open_later`], [`AuditLog::bequeath`]) nothing is published here.
    pub fn progress(&self) -> Live<Progress> {
        self.state.progress.live()
    }

    /// Keeps rotated files whose records somebody still has to take; `delivered` is the last one that it has by now, 0 when
    /// it has none.
    pub fn hold(&self, delivered: u64) -> Hold {
        self.state.holds.hold(delivered)
    }

    /// Records dropped since the start, for `wardgate_audit_lost_total`.
    pub fn lost(&self) -> u64 {
        self.lanes.lost()
    }

    /// The last write worked. While it does not, records wait as long as there is room.
    pub fn is_writing(&self) -> bool {
        !self.state.failing.load(Ordering::Relaxed)
    }
}

/// How often the writer looks whether its file is still where it belongs.
const LOOK: Duration = Duration::from_secs(1);
/// How long the writer sleeps at least.
const SOON: Duration = Duration::from_millis(5);

/// The thread's part: numbers the records, chains them and writes them.
pub(super) struct Writer {
    settings: AuditSettings,
    posture: Posture,
    state: Arc<State>,
    pub(super) orders: Orders,
    pub(super) output: Output,
    file: Option<LogFile>,
    link: Link,
    pub(super) boot_id: String,
    /// The batch, and how much of it each output has.
    pub(super) batch: Vec<u8>,
    pub(super) in_file: usize,
    in_stdout: usize,
    records: u64,
    /// Standard output is gone; said once.
    stdout_closed: bool,
    looked: Instant,
    dirty: bool,
    /// The number of the current file, once it is put aside.
    number: u64,
    sealer: Option<Sealer>,
    /// Records since the last seal, and since when.
    unsealed: u64,
    unsealed_since: Option<Instant>,
}

impl Writer {
    fn new(settings: AuditSettings, posture: &Posture, state: Arc<State>, orders: Orders) -> Self {
        Self {
            state,
            posture: posture.clone(),
            orders,
            output: Output::Own,
            file: None,
            link: Link::default(),
            boot_id: format!("{:016x}", uuid::Uuid::new_v4().as_u64_pair().0),
            batch: Vec::with_capacity(64 << 10),
            in_file: 0,
            in_stdout: 0,
            records: 0,
            stdout_closed: false,
            looked: Instant::now(),
            dirty: false,
            number: 0,
            sealer: None,
            unsealed: 0,
            unsealed_since: None,
            settings,
        }
    }

    /// Opens the file and says in it who writes from here on.
    pub(super) fn open(&mut self, event: &str) -> Result<(), Error> {
        let mut opened = None;
        if let Some(path) = self.settings.path.clone() {
            let found = open_file(&path)?;
            self.link = found.link;
            self.file = Some(found.file);
            self.number = next_number(&path);
            if let Some(damage) = &found.damage {
                tracing::error!(file = %damage.file, why = %damage.why, "the audit log was damaged; it was put aside");
                self.damaged(damage);
            }
            opened = Some((found.is_new && found.damage.is_none(), found.continues));
        }
        let (opens, continues) = opened.unwrap_or((self.link.seq == 0, None));
        let posture = self.posture.clone();
        self.compose_posture(event, opens, continues.as_deref(), |fields| {
            fields.text("version", env!("CARGO_PKG_VERSION"));
            fields.number("pid", std::process::id());
            fields.text("role", &posture.role);
            fields.some_text("spiffe_id", posture.spiffe_id.as_deref());
            for (key, value) in &posture.facts {
                fields.text(key, value);
            }
        });
        // The first write is made here, so that a disk that takes none is an error of the start.
        if let (Err(source), Some(file)) = (self.write_file(), &self.file) {
            return Err(Error::Open { path: file.path.clone(), source });
        }
        Ok(())
    }

    /// Writes what was taken so far and lets go of the file; another process may then go on with it.
    pub(super) fn let_go(&mut self) -> Result<(), Error> {
        let written = self.write_file();
        if let (Err(source), Some(file)) = (written, &self.file) {
            return Err(Error::Open { path: file.path.clone(), source });
        }
        if !self.write() {
            tracing::warn!("a part of the audit log waits for its disk");
        }
        if let Some(log) = self.file.take() {
            let _ = log.file.sync_data();
        }
        Ok(())
    }

    /// Writes records to standard output as well, or no longer.
    pub(super) fn set_stdout(&mut self, stdout: bool) {
        self.settings.stdout = stdout;
    }

    fn compose_posture(
        &mut self,
        event: &str,
        opens: bool,
        continues: Option<&str>,
        more: impl FnOnce(&mut Fields<'_>),
    ) {
        self.compose(Type::Posture, unix_millis(), |fields| {
            fields.text("event", event);
            if opens {
                fields.flag("opens", true);
            }
            fields.some_text("continues", continues);
            more(fields);
        });
    }

    fn damaged(&mut self, damage: &Damage) {
        let after = (self.link.seq > 0).then_some(self.link.seq);
        self.compose(Type::Loss, unix_millis(), |fields| {
            fields.flag("opens", true);
            fields.text("event", "damaged");
            fields.object("damaged", |fields| {
                fields.text("file", &damage.file);
                fields.some_number("after_seq", after);
                fields.number("bytes", damage.bytes);
                fields.text("why", &damage.why);
            });
        });
    }

    /// Adds one line to the batch.
    fn compose(&mut self, kind: Type, unix_millis: u64, write: impl FnOnce(&mut Fields<'_>)) {
        let out = &mut self.batch;
        let from = out.len();
        out.push(b'{');
        let mut fields = Fields::first(out);
        fields.number("seq", self.link.seq + 1);
        fields.time("time", unix_millis);
        fields.text("type", kind.name());
        fields.text("boot_id", &self.boot_id);
        write(&mut fields);
        out.extend_from_slice(b",\"prev\":\"");
        chain::push_hex(&self.link.hash, out);
        out.push(b'"');
        let hash = chain::seal(&self.link.hash, out, from);
        self.link = Link { seq: self.link.seq + 1, hash };
        self.records += 1;
        self.unsealed += 1;
        self.unsealed_since.get_or_insert_with(Instant::now);
    }

    /// Signs for everything up to here, when it is time for that and there is somebody to sign.
    fn seal(&mut self, closing: bool) {
        // What another process writes, that one seals.
        if !matches!(self.output, Output::Own) {
            return;
        }
        if self.sealer.is_none() {
            self.sealer = self.state.sealed_by.get().cloned().map(Sealer::new);
        }
        let is_due = closing
            || self.unsealed >= self.settings.seal_records
            || self
                .unsealed_since
                .is_some_and(|since| since.elapsed() >= self.settings.seal_within);
        if self.unsealed == 0 || !is_due {
            return;
        }
        let Some(mut sealer) = self.sealer.take() else { return };
        let millis = unix_millis();
        let (mut time, mut prev, mut text) = (Vec::new(), Vec::new(), Vec::new());
        json::rfc3339(millis, &mut time);
        chain::push_hex(&self.link.hash, &mut prev);
        let place = Place {
            boot_id: &self.boot_id,
            seq: self.link.seq + 1,
            time: std::str::from_utf8(&time).unwrap_or_default(),
            prev: std::str::from_utf8(&prev).unwrap_or_default(),
        };
        let mut fields = Fields::first(&mut text);
        fields.number("records", self.unsealed);
        let is_signed = sealer.write(place, &mut fields);
        self.sealer = Some(sealer);
        if is_signed {
            self.compose(Type::Seal, millis, |fields| fields.raw(&text));
            (self.unsealed, self.unsealed_since) = (0, None);
        } else {
            // Without an identity it is tried again when the next second is over.
            self.unsealed_since = Some(Instant::now());
        }
    }

    fn write_file(&mut self) -> io::Result<()> {
        let Some(log) = &mut self.file else {
            self.in_file = self.batch.len();
            return Ok(());
        };
        while self.in_file < self.batch.len() {
            // A part that was written before an error stays written; the rest follows it.
            match log.file.write(&self.batch[self.in_file..]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(bytes) => {
                    self.in_file += bytes;
                    log.bytes += bytes as u64;
                    self.dirty = true;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        if self.settings.sync && self.dirty {
            log.file.sync_data()?;
            self.dirty = false;
        }
        Ok(())
    }

    fn write_stdout(&mut self) {
        if !self.settings.stdout || self.stdout_closed {
            self.in_stdout = self.batch.len();
            return;
        }
        let mut stdout = io::stdout().lock();
        let rest = &self.batch[self.in_stdout..];
        if let Err(error) = stdout.write_all(rest).and_then(|()| stdout.flush()) {
            tracing::error!(%error, "the audit log cannot be written to standard output any more");
            self.stdout_closed = true;
            if self.file.is_none() {
                self.state.failing.store(true, Ordering::Relaxed);
            }
        }
        self.in_stdout = self.batch.len();
    }

    /// Puts a file aside that has grown enough, and begins the next one.
    fn rotate(&mut self) -> Result<(), Error> {
        let Some(log) = &mut self.file else { return Ok(()) };
        let limit = self.settings.rotate_bytes;
        if limit == 0 || log.bytes < limit {
            return Ok(());
        }
        let open = |source| Error::Open { path: log.path.clone(), source };
        log.file.sync_data().map_err(open)?;
        let aside = put_aside(&log.path, self.number)?;
        self.number += 1;
        self.begin(&aside.file_name().unwrap_or_default().to_string_lossy(), "rotated")
    }

    /// Begins a new file that continues the chain.
    fn begin(&mut self, continues: &str, event: &str) -> Result<(), Error> {
        let Some(log) = &mut self.file else { return Ok(()) };
        let path = log.path.clone();
        *log = LogFile { file: create(&path)?, path, bytes: 0 };
        if let Some(sealer) = &mut self.sealer {
            sealer.begin_file();
        }
        self.compose_posture(event, true, Some(continues), |_| {});
        Ok(())
    }

    /// Somebody may have moved the file away: what is written then would be in nobody's sight.
    fn look(&mut self) -> Result<(), Error> {
        if self.looked.elapsed() < LOOK {
            return Ok(());
        }
        self.looked = Instant::now();
        let Some(log) = &self.file else { return Ok(()) };
        let read = |source| Error::Read { path: log.path.clone(), source };
        match std::fs::metadata(&log.path) {
            Ok(there) => {
                let ours = log.file.metadata().map_err(read)?;
                if (there.dev(), there.ino()) == (ours.dev(), ours.ino()) {
                    return Ok(());
                }
                Err(Error::InUse { path: log.path.clone() })
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                tracing::warn!(file = %log.path.display(), "the audit log was moved away; a new file is begun");
                self.begin("a file that was moved away", "moved_away")
            }
            Err(source) => Err(read(source)),
        }
    }
}

impl Sink for Writer {
    fn attend(&mut self) {
        self.obey();
    }

    fn is_held(&self) -> bool {
        matches!(self.output, Output::Held)
    }

    fn take(&mut self, frame: &Frame<'_>) {
        if let Output::Heir(_) = self.output {
            self.records += 1;
            return push_frame(&mut self.batch, frame);
        }
        self.compose(Type::of(frame.kind), frame.unix_millis, |fields| fields.raw(frame.body));
    }

    fn lost(&mut self, lost: Lost) {
        let mut body = Vec::new();
        let mut fields = Fields::first(&mut body);
        fields.text("event", "dropped");
        fields.number("lost", lost.common + lost.reserved);
        fields.number("lost_denies", lost.reserved);
        fields.time("first_lost", lost.first_millis);
        fields.time("last_lost", lost.last_millis);
        // The type's number is its place in the enum.
        self.take(&Frame { kind: Type::Loss as u8, unix_millis: unix_millis(), body: &body });
    }

    fn taken(&mut self, closing: bool) {
        self.seal(closing);
    }

    fn sleeps(&self) -> Option<Duration> {
        self.state.sealed_by.get()?;
        let since = self.unsealed_since.filter(|_| matches!(self.output, Output::Own))?;
        Some(self.settings.seal_within.saturating_sub(since.elapsed()).max(SOON))
    }

    fn ready(&mut self) {
        if !matches!(self.output, Output::Own) {
            return;
        }
        // Between two batches, so that a new file begins with the record that opens it.
        if let Err(error) = self.look().and_then(|()| self.rotate()) {
            tracing::error!(error = %Chain(&error), "the audit log goes on in the same file");
        }
    }

    fn write(&mut self) -> bool {
        if let Output::Heir(_) = self.output {
            return self.write_to_heir();
        }
        let written = self.write_file();
        let failing = written.is_err();
        if let Err(error) = written
            && !self.state.failing.swap(true, Ordering::Relaxed)
        {
            tracing::error!(%error, "the audit log cannot be written; records wait as long as there is room");
        }
        self.write_stdout();
        if failing {
            return false;
        }
        if !(self.stdout_closed && self.file.is_none()) {
            self.state.failing.store(false, Ordering::Relaxed);
        }
        self.is_out();
        true
    }
}

impl Writer {
    /// The batch is out, and counted.
    pub(super) fn is_out(&mut self) {
        self.state.written.fetch_add(std::mem::take(&mut self.records), Ordering::Relaxed);
        self.batch.clear();
        (self.in_file, self.in_stdout) = (0, 0);
        let progress = Progress { seq: self.link.seq, file: self.number };
        if matches!(self.output, Output::Own) && *self.state.progress.live().load() != progress {
            self.state.progress.set(progress);
        }
    }
}

/// An error with its causes in one line.
struct Chain<'a>(&'a dyn std::error::Error);

impl std::fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}
