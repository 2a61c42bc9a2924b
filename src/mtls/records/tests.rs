//! Our records against rustls' own streams, and against peers that break the rules.

use std::sync::Arc;

use rustls::client::Resumption;
use rustls::version::TLS13;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::{PrivateKeyDer, ServerName};
use tokio::io::{
    AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream, duplex,
};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::keys::Sealer;
use super::{Agreed, MeshStream, accept, connect};
use crate::rt::crypto::tls_provider;

/// The two configurations; the suite is the `suite`th of the provider.
fn configs(suite: usize) -> (Arc<ServerConfig>, Arc<ClientConfig>) {
    let made = rcgen::generate_simple_self_signed(vec!["db.test".to_owned()]).unwrap();
    let chain = vec![made.cert.der().clone()];
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(chain[0].clone()).unwrap();
    let mut provider = (*tls_provider()).clone();
    provider.cipher_suites = vec![provider.cipher_suites[suite]];
    let provider = Arc::new(provider);
    let mut server = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    let mut client = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    server.alpn_protocols = vec![b"h2".to_vec()];
    client.alpn_protocols = vec![b"h2".to_vec()];
    client.resumption = Resumption::disabled();
    server.send_tls13_tickets = 0;
    (server.enable_secret_extraction, client.enable_secret_extraction) = (true, true);
    (Arc::new(server), Arc::new(client))
}

fn name() -> ServerName<'static> {
    ServerName::try_from("db.test").unwrap()
}

/// Bytes that tell where they stand.
fn bytes(length: usize, from: usize) -> Vec<u8> {
    (from..from + length).map(|at| u8::try_from(at * 31 % 251).unwrap()).collect()
}

/// Sends messages of every size both ways at once, in writes and reads of many sizes, and ends well.
async fn converse<A, B>(near: A, far: B)
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    async fn speak<W: AsyncWrite + Unpin>(mut writer: W) -> (W, usize) {
        let mut sent = 0;
        for round in 0..120_usize {
            let length = [1, 1000, 16_384, 3, 40_000, 16_385, 200_000][round % 7];
            let part = bytes(length, sent);
            let mut rest = &part[..];
            while !rest.is_empty() {
                let written = writer.write(rest).await.unwrap();
                rest = &rest[written..];
            }
            sent += length;
            if round % 3 == 0 {
                writer.flush().await.unwrap();
            }
        }
        writer.shutdown().await.unwrap();
        (writer, sent)
    }
    async fn hear<R: AsyncRead + Unpin>(mut reader: R) -> usize {
        let (mut heard, mut round) = (0, 0_usize);
        loop {
            let mut space = vec![0; [1, 100, 2048, 17_408, 139_264, 16_384][round % 6]];
            let count = reader.read(&mut space).await.unwrap();
            if count == 0 {
                return heard;
            }
            assert_eq!(space[..count], bytes(count, heard), "at {heard}");
            (heard, round) = (heard + count, round + 1);
        }
    }
    let (near_in, near_out) = tokio::io::split(near);
    let (far_in, far_out) = tokio::io::split(far);
    let ((_, said), heard, (_, answered), read) =
        tokio::join!(speak(near_out), hear(far_in), speak(far_out), hear(near_in));
    assert_eq!((heard, read), (said, answered));
}

async fn ours(suite: usize, room: usize) -> (MeshStream<DuplexStream>, MeshStream<DuplexStream>) {
    let (server, client) = configs(suite);
    let (near, far) = duplex(room);
    let (near, far) = tokio::join!(connect(client, name(), near), accept(server, far));
    (near.unwrap(), far.unwrap())
}

#[tokio::test]
async fn every_suite_carries_everything_between_two_of_ours_over_changes_of_keys() {
    for (suite, called) in
        ["TLS13_AES_128_GCM_SHA256", "TLS13_AES_256_GCM_SHA384", "TLS13_CHACHA20_POLY1305_SHA256"]
            .into_iter()
            .enumerate()
            .take(
                tls_provider().cipher_suites.iter().filter(|suite| suite.tls13().is_some()).count(),
            )
    {
        // Rooms that cut records anywhere.
        for room in [700, 20_000, 1 << 20] {
            let (near, far) = ours(suite, room).await;
            assert_eq!((near.settled().suite, far.settled().suite), (Some(called), Some(called)));
            assert_eq!(near.settled().alpn, Agreed::Http2);
            converse(near, far).await;
        }
    }
}

#[tokio::test]
async fn rustls_own_streams_understand_ours_and_the_other_way_round() {
    for room in [997, 1 << 20] {
        let (server, client) = configs(0);
        let (near, far) = duplex(room);
        let theirs = TlsConnector::from(client.clone());
        let (near, far) = tokio::join!(theirs.connect(name(), near), accept(server.clone(), far));
        converse(near.unwrap(), far.unwrap()).await;
        // This server gives tickets, which nobody here wants.
        let mut server = (*server).clone();
        server.send_tls13_tickets = 4;
        let server = Arc::new(server);
        let (near, far) = duplex(room);
        let theirs = TlsAcceptor::from(server);
        let (near, far) = tokio::join!(connect(client, name(), near), theirs.accept(far));
        converse(near.unwrap(), far.unwrap()).await;
    }
}

#[tokio::test]
async fn a_peer_that_asks_for_new_keys_gets_them() {
    let (server, client) = configs(0);
    let (near, far) = duplex(1 << 16);
    let theirs = TlsConnector::from(client);
    let (near, far) = tokio::join!(theirs.connect(name(), near), accept(server, far));
    let (mut near, mut far) = (near.unwrap(), far.unwrap());
    for round in 0..40_u8 {
        near.get_mut().1.refresh_traffic_keys().unwrap();
        near.write_all(&[round; 100]).await.unwrap();
        near.flush().await.unwrap();
        let mut heard = [0; 100];
        far.read_exact(&mut heard).await.unwrap();
        assert_eq!(heard, [round; 100]);
        far.write_all(&heard).await.unwrap();
        near.read_exact(&mut heard).await.unwrap();
        assert_eq!(heard, [round; 100]);
    }
}

#[tokio::test]
async fn the_end_is_told_from_a_connection_that_was_cut() {
    let (mut near, mut far) = ours(0, 1 << 16).await;
    near.write_all(b"all").await.unwrap();
    near.shutdown().await.unwrap();
    let mut heard = Vec::new();
    far.read_to_end(&mut heard).await.unwrap();
    assert_eq!(heard, b"all");
    assert!(near.write_all(b"more").await.is_err(), "after the end nothing is said");

    let (mut near, mut far) = ours(0, 1 << 16).await;
    near.write_all(b"part").await.unwrap();
    drop(near);
    let mut heard = Vec::new();
    let error = far.read_to_end(&mut heard).await.unwrap_err();
    assert_eq!((heard.as_slice(), error.kind()), (&b"part"[..], std::io::ErrorKind::UnexpectedEof));
}

#[tokio::test]
async fn an_end_that_came_with_the_last_data_is_known_before_the_next_read() {
    let (mut near, mut far) = ours(0, 1 << 16).await;
    near.write_all(b"all").await.unwrap();
    assert!(!far.holds_received());
    near.shutdown().await.unwrap();
    let mut heard = [0; 4096];
    assert_eq!(far.read(&mut heard).await.unwrap(), 3);
    assert!(far.holds_received(), "a pool must not hand it out again");
}

#[tokio::test]
async fn data_that_comes_with_the_last_message_of_a_handshake_is_read() {
    let (server, client) = configs(0);
    let (near, far) = duplex(1 << 16);
    // The client says all it has to say before the server has looked.
    let client = async {
        let mut near = connect(client, name(), near).await.unwrap();
        for piece in 0..10 {
            near.write_all(&bytes(5000, piece * 5000)).await.unwrap();
        }
        near.shutdown().await.unwrap();
        near
    };
    let (mut near_side, far_side) = duplex(1);
    let relay = async {
        // All that the client said arrives in one piece.
        let (mut far_read, mut far_write) = tokio::io::split(far);
        let (mut side_read, mut side_write) = tokio::io::split(&mut near_side);
        let there = async {
            let mut first = [0; 4096];
            let count = far_read.read(&mut first).await.unwrap();
            side_write.write_all(&first[..count]).await.unwrap();
            let mut rest = Vec::new();
            while rest.len() < 50_000 {
                far_read.read_buf(&mut rest).await.unwrap();
            }
            // The server leaves as soon as it has heard enough.
            let _ = side_write.write_all(&rest).await;
            let _ = tokio::io::copy(&mut far_read, &mut side_write).await;
        };
        let back = tokio::io::copy(&mut side_read, &mut far_write);
        tokio::select! { () = there => {}, _ = back => {} }
    };
    let server = async {
        let mut far = accept(server, far_side).await.unwrap();
        let mut heard = vec![0; 50_000];
        far.read_exact(&mut heard).await.unwrap();
        heard
    };
    let (_near, (), heard) = tokio::join!(client, relay, server);
    assert_eq!(heard, bytes(50_000, 0));
}

#[tokio::test]
async fn a_peer_that_ends_with_its_last_message_has_shaken_hands_all_the_same() {
    for said in [&b""[..], b"all"] {
        let (server, client) = configs(0);
        let (near, far) = duplex(1 << 16);
        let (mut near_side, far_side) = duplex(1 << 16);
        let client = async {
            let mut near = connect(client, name(), near).await.unwrap();
            near.write_all(said).await.unwrap();
            near.shutdown().await.unwrap();
            near
        };
        let relay = async {
            let (mut far_read, mut far_write) = tokio::io::split(far);
            let (mut side_read, mut side_write) = tokio::io::split(&mut near_side);
            let there = async {
                let mut first = [0; 4096];
                let count = far_read.read(&mut first).await.unwrap();
                side_write.write_all(&first[..count]).await.unwrap();
                // Everything else at once.
                let mut rest = Vec::new();
                far_read.read_to_end(&mut rest).await.unwrap();
                side_write.write_all(&rest).await.unwrap();
                std::future::pending::<()>().await;
            };
            tokio::join!(there, tokio::io::copy(&mut side_read, &mut far_write)).1.unwrap();
        };
        let server = async {
            let mut far = accept(server, far_side).await.unwrap();
            let mut heard = Vec::new();
            far.read_to_end(&mut heard).await.unwrap();
            far.write_all(b"an answer").await.unwrap();
            heard
        };
        let both = async { tokio::join!(client, server) };
        tokio::select! {
            (_, heard) = both => assert_eq!(heard, said),
            () = relay => unreachable!(),
        }
    }
}

/// A connection whose one end can send any record.
async fn forger() -> (DuplexStream, Sealer, MeshStream<DuplexStream>) {
    let (server, client) = configs(0);
    let (near, far) = duplex(1 << 20);
    let (near, far) = tokio::join!(connect(client, name(), near), accept(server, far));
    let (stream, sealer) = near.unwrap().into_forger();
    (stream, sealer, far.unwrap())
}

async fn told(records: impl FnOnce(&mut Sealer, &mut Vec<u8>)) -> (Vec<u8>, String) {
    let (mut raw, mut sealer, mut far) = forger().await;
    let mut out = Vec::new();
    records(&mut sealer, &mut out);
    raw.write_all(&out).await.unwrap();
    raw.shutdown().await.unwrap();
    let mut heard = Vec::new();
    let why = match far.read_to_end(&mut heard).await {
        Ok(_) => "the end".to_owned(),
        Err(error) => error.to_string(),
    };
    (heard, why)
}

#[tokio::test]
async fn records_that_break_a_rule_end_the_connection() {
    let end = |sealer: &mut Sealer, out: &mut Vec<u8>| sealer.seal(21, &[1, 0], out).unwrap();
    // As it should be, with padding, an empty record, a warning, and what stands behind the end.
    let (heard, why) = told(|sealer, out| {
        sealer.seal(23, b"one", out).unwrap();
        sealer.seal(23, b"", out).unwrap();
        sealer.seal(0, b"two\x17\0\0\0", out).unwrap();
        sealer.seal(21, &[1, 90], out).unwrap();
        end(sealer, out);
        out.extend_from_slice(b"anything");
    })
    .await;
    assert_eq!((heard.as_slice(), &*why), (&b"onetwo"[..], "the end"));

    type Records = fn(&mut Sealer, &mut Vec<u8>);
    let cases: &[(&str, Records, &str)] = &[
        (
            "a changed byte",
            |s, out| {
                s.seal(23, b"one", out).unwrap();
                *out.last_mut().unwrap() ^= 1;
            },
            "cannot decrypt",
        ),
        (
            "a changed header",
            |s, out| {
                s.seal(23, b"one", out).unwrap();
                out[2] = 4;
            },
            "cannot decrypt",
        ),
        (
            "a record twice",
            |s, out| {
                s.seal(23, b"one", out).unwrap();
                let again = out.clone();
                out.extend_from_slice(&again);
            },
            "cannot decrypt",
        ),
        (
            "a record left out",
            |s, out| {
                s.seal(23, b"one", &mut Vec::new()).unwrap();
                s.seal(23, b"two", out).unwrap();
            },
            "cannot decrypt",
        ),
        (
            "plain data",
            |_, out| out.extend_from_slice(b"\x17\x03\x03\x00\x20aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"),
            "cannot decrypt",
        ),
        (
            "too short for a tag",
            |_, out| out.extend_from_slice(b"\x17\x03\x03\x00\x03abc"),
            "cannot decrypt",
        ),
        (
            "nothing in it",
            |_, out| out.extend_from_slice(b"\x17\x03\x03\x00\x00"),
            "cannot decrypt",
        ),
        (
            "a plain alert",
            |_, out| out.extend_from_slice(b"\x15\x03\x03\x00\x02\x01\x00"),
            "not sealed",
        ),
        (
            "a change of cipher spec",
            |_, out| out.extend_from_slice(b"\x14\x03\x03\x00\x01\x01"),
            "not sealed",
        ),
        ("words of HTTP", |_, out| out.extend_from_slice(b"GET / HTTP/1.1\r\n\r\n"), "not sealed"),
        (
            "too long by its header",
            |_, out| out.extend_from_slice(b"\x17\x03\x03\x41\x01"),
            "excess record size",
        ),
        (
            "too much in it",
            |s, out| s.seal(23, &[1; (1 << 14) + 1], out).unwrap(),
            "excess record size",
        ),
        ("only padding", |s, out| s.seal(0, &[0; 40], out).unwrap(), "without a type"),
        ("an unknown type", |s, out| s.seal(99, b"one", out).unwrap(), "unknown type"),
        (
            "an alert of three bytes",
            |s, out| s.seal(21, &[1, 0, 0], out).unwrap(),
            "another length",
        ),
        ("a fatal alert", |s, out| s.seal(21, &[2, 80], out).unwrap(), "InternalError"),
        ("an empty handshake message", |s, out| s.seal(22, b"", out).unwrap(), "empty handshake"),
        ("a hello", |s, out| s.seal(22, &[1, 0, 0, 0], out).unwrap(), "no place here"),
        (
            "a ticket from a client",
            |s, out| s.seal(22, &[4, 0, 0, 0], out).unwrap(),
            "no place here",
        ),
        (
            "a key update of two",
            |s, out| s.seal(22, &[24, 0, 0, 1, 2], out).unwrap(),
            "wrong key update",
        ),
        (
            "a key update with more behind it",
            |s, out| {
                s.seal(22, &[24, 0, 0, 1, 0, 24, 0, 0, 1, 0], out).unwrap();
            },
            "KeyEpochWithPendingFragment",
        ),
        (
            "a message that is too long",
            |s, out| s.seal(22, &[24, 1, 0, 1], out).unwrap(),
            "too long",
        ),
        (
            "data within a message",
            |s, out| {
                s.seal(22, &[24, 0, 0], out).unwrap();
                s.seal(23, b"one", out).unwrap();
            },
            "within a handshake message",
        ),
        (
            "records without end that say nothing",
            |s, out| {
                for _ in 0..40 {
                    s.seal(23, b"", out).unwrap();
                }
            },
            "too many records",
        ),
        (
            "half a record",
            |s, out| {
                s.seal(23, b"one", out).unwrap();
                out.truncate(10);
            },
            "close_notify",
        ),
        ("no end", |s, out| s.seal(23, b"", out).unwrap(), "close_notify"),
    ];
    for (what, records, reason) in cases {
        let (heard, why) = told(records).await;
        assert!(why.contains(reason), "{what}: {why}");
        assert!(heard.is_empty() || *what == "a record twice", "{what}: {heard:?}");
    }
}

#[tokio::test]
async fn a_message_after_the_handshake_may_come_in_pieces() {
    let (mut raw, mut sealer, mut far) = forger().await;
    let mut out = Vec::new();
    sealer.seal(22, &[24, 0], &mut out).unwrap();
    sealer.seal(22, &[0, 1], &mut out).unwrap();
    sealer.seal(22, &[1], &mut out).unwrap();
    raw.write_all(&out).await.unwrap();
    // The key has changed: what is sealed with the old one is refused, and ours has changed too.
    let mut old = Vec::new();
    sealer.seal(23, b"old", &mut old).unwrap();
    raw.write_all(&old).await.unwrap();
    let error = far.read_u8().await.unwrap_err();
    assert!(error.to_string().contains("cannot decrypt"), "{error}");
}
