//! What clients read about plugins and shapes, and a whole configuration judged at once.

use super::*;

#[tokio::test]
async fn plugins_are_published_as_apisix_publishes_them() {
    let world = world().await;
    let schema = world.get("/plugins/key-auth").await.json();
    assert_eq!(schema["$comment"], json!("this is a mark for our injected plugin schema"));
    assert_eq!(schema["title"], json!("work with route or service object"));
    let meta = &schema["properties"]["_meta"];
    assert_eq!(meta["properties"]["disable"], json!({"type": "boolean"}));
    assert_eq!(meta["additionalProperties"], json!(false));
    let consumer = world.get("/plugins/key-auth?schema_type=consumer").await.json();
    assert_eq!(
        (&consumer["title"], &consumer["required"]),
        (&json!("work with consumer object"), &json!(["key"]))
    );
    assert_eq!(consumer["properties"].get("_meta"), None);
    assert_eq!(world.get("/schema/plugins/key-auth").await.json(), schema);
    let all = world.get("/plugins?all=true").await.json();
    assert_eq!((&all["key-auth"]["schema"], &all["key-auth"]["type"]), (&schema, &json!("auth")));
    for (path, status, why) in [
        ("/plugins/asdf", 404, "plugin not found in subsystem http"),
        ("/plugins/key-auth?subsystem=stream", 404, "plugin not found in subsystem stream"),
        ("/plugins/key-auth?subsystem=asdf", 400, "unsupported subsystem: asdf"),
        ("/plugins?subsystem=asdf", 400, "unsupported subsystem: asdf"),
        ("/plugins", 400, "not found plugin name"),
        ("/plugins/request-id?schema_type=metadata", 400, "not found schema"),
    ] {
        assert_eq!(world.get(path).await.pair(), (status, error(why)), "{path}");
    }
}

#[tokio::test]
async fn every_shape_has_its_name() {
    let world = world().await;
    for (name, field) in [
        ("route", "uri"),
        ("service", "upstream_id"),
        ("upstream", "nodes"),
        ("consumer", "username"),
        ("credential", "plugins"),
        ("consumer_group", "plugins"),
        ("plugin_config", "plugins"),
        ("global_rule", "plugins"),
        ("ssl", "snis"),
        ("proto", "content"),
        ("stream_route", "server_port"),
        ("secret_vault", "token"),
        ("identity_policy", "rules"),
    ] {
        let schema = world.get(&format!("/schema/{name}")).await.json();
        assert_eq!(schema["type"], json!("object"), "{name}");
        assert!(schema["properties"].get(field).is_some(), "{name}: {schema}");
    }
    assert_eq!(world.get("/schema/plugins").await.pair(), (400, error("not found plugin name")));
    assert_eq!(world.get("/schema/nothing").await.status.as_u16(), 404);
}

#[tokio::test]
async fn a_whole_configuration_is_judged_with_everything_that_is_wrong() {
    let world = world().await;
    let judge = async |body: &Value| world.ask("POST", "/configs/validate", body).await;
    let route = |id: &str, uri: Value| json!({"id": id, "uri": uri, "upstream": upstream(), "modifiedIndex": 7});
    let good = json!({
        "routes": [route("r1", json!("/a")), {"uri": "/b", "upstream_id": "not-looked-up"}, {"uri": "/c", "plugins": {}}],
        "routes_conf_version": 3,
        "consumers": [
            {"username": "jack", "plugins": {"key-auth": {"key": "k"}}},
            {"id": "jack/credentials/one", "plugins": {"key-auth": {"key": "l"}}},
        ],
        "secrets": [{"id": "vault/1", "uri": "https://v", "prefix": "p", "token": "t"}],
        "plugin_metadata": [{"id": "prometheus", "prefix": "x"}],
        "upstreams": [],
        "plugins": ["anything"],
    });
    assert_eq!(judge(&good).await.pair(), (200, json!({})));
    assert_eq!(world.get("/routes/r1").await.status.as_u16(), 404, "nothing was stored");

    let bad = json!({
        "routes": [route("r1", json!(123)), route("r1", json!("/b"))],
        "services_conf_version": "x",
        "consumers": [{"username": "a"}, {"username": "a"}],
        "secrets": [{"id": "vault", "uri": "https://v", "prefix": "p", "token": "t"}],
        "global_rules": {},
    });
    let answer = judge(&bad).await.pair();
    let wrong = "property \"uri\" validation failed: wrong type: expected string, got number";
    let wanted = json!({"error_msg": "Configuration validation failed", "errors": [
        {"resource_type": "routes", "resource_id": "r1", "index": 0, "error": format!("invalid routes at index 0, err: invalid configuration: {wrong}")},
        {"resource_type": "routes", "resource_id": "r1", "index": 1, "error": "found duplicate id r1 in routes"},
        {"resource_type": "services", "error": "services_conf_version must be a number, got string"},
        {"resource_type": "consumers", "resource_id": "a", "index": 1, "error": "found duplicate username a in consumers"},
        {"resource_type": "secrets", "resource_id": "vault", "index": 0, "error": "invalid secrets at index 0, err: invalid secret id: vault"},
        {"resource_type": "global_rules", "error": "global_rules: expected an array, got table"},
    ]});
    assert_eq!(answer, (400, wanted));

    let raw = async |kind: &str, body: &str| {
        let headers = [("x-api-key", VIEWER), ("content-type", kind)];
        world.send("POST", "/apisix/admin/configs/validate", &headers, body.to_owned()).await
    };
    assert_eq!(
        raw("application/json", "").await.pair(),
        (400, error("invalid request body: empty request body"))
    );
    let broken = raw("application/json", "not json").await.json()["error_msg"].clone();
    assert!(broken.as_str().unwrap().starts_with("invalid request body: "));
    let yaml = "routes:\n  - id: r1\n    uri: /a\n    upstream_id: 1\n";
    assert_eq!(raw("application/yaml", yaml).await.pair(), (200, json!({})), "a viewer may ask");
    assert_eq!(raw("application/yaml", "routes: [").await.status.as_u16(), 400);
}

#[tokio::test]
async fn pages_are_counted_from_one_and_have_bounds() {
    let world = world().await;
    for id in 1..=11 {
        world.put(&format!("/upstreams/{id}"), upstream()).await;
    }
    let shown = async |query: &str| {
        let answer = world.get(&format!("/upstreams?{query}")).await.json();
        (answer["total"].as_u64().unwrap(), answer["list"].as_array().unwrap().len())
    };
    assert_eq!(shown("page=-1&page_size=10").await, (11, 10));
    assert_eq!(shown("page=2&page_size=10").await, (11, 1));
    assert_eq!(shown("page=3&page_size=10").await, (11, 0));
    assert_eq!(shown("page=x&page_size=10").await, (11, 10));
    assert_eq!(shown("page=1").await, (11, 11));
    for size in ["9", "501", "0"] {
        let answer = world.get(&format!("/upstreams?page=1&page_size={size}")).await;
        assert_eq!(
            (answer.status.as_u16(), answer.text.trim()),
            (400, "page_size must be between 10 and 500")
        );
    }
}
