//! `Writer`: the log's thread. It numbers the records, chains them, seals them and writes them.

use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::audit::{AuditSettings, Posture, State};
use super::chain::{self, Link};
use super::error::Error;
use super::heir::{Orders, Output};
use super::json::{self, Fields};
use super::lane::{Frame, Lost, Sink, push_frame};
use super::log_file::{Damage, LogFile, create, next_number, open_file, put_aside};
use super::progress::Progress;
use super::record::Type;
use super::seal::{Place, Sealer};
use crate::rt::unix_millis;

/// How often the writer looks whether its file is still where it belongs.
const LOOK: Duration = Duration::from_secs(1);
/// How long the writer sleeps at least.
const SOON: Duration = Duration::from_millis(5);

/// The thread's part: numbers the records, chains them and writes them.
pub(super) struct Writer {
    pub(super) settings: AuditSettings,
    posture: Posture,
    pub(super) state: Arc<State>,
    pub(super) orders: Orders,
    pub(super) output: Output,
    pub(super) file: Option<LogFile>,
    link: Link,
    /// What went out last is on file, here or at the heir.
    pub(super) is_confirmed: bool,
    /// This start of the process.
    boot: u64,
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
    watch: ClockWatch,
    /// When the posture was told the last time.
    told_posture: Instant,
    /// Files that are deleted when the record of that is written.
    pub(super) retired: Vec<PathBuf>,
    pub(super) looked_at_retention: Option<Instant>,
}

/// Tells when the system's clock was set, by the clock that is never set.
struct ClockWatch {
    started: Instant,
    at: Instant,
    unix_millis: u64,
}

/// A smaller jump of the clock is none.
const STEP: i64 = 1000;

impl ClockWatch {
    fn new() -> Self {
        let now = Instant::now();
        Self { started: now, at: now, unix_millis: unix_millis() }
    }

    /// By how many milliseconds the clock was set since the last look. What a clock gains or loses in an hour by being slewed is
    /// no step.
    fn step(&mut self, at: Instant, unix_millis: u64) -> Option<i64> {
        let passed = i64::try_from(at.duration_since(self.at).as_millis()).unwrap_or(i64::MAX);
        let told = i64::try_from(unix_millis).unwrap_or(i64::MAX)
            - i64::try_from(self.unix_millis).unwrap_or(i64::MAX);
        (self.at, self.unix_millis) = (at, unix_millis);
        let step = told.saturating_sub(passed);
        (step.abs() >= STEP + passed / 1000).then_some(step)
    }
}

impl Writer {
    pub(super) fn new(
        settings: AuditSettings,
        posture: &Posture,
        state: Arc<State>,
        orders: Orders,
    ) -> Self {
        let boot = uuid::Uuid::new_v4().as_u64_pair().0;
        Self {
            state,
            posture: posture.clone(),
            orders,
            output: Output::Own,
            file: None,
            link: Link::default(),
            is_confirmed: true,
            boot,
            boot_id: format!("{boot:016x}"),
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
            watch: ClockWatch::new(),
            told_posture: Instant::now(),
            retired: Vec::new(),
            looked_at_retention: None,
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
        self.compose_posture(event, opens, continues.as_deref(), |_| {});
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
        if !self.write(false) {
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

    /// How the process stands: at each start, each hour, and when something of it changes.
    fn compose_posture(
        &mut self,
        event: &str,
        opens: bool,
        continues: Option<&str>,
        more: impl FnOnce(&mut Fields<'_>),
    ) {
        let posture = std::mem::take(&mut self.posture);
        let uptime = u64::try_from(self.watch.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.compose(Type::Posture, unix_millis(), |fields| {
            fields.text("event", event);
            if opens {
                fields.flag("opens", true);
            }
            fields.some_text("continues", continues);
            more(fields);
            fields.text("version", env!("CARGO_PKG_VERSION"));
            fields.number("pid", std::process::id());
            fields.number("uptime_ms", uptime);
            fields.text("role", &posture.role);
            fields.some_text("spiffe_id", posture.spiffe_id.as_deref());
            for (key, value) in &posture.facts {
                fields.text(key, value);
            }
        });
        self.posture = posture;
        self.told_posture = Instant::now();
    }

    /// Something of the process has changed; what is the same as before is no news.
    pub(super) fn change_posture(&mut self, facts: Vec<(&'static str, String)>) {
        let mut is_news = false;
        for (key, value) in facts {
            match self.posture.facts.iter_mut().find(|(known, _)| *known == key) {
                Some((_, known)) if *known == value => {}
                Some((_, known)) => {
                    *known = value;
                    is_news = true;
                }
                None => {
                    self.posture.facts.push((key, value));
                    is_news = true;
                }
            }
        }
        if is_news && matches!(self.output, Output::Own) {
            self.compose_posture("changed", false, None, |_| {});
        }
    }

    /// What is told by the hour, and what the clock did.
    fn tell_posture(&mut self) {
        if !matches!(self.output, Output::Own) {
            return;
        }
        if let Some(step) = self.watch.step(Instant::now(), unix_millis()) {
            self.compose_posture("clock_stepped", false, None, |fields| {
                fields.flag("clock_stepped", true);
                fields.number("step_ms", step);
            });
        } else if self.told_posture.elapsed() >= self.settings.posture_every {
            self.compose_posture("hourly", false, None, |_| {});
        }
    }

    /// Says that a file is deleted, and what stood in it.
    pub(super) fn compose_retired(&mut self, write: impl FnOnce(&mut Fields<'_>)) {
        self.compose(Type::Posture, unix_millis(), |fields| {
            fields.text("event", "retired");
            fields.object("retired", write);
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
        fields.event_id(unix_millis, self.boot, self.link.seq + 1);
        fields.text("boot_id", &self.boot_id);
        write(&mut fields);
        out.extend_from_slice(b",\"prev\":\"");
        chain::push_hex(&self.link.hash, out);
        out.push(b'"');
        let hash = chain::seal(&self.link.hash, out, from);
        self.link = Link { seq: self.link.seq + 1, hash };
        self.records += 1;
        self.unsealed += 1;
        // What tells of a seal's countersignature waits for a seal of its own until there is something else to seal: otherwise
        // the two would make each other for ever.
        if kind != Type::Countersigned {
            self.unsealed_since.get_or_insert_with(Instant::now);
        }
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
                self.state.set_failing(true);
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
        let path = log.path.clone();
        self.finish(&path)?;
        let aside = put_aside(&path, self.number)?;
        self.number += 1;
        self.looked_at_retention = None;
        self.begin(&aside.file_name().unwrap_or_default().to_string_lossy(), "rotated")
    }

    /// Writes what waits in the batch: it belongs to the file that ends here, and the next one begins with the record that opens
    /// it.
    fn finish(&mut self, path: &Path) -> Result<(), Error> {
        let written = self.write_file();
        let synced =
            written.and_then(|()| self.file.as_ref().map_or(Ok(()), |log| log.file.sync_data()));
        synced.map_err(|source| Error::Open { path: path.to_path_buf(), source })
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
                let path = log.path.clone();
                self.finish(&path)?;
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
        self.tell_posture();
        self.seal(closing);
    }

    fn sleeps(&self) -> Option<Duration> {
        if !matches!(self.output, Output::Own) {
            return None;
        }
        let posture = self.settings.posture_every.saturating_sub(self.told_posture.elapsed());
        let sealing = self.unsealed_since.filter(|_| self.state.sealed_by.get().is_some());
        let seal = sealing.map(|since| self.settings.seal_within.saturating_sub(since.elapsed()));
        Some(seal.map_or(posture, |seal| seal.min(posture)).max(SOON))
    }

    fn ready(&mut self) {
        if !matches!(self.output, Output::Own) {
            return;
        }
        // Before records are taken: what waits by now is what we ourselves have to tell.
        if let Err(error) = self.look().and_then(|()| self.rotate()).and_then(|()| self.retire()) {
            tracing::error!(error = %Chain(&error), "the audit log goes on in the same file");
        }
    }

    fn write(&mut self, awaited: bool) -> bool {
        if let Output::Heir(_) = self.output {
            return self.write_to_heir(awaited);
        }
        self.is_confirmed = true;
        let written = self.write_file();
        let failing = written.is_err();
        if let Err(error) = written
            && self.state.set_failing(true)
        {
            tracing::error!(%error, "the audit log cannot be written; records wait as long as there is room");
        }
        self.write_stdout();
        if failing {
            return false;
        }
        if !(self.stdout_closed && self.file.is_none()) && self.state.set_failing(false) {
            tracing::info!("the audit log is written again");
        }
        self.is_out();
        true
    }

    fn is_safe(&self) -> bool {
        self.is_confirmed
    }
}

impl Writer {
    /// The batch is out, and counted.
    pub(super) fn is_out(&mut self) {
        for file in self.retired.drain(..) {
            if let Err(error) = std::fs::remove_file(&file) {
                tracing::error!(file = %file.display(), %error, "a retired file of the audit log cannot be deleted");
            }
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_was_set_is_told_from_one_that_runs_a_little_wrong() {
        let start = Instant::now();
        let mut watch = ClockWatch { started: start, at: start, unix_millis: 1_000_000 };
        let mut look = |seconds: u64, unix_millis: u64| {
            watch.step(start + Duration::from_secs(seconds), unix_millis)
        };
        assert_eq!(look(10, 1_010_900), None);
        // An hour, and the clock was slewed by a second and a half.
        assert_eq!(look(3610, 4_612_400), None);
        assert_eq!(look(3611, 4_000_000), Some(-613_400));
        assert_eq!(look(3612, 4_001_000), None, "told once");
    }
}
