//! ADC's calls as it makes them: request lines, heads and bodies as they were recorded, against both of its backends.

use super::*;
use admin::Answer;
use wardgate::control::standalone::StandaloneSettings;

/// 40 hexadecimal digits, as ADC names what it writes.
const SERVICE: &str = "5e2b1f3b4c9b6f6c3f5a8c9f0d1e2f3a4b5c6d7e";
const ROUTE: &str = "0a1b2c3d4e5f60718293a4b5c6d7e8f901234567";
const CREDENTIAL: &str = "ffeeddccbbaa99887766554433221100ffeeddcc";
const SSL: &str = "1111111111222222222233333333334444444444";

/// What ADC's HTTP client says with every call.
async fn adc(world: &World, method: &str, path: &str, body: &Value) -> Answer {
    let heads = [
        ("x-api-key", ADMIN),
        ("content-type", "application/json"),
        ("accept", "application/json, text/plain, */*"),
        ("user-agent", "axios/1.7.9"),
    ];
    let body = if body.is_null() { String::new() } else { body.to_string() };
    world.send(method, path, &heads, body).await
}

async fn ask(world: &World, path: &str) -> Answer {
    adc(world, "GET", path, &Value::Null).await
}

/// The version that ADC reads from the head: `/APISIX\/(.*)/`, then what semver can make of it.
fn version(answer: &Answer) -> String {
    let server = answer.headers["server"].to_str().unwrap();
    let rest = server.strip_prefix("APISIX/").unwrap();
    rest.split([' ', '(']).next().unwrap().to_owned()
}

// ---- the Admin API as backend ----

#[tokio::test]
async fn ping_and_the_version_probe() {
    let world = world().await;
    let answer = ask(&world, "/apisix/admin/routes").await;
    assert!(answer.status.is_success());
    assert_eq!(version(&answer), "3.18.0", "credentials, stream route names, configs/validate");
}

#[tokio::test]
async fn a_dump_of_nothing_has_lists_that_are_lists() {
    let world = world().await;
    for kind in [
        "services",
        "routes",
        "upstreams",
        "ssls",
        "consumers",
        "plugin_configs",
        "global_rules",
        "plugin_metadata",
    ] {
        let answer = ask(&world, &format!("/apisix/admin/{kind}")).await;
        assert_eq!(answer.pair(), (200, json!({"total": 0, "list": []})), "{kind}");
    }
    let streams = ask(&world, "/apisix/admin/stream_routes").await;
    assert_eq!(streams.pair(), (200, json!({"total": 0, "list": []})));
    let none = ask(&world, "/apisix/admin/consumers/nobody/credentials").await;
    assert_eq!(none.status.as_u16(), 404);
}

#[tokio::test]
async fn sync_writes_each_resource_and_dump_reads_it_back() {
    let world = world().await;
    let put = async |path: String, body: Value| {
        let answer = adc(&world, "PUT", &format!("/apisix/admin/{path}"), &body).await;
        assert!(answer.status.is_success(), "{path}: {} {}", answer.status, answer.text);
        answer.status.as_u16()
    };
    let labels = json!({"managed-by": "adc"});
    let nodes = json!([{"host": "127.0.0.1", "port": 1980, "weight": 100}]);
    let upstream = json!({
        "id": SERVICE, "name": "billing", "labels": labels, "type": "roundrobin", "scheme": "http",
        "pass_host": "pass", "nodes": nodes, "timeout": {"connect": 60, "send": 60, "read": 60},
    });
    let service = json!({
        "id": SERVICE, "name": "billing", "desc": "invoices", "labels": labels, "hosts": ["a.test"],
        "plugins": {"request-id": {}}, "upstream_id": SERVICE,
    });
    // A service is two: its upstream first, under the same id.
    assert_eq!(put(format!("upstreams/{SERVICE}"), upstream.clone()).await, 201);
    assert_eq!(put(format!("services/{SERVICE}"), service.clone()).await, 201);
    let route = json!({
        "id": ROUTE, "name": "invoices", "labels": labels, "uris": ["/invoices/*"], "methods": ["GET"],
        "service_id": SERVICE, "status": 1, "plugins": {},
    });
    assert_eq!(put(format!("routes/{ROUTE}"), route).await, 201);
    let john = json!({"username": "john", "labels": labels, "plugins": {}});
    assert_eq!(put("consumers/john".into(), john).await, 201);
    let credential = json!({
        "id": CREDENTIAL, "name": "key", "labels": labels, "plugins": {"key-auth": {"key": "johns"}},
    });
    assert_eq!(put(format!("consumers/john/credentials/{CREDENTIAL}"), credential).await, 201);
    let rule = json!({"id": "request-id", "plugins": {"request-id": {"header_name": "x-id"}}});
    assert_eq!(put("global_rules/request-id".into(), rule).await, 201);
    assert_eq!(put("plugin_metadata/prometheus".into(), json!({"prefix": "p"})).await, 201);
    let (cert, key) = certificate("a.test");
    let ssl = json!({
        "id": SSL, "labels": labels, "type": "server", "snis": ["a.test"], "cert": cert, "key": key,
        "status": 1,
    });
    assert_eq!(put(format!("ssls/{SSL}"), ssl).await, 201);
    let more = json!({
        "id": ROUTE, "name": "second", "labels": {"__ADC_UPSTREAM_SERVICE_ID": SERVICE}, "type": "roundrobin",
        "nodes": nodes,
    });
    assert_eq!(put(format!("upstreams/{ROUTE}"), more).await, 201);
    // An update touches only the half that changed.
    assert_eq!(put(format!("services/{SERVICE}"), service).await, 200);

    let first = async |kind: &str| {
        let answer = ask(&world, &format!("/apisix/admin/{kind}")).await.json();
        answer["list"][0].clone()
    };
    let listed = first("services").await;
    assert_eq!(listed["key"], format!("/apisix/services/{SERVICE}"));
    assert_eq!(listed["value"]["upstream_id"], SERVICE);
    assert!(listed["createdIndex"].is_u64() && listed["modifiedIndex"].is_u64());
    assert_eq!(first("routes").await["value"]["service_id"], SERVICE);
    assert_eq!(first("plugin_metadata").await["key"], "/apisix/plugin_metadata/prometheus");
    assert_eq!(first("ssls").await["value"].get("key"), None);
    let held = first("consumers/john/credentials").await;
    assert_eq!(held["value"]["plugins"]["key-auth"]["key"], "johns");
    assert_eq!(ask(&world, "/apisix/admin/consumers").await.json()["total"], 1);

    // Deletes: what refers goes first, and a service before its upstream.
    for path in [
        format!("routes/{ROUTE}"),
        format!("services/{SERVICE}"),
        format!("upstreams/{SERVICE}"),
        format!("consumers/john/credentials/{CREDENTIAL}"),
        "consumers/john".into(),
        "global_rules/request-id".into(),
        "plugin_metadata/prometheus".into(),
        format!("ssls/{SSL}"),
    ] {
        let answer = adc(&world, "DELETE", &format!("/apisix/admin/{path}"), &Value::Null).await;
        assert_eq!(answer.status.as_u16(), 200, "{path}: {}", answer.text);
        assert_eq!(answer.json()["deleted"], "1");
    }
}

#[tokio::test]
async fn validate_tells_all_that_is_wrong_and_where() {
    let world = world().await;
    let good = json!({
        "routes": [{"id": ROUTE, "uris": ["/"], "service_id": SERVICE}],
        "services": [{"id": SERVICE, "name": "s", "upstream": upstream()}],
        "consumers": [{"username": "john", "plugins": {"key-auth": {"key": "a"}}}],
        "ssls": [], "global_rules": [{"id": "request-id", "plugins": {"request-id": {}}}],
        "stream_routes": [], "plugin_metadata": [{"id": "prometheus", "prefix": "p"}], "upstreams": [],
    });
    let validate =
        async |body: &Value| adc(&world, "POST", "/apisix/admin/configs/validate", body).await;
    assert_eq!(validate(&good).await.pair(), (200, json!({})));
    assert_eq!(ask(&world, "/apisix/admin/routes").await.json()["total"], 0, "nothing is written");

    let mut bad = good;
    bad["routes"] = json!([
        {"id": "1", "uris": ["/"], "upstream": upstream()},
        {"id": "2", "uris": "/"},
        {"id": "1", "uris": ["/"], "upstream": upstream()},
    ]);
    bad["global_rules"][0]["plugins"] = json!({"no-such": {}});
    let (status, told) = validate(&bad).await.pair();
    assert_eq!((status, &told["error_msg"]), (400, &json!("Configuration validation failed")));
    let errors: Vec<(&str, &str, u64)> = told["errors"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| {
            let text = |field: &str| one[field].as_str().unwrap();
            assert!(!text("error").is_empty());
            (text("resource_type"), text("resource_id"), one["index"].as_u64().unwrap())
        })
        .collect();
    assert_eq!(
        errors,
        [("routes", "2", 1), ("routes", "1", 2), ("global_rules", "request-id", 0)],
        "{told}"
    );
    assert_eq!(
        told["errors"][2]["error"],
        "invalid global_rules at index 0, err: unknown plugin [no-such]"
    );
    assert_eq!(told["errors"][1]["error"], "found duplicate id 1 in routes");
    let by_viewer =
        world.send("POST", "/apisix/admin/configs/validate", &[("x-api-key", VIEWER)], "{}").await;
    assert_eq!(by_viewer.status.as_u16(), 200, "it is a question");
}

#[tokio::test]
async fn a_backend_that_is_not_standalone_says_so() {
    let world = world().await;
    for method in ["GET", "PUT", "HEAD"] {
        let answer = adc(&world, method, "/apisix/admin/configs", &json!({})).await;
        assert_eq!(answer.status.as_u16(), 404, "{method}");
    }
}

// ---- the standalone backend ----

async fn standalone() -> World {
    World::standalone(StandaloneSettings::default()).await
}

const CONFIGS: &str = "/apisix/admin/configs";

async fn put(world: &World, digest: &str, body: &Value) -> Answer {
    let heads = [
        ("x-api-key", ADMIN),
        ("content-type", "application/json"),
        ("accept", "application/json, text/plain, */*"),
        ("x-digest", digest),
    ];
    world.send("PUT", CONFIGS, &heads, body.to_string()).await
}

fn header<'a>(answer: &'a Answer, name: &str) -> Option<&'a str> {
    answer.headers.get(name).map(|value| value.to_str().unwrap())
}

#[tokio::test]
async fn the_version_is_probed_without_a_key() {
    let world = standalone().await;
    let answer = world.send("HEAD", "/apisix/admin", &[], "").await;
    assert_eq!((answer.status.as_u16(), version(&answer)), (200, "3.18.0".to_owned()));
}

#[tokio::test]
async fn a_standalone_configuration_is_fetched_put_and_fetched_again() {
    let world = standalone().await;
    // At first there is nothing, and everything has version 0.
    let head = adc(&world, "HEAD", CONFIGS, &Value::Null).await;
    assert_eq!((head.status.as_u16(), head.text.as_str()), (200, ""));
    assert_eq!((header(&head, "x-digest"), header(&head, "x-last-modified")), (None, None));
    let (status, empty) = ask(&world, CONFIGS).await.pair();
    assert_eq!(status, 200);
    for list in [
        "routes",
        "services",
        "upstreams",
        "consumers",
        "consumer_groups",
        "plugin_configs",
        "global_rules",
        "plugin_metadata",
        "ssls",
        "stream_routes",
        "protos",
        "secrets",
    ] {
        assert_eq!(empty[format!("{list}_conf_version")], 0, "{list}");
        assert_eq!(empty.get(list), None, "{list}");
    }

    let body = json!({
        "routes": [{"modifiedIndex": 1, "id": ROUTE, "name": "r", "uris": ["/a"], "service_id": SERVICE, "status": 1}],
        "routes_conf_version": 1,
        "services": [{"modifiedIndex": 1, "id": SERVICE, "name": "s", "upstream": upstream()}],
        "services_conf_version": 1,
        "consumers": [
            {"modifiedIndex": 1, "username": "john"},
            {"modifiedIndex": 1, "id": format!("john/credentials/{CREDENTIAL}"), "name": "key",
             "plugins": {"key-auth": {"key": "johns"}}},
        ],
        "consumers_conf_version": 1,
        "upstreams_conf_version": 0, "ssls_conf_version": 0, "global_rules_conf_version": 0,
        "plugin_metadata_conf_version": 0, "stream_routes_conf_version": 0,
    });
    let put_first = put(&world, "aaaa", &body).await;
    assert_eq!((put_first.status.as_u16(), put_first.text.as_str()), (202, ""));
    assert_eq!(header(&put_first, "x-digest"), Some("aaaa"));
    assert_eq!(header(&put_first, "x-last-modified"), Some("1700000000"));
    let head = adc(&world, "HEAD", CONFIGS, &Value::Null).await;
    assert_eq!(header(&head, "x-digest"), Some("aaaa"));
    assert_eq!(header(&head, "x-last-modified"), Some("1700000000"));
    // Data planes are told of resources as of any.
    assert_eq!(world.get(&format!("/routes/{ROUTE}")).await.json()["value"]["uris"], json!(["/a"]));
    let held = world.get("/consumers/john/credentials").await.json();
    assert_eq!(held["list"][0]["key"], format!("/apisix/consumers/john/credentials/{CREDENTIAL}"));

    // The same digest is the same configuration.
    let again = put(&world, "aaaa", &json!({"routes": [{"id": "other"}]})).await;
    assert_eq!((again.status.as_u16(), again.text.as_str()), (204, ""));

    // ADC takes what it got, and changes what differs: a list of the same version stays as it is.
    let mut fetched = ask(&world, CONFIGS).await.json();
    assert_eq!(fetched["routes"][0]["modifiedIndex"], 1);
    assert_eq!(fetched["consumers"][1]["id"], format!("john/credentials/{CREDENTIAL}"));
    fetched["routes"][0]["uris"] = json!(["/b"]);
    fetched["routes"][0]["modifiedIndex"] = json!(2);
    fetched["routes_conf_version"] = json!(2);
    fetched["services"] = json!([]);
    assert_eq!(put(&world, "bbbb", &fetched).await.status.as_u16(), 202);
    assert_eq!(world.get(&format!("/routes/{ROUTE}")).await.json()["value"]["uris"], json!(["/b"]));
    assert_eq!(world.get(&format!("/services/{SERVICE}")).await.status.as_u16(), 200);
    // Absent versions count up, and absent lists are empty ones.
    assert_eq!(
        put(&world, "cccc", &json!({"services": body["services"]})).await.status.as_u16(),
        202
    );
    let fetched = ask(&world, CONFIGS).await.json();
    assert_eq!(fetched["routes_conf_version"], 3);
    assert_eq!(
        (fetched.get("routes"), fetched["services"][0]["id"].as_str()),
        (None, Some(SERVICE))
    );
    assert_eq!(world.get(&format!("/routes/{ROUTE}")).await.status.as_u16(), 404);
}

#[tokio::test]
async fn what_is_wrong_with_a_put_is_said_in_apisix_s_words_and_changes_nothing() {
    let world = standalone().await;
    let route = json!({"id": "r1", "uri": "/a", "upstream": upstream()});
    let good = json!({"routes": [route], "routes_conf_version": 5});
    assert_eq!(put(&world, "good", &good).await.status.as_u16(), 202);
    let missing = adc(&world, "PUT", CONFIGS, &json!({})).await;
    assert_eq!(missing.pair(), (400, error("missing digest header")));
    let heads = [("x-api-key", ADMIN), ("x-digest", "d")];
    let empty = world.send("PUT", CONFIGS, &heads, "").await;
    assert_eq!(empty.pair(), (400, error("invalid request body: empty request body")));
    let broken = world.send("PUT", CONFIGS, &heads, "{").await;
    assert_eq!(broken.status.as_u16(), 400);
    for (body, sentence) in [
        (
            json!({"routes_conf_version": 4}),
            "routes_conf_version must be greater than or equal to (5)",
        ),
        (json!({"routes_conf_version": "6"}), "routes_conf_version must be a number"),
        (json!({"routes": [route, route]}), "found duplicate id r1 in routes"),
        (
            json!({"consumers": [{"username": "j"}, {"username": "j"}]}),
            "found duplicate username j in consumers",
        ),
        (
            json!({"consumers": [
                {"id": "j/credentials/a", "plugins": {"key-auth": {"key": "1"}}},
                {"id": "j/credentials/a", "plugins": {"key-auth": {"key": "2"}}},
            ]}),
            "found duplicate credential id j/credentials/a in consumers",
        ),
        (
            json!({"routes": [route, {"id": "r2", "uri": "/", "plugins": {"no-such": {}}}]}),
            "invalid routes at index 1, err: unknown plugin [no-such]",
        ),
        (
            json!({"routes": [{"id": "r2", "uri": 7, "upstream": upstream()}]}),
            "invalid routes at index 0, err: invalid configuration: property \"uri\" validation failed: wrong type: expected string, got number",
        ),
        (json!({"rotues": []}), "invalid request body: rotues: no kind of resource has this name"),
    ] {
        assert_eq!(put(&world, "d", &body).await.pair(), (400, error(sentence)), "{body}");
    }
    assert_eq!(ask(&world, CONFIGS).await.json()["routes"], json!([route]));
    // No references are checked, as in APISIX: the route answers an error until they are there.
    let dangling = json!({"routes": [{"id": "r1", "uri": "/", "service_id": "none"}]});
    assert_eq!(put(&world, "dangling", &dangling).await.status.as_u16(), 202);

    // Nothing is written one by one.
    let single = world.ask("PUT", "/routes/1", &route).await;
    assert_eq!(single.status.as_u16(), 404);
    assert!(single.text.contains("PUT /apisix/admin/configs"), "{}", single.text);
    let by_viewer =
        world.send("PUT", CONFIGS, &[("x-api-key", VIEWER), ("x-digest", "v")], "{}").await;
    assert_eq!(by_viewer.status.as_u16(), 401);
    let head = world.send("HEAD", CONFIGS, &[("x-api-key", VIEWER)], "").await;
    assert_eq!(head.status.as_u16(), 200);
}

#[tokio::test]
async fn yaml_is_taken_and_given() {
    let world = standalone().await;
    let heads = [("x-api-key", ADMIN), ("x-digest", "y"), ("content-type", "application/yaml")];
    let yaml = "routes:\n  - id: r1\n    uri: /a\n    upstream:\n      type: roundrobin\n      nodes:\n        \"127.0.0.1:1980\": 1\n";
    assert_eq!(world.send("PUT", CONFIGS, &heads, yaml).await.status.as_u16(), 202);
    let heads = [("x-api-key", ADMIN), ("accept", "application/yaml")];
    let answer = world.send("GET", CONFIGS, &heads, "").await;
    assert_eq!(header(&answer, "content-type"), Some("application/yaml"));
    assert_eq!(header(&answer, "x-digest"), Some("y"));
    let back: Value = serde_saphyr::from_str(&answer.text).unwrap();
    assert_eq!(back["routes"][0]["upstream"]["nodes"]["127.0.0.1:1980"], 1);
    assert_eq!(back["routes_conf_version"], 1);
}

#[tokio::test]
async fn private_keys_are_never_given_and_need_not_come_back() {
    let world = standalone().await;
    let (cert, key) = certificate("a.test");
    let ssl = json!({"modifiedIndex": 1, "id": SSL, "snis": ["a.test"], "cert": cert, "key": key});
    let body = json!({"ssls": [ssl], "ssls_conf_version": 1});
    assert_eq!(put(&world, "one", &body).await.status.as_u16(), 202);
    let mut fetched = ask(&world, CONFIGS).await.json();
    assert_eq!(fetched["ssls"][0].get("key"), None);
    fetched["ssls"][0]["snis"] = json!(["b.test"]);
    fetched["ssls_conf_version"] = json!(2);
    let answer = put(&world, "two", &fetched).await;
    assert_eq!(answer.status.as_u16(), 202, "{}", answer.text);
    assert_eq!(world.get(&format!("/ssls/{SSL}")).await.json()["value"]["snis"], json!(["b.test"]));
}

#[tokio::test]
async fn a_put_that_takes_most_of_a_kind_away_must_say_that_it_is_meant() {
    let routes = |count: usize| -> Value {
        (0..count)
            .map(|number| json!({"id": format!("r{number}"), "uri": "/", "upstream": upstream()}))
            .collect()
    };
    let world = standalone().await;
    assert_eq!(put(&world, "ten", &json!({"routes": routes(10)})).await.status.as_u16(), 202);
    let shrunk = put(&world, "four", &json!({"routes": routes(4)})).await;
    assert_eq!(shrunk.status.as_u16(), 409);
    assert!(shrunk.text.contains("6 of 10 routes"), "{}", shrunk.text);
    assert_eq!(ask(&world, CONFIGS).await.json()["routes"].as_array().unwrap().len(), 10);
    assert_eq!(put(&world, "five", &json!({"routes": routes(5)})).await.status.as_u16(), 202);
    assert_eq!(put(&world, "ten again", &json!({"routes": routes(10)})).await.status.as_u16(), 202);
    let heads = [("x-api-key", ADMIN), ("x-digest", "none"), ("x-wardgate-allow-shrink", "true")];
    assert_eq!(world.send("PUT", CONFIGS, &heads, "{}").await.status.as_u16(), 202);

    let unguarded = World::standalone(StandaloneSettings { shrink_guard: false }).await;
    assert_eq!(put(&unguarded, "ten", &json!({"routes": routes(10)})).await.status.as_u16(), 202);
    assert_eq!(put(&unguarded, "none", &json!({})).await.status.as_u16(), 202);
}

#[tokio::test]
async fn kinds_that_a_client_of_apisix_does_not_know_stay_when_it_does_not_name_them() {
    let world = standalone().await;
    let policy = json!({"id": "p", "action": "allow", "rules": [{}]});
    let body = json!({"identity_policies": [policy], "routes": []});
    assert_eq!(put(&world, "ours", &body).await.status.as_u16(), 202);
    assert_eq!(put(&world, "theirs", &json!({"routes": []})).await.status.as_u16(), 202);
    assert_eq!(world.get("/identity_policies").await.json()["total"], 1);
    let gone = json!({"routes": [], "identity_policies": []});
    assert_eq!(put(&world, "gone", &gone).await.status.as_u16(), 202);
    assert_eq!(world.get("/identity_policies").await.json()["total"], 0);
}
