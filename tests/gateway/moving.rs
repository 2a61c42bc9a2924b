//! Several control planes over one etcd, and data planes that lose theirs.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::etcd_server::EtcdServer;
use crate::world::{Admin, App, Process, World, eventually_async, get};

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
