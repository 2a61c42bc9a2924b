//! `authz-keycloak`: what Keycloak says of a token's bearer, over real HTTP.

use serde_json::{Value, json};

use super::Edge;
use super::asking::{Judge, Told};
use super::identity_provider::arguments;
use crate::world::{Answer, free_port};

fn told(status: u16, value: Value) -> Told {
    (status, vec![("content-type", "application/json")], value.to_string())
}

/// A realm whose user `ann` may see carts, and whose path `/paths/cart` is a resource.
fn realm() -> Judge {
    Judge::new(|question| {
        let path = question["path"].as_str().unwrap();
        let host = question["headers"]["host"].as_str().unwrap();
        let bearer = question["headers"]["authorization"].as_str().unwrap_or_default();
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        let body = question["body"].as_str().unwrap();
        let form = arguments(body);
        let is_shop = || form["client_id"] == "shop" && form["client_secret"] == "s3cret&1";
        match (path, form.get("grant_type").map(String::as_str)) {
            ("/uma2", _) => told(
                200,
                json!({ "issuer": format!("http://{host}"), "token_endpoint": format!("http://{host}/token"),
                    "resource_registration_endpoint": format!("http://{host}/resources") }),
            ),
            ("/resources", _) if bearer == "Bearer own-1" || bearer == "Bearer own-2" => {
                let query = arguments(query);
                assert_eq!(query["matchingUri"], "true");
                match &*query["uri"] {
                    "/paths/cart" => told(200, json!(["cart-1", "cart-2"])),
                    _ => told(200, json!([])),
                }
            }
            ("/resources", _) => told(401, json!({})),
            ("/token", Some("client_credentials")) if is_shop() => {
                told(200, json!({ "access_token": "own-1", "refresh_token": "again" }))
            }
            ("/token", Some("refresh_token")) if is_shop() && form["refresh_token"] == "again" => {
                told(200, json!({ "access_token": "own-2", "expires_in": 600 }))
            }
            ("/token", Some("password")) if is_shop() => {
                match (&*form["username"], &*form["password"]) {
                    ("ann", "pass&word") => told(200, json!({ "access_token": "ann's" })),
                    _ => told(401, json!({ "error": "invalid_grant" })),
                }
            }
            ("/token", Some("urn:ietf:params:oauth:grant-type:uma-ticket")) => {
                assert_eq!((&*form["audience"], &*form["response_mode"]), ("shop", "decision"));
                let asked: Vec<String> = body
                    .split('&')
                    .filter_map(|pair| pair.strip_prefix("permission="))
                    .map(|text| {
                        percent_encoding::percent_decode_str(text).decode_utf8().unwrap().into()
                    })
                    .collect();
                let may = ["cart#view", "cart#view, GET", "cart-1", "cart-1#GET", "list#GET"];
                match bearer {
                    "Bearer ann" if asked.is_empty() => told(200, json!({ "result": true })),
                    "Bearer ann" if asked.iter().any(|one| may.contains(&&**one)) => {
                        told(200, json!({ "result": true }))
                    }
                    "Bearer ann" => told(
                        403,
                        json!({ "error": "access_denied", "error_description": "not_authorized" }),
                    ),
                    "Bearer no" => told(200, json!({ "result": false })),
                    "Bearer odd" => told(200, json!({ "access_token": "rpt" })),
                    "Bearer broken" => told(500, json!({})),
                    _ => told(
                        401,
                        json!({ "error": "invalid_grant", "error_description": "Invalid bearer token" }),
                    ),
                }
            }
            _ => told(400, json!({})),
        }
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn keycloak_decides_on_permissions_paths_and_methods() {
    let keycloak = realm();
    let at = |path: &str| format!("{}{path}", keycloak.url());
    let with = |more: Value| {
        let mut config = json!({ "client_id": "shop", "timeout": 20_000, "ssl_verify": false });
        config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({ "authz-keycloak": config })
    };
    let by_path = |more: Value| {
        let mut config = json!({ "client_secret": "s3cret&1", "lazy_load_paths": true,
            "discovery": at("/uma2"), "cache_ttl_seconds": 60 });
        config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        with(config)
    };
    let token = at("/token");
    let dead = format!("http://127.0.0.1:{}", free_port());
    let edge = Edge::new(
        &[
            (
                "/view",
                with(
                    json!({ "token_endpoint": token, "permissions": ["other", "cart#view"], "keepalive": false,
                    "grant_type": "urn:ietf:params:oauth:grant-type:uma-ticket" }),
                ),
            ),
            ("/edit", with(json!({ "discovery": at("/uma2"), "permissions": ["cart#edit"] }))),
            (
                "/method",
                with(json!({ "token_endpoint": token, "permissions": ["cart#view", "list"],
                    "http_method_as_scope": true, "keepalive_timeout": 5000, "keepalive_pool": 1 })),
            ),
            ("/none", with(json!({ "token_endpoint": token }))),
            (
                "/permissive",
                with(json!({ "token_endpoint": token, "policy_enforcement_mode": "PERMISSIVE" })),
            ),
            (
                "/sent",
                with(
                    json!({ "token_endpoint": token, "permissions": ["x"], "access_denied_redirect_uri": "https://shop.example/no" }),
                ),
            ),
            ("/paths/*", by_path(json!({ "access_token_expires_in": 600 }))),
            (
                "/again/*",
                by_path(json!({ "access_token_expires_in": 10, "access_token_expires_leeway": 10,
                    "refresh_token_expires_in": 600, "refresh_token_expires_leeway": 1,
                    "policy_enforcement_mode": "PERMISSIVE" })),
            ),
            (
                "/over/*",
                by_path(json!({ "access_token_expires_in": 10, "access_token_expires_leeway": 10,
                    "refresh_token_expires_in": 10, "refresh_token_expires_leeway": 10,
                    "policy_enforcement_mode": "PERMISSIVE", "discovery": null,
                    "token_endpoint": token, "resource_registration_endpoint": at("/resources") })),
            ),
            (
                "/login",
                with(
                    json!({ "token_endpoint": token, "client_secret": "s3cret&1", "max_req_body_size": 100,
                    "password_grant_token_generation_incoming_uri": "/login" }),
                ),
            ),
            ("/dead", with(json!({ "token_endpoint": dead, "permissions": ["x"] }))),
        ],
        &json!({}),
    );
    let get = async |path: &str, token: &str| {
        let line = format!("Bearer {token}");
        edge.get(path, &[("authorization", &line)]).await
    };
    let denied = json!({ "error": "access_denied", "error_description": "not_authorized" });
    for (path, token, status) in [
        ("/view", "ann", 200),
        ("/view", "no", 403),
        ("/view", "stranger", 401),
        ("/view", "odd", 503),
        ("/view", "broken", 503),
        ("/edit", "ann", 403),
        ("/method", "ann", 200),
        ("/none", "ann", 403),
        ("/permissive", "ann", 200),
        ("/paths/cart", "ann", 200),
        ("/paths/%63art?a=b", "ann", 200),
        ("/paths/x/../cart", "ann", 200),
        ("/paths/other", "ann", 403),
        ("/dead", "ann", 503),
    ] {
        let seen = edge.app.requests();
        let answer = get(path, token).await;
        assert_eq!(answer.status, status, "{path} {token}: {}", answer.text());
        assert_eq!(edge.app.requests() - seen, usize::from(status == 200), "{path} {token}");
        if status == 403 {
            assert_eq!(answer.json(), denied, "{path} {token}");
        }
    }
    let missing = edge.get("/view", &[]).await;
    assert_eq!(missing.message(), (401, "Missing JWT token in request".into()));
    assert_eq!(
        edge.get("/view", &[("authorization", "ann")]).await.status,
        200,
        "without the word"
    );
    let posted = edge.ask("POST", "/method", &[("authorization", "Bearer ann")], "").await;
    assert_eq!(posted.status, 403, "another method, another scope");
    let sent = get("/sent", "ann").await;
    assert_eq!((sent.status, sent.header("location")), (307, Some("https://shop.example/no")));

    // Our own token is asked for once, renewed with what renews it, and asked for anew when nothing does.
    let count = |what: &str| {
        let asked = keycloak.asked.lock().unwrap();
        asked.iter().filter(|one| one["body"].as_str().unwrap().contains(what)).count()
    };
    assert_eq!((count("grant_type=client_credentials"), count("grant_type=refresh_token")), (1, 0));
    for _ in 0..3 {
        assert_eq!(get("/again/x", "ann").await.status, 200);
    }
    assert_eq!((count("grant_type=client_credentials"), count("grant_type=refresh_token")), (2, 1));
    let discovered =
        keycloak.asked.lock().unwrap().iter().filter(|one| one["path"] == "/uma2").count();
    assert_eq!(discovered, 3, "once a route");
    for _ in 0..2 {
        assert_eq!(get("/over/x", "ann").await.status, 200);
    }
    assert_eq!((count("grant_type=client_credentials"), count("grant_type=refresh_token")), (4, 1));

    let login = async |form: &str| -> Answer { edge.ask("POST", "/login", &[], form).await };
    let known = login("username=ann&password=pass%26word").await;
    assert_eq!((known.status, known.json()["access_token"].as_str()), (200, Some("ann's")));
    assert_eq!(known.header("cache-control"), Some("no-store"));
    assert_eq!(login("username=ann&password=x").await.status, 401);
    assert_eq!(login("username=ann").await.status, 400);
    assert_eq!(login(&"x".repeat(101)).await.status, 413);
    assert_eq!(edge.get("/login", &[]).await.status, 401, "a token is no form");
}
