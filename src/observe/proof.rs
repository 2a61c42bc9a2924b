//! The audit log from outside: what is written, what `verify` finds, and what a restart does.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serde_json::Value;

use super::*;
use crate::rt::crypto::digest::{SHA256, digest};

const WITHIN: Duration = Duration::from_secs(30);

/// A folder that goes with its test.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("wardgate-audit-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn log(&self) -> PathBuf {
        self.0.join("audit.jsonl")
    }

    fn open(&self) -> AuditLog {
        AuditLog::open(settings(&self.log()), &posture()).unwrap()
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(&self.0)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn settings(path: &Path) -> AuditSettings {
    let allows = Allows::Each;
    AuditSettings { path: Some(path.to_path_buf()), allows, ..AuditSettings::default() }
}

fn posture() -> Posture {
    let facts = vec![("policy_default", "deny".to_string())];
    Posture { role: "sidecar".into(), spiffe_id: Some("spiffe://shop/billing".into()), facts }
}

fn ends(conn_id: u64) -> Ends {
    let facts = EndsFacts {
        src_spiffe_id: Some("spiffe://shop/web"),
        src_serial: Some("0a1b"),
        src_spki_sha256: Some("ffee"),
        src_not_after: Some(1_795_262_400),
        dst_spiffe_id: Some("spiffe://shop/billing"),
        ..EndsFacts::of(conn_id, "127.0.0.1:40000".parse().unwrap(), 15006)
    };
    Ends::new(&facts, &redact::Redaction::KEEP)
}

fn deny(lane: &AuditLane, path: &[u8]) -> DenialId {
    let id = DenialId::new();
    let ends = ends(7);
    let record = DecisionRecord {
        method: b"DELETE",
        host: b"billing",
        path,
        status: Some(403),
        reason: Some("no_rule"),
        denial_id: Some(id),
        nearest: Some(Nearest { policy_id: "billing-read", rule: "1", clause: "methods" }),
        config_revision: 42,
        ..DecisionRecord::of(&ends, false)
    };
    lane.decision(&record).unwrap();
    id
}

fn allow(lane: &AuditLane) {
    let ends = ends(8);
    let record = DecisionRecord {
        method: b"GET",
        host: b"billing",
        path: b"/invoices/7",
        route_id: Some("1"),
        upstream: Some("127.0.0.1:8080"),
        protocol: "h2",
        policy_id: Some("billing-read"),
        rule: Some("1"),
        policy_revision: Some(7),
        would_be: Some(WouldBe {
            allowed: false,
            reason: Some("denied_by_rule"),
            rule: Some(("w", "1")),
        }),
        ..DecisionRecord::of(&ends, true)
    };
    lane.decision(&record).unwrap();
}

/// A sound log of the opening record and `records` refusals.
fn sample(folder: &Folder, records: usize) -> Vec<String> {
    let audit = folder.open();
    let lane = audit.lane();
    for at in 0..records {
        deny(&lane, format!("/{at}").as_bytes());
    }
    drop(audit);
    lines(&folder.log())
}

fn lines(path: &Path) -> Vec<String> {
    fs::read_to_string(path).unwrap().lines().map(String::from).collect()
}

fn write(path: &Path, lines: &[String]) {
    fs::write(path, lines.join("\n") + "\n").unwrap();
}

fn parse(line: &str) -> Value {
    serde_json::from_str(line).unwrap()
}

fn codes(report: &VerifyReport) -> Vec<(u64, &'static str)> {
    report.findings.iter().map(|finding| (finding.line, finding.code)).collect()
}

fn check(folder: &Folder) -> VerifyReport {
    verify(&[folder.log()], Expected::default()).unwrap()
}

#[test]
fn a_line_says_who_did_what_to_whom_and_why() {
    let folder = Folder::new();
    let audit = folder.open();
    let lane = audit.lane();
    allow(&lane);
    let id = deny(&lane, b"/in\"voices\n/\xff\x1b[2J");
    lane.handshake_refused(&HandshakeRefusedRecord {
        is_observed: false,
        conn_id: 9,
        src_addr: "10.0.0.1:1".parse().unwrap(),
        presented_id: Some("spiffe://elsewhere/web"),
        presented_serial: Some("1f"),
        presented_issuer_ski: None,
        dst_spiffe_id: Some("spiffe://shop/billing"),
        dst_port: 15006,
        reason: "unknown_trust_domain",
        detail: None,
    })
    .unwrap();
    let ends = ends(7);
    lane.connection(&ConnectionRecord {
        side: Some("accepted"),
        reason: Some("peer_expired"),
        protocol: Some("h2"),
        requests: Some(3),
        bytes_in: Some(1),
        bytes_out: Some(2),
        duration_ms: Some(1000),
        ..ConnectionRecord::of(&ends, "forced_close")
    })
    .unwrap();
    let control = audit.control();
    control
        .identity(&IdentityRecord {
            event: "rotated",
            spiffe_id: "spiffe://shop/billing",
            serial: Some("2a"),
            not_after: Some(1_795_262_400),
            trust_domains: Some("shop"),
            bundle_revisions: None,
            detail: None,
        })
        .unwrap();
    control
        .config(&ConfigRecord {
            event: "refused",
            revision: 43,
            changes: None,
            kind: Some("routes"),
            id: Some("7"),
            reason: Some("uri: is missing"),
        })
        .unwrap();
    control
        .admin(&AdminRecord {
            principal: Some("admin"),
            src_addr: Some("127.0.0.1:5".parse().unwrap()),
            method: "PUT",
            path: b"/apisix/admin/routes/7",
            status: 400,
            revision: None,
            body_sha256: Some("00"),
            diff_sha256: None,
            reason: Some("invalid"),
        })
        .unwrap();
    audit.flush(WITHIN).unwrap();
    assert_eq!((audit.written(), audit.lost(), audit.is_writing()), (8, 0, true));

    let records: Vec<Value> = lines(&folder.log()).iter().map(|line| parse(line)).collect();
    let find = |kind: &str| records.iter().find(|record| record["type"] == kind).unwrap();
    assert_eq!(records[0]["type"], "posture");
    assert_eq!(records[0]["policy_default"], "deny");
    let allowed = records.iter().find(|record| record["outcome"] == "allow").unwrap();
    assert_eq!(allowed["src"]["spiffe_id"], "spiffe://shop/web");
    assert_eq!(allowed["src"]["cert"]["serial"], "0a1b");
    assert_eq!(allowed["src"]["cert"]["not_after"], "2026-11-21T12:00:00.000Z");
    assert_eq!(allowed["src"]["addr"], "127.0.0.1:40000");
    assert_eq!(allowed["dst"]["port"], 15006);
    assert_eq!(allowed["policy_revision"], 7);
    assert_eq!(allowed["would_be"]["outcome"], "deny");
    assert_eq!(allowed["would_be"]["policy_id"], "w");
    let denied = records.iter().find(|record| record["denial_id"] == id.as_str()).unwrap();
    assert_eq!(denied["path"], "/in\"voices\n/\u{fffd}\u{1b}[2J");
    assert_eq!(denied["path_b64"], "L2luInZvaWNlcwov/xtbMko=");
    assert_eq!(denied["nearest"]["clause"], "methods");
    assert_eq!((&denied["status"], &denied["config_revision"]), (&403.into(), &42.into()));
    assert_eq!(find("handshake_refused")["src"]["presented_id"], "spiffe://elsewhere/web");
    assert_eq!(find("connection")["reason"], "peer_expired");
    assert_eq!(find("identity")["trust_domains"], "shop");
    assert_eq!(find("config")["reason"], "uri: is missing");
    assert_eq!(find("admin")["principal"], "admin");
    for (at, record) in records.iter().enumerate() {
        assert_eq!(record["seq"], at + 1);
        assert_eq!(record["boot_id"], records[0]["boot_id"]);
    }
    assert!(check(&folder).is_sound());
    assert_eq!(find_denial(&folder.log(), id.as_str()).unwrap().unwrap(), *denied);
    assert_eq!(find_denial(&folder.log(), "d-0000000000").unwrap(), None);
}

#[test]
fn the_hash_is_what_the_documentation_says() {
    let folder = Folder::new();
    let mut prev = [0_u8; 32];
    for line in sample(&folder, 3) {
        let record = parse(&line);
        assert_eq!(record["prev"], hex::encode(prev));
        let without =
            line.replace(&format!(",\"hash\":\"{}\"", record["hash"].as_str().unwrap()), "");
        let mut bytes = prev.to_vec();
        bytes.extend_from_slice(without.as_bytes());
        let hash = digest(&SHA256, &bytes);
        assert_eq!(record["hash"], hex::encode(hash));
        prev.copy_from_slice(hash.as_ref());
    }
}

#[test]
fn a_changed_line_is_found_wherever_it_is_changed() {
    let folder = Folder::new();
    let lines = sample(&folder, 6);
    assert!(check(&folder).is_sound());
    for (from, to) in [
        ("\"outcome\":\"deny\"", "\"outcome\":\"allow\""),
        ("spiffe://shop/web", "spiffe://shop/wet"),
        ("\"seq\":4", "\"seq\": 4"),
        ("}", "} "),
    ] {
        let mut changed = lines.clone();
        changed[3] = changed[3].replacen(from, to, 1);
        assert_ne!(changed, lines, "{from}");
        write(&folder.log(), &changed);
        let found = codes(&check(&folder));
        assert_eq!(found.len(), 1, "{from}: {found:?}");
        assert_eq!(found[0].0, 4, "{from}");
    }
    // The hash itself.
    let mut changed = lines.clone();
    let end = changed[3].len() - 3;
    let digit = if changed[3].as_bytes()[end] == b'0' { "1" } else { "0" };
    changed[3].replace_range(end..=end, digit);
    write(&folder.log(), &changed);
    assert_eq!(check(&folder).findings[0].line, 4);
    // One byte anywhere.
    for at in (0..lines[2].len()).step_by(7) {
        let mut changed = lines.clone();
        let byte = changed[2].as_bytes()[at];
        let other = if byte == b'x' { "y" } else { "x" };
        changed[2].replace_range(at..=at, other);
        write(&folder.log(), &changed);
        let report = check(&folder);
        assert_eq!(report.findings[0].line, 3, "byte {at}");
    }
}

#[test]
fn removed_inserted_and_reordered_lines_are_found() {
    let folder = Folder::new();
    let lines = sample(&folder, 8);
    let with = |edit: &dyn Fn(&mut Vec<String>)| {
        let mut edited = lines.clone();
        edit(&mut edited);
        write(&folder.log(), &edited);
        codes(&check(&folder))
    };
    assert_eq!(with(&|lines| drop(lines.remove(4))), [(5, "removed")]);
    assert_eq!(with(&|lines| drop(lines.drain(2..6))), [(3, "removed")]);
    assert_eq!(with(&|lines| drop(lines.remove(0))), [(1, "removed")]);
    assert_eq!(with(&|lines| lines.insert(6, lines[2].clone())), [(7, "inserted")]);
    assert_eq!(with(&|lines| lines.insert(4, lines[4].clone())), [(6, "inserted")]);
    assert_eq!(with(&|lines| lines.swap(4, 5)), [(5, "removed"), (6, "reordered")]);
    assert_eq!(with(&|lines| lines.insert(3, "{}".into())), [(4, "not_a_record")]);
    assert_eq!(with(&|lines| lines.insert(3, String::new())), [(4, "not_a_record")]);
    // A line that is chained rightly to the one before it gives itself away at the next.
    let forged = |lines: &mut Vec<String>| {
        let record = parse(&lines[3]);
        let open = lines[3].split(",\"hash\"").next().unwrap().replace("DELETE", "GET");
        let prev: [u8; 32] =
            hex::decode(record["prev"].as_str().unwrap()).unwrap().try_into().unwrap();
        let hash = chain::hash(&prev, open.as_bytes());
        lines[3] = format!("{open},\"hash\":\"{}\"}}", hex::encode(hash));
    };
    assert_eq!(with(&forged), [(5, "broken_link")]);
    // A log that was cut off shows only to whoever noted its last hash.
    let last = parse(lines.last().unwrap())["hash"].as_str().unwrap().to_string();
    write(&folder.log(), &lines[..5]);
    assert!(check(&folder).is_sound());
    let report =
        verify(&[folder.log()], Expected { hash: Some(&last), ..Expected::default() }).unwrap();
    assert_eq!(codes(&report), [(5, "expected_hash_missing")]);
    write(&folder.log(), &lines);
    assert!(
        verify(&[folder.log()], Expected { hash: Some(&last), ..Expected::default() })
            .unwrap()
            .is_sound()
    );
}

#[test]
fn a_torn_last_line_is_found() {
    let folder = Folder::new();
    let lines = sample(&folder, 3);
    let whole = lines.join("\n") + "\n";
    for cut in [1, 2, 50] {
        fs::write(folder.log(), &whole[..whole.len() - cut]).unwrap();
        let report = check(&folder);
        assert_eq!(codes(&report), [(4, "torn")], "{cut}");
    }
}

#[test]
fn a_restart_continues_the_chain() {
    let folder = Folder::new();
    sample(&folder, 2);
    let lines = sample(&folder, 2);
    let seqs: Vec<Value> = lines.iter().map(|line| parse(line)["seq"].clone()).collect();
    assert_eq!(seqs, [1, 2, 3, 4, 5, 6]);
    assert_ne!(parse(&lines[0])["boot_id"], parse(&lines[3])["boot_id"]);
    assert!(check(&folder).is_sound());
    assert_eq!(folder.names(), ["audit.jsonl"]);
}

#[test]
fn a_damaged_log_is_put_aside_untouched_and_the_chain_goes_on_over_it() {
    let folder = Folder::new();
    let lines = sample(&folder, 3);
    let whole = lines.join("\n") + "\n";
    let torn = &whole[..whole.len() - 40];
    fs::write(folder.log(), torn).unwrap();
    let after = sample(&folder, 1);
    assert_eq!(folder.names(), ["audit-000001.jsonl", "audit.jsonl"]);
    let aside = folder.0.join("audit-000001.jsonl");
    assert_eq!(fs::read_to_string(&aside).unwrap(), torn);
    let loss = parse(&after[0]);
    assert_eq!((&loss["type"], &loss["seq"]), (&"loss".into(), &4.into()));
    assert_eq!(loss["damaged"]["file"], "audit-000001.jsonl");
    assert_eq!(loss["damaged"]["after_seq"], 3);
    assert_eq!(loss["prev"], parse(&lines[2])["hash"]);
    let report = verify(&log_files(&folder.log()), Expected::default()).unwrap();
    assert!(report.is_sound(), "{:?}", report.findings);
    assert_eq!((report.acknowledged.len(), report.acknowledged[0].by_seq), (1, 4));

    // The last line was changed: the same, and verify still tells.
    let mut changed = after;
    let last = changed.len() - 1;
    changed[last] = changed[last].replace("DELETE", "GET");
    write(&folder.log(), &changed);
    let after = sample(&folder, 1);
    assert_eq!(folder.names().len(), 3);
    assert_eq!(parse(&after[0])["damaged"]["file"], "audit-000002.jsonl");
    let report = verify(&log_files(&folder.log()), Expected::default()).unwrap();
    assert!(!report.is_sound());
    assert_eq!(report.findings[0].code, "changed");

    // Nothing of it is a record: a chain begins anew, and says so.
    fs::write(folder.log(), "not a log at all").unwrap();
    let after = sample(&folder, 0);
    assert_eq!(parse(&after[0])["seq"], 1);
    assert_eq!(parse(&after[0])["type"], "loss");
    assert_eq!(
        fs::read_to_string(folder.0.join("audit-000003.jsonl")).unwrap(),
        "not a log at all"
    );
}

#[test]
fn a_log_that_grew_is_put_aside_and_the_chain_goes_on() {
    let folder = Folder::new();
    let audit =
        AuditLog::open(AuditSettings { rotate_bytes: 2000, ..settings(&folder.log()) }, &posture())
            .unwrap();
    let lane = audit.lane();
    let mut ids = Vec::new();
    for _ in 0..12 {
        ids.push(deny(&lane, b"/a"));
        audit.flush(WITHIN).unwrap();
    }
    drop(audit);
    let files = log_files(&folder.log());
    assert!(files.len() > 2, "{files:?}");
    let report = verify(&files, Expected::default()).unwrap();
    assert!(report.is_sound(), "{:?}", report.findings);
    for id in ids {
        assert!(find_denial(&folder.log(), id.as_str()).unwrap().is_some());
    }
    // A file that is missing in the middle.
    let mut gap = files.clone();
    gap.remove(1);
    assert_eq!(verify(&gap, Expected::default()).unwrap().findings[0].code, "removed");
    // The active file is gone: a restart continues from the last one that was put aside.
    fs::remove_file(folder.log()).unwrap();
    sample(&folder, 1);
    let report = verify(&files, Expected::default()).unwrap();
    let opening = parse(&lines(&folder.log())[0]);
    assert_eq!(opening["continues"], files[files.len() - 2].file_name().unwrap().to_str().unwrap());
    assert!(report.is_sound(), "{:?}", report.findings);
}

#[test]
fn what_the_process_says_of_itself_belongs_to_the_file_before_a_rotation() {
    let folder = Folder::new();
    let audit =
        AuditLog::open(AuditSettings { rotate_bytes: 600, ..settings(&folder.log()) }, &posture())
            .unwrap();
    let lane = audit.lane();
    for round in 0..20 {
        // Told between two batches, as the records are that make the file too large.
        audit.note_posture(vec![("mode", format!("{round}"))]);
        deny(&lane, b"/a");
        audit.flush(WITHIN).unwrap();
    }
    drop(audit);
    let files = log_files(&folder.log());
    assert!(files.len() > 5, "{files:?}");
    let report = verify(&files, Expected::default()).unwrap();
    assert!(report.is_sound(), "{:?}", report.findings);
}

#[test]
fn a_file_whose_first_line_is_torn_begins_no_new_chain() {
    let folder = Folder::new();
    let first = sample(&folder, 2);
    fs::rename(folder.log(), folder.0.join("audit-000001.jsonl")).unwrap();
    let torn = &sample(&folder, 0)[0][..40];
    fs::write(folder.log(), torn).unwrap();
    let after = sample(&folder, 1);
    assert_eq!((&parse(&after[0])["type"], &parse(&after[0])["seq"]), (&"loss".into(), &4.into()));
    assert_eq!(parse(&after[0])["prev"], parse(&first[2])["hash"]);
    let report = verify(&log_files(&folder.log()), Expected::default()).unwrap();
    assert!(report.is_sound(), "{:?}", report.findings);

    // The same when it was put aside already and the crash was before the next file.
    fs::remove_file(folder.log()).unwrap();
    let after = sample(&folder, 1);
    assert_eq!(parse(&after[0])["prev"], parse(&first[2])["hash"]);
    let report = verify(&log_files(&folder.log()), Expected::default()).unwrap();
    assert!(report.is_sound(), "{:?}", report.findings);
}

#[test]
fn a_log_has_one_writer() {
    let folder = Folder::new();
    let audit = folder.open();
    let error = AuditLog::open(settings(&folder.log()), &posture()).unwrap_err();
    assert!(matches!(error, Error::InUse { .. }), "{error}");
    drop(audit);
    folder.open();
}

#[test]
fn a_log_that_cannot_be_written_is_an_error_of_the_start() {
    let error = AuditLog::open(settings(Path::new("/dev/full")), &posture()).unwrap_err();
    assert_eq!(error.to_string(), "cannot open the log /dev/full");
    let folder = Folder::new();
    fs::write(folder.0.join("file"), "").unwrap();
    let below = folder.0.join("file").join("audit.jsonl");
    assert!(matches!(AuditLog::open(settings(&below), &posture()), Err(Error::Open { .. })));
}

#[test]
fn without_room_allowed_ones_are_counted_and_refused_ones_are_told() {
    let folder = Folder::new();
    let cramped = AuditSettings { pending_bytes: 0, reserved_bytes: 0, ..settings(&folder.log()) };
    let audit = AuditLog::open(cramped.clone(), &posture()).unwrap();
    let lane = audit.lane();
    let ends = ends(1);
    assert_eq!(lane.decision(&DecisionRecord::of(&ends, true)), Ok(()));
    assert_eq!(lane.decision(&DecisionRecord::of(&ends, false)), Err(Full));
    audit.flush(WITHIN).unwrap();
    assert_eq!(audit.lost(), 2);
    drop((audit, lane));
    let lost: u64 = lines(&folder.log())
        .iter()
        .map(|line| parse(line))
        .filter(|record| record["type"] == "loss")
        .map(|record| record["lost"].as_u64().unwrap())
        .sum();
    assert_eq!(lost, 2);
    let report = check(&folder);
    assert_eq!((report.is_sound(), report.lost), (true, 2));
    let audit = AuditLog::open(AuditSettings { required: true, ..cramped }, &posture()).unwrap();
    assert_eq!(audit.lane().decision(&DecisionRecord::of(&ends, true)), Err(Full));
}

#[test]
fn many_workers_write_one_chain() {
    let folder = Folder::new();
    let audit = folder.open();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            let lane = audit.lane();
            scope.spawn(move || {
                for at in 0..500 {
                    if at % 5 == 0 {
                        deny(&lane, b"/x");
                    } else {
                        allow(&lane);
                    }
                }
            });
        }
    });
    drop(audit);
    let report = check(&folder);
    assert!(report.is_sound());
    assert_eq!((report.files[0].records, report.lost), (2001, 0));
}

#[test]
fn a_log_that_was_moved_away_is_begun_anew_and_the_chain_goes_on() {
    let folder = Folder::new();
    let audit = folder.open();
    let lane = audit.lane();
    deny(&lane, b"/1");
    audit.flush(WITHIN).unwrap();
    let moved = folder.0.join("kept-by-somebody.jsonl");
    fs::rename(folder.log(), &moved).unwrap();
    // The writer looks once a second, when it has something to write.
    let until = std::time::Instant::now() + WITHIN;
    while !folder.log().exists() {
        assert!(std::time::Instant::now() < until, "no new file was begun");
        deny(&lane, b"/2");
        audit.flush(WITHIN).unwrap();
        std::thread::yield_now();
    }
    drop((audit, lane));
    let report = verify(&[moved, folder.log()], Expected::default()).unwrap();
    assert!(report.is_sound(), "{:?}", report.findings);
    assert_eq!(parse(&lines(&folder.log())[0])["event"], "moved_away");
}

#[test]
fn standard_output_alone_needs_no_file() {
    let audit = AuditLog::open(AuditSettings::default(), &Posture::default()).unwrap();
    allow(&audit.lane());
    audit.flush(WITHIN).unwrap();
    assert_eq!(audit.written(), 2);
}

#[test]
fn a_file_that_does_not_exist_is_an_error_and_not_an_empty_log() {
    let folder = Folder::new();
    assert!(matches!(verify(&[folder.log()], Expected::default()), Err(Error::Read { .. })));
    assert!(matches!(find_denial(&folder.log(), "d-1"), Err(Error::Read { .. })));
    fs::write(folder.log(), "").unwrap();
    // The record that opens a log is written when it is made.
    assert_eq!(codes(&check(&folder)), [(1, "empty")]);
}
