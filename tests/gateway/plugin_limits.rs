//! `limit-req`, `limit-conn`, `workflow` over real sockets: how much passes, and how much at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use serde_json::json;

use super::plugins::Edge;
use super::world::{App, eventually_async};

#[tokio::test(flavor = "multi_thread")]
async fn limit_req_lets_requests_wait_for_their_turn_or_refuses_them() {
    let edge = Edge::new();
    let patient = json!({ "rate": 10, "burst": 2, "key": "http_x_who" });
    edge.route("1", "/patient", json!({ "limit-req": patient })).await;
    let hasty = json!({ "rate": 0.001, "burst": 2, "key": "$http_x_who $arg_b", "key_type": "var_combination", "nodelay": true,
        "rejected_code": 429, "rejected_msg": "slowly", "policy": "local", "allow_degradation": true });
    edge.route("2", "/hasty", json!({ "limit-req": hasty })).await;
    let start = Instant::now();
    let ask = || edge.ask("GET", "/patient", &[("x-who", "a")]);
    let (one, two, three) = tokio::join!(ask(), ask(), ask());
    assert_eq!([one.status, two.status, three.status], [200; 3]);
    assert!(start.elapsed() >= Duration::from_millis(200), "the third waits for two turns");
    for expected in [200, 200, 200, 429] {
        let answer = edge.ask("GET", "/hasty", &[("x-who", "a")]).await;
        assert_eq!(answer.status, expected);
    }
    let refused = edge.ask("GET", "/hasty", &[("x-who", "a")]).await;
    assert_eq!(refused.json(), json!({ "error_msg": "slowly" }));
    assert_eq!(edge.ask("GET", "/hasty?b=1", &[("x-who", "a")]).await.status, 200);
    edge.refuses(
        "limit-req",
        &[
            (json!({ "burst": 0, "key": "uri" }), "rate"),
            (json!({ "rate": 0, "burst": 0, "key": "uri" }), "rate"),
            (json!({ "rate": "1", "burst": 0, "key": "uri" }), "rate"),
            (json!({ "rate": 1, "key": "uri" }), "burst"),
            (json!({ "rate": 1, "burst": -1, "key": "uri" }), "burst"),
            (json!({ "rate": 1, "burst": 0 }), "key"),
            (json!({ "rate": 1, "burst": 0, "key": "nothing" }), "key: unknown variable"),
            (json!({ "rate": 1, "burst": 0, "key": "uri", "key_type": "constant" }), "key_type"),
            (json!({ "rate": 1, "burst": 0, "key": "uri", "nodelay": 1 }), "nodelay"),
            (json!({ "rate": 1, "burst": 0, "key": "uri", "rejected_code": 100 }), "rejected_code"),
            (json!({ "rate": 1, "burst": 0, "key": "uri", "rejected_msg": "" }), "rejected_msg"),
            (json!({ "rate": 1, "burst": 0, "key": "uri", "policy": "memory" }), "policy"),
            (
                json!({ "rate": 1, "burst": 0, "key": "uri", "allow_degradation": 1 }),
                "allow_degradation",
            ),
        ],
    )
    .await;
}

/// An application that answers when it is told to, and says how many wait.
pub(crate) fn slow() -> (App, Arc<AtomicUsize>, Arc<AtomicBool>) {
    let (waiting, open) = (Arc::<AtomicUsize>::default(), Arc::<AtomicBool>::default());
    let (counted, gate) = (waiting.clone(), open.clone());
    let app = App::serving(move |_: Request<hyper::body::Incoming>| {
        let (counted, gate) = (counted.clone(), gate.clone());
        async move {
            counted.fetch_add(1, Ordering::SeqCst);
            while !gate.load(Ordering::SeqCst) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            counted.fetch_sub(1, Ordering::SeqCst);
            Response::new(Full::new(Bytes::new()))
        }
    });
    (app, waiting, open)
}

#[tokio::test(flavor = "multi_thread")]
async fn limit_conn_admits_so_many_at_once_and_gives_places_back() {
    let edge = Edge::new();
    let (app, waiting, open) = slow();
    let upstream = json!({ "nodes": { app.address.to_string(): 1 } });
    let route = |id: &str, limit: serde_json::Value| json!({ "uri": format!("/{id}"), "upstream": upstream, "plugins": { "limit-conn": limit } });
    let two = json!({ "conn": 2, "burst": 0, "default_conn_delay": 0.1, "key": "remote_addr", "rejected_code": 429,
        "rejected_msg": "busy", "policy": "local", "only_use_default_delay": true });
    edge.put("/routes/1", &route("two", two)).await;
    let rules = json!({ "default_conn_delay": 0.1, "allow_degradation": true, "rules": [
        { "conn": "${arg_n ?? 1}", "burst": 0, "key": "$http_x_tenant" }, { "conn": 9, "burst": 1, "key": "$remote_addr" } ] });
    edge.put("/routes/2", &route("rules", rules)).await;
    for (path, headers) in [("/two", vec![]), ("/rules?n=2", vec![("x-tenant", "a")])] {
        let ask = || edge.ask("GET", path, &headers);
        let after = async {
            eventually_async("both wait", || async {
                (waiting.load(Ordering::SeqCst) == 2).then_some(())
            })
            .await;
            let refused = ask().await;
            open.store(true, Ordering::SeqCst);
            refused
        };
        let (one, two, refused) = tokio::join!(ask(), ask(), after);
        assert_eq!([one.status, two.status], [200, 200], "{path}");
        assert_eq!(refused.status, if path == "/two" { 429 } else { 503 });
        if path == "/two" {
            assert_eq!(refused.json(), json!({ "error_msg": "busy" }));
        }
        // All places are free again.
        let (one, two) = tokio::join!(ask(), ask());
        assert_eq!([one.status, two.status], [200, 200], "{path}");
        open.store(false, Ordering::SeqCst);
    }
    edge.refuses("limit-conn", &[
        (json!({}), "limit-conn"),
        (json!({ "conn": 0, "burst": 0, "default_conn_delay": 1, "key": "uri" }), "conn"),
        (json!({ "conn": 1, "burst": [], "default_conn_delay": 1, "key": "uri" }), "burst"),
        (json!({ "conn": 1, "burst": 0, "default_conn_delay": 0, "key": "uri" }), "default_conn_delay"),
        (json!({ "conn": 1, "burst": 0, "default_conn_delay": 1, "key": 1 }), "key"),
        (json!({ "conn": 1, "burst": 0, "default_conn_delay": 1, "key": "uri", "key_type": "x" }), "key_type"),
        (json!({ "conn": 1, "burst": 0, "default_conn_delay": 1, "key": "uri", "rejected_code": 99 }), "rejected_code"),
        (json!({ "conn": 1, "burst": 0, "default_conn_delay": 1, "key": "uri", "rejected_msg": 1 }), "rejected_msg"),
        (json!({ "conn": 1, "burst": 0, "default_conn_delay": 1, "key": "uri", "only_use_default_delay": 1 }), "only_use_default_delay"),
        (json!({ "default_conn_delay": 1, "rules": [] }), "rules"),
        (json!({ "default_conn_delay": 1, "rules": [{ "conn": 1, "burst": 0, "key": "uri" }] }), "rules[0].key"),
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn workflow_does_what_the_first_case_says() {
    let edge = Edge::new();
    let count = json!({ "count": 1, "time_window": 600, "rejected_code": 429 });
    let rules = json!({ "rules": [
        { "case": [["arg_a", "==", "1"]], "actions": [["return", { "code": 403 }]] },
        { "case": [["arg_a", "==", "2"]], "actions": [["limit-count", count]] },
        { "case": [["arg_a", "==", "3"]], "actions": [["limit-conn", { "conn": 1, "burst": 0, "default_conn_delay": 1, "key": "remote_addr" }]] }
    ] });
    edge.route("1", "/w", json!({ "workflow": rules })).await;
    let closed = edge.get("/w?a=1").await;
    assert_eq!(
        (closed.status, closed.json()),
        (403, json!({ "error_msg": "rejected by workflow" }))
    );
    let first = edge.get("/w?a=2").await;
    assert_eq!((first.status, first.header("x-ratelimit-remaining")), (200, Some("0")));
    assert_eq!(edge.get("/w?a=2").await.status, 429);
    for _ in 0..3 {
        assert_eq!(edge.get("/w?a=3").await.status, 200, "a place is given back");
        assert_eq!(edge.get("/w").await.status, 200);
    }
    edge.refuses("workflow", &[
        (json!({}), "rules"),
        (json!({ "rules": [{ "actions": 1 }] }), "actions"),
        (json!({ "rules": [{ "actions": [["return", { "code": "x" }]] }] }), "rules[0].actions[0]"),
        (json!({ "rules": [{ "actions": [["limit-count", { "count": 0, "time_window": 1 }]] }] }), "rules[0].actions[0]"),
        (json!({ "rules": [{ "case": [], "actions": [["return", { "code": 403 }]] }] }), "case"),
    ])
    .await;
}
