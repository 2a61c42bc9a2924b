//! One change, from the Admin API to the request that it is about; and what goes on when the control plane does not.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde_json::{Value, json};

use wardgate::store::etcd::Etcd;
use wardgate::store::{Expect, Store};

use crate::etcd_server::EtcdServer;
use crate::world::{
    Admin, App, Part, Process, World, allow, eventually, eventually_async, get, send,
};

fn to(app: &App) -> Value {
    json!({ "uri": "/*", "upstream": { "nodes": { app.address.to_string(): 1 } } })
}

/// The last good copy, once it has this text.
fn last_good(part: &Part<'_>, file: &str, text: &str) -> String {
    let path = part.state.join(file);
    eventually(&format!("{text:?} in the last good copy"), || {
        std::fs::read_to_string(&path).ok().filter(|copy| copy.contains(text))
    })
}

async fn serves(ingress: &Process, app: &str) {
    let door = ingress.address("ingress");
    eventually_async(&format!("requests reach {app}"), || async {
        let answer = get(door, "/").await;
        (answer.status == 200 && answer.json()["app"] == app).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_write_reaches_the_data_planes_is_acknowledged_and_serves() {
    let world = World::new();
    let control = world.control().start();
    let admin = control.admin();
    let ingress = world.ingress().fed_by(&control).start();
    let door = ingress.address("ingress");
    assert_eq!(get(door, "/").await.status, 404, "nothing is declared yet");

    let app = App::echo("app");
    let answer = admin.ask("PUT", "/routes/1?wait=applied", Some(&to(&app))).await;
    assert_eq!(answer.status, 201, "{}", answer.text());
    assert_eq!(answer.header("x-wardgate-applied"), Some("true"));
    assert_eq!(get(door, "/").await.status, 200, "who waited may rely on it");

    let revision = answer.revision();
    let state = admin.get(&format!("/revisions/{revision}")).await;
    assert_eq!((&state["total"], &state["applied"]), (&json!(1), &json!(1)));
    let plane = &state["data_planes"][0];
    assert!(plane["id"].as_str().unwrap().starts_with(&world.id("/wardgate/ingress")), "{plane}");
    assert_eq!((&plane["connected"], &plane["applied"]), (&json!(true), &json!(true)));
    assert_eq!(plane["rejected"], json!([]));

    // What a route refers to changes under it.
    let other = App::echo("other");
    let nodes = |app: &App| json!({ "nodes": { app.address.to_string(): 1 } });
    admin.put("/upstreams/u", &nodes(&app)).await;
    admin.put("/services/s", &json!({ "upstream_id": "u" })).await;
    admin
        .applied(admin.put("/routes/1", &json!({ "uri": "/*", "service_id": "s" })).await, 1)
        .await;
    assert_eq!(get(door, "/").await.json()["app"], "app");
    admin.applied(admin.put("/upstreams/u", &nodes(&other)).await, 1).await;
    assert_eq!(get(door, "/").await.json()["app"], "other");

    admin.applied(admin.delete("/routes/1").await, 1).await;
    assert_eq!(get(door, "/").await.status, 404);
    let record = control.record_with("/method", &json!("DELETE"));
    assert_eq!((&record["type"], &record["status"]), (&json!("admin"), &json!(200)));
    assert!(record["principal"].is_string(), "who did it: {record}");
}

#[tokio::test]
async fn the_control_plane_going_away_and_coming_back_stops_no_traffic() {
    let world = World::new();
    let part = world.control();
    let mut control = part.start();
    let admin = control.admin();
    let ingress = world.ingress().fed_by(&control).start();
    let (old, new) = (App::echo("old"), App::echo("new"));
    admin.applied(admin.put("/routes/1", &to(&old)).await, 1).await;

    let feed = json!(control.address("feed").to_string());
    control.kill();
    for _ in 0..20 {
        assert_eq!(get(ingress.address("ingress"), "/").await.json()["app"], "old");
    }

    let control = part.set("control.feed", &feed).start();
    let admin = Admin { address: control.address("admin"), key: admin.key };
    assert_eq!(admin.get("/routes/1").await["value"]["id"], "1", "the store has kept it");
    admin.put("/routes/1", &to(&new)).await;
    serves(&ingress, "new").await;
}

#[tokio::test]
async fn a_data_plane_that_is_denied_loses_its_feed_at_once() {
    let world = World::new();
    let control = world.control().start();
    let admin = control.admin();
    let app = App::echo("app");
    let _ingress = world.ingress().fed_by(&control).start();
    let revision = admin.put("/routes/1", &to(&app)).await;
    admin.applied(revision, 1).await;
    let is_connected = |revision: u64, wanted: bool| {
        let admin = &admin;
        async move {
            let state = admin.get(&format!("/revisions/{revision}")).await;
            let planes = state["data_planes"].as_array().cloned().unwrap_or_default();
            (planes.iter().any(|plane| plane["connected"] == true) == wanted).then_some(())
        }
    };
    let denial = json!({ "spiffe_id": world.id("/wardgate/ingress") });
    let revision = admin.put("/revocations/r", &denial).await;
    eventually_async("the feed ends", || is_connected(revision, false)).await;
    let revision = admin.delete("/revocations/r").await;
    eventually_async("and is there again", || is_connected(revision, true)).await;
}

#[tokio::test]
async fn a_control_plane_that_begins_anew_is_followed_although_its_revisions_do() {
    let world = World::new();
    let part = world.control();
    let mut control = part.start();
    let admin = control.admin();
    let ingress = world.ingress().fed_by(&control).start();
    let (old, new) = (App::echo("old"), App::echo("new"));
    for number in 0..5 {
        let mut route = to(&old);
        route["uri"] = json!(format!("/{number}"));
        admin.put(&format!("/routes/{number}"), &route).await;
    }
    admin.applied(admin.put("/routes/all", &to(&old)).await, 1).await;
    assert_eq!(get(ingress.address("ingress"), "/0").await.json()["app"], "old");

    let feed = json!(control.address("feed").to_string());
    control.kill();
    std::fs::remove_file(part.state.join("store.redb")).unwrap();
    let control = part.set("control.feed", &feed).start();
    let admin = Admin { address: control.address("admin"), key: admin.key };
    let mut route = to(&new);
    route["uri"] = json!("/1");
    admin.put("/routes/1", &route).await;
    let door = ingress.address("ingress");
    eventually_async("the new state", || async {
        let answer = get(door, "/1").await;
        (answer.status == 200 && answer.json()["app"] == "new").then_some(())
    })
    .await;
    assert_eq!(get(door, "/0").await.status, 404, "what is declared no more is gone");
}

#[tokio::test]
async fn a_data_plane_restarted_without_control_plane_serves_the_last_good_copy() {
    let world = World::new();
    let app = App::echo("app");
    let mut control = world.control().start();
    let admin = control.admin();
    let everybody = allow("p", &[&world.id("/billing")], &[&world.id("/shop")]);
    admin.put("/identity_policies/p", &everybody).await;
    let part = world.sidecar("/billing").app(&app).fed_by(&control);
    let mut billing = part.start();
    let ingress_part = world.ingress().fed_by(&control);
    let mut ingress = ingress_part.start();
    admin.applied(admin.put("/routes/1", &to(&app)).await, 2).await;
    let shop = world.peer("/shop");
    assert_eq!(shop.get(&billing, "/").await.status, 200);
    last_good(&part, "last-good-sidecar", "identity_policies");
    last_good(&ingress_part, "last-good-ingress", "routes");
    let copy = part.state.join("last-good-sidecar");
    let mode = std::fs::metadata(&copy).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "it may hold secrets");

    control.kill();
    assert!(billing.end().success());
    // Also after a crash.
    ingress.kill();
    let (billing, ingress) = (part.start(), ingress_part.start());
    assert_eq!(shop.get(&billing, "/").await.status, 200);
    let stranger = world.peer("/stranger").get(&billing, "/").await;
    assert_eq!(stranger.status, 403, "what was refused stays refused");
    assert_eq!(get(ingress.address("ingress"), "/").await.status, 200);
}

#[tokio::test]
async fn a_data_plane_that_never_had_a_configuration_refuses_everything_until_there_is_one() {
    let world = World::new();
    let app = App::echo("app");
    let part = world.control();
    let mut control = part.start();
    let key = control.admin().key;
    let feed = json!(control.address("feed").to_string());
    let billing = world.sidecar("/billing").app(&app).fed_by(&control);
    control.end();
    let billing = billing.launch();
    let answer = world.peer("/shop").get(&billing, "/").await;
    assert_eq!((answer.status, app.requests()), (403, 0), "{}", answer.text());
    assert!(!billing.is_ready());

    let control = part.set("control.feed", &feed).start();
    billing.wait_ready();
    let admin = Admin { address: control.address("admin"), key };
    let policy = allow("p", &[&world.id("/billing")], &[&world.id("/shop")]);
    admin.applied(admin.put("/identity_policies/p", &policy).await, 1).await;
    assert_eq!(world.peer("/shop").get(&billing, "/").await.status, 200);
}

#[tokio::test]
async fn a_sidecar_is_told_of_its_own_workload_and_of_nobody_elses_secrets() {
    let world = World::new();
    let control = world.control().start();
    let admin = control.admin();
    let parts = ["/billing", "/shop"].map(|path| world.sidecar(path).fed_by(&control));
    let _running = parts.each_ref().map(Part::start);
    let door = |path: &str, listener: &str, marker: &str| {
        json!({
            "uri": "/*", "desc": marker,
            "workload_selector": { "listener": listener, "spiffe_ids": [world.id(path)] },
            "upstream": { "nodes": { "127.0.0.1:1": 1 } },
        })
    };
    admin.put("/routes/billing", &door("/billing", "inbound", "marker-of-billing")).await;
    admin.put("/routes/shop", &door("/shop", "outbound", "marker-of-shop")).await;
    let public = json!({ "uri": "/*", "desc": "marker-of-ingress", "upstream": { "nodes": { "127.0.0.1:1": 1 } } });
    admin.put("/routes/public", &public).await;
    admin
        .put(
            "/identity_policies/b",
            &allow("b", &[&world.id("/billing")], &[&world.id("/only-for-billing")]),
        )
        .await;
    admin
        .put(
            "/identity_policies/s",
            &allow("s", &[&world.id("/shop")], &[&world.id("/only-for-shop")]),
        )
        .await;
    let entry = json!({ "spiffe_id": world.id("/entry-of-issuer"), "selectors": ["unix:uid:1"] });
    admin.put("/workloads/w", &entry).await;
    let (certificate, key) = public_certificate();
    let ssl = json!({ "sni": "shop.example", "cert": certificate, "key": key });
    let revision = admin.put("/ssls/1", &ssl).await;
    admin.applied(revision, 2).await;

    let foreign = ["marker-of-ingress", "entry-of-issuer", "PRIVATE KEY", "ssls"];
    for (part, own, other) in [(&parts[0], "billing", "shop"), (&parts[1], "shop", "billing")] {
        let copy = last_good(part, "last-good-sidecar", &format!("marker-of-{own}"));
        let copy = eventually("the last of it", || {
            let now = last_good(part, "last-good-sidecar", &format!("only-for-{own}"));
            (now.len() >= copy.len()).then_some(now)
        });
        for text in foreign {
            assert!(!copy.contains(text), "{own} was told {text}: {copy}");
        }
        for text in [format!("marker-of-{other}"), format!("only-for-{other}")] {
            assert!(!copy.contains(&text), "{own} was told {text}: {copy}");
        }
    }
}

fn public_certificate() -> (String, String) {
    let made = rcgen::generate_simple_self_signed(["shop.example".to_owned()]).unwrap();
    (made.cert.pem(), made.signing_key.serialize_pem())
}

#[tokio::test]
async fn who_is_no_ingress_is_not_told_what_the_ingress_is_told() {
    let world = World::new();
    let app = App::echo("app");
    let control = world.control().start();
    let admin = control.admin();
    let revision = admin.put("/routes/1", &to(&app)).await;
    let curious = world
        .part("ingress", "/curious")
        .set("ingress", &json!({ "http": "127.0.0.1:0", "https": null }))
        .fed_by(&control);
    let process = curious.launch();
    let refusal = control.logs("curious");
    assert!(refusal.contains("ingress"), "{refusal}");
    process.logs("may not be a data plane of role ingress");
    let answer = get(process.address("ingress"), "/").await;
    assert!(answer.status >= 400, "{}", answer.text());
    assert!(!process.is_ready());
    assert_eq!(admin.get(&format!("/revisions/{revision}")).await["total"], 0);
    assert!(!curious.state.join("last-good-ingress").exists());

    // Whom the settings name may.
    let control = world
        .control()
        .named("liberal")
        .set("control.ingress_ids", &json!([world.id("/curious")]))
        .start();
    let admin = control.admin();
    let allowed = curious.named("welcome").fed_by(&control).start();
    admin.applied(admin.put("/routes/1", &to(&app)).await, 1).await;
    assert_eq!(get(allowed.address("ingress"), "/").await.status, 200);
}

#[tokio::test]
async fn who_is_no_control_plane_feeds_nobody() {
    let world = World::new();
    let app = App::echo("app");
    let impostor = world
        .part("control", "/impostor")
        .set("control", &json!({ "admin": "127.0.0.1:0", "feed": "127.0.0.1:0" }))
        .start();
    impostor.admin().put("/routes/1", &to(&app)).await;
    let ingress = world.ingress().fed_by(&impostor).launch();
    ingress.logs("impostor");
    assert!(get(ingress.address("ingress"), "/").await.status >= 400);
    assert!(!ingress.is_ready());
}

#[tokio::test]
async fn a_stranger_at_the_feed_is_refused_at_the_handshake_and_recorded() {
    let world = World::new();
    let control = world.control().start();
    let elsewhere = World::of("elsewhere.test");
    let bundles: wardgate::identity::TrustBundles = [world.bundle()].into_iter().collect();
    let stranger = crate::world::Peer::with(wardgate::identity::Identity::new(
        elsewhere.identity("/wardgate/ingress").svid,
        bundles,
    ));
    let feed = control.address("feed");
    if let Ok(stream) = stranger.stream_to(feed, &control.id, wardgate::mtls::Alpn::Http2).await {
        let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
        assert_eq!(crate::world::raw(stream, preface).await, "");
    }
    let record = control.record_with("/type", &json!("handshake_refused"));
    assert_eq!(record["reason"], "unknown_trust_domain");
    assert_eq!(record["src"]["presented_id"], "spiffe://elsewhere.test/wardgate/ingress");
}

#[tokio::test]
async fn two_control_planes_share_one_etcd() {
    let world = World::new();
    let etcd = EtcdServer::start();
    let store = json!({ "etcd": { "endpoints": [etcd.url()] }, "prefix": "/shop" });
    let part = |name: &str| world.control().named(name).set("control.store", &store);
    let (first, second) = (part("first").start(), part("second").start());
    let ingress = world.ingress().fed_by(&second).start();
    let (app, other) = (App::echo("app"), App::echo("other"));

    // Written here, served there.
    let (admin, beside) = (first.admin(), second.admin());
    let revision = admin.put("/routes/1", &to(&app)).await;
    beside.applied(revision, 1).await;
    serves(&ingress, "app").await;
    assert_eq!(beside.get("/routes/1").await["value"], admin.get("/routes/1").await["value"]);

    beside.applied(admin.put("/routes/1", &to(&other)).await, 1).await;
    assert_eq!(get(ingress.address("ingress"), "/").await.json()["app"], "other");
    let patch = json!({ "desc": "patched" });
    let answer = beside.ask("PATCH", "/routes/1", Some(&patch)).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(admin.get("/routes/1").await["value"]["desc"], "patched");
    beside.applied(admin.delete("/routes/1").await, 1).await;
    assert_eq!(get(ingress.address("ingress"), "/").await.status, 404);
}

#[tokio::test]
async fn a_policy_that_cannot_be_read_stands_closed_also_after_a_restart_without_control_plane() {
    let world = World::new();
    let etcd = EtcdServer::start();
    let settings = json!({ "endpoints": [etcd.url()] });
    let store = Etcd::new(&serde_json::from_value(settings.clone()).unwrap()).unwrap();
    let mut control = world.control().set("control.store", &json!({ "etcd": settings })).start();
    let admin = control.admin();
    let app = App::echo("app");
    let parts = ["/billing", "/stock"].map(|path| world.sidecar(path).app(&app).fed_by(&control));
    let running = parts.each_ref().map(Part::start);
    let everybody = allow("p", &[], &[&world.id("/shop")]);
    admin.applied(admin.put("/identity_policies/p", &everybody).await, 2).await;
    let shop = world.peer("/shop");
    for sidecar in &running {
        assert_eq!(shop.get(sidecar, "/").await.status, 200);
    }

    // Written past the Admin API: one that nobody can read, and one that only its compilation refuses.
    let of = |path: &str, rule: Value| json!({ "action": "deny", "selector": { "workloads": [world.id(path)] }, "rules": [rule] });
    let for_billing = of("/billing", json!({ "to": { "paths": ["no-slash"] } }));
    let put = async |id: &str, policy: &Value| {
        let key = format!("/apisix/identity_policies/{id}");
        store.put(&key, policy, Expect::Anything, None).await.unwrap().modified
    };
    admin.applied(put("compiles-not", &for_billing).await, 2).await;
    assert_eq!(shop.get(&running[0], "/").await.status, 403);
    assert_eq!(shop.get(&running[1], "/").await.status, 200, "not about it");
    let revision = put("unreadable", &json!({ "action": "obliterate" })).await;
    let state = admin.applied(revision, 2).await;
    assert!(state.to_string().contains("unreadable"), "the control plane tells: {state}");
    for (sidecar, part) in running.iter().zip(&parts) {
        let answer = shop.get(sidecar, "/").await;
        assert_eq!(answer.json()["reason"], "broken_policy");
        last_good(part, "last-good-sidecar", "obliterate");
    }

    control.kill();
    drop(running);
    for part in &parts {
        let again = part.start();
        assert_eq!(shop.get(&again, "/").await.status, 403, "{}", part.name);
    }
}

#[tokio::test]
async fn a_route_that_cannot_be_read_keeps_its_place_closed_before_broader_ones() {
    let world = World::new();
    let etcd = EtcdServer::start();
    let settings = json!({ "endpoints": [etcd.url()] });
    let store = Etcd::new(&serde_json::from_value(settings.clone()).unwrap()).unwrap();
    let mut control = world.control().set("control.store", &json!({ "etcd": settings })).start();
    let admin = control.admin();
    let app = App::echo("app");
    let edge = world.ingress().fed_by(&control);
    let ingress = edge.start();
    let upstream = json!({ "nodes": { (app.address.to_string()): 1 } });
    admin
        .applied(admin.put("/routes/all", &json!({ "uri": "/*", "upstream": upstream })).await, 1)
        .await;

    // Written past the Admin API: its plugins, which would have kept somebody out, are not to be read.
    let broken = json!({ "uri": "/admin/*", "plugins": 7, "upstream": upstream });
    let put = store.put("/apisix/routes/guarded", &broken, Expect::Anything, None).await;
    let state = admin.applied(put.unwrap().modified, 1).await;
    assert!(state.to_string().contains("guarded"), "the control plane tells: {state}");
    let status =
        async |ingress: &Process, path: &str| get(ingress.address("ingress"), path).await.status;
    assert_eq!(status(&ingress, "/admin/users").await, 503);
    assert_eq!(status(&ingress, "/other").await, 200);

    last_good(&edge, "last-good-ingress", "/admin/*");
    control.kill();
    drop(ingress);
    let again = edge.start();
    assert_eq!(status(&again, "/admin/users").await, 503, "from the last good copy as well");
    assert_eq!(status(&again, "/other").await, 200);
}

#[tokio::test]
async fn a_whole_mesh_is_declared_over_the_admin_api_on_etcd() {
    let world = World::new();
    let etcd = EtcdServer::start();
    let store = json!({ "etcd": { "endpoints": [etcd.url()] } });
    let control = world.control().set("control.store", &store).start();
    let admin = control.admin();
    let app = App::echo("invoices");
    let billing = world.sidecar("/billing").app(&app).fed_by(&control).start();
    let shop = world.sidecar("/shop").fed_by(&control).start();
    let ingress = world.ingress().fed_by(&control).start();

    let upstream = json!({
        "nodes": { billing.address("inbound").to_string(): 1 },
        "tls": { "identity": "svid", "spiffe_ids": [world.id("/billing")] },
    });
    admin.put("/upstreams/billing", &upstream).await;
    let outbound = json!({
        "uri": "/*", "host": "billing", "upstream_id": "billing",
        "workload_selector": { "listener": "outbound", "spiffe_ids": [world.id("/shop")] },
    });
    admin.put("/routes/shop-to-billing", &outbound).await;
    admin.put("/routes/public", &json!({ "uri": "/invoices/*", "upstream_id": "billing" })).await;
    let policy = allow("p", &[&world.id("/billing")], &[&world.id("/shop")]);
    admin.applied(admin.put("/identity_policies/p", &policy).await, 3).await;

    let host = [("host", "billing")];
    let inside = send(shop.address("outbound"), "GET", "/invoices/7", &host, "").await;
    assert_eq!(inside.status, 200, "{}", inside.text());
    let outside = get(ingress.address("ingress"), "/invoices/7").await;
    assert_eq!(outside.status, 403, "the ingress is not allowed yet");
    assert!(outside.header("x-wardgate-denial").is_some(), "the sidecar's denial id comes through");
    let both =
        allow("p", &[&world.id("/billing")], &[&world.id("/shop"), &world.id("/wardgate/ingress")]);
    admin.applied(admin.put("/identity_policies/p", &both).await, 3).await;
    assert_eq!(get(ingress.address("ingress"), "/invoices/7").await.status, 200);
    assert_eq!(app.requests(), 2);
}

#[test]
fn the_admin_key_is_shown_once_and_kept_nowhere() {
    let world = World::new();
    let control = world.control().start();
    let key = control.key();
    assert!(key.len() >= 40, "256 bits");
    let found = files_with(&world.folder, &key);
    assert!(found.is_empty(), "the key lies in {found:?}");
    assert!(!control.errors().contains(&key), "not in the logs either");
}

/// The files below a folder in which this text stands.
fn files_with(folder: &Path, text: &str) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files_with(&path, text));
        } else if let Ok(bytes) = std::fs::read(&path)
            && bytes.windows(text.len()).any(|window| window == text.as_bytes())
        {
            found.push(path);
        }
    }
    found
}
