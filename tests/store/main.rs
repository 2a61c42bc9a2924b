//! One contract, three stores: the conformance suite, and what each store promises beyond it.

#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

mod cluster;
#[path = "../support/etcd.rs"]
mod etcd_server;
mod moving;

use std::time::Duration;

use serde_json::{Value, json};
use wardgate::store::embedded::Embedded;
use wardgate::store::etcd::{Etcd, Settings};
use wardgate::store::memory::Memory;
use wardgate::store::{Error, Event, Expect, Listing, Store, Watch, Write, Written};

use etcd_server::{EtcdServer, new_folder};

/// The next event, soon.
async fn next(watch: &mut Watch) -> Event {
    tokio::time::timeout(Duration::from_secs(15), watch.next())
        .await
        .expect("an event comes in time")
        .expect("the watch goes on")
}

fn keys(listing: &Listing) -> Vec<&str> {
    listing.entries.iter().map(|stored| stored.key.as_str()).collect()
}

async fn write(store: &dyn Store, key: &str, value: Value) -> u64 {
    store.put(key, &value, Expect::Anything, None).await.unwrap().modified
}

/// What every store does. `compact` makes it forget the past.
async fn conforms<F: Future<Output = ()>>(store: &dyn Store, compact: impl Fn() -> F) {
    reads_what_was_written(store).await;
    writes_only_as_expected(store).await;
    lists_by_prefix(store).await;
    watches_in_order(store).await;
    watches_from_a_revision_and_from_nothing(store).await;
    commits_all_or_nothing(store).await;
    lets_entries_end(store).await;
    resets_a_reader_whose_past_is_forgotten(store, compact).await;
}

async fn reads_what_was_written(store: &dyn Store) {
    assert_eq!(store.get("/a/1").await.unwrap(), None);
    let value: Value =
        serde_json::from_str(r#"{"z":1,"a":[1.5,null,"ä"],"m":{"y":0,"b":0}}"#).unwrap();
    let first = store.put("/a/1", &value, Expect::Anything, None).await.unwrap();
    assert_eq!((first.key.as_str(), first.created), ("/a/1", first.modified));
    let found = store.get("/a/1").await.unwrap().unwrap();
    assert_eq!(found, first);
    assert_eq!(found.value.to_string(), value.to_string(), "the fields stay in their order");
    let second = store.put("/a/1", &json!(2), Expect::Anything, None).await.unwrap();
    assert_eq!(second.created, first.created);
    assert!(second.modified > first.modified);
    let removed = store.delete("/a/1", Expect::Anything).await.unwrap();
    assert_eq!(removed, Some(store.list("/none/").await.unwrap().revision));
    assert_eq!(store.delete("/a/1", Expect::Anything).await.unwrap(), None);
    assert_eq!(store.get("/a/1").await.unwrap(), None);
    let third = store.put("/a/1", &json!(3), Expect::Anything, None).await.unwrap();
    assert_eq!(third.created, third.modified, "a new life begins a new creation");
}

async fn writes_only_as_expected(store: &dyn Store) {
    let put = async |expect| store.put("/cas", &json!(1), expect, None).await;
    let conflict = |result| matches!(result, Err(Error::Conflict));
    assert!(conflict(put(Expect::Revision(7)).await));
    let first = put(Expect::Absent).await.unwrap();
    assert!(conflict(put(Expect::Absent).await));
    let second = put(Expect::Revision(first.modified)).await.unwrap();
    assert!(conflict(put(Expect::Revision(first.modified)).await));
    assert_eq!(store.get("/cas").await.unwrap().unwrap().modified, second.modified);
    let delete = async |expect| store.delete("/cas", expect).await;
    assert!(matches!(delete(Expect::Revision(first.modified)).await, Err(Error::Conflict)));
    assert!(delete(Expect::Revision(second.modified)).await.unwrap().is_some());
    assert!(matches!(delete(Expect::Revision(second.modified)).await, Err(Error::Conflict)));
    // Of many at once exactly one creates it.
    let all = futures_util::future::join_all((0..8).map(|_| put(Expect::Absent))).await;
    assert_eq!(all.iter().filter(|result| result.is_ok()).count(), 1);
}

async fn lists_by_prefix(store: &dyn Store) {
    for key in ["/list/b", "/list/a", "/list0", "/lis", "/list/a/x"] {
        write(store, key, json!(key)).await;
    }
    let listing = store.list("/list/").await.unwrap();
    assert_eq!(keys(&listing), ["/list/a", "/list/a/x", "/list/b"]);
    let newest = write(store, "/other", json!(0)).await;
    assert_eq!(store.list("/list/").await.unwrap().revision, newest);
    assert!(newest > listing.revision);
    let none = store.list("/none/").await.unwrap();
    assert_eq!((none.entries.len(), none.revision), (0, newest));
}

async fn watches_in_order(store: &dyn Store) {
    let from = store.list("/watch/").await.unwrap().revision;
    let mut watch = store.watch("/watch/", from);
    let one = store.put("/watch/1", &json!(1), Expect::Anything, None).await.unwrap();
    write(store, "/elsewhere", json!(1)).await;
    let two = store.put("/watch/1", &json!(2), Expect::Anything, None).await.unwrap();
    store.delete("/watch/1", Expect::Anything).await.unwrap();
    assert_eq!(next(&mut watch).await, Event::Put(one));
    assert_eq!(next(&mut watch).await, Event::Put(two.clone()));
    let Event::Delete { key, revision } = next(&mut watch).await else { panic!("a delete") };
    assert_eq!((key.as_str(), revision), ("/watch/1", two.modified + 1));
    for number in 0..600 {
        write(store, "/watch/many", json!(number)).await;
    }
    for number in 0..600 {
        let Event::Put(stored) = next(&mut watch).await else { panic!("a put") };
        assert_eq!(stored.value, json!(number));
    }
}

async fn watches_from_a_revision_and_from_nothing(store: &dyn Store) {
    let first = write(store, "/from/1", json!(1)).await;
    write(store, "/from/2", json!(2)).await;
    let mut resumed = store.watch("/from/", first);
    let Event::Put(stored) = next(&mut resumed).await else { panic!("a put") };
    assert_eq!(stored.key, "/from/2");
    let mut fresh = store.watch("/from/", 0);
    let Event::Reset(listing) = next(&mut fresh).await else { panic!("a reset") };
    assert_eq!(keys(&listing), ["/from/1", "/from/2"]);
    write(store, "/from/3", json!(3)).await;
    for watch in [&mut resumed, &mut fresh] {
        let Event::Put(stored) = next(watch).await else { panic!("a put") };
        assert_eq!(stored.key, "/from/3");
    }
    // A reader that is ahead of the store knows another past.
    let mut ahead = store.watch("/from/", stored.modified + 1_000_000);
    let Event::Reset(listing) = next(&mut ahead).await else { panic!("a reset") };
    assert_eq!(listing.entries.len(), 3);
}

async fn commits_all_or_nothing(store: &dyn Store) {
    let put = |key: &str, value: i64, expect| Write {
        key: key.to_owned(),
        value: Some(json!(value)),
        expect,
        ttl: None,
    };
    let remove =
        |key: &str| Write { key: key.to_owned(), value: None, expect: Expect::Anything, ttl: None };
    let old = write(store, "/all/old", json!(0)).await;
    let mut watch = store.watch("/all/", old);
    let commit = store
        .commit(vec![
            put("/all/1", 1, Expect::Absent),
            put("/all/2", 2, Expect::Anything),
            remove("/all/old"),
            remove("/all/none"),
        ])
        .await
        .unwrap();
    let [Written::Put(one), Written::Put(two), Written::Removed, Written::WasAbsent] =
        &commit.written[..]
    else {
        panic!("{commit:?}")
    };
    assert_eq!(one, &store.get("/all/1").await.unwrap().unwrap());
    for stored in [one, two] {
        assert_eq!((stored.created, stored.modified), (commit.revision, commit.revision));
    }
    assert_eq!(keys(&store.list("/all/").await.unwrap()), ["/all/1", "/all/2"]);
    for _ in 0..3 {
        assert_eq!(next(&mut watch).await.revision(), commit.revision);
    }

    // One expectation that does not hold, and nothing happens.
    let refused = store
        .commit(vec![
            put("/all/1", 7, Expect::Revision(commit.revision)),
            put("/all/2", 7, Expect::Absent),
            put("/all/3", 7, Expect::Absent),
        ])
        .await;
    assert!(matches!(refused, Err(Error::Conflict)), "{refused:?}");
    assert_eq!(keys(&store.list("/all/").await.unwrap()), ["/all/1", "/all/2"]);
    assert_eq!(store.get("/all/1").await.unwrap().unwrap().value, json!(1));
    let again = store.commit(vec![put("/all/1", 2, Expect::Revision(commit.revision))]).await;
    let [Written::Put(stored)] = &again.unwrap().written[..] else { panic!("a put") };
    assert_eq!(stored.created, commit.revision);
    let nothing = store.commit(vec![remove("/all/none")]).await.unwrap();
    assert_eq!(nothing.revision, store.list("/all/").await.unwrap().revision);
}

async fn lets_entries_end(store: &dyn Store) {
    let from = store.list("/ttl/").await.unwrap().revision;
    let mut watch = store.watch("/ttl/", from);
    store.put("/ttl/short", &json!(1), Expect::Anything, Some(1)).await.unwrap();
    store.put("/ttl/saved", &json!(1), Expect::Anything, Some(1)).await.unwrap();
    store.put("/ttl/saved", &json!(2), Expect::Anything, None).await.unwrap();
    for _ in 0..3 {
        assert!(matches!(next(&mut watch).await, Event::Put(_)));
    }
    let Event::Delete { key, .. } = next(&mut watch).await else { panic!("a delete") };
    assert_eq!(key, "/ttl/short");
    assert_eq!(keys(&store.list("/ttl/").await.unwrap()), ["/ttl/saved"]);
}

async fn resets_a_reader_whose_past_is_forgotten<F: Future<Output = ()>>(
    store: &dyn Store,
    compact: impl Fn() -> F,
) {
    let old = write(store, "/past/1", json!(1)).await;
    write(store, "/past/2", json!(2)).await;
    store.delete("/past/1", Expect::Anything).await.unwrap();
    let mut current = store.watch("/past/", store.list("/past/").await.unwrap().revision);
    compact().await;
    let mut behind = store.watch("/past/", old);
    let Event::Reset(listing) = next(&mut behind).await else { panic!("a reset") };
    assert_eq!(keys(&listing), ["/past/2"]);
    write(store, "/past/3", json!(3)).await;
    for watch in [&mut behind, &mut current] {
        let Event::Put(stored) = next(watch).await else { panic!("a put") };
        assert_eq!(stored.key, "/past/3");
    }
}

#[tokio::test]
async fn memory_conforms() {
    let store = Memory::new();
    conforms(&store, || async { store.compact() }).await;
}

#[tokio::test]
async fn embedded_conforms_and_has_everything_after_it_is_opened_again() {
    let folder = new_folder("embedded");
    let path = folder.join("new folder").join("state.redb");
    let store = Embedded::open(&path).await.unwrap();
    conforms(&store, || async { store.compact() }).await;
    store.put("/ttl/later", &json!(1), Expect::Anything, Some(1)).await.unwrap();
    let before = store.list("").await.unwrap();
    let mut watch = store.watch("", 0);
    assert!(matches!(next(&mut watch).await, Event::Reset(_)));
    store.close().await.unwrap();
    assert_eq!(watch.next().await, None, "the watch ends with its store");

    let again = Embedded::open(&path).await.unwrap();
    assert_eq!(again.list("").await.unwrap(), before);
    let mut watch = again.watch("", before.revision);
    let Event::Delete { key, .. } = next(&mut watch).await else { panic!("a delete") };
    assert_eq!(key, "/ttl/later", "a time to live goes on after a restart");
    let next_revision = write(&again, "/a/2", json!(2)).await;
    assert_eq!(next_revision, before.revision + 2);
    std::fs::remove_dir_all(folder).unwrap();
}

#[tokio::test]
async fn an_embedded_store_that_was_killed_keeps_what_it_had_confirmed() {
    let folder = new_folder("killed");
    let path = folder.join("state.redb");
    let store = Embedded::open(&path).await.unwrap();
    for number in 0..20 {
        write(&store, &format!("/k/{number:02}"), json!(number)).await;
    }
    // What the disk holds now is what a killed process leaves behind.
    let copy = folder.join("copy.redb");
    std::fs::copy(&path, &copy).unwrap();
    let again = Embedded::open(&copy).await.unwrap();
    assert_eq!(again.list("").await.unwrap(), store.list("").await.unwrap());
    std::fs::remove_dir_all(folder).unwrap();
}

#[tokio::test]
async fn an_embedded_store_is_one_process_s() {
    let folder = new_folder("in-use");
    let path = folder.join("state.redb");
    let _store = Embedded::open(&path).await.unwrap();
    let error = Embedded::open(&path).await.err().unwrap();
    assert!(matches!(error, Error::InUse { .. }));
    let sentence = format!("the store file {} is in use by another process", path.display());
    assert_eq!(error.to_string(), sentence);
    std::fs::remove_dir_all(folder).unwrap();
}

#[tokio::test]
async fn a_damaged_file_is_named_and_left_as_it_is() {
    let folder = new_folder("damaged");
    let path = folder.join("state.redb");
    let store = Embedded::open(&path).await.unwrap();
    for number in 0..200 {
        write(&store, &format!("/routes/{number}"), json!({"uri": format!("/{number}")})).await;
    }
    store.close().await.unwrap();
    let good = std::fs::read(&path).unwrap();
    let marker = good.windows(9).position(|bytes| bytes == b"/routes/7").unwrap();
    let mut flipped = good.clone();
    flipped[marker + 9] ^= 0x55;
    let mut zeroed = good.clone();
    zeroed[..4096].fill(0);
    for (name, bytes) in [
        ("not a database", b"routes: []\n".repeat(1000)),
        ("empty", Vec::new()),
        ("cut short", good[..good.len() / 2].to_vec()),
        ("a changed byte of an entry", flipped),
        ("a header of zeros", zeroed),
    ] {
        std::fs::write(&path, &bytes).unwrap();
        let error = Embedded::open(&path).await.err().unwrap_or_else(|| panic!("{name}: opened"));
        assert!(matches!(error, Error::Damaged { .. }), "{name}: {error:?}");
        assert!(error.to_string().contains(path.to_str().unwrap()), "{name}: {error}");
        assert!(std::fs::read(&path).unwrap() == bytes, "{name}: the file was changed");
    }
    std::fs::write(&path, &good).unwrap();
    assert_eq!(Embedded::open(&path).await.unwrap().list("").await.unwrap().entries.len(), 200);
    std::fs::remove_dir_all(folder).unwrap();
}

#[tokio::test]
async fn a_folder_that_cannot_be_written_is_named() {
    let error = Embedded::open("/proc/nowhere/state.redb").await.err().unwrap();
    assert!(error.to_string().starts_with("cannot use the store file /proc/nowhere/state.redb"));
}

#[tokio::test]
async fn etcd_conforms() {
    let server = EtcdServer::start();
    let store = Etcd::new(&Settings::plain([server.url()])).unwrap();
    conforms(&store, || async { store.compact().await.unwrap() }).await;
}

#[tokio::test]
async fn etcd_lists_more_than_one_page_and_skips_what_apisix_leaves_there() {
    let server = EtcdServer::start();
    let store = Etcd::new(&Settings::plain([server.url()])).unwrap();
    for chunk in 0..25 {
        let writes = (0..100).map(|number| {
            let key = format!("/apisix/routes/{}", chunk * 100 + number);
            let store = &store;
            async move { store.put(&key, &json!(1), Expect::Anything, None).await.unwrap() }
        });
        futures_util::future::join_all(writes).await;
    }
    let etcdctl = std::process::Command::new("etcdctl")
        .env("ETCDCTL_API", "3")
        .args(["--endpoints", &server.url(), "put", "/apisix/routes/", "init_dir"])
        .output()
        .expect("etcdctl is needed by this test: apt-get install etcd-client");
    assert!(etcdctl.status.success());
    assert_eq!(store.list("/apisix/routes/").await.unwrap().entries.len(), 2500);
    assert!(matches!(store.get("/apisix/routes/").await, Err(Error::NotJson { .. })));
}

#[tokio::test]
async fn etcd_may_be_down_at_the_start_and_in_the_middle() {
    let mut server = EtcdServer::stopped();
    let store = Etcd::new(&Settings::plain([server.url()])).unwrap();
    let unreachable = |result: Result<_, Error>| matches!(result, Err(Error::Unreachable(_)));
    assert!(unreachable(store.put("/a", &json!(1), Expect::Anything, None).await.map(|_| ())));
    assert!(unreachable(store.get("/a").await.map(|_| ())));
    let mut watch = store.watch("/", 0);

    server.resume();
    let Event::Reset(listing) = next(&mut watch).await else { panic!("a reset") };
    assert!(listing.entries.is_empty());
    write(&store, "/a", json!(1)).await;
    assert!(matches!(next(&mut watch).await, Event::Put(_)));

    server.stop();
    let error = store.put("/b", &json!(1), Expect::Anything, None).await.unwrap_err();
    assert!(matches!(error, Error::Unreachable(_)), "{error}");
    assert!(unreachable(store.list("/").await.map(|_| ())));
    server.resume();
    write(&store, "/c", json!(2)).await;
    let Event::Put(stored) = next(&mut watch).await else { panic!("no reset: it goes on") };
    assert_eq!(stored.key, "/c");
}

#[tokio::test]
async fn etcd_that_compacted_while_the_watch_was_interrupted_is_read_anew() {
    let mut server = EtcdServer::start();
    let store = Etcd::new(&Settings::plain([server.url()])).unwrap();
    write(&store, "/a", json!(1)).await;
    let mut watch = store.watch("/", 0);
    assert!(matches!(next(&mut watch).await, Event::Reset(_)));
    server.stop();
    server.resume();
    // A read is asked again on a new connection; a write on the broken one would rather say that nobody knows.
    store.list("/").await.unwrap();
    write(&store, "/a", json!(2)).await;
    write(&store, "/b", json!(3)).await;
    store.compact().await.unwrap();
    // The watch either was back before the compaction and goes on, or it learns everything anew: never a gap.
    let mut state = std::collections::BTreeMap::from([("/a".to_owned(), json!(1))]);
    while state.len() < 2 {
        match next(&mut watch).await {
            Event::Put(stored) => drop(state.insert(stored.key, stored.value)),
            Event::Delete { key, .. } => drop(state.remove(&key)),
            Event::Reset(listing) => {
                state = listing.entries.into_iter().map(|s| (s.key, s.value)).collect();
            }
        }
    }
    assert_eq!(state["/a"], json!(2));
}

#[tokio::test]
async fn an_etcd_restored_from_a_backup_is_noticed_also_when_it_has_caught_up() {
    let mut server = EtcdServer::start();
    let store = Etcd::new(&Settings::plain([server.url()])).unwrap();
    write(&store, "/kept", json!(1)).await;
    server.stop();
    let (data, backup) = (server.folder.join("data"), server.folder.join("backup"));
    let copied = std::process::Command::new("cp").arg("-r").args([&data, &backup]).status();
    assert!(copied.unwrap().success());
    server.resume();
    store.list("/").await.unwrap();
    write(&store, "/lost", json!(1)).await;
    let mut watch = store.watch("/", 0);
    let Event::Reset(listing) = next(&mut watch).await else { panic!("a reset") };
    assert_eq!(keys(&listing), ["/kept", "/lost"]);

    server.stop();
    std::fs::remove_dir_all(&data).unwrap();
    std::fs::rename(&backup, &data).unwrap();
    server.resume();
    store.list("/").await.unwrap();
    // Other writes bring the revision beyond the one that the watch had reached.
    for number in 0..5 {
        write(&store, "/since", json!(number)).await;
    }
    loop {
        if let Event::Reset(listing) = next(&mut watch).await {
            assert!(!keys(&listing).contains(&"/lost"));
            break;
        }
    }
}

#[tokio::test]
async fn the_next_endpoint_is_asked_when_one_is_down() {
    let server = EtcdServer::start();
    let nobody = EtcdServer::stopped();
    let store = Etcd::new(&Settings::plain([nobody.url(), server.url()])).unwrap();
    write(&store, "/a", json!(1)).await;
    assert!(store.get("/a").await.unwrap().is_some());
}

#[tokio::test]
async fn etcd_asks_for_a_user_and_tokens_are_renewed() {
    let server = EtcdServer::start_with(&["--auth-token-ttl", "1"]);
    let etcdctl = |arguments: &[&str]| {
        let output = std::process::Command::new("etcdctl")
            .env("ETCDCTL_API", "3")
            .args(["--endpoints", &server.url()])
            .args(arguments)
            .output()
            .expect("etcdctl is needed by this test: apt-get install etcd-client");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    etcdctl(&["user", "add", "root:secret"]);
    etcdctl(&["user", "grant-role", "root", "root"]);
    etcdctl(&["auth", "enable"]);
    let with = |password: Option<&str>| {
        let mut settings = Settings::plain([server.url()]);
        settings.user = password.map(|_| "root".to_owned());
        settings.password = password.map(|text| wardgate::model::Redacted::new(text.to_owned()));
        Etcd::new(&settings).unwrap()
    };
    let refused = with(None).get("/a").await.unwrap_err();
    assert!(matches!(refused, Error::Refused(_)), "{refused}");
    let refused = with(Some("wrong")).get("/a").await.unwrap_err();
    assert!(matches!(refused, Error::Refused(_)), "{refused}");
    let store = with(Some("secret"));
    let mut watch = store.watch("/", 0);
    assert!(matches!(next(&mut watch).await, Event::Reset(_)));
    write(&store, "/a", json!(1)).await;
    tokio::time::sleep(Duration::from_millis(3500)).await;
    write(&store, "/a", json!(2)).await;
    for _ in 0..2 {
        assert!(matches!(next(&mut watch).await, Event::Put(_)));
    }
}

#[tokio::test]
async fn etcd_over_tls_with_certificates_on_both_sides() {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
    let folder = new_folder("etcd-tls");
    let save = |name: &str, text: &str| {
        std::fs::write(folder.join(name), text).unwrap();
        folder.join(name)
    };
    let ca_key = KeyPair::generate().unwrap();
    let mut ca = CertificateParams::new(Vec::new()).unwrap();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca_pem = ca.clone().self_signed(&ca_key).unwrap().pem();
    let issuer = Issuer::new(ca, &ca_key);
    let leaf_key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    let leaf = leaf.signed_by(&leaf_key, &issuer).unwrap();
    let ca_file = save("ca.pem", &ca_pem);
    let cert_file = save("cert.pem", &leaf.pem());
    let key_file = save("key.pem", &leaf_key.serialize_pem());
    let (ca_text, cert_text, key_text) =
        (ca_file.to_str().unwrap(), cert_file.to_str().unwrap(), key_file.to_str().unwrap());
    let server = EtcdServer::start_with(&[
        &format!("--cert-file={cert_text}"),
        &format!("--key-file={key_text}"),
        "--client-cert-auth",
        &format!("--trusted-ca-file={ca_text}"),
    ]);
    let mut settings = Settings::plain([format!("https://127.0.0.1:{}", server.port())]);
    settings.tls.ca = Some(ca_file);
    let without = Etcd::new(&settings).unwrap();
    assert!(matches!(without.get("/a").await, Err(Error::Unreachable(_))));
    settings.tls.cert = Some(cert_file);
    let error = Etcd::new(&settings).err().unwrap().to_string();
    assert_eq!(error, "store settings: etcd tls: cert and key go together");
    settings.tls.key = Some(key_file);
    let store = Etcd::new(&settings).unwrap();
    write(&store, "/a", json!(1)).await;
    settings.tls.ca = Some(folder.join("none.pem"));
    assert!(Etcd::new(&settings).err().unwrap().to_string().contains("none.pem"));
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn endpoints_that_are_none_are_refused() {
    for bad in ["127.0.0.1:2379", "ftp://a:1", "http://", "http://a:1/path", "http://a b"] {
        let error = Etcd::new(&Settings::plain([bad])).err().unwrap().to_string();
        assert!(error.contains("expected http://host:port or https://host:port"), "{error}");
    }
    let none: [&str; 0] = [];
    assert!(Etcd::new(&Settings::plain(none)).is_err());
}
