//! The issuer's authority as its operators handle it: rotation of the root under load, a root kept elsewhere, encrypted keys,
//! revocation lists that other programs verify, and the ledger.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use serde_json::{Value, json};

use crate::world::{
    App, Ended, Part, Process, World, allow, eventually, eventually_async, run, send, wardgate,
};

/// An authority of its own in the world's folder, which nobody else has issued from.
struct Authority<'w> {
    world: &'w World,
    dir: PathBuf,
}

impl<'w> Authority<'w> {
    fn at(world: &'w World) -> Self {
        Self { world, dir: world.folder.join("own-authority") }
    }

    fn new(world: &'w World) -> Self {
        let authority = Self::at(world);
        authority.identity(&["init", "--trust-domain", world.domain]).good();
        authority
    }

    /// `wardgate identity <words> --dir <this>`.
    fn identity(&self, words: &[&str]) -> Ended {
        let dir = self.dir.to_str().unwrap();
        run(["identity"].iter().chain(words).copied().chain(["--dir", dir]))
    }

    fn file(&self, name: &str) -> String {
        self.dir.join(name).to_str().unwrap().to_owned()
    }

    /// Issues by command; the folder with the files.
    fn issue(&self, path: &str, ttl: u32) -> PathBuf {
        let out = self.world.folder.join(format!("issued{}", path.replace('/', "-")));
        let (id, ttl) = (self.world.id(path), ttl.to_string());
        let out_text = out.to_str().unwrap();
        self.identity(&["issue", "--id", &id, "--ttl", &ttl, "--out", out_text]).good();
        out
    }

    /// A running issuer on it.
    fn issuer(&self, entries: &Value) -> Part<'w> {
        let issuer = json!({ "socket": self.socket(), "authority": self.dir, "entries": entries });
        self.world.part("issuer", "/wardgate/issuer").without("identity").set("issuer", &issuer)
    }

    fn socket(&self) -> PathBuf {
        self.world.folder.join("workload.sock")
    }

    fn entry(&self, path: &str, ttl: u32) -> Value {
        let uid = rustix::process::getuid().as_raw();
        json!({ "spiffe_id": self.world.id(path), "selectors": [format!("unix:uid:{uid}")], "ttl": ttl })
    }

    fn attested(&self, part: Part<'w>, path: &str) -> Part<'w> {
        let source = json!({
            "source": "workload_api",
            "socket": format!("unix:{}", self.socket().display()),
            "spiffe_id": self.world.id(path),
            "first_within_seconds": 20,
        });
        part.set("identity", &source)
    }

    /// Two sidecars with identities of this authority; the second one's workload calls the first one's.
    fn mesh(&self, app: &App) -> (Process, Process) {
        let world = self.world;
        let policy = allow("p", &[&world.id("/billing")], &[&world.id("/shop")]);
        let billing = world.sidecar("/billing").app(app);
        let billing = billing.resources(&json!({ "identity_policies": [policy] }));
        let billing = self.attested(billing, "/billing").start();
        let route = json!({
            "id": "b", "uri": "/*", "workload_selector": { "listener": "outbound" },
            "upstream": {
                "nodes": { billing.address("inbound").to_string(): 1 },
                "tls": { "identity": "svid", "spiffe_ids": [world.id("/billing")] },
            },
        });
        let shop = world.sidecar("/shop").resources(&json!({ "routes": [route] }));
        let shop = self.attested(shop, "/shop").start();
        (billing, shop)
    }
}

/// How often a process' identity or trust was replaced.
fn replaced(process: &Process) -> usize {
    process.audit().iter().filter(|record| record["type"] == "identity").count()
}

/// Requests one after another, until it is told to stop.
struct Load {
    stop: Arc<AtomicBool>,
    served: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<()>,
}

impl Load {
    fn on(shop: &Process) -> Self {
        let (stop, served) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let (ended, count, outbound) = (stop.clone(), served.clone(), shop.address("outbound"));
        #[expect(clippy::disallowed_methods, reason = "the test waits for it")]
        let task = tokio::spawn(async move {
            while !ended.load(Ordering::Relaxed) {
                let answer = send(outbound, "GET", "/", &[], "").await;
                let so_far = count.load(Ordering::Relaxed);
                assert_eq!(answer.status, 200, "after {so_far} requests: {}", answer.text());
                count.fetch_add(1, Ordering::Relaxed);
            }
        });
        Self { stop, served, task }
    }

    /// Waits until more requests went through.
    async fn goes_on(&self) {
        let before = self.served.load(Ordering::Relaxed);
        eventually_async("requests go on", || async {
            assert!(!self.task.is_finished(), "a request failed");
            (self.served.load(Ordering::Relaxed) > before + 3).then_some(())
        })
        .await;
    }

    async fn end(self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.unwrap();
        self.served.load(Ordering::Relaxed)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_root_is_replaced_while_requests_flow_and_none_fails() {
    let world = World::new();
    let authority = Authority::new(&world);
    let entries = json!([authority.entry("/billing", 4), authority.entry("/shop", 4)]);
    let issuer = authority.issuer(&entries).start();
    let app = App::echo("app");
    let (billing, shop) = authority.mesh(&app);
    authority.issue("/batch", 3600);
    let load = Load::on(&shop);
    load.goes_on().await;

    let (ours, theirs) = (replaced(&billing), replaced(&shop));
    let said = authority.identity(&["rotate-root", "prepare"]).good();
    assert!(said.contains("prepared") && said.contains("rotate-root activate"), "{said}");
    assert_eq!(bundle_size(&authority), 2);
    eventually_async("both sidecars know the new root", || async {
        (replaced(&billing) > ours && replaced(&shop) > theirs).then_some(())
    })
    .await;
    load.goes_on().await;
    let early = authority.identity(&["rotate-root", "activate"]);
    assert_eq!(early.code, Some(1));
    assert!(early.err.contains("too early"), "{}", early.err);

    let new_root = |said: &str| {
        let line = said.lines().find(|line| line.contains(" active ")).unwrap();
        line.split_whitespace().next().unwrap().to_owned()
    };
    let root = new_root(&authority.identity(&["rotate-root", "activate", "--force"]).good());
    for path in ["/billing", "/shop"] {
        eventually(&format!("{path} is renewed under {root}"), || {
            let said = authority.identity(&["whois", &world.id(path)]).good();
            said.contains(&format!("{root} (active)")).then_some(())
        });
    }
    load.goes_on().await;

    // Who would break is named, and nothing is changed.
    let named = eventually("a refusal that names who would break", || {
        let refused = authority.identity(&["rotate-root", "retire"]);
        assert_eq!(refused.code, Some(1), "somebody would have been left behind: {}", refused.out);
        refused.out.contains("would break").then_some(refused)
    });
    assert!(named.out.contains(&world.id("/batch")), "{}", named.out);
    assert!(named.err.contains("--force"), "{}", named.err);
    assert_eq!(bundle_size(&authority), 2);
    authority.identity(&["revoke", "--id", &world.id("/batch"), "--reason", "superseded"]).good();
    eventually("nobody is under the former root any more", || {
        (authority.identity(&["rotate-root", "retire"]).code == Some(0)).then_some(())
    });
    assert_eq!(bundle_size(&authority), 1);
    let (ours, theirs) = (replaced(&billing), replaced(&shop));
    eventually_async("both sidecars go on without the former root", || async {
        (replaced(&billing) > ours && replaced(&shop) > theirs).then_some(())
    })
    .await;
    load.goes_on().await;
    let served = load.end().await;
    assert_eq!(app.requests(), served);
    assert!(!issuer.errors().contains("not as it should be"), "{}", issuer.errors());
}

/// How many roots the authority's bundle has.
fn bundle_size(authority: &Authority<'_>) -> usize {
    let text = std::fs::read_to_string(authority.dir.join("bundle.pem")).unwrap();
    text.matches("BEGIN CERTIFICATE").count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_in_the_settings_replaces_the_root_by_itself() {
    let world = World::new();
    let authority = Authority::new(&world);
    let entries = json!([authority.entry("/billing", 3), authority.entry("/shop", 3)]);
    let rotation = json!({ "every_seconds": 10, "overlap_seconds": 4 });
    let _issuer = authority.issuer(&entries).set("issuer.root_rotation", &rotation).start();
    let first = std::fs::read(authority.dir.join("root.pem")).unwrap();
    let app = App::echo("app");
    let (_billing, shop) = authority.mesh(&app);
    let load = Load::on(&shop);
    eventually_async("the first root has left the bundle", || async {
        assert!(!load.task.is_finished(), "a request failed");
        let bundle = std::fs::read_to_string(authority.dir.join("bundle.pem")).unwrap();
        (!bundle.contains(std::str::from_utf8(&first).unwrap())).then_some(())
    })
    .await;
    load.goes_on().await;
    load.end().await;
    let ended = authority
        .issuer(&entries)
        .named("second")
        .set("issuer.root_rotation", &json!({ "every_seconds": 10, "overlap_seconds": 6 }))
        .fails();
    assert!(ended.err.contains("issuer.root_rotation.every_seconds"), "{}", ended.err);
}

fn openssl(arguments: &[&str]) -> Ended {
    Ended::of(&Command::new("openssl").args(arguments).output().expect("openssl is installed"))
}

/// An upstream authority as companies have it: openssl with a root, and an intermediate of its own below it.
struct Upstream {
    folder: PathBuf,
}

impl Upstream {
    fn new(folder: PathBuf) -> Self {
        std::fs::create_dir(&folder).unwrap();
        let upstream = Self { folder };
        std::fs::write(
            upstream.file("ca.cnf"),
            "basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign,cRLSign\n\
             subjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n",
        )
        .unwrap();
        let (key, root) = (upstream.file("root.key"), upstream.file("root.pem"));
        openssl(&[
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-keyout",
            &key,
            "-out",
            &root,
            "-days",
            "3650",
            "-subj",
            "/O=Company/CN=Root",
            "-addext",
            "keyUsage=critical,keyCertSign,cRLSign",
        ])
        .good();
        let (key, csr) = (upstream.file("middle.key"), upstream.file("middle.csr"));
        openssl(&[
            "req",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-384",
            "-nodes",
            "-keyout",
            &key,
            "-out",
            &csr,
            "-subj",
            "/O=Company/OU=Platform/OU=Mesh/CN=Issuing authority",
        ])
        .good();
        upstream.sign("root", &csr, "middle.pem", 1000);
        upstream
    }

    fn file(&self, name: &str) -> String {
        self.folder.join(name).to_str().unwrap().to_owned()
    }

    /// Has `by` sign a request.
    fn sign(&self, by: &str, request: &str, out: &str, days: u32) -> String {
        let (ca, key) = (self.file(&format!("{by}.pem")), self.file(&format!("{by}.key")));
        let (out, extensions) = (self.file(out), self.file("ca.cnf"));
        openssl(&[
            "x509",
            "-req",
            "-in",
            request,
            "-CA",
            &ca,
            "-CAkey",
            &key,
            "-out",
            &out,
            "-days",
            &days.to_string(),
            "-sha256",
            "-CAcreateserial",
            "-extfile",
            &extensions,
        ])
        .good();
        out
    }

    /// The certificates of these files in one.
    fn joined(&self, names: &[&str], out: &str) -> String {
        let texts = names.iter().map(|name| std::fs::read_to_string(name).unwrap());
        std::fs::write(self.file(out), texts.collect::<String>()).unwrap();
        self.file(out)
    }
}

fn certificates(file: &Path) -> usize {
    std::fs::read_to_string(file).unwrap().matches("BEGIN CERTIFICATE").count()
}

#[tokio::test]
async fn an_intermediate_signed_by_a_root_that_is_kept_elsewhere_serves_the_mesh() {
    let world = World::new();
    let upstream = Upstream::new(world.folder.join("company"));
    let authority = Authority::at(&world);
    let said = authority.identity(&["init", "--upstream", "--trust-domain", world.domain]).good();
    assert!(said.contains("BEGIN CERTIFICATE REQUEST"), "{said}");
    let request = authority.file("upstream.csr");
    let verified = openssl(&["req", "-in", &request, "-verify", "-noout", "-text"]).good();
    assert!(verified.contains(&format!("URI:spiffe://{}", world.domain)), "{verified}");
    assert!(verified.contains("CA:TRUE"), "{verified}");
    let waiting = authority.identity(&["issue", "--id", &world.id("/a"), "--out", "/nowhere"]);
    assert!(waiting.err.contains("waits for its upstream"), "{}", waiting.err);

    let root = upstream.file("root.pem");
    let signed = upstream.sign("middle", &request, "signed.pem", 30);
    let adopt = |chain: &str, root: &str| authority.identity(&["adopt", chain, "--root", root]);
    let refused = adopt(&signed, &root);
    assert!(refused.err.contains("a certificate is missing"), "{}", refused.err);
    let refused = adopt(&upstream.file("middle.pem"), &root);
    assert!(refused.err.contains("for the key of the request"), "{}", refused.err);
    let refused = adopt(&signed, &upstream.file("middle.pem"));
    assert!(refused.err.contains("not a self-signed"), "{}", refused.err);
    // The root at the end, and in no order: what is not needed is left out.
    let chain = upstream.joined(&[&root, &signed, &upstream.file("middle.pem")], "chain.pem");
    let said = adopt(&chain, &root).good();
    assert!(said.contains("comes with 3 certificates") && said.contains("days left"), "{said}");

    let folder = authority.issue("/cart", 3600);
    assert_eq!(certificates(&folder.join("svid.pem")), 3);
    let (svid, bundle) = (folder.join("svid.pem"), folder.join("bundle.pem"));
    let (svid, bundle) = (svid.to_str().unwrap(), bundle.to_str().unwrap());
    let verified = openssl(&["verify", "-CAfile", &root, "-untrusted", svid, svid]).good();
    assert!(verified.contains("OK"), "{verified}");
    run(["identity", "inspect", svid, "--bundle", bundle]).good();
    let entries = json!([authority.entry("/billing", 3600), authority.entry("/shop", 3600)]);
    let issuer = authority.issuer(&entries).start();
    let app = App::echo("app");
    let (_billing, shop) = authority.mesh(&app);
    assert_eq!(send(shop.address("outbound"), "GET", "/", &[], "").await.status, 200);
    assert!(!authority.dir.join("root-key.pem").exists());

    // The next intermediate, in time; it is signed by the root itself this time.
    let refused = adopt(&chain, &root);
    assert!(refused.err.contains("nothing was asked for"), "{}", refused.err);
    authority.identity(&["request"]).good();
    let signed = upstream.sign("root", &authority.file("upstream.csr"), "next.pem", 90);
    let said = adopt(&signed, &root).good();
    assert!(said.contains("comes with 2 certificates"), "{said}");
    issuer.logs("the authority was changed");
    assert_eq!(send(shop.address("outbound"), "GET", "/", &[], "").await.status, 200);

    // Another root first enters the bundle, then an intermediate under it is adopted and activated.
    let other = Upstream::new(world.folder.join("other"));
    let refused = authority.identity(&["rotate-root", "prepare"]);
    assert!(refused.err.contains("--root"), "{}", refused.err);
    let other_root = other.file("root.pem");
    authority.identity(&["request"]).good();
    let signed = other.sign("root", &authority.file("upstream.csr"), "signed.pem", 90);
    let refused = adopt(&signed, &other_root);
    assert!(refused.err.contains("rotate-root prepare"), "{}", refused.err);
    authority.identity(&["rotate-root", "prepare", "--root", &other_root]).good();
    let refused = authority.identity(&["rotate-root", "activate", "--force"]);
    assert!(refused.err.contains("adopted yet"), "{}", refused.err);
    let said = adopt(&signed, &other_root).good();
    assert!(said.contains("rotate-root activate"), "{said}");
    authority.identity(&["rotate-root", "activate", "--force"]).good();
    let folder = authority.issue("/late", 60);
    let late = folder.join("svid.pem");
    let late = late.to_str().unwrap();
    openssl(&["verify", "-CAfile", &other_root, "-untrusted", late, late]).good();
}

#[test]
fn keys_under_a_passphrase_never_lie_open_and_a_wrong_one_is_said_so() {
    let world = World::new();
    let authority = Authority::at(&world);
    let secret = |name: &str, text: &str| {
        use std::os::unix::fs::PermissionsExt;
        let path = world.folder.join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let good = secret("passphrase", "correct horse battery staple\n");
    let said = authority
        .identity(&["init", "--trust-domain", world.domain, "--passphrase-file", &good])
        .good();
    assert!(said.contains("(encrypted)"), "{said}");
    for entry in std::fs::read_dir(&authority.dir).unwrap() {
        let text = std::fs::read_to_string(entry.unwrap().path()).unwrap_or_default();
        assert!(!text.contains("BEGIN PRIVATE KEY"), "{text}");
    }
    let key = std::fs::read_to_string(authority.dir.join("root-key.pem")).unwrap();
    assert!(key.contains("PBKDF2-HMAC-SHA256") && key.contains("AES-256-GCM"), "{key}");

    let out = world.folder.join("issued");
    let id = world.id("/web");
    let issue = ["issue", "--id", &id, "--out", out.to_str().unwrap()];
    let none = authority.identity(&issue);
    assert_eq!(none.code, Some(1));
    assert!(none.err.contains("is encrypted: give its passphrase"), "{}", none.err);
    let wrong = secret("wrong", "incorrect");
    let refused = authority.identity(&[&issue[..], &["--passphrase-file", &wrong]].concat());
    assert!(refused.err.contains("the passphrase does not open"), "{}", refused.err);
    authority.identity(&[&issue[..], &["--passphrase-file", &good]].concat()).good();
    let dir = authority.dir.to_str().unwrap();
    let by_environment = wardgate()
        .args(["identity"].iter().chain(&issue).copied().chain(["--dir", dir]))
        .env("WARDGATE_CA_PASSPHRASE", "correct horse battery staple")
        .output()
        .unwrap();
    Ended::of(&by_environment).good();

    let entries = json!([]);
    let ended = authority.issuer(&entries).fails();
    assert!(ended.err.contains("issuer.passphrase_file"), "{}", ended.err);
    let process = authority.issuer(&entries).set("issuer.passphrase_file", &json!(good)).start();
    // The record of a revocation needs no key; who has it signs the list.
    let said = authority.identity(&["revoke", "--id", &id]).good();
    assert!(said.contains("signed by the running issuer"), "{said}");
    process.logs("revoked=2");
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(&good, std::fs::Permissions::from_mode(0o644)).unwrap();
    let open = authority.identity(&[&issue[..], &["--passphrase-file", &good]].concat());
    assert!(open.err.contains("everybody may read it"), "{}", open.err);
}

#[test]
fn other_programs_verify_the_revocation_lists_and_refuse_whom_they_name() {
    let world = World::new();
    let authority = Authority::new(&world);
    let folder = authority.issue("/cart", 3600);
    let svid = folder.join("svid.pem");
    let svid = svid.to_str().unwrap();
    let bundle = authority.file("bundle.pem");
    let lists = || -> Vec<String> {
        let text = std::fs::read_to_string(authority.dir.join("crl.pem")).unwrap();
        let sections = text.split_inclusive("-----END X509 CRL-----\n");
        sections
            .enumerate()
            .map(|(at, section)| {
                let path = world.folder.join(format!("list-{at}.pem"));
                std::fs::write(&path, section).unwrap();
                path.to_str().unwrap().to_owned()
            })
            .collect()
    };
    let of = |list: &str, signer: &str| {
        openssl(&["crl", "-in", list, "-CAfile", signer, "-noout", "-text", "-nameopt", "RFC2253"])
    };
    let signers = [authority.file("root.pem"), authority.file("intermediate.pem")];
    let both = lists();
    assert_eq!(both.len(), 2);
    for (list, signer) in both.iter().zip(&signers) {
        let seen = of(list, signer).good();
        assert!(seen.contains("X509v3 CRL Number"), "{seen}");
        assert!(seen.contains("No Revoked Certificates"), "{seen}");
    }
    let verify = || {
        openssl(&[
            "verify",
            "-crl_check_all",
            "-CAfile",
            &bundle,
            "-CRLfile",
            &authority.file("crl.pem"),
            "-untrusted",
            svid,
            svid,
        ])
    };
    assert!(verify().good().contains("OK"));

    let serial = openssl(&["x509", "-in", svid, "-noout", "-serial"]).good();
    let serial = serial.trim().strip_prefix("serial=").unwrap().to_owned();
    let said =
        authority.identity(&["revoke", "--serial", &serial, "--reason", "key-compromise"]).good();
    assert!(said.contains(&world.id("/cart")), "{said}");
    let seen = of(&lists()[1], &signers[1]).good();
    assert!(seen.contains(&serial) && seen.contains("Key Compromise"), "{seen}");
    let refused = verify();
    assert_ne!(refused.code, Some(0));
    assert!(refused.err.contains("certificate revoked"), "{}", refused.err);
    let inspected = run(["identity", "inspect", &authority.file("crl.pem")]).good();
    assert!(inspected.contains(&serial.to_lowercase()), "{inspected}");
    let again = authority.identity(&["revoke", "--serial", &serial]).good();
    assert!(again.contains("revoked already"), "{again}");
    let unknown = authority.identity(&["revoke", "--serial", "0123abcd"]);
    assert!(unknown.err.contains("does not know the serial number"), "{}", unknown.err);
    let wrong = authority.identity(&["revoke", "--serial", &serial, "--id", &world.id("/cart")]);
    assert!(wrong.err.contains("either a certificate or --id"), "{}", wrong.err);
}

#[tokio::test]
async fn the_ledger_tells_who_was_given_what_and_why() {
    let world = World::new();
    let authority = Authority::new(&world);
    let entries = json!([authority.entry("/billing", 3600), authority.entry("/shop", 3600)]);
    let _issuer = authority.issuer(&entries).start();
    let app = App::echo("app");
    let (_billing, _shop) = authority.mesh(&app);
    let said = authority.identity(&["whois", &world.id("/billing")]).good();
    let uid = rustix::process::getuid().as_raw();
    for part in ["by          workload api", &format!("unix:uid:{uid}"), "good, ", "(active)"] {
        assert!(said.contains(part), "{part} is missing in {said}");
    }
    let folder = authority.issue("/batch", 60);
    let file = folder.join("svid.pem");
    let said = authority.identity(&["whois", file.to_str().unwrap()]).good();
    assert!(said.contains("by          command line"), "{said}");
    let serial =
        said.lines().find_map(|line| line.strip_prefix("serial")).unwrap().trim().to_owned();
    authority.identity(&["revoke", "--serial", &serial]).good();
    let said = authority.identity(&["whois", &serial.to_uppercase()]).good();
    assert!(said.contains("REVOKED at"), "{said}");
    let nobody = authority.identity(&["whois", &world.id("/nobody")]);
    assert_eq!(nobody.code, Some(1));
    assert!(nobody.err.contains("does not know"), "{}", nobody.err);
    let ledger = std::fs::read_dir(authority.dir.join("issued")).unwrap();
    for entry in ledger {
        use std::os::unix::fs::PermissionsExt;
        let mode = entry.unwrap().metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
