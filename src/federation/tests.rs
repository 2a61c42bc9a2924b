//! Fetching and keeping over real sockets: rules 52, 67, 68, 79 to 88.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;

use super::fetch::{Order, Server, fetch};
use super::{Board, Error, Federation, Limits, Reach, Settings};
use crate::identity::forge::{Folder, Forge, dns, leaf};
use crate::identity::{BundleDocument, Identity, Rules, Trust, TrustBundle, TrustDomain};
use crate::model::{Body, Change, Id, Kind, Rejected, Resource};
use crate::mtls::{
    OpenAcceptor, PublicAcceptor, PublicCertificate, PublicCertificates, public_server_config,
};
use crate::observe::Registry;
use crate::rt::{Clock, Live, Publisher, Tasks};

type Answer = Arc<dyn Fn(&str) -> Vec<u8> + Send + Sync>;

#[derive(Clone)]
enum Door {
    Plain,
    Web(PublicAcceptor),
    Spiffe(OpenAcceptor),
}

/// A server that answers each path with bytes.
struct Scripted {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
    _tasks: Tasks,
}

impl Scripted {
    async fn start(door: Door, answer: impl Fn(&str) -> Vec<u8> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let asked = Arc::<Mutex<Vec<String>>>::default();
        let (noted, answer): (_, Answer) = (asked.clone(), Arc::new(answer));
        let mut tasks = Tasks::new();
        tasks.add(async move {
            let mut connections = Tasks::new();
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                let (door, noted, answer) = (door.clone(), noted.clone(), answer.clone());
                connections.add(async move {
                    match door {
                        Door::Plain => talk(tcp, noted, answer).await,
                        Door::Web(acceptor) => {
                            if let Ok(tls) = acceptor.accept(tcp).await {
                                talk(tls, noted, answer).await;
                            }
                        }
                        Door::Spiffe(acceptor) => {
                            if let Ok(tls) = acceptor.accept(tcp).await {
                                talk(tls, noted, answer).await;
                            }
                        }
                    }
                });
            }
        });
        Self { address, asked, _tasks: tasks }
    }

    fn url(&self, path: &str) -> String {
        format!("https://{}{path}", self.address)
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().clone()
    }
}

async fn talk<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    asked: Arc<Mutex<Vec<String>>>,
    answer: Answer,
) {
    let mut head = Vec::new();
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return,
        }
    }
    let head = String::from_utf8(head).unwrap();
    let path = head.split(' ').nth(1).unwrap().to_owned();
    asked.lock().push(path.clone());
    let _ = stream.write_all(&answer(&path)).await;
    let _ = stream.shutdown().await;
}

fn ok(body: &str) -> Vec<u8> {
    format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

fn redirect(target: &str) -> Vec<u8> {
    format!("HTTP/1.1 302 Found\r\nlocation: {target}\r\ncontent-length: 0\r\n\r\n").into_bytes()
}

fn spiffe_door(identity: Identity) -> Door {
    Door::Spiffe(OpenAcceptor::new(Live::fixed(identity)))
}

/// A server with a certificate for a name, from an authority of its own.
fn web_door(forge: &Forge, name: &str) -> Door {
    let mut params = leaf("spiffe://web.test/server");
    params.subject_alt_names = vec![dns(name)];
    let signed = forge.sign(&params);
    let pem =
        |der: &[u8]| TrustBundle::new(forge.domain.clone(), vec![der.to_vec().into()]).to_pem();
    let chain: String = signed.chain.iter().map(|der| pem(der)).collect();
    let key = signed.key.serialize_pem();
    let certificate = PublicCertificate::from_pem(["*"], chain.as_bytes(), key.as_bytes()).unwrap();
    let all: PublicCertificates = [Arc::new(certificate)].into_iter().collect();
    let config = public_server_config(Arc::new(all)).unwrap();
    Door::Web(PublicAcceptor::new(Live::fixed(Some(config))))
}

fn document(bundle: &TrustBundle, sequence: Option<u64>) -> String {
    let refresh_after = Duration::from_secs(10);
    let document = BundleDocument { bundle: bundle.clone(), sequence, refresh_after };
    document.to_json().unwrap().to_string()
}

const QUICK: Limits = Limits { max_bytes: 1000, within: Duration::from_secs(10), redirects: 3 };

async fn fetch_web(
    url: &str,
    authority: &Forge,
    change: impl FnOnce(&mut Order<'_>),
) -> Result<String, Error> {
    let url = url.parse().unwrap();
    let authorities = [authority.root.clone()];
    let mut order = Order {
        url: &url,
        server: Server::Web { authorities: Some(&authorities) },
        schemes: &["https"],
        accept: "application/json",
        allow_redirects: true,
        allow_private: true,
        limits: QUICK,
    };
    change(&mut order);
    fetch(&order).await.map(|body| String::from_utf8(body.to_vec()).unwrap())
}

#[tokio::test]
async fn rule_79_https_web_checks_the_host_by_public_rules() {
    let (own, other) = (Forge::new("web.test"), Forge::new("web.test"));
    let server = Scripted::start(web_door(&own, "localhost"), |_| ok("{}")).await;
    let port = server.address.port();
    let url = format!("https://localhost:{port}/bundle?x=1");
    assert_eq!(fetch_web(&url, &own, |_| {}).await.unwrap(), "{}", "79");
    assert_eq!(server.asked(), ["/bundle?x=1"]);
    let wrong = fetch_web(&url, &other, |_| {}).await.unwrap_err();
    assert_eq!(
        wrong.code(),
        "handshake",
        "79 an authority that is not trusted: {}",
        wrong.report()
    );
    let address = format!("https://127.0.0.1:{port}/");
    let wrong = fetch_web(&address, &own, |_| {}).await.unwrap_err();
    assert_eq!(
        wrong.code(),
        "handshake",
        "79 the certificate is for another name: {}",
        wrong.report()
    );
}

#[tokio::test]
async fn rule_80_https_spiffe_takes_exactly_the_configured_id() {
    let (b, c) = (Forge::new("b.test"), Forge::new("c.test"));
    let server = Scripted::start(spiffe_door(b.identity("/server", &[])), |_| ok("{}")).await;
    let url = server.url("/").parse().unwrap();
    let ask = async |trust: &Trust, id: &str| {
        let id = id.parse().unwrap();
        let order = Order {
            url: &url,
            server: Server::Spiffe { trust, id: &id },
            schemes: &["https"],
            accept: "application/json",
            allow_redirects: true,
            allow_private: true,
            limits: QUICK,
        };
        fetch(&order).await.map_err(|error| error.report())
    };
    let trust = |forge: &Forge| Trust::from(forge.bundles());
    assert!(ask(&trust(&b), "spiffe://b.test/server").await.is_ok(), "80");
    let error = ask(&trust(&b), "spiffe://b.test/other").await.unwrap_err();
    assert!(error.contains("not who was expected"), "80 another path: {error}");
    let error = ask(&trust(&b), "spiffe://b.test/server/x").await.unwrap_err();
    assert!(error.contains("not who was expected"), "80 a longer path: {error}");
    for forge in [&c, &Forge::new("b.test")] {
        assert!(ask(&trust(forge), "spiffe://b.test/server").await.is_err(), "80 another bundle");
    }
    let old = Scripted::start(web_door(&b, "localhost"), |_| ok("{}")).await;
    let url = old.url("/").parse().unwrap();
    let (trust, id) = (trust(&b), "spiffe://b.test/server".parse().unwrap());
    let order = Order {
        url: &url,
        server: Server::Spiffe { trust: &trust, id: &id },
        schemes: &["https"],
        accept: "application/json",
        allow_redirects: true,
        allow_private: true,
        limits: QUICK,
    };
    assert!(fetch(&order).await.is_err(), "80 a certificate without a SPIFFE ID");
}

#[tokio::test]
async fn rules_83_to_85_say_which_redirects_are_followed() {
    let own = Forge::new("web.test");
    let port = Arc::new(Mutex::new(0));
    let itself = port.clone();
    let server = Scripted::start(web_door(&own, "localhost"), move |path| {
        let port = *itself.lock();
        match path.split_once('-').map(|(head, tail)| (head, tail.parse::<u32>().unwrap_or(0))) {
            Some(("/hop", 0)) => ok("there"),
            Some(("/hop", left)) => redirect(&format!("/hop-{}", left - 1)),
            _ => match path {
                "/whole" => redirect(&format!("https://localhost:{port}/hop-0")),
                "/plain" => redirect(&format!("http://localhost:{port}/hop-0")),
                "/user" => redirect(&format!("https://me@localhost:{port}/hop-0")),
                "/file" => redirect("file:///etc/passwd"),
                "/name" => redirect(&format!("https://127.0.0.1:{port}/hop-0")),
                "/nowhere" => b"HTTP/1.1 302 Found\r\ncontent-length: 0\r\n\r\n".to_vec(),
                _ => b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n".to_vec(),
            },
        }
    })
    .await;
    *port.lock() = server.address.port();
    let url = |path: &str| format!("https://localhost:{}{path}", server.address.port());
    for (rule, path) in [("83 whole", "/whole"), ("83 a path", "/hop-1"), ("85 three", "/hop-3")] {
        assert_eq!(fetch_web(&url(path), &own, |_| {}).await.unwrap(), "there", "{rule}");
    }
    for (rule, path, code) in [
        ("85 four", "/hop-4", "redirect"),
        ("83 plain http", "/plain", "redirect"),
        ("83 user information", "/user", "redirect"),
        ("83 another scheme", "/file", "redirect"),
        ("83 no target", "/nowhere", "redirect"),
        ("83 the same rules for TLS", "/name", "handshake"),
        ("another status", "/else", "status"),
    ] {
        let error = fetch_web(&url(path), &own, |_| {}).await.unwrap_err();
        assert_eq!(error.code(), code, "{rule}: {}", error.report());
    }
    let off = fetch_web(&url("/hop-1"), &own, |order| order.allow_redirects = false).await;
    assert_eq!(off.unwrap_err().code(), "redirect", "85 switched off");
    let before = server.asked().len();
    fetch_web(&url("/hop-1"), &own, |_| {}).await.unwrap();
    fetch_web(&url("/hop-1"), &own, |_| {}).await.unwrap();
    let asked = server.asked().split_off(before);
    assert_eq!(asked, ["/hop-1", "/hop-0", "/hop-1", "/hop-0"], "84 the target is not remembered");
}

#[tokio::test]
async fn rule_85_no_private_address_is_asked_unless_that_is_allowed() {
    let own = Forge::new("web.test");
    let server = Scripted::start(web_door(&own, "localhost"), |_| ok("{}")).await;
    for host in ["localhost", "127.0.0.1"] {
        let url = format!("https://{host}:{}/", server.address.port());
        let error = fetch_web(&url, &own, |order| order.allow_private = false).await.unwrap_err();
        assert_eq!(error.code(), "private_address", "85 {host}");
        assert!(error.to_string().contains("allow_private"), "{error}");
    }
    assert!(server.asked().is_empty(), "85 nobody was asked");
}

#[tokio::test]
async fn rule_88_bounds_bytes_and_time() {
    let own = Forge::new("web.test");
    let server = Scripted::start(web_door(&own, "localhost"), |path| match path {
        "/fits" => ok(&"x".repeat(1000)),
        "/large" => ok(&"x".repeat(1001)),
        "/endless" => {
            let mut answer = b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n".to_vec();
            answer.extend(vec![b'x'; 100_000]);
            answer
        }
        // A body that is shorter than its head says.
        _ => b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nx".to_vec(),
    })
    .await;
    let url = |path: &str| format!("https://localhost:{}{path}", server.address.port());
    assert_eq!(fetch_web(&url("/fits"), &own, |_| {}).await.unwrap().len(), 1000, "88");
    for (path, code) in [("/large", "too_large"), ("/endless", "too_large"), ("/short", "http")] {
        let error = fetch_web(&url(path), &own, |_| {}).await.unwrap_err();
        assert_eq!(error.code(), code, "88 {path}: {}", error.report());
    }
    // Somebody who takes the connection and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://localhost:{}/", silent.local_addr().unwrap().port());
    let slow =
        fetch_web(&url, &own, |order| order.limits.within = Duration::from_millis(200)).await;
    assert_eq!(slow.unwrap_err().code(), "too_late", "88");
}

/// A data plane of a.test with what is declared.
struct World {
    a: Forge,
    folder: Folder,
    source: Publisher<Identity>,
    federation: Federation,
    board: Board,
    clock: Clock,
}

impl World {
    fn new() -> Self {
        let a = Forge::new("a.test");
        let (source, _) = Publisher::new(a.identity("/web", &[]));
        Self::with(a, Folder::new(), source, Reach::Everywhere)
    }

    fn with(a: Forge, folder: Folder, source: Publisher<Identity>, reach: Reach) -> Self {
        let (board, clock) =
            (Board::new(&Registry::new()), Clock::fixed(crate::rt::unix_seconds()));
        let federation = Federation::start(
            source.live(),
            Settings {
                part: "sidecar".into(),
                folder: folder.path().join("trust"),
                reach,
                rules: Rules::default(),
                clock: clock.clone(),
                board: board.clone(),
                lane: None,
            },
        );
        Self { a, folder, source, federation, board, clock }
    }

    /// As a new process with the same state.
    fn restarted(self) -> Self {
        let Self { a, folder, source, federation, .. } = self;
        drop(federation);
        Self::with(a, folder, source, Reach::Everywhere)
    }

    fn put(&self, name: &str, value: &Value) -> Vec<Rejected> {
        self.federation.declare(&[put(name, value)], &[], false)
    }

    fn delete(&self, name: &str) {
        let (kind, id) = key(name);
        self.federation.declare(&[Change::Delete(kind, id)], &[], false);
    }

    fn trust(&self) -> Arc<Trust> {
        self.federation.identity().load().trust.clone()
    }

    fn roots(&self, domain: &str) -> Option<usize> {
        let domain: TrustDomain = domain.parse().unwrap();
        self.trust().bundles.find(&domain).map(|bundle| bundle.roots.len())
    }

    async fn until(&self, what: &str, mut holds: impl FnMut(&Self) -> bool) {
        let wait = async {
            while !holds(self) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let waited = tokio::time::timeout(Duration::from_secs(30), wait).await;
        waited.unwrap_or_else(|_| panic!("{what}: {:?}", self.board.reports()));
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

fn key(name: &str) -> (Kind, Id) {
    let (kind, id) = name.split_once('/').unwrap();
    (Kind::named(kind).unwrap(), Id::parse(id).unwrap())
}

fn put(name: &str, value: &Value) -> Change {
    let (kind, id) = key(name);
    let body = Body::parse(kind, value).unwrap();
    Change::Put(Resource { kind, id, revision: 1, body })
}

fn unreadable(name: &str) -> Rejected {
    let (kind, id) = key(name);
    Rejected { kind, id, revision: 2, reason: "not what it should be".into() }
}

fn served(server: &Scripted, forge: &Forge) -> Value {
    json!({ "endpoint": {
        "url": server.url("/"), "profile": "https_spiffe", "allow_private": true,
        "spiffe_id": format!("spiffe://{}/server", forge.domain),
        "bundle": forge.bundle().to_pem(),
    } })
}

/// An endpoint whose document can be changed.
async fn endpoint(identity: Identity, first: String) -> (Scripted, Arc<Mutex<String>>) {
    let text = Arc::new(Mutex::new(first));
    let current = text.clone();
    let server = Scripted::start(spiffe_door(identity), move |_| ok(&current.lock())).await;
    (server, text)
}

#[tokio::test]
async fn rules_67_68_74_and_87_a_bundle_is_fetched_follows_its_domain_and_never_goes_back() {
    let world = World::new();
    let (b, next) = (Forge::new("b.test"), Forge::new("b.test"));
    let both = TrustBundle { roots: vec![b.root.clone(), next.root.clone()], ..b.bundle() };
    let (server, text) = endpoint(b.identity("/server", &[]), document(&both, Some(7))).await;
    let declared = served(&server, &b);
    assert!(world.put("trust_domains/b.test", &declared).is_empty());
    assert_eq!(world.roots("b.test"), Some(1), "the declared bundle until one is fetched");
    world.until("the fetched bundle", |world| world.roots("b.test") == Some(2)).await;
    let report = |world: &World| world.board.reports().pop().unwrap();
    assert_eq!(report(&world).sequence, Some(7));

    for (rule, sequence, roots) in [("67", Some(6), &b), ("67", None, &b), ("68", Some(7), &b)] {
        let failures = report(&world).failures;
        *text.lock() = document(&roots.bundle(), sequence);
        world.put("trust_domains/b.test", &declared);
        world.until(rule, |world| report(world).failures > failures).await;
        assert_eq!(world.roots("b.test"), Some(2), "{rule} with {sequence:?}");
        assert!(report(&world).alarm, "{rule}: {:?}", report(&world));
    }
    // Also a new process knows what it had (87), and does not go back.
    let world = world.restarted();
    world.put("trust_domains/b.test", &declared);
    assert_eq!(world.roots("b.test"), Some(2), "87 at once");
    world.until("67 after a restart", |world| report(world).alarm).await;
    assert_eq!(world.roots("b.test"), Some(2));

    *text.lock() = document(&b.bundle(), Some(8));
    world.put("trust_domains/b.test", &declared);
    world.until("74 a root is gone", |world| world.roots("b.test") == Some(1)).await;
    assert!(!report(&world).alarm, "something good came");
    *text.lock() = document(&TrustBundle::new(b.domain.clone(), Vec::new()), Some(9));
    world.put("trust_domains/b.test", &declared);
    world.until("57 nobody is trusted", |world| world.roots("b.test") == Some(0)).await;
    world.delete("trust_domains/b.test");
    assert_eq!(world.roots("b.test"), None, "52 declared no more");
    assert!(world.board.reports().is_empty());
}

#[tokio::test]
async fn rules_81_and_82_say_whose_bundle_verifies_the_server() {
    // 81: the server turns to an authority that only the fetched bundle has.
    let world = World::new();
    let (b, next) = (Forge::new("b.test"), Forge::new("b.test"));
    let both = TrustBundle { roots: vec![b.root.clone(), next.root.clone()], ..b.bundle() };
    let (publisher, live) = Publisher::new(b.identity("/server", &[]));
    let text = Arc::new(Mutex::new(document(&both, Some(1))));
    let current = text.clone();
    let door = Door::Spiffe(OpenAcceptor::new(live));
    let server = Scripted::start(door, move |_| ok(&current.lock())).await;
    let declared = served(&server, &b);
    world.put("trust_domains/b.test", &declared);
    world.until("81", |world| world.roots("b.test") == Some(2)).await;
    publisher.set(next.identity("/server", &[]));
    *text.lock() = document(&next.bundle(), Some(2));
    world.put("trust_domains/b.test", &declared);
    let domain: TrustDomain = "b.test".parse().unwrap();
    let found = |world: &World| world.trust().bundles.find(&domain).cloned();
    world.until("81 with the newest bundle", |world| found(world) == Some(next.bundle())).await;
    // Another first bundle begins anew.
    let third = Forge::new("b.test");
    let mut anew = declared.clone();
    anew["endpoint"]["bundle"] = third.bundle().to_pem().into();
    world.put("trust_domains/b.test", &anew);
    assert_eq!(found(&world), Some(third.bundle()), "an operator's word");

    // 82: the server is of another trust domain.
    let world = World::new();
    let c = Forge::new("c.test");
    let (server, _) = endpoint(c.identity("/server", &[]), document(&b.bundle(), Some(1))).await;
    let mut declared = served(&server, &c);
    declared["endpoint"].as_object_mut().unwrap().remove("bundle");
    world.put("trust_domains/b.test", &declared);
    let says = |world: &World, text: &str| {
        let reports = world.board.reports();
        reports.iter().any(|one| one.last_error.as_ref().is_some_and(|error| error.contains(text)))
    };
    world.until("82 no bundle", |world| says(world, "no bundle of trust domain c.test")).await;
    assert_eq!(world.roots("b.test"), None);
    world.put("trust_domains/c.test", &json!({ "bundle": c.bundle().to_pem() }));
    world.put("trust_domains/b.test", &declared);
    world.until("82", |world| world.roots("b.test") == Some(1)).await;
}

#[tokio::test]
async fn rule_86_an_endpoint_that_fails_is_not_asked_again_at_once() {
    let world = World::new();
    let b = Forge::new("b.test");
    let broken = |_: &str| b"HTTP/1.1 500 Oh\r\ncontent-length: 0\r\n\r\n".to_vec();
    let server = Scripted::start(spiffe_door(b.identity("/server", &[])), broken).await;
    world.put("trust_domains/b.test", &served(&server, &b));
    world.until("a failure", |world| world.board.reports()[0].failures == 1).await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(server.asked().len(), 1, "86");
    let report = world.board.reports().pop().unwrap();
    assert!(report.next_at.unwrap() - world.clock.now() >= 10, "86 {report:?}");
    assert_eq!(world.roots("b.test"), Some(1), "what was declared stays");
}

#[tokio::test]
async fn rule_88_documents_that_are_no_bundles_change_nothing() {
    let world = World::new();
    let b = Forge::new("b.test");
    let (server, text) = endpoint(b.identity("/server", &[]), document(&b.bundle(), Some(1))).await;
    let declared = served(&server, &b);
    world.put("trust_domains/b.test", &declared);
    world.until("a bundle", |world| world.board.reports()[0].sequence == Some(1)).await;
    let deep =
        format!(r#"{{"keys":[],"spiffe_sequence":2,"x":{}{}}}"#, "[".repeat(20), "]".repeat(20));
    let large = format!(r#"{{"keys":[],"spiffe_sequence":2,"x":"{}"}}"#, "x".repeat(1 << 20));
    let twice = r#"{"keys":[],"keys":[],"spiffe_sequence":2}"#.to_owned();
    for (rule, document) in [
        ("88 nested too deep", deep),
        ("88 too large", large),
        ("a member twice", twice),
        ("56 no keys", r#"{"spiffe_sequence":2}"#.to_owned()),
        ("not JSON", "<html>".to_owned()),
    ] {
        let failures = world.board.reports()[0].failures;
        *text.lock() = document;
        world.put("trust_domains/b.test", &declared);
        world.until(rule, |world| world.board.reports()[0].failures > failures).await;
        assert_eq!(world.roots("b.test"), Some(1), "{rule}");
    }
}

#[tokio::test]
async fn what_is_broken_behind_the_apis_back_fails_closed_and_is_named() {
    let world = World::new();
    let b = Forge::new("b.test");
    let good = json!({ "bundle": b.bundle().to_pem() });
    world.put("trust_domains/b.test", &good);
    assert_eq!(world.roots("b.test"), Some(1));
    let refused = world.put("trust_domains/b.test", &json!({ "bundle": "hello" }));
    assert!(refused[0].reason.starts_with("bundle: "), "{refused:?}");
    assert_eq!(world.roots("b.test"), None, "nobody knows what it should have said");
    world.put("trust_domains/b.test", &good);
    assert_eq!(world.roots("b.test"), Some(1), "repaired");
    let refused = world.federation.declare(&[], &[unreadable("trust_domains/b.test")], false);
    assert!(refused.is_empty(), "it is named already");
    assert_eq!(world.roots("b.test"), None);
    // Our own trust domain goes on.
    world.federation.declare(&[], &[unreadable("trust_domains/a.test")], false);
    let refused = world.put("trust_domains/a.test", &json!({ "bundle": b.bundle().to_pem() }));
    assert!(refused[0].reason.contains("our own trust domain"), "{refused:?}");
    assert_eq!(world.trust().bundles.find(&world.a.domain), Some(&world.a.bundle()));

    let denied = |world: &World| world.trust().revocation.denied.clone();
    let id = "spiffe://a.test/lost";
    world.put("revocations/1", &json!({ "spiffe_id": id }));
    world.federation.declare(&[], &[unreadable("revocations/1")], false);
    assert_eq!(denied(&world).ids.len(), 1, "it goes on refusing");
    // What of a broken one can be read refuses as well.
    let broken = json!({ "spki_sha256": "ab".repeat(32), "serial": "zz", "trust_domain": "a.test", "color": 1 });
    let (kind, name) = key("revocations/2");
    let body = Body::closed(kind, &broken).unwrap();
    let stand_in = Change::Put(Resource { kind, id: name, revision: 2, body });
    world.federation.declare(&[stand_in], &[unreadable("revocations/2")], false);
    assert_eq!((denied(&world).keys.len(), denied(&world).serials.len()), (1, 0));
    // A full state says by silence what is gone, and by name what stays.
    world.federation.declare(&[], &[unreadable("revocations/1")], true);
    assert_eq!((denied(&world).ids.len(), denied(&world).keys.len()), (1, 0));
    assert_eq!(world.roots("b.test"), None);
    world.federation.declare(&[], &[], true);
    assert!(denied(&world).ids.is_empty());
}

#[tokio::test]
async fn a_denial_ends_when_it_says_and_a_control_plane_looks_at_its_own_domain_alone() {
    let world = World::new();
    let soon = world.clock.now() + 100;
    world.put("revocations/1", &json!({ "spiffe_id": "spiffe://a.test/x", "expires_at": soon }));
    assert_eq!(world.trust().revocation.denied.ids.len(), 1);
    world.clock.advance(100);
    world.until("its end", |world| world.trust().revocation.denied.ids.is_empty()).await;

    let (a, b) = (Forge::new("a.test"), Forge::new("b.test"));
    let (source, _) = Publisher::new(a.identity("/wardgate/control", &[]));
    let world = World::with(a, Folder::new(), source, Reach::OwnDomain);
    world.put("trust_domains/b.test", &json!({ "bundle": b.bundle().to_pem() }));
    assert_eq!(world.roots("b.test"), None);
    world.put("revocations/1", &json!({ "spiffe_id": "spiffe://a.test/x" }));
    assert_eq!(world.trust().revocation.denied.ids.len(), 1);
    drop(world.source);
}

/// A revocation list of the forge's root.
fn list(forge: &Forge, number: u64, seconds_ago: i64) -> Vec<u8> {
    forge.list_by_root(number, seconds_ago).into_bytes()
}

#[tokio::test]
async fn lists_come_from_files_and_urls_and_are_kept() {
    let world = World::new();
    let b = Forge::new("b.test");
    let file = world.path("crl.pem");
    std::fs::write(&file, list(&b, 1, 60)).unwrap();
    let fetched = Arc::new(Mutex::new(list(&b, 2, 50)));
    let current = fetched.clone();
    let server = Scripted::start(Door::Plain, move |_| {
        let body = current.lock().clone();
        let mut answer =
            format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len()).into_bytes();
        answer.extend(body);
        answer
    })
    .await;
    let declared = json!({
        "bundle": b.bundle().to_pem(),
        "revocation": {
            "mode": "hard", "files": [file], "urls": [format!("http://{}/crl", server.address)],
            "allow_private": true,
        },
    });
    assert!(world.put("trust_domains/b.test", &declared).is_empty());
    let lists = |world: &World| {
        let trust = world.trust();
        trust.revocation.by_domain.get(&b.domain).map_or(0, |lists| lists.lists.len())
    };
    assert!(lists(&world) >= 1, "the file at once");
    world.until("the URL's list", |world| lists(world) == 2).await;
    assert_eq!(world.board.reports()[0].revocation, Some("hard"));

    // A changed file is noticed; a damaged one changes nothing.
    let before = world.trust();
    std::fs::write(&file, list(&b, 3, 40)).unwrap();
    world.until("the file's next list", |world| *world.trust() != *before).await;
    let before = world.trust();
    std::fs::write(&file, "hello").unwrap();
    let error = |world: &World, at: usize| world.board.reports()[0].lists[at].error.clone();
    world.until("damage", |world| error(world, 0).is_some()).await;
    assert!(*world.trust() == *before, "the last good list stays");

    // Over plain http nobody's list but the domain's own, and never an older one.
    for (bad, says) in [
        (list(&Forge::new("b.test"), 9, 10), "did not sign it"),
        (list(&Forge::new("z.test"), 9, 10), "over plain http"),
        (list(&b, 1, 3000), "older"),
        (b"hello".to_vec(), "no revocation list"),
    ] {
        *fetched.lock() = bad;
        world.put("trust_domains/b.test", &declared);
        world.until(says, |world| error(world, 1).is_some_and(|error| error.contains(says))).await;
        assert_eq!(lists(&world), 2, "{says}");
    }
    // And a new process has the last good one before it asks anybody.
    let world = world.restarted();
    std::fs::write(&file, list(&b, 3, 40)).unwrap();
    drop(server);
    world.put("trust_domains/b.test", &declared);
    assert_eq!(lists(&world), 2, "kept");

    // What is too old does not count.
    let mut strict = declared.clone();
    strict["revocation"]["max_age"] = json!(600);
    world.put("trust_domains/b.test", &strict);
    assert_eq!(lists(&world), 2);
    world.clock.advance(700);
    world.until("age", |world| lists(world) == 0).await;
}
