//! `traffic-split`, `traffic-label`, `api-breaker`, `request-validation` over real sockets.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use serde_json::{Value, json};

use super::plugins::Edge;
use super::world::{App, eventually_async};

#[tokio::test(flavor = "multi_thread")]
async fn traffic_split_sends_parts_of_the_traffic_elsewhere() {
    let edge = Edge::new();
    let (blue, green) = (App::echo("blue"), App::echo("green"));
    let nodes = |app: &App| json!({ app.address.to_string(): 1 });
    edge.put("/upstreams/green", &json!({ "nodes": nodes(&green) })).await;
    let own = json!({ "type": "chash", "key": "uri", "nodes": nodes(&blue), "timeout": { "connect": 2, "send": 2, "read": 2 },
        "pass_host": "rewrite", "upstream_host": "blue.example", "retries": 1, "scheme": "http", "name": "blue" });
    let split = json!({ "rules": [
        { "match": [{ "vars": [["arg_to", "==", "green"]] }, { "vars": [["http_x_to", "==", "green"]] }],
          "weighted_upstreams": [{ "upstream_id": "green" }] },
        { "match": [{ "vars": [["arg_to", "==", "mix"]] }],
          "weighted_upstreams": [{ "upstream": own, "weight": 2 }, { "upstream_id": "green", "weight": 1 }, { "weight": 1 }] },
        { "match": [{ "vars": [["arg_to", "==", "gone"]] }], "weighted_upstreams": [{ "upstream_id": "gone" }] }
    ] });
    edge.put("/upstreams/gone", &json!({ "nodes": nodes(&green) })).await;
    edge.route("1", "/s", json!({ "traffic-split": split })).await;
    let served_by = async |path: &str, headers: &[(&str, &str)]| {
        let answer = edge.ask("GET", path, headers).await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
        answer.json()
    };
    assert_eq!(served_by("/s", &[]).await["app"], "app");
    assert_eq!(served_by("/s?to=green", &[]).await["app"], "green");
    assert_eq!(served_by("/s", &[("x-to", "green")]).await["app"], "green");
    let mut seen = BTreeMap::new();
    for _ in 0..8 {
        let seen_by = served_by("/s?to=mix", &[]).await;
        let app = seen_by["app"].as_str().unwrap().to_owned();
        if app == "blue" {
            assert_eq!(seen_by["headers"]["host"], "blue.example");
        }
        *seen.entry(app).or_insert(0) += 1;
    }
    let expected =
        [("app", 2), ("blue", 4), ("green", 2)].map(|(app, count)| (app.to_owned(), count));
    assert_eq!(seen, BTreeMap::from(expected));
    // A declared upstream that changes is another one at once, and is not deleted from under a split.
    edge.put("/upstreams/green", &json!({ "nodes": nodes(&blue) })).await;
    assert_eq!(served_by("/s?to=green", &[]).await["app"], "blue");
    let kept = edge.admin.ask("DELETE", "/upstreams/gone", None).await;
    assert_eq!(kept.status, 400, "{}", kept.text());
    let revision = edge.admin.delete("/upstreams/gone?force=true").await;
    edge.admin.applied(revision, 1).await;
    assert_eq!(edge.get("/s?to=gone").await.status, 500);
    let to = |to: Value| json!({ "rules": [{ "weighted_upstreams": to }] });
    edge.refuses(
        "traffic-split",
        &[
            (json!({ "rules": 1 }), "rules"),
            (to(json!([])), "weighted_upstreams"),
            (to(json!([{ "weight": -1 }])), "weight"),
            (to(json!([{ "weight": 0 }])), "rules[0].weighted_upstreams"),
            (to(json!([{ "upstream": { "nodes": "x" } }])), "upstream"),
            (
                to(json!([{ "upstream": { "nodes": { "127.0.0.1:1": 1 }, "type": "what" } }])),
                "type",
            ),
            (to(json!([{ "upstream_id": [] }])), "upstream_id"),
            (json!({ "rules": [{ "match": [{ "vars": ["x"] }] }] }), "vars"),
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn traffic_label_tells_the_upstream() {
    let edge = Edge::new();
    let rules = json!({ "rules": [
        { "match": [["arg_v", "==", "1"]], "actions": [
            { "set_headers": { "X-Part": "one $arg_v", "X-N": 1 }, "weight": 1 }, { "set_headers": { "X-Part": "two" }, "weight": 1 } ] },
        { "actions": [{ "set_headers": { "X-Part": "rest" } }] }
    ] });
    edge.route("1", "/l", json!({ "traffic-label": rules })).await;
    let mut seen = BTreeMap::new();
    for _ in 0..4 {
        let answer = edge.ask("GET", "/l?v=1", &[("x-part", "forged")]).await.json();
        *seen.entry(answer["headers"]["x-part"].as_str().unwrap().to_owned()).or_insert(0) += 1;
    }
    assert_eq!(seen, BTreeMap::from([("one 1".to_owned(), 2), ("two".to_owned(), 2)]));
    assert_eq!(edge.get("/l").await.json()["headers"]["x-part"], "rest");
    edge.refuses(
        "traffic-label",
        &[
            (json!({}), "rules"),
            (json!({ "rules": [] }), "rules"),
            (json!({ "rules": [{ "actions": [] }] }), "actions"),
            (json!({ "rules": [{ "actions": [{ "weight": 0 }] }] }), "weight"),
            (json!({ "rules": [{ "actions": [{ "set_headers": {} }] }] }), "set_headers"),
            (json!({ "rules": [{ "actions": [{ "set_headers": { "a": [] } }] }] }), "set_headers"),
            (json!({ "rules": [{ "match": [], "actions": [{}] }] }), "match"),
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn api_breaker_spares_an_upstream_that_fails() {
    let edge = Edge::new();
    let (status, asked) = (Arc::new(AtomicU16::new(500)), Arc::<AtomicUsize>::default());
    let (says, counted) = (status.clone(), asked.clone());
    let app = App::serving(move |_: Request<hyper::body::Incoming>| {
        counted.fetch_add(1, Ordering::SeqCst);
        let status = says.load(Ordering::SeqCst);
        async move { Response::builder().status(status).body(Full::new(Bytes::new())).unwrap() }
    });
    let breaker = json!({ "break_response_code": 599, "break_response_body": "later",
        "break_response_headers": [{ "key": "X-Path", "value": "$uri" }], "max_breaker_sec": 3,
        "unhealthy": { "http_statuses": [500, 503], "failures": 2 }, "healthy": { "http_statuses": [200], "successes": 1 } });
    let route = json!({ "uri": "/b/*", "upstream": { "nodes": { app.address.to_string(): 1 } }, "plugins": { "api-breaker": breaker } });
    edge.put("/routes/1", &route).await;
    assert_eq!((edge.get("/b/a").await.status, edge.get("/b/a").await.status), (500, 500));
    let broken = edge.get("/b/a").await;
    assert_eq!((broken.status, broken.text()), (599, "later".to_owned()));
    assert_eq!(broken.header("x-path"), Some("/b/a"));
    assert_eq!(asked.load(Ordering::SeqCst), 2, "it is spared");
    status.store(200, Ordering::SeqCst);
    assert_eq!(edge.get("/b/other").await.status, 200, "another path goes on");
    eventually_async("the break is over", || async {
        (edge.get("/b/a").await.status == 200).then_some(())
    })
    .await;
    status.store(500, Ordering::SeqCst);
    assert_eq!(edge.get("/b/a").await.status, 500);
    assert_eq!(edge.get("/b/a").await.status, 500, "one good answer made all forgotten");
    assert_eq!(edge.get("/b/a").await.status, 599);
    let with = |field: &str, value: Value| {
        let mut config = json!({ "break_response_code": 502 });
        config[field] = value;
        config
    };
    edge.refuses(
        "api-breaker",
        &[
            (json!({}), "break_response_code"),
            (with("break_response_code", json!(100)), "break_response_code"),
            (with("break_response_body", json!(1)), "break_response_body"),
            (with("break_response_headers", json!([{ "key": "a" }])), "break_response_headers"),
            (
                with("break_response_headers", json!([{ "key": "a", "value": "b\r\nc" }])),
                "break_response_headers[0].value",
            ),
            (with("max_breaker_sec", json!(2)), "max_breaker_sec"),
            (with("unhealthy", json!({ "http_statuses": [404] })), "http_statuses"),
            (with("unhealthy", json!({ "failures": 0 })), "failures"),
            (with("healthy", json!({ "http_statuses": [] })), "http_statuses"),
            (with("healthy", json!({ "successes": "x" })), "successes"),
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn request_validation_judges_headers_and_bodies_and_hands_them_on() {
    let edge = Edge::new();
    let body = json!({ "type": "object", "required": ["name"], "properties": { "name": { "type": "string", "pattern": "^[a-z]+$" } } });
    let headers = json!({ "type": "object", "required": ["X-Tenant"], "properties": { "X-Tenant": { "enum": ["a", "b"] } } });
    let both = json!({ "body_schema": body, "header_schema": headers, "rejected_code": 422, "max_req_body_size": 64 });
    edge.route(
        "1",
        "/both",
        json!({ "request-validation": both, "limit-count": { "count": 2, "time_window": 600 } }),
    )
    .await;
    let told = json!({ "body_schema": body, "rejected_msg": "no such thing" });
    edge.route("2", "/told", json!({ "request-validation": told })).await;
    let tenant = ("x-tenant", "a");
    for (headers, body, status, says) in [
        (vec![tenant], r#"{"name": "jack"}"#, 200, "jack"),
        (vec![], r#"{"name": "jack"}"#, 422, "X-Tenant"),
        (vec![("x-tenant", "c")], r#"{"name": "jack"}"#, 422, "property \"X-Tenant\""),
        (vec![tenant], r#"{"name": "Jack"}"#, 422, "property \"name\""),
        (vec![tenant], r#"{"name": "Jack", "name": "jack"}"#, 422, "comes twice"),
        (vec![tenant], "", 422, "no body"),
        (
            vec![tenant, ("content-type", "application/x-www-form-urlencoded")],
            "name=jack",
            200,
            "name=jack",
        ),
        (
            vec![tenant, ("content-type", "application/x-www-form-urlencoded")],
            "name=J",
            422,
            "property \"name\"",
        ),
    ] {
        let answer = edge.post("/both", &headers, body).await;
        assert_eq!(answer.status, status, "{body}: {}", answer.text());
        assert!(answer.text().contains(says), "{body}: {}", answer.text());
    }
    let large = format!("{{\"name\": \"{}\"}}", "a".repeat(60));
    assert_eq!(edge.post("/both", &[tenant], &large).await.status, 413);
    // What is refused before it counts does not use up a limit.
    assert_eq!(edge.post("/both", &[tenant], r#"{"name": "jack"}"#).await.status, 503);
    let refused = edge.post("/told", &[], "{}").await;
    assert_eq!((refused.status, refused.text()), (400, "no such thing".to_owned()));
    edge.refuses(
        "request-validation",
        &[
            (json!({}), "request-validation"),
            (json!({ "body_schema": 1 }), "body_schema"),
            (json!({ "body_schema": { "type": "what" } }), "body_schema/type"),
            (json!({ "body_schema": { "pattern": "(?=a)" } }), "body_schema"),
            (json!({ "header_schema": { "$ref": "http://127.0.0.1:1/" } }), "header_schema"),
            (json!({ "body_schema": {}, "max_req_body_size": 0 }), "max_req_body_size"),
            (json!({ "body_schema": {}, "rejected_code": 600 }), "rejected_code"),
            (json!({ "body_schema": {}, "rejected_msg": "" }), "rejected_msg"),
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn proxy_control_says_whether_the_upstream_waits_for_whole_bodies() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let edge = Edge::new();
    let (patient, hasty) = (App::echo("patient"), App::echo("hasty"));
    for (path, app, buffers) in [("/patient", &patient, true), ("/hasty", &hasty, false)] {
        let upstream = json!({ "nodes": { app.address.to_string(): 1 } });
        let plugins = json!({ "proxy-control": { "request_buffering": buffers }, "proxy-buffering": { "disable_proxy_buffering": true } });
        edge.put(
            &format!("/routes{path}"),
            &json!({ "uri": path, "upstream": upstream, "plugins": plugins }),
        )
        .await;
    }
    let begin = async |path: &str| {
        let mut stream =
            tokio::net::TcpStream::connect(edge.ingress.address("ingress")).await.unwrap();
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 10\r\n\r\nhello"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        stream
    };
    let (mut collected, mut passed) = (begin("/patient").await, begin("/hasty").await);
    eventually_async("the upstream sees a request whose body is not there yet", || async {
        (hasty.requests() == 1).then_some(())
    })
    .await;
    assert_eq!(patient.requests(), 0, "the other one waits");
    for stream in [&mut collected, &mut passed] {
        stream.write_all(b"there").await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.contains("hellothere"), "{answer}");
    }
    edge.refuses("proxy-control", &[(json!({ "request_buffering": 1 }), "request_buffering")])
        .await;
    edge.refuses(
        "proxy-buffering",
        &[(json!({ "disable_proxy_buffering": 1 }), "disable_proxy_buffering")],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn public_api_tells_what_there_is_and_nothing_of_the_admin_api() {
    let edge = Edge::new();
    edge.route("1", "/apisix/*", json!({ "public-api": {} })).await;
    edge.route(
        "2",
        "/m",
        json!({ "public-api": { "uri": "/apisix/prometheus/metrics" }, "prometheus": {} }),
    )
    .await;
    assert_eq!(edge.get("/m").await.status, 200);
    eventually_async("the metrics tell of the request", || async {
        let text = edge.get("/apisix/prometheus/metrics").await.text();
        text.contains("apisix_http_status{").then_some(())
    })
    .await;
    for path in ["/apisix/admin/routes", "/apisix/batch-requests"] {
        assert_eq!(edge.get(path).await.status, 404, "{path}");
    }
    edge.refuses(
        "public-api",
        &[
            (json!({ "uri": "/apisix/admin/routes" }), "uri: there is no"),
            (json!({ "uri": 1 }), "uri"),
        ],
    )
    .await;
    edge.refuses("gm", &[(json!({}), "unknown plugin [gm]: TLS with SM2")]).await;
    edge.refuses("chaitin-waf", &[(json!({}), "unknown plugin [chaitin-waf]: the protocol")]).await;
    edge.refuses("data-mask", &[(json!({}), "unknown plugin [data-mask]: no log has queries")])
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn proxy_mirror_sends_copies_and_waits_for_nobody() {
    use http_body_util::BodyExt as _;
    let edge = Edge::new();
    let copies = Arc::<std::sync::Mutex<Vec<String>>>::default();
    let kept = copies.clone();
    let mirror = App::serving(move |request: Request<hyper::body::Incoming>| {
        let kept = kept.clone();
        async move {
            let (head, body) = request.into_parts();
            let body = body.collect().await.unwrap().to_bytes();
            let header =
                |name: &str| head.headers.get(name).map_or("", |value| value.to_str().unwrap());
            let copy = format!(
                "{} {} {} {} {}",
                head.method,
                head.uri,
                header("host"),
                header("x-a"),
                String::from_utf8_lossy(&body)
            );
            kept.lock().unwrap().push(copy);
            Response::builder()
                .status(500)
                .body(Full::new(Bytes::from("nobody reads this")))
                .unwrap()
        }
    });
    let host = format!("http://{}", mirror.address);
    edge.route("1", "/own", json!({ "proxy-mirror": { "host": host } })).await;
    let replaced = json!({ "proxy-mirror": { "host": host, "path": "/m", "sample_ratio": 1 }, "proxy-rewrite": { "headers": { "set": { "X-A": "set" } } } });
    edge.route("2", "/replaced", replaced).await;
    let before = json!({ "host": host, "path": "/m", "path_concat_mode": "prefix" });
    edge.route("3", "/prefix", json!({ "proxy-mirror": before })).await;
    edge.route("4", "/gone", json!({ "proxy-mirror": { "host": "http://127.0.0.1:1" } })).await;
    for (path, copy) in [
        ("/own?q=1", "POST /own?q=1 localhost  body"),
        ("/replaced?q=1", "POST /m?q=1 localhost set body"),
        ("/prefix?q=1", "POST /m/prefix?q=1 localhost  body"),
    ] {
        let answer = edge.post(path, &[], "body").await;
        assert_eq!((answer.status, &answer.json()["body"]), (200, &json!("body")), "{path}");
        let found = eventually_async("a copy", || async { copies.lock().unwrap().pop() }).await;
        assert_eq!(found, copy);
    }
    assert_eq!(edge.post("/gone", &[], "body").await.status, 200);
    edge.refuses(
        "proxy-mirror",
        &[
            (json!({}), "host"),
            (json!({ "host": "a" }), "host"),
            (json!({ "host": "grpc://a:1" }), "host: copies of gRPC"),
            (json!({ "host": host, "path": "a" }), "path"),
            (json!({ "host": host, "path_concat_mode": "x" }), "path_concat_mode"),
            (json!({ "host": host, "sample_ratio": 0 }), "sample_ratio"),
        ],
    )
    .await;
}
