//! The first eight plugins over real sockets: declared through the Admin API, seen by a client of the ingress and by the
//! application behind it.

use serde_json::{Value, json};

use super::world::{Admin, Answer, App, Process, World, eventually_async, raw_to, send};

/// A control plane, an ingress that it feeds, and an application that tells what it got.
pub(crate) struct Edge {
    _world: World,
    _control: Process,
    pub ingress: Process,
    pub admin: Admin,
    pub app: App,
}

impl Edge {
    pub(crate) fn new() -> Self {
        let world = World::new();
        let control = world.control().start();
        let admin = control.admin();
        let ingress = world.ingress().fed_by(&control).set("status", &json!("127.0.0.1:0")).start();
        Self { _world: world, _control: control, ingress, admin, app: App::echo("app") }
    }

    pub(crate) fn upstream(&self) -> Value {
        json!({ "nodes": { self.app.address.to_string(): 1 } })
    }

    /// Declares a route to the application with these plugins, and waits until the ingress runs it.
    pub(crate) async fn route(&self, id: &str, uri: &str, plugins: Value) {
        let route = json!({ "uri": uri, "upstream": self.upstream(), "plugins": plugins });
        self.put(&format!("/routes/{id}"), &route).await;
    }

    pub(crate) async fn put(&self, path: &str, body: &Value) {
        let revision = self.admin.put(path, body).await;
        self.admin.applied(revision, 1).await;
    }

    pub(crate) async fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> Answer {
        send(self.ingress.address("ingress"), method, path, headers, "").await
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, &[]).await
    }

    pub(crate) async fn post(&self, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
        send(self.ingress.address("ingress"), "POST", path, headers, body.to_owned()).await
    }

    /// Each of these settings is refused at the write, with the reason that it stands with.
    pub(crate) async fn refuses(&self, plugin: &str, table: &[(Value, &str)]) {
        for (settings, says) in table {
            let route = json!({ "uri": "/refused", "upstream": self.upstream(), "plugins": { plugin: settings } });
            let answer = self.admin.ask("PUT", "/routes/refused", Some(&route)).await;
            assert_eq!(answer.status, 400, "{settings}: {}", answer.text());
            assert!(answer.text().contains(says), "{settings}: {}", answer.text());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn key_auth_knows_its_consumers_and_tells_the_application_who_called() {
    let edge = Edge::new();
    let consumer =
        json!({ "username": "alice", "plugins": { "key-auth": { "key": "alice-key" } } });
    edge.put("/consumers", &consumer).await;
    edge.route("1", "/private/*", json!({ "key-auth": { "hide_credentials": true } })).await;

    let refused = edge.get("/private/a").await;
    assert_eq!(refused.status, 401);
    assert_eq!(refused.json(), json!({ "message": "Missing API key in request" }));
    assert_eq!(refused.header("www-authenticate"), Some("apikey realm=\"key\""));
    let wrong = edge.ask("GET", "/private/a", &[("apikey", "nobody's")]).await;
    assert_eq!(
        (wrong.status, wrong.json()),
        (401, json!({ "message": "Invalid API key in request" }))
    );
    assert_eq!(edge.app.requests(), 0, "nobody came through without a key");

    let spoofed = [("apikey", "alice-key"), ("X-Consumer-Username", "root")];
    let answer = edge.ask("GET", "/private/a", &spoofed).await;
    assert_eq!(answer.status, 200);
    let seen = answer.json();
    assert_eq!(seen["headers"]["x-consumer-username"], "alice");
    assert_eq!(seen["headers"].get("apikey"), None, "the key is hidden");
    let by_query = edge.get("/private/a?apikey=alice-key&b=1").await;
    assert_eq!((by_query.status, by_query.json()["path"].clone()), (200, json!("/private/a?b=1")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumers_plugins_win_over_the_routes_and_run_after_it_is_known() {
    let edge = Edge::new();
    let strict = json!({ "count": 1, "time_window": 600, "rejected_code": 429, "key_type": "constant", "key": "all" });
    let loose = json!({ "count": 100, "time_window": 600, "rejected_code": 429 });
    edge.put("/consumer_groups/slow", &json!({ "plugins": { "limit-count": strict } })).await;
    edge.put(
        "/consumers",
        &json!({ "username": "slow", "group_id": "slow", "plugins": { "key-auth": { "key": "slow-key" } } }),
    )
    .await;
    edge.put(
        "/consumers",
        &json!({ "username": "fast", "plugins": { "key-auth": { "key": "fast-key" } } }),
    )
    .await;
    edge.put("/services/s", &json!({ "plugins": { "response-rewrite": { "headers": { "set": { "x-from": "service" } } } } }))
        .await;
    let route = json!({ "uri": "/*", "service_id": "s", "upstream": edge.upstream(),
        "plugins": { "key-auth": {}, "limit-count": loose } });
    edge.put("/routes/1", &route).await;

    for expected in [200, 429] {
        let answer = edge.ask("GET", "/", &[("apikey", "slow-key")]).await;
        assert_eq!(answer.status, expected, "the group's limit holds for its consumer");
    }
    for _ in 0..3 {
        let answer = edge.ask("GET", "/", &[("apikey", "fast-key")]).await;
        assert_eq!(answer.status, 200, "the route's own limit holds for the others");
        assert_eq!(
            answer.header("x-from"),
            Some("service"),
            "the service gives what the route lacks"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ip_restriction_admits_by_the_sockets_address_and_by_no_header() {
    let edge = Edge::new();
    edge.route("1", "/own", json!({ "ip-restriction": { "whitelist": ["127.0.0.0/8"] } })).await;
    edge.route(
        "2",
        "/others",
        json!({ "ip-restriction": { "whitelist": ["10.1.2.3"], "message": "not you" } }),
    )
    .await;
    assert_eq!(edge.get("/own").await.status, 200);
    let forged = [("x-real-ip", "10.1.2.3"), ("x-forwarded-for", "10.1.2.3")];
    let refused = edge.ask("GET", "/others", &forged).await;
    assert_eq!((refused.status, refused.json()), (403, json!({ "message": "not you" })));
}

#[tokio::test(flavor = "multi_thread")]
async fn limit_count_counts_tells_and_keeps_counting_over_a_change_of_something_else() {
    let edge = Edge::new();
    let limit = json!({ "limit-count": { "count": 2, "time_window": 600, "rejected_code": 503, "rejected_msg": "enough" } });
    edge.route("1", "/limited", limit.clone()).await;
    let first = edge.get("/limited").await;
    assert_eq!(
        (first.status, first.header("x-ratelimit-limit"), first.header("x-ratelimit-remaining")),
        (200, Some("2"), Some("1"))
    );
    // Another route changes: the counter lives on.
    edge.route("2", "/other", json!({})).await;
    let mut more = limit;
    more["response-rewrite"] = json!({ "headers": { "set": { "x-new": "1" } } });
    edge.route("1", "/limited", more).await;
    assert_eq!(edge.get("/limited").await.header("x-new"), Some("1"));
    let over = edge.get("/limited").await;
    assert_eq!((over.status, over.json()), (503, json!({ "error_msg": "enough" })));
}

#[tokio::test(flavor = "multi_thread")]
async fn proxy_rewrite_changes_what_goes_upstream() {
    let edge = Edge::new();
    let rewrite = json!({ "regex_uri": ["^/old/(.*)", "/new/$1"], "host": "inner.example", "method": "PUT",
        "headers": { "set": { "x-way": "$request_method $uri" }, "remove": ["x-gone"] } });
    edge.route("1", "/old/*", json!({ "proxy-rewrite": rewrite })).await;
    let seen = edge.ask("GET", "/old/a/b?c=d", &[("x-gone", "1")]).await.json();
    assert_eq!((&seen["method"], &seen["path"]), (&json!("PUT"), &json!("/new/a/b?c=d")));
    assert_eq!(seen["headers"]["host"], "inner.example");
    assert_eq!(seen["headers"]["x-way"], "GET /old/a/b");
    assert_eq!(seen["headers"].get("x-gone"), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn response_rewrite_changes_status_headers_and_body() {
    let edge = Edge::new();
    let rewrite = json!({ "status_code": 202, "body": "{\"new\":true}", "headers": { "set": { "x-a": "1" } } });
    edge.route("1", "/r", json!({ "response-rewrite": rewrite })).await;
    let answer = edge.get("/r").await;
    assert_eq!(
        (answer.status, answer.header("x-a"), answer.json()),
        (202, Some("1"), json!({ "new": true }))
    );
    let filter = json!({ "filters": [{ "regex": "GET", "replace": "SEEN", "scope": "once" }] });
    edge.route("2", "/f", json!({ "response-rewrite": filter })).await;
    assert_eq!(edge.get("/f").await.json()["method"], "SEEN");
}

#[tokio::test(flavor = "multi_thread")]
async fn redirect_answers_itself() {
    let edge = Edge::new();
    edge.route("1", "/here/*", json!({ "redirect": { "uri": "/there$uri", "ret_code": 301 } }))
        .await;
    edge.route("2", "/tls", json!({ "redirect": { "http_to_https": true } })).await;
    let answer = edge.get("/here/a").await;
    assert_eq!((answer.status, answer.header("location")), (301, Some("/there/here/a")));
    let answer = edge.ask("POST", "/tls", &[("host", "a.example")]).await;
    assert_eq!(answer.status, 308);
    assert!(
        answer.header("location").is_some_and(|to| to.starts_with("https://a.example")),
        "{answer:?}"
    );
    assert_eq!(edge.app.requests(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn request_id_gives_an_id_where_there_is_none() {
    let edge = Edge::new();
    edge.route("1", "/*", json!({ "request-id": {} })).await;
    let answer = edge.get("/").await;
    let given = answer.header("x-request-id").expect("an id").to_owned();
    assert_eq!(answer.json()["headers"]["x-request-id"], given.as_str());
    assert_ne!(edge.get("/").await.header("x-request-id"), Some(given.as_str()));
    let own = edge.ask("GET", "/", &[("x-request-id", "mine")]).await;
    assert_eq!(own.header("x-request-id"), Some("mine"));
}

#[tokio::test(flavor = "multi_thread")]
async fn prometheus_counts_under_apisix_names() {
    let edge = Edge::new();
    edge.route("shop", "/shop", json!({ "prometheus": {} })).await;
    edge.get("/shop").await;
    let status = edge.ingress.address("status");
    let line = eventually_async("the request in the metrics", || async {
        let text = send(status, "GET", "/apisix/prometheus/metrics", &[], "").await.text();
        text.lines().find(|line| line.starts_with("apisix_http_status{")).map(str::to_owned)
    })
    .await;
    for label in [
        "code=\"200\"",
        "route=\"shop\"",
        "matched_uri=\"/shop\"",
        "node=\"127.0.0.1\"",
        "response_source=\"upstream\"",
    ] {
        assert!(line.contains(label), "{label} in {line}");
    }
    // Each of them comes into being when the first of its kind is counted.
    for name in ["apisix_http_latency_bucket{", "apisix_bandwidth{", "apisix_http_requests_total "]
    {
        eventually_async(name, || async {
            let text = send(status, "GET", "/apisix/prometheus/metrics", &[], "").await.text();
            text.contains(name).then_some(())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn all_bytes_of_a_request_are_counted_those_that_came_with_its_head_as_well() {
    let edge = Edge::new();
    edge.route("shop", "/shop", json!({ "prometheus": {} })).await;
    let (door, status) = (edge.ingress.address("ingress"), edge.ingress.address("status"));
    let body = "x".repeat(1000);
    let chunked = format!("3e8\r\n{body}\r\n0\r\nX-Sum: 7\r\n\r\n");
    let mut total = 0;
    for (framing, body) in
        [("Content-Length: 1000", &body), ("Transfer-Encoding: chunked", &chunked)]
    {
        let request = format!(
            "POST /shop HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{framing}\r\n\r\n{body}"
        );
        total += request.len();
        assert!(raw_to(door, request.as_bytes()).await.starts_with("HTTP/1.1 200"));
        eventually_async("the bytes in the metrics", || async {
            let text = send(status, "GET", "/apisix/prometheus/metrics", &[], "").await.text();
            let mut lines = text.lines().filter(|line| line.starts_with("apisix_bandwidth{"));
            let line = lines.find(|line| line.contains("type=\"ingress\""))?;
            line.ends_with(&format!(" {total}")).then_some(())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_global_rule_runs_before_every_route_and_where_none_matches() {
    let edge = Edge::new();
    edge.route("1", "/a", json!({})).await;
    edge.put(
        "/global_rules/1",
        &json!({ "plugins": { "response-rewrite": { "headers": { "set": { "x-all": "1" } } } } }),
    )
    .await;
    for (path, status) in [("/a", 200), ("/nowhere", 404)] {
        let answer = edge.get(path).await;
        assert_eq!((answer.status, answer.header("x-all")), (status, Some("1")), "{path}");
    }
}
