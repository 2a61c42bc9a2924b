//! HTTPS towards upstreams of the public world: whom we believe, by which name, and what we show.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{HandshakeKind, RootCertStore, ServerConfig};
use wardgate::mtls::provider;
use wardgate::rt::Tasks;

use crate::world::{Process, World, eventually, eventually_async, send};

/// An authority of the public world.
pub(crate) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// A certificate with its key, as PEM.
pub(crate) struct Pair {
    pub(crate) chain: String,
    pub(crate) key: String,
}

impl Authority {
    pub(crate) fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        Self { issuer }
    }

    pub(crate) fn pem(&self) -> String {
        self.issuer.pem()
    }

    pub(crate) fn issue(&self, common_name: &str, names: &[&str]) -> Pair {
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name.push(DnType::CommonName, common_name);
        let key = KeyPair::generate().unwrap();
        let chain = params.signed_by(&key, &self.issuer).unwrap().pem();
        Pair { chain, key: key.serialize_pem() }
    }
}

/// What a handshake was like.
#[derive(Clone, Debug, PartialEq)]
struct Seen {
    server_name: Option<String>,
    /// The subject of the certificate that we showed, as its bytes have it.
    client: Option<Vec<u8>>,
    resumed: bool,
    protocol: Option<String>,
}

/// An upstream that speaks HTTP/1.1 over TLS and remembers the handshakes.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    _tasks: Tasks,
}

impl Server {
    pub(crate) async fn start(pair: &Pair, clients: Option<&Authority>) -> Self {
        let builder = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap();
        let builder = match clients {
            None => builder.with_no_client_auth(),
            Some(authority) => {
                let mut roots = RootCertStore::empty();
                roots.add(authority.issuer.der().clone()).unwrap();
                let verifier =
                    WebPkiClientVerifier::builder_with_provider(roots.into(), provider());
                builder.with_client_cert_verifier(verifier.build().unwrap())
            }
        };
        let chain = CertificateDer::pem_slice_iter(pair.chain.as_bytes());
        let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).unwrap();
        let mut config =
            builder.with_single_cert(chain.map(Result::unwrap).collect(), key).unwrap();
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::<Mutex<Vec<Seen>>>::default();
        let noted = seen.clone();
        let mut tasks = Tasks::new();
        tasks.add(async move {
            let mut connections = Tasks::new();
            while let Ok((tcp, _)) = listener.accept().await {
                let (acceptor, noted) = (acceptor.clone(), noted.clone());
                connections.add(async move {
                    let Ok(mut tls) = acceptor.accept(tcp).await else { return };
                    let session = tls.get_ref().1;
                    let protocol = session.alpn_protocol();
                    noted.lock().unwrap().push(Seen {
                        server_name: session.server_name().map(str::to_owned),
                        client: session.peer_certificates().map(|chain| chain[0].to_vec()),
                        resumed: session.handshake_kind() == Some(HandshakeKind::Resumed),
                        protocol: protocol.map(|name| String::from_utf8_lossy(name).into_owned()),
                    });
                    if tls.get_ref().1.alpn_protocol() == Some(b"h2") {
                        // It would have to speak it now.
                        return;
                    }
                    let mut buffer = Vec::new();
                    while tls.read_buf(&mut buffer).await.is_ok_and(|count| count > 0) {
                        if buffer.ends_with(b"\r\n\r\n") {
                            buffer.clear();
                            let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
                            if tls.write_all(answer).await.is_err() || tls.flush().await.is_err() {
                                return;
                            }
                        }
                    }
                });
            }
        });
        Self { address, seen, _tasks: tasks }
    }

    fn handshakes(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    pub(crate) fn upstream(&self, tls: &Value) -> Value {
        json!({ "scheme": "https", "nodes": { self.address.to_string(): 1 }, "tls": tls })
    }
}

fn route(upstream: &Value) -> Value {
    json!({ "id": "all", "uri": "/*", "upstream": upstream })
}

fn ingress(world: &World, name: &str, upstream: &Value) -> Process {
    world.ingress().named(name).resources(&json!({ "routes": [route(upstream)] })).start()
}

async fn status(ingress: &Process, host: &str) -> u16 {
    send(ingress.address("ingress"), "GET", "/", &[("host", host)], "").await.status
}

fn written(world: &World, name: &str, text: &str) -> PathBuf {
    let path = world.folder.join(name);
    std::fs::write(&path, text).unwrap();
    path
}

#[tokio::test]
async fn a_server_is_believed_when_the_right_authority_vouches_for_the_host_that_is_sent() {
    let (world, right, wrong) = (World::new(), Authority::new("right"), Authority::new("wrong"));
    let server = Server::start(&right.issue("shop", &["shop.example", "127.0.0.1"]), None).await;
    for (name, tls, pass, host, expected) in [
        ("unknown", json!({}), json!({}), "shop.example", 502),
        ("right", json!({ "ca_certs": [right.pem()] }), json!({}), "shop.example", 200),
        ("port", json!({ "ca_certs": [right.pem()] }), json!({}), "SHOP.example:8443", 200),
        ("wrong", json!({ "ca_certs": [wrong.pem()] }), json!({}), "shop.example", 502),
        ("both", json!({ "ca_certs": [wrong.pem(), right.pem()] }), json!({}), "shop.example", 200),
        ("another-name", json!({ "ca_certs": [right.pem()] }), json!({}), "evil.example", 502),
        ("unverified", json!({ "verify": false }), json!({}), "evil.example", 200),
        (
            "rewritten",
            json!({ "ca_certs": [right.pem()] }),
            json!({ "pass_host": "rewrite", "upstream_host": "shop.example" }),
            "client.example",
            200,
        ),
        (
            "node",
            json!({ "ca_certs": [right.pem()] }),
            json!({ "pass_host": "node" }),
            "client.example",
            200,
        ),
    ] {
        let upstream = crate::mesh::merged(server.upstream(&tls), &pass);
        let ingress = ingress(&world, name, &upstream);
        let before = server.handshakes().len();
        assert_eq!(status(&ingress, host).await, expected, "{name}");
        let seen = server.handshakes().split_off(before);
        let names: Vec<_> = seen.iter().map(|seen| seen.server_name.as_deref()).collect();
        match (name, expected) {
            // An address is no server name.
            ("node", _) => assert_eq!(names, [None]),
            ("unverified", _) => assert_eq!(names, [Some("evil.example")]),
            (_, 200) => assert_eq!(names, [Some("shop.example")], "{name}"),
            _ => assert!(ingress.is_ready()),
        }
        assert!(seen.iter().all(|seen| seen.protocol.as_deref() == Some("http/1.1")));
    }
}

#[tokio::test]
async fn http2_is_offered_where_the_upstream_speaks_it() {
    let (world, authority) = (World::new(), Authority::new("a"));
    let server = Server::start(&authority.issue("s", &["shop.example"]), None).await;
    let mut upstream = server.upstream(&json!({ "ca_certs": [authority.pem()] }));
    upstream["scheme"] = json!("grpcs");
    let ingress = ingress(&world, "i", &upstream);
    // It takes the offer, and leaves.
    assert_eq!(status(&ingress, "shop.example").await, 502);
    let seen = server.handshakes();
    assert_eq!(seen[0].server_name.as_deref(), Some("shop.example"));
    assert!(seen.iter().all(|seen| seen.protocol.as_deref() == Some("h2")), "{seen:?}");
}

#[tokio::test]
async fn the_process_says_who_vouches_where_the_upstream_does_not() {
    let (world, right, wrong) = (World::new(), Authority::new("right"), Authority::new("wrong"));
    let server = Server::start(&right.issue("shop", &["shop.example"]), None).await;
    let upstream = json!({ "routes": [route(&server.upstream(&json!({})))] });
    for (name, authority, expected) in [("right", &right, 200), ("wrong", &wrong, 502)] {
        let file = written(&world, &format!("{name}.pem"), &authority.pem());
        let ingress = world
            .ingress()
            .named(name)
            .set("upstreams", &json!({ "ssl_trusted_certificate": file }))
            .resources(&upstream)
            .start();
        assert_eq!(status(&ingress, "shop.example").await, expected, "{name}");
    }
    let nothing = written(&world, "nothing.pem", "nothing\n");
    let ended = world
        .ingress()
        .named("nothing")
        .set("upstreams", &json!({ "ssl_trusted_certificate": nothing }))
        .resources(&upstream)
        .fails();
    assert!(ended.err.contains("nothing.pem"), "{ended:?}");
}

#[tokio::test]
async fn a_connection_is_never_used_for_another_name_than_it_was_verified_for() {
    let (world, authority) = (World::new(), Authority::new("a"));
    let server = Server::start(&authority.issue("s", &["one.example", "two.example"]), None).await;
    let ingress = ingress(&world, "i", &server.upstream(&json!({ "ca_certs": [authority.pem()] })));
    for _ in 0..3 {
        assert_eq!(status(&ingress, "one.example").await, 200);
        assert_eq!(status(&ingress, "two.example").await, 200);
        assert_eq!(status(&ingress, "three.example").await, 502);
    }
    let names: Vec<_> = server.handshakes().into_iter().map(|seen| seen.server_name).collect();
    let expected = ["one.example", "two.example"].map(|name| Some(name.to_owned()));
    assert_eq!(names, expected, "one connection each, kept for its own name");
}

#[tokio::test]
async fn sessions_are_resumed_over_connections_and_revisions() {
    let (world, authority) = (World::new(), Authority::new("a"));
    let server = Server::start(&authority.issue("s", &["shop.example"]), None).await;
    let mut upstream = server.upstream(&json!({ "ca_certs": [authority.pem()] }));
    upstream["keepalive_pool"] = json!({ "requests": 1 });
    let ingress = ingress(&world, "i", &upstream);
    assert_eq!(status(&ingress, "shop.example").await, 200);
    assert_eq!(status(&ingress, "shop.example").await, 200);
    // Another revision with the same TLS.
    upstream["retries"] = json!(0);
    ingress.write_resources(&json!({ "routes": [route(&upstream)] }));
    eventually("the second revision", || ingress.errors().contains("revision=2").then_some(()));
    assert_eq!(status(&ingress, "shop.example").await, 200);
    let resumed: Vec<bool> = server.handshakes().iter().map(|seen| seen.resumed).collect();
    assert_eq!(resumed, [false, true, true]);
}

#[tokio::test]
async fn a_server_that_asks_who_we_are_is_shown_what_the_upstream_says() {
    let world = World::new();
    let (servers, clients) = (Authority::new("servers"), Authority::new("clients"));
    let server = Server::start(&servers.issue("s", &["shop.example"]), Some(&clients)).await;
    let (one, two) = (clients.issue("one", &[]), clients.issue("two", &[]));
    let der = |pair: &Pair| CertificateDer::from_pem_slice(pair.chain.as_bytes()).unwrap().to_vec();
    let ca = json!([servers.pem()]);

    let without = ingress(&world, "without", &server.upstream(&json!({ "ca_certs": ca })));
    assert_eq!(status(&without, "shop.example").await, 502);

    let inline = json!({ "ca_certs": ca, "client_cert": one.chain, "client_key": one.key });
    let ingress_inline = ingress(&world, "inline", &server.upstream(&inline));
    assert_eq!(status(&ingress_inline, "shop.example").await, 200);
    assert_eq!(server.handshakes().last().unwrap().client, Some(der(&one)));

    // By reference: none yet, the one, another one, none again. The upstream itself never changes.
    let named = server.upstream(&json!({ "ca_certs": ca, "client_cert_id": "mine" }));
    let ssl = |pair: &Pair| json!({ "id": "mine", "type": "client", "cert": pair.chain, "key": pair.key });
    let resources = |ssls: Value| {
        json!({
            "upstreams": [crate::mesh::merged(named.clone(), &json!({ "id": "u" }))],
            "routes": [
                { "id": "slow", "uri": "/*", "upstream_id": "u",
                  "timeout": { "connect": 7, "send": 7, "read": 7 } },
            ],
            "ssls": ssls,
        })
    };
    let ingress = world.ingress().named("named").resources(&resources(json!([]))).start();
    assert_eq!(status(&ingress, "shop.example").await, 502, "there is no such certificate");
    for pair in [&one, &two] {
        ingress.write_resources(&resources(json!([ssl(pair)])));
        eventually_async("the certificate is shown", || async {
            let good = status(&ingress, "shop.example").await == 200;
            let shown = server.handshakes().last().unwrap().client.clone();
            (good && shown == Some(der(pair))).then_some(())
        })
        .await;
    }
    ingress.write_resources(&resources(json!([])));
    eventually_async("the certificate is gone", || async {
        (status(&ingress, "shop.example").await == 502).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_client_key_goes_into_the_store_and_never_comes_out() {
    let world = World::new();
    let (servers, clients) = (Authority::new("servers"), Authority::new("clients"));
    let server = Server::start(&servers.issue("s", &["shop.example"]), Some(&clients)).await;
    let (control, pair) = (world.control().start(), clients.issue("one", &[]));
    let admin = control.admin();
    let ingress = world.ingress().fed_by(&control).start();

    let tls = json!({
        "ca_certs": [servers.pem()], "client_cert": pair.chain, "client_key": pair.key,
    });
    let upstream = server.upstream(&tls);
    admin.put("/upstreams/1", &upstream).await;
    admin.put("/services/1", &json!({ "upstream": upstream })).await;
    admin.put("/routes/1", &json!({ "uri": "/inline", "upstream": upstream })).await;
    let revision = admin.put("/routes/2", &json!({ "uri": "/*", "upstream_id": "1" })).await;
    admin.applied(revision, 1).await;
    assert_eq!(status(&ingress, "shop.example").await, 200);

    // What is patched keeps the key that nobody sees.
    let patch = json!({ "desc": "with a key" });
    let answer = admin.ask("PATCH", "/upstreams/1", Some(&patch)).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let secret = pair.key.lines().nth(1).unwrap();
    assert!(!answer.text().contains(secret));
    for path in ["/upstreams/1", "/upstreams", "/services/1", "/routes/1", "/routes"] {
        let answer = admin.ask("GET", path, None).await;
        let text = answer.text();
        assert!(text.contains("client_cert") && !text.contains("client_key"), "{path}: {text}");
        assert!(!text.contains(secret), "{path}");
    }
    admin.applied(answer.revision(), 1).await;
    assert_eq!(status(&ingress, "shop.example").await, 200);
    let store = std::fs::read(control.state.join("store.redb")).unwrap();
    let held = store.windows(secret.len()).any(|window| window == secret.as_bytes());
    assert!(!held, "the key rests sealed");
}

#[tokio::test]
async fn what_cannot_be_shown_is_refused_when_it_is_written() {
    let world = World::new();
    let control = world.control().start();
    let admin = control.admin();
    let authority = Authority::new("a");
    let (one, two) = (authority.issue("one", &[]), authority.issue("two", &[]));
    let server = authority.issue("s", &["shop.example"]);
    let ssl = json!({ "sni": "shop.example", "cert": server.chain, "key": server.key });
    admin.put("/ssls/server", &ssl).await;
    let client = json!({ "type": "client", "cert": one.chain, "key": one.key });
    admin.put("/ssls/client", &client).await;
    let with = |tls: Value| json!({ "scheme": "https", "nodes": { "127.0.0.1:1": 1 }, "tls": tls });
    for (tls, says) in [
        (
            json!({ "client_cert_id": "nobody" }),
            "failed to fetch ssl info by ssl id [nobody], response code: 404",
        ),
        (
            json!({ "client_cert_id": "server" }),
            "failed to fetch ssl info by ssl id [server], wrong ssl type",
        ),
        (json!({ "client_cert": one.chain, "client_key": two.key }), "tls.client_cert"),
        (json!({ "client_cert": one.chain }), "client_key"),
        (
            json!({ "client_cert_id": "client", "client_cert": one.chain, "client_key": one.key }),
            "tls.client_cert",
        ),
        (json!({ "ca_certs": ["x".repeat(200)] }), "tls.ca_certs"),
        (json!({ "client_secret": "x" }), "client_secret"),
    ] {
        for (path, body) in [
            ("/upstreams/1", with(tls.clone())),
            ("/services/1", json!({ "upstream": with(tls.clone()) })),
        ] {
            let answer = admin.ask("PUT", path, Some(&body)).await;
            assert_eq!(answer.status, 400, "{path} {tls}");
            assert!(answer.text().contains(says), "{path} {tls}: {}", answer.text());
            assert!(!answer.text().contains("PRIVATE KEY"));
        }
    }
    admin.put("/upstreams/1", &with(json!({ "client_cert_id": "client" }))).await;
}
