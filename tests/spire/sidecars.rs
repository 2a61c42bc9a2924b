//! Sidecars whose identity is SPIRE's: issued, renewed, under another authority, taken away, and without SPIRE for a while.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use wardgate::identity::{Identity, Svid, TrustBundle, TrustBundles};
use wardgate::mtls::Alpn;

use crate::programs::programs;
use crate::spire::{OnSpire, Server, Spire, program_of, selectors_of};
use crate::world::{
    App, Connection, Part, Peer, Process, World, allow, eventually_async, get, send, soon,
};

const DOMAIN: &str = "shop.test";

/// The sidecars of /shop and /billing on one agent, and an app behind /billing.
struct Mesh {
    shop: Process,
    billing: Process,
    entries: Entries,
    app: App,
    world: World,
    spire: Spire,
}

struct Entries {
    billing: String,
}

impl Mesh {
    /// Both registered with these further arguments of `entry create`.
    fn start(spire: Spire, more: &[&str]) -> Self {
        let world = World::of(DOMAIN);
        let app = App::echo("app");
        register(&spire.server, &world, "/shop", more);
        let entries = Entries { billing: register(&spire.server, &world, "/billing", more) };
        let billing = billing(&world, &spire, &app).start();
        let shop = shop(&world, &spire, &billing).start();
        Self { shop, billing, entries, app, world, spire }
    }

    /// One request through both sidecars.
    async fn ask(&self) -> u16 {
        send(self.shop.address("outbound"), "GET", "/", &[], "").await.status
    }

    /// A caller with an SVID that SPIRE's operator minted.
    fn minted(&self, path: &str) -> Peer {
        Peer::with(minted(&self.spire.server, path))
    }
}

fn register(server: &Server, world: &World, path: &str, more: &[&str]) -> String {
    server.register(path, &selectors_of(&program_of(world, path)), more)
}

fn billing<'w>(world: &'w World, spire: &Spire, app: &App) -> Part<'w> {
    let callers = [world.id("/shop"), world.id("/operator")];
    let callers: Vec<&str> = callers.iter().map(String::as_str).collect();
    world
        .sidecar("/billing")
        .program(&program_of(world, "/billing"))
        .on(spire, "/billing")
        .app(app)
        .set("status", &json!("127.0.0.1:0"))
        .resources(&json!({
            "identity_policies": [allow("callers", &[&world.id("/billing")], &callers)],
        }))
}

fn shop<'w>(world: &'w World, spire: &Spire, billing: &Process) -> Part<'w> {
    world.sidecar("/shop").program(&program_of(world, "/shop")).on(spire, "/shop").resources(
        &json!({
            "routes": [{
                "id": "b", "uri": "/*", "workload_selector": { "listener": "outbound" },
                "upstream": {
                    "nodes": { billing.address("inbound").to_string(): 1 },
                    "tls": { "identity": "svid", "spiffe_ids": [world.id("/billing")] },
                },
            }],
        }),
    )
}

fn minted(server: &Server, path: &str) -> Identity {
    let folder = server.mint(path);
    let read = |name: &str| std::fs::read(folder.join(name)).unwrap();
    let svid = Svid::from_pem(&read("svid.pem"), &read("key.pem")).unwrap();
    let domain = server.domain.parse().unwrap();
    let bundle = TrustBundle::from_pem(domain, server.bundle("pem").as_bytes()).unwrap();
    Identity::new(svid, [bundle].into_iter().collect::<TrustBundles>())
}

fn events(process: &Process, event: &str) -> usize {
    let is_it = |record: &&Value| record["type"] == "identity" && record["event"] == event;
    process.audit().iter().filter(is_it).count()
}

/// The certificates with which callers have come in.
fn serials(process: &Process) -> BTreeSet<String> {
    let serial = |record: Value| Some(record.pointer("/src/cert/serial")?.as_str()?.to_owned());
    process.audit().into_iter().filter_map(serial).collect()
}

/// Does nobody come in any more? A handshake that ends well for the caller may still be refused after it.
async fn is_closed(peer: &Peer, sidecar: &Process) -> Option<()> {
    let Ok(stream) = peer.stream(sidecar, Alpn::Http1).await else { return Some(()) };
    let Ok(mut connection) = Connection::over(stream).await else { return Some(()) };
    connection.try_send("GET", "/", &[], "").await.is_err().then_some(())
}

/// Waits until an open connection takes no further request.
async fn ends(mut connection: Connection) {
    let ending = async {
        while connection.try_send("GET", "/", &[], "").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    soon("the end of an open connection", ending).await;
}

#[tokio::test]
async fn sidecars_on_spire_talk_to_each_other_with_its_svids() {
    let Some(programs) = programs() else { return };
    let mesh = Mesh::start(Spire::start(&programs, DOMAIN), &[]);
    let answer = get(mesh.shop.address("outbound"), "/invoices/7").await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let caller = answer.json()["headers"]["x-forwarded-client-cert"].to_string();
    assert!(caller.contains(&mesh.world.id("/shop")), "{caller}");
    assert_eq!(mesh.app.requests(), 1);
    let record = mesh.billing.record_with("/event", &json!("first"));
    assert_eq!(record["spiffe_id"], json!(mesh.world.id("/billing")));
    assert_eq!(record["trust_domains"], json!(DOMAIN), "{record}");
}

#[tokio::test]
async fn a_workload_that_spire_does_not_know_waits_and_comes_up_when_it_is_registered() {
    let Some(programs) = programs() else { return };
    let spire = Spire::start(&programs, DOMAIN);
    let world = World::of(DOMAIN);
    let app = App::echo("app");
    let billing = billing(&world, &spire, &app);
    let ended = world
        .sidecar("/early")
        .on(&spire, "/early")
        .resources(&json!({}))
        .set("identity.first_within_seconds", &json!(1))
        .fails();
    assert!(ended.err.contains("PermissionDenied: no identity issued"), "{}", ended.err);

    let billing = billing.launch();
    billing.logs("waiting for an identity");
    register(&spire.server, &world, "/billing", &[]);
    billing.wait_ready();
    let operator = Peer::with(minted(&spire.server, "/operator"));
    assert_eq!(operator.get(&billing, "/").await.status, 200);
}

#[tokio::test]
async fn svids_that_spire_renews_come_into_use_and_fail_no_request() {
    let Some(programs) = programs() else { return };
    // SPIRE dates an SVID ten seconds back and renews it at half of the whole: about every three seconds.
    let mesh = Mesh::start(Spire::start(&programs, DOMAIN), &["-x509SVIDTTL", "16"]);
    let begun = Instant::now();
    let mut served = 0;
    while serials(&mesh.billing).len() < 3 || events(&mesh.billing, "rotated") < 2 {
        assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", serials(&mesh.billing));
        for _ in 0..20 {
            assert_eq!(mesh.ask().await, 200, "after {served} requests");
            served += 1;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(mesh.app.requests(), served);
    assert_eq!(events(&mesh.billing, "withdrawn"), 0);
}

#[tokio::test]
async fn another_authority_takes_over_without_a_failed_request_and_the_old_one_is_trusted_no_more()
{
    let Some(programs) = programs() else { return };
    let mesh = Mesh::start(Spire::start(&programs, DOMAIN), &[]);
    let server = &mesh.spire.server;
    let operator = mesh.minted("/operator");
    let mut open = operator.connect(&mesh.billing).await;
    assert_eq!(open.get("/").await.status, 200);
    let first = serials(&mesh.billing);

    let (old, _) = server.rotate_authority();
    eventually_async("both authorities in billing's bundle", || async {
        assert_eq!(mesh.ask().await, 200);
        (events(&mesh.billing, "bundle_changed") > 0).then_some(())
    })
    .await;
    assert_eq!(operator.get(&mesh.billing, "/").await.status, 200, "both count");

    server.taint(&old);
    eventually_async("SVIDs of the new authority on both sides", || async {
        assert_eq!(mesh.ask().await, 200);
        let rotated = events(&mesh.billing, "rotated") > 0 && events(&mesh.shop, "rotated") > 0;
        (rotated && serials(&mesh.billing).difference(&first).count() > 0).then_some(())
    })
    .await;

    server.revoke(&old);
    eventually_async("the end of the old authority", || async {
        assert_eq!(mesh.ask().await, 200);
        is_closed(&operator, &mesh.billing).await
    })
    .await;
    ends(open).await;
    let new = mesh.minted("/operator");
    assert_eq!(new.get(&mesh.billing, "/").await.status, 200, "the same caller, signed anew");
    assert_eq!(mesh.ask().await, 200);
}

#[tokio::test]
async fn an_entry_that_is_deleted_takes_the_identity_and_a_new_one_gives_it_back() {
    let Some(programs) = programs() else { return };
    let mesh = Mesh::start(Spire::start(&programs, DOMAIN), &[]);
    let operator = mesh.minted("/operator");
    let mut open = operator.connect(&mesh.billing).await;
    assert_eq!(open.get("/").await.status, 200);
    let status = mesh.billing.address("status");
    assert_eq!(get(status, "/healthz/ready").await.status, 200);

    mesh.spire.server.delete(&mesh.entries.billing);
    mesh.billing.record_with("/event", &json!("withdrawn"));
    eventually_async("nobody comes in any more", || is_closed(&operator, &mesh.billing)).await;
    ends(open).await;
    assert_eq!(get(status, "/healthz/ready").await.status, 503);

    register(&mesh.spire.server, &mesh.world, "/billing", &[]);
    mesh.billing.record_with("/event", &json!("restored"));
    assert_eq!(operator.get(&mesh.billing, "/").await.status, 200);
    assert_eq!(get(status, "/healthz/ready").await.status, 200);
}

#[tokio::test]
async fn an_svid_that_is_missing_among_others_is_used_no_more() {
    let Some(programs) = programs() else { return };
    let spire = Spire::start(&programs, DOMAIN);
    let world = World::of(DOMAIN);
    let app = App::echo("app");
    // One program with two identities, as SPIRE gives both to whoever fits both entries.
    let both = selectors_of(&program_of(&world, "/billing"));
    let entry = spire.server.register("/billing", &both, &[]);
    spire.server.register("/other", &both, &[]);
    let billing = billing(&world, &spire, &app).start();
    let operator = Peer::with(minted(&spire.server, "/operator"));
    assert_eq!(operator.get(&billing, "/").await.status, 200);

    spire.server.delete(&entry);
    billing.record_with("/event", &json!("withdrawn"));
    eventually_async("nobody comes in any more", || is_closed(&operator, &billing)).await;
    billing.logs("/other");
}

#[tokio::test]
async fn a_process_keeps_its_spiffe_id_when_spire_puts_another_in_its_place() {
    let Some(programs) = programs() else { return };
    let spire = Spire::start(&programs, DOMAIN);
    let world = World::of(DOMAIN);
    let app = App::echo("app");
    let selectors = selectors_of(&program_of(&world, "/billing"));
    let entry = spire.server.register("/billing", &selectors, &[]);
    let mut part = billing(&world, &spire, &app);
    part.settings["identity"].as_object_mut().unwrap().remove("spiffe_id");
    let billing = part.start();
    let operator = Peer::with(minted(&spire.server, "/operator"));
    assert_eq!(operator.get(&billing, "/").await.status, 200, "the default SVID");

    spire.server.register("/other", &selectors, &[]);
    spire.server.delete(&entry);
    billing.record_with("/event", &json!("withdrawn"));
    assert!(billing.audit().iter().all(|record| record["spiffe_id"] != json!(world.id("/other"))));
}

#[tokio::test]
async fn a_hint_chooses_among_several_identities() {
    let Some(programs) = programs() else { return };
    let spire = Spire::start(&programs, DOMAIN);
    let world = World::of(DOMAIN);
    let app = App::echo("app");
    let both = selectors_of(&program_of(&world, "/billing"));
    spire.server.register("/external", &both, &["-hint", "external"]);
    spire.server.register("/billing", &both, &["-hint", "internal"]);
    let mut part = billing(&world, &spire, &app).set("identity.hint", &json!("internal"));
    part.settings["identity"].as_object_mut().unwrap().remove("spiffe_id");
    let process = part.start();
    let operator = Peer::with(minted(&spire.server, "/operator"));
    assert_eq!(operator.get(&process, "/").await.status, 200);

    let ended = part
        .named("none")
        .set("identity.hint", &json!("nobody"))
        .set("identity.first_within_seconds", &json!(2))
        .fails();
    assert!(ended.err.contains("no SVID for hint \"nobody\""), "{}", ended.err);
}

#[tokio::test]
async fn an_agent_that_restarts_is_noticed_by_nobody() {
    let Some(programs) = programs() else { return };
    let mut mesh = Mesh::start(Spire::start(&programs, DOMAIN), &["-x509SVIDTTL", "40"]);
    for crash in [false, true] {
        if crash {
            mesh.spire.agent.kill();
        } else {
            mesh.spire.agent.stop();
        }
        mesh.billing.logs("no stream of the Workload API");
        for _ in 0..50 {
            assert_eq!(mesh.ask().await, 200, "while the agent is away");
        }
        let before = (events(&mesh.billing, "rotated"), events(&mesh.shop, "rotated"));
        mesh.spire.agent.resume();
        eventually_async("renewals from the agent that came back", || async {
            assert_eq!(mesh.ask().await, 200);
            let after = (events(&mesh.billing, "rotated"), events(&mesh.shop, "rotated"));
            (after.0 > before.0 && after.1 > before.1).then_some(())
        })
        .await;
    }
    for part in [&mesh.billing, &mesh.shop] {
        assert_eq!(events(part, "withdrawn"), 0, "{}", part.name);
    }
}

#[tokio::test]
async fn a_server_that_is_away_stops_no_traffic_and_renewal_goes_on_when_it_is_back() {
    let Some(programs) = programs() else { return };
    let mut mesh = Mesh::start(Spire::start(&programs, DOMAIN), &["-x509SVIDTTL", "40"]);
    mesh.spire.server.stop();
    let mut away = 0;
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(3) {
        assert_eq!(mesh.ask().await, 200, "while the server is away");
        away += 1;
    }
    assert!(away > 0);
    let before = events(&mesh.billing, "rotated");
    mesh.spire.server.resume();
    eventually_async("a renewal from the server that came back", || async {
        assert_eq!(mesh.ask().await, 200);
        (events(&mesh.billing, "rotated") > before).then_some(())
    })
    .await;
    assert_eq!(events(&mesh.billing, "withdrawn"), 0);
}

#[tokio::test]
async fn an_svid_that_is_over_because_spire_is_away_serves_nobody() {
    let Some(programs) = programs() else { return };
    let mut mesh = Mesh::start(Spire::start(&programs, DOMAIN), &["-x509SVIDTTL", "16"]);
    let operator = mesh.minted("/operator");
    assert_eq!(operator.get(&mesh.billing, "/").await.status, 200);
    mesh.spire.agent.kill();
    eventually_async("nobody comes in any more", || is_closed(&operator, &mesh.billing)).await;
}
