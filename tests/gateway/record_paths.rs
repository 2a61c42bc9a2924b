//! What records tell beside the outcome, and the paths on which a refusal, or a proof that is lost, must be seen: TCP, an upstream
//! that is somebody else, a door that only observes, a span of time that ends under an open connection.

use std::process::Command;
use std::sync::Arc;

use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use wardgate::identity::{Identity, Svid, TrustBundles};
use wardgate::mtls::Alpn;
use wardgate::mtls::MeshStream;
use wardgate::rt::crypto::digest::{SHA256, digest};

use crate::mesh::RawApp;
use crate::world::{
    App, Connection, Peer, Process, World, allow, eventually_async, free_port, get, soon,
};

fn hash_of(text: &str) -> String {
    hex::encode(digest(&SHA256, text.as_bytes()))[..16].to_owned()
}

#[tokio::test]
async fn a_record_tells_what_its_rule_says_who_vouched_for_the_caller_and_how_else_the_path_reads()
{
    let (world, app) = (World::new(), App::echo("billing"));
    let (shop, web) = (world.id("/shop"), world.id("/web"));
    let billing = world
        .sidecar("/billing")
        .app(&app)
        .resources(&json!({ "identity_policies": [
            { "id": "p", "action": "allow", "rules": [
                { "name": "read", "from": { "principals": [shop] }, "to": { "paths": ["/public/**"] } },
                { "name": "some", "mode": { "canary": 99 }, "from": { "principals": [web] } },
            ]},
        ]}))
        .start();
    assert_eq!(world.peer("/shop").get(&billing, "/public/a").await.status, 200);
    let plain = billing.record_with("/path", &json!("/public/a"));
    let rule = format!(
        r#"{{"action":"allow","mode":"enforce","from":{{"principals":["{shop}"]}},"to":{{"paths":["/public/**"]}}}}"#
    );
    assert_eq!(plain["rule_hash"], json!(hash_of(&rule)));
    assert_eq!((&plain["mode"], plain.get("path_readings")), (&json!("enforce"), None));

    // Who vouched: the key that the leaf names, and the bundle that is in force.
    let revision = world.bundle().revision();
    assert_eq!(plain["src"]["cert"]["bundle_revision"], json!(revision));
    let first = billing.record_with("/event", &json!("first"));
    assert_eq!(first["bundle_revisions"], json!(revision), "{first}");
    let leaf = world.files("/shop").join("svid.pem");
    let told = Command::new("openssl")
        .args(["x509", "-noout", "-ext", "authorityKeyIdentifier", "-in", leaf.to_str().unwrap()])
        .output()
        .unwrap();
    let told = String::from_utf8(told.stdout).unwrap().replace(':', "").to_lowercase();
    let key = plain["src"]["cert"]["issuer_ski"].as_str().unwrap();
    assert!(key.len() == 40 && told.contains(key), "{key}: {told}");

    // Read in two ways, and one of them is not allowed.
    let answer = world.peer("/shop").get(&billing, "/public/..%2fadmin").await;
    assert_eq!(answer.status, 403);
    let several = billing.record_with("/denial_id", &json!(answer.denial()));
    assert_eq!(several["reason"], "ambiguous_path");
    let readings = several["path_readings"].as_array().unwrap();
    assert!(readings.contains(&json!("/admin")), "{several}");

    // Of a hundred connections the rule decides for 99.
    eventually_async("a connection for which the rule decides", || async {
        let answer = world.peer("/web").get(&billing, "/by-some").await;
        (answer.status == 200).then_some(())
    })
    .await;
    let some = billing.record("the canary", |record| {
        record["path"] == "/by-some" && record["outcome"] == "allow"
    });
    assert_eq!((&some["mode"], &some["rule"]), (&json!("canary"), &json!("some")));
    let rule =
        format!(r#"{{"action":"allow","mode":{{"canary":99}},"from":{{"principals":["{web}"]}}}}"#);
    assert_eq!(some["rule_hash"], json!(hash_of(&rule)));
}

/// /shop's sidecar, whose outbound route has these nodes and wants /billing behind each.
fn shop(world: &World, nodes: &[&Process], retries: u32) -> Process {
    let nodes: serde_json::Map<String, Value> =
        nodes.iter().map(|node| (node.address("inbound").to_string(), json!(1))).collect();
    world
        .sidecar("/shop")
        .set("decision_log", &json!({ "allows": "each", "connections": "all" }))
        .resources(&json!({ "routes": [{
            "id": "billing", "uri": "/*", "workload_selector": { "listener": "outbound" },
            "upstream": {
                "nodes": nodes, "retries": retries, "keepalive_pool": { "size": 1, "idle_timeout": 0.001, "requests": 1 },
                "tls": { "identity": "svid", "spiffe_ids": [world.id("/billing")] },
            },
        }]}))
        .start()
}

#[tokio::test]
async fn each_try_of_a_request_insists_on_whom_it_is_for_and_who_answered_in_his_place_is_on_record()
 {
    let world = World::new();
    let (good_app, bad_app) = (App::echo("billing"), App::echo("impostor"));
    let callers = |whose: &str| json!({ "identity_policies": [allow("p", &[&world.id(whose)], &[&world.id("/shop")])] });
    let mut billing =
        world.sidecar("/billing").app(&good_app).resources(&callers("/billing")).start();
    let impostor =
        world.sidecar("/impostor").app(&bad_app).resources(&callers("/impostor")).start();
    let shop = shop(&world, &[&impostor, &billing], 1);
    let door = shop.address("outbound");
    for _ in 0..4 {
        let answer = get(door, "/invoices").await;
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    let refused = shop.record_with("/type", &json!("handshake_refused"));
    assert_eq!(
        (&refused["reason"], &refused["side"], &refused["outcome"]),
        (&json!("unexpected_peer"), &json!("originated"), &json!("deny"))
    );
    assert_eq!(
        (
            &refused["dst"]["expected_id"],
            &refused["dst"]["presented_id"],
            &refused["src"]["spiffe_id"]
        ),
        (&json!(world.id("/billing")), &json!(world.id("/impostor")), &json!(world.id("/shop")))
    );
    let serial = world.identity("/impostor").svid.serial.clone();
    assert_eq!(refused["dst"]["cert"]["serial"], json!(serial));
    assert_eq!(refused["upstream"], json!(impostor.address("inbound").to_string()));
    let opened = shop.record("the connection to /billing", |record| {
        record["side"] == "originated" && record["event"] == "open"
    });
    assert_eq!(
        (&opened["dst"]["spiffe_id"], &opened["dst"]["expected_id"]),
        (&json!(world.id("/billing")), &json!(world.id("/billing")))
    );
    assert_eq!(opened["peer_serial"], json!(world.identity("/billing").svid.serial));

    // With nobody else left the request fails; it never goes to whoever is there.
    billing.end();
    assert_eq!(get(door, "/invoices").await.status, 502);
    assert_eq!((bad_app.requests(), good_app.requests()), (0, 4));
}

/// A server that has its own word for what it gets.
fn loud() -> RawApp {
    RawApp::serving(|stream| {
        while !stream.buffer.is_empty() || stream.fill() {
            let loud = std::mem::take(&mut stream.buffer).to_ascii_uppercase();
            stream.send(loud);
        }
    })
}

/// A sidecar before a TCP application, with these resources.
fn database(world: &World, app: &RawApp, port: u16, resources: &Value) -> Process {
    let tcp = json!([{ "name": "db", "listen": format!("127.0.0.1:{port}"), "to": app.address }]);
    world
        .sidecar("/billing")
        .set("sidecar.tcp", &tcp)
        .set("proof", &json!({ "drain_within_seconds": 0, "expiry_drain_within_seconds": 0 }))
        .resources(resources)
        .start()
}

fn everybody(world: &World) -> Value {
    json!({ "id": "p", "action": "allow", "rules": [{ "from": { "principals": [world.id("/**")] } }] })
}

async fn opened(peer: &Peer, database: &Process) -> MeshStream<TcpStream> {
    peer.stream_to(database.address("tcp:db"), &database.id, Alpn::Http1).await.unwrap()
}

/// Does an echo come back?
async fn echoes(stream: &mut MeshStream<TcpStream>) -> bool {
    let said = async {
        stream.write_all(b"a").await?;
        stream.flush().await?;
        stream.read_u8().await
    };
    soon("an echo or the end", said).await.is_ok_and(|byte| byte == b'A')
}

async fn ends(mut stream: MeshStream<TcpStream>) {
    let mut rest = Vec::new();
    let _ = soon("the end", stream.read_to_end(&mut rest)).await;
    assert!(rest.is_empty());
}

#[tokio::test]
async fn a_tcp_connection_ends_with_its_callers_certificate_and_no_further_one_begins() {
    let (world, app, port) = (World::new(), loud(), free_port());
    let resources = json!({ "identity_policies": [everybody(&world)] });
    let database = database(&world, &app, port, &resources);
    let brief = world.folder.join("brief");
    world.issue("/shop", &brief, 5);
    let read = |name: &str| std::fs::read(brief.join(name)).unwrap();
    let svid = Svid::from_pem(&read("svid.pem"), &read("key.pem")).unwrap();
    let serial = svid.serial.clone();
    let bundles = || [world.bundle()].into_iter().collect::<TrustBundles>();
    let shop = Peer::with(Identity::new(svid, bundles()));
    let mut held = opened(&shop, &database).await;
    assert!(echoes(&mut held).await);
    let mut other = opened(&world.peer("/web"), &database).await;
    assert!(echoes(&mut other).await);
    ends(held).await;
    let ended = database.record_with("/event", &json!("forced_close"));
    assert_eq!(
        (&ended["reason"], &ended["peer_serial"], &ended["protocol"]),
        (&json!("peer_expired"), &json!(serial), &json!("tcp"))
    );
    assert!(echoes(&mut other).await, "nobody else is concerned");

    // It is good for the whole of its last second, and a connection of that second ends with it. In TLS 1.3 the client learns of a
    // refusal from the first answer.
    let refused = eventually_async("the certificate is refused", || async {
        let door = database.address("tcp:db");
        if let Ok(mut again) = shop.stream_to(door, &database.id, Alpn::Http1).await {
            echoes(&mut again).await;
        }
        database.audit().into_iter().find(|record| record["reason"] == "expired")
    })
    .await;
    assert_eq!(
        (&refused["type"], &refused["src"]["cert"]["serial"], &refused["dst"]["port"]),
        (&json!("handshake_refused"), &json!(serial), &json!(port))
    );
    assert!(refused["src"]["cert"]["issuer_ski"].is_string(), "{refused}");
    assert!(echoes(&mut other).await, "nobody else is concerned");
}

#[tokio::test]
async fn a_tcp_connection_ends_when_its_caller_is_revoked_and_no_further_one_begins() {
    let (world, app, port) = (World::new(), loud(), free_port());
    let resources = json!({ "identity_policies": [everybody(&world)] });
    let database = database(&world, &app, port, &resources);
    let (shop, web) = (world.peer("/shop"), world.peer("/web"));
    let mut held = opened(&shop, &database).await;
    let mut other = opened(&web, &database).await;
    assert!(echoes(&mut held).await && echoes(&mut other).await);
    let mut revoked = resources;
    let serial = world.identity("/shop").svid.serial.clone();
    revoked["revocations"] = json!([{ "id": "r", "serial": serial, "trust_domain": world.domain }]);
    database.write_resources(&revoked);
    ends(held).await;
    let ended = database.record_with("/event", &json!("forced_close"));
    assert_eq!(
        (&ended["reason"], &ended["peer_serial"], &ended["protocol"]),
        (&json!("denied_by_list"), &json!(serial), &json!("tcp"))
    );
    assert!(echoes(&mut other).await, "nobody else is concerned");
    if let Ok(mut again) =
        shop.stream_to(database.address("tcp:db"), &database.id, Alpn::Http1).await
    {
        assert!(!echoes(&mut again).await);
    }
    let refused = database.record_with("/type", &json!("handshake_refused"));
    assert_eq!(refused["src"]["cert"]["serial"], json!(serial));
    assert_eq!(app.connections(), 2);
}

#[tokio::test]
async fn a_tcp_connection_that_was_let_in_for_a_span_of_time_ends_with_it() {
    let (world, app, port) = (World::new(), loud(), free_port());
    let until = |seconds: i64| {
        let end = OffsetDateTime::from_unix_timestamp(seconds).unwrap().format(&Rfc3339).unwrap();
        json!({ "identity_policies": [{ "id": "p", "action": "allow", "rules": [
            { "name": "brief", "from": { "principals": [world.id("/shop")] }, "when": { "times": [{ "not_after": end }] } },
            { "name": "always", "from": { "principals": [world.id("/web")] } },
        ]}]})
    };
    let now = || OffsetDateTime::now_utc().unix_timestamp();
    let database = Arc::new(database(&world, &app, port, &until(now() + 5)));
    let (shop, web) = (world.peer("/shop"), world.peer("/web"));
    let mut always = opened(&web, &database).await;
    assert!(echoes(&mut always).await);
    // A machine that is busy may be too late for one span; then the next one is taken.
    let held = eventually_async("a connection within its time", || async {
        let mut held = opened(&shop, &database).await;
        if echoes(&mut held).await {
            return Some(held);
        }
        database.write_resources(&until(now() + 5));
        None
    })
    .await;
    ends(held).await;
    let denied = database.record("the refusal", |record| {
        record["outcome"] == "deny" && record["nearest"]["clause"] == "times"
    });
    assert_eq!(denied["src"]["spiffe_id"], json!(world.id("/shop")));
    let ended = database.record_with("/event", &json!("forced_close"));
    assert_eq!((&ended["reason"], &ended["protocol"]), (&json!("policy_changed"), &json!("tcp")));
    assert!(echoes(&mut always).await, "nobody else is concerned");
}

#[tokio::test]
async fn a_door_that_observes_never_believes_a_certificate_whose_key_was_not_proved() {
    let (world, app) = (World::new(), App::echo("billing"));
    let door = |mode: &str| {
        json!({
            "identity_policies": [allow("p", &[&world.id("/billing")], &[&world.id("/shop")])],
            "identity_modes": [{ "id": "m", "mode": mode }],
        })
    };
    let billing = world.sidecar("/billing").app(&app).resources(&door("observe")).start();
    // /shop's certificate, and a key that anybody may have.
    let mut stolen = world.identity("/shop").svid;
    stolen.key = world.identity("/thief").svid.key.clone_key();
    let serial = stolen.serial.clone();
    let bundles: TrustBundles = [world.bundle()].into_iter().collect();
    let thief = Peer::with(Identity::new(stolen, bundles));
    let call = async |path: &str| {
        let stream = thief.stream(&billing, Alpn::Http1).await.ok()?;
        let mut connection = Connection::over(stream).await.ok()?;
        connection.try_send("GET", path, &[], "").await.ok()
    };
    let answer = call("/stolen").await.expect("nothing is refused here");
    assert_eq!(answer.status, 200);
    assert!(
        !answer.text().contains(&world.id("/shop")),
        "the app is not told a name: {}",
        answer.text()
    );
    let record = billing.record_with("/path", &json!("/stolen"));
    assert_eq!(
        (&record["mode"], &record["would_be"]["reason"], &record["src"]["authn"]),
        (&json!("observe"), &json!("no_identity"), &json!("none"))
    );
    assert_eq!(record["src"].get("spiffe_id"), None, "{record}");
    let noted = billing.record_with("/reason", &json!("no_proof_of_key"));
    assert_eq!((&noted["outcome"], &noted["mode"]), (&json!("allow"), &json!("observe")));
    // Claimed, not believed.
    assert_eq!(
        (&noted["src"]["presented_id"], &noted["src"]["cert"]["serial"]),
        (&json!(world.id("/shop")), &json!(serial))
    );

    for mode in ["permissive", "strict"] {
        billing.write_resources(&door(mode));
        let path = format!("/{mode}");
        eventually_async("the thief is refused", || async {
            call(&path).await.is_none().then_some(())
        })
        .await;
    }
    billing.record("the refusal", |record| {
        record["reason"] == "no_proof_of_key" && record["outcome"] == "deny"
    });
}
