//! What the Admin API refuses: every field of every auth plugin in the wrong type, with the field's name, and keys that two
//! consumers would share.

use serde_json::{Value, json};

use crate::world::{Admin, World};

/// Settings that are accepted, where the field `path` may be put into.
struct Part {
    plugin: &'static str,
    path: &'static str,
    body: Value,
}

async fn refused(admin: &Admin, path: &str, body: &Value) -> String {
    let answer = admin.ask("PUT", path, Some(body)).await;
    assert_eq!(answer.status, 400, "{path} {body}: {}", answer.text());
    answer.json()["error_msg"].as_str().unwrap().to_owned()
}

/// Settings with one field that is wrong, and the others that are needed.
fn settings_of(plugin: &str, field: &str, value: Value) -> Value {
    let mut settings = match plugin {
        "forward-auth" => json!({ "uri": "http://a" }),
        "opa" => json!({ "host": "http://a", "policy": "b" }),
        "openid-connect" => json!({ "client_id": "a", "discovery": "http://a",
            "session": { "secret": "0123456789abcdef" }, "client_secret": "s" }),
        "cas-auth" => {
            json!({ "idp_uri": "http://a", "cas_callback_uri": "/b", "logout_uri": "/c" })
        }
        "authz-casdoor" => json!({ "endpoint_addr": "http://a", "client_id": "b",
            "client_secret": "c", "callback_url": "http://d/e" }),
        "dingtalk-auth" => json!({ "app_key": "a", "app_secret": "b", "secret": "01234567",
            "redirect_uri": "http://c" }),
        "feishu-auth" => json!({ "app_id": "a", "app_secret": "b", "secret": "01234567",
            "redirect_uri": "http://c", "auth_redirect_uri": "http://d" }),
        _ => json!({}),
    };
    settings[field] = value;
    settings
}

fn with(mut body: Value, plugin: &str, field: &str, value: &Value) -> Value {
    body["plugins"][plugin][field] = value.clone();
    body
}

#[tokio::test(flavor = "multi_thread")]
async fn each_field_in_the_wrong_type_is_refused_by_name() {
    let world = World::new();
    let control = world.control().start();
    let admin = control.admin();
    let examples: &[(&'static str, Value, Value)] = &[
        ("basic-auth", json!({}), json!({ "username": "a", "password": "b" })),
        ("jwt-auth", json!({}), json!({ "key": "a", "secret": "b" })),
        ("hmac-auth", json!({}), json!({ "key_id": "a", "secret_key": "b" })),
        (
            "jwe-decrypt",
            json!({}),
            json!({ "key": "a", "secret": "01234567890123456789012345678901" }),
        ),
        ("wolf-rbac", json!({}), json!({ "appid": "a" })),
        (
            "ldap-auth",
            json!({ "base_dn": "dc=a", "ldap_uri": "a" }),
            json!({ "user_dn": "cn=a,dc=a" }),
        ),
        (
            "ldap-auth-advanced",
            json!({ "base_dn": "dc=a", "ldap_uri": "a" }),
            json!({ "user_dn": "cn=a,dc=a" }),
        ),
        (
            "multi-auth",
            json!({ "auth_plugins": [{ "key-auth": {} }, { "basic-auth": {} }] }),
            Value::Null,
        ),
        ("attach-consumer-label", json!({ "headers": { "X-A": "$a" } }), Value::Null),
        ("consumer-restriction", json!({ "whitelist": ["a"] }), Value::Null),
        ("acl", json!({ "allow_labels": { "a": ["b"] } }), Value::Null),
        ("forward-auth", json!({ "uri": "http://a" }), Value::Null),
        ("opa", json!({ "host": "http://a", "policy": "b" }), Value::Null),
        (
            "openid-connect",
            json!({ "client_id": "a", "discovery": "http://a", "bearer_only": true, "use_jwks": true }),
            Value::Null,
        ),
        (
            "cas-auth",
            json!({ "idp_uri": "http://a", "cas_callback_uri": "/b", "logout_uri": "/c",
                "cookie": { "secret": "0123456789abcdef0123456789abcdef" } }),
            Value::Null,
        ),
        (
            "authz-casdoor",
            json!({ "endpoint_addr": "http://a", "client_id": "b", "client_secret": "c", "callback_url": "http://d/e" }),
            Value::Null,
        ),
        ("authz-keycloak", json!({ "client_id": "a", "token_endpoint": "http://b" }), Value::Null),
        (
            "dingtalk-auth",
            json!({ "app_key": "a", "app_secret": "b", "secret": "01234567", "redirect_uri": "http://c" }),
            Value::Null,
        ),
        (
            "feishu-auth",
            json!({ "app_id": "a", "app_secret": "b", "secret": "01234567", "redirect_uri": "http://c",
                "auth_redirect_uri": "http://d" }),
            Value::Null,
        ),
    ];
    let mut fields = 0;
    for (plugin, config, credential) in examples {
        let parts = [
            Part {
                plugin,
                path: "",
                body: json!({ "uri": "/", "upstream": { "nodes": { "127.0.0.1:1": 1 } },
                    "plugins": { *plugin: config } }),
            },
            Part {
                plugin,
                path: "?schema_type=consumer",
                body: json!({ "username": "jack", "plugins": { *plugin: credential } }),
            },
        ];
        for Part { plugin, path, body } in parts {
            if body["plugins"][plugin] == Value::Null {
                continue;
            }
            let schema = admin.get(&format!("/schema/plugins/{plugin}{path}")).await;
            let place = if path.is_empty() { "/routes/1" } else { "/consumers/jack" };
            admin.put(place, &body).await;
            for (field, _) in schema["properties"].as_object().unwrap() {
                if field == "_meta" {
                    continue;
                }
                // No field of these is both.
                for wrong in [json!([[]]), json!({ "a": { "b": 1 }, "type": 7 }), json!(-1)] {
                    let told =
                        refused(&admin, place, &with(body.clone(), plugin, field, &wrong)).await;
                    assert!(told.contains(field) && told.contains(plugin), "{field}: {told}");
                }
                fields += 1;
            }
            let told =
                refused(&admin, place, &with(body, plugin, "no_such_field", &json!(1))).await;
            assert!(told.contains("no_such_field"), "{told}");
        }
    }
    assert!(fields > 30, "{fields}");
    // Out of bounds.
    for (plugin, field, value) in [
        ("basic-auth", "realm", json!("x".repeat(129))),
        ("jwt-auth", "key_claim_name", json!("")),
        ("jwt-auth", "claims_to_verify", json!(["exp", "exp"])),
        ("jwt-auth", "claims_to_verify", json!(["sub"])),
        ("hmac-auth", "clock_skew", json!(0)),
        ("hmac-auth", "allowed_algorithms", json!(["hmac-md5"])),
        ("hmac-auth", "signed_headers", json!(["x".repeat(51)])),
        ("jwe-decrypt", "forward_header", json!("Content-Length")),
        ("multi-auth", "auth_plugins", json!([{ "key-auth": {} }])),
        ("multi-auth", "auth_plugins", json!([{ "key-auth": {} }, { "cors": {} }])),
        ("attach-consumer-label", "headers", json!({ "X-A": "a" })),
        ("attach-consumer-label", "headers", json!({})),
        ("consumer-restriction", "whitelist", json!([])),
        ("acl", "allow_labels", json!({ "a": [] })),
        ("forward-auth", "timeout", json!(60_001)),
        ("forward-auth", "request_method", json!("PUT")),
        ("forward-auth", "uri", json!("ftp://a")),
        ("opa", "send_headers_upstream", json!([])),
        ("opa", "keepalive_timeout", json!(999)),
        ("openid-connect", "session", json!({ "secret": "short" })),
        ("openid-connect", "session", json!({ "secret": "0123456789abcdef", "storage": "file" })),
        ("openid-connect", "session", json!({ "secret": "0123456789abcdef", "idling": 1 })),
        (
            "openid-connect",
            "session",
            json!({ "secret": "0123456789abcdef", "cookie_same_site": "lax" }),
        ),
        ("openid-connect", "unauth_action", json!("login")),
        ("openid-connect", "timeout", json!(0)),
        ("openid-connect", "logout_path", json!("logout")),
        ("openid-connect", "refresh_session_interval", json!(0)),
        ("openid-connect", "client_jwt_assertion_alg", json!("none")),
        ("openid-connect", "token_endpoint_auth_method", json!("tls_client_auth")),
        ("openid-connect", "dpop", json!({ "enabled": true })),
        ("openid-connect", "proxy_opts", json!({ "http_proxy": "http://a" })),
        ("openid-connect", "par", json!({ "enabled": true, "way": 1 })),
        ("cas-auth", "cookie", json!({ "secret": "0123456789abcdef0123456789abcde" })),
        ("authz-casdoor", "endpoint_addr", json!("http://a/")),
        ("dingtalk-auth", "secret", json!("0123456")),
        ("dingtalk-auth", "secret", json!("x".repeat(33))),
        ("dingtalk-auth", "secret_fallbacks", json!(["short"])),
        ("dingtalk-auth", "timeout", json!(0)),
        ("dingtalk-auth", "cookie_expires_in", json!(0)),
        ("dingtalk-auth", "userinfo_url", json!("ftp://a")),
        ("dingtalk-auth", "code_header", json!("a b")),
        ("feishu-auth", "secret", json!("0123456")),
        ("feishu-auth", "secret_fallbacks", json!(["short"])),
        ("feishu-auth", "auth_redirect_uri", json!("")),
        ("feishu-auth", "access_token_url", json!("a")),
    ] {
        let body = json!({ "uri": "/", "upstream": { "nodes": { "127.0.0.1:1": 1 } },
            "plugins": { plugin: settings_of(plugin, field, value) } });
        let told = refused(&admin, "/routes/1", &body).await;
        assert!(told.contains(field), "{told}");
    }
    // What is not here, and why.
    for (plugin, says) in [("saml-auth", "signed XML"), ("authz-casbin", "scripting language")] {
        let body = json!({ "uri": "/", "upstream": { "nodes": { "127.0.0.1:1": 1 } },
            "plugins": { plugin: {} } });
        let told = refused(&admin, "/routes/1", &body).await;
        assert!(told.contains(plugin) && told.contains(says), "{told}");
    }
    for (plugin, credential, says) in [
        ("jwt-auth", json!({ "key": "k" }), "secret: HS256 signs with a secret"),
        ("jwt-auth", json!({ "key": "k", "algorithm": "none" }), "algorithm"),
        ("jwt-auth", json!({ "key": "k", "algorithm": "RS256", "secret": "s" }), "public_key"),
        (
            "jwt-auth",
            json!({ "key": "k", "algorithm": "RS256", "public_key": "s" }),
            "public_key: expected a public key as PEM",
        ),
        ("jwt-auth", json!({ "key": "k", "secret": "!", "base64_secret": true }), "secret: base64"),
        ("jwt-auth", json!({ "key": "k", "secret": "s", "exp": 0 }), "exp"),
        ("hmac-auth", json!({ "key_id": "x".repeat(257), "secret_key": "s" }), "key_id"),
        ("jwe-decrypt", json!({ "key": "k", "secret": "short" }), "secret: a key of 32 bytes"),
        (
            "basic-auth",
            json!({ "username": "a:b", "password": "x" }),
            "username: a name without a colon",
        ),
    ] {
        let body = json!({ "username": "jack", "plugins": { plugin: credential } });
        let told = refused(&admin, "/consumers/jack", &body).await;
        assert!(told.contains(says), "{told}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_one_consumers_and_no_answer_shows_a_secret() {
    let world = World::new();
    let control = world.control().start();
    let admin = control.admin();
    for (plugin, key, credential) in [
        ("basic-auth", "username", json!({ "username": "k", "password": "s3cret-of-jack" })),
        ("jwt-auth", "key", json!({ "key": "k", "secret": "s3cret-of-jack" })),
        ("hmac-auth", "key_id", json!({ "key_id": "k", "secret_key": "s3cret-of-jack" })),
        ("jwe-decrypt", "key", json!({ "key": "k", "secret": "s3cret-of-jack-01234567890123456" })),
    ] {
        let consumer = |name: &str| json!({ "username": name, "plugins": { plugin: credential } });
        admin.put("/consumers/jack", &consumer("jack")).await;
        let told = refused(&admin, "/consumers/jill", &consumer("jill")).await;
        assert!(told.contains("duplicate") || told.contains("already"), "{plugin} {key}: {told}");
        admin.put("/consumers/jill", &json!({ "username": "jill" })).await;
        let body = json!({ "plugins": { plugin: credential } });
        let told = refused(&admin, "/consumers/jill/credentials/c", &body).await;
        assert!(told.contains("duplicate") || told.contains("already"), "{plugin} {key}: {told}");
    }
    assert!(!control.errors().contains("s3cret"), "{}", control.errors());
}
