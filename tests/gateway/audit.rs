//! What was decided stands in the log as it was decided, and whoever changes the log is found out.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use wardgate::rt::crypto::digest::{SHA256, digest};

use crate::world::{App, Ended, Process, World, allow, run, send};

fn billing(world: &World, app: &App) -> Process {
    let policy = json!({
        "id": "p", "selector": { "workloads": [world.id("/billing")] }, "action": "allow",
        "rules": [{
            "name": "read", "from": { "principals": [world.id("/shop")] }, "to": { "methods": ["GET"] },
        }],
    });
    world.sidecar("/billing").app(app).resources(&json!({ "identity_policies": [policy] })).start()
}

fn keys(value: &Value) -> BTreeSet<&str> {
    value.as_object().expect("an object").keys().map(String::as_str).collect()
}

#[tokio::test]
async fn each_decision_is_one_record_with_what_can_be_proved() {
    let world = World::new();
    let app = App::echo("billing");
    let billing = billing(&world, &app);
    let shop = world.peer("/shop");
    let mut connection = shop.connect(&billing).await;
    let secret = [("authorization", "Bearer s3cret-token"), ("host", "billing")];
    let allowed =
        connection.send("GET", "/invoices/7?key=s3cret-query", &secret, "s3cret-body").await;
    assert_eq!(allowed.status, 200);
    let denied = connection.send("DELETE", "/invoices/7", &secret, "").await;
    assert_eq!(denied.status, 403);
    billing.record_with("/denial_id", &json!(denied.denial()));

    let records = billing.audit();
    let decisions: Vec<&Value> =
        records.iter().filter(|record| record["type"] == "decision").collect();
    let [allow, deny] = decisions[..] else { panic!("one record a decision: {decisions:#?}") };
    let common = [
        "seq",
        "time",
        "type",
        "event_id",
        "boot_id",
        "conn_id",
        "src",
        "dst",
        "tls",
        "engine_version",
        "route_id",
        "protocol",
        "method",
        "host",
        "path",
        "template",
        "outcome",
        "mode",
        "config_revision",
        "config_age_ms",
        "prev",
        "hash",
    ];
    let with = |more: &[&'static str]| common.iter().chain(more).copied().collect::<BTreeSet<_>>();
    assert_eq!(keys(allow), with(&["policy_id", "rule", "rule_hash", "policy_revision"]));
    assert_eq!(keys(deny), with(&["reason", "denial_id", "nearest"]));

    let identity = world.identity("/shop");
    for record in [allow, deny] {
        assert_eq!(record["src"]["spiffe_id"], json!(world.id("/shop")));
        let certificate = &record["src"]["cert"];
        assert_eq!(certificate["serial"], json!(identity.svid.serial));
        let fields = ["serial", "spki_sha256", "not_after", "issuer_ski", "bundle_revision"];
        assert_eq!(keys(certificate), BTreeSet::from(fields));
        let domain = world.id("/").split('/').nth(2).map(str::to_owned);
        assert_eq!(
            (&record["src"]["trust_domain"], &record["src"]["authn"]),
            (&json!(domain), &json!("mtls"))
        );
        assert_eq!(keys(&record["tls"]), BTreeSet::from(["version", "suite", "group", "alpn"]));
        let event: uuid::Uuid = record["event_id"].as_str().unwrap().parse().unwrap();
        assert_eq!(event.get_version_num(), 7);
        assert_eq!(record["dst"]["spiffe_id"], json!(billing.id));
        assert_eq!(record["dst"]["port"], json!(billing.address("inbound").port()));
        assert_eq!(
            (&record["host"], &record["path"], &record["protocol"]),
            (&json!("billing"), &json!("/invoices/7"), &json!("http/1.1"))
        );
        assert_eq!(record["conn_id"], allow["conn_id"]);
    }
    assert_eq!((&allow["outcome"], &allow["rule"]), (&json!("allow"), &json!("read")));
    assert_eq!((&deny["outcome"], &deny["reason"]), (&json!("deny"), &json!("no_rule")));
    assert_eq!(deny["nearest"]["clause"], "methods");

    let types: BTreeSet<&str> =
        records.iter().filter_map(|record| record["type"].as_str()).collect();
    assert_eq!(types, BTreeSet::from(["config", "decision", "identity", "posture"]));
    let text = std::fs::read_to_string(billing.audit_file()).unwrap();
    assert!(!text.contains("s3cret"), "neither header, query nor body is logged");
}

#[tokio::test]
async fn where_nobody_wants_to_know_what_is_allowed_refusals_stand_in_the_log_all_the_same() {
    let world = World::new();
    let app = App::echo("app");
    let policy = json!({ "id": "p", "action": "allow", "rules": [{
        "from": { "principals": [world.id("/shop")] }, "to": { "methods": ["GET"] },
    }]});
    let part = world.sidecar("/billing").app(&app).set("decision_log.allows", &json!("none"));
    let billing = part.resources(&json!({ "identity_policies": [policy] })).start();
    let shop = world.peer("/shop");
    assert_eq!(shop.get(&billing, "/read").await.status, 200);
    let mut connection = shop.connect(&billing).await;
    let denied = connection.send("DELETE", "/gone", &[], "").await;
    billing.record_with("/denial_id", &json!(denied.denial()));
    let records = billing.audit();
    let decisions: Vec<&Value> =
        records.iter().filter(|record| record["type"] == "decision").collect();
    let [deny] = decisions[..] else { panic!("what was refused alone: {decisions:#?}") };
    assert_eq!((&deny["outcome"], &deny["path"]), (&json!("deny"), &json!("/gone")));
    assert!(records.iter().any(|record| record["allows"] == "none"), "{records:#?}");
}

#[tokio::test]
async fn a_start_a_restart_and_an_end_leave_one_chain() {
    let world = World::new();
    let app = App::echo("app");
    let part = world
        .sidecar("/billing")
        .app(&app)
        .resources(&json!({ "identity_policies": [allow("p", &[], &[&world.id("/shop")])] }));
    let shop = world.peer("/shop");
    for round in 0..3 {
        let mut billing = part.start();
        for _ in 0..5 {
            assert_eq!(shop.get(&billing, &format!("/{round}")).await.status, 200);
        }
        if round == 1 {
            // A crash: what is on the disk by then still is a chain.
            billing.record_with("/path", &json!("/1"));
            billing.kill();
        } else {
            assert!(billing.end().success());
        }
    }
    let records = part.launch().audit();
    let numbers: Vec<u64> = records.iter().map(|record| record["seq"].as_u64().unwrap()).collect();
    let expected: Vec<u64> = (1..=records.len() as u64).collect();
    assert_eq!(numbers, expected, "no gap over restarts");
    let boots: BTreeSet<&str> =
        records.iter().filter_map(|record| record["boot_id"].as_str()).collect();
    assert!(boots.len() >= 3);
    let of = |path: &str| records.iter().filter(|record| record["path"] == path).count();
    assert_eq!((of("/0"), of("/2")), (5, 5), "a graceful end loses nothing");
    assert!(verify(&part.state.join("audit.jsonl")).good().contains("the chain is whole"));
}

fn verify(log: &Path) -> Ended {
    run(["audit", "verify", log.to_str().unwrap()])
}

/// A log of some requests, its process ended.
struct Log {
    world: World,
    lines: Vec<String>,
    path: PathBuf,
}

impl Log {
    async fn new() -> Self {
        let world = World::new();
        let app = App::echo("app");
        let mut billing = billing(&world, &app);
        let shop = world.peer("/shop");
        for number in 0..10 {
            let method = if number % 3 == 0 { "POST" } else { "GET" };
            shop.send(&billing, method, &format!("/{number}"), &[], "").await;
        }
        billing.end();
        let path = billing.audit_file();
        let text = std::fs::read_to_string(&path).unwrap();
        Self { world, lines: text.lines().map(str::to_owned).collect(), path }
    }

    /// The line with this path's decision, counted from 0.
    fn line_of(&self, path: &str) -> usize {
        let found = |line: &String| line.contains(&format!("\"path\":\"{path}\""));
        self.lines.iter().position(found).unwrap()
    }

    /// A copy of the log after somebody was at it.
    fn changed(&self, change: impl FnOnce(&mut Vec<String>)) -> Ended {
        let mut lines = self.lines.clone();
        change(&mut lines);
        let path = self.world.folder.join("changed.jsonl");
        std::fs::write(&path, lines.join("\n") + "\n").unwrap();
        verify(&path)
    }
}

#[tokio::test]
async fn a_log_that_was_changed_anywhere_is_found_out() {
    let log = Log::new().await;
    let sound = verify(&log.path).good();
    assert!(sound.contains("result: the chain is whole"), "{sound}");
    let at = log.line_of("/5");
    let finds = |ended: Ended, code: &str, line: usize| {
        assert_eq!(ended.code, Some(1), "{code}: {}", ended.out);
        let place = format!("changed.jsonl:{}:", line + 1);
        assert!(ended.out.contains(&format!("[{code}]")), "{code}: {}", ended.out);
        assert!(ended.out.contains(&place), "{place} {}", ended.out);
        assert!(ended.out.contains("result: NOT what was written"), "{}", ended.out);
    };
    let swap = |lines: &mut Vec<String>| lines[at] = lines[at].replace("\"/5\"", "\"/6\"");
    finds(log.changed(swap), "changed", at);
    let outcome = |lines: &mut Vec<String>| {
        let denied = log.line_of("/3");
        lines[denied] = lines[denied].replace("\"deny\"", "\"allow\"");
    };
    finds(log.changed(outcome), "changed", log.line_of("/3"));
    finds(log.changed(|lines| drop(lines.remove(at))), "removed", at);
    finds(log.changed(|lines| lines.insert(at, lines[at].clone())), "inserted", at + 1);
    finds(log.changed(|lines| lines.insert(at, "{}".to_owned())), "not_a_record", at);
    assert_eq!(log.changed(|lines| lines.swap(at, at + 1)).code, Some(1));
    assert_eq!(log.changed(|lines| drop(lines.remove(0))).code, Some(1));
    assert_eq!(log.changed(|lines| lines[at].push(' ')).code, Some(1));

    // The end cut off is a whole chain; the hash noted elsewhere tells.
    let last = sound.lines().find_map(|line| line.strip_prefix("last hash: ")).unwrap().to_owned();
    let expecting =
        |path: &Path| run(["audit", "verify", path.to_str().unwrap(), "--expect", &last]);
    expecting(&log.path).good();
    assert_eq!(log.changed(|lines| drop(lines.pop())).code, Some(0));
    let cut = expecting(&log.world.folder.join("changed.jsonl"));
    assert_eq!(cut.code, Some(1));
    assert!(cut.out.contains("expected_hash_missing"), "{}", cut.out);
}

#[tokio::test]
async fn the_documents_own_python_checks_a_log_with_nothing_of_ours() {
    let log = Log::new().await;
    let document = include_str!("../../docs/audit.md");
    let program = document.split("```python\n").nth(1).unwrap().split("```").next().unwrap();
    let check = |path: &Path| {
        let output = Command::new("python3").arg("-c").arg(program).arg(path).output();
        output.expect("python3 is needed by this test").status.success()
    };
    assert!(check(&log.path));
    let path = log.world.folder.join("forged.jsonl");
    let forged = log.lines.join("\n").replace("\"/5\"", "\"/6\"") + "\n";
    std::fs::write(&path, forged).unwrap();
    assert!(!check(&path));
}

#[tokio::test]
async fn records_go_to_standard_output_as_well_on_request() {
    let world = World::new();
    let app = App::echo("app");
    let policy = allow("p", &[], &[&world.id("/shop")]);
    let billing = world
        .sidecar("/billing")
        .app(&app)
        .resources(&json!({ "identity_policies": [policy] }))
        .set("audit", &json!({ "stdout": true }))
        .start();
    world.peer("/shop").get(&billing, "/seen").await;
    let line = billing.line("the record", |line| line.contains("\"/seen\""));
    let record: Value = serde_json::from_str(&line).unwrap();
    assert_eq!(record, billing.record_with("/path", &json!("/seen")));
}

#[tokio::test]
async fn text_that_would_deceive_a_reader_is_escaped() {
    let world = World::new();
    let app = App::echo("app");
    let billing = billing(&world, &app);
    let path = "/%1b%5b2J/\u{202e}txt";
    let request = format!("GET {path} HTTP/1.1\r\nhost: billing\r\nconnection: close\r\n\r\n");
    world.peer("/shop").raw(&billing, request.as_bytes()).await;
    let raw = b"GET /a\xffb HTTP/1.1\r\nhost: billing\r\nconnection: close\r\n\r\n";
    world.peer("/shop").raw(&billing, raw).await;
    assert_eq!(world.peer("/shop").get(&billing, "/last").await.status, 200);
    billing.record_with("/path", &json!("/last"));
    let text = std::fs::read_to_string(billing.audit_file()).unwrap();
    let strange = |c: char| (c.is_control() && c != '\n') || ('\u{202a}'..='\u{202e}').contains(&c);
    assert!(!text.contains(strange), "{text}");
    assert!(text.lines().all(|line| serde_json::from_str::<Value>(line).is_ok()));
    verify(&billing.audit_file()).good();
}

#[tokio::test]
async fn writes_of_the_admin_api_are_on_record_with_who_and_what() {
    let world = World::new();
    let control = world.control().start();
    let admin = control.admin();
    let body = json!({ "nodes": { "127.0.0.1:1": 1 } });
    let revision = admin.put("/upstreams/u", &body).await;
    let record = control.record_with("/revision", &json!(revision));
    assert_eq!((&record["type"], &record["method"]), (&json!("admin"), &json!("PUT")));
    assert_eq!(record["path"], "/apisix/admin/upstreams/u");
    assert_eq!(record["status"], 201);
    let stored = admin.get("/upstreams/u").await["value"].to_string();
    let digest = digest(&SHA256, stored.as_bytes());
    assert_eq!(record["body_sha256"], json!(hex::encode(digest)));
    assert!(record["principal"].is_string());
    verify(&control.audit_file()).good();
}

#[tokio::test]
async fn a_tail_shows_refusals_to_people() {
    let world = World::new();
    let app = App::echo("app");
    let billing = billing(&world, &app);
    world.peer("/shop").get(&billing, "/fine").await;
    let denied = world.peer("/web").get(&billing, "/refused").await;
    billing.record_with("/denial_id", &json!(denied.denial()));
    let log = billing.audit_file();
    let told = run(["audit", "tail", log.to_str().unwrap(), "--denied"]).good();
    assert_eq!(told.lines().count(), 1, "{told}");
    for part in ["DENY", &world.id("/web"), "GET /refused", denied.denial()] {
        assert!(told.contains(part), "{part}: {told}");
    }
    let all = run(["audit", "tail", log.to_str().unwrap()]).good();
    assert!(all.contains("ALLOW") && all.contains("/fine"), "{all}");
}

#[tokio::test]
async fn the_outbound_side_passes_the_denial_id_on_to_the_workload() {
    let world = World::new();
    let app = App::echo("app");
    let billing = billing(&world, &app);
    let shop = world
        .sidecar("/shop")
        .resources(&json!({
            "routes": [{
                "id": "b", "uri": "/*", "workload_selector": { "listener": "outbound" },
                "upstream": {
                    "nodes": { billing.address("inbound").to_string(): 1 },
                    "tls": { "identity": "svid", "spiffe_ids": [world.id("/billing")] },
                },
            }],
        }))
        .start();
    let denied = send(shop.address("outbound"), "DELETE", "/x", &[], "").await;
    assert_eq!(denied.status, 403);
    billing.record_with("/denial_id", &json!(denied.denial()));
}

#[tokio::test]
async fn a_sidecar_seals_its_log_and_anybody_with_the_bundle_can_tell() {
    let world = World::new();
    let app = App::echo("billing");
    let billing = billing(&world, &app);
    assert_eq!(world.peer("/shop").get(&billing, "/").await.status, 200);
    billing.record_with("/type", &json!("seal"));
    let log = billing.audit_file();
    let bundle = world.files("/shop").join("bundle.pem");
    let verify = |bundle: &Path| {
        let (log, bundle) = (log.to_str().unwrap(), bundle.to_str().unwrap());
        run(["audit", "verify", log, "--bundle", bundle, "--trust-domain", "shop.test"])
    };
    let Ended { code, out, err } = verify(&bundle);
    assert_eq!(code, Some(0), "{out}{err}");
    assert!(out.contains(&format!("by {}", billing.id)), "{out}");

    let stranger = World::new();
    let Ended { code, out, .. } = verify(&stranger.files("/shop").join("bundle.pem"));
    assert_eq!(code, Some(1), "{out}");
    assert!(out.contains("[bad_seal]") && out.contains("[not_sealed]"), "{out}");
}
