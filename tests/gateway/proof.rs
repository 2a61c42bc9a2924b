//! A connection lives no longer than its proof: whatever it rests on falls, it takes no further request, what is under way gets
//! a bounded time, and then all of it ends. Whose proof stands notices nothing.

use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use wardgate::identity::{Identity, TrustBundles};
use wardgate::mtls::Alpn;

use crate::http2::{Client, request};
use crate::mesh::{End, RawApp, RawStream, Wire};
use crate::world::{PATIENCE, Part, Peer, Process, World, allow_switching, eventually, get, soon};

const UPGRADE: &str =
    "GET /chat HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";

fn ask(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n")
}

/// An app whose paths say how it answers: `/chat` switches protocols and echoes, `/half` sends half of its body and no more,
/// `/never` sends nothing, everything else is answered.
fn app() -> RawApp {
    RawApp::serving(answers)
}

fn answers(stream: &mut RawStream) {
    while let Some(head) = stream.request() {
        match head.split(' ').nth(1).unwrap() {
            "/chat" => {
                stream.send("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n");
                while !stream.buffer.is_empty() || stream.fill() {
                    let echo = std::mem::take(&mut stream.buffer);
                    stream.send(echo);
                }
                return;
            }
            "/half" => {
                stream.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello");
                stream.rest();
                return;
            }
            "/never" => {
                stream.rest();
                return;
            }
            _ => stream.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"),
        }
    }
}

/// One trust domain with two authorities, as while one follows the other.
struct Domain {
    world: World,
    other: World,
}

impl Domain {
    fn new() -> Self {
        Self { world: World::new(), other: World::new() }
    }

    /// Whom the process whose files these are trusts from now on.
    fn trust(&self, whose: &World, path: &str, authorities: &[&World]) {
        let root = |world: &&World| std::fs::read_to_string(world.authority().join("root.pem"));
        let roots: String = authorities.iter().map(|world| root(world).unwrap()).collect();
        let bundle = whose.files(path).join("bundle.pem");
        std::fs::write(bundle.with_extension("new"), roots).unwrap();
        std::fs::rename(bundle.with_extension("new"), bundle).unwrap();
    }

    /// The sidecar of /billing, which trusts both authorities and lets /shop and /web in.
    fn billing(&self, app: &RawApp, settings: &Value) -> Process {
        self.trust(&self.world, "/billing", &[&self.world, &self.other]);
        billing(&self.world, app, settings).start()
    }

    /// A peer whose SVID one of the two authorities gave, and who trusts the first.
    fn peer(&self, by: &World, path: &str) -> Peer {
        let svid = by.identity(path).svid;
        Peer::with(Identity::new(svid, [self.world.bundle()].into_iter().collect::<TrustBundles>()))
    }
}

fn billing<'w>(world: &'w World, app: &RawApp, settings: &Value) -> Part<'w> {
    let callers = [world.id("/shop"), world.id("/web")];
    let callers: Vec<&str> = callers.iter().map(String::as_str).collect();
    world
        .sidecar("/billing")
        .set("sidecar.app", &json!(app.url()))
        .set("proof", settings)
        .resources(&policies(&[allow_switching("p", &[&world.id("/billing")], &callers)]))
}

fn policies(policies: &[Value]) -> Value {
    json!({ "identity_policies": policies })
}

/// Every kind of connection that a peer may hold, each in the middle of something or idle.
struct Held {
    idle: Wire,
    half: Wire,
    tunnel: Wire,
    idle_http2: Client,
    half_http2: (Client, h2::RecvStream),
}

impl Held {
    async fn by(peer: &Peer, billing: &Process) -> Self {
        let wire = || async { Wire::over(peer.stream(billing, Alpn::Http1).await.unwrap()) };
        let http2 =
            || async { Client::over(peer.stream(billing, Alpn::Http2).await.unwrap()).await };
        let mut idle = wire().await;
        assert_eq!(idle.ask(ask("/")).await.text(), "ok");
        let mut half = wire().await;
        half.send(ask("/half")).await;
        assert_eq!(half.head().await.unwrap().status, 200);
        assert_eq!(half.bytes(5).await, b"hello");
        let tunnel = tunnel(wire().await).await;
        let idle_http2 = http2().await;
        assert_eq!(idle_http2.get("/").await.body, b"ok");
        let client = http2().await;
        let (response, _) = client.open(request("GET", "/half", &[]), true).await.unwrap();
        let mut body = soon("a response", response).await.unwrap().into_body();
        assert_eq!(soon("the first half", body.data()).await.unwrap().unwrap(), "hello");
        Self { idle, half, tunnel, idle_http2, half_http2: (client, body) }
    }

    /// All of them end, and only what was idle ends well.
    async fn end(mut self) {
        assert_eq!(self.idle.end().await, End::Clean);
        assert_eq!(self.half.end().await, End::Cut);
        assert_eq!(self.tunnel.end().await, End::Cut);
        let (_client, mut body) = self.half_http2;
        assert!(soon("the end of the stream", body.data()).await.unwrap().is_err());
        let gone = soon("the end of HTTP/2", async {
            while self.idle_http2.try_send(request("GET", "/", &[]), b"", None).await.is_ok() {}
        });
        gone.await;
    }

    /// None of them has noticed anything.
    async fn stand(mut self) {
        assert_eq!(self.idle.ask(ask("/")).await.text(), "ok");
        self.tunnel.send("still there").await;
        assert_eq!(self.tunnel.bytes(11).await, b"still there");
        assert_eq!(self.idle_http2.get("/").await.body, b"ok");
        let (client, mut body) = self.half_http2;
        assert_eq!(client.get("/").await.body, b"ok");
        let more = tokio::time::timeout(Duration::from_millis(50), body.data()).await;
        assert!(more.is_err(), "the stream goes on: {more:?}");
        let more = tokio::time::timeout(Duration::from_millis(50), self.half.end()).await;
        assert!(more.is_err(), "the answer goes on: {more:?}");
    }
}

async fn tunnel(mut wire: Wire) -> Wire {
    wire.send(UPGRADE).await;
    assert_eq!(wire.head().await.unwrap().status, 101);
    wire.send("hello").await;
    assert_eq!(wire.bytes(5).await, b"hello");
    wire
}

/// The records of connections that ended for this reason, once there are so many.
fn ended(process: &Process, reason: &str, count: usize) -> Vec<Value> {
    eventually(&format!("{count} connections of {} end: {reason}", process.name), || {
        let mut records = process.audit();
        records.retain(|record| record["type"] == "connection" && record["reason"] == reason);
        (records.len() >= count).then_some(records)
    })
}

#[tokio::test]
async fn what_an_authority_vouched_for_ends_with_it_and_nothing_else_does() {
    let (domain, app) = (Domain::new(), app());
    let billing = domain.billing(&app, &json!({ "drain_within_seconds": 0.3 }));
    let theirs = Held::by(&domain.peer(&domain.other, "/shop"), &billing).await;
    let ours = Held::by(&domain.peer(&domain.world, "/web"), &billing).await;

    domain.trust(&domain.world, "/billing", &[&domain.world]);
    theirs.end().await;
    ours.stand().await;

    let records = ended(&billing, "bundle_changed", 5);
    let serial = domain.other.identity("/shop").svid.serial.clone();
    for record in &records {
        assert_eq!(record["src"]["spiffe_id"], json!(domain.world.id("/shop")), "{record}");
        assert_eq!(record["src"]["cert"]["serial"], json!(serial));
        assert_eq!((&record["peer_serial"], &record["side"]), (&json!(serial), &json!("accepted")));
        assert!(record["conn_id"].is_u64() && record["duration_ms"].is_u64());
    }
    let forced = |protocol: &str| {
        let these = records.iter().filter(|record| record["protocol"] == protocol);
        these.filter(|record| record["event"] == "forced_close").count()
    };
    assert_eq!((forced("http/1.1"), forced("h2")), (2, 1), "{records:#?}");
    assert_eq!(records.len(), 5, "{records:#?}");
}

#[tokio::test]
async fn what_is_under_way_may_finish_within_its_time_and_says_that_it_is_the_last() {
    let (asked, hears) = mpsc::channel();
    let (go, may) = mpsc::channel::<()>();
    let may = Arc::new(std::sync::Mutex::new(may));
    let app = RawApp::serving(move |stream| {
        while let Some(head) = stream.request() {
            if head.starts_with("GET /gate") {
                asked.send(()).unwrap();
                may.lock().unwrap().recv_timeout(PATIENCE).unwrap();
            }
            stream.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
        }
    });
    let domain = Domain::new();
    let billing = domain.billing(&app, &json!({ "drain_within_seconds": 60 }));
    let peer = domain.peer(&domain.other, "/shop");
    let mut idle = Wire::over(peer.stream(&billing, Alpn::Http1).await.unwrap());
    assert_eq!(idle.ask(ask("/")).await.status, 200);
    let mut busy = Wire::over(peer.stream(&billing, Alpn::Http1).await.unwrap());
    busy.send(format!("{}{}", ask("/gate"), ask("/next"))).await;
    hears.recv_timeout(PATIENCE).unwrap();

    domain.trust(&domain.world, "/billing", &[&domain.world]);
    assert_eq!(idle.end().await, End::Clean);
    go.send(()).unwrap();
    let answer = busy.response_to("GET").await.unwrap();
    assert_eq!((answer.text().as_str(), answer.field("connection")), ("ok", Some("close")));
    // The one that was sent behind it is not taken.
    assert_eq!(busy.end().await, End::Clean);
    let records = ended(&billing, "bundle_changed", 2);
    assert!(records.iter().all(|record| record["event"] == "close"), "{records:#?}");
}

#[tokio::test]
async fn policy_ends_what_it_refuses_by_now_and_leaves_the_rest_of_the_connection() {
    let (world, app) = (World::new(), app());
    let billing = billing(&world, &app, &json!({ "drain_within_seconds": 0.3 })).start();
    let me = world.id("/billing");
    let all = |who: &str| json!({ "from": { "principals": [world.id(who)] } });
    let rule = |who: &str, paths: &[&str]| json!({ "from": { "principals": [world.id(who)] }, "to": { "paths": paths } });
    let declare = |rules: Value| {
        let policy = json!({
            "id": "p", "selector": { "workloads": [me] }, "action": "allow", "rules": rules,
        });
        billing.write_resources(&policies(&[policy]));
    };
    let applied = |count: usize| {
        eventually("the policy is in force", || {
            let applied = |record: &&Value| record["event"] == "applied";
            (billing.audit().iter().filter(applied).count() >= count).then_some(())
        });
    };
    let (web, shop) = (world.peer("/web"), world.peer("/shop"));
    let mut web_held = Held::by(&web, &billing).await;
    let shop_held = Held::by(&shop, &billing).await;
    let waiting = Client::over(web.stream(&billing, Alpn::Http2).await.unwrap()).await;
    let (never, _) = waiting.open(request("GET", "/never", &[]), true).await.unwrap();

    // Other words for the same.
    let switch = |who: &str| json!({ "from": { "principals": [world.id(who)] }, "to": { "upgrades": ["websocket"] } });
    declare(json!([rule("/web", &["/**"]), all("/shop"), switch("/web"), switch("/shop")]));
    applied(2);
    // /web may still ask for something.
    declare(json!([rule("/web", &["/"]), all("/shop"), switch("/shop")]));
    let answer = soon("a refusal", never).await.unwrap();
    assert_eq!(answer.status().as_u16(), 403);
    let denial = answer.headers()["x-wardgate-denial"].to_str().unwrap();
    billing.record_with("/denial_id", &json!(denial));
    assert_eq!(web_held.half.end().await, End::Cut);
    assert_eq!(web_held.tunnel.end().await, End::Cut);
    let (client, mut body) = web_held.half_http2;
    assert!(soon("the end of the stream", body.data()).await.unwrap().is_err());
    assert_eq!(client.get("/").await.body, b"ok", "the connection itself stands");
    assert_eq!(web_held.idle.ask(ask("/")).await.text(), "ok");
    let records = ended(&billing, "policy_changed", 3);
    let events = |event: &str| records.iter().filter(|record| record["event"] == event).count();
    assert_eq!((events("forced_close"), events("exchange_end")), (2, 1), "{records:#?}");
    let refused = |record: &Value| record["path"] == "/chat" && record["outcome"] == "deny";
    billing.record("the refused tunnel", refused);

    // Nothing any more: the connection may ask once why, and ends.
    declare(json!([all("/shop"), switch("/shop")]));
    assert_eq!(web_held.idle.end().await, End::Clean);
    ended(&billing, "policy_changed", 6);
    shop_held.stand().await;
}

#[tokio::test]
async fn whom_the_deny_list_names_is_gone_and_nobody_else() {
    let (world, app) = (World::new(), app());
    let control = world.control().start();
    let admin = control.admin();
    let callers = [world.id("/shop"), world.id("/web")];
    let callers: Vec<&str> = callers.iter().map(String::as_str).collect();
    let policy = allow_switching("p", &[&world.id("/billing")], &callers);
    let revision = admin.put("/identity_policies/p", &policy).await;
    let billing = world
        .sidecar("/billing")
        .set("sidecar.app", &json!(app.url()))
        .set("proof", &json!({ "drain_within_seconds": 0.3 }))
        .fed_by(&control)
        .start();
    admin.applied(revision, 1).await;
    let shop = Held::by(&world.peer("/shop"), &billing).await;
    let web = Held::by(&world.peer("/web"), &billing).await;
    admin.put("/revocations/r", &json!({ "spiffe_id": world.id("/web") })).await;
    web.end().await;
    shop.stand().await;
    assert_eq!(ended(&billing, "denied_by_list", 5).len(), 5);
}

#[tokio::test]
async fn a_certificate_that_is_over_ends_its_connections_and_so_does_old_age() {
    let (world, app) = (World::new(), app());
    let part = billing(&world, &app, &json!({ "expiry_drain_within_seconds": 0.3 }));
    let billing = part.start();
    let brief = world.folder.join("brief");
    world.issue("/shop", &brief, 4);
    let read = |name: &str| std::fs::read(brief.join(name)).unwrap();
    let svid = wardgate::identity::Svid::from_pem(&read("svid.pem"), &read("key.pem")).unwrap();
    let bundles = || [world.bundle()].into_iter().collect::<TrustBundles>();
    let held = Held::by(&Peer::with(Identity::new(svid, bundles())), &billing).await;
    let other = Held::by(&world.peer("/web"), &billing).await;
    held.end().await;
    other.stand().await;
    assert_eq!(ended(&billing, "peer_expired", 5).len(), 5);

    let settings = json!({ "max_age_seconds": 2, "expiry_drain_within_seconds": 0.3 });
    let aging = part.named("aging").set("proof", &settings).start();
    let held = Held::by(&world.peer("/web"), &aging).await;
    held.end().await;
    assert_eq!(ended(&aging, "max_age", 5).len(), 5);
}

#[tokio::test]
async fn our_own_svid_may_be_renewed_below_a_connection_and_ends_those_that_were_made_with_it() {
    let (world, app) = (World::new(), app());
    let files = world.files("/billing");
    // Renewed twice: the first one ends while the connection lives.
    world.issue("/billing", &files, 8);
    let billing = billing(&world, &app, &json!({ "expiry_drain_within_seconds": 0.3 })).start();
    let old = Held::by(&world.peer("/shop"), &billing).await;
    world.issue("/billing", &files, 3600);
    billing.record_with("/event", &json!("rotated"));
    let new = Held::by(&world.peer("/shop"), &billing).await;
    old.end().await;
    new.stand().await;
    assert_eq!(ended(&billing, "own_svid_expired", 5).len(), 5);
}

/// /shop's sidecar, whose routes go to /billing's.
fn shop(world: &World, billing: &Process, settings: &Value) -> Process {
    let node = billing.address("inbound").to_string();
    let routes = json!({ "routes": [{
        "id": "billing", "uri": "/*", "enable_websocket": true,
        "workload_selector": { "listener": "outbound" },
        "upstream": {
            "nodes": { node: 1 }, "retries": 0,
            "tls": { "identity": "svid", "spiffe_ids": [world.id("/billing")] },
        },
    }]});
    world.sidecar("/shop").set("proof", settings).resources(&routes).start()
}

#[tokio::test]
async fn connections_that_we_made_end_with_the_proof_of_whom_they_lead_to() {
    let (domain, app) = (Domain::new(), app());
    // The other authority gave /billing's SVID; /shop's sidecar trusts it only for a while.
    domain.trust(&domain.other, "/billing", &[&domain.other, &domain.world]);
    let billing = billing(&domain.other, &app, &json!({})).start();
    domain.trust(&domain.world, "/shop", &[&domain.world, &domain.other]);
    let shop = shop(&domain.world, &billing, &json!({ "drain_within_seconds": 0.3 }));
    let door = shop.address("outbound");

    let mut kept = Wire::to(door).await;
    assert_eq!(kept.ask(ask("/")).await.text(), "ok");
    let mut half = Wire::to(door).await;
    half.send(ask("/half")).await;
    assert_eq!(half.head().await.unwrap().status, 200);
    assert_eq!(half.bytes(5).await, b"hello");
    let mut never = Wire::to(door).await;
    never.send(ask("/never")).await;
    let mut tunnel = tunnel(Wire::to(door).await).await;
    let http2 = Client::over(TcpStream::connect(door).await.unwrap()).await;
    let (response, _) = http2.open(request("GET", "/half", &[]), true).await.unwrap();
    let mut body = soon("a response", response).await.unwrap().into_body();
    assert_eq!(soon("the first half", body.data()).await.unwrap().unwrap(), "hello");

    domain.trust(&domain.world, "/shop", &[&domain.world]);
    // Its length shows what is missing.
    half.end().await;
    assert_eq!(tunnel.end().await, End::Cut);
    let answer = never.response_to("GET").await.unwrap();
    assert_eq!(answer.status, 503, "{}", answer.text());
    assert!(soon("the end of the stream", body.data()).await.unwrap().is_err());
    let records = ended(&shop, "bundle_changed", 4);
    assert!(records.iter().all(|record| record["side"] == "originated"
        && record["dst"]["spiffe_id"] == json!(domain.world.id("/billing"))
        && record["peer_serial"] == json!(domain.other.identity("/billing").svid.serial)));
    // The caller's own connection stands; nobody whom we know is at the other end any more.
    assert_eq!(kept.ask(ask("/")).await.status, 502);
}

#[tokio::test]
async fn a_renewal_keeps_the_connections_that_we_made_and_an_idle_one_is_closed_with_its_proof() {
    let (domain, app) = (Domain::new(), app());
    domain.trust(&domain.other, "/billing", &[&domain.other, &domain.world]);
    let billing = billing(&domain.other, &app, &json!({})).start();
    domain.trust(&domain.world, "/shop", &[&domain.world, &domain.other]);
    let shop = shop(&domain.world, &billing, &json!({}));
    let door = shop.address("outbound");
    assert_eq!(get(door, "/").await.status, 200);
    domain.world.issue("/shop", &domain.world.files("/shop"), 3600);
    domain.trust(&domain.world, "/shop", &[&domain.world, &domain.other]);
    shop.record_with("/event", &json!("rotated"));
    assert_eq!(get(door, "/").await.status, 200);
    let decided = |record: &Value| record["type"] == "decision";
    let number = |count: usize| {
        eventually("decisions of billing", || {
            let all: Vec<_> = billing.audit().into_iter().filter(decided).collect();
            (all.len() >= count).then(|| all[count - 1]["conn_id"].clone())
        })
    };
    assert_eq!(number(1), number(2), "one connection");

    domain.trust(&domain.world, "/shop", &[&domain.world]);
    let records = ended(&shop, "bundle_changed", 1);
    assert_eq!(records.len(), 1, "{records:#?}");
}

#[tokio::test]
async fn who_is_connected_is_told_on_request_on_loopback_only() {
    let (world, app) = (World::new(), app());
    let part = billing(&world, &app, &json!({ "list_connections": true }))
        .set("status", &json!("127.0.0.1:0"));
    let billing = part.start();
    let mut connection = world.peer("/shop").connect(&billing).await;
    assert_eq!(connection.get("/").await.status, 200);
    let listed = get(billing.address("status"), "/connections").await.json();
    assert_eq!((&listed["accepted"], &listed["complete"]), (&json!(1), &json!(true)), "{listed}");
    let one = &listed["connections"][0];
    assert_eq!((&one["side"], &one["door"]), (&json!("accepted"), &json!("inbound")));
    assert_eq!(one["peer"]["spiffe_id"], json!(world.id("/shop")));
    assert_eq!(one["lapse"], Value::Null);
    // What ends first is the end.
    let end = |whose: &str| one[whose]["not_after"].as_i64().unwrap();
    assert_eq!(one["ends_at"], json!(end("peer").min(end("own"))));
    let metrics = get(billing.address("status"), "/metrics").await.text();
    let series = "wardgate_connections_ended_total{side=\"accepted\",reason=\"revoked\"} 0";
    assert!(metrics.contains(series), "{metrics}");

    let refused = part.named("open").set("status", &json!("0.0.0.0:0")).fails();
    assert!(refused.err.contains("proof.list_connections"), "{}", refused.err);
    let wrong = json!({ "drain_within_seconds": -1 });
    let negative = self::billing(&world, &app, &wrong).named("wrong").fails();
    assert!(negative.err.contains("proof.drain_within_seconds"), "{}", negative.err);
}

#[tokio::test]
async fn with_no_time_to_finish_the_end_comes_at_once() {
    let (domain, app) = (Domain::new(), app());
    let billing = domain.billing(&app, &json!({ "drain_within_seconds": 0 }));
    let peer = domain.peer(&domain.other, "/shop");
    let held = Held::by(&peer, &billing).await;
    let mut raw = peer.stream(&billing, Alpn::Http1).await.unwrap();
    domain.trust(&domain.world, "/billing", &[&domain.world]);
    let (mut half, mut tunnel) = (held.half, held.tunnel);
    assert_eq!(half.end().await, End::Cut);
    assert_eq!(tunnel.end().await, End::Cut);
    let mut nothing = Vec::new();
    let _ = soon("the end of one that never spoke", raw.read_to_end(&mut nothing)).await;
    assert!(nothing.is_empty());
    ended(&billing, "bundle_changed", 6);
}
