//! `cas-auth`, `authz-casdoor`, `dingtalk-auth` and `feishu-auth`: people come back with a code or a ticket, which a server over
//! real HTTP is asked about.

use serde_json::{Value, json};

use super::asking::{Judge, Told};
use super::identity_provider::arguments;
use super::openid_login::Browser;
use super::{Edge, base64};
use crate::world::{Answer, free_port};

const SECRET: &str = "0123456789abcdef0123456789abcdef";

fn with(mut config: Value, more: Value) -> Value {
    config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    config
}

/// The path and the arguments of the place that an answer sends to.
fn sent(answer: &Answer) -> (String, std::collections::BTreeMap<String, String>) {
    assert_eq!(answer.status, 302, "{}", answer.text());
    let location = answer.header("location").unwrap();
    let (path, query) = location.split_once('?').unwrap_or((location, ""));
    (path.to_owned(), arguments(query))
}

fn told(answer: &Answer) -> Value {
    use base64::Engine as _;
    let text = answer.seen("x-userinfo").unwrap();
    let engine = base64::engine::general_purpose::STANDARD;
    serde_json::from_slice(&engine.decode(text).unwrap()).unwrap()
}

fn json_answer(value: Value) -> Told {
    (200, vec![("content-type", "application/json")], value.to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn cas_logs_people_in_by_tickets_and_out_by_them() {
    let cas = Judge::new(|question| {
        let path = question["path"].as_str().unwrap();
        let asked = arguments(path.split_once('?').unwrap_or(("", "")).1);
        let user = match asked.get("ticket").map(String::as_str) {
            // A ticket is for the service that it was given for.
            Some("ST-1" | "ST-2") if asked["service"].contains("/cas/back?state=") => "ann",
            Some("ST-500") => return (500, vec![], String::new()),
            _ => {
                let no = "<cas:serviceResponse xmlns:cas='http://www.yale.edu/tp/cas'><cas:authenticationFailure code='INVALID_TICKET'>no</cas:authenticationFailure></cas:serviceResponse>";
                return (200, vec![], no.into());
            }
        };
        (
            200,
            vec![],
            format!(
                "<cas:serviceResponse xmlns:cas='http://www.yale.edu/tp/cas'><cas:authenticationSuccess><cas:user>{user}</cas:user></cas:authenticationSuccess></cas:serviceResponse>"
            ),
        )
    });
    let config = json!({ "idp_uri": format!("{}/sso/", cas.url()), "cas_callback_uri": "/cas/back",
        "logout_uri": "/cas/out", "cookie": { "secret": SECRET, "samesite": "Lax", "secure": false },
        "max_req_body_size": 2000 });
    let everywhere = with(
        config.clone(),
        json!({ "cas_callback_uri": "/none/back", "logout_uri": "/none/out",
            "cookie": { "secret": SECRET, "samesite": "None" } }),
    );
    let dead =
        with(config.clone(), json!({ "idp_uri": format!("http://127.0.0.1:{}", free_port()) }));
    let edge = Edge::new(
        &[
            ("/cas/*", json!({ "cas-auth": config })),
            ("/none/*", json!({ "cas-auth": everywhere })),
            (
                "/dead/*",
                json!({ "cas-auth": with(dead, json!({ "cas_callback_uri": "/dead/back" })) }),
            ),
        ],
        &json!({}),
    );
    let login = async |browser: &mut Browser, ticket: &str| {
        let away = browser.get(&edge, "/cas/cart?a=b").await;
        let (path, asked) = sent(&away);
        assert_eq!(path, format!("{}/sso/login", cas.url()));
        let service = &asked["service"];
        let back = &service[service.find("/cas/back").unwrap()..];
        format!("{back}&ticket={ticket}")
    };
    let mut browser = Browser::default();
    let back = login(&mut browser, "ST-1").await;
    let line = browser.get(&edge, "/cas/cart?a=b").await;
    let line = line.header("set-cookie").unwrap();
    assert!(line.contains("; Path=/; HttpOnly; SameSite=Lax; Max-Age=600"), "{line}");
    // The second attempt has taken the place of the first one.
    assert_eq!(browser.get(&edge, &back).await.message(), (401, "invalid callback state".into()));
    let back = login(&mut browser, "ST-1").await;
    for (what, path) in [
        ("another state", back.replacen("state=", "state=x", 1)),
        ("no state", "/cas/back?ticket=ST-1".into()),
        ("two states", format!("{back}&state=x")),
    ] {
        let mut browser = browser.clone();
        let refused = browser.get(&edge, &path).await;
        assert_eq!(refused.message(), (401, "invalid callback state".into()), "{what}");
    }
    let elsewhere = Browser::default().get(&edge, &back).await;
    assert_eq!(elsewhere.message(), (401, "invalid callback state".into()), "another browser");
    for (ticket, status) in [("ST-9", 401), ("", 401), ("ST-500", 503)] {
        let refused = browser.clone().get(&edge, &back.replace("ST-1", ticket)).await;
        assert_eq!(refused.status, status, "{ticket}: {}", refused.text());
    }
    let home = browser.get(&edge, &back).await;
    assert_eq!((home.status, home.header("location")), (302, Some("/cas/cart?a=b")));
    let asked = cas.last()["path"].as_str().unwrap().to_owned();
    assert!(asked.starts_with("/sso/serviceValidate?ticket=ST-1&service=http%3A%2F%2F"), "{asked}");
    let inside = browser.get(&edge, "/cas/cart").await;
    assert_eq!((inside.status, inside.seen("cookie")), (200, None));
    assert_eq!(browser.get(&edge, &back).await.status, 401, "the state is good for once");

    // The server ends the session by its ticket; another ticket ends nothing.
    let end = async |body: &str| edge.ask("POST", "/cas/back", &[], body).await;
    let logout = |ticket: &str| {
        format!(
            "<samlp:LogoutRequest><samlp:SessionIndex>{ticket}</samlp:SessionIndex></samlp:LogoutRequest>"
        )
    };
    assert_eq!(end(&logout("ST-9")).await.status, 200);
    assert_eq!(browser.get(&edge, "/cas/cart").await.status, 200);
    assert_eq!(end("nothing").await.status, 400);
    assert_eq!(end(&"x".repeat(3000)).await.status, 413);
    let form =
        percent_encoding::utf8_percent_encode(&logout("ST-1"), percent_encoding::NON_ALPHANUMERIC)
            .to_string();
    assert_eq!(end(&format!("logoutRequest={form}")).await.status, 200);
    assert_eq!(browser.get(&edge, "/cas/cart").await.status, 302);

    let back = login(&mut browser, "ST-2").await;
    assert_eq!(browser.get(&edge, &back).await.status, 302);
    let stolen = browser.clone();
    let out = browser.get(&edge, "/cas/out").await;
    assert_eq!(out.header("location"), Some(&*format!("{}/sso/logout", cas.url())));
    assert!(!browser.0.keys().any(|name| name.starts_with("CAS_SESSION")), "{:?}", browser.0);
    assert_eq!(stolen.clone().get(&edge, "/cas/cart").await.status, 302, "it is over here as well");
    let mut changed = stolen;
    for value in changed.0.values_mut() {
        value.push('A');
    }
    assert_eq!(changed.get(&edge, "/cas/cart").await.status, 302);
    let away = Browser::default().get(&edge, "/none/x").await;
    assert!(away.header("set-cookie").unwrap().contains("SameSite=None; Secure; Max-Age=600"));
    let mut browser = Browser::default();
    let (_, asked) = sent(&browser.get(&edge, "/dead/x").await);
    let service = &asked["service"];
    let back = format!("{}&ticket=ST-1", &service[service.find("/dead/back").unwrap()..]);
    assert_eq!(browser.get(&edge, &back).await.status, 503);
}

#[tokio::test(flavor = "multi_thread")]
async fn casdoor_logs_people_in() {
    let casdoor = Judge::new(|question| {
        let form = arguments(question["body"].as_str().unwrap());
        assert_eq!(question["path"], "/api/login/oauth/access_token");
        assert_eq!((&*form["client_id"], &*form["client_secret"]), ("shop", "s3cret&1"));
        assert_eq!(form["grant_type"], "authorization_code");
        match &*form["code"] {
            "good" => json_answer(json!({ "access_token": "t", "expires_in": 600 })),
            "dead" => json_answer(json!({ "access_token": "t", "expires_in": 0 })),
            "broken" => (500, vec![], String::new()),
            _ => json_answer(json!({ "access_token": "error: invalid code" })),
        }
    });
    let config = json!({ "endpoint_addr": casdoor.url(), "client_id": "shop", "client_secret": "s3cret&1",
        "callback_url": "http://shop.example/app/back" });
    let other = with(config.clone(), json!({ "client_id": "other" }));
    let edge = Edge::new(
        &[
            ("/app/*", json!({ "authz-casdoor": config })),
            ("/other/*", json!({ "authz-casdoor": other })),
        ],
        &json!({}),
    );
    let mut browser = Browser::default();
    let away = browser.get(&edge, "/app/cart?a=b").await;
    let (path, asked) = sent(&away);
    assert_eq!(path, format!("{}/login/oauth/authorize", casdoor.url()));
    for (name, value) in [
        ("response_type", "code"),
        ("scope", "read"),
        ("client_id", "shop"),
        ("redirect_uri", "http://shop.example/app/back"),
    ] {
        assert_eq!(asked[name], value, "{name}");
    }
    let state = &asked["state"];
    let back = |code: &str, state: &str| format!("/app/back?code={code}&state={state}");
    for (what, path) in [
        ("another state", back("good", "x")),
        ("no state", "/app/back?code=good".into()),
        ("two states", format!("{}&state={state}", back("good", state))),
        ("no code", format!("/app/back?state={state}")),
        ("a bad code", back("bad", state)),
        ("a token that is dead", back("dead", state)),
    ] {
        let refused = browser.clone().get(&edge, &path).await;
        assert_eq!(refused.status, 400, "{what}");
        assert!(refused.text().contains("Invalid code or state"), "{what}: {}", refused.text());
    }
    assert_eq!(Browser::default().get(&edge, &back("good", state)).await.status, 400);
    assert_eq!(browser.clone().get(&edge, &back("broken", state)).await.status, 503);
    let home = browser.get(&edge, &back("good", state)).await;
    assert_eq!((home.status, home.header("location")), (302, Some("/app/cart?a=b")));
    let lines: Vec<_> =
        home.headers.get_all("set-cookie").iter().map(|line| line.to_str().unwrap()).collect();
    assert!(lines[1].contains("HttpOnly; SameSite=Lax; Max-Age=600"), "{lines:?}");
    let inside = browser.get(&edge, "/app/cart").await;
    assert_eq!((inside.status, inside.seen("cookie")), (200, None));
    assert_eq!(browser.get(&edge, &back("good", state)).await.status, 400, "good for once");
    assert_eq!(browser.get(&edge, "/other/x").await.status, 302, "another client's login");
    let mut changed = browser.clone();
    for value in changed.0.values_mut() {
        value.push('A');
    }
    assert_eq!(changed.get(&edge, "/app/cart").await.status, 302);
    // Under another client's name it is none, either.
    let is_session = |(name, _): &(&String, &String)| name.starts_with("casdoor_session");
    let (name, value) = browser.0.iter().find(is_session).unwrap();
    let others: Vec<String> = Browser::default()
        .get(&edge, "/other/x")
        .await
        .headers
        .get_all("set-cookie")
        .iter()
        .map(|line| line.to_str().unwrap().split('=').next().unwrap().to_owned())
        .collect();
    let moved = others[0].replace("casdoor_login", "casdoor_session");
    assert_ne!(&moved, name);
    let mut moved = Browser([(moved, value.clone())].into());
    assert_eq!(moved.get(&edge, "/other/x").await.status, 302);
}

#[tokio::test(flavor = "multi_thread")]
async fn dingtalk_says_whom_a_code_stands_for() {
    let dingtalk = Judge::new(|question| {
        let body: Value = serde_json::from_str(question["body"].as_str().unwrap()).unwrap();
        match question["path"].as_str().unwrap() {
            "/token" => {
                assert_eq!(body, json!({ "appKey": "ding", "appSecret": "s3cret" }));
                json_answer(json!({ "accessToken": "t&1", "expireIn": 7200 }))
            }
            "/user?a=b&access_token=t%261" | "/user?access_token=t%261" => {
                match body["code"].as_str().unwrap() {
                    "good" => json_answer(json!({ "errcode": 0, "result": { "userid": "ann" } })),
                    "expired" => json_answer(json!({ "errcode": 42001 })),
                    "broken" => (500, vec![], String::new()),
                    _ => json_answer(json!({ "errcode": 40078, "errmsg": "no" })),
                }
            }
            _ => (403, vec![], "{}".into()),
        }
    });
    let at = |path: &str| format!("{}{path}", dingtalk.url());
    let config = json!({ "app_key": "ding", "app_secret": "s3cret", "secret": "01234567",
        "redirect_uri": "https://login.dingtalk.com/oauth2/auth", "access_token_url": at("/token"),
        "userinfo_url": at("/user?a=b"), "timeout": 20_000, "ssl_verify": false });
    let rotated = with(
        config.clone(),
        json!({ "secret": "another-secret", "secret_fallbacks": ["01234567"], "code_header": "X-Code",
            "code_query": "ticket", "set_userinfo_header": false, "cookie_expires_in": 7,
            "userinfo_url": at("/user") }),
    );
    let strange = with(config.clone(), json!({ "secret": "another-secret" }));
    let wrong = with(config.clone(), json!({ "access_token_url": at("/nothing") }));
    let dead = format!("http://127.0.0.1:{}", free_port());
    let dead = with(config.clone(), json!({ "access_token_url": dead, "timeout": 5000 }));
    let routes: Vec<(&str, Value)> = [
        ("/plain", config),
        ("/rotated", rotated),
        ("/strange", strange),
        ("/wrong", wrong),
        ("/dead", dead),
    ]
    .into_iter()
    .map(|(path, config)| (path, json!({ "dingtalk-auth": config })))
    .collect();
    let edge = Edge::new(&routes, &json!({}));
    let mut browser = Browser::default();
    let away = browser.get(&edge, "/plain").await;
    assert_eq!(sent(&away).0, "https://login.dingtalk.com/oauth2/auth");
    let code = [("x-dingtalk-code", "good")];
    let inside = browser.ask(&edge, "GET", "/plain", &code).await;
    assert_eq!(told(&inside), json!({ "userid": "ann" }));
    assert_eq!(inside.seen("x-dingtalk-code"), None, "the code goes no further");
    let line = inside.header("set-cookie").unwrap();
    assert!(line.starts_with("dingtalk_session=") && line.ends_with("; Max-Age=86400"), "{line}");
    let known = browser.get(&edge, "/plain").await;
    assert_eq!((told(&known)["userid"].as_str(), known.seen("cookie")), (Some("ann"), None));
    // By the query; our own token is asked for once.
    let inside = Browser::default().get(&edge, "/plain?code=good&b=c").await;
    assert_eq!(inside.json()["path"], "/plain?b=c");
    let asked = |path: &str| {
        let asked = dingtalk.asked.lock().unwrap();
        asked.iter().filter(|one| one["path"] == path).count()
    };
    assert_eq!((asked("/token"), asked("/user?a=b&access_token=t%261")), (1, 2));
    for (path, status) in [
        ("/plain?code=bad", 401),
        ("/plain?code=", 302),
        ("/plain?code=broken", 503),
        ("/plain?code=expired", 503),
        ("/wrong?code=good", 500),
        ("/dead?code=good", 503),
    ] {
        let refused = Browser::default().get(&edge, path).await;
        assert_eq!(refused.status, status, "{path}: {}", refused.text());
    }
    assert_eq!(asked("/token"), 1);
    assert_eq!(Browser::default().get(&edge, "/plain?code=good").await.status, 200);
    assert_eq!(asked("/token"), 2, "a token that is taken no longer is asked for again");
    // A secret that was, and one that never was.
    assert_eq!(browser.get(&edge, "/rotated").await.seen("x-userinfo"), None);
    assert_eq!(browser.get(&edge, "/strange").await.status, 302);
    let own = Browser::default().ask(&edge, "GET", "/rotated", &[("x-code", "good")]).await;
    assert!(own.header("set-cookie").unwrap().ends_with("; Max-Age=7"));
    assert_eq!(Browser::default().get(&edge, "/rotated?ticket=good").await.status, 200);
    let mut forged = Browser([("dingtalk_session".into(), base64(r#"{"userid":"root"}"#))].into());
    assert_eq!(forged.get(&edge, "/plain").await.status, 302);
}

#[tokio::test(flavor = "multi_thread")]
async fn feishu_says_whom_a_code_stands_for() {
    let feishu = Judge::new(|question| match question["path"].as_str().unwrap() {
        "/token" => {
            let body: Value = serde_json::from_str(question["body"].as_str().unwrap()).unwrap();
            assert_eq!(
                (&body["client_id"], &body["client_secret"]),
                (&json!("cli"), &json!("s3cret"))
            );
            assert_eq!(body["grant_type"], "authorization_code");
            assert_eq!(body["redirect_uri"], "https://shop.example/");
            match body["code"].as_str().unwrap() {
                "broken" => (500, vec![], String::new()),
                "bad" => {
                    (400, vec![], json!({ "code": 20003, "error": "invalid_grant" }).to_string())
                }
                code => json_answer(json!({ "code": 0, "access_token": format!("t-{code}") })),
            }
        }
        _ => match question["headers"]["authorization"].as_str().unwrap() {
            "Bearer t-good" => json_answer(json!({ "code": 0, "data": { "open_id": "ann" } })),
            "Bearer t-odd" => (502, vec![], "gone".into()),
            _ => json_answer(json!({ "code": 20005, "msg": "no" })),
        },
    });
    let config = json!({ "app_id": "cli", "app_secret": "s3cret", "secret": "01234567",
        "redirect_uri": "https://accounts.feishu.cn/authorize?a=b", "auth_redirect_uri": "https://shop.example/",
        "access_token_url": format!("{}/token", feishu.url()), "userinfo_url": format!("{}/user", feishu.url()),
        "timeout": 20_000, "ssl_verify": false });
    let rotated = with(
        config.clone(),
        json!({ "secret": "another-secret", "secret_fallbacks": ["01234567"], "code_header": "X-Code",
            "code_query": "ticket", "set_userinfo_header": false, "cookie_expires_in": 7 }),
    );
    let dead = format!("http://127.0.0.1:{}", free_port());
    let dead = with(config.clone(), json!({ "access_token_url": dead, "timeout": 5000 }));
    let edge = Edge::new(
        &[
            ("/plain", json!({ "feishu-auth": config })),
            ("/rotated", json!({ "feishu-auth": rotated })),
            ("/dead", json!({ "feishu-auth": dead })),
        ],
        &json!({}),
    );
    let mut browser = Browser::default();
    let away = browser.get(&edge, "/plain").await;
    assert_eq!(away.header("location"), Some("https://accounts.feishu.cn/authorize?a=b"));
    let code = [("x-feishu-code", "good")];
    let inside = browser.ask(&edge, "GET", "/plain", &code).await;
    assert_eq!((told(&inside), inside.seen("x-feishu-code")), (json!({ "open_id": "ann" }), None));
    let line = inside.header("set-cookie").unwrap();
    assert!(line.starts_with("feishu_session=") && line.ends_with("; Max-Age=86400"), "{line}");
    let asked = feishu.asked.lock().unwrap().len();
    assert_eq!(told(&browser.get(&edge, "/plain").await), json!({ "open_id": "ann" }));
    assert_eq!(browser.get(&edge, "/rotated").await.seen("x-userinfo"), None);
    assert_eq!(feishu.asked.lock().unwrap().len(), asked, "nobody is asked again");
    for (path, status) in [
        ("/plain?code=bad", 401),
        ("/plain?code=other", 401),
        ("/plain?code=broken", 500),
        ("/plain?code=odd", 500),
        ("/dead?code=good", 503),
        ("/rotated?code=good", 302),
        ("/rotated?ticket=good", 200),
    ] {
        let answer = Browser::default().get(&edge, path).await;
        assert_eq!(answer.status, status, "{path}: {}", answer.text());
    }
    let own = Browser::default().ask(&edge, "GET", "/rotated", &[("x-code", "good")]).await;
    assert!(own.header("set-cookie").unwrap().ends_with("; Max-Age=7"));
}
