//! Who may administer: roles, scopes, keys that are made and taken back, web pages, and those who ask too much.

use super::*;
use wardgate::control::access::Settings;

async fn guarded(settings: Value) -> World {
    let settings: Settings = serde_json::from_value(settings).unwrap();
    World::guarded(Arc::new(Memory::new()), settings).await
}

async fn with_key(
    world: &World,
    key: &str,
    method: &str,
    path: &str,
    body: &Value,
) -> (u16, Value) {
    let bytes = if body.is_null() { String::new() } else { body.to_string() };
    world.send(method, &format!("/apisix/admin{path}"), &[("x-api-key", key)], bytes).await.pair()
}

async fn make(world: &World, body: Value) -> String {
    let made = world.ask("POST", "/access/keys", &body).await;
    assert_eq!(made.status.as_u16(), 201, "{}", made.text);
    made.json()["key"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn roles_write_what_is_theirs_and_scopes_narrow_them() {
    let world = world().await;
    let operator = make(&world, json!({"name": "ops", "role": "operator"})).await;
    let security = make(&world, json!({"name": "sec", "role": "security"})).await;
    let policy = json!({"action": "allow", "rules": [{"to": {"methods": ["GET"]}}]});
    let forbidden = |why: &str| (403, error(why));
    let mut body = upstream();
    body["labels"] = json!({"team": "shop"});
    assert_eq!(with_key(&world, &operator, "PUT", "/upstreams/shop-1", &body).await.0, 201);
    assert_eq!(
        with_key(&world, &operator, "PUT", "/identity_policies/p", &policy).await,
        forbidden("role operator may not write identity_policies")
    );
    assert_eq!(with_key(&world, &security, "PUT", "/identity_policies/p", &policy).await.0, 201);
    assert_eq!(
        with_key(&world, &security, "DELETE", "/upstreams/shop-1", &Value::Null).await,
        forbidden("role security may not write upstreams")
    );
    assert_eq!(
        with_key(
            &world,
            &operator,
            "POST",
            "/history/identity_policies/rollback",
            &json!({"to": 1})
        )
        .await,
        forbidden("role operator may not write identity_policies")
    );
    assert_eq!(
        with_key(&world, &operator, "GET", "/identity_policies/p", &Value::Null).await.0,
        200
    );

    let scope = json!({"kinds": ["upstreams"], "labels": {"team": "shop"}, "id_prefix": "shop-"});
    let shop = make(&world, json!({"name": "shop", "role": "operator", "scope": scope})).await;
    world.put("/upstreams/bank-1", upstream()).await;
    world.put("/upstreams/shop-2", upstream()).await;
    let list = with_key(&world, &shop, "GET", "/upstreams", &Value::Null).await.1;
    assert_eq!(
        (&list["total"], &list["list"][0]["key"]),
        (&json!(1), &json!("/apisix/upstreams/shop-1"))
    );
    for (method, path, body, wanted) in [
        ("GET", "/upstreams/bank-1", Value::Null, (404, json!({"message": "Key not found"}))),
        ("GET", "/routes", Value::Null, forbidden("routes are out of this key's scope")),
        (
            "PUT",
            "/upstreams/bank-1",
            body.clone(),
            forbidden("upstream bank-1 is out of this key's scope: ids that begin with \"shop-\""),
        ),
        (
            "PUT",
            "/upstreams/shop-3",
            upstream(),
            forbidden("upstream shop-3 would bear not the labels of this key's scope: team=shop"),
        ),
        (
            "PUT",
            "/upstreams/shop-2",
            body.clone(),
            forbidden("upstream shop-2 bears not the labels of this key's scope: team=shop"),
        ),
        (
            "PATCH",
            "/upstreams/shop-1",
            json!({"labels": null}),
            forbidden("upstream shop-1 would bear not the labels of this key's scope: team=shop"),
        ),
        (
            "DELETE",
            "/upstreams/shop-2",
            Value::Null,
            forbidden("upstream shop-2 bears not the labels of this key's scope: team=shop"),
        ),
        (
            "POST",
            "/questions/who-can",
            json!({}),
            forbidden("a caller with a scope reads resources alone"),
        ),
        (
            "GET",
            "/history/identity_policies",
            Value::Null,
            forbidden("a caller with a scope reads resources alone"),
        ),
        (
            "GET",
            "/access/keys",
            Value::Null,
            forbidden("admin keys are the matter of role admin without a scope"),
        ),
    ] {
        assert_eq!(with_key(&world, &shop, method, path, &body).await, wanted, "{method} {path}");
    }
    assert_eq!(
        with_key(&world, &shop, "PATCH", "/upstreams/shop-1", &json!({"desc": "x"})).await.0,
        200
    );
    assert_eq!(with_key(&world, &shop, "DELETE", "/upstreams/shop-1", &Value::Null).await.0, 200);
}

#[tokio::test]
async fn keys_are_made_shown_once_rotated_and_revoked() {
    let store = Arc::new(Memory::new());
    let world = World::with(store.clone()).await;
    let first = make(&world, json!({"name": "deploy", "role": "viewer", "expires_in": 100})).await;
    let who = with_key(&world, &first, "GET", "/access/whoami", &Value::Null).await;
    assert_eq!(who, (200, json!({"name": "deploy", "role": "viewer", "scope": {}})));
    assert_eq!(
        world
            .ask("POST", "/access/keys", &json!({"name": "deploy", "role": "admin"}))
            .await
            .status
            .as_u16(),
        409
    );
    assert_eq!(
        world
            .ask("POST", "/access/keys", &json!({"name": "root", "role": "admin"}))
            .await
            .status
            .as_u16(),
        409
    );
    for bad in [
        json!({"name": "a/b", "role": "admin"}),
        json!({"name": "a", "role": "king"}),
        json!({"name": "a", "role": "admin", "scope": {"kinds": ["x"]}}),
        json!({"name": "a", "role": "admin", "expires_in": 0}),
        json!({"name": "a", "role": "admin", "more": 1}),
    ] {
        assert_eq!(world.ask("POST", "/access/keys", &bad).await.status.as_u16(), 400, "{bad}");
    }
    let kept = store.get("/apisix-access/keys/deploy").await.unwrap().unwrap().value.to_string();
    assert!(!kept.contains(&first) && kept.contains("sha256"), "only the hash is kept: {kept}");
    let list = world.get("/access/keys").await;
    let names: Vec<String> = list.json()["list"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one["name"].as_str().unwrap().into())
        .collect();
    assert_eq!(names, ["root", "eyes", "deploy"]);
    assert!(!list.text.contains("sha256"), "{}", list.text);

    let rotated =
        world.ask("POST", "/access/keys/deploy/rotate", &json!({"grace": 50})).await.json();
    let second = rotated["key"].as_str().unwrap().to_owned();
    let opens = async |key: &str| with_key(&world, key, "GET", "/routes", &Value::Null).await.0;
    assert_eq!((opens(&first).await, opens(&second).await), (200, 200));
    world.clock.advance(50);
    assert_eq!((opens(&first).await, opens(&second).await), (401, 200));
    world.clock.advance(50);
    assert_eq!(opens(&second).await, 401, "its time is over");

    // Another control plane on the same store knows them, and forgets a revoked one.
    let third = make(&world, json!({"name": "ci", "role": "admin"})).await;
    let other = World::with(store).await;
    let there = async || with_key(&other, &third, "GET", "/routes", &Value::Null).await.0;
    eventually("the other control plane knows the key", async || there().await == 200).await;
    assert_eq!(world.ask("DELETE", "/access/keys/ci", &Value::Null).await.status.as_u16(), 200);
    assert_eq!(opens(&third).await, 401);
    eventually("the other control plane forgets it", async || there().await == 401).await;
    assert_eq!(world.ask("DELETE", "/access/keys/ci", &Value::Null).await.status.as_u16(), 404);
    assert_eq!(world.ask("DELETE", "/access/keys/root", &Value::Null).await.status.as_u16(), 400);
}

async fn eventually(what: &str, holds: impl AsyncFn() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while !holds().await {
        assert!(tokio::time::Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn who_shows_wrong_keys_is_not_listened_to_for_a_while() {
    let world = guarded(json!({"failures_per_minute": 3})).await;
    let ask = async |key: &str| {
        world.send("GET", "/apisix/admin/routes", &[("x-api-key", key)], "").await
    };
    for _ in 0..3 {
        assert_eq!(ask("wrong").await.status.as_u16(), 401);
    }
    let refused = ask(ADMIN).await;
    assert_eq!(refused.pair(), (429, error("too many wrong keys from this address")));
    assert!(refused.headers["retry-after"].to_str().unwrap().parse::<u64>().unwrap() <= 21);
    // Alive all the same: that needs no key.
    assert_eq!(world.send("HEAD", "/apisix/admin", &[], "").await.status.as_u16(), 200);
    let trail = world.trail.0.lock().unwrap().clone();
    assert_eq!(trail.len(), 3, "each wrong key is on record: {trail:?}");
    assert_eq!(trail[0].reason.as_deref(), Some("failed to check token: wrong apikey"));
}

#[tokio::test]
async fn a_source_has_its_measure() {
    let world = guarded(json!({"requests_per_second": 1})).await;
    let mut statuses = Vec::new();
    for _ in 0..6 {
        statuses.push(world.get("/routes").await.status.as_u16());
    }
    assert_eq!(statuses[0], 200);
    assert!(statuses.contains(&429), "{statuses:?}");
}

#[tokio::test]
async fn pages_call_where_they_may_and_cookies_are_lent_to_nobody() {
    let world = guarded(json!({"origins": ["https://dashboard.example"]})).await;
    let body = upstream().to_string();
    let put = async |headers: &[(&str, &str)]| {
        world.send("PUT", "/apisix/admin/upstreams/1", headers, body.clone()).await
    };
    let page = ("origin", "https://dashboard.example");
    let answer = put(&[page, ("x-api-key", ADMIN)]).await;
    assert_eq!(answer.status.as_u16(), 201);
    assert_eq!(answer.headers["access-control-allow-origin"], "https://dashboard.example");
    assert_eq!(answer.headers.get("access-control-allow-credentials"), None);
    let preflight = world
        .send(
            "OPTIONS",
            "/apisix/admin/upstreams/1",
            &[page, ("access-control-request-method", "PUT")],
            "",
        )
        .await;
    assert_eq!(preflight.status.as_u16(), 200);
    assert!(
        preflight.headers["access-control-allow-headers"].to_str().unwrap().contains("X-API-KEY")
    );
    let evil = ("origin", "https://evil.example");
    for headers in [&[evil, ("x-api-key", ADMIN)][..], &[evil]] {
        let answer = put(headers).await;
        assert_eq!(answer.status.as_u16(), 403);
        assert_eq!(answer.headers.get("access-control-allow-origin"), None);
    }
    let preflight = world.send("OPTIONS", "/apisix/admin/upstreams/1", &[evil], "").await;
    assert_eq!(preflight.status.as_u16(), 403);

    let cookie = format!("x_api_key={ADMIN}");
    let cookie = ("cookie", cookie.as_str());
    let own = format!("http://{}", world.address);
    let (json, form) = ("application/json; charset=utf-8", "application/x-www-form-urlencoded");
    for (headers, status) in [
        (vec![cookie, ("content-type", json)], 200),
        (vec![cookie, ("origin", own.as_str()), ("content-type", form)], 200),
        (vec![cookie, ("content-type", form)], 403),
        (vec![cookie], 403),
        (vec![cookie, ("content-type", json), ("sec-fetch-site", "cross-site")], 403),
        (vec![cookie, ("content-type", json), ("sec-fetch-site", "same-site")], 403),
        (vec![cookie, ("content-type", json), ("sec-fetch-site", "same-origin")], 200),
        // A key that the caller shows itself is lent by nobody.
        (vec![("x-api-key", ADMIN), ("content-type", form)], 200),
    ] {
        assert_eq!(put(&headers).await.status.as_u16(), status, "{headers:?}");
    }
}

#[tokio::test]
async fn what_was_forwarded_is_refused_unless_the_proxy_is_known() {
    let world = world().await;
    let known = guarded(json!({"proxies": ["127.0.0.0/8", "::1"]})).await;
    for name in ["x-forwarded-for", "forwarded", "via", "x-real-ip"] {
        let headers = [("x-api-key", ADMIN), (name, "203.0.113.9")];
        let refused = world.send("GET", "/apisix/admin/routes", &headers, "").await;
        assert_eq!(refused.status.as_u16(), 403, "{name}");
        assert!(refused.text.contains("control.access.proxies"), "{}", refused.text);
        let passed = known.send("GET", "/apisix/admin/routes", &headers, "").await;
        assert_eq!(passed.status.as_u16(), 200, "{name}");
    }
}

#[tokio::test]
async fn records_say_who_made_what_of_what() {
    let world = world().await;
    world.put("/upstreams/1", upstream()).await;
    world.ask("PATCH", "/upstreams/1", &json!({"desc": "x"})).await;
    world.delete("/upstreams/1").await;
    let trail = world.trail.0.lock().unwrap().clone();
    let differences: Vec<&String> =
        trail.iter().filter_map(|one| one.difference.as_ref()).collect();
    assert_eq!(differences.len(), 3);
    assert!(differences.iter().all(|one| one.len() == 64));
    assert!(differences[0] != differences[1] && differences[1] != differences[2]);
    assert!(trail.iter().all(|one| one.principal.as_deref() == Some("root")));
}
