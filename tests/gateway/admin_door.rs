//! The Admin API's door in the real binary: loopback or TLS, SPIFFE IDs with roles, keys from the command line, and no way in
//! through a data plane.

use serde_json::{Value, json};

use crate::world::{App, Ended, World, get, run, wardgate};

/// `wardgate` with an Admin API named in its environment.
fn asks(environment: &[(&str, &str)], arguments: &[&str]) -> Ended {
    let mut command = wardgate();
    command.args(arguments);
    for (name, value) in environment {
        command.env(name, value);
    }
    Ended::of(&command.output().unwrap())
}

#[test]
fn beyond_loopback_it_does_not_start_without_tls() {
    let world = World::new();
    let ended = world.control().set("control.admin", &json!("0.0.0.0:0")).fails();
    let said = format!("{ended:?}");
    assert!(said.contains("control.admin") && said.contains("control.access.tls"), "{said}");
    let peers = json!({ "peers": [{ "spiffe_id": world.id("/ops"), "role": "admin" }] });
    let said = format!("{:?}", world.control().set("control.access", &peers).fails());
    assert!(said.contains("control.access.peers"), "{said}");
}

#[test]
fn a_spiffe_id_is_what_the_settings_make_it_and_others_need_a_key() {
    let world = World::new();
    let access = json!({ "tls": {}, "peers": [
        { "spiffe_id": world.id("/ops/alice"), "role": "operator", "scope": { "id_prefix": "shop-" } },
    ]});
    let control = world
        .control()
        .set("control.admin", &json!("0.0.0.0:0"))
        .set("control.access", &access)
        .start();
    let url = format!("https://127.0.0.1:{}", control.address("admin").port());
    let key = control.key();
    let (alice, mallory) = (world.files("/ops/alice"), world.files("/ops/mallory"));
    let (alice, mallory) = (alice.to_str().unwrap(), mallory.to_str().unwrap());
    let whoami = ["admin", "whoami", "-o", "json"];

    let said = asks(&[("WARDGATE_ADMIN", &url), ("WARDGATE_IDENTITY", alice)], &whoami).good();
    let who: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(who["name"], world.id("/ops/alice"));
    assert_eq!((&who["role"], &who["scope"]["id_prefix"]), (&json!("operator"), &json!("shop-")));
    let refused = asks(&[("WARDGATE_ADMIN", &url), ("WARDGATE_IDENTITY", mallory)], &whoami);
    assert_eq!(refused.code, Some(1), "{refused:?}");
    // Whom the settings do not know may show a key.
    let with_key =
        [("WARDGATE_ADMIN", url.as_str()), ("WARDGATE_IDENTITY", mallory), ("WARDGATE_KEY", &key)];
    let who: Value = serde_json::from_str(&asks(&with_key, &whoami).good()).unwrap();
    assert_eq!(who["name"], "admin");
    // Nobody of another trust domain is let in, whatever it shows beside.
    let elsewhere = World::of("elsewhere.test");
    let stranger = elsewhere.files("/ops/alice");
    let stranger = [
        ("WARDGATE_ADMIN", url.as_str()),
        ("WARDGATE_IDENTITY", stranger.to_str().unwrap()),
        ("WARDGATE_KEY", &key),
    ];
    assert_eq!(asks(&stranger, &whoami).code, Some(1));
}

#[tokio::test]
async fn keys_are_made_rotated_and_revoked_from_the_command_line() {
    let world = World::new();
    let control = world.control().start();
    let url = format!("http://{}", control.address("admin"));
    let key = control.key();
    let root = [("WARDGATE_ADMIN", url.as_str()), ("WARDGATE_KEY", key.as_str())];
    let make =
        ["admin", "key", "create", "ci", "--role", "operator", "--id-prefix", "ci-", "-o", "json"];
    let made: Value = serde_json::from_str(&asks(&root, &make).good()).unwrap();
    let first = made["key"].as_str().unwrap().to_owned();
    let mut admin = control.admin();
    admin.key = first.clone();
    let body = json!({ "nodes": { "127.0.0.1:1": 1 } });
    assert_eq!(admin.ask("PUT", "/upstreams/ci-1", Some(&body)).await.status, 201);
    assert_eq!(admin.ask("PUT", "/upstreams/other", Some(&body)).await.status, 403);
    let rotate = ["admin", "key", "rotate", "ci", "--grace", "0", "-o", "json"];
    let rotated: Value = serde_json::from_str(&asks(&root, &rotate).good()).unwrap();
    assert_eq!(admin.ask("GET", "/upstreams/ci-1", None).await.status, 401, "without grace");
    admin.key = rotated["key"].as_str().unwrap().to_owned();
    assert_eq!(admin.ask("GET", "/upstreams/ci-1", None).await.status, 200);
    let list = asks(&root, &["admin", "key", "list"]).good();
    assert!(list.contains("ci ") && list.contains("id_prefix=\"ci-\""), "{list}");
    assert!(!list.contains(&admin.key) && !list.contains(&first), "{list}");
    asks(&root, &["admin", "key", "revoke", "ci"]).good();
    assert_eq!(admin.ask("GET", "/upstreams/ci-1", None).await.status, 401);
    let generated = run(["admin", "key", "generate", "-o", "json"]).good();
    let generated: Value = serde_json::from_str(&generated).unwrap();
    assert_eq!(generated["sha256"].as_str().unwrap().len(), 64);
    let record = control.record("the operator's write", |record| {
        record["type"] == "admin" && record["principal"] == "ci" && record["status"] == 201
    });
    assert_eq!(record["diff_sha256"].as_str().unwrap().len(), 64);
}

#[tokio::test]
async fn no_route_of_a_data_plane_leads_to_the_admin_api() {
    let world = World::new();
    let control = world.control().start();
    let admin = control.admin();
    let ingress = world.ingress().fed_by(&control).start();
    let node = json!({ control.address("admin").to_string(): 1 });
    let route = json!({ "uri": "/*", "upstream": { "nodes": node, "pass_host": "node" } });
    admin.applied(admin.put("/routes/1", &route).await, 1).await;
    let path = format!("/apisix/admin/routes?api_key={}", admin.key);
    let answer = get(ingress.address("ingress"), &path).await;
    assert_eq!(answer.status, 403, "even with the key: {}", answer.text());
    assert!(answer.text().contains("forwarded"), "{}", answer.text());
    // The door itself is open to the key.
    let app = App::echo("app");
    let direct = json!({ "uri": "/*", "upstream": { "nodes": { app.address.to_string(): 1 } } });
    admin.applied(admin.put("/routes/1", &direct).await, 1).await;
    assert_eq!(get(ingress.address("ingress"), "/").await.status, 200);
}

#[tokio::test]
async fn a_stream_route_that_nobody_serves_is_refused() {
    let world = World::new();
    let control = world.control().start();
    let admin = control.admin();
    let body = json!({ "server_port": 1, "upstream": { "nodes": { "127.0.0.1:1": 1 } } });
    let answer = admin.ask("PUT", "/stream_routes/1", Some(&body)).await;
    assert_eq!(answer.status, 400);
    assert!(answer.text().contains("stream mode is disabled, can not add stream routes"));
    assert_eq!(admin.get("/stream_routes").await, json!({ "total": 0, "list": [] }));
}
