//! Seals from outside: who may have written a log, and what a forger cannot do.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::identity::forge::{Folder, Forge};
use crate::identity::{Identity, Trust};
use crate::observe::chain;
use crate::observe::{
    AuditLog, AuditSettings, Expected, IdentityRecord, Posture, VerifyReport, verify,
};
use crate::rt::Publisher;

const WITHIN: Duration = Duration::from_secs(30);

struct World {
    folder: Folder,
    forge: Forge,
    identity: Publisher<Identity>,
}

impl World {
    fn new() -> Self {
        let (folder, forge) = (Folder::new(), Forge::new("shop"));
        let (identity, _) = Publisher::new(forge.identity("/billing", &[]));
        Self { folder, forge, identity }
    }

    fn log(&self) -> PathBuf {
        self.folder.path().join("audit.jsonl")
    }

    /// A log that is sealed as soon as something was written.
    fn open(&self) -> AuditLog {
        self.open_with(AuditSettings { seal_within: Duration::ZERO, ..AuditSettings::default() })
    }

    fn open_with(&self, settings: AuditSettings) -> AuditLog {
        let mut settings = settings;
        settings.path = Some(self.log());
        let audit = AuditLog::open(settings, &Posture::default()).unwrap();
        audit.seal_as(self.identity.live());
        audit
    }

    fn check(&self, expected: Expected<'_>) -> VerifyReport {
        verify(&[self.log()], expected).unwrap()
    }

    fn check_with_bundle(&self) -> VerifyReport {
        let bundle = Some(self.forge.bundle());
        self.check(Expected { bundle, ..Expected::default() })
    }
}

fn record(audit: &AuditLog, event: &'static str) {
    let record = IdentityRecord {
        event,
        spiffe_id: "spiffe://shop/billing",
        serial: None,
        not_after: None,
        trust_domains: None,
        bundle_revisions: None,
        detail: None,
    };
    audit.control().identity(&record).unwrap();
    audit.flush(WITHIN).unwrap();
}

fn lines(path: &Path) -> Vec<String> {
    fs::read_to_string(path).unwrap().lines().map(String::from).collect()
}

fn seals(path: &Path) -> Vec<Value> {
    let records = lines(path).into_iter().map(|line| serde_json::from_str::<Value>(&line).unwrap());
    records.filter(|record| record["type"] == "seal").collect()
}

/// Writes the lines as whoever may write to the file and knows how hashes are made: a chain that is whole.
fn chained_anew(path: &Path, lines: &[String]) {
    let mut prev = [0; 32];
    let mut all = Vec::new();
    for line in lines {
        let record: Value = serde_json::from_str(line).unwrap();
        let [old_prev, old_hash] = ["prev", "hash"].map(|name| record[name].as_str().unwrap());
        let open = line.replace(&format!(",\"hash\":\"{old_hash}\"}}"), "");
        let from = all.len();
        all.extend_from_slice(open.replace(old_prev, &hex::encode(prev)).as_bytes());
        prev = chain::seal(&prev, &mut all, from);
    }
    fs::write(path, all).unwrap();
}

#[test]
fn a_log_is_sealed_by_who_writes_it_and_its_end_on_closing() {
    let world = World::new();
    let audit = world.open_with(AuditSettings::default());
    record(&audit, "first");
    drop(audit);
    let report = world.check_with_bundle();
    assert!(report.is_sound(), "{:?}", report.findings);
    assert_eq!((report.seals, report.unsealed), (1, 0));
    assert_eq!(report.sealed_by.iter().collect::<Vec<_>>(), ["spiffe://shop/billing"]);
    let seal = &seals(&world.log())[0];
    assert_eq!((&seal["records"], &seal["scheme"]), (&2.into(), &"ecdsa_secp256r1_sha256".into()));
    assert_eq!(seal["certificates"].as_array().unwrap().len(), 2, "with the intermediate");
}

#[test]
fn a_seal_comes_in_time_although_nothing_else_does_and_only_where_there_is_something_new() {
    let world = World::new();
    let audit = world
        .open_with(AuditSettings { seal_within: Duration::from_millis(50), ..Default::default() });
    let began = Instant::now();
    while seals(&world.log()).is_empty() {
        assert!(began.elapsed() < WITHIN);
        std::thread::park_timeout(Duration::from_millis(10));
    }
    std::thread::park_timeout(Duration::from_millis(300));
    assert_eq!(seals(&world.log()).len(), 1, "a seal is not sealed again");
    drop(audit);
    assert_eq!(seals(&world.log()).len(), 1);
}

#[test]
fn many_records_are_sealed_without_waiting() {
    let world = World::new();
    let settings =
        AuditSettings { seal_within: WITHIN * 100, seal_records: 10, ..Default::default() };
    let audit = world.open_with(settings);
    for _ in 0..40 {
        record(&audit, "rotated");
    }
    assert!(seals(&world.log()).len() >= 3, "{}", seals(&world.log()).len());
    drop(audit);
    assert!(world.check_with_bundle().is_sound());
}

#[test]
fn a_renewed_svid_goes_on_and_each_file_can_be_judged_alone() {
    let world = World::new();
    let audit = world.open();
    record(&audit, "first");
    world.identity.set(world.forge.identity("/billing", &[]));
    record(&audit, "rotated");
    record(&audit, "rotated");
    drop(audit);
    let with_chain = |seal: &&Value| seal.get("certificates").is_some();
    assert_eq!(seals(&world.log()).iter().filter(with_chain).count(), 2, "each chain once");
    assert!(world.check_with_bundle().is_sound());

    // The next process goes on in the file, and shows its chain again.
    drop(world.open());
    assert_eq!(seals(&world.log()).iter().filter(with_chain).count(), 3);
    assert!(world.check_with_bundle().is_sound());
}

#[test]
fn without_an_identity_nothing_is_sealed_until_there_is_one_again() {
    let world = World::new();
    let whole = world.forge.identity("/billing", &[]);
    let gone = Identity { svid: world.forge.svid("/billing"), trust: Trust::default().into() };
    assert!(gone.is_withdrawn());
    world.identity.set(gone);
    let audit = world.open();
    record(&audit, "withdrawn");
    assert_eq!(seals(&world.log()), Vec::<Value>::new());
    world.identity.set(whole);
    record(&audit, "restored");
    let began = Instant::now();
    while seals(&world.log()).is_empty() {
        assert!(began.elapsed() < WITHIN);
        std::thread::park_timeout(Duration::from_millis(10));
    }
    drop(audit);
    let report = world.check_with_bundle();
    assert!(report.is_sound() && report.unsealed == 0, "{report:?}");
}

#[test]
fn who_chains_everything_anew_cannot_seal_it() {
    let world = World::new();
    let audit = world.open_with(AuditSettings::default());
    record(&audit, "first");
    record(&audit, "withdrawn");
    drop(audit);
    let mut forged = lines(&world.log());
    let at = forged.iter().position(|line| line.contains("\"withdrawn\"")).unwrap();
    forged[at] = forged[at].replace("withdrawn", "restored");
    chained_anew(&world.log(), &forged);
    let report = world.check(Expected::default());
    let codes: Vec<_> = report.findings.iter().map(|finding| finding.code).collect();
    assert_eq!(codes, ["bad_seal"], "{:?}", report.findings);
    assert!(report.findings[0].what.contains("does not fit"), "{:?}", report.findings);

    // Leaving the seals out as well is a whole chain, and no log of a workload.
    forged.retain(|line| !line.contains("\"type\":\"seal\""));
    chained_anew(&world.log(), &forged);
    assert!(world.check(Expected::default()).is_sound());
    let codes: Vec<_> =
        world.check_with_bundle().findings.iter().map(|finding| finding.code).collect();
    assert_eq!(codes, ["not_sealed"]);
}

#[test]
fn a_seal_by_somebody_else_is_worth_nothing() {
    let world = World::new();
    let stranger = World { forge: Forge::new("shop"), ..World::new() };
    stranger.identity.set(stranger.forge.identity("/billing", &[]));
    let audit = AuditLog::open(
        AuditSettings { path: Some(world.log()), ..AuditSettings::default() },
        &Posture::default(),
    )
    .unwrap();
    audit.seal_as(stranger.identity.live());
    audit.seal_as(world.identity.live());
    record(&audit, "first");
    drop(audit);
    assert!(world.check(Expected::default()).is_sound(), "the signature itself is good");
    let report = world.check_with_bundle();
    let codes: Vec<_> = report.findings.iter().map(|finding| finding.code).collect();
    assert_eq!(codes, ["bad_seal", "not_sealed"]);
    assert!(report.findings[0].what.contains("does not vouch"), "{:?}", report.findings);

    // A name that the certificate does not bear.
    let altered: Vec<String> = lines(&world.log())
        .into_iter()
        .map(|line| {
            line.replace(
                "\"spiffe_id\":\"spiffe://shop/billing\",\"scheme\"",
                "\"spiffe_id\":\"spiffe://shop/ledger\",\"scheme\"",
            )
        })
        .collect();
    chained_anew(&world.log(), &altered);
    let report = world.check(Expected::default());
    assert!(report.findings.iter().any(|finding| finding.what.contains("spiffe://shop/ledger")));
}
