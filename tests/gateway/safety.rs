//! What keeps a mesh standing when its configuration is bad: quarantine, whole policy revisions, the crash-loop guard, the age of
//! what is in force, signed policies.

use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};
use wardgate::store::etcd::Etcd;
use wardgate::store::{Expect, Store as _};

use crate::etcd_server::EtcdServer;
use crate::world::{Admin, App, Process, World, allow, eventually, eventually_async, get, run};

fn to(app: &App, uri: &str) -> Value {
    json!({ "uri": uri, "upstream": { "nodes": { app.address.to_string(): 1 } } })
}

async fn becomes(door: std::net::SocketAddr, path: &str, status: u16) {
    eventually_async(&format!("{status} at {path}"), || async {
        (get(door, path).await.status == status).then_some(())
    })
    .await;
}

async fn process_status(process: &Process) -> Value {
    get(process.address("status"), "/status/process").await.json()
}

fn told(arguments: &[&str]) -> (Option<i32>, String) {
    let ended = run(arguments);
    (ended.code, ended.out)
}

#[tokio::test]
async fn what_nobody_can_read_in_the_store_closes_what_it_would_have_guarded_and_nothing_else() {
    let world = World::new();
    let etcd = EtcdServer::start();
    let settings = json!({ "endpoints": [etcd.url()] });
    let store = Etcd::new(&serde_json::from_value(settings.clone()).unwrap()).unwrap();
    let part = world.control().set("control.store", &json!({ "etcd": settings }));
    let mut control = part.start();
    let admin = control.admin();
    let app = App::echo("app");
    let edge = world.ingress().set("status", &json!("127.0.0.1:0")).fed_by(&control);
    let ingress = edge.start();
    let door = ingress.address("ingress");
    for (id, uri) in [("all", "/*"), ("kept", "/kept/*")] {
        admin.put(&format!("/routes/{id}"), &to(&app, uri)).await;
    }
    becomes(door, "/kept/1", 200).await;

    // Past the Admin API, each in its own way.
    let put = async |key: &str, value: Value| {
        let stored = store.put(&format!("/apisix/{key}"), &value, Expect::Anything, None).await;
        stored.unwrap().modified
    };
    let with = |uri: &str, field: &str, value: Value| {
        let mut route = to(&app, uri);
        route[field] = value;
        route
    };
    put("routes/a", with("/admin/*", "plugins", json!(7))).await;
    put("routes/b", json!({ "uris": ["/b/*", 7], "plugins": {} })).await;
    put("routes/c", with("/c/*", "priority", json!("first"))).await;
    put("routes/kept", with("/kept/*", "plugins", json!(7))).await;
    let last = put("routes/off", json!({ "uri": "/off", "status": 0, "plugins": 7 })).await;
    let state = admin.applied(last, 1).await;
    for (path, status) in [
        ("/admin/1", 503),
        ("/b/1", 503),
        ("/c/1", 503),
        ("/kept/1", 200),
        ("/off", 200),
        ("/", 200),
    ] {
        assert_eq!(get(door, path).await.status, status, "{path}: {state}");
    }
    for id in ["a", "b", "c", "kept", "off"] {
        let unreadable = state["unreadable"].as_array().unwrap();
        assert!(unreadable.iter().any(|one| one["id"] == id), "{id}: {state}");
    }
    // Visible at the data plane itself as well.
    let status = process_status(&ingress).await;
    assert!(status["configuration"][0]["refused"].to_string().contains("\"a\""), "{status}");
    let metrics = get(ingress.address("status"), "/metrics").await.text();
    assert!(metrics.contains("wardgate_config_refused_resources{part=\"ingress\"} 3"), "{metrics}");
    let settings_file = edge.settings_file();
    eventually("wardgate check names them, from the last good copy", || {
        let (code, out) = told(&["check", "-c", settings_file.to_str().unwrap()]);
        (code == Some(1) && out.contains("routes a")).then_some(())
    });

    // A control plane that never saw the version before takes it from nobody.
    control.kill();
    let control = part.start();
    let admin = Admin { address: control.address("admin"), key: admin.key };
    drop(ingress);
    let ingress = edge.fed_by(&control).start();
    let door = ingress.address("ingress");
    admin.applied(last, 1).await;
    assert_eq!(
        get(door, "/kept/1").await.status,
        200,
        "from the last good copy, and not taken away"
    );

    // A service closes its routes, and a global rule all; gone, it closes nothing.
    put("services/t", json!({ "hosts": 7 })).await;
    put("routes/t", with("/t", "service_id", json!("t"))).await;
    becomes(door, "/t", 503).await;
    let last = put("global_rules/g", json!({ "plugins": 7 })).await;
    admin.applied(last, 1).await;
    becomes(door, "/other", 503).await;
    store.delete("/apisix/global_rules/g", Expect::Anything).await.unwrap();
    becomes(door, "/other", 200).await;
    store.delete("/apisix/routes/a", Expect::Anything).await.unwrap();
    becomes(door, "/admin/1", 200).await;
    store.delete("/apisix/routes/kept", Expect::Anything).await.unwrap();
    eventually_async("the version that was kept goes with the resource", || async {
        let routes = process_status(&ingress).await["configuration"][0]["refused"].to_string();
        (!routes.contains("\"kept\"")).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_route_whose_workloads_nobody_can_read_is_closed_for_all_and_tells_nobody_more() {
    let world = World::new();
    let etcd = EtcdServer::start();
    let settings = json!({ "endpoints": [etcd.url()] });
    let store = Etcd::new(&serde_json::from_value(settings.clone()).unwrap()).unwrap();
    let control = world.control().set("control.store", &json!({ "etcd": settings })).start();
    let admin = control.admin();
    let app = App::echo("app");
    let billing = world.sidecar("/billing").app(&app).fed_by(&control).start();
    let everybody = allow("p", &[], &[&world.id("/shop")]);
    admin.applied(admin.put("/identity_policies/p", &everybody).await, 1).await;
    let shop = world.peer("/shop");
    assert_eq!(shop.get(&billing, "/admin/1").await.status, 200);

    let route = json!({
        "uri": "/admin/*", "workload_selector": { "spiffe_ids": ["not a pattern"] },
        "plugins": { "key-auth": { "header": "the-secret-header" } },
    });
    let put = store.put("/apisix/routes/guarded", &route, Expect::Anything, None).await;
    let state = admin.applied(put.unwrap().modified, 1).await;
    assert_eq!(shop.get(&billing, "/admin/1").await.status, 503, "{state}");
    assert_eq!(shop.get(&billing, "/").await.status, 200);
    assert!(state["unreadable"].to_string().contains("workload_selector.spiffe_ids"), "{state}");
    let copy = eventually("the last good copy has it", || {
        let text = fs::read_to_string(billing.state.join("last-good-sidecar")).ok()?;
        text.contains("/admin/*").then_some(text)
    });
    assert!(!copy.contains("the-secret-header"), "{copy}");
}

#[tokio::test]
async fn one_bad_policy_holds_the_whole_policy_revision_back() {
    let world = World::new();
    let app = App::echo("app");
    let me = world.id("/billing");
    let a = allow("a", &[&me], &[&world.id("/shop")]);
    let b = allow("b", &[&me], &[&world.id("/web")]);
    let part = world.sidecar("/billing").app(&app).set("status", &json!("127.0.0.1:0"));
    let billing = part.resources(&json!({ "identity_policies": [a] })).start();
    let (shop, web) = (world.peer("/shop"), world.peer("/web"));
    assert_eq!(shop.get(&billing, "/").await.status, 200);

    // One revision: `a` says what cannot be, `b` is new and good.
    let mut bad = allow("a", &[&me], &["no pattern"]);
    bad["desc"] = json!("bad");
    billing.write_resources(&json!({ "identity_policies": [bad, b] }));
    let refused = eventually_async("both are refused by name", || async {
        let status = process_status(&billing).await;
        let refused = status["configuration"][0]["refused"].clone();
        (refused.as_array()?.len() == 2).then_some(refused)
    })
    .await;
    assert!(refused[1]["reason"].as_str().unwrap().contains("[a] is refused"), "{refused}");
    assert_eq!(shop.get(&billing, "/").await.status, 200, "the last good one stays in force");
    assert_eq!(web.get(&billing, "/").await.status, 403, "and nothing else comes into force");

    billing.write_resources(&json!({ "identity_policies": [a, b] }));
    eventually_async("mended, both are in force", || async {
        (web.get(&billing, "/").await.status == 200).then_some(())
    })
    .await;
    assert_eq!(shop.get(&billing, "/").await.status, 200);
    let status = process_status(&billing).await;
    assert_eq!(status["configuration"][0]["refused"], json!([]), "{status}");
}

/// What lies beside the ingress' last good copy.
fn beside(ingress: &Process, ending: &str) -> PathBuf {
    ingress.state.join(format!("last-good-ingress.{ending}"))
}

#[tokio::test]
async fn a_revision_that_kills_the_process_three_times_is_held_off_until_another_comes() {
    let world = World::new();
    let control = world.control().start();
    let admin = control.admin();
    let app = App::echo("app");
    let part = || world.ingress().fed_by(&control).set("status", &json!("127.0.0.1:0"));
    let guarded = |seconds: u32| part().set("control_plane.crash_guard_seconds", &json!(seconds));

    // What it has lived with for a second is proven, and an end that was asked for is no crash.
    let mut ingress = guarded(1).start();
    admin.applied(admin.put("/routes/good", &to(&app, "/good")).await, 1).await;
    let (proven, trial) = (beside(&ingress, "proven"), beside(&ingress, "trial"));
    eventually("the state has stood its probation", || {
        (fs::read_to_string(&proven).ok()?.contains("/good") && !trial.exists()).then_some(())
    });
    assert!(ingress.end().success());

    let edge = guarded(600);
    let mut ingress = edge.start();
    let bad = admin.put("/routes/bad", &to(&app, "/bad")).await;
    admin.applied(bad, 1).await;
    for death in 1..=3 {
        becomes(ingress.address("ingress"), "/bad", 200).await;
        assert!(trial.exists(), "on probation before death {death}");
        ingress.kill();
        ingress = edge.start();
    }
    let door = ingress.address("ingress");
    becomes(door, "/good", 200).await;
    assert_eq!(get(door, "/bad").await.status, 404, "it is the revision before");
    ingress.logs("CRASH LOOP");
    let held_off = process_status(&ingress).await["feeds"][0]["held_off"].clone();
    assert_eq!((&held_off["revision"], &held_off["deaths"]), (&json!(bad), &json!(3)));
    let record = ingress.record_with("/event", &json!("held_off"));
    assert_eq!(record["revision"], bad, "{record}");
    let metrics = get(ingress.address("status"), "/metrics").await.text();
    let line = format!("wardgate_feed_held_off_revision{{part=\"ingress\"}} {bad}");
    assert!(metrics.contains(&line), "{metrics}");
    let state = eventually_async("the control plane is told", || async {
        let state = admin.get("/revisions/latest").await;
        state["data_planes"][0]["rejected"].to_string().contains("held off").then_some(state)
    })
    .await;
    assert_eq!(state["data_planes"][0]["rejected"][0]["id"], "bad", "{state}");
    let (_, out) = told(&["status", "--at", &ingress.address("status").to_string()]);
    assert!(out.contains("CRASH LOOP"), "{out}");

    // Held off also by the next start, whatever ended this one.
    assert!(ingress.end().success());
    let ingress = edge.start();
    let door = ingress.address("ingress");
    becomes(door, "/good", 200).await;
    assert_eq!(get(door, "/bad").await.status, 404);

    // Something newer is taken, with all that it is made of.
    admin.put("/routes/newer", &to(&app, "/newer")).await;
    becomes(door, "/newer", 200).await;
    assert_eq!(get(door, "/bad").await.status, 200);
    assert_eq!(process_status(&ingress).await["feeds"][0]["held_off"], Value::Null);
}

#[tokio::test]
async fn a_route_that_bears_only_fresh_configuration_answers_503_when_nothing_is_heard() {
    let world = World::new();
    let mut control = world.control().start();
    let admin = control.admin();
    let app = App::echo("app");
    let ingress = world.ingress().fed_by(&control).start();
    let mut fresh = to(&app, "/fresh");
    fresh["max_config_age"] = json!(0);
    let refused = admin.ask("PUT", "/routes/fresh", Some(&fresh)).await;
    assert_eq!(refused.status, 400, "{}", refused.text());
    fresh["max_config_age"] = json!(1);
    admin.put("/routes/fresh", &fresh).await;
    admin.applied(admin.put("/routes/any", &to(&app, "/any")).await, 1).await;
    let door = ingress.address("ingress");
    assert_eq!(get(door, "/fresh").await.status, 200);

    control.kill();
    becomes(door, "/fresh", 503).await;
    assert_eq!(get(door, "/any").await.status, 200, "the other one goes on");
    let answer = get(door, "/fresh").await;
    assert!(
        answer.text().contains("the configuration is older than the route allows"),
        "{}",
        answer.text()
    );
}

/// An author's keys, in files.
fn author(world: &World, name: &str) -> (PathBuf, PathBuf) {
    let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let place = |ending: &str| world.folder.join(format!("{name}.{ending}"));
    let (private, public) = (place("pem"), place("pub.pem"));
    fs::write(&private, pair.serialize_pem()).unwrap();
    fs::write(&public, pair.public_key_pem()).unwrap();
    (private, public)
}

/// What `wardgate policy sign` makes of these policies.
fn signed(world: &World, key: &std::path::Path, number: u64, policies: &[&Value]) -> Value {
    let file = world.folder.join(format!("policies-{number}.json"));
    fs::write(&file, json!({ "identity_policies": policies }).to_string()).unwrap();
    let number = number.to_string();
    let paths = [file.to_str().unwrap(), key.to_str().unwrap()];
    let ended = run(["policy", "sign", "-f", paths[0], "--key", paths[1], "--number", &number]);
    serde_json::from_str(&ended.good()).unwrap()
}

#[tokio::test]
async fn only_policies_that_their_author_has_signed_count_and_none_comes_back() {
    let world = World::new();
    let control = world.control().start();
    let admin = control.admin();
    let app = App::echo("app");
    let (key, public) = author(&world, "author");
    let (strangers_key, _) = author(&world, "stranger");
    let part = world.sidecar("/billing").app(&app).fed_by(&control);
    let part = part.set("policy_keys", &json!([public]));
    let billing = part.start();
    let me = world.id("/billing");
    let (shop, web) = (world.peer("/shop"), world.peer("/web"));
    let for_shop = allow("a", &[&me], &[&world.id("/shop")]);
    let for_web = allow("a", &[&me], &[&world.id("/web")]);

    let apply = async |set: &Value| {
        let answer = admin.ask("POST", "/configs/apply", Some(set)).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        admin.applied(answer.json()["revision"].as_u64().unwrap(), 1).await
    };
    let first = signed(&world, &key, 1, &[&for_shop]);
    apply(&first).await;
    assert_eq!(shop.get(&billing, "/").await.status, 200);

    let holds = async |state: Value, why: &str| {
        assert!(state["data_planes"][0]["rejected"].to_string().contains(why), "{why}: {state}");
        assert_eq!(shop.get(&billing, "/").await.status, 200, "the last good one: {why}");
        assert_eq!(web.get(&billing, "/").await.status, 403, "{why}");
    };
    let unsigned = json!({ "identity_policies": [for_web] });
    holds(apply(&unsigned).await, "is not signed").await;
    let by_stranger = signed(&world, &strangers_key, 2, &[&for_web]);
    holds(apply(&by_stranger).await, "no key that is trusted").await;
    let mut changed = signed(&world, &key, 2, &[&for_shop]);
    changed["identity_policies"][0]["rules"] = for_web["rules"].clone();
    holds(apply(&changed).await, "not the signature of this policy").await;
    let gone = admin.delete("/identity_policies/a").await;
    holds(admin.applied(gone, 1).await, "it was deleted").await;

    let second = signed(&world, &key, 2, &[&for_web]);
    apply(&second).await;
    assert_eq!(web.get(&billing, "/").await.status, 200);
    assert_eq!(shop.get(&billing, "/").await.status, 403);
    // What was signed once is not good for ever; a restart forgets nothing.
    let state = apply(&first).await;
    assert!(state.to_string().contains("set 1, and set 2 is here"), "{state}");
    eventually("the last good copy has the newer set", || {
        let copy = fs::read_to_string(billing.state.join("last-good-sidecar")).ok()?;
        copy.contains("\"number\":2").then_some(())
    });
    drop(billing);
    let billing = part.start();
    eventually_async("it is back, and still refuses", || async {
        let state = admin.get("/revisions/latest").await;
        state.to_string().contains("set 1, and set 2 is here").then_some(())
    })
    .await;
    assert_eq!(shop.get(&billing, "/").await.status, 403);
    assert_eq!(web.get(&billing, "/").await.status, 200);
}
