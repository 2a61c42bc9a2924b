//! Layer 4: policy decides about a connection before a byte of it is read, over mTLS and where TLS is passed through; what was
//! allowed goes through unread and ends with what it rests on.

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use wardgate::mtls::Alpn;
use wardgate::mtls::MeshStream;

use crate::mesh::RawApp;
use crate::world::{PATIENCE, Part, Process, World, eventually, free_port, raw_to, run, soon};

/// A server that has its own word for what it gets, and one at the end.
fn loud() -> RawApp {
    RawApp::serving(|stream| {
        while !stream.buffer.is_empty() || stream.fill() {
            let loud = std::mem::take(&mut stream.buffer).to_ascii_uppercase();
            stream.send(loud);
        }
        stream.send("BYE");
    })
}

/// A sidecar before a TCP application, at this port.
fn billing<'w>(world: &'w World, app: &RawApp, port: u16) -> Part<'w> {
    let tcp = json!([{ "name": "db", "listen": format!("127.0.0.1:{port}"), "to": app.address }]);
    world
        .sidecar("/billing")
        .set("sidecar.tcp", &tcp)
        .set("proof", &json!({ "drain_within_seconds": 0.3, "list_connections": true }))
        .set("status", &json!("127.0.0.1:0"))
}

fn policy(rules: &Value) -> Value {
    json!({ "identity_policies": [{ "id": "p", "action": "allow", "rules": rules }] })
}

async fn opened(world: &World, who: &str, billing: &Process) -> MeshStream<TcpStream> {
    let address = billing.address("tcp:db");
    world.peer(who).stream_to(address, &billing.id, Alpn::Http1).await.unwrap()
}

trait TcpLike: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send {}
impl<T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send> TcpLike for T {}

async fn says(stream: &mut impl TcpLike, word: &str) {
    stream.write_all(word.as_bytes()).await.unwrap();
    stream.flush().await.unwrap();
    let mut answer = vec![0; word.len()];
    soon("an echo", stream.read_exact(&mut answer)).await.unwrap();
    assert_eq!(answer, word.to_ascii_uppercase().as_bytes());
}

/// All that comes until the end, however it comes.
async fn rest(stream: &mut impl TcpLike) -> Vec<u8> {
    let mut all = Vec::new();
    let _ = soon("the end", stream.read_to_end(&mut all)).await;
    all
}

#[tokio::test]
async fn a_tcp_application_is_reached_by_whom_a_rule_admits_to_its_port_and_by_nobody_else() {
    let (world, app, port) = (World::new(), loud(), free_port());
    let billing = billing(&world, &app, port)
        .resources(&policy(&json!([
            { "name": "db", "from": { "principals": [world.id("/shop")] }, "to": { "ports": [port] } },
            { "name": "other", "from": { "principals": [world.id("/other")] }, "to": { "not_ports": [port] } },
            { "name": "web", "from": { "principals": [world.id("/web")] }, "to": { "paths": ["/**"] } },
        ])))
        .start();

    let mut stream = opened(&world, "/shop", &billing).await;
    says(&mut stream, "hello").await;
    stream.shutdown().await.unwrap();
    assert_eq!(rest(&mut stream).await, b"BYE", "the other direction goes on after a half-close");
    let allowed = billing.record_with("/protocol", &json!("tcp"));
    assert_eq!(
        (&allowed["outcome"], &allowed["rule"], &allowed["dst"]["port"]),
        (&json!("allow"), &json!("db"), &json!(port))
    );
    assert_eq!(allowed["src"]["spiffe_id"], json!(world.id("/shop")));
    assert_eq!(allowed["upstream"], json!(app.address.to_string()));
    let closed = billing.record_with("/type", &json!("connection"));
    assert_eq!(
        (&closed["event"], &closed["bytes_in"], &closed["bytes_out"], &closed["protocol"]),
        (&json!("close"), &json!(5), &json!(8), &json!("tcp"))
    );

    // Whoever names what only HTTP has admits nobody at layer 4.
    for (who, clause) in [("/web", "paths"), ("/other", "not_ports"), ("/stranger", "principals")] {
        let mut stream = opened(&world, who, &billing).await;
        let _ = stream.write_all(b"hello").await;
        assert_eq!(rest(&mut stream).await, b"", "{who}");
        let denied = billing.record(who, |record| {
            record["src"]["spiffe_id"] == json!(world.id(who)) && record["outcome"] == "deny"
        });
        assert_eq!((&denied["protocol"], &denied["reason"]), (&json!("tcp"), &json!("no_rule")));
        assert_eq!(denied["nearest"]["clause"], clause, "{denied}");
        let id = denied["denial_id"].as_str().unwrap();
        let log = billing.audit_file();
        let told = run(["explain", "denial", id, "--log", log.to_str().unwrap()]).good();
        assert!(told.contains(&world.id(who)), "{told}");
    }
    let plain = raw_to(billing.address("tcp:db"), b"hello\n").await;
    assert!(!plain.contains("HELLO"), "{plain}");
    assert_eq!(billing.record_with("/reason", &json!("not_tls"))["dst"]["port"], json!(port));
    assert_eq!(app.connections(), 1, "not a byte of the others got to the application");
}

#[tokio::test]
async fn a_relayed_connection_ends_when_policy_refuses_it_and_drains_with_the_process() {
    let (world, app, port) = (World::new(), loud(), free_port());
    let (shop, web) = (world.id("/shop"), world.id("/web"));
    let rules = |port: u16| {
        policy(&json!([
            { "name": "db", "from": { "principals": [shop] }, "to": { "ports": [port] } },
            { "name": "web", "from": { "principals": [web] } },
        ]))
    };
    let mut billing = billing(&world, &app, port).resources(&rules(port)).start();
    let mut refused = opened(&world, "/shop", &billing).await;
    let mut kept = opened(&world, "/web", &billing).await;
    says(&mut refused, "a").await;
    says(&mut kept, "b").await;
    billing.write_resources(&rules(port ^ 1));
    assert_eq!(rest(&mut refused).await, b"", "cut off, and not ended as if it were whole");
    billing.record("the refusal", |record| {
        record["outcome"] == "deny" && record["src"]["spiffe_id"] == json!(shop)
    });
    let ended = billing.record_with("/event", &json!("forced_close"));
    assert_eq!(
        (&ended["reason"], &ended["bytes_in"], &ended["src"]["spiffe_id"]),
        (&json!("policy_changed"), &json!(1), &json!(shop))
    );
    says(&mut kept, "c").await;

    billing.ask_to_end();
    assert_eq!(rest(&mut kept).await, b"", "an idle connection has no longer than any");
    assert!(billing.wait().success());
}

fn long(content: &[u8]) -> Vec<u8> {
    [&u16::try_from(content.len()).unwrap().to_be_bytes()[..], content].concat()
}

/// The first message of a TLS client that asks for this server, in records of so many bytes.
fn hello(server: Option<&str>, size: usize) -> Vec<u8> {
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.extend([0]);
    body.extend(long(&[0x13, 0x01]));
    body.extend([1, 0]);
    let name = server.map(|server| {
        [&[0, 0][..], &long(&long(&[&[0], &long(server.as_bytes())[..]].concat()))].concat()
    });
    body.extend(long(
        &[name.unwrap_or_default(), [&[0, 43][..], &long(b"\x02\x03\x04")].concat()].concat(),
    ));
    let length = u32::try_from(body.len()).unwrap().to_be_bytes();
    let message = [&[1], &length[1..], &body].concat();
    message.chunks(size).flat_map(|part| [&[22, 3, 1][..], &long(part)].concat()).collect()
}

#[tokio::test]
async fn tls_is_passed_through_byte_by_byte_to_the_server_that_policy_admits() {
    let world = World::new();
    let echo = |word: &'static str| {
        RawApp::serving(move |stream| {
            stream.send(word);
            while !stream.buffer.is_empty() || stream.fill() {
                let same = std::mem::take(&mut stream.buffer);
                stream.send(same);
            }
        })
    };
    let (db, any) = (echo("db"), echo("any"));
    let passthrough = json!([{ "listen": "127.0.0.1:0", "routes": [
        { "server_names": ["db.shop.test"], "to": db.address },
        { "server_names": ["*.shop.test"], "to": any.address },
    ]}]);
    let part = world.ingress().set("ingress.passthrough", &passthrough);
    let ingress =
        part.set("limits", &json!({ "handshake_seconds": 2 })).resources(&json!({})).start();
    let door = ingress.address("passthrough");

    for (server, size, word) in
        [("db.shop.test", 9999, "db"), ("DB.shop.test.", 7, "db"), ("web.shop.test", 60, "any")]
    {
        let first = hello(Some(server), size);
        let mut tcp = TcpStream::connect(door).await.unwrap();
        let (one, two) = first.split_at(first.len() / 2);
        tcp.write_all(one).await.unwrap();
        tcp.flush().await.unwrap();
        tcp.write_all(two).await.unwrap();
        tcp.write_all(b"whatever follows").await.unwrap();
        let expected = [word.as_bytes(), &first, b"whatever follows"].concat();
        let mut seen = vec![0; expected.len()];
        soon("the echo", tcp.read_exact(&mut seen)).await.unwrap();
        assert_eq!(seen, expected, "{server}: unchanged");
    }
    assert!(
        !ingress.audit().iter().any(|record| record["type"] == "decision"),
        "where no policy selects it, nothing is decided"
    );

    let alert = |description: u8| vec![21, 3, 3, 0, 2, 2, description];
    let ask = async |bytes: &[u8]| {
        let mut tcp = TcpStream::connect(door).await.unwrap();
        tcp.write_all(bytes).await.unwrap();
        rest(&mut tcp).await
    };
    for (bytes, answer, reason) in [
        (hello(Some("elsewhere.test"), 99), alert(112), "unknown_server_name"),
        (hello(None, 99), alert(109), "no_server_name"),
        (b"GET / HTTP/1.1\r\n\r\n".to_vec(), vec![], "not_tls"),
        (hello(Some("a..b"), 99), vec![], "tls_protocol"),
    ] {
        assert_eq!(ask(&bytes).await, answer, "{reason}");
        let record = ingress.record_with("/reason", &json!(reason));
        assert_eq!(record["type"], "handshake_refused", "{reason}");
    }
    // Half a message, and no more of it in time.
    assert_eq!(ask(&hello(Some("db.shop.test"), 99)[..20]).await, b"");

    let only_db = json!({ "identity_policies": [{
        "id": "edge", "action": "allow",
        "rules": [{ "name": "db", "to": { "hosts": ["db.shop.test"], "ports": [door.port()] } }],
    }]});
    let mut kept = TcpStream::connect(door).await.unwrap();
    let mut cut = TcpStream::connect(door).await.unwrap();
    for (stream, server, word) in
        [(&mut kept, "db.shop.test", "db"), (&mut cut, "web.shop.test", "any")]
    {
        let first = hello(Some(server), 99);
        stream.write_all(&first).await.unwrap();
        let mut seen = vec![0; word.len() + first.len()];
        soon("the echo", stream.read_exact(&mut seen)).await.unwrap();
    }
    ingress.write_resources(&only_db);
    let denied = ingress.record("the refusal of what is open", |record| {
        record["type"] == "decision" && record["outcome"] == "deny"
    });
    assert_eq!(
        (&denied["host"], &denied["protocol"], &denied["reason"]),
        (&json!("web.shop.test"), &json!("tcp"), &json!("no_rule"))
    );
    rest(&mut cut).await;
    kept.write_all(b"still").await.unwrap();
    let mut seen = [0; 5];
    soon("the echo", kept.read_exact(&mut seen)).await.unwrap();
    assert_eq!(ask(&hello(Some("web.shop.test"), 99)).await, alert(49), "access denied");
    let mut allowed = TcpStream::connect(door).await.unwrap();
    allowed.write_all(&hello(Some("db.shop.test"), 99)).await.unwrap();
    soon("the server's word", allowed.read_exact(&mut seen[..2])).await.unwrap();
    let record = ingress.record("what is allowed", |record| {
        record["type"] == "decision" && record["outcome"] == "allow"
    });
    assert_eq!((&record["host"], &record["rule"]), (&json!("db.shop.test"), &json!("db")));
}

#[test]
fn settings_of_layer_4_that_make_no_sense_are_refused_by_name() {
    let world = World::new();
    let tcp = json!([{ "name": "db", "listen": "127.0.0.1:0", "to": "nowhere" }]);
    let ended = world.sidecar("/a").set("sidecar.tcp", &tcp).resources(&json!({})).fails();
    assert!(ended.err.contains("sidecar.tcp") && ended.err.contains("[0].to"), "{}", ended.err);
    let passthrough = json!([{ "listen": "127.0.0.1:0", "routes": [] }]);
    let part = world.ingress().set("ingress.passthrough", &passthrough).resources(&json!({}));
    let ended = part.fails();
    assert!(ended.err.contains("ingress.passthrough"), "{}", ended.err);
}

#[tokio::test]
async fn connections_of_layer_4_are_counted_and_limited_as_all_are() {
    let (world, app, port) = (World::new(), loud(), free_port());
    let rules = policy(&json!([{ "from": { "principals": [world.id("/shop")] } }]));
    let limits = json!({ "connections_per_listener": 1 });
    let billing = billing(&world, &app, port).set("limits", &limits).resources(&rules).start();
    let mut first = opened(&world, "/shop", &billing).await;
    says(&mut first, "a").await;
    let address = billing.address("tcp:db");
    let second = world.peer("/shop").stream_to(address, &billing.id, Alpn::Http1).await;
    assert!(second.is_err(), "one is enough");
    drop(first);
    eventually("the place is free", || {
        let tcp = std::net::TcpStream::connect(address).ok()?;
        tcp.set_read_timeout(Some(PATIENCE / 100)).unwrap();
        let read = std::io::Read::read(&mut &tcp, &mut [0]);
        read.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock).then_some(())
    });
}
