//! How a process begins, says how it is, and ends: probes, the grace before its doors close, signals.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::mesh::{RawApp, Wire};
use crate::world::{App, Process, World, eventually_async, get, run, send, soon};

fn route_to(address: &str) -> Value {
    json!({ "routes": [{ "id": "r", "uri": "/*", "upstream": { "nodes": { address: 1 } } }] })
}

/// Asks again and again: what comes together with the first request is taken for the same.
async fn ended_at_once(process: &mut Process, signal: Signal) -> Option<i32> {
    eventually_async("the process ends", || async {
        process.signal(signal);
        process.has_ended().then_some(())
    })
    .await;
    process.wait().code()
}

#[tokio::test]
async fn a_process_that_is_asked_to_end_is_not_ready_at_once_and_serves_on_for_its_grace() {
    let world = World::new();
    let app = App::echo("app");
    let mut ingress = world
        .ingress()
        .set("status", &json!("127.0.0.1:0"))
        .set("drain_grace_seconds", &json!(3600))
        .resources(&route_to(&app.address.to_string()))
        .start();
    let status = ingress.address("status");
    assert_eq!(get(status, "/status/ready").await.status, 200);
    ingress.ask_to_end();
    let answer = eventually_async("not ready", || async {
        let answer = get(status, "/status/ready").await;
        (answer.status == 503).then_some(answer)
    })
    .await;
    let body = answer.json();
    assert_eq!(body["status"], "error");
    assert_eq!(body["error"], "draining: the process was asked to end");
    assert_eq!(get(status, "/status").await.status, 200, "it lives");
    for _ in 0..3 {
        assert_eq!(get(ingress.address("ingress"), "/new").await.status, 200);
    }
    // Whoever does not want to wait asks again.
    assert_eq!(ended_at_once(&mut ingress, Signal::TERM).await, Some(143));
}

#[tokio::test]
async fn a_second_request_to_end_cuts_off_what_is_under_way_and_keeps_the_decision_log_whole() {
    let world = World::new();
    let app = RawApp::serving(|stream| {
        if stream.head().is_some() {
            stream.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello");
            stream.rest();
        }
    });
    for (signal, code) in [(Signal::TERM, 143), (Signal::INT, 130)] {
        let mut ingress = world
            .ingress()
            .named(&format!("ingress-{code}"))
            .set("drain_seconds", &json!(3600))
            .resources(&route_to(&app.address.to_string()))
            .start();
        let mut wire = Wire::to(ingress.address("ingress")).await;
        wire.send("GET /x HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert_eq!(wire.head().await.unwrap().status, 200);
        ingress.signal(signal);
        ingress.logs("draining");
        assert_eq!(ended_at_once(&mut ingress, signal).await, Some(code));
        let log = ingress.audit_file();
        run(["audit", "verify", log.to_str().unwrap()]).good();
    }
}

/// Connects as fast as it can, a request each, until nobody is there; how many were answered, and what was lost.
async fn knock(door: std::net::SocketAddr, answered: &AtomicUsize) -> Vec<String> {
    let mut lost = Vec::new();
    loop {
        let connect = tokio::net::TcpStream::connect(door);
        let Ok(tcp) = soon("a connection or a refusal", connect).await else { return lost };
        let mut wire = Wire::over(tcp);
        wire.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
        match wire.response_to("GET").await {
            Some(answer) if answer.whole && answer.status == 200 => {
                answered.fetch_add(1, Ordering::SeqCst);
            }
            other => lost.push(format!("{other:?}")),
        }
    }
}

#[tokio::test]
async fn every_connection_that_was_made_before_the_doors_closed_is_served() {
    let world = World::new();
    let app = App::echo("app");
    for round in 0..3 {
        let mut ingress = world
            .ingress()
            .named(&format!("ingress-{round}"))
            .set("workers", &json!(2))
            .resources(&route_to(&app.address.to_string()))
            .start();
        let door = ingress.address("ingress");
        let answered = Arc::<AtomicUsize>::default();
        let clients: Vec<_> = (0..16)
            .map(|_| {
                let answered = answered.clone();
                wardgate::rt::spawn(async move { knock(door, &answered).await })
            })
            .collect();
        eventually_async("some answers", || async {
            (answered.load(Ordering::SeqCst) > 50).then_some(())
        })
        .await;
        ingress.ask_to_end();
        for client in clients {
            assert_eq!(soon("the end of a client", client).await.unwrap(), Vec::<String>::new());
        }
        assert!(ingress.wait().success(), "{}", ingress.said());
    }
}

/// The settings with some changed, in the file of a running process.
fn rewrite(process: &Process, change: impl FnOnce(&mut Value)) {
    let text = std::fs::read_to_string(&process.settings_file).unwrap();
    let mut settings: Value = serde_json::from_str(&text).unwrap();
    change(&mut settings);
    std::fs::write(&process.settings_file, settings.to_string()).unwrap();
}

fn reloaded(process: &Process) -> crate::world::Ended {
    run(["reload", "--at", &process.address("status").to_string()])
}

#[tokio::test]
async fn settings_are_read_again_and_what_a_running_process_cannot_change_is_named() {
    let world = World::new();
    let app = App::echo("app");
    let ingress = world
        .ingress()
        .env("WARDGATE_LOG", "")
        .set("log", &json!({ "filter": "wardgate=info" }))
        .set("audit", &json!({}))
        .set("status", &json!("127.0.0.1:0"))
        .resources(&route_to(&app.address.to_string()))
        .start();
    let status = ingress.address("status");
    assert_eq!(reloaded(&ingress).good(), "", "nothing has changed");

    let bad_request = b"GET / HTTP/9.9\r\n\r\n";
    rewrite(&ingress, |settings| {
        settings["log"]["filter"] = json!("wardgate=debug");
        settings["drain_seconds"] = json!(7);
        settings["warnings"] = json!({ "svid": [0.9] });
        settings["workers"] = json!(3);
    });
    let told = reloaded(&ingress).good();
    for line in ["drain_seconds is in force", "log.filter is in force", "warnings.svid is in force"]
    {
        assert!(told.contains(line), "{told}");
    }
    assert!(told.contains("workers comes into force with wardgate upgrade"), "{told}");
    let line = ingress.logs("come into force with");
    assert!(line.contains("workers"), "{line}");
    eventually_async("debug lines", || async {
        crate::world::raw_to(ingress.address("ingress"), bad_request).await;
        ingress.errors().contains("DEBUG").then_some(())
    })
    .await;

    // Every record on standard output as well, and then no more.
    rewrite(&ingress, |settings| settings["audit"]["stdout"] = json!(true));
    assert!(reloaded(&ingress).good().contains("audit.stdout is in force"));

    // A file that cannot be used changes nothing and says why.
    rewrite(&ingress, |settings| settings["drain_secondz"] = json!(1));
    let by_file = run(["reload", "-c", ingress.settings_file.to_str().unwrap()]);
    assert!(by_file.code == Some(1) && by_file.err.contains("drain_secondz"), "{by_file:?}");
    let refused = reloaded(&ingress);
    assert_eq!(refused.code, Some(1));
    assert!(refused.err.contains("drain_secondz"), "{}", refused.err);
    ingress.logs("the settings stay as they are");
    rewrite(&ingress, |settings| {
        settings.as_object_mut().unwrap().remove("drain_secondz");
        settings["log"]["filter"] = json!("a=loud");
    });
    assert!(reloaded(&ingress).err.contains("setting log.filter"));
    let told = get(status, "/status/process").await.json();
    assert!(told["settings"]["last"]["error"].as_str().unwrap().contains("log.filter"), "{told}");
    assert_eq!(get(ingress.address("ingress"), "/").await.status, 200);

    // What needs a new process gets one.
    rewrite(&ingress, |settings| settings["log"]["filter"] = json!("wardgate=info"));
    let replaced = run(["upgrade", "--at", &status.to_string()]).good();
    assert!(replaced.contains("has taken over from"), "{replaced}");
    let told = get(status, "/status/process").await.json();
    assert_eq!((&told["workers"], &told["state"]), (&json!(3), &json!("ready")));
}

#[tokio::test]
async fn the_settings_take_variables_of_the_environment() {
    let world = World::new();
    let app = App::echo("app");
    let part = world
        .ingress()
        .set("workers", &json!("${{LIFE_WORKERS}}"))
        .set("ingress.http", &json!("127.0.0.1:${{LIFE_PORT:=0}}"))
        .resources(&route_to(&app.address.to_string()));
    let refused = part.fails();
    assert!(
        refused.err.contains("the environment variable LIFE_WORKERS is not set"),
        "{refused:?}"
    );
    let ingress = part.env("LIFE_WORKERS", "2").start();
    assert_eq!(get(ingress.address("ingress"), "/").await.status, 200);
    let path = ingress.settings_file.to_str().unwrap().to_owned();
    let checked = run(["check", "--offline", "-c", &path]);
    assert_eq!(checked.code, Some(1));
    assert!(checked.out.contains("LIFE_WORKERS"), "{}", checked.out);
}

#[tokio::test]
async fn a_process_tells_what_runs_in_it() {
    let world = World::new();
    let app = App::echo("app");
    let control = world.control().set("status", &json!("127.0.0.1:0")).start();
    let ingress = world.ingress().set("status", &json!("127.0.0.1:0")).fed_by(&control).start();
    let admin = control.admin();
    let route = json!({ "uri": "/*", "upstream": { "nodes": { app.address.to_string(): 1 } } });
    let revision = admin.put("/routes/1", &route).await;
    admin.applied(revision, 1).await;
    let at = ingress.address("status");
    let told = get(at, "/status/process").await.json();
    assert_eq!(told["state"], "ready");
    assert_eq!(told["pid"], json!(ingress.pid()));
    assert_eq!(told["roles"], json!(["ingress"]));
    assert_eq!(told["configuration"][0]["revision"], json!(revision));
    assert_eq!(told["configuration"][0]["refused"], json!([]));
    assert_eq!(told["feeds"][0]["connected"], true);
    assert_eq!(told["identities"][0]["spiffe_id"], json!(ingress.id));
    assert!(told["identities"][0]["budget_seconds"].as_i64().unwrap() > 0);
    let listeners = told["listeners"].as_array().unwrap();
    let door = json!({ "name": "ingress", "address": ingress.address("ingress").to_string() });
    assert!(listeners.contains(&door), "{told}");

    let table = run(["status", "--at", &at.to_string()]).good();
    for part in ["ingress, process", "ready", "revision", "connected", &ingress.id, "0 lost"] {
        assert!(table.contains(part), "{part:?} in {table}");
    }
    let of_control = get(control.address("status"), "/status/process").await.json();
    assert_eq!(of_control["data_planes"]["connected"][0]["applied"], json!(revision));
    let table = run(["status", "--at", &control.address("status").to_string()]).good();
    assert!(table.contains("data plane") && table.contains("wardgate/ingress"), "{table}");
    let nobody = run(["status", "--at", "127.0.0.1:9"]);
    assert!(nobody.code == Some(1) && nobody.err.contains("nobody answers"), "{nobody:?}");
}

#[tokio::test]
async fn a_refused_resource_is_told_with_its_reason() {
    let world = World::new();
    let ingress = world
        .ingress()
        .set("status", &json!("127.0.0.1:0"))
        .resources(&json!({ "routes": [{
            "id": "bad", "uri": "/*", "plugins": { "no-such-plugin": {} },
            "upstream": { "nodes": { "127.0.0.1:9": 1 } },
        }] }))
        .start();
    let told = get(ingress.address("status"), "/status/process").await.json();
    let refused = &told["configuration"][0]["refused"][0];
    assert_eq!((&refused["kind"], &refused["id"]), (&json!("routes"), &json!("bad")));
    assert!(refused["reason"].as_str().unwrap().contains("no-such-plugin"), "{told}");
    let table = run(["status", "--at", &ingress.address("status").to_string()]).good();
    assert!(table.contains("routes/bad") && table.contains("no-such-plugin"), "{table}");
}

#[tokio::test]
async fn the_control_api_shows_what_is_in_force_and_no_secret() {
    let world = World::new();
    let ingress = world
        .ingress()
        .set("control_api", &json!({ "listen": "127.0.0.1:0" }))
        .resources(&json!({
            "routes": [{ "id": "1", "uri": "/hello", "upstream_id": "1" }],
            "services": [{ "id": "5", "upstream": { "nodes": { "127.0.0.1:9": 1 } } }],
            "upstreams": [{ "id": "1", "nodes": { "example.test:80": 1 } }],
            "consumers": [{ "username": "jack", "plugins": { "key-auth": { "key": "s3cr3t-of-jack" } } }],
        }))
        .start();
    let at = ingress.address("control_api");
    let routes = get(at, "/v1/routes").await.json();
    assert_eq!(routes[0]["key"], "/routes/1");
    assert_eq!(routes[0]["value"]["id"], "1");
    assert_eq!(routes[0]["value"]["status"], 1, "defaults are filled in: {routes}");
    let one = get(at, "/v1/route/1").await.json();
    assert_eq!(one, routes[0]);
    assert_eq!(get(at, "/v1/service/5").await.json()["has_domain"], false);
    assert_eq!(get(at, "/v1/upstream/1").await.json()["has_domain"], true);
    for (path, status, body) in [
        ("/v1/route/9", 404, json!({ "error_msg": "route[9] not found" })),
        ("/v1/upstream/9", 404, json!({ "error_msg": "upstream[9] not found" })),
        ("/v1/service/9", 404, json!({ "error_msg": "service[9] not found" })),
        ("/v1/plugin_metadata/x", 404, json!({ "error_msg": "plugin metadata[x] not found" })),
        ("/v1/plugin_metadatas", 200, json!([])),
        ("/v1/healthcheck", 200, json!([])),
        ("/v1/healthcheck/upstreams/1", 404, json!({ "error_msg": "no checker for upstreams[1]" })),
        ("/v1/healthcheck/upstreams/9", 404, json!({ "error_msg": "upstreams[9] not found" })),
        ("/v1/healthcheck/other/9", 400, json!({ "error_msg": "invalid src type other" })),
        (
            "/v1/discovery/consul/dump",
            404,
            json!({ "error_msg": "discovery consul is not in use" }),
        ),
        ("/v1/other", 404, json!({ "error_msg": "404 Not Found" })),
    ] {
        let answer = get(at, path).await;
        assert_eq!((answer.status, answer.json()), (status, body), "{path}");
    }
    let page = send(at, "GET", "/v1/healthcheck", &[("accept", "text/html")], "").await;
    assert!(page.header("content-type").unwrap().starts_with("text/html"));
    assert_eq!(send(at, "POST", "/v1/gc", &[], "").await.status, 200);
    assert_eq!(send(at, "PUT", "/v1/plugins/reload", &[], "").await.text(), "done");
    let schema = get(at, "/v1/schema").await.json();
    assert!(schema["main"]["route"]["properties"]["uri"].is_object());
    assert_eq!(schema["plugins"]["key-auth"]["type"], "auth");
    for path in ["/v1/routes", "/v1/services", "/v1/upstreams", "/v1/plugin_metadatas"] {
        assert!(!get(at, path).await.text().contains("s3cr3t"), "{path}");
    }

    let open = world
        .ingress()
        .named("open")
        .set("control_api", &json!({ "listen": "0.0.0.0:0" }))
        .resources(&json!({ "routes": [] }));
    let refused = open.fails();
    assert!(refused.err.contains("setting control_api.listen"), "{refused:?}");
    open.set("control_api.allow_remote", &json!(true)).start();
}
