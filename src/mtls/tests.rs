//! Handshakes over real sockets.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use rcgen::{CertificateParams, ExtendedKeyUsagePurpose};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::verify_tls13_signature;
use rustls::sign::SingleCertAndKey;
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme, SupportedProtocolVersion};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;

use super::provider::{certified_svid, provider};
use super::{
    Acceptor, Agreed, Alpn, Connector, Error, ExpectedPeers, PublicCertificate,
    public_client_config, public_server_config, refusal,
};
use crate::identity::forge::{Forge, leaf, uri};
use crate::identity::{Identity, Peer, Svid};
use crate::rt::{Live, Publisher, Tasks};

const WEB: &str = "spiffe://a.test/web";
const DB: &str = "spiffe://a.test/db";

async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    (client, listener.accept().await.unwrap().0)
}

fn expect(pattern: &str) -> Arc<ExpectedPeers> {
    Arc::new(ExpectedPeers::new([pattern.parse().unwrap()]).unwrap())
}

/// What each side gets from one handshake.
async fn shake(
    client: &Connector,
    server: &Acceptor,
    expected: &Arc<ExpectedPeers>,
    alpn: Alpn,
) -> (Result<Arc<Peer>, Error>, Result<Arc<Peer>, Error>) {
    let (near, far) = pair().await;
    let (client, server) = tokio::join!(client.connect(near, expected, alpn), server.accept(far));
    (client.map(|(_, peer)| peer), server.map(|(_, peer)| peer))
}

/// A client that is bound by none of our rules.
async fn hostile(
    svid: Option<Svid>,
    versions: &[&'static SupportedProtocolVersion],
    alpn: &[&str],
) -> TlsConnector {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(versions)
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody));
    let mut config = match svid {
        Some(svid) => {
            let own = SingleCertAndKey::from(certified_svid(&svid).unwrap());
            builder.with_client_cert_resolver(Arc::new(own))
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    TlsConnector::from(Arc::new(config))
}

#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(
            message,
            leaf,
            signature,
            &provider().signature_verification_algorithms,
        )
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

/// How `acceptor` ends a handshake with that client, and what the client reads afterwards.
async fn attacked(acceptor: &Acceptor, client: TlsConnector) -> (Error, io::Result<()>) {
    let (near, far) = pair().await;
    let name = ServerName::try_from("anything.test").unwrap();
    let attack = async {
        let mut stream = client.connect(name, near).await?;
        stream.write_all(b"x").await?;
        stream.read_u8().await.map(drop)
    };
    let (seen, outcome) = tokio::join!(attack, acceptor.accept(far));
    (outcome.map(|(_, peer)| peer).unwrap_err(), seen)
}

fn fixed(identity: Identity) -> Live<Identity> {
    Live::fixed(identity)
}

#[tokio::test]
async fn both_sides_learn_who_the_other_is_and_agree_on_the_protocol() {
    let a = Forge::new("a.test");
    let server = Acceptor::new(fixed(a.identity("/db", &[])));
    let client = Connector::new(fixed(a.identity("/web", &[])));
    let expected = expect(DB);
    for (alpn, agreed) in
        [(Alpn::Http1, Agreed::Http1), (Alpn::Http2, Agreed::Http2), (Alpn::None, Agreed::Nothing)]
    {
        let (near, far) = pair().await;
        let (near, far) = tokio::join!(client.connect(near, &expected, alpn), server.accept(far));
        let ((mut near, db), (mut far, web)) = (near.unwrap(), far.unwrap());
        assert_eq!((db.id.as_str(), web.id.as_str()), (DB, WEB));
        let best = provider().kx_groups[0].name();
        for settled in [near.settled(), far.settled()] {
            assert_eq!(settled.alpn, agreed);
            assert_eq!(settled.suite, Some("TLS13_AES_128_GCM_SHA256"));
            assert_eq!(settled.group, best.as_str());
        }
        near.write_all(b"hello").await.unwrap();
        let mut heard = [0; 5];
        far.read_exact(&mut heard).await.unwrap();
        assert_eq!(&heard, b"hello");
    }
}

#[tokio::test]
async fn two_trust_domains_that_hold_each_others_bundle_can_talk() {
    let (a, b) = (Forge::new("a.test"), Forge::new("b.test"));
    let server = Acceptor::new(fixed(a.identity("/db", &[&b])));
    let client = Connector::new(fixed(b.identity("/web", &[&a])));
    let (near, far) = shake(&client, &server, &expect(DB), Alpn::Http2).await;
    assert_eq!(near.unwrap().id.as_str(), DB);
    assert_eq!(far.unwrap().id.as_str(), "spiffe://b.test/web");

    let stranger = Connector::new(fixed(Forge::new("c.test").identity("/web", &[&a])));
    let (_, far) = shake(&stranger, &server, &expect(DB), Alpn::Http2).await;
    let error = far.unwrap_err();
    assert_eq!(error.code(), "unknown_trust_domain");
    let presented = error.presented().unwrap();
    assert_eq!(presented.id.as_deref(), Some("spiffe://c.test/web"));
    assert!(presented.serial.is_some());
}

#[tokio::test]
async fn a_server_that_is_not_expected_is_refused_before_a_byte_is_sent() {
    let a = Forge::new("a.test");
    let server = Acceptor::new(fixed(a.identity("/db", &[])));
    let client = Connector::new(fixed(a.identity("/web", &[])));
    for pattern in ["spiffe://a.test/other", "spiffe://a.test/db/*", "spiffe://b.test/db"] {
        let (near, far) = shake(&client, &server, &expect(pattern), Alpn::Http1).await;
        let error = near.unwrap_err();
        assert_eq!(error.code(), "unexpected_peer", "{pattern}");
        assert_eq!(error.presented().unwrap().id.as_deref(), Some(DB));
        assert_eq!(far.unwrap_err().code(), "refused_by_peer");
    }
    let (near, _) = shake(&client, &server, &expect("spiffe://a.test/*"), Alpn::Http1).await;
    assert_eq!(near.unwrap().id.as_str(), DB);
    assert!(matches!(ExpectedPeers::new([]), Err(Error::NobodyExpected)));
}

#[tokio::test]
async fn clients_that_break_a_rule_are_refused_with_its_name() {
    let (a, b) = (Forge::new("a.test"), Forge::new("b.test"));
    let acceptor = Acceptor::new(fixed(a.identity("/db", &[&b])));
    let forged = |forge: &Forge, id: &str, change: fn(&mut CertificateParams)| {
        let mut params = leaf(id);
        change(&mut params);
        Some(forge.sign(&params).unchecked())
    };
    let h2: &[&str] = &["h2"];
    for (what, svid, versions, alpn, code) in [
        ("no certificate", None, vec![&TLS13], h2, "no_certificate"),
        ("TLS 1.2", forged(&a, WEB, |_| {}), vec![&TLS12], h2, "tls_version"),
        (
            "other protocols only",
            forged(&a, WEB, |_| {}),
            vec![&TLS13],
            &["foo"],
            "no_common_protocol",
        ),
        (
            "two URI names",
            forged(&a, WEB, |p| p.subject_alt_names.push(uri("spiffe://a.test/admin"))),
            vec![&TLS13],
            h2,
            "several_uri_names",
        ),
        ("a's ID signed by b", forged(&b, WEB, |_| {}), vec![&TLS13], h2, "unknown_authority"),
        (
            "expired",
            forged(&a, WEB, |p| p.not_after = p.not_before + time::Duration::seconds(1)),
            vec![&TLS13],
            h2,
            "expired",
        ),
        (
            "for servers only",
            forged(&a, WEB, |p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]),
            vec![&TLS13],
            h2,
            "wrong_extended_key_usage",
        ),
    ] {
        let (error, seen) = attacked(&acceptor, hostile(svid, &versions, alpn).await).await;
        assert_eq!(error.code(), code, "{what}");
        assert!(seen.is_err(), "{what}: the client got an answer");
    }
}

#[tokio::test]
async fn a_certificate_without_its_key_proves_nothing() {
    let a = Forge::new("a.test");
    let acceptor = Acceptor::new(fixed(a.identity("/db", &[])));
    let mut stolen = a.sign(&leaf(WEB));
    stolen.key = rcgen::KeyPair::generate().unwrap();
    let thief = hostile(Some(stolen.unchecked()), &[&TLS13], &["h2"]).await;
    let (error, _) = attacked(&acceptor, thief).await;
    assert_eq!(error.code(), "no_proof_of_key");
}

#[tokio::test]
async fn what_is_not_tls_is_named_so() {
    let a = Forge::new("a.test");
    let acceptor = Acceptor::new(fixed(a.identity("/db", &[])));
    let (mut near, far) = pair().await;
    near.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    assert_eq!(acceptor.accept(far).await.unwrap_err().code(), "not_tls");
    let (near, far) = pair().await;
    drop(near);
    assert_eq!(acceptor.accept(far).await.unwrap_err().code(), "closed_in_handshake");
}

#[tokio::test]
async fn a_refused_client_reads_the_reason_from_its_first_error() {
    let a = Forge::new("a.test");
    let server = Acceptor::new(fixed(a.identity("/db", &[])));
    let b = Forge::new("b.test");
    let client = Connector::new(fixed(b.identity("/web", &[&a])));
    let (near, far) = pair().await;
    let expected = expect(DB);
    let (near, far) =
        tokio::join!(client.connect(near, &expected, Alpn::Http1), server.accept(far));
    assert_eq!(far.unwrap_err().code(), "unknown_trust_domain");
    let error = near.unwrap().0.read_u8().await.unwrap_err();
    assert_eq!(refusal(&error).unwrap().code(), "refused_by_peer");
}

#[tokio::test]
async fn nothing_is_resumed_and_no_ticket_is_given() {
    let a = Forge::new("a.test");
    let acceptor = Acceptor::new(fixed(a.identity("/db", &[])));
    // This client would resume if it could: its session store is rustls's default.
    let client = hostile(Some(a.svid("/web")), &[&TLS13], &["h2"]).await;
    for _ in 0..3 {
        let (near, far) = pair().await;
        let name = ServerName::try_from("db.test").unwrap();
        let (near, far) = tokio::join!(client.connect(name, near), acceptor.accept(far));
        let (mut near, (mut far, _)) = (near.unwrap(), far.unwrap());
        far.write_all(b"!").await.unwrap();
        near.read_u8().await.unwrap();
        assert_eq!(near.get_ref().1.tls13_tickets_received(), 0);
        assert_eq!(near.get_ref().1.handshake_kind(), Some(rustls::HandshakeKind::Full));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_handshake_fails_while_identities_rotate() {
    let a = Forge::new("a.test");
    let (server_identity, live) = Publisher::new(a.identity("/db", &[]));
    let server = Acceptor::new(live);
    let (client_identity, live) = Publisher::new(a.identity("/web", &[]));
    let client = Connector::new(live);
    let rotations: Vec<_> =
        (0..60).map(|_| (a.identity("/db", &[]), a.identity("/web", &[]))).collect();
    let mut rotating = Tasks::new();
    rotating.add(async move {
        for (db, web) in rotations {
            server_identity.set(db);
            client_identity.set(web);
            tokio::task::yield_now().await;
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    });
    let mut serials = std::collections::HashSet::new();
    let expected = expect(DB);
    for _ in 0..100 {
        let (near, far) = shake(&client, &server, &expected, Alpn::Http2).await;
        serials.insert(near.unwrap().serial.clone());
        assert_eq!(far.unwrap().id.as_str(), WEB);
    }
    assert!(serials.len() > 1, "nothing rotated");
}

#[tokio::test]
async fn an_identity_whose_bundle_is_gone_trusts_nobody() {
    let a = Forge::new("a.test");
    let (publisher, live) = Publisher::new(a.identity("/db", &[]));
    let server = Acceptor::new(live);
    let client = Connector::new(fixed(a.identity("/web", &[])));
    let expected = expect(DB);
    let (_, far) = shake(&client, &server, &expected, Alpn::Http2).await;
    far.unwrap();
    let withdrawn = publisher.live().load().withdrawn();
    publisher.set(withdrawn);
    let (_, far) = shake(&client, &server, &expected, Alpn::Http2).await;
    assert_eq!(far.unwrap_err().code(), "unknown_trust_domain", "74 at once");
}

fn public(names: &[&str]) -> (String, String) {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let made = rcgen::generate_simple_self_signed(names).unwrap();
    (made.cert.pem(), made.signing_key.serialize_pem())
}

#[test]
fn public_certificates_that_cannot_be_served_say_for_which_name_and_why() {
    let (chain, key) = public(&["a.test"]);
    let (_, other_key) = public(&["a.test"]);
    let refused = |names: &[&str], chain: &str, key: &str| {
        PublicCertificate::from_pem(names, chain.as_bytes(), key.as_bytes())
            .unwrap_err()
            .to_string()
    };
    assert!(refused(&["a.test"], &chain, &other_key).contains("a.test"));
    assert!(refused(&["a.test"], "", &key).contains("no certificate"));
    assert!(refused(&["a.test"], &chain, "").contains("no private key"));
    assert!(refused(&[], &chain, &key).contains("no server name"));
    for bad in ["a.*.test", "*a.test", "a..test", "", "a b"] {
        assert!(refused(&[bad], &chain, &key).contains("is no server name"), "{bad}");
    }
}

#[tokio::test]
async fn a_certificate_of_its_own_serves_whoever_comes_and_is_verified_unless_told_not_to() {
    let (chain, key) = public(&["x.test"]);
    let certificate = PublicCertificate::from_pem(["*"], chain.as_bytes(), key.as_bytes()).unwrap();
    let server = public_server_config(certificate).unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(server);
    let trusting = TlsConnector::from(public_client_config(false, Alpn::Http2).unwrap());
    let (near, far) = pair().await;
    let name = ServerName::try_from("shop.test").unwrap();
    let (near, far) = tokio::join!(trusting.connect(name, near), acceptor.accept(far));
    assert!(far.is_ok());
    assert_eq!(near.unwrap().get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    // A system without root certificates says so; with them, a self-signed server is refused.
    let verifying = match public_client_config(true, Alpn::Http1) {
        Ok(config) => TlsConnector::from(config),
        Err(error) => return assert!(matches!(error, Error::NoPublicRoots)),
    };
    let (near, far) = pair().await;
    let name = ServerName::try_from("shop.test").unwrap();
    let (near, _) = tokio::join!(verifying.connect(name, near), acceptor.accept(far));
    assert!(near.is_err());
}
