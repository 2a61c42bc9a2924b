//! What outlives a process, a disk and a store: killed writers, backups, moves between stores.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};
use wardgate::store::embedded::Embedded;
use wardgate::store::etcd::{Etcd, Settings};
use wardgate::store::image::Image;
use wardgate::store::sealed::{Sealed, SealingKey};
use wardgate::store::{Error, Expect, Store};

use crate::etcd_server::{EtcdServer, new_folder};
use crate::write;

/// Names the store that [`writes_until_it_is_killed`] writes to, when it is a process of its own.
const WRITE_TO: &str = "WARDGATE_TEST_WRITE_TO";

fn wardgate(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_wardgate"))
        .args(arguments)
        .env_remove("WARDGATE_ADMIN")
        .output()
        .unwrap()
}

fn good(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn bad(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(1));
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// No test by itself: the process that the next test kills.
#[tokio::test]
async fn writes_until_it_is_killed() {
    let Some(path) = std::env::var_os(WRITE_TO) else { return };
    let store = Embedded::open(Path::new(&path)).await.unwrap();
    let start = store.list("/k/").await.unwrap().revision;
    for number in start.. {
        let lane = async |lane: u64| {
            let key = format!("/k/{}", number * 10 + lane);
            let stored =
                store.put(&key, &json!({"n": number}), Expect::Absent, None).await.unwrap();
            // Said only when it is certain.
            let mut out = std::io::stdout().lock();
            writeln!(out, "ACK {key} {}", stored.modified).unwrap();
            out.flush().unwrap();
        };
        tokio::join!(lane(0), lane(1), lane(2));
    }
}

#[tokio::test]
async fn a_writer_that_is_killed_again_and_again_loses_nothing_that_it_had_confirmed() {
    let folder = new_folder("killed-writer");
    let path = folder.join("state.redb");
    let mut confirmed: Vec<(String, u64)> = Vec::new();
    for round in 0..10 {
        let mut writer = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "moving::writes_until_it_is_killed", "--nocapture"])
            .env(WRITE_TO, &path)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(writer.stdout.take().unwrap()).lines();
        let mut read = |line: String| {
            let words: Vec<&str> = line.rsplit("ACK ").next().unwrap().split(' ').collect();
            if let (true, [key, revision]) = (line.contains("ACK "), &words[..]) {
                confirmed.push(((*key).to_owned(), revision.parse().unwrap()));
                return true;
            }
            false
        };
        // A different moment each time.
        let mut wanted = 5 + round * 3;
        while wanted > 0 {
            wanted -= usize::from(read(lines.next().expect("it writes").unwrap()));
        }
        writer.kill().unwrap();
        // What it had said before the end counts as well; a line that broke off does not.
        let rest: Vec<String> = lines.map_while(Result::ok).collect();
        let whole = rest.len().saturating_sub(1);
        rest.into_iter().take(whole).for_each(|line| {
            read(line);
        });
        writer.wait().unwrap();

        let store = Embedded::open(&path).await.unwrap();
        let listing = store.list("/k/").await.unwrap();
        for (key, revision) in &confirmed {
            let found = listing.entries.iter().find(|stored| stored.key == *key);
            let found = found.unwrap_or_else(|| panic!("{key} is lost in round {round}"));
            assert_eq!(found.modified, *revision, "{key}");
        }
        store.close().await.unwrap();
    }
    std::fs::remove_dir_all(folder).unwrap();
}

/// A store with a past: removals, a change, something sealed, something that ends, a history beside it.
async fn filled(path: &Path) -> Image {
    let store = Embedded::open(path).await.unwrap();
    let put = async |key: &str, value: Value| write(&store, key, value).await;
    put("/apisix/routes/1", json!({"uri": "/a", "create_time": 1, "update_time": 2})).await;
    for number in 0..30 {
        put("/apisix/routes/gone", json!({ "n": number })).await;
    }
    store.delete("/apisix/routes/gone", Expect::Anything).await.unwrap();
    put("/apisix/identity_policies/p", json!({"rules": []})).await;
    put("/apisix-history/identity_policies/p/1", json!({"kind": "identity_policies"})).await;
    put("/apisix/routes/1", json!({"uri": "/b", "create_time": 1, "update_time": 3})).await;
    store.put("/apisix/routes/ends", &json!({}), Expect::Anything, Some(5000)).await.unwrap();
    put("/other/1", json!({"not": "ours"})).await;
    store.close().await.unwrap();
    let sealed = Sealed::new(
        std::sync::Arc::new(Embedded::open(path).await.unwrap()),
        SealingKey::new(&[7; 32]),
        "/apisix",
    );
    let consumer = json!({"username": "bob", "plugins": {"key-auth": {"key": "clear"}}});
    write(&sealed, "/apisix/consumers/bob", consumer).await;
    let image = sealed.image("/apisix").await.unwrap();
    assert_eq!(image.entries.len(), 5);
    image
}

/// All but the seconds that are left, which pass.
fn without_ends(mut image: Image) -> Image {
    for entry in &mut image.entries {
        assert!(entry.ttl.is_none_or(|ttl| (4000..=5000).contains(&ttl)), "{entry:?}");
        entry.ttl = entry.ttl.map(|_| 5000);
    }
    image
}

#[tokio::test]
async fn a_backup_is_restored_to_the_revision_and_a_damaged_one_is_not() {
    let folder = new_folder("backup");
    let path = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    let (store, backup, copy) = (path("state.redb"), path("state.backup"), path("copy.redb"));
    let image = filled(Path::new(&store)).await;
    let told = good(&wardgate(&["store", "backup", &backup, "--store", &store, "-o", "json"]));
    let told: Value = serde_json::from_str(&told).unwrap();
    assert_eq!((&told["entries"], &told["revision"]), (&json!(5), &json!(image.revision)));
    let text = std::fs::read_to_string(&backup).unwrap();
    assert!(!text.contains("clear"), "secrets stay sealed");
    use std::os::unix::fs::PermissionsExt as _;
    assert_eq!(std::fs::metadata(&backup).unwrap().permissions().mode() & 0o777, 0o600);

    let dry = good(&wardgate(&["store", "restore", &backup, "--store", &copy, "--dry-run"]));
    assert!(dry.contains("5 entries") && dry.contains("would be"), "{dry}");
    assert!(!Path::new(&copy).exists());
    good(&wardgate(&["store", "restore", &backup, "--store", &copy]));
    let restored = Embedded::open(&copy).await.unwrap();
    let whole = restored.image("").await.unwrap();
    assert_eq!(
        without_ends(whole),
        without_ends(image.clone()),
        "nothing but what is ours, as it was"
    );
    let next = write(&restored, "/apisix/routes/new", json!({})).await;
    assert_eq!(next, image.revision + 1, "revisions go on");

    // In use, not empty, damaged: refused, and nothing changes.
    let refused = bad(&wardgate(&["store", "restore", &backup, "--store", &copy]));
    assert!(refused.contains("in use"), "{refused}");
    restored.close().await.unwrap();
    let refused = bad(&wardgate(&["store", "restore", &backup, "--store", &copy]));
    assert!(refused.contains("6 entries; --overwrite"), "{refused}");
    std::fs::write(&backup, text.replace("/b", "/c")).unwrap();
    let refused = bad(&wardgate(&["store", "restore", &backup, "--store", &copy, "--overwrite"]));
    assert!(refused.contains("SHA-256"), "{refused}");
    std::fs::write(&backup, &text).unwrap();
    good(&wardgate(&["store", "restore", &backup, "--store", &copy, "--overwrite"]));
    let again = Embedded::open(&copy).await.unwrap().image("").await.unwrap();
    assert_eq!(without_ends(again), without_ends(image));
    std::fs::remove_dir_all(folder).unwrap();
}

#[tokio::test]
async fn a_store_moves_to_etcd_and_back_with_its_revisions() {
    let folder = new_folder("migrate");
    let path = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    let (store, back) = (path("state.redb"), path("back.redb"));
    let image = without_ends(filled(Path::new(&store)).await);
    let server = EtcdServer::start();
    let url = server.url();
    let migrate = |more: &[&str]| wardgate(&[&["store", "migrate"], more].concat());

    let dry = good(&migrate(&["--from", &store, "--to", &url, "--dry-run"]));
    assert!(dry.contains("routes 2") && dry.contains("would be written"), "{dry}");
    let etcd = Etcd::new(&Settings::plain([url.as_str()])).unwrap();
    assert!(etcd.list("/").await.unwrap().entries.is_empty());
    good(&migrate(&["--from", &store, "--to", &url]));
    let moved = etcd.image("/apisix").await.unwrap();
    let entries = without_ends(moved.clone()).entries;
    assert_eq!(entries, image.entries, "each entry has the revisions that it had");
    assert!(moved.revision >= image.revision);

    let refused = bad(&migrate(&["--from", &store, "--to", &url]));
    assert!(refused.contains("5 entries; --overwrite replaces them"), "{refused}");
    let told = good(&migrate(&["--from", &store, "--to", &url, "--overwrite", "-o", "json"]));
    let told: Value = serde_json::from_str(&told).unwrap();
    let later = told["revisions_later_by"].as_u64().unwrap();
    assert!(later > 0, "etcd cannot go back: {told}");
    let moved = etcd.image("/apisix").await.unwrap();
    assert_eq!(moved.entries[0].modified, image.entries[0].modified + later);

    good(&migrate(&["--from", &url, "--to", &back]));
    let here = Embedded::open(&back).await.unwrap().image("").await.unwrap();
    assert_eq!(without_ends(here).entries, without_ends(moved).entries);
    std::fs::remove_dir_all(folder).unwrap();
}

#[tokio::test]
async fn a_file_that_is_no_store_is_not_filled() {
    let folder = new_folder("no-store");
    let path = folder.join("notes.redb");
    std::fs::write(&path, "notes").unwrap();
    let error = Embedded::restore(&path, Image::default(), true).await.unwrap_err();
    assert!(matches!(error, Error::Damaged { .. }), "{error}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "notes");
    std::fs::remove_dir_all(folder).unwrap();
}
