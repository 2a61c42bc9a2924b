//! Identities as workloads get them: attested, over the SPIFFE Workload API, renewed in time, and gone when they are over.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use wardgate::mtls::Alpn;

use crate::world::{App, Connection, Part, Peer, Process, World, allow, eventually_async, send};

/// The user that this test, and everything it starts, runs as.
fn uid() -> u32 {
    rustix::process::getuid().as_raw()
}

fn socket(world: &World) -> PathBuf {
    world.folder.join("workload.sock")
}

/// An issuer on the world's own authority.
fn issuer<'w>(world: &'w World, entries: &Value) -> Part<'w> {
    let issuer =
        json!({ "socket": socket(world), "authority": world.authority(), "entries": entries });
    world.part("issuer", "/wardgate/issuer").without("identity").set("issuer", &issuer)
}

fn entry(world: &World, path: &str) -> Value {
    json!({ "spiffe_id": world.id(path), "selectors": [format!("unix:uid:{}", uid())] })
}

trait Attested {
    /// With its identity from the Workload API.
    fn attested(self, world: &World, path: &str) -> Self;
}

impl Attested for Part<'_> {
    fn attested(self, world: &World, path: &str) -> Self {
        let source = json!({
            "source": "workload_api",
            "socket": format!("unix:{}", socket(world).display()),
            "spiffe_id": world.id(path),
            "first_within_seconds": 20,
        });
        self.set("identity", &source)
    }
}

fn billing<'w>(world: &'w World, app: &App) -> Part<'w> {
    let policy = allow("p", &[&world.id("/billing")], &[&world.id("/shop")]);
    world.sidecar("/billing").app(app).resources(&json!({ "identity_policies": [policy] }))
}

/// A sidecar whose workload calls billing.
fn shop<'w>(world: &'w World, billing: &Process) -> Part<'w> {
    world.sidecar("/shop").resources(&json!({
        "routes": [{
            "id": "b", "uri": "/*", "workload_selector": { "listener": "outbound" },
            "upstream": {
                "nodes": { billing.address("inbound").to_string(): 1 },
                "tls": { "identity": "svid", "spiffe_ids": [world.id("/billing")] },
            },
        }],
    }))
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

#[tokio::test]
async fn sidecars_take_their_identities_from_the_workload_api() {
    let world = World::new();
    let entries = json!([entry(&world, "/billing"), entry(&world, "/shop")]);
    let _issuer = issuer(&world, &entries).start();
    let app = App::echo("app");
    let billing = billing(&world, &app).attested(&world, "/billing").start();
    let shop = shop(&world, &billing).attested(&world, "/shop").start();
    let answer = send(shop.address("outbound"), "GET", "/", &[], "").await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let record = billing.record_with("/type", &json!("identity"));
    assert_eq!(record["spiffe_id"], json!(world.id("/billing")));
    // Nobody but the owner of the world's folder reads the socket's files; no key of theirs lies on a disk.
    for part in ["state-billing", "state-shop"] {
        let names: Vec<String> = std::fs::read_dir(world.folder.join(part))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .collect();
        assert!(!names.iter().any(|name| name.contains("key")), "{names:?}");
    }
}

#[tokio::test]
async fn who_is_not_registered_gets_no_identity_and_a_clear_word() {
    let world = World::new();
    let mut other = entry(&world, "/billing");
    other["selectors"] = json!([format!("unix:uid:{}", uid() + 1)]);
    let mut path = entry(&world, "/billing");
    path["selectors"] = json!([format!("unix:uid:{}", uid()), "unix:path:/usr/bin/true"]);
    let _issuer = issuer(&world, &json!([other, path])).start();
    let app = App::echo("app");
    let ended = billing(&world, &app)
        .attested(&world, "/billing")
        .set("identity.first_within_seconds", &json!(1))
        .fails();
    assert_eq!(ended.code, Some(1));
    assert!(ended.err.contains("there is no identity to start with"), "{}", ended.err);
    assert!(ended.err.contains("workload.sock"), "{}", ended.err);
}

#[tokio::test]
async fn the_program_that_runs_can_be_part_of_the_attestation() {
    let world = World::new();
    let mut exact = entry(&world, "/billing");
    let binary = std::fs::canonicalize(env!("CARGO_BIN_EXE_wardgate")).unwrap();
    exact["selectors"] =
        json!([format!("unix:uid:{}", uid()), format!("unix:path:{}", binary.display())]);
    let _issuer = issuer(&world, &json!([exact])).start();
    let app = App::echo("app");
    let mut billing = billing(&world, &app).attested(&world, "/billing");
    if !may_trace() {
        // Only then the issuer sees the program of a process of its own user.
        billing = billing.env("WARDGATE_ALLOW_CORE_DUMPS", "1");
    }
    let billing = billing.start();
    assert_eq!(world.peer("/shop").get(&billing, "/").await.status, 200);
}

/// Have we, and so the issuer, CAP_SYS_PTRACE (number 19)?
fn may_trace() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap();
    u64::from_str_radix(effective.trim(), 16).unwrap() >> 19 & 1 == 1
}

#[tokio::test]
async fn entries_of_the_admin_api_reach_the_issuer_and_taking_them_away_takes_the_identity() {
    let world = World::new();
    let control = world.control().start();
    let admin = control.admin();
    let issuer = issuer(&world, &json!([])).fed_by(&control).start();
    let app = App::echo("app");
    let billing = billing(&world, &app).attested(&world, "/billing").launch();
    billing.logs("waiting");
    let revision = admin.put("/workloads/billing", &entry(&world, "/billing")).await;
    admin.applied(revision, 1).await;
    billing.wait_ready();
    let shop = world.peer("/shop");
    let mut open = shop.connect(&billing).await;
    assert_eq!(open.get("/").await.status, 200);

    admin.delete("/workloads/billing").await;
    billing.record_with("/event", &json!("withdrawn"));
    eventually_async("nobody comes in any more", || is_closed(&shop, &billing)).await;
    let begun = Instant::now();
    while open.try_send("GET", "/", &[], "").await.is_ok() {
        assert!(begun.elapsed() < Duration::from_secs(10), "an open connection outlives its proof");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }

    // A wrong one is refused when it is written.
    let mut foreign = entry(&world, "/billing");
    foreign["selectors"] = json!(["moon:phase:full"]);
    let refused = admin.ask("PUT", "/workloads/w", Some(&foreign)).await;
    assert_eq!(refused.status, 400, "{}", refused.text());
    assert!(refused.text().contains("selectors"), "{}", refused.text());
    drop(issuer);
}

#[tokio::test]
async fn who_is_on_the_deny_list_gets_no_identity_until_it_is_taken_off() {
    let world = World::new();
    let control = world.control().start();
    let admin = control.admin();
    let _issuer = issuer(&world, &json!([entry(&world, "/billing")])).fed_by(&control).start();
    let app = App::echo("app");
    // No feed of its own: whatever it learns, it learns from its issuer.
    let billing = billing(&world, &app).attested(&world, "/billing").start();
    assert_eq!(world.peer("/shop").get(&billing, "/").await.status, 200);

    let denial = json!({ "spiffe_id": world.id("/billing"), "reason": "stolen" });
    admin.applied(admin.put("/revocations/r", &denial).await, 1).await;
    billing.record_with("/event", &json!("withdrawn"));
    let shop = world.peer("/shop");
    eventually_async("nobody comes in any more", || is_closed(&shop, &billing)).await;

    admin.applied(admin.delete("/revocations/r").await, 1).await;
    eventually_async("it is there again", || async {
        let closed = is_closed(&shop, &billing).await.is_some();
        (!closed).then_some(())
    })
    .await;
}

#[tokio::test]
async fn renewal_under_load_fails_no_request() {
    let world = World::new();
    let short = |path: &str| {
        let mut entry = entry(&world, path);
        entry["ttl"] = json!(4);
        entry
    };
    let _issuer = issuer(&world, &json!([short("/billing"), short("/shop")])).start();
    let app = App::echo("app");
    let billing = billing(&world, &app).attested(&world, "/billing").start();
    let shop = shop(&world, &billing).attested(&world, "/shop").start();
    let outbound = shop.address("outbound");
    let begun = Instant::now();
    let mut served = 0;
    // At least two renewals on both sides.
    while serials(&billing).len() < 3 {
        assert!(begun.elapsed() < Duration::from_secs(25), "{:?}", serials(&billing));
        for _ in 0..20 {
            let answer = send(outbound, "GET", "/", &[], "").await;
            assert_eq!(answer.status, 200, "after {served} requests: {}", answer.text());
            served += 1;
        }
    }
    let rotated = |record: &Value| record["type"] == "identity" && record["event"] == "rotated";
    assert!(billing.audit().iter().filter(|record| rotated(record)).count() >= 1);
    assert_eq!(app.requests(), served);
}

#[tokio::test]
async fn the_issuer_going_away_and_coming_back_is_noticed_by_nobody_in_time() {
    let world = World::new();
    let mut short = entry(&world, "/billing");
    short["ttl"] = json!(8);
    let part = issuer(&world, &json!([short]));
    let mut first = part.start();
    let app = App::echo("app");
    let billing = billing(&world, &app).attested(&world, "/billing").start();
    let shop = world.peer("/shop");
    let rotations = || billing.audit().iter().filter(|record| record["event"] == "rotated").count();
    first.kill();
    assert!(socket(&world).exists(), "a crash leaves the socket behind");
    assert_eq!(shop.get(&billing, "/").await.status, 200);
    let _second = part.start();
    let before = rotations();
    eventually_async("a renewal from the issuer that came back", || async {
        assert_eq!(shop.get(&billing, "/").await.status, 200);
        (rotations() > before).then_some(())
    })
    .await;
}

#[tokio::test]
async fn an_identity_that_is_over_serves_nobody_and_its_connections_end() {
    let world = World::new();
    let mut short = entry(&world, "/billing");
    short["ttl"] = json!(3);
    let mut issuer = issuer(&world, &json!([short])).start();
    let app = App::echo("app");
    let billing = billing(&world, &app).attested(&world, "/billing").start();
    let shop = world.peer("/shop");
    issuer.kill();
    assert_eq!(shop.get(&billing, "/").await.status, 200);
    eventually_async("the end of billing's identity", || is_closed(&shop, &billing)).await;
}

#[tokio::test]
async fn a_connection_does_not_outlive_the_callers_certificate() {
    let world = World::new();
    let app = App::echo("app");
    let billing = billing(&world, &app).start();
    let folder = world.folder.join("id-shop");
    world.issue("/shop", &folder, 2);
    let mut connection = world.peer("/shop").connect(&billing).await;
    assert_eq!(connection.get("/").await.status, 200);
    let begun = Instant::now();
    loop {
        match connection.try_send("GET", "/", &[], "").await {
            Ok(answer) => assert_eq!(answer.status, 200, "{}", answer.text()),
            Err(_) => break,
        }
        assert!(begun.elapsed() < Duration::from_secs(10), "it goes on and on");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn files_that_are_replaced_come_into_use_without_a_restart() {
    let world = World::new();
    let app = App::echo("app");
    let billing = billing(&world, &app).start();
    let shop = shop(&world, &billing).start();
    let outbound = shop.address("outbound");
    let once = async || {
        let answer = send(outbound, "GET", "/", &[], "").await;
        assert_eq!(answer.status, 200, "{}", answer.text());
    };
    once().await;
    world.issue("/shop", &world.files("/shop"), 3600);
    world.issue("/billing", &world.files("/billing"), 3600);
    for process in [&shop, &billing] {
        process.record_with("/event", &json!("rotated"));
    }
    // The connection that was made before stays good; while it is taken, another one is made.
    once().await;
    assert_eq!(serials(&billing).len(), 1);
    let mut taken = tokio::net::TcpStream::connect(outbound).await.unwrap();
    taken.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\n").await.unwrap();
    eventually_async("the new certificate at work", || async {
        once().await;
        (serials(&billing).len() == 2).then_some(())
    })
    .await;
}

#[test]
fn a_socket_that_somebody_serves_is_not_taken_away() {
    let world = World::new();
    let none = json!([]);
    let _first = issuer(&world, &none).start();
    let ended = issuer(&world, &none).named("second").fails();
    assert!(ended.err.contains("is served by another process"), "{}", ended.err);

    let file = world.folder.join("file");
    std::fs::write(&file, "precious").unwrap();
    let ended = issuer(&world, &none).named("third").set("issuer.socket", &json!(file)).fails();
    assert!(ended.err.contains("is not a socket"), "{}", ended.err);
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "precious");
}

#[test]
fn entries_that_give_too_much_away_are_refused_at_the_start_by_field() {
    let world = World::new();
    for (field, value, says) in [
        ("spiffe_id", json!("spiffe://elsewhere.test/a"), "spiffe_id"),
        ("spiffe_id", json!("billing"), "spiffe_id"),
        ("selectors", json!([]), "selectors"),
        ("selectors", json!(["moon:phase:full"]), "selectors"),
        ("ttl", json!(0), "ttl"),
        ("ttl", json!(86_401), "ttl"),
    ] {
        let mut bad = entry(&world, "/billing");
        bad[field] = value;
        let ended = issuer(&world, &json!([bad])).fails();
        assert!(ended.err.contains(says), "{bad}: {}", ended.err);
    }
}
