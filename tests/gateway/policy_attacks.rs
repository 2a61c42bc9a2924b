//! Ways around a policy, numbered as in the catalogue of attacks: 45 to 60 (path, host and fields), 61 to 69 (who claims to be
//! whom). Each row is written through the Admin API and tried over the real sidecar.
//!
//! Not here: 48 and 50 as questions of framing are in `http1.rs`; 66 and 67 need their own door, in `origin.rs`; 60 for streams
//! of HTTP/2 and tunnels that are open is in `tunnels.rs`. 56 and 57 need external authorization and 62 for Wasm needs Wasm,
//! which this version does not have.

use serde_json::{Value, json};
use wardgate::mtls::Alpn;

use crate::mesh::Wire;
use crate::world::{Admin, Answer, App, Process, World};

/// A workload behind its sidecar, and a control plane that says who may call it.
struct Target {
    world: World,
    _control: Process,
    admin: Admin,
    app: App,
    billing: Process,
}

/// One request and what must become of it.
struct Try {
    method: &'static str,
    path: &'static str,
    headers: Vec<(&'static str, String)>,
    expected: Expected,
}

#[derive(Clone, Copy, Debug)]
enum Expected {
    Passes,
    Refused(&'static str),
    /// No question of policy: it is no lawful request.
    Malformed,
    /// One of the two: it is nobody's to get through.
    Kept,
}

fn get(path: &'static str, expected: Expected) -> Try {
    Try { method: "GET", path, headers: Vec::new(), expected }
}

impl Try {
    fn with(mut self, name: &'static str, value: &str) -> Self {
        self.headers.push((name, value.to_owned()));
        self
    }
}

use Expected::{Kept, Malformed, Passes, Refused};

const DENIED: Expected = Refused("denied_by_rule");
const NO_RULE: Expected = Refused("no_rule");

impl Target {
    fn new() -> Self {
        let world = World::new();
        let control = world.control().start();
        let admin = control.admin();
        let app = App::echo("billing");
        // Whoever connects from this host may introduce others.
        let proxy_protocol = json!({ "inbound": { "trusted": ["127.0.0.1"], "required": false } });
        let billing = world
            .sidecar("/billing")
            .app(&app)
            .set("sidecar.proxy_protocol", &proxy_protocol)
            .fed_by(&control)
            .start();
        Self { world, _control: control, admin, app, billing }
    }

    /// These two policies are in force, and no others.
    async fn policies(&self, allow: Value, deny: Option<Value>) {
        let put = async |id: &str, action: &str, rules: Value| {
            let policy = json!({ "action": action, "rules": rules });
            self.admin.put(&format!("/identity_policies/{id}"), &policy).await
        };
        let mut revision = put("allow", "allow", allow).await;
        match deny {
            Some(rules) => revision = put("deny", "deny", rules).await,
            None => {
                let gone = self.admin.ask("DELETE", "/identity_policies/deny", None).await;
                if gone.status == 200 {
                    revision = gone.revision();
                }
            }
        }
        self.admin.applied(revision, 1).await;
    }

    async fn send(&self, one: &Try) -> Answer {
        let headers: Vec<(&str, &str)> =
            one.headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        self.world.peer("/shop").send(&self.billing, one.method, one.path, &headers, "").await
    }

    async fn row(&self, number: u8, allow: Value, deny: Option<Value>, tries: &[Try]) {
        self.policies(allow, deny).await;
        for one in tries {
            let before = self.app.requests();
            let answer = self.send(one).await;
            let (method, path) = (one.method, one.path);
            let what =
                format!("row {number}: {method} {path} {:?}: {}", one.headers, answer.text());
            match one.expected {
                Passes => assert_eq!(answer.status, 200, "{what}"),
                Malformed => assert_eq!(answer.status, 400, "{what}"),
                Kept => assert!(matches!(answer.status, 400 | 403), "{what}"),
                Refused(reason) => {
                    assert_eq!(answer.status, 403, "{what}");
                    assert_eq!(answer.json()["reason"], reason, "{what}");
                    let record = self.billing.record_with("/denial_id", &json!(answer.denial()));
                    assert_eq!(record["reason"], reason, "{what}");
                }
            }
            if !matches!(one.expected, Passes) {
                assert_eq!(self.app.requests(), before, "{what}: the application saw it");
            }
        }
    }

    /// What the application sees of a request that is allowed.
    async fn seen(&self, number: u8, one: Try) -> Value {
        let answer = self.send(&one).await;
        assert_eq!(answer.status, 200, "row {number}: {}", answer.text());
        answer.json()
    }
}

fn everybody() -> Value {
    json!([{ "name": "all" }])
}

fn to(target: &Value) -> Value {
    json!([{ "name": "r", "to": target }])
}

fn when(circumstances: &Value) -> Value {
    json!([{ "name": "r", "when": circumstances }])
}

#[tokio::test]
async fn rows_45_to_52_no_spelling_of_a_path_or_a_host_gets_around_a_rule() {
    let it = Target::new();
    let no_admin = || Some(to(&json!({ "paths": ["/admin/**"] })));
    it.row(
        45,
        everybody(),
        no_admin(),
        &[
            get("/admin", DENIED),
            get("//admin", DENIED),
            get("/./admin", DENIED),
            get("/x/../admin", DENIED),
            get("/x/./../admin/y", DENIED),
            get("/administrators", Passes),
        ],
    )
    .await;
    it.row(
        46,
        everybody(),
        no_admin(),
        &[
            get("/%2fadmin", DENIED),
            get("/%5cadmin", DENIED),
            get("/%61dmin", DENIED),
            get("/x/%2e%2e/admin", DENIED),
            get("/x/%252e%252e/admin", DENIED),
            get("/x/%252e%252e%252fadmin", DENIED),
            get("/x%2f..%2fadmin", DENIED),
        ],
    )
    .await;
    it.row(
        46,
        to(&json!({ "paths": ["/files/**"] })),
        None,
        &[
            get("/files/a", Passes),
            get("/files/%2e%2e/admin", Refused("ambiguous_path")),
            get("/files/%252e%252e/admin", Refused("ambiguous_path")),
            get("/files%2f..%2fadmin", Kept),
        ],
    )
    .await;
    it.row(
        47,
        everybody(),
        no_admin(),
        &[
            get("/admin;x=1", DENIED),
            get("/admin%3bx", DENIED),
            get("/admin;/x", DENIED),
            get("/x/..;/admin", DENIED),
        ],
    )
    .await;
    // 48: what stands behind a number sign is no part of a request's target.
    let peer = it.world.peer("/shop");
    let line = "GET /x#admin HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    let answer = peer.raw(&it.billing, line.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 400 "), "row 48: {answer}");
    it.row(48, everybody(), no_admin(), &[get("/admin%23x", DENIED)]).await;
    it.row(49, everybody(), Some(to(&json!({ "paths": ["/admin/**"] }))), &[get("/Admin", Passes)])
        .await;
    let folded = to(&json!({ "paths": ["/admin/**"], "ignore_case": true }));
    it.row(
        49,
        everybody(),
        Some(folded),
        &[
            get("/Admin", DENIED),
            get("/ADMIN/x", DENIED),
            get("/%41dmin", DENIED),
            get("/x", Passes),
        ],
    )
    .await;
    it.row(
        50,
        everybody(),
        no_admin(),
        &[
            get("/%c0%afadmin", Kept),
            get("/%c1%a1dmin", Kept),
            get("/%u002fadmin", Kept),
            get("/%zz", Malformed),
            get("/x%00", Malformed),
        ],
    )
    .await;
    let no_host = || Some(to(&json!({ "hosts": ["admin.example.com"] })));
    let host = |host: &str, expected| get("/", expected).with("host", host);
    it.row(
        51,
        everybody(),
        no_host(),
        &[
            host("admin.example.com", DENIED),
            host("ADMIN.example.com", DENIED),
            host("admin.example.com.", DENIED),
            host("admin.example.com:443", DENIED),
            host("admin.example.com.:443", DENIED),
            host("other.example.com", Passes),
        ],
    )
    .await;
    let wildcard = to(&json!({ "hosts": ["*.example.com"] }));
    it.row(
        52,
        wildcard,
        None,
        &[
            host("a.example.com", Passes),
            host("a.b.example.com", Passes),
            host("example.com", NO_RULE),
            host(".example.com", Kept),
            host("a..example.com", Kept),
            host("evilexample.com", NO_RULE),
        ],
    )
    .await;
}

#[tokio::test]
async fn rows_53_to_60_no_field_no_query_no_rewrite_and_no_switch_gets_around_a_rule() {
    let it = Target::new();
    // 53
    let overrides = || {
        get("/", Passes)
            .with("x-http-method-override", "DELETE")
            .with("x-method-override", "DELETE")
            .with("x-http-method", "DELETE")
            .with("x_http_method_override", "DELETE")
    };
    it.policies(to(&json!({ "methods": ["GET"] })), None).await;
    let seen = it.seen(53, overrides()).await;
    let names: Vec<&String> = seen["headers"].as_object().unwrap().keys().collect();
    assert!(!names.iter().any(|name| name.contains("method")), "row 53: {names:?}");
    it.policies(everybody(), None).await;
    let seen = it.seen(53, overrides()).await;
    assert_eq!(seen["headers"]["x-http-method-override"], "DELETE", "row 53: nobody asks");

    // 54
    let role = |values: &[&'static str], expected| {
        values.iter().fold(get("/", expected), |one, value| one.with("x-role", value))
    };
    let is = |value: &str| {
        when(&json!({ "headers": [{ "name": "X-Role", "values": [value], "present": true }] }))
    };
    it.row(
        54,
        everybody(),
        Some(is("admin")),
        &[
            role(&["user", "admin"], DENIED),
            role(&["admin", "user"], DENIED),
            role(&["user, admin"], DENIED),
            role(&["user"], Passes),
            role(&[], Passes),
        ],
    )
    .await;
    it.row(
        54,
        is("user"),
        None,
        &[
            role(&["user"], Passes),
            role(&["user", "admin"], NO_RULE),
            role(&["user,admin"], NO_RULE),
            role(&[], NO_RULE),
        ],
    )
    .await;
    // 55: what is absent never allows and always refuses, unless the rule says that it may be absent.
    let is_not = |present: Option<bool>| {
        let mut entry = json!({ "name": "x-role", "not_values": ["admin"] });
        if let Some(present) = present {
            entry["present"] = json!(present);
        }
        when(&json!({ "headers": [entry] }))
    };
    it.row(
        55,
        is_not(None),
        None,
        &[
            role(&["user"], Passes),
            role(&["admin"], NO_RULE),
            role(&["user", "admin"], NO_RULE),
            role(&[], NO_RULE),
        ],
    )
    .await;
    it.row(
        55,
        everybody(),
        Some(is_not(None)),
        &[
            role(&["admin"], Passes),
            role(&["user"], DENIED),
            role(&["user", "admin"], DENIED),
            role(&[], DENIED),
        ],
    )
    .await;
    it.row(
        55,
        everybody(),
        Some(is_not(Some(true))),
        &[role(&["user"], DENIED), role(&[], Passes)],
    )
    .await;
    it.row(
        55,
        when(&json!({ "headers": [{ "name": "x-role", "present": false }] })),
        None,
        &[role(&[], Passes), role(&["user"], NO_RULE)],
    )
    .await;
    // 58
    let a_is = |value: &str| {
        when(&json!({ "query": [{ "name": "a", "values": [value], "present": true }] }))
    };
    it.row(
        58,
        everybody(),
        Some(a_is("2")),
        &[
            get("/?a=1&a=2", DENIED),
            get("/?a=2&a=1", DENIED),
            get("/?b=1&%61=%32", DENIED),
            get("/?a=1", Passes),
            get("/", Passes),
        ],
    )
    .await;
    it.row(
        58,
        a_is("1"),
        None,
        &[
            get("/?a=1", Passes),
            get("/?a=1&a=2", NO_RULE),
            get("/?a=1&%61=2", NO_RULE),
            get("/", NO_RULE),
        ],
    )
    .await;
    // 59
    let upstream = json!({ "nodes": { it.app.address.to_string(): 1 } });
    let route = json!({
        "uri": "/old/*", "workload_selector": { "listener": "inbound" }, "upstream": upstream,
        "plugins": { "proxy-rewrite": { "regex_uri": ["^/old/(.*)", "/$1"] } },
    });
    it.admin.put("/routes/old", &route).await;
    it.row(
        59,
        to(&json!({ "paths": ["/old/**"] })),
        Some(to(&json!({ "paths": ["/admin/**"] }))),
        &[
            get("/old/x", Passes),
            get("/old/admin", DENIED),
            get("/old/admin/y?z=1", DENIED),
            get("/admin", DENIED),
            get("/x", NO_RULE),
        ],
    )
    .await;
    // 60: an upgrade needs a permission of its own.
    let switch = |protocol: &str, expected| {
        get("/chat", expected)
            .with("connection", "upgrade")
            .with("upgrade", protocol)
            .with("sec-websocket-version", "13")
            .with("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")
    };
    it.row(
        60,
        everybody(),
        None,
        &[
            get("/chat", Passes),
            switch("websocket", Refused("upgrade_not_allowed")),
            switch("WebSocket", Refused("upgrade_not_allowed")),
            // Passed over: it stays a request of HTTP.
            switch("h2c", Passes),
        ],
    )
    .await;
    it.row(
        60,
        to(&json!({ "upgrades": ["websocket"] })),
        None,
        &[
            // The application answers without a switch.
            switch("websocket", Passes),
            get("/chat", NO_RULE),
        ],
    )
    .await;
    it.row(
        60,
        json!([{}, { "to": { "upgrades": ["*"] } }]),
        Some(to(&json!({ "paths": ["/chat"] }))),
        &[switch("websocket", DENIED)],
    )
    .await;
    it.policies(everybody(), None).await;
    let stream = it.world.peer("/shop").stream(&it.billing, Alpn::Http1).await.unwrap();
    let mut wire = Wire::over(stream);
    let answer = wire.ask("CONNECT db:5432 HTTP/1.1\r\nHost: db:5432\r\n\r\n").await;
    assert_eq!(answer.status, 403, "row 60: a tunnel: {}", answer.text());
}

#[tokio::test]
async fn rows_61_to_69_nobody_is_who_he_says_and_nowhere_else_than_he_is() {
    let it = Target::new();
    let (shop, boss) = (it.world.id("/shop"), it.world.id("/boss"));
    // 61
    let claims = [
        "x-forwarded-client-cert",
        "client-cert",
        "x-ssl-client-verify",
        "x-ssl-client-s-dn",
        "x-spiffe-id",
        "x_spiffe_id",
        "l5d-client-id",
        "x-consumer-username",
        "x-credential-identifier",
        "x-userinfo",
        "x-client-cert",
    ];
    let claiming =
        |expected| claims.iter().fold(get("/", expected), |one, name| one.with(name, &boss));
    let of_boss = json!([{ "from": { "principals": [boss] } }]);
    it.row(61, of_boss.clone(), None, &[claiming(NO_RULE)]).await;
    let named: Vec<Value> =
        claims.iter().map(|name| json!({ "name": name, "present": true })).collect();
    let rules: Vec<Value> =
        named.iter().map(|entry| json!({ "when": { "headers": [entry] } })).collect();
    it.row(61, json!(rules), None, &[claiming(NO_RULE)]).await;
    it.policies(everybody(), None).await;
    let seen = it.seen(61, claiming(Passes)).await;
    for name in claims.iter().skip(1) {
        assert_eq!(seen["headers"].get(*name), None, "row 61: {name}");
    }
    // 62
    for name in ["X-Spiffe-Id", "X_Forwarded_Client_Cert", "Client-Cert", "X-Wardgate-Peer"] {
        let route = json!({
            "uri": "/*", "upstream": { "nodes": { "127.0.0.1:1": 1 } },
            "plugins": { "proxy-rewrite": { "headers": { "set": { name: boss } } } },
        });
        let answer = it.admin.ask("PUT", "/routes/claim", Some(&route)).await;
        assert_eq!(answer.status, 400, "row 62: {name}: {}", answer.text());
    }
    // 63: nothing of what the caller says gets into the field that says who it is.
    let nasty =
        format!("By=\"a,b;c\\\"\";Subject=\"CN=x,O=\\\"y\\\"\";URI={boss}, By=b;URI={boss}");
    let seen = it.seen(63, get("/", Passes).with("x-forwarded-client-cert", &nasty)).await;
    let field = seen["headers"]["x-forwarded-client-cert"].as_str().unwrap();
    let parts: Vec<&str> = field.split(';').collect();
    let (me, caller) = (format!("By={}", it.billing.id), format!("URI={shop}"));
    assert_eq!((parts.len(), parts[0], parts[2]), (3, &*me, &*caller), "row 63: {field}");
    // 64, 65: where a caller is, its connection says.
    let from = |kind: &str, network: &str| json!([{ "from": { kind: [network] } }]);
    let spoken = |expected| {
        get("/", expected)
            .with("x-forwarded-for", "10.9.0.1")
            .with("x-real-ip", "10.9.0.1")
            .with("forwarded", "for=10.9.0.1")
            .with("true-client-ip", "10.9.0.1")
    };
    it.row(64, from("remote_ip_blocks", "10.9.0.0/16"), None, &[spoken(NO_RULE)]).await;
    it.row(65, from("ip_blocks", "10.9.0.0/16"), None, &[spoken(NO_RULE)]).await;
    it.row(65, from("ip_blocks", "127.0.0.0/8"), None, &[spoken(Passes)]).await;
    it.row(65, everybody(), Some(from("not_ip_blocks", "10.9.0.0/16")), &[spoken(DENIED)]).await;
    // 68: a trusted balancer says where the caller is, and never who.
    let introduced = async |peer: &str| {
        let address = it.billing.address("inbound");
        let mut tcp = tokio::net::TcpStream::connect(address).await.unwrap();
        let header = format!("PROXY TCP4 10.9.0.1 10.9.0.2 40000 {}\r\n", address.port());
        tokio::io::AsyncWriteExt::write_all(&mut tcp, header.as_bytes()).await.unwrap();
        let identity = it.world.identity(peer);
        let connector = wardgate::mtls::Connector::new(wardgate::rt::Live::fixed(identity));
        let billing = it.billing.id.parse().unwrap();
        let expected = std::sync::Arc::new(wardgate::mtls::ExpectedPeers::exactly(&billing));
        let (stream, _) = connector.connect(tcp, &expected, Alpn::Http1).await.unwrap();
        crate::world::Connection::over(stream).await.unwrap().get("/").await.status
    };
    it.policies(from("ip_blocks", "10.9.0.0/16"), None).await;
    assert_eq!(introduced("/shop").await, 200, "row 68: where it is");
    it.policies(of_boss.clone(), None).await;
    assert_eq!(introduced("/shop").await, 403, "row 68: not who it is");
    // 69
    let baggage = format!("spiffe_id={boss},k8s.namespace.name=boss");
    let traced = get("/", NO_RULE)
        .with("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
        .with("tracestate", "boss=1")
        .with("baggage", &baggage);
    it.row(69, of_boss, None, &[traced]).await;
}
