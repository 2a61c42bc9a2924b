//! Attacks on TLS, by the numbers of the adversarial checklist (82 to 99): bytes on the wire, OpenSSL, and a mesh that goes on.
//!
//! Elsewhere: TLS 1.2 and no certificate at the mesh (82, 92: `bad_input`), names and certificates at the edge (88: `tls_edge`),
//! chains and names beyond the limits (98, 99: the `spiffe` tests).

use std::io::Write as _;
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::time::Duration;

use rcgen::SanType;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use wardgate::mtls::Alpn;

use crate::bad_input::Guarded;
use crate::tls_edge::{Certificate, Edge};
use crate::world::{Process, World, free_port, raw, send, soon};

/// A ClientHello, byte by byte.
struct Hello {
    server_name: Option<Vec<u8>>,
    alpn: Vec<&'static [u8]>,
    versions: Vec<u16>,
    more: Vec<(u16, Vec<u8>)>,
}

impl Hello {
    fn new() -> Self {
        Self { server_name: None, alpn: vec![b"http/1.1"], versions: vec![0x0304], more: vec![] }
    }

    fn named(name: &[u8]) -> Self {
        Self { server_name: Some(name.to_vec()), ..Self::new() }
    }

    /// The handshake message.
    fn message(&self) -> Vec<u8> {
        let mut extensions = Vec::new();
        let mut extension = |kind: u16, content: &[u8]| {
            extensions.extend(kind.to_be_bytes());
            extensions.extend(vector(2, content));
        };
        if let Some(name) = &self.server_name {
            extension(0, &vector(2, &[&[0][..], &vector(2, name)].concat()));
        }
        if !self.versions.is_empty() {
            let versions: Vec<u8> = self.versions.iter().flat_map(|v| v.to_be_bytes()).collect();
            extension(43, &vector(1, &versions));
        }
        if !self.alpn.is_empty() {
            let names: Vec<u8> = self.alpn.iter().flat_map(|name| vector(1, name)).collect();
            extension(16, &vector(2, &names));
        }
        // X25519; ECDSA, RSA-PSS and Ed25519.
        extension(10, &vector(2, &[0, 29]));
        extension(13, &vector(2, &[4, 3, 8, 4, 8, 7]));
        let share = [&[0, 29][..], &vector(2, &[9; 32])].concat();
        extension(51, &vector(2, &share));
        for (kind, content) in &self.more {
            extension(*kind, content);
        }
        let body = [
            &[3, 3][..],
            &[7; 32],
            &vector(1, &[5; 32]),
            &vector(2, &[0x13, 0x01, 0x13, 0x02, 0xc0, 0x2b]),
            &[1, 0],
            &vector(2, &extensions),
        ]
        .concat();
        [&[1][..], &vector(3, &body)].concat()
    }

    /// In one record.
    fn record(&self) -> Vec<u8> {
        record(22, &self.message())
    }
}

/// A vector with so many bytes of length before it.
fn vector(length: usize, content: &[u8]) -> Vec<u8> {
    let bytes = u32::try_from(content.len()).unwrap().to_be_bytes();
    [&bytes[4 - length..], content].concat()
}

fn record(kind: u8, content: &[u8]) -> Vec<u8> {
    [&[kind, 3, 1][..], &vector(2, content)].concat()
}

/// What a server says to bytes.
#[derive(Debug, PartialEq)]
enum Said {
    /// It goes on with the handshake.
    ServerHello,
    Alert(u8),
    /// It closed without a word.
    Closed,
}

async fn say(address: SocketAddr, pieces: &[Vec<u8>]) -> Said {
    let mut tcp = TcpStream::connect(address).await.unwrap();
    tcp.set_nodelay(true).unwrap();
    for piece in pieces {
        // Who refuses early may have closed.
        if tcp.write_all(piece).await.is_err() {
            break;
        }
    }
    let mut head = [0; 7];
    match soon("a word", tcp.read_exact(&mut head)).await {
        Err(_) => Said::Closed,
        Ok(_) => match head[0] {
            21 => Said::Alert(head[6]),
            22 => Said::ServerHello,
            other => panic!("a record of kind {other}"),
        },
    }
}

const PROTOCOL_VERSION: u8 = 70;

/// OpenSSL's client with an SVID of the world.
fn s_client(guarded: &Guarded, options: &[&str], input: &str) -> String {
    let files = guarded.world.files("/friend");
    let file = |name: &str| files.join(name).to_str().unwrap().to_owned();
    let certificate = ["-cert", &file("svid.pem"), "-cert_chain", &file("svid.pem")];
    let key = ["-key", &file("key.pem")];
    openssl(&guarded.sidecar.address("inbound"), &[&certificate[..], &key, options].concat(), input)
}

fn openssl(address: &SocketAddr, options: &[&str], input: &str) -> String {
    let mut child = Command::new("openssl")
        .args(["s_client", "-connect", &address.to_string()])
        .args(options)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("openssl is needed by this test: apt-get install openssl");
    // The end of its input ends it, unless it was told to wait for the server's end (-ign_eof). It may be gone already.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let output = child.wait_with_output().unwrap();
    String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
}

const REQUEST: &str = "GET / HTTP/1.1\r\nhost: guarded\r\nconnection: close\r\n\r\n";

/// Processor time that a process has used so far.
fn processor_time(process: &Process) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", process.pid())).unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    Duration::from_millis(ticks * 10)
}

#[tokio::test]
async fn item_82_versions_before_1_3_are_refused_and_1_3_is_never_talked_down() {
    let guarded = Guarded::new();
    let address = guarded.sidecar.address("inbound");
    let with = |versions: &[u16]| Hello { versions: versions.to_vec(), ..Hello::new() }.record();
    for (versions, expected) in [
        (&[0x0304][..], Said::ServerHello),
        (&[0x0304, 0x0303], Said::ServerHello),
        (&[0x0303, 0x0304], Said::ServerHello),
        (&[0x0303], Said::Alert(PROTOCOL_VERSION)),
        (&[0x0302, 0x0301], Said::Alert(PROTOCOL_VERSION)),
        (&[0x7f1c], Said::Alert(PROTOCOL_VERSION)),
        // Without the extension, as TLS 1.2 and older say it.
        (&[], Said::Alert(PROTOCOL_VERSION)),
    ] {
        assert_eq!(say(address, &[with(versions)]).await, expected, "82 {versions:04x?}");
    }
    // SSL 2.0, as OpenSSL once began.
    let old = [0x80, 0x2e, 1, 0, 2, 0, 21, 0, 0, 0, 16];
    assert!(matches!(
        say(address, &[old.to_vec(), vec![0; 64]]).await,
        Said::Alert(_) | Said::Closed
    ));
    let both = s_client(&guarded, &["-alpn", "http/1.1", "-ign_eof"], REQUEST);
    assert!(both.contains("New, TLSv1.3") && both.contains("HTTP/1.1 200"), "82 {both}");
}

#[tokio::test]
async fn item_83_a_server_that_speaks_only_tls_1_2_is_no_upstream_of_the_mesh() {
    let world = World::new();
    let files = world.files("/old");
    let file = |name: &str| files.join(name).to_str().unwrap().to_owned();
    let server = |version: &str, address: &str| {
        Command::new("openssl")
            .args(["s_server", version, "-accept", address, "-www", "-quiet", "-alpn", "http/1.1"])
            .args(["-cert", &file("svid.pem"), "-cert_chain", &file("svid.pem")])
            .args(["-key", &file("key.pem")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("openssl is needed by this test: apt-get install openssl")
    };
    let (old, new) = (format!("127.0.0.1:{}", free_port()), format!("127.0.0.1:{}", free_port()));
    let mut servers = [server("-tls1_2", &old), server("-tls1_3", &new)];
    let route = |id: &str, address: &str| {
        json!({
            "id": id, "uri": "/*", "host": id, "workload_selector": { "listener": "outbound" },
            "upstream": {
                "nodes": { address: 1 },
                "tls": { "identity": "svid", "spiffe_ids": [world.id("/old")] },
            },
        })
    };
    let sidecar = world
        .sidecar("/shop")
        .resources(&json!({ "routes": [route("old", &old), route("new", &new)] }))
        .start();
    for address in [&old, &new] {
        crate::world::eventually("openssl listens", || std::net::TcpStream::connect(address).ok());
    }
    let out = sidecar.address("outbound");
    let answer = send(out, "GET", "/", &[("host", "new")], "").await;
    assert_eq!(answer.status, 200, "83 the set-up is right: {}", answer.text());
    let answer = send(out, "GET", "/", &[("host", "old")], "").await;
    assert_eq!(answer.status, 502, "83 {}", answer.text());
    for server in &mut servers {
        let _ = server.kill();
        let _ = server.wait();
    }
}

#[tokio::test]
async fn item_84_nobody_negotiates_anew() {
    let edge = Edge::new().await;
    let certificate = Certificate::of(&["shop.example"]);
    edge.put("/ssls/1", &certificate.resource(&["shop.example"])).await;
    // A line with a lone R asks OpenSSL's client for another handshake on the same connection.
    let said = edge.world.folder.join("s_client.out");
    let output = || std::fs::File::options().create(true).append(true).open(&said).unwrap();
    let mut client = Command::new("openssl")
        .args(["s_client", "-connect", &edge.address().to_string()])
        .args(["-servername", "shop.example", "-tls1_2", "-alpn", "http/1.1"])
        .stdin(Stdio::piped())
        .stdout(output())
        .stderr(output())
        .spawn()
        .expect("openssl is needed by this test: apt-get install openssl");
    client.stdin.take().unwrap().write_all(b"R\n").unwrap();
    let read = || std::fs::read_to_string(&said).unwrap_or_default();
    let says = |what: &str| {
        crate::world::eventually(what, || read().contains(what).then_some(()));
    };
    says("RENEGOTIATING");
    // The refusal is a warning that goes out with whatever is said next: here, the end.
    edge.ingress.ask_to_end();
    says("no renegotiation");
    let _ = client.kill();
    let _ = client.wait();
    assert!(read().contains("New, TLSv1.2"), "84 the connection was there: {}", read());
    assert_eq!(edge.app.requests(), 0);
}

#[tokio::test]
async fn items_85_and_86_the_mesh_gives_no_ticket_so_that_nothing_is_resumed_or_early() {
    let guarded = Guarded::new();
    let sessions = guarded.world.folder.join("session.pem");
    let file = sessions.to_str().unwrap();
    let said = s_client(&guarded, &["-alpn", "http/1.1", "-ign_eof", "-sess_out", file], REQUEST);
    assert!(said.contains("HTTP/1.1 200"), "85 {said}");
    assert!(!said.contains("New Session Ticket arrived"), "85 {said}");
    assert!(!sessions.exists(), "85, 86 no session to begin from: no early data either");
    // A ticket of somebody else's is as good as none: the handshake is a full one and asks for the certificate.
    let psk = [
        vector(2, &[&vector(2, &[0xaa; 64])[..], &[0, 0, 0, 0]].concat()),
        vector(2, &vector(1, &[0xbb; 32])),
    ];
    let modes = (45, vector(1, &[1]));
    let more = vec![modes, (42, vec![]), (41, psk.concat())];
    let hello = Hello { more, ..Hello::new() };
    let early = record(23, &[0; 64]);
    let said = say(guarded.sidecar.address("inbound"), &[hello.record(), early]).await;
    assert!(matches!(said, Said::ServerHello | Said::Alert(_)), "86 {said:?}");
    assert_eq!(guarded.app.requests(), 1, "86 early data reaches nobody");
}

#[tokio::test]
async fn items_88_and_89_no_server_name_reaches_what_it_does_not_name() {
    let edge = Edge::new().await;
    let certificate = Certificate::of(&["shop.example"]);
    edge.put("/ssls/1", &certificate.resource(&["shop.example"])).await;
    let long = [b"a".repeat(290), b".shop.example".to_vec()].concat();
    let names: [(&str, Option<&[u8]>, bool); 12] = [
        ("the name", Some(b"shop.example"), true),
        ("upper case", Some(b"SHOP.EXAMPLE"), true),
        ("no name", None, false),
        ("an empty name", Some(b""), false),
        ("another name", Some(b"other.example"), false),
        ("an address", Some(b"127.0.0.1"), false),
        ("an IPv6 address", Some(b"::1"), false),
        ("300 bytes", Some(&long), false),
        ("a NUL", Some(b"shop.example\0.evil"), false),
        ("a space", Some(b"shop.example "), false),
        ("a slash", Some(b"shop.example/x"), false),
        ("not ASCII", Some(b"sh\xc3\xb6p.example"), false),
    ];
    for (what, name, served) in names {
        let hello = Hello { server_name: name.map(<[u8]>::to_vec), ..Hello::new() };
        let said = say(edge.address(), &[hello.record()]).await;
        assert_eq!(said == Said::ServerHello, served, "89 {what}: {said:?}");
    }
    let dotted = say(edge.address(), &[Hello::named(b"shop.example.").record()]).await;
    assert!(dotted == Said::ServerHello || matches!(dotted, Said::Alert(_)), "89 {dotted:?}");

    // In the mesh a name means nothing: the same workload answers, whatever is named.
    let guarded = Guarded::new();
    for name in ["shop.example", "guarded", "other"] {
        let options = ["-servername", name, "-alpn", "http/1.1", "-ign_eof"];
        let said = s_client(&guarded, &options, REQUEST);
        assert!(said.contains("HTTP/1.1 200") && said.contains("/guarded"), "88 {name}: {said}");
    }
}

#[tokio::test]
async fn item_90_protocols_that_are_not_ours_are_refused_and_what_was_agreed_on_is_spoken() {
    let guarded = Guarded::new();
    for (offered, agreed) in [
        ("foo", None),
        ("h3,ftp,smtp", None),
        ("HTTP/1.1", None),
        ("foo,http/1.1", Some("http/1.1")),
        ("h2", Some("h2")),
    ] {
        let said = s_client(&guarded, &["-alpn", offered], "");
        match agreed {
            Some(agreed) => {
                assert!(said.contains(&format!("ALPN protocol: {agreed}")), "90 {offered}: {said}");
            }
            None => assert!(said.contains("no application protocol"), "90 {offered}: {said}"),
        }
    }
    let record = guarded.sidecar.record_with("/type", &json!("handshake_refused"));
    assert_eq!(record["reason"], "no_common_protocol", "90");
    let friend = guarded.world.peer("/friend");
    let over = |alpn| friend.stream(&guarded.sidecar, alpn);
    let answer = raw(over(Alpn::Http2).await.unwrap(), REQUEST.as_bytes()).await;
    assert!(!answer.contains("HTTP/1.1 200"), "90 HTTP/1 where h2 was agreed on: {answer}");
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    let answer = raw(over(Alpn::Http1).await.unwrap(), preface).await;
    assert!(
        answer.is_empty() || answer.starts_with("HTTP/1.1 4") || answer.starts_with("HTTP/1.1 5"),
        "90 HTTP/2 where http/1.1 was agreed on: {answer:?}"
    );
    assert_eq!(guarded.app.requests(), 0, "90 nothing came through");
}

#[tokio::test]
async fn item_91_words_of_other_protocols_do_nothing() {
    let guarded = Guarded::new();
    let friend = guarded.world.peer("/friend");
    let refused =
        |answer: &str| answer.starts_with("HTTP/1.1 4") || answer.starts_with("HTTP/1.1 505");
    for words in [
        "EHLO mail.example\r\nMAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nDATA\r\n",
        "USER anonymous\r\nPASS x\r\nRETR secret\r\nQUIT\r\n",
        "a1 LOGIN x y\r\na2 SELECT INBOX\r\n",
        "*1\r\n$8\r\nFLUSHALL\r\n",
    ] {
        let stream = friend.stream(&guarded.sidecar, Alpn::Http1).await.unwrap();
        // An empty line, so that whoever waits for the end of a head has it.
        let answer = raw(stream, format!("{words}\r\n\r\n").as_bytes()).await;
        assert!(answer.is_empty() || refused(&answer), "91 {words:?}: {answer:?}");
        // What was sent does not come back: a browser would take it for an answer.
        assert!(!answer.contains("anonymous") && !answer.contains("mail.example"), "91 {answer}");
    }
    assert_eq!(guarded.app.requests(), 0, "91");
    assert_eq!(friend.get(&guarded.sidecar, "/").await.status, 200);
}

#[tokio::test]
async fn item_95_a_hello_in_pieces_is_read_or_refused_and_hurts_nobody() {
    let guarded = Guarded::new();
    let address = guarded.sidecar.address("inbound");
    let message = Hello::new().message();
    let in_records = |size: usize| -> Vec<Vec<u8>> {
        message.chunks(size).map(|piece| record(22, piece)).collect()
    };
    for size in [1, 3, 7, 64] {
        assert_eq!(
            say(address, &in_records(size)).await,
            Said::ServerHello,
            "95 records of {size}"
        );
        let whole = in_records(size).concat();
        assert_eq!(say(address, &[whole]).await, Said::ServerHello, "95 {size}, in one segment");
    }
    let one_by_one: Vec<Vec<u8>> = Hello::new().record().chunks(1).map(<[u8]>::to_vec).collect();
    assert_eq!(say(address, &one_by_one).await, Said::ServerHello, "95 bytes one by one");
    for (what, pieces) in [
        ("empty records", vec![record(22, &[]); 200]),
        (
            "an empty record inside",
            vec![record(22, &message[..9]), record(22, &[]), record(22, &message[9..])],
        ),
        (
            "another record inside",
            vec![record(22, &message[..9]), record(23, b"x"), record(22, &message[9..])],
        ),
        (
            "an alert inside",
            vec![record(22, &message[..9]), record(21, &[1, 0]), record(22, &message[9..])],
        ),
        ("too long a message", vec![record(22, &[1, 0xff, 0xff, 0xff]), record(22, &[0; 16_000])]),
        ("too long a record", vec![vec![22, 3, 1, 0xff, 0xff], vec![0; 17_000]]),
        ("no hello first", vec![record(22, &[11, 0, 0, 0])]),
        ("application data first", vec![record(23, &[0; 32])]),
        ("a key update first", vec![record(22, &[24, 0, 0, 1, 0])]),
        ("two hellos", vec![record(22, &[&message[..], &message].concat())]),
    ] {
        let said = say(address, &pieces).await;
        assert!(matches!(said, Said::Alert(_) | Said::Closed), "95 {what}: {said:?}");
    }
    assert_eq!(guarded.world.peer("/friend").get(&guarded.sidecar, "/").await.status, 200);
}

#[tokio::test]
async fn item_95_alerts_that_never_end_keep_nobody_busy() {
    let guarded = Guarded::new();
    let address = guarded.sidecar.address("inbound");
    let close = record(21, &[1, 0]);
    for (what, before) in [("at once", vec![]), ("after the hello", Hello::new().record())] {
        let mut tcp = TcpStream::connect(address).await.unwrap();
        let _ = tcp.write_all(&before).await;
        let _ = tcp.write_all(&close.repeat(500)).await;
        let end = async {
            let mut sink = Vec::new();
            let _ = tcp.read_to_end(&mut sink).await;
        };
        soon(&format!("95 the end of a connection, {what}"), end).await;
    }
    // Warnings that are no end, one after another, are not listened to for ever.
    let mut tcp = TcpStream::connect(address).await.unwrap();
    let flood = async {
        let warnings = record(21, &[1, 90]).repeat(100);
        while tcp.write_all(&warnings).await.is_ok() {}
    };
    soon("95 the end of a flood of warnings", flood).await;

    // A peer that closes its half and stays is let go, and costs nothing while it is there.
    let friend = guarded.world.peer("/friend");
    let mut stream = friend.stream(&guarded.sidecar, Alpn::Http1).await.unwrap();
    let before = processor_time(&guarded.sidecar);
    stream.shutdown().await.unwrap();
    let mut rest = Vec::new();
    let _ = soon("95 the other half's end", stream.read_to_end(&mut rest)).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let used = processor_time(&guarded.sidecar).saturating_sub(before);
    assert!(used < Duration::from_millis(300), "95 {used:?} of processor time for a closed half");
    assert_eq!(friend.get(&guarded.sidecar, "/").await.status, 200);
}

#[tokio::test]
async fn item_96_handshakes_that_do_not_go_on_are_ended_and_hold_nobody_up() {
    let guarded = Guarded::new();
    let address = guarded.sidecar.address("inbound");
    let hello = Hello::new().record();
    let begun = |bytes: Vec<u8>| async move {
        let mut tcp = TcpStream::connect(address).await.unwrap();
        tcp.write_all(&bytes).await.unwrap();
        tcp
    };
    let mut stalled = Vec::new();
    for n in 0..200 {
        let cut = match n % 3 {
            0 => 3,
            1 => hello.len() / 2,
            // The whole hello: the server has answered and waits.
            _ => hello.len(),
        };
        stalled.push(begun(hello[..cut].to_vec()).await);
    }
    let friend = guarded.world.peer("/friend");
    let answer = soon("96 a friend's request", friend.get(&guarded.sidecar, "/")).await;
    assert_eq!(answer.status, 200, "96");
    // Each is ended by the server, which waits for nobody longer than its limit.
    for mut tcp in stalled {
        let mut rest = Vec::new();
        let _ = soon("96 the end of a stalled handshake", tcp.read_to_end(&mut rest)).await;
    }
    assert_eq!(guarded.app.requests(), 1);
}

#[tokio::test]
async fn items_85_to_97_what_is_off_is_not_even_offered_by_our_own_hello() {
    let world = World::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let sidecar = world
        .sidecar("/shop")
        .resources(&json!({ "routes": [{
            "id": "1", "uri": "/*", "workload_selector": { "listener": "outbound" },
            "upstream": {
                "nodes": { address.to_string(): 1 },
                "tls": { "identity": "svid", "spiffe_ids": [world.id("/other")] },
            },
        }] }))
        .start();
    let asking = wardgate::rt::spawn({
        let out = sidecar.address("outbound");
        async move { send(out, "GET", "/", &[], "").await.status }
    });
    let (mut tcp, _) = soon("a connection", listener.accept()).await.unwrap();
    let mut head = [0; 5];
    soon("a hello", tcp.read_exact(&mut head)).await.unwrap();
    let mut hello = vec![0; usize::from(u16::from_be_bytes([head[3], head[4]]))];
    tcp.read_exact(&mut hello).await.unwrap();
    drop(tcp);
    assert_eq!(asking.await.unwrap(), 502);
    let extensions = extensions_of(&hello);
    let has = |kind: u16| extensions.iter().any(|(found, _)| *found == kind);
    assert!(has(43) && has(51) && has(16), "it is a hello of TLS 1.3: {extensions:?}");
    let versions = extensions.iter().find(|(kind, _)| *kind == 43).unwrap();
    assert_eq!(versions.1, [2, 3, 4], "82 TLS 1.3 alone");
    for (item, kind) in [
        ("85 tickets of TLS 1.2", 35),
        ("85 a session to resume", 41),
        ("86 early data", 42),
        ("88 a server name", 0),
        ("97 compressed certificates", 27),
        ("84 renegotiation", 0xff01),
    ] {
        assert!(!has(kind), "{item}: {extensions:?}");
    }
}

/// The extensions of a ClientHello.
fn extensions_of(message: &[u8]) -> Vec<(u16, Vec<u8>)> {
    let number = |at: usize| usize::from(u16::from_be_bytes([message[at], message[at + 1]]));
    // Type and length, version, random, session, suites, compression.
    let mut at = 4 + 2 + 32;
    at += 1 + usize::from(message[at]);
    at += 2 + number(at);
    at += 1 + usize::from(message[at]);
    let end = at + 2 + number(at);
    at += 2;
    let mut found = Vec::new();
    while at < end {
        let length = number(at + 2);
        let kind = u16::from_be_bytes([message[at], message[at + 1]]);
        found.push((kind, message[at + 4..at + 4 + length].to_vec()));
        at += 4 + length;
    }
    found
}

#[tokio::test]
async fn item_97_a_compressed_certificate_is_none() {
    let guarded = Guarded::new();
    // What says that it could compress gets the same answer; what it may not do is send one before it was asked.
    let hello = Hello { more: vec![(27, vec![2, 0, 1])], ..Hello::new() };
    let address = guarded.sidecar.address("inbound");
    assert_eq!(say(address, &[hello.record()]).await, Said::ServerHello, "97");
    let bomb = record(22, &[&[25][..], &vector(3, &[0, 1, 0xff, 0xff, 0xff, 0, 0, 1, 0])].concat());
    let said = say(address, &[bomb]).await;
    assert!(matches!(said, Said::Alert(_) | Said::Closed), "97 {said:?}");
    assert_eq!(guarded.app.requests(), 0);
}

#[tokio::test]
async fn item_98_ten_thousand_names_are_refused_by_their_size() {
    let guarded = Guarded::new();
    let before = processor_time(&guarded.sidecar);
    let crowd = guarded.forge("/crowd", |leaf| {
        for n in 0..10_000 {
            let name = format!("n{n}.test").try_into().unwrap();
            leaf.subject_alt_names.push(SanType::DnsName(name));
        }
    });
    let refused = guarded.refuses(crowd).await;
    let reason = refused.record["reason"].as_str().unwrap();
    let by_size = ["certificate_too_large", "tls_protocol", "not_tls", "closed_in_handshake"];
    assert!(by_size.contains(&reason), "98 {reason}, {}", refused.seen);
    let used = processor_time(&guarded.sidecar).saturating_sub(before);
    assert!(used < Duration::from_secs(2), "98 {used:?} of processor time");
}

#[tokio::test]
async fn item_96_many_refusals_at_once_leave_the_door_open_for_others() {
    let guarded = Guarded::new();
    let address = guarded.sidecar.address("inbound");
    let refused = (0..100).map(|_| async move {
        let hello = Hello { versions: vec![0x0303], ..Hello::new() };
        say(address, &[hello.record()]).await
    });
    for said in futures_util::future::join_all(refused).await {
        assert_eq!(said, Said::Alert(PROTOCOL_VERSION), "82, 96");
    }
    assert_eq!(guarded.app.requests(), 0);
    assert_eq!(guarded.world.peer("/friend").get(&guarded.sidecar, "/").await.status, 200);
}
