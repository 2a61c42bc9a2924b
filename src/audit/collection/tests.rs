//! The archive from outside: what it takes, what it refuses, what it finds, and what it forgets.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;
use redb::ReadableDatabase as _;

use super::tables::{Names, RecordRow};
use super::*;
use crate::audit::Outcome;
use crate::identity::Identity;
use crate::identity::forge::Forge;
use crate::observe::{
    Allows, AuditLog, AuditSettings, CountersignedRecord, Countersigner, DecisionRecord, DenialId,
    EndsFacts, Expected, Posture, Registry, verify,
};
use crate::rt::{Live, Tasks};

const WITHIN: Duration = Duration::from_secs(30);

/// A folder that goes with its test, an authority, and who is in its domain.
struct World {
    folder: PathBuf,
    billing: Live<Identity>,
    control: Live<Identity>,
    /// The control plane's own log, kept open.
    own: parking_lot::Mutex<Vec<AuditLog>>,
}

impl World {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("wardgate-archive-{}-{number}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&folder).unwrap();
        let forge = Forge::new("shop");
        let billing = Live::fixed(forge.identity("/billing", &[]));
        let control = Live::fixed(forge.identity("/wardgate/control", &[]));
        Self { folder, billing, control, own: parking_lot::Mutex::default() }
    }

    fn log(&self, name: &str) -> PathBuf {
        self.folder.join(name).join("audit.jsonl")
    }

    /// Opens a sealed log of billing's.
    fn open_log(&self, name: &str) -> AuditLog {
        let settings = AuditSettings {
            path: Some(self.log(name)),
            seal_within: Duration::ZERO,
            // Each record for itself: what is counted here are records.
            allows: Allows::Each,
            single_denies: u32::MAX,
            ..AuditSettings::default()
        };
        let log = AuditLog::open(settings, &Posture::default()).unwrap();
        log.seal_as(self.billing.clone());
        log
    }

    /// A log with an opening record, these decisions, each allowed or not, and seals; its lines.
    fn write(&self, name: &str, decisions: &[(&str, &str, bool)]) -> Vec<Bytes> {
        let log = self.open_log(name);
        for (src, path, allowed) in decisions {
            decide(&log, src, path, *allowed);
            log.flush(WITHIN).unwrap();
        }
        drop(log);
        lines(&self.log(name))
    }

    fn path(&self) -> PathBuf {
        self.folder.join("archive.redb")
    }

    fn archive(&self) -> Archive {
        self.archive_with(ArchiveSettings::default())
    }

    fn archive_with(&self, settings: ArchiveSettings) -> Archive {
        let archive = Archive::open(&self.path(), settings).unwrap();
        let log = AuditSettings { path: Some(self.log("control")), ..AuditSettings::default() };
        let log = AuditLog::open(log, &Posture::default()).unwrap();
        let signer = Countersigner::new(self.control.clone());
        let archive = archive.with(signer, log.control().clone(), &Registry::new());
        self.own.lock().push(log);
        archive
    }

    fn collector(&self, archive: &Archive) -> (Collector, Tasks) {
        let mut tasks = Tasks::new();
        let collector = Collector::start(archive.clone(), Some(self.control.clone()), &mut tasks);
        (collector, tasks)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn decide(log: &AuditLog, src: &str, path: &str, allowed: bool) -> Option<DenialId> {
    let ends = log.control().ends(&EndsFacts {
        src_spiffe_id: Some(src),
        dst_spiffe_id: Some("spiffe://shop/billing"),
        ..EndsFacts::of(1, "127.0.0.1:9".parse().unwrap(), 15006)
    });
    let denial_id = (!allowed).then(DenialId::new);
    let record = DecisionRecord {
        method: b"GET",
        host: b"billing",
        path: path.as_bytes(),
        route_id: Some("r1"),
        reason: denial_id.map(|_| "no_rule"),
        denial_id,
        ..DecisionRecord::of(&ends, allowed)
    };
    log.control().decision(&record).unwrap();
    denial_id
}

fn lines(path: &std::path::Path) -> Vec<Bytes> {
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().map(|line| Bytes::copy_from_slice(line.as_bytes())).collect()
}

fn origin() -> Origin {
    Origin { spiffe_id: "spiffe://shop/billing".into(), node: "node-1".into() }
}

const WEB: &str = "spiffe://shop/web";
const CART: &str = "spiffe://shop/cart";

fn paths(page: &Page) -> Vec<String> {
    let of = |archived: &Archived| {
        let record: serde_json::Value = serde_json::from_str(&archived.line).unwrap();
        record["path"].as_str().unwrap_or_default().to_owned()
    };
    page.records.iter().map(of).collect()
}

fn asks(pairs: &[(&str, &str)]) -> Filter {
    let mut filter = Filter::default();
    for (name, value) in pairs {
        filter.set(name, value, crate::rt::unix_millis()).unwrap();
    }
    filter
}

#[tokio::test]
async fn records_are_kept_once_and_found_by_what_they_say() {
    let world = World::new();
    let lines = world.write(
        "billing",
        &[(WEB, "/1", true), (CART, "/2", false), (WEB, "/3", false), (WEB, "/4", true)],
    );
    let archive = world.archive();
    let (collector, tasks) = world.collector(&archive);
    let taken = collector.take(origin(), lines.clone()).await.unwrap();
    assert_eq!((taken.stored, &taken.refused), (lines.len(), &None));
    // What comes again is known, and not there twice.
    let again = collector.take(origin(), lines.clone()).await.unwrap();
    assert_eq!((again.stored, again.countersignature), (lines.len(), None));
    assert_eq!(archive.chains()[0].records, lines.len() as u64);

    let page = |pairs: &[(&str, &str)], order| {
        paths(&archive.page(&asks(pairs), order, None, Reach::default()).unwrap())
    };
    let decisions = ("type", "decision");
    assert_eq!(page(&[decisions], Order::Newest), ["/4", "/3", "/2", "/1"]);
    assert_eq!(page(&[decisions], Order::Oldest), ["/1", "/2", "/3", "/4"]);
    assert_eq!(page(&[("src", WEB)], Order::Oldest), ["/1", "/3", "/4"]);
    assert_eq!(page(&[("src", "cart")], Order::Oldest), ["/2"]);
    assert_eq!(page(&[("outcome", "deny"), ("src", "web")], Order::Oldest), ["/3"]);
    assert_eq!(page(&[("path_prefix", "/4")], Order::Oldest), ["/4"]);
    assert_eq!(page(&[("route", "r1"), ("dst", "billing")], Order::Oldest).len(), 4);
    assert_eq!(page(&[("origin", "spiffe://shop/web")], Order::Oldest), Vec::<String>::new());
    let is_seal = |line: &&Bytes| String::from_utf8_lossy(line).contains("\"type\":\"seal\"");
    let seals = lines.iter().filter(is_seal).count();
    assert_eq!(page(&[("type", "seal"), ("from", "1h")], Order::Oldest).len(), seals);
    assert_eq!(page(&[("to", "1h")], Order::Oldest), Vec::<String>::new());
    let denied = archive.page(&asks(&[("outcome", "deny")]), Order::Newest, None, Reach::default());
    let denied: serde_json::Value = serde_json::from_str(&denied.unwrap().records[0].line).unwrap();
    assert_eq!(page(&[("denial", denied["denial_id"].as_str().unwrap())], Order::Newest), ["/3"]);

    // A cursor goes on where a page ended, whichever way it walks.
    for order in [Order::Newest, Order::Oldest] {
        let (mut all, mut cursor) = (Vec::new(), None);
        loop {
            let reach = Reach { records: 1, ..Reach::default() };
            let page = archive.page(&asks(&[decisions]), order, cursor, reach).unwrap();
            all.extend(paths(&page));
            cursor = page.cursor.map(|cursor| cursor.to_string().parse().unwrap());
            if cursor.is_none() {
                break;
            }
        }
        assert_eq!(all, page(&[decisions], order));
    }
    // A question that looks at too much says where it stopped.
    let reach = Reach { examined: 2, ..Reach::default() };
    let page = archive.page(&asks(&[("path_prefix", "/1")]), Order::Newest, None, reach).unwrap();
    assert!(page.records.is_empty() && page.cursor.is_some() && page.examined == 2);

    let (found, next) = archive.behind(0, &asks(&[("src", CART)]), Reach::default()).unwrap();
    assert_eq!((found.len(), next), (1, lines.len() as u64));
    let seen: Vec<_> = archive.seen(Filter::default()).map(Result::unwrap).collect();
    assert_eq!(seen.len(), 4);
    assert_eq!((seen[1].src.as_deref(), seen[1].outcome), (Some(CART), Outcome::Deny));
    let who = archive.who_did(&asks(&[("dst", "billing")]), 1000).unwrap();
    let row =
        |id: &str| who.callers.iter().find(|row| row.spiffe_id.as_deref() == Some(id)).unwrap();
    assert!(who.is_complete);
    assert_eq!((row(WEB).allowed, row(WEB).denied), (2, 1));
    assert_eq!((row(CART).allowed, row(CART).denied), (0, 1));
    assert!(!archive.who_did(&asks(&[("dst", "billing")]), 2).unwrap().is_complete);

    // All of that is on the disk.
    drop((collector, tasks, archive));
    let archive = reopened(&world).await;
    assert_eq!(archive.chains()[0].head_seq, lines.len() as u64);
    assert_eq!(
        archive
            .page(&asks(&[decisions]), Order::Newest, None, Reach::default())
            .unwrap()
            .records
            .len(),
        4
    );
}

/// The writer's task lets go of the file when it has ended.
async fn reopened(world: &World) -> Archive {
    let until = std::time::Instant::now() + WITHIN;
    loop {
        match Archive::open(&world.path(), ArchiveSettings::default()) {
            Ok(archive) => return archive,
            Err(ArchiveError::InUse { .. }) if std::time::Instant::now() < until => {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            Err(error) => panic!("{error}"),
        }
    }
}

fn codes(archive: &Archive) -> Vec<String> {
    let mut codes: Vec<String> =
        archive.alarms(100).unwrap().into_iter().map(|alarm| alarm.code).collect();
    codes.reverse();
    codes
}

#[tokio::test]
async fn a_rewritten_past_is_refused_and_alarmed_and_what_was_stored_stays() {
    let world = World::new();
    let lines = world.write("billing", &[(WEB, "/1", true), (WEB, "/2", false)]);
    let archive = world.archive();
    let (collector, _tasks) = world.collector(&archive);
    collector.take(origin(), lines.clone()).await.unwrap();
    let head = archive.chains()[0].head_hash.clone();

    // Somebody writes the log anew from its third record on, each line rightly chained and sealed.
    let kept = lines[..2].iter().flat_map(|line| [line, &b"\n"[..]].concat()).collect::<Vec<u8>>();
    std::fs::create_dir_all(world.folder.join("forged")).unwrap();
    std::fs::write(world.log("forged"), kept).unwrap();
    let forged = world.write("forged", &[(WEB, "/2", true), (WEB, "/5", true), (WEB, "/6", true)]);
    assert_eq!(forged[..2], lines[..2]);
    let taken = collector.take(origin(), forged.clone()).await.unwrap();
    assert_eq!(taken.stored, 2, "the two that are the same are known");
    assert!(taken.refused.unwrap().contains("rewritten"));
    assert_eq!(codes(&archive), ["rewritten"]);
    assert_eq!(archive.chains().len(), 1);
    assert_eq!(archive.chains()[0].head_hash, head);
    // It comes again, and is not told again.
    collector.take(origin(), forged[2..].to_vec()).await.unwrap();
    assert_eq!(codes(&archive), ["rewritten"]);

    // What goes on from the other past is kept, but apart.
    let beyond = forged[lines.len()..].to_vec();
    let taken = collector.take(origin(), beyond.clone()).await.unwrap();
    assert_eq!((taken.stored, taken.refused), (beyond.len(), None));
    let chains = archive.chains();
    assert_eq!((chains.len(), chains[1].departs_from), (2, Some(chains[0].chain)));
    assert_eq!(codes(&archive), ["rewritten", "rewritten"]);

    // A log that is begun anew is alarmed; the one of another node is its own matter.
    let anew = world.write("anew", &[(WEB, "/1", true)]);
    collector.take(origin(), anew.clone()).await.unwrap();
    assert_eq!(codes(&archive), ["rewritten", "rewritten", "begun_anew"]);
    let other = Origin { node: "node-2".into(), ..origin() };
    collector.take(other, anew).await.unwrap();
    assert_eq!(codes(&archive).len(), 3);

    // Each alarm stands in the control plane's own log.
    let told = crate::audit::Lines::of(&world.log("control"));
    let until = std::time::Instant::now() + WITHIN;
    let mut told: Vec<String> =
        told.map(Result::unwrap).filter(|line| line.contains("\"alarm\":")).collect();
    while told.len() < 3 {
        assert!(std::time::Instant::now() < until, "{told:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
        let lines = crate::audit::Lines::of(&world.log("control"));
        told = lines.map(Result::unwrap).filter(|line| line.contains("\"alarm\":")).collect();
    }
    assert!(
        told[0].contains(r#""type":"loss""#) && told[0].contains(r#""alarm":"rewritten""#),
        "{told:?}"
    );
}

#[tokio::test]
async fn a_gap_is_told_and_what_is_no_record_is_refused() {
    let world = World::new();
    let lines = world.write("billing", &[(WEB, "/1", true), (WEB, "/2", true), (WEB, "/3", true)]);
    let archive = world.archive();
    let (collector, _tasks) = world.collector(&archive);
    // Behind the first seal: the others are known by its certificates.
    let is_seal = |line: &Bytes| String::from_utf8_lossy(line).contains("\"type\":\"seal\"");
    let before = lines.iter().position(is_seal).unwrap() + 1;
    collector.take(origin(), lines[..before].to_vec()).await.unwrap();
    let taken = collector.take(origin(), lines[before + 2..].to_vec()).await.unwrap();
    assert_eq!((taken.stored, taken.refused), (lines.len() - before - 2, None));
    let alarms = archive.alarms(10).unwrap();
    let gap = (before as u64 + 1, before as u64 + 2);
    assert_eq!((&*alarms[0].code, (alarms[0].seq, alarms[0].to_seq)), ("gap", gap));
    assert!(archive.verify(1, 0, 1000).unwrap().findings.is_empty(), "it was told when it came");

    let changed = String::from_utf8(lines[before].to_vec())
        .unwrap()
        .replace("\"time\":\"20", "\"time\":\"21");
    let taken = collector.take(origin(), vec![Bytes::from(changed)]).await.unwrap();
    assert!(taken.refused.unwrap().contains("does not fit its hash"));
    let taken = collector.take(origin(), vec![Bytes::from_static(b"{}")]).await.unwrap();
    assert!(taken.refused.is_some() && taken.stored == 0);
    // The seal of somebody else is kept as what it is: an alarm.
    let stranger = Origin { spiffe_id: "spiffe://shop/web".into(), node: "n".into() };
    let taken = collector.take(stranger, lines.clone()).await.unwrap();
    assert_eq!((taken.stored, taken.countersignature), (lines.len(), None));
    assert!(codes(&archive).contains(&"bad_seal".to_owned()));
}

#[tokio::test]
async fn seals_are_countersigned_and_a_log_that_notes_it_cannot_be_written_anew() {
    let world = World::new();
    let log = world.open_log("billing");
    decide(&log, WEB, "/1", false);
    log.flush(WITHIN).unwrap();
    let archive = world.archive();
    let (collector, _tasks) = world.collector(&archive);
    let first = lines(&world.log("billing"));
    let taken = collector.take(origin(), first.clone()).await.unwrap();
    let made = taken.countersignature.unwrap();
    assert_eq!(
        (&*made.origin, &*made.spiffe_id),
        ("spiffe://shop/billing", "spiffe://shop/wardgate/control")
    );
    made.check(Some(&world.control.load().trust)).unwrap();
    let other = crate::observe::Countersignature { seq: made.seq + 1, ..made.clone() };
    assert!(other.check(None).unwrap_err().contains("signature does not fit"));
    let own = crate::observe::Countersignature { origin: made.spiffe_id.clone(), ..made.clone() };
    assert!(own.check(None).is_err(), "nobody countersigns himself");

    let record = CountersignedRecord { countersignature: &made, with_certificates: true };
    log.control().countersigned(&record).unwrap();
    log.flush(WITHIN).unwrap();
    // It makes no seal of its own: otherwise the two would make each other for ever.
    let before = lines(&world.log("billing")).len();
    log.flush(WITHIN).unwrap();
    assert_eq!(lines(&world.log("billing")).len(), before);
    decide(&log, WEB, "/2", false);
    drop(log);
    let files = [world.log("billing")];
    let bundle = || world.control.load().trust.bundles.iter().next().cloned();
    let report = verify(&files, Expected { bundle: bundle(), ..Expected::default() }).unwrap();
    assert!(report.is_sound(), "{:?}", report.findings);
    assert_eq!((report.countersigned.good, report.countersigned.unjudged), (1, 0));
    assert_eq!(report.countersigned.up_to.unwrap().0, made.seq);
    assert!(report.countersigned.by.contains("spiffe://shop/wardgate/control"));

    // The workload itself writes its log anew, with its own key, and keeps the countersignature that it has.
    let noted = lines(&world.log("billing")).into_iter();
    let noted = noted.map(|line| String::from_utf8(line.to_vec()).unwrap());
    let noted = noted.filter(|line| line.contains("countersigned")).collect::<Vec<_>>();
    let value: serde_json::Value = serde_json::from_str(&noted[0]).unwrap();
    assert_eq!(value["countersigned"]["hash"], made.hash);
    let log = world.open_log("anew");
    decide(&log, WEB, "/innocent", true);
    log.flush(WITHIN).unwrap();
    log.control().countersigned(&record).unwrap();
    drop(log);
    let report = verify(&[world.log("anew")], Expected::default()).unwrap();
    let codes: Vec<&str> = report.findings.iter().map(|finding| finding.code).collect();
    assert_eq!(codes, ["bad_countersignature"], "{:?}", report.findings);
}

#[tokio::test]
async fn the_archive_finds_what_was_changed_in_it() {
    let world = World::new();
    let lines = world.write("billing", &[(WEB, "/1", true), (WEB, "/2", false), (WEB, "/3", true)]);
    let archive = world.archive();
    let (collector, tasks) = world.collector(&archive);
    collector.take(origin(), lines.clone()).await.unwrap();
    let report = archive.verify(1, 0, 1000).unwrap();
    assert!(report.findings.is_empty(), "{:?}", report.findings);
    let is_seal = |line: &&Bytes| String::from_utf8_lossy(line).contains("\"type\":\"seal\"");
    let seals = lines.iter().filter(is_seal).count() as u64;
    let told = (report.records, report.seals, report.countersigned);
    assert_eq!(told, (lines.len() as u64, seals, seals));
    assert_eq!(report.last_hash.as_ref(), Some(&report.facts.head_hash));
    // In parts it finds the same.
    let (mut after, mut records) = (0, 0);
    loop {
        let part = archive.verify(1, after, 2).unwrap();
        assert!(part.findings.is_empty(), "{:?}", part.findings);
        records += part.records;
        match part.next {
            Some(next) => after = next,
            None => break,
        }
    }
    assert_eq!(records, lines.len() as u64);
    assert!(archive.verify(7, 0, 10).is_err());

    drop((collector, tasks, archive));
    drop(reopened(&world).await);
    let at = lines.iter().position(|line| line.windows(4).any(|text| text == b"deny")).unwrap();
    let edit = |edit: &dyn Fn(&mut redb::Table<'_, u64, RecordRow<'static>>)| {
        let database = redb::Database::open(world.path()).unwrap();
        let transaction = database.begin_write().unwrap();
        edit(&mut transaction.open_table(Names::of(1).records()).unwrap());
        transaction.commit().unwrap();
        assert!(database.begin_read().is_ok());
    };
    let (number, seq) = (at as u64 + 1, at as u64 + 1);
    let changed = String::from_utf8(lines[at].to_vec()).unwrap().replace("\"deny\"", "\"allow\"");
    edit(&|table| drop(table.insert(number, (1, seq, 0, changed.as_bytes())).unwrap()));
    let found = reopened(&world).await.verify(1, 0, 1000).unwrap().findings;
    assert_eq!((found.len(), &*found[0].code, found[0].seq), (1, "changed", seq));
    edit(&|table| drop(table.remove(number).unwrap()));
    let found = reopened(&world).await.verify(1, 0, 1000).unwrap().findings;
    assert_eq!(&*found[0].code, "removed");
}

#[tokio::test]
async fn the_oldest_segments_go_whole_and_that_is_told() {
    let world = World::new();
    let settings = ArchiveSettings { retain_bytes: 1 << 20, ..ArchiveSettings::default() };
    let archive = world.archive_with(settings);
    let (collector, _tasks) = world.collector(&archive);
    let log = world.open_log("billing");
    let path = format!("/{}", "x".repeat(4000));
    for _ in 0..400 {
        decide(&log, WEB, &path, false);
    }
    log.flush(WITHIN).unwrap();
    drop(log);
    let all = lines(&world.log("billing"));
    for part in all.chunks(10) {
        collector.take(origin(), part.to_vec()).await.unwrap();
    }
    let limit = (1 << 20) + (64 << 10);
    let until = std::time::Instant::now() + WITHIN;
    while archive.bytes() > limit {
        assert!(std::time::Instant::now() < until, "{} bytes are kept", archive.bytes());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let facts = archive.chains()[0].clone();
    assert!(facts.kept_from > 100 && facts.head_seq == all.len() as u64, "{facts:?}");
    let report = archive.verify(1, 0, 10_000).unwrap();
    assert!(report.findings.is_empty(), "{:?}", report.findings);
    assert_eq!(report.records, facts.head_seq + 1 - facts.kept_from);
    // What is gone is not taken again, and no gap either.
    let taken = collector.take(origin(), all[..20].to_vec()).await.unwrap();
    assert_eq!((taken.stored, taken.refused), (20, None));
    assert!(codes(&archive).is_empty(), "{:?}", codes(&archive));
    let told = || {
        let lines = crate::audit::Lines::of(&world.log("control"));
        lines.map(Result::unwrap).any(|line| line.contains(r#""event":"retired""#))
    };
    while !told() {
        assert!(std::time::Instant::now() < until, "nothing tells of the retention");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // Days.
    let inner = archive.inner.clone();
    let later = crate::rt::unix_millis() + 91 * 86_400_000;
    let gone = tokio::task::spawn_blocking(move || inner.retire(later).unwrap()).await.unwrap();
    assert!(gone > 0 && archive.chains().is_empty() && archive.bytes() == 0);
}

#[tokio::test]
async fn many_data_planes_share_commits_and_get_their_own_answers() {
    let world = World::new();
    let archive = world.archive();
    let (collector, _tasks) = world.collector(&archive);
    let lines = world.write("billing", &[(WEB, "/1", true), (WEB, "/2", false)]);
    let takes = (0..20).map(|node| {
        let (collector, lines) = (collector.clone(), lines.clone());
        async move {
            let origin = Origin { node: format!("node-{node}"), ..origin() };
            let taken = collector.take(origin, lines).await.unwrap();
            (taken.stored, taken.countersignature.is_some())
        }
    });
    let answers = futures_util::future::join_all(takes).await;
    assert!(answers.iter().all(|answer| *answer == (lines.len(), true)), "{answers:?}");
    assert_eq!(archive.chains().len(), 20);
    for facts in archive.chains() {
        assert!(archive.verify(facts.chain, 0, 100).unwrap().findings.is_empty());
    }
}
