//! `proxy-cache` over real sockets: what is kept, for whom, how long, and what is never kept.
#![expect(clippy::needless_pass_by_value, reason = "tests write their JSON in place")]

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use serde_json::{Value, json};

use super::plugins::Edge;
use super::world::{Admin, Answer, App, World, allow, eventually_async};

/// An application that answers a path as it was told to, and counts. Its answers say which one they are.
struct Origin {
    app: App,
    told: Arc<std::sync::Mutex<Told>>,
    /// It waits before it answers.
    slow: Arc<AtomicBool>,
}

#[derive(Default)]
struct Told {
    answers: HashMap<String, (u16, Vec<(String, String)>)>,
    asked: HashMap<String, Vec<String>>,
}

impl Origin {
    fn new() -> Self {
        let told = Arc::<std::sync::Mutex<Told>>::default();
        let slow = Arc::<AtomicBool>::default();
        let (tells, waits) = (told.clone(), slow.clone());
        let app = App::serving(move |request: Request<hyper::body::Incoming>| {
            let (told, slow) = (tells.clone(), waits.clone());
            async move {
                let (head, body) = request.into_parts();
                let body = body.collect().await.unwrap().to_bytes();
                if slow.load(Ordering::SeqCst) {
                    tokio::time::sleep(Duration::from_millis(300)).await;
                }
                let path = head.uri.path().to_owned();
                let field = |name: &str| head.headers.get(name).map_or("", |v| v.to_str().unwrap());
                let seen = format!(
                    "{} {} {}",
                    head.method,
                    field("if-none-match"),
                    field("if-modified-since")
                );
                let mut told = told.lock().unwrap();
                let (status, fields) =
                    told.answers.get(&path).cloned().unwrap_or((200, Vec::new()));
                let asked = told.asked.entry(path.clone()).or_default();
                asked.push(seen);
                let text = format!("{path} {} {}", asked.len(), String::from_utf8_lossy(&body));
                let tag = fields.iter().find(|(name, _)| name.eq_ignore_ascii_case("etag"));
                let unchanged =
                    tag.is_some_and(|(_, tag)| !tag.is_empty() && tag == field("if-none-match"));
                let mut response = Response::builder().status(if unchanged { 304 } else { status });
                for (name, value) in &fields {
                    response = response.header(name, value);
                }
                let size =
                    head.uri.query().and_then(|query| query.strip_prefix("size=")?.parse().ok());
                let body = match (unchanged, size) {
                    (true, _) => Bytes::new(),
                    (false, Some(size)) => Bytes::from(vec![b'x'; size]),
                    (false, None) => text.into(),
                };
                response.body(Full::new(body)).unwrap()
            }
        });
        Self { app, told, slow }
    }

    fn says(&self, path: &str, status: u16, fields: &[(&str, &str)]) {
        let fields = fields.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        self.told.lock().unwrap().answers.insert(path.to_owned(), (status, fields.collect()));
    }

    fn asked(&self, path: &str) -> Vec<String> {
        self.told.lock().unwrap().asked.get(path).cloned().unwrap_or_default()
    }

    async fn route(&self, edge: &Edge, id: &str, uri: &str, cache: Value, more: Value) {
        let mut plugins = json!({ "proxy-cache": cache });
        for (name, plugin) in more.as_object().unwrap() {
            plugins[name] = plugin.clone();
        }
        let upstream = json!({ "nodes": { self.app.address.to_string(): 1 }, "retries": 0 });
        let route = json!({ "uri": uri, "upstream": upstream, "plugins": plugins });
        edge.put(&format!("/routes/{id}"), &route).await;
    }
}

fn memory(more: Value) -> Value {
    let mut cache = json!({ "cache_strategy": "memory", "cache_zone": "memory_cache" });
    for (name, value) in more.as_object().unwrap() {
        cache[name] = value.clone();
    }
    cache
}

fn state(answer: &Answer) -> (u16, String) {
    (answer.status, answer.header("apisix-cache-status").unwrap_or("-").to_owned())
}

/// What is stored on disk is there a moment later.
async fn hits(edge: &Edge, path: &str) -> Answer {
    eventually_async("the answer is kept", || async {
        let answer = edge.get(path).await;
        (answer.header("apisix-cache-status") == Some("HIT")).then_some(answer)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_is_given_again_from_memory_and_from_disk() {
    let (edge, origin) = (Edge::new(), Origin::new());
    origin
        .route(&edge, "m", "/m/*", memory(json!({ "max_resp_body_size": 100_000 })), json!({}))
        .await;
    origin.route(&edge, "d", "/d/*", json!({ "cache_zone": "disk_cache_one" }), json!({})).await;
    for at in ["/m", "/d"] {
        let path = format!("{at}/a?b=1");
        origin.says(&format!("{at}/a"), 200, &[("X-Own", "1"), ("Content-Type", "text/x")]);
        let first = edge.get(&path).await;
        assert_eq!((state(&first), first.header("age")), ((200, "MISS".into()), None), "{at}");
        let again = hits(&edge, &path).await;
        assert_eq!(again.body, first.body, "{at}");
        assert_eq!(
            (again.header("x-own"), again.header("content-type")),
            (Some("1"), Some("text/x"))
        );
        assert!(again.header("age").is_some_and(|age| age.parse::<u64>().unwrap() < 30), "{at}");
        let head = edge.ask("HEAD", &path, &[]).await;
        assert_eq!((state(&head), head.body.len()), ((200, "HIT".into()), 0), "{at}");
        assert_eq!(head.header("content-length"), Some(first.body.len().to_string().as_str()));
        // Another query is another resource; so is another host.
        assert_eq!(state(&edge.get(&format!("{at}/a?b=2")).await).1, "MISS");
        assert_eq!(state(&edge.ask("GET", &path, &[("host", "other")]).await).1, "MISS");
        // A large body comes in pieces.
        let large = format!("{at}/large?size=90000");
        assert_eq!(edge.get(&large).await.body.len(), 90_000);
        assert_eq!(hits(&edge, &large).await.body, vec![b'x'; 90_000]);
        origin.says(&format!("{at}/gone"), 404, &[]);
        assert_eq!(state(&edge.get(&format!("{at}/gone")).await), (404, "MISS".into()));
        assert_eq!(hits(&edge, &format!("{at}/gone")).await.status, 404);
        origin.says(&format!("{at}/bad"), 500, &[]);
        for _ in 0..2 {
            assert_eq!(state(&edge.get(&format!("{at}/bad")).await), (500, "MISS".into()));
        }
        assert_eq!(state(&edge.ask("PURGE", &path, &[]).await).0, 200);
        assert_eq!(state(&edge.ask("PURGE", &path, &[]).await).0, 404);
        assert_eq!(state(&edge.get(&path).await).1, "MISS");
        // Whoever changes it makes what is kept of it count for nothing.
        hits(&edge, &path).await;
        assert_eq!(edge.post(&path, &[], "new").await.status, 200);
        assert_eq!(state(&edge.get(&path).await).1, "MISS");
    }
    // A larger one is read as it is sent.
    assert_eq!(edge.get("/d/huge?size=700000").await.body.len(), 700_000);
    assert_eq!(hits(&edge, "/d/huge?size=700000").await.body, vec![b'x'; 700_000]);
    // A body that is too large for the rules passes, and is not kept.
    for _ in 0..2 {
        assert_eq!(state(&edge.get("/m/large?size=100001").await).1, "MISS");
    }
    edge.refuses(
        "proxy-cache",
        &[
            (json!({ "cache_zone": "nowhere" }), "cache_zone"),
            (json!({ "cache_strategy": "memory" }), "cache_zone"),
            (json!({ "cache_method": ["PUT"] }), "cache_method"),
            (json!({ "cache_http_status": [199] }), "cache_http_status"),
            (json!({ "cache_key": ["$nothing_at_all"] }), "cache_key"),
            (json!({ "cache_ttl": 0 }), "cache_ttl"),
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_field_of_the_settings_does_what_it_says() {
    let (edge, origin) = (Edge::new(), Origin::new());
    let cache = memory(json!({
        "cache_key": ["$host", "$uri", "of-it"], "cache_bypass": ["$arg_bypass"], "no_cache": ["$arg_no", "$sent_http_x_no"],
        "cache_method": ["GET", "POST"], "cache_http_status": [201], "cache_ttl": 600, "hide_cache_headers": true
    }));
    origin.route(&edge, "1", "/f/*", cache, json!({})).await;
    let kept = [("Cache-Control", "max-age=0"), ("Expires", "0"), ("Set-Cookie", "a=b")];
    origin.says("/f/a", 201, &kept[..2]);
    assert_eq!(state(&edge.get("/f/a?x=1").await), (201, "MISS".into()));
    let hit = edge.get("/f/a?x=2").await;
    assert_eq!(
        state(&hit),
        (201, "HIT".into()),
        "the query is not in this key, and max-age does not count"
    );
    assert_eq!((hit.header("cache-control"), hit.header("expires")), (None, None));
    let bypassed = edge.get("/f/a?bypass=1").await;
    assert_eq!((state(&bypassed).1, bypassed.text().contains(" 2 ")), ("BYPASS".into(), true));
    assert!(edge.get("/f/a?bypass=0").await.text().contains(" 2 "), "what was fetched is kept");
    // HEAD is not among the methods.
    assert_eq!(state(&edge.ask("HEAD", "/f/a", &[]).await).1, "MISS");
    // Another status is not kept, nor what `no_cache` names.
    assert_eq!(state(&edge.get("/f/ok").await), (200, "MISS".into()));
    assert_eq!(state(&edge.get("/f/ok").await), (200, "MISS".into()));
    origin.says("/f/no", 201, &[("X-No", "1")]);
    origin.says("/f/arg", 201, &[]);
    for path in ["/f/no", "/f/no", "/f/arg?no=1", "/f/arg", "/f/arg?no=1"] {
        let last = path == "/f/arg?no=1" && origin.asked("/f/arg").len() == 2;
        assert_eq!(state(&edge.get(path).await).1, if last { "HIT" } else { "MISS" }, "{path}");
    }
    // The body of a POST is in its key.
    origin.says("/f/post", 201, &[]);
    for (body, expected) in [("a", "MISS"), ("b", "MISS"), ("a", "HIT")] {
        assert_eq!(state(&edge.post("/f/post", &[], body).await).1, expected, "{body}");
    }
    origin.says("/f/cookie", 201, &kept);
    for _ in 0..2 {
        assert_eq!(state(&edge.get("/f/cookie").await).1, "MISS");
    }
    let cookies = memory(json!({ "cache_set_cookie": true }));
    origin.route(&edge, "2", "/c", cookies, json!({})).await;
    origin.says("/c", 200, &[("Set-Cookie", "a=b")]);
    edge.get("/c").await;
    let hit = edge.get("/c").await;
    assert_eq!((state(&hit).1, hit.header("set-cookie")), ("HIT".into(), Some("a=b")));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_must_not_be_shared_is_not_kept_whatever_the_settings_say() {
    let (edge, origin) = (Edge::new(), Origin::new());
    origin
        .route(&edge, "1", "/p/*", memory(json!({ "cache_http_status": [200, 301] })), json!({}))
        .await;
    for (path, fields) in [
        ("/p/private", [("Cache-Control", "max-age=60, private")]),
        ("/p/store", [("Cache-Control", "No-Store")]),
        ("/p/star", [("Vary", "Accept, *")]),
        ("/p/way", [("Vary", "X-Forwarded-For")]),
        ("/p/field", [("Cache-Control", "private=\"x-a, x-b\"")]),
    ] {
        origin.says(path, 200, &fields);
        for _ in 0..2 {
            assert_eq!(state(&edge.get(path).await).1, "MISS", "{path}");
        }
        assert_eq!(origin.asked(path).len(), 2, "{path}");
    }
    // Credentials that nobody here knows: only an answer that is said to be for all is kept.
    let token = [("authorization", "Bearer x")];
    for (path, control, expected) in [
        ("/p/own", "max-age=60", "MISS"),
        ("/p/public", "public", "HIT"),
        ("/p/shared", "s-maxage=60", "HIT"),
        ("/p/must", "must-revalidate, max-age=60", "HIT"),
    ] {
        origin.says(path, 200, &[("Cache-Control", control)]);
        edge.ask("GET", path, &token).await;
        assert_eq!(state(&edge.ask("GET", path, &token).await).1, expected, "{path}");
    }
    // What an answer was chosen by chooses it again.
    origin.says("/p/vary", 200, &[("Vary", "X-Lang"), ("Vary", "accept")]);
    for (lang, expected) in
        [("en", "MISS"), ("de", "MISS"), ("en", "HIT"), ("de", "HIT"), ("", "MISS")]
    {
        let answer = edge.ask("GET", "/p/vary", &[("x-lang", lang)]).await;
        assert_eq!(state(&answer).1, expected, "{lang}");
    }
    // Nothing that an upstream might read and the key does not know.
    let fat = b"GET /p/fat HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nConnection: close\r\n\r\nx";
    for _ in 0..2 {
        let answer = super::world::raw_to(edge.ingress.address("ingress"), fat).await;
        assert!(answer.contains("BYPASS"), "{answer}");
    }
    for field in [("x-http-method-override", "DELETE"), ("if-match", "\"a\"")] {
        assert_eq!(state(&edge.ask("GET", "/p/odd", &[field]).await).1, "BYPASS", "{field:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_and_upstreams_may_speak_of_freshness() {
    let (edge, origin) = (Edge::new(), Origin::new());
    origin.route(&edge, "1", "/c/*", memory(json!({ "cache_control": true })), json!({})).await;
    origin.says("/c/a", 200, &[("Cache-Control", "max-age=100"), ("Age", "40")]);
    let only = [("cache-control", "only-if-cached")];
    assert_eq!(state(&edge.ask("GET", "/c/a", &only).await), (504, "MISS".into()));
    assert_eq!(origin.asked("/c/a").len(), 0);
    assert_eq!(state(&edge.get("/c/a").await).1, "MISS");
    assert_eq!(state(&edge.ask("GET", "/c/a", &only).await), (200, "HIT".into()));
    for (directive, expected) in [
        ("max-age=1000", "HIT"),
        ("max-age=30, only-if-cached", "STALE"),
        ("min-fresh=10", "HIT"),
        ("min-fresh=90, only-if-cached", "STALE"),
        ("no-store", "BYPASS"),
        ("no-cache", "BYPASS"),
    ] {
        let answer = edge.ask("GET", "/c/a", &[("cache-control", directive)]).await;
        assert_eq!(state(&answer).1, expected, "{directive}");
    }
    assert_eq!(state(&edge.ask("GET", "/c/a", &[("pragma", "no-cache")]).await).1, "BYPASS");
    // It is stale when it comes: a caller may take it so.
    origin.says(
        "/c/old",
        200,
        &[("Cache-Control", "max-age=10"), ("Age", "40"), ("ETag", "\"1\"")],
    );
    edge.get("/c/old").await;
    for (directive, expected) in
        [("max-stale", "STALE"), ("max-stale=1000", "STALE"), ("max-stale=5", "REVALIDATED")]
    {
        let answer = edge.ask("GET", "/c/old", &[("cache-control", directive)]).await;
        assert_eq!(state(&answer), (200, expected.into()), "{directive}");
    }
    // Must be asked for each time, and is not given stale to anybody.
    origin.says("/c/ask", 200, &[("Cache-Control", "no-cache"), ("ETag", "\"1\"")]);
    edge.get("/c/ask").await;
    for directive in ["max-age=1000", "max-stale"] {
        let answer = edge.ask("GET", "/c/ask", &[("cache-control", directive)]).await;
        assert_eq!(state(&answer), (200, "REVALIDATED".into()), "{directive}");
    }
    origin.says("/c/expired", 200, &[("Expires", "Thu, 01 Jan 1970 00:00:00 GMT")]);
    for _ in 0..2 {
        assert_eq!(state(&edge.get("/c/expired").await).1, "MISS");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_stale_is_asked_for_anew_and_stands_in_when_the_upstream_fails() {
    let (edge, origin) = (Edge::new(), Origin::new());
    origin.route(&edge, "1", "/v/*", memory(json!({ "cache_control": true })), json!({})).await;
    origin.route(&edge, "2", "/vd/*", json!({}), json!({})).await;
    for at in ["/v", "/vd"] {
        let path = format!("{at}/tag");
        origin.says(
            &path,
            200,
            &[("Cache-Control", "max-age=10"), ("Age", "40"), ("ETag", "\"1\""), ("X-N", "1")],
        );
        // On disk it is there a moment later.
        let first = eventually_async("it is kept and holds", || async {
            let answer = edge.get(&path).await;
            (state(&answer).1 == "REVALIDATED").then_some(answer)
        })
        .await;
        let newer = [("Cache-Control", "max-age=1000"), ("ETag", "\"1\""), ("X-N", "2")];
        origin.says(&path, 200, &newer);
        let again = edge.get(&path).await;
        assert_eq!(state(&again), (200, "REVALIDATED".into()));
        assert_eq!((&again.body, first.header("x-n")), (&first.body, Some("1")));
        assert_eq!(again.header("x-n"), Some("2"));
        assert_eq!(origin.asked(&path).last().unwrap(), "GET \"1\" ");
        assert_eq!(state(&edge.get(&path).await).1, "HIT", "it is fresh again");
        // Who has it already is told so, from here.
        for (field, value, status) in [
            ("if-none-match", "\"0\", W/\"1\"", 304),
            ("if-none-match", "\"2\"", 200),
            ("if-none-match", "*", 304),
        ] {
            let answer = edge.ask("GET", &path, &[(field, value)]).await;
            assert_eq!(state(&answer), (status, "HIT".into()), "{value}");
            assert_eq!(answer.header("etag"), Some("\"1\""));
        }
    }
    origin.says("/v/dated", 200, &[("Last-Modified", "Sun, 06 Nov 1994 08:49:37 GMT")]);
    edge.get("/v/dated").await;
    for (since, status) in [
        ("Sun, 06 Nov 1994 08:49:37 GMT", 304),
        ("Sunday, 06-Nov-94 08:49:36 GMT", 200),
        ("x", 200),
    ] {
        assert_eq!(
            edge.ask("GET", "/v/dated", &[("if-modified-since", since)]).await.status,
            status,
            "{since}"
        );
    }
    // Asked for beside the traffic.
    let swr = "max-age=10, stale-while-revalidate=1000";
    origin.says("/v/beside", 200, &[("Cache-Control", swr), ("Age", "40")]);
    let first = edge.get("/v/beside").await;
    origin.says("/v/beside", 200, &[("Cache-Control", "max-age=1000")]);
    let stale = edge.get("/v/beside").await;
    assert_eq!((state(&stale).1, &stale.body), ("STALE".into(), &first.body));
    let fresh = hits(&edge, "/v/beside").await;
    assert!(fresh.text().contains(" 2 "), "{}", fresh.text());
    assert_eq!(origin.asked("/v/beside").len(), 2);
    // The upstream fails: what there is is better than nothing, where it says so.
    for (path, control, expected) in [
        ("/v/error", "max-age=10, stale-if-error=1000", (200, "STALE".to_owned())),
        ("/v/late", "max-age=10, stale-if-error=5", (503, "EXPIRED".to_owned())),
        (
            "/v/must",
            "max-age=10, must-revalidate, stale-if-error=1000",
            (503, "EXPIRED".to_owned()),
        ),
    ] {
        origin.says(path, 200, &[("Cache-Control", control), ("Age", "40"), ("ETag", "\"1\"")]);
        edge.get(path).await;
        origin.says(path, 503, &[]);
        assert_eq!(state(&edge.get(path).await), expected, "{path}");
    }
    origin.says(
        "/v/away",
        200,
        &[("Cache-Control", "max-age=10, stale-if-error=1000"), ("Age", "40")],
    );
    let first = edge.get("/v/away").await;
    let gone =
        json!({ "nodes": { format!("127.0.0.1:{}", super::world::free_port()): 1 }, "retries": 0 });
    let plugins = json!({ "proxy-cache": memory(json!({ "cache_control": true })) });
    edge.put("/routes/1", &json!({ "uri": "/v/*", "upstream": gone, "plugins": plugins })).await;
    let despite = edge.get("/v/away").await;
    assert_eq!((state(&despite), &despite.body), ((200, "STALE".into()), &first.body));
    assert_eq!(edge.get("/v/nothing").await.status, 502);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_who_want_the_same_one_asks() {
    let (edge, origin) = (Edge::new(), Origin::new());
    origin.route(&edge, "1", "/one/*", memory(json!({})), json!({})).await;
    origin.slow.store(true, Ordering::SeqCst);
    let all = async |path: &str| {
        let asking = (0..8).map(|_| edge.get(path));
        futures_util::future::join_all(asking).await
    };
    let answers = all("/one/a").await;
    let hits = answers.iter().filter(|answer| state(answer).1 == "HIT").count();
    assert_eq!((origin.asked("/one/a").len(), hits), (1, 7));
    // What is not kept is soon asked for by everybody.
    origin.says("/one/private", 200, &[("Cache-Control", "private")]);
    let answers = all("/one/private").await;
    assert_eq!(origin.asked("/one/private").len(), 8);
    assert!(answers.iter().all(|answer| state(answer) == (200, "MISS".into())));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_kept_for_one_consumer_is_given_to_no_other() {
    let (edge, origin) = (Edge::new(), Origin::new());
    for name in ["alice", "bob"] {
        let key = json!({ "key-auth": { "key": format!("{name}-key") } });
        edge.put("/consumers", &json!({ "username": name, "plugins": key })).await;
    }
    let auth = json!({ "key-auth": { "hide_credentials": true } });
    origin.route(&edge, "1", "/own/*", memory(json!({})), auth.clone()).await;
    let shared = memory(json!({ "consumer_isolation": false }));
    origin.route(&edge, "2", "/all/*", shared, auth).await;
    let ask = async |who: &str, path: &str| {
        let key = format!("{who}-key");
        state(&edge.ask("GET", path, &[("apikey", &key)]).await)
    };
    for (who, path, expected) in [
        ("alice", "/own/a", (200, "MISS")),
        ("alice", "/own/a", (200, "HIT")),
        ("bob", "/own/a", (200, "MISS")),
        ("bob", "/own/a", (200, "HIT")),
        ("mallory", "/own/a", (401, "-")),
        ("alice", "/all/a", (200, "MISS")),
        ("bob", "/all/a", (200, "HIT")),
        ("mallory", "/all/a", (401, "-")),
    ] {
        assert_eq!(ask(who, path).await, (expected.0, expected.1.to_owned()), "{who} {path}");
    }
    // Refreshing beside the traffic goes the caller's whole way, with its hidden credentials.
    origin.says(
        "/own/s",
        200,
        &[("Cache-Control", "max-age=1, stale-while-revalidate=1000"), ("Age", "9")],
    );
    origin
        .route(
            &edge,
            "1",
            "/own/*",
            memory(json!({ "cache_control": true })),
            json!({ "key-auth": { "hide_credentials": true } }),
        )
        .await;
    assert_eq!(ask("alice", "/own/s").await.1, "MISS");
    origin.says("/own/s", 200, &[("Cache-Control", "max-age=1000")]);
    assert_eq!(ask("alice", "/own/s").await.1, "STALE");
    eventually_async("it is fresh again", || async {
        (ask("alice", "/own/s").await.1 == "HIT").then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn policy_stands_before_the_cache_and_peers_have_their_own_answers() {
    let (world, origin) = (World::new(), Origin::new());
    let route = |uri: &str, id: &str| {
        json!({ "id": id, "uri": uri, "workload_selector": { "spiffe_ids": [world.id("/cart")] },
            "upstream": { "nodes": { origin.app.address.to_string(): 1 } },
            "plugins": { "proxy-cache": memory(json!({ "consumer_isolation": id == "own" })) } })
    };
    let resources = json!({
        "routes": [route("/own", "own"), route("/all", "all")],
        "identity_policies": [allow("web", &[&world.id("/cart")], &[&world.id("/web"), &world.id("/shop")])],
    });
    let sidecar = world.sidecar("/cart").resources(&resources).start();
    let [web, shop, stranger] = ["/web", "/shop", "/stranger"].map(|path| world.peer(path));
    for (peer, path, expected) in [
        (&web, "/own", (200, "MISS")),
        (&web, "/own", (200, "HIT")),
        (&shop, "/own", (200, "MISS")),
        (&web, "/all", (200, "MISS")),
        (&shop, "/all", (200, "HIT")),
        (&stranger, "/own", (403, "-")),
        (&stranger, "/all", (403, "-")),
    ] {
        let answer = peer.get(&sidecar, path).await;
        assert_eq!(state(&answer), (expected.0, expected.1.to_owned()), "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_on_disk_outlives_the_process_and_damage_is_seen() {
    let (world, origin) = (World::new(), Origin::new());
    let control = world.control().start();
    let admin: Admin = control.admin();
    let part = world.ingress().fed_by(&control);
    let mut ingress = part.start();
    let route = json!({ "uri": "/*", "plugins": { "proxy-cache": {} },
        "upstream": { "nodes": { origin.app.address.to_string(): 1 } } });
    let revision = admin.put("/routes/1", &route).await;
    admin.applied(revision, 1).await;
    let hits = async |address, path: &str| {
        eventually_async("it is given from disk", || async {
            let answer = super::world::get(address, path).await;
            (answer.header("apisix-cache-status") == Some("HIT")).then_some(answer)
        })
        .await
    };
    let address = ingress.address("ingress");
    let kept = hits(address, "/a").await;
    hits(address, "/b").await;
    let folder = ingress.state.join("cache/disk_cache_one");
    let names = |folder: &std::path::Path| {
        let mut found = Vec::new();
        let mut folders = vec![folder.to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() { folders.push(path) } else { found.push(path) }
            }
        }
        found.retain(|path| path.extension().is_none() && path.to_string_lossy().contains('-'));
        found
    };
    eventually_async("two files are there", || async { (names(&folder).len() == 2).then_some(()) })
        .await;
    ingress.end();
    // One of the two loses a byte.
    let damaged = names(&folder).remove(0);
    let mut bytes = std::fs::read(&damaged).unwrap();
    bytes[0] ^= 1;
    std::fs::write(&damaged, bytes).unwrap();
    let asked = origin.asked("/a").len() + origin.asked("/b").len();
    let ingress = part.start();
    let address = ingress.address("ingress");
    let (a, b) = (hits(address, "/a").await, hits(address, "/b").await);
    let count = |path: &str| origin.asked(path).len();
    assert_eq!(
        count("/a") + count("/b"),
        asked + 1,
        "one is whole, and the other is asked for anew"
    );
    assert!(a.text().starts_with("/a ") && b.text().starts_with("/b "));
    assert!(kept.text().starts_with("/a 1"));
}
