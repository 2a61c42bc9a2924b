//! Our issuer's Workload API as others use it: go-spiffe, py-spiffe and the `spiffe` crate; and go-spiffe's workloads as peers of
//! sidecars, on our issuer and on SPIRE.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use spiffe::{TrustDomain, X509Source};

use crate::programs::{programs, skipped};
use crate::spire::{OnSpire, Spire, program_of, sees_programs, selectors_of};
use crate::world::{App, Ended, Part, Process, World, allow, eventually, send, soon};

const DOMAIN: &str = "shop.test";

/// A workload that speaks to a Workload API with somebody else's library.
#[derive(Clone, Debug)]
pub struct Client {
    pub name: &'static str,
    program: PathBuf,
    script: Option<PathBuf>,
    api: String,
}

impl Client {
    pub fn go(programs: &Path, api: &str) -> Self {
        let program = programs.join("go-client");
        Self { name: "go-spiffe", program, script: None, api: api.to_owned() }
    }

    pub fn python(programs: &Path, api: &str) -> Self {
        let program = programs.join("python/bin/python");
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/spire/client/client.py");
        Self { name: "py-spiffe", program, script: Some(script), api: api.to_owned() }
    }

    pub fn both(programs: &Path, api: &str) -> [Self; 2] {
        [Self::go(programs, api), Self::python(programs, api)]
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(&self.script).args(arguments);
        command.env("SPIFFE_ENDPOINT_SOCKET", &self.api).stdin(Stdio::null());
        command
    }

    pub fn run(&self, arguments: &[&str]) -> Ended {
        Ended::of(&self.command(arguments).output().unwrap())
    }

    /// A command that must succeed; what it tells.
    pub fn ask(&self, arguments: &[&str]) -> Value {
        let said = self.run(arguments).good();
        serde_json::from_str(&said).unwrap_or_else(|_| panic!("{}: {said}", self.name))
    }

    /// A command that goes on.
    pub fn start(&self, folder: &Path, arguments: &[&str]) -> Told {
        Told(Process::launch(self.name, self.command(arguments), folder))
    }
}

/// A client that tells one thing after another.
pub struct Told(pub Process);

impl Told {
    pub fn all(&self) -> Vec<Value> {
        self.0.lines().iter().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// The first that fits among all but the first `after`, as soon as it is there; with how many there were then.
    pub fn then(&self, what: &str, after: usize, fits: impl Fn(&Value) -> bool) -> (Value, usize) {
        eventually(&format!("{} tells {what}", self.0.name), || {
            let all = self.all();
            let (at, found) = all.iter().enumerate().skip(after).find(|(_, one)| fits(one))?;
            Some((found.clone(), at + 1))
        })
    }
}

pub fn uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

pub fn address(world: &World) -> String {
    format!("unix:{}", world.folder.join("workload.sock").display())
}

/// An issuer on the world's own authority.
pub fn issuer<'w>(world: &'w World, entries: &Value) -> Part<'w> {
    let issuer = json!({
        "socket": world.folder.join("workload.sock"), "authority": world.authority(), "entries": entries,
    });
    world.part("issuer", "/wardgate/issuer").without("identity").set("issuer", &issuer)
}

pub fn entry(world: &World, path: &str, ttl: u32) -> Value {
    let selectors = [format!("unix:uid:{}", uid())];
    json!({ "spiffe_id": world.id(path), "selectors": selectors, "ttl": ttl })
}

fn ids(told: &Value) -> Vec<&str> {
    let svids = told["svids"].as_array().unwrap_or_else(|| panic!("no SVIDs: {told}"));
    svids.iter().map(|svid| svid["id"].as_str().unwrap()).collect()
}

fn has_failed(told: &Value) -> bool {
    told.get("error").is_some()
}

/// A sidecar of /billing before the app, with its identity from our issuer.
fn billing<'w>(world: &'w World, app: &App) -> Part<'w> {
    let source = json!({
        "source": "workload_api", "socket": address(world), "spiffe_id": world.id("/billing"),
        "first_within_seconds": 20,
    });
    let policy = allow("shop", &[&world.id("/billing")], &[&world.id("/shop")]);
    world
        .sidecar("/billing")
        .set("identity", &source)
        .app(app)
        .resources(&json!({ "identity_policies": [policy] }))
}

#[test]
fn other_clients_take_svids_and_bundles_from_our_issuer_and_verify_them() {
    let Some(programs) = programs() else { return };
    let world = World::new();
    let entries = json!([entry(&world, "/shop", 3600), entry(&world, "/cart", 600)]);
    let _issuer = issuer(&world, &entries).start();
    for client in Client::both(&programs, &address(&world)) {
        let told = client.ask(&["x509"]);
        let mut found = ids(&told);
        found.sort_unstable();
        assert_eq!(found, [world.id("/cart"), world.id("/shop")], "{}", client.name);
        assert_eq!(told["bundles"], json!({ DOMAIN: 1 }), "{}", client.name);
        assert_eq!(client.ask(&["bundles"])["bundles"], json!({ DOMAIN: 1 }), "{}", client.name);
    }
}

#[test]
fn who_is_not_registered_is_told_so_in_each_language() {
    let Some(programs) = programs() else { return };
    let world = World::new();
    let _issuer = issuer(&world, &json!([])).start();
    for client in Client::both(&programs, &address(&world)) {
        for command in ["x509", "bundles"] {
            let ended = client.run(&[command]);
            assert_eq!(ended.code, Some(1), "{}: {}", client.name, ended.out);
            assert!(ended.err.contains("no identity issued"), "{}: {}", client.name, ended.err);
        }
    }
}

#[test]
fn other_clients_are_given_their_renewals_for_as_long_as_they_listen() {
    let Some(programs) = programs() else { return };
    let world = World::new();
    let _issuer = issuer(&world, &json!([entry(&world, "/shop", 4)])).start();
    let address = address(&world);
    let python = Client::python(&programs, &address);
    let watches = [
        Client::go(&programs, &address).start(&world.folder, &["watch"]),
        python.start(&world.folder, &["watch"]),
        python.start(&world.folder, &["source"]),
    ];
    for watch in watches {
        let name = watch.0.name.clone();
        eventually(&format!("seven certificates for {name}"), || {
            let all = watch.all();
            let serials: BTreeSet<String> =
                all.iter().map(|told| told["svids"][0]["serial"].to_string()).collect();
            (serials.len() >= 7).then_some(())
        });
        let all = watch.all();
        assert!(!all.iter().any(has_failed), "{name}: {all:?}");
        assert!(all.iter().all(|told| ids(told) == [world.id("/shop")]), "{name}: {all:?}");
    }
}

#[tokio::test]
async fn other_clients_hear_of_entries_that_come_and_go_and_of_an_issuer_that_restarts() {
    let Some(programs) = programs() else { return };
    let world = World::new();
    let control = world.control().start();
    let admin = control.admin();
    let part = issuer(&world, &json!([])).fed_by(&control);
    let mut issuer = part.start();
    let revision = admin.put("/workloads/shop", &entry(&world, "/shop", 3600)).await;
    admin.applied(revision, 1).await;
    let watches = Client::both(&programs, &address(&world))
        .map(|client| client.start(&world.folder, &["watch"]));
    for watch in &watches {
        watch.then("its SVID", 0, |told| told["svids"][0]["id"] == json!(world.id("/shop")));
    }

    let revision = admin.put("/workloads/cart", &entry(&world, "/cart", 3600)).await;
    admin.applied(revision, 1).await;
    for watch in &watches {
        watch.then("both SVIDs", 0, |told| !has_failed(told) && ids(told).len() == 2);
    }

    let told = watches.each_ref().map(|watch| watch.all().len());
    admin.delete("/workloads/shop").await;
    admin.delete("/workloads/cart").await;
    // py-spiffe keeps what it has and says nothing; go-spiffe tells of each attempt.
    watches[0].then("the denial", told[0], |told| told["code"] == json!("PermissionDenied"));
    let revision = admin.put("/workloads/shop", &entry(&world, "/shop", 3600)).await;
    admin.applied(revision, 1).await;
    let mut places = Vec::new();
    for (watch, told) in watches.iter().zip(told) {
        let only_shop = |told: &Value| !has_failed(told) && ids(told) == [world.id("/shop")];
        places.push(watch.then("its SVID again", told, only_shop).1);
    }

    issuer.kill();
    let _issuer = part.start();
    for (watch, place) in watches.iter().zip(places) {
        watch.then("an SVID of the issuer that came back", place, |told| !has_failed(told));
    }
}

#[tokio::test]
async fn the_spiffe_crate_follows_our_issuer() {
    let Some(_programs) = programs() else { return };
    let world = World::new();
    let _issuer = issuer(&world, &json!([entry(&world, "/shop", 4)])).start();
    let source = X509Source::builder().endpoint(address(&world)).build();
    let source = soon("the spiffe crate's source", source).await.unwrap();
    let mut updates = source.updated();
    let mut serials = BTreeSet::new();
    for _ in 0..4 {
        let svid = source.svid().unwrap();
        assert_eq!(svid.spiffe_id().to_string(), world.id("/shop"));
        serials.insert(svid.leaf().as_bytes().to_vec());
        soon("an update", updates.changed()).await.unwrap();
    }
    assert!(serials.len() >= 3, "{}", serials.len());
    let domain = TrustDomain::new(DOMAIN).unwrap();
    let bundle = source.try_bundle_for_trust_domain(&domain).unwrap();
    assert_eq!(bundle.authorities().len(), 1);
    source.shutdown().await;
}

/// A sidecar whose workload calls a server that listens at `address` and is `expected`.
fn caller<'w>(world: &'w World, address: &str, expected: &str) -> Part<'w> {
    world.sidecar("/shop").resources(&json!({
        "routes": [{
            "id": "go", "uri": "/*", "workload_selector": { "listener": "outbound" },
            "upstream": {
                "nodes": { address: 1 },
                "tls": { "identity": "svid", "spiffe_ids": [expected] },
            },
        }],
    }))
}

/// What a go-spiffe server says where it listens.
fn listening(server: &Told) -> String {
    let (told, _) = server.then("its address", 0, |told| told.get("address").is_some());
    told["address"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn go_spiffe_and_sidecars_call_each_other_on_our_issuer() {
    let Some(programs) = programs() else { return };
    let world = World::new();
    // One user has both identities: go-spiffe takes the first, /shop.
    let app = App::echo("app");
    let entries = json!([entry(&world, "/shop", 3600), entry(&world, "/billing", 3600)]);
    let _issuer = issuer(&world, &entries).start();
    let billing = billing(&world, &app).start();
    let go = Client::go(&programs, &address(&world));
    let url = format!("https://{}/invoices/7", billing.address("inbound"));
    let told = go.ask(&["call", &url, &world.id("/billing")]);
    assert_eq!(told["status"], 200, "{told}");
    let echo: Value = serde_json::from_str(told["body"].as_str().unwrap()).unwrap();
    let certificate = echo["headers"]["x-forwarded-client-cert"].to_string();
    assert!(certificate.contains(&world.id("/shop")), "{certificate}");

    let refused = go.run(&["call", &url, &world.id("/elsewhere")]);
    assert_eq!(refused.code, Some(1), "go-spiffe expects somebody else: {}", refused.out);

    let server = go.start(&world.folder, &["serve", &world.id("/shop")]);
    let source = json!({
        "source": "workload_api", "socket": address(&world), "spiffe_id": world.id("/shop"),
    });
    let shop =
        caller(&world, &listening(&server), &world.id("/shop")).set("identity", &source).start();
    let answer = send(shop.address("outbound"), "GET", "/cart", &[], "").await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.json(), json!({ "peer": world.id("/shop"), "path": "/cart" }));
}

#[tokio::test]
async fn go_spiffe_and_sidecars_call_each_other_on_spire() {
    let Some(programs) = programs() else { return };
    if !sees_programs() {
        return skipped("only an agent of root's tells programs of one user apart");
    }
    let spire = Spire::start(&programs, DOMAIN);
    let world = World::of(DOMAIN);
    let go = Client::go(&programs, &spire.agent.address());
    spire.server.register("/billing", &selectors_of(&program_of(&world, "/billing")), &[]);
    let app = App::echo("app");
    let policy = allow("go", &[&world.id("/billing")], &[&world.id("/go")]);
    let billing = world
        .sidecar("/billing")
        .program(&program_of(&world, "/billing"))
        .on(&spire, "/billing")
        .app(&app)
        .resources(&json!({ "identity_policies": [policy] }))
        .start();
    spire.server.register("/go", &selectors_of(&programs.join("go-client")), &[]);
    let url = format!("https://{}/invoices/7", billing.address("inbound"));
    let told = eventually("go-spiffe's call", || {
        let ended = go.run(&["call", &url, &world.id("/billing")]);
        // The agent hears of new entries a moment later.
        let is_early = ended.err.contains("no identity issued");
        (!is_early).then(|| serde_json::from_str::<Value>(&ended.good()).unwrap())
    });
    assert_eq!(told["status"], 200, "{told}");

    let server = go.start(&world.folder, &["serve", &world.id("/shop")]);
    let address = listening(&server);
    spire.server.register("/shop", &selectors_of(&program_of(&world, "/shop")), &[]);
    let shop = caller(&world, &address, &world.id("/go"))
        .program(&program_of(&world, "/shop"))
        .on(&spire, "/shop")
        .start();
    let answer = send(shop.address("outbound"), "GET", "/cart", &[], "").await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.json(), json!({ "peer": world.id("/shop"), "path": "/cart" }));
}

#[test]
fn py_spiffe_and_go_spiffe_see_on_our_issuer_what_they_see_on_spire() {
    let Some(programs) = programs() else { return };
    let spire = Spire::start(&programs, DOMAIN);
    let world = World::of(DOMAIN);
    let _issuer = issuer(&world, &json!([entry(&world, "/shop", 3600)])).start();
    spire.server.register("/shop", &[format!("unix:uid:{}", uid())], &[]);
    let shape = |told: &Value| {
        let svid = told["svids"][0].as_object().unwrap();
        let fields: Vec<String> = svid.keys().cloned().collect();
        (ids(told).join(" "), fields, told["bundles"].clone())
    };
    let on_ours = Client::both(&programs, &address(&world));
    let on_spire = Client::both(&programs, &spire.agent.address());
    for (ours, theirs) in on_ours.iter().zip(&on_spire) {
        let told = eventually("an SVID of SPIRE", || {
            let ended = theirs.run(&["x509"]);
            (ended.code == Some(0)).then(|| serde_json::from_str::<Value>(&ended.out).unwrap())
        });
        assert_eq!(shape(&ours.ask(&["x509"])), shape(&told), "{}", ours.name);
    }
}
