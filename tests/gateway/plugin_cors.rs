//! `cors` over real sockets: what pages of other origins are told.

use serde_json::json;

use super::plugins::Edge;

#[tokio::test(flavor = "multi_thread")]
async fn pages_of_other_origins_are_told_what_they_may() {
    let edge = Edge::new();
    let strict = json!({ "allow_origins": "https://a.example,https://b.example", "allow_methods": "GET,PUT",
        "allow_headers": "**", "expose_headers": "X-Total", "max_age": 60, "allow_credential": true,
        "timing_allow_origins": "https://a.example" });
    edge.route("strict", "/strict", json!({ "cors": strict, "key-auth": {} })).await;
    edge.route("open", "/open", json!({ "cors": {} })).await;
    edge.put(
        "/plugin_metadata/cors",
        &json!({ "allow_origins": { "shop": "https://shop.example" } }),
    )
    .await;
    let named = json!({ "allow_origins_by_metadata": ["shop"], "allow_origins_by_regex": ["^https://[a-z]+\\.c\\.example$"],
        "timing_allow_origins_by_regex": ["^https://t"] });
    edge.route("named", "/named", json!({ "cors": named })).await;

    // A preflight carries no credentials: it is answered before anybody asks for them, and goes no further.
    let asks =
        [("origin", "https://b.example"), ("access-control-request-headers", "x-one, x-two")];
    let preflight = edge.ask("OPTIONS", "/strict", &asks).await;
    assert_eq!((preflight.status, edge.app.requests()), (200, 0));
    for (name, value) in [
        ("access-control-allow-origin", "https://b.example"),
        ("access-control-allow-methods", "GET,PUT"),
        ("access-control-allow-headers", "x-one, x-two"),
        ("access-control-allow-credentials", "true"),
        ("access-control-expose-headers", "X-Total"),
        ("access-control-max-age", "60"),
        ("vary", "Origin"),
    ] {
        assert_eq!(preflight.header(name), Some(value), "{name}");
    }
    assert_eq!(
        preflight.header("timing-allow-origin"),
        Some("https://a.example"),
        "browsers compare"
    );
    // A refusal is told to the page as well: it could not read it otherwise.
    let refused = edge.ask("GET", "/strict", &[("origin", "https://a.example")]).await;
    assert_eq!(refused.status, 401);
    assert_eq!(refused.header("access-control-allow-origin"), Some("https://a.example"));
    assert_eq!(refused.header("timing-allow-origin"), Some("https://a.example"));
    let stranger = edge.ask("GET", "/strict", &[("origin", "https://evil.example")]).await;
    assert_eq!(stranger.header("access-control-allow-origin"), None);

    let open = edge.ask("GET", "/open", &[("origin", "https://x.example")]).await;
    assert_eq!((open.status, open.header("access-control-allow-origin")), (200, Some("*")));
    assert_eq!((open.header("vary"), open.header("access-control-max-age")), (None, Some("5")));
    for (origin, told, timing) in [
        ("https://shop.example", Some("https://shop.example"), None),
        ("https://x.c.example", Some("https://x.c.example"), None),
        ("https://tt.c.example", Some("https://tt.c.example"), Some("https://tt.c.example")),
        ("https://x.c.example.evil", None, None),
    ] {
        let answer = edge.ask("GET", "/named", &[("origin", origin)]).await;
        assert_eq!(answer.header("access-control-allow-origin"), told, "{origin}");
        assert_eq!(answer.header("timing-allow-origin"), timing, "{origin}");
    }
    edge.refuses(
        "cors",
        &[
            (json!({ "allow_origins": "shop" }), "allow_origins"),
            (json!({ "allow_origins": 1 }), "allow_origins"),
            (json!({ "allow_methods": ["GET"] }), "allow_methods"),
            (json!({ "allow_headers": "a\nb" }), "allow_headers"),
            (json!({ "expose_headers": true }), "expose_headers"),
            (json!({ "max_age": "long" }), "max_age"),
            (json!({ "allow_credential": "yes" }), "allow_credential"),
            (json!({ "allow_credential": true }), "allow_credential"),
            (json!({ "allow_origins_by_regex": ["("] }), "allow_origins_by_regex"),
            (json!({ "allow_origins_by_regex": [] }), "allow_origins_by_regex"),
            (json!({ "allow_origins_by_metadata": [1] }), "allow_origins_by_metadata"),
            (json!({ "timing_allow_origins": "x" }), "timing_allow_origins"),
            (
                json!({ "timing_allow_origins_by_regex": ["a", "a"] }),
                "timing_allow_origins_by_regex",
            ),
        ],
    )
    .await;
}
