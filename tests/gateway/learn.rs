//! The log teaches: what really happened, decided again by other policies; rules that would be enough; rules that nobody uses;
//! and who changed which policy when.

use serde_json::{Value, json};

use crate::world::{App, Ended, World, allow, eventually, run};

fn policy(arguments: &[&str]) -> Ended {
    run(["policy"].iter().chain(arguments))
}

#[tokio::test]
async fn what_is_suggested_from_a_log_allows_just_what_was_allowed() {
    let world = World::new();
    let app = App::echo("billing");
    let wide = json!({
        "id": "wide", "action": "allow", "rules": [
            {"name": "all-reads", "from": {"trust_domains": [world.id("").trim_start_matches("spiffe://")]},
             "to": {"methods": ["GET", "HEAD"]}},
            {"name": "nobody", "from": {"principals": [world.id("/gone")]}}],
    });
    let billing = world
        .sidecar("/billing")
        .app(&app)
        .resources(&json!({"identity_policies": [wide]}))
        .start();
    let shop = world.peer("/shop");
    let mut connection = shop.connect(&billing).await;
    let host = [("host", "billing")];
    for path in ["/invoices/1", "/invoices/2", "/invoices/3"] {
        assert_eq!(connection.send("GET", path, &host, "").await.status, 200);
    }
    assert_eq!(connection.send("DELETE", "/invoices/1", &host, "").await.status, 403);
    eventually("the denial on record", || {
        billing.audit().into_iter().find(|record| record["outcome"] == "deny")
    });

    let log = billing.audit_file().display().to_string();
    let folder = billing.audit_file().parent().unwrap().join("suggested");
    let suggested = folder.display().to_string();
    let told = policy(&["suggest", "--log", &log, "--out", &suggested]).good();
    assert!(told.contains("would be decided as they were"), "{told}");
    let text = std::fs::read_to_string(folder.join("suggested-billing.yaml")).unwrap();
    assert!(text.contains("/invoices/{id}") && text.contains("3 requests, 3 paths"), "{text}");
    assert!(!text.contains("HEAD") && text.contains(&world.id("/shop")), "{text}");

    // The engine that enforces takes it, and decides all that happened as it was decided.
    policy(&["validate", "-f", &suggested]).good();
    let alike = policy(&["replay", "-f", &suggested, "--log", &log, "-o", "json"]).good();
    let alike: Value = serde_json::from_str(&alike).unwrap();
    assert_eq!(alike["same"], alike["requests"], "{alike}");

    // A set that forgets somebody is found out, with an example.
    let narrow = folder.join("narrow.json");
    let rules = json!([{"to": {"methods": ["DELETE"]}}]);
    std::fs::write(&narrow, json!({"id": "n", "action": "allow", "rules": rules}).to_string())
        .unwrap();
    let found = policy(&["replay", "-f", &narrow.display().to_string(), "--log", &log]);
    assert_eq!(found.code, Some(4), "{found:?}");
    for part in ["would be refused", "GET /invoices/{id}", "would be allowed", "DELETE"] {
        assert!(found.out.contains(part), "{part}: {found:?}");
    }

    let wide = folder.join("wide.json");
    let declared = json!({"identity_policies": [{
        "id": "wide", "action": "allow", "rules": [
            {"name": "all-reads", "to": {"methods": ["GET", "HEAD"]}},
            {"name": "nobody", "from": {"principals": [world.id("/gone")]}}]}]});
    std::fs::write(&wide, declared.to_string()).unwrap();
    let wide = wide.display().to_string();
    let covered = policy(&["coverage", "-f", &wide, "--log", &log]).good();
    assert!(covered.contains("to.methods: 1 of 2 never used: HEAD"), "{covered}");
    assert!(covered.lines().any(|line| line.contains("never") && line.contains("wide/nobody")));
    assert_eq!(policy(&["coverage", "-f", &wide, "--log", &log, "--strict"]).code, Some(1));

    let nothing = policy(&["replay", "-f", &wide, "--log", "/nowhere/audit.jsonl"]);
    assert_eq!(nothing.code, Some(1));
    assert!(nothing.err.contains("WARDGATE_AUDIT"), "{nothing:?}");
}

#[tokio::test]
async fn who_changed_a_policy_is_told_and_the_change_is_undone() {
    let world = World::new();
    let control = world.control().start();
    let admin = control.admin();
    let url = format!("http://{}", control.address("admin"));
    let key = control.key();
    let at = ["--admin", &url, "--key", &key];
    let ask = |arguments: &[&str]| policy(&[arguments, &at].concat());
    let first = admin.put("/identity_policies/p", &allow("p", &[], &[&world.id("/shop")])).await;
    admin.put("/identity_policies/p", &allow("p", &[], &[&world.id("/intruder")])).await;

    let told = ask(&["history", "p"]).good();
    assert!(told.contains("intruder") && told.contains("put"), "{told}");
    let told = ask(&["history"]).good();
    assert_eq!(told.lines().count(), 3, "{told}");
    let to = first.to_string();
    let dry = ask(&["rollback", "p", "--to", &to, "--dry-run"]).good();
    assert!(dry.contains("replace") && dry.contains("nothing was written"), "{dry}");
    let done = ask(&["rollback", "--to", &to]).good();
    assert!(done.contains("written as revision"), "{done}");
    let now = admin.get("/identity_policies/p").await.to_string();
    assert!(now.contains(&world.id("/shop")) && !now.contains("intruder"), "{now}");
    let again = ask(&["rollback", "p", "--to", &to]).good();
    assert!(again.contains("nothing to do"), "{again}");
    let wrong = ask(&["rollback", "p", "--to", "yesterday"]);
    assert_eq!(wrong.code, Some(1));
    assert!(wrong.err.contains("RFC 3339"), "{wrong:?}");
}
