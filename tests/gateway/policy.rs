//! Who may do what to whom: decided by identity, explained by id, changed while connections are open.

use serde_json::{Value, json};

use crate::world::{Admin, Answer, App, Process, World, allow, eventually_async, get, run, send};

/// A workload behind its sidecar, and a control plane that says who may call it.
struct Mesh {
    world: World,
    _control: Process,
    admin: Admin,
    app: App,
    billing: Process,
}

impl Mesh {
    fn new() -> Self {
        let world = World::new();
        let control = world.control().start();
        let admin = control.admin();
        let app = App::echo("billing");
        let billing = world.sidecar("/billing").app(&app).fed_by(&control).start();
        Self { world, _control: control, admin, app, billing }
    }

    /// Puts a policy for billing into force.
    async fn policy(&self, id: &str, action: &str, rules: Value) {
        let policy = json!({
            "selector": { "workloads": [self.world.id("/billing")] },
            "action": action,
            "rules": rules,
        });
        self.declare(id, &policy).await;
    }

    async fn declare(&self, id: &str, policy: &Value) {
        let revision = self.admin.put(&format!("/identity_policies/{id}"), policy).await;
        self.admin.applied(revision, 1).await;
    }

    async fn call(&self, who: &str, method: &str, path: &str) -> Answer {
        self.world.peer(who).send(&self.billing, method, path, &[], "").await
    }

    /// Who may do what: each row is `who method path`, and whether it is allowed.
    async fn holds(&self, rows: &[(&str, &str, &str, bool)]) {
        for (who, method, path, allowed) in rows {
            let answer = self.call(who, method, path).await;
            let expected = if *allowed { 200 } else { 403 };
            assert_eq!(answer.status, expected, "{who} {method} {path}: {}", answer.text());
        }
    }

    fn explain(&self, answer: &Answer) -> String {
        let log = self.billing.audit_file();
        self.billing.record_with("/denial_id", &json!(answer.denial()));
        run(["explain", "denial", answer.denial(), "--log", log.to_str().unwrap()]).good()
    }
}

#[tokio::test]
async fn nothing_is_allowed_by_default_and_the_refusal_says_so() {
    let mesh = Mesh::new();
    let answer = mesh.call("/shop", "GET", "/invoices/7").await;
    assert_eq!(answer.status, 403);
    assert_eq!(answer.header("content-type"), Some("application/problem+json"));
    let problem = answer.json();
    assert_eq!((&problem["status"], &problem["title"]), (&json!(403), &json!("Forbidden")));
    assert_eq!(problem["denial"], json!(answer.denial()));
    assert_eq!(problem["reason"], "no_rule");
    assert!(problem["type"].is_string() && problem["detail"].is_string());
    assert_eq!(mesh.app.requests(), 0);

    let told = mesh.explain(&answer);
    for part in [
        answer.denial(),
        &mesh.world.id("/shop"),
        &mesh.world.id("/billing"),
        "GET /invoices/7",
        "no_rule",
    ] {
        assert!(told.contains(part), "{part} in {told}");
    }
    let unknown = run([
        "explain",
        "denial",
        "d-0000000000",
        "--log",
        mesh.billing.audit_file().to_str().unwrap(),
    ]);
    assert_eq!(unknown.code, Some(1), "{}", unknown.out);
}

#[tokio::test]
async fn principals_are_compared_segment_by_segment() {
    let mesh = Mesh::new();
    let id = |path: &str| mesh.world.id(path);
    let rules = json!([{ "from": { "principals": [id("/web"), id("/jobs/*"), id("/ops/**")] } }]);
    mesh.policy("p", "allow", rules).await;
    mesh.holds(&[
        ("/web", "GET", "/", true),
        ("/web2", "GET", "/", false),
        ("/we", "GET", "/", false),
        ("/web/child", "GET", "/", false),
        ("/jobs", "GET", "/", false),
        ("/jobs/nightly", "GET", "/", true),
        ("/jobs/nightly/one", "GET", "/", false),
        ("/ops", "GET", "/", false),
        ("/ops/a/b/c", "GET", "/", true),
        ("/opsy/a", "GET", "/", false),
    ])
    .await;

    let everybody_but = json!([{
        "from": { "trust_domains": ["shop.test"], "not_principals": [id("/web")] },
    }]);
    mesh.policy("p", "allow", everybody_but).await;
    mesh.holds(&[("/web", "GET", "/", false), ("/jobs", "GET", "/", true)]).await;
    let elsewhere = json!([{ "from": { "trust_domains": ["elsewhere.test"] } }]);
    mesh.policy("p", "allow", elsewhere).await;
    mesh.holds(&[("/web", "GET", "/", false)]).await;
}

#[tokio::test]
async fn methods_paths_hosts_and_ports_narrow_a_rule() {
    let mesh = Mesh::new();
    let shop = json!({ "principals": [mesh.world.id("/shop")] });
    let read = json!([{ "from": shop, "to": { "methods": ["GET"], "paths": ["/invoices/{id}", "/files/**"] } }]);
    mesh.policy("p", "allow", read).await;
    mesh.holds(&[
        ("/shop", "GET", "/invoices/7", true),
        ("/shop", "GET", "/invoices/7?full=1", true),
        ("/shop", "POST", "/invoices/7", false),
        ("/shop", "GET", "/invoices", false),
        ("/shop", "GET", "/invoices/", false),
        ("/shop", "GET", "/invoices/7/lines", false),
        ("/shop", "GET", "/Invoices/7", false),
        ("/shop", "GET", "/files", true),
        ("/shop", "GET", "/files/a/b", true),
        ("/shop", "GET", "/filesystem", false),
        ("/web", "GET", "/invoices/7", false),
    ])
    .await;

    let port = mesh.billing.address("inbound").port();
    for (ports, allowed) in [(json!([port]), true), (json!([port ^ 1]), false)] {
        mesh.policy("p", "allow", json!([{ "from": shop, "to": { "ports": ports } }])).await;
        mesh.holds(&[("/shop", "GET", "/", allowed)]).await;
    }

    let hosts = json!([{ "from": shop, "to": { "hosts": ["billing.shop", "*.internal"] } }]);
    mesh.policy("p", "allow", hosts).await;
    let peer = mesh.world.peer("/shop");
    for (host, allowed) in [
        ("billing.shop", true),
        ("BILLING.shop:15006", true),
        ("a.b.internal", true),
        ("internal", false),
        ("billing.shop.evil", false),
    ] {
        let answer = peer.send(&mesh.billing, "GET", "/", &[("host", host)], "").await;
        assert_eq!(answer.status, if allowed { 200 } else { 403 }, "{host}");
    }
}

#[tokio::test]
async fn deny_wins_over_every_allow() {
    let mesh = Mesh::new();
    mesh.policy("everything", "allow", json!([{ "name": "all" }])).await;
    mesh.holds(&[("/shop", "DELETE", "/invoices/7", true)]).await;
    let never = json!([{ "name": "no-deletes", "to": { "methods": ["DELETE"] } }]);
    mesh.policy("never", "deny", never).await;
    mesh.holds(&[("/shop", "GET", "/invoices/7", true)]).await;
    let answer = mesh.call("/shop", "DELETE", "/invoices/7").await;
    assert_eq!((answer.status, &answer.json()["reason"]), (403, &json!("denied_by_rule")));
    let record = mesh.billing.record_with("/denial_id", &json!(answer.denial()));
    assert_eq!((&record["policy_id"], &record["rule"]), (&json!("never"), &json!("no-deletes")));
    let told = mesh.explain(&answer);
    assert!(told.contains("policy never, rule no-deletes"), "{told}");
}

#[tokio::test]
async fn a_policy_that_only_observes_decides_nothing_and_is_on_record() {
    let mesh = Mesh::new();
    mesh.policy("everything", "allow", json!([{ "name": "all" }])).await;
    let mut watching = json!({
        "selector": { "workloads": [mesh.world.id("/billing")] },
        "action": "deny", "mode": "observe",
        "rules": [{ "name": "no-posts", "to": { "methods": ["POST"] } }],
    });
    mesh.declare("watching", &watching).await;
    mesh.holds(&[("/shop", "GET", "/a", true), ("/shop", "POST", "/b", true)]).await;
    let unchanged = mesh.billing.record_with("/path", &json!("/a"));
    assert_eq!((&unchanged["outcome"], unchanged.get("would_be")), (&json!("allow"), None));
    let record = mesh.billing.record_with("/path", &json!("/b"));
    assert_eq!(record["outcome"], "allow");
    let would_be = &record["would_be"];
    assert_eq!(would_be["outcome"], "deny");
    assert_eq!(
        (&would_be["policy_id"], &would_be["rule"]),
        (&json!("watching"), &json!("no-posts"))
    );

    watching["mode"] = json!("enforce");
    mesh.declare("watching", &watching).await;
    mesh.holds(&[("/shop", "GET", "/a", true), ("/shop", "POST", "/b", false)]).await;
}

#[tokio::test]
async fn no_spelling_of_a_path_gets_around_a_rule() {
    let mesh = Mesh::new();
    mesh.policy("files", "allow", json!([{ "to": { "paths": ["/files/**"] } }])).await;
    let tricks = [
        "/files/../admin",
        "/files/%2e%2e/admin",
        "/files/..%2fadmin",
        "/files/%2e%2e%2fadmin",
        "/files/..;/admin",
        "/files/..;x=1/admin",
        "/files/..%5cadmin",
        "/files/%252e%252e/admin",
        "/files/%c0%ae%c0%ae/admin",
        "//files/../admin",
        "/./admin",
        "/admin",
        "/admin;/files",
        "/admin/..%2f..",
        "/Files/a",
        "/files%2f..%2fadmin",
    ];
    for path in tricks {
        let answer = mesh.call("/shop", "GET", path).await;
        assert_eq!(answer.status, 403, "{path}: {}", answer.text());
        assert!(mesh.explain(&answer).contains(answer.denial()), "{path}");
    }
    for path in ["/files/%zz", "/files/a%00b"] {
        let answer = mesh.call("/shop", "GET", path).await;
        assert_eq!(answer.status, 400, "{path}: what is no HTTP is no question of policy");
    }
    assert_eq!(mesh.app.requests(), 0);

    // The other way round: everything is allowed but /admin.
    mesh.policy("files", "allow", json!([{ "name": "all" }])).await;
    mesh.policy("admin", "deny", json!([{ "to": { "paths": ["/admin/**"] } }])).await;
    for path in [
        "/admin",
        "/admin/",
        "//admin",
        "/admin/x",
        "///admin//x",
        "/./admin",
        "/x/../admin",
        "/x/%2e%2e/admin",
        "/%61dmin",
        "/%2561dmin",
        "/admin;x=1",
        "/admin;/x",
        "/x/..;/admin",
        "/admin%2fx",
        "/admin%3fx",
        "/admin%23x",
        "/\\admin",
        "/x%5c..%5cadmin",
    ] {
        let answer = mesh.call("/shop", "GET", path).await;
        assert_eq!(answer.status, 403, "{path}: {}", answer.text());
    }
    assert_eq!(mesh.app.requests(), 0);
    mesh.holds(&[("/shop", "GET", "/administrators", true), ("/shop", "GET", "/x", true)]).await;
    let last = mesh.call("/shop", "GET", "/a%20b/%7Ec;d=1").await;
    assert_eq!(last.json()["path"], "/a%20b/%7Ec;d=1", "what passes is forwarded as it came");
}

#[tokio::test]
async fn what_explain_proposes_does_allow_it() {
    let mesh = Mesh::new();
    let shop = json!({ "principals": [mesh.world.id("/shop")] });
    let read = json!([{ "name": "read", "from": shop, "to": { "methods": ["GET"], "paths": ["/invoices/{id}"] } }]);
    mesh.policy("p", "allow", read).await;
    let answer = mesh.call("/shop", "DELETE", "/invoices/7").await;
    assert_eq!(answer.status, 403);
    let record = mesh.billing.record_with("/denial_id", &json!(answer.denial()));
    let nearest = json!({ "policy_id": "p", "rule": "read", "clause": "methods" });
    assert_eq!(record["nearest"], nearest);

    let (log, admin) = (mesh.billing.audit_file(), format!("http://{}", mesh.admin.address));
    let mut command: Vec<&str> = vec!["explain", "denial", answer.denial()];
    command.extend(["--log", log.to_str().unwrap(), "--admin", &admin]);
    command.extend(["--key", &mesh.admin.key, "--output", "json"]);
    let told: Value = serde_json::from_str(&run(command).good()).unwrap();
    assert_eq!(told["record"]["denial_id"], json!(answer.denial()));
    let proposed = find_policy(&told["advice"]).unwrap_or_else(|| panic!("no policy in {told:#}"));
    mesh.declare("p", proposed).await;
    mesh.holds(&[
        ("/shop", "DELETE", "/invoices/7", true),
        ("/shop", "GET", "/invoices/7", true),
        ("/shop", "POST", "/invoices/7", false),
    ])
    .await;
}

/// The first object in the advice that is a whole policy.
fn find_policy(value: &Value) -> Option<&Value> {
    match value {
        Value::Object(fields) if fields.contains_key("rules") && fields.contains_key("action") => {
            Some(value)
        }
        Value::Object(fields) => fields.values().find_map(find_policy),
        Value::Array(items) => items.iter().find_map(find_policy),
        _ => None,
    }
}

#[tokio::test]
async fn a_change_of_policy_holds_for_the_next_request_of_an_open_connection() {
    let mesh = Mesh::new();
    let (shop, web) = (mesh.world.id("/shop"), mesh.world.id("/web"));
    // Whom no rule can admit any more loses the connection: /shop may always ask for something.
    let only = |who: &str| {
        json!([
            { "from": { "principals": [who] } },
            { "from": { "principals": [shop] }, "to": { "paths": ["/always"] } },
        ])
    };
    mesh.policy("p", "allow", only(&shop)).await;
    let mut connection = mesh.world.peer("/shop").connect(&mesh.billing).await;
    for allowed in [true, false, true, false] {
        mesh.policy("p", "allow", only(if allowed { &shop } else { &web })).await;
        for _ in 0..2 {
            let answer = connection.get("/").await;
            assert_eq!(answer.status, if allowed { 200 } else { 403 }, "{}", answer.text());
        }
    }
    let connections: std::collections::BTreeSet<u64> = mesh
        .billing
        .audit()
        .iter()
        .filter(|record| record["type"] == "decision")
        .map(|record| record["conn_id"].as_u64().unwrap())
        .collect();
    assert_eq!(connections.len(), 1, "it was one connection all the time");
}

#[tokio::test]
async fn no_header_makes_an_identity() {
    let mesh = Mesh::new();
    let boss = mesh.world.id("/boss");
    mesh.policy("p", "allow", json!([{ "from": { "principals": [boss] } }])).await;
    let claim = format!("By=x;Hash=00;URI={boss}");
    let claims = [
        ("x-forwarded-client-cert", claim.as_str()),
        ("X-Forwarded-Client-Cert", claim.as_str()),
        ("x-spiffe-id", boss.as_str()),
    ];
    let peer = mesh.world.peer("/shop");
    assert_eq!(peer.send(&mesh.billing, "GET", "/", &claims, "").await.status, 403);

    let everybody = json!([{ "name": "all" }]);
    mesh.policy("p", "allow", everybody).await;
    let echo = peer.send(&mesh.billing, "GET", "/", &claims, "").await.json();
    let seen = echo["headers"]["x-forwarded-client-cert"].as_str().unwrap();
    assert!(seen.contains(&mesh.world.id("/shop")) && !seen.contains(&boss), "{seen}");
}

#[tokio::test]
async fn at_the_ingress_policy_holds_where_it_selects_a_route() {
    let world = World::new();
    let app = App::echo("app");
    let upstream = json!({ "nodes": { app.address.to_string(): 1 } });
    let ingress = world
        .ingress()
        .resources(&json!({
            "routes": [
                { "id": "open", "uri": "/open", "upstream": upstream },
                { "id": "closed", "uri": "/closed", "upstream": upstream },
                { "id": "labelled", "uri": "/labelled", "labels": { "tier": "internal" }, "upstream": upstream },
            ],
            "identity_policies": [
                { "id": "by-route", "selector": { "routes": ["closed"] }, "action": "allow",
                  "rules": [{ "from": { "principals": [world.id("/shop")] } }] },
                { "id": "by-label", "selector": { "labels": { "tier": "internal" } }, "action": "deny",
                  "rules": [{ "name": "all" }] },
            ],
        }))
        .start();
    let door = ingress.address("ingress");
    assert_eq!(get(door, "/open").await.status, 200);
    let closed = get(door, "/closed").await;
    assert_eq!((closed.status, &closed.json()["reason"]), (403, &json!("no_identity")));
    let labelled = get(door, "/labelled").await;
    assert_eq!((labelled.status, &labelled.json()["reason"]), (403, &json!("denied_by_rule")));
    for answer in [&closed, &labelled] {
        let record = ingress.record_with("/denial_id", &json!(answer.denial()));
        assert_eq!(record["src"].get("spiffe_id"), None);
    }
}

#[tokio::test]
async fn a_policy_that_cannot_be_read_refuses_rather_than_lets_pass() {
    let world = World::new();
    let app = App::echo("app");
    let everything = allow("everything", &[&world.id("/billing")], &[&world.id("/**")]);
    let part = world.sidecar("/billing").app(&app);
    let selector = json!({ "workloads": [world.id("/billing")] });
    for broken in [
        json!({ "id": "b", "selector": selector, "action": "deny", "rules": [{ "form": {} }] }),
        json!({ "id": "b", "selector": selector, "action": "deny",
                "rules": [{ "from": { "principals": ["not a pattern"] } }] }),
        json!({ "id": "b", "selector": selector, "action": "deny",
                "rules": [{ "to": { "paths": ["no-slash"] } }] }),
    ] {
        let policies = json!({ "identity_policies": [everything, broken] });
        let part = world.sidecar("/billing").app(&app).resources(&policies);
        let billing = part.start();
        let answer = world.peer("/shop").get(&billing, "/").await;
        assert_eq!(answer.status, 403, "{broken}: {}", answer.text());
        assert_eq!(answer.json()["reason"], "broken_policy");
    }
    // A version that cannot be read leaves the one before it in force, and one that never could goes with its place.
    let shop = world.peer("/shop");
    let billing = part.resources(&json!({ "identity_policies": [everything] })).start();
    assert_eq!(shop.get(&billing, "/").await.status, 200);
    let becomes = async |policies: Value, status: u16| {
        billing.write_resources(&json!({ "identity_policies": policies }));
        eventually_async(&format!("{status} for {policies}"), || async {
            (shop.get(&billing, "/").await.status == status).then_some(())
        })
        .await;
    };
    let unreadable = json!({ "id": "b", "action": "obliterate" });
    becomes(json!([everything, unreadable]), 403).await;
    becomes(json!([everything]), 200).await;
    let mut unreadable = everything.clone();
    unreadable["colour"] = json!("red");
    billing.write_resources(&json!({ "identity_policies": [unreadable] }));
    billing.logs("colour");
    assert_eq!(shop.get(&billing, "/").await.status, 200);
}

#[tokio::test]
async fn a_global_rule_that_cannot_be_read_closes_every_route() {
    let world = World::new();
    let app = App::echo("app");
    let upstream = json!({ "nodes": { app.address.to_string(): 1 } });
    let ingress = world
        .ingress()
        .resources(&json!({
            "routes": [{ "id": "1", "uri": "/*", "upstream": upstream }],
            "global_rules": [{ "id": "1", "plugs": {} }],
        }))
        .start();
    let answer = get(ingress.address("ingress"), "/").await;
    assert_eq!((answer.status, app.requests()), (503, 0), "{}", answer.text());
}

#[tokio::test]
async fn a_grpc_caller_reads_the_refusal_as_grpc() {
    let mesh = Mesh::new();
    let headers = [("content-type", "application/grpc"), ("te", "trailers")];
    let answer = mesh.world.peer("/shop").send(&mesh.billing, "POST", "/a.B/C", &headers, "").await;
    assert_eq!((answer.status, answer.header("grpc-status")), (200, Some("7")));
    assert!(answer.denial().starts_with("d-"));
    let outbound = send(mesh.billing.address("outbound"), "GET", "/", &[], "").await;
    assert_eq!(outbound.status, 404, "a call to nobody we know");
}
