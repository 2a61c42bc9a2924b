//! The decision log when it matters: what must be on record before it happens, a disk that takes no more, crashes, counting,
//! and what does not stand in it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use serde_json::{Value, json};
use wardgate::observe::{Expected, log_files, verify};

use crate::world::{
    App, Part, Peer, Process, World, allow, eventually, eventually_async, get, run,
};

/// A sidecar with a route that must be recorded, under `/must/`, and one that need not be.
fn billing<'w>(world: &'w World, app: &App) -> Part<'w> {
    let route = |id: &str, uri: &str, audit: &str| {
        json!({
            "id": id, "uri": uri, "audit": audit, "workload_selector": { "listener": "inbound" },
            "upstream": { "nodes": { (app.address.to_string()): 1 } },
        })
    };
    world.sidecar("/billing").app(app).set("status", &json!("127.0.0.1:0")).resources(&json!({
        "routes": [route("must", "/must/*", "required"), route("any", "/any/*", "best")],
        "identity_policies": [allow("p", &[&world.id("/billing")], &[&world.id("/shop")])],
    }))
}

/// Lets the files of a process grow no further than this; `None`: as they like.
fn limit_files(process: &Process, bytes: Option<u64>) {
    let pid = Pid::from_raw(process.pid().try_into().unwrap());
    let limits = Rlimit { current: bytes, maximum: None };
    prlimit(pid, Resource::Fsize, limits).unwrap();
}

fn of_path(process: &Process, path: &str) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let records = process.audit().into_iter().filter(|record| record["path"] == path);
    records.map(|record| (text(&record["outcome"]), text(&record["reason"]))).collect()
}

#[tokio::test]
async fn what_must_be_on_record_waits_for_it_and_is_refused_when_the_disk_takes_no_more() {
    let world = World::new();
    let app = App::echo("app");
    let billing = billing(&world, &app).set("decision_log.sync", &json!(true)).start();
    let status = billing.address("status");
    let mut shop = world.peer("/shop").connect(&billing).await;
    for number in 0..50 {
        let path = format!("/must/{number}");
        assert_eq!(shop.get(&path).await.status, 200);
        // No waiting: who has the answer finds the record.
        assert_eq!(of_path(&billing, &path), [("allow".to_owned(), String::new())]);
    }

    // The disk is full. (Messages for people go to a smaller file, and can still be written.)
    let size = std::fs::metadata(billing.audit_file()).unwrap().len();
    limit_files(&billing, Some(size));
    let before = app.requests();
    let refused = shop.get("/must/refused").await;
    assert_eq!(refused.status, 503);
    assert_eq!(app.requests(), before, "nothing of it has reached the application");
    assert_eq!(shop.get("/any/1").await.status, 200, "others go on");
    assert_eq!(app.requests(), before + 1);
    billing.logs("the audit log cannot be written");
    let metrics = get(status, "/metrics").await.text();
    assert!(metrics.contains("wardgate_audit_writing 0"), "{metrics}");
    assert!(metrics.contains("wardgate_audit_lost_total 0"), "nothing is lost yet: {metrics}");
    assert_eq!(get(status, "/status/ready").await.status, 200, "most of its traffic goes on");

    // There is room again: it goes on by itself, and tells what was asked meanwhile.
    limit_files(&billing, None);
    eventually_async("the log is written again", || async {
        let metrics = get(status, "/metrics").await.text();
        metrics.contains("wardgate_audit_writing 1").then_some(())
    })
    .await;
    assert_eq!(shop.get("/must/after").await.status, 200);
    let told = [("allow", ""), ("deny", "not_recorded")];
    let told = told.map(|(outcome, reason)| (outcome.to_owned(), reason.to_owned()));
    assert_eq!(of_path(&billing, "/must/refused"), told);
    assert_eq!(of_path(&billing, "/any/1").len(), 1);
    run(["audit", "verify", billing.audit_file().to_str().unwrap()]).good();
}

#[tokio::test]
async fn who_must_refuse_what_finds_no_room_is_not_ready_while_nothing_can_be_written() {
    let world = World::new();
    let app = App::echo("app");
    let part = billing(&world, &app).set("decision_log.when_full", &json!("refuse"));
    let billing = part.start();
    let status = billing.address("status");
    let mut shop = world.peer("/shop").connect(&billing).await;
    for number in 0..50 {
        assert_eq!(shop.get(&format!("/must/{number}")).await.status, 200);
    }
    limit_files(&billing, Some(std::fs::metadata(billing.audit_file()).unwrap().len()));
    assert_eq!(shop.get("/must/refused").await.status, 503);
    let answer = eventually_async("not ready", || async {
        let answer = get(status, "/status/ready").await;
        (answer.status == 503).then_some(answer)
    })
    .await;
    assert_eq!(answer.json()["error"], "audit: the decision log cannot be written");
    limit_files(&billing, None);
    eventually_async("ready", || async {
        (get(status, "/status/ready").await.status == 200).then_some(())
    })
    .await;
}

/// Asks as fast as it can until nobody answers; notes what was answered.
async fn ask(
    shop: Arc<Peer>,
    billing: &Process,
    name: String,
    acknowledged: Arc<Mutex<Vec<String>>>,
) {
    let mut connection = shop.connect(billing).await;
    for number in 0.. {
        let path = format!("/must/{name}-{number}");
        let other = connection.try_send("GET", &format!("/any/{number}"), &[], "").await;
        match connection.try_send("GET", &path, &[], "").await {
            Ok(answer) if answer.status == 200 => acknowledged.lock().push(path),
            Ok(answer) => panic!("{path} was answered with {}", answer.status),
            Err(_) => return,
        }
        if other.is_err() {
            return;
        }
    }
}

#[tokio::test]
async fn a_process_that_is_killed_again_and_again_loses_nothing_that_it_had_to_record() {
    const ROUNDS: usize = 20;
    let world = World::new();
    let app = App::echo("app");
    // Small files: some of the crashes fall together with a rotation.
    let part = billing(&world, &app).set("decision_log.rotate_bytes", &json!(65_536));
    let shop = Arc::new(world.peer("/shop"));
    let acknowledged = Arc::<Mutex<Vec<String>>>::default();
    for round in 0..ROUNDS {
        let mut billing = part.start();
        let pid = billing.pid();
        let before = acknowledged.lock().len();
        let clients = (0..3).map(|client| {
            ask(shop.clone(), &billing, format!("{round}-{client}"), acknowledged.clone())
        });
        let killed = AtomicUsize::new(0);
        let killer = async {
            eventually_async("some answers", || async {
                (acknowledged.lock().len() >= before + 10 + round).then_some(())
            })
            .await;
            killed.store(acknowledged.lock().len(), Ordering::SeqCst);
            let pid = Pid::from_raw(pid.try_into().unwrap()).unwrap();
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        };
        futures_util::future::join(futures_util::future::join_all(clients), killer).await;
        assert!(killed.load(Ordering::SeqCst) > before);
        billing.kill();
    }
    // The next one goes on where the last one fell.
    let billing = part.start();
    drop(billing);

    let files = log_files(&part.state.join("audit.jsonl"));
    let report = verify(&files, Expected::default()).unwrap();
    assert!(report.is_sound(), "{:?}", report.findings);
    assert_eq!(report.lost, 0);
    let (mut recorded, mut boots) = (BTreeSet::new(), BTreeSet::new());
    for file in &files {
        for line in std::fs::read_to_string(file).unwrap().lines() {
            // A torn end was put aside as it is, and verify says that the log tells of it.
            let Ok(record) = serde_json::from_str::<Value>(line) else { continue };
            boots.insert(record["boot_id"].as_str().unwrap().to_owned());
            if record["outcome"] == "allow" {
                recorded.insert(record["path"].as_str().unwrap_or_default().to_owned());
            }
        }
    }
    assert_eq!(boots.len(), ROUNDS + 1);
    let acknowledged = acknowledged.lock();
    assert!(acknowledged.len() >= ROUNDS * 10);
    let lost: Vec<&String> = acknowledged.iter().filter(|path| !recorded.contains(*path)).collect();
    assert!(lost.is_empty(), "answered, and not on record: {lost:?}");
}

#[tokio::test]
async fn many_requests_of_one_kind_are_one_record_a_window_and_refusals_have_their_own() {
    let world = World::new();
    let app = App::echo("app");
    let billing = billing(&world, &app)
        .set("decision_log", &json!({ "window_seconds": 1, "connections": "all" }))
        .start();
    let (shop, stranger) = (world.peer("/shop"), world.peer("/stranger"));
    for _ in 0..2 {
        // Connections of one caller are the same caller.
        let mut connection = shop.connect(&billing).await;
        for number in 0..100 {
            assert_eq!(connection.get(&format!("/any/{number}")).await.status, 200);
        }
    }
    for _ in 0..3 {
        assert_eq!(stranger.get(&billing, "/any/1").await.status, 403);
    }
    let decisions = |outcome: &str| -> Vec<Value> {
        let fits = |record: &Value| record["type"] == "decision" && record["outcome"] == outcome;
        billing.audit().into_iter().filter(fits).collect()
    };
    let count = |records: &[Value]| -> u64 {
        records.iter().map(|record| record["count"].as_u64().unwrap_or(1)).sum()
    };
    let allowed = eventually("all are told", || {
        let allowed = decisions("allow");
        (count(&allowed) == 200).then_some(allowed)
    });
    assert!(allowed.len() < 100, "{}", allowed.len());
    let many = allowed.iter().find(|record| record["aggregated"] == true).unwrap();
    assert_eq!(many["src"]["spiffe_id"], json!(world.id("/shop")));
    assert_eq!((&many["src"]["addr"], many.get("conn_id")), (&json!("127.0.0.1"), None));
    assert_eq!(many["route_id"], "any");
    assert_eq!(many["template"], "/any/{id}");
    assert_eq!(decisions("deny").len(), 3);
    assert!(decisions("deny").iter().all(|record| record.get("count").is_none()));
    let closed = billing.record("a closed connection", |record| {
        record["type"] == "connection" && record["event"] == "close" && record["requests"] == 100
    });
    assert_eq!((&closed["side"], closed.get("reason")), (&json!("accepted"), None));
    assert!(closed["bytes_in"].as_u64() > Some(1000) && closed["duration_ms"].is_u64(), "{closed}");
    let opened = billing.record("the same when it opened", |record| {
        record["event"] == "open" && record["conn_id"] == closed["conn_id"]
    });
    assert_eq!(opened["tls"]["version"], "1.3");
    let log = billing.audit_file();
    let tail = run(["audit", "tail", "-n", "1000", log.to_str().unwrap()]).good();
    assert!(tail.contains(" times"), "{tail}");
}

#[tokio::test]
async fn what_the_settings_leave_out_stands_nowhere_and_can_be_checked_by_who_has_the_key() {
    let world = World::new();
    let app = App::echo("app");
    let key = world.folder.join("audit.key");
    std::fs::write(&key, "0f".repeat(32)).unwrap();
    let billing = billing(&world, &app)
        .set(
            "decision_log",
            &json!({
                "allows": "each",
                "headers": ["x-patient", { "name": "x-ward", "keep": true }],
                "redact": {
                    "paths": "template", "addresses": "prefix", "principals": "hmac", "key_file": key,
                },
            }),
        )
        .start();
    let fields = [
        ("x-patient", "patient-4711"),
        ("x-ward", "seven"),
        ("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
        ("x-request-id", "r-1"),
    ];
    let shop = world.peer("/shop");
    assert_eq!(shop.send(&billing, "GET", "/any/9876543", &fields, "").await.status, 200);
    let denied = world.peer("/stranger").send(&billing, "GET", "/any/9876543", &fields, "").await;
    assert_eq!(denied.status, 403);
    let record = billing.record_with("/denial_id", &json!(denied.denial()));
    let allowed = billing.record_with("/outcome", &json!("allow"));
    assert_eq!((&allowed["template"], allowed.get("path")), (&json!("/any/*"), None));
    assert_eq!(record["src"]["addr_prefix"], "127.0.0.0/24");
    assert_eq!(record["src"]["trust_domain"], json!(world.id("/").split('/').nth(2).unwrap()));
    assert_eq!(record["headers"], json!({ "x-ward": "seven" }));
    assert_eq!(
        (&record["request_id"], &record["span_id"]),
        (&json!("r-1"), &json!("00f067aa0ba902b7"))
    );
    let log = billing.audit_file();
    let text = std::fs::read_to_string(&log).unwrap();
    for secret in [&*world.id("/shop"), &*world.id("/stranger"), "9876543", "4711", "127.0.0.1:"] {
        let lines = text.lines().filter(|line| line.contains("\"decision\""));
        assert_eq!(lines.filter(|line| line.contains(secret)).count(), 0, "{secret}");
    }
    let (log, key) = (log.to_str().unwrap(), key.to_str().unwrap());
    let find = |value: &str| {
        run(["audit", "match", "--key", key, "--header", "x-patient", "--value", value, log])
    };
    assert!(find("/any/9876543").good().contains("path_hmac"));
    assert!(find(&world.id("/shop")).good().contains("src.spiffe_id_hmac"));
    assert!(find("patient-4711").good().contains("headers_hmac.x-patient"));
    assert_eq!(find("/any/1").code, Some(1));
    let explained = run(["explain", "denial", denied.denial(), "--log", log]).good();
    assert!(explained.contains("left out by the settings"), "{explained}");
    run(["audit", "verify", log]).good();
}

#[test]
fn settings_that_would_be_ignored_or_leak_are_refused_by_name() {
    let world = World::new();
    for (settings, name) in [
        (json!({ "redact": { "paths": "hmac" } }), "decision_log.redact.key_file"),
        (json!({ "headers": [{ "name": "authorization", "keep": true }] }), "decision_log.headers"),
        (json!({ "window_seconds": 0 }), "decision_log.window_seconds"),
        (json!({ "rotate_bytes": 1 }), "decision_log.rotate_bytes"),
    ] {
        let part = world.ingress().resources(&json!({})).set("decision_log", &settings);
        let ended = part.fails();
        assert!(format!("{ended:?}").contains(name), "{name}: {ended:?}");
    }
    let route = json!({
        "id": "r", "uri": "/*", "audit": "required", "workload_selector": { "listener": "outbound" },
        "upstream": { "nodes": { "127.0.0.1:1": 1 } },
    });
    let sidecar = world.sidecar("/shop").resources(&json!({ "routes": [route] })).start();
    let refused = sidecar.record_with("/event", &json!("refused"));
    assert!(refused["reason"].as_str().unwrap().contains("audit: required"), "{refused}");
}
