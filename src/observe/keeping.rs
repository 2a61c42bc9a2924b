//! The decision log over time: what waits for it, how long its files are kept, what a hand-over does to who waits.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::*;

const WITHIN: Duration = Duration::from_secs(30);

struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let name = format!("wardgate-keeping-{name}-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn log(&self) -> PathBuf {
        self.0.join("audit.jsonl")
    }

    fn settings(&self) -> AuditSettings {
        let within = Duration::from_secs(20);
        AuditSettings {
            path: Some(self.log()),
            required_within: within,
            ..AuditSettings::default()
        }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn records(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn ends(lane: &AuditLane) -> Ends {
    lane.ends(&EndsFacts {
        src_spiffe_id: Some("spiffe://shop/web"),
        ..EndsFacts::of(1, "10.0.0.1:1".parse().unwrap(), 15006)
    })
}

fn must(lane: &AuditLane, path: &str) {
    let ends = ends(lane);
    let record = DecisionRecord {
        method: b"GET",
        path: path.as_bytes(),
        must_stand: true,
        ..DecisionRecord::of(&ends, true)
    };
    lane.decision(&record).unwrap();
}

#[tokio::test]
async fn what_waits_for_its_record_goes_on_when_it_stands_in_the_file() {
    let folder = Folder::new("waits");
    let audit = AuditLog::open(folder.settings(), &Posture::default()).unwrap();
    let lane = audit.lane();
    let mut progress = audit.progress();
    for number in 0..20 {
        must(&lane, &format!("/{number}"));
        lane.written().await.unwrap();
        let last = records(&folder.log()).pop().unwrap();
        assert_eq!(last["path"], format!("/{number}"));
        assert!(last.get("aggregated").is_none());
    }
    assert_eq!(progress.load().seq, 21);
    assert_eq!(progress.load().file, 1);
    must(&lane, "/more");
    assert!(progress.changed().await);
}

#[tokio::test]
async fn what_waits_for_a_log_that_nobody_writes_is_told_so() {
    let folder = Folder::new("told");
    let first = AuditLog::open(folder.settings(), &Posture::default()).unwrap();
    // The file is another one's: it waits for a hand-over that never comes.
    let soon = Duration::from_millis(50);
    let settings = AuditSettings { required_within: soon, ..folder.settings() };
    let second = AuditLog::open_later(settings, &Posture::default()).unwrap();
    let lane = second.lane();
    must(&lane, "/");
    assert_eq!(lane.written().await, Err(Stalled));
    drop(first);
}

#[tokio::test]
async fn after_a_hand_over_the_heir_answers_for_what_it_has_written() {
    let folder = Folder::new("heir");
    let old = AuditLog::open(folder.settings(), &Posture::default()).unwrap();
    let new = AuditLog::open_later(folder.settings(), &Posture::default()).unwrap();
    let lane = old.lane();
    old.let_go().unwrap();
    new.take("start").unwrap();
    let (mine, theirs) = UnixStream::pair().unwrap();
    new.inherit(theirs).unwrap();
    old.bequeath(mine).unwrap();
    for number in 0..3 {
        must(&lane, &format!("/{number}"));
        lane.written().await.unwrap();
        let last = records(&folder.log()).pop().unwrap();
        assert_eq!(last["path"], format!("/{number}"), "the heir's file has it");
        assert!(last["of_boot_id"].is_string());
    }
    drop((lane, old, new));
    assert!(verify(&[folder.log()], Expected::default()).unwrap().is_sound());
}

/// Files that were put aside, by name.
fn aside(folder: &Folder) -> Vec<String> {
    let names = log_files(&folder.log()).into_iter();
    let mut names: Vec<String> =
        names.map(|path| path.file_name().unwrap().to_str().unwrap().to_owned()).collect();
    names.pop();
    names
}

/// Records until `done`, each batch written before it is asked.
fn write_until(audit: &AuditLog, done: impl Fn() -> bool) {
    let lane = audit.lane();
    let until = Instant::now() + WITHIN;
    while !done() {
        assert!(Instant::now() < until, "it never came to that");
        for _ in 0..20 {
            must(&lane, "/some/path/that/takes/a/few/bytes");
        }
        audit.flush(WITHIN).unwrap();
    }
}

#[test]
fn old_files_are_deleted_knowingly_and_never_before_everybody_has_them() {
    let folder = Folder::new("retire");
    let retain = RetainSettings { files: Some(2), ..RetainSettings::default() };
    let settings = AuditSettings { rotate_bytes: 4000, retain, ..folder.settings() };
    let audit = AuditLog::open(settings.clone(), &Posture::default()).unwrap();
    // Nobody has said yet that everybody who needs files holds them.
    write_until(&audit, || aside(&folder).len() >= 4);
    let hold = audit.hold(0);
    audit.begin_retention();
    write_until(&audit, || aside(&folder).len() >= 6);
    assert_eq!(aside(&folder)[0], "audit-000001.jsonl", "it is held");
    let needed = records(&folder.0.join("audit-000003.jsonl"));
    hold.delivered(needed[0]["seq"].as_u64().unwrap() - 1);
    let first = || aside(&folder)[0].clone();
    write_until(&audit, || first() == "audit-000003.jsonl");
    hold.release();
    write_until(&audit, || *first() > *"audit-000004.jsonl" && aside(&folder).len() == 2);
    drop(audit);

    let files = log_files(&folder.log());
    let report = verify(&files, Expected::default()).unwrap();
    assert!(report.is_sound(), "{:?}", report.findings);
    assert!(report.begins_behind_retired);
    let known: Vec<&str> = report.retired.iter().map(|retired| &*retired.file).collect();
    assert!(!known.is_empty() && known.windows(2).all(|pair| pair[0] < pair[1]), "{known:?}");

    // A file that somebody else took away is not one that the settings did.
    std::fs::remove_file(&files[0]).unwrap();
    let report = verify(&files[1..], Expected::default()).unwrap();
    assert!(!report.begins_behind_retired);

    // The numbers of files go on, also when none is left.
    for file in &files[1..files.len() - 1] {
        std::fs::remove_file(file).unwrap();
    }
    let audit = AuditLog::open(settings, &Posture::default()).unwrap();
    write_until(&audit, || !aside(&folder).is_empty());
    assert!(*aside(&folder)[0] > *"audit-000004.jsonl", "{:?}", aside(&folder));
}

#[test]
fn many_of_one_kind_are_few_records_and_none_of_them_is_lost() {
    let folder = Folder::new("many");
    let audit = AuditLog::open(folder.settings(), &Posture::default()).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let lane = audit.lane();
                let ends = ends(&lane);
                for number in 0..1000 {
                    let (path, allowed) = (format!("/i/{number}"), number % 4 > 0);
                    let denial_id = (!allowed).then(DenialId::new);
                    let record = DecisionRecord {
                        method: b"GET",
                        path: path.as_bytes(),
                        denial_id,
                        ..DecisionRecord::of(&ends, allowed)
                    };
                    lane.decision(&record).unwrap();
                }
            });
        }
    });
    drop(audit);
    let records = records(&folder.log());
    let of = |outcome: &str| {
        let mine = records.iter().filter(|record| record["outcome"] == outcome);
        let count = |record: &Value| record["count"].as_u64().unwrap_or(1);
        mine.map(|record| (count(record), 1_usize)).fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1))
    };
    let (allowed, in_records) = of("allow");
    assert_eq!(allowed, 3000);
    assert!(in_records <= 40, "{in_records}");
    let (refused, in_records) = of("deny");
    assert_eq!(refused, 1000);
    assert!((400..500).contains(&in_records), "{in_records}");
    // Who is told the id of one of many finds at least the last of each.
    let last =
        records.iter().find(|record| record["aggregated"] == true && record["outcome"] == "deny");
    let id = last.unwrap()["denial_id"].as_str().unwrap();
    assert!(find_denial(&folder.log(), id).unwrap().is_some());
    assert!(verify(&[folder.log()], Expected::default()).unwrap().is_sound());
}

#[test]
fn the_log_says_how_the_process_stands_when_that_changes_and_by_the_hour() {
    let folder = Folder::new("posture");
    let settings = AuditSettings { posture_every: Duration::from_millis(50), ..folder.settings() };
    let facts = vec![("mode", "strict".to_owned())];
    let posture = Posture { role: "sidecar".into(), facts, ..Posture::default() };
    let audit = AuditLog::open(settings, &posture).unwrap();
    audit.note_posture(vec![("mode", "strict".to_owned())]);
    audit.note_posture(vec![("mode", "permissive".to_owned())]);
    let events = || -> Vec<(String, String)> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let postures = records(&folder.log()).into_iter().filter(|it| it["type"] == "posture");
        postures.map(|record| (text(&record["event"]), text(&record["mode"]))).collect()
    };
    let until = Instant::now() + WITHIN;
    let hourly = ("hourly".to_owned(), "permissive".to_owned());
    while !events().contains(&hourly) {
        assert!(Instant::now() < until, "{:?}", events());
        std::thread::yield_now();
    }
    let changed = events().into_iter().filter(|(event, _)| event == "changed");
    assert_eq!(changed.collect::<Vec<_>>(), [("changed".to_owned(), "permissive".to_owned())]);
}
