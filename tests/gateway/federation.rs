//! Two trust domains that trust one another: bundles over both profiles of the bundle endpoint, and what happens when they
//! change, go back, or cannot be fetched.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use wardgate::identity::{BundleDocument, Identity, TrustBundle, TrustBundles};
use wardgate::mtls::{Alpn, OpenAcceptor};
use wardgate::rt::{Live, Publisher, Tasks};

use crate::world::{
    Admin, App, Ended, Part, Peer, Process, World, allow, eventually_async, get, run, send,
};

/// The other trust domain, with an issuer that publishes its bundle.
fn bank() -> World {
    World::of("bank.test")
}

fn issuer<'w>(world: &'w World, endpoint: &Value) -> Part<'w> {
    let issuer = json!({
        "socket": world.folder.join("workload.sock"),
        "authority": world.authority(),
        "bundle_endpoint": endpoint,
    });
    world.part("issuer", "/wardgate/issuer").without("identity").set("issuer", &issuer)
}

fn by_spiffe() -> Value {
    json!({ "listen": "127.0.0.1:0", "profile": "https_spiffe" })
}

/// A public certificate for localhost, in files: its authority, the chain, the key.
fn public(world: &World) -> [PathBuf; 3] {
    let [authority, chain, key] =
        ["web-ca.pem", "web.pem", "web-key.pem"].map(|name| world.folder.join(name));
    let ca_key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name.push(rcgen::DnType::CommonName, "A public authority");
    params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    std::fs::write(&authority, params.self_signed(&ca_key).unwrap().pem()).unwrap();
    let issuer = rcgen::Issuer::new(params, ca_key);
    let leaf_key = rcgen::KeyPair::generate().unwrap();
    let mut leaf = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    leaf.use_authority_key_identifier_extension = true;
    std::fs::write(&chain, leaf.signed_by(&leaf_key, &issuer).unwrap().pem()).unwrap();
    std::fs::write(&key, leaf_key.serialize_pem()).unwrap();
    [authority, chain, key]
}

fn text(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap()
}

/// Somebody of the bank who also knows the shop.
fn client(bank: &World, shop: &World) -> Peer {
    let Identity { svid, .. } = bank.identity("/client");
    let bundles: TrustBundles = [bank.bundle(), shop.bundle()].into_iter().collect();
    Peer::with(Identity::new(svid, bundles))
}

/// A request over a connection of its own; `None` when there is no connection, or none any more.
async fn call(peer: &Peer, sidecar: &Process) -> Option<u16> {
    let stream = peer.stream(sidecar, Alpn::Http1).await.ok()?;
    let mut connection = crate::world::Connection::over(stream).await.ok()?;
    connection.try_send("GET", "/", &[], "").await.ok().map(|answer| answer.status)
}

async fn until_called(what: &str, peer: &Peer, sidecar: &Process, outcome: Option<u16>) {
    eventually_async(what, || async { (call(peer, sidecar).await == outcome).then_some(()) }).await;
}

fn lets_in(shop: &World) -> Value {
    allow("p", &[&shop.id("/billing")], &["spiffe://bank.test/client", &shop.id("/web")])
}

async fn report(process: &Process) -> Value {
    let answer = get(process.address("status"), "/federation").await;
    answer.json()["trust_domains"][0].clone()
}

fn cli(admin: &Admin, words: &[&str]) -> Ended {
    let url = format!("http://{}", admin.address);
    let asked = ["identity"].iter().chain(words).copied();
    run(asked.chain(["--admin", &url, "--key", &admin.key]))
}

/// A bundle endpoint of the bank whose document the test decides.
struct Endpoint {
    port: u16,
    document: Publisher<String>,
    _tasks: Tasks,
}

impl Endpoint {
    async fn start(identity: Identity, first: String) -> Self {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (document, live) = Publisher::new(first);
        let acceptor = OpenAcceptor::new(Live::fixed(identity));
        let mut tasks = Tasks::new();
        tasks.add(async move {
            let mut connections = Tasks::new();
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                let (acceptor, live) = (acceptor.clone(), live.clone());
                connections.add(async move {
                    let Ok(mut tls) = acceptor.accept(tcp).await else { return };
                    let _ = tls.read(&mut [0; 4096]).await;
                    let body = live.load();
                    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
                    let _ = tls.write_all((head + &body).as_bytes()).await;
                    let _ = tls.shutdown().await;
                });
            }
        });
        Self { port, document, _tasks: tasks }
    }
}

fn document(bundle: TrustBundle, sequence: u64) -> String {
    let refresh_after = std::time::Duration::from_secs(10);
    let document = BundleDocument { bundle, sequence: Some(sequence), refresh_after };
    document.to_json().unwrap().to_string()
}

#[tokio::test]
async fn two_trust_domains_federate_by_https_spiffe_and_call_one_another() {
    let (shop, bank) = (World::new(), bank());
    let endpoint = issuer(&bank, &by_spiffe()).start();
    let bank_root = bank.authority().join("root.pem");

    // The shop's side, declared with the command line.
    let control = shop.control().start();
    let admin = control.admin();
    let app = App::echo("billing");
    let billing = shop
        .sidecar("/billing")
        .app(&app)
        .set("status", &json!("127.0.0.1:0"))
        .fed_by(&control)
        .start();
    admin.applied(admin.put("/identity_policies/p", &lets_in(&shop)).await, 1).await;
    let client = client(&bank, &shop);
    assert_eq!(call(&client, &billing).await, None, "52: a stranger's trust domain");
    let url = format!("https://{}/", endpoint.address("bundle"));
    let add = [
        "federate",
        "add",
        "bank.test",
        "--url",
        &url,
        "--profile",
        "https_spiffe",
        "--spiffe-id",
        "spiffe://bank.test/wardgate/issuer",
        "--bundle",
        bank_root.to_str().unwrap(),
        "--allow-private",
    ];
    cli(&admin, &add).good();
    until_called("the bank's client comes in", &client, &billing, Some(200)).await;
    eventually_async("the fetched bundle", || async {
        report(&billing).await["sequence"].is_u64().then_some(())
    })
    .await;
    let listed = cli(&admin, &["federate", "list"]).good();
    assert!(listed.contains("bank.test") && listed.contains(&url), "{listed}");
    let status = billing.address("status").to_string();
    let state = run(["identity", "federate", "list", "--status", &status]).good();
    assert!(state.contains("bank.test  trusted"), "{state}");
    let metrics = get(billing.address("status"), "/metrics").await.text();
    assert!(metrics.contains("wardgate_federation_bundle_age_seconds{"), "{metrics}");

    // And the other way round: a workload of the shop calls one of the bank.
    let vault_app = App::echo("vault");
    let vault = bank
        .sidecar("/vault")
        .app(&vault_app)
        .resources(&json!({
            "identity_policies": [allow("p", &[&bank.id("/vault")], &[&shop.id("/web")])],
            "trust_domains": [{ "id": "shop.test", "bundle": text(&shop.authority().join("root.pem")) }],
        }))
        .start();
    let outbound = json!({
        "uri": "/*", "workload_selector": { "listener": "outbound", "spiffe_ids": [shop.id("/web")] },
        "upstream": {
            "nodes": { vault.address("inbound").to_string(): 1 },
            "tls": { "identity": "svid", "spiffe_ids": [bank.id("/vault")] },
        },
    });
    let web = shop.sidecar("/web").fed_by(&control).start();
    admin.applied(admin.put("/routes/vault", &outbound).await, 2).await;
    let answer = send(web.address("outbound"), "GET", "/gold", &[], "").await;
    assert_eq!((answer.status, &answer.json()["app"]), (200, &json!("vault")), "{}", answer.text());

    // Removed: untrusted at once, in both directions.
    cli(&admin, &["federate", "remove", "bank.test"]).good();
    until_called("nobody of the bank", &client, &billing, None).await;
}

#[tokio::test]
async fn https_web_takes_the_endpoint_by_its_public_name() {
    let (shop, bank) = (World::new(), bank());
    let [authority, chain, key] = public(&bank);
    let settings = json!({
        "listen": "127.0.0.1:0", "profile": "https_web", "certificate": chain, "key": key,
        "refresh_hint": 60,
    });
    let endpoint = issuer(&bank, &settings).start();
    let url = format!("https://localhost:{}/", endpoint.address("bundle").port());
    let declared = |ca: &str| json!({ "endpoint": { "url": url, "profile": "https_web", "ca": ca, "allow_private": true } });
    let control = shop.control().start();
    let admin = control.admin();
    let app = App::echo("billing");
    let billing = shop
        .sidecar("/billing")
        .app(&app)
        .set("status", &json!("127.0.0.1:0"))
        .fed_by(&control)
        .start();
    admin.applied(admin.put("/identity_policies/p", &lets_in(&shop)).await, 1).await;
    let client = client(&bank, &shop);

    let stranger = text(&shop.authority().join("root.pem"));
    admin.applied(admin.put("/trust_domains/bank.test", &declared(&stranger)).await, 1).await;
    eventually_async("79: a server that nobody vouches for", || async {
        (report(&billing).await["failures"].as_u64() >= Some(1)).then_some(())
    })
    .await;
    assert_eq!(call(&client, &billing).await, None);

    admin
        .applied(admin.put("/trust_domains/bank.test", &declared(&text(&authority))).await, 1)
        .await;
    until_called("the bank's client comes in", &client, &billing, Some(200)).await;

    // What curl and Python see (89).
    let out = Command::new("curl")
        .args(["-sS", "-i", "--cacert", authority.to_str().unwrap(), &url])
        .output()
        .unwrap();
    let curl = String::from_utf8_lossy(&out.stdout).into_owned();
    let (head, body) = curl.split_once("\r\n\r\n").unwrap_or((&curl, ""));
    let failed = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{failed}");
    assert!(head.contains(" 200") && head.contains("content-type: application/json"), "{curl}");
    let found = BundleDocument::parse("bank.test".parse().unwrap(), body.as_bytes()).unwrap();
    assert_eq!(found.bundle.roots, bank.bundle().roots);
    assert_eq!(found.refresh_after.as_secs(), 60);
    let post = Command::new("curl")
        .args(["-sS", "-o", "/dev/null", "-w", "%{http_code}", "-X", "POST", "--cacert"])
        .args([authority.to_str().unwrap(), &url])
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&post.stdout), "405");
    let program = format!(
        "import ssl,http.client,json\n\
         c=http.client.HTTPSConnection('localhost',{},context=ssl.create_default_context(cafile='{}'))\n\
         c.request('GET','/')\nr=c.getresponse()\nd=json.load(r)\n\
         print(r.status,r.getheader('content-type'),len(d['keys']),d['keys'][0]['use'],d['spiffe_sequence']>0)",
        endpoint.address("bundle").port(),
        authority.display(),
    );
    let mut python = Command::new("python3")
        .arg("-")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    python.stdin.take().unwrap().write_all(program.as_bytes()).unwrap();
    let out = python.wait_with_output().unwrap();
    assert_eq!(
        String::from_utf8_lossy(&out.stdout).trim(),
        "200 application/json 2 x509-svid True"
    );
}

// The endpoint answers while the test waits for the sidecar.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_root_is_refused_and_no_bundle_ever_goes_back() {
    let (shop, bank) = (World::new(), bank());
    let other = World::of("bank.test");
    let both = TrustBundle {
        roots: [bank.bundle().roots, other.bundle().roots].concat(),
        ..bank.bundle()
    };
    let endpoint = Endpoint::start(other.identity("/server"), document(both, 1)).await;
    let control = shop.control().start();
    let admin = control.admin();
    let app = App::echo("billing");
    let billing = shop
        .sidecar("/billing")
        .app(&app)
        .set("status", &json!("127.0.0.1:0"))
        .fed_by(&control)
        .start();
    admin.put("/identity_policies/p", &lets_in(&shop)).await;
    let declared = json!({ "endpoint": {
        "url": format!("https://127.0.0.1:{}/", endpoint.port), "profile": "https_spiffe",
        "spiffe_id": "spiffe://bank.test/server", "allow_private": true,
        "bundle": text(&other.authority().join("root.pem")),
    } });
    admin.put("/trust_domains/bank.test", &declared).await;
    let client = client(&bank, &shop);
    until_called("the fetched bundle has the client's root", &client, &billing, Some(200)).await;

    endpoint.document.set(document(other.bundle(), 2));
    cli(&admin, &["federate", "refresh", "bank.test"]).good();
    // The first one that is refused may be a connection that was shaken before and was ended with its proof.
    until_called("74: its root is gone", &client, &billing, None).await;
    assert_eq!(call(&client, &billing).await, None);
    let refused = billing.record("a refused handshake", |record| {
        record["type"] == "handshake_refused" && record["reason"] == "unknown_authority"
    });
    assert_eq!(refused["src"]["presented_id"], "spiffe://bank.test/client", "{refused}");

    // Somebody brings back the old one.
    endpoint.document.set(document(bank.bundle(), 1));
    cli(&admin, &["federate", "refresh", "bank.test"]).good();
    let alarm = billing.record("67: an alarm", |record| record["event"] == "bundle_refused");
    assert!(alarm["detail"].as_str().unwrap().contains("spiffe_sequence 1"), "{alarm}");
    endpoint.document.set(document(bank.bundle(), 2));
    cli(&admin, &["federate", "refresh", "bank.test"]).good();
    billing.logs("has spiffe_sequence 2 as the one in use");
    assert_eq!(call(&client, &billing).await, None, "67, 68");
    let status = billing.address("status").to_string();
    let state = run(["identity", "federate", "list", "--status", &status]);
    assert_eq!(state.code, Some(1), "an alarm is for somebody to look at");
    assert!(state.out.contains("ALARM"), "{}", state.out);
}

// The endpoint answers while the test waits for the sidecar.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_is_away_stops_nobody_also_not_after_a_restart() {
    let (shop, bank) = (World::new(), bank());
    // The first bundle is of no use to the client: only the fetched one is.
    let first = World::of("bank.test");
    let both = TrustBundle {
        roots: [bank.bundle().roots, first.bundle().roots].concat(),
        ..bank.bundle()
    };
    let server = Endpoint::start(first.identity("/server"), document(both, 5)).await;
    let app = App::echo("billing");
    let part = shop.sidecar("/billing").app(&app).resources(&json!({
        "identity_policies": [lets_in(&shop)],
        "trust_domains": [{ "id": "bank.test", "endpoint": {
            "url": format!("https://127.0.0.1:{}/", server.port), "profile": "https_spiffe",
            "spiffe_id": "spiffe://bank.test/server", "allow_private": true,
            "bundle": text(&first.authority().join("root.pem")),
        } }],
    }));
    let mut billing = part.start();
    let client = client(&bank, &shop);
    until_called("the fetched bundle", &client, &billing, Some(200)).await;
    drop(server);
    assert_eq!(call(&client, &billing).await, Some(200));
    billing.kill();
    let kept = part.state.join("trust-sidecar/bundle-bank.test");
    use std::os::unix::fs::PermissionsExt as _;
    assert_eq!(std::fs::metadata(&kept).unwrap().permissions().mode() & 0o777, 0o600);
    let mut billing = part.start();
    assert_eq!(call(&client, &billing).await, Some(200), "87");
    billing.kill();

    // Damaged, it is not used, and is there for whoever wants to look.
    let mut bytes = std::fs::read(&kept).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&kept, bytes).unwrap();
    let billing = part.start();
    assert_eq!(call(&client, &billing).await, None, "the declared first bundle alone");
    billing.logs("is damaged");
    assert!(kept.with_file_name("bundle-bank.test.damaged").exists());
}

#[tokio::test]
async fn what_is_broken_in_the_resources_trusts_nobody_and_is_named() {
    let (shop, bank) = (World::new(), bank());
    let app = App::echo("billing");
    let root = text(&bank.authority().join("root.pem"));
    let resources = |declared: Value| json!({ "identity_policies": [lets_in(&shop)], "trust_domains": [declared] });
    let good = json!({ "id": "bank.test", "bundle": root });
    let billing = shop.sidecar("/billing").app(&app).resources(&resources(good.clone())).start();
    let client = client(&bank, &shop);
    assert_eq!(call(&client, &billing).await, Some(200));
    for broken in [
        json!({ "id": "bank.test", "bundle": "no PEM" }),
        json!({ "id": "bank.test", "bundle": root, "trust": "all" }),
    ] {
        billing.write_resources(&resources(broken));
        until_called("nobody of the bank", &client, &billing, None).await;
        assert_eq!(call(&shop.peer("/web"), &billing).await, Some(200), "the others go on");
        billing.record("the refusal", |record| {
            record["event"] == "refused"
                && record["kind"] == "trust_domains"
                && record["id"] == "bank.test"
        });
        billing.write_resources(&resources(good.clone()));
        until_called("repaired", &client, &billing, Some(200)).await;
    }
}

#[tokio::test]
async fn a_federated_domain_learns_nothing_from_the_feed() {
    let (shop, bank) = (World::new(), bank());
    let control = shop.control().start();
    let admin = control.admin();
    let root = text(&bank.authority().join("root.pem"));
    admin.put("/trust_domains/bank.test", &json!({ "bundle": root })).await;
    let stranger = client(&bank, &shop);
    let feed = control.address("feed");
    eventually_async("the control plane refuses it", || async {
        let stream = stranger.stream_to(feed, &shop.id("/wardgate/control"), Alpn::Http2).await;
        let Ok(mut stream) = stream else { return Some(()) };
        // In TLS 1.3 the refusal comes with the first read.
        use tokio::io::AsyncReadExt as _;
        stream.read_u8().await.is_err().then_some(())
    })
    .await;
    control.record("its refusal", |record| {
        record["type"] == "handshake_refused" && record["reason"] == "unknown_trust_domain"
    });
}

#[test]
fn bundles_are_shown_exported_and_declared() {
    let bank = bank();
    let dir = bank.authority();
    let dir = dir.to_str().unwrap();
    let spiffe = run(["identity", "bundle", "export", "--dir", dir, "--format", "spiffe"]).good();
    let found = BundleDocument::parse("bank.test".parse().unwrap(), spiffe.as_bytes()).unwrap();
    assert_eq!(found.bundle, bank.bundle());
    let pem = run(["identity", "bundle", "export", "--dir", dir]).good();
    assert_eq!(pem, bank.bundle().to_pem());
    let file = bank.folder.join("bundle.json");
    std::fs::write(&file, spiffe).unwrap();
    let shown = run(["identity", "bundle", "show", file.to_str().unwrap()]).good();
    assert!(shown.contains("root 1") && shown.contains("SHA-256"), "{shown}");

    let shop = World::new();
    let control = shop.control().start();
    let admin = control.admin();
    let set = ["bundle", "set", "--trust-domain", "bank.test", file.to_str().unwrap()];
    assert!(cli(&admin, &set).good().contains("1 roots"));
    let shown = cli(&admin, &["bundle", "show", "--trust-domain", "bank.test"]).good();
    assert!(shown.contains("trust domain  bank.test"), "{shown}");
    let own = ["bundle", "set", "--trust-domain", "shop.test", file.to_str().unwrap()];
    let refused = cli(&admin, &own);
    assert_eq!(refused.code, Some(1));
    assert!(refused.err.contains("our own trust domain"), "{}", refused.err);
}

#[test]
fn an_endpoint_whose_settings_do_not_fit_does_not_start() {
    let bank = bank();
    for (endpoint, says) in [
        (json!({ "listen": "127.0.0.1:0", "profile": "https_web" }), "needs certificate and key"),
        (
            json!({ "listen": "127.0.0.1:0", "profile": "https_spiffe", "certificate": "a", "key": "b" }),
            "leave certificate and key out",
        ),
        (
            json!({ "listen": "127.0.0.1:0", "profile": "https_spiffe", "refresh_hint": 5 }),
            "expected 10 to 86400 seconds",
        ),
    ] {
        let ended = issuer(&bank, &endpoint).fails();
        assert!(ended.err.contains(says), "{}", ended.err);
    }
}
