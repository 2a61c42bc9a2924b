//! Access records: one line about each exchange, for people and log collectors. Off unless asked for; may be lossy.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::Mutex;

use super::error::Error;
use super::json::Fields;
use super::lane::{Frame, Lane, Lanes, Lost, Room, Sink, Stalled};
use crate::rt::unix_millis;

/// Where access records go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AccessTarget {
    /// Standard output.
    Stdout,
    /// A file that is appended to. If it is moved away, a new one is made.
    File(PathBuf),
}

/// What happened on one exchange.
#[derive(Clone, Copy, Debug)]
pub struct AccessRecord<'a> {
    /// The connection's number.
    pub conn_id: u64,
    /// The caller's identity.
    pub peer: Option<&'a str>,
    /// The socket's other end, as text.
    pub remote_addr: &'a str,
    /// `http/1.1`, `h2`, `tcp`.
    pub protocol: &'a str,
    /// As received.
    pub method: &'a [u8],
    /// As received.
    pub host: &'a [u8],
    /// As received, without the query.
    pub path: &'a [u8],
    /// What the caller got.
    pub status: u16,
    /// Bytes of the request's body.
    pub bytes_in: u64,
    /// Bytes of the response's body.
    pub bytes_out: u64,
    /// From the request's head to the response's end.
    pub duration: Duration,
    /// Of that, the time spent on the upstream.
    pub upstream_duration: Option<Duration>,
    /// The route that matched.
    pub route_id: Option<&'a str>,
    /// The consumer that was recognised.
    pub consumer: Option<&'a str>,
    /// The endpoint's address.
    pub upstream: Option<&'a str>,
    /// The endpoint's status.
    pub upstream_status: Option<u16>,
    /// How often the exchange was tried.
    pub attempts: u32,
    /// The request's id.
    pub request_id: Option<&'a str>,
    /// What the refused caller was told.
    pub denial_id: Option<&'a str>,
    /// Why we answered ourselves: a stable code.
    pub fault: Option<&'a str>,
}

/// The access log of a process. Clones are the same log; the last one to go writes what is left.
#[derive(Clone)]
pub struct AccessLog {
    lanes: Arc<Lanes>,
    _thread: Arc<Thread>,
}

impl std::fmt::Debug for AccessLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AccessLog").field("lost", &self.lanes.lost()).finish_non_exhaustive()
    }
}

/// One worker's way into the access log.
#[derive(Clone)]
pub struct AccessLane(Arc<Lane>);

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

/// Bytes of one worker that may wait; what comes on top is dropped and counted.
const ROOM: Room = Room { common: 4 << 20, reserved: 0 };

impl AccessLog {
    /// Opens the log and starts its thread.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub fn open(target: AccessTarget) -> Result<Self, Error> {
        let file = match &target {
            AccessTarget::Stdout => None,
            AccessTarget::File(path) => Some(append(path)?),
        };
        let lanes = Lanes::new(ROOM);
        let running = lanes.clone();
        let mut writer = Writer { target, file, batch: Vec::new(), written: 0, failing: false };
        let handle = std::thread::Builder::new()
            .name("access".into())
            .spawn(move || running.run(&mut writer))
            .map_err(|source| Error::Thread { source })?;
        let thread = Thread { lanes: lanes.clone(), handle: Mutex::new(Some(handle)) };
        Ok(Self { lanes, _thread: Arc::new(thread) })
    }

    /// A way in for one more worker. Take it once, not for each record.
    pub fn lane(&self) -> AccessLane {
        AccessLane(self.lanes.lane())
    }

    /// Waits until everything recorded before is written, at most `within`. Blocks the thread.
    ///
    /// # Errors
    /// The time is over.
    pub fn flush(&self, within: Duration) -> Result<(), Stalled> {
        self.lanes.flush(within)
    }

    /// Records dropped since the start.
    pub fn lost(&self) -> u64 {
        self.lanes.lost()
    }
}

impl AccessLane {
    /// Records one exchange; drops and counts it when there is no room.
    pub fn write(&self, record: &AccessRecord<'_>) {
        let micros = |duration: Duration| u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        // Dropped ones are counted by the lane.
        let _ = self.0.push(0, false, |out| {
            let mut fields = Fields::more(out);
            fields.number("conn_id", record.conn_id);
            fields.some_text("peer", record.peer);
            fields.text("remote_addr", record.remote_addr);
            fields.text("protocol", record.protocol);
            fields.bytes("method", "method_b64", record.method);
            fields.bytes("host", "host_b64", record.host);
            fields.bytes("path", "path_b64", record.path);
            fields.number("status", record.status);
            fields.number("bytes_in", record.bytes_in);
            fields.number("bytes_out", record.bytes_out);
            fields.number("duration_us", micros(record.duration));
            fields.some_number("upstream_us", record.upstream_duration.map(micros));
            fields.some_text("route_id", record.route_id);
            fields.some_text("consumer", record.consumer);
            fields.some_text("upstream", record.upstream);
            fields.some_number("upstream_status", record.upstream_status);
            fields.number("attempts", record.attempts);
            fields.some_text("request_id", record.request_id);
            fields.some_text("denial_id", record.denial_id);
            fields.some_text("fault", record.fault);
        });
    }
}

struct Writer {
    target: AccessTarget,
    file: Option<File>,
    batch: Vec<u8>,
    written: usize,
    failing: bool,
}

impl Writer {
    fn write_batch(&mut self) -> io::Result<()> {
        while self.written < self.batch.len() {
            let rest = &self.batch[self.written..];
            let wrote = match &mut self.file {
                Some(file) => file.write(rest),
                None => io::stdout().lock().write(rest),
            };
            match wrote {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(bytes) => self.written += bytes,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        match self.file {
            Some(_) => Ok(()),
            None => io::stdout().lock().flush(),
        }
    }

    fn line(&mut self, unix_millis: u64, write: impl FnOnce(&mut Fields<'_>)) {
        self.batch.push(b'{');
        let mut fields = Fields::first(&mut self.batch);
        fields.time("time", unix_millis);
        write(&mut fields);
        self.batch.extend_from_slice(b"}\n");
    }
}

impl Sink for Writer {
    fn ready(&mut self) {
        let AccessTarget::File(path) = &self.target else { return };
        if std::fs::metadata(path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
            match append(path) {
                Ok(file) => self.file = Some(file),
                Err(error) => tracing::error!(%error, "the access log was moved away"),
            }
        }
    }

    fn take(&mut self, frame: &Frame<'_>) {
        // The body begins with its comma.
        self.line(frame.unix_millis, |_| {});
        let end = self.batch.len() - 2;
        self.batch.truncate(end);
        self.batch.extend_from_slice(frame.body);
        self.batch.extend_from_slice(b"}\n");
    }

    fn lost(&mut self, lost: Lost) {
        self.line(unix_millis(), |fields| fields.number("lost", lost.common));
    }

    fn write(&mut self, _: bool) -> bool {
        match self.write_batch() {
            Ok(()) => {
                self.failing = false;
                self.batch.clear();
                self.written = 0;
                true
            }
            Err(error) => {
                if !std::mem::replace(&mut self.failing, true) {
                    tracing::error!(%error, "the access log cannot be written");
                }
                false
            }
        }
    }
}

fn append(path: &Path) -> Result<File, Error> {
    let open = |source| Error::Open { path: path.to_path_buf(), source };
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder).map_err(open)?;
    }
    OpenOptions::new().append(true).create(true).open(path).map_err(open)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_tells_one_exchange() {
        let folder = std::env::temp_dir().join(format!("wardgate-access-{}", std::process::id()));
        let path = folder.join("access.jsonl");
        let log = AccessLog::open(AccessTarget::File(path.clone())).unwrap();
        let lane = log.lane();
        let record = AccessRecord {
            conn_id: 3,
            peer: Some("spiffe://shop/web"),
            remote_addr: "127.0.0.1:9",
            protocol: "h2",
            method: b"GET",
            host: b"billing",
            path: b"/a\"b\xff",
            status: 200,
            bytes_in: 0,
            bytes_out: 12,
            duration: Duration::from_micros(1500),
            upstream_duration: None,
            route_id: Some("1"),
            consumer: None,
            upstream: Some("127.0.0.1:80"),
            upstream_status: Some(200),
            attempts: 1,
            request_id: None,
            denial_id: None,
            fault: None,
        };
        lane.write(&record);
        log.flush(Duration::from_secs(20)).unwrap();
        // Rotated by somebody else: the next line begins a new file.
        std::fs::rename(&path, folder.join("access.1")).unwrap();
        lane.write(&AccessRecord { status: 502, ..record });
        drop(log);
        let read = |name: &str| -> serde_json::Value {
            serde_json::from_str(&std::fs::read_to_string(folder.join(name)).unwrap()).unwrap()
        };
        let first = read("access.1");
        assert_eq!((&first["status"], &first["duration_us"]), (&200.into(), &1500.into()));
        assert_eq!(first["path"], "/a\"b\u{fffd}");
        assert!(first["time"].as_str().unwrap().ends_with('Z'));
        assert_eq!(read("access.jsonl")["status"], 502);
        std::fs::remove_dir_all(folder).unwrap();
    }
}
