//! `multi-auth`: the first way that succeeds counts, and a way that fails leaves nothing behind.

use serde_json::json;

use super::{Edge, base64, consumer};

#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_known_one_way_is_known() {
    let ways = |ways: serde_json::Value| json!({ "multi-auth": { "auth_plugins": ways } });
    let edge = Edge::new(
        &[
            (
                "/",
                ways(json!([
                    { "basic-auth": { "hide_credentials": true } },
                    { "key-auth": { "header": "X-Key" } },
                    { "jwt-auth": {}, "hmac-auth": { "validate_request_body": true } },
                ])),
            ),
            ("/spiffe", ways(json!([{ "spiffe-auth": {} }, { "key-auth": {} }]))),
            (
                "/guest",
                ways(
                    json!([{ "basic-auth": {} }, { "key-auth": { "anonymous_consumer": "guest" } }]),
                ),
            ),
        ],
        &json!({ "consumers": [
            { "username": "jack", "plugins": {
                "basic-auth": { "username": "jack", "password": "pass" },
                "limit-count": { "count": 1, "time_window": 600, "rejected_code": 429,
                    "key": "consumer_name" },
            } },
            consumer("jill", "key-auth", json!({ "key": "jills-key" })),
            { "username": "guest" },
        ] }),
    );
    let jack = format!("Basic {}", base64("jack:pass"));
    let wrong = format!("Basic {}", base64("jack:wrong"));
    let answer = edge.get("/", &[("authorization", &jack)]).await;
    assert_eq!(answer.seen("x-consumer-username").as_deref(), Some("jack"));
    assert_eq!(answer.seen("authorization"), None);
    let limited = edge.get("/", &[("authorization", &jack)]).await;
    assert_eq!(limited.status, 429, "the consumer's own plugins run");
    let answer = edge.get("/", &[("authorization", &wrong), ("x-key", "jills-key")]).await;
    assert_eq!(answer.seen("x-consumer-username").as_deref(), Some("jill"));
    assert_eq!(answer.seen("authorization"), Some(wrong.clone()), "it was not what let her in");
    // A way that refused is no refusal when another one let the caller in.
    let answer = edge.get("/spiffe", &[("apikey", "jills-key")]).await;
    assert_eq!(answer.seen("x-consumer-username").as_deref(), Some("jill"));
    for headers in [&[][..], &[("authorization", &*wrong)], &[("authorization", "Bearer a.b.c")]] {
        for path in ["/", "/spiffe"] {
            let refused = edge.get(path, headers).await;
            assert_eq!(refused.message(), (401, "Authorization Failed".into()));
            assert_eq!(refused.header("www-authenticate"), None);
        }
        let answer = edge.get("/guest", headers).await;
        assert_eq!(answer.seen("x-consumer-username").as_deref(), Some("guest"));
    }
}
