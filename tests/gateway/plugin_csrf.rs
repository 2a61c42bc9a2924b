//! `csrf` over real sockets.

use serde_json::json;

use super::plugins::Edge;

#[tokio::test(flavor = "multi_thread")]
async fn csrf_wants_the_cookies_token_in_a_header() {
    let edge = Edge::new();
    edge.route(
        "1",
        "/form",
        json!({ "csrf": { "key": "secret", "name": "x-token", "expires": 600 } }),
    )
    .await;
    edge.route("2", "/other", json!({ "csrf": { "key": "another" } })).await;
    edge.route(
        "3",
        "/ever",
        json!({ "csrf": { "key": "secret", "name": "x-token", "expires": 0 } }),
    )
    .await;
    let page = edge.get("/form").await;
    let cookie = page.header("set-cookie").expect("a cookie");
    assert!(
        cookie.starts_with("x-token=") && cookie.contains(";path=/;SameSite=Lax;Expires="),
        "{cookie}"
    );
    let token = cookie["x-token=".len()..].split(';').next().unwrap();
    let jar = format!("a=b; x-token={token}");
    let good = [("x-token", token), ("cookie", &*jar)];
    assert_eq!(edge.post("/form", &good, "x").await.status, 200);
    assert_eq!(edge.post("/ever", &good, "x").await.status, 200);
    let ever = edge.get("/ever").await;
    assert!(!ever.header("set-cookie").unwrap().contains("Expires"));
    for (path, headers, says) in [
        ("/form", vec![], "no csrf token in headers"),
        ("/form", vec![("x-token", token)], "no csrf cookie"),
        ("/form", vec![("x-token", "a"), ("cookie", &*jar)], "csrf token mismatch"),
        (
            "/form",
            vec![("x-token", "a"), ("cookie", "x-token=a")],
            "Failed to verify the csrf token signature",
        ),
    ] {
        let answer = edge.post(path, &headers, "x").await;
        assert_eq!((answer.status, answer.json()), (401, json!({ "error_msg": says })));
        assert!(answer.header("set-cookie").is_some(), "every answer brings a token");
    }
    // One route's token is nothing to another key.
    let jar = format!("apisix-csrf-token={token}");
    let foreign = [("apisix-csrf-token", token), ("cookie", &*jar)];
    let answer = edge.post("/other", &foreign, "x").await;
    assert_eq!(answer.json()["error_msg"], "Failed to verify the csrf token signature");
    edge.refuses(
        "csrf",
        &[
            (json!({}), "key"),
            (json!({ "key": "" }), "key"),
            (json!({ "key": 1 }), "key"),
            (json!({ "key": "k", "name": "a b" }), "name"),
            (json!({ "key": "k", "expires": "1h" }), "expires"),
            (json!({ "key": "k", "expires": -1 }), "expires"),
        ],
    )
    .await;
}
