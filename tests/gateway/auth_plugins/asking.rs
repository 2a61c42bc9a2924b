//! `forward-auth`, `opa` and `wolf-rbac`: another server decides. Each is asked over a real socket, and what it is told is looked at.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::Response;
use http_body_util::{BodyExt as _, Full};
use serde_json::{Value, json};

use super::{Edge, consumer};
use crate::world::{App, free_port};

/// A server of decisions: what it is asked, and the answer that `decide` gives to it.
pub(super) struct Judge {
    app: App,
    pub(super) asked: Arc<Mutex<Vec<Value>>>,
}

pub(super) type Told = (u16, Vec<(&'static str, &'static str)>, String);

impl Judge {
    pub(super) fn new(decide: impl Fn(&Value) -> Told + Clone + Send + Sync + 'static) -> Self {
        let asked = Arc::<Mutex<Vec<Value>>>::default();
        let heard = asked.clone();
        let app = App::serving(move |request: http::Request<hyper::body::Incoming>| {
            let (decide, heard) = (decide.clone(), heard.clone());
            async move {
                let (head, body) = request.into_parts();
                let body = body.collect().await.unwrap().to_bytes();
                let headers: serde_json::Map<String, Value> = head
                    .headers
                    .iter()
                    .map(|(name, value)| (name.to_string(), value.to_str().unwrap().into()))
                    .collect();
                let question = json!({
                    "method": head.method.as_str(), "headers": headers,
                    "path": head.uri.path_and_query().unwrap().as_str(),
                    "body": String::from_utf8_lossy(&body),
                });
                let (status, fields, text) = decide(&question);
                heard.lock().unwrap().push(question);
                let mut answer = Response::builder().status(status);
                for (name, value) in fields {
                    answer = answer.header(name, value);
                }
                answer.body(Full::new(Bytes::from(text))).unwrap()
            }
        });
        Self { app, asked }
    }

    pub(super) fn url(&self) -> String {
        format!("http://{}", self.app.address)
    }

    pub(super) fn last(&self) -> Value {
        self.asked.lock().unwrap().last().unwrap().clone()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn forward_auth_asks_and_does_as_it_is_told() {
    let judge = Judge::new(|question| match question["headers"]["authorization"].as_str() {
        Some("good") => (204, vec![("x-user", "ann"), ("x-other", "1")], String::new()),
        Some("elsewhere") => (302, vec![("location", "/login"), ("x-why", "2")], "moved".into()),
        _ => (403, vec![("x-why", "3"), ("set-cookie", "a=1"), ("set-cookie", "b=2")], "no".into()),
    });
    let dead = format!("http://127.0.0.1:{}/", free_port());
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let silent_url = format!("http://{}/", silent.local_addr().unwrap());
    let https = silent_url.replace("http:", "https:");
    let check = format!("{}/check?own=1", judge.url());
    let with = |config: Value| json!({ "forward-auth": config });
    let edge = Edge::new(
        &[
            (
                "/get",
                with(json!({
                    "uri": check, "request_headers": ["Authorization", "X-Forwarded-Method", "Host"],
                    "extra_headers": { "X-Way": "$request_method $uri", "X-Fixed": "7" },
                    "upstream_headers": ["X-User", "X-Role"], "client_headers": ["Location", "Set-Cookie"],
                    "keepalive_pool": 1, "keepalive_timeout": 5000, "timeout": 20000, "ssl_verify": false,
                })),
            ),
            (
                "/post",
                with(json!({ "uri": check, "request_method": "POST", "max_req_body_size": 100,
                "request_headers": ["Authorization"], "keepalive": false })),
            ),
            ("/dead", with(json!({ "uri": dead }))),
            ("/late", with(json!({ "uri": silent_url, "timeout": 50, "status_on_error": 503 }))),
            ("/untrusted", with(json!({ "uri": https, "timeout": 50, "ssl_verify": true }))),
            (
                "/degraded",
                with(
                    json!({ "uri": dead, "allow_degradation": true, "upstream_headers": ["X-User"] }),
                ),
            ),
        ],
        &json!({}),
    );
    let forged = ("x-user", "root");
    let answer = edge
        .get(
            "/get?a=b",
            &[
                ("authorization", "good"),
                forged,
                ("x-role", "root"),
                ("x-other", "2"),
                ("host", "Shop.example:80"),
            ],
        )
        .await;
    assert_eq!(answer.seen("x-user").as_deref(), Some("ann"));
    assert_eq!(answer.seen("x-role"), None, "nobody said it, so nobody may");
    assert_eq!(answer.seen("x-other").as_deref(), Some("2"), "not asked for");
    let asked = judge.last();
    assert_eq!((&asked["method"], &asked["path"]), (&json!("GET"), &json!("/check?own=1")));
    for (name, value) in [
        ("x-forwarded-proto", "http"),
        ("x-forwarded-method", "GET"),
        ("x-forwarded-host", "shop.example"),
        ("x-forwarded-uri", "/get?a=b"),
        ("x-forwarded-for", "127.0.0.1"),
        ("authorization", "good"),
        ("x-way", "GET /get"),
        ("x-fixed", "7"),
        ("host", "Shop.example:80"),
    ] {
        assert_eq!(asked["headers"][name], value, "{name}");
    }
    assert_eq!(asked["headers"].get("x-role"), None);

    let refused = edge.get("/get", &[("authorization", "elsewhere")]).await;
    assert_eq!((refused.status, refused.header("location")), (302, Some("/login")));
    assert_eq!((refused.header("x-why"), refused.text()), (None, "moved".into()));
    let refused = edge.get("/get", &[]).await;
    assert_eq!((refused.status, refused.text()), (403, "no".into()));
    assert_eq!(refused.headers.get_all("set-cookie").iter().count(), 2);
    assert_eq!(edge.app.requests(), 1);

    let body = "x".repeat(100);
    let answer = edge.ask("POST", "/post", &[("authorization", "good")], &body).await;
    assert_eq!((answer.status, &answer.json()["body"]), (200, &json!(body)), "both get it");
    let asked = judge.last();
    assert_eq!((&asked["method"], &asked["body"]), (&json!("POST"), &json!(body)));
    let refused =
        edge.ask("POST", "/post", &[("authorization", "good")], &format!("{body}x")).await;
    assert_eq!(refused.status, 413);
    for (path, status) in [("/dead", 403), ("/late", 503), ("/untrusted", 403)] {
        let refused = edge.get(path, &[("authorization", "good")]).await;
        assert_eq!((refused.status, refused.text()), (status, String::new()), "{path}");
    }
    let answer = edge.get("/degraded", &[forged]).await;
    assert_eq!(answer.seen("x-user"), None, "what nobody has said is not the caller's to say");
}

#[tokio::test(flavor = "multi_thread")]
async fn opa_is_told_of_the_request_and_its_decision_holds() {
    let judge = Judge::new(|question| {
        let input: Value = serde_json::from_str(question["body"].as_str().unwrap()).unwrap();
        let input = &input["input"];
        let result = match input["request"]["headers"]["x-case"].as_str() {
            Some("allow") => json!({ "allow": true, "headers": { "x-user": "ann", "x-more": 1 } }),
            Some("deny") => json!({ "allow": false }),
            Some("told") => json!({ "allow": false, "status_code": 302, "reason": { "why": 1 },
                "headers": { "Location": "/login" } }),
            Some("text") => json!({ "allow": false, "reason": "not today" }),
            Some("split") => json!({ "allow": false, "headers": { "x-a": "1\r\nx-b: 2" } }),
            Some("none") => return (200, vec![], "{}".into()),
            Some("broken") => return (200, vec![], "<html>".into()),
            _ => return (500, vec![], String::new()),
        };
        (200, vec![("content-type", "application/json")], json!({ "result": result }).to_string())
    });
    let dead = format!("http://127.0.0.1:{}", free_port());
    let edge = Edge::new(
        &[
            (
                "/opa/*",
                json!({ "key-auth": {}, "opa": {
                "host": judge.url(), "policy": "shop/http", "with_route": true, "with_service": true,
                "with_consumer": true, "send_headers_upstream": ["X-User", "X-Gone"],
                "timeout": 20000, "keepalive": true, "keepalive_pool": 2, "keepalive_timeout": 1000,
                "ssl_verify": false,
            } }),
            ),
            ("/plain", json!({ "opa": { "host": format!("{}/", judge.url()), "policy": "p" } })),
            ("/dead", json!({ "opa": { "host": dead, "policy": "p" } })),
        ],
        &json!({ "consumers": [
            { "username": "ann", "labels": { "team": "ops" }, "plugins": { "key-auth": { "key": "s3cret" } } },
        ] }),
    );
    let key = ("apikey", "s3cret");
    let ask = async |case: &str| {
        edge.get("/opa/a?x=1&y&x=2", &[key, ("x-case", case), ("x-gone", "1"), ("x-user", "root")])
            .await
    };
    let allowed = ask("allow").await;
    assert_eq!(allowed.seen("x-user").as_deref(), Some("ann"));
    assert_eq!((allowed.seen("x-gone"), allowed.seen("x-more")), (None, None));
    let asked = judge.last();
    assert_eq!((&asked["method"], &asked["path"]), (&json!("POST"), &json!("/v1/data/shop/http")));
    let input: Value = serde_json::from_str(asked["body"].as_str().unwrap()).unwrap();
    let input = &input["input"];
    assert_eq!(input["type"], "http");
    let request = &input["request"];
    assert_eq!(request["query"], json!({ "x": ["1", "2"], "y": true }));
    for (name, value) in
        [("scheme", "http"), ("method", "GET"), ("host", "localhost"), ("path", "/opa/a")]
    {
        assert_eq!(request[name], value, "{name}");
    }
    assert!(request["port"].is_u64() && input["var"]["timestamp"].is_i64(), "{input}");
    assert_eq!(input["var"]["remote_addr"], "127.0.0.1");
    assert_eq!(
        (&input["route"]["id"], &input["route"]["plugins"]),
        (&json!("opa"), &json!(["key-auth", "opa"]))
    );
    assert_eq!(
        (&input["consumer"]["username"], &input["consumer"]["labels"]["team"]),
        (&json!("ann"), &json!("ops"))
    );
    assert_eq!(input["consumer"].to_string().matches("s3cret").count(), 0);

    let deny = ask("deny").await;
    assert_eq!((deny.status, deny.text()), (403, String::new()));
    let told = ask("told").await;
    assert_eq!(
        (told.status, told.header("location"), told.json()),
        (302, Some("/login"), json!({ "why": 1 }))
    );
    assert_eq!(ask("text").await.text(), "not today");
    let split = ask("split").await;
    assert_eq!((split.status, split.header("x-a"), split.header("x-b")), (403, None, None));
    for (case, status) in [("none", 503), ("broken", 503), ("other", 503)] {
        assert_eq!(ask(case).await.status, status, "{case}");
    }
    assert_eq!(edge.get("/dead", &[]).await.status, 403);
    assert_eq!(edge.get("/plain", &[("x-case", "allow")]).await.status, 200);
    assert_eq!(judge.last()["path"], "/v1/data/p");
    assert_eq!(judge.last()["body"].as_str().unwrap().matches("consumer").count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn wolf_rbac_is_asked_for_the_consumers_application() {
    let judge = Judge::new(|question| {
        let user = json!({ "id": 7, "username": "ann", "nickname": "An na" });
        let told = |ok: bool, reason: &str| {
            json!({ "ok": ok, "reason": reason, "data": { "userInfo": user } }).to_string()
        };
        match question["headers"]["x-rbac-token"].as_str() {
            Some("good") => (200, vec![], told(true, "")),
            Some("bad") => (401, vec![], told(false, "no permission to access")),
            Some("html") => (200, vec![], "<html>".into()),
            _ => (503, vec![], String::new()),
        }
    });
    let edge = Edge::new(
        &[("/a/*", json!({ "wolf-rbac": {} }))],
        &json!({ "consumers": [
            consumer("ann", "wolf-rbac", json!({ "appid": "shop", "server": judge.url(), "header_prefix": "X-W-", "ssl_verify": false })),
            consumer("bob", "wolf-rbac", json!({ "appid": "dead", "server": format!("http://127.0.0.1:{}", free_port()) })),
        ] }),
    );
    let good = "V1#shop#good";
    for (path, header) in [
        ("/a/b", ("authorization", good)),
        ("/a/b", ("x-rbac-token", good)),
        ("/a/b", ("cookie", "x-rbac-token=V1#shop#good")),
        ("/a/b?rbac_token=V1%23shop%23good", ("x-a", "1")),
    ] {
        let answer = edge.get(path, &[header, ("x-w-userid", "1")]).await;
        assert_eq!(answer.seen("x-consumer-username").as_deref(), Some("ann"), "{path}");
        for (name, value) in
            [("x-w-userid", "7"), ("x-w-username", "ann"), ("x-w-nickname", "An%20na")]
        {
            assert_eq!(answer.seen(name).as_deref(), Some(value));
            assert_eq!(answer.header(name), Some(value), "the caller is told as well");
        }
    }
    let asked = judge.last()["path"].as_str().unwrap().to_owned();
    assert_eq!(
        asked,
        "/wolf/rbac/access_check?appID=shop&resName=%2Fa%2Fb&action=GET&clientIP=127%2E0%2E0%2E1"
    );
    let failed = "request to wolf-server failed";
    for (token, status, message) in [
        ("", 401, "invalid rbac token: parse failed"),
        ("V1#shop", 401, "invalid rbac token: parse failed"),
        ("V2#shop#good", 401, "invalid rbac token: parse failed"),
        ("V1#nobody#good", 401, "Invalid appid in rbac token"),
        ("V1#../shop#good", 401, "Invalid appid in rbac token"),
        ("V1#shop#bad", 401, "no permission to access"),
        ("V1#shop#html", 500, "check permission failed! parse response json failed!"),
        ("V1#shop#fault", 500, failed),
        ("V1#dead#good", 500, failed),
    ] {
        let seen = edge.app.requests();
        let refused = edge.get("/a/b", &[("authorization", token)]).await;
        assert_eq!(refused.message(), (status, message.into()), "{token}");
        assert_eq!(edge.app.requests(), seen);
    }
    assert_eq!(
        edge.get("/a/b", &[]).await.message(),
        (401, "Missing rbac token in request".into())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn wolf_is_asked_for_a_token_a_password_and_a_user_through_public_api() {
    let judge = Judge::new(|question| {
        let user = json!({ "id": 7, "username": "ann" });
        let token = question["headers"]["x-rbac-token"].as_str().unwrap_or_default();
        let body: Value =
            serde_json::from_str(question["body"].as_str().unwrap()).unwrap_or_default();
        let told = match (question["method"].as_str().unwrap(), question["path"].as_str().unwrap())
        {
            ("POST", "/wolf/rbac/login.rest") if body["password"] == "secret" => {
                assert_eq!((&body["appID"], &body["username"]), (&json!("shop"), &json!("ann")));
                json!({ "ok": true, "data": { "token": "good", "userInfo": user } })
            }
            ("POST", "/wolf/rbac/login.rest") if body["password"] == "fault" => {
                return (503, vec![], String::new());
            }
            ("POST", "/wolf/rbac/change_pwd") if token == "good" && body["newPassword"] == "n" => {
                json!({ "ok": true })
            }
            ("GET", "/wolf/rbac/user_info") if token == "good" => {
                json!({ "ok": true, "data": { "userInfo": user } })
            }
            _ => json!({ "ok": false, "reason": "ERR_SOMETHING" }),
        };
        (200, vec![], told.to_string())
    });
    let edge = Edge::new(
        &[
            ("/apisix/plugin/wolf-rbac/*", json!({ "public-api": {} })),
            ("/login", json!({ "public-api": { "uri": "/apisix/plugin/wolf-rbac/login" } })),
        ],
        &json!({ "consumers": [
            consumer("ann", "wolf-rbac", json!({ "appid": "shop", "server": judge.url() })),
            consumer("bob", "wolf-rbac", json!({ "appid": "dead", "server": format!("http://127.0.0.1:{}", free_port()) })),
        ] }),
    );
    let api = |name: &str| format!("/apisix/plugin/wolf-rbac/{name}");
    let ask = async |method: &str, path: &str, headers: &[(&str, &str)], body: &str| {
        let answer = edge.ask(method, path, headers, body).await;
        (answer.status, answer.text())
    };
    let told = |status: u16, body: Value| (status, format!("{body}\n"));
    let message = |status: u16, message: &str| told(status, json!({ "message": message }));
    let failed = "request to wolf-server failed!";
    let json_type: &[_] = &[("content-type", "application/json")];
    let user = json!({ "id": 7, "username": "ann" });
    let good = told(200, json!({ "rbac_token": "V1#shop#good", "user_info": user }));
    for path in [&*api("login"), "/login"] {
        let json_body = r#"{"appid": "shop", "username": "ann", "password": "secret"}"#;
        assert_eq!(ask("POST", path, json_type, json_body).await, good);
        let form = "appid=shop&username=ann&password=secret";
        assert_eq!(ask("POST", path, &[], form).await, good);
    }
    for (body, expected) in [
        ("{", message(400, "invalid request")),
        ("[]", message(400, "invalid request")),
        ("{}", message(400, "appid is missing")),
        (r#"{"appid": 1}"#, message(400, "appid is missing")),
        (r#"{"appid": "nobody"}"#, message(400, "appid not found")),
        // Nobody learns what of it was wrong.
        (r#"{"appid": "shop", "username": "ann", "password": "wrong"}"#, message(200, failed)),
        (r#"{"appid": "shop", "username": "ann", "password": "fault"}"#, message(500, failed)),
        (r#"{"appid": "dead", "username": "ann", "password": "secret"}"#, message(500, failed)),
    ] {
        assert_eq!(ask("POST", &api("login"), json_type, body).await, expected, "{body}");
    }
    let huge = format!("appid=shop&password={}", "x".repeat(70_000));
    assert_eq!(ask("POST", &api("login"), &[], &huge).await.0, 413);
    let token = ("x-rbac-token", "V1#shop#good");
    let changed = message(200, "success to change password");
    let body = r#"{"oldPassword": "secret", "newPassword": "n"}"#;
    let with_type = [token, json_type[0]];
    assert_eq!(ask("PUT", &api("change_pwd"), &with_type, body).await, changed);
    assert_eq!(ask("PUT", &api("change_pwd"), &with_type, "{}").await, message(200, failed));
    assert_eq!(
        ask("GET", &api("user_info"), &[token], "").await,
        told(200, json!({ "user_info": user }))
    );
    for (value, expected) in [
        (None, message(401, "Missing rbac token in request")),
        (Some("V1#shop"), message(401, "invalid rbac token: parse failed")),
        (Some("V1#nobody#good"), message(400, "appid not found")),
        (Some("V1#shop#bad"), message(200, failed)),
    ] {
        let headers: Vec<_> = value.map(|value| ("x-rbac-token", value)).into_iter().collect();
        assert_eq!(ask("GET", &api("user_info"), &headers, "").await, expected, "{value:?}");
    }
    // Nothing else is there, nor by another method.
    for (method, name) in
        [("GET", "login"), ("POST", "user_info"), ("POST", "change_pwd"), ("GET", "other")]
    {
        assert_eq!(ask(method, &api(name), &[token], "").await.0, 404, "{method} {name}");
    }
    assert_eq!(edge.app.requests(), 0);
}
