//! What becomes of an etcd in bad times: members that stop or hang, a past that is compacted while it is read, users.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use wardgate::model::Redacted;
use wardgate::store::etcd::{Etcd, Settings};
use wardgate::store::{Error, Event, Expect, Listing, Store, Watch};

use crate::etcd_server::{EtcdServer, new_folder};
use crate::{next, write};

/// Short times, so that a test does not wait long for what operators give a minute.
fn impatient(urls: impl IntoIterator<Item = String>) -> Settings {
    Settings { timeout_seconds: 1, watch_silence_seconds: 2, ..Settings::plain(urls) }
}

/// Writes until the store says that it has: when a connection breaks nobody knows whether the write before has happened.
async fn insist(store: &dyn Store, key: &str, value: &Value) {
    let until = tokio::time::Instant::now() + Duration::from_secs(30);
    loop {
        match store.put(key, value, Expect::Anything, None).await {
            Ok(_) => return,
            Err(error) => {
                assert!(matches!(error, Error::Unreachable(_)), "{error}");
                assert!(tokio::time::Instant::now() < until, "{error}");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

/// The state of a reader that applies what it is told.
#[derive(Default)]
struct Mirror(BTreeMap<String, Value>);

impl Mirror {
    fn take(&mut self, event: Event) {
        match event {
            Event::Put(stored) => drop(self.0.insert(stored.key, stored.value)),
            Event::Delete { key, .. } => drop(self.0.remove(&key)),
            Event::Reset(listing) => self.0 = Self::of(listing).0,
        }
    }

    fn of(listing: Listing) -> Self {
        Self(listing.entries.into_iter().map(|stored| (stored.key, stored.value)).collect())
    }

    /// Reads on until the key has the value.
    async fn until(&mut self, watch: &mut Watch, key: &str, value: &Value) {
        while self.0.get(key) != Some(value) {
            self.take(next(watch).await);
        }
    }
}

#[tokio::test]
async fn a_cluster_goes_on_without_a_member_that_stopped_or_hangs_and_no_change_is_missed() {
    let mut members = EtcdServer::cluster(3);
    let store = Etcd::new(&impatient(members.iter().map(EtcdServer::url))).unwrap();
    insist(&store, "/before", &json!(0)).await;
    let mut watch = store.watch("/", 0);
    let mut mirror = Mirror::default();
    mirror.until(&mut watch, "/before", &json!(0)).await;

    // The one that is in use stops.
    members[0].stop();
    for number in 0..5 {
        insist(&store, "/stopped", &json!(number)).await;
    }
    mirror.until(&mut watch, "/stopped", &json!(4)).await;

    // The next one hangs: connections are open, and nobody answers on them.
    members[0].resume();
    members[1].freeze();
    for number in 0..5 {
        insist(&store, "/hanging", &json!(number)).await;
    }
    mirror.until(&mut watch, "/hanging", &json!(4)).await;

    // And the last one, while the others are back.
    members[1].thaw();
    members[2].freeze();
    for number in 0..5 {
        insist(&store, "/again", &json!(number)).await;
    }
    mirror.until(&mut watch, "/again", &json!(4)).await;
    members[2].thaw();
    insist(&store, "/after", &json!(1)).await;
    mirror.until(&mut watch, "/after", &json!(1)).await;
    // A write that nobody knew of may still come.
    while mirror.0 != Mirror::of(store.list("/").await.unwrap()).0 {
        mirror.take(next(&mut watch).await);
    }
}

#[tokio::test]
async fn a_watch_of_an_etcd_that_hangs_is_begun_anew_when_it_answers_and_goes_on() {
    let server = EtcdServer::start();
    let store = Etcd::new(&impatient([server.url()])).unwrap();
    write(&store, "/a", json!(1)).await;
    let mut watch = store.watch("/", 0);
    let mut mirror = Mirror::default();
    mirror.until(&mut watch, "/a", &json!(1)).await;
    // Nothing to tell for longer than a watch may be silent: asked for a sign of life, etcd gives it, and the watch stays.
    let told = tokio::time::timeout(Duration::from_secs(3), watch.next()).await;
    assert!(told.is_err(), "{told:?}");
    server.freeze();
    assert!(matches!(store.get("/a").await, Err(Error::Unreachable(_))));
    tokio::time::sleep(Duration::from_secs(2)).await;
    server.thaw();
    insist(&store, "/b", &json!(2)).await;
    let Event::Put(stored) = next(&mut watch).await else { panic!("it goes on where it was") };
    assert_eq!(stored.key, "/b");
}

#[tokio::test]
async fn a_past_that_is_compacted_under_load_leaves_no_gap() {
    let server = EtcdServer::start();
    let store = Etcd::new(&Settings::plain([server.url()])).unwrap();
    let from = write(&store, "/load/0", json!(0)).await;
    let (mut all, mut late) = (store.watch("/load/", 0), store.watch("/load/", from));
    let writer = async |lane: usize| {
        for number in 0..150 {
            let key = format!("/load/{}", (lane * 7 + number) % 23);
            if number % 9 == 8 {
                store.delete(&key, Expect::Anything).await.unwrap();
            } else {
                write(&store, &key, json!([lane, number])).await;
            }
        }
    };
    let compactor = async {
        for _ in 0..30 {
            // Two compactions at once may ask for what is compacted already.
            let _ = store.compact().await;
            tokio::time::sleep(Duration::from_millis(15)).await;
        }
    };
    let mut mirror = Mirror::default();
    // A reader that leaves and comes back where it was, which may be forgotten by then.
    let restless = async {
        let mut mirror = Mirror::default();
        let mut position = 0;
        while !mirror.0.contains_key("/load/end") {
            let mut watch = store.watch("/load/", position);
            for _ in 0..10 {
                let event = tokio::time::timeout(Duration::from_millis(200), watch.next()).await;
                let Ok(Some(event)) = event else { break };
                // One revision is one event here.
                position = event.revision();
                mirror.take(event);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        mirror.0
    };
    let loads = async {
        tokio::join!(writer(0), writer(1), writer(2), writer(3), compactor);
        // What ends every reader's wait.
        write(&store, "/load/end", json!("end")).await;
    };
    let ends = async {
        mirror.until(&mut all, "/load/end", &json!("end")).await;
        let mut other = Mirror(BTreeMap::from([("/load/0".to_owned(), json!(0))]));
        other.until(&mut late, "/load/end", &json!("end")).await;
        other.0
    };
    let ((), other, restless) = tokio::join!(loads, ends, restless);
    let listed = Mirror::of(store.list("/load/").await.unwrap()).0;
    assert_eq!(mirror.0, listed);
    assert_eq!(other, listed);
    assert_eq!(restless, listed);
}

#[tokio::test]
async fn another_cluster_at_the_same_address_is_read_anew() {
    let mut server = EtcdServer::start();
    let store = Etcd::new(&impatient([server.url()])).unwrap();
    write(&store, "/old", json!(1)).await;
    let mut watch = store.watch("/", 0);
    let mut mirror = Mirror::default();
    mirror.until(&mut watch, "/old", &json!(1)).await;
    server.stop();
    std::fs::remove_dir_all(server.folder.join("data")).unwrap();
    server.add_argument("--initial-cluster-token=another");
    server.resume();
    for number in 0..4 {
        insist(&store, "/new", &json!(number)).await;
    }
    mirror.until(&mut watch, "/new", &json!(3)).await;
    assert!(!mirror.0.contains_key("/old"), "{:?}", mirror.0);
}

#[tokio::test]
async fn what_apisix_has_left_in_etcd_is_read_as_it_is() {
    let server = EtcdServer::start();
    let put = |key: &str, value: &str| etcdctl(&server.url(), &[], &["put", key, value]);
    for kind in ["routes", "upstreams", "ssls", "plugins", "plugin_metadata", "secrets"] {
        put(&format!("/apisix/{kind}/"), "init_dir");
    }
    put("/apisix/routes/1", r#"{"uri":"/a","create_time":1}"#);
    put("/apisix/plugins", r#"[{"name":"key-auth"}]"#);
    let store = Etcd::new(&Settings::plain([server.url()])).unwrap();
    let mut watch = store.watch("/apisix", 0);
    let Event::Reset(listing) = next(&mut watch).await else { panic!("a reset") };
    assert_eq!(crate::keys(&listing), ["/apisix/plugins", "/apisix/routes/1"]);
    put("/apisix/protos/", "init_dir");
    put("/apisix/routes/2", r#"{"uri":"/b"}"#);
    let Event::Put(stored) = next(&mut watch).await else { panic!("a put") };
    assert_eq!(stored.key, "/apisix/routes/2", "a placeholder is no event");
}

#[tokio::test]
async fn certificates_and_users_go_together_and_tokens_are_renewed() {
    let certificates = Certificates::new();
    let (ca, cert, key) = certificates.texts();
    let server = EtcdServer::start_with(&[
        &format!("--cert-file={cert}"),
        &format!("--key-file={key}"),
        "--client-cert-auth",
        &format!("--trusted-ca-file={ca}"),
        "--auth-token-ttl=1",
    ]);
    let url = server.url().replace("http://", "https://");
    let tls = ["--cacert", ca, "--cert", cert, "--key", key];
    for arguments in [
        &["user", "add", "root:secret"][..],
        &["user", "grant-role", "root", "root"],
        &["auth", "enable"],
    ] {
        etcdctl(&url, &tls, arguments);
    }
    let mut settings = impatient([url]);
    settings.tls.ca = Some(certificates.file("ca.pem"));
    settings.tls.cert = Some(certificates.file("cert.pem"));
    settings.tls.key = Some(certificates.file("key.pem"));
    let refused = Etcd::new(&settings).unwrap().get("/a").await.unwrap_err();
    assert!(matches!(refused, Error::Refused(_)), "a certificate alone is no user: {refused}");
    settings.user = Some("root".into());
    settings.password = Some(Redacted::new("secret".into()));
    let store = Etcd::new(&settings).unwrap();
    write(&store, "/a", json!(1)).await;
    let mut watch = store.watch("/", 0);
    let mut mirror = Mirror::default();
    mirror.until(&mut watch, "/a", &json!(1)).await;
    // Longer than a token lives without being used.
    tokio::time::sleep(Duration::from_millis(3500)).await;
    write(&store, "/a", json!(2)).await;
    mirror.until(&mut watch, "/a", &json!(2)).await;
}

fn etcdctl(url: &str, tls: &[&str], arguments: &[&str]) {
    let output = Command::new("etcdctl")
        .env("ETCDCTL_API", "3")
        .args(["--endpoints", url])
        .args(tls)
        .args(arguments)
        .output()
        .expect("etcdctl is needed by this test: apt-get install etcd-client");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// An authority, and a certificate of it for both ends.
struct Certificates(PathBuf);

impl Certificates {
    fn new() -> Self {
        use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
        let folder = new_folder("etcd-certificates");
        let save = |name: &str, text: &str| std::fs::write(folder.join(name), text).unwrap();
        let ca_key = KeyPair::generate().unwrap();
        let mut ca = CertificateParams::new(Vec::new()).unwrap();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        save("ca.pem", &ca.self_signed(&ca_key).unwrap().pem());
        let leaf_key = KeyPair::generate().unwrap();
        let leaf = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        let issuer = Issuer::new(ca, &ca_key);
        save("cert.pem", &leaf.signed_by(&leaf_key, &issuer).unwrap().pem());
        save("key.pem", &leaf_key.serialize_pem());
        Self(folder)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn texts(&self) -> (&'static str, &'static str, &'static str) {
        // For the life of one test.
        let leak = |path: PathBuf| -> &'static str { path.to_str().unwrap().to_owned().leak() };
        (leak(self.file("ca.pem")), leak(self.file("cert.pem")), leak(self.file("key.pem")))
    }
}

impl Drop for Certificates {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(Path::new(&self.0));
    }
}
