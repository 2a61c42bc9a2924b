//! `batch-requests` over real sockets: each request of a batch is judged as if its caller had sent it alone.

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use serde_json::{Value, json};

use super::plugins::Edge;
use super::world::{App, World, allow};

const PATH: &str = "/apisix/batch-requests";

fn statuses(answers: &Value) -> Vec<u64> {
    answers.as_array().unwrap().iter().map(|one| one["status"].as_u64().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_is_answered_request_by_request_and_opens_no_door() {
    let edge = Edge::new();
    let alice = json!({ "key-auth": { "key": "alice-key" } });
    edge.put("/consumers", &json!({ "username": "alice", "plugins": alice })).await;
    edge.route(
        "1",
        "/open",
        json!({ "response-rewrite": { "headers": { "add": ["X-Two: 1", "X-Two: 2"] } } }),
    )
    .await;
    edge.route("2", "/private", json!({ "key-auth": {} })).await;
    let once = json!({ "limit-count": { "count": 1, "time_window": 600, "rejected_code": 429 } });
    edge.route("3", "/once", once).await;
    edge.route("4", "/apisix/*", json!({ "public-api": {} })).await;
    edge.route("5", "/batch", json!({ "public-api": { "uri": PATH } })).await;
    let batch = json!({
        "query": { "all": 1 }, "headers": { "X-All": "1" }, "timeout": 30000,
        "pipeline": [
            { "path": "/open?own=1", "headers": { "X-Own": 2 } },
            { "method": "POST", "path": "/open", "body": "sent", "query": { "all": "other" } },
            { "path": "/private" },
            { "path": "/private", "headers": { "apikey": "alice-key" } },
            { "path": "/once" }, { "path": "/once" },
            { "path": "/nowhere" },
            { "path": "/apisix/admin/routes" },
            { "path": "/apisix/%61dmin/routes", "headers": { "Host": "127.0.0.1:9180", "X-Real-IP": "127.0.0.1" } },
            { "method": "POST", "path": PATH, "body": "{\"pipeline\": [{\"path\": \"/open\"}]}" },
            { "method": "HEAD", "path": "/open" }
        ]
    });
    for path in [PATH, "/batch"] {
        let outer =
            [("content-type", "application/json"), ("x-outer", "3"), ("accept-encoding", "br")];
        let answer = edge.post(path, &outer, &batch.to_string()).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        let answers = answer.json();
        let once = if path == PATH { 200 } else { 429 };
        assert_eq!(statuses(&answers), [200, 200, 401, 200, once, 429, 404, 404, 404, 400, 200]);
        let seen: Value = serde_json::from_str(answers[0]["body"].as_str().unwrap()).unwrap();
        assert_eq!(
            (seen["method"].as_str(), seen["path"].as_str()),
            (Some("GET"), Some("/open?own=1&all=1"))
        );
        for (name, value) in [("x-all", "1"), ("x-own", "2"), ("x-outer", "3")] {
            assert_eq!(seen["headers"][name], value);
        }
        assert_eq!(
            (seen["headers"].get("content-type"), seen["headers"].get("accept-encoding")),
            (None, None)
        );
        let posted: Value = serde_json::from_str(answers[1]["body"].as_str().unwrap()).unwrap();
        assert_eq!(
            (posted["body"].as_str(), posted["path"].as_str()),
            (Some("sent"), Some("/open?all=other"))
        );
        assert_eq!(
            (answers[0]["reason"].as_str(), &answers[0]["headers"]["X-Two"]),
            (Some("OK"), &json!(["1", "2"]))
        );
        let consumer: Value = serde_json::from_str(answers[3]["body"].as_str().unwrap()).unwrap();
        assert_eq!(consumer["headers"]["x-consumer-username"], "alice");
        assert_eq!(answers[10].get("body"), None);
    }
    for (body, says) in [
        ("", "no request body"),
        ("[", "bad request body"),
        ("{}", "missing field `pipeline`"),
        ("{\"pipeline\": []}", "pipeline: 1 to 128"),
        ("{\"pipeline\": [{\"path\": \"http://127.0.0.1/\"}]}", "pipeline[0].path"),
        (
            "{\"pipeline\": [{\"path\": \"/\", \"headers\": {\"Connection\": \"x\"}}]}",
            "belongs to the connection",
        ),
    ] {
        let refused = edge.post(PATH, &[], body).await;
        assert_eq!(refused.status, 400, "{body}");
        assert!(refused.text().contains(says), "{body}: {}", refused.text());
    }
    assert_eq!(edge.get(PATH).await.status, 404, "batches are posted");
    edge.put("/plugin_metadata/batch-requests", &json!({ "max_body_size": 40 })).await;
    assert_eq!(edge.post(PATH, &[], &batch.to_string()).await.status, 413);
    assert_eq!(edge.post(PATH, &[], "{\"pipeline\": [{\"path\": \"/open\"}]}").await.status, 200);
    for metadata in
        [json!({ "max_body_size": 0 }), json!({ "max_body_size": "x" }), json!({ "size": 1 })]
    {
        let refused =
            edge.admin.ask("PUT", "/plugin_metadata/batch-requests", Some(&metadata)).await;
        assert_eq!(refused.status, 400, "{metadata}: {}", refused.text());
    }
    edge.refuses(
        "batch-requests",
        &[(json!({ "x": 1 }), "additional properties forbidden, found x")],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_has_its_callers_identity_and_no_more_time_than_it_asks_for() {
    let world = World::new();
    let app = App::serving(|request: Request<hyper::body::Incoming>| async move {
        if request.uri().path() == "/slow" {
            tokio::time::sleep(std::time::Duration::from_secs(5)).await;
        }
        let told =
            request.headers().get("x-forwarded-client-cert").map(|told| told.as_bytes().to_vec());
        Response::new(Full::new(Bytes::from(told.unwrap_or_default())))
    });
    let route = |id: &str, uri: &str, plugins: Value| {
        json!({ "id": id, "uri": uri, "workload_selector": { "spiffe_ids": [world.id("/cart")] }, "plugins": plugins,
            "upstream": { "nodes": { app.address.to_string(): 1 } } })
    };
    let mut policy = allow("web", &[&world.id("/cart")], &[&world.id("/web")]);
    policy["rules"][0]["to"] = json!({ "paths": ["/open", "/slow", PATH] });
    let resources = json!({
        "routes": [route("all", "/*", json!({})), route("batch", PATH, json!({ "public-api": {} }))],
        "identity_policies": [policy],
    });
    let sidecar = world.sidecar("/cart").resources(&resources).start();
    let [web, stranger] = ["/web", "/stranger"].map(|path| world.peer(path));
    let batch = json!({ "pipeline": [
        { "path": "/open", "headers": { "X-Forwarded-Client-Cert": "URI=spiffe://x/root" } }, { "path": "/secret" }
    ] });
    let answer = web.send(&sidecar, "POST", PATH, &[], batch.to_string()).await;
    let answers = answer.json();
    assert_eq!(statuses(&answers), [200, 403], "{answers}");
    let told = answers[0]["body"].as_str().unwrap();
    assert!(told.contains(&world.id("/web")) && !told.contains("root"), "{told}");
    assert_eq!(stranger.send(&sidecar, "POST", PATH, &[], batch.to_string()).await.status, 403);
    let slow = json!({ "timeout": 50, "pipeline": [{ "path": "/slow" }, { "path": "/open" }] });
    let answers = web.send(&sidecar, "POST", PATH, &[], slow.to_string()).await.json();
    assert_eq!(
        answers,
        json!([{ "status": 504, "reason": "upstream timeout" }, { "status": 504, "reason": "upstream timeout" }])
    );
}
