//! Client certificates at the public edge (`client` of an `ssl` resource), and hosts that are not the server name. The clients
//! are OpenSSL and curl.

use std::path::{Path, PathBuf};
use std::process::Command;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use serde_json::{Value, json};

use crate::tls_edge::{Certificate, Edge};
use crate::world::{World, eventually_async, get};

/// An authority for clients.
struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
    /// What stands above it, up to the root and without it.
    above: String,
}

impl Authority {
    fn params(name: &str) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.distinguished_name.push(DnType::CommonName, name);
        params
    }

    fn root(name: &str) -> Self {
        let (params, key) = (Self::params(name), KeyPair::generate().unwrap());
        let pem = params.self_signed(&key).unwrap().pem();
        Self { pem, issuer: Issuer::new(params, key), above: String::new() }
    }

    fn below(&self, name: &str) -> Self {
        let (params, key) = (Self::params(name), KeyPair::generate().unwrap());
        let pem = params.signed_by(&key, &self.issuer).unwrap().pem();
        let above = format!("{pem}{}", self.above);
        Self { pem, issuer: Issuer::new(params, key), above }
    }

    /// A client's certificate with its chain, and the key, in files.
    fn client(&self, world: &World, name: &str, days: i64) -> Client {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.not_before = time::OffsetDateTime::now_utc() - time::Duration::days(30);
        params.not_after = time::OffsetDateTime::now_utc() + time::Duration::days(days);
        let key = KeyPair::generate().unwrap();
        let pem = params.signed_by(&key, &self.issuer).unwrap().pem();
        let file = |what: &str, text: &str| {
            let path = world.folder.join(format!("{name}-{what}.pem"));
            std::fs::write(&path, text).unwrap();
            path
        };
        Client {
            chain: file("chain", &format!("{pem}{}", self.above)),
            key: file("key", &key.serialize_pem()),
        }
    }
}

struct Client {
    chain: PathBuf,
    key: PathBuf,
}

/// What curl got: the HTTP status and the body, or the exit code of a connection that failed.
#[derive(Debug, PartialEq)]
enum Got {
    Answer(u16, String),
    NoConnection,
}

impl Got {
    fn status(&self) -> Option<u16> {
        match self {
            Self::Answer(status, _) => Some(*status),
            Self::NoConnection => None,
        }
    }
}

/// A request by curl for `path` under the server name `name`.
fn curl(edge: &Edge, name: &str, path: &str, client: Option<&Client>, options: &[&str]) -> Got {
    let port = edge.address().port();
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--show-error", "--max-time", "20", "--noproxy", "*", "--insecure"])
        .args(["--path-as-is", "--write-out", "\n%{http_code}"])
        .args(["--resolve", &format!("{name}:{port}:127.0.0.1")])
        .args(options);
    if let Some(client) = client {
        curl.arg("--cert").arg(&client.chain).arg("--key").arg(&client.key);
    }
    let url = format!("https://{name}:{port}{path}");
    let output = curl.arg(url).output().expect("curl is needed by this test");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        return Got::NoConnection;
    }
    let (body, status) = text.rsplit_once('\n').unwrap();
    Got::Answer(status.parse().unwrap(), body.to_owned())
}

fn demanding(certificate: &Certificate, names: &[&str], client: Value) -> Value {
    let mut ssl = certificate.resource(names);
    ssl["client"] = client;
    ssl
}

#[tokio::test]
async fn without_a_certificate_that_is_trusted_and_near_enough_there_is_no_handshake() {
    let edge = Edge::with(&[("status", json!("127.0.0.1:0"))]).await;
    let root = Authority::root("root");
    let one = root.below("one");
    let (near, far) =
        (one.client(&edge.world, "near", 9), one.below("two").client(&edge.world, "far", 9));
    let direct = root.client(&edge.world, "direct", 9);
    let (over, stranger) = (
        root.client(&edge.world, "over", -1),
        Authority::root("root").client(&edge.world, "stranger", 9),
    );
    let certificate = Certificate::of(&["shop.example", "open.example"]);
    let ssl = demanding(&certificate, &["shop.example"], json!({ "ca": root.pem }));
    edge.put("/ssls/1", &ssl).await;
    edge.put("/ssls/2", &certificate.resource(&["open.example"])).await;

    for version in ["--http1.1", "--http2"] {
        for tls in [&["--tls-max", "1.2"][..], &["--tlsv1.3"]] {
            let options = [&[version], tls].concat();
            let ask = |client: Option<&Client>| curl(&edge, "shop.example", "/x", client, &options);
            assert_eq!(ask(Some(&direct)).status(), Some(200), "{options:?}");
            assert_eq!(ask(Some(&near)).status(), Some(200), "{options:?}: depth is 1");
            for (what, client) in [
                ("nothing", None),
                ("too deep", Some(&far)),
                ("expired", Some(&over)),
                ("another authority of that name", Some(&stranger)),
            ] {
                assert_eq!(ask(client), Got::NoConnection, "{options:?} {what}");
            }
        }
    }
    assert_eq!(edge.app.requests(), 8, "nothing else came through");
    assert_eq!(curl(&edge, "open.example", "/x", None, &[]).status(), Some(200));
    for reason in ["no_certificate", "untrusted_client", "client_too_deep"] {
        edge.ingress.record_with("/reason", &json!(reason));
        eventually_async("it is counted", || async {
            let metrics = get(edge.ingress.address("status"), "/metrics").await.text();
            metrics.contains(&format!("reason=\"{reason}\"")).then_some(())
        })
        .await;
    }

    let deeper = json!({ "ca": root.pem, "depth": 2 });
    edge.put("/ssls/1", &demanding(&certificate, &["shop.example"], deeper)).await;
    assert_eq!(curl(&edge, "shop.example", "/x", Some(&far), &[]).status(), Some(200));
    let shallow = json!({ "ca": root.pem, "depth": 0 });
    edge.put("/ssls/1", &demanding(&certificate, &["shop.example"], shallow)).await;
    assert_eq!(curl(&edge, "shop.example", "/x", Some(&near), &[]), Got::NoConnection);
    assert_eq!(curl(&edge, "shop.example", "/x", Some(&direct), &[]).status(), Some(200));
}

#[tokio::test]
async fn where_client_certificates_are_asked_for_nothing_is_resumed() {
    let edge = Edge::new().await;
    let root = Authority::root("root");
    let client = root.client(&edge.world, "client", 9);
    let certificate = Certificate::of(&["shop.example"]);
    for rule in
        [json!({ "ca": root.pem }), json!({ "ca": root.pem, "skip_mtls_uri_regex": ["^/open"] })]
    {
        edge.put("/ssls/1", &demanding(&certificate, &["shop.example"], rule)).await;
        for option in ["-tls1_2", "-tls1_3"] {
            let session = edge.world.folder.join(format!("session{option}.pem"));
            let file = |path: &Path| path.to_str().unwrap().to_owned();
            let shaken = edge.handshake(&[
                "-servername",
                "shop.example",
                option,
                "-sess_out",
                &file(&session),
                "-cert",
                &file(&client.chain),
                "-cert_chain",
                &file(&client.chain),
                "-key",
                &file(&client.key),
            ]);
            assert!(shaken.shows(&certificate), "{}", shaken.0);
            assert!(!shaken.0.contains("TLS session ticket:"), "{option}: {}", shaken.0);
            if session.exists() {
                let again = ["-servername", "shop.example", option, "-sess_in", &file(&session)];
                assert!(!edge.handshake(&again).0.contains("Reused, "), "{option}");
            }
        }
    }
}

#[tokio::test]
async fn paths_that_are_skipped_need_no_certificate_and_all_others_are_answered_400() {
    let edge = Edge::new().await;
    let root = Authority::root("root");
    let client = root.client(&edge.world, "client", 9);
    let stranger = Authority::root("elsewhere").client(&edge.world, "stranger", 9);
    let far = root.below("one").below("two").client(&edge.world, "far", 9);
    let certificate = Certificate::of(&["shop.example"]);
    let rule = json!({ "ca": root.pem, "skip_mtls_uri_regex": ["^/open/", "^/health$"] });
    edge.put("/ssls/1", &demanding(&certificate, &["shop.example"], rule)).await;
    for version in ["--http1.1", "--http2"] {
        let ask = |path: &str, client: Option<&Client>| {
            curl(&edge, "shop.example", path, client, &[version]).status().unwrap()
        };
        for (path, without) in [
            ("/open/a", 200),
            ("/health", 200),
            ("/health?x=/open/", 200),
            ("/%6fpen/a", 200),
            ("/closed", 400),
            ("/closed?x=/open/", 400),
            ("/healthy", 400),
            ("/open/../closed", 400),
            ("/open/%2e%2e/closed", 400),
            ("/open/..%2fclosed", 400),
            ("/open/%252e%252e/closed", 400),
            ("/open/..;/closed", 400),
            ("/open/..%5cclosed", 400),
        ] {
            assert_eq!(ask(path, None), without, "{version} {path}, without a certificate");
            assert_eq!(ask(path, Some(&stranger)), without, "{version} {path}, a stranger");
        }
        assert_eq!(ask("/closed", Some(&far)), 400, "too deep");
        assert_eq!(ask("/closed", Some(&client)), 200);
    }
    let mut broken = demanding(&certificate, &["shop.example"], json!({ "ca": root.pem }));
    broken["client"]["skip_mtls_uri_regex"] = json!(["^/open(?!x)"]);
    let refused = edge.admin.ask("PUT", "/ssls/1", Some(&broken)).await;
    assert_eq!(refused.status, 400);
    assert!(refused.text().contains("skip_mtls_uri_regex"), "{}", refused.text());
}

#[tokio::test]
async fn a_host_that_is_not_the_server_name_is_answered_where_the_connection_may_serve_it() {
    let edge = Edge::with(&[("ingress.tls", json!({ "fallback_sni": "one.example" }))]).await;
    let root = Authority::root("root");
    let client = root.client(&edge.world, "client", 9);
    let one = Certificate::of(&["one.example", "friend.example", "*.one.example"]);
    let two = Certificate::of(&["two.example"]);
    let wild = Certificate::of(&["*.wild.example"]);
    let secret = Certificate::of(&["secret.example", "*.secret.example", "one.example"]);
    edge.put("/ssls/1", &one.resource(&["one.example", "alias.example"])).await;
    edge.put("/ssls/2", &two.resource(&["two.example"])).await;
    edge.put("/ssls/3", &wild.resource(&["*.wild.example"])).await;
    let demands =
        demanding(&secret, &["secret.example", "*.secret.example"], json!({ "ca": root.pem }));
    edge.put("/ssls/4", &demands).await;
    for version in ["--http1.1", "--http2"] {
        let ask = |name: &str, host: &str| {
            let header = format!("Host: {host}");
            curl(&edge, name, "/x", Some(&client), &[version, "-H", &header]).status().unwrap()
        };
        for (name, host, status, why) in [
            ("one.example", "one.example", 200, "the same"),
            ("one.example", "ONE.example.:8443", 200, "the same, written otherwise"),
            ("one.example", "alias.example", 200, "the same resource"),
            (
                "one.example",
                "friend.example",
                200,
                "the certificate covers it, nobody else answers",
            ),
            ("one.example", "a.one.example", 200, "the certificate covers it by a wildcard"),
            ("one.example", "a.b.one.example", 421, "by one label only"),
            ("one.example", "two.example", 421, "another resource, not covered"),
            ("one.example", "nobody.example", 421, "nobody's, not covered"),
            ("one.example", "127.0.0.1", 421, "an address, not covered"),
            ("a.wild.example", "b.wild.example", 200, "the same resource"),
            ("a.wild.example", "wild.example", 421, "the star needs a label"),
            ("one.example", "secret.example", 400, "client certificates are for their own name"),
            ("secret.example", "secret.example", 200, "the same"),
            ("secret.example", "a.secret.example", 400, "proved for another name"),
            ("secret.example", "one.example", 421, "covered, but other rules hold there"),
            ("secret.example", "two.example", 421, "other rules"),
        ] {
            assert_eq!(ask(name, host), status, "{version} {name} asked for {host}: {why}");
        }
    }
    // Who names no server gets the fallback's certificate, and reaches what is the fallback's or nobody's.
    let port = edge.address().port();
    let unnamed = |host: &str| {
        let output = Command::new("curl")
            .args(["--silent", "--insecure", "--noproxy", "*", "--max-time", "20"])
            .args(["--output", "/dev/null", "--write-out", "%{http_code}"])
            .args(["-H", &format!("Host: {host}"), &format!("https://127.0.0.1:{port}/x")])
            .output()
            .unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    for (host, status) in [
        ("127.0.0.1", "200"),
        ("one.example", "200"),
        ("alias.example", "200"),
        ("two.example", "421"),
        ("secret.example", "400"),
    ] {
        assert_eq!(unnamed(host), status, "no server name, asked for {host}");
    }
}

#[tokio::test]
async fn a_connection_from_before_a_new_rule_does_not_get_past_it() {
    let edge = Edge::new().await;
    let root = Authority::root("root");
    let certificate = Certificate::of(&["shop.example"]);
    edge.put("/ssls/1", &certificate.resource(&["shop.example"])).await;
    let mut long = crate::tls_edge::LongConnection::open(&edge);
    assert_eq!(long.ask(), 200);
    let other = Certificate::of(&["other.example"]);
    edge.put("/ssls/2", &other.resource(&["other.example"])).await;
    assert_eq!(long.ask(), 200, "another resource");
    edge.put("/ssls/1", &Certificate::of(&["shop.example"]).resource(&["shop.example"])).await;
    assert_eq!(long.ask(), 200, "another certificate");
    let ssl = demanding(&certificate, &["shop.example"], json!({ "ca": root.pem }));
    edge.put("/ssls/1", &ssl).await;
    assert_eq!(long.ask(), 421, "certificates are asked for by now");
    edge.put("/ssls/1", &certificate.resource(&["shop.example"])).await;
    assert_eq!(long.ask(), 200, "no longer");
}

#[tokio::test]
async fn what_cannot_be_is_refused_at_the_write_with_the_field_that_is_wrong() {
    let edge = Edge::new().await;
    let (one, other) = (Certificate::of(&["a.example"]), Certificate::of(&["b.example"]));
    let base = one.resource(&["a.example"]);
    let with = |more: Value| {
        let mut ssl = base.clone();
        for (name, value) in more.as_object().unwrap() {
            ssl[name] = value.clone();
        }
        ssl
    };
    for (more, sentence) in [
        (json!({ "key": other.key }), "cert and key cannot be used together"),
        (json!({ "certs": [other.chain] }), "mismatched number of certs and keys"),
        (
            json!({ "certs": [other.chain], "keys": [one.key] }),
            "failed to handle cert-key pair[1]: cert and key cannot be used together",
        ),
        (
            json!({ "certs": ["x".repeat(128)], "keys": [one.key] }),
            "failed to handle cert-key pair[1]: failed to parse cert",
        ),
        (
            json!({ "client": { "ca": "x".repeat(128) } }),
            "failed to validate client_cert: failed to parse cert",
        ),
        (
            json!({ "client": { "depth": 1 } }),
            "property \\\"client\\\" validation failed: property \\\"ca\\\" is required",
        ),
        (json!({ "client": { "ca": one.chain, "depth": -1 } }), "expected -1 to be greater than 0"),
        (
            json!({ "cert": "$secret://vault/1" }),
            "property \\\"cert\\\" validation failed: expected $secret://",
        ),
        (json!({ "key": "$ENV://" }), "property \\\"key\\\" validation failed: expected $env://"),
        (
            json!({ "keys": ["$env://A B"], "certs": [one.chain] }),
            "property \\\"keys[0]\\\" validation failed: expected $env://",
        ),
        (
            json!({ "client": { "ca": "$SECRET://a" } }),
            "property \\\"client.ca\\\" validation failed: expected $secret://",
        ),
        (json!({ "ssl_protocols": ["TLSv1.2", "TLSv1.2"] }), "expected unique items"),
        (json!({ "ssl_protocols": ["SSLv3"] }), "matches none of the enum values"),
        (
            json!({ "type": "client", "client": { "ca": one.chain } }),
            "property \\\"client\\\" validation failed: it has no meaning on a certificate of type client",
        ),
        (json!({ "sni": "a.example" }), "then clause did not match"),
    ] {
        let refused = edge.admin.ask("PUT", "/ssls/1", Some(&with(more.clone()))).await;
        let text = refused.text();
        assert_eq!(refused.status, 400, "{more}: {text}");
        assert!(text.contains(sentence), "{more}: {text}");
        assert!(!text.contains("PRIVATE"), "{text}");
    }
    // One for upstreams has no names, and answers nobody.
    let client = json!({ "type": "client", "cert": one.chain, "key": one.key });
    edge.put("/ssls/2", &client).await;
    assert!(edge.handshake(&["-servername", "a.example"]).refused());
    let shown = edge.admin.get("/ssls/2").await.to_string();
    assert!(!shown.contains("PRIVATE KEY"), "{shown}");
}
