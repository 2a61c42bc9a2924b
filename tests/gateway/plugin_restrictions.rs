//! `ua-restriction`, `referer-restriction`, `uri-blocker`, `client-control` over real sockets: what may pass.

use serde_json::json;

use super::plugins::Edge;
use super::world::raw_to;

#[tokio::test(flavor = "multi_thread")]
async fn ua_restriction_admits_by_what_callers_say_they_are() {
    let edge = Edge::new();
    let deny = json!({ "denylist": ["(?i)^bad"], "message": "not you" });
    edge.route("1", "/deny", json!({ "ua-restriction": deny })).await;
    let allow = json!({ "allowlist": ["^good/\\d"], "bypass_missing": true });
    edge.route("2", "/allow", json!({ "ua-restriction": allow })).await;
    for (path, agent, status) in [
        ("/deny", Some("good/1"), 200),
        ("/deny", Some("BAD/1"), 403),
        ("/deny", None, 403),
        ("/allow", Some("good/1"), 200),
        ("/allow", Some("better"), 403),
        ("/allow", None, 200),
    ] {
        let headers: Vec<_> = agent.map(|agent| ("user-agent", agent)).into_iter().collect();
        assert_eq!(edge.ask("GET", path, &headers).await.status, status, "{path} {agent:?}");
    }
    let refused = edge.get("/deny").await;
    assert_eq!(refused.json(), json!({ "message": "not you" }));
    let refused = edge.ask("GET", "/allow", &[("user-agent", "x")]).await;
    assert_eq!(refused.json(), json!({ "message": "Not allowed" }));
    edge.refuses(
        "ua-restriction",
        &[
            (json!({}), "ua-restriction"),
            (json!({ "allowlist": [] }), "allowlist"),
            (json!({ "denylist": [1] }), "denylist"),
            (json!({ "denylist": ["(?=x)"] }), "denylist[0]"),
            (json!({ "denylist": ["x"], "bypass_missing": 1 }), "bypass_missing"),
            (json!({ "denylist": ["x"], "message": "" }), "message"),
            (json!({ "denylist": ["x"], "message": "m".repeat(1025) }), "message"),
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn referer_restriction_admits_by_the_page() {
    let edge = Edge::new();
    let only = json!({ "whitelist": ["shop.example", "*.shop.example"], "message": "elsewhere" });
    edge.route("1", "/only", json!({ "referer-restriction": only })).await;
    let but = json!({ "blacklist": ["evil.example"], "bypass_missing": true });
    edge.route("2", "/but", json!({ "referer-restriction": but })).await;
    for (path, page, status) in [
        ("/only", Some("https://shop.example/a"), 200),
        ("/only", Some("https://www.shop.example:8443/a"), 200),
        ("/only", Some("https://shop.example@evil.example/"), 403),
        ("/only", None, 403),
        ("/but", Some("https://evil.example/"), 403),
        ("/but", Some("https://good.example/"), 200),
        ("/but", None, 200),
        ("/but", Some("nonsense"), 200),
    ] {
        let headers: Vec<_> = page.map(|page| ("referer", page)).into_iter().collect();
        assert_eq!(edge.ask("GET", path, &headers).await.status, status, "{path} {page:?}");
    }
    assert_eq!(edge.get("/only").await.json(), json!({ "message": "elsewhere" }));
    edge.refuses(
        "referer-restriction",
        &[
            (json!({ "whitelist": ["a"], "blacklist": ["b"] }), "referer-restriction"),
            (json!({ "whitelist": [] }), "whitelist"),
            (json!({ "whitelist": ["a b"] }), "whitelist"),
            (json!({ "blacklist": [1] }), "blacklist"),
            (json!({ "blacklist": ["a"], "bypass_missing": "no" }), "bypass_missing"),
            (json!({ "blacklist": ["a"], "message": 1 }), "message"),
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn uri_blocker_refuses_paths_however_they_are_spelled() {
    let edge = Edge::new();
    let bare = json!({ "block_rules": ["^/a/secret", "[?&]debug="] });
    edge.route("1", "/a/*", json!({ "uri-blocker": bare })).await;
    let told = json!({ "block_rules": ["SECRET"], "case_insensitive": true, "rejected_code": 404, "rejected_msg": "gone" });
    edge.route("2", "/b/*", json!({ "uri-blocker": told })).await;
    for (path, status) in [
        ("/a/open", 200),
        ("/a/secret", 403),
        ("/a/%73ecret", 403),
        ("/a/x/../secret", 403),
        ("/a//secret", 403),
        ("/a/open?debug=1", 403),
        ("/a/Secret", 200),
        ("/b/secret", 404),
        ("/b/open", 200),
    ] {
        assert_eq!(edge.get(path).await.status, status, "{path}");
    }
    assert_eq!(edge.get("/a/secret").await.text(), "");
    assert_eq!(edge.get("/b/secret").await.json(), json!({ "error_msg": "gone" }));
    edge.refuses(
        "uri-blocker",
        &[
            (json!({}), "block_rules"),
            (json!({ "block_rules": [""] }), "block_rules"),
            (json!({ "block_rules": ["a", "a"] }), "block_rules"),
            (json!({ "block_rules": ["(a)\\1"] }), "block_rules[0]"),
            (json!({ "block_rules": ["a"], "rejected_code": 100 }), "rejected_code"),
            (json!({ "block_rules": ["a"], "rejected_msg": "" }), "rejected_msg"),
            (json!({ "block_rules": ["a"], "case_insensitive": 1 }), "case_insensitive"),
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn client_control_bounds_bodies_announced_or_not() {
    let edge = Edge::new();
    edge.route("1", "/ten", json!({ "client-control": { "max_body_size": 10 } })).await;
    edge.route("2", "/any", json!({ "client-control": { "max_body_size": 0 } })).await;
    for (path, length, status) in [("/ten", 10, 200), ("/ten", 11, 413), ("/any", 100_000, 200)] {
        let answer = edge.post(path, &[], &"x".repeat(length)).await;
        assert_eq!(answer.status, status, "{path} {length}");
    }
    let chunked = "POST /ten HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n6\r\nxxxxxx\r\n6\r\nxxxxxx\r\n0\r\n\r\n";
    let answer = raw_to(edge.ingress.address("ingress"), chunked.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    edge.refuses(
        "client-control",
        &[
            (json!({ "max_body_size": -1 }), "max_body_size"),
            (json!({ "max_body_size": "1m" }), "max_body_size"),
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_stands_beside_settings_holds_for_every_plugin() {
    let edge = Edge::new();
    // Settings by which each of them answers every request itself.
    let answering = [
        ("ua-restriction", json!({ "denylist": ["."], "bypass_missing": false }), 403),
        ("referer-restriction", json!({ "whitelist": ["a.example"] }), 403),
        ("uri-blocker", json!({ "block_rules": ["."] }), 403),
        ("csrf", json!({ "key": "k" }), 401),
        ("fault-injection", json!({ "abort": { "http_status": 418 } }), 418),
        ("mocking", json!({ "response_example": "", "response_status": 409 }), 409),
        ("request-validation", json!({ "header_schema": { "required": ["x-none"] } }), 400),
        ("workflow", json!({ "rules": [{ "actions": [["return", { "code": 410 }]] }] }), 410),
        ("public-api", json!({}), 404),
    ];
    for (plugin, settings, status) in answering {
        let with = |meta: serde_json::Value| {
            let mut settings = settings.clone();
            settings["_meta"] = meta;
            json!({ plugin: settings })
        };
        edge.route("off", "/off", with(json!({ "disable": true }))).await;
        let only = json!({ "filter": [["arg_on", "==", "1"]], "error_response": { "by": plugin }, "priority": 1 });
        edge.route("only", "/only", with(only)).await;
        assert_eq!(edge.post("/off", &[], "x").await.status, 200, "{plugin}");
        assert_eq!(edge.post("/only", &[], "x").await.status, 200, "{plugin}");
        let answer = edge.post("/only?on=1", &[], "x").await;
        assert_eq!((answer.status, answer.json()), (status, json!({ "by": plugin })), "{plugin}");
    }
}
