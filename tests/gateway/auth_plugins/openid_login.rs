//! `openid-connect`: people in browsers log in, stay and leave; and whoever wants into somebody else's session does not get there.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::Edge;
use super::identity_provider::{IdentityProvider, SECRET, arguments};
use super::jwt_auth::keys;
use crate::redis_server::RedisServer;
use crate::world::{Answer, eventually_async, get};

/// A browser: it keeps the cookies that it is given.
#[derive(Clone, Default)]
pub(super) struct Browser(pub(super) BTreeMap<String, String>);

impl Browser {
    pub(super) async fn get(&mut self, edge: &Edge, path: &str) -> Answer {
        self.ask(edge, "GET", path, &[]).await
    }

    pub(super) async fn ask(
        &mut self,
        edge: &Edge,
        method: &str,
        path: &str,
        more: &[(&str, &str)],
    ) -> Answer {
        let pair = |(name, value): (&String, &String)| format!("{name}={value}");
        let cookies = self.0.iter().map(pair).collect::<Vec<_>>().join("; ");
        let mut headers = vec![("x-id-token", "root"), ("x-userinfo", "root")];
        if !cookies.is_empty() {
            headers.push(("cookie", &*cookies));
        }
        headers.extend_from_slice(more);
        let answer = edge.ask(method, path, &headers, "").await;
        self.keep(&answer);
        answer
    }

    fn keep(&mut self, answer: &Answer) {
        for line in answer.headers.get_all("set-cookie") {
            let line = line.to_str().unwrap();
            let (name, value) = line.split(';').next().unwrap().split_once('=').unwrap();
            match line.ends_with("Max-Age=0") {
                true => self.0.remove(name),
                false => self.0.insert(name.to_owned(), value.to_owned()),
            };
        }
    }

    /// Goes where it is sent, to the provider and back: the path of the callback with its query.
    async fn sent_back(&mut self, edge: &Edge, provider: &IdentityProvider, path: &str) -> String {
        let away = self.get(edge, path).await;
        assert_eq!(away.status, 302, "{}", away.text());
        back(provider, &away).await
    }

    async fn log_in(&mut self, edge: &Edge, provider: &IdentityProvider, path: &str) -> Answer {
        let back = self.sent_back(edge, provider, path).await;
        self.get(edge, &back).await
    }
}

/// What the provider makes of a redirect to it: the callback.
async fn back(provider: &IdentityProvider, away: &Answer) -> String {
    let to = away.header("location").unwrap();
    let path = to.strip_prefix(&provider.issuer()).unwrap_or_else(|| panic!("{to}"));
    let answer = get(provider.app.address, path).await;
    let to = answer.header("location").unwrap().to_owned();
    let (_, rest) = to.split_once("://").unwrap();
    rest[rest.find('/').unwrap()..].to_owned()
}

/// The arguments of the place that an answer sends to.
fn sent(answer: &Answer) -> BTreeMap<String, String> {
    let location = answer.header("location").unwrap_or_else(|| panic!("{answer:?}"));
    arguments(location.split_once('?').unwrap_or(("", "")).1)
}

/// Claims as the application reads them.
fn told(answer: &Answer, header: &str) -> Value {
    let text = answer.seen(header).unwrap_or_else(|| panic!("no {header}"));
    serde_json::from_slice(&STANDARD.decode(text).unwrap()).unwrap()
}

fn oidc(provider: &IdentityProvider, more: Value) -> Value {
    let mut config = json!({ "client_id": "shop", "client_secret": SECRET, "timeout": 20,
        "discovery": format!("{}/d", provider.issuer()),
        "session": { "secret": "0123456789abcdef" } });
    config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    json!({ "openid-connect": config })
}

fn session(more: Value) -> Value {
    let mut session = json!({ "secret": "0123456789abcdef" });
    session.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    json!({ "session": session })
}

#[tokio::test(flavor = "multi_thread")]
async fn people_log_in_stay_and_leave() {
    let provider = IdentityProvider::new();
    let edge = Edge::new(
        &[
            (
                "/app/*",
                oidc(
                    &provider,
                    json!({
                        "redirect_uri": "http://shop.example/app/back", "use_pkce": true, "use_nonce": true,
                        "scope": "openid email", "logout_path": "/app/logout", "revoke_tokens_on_logout": true,
                        "authorization_params": { "login_hint": "a b&c", "max_age": 60, "debug": true },
                        "post_logout_redirect_uri": "http://shop.example/bye", "set_raw_id_token_header": true,
                        "set_refresh_token_header": true, "token_endpoint_auth_method": "client_secret_post",
                        "jwt_verification_cache_ignore": true, "cache_segment": "a", "force_reauthorize": false,
                        "session": { "secret": "0123456789abcdef", "cookie_name": "s", "cookie_path": "/app",
                            "cookie_domain": "shop.example", "cookie_secure": true, "cookie_same_site": "Lax",
                            "cookie_http_only": true, "storage": "cookie", "idling_timeout": 600 },
                    }),
                ),
            ),
            ("/deny", oidc(&provider, json!({ "unauth_action": "deny", "realm": "shop" }))),
            ("/pass", oidc(&provider, json!({ "unauth_action": "pass" }))),
            ("/both", oidc(&provider, json!({ "use_jwks": true }))),
            (
                "/quiet/*",
                oidc(
                    &provider,
                    json!({ "discovery": format!("{}/bare", provider.issuer()), "logout_path": "/quiet/out",
                        "set_access_token_header": false, "set_id_token_header": false, "set_userinfo_header": false }),
                ),
            ),
            (
                "/inside/*",
                oidc(
                    &provider,
                    json!({ "access_token_in_authorization_header": true, "redirect_uri": "/inside/back" }),
                ),
            ),
        ],
        &json!({}),
    );
    let mut browser = Browser::default();
    let away = browser.get(&edge, "/app/cart?id=1").await;
    let asked = sent(&away);
    for (name, value) in [
        ("tenant", "1"),
        ("client_id", "shop"),
        ("response_type", "code"),
        ("scope", "openid email"),
        ("redirect_uri", "http://shop.example/app/back"),
        ("login_hint", "a b&c"),
        ("max_age", "60"),
        ("debug", "true"),
        ("code_challenge_method", "S256"),
    ] {
        assert_eq!(asked[name], value, "{name}");
    }
    let line = away.header("set-cookie").unwrap();
    let attributes = "; Path=/app; Domain=shop.example; HttpOnly; SameSite=Lax; Secure";
    assert!(line.starts_with("s_login=") && line.ends_with(&format!("{attributes}; Max-Age=600")));
    assert_eq!(away.header("cache-control"), Some("no-store"));
    let there = back(&provider, &away).await;
    let home = browser.get(&edge, &there).await;
    assert_eq!((home.status, home.header("location")), (302, Some("/app/cart?id=1")));
    let lines: Vec<_> =
        home.headers.get_all("set-cookie").iter().map(|line| line.to_str().unwrap()).collect();
    assert!(lines[1].starts_with("s=") && lines[1].ends_with(attributes), "{lines:?}");
    assert_eq!(browser.0.keys().collect::<Vec<_>>(), ["s"], "the login is over");
    let (form, _) = provider.state().forms.last().unwrap().clone();
    assert_eq!((&*form["client_secret"], &*form["grant_type"]), (SECRET, "authorization_code"));

    let inside = browser.get(&edge, "/app/cart?id=1").await;
    let access = inside.seen("x-access-token").unwrap();
    assert!(access.starts_with("access-"), "{access}");
    assert!(inside.seen("x-refresh-token").unwrap().starts_with("refresh-"));
    assert_eq!(inside.seen("x-raw-id-token").unwrap().matches('.').count(), 2);
    assert_eq!(told(&inside, "x-id-token")["sub"], "ann");
    assert_eq!(told(&inside, "x-userinfo")["email"], "ann@example");
    assert_eq!(inside.seen("cookie"), None, "the upstream gets no session");
    assert_eq!(inside.header("set-cookie"), None);
    let other = browser.ask(&edge, "POST", "/app/form", &[("cookie", "mine=1")]).await;
    assert_eq!(other.seen("cookie").as_deref(), Some("mine=1"), "and what is not ours passes");

    let left = browser.get(&edge, "/app/logout").await;
    assert!(left.header("location").unwrap().starts_with(&format!("{}/bye?", provider.issuer())));
    let asked = sent(&left);
    assert_eq!(asked["post_logout_redirect_uri"], "http://shop.example/bye");
    assert_eq!((&*asked["client_id"], asked["id_token_hint"].matches('.').count()), ("shop", 2));
    assert!(browser.0.is_empty(), "{:?}", browser.0);
    let revoked = provider.state().revoked.clone();
    assert_eq!(revoked.len(), 2, "{revoked:?}");
    assert!(revoked.contains(&access));
    assert_eq!(browser.get(&edge, "/app/cart").await.status, 302);

    let denied = browser.get(&edge, "/deny").await;
    assert_eq!(
        (denied.status, denied.header("www-authenticate")),
        (401, Some("Bearer realm=\"shop\""))
    );
    assert_eq!(browser.get(&edge, "/pass").await.seen("x-id-token"), None);
    // A token is taken where tokens are verified; where they are not, it is no way in.
    let bad = [("authorization", "Bearer a.b.c")];
    assert_eq!(browser.ask(&edge, "GET", "/both", &bad).await.status, 401);
    assert_eq!(browser.ask(&edge, "GET", "/deny", &bad).await.status, 401);
    assert_eq!(browser.ask(&edge, "GET", "/app/cart", &bad).await.status, 302);
    assert_eq!(browser.ask(&edge, "GET", "/both", &[("authorization", "x")]).await.status, 302);

    // The callback behind the path; nothing that was not asked for.
    let away = browser.get(&edge, "/quiet/a%20b").await;
    let asked = sent(&away);
    assert_eq!(asked["redirect_uri"], "http://localhost/quiet/a%20b/.apisix/redirect");
    for name in ["nonce", "code_challenge", "prompt"] {
        assert_eq!(asked.get(name), None, "{name}");
    }
    let there = back(&provider, &away).await;
    let home = browser.get(&edge, &there).await;
    assert_eq!((home.status, home.header("location")), (302, Some("/quiet/a%20b")));
    let inside = browser.get(&edge, "/quiet/a").await;
    for name in ["x-access-token", "x-id-token", "x-userinfo", "x-raw-id-token", "x-refresh-token"]
    {
        assert_eq!(inside.seen(name), None, "{name}");
    }
    let (_, credentials) = provider.state().forms.last().unwrap().clone();
    assert!(credentials.starts_with("Basic "), "{credentials}");
    let left = browser.get(&edge, "/quiet/out").await;
    assert_eq!((left.status, left.text()), (200, "Logged out\n".into()));

    assert_eq!(browser.log_in(&edge, &provider, "/inside/x").await.status, 302);
    let inside = browser.get(&edge, "/inside/x").await;
    assert!(inside.seen("authorization").unwrap().starts_with("Bearer access-"));
    assert_eq!(inside.seen("x-access-token"), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_was_not_sent_to_log_in_from_this_browser_does_not_come_in() {
    let provider = IdentityProvider::new();
    let edge = Edge::new(
        &[(
            "/app/*",
            oidc(
                &provider,
                json!({ "redirect_uri": "http://shop.example/app/back", "use_pkce": true, "use_nonce": true,
                    "iat_slack": 0 }),
            ),
        )],
        &json!({}),
    );
    let refuses = async |what: &str, browser: &mut Browser, path: &str| {
        let refused = browser.get(&edge, path).await;
        assert_eq!(refused.message(), (401, "the login failed".into()), "{what}: {path}");
        assert!(!browser.0.contains_key("session"), "{what}");
        refused
    };
    // What somebody else sends this browser to.
    type Bend = fn(&str, &str) -> String;
    let bends: [(&str, Bend); 9] = [
        ("another state", |back, state| back.replace(state, "x")),
        ("an empty state", |back, state| back.replace(state, "")),
        ("no state", |back, state| back.replace(&format!("&state={state}"), "")),
        ("two states", |back, state| format!("{back}&state={state}")),
        ("an error", |back, _| format!("{back}&error=access_denied")),
        ("another provider", |back, _| back.replace("&iss=http", "&iss=https")),
        ("no provider", |back, _| back[..back.find("&iss=").unwrap()].to_owned()),
        ("no code", |back, _| back.replace("code=", "cod=")),
        ("a made-up code", |back, _| back.replace("code=code-", "code=code-x")),
    ];
    for (what, bend) in bends {
        let mut browser = Browser::default();
        let back = browser.sent_back(&edge, &provider, "/app/cart").await;
        let state = arguments(back.split_once('?').unwrap().1)["state"].clone();
        refuses(what, &mut browser, &bend(&back, &state)).await;
    }
    // ID tokens that are not for us, not for now or not for this login.
    for (what, key_id, claims) in [
        ("another nonce", "one", json!({ "nonce": "x" })),
        ("no nonce", "one", json!({ "nonce": null })),
        ("another audience", "one", json!({ "aud": "other" })),
        ("several audiences", "one", json!({ "aud": ["shop", "other"] })),
        ("another party", "one", json!({ "azp": "other" })),
        ("another issuer", "one", json!({ "iss": "http://evil" })),
        ("an old token", "one", json!({ "exp": 1 })),
        ("no end", "one", json!({ "exp": null })),
        ("from tomorrow", "one", json!({ "iat": 99_999_999_999_i64 })),
        ("nobody", "one", json!({ "sub": null })),
        ("another person than userinfo's", "one", json!({ "sub": "bob" })),
        ("a key that nobody knows", "two", json!({})),
    ] {
        provider.state().claims = claims;
        provider.state().key_id = key_id.to_owned();
        let mut browser = Browser::default();
        let back = browser.sent_back(&edge, &provider, "/app/cart").await;
        refuses(what, &mut browser, &back).await;
    }
    provider.state().claims = json!({});
    provider.state().key_id = "one".into();

    // The callback of one browser in another one: its victim would be logged in as somebody else.
    let mut attacker = Browser::default();
    let back = attacker.sent_back(&edge, &provider, "/app/cart").await;
    refuses("a browser that began nothing", &mut Browser::default(), &back).await;
    let mut victim = Browser::default();
    victim.get(&edge, "/app/cart").await;
    refuses("a browser that began another login", &mut victim, &back).await;
    // A session that somebody has planted is not the one that the login goes on in.
    let mut planted = attacker.clone();
    planted.0.insert("session".into(), "planted".into());
    assert_eq!(planted.get(&edge, &back).await.status, 302);
    assert_ne!(planted.0["session"], "planted");
    // Once more with the same answer: the state is gone, and with the old cookie the code is.
    let again = planted.get(&edge, &back).await;
    assert_eq!(again.status, 401);
    refuses("a replay with the old cookie", &mut attacker, &back).await;

    // A cookie that was changed anywhere, cut, or moved is none.
    let session = planted.0["session"].clone();
    for at in [0, 10, 16, session.len() / 2, session.len() - 2] {
        let mut changed = planted.clone();
        let value = changed.0.get_mut("session").unwrap();
        let with = if &value[at..=at] == "A" { "B" } else { "A" };
        value.replace_range(at..=at, with);
        assert_eq!(changed.get(&edge, "/app/cart").await.status, 302, "{at}");
    }
    for other in ["", "A", &session[..session.len() - 4], &format!("{session}AAAA")] {
        let mut changed = Browser(BTreeMap::from([("session".into(), other.into())]));
        assert_eq!(changed.get(&edge, "/app/cart").await.status, 302);
    }
    let mut moved = Browser(BTreeMap::from([("session_login".into(), session)]));
    refuses("a session in place of a login", &mut moved, &back).await;

    // Nobody is brought to another host.
    for target in ["//evil.example/app/", "/\\evil.example/app/", "/app/%0d%0aset-cookie:a=b"] {
        let mut browser = Browser::default();
        let away = browser.get(&edge, target).await;
        if away.status != 302 {
            continue;
        }
        let there = self::back(&provider, &away).await;
        let home = browser.get(&edge, &there).await;
        let location = home.header("location").unwrap();
        let second = location.as_bytes().get(1);
        assert!(location.starts_with('/') && !matches!(second, Some(b'/' | b'\\')), "{location}");
        assert_eq!(home.header("a"), None);
    }
    // Several tabs, each with its login; the fifth pushes the first one out.
    let mut browser = Browser::default();
    let mut tabs = Vec::new();
    for tab in 0..5 {
        tabs.push(browser.sent_back(&edge, &provider, &format!("/app/{tab}")).await);
    }
    assert_eq!(browser.get(&edge, &tabs[0]).await.status, 401);
    for tab in [4, 2, 1, 3] {
        let home = browser.get(&edge, &tabs[tab]).await;
        assert_eq!(home.header("location"), Some(&*format!("/app/{tab}")));
    }
    // A form is not sent again: what it was sent to is asked for.
    let mut browser = Browser::default();
    let away = browser.ask(&edge, "POST", "/app/form?a=b", &[]).await;
    let there = self::back(&provider, &away).await;
    assert_eq!(browser.get(&edge, &there).await.header("location"), Some("/app/form"));
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_renewed_once_and_sessions_end() {
    let provider = IdentityProvider::new();
    provider.state().expires_in = Some(1);
    let discovery = format!("{}/bare", provider.issuer());
    let more = |path: &str, more: Value| {
        let mut all = json!({ "redirect_uri": format!("/{path}/back"), "discovery": discovery,
            "set_refresh_token_header": true });
        all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        oidc(&provider, all)
    };
    let named = |name: &str, times: Value| {
        let mut all = session(times);
        all["session"]["cookie_name"] = name.into();
        all
    };
    let renewing = |more: Value| {
        let mut all = more;
        all["access_token_expires_leeway"] = json!(1);
        all
    };
    let edge = Edge::new(
        &[
            ("/renewed/*", more("renewed", renewing(named("a", json!({}))))),
            ("/kept/*", {
                let mut all = renewing(named("b", json!({})));
                all["renew_access_token_on_expiry"] = json!(false);
                more("kept", all)
            }),
            ("/default/*", {
                let mut all = renewing(named("c", json!({})));
                all["access_token_expires_in"] = json!(1);
                more("default", all)
            }),
            ("/again/*", {
                let mut all = named("d", json!({}));
                all["refresh_session_interval"] = json!(1);
                all["authorization_params"] = json!({ "prompt": "login" });
                more("again", all)
            }),
            (
                "/short/*",
                more("short", named("e", json!({ "absolute_timeout": 1, "rolling_timeout": 0 }))),
            ),
            ("/page/*", more("page", named("f", json!({ "cookie_same_site": "Strict" })))),
        ],
        &json!({}),
    );
    let mut browser = Browser::default();
    browser.log_in(&edge, &provider, "/renewed/x").await;
    provider.state().expires_in = Some(600);
    // Requests that come together have one refresh token between them, and get on with what it gave.
    let mut together = Vec::new();
    for _ in 0..4 {
        let mut one = browser.clone();
        let edge = &edge;
        together.push(async move {
            let answer = one.get(edge, "/renewed/x").await;
            (answer.seen("x-access-token"), answer.seen("x-refresh-token"), one)
        });
    }
    let all = futures_util::future::join_all(together).await;
    assert!(all.iter().all(|(access, refresh, _)| (access, refresh) == (&all[0].0, &all[0].1)));
    assert!(!provider.state().stolen, "no refresh token came twice");
    let renewed = all.into_iter().next().unwrap().2;
    assert_ne!(renewed.0["a"], browser.0["a"]);
    let forms = provider.state().forms.len();
    assert_eq!(renewed.clone().get(&edge, "/renewed/x").await.status, 200);
    assert_eq!(provider.state().forms.len(), forms, "it is good for a while now");

    // Without renewal the session goes on, and the upstream gets no token that is over.
    provider.state().expires_in = Some(1);
    browser.log_in(&edge, &provider, "/kept/x").await;
    let inside = browser.get(&edge, "/kept/x").await;
    assert_eq!(inside.seen("x-access-token"), None);
    assert_eq!(told(&inside, "x-id-token")["sub"], "ann");
    // A provider that does not say how long.
    provider.state().expires_in = None;
    browser.log_in(&edge, &provider, "/default/x").await;
    let forms = provider.state().forms.len();
    assert_eq!(browser.get(&edge, "/default/x").await.status, 200);
    assert_eq!(provider.state().forms.len(), forms + 1);
    // A renewal that brings another person, or that the provider refuses, ends in a login.
    provider.state().claims = json!({ "sub": "bob" });
    assert_eq!(browser.get(&edge, "/default/x").await.status, 302);
    provider.state().claims = json!({});

    // The provider is asked again, and nobody is asked anything.
    provider.state().expires_in = Some(600);
    browser.log_in(&edge, &provider, "/again/x").await;
    let away = eventually_async("the provider is asked again", || {
        let mut browser = browser.clone();
        let edge = &edge;
        async move {
            let answer = browser.get(edge, "/again/x").await;
            (answer.status == 302).then_some((answer, browser))
        }
    })
    .await;
    let (away, mut asking) = away;
    assert_eq!(sent(&away)["prompt"], "none");
    provider.state().nobody = true;
    let there = back(&provider, &away).await;
    let person = asking.get(&edge, &there).await;
    assert_eq!((person.status, &*sent(&person)["prompt"]), (302, "login"), "now a person is asked");
    provider.state().nobody = false;
    let there = back(&provider, &person).await;
    assert_eq!(asking.get(&edge, &there).await.header("location"), Some("/again/x"));

    browser.log_in(&edge, &provider, "/short/x").await;
    eventually_async("the session is over", || {
        let mut browser = browser.clone();
        let edge = &edge;
        async move { (browser.get(edge, "/short/x").await.status == 302).then_some(()) }
    })
    .await;

    // A strict cookie does not come along on a redirect that began elsewhere: a page goes on.
    let page = browser.log_in(&edge, &provider, "/page/x?a=b&c=d").await;
    assert_eq!((page.status, page.header("location")), (200, None));
    assert!(page.text().contains("content=\"0;url=/page/x?a=b&amp;c=d\""), "{}", page.text());
    assert!(page.headers.get_all("set-cookie").iter().any(|line| {
        let line = line.to_str().unwrap();
        line.starts_with("f=") && line.ends_with("SameSite=Strict")
    }));
    assert_eq!(browser.get(&edge, "/page/x").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_must_be_enough_and_may_be_large() {
    let provider = IdentityProvider::new();
    let more = |path: &str, more: Value| {
        let mut all = session(json!({ "cookie_name": path }));
        all["redirect_uri"] = json!(format!("/{path}/back"));
        all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        (format!("/{path}/*"), oidc(&provider, all))
    };
    let issuers =
        |all: &[&str]| json!({ "claim_validator": { "issuer": { "valid_issuers": all } } });
    let issuer = provider.issuer();
    let routes = [
        more("scopes", json!({ "required_scopes": ["email"] })),
        more("agreed", json!({ "required_scopes": ["email"], "scope": "openid email" })),
        more(
            "audience",
            json!({ "claim_validator": { "audience": { "claim": "tenant", "required": true } } }),
        ),
        more(
            "mine",
            json!({ "claim_validator": { "audience": { "match_with_client_id": true } } }),
        ),
        more(
            "schema",
            json!({ "claim_schema": { "properties": { "user": { "required": ["role"] } } } }),
        ),
        more("issuer", issuers(&["http://other"])),
        more("listed", issuers(&["http://other", &issuer])),
        more("public", json!({ "client_id": "public", "client_secret": null, "use_pkce": true })),
        more("large", json!({})),
    ];
    let routes: Vec<(&str, Value)> =
        routes.iter().map(|(path, config)| (&**path, config.clone())).collect();
    let mut routes = routes;
    for (path, config) in &mut routes {
        if *path == "/public/*" {
            config["openid-connect"].as_object_mut().unwrap().remove("client_secret");
        }
    }
    let edge = Edge::new(&routes, &json!({}));
    let log_in = async |path: &str| {
        let mut browser = Browser::default();
        let home = browser.log_in(&edge, &provider, path).await;
        if home.status != 302 {
            return home;
        }
        browser.get(&edge, path).await
    };
    for (path, status, says) in [
        ("/scopes/x", 403, "required scopes not present"),
        ("/agreed/x", 200, ""),
        ("/audience/x", 403, "required audience claim not present"),
        ("/mine/x", 200, ""),
        ("/schema/x", 401, ""),
        ("/issuer/x", 401, "the login failed"),
        ("/listed/x", 200, ""),
        ("/public/x", 200, ""),
    ] {
        let answer = log_in(path).await;
        assert_eq!(answer.status, status, "{path}: {}", answer.text());
        assert!(answer.text().contains(says), "{path}: {}", answer.text());
    }
    provider.state().user = json!({ "sub": "ann", "role": "x".repeat(9000) });
    assert_eq!(log_in("/schema/x").await.status, 200);
    let mut browser = Browser::default();
    browser.log_in(&edge, &provider, "/large/x").await;
    assert!(browser.0.len() > 3, "{:?}", browser.0.keys());
    let inside = browser.get(&edge, "/large/x").await;
    assert_eq!(told(&inside, "x-userinfo")["role"].as_str().unwrap().len(), 9000);
    assert_eq!(inside.seen("cookie"), None, "none of its parts");
    // A smaller one leaves nothing of it behind.
    provider.state().user = json!({ "sub": "ann" });
    let back = {
        let mut fresh = Browser::default();
        let back = fresh.sent_back(&edge, &provider, "/large/x").await;
        browser.0.extend(fresh.0);
        back
    };
    assert_eq!(browser.get(&edge, &back).await.status, 302);
    assert_eq!(browser.0.len(), 1, "{:?}", browser.0.keys());
    assert_eq!(browser.get(&edge, "/large/x").await.status, 200);
    provider.state().user = json!({ "sub": "ann", "role": "x".repeat(40_000) });
    assert_eq!(log_in("/large/x").await.status, 500, "cookies are not enough");
}

#[tokio::test(flavor = "multi_thread")]
async fn we_prove_who_we_are_as_the_provider_wants_it() {
    let provider = IdentityProvider::new();
    let pem = keys().p256.serialize_pem();
    let mut routes = Vec::new();
    for (path, more) in [
        ("basic", json!({ "par": { "enabled": true } })),
        (
            "key",
            json!({ "token_endpoint_auth_method": "private_key_jwt", "client_rsa_private_key": pem,
                "client_rsa_private_key_id": "our-key", "client_jwt_assertion_alg": "ES256",
                "client_jwt_assertion_expires_in": 30, "revoke_tokens_on_logout": true,
                "par": { "enabled": true, "endpoint": format!("{}/par", provider.issuer()) },
                "introspection_endpoint": format!("{}/introspect", provider.issuer()),
                "introspection_endpoint_auth_method": "private_key_jwt" }),
        ),
        (
            "secret",
            json!({ "token_endpoint_auth_method": "client_secret_jwt", "client_jwt_assertion_alg": "HS512",
                "client_jwt_assertion_audience": provider.issuer(),
                "par": { "enabled": true, "endpoint_auth_method": "client_secret_post" } }),
        ),
        ("wrong", json!({ "client_secret": "another-secret" })),
    ] {
        let mut all = session(json!({ "cookie_name": path }));
        all["redirect_uri"] = json!(format!("/{path}/back"));
        all["logout_path"] = json!(format!("/{path}/logout"));
        all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        routes.push((format!("/{path}/*"), oidc(&provider, all)));
    }
    let routes: Vec<(&str, Value)> =
        routes.iter().map(|(path, config)| (&**path, config.clone())).collect();
    let edge = Edge::new(&routes, &json!({}));
    for path in ["basic", "key", "secret"] {
        let mut browser = Browser::default();
        let away = browser.get(&edge, &format!("/{path}/x")).await;
        let asked = sent(&away);
        assert!(asked["request_uri"].starts_with("urn:request:"), "{asked:?}");
        assert_eq!(asked.get("state"), None, "it went to the provider itself");
        let there = back(&provider, &away).await;
        assert_eq!(browser.get(&edge, &there).await.status, 302, "{path}");
        assert_eq!(browser.get(&edge, &format!("/{path}/x")).await.status, 200, "{path}");
        browser.get(&edge, &format!("/{path}/logout")).await;
    }
    assert_eq!(provider.state().revoked.len(), 2, "with the key as well");
    let line = [("authorization", "Bearer access-7")];
    let asked = Browser::default().ask(&edge, "GET", "/key/x", &line).await;
    assert_eq!(asked.seen("x-access-token").as_deref(), Some("access-7"));
    let line = [("authorization", "Bearer other")];
    assert_eq!(Browser::default().ask(&edge, "GET", "/key/x", &line).await.status, 401);
    // The provider does not know us: nobody's fault but the operator's.
    let mut browser = Browser::default();
    assert_eq!(browser.log_in(&edge, &provider, "/wrong/x").await.status, 503);
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_in_redis_end_everywhere_at_once() {
    let provider = IdentityProvider::new();
    let mut redis = RedisServer::start(&["--requirepass", "sesame"]);
    let place = json!({ "host": "127.0.0.1", "port": redis.port, "username": "default", "password": "sesame",
        "database": 2, "prefix": "shop", "ssl": false, "ssl_verify": false, "connect_timeout": 10_000,
        "send_timeout": 10_000, "read_timeout": 10_000, "keepalive_timeout": 5000 });
    let mut all = session(json!({ "storage": "redis", "redis": place }));
    all["redirect_uri"] = json!("/app/back");
    all["logout_path"] = json!("/app/logout");
    all["access_token_expires_leeway"] = json!(1);
    all["set_refresh_token_header"] = json!(true);
    let edge = Edge::new(&[("/app/*", oidc(&provider, all))], &json!({}));
    provider.state().user = json!({ "sub": "ann", "role": "x".repeat(20_000) });
    provider.state().expires_in = Some(1);
    let mut browser = Browser::default();
    browser.log_in(&edge, &provider, "/app/x").await;
    assert_eq!(browser.0.keys().collect::<Vec<_>>(), ["session"], "however much it is");
    let first = browser.0.clone();
    provider.state().expires_in = Some(600);
    let inside = browser.get(&edge, "/app/x").await;
    assert_eq!(told(&inside, "x-userinfo")["role"].as_str().unwrap().len(), 20_000);
    let forms = provider.state().forms.len();
    let again = browser.get(&edge, "/app/x").await;
    assert_eq!(again.seen("x-refresh-token"), inside.seen("x-refresh-token"));
    assert_eq!(
        (provider.state().forms.len(), &browser.0),
        (forms, &first),
        "renewed where it lies"
    );
    // Whoever logs in anew has a session of their own, and the old one is no more.
    let back = {
        let mut fresh = Browser::default();
        let back = fresh.sent_back(&edge, &provider, "/app/x").await;
        browser.0.extend(fresh.0);
        back
    };
    assert_eq!(browser.get(&edge, &back).await.status, 302);
    assert_ne!(browser.0["session"], first["session"]);
    assert_eq!(Browser(first).get(&edge, "/app/x").await.status, 302);
    // A cookie that was stolen is worth nothing after the logout.
    let stolen = browser.clone();
    assert_eq!(stolen.clone().get(&edge, "/app/x").await.status, 200);
    assert_eq!(browser.get(&edge, "/app/logout").await.status, 302);
    assert_eq!(stolen.clone().get(&edge, "/app/x").await.status, 302);
    // Nobody gets in, and nobody is told to log in again, while nobody knows.
    browser.log_in(&edge, &provider, "/app/x").await;
    redis.stop();
    assert_eq!(browser.get(&edge, "/app/x").await.status, 500);
    assert_eq!(Browser::default().get(&edge, "/app/x").await.status, 302);
}
