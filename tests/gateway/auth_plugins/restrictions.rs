//! `consumer-restriction`, `acl` and `attach-consumer-label`: what follows from who the caller is.

use serde_json::{Value, json};

use super::{Edge, routes};
use crate::world::{App, World, send};

fn people() -> Value {
    let person = |name: &str, group: Option<&str>, labels: Value| {
        let mut person = json!({ "username": name, "labels": labels,
            "plugins": { "key-auth": { "key": name } } });
        if let Some(group) = group {
            person["group_id"] = json!(group);
        }
        person
    };
    json!({
        "consumers": [
            person("ann", Some("staff"), json!({ "team": "ops,dev", "floor": "3" })),
            person("bob", Some("guests"), json!({ "team": "[\"sales\"]" })),
            person("eve", None, json!({})),
        ],
        "consumer_groups": [{ "id": "staff", "plugins": {} }, { "id": "guests", "plugins": {} }],
    })
}

fn keyed(plugin: &str, config: Value) -> Value {
    json!({ "key-auth": {}, plugin: config })
}

#[tokio::test(flavor = "multi_thread")]
async fn consumer_restriction_admits_by_name_group_service_and_route() {
    let restricted = |config: Value| keyed("consumer-restriction", config);
    let edge = Edge::new(
        &[
            ("/white", restricted(json!({ "whitelist": ["ann"] }))),
            (
                "/black",
                restricted(
                    json!({ "blacklist": ["ann"], "rejected_code": 451, "rejected_msg": "go away" }),
                ),
            ),
            (
                "/methods",
                restricted(
                    json!({ "allowed_by_methods": [{ "user": "bob", "methods": ["POST"] }] }),
                ),
            ),
            (
                "/both",
                restricted(
                    json!({ "whitelist": ["ann"], "allowed_by_methods": [{ "user": "ann", "methods": ["POST"] }] }),
                ),
            ),
            ("/group", restricted(json!({ "type": "consumer_group_id", "whitelist": ["staff"] }))),
            ("/route", restricted(json!({ "type": "route_id", "blacklist": ["route"] }))),
            ("/service", restricted(json!({ "type": "service_id", "whitelist": ["s"] }))),
            ("/open", json!({ "consumer-restriction": { "whitelist": ["ann"] } })),
        ],
        &people(),
    );
    let name = r#"{"message":"The consumer_name is forbidden."}"#;
    for (path, who, method, status, body) in [
        ("/white", "ann", "GET", 200, ""),
        ("/white", "bob", "GET", 403, name),
        ("/black", "ann", "GET", 451, r#"{"message":"go away"}"#),
        ("/black", "bob", "GET", 200, ""),
        ("/methods", "bob", "GET", 403, name),
        ("/methods", "bob", "POST", 200, ""),
        ("/methods", "ann", "GET", 200, ""),
        ("/both", "ann", "GET", 200, ""),
        ("/both", "bob", "POST", 403, name),
        ("/group", "ann", "GET", 200, ""),
        ("/group", "bob", "GET", 403, r#"{"message":"The consumer_group_id is forbidden."}"#),
        (
            "/group",
            "eve",
            "GET",
            401,
            r#"{"message":"The request is rejected, please check the consumer_group_id for this request"}"#,
        ),
        ("/route", "ann", "GET", 403, r#"{"message":"The route_id is forbidden."}"#),
        (
            "/service",
            "ann",
            "GET",
            401,
            r#"{"message":"The request is rejected, please check the service_id for this request"}"#,
        ),
        (
            "/open",
            "ann",
            "GET",
            401,
            r#"{"message":"The request is rejected, please check the consumer_name for this request"}"#,
        ),
    ] {
        let answer =
            edge.ask(method, path, &[("apikey", who), ("x-consumer-username", "ann")], "").await;
        assert_eq!(answer.status, status, "{path} {who} {method}: {}", answer.text());
        assert!(status == 200 || answer.text().trim() == body, "{path}: {}", answer.text());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn acl_and_labels_go_by_what_the_consumer_is_labelled() {
    let world = World::new();
    let app = App::echo("app");
    let acl = |config: Value| keyed("acl", config);
    let mut resources = people();
    resources["routes"] = routes(
        &app,
        &[
            ("/allow", acl(json!({ "allow_labels": { "team": ["ops"], "floor": ["9"] } }))),
            (
                "/deny",
                acl(
                    json!({ "deny_labels": { "team": ["sales"] }, "rejected_code": 404, "rejected_msg": "no" }),
                ),
            ),
            ("/open", json!({ "acl": { "allow_labels": { "team": ["ops"] } } })),
            (
                "/labels",
                keyed(
                    "attach-consumer-label",
                    json!({ "headers": { "X-Team": "$team", "X-Floor": "$floor" } }),
                ),
            ),
            ("/nobody", json!({ "attach-consumer-label": { "headers": { "X-Team": "$team" } } })),
        ],
    );
    let ingress = world.ingress().resources(&resources).start();
    let forged = ("x-team", "ops");
    let get = async |path: &str, who: &str| {
        let headers = [("apikey", who), forged, ("x-floor", "9")];
        send(ingress.address("ingress"), "GET", path, &headers, "").await
    };
    for (path, who, status, message) in [
        ("/allow", "ann", 200, ""),
        ("/allow", "bob", 403, "The consumer is forbidden."),
        ("/allow", "eve", 403, "The consumer is forbidden."),
        ("/deny", "ann", 200, ""),
        ("/deny", "bob", 404, "no"),
        ("/deny", "eve", 200, ""),
        ("/open", "ann", 401, "Missing authentication."),
    ] {
        let answer = get(path, who).await;
        assert_eq!(answer.status, status, "{path} {who}: {}", answer.text());
        assert!(status == 200 || answer.json()["message"] == message, "{}", answer.text());
    }
    let ann = get("/labels", "ann").await;
    assert_eq!(ann.seen("x-team").as_deref(), Some("ops,dev"));
    assert_eq!(ann.seen("x-floor").as_deref(), Some("3"));
    let eve = get("/labels", "eve").await;
    assert_eq!((eve.seen("x-team"), eve.seen("x-floor")), (None, None), "nobody labels itself");
    assert_eq!(get("/nobody", "ann").await.seen("x-team"), None);
}
