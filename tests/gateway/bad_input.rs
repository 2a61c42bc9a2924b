//! What is wrong is refused, named, and breaks nothing: certificates, protocols, writes, settings, files.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType,
};
use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::pem::PemObject;
use serde_json::{Value, json};
use time::OffsetDateTime;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use wardgate::identity::{Identity, Svid, TrustBundles};
use wardgate::mtls::{Alpn, OriginConnector};

use crate::etcd_server::EtcdServer;
use crate::world::{
    Admin, Answer, App, Ended, Part, Peer, Process, World, allow, eventually_async, get, raw_to,
    send, soon,
};

/// A sidecar that lets everybody of its trust domain in, and its workload.
pub(crate) struct Guarded {
    pub(crate) world: World,
    pub(crate) app: App,
    pub(crate) sidecar: Process,
}

/// How a stranger fared: what it saw, and what the decision log says of it.
pub(crate) struct Refused {
    pub(crate) seen: String,
    pub(crate) record: Value,
}

impl Guarded {
    pub(crate) fn new() -> Self {
        let world = World::new();
        let app = App::echo("guarded");
        let everybody = allow("p", &[&world.id("/guarded")], &[&world.id("/**")]);
        let sidecar = world
            .sidecar("/guarded")
            .app(&app)
            .resources(&json!({ "identity_policies": [everybody] }))
            .start();
        Self { world, app, sidecar }
    }

    /// Knocks with an identity that must be refused at the handshake.
    pub(crate) async fn refuses(&self, identity: Identity) -> Refused {
        let expected = &self.sidecar;
        let seen = match Peer::with(identity).stream(expected, Alpn::Http1).await {
            Err(error) => error.to_string(),
            // In TLS 1.3 the client has finished before the server has judged its certificate.
            Ok(mut stream) => {
                let _ = stream.write_all(b"GET / HTTP/1.1\r\nhost: guarded\r\n\r\n").await;
                let mut byte = [0];
                match soon("the refusal", stream.read(&mut byte)).await {
                    Ok(0) => "closed".to_owned(),
                    Ok(_) => panic!("it came in"),
                    Err(error) => error.to_string(),
                }
            }
        };
        self.after(seen).await
    }

    /// Nothing has come through, the refusal is on record, and others are served as before.
    pub(crate) async fn after(&self, seen: String) -> Refused {
        let record = self.sidecar.record_with("/type", &json!("handshake_refused"));
        assert_eq!(record["outcome"], "deny");
        assert_eq!(record["dst"]["spiffe_id"], json!(self.sidecar.id));
        assert_eq!(self.app.requests(), 0, "nothing may come through");
        assert_eq!(self.world.peer("/friend").get(&self.sidecar, "/").await.status, 200);
        Refused { seen, record }
    }

    /// Signs a leaf with the world's own authority, after `change` has made it bad.
    pub(crate) fn forge(
        &self,
        path: &str,
        change: impl FnOnce(&mut CertificateParams),
    ) -> Identity {
        let read = |name| std::fs::read_to_string(self.world.authority().join(name)).unwrap();
        let (pem, key) = (read("intermediate.pem"), read("intermediate-key.pem"));
        let signing_key = KeyPair::from_pem(&key).unwrap();
        let issuer = Issuer::from_ca_cert_pem(&pem, signing_key).unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![uri(&self.world.id(path))];
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.not_before = hours(-1);
        params.not_after = hours(1);
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let leaf = params.signed_by(&key, &issuer).unwrap().der().clone();
        let intermediate =
            rustls_pki_types::CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
        let svid = Svid {
            id: "spiffe://forged.test/unchecked".parse().unwrap(),
            chain: vec![leaf, intermediate],
            key: PrivateKeyDer::from(key),
            serial: String::new(),
            not_before: 0,
            not_after: i64::MAX,
        };
        Identity::new(svid, [self.world.bundle()].into_iter().collect::<TrustBundles>())
    }
}

fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

fn hours(from_now: i64) -> OffsetDateTime {
    OffsetDateTime::now_utc() + time::Duration::hours(from_now)
}

#[tokio::test]
async fn the_forged_leaf_without_a_flaw_comes_in() {
    let guarded = Guarded::new();
    let peer = Peer::with(guarded.forge("/made-here", |_| {}));
    let answer = peer.get(&guarded.sidecar, "/").await;
    assert_eq!(answer.status, 200, "else the tests below prove nothing: {}", answer.text());
}

#[tokio::test]
async fn a_caller_without_certificate_is_refused() {
    let guarded = Guarded::new();
    let tcp = TcpStream::connect(guarded.sidecar.address("inbound")).await.unwrap();
    let trusting = OriginConnector::new(None, None).unwrap();
    let seen = match trusting.connect(tcp, "guarded.test", Alpn::Http1).await {
        Err(error) => error.to_string(),
        Ok(mut stream) => {
            let _ = stream.write_all(b"GET / HTTP/1.1\r\nhost: guarded\r\n\r\n").await;
            soon("the refusal", stream.read(&mut [0])).await.unwrap_err().to_string()
        }
    };
    assert!(seen.contains("CertificateRequired"), "{seen}");
    let refused = guarded.after(seen).await;
    assert_eq!(refused.record["reason"], "no_certificate");
    assert_eq!(refused.record["src"].get("presented_id"), None);
}

#[tokio::test]
async fn an_expired_certificate_is_refused() {
    let guarded = Guarded::new();
    let late = guarded.forge("/late", |leaf| {
        leaf.not_before = hours(-2);
        leaf.not_after = hours(-1);
    });
    let refused = guarded.refuses(late).await;
    assert_eq!(refused.record["reason"], "expired");
    assert_eq!(refused.record["src"]["presented_id"], json!(guarded.world.id("/late")));
    assert!(refused.seen.contains("received fatal alert"), "it is told at once: {}", refused.seen);
}

#[tokio::test]
async fn a_certificate_of_the_future_is_refused() {
    let guarded = Guarded::new();
    let early = guarded.forge("/early", |leaf| {
        leaf.not_before = hours(1);
        leaf.not_after = hours(2);
    });
    assert_eq!(guarded.refuses(early).await.record["reason"], "not_yet_valid");
}

#[tokio::test]
async fn an_identity_of_another_trust_domain_is_refused() {
    let guarded = Guarded::new();
    let elsewhere = World::of("elsewhere.test");
    let bundles: TrustBundles = [guarded.world.bundle()].into_iter().collect();
    let stranger = Identity::new(elsewhere.identity("/web").svid, bundles);
    let refused = guarded.refuses(stranger).await;
    assert_eq!(refused.record["reason"], "unknown_trust_domain");
    assert_eq!(refused.record["src"]["presented_id"], "spiffe://elsewhere.test/web");
}

#[tokio::test]
async fn an_identity_in_our_name_from_another_root_is_refused() {
    let guarded = Guarded::new();
    let rogue = World::new();
    let bundles: TrustBundles = [guarded.world.bundle()].into_iter().collect();
    let impostor = Identity::new(rogue.identity("/friend").svid, bundles);
    let refused = guarded.refuses(impostor).await;
    assert_eq!(refused.record["reason"], "unknown_authority");
    let claimed = json!(guarded.world.id("/friend"));
    assert_eq!(refused.record["src"]["presented_id"], claimed, "claimed, not believed");
}

#[tokio::test]
async fn a_certificate_with_two_uri_names_is_refused() {
    let guarded = Guarded::new();
    let both = guarded.forge("/one", |leaf| {
        leaf.subject_alt_names.push(uri("spiffe://shop.test/other"));
    });
    assert_eq!(guarded.refuses(both).await.record["reason"], "several_uri_names");
}

#[tokio::test]
async fn an_authority_that_poses_as_a_workload_is_refused() {
    let guarded = Guarded::new();
    let authority = guarded.forge("/authority", |leaf| {
        leaf.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        leaf.key_usages.push(KeyUsagePurpose::KeyCertSign);
    });
    assert_eq!(guarded.refuses(authority).await.record["reason"], "authority_as_leaf");
}

#[tokio::test]
async fn plain_http_on_the_mtls_port_is_refused() {
    let guarded = Guarded::new();
    let address = guarded.sidecar.address("inbound");
    let answer = raw_to(address, b"GET / HTTP/1.1\r\nhost: guarded\r\n\r\n").await;
    assert!(!answer.contains("HTTP/1.1 200"), "{answer}");
    assert_eq!(guarded.after(answer).await.record["reason"], "not_tls");
}

#[tokio::test]
async fn tls_1_2_is_refused_also_with_a_good_certificate() {
    let guarded = Guarded::new();
    let files = guarded.world.files("/friend");
    let address = guarded.sidecar.address("inbound").to_string();
    let with = |version: &str| {
        let output = Command::new("openssl")
            .args(["s_client", version, "-connect", &address, "-alpn", "http/1.1"])
            .args(["-cert", files.join("svid.pem").to_str().unwrap()])
            .args(["-cert_chain", files.join("svid.pem").to_str().unwrap()])
            .args(["-key", files.join("key.pem").to_str().unwrap()])
            .stdin(Stdio::null())
            .output()
            .expect("openssl is needed by this test: apt-get install openssl");
        let text = [output.stdout, output.stderr].concat();
        String::from_utf8_lossy(&text).into_owned()
    };
    let newer = with("-tls1_3");
    assert!(newer.contains("New, TLSv1.3"), "the command line is right: {newer}");
    let older = with("-tls1_2");
    assert!(older.contains("alert protocol version"), "{older}");
    assert_eq!(guarded.after(older).await.record["reason"], "tls_version");
}

#[tokio::test]
async fn a_host_with_control_characters_is_a_bad_request() {
    let guarded = Guarded::new();
    let hosts: [&[u8]; 5] = [b"guar\x01ded", b"guarded\x7f", b"gua\x00rded", b"a b", b"a\tb"];
    for host in hosts {
        let request =
            [b"GET / HTTP/1.1\r\nhost: ", host, b"\r\nconnection: close\r\n\r\n"].concat();
        let over_mtls = guarded.world.peer("/friend").raw(&guarded.sidecar, &request).await;
        assert!(over_mtls.starts_with("HTTP/1.1 400 "), "{host:?}: {over_mtls:?}");
        let plain = raw_to(guarded.sidecar.address("outbound"), &request).await;
        assert!(plain.starts_with("HTTP/1.1 400 "), "{host:?}: {plain:?}");
    }
    assert_eq!(guarded.app.requests(), 0);
}

// ---- writes ----

struct Office {
    _world: World,
    control: Process,
    admin: Admin,
}

impl Office {
    fn new() -> Self {
        let world = World::new();
        let control = world.control().start();
        let admin = control.admin();
        Self { _world: world, control, admin }
    }

    /// A write that must be refused, and must leave nothing.
    async fn refuses(&self, path: &str, body: &Value) -> Answer {
        let answer = self.admin.ask("PUT", path, Some(body)).await;
        assert_eq!(answer.status, 400, "{}", answer.text());
        assert_eq!(self.admin.ask("GET", path, None).await.status, 404, "nothing is stored");
        answer
    }
}

fn error(answer: &Answer) -> String {
    answer.json()["error_msg"].as_str().expect("an error_msg").to_owned()
}

#[tokio::test]
async fn a_route_that_names_an_upstream_which_does_not_exist_cannot_be_written() {
    let office = Office::new();
    let route = json!({ "uri": "/*", "upstream_id": "nowhere" });
    let error = error(&office.refuses("/routes/1", &route).await);
    assert!(error.contains("upstream") && error.contains("nowhere"), "{error}");
}

#[tokio::test]
async fn a_route_whose_upstream_is_missing_at_run_time_answers_an_error_and_the_others_work() {
    let world = World::new();
    let app = App::echo("app");
    let good = json!({ "nodes": { app.address.to_string(): 1 } });
    let ingress = world
        .ingress()
        .resources(&json!({
            "routes": [
                { "id": "lost", "uri": "/lost", "upstream_id": "nowhere" },
                { "id": "good", "uri": "/good", "upstream": good },
            ],
        }))
        .start();
    let door = ingress.address("ingress");
    let lost = get(door, "/lost").await;
    assert!(matches!(lost.status, 502 | 503), "{} {}", lost.status, lost.text());
    assert_eq!(get(door, "/good").await.status, 200);
    ingress.logs("nowhere");
}

#[tokio::test]
async fn an_unknown_plugin_cannot_be_written_and_at_run_time_its_route_does_not_pass_unprotected() {
    let office = Office::new();
    let upstream = json!({ "nodes": { "127.0.0.1:1": 1 } });
    let route = json!({ "uri": "/*", "upstream": upstream, "plugins": { "no-such": {} } });
    let error = error(&office.refuses("/routes/1", &route).await);
    assert!(error.contains("no-such"), "{error}");

    let world = World::new();
    let app = App::echo("app");
    let upstream = json!({ "nodes": { app.address.to_string(): 1 } });
    let guarded =
        json!({ "id": "1", "uri": "/*", "upstream": upstream, "plugins": { "no-such": {} } });
    let ingress = world.ingress().resources(&json!({ "routes": [guarded] })).start();
    let answer = get(ingress.address("ingress"), "/").await;
    assert!(answer.status >= 400, "{}", answer.text());
    assert_eq!(app.requests(), 0);
    ingress.logs("no-such");
}

#[tokio::test]
async fn an_unknown_field_cannot_be_written() {
    let office = Office::new();
    let upstream = json!({ "nodes": { "127.0.0.1:1": 1 } });
    for (path, body) in [
        ("/routes/1", json!({ "uri": "/*", "upstream": upstream, "colour": "red" })),
        ("/upstreams/1", json!({ "nodes": { "127.0.0.1:1": 1 }, "colour": "red" })),
        ("/services/1", json!({ "upstream": upstream, "colour": "red" })),
        (
            "/identity_policies/1",
            json!({ "action": "allow", "rules": [{ "from": { "colour": ["red"] } }] }),
        ),
        (
            "/workloads/1",
            json!({ "spiffe_id": "spiffe://shop.test/a", "selectors": ["unix:uid:1"], "colour": "red" }),
        ),
    ] {
        let error = error(&office.refuses(path, &body).await);
        assert!(error.contains("colour"), "{path}: {error}");
    }
}

#[tokio::test]
async fn json_that_is_not_json_cannot_be_written() {
    let office = Office::new();
    let address = office.control.address("admin");
    let key = office.admin.key.clone();
    let headers = [("x-api-key", key.as_str())];
    for body in ["{\"uri\": ", "hello", "{\"uri\": \"/\u{0}\"}", "[1, 2]", "\"text\"", ""] {
        let answer =
            send(address, "PUT", "/apisix/admin/routes/1", &headers, body.to_owned()).await;
        assert_eq!(answer.status, 400, "{body:?}: {}", answer.text());
        assert!(!error(&answer).is_empty());
    }
    // A number that only a lenient reader takes, a key twice, and nesting that would break a naive one.
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let answer = send(address, "PUT", "/apisix/admin/routes/1", &headers, deep).await;
    assert_eq!(answer.status, 400, "{}", answer.text());
    assert_eq!(office.admin.ask("GET", "/routes/1", None).await.status, 404);
}

#[tokio::test]
async fn an_admin_request_without_the_key_is_refused_and_recorded() {
    let office = Office::new();
    let address = office.control.address("admin");
    let body = json!({ "nodes": { "127.0.0.1:1": 1 } }).to_string();
    let published = "edd1c9f034335f136f87ad84b625c8f1";
    for key in [None, Some(""), Some("wrong"), Some(published)] {
        let headers: Vec<(&str, &str)> = key.iter().map(|key| ("x-api-key", *key)).collect();
        for method in ["GET", "PUT", "DELETE"] {
            let path = "/apisix/admin/upstreams/1";
            let answer = send(address, method, path, &headers, body.clone()).await;
            assert_eq!(answer.status, 401, "{method} with {key:?}: {}", answer.text());
        }
    }
    assert_eq!(office.admin.ask("GET", "/upstreams/1", None).await.status, 404);
    let record = office.control.record("a refused write", |record| {
        record["type"] == "admin" && record["method"] == "PUT" && record["status"] == 401
    });
    assert_eq!(record.get("principal"), None);
    let log = std::fs::read_to_string(office.control.audit_file()).unwrap();
    assert!(!log.contains(published) && !log.contains(&office.admin.key), "no key is ever logged");
}

// ---- what the process rests on ----

#[tokio::test]
async fn etcd_down_at_start_delays_and_does_not_end_the_control_plane() {
    let world = World::new();
    let mut etcd = EtcdServer::stopped();
    let store = json!({ "etcd": { "endpoints": [etcd.url()], "timeout_seconds": 1 } });
    let control = world.control().set("control.store", &store).start();
    let admin = control.admin();
    let upstream = json!({ "nodes": { "127.0.0.1:1": 1 } });
    let early = admin.ask("PUT", "/upstreams/1", Some(&upstream)).await;
    assert!(early.status >= 500, "{} {}", early.status, early.text());
    assert!(error(&early).to_lowercase().contains("store"), "{}", early.text());

    etcd.resume();
    eventually_async("the first write", || async {
        let answer = admin.ask("PUT", "/upstreams/1", Some(&upstream)).await;
        (answer.status == 201 || answer.status == 200).then_some(())
    })
    .await;
    assert_eq!(admin.get("/upstreams/1").await["value"]["nodes"], upstream["nodes"]);
}

#[tokio::test]
async fn etcd_down_in_the_middle_stops_writes_and_not_traffic() {
    let world = World::new();
    let mut etcd = EtcdServer::start();
    let store = json!({ "etcd": { "endpoints": [etcd.url()], "timeout_seconds": 1 } });
    let control = world.control().set("control.store", &store).start();
    let admin = control.admin();
    let ingress = world.ingress().fed_by(&control).start();
    let door = ingress.address("ingress");
    let (old, new) = (App::echo("old"), App::echo("new"));
    let to =
        |app: &App| json!({ "uri": "/*", "upstream": { "nodes": { app.address.to_string(): 1 } } });
    admin.applied(admin.put("/routes/1", &to(&old)).await, 1).await;
    assert_eq!(get(door, "/").await.json()["app"], "old");

    etcd.stop();
    let refused = admin.ask("PUT", "/routes/1", Some(&to(&new))).await;
    assert!(refused.status >= 500, "{} {}", refused.status, refused.text());
    assert_eq!(get(door, "/").await.json()["app"], "old", "traffic goes on");

    etcd.resume();
    eventually_async("a write after etcd's return", || async {
        (admin.ask("PUT", "/routes/1", Some(&to(&new))).await.status == 200).then_some(())
    })
    .await;
    eventually_async("the change at the ingress, without a restart", || async {
        (get(door, "/").await.json()["app"] == "new").then_some(())
    })
    .await;
}

#[test]
fn a_taken_port_is_named() {
    let world = World::new();
    let holder = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = json!(holder.local_addr().unwrap().to_string());
    let nothing = json!({});
    let parts: [Part<'_>; 6] = [
        world.control().set("control.admin", &taken),
        world.control().set("control.feed", &taken),
        world.control().set("status", &taken),
        world.sidecar("/a").resources(&nothing).set("sidecar.inbound", &taken),
        world.sidecar("/a").resources(&nothing).set("sidecar.outbound", &taken),
        world.ingress().resources(&nothing).set("ingress.http", &taken),
    ];
    for part in parts {
        let ended = part.fails();
        assert_eq!(ended.code, Some(1));
        let taken = taken.as_str().unwrap();
        let expected = format!("cannot listen on {taken}: the port is taken by another process");
        assert!(ended.err.contains(&expected), "{}: {}", part.name, ended.err);
    }
}

#[test]
fn settings_that_are_wrong_are_named_by_file_and_field() {
    let world = World::new();
    let nothing = json!({});
    let part = || {
        let part = world.sidecar("/a").resources(&nothing);
        part.set("identity.first_within_seconds", &json!(0))
    };
    for (part, names) in [
        (part().set("colour", &json!("red")), "colour"),
        (part().set("sidecar.colour", &json!("red")), "colour"),
        (part().set("identity.colour", &json!("red")), "colour"),
        (part().set("trust_domain", &json!("Shop Test")), "trust_domain"),
        (part().set("role", &json!("butler")), "butler"),
        (part().without("role"), "role"),
        (part().without("sidecar"), "sidecar"),
        (part().without("identity"), "identity"),
        (part().without("resources"), "control_plane"),
        (part().set("sidecar.app", &json!("127.0.0.1:80")), "sidecar.app"),
        (part().set("sidecar.inbound", &json!("nowhere")), "inbound"),
        (part().set("identity.key", &json!("/does/not/exist.pem")), "/does/not/exist.pem"),
        (part().set("resources", &json!("/does/not/exist.yaml")), "/does/not/exist.yaml"),
    ] {
        let Ended { code, err, .. } = part.fails();
        assert_eq!(code, Some(1), "{names}");
        assert!(err.contains("error: ") && err.contains(names), "{names}: {err}");
    }
}

/// Damages a file; the part must then refuse to start, name the file, and leave it as it is.
fn refuses_damaged(part: &Part<'_>, file: &Path, damage: &[u8]) -> String {
    let good = std::fs::read(file).unwrap();
    std::fs::write(file, damage).unwrap();
    let ended = part.fails();
    assert_eq!(ended.code, Some(1));
    assert_eq!(std::fs::read(file).unwrap(), damage, "{} was overwritten", file.display());
    let name = file.file_name().unwrap().to_str().unwrap();
    assert!(ended.err.contains("error: ") && ended.err.contains(name), "{name}: {}", ended.err);
    std::fs::write(file, good).unwrap();
    ended.err
}

/// The file with some bytes in its middle changed.
fn scratched(file: &Path) -> Vec<u8> {
    let mut bytes = std::fs::read(file).unwrap();
    let middle = bytes.len() / 2;
    for byte in &mut bytes[middle..middle + 16] {
        *byte = !*byte;
    }
    bytes
}

#[tokio::test]
async fn a_damaged_store_ends_the_start_and_is_left_as_it_is() {
    let world = World::new();
    let part = world.control();
    let mut control = part.start();
    let admin = control.admin();
    admin.put("/upstreams/1", &json!({ "nodes": { "127.0.0.1:1": 1 } })).await;
    control.end();
    let file = part.state.join("store.redb");
    let good = std::fs::read(&file).unwrap();
    refuses_damaged(&part, &file, b"not a database");
    refuses_damaged(&part, &file, b"");
    refuses_damaged(&part, &file, &good[..good.len() / 2]);

    let again = part.start();
    let admin = Admin { address: again.address("admin"), key: admin.key };
    assert_eq!(admin.get("/upstreams/1").await["value"]["id"], "1", "the whole file still serves");
}

#[tokio::test]
async fn a_damaged_hash_of_the_admin_key_makes_no_new_key() {
    let world = World::new();
    let part = world.control();
    let mut control = part.start();
    control.end();
    let file = part.state.join("admin-key.sha256");
    for damage in [b"" as &[u8], b"hello", &[0xff; 32], &[b'0'; 63]] {
        refuses_damaged(&part, &file, damage);
    }
    let again = part.start();
    assert!(!again.lines().iter().any(|line| line.contains("admin key")), "shown once only");
}

#[tokio::test]
async fn a_damaged_last_good_copy_is_named_not_used_and_not_overwritten() {
    let world = World::new();
    let app = App::echo("app");
    let mut control = world.control().start();
    let admin = control.admin();
    let part = world.ingress().fed_by(&control);
    let mut ingress = part.start();
    let route = json!({ "uri": "/*", "upstream": { "nodes": { app.address.to_string(): 1 } } });
    admin.applied(admin.put("/routes/1", &route).await, 1).await;
    let file = part.state.join("last-good-ingress");
    crate::world::eventually("the last good copy", || {
        std::fs::read_to_string(&file).ok().filter(|text| text.contains("routes"))
    });
    ingress.kill();
    control.kill();

    let damage = scratched(&file);
    std::fs::write(&file, &damage).unwrap();
    let ingress = part.launch();
    ingress.logs("last-good-ingress is damaged");
    let answer = get(ingress.address("ingress"), "/").await;
    assert!(answer.status >= 400, "what may have been tampered with is not served");
    assert!(!ingress.is_ready());
    assert_eq!(std::fs::read(&file).unwrap(), damage);

    // With the control plane back, it serves, and the evidence still lies there.
    let feed = control.address("feed").to_string();
    let control = world.control().set("control.feed", &json!(feed)).start();
    ingress.wait_ready();
    eventually_async("the route", || async {
        (get(ingress.address("ingress"), "/").await.status == 200).then_some(())
    })
    .await;
    assert_eq!(std::fs::read(&file).unwrap(), damage);
    drop(control);
}

#[test]
fn a_damaged_authority_ends_the_start_and_is_left_as_it_is() {
    let world = World::new();
    let part = issuer(&world);
    part.start().end();
    let folder = part.state.join("authority");
    // What the names of old point to.
    let real = |file: &str| folder.join(file).canonicalize().unwrap();
    for file in ["root.pem", "intermediate.pem", "intermediate-key.pem"] {
        let path = real(file);
        refuses_damaged(&part, &path, b"not a certificate");
        refuses_damaged(&part, &path, b"");
    }
    // A half of another authority is none.
    let other = World::new();
    let foreign = std::fs::read(other.authority().join("root.pem")).unwrap();
    let path = real("root.pem");
    let good = std::fs::read(&path).unwrap();
    std::fs::write(&path, &foreign).unwrap();
    let ended = part.fails();
    let name = path.file_name().unwrap().to_str().unwrap();
    assert!(ended.err.contains(name), "{}", ended.err);
    std::fs::write(&path, good).unwrap();
    let key = real("intermediate-key.pem");
    std::fs::remove_file(&key).unwrap();
    let ended = part.fails();
    assert!(ended.err.contains("-key.pem"), "{}", ended.err);
    assert!(!key.exists(), "no new key in the place of a lost one");
}

#[test]
fn a_key_that_everybody_may_read_is_not_used() {
    use std::os::unix::fs::PermissionsExt;
    let world = World::new();
    let part = issuer(&world);
    part.start().end();
    let key = part.state.join("authority/root-key.pem");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
    let ended = part.fails();
    assert!(ended.err.contains("-key.pem") && ended.err.contains("0600"), "{}", ended.err);
}

fn issuer(world: &World) -> Part<'_> {
    let socket = world.folder.join("workload.sock");
    world
        .part("issuer", "/wardgate/issuer")
        .without("identity")
        .set("issuer", &json!({ "socket": socket }))
}

#[tokio::test]
async fn a_damaged_tail_of_the_decision_log_is_kept_as_evidence() {
    let world = World::new();
    let app = App::echo("app");
    let everybody = allow("p", &[&world.id("/a")], &[&world.id("/**")]);
    let part =
        world.sidecar("/a").app(&app).resources(&json!({ "identity_policies": [everybody] }));
    let mut sidecar = part.start();
    world.peer("/b").get(&sidecar, "/first").await;
    sidecar.record_with("/path", &json!("/first"));
    sidecar.end();
    let log = sidecar.audit_file();
    let whole = std::fs::read_to_string(&log).unwrap();
    let torn = &whole[..whole.len() - 40];
    std::fs::write(&log, torn).unwrap();

    let sidecar = part.start();
    let loss = sidecar.record_with("/type", &json!("loss"));
    assert_eq!(loss["event"], "damaged");
    let evidence = log.with_file_name(loss["damaged"]["file"].as_str().expect("a file name"));
    assert_eq!(std::fs::read_to_string(&evidence).unwrap(), torn, "untouched");
    assert_eq!(world.peer("/b").get(&sidecar, "/second").await.status, 200);
    let record = sidecar.record_with("/path", &json!("/second"));
    assert!(record["seq"].as_u64() > loss["seq"].as_u64());
}

#[tokio::test]
async fn a_damaged_resources_file_changes_nothing_at_run_time_and_ends_a_start() {
    let world = World::new();
    let app = App::echo("app");
    let route =
        json!({ "id": "1", "uri": "/*", "upstream": { "nodes": { app.address.to_string(): 1 } } });
    let part = world.ingress().resources(&json!({ "routes": [route] }));
    let ingress = part.start();
    let file = Path::new(part.settings["resources"].as_str().unwrap());
    for damage in ["routes: [\n#END\n", "routes: []\n", "- 1\n#END\n"] {
        std::fs::write(file, damage).unwrap();
        let ended = world.ingress().named("second").set("resources", &json!(file)).fails();
        assert!(ended.err.contains(file.to_str().unwrap()), "{}", ended.err);
    }
    ingress.logs("what was read before stays in force");
    assert_eq!(get(ingress.address("ingress"), "/").await.status, 200);
}

#[test]
fn a_second_process_on_the_same_state_is_refused() {
    let world = World::new();
    let first = world.control().start();
    let second = world.control().fails();
    assert!(second.err.contains("another"), "{}", second.err);
    drop(first);
}

#[tokio::test]
async fn a_client_that_says_nothing_is_let_go_and_holds_nobody_up() {
    let guarded = Guarded::new();
    let address: SocketAddr = guarded.sidecar.address("inbound");
    let silent: Vec<TcpStream> =
        futures_util::future::join_all((0..50).map(|_| TcpStream::connect(address)))
            .await
            .into_iter()
            .map(Result::unwrap)
            .collect();
    let friend = guarded.world.peer("/friend");
    let answer = tokio::time::timeout(Duration::from_secs(5), friend.get(&guarded.sidecar, "/"));
    assert_eq!(answer.await.expect("within five seconds").status, 200);
    drop(silent);
}

#[tokio::test]
async fn a_route_that_cannot_be_read_answers_503_in_its_place_and_no_broader_route_takes_its_requests()
 {
    let world = World::new();
    let app = App::echo("app");
    let upstream = json!({ "nodes": { app.address.to_string(): 1 } });
    let open = json!({ "id": "open", "uri": "/*", "upstream": upstream });
    let mut admin = json!({ "id": "admin", "uri": "/admin/*", "upstream": upstream,
        "plugins": { "ip-restriction": { "whitelist": ["10.9.8.7"] } } });
    admin["prioritty"] = json!(1);
    let ingress = world.ingress().resources(&json!({ "routes": [open, admin] })).start();
    let address = ingress.address("ingress");
    assert_eq!(get(address, "/else").await.status, 200);
    assert_eq!(get(address, "/admin/keys").await.status, 503);

    // Corrected, it serves; gone, the broader route has its requests again.
    admin.as_object_mut().unwrap().remove("prioritty");
    ingress.write_resources(&json!({ "routes": [open, admin] }));
    eventually_async("the corrected route", || async {
        (get(address, "/admin/keys").await.status == 403).then_some(())
    })
    .await;
    ingress.write_resources(&json!({ "routes": [open] }));
    eventually_async("the broader route", || async {
        (get(address, "/admin/keys").await.status == 200).then_some(())
    })
    .await;
    assert!(app.requests() >= 2);
}
