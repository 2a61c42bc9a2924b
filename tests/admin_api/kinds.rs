//! Kinds that hold what others use: definitions of Protocol Buffers, managers of secrets, stream routes.

use super::*;

const PROTO: &str = r#"syntax = "proto3"; package proto;
    message HelloRequest { string name = 1; }
    message HelloResponse { int32 code = 1; string msg = 2; }
    service Hello { rpc SayHi (HelloRequest) returns (HelloResponse) {} }"#;

#[tokio::test]
async fn a_definition_is_compiled_before_it_is_stored() {
    let world = world().await;
    let body = json!({"content": PROTO, "name": "hello", "labels": {"a": "b"}});
    let answer = world.ask("PUT", "/protos/1", &body).await;
    assert_eq!(
        answer.pair(),
        (201, json!({"key": "/apisix/protos/1", "value": stamped(body.clone(), "1", BORN, BORN)}))
    );
    assert_eq!(world.ask("PUT", "/protos/1", &body).await.status.as_u16(), 200);
    let posted = world.ask("POST", "/protos", &json!({"content": PROTO})).await;
    assert_eq!(posted.status.as_u16(), 201);
    assert_eq!(world.get("/protos").await.json()["total"], json!(2));
    assert_eq!(world.get("/protos?name=hel&label=a").await.json()["total"], json!(1));
    let patched = world.ask("PATCH", "/protos/1", &json!({})).await;
    assert_eq!(patched.pair(), (405, error("not supported `PATCH` method for proto")));
    for (body, why) in [
        (json!({}), "invalid configuration: property \"content\" is required"),
        (
            json!({"content": 1}),
            "invalid configuration: property \"content\" validation failed: wrong type: expected string, got number",
        ),
        (json!({"content": "syntax = \"proto3\"; message A { B b = 1; }"}), "invalid content: "),
        (json!({"content": PROTO, "id": "2"}), "wrong proto id"),
    ] {
        let answer = world.ask("PUT", "/protos/1", &body).await;
        let text = answer.json()["error_msg"].as_str().unwrap().to_owned();
        assert!(answer.status.as_u16() == 400 && text.starts_with(why), "{text}");
    }
    assert_eq!(world.delete("/protos/1").await.status.as_u16(), 200);
    assert_eq!(world.delete("/protos/1").await.pair(), (404, json!({"message": "Key not found"})));
    assert_eq!(world.delete("/protos").await.pair(), (400, error("missing proto id")));
}

#[tokio::test]
async fn a_manager_of_secrets_lives_below_its_type() {
    let world = world().await;
    let body = json!({"uri": "http://127.0.0.1:12800/get", "prefix": "apisix", "token": "apisix"});
    let stored = stamped(body.clone(), "vault/test1", BORN, BORN);
    let key = "/apisix/secrets/vault/test1";
    assert_eq!(
        world.ask("PUT", "/secrets/vault/test1", &body).await.pair(),
        (201, json!({"key": key, "value": stored}))
    );
    let got = world.get("/secrets/vault/test1").await.json();
    assert_eq!((&got["key"], &got["value"]), (&json!(key), &stored));
    world.put("/secrets/aws/one", json!({"access_key_id": "a", "secret_access_key": "b"})).await;
    world.put("/secrets/gcp/one", json!({"auth_file": "/etc/account.json"})).await;
    assert_eq!(world.get("/secrets").await.json()["total"], json!(3));
    assert_eq!(world.get("/secrets/vault").await.json()["total"], json!(1));
    let patched = world.ask("PATCH", "/secrets/vault/test1/token", &json!("unknown")).await;
    assert_eq!(
        (patched.status.as_u16(), &patched.json()["value"]["token"]),
        (200, &json!("unknown"))
    );
    let patched = world.ask("PATCH", "/secrets/vault/test1", &body).await.json();
    assert_eq!((&patched["value"]["token"], &patched["key"]), (&json!("apisix"), &json!(key)));

    // Who may not write them is not shown what opens them.
    let seen =
        world.send("GET", "/apisix/admin/secrets/vault/test1", &[("x-api-key", VIEWER)], "").await;
    assert_eq!(seen.json()["value"].get("token"), None);
    let seen = world.send("GET", "/apisix/admin/secrets", &[("x-api-key", VIEWER)], "").await.text;
    assert!(!seen.contains("secret_access_key") && seen.contains("aws/one"), "{seen}");

    let relative = json!({"uri": "/get", "prefix": "apisix", "token": "apisix"});
    let mut strange = body.clone();
    strange["id"] = json!("vault/other");
    for (method, path, body, status, why) in [
        (
            "PUT",
            "/secrets/vault/test1",
            &relative,
            400,
            "invalid configuration: property \"uri\" validation failed: failed to match pattern",
        ),
        ("PUT", "/secrets/vault/test1", &strange, 400, "wrong secret id"),
        ("PUT", "/secrets/nobody/1", &body, 400, "invalid secret manager: nobody"),
        ("PUT", "/secrets/aws/1", &body, 400, "invalid configuration: "),
        ("PUT", "/secrets/vault", &body, 400, "missing secret id"),
        ("PATCH", "/secrets/vault", &json!({}), 400, "no secret id"),
        ("POST", "/secrets", &body, 405, "not supported `POST` method for secret"),
        ("DELETE", "/secrets/vault", &Value::Null, 400, "missing secret id"),
    ] {
        let answer = world.ask(method, path, body).await;
        let text = answer.json()["error_msg"].as_str().unwrap().to_owned();
        assert!(
            answer.status.as_u16() == status && text.starts_with(why),
            "{method} {path}: {text}"
        );
    }
    assert_eq!(
        world.delete("/secrets/vault/test1").await.pair(),
        (200, json!({"deleted": "1", "key": key}))
    );
}

#[tokio::test]
async fn a_stream_route_is_judged_with_what_it_refers_to() {
    let world = world().await;
    let body = json!({"remote_addr": "127.0.0.1", "upstream": {"nodes": {"127.0.0.1:8080": 1}, "type": "roundrobin"}, "desc": "new route"});
    assert_eq!(
        world.ask("PUT", "/stream_routes/1", &body).await.pair(),
        (
            201,
            json!({"key": "/apisix/stream_routes/1", "value": stamped(body.clone(), "1", BORN, BORN)})
        )
    );
    assert_eq!(world.ask("POST", "/stream_routes", &body).await.status.as_u16(), 201);
    let redis = |superior: Option<&str>, name: &str| {
        let mut protocol = json!({"name": name});
        if let Some(id) = superior {
            protocol["superior_id"] = json!(id);
        }
        json!({"protocol": protocol, "upstream": {"nodes": {"127.0.0.1:6379": 1}, "scheme": "tcp"}})
    };
    world.put("/stream_routes/top", redis(None, "redis")).await;
    world.put("/stream_routes/part", redis(Some("top"), "redis")).await;
    world.put("/services/s", json!({"upstream": upstream()})).await;
    world.put("/stream_routes/of-service", json!({"service_id": "s"})).await;
    let no_address = "object matches none of the required";
    for (body, why) in [
        (json!({"upstream_id": "none"}), "failed to fetch upstream info by upstream id [none], response code: 404".to_owned()),
        (json!({"service_id": "none"}), "failed to fetch service info by service id [none], response code: 404".into()),
        (redis(Some("999"), "redis"), "failed to fetch stream routes[999], response code: 404".into()),
        (redis(Some("x"), "redis"), "stream route can not set itself as superior_id".into()),
        (redis(Some("top"), "dubbo"), "protocol mismatch: subordinate protocol [dubbo] does not match superior protocol [redis]".into()),
        (json!({"server_addr": "here"}), format!("invalid configuration: property \"server_addr\" validation failed: {no_address}")),
        (json!({"server_port": 0}), "invalid configuration: property \"server_port\" validation failed: expected 0 to be greater than 1".into()),
        (json!({"upstream": {"nodes": {}, "scheme": "http"}}), "invalid configuration: property \"upstream\" validation failed: property \"scheme\" validation failed: matches none of the enum values".into()),
        (json!({"plugins": {"key-auth": {}}}), "unknown plugin [key-auth]".into()),
    ] {
        assert_eq!(world.ask("PUT", "/stream_routes/x", &body).await.pair(), (400, error(&why)));
    }
    for (path, why) in [
        (
            "/stream_routes/top",
            "can not delete this stream route directly, stream route [part] is still using it as superior_id",
        ),
        (
            "/services/s",
            "can not delete this service directly, stream_route [of-service] is still using it now",
        ),
    ] {
        assert_eq!(world.delete(path).await.pair(), (400, error(why)));
    }
    assert_eq!(world.get("/stream_routes?filter=service_id%3Ds").await.json()["total"], json!(1));
    assert_eq!(world.delete("/stream_routes/top?force=true").await.status.as_u16(), 200);
}
