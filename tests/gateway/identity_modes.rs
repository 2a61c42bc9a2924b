//! Identity modes: a workload's door asks for an identity (strict), for policy alone (permissive), or for nothing and writes
//! down what it would have refused (observe). Modes change while connections are open.

use serde_json::{Value, json};
use tokio::net::TcpStream;
use wardgate::identity::{Identity, TrustBundles};
use wardgate::mtls::{Alpn, OriginConnector};

use crate::world::{Admin, Answer, App, Connection, Peer, Process, World, get, raw_to, run, send};

/// A workload behind its sidecar that lets `/shop` do everything and everybody read `/public`.
struct Onboarding {
    world: World,
    _control: Process,
    admin: Admin,
    app: App,
    billing: Process,
}

impl Onboarding {
    async fn new() -> Self {
        let world = World::new();
        let control = world.control().start();
        let admin = control.admin();
        let app = App::echo("billing");
        let billing = world
            .sidecar("/billing")
            .app(&app)
            .set("status", &json!("127.0.0.1:0"))
            .set("proof", &json!({ "drain_within_seconds": 0.3 }))
            .fed_by(&control)
            .start();
        let onboarding = Self { world, _control: control, admin, app, billing };
        let rules = json!([
            { "name": "shop", "from": { "principals": [onboarding.world.id("/shop")] } },
            { "name": "public", "to": { "paths": ["/public"] } },
        ]);
        onboarding.put("/identity_policies/p", &json!({ "action": "allow", "rules": rules })).await;
        onboarding
    }

    async fn put(&self, path: &str, value: &Value) {
        let revision = self.admin.put(path, value).await;
        self.admin.applied(revision, 1).await;
    }

    async fn mode(&self, mode: &str) {
        let workloads = [self.world.id("/billing")];
        self.put("/identity_modes/m", &json!({ "workloads": workloads, "mode": mode })).await;
    }

    async fn plain(&self, path: &str) -> Answer {
        get(self.billing.address("inbound"), path).await
    }

    /// Over TLS without a certificate.
    async fn anonymous(&self, path: &str) -> Result<Answer, String> {
        let tcp = TcpStream::connect(self.billing.address("inbound")).await.unwrap();
        let trusting = OriginConnector::new(None, None).unwrap();
        let stream = trusting.connect(tcp, "billing", Alpn::Http1).await;
        let stream = stream.map_err(|error| error.to_string())?;
        let mut connection = Connection::over(stream).await.map_err(|error| error.to_string())?;
        let answer = connection.try_send("GET", path, &[], "").await;
        answer.map_err(|error| error.to_string())
    }

    /// Over mTLS with a certificate that nobody here vouches for.
    async fn impostor(&self, path: &str) -> Result<Answer, String> {
        let rogue = World::new();
        let bundles: TrustBundles = [self.world.bundle()].into_iter().collect();
        let peer = Peer::with(Identity::new(rogue.identity("/shop").svid, bundles));
        let stream = peer.stream(&self.billing, Alpn::Http1).await.map_err(|e| e.to_string())?;
        let mut connection = Connection::over(stream).await.map_err(|error| error.to_string())?;
        let answer = connection.try_send("GET", path, &[], "").await;
        answer.map_err(|error| error.to_string())
    }

    fn record(&self, path: &str) -> Value {
        self.billing.record_with("/path", &json!(path))
    }
}

fn refused(answer: &Answer) -> (u16, String) {
    (answer.status, answer.json()["reason"].as_str().unwrap().to_owned())
}

#[tokio::test]
async fn a_door_asks_for_as_much_as_its_mode_says_and_what_rests_on_less_ends_with_it() {
    let it = Onboarding::new().await;
    let shop = it.world.peer("/shop");
    let web = it.world.peer("/web");

    // Strict, as nobody says otherwise.
    let seen =
        raw_to(it.billing.address("inbound"), b"GET /public HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert!(!seen.contains("HTTP/1.1"), "{seen}");
    assert_eq!(it.billing.record_with("/reason", &json!("not_tls"))["outcome"], "deny");
    assert!(it.anonymous("/public").await.is_err());
    assert_eq!(shop.get(&it.billing, "/strict").await.status, 200);

    // Permissive: policy decides about callers without an identity; who shows one must prove it.
    it.mode("permissive").await;
    assert_eq!(it.plain("/public").await.status, 200);
    assert_eq!(refused(&it.plain("/invoices").await), (403, "no_rule".into()));
    assert_eq!(it.anonymous("/public?tls").await.unwrap().status, 200);
    assert_eq!(it.anonymous("/invoices").await.unwrap().status, 403);
    let claim = format!("By=x;Hash=00;URI={}", it.world.id("/shop"));
    let headers = [("x-forwarded-client-cert", claim.as_str())];
    let door = it.billing.address("inbound");
    assert_eq!(send(door, "GET", "/claimed", &headers, "").await.status, 403);
    let through = send(door, "GET", "/public", &headers, "").await.json();
    assert_eq!(through["headers"].get("x-forwarded-client-cert"), None, "{through}");
    assert!(it.impostor("/public").await.is_err(), "a certificate is believed or refused");
    let impostor = it.billing.record_with("/reason", &json!("unknown_authority"));
    assert_eq!(impostor["outcome"], "deny");
    assert_eq!(shop.get(&it.billing, "/mtls").await.status, 200);
    assert_eq!(it.record("/mtls")["src"]["spiffe_id"], json!(it.world.id("/shop")));
    assert_eq!(web.get(&it.billing, "/mtls-web").await.status, 403);

    // Observe: nothing is refused, and the log says what would have been.
    it.mode("observe").await;
    for (path, answer) in [
        ("/observed-plain", it.plain("/observed-plain").await),
        ("/observed-tls", it.anonymous("/observed-tls").await.unwrap()),
        ("/observed-web", web.get(&it.billing, "/observed-web").await),
    ] {
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
        let record = it.record(path);
        assert_eq!((&record["outcome"], &record["mode"]), (&json!("allow"), &json!("observe")));
        assert_eq!(
            (&record["would_be"]["outcome"], &record["would_be"]["reason"]),
            (&json!("deny"), &json!("no_rule")),
            "{path}"
        );
        assert_eq!(record.get("denial_id"), None);
    }
    assert_eq!(it.impostor("/observed-impostor").await.unwrap().status, 200);
    let impostor = it.billing.record("the impostor that was let in", |record| {
        record["reason"] == "unknown_authority" && record["mode"] == "observe"
    });
    assert_eq!(
        (&impostor["type"], &impostor["outcome"]),
        (&json!("handshake_refused"), &json!("allow"))
    );
    assert_eq!(impostor["src"]["presented_id"], json!(it.world.id("/shop")));
    assert_eq!(it.record("/observed-impostor")["src"].get("spiffe_id"), None, "it is nobody");
    let told = it.plain("/public").await;
    assert_eq!((told.status, it.record("/public")["outcome"].as_str()), (200, Some("allow")));

    // It shows everywhere.
    let status = it.billing.address("status");
    let metrics = get(status, "/metrics").await.text();
    let gauge = format!("wardgate_identity_mode{{port=\"{}\"}} 0", door.port());
    assert!(metrics.contains(&gauge), "{gauge} in {metrics}");
    assert!(metrics.contains("wardgate_refusals_observed_total 4"), "{metrics}");
    let process = get(status, "/status/process").await.json();
    let shown = json!([{ "port": door.port(), "mode": "observe" }]);
    assert_eq!(process["configuration"][0]["identity_modes"], shown, "{process}");
    let admin = format!("http://{}", it.admin.address);
    let checked = run(["check", "--admin", &admin, "--key", &it.admin.key]).good();
    assert!(checked.contains("identity mode m: observe at all other ports"), "{checked}");

    // Stricter again: who came in without an identity goes, and who has one stays.
    let mut plain = Connection::plain(door).await;
    assert_eq!(plain.get("/held").await.status, 200);
    let mut proved = shop.connect(&it.billing).await;
    assert_eq!(proved.get("/held-proved").await.status, 200);
    it.mode("strict").await;
    let ended = it.billing.record_with("/reason", &json!("identity_mode"));
    assert_eq!((&ended["type"], ended["src"].get("spiffe_id")), (&json!("connection"), None));
    assert!(plain.try_send("GET", "/public", &[], "").await.is_err());
    assert_eq!(proved.get("/held-proved").await.status, 200);
    let seen = raw_to(door, b"GET /public HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert!(!seen.contains("HTTP/1.1"), "{seen}");
    assert!(it.app.requests() > 0);
}

#[tokio::test]
async fn a_mode_that_makes_no_sense_is_refused_and_one_that_cannot_be_read_means_strict() {
    let it = Onboarding::new().await;
    for (mode, part) in [
        (json!({ "mode": "lax" }), "mode"),
        (json!({ "mode": "observe", "port": 1 }), "port"),
        (json!({ "mode": "observe", "ports": { "0": "observe" } }), "ports"),
        (json!({ "mode": "observe", "ports": { "65536": "observe" } }), "65536"),
        (json!({ "mode": "observe", "workloads": ["billing"] }), "workloads"),
        (json!({}), "mode"),
    ] {
        let answer = it.admin.ask("PUT", "/identity_modes/m", Some(&mode)).await;
        assert!(answer.status == 400 && answer.text().contains(part), "{mode}: {}", answer.text());
    }
    let port = it.billing.address("inbound").port();
    // Of several the strictest holds, for the port alone.
    it.put(
        "/identity_modes/a",
        &json!({ "mode": "strict", "ports": { port.to_string(): "permissive" } }),
    )
    .await;
    assert_eq!(it.plain("/public").await.status, 200);
    it.put("/identity_modes/b", &json!({ "mode": "strict" })).await;
    let closed = raw_to(it.billing.address("inbound"), b"GET /public HTTP/1.1\r\n\r\n").await;
    assert!(!closed.contains("HTTP/1.1"), "{closed}");

    let world = World::new();
    let (app, policy) = (App::echo("a"), json!({ "id": "p", "action": "allow", "rules": [{}] }));
    let part = world.sidecar("/a").app(&app);
    let of = |modes: Value| json!({ "identity_policies": [policy], "identity_modes": modes });
    let observe = json!({ "id": "1", "mode": "observe" });
    let sidecar = part.resources(&of(json!([observe, { "id": "2", "mode": "nonsense" }]))).start();
    let closed = raw_to(sidecar.address("inbound"), b"GET / HTTP/1.1\r\n\r\n").await;
    assert!(!closed.contains("HTTP/1.1"), "{closed}");
    sidecar.write_resources(&of(json!([observe])));
    crate::world::eventually_async("the door opens", || async {
        let answer = raw_to(
            sidecar.address("inbound"),
            b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
        )
        .await;
        answer.starts_with("HTTP/1.1 200").then_some(())
    })
    .await;
}
