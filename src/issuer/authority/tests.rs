//! An authority through its life: issuing, rotation, crashes, an upstream, keys elsewhere, revocation.

use std::collections::BTreeSet;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rcgen::{KeyPair, PublicKeyData, SignatureAlgorithm, SigningKey};
use rustls_pki_types::UnixTime;
use x509_parser::prelude::{CertificateRevocationList, FromDer, X509Certificate};

use super::certificate::DAY;
use super::custody::AuthorityKey;
use super::files::Files;
use super::ledger::Ledger;
use super::*;
use crate::identity::forge::Folder;
use crate::identity::{Presented, Purpose, Svid, Trust, TrustBundles, TrustDomain};
use crate::issuer::Error;
use crate::rt::Clock;

const ID: &str = "spiffe://a.test/ns/x/sa/web";
const NOW: i64 = 1_800_000_000;
const DAY_LONG: Duration = Duration::from_secs(86_400);

fn domain() -> TrustDomain {
    "a.test".parse().unwrap()
}

fn issue(authority: &Authority, ttl: Duration) -> Svid {
    authority.issue_to(&ID.parse().unwrap(), ttl, &[], &Evidence::by("workload api")).unwrap()
}

fn verify(authority: &Authority, svid: &Svid, now: i64) -> Result<(), &'static str> {
    let bundles: TrustBundles = [authority.bundle()].into_iter().collect();
    let now = UnixTime::since_unix_epoch(Duration::from_secs(now.try_into().unwrap()));
    for purpose in [Purpose::Client, Purpose::Server] {
        Trust::from(bundles.clone())
            .verifier()
            .verify(&svid.chain[0], &svid.chain[1..], purpose, now, &mut Presented::default())
            .map_err(|flaw| flaw.code())?;
    }
    Ok(())
}

fn roots(authority: &Authority) -> usize {
    authority.bundle().roots.len()
}

fn root_of(svid: &Svid, authority: &Authority) -> usize {
    let bundle = authority.bundle();
    let intermediate = svid.chain.last().unwrap();
    bundle.roots.iter().position(|root| certificate::is_signed_by(intermediate, root)).unwrap()
}

#[test]
fn an_svid_is_what_the_specification_asks_for() {
    let clock = Clock::fixed(NOW);
    let authority = Authority::in_memory(domain(), clock).unwrap();
    let names = ["web.x.svc".to_owned()];
    let svid = authority.issue(&ID.parse().unwrap(), DEFAULT_TTL, &names).unwrap();
    assert_eq!(svid.chain.len(), 2, "leaf and intermediate");
    assert_eq!(svid.serial.len(), 32, "16 random bytes");
    assert_eq!(svid.not_before, NOW - 30);
    assert_eq!(svid.not_after, NOW + 3600);
    verify(&authority, &svid, NOW).unwrap();
    assert_eq!(verify(&authority, &svid, NOW + 3601), Err("expired"));

    let (_, leaf) = X509Certificate::from_der(&svid.chain[0]).unwrap();
    assert!(!leaf.is_ca());
    assert!(leaf.subject_alternative_name().unwrap().unwrap().critical);
    assert!(leaf.key_usage().unwrap().unwrap().critical);
    let (_, intermediate) = X509Certificate::from_der(&svid.chain[1]).unwrap();
    let constraints = intermediate.basic_constraints().unwrap().unwrap();
    assert_eq!(constraints.value.path_len_constraint, Some(0));
    assert_ne!(issue(&authority, DEFAULT_TTL).serial, svid.serial);
}

#[test]
fn what_must_not_be_issued_is_refused() {
    let authority = Authority::in_memory(domain(), Clock::system()).unwrap();
    let refused = |id: &str, seconds, names: &[&str]| {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let ttl = Duration::from_secs(seconds);
        authority.issue(&id.parse().unwrap(), ttl, &names).unwrap_err().to_string()
    };
    assert!(refused("spiffe://b.test/web", 60, &[]).contains("not in trust domain a.test"));
    assert!(refused("spiffe://a.test", 60, &[]).contains("has no path"));
    assert!(refused(ID, 0, &[]).contains("lifetime of 0 s"));
    assert!(refused(ID, 90_000, &[]).contains("lifetime of 90000 s"));
    for name in ["", "a b", "-a", "a..b", "*.a", "ä"] {
        assert!(refused(ID, 60, &[name]).contains("is not a DNS name"), "{name}");
    }
    let error = authority.certify(&ID.parse().unwrap(), DEFAULT_TTL, &[], b"key").unwrap_err();
    assert!(matches!(error, Error::PublicKey));
}

#[test]
fn somebody_elses_key_is_certified_without_seeing_its_private_half() {
    let authority = Authority::in_memory(domain(), Clock::system()).unwrap();
    let key = KeyPair::generate().unwrap();
    let spki = key.subject_public_key_info();
    let chain = authority.certify(&ID.parse().unwrap(), DEFAULT_TTL, &[], &spki).unwrap();
    let svid = Svid::new(chain, key.into()).unwrap();
    verify(&authority, &svid, Clock::system().now()).unwrap();
    let entry = &authority.ledger.read().unwrap()[0];
    assert_eq!((entry.serial.as_str(), entry.id.as_str()), (svid.serial.as_str(), ID));
    assert_eq!(entry.key, certificate::fingerprint(&spki));
}

#[test]
fn the_intermediate_is_replaced_at_two_thirds_and_old_svids_stay_good() {
    let folder = Folder::new();
    let clock = Clock::fixed(NOW);
    let authority = Authority::create(domain(), folder.path(), clock.clone()).unwrap();
    let first = issue(&authority, DAY_LONG);
    clock.advance(59 * DAY);
    let last = issue(&authority, DAY_LONG);
    assert_eq!(last.chain[1], first.chain[1]);
    clock.advance(DAY);
    let next = issue(&authority, DAY_LONG);
    assert_ne!(next.chain[1], first.chain[1]);
    verify(&authority, &next, clock.now()).unwrap();
    verify(&authority, &last, clock.now()).unwrap();
    assert_eq!(authority.announced().load().lists.len(), 3, "the former one still signs its list");
    // The new one is on disk.
    let again = Authority::open(folder.path(), clock.clone()).unwrap();
    assert_eq!(issue(&again, DAY_LONG).chain[1], next.chain[1]);
    assert_eq!(again.bundle(), authority.bundle());
    clock.advance(2 * DAY);
    authority.tend(&Upkeep::default()).unwrap();
    assert_eq!(authority.announced().load().lists.len(), 2, "nothing alive is under it");
}

#[test]
fn nothing_outlives_its_authorities() {
    let clock = Clock::fixed(NOW);
    let authority = Authority::in_memory(domain(), clock.clone()).unwrap();
    let root_ends = authority.loaded().root_in(Phase::Active).unwrap().facts.not_after;
    clock.advance(root_ends - clock.now() - 3600);
    let svid = issue(&authority, DAY_LONG);
    assert_eq!(svid.not_after, root_ends);
    let (_, intermediate) = X509Certificate::from_der(&svid.chain[1]).unwrap();
    assert!(intermediate.validity().not_after.timestamp() <= root_ends);
    clock.advance(3600);
    let error = authority.issue(&ID.parse().unwrap(), DEFAULT_TTL, &[]).unwrap_err();
    assert!(matches!(error, Error::IntermediateExpired { .. }), "{error}");
}

#[test]
fn an_authority_is_kept_on_disk_with_closed_keys_and_never_overwritten() {
    let folder = Folder::new();
    let directory = folder.path().join("certs");
    let made = Authority::create(domain(), &directory, Clock::system()).unwrap();
    let mode =
        |name: &str| std::fs::metadata(directory.join(name)).unwrap().permissions().mode() & 0o777;
    for name in ["root-key.pem", "intermediate-key.pem", "authority.lock"] {
        assert_eq!(mode(name), 0o600, "{name}");
    }
    for name in ["root.pem", "intermediate.pem", "bundle.pem", "crl.pem"] {
        assert_eq!(mode(name), 0o644, "{name}");
    }
    let opened = Authority::open(&directory, Clock::system()).unwrap();
    assert_eq!((opened.domain(), opened.bundle()), (made.domain(), made.bundle()));
    assert_eq!(
        opened.announced().load(),
        made.announced().load(),
        "the lists are not signed again"
    );
    let svid = issue(&opened, DEFAULT_TTL);
    verify(&made, &svid, Clock::system().now()).unwrap();

    let before = std::fs::read(directory.join("root.pem")).unwrap();
    let again = Authority::create(domain(), &directory, Clock::system()).unwrap_err();
    assert!(again.to_string().ends_with("an authority is never overwritten"));
    assert_eq!(std::fs::read(directory.join("root.pem")).unwrap(), before);
    assert!(!format!("{made:?}").contains("PRIVATE"));
}

#[test]
fn a_damaged_authority_is_named_and_left_as_it_is() {
    let folder = Folder::new();
    let path = |name: &str| folder.path().join(name);
    let made = Authority::create(domain(), folder.path(), Clock::system()).unwrap();
    let root_key = format!("{}-key.pem", made.loaded().signing.root);
    let others = Folder::new();
    Authority::create("b.test".parse().unwrap(), others.path(), Clock::system()).unwrap();
    let other = |name: &str| std::fs::read(others.path().join(name)).unwrap();
    let open = || Authority::open(folder.path(), Clock::system()).unwrap_err().to_string();
    for (name, content, says) in [
        ("authority.json", b"{}".to_vec(), "missing field"),
        ("root.pem", b"hello".to_vec(), "expected a certificate"),
        ("root-key.pem", b"hello".to_vec(), "expected one private key"),
        ("root-key.pem", other("root-key.pem"), "belongs to another certificate"),
        ("intermediate.pem", b"hello".to_vec(), "expected a certificate"),
        ("intermediate.pem", other("intermediate.pem"), "the root beside it did not sign it"),
        ("revoked.jsonl", b"{\"serial\"".to_vec(), "line 1"),
    ] {
        let good = std::fs::read(path(name)).ok();
        std::fs::write(path(name), &content).unwrap();
        assert!(open().contains(says), "{name}: {}", open());
        assert_eq!(std::fs::read(path(name)).unwrap(), content, "{name} was changed");
        match good {
            Some(good) => std::fs::write(path(name), good).unwrap(),
            None => std::fs::remove_file(path(name)).unwrap(),
        }
    }
    let everybody = std::fs::Permissions::from_mode(0o644);
    std::fs::set_permissions(path(&root_key), everybody).unwrap();
    assert!(open().contains("everybody may read the private key"));
    std::fs::remove_file(path("authority.json")).unwrap();
    assert!(open().contains("`wardgate identity init` makes one"));
}

#[test]
fn keys_under_a_passphrase_open_with_it_alone() {
    let folder = Folder::new();
    let custody = |text: Option<&str>| {
        let passphrase = text.map(|text| Passphrase::new(text).unwrap());
        Arc::new(FileCustody::new(folder.path(), passphrase))
    };
    let clock = Clock::system();
    let good = custody(Some("correct horse"));
    let made = Authority::create_with(domain(), folder.path(), good, clock.clone()).unwrap();
    made.prepare_root().unwrap();
    for name in std::fs::read_dir(folder.path()).unwrap() {
        let text = std::fs::read(name.unwrap().path()).unwrap_or_default();
        assert!(!String::from_utf8_lossy(&text).contains("BEGIN PRIVATE KEY"));
    }
    let open = |custody| Authority::open_with(folder.path(), custody, clock.clone());
    let opened = open(custody(Some("correct horse"))).unwrap();
    verify(&made, &issue(&opened, DEFAULT_TTL), clock.now()).unwrap();
    let wrong = open(custody(Some("battery staple"))).unwrap_err().to_string();
    assert!(wrong.contains("the passphrase does not open"), "{wrong}");
    let none = open(custody(None)).unwrap_err().to_string();
    assert!(none.contains("WARDGATE_CA_PASSPHRASE") && none.contains("is encrypted"), "{none}");
}

/// Keys that only another process sees: `openssl` makes them and signs with them.
#[derive(Debug)]
struct OpensslCustody(std::path::PathBuf);

struct OpensslKey {
    file: std::path::PathBuf,
    public: rcgen::SubjectPublicKeyInfo,
}

fn openssl(arguments: &[&str], input: &[u8]) -> Vec<u8> {
    let mut child = Command::new("openssl")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("openssl is installed");
    child.stdin.take().unwrap().write_all(input).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "openssl {arguments:?}: {said}");
    output.stdout
}

impl PublicKeyData for OpensslKey {
    fn der_bytes(&self) -> &[u8] {
        self.public.der_bytes()
    }
    fn algorithm(&self) -> &'static SignatureAlgorithm {
        self.public.algorithm()
    }
}

impl SigningKey for OpensslKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        Ok(openssl(&["dgst", "-sha256", "-sign", self.file.to_str().unwrap()], message))
    }
}

impl KeyCustody for OpensslCustody {
    fn generate(&self, name: &str) -> Result<AuthorityKey, Error> {
        let file = self.0.join(name);
        let file = file.to_str().unwrap();
        openssl(
            &["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", file],
            b"",
        );
        self.open(name)
    }
    fn open(&self, name: &str) -> Result<AuthorityKey, Error> {
        let file = self.0.join(name);
        if !file.exists() {
            return Err(Error::Custody { detail: format!("no key {name}") });
        }
        let public =
            openssl(&["pkey", "-in", file.to_str().unwrap(), "-pubout", "-outform", "DER"], b"");
        let public = rcgen::SubjectPublicKeyInfo::from_der(&public)?;
        Ok(AuthorityKey::new(OpensslKey { file, public }))
    }
    fn destroy(&self, name: &str) -> Result<(), Error> {
        let _ = std::fs::remove_file(self.0.join(name));
        Ok(())
    }
}

#[test]
fn keys_may_be_where_the_process_never_sees_them() {
    let (folder, safe) = (Folder::new(), Folder::new());
    let clock = Clock::fixed(NOW);
    let custody = Arc::new(OpensslCustody(safe.path().to_owned()));
    let authority =
        Authority::create_with(domain(), folder.path(), custody.clone(), clock.clone()).unwrap();
    verify(&authority, &issue(&authority, DEFAULT_TTL), NOW).unwrap();
    authority.prepare_root().unwrap();
    authority.activate_root(None, true).unwrap();
    let svid = issue(&authority, DEFAULT_TTL);
    authority.retire_root(true).unwrap();
    verify(&authority, &svid, NOW).unwrap();
    let names = |folder: &Path| -> BTreeSet<String> {
        let all = std::fs::read_dir(folder).unwrap();
        all.map(|one| one.unwrap().file_name().into_string().unwrap()).collect()
    };
    assert_eq!(names(safe.path()).len(), 2, "the keys of the former root are destroyed");
    assert!(!names(folder.path()).iter().any(|name| name.contains("key")), "no key file");
    Authority::open_with(folder.path(), custody, clock).unwrap();
}

#[test]
fn a_root_is_replaced_in_three_steps_and_nobody_is_left_behind() {
    let clock = Clock::fixed(NOW);
    let authority = Authority::in_memory(domain(), clock.clone()).unwrap();
    let announced = authority.announced();
    let before = issue(&authority, DEFAULT_TTL);
    authority.prepare_root().unwrap();
    assert!(announced.version() > 0, "the bundle is announced at once");
    assert_eq!(roots(&authority), 2);
    assert_eq!(root_of(&issue(&authority, DEFAULT_TTL), &authority), 0, "it does not sign yet");
    assert!(matches!(authority.prepare_root(), Err(Error::Step { .. })));

    let Err(Error::TooEarly { since, until }) = authority.activate_root(None, false) else {
        panic!("too early");
    };
    assert_eq!((since, until), (NOW, NOW + 1800), "half of the longest SVID's life");
    let lists = announced.load().lists.clone();
    clock.advance(1800);
    authority.activate_root(None, false).unwrap();
    assert_eq!(announced.load().lists, lists, "its list was known before");
    let after = issue(&authority, DEFAULT_TTL);
    assert_eq!(root_of(&after, &authority), 1);
    for svid in [&before, &after] {
        verify(&authority, svid, clock.now()).unwrap();
    }

    assert!(matches!(authority.retire_root(false), Err(Error::TooEarly { .. })), "a moment");
    clock.advance(5);
    let Err(Error::WouldBreak { live }) = authority.retire_root(false) else {
        panic!("somebody would break");
    };
    assert_eq!(live.len(), 2);
    assert!(live.iter().all(|one| one.id == ID && one.serial != after.serial));
    clock.advance(1800);
    authority.retire_root(false).unwrap();
    assert_eq!(roots(&authority), 1);
    verify(&authority, &after, clock.now()).unwrap();
    assert_eq!(verify(&authority, &before, NOW), Err("unknown_authority"));
    assert!(matches!(authority.retire_root(true), Err(Error::Step { .. })));
}

#[test]
fn a_policy_rotates_by_itself_and_waits_for_those_who_would_break() {
    let clock = Clock::fixed(NOW);
    let authority = Authority::in_memory(domain(), clock.clone()).unwrap();
    let overlap = Some(Duration::from_secs(600));
    let rotation = Some(RotationPolicy { every: DAY_LONG, overlap });
    let upkeep = Upkeep { rotation, ..Upkeep::default() };
    let mut seen = Vec::new();
    let mut look = |seconds: i64| {
        clock.advance(seconds);
        authority.tend(&upkeep).unwrap();
        seen.push((authority.loaded().state.next_step(), roots(&authority)));
    };
    look(DAY - 1);
    look(1);
    look(599);
    issue(&authority, DAY_LONG);
    look(1);
    look(600);
    look(DAY - 601);
    look(1);
    look(1);
    assert_eq!(
        seen,
        [
            (Step::Prepare, 1),
            (Step::Activate, 2),
            (Step::Activate, 2),
            (Step::Retire, 2),
            (Step::Retire, 2),
            (Step::Retire, 2),
            (Step::Prepare, 1),
            (Step::Activate, 2),
        ]
    );
}

#[test]
fn a_running_authority_takes_over_what_a_command_changes() {
    let folder = Folder::new();
    let clock = Clock::fixed(NOW);
    let running = Authority::create(domain(), folder.path(), clock.clone()).unwrap();
    let announced = running.announced();
    let upkeep = Upkeep::default();
    let command = || Authority::open(folder.path(), clock.clone()).unwrap();
    let settled = announced.version();
    running.tend(&upkeep).unwrap();
    assert_eq!(announced.version(), settled, "nothing new");

    command().prepare_root().unwrap();
    running.tend(&upkeep).unwrap();
    assert_eq!(announced.load().bundle.roots.len(), 2);
    command().activate_root(None, true).unwrap();
    running.tend(&upkeep).unwrap();
    assert_eq!(root_of(&issue(&running, DEFAULT_TTL), &running), 1);
    clock.advance(6);
    command().retire_root(false).unwrap();
    running.tend(&upkeep).unwrap();
    assert_eq!(roots(&running), 1);
    let svid = issue(&running, DEFAULT_TTL);
    let mut records = Records::open(folder.path()).unwrap();
    records.revoke_serial(&svid.serial, Reason::KeyCompromise, false, clock.now()).unwrap();
    running.tend(&upkeep).unwrap();
    assert!(announced.load().revoked.contains(&svid.serial));
}

/// Every step of a rotation, cut off after each of its writes.
#[test]
fn a_crash_between_two_writes_leaves_a_whole_authority_that_goes_on() {
    type Act = fn(&Authority) -> Result<(), Error>;
    let steps: [(&str, Act, Step, usize); 3] = [
        ("prepare", |authority| authority.prepare_root(), Step::Activate, 2),
        ("activate", |authority| authority.activate_root(None, true), Step::Retire, 2),
        ("retire", |authority| authority.retire_root(true), Step::Prepare, 1),
    ];
    let folder = Folder::new();
    let clock = Clock::fixed(NOW);
    let start = folder.path().join("start");
    let first = Authority::create(domain(), &start, clock.clone()).unwrap();
    let before = issue(&first, DEFAULT_TTL);
    for (name, act, next, count) in steps {
        let mut outcomes = BTreeSet::new();
        let mut writes = 0;
        loop {
            let copy = folder.path().join(format!("{name}-{writes}"));
            assert!(
                Command::new("cp").arg("-a").arg(&start).arg(&copy).status().unwrap().success()
            );
            let crashing = {
                let files = Arc::new(Files::crashing_after(&copy, usize::MAX));
                let custody = Arc::new(FileCustody::on(files.clone(), None));
                let ledger = Ledger::directory(&copy);
                let authority = Authority::load(files.clone(), custody, ledger, clock.clone());
                files.burn_after(writes);
                authority.unwrap()
            };
            let done = act(&crashing);
            let survived = crashing.files.is_whole();
            drop(crashing);

            let again = Authority::open(&copy, clock.clone())
                .unwrap_or_else(|error| panic!("{name} cut off after {writes} writes: {error}"));
            let svid = issue(&again, DEFAULT_TTL);
            verify(&again, &svid, NOW).unwrap();
            if name != "retire" {
                verify(&again, &before, NOW).unwrap();
            }
            let at = again.loaded().state.next_step();
            outcomes.insert(format!("{at}"));
            // What was not done can be done now; what was done is done.
            if at != next {
                act(&again).unwrap_or_else(|error| panic!("{name} after {writes}: {error}"));
            }
            assert_eq!(again.loaded().state.next_step(), next, "{name} after {writes} writes");
            assert_eq!(roots(&again), count);
            let state = &again.loaded().state;
            let known: BTreeSet<String> = state
                .names()
                .flat_map(|name| [format!("{name}.pem"), format!("{name}-key.pem")])
                .collect();
            for entry in std::fs::read_dir(&copy).unwrap() {
                let entry = entry.unwrap().file_name().into_string().unwrap();
                let is_ours = entry.starts_with("root-") || entry.starts_with("intermediate-");
                let is_link = entry == "root-key.pem" || entry == "intermediate-key.pem";
                assert!(!is_ours || is_link || known.contains(&entry), "{name} left {entry}");
            }
            let links = std::fs::read(copy.join("root.pem")).unwrap();
            let active = again.loaded().signing.root.clone();
            assert_eq!(links, std::fs::read(copy.join(format!("{active}.pem"))).unwrap());
            if survived {
                done.unwrap();
                break;
            }
            writes += 1;
            assert!(writes < 60, "{name} never ends");
        }
        assert_eq!(outcomes.len(), 2, "{name}: before and after, nothing between: {outcomes:?}");
        assert!(writes >= 1);
        // The next step starts from a good one.
        act(&Authority::open(&start, clock.clone()).unwrap()).unwrap();
    }
}

#[test]
fn lists_name_the_revoked_grow_in_number_and_are_signed_anew_at_half_of_their_life() {
    let folder = Folder::new();
    let clock = Clock::fixed(NOW);
    let authority = Authority::create(domain(), folder.path(), clock.clone()).unwrap();
    let upkeep = Upkeep { list_lifetime: Duration::from_secs(7200), rotation: None };
    authority.tend(&upkeep).unwrap();
    let svid = issue(&authority, DEFAULT_TTL);
    let numbers = || {
        let announced = authority.announced().load();
        let number = |der: &[u8]| {
            let (_, list) = CertificateRevocationList::from_der(der).unwrap();
            assert_eq!(
                list.next_update().unwrap().timestamp(),
                list.last_update().timestamp() + 7230
            );
            list.crl_number().unwrap().to_string().parse::<u64>().unwrap()
        };
        let all: Vec<u64> = announced.lists.iter().map(|der| number(der)).collect();
        assert_eq!((all.len(), all[0]), (2, all[1]), "root and intermediate");
        all[0]
    };
    let first = numbers();
    clock.advance(3599);
    authority.tend(&upkeep).unwrap();
    assert_eq!(numbers(), first);
    clock.advance(1);
    authority.tend(&upkeep).unwrap();
    let second = numbers();
    assert!(second > first);

    let mut records = Records::open(folder.path()).unwrap();
    let spelled = format!("0x{}", svid.serial.to_uppercase());
    let now = clock.now();
    let revoked = records.revoke_serial(&spelled, Reason::KeyCompromise, false, now).unwrap();
    assert_eq!(revoked[0].id.as_deref(), Some(ID));
    assert!(
        records.revoke_serial(&svid.serial, Reason::Superseded, false, now).unwrap().is_empty()
    );
    assert!(matches!(
        records.revoke_serial("abcdef", Reason::Unspecified, false, now),
        Err(Error::UnknownSerial { .. })
    ));
    assert!(matches!(
        records.revoke_serial("xyz", Reason::Unspecified, true, now),
        Err(Error::Serial { .. })
    ));
    records.revoke_serial("00ab", Reason::Unspecified, true, now).unwrap();
    authority.tend(&upkeep).unwrap();
    assert!(numbers() > second);
    let announced = authority.announced().load();
    let named = |der: &[u8]| {
        let (_, list) = CertificateRevocationList::from_der(der).unwrap();
        let mut serials: Vec<String> = list
            .iter_revoked_certificates()
            .map(|one| hex::encode(one.user_certificate.to_bytes_be()))
            .collect();
        serials.sort();
        serials
    };
    assert_eq!(named(&announced.lists[0]), ["ab"], "the root's list does not name leaves");
    let mut both = vec![svid.serial.clone(), "ab".to_owned()];
    both.sort();
    assert_eq!(named(&announced.lists[1]), both);
    let found = Records::open(folder.path()).unwrap().find(&svid.serial);
    assert_eq!(found[0].revoked.as_ref().unwrap().reason, Reason::KeyCompromise);

    clock.advance(DAY + 3 * 7200);
    authority.tend(&upkeep).unwrap();
    assert!(authority.announced().load().revoked.is_empty(), "what has expired is not named");
}

#[test]
fn an_intermediate_that_is_revoked_signs_no_more() {
    let folder = Folder::new();
    let clock = Clock::fixed(NOW);
    let authority = Authority::create(domain(), folder.path(), clock).unwrap();
    let before = issue(&authority, DEFAULT_TTL);
    let serial = authority.loaded().signing.signer.facts.serial.clone();
    let mut records = Records::open(folder.path()).unwrap();
    records.revoke_serial(&serial, Reason::KeyCompromise, false, NOW).unwrap();
    authority.tend(&Upkeep::default()).unwrap();
    assert!(authority.announced().load().revoked.contains(&serial));
    let after = issue(&authority, DEFAULT_TTL);
    assert_ne!(before.chain[1], after.chain[1]);
    verify(&authority, &after, NOW).unwrap();
}
