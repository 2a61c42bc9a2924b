//! Several control planes over one etcd, and data planes that lose theirs.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::etcd_server::EtcdServer;
use crate::world::{Admin, App, Process, World, eventually_async, get, run};

fn to(app: &App, mark: &str) -> Value {
    let node = app.address.to_string();
    let headers = json!({ "headers": { "set": { "x-version": mark } } });
    json!({
        "uri": "/*", "upstream": { "nodes": { node: 1 } },
        "plugins": { "response-rewrite": headers },
    })
}

/// How many data planes are connected there.
async fn fed(admin: &Admin) -> u64 {
    admin.get("/revisions/1").await["total"].as_u64().unwrap()
}

/// Waits until requests are answered as the route's version `mark` has it; since when it took so long.
async fn serves(ingress: &Process, mark: &str, since: Instant) {
    let door = ingress.address("ingress");
    eventually_async(&format!("version {mark} serves"), || async {
        (get(door, "/").await.header("x-version") == Some(mark)).then_some(())
    })
    .await;
    eprintln!("version {mark} serves {:?} after its control plane was gone", since.elapsed());
}

/// How many resources each delta had that came into force after the first `skip` of them.
fn changes(ingress: &Process, skip: usize) -> Vec<usize> {
    let errors = ingress.errors();
    let lines = errors.lines().filter(|line| line.contains("configuration applied")).skip(skip);
    let count = |line: &str| {
        let text = line.split("changes=").nth(1)?;
        text.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
    };
    lines.map(|line| count(line).unwrap_or_else(|| panic!("no count: {line}"))).collect()
}

#[tokio::test]
async fn a_data_plane_whose_control_plane_dies_goes_on_with_another_and_no_request_fails() {
    let world = World::new();
    let etcd = EtcdServer::start();
    let store = json!({ "etcd": { "endpoints": [etcd.url()] } });
    let part = |name: &str| world.control().named(name).set("control.store", &store);
    let (first, second) = (part("first").start(), part("second").start());
    let (admins, mut parts) = ([first.admin(), second.admin()], [first, second]);
    let app = App::echo("app");
    for number in 0..50 {
        let beside = json!({ "uri": format!("/beside/{number}"), "upstream": { "nodes": { "127.0.0.1:1": 1 } } });
        admins[0].put(&format!("/routes/beside-{number}"), &beside).await;
    }
    admins[0].put("/routes/1", &to(&app, "first")).await;
    let places = parts.each_ref().map(|part| part.address("feed").to_string());
    let ingress = world.ingress().set("control_plane", &json!({ "addresses": places })).start();
    serves(&ingress, "first", Instant::now()).await;
    let known = changes(&ingress, 0).len();
    assert!(changes(&ingress, 0).contains(&51), "all at once: {:?}", changes(&ingress, 0));

    // Whoever asks meanwhile notices nothing.
    let (asked, failed) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
    let (over, door) = (Arc::<AtomicBool>::default(), ingress.address("ingress"));
    let callers = {
        let (asked, failed, over) = (asked.clone(), failed.clone(), over.clone());
        wardgate::rt::spawn(async move {
            while !over.load(Ordering::Relaxed) {
                asked.fetch_add(1, Ordering::Relaxed);
                if get(door, "/").await.status != 200 {
                    failed.fetch_add(1, Ordering::Relaxed);
                }
                tokio::time::sleep(std::time::Duration::from_millis(2)).await;
            }
        })
    };

    // It stands where it is: its sockets are open, and nobody answers.
    let at = usize::from(fed(&admins[1]).await == 1);
    let other = 1 - at;
    parts[at].signal(Signal::STOP);
    let since = Instant::now();
    let revision = admins[other].put("/routes/1", &to(&app, "second")).await;
    serves(&ingress, "second", since).await;
    admins[other].applied(revision, 1).await;
    parts[at].signal(Signal::CONT);

    // It dies.
    parts[other].kill();
    let since = Instant::now();
    let revision = admins[at].put("/routes/1", &to(&app, "third")).await;
    serves(&ingress, "third", since).await;
    admins[at].applied(revision, 1).await;

    over.store(true, Ordering::Relaxed);
    callers.await.unwrap();
    let (asked, failed) = (asked.load(Ordering::Relaxed), failed.load(Ordering::Relaxed));
    assert!(asked > 10 && failed == 0, "{failed} of {asked} requests failed");
    let later = changes(&ingress, known);
    assert!(later.iter().all(|count| *count <= 1), "only what changed was sent: {later:?}");
}

/// The answer of `/status/ready`.
async fn ready(control: &Process) -> (u16, Value) {
    let answer = get(control.address("status"), "/status/ready").await;
    (answer.status, answer.json())
}

#[tokio::test]
async fn a_control_plane_that_has_lost_its_store_feeds_what_it_has_and_says_so() {
    let world = World::new();
    let mut etcd = EtcdServer::start();
    let store = json!({ "etcd": { "endpoints": [etcd.url()], "timeout_seconds": 1 } });
    let control = world.control().set("control.store", &store);
    let control = control.set("status", &json!("127.0.0.1:0")).start();
    let (admin, app) = (control.admin(), App::echo("app"));
    let revision = admin.put("/routes/1", &to(&app, "first")).await;
    let before = world.ingress().named("before").fed_by(&control).start();
    admin.applied(revision, 1).await;
    assert_eq!(ready(&control).await, (200, json!({ "status": "ok" })));

    etcd.stop();
    eventually_async("it says so", || async {
        let (status, body) = ready(&control).await;
        let told = body["without"]["store"].as_str().unwrap_or_default().to_owned();
        assert_eq!(status, 200, "it goes on");
        told.contains("fed what was read").then_some(())
    })
    .await;
    let process = get(control.address("status"), "/status/process").await.json();
    assert_eq!(process["store"]["reachable"], false, "{process}");
    let told = run(["status", "--at", &control.address("status").to_string()]);
    assert!(told.out.contains("does not answer since"), "{}{}", told.out, told.err);
    // One that comes now gets all that there is.
    let after = world.ingress().named("after").fed_by(&control).start();
    serves(&after, "first", Instant::now()).await;
    serves(&before, "first", Instant::now()).await;
    assert_eq!(admin.ask("PUT", "/routes/1", Some(&to(&app, "second"))).await.status, 503);

    etcd.resume();
    eventually_async("it is well again", || async {
        (ready(&control).await.1 == json!({ "status": "ok" })).then_some(())
    })
    .await;
    eventually_async("writes are taken again", || async {
        let answer = admin.ask("PUT", "/routes/1", Some(&to(&app, "third"))).await;
        (answer.status < 300).then_some(())
    })
    .await;
    serves(&after, "third", Instant::now()).await;
    serves(&before, "third", Instant::now()).await;
}

#[tokio::test]
async fn what_all_data_planes_have_is_told_by_each_of_several_control_planes() {
    let world = World::new();
    let etcd = EtcdServer::start();
    let store = json!({ "etcd": { "endpoints": [etcd.url()] } });
    let part = |name: &str| world.control().named(name).set("control.store", &store).start();
    let parts = [part("first"), part("second")];
    let admins = parts.each_ref().map(Process::admin);
    let app = App::echo("app");
    let revision = admins[0].put("/routes/1", &to(&app, "first")).await;
    let edges = [("one", 0), ("two", 1)]
        .map(|(name, at)| world.ingress().named(name).fed_by(&parts[at]).start());
    // Each tells of both, and whose the other is.
    for (at, admin) in admins.iter().enumerate() {
        let state = admin.applied(revision, 2).await;
        assert_eq!(
            (&state["total"], state["data_planes"].as_array().unwrap().len()),
            (&json!(2), 1)
        );
        let other = ["second", "first"][at];
        assert_eq!(state["elsewhere"][0]["node"], other, "{state}");
    }
    for (mark, admin) in [("second", &admins[0]), ("third", &admins[1])] {
        let path = "/routes/1?wait=applied&timeout=30";
        let answer = admin.ask("PUT", path, Some(&to(&app, mark))).await;
        assert_eq!(answer.header("x-wardgate-applied"), Some("true"), "{}", answer.text());
        for edge in &edges {
            let answer = get(edge.address("ingress"), "/").await;
            assert_eq!(answer.header("x-version"), Some(mark));
        }
    }
    // The newest is known without a look at everything.
    let newest = admins[0].delete("/routes/1").await;
    assert_eq!(admins[0].get("/revisions/latest").await["revision"], newest);

    // One whose data plane stands still is not counted as if it were not there.
    edges[1].signal(Signal::STOP);
    let path = "/routes/1?wait=applied&timeout=1";
    let answer = admins[0].ask("PUT", path, Some(&to(&app, "fourth"))).await;
    assert_eq!(answer.header("x-wardgate-applied"), Some("false"), "{}", answer.text());
    edges[1].signal(Signal::CONT);
    admins[0].applied(answer.revision(), 2).await;
}
