//! The decision log passes from a process to the one that replaces it: one writer at a time, one chain.
//!
//! The new process opens its log without the file ([`AuditLog::open_later`]). When it is ready the old one lets go of the file
//! ([`AuditLog::let_go`]), the new one takes it ([`AuditLog::take`]), and what the old one still decides while it drains goes
//! to the new one over a socket ([`AuditLog::bequeath`], [`AuditLog::inherit`]), which writes it with the old one's `boot_id`
//! as `of_boot_id`. When the new process fails, the old one takes its file again.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::Duration;

use parking_lot::Mutex;

use super::audit::{AuditLog, AuditSettings, Posture};
use super::error::Error;
use super::json::Fields;
use super::lane::{Frame, HEADER, Lane, Lanes, Sink as _, frames, push_frame};
use super::writer::Writer;

/// Where the records go.
pub(super) enum Output {
    /// Into the file and to standard output.
    Own,
    /// Nowhere yet: they wait in their lanes.
    Held,
    /// To the process that has the file now.
    Heir(UnixStream),
}

/// What the writing thread is asked to do between two batches.
#[derive(Clone, Default)]
pub(super) struct Orders {
    given: Arc<Mutex<Vec<Given>>>,
}

/// An order, and where the answer goes.
type Given = (Order, SyncSender<Result<(), Error>>);

enum Order {
    LetGo,
    Take(&'static str),
    Bequeath(UnixStream),
    Stdout(bool),
    Posture(Vec<(&'static str, String)>),
}

/// How long a batch may take to be written before an order comes to its turn.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// The first frame that an heir gets is of no record's kind: it names the boot that the records are of.
const BOOT: u8 = u8::MAX;
/// And so is one that asks whether everything before it is on file; the answer is one byte, 1 for yes.
const ASK: u8 = u8::MAX - 1;
/// Longer records are none of ours.
const LONGEST: usize = 1 << 20;

impl AuditLog {
    /// As [`AuditLog::open`], but without taking the file: another process still has it. Records wait for [`AuditLog::take`],
    /// as far as there is room for them.
    ///
    /// # Errors
    /// There is no thread to be had.
    pub fn open_later(settings: AuditSettings, posture: &Posture) -> Result<Self, Error> {
        Self::start(settings, posture, true)
    }

    /// Takes the file, continues its chain, and writes what has waited. `event` stands in the record that tells of it: `start`,
    /// or `resumed` when the process that should have replaced this one has failed. Blocks the thread.
    ///
    /// # Errors
    /// As [`AuditLog::open`].
    pub fn take(&self, event: &'static str) -> Result<(), Error> {
        self.order(Order::Take(event))
    }

    /// Writes what was recorded before and lets go of the file. From here on records wait, until [`AuditLog::take`] or
    /// [`AuditLog::bequeath`]. Blocks the thread.
    ///
    /// # Errors
    /// What is recorded cannot be written; the file is kept.
    pub fn let_go(&self) -> Result<(), Error> {
        let _ = self.flush(ANSWER_WITHIN);
        self.order(Order::LetGo)
    }

    /// Sends all further records to the process at the other end, which has the file now. Blocks the thread.
    ///
    /// # Errors
    /// The thread does not answer.
    pub fn bequeath(&self, heir: UnixStream) -> Result<(), Error> {
        self.order(Order::Bequeath(heir))
    }

    /// Writes what the process before this one still records, until it ends.
    ///
    /// # Errors
    /// There is no thread to be had.
    pub fn inherit(&self, from: UnixStream) -> Result<(), Error> {
        let (lane, lanes) = (self.lanes.lane(), self.lanes.clone());
        let work = move || {
            if let Err(error) = take_over(from, &lane, &lanes) {
                tracing::error!(%error, "the decision log of the process before ended early");
            }
        };
        let thread = std::thread::Builder::new().name("audit-heir".into()).spawn(work);
        thread.map(drop).map_err(|source| Error::Thread { source })
    }

    /// Writes every record to standard output as well, or no longer. Blocks the thread.
    ///
    /// # Errors
    /// The thread does not answer.
    pub fn set_stdout(&self, stdout: bool) -> Result<(), Error> {
        self.order(Order::Stdout(stdout))
    }

    /// Something that an auditor should know of the process has changed: the log says how it stands now. What is known already
    /// is no news.
    pub fn note_posture(&self, facts: Vec<(&'static str, String)>) {
        let (sender, _) = sync_channel(1);
        self.orders.given.lock().push((Order::Posture(facts), sender));
        self.lanes.look_again();
    }

    fn order(&self, order: Order) -> Result<(), Error> {
        let (sender, answer) = sync_channel(1);
        self.orders.given.lock().push((order, sender));
        self.lanes.look_again();
        let late = |_| Error::Thread { source: io::ErrorKind::TimedOut.into() };
        answer.recv_timeout(ANSWER_WITHIN).map_err(late)?
    }
}

impl Writer {
    /// Does what was ordered since the last look.
    pub(super) fn obey(&mut self) {
        let given = std::mem::take(&mut *self.orders.given.lock());
        for (order, sender) in given {
            let done = match order {
                Order::LetGo => self.let_go().map(|()| self.output = Output::Held),
                Order::Take(event) => self.open(event).map(|()| self.output = Output::Own),
                Order::Bequeath(heir) => {
                    self.output = Output::Heir(heir);
                    let body = self.boot_id.clone();
                    let frame = Frame { kind: BOOT, unix_millis: 0, body: body.as_bytes() };
                    push_frame(&mut self.batch, &frame);
                    Ok(())
                }
                Order::Posture(facts) => {
                    self.change_posture(facts);
                    Ok(())
                }
                Order::Stdout(stdout) => {
                    self.set_stdout(stdout);
                    Ok(())
                }
            };
            // Who asked may have given up.
            let _ = sender.send(done);
        }
    }

    /// Sends the batch to the heir; when it is gone, the file is ours again.
    ///
    /// `awaited`: the heir is asked whether it has written it all.
    pub(super) fn write_to_heir(&mut self, awaited: bool) -> bool {
        let Output::Heir(stream) = &mut self.output else { return true };
        if awaited {
            push_frame(&mut self.batch, &Frame { kind: ASK, unix_millis: 0, body: &[] });
        }
        if !self.batch.is_empty() && stream.write_all(&self.batch[self.in_file..]).is_err() {
            if let Err(error) = self.come_back() {
                tracing::error!(%error, "the process with the decision log is gone, and its file cannot be taken back");
                return false;
            }
            self.is_confirmed = true;
            return self.write(false);
        }
        let mut answer = [0];
        self.is_confirmed = !awaited
            || (stream.set_read_timeout(Some(ANSWER_WITHIN)).is_ok()
                && stream.read_exact(&mut answer).is_ok()
                && answer == [1]);
        self.is_out();
        true
    }

    /// Takes the file back from an heir that is gone. What was sent last may stand in it twice.
    fn come_back(&mut self) -> Result<(), Error> {
        let sent = std::mem::take(&mut self.batch);
        if let Err(error) = self.open("resumed") {
            self.batch = sent;
            return Err(error);
        }
        self.output = Output::Own;
        for frame in frames(&sent).filter(|frame| frame.kind < ASK) {
            self.take(&frame);
        }
        Ok(())
    }
}

/// Puts the records of the process before into a lane of ours.
fn take_over(mut from: UnixStream, lane: &Lane, lanes: &Lanes) -> io::Result<()> {
    let mut boot_id = String::new();
    let mut header = [0; HEADER];
    let mut body = Vec::new();
    loop {
        match from.read_exact(&mut header) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(error) => return Err(error),
        }
        let length = u32::from_le_bytes([header[0], header[1], header[2], header[3]]);
        let mut millis = [0; 8];
        millis.copy_from_slice(&header[4..12]);
        let (unix_millis, kind) = (u64::from_le_bytes(millis), header[12]);
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        if length > LONGEST {
            return Err(io::ErrorKind::InvalidData.into());
        }
        body.resize(length, 0);
        from.read_exact(&mut body)?;
        if kind == ASK {
            let is_written = lanes.flush_pushed(ANSWER_WITHIN / 2).is_ok();
            from.write_all(&[u8::from(is_written)])?;
            continue;
        }
        if kind == BOOT {
            boot_id = String::from_utf8_lossy(&body).into_owned();
            continue;
        }
        let write = |out: &mut Vec<u8>| {
            out.extend_from_slice(&body);
            Fields::more(out).text("of_boot_id", &boot_id);
        };
        // The other process waits when we do: nothing is dropped here.
        while lane.push_of(unix_millis, kind, true, write).is_err() {
            if lanes.is_closed() {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            std::thread::park_timeout(Duration::from_millis(5));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{AdminRecord, Expected, verify};
    use super::*;
    use crate::identity::forge::Forge;
    use crate::rt::Live;

    const WITHIN: Duration = Duration::from_secs(20);

    fn settings(path: &std::path::Path) -> AuditSettings {
        let seal_within = Duration::ZERO;
        AuditSettings { path: Some(path.to_owned()), seal_within, ..AuditSettings::default() }
    }

    fn say(log: &AuditLog, path: &str) {
        let record = AdminRecord {
            principal: None,
            src_addr: None,
            method: "GET",
            path: path.as_bytes(),
            status: 200,
            revision: None,
            body_sha256: None,
            diff_sha256: None,
            reason: None,
        };
        log.control().admin(&record).unwrap();
    }

    /// What the log says was asked, each with whether it came from another process.
    fn said(path: &std::path::Path) -> Vec<(String, bool)> {
        let text = std::fs::read_to_string(path).unwrap();
        let records = text.lines().map(serde_json::from_str::<serde_json::Value>);
        let asked = |record: serde_json::Value| {
            let path = record["path"].as_str()?.to_owned();
            Some((path, record["of_boot_id"].is_string()))
        };
        records.filter_map(|record| asked(record.unwrap())).collect()
    }

    #[test]
    fn a_log_passes_from_one_process_to_the_next_in_one_chain() {
        passes_on("plain", |_| {});
    }

    #[test]
    fn who_hands_a_sealed_log_on_sends_records_alone_and_the_next_one_seals_them() {
        let identity = Live::fixed(Forge::new("shop").identity("/billing", &[]));
        passes_on("sealed", |log| log.seal_as(identity.clone()));
    }

    fn passes_on(name: &str, prepare: impl Fn(&AuditLog)) {
        let folder =
            std::env::temp_dir().join(format!("wardgate-heir-{name}-{}", std::process::id()));
        let path = folder.join("audit.jsonl");
        let old = AuditLog::open(settings(&path), &Posture::default()).unwrap();
        prepare(&old);
        say(&old, "/old/1");
        let new = AuditLog::open_later(settings(&path), &Posture::default()).unwrap();
        prepare(&new);
        say(&new, "/new/1");

        // The first try fails, and the old one goes on.
        assert!(new.take("start").is_err(), "the old one has it");
        old.let_go().unwrap();
        say(&old, "/old/2");
        old.take("resumed").unwrap();
        old.flush(WITHIN).unwrap();

        old.let_go().unwrap();
        say(&old, "/old/3");
        new.take("start").unwrap();
        new.flush(WITHIN).unwrap();
        let (mine, theirs) = UnixStream::pair().unwrap();
        new.inherit(theirs).unwrap();
        old.bequeath(mine).unwrap();
        say(&old, "/old/4");
        old.flush(WITHIN).unwrap();
        drop(old);
        let until = std::time::Instant::now() + WITHIN;
        while said(&path).len() < 5 {
            assert!(std::time::Instant::now() < until, "{:?}", said(&path));
            new.flush(WITHIN).unwrap();
        }
        let expected = [
            ("/old/1", false),
            ("/old/2", false),
            ("/new/1", false),
            ("/old/3", true),
            ("/old/4", true),
        ];
        assert_eq!(said(&path), expected.map(|(path, other)| (path.to_owned(), other)));
        drop(new);
        let report = verify(std::slice::from_ref(&path), Expected::default()).unwrap();
        assert!(report.is_sound(), "{:?}", report.findings);
        assert_eq!(report.seals > 0, name == "sealed");
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn when_the_heir_is_gone_the_file_is_taken_back() {
        let folder = std::env::temp_dir().join(format!("wardgate-back-{}", std::process::id()));
        let path = folder.join("audit.jsonl");
        let old = AuditLog::open(settings(&path), &Posture::default()).unwrap();
        old.let_go().unwrap();
        let (mine, theirs) = UnixStream::pair().unwrap();
        old.bequeath(mine).unwrap();
        drop(theirs);
        say(&old, "/old/1");
        old.flush(WITHIN).unwrap();
        assert_eq!(said(&path), [("/old/1".to_owned(), false)]);
        drop(old);
        assert!(verify(std::slice::from_ref(&path), Expected::default()).unwrap().is_sound());
        std::fs::remove_dir_all(folder).unwrap();
    }
}
