//! The whole configuration at once: from files over the command line, from ADC in standalone mode, and how far it has come.

use std::io::Write;
use std::path::Path;
use std::process::Stdio;

use serde_json::{Value, json};

use wardgate::store::etcd::Etcd;
use wardgate::store::{Expect, Store};

use crate::etcd_server::EtcdServer;
use crate::world::{
    Admin, App, Ended, World, eventually, eventually_async, get, run, send, wardgate,
};

fn asks(admin: &Admin) -> [String; 4] {
    ["--admin".into(), format!("http://{}", admin.address), "--key".into(), admin.key.clone()]
}

/// Runs a command that asks this Admin API.
fn told(admin: &Admin, arguments: &[&str]) -> Ended {
    let mut all: Vec<String> = arguments.iter().map(|&argument| argument.to_owned()).collect();
    all.extend(asks(admin));
    run(all)
}

/// The same with something on its standard input.
fn fed(admin: &Admin, arguments: &[&str], input: &str) -> Ended {
    let mut command = wardgate();
    command.args(arguments).args(asks(admin));
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    Ended::of(&child.wait_with_output().unwrap())
}

fn write(folder: &Path, name: &str, text: &str) {
    std::fs::create_dir_all(folder).unwrap();
    std::fs::write(folder.join(name), text).unwrap();
}

const ROUTES: &str = "routes:\n  - id: a\n    uri: /a\n    upstream_id: u\n  - id: b\n    uri: /b\n    upstream_id: u\n#END\n";
const UPSTREAM: &str =
    "kind: upstream\nid: u\nnodes: { \"127.0.0.1:1\": 1 }\n---\nkind: consumer\nusername: john\n";
const ADC: &str = "services:\n  - name: billing\n    upstream: { nodes: [{ host: 127.0.0.1, port: 1, weight: 1 }] }\n    routes:\n      - { name: read, uris: [/invoices], methods: [GET] }\n";

#[tokio::test]
async fn files_are_judged_compared_applied_dumped_and_taken_back() {
    let world = World::new();
    let control = world.control().start();
    let admin = control.admin();
    let folder = world.folder.join("config");
    write(&folder, "routes.yaml", ROUTES);
    write(&folder, "upstream.yaml", UPSTREAM);
    write(&folder, "adc.yaml", ADC);
    let config = folder.to_str().unwrap();

    let judged = run(["validate", "-f", config]);
    assert!(judged.out.contains("7 resources, 0 mistakes"), "{}{}", judged.out, judged.err);
    let differs = told(&admin, &["diff", "-f", config]);
    assert_eq!(differs.code, Some(4), "{}{}", differs.out, differs.err);
    assert!(
        differs.out.contains("+ routes/a") && differs.out.contains("7 created"),
        "{}",
        differs.out
    );
    let applied = told(&admin, &["apply", "-f", config, "--owner", "shop", "--wait", "5"]).good();
    assert!(applied.contains("written as revision"), "{applied}");
    assert_eq!(told(&admin, &["diff", "-f", config, "--owner", "shop"]).code, Some(0));
    let first = admin.get("/routes/a").await["modifiedIndex"].as_u64().unwrap();

    // A dump goes back unchanged, as a stream and as files.
    let dump = told(&admin, &["dump"]).good();
    assert!(dump.ends_with("\n#END\n"), "{dump}");
    let again = fed(&admin, &["apply", "-f", "-"], &dump).good();
    assert!(
        again.contains("0 created, 0 updated, 0 deleted, 7 unchanged\nnothing to do"),
        "{again}"
    );
    let dumped = world.folder.join("dumped");
    told(&admin, &["dump", "--dir", dumped.to_str().unwrap()]).good();
    assert_eq!(told(&admin, &["diff", "-f", dumped.to_str().unwrap()]).code, Some(0));

    // What is wrong is told with its file, without a control plane and with one; then nothing is written.
    write(&folder, "more.yaml", "routes:\n  - { id: c, uri: /c, upstream_id: none }\n");
    let judged = run(["validate", "-f", config]);
    assert_eq!(judged.code, Some(1));
    let why = "more.yaml: routes/c: failed to fetch upstream info by upstream id [none]";
    assert!(judged.out.contains(why), "{}", judged.out);
    assert_eq!(run(["validate", "-f", config, "--partial"]).code, Some(0));
    let refused = told(&admin, &["apply", "-f", config, "--owner", "shop"]);
    assert_eq!(refused.code, Some(1));
    assert!(
        refused.out.contains(why) && refused.out.contains("nothing was written"),
        "{}",
        refused.out
    );
    write(&folder, "more.yaml", "routes: [{ id: c, uri: /c, upstream_id: u, vars: [[arg_a]] }]\n");
    let judged = run(["validate", "-f", config]);
    assert_eq!(judged.code, Some(1), "the data plane's compiler decides: {}", judged.out);
    std::fs::remove_file(folder.join("more.yaml")).unwrap();

    // In sync: what the owner no longer says goes, what somebody else wrote stays.
    admin.put("/routes/by-hand", &json!({ "uri": "/h", "upstream_id": "u" })).await;
    write(&folder, "routes.yaml", &ROUTES.replace("uri: /a", "uri: /aa").replace("id: b", "id: d"));
    let synced = told(&admin, &["sync", "-f", config, "--owner", "shop"]).good();
    for line in ["~ routes/a", "/uri: \"/a\" → \"/aa\"", "- routes/b", "+ routes/d", "in sync at"]
    {
        assert!(synced.contains(line), "{line}: {synced}");
    }
    assert_eq!(admin.get("/routes").await["total"], 4, "a, d, by-hand, and ADC's");
    assert_eq!(told(&admin, &["sync", "-f", config]).code, Some(1), "of whom?");

    let past = told(&admin, &["history", "routes/a"]).good();
    assert_eq!(past.lines().filter(|line| line.contains("  put  ")).count(), 2, "{past}");
    let all = told(&admin, &["history"]).good();
    assert!(all.contains("routes/by-hand") && all.contains("delete"), "{all}");
    let back = told(&admin, &["rollback", "--to", &first.to_string(), "--dry-run"]).good();
    assert!(back.contains("create   routes/b") && back.contains("--dry-run"), "{back}");
    let back = told(&admin, &["rollback", "--to", &first.to_string()]).good();
    assert!(back.contains("delete   routes/by-hand") && back.contains("written as"), "{back}");
    assert_eq!(admin.get("/routes/a").await["value"]["uri"], "/a");
    assert_eq!(admin.get("/routes").await["total"], 3);
}

#[tokio::test]
async fn what_is_kept_in_sync_is_put_back_when_somebody_changes_it() {
    let world = World::new();
    let control = world.control().start();
    let admin = control.admin();
    let folder = world.folder.join("config");
    write(&folder, "upstream.yaml", "upstreams: [{ id: u, nodes: { \"127.0.0.1:1\": 1 } }]\n");
    let mut command = wardgate();
    command.args(["sync", "-f", folder.to_str().unwrap(), "--owner", "shop"]);
    command.args(["--watch", "--every", "1"]).args(asks(&admin));
    let sync = crate::world::Process::launch("sync", command, &world.folder);
    sync.line("the first round", |line| line.starts_with("in sync at"));
    admin
        .put(
            "/upstreams/u",
            &json!({ "nodes": { "127.0.0.1:2": 1 }, "labels": { "wardgate.io/owner": "shop" } }),
        )
        .await;
    let nodes = json!({ "127.0.0.1:1": 1 });
    eventually_async("it is put back", || async {
        (admin.get("/upstreams/u").await["value"]["nodes"] == nodes).then_some(())
    })
    .await;
    write(&folder, "upstream.yaml", "upstreams: [{ id: v, nodes: { \"127.0.0.1:1\": 1 } }]\n");
    eventually_async("the files are read again", || async {
        let ids = admin.get("/upstreams").await;
        (ids["total"] == 1 && ids["list"][0]["value"]["id"] == "v").then_some(())
    })
    .await;
}

async fn put_configs(admin: &Admin, digest: &str, body: &Value) -> u16 {
    let heads = [("x-api-key", admin.key.as_str()), ("x-digest", digest)];
    send(admin.address, "PUT", "/apisix/admin/configs", &heads, body.to_string()).await.status
}

#[tokio::test]
async fn a_standalone_control_plane_feeds_what_was_put_and_its_restart_stops_no_traffic() {
    let world = World::new();
    let part = world.control().set("control.standalone", &json!({}));
    let mut control = part.start();
    let admin = control.admin();
    let ingress = world.ingress().fed_by(&control).launch();
    assert!(!ingress.is_ready(), "there is nothing yet");
    let (old, new) = (App::echo("old"), App::echo("new"));
    let to = |app: &App| json!({ "routes": [{ "id": "r", "uri": "/*", "upstream": { "nodes": { app.address.to_string(): 1 } } }] });
    assert_eq!(put_configs(&admin, "one", &to(&old)).await, 202);
    ingress.wait_ready();
    let door = ingress.address("ingress");
    let serves = async |app: &str| {
        eventually_async(&format!("requests reach {app}"), || async {
            let answer = get(door, "/").await;
            (answer.status == 200 && answer.json()["app"] == app).then_some(())
        })
        .await;
    };
    serves("old").await;

    // Its memory goes with it. Data planes keep what they have until there is something new.
    let feed = json!(control.address("feed").to_string());
    control.kill();
    let control = part.set("control.feed", &feed).start();
    let admin = Admin { address: control.address("admin"), key: admin.key };
    assert_eq!(admin.get("/configs").await["routes_conf_version"], 0);
    for _ in 0..20 {
        assert_eq!(get(door, "/").await.json()["app"], "old");
    }
    assert_eq!(put_configs(&admin, "one", &to(&new)).await, 202);
    serves("new").await;
    assert_eq!(put_configs(&admin, "one", &to(&old)).await, 204);
}

#[tokio::test]
async fn what_a_data_plane_refuses_is_seen_by_whoever_asks() {
    let world = World::new();
    let etcd = EtcdServer::start();
    let settings = json!({ "endpoints": [etcd.url()] });
    let store = Etcd::new(&serde_json::from_value(settings.clone()).unwrap()).unwrap();
    let control = world
        .control()
        .set("control.store", &json!({ "etcd": settings }))
        .set("status", &json!("127.0.0.1:0"))
        .start();
    let admin = control.admin();
    let _ingress = world.ingress().fed_by(&control).start();
    let app = App::echo("app");
    let upstream = json!({ "nodes": { app.address.to_string(): 1 } });
    let good = json!({ "uri": "/good", "upstream": upstream });
    let answer = admin.ask("PUT", "/routes/good?wait=applied", Some(&good)).await;
    assert_eq!(answer.header("x-wardgate-applied"), Some("true"));
    assert_eq!(answer.header("x-wardgate-refused"), None);

    // Past the Admin API: one that only its compilation refuses, and one that cannot be read.
    let put = async |id: &str, value: Value| {
        let key = format!("/apisix/routes/{id}");
        store.put(&key, &value, Expect::Anything, None).await.unwrap().modified
    };
    let bad = put(
        "bad",
        json!({ "id": "bad", "uri": "/bad", "upstream": upstream, "plugins": { "no-such": {} } }),
    )
    .await;
    let unreadable =
        put("unreadable", json!({ "id": "unreadable", "uri": "/x", "upstream": 7 })).await;
    admin.applied(unreadable, 1).await;
    let state = admin.get(&format!("/revisions/{bad}?wait=applied&timeout=10")).await;
    assert_eq!(state["refusing"], 1, "{state}");
    let refused = state["data_planes"][0]["rejected"].as_array().unwrap().clone();
    let refused = refused.iter().find(|one| one["id"] == "bad").expect("it is named");
    assert_eq!((&refused["kind"], &refused["revision"]), (&json!("routes"), &json!(bad)));
    assert!(refused["reason"].as_str().unwrap().contains("no-such"), "{refused}");
    assert_eq!(state["unreadable"][0]["id"], "unreadable");
    assert_eq!(admin.get("/revisions/latest").await["revision"], unreadable);

    let checked = told(&admin, &["check"]);
    assert_eq!(checked.code, Some(1));
    assert!(
        checked.out.contains(&format!("refuses revision {bad} of routes/bad: ")),
        "{}",
        checked.out
    );
    assert!(checked.out.contains("cannot be read: revision"), "{}", checked.out);
    let metrics = get(control.address("status"), "/metrics").await.text();
    for line in [
        "wardgate_feed_data_planes 1",
        "wardgate_feed_data_planes_behind 0",
        "wardgate_feed_unreadable_resources 1",
        "wardgate_feed_refused_resources{",
    ] {
        assert!(metrics.contains(line), "{line}: {metrics}");
    }
    // What stands badly already hinders nobody else's write.
    let set = json!({ "routes": [{ "id": "more", "uri": "/more", "upstream": upstream }] });
    let applied = admin.ask("POST", "/configs/apply?wait=applied", Some(&set)).await;
    assert_eq!(applied.status, 200, "{}", applied.text());
}

#[tokio::test]
async fn a_resources_file_that_cannot_be_used_is_seen_and_stops_no_traffic() {
    let world = World::new();
    let app = App::echo("app");
    let upstream = json!({ "nodes": { app.address.to_string(): 1 } });
    let good = json!({ "routes": [{ "id": "r", "uri": "/*", "upstream": upstream }] });
    let ingress = world.ingress().resources(&good).set("status", &json!("127.0.0.1:0")).start();
    let status = ingress.address("status");
    let feed = async || get(status, "/status/process").await.json()["feeds"][0].clone();
    assert_eq!(feed().await["good"], true);

    ingress.write_resources(&json!({ "routes": 7 }));
    let seen = eventually_async("it is told", || async {
        Some(feed().await).filter(|feed| feed["good"] == false)
    })
    .await;
    assert!(seen["error"].as_str().unwrap().contains("routes must be a list"), "{seen}");
    let metrics = get(status, "/metrics").await.text();
    assert!(metrics.contains("wardgate_resources_file_good{part=\"ingress\"} 0"), "{metrics}");
    assert_eq!(get(ingress.address("ingress"), "/").await.status, 200);

    let half =
        json!({ "routes": [{ "id": "r", "uri": "/*", "upstream": upstream }, { "id": "a b" }] });
    ingress.write_resources(&half);
    let seen = eventually_async("it is good again", || async {
        Some(feed().await).filter(|feed| feed["good"] == true)
    })
    .await;
    assert_eq!(seen["left_out"], 1, "{seen}");
    eventually("the metric says so", || {
        ingress.said().contains("an item is left out").then_some(())
    });
}
