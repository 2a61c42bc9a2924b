//! A log that is written by the real writer, and followed as its writer rotates, crashes, and somebody takes files away.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use serde_json::Value;

use super::reading::{Limits, LogReader, Portion};
use super::{
    Batch, Destination, Follower, Following, Line, OutputBoard, OutputReport, Selection,
    Undelivered,
};
use crate::observe::{AdminRecord, AuditLog, AuditSettings, Posture, Registry};

const WITHIN: Duration = Duration::from_secs(30);
const ALL: Limits = Limits { records: 10_000, bytes: 1 << 20 };

/// A folder with a log.
struct Place(PathBuf);

impl Place {
    fn new() -> Self {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("wardgate-follower-{}-{number}", std::process::id());
        Self(std::env::temp_dir().join(name))
    }

    fn log(&self) -> PathBuf {
        self.0.join("audit.jsonl")
    }

    fn open(&self, rotate_bytes: u64) -> AuditLog {
        let path = Some(self.log());
        let settings = AuditSettings { path, rotate_bytes, ..AuditSettings::default() };
        AuditLog::open(settings, &Posture::default()).unwrap()
    }

    /// Opens the log, writes these and closes it.
    fn write(&self, paths: &[&str]) {
        let log = self.open(0);
        for path in paths {
            say(&log, path);
        }
    }

    /// All records, from whichever file.
    fn records(&self) -> Vec<Value> {
        let files = crate::observe::log_files(&self.log());
        let text: String = files.iter().map(|file| fs::read_to_string(file).unwrap()).collect();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn following(&self) -> Following {
        Following {
            log: self.log(),
            cursors: self.0.join("outputs"),
            batch: Batch { within: Duration::from_millis(1), ..Batch::default() },
            selection: Selection::default(),
            from_now: false,
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
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
    log.flush(WITHIN).unwrap();
}

fn path_of(line: &Line) -> Option<String> {
    let record: Value = serde_json::from_str(&line.text).unwrap();
    assert_eq!(record["seq"], line.seq);
    record["path"].as_str().map(str::to_owned)
}

fn paths(lines: &[Line]) -> Vec<String> {
    lines.iter().filter_map(path_of).collect()
}

fn numbers(lines: &[Line]) -> Vec<u64> {
    lines.iter().map(|line| line.seq).collect()
}

fn read(reader: &mut LogReader) -> Portion {
    reader.read(ALL, &Selection::default()).unwrap()
}

#[test]
fn records_are_read_in_order_over_rotations_while_they_are_written() {
    let place = Place::new();
    let log = place.open(900);
    let mut reader = LogReader::new(&place.log(), None, false);
    let mut seen = Vec::new();
    for number in 0..40 {
        say(&log, &format!("/{number}"));
        if number % 7 == 0 {
            seen.extend(read(&mut reader).records);
        }
    }
    drop(log);
    let last = read(&mut reader);
    assert_eq!((last.missing, last.damaged), (0, 0));
    seen.extend(last.records);
    assert!(fs::read_dir(&place.0).unwrap().count() > 5, "it was rotated");
    let written: Vec<u64> =
        place.records().iter().map(|record| record["seq"].as_u64().unwrap()).collect();
    assert_eq!(numbers(&seen), written);
    assert_eq!(paths(&seen), (0..40).map(|number| format!("/{number}")).collect::<Vec<_>>());
}

#[test]
fn reading_goes_on_behind_any_record_though_its_file_has_another_name_by_then() {
    let place = Place::new();
    let log = place.open(900);
    for number in 0..9 {
        say(&log, &format!("/{number}"));
    }
    let mut reader = LogReader::new(&place.log(), None, false);
    let whole = read(&mut reader);
    for number in 9..20 {
        say(&log, &format!("/{number}"));
    }
    for behind in 0..whole.records.len() {
        let cursor = whole.places[behind].clone();
        assert_eq!(cursor.seq, whole.records[behind].seq);
        let mut again = LogReader::new(&place.log(), Some(cursor.clone()), true);
        let rest = read(&mut again);
        assert_eq!((rest.missing, rest.damaged, rest.is_another_log), (0, 0, false));
        assert_eq!(rest.records[0].seq, cursor.seq + 1, "{cursor:?}");
    }
}

#[test]
fn a_line_is_not_handed_out_before_it_is_whole() {
    let place = Place::new();
    place.write(&["/1", "/2"]);
    let text = fs::read(place.log()).unwrap();
    let end = text.len();
    let file = fs::OpenOptions::new().write(true).open(place.log()).unwrap();
    file.set_len(end as u64 - 40).unwrap();
    let mut reader = LogReader::new(&place.log(), None, false);
    let first = read(&mut reader);
    assert_eq!(paths(&first.records), ["/1"]);
    assert!(!first.is_full);
    assert!(read(&mut reader).records.is_empty());
    let mut file = fs::OpenOptions::new().append(true).open(place.log()).unwrap();
    file.write_all(&text[end - 40..]).unwrap();
    let second = read(&mut reader);
    assert_eq!((paths(&second.records), second.damaged), (vec!["/2".to_owned()], 0));
}

#[test]
fn portions_have_limits_and_leave_nothing_out() {
    let place = Place::new();
    place.write(&["/1", "/2", "/3", "/4", "/5"]);
    let mut reader = LogReader::new(&place.log(), None, false);
    let mut sizes = Vec::new();
    let mut seen = Vec::new();
    loop {
        let limits = Limits { records: 2, bytes: 1 << 20 };
        let portion = reader.read(limits, &Selection::default()).unwrap();
        sizes.push(portion.records.len());
        seen.extend(portion.records);
        if !portion.is_full {
            break;
        }
    }
    assert_eq!(sizes, [2, 2, 2]);
    assert_eq!(paths(&seen), ["/1", "/2", "/3", "/4", "/5"]);
    let mut reader = LogReader::new(&place.log(), None, false);
    let one = reader.read(Limits { records: 9, bytes: 1 }, &Selection::default()).unwrap();
    assert_eq!(one.records.len(), 1, "one record is handed out however long it is");
}

#[test]
fn a_torn_end_is_passed_over_and_what_tells_of_it_comes_next() {
    let place = Place::new();
    place.write(&["/1", "/2"]);
    let mut reader = LogReader::new(&place.log(), None, false);
    let before = read(&mut reader);
    fs::OpenOptions::new().append(true).open(place.log()).unwrap().write_all(b"{\"seq\":").unwrap();
    assert!(read(&mut reader).records.is_empty());
    place.write(&["/3"]);
    let after = read(&mut reader);
    assert_eq!((after.damaged, after.missing), (1, 0));
    assert_eq!(after.records[0].seq, before.records.last().unwrap().seq + 1);
    assert!(after.records[0].text.contains("\"event\":\"damaged\""), "{:?}", after.records[0]);
    assert_eq!(paths(&after.records), ["/3"]);
}

#[test]
fn a_line_that_was_changed_is_not_handed_on() {
    let place = Place::new();
    place.write(&["/1", "/2", "/3"]);
    let text = fs::read_to_string(place.log()).unwrap().replace("\"/2\"", "\"/9\"");
    fs::write(place.log(), text).unwrap();
    let found = read(&mut LogReader::new(&place.log(), None, false));
    assert_eq!(paths(&found.records), ["/1", "/3"]);
    assert_eq!((found.damaged, found.missing), (1, 0), "it is not missing: it is there and wrong");
}

#[test]
fn files_that_are_gone_are_told_by_their_numbers() {
    let place = Place::new();
    let log = place.open(900);
    say(&log, "/first");
    let mut reader = LogReader::new(&place.log(), None, false);
    let cursor = read(&mut reader).end.unwrap();
    for number in 0..20 {
        say(&log, &format!("/{number}"));
    }
    drop(log);
    let (gone, kept) = (1..=3, place.0.join("audit-000004.jsonl"));
    for number in gone {
        fs::remove_file(place.0.join(format!("audit-{number:06}.jsonl"))).unwrap();
    }
    let text = fs::read_to_string(kept).unwrap();
    let first: Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    let first = first["seq"].as_u64().unwrap();
    let found = read(&mut LogReader::new(&place.log(), Some(cursor.clone()), false));
    assert_eq!(found.records[0].seq, first);
    assert_eq!(found.missing, first - cursor.seq - 1);
    // The reader that had its file open still read that to its end.
    let found = read(&mut reader);
    assert!(found.records[0].seq > cursor.seq && found.missing < first - cursor.seq - 1 + 1);
    assert_eq!(
        usize::try_from(found.missing).unwrap() + found.records.len(),
        place_end(&place) - usize::try_from(cursor.seq).unwrap()
    );
}

fn place_end(place: &Place) -> usize {
    place.records().last().unwrap()["seq"].as_u64().unwrap().try_into().unwrap()
}

#[test]
fn a_log_that_was_begun_anew_is_read_from_its_beginning() {
    let place = Place::new();
    place.write(&["/1", "/2", "/3"]);
    let cursor = read(&mut LogReader::new(&place.log(), None, false)).end;
    fs::remove_file(place.log()).unwrap();
    place.write(&["/new"]);
    let found = read(&mut LogReader::new(&place.log(), cursor, false));
    assert!(found.is_another_log);
    assert_eq!(found.records[0].seq, 1);
    assert_eq!(paths(&found.records), ["/new"]);
}

#[test]
fn who_begins_now_gets_what_comes_from_now_on() {
    let place = Place::new();
    place.write(&["/old"]);
    let mut reader = LogReader::new(&place.log(), None, true);
    assert!(read(&mut reader).records.is_empty());
    place.write(&["/new"]);
    let found = read(&mut reader);
    assert_eq!((paths(&found.records), found.missing), (vec!["/new".to_owned()], 0));
}

/// A destination that does as it is told, and remembers what arrived.
#[derive(Clone, Default)]
struct Sink {
    arrived: Arc<Mutex<Vec<Line>>>,
    /// What the next deliveries come to; then all is well.
    answers: Arc<Mutex<Vec<Undelivered>>>,
}

#[async_trait]
impl Destination for Sink {
    fn name(&self) -> &str {
        "sink"
    }

    async fn deliver(&mut self, records: &[Line]) -> Result<(), Undelivered> {
        let answer = self.answers.lock().pop();
        if let Some(answer) = answer {
            return Err(answer);
        }
        self.arrived.lock().extend_from_slice(records);
        Ok(())
    }
}

impl Sink {
    fn arrived(&self) -> Vec<String> {
        paths(&self.arrived.lock())
    }

    async fn has(&self, count: usize) {
        let deadline = tokio::time::Instant::now() + WITHIN;
        while self.arrived().len() < count {
            assert!(tokio::time::Instant::now() < deadline, "{:?}", self.arrived());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

fn report(board: &OutputBoard) -> OutputReport {
    board.reports().pop().unwrap()
}

fn has_cursor(folder: &Path) -> bool {
    folder.join("outputs/sink.json").exists()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_follower_hands_over_each_record_once_and_goes_on_after_a_restart() {
    let place = Place::new();
    let (sink, board) = (Sink::default(), OutputBoard::new(&Registry::new()));
    let log = place.open(900);
    say(&log, "/1");
    let follower = Follower::start(Box::new(sink.clone()), place.following(), &board);
    sink.has(1).await;
    for number in 2..20 {
        say(&log, &format!("/{number}"));
    }
    follower.finish(WITHIN).await.release();
    let expected: Vec<String> = (1..20).map(|number| format!("/{number}")).collect();
    assert_eq!(sink.arrived(), expected, "who finishes hands over what is there");
    assert!(has_cursor(&place.0));
    let mode = fs::metadata(place.0.join("outputs/sink.json")).unwrap();
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&mode.permissions()) & 0o777, 0o600);

    say(&log, "/20");
    let follower = Follower::start(Box::new(sink.clone()), place.following(), &board);
    follower.finish(WITHIN).await.release();
    assert_eq!(sink.arrived().last().unwrap(), "/20");
    let seen = numbers(&sink.arrived.lock());
    let all: Vec<u64> = (1..=seen.len() as u64).collect();
    assert_eq!(seen, all, "each once and in order");
    let report = report(&board);
    assert_eq!((report.lag_records, report.missing, report.damaged), (0, 0, 0));
    assert_eq!(report.delivered, all.len() as u64);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn what_fails_is_tried_again_and_what_is_refused_is_counted() {
    let place = Place::new();
    place.write(&["/1", "/2", "/3", "/4"]);
    let (sink, registry) = (Sink::default(), Registry::new());
    let board = OutputBoard::new(&registry);
    let first = read(&mut LogReader::new(&place.log(), None, false));
    let guilty = first.records[2].seq;
    *sink.answers.lock() = vec![
        Undelivered::Partly { refused: 1, why: "one of them".into() },
        Undelivered::Never { seq: guilty, why: "not that one".into() },
        Undelivered::NotBefore { wait: Duration::from_millis(1), why: "busy".into() },
        Undelivered::Later("nobody there".into()),
    ];
    let follower = Follower::start(Box::new(sink.clone()), place.following(), &board);
    let deadline = tokio::time::Instant::now() + WITHIN;
    while report(&board).undeliverable < 2 || report(&board).lag_records > 0 {
        assert!(tokio::time::Instant::now() < deadline, "{:?}", report(&board));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // Before the guilty one two records had arrived, as the sink said; of those behind it one was refused.
    let report = report(&board);
    assert_eq!(report.delivered, first.records.len() as u64 - 2);
    assert_eq!(report.failing_since, None);
    let metrics = registry.render();
    assert!(metrics.contains("wardgate_audit_undeliverable_total{output=\"sink\"} 2"), "{metrics}");
    follower.finish(WITHIN).await.release();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_output_that_fails_says_since_when_and_how_much_waits() {
    let place = Place::new();
    place.write(&["/1", "/2"]);
    let (sink, board) = (Sink::default(), OutputBoard::default());
    *sink.answers.lock() = (0..1000).map(|_| Undelivered::Later("nobody there".into())).collect();
    let follower = Follower::start(Box::new(sink.clone()), place.following(), &board);
    let deadline = tokio::time::Instant::now() + WITHIN;
    while report(&board).lag_records == 0 {
        assert!(tokio::time::Instant::now() < deadline, "{:?}", report(&board));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let failing = report(&board);
    assert_eq!(failing.error.as_deref(), Some("nobody there"));
    assert!(failing.failing_since.is_some() && failing.lag_seconds > 0.0, "{failing:?}");
    assert_eq!(usize::try_from(failing.lag_records).unwrap(), place.records().len());
    // It does not keep the process from ending.
    follower.finish(WITHIN).await.release();
    assert!(!has_cursor(&place.0));
    sink.answers.lock().clear();
    let follower = Follower::start(Box::new(sink.clone()), place.following(), &board);
    sink.has(2).await;
    follower.finish(WITHIN).await.release();
    let report = report(&board);
    assert_eq!((report.failing_since, report.error, report.lag_records), (None, None, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn only_what_is_wanted_is_handed_over_and_the_rest_is_behind_as_well() {
    let place = Place::new();
    place.write(&["/1"]);
    let (sink, board) = (Sink::default(), OutputBoard::default());
    let selection = Selection::new(&["posture".to_owned()], false).unwrap();
    let following = Following { selection, ..place.following() };
    Follower::start(Box::new(sink.clone()), following.clone(), &board)
        .finish(WITHIN)
        .await
        .release();
    assert_eq!(numbers(&sink.arrived.lock()), [1]);
    assert_eq!(report(&board).seq, 2);
    Follower::start(Box::new(sink.clone()), following, &board).finish(WITHIN).await.release();
    assert_eq!(numbers(&sink.arrived.lock()), [1], "the cursor stands behind what was not wanted");
    assert!(Selection::new(&["postures".to_owned()], false).unwrap_err().contains("posture, loss"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_cursor_that_cannot_be_read_begins_at_the_oldest_record() {
    let place = Place::new();
    place.write(&["/1"]);
    fs::create_dir_all(place.0.join("outputs")).unwrap();
    fs::write(place.0.join("outputs/sink.json"), "{").unwrap();
    let (sink, board) = (Sink::default(), OutputBoard::default());
    let following = Following { from_now: true, ..place.following() };
    Follower::start(Box::new(sink.clone()), following, &board).finish(WITHIN).await.release();
    assert_eq!(sink.arrived(), ["/1"]);
}
