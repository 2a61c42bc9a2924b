//! `AuditLog`: every decision, on record and in a chain, written by a thread of its own.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::Mutex;

use super::collected::CollectionRecord;
use super::countersign::CountersignedRecord;
use super::decision::DecisionRecord;
use super::ends::{Ends, EndsFacts};
use super::error::Error;
use super::heir::{Orders, Output};
use super::json::Fields;
use super::lane::{Full, Lane, Lanes, Room, Stalled};
use super::progress::{Hold, Holds, Progress};
use super::record::{
    AdminRecord, ConfigRecord, ConnectionRecord, HandshakeRefusedRecord, IdentityRecord,
    IssuerRecord, Record, UpstreamRefusedRecord,
};
use super::redact::{LoggedHeader, RedactSettings, Redaction};
use super::settings::{Allows, Connections, DecisionLogSettings, RetainSettings, WhenFull};
use super::tally::{Counting, Noted};
use super::writer::Writer;
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
    /// How often the log says how the process stands, beside at its start.
    pub posture_every: Duration,
    /// Whether each decision that allows has its own record.
    pub allows: Allows,
    /// How long decisions of one kind are counted before a record tells of them.
    pub window: Duration,
    /// So many refusals of one kind have a record of their own in a minute, for each lane.
    pub single_denies: u32,
    /// So many kinds of decisions are told apart, for each lane, of what is allowed and of what is refused. Further ones have
    /// records of their own.
    pub kinds: usize,
    /// Which connections have records.
    pub connections: Connections,
    /// How long a decision that must be on record before it has effect waits for that.
    pub required_within: Duration,
    /// How long rotated files are kept, once [`AuditLog::begin_retention`] was called.
    pub retain: RetainSettings,
    /// What is left out.
    pub redact: RedactSettings,
    /// The headers that are logged.
    pub headers: Vec<LoggedHeader>,
}

impl AuditSettings {
    /// As an operator writes them.
    pub fn of(path: Option<PathBuf>, stdout: bool, settings: &DecisionLogSettings) -> Self {
        Self {
            path,
            stdout,
            rotate_bytes: settings.rotate_bytes,
            pending_bytes: 4 << 20,
            reserved_bytes: 1 << 20,
            required: settings.when_full == WhenFull::Refuse,
            sync: settings.sync,
            seal_within: Duration::from_secs(1),
            seal_records: 4096,
            posture_every: Duration::from_secs(3600),
            allows: settings.allows,
            window: Duration::from_secs(settings.window_seconds.max(1)),
            single_denies: settings.single_denies.max(1),
            kinds: 512,
            connections: settings.connections,
            required_within: Duration::from_secs(settings.required_seconds.max(1)),
            retain: settings.retain.clone(),
            redact: settings.redact.clone(),
            headers: settings.headers.clone(),
        }
    }
}

impl Default for AuditSettings {
    fn default() -> Self {
        Self::of(None, false, &DecisionLogSettings::default())
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
/// # use wardgate::observe::{AuditLog, AuditSettings, DecisionRecord, EndsFacts, Expected, Posture, verify};
/// # let folder = std::env::temp_dir().join(format!("wardgate-doc-{}", std::process::id()));
/// # let path = folder.join("audit.jsonl");
/// let settings = AuditSettings { path: Some(path.clone()), ..AuditSettings::default() };
/// let audit = AuditLog::open(settings, &Posture::default()).unwrap();
/// let lane = audit.lane();
/// let caller = "127.0.0.1:9".parse().unwrap();
/// let ends = lane.ends(&EndsFacts {
///     src_spiffe_id: Some("spiffe://shop/web"), ..EndsFacts::of(1, caller, 15006)
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
    ways: Arc<Ways>,
}

/// How all lanes of a log write.
struct Ways {
    required: bool,
    required_within: Duration,
    connections: Connections,
    counting: Counting,
    redaction: Redaction,
    /// The configuration that was put in force last, and when, in milliseconds since 1970.
    config_revision: AtomicU64,
    config_since: AtomicU64,
}

pub(super) struct State {
    pub(super) written: AtomicU64,
    pub(super) failing: AtomicBool,
    /// The same, for who waits for a change.
    pub(super) writing: Publisher<bool>,
    pub(super) progress: Publisher<Progress>,
    pub(super) holds: Holds,
    /// Old files may be deleted.
    pub(super) retires: AtomicBool,
    /// Whose seals it bears, once that is known.
    pub(super) sealed_by: OnceLock<Live<Identity>>,
}

impl Default for State {
    fn default() -> Self {
        Self {
            written: AtomicU64::new(0),
            failing: AtomicBool::new(false),
            writing: Publisher::new(true).0,
            retires: AtomicBool::new(false),
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

impl State {
    /// Notes whether the last write worked; `true` when that is news.
    pub(super) fn set_failing(&self, failing: bool) -> bool {
        let news = self.failing.swap(failing, Ordering::Relaxed) != failing;
        if news {
            self.writing.set(!failing);
        }
        news
    }
}

impl AuditLane {
    fn record<R: Record>(&self, record: &R) -> Result<(), Full> {
        self.record_with(record, |_| {})
    }

    fn record_with<R: Record>(
        &self,
        record: &R,
        more: impl FnOnce(&mut Fields<'_>),
    ) -> Result<(), Full> {
        let reserved = record.is_reserved();
        // The type's number is its place in the enum.
        let pushed = self.lane.push(R::TYPE as u8, reserved, |out| {
            let mut fields = Fields::first(out);
            record.write(&mut fields, &self.ways.redaction);
            more(&mut fields);
        });
        match pushed {
            Err(Full) if reserved || self.ways.required => Err(Full),
            // Counted by the lane, and told by a loss record.
            Err(Full) | Ok(()) => Ok(()),
        }
    }

    /// Writes down who is at the ends of a connection, without what must not be written.
    pub fn ends(&self, facts: &EndsFacts<'_>) -> Ends {
        Ends::new(facts, &self.ways.redaction)
    }

    /// Records a decision. Some hundred nanoseconds, no allocation, no system call but to wake a sleeping writer; and some
    /// dozen when the decision is counted with others of its kind ([`AuditSettings::allows`]).
    ///
    /// # Errors
    /// There is no room for a refusal or for what must stand, or for any decision if the log is required: refuse the request.
    pub fn decision(&self, record: &DecisionRecord<'_>) -> Result<(), Full> {
        let ways = &*self.ways;
        if self.lane.note(record, &ways.counting, &ways.redaction) == Noted::Counted {
            return Ok(());
        }
        self.record_with(record, |fields| {
            if record.config_revision == ways.config_revision.load(Ordering::Acquire) {
                let since = ways.config_since.load(Ordering::Acquire);
                fields.number("config_age_ms", unix_millis().saturating_sub(since));
            }
        })
    }

    /// Waits until everything that was recorded before is on file, and with [`AuditSettings::sync`] on the disk; at most
    /// [`AuditSettings::required_within`]. What must not happen unrecorded happens after it.
    ///
    /// # Errors
    /// It could not be written: refuse what it was about.
    pub async fn written(&self) -> Result<(), Stalled> {
        self.lane.written(self.ways.required_within).await
    }

    /// Have all connections records of their own, or only those that were forced to end?
    pub fn records_connections(&self) -> bool {
        self.ways.connections == Connections::All
    }

    /// Records a refused handshake. Dropped and counted when there is no room.
    ///
    /// # Errors
    /// As [`AuditLane::decision`], if the log is required.
    pub fn handshake_refused(&self, record: &HandshakeRefusedRecord<'_>) -> Result<(), Full> {
        self.record(record)
    }

    /// Records a handshake that failed on a connection which we made. Dropped and counted when there is no room.
    ///
    /// # Errors
    /// As [`AuditLane::decision`], if the log is required.
    pub fn upstream_refused(&self, record: &UpstreamRefusedRecord<'_>) -> Result<(), Full> {
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
        if matches!(record.event, "applied" | "restored") {
            self.ways.config_since.store(unix_millis(), Ordering::Release);
            self.ways.config_revision.store(record.revision, Ordering::Release);
        }
        self.record(record)
    }

    /// Records that somebody countersigned a seal of this log. Dropped and counted when there is no room.
    ///
    /// # Errors
    /// As [`AuditLane::decision`], if the log is required.
    pub fn countersigned(&self, record: &CountersignedRecord<'_>) -> Result<(), Full> {
        self.record(record)
    }

    /// Records what was found about a collected log.
    ///
    /// # Errors
    /// There is no room even in the reserved part.
    pub fn collection(&self, record: &CollectionRecord<'_>) -> Result<(), Full> {
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
        let counting = Counting {
            allows: settings.allows,
            window: u64::try_from(settings.window.as_millis()).unwrap_or(u64::MAX / 2),
            single_denies: settings.single_denies,
            kinds: settings.kinds,
        };
        let ways = Arc::new(Ways {
            required: settings.required,
            required_within: settings.required_within,
            connections: settings.connections,
            counting,
            redaction: Redaction::new(&settings.redact, &settings.headers)?,
            config_revision: AtomicU64::new(u64::MAX),
            config_since: AtomicU64::new(0),
        });
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
        let own = AuditLane { lane: lanes.lane(), ways };
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
        AuditLane { lane: self.lanes.lane(), ways: self.own.ways.clone() }
    }

    /// The way in for what is no worker: identity, feed, Admin API.
    pub fn control(&self) -> &AuditLane {
        &self.own
    }

    /// From now on files that were put aside are deleted when [`AuditSettings::retain`] says so. To be called when everybody who
    /// needs them has its [`Hold`].
    pub fn begin_retention(&self) {
        self.state.retires.store(true, Ordering::Release);
        self.lanes.look_again();
    }

    /// Is everything that is allowed refused when its record finds no room?
    pub fn is_required(&self) -> bool {
        self.own.ways.required
    }

    /// Whether the last write worked, and news of that.
    pub fn writing(&self) -> Live<bool> {
        self.state.writing.live()
    }

    /// Waits until everything recorded or counted before is written, at most `within`. Blocks the thread.
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
