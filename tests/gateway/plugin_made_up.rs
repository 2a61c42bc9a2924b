//! `real-ip`, `fault-injection`, `mocking` and `echo` over real sockets: what is made up about requests and answers.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::plugins::Edge;

#[tokio::test(flavor = "multi_thread")]
async fn real_ip_takes_the_address_from_those_it_trusts() {
    let edge = Edge::new();
    let only = json!({ "whitelist": ["10.1.2.3"] });
    let source = |more: Value| {
        let mut real_ip = json!({ "source": "http_x_forwarded_for" });
        real_ip.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({ "real-ip": real_ip, "ip-restriction": only })
    };
    edge.route("1", "/last", source(json!({ "trusted_addresses": ["127.0.0.0/8"] }))).await;
    let recursive =
        json!({ "trusted_addresses": ["127.0.0.0/8", "192.0.2.0/24"], "recursive": true });
    edge.route("2", "/recursive", source(recursive)).await;
    edge.route("3", "/strangers", source(json!({ "trusted_addresses": ["10.0.0.0/8"] }))).await;
    edge.route(
        "4",
        "/argument",
        json!({ "real-ip": { "source": "arg_ip" }, "ip-restriction": only }),
    )
    .await;
    for (path, forwarded, status) in [
        ("/last", "10.1.2.3", 200),
        ("/last", "1.1.1.1, 10.1.2.3", 200),
        ("/last", "10.1.2.3, 1.1.1.1", 403),
        ("/last", "nonsense", 403),
        ("/recursive", "10.1.2.3, 192.0.2.1, 192.0.2.2", 200),
        ("/recursive", "10.1.2.3, 1.1.1.1, 192.0.2.2", 403),
        ("/strangers", "10.1.2.3", 403),
        ("/argument?ip=10.1.2.3", "1.1.1.1", 200),
        ("/argument?ip=10.1.2.4", "10.1.2.3", 403),
    ] {
        let answer = edge.ask("GET", path, &[("x-forwarded-for", forwarded)]).await;
        assert_eq!(answer.status, status, "{path} {forwarded}");
    }
    edge.refuses(
        "real-ip",
        &[
            (json!({}), "source"),
            (json!({ "source": "" }), "source"),
            (json!({ "source": "nothing" }), "source: unknown variable"),
            (json!({ "source": "arg_a", "trusted_addresses": [] }), "trusted_addresses"),
            (json!({ "source": "arg_a", "trusted_addresses": ["a"] }), "trusted_addresses"),
            (json!({ "source": "arg_a", "recursive": 1 }), "recursive"),
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fault_injection_delays_and_aborts_whom_it_means() {
    let edge = Edge::new();
    let abort = json!({ "http_status": 418, "body": "no $arg_who", "headers": { "X-A": "$uri", "X-B": 1 },
        "percentage": 100, "vars": [[["arg_who", "==", "me"]], [["http_x_who", "==", "me"]]] });
    edge.route("1", "/abort", json!({ "fault-injection": { "abort": abort } })).await;
    let delay = json!({ "duration": 0.3, "vars": [[["arg_slow", "==", "1"]]], "percentage": 100 });
    edge.route("2", "/delay", json!({ "fault-injection": { "delay": delay } })).await;
    let never = json!({ "abort": { "http_status": 500, "percentage": 0 }, "delay": { "duration": 3000, "percentage": 0 } });
    edge.route("3", "/never", json!({ "fault-injection": never })).await;
    let aborted = edge.get("/abort?who=me").await;
    assert_eq!((aborted.status, aborted.text()), (418, "no me".to_owned()));
    assert_eq!((aborted.header("x-a"), aborted.header("x-b")), (Some("/abort"), Some("1")));
    assert_eq!(edge.ask("GET", "/abort", &[("x-who", "me")]).await.status, 418);
    assert_eq!(edge.get("/abort?who=you").await.status, 200);
    let before = Instant::now();
    assert_eq!(edge.get("/delay?slow=1").await.status, 200);
    assert!(before.elapsed() >= Duration::from_millis(300));
    assert_eq!((edge.get("/delay").await.status, edge.get("/never").await.status), (200, 200));
    // No value of a caller's becomes a header of its own.
    let split = edge.get("/abort?who=me%0d%0aX-Evil:%201").await;
    assert_eq!((split.status, split.header("x-evil")), (200, None));
    edge.refuses(
        "fault-injection",
        &[
            (json!({}), "fault-injection"),
            (json!({ "abort": {} }), "http_status"),
            (json!({ "abort": { "http_status": 100 } }), "http_status"),
            (json!({ "abort": { "http_status": 200, "body": 1 } }), "body"),
            (
                json!({ "abort": { "http_status": 200, "headers": { "A": "b\r\nC: d" } } }),
                "abort.headers",
            ),
            (json!({ "abort": { "http_status": 200, "headers": {} } }), "headers"),
            (json!({ "abort": { "http_status": 200, "percentage": 101 } }), "percentage"),
            (json!({ "abort": { "http_status": 200, "vars": ["a"] } }), "vars"),
            (json!({ "delay": { "duration": -1 } }), "duration"),
            (json!({ "delay": { "duration": 1, "percentage": -1 } }), "percentage"),
            (json!({ "delay": { "duration": 1, "vars": [[["a"]]] } }), "vars"),
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mocking_answers_in_the_applications_place() {
    let edge = Edge::new();
    let example = json!({ "response_example": "<a>$arg_b</a>", "response_status": 201, "content_type": "text/xml",
        "response_headers": { "X-A": "$uri", "X-B": 2 }, "with_mock_header": false, "delay": 0 });
    edge.route("1", "/example", json!({ "mocking": example })).await;
    let schema = json!({ "type": "object", "properties": {
        "id": { "type": "integer" }, "name": { "type": "string", "example": "jack" }, "on": { "type": "boolean" },
        "rate": { "type": "number" }, "tags": { "type": "array", "items": { "type": "string" } } } });
    edge.route("2", "/schema", json!({ "mocking": { "response_schema": schema } })).await;
    edge.route("3", "/late", json!({ "mocking": { "response_example": "", "delay": 1 } })).await;
    let answer = edge.get("/example?b=c").await;
    assert_eq!((answer.status, answer.text()), (201, "<a>c</a>".to_owned()));
    assert_eq!(answer.header("content-type"), Some("text/xml"));
    assert_eq!((answer.header("x-a"), answer.header("x-b")), (Some("/example"), Some("2")));
    assert_eq!(answer.header("x-mock-by"), None);
    let made = edge.get("/schema").await;
    assert!(made.header("x-mock-by").unwrap().starts_with("Wardgate/"));
    assert_eq!(made.header("content-type"), Some("application/json;charset=utf8"));
    let made = made.json();
    assert_eq!(made["name"], "jack");
    assert!(made["id"].is_u64() && made["on"].is_boolean() && made["rate"].is_f64());
    assert!(made["tags"].as_array().unwrap().iter().all(Value::is_string));
    let before = Instant::now();
    assert_eq!(edge.get("/late").await.status, 200);
    assert!(before.elapsed() >= Duration::from_secs(1));
    assert_eq!(edge.app.requests(), 0);
    edge.refuses(
        "mocking",
        &[
            (json!({}), "mocking"),
            (json!({ "response_example": 1 }), "response_example"),
            (json!({ "response_example": "", "response_status": 100 }), "response_status"),
            (json!({ "response_example": "", "content_type": "" }), "content_type"),
            (json!({ "response_example": "", "delay": -1 }), "delay"),
            (json!({ "response_example": "", "with_mock_header": 1 }), "with_mock_header"),
            (json!({ "response_example": "", "response_headers": {} }), "response_headers"),
            (json!({ "response_schema": { "type": "what" } }), "response_schema.type"),
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn echo_writes_around_bodies() {
    let edge = Edge::new();
    let around = json!({ "before_body": "<", "after_body": ">", "headers": { "X-A": "$uri" } });
    edge.route("1", "/around", json!({ "echo": around })).await;
    edge.route("2", "/instead", json!({ "echo": { "body": "mine" } })).await;
    let answer = edge.get("/around").await;
    let text = answer.text();
    assert!(text.starts_with("<{") && text.ends_with("}>"), "{text}");
    assert_eq!(answer.header("x-a"), Some("$uri"), "echo fills in nothing");
    assert_eq!(edge.get("/instead").await.text(), "mine");
    edge.refuses(
        "echo",
        &[
            (json!({}), "echo"),
            (json!({ "body": 1 }), "body"),
            (json!({ "before_body": [] }), "before_body"),
            (json!({ "after_body": {} }), "after_body"),
            (json!({ "body": "", "headers": {} }), "headers"),
            (json!({ "body": "", "headers": { "A": "b\r\nc" } }), "headers"),
        ],
    )
    .await;
}
