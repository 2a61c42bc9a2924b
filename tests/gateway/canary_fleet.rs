//! Canary pushes where several control planes share an etcd: who tries is chosen by label, whoever sees it stops it for all, and a control
//! plane or a canary that dies in the middle takes nothing with it.

use std::time::Duration;

use serde_json::{Value, json};

use crate::etcd_server::EtcdServer;
use crate::world::{Admin, App, Part, Peer, Process, World, allow, eventually_async};

/// Two control planes over one etcd; the sidecar that tries belongs to the second, the other one to the first.
struct Fleet<'w> {
    world: &'w World,
    controls: Vec<Process>,
    admins: [Admin; 2],
    steady: Process,
    canary: Process,
    shop: Peer,
    _etcd: EtcdServer,
}

/// A control plane over `etcd` that tries with whom bears the label.
fn control<'w>(world: &'w World, name: &str, etcd: &EtcdServer, watch_seconds: u32) -> Part<'w> {
    let canary = json!({
        "labels": { "canary": "yes" }, "watch_seconds": watch_seconds, "min_samples": 10,
    });
    let store = json!({ "etcd": { "endpoints": [etcd.url()] } });
    world.control().named(name).set("control.store", &store).set("control.canary", &canary)
}

impl<'w> Fleet<'w> {
    async fn start(world: &'w World, app: &App, watch_seconds: u32) -> Self {
        let etcd = EtcdServer::start();
        let start = |name: &str| control(world, name, &etcd, watch_seconds).start();
        let controls = vec![start("first"), start("second")];
        let admins = [controls[0].admin(), controls[1].admin()];
        let all = allow("p", &[], &[&world.id("/shop")]);
        let first = admins[0].put("/identity_policies/p", &all).await;
        let part = |name: &str, at: usize| {
            world.sidecar("/billing").named(name).app(app).fed_by(&controls[at])
        };
        let steady = part("steady", 0).start();
        let tries = json!({ "canary": "yes" });
        let canary = part("canary", 1).set("control_plane.labels", &tries).start();
        admins[0].applied(first, 2).await;
        Self { world, controls, admins, steady, canary, shop: world.peer("/shop"), _etcd: etcd }
    }

    /// How the steady sidecar answers, and the one that tries.
    async fn asked(&self) -> (u16, u16) {
        let (steady, canary) =
            (self.shop.get(&self.steady, "/").await, self.shop.get(&self.canary, "/").await);
        (steady.status, canary.status)
    }

    /// Waits until both control planes say that the phase is this one.
    async fn both_say(&self, phase: &str) -> Value {
        eventually_async(&format!("both say {phase}"), || async {
            let [one, other] =
                [self.admins[0].get("/canary").await, self.admins[1].get("/canary").await];
            (one["phase"] == phase && other["phase"] == phase).then_some(one)
        })
        .await
    }

    fn nobody(&self) -> Value {
        allow("p", &[], &[&self.world.id("/nobody")])
    }

    async fn both_serve(&self) {
        eventually_async("both let it in", || async {
            (self.asked().await == (200, 200)).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn a_push_is_tried_by_label_at_another_control_plane_and_stopped_for_all_of_them() {
    let world = World::new();
    let app = App::echo("invoices");
    let fleet = Fleet::start(&world, &app, 5).await;
    for _ in 0..30 {
        assert_eq!(fleet.asked().await, (200, 200));
    }

    // Written at the first; the one that tries is fed by the second.
    fleet.admins[0].put("/identity_policies/p", &fleet.nobody()).await;
    let mut steady = Vec::new();
    let mut tried = Vec::new();
    loop {
        let (one, other) = fleet.asked().await;
        steady.push(one);
        tried.push(other);
        if fleet.admins[0].get("/canary").await["phase"] == "stopped" {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let state = fleet.both_say("stopped").await;
    assert!(state["reason"].as_str().unwrap().contains("denials rose to"), "{state}");
    assert!(tried.contains(&403), "the label chose it: {tried:?}");
    assert!(steady.iter().all(|status| *status == 200), "the others never had it: {steady:?}");
    fleet.both_serve().await;

    // A correction may come from either.
    let good = allow("p", &[], &[&world.id("/shop"), &world.id("/desk")]);
    let good = fleet.admins[1].put("/identity_policies/p", &good).await;
    let passed = eventually_async("the correction passes", || async {
        assert_eq!(fleet.asked().await, (200, 200));
        let state = fleet.admins[0].get("/canary").await;
        (state["phase"] == "passed" && state["candidate"].as_u64() >= Some(good)).then_some(state)
    })
    .await;
    assert!(passed["reason"].as_str().unwrap().contains("no rise"), "{passed}");
    fleet.both_say("passed").await;
    fleet.admins[0].applied(good, 2).await;
}

#[tokio::test]
async fn a_control_plane_that_dies_while_a_push_is_tried_leaves_it_to_the_other() {
    let world = World::new();
    let app = App::echo("invoices");
    let mut fleet = Fleet::start(&world, &app, 5).await;
    for _ in 0..30 {
        assert_eq!(fleet.asked().await, (200, 200));
    }
    let good = allow("p", &[], &[&world.id("/shop"), &world.id("/desk")]);
    let good = fleet.admins[0].put("/identity_policies/p", &good).await;
    fleet.both_say("trying").await;
    // Whoever wrote it and feeds the steady one.
    fleet.controls[0].kill();
    let last = &fleet.admins[1];
    eventually_async("the other one lets it pass", || async {
        assert_eq!(fleet.asked().await, (200, 200));
        let state = last.get("/canary").await;
        (state["phase"] == "passed" && state["candidate"].as_u64() >= Some(good)).then_some(())
    })
    .await;
    assert_eq!(world.peer("/desk").get(&fleet.canary, "/").await.status, 200);
    assert_eq!(world.peer("/desk").get(&fleet.steady, "/").await.status, 403, "nobody feeds it");
}

#[tokio::test]
async fn a_canary_that_dies_of_what_it_tries_stops_the_push() {
    let world = World::new();
    let app = App::echo("invoices");
    let mut fleet = Fleet::start(&world, &app, 8).await;
    fleet.admins[0].put("/identity_policies/p", &fleet.nobody()).await;
    eventually_async("it is tried", || async {
        let tried = fleet.asked().await == (200, 403);
        let state = fleet.admins[0].get("/canary").await;
        (tried && state["seen"]["canaries"].as_object().is_some_and(|seen| !seen.is_empty()))
            .then_some(())
    })
    .await;
    fleet.canary.kill();
    let state = fleet.both_say("stopped").await;
    let reason = state["reason"].as_str().unwrap();
    assert!(reason.contains("1 of 1 canaries are gone"), "{state}");
    assert_eq!(fleet.shop.get(&fleet.steady, "/").await.status, 200, "it never had it");
}
