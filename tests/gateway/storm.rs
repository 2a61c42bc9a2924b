//! A storm of changes: routes, upstreams, nodes, certificates, plugins, policies and identities change all the time, and no
//! request fails.
//!
//! `benches/storm/run.sh` runs the same for longer: it sets the variables below.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustls_pki_types::pem::PemObject as _;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::load::{Place, Seen, http1, http2};
use crate::tls_edge::Certificate;
use crate::world::{Admin, App, World, allow};

/// How hard and how long.
struct Plan {
    seconds: u64,
    /// Changes a second, of all kinds together.
    changes: u32,
    /// Requests a second, of all ways together.
    rate: u32,
}

impl Plan {
    fn from_environment() -> Self {
        let number = |name: &str, or: u64| {
            std::env::var(name).map_or(or, |text| text.parse().expect("a number"))
        };
        Self {
            seconds: number("WARDGATE_STORM_SECONDS", 8),
            changes: number("WARDGATE_STORM_CHANGES", 50).try_into().unwrap(),
            rate: number("WARDGATE_STORM_RATE", 150).try_into().unwrap(),
        }
    }
}

/// The sorts of changes; each goes on by itself.
#[derive(Clone, Copy, Debug)]
enum Sort {
    Routes,
    Upstreams,
    Certificates,
    Plugins,
    Policies,
}

const SORTS: [Sort; 5] =
    [Sort::Routes, Sort::Upstreams, Sort::Certificates, Sort::Plugins, Sort::Policies];

/// Who write changes of a sort at the same time.
const WRITERS: u32 = 2;

/// What the changes are about.
struct Scene {
    admin: Admin,
    apps: [App; 3],
    certificates: [Certificate; 2],
    billing: String,
    ingress: String,
    /// The sidecar's door.
    inbound: std::net::SocketAddr,
    made: AtomicU64,
    newest: AtomicU64,
}

const NAME: &str = "edge.test";

impl Scene {
    async fn put(&self, path: &str, value: &Value) {
        let revision = self.admin.put(path, value).await;
        self.made.fetch_add(1, Ordering::Relaxed);
        self.newest.fetch_max(revision, Ordering::Relaxed);
    }

    async fn delete(&self, path: &str) {
        let revision = self.admin.delete(path).await;
        self.made.fetch_add(1, Ordering::Relaxed);
        self.newest.fetch_max(revision, Ordering::Relaxed);
    }

    fn route(&self, number: u64) -> Value {
        json!({
            "uri": "/*", "name": format!("version-{number}"), "priority": number % 5,
            "methods": if number.is_multiple_of(2) { json!(["GET", "POST"]) } else { json!(["GET", "POST", "PUT"]) },
            "upstream_id": "app", "plugin_config_id": "common",
        })
    }

    /// Nodes come, go and change their weights; one that serves is always among them.
    fn upstream(&self, number: u64) -> Value {
        let [a, b, c] = [0, 1, 2].map(|at| self.apps[at].address);
        let nodes = match number % 4 {
            0 => json!({ a.to_string(): 1 }),
            1 => json!({ a.to_string(): 1, b.to_string(): 3 }),
            2 => json!([
                { "host": "127.0.0.1", "port": c.port(), "weight": 1, "priority": 1 },
                { "host": "127.0.0.1", "port": a.port(), "weight": 1, "priority": 0 },
            ]),
            _ => json!({ b.to_string(): 2, c.to_string(): 1 }),
        };
        json!({ "type": "roundrobin", "nodes": nodes, "retries": number % 3 })
    }

    /// The way to the sidecar behind the same ingress.
    fn mesh_upstream(&self, number: u64) -> Value {
        json!({
            "desc": format!("version {number}"), "nodes": { self.inbound.to_string(): 1 + number % 3 },
            "tls": { "identity": "svid", "spiffe_ids": [self.billing] },
        })
    }

    fn plugins(&self, number: u64) -> Value {
        let plugins = match number % 3 {
            0 => json!({ "request-id": {} }),
            1 => {
                json!({ "request-id": { "header_name": "x-other" }, "ip-restriction": { "whitelist": ["127.0.0.0/8"] } })
            }
            _ => {
                json!({ "limit-count": { "count": 1_000_000_000, "time_window": 60, "rejected_code": 429 } })
            }
        };
        json!({ "plugins": plugins })
    }

    fn policy(&self, number: u64) -> Value {
        let others: Vec<String> =
            (0..number % 4).map(|at| format!("{}-{at}", self.billing)).collect();
        let mut principals: Vec<&str> = others.iter().map(String::as_str).collect();
        principals.push(&self.ingress);
        let mut policy = allow("p", &[&self.billing], &principals);
        policy.as_object_mut().unwrap().remove("id");
        policy
    }

    /// One change.
    async fn change(&self, sort: Sort, writer: u64, number: u64) {
        // Each writer has spare resources of its own.
        let spare = writer * 10 + number % 10;
        match (sort, number % 3) {
            (Sort::Routes, 0) => self.put("/routes/main", &self.route(number)).await,
            (Sort::Routes, 1) => {
                let mut route = self.route(number);
                route["uri"] = json!(format!("/other/{spare}/*"));
                self.put(&format!("/routes/spare-{spare}"), &route).await;
            }
            (Sort::Routes, _) => {
                let before = writer * 10 + (number - 1) % 10;
                self.delete(&format!("/routes/spare-{before}")).await;
            }
            (Sort::Upstreams, 0 | 1) => self.put("/upstreams/app", &self.upstream(number)).await,
            (Sort::Upstreams, _) => {
                self.put("/upstreams/mesh", &self.mesh_upstream(number)).await;
            }
            (Sort::Certificates, 0 | 1) => {
                let certificate = &self.certificates[(number / 2 % 2) as usize];
                self.put("/ssls/edge", &certificate.resource(&[NAME])).await;
            }
            (Sort::Certificates, _) => {
                let other = format!("other-{spare}.test");
                let certificate = self.certificates[0].resource(&[&other]);
                self.put(&format!("/ssls/other-{spare}"), &certificate).await;
            }
            (Sort::Plugins, 0 | 1) => {
                self.put("/plugin_configs/common", &self.plugins(number)).await;
            }
            (Sort::Plugins, _) => {
                let count = json!({ "plugins": { "response-rewrite": { "headers": { "set": { "x-number": number.to_string() } } } } });
                self.put("/global_rules/everywhere", &count).await;
            }
            (Sort::Policies, 0 | 1) => {
                self.put("/identity_policies/billing", &self.policy(number)).await;
            }
            (Sort::Policies, _) => {
                let consumer = json!({
                    "username": format!("guest{spare}"),
                    "plugins": { "key-auth": { "key": format!("key-{spare}-{number}") } },
                });
                self.put("/consumers", &consumer).await;
            }
        }
    }

    /// Changes of one sort at a pace, until it is over.
    async fn storm(&self, sort: Sort, writer: u64, period: Duration, over: &Seen) {
        let mut due = Instant::now() + period.mul_f64(fastrand::f64());
        for number in 0.. {
            tokio::time::sleep_until(due).await;
            if over.is_enough() {
                return;
            }
            self.change(sort, writer, number).await;
            due += period;
        }
    }
}

fn trusted(certificates: &[Certificate]) -> Arc<rustls::RootCertStore> {
    let mut store = rustls::RootCertStore::empty();
    for certificate in certificates {
        let pem = certificate.chain().as_bytes();
        store.add(rustls_pki_types::CertificateDer::from_pem_slice(pem).unwrap()).unwrap();
    }
    Arc::new(store)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_fails_while_everything_changes() {
    let plan = Plan::from_environment();
    let world = World::new();
    let control = world.control().start();
    let billing = {
        let app = App::echo("billing");
        let process = world.sidecar("/billing").app(&app).fed_by(&control).start();
        (process, app)
    };
    let ingress = world
        .ingress()
        .set("ingress.https", &json!("127.0.0.1:0"))
        .set("workers", &json!(2))
        .fed_by(&control)
        .start();
    let scene = Arc::new(Scene {
        admin: control.admin(),
        apps: [App::echo("a"), App::echo("b"), App::echo("c")],
        certificates: [Certificate::of(&[NAME]), Certificate::of(&[NAME])],
        billing: world.id("/billing"),
        ingress: world.id("/wardgate/ingress"),
        inbound: billing.0.address("inbound"),
        made: AtomicU64::new(0),
        newest: AtomicU64::new(0),
    });
    scene.put("/plugin_configs/common", &scene.plugins(0)).await;
    scene.put("/upstreams/app", &scene.upstream(0)).await;
    scene.put("/upstreams/mesh", &scene.mesh_upstream(0)).await;
    scene.put("/routes/main", &scene.route(0)).await;
    let through =
        json!({ "uri": "/*", "hosts": ["billing.test"], "upstream_id": "mesh", "priority": 100 });
    scene.put("/routes/mesh", &through).await;
    scene.put("/identity_policies/billing", &scene.policy(0)).await;
    scene.put("/ssls/edge", &scene.certificates[0].resource(&[NAME])).await;
    scene.admin.applied(scene.newest.load(Ordering::Relaxed), 2).await;

    let seen = Arc::<Seen>::default();
    let plain = ingress.address_of("ingress", 0);
    let public = Place::Public {
        address: ingress.address_of("ingress", 1),
        name: NAME,
        trusted: trusted(&scene.certificates),
    };
    let mesh = Place::Named { address: plain, name: "billing.test" };
    // As many clients for each way; a new connection with its handshake costs a debug build much, so these come seldom.
    let clients_a_way = (plan.rate / 50).max(1);
    // Of three places two kept ways each, and one with new connections at a quarter of their pace.
    let period = Duration::from_secs(1) * clients_a_way * 27 / (4 * plan.rate);
    let mut clients = Vec::new();
    for _ in 0..clients_a_way {
        for place in [Place::Plain(plain), public.clone(), mesh.clone()] {
            let kept = http1(place.clone(), true, Some(period), seen.clone());
            clients.push(wardgate::rt::spawn(kept));
            clients.push(wardgate::rt::spawn(http2(place.clone(), Some(period), seen.clone())));
            let fresh = http1(place, false, Some(period * 4), seen.clone());
            clients.push(wardgate::rt::spawn(fresh));
        }
    }
    seen.more(20).await;

    let began = Instant::now();
    let before = scene.made.load(Ordering::Relaxed);
    let over = Arc::<Seen>::default();
    let storms = u32::try_from(SORTS.len()).unwrap() * WRITERS;
    let each = Duration::from_secs(1) * storms / plan.changes;
    let mut storms = Vec::new();
    for sort in SORTS {
        for writer in 0..u64::from(WRITERS) {
            let (scene, over) = (scene.clone(), over.clone());
            let storm = async move { scene.storm(sort, writer, each, &over).await };
            storms.push(wardgate::rt::spawn(storm));
        }
    }
    // SVIDs rotate as well.
    let mut svids = 0;
    while began.elapsed() < Duration::from_secs(plan.seconds) {
        tokio::time::sleep(Duration::from_secs(2)).await;
        for path in ["/billing", "/wardgate/ingress"] {
            let folder = world.files(path);
            tokio::task::block_in_place(|| world.issue(path, &folder, 3600));
            svids += 1;
        }
    }
    over.that_is_enough();
    for storm in storms {
        storm.await.unwrap();
    }
    let took = began.elapsed();
    scene.admin.applied(scene.newest.load(Ordering::Relaxed), 2).await;
    seen.more(20).await;
    seen.that_is_enough();
    for client in clients {
        client.await.unwrap();
    }
    let made = scene.made.load(Ordering::Relaxed) - before;
    let (lost, latencies) = (seen.lost(), seen.latencies());
    let at = |part: f64| latencies[((latencies.len() - 1) as f64 * part) as usize];
    eprintln!(
        "seconds={:.1} changes={made} ({:.0}/s) svids={svids} requests={} ({:.0}/s) failed={} p50={:?} p99={:?} p999={:?} max={:?}",
        took.as_secs_f64(),
        made as f64 / took.as_secs_f64(),
        seen.answered() + lost.len(),
        seen.answered() as f64 / took.as_secs_f64(),
        lost.len(),
        at(0.5),
        at(0.99),
        at(0.999),
        at(1.0),
    );
    assert!(made > 20, "no storm: {made} changes");
    assert!(lost.is_empty(), "{} failed, the first: {:#?}", lost.len(), &lost[..lost.len().min(5)]);
    assert!(billing.1.requests() > 0, "nothing went through the mesh");
}
