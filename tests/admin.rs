//! The Admin API over real sockets: APISIX's paths, statuses and bodies, verb by verb and kind by kind.

#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

#[path = "admin_api/access.rs"]
mod access;
#[path = "admin_api/adc.rs"]
mod adc;
#[path = "support/admin.rs"]
mod admin;
#[path = "admin_api/apply.rs"]
mod apply;
#[path = "support/etcd.rs"]
mod etcd_server;
#[path = "admin_api/history.rs"]
mod history;
#[path = "admin_api/kinds.rs"]
mod kinds;
#[path = "admin_api/schemas.rs"]
mod schemas;

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use wardgate::control::DataPlaneState;
use wardgate::model::{Id, Kind, Rejected};
use wardgate::store::etcd::{Etcd, Settings};
use wardgate::store::memory::Memory;
use wardgate::store::{Expect, Store};

use admin::{ADMIN, VIEWER, World};
use etcd_server::EtcdServer;

const BORN: i64 = 1_700_000_000;

async fn world() -> World {
    World::with(Arc::new(Memory::new())).await
}

fn upstream() -> Value {
    json!({"nodes": {"127.0.0.1:1980": 1}, "type": "roundrobin"})
}

fn error(text: &str) -> Value {
    json!({"error_msg": text})
}

/// The value with what the server adds.
fn stamped(mut value: Value, id: &str, created: i64, updated: i64) -> Value {
    value["id"] = json!(id);
    value["create_time"] = json!(created);
    value["update_time"] = json!(updated);
    value
}

fn certificate(name: &str) -> (String, String) {
    let key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
    (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
}

#[tokio::test]
async fn nobody_without_a_good_key_gets_in() {
    let world = world().await;
    let refused =
        |why: &str| (401, json!({"error_msg": "failed to check token", "description": why}));
    let ask = async |method: &str, path: &str, headers: &[(&str, &str)]| {
        world.send(method, path, headers, "").await
    };
    let routes = "/apisix/admin/routes";
    let missing = ask("GET", routes, &[]).await;
    assert_eq!(missing.pair(), refused("missing apikey"));
    assert_eq!(missing.headers.get("x-api-version"), None);
    assert_eq!(
        ask("GET", routes, &[("x-api-key", "edd1c9f034335f136f87ad84b625c8f1")]).await.pair(),
        refused("wrong apikey")
    );
    assert_eq!(
        ask("DELETE", "/apisix/admin/routes/1", &[("x-api-key", VIEWER)]).await.pair(),
        refused("invalid method for role viewer")
    );
    assert_eq!(ask("GET", "/apisix/admin/nothing", &[]).await.pair(), refused("missing apikey"));
    let empty = (200, json!({"total": 0, "list": []}));
    assert_eq!(ask("GET", routes, &[("x-api-key", VIEWER)]).await.pair(), empty);
    assert_eq!(
        ask("GET", routes, &[("cookie", &format!("a=b; x_api_key={ADMIN}"))]).await.pair(),
        empty
    );
    // The query wins over the header, the header over the cookie.
    let with_query = format!("{routes}?api_key={ADMIN}");
    assert_eq!(ask("GET", &with_query, &[("x-api-key", "wrong")]).await.pair(), empty);
    let cookie = format!("x_api_key={ADMIN}");
    assert_eq!(
        ask("GET", routes, &[("x-api-key", "wrong"), ("cookie", &cookie)]).await.pair(),
        refused("wrong apikey")
    );

    let alive = ask("HEAD", "/apisix/admin", &[]).await;
    assert_eq!((alive.status.as_u16(), alive.text.as_str()), (200, ""));
}

#[tokio::test]
async fn every_answer_says_who_it_is_and_nothing_lets_a_web_page_in() {
    let world = world().await;
    let answer = world.get("/routes").await;
    let header = |name: &str| answer.headers.get(name).map(|value| value.to_str().unwrap());
    assert_eq!(
        header("server"),
        Some(concat!("APISIX/3.18.0 (Wardgate/", env!("CARGO_PKG_VERSION"), ")"))
    );
    assert_eq!(header("x-api-version"), Some("v3"));
    assert_eq!(header("content-type"), Some("application/json"));
    assert_eq!(header("access-control-allow-origin"), None);
    assert!(answer.text.ends_with('\n'));

    let own = format!("http://{}", world.address);
    for (headers, status) in [
        (vec![("host", "rebound.example:9180")], 403),
        (vec![("host", "control.example")], 200),
        (vec![("host", "LOCALHOST:1")], 200),
        (vec![("host", "[::1]:9180")], 200),
        (vec![("host", "127.0.0.1.evil.example")], 403),
        (vec![("origin", own.as_str())], 200),
        (vec![("origin", "http://evil.example")], 403),
        (vec![("origin", "null")], 403),
    ] {
        let all: Vec<(&str, &str)> =
            headers.iter().copied().chain([("x-api-key", ADMIN)]).collect();
        let answer = world.send("GET", "/apisix/admin/routes", &all, "").await;
        assert_eq!(answer.status.as_u16(), status, "{headers:?}");
    }
}

#[tokio::test]
async fn paths_and_bodies_that_make_no_sense_get_apisix_s_answers() {
    let world = world().await;
    assert_eq!(
        world.get("/unknown/1").await.pair(),
        (404, error("Unsupported resource type: unknown"))
    );
    assert_eq!(
        world.get("/credentials/1").await.pair(),
        (404, error("Unsupported resource type: credentials"))
    );
    assert_eq!(world.get("/routes/none").await.pair(), (404, json!({"message": "Key not found"})));
    assert_eq!(
        world.get("/routes/not%20an%20id").await.pair(),
        (404, json!({"message": "Key not found"}))
    );
    assert_eq!(world.send("GET", "/", &[], "").await.status, 404);
    assert_eq!(world.ask("OPTIONS", "/routes", &Value::Null).await.status, 404);
    for (kind, name) in [
        ("consumers", "consumer"),
        ("consumer_groups", "consumer group"),
        ("plugin_configs", "plugin config"),
        ("global_rules", "global rule"),
        ("plugin_metadata", "plugin_metadata"),
        ("consumers/bob/credentials", "credential"),
    ] {
        let answer = world.ask("POST", &format!("/{kind}"), &json!({})).await;
        assert_eq!(answer.pair(), (405, error(&format!("not supported `POST` method for {name}"))));
    }
    for (path, name) in [
        ("consumers/bob", "consumer"),
        ("consumers/bob/credentials/1", "credential"),
        ("plugin_metadata/prometheus", "plugin_metadata"),
    ] {
        let answer = world.ask("PATCH", &format!("/{path}"), &json!({})).await;
        assert_eq!(
            answer.pair(),
            (405, error(&format!("not supported `PATCH` method for {name}")))
        );
    }

    let key = [("x-api-key", ADMIN), ("content-type", "application/x-www-form-urlencoded")];
    let raw =
        async |body: &str| world.send("PUT", "/apisix/admin/routes/1", &key, body.to_owned()).await;
    assert_eq!(raw("").await.pair(), (400, error("missing configurations")));
    let broken = raw("{\"uri\": ").await;
    assert_eq!(broken.status.as_u16(), 400);
    assert_eq!(broken.json()["req_body"], json!("{\"uri\": "));
    assert!(broken.json()["error_msg"].as_str().unwrap().starts_with("invalid request body: "));
    assert_eq!(raw("[]").await.status.as_u16(), 400);
    let large = format!("{{\"desc\": \"{}\"}}", "a".repeat(1_572_864));
    let answer = raw(&large).await;
    assert_eq!(answer.status.as_u16(), 400);
    assert!(
        answer.json()["error_msg"]
            .as_str()
            .unwrap()
            .starts_with("invalid request body: request size 15")
    );
    assert!(
        answer.json()["error_msg"]
            .as_str()
            .unwrap()
            .ends_with("is greater than the maximum size 1572864 allowed")
    );
    // The Content-Type does not matter.
    assert_eq!(
        raw(&json!({"uri": "/", "upstream": upstream()}).to_string()).await.status.as_u16(),
        201
    );
}

#[tokio::test]
async fn a_route_lives_through_all_its_verbs() {
    let world = world().await;
    let body = json!({"uri": "/hello", "upstream": upstream(), "name": "first"});
    let stored = stamped(body.clone(), "1", BORN, BORN);
    let answer = world.ask("PUT", "/routes/1", &body).await;
    assert_eq!(answer.pair(), (201, json!({"key": "/apisix/routes/1", "value": stored})));
    let revision: u64 = answer.headers["x-wardgate-revision"].to_str().unwrap().parse().unwrap();
    let got = json!({"key": "/apisix/routes/1", "value": stored, "createdIndex": revision, "modifiedIndex": revision});
    assert_eq!(world.get("/routes/1").await.pair(), (200, got.clone()));
    assert_eq!(world.get("/routes").await.pair(), (200, json!({"total": 1, "list": [got]})));

    world.clock.advance(10);
    let stored = stamped(body.clone(), "1", BORN, BORN + 10);
    assert_eq!(
        world.ask("PUT", "/routes/1", &body).await.pair(),
        (200, json!({"key": "/apisix/routes/1", "value": stored}))
    );
    let got = world.get("/routes/1").await.json();
    assert_eq!(
        (got["createdIndex"].as_u64(), got["modifiedIndex"].as_u64()),
        (Some(revision), Some(revision + 1))
    );

    world.clock.advance(10);
    let patched = world.ask("PATCH", "/routes/1", &json!({"name": null, "upstream": {"nodes": {"127.0.0.1:1981": 2}}, "methods": ["GET"]})).await;
    let value = stamped(
        json!({"uri": "/hello", "upstream": {"nodes": {"127.0.0.1:1980": 1, "127.0.0.1:1981": 2}, "type": "roundrobin"}, "methods": ["GET"]}),
        "1",
        BORN,
        BORN + 20,
    );
    assert_eq!(patched.pair(), (200, json!({"key": "/apisix/routes/1", "value": value})));
    let patched =
        world.ask("PATCH", "/routes/1/upstream/nodes", &json!({"127.0.0.1:1982": 1})).await.json();
    assert_eq!(patched["value"]["upstream"]["nodes"], json!({"127.0.0.1:1982": 1}));
    let patched =
        world.ask("PATCH", "/routes/1", &json!({"create_time": 5, "update_time": 6})).await.json();
    assert_eq!(
        (&patched["value"]["create_time"], &patched["value"]["update_time"]),
        (&json!(5), &json!(6))
    );

    for (path, body, status, wanted) in [
        ("/routes/1/uri/deep", json!("x"), 400, error("invalid sub-path: /uri")),
        (
            "/routes/1/uri",
            json!(1),
            400,
            error(
                "invalid configuration: property \"uri\" validation failed: wrong type: expected string, got number",
            ),
        ),
        ("/routes/1", json!({"id": "2"}), 400, error("wrong route id")),
        ("/routes/1", json!(1), 400, error("invalid configuration")),
        ("/routes/1", Value::Null, 400, error("missing new configuration")),
        ("/routes", json!({}), 400, error("missing route id")),
        ("/routes/2", json!({}), 404, json!({"message": "Key not found"})),
    ] {
        assert_eq!(world.ask("PATCH", path, &body).await.pair(), (status, wanted), "{path} {body}");
    }

    assert_eq!(
        world.delete("/routes/1").await.pair(),
        (200, json!({"deleted": "1", "key": "/apisix/routes/1"}))
    );
    assert_eq!(world.delete("/routes/1").await.pair(), (404, json!({"message": "Key not found"})));
    assert_eq!(world.delete("/routes").await.pair(), (400, error("missing route id")));
}

#[tokio::test]
async fn ids_are_the_path_s_the_body_s_or_the_server_s() {
    let world = world().await;
    let body = json!({"uri": "/a", "upstream": upstream()});
    let posted = world.ask("POST", "/routes", &body).await;
    assert_eq!(posted.status.as_u16(), 201);
    let value = posted.json()["value"].clone();
    let id = value["id"].as_str().unwrap().to_owned();
    assert_eq!((id.len(), id.trim_start_matches('0').parse::<u64>().is_ok()), (20, true));
    assert_eq!(
        posted.json(),
        json!({"key": format!("/apisix/routes/{id}"), "value": stamped(body.clone(), &id, BORN, BORN)})
    );
    let next = world.ask("POST", "/routes", &body).await.json()["value"]["id"].clone();
    assert!(next.as_str().unwrap() > id.as_str());

    let with_id = |id: Value| json!({"uri": "/a", "upstream": upstream(), "id": id});
    let unlawful = "invalid configuration: property \"id\" validation failed: object matches none of the required";
    for (method, path, body, status, text) in [
        ("POST", "/routes/1", body.clone(), 400, "wrong route id, do not need it"),
        ("POST", "/routes", with_id(json!(1)), 400, "wrong route id, do not need it"),
        ("PUT", "/routes", body.clone(), 400, "missing route id"),
        ("PUT", "/routes/1", with_id(json!("2")), 400, "wrong route id"),
        ("PUT", "/routes/a*b", body.clone(), 400, unlawful),
        ("PUT", "/routes", with_id(json!("a b")), 400, unlawful),
        ("PUT", "/routes", with_id(json!([])), 400, unlawful),
        ("PUT", "/routes", with_id(json!(0)), 400, unlawful),
        ("PUT", "/routes", with_id(json!("a".repeat(65))), 400, unlawful),
    ] {
        assert_eq!(
            world.ask(method, path, &body).await.pair(),
            (status, error(text)),
            "{method} {path} {body}"
        );
    }
    let answer = world.ask("PUT", "/routes", &with_id(json!(7))).await.json();
    assert_eq!((&answer["key"], &answer["value"]["id"]), (&json!("/apisix/routes/7"), &json!(7)));
    assert_eq!(
        world.ask("PUT", "/routes/7", &with_id(json!(7))).await.json()["value"]["id"],
        json!("7")
    );
    world.put(&format!("/routes/{}", "a".repeat(64)), body.clone()).await;
    for (field, body) in [
        ("create_time", json!({"uri": "/a", "upstream": upstream(), "create_time": 1})),
        ("upstream.update_time", json!({"uri": "/a", "upstream": {"nodes": {}, "update_time": 1}})),
    ] {
        let text = format!("the property is forbidden:  {field}");
        assert_eq!(world.ask("PUT", "/routes/8", &body).await.pair(), (400, error(&text)));
    }
}

#[tokio::test]
async fn what_is_sent_is_what_is_kept() {
    let world = world().await;
    let text =
        r#"{"uri":"/a","upstream":{"type":"roundrobin","nodes":{"z:1":1,"a:1":1}},"desc":"ä"}"#;
    world.send("PUT", "/apisix/admin/routes/1", &[("x-api-key", ADMIN)], text).await;
    let got = world.get("/routes/1").await.text;
    let kept = text.trim_end_matches('}');
    assert!(got.contains(kept), "no default was added and the order is the client's: {got}");
}

#[tokio::test]
async fn each_kind_takes_its_own_and_refuses_what_is_wrong() {
    let world = world().await;
    world.put("/upstreams/1", upstream()).await;
    let (cert, key) = certificate("a.example");
    let root = certificate("b.test").0;
    let policy = json!({"action": "allow", "rules": [{"from": {"principals": ["spiffe://shop/web"]}, "to": {"methods": ["GET"], "paths": ["/cart/{id}"]}}]});
    let workload = json!({"spiffe_id": "spiffe://shop/web", "selectors": ["unix:uid:1000"]});
    for (path, good, bad, sentence) in [
        (
            "/routes/1",
            json!({"uri": "/a", "upstream_id": "1"}),
            json!({"uri": "/a", "upstream_id": "1", "xx": 1}),
            "invalid configuration: additional properties forbidden, found xx",
        ),
        (
            "/services/1",
            json!({"upstream_id": 1}),
            json!({"upstream": {}}),
            "invalid configuration: property \"upstream\" validation failed: value should match only one schema, but matches none",
        ),
        ("/upstreams/2", upstream(), json!({"nodes": {}, "type": "chash"}), "missing key"),
        (
            "/consumer_groups/1",
            json!({"plugins": {}}),
            json!({}),
            "invalid configuration: property \"plugins\" is required",
        ),
        (
            "/plugin_configs/1",
            json!({"plugins": {"request-id": {}}}),
            json!({"plugins": {"nothing": {}}}),
            "unknown plugin [nothing]",
        ),
        (
            "/global_rules/1",
            json!({"plugins": {"prometheus": {}}}),
            json!({"plugins": {"request-id": {"header_name": 1}}}),
            "failed to check the configuration of plugin request-id err: property \"header_name\" validation failed: wrong type: expected string, got number",
        ),
        (
            "/ssls/1",
            json!({"sni": "a.example", "cert": cert, "key": key}),
            json!({"sni": "a.example", "cert": cert, "key": certificate("b.example").1}),
            "cert and key cannot be used together: ",
        ),
        (
            "/identity_policies/1",
            policy.clone(),
            json!({"action": "perhaps", "rules": [{}]}),
            "invalid configuration: property \"action\" validation failed: matches none of the enum values",
        ),
        (
            "/trust_domains/b.test",
            json!({"bundle": root}),
            json!({"endpoint": {"url": "http://b.example/", "profile": "https_web"}}),
            "invalid configuration: property \"endpoint\" validation failed: property \"url\" validation failed: \"http://b.example/\": the scheme must be https",
        ),
        (
            "/trust_domains/b.test",
            json!({"revocation": {"mode": "hard"}}),
            json!({"desc": "nothing"}),
            "invalid configuration: object matches none of the required: [\"bundle\"] or [\"endpoint\"] or [\"revocation\"]",
        ),
        (
            "/trust_domains/b.test",
            json!({"endpoint": {"url": "https://b.example/", "profile": "https_web"}, "refresh_hint": 60}),
            json!({"bundle": "hello"}),
            "invalid configuration: property \"bundle\" validation failed: expected PEM",
        ),
        (
            "/trust_domains/b.test",
            json!({"bundle": root}),
            json!({"bundle": root, "refresh_hint": 5}),
            "invalid configuration: property \"refresh_hint\" validation failed: expected 5 to be greater than 10",
        ),
        (
            "/revocations/1",
            json!({"serial": "1F:A0", "trust_domain": "b.test", "reason": "lost"}),
            json!({"serial": "1F:A0"}),
            "invalid configuration: ",
        ),
        (
            "/revocations/1",
            json!({"spiffe_id": "spiffe://b.test/x", "expires_at": 1}),
            json!({"spiffe_id": "b.test/x"}),
            "invalid configuration: property \"spiffe_id\" validation failed: \"b.test/x\" is not a SPIFFE ID: does not start with spiffe://",
        ),
        (
            "/revocations/1",
            json!({"spki_sha256": "ab".repeat(32)}),
            json!({"spki_sha256": "ab"}),
            "invalid configuration: property \"spki_sha256\" validation failed: failed to match pattern",
        ),
        (
            "/workloads/1",
            workload.clone(),
            json!({"spiffe_id": "https://a", "selectors": ["unix:uid:1"]}),
            "invalid configuration: property \"spiffe_id\" validation failed: \"https://a\" is not a SPIFFE ID: does not start with spiffe://",
        ),
    ] {
        let answer = world.ask("PUT", path, &bad).await;
        assert_eq!(answer.status.as_u16(), 400, "{path}");
        let text = answer.json()["error_msg"].as_str().unwrap().to_owned();
        assert!(text.starts_with(sentence), "{path}: {text}");
        let answer = world.ask("PUT", path, &good).await;
        assert_eq!(answer.status.as_u16(), 201, "{path}: {}", answer.text);
        assert_eq!(world.get(path).await.json()["key"], json!(format!("/apisix{path}")));
        let kind = path.split('/').nth(1).unwrap();
        assert_eq!(
            world.get(&format!("/{kind}")).await.json()["list"][0]["value"]["create_time"],
            json!(BORN)
        );
        assert_eq!(world.delete(&format!("{path}?force=true")).await.status.as_u16(), 200);
    }
    for (kind, body) in [
        ("services", json!({})),
        ("upstreams", upstream()),
        ("identity_policies", policy),
        ("workloads", workload),
        ("revocations", json!({"spiffe_id": "spiffe://b.test/x"})),
    ] {
        assert_eq!(
            world.ask("POST", &format!("/{kind}"), &body).await.status.as_u16(),
            201,
            "{kind}"
        );
    }
}

#[tokio::test]
async fn a_private_key_goes_in_and_never_comes_out() {
    let world = world().await;
    let (cert, key) = certificate("a.example");
    let body = json!({"sni": "a.example", "cert": cert, "key": key});
    let put = world.put("/ssls/1", body.clone()).await;
    let posted = world.ask("POST", "/ssls", &body).await.json();
    let patched = world.ask("PATCH", "/ssls/1", &json!({"labels": {"a": "b"}})).await.json();
    let listed = world.get("/ssls").await.json();
    let got = world.get("/ssls/1").await.json();
    for answer in [put, posted, patched, got, listed] {
        let text = answer.to_string();
        assert!(text.contains("BEGIN CERTIFICATE") && !text.contains("PRIVATE"), "{text}");
    }
    let refused = world
        .ask("PUT", "/ssls/2", &json!({"sni": "a", "cert": cert, "key": "k".repeat(64)}))
        .await;
    assert_eq!(refused.pair(), (400, error("failed to parse key: expected one PEM private key")));
}

#[tokio::test]
async fn what_a_write_refers_to_must_exist() {
    let world = world().await;
    for (path, body, text) in [
        (
            "/routes/1",
            json!({"uri": "/", "upstream_id": "none"}),
            "failed to fetch upstream info by upstream id [none], response code: 404",
        ),
        (
            "/routes/1",
            json!({"uri": "/", "service_id": 5}),
            "failed to fetch service info by service id [5], response code: 404",
        ),
        (
            "/routes/1",
            json!({"uri": "/", "plugins": {}, "plugin_config_id": "p"}),
            "failed to fetch plugin config info by plugin config id [p], response code: 404",
        ),
        (
            "/services/1",
            json!({"upstream_id": "none"}),
            "failed to fetch upstream info by upstream id [none], response code: 404",
        ),
        (
            "/consumers",
            json!({"username": "bob", "group_id": "g"}),
            "failed to fetch consumer group info by consumer group id [g], response code: 404",
        ),
        // Fields come before references, references before plugins.
        (
            "/routes/1",
            json!({"uri": 1, "upstream_id": "none"}),
            "invalid configuration: property \"uri\" validation failed: wrong type: expected string, got number",
        ),
        (
            "/routes/1",
            json!({"uri": "/", "upstream_id": "none", "plugins": {"nothing": {}}}),
            "failed to fetch upstream info by upstream id [none], response code: 404",
        ),
    ] {
        assert_eq!(world.ask("PUT", path, &body).await.pair(), (400, error(text)), "{body}");
    }
}

#[tokio::test]
async fn what_others_use_stays_unless_forced() {
    let world = world().await;
    world.put("/upstreams/1", upstream()).await;
    world.put("/services/1", json!({"upstream_id": 1})).await;
    world.put("/plugin_configs/1", json!({"plugins": {}})).await;
    world.put("/consumer_groups/1", json!({"plugins": {}})).await;
    world.put("/routes/1", json!({"uri": "/", "service_id": "1", "plugin_config_id": "1"})).await;
    world.put("/consumers", json!({"username": "bob", "group_id": "1"})).await;
    for (path, text) in [
        ("/upstreams/1", "can not delete this upstream, service [1] is still using it now"),
        ("/services/1", "can not delete this service directly, route [1] is still using it now"),
        ("/plugin_configs/1", "can not delete this plugin config, route [1] is still using it now"),
        (
            "/consumer_groups/1",
            "can not delete this consumer group, consumer [bob] is still using it now",
        ),
    ] {
        assert_eq!(world.delete(path).await.pair(), (400, error(text)));
        assert_eq!(world.delete(&format!("{path}?force=yes")).await.status.as_u16(), 400);
    }
    world.put("/routes/1", json!({"uri": "/", "upstream_id": "1"})).await;
    let text = "can not delete this upstream, route [1] is still using it now";
    assert_eq!(world.delete("/upstreams/1").await.pair(), (400, error(text)));
    assert_eq!(world.delete("/services/1").await.status.as_u16(), 200);
    assert_eq!(world.delete("/upstreams/1?force=true").await.status.as_u16(), 200);
    assert_eq!(world.delete("/plugin_configs/1").await.status.as_u16(), 200);
}

#[tokio::test]
async fn consumers_and_their_credentials() {
    let world = world().await;
    let bob = json!({"username": "bob", "plugins": {"key-auth": {"key": "bob-key"}}, "labels": {"custom_id": "7"}});
    let answer = world.ask("PUT", "/consumers", &bob).await;
    assert_eq!(answer.status.as_u16(), 201);
    let value = answer.json()["value"].clone();
    assert_eq!((&answer.json()["key"], value.get("id")), (&json!("/apisix/consumers/bob"), None));
    assert_eq!(world.ask("PUT", "/consumers/bob", &bob).await.status.as_u16(), 200);
    world.put("/consumers", json!({"username": "a".repeat(200)})).await;

    let key = |key: &str| json!({"plugins": {"key-auth": {"key": key}}});
    for (path, body, status, text) in [
        ("/consumers/eve", bob.clone(), 400, "wrong username"),
        ("/consumers", json!({}), 400, "invalid configuration: property \"username\" is required"),
        (
            "/consumers",
            json!({"username": "b b"}),
            400,
            "invalid configuration: property \"username\" validation failed: failed to match pattern \"^[a-zA-Z0-9_\\\\-]+$\" with \"b b\"",
        ),
        (
            "/consumers",
            json!({"username": "eve", "plugins": {"key-auth": {}}}),
            400,
            "invalid plugins configuration: failed to check the configuration of plugin key-auth err: property \"key\" is required",
        ),
        (
            "/consumers",
            json!({"username": "eve", "plugins": {"key-auth": {"key": "bob-key"}}}),
            400,
            "duplicate key of plugin key-auth found with consumer: bob",
        ),
        ("/consumers/none/credentials/1", key("k"), 404, "consumer not found"),
        (
            "/consumers/bob/credentials/1",
            key("bob-key"),
            400,
            "duplicate key of plugin key-auth found with consumer: bob",
        ),
        (
            "/consumers/bob/credentials/1",
            json!({"plugins": {"request-id": {}}}),
            400,
            "only supports auth type plugins in consumer credential",
        ),
        (
            "/consumers/bob/credentials/1",
            json!({"plugins": {}}),
            400,
            "invalid configuration: property \"plugins\" validation failed: expected exactly one auth plugin, found 0",
        ),
        (
            "/consumers/bob/credentials/1",
            json!({}),
            400,
            "invalid configuration: property \"plugins\" is required",
        ),
        ("/consumers/bob/credentials", key("k"), 400, "missing credential id"),
    ] {
        assert_eq!(
            world.ask("PUT", path, &body).await.pair(),
            (status, error(text)),
            "{path} {body}"
        );
    }
    // A plugin that does not authenticate runs for the consumer with its usual settings.
    world
        .put(
            "/consumers",
            json!({"username": "eve", "plugins": {"ip-restriction": {"whitelist": ["10.0.0.1"]}}}),
        )
        .await;

    let none = world.get("/consumers/bob/credentials").await;
    assert_eq!(none.pair(), (404, json!({"message": "Key not found"})));
    let one = world.put("/consumers/bob/credentials/one", key("one")).await;
    assert_eq!(
        one,
        json!({"key": "/apisix/consumers/bob/credentials/one", "value": stamped(key("one"), "one", BORN, BORN)})
    );
    assert_eq!(
        world.get("/consumers/bob/credentials/one").await.json()["value"]["id"],
        json!("one")
    );
    assert_eq!(world.get("/consumers/bob/credentials").await.json()["total"], json!(1));
    assert_eq!(
        world.get("/consumers").await.json()["total"],
        json!(3),
        "credentials are no consumers"
    );
    world.put("/consumers/bob/credentials/two", key("two")).await;
    assert_eq!(
        world.delete("/consumers/bob/credentials/two").await.json(),
        json!({"deleted": "1", "key": "/apisix/consumers/bob/credentials/two"})
    );

    assert_eq!(world.delete("/consumers/bob").await.status.as_u16(), 200);
    world.put("/consumers", json!({"username": "bob"})).await;
    assert_eq!(
        world.get("/consumers/bob/credentials").await.status.as_u16(),
        404,
        "they went with bob"
    );
    world.put("/consumers/eve/credentials/1", key("one")).await;
}

#[tokio::test]
async fn plugins_are_judged_by_their_own_schemas() {
    let world = world().await;
    let route = |plugins: Value| json!({"uri": "/", "plugins": plugins});
    for (plugins, text) in [
        (json!({"nothing": {}}), "unknown plugin [nothing]"),
        (
            json!({"request-id": {"xx": 1}}),
            "failed to check the configuration of plugin request-id err: additional properties forbidden, found xx",
        ),
        (
            json!({"ip-restriction": {}}),
            "failed to check the configuration of plugin ip-restriction err: give either whitelist or blacklist",
        ),
        (
            json!({"request-id": {"_meta": {"xx": 1}}}),
            "invalid configuration: property \"plugins\" validation failed: failed to validate additional property request-id: property \"_meta\" validation failed: additional properties forbidden, found xx",
        ),
        (
            json!({"request-id": 1}),
            "invalid configuration: property \"plugins\" validation failed: failed to validate additional property request-id: wrong type: expected object, got number",
        ),
    ] {
        assert_eq!(world.ask("PUT", "/routes/1", &route(plugins)).await.pair(), (400, error(text)));
    }
    world.put("/routes/1", route(json!({"ip-restriction": {"_meta": {"disable": true}}}))).await;
    let flat = json!({"uri": "/", "plugins": {}, "vars": ["arg_a", "==", "b"]});
    let text = "failed to validate the 'vars' expression: rule should be wrapped inside brackets";
    assert_eq!(
        world.ask("PUT", "/routes/1", &flat).await.pair(),
        (400, error(text)),
        "the trial's sentence"
    );

    world.put("/global_rules/1", json!({"plugins": {"prometheus": {}}})).await;
    let second = world.ask("PUT", "/global_rules/2", &json!({"plugins": {"prometheus": {}}})).await;
    assert_eq!(
        second.pair(),
        (400, error("plugin 'prometheus' already exists in global rule with id '1'"))
    );
    world.put("/global_rules/1", json!({"plugins": {"prometheus": {"prefer_name": true}}})).await;

    let answer = world.put("/plugin_metadata/prometheus", json!({"prefix": "a"})).await;
    assert_eq!(
        answer,
        json!({"key": "/apisix/plugin_metadata/prometheus", "value": {"prefix": "a", "id": "prometheus"}})
    );
    for (plugin, body, text) in [
        ("nothing", json!({}), "invalid plugin name"),
        ("request-id", json!({}), "invalid configuration: plugin request-id has no metadata"),
        (
            "prometheus",
            json!({"prefix": 1}),
            "invalid configuration: property \"prefix\" validation failed: wrong type: expected string, got number",
        ),
    ] {
        let answer = world.ask("PUT", &format!("/plugin_metadata/{plugin}"), &body).await;
        assert_eq!(answer.pair(), (400, error(text)));
    }

    world.put("/upstreams/1", upstream()).await;
    world.put("/services/1", json!({"upstream_id": "1"})).await;
    world
        .put("/routes/2", json!({"uri": "/", "service_id": "1", "plugins": {"prometheus": {}}}))
        .await;
    let tried = world.trials.0.lock().unwrap().last().cloned().unwrap();
    let referred =
        ["services/1", "upstreams/1", "plugin_metadata/prometheus"].map(String::from).to_vec();
    assert_eq!(tried, ("routes/2".to_owned(), referred));
}

#[tokio::test]
async fn lists_are_filtered_and_paged() {
    let world = world().await;
    world.put("/upstreams/1", upstream()).await;
    for number in 0..25 {
        let mut route = json!({"uri": format!("/path/{number}"), "upstream_id": "1", "name": format!("route-{number}")});
        if number % 5 == 0 {
            route["labels"] = json!({"fifth": "yes"});
            route["uris"] = json!(["/fifth", "/other"]);
            route.as_object_mut().unwrap().remove("uri");
        }
        world.put(&format!("/routes/r{}", 24 - number), route).await;
    }
    let ids = async |query: &str| -> (u64, Vec<String>) {
        let answer = world.get(&format!("/routes?{query}")).await.json();
        let list = answer["list"].as_array().unwrap();
        (
            answer["total"].as_u64().unwrap(),
            list.iter().map(|one| one["value"]["id"].as_str().unwrap().to_owned()).collect(),
        )
    };
    assert_eq!(ids("").await.0, 25);
    let (total, page) = ids("page=1&page_size=10").await;
    assert_eq!((total, page.len(), page[0].as_str()), (25, 10, "r24"), "by age");
    assert_eq!(ids("page=3&page_size=10").await.1.len(), 5);
    assert_eq!(ids("page=99&page_size=10").await, (25, vec![]));
    assert_eq!(ids("page=x&page_size=500").await.1.len(), 25);
    assert_eq!(ids("page=2").await.1.len(), 25, "both or none");
    for size in ["9", "501", "x"] {
        let answer = world.get(&format!("/routes?page=1&page_size={size}")).await;
        assert_eq!(
            (answer.status.as_u16(), answer.text.trim_end()),
            (400, "page_size must be between 10 and 500")
        );
    }
    assert_eq!(ids("name=route-1%5Cd").await.0, 10);
    assert_eq!(ids("name=%5B").await.0, 0, "a pattern that is none finds nothing");
    assert_eq!(ids("label=fifth").await.0, 5);
    assert_eq!(ids("label=none").await.0, 0);
    assert_eq!(ids("uri=fifth").await.0, 5);
    assert_eq!(ids("uri=path").await.0, 20);
    assert_eq!(ids("filter=upstream_id%3D1%26other%3D2").await.0, 25);
    assert_eq!(ids("filter=service_id%3D1").await.0, 0);
    let (total, page) = ids("label=fifth&page=1&page_size=10").await;
    assert_eq!((total, page.len()), (5, 5));
}

#[tokio::test]
async fn plugins_and_schemas_can_be_read() {
    let world = world().await;
    assert_eq!(
        world.get("/plugins/list").await.pair(),
        (200, json!(["request-id", "ip-restriction", "key-auth", "prometheus"]))
    );
    assert_eq!(world.get("/plugins/list?subsystem=stream").await.json(), json!([]));
    for path in ["/plugins/key-auth", "/schema/plugins/key-auth"] {
        assert!(world.get(path).await.json()["properties"]["header"].is_object());
        let consumer = world.get(&format!("{path}?schema_type=consumer")).await.json();
        assert_eq!(consumer["required"], json!(["key"]));
        assert_eq!(
            world.get(&format!("{path}?schema_type=metadata")).await.pair(),
            (400, error("not found schema"))
        );
    }
    assert_eq!(
        world.get("/plugins/nothing").await.pair(),
        (404, error("plugin not found in subsystem http"))
    );
    let all = world.get("/plugins?all=true").await.json();
    assert_eq!(
        (&all["key-auth"]["type"], &all["key-auth"]["priority"]),
        (&json!("auth"), &json!(2500))
    );
    assert_eq!(world.ask("PUT", "/plugins/reload", &Value::Null).await.text, "done\n");
    let text = "please use PUT method to reload the plugins, GET method is not allowed.";
    assert_eq!(world.get("/plugins/reload").await.pair(), (405, error(text)));

    for (name, field) in [
        ("route", "uri"),
        ("service", "hosts"),
        ("upstream", "nodes"),
        ("consumer", "username"),
        ("ssl", "sni"),
        ("plugin_config", "plugins"),
        ("identity_policy", "rules"),
        ("workload", "spiffe_id"),
        ("trust_domain", "endpoint"),
        ("revocation", "serial"),
    ] {
        assert!(
            world.get(&format!("/schema/{name}")).await.json()["properties"][field].is_object(),
            "{name}"
        );
    }
    assert_eq!(world.get("/schema/nothing").await.status.as_u16(), 404);
    let check = async |kind: &str, body: Value| {
        world.ask("POST", &format!("/schema/validate/{kind}"), &body).await
    };
    let good = check("routes", json!({"uri": "/", "upstream_id": "not-looked-up"})).await;
    assert_eq!((good.status.as_u16(), good.text.as_str()), (200, ""));
    assert_eq!(
        check("routes", json!({"uri": 1, "plugins": {}})).await.pair(),
        (400, error("property \"uri\" validation failed: wrong type: expected string, got number"))
    );
    assert_eq!(
        check("routes", json!({"uri": "/", "plugins": {"x": {}}})).await.pair(),
        (400, error("unknown plugin [x]"))
    );
    assert_eq!(
        check("nothing", json!({})).await.pair(),
        (404, error("Unsupported resource type: nothing"))
    );
}

#[tokio::test]
async fn entries_with_a_time_to_live_vanish() {
    let world = world().await;
    let body = json!({"uri": "/", "upstream": upstream()});
    for (ttl, text) in [
        ("x", "invalid argument ttl: should be a number"),
        ("0", "invalid argument ttl: should be a number of seconds from 1"),
    ] {
        assert_eq!(
            world.ask("PUT", &format!("/routes/1?ttl={ttl}"), &body).await.pair(),
            (400, error(text))
        );
    }
    assert_eq!(world.ask("PUT", "/routes/1?ttl=1", &body).await.status.as_u16(), 201);
    assert_eq!(world.get("/routes/1").await.status.as_u16(), 200);
    tokio::time::timeout(Duration::from_secs(5), async {
        while world.get("/routes/1").await.status.as_u16() == 200 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn the_trail_has_every_write_and_every_attempt() {
    let world = world().await;
    world.put("/upstreams/1", upstream()).await;
    world.get("/upstreams/1").await;
    world.ask("PUT", "/upstreams/2?api_key=secret", &json!({})).await;
    world.send("DELETE", "/apisix/admin/upstreams/1", &[], "").await;
    world.send("DELETE", "/apisix/admin/upstreams/1", &[("x-api-key", VIEWER)], "").await;
    world.delete("/upstreams/1").await;
    let trail = world.trail.0.lock().unwrap().clone();
    let seen: Vec<(Option<&str>, &str, u16)> = trail
        .iter()
        .map(|noted| (noted.principal.as_deref(), noted.what.as_str(), noted.status))
        .collect();
    assert_eq!(
        seen,
        [
            (Some("root"), "PUT /apisix/admin/upstreams/1", 201),
            (None, "PUT /apisix/admin/upstreams/2", 401),
            (None, "DELETE /apisix/admin/upstreams/1", 401),
            (None, "DELETE /apisix/admin/upstreams/1", 401),
            (Some("root"), "DELETE /apisix/admin/upstreams/1", 200),
        ]
    );
    assert_eq!(trail[0].digest.as_ref().unwrap().len(), 64);
    assert!(trail[0].revision < trail[4].revision);
}

#[tokio::test]
async fn convergence_can_be_asked_and_waited_for() {
    let world = world().await;
    let state = |id: &str, connected, applied, rejected| DataPlaneState {
        id: id.into(),
        connected,
        applied,
        beside: Vec::new(),
        rejected,
    };
    let reject = Rejected {
        kind: Kind::Routes,
        id: Id::parse("1").unwrap(),
        revision: 9,
        reason: "no such cipher".into(),
    };
    *world.planes.0.lock().unwrap() = vec![
        state("spiffe://a/one", true, 9, vec![reject]),
        state("spiffe://a/two", false, 4, vec![]),
    ];
    assert_eq!(
        world.get("/revisions/5").await.pair(),
        (
            200,
            json!({"revision": 5, "total": 2, "applied": 1, "refusing": 1, "unreadable": [], "data_planes": [
                {"id": "spiffe://a/one", "connected": true, "revision": 9, "applied": true,
                 "rejected": [{"kind": "routes", "id": "1", "revision": 9, "reason": "no such cipher"}]},
                {"id": "spiffe://a/two", "connected": false, "revision": 4, "applied": false, "rejected": []},
            ]})
        )
    );
    assert_eq!(world.get("/revisions/x").await.status.as_u16(), 400);
    *world.planes.0.lock().unwrap() = vec![state("spiffe://a/one", true, 0, vec![])];
    let late = world.ask("PUT", "/upstreams/1?wait=applied&timeout=0", &upstream()).await;
    assert_eq!(
        (late.status.as_u16(), late.headers["x-wardgate-applied"].to_str().unwrap()),
        (201, "false")
    );
    *world.planes.0.lock().unwrap() = vec![state("spiffe://a/one", true, 1000, vec![])];
    let done = world.ask("PUT", "/upstreams/1?wait=applied", &upstream()).await;
    assert_eq!(done.headers["x-wardgate-applied"], "true");
    assert_eq!(world.ask("PUT", "/upstreams/1?wait=never", &upstream()).await.status.as_u16(), 400);
}

#[tokio::test]
async fn two_control_planes_on_one_store_do_not_overwrite_one_another() {
    let store = Arc::new(Memory::new());
    let (one, other) = (World::with(store.clone()).await, World::with(store.clone()).await);
    one.put("/upstreams/1", upstream()).await;
    let patches = (0..20).map(|number| {
        let world = if number % 2 == 0 { &one } else { &other };
        let change = json!({"nodes": {format!("10.0.0.{number}:80"): 1}});
        async move { world.ask("PATCH", "/upstreams/1", &change).await }
    });
    let mut taken = 0;
    for answer in futures_util::future::join_all(patches).await {
        match answer.status.as_u16() {
            200 => taken += 1,
            _ => assert_eq!(answer.pair(), (503, error("value changed before overwritten"))),
        }
    }
    let nodes = store.get("/apisix/upstreams/1").await.unwrap().unwrap().value["nodes"].clone();
    assert_eq!(nodes.as_object().unwrap().len(), taken + 1);
    // And what one wrote the other knows, when it comes to what may go.
    one.put("/routes/1", json!({"uri": "/", "upstream_id": "1"})).await;
    tokio::time::timeout(Duration::from_secs(5), async {
        while other.delete("/services/none").await.status.as_u16() != 404 {}
    })
    .await
    .unwrap();
    assert_eq!(other.delete("/upstreams/1").await.status.as_u16(), 400);
}

#[tokio::test]
async fn etcd_may_be_down_at_the_start_and_in_the_middle() {
    let mut server = EtcdServer::stopped();
    let store = Arc::new(Etcd::new(&Settings::plain([server.url()])).unwrap());
    let world = World::with(store.clone()).await;
    let unavailable = async |method: &str, path: &str, body: &Value| {
        let answer = world.ask(method, path, body).await;
        assert_eq!(answer.status.as_u16(), 503, "{method} {path}: {}", answer.text);
        let text = answer.json()["error_msg"].as_str().unwrap().to_owned();
        assert!(text.starts_with("the store is unreachable: "), "{text}");
    };
    unavailable("GET", "/routes", &Value::Null).await;
    unavailable("PUT", "/upstreams/1", &upstream()).await;
    let unlawful = world.ask("PUT", "/upstreams/1", &json!({})).await;
    assert_eq!(unlawful.status.as_u16(), 400, "what is wrong is wrong without a store");

    server.resume();
    assert_eq!(world.ask("PUT", "/upstreams/1", &upstream()).await.status.as_u16(), 201);
    world.put("/routes/1", json!({"uri": "/", "upstream_id": "1"})).await;
    assert_eq!(world.delete("/upstreams/1").await.status.as_u16(), 400);

    server.stop();
    for (method, path, body) in [
        ("GET", "/routes/1", Value::Null),
        ("POST", "/upstreams", upstream()),
        ("PUT", "/upstreams/1", upstream()),
        ("PATCH", "/upstreams/1", json!({"desc": "a"})),
        ("DELETE", "/routes/1", Value::Null),
    ] {
        unavailable(method, path, &body).await;
    }
    server.resume();
    store.list("/apisix/").await.unwrap();
    assert_eq!(world.delete("/routes/1").await.status.as_u16(), 200);
    assert_eq!(world.delete("/upstreams/1").await.status.as_u16(), 200);
}

#[tokio::test]
async fn what_apisix_left_in_etcd_is_read_and_never_in_the_way() {
    let store = Arc::new(Memory::new());
    for (key, value) in [
        ("/apisix/routes/", json!("init_dir")),
        ("/apisix/protos/1", json!({"content": ""})),
        ("/apisix/plugins", json!([{"name": "key-auth"}])),
        ("/apisix/routes/1", json!({"uri": "/old", "script": "return {}", "upstream_id": 9})),
    ] {
        store.put(key, &value, Expect::Anything, None).await.unwrap();
    }
    let world = World::with(store).await;
    let list = world.get("/routes").await.json();
    assert_eq!((&list["total"], &list["list"][0]["value"]["uri"]), (&json!(1), &json!("/old")));
    world.put("/upstreams/9", upstream()).await;
    assert_eq!(world.delete("/upstreams/9").await.status.as_u16(), 400);
    assert_eq!(world.delete("/routes/1").await.status.as_u16(), 200);
    assert_eq!(world.delete("/upstreams/9").await.status.as_u16(), 200);
}

#[tokio::test]
async fn requests_under_way_are_finished_when_the_control_plane_stops() {
    let world = world().await;
    world.put("/upstreams/1", upstream()).await;
    let address = world.address;
    assert!(world.drain.drain(Duration::from_secs(5)).await);
    assert!(tokio::net::TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn the_schema_of_policies_is_what_the_command_line_prints() {
    let world = world().await;
    for (path, name) in [("identity_policy", "policy"), ("identity_mode", "identity-mode")] {
        let path = format!("/apisix/admin/schema/{path}");
        let answer = world.send("GET", &path, &[("x-api-key", VIEWER)], "").await;
        let (status, answer) = answer.pair();
        assert_eq!(status, 200);
        let printed = std::process::Command::new(env!("CARGO_BIN_EXE_wardgate"))
            .args(["schema", name])
            .output()
            .unwrap();
        let printed: Value = serde_json::from_slice(&printed.stdout).unwrap();
        assert_eq!(answer, printed, "{name}");
    }
}
