//! Who is no longer trusted although a bundle vouches for him: the deny list, and revocation lists that openssl made.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use wardgate::identity::{Identity, Svid, TrustBundle, TrustBundles};
use wardgate::mtls::Alpn;

use crate::world::{
    Admin, App, Connection, Ended, Peer, Process, World, allow, eventually_async, run,
};

async fn call(peer: &Peer, sidecar: &Process) -> Option<u16> {
    let stream = peer.stream(sidecar, Alpn::Http1).await.ok()?;
    let mut connection = Connection::over(stream).await.ok()?;
    connection.try_send("GET", "/", &[], "").await.ok().map(|answer| answer.status)
}

fn cli(admin: &Admin, words: &[&str]) -> Ended {
    let url = format!("http://{}", admin.address);
    run(["identity", "revoke"]
        .iter()
        .chain(words)
        .copied()
        .chain(["--admin", &url, "--key", &admin.key]))
}

async fn applied(admin: &Admin, method: &str, path: &str, body: Option<&Value>) {
    let answer = admin.ask(method, &format!("{path}?wait=applied"), body).await;
    assert!(answer.status < 300, "{}", answer.text());
    assert_eq!(answer.header("x-wardgate-applied"), Some("true"));
}

#[tokio::test]
async fn the_deny_list_refuses_at_once_by_certificate_by_key_and_by_name() {
    let world = World::new();
    let mut control = world.control().start();
    let admin = control.admin();
    let app = App::echo("billing");
    let part = world.sidecar("/billing").app(&app).fed_by(&control);
    let mut billing = part.start();
    let everybody = allow("p", &[&world.id("/billing")], &[&world.id("/**")]);
    admin.applied(admin.put("/identity_policies/p", &everybody).await, 1).await;

    let identity = |path: &str| world.identity(path);
    let (a, b, c, d) = (identity("/a"), identity("/b"), identity("/c"), identity("/d"));
    let spki = |identity: &Identity| {
        use wardgate::rt::crypto::digest::{SHA256, digest};
        use x509_parser::prelude::FromDer as _;
        let (_, leaf) =
            x509_parser::certificate::X509Certificate::from_der(&identity.svid.chain[0]).unwrap();
        hex::encode(digest(&SHA256, leaf.public_key().raw))
    };
    let upper = a.svid.serial.to_uppercase();
    let denials = [
        ("serial", json!({ "serial": upper, "trust_domain": "shop.test", "reason": "lost" })),
        ("key", json!({ "spki_sha256": spki(&b) })),
        ("id", json!({ "spiffe_id": world.id("/c") })),
    ];
    let peers = [a, b, c].map(Peer::with);
    for ((id, denial), peer) in denials.iter().zip(&peers) {
        assert_eq!(call(peer, &billing).await, Some(200), "{id}");
        applied(&admin, "PUT", &format!("/revocations/{id}"), Some(denial)).await;
        // Who waited may rely on it: the very next handshake is refused.
        assert_eq!(call(peer, &billing).await, None, "{id}");
        applied(&admin, "DELETE", &format!("/revocations/{id}"), None).await;
        assert_eq!(call(peer, &billing).await, Some(200), "{id} is taken back");
        applied(&admin, "PUT", &format!("/revocations/{id}"), Some(denial)).await;
    }
    assert_eq!(call(&Peer::with(d), &billing).await, Some(200), "nobody else is concerned");
    // The same name with another certificate; another name with the same serial number of another domain.
    world.issue("/c", &world.files("/c"), 3600);
    assert_eq!(
        call(&world.peer("/c"), &billing).await,
        None,
        "the name is denied, not a certificate"
    );
    world.issue("/a", &world.files("/a"), 3600);
    assert_eq!(
        call(&world.peer("/a"), &billing).await,
        Some(200),
        "the certificate is, not the name"
    );

    // Without a control plane a new process goes on refusing.
    let copy = part.state.join("last-good-sidecar");
    crate::world::eventually("the last good copy", || {
        let text = std::fs::read_to_string(&copy).ok()?;
        (text.matches("\"revocations\"").count() == 3).then_some(())
    });
    control.kill();
    billing.kill();
    let billing = part.start();
    for peer in &peers {
        assert_eq!(call(peer, &billing).await, None);
    }
}

#[tokio::test]
async fn the_command_line_revokes_lists_and_takes_back() {
    let world = World::new();
    let control = world.control().start();
    let admin = control.admin();
    let app = App::echo("billing");
    let billing = world.sidecar("/billing").app(&app).fed_by(&control).start();
    let everybody = allow("p", &[&world.id("/billing")], &[&world.id("/**")]);
    admin.applied(admin.put("/identity_policies/p", &everybody).await, 1).await;
    let peer = world.peer("/lost");
    assert_eq!(call(&peer, &billing).await, Some(200));
    let file = world.files("/lost").join("svid.pem");
    let revoked =
        cli(&admin, &["--cert", file.to_str().unwrap(), "--reason", "laptop stolen"]).good();
    eventually_async("it is refused", || async {
        call(&peer, &billing).await.is_none().then_some(())
    })
    .await;
    let entry = revoked.lines().last().unwrap().rsplit(' ').next().unwrap().to_owned();
    let again =
        cli(&admin, &["--cert", file.to_str().unwrap(), "--reason", "laptop stolen"]).good();
    assert!(again.contains(&entry), "the same again is the same entry");
    let listed = cli(&admin, &["--list"]).good();
    assert!(listed.contains(&entry) && listed.contains("laptop stolen"), "{listed}");
    let serial = world.identity("/lost").svid.serial.clone();
    assert!(listed.contains(&format!("{serial} of shop.test")), "{listed}");
    cli(&admin, &["--undo", &entry]).good();
    eventually_async("it comes in again", || async { call(&peer, &billing).await }).await;
    assert!(cli(&admin, &["--list"]).good().contains("nobody"));
    for (words, says) in [
        (&["--undo", "r-nothing"][..], "there is no revocations/r-nothing"),
        (&[], "nobody is named"),
        (&["--spki", "ab"], "spki_sha256"),
        (&["--serial", "xy", "--trust-domain", "shop.test"], "not a serial number"),
    ] {
        let refused = cli(&admin, words);
        assert_eq!(refused.code, Some(1), "{words:?}");
        assert!(refused.err.contains(says), "{}", refused.err);
    }
}

/// A trust domain that openssl made and keeps the books of.
struct Openssl {
    folder: PathBuf,
}

const CONFIG: &str = "
[ca]
default_ca = own
[own]
database = index.txt
serial = serial.txt
crlnumber = crlnumber.txt
certificate = root.pem
private_key = root-key.pem
new_certs_dir = .
default_md = sha256
default_days = 2
default_crl_days = 1
policy = anything
unique_subject = no
copy_extensions = copy
[anything]
commonName = optional
[req]
distinguished_name = name
prompt = no
[name]
CN = bank
[root]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
subjectAltName = URI:spiffe://bank.test
[leaf]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth, clientAuth
authorityKeyIdentifier = keyid
";

impl Openssl {
    fn new(world: &World) -> Self {
        let folder = world.folder.join("openssl");
        std::fs::create_dir(&folder).unwrap();
        let own = Self { folder };
        own.write("ca.conf", CONFIG);
        own.write("index.txt", "");
        own.write("serial.txt", "1000\n");
        own.write("crlnumber.txt", "01\n");
        own.run("ecparam -name prime256v1 -genkey -noout -out root-key.pem");
        own.run("req -x509 -new -key root-key.pem -out root.pem -days 3 -config ca.conf -extensions root");
        own
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }

    fn run(&self, words: &str) {
        let done = Command::new("openssl")
            .args(words.split(' '))
            .current_dir(&self.folder)
            .output()
            .unwrap();
        assert!(done.status.success(), "{words}: {}", String::from_utf8_lossy(&done.stderr));
    }

    fn svid(&self, name: &str) -> Svid {
        self.run(&format!("ecparam -name prime256v1 -genkey -noout -out {name}-sec1.pem"));
        self.run(&format!("pkcs8 -topk8 -nocrypt -in {name}-sec1.pem -out {name}-key.pem"));
        self.run(&format!(
            "req -new -key {name}-key.pem -subj /CN={name} -addext subjectAltName=URI:spiffe://bank.test/{name} -out {name}.csr -config ca.conf"
        ));
        self.run(&format!(
            "ca -batch -notext -config ca.conf -extensions leaf -in {name}.csr -out {name}.pem"
        ));
        let read = |file: String| std::fs::read(self.path(&file)).unwrap();
        Svid::from_pem(&read(format!("{name}.pem")), &read(format!("{name}-key.pem"))).unwrap()
    }

    fn peer(&self, name: &str, world: &World) -> Peer {
        let domain = "bank.test".parse().unwrap();
        let own = TrustBundle::from_text(domain, &std::fs::read(self.path("root.pem")).unwrap());
        let bundles: TrustBundles = [own.unwrap(), world.bundle()].into_iter().collect();
        Peer::with(Identity::new(self.svid(name), bundles))
    }

    fn revoke(&self, name: &str) {
        self.run(&format!("ca -config ca.conf -revoke {name}.pem"));
    }

    /// The books as a list, put into its place at once.
    fn publish(&self, name: &str) {
        self.run(&format!("ca -config ca.conf -gencrl -out {name}.new"));
        std::fs::rename(self.path(&format!("{name}.new")), self.path(name)).unwrap();
    }

    fn text(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap()
    }
}

/// A server of one file over plain HTTP.
fn serve(file: &Path) -> App {
    let file = file.to_owned();
    App::serving(move |_| {
        let body = std::fs::read(&file).unwrap_or_default();
        async move { http::Response::new(http_body_util::Full::new(bytes::Bytes::from(body))) }
    })
}

#[tokio::test]
async fn revocation_lists_by_file_and_url_off_soft_and_hard() {
    let world = World::new();
    let bank = Openssl::new(&world);
    let (good, bad) = (bank.peer("good", &world), bank.peer("bad", &world));
    bank.revoke("bad");
    let app = App::echo("billing");
    let control = world.control().start();
    let admin = control.admin();
    let billing = world.sidecar("/billing").app(&app).fed_by(&control).start();
    let everybody = allow("p", &[&world.id("/billing")], &["spiffe://bank.test/**"]);
    admin.applied(admin.put("/identity_policies/p", &everybody).await, 1).await;
    let declare = async |revocation: Value| {
        let declared = json!({ "bundle": bank.text("root.pem"), "revocation": revocation });
        applied(&admin, "PUT", "/trust_domains/bank.test", Some(&declared)).await;
    };
    let outcome = async || (call(&good, &billing).await, call(&bad, &billing).await);
    let (both, only_good, nobody) = ((Some(200), Some(200)), (Some(200), None), (None, None));

    // There is no list yet.
    let list = bank.path("crl.pem");
    for (mode, expected) in [("off", both), ("soft", both), ("hard", nobody)] {
        declare(json!({ "mode": mode, "files": [list] })).await;
        assert_eq!(outcome().await, expected, "{mode} without a list");
    }
    // It appears, in the middle of everything.
    bank.publish("crl.pem");
    eventually_async("the list is noticed", || async {
        (outcome().await == only_good).then_some(())
    })
    .await;
    for (mode, expected) in [("off", both), ("soft", only_good), ("hard", only_good)] {
        declare(json!({ "mode": mode, "files": [list] })).await;
        assert_eq!(outcome().await, expected, "{mode} with a list");
    }
    // In the resource itself.
    declare(json!({ "mode": "hard", "lists": [bank.text("crl.pem")] })).await;
    assert_eq!(outcome().await, only_good, "in the resource");

    // By URL, over plain http; DER is taken as well.
    bank.run("crl -in crl.pem -outform DER -out crl.der");
    let server = serve(&bank.path("crl.der"));
    let url = format!("http://{}/crl", server.address);
    declare(json!({ "mode": "hard", "urls": [url], "allow_private": true })).await;
    eventually_async("the list is fetched", || async {
        (outcome().await == only_good).then_some(())
    })
    .await;
    declare(json!({ "mode": "hard", "urls": [url] })).await;
    eventually_async("a private address is refused", || async {
        billing.errors().contains("private address").then_some(())
    })
    .await;
    assert_eq!(outcome().await, only_good, "the last good list stays");

    // Our own trust domain may have lists as well, and nothing else.
    let own = json!({ "revocation": { "mode": "soft", "lists": [bank.text("crl.pem")] } });
    applied(&admin, "PUT", "/trust_domains/shop.test", Some(&own)).await;
    let refused = admin
        .ask("PUT", "/trust_domains/shop.test", Some(&json!({ "bundle": bank.text("root.pem") })))
        .await;
    assert_eq!(refused.status, 400);
    assert!(refused.text().contains("our own trust domain"), "{}", refused.text());
}
