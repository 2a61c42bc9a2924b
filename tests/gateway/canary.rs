//! Canary pushes, from a write at the Admin API to data planes that serve: stopped, corrected, skipped, confirmed.

use std::cell::Cell;

use serde_json::{Value, json};

use crate::world::{Admin, App, Peer, Process, World, allow, eventually_async, run};

/// A control plane that tries changes on one of two, and the two sidecars of one workload.
struct Fleet<'w> {
    world: &'w World,
    control: Process,
    admin: Admin,
    planes: [Process; 2],
    shop: Peer,
}

impl<'w> Fleet<'w> {
    /// Everybody lets `/shop` in.
    async fn start(world: &'w World, app: &App) -> Self {
        let canary = json!({ "share": 50, "watch_seconds": 5, "min_samples": 10 });
        let status = json!("127.0.0.1:0");
        let control = world.control().set("control.canary", &canary).set("status", &status).start();
        let admin = control.admin();
        // Nobody is there yet who could try it.
        let all = allow("p", &[], &[&world.id("/shop")]);
        let first = admin.put("/identity_policies/p", &all).await;
        let part =
            |name: &str| world.sidecar("/billing").named(name).app(app).fed_by(&control).start();
        let planes = [part("billing-1"), part("billing-2")];
        admin.applied(first, 2).await;
        Self { world, control, admin, planes, shop: world.peer("/shop") }
    }

    async fn status(&self) -> Value {
        self.admin.get("/canary").await
    }

    /// How `/shop` is answered at both.
    async fn asked(&self, path: &str) -> [u16; 2] {
        let [one, other] = &self.planes;
        [self.shop.get(one, path).await.status, self.shop.get(other, path).await.status]
    }

    /// Waits for a phase, asking both planes all the while; the answers that each gave.
    async fn until(&self, phase: &str, beyond: u64, path: &str) -> (Value, [Vec<u16>; 2]) {
        let answers = Cell::new([Vec::new(), Vec::new()]);
        let state = eventually_async(&format!("{phase} beyond {beyond}"), || async {
            let now = self.asked(path).await;
            let mut all = answers.take();
            all.iter_mut().zip(now).for_each(|(all, one)| all.push(one));
            answers.set(all);
            let state = self.status().await;
            let is_it = state["phase"] == phase && state["candidate"].as_u64() >= Some(beyond);
            is_it.then_some(state)
        })
        .await;
        (state, answers.take())
    }

    fn canary_command(&self, verb: &[&str]) -> (Option<i32>, String) {
        let url = format!("http://{}", self.admin.address);
        let mut arguments = vec!["canary"];
        arguments.extend(verb);
        arguments.extend(["--admin", &url, "--key", &self.admin.key]);
        let ended = run(arguments);
        (ended.code, format!("{}{}", ended.out, ended.err))
    }

    fn nobody(&self) -> Value {
        allow("p", &[], &[&self.world.id("/nobody")])
    }
}

#[tokio::test]
async fn a_policy_that_denies_more_is_stopped_at_the_canary_and_taken_back() {
    let world = World::new();
    let app = App::echo("invoices");
    let fleet = Fleet::start(&world, &app).await;
    let admin = &fleet.admin;
    for _ in 0..30 {
        assert_eq!(fleet.asked("/").await, [200, 200]);
    }

    let bad = admin.put("/identity_policies/p", &fleet.nobody()).await;
    let (state, answers) = fleet.until("stopped", bad, "/").await;
    assert!(state["reason"].as_str().unwrap().contains("denials rose to"), "{state}");
    let denied = answers.each_ref().map(|all| all.contains(&403));
    assert!(denied == [true, false] || denied == [false, true], "one had it: {answers:?}");
    eventually_async("the canary is back", || async {
        (fleet.asked("/").await == [200, 200]).then_some(())
    })
    .await;
    let (code, out) = fleet.canary_command(&["status"]);
    assert!(code == Some(1) && out.contains("STOPPED"), "{out}");
    let check =
        run(["check", "--admin", &format!("http://{}", admin.address), "--key", &admin.key]);
    assert!(check.code == Some(1) && check.out.contains("denials rose"), "{}", check.out);
    let metrics = crate::world::get(fleet.control.address("status"), "/metrics").await.text();
    assert!(metrics.contains("wardgate_canary_phase 2"), "{metrics}");

    // Nothing newer passes, but for what says that it must.
    let waits = allow("other", &[], &[&world.id("/web")]);
    let waits = admin.put("/identity_policies/other", &waits).await;
    let mut deny = allow("d", &[], &[&world.id("/shop")]);
    deny["action"] = json!("deny");
    deny["rules"][0]["to"] = json!({ "paths": ["/secret"] });
    let path = "/identity_policies/d?canary=skip&wait=applied&timeout=30";
    let skipped = admin.ask("PUT", path, Some(&deny)).await;
    assert_eq!(skipped.header("x-wardgate-applied"), Some("true"), "{}", skipped.text());
    assert_eq!(skipped.header("x-wardgate-canary"), Some("stopped"));
    assert_eq!(fleet.asked("/secret").await, [403, 403]);
    assert_eq!(fleet.asked("/").await, [200, 200]);
    let note = json!("the write goes past canaries");
    fleet.control.record_with("/reason", &note);
    assert_eq!(admin.get(&format!("/revisions/{waits}")).await["applied"], 0);
    assert_eq!(admin.ask("PUT", "/identity_policies/d?canary=no", Some(&deny)).await.status, 400);

    // A correction takes its place, is tried, and passes with all that waited.
    let good = allow("p", &[], &[&world.id("/shop"), &world.id("/desk")]);
    let good = admin.put("/identity_policies/p", &good).await;
    let (state, answers) = fleet.until("passed", good, "/").await;
    assert!(answers.iter().flatten().all(|status| *status == 200), "{answers:?}");
    assert!(state["reason"].as_str().unwrap().contains("no rise"), "{state}");
    admin.applied(good, 2).await;
    for peer in ["/desk", "/web"] {
        for plane in &fleet.planes {
            assert_eq!(world.peer(peer).get(plane, "/").await.status, 200, "{peer}");
        }
    }
    assert_eq!(fleet.canary_command(&["status"]).0, Some(0));
}

#[tokio::test]
async fn a_person_stops_what_is_tried_and_lets_pass_what_was_stopped() {
    let world = World::new();
    let app = App::echo("invoices");
    let fleet = Fleet::start(&world, &app).await;
    assert!(fleet.canary_command(&["confirm"]).1.contains("no canary push is under way"));

    let bad = fleet.admin.put("/identity_policies/p", &fleet.nobody()).await;
    // Without traffic nothing speaks against it.
    eventually_async("it is tried", || async {
        (fleet.status().await["phase"] == "trying").then_some(())
    })
    .await;
    let (code, out) = fleet.canary_command(&["abort"]);
    assert!(code == Some(0) && out.contains("STOPPED"), "{out}");
    eventually_async("the canary is back", || async {
        (fleet.asked("/").await == [200, 200]).then_some(())
    })
    .await;
    let wrong = fleet.canary_command(&["confirm", "--revision", "1"]);
    assert!(wrong.0 == Some(1) && wrong.1.contains("no other"), "{wrong:?}");
    let candidate = fleet.status().await["candidate"].as_u64().unwrap();
    let (code, out) = fleet.canary_command(&["confirm", "--revision", &candidate.to_string()]);
    assert_eq!(code, Some(0), "{out}");
    fleet.admin.applied(bad, 2).await;
    assert_eq!(fleet.asked("/").await, [403, 403]);
}
