//! `openid-connect`: access tokens, verified with the provider's keys, with a public key, or by asking the provider.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::Response;
use http_body_util::{BodyExt as _, Full};
use serde_json::{Value, json};

use super::jwt_auth::{forged, keys, now, public_key};
use super::{Edge, base64, base64url};
use crate::world::{App, free_port};

/// A provider: its discovery document, its keys, and what it knows of tokens.
struct Provider {
    app: App,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    issuer: String,
    keys: Vec<Value>,
    /// The forms that it was asked with, and their credentials.
    asked: Vec<(String, String)>,
    fetched: usize,
}

impl Provider {
    fn new() -> Self {
        let state = Arc::<Mutex<State>>::default();
        let known = state.clone();
        let app = App::serving(move |request: http::Request<hyper::body::Incoming>| {
            let known = known.clone();
            async move {
                let (head, body) = request.into_parts();
                let body = body.collect().await.unwrap().to_bytes();
                let mut known = known.lock().unwrap();
                let issuer = known.issuer.clone();
                let answer = match head.uri.path() {
                    "/d" => json!({ "issuer": issuer, "jwks_uri": format!("{issuer}/jwks"),
                        "introspection_endpoint": format!("{issuer}/introspect") }),
                    "/jwks" => {
                        known.fetched += 1;
                        json!({ "keys": known.keys })
                    }
                    _ => {
                        let form = String::from_utf8_lossy(&body).into_owned();
                        let header = |name: &str| {
                            head.headers
                                .get(name)
                                .map(|value| value.to_str().unwrap().to_owned())
                                .unwrap_or_default()
                        };
                        let told = if form.contains("token=good") {
                            json!({ "active": true, "scope": "read write", "sub": "ann", "aud": ["shop", "x"] })
                        } else if form.contains("token=old") {
                            json!({ "active": true, "exp": 1 })
                        } else {
                            json!({ "active": false })
                        };
                        known.asked.push((
                            form,
                            format!("{} {}", header("authorization"), header("x-tenant")),
                        ));
                        told
                    }
                };
                Response::new(Full::new(Bytes::from(answer.to_string())))
            }
        });
        let provider = Self { app, state };
        provider.state.lock().unwrap().issuer = provider.issuer();
        provider
    }

    fn issuer(&self) -> String {
        format!("http://{}", self.app.address)
    }

    fn publish(&self, key_id: &str) {
        let point = keys().p256.public_key_raw();
        self.state.lock().unwrap().keys.push(json!({ "kty": "EC", "crv": "P-256", "kid": key_id,
            "use": "sig", "x": base64url(&point[1..33]), "y": base64url(&point[33..]) }));
    }

    fn claims(&self) -> Value {
        json!({ "iss": self.issuer(), "exp": now() + 600, "sub": "ann", "aud": "shop", "scope": "read" })
    }
}

fn token(key_id: &str, claims: &Value) -> String {
    let header = json!({ "alg": "ES256", "kid": key_id }).to_string();
    forged(&header, &claims.to_string(), "ES256", b"")
}

fn with(mut claims: Value, name: &str, value: Value) -> Value {
    claims[name] = value;
    claims
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_verified_with_the_providers_keys_and_new_keys_are_found() {
    let provider = Provider::new();
    provider.publish("one");
    let oidc = |more: Value| {
        let mut config = json!({ "client_id": "shop", "discovery": format!("{}/d", provider.issuer()),
            "bearer_only": true, "use_jwks": true, "timeout": 20, "ssl_verify": true });
        config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({ "openid-connect": config })
    };
    let dead = format!("http://127.0.0.1:{}/d", free_port());
    let edge = Edge::new(
        &[
            ("/keys", oidc(json!({ "realm": "shop", "iat_slack": 0, "jwk_expires_in": 3600 }))),
            ("/alg", oidc(json!({ "token_signing_alg_values_expected": "RS256" }))),
            ("/scope", oidc(json!({ "required_scopes": ["write"] }))),
            (
                "/audience",
                oidc(
                    json!({ "claim_validator": { "audience": { "claim": "azp", "required": true, "match_with_client_id": true } } }),
                ),
            ),
            (
                "/issuer",
                oidc(
                    json!({ "claim_validator": { "issuer": { "valid_issuers": ["https://other"] } } }),
                ),
            ),
            ("/schema", oidc(json!({ "claim_schema": { "required": ["email"] } }))),
            ("/bearer", oidc(json!({ "access_token_in_authorization_header": true }))),
            ("/silent", oidc(json!({ "set_access_token_header": false }))),
            ("/pass", oidc(json!({ "bearer_only": false, "unauth_action": "pass" }))),
            ("/deny", oidc(json!({ "bearer_only": false, "unauth_action": "deny" }))),
            ("/dead", oidc(json!({ "discovery": dead, "timeout": 1 }))),
            (
                "/pem",
                oidc(
                    json!({ "use_jwks": false, "public_key": public_key("RS256"), "claim_validator": { "issuer": { "valid_issuers": ["me"] } } }),
                ),
            ),
            ("/acl", {
                let mut both = oidc(json!({}));
                both["acl"] = json!({ "allow_labels": { "groups": ["ops"] } });
                both
            }),
        ],
        &json!({}),
    );
    let ask = async |path: &str, token: &str| {
        let line = format!("Bearer {token}");
        edge.get(path, &[("authorization", &line), ("x-userinfo", "root"), ("x-id-token", "root")])
            .await
    };
    let good = token("one", &provider.claims());
    let answer = ask("/keys", &good).await;
    assert_eq!(answer.seen("x-access-token"), Some(good.clone()));
    assert_eq!((answer.seen("x-userinfo"), answer.seen("x-id-token")), (None, None));
    let answer = edge.get("/keys", &[("x-access-token", &good)]).await;
    assert_eq!(answer.seen("x-access-token"), Some(good.clone()), "there as well");
    assert_eq!(ask("/bearer", &good).await.seen("authorization"), Some(format!("Bearer {good}")));
    assert_eq!(ask("/silent", &good).await.seen("x-access-token"), None);

    // A key that the provider has come by since.
    assert_eq!(ask("/keys", &token("two", &provider.claims())).await.status, 401);
    let refused = edge.get("/keys", &[]).await;
    assert_eq!(
        (refused.status, refused.header("www-authenticate")),
        (401, Some("Bearer realm=\"shop\""))
    );
    assert_eq!(edge.get("/keys", &[("authorization", "nothing")]).await.status, 400);
    assert_eq!(edge.get("/deny", &[]).await.status, 401);
    assert_eq!(edge.get("/pass", &[("x-userinfo", "root")]).await.seen("x-userinfo"), None);
    assert_eq!(ask("/pass", "a.b.c").await.status, 401, "a bad token is none that may pass");

    let claims = || provider.claims();
    let header = |header: Value, claims: Value, algorithm: &str| {
        forged(&header.to_string(), &claims.to_string(), algorithm, public_key("ES256").as_bytes())
    };
    let unsigned = format!(
        "{}.{}.",
        base64url(r#"{"alg":"none","kid":"one"}"#),
        base64url(claims().to_string())
    );
    for (what, path, token) in [
        ("expired", "/keys", token("one", &with(claims(), "exp", json!(now() - 1)))),
        ("no end", "/keys", {
            let mut claims = claims();
            claims.as_object_mut().unwrap().remove("exp");
            token("one", &claims)
        }),
        ("not yet", "/keys", token("one", &with(claims(), "nbf", json!(now() + 60)))),
        ("another issuer", "/keys", token("one", &with(claims(), "iss", json!("https://evil")))),
        ("an issuer that is not listed", "/issuer", good.clone()),
        ("claims that are missing", "/schema", good.clone()),
        ("another algorithm than expected", "/alg", good.clone()),
        ("unsigned", "/keys", unsigned),
        (
            "the public key as a secret",
            "/keys",
            header(json!({ "alg": "HS256", "kid": "one" }), claims(), "HS256"),
        ),
        (
            "the wrong key",
            "/keys",
            header(json!({ "alg": "RS256", "kid": "one" }), claims(), "RS256"),
        ),
        (
            "a key with a path",
            "/keys",
            header(json!({ "alg": "ES256", "kid": "../../jwks" }), claims(), "ES256"),
        ),
        (
            "a key in the token",
            "/keys",
            header(
                json!({ "alg": "RS256", "jwk": { "kty": "RSA" }, "jku": "http://evil" }),
                claims(),
                "RS256",
            ),
        ),
        ("ES256 where RSA is known", "/pem", token("one", &with(claims(), "iss", json!("me")))),
        ("too long", "/keys", format!("{good}{}", "A".repeat(16 * 1024))),
    ] {
        let seen = edge.app.requests();
        let refused = ask(path, &token).await;
        assert_eq!(refused.status, 401, "{what}: {}", refused.text());
        assert!(refused.header("www-authenticate").unwrap().contains("invalid_token"), "{what}");
        assert_eq!(edge.app.requests(), seen, "{what}");
    }
    let fetched = || provider.state.lock().unwrap().fetched;
    let before = fetched();
    for _ in 0..20 {
        assert_eq!(ask("/keys", &token("two", &claims())).await.status, 401);
    }
    assert!(fetched() - before < 5, "unknown keys have none fetched at once");
    let pem = header(json!({ "alg": "RS256" }), with(claims(), "iss", json!("me")), "RS256");
    assert_eq!(ask("/pem", &pem).await.status, 200);
    for (path, token, told) in [
        ("/scope", good.clone(), "required scopes not present"),
        ("/audience", good.clone(), "required audience claim not present"),
        ("/audience", token("one", &with(claims(), "azp", json!("other"))), "mismatched audience"),
    ] {
        let refused = ask(path, &token).await;
        assert_eq!((refused.status, refused.json()), (403, json!({ "error": told })));
    }
    assert_eq!(
        ask("/audience", &token("one", &with(claims(), "azp", json!("shop")))).await.status,
        200
    );
    assert_eq!(
        ask("/scope", &token("one", &with(claims(), "scope", json!("read write")))).await.status,
        200
    );
    assert_eq!(ask("/dead", &good).await.status, 503);
    assert_eq!(
        ask("/acl", &token("one", &with(claims(), "groups", json!(["ops"])))).await.status,
        200
    );
    assert_eq!(ask("/acl", &good).await.status, 403);
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_asked_about_and_answers_are_kept_as_long_as_allowed() {
    let provider = Provider::new();
    let discovery = format!("{}/d", provider.issuer());
    let oidc = |more: Value| {
        let mut config = json!({ "client_id": "sh:op", "client_secret": "s cret", "discovery": discovery, "bearer_only": true });
        config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({ "openid-connect": config })
    };
    let own = format!("{}/own", provider.issuer());
    let edge = Edge::new(
        &[
            ("/basic", oidc(json!({ "required_scopes": ["read", "write"] }))),
            (
                "/post",
                oidc(
                    json!({ "introspection_endpoint": own, "introspection_endpoint_auth_method": "client_secret_post", "introspection_addon_headers": ["X-Tenant"], "set_userinfo_header": false }),
                ),
            ),
            ("/kept", oidc(json!({ "introspection_interval": 600 }))),
            ("/expiry", oidc(json!({ "introspection_expiry_claim": "sub" }))),
        ],
        &json!({}),
    );
    let ask = async |path: &str, token: &str| {
        let line = format!("Bearer {token}");
        edge.get(path, &[("authorization", &line), ("x-tenant", "7")]).await
    };
    let asked = || provider.state.lock().unwrap().asked.clone();
    let answer = ask("/basic", "good").await;
    let told = answer.seen("x-userinfo").unwrap();
    assert!(told.starts_with(&base64(r#"{"active":true"#)[..12]), "{told}");
    assert_eq!(answer.seen("x-access-token").as_deref(), Some("good"));
    let (form, credentials) = asked().pop().unwrap();
    assert_eq!(form, "token=good&token_type_hint=access_token");
    assert_eq!(credentials, format!("Basic {} ", base64("sh%3Aop:s%20cret")));
    assert_eq!(ask("/post", "good").await.seen("x-userinfo"), None);
    let (form, credentials) = asked().pop().unwrap();
    assert!(form.ends_with("&client_id=sh%3Aop&client_secret=s%20cret"), "{form}");
    assert_eq!(credentials, " 7");
    for token in ["bad", "old", "a&token=good", "../good"] {
        let refused = ask("/basic", token).await;
        assert_eq!(refused.status, 401, "{token}");
    }
    assert!(asked().iter().any(|(form, _)| form.starts_with("token=a%26token%3Dgood&")));
    assert_eq!(ask("/expiry", "good").await.status, 401, "an end that is no time is over");
    let before = asked().len();
    for _ in 0..3 {
        assert_eq!(ask("/kept", "good").await.status, 200);
        assert_eq!(ask("/basic", "good").await.status, 200);
    }
    assert_eq!(
        asked().len() - before,
        1 + 3,
        "one route keeps the answer, the other asks each time"
    );
}
